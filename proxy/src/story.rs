//! What is kept of a request until its end for those who are told of single requests whether somebody looks or not: the
//! access log, exemplars, and the collector of spans. Nothing is kept of a request that none of them concerns.

use crate::access_log::{Connection, Entry, protection, rfc3339};
use crate::body::Received;
use crate::golden::{Cell, Finished, Subject};
use crate::metrics::text::Exemplar;
use crate::otlp::{self, Span};
use crate::proxy::unix_ms;
use crate::request::Client;
use crate::trace::TraceContext;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};
use mesh_api::golden::{Direction, Ending, is_success};
use mesh_api::{MeshError, WorkloadRef};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What is kept of a request until its end.
#[derive(Debug)]
pub struct Story {
    trace: Option<TraceContext>,
    span: Option<Begun>,
    logged: Option<Logged>,
}

/// A span under way.
#[derive(Debug)]
struct Begun {
    client: Arc<Client>,
    span_id: u64,
    parent_id: u64,
    method: Method,
}

/// What the access log tells of a request's head.
#[derive(Debug)]
struct Logged {
    client: Arc<Client>,
    method: Method,
    uri: Uri,
    version: Version,
    host: Option<String>,
    referer: Option<String>,
    user_agent: Option<String>,
    response_bytes: u64,
}

impl Story {
    /// The story of a request, if there is anything to tell.
    pub fn begin(client: &Arc<Client>, request: &mut Request<Received>) -> Option<Box<Self>> {
        let mut trace = TraceContext::of(request.headers());
        let is_logged = client.proxy.access_log.is_on();
        let span = if client.proxy.tracer.is_on() { Begun::of(client, request, &mut trace) } else { None };
        (is_logged || trace.is_some()).then(|| {
            let logged = is_logged.then(|| Logged::of(client, request));
            Box::new(Self { trace, span, logged })
        })
    }

    /// Bytes of the response's body have passed.
    pub fn passed(&mut self, bytes: usize) {
        if let Some(logged) = &mut self.logged {
            logged.response_bytes += bytes as u64;
        }
    }

    /// The request has ended, and was counted in this cell.
    pub fn end(self, cell: &Cell, subject: &Subject, finished: &Finished) {
        let at_ms = unix_ms();
        let seconds = finished.latency.as_secs_f64();
        if let Some(TraceContext { trace_id, sampled: true, .. }) = self.trace {
            cell.exemplar(Exemplar { trace_id, seconds, at_ms });
        }
        if let (Some(begun), Some(trace)) = (self.span, self.trace) {
            begun.end(trace.trace_id, cell, subject, finished, at_ms);
        }
        let Some(logged) = self.logged else { return };
        let Logged { client, method, uri, version, host, referer, user_agent, response_bytes } = logged;
        let entry = Entry {
            time: rfc3339(at_ms),
            direction: side(client.direction),
            client: client.from,
            client_identity: client.identity.as_ref().map(ToString::to_string),
            peer: cell.key().peer.to_string(),
            method: method.as_str().to_owned(),
            host: host.or_else(|| uri.host().map(str::to_owned)).unwrap_or_default(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            version: format!("{version:?}"),
            route: subject.route.to_string(),
            status: finished.status,
            grpc_status: finished.grpc_status,
            error: finished.error.map(|error| error.code()),
            response_bytes,
            duration_ms: seconds * 1000.0,
            first_byte_ms: finished.first_byte.map(|first_byte| first_byte.as_secs_f64() * 1000.0),
            attempts: finished.attempts,
            tls: protection(subject.tls),
            referer,
            user_agent,
            trace_id: self.trace.map(|trace| format!("{:032x}", trace.trace_id)),
        };
        client.proxy.access_log.tell(&entry, at_ms);
    }
}

fn side(direction: Direction) -> &'static str {
    if direction == Direction::Inbound { "inbound" } else { "outbound" }
}

/// Logs what came instead of a request and was answered with an error: all that is known of it.
pub fn log_malformed(client: &Client, subject: &Subject, error: MeshError) {
    if !client.proxy.access_log.is_on() {
        return;
    }
    let at_ms = unix_ms();
    let entry = Entry {
        time: rfc3339(at_ms),
        direction: side(client.direction),
        client: client.from,
        client_identity: client.identity.as_ref().map(ToString::to_string),
        peer: client.scope.peer().to_string(),
        method: "-".to_owned(),
        host: String::new(),
        path: "-".to_owned(),
        version: format!("{:?}", Version::HTTP_11),
        route: subject.route.to_string(),
        status: Some(error.http_status()),
        grpc_status: None,
        error: Some(error.code()),
        response_bytes: 0,
        duration_ms: 0.0,
        first_byte_ms: None,
        attempts: 0,
        tls: protection(subject.tls),
        referer: None,
        user_agent: None,
        trace_id: None,
    };
    client.proxy.access_log.tell(&entry, at_ms);
}

/// How an opaque connection came to its end.
#[derive(Debug)]
pub struct Closed<'a> {
    /// Where it went.
    pub server: SocketAddr,
    /// How that leg was protected.
    pub subject: &'a Subject,
    /// The workload at the other end.
    pub peer: &'a WorkloadRef,
    /// Why.
    pub ending: Ending,
    /// The error of the mesh, if it was one.
    pub error: Option<MeshError>,
    /// Bytes from the client, and from the server.
    pub bytes: (u64, u64),
    /// How long it was open.
    pub open_for: Duration,
}

/// Logs the end of an opaque connection.
pub fn log_connection(client: &Client, closed: &Closed<'_>) {
    let at_ms = unix_ms();
    let connection = Connection {
        time: rfc3339(at_ms),
        direction: side(client.direction),
        version: "TCP",
        client: client.from,
        client_identity: client.identity.as_ref().map(ToString::to_string),
        peer: closed.peer.to_string(),
        server: closed.server,
        route: closed.subject.route.to_string(),
        ending: closed.ending.word(),
        error: closed.error.map(MeshError::code),
        read_bytes: closed.bytes.0,
        written_bytes: closed.bytes.1,
        duration_ms: closed.open_for.as_secs_f64() * 1000.0,
        tls: protection(closed.subject.tls),
    };
    client.proxy.access_log.tell_connection(&connection, at_ms);
}

impl Begun {
    /// A span of the request's trace, or of one that begins here; the next hop hears that it is its parent.
    fn of(client: &Arc<Client>, request: &mut Request<Received>, trace: &mut Option<TraceContext>) -> Option<Self> {
        let (random, span_id, high, low) = {
            let mut random = client.proxy.random.lock();
            (random.number(), random.number().max(1), random.number(), random.number().max(1))
        };
        let parent_id = match trace {
            Some(context) if !context.sampled => return None,
            Some(context) => context.parent_id,
            None if client.proxy.tracer.begins(random) => 0,
            None => return None,
        };
        let trace_id = trace.map_or((u128::from(high) << 64) | u128::from(low), |context| context.trace_id);
        let own = TraceContext { trace_id, parent_id: span_id, sampled: true };
        if let Ok(header) = HeaderValue::from_str(&own.header()) {
            request.headers_mut().insert("traceparent", header);
        }
        *trace = Some(own);
        Some(Self { client: client.clone(), span_id, parent_id, method: request.method().clone() })
    }

    fn end(self, trace_id: u128, cell: &Cell, subject: &Subject, finished: &Finished, at_ms: u64) {
        let Self { client, span_id, parent_id, method } = self;
        let key = cell.key();
        let mut attributes = vec![
            ("http.request.method", method.as_str().to_owned()),
            ("http.route", subject.route.to_string()),
            ("mesh.peer", key.peer.to_string()),
            ("mesh.attempts", finished.attempts.to_string()),
        ];
        attributes.extend(finished.status.map(|status| ("http.response.status_code", status.to_string())));
        attributes.extend(finished.grpc_status.map(|status| ("rpc.grpc.status_code", status.to_string())));
        attributes.extend(finished.error.map(|error| ("mesh.error", error.code().to_owned())));
        attributes.extend(key.service.map(|service| ("mesh.service", service.to_string())));
        let end = at_ms.saturating_mul(1_000_000);
        let took = u64::try_from(finished.latency.as_nanos()).unwrap_or(u64::MAX);
        let span = Span {
            trace_id,
            span_id,
            parent_id,
            name: if subject.method.is_empty() {
                subject.route.to_string()
            } else {
                format!("{} {}", subject.method, subject.route)
            },
            is_server: client.direction == Direction::Inbound,
            nanoseconds: (end.saturating_sub(took), end),
            failed: !is_success(finished.status, finished.grpc_status, finished.complete),
            attributes,
        };
        if !client.proxy.tracer.tell(span) {
            otlp::count_dropped(&client.proxy);
        }
    }
}

impl Logged {
    fn of(client: &Arc<Client>, request: &Request<Received>) -> Self {
        let text = |name: HeaderName| text(request.headers(), &name);
        Self {
            client: client.clone(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            host: text(header::HOST),
            referer: text(header::REFERER),
            user_agent: text(header::USER_AGENT),
            response_bytes: 0,
        }
    }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}
