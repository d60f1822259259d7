//! Spans for a collector: OTLP over HTTP with JSON encoding (OpenTelemetry protocol 1.x, `POST /v1/traces`).
//!
//! Requests never wait for it. Spans go through a bounded queue to the control thread, which sends them in batches; what
//! does not fit, or what the collector refuses, is dropped and counted.

use crate::limits;
use crate::metrics::count;
use crate::proxy::Proxy;
use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;

/// Where spans go, and which requests get one.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Tracing {
    /// The collector, `http://HOST[:4318][/v1/traces]`; none: no spans are made.
    pub endpoint: Option<String>,
    /// Share of requests without a trace that begin one, 0 to 1. Traces of others go on if they are sampled.
    pub ratio: f64,
}

impl Tracing {
    /// Checks the settings; an error says what is wrong.
    pub fn new(endpoint: Option<String>, ratio: f64) -> anyhow::Result<Self> {
        ensure!((0.0..=1.0).contains(&ratio), "the share of traced requests is {ratio}; it is a number from 0 to 1");
        if let Some(endpoint) = &endpoint {
            address(endpoint)?;
        }
        Ok(Self { endpoint, ratio })
    }
}

/// Host with port, and path, of a collector.
fn address(endpoint: &str) -> anyhow::Result<(String, String)> {
    let wrong = || format!("`{endpoint}` is no collector; write http://HOST:4318");
    let uri: Uri = endpoint.parse().with_context(wrong)?;
    ensure!(uri.scheme_str() == Some("http"), wrong());
    let host = uri.host().with_context(wrong)?;
    let path = if uri.path() == "/" { "/v1/traces" } else { uri.path() };
    Ok((format!("{host}:{}", uri.port_u16().unwrap_or(4318)), path.to_owned()))
}

/// A finished request as part of a trace.
#[derive(Debug)]
pub struct Span {
    /// Trace it belongs to.
    pub trace_id: u128,
    /// Its own id.
    pub span_id: u64,
    /// The caller's span; 0 if the trace begins here.
    pub parent_id: u64,
    /// Method and route.
    pub name: String,
    /// True if the request arrived for the application, false if the application sent it.
    pub is_server: bool,
    /// Begin and end, Unix nanoseconds.
    pub nanoseconds: (u64, u64),
    /// True if the request failed.
    pub failed: bool,
    /// What else is known, by the names of OpenTelemetry's conventions.
    pub attributes: Vec<(&'static str, String)>,
}

/// The way to the collector.
#[derive(Debug, Default)]
pub struct Tracer {
    queue: Option<mpsc::Sender<Span>>,
    ratio: f64,
}

impl Tracer {
    /// A tracer, and what is to be sent; none of the latter if nothing is.
    pub fn new(tracing: &Tracing) -> (Self, Option<mpsc::Receiver<Span>>) {
        if tracing.endpoint.is_none() {
            return (Self::default(), None);
        }
        let (queue, spans) = mpsc::channel(limits::SPANS);
        (Self { queue: Some(queue), ratio: tracing.ratio }, Some(spans))
    }

    /// True if spans are made.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// True if a request without a trace begins one; `random` is any number.
    pub fn begins(&self, random: u64) -> bool {
        self.is_on() && (random >> 11) as f64 / (1u64 << 53) as f64 <= self.ratio && self.ratio > 0.0
    }

    /// Sends a span; false if it was dropped.
    pub fn tell(&self, span: Span) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue.try_send(span).is_ok())
    }
}

/// Sends what is told, for ever.
pub async fn run(proxy: Arc<Proxy>, mut spans: mpsc::Receiver<Span>) {
    let Some(Ok((host, path))) = proxy.settings.tracing.endpoint.as_deref().map(address) else { return };
    let mut batch = Vec::new();
    while spans.recv_many(&mut batch, limits::SPAN_BATCH).await > 0 {
        // Give a batch the time to become one.
        let _ = tokio::time::timeout(limits::SPAN_WAIT, async {
            loop {
                let room = limits::SPAN_BATCH - batch.len();
                if room == 0 || spans.recv_many(&mut batch, room).await == 0 {
                    return;
                }
            }
        })
        .await;
        let sent = batch.len() as u64;
        let text = encode(&proxy, &batch).to_string();
        batch.clear();
        match tokio::time::timeout(limits::SPAN_TIMEOUT, post(&proxy, &host, &path, text)).await {
            Ok(Ok(())) => drop(proxy.counters.spans_sent.fetch_add(sent, Ordering::Relaxed)),
            failed => {
                proxy.counters.spans_dropped.fetch_add(sent, Ordering::Relaxed);
                let why = failed.map_or_else(
                    |_| "it takes too long".to_owned(),
                    |e| format!("{:#}", e.err().unwrap_or_else(|| anyhow::anyhow!("unknown"))),
                );
                tracing::debug!(collector = host, %why, "spans were not taken");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// One batch over a connection of its own: collectors close idle ones, and batches are seldom.
async fn post(proxy: &Proxy, host: &str, path: &str, text: String) -> anyhow::Result<()> {
    let address = tokio::net::lookup_host(host).await?.next().with_context(|| format!("{host} resolves to nothing"))?;
    let stream = proxy.dialer.dial(address, limits::CONTROL_CONNECT_TIMEOUT).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(async move { drop(connection.await) });
    let request = Request::post(path)
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(text)))?;
    let answer = sender.send_request(request).await;
    driver.abort();
    let status = answer?.status();
    ensure!(status.is_success(), "the collector answers {status}");
    Ok(())
}

/// An ExportTraceServiceRequest.
fn encode(proxy: &Proxy, spans: &[Span]) -> Value {
    let workload = proxy.state.workload();
    let resource = [
        ("service.name", workload.name.clone()),
        ("service.namespace", workload.namespace.clone()),
        ("k8s.namespace.name", workload.namespace),
        ("telemetry.sdk.name", "meshctl".to_owned()),
    ];
    json!({"resourceSpans": [{
        "resource": {"attributes": attributes(&resource)},
        "scopeSpans": [{
            "scope": {"name": "mesh-proxy", "version": env!("CARGO_PKG_VERSION")},
            "spans": spans.iter().map(Span::encode).collect::<Vec<_>>(),
        }],
    }]})
}

fn attributes(of: &[(&'static str, String)]) -> Vec<Value> {
    of.iter().map(|(key, value)| json!({"key": key, "value": {"stringValue": value}})).collect()
}

impl Span {
    fn encode(&self) -> Value {
        // Kinds: 2 is SERVER, 3 is CLIENT; status code 2 is ERROR. 64-bit numbers are text in JSON.
        let mut span = json!({
            "traceId": format!("{:032x}", self.trace_id),
            "spanId": format!("{:016x}", self.span_id),
            "name": self.name,
            "kind": if self.is_server { 2 } else { 3 },
            "startTimeUnixNano": self.nanoseconds.0.to_string(),
            "endTimeUnixNano": self.nanoseconds.1.to_string(),
            "attributes": attributes(&self.attributes),
            "status": if self.failed { json!({"code": 2}) } else { json!({}) },
        });
        if self.parent_id != 0 {
            span["parentSpanId"] = format!("{:016x}", self.parent_id).into();
        }
        span
    }
}

/// Counts a span that did not fit into the queue.
pub fn count_dropped(proxy: &Proxy) {
    count(&proxy.counters.spans_dropped);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span() -> Span {
        Span {
            trace_id: 0xabc,
            span_id: 0xdef,
            parent_id: 0,
            name: "GET /products/{id}".to_owned(),
            is_server: true,
            nanoseconds: (1, 2),
            failed: true,
            attributes: vec![("http.request.method", "GET".to_owned())],
        }
    }

    #[test]
    fn a_span_is_written_as_collectors_read_it() {
        let expect = json!({
            "traceId": "00000000000000000000000000000abc", "spanId": "0000000000000def", "name": "GET /products/{id}",
            "kind": 2, "startTimeUnixNano": "1", "endTimeUnixNano": "2", "status": {"code": 2},
            "attributes": [{"key": "http.request.method", "value": {"stringValue": "GET"}}],
        });
        assert_eq!(span().encode(), expect);
        assert_eq!(Span { parent_id: 7, ..span() }.encode()["parentSpanId"], "0000000000000007");
    }

    #[test]
    fn collectors_are_named_by_a_url() {
        let ok = |text: &str| address(text).ok().map(|(host, path)| format!("{host} {path}"));
        assert_eq!(ok("http://otel.obs:4318").as_deref(), Some("otel.obs:4318 /v1/traces"));
        assert_eq!(ok("http://otel.obs").as_deref(), Some("otel.obs:4318 /v1/traces"));
        assert_eq!(ok("http://otel.obs:80/otlp/v1/traces").as_deref(), Some("otel.obs:80 /otlp/v1/traces"));
        for wrong in ["", "otel:4318", "https://otel", "grpc://otel:4317"] {
            assert_eq!(ok(wrong), None, "{wrong}");
        }
        assert!(Tracing::new(None, 1.5).is_err() && Tracing::new(None, f64::NAN).is_err());
    }

    #[test]
    fn a_full_queue_drops_and_says_so() {
        let (tracer, spans) = Tracer::new(&Tracing::new(Some("http://otel".to_owned()), 0.5).unwrap());
        let told = (0..limits::SPANS + 5).filter(|_| tracer.tell(span())).count();
        assert_eq!(told, limits::SPANS);
        assert!(spans.is_some_and(|spans| spans.len() == limits::SPANS));
        assert!(tracer.begins(0) && !tracer.begins(u64::MAX));
        assert!(!Tracer::default().begins(0) && Tracer::default().tell(span()));
    }
}
