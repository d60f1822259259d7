//! `-l app=web`: which resources carry these labels.

use crate::cluster::Cluster;
use crate::error::{Context, Result};
use crate::resource::{Kind, Resource};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::core::Resource as _;
use kube::{Api, ResourceExt};
use mesh_api::WorkloadRef;
use std::collections::BTreeSet;

/// The resources of a kind that carry the labels, each named like a row.
pub async fn select(
    cluster: &Cluster,
    of: &Resource,
    namespace: Option<&str>,
    labels: &str,
) -> Result<BTreeSet<WorkloadRef>> {
    let mut selected = BTreeSet::new();
    for resource in resources(of.kind) {
        let client = cluster.client.clone();
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) if resource.kind != Namespace::kind(&()) => {
                Api::namespaced_with(client, namespace, &resource)
            }
            _ => Api::all_with(client, &resource),
        };
        let kind = resource.kind.to_lowercase();
        let list = api.list(&ListParams::default().labels(labels)).await;
        let list = list.during(|| format!("list {} with labels {labels}", resource.plural))?;
        selected.extend(list.items.iter().map(|object| {
            let name = object.name_any();
            // A namespace's row stands in itself.
            let namespace = object.namespace().unwrap_or_else(|| name.clone());
            WorkloadRef { namespace, kind: kind.clone(), name }
        }));
    }
    Ok(selected)
}

fn resources(kind: Kind) -> Vec<ApiResource> {
    let workloads = || {
        vec![
            ApiResource::erase::<Deployment>(&()),
            ApiResource::erase::<StatefulSet>(&()),
            ApiResource::erase::<DaemonSet>(&()),
            ApiResource::erase::<ReplicaSet>(&()),
            ApiResource::erase::<Job>(&()),
            ApiResource::erase::<CronJob>(&()),
        ]
    };
    match kind {
        Kind::All => [workloads(), vec![ApiResource::erase::<Pod>(&())]].concat(),
        Kind::Workload(name) => {
            workloads().into_iter().filter(|resource| resource.kind.eq_ignore_ascii_case(name)).collect()
        }
        Kind::Pod => vec![ApiResource::erase::<Pod>(&())],
        Kind::Service => vec![ApiResource::erase::<Service>(&())],
        Kind::Namespace => vec![ApiResource::erase::<Namespace>(&())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn labelled_resources_are_named_like_rows() {
        let service = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
            let uri = request.uri().to_string();
            assert_eq!(uri, "/apis/apps/v1/namespaces/shop/deployments?&labelSelector=app%3Dweb");
            let body = json!({"apiVersion": "apps/v1", "kind": "DeploymentList", "metadata": {},
                "items": [{"metadata": {"name": "web", "namespace": "shop"}}]});
            Ok::<_, std::io::Error>(http::Response::new(kube::client::Body::from(body.to_string().into_bytes())))
        });
        let cluster = Cluster::of_client(kube::Client::new(service, "default"));
        let of = Resource::read_one("deploy").unwrap();
        let selected = select(&cluster, &of, Some("shop"), "app=web").await.unwrap();
        assert_eq!(selected, BTreeSet::from([WorkloadRef::new("shop", "deployment", "web")]));
    }
}
