//! The Kubernetes API of the sandbox.
//!
//! A request goes one way: [`service`] authenticates ([`authn`]), reads what is asked for ([`path`]), authorises
//! ([`rbac`]) and dispatches to discovery, aggregated APIs or the verbs; [`write`] runs admission around the
//! [`store`]; [`negotiate`] renders the answer in the form the client asked for. [`server`] puts the same service
//! on a TLS socket. The store knows nothing of HTTP and everything above it goes through the same door, the
//! sandbox's own controllers included.

pub mod admission;
mod aggregation;
mod allocate;
pub mod apply;
pub mod authn;
mod bootstrap;
mod crd;
mod decode;
pub mod defaults;
mod delete;
mod discovery;
mod events;
mod gateway;
pub mod judge;
pub mod kinds;
pub mod negotiate;
pub mod openapi;
pub mod patch;
pub mod path;
pub mod pki;
mod protobuf;
mod rbac;
mod remote;
mod reviews;
pub mod schema;
pub mod selector;
mod server;
pub mod service;
mod settle;
pub mod status;
pub mod store;
mod subresources;
pub mod table;
pub mod tokens;
mod types;
pub mod validate;
mod verbs;
mod watch;
mod webhooks;
mod write;

use authn::User;
use futures::future::BoxFuture;
use kinds::Registry;
use parking_lot::RwLock;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use store::Store;

/// Response body of everything the API serves.
pub type Body = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, std::io::Error>;

/// Opens a connection to a host (IP address or name) and port as seen from inside the cluster.
pub type Dial = Arc<dyn Fn(String, u16) -> BoxFuture<'static, std::io::Result<tokio::net::TcpStream>> + Send + Sync>;

/// A request for a pod's streams: its log, or a connection into it.
pub struct PodRequest {
    /// The request as it came from the network, so that it can be upgraded.
    pub request: http::Request<hyper::body::Incoming>,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// `log`, `exec`, `attach` or `portforward`.
    pub subresource: String,
}

/// Serves pods' streams; the node's part of the API.
pub type PodStreams = Arc<dyn Fn(PodRequest) -> BoxFuture<'static, http::Response<Body>> + Send + Sync>;

/// What an API is made with.
#[derive(Clone)]
pub struct Config {
    /// How webhooks and aggregated APIs are reached; by default by plain connections from this process, which the
    /// sandbox runs inside the node's network namespace.
    pub dial: Dial,
    /// Where the API listens inside the cluster: the endpoint of the Service `default/kubernetes`.
    pub endpoint: SocketAddr,
    /// Names and addresses its serving certificate is for, besides the usual ones.
    pub server_names: Vec<String>,
    /// Services can have IPv6 addresses besides IPv4 ones.
    pub dual_stack: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dial: Arc::new(|host, port| Box::pin(tokio::net::TcpStream::connect((host, port)))),
            endpoint: SocketAddr::from(([10, 244, 0, 1], 6443)),
            server_names: Vec::new(),
            dual_stack: true,
        }
    }
}

/// The API; clones share one cluster.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    store: Store,
    registry: RwLock<Arc<Registry>>,
    pki: pki::Pki,
    signer: tokens::Signer,
    probes: aggregation::Probes,
    pod_streams: OnceLock<PodStreams>,
}

impl Api {
    /// A new cluster holding only what every cluster holds: namespaces, roles, its own Service.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        let pki = pki::Pki::generate(&config.server_names)?;
        let inner = Inner {
            config,
            store: Store::default(),
            registry: RwLock::new(Arc::new(Registry::built_in())),
            pki,
            signer: tokens::Signer::generate()?,
            probes: aggregation::Probes::default(),
            pod_streams: OnceLock::new(),
        };
        let api = Self { inner: Arc::new(inner) };
        bootstrap::populate(&api)?;
        Ok(api)
    }

    /// The API as a tower service for one user, member of `system:masters`, usable with `kube::Client::new`.
    pub fn service(&self) -> service::ApiService {
        self.service_as(User::admin())
    }

    /// The API as a tower service for a given user, whose permissions are checked.
    pub fn service_as(&self, user: User) -> service::ApiService {
        service::ApiService::new(self.clone(), user)
    }

    /// A client with all permissions, default namespace `default`.
    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.service(), "default")
    }

    /// A client acting as `user`, default namespace `default`.
    pub fn client_as(&self, user: User) -> kube::Client {
        kube::Client::new(self.service_as(user), "default")
    }

    /// Connects pods' logs, exec, attach and port-forward to the node; may be called once, later calls do nothing.
    pub fn set_pod_streams(&self, streams: PodStreams) {
        let _ = self.inner.pod_streams.set(streams);
    }

    /// Keys and certificates of the cluster.
    pub fn pki(&self) -> &pki::Pki {
        &self.inner.pki
    }

    /// The objects.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// What is served now.
    pub fn registry(&self) -> Arc<Registry> {
        self.inner.registry.read().clone()
    }

    fn signer(&self) -> &tokens::Signer {
        &self.inner.signer
    }

    fn config(&self) -> &Config {
        &self.inner.config
    }

    fn pod_streams(&self) -> Option<&PodStreams> {
        self.inner.pod_streams.get()
    }
}

/// Now, as objects write it: RFC 3339 in whole seconds.
fn timestamp() -> String {
    timestamp_of(jiff::Timestamp::now())
}

fn timestamp_of(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Random bytes from the system.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Fails only if the operating system has no randomness; then nothing here could be secure anyway, and names
    // and uids fall back to the hash seeds the standard library got at start.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        use std::hash::{BuildHasher, Hasher};
        for chunk in bytes.chunks_mut(8) {
            let hash = std::hash::RandomState::new().build_hasher().finish().to_le_bytes();
            chunk.copy_from_slice(&hash[..chunk.len()]);
        }
    }
    bytes
}

/// A random UUID (version 4).
fn uid() -> String {
    let mut b = random::<16>();
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let hex: String = b.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests;
