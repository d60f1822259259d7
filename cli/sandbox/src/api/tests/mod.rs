//! The API as its clients see it, in process.

mod extension;
mod security;

use super::{Api, Config};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service, ServiceAccount};
use kube::api::{Api as Objects, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

fn new() -> (Api, kube::Client) {
    let api = Api::new(Config::default()).unwrap();
    let client = api.client();
    (api, client)
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn config_map(name: &str, label: &str) -> ConfigMap {
    typed(json!({"metadata": {"name": name, "labels": {"l": label}}, "data": {"k": "v"}}))
}

fn refusal<T: std::fmt::Debug>(result: kube::Result<T>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.message),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn objects_live_and_die() {
    let (_api, client) = new();
    let maps: Objects<ConfigMap> = Objects::default_namespaced(client);
    let created = maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    assert!(created.metadata.uid.is_some() && created.metadata.creation_timestamp.is_some());
    assert_eq!(
        refusal(maps.create(&PostParams::default(), &config_map("a", "1")).await),
        (409, "configmaps \"a\" already exists".to_owned())
    );

    let mut stale = created.clone();
    let mut changed = created.clone();
    changed.data.as_mut().unwrap().insert("k".to_owned(), "w".to_owned());
    let changed = maps.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_ne!(changed.metadata.resource_version, created.metadata.resource_version);
    let again = maps.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_eq!(again.metadata.resource_version, changed.metadata.resource_version, "a write of nothing new is none");
    stale.data = None;
    let (code, message) = refusal(maps.replace("a", &PostParams::default(), &stale).await);
    assert_eq!(code, 409);
    assert!(message.contains("the object has been modified; please apply your changes to the latest version"));

    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(refusal(maps.get("a").await), (404, "configmaps \"a\" not found".to_owned()));
}

#[tokio::test]
async fn lists_select_and_page() {
    let (_api, client) = new();
    let maps: Objects<ConfigMap> = Objects::default_namespaced(client);
    for i in 0..5 {
        let label = (i % 2).to_string();
        maps.create(&PostParams::default(), &config_map(&format!("m{i}"), &label)).await.unwrap();
    }
    let list = maps.list(&ListParams::default().labels("l=0")).await.unwrap();
    assert_eq!(list.items.len(), 3);
    let list = maps.list(&ListParams::default().fields("metadata.name=m3")).await.unwrap();
    assert_eq!(list.items.len(), 1);

    let page = maps.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!((page.items.len(), page.metadata.remaining_item_count), (2, Some(3)));
    let token = page.metadata.continue_.unwrap();
    maps.delete("m2", &DeleteParams::default()).await.unwrap();
    let rest = maps.list(&ListParams::default().limit(9).continue_token(&token)).await.unwrap();
    let names: Vec<_> = rest.items.iter().filter_map(|m| m.metadata.name.as_deref()).collect();
    assert_eq!(names, ["m2", "m3", "m4"], "a paged list shows one moment");
}

#[tokio::test]
async fn watches_follow_selectors() {
    let (_api, client) = new();
    let maps: Objects<ConfigMap> = Objects::default_namespaced(client);
    let a = maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let params = WatchParams::default().labels("l=1").timeout(5);
    let mut events = maps.watch(&params, "0").await.unwrap().boxed();
    let mut changed = a.clone();
    changed.metadata.labels.as_mut().unwrap().insert("l".to_owned(), "2".to_owned());
    maps.replace("a", &PostParams::default(), &changed).await.unwrap();
    maps.create(&PostParams::default(), &config_map("b", "1")).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(match events.try_next().await.unwrap().unwrap() {
            WatchEvent::Added(m) => ("added", m.metadata.name.unwrap()),
            WatchEvent::Deleted(m) => ("deleted", m.metadata.name.unwrap()),
            other => panic!("unexpected {other:?}"),
        });
    }
    let expect = [("added", "a"), ("deleted", "a"), ("added", "b")].map(|(kind, name)| (kind, name.to_owned()));
    assert_eq!(seen, expect);
}

#[tokio::test]
async fn pods_get_accounts_and_wait_for_the_node() {
    let (_api, client) = new();
    let pods: Objects<Pod> = Objects::default_namespaced(client.clone());
    let pod: Pod = typed(json!({
        "metadata": {"generateName": "web-"},
        "spec": {"nodeName": "node", "containers": [{"name": "c", "image": "i"}]},
    }));
    let (code, message) = refusal(pods.create(&PostParams::default(), &pod).await);
    assert_eq!(code, 403);
    assert!(
        message.ends_with("error looking up service account default/default: serviceaccount \"default\" not found"),
        "{message}"
    );

    let accounts: Objects<ServiceAccount> = Objects::default_namespaced(client);
    accounts.create(&PostParams::default(), &typed(json!({"metadata": {"name": "default"}}))).await.unwrap();
    let created = pods.create(&PostParams::default(), &pod).await.unwrap();
    let name = created.metadata.name.clone().unwrap();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    let spec = created.spec.unwrap();
    assert_eq!(spec.service_account_name.as_deref(), Some("default"));
    assert_eq!(spec.containers[0].volume_mounts.as_ref().unwrap().len(), 1);

    pods.delete(&name, &DeleteParams::default()).await.unwrap();
    let ending = pods.get(&name).await.unwrap();
    assert!(ending.metadata.deletion_timestamp.is_some());
    pods.delete(&name, &DeleteParams::default().grace_period(0)).await.unwrap();
    assert_eq!(refusal(pods.get(&name).await).0, 404);
}

#[tokio::test]
async fn services_get_addresses() {
    let (_api, client) = new();
    let services: Objects<Service> = Objects::default_namespaced(client);
    let service: Service = typed(json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}}));
    let created = services.create(&PostParams::default(), &service).await.unwrap();
    assert!(created.spec.unwrap().cluster_ip.unwrap().starts_with("10."));
    let own = services.get("kubernetes").await.unwrap();
    assert_eq!(own.spec.unwrap().cluster_ip.as_deref(), Some("10.96.0.1"));
}

#[tokio::test]
async fn namespaces_close_before_they_go() {
    let (_api, client) = new();
    let namespaces: Objects<Namespace> = Objects::all(client.clone());
    let maps: Objects<ConfigMap> = Objects::namespaced(client.clone(), "shop");
    let refused = refusal(maps.create(&PostParams::default(), &config_map("a", "1")).await);
    assert_eq!(refused, (404, "namespaces \"shop\" not found".to_owned()));
    let shop = typed(json!({"metadata": {"name": "shop"}}));
    namespaces.create(&PostParams::default(), &shop).await.unwrap();
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    let (code, message) = refusal(maps.create(&PostParams::default(), &config_map("b", "1")).await);
    assert_eq!(code, 403);
    assert!(message.ends_with("because it is being terminated"), "{message}");

    let finalize =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}, "spec": {"finalizers": []}});
    let request =
        http::Request::put("/api/v1/namespaces/shop/finalize").body(finalize.to_string().into_bytes()).unwrap();
    client.request::<Value>(request).await.unwrap();
    assert_eq!(refusal(namespaces.get("shop").await).0, 404);
}

#[tokio::test]
async fn lists_can_be_streamed() {
    use kube::runtime::watcher::{self, Event};
    let (_api, client) = new();
    let maps: Objects<ConfigMap> = Objects::default_namespaced(client);
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let config = watcher::Config::default().streaming_lists();
    let mut events = watcher::watcher(maps.clone(), config).boxed();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        if seen.len() == 2 {
            maps.create(&PostParams::default(), &config_map("b", "1")).await.unwrap();
        }
        let name = |map: ConfigMap| map.metadata.name.unwrap();
        seen.push(match events.try_next().await.unwrap().unwrap() {
            Event::Init => continue,
            Event::InitApply(map) => format!("existing {}", name(map)),
            Event::InitDone => "ready".to_owned(),
            Event::Apply(map) => format!("applied {}", name(map)),
            Event::Delete(map) => format!("deleted {}", name(map)),
        });
    }
    assert_eq!(seen, ["existing a", "ready", "applied b"]);
}

#[tokio::test]
async fn writers_in_a_crowd_all_get_through() {
    let (_api, client) = new();
    let maps: Objects<ConfigMap> = Objects::default_namespaced(client);
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let writes = (0..50).map(|i| {
        let maps = maps.clone();
        async move {
            let patch = kube::api::Patch::Merge(json!({"data": {format!("k{i}"): "v"}}));
            maps.patch("a", &kube::api::PatchParams::default(), &patch).await.unwrap();
        }
    });
    futures::future::join_all(writes).await;
    assert_eq!(maps.get("a").await.unwrap().data.unwrap().len(), 51);
}
