//! StatefulSets: pods with names that stay, made and replaced one after the other.

use super::cache::{Cluster, Key, key_of};
use super::template::{self, PodName, hash_of};
use super::{Again, adoption, event};
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use std::time::Duration;

const NAME: &str = "statefulset-controller";
/// Label with the version of the template a pod was made from.
const REVISION: &str = "controller-revision-hash";

pub(crate) async fn reconcile(cluster: &mut Cluster, key: &Key) -> kube::Result<Again> {
    let Some(set) = cluster.stateful_sets.get(key).cloned() else { return Ok(None) };
    let name = key.1.clone();
    let spec = set.spec.clone().unwrap_or_default();
    let revision = format!("{name}-{}", hash_of(&spec.template, 0));
    let wanted = spec.replicas.unwrap_or(1).max(0);
    let is_member = |pod: &Pod| ordinal(&name, pod).is_some();
    adoption::claim::<_, Pod>(cluster, &set, Some(&spec.selector), is_member).await?;
    let parallel = spec.pod_management_policy.as_deref() == Some("Parallel");
    if set.metadata.deletion_timestamp.is_none() {
        let pods: Vec<Pod> = cluster.pods.controlled(&set.metadata).cloned().collect();
        let by_hand = spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("OnDelete");
        match next(&name, wanted, parallel, by_hand, &revision, &pods) {
            Some(Step::Create(ordinals)) => {
                for ordinal in ordinals {
                    create(cluster, &set, ordinal, &revision).await?;
                }
            }
            Some(Step::Delete(pod)) => {
                let message = format!("delete Pod {pod} in StatefulSet {name} successful");
                cluster.delete::<Pod>(&(key.0.clone(), pod), &DeleteParams::default()).await?;
                event::normal(cluster, &set, NAME, "SuccessfulDelete", message).await;
            }
            None => {}
        }
    }
    let now = jiff::Timestamp::now();
    let pods: Vec<&Pod> = cluster.pods.controlled(&set.metadata).filter(|pod| template::is_active(pod)).collect();
    let count = |test: &dyn Fn(&Pod) -> bool| pods.iter().filter(|pod| test(pod)).count() as i32;
    let updated = count(&|pod| label(pod) == Some(&revision));
    let complete = updated == wanted && pods.len() as i32 == wanted;
    let before = set.status.as_ref().and_then(|s| s.current_revision.clone());
    let status = StatefulSetStatus {
        replicas: pods.len() as i32,
        ready_replicas: Some(count(&template::is_ready)),
        available_replicas: Some(count(&|p| template::is_available(p, spec.min_ready_seconds.unwrap_or(0), now))),
        current_replicas: Some(if complete { updated } else { pods.len() as i32 - updated }),
        updated_replicas: Some(updated),
        current_revision: if complete { Some(revision.clone()) } else { before.or(Some(revision.clone())) },
        update_revision: Some(revision),
        observed_generation: set.metadata.generation,
        collision_count: Some(0),
        conditions: None,
    };
    let settled = complete && status.ready_replicas == Some(wanted);
    cluster.set_status::<StatefulSet, _>(key, set.status.as_ref(), &status).await?;
    Ok((!settled).then_some(Duration::from_secs(2)))
}

fn label(pod: &Pod) -> Option<&String> {
    pod.metadata.labels.as_ref()?.get(REVISION)
}

/// The number of a set's pod, from its name.
fn ordinal(set: &str, pod: &Pod) -> Option<i32> {
    pod.metadata.name.as_deref()?.strip_prefix(set)?.strip_prefix('-')?.parse().ok()
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Create(Vec<i32>),
    Delete(String),
}

/// The next thing to do: make the first missing pod (all, if parallel), or take away the last that is too many, broken
/// off or old; in order, nothing while another pod is not ready.
fn next(name: &str, wanted: i32, parallel: bool, by_hand: bool, revision: &String, pods: &[Pod]) -> Option<Step> {
    let named =
        |ordinal: i32| pods.iter().find(|pod| pod.metadata.name.as_deref() == Some(&format!("{name}-{ordinal}")));
    if let Some(ended) = pods.iter().find(|pod| template::has_ended(pod) && pod.metadata.deletion_timestamp.is_none()) {
        return Some(Step::Delete(key_of(&ended.metadata).1));
    }
    let missing: Vec<i32> = (0..wanted).filter(|&ordinal| named(ordinal).is_none()).collect();
    if parallel && !missing.is_empty() {
        return Some(Step::Create(missing));
    }
    if let Some(&first) = missing.first() {
        let before_are_ready = (0..first).all(|ordinal| named(ordinal).is_some_and(template::is_ready));
        return before_are_ready.then(|| Step::Create(vec![first]));
    }
    let ordinal = |pod: &Pod| ordinal(name, pod);
    let quiet = pods.iter().all(|pod| pod.metadata.deletion_timestamp.is_none());
    let surplus = pods.iter().filter(|pod| ordinal(pod).is_some_and(|o| o >= wanted)).max_by_key(|pod| ordinal(pod));
    if let Some(pod) = surplus {
        return (quiet || parallel)
            .then(|| Step::Delete(key_of(&pod.metadata).1))
            .filter(|_| pod.metadata.deletion_timestamp.is_none());
    }
    let old = pods.iter().filter(|pod| !by_hand && label(pod) != Some(revision)).max_by_key(|pod| ordinal(pod))?;
    let others_ready = pods.iter().all(|pod| template::is_ready(pod) || pod.metadata.name == old.metadata.name);
    (quiet && others_ready).then(|| Step::Delete(key_of(&old.metadata).1))
}

async fn create(cluster: &mut Cluster, set: &StatefulSet, ordinal: i32, revision: &str) -> kube::Result<()> {
    let spec = set.spec.clone().unwrap_or_default();
    let name = format!("{}-{ordinal}", set.metadata.name.as_deref().unwrap_or_default());
    let mut pod = template::pod_of(set, &spec.template, PodName::Exact(name.clone()));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION.to_owned(), revision.to_owned());
    labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), name.clone());
    labels.insert("apps.kubernetes.io/pod-index".to_owned(), ordinal.to_string());
    if let Some(pod_spec) = &mut pod.spec {
        pod_spec.hostname = Some(name.clone());
        pod_spec.subdomain = spec.service_name;
    }
    cluster.create(&pod).await?;
    let message =
        format!("create Pod {name} in StatefulSet {} successful", set.metadata.name.as_deref().unwrap_or_default());
    event::normal(cluster, set, NAME, "SuccessfulCreate", message).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, ready: bool, revision: &str) -> Pod {
        let status = if ready { "True" } else { "False" };
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {REVISION: revision}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]},
        }))
        .unwrap()
    }

    #[test]
    fn pods_come_and_go_in_order() {
        let new = "r2".to_owned();
        let step = |wanted, parallel, pods: &[Pod]| next("db", wanted, parallel, false, &new, pods);
        assert_eq!(step(2, false, &[]), Some(Step::Create(vec![0])));
        assert_eq!(step(2, true, &[]), Some(Step::Create(vec![0, 1])));
        assert_eq!(step(2, false, &[pod("db-0", false, "r2")]), None, "waits for the first");
        assert_eq!(step(2, false, &[pod("db-0", true, "r2")]), Some(Step::Create(vec![1])));
        assert_eq!(
            step(1, false, &[pod("db-0", true, "r2"), pod("db-1", true, "r2")]),
            Some(Step::Delete("db-1".into()))
        );
        assert_eq!(
            step(2, false, &[pod("db-0", true, "r1"), pod("db-1", true, "r1")]),
            Some(Step::Delete("db-1".into()))
        );
        assert_eq!(step(2, false, &[pod("db-0", true, "r1"), pod("db-1", false, "r2")]), None);
        assert_eq!(
            step(2, false, &[pod("db-0", true, "r1"), pod("db-1", true, "r2")]),
            Some(Step::Delete("db-0".into()))
        );
        assert_eq!(step(2, false, &[pod("db-0", true, "r2"), pod("db-1", true, "r2")]), None);
    }
}
