//! DaemonSets: one pod on every node that will have it.

use super::cache::{Cluster, Key, key_of};
use super::template::{self, PodName, hash_of};
use super::{Again, adoption, event};
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Pod, Toleration};
use kube::api::DeleteParams;
use std::time::Duration;

const NAME: &str = "daemonset-controller";
/// Label with the version of the template a pod was made from.
const REVISION: &str = "controller-revision-hash";

pub(crate) async fn reconcile(cluster: &mut Cluster, key: &Key) -> kube::Result<Again> {
    let Some(set) = cluster.daemon_sets.get(key).cloned() else { return Ok(None) };
    let spec = set.spec.clone().unwrap_or_default();
    let revision = hash_of(&spec.template, 0);
    adoption::claim::<_, Pod>(cluster, &set, Some(&spec.selector), template::is_active).await?;
    let nodes: Vec<String> = cluster.nodes.iter().filter_map(|node| node.metadata.name.clone()).collect();
    let on = |pod: &Pod, node: &str| {
        pod.spec.as_ref().and_then(|s| s.node_selector.as_ref()).and_then(|s| s.get(HOSTNAME)).map(String::as_str)
            == Some(node)
    };
    if set.metadata.deletion_timestamp.is_none() {
        for node in &nodes {
            let pods: Vec<Pod> = cluster.pods.controlled(&set.metadata).filter(|pod| on(pod, node)).cloned().collect();
            let by_hand = spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("OnDelete");
            let stale = |pod: &&Pod| {
                let old = pod.metadata.labels.as_ref().and_then(|l| l.get(REVISION)) != Some(&revision);
                pod.metadata.deletion_timestamp.is_none() && (template::has_ended(pod) || (old && !by_hand))
            };
            if let Some(pod) = pods.iter().find(stale) {
                cluster.delete::<Pod>(&key_of(&pod.metadata), &DeleteParams::default()).await?;
            } else if pods.is_empty() {
                create(cluster, &set, node, &revision).await?;
            }
        }
    }
    let now = jiff::Timestamp::now();
    let pods: Vec<&Pod> = cluster.pods.controlled(&set.metadata).filter(|pod| template::is_active(pod)).collect();
    let count = |test: &dyn Fn(&Pod) -> bool| pods.iter().filter(|pod| test(pod)).count() as i32;
    let available = count(&|pod| template::is_available(pod, spec.min_ready_seconds.unwrap_or(0), now));
    let wanted = nodes.len() as i32;
    let status = DaemonSetStatus {
        current_number_scheduled: pods.len() as i32,
        desired_number_scheduled: wanted,
        number_ready: count(&template::is_ready),
        number_available: Some(available),
        number_unavailable: (wanted > available).then_some(wanted - available),
        updated_number_scheduled: Some(count(&|pod| {
            pod.metadata.labels.as_ref().and_then(|l| l.get(REVISION)) == Some(&revision)
        })),
        number_misscheduled: 0,
        observed_generation: set.metadata.generation,
        collision_count: None,
        conditions: None,
    };
    cluster.set_status::<DaemonSet, _>(key, set.status.as_ref(), &status).await?;
    Ok((available < wanted).then_some(Duration::from_secs(2)))
}

/// Label that every node carries with its own name.
const HOSTNAME: &str = "kubernetes.io/hostname";

async fn create(cluster: &mut Cluster, set: &DaemonSet, node: &str, revision: &str) -> kube::Result<()> {
    let spec = set.spec.clone().unwrap_or_default();
    let prefix = PodName::Prefix(format!("{}-", set.metadata.name.as_deref().unwrap_or_default()));
    let mut pod = template::pod_of(set, &spec.template, prefix);
    pod.metadata.labels.get_or_insert_default().insert(REVISION.to_owned(), revision.to_owned());
    if let Some(pod_spec) = &mut pod.spec {
        // A DaemonSet's pods also go where nothing else may.
        let anywhere = Toleration { operator: Some("Exists".to_owned()), ..Default::default() };
        pod_spec.tolerations.get_or_insert_default().push(anywhere);
        pod_spec.node_selector.get_or_insert_default().insert(HOSTNAME.to_owned(), node.to_owned());
    }
    let created = cluster.create(&pod).await?;
    let message = format!("Created pod: {}", created.metadata.name.unwrap_or_default());
    event::normal(cluster, set, NAME, "SuccessfulCreate", message).await;
    Ok(())
}
