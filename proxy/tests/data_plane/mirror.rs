//! Mirrors: copies of requests, whose answers nobody sees.

use crate::route::{backend, rule, ruled, service};
use crate::traffic::policy;
use crate::world::*;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use mesh_api::route::{Filter, Mirror, Rule};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn mirror(to: &str, numerator: u32, denominator: u32) -> Filter {
    Filter::Mirror(Mirror { service: service(to), numerator, denominator })
}

async fn reaches(app: &App, n: usize) {
    let reached = async {
        while app.count() < n {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, reached).await.unwrap_or_else(|_| panic!("{} copies of {n}", app.count()));
}

#[tokio::test]
async fn copies_go_to_every_mirror_with_their_body() {
    let (app, first, second) = (App::start().await, App::start().await, App::start().await);
    let rule = Rule { filters: vec![mirror("b", 1, 1), mirror("c", 1, 1)], ..rule("web", vec![backend("a", 1)]) };
    let backends: [(&str, &[std::net::SocketAddr]); 3] =
        [("a", &[app.address]), ("b", &[first.address]), ("c", &[second.address])];
    let load = Proxy::start(ruled(rule, &backends), None);
    for mut http in [Http::one(load.outbound).await, Http::two(load.outbound).await] {
        assert_eq!(http.get("/x").await.status, 200);
        assert_eq!(&http.post("/echo", "payload").await.body[..], b"payload");
    }
    for mirror in [&first, &second] {
        reaches(mirror, 4).await;
    }
    assert_eq!(app.count(), 4);
    load.expect_metric("mesh_mirrored_requests_total", &["outcome=\"answered\""], 8.0).await;
    load.expect_metric("mesh_requests_total", &[], 4.0).await;
}

#[tokio::test]
async fn a_share_is_copied_and_a_dead_mirror_hurts_nobody() {
    let (app, some) = (App::start().await, App::start().await);
    let filters = vec![mirror("b", 1, 4), mirror("dead", 1, 1)];
    let rule = Rule { filters, ..rule("web", vec![backend("a", 1)]) };
    let dead = "127.0.0.1:1".parse().unwrap();
    let backends: [(&str, &[std::net::SocketAddr]); 3] =
        [("a", &[app.address]), ("b", &[some.address]), ("dead", &[dead])];
    let load = Proxy::start(ruled(rule, &backends), None);
    let mut http = Http::one(load.outbound).await;
    for _ in 0..200 {
        assert_eq!(http.get("/x").await.status, 200);
    }
    load.expect_metric("mesh_mirrored_requests_total", &["outcome=\"failed\""], 200.0).await;
    assert!((20..=80).contains(&some.requests.load(Ordering::Relaxed)), "{}", some.count());
}

#[tokio::test]
async fn what_fails_on_purpose_is_not_copied() {
    let (app, copies) = (App::start().await, App::start().await);
    let faults = r#"{"faults": [{"when": {"headers": [{"name": "x-abort"}]}, "abort": {"status": 418}}]}"#;
    let filters = vec![mirror("b", 1, 1)];
    let rule = Rule { filters, policy: Some(Arc::new(policy(faults))), ..rule("web", vec![backend("a", 1)]) };
    let load = Proxy::start(ruled(rule, &[("a", &[app.address]), ("b", &[copies.address])]), None);
    let mut http = Http::one(load.outbound).await;
    for _ in 0..5 {
        let request = Request::get("/x").header("host", "web").header("x-abort", "1");
        assert_eq!(http.send(request.body(Full::default()).unwrap()).await.status, 418);
    }
    assert_eq!(http.get("/x").await.status, 200);
    load.expect_metric("mesh_mirrored_requests_total", &["outcome=\"answered\""], 1.0).await;
    assert_eq!((app.count(), copies.count()), (1, 1));
}

#[tokio::test]
async fn too_long_a_body_is_not_copied() {
    let (app, copies) = (App::start().await, App::start().await);
    let rule = Rule { filters: vec![mirror("b", 1, 1)], ..rule("web", vec![backend("a", 1)]) };
    let load = Proxy::start(ruled(rule, &[("a", &[app.address]), ("b", &[copies.address])]), None);
    let body = Full::new(Bytes::from(vec![b'x'; 300_000]));
    let request = Request::post("/echo").header("host", "web").body(body).unwrap();
    assert_eq!(Http::one(load.outbound).await.send(request).await.body.len(), 300_000);
    load.expect_metric("mesh_mirrored_requests_total", &["outcome=\"left_out\""], 1.0).await;
    assert_eq!(copies.count(), 0);
}
