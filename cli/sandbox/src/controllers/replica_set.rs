//! ReplicaSets: as many pods of one template as asked for.

use super::cache::{Cluster, Key, key_of};
use super::template::{self, PodName};
use super::{Again, adoption, event};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use std::time::Duration;

const NAME: &str = "replicaset-controller";
/// Pods made or deleted in one look; the next look does more.
const AT_ONCE: usize = 50;

pub(crate) async fn reconcile(cluster: &mut Cluster, key: &Key) -> kube::Result<Again> {
    let Some(set) = cluster.replica_sets.get(key).cloned() else { return Ok(None) };
    let wanted = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0) as usize;
    let selector = set.spec.as_ref().map(|spec| &spec.selector);
    adoption::claim::<_, Pod>(cluster, &set, selector, template::is_active).await?;
    if set.metadata.deletion_timestamp.is_none() {
        let active: Vec<Pod> = active_pods(cluster, &set);
        if active.len() < wanted {
            for _ in active.len()..wanted.min(active.len() + AT_ONCE) {
                grow(cluster, &set).await?;
            }
        } else if active.len() > wanted {
            shrink(cluster, &set, active, wanted).await?;
        }
    }
    let now = jiff::Timestamp::now();
    let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let pods = active_pods(cluster, &set);
    let status = status(&set, &pods, min_ready, now);
    let waiting = status.ready_replicas != status.available_replicas;
    cluster.set_status::<ReplicaSet, _>(key, set.status.as_ref(), &status).await?;
    Ok((waiting || pods.len() != wanted).then_some(Duration::from_millis(500)))
}

fn active_pods(cluster: &Cluster, set: &ReplicaSet) -> Vec<Pod> {
    cluster.pods.controlled(&set.metadata).filter(|pod| template::is_active(pod)).cloned().collect()
}

async fn grow(cluster: &mut Cluster, set: &ReplicaSet) -> kube::Result<()> {
    let template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
    let prefix = PodName::Prefix(format!("{}-", set.metadata.name.as_deref().unwrap_or_default()));
    match cluster.create(&template::pod_of(set, &template, prefix)).await {
        Ok(pod) => {
            let message = format!("Created pod: {}", pod.metadata.name.unwrap_or_default());
            event::normal(cluster, set, NAME, "SuccessfulCreate", message).await;
            Ok(())
        }
        Err(error) => {
            event::warning(cluster, set, NAME, "FailedCreate", format!("Error creating: {error}")).await;
            Err(error)
        }
    }
}

async fn shrink(cluster: &mut Cluster, set: &ReplicaSet, mut pods: Vec<Pod>, wanted: usize) -> kube::Result<()> {
    pods.sort_by_key(template::worth);
    let surplus = (pods.len() - wanted).min(AT_ONCE);
    for pod in &pods[..surplus] {
        cluster.delete::<Pod>(&key_of(&pod.metadata), &DeleteParams::default()).await?;
        let message = format!("Deleted pod: {}", pod.metadata.name.as_deref().unwrap_or_default());
        event::normal(cluster, set, NAME, "SuccessfulDelete", message).await;
    }
    Ok(())
}

fn status(set: &ReplicaSet, pods: &[Pod], min_ready: i32, now: jiff::Timestamp) -> ReplicaSetStatus {
    let count = |test: &dyn Fn(&Pod) -> bool| pods.iter().filter(|pod| test(pod)).count() as i32;
    let some = |number: i32| (number > 0).then_some(number);
    ReplicaSetStatus {
        replicas: pods.len() as i32,
        fully_labeled_replicas: some(pods.len() as i32),
        ready_replicas: some(count(&template::is_ready)),
        available_replicas: some(count(&|pod| template::is_available(pod, min_ready, now))),
        observed_generation: set.metadata.generation,
        conditions: None,
        terminating_replicas: None,
    }
}
