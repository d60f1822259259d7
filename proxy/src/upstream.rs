//! The way to one endpoint: a connection, mutual TLS where the endpoint is meshed, and one attempt to have a request
//! answered over it.

use crate::body::Received;
use crate::breaker::Outcome;
use crate::error::{BoxError, Chain, Failure};
use crate::headers::{connection_options, has_outer_space, retry_after};
use crate::limits;
use crate::mux;
use crate::pool::{Http1, Http2, Room, Shared, Tunnels, Way};
use crate::proxy::Proxy;
use crate::state::{Backend, Group};
use crate::stream::{Rewound, Stream};
use crate::streams::{Broken, Carrier};
use crate::tls::Alpn;
use crate::traffic::Traffic;
use crate::upload::{Upload, listen_for_continue};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_api::MeshError;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;

/// Opens a connection to an endpoint within `limit`, protected if the endpoint has an identity.
pub async fn connect(proxy: &Proxy, backend: &Backend, alpn: Alpn, limit: Duration) -> Result<Stream, Failure> {
    let endpoint = &backend.endpoint;
    let credentials = match &endpoint.identity {
        None => None,
        Some(identity) => match proxy.credentials.current() {
            Some(current) => Some((current, identity)),
            None if proxy.offers_identity() => {
                return Err(Failure::undelivered(MeshError::TlsFailed, "the proxy has no certificate yet"));
            }
            None => None,
        },
    };
    // Nothing redirects what stays on the loopback device, so our own pod is reached at the inbound listener and the
    // port travels in the server name.
    let own = credentials.is_some() && proxy.pod_ips.contains(&endpoint.address.ip());
    let (address, port) = if own {
        let loopback: IpAddr =
            if endpoint.address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        (SocketAddr::new(loopback, proxy.inbound_port), Some(endpoint.address.port()))
    } else {
        (endpoint.address, None)
    };
    let tcp = proxy.dialer.dial(address, limit).await.map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::TimedOut => MeshError::ConnectTimeout,
            _ => MeshError::ConnectFailed,
        };
        Failure::undelivered(code, format!("cannot connect to {address}: {error}"))
    })?;
    let Some((current, identity)) = credentials else {
        return Ok(Stream::from(tcp));
    };
    let handshake = current.connect(Rewound::new(Bytes::new(), tcp), identity, alpn, port);
    let tls = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, handshake)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| Failure::undelivered(MeshError::TlsFailed, format!("{identity} at {address}: {error}")))?;
    Ok(Stream::Tls(Box::new(tls)))
}

/// A request on its way. Every future on the path has room for each value it passes on, so a request held by value
/// made them 4.3 KB together, allocated and moved for every request; boxed, it is one allocation of 264 bytes.
pub type Outgoing = Box<Request<Upload>>;

/// A request that an endpoint did not answer; `request` is given back if it can be sent elsewhere.
#[derive(Debug)]
pub struct Unanswered {
    /// Why.
    pub failure: Failure,
    /// The request, if nothing of it is lost.
    pub request: Option<Outgoing>,
}

/// Has a request answered by an endpoint, over a kept connection if there is one; a new one may take up to `limit`.
pub async fn send(
    proxy: &Proxy,
    backend: &Arc<Backend>,
    request: Outgoing,
    limit: Duration,
) -> Result<(Response<Received>, Option<Lease>), Unanswered> {
    let meshed = backend.endpoint.identity.is_some() && proxy.offers_identity();
    match request.version() {
        Version::HTTP_2 if *request.method() != Method::CONNECT => {
            send_stream(proxy, backend, request, limit, Alpn::Http2Mux).await.map(|response| (response, None))
        }
        Version::HTTP_2 => send_connect(proxy, backend, request, limit).await.map(|response| (response, None)),
        _ if meshed && mux::carries(&request) => {
            match send_stream(proxy, backend, mux::fold(request), limit, Alpn::Http1Mux).await {
                Ok(mut response) => {
                    *response.version_mut() = Version::HTTP_11;
                    Ok((response, None))
                }
                Err(Unanswered { failure, mut request }) => {
                    if let Some(request) = &mut request {
                        mux::unfold(request);
                    }
                    Err(Unanswered { failure, request })
                }
            }
        }
        _ => send_http1(proxy, backend, request, limit).await,
    }
}

async fn send_http1(
    proxy: &Proxy,
    backend: &Arc<Backend>,
    mut request: Outgoing,
    limit: Duration,
) -> Result<(Response<Received>, Option<Lease>), Unanswered> {
    let idempotent = is_idempotent(request.method());
    let meshed = backend.endpoint.identity.is_some();
    let repeatable = idempotent || meshed;
    let fresh = if repeatable { limits::POOL_IDLE_TIMEOUT } else { limits::POOL_FRESH };
    let mut until = None;
    let slot = loop {
        let Some(mut sender) = backend.pool.take(Instant::now(), fresh) else {
            let until = *until.get_or_insert_with(|| Instant::now() + limits::POOL_WAIT);
            match Box::pin(backend.pool.room(until)).await {
                Some(Room::New(slot)) => break slot,
                Some(Room::Idle) => continue,
                None => return Err(Unanswered { failure: busy(backend), request: Some(request) }),
            }
        };
        // The server may close a kept connection just now. A request it has not begun to answer is sent again if it
        // may safely be seen twice, or has not been seen: another proxy closes in order only between requests.
        let copy = repeatable.then(|| copy(&request));
        match sender.try_send_request(*request).await {
            Ok(response) => return Ok(lease(backend, sender, response)),
            Err(mut error) => {
                let unseen = meshed && error.error().is_incomplete_message();
                let again = unseen || (idempotent && !is_malformed(error.error()));
                match error.take_message().map(Box::new).or(copy.filter(|copy| again && copy.body().is_whole())) {
                    Some(unanswered) => request = unanswered,
                    None => return Err(Unanswered { failure: failure_with(error.into_error(), false), request: None }),
                }
            }
        }
    };
    let mut sender = match Box::pin(open_http1(proxy, backend, slot, limit)).await {
        Ok(sender) => sender,
        Err(failure) => return Err(Unanswered { failure, request: Some(request) }),
    };
    match sender.try_send_request(*request).await {
        Ok(response) => Ok(lease(backend, sender, response)),
        Err(mut error) => {
            let request = error.take_message().map(Box::new);
            Err(Unanswered { failure: failure_with(error.into_error(), request.is_some()), request })
        }
    }
}

/// The response with the connection it came over. If the server wants that closed, its other connections
/// will not live for long either: closed from our side now, none of them is closed while a request is on its way.
fn lease(backend: &Arc<Backend>, sender: Http1, response: Response<Incoming>) -> (Response<Received>, Option<Lease>) {
    if connection_options(response.headers()).any(|option| option.eq_ignore_ascii_case("close")) {
        backend.pool.clear();
    }
    (response.map(Received::from), Some(Lease { sender, backend: backend.clone() }))
}

fn busy(backend: &Backend) -> Failure {
    let why = format!("{} connections to {} are busy", backend.pool.most(), backend.endpoint.address);
    Failure::undelivered(MeshError::Overload, why)
}

async fn open_http1(
    proxy: &Proxy,
    backend: &Backend,
    slot: OwnedSemaphorePermit,
    limit: Duration,
) -> Result<Http1, Failure> {
    let stream = connect(proxy, backend, Alpn::Http1, limit).await?;
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(limits::HTTP1_BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Failure::undelivered(MeshError::ConnectFailed, error))?;
    tokio::spawn(async move {
        let _slot = slot;
        // What goes wrong here is also reported to the request that used the connection.
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(error = %Chain(&error), "HTTP/1 connection to an endpoint ended");
        }
    });
    Ok(sender)
}

/// Has a request of HTTP/2, or a folded one, answered as a stream of the endpoint's connection for its kind.
async fn send_stream(
    proxy: &Proxy,
    backend: &Arc<Backend>,
    mut request: Outgoing,
    limit: Duration,
    alpn: Alpn,
) -> Result<Response<Received>, Unanswered> {
    let way = if alpn == Alpn::Http2Mux { &backend.pool.http2_streams } else { &backend.pool.http1_streams };
    // A connection that was lost under a request is as one that closed before it: what may be sent twice, is.
    let repeatable = is_idempotent(request.method());
    let mut attempts = 0;
    loop {
        let carrier = match way.carrier(Instant::now()) {
            Some(carrier) => carrier,
            None => match Box::pin(open_carrier(proxy, backend, way, limit, alpn)).await {
                Ok(carrier) => carrier,
                Err(failure) => return Err(Unanswered { failure, request: Some(request) }),
            },
        };
        attempts += 1;
        let id = carrier.id();
        let copy = copy(&request);
        let (error, sent) = match carrier.exchange(request).await {
            Ok(response) if has_outer_space(response.headers()) => {
                let why = "a field's value begins or ends with a space (RFC 9113, section 8.2.1)";
                return Err(Unanswered { failure: Failure::delivered(MeshError::InvalidResponse, why), request: None });
            }
            Ok(response) => return Ok(response),
            Err(Broken::Stream { error, sent }) => (error, sent),
            Err(Broken::Body(error)) => {
                let failure = Failure::delivered(MeshError::InvalidRequest, error);
                return Err(Unanswered { failure, request: None });
            }
        };
        if !error.is_reset() {
            way.retire(id); // more than this stream is broken
        }
        let code = if is_tls(&error) {
            MeshError::TlsFailed
        } else if error.is_library() {
            MeshError::InvalidResponse
        } else {
            MeshError::ResetBeforeResponse
        };
        let unseen = !sent || is_refused(&error);
        let again = unseen || (repeatable && !error.is_reset());
        match Some(copy).filter(|copy| again && copy.body().is_whole()) {
            Some(copy) if attempts < limits::MAX_ATTEMPTS => request = copy,
            copy if unseen => {
                return Err(Unanswered { failure: Failure::undelivered(code, error), request: copy });
            }
            _ => return Err(Unanswered { failure: Failure::delivered(code, error), request: None }),
        }
    }
}

/// The connection that streams share; whoever comes first opens it, the others wait for that.
async fn open_carrier(
    proxy: &Proxy,
    backend: &Backend,
    way: &Way,
    limit: Duration,
    alpn: Alpn,
) -> Result<Carrier, Failure> {
    let opened = tokio::time::timeout(limits::CONNECT_TIMEOUT + limits::HANDSHAKE_TIMEOUT, async {
        let _opening = way.opening.lock().await;
        if let Some(carrier) = way.carrier(Instant::now()) {
            return Ok(carrier);
        }
        let stream = connect(proxy, backend, alpn, limit).await?;
        let carrier = Carrier::open(stream).await;
        let carrier = carrier.map_err(|error| Failure::undelivered(MeshError::ConnectFailed, error))?;
        way.set(carrier.clone(), Instant::now());
        Ok(carrier)
    });
    opened.await.unwrap_or_else(|_| Err(too_late(backend)))
}

fn too_late(backend: &Backend) -> Failure {
    let why = format!("no connection to {} in time", backend.endpoint.address);
    Failure::undelivered(MeshError::ConnectTimeout, why)
}

/// Has a CONNECT of HTTP/2 answered: the HTTP library makes a tunnel of it.
async fn send_connect(
    proxy: &Proxy,
    backend: &Arc<Backend>,
    mut request: Outgoing,
    limit: Duration,
) -> Result<Response<Received>, Unanswered> {
    let mut attempts = 0;
    loop {
        let (mut sender, opened) = match shared_http2(proxy, backend, limit).await {
            Ok(shared) => shared,
            Err(failure) => return Err(Unanswered { failure, request: Some(request) }),
        };
        attempts += 1;
        if request.extensions().get::<hyper::ext::Protocol>().is_some() && !takes_tunnels(backend, opened).await {
            let why = "the server's settings do not enable extended CONNECT";
            return Err(Unanswered { failure: Failure::delivered(MeshError::NotExtended, why), request: None });
        }
        let copy = copy(&request);
        match sender.try_send_request(*request).await {
            Ok(response) if has_outer_space(response.headers()) => {
                let why = "a field's value begins or ends with a space (RFC 9113, section 8.2.1)";
                return Err(Unanswered { failure: Failure::delivered(MeshError::InvalidResponse, why), request: None });
            }
            Ok(response) => return Ok(response.map(Received::http2)),
            Err(mut error) => {
                // The connection closed before it took the request, or the server is leaving and did not look at it.
                let unseen = h2_error(error.error()).is_some_and(is_refused) && copy.body().is_whole();
                let unsent = error.take_message().map(Box::new).or(unseen.then_some(copy));
                if !h2_error(error.error()).is_some_and(h2::Error::is_reset) {
                    backend.pool.retire(opened).await; // more than this stream is broken
                }
                match unsent {
                    Some(unsent) if attempts < limits::MAX_ATTEMPTS => request = unsent,
                    unsent => {
                        let failure = failure_with(error.into_error(), unsent.is_some());
                        return Err(Unanswered { failure, request: unsent });
                    }
                }
            }
        }
    }
}

/// True if the server takes extended CONNECT on the connection opened then. Its settings, which say so, may still be on
/// their way (RFC 8441, section 3).
async fn takes_tunnels(backend: &Backend, opened: Instant) -> bool {
    let told = async {
        while !backend.pool.takes_tunnels(opened).await {
            tokio::time::sleep(limits::HTTP2_SETTINGS_POLL).await;
        }
    };
    tokio::time::timeout(limits::HTTP2_SETTINGS_WAIT, told).await.is_ok()
}

/// A handle to the endpoint's HTTP/2 connection; whoever comes first opens it, the others wait for that.
async fn shared_http2(proxy: &Proxy, backend: &Backend, limit: Duration) -> Result<(Http2, Instant), Failure> {
    if let Ok(mut shared) = backend.pool.http2.try_lock()
        && let Some(shared) = shared.as_mut().filter(|shared| !shared.sender.is_closed())
    {
        shared.used = Instant::now();
        return Ok((shared.sender.clone(), shared.opened));
    }
    let taken = tokio::time::timeout(limits::CONNECT_TIMEOUT + limits::HANDSHAKE_TIMEOUT, async {
        let mut shared = backend.pool.http2.lock().await;
        if let Some(shared) = shared.as_mut().filter(|shared| !shared.sender.is_closed()) {
            shared.used = Instant::now();
            return Ok((shared.sender.clone(), shared.opened));
        }
        let (sender, tunnels) = open_http2(proxy, backend, limit).await?;
        let now = Instant::now();
        *shared = Some(Shared { sender: sender.clone(), tunnels, opened: now, used: now });
        Ok((sender, now))
    });
    Box::pin(taken).await.unwrap_or_else(|_| Err(too_late(backend)))
}

async fn open_http2(proxy: &Proxy, backend: &Backend, limit: Duration) -> Result<(Http2, Arc<Tunnels>), Failure> {
    let stream = connect(proxy, backend, Alpn::Http2, limit).await?;
    let (mut sender, mut connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(limits::HTTP2_CONNECTION_WINDOW)
        .max_send_buf_size(limits::HTTP2_SEND_BUFFER)
        .max_header_list_size(limits::HTTP2_HEADER_LIST)
        .keep_alive_interval(limits::HTTP2_PING_INTERVAL)
        .keep_alive_timeout(limits::HTTP2_PING_TIMEOUT)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Failure::undelivered(MeshError::ConnectFailed, error))?;
    let tunnels = Arc::<Tunnels>::default();
    let told = tunnels.clone();
    tokio::spawn(async move {
        let ended = poll_fn(|cx| {
            let polled = Pin::new(&mut connection).poll(cx);
            told.tell(connection.is_extended_connect_protocol_enabled(), cx);
            polled
        });
        if let Err(error) = ended.await {
            tracing::debug!(error = %Chain(&error), "HTTP/2 connection to an endpoint ended");
        }
    });
    sender.ready().await.map_err(|error| Failure::undelivered(MeshError::ConnectFailed, error))?;
    Ok((sender, tunnels))
}

/// An HTTP/1 connection in use, to be given back when its response has ended.
#[derive(Debug)]
pub struct Lease {
    sender: Http1,
    backend: Arc<Backend>,
}

impl Lease {
    /// Puts the connection back into its pool as soon as it can take another request.
    pub fn give_back(self) {
        let Lease { mut sender, backend } = self;
        if sender.is_ready() {
            backend.pool.put(sender, Instant::now());
        } else if !sender.is_closed() {
            tokio::spawn(async move {
                if let Ok(Ok(())) = tokio::time::timeout(limits::POOL_SETTLE, sender.ready()).await {
                    backend.pool.put(sender, Instant::now());
                }
            });
        }
    }
}

/// A request under way at an endpoint, as far as balancing is concerned.
#[derive(Debug)]
pub struct Flight {
    backend: Arc<Backend>,
    /// The policy that wants to know how it ends.
    traffic: Option<Arc<Traffic>>,
    started: Instant,
    /// Time to the response's head.
    latency: OnceLock<Duration>,
    judged: AtomicBool,
}

impl Flight {
    /// The request leaves for one of a group.
    pub fn start(backend: &Arc<Backend>, group: &Group) -> Self {
        backend.load.lock().start();
        Self {
            backend: backend.clone(),
            traffic: group.traffic.clone(),
            started: Instant::now(),
            latency: OnceLock::new(),
            judged: AtomicBool::new(false),
        }
    }

    /// A connection was opened.
    pub fn connected(&self) {
        let now = Instant::now();
        self.backend.load.lock().answered(now, now.saturating_duration_since(self.started));
        self.judge(true, now);
    }

    /// The response's head arrived.
    pub fn answered<B>(&self, response: &Response<B>, grpc: bool) {
        let now = Instant::now();
        let latency = now.saturating_duration_since(self.started);
        self.backend.load.lock().answered(now, latency);
        let status = response.status();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
            && let Some(pause) = retry_after(response.headers())
            // A limit of the mesh may be about one caller only.
            && !response.headers().contains_key(mesh_api::names::ERROR_HEADER)
        {
            self.backend.load.lock().pause(now, pause);
            self.traffic.iter().for_each(|traffic| traffic.trouble());
        }
        if self.traffic.is_some() {
            self.latency.get_or_init(|| latency);
            match crate::grpc::status(response.headers()).filter(|_| grpc) {
                Some(status) => self.judge(!crate::grpc::is_failure(status), now),
                None if grpc && status.is_success() => {} // the trailers will say
                None => self.judge(!status.is_server_error(), now),
            }
        }
    }

    /// The call's status came with its trailers.
    pub fn ended_with(&self, grpc_status: u16) {
        if self.traffic.is_some() {
            self.judge(!crate::grpc::is_failure(grpc_status), Instant::now());
        }
    }

    /// No answer came in time.
    pub fn timed_out(&self) {
        self.judge(false, Instant::now());
    }

    /// Tells the circuit breaker, once.
    fn judge(&self, success: bool, now: Instant) {
        let Some(traffic) = &self.traffic else { return };
        if !self.judged.swap(true, Ordering::Relaxed) {
            let latency = *self.latency.get_or_init(|| now.saturating_duration_since(self.started));
            traffic.report(&self.backend, Outcome { success, latency }, now);
        }
    }

    /// The endpoint did not serve. Logged once, until it serves again or has been left alone for a while.
    pub fn failed(&self, failure: &Failure) {
        let now = Instant::now();
        let news = self.backend.load.lock().failed(now);
        // What the client did wrong says nothing of the endpoint.
        if failure.code != MeshError::InvalidRequest {
            self.judge(false, now);
        }
        if news {
            tracing::warn!(endpoint = %self.backend.endpoint.address, %failure, "endpoint does not serve");
        } else {
            tracing::debug!(endpoint = %self.backend.endpoint.address, %failure, "endpoint does not serve");
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.backend.load.lock().finish();
        if let Some(traffic) = &self.traffic {
            if !self.judged.load(Ordering::Relaxed) {
                traffic.unreported(&self.backend);
            }
            traffic.release();
        }
    }
}

/// Methods that may be repeated (RFC 9110, section 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

/// The same request again, should it be needed. Extensions (an upgrade in waiting) stay with the original, but for the
/// protocol of an extended CONNECT, which is part of the request.
pub fn copy(request: &Request<Upload>) -> Outgoing {
    let mut copy = Box::new(Request::new(request.body().again()));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    if let Some(protocol) = request.extensions().get::<hyper::ext::Protocol>() {
        copy.extensions_mut().insert(protocol.clone());
    }
    listen_for_continue(&mut copy);
    copy
}

fn failure_with(error: hyper::Error, unsent: bool) -> Failure {
    let code = if error.is_user() {
        // What failed is the body that the client sends: broken off, or malformed.
        MeshError::InvalidRequest
    } else if is_tls(&error) {
        MeshError::TlsFailed
    } else if is_malformed(&error) {
        MeshError::InvalidResponse
    } else {
        MeshError::ResetBeforeResponse
    };
    let source: BoxError = error.into();
    if unsent { Failure::undelivered(code, source) } else { Failure::delivered(code, source) }
}

/// True if what came was no answer: HTTP/1 that cannot be read, or HTTP/2 that broke a rule, so that our side ended the
/// stream or the connection.
fn is_malformed(error: &hyper::Error) -> bool {
    error.is_parse() || error.is_parse_status() || h2_error(error).is_some_and(h2::Error::is_library)
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

/// True if the server says that it has not processed the request (RFC 9113, section 8.7): it is leaving and the
/// stream came too late, or it refused the stream.
fn is_refused(error: &h2::Error) -> bool {
    let leaving = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (leaving || refused)
}

/// True if the other proxy refused our certificate: with TLS 1.3 a client learns that only on its first read.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if inner.is::<rustls::Error>() {
            return true;
        }
        if let Some(io) = inner.downcast_ref::<io::Error>()
            && io.get_ref().is_some_and(|e| e.is::<rustls::Error>())
        {
            return true;
        }
        // The HTTP/2 library keeps only the kind of what its connection met, and TLS alone has this one.
        if let Some(io) = inner.downcast_ref::<h2::Error>().and_then(h2::Error::get_io)
            && io.kind() == io::ErrorKind::InvalidData
        {
            return true;
        }
        cause = inner.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_idempotent_methods_repeat() {
        for (method, expect) in [
            (Method::GET, true),
            (Method::PUT, true),
            (Method::POST, false),
            (Method::PATCH, false),
            (Method::CONNECT, false),
        ] {
            assert_eq!(is_idempotent(&method), expect, "{method}");
        }
    }
}
