//! The controllers against the API itself, in process, with a node that only says pods are ready.

use super::*;
use crate::api::{Api as Cluster, Config};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

/// A cluster with controllers; they stop when the guard is dropped.
async fn cluster() -> (kube::Client, tokio_util::sync::DropGuard) {
    let client = Cluster::new(Config::default()).unwrap().client();
    let stop = CancellationToken::new();
    tokio::spawn(run(client.clone(), "authority".to_owned(), stop.clone()));
    let node: Node = from(json!({"metadata": {"name": "sandbox", "labels": {"kubernetes.io/hostname": "sandbox"}}}));
    Api::all(client.clone()).create(&PostParams::default(), &node).await.unwrap();
    (client, stop.drop_guard())
}

fn from<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn deployment(replicas: i32, image: &str) -> Deployment {
    from(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}},
    }))
}

/// Asks until the answer is yes; fails after ten seconds.
async fn until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    for _ in 0..500 {
        if ask().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

/// Says of every scheduled pod that it runs, as a node would.
async fn make_ready(pods: &Api<Pod>) {
    for (number, pod) in pods.list(&ListParams::default()).await.unwrap().items.into_iter().enumerate() {
        let name = pod.metadata.name.unwrap();
        if pod.metadata.deletion_timestamp.is_some() {
            let now = DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
            let _ = pods.delete(&name, &now).await;
            continue;
        }
        let ip = format!("10.244.1.{}", number + 1);
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        let _ = pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await;
    }
}

#[tokio::test]
async fn a_deployment_becomes_scheduled_pods_and_endpoints() {
    let (client, _guard) = cluster().await;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let service: Service = from(json!({"metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}));
    Api::namespaced(client.clone(), "default").create(&PostParams::default(), &service).await.unwrap();
    deployments.create(&PostParams::default(), &deployment(3, "one")).await.unwrap();
    until("three pods on the node", || async {
        let list = pods.list(&ListParams::default()).await.unwrap();
        list.items.iter().filter(|p| p.spec.as_ref().unwrap().node_name.as_deref() == Some("sandbox")).count() == 3
    })
    .await;
    until("all available", || async {
        make_ready(&pods).await;
        let status = deployments.get("web").await.unwrap().status.unwrap_or_default();
        status.available_replicas == Some(3)
    })
    .await;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    until("three endpoints", || async {
        let list = slices.list(&ListParams::default().labels("kubernetes.io/service-name=web")).await.unwrap();
        list.items
            .iter()
            .flat_map(|s| &s.endpoints)
            .filter(|e| e.conditions.as_ref().unwrap().ready == Some(true))
            .count()
            == 3
    })
    .await;
    // Exactly as many as asked for: a controller that acts on stale knowledge would have made more.
    assert_eq!(pods.list(&ListParams::default()).await.unwrap().items.len(), 3);

    deployments
        .replace("web", &PostParams::default(), &{
            let mut changed = deployments.get("web").await.unwrap();
            changed.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some("two".to_owned());
            changed
        })
        .await
        .unwrap();
    until("the rollout is complete", || async {
        make_ready(&pods).await;
        let now = deployments.get("web").await.unwrap();
        let status = now.status.unwrap_or_default();
        status.observed_generation == now.metadata.generation
            && status.updated_replicas == Some(3)
            && status.replicas == Some(3)
    })
    .await;

    deployments.delete("web", &DeleteParams::background()).await.unwrap();
    let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), "default");
    until("everything it owned is gone", || async {
        make_ready(&pods).await;
        sets.list(&ListParams::default()).await.unwrap().items.is_empty()
            && pods.list(&ListParams::default()).await.unwrap().items.is_empty()
    })
    .await;
}

#[tokio::test]
async fn namespaces_get_their_account_and_go_with_all_they_hold() {
    let (client, _guard) = cluster().await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &from(json!({"metadata": {"name": "shop"}}))).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "shop");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "shop");
    until("the default account", || async { accounts.get_opt("default").await.unwrap().is_some() }).await;
    until("the authority", || async { maps.get_opt("kube-root-ca.crt").await.unwrap().is_some() }).await;
    maps.create(&PostParams::default(), &from(json!({"metadata": {"name": "mine", "namespace": "shop"}})))
        .await
        .unwrap();
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    until("the namespace is gone", || async { namespaces.get_opt("shop").await.unwrap().is_none() }).await;
    assert!(maps.list(&ListParams::default()).await.unwrap().items.is_empty());
}
