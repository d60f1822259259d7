//! The proxies of a resource, and what their admin ports say, fetched through the API's port-forward: whoever may
//! forward to a pod's port may ask its proxy, nobody else.

use crate::cluster::Cluster;
use crate::error::{Context, Error, Hint, Result};
use crate::resource::{Kind, Resource};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Api;
use kube::api::ListParams;
use mesh_api::names::{ADMIN_PORT, PROXY_VERSION};
use mesh_control::world::view::workload;
use mesh_manifests::nearest::nearest;
use std::time::Duration;

/// The longest answer that is read, bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How long a proxy may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How many are asked at a time.
const AT_A_TIME: usize = 16;

/// A pod with a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
}

/// The running pods of a resource that have a proxy, in the order of their names.
pub async fn of(cluster: &Cluster, namespace: Option<&str>, resource: &Resource) -> Result<Vec<Proxy>> {
    let namespace = if resource.kind == Kind::Namespace { resource.name.as_deref() } else { namespace };
    let pods: Api<Pod> = match namespace {
        Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
        None => Api::all(cluster.client.clone()),
    };
    let mut query = ListParams::default();
    if resource.kind == Kind::Service {
        query = query.labels(&selector(cluster, namespace, resource).await?);
    }
    let all = pods.list(&query).await.during(|| "list pods")?.items;
    choose(&all, resource, namespace)
}

/// Of all pods those that are meant; an error says why there are none.
fn choose(all: &[Pod], resource: &Resource, namespace: Option<&str>) -> Result<Vec<Proxy>> {
    let meant: Vec<&Pod> = all.iter().filter(|pod| lives(pod) && is_meant(pod, resource)).collect();
    let place = namespace.map_or("in any namespace".to_owned(), |namespace| format!("in namespace {namespace}"));
    if meant.is_empty() {
        let error = Error::new(format!("there is no {resource} with running pods {place}"));
        let known: Vec<String> = all.iter().map(|pod| name_as(pod, resource.kind)).collect();
        let near = resource.name.as_deref().and_then(|name| nearest(name, known.iter().map(String::as_str)));
        return Err(match near {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error.hint("`kubectl get pods` shows what runs; -n chooses another namespace, -A all of them"),
        });
    }
    let proxied = |pod: &&Pod| pod.metadata.annotations.iter().any(|all| all.contains_key(PROXY_VERSION));
    let mut proxies: Vec<Proxy> = meant.into_iter().filter(proxied).map(Proxy::of).collect();
    if proxies.is_empty() {
        return Err(Error::new(format!("no pod of {resource} {place} has a proxy"))
            .hint("`meshctl explain pod NAME` says why; `meshctl inject` adds proxies"));
    }
    proxies.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
    Ok(proxies)
}

impl Proxy {
    fn of(pod: &Pod) -> Self {
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            pod: pod.metadata.name.clone().unwrap_or_default(),
        }
    }
}

fn lives(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_meant(pod: &Pod, resource: &Resource) -> bool {
    match resource.kind {
        // Chosen by labels already.
        Kind::Service => true,
        Kind::Pod => resource.name.as_ref().is_none_or(|name| pod.metadata.name.as_ref() == Some(name)),
        _ => resource.is_workload(&workload(&pod.metadata)),
    }
}

fn name_as(pod: &Pod, kind: Kind) -> String {
    match kind {
        Kind::Pod => pod.metadata.name.clone().unwrap_or_default(),
        Kind::Namespace => pod.metadata.namespace.clone().unwrap_or_default(),
        _ => workload(&pod.metadata).name,
    }
}

async fn selector(cluster: &Cluster, namespace: Option<&str>, resource: &Resource) -> Result<String> {
    let name = resource.name.as_deref().ok_or_else(|| Error::new("which service?").hint("write svc/NAME"))?;
    let namespace = namespace.unwrap_or(&cluster.namespace);
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
    let service = services.get(name).await.during(|| format!("read service {name} in {namespace}"))?;
    let labels = service.spec.and_then(|spec| spec.selector).unwrap_or_default();
    if labels.is_empty() {
        return Err(
            Error::new(format!("service {name} selects no pods")).hint("name the workload instead: deploy/NAME")
        );
    }
    Ok(labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","))
}

/// What every proxy answers at `path`, in the order given.
pub async fn ask_all(cluster: &Cluster, proxies: &[Proxy], path: &str) -> Vec<Result<String>> {
    let questions: Vec<_> = proxies.iter().map(|proxy| ask(cluster, proxy, path)).collect();
    stream::iter(questions).buffered(AT_A_TIME).collect().await
}

/// What a proxy answers at `path` of its admin port.
pub async fn ask(cluster: &Cluster, proxy: &Proxy, path: &str) -> Result<String> {
    ask_port(cluster, &proxy.namespace, &proxy.pod, ADMIN_PORT, path).await
}

/// What a pod answers over HTTP at a port that only its own loopback needs to reach.
pub async fn ask_port(cluster: &Cluster, namespace: &str, pod: &str, port: u16, path: &str) -> Result<String> {
    let tried = || format!("read {path} of {namespace}/{pod}");
    match tokio::time::timeout(DEADLINE, get(cluster, namespace, pod, port, path)).await {
        Ok(answer) => answer.during(tried),
        Err(_) => Err(Error::new(format!("no answer within {} s", DEADLINE.as_secs())).during(tried()))
            .hint(|| format!("kubectl -n {namespace} get pod {pod} shows whether it runs")),
    }
}

async fn get(cluster: &Cluster, namespace: &str, pod: &str, port: u16, path: &str) -> anyhow::Result<String> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let mut forward = pods.portforward(pod, &[port]).await?;
    let stream = forward.take_stream(port).ok_or_else(|| anyhow::anyhow!("the API forwards no port {port}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = http::Request::get(path).header(http::header::HOST, pod).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    driver.abort();
    forward.abort();
    let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    anyhow::ensure!(status.is_success(), "it answered {status}: {}", text.trim());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, owner: &str, meshed: bool) -> Pod {
        let annotations = if meshed { json!({PROXY_VERSION: "0.1.0"}) } else { json!({}) };
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "annotations": annotations,
                "labels": {"pod-template-hash": "abc"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{owner}-abc"),
                    "uid": "1", "controller": true}]},
            "status": {"phase": "Running"},
        }))
        .unwrap()
    }

    fn chosen(of: &str) -> std::result::Result<Vec<String>, String> {
        let pods = [pod("web-abc-2", "web", true), pod("web-abc-1", "web", true), pod("load-abc-1", "load", false)];
        choose(&pods, &Resource::read_one(of).unwrap(), Some("shop"))
            .map(|proxies| proxies.into_iter().map(|proxy| proxy.pod).collect())
            .map_err(|error| format!("{error} / {}", error.hint_text().unwrap_or_default()))
    }

    #[test]
    fn proxies_are_found_by_workload_and_pod() {
        let check = |of: &str, expect: &[&str]| assert_eq!(chosen(of).unwrap(), expect, "{of}");
        check("deploy/web", &["web-abc-1", "web-abc-2"]);
        check("po/web-abc-2", &["web-abc-2"]);
        check("all", &["web-abc-1", "web-abc-2"]);
        check("ns/shop", &["web-abc-1", "web-abc-2"]);
    }

    #[test]
    fn a_resource_without_proxies_says_why() {
        assert_eq!(
            chosen("deploy/wep").unwrap_err(),
            "there is no deployment/wep with running pods in namespace shop / did you mean web?"
        );
        let error = chosen("deploy/load").unwrap_err();
        assert!(error.starts_with("no pod of deployment/load in namespace shop has a proxy / "), "{error}");
    }
}
