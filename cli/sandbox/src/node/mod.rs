//! The node: runs the pods bound to it as processes in namespaces, and lets others look and reach into them.
//!
//! [`Kubelet`] watches pods and keeps a [`worker`] for each. A worker decides by [`plan`] and reports by [`status`],
//! which are pure; [`container`] and [`run`] turn a decision to start something into a process by way of the
//! [`spawner`]; [`supervise`] probes it. [`network`] (with [`cni`]) and [`volumes`] are what a pod is given.

mod addresses;
mod cni;
mod container;
pub mod dns;
mod environment;
mod events;
pub mod exec;
mod images;
mod layout;
pub mod logs;
mod network;
mod object;
mod payload;
mod place;
mod plan;
mod pod_files;
mod portforward;
mod probes;
mod registration;
mod run;
mod security;
pub mod services;
mod spawner;
mod spdy;
mod status;
pub mod streams;
mod supervise;
mod terminal;
mod volumes;
mod websocket;
mod worker;

pub use addresses::{NODE_ADDRESS, SERVICE_RANGE, SERVICE_RANGE6};
pub(crate) use images::Images;
pub use network::BRIDGE;
pub(crate) use network::Network;
pub use registration::NODE;
pub(crate) use spawner::{Spawner, pair as spawner_sockets, serve as serve_spawner};

use exec::{Attach, Exec, ExecOptions};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client};
use logs::{LogOptions, LogStream};
use parking_lot::Mutex;
use run::Run;
use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::JoinSet;
use worker::{Shared, Word, Worker};

/// A connection into a pod that is not answered in this time has failed.
const DIAL: Duration = Duration::from_secs(10);

/// Why something could not be done with a pod; each has its place among HTTP statuses.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// 404: this node runs no such pod.
    #[error("pod {0}/{1} does not run on this node")]
    NoPod(String, String),
    /// 400: the pod has no such container.
    #[error("container {container} is not valid for pod {pod}")]
    NoContainer {
        /// The pod.
        pod: String,
        /// What was asked for.
        container: String,
    },
    /// 400: the container isn't in the state this needs.
    #[error("{0}")]
    NotNow(String),
    /// 500: it was tried and failed.
    #[error("{0}")]
    Failed(String),
}

/// What the node needs to know.
pub(crate) struct Config {
    /// Where pods' files are kept: on a tmpfs of the sandbox's own.
    pub(crate) root: PathBuf,
    /// Host paths containers must not see.
    pub(crate) hidden: Vec<PathBuf>,
    /// There is only one user.
    pub(crate) rootless: bool,
    /// The cluster's authority, PEM.
    pub(crate) ca: String,
}

/// What all pods share.
struct Node {
    config: Config,
    client: Client,
    spawner: Spawner,
    network: Network,
    images: Images,
    ids: AtomicU64,
    pods: Mutex<HashMap<(String, String), Entry>>,
}

/// A pod on this node.
#[derive(Clone)]
struct Entry {
    shared: Arc<Shared>,
    words: UnboundedSender<Word>,
    namespace: String,
}

impl Node {
    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }
}

/// The node's agent; clones share one node.
#[derive(Clone)]
pub struct Kubelet {
    node: Arc<Node>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Kubelet {
    /// Registers the node and begins to run pods.
    pub(crate) async fn start(
        client: Client,
        config: Config,
        spawner: Spawner,
        network: Network,
        images: Images,
    ) -> anyhow::Result<Self> {
        let addresses = network.addresses();
        cni::prepare(&config.root)?;
        registration::register(&client, addresses).await?;
        let node = Arc::new(Node {
            config,
            client: client.clone(),
            spawner,
            network,
            images,
            ids: AtomicU64::new(1),
            pods: Mutex::default(),
        });
        let kubelet = Self { node, tasks: Arc::default() };
        let mut tasks = kubelet.tasks.lock();
        tasks.spawn(registration::heartbeat(client.clone(), addresses));
        tasks.spawn(follow_pods(Arc::clone(&kubelet.node)));
        tasks.spawn(follow_contents::<ConfigMap>(Arc::clone(&kubelet.node)));
        tasks.spawn(follow_contents::<Secret>(Arc::clone(&kubelet.node)));
        drop(tasks);
        Ok(kubelet)
    }

    /// Tells pods that wait for an image to try again.
    pub(crate) fn images_changed(&self) {
        for entry in self.node.pods.lock().values() {
            let _ = entry.words.send(Word::Contents);
        }
    }

    /// How many pods there are.
    pub fn pods(&self) -> usize {
        self.node.pods.lock().len()
    }

    /// Ends all containers: asks, waits at most so long, and then doesn't ask.
    pub(crate) async fn shut_down(&self, patience: Duration) {
        self.tasks.lock().abort_all();
        let runs: Vec<Arc<Run>> = {
            let pods = self.node.pods.lock();
            let runs = pods.values().flat_map(|pod| pod.shared.runs.read().values().cloned().collect::<Vec<_>>());
            runs.filter_map(|runs| runs.current).collect()
        };
        for run in &runs {
            // The first process of a pid namespace doesn't get signals it has no handler for.
            let heard = spawner::handles(run.process.pid, libc::SIGTERM);
            run.process.signal(if heard { libc::SIGTERM } else { libc::SIGKILL });
        }
        let all = futures::future::join_all(runs.iter().map(|run| async { run.process.clone().ended().await }));
        let _ = tokio::time::timeout(patience, all).await;
        for run in &runs {
            run.process.signal(libc::SIGKILL);
        }
    }

    fn entry(&self, namespace: &str, pod: &str) -> Result<Entry, PodError> {
        let key = (namespace.to_owned(), pod.to_owned());
        self.node.pods.lock().get(&key).cloned().ok_or(PodError::NoPod(key.0, key.1))
    }

    /// The runs of a container, and its name; without a name the only one, or the first that isn't an init container.
    fn runs(&self, namespace: &str, pod: &str, container: Option<&str>) -> Result<(String, worker::Runs), PodError> {
        let entry = self.entry(namespace, pod)?;
        let name = match container.filter(|name| !name.is_empty()) {
            Some(name) => name.to_owned(),
            None => entry.shared.default_container.clone(),
        };
        if !entry.shared.containers.contains(&name) {
            return Err(PodError::NoContainer { pod: pod.to_owned(), container: name });
        }
        let runs = entry.shared.runs.read().get(&name).cloned().unwrap_or_default();
        Ok((name, runs))
    }

    fn running(&self, namespace: &str, pod: &str, container: Option<&str>) -> Result<Arc<Run>, PodError> {
        let (name, runs) = self.runs(namespace, pod, container)?;
        let run = runs.current.filter(|run| run.process.exit.borrow().is_none());
        run.ok_or_else(|| supervise::not_running(&name))
    }

    /// Reads a container's log (`container` may be left out where the pod has only one).
    pub async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
        options: LogOptions,
    ) -> Result<LogStream, PodError> {
        let (name, runs) = self.runs(namespace, pod, container)?;
        if options.previous {
            let missing =
                || PodError::NotNow(format!("previous terminated container \"{name}\" in pod \"{pod}\" not found"));
            return Ok(runs.previous.ok_or_else(missing)?.log.read(&options));
        }
        let waiting = || PodError::NotNow(format!("container \"{name}\" in pod \"{pod}\" is waiting to start"));
        Ok(runs.current.ok_or_else(waiting)?.log.read(&options))
    }

    /// Runs a command in a running container.
    pub async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
        argv: Vec<String>,
        options: ExecOptions,
    ) -> Result<Exec, PodError> {
        self.running(namespace, pod, container)?.exec(&self.node.spawner, argv, options).await
    }

    /// Joins a running container's own streams.
    pub async fn attach(&self, namespace: &str, pod: &str, container: Option<&str>) -> Result<Attach, PodError> {
        Ok(self.running(namespace, pod, container)?.attach())
    }

    /// Connects to a port on the pod's loopback, as port-forward does.
    pub async fn dial(&self, namespace: &str, pod: &str, port: u16) -> Result<TcpStream, PodError> {
        let entry = self.entry(namespace, pod)?;
        let namespaces = entry.shared.namespaces.read().clone();
        let failed =
            |error: std::io::Error| PodError::Failed(format!("connecting to port {port} of pod {pod}: {error}"));
        let dial = async |address: SocketAddr| match &namespaces {
            Some(namespaces) => network::dial(&namespaces.net, address, DIAL).await,
            None => TcpStream::connect(address).await,
        };
        if namespaces.is_none() && !entry.shared.host_network {
            return Err(PodError::NotNow(format!("pod {pod} is not running")));
        }
        match dial((Ipv4Addr::LOCALHOST, port).into()).await {
            // It may listen for IPv6 alone; if it doesn't, the first error is the one to tell.
            Err(error) => dial((Ipv6Addr::LOCALHOST, port).into()).await.map_err(|_| failed(error)),
            Ok(stream) => Ok(stream),
        }
    }
}

fn key(pod: &Pod) -> (String, String) {
    let meta = &pod.metadata;
    (meta.namespace.clone().unwrap_or_else(|| "default".to_owned()), meta.name.clone().unwrap_or_default())
}

/// Follows the pods bound to this node.
async fn follow_pods(node: Arc<Node>) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={NODE}"));
    let mut events = pin!(watcher(Api::<Pod>::all(node.client.clone()), config));
    // Pods seen while a list is being read, and what to forget after it.
    let mut listed: Option<HashSet<String>> = None;
    loop {
        match events.next().await {
            Some(Ok(watcher::Event::Apply(pod))) => node.take(pod),
            Some(Ok(watcher::Event::Delete(pod))) => node.forget(&key(&pod), pod.metadata.uid.as_deref()),
            Some(Ok(watcher::Event::Init)) => listed = Some(HashSet::new()),
            Some(Ok(watcher::Event::InitApply(pod))) => {
                if let Some(listed) = &mut listed {
                    listed.extend(pod.metadata.uid.clone());
                }
                node.take(pod);
            }
            Some(Ok(watcher::Event::InitDone)) => {
                let listed = listed.take().unwrap_or_default();
                let stale: Vec<_> = {
                    let pods = node.pods.lock();
                    pods.iter().filter(|(_, e)| !listed.contains(&e.shared.uid)).map(|(k, _)| k.clone()).collect()
                };
                for key in stale {
                    node.forget(&key, None);
                }
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "watching pods");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            None => return,
        }
    }
}

impl Node {
    /// A pod is new or has changed.
    fn take(self: &Arc<Self>, pod: Pod) {
        let key = key(&pod);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut pods = self.pods.lock();
        if let Some(entry) = pods.get(&key) {
            if entry.shared.uid == uid {
                let _ = entry.words.send(Word::Changed(Arc::new(pod)));
                return;
            }
            let _ = entry.words.send(Word::Gone);
        }
        let shared = Arc::new(Shared::new(&pod));
        let (words, queue) = mpsc::unbounded_channel();
        let worker = Worker::new(Arc::clone(self), &pod, Arc::clone(&shared), words.clone());
        pods.insert(key.clone(), Entry { shared, words, namespace: key.0 });
        drop(pods);
        tokio::spawn(worker.run(queue));
    }

    /// A pod's object is gone.
    fn forget(&self, key: &(String, String), uid: Option<&str>) {
        let mut pods = self.pods.lock();
        if pods.get(key).is_some_and(|entry| uid.is_none_or(|uid| entry.shared.uid == uid))
            && let Some(entry) = pods.remove(key)
        {
            let _ = entry.words.send(Word::Gone);
        }
    }
}

/// Tells pods when config maps or secrets of their namespace change.
async fn follow_contents<K>(node: Arc<Node>)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
    K: serde::de::DeserializeOwned,
{
    let objects = Api::<PartialObjectMeta<K>>::all(node.client.clone());
    let events = watcher(objects, watcher::Config::default());
    let mut events = pin!(events.map_err(|error| tracing::debug!(%error, "watching config maps and secrets")));
    loop {
        match events.next().await {
            Some(Ok(watcher::Event::Apply(object) | watcher::Event::Delete(object))) => {
                let namespace = object.metadata.namespace.unwrap_or_default();
                for entry in node.pods.lock().values().filter(|entry| entry.namespace == namespace) {
                    let _ = entry.words.send(Word::Contents);
                }
            }
            Some(Ok(_)) => {}
            Some(Err(())) => tokio::time::sleep(Duration::from_millis(200)).await,
            None => return,
        }
    }
}
