//! Requests through a small shop, told step by step.

use super::*;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use mesh_control::world::egress_policy::EgressPolicyView;
use mesh_control::world::route::{RouteKey, RouteKind, read};
use mesh_manifests::config::MeshConfig;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn pod(name: &str, ip: &str, meshed: bool, annotations: Value) -> Pod {
    let mut annotations = annotations;
    let mut spec = json!({"serviceAccountName": name, "containers": [{"name": "main"}]});
    if meshed {
        annotations["meshctl.dev/proxy-version"] = json!("0.1.0");
        spec["initContainers"] = json!([{"name": "mesh-proxy", "image": "meshctl/proxy:0.1.0"}]);
    }
    typed(json!({"metadata": {"name": name, "namespace": "shop", "annotations": annotations}, "spec": spec,
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}]}}))
}

fn service(name: &str, ip: &str, port: Value) -> Service {
    typed(json!({"metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [port]}}))
}

fn slice(service: &str, port: Value, ips: &[&str]) -> EndpointSlice {
    let endpoints: Vec<Value> =
        ips.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true, "serving": true}})).collect();
    typed(json!({"metadata": {"name": format!("{service}-1"), "namespace": "shop",
        "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4", "ports": [port], "endpoints": endpoints}))
}

fn shop() -> Shown {
    let http = |port: u16| json!({"name": "http", "port": port, "protocol": "TCP"});
    Shown::of(
        MeshConfig::default(),
        &[typed(json!({"metadata": {"name": "shop"}}))],
        &[
            service("catalog", "10.96.0.7", http(80)),
            service("old", "10.96.0.8", http(80)),
            service("empty", "10.96.0.9", http(80)),
            typed(json!({"metadata": {"name": "out", "namespace": "shop"},
                "spec": {"type": "ExternalName", "externalName": "example.org"}})),
        ],
        &[slice("catalog", http(8080), &["10.244.0.2", "10.244.0.3"]), slice("old", http(8080), &["10.244.0.4"])],
        &[
            pod("web", "10.244.0.1", true, json!({SKIP_OUTBOUND_PORTS: "25"})),
            pod("catalog-a", "10.244.0.2", true, json!({})),
            pod("catalog-b", "10.244.0.3", true, json!({})),
            pod("legacy", "10.244.0.4", false, json!({})),
        ],
    )
}

fn question<'a>(from: &str, to: &'a str, path: &str, header: &[&str]) -> Question<'a> {
    let args = ExplainRequest {
        from: from.to_owned(),
        to: to.to_owned(),
        method: "get".to_owned(),
        path: path.to_owned(),
        header: header.iter().map(|header| (*header).to_owned()).collect(),
        host: None,
        namespace: None,
        output: crate::args::TextFormat::Json,
    };
    let from = Resource::read_one(from).unwrap();
    Question { from, namespace: "shop", to, request: request(&args).unwrap() }
}

fn asked(from: &str, to: &str) -> Explanation {
    judge(&shop(), &question(from, to, "/products/7", &[])).unwrap()
}

/// The shop with a route of catalog: `version: old` goes elsewhere, `/away` is redirected, `/none` leads nowhere.
fn routed(path: &str, header: &[&str]) -> Explanation {
    let mut shop = shop();
    let meta = |name: &str| serde_json::from_value(json!({"namespace": "shop", "name": name})).unwrap();
    let mut put = |name: &str, spec: Value| {
        let view = read::route(RouteKind::Http, &meta(name), &json!({"spec": spec}));
        shop.world.apply(RouteKey { kind: RouteKind::Http, name: Name::new("shop", name) }, view);
    };
    let parent = |port: u16| json!([{"group": "", "kind": "Service", "name": "catalog", "port": port}]);
    let below = |path: &str| json!([{"path": {"type": "PathPrefix", "value": path}}]);
    let to = |name: &str, weight: u32| json!({"name": name, "port": 80, "weight": weight});
    put("other-port", json!({"parentRefs": parent(81), "rules": [{"backendRefs": [to("old", 1)]}]}));
    put(
        "catalog",
        json!({"parentRefs": parent(80), "rules": [
            {"name": "old", "matches": [{"headers": [{"name": "version", "value": "old"}]}],
             "backendRefs": [to("old", 1), to("empty", 1)], "timeouts": {"request": "2s"}},
            {"name": "away", "matches": below("/away"),
             "filters": [{"type": "RequestRedirect", "requestRedirect": {"hostname": "example.org", "statusCode": 301}}]},
            {"name": "none", "matches": below("/none"), "backendRefs": [to("nothing", 1)]},
            {"name": "products", "matches": below("/products"), "backendRefs": [to("catalog", 1)]},
        ]}),
    );
    judge(&shop, &question("po/web", "catalog:80", path, header)).unwrap()
}

#[test]
fn routes_say_who_takes_a_request_and_why_the_others_do_not() {
    let says = |told: &Explanation, step: &str| {
        let found = told.steps.iter().find(|found| found.step == step);
        found.map(|found| found.says.clone()).unwrap_or_else(|| panic!("no {step}: {told:?}"))
    };
    let told = routed("/products/7", &[]);
    let route = says(&told, "route");
    assert!(route.starts_with("httproute/shop/catalog/products takes it (path /products and below)"), "{route}");
    assert!(route.contains("old (header version: old): the header field version is missing, not `old`"), "{route}");
    assert!(route.contains("httproute/shop/other-port: it is about other ports of the service"), "{route}");
    assert_eq!(says(&told, "backends"), "100 % to shop/catalog:80");
    assert_eq!(told.routes.iter().filter(|one| one.takes).count(), 1);
    assert!(told.verdict.starts_with("sent to one of 2 endpoints over mutual"), "{}", told.verdict);

    let told = routed("/any", &["version=old"]);
    assert_eq!(says(&told, "backends"), "50 % to shop/old:80\n50 % to shop/empty:80");
    assert!(says(&told, "endpoints").contains("shop/empty:80: none is ready"), "{told:?}");
    assert!(says(&told, "carried").contains("2s"), "{told:?}");
    assert!(told.verdict.contains("1 endpoint in plain text"), "{}", told.verdict);

    for (path, verdict) in [("/away/x", "with 301, a redirect"), ("/none", "no-backend"), ("/x", "no-route")] {
        let told = routed(path, &[]);
        assert!(told.verdict.contains(verdict) && !told.steps.last().unwrap().goes_on, "{path}: {told:?}");
    }
}

#[test]
fn a_request_is_followed_to_the_callee() {
    let told = asked("po/web", "catalog:80");
    let steps: Vec<_> = told.steps.iter().map(|step| (step.step, step.says.as_str())).collect();
    assert_eq!(
        steps,
        [
            ("caller", "pod web has a proxy, which acts as spiffe://cluster.local/ns/shop/sa/web"),
            ("name", "catalog is service shop/catalog at 10.96.0.7"),
            ("redirect", "the connection to 10.96.0.7:80 is taken over by the caller's proxy"),
            ("protocol", "HTTP/1, as declared"),
            ("route", "counted as /products/{id}"),
            (
                "endpoints",
                "10.244.0.2:8080 catalog-a, must prove spiffe://cluster.local/ns/shop/sa/catalog-a\n\
                 10.244.0.3:8080 catalog-b, must prove spiffe://cluster.local/ns/shop/sa/catalog-b"
            ),
            (
                "balancing",
                "each request goes to the less loaded of two endpoints picked at random (peak EWMA of latency)"
            ),
            ("callee", "its proxy checks the caller's certificate and hands on to port 8080 (HTTP/1, as declared)"),
        ]
    );
    assert_eq!(told.verdict, "sent to one of 2 endpoints over mutual TLS 1.3");
}

#[test]
fn every_way_to_end_early_is_told() {
    let check = |from: &str, to: &str, step: &str, says: &str| {
        let told = asked(from, to);
        let last = told.steps.last().unwrap();
        assert!(last.step == step && last.says.contains(says), "{to}: {told:?}");
    };
    check("po/legacy", "catalog:80", "caller", "legacy has no proxy");
    check("po/web", "nothing:80", "name", "there is no service nothing in namespace shop");
    check("po/web", "catalog:81", "name", "has no port 81, only 80");
    check("po/web", "out:80", "name", "another name for example.org");
    check("po/web", "www.example.org:80", "name", "no name of this cluster");
    check("po/web", "catalog.shop.svc.cluster.local:25", "name", "no port 25");
    check("po/web", "192.0.2.1:25", "redirect", "port 25 is excluded");
    check("po/web", "192.0.2.1:80", "destination", "neither a service nor a pod");
    check("po/web", "empty:80", "endpoints", "none is ready");
    check("po/web", "svc/old", "callee", "the application itself answers");
    assert!(asked("po/web", "old").verdict.ends_with("in plain text"));
}

#[test]
fn what_leaves_the_cluster_is_decided_about() {
    let mut shown = shop();
    let spec = json!({"rules": [{"hosts": ["*.example.org"]}, {"networks": ["192.0.2.0/24"], "ports": [80]}]});
    let policy = EgressPolicyView { spec: typed(spec), ..EgressPolicyView::default() };
    shown.world.apply(Name::new("shop", "out"), policy);
    let check = |to: &str, says: &str, verdict: &str| {
        let told = judge(&shown, &question("po/web", to, "/", &[])).unwrap();
        let last = told.steps.last().unwrap();
        assert!(last.step == "egress" && last.says.contains(says), "{to}: {told:?}");
        assert!(told.verdict.contains(verdict), "{to}: {told:?}");
    };
    check("www.example.org:443", "let out, tls to www.example.org port 443: EgressPolicy shop/out allows", OUTSIDE);
    check("www.example.com:443", "EgressPolicy shop/out makes the default `deny`", "resets the connection");
    check("www.example.com:80", "refused, http to www.example.com port 80", "403 and mesh-error: egress-denied");
    check("192.0.2.1:80", "EgressPolicy shop/out allows it", "forwarded to 192.0.2.1:80");
    check("192.0.2.1:81", "refused", "egress-denied");
}

#[test]
fn a_caller_that_is_not_there_is_an_error() {
    assert_eq!(
        judge(&shop(), &question("deploy/none", "catalog", "/", &[])).unwrap_err().to_string(),
        "there is no deployment/none with pods in namespace shop"
    );
}
