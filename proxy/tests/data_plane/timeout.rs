//! Timeouts: what the rule allows, and what the caller does.

use crate::route::{backend, rule, ruled};
use crate::world::*;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::Request;
use hyper::body::Frame;
use mesh_api::Millis;
use mesh_api::route::Rule;
use mesh_api::timeout::Timeouts;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn with(timeouts: Timeouts) -> Rule {
    Rule { timeouts, ..rule("web", vec![backend("a", 1)]) }
}

const SHORT: Option<Millis> = Some(Millis(300));

#[tokio::test]
async fn a_request_is_given_up_after_its_time() {
    let app = App::start().await;
    for timeouts in [
        Timeouts { request: SHORT, ..Timeouts::default() },
        Timeouts { backend_request: SHORT, ..Timeouts::default() },
        Timeouts { response_head: SHORT, ..Timeouts::default() },
    ] {
        let load = Proxy::start(ruled(with(timeouts), &[("a", &[app.address])]), None);
        let began = Instant::now();
        let got = Http::one(load.outbound).await.get("/never").await;
        assert_eq!((got.status, got.error()), (504, Some("timeout")), "{timeouts:?}");
        assert!(began.elapsed() >= Duration::from_millis(300));
        let got = Http::two(load.outbound).await.get("/fast").await;
        assert_eq!(got.status, 200, "{timeouts:?}");
        load.expect_metric("mesh_requests_total", &["error=\"timeout\"", "status=\"504\"", "route=\"web\""], 1.0).await;
    }
}

#[tokio::test]
async fn callers_tighten_a_limit_and_never_loosen_it() {
    let app = App::start().await;
    let limit = Timeouts { request: Some(Millis(600)), ..Timeouts::default() };
    for (timeouts, asked, expect) in [
        (Timeouts::default(), "200ms", "200ms"),
        (limit, "200ms", "200ms"),
        (limit, "1h", "600ms"),
        (limit, "nonsense", "600ms"),
    ] {
        let load = Proxy::start(ruled(with(timeouts), &[("a", &[app.address])]), None);
        let request = Request::get("/never").header("host", "web").header("mesh-timeout", asked);
        let began = Instant::now();
        let got = Http::one(load.outbound).await.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(got.error(), Some("timeout"));
        let expect: Millis = expect.parse().unwrap();
        assert!(began.elapsed() >= expect.duration(), "{asked}");
    }
}

/// An application that begins its answer and then falls silent.
async fn stammerer() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
                tokio::time::sleep(SOON).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn an_answer_that_falls_silent_is_broken_off() {
    let app = stammerer().await;
    for timeouts in [
        Timeouts { idle: SHORT, ..Timeouts::default() },
        Timeouts { request: SHORT, ..Timeouts::default() },
        Timeouts { backend_request: SHORT, ..Timeouts::default() },
    ] {
        let load = Proxy::start(ruled(with(timeouts), &[("a", &[app])]), None);
        let request = Request::get("/").header("host", "web").body(Full::default()).unwrap();
        let response = Http::one(load.outbound).await.raw(request).await;
        assert_eq!(response.status(), 200);
        let body = tokio::time::timeout(SOON, response.into_body().collect()).await.expect("it ends");
        assert!(body.is_err(), "what is cut off is not passed on as whole");
        load.expect_metric("mesh_requests_total", &["error=\"timeout\""], 1.0).await;
    }
}

#[tokio::test]
async fn an_upload_that_falls_silent_is_given_up() {
    let app = App::start().await;
    let timeouts = Timeouts { idle: SHORT, ..Timeouts::default() };
    let load = Proxy::start(ruled(with(timeouts), &[("a", &[app.address])]), None);
    let io = hyper_util::rt::TokioIo::new(tokio::net::TcpStream::connect(load.outbound).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let pieces = futures::stream::unfold(true, |first| async move {
        if !first {
            std::future::pending::<()>().await;
        }
        Some((Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"abc"))), false))
    });
    let body = StreamBody::new(Box::pin(pieces));
    let request = Request::post("/headers").header("host", "web").header("content-length", "10").body(body).unwrap();
    let sent = tokio::time::timeout(SOON, sender.send_request(request)).await.expect("an answer").unwrap();
    assert!([200, 504].contains(&sent.status().as_u16()));
    let request = Request::post("/echo").header("host", "web");
    let got = Http::one(load.outbound).await.send(request.body(Full::new(Bytes::from("x"))).unwrap()).await;
    assert_eq!(got.status, 200);
}
