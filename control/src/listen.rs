//! Accepting connections, on every port the same: bounded in number, optionally TLS, HTTP/1 or HTTP/2, drained.

use crate::limits;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What is answered.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Whoever asks.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The certificate it has shown; verified against the authority for clients.
    pub certificate: Option<CertificateDer<'static>>,
}

/// How a port is served.
#[derive(Clone)]
pub struct Port {
    /// Name, for log lines.
    pub name: &'static str,
    /// Connections at once.
    pub connections: usize,
    /// Certificate and key, changed at any time; connections are refused while there are none. `None`: no TLS.
    pub tls: Option<Arc<ArcSwapOption<ServerConfig>>>,
}

/// Serves a port until `stop`, then lets what is under way end.
pub async fn serve<H, F>(port: Port, listener: TcpListener, stop: CancellationToken, handle: H)
where
    H: Fn(Peer, Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(port.connections));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((stream, address, slot)) = accepted else { continue };
        let (port, stop, handle) = (port.clone(), stop.clone(), handle.clone());
        tasks.spawn(async move {
            let _slot = slot;
            connection(&port, stream, address, stop, handle).await;
        });
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(limits::DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!(port = port.name, left = tasks.len(), "connections still open at the end");
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    // The semaphore is never closed, so a slot comes sooner or later.
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        // A socket for both families shows IPv4 clients as IPv6.
        Ok((stream, address)) => Some((stream, SocketAddr::new(address.ip().to_canonical(), address.port()), slot)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(limits::ACCEPT_BACKOFF).await;
            None
        }
    }
}

async fn connection<H, F>(port: &Port, stream: TcpStream, address: SocketAddr, stop: CancellationToken, handle: H)
where
    H: Fn(Peer, Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    // Best effort: it costs latency, not correctness.
    let _ = stream.set_nodelay(true);
    let Some(tls) = &port.tls else {
        return exchange(port, stream, Peer { address, certificate: None }, stop, handle).await;
    };
    let Some(config) = tls.load_full() else {
        tracing::debug!(port = port.name, %address, "refused: there is no certificate yet");
        return;
    };
    match tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await {
        Err(_) => tracing::debug!(port = port.name, %address, "the TLS handshake took too long"),
        Ok(Err(error)) => tracing::debug!(port = port.name, %address, %error, "the TLS handshake failed"),
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
            let certificate = certificate.map(CertificateDer::into_owned);
            exchange(port, stream, Peer { address, certificate }, stop, handle).await;
        }
    }
}

async fn exchange<IO, H, F>(port: &Port, stream: IO, peer: Peer, stop: CancellationToken, handle: H)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Fn(Peer, Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits::HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::HTTP2_STREAMS)
        .keep_alive_interval(limits::HTTP2_PING)
        .keep_alive_timeout(limits::HTTP2_PING_TIMEOUT);
    let address = peer.address;
    let service = service_fn(move |request| {
        let answer = handle(peer.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(port = port.name, %address, %error, "connection ended");
    }
}

/// A whole answer.
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// A line of text.
pub fn text(status: StatusCode, line: &str) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", format!("{line}\n"))
}

/// A JSON value.
pub fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(body) => answer(status, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot write the answer: {error}")),
    }
}

/// Reads a whole body within a size and a time; an error is what to answer.
pub async fn read<B>(body: B, limit: usize, time: Duration) -> Result<Bytes, (StatusCode, String)>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match tokio::time::timeout(time, Limited::new(body, limit).collect()).await {
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, format!("the body took longer than {time:?}"))),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err((StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {limit} bytes")))
        }
        Ok(Err(error)) => Err((StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}"))),
        Ok(Ok(body)) => Ok(body.to_bytes()),
    }
}
