//! Tables of routes and what they come to.

use super::*;
use crate::world::route::read;
use crate::world::tests::{service, slice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

/// A world with the services web, web-v1 and web-v2 at 10.96.0.7 to 9, each with one endpoint.
fn world() -> World {
    let mut world = World::default();
    for (at, name) in ["web", "web-v1", "web-v2"].into_iter().enumerate() {
        world.put_service(service(name, &format!("10.96.0.{}", 7 + at), json!([{"name": "http", "port": 80}])));
        let endpoints = json!([{"addresses": [format!("10.244.0.{}", 7 + at)]}]);
        world.put_slice(slice(name, json!([{"name": "http", "port": 8080}]), endpoints));
    }
    world
}

/// Adds an HTTPRoute with the service `web` as parent.
fn put(world: &mut World, namespace: &str, name: &str, created: &str, rules: Value) -> crate::world::Touched {
    let parent = json!({"group": "", "kind": "Service", "namespace": "shop", "name": "web"});
    put_route(world, RouteKind::Http, namespace, name, created, json!({"parentRefs": [parent], "rules": rules}))
}

fn put_route(
    world: &mut World,
    kind: RouteKind,
    namespace: &str,
    name: &str,
    created: &str,
    spec: Value,
) -> crate::world::Touched {
    let metadata = json!({"namespace": namespace, "name": name, "creationTimestamp": created});
    let metadata: ObjectMeta = serde_json::from_value(metadata).unwrap();
    let view = read::route(kind, &metadata, &json!({"spec": spec}));
    world.apply(RouteKey { kind, name: Name::of(&metadata) }, view)
}

fn port(port: u16) -> PortView {
    PortView { name: "http".to_owned(), port, app_protocol: None }
}

fn ask(world: &World, consumer: &str) -> Option<Routes> {
    routes(world, &Name::new("shop", "web"), &port(80), Some(consumer))
}

const EARLY: &str = "2026-11-21T06:00:00Z";
const LATE: &str = "2026-11-21T07:00:00Z";

fn to(name: &str) -> Value {
    json!([{"name": name, "port": 80}])
}

/// The first backend of each condition, in their order.
fn order(routes: &Routes) -> Vec<String> {
    let backend = |of: &HttpMatch| routes.rules[of.rule].backends[0].service.as_ref().unwrap().name.clone();
    routes.http.iter().map(backend).collect()
}

#[test]
fn rules_lead_to_services_by_weight() {
    let mut world = world();
    let backends = json!([
        {"name": "web-v1", "port": 80, "weight": 9}, {"name": "web-v2", "port": 80, "weight": 0},
        {"name": "nowhere", "port": 80}, {"name": "web-v1", "port": 81}, {"name": "web-v1"},
        {"kind": "Bucket", "group": "example.com", "name": "b", "port": 80},
    ]);
    put(&mut world, "shop", "split", EARLY, json!([{"name": "all", "backendRefs": backends}]));
    let routes = ask(&world, "shop").unwrap();
    assert_eq!(routes.rules[0].name.to_string(), "httproute/shop/split/all");
    let to: Vec<_> =
        routes.rules[0].backends.iter().map(|b| (b.service.as_ref().map(|s| s.name.as_str()), b.weight)).collect();
    let nowhere = (None, 1);
    assert_eq!(to, [(Some("web-v1"), 9), (Some("web-v2"), 0), nowhere, nowhere, nowhere, nowhere]);
    assert_eq!(routes.http, [HttpMatch { rule: 0, ..HttpMatch::default() }]);
    assert!(super::routes(&world, &Name::new("shop", "web-v1"), &port(80), None).is_none());
}

#[test]
fn precedence_is_that_of_the_gateway_api() {
    let mut world = world();
    let rules = json!([
        {"matches": [{"path": {"value": "/"}}], "backendRefs": to("web")},
        {"matches": [{"path": {"value": "/a/b"}}, {"path": {"type": "Exact", "value": "/a"}}], "backendRefs": to("web-v1")},
        {"matches": [{"path": {"value": "/a"}, "headers": [{"name": "h", "value": "1"}]}], "backendRefs": to("web-v2")},
        {"matches": [{"path": {"value": "/a"}, "method": "GET"}], "backendRefs": to("web-v1")},
        {"matches": [{"path": {"type": "RegularExpression", "value": "/x.*"}}], "backendRefs": to("web")},
    ]);
    put(&mut world, "shop", "web", EARLY, rules);
    // Exact; the expression; /a/b; /a with a method; /a with a header; /.
    assert_eq!(order(&ask(&world, "shop").unwrap()), ["web-v1", "web", "web-v1", "web-v1", "web-v2", "web"]);
}

#[test]
fn of_equal_conditions_the_older_route_wins_then_the_name_then_the_order() {
    let mut world = world();
    put(&mut world, "shop", "b", LATE, json!([{"backendRefs": to("web-v2")}]));
    put(&mut world, "shop", "c", EARLY, json!([{"backendRefs": to("web-v1")}, {"backendRefs": to("web")}]));
    assert_eq!(order(&ask(&world, "shop").unwrap()), ["web-v1", "web", "web-v2"]);
    put(&mut world, "shop", "a", EARLY, json!([{"backendRefs": to("web-v2")}]));
    assert_eq!(order(&ask(&world, "shop").unwrap()), ["web-v2", "web-v1", "web", "web-v2"]);
}

#[test]
fn routes_of_the_clients_namespace_replace_those_of_the_service() {
    let mut world = world();
    put(&mut world, "shop", "producer", EARLY, json!([{"backendRefs": to("web-v1")}]));
    let there = json!([{"name": "web-v2", "namespace": "shop", "port": 80}]);
    let touched = put(&mut world, "office", "consumer", LATE, json!([{"backendRefs": there}]));
    assert_eq!(touched.ips, ["10.96.0.7".parse().unwrap()].into());
    assert_eq!(order(&ask(&world, "shop").unwrap()), ["web-v1"]);
    assert_eq!(order(&ask(&world, "elsewhere").unwrap()), ["web-v1"]);
    let consumer = ask(&world, "office").unwrap();
    assert_eq!(consumer.rules[0].backends[0].service, None, "no grant");
    assert!(is_consumer(&world, "10.96.0.7".parse().unwrap(), "office"));
    assert!(!is_consumer(&world, "10.96.0.7".parse().unwrap(), "shop"));
    assert!(!is_consumer(&world, "10.96.0.8".parse().unwrap(), "office"));

    let grant = json!({"spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "office"}],
        "to": [{"group": "", "kind": "Service", "name": "web-v2"}]}});
    let touched = world.apply(Name::new("shop", "g"), read::grant(&ObjectMeta::default(), &grant));
    assert!(touched.ips.contains(&"10.96.0.7".parse().unwrap()));
    assert_eq!(order(&ask(&world, "office").unwrap()), ["web-v2"]);
}

#[test]
fn a_parent_may_name_a_port() {
    let check = |of: Value, number: u16, applies: bool| {
        let mut world = world();
        let mut parent = json!({"group": "", "kind": "Service", "name": "web"});
        parent.as_object_mut().unwrap().extend(of.as_object().unwrap().clone());
        let spec = json!({"parentRefs": [parent], "rules": [{"backendRefs": to("web-v1")}]});
        put_route(&mut world, RouteKind::Http, "shop", "web", EARLY, spec);
        let found = routes(&world, &Name::new("shop", "web"), &port(number), None);
        assert_eq!(found.is_some(), applies, "{of} {number}");
    };
    check(json!({}), 80, true);
    check(json!({"port": 80}), 80, true);
    check(json!({"port": 80}), 81, false);
    check(json!({"sectionName": "http"}), 81, true);
    check(json!({"sectionName": "grpc"}), 80, false);
    check(json!({"sectionName": "http", "port": 81}), 80, false);
}

#[test]
fn hosts_outrank_paths_by_their_length() {
    let mut world = world();
    let parent = json!({"group": "", "kind": "Service", "name": "web"});
    let route = |hosts: Value, backend: &str, path: &str| {
        json!({"parentRefs": [parent], "hostnames": hosts,
            "rules": [{"matches": [{"path": {"type": "Exact", "value": path}}], "backendRefs": to(backend)}]})
    };
    put_route(&mut world, RouteKind::Http, "shop", "a", EARLY, route(json!(["*.example.com"]), "web", "/long/path"));
    put_route(&mut world, RouteKind::Http, "shop", "b", LATE, route(json!(["Web.example.com", "w.io"]), "web-v1", "/"));
    put_route(&mut world, RouteKind::Http, "shop", "c", EARLY, route(json!([]), "web-v2", "/"));
    let routes = ask(&world, "shop").unwrap();
    assert_eq!(order(&routes), ["web-v1", "web-v1", "web", "web-v2"]);
    let hosts: Vec<_> = routes.http.iter().map(|of| of.hosts.join(",")).collect();
    assert_eq!(hosts, ["web.example.com", "w.io", "*.example.com", ""]);
}

#[test]
fn an_unsupported_filter_makes_its_rule_fail_and_leaves_the_others() {
    let mut world = world();
    let rules = json!([
        {"matches": [{"path": {"value": "/a"}}], "filters": [{"type": "CORS"}], "backendRefs": to("web-v1")},
        {"backendRefs": to("web-v2")},
    ]);
    put(&mut world, "shop", "web", EARLY, rules);
    let routes = ask(&world, "shop").unwrap();
    assert_eq!((routes.rules.len(), routes.http.len()), (2, 2));
    assert!(routes.rules[0].backends.is_empty() && routes.rules[0].filters.is_empty());
    assert_eq!(routes.rules[1].backends.len(), 1);
}

#[test]
fn tcp_and_tls_have_their_own_conditions() {
    let mut world = world();
    let parent = json!({"group": "", "kind": "Service", "name": "web"});
    let spec = json!({"parentRefs": [parent], "rules": [{"backendRefs": to("web-v1")}]});
    put_route(&mut world, RouteKind::Tcp, "shop", "tcp", EARLY, spec);
    let routes = ask(&world, "shop").unwrap();
    assert_eq!((routes.tcp, routes.http.len()), (Some(0), 1), "requests are divided as connections are");
    let spec =
        json!({"parentRefs": [parent], "hostnames": ["*.a.io", "b.a.io"], "rules": [{"backendRefs": to("web-v2")}]});
    put_route(&mut world, RouteKind::Tls, "shop", "tls", EARLY, spec);
    let routes = ask(&world, "shop").unwrap();
    let hosts: Vec<_> = routes.tls.iter().flat_map(|of| of.hosts.clone()).collect();
    assert_eq!(hosts, ["b.a.io", "*.a.io"]);
    assert_eq!(routes.rules[routes.tls[0].rule].name.kind, "tlsroute");
}

#[test]
fn a_change_behind_a_route_touches_its_parents() {
    let mut world = world();
    put(&mut world, "shop", "web", EARLY, json!([{"backendRefs": to("web-v1")}]));
    let parent: IpAddr = "10.96.0.7".parse().unwrap();
    let endpoints = json!([{"addresses": ["10.244.0.50"]}]);
    let touched = world.put_slice(slice("web-v1", json!([{"name": "http", "port": 8080}]), endpoints));
    assert!(touched.ips.contains(&parent), "slices");
    let touched = world.put_service(service("web-v1", "10.96.0.8", json!([{"name": "http", "port": 81}])));
    assert!(touched.ips.contains(&parent), "the service");
    let touched = world.put_pod(crate::world::tests::pod("web-v1-1", "web-v1", "10.244.0.50", true));
    assert!(touched.ips.contains(&parent), "its pods");
    let touched = world.put_slice(slice("web-v2", json!([{"name": "http", "port": 8080}]), json!([])));
    assert!(!touched.ips.contains(&parent), "another service");
    let touched = world.delete::<RouteView>(&RouteKey { kind: RouteKind::Http, name: Name::new("shop", "web") });
    assert_eq!(touched.ips, [parent].into());
}

#[test]
fn the_answer_holds_what_answers_behind_routes() {
    let mut world = world();
    let mirror = json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "web-v2", "port": 80}}});
    put(&mut world, "shop", "web", EARLY, json!([{"filters": [mirror], "backendRefs": to("web-v1")}]));
    let config = mesh_manifests::config::MeshConfig::default();
    let compiled = crate::compile::destination(&world, &config, "10.96.0.7:80".parse().unwrap(), None);
    let behind: Vec<_> =
        compiled.backends.iter().map(|(s, b)| (s.name.as_str(), b.endpoints[0].address.to_string())).collect();
    assert_eq!(behind, [("web-v1", "10.244.0.8:8080".to_owned()), ("web-v2", "10.244.0.9:8080".to_owned())]);
    assert_eq!(compiled.endpoints[0].address.to_string(), "10.244.0.7:8080", "its own endpoints stay known");
}

/// The Gateway API's list for HTTPRoutes, a sentence a line, as slow and plain as it is written.
fn comes_first(a: &Sample, b: &Sample) -> bool {
    let exact = |s: &Sample| matches!(s.of.path, Some(PathMatch::Exact(_)));
    let regex = |s: &Sample| match &s.of.path {
        Some(PathMatch::Regex(text)) => text.len() + 1,
        _ => 0,
    };
    let prefix = |s: &Sample| match &s.of.path {
        Some(PathMatch::Prefix(text)) => text.len(),
        None => 1,
        _ => 0,
    };
    let plain = |s: &Sample| s.host.as_ref().map_or(0, |h| if h.starts_with('*') { 0 } else { h.len() });
    let whole = |s: &Sample| s.host.as_ref().map_or(0, String::len);
    let criteria: [&dyn Fn(&Sample) -> usize; 8] = [
        &plain,
        &whole,
        &|s| usize::from(exact(s)),
        &regex,
        &prefix,
        &|s| usize::from(s.of.method.is_some()),
        &|s| s.of.headers.len(),
        &|s| s.of.query.len(),
    ];
    for criterion in criteria {
        if criterion(a) != criterion(b) {
            return criterion(a) > criterion(b);
        }
    }
    false
}

/// The same for GRPCRoutes.
fn call_comes_first(a: &Sample, b: &Sample) -> bool {
    let plain = |s: &Sample| s.host.as_ref().map_or(0, |h| if h.starts_with('*') { 0 } else { h.len() });
    let whole = |s: &Sample| s.host.as_ref().map_or(0, String::len);
    let criteria: [&dyn Fn(&Sample) -> usize; 5] =
        [&plain, &whole, &|s| s.of.grpc_chars.0, &|s| s.of.grpc_chars.1, &|s| s.of.headers.len()];
    for criterion in criteria {
        if criterion(a) != criterion(b) {
            return criterion(a) > criterion(b);
        }
    }
    false
}

#[derive(Clone, Debug)]
struct Sample {
    host: Option<String>,
    of: MatchView,
}

proptest::proptest! {
    #[test]
    fn the_order_is_that_of_the_slow_reference(numbers in proptest::collection::vec(proptest::prelude::any::<[u8; 7]>(), 2..12)) {
        let values = |count: u8| {
            let value = |at: u8| mesh_api::route::ValueMatch {
                name: format!("n{at}"),
                value: mesh_api::route::TextMatch::Exact(String::new()),
            };
            (0..count % 3).map(value).collect()
        };
        let samples: Vec<Sample> = numbers.iter().map(|n| {
            let text = "/a".repeat(usize::from(n[1] % 3) + 1);
            let path = match n[0] % 4 {
                0 => None,
                1 => Some(PathMatch::Exact(text)),
                2 => Some(PathMatch::Prefix(text)),
                _ => Some(PathMatch::Regex(text)),
            };
            let method = (n[2] % 2 == 0).then(|| "GET".to_owned());
            let host = ["", "a.io", "*.io", "*.a.io", "b.a.io"][usize::from(n[5] % 5)];
            let grpc_chars = (usize::from(n[6] % 3), usize::from(n[6] / 3 % 3));
            Sample {
                host: (!host.is_empty()).then(|| host.to_owned()),
                of: MatchView { path, method, headers: values(n[3]), query: values(n[4]), grpc_chars },
            }
        }).collect();
        for (kind, first) in [(RouteKind::Http, comes_first as fn(&Sample, &Sample) -> bool), (RouteKind::Grpc, call_comes_first)] {
            let rank = |sample: &Sample| Rank::of(kind, sample.host.as_deref(), &sample.of);
            for a in &samples {
                for b in &samples {
                    let expect = if first(a, b) {
                        Ordering::Less
                    } else if first(b, a) {
                        Ordering::Greater
                    } else {
                        Ordering::Equal
                    };
                    proptest::prop_assert_eq!(rank(a).order(&rank(b)), expect, "{:?} {:?}", a, b);
                }
            }
        }
    }
}
