//! Namespaces on their way out: everything in them is deleted, then they themselves.

use super::Again;
use super::cache::{Cluster, is_conflict, is_gone};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::DeleteParams;
use kube::core::DynamicObject;
use std::time::Duration;

/// The finalizer that this controller answers for.
const FINALIZER: &str = "kubernetes";

pub(crate) async fn reconcile(cluster: &mut Cluster, name: &str) -> kube::Result<Again> {
    let Some(namespace) = cluster.namespaces.get(&(String::new(), name.to_owned())).cloned() else { return Ok(None) };
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if namespace.metadata.deletion_timestamp.is_none() || !finalizers.iter().any(|f| f == FINALIZER) {
        return Ok(None);
    }
    // The graph may lag behind what was created a moment ago, so the API itself is asked what is left.
    let mut left = 0;
    for resource in cluster.graph.namespaced_resources() {
        let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), name, &resource);
        let objects = match api.list_metadata(&Default::default()).await {
            Ok(list) => list.items,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        for object in objects {
            left += 1;
            if object.metadata.deletion_timestamp.is_some() {
                continue;
            }
            match api.delete(object.metadata.name.as_deref().unwrap_or_default(), &DeleteParams::background()).await {
                Err(error) if !is_gone(&error) && !is_conflict(&error) => return Err(error),
                _ => {}
            }
        }
    }
    if left > 0 {
        return Ok(Some(Duration::from_millis(100)));
    }
    let mut finalized = namespace.clone();
    finalized.metadata.managed_fields = None;
    if let Some(spec) = &mut finalized.spec {
        spec.finalizers = Some(finalizers.into_iter().filter(|f| f != FINALIZER).collect());
    }
    let body = serde_json::to_vec(&finalized).map_err(kube::Error::SerdeError)?;
    let request = http::Request::put(format!("/api/v1/namespaces/{name}/finalize"))
        .header("content-type", "application/json")
        .body(body)
        .map_err(kube::Error::HttpError)?;
    match cluster.client.request::<Namespace>(request).await {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(None),
    }
}
