//! Filters: header fields changed, redirects, rewritten targets.

use crate::route::{backend, prefix, routed, rule, ruled, teller, who};
use crate::world::*;
use http_body_util::Full;
use hyper::Request;
use mesh_api::route::{Filter, HeaderChange, PathChange, Redirect, Rewrite, RouteBackend, Routes, Rule};

fn change(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderChange {
    let pairs = |list: &[(&str, &str)]| list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    HeaderChange { set: pairs(set), add: pairs(add), remove: remove.iter().map(|name| (*name).into()).collect() }
}

fn lines(got: &Got) -> Vec<String> {
    assert_eq!(got.status, 200, "{got:?}");
    String::from_utf8_lossy(&got.body).lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn fields_change_on_the_way_there_and_back() {
    let a = teller("a").await;
    let own = vec![
        Filter::RequestHeaders(change(&[("x-rule", "set")], &[("x-list", "rule")], &["x-gone"])),
        Filter::ResponseHeaders(change(&[("x-answer", "rule")], &[], &["x-secret"])),
    ];
    let of_backend = vec![
        Filter::RequestHeaders(change(&[], &[("x-list", "backend")], &[])),
        Filter::ResponseHeaders(change(&[("x-answer", "backend")], &[], &[])),
    ];
    let rule = Rule { filters: own, ..rule("web", vec![RouteBackend { filters: of_backend, ..backend("a", 1) }]) };
    let load = Proxy::start(ruled(rule, &[("a", &[a])]), None);
    for mut http in [Http::one(load.outbound).await, Http::two(load.outbound).await] {
        let uri = if matches!(http, Http::One(_)) { "/x" } else { "http://web/x" };
        let mut request = Request::get(uri).header("x-list", "client").header("x-gone", "1");
        if matches!(http, Http::One(_)) {
            request = request.header("host", "web");
        }
        let got = http.send(request.body(Full::default()).unwrap()).await;
        let seen = lines(&got);
        for line in ["x-rule: set", "x-list: client", "x-list: rule", "x-list: backend"] {
            assert!(seen.iter().any(|seen| seen == line), "{line}: {seen:?}");
        }
        assert!(!seen.iter().any(|line| line.starts_with("x-gone")), "{seen:?}");
        assert_eq!(got.headers["x-answer"], "backend");
        assert!(!got.headers.contains_key("x-secret"));
    }
}

#[tokio::test]
async fn redirects_are_answered_without_a_backend() {
    let a = teller("a").await;
    let redirect = |path, status| {
        let host = Some("example.org".to_owned());
        Filter::Redirect(Redirect { scheme: Some("https".into()), host, port: None, path, status })
    };
    let with = |filter| Rule { filters: vec![filter], ..rule("moved", vec![]) };
    let of_backend = RouteBackend { filters: vec![redirect(None, 308)], ..backend("a", 1) };
    let routes = Routes {
        rules: vec![
            with(redirect(None, 302)),
            with(redirect(Some(PathChange::Prefix("/new".into())), 301)),
            with(redirect(Some(PathChange::Full("/full".into())), 303)),
            rule("backend", vec![of_backend]),
        ],
        http: vec![prefix(0, "/plain"), prefix(1, "/old"), prefix(2, "/any"), prefix(3, "/backend")],
        ..Routes::default()
    };
    let load = Proxy::start(routed(routes, &[("a", &[a])]), None);
    for mut http in [Http::one(load.outbound).await, Http::two(load.outbound).await] {
        for (path, status, location) in [
            ("/plain/x?y=1", 302, "https://example.org/plain/x?y=1"),
            ("/old/x", 301, "https://example.org/new/x"),
            ("/any/x", 303, "https://example.org/full"),
            ("/backend", 308, "https://example.org/backend"),
        ] {
            let got = http.get(path).await;
            assert_eq!((got.status, got.headers["location"].to_str().unwrap()), (status, location), "{path}");
            assert!(got.body.is_empty() && got.error().is_none());
        }
    }
    load.expect_metric("mesh_requests_total", &["route=\"moved\"", "status=\"302\"", "error=\"\""], 2.0).await;
}

#[tokio::test]
async fn targets_are_rewritten() {
    let a = teller("a").await;
    let rewrite = |host: Option<&str>, path| Filter::Rewrite(Rewrite { host: host.map(str::to_owned), path });
    let with = |filter| Rule { filters: vec![filter], ..rule("web", vec![backend("a", 1)]) };
    let routes = Routes {
        rules: vec![
            with(rewrite(Some("api.example"), None)),
            with(rewrite(None, Some(PathChange::Prefix("/v2".into())))),
            with(rewrite(None, Some(PathChange::Full("/one".into())))),
            with(rewrite(None, Some(PathChange::Prefix("/".into())))),
        ],
        http: vec![prefix(0, "/host"), prefix(1, "/v1"), prefix(2, "/full"), prefix(3, "/strip")],
        ..Routes::default()
    };
    let load = Proxy::start(routed(routes, &[("a", &[a])]), None);
    for (mut http, two) in [(Http::one(load.outbound).await, false), (Http::two(load.outbound).await, true)] {
        for (path, host, seen) in [
            ("/host/x?y", "api.example", "/host/x?y"),
            ("/v1/x?y", "web", "/v2/x?y"),
            ("/full/x?y", "web", "/one?y"),
            ("/strip", "web", "/"),
            ("/strip/x", "web", "/x"),
        ] {
            let got = http.get(path).await;
            assert_eq!(who(&got), "a");
            let lines = lines(&got);
            if two {
                assert_eq!(lines[1], format!("GET http://{host}{seen}"), "{path}");
            } else {
                assert_eq!(lines[1], format!("GET {seen}"), "{path}");
                assert!(lines.contains(&format!("host: {host}")), "{path}: {lines:?}");
            }
        }
    }
}
