//! Routes: which rule takes a request, what it is counted under, and how requests are divided among backends.

use crate::world::*;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_api::config::{FileBackend, FileConfig};
use mesh_api::route::{HttpMatch, PathMatch, RouteBackend, Routes, Rule, RuleName, TextMatch, TlsMatch, ValueMatch};
use mesh_api::{Protocol, ServiceRef};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A port of a service in the tests' namespace.
pub fn service(name: &str) -> ServiceRef {
    ServiceRef { namespace: "shop".into(), name: name.into(), port: 80 }
}

/// A backend of some weight.
pub fn backend(name: &str, weight: u32) -> RouteBackend {
    RouteBackend { service: Some(service(name)), weight, filters: Vec::new() }
}

/// A rule of a route of that name.
pub fn rule(name: &str, backends: Vec<RouteBackend>) -> Rule {
    let name = RuleName { kind: "httproute".into(), namespace: "shop".into(), name: name.into(), rule: String::new() };
    Rule { name, backends, ..Rule::default() }
}

/// Leads requests for paths with this prefix to a rule.
pub fn prefix(rule: usize, path: &str) -> HttpMatch {
    HttpMatch { rule, path: Some(PathMatch::Prefix(path.into())), ..HttpMatch::default() }
}

/// The configuration of a client with these routes and backends; without a route, requests go to the first of them.
pub fn routed(routes: Routes, backends: &[(&str, &[SocketAddr])]) -> FileConfig {
    let endpoints = |addresses: &[SocketAddr]| addresses.iter().map(|a| endpoint(*a, None)).collect::<Vec<_>>();
    let mut config = towards(Protocol::Detect, endpoints(backends[0].1));
    let destination = &mut config.destinations[0];
    destination.destination.routes = Some(Arc::new(routes));
    destination.backends = backends
        .iter()
        .map(|(name, addresses)| FileBackend {
            service: service(name),
            protocol: Protocol::Detect,
            policy: None,
            endpoints: endpoints(addresses),
        })
        .collect();
    config
}

/// The same for one rule that takes everything.
pub fn ruled(rule: Rule, backends: &[(&str, &[SocketAddr])]) -> FileConfig {
    routed(Routes { rules: vec![rule], http: vec![HttpMatch::default()], ..Routes::default() }, backends)
}

/// An application that answers every request with its own name and what it was asked.
pub async fn teller(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| async move {
                let mut text = format!("{name}\n{} {}\n", request.method(), request.uri());
                for (name, value) in request.headers() {
                    text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
                }
                let response = hyper::Response::builder().header("x-from", name).header("x-secret", "1");
                Ok::<_, Infallible>(response.body(Full::new(Bytes::from(text))).unwrap())
            });
            tokio::spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

/// The name of the application that answered.
pub fn who(got: &Got) -> String {
    assert_eq!(got.status, 200, "{got:?}");
    String::from_utf8_lossy(&got.body).lines().next().unwrap().to_owned()
}

#[tokio::test]
async fn the_first_match_decides_and_names_the_request() {
    let (a, b, c) = (teller("a").await, teller("b").await, teller("c").await);
    let value = |name: &str, value: &str| ValueMatch { name: name.into(), value: TextMatch::Exact(value.into()) };
    let routes = Routes {
        rules: vec![
            rule("exact", vec![backend("a", 1)]),
            rule("fields", vec![backend("b", 1)]),
            rule("rest", vec![backend("c", 1)]),
        ],
        http: vec![
            HttpMatch { path: Some(PathMatch::Exact("/exact".into())), ..HttpMatch::default() },
            HttpMatch { rule: 1, headers: vec![value("x-version", "2")], ..HttpMatch::default() },
            HttpMatch { rule: 1, query: vec![value("v", "2 b")], ..HttpMatch::default() },
            HttpMatch { rule: 1, method: Some("DELETE".into()), ..HttpMatch::default() },
            HttpMatch { rule: 1, hosts: vec!["*.shop".into()], ..HttpMatch::default() },
            HttpMatch { rule: 0, path: Some(PathMatch::Regex("/[0-9]+".into())), ..HttpMatch::default() },
            prefix(2, "/rest"),
        ],
        ..Routes::default()
    };
    let load = Proxy::start(routed(routes, &[("a", &[a]), ("b", &[b]), ("c", &[c])]), None);
    let mut http = Http::one(load.outbound).await;
    let ask = |method: &str, path: &str, host: &str, version: Option<&str>| {
        let request = Request::builder().method(method).uri(path).header("host", host);
        let request = version.iter().fold(request, |request, version| request.header("x-version", *version));
        request.body(Full::default()).unwrap()
    };
    for (request, expect) in [
        (ask("GET", "/exact", "web", None), "a"),
        (ask("GET", "/exact", "web", Some("2")), "a"),
        (ask("GET", "/other", "web", Some("2")), "b"),
        (ask("GET", "/other?x=1&v=2+b", "web", None), "b"),
        (ask("DELETE", "/other", "web", None), "b"),
        (ask("GET", "/other", "x.shop:80", None), "b"),
        (ask("GET", "/17", "web", None), "a"),
        (ask("GET", "/rest/17", "web", None), "c"),
    ] {
        let shown = format!("{request:?}");
        assert_eq!(who(&http.send(request).await), expect, "{shown}");
    }
    let got = http.send(ask("GET", "/restless", "web", None)).await;
    assert_eq!((got.status, got.error()), (404, Some("no-route")));
    for (route, n) in [("exact", 3.0), ("fields", 4.0), ("rest", 1.0), ("/restless", 1.0)] {
        load.expect_metric("mesh_requests_total", &[&format!("route=\"{route}\"")], n).await;
    }
    load.expect_metric("mesh_requests_total", &["error=\"no-route\"", "status=\"404\""], 1.0).await;
}

#[tokio::test]
async fn grpc_calls_are_judged_by_their_own_matches() {
    let (a, b) = (App::start().await, App::start().await);
    let grpc = |rule: usize, path: PathMatch| HttpMatch { rule, path: Some(path), ..HttpMatch::default() };
    let routes = Routes {
        rules: vec![rule("cart", vec![backend("a", 1)]), rule("pages", vec![backend("b", 1)])],
        http: vec![prefix(1, "/")],
        grpc: vec![
            grpc(0, PathMatch::Exact("/shop.Cart/Get".into())),
            grpc(0, PathMatch::Prefix("/shop.Stock".into())),
        ],
        ..Routes::default()
    };
    let load = Proxy::start(routed(routes, &[("a", &[a.address]), ("b", &[b.address])]), None);
    let mut http = Http::two(load.outbound).await;
    assert_eq!(http.grpc("/shop.Cart/Get", "x").await.trailers.unwrap()["grpc-status"], "0");
    assert_eq!(http.grpc("/shop.Stock/Any", "x").await.trailers.unwrap()["grpc-status"], "0");
    let got = http.grpc("/shop.Cart/Put", "x").await;
    assert_eq!((got.status, got.headers["grpc-status"].as_bytes(), got.error()), (200, &b"12"[..], Some("no-route")));
    assert_eq!((a.count(), b.count()), (2, 0));
    assert_eq!(http.get("/page").await.status, 200);
    assert_eq!(b.count(), 1);
    load.expect_metric("mesh_requests_total", &["route=\"cart\"", "grpc_status=\"0\""], 2.0).await;
    load.expect_metric("mesh_requests_total", &["route=\"/shop.Cart/Put\"", "grpc_status=\"12\""], 1.0).await;
}

#[tokio::test]
async fn requests_are_divided_by_weight() {
    let apps = [App::start().await, App::start().await, App::start().await];
    let rule = rule("web", vec![backend("a", 700), backend("b", 300), backend("c", 0)]);
    let backends = [("a", [apps[0].address]), ("b", [apps[1].address]), ("c", [apps[2].address])];
    let backends: Vec<(&str, &[SocketAddr])> = backends.iter().map(|(name, a)| (*name, &a[..])).collect();
    let load = Proxy::start(ruled(rule, &backends), None);
    let mut http = Http::one(load.outbound).await;
    const ALL: usize = 2000;
    for _ in 0..ALL {
        assert_eq!(http.get("/").await.status, 200);
    }
    let share = |app: &App| app.count() as f64 / ALL as f64;
    assert!((share(&apps[0]) - 0.7).abs() < 0.05, "{}", share(&apps[0]));
    assert_eq!(apps[0].count() + apps[1].count(), ALL);
    assert_eq!(apps[2].count(), 0, "nothing goes to weight zero");
}

#[tokio::test]
async fn a_rule_that_leads_nowhere_says_so() {
    let a = teller("a").await;
    let nowhere = RouteBackend { service: None, weight: 1, filters: Vec::new() };
    let routes = Routes {
        rules: vec![
            rule("none", vec![]),
            rule("weightless", vec![backend("a", 0)]),
            rule("missing", vec![nowhere]),
            rule("empty", vec![backend("empty", 1)]),
            rule("untold", vec![backend("untold", 1)]),
        ],
        http: vec![
            prefix(0, "/none"),
            prefix(1, "/weightless"),
            prefix(2, "/missing"),
            prefix(3, "/empty"),
            prefix(4, "/untold"),
        ],
        ..Routes::default()
    };
    let load = Proxy::start(routed(routes, &[("a", &[a]), ("empty", &[])]), None);
    let mut http = Http::one(load.outbound).await;
    for (path, expect) in [
        ("/none", (500, "no-backend")),
        ("/weightless", (500, "no-backend")),
        ("/missing", (500, "no-backend")),
        ("/empty", (503, "no-endpoints")),
        ("/untold", (503, "no-endpoints")),
    ] {
        let got = http.get(path).await;
        assert_eq!((got.status, got.error().unwrap()), expect, "{path}");
    }
    let mut http = Http::two(load.outbound).await;
    assert_eq!(http.grpc("/none", "x").await.headers["grpc-status"], "13");
}

#[tokio::test]
async fn a_change_of_routes_takes_effect_and_a_bad_one_does_not() {
    let (a, b) = (teller("a").await, teller("b").await);
    let backends: [(&str, &[SocketAddr]); 2] = [("a", &[a]), ("b", &[b])];
    let load = Proxy::start(ruled(rule("web", vec![backend("a", 1)]), &backends), None);
    let mut http = Http::one(load.outbound).await;
    assert_eq!(who(&http.get("/").await), "a");
    load.rewrite(ruled(rule("web", vec![backend("b", 1)]), &backends));
    let changed = async {
        while who(&http.get("/").await) != "b" {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, changed).await.unwrap();
    let bad = HttpMatch { path: Some(PathMatch::Regex("(".into())), ..HttpMatch::default() };
    let routes = Routes { rules: vec![rule("web", vec![backend("a", 1)])], http: vec![bad], ..Routes::default() };
    load.rewrite(routed(routes, &backends));
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert_eq!(who(&http.get("/").await), "b", "what was there stays in use");
    let config = load.admin("/config").await;
    assert!(config.contains("\"backends\"") && config.contains("\"rules\""), "{config}");
}

/// A server that says its name to everybody who says something.
async fn greeter(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut said = [0; 4096];
                let _ = stream.read(&mut said).await;
                let _ = stream.write_all(name.as_bytes()).await;
            });
        }
    });
    address
}

async fn hear(proxy: &Proxy, word: &[u8]) -> String {
    let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
    stream.write_all(word).await.unwrap();
    let mut heard = String::new();
    // A connection that no rule takes is reset.
    let _ = tokio::time::timeout(SOON, stream.read_to_string(&mut heard)).await.unwrap();
    heard
}

#[tokio::test]
async fn tls_is_led_by_its_server_name_and_the_rest_by_the_tcp_rule() {
    let (a, b) = (greeter("a").await, greeter("b").await);
    let tls = |rule, host: &str| TlsMatch { rule, hosts: vec![host.into()] };
    let routes = |host: &str| Routes {
        rules: vec![rule("sni", vec![backend("a", 1)]), rule("tcp", vec![backend("b", 1)])],
        tls: vec![tls(0, host)],
        ..Routes::default()
    };
    let backends: [(&str, &[SocketAddr]); 2] = [("a", &[a]), ("b", &[b])];
    let hello = client_hello(&[]);
    let load = Proxy::start(routed(Routes { tcp: Some(1), ..routes("*.org") }, &backends), None);
    assert_eq!(hear(&load, &hello).await, "a");
    assert_eq!(hear(&load, b"\x00\x01binary\r\n").await, "b");
    load.expect_metric("mesh_tcp_opened_total", &["route=\"sni\"", "tls=\"passthrough\""], 1.0).await;
    load.expect_metric("mesh_tcp_opened_total", &["route=\"tcp\""], 1.0).await;
    let load = Proxy::start(routed(routes("other.example"), &backends), None);
    assert_eq!(hear(&load, &hello).await, "");
    load.expect_metric("mesh_tcp_failures_total", &["error=\"no-route\""], 1.0).await;
}
