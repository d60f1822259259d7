//! The node: runs the pods bound to it as processes in namespaces, and lets others look and reach into them.

pub mod dns;
pub mod exec;
pub mod logs;
mod portforward;
pub mod services;
mod spdy;
pub mod streams;
mod websocket;

use exec::{Attach, Exec, ExecOptions};
use logs::{LogOptions, LogStream};
use std::sync::Arc;
use tokio::net::TcpStream;

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

/// The node's agent; clones share one node.
#[derive(Clone)]
pub struct Kubelet {
    _inner: Arc<()>,
}

impl Kubelet {
    /// Reads a container's log (`container` may be left out where the pod has only one).
    pub async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        _container: Option<&str>,
        _options: LogOptions,
    ) -> Result<LogStream, PodError> {
        Err(PodError::NoPod(namespace.to_owned(), pod.to_owned()))
    }

    /// Runs a command in a running container.
    pub async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        _container: Option<&str>,
        _argv: Vec<String>,
        _options: ExecOptions,
    ) -> Result<Exec, PodError> {
        Err(PodError::NoPod(namespace.to_owned(), pod.to_owned()))
    }

    /// Joins a running container's own streams.
    pub async fn attach(&self, namespace: &str, pod: &str, _container: Option<&str>) -> Result<Attach, PodError> {
        Err(PodError::NoPod(namespace.to_owned(), pod.to_owned()))
    }

    /// Connects to a port on the pod's loopback, as port-forward does.
    pub async fn dial(&self, namespace: &str, pod: &str, _port: u16) -> Result<TcpStream, PodError> {
        Err(PodError::NoPod(namespace.to_owned(), pod.to_owned()))
    }
}
