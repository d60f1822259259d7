//! Session persistence: a client stays at its endpoint as long as that is there.

use crate::route::{backend, rule, ruled, teller, who};
use crate::traffic::policy;
use crate::world::*;
use http_body_util::Full;
use hyper::Request;
use mesh_api::route::{Rule, SessionPersistence};
use std::net::SocketAddr;
use std::sync::Arc;

fn with(in_header: bool) -> Rule {
    let session =
        Some(SessionPersistence { name: "sid".into(), in_header, absolute: None, idle: None, permanent: false });
    Rule { session, ..rule("web", vec![backend("a", 1), backend("b", 1)]) }
}

#[tokio::test]
async fn a_client_stays_where_it_was_by_cookie_or_field() {
    let (a, b) = (teller("a").await, teller("b").await);
    let backends: [(&str, &[SocketAddr]); 2] = [("a", &[a]), ("b", &[b])];
    for in_header in [false, true] {
        let load = Proxy::start(ruled(with(in_header), &backends), None);
        let mut http = Http::one(load.outbound).await;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..10 {
            let first = http.get("/").await;
            seen.insert(who(&first));
            let (field, token) = if in_header {
                ("sid", first.headers["sid"].to_str().unwrap().to_owned())
            } else {
                let cookie = first.headers["set-cookie"].to_str().unwrap();
                assert!(cookie.starts_with("sid=") && cookie.contains("HttpOnly"), "{cookie}");
                ("cookie", format!("other=1; {}", cookie.split(';').next().unwrap()))
            };
            for _ in 0..5 {
                let request = Request::get("/").header("host", "web").header(field, &token);
                let got = http.send(request.body(Full::default()).unwrap()).await;
                assert_eq!(who(&got), who(&first));
                assert!(!got.headers.contains_key("set-cookie"), "it is no news");
            }
        }
        assert_eq!(seen.len(), 2, "without a token, clients are divided");
    }
}

#[tokio::test]
async fn a_session_whose_endpoint_is_gone_begins_anew() {
    let (a, b) = (teller("a").await, teller("b").await);
    let before = Proxy::start(ruled(with(true), &[("a", &[a]), ("b", &[])]), None);
    let mut http = Http::one(before.outbound).await;
    let token = loop {
        let got = http.get("/").await;
        if got.status == 200 {
            break got.headers["sid"].clone();
        }
    };
    let after = Proxy::start(ruled(with(true), &[("a", &[b]), ("b", &[b])]), None);
    let request = Request::get("/").header("host", "web").header("sid", &token).body(Full::default()).unwrap();
    let got = Http::one(after.outbound).await.send(request).await;
    assert_eq!(who(&got), "b");
    assert_ne!(got.headers["sid"], token);
}

#[tokio::test]
async fn a_session_whose_endpoint_is_ejected_begins_anew() {
    let (a, b) = (App::start().await, App::start().await);
    let session = with(true).session;
    let rule = Rule { session, ..rule("web", vec![backend("a", 1)]) };
    let mut config = ruled(rule, &[("a", &[a.address, b.address])]);
    let breaker = policy(r#"{"breaker": {"consecutiveFailures": 1, "ejection": "60s"}}"#);
    config.destinations[0].backends[0].policy = Some(Arc::new(breaker));
    let load = Proxy::start(config, None);
    let mut http = Http::one(load.outbound).await;
    let token = http.get("/").await.headers["sid"].clone();
    let mut call = async |path: &str| {
        let request = Request::get(path).header("host", "web").header("sid", &token);
        http.send(request.body(Full::default()).unwrap()).await
    };
    assert_eq!(call("/fail").await.status, 500);
    let got = call("/").await;
    assert_eq!(got.status, 200);
    assert_ne!(got.headers["sid"], token);
    assert_eq!(a.count().max(b.count()), 2);
}
