//! Who sees a request or connection for the taps, from its head to its end, and tells the event.

use super::Tap;
use super::matcher::{End, Head, HttpHead, Way};
use crate::body::Received;
use crate::drain::Phase;
use crate::golden::{Finished, Scope, Subject};
use crate::limits;
use crate::proxy::{Proxy, Source, unix_ms};
use crate::request::Client;
use crate::state::Backend;
use crate::story::{self, Closed};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri, Version, header};
use hyper::body::Frame;
use mesh_api::golden::{Carried, Direction, TlsStatus};
use mesh_api::tap::secrets::{REDACTED, is_secret};
use mesh_api::tap::{BODY_BYTES, TapBody, TapEnd, TapEnding, TapEvent, TapHttp, TapKind};
use mesh_api::{MeshError, SpiffeId};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Sees one request.
#[derive(Debug)]
pub struct Witness {
    client: Arc<Client>,
    /// Whoever may be interested.
    taps: Vec<Arc<Tap>>,
    method: Method,
    uri: Uri,
    version: Version,
    host: Option<header::HeaderValue>,
    request_headers: Option<HeaderMap>,
    response_headers: Option<HeaderMap>,
    backend: Option<Arc<Backend>>,
    upload: Arc<Meter>,
    download: Meter,
    broken: bool,
}

/// Counts a body, and keeps its beginning if that is wanted.
#[derive(Debug, Default)]
pub struct Meter {
    bytes: AtomicU64,
    kept: Option<Mutex<Vec<u8>>>,
}

impl Meter {
    fn new(keep: bool) -> Self {
        Self { bytes: AtomicU64::new(0), kept: keep.then(Mutex::default) }
    }

    /// A piece has passed.
    pub fn saw(&self, frame: &Frame<Bytes>) {
        let Some(data) = frame.data_ref() else { return };
        self.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        if let Some(kept) = &self.kept {
            let mut kept = kept.lock();
            let room = BODY_BYTES.saturating_sub(kept.len());
            kept.extend_from_slice(&data[..data.len().min(room)]);
        }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn body(&self) -> Option<TapBody> {
        let kept = self.kept.as_ref()?.lock();
        let bytes = self.bytes();
        (bytes > 0).then(|| TapBody::new(&kept, bytes))
    }
}

impl Witness {
    /// A witness, if any tap may be interested.
    pub fn of(client: &Arc<Client>, subject: &Subject, request: &Request<Received>) -> Option<Box<Self>> {
        if client.proxy.taps.on() { Self::called(client, subject, request) } else { None }
    }

    #[cold]
    fn called(client: &Arc<Client>, subject: &Subject, request: &Request<Received>) -> Option<Box<Self>> {
        let http = HttpHead {
            method: request.method().as_str(),
            path: request.uri().path(),
            route: &subject.route,
            headers: request.headers(),
        };
        let taps = interested(client, subject.carried, Some(http))?;
        let headers = taps.iter().any(|tap| tap.headers);
        let bodies = taps.iter().any(|tap| tap.bodies);
        Some(Box::new(Self {
            client: client.clone(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            host: request.headers().get(header::HOST).cloned(),
            request_headers: headers.then(|| request.headers().clone()),
            response_headers: None,
            backend: None,
            upload: Arc::new(Meter::new(bodies)),
            download: Meter::new(bodies),
            broken: false,
            taps,
        }))
    }

    /// The request goes to an endpoint.
    pub fn sent_to(&mut self, backend: &Arc<Backend>) {
        self.backend = Some(backend.clone());
    }

    /// What counts the request's body.
    pub fn upload(&self) -> Arc<Meter> {
        self.upload.clone()
    }

    /// The response's head has arrived.
    pub fn answered(&mut self, headers: &HeaderMap) {
        if self.request_headers.is_some() {
            self.response_headers = Some(headers.clone());
        }
    }

    /// A piece of the response's body passes.
    pub fn download(&self, frame: &Frame<Bytes>) {
        self.download.saw(frame);
    }

    /// The server broke the response off.
    pub fn broken(&mut self) {
        self.broken = true;
    }

    /// The request has come to its end.
    pub fn tell(&self, subject: &Subject, scope: &Scope, finished: &Finished) {
        let Finished { status, grpc_status, error, latency, .. } = *finished;
        let way = way(&self.client, self.backend.as_deref(), subject.tls);
        let end = End { status, grpc_status, error, duration: latency };
        let now = Instant::now();
        for tap in &self.taps {
            if tap.matcher.way(self.client.direction, &way) && tap.matcher.end(&end) {
                tap.offer(now, || self.event(tap, subject, scope, finished));
            }
        }
    }

    fn event(&self, tap: &Tap, subject: &Subject, scope: &Scope, finished: &Finished) -> TapEvent {
        let authority = self.uri.authority().map(|authority| authority.as_str().to_owned());
        let host = || self.host.as_ref().map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
        let headers = |headers: &Option<HeaderMap>| {
            headers.as_ref().filter(|_| tap.headers).map(|headers| fields(headers, tap.secrets)).unwrap_or_default()
        };
        let ending = match finished {
            Finished { error: Some(_), .. } => TapEnding::ByMesh,
            Finished { complete: true, .. } => TapEnding::Orderly,
            _ if self.broken => TapEnding::ByServer,
            _ if self.client.proxy.drain.phase() >= Phase::Closing => TapEnding::Cut,
            _ => TapEnding::ByClient,
        };
        let http = TapHttp {
            method: self.method.as_str().to_owned(),
            authority: authority.or_else(host).unwrap_or_default(),
            path: self.uri.path().to_owned(),
            version: format!("{:?}", self.version),
            route: subject.route.to_string(),
            status: finished.status,
            grpc_status: finished.grpc_status,
            retries: finished.attempts.saturating_sub(1),
            first_byte_us: finished.first_byte.map(micros),
            request_headers: headers(&self.request_headers),
            response_headers: headers(&self.response_headers),
            request_body: self.upload.body().filter(|_| tap.bodies),
            response_body: self.download.body().filter(|_| tap.bodies),
        };
        TapEvent {
            event: TapKind::Request,
            carried: subject.carried,
            http: Some(http),
            error: finished.error,
            ending: Some(ending),
            duration_us: micros(finished.latency),
            read_bytes: self.upload.bytes(),
            write_bytes: self.download.bytes(),
            ..between(&self.client, self.backend.as_deref(), scope, subject.tls)
        }
    }
}

/// What came instead of a request and was answered with an error: all that is known of it.
pub fn tell_malformed(client: &Client, subject: &Subject, error: MeshError) {
    let headers = HeaderMap::new();
    let http = HttpHead { method: "", path: "", route: &subject.route, headers: &headers };
    let Some(taps) = client.proxy.taps.on().then(|| interested(client, subject.carried, Some(http))).flatten() else {
        return;
    };
    let way = way(client, None, client.tls);
    let status = Some(error.http_status());
    let end = End { status, grpc_status: None, error: Some(error), duration: Duration::ZERO };
    for tap in taps.iter().filter(|tap| tap.matcher.way(client.direction, &way) && tap.matcher.end(&end)) {
        tap.offer(Instant::now(), || TapEvent {
            event: TapKind::Request,
            carried: subject.carried,
            http: Some(TapHttp {
                version: format!("{:?}", Version::HTTP_11),
                route: subject.route.to_string(),
                status,
                ..TapHttp::default()
            }),
            error: Some(error),
            ending: Some(TapEnding::ByMesh),
            ..between(client, None, &client.scope, client.tls)
        });
    }
}

/// Who sees an opaque connection. It is there for every connection, so that a tap that begins late sees its end.
#[derive(Debug)]
pub struct Onlooker {
    client: Arc<Client>,
    backend: Option<Arc<Backend>>,
    scope: Arc<Scope>,
    tls: TlsStatus,
    opened: Instant,
    read: AtomicU64,
    written: AtomicU64,
}

impl Onlooker {
    /// Sees a connection from now on.
    pub fn of(client: &Arc<Client>, backend: Option<&Arc<Backend>>, scope: &Arc<Scope>, tls: TlsStatus) -> Self {
        Self {
            client: client.clone(),
            backend: backend.cloned(),
            scope: scope.clone(),
            tls,
            opened: Instant::now(),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// Bytes have passed.
    pub fn bytes(&self, read: u64, written: u64) {
        self.read.fetch_add(read, Ordering::Relaxed);
        self.written.fetch_add(written, Ordering::Relaxed);
    }

    /// The connection has been opened.
    pub fn opened(&self) {
        if self.client.proxy.taps.on() {
            self.tell(TapKind::Open, None, None);
        }
    }

    /// The connection has come to its end, counted under `subject`.
    pub fn closed(&self, subject: &Subject, ending: TapEnding, error: Option<MeshError>) {
        let client = &*self.client;
        if client.proxy.access_log.is_on() {
            let closed = Closed {
                server: destination(client, self.backend.as_deref()),
                subject,
                peer: self.scope.peer(),
                ending,
                error,
                bytes: (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed)),
                open_for: self.opened.elapsed(),
            };
            story::log_connection(client, &closed);
        }
        if client.proxy.taps.on() {
            self.tell(TapKind::Close, Some(ending), error);
        }
    }

    #[cold]
    fn tell(&self, kind: TapKind, ending: Option<TapEnding>, error: Option<MeshError>) {
        let client = &*self.client;
        let Some(taps) = interested(client, Carried::Tcp, None) else { return };
        let way = way(client, self.backend.as_deref(), self.tls);
        let end = End { status: None, grpc_status: None, error, duration: self.opened.elapsed() };
        for tap in taps.iter().filter(|tap| tap.matcher.way(client.direction, &way)) {
            let wanted = match kind {
                TapKind::Open => tap.matcher.leaves_the_end_open(),
                TapKind::Close | TapKind::Request => tap.matcher.end(&end),
            };
            if wanted {
                tap.offer(Instant::now(), || TapEvent {
                    event: kind,
                    error,
                    ending,
                    duration_us: micros(end.duration),
                    read_bytes: self.read.load(Ordering::Relaxed),
                    write_bytes: self.written.load(Ordering::Relaxed),
                    ..between(client, self.backend.as_deref(), &self.scope, self.tls)
                });
            }
        }
    }
}

/// The taps that may be interested, if there are any.
fn interested(client: &Client, carried: Carried, http: Option<HttpHead<'_>>) -> Option<Vec<Arc<Tap>>> {
    let head =
        Head { direction: client.direction, carried, source: client.from.ip(), client: client.identity.as_ref(), http };
    let taps: Vec<_> = client.proxy.taps.now().iter().filter(|tap| tap.matcher.head(&head)).cloned().collect();
    (!taps.is_empty()).then_some(taps)
}

fn way<'a>(client: &Client, backend: Option<&'a Backend>, tls: TlsStatus) -> Way<'a> {
    Way { destination: destination(client, backend).ip(), server: proven(client, backend, tls) }
}

fn destination(client: &Client, backend: Option<&Backend>) -> SocketAddr {
    backend.map_or(client.target.address, |backend| backend.endpoint.address)
}

/// The identity that the server has proved to us.
fn proven<'a>(client: &Client, backend: Option<&'a Backend>, tls: TlsStatus) -> Option<&'a SpiffeId> {
    let outbound = client.direction == Direction::Outbound && tls == TlsStatus::Mutual;
    backend.filter(|_| outbound)?.endpoint.identity.as_ref()
}

/// An event between two ends of which nothing else is known.
fn between(client: &Client, backend: Option<&Backend>, scope: &Scope, tls: TlsStatus) -> TapEvent {
    let proxy = &client.proxy;
    let (source, destination) = (client.from, destination(client, backend));
    let (source, destination) = match client.direction {
        Direction::Inbound => {
            let known = Some(scope.peer()).filter(|peer| peer.kind != "external").cloned();
            let client = TapEnd { address: source, workload: known, pod: None, identity: client.identity.clone() };
            (client, own_end(proxy, destination))
        }
        Direction::Outbound => {
            let server = TapEnd {
                address: destination,
                workload: backend.map(|b| b.endpoint.workload.clone()).filter(|known| known.kind != "external"),
                pod: backend.map(|b| b.endpoint.pod.clone()).filter(|pod| !pod.is_empty()),
                identity: proven(client, backend, tls).cloned(),
            };
            (own_end(proxy, source), server)
        }
    };
    TapEvent {
        at_ms: unix_ms(),
        event: TapKind::Request,
        direction: client.direction,
        carried: Carried::Tcp,
        source,
        destination,
        service: scope.service().cloned(),
        tls,
        http: None,
        error: None,
        ending: None,
        duration_us: 0,
        read_bytes: 0,
        write_bytes: 0,
    }
}

fn own_end(proxy: &Proxy, address: SocketAddr) -> TapEnd {
    let pod = match &proxy.settings.source {
        Source::Control(control) => Some(control.pod.clone()),
        Source::File(_) => None,
    };
    let identity = proxy.credentials.current().map(|current| current.identity.clone());
    TapEnd { address, workload: Some(proxy.state.workload()), pod, identity }
}

/// Fields as they are told: a bounded number, none too long, secrets redacted.
fn fields(headers: &HeaderMap, secrets: bool) -> Vec<(String, String)> {
    let told = headers.iter().take(limits::TAP_HEADERS).map(|(name, value)| {
        let name = name.as_str().to_owned();
        if !secrets && is_secret(&name) {
            return (name, REDACTED.to_owned());
        }
        let bytes = value.as_bytes();
        let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(limits::TAP_VALUE_BYTES)]).into_owned();
        if bytes.len() > limits::TAP_VALUE_BYTES {
            text.push('…');
        }
        (name, text)
    });
    told.collect()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_redacted_and_bounded() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer secret".parse().unwrap());
        headers.append("cookie", "a=1".parse().unwrap());
        headers.append("cookie", "b=2".parse().unwrap());
        headers.insert("x-long", "x".repeat(limits::TAP_VALUE_BYTES + 1).parse().unwrap());
        headers.insert("x-odd", http::HeaderValue::from_bytes(b"\xff").unwrap());
        for n in 0..limits::TAP_HEADERS {
            headers.insert(format!("x-{n}").parse::<http::HeaderName>().unwrap(), "1".parse().unwrap());
        }
        let told = fields(&headers, false);
        assert_eq!(told.len(), limits::TAP_HEADERS);
        let values = |name: &str| -> Vec<&str> {
            told.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
        };
        assert_eq!((values("authorization"), values("cookie")), (vec![REDACTED], vec![REDACTED; 2]));
        assert_eq!(values("x-long")[0].chars().count(), limits::TAP_VALUE_BYTES + 1);
        assert_eq!(values("x-odd"), ["\u{fffd}"]);
        assert!(fields(&headers, true).contains(&("authorization".into(), "Bearer secret".into())));
    }

    #[test]
    fn a_meter_keeps_the_beginning_only() {
        let meter = Meter::new(true);
        for _ in 0..3 {
            meter.saw(&Frame::data(Bytes::from(vec![b'x'; 3000])));
        }
        let body = meter.body().unwrap();
        assert_eq!((meter.bytes(), body.text.unwrap().len(), body.truncated), (9000, BODY_BYTES, true));
        assert!(Meter::new(true).body().is_none() && Meter::new(false).body().is_none());
    }
}
