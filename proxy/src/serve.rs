//! Client connections once it is clear what they carry: HTTP/1 and HTTP/2 served request by request, everything else
//! carried as it is.

use crate::access;
use crate::body::{Download, Received};
use crate::course::Course;
use crate::detect::{self, Spoken};
use crate::drain::Phase;
use crate::egress;
use crate::error::{Chain, Failure};
use crate::fault::Reset;
use crate::guard::{Guard, Notes};
use crate::learned::PROBE;
use crate::limits;
use crate::linger::Lingering;
use crate::patience::Patience;
use crate::proxy::Proxy;
use crate::record::ConnectionRecord;
use crate::request::{self, Client, choose};
use crate::run::Slot;
use crate::state::{Backend, Known, Target};
use crate::stream::Stream;
use crate::tap::witness::Onlooker;
use crate::tcp;
use crate::timeout;
use crate::tls::Alpn;
use crate::upstream::{self, Flight};
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_api::MeshError;
use mesh_api::access::What;
use mesh_api::golden::{Direction, TlsStatus};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

/// Serves HTTP/1 until the client goes or the proxy ends.
pub async fn http1(client: Arc<Client>, stream: Stream) {
    let (stream, notes) = Guard::new(stream);
    let service = {
        let (client, notes) = (client.clone(), notes.clone());
        service_fn(move |request| {
            let (client, notes) = (client.clone(), notes.clone());
            async move {
                let leaves = Notes::leaves_http(&request).then(|| request.method().clone());
                let mut response = request::serve(client.clone(), request.map(Received::from)).await;
                if let Some(method) = leaves {
                    notes.settle(&method, &mut response);
                }
                let leaving = client.proxy.drain.phase() >= Phase::Leaving
                    || is_turned_away(&client)
                    || request::is_distrusted(&response);
                if leaving && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                answered(response)
            }
        })
    };
    let connection = http1::Builder::new()
        .half_close(true)
        .auto_date_header(false)
        .max_buf_size(limits::HTTP1_BUFFER)
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HTTP1_CLIENT_IDLE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        // Requests that come until then are answered with `Connection: close`, which ends the connection in order.
        // Only silent ones are left; on a new one the first request may be on its way.
        () = settled(&client.proxy) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if notes.refused() || result.as_ref().is_err_and(hyper::Error::is_parse) {
        // Answered before it became a request; counted all the same.
        request::malformed(&client);
    }
    if let Err(error) = result {
        tracing::debug!(error = %Chain(&error), "HTTP/1 connection of a client ended");
    }
}

/// The response, unless the client is to be left without one.
fn answered(response: Response<Download>) -> Result<Response<Download>, LeftAlone> {
    if response.extensions().get::<Reset>().is_some() { Err(LeftAlone) } else { Ok(response) }
}

/// Why a client gets no answer.
#[derive(Debug, thiserror::Error)]
#[error("a TrafficPolicy resets this request on purpose")]
struct LeftAlone;

/// True if the connection was accepted only to be told that there are too many.
fn is_turned_away(client: &Client) -> bool {
    client.refusal == Some(MeshError::Overload)
}

/// Resolves when an HTTP/2 client should look for another connection.
async fn told_to_leave(client: &Client) {
    if is_turned_away(client) {
        // Time enough for its first requests to arrive and be answered.
        tokio::time::sleep(limits::TURN_AWAY_TIME / 2).await;
    } else {
        client.proxy.drain.reached(Phase::Leaving).await;
    }
}

/// Resolves when a connection without requests may be closed.
async fn settled(proxy: &Proxy) {
    proxy.drain.reached(Phase::Closing).await;
    tokio::time::sleep(limits::DRAIN_SETTLE).await;
}

/// Serves HTTP/2 until the client goes or the proxy ends.
pub async fn http2(client: Arc<Client>, mut stream: Stream) {
    if !greets(&client.proxy, &mut stream).await {
        return;
    }
    // Another proxy has had patience with its own clients, and carries those of many.
    let patience = matches!(stream, Stream::Plain(_)).then(Arc::<Patience>::default);
    let service = {
        let (client, patience) = (client.clone(), patience.clone());
        service_fn(move |request| {
            let (client, unanswered) = (client.clone(), patience.as_ref().map(Patience::begin));
            async move {
                let response = request::serve(client, request.map(Received::http2)).await;
                if let Some(unanswered) = unanswered {
                    unanswered.answered();
                }
                answered(response)
            }
        })
    };
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(limits::HTTP2_STREAMS)
        .initial_stream_window_size(limits::HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(limits::HTTP2_CONNECTION_WINDOW)
        .max_send_buf_size(limits::HTTP2_SEND_BUFFER)
        .max_header_list_size(limits::HTTP2_HEADER_LIST)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(Lingering::new(stream)), service);
    let mut connection = pin!(connection);
    let mut leaving = false;
    let result = loop {
        tokio::select! {
            result = connection.as_mut() => break result,
            // GOAWAY in two steps: the client learns of it before streams are refused, so none is lost.
            () = told_to_leave(&client), if !leaving => {
                connection.as_mut().graceful_shutdown();
                leaving = true;
            }
            () = Patience::lost(patience.as_deref()) => {
                tracing::warn!(limit = limits::HTTP2_GIVEN_UP, "closed a connection whose client gave up most of its requests");
                return;
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = %Chain(&error), "HTTP/2 connection of a client ended");
    }
}

/// Waits for a client's preface and SETTINGS; on the latter the codec does not insist. Another proxy needs no check.
async fn greets(proxy: &Proxy, stream: &mut Stream) -> bool {
    let Stream::Plain(plain) = stream else { return true };
    tokio::select! {
        greeting = plain.peek(detect::HTTP2_GREETING) => greeting.is_ok_and(detect::is_http2_greeting),
        () = proxy.drain.reached(Phase::Closing) => false,
    }
}

/// Carries a connection without looking into it, counted under `route`, or under the rule that takes it. `server_name`
/// is what it asks for, if it is TLS.
pub async fn opaque(client: &Arc<Client>, known: &Known, stream: Stream, server_name: Option<&str>, route: Arc<str>) {
    let what = match client.tls {
        TlsStatus::Passthrough => What::Tls,
        _ if *route == *PROBE => What::Silence,
        _ => What::Opaque,
    };
    if let Some(error) = refusal(client, known, what, server_name) {
        account(client, None, route).failed(error);
        return stream.reset();
    }
    let (opened, route) = open(client, known, server_name, route).await;
    match opened {
        Ok(opened) => {
            let record = account(client, Some(&opened.backend), route);
            tcp::carry(stream, opened.server, BytesMut::new(), &record).await;
        }
        Err(Unopened { backend, error }) => {
            account(client, backend.as_ref(), route).failed(error);
            stream.reset();
        }
    }
}

/// The error that a connection nobody looks into is refused with, if it is.
fn refusal(client: &Client, known: &Known, what: What<'_>, server_name: Option<&str>) -> Option<MeshError> {
    if access::refused_connection(client, what) {
        return Some(MeshError::AccessDenied);
    }
    egress::refused_connection(client, known, server_name).then_some(MeshError::EgressDenied)
}

/// Carries a connection whose client closed its side without a word: a probe, or one that only wants to listen.
pub async fn wordless(client: &Arc<Client>, known: &Known, stream: Stream) {
    opaque(client, known, stream, None, client.target.learned.probe()).await;
}

/// The name that the application's own TLS asks for; empty if it names none.
pub fn server_name(spoken: Spoken, ahead: &[u8]) -> Option<String> {
    match spoken {
        Spoken::Tls | Spoken::MeshTls => Some(detect::server_name(ahead).unwrap_or_default()),
        _ => None,
    }
}

/// The route of a connection that is not looked into: the server name of the application's own TLS, else none.
pub fn passthrough_route(target: &Target, server_name: Option<&str>) -> Arc<str> {
    server_name.map_or_else(Arc::default, |name| target.learned.host(name))
}

/// A connection to an endpoint for opaque traffic.
struct Opened {
    server: Stream,
    backend: Arc<Backend>,
    _flight: Flight,
    /// The right to a connection, where their number is limited.
    _slot: Option<OwnedSemaphorePermit>,
}

/// Why there is no connection for opaque traffic.
struct Unopened {
    /// The last endpoint that was tried.
    backend: Option<Arc<Backend>>,
    error: MeshError,
}

/// Connects for a connection that is not looked into. It is counted under `route`, or under the rule that takes it.
async fn open(
    client: &Arc<Client>,
    known: &Known,
    server_name: Option<&str>,
    route: Arc<str>,
) -> (Result<Opened, Unopened>, Arc<str>) {
    let taken = known.table.as_ref().and_then(|table| table.take_connection(server_name));
    let (course, route) = match taken {
        None => (Ok(Course::unrouted(known)), route),
        Some(None) => (Err(MeshError::NoRoute), route),
        Some(Some(rule)) => (Course::of_connection(&client.proxy, known, rule), rule.name.clone()),
    };
    match course {
        Ok(course) => (open_on(client, &course).await, route),
        Err(error) => (Err(Unopened { backend: None, error }), route),
    }
}

/// Connects to the best endpoint of a course, or another one if that fails.
async fn open_on(client: &Arc<Client>, course: &Course<'_>) -> Result<Opened, Unopened> {
    let (proxy, group) = (&client.proxy, course.group);
    let limit = timeout::of_connect(&course.timeouts());
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut last: Option<(Arc<Backend>, Failure)> = None;
    let mut none = MeshError::NoEndpoints;
    while client.refusal.is_none() && tried.len() < limits::MAX_ATTEMPTS {
        let key = group.traffic.as_ref().and_then(|traffic| traffic.key_of_connection(client.from.ip()));
        let backend = match choose(proxy, group, key, &tried) {
            Ok(backend) => backend,
            Err(refusal) => {
                none = refusal;
                break;
            }
        };
        let slot = match &group.traffic {
            Some(traffic) if traffic.limits_connections() => match backend.pool.slot().await {
                Some(slot) => Some(slot),
                None => {
                    none = MeshError::Overload;
                    break;
                }
            },
            _ => None,
        };
        let flight = Flight::start(&backend, group);
        match upstream::connect(proxy, &backend, Alpn::Tcp, limit).await {
            Ok(server) => {
                flight.connected();
                return Ok(Opened { server, backend, _flight: flight, _slot: slot });
            }
            Err(failure) => {
                flight.failed(&failure);
                tried.push(backend.endpoint.address);
                last = Some((backend, failure));
            }
        }
    }
    let error = last.as_ref().map_or(none, |(_, failure)| client.error_for(failure));
    Err(Unopened { backend: last.map(|(backend, _)| backend), error: client.refusal.unwrap_or(error) })
}

fn account(client: &Arc<Client>, backend: Option<&Arc<Backend>>, route: Arc<str>) -> ConnectionRecord {
    let scope = backend.and_then(|b| b.scope.as_ref()).unwrap_or(&client.scope);
    let meshed = client.direction == Direction::Outbound
        && client.proxy.offers_identity()
        && backend.is_some_and(|b| b.endpoint.identity.is_some());
    let tls = if meshed { TlsStatus::Mutual } else { client.tls };
    let probe = &*route == PROBE;
    let record = ConnectionRecord::open(&client.proxy.golden, scope, tls, route);
    if probe { record } else { record.seen_by(Onlooker::of(client, backend, scope, tls)) }
}

/// What became of a connection whose client said nothing at first.
pub enum Broken {
    /// The client spoke after all.
    ByClient(TcpStream, Bytes, Spoken),
    /// The server spoke first, and the connection was carried to its end.
    ByServer,
}

/// Waits, connected to an endpoint, for either side to break the silence. If it is the server, the connection is
/// opaque and `server_first` is told.
pub async fn silent(
    client: &Arc<Client>,
    known: &Known,
    tcp: TcpStream,
    server_first: impl FnOnce(),
) -> io::Result<Broken> {
    // A server that may speak first can only be heard by those who are let in whatever they say.
    let patience = if access::would_refuse(client, What::Opaque) || egress::would_refuse(client, known) {
        limits::ACCESS_SILENCE
    } else {
        let (opened, route) = open(client, known, None, Arc::default()).await;
        match opened {
            Ok(opened) => return either(client, known, tcp, opened, route, server_first).await,
            Err(_) => limits::UNREACHED_SILENCE,
        }
    };
    // Only the client is left to be heard: how to answer it, and whether it wants an answer, it alone can say.
    match tokio::time::timeout(patience, tcp.readable()).await {
        Ok(readable) => {
            readable?;
            by_client(tcp).await
        }
        Err(_) => {
            opaque(client, known, tcp.into(), None, Arc::default()).await;
            Ok(Broken::ByServer)
        }
    }
}

/// Waits for the word of whichever side is first.
async fn either(
    client: &Arc<Client>,
    known: &Known,
    tcp: TcpStream,
    mut opened: Opened,
    route: Arc<str>,
    server_first: impl FnOnce(),
) -> io::Result<Broken> {
    let mut said = BytesMut::with_capacity(1024);
    tokio::select! {
        readable = tcp.readable() => {
            readable?;
            drop(opened);
            by_client(tcp).await
        }
        read = opened.server.read_buf(&mut said) => {
            // A server that is tired of waiting for a request is not one that speaks first.
            if let Some(error) = refusal(client, known, What::Opaque, None) {
                account(client, None, Arc::default()).failed(error);
                Stream::from(tcp).reset();
                return Ok(Broken::ByServer);
            }
            if read.is_ok_and(|n| n > 0) && !said.starts_with(b"HTTP/") {
                server_first();
            }
            let record = account(client, Some(&opened.backend), route);
            tcp::carry(tcp.into(), opened.server, said, &record).await;
            Ok(Broken::ByServer)
        }
    }
}

/// What a client says that has something to say.
async fn by_client(mut tcp: TcpStream) -> io::Result<Broken> {
    let (ahead, spoken) = detect::detect(&mut tcp).await?;
    // Readable yet nothing read: it was no word after all.
    Ok(Broken::ByClient(tcp, ahead, if spoken == Spoken::Silent { Spoken::Opaque } else { spoken }))
}

/// Runs an accepted connection: its `slot` is free again when it ends, and the drain waits for it.
pub fn spawn(proxy: &Arc<Proxy>, slot: Slot, connection: impl Future<Output = io::Result<()>> + Send + 'static) {
    proxy.drain.spawn(async move {
        let slot = slot; // as a whole: the block would take only what it uses of it
        let ended = if slot.refusal.is_some() {
            tokio::time::timeout(limits::TURN_AWAY_TIME, connection).await.unwrap_or(Ok(()))
        } else {
            connection.await
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended");
        }
    });
}
