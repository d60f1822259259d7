//! What routes cost: a decision among them by itself, and the whole of a request, through one and through a hundred.

use super::{cpu_of, say};
use anyhow::{Context, Result, ensure};
use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_api::config::FileDestination;
use mesh_api::route::{HttpMatch, PathMatch, RouteBackend, Routes, Rule, RuleName, TextMatch, ValueMatch};
use mesh_api::{Destination, Endpoint, FileConfig, Protocol, ServiceRef, WorkloadRef};
use mesh_proxy::access_log::Form;
use mesh_proxy::proxy::{Settings, Source};
use mesh_proxy::route::Table;
use mesh_proxy::route::matcher::Asked;
use mesh_proxy::run::{self, Listeners};
use mesh_proxy::{limits, listen};
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROUTES: usize = 100;
const MATCHES: usize = 10;
const DECISIONS: u32 = 200_000;
const REQUESTS: u32 = 4_000;
/// Times that each is measured, in turns; the best counts.
const LAPS: usize = 5;
/// A path that the last route of many takes.
const PATH: &str = "/api/99/items/7";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

pub(crate) fn measure() -> Result<()> {
    let (one, many) = (routes(1), routes(ROUTES));
    let decision = [&one, &many].map(decide);
    let [one_ns, many_ns] = [decision[0].as_ref(), decision[1].as_ref()].map(|outcome| outcome.copied().unwrap_or(0.0));
    decision.into_iter().collect::<Result<Vec<_>>>()?;
    say(&format!(
        "| decision among 1 route / {ROUTES} routes with {MATCHES} matches each, best of {LAPS} | {one_ns:.0} / {many_ns:.0} ns |"
    ));
    let (first, second) = (Proxy::start("bench-one", one)?, Proxy::start("bench-many", many)?);
    let (mut one_us, mut many_us) = (f64::MAX, f64::MAX);
    for _ in 0..LAPS {
        one_us = one_us.min(first.lap()?);
        many_us = many_us.min(second.lap()?);
    }
    say(&format!(
        "| CPU of a request through 1 route / {ROUTES} routes, best of {LAPS} | {one_us:.1} / {many_us:.1} µs ({:+.1} %) |",
        (many_us / one_us - 1.0) * 100.0
    ));
    Ok(())
}

fn service() -> ServiceRef {
    ServiceRef { namespace: "shop".to_owned(), name: "web".to_owned(), port: 80 }
}

/// So many routes of ten matches each, the more special ones first, as control orders them: half by path, the rest by
/// path and header field. With one route it takes everything.
fn routes(count: usize) -> Routes {
    let rule = |n: usize| Rule {
        name: RuleName {
            kind: "httproute".to_owned(),
            namespace: "shop".to_owned(),
            name: format!("route-{n}"),
            rule: String::new(),
        },
        backends: vec![RouteBackend { service: Some(service()), weight: 1, filters: Vec::new() }],
        ..Rule::default()
    };
    let condition = |rule: usize, at: usize| {
        let path = match at {
            0 => format!("/api/{rule}"),
            at => format!("/api/{rule}/part-{at}"),
        };
        let headers = match at % 2 {
            1 => vec![ValueMatch { name: "x-version".to_owned(), value: TextMatch::Exact(format!("v{at}")) }],
            _ => Vec::new(),
        };
        HttpMatch { rule, path: Some(PathMatch::Prefix(path)), headers, ..HttpMatch::default() }
    };
    let mut http: Vec<HttpMatch> = match count {
        1 => vec![HttpMatch { path: Some(PathMatch::Prefix("/".to_owned())), ..HttpMatch::default() }],
        _ => (0..count).flat_map(|rule| (0..MATCHES).map(move |at| condition(rule, at))).collect(),
    };
    let length = |of: &HttpMatch| match &of.path {
        Some(PathMatch::Prefix(path)) => (path.len(), of.headers.len()),
        _ => (0, 0),
    };
    http.sort_by_key(|of| std::cmp::Reverse(length(of)));
    Routes { rules: (0..count).map(rule).collect(), http, ..Routes::default() }
}

/// Nanoseconds of one decision.
fn decide(routes: &Routes) -> Result<f64> {
    let table = Table::compile(routes).map_err(anyhow::Error::msg)?;
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static("x-version"), HeaderValue::from_static("v0"));
    let mut best = f64::MAX;
    for _ in 0..LAPS {
        let begun = Instant::now();
        for _ in 0..DECISIONS {
            let asked = Asked::new("GET", "web", black_box(PATH), "", &headers);
            ensure!(black_box(table.take(&asked, false)).is_some(), "no route takes {PATH}");
        }
        best = best.min(begun.elapsed().as_nanos() as f64 / f64::from(DECISIONS));
    }
    Ok(best)
}

/// A proxy in a thread of a name, which sends what it gets to a server of its own.
struct Proxy {
    thread: &'static str,
    outbound: SocketAddr,
}

impl Proxy {
    fn start(thread: &'static str, routes: Routes) -> Result<Self> {
        let server = serve()?;
        let address = SocketAddr::from(([10, 96, 0, 1], 80));
        let endpoint = Endpoint {
            address: server,
            identity: None,
            workload: WorkloadRef::new("shop", "deployment", "web"),
            pod: "web-1".to_owned(),
            zone: None,
        };
        let destination = Destination {
            service: Some(service()),
            protocol: Protocol::Http1,
            routes: Some(Arc::new(routes)),
            ..Destination::default()
        };
        let config = FileConfig {
            destinations: vec![FileDestination {
                address,
                destination,
                endpoints: vec![endpoint],
                backends: Vec::new(),
            }],
            outbound_default: Some(address),
            ..FileConfig::default()
        };
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(serde_json::to_string(&config)?.as_bytes())?;
        let bind = || listen::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let listeners = Listeners { inbound: bind()?, outbound: bind()?, admin: bind()? };
        let outbound = listeners.outbound.local_addr()?;
        let settings = Settings {
            source: Source::File(file.path().to_owned()),
            pod_ips: Vec::new(),
            outlive_application: false,
            drain_linger: Duration::ZERO,
            drain_timeout: Duration::ZERO,
            workers: 1,
            max_connections: 64,
            max_handshakes: limits::MAX_HANDSHAKES,
            access_log: Form::Off,
            tracing: Default::default(),
        };
        let proxy = run::prepare(settings, &listeners)?;
        std::thread::Builder::new().name(thread.to_owned()).spawn(move || {
            let _file = file;
            // Until the process ends.
            let _ = run::run_prepared(&proxy, listeners, std::future::pending());
        })?;
        Ok(Self { thread, outbound })
    }

    /// CPU of the proxy's thread for one request, microseconds.
    fn lap(&self) -> Result<f64> {
        let mut stream = TcpStream::connect(self.outbound)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let request = format!("GET {PATH} HTTP/1.1\r\nhost: web\r\nx-version: v0\r\n\r\n");
        // The first opens the connection to the server.
        ask(&mut stream, &request)?;
        let begun = cpu_of(self.thread)?;
        for _ in 0..REQUESTS {
            ask(&mut stream, &request)?;
        }
        Ok((cpu_of(self.thread)? - begun).as_secs_f64() * 1e6 / f64::from(REQUESTS))
    }
}

fn ask(stream: &mut TcpStream, request: &str) -> Result<()> {
    stream.write_all(request.as_bytes())?;
    let mut got = Vec::new();
    let mut piece = [0; 1024];
    while !got.ends_with(b"ok") {
        let length = stream.read(&mut piece).context("no answer")?;
        ensure!(length > 0, "the connection ended: {}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&piece[..length]);
    }
    ensure!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got));
    Ok(())
}

/// A server that answers every request, without a body, alike.
fn serve() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let (mut got, mut piece) = (Vec::new(), [0; 4096]);
                while let Ok(length) = stream.read(&mut piece) {
                    if length == 0 {
                        break;
                    }
                    got.extend_from_slice(&piece[..length]);
                    if got.ends_with(b"\r\n\r\n") {
                        got.clear();
                        if stream.write_all(ANSWER).is_err() {
                            break;
                        }
                    }
                }
            });
        }
    });
    Ok(address)
}
