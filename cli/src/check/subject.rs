//! What is checked: a cluster, and what of it several checks look at. Each of those things is read once, by the first
//! check that wants it; the others wait for it.

use crate::cluster::Cluster;
use crate::commands::diagnostics::{self, ProxyConfig};
use crate::error::{Context, Error};
use crate::proxies::{self, Proxy};
use crate::shown::Shown;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use mesh_api::names::PROXY_VERSION;
use tokio::sync::OnceCell;

/// At most this many proxies are asked one by one.
const ASKED: usize = 200;

/// What probes work with.
pub struct Subject {
    /// The cluster.
    pub cluster: Cluster,
    /// Proxies of this namespace; of all if none.
    pub namespace: Option<String>,
    /// How to call meshctl again for the same cluster.
    pub meshctl: String,
    pods: OnceCell<Vec<Pod>>,
    proxies: OnceCell<Vec<(Proxy, ProxyConfig)>>,
    shown: OnceCell<Shown>,
}

impl Subject {
    /// A cluster of which nothing has been read yet.
    pub(super) fn new(cluster: Cluster, namespace: Option<String>, meshctl: String) -> Self {
        let (pods, proxies, shown) = (OnceCell::new(), OnceCell::new(), OnceCell::new());
        Self { cluster, namespace, meshctl, pods, proxies, shown }
    }

    /// The pods of the namespace, or of all.
    pub(super) async fn pods(&self) -> Result<&[Pod], Error> {
        let list = async || {
            let client = self.cluster.client.clone();
            let api: Api<Pod> = match &self.namespace {
                Some(namespace) => Api::namespaced(client, namespace),
                None => Api::all(client),
            };
            Ok(api.list(&ListParams::default()).await.during(|| "list pods")?.items)
        };
        self.pods.get_or_try_init(list).await.map(Vec::as_slice)
    }

    /// Those of them that live and have a proxy.
    pub(super) async fn meshed(&self) -> Result<Vec<&Pod>, Error> {
        Ok(self.pods().await?.iter().filter(|pod| is_meshed(pod)).collect())
    }

    /// What the running proxies, or some of them, say of themselves.
    pub(super) async fn proxies(&self) -> Result<&[(Proxy, ProxyConfig)], Error> {
        self.proxies.get_or_try_init(|| self.ask_proxies()).await.map(Vec::as_slice)
    }

    /// The same as of now. Those that do not answer are left out (`proxy.connected` names them).
    pub(super) async fn ask_proxies(&self) -> Result<Vec<(Proxy, ProxyConfig)>, Error> {
        let mut asked = Vec::new();
        for pod in self.meshed().await? {
            let running = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
            if running && asked.len() < ASKED {
                let (namespace, pod) = names(pod);
                asked.push(Proxy { namespace: namespace.to_owned(), pod: pod.to_owned() });
            }
        }
        let answers = proxies::ask_all(&self.cluster, &asked, "/config").await;
        let read = |answer: Result<String, Error>| diagnostics::read(&answer.ok()?).ok();
        Ok(asked.into_iter().zip(answers).filter_map(|(proxy, answer)| Some((proxy, read(answer)?))).collect())
    }

    /// What the API shows of the cluster, as control keeps it.
    pub(super) async fn shown(&self) -> Result<&Shown, Error> {
        self.shown.get_or_try_init(|| Shown::read(&self.cluster)).await
    }
}

fn is_meshed(pod: &Pod) -> bool {
    let injected = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(PROXY_VERSION));
    let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    injected && pod.metadata.deletion_timestamp.is_none() && !matches!(ended, Some("Succeeded" | "Failed"))
}

/// Namespace and name of a pod.
pub(super) fn names(pod: &Pod) -> (&str, &str) {
    (pod.metadata.namespace.as_deref().unwrap_or("default"), pod.metadata.name.as_deref().unwrap_or_default())
}
