//! Who belongs to whom by labels: owners adopt what matches their selector and has no controller, as after a deletion
//! that left orphans, and let go of what does not match any more, as when somebody relabels a pod to look at it.

use super::Work;
use super::cache::{Cached, Cluster, controller_of, key_of, owned_by};
use super::template::matches;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use serde_json::json;

/// Makes `owner` the controller of exactly those dependents that its selector matches. `fits` says what it could adopt.
pub(crate) async fn claim<O, D>(
    cluster: &mut Cluster,
    owner: &O,
    selector: Option<&LabelSelector>,
    fits: impl Fn(&D) -> bool,
) -> kube::Result<()>
where
    O: Cached,
    D: Cached + Resource<Scope = NamespaceResourceScope>,
{
    let Some(selector) = selector else { return Ok(()) };
    if owner.meta().deletion_timestamp.is_some() {
        return Ok(());
    }
    let namespace = owner.meta().namespace.clone().unwrap_or_default();
    let dependents: Vec<D> = D::objects(cluster)
        .inside(&namespace)
        .filter(|object| object.meta().deletion_timestamp.is_none())
        .cloned()
        .collect();
    for object in &dependents {
        let matching = matches(selector, object.meta().labels.as_ref());
        let references = match controller_of(object.meta()) {
            Some(controller) if Some(&controller.uid) == owner.meta().uid.as_ref() && !matching => {
                without(object.meta(), &controller.uid)
            }
            None if matching && fits(object) => {
                let mut references = object.meta().owner_references.clone().unwrap_or_default();
                references.push(owned_by(owner));
                references
            }
            _ => continue,
        };
        // The version makes sure that nobody else adopted it in between.
        let patch = json!({"metadata": {
            "ownerReferences": references, "uid": object.meta().uid, "resourceVersion": object.meta().resource_version,
        }});
        cluster.patch::<D>(&key_of(object.meta()), &patch).await?;
    }
    Ok(())
}

fn without(meta: &ObjectMeta, uid: &str) -> Vec<OwnerReference> {
    meta.owner_references.iter().flatten().filter(|owner| owner.uid != uid).cloned().collect()
}

/// Who might adopt a pod that has no controller.
pub(crate) fn adopters_of_pod(cluster: &Cluster, pod: &Pod) -> Vec<Work> {
    if controller_of(&pod.metadata).is_some() || pod.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let labels = pod.metadata.labels.as_ref();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut work = Vec::new();
    for set in cluster.replica_sets.inside(namespace) {
        if set.spec.as_ref().is_some_and(|spec| matches(&spec.selector, labels)) {
            work.push(Work::ReplicaSet(key_of(&set.metadata)));
        }
    }
    for set in cluster.stateful_sets.inside(namespace) {
        if set.spec.as_ref().is_some_and(|spec| matches(&spec.selector, labels)) {
            work.push(Work::StatefulSet(key_of(&set.metadata)));
        }
    }
    for set in cluster.daemon_sets.inside(namespace) {
        if set.spec.as_ref().is_some_and(|spec| matches(&spec.selector, labels)) {
            work.push(Work::DaemonSet(key_of(&set.metadata)));
        }
    }
    work
}

/// Who might adopt a ReplicaSet that has no controller.
pub(crate) fn adopters_of_set(cluster: &Cluster, set: &ReplicaSet) -> Vec<Work> {
    if controller_of(&set.metadata).is_some() || set.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let labels = set.metadata.labels.as_ref();
    let deployments = cluster.deployments.inside(namespace);
    deployments
        .filter(|deployment| deployment.spec.as_ref().is_some_and(|spec| matches(&spec.selector, labels)))
        .map(|deployment| Work::Deployment(key_of(&deployment.metadata)))
        .collect()
}
