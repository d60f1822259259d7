//! The admin port: `/live /ready /metrics /config /identity`. It runs beside control traffic on a thread of its own, so
//! that it answers also while the data thread is busy.

use crate::breaker::Standing;
use crate::limits;
use crate::metrics;
use crate::metrics::text::Format;
use crate::proxy::Proxy;
use crate::state::{Backend, Group};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_api::names::IDENTITY_PATH;
use mesh_api::{Destination, Egress, Endpoint, InboundPolicy, Protocol, ServiceRef, Trust};
use serde::Serialize;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Answers on the admin port, for ever.
pub async fn serve(proxy: Arc<Proxy>, listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(limits::ADMIN_CONNECTIONS));
    loop {
        // The semaphore is never closed, so a slot comes sooner or later.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (stream, _) = crate::listen::accept(&listener).await;
        let proxy = proxy.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(move |request: Request<Incoming>| {
                let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
                let response = answer(&proxy, request.method(), request.uri().path(), Format::accepted(accept));
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits::DETECT_TIMEOUT * 15)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the admin port ended");
            }
        });
    }
}

fn answer(proxy: &Arc<Proxy>, method: &Method, path: &str, format: Format) -> Response<Full<Bytes>> {
    if *method != Method::GET && *method != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match path {
        "/live" => text(StatusCode::OK, "live\n".to_owned()),
        "/ready" if proxy.is_ready() => text(StatusCode::OK, "ready\n".to_owned()),
        "/ready" => text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", why_not_ready(proxy))),
        "/metrics" => typed(StatusCode::OK, format.content_type(), metrics::render(proxy, format)),
        "/config" => json(shown(proxy)),
        IDENTITY_PATH => json(serde_json::to_string(&proxy.credentials.report(proxy.state.is_connected()))),
        _ => text(StatusCode::NOT_FOUND, "there are /live /ready /metrics /config /identity\n".to_owned()),
    }
}

fn json(told: serde_json::Result<String>) -> Response<Full<Bytes>> {
    match told {
        Ok(json) => typed(StatusCode::OK, "application/json", json + "\n"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// What `/config` shows, JSON.
pub fn shown(proxy: &Proxy) -> serde_json::Result<String> {
    serde_json::to_string_pretty(&Shown::of(proxy))
}

fn why_not_ready(proxy: &Proxy) -> &'static str {
    if proxy.drain.phase() == crate::drain::Phase::Serving { "waiting for a certificate" } else { "draining" }
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", text)
}

fn typed(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// What `/config` shows: settings and what is known of the world. Keys, tokens and certificates are not in it.
#[derive(Serialize)]
struct Shown<'a> {
    version: &'static str,
    settings: &'a crate::proxy::Settings,
    identity: Option<String>,
    identity_expires_at: Option<u64>,
    trust: Trust,
    control_connected: bool,
    marks_sockets: bool,
    connections: usize,
    inbound: InboundPolicy,
    egress: Arc<Egress>,
    destinations: Vec<ShownTarget>,
}

#[derive(Serialize)]
struct ShownTarget {
    address: SocketAddr,
    destination: Destination,
    endpoints: Vec<ShownEndpoint>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    backends: Vec<ShownBackend>,
}

/// A service that routes lead to.
#[derive(Serialize)]
struct ShownBackend {
    service: Option<ServiceRef>,
    protocol: Protocol,
    endpoints: Vec<ShownEndpoint>,
}

#[derive(Serialize)]
struct ShownEndpoint {
    #[serde(flatten)]
    endpoint: Endpoint,
    in_flight: u32,
    /// Moving average that the balancer reckons with; of one not tried yet what is assumed of it.
    latency_ms: f64,
    /// True if the last attempt failed not long ago.
    failing: bool,
    idle_connections: usize,
    /// What the circuit breaker lets through to it, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    circuit: Option<Standing>,
    /// How long it stays ejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    ejected_ms: Option<u64>,
    /// True while it has asked for a pause.
    paused: bool,
}

impl ShownEndpoint {
    fn of(backend: &Backend, now: Instant) -> Self {
        let load = *backend.load.lock();
        let circuit = backend.circuit.lock().as_ref().map(|circuit| (circuit.standing(now), circuit.ejected_for(now)));
        Self {
            endpoint: backend.endpoint.clone(),
            in_flight: load.in_flight(),
            latency_ms: load.expected(now).as_secs_f64() * 1000.0,
            failing: load.is_failing(now),
            idle_connections: backend.pool.idle(),
            circuit: circuit.map(|(standing, _)| standing),
            ejected_ms: circuit.filter(|(_, time)| !time.is_zero()).map(|(_, time)| time.as_millis() as u64),
            paused: load.is_paused(now),
        }
    }
}

impl<'a> Shown<'a> {
    fn of(proxy: &'a Proxy) -> Self {
        let (current, now) = (proxy.credentials.current(), Instant::now());
        let targets = proxy.state.known_targets().into_iter().map(|(target, known)| ShownTarget {
            address: target.address,
            destination: known.destination.clone(),
            endpoints: shown_endpoints(&known.group, now),
            backends: known
                .told()
                .iter()
                .map(|group| ShownBackend {
                    service: group.port.service.clone(),
                    protocol: group.port.protocol,
                    endpoints: shown_endpoints(group, now),
                })
                .collect(),
        });
        let mut destinations: Vec<_> = targets.collect();
        destinations.sort_by_key(|target| target.address);
        Shown {
            version: env!("CARGO_PKG_VERSION"),
            settings: &proxy.settings,
            identity: current.as_ref().map(|c| c.identity.to_string()),
            identity_expires_at: current.as_ref().map(|c| c.expires_at),
            trust: proxy.credentials.report(proxy.state.is_connected()),
            control_connected: proxy.state.is_connected(),
            marks_sockets: proxy.dialer.marks(),
            connections: proxy.drain.open(),
            inbound: proxy.state.inbound(),
            egress: proxy.state.egress(),
            destinations,
        }
    }
}

fn shown_endpoints(group: &Group, now: Instant) -> Vec<ShownEndpoint> {
    group.backends.iter().map(|backend| ShownEndpoint::of(backend, now)).collect()
}
