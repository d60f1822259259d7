//! What a TrafficPolicy makes a proxy do: balancing, circuit breaking, limits, rate limits and faults, configured by file.

use crate::world::*;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use mesh_api::config::{FileConfig, PortPolicy};
use mesh_api::{Endpoint, Protocol, TrafficPolicy};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

pub fn policy(json: &str) -> TrafficPolicy {
    let policy: TrafficPolicy = serde_json::from_str(json).unwrap();
    policy.check().unwrap();
    policy
}

/// A proxy whose outbound side leads to `endpoints` under a policy.
fn under(json: &str, endpoints: Vec<Endpoint>) -> Proxy {
    let mut config = towards(Protocol::Detect, endpoints);
    config.destinations[0].destination.policy = Some(Arc::new(policy(json)));
    Proxy::start(config, None)
}

/// One that stands before `app` and has rate limits.
fn guarded(json: &str, app: &App) -> Proxy {
    let rate_limits = policy(json).rate_limits.into_iter().map(Into::into).collect();
    let ports = [(app.address.port(), PortPolicy { rate_limits, ..PortPolicy::default() })];
    let mut config = FileConfig { inbound_default: Some(app.address), ..FileConfig::default() };
    config.inbound.ports = ports.into();
    Proxy::start(config, None)
}

async fn apps<const N: usize>() -> [App; N] {
    let mut apps = Vec::new();
    for _ in 0..N {
        apps.push(App::start().await);
    }
    apps.try_into().ok().unwrap()
}

fn endpoints(apps: &[App]) -> Vec<Endpoint> {
    apps.iter().map(|app| endpoint(app.address, None)).collect()
}

fn with(path: &str, name: &str, value: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "web").header(name, value).body(Full::default()).unwrap()
}

#[tokio::test]
async fn round_robin_gives_each_its_turn() {
    let apps = apps::<3>().await;
    let load = under(r#"{"balance": {"algorithm": "RoundRobin"}}"#, endpoints(&apps));
    let mut http = Http::one(load.outbound).await;
    for _ in 0..30 {
        assert_eq!(http.get("/").await.status, 200);
    }
    assert_eq!(apps.each_ref().map(App::count), [10, 10, 10]);
}

#[tokio::test]
async fn a_key_stays_at_its_endpoint() {
    for (algorithm, hash, name) in [
        ("RingHash", r#"{"on": "Header", "name": "x-user"}"#, "x-user"),
        ("Maglev", r#"{"on": "Cookie", "name": "user"}"#, "cookie"),
    ] {
        let apps = apps::<4>().await;
        let balance = format!(r#"{{"balance": {{"algorithm": "{algorithm}", "hash": {hash}}}}}"#);
        let load = under(&balance, endpoints(&apps));
        let mut http = Http::one(load.outbound).await;
        for user in 0..20 {
            let value = if name == "cookie" { format!("a=b; user={user}") } else { user.to_string() };
            let before: Vec<usize> = apps.iter().map(App::count).collect();
            for _ in 0..5 {
                assert_eq!(http.send(with("/", name, &value)).await.status, 200);
            }
            let grown: Vec<usize> = apps.iter().zip(before).map(|(app, before)| app.count() - before).collect();
            assert!(grown.contains(&5), "{algorithm}, user {user}: {grown:?}");
        }
        assert!(apps.iter().filter(|app| app.count() > 0).count() > 1, "{algorithm} uses several endpoints");
    }
}

#[tokio::test]
async fn the_own_zone_is_preferred() {
    let apps = apps::<4>().await;
    let mut endpoints = endpoints(&apps);
    for (at, endpoint) in endpoints.iter_mut().enumerate() {
        endpoint.zone = Some(if at < 2 { "a" } else { "b" }.to_owned());
    }
    let mut config = towards(Protocol::Detect, endpoints);
    config.inbound.zone = Some("b".to_owned());
    config.destinations[0].destination.policy = Some(Arc::new(policy(r#"{"balance": {"zone": {}}}"#)));
    let load = Proxy::start(config, None);
    let mut http = Http::one(load.outbound).await;
    for _ in 0..20 {
        assert_eq!(http.get("/").await.status, 200);
    }
    assert_eq!(apps[0].count() + apps[1].count(), 0);
}

#[tokio::test]
async fn an_endpoint_that_fails_is_ejected_tried_out_and_taken_back() {
    let good = App::start().await;
    // Nobody listens there yet.
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = away.local_addr().unwrap();
    drop(away);
    let ends = vec![endpoint(good.address, None), endpoint(address, None)];
    let load = under(
        r#"{"balance": {"algorithm": "RoundRobin"},
            "breaker": {"consecutiveFailures": 2, "ejection": "500ms", "maxEjection": "500ms", "probes": 1}}"#,
        ends,
    );
    let mut http = Http::one(load.outbound).await;
    for _ in 0..10 {
        assert_eq!(http.get("/").await.status, 200);
    }
    let address = format!("endpoint=\"{address}\"");
    load.expect_metric("mesh_endpoint_state", &[&address], 0.0).await;
    let shown = load.admin("/config").await;
    assert!(shown.contains("\"circuit\": \"open\"") || shown.contains("\"circuit\": \"half_open\""), "{shown}");
    // It comes up; a probe finds out.
    let back = App::start_at(address.split('"').nth(1).unwrap().parse().unwrap()).await;
    let recovered = async {
        while load.metric("mesh_endpoint_state", &[&address]).await == 0.0 {
            assert_eq!(http.get("/").await.status, 200);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, recovered).await.expect("the endpoint is taken back");
    assert!(back.count() > 0);
}

#[tokio::test]
async fn with_a_floor_of_zero_the_circuit_opens() {
    let app = App::start().await;
    for (floor, expect) in [(0, Some("circuit-open")), (1, None)] {
        let breaker = format!(r#"{{"breaker": {{"consecutiveFailures": 3, "floorPercent": {floor}}}}}"#);
        let load = under(&breaker, endpoints(std::slice::from_ref(&app)));
        let mut http = Http::one(load.outbound).await;
        for _ in 0..3 {
            assert_eq!(http.get("/fail").await.status, 500);
        }
        let got = http.get("/").await;
        assert_eq!((got.status, got.error()), (if floor == 0 { 503 } else { 200 }, expect), "floor {floor}");
    }
}

#[tokio::test]
async fn every_try_is_judged() {
    let app = App::start().await;
    let load = under(
        r#"{"retry": {"attempts": 5, "codes": [500], "backoff": "5ms"},
            "breaker": {"consecutiveFailures": 3, "floorPercent": 0}}"#,
        endpoints(std::slice::from_ref(&app)),
    );
    let got = Http::one(load.outbound).await.get("/fail").await;
    assert_eq!((got.status, got.error(), app.count()), (503, Some("circuit-open"), 3));
}

#[tokio::test]
async fn with_the_others_ejected_retries_stay_where_they_are() {
    let app = App::start().await;
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = away.local_addr().unwrap();
    drop(away);
    let load = under(
        r#"{"balance": {"algorithm": "RoundRobin"}, "retry": {"attempts": 2, "codes": [500], "backoff": "5ms"},
            "breaker": {"consecutiveFailures": 1, "ejection": "60s"}}"#,
        vec![endpoint(app.address, None), endpoint(address, None)],
    );
    let mut http = Http::one(load.outbound).await;
    for _ in 0..4 {
        assert_eq!(http.get("/").await.status, 200);
    }
    load.expect_metric("mesh_endpoint_state", &[&format!("endpoint=\"{address}\"")], 0.0).await;
    let before = app.count();
    let got = http.get("/fail").await;
    assert_eq!((got.status, got.error(), app.count() - before), (500, None, 3));
}

#[tokio::test]
async fn requests_past_the_limits_wait_or_are_shed() {
    let app = App::slow(Duration::from_millis(300)).await;
    let load = under(
        r#"{"limits": {"requests": 2, "pending": 2, "pendingTimeout": "20s"}}"#,
        endpoints(std::slice::from_ref(&app)),
    );
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut http = Http::one(load.outbound).await;
        calls.spawn(async move { http.get("/").await.status });
    }
    let statuses = calls.join_all().await;
    let served = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!((served, app.count()), (4, 4), "{statuses:?}");
    load.expect_metric("mesh_requests_total", &["error=\"overload\""], 4.0).await;
}

#[tokio::test]
async fn an_endpoint_gets_no_more_than_it_may() {
    let apps = [App::slow(Duration::from_millis(300)).await, App::slow(Duration::from_millis(300)).await];
    let load = under(r#"{"limits": {"endpointRequests": 1, "pending": 0}}"#, endpoints(&apps));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let mut http = Http::one(load.outbound).await;
        calls.spawn(async move { http.get("/").await.status });
    }
    calls.join_all().await;
    assert_eq!(apps.each_ref().map(App::count), [1, 1]);
}

#[tokio::test]
async fn requests_wait_for_one_of_few_connections() {
    let app = App::slow(Duration::from_millis(100)).await;
    let load = under(r#"{"limits": {"connections": 1}}"#, endpoints(std::slice::from_ref(&app)));
    let began = Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let mut http = Http::one(load.outbound).await;
        calls.spawn(async move { http.get("/").await.status });
    }
    assert_eq!(calls.join_all().await, [200; 5]);
    assert!(began.elapsed() >= Duration::from_millis(500), "one after the other");
    // A request that must not go over an old connection takes its place.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let mut http = Http::one(load.outbound).await;
    let post = Request::post("/").header("host", "web").body(Full::from("text")).unwrap();
    assert_eq!(http.send(post).await.status, 200);
}

#[tokio::test]
async fn opaque_connections_are_limited() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = towards(Protocol::Opaque, vec![endpoint(listener.local_addr().unwrap(), None)]);
    config.destinations[0].destination.policy = Some(Arc::new(policy(r#"{"limits": {"connections": 1}}"#)));
    let load = Proxy::start(config, None);
    let _first = TcpStream::connect(load.outbound).await.unwrap();
    let (_server, _) = tokio::time::timeout(SOON, listener.accept()).await.unwrap().unwrap();
    let _second = TcpStream::connect(load.outbound).await.unwrap();
    load.expect_metric("mesh_tcp_failures_total", &["error=\"overload\""], 1.0).await;
}

#[tokio::test]
async fn a_rate_limit_answers_429_and_when_to_come_back() {
    let app = App::start().await;
    let web = guarded(r#"{"rateLimits": [{"requests": 3, "interval": "1h"}]}"#, &app);
    let mut http = Http::one(web.inbound).await;
    for _ in 0..3 {
        assert_eq!(http.get("/").await.status, 200);
    }
    let got = http.get("/").await;
    assert_eq!((got.status, got.error()), (429, Some("rate-limited")));
    let wait: u64 = got.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1100..=1200).contains(&wait), "{wait}");
    let mut http = Http::two(web.inbound).await;
    let got = http.grpc("/shop.v1.Cart/Add", "x").await;
    assert_eq!((got.status, &got.headers["grpc-status"]), (200, &"8".parse().unwrap()));
    assert_eq!(app.count(), 3);
}

#[tokio::test]
async fn rate_limits_tell_keys_apart_and_count_what_they_mean() {
    let app = App::start().await;
    let web = guarded(
        r#"{"rateLimits": [{"requests": 1, "interval": "1h", "per": {"by": "Header", "name": "x-user"},
                            "when": {"path": {"value": "/cart"}}}]}"#,
        &app,
    );
    let mut http = Http::one(web.inbound).await;
    for (path, user, expect) in
        [("/cart", "a", 200), ("/cart/1", "a", 429), ("/cart", "b", 200), ("/cart", "b", 429), ("/", "a", 200)]
    {
        assert_eq!(http.send(with(path, "x-user", user)).await.status, expect, "{path} {user}");
    }
}

#[tokio::test]
async fn faults_happen_to_the_requests_they_are_about() {
    let app = App::start().await;
    let load = under(
        r#"{"faults": [
            {"when": {"headers": [{"name": "x-abort"}]}, "abort": {"status": 418, "grpcStatus": 7}},
            {"when": {"headers": [{"name": "x-reset"}]}, "reset": true},
            {"when": {"path": {"type": "RegularExpression", "value": "/l.te"}}, "delay": "300ms"},
            {"when": {"path": {"value": "/trickle"}}, "bytesPerSecond": 20},
            {"percent": 0, "abort": {}}]}"#,
        endpoints(std::slice::from_ref(&app)),
    );
    let mut http = Http::one(load.outbound).await;
    assert_eq!(http.get("/").await.status, 200);
    let got = http.send(with("/", "x-abort", "1")).await;
    assert_eq!((got.status, got.error()), (418, Some("fault-injected")));
    load.expect_metric("mesh_requests_total", &["status=\"418\"", "error=\"fault-injected\""], 1.0).await;
    for (path, least) in [("/late", 300), ("/trickle", 200)] {
        let began = Instant::now();
        let got = http.get(path).await;
        assert_eq!((got.status, &got.body[..]), (200, &b"hello"[..]));
        assert!(began.elapsed() >= Duration::from_millis(least), "{path}: {:?}", began.elapsed());
    }
    assert_eq!(app.count(), 3);
    let mut two = Http::two(load.outbound).await;
    let call = Request::post("http://web/a.B/C").header("content-type", "application/grpc").header("x-abort", "1");
    assert_eq!(two.send(call.body(Full::default()).unwrap()).await.headers["grpc-status"], "7");
    let Http::One(sender) = &mut http else { unreachable!() };
    sender.ready().await.unwrap();
    assert!(sender.send_request(with("/", "x-reset", "1")).await.is_err());
    let Http::Two(sender) = &mut two else { unreachable!() };
    let request = Request::get("http://web/").header("x-reset", "1").body(Full::default()).unwrap();
    assert!(sender.send_request(request).await.is_err());
    assert_eq!(two.get("/").await.status, 200, "only the stream was reset");
}

#[tokio::test]
async fn an_endpoint_that_asks_for_a_pause_gets_one() {
    let (busy, other) = (App::start().await, App::start().await);
    let both = vec![endpoint(busy.address, None), endpoint(other.address, None)];
    let load = under(r#"{"balance": {"algorithm": "RoundRobin"}}"#, both.clone());
    let mut http = Http::one(load.outbound).await;
    // Both are asked once; one of them then stays away until the others are gone, too.
    let first = http.get("/busy").await;
    assert_eq!(first.status, 429);
    let (paused, rested) = if busy.count() == 1 { (&busy, &other) } else { (&other, &busy) };
    for _ in 0..10 {
        assert_eq!(http.get("/").await.status, 200);
    }
    assert_eq!((paused.count(), rested.count()), (1, 10));
    let alone = under("{}", vec![both[0].clone()]);
    let mut http = Http::one(alone.outbound).await;
    assert_eq!(http.get("/busy").await.status, 429);
    assert_eq!(http.get("/").await.status, 200, "the only one is better than none");
}
