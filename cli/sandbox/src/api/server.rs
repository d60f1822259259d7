//! The API on a TLS socket: client certificates, HTTP/1.1 and HTTP/2, upgrades.

use super::service::{self, RequestBody};
use super::{Api, authn};
use anyhow::Context;
use futures::FutureExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Connections served at a time on one listener; more wait in the kernel's queue.
const CONNECTIONS: usize = 2048;
/// A client that has not finished its handshake by then is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Requests one HTTP/2 connection may have open; a client's watches share one.
const STREAMS: u32 = 1000;

impl Api {
    /// Serves TLS on a bound listener until the returned future is dropped, connections included.
    pub fn serve(&self, listener: std::net::TcpListener) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
        listener.set_nonblocking(true).context("making the API's listener non-blocking")?;
        let listener = TcpListener::from_std(listener).context("handing the API's listener to the runtime")?;
        let acceptor = TlsAcceptor::from(Arc::new(self.tls_config()?));
        Ok(accept(self.clone(), listener, acceptor))
    }

    /// The API's URL as clients on this machine use it, and a kubeconfig that holds it.
    pub fn kubeconfig(&self, address: std::net::SocketAddr, context: &str) -> String {
        self.pki().kubeconfig(&format!("https://{address}"), context)
    }

    fn tls_config(&self) -> anyhow::Result<rustls::ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.pki().ca_der().clone()).context("trusting the cluster's authority")?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .context("building the check of client certificates")?;
        let (certificate, key) = self.pki().server.der();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choosing TLS versions")?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)
            .context("loading the API's serving certificate")?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

async fn accept(api: Api, listener: TcpListener, acceptor: TlsAcceptor) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (api, acceptor) = (api.clone(), acceptor.clone());
                connections.spawn(async move {
                    serve_connection(api, stream, acceptor).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection to the API");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        while connections.join_next().now_or_never().flatten().is_some() {}
    }
}

async fn serve_connection(api: Api, stream: TcpStream, acceptor: TlsAcceptor) {
    // Watches send small pieces that should not wait for more; failing to say so costs only time.
    let _ = stream.set_nodelay(true);
    let tls = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake with a client of the API"),
        Err(_) => return tracing::debug!("a client of the API did not finish its TLS handshake"),
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = certificate.map(authn::certificate_user);
    let handler = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let (api, peer) = (api.clone(), peer.clone());
        async move {
            let (parts, body) = request.into_parts();
            let user = authn::authenticate(&api, peer, &parts.headers);
            Ok::<_, Infallible>(service::handle(api, parts, RequestBody::Network(body), user).await)
        }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(STREAMS);
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(tls), handler).await {
        tracing::debug!(%error, "connection to the API");
    }
}
