//! Events: what controllers did, for `kubectl describe`.

use super::cache::{Cluster, writing};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{Api, Resource};
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells events of one object apart.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Says of an object that something normal happened.
pub(crate) async fn normal<K: Resource<DynamicType = ()>>(
    cluster: &Cluster,
    about: &K,
    by: &str,
    reason: &str,
    message: String,
) {
    emit(cluster, about, by, "Normal", reason, message).await;
}

/// Says of an object that something is wrong.
pub(crate) async fn warning<K: Resource<DynamicType = ()>>(
    cluster: &Cluster,
    about: &K,
    by: &str,
    reason: &str,
    message: String,
) {
    emit(cluster, about, by, "Warning", reason, message).await;
}

async fn emit<K: Resource<DynamicType = ()>>(
    cluster: &Cluster,
    about: &K,
    by: &str,
    kind: &str,
    reason: &str,
    message: String,
) {
    let meta = about.meta();
    let namespace = meta.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let name = meta.name.clone().unwrap_or_default();
    let now = jiff::Timestamp::now();
    let event = Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}{:x}", now.as_millisecond(), NUMBER.fetch_add(1, Ordering::Relaxed))),
            namespace: Some(namespace.clone()),
            ..Default::default()
        },
        involved_object: ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            ..Default::default()
        },
        reason: Some(reason.to_owned()),
        message: Some(message),
        type_: Some(kind.to_owned()),
        source: Some(EventSource { component: Some(by.to_owned()), ..Default::default() }),
        reporting_component: Some(by.to_owned()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Default::default()
    };
    let api: Api<Event> = Api::namespaced(cluster.client.clone(), &namespace);
    if let Err(error) = api.create(&writing(), &event).await {
        tracing::debug!(%error, reason, "an event could not be written");
    }
}
