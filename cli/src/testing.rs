//! A real API on a real socket for tests of commands: the sandbox's, without its node.

use crate::args::Global;
use crate::cluster::Cluster;
use mesh_sandbox::api::{Api, Config};
use mesh_sandbox::controllers;
use tokio_util::sync::CancellationToken;

/// A cluster without nodes; gone when dropped.
pub(crate) struct TestCluster {
    kubeconfig: tempfile::NamedTempFile,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl TestCluster {
    /// Starts one.
    pub(crate) fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let api = Api::new(Config::default()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(kubeconfig.path(), api.kubeconfig(address, "test")).unwrap();
        let controllers = controllers::run(api.client(), api.pki().ca.clone(), CancellationToken::new());
        let tasks = [tokio::spawn(api.serve(listener).unwrap()), tokio::spawn(controllers)];
        Self { kubeconfig, tasks }
    }

    /// Flags that mean this cluster.
    pub(crate) fn global(&self) -> Global {
        Global {
            kubeconfig: Some(self.kubeconfig.path().to_owned()),
            system_namespace: mesh_api::names::SYSTEM_NAMESPACE.to_owned(),
            ..Global::default()
        }
    }

    /// A connection to it.
    pub(crate) async fn connect(&self) -> Cluster {
        Cluster::connect(&self.global()).await.unwrap()
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
