//! Retries: what is sent again, to whom, how often, and what is counted.

use crate::route::{backend, rule, ruled};
use crate::world::*;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_api::Millis;
use mesh_api::retry::{Retry, RetryBudget};
use mesh_api::route::Rule;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;

/// An application that fails the first requests, in the way their path says, and then answers with what it was sent.
pub async fn moody(failures: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let counter = counter.clone();
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let fails = counter.fetch_add(1, Ordering::SeqCst) < failures;
                async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                    let response = Response::builder();
                    let (response, body) = match path.as_str() {
                        "/reset" if fails => return Err("broken"),
                        "/hang" if fails => std::future::pending().await,
                        "/grpc" if fails => {
                            let response = response.header("content-type", "application/grpc");
                            (response.header("grpc-status", "14"), Bytes::new())
                        }
                        "/later" if fails => (response.status(503).header("retry-after", "3600"), Bytes::new()),
                        _ if fails => (response.status(503), Bytes::new()),
                        _ => (response, body),
                    };
                    Ok::<_, &'static str>(response.body(Full::new(body)).unwrap())
                }
            });
            tokio::spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, seen)
}

fn retry(attempts: u32) -> Retry {
    let backoff = Some(Millis(5));
    Retry { attempts, codes: vec![503], grpc_codes: vec![14], backoff, ..Retry::default() }
}

fn with(retry: Retry) -> Rule {
    Rule { retry: Some(retry), ..rule("web", vec![backend("a", 1)]) }
}

#[tokio::test]
async fn what_failed_is_sent_again_with_its_body() {
    for (path, attempts) in [("/status", 2), ("/reset", 2), ("/hang", 2)] {
        let (app, seen) = moody(2).await;
        let policy = Retry { per_try_timeout: Some(Millis(700)), unsafe_methods: true, ..retry(attempts) };
        let load = Proxy::start(ruled(with(policy), &[("a", &[app])]), None);
        let mut http = Http::one(load.outbound).await;
        let got = http.post(path, "payload").await;
        assert_eq!((got.status, &got.body[..]), (200, &b"payload"[..]), "{path}");
        assert_eq!(seen.load(Ordering::SeqCst), 3, "{path}");
        load.expect_metric("mesh_retries_total", &["outcome=\"success\""], 1.0).await;
        load.expect_metric("mesh_retries_total", &["outcome=\"failure\""], 1.0).await;
        load.expect_metric("mesh_attempts_total", &["outcome=\"failure\""], 2.0).await;
        load.expect_metric("mesh_requests_total", &["status=\"200\""], 1.0).await;
    }
}

#[tokio::test]
async fn calls_are_sent_again_by_their_status() {
    let (app, seen) = moody(1).await;
    let load = Proxy::start(ruled(with(Retry { unsafe_methods: true, ..retry(1) }), &[("a", &[app])]), None);
    let mut http = Http::two(load.outbound).await;
    assert_eq!(&http.grpc("/grpc", "again").await.body[..], b"again");
    assert_eq!(seen.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_may_not_be_repeated_is_not() {
    for (path, policy, post) in [
        ("/status", retry(3), true),
        ("/status", retry(0), false),
        ("/later", retry(3), false),
        ("/reset", Retry { resets: false, ..retry(3) }, false),
        ("/status", Retry { codes: vec![500], ..retry(3) }, false),
        (
            "/status",
            Retry { budget: Some(RetryBudget { percent: 0, min_per_second: 0, ..RetryBudget::default() }), ..retry(3) },
            false,
        ),
    ] {
        let (app, seen) = moody(9).await;
        let load = Proxy::start(ruled(with(policy.clone()), &[("a", &[app])]), None);
        let mut http = Http::one(load.outbound).await;
        let got = if post { http.post(path, "x").await } else { http.get(path).await };
        assert!(got.status >= 500, "{policy:?}");
        assert_eq!(seen.load(Ordering::SeqCst), 1, "{path} {policy:?}");
    }
}

#[tokio::test]
async fn a_body_past_the_cap_is_sent_once() {
    let (app, seen) = moody(1).await;
    let policy = Retry { unsafe_methods: true, body_bytes: Some(4), ..retry(3) };
    let load = Proxy::start(ruled(with(policy), &[("a", &[app])]), None);
    let mut http = Http::one(load.outbound).await;
    assert_eq!(http.post("/status", "more than four").await.status, 503);
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    load.expect_metric("mesh_retries_withheld_total", &["reason=\"body\""], 1.0).await;
    assert_eq!(http.post("/status", "four").await.status, 200);
}

#[tokio::test]
async fn another_try_goes_to_another_endpoint() {
    let (bad, seen) = moody(usize::MAX).await;
    let good = App::start().await;
    let load = Proxy::start(ruled(with(retry(1)), &[("a", &[bad, good.address])]), None);
    let mut http = Http::one(load.outbound).await;
    for _ in 0..20 {
        assert_eq!(http.get("/").await.status, 200);
    }
    assert!(seen.load(Ordering::SeqCst) <= 20 && good.count() == 20);
}
