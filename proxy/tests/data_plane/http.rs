//! HTTP through two proxies: keep-alive, streaming, trailers, upgrades, balancing, and the answers the mesh makes
//! itself.

use crate::world::*;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper_util::rt::TokioIo;
use mesh_api::Protocol;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn http1_is_kept_alive_encrypted_and_counted_once() {
    let (load, web, app) = mesh().await;
    let mut http = Http::one(load.outbound).await;
    for path in ["/products/1", "/products/2?x=y", "/fail"] {
        let got = http.get(path).await;
        assert_eq!(got.status, if path == "/fail" { 500 } else { 200 });
        assert_eq!(got.error(), None, "an application cannot forge the mesh's header");
    }
    assert_eq!(app.count(), 3);
    for (proxy, direction) in [(&load, "direction=\"outbound\""), (&web, "direction=\"inbound\"")] {
        let labels = [direction, "tls=\"mutual\"", "method=\"GET\""];
        let with = |more: &'static str| [&labels[..], &[more]].concat();
        proxy.expect_metric("mesh_requests_total", &with("route=\"/products/{id}\""), 2.0).await;
        proxy.expect_metric("mesh_requests_total", &with("status=\"500\""), 1.0).await;
        proxy.expect_metric("mesh_requests_total", &[], 3.0).await;
        proxy.expect_metric("mesh_request_duration_seconds_count", &[], 3.0).await;
    }
    load.expect_metric("mesh_requests_total", &["dst=\"shop/deployment/web\"", "service=\"shop/web:80\""], 3.0).await;
    web.expect_metric("mesh_requests_total", &["src=\"shop/serviceaccount/load\""], 3.0).await;
    web.expect_metric("mesh_access_decisions_total", &["decision=\"allow\"", "tls=\"mutual\""], 1.0).await;
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let (load, _web, _app) = mesh().await;
    let big = Bytes::from(vec![7u8; 3_000_000]);
    for mut http in [Http::one(load.outbound).await, Http::two(load.outbound).await] {
        let uri = if matches!(http, Http::One(_)) { "/echo" } else { "http://web/echo" };
        let mut request = Request::post(uri).body(Full::new(big.clone())).unwrap();
        if matches!(http, Http::One(_)) {
            request.headers_mut().insert("host", "web".parse().unwrap());
        }
        assert!(http.send(request).await.body == big);
    }
}

#[tokio::test]
async fn grpc_keeps_its_trailers() {
    let (load, web, _app) = mesh().await;
    let mut http = Http::two(load.outbound).await;
    let got = http.grpc("/shop.v1.Cart/Add", "payload").await;
    assert_eq!((got.status, &got.body[..]), (200, &b"payload"[..]));
    assert_eq!(got.trailers.unwrap()["grpc-status"], "0");
    assert_eq!(http.grpc("/shop.v1.Cart/Fail", "x").await.trailers.unwrap()["grpc-status"], "13");
    for proxy in [&load, &web] {
        let labels = ["tls=\"mutual\"", "route=\"/shop.v1.Cart/Add\"", "grpc_status=\"0\""];
        proxy.expect_metric("mesh_requests_total", &labels, 1.0).await;
        proxy.expect_metric("mesh_requests_total", &["grpc_status=\"13\""], 1.0).await;
        proxy.expect_metric("mesh_requests_total", &[], 2.0).await;
    }
}

#[tokio::test]
async fn plain_http2_shares_one_connection() {
    let (load, web, app) = mesh().await;
    let http = Http::two(load.outbound).await;
    let Http::Two(sender) = http else { unreachable!() };
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..40 {
        let mut http = Http::Two(sender.clone());
        calls.spawn(async move { http.get(&format!("/items/{i}")).await.status });
    }
    assert!(calls.join_all().await.iter().all(|status| *status == 200));
    assert_eq!(app.count(), 40);
    web.expect_metric("mesh_access_decisions_total", &["decision=\"allow\""], 1.0).await;
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let (load, web, _app) = mesh().await;
    let mut http = Http::one(load.outbound).await;
    let request =
        Request::get("/ws").header("host", "web").header("connection", "Upgrade").header("upgrade", "reverse");
    let mut response = http.raw(request.body(Full::default()).unwrap()).await;
    assert_eq!((response.status().as_u16(), &response.headers()["upgrade"]), (101, &"reverse".parse().unwrap()));
    let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    io.write_all(b"abcd").await.unwrap();
    let mut word = [0; 4];
    io.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"dcba");
    web.expect_metric("mesh_tcp_bytes_total", &["flow=\"read\""], 4.0).await;
    web.expect_metric("mesh_requests_total", &["status=\"101\""], 1.0).await;
}

#[tokio::test]
async fn fields_of_one_hop_stay_behind() {
    let (load, _web, _app) = mesh().await;
    let mut http = Http::one(load.outbound).await;
    let request =
        Request::get("/headers").header("host", "web").header("connection", "x-secret").header("x-secret", "1");
    let got = http.send(request.header("x-open", "1").body(Full::default()).unwrap()).await;
    let seen = String::from_utf8_lossy(&got.body);
    assert!(seen.contains("x-open") && !seen.contains("x-secret"), "{seen}");
}

#[tokio::test]
async fn the_slow_endpoint_gets_little() {
    let (fast, slow) = (App::start().await, App::slow(Duration::from_millis(60)).await);
    let endpoints = vec![endpoint(fast.address, None), endpoint(slow.address, None)];
    let load = Proxy::start(towards(Protocol::Detect, endpoints), None);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let address = load.outbound;
        clients.spawn(async move {
            let mut http = Http::one(address).await;
            for _ in 0..50 {
                assert_eq!(http.get("/").await.status, 200);
            }
        });
    }
    clients.join_all().await;
    assert_eq!(fast.count() + slow.count(), 300);
    assert!(slow.count() < 75, "the slow one got {}", slow.count());
    load.expect_metric("mesh_requests_total", &["tls=\"plain\""], 300.0).await;
}

#[tokio::test]
async fn a_dead_endpoint_costs_a_retry_and_no_request() {
    let app = App::start().await;
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let endpoints = vec![endpoint(app.address, None), endpoint(dead, None)];
    let load = Proxy::start(towards(Protocol::Http1, endpoints), None);
    let mut http = Http::one(load.outbound).await;
    for _ in 0..30 {
        assert_eq!(http.get("/").await.status, 200);
    }
    load.expect_metric("mesh_requests_total", &["status=\"200\""], 30.0).await;
    assert!(load.metric("mesh_retries_total", &[]).await >= 1.0);
}

#[tokio::test]
async fn what_never_reached_an_application_goes_to_another_pod() {
    let authority = Authority::new();
    let app = App::start().await;
    let ended = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (one, two) = (server(&authority, "web", app.address), server(&authority, "web", ended));
    let endpoints = [&one, &two].map(|proxy| endpoint(proxy.inbound, Some(account("web"))));
    let load = client(&authority, endpoints.to_vec());
    for mut http in [Http::one(load.outbound).await, Http::two(load.outbound).await] {
        for _ in 0..10 {
            assert_eq!(http.get("/").await.status, 200);
        }
    }
    assert!(two.metric("mesh_requests_total", &["error=\"connect-failed\""]).await >= 1.0);
    load.expect_metric("mesh_requests_total", &["status=\"200\"", "error=\"\""], 20.0).await;
}

#[tokio::test]
async fn probes_are_told_from_traffic() {
    let (_load, web, _app) = mesh().await;
    let mut http = Http::one(web.inbound).await;
    let probe = Request::get("/health").header("host", "web").header("user-agent", "kube-probe/1.34");
    assert_eq!(http.send(probe.body(Full::default()).unwrap()).await.status, 200);
    drop(TcpStream::connect(web.inbound).await.unwrap());
    web.expect_metric("mesh_requests_total", &["route=\"probe\"", "tls=\"plain\""], 1.0).await;
    web.expect_metric("mesh_tcp_opened_total", &["route=\"probe\"", "tls=\"plain\""], 1.0).await;
}

#[tokio::test]
async fn a_kept_connection_that_the_server_closed_costs_nothing() {
    // Answers one request a connection and closes it without saying so.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                // Closes when the next request has arrived, the worst moment.
                let _ = stream.read(&mut buffer).await;
            });
        }
    });
    let load = Proxy::start(towards(Protocol::Detect, vec![endpoint(address, None)]), None);
    let mut http = Http::one(load.outbound).await;
    for _ in 0..5 {
        assert_eq!(http.get("/").await.status, 200);
    }
}

#[tokio::test]
async fn the_mesh_explains_its_own_answers() {
    let load = Proxy::start(towards(Protocol::Detect, vec![]), None);
    let got = Http::one(load.outbound).await.get("/").await;
    assert_eq!((got.status, got.error()), (503, Some("no-endpoints")));
    assert!(String::from_utf8_lossy(&got.body).contains("kubectl get endpointslices"));
    let got = Http::two(load.outbound).await.grpc("/a.B/C", "x").await;
    assert_eq!(
        (got.status, got.error(), &got.headers["grpc-status"]),
        (200, Some("no-endpoints"), &"14".parse().unwrap())
    );
    load.expect_metric("mesh_requests_total", &["error=\"no-endpoints\""], 2.0).await;

    let lost = Proxy::start(Default::default(), None);
    let got = Http::one(lost.outbound).await.get("/").await;
    assert_eq!((got.status, got.error()), (508, Some("loop-detected")));

    let mut stream = TcpStream::connect(load.outbound).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");

    let mut stream = TcpStream::connect(load.outbound).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n").await.unwrap();
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
    load.expect_metric("mesh_requests_total", &["error=\"invalid-request\""], 2.0).await;
}

#[tokio::test]
async fn answers_without_a_body_keep_their_head() {
    let (load, _web, _app) = mesh().await;
    let mut http = Http::one(load.outbound).await;
    for _ in 0..3 {
        let got = http.send(Request::head("/").header("host", "web").body(Full::default()).unwrap()).await;
        assert_eq!((got.status, &got.headers["content-length"], got.body.len()), (200, &"5".parse().unwrap(), 0));
        let got = http.get("/empty").await;
        assert_eq!((got.status, got.body.len()), (204, 0));
    }
    load.expect_metric("mesh_requests_total", &["tls=\"mutual\""], 6.0).await;
    load.expect_metric("mesh_requests_total", &["status=\"204\""], 3.0).await;
}

#[tokio::test]
async fn a_broken_configuration_changes_nothing() {
    let (one, two) = (App::start().await, App::start().await);
    let load = Proxy::start(towards(Protocol::Detect, vec![endpoint(one.address, None)]), None);
    assert_eq!(Http::one(load.outbound).await.get("/").await.status, 200);
    std::fs::write(&load.config, "destinations: 7").unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(Http::one(load.outbound).await.get("/").await.status, 200);
    assert_eq!((one.count(), two.count()), (2, 0));
    load.rewrite(towards(Protocol::Detect, vec![endpoint(two.address, None)]));
    let switched = async {
        while two.count() == 0 {
            assert_eq!(Http::one(load.outbound).await.get("/").await.status, 200);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, switched).await.unwrap();
}

#[tokio::test]
async fn the_admin_port_answers() {
    let (load, _web, _app) = mesh().await;
    assert!(load.admin("/live").await.starts_with("HTTP/1.1 200"));
    assert!(load.admin("/ready").await.starts_with("HTTP/1.1 200"));
    let config = load.admin("/config").await;
    assert!(config.contains("spiffe://cluster.local/ns/shop/sa/load") && !config.contains("PRIVATE"), "{config}");
    assert!(load.admin("/metrics").await.contains("mesh_identity_expiry_timestamp_seconds"));
    assert!(load.admin("/nothing").await.starts_with("HTTP/1.1 404"));
}
