//! What is kept of a request until its end for those who are told of single requests whether somebody looks or not: the
//! access log, and exemplars. Nothing is kept of a request that neither concerns.

use crate::access_log::{Entry, rfc3339};
use crate::body::Received;
use crate::golden::{Cell, Finished, Subject};
use crate::metrics::text::Exemplar;
use crate::proxy::unix_ms;
use crate::request::Client;
use crate::trace::TraceContext;
use http::{HeaderMap, HeaderName, Method, Request, Uri, Version, header};
use mesh_api::golden::{Direction, TlsStatus};
use std::sync::Arc;

/// What is kept of a request until its end.
#[derive(Debug)]
pub struct Story {
    trace: Option<TraceContext>,
    logged: Option<Logged>,
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
    pub fn begin(client: &Arc<Client>, request: &Request<Received>) -> Option<Box<Self>> {
        let trace = TraceContext::of(request.headers());
        let is_logged = client.proxy.access_log.is_on();
        (is_logged || trace.is_some()).then(|| {
            let logged = is_logged.then(|| Logged::of(client, request));
            Box::new(Self { trace, logged })
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
        let Some(logged) = self.logged else { return };
        let Logged { client, method, uri, version, host, referer, user_agent, response_bytes } = logged;
        let entry = Entry {
            time: rfc3339(at_ms),
            direction: if client.direction == Direction::Inbound { "inbound" } else { "outbound" },
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
            tls: match subject.tls {
                TlsStatus::Mutual => "mutual",
                TlsStatus::Passthrough => "passthrough",
                TlsStatus::Plain => "plain",
            },
            referer,
            user_agent,
            trace_id: self.trace.map(|trace| format!("{:032x}", trace.trace_id)),
        };
        client.proxy.access_log.tell(&entry, at_ms);
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
