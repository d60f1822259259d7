//! One good and one bad case for everything that can be found, as a user would write them.

use super::subject::Seen;
use super::*;
use mesh_manifests::config::MeshConfig;
use mesh_manifests::inject_text::read_objects;
use serde_json::Value;
use std::path::PathBuf;

/// What all cases stand on: a shop of two Services with somebody behind them, and another namespace.
const GROUND: &str = "
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: cart}, spec: {clusterIP: 10.96.0.2, selector: {app: cart}, ports: [{port: 80, targetPort: 8080}, {name: more, port: 81}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: empty}, spec: {clusterIP: 10.96.0.3, selector: {app: nobody}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: pods}, spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: far, namespace: other}, spec: {clusterIP: 10.96.0.4, ports: [{port: 80}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart}
spec: {template: {metadata: {labels: {app: cart}}, spec: {containers: [{name: cart}]}}}
---
";

/// The objects of a text in namespace `shop`, unless they name another.
fn objects(text: &str) -> Vec<Value> {
    let located = read_objects("test", text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let in_shop = |mut object: Value| {
        if object["metadata"]["namespace"].is_null() && object["kind"] != "Namespace" {
            object["metadata"]["namespace"] = "shop".into();
        }
        object
    };
    located.into_iter().map(|located| in_shop(located.object)).collect()
}

fn found(text: &str, seen: Seen) -> Vec<(String, String, String)> {
    let objects = objects(&format!("{GROUND}{text}"));
    let subject = match seen {
        Seen::All => Subject::of_cluster(objects, MeshConfig::default()),
        Seen::Part => Subject::of_files(objects, MeshConfig::default()),
    };
    lint(&subject).into_iter().map(|finding| (finding.lint.id.to_owned(), finding.field, finding.message)).collect()
}

/// An HTTPRoute of `web` with the rest of its spec.
fn web(spec: &str) -> String {
    format!(
        "---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: web}}, spec: {{\
         parentRefs: [{{group: '', kind: Service, name: web, port: 80}}], {spec}}}}}\n"
    )
}

/// An HTTPRoute of `web` with one rule.
fn rule(rule: &str) -> String {
    web(&format!("rules: [{{{rule}}}]"))
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: meshctl.dev/v1alpha1, kind: AccessPolicy, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n"
    )
}

fn traffic(name: &str, spec: &str) -> String {
    policy(name, &format!("targetRefs: [{{kind: Service, name: web}}], {spec}"))
        .replace("kind: AccessPolicy", "kind: TrafficPolicy")
}

fn egress(spec: &str) -> String {
    policy("a", spec).replace("kind: AccessPolicy", "kind: EgressPolicy")
}

fn pod(annotations: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p, annotations: {{{annotations}}}}}, spec: {{containers: [{{name: c}}]}}}}\n"
    )
}

fn parent(name: &str) -> String {
    format!(
        "---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: web}}, spec: {{\
         parentRefs: [{{name: gateway}}, {{group: '', kind: Service, {name}}}], rules: [{{{CART}}}]}}}}\n"
    )
}

const CART: &str = "backendRefs: [{name: cart, port: 80}]";
const GRANT: &str = "---\n{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {name: g, namespace: other}, \
    spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}}\n";

/// What is found, where, in which text, and the text in which nothing is.
fn cases() -> Vec<(&'static Lint, &'static str, String, String)> {
    let redirect = |change: &str| format!("filters: [{{type: RequestRedirect, requestRedirect: {{{change}}}}}]");
    let at = |kind: &str, path: &str| format!("matches: [{{path: {{type: {kind}, value: '{path}'}}}}]");
    let two = |first: &str, second: &str| web(&format!("rules: [{{{first}, {CART}}}, {{{second}, {CART}}}]"));
    let mirror = |to: &str| {
        rule(&format!(
            "filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: {to}, port: 80}}}}}}], {CART}"
        ))
    };
    vec![
        (
            ANNOTATION_UNKNOWN,
            "metadata.annotations[meshctl.dev/injct]",
            pod("meshctl.dev/injct: enabled"),
            pod("meshctl.dev/inject: enabled"),
        ),
        (
            ANNOTATION_INVALID,
            "metadata.annotations[meshctl.dev/opaque-ports]",
            pod("meshctl.dev/opaque-ports: some"),
            pod("meshctl.dev/opaque-ports: '22,5432'"),
        ),
        (
            ROUTE_UNREACHABLE,
            "spec.rules[1]",
            two(&at("PathPrefix", "/a"), &at("PathPrefix", "/a/")),
            two(&at("PathPrefix", "/a"), &at("PathPrefix", "/a/b")),
        ),
        (
            ROUTE_UNUSABLE,
            "spec.rules[0].matches[0].path.value",
            rule(&format!("{}, {CART}", at("RegularExpression", "/("))),
            rule(&format!("{}, {CART}", at("RegularExpression", "/."))),
        ),
        (
            ROUTE_IGNORED_VALUE,
            "spec.rules[0].timeouts.request",
            rule(&format!("timeouts: {{request: soon}}, {CART}")),
            rule(&format!("timeouts: {{request: 1s}}, {CART}")),
        ),
        (
            ROUTE_UNKNOWN_FIELD,
            "spec.rules[0].timeout",
            rule(&format!("timeout: {{request: 1s}}, {CART}")),
            rule(&format!("timeouts: {{request: 1s}}, {CART}")),
        ),
        (
            ROUTE_HOST_NEVER_MATCHES,
            "spec.hostnames[0]",
            web(&format!("hostnames: [shop.example.com], rules: [{{{CART}}}]")),
            web(&format!("hostnames: [web.shop], rules: [{{{CART}}}]")),
        ),
        (PARENT_MISSING, "spec.parentRefs[1].name", parent("name: wbe"), parent("name: web")),
        (
            PARENT_PORT,
            "spec.parentRefs[1].port",
            parent("name: web, port: 81"),
            parent("name: web, port: 80, sectionName: http"),
        ),
        (PARENT_HEADLESS, "spec.parentRefs[1].name", parent("name: pods"), parent("name: web")),
        (
            BACKEND_MISSING,
            "spec.rules[0].backendRefs[0]",
            rule("backendRefs: [{name: cart, port: 82}]"),
            rule("backendRefs: [{name: cart, port: 81}]"),
        ),
        (
            BACKEND_KIND,
            "spec.rules[0].backendRefs[0]",
            rule("backendRefs: [{kind: Bucket, group: x.io, name: cart, port: 80}]"),
            rule(CART),
        ),
        (
            BACKEND_NOT_PERMITTED,
            "spec.rules[0].backendRefs[0]",
            rule("backendRefs: [{name: far, namespace: other, port: 80}]"),
            rule("backendRefs: [{name: far, namespace: other, port: 80}]") + GRANT,
        ),
        (
            BACKEND_NO_ENDPOINTS,
            "spec.rules[0].backendRefs[0]",
            rule("backendRefs: [{name: empty, port: 80}]"),
            rule(CART),
        ),
        (
            BACKEND_NO_WEIGHT,
            "spec.rules[0].backendRefs",
            rule("backendRefs: [{name: cart, port: 80, weight: 0}]"),
            rule("backendRefs: [{name: cart, port: 80, weight: 0}, {name: cart, port: 81}]"),
        ),
        (
            RULE_LEADS_NOWHERE,
            "spec.rules[0]",
            rule("timeouts: {request: 1s}"),
            rule(&redirect("hostname: elsewhere.example.com")),
        ),
        (
            RETRY_UNSAFE_METHODS,
            "spec.rules[0].retry",
            rule(&format!("matches: [{{method: POST}}], retry: {{attempts: 2}}, {CART}")),
            rule(&format!("matches: [{{method: GET}}], retry: {{attempts: 2}}, {CART}")),
        ),
        (
            TIMEOUT_SHORTER_THAN_TRIES,
            "spec.rules[0].timeouts.request",
            rule(&format!("timeouts: {{request: 1s, backendRequest: 500ms}}, retry: {{attempts: 2}}, {CART}")),
            rule(&format!("timeouts: {{request: 1500ms, backendRequest: 500ms}}, retry: {{attempts: 2}}, {CART}")),
        ),
        (
            SESSION_NOTHING_TO_KEEP,
            "spec.rules[0].sessionPersistence",
            rule(&format!("sessionPersistence: {{}}, {}", redirect("hostname: elsewhere"))),
            rule(&format!("sessionPersistence: {{}}, {CART}")),
        ),
        (REDIRECT_LOOP, "spec.rules[0].filters", rule(&redirect("statusCode: 301")), rule(&redirect("scheme: https"))),
        (MIRROR_TO_ITSELF, "spec.rules[0].filters[0].requestMirror.backendRef", mirror("cart"), mirror("web")),
        (
            ACCESS_INVALID,
            "spec.rules[0].from[0].networks[0]",
            policy("a", "rules: [{from: [{networks: [10.0.0.0/99]}]}]"),
            policy("a", "rules: [{from: [{networks: [10.0.0.0/9]}]}]"),
        ),
        (
            ACCESS_TARGET_MISSING,
            "spec.target.name",
            policy("a", "target: {kind: Service, name: wbe}, rules: [{}]"),
            policy("a", "target: {kind: Service, name: web}, rules: [{}]"),
        ),
        (
            ACCESS_SELECTS_NOTHING,
            "spec.target",
            policy("a", "target: {kind: StatefulSet, name: web}, rules: [{}]"),
            policy("a", "target: {kind: Deployment, name: web}, rules: [{}]"),
        ),
        (
            ACCESS_SHADOWED,
            "spec.rules[1]",
            policy(
                "a",
                "target: {kind: Deployment, name: web}, rules: [{to: [{paths: [/b]}]}, {to: [{paths: [/a/x]}]}]",
            ) + &policy("b", "action: Deny, rules: [{to: [{paths: ['/a/*']}]}]"),
            policy("a", "target: {kind: Deployment, name: web}, rules: [{to: [{paths: [/b/x]}]}]")
                + &policy("b", "action: Deny, rules: [{to: [{paths: ['/a/*']}]}]"),
        ),
        (
            ACCESS_REDUNDANT,
            "spec.rules[0]",
            policy("a", "rules: [{from: [{namespaces: [one, two]}]}]")
                + &policy("b", "rules: [{from: [{namespaces: [one]}], to: [{methods: [GET]}]}]"),
            policy("a", "rules: [{from: [{namespaces: [one, two]}]}]")
                + &policy("b", "rules: [{from: [{namespaces: [three]}]}]"),
        ),
        (
            EGRESS_INVALID,
            "spec.rules[0].networks[0]",
            egress("rules: [{networks: [192.0.2.0/33]}]"),
            egress("rules: [{networks: [192.0.2.0/24]}]"),
        ),
        (
            EGRESS_SELECTS_NOTHING,
            "spec.target",
            egress("target: {kind: Deployment, name: wbe}, rules: [{hosts: [a.example]}]"),
            egress("target: {kind: Deployment, name: web}, rules: [{hosts: [a.example]}]"),
        ),
        (
            TRAFFIC_INVALID,
            "spec.limits.requests",
            traffic("a", "limits: {requests: 0}"),
            traffic("a", "limits: {requests: 1}"),
        ),
        (
            TRAFFIC_TARGET_MISSING,
            "spec.targetRefs",
            traffic("a", "limits: {requests: 1}").replace("name: web", "name: wbe"),
            traffic("a", "limits: {requests: 1}"),
        ),
        (
            TRAFFIC_CONFLICTED,
            "spec.targetRefs",
            traffic("a", "limits: {requests: 1}") + &traffic("b", "limits: {requests: 2}"),
            traffic("a", "limits: {requests: 1}") + &traffic("b", "timeouts: {request: 1s}"),
        ),
        (
            FAULT_EVERYTHING,
            "spec.faults[0]",
            traffic("a", "faults: [{delay: 1s}]"),
            traffic("a", "faults: [{delay: 1s, percent: 5}]"),
        ),
        (
            RETRY_UNSAFE_METHODS,
            "spec.retry.unsafeMethods",
            traffic("a", "retry: {unsafeMethods: true}"),
            traffic("a", "retry: {attempts: 2}"),
        ),
        (
            TIMEOUT_SHORTER_THAN_TRIES,
            "spec.timeouts.request",
            traffic("a", "retry: {attempts: 1, perTryTimeout: 1s}, timeouts: {request: 1s}"),
            traffic("a", "retry: {attempts: 1, perTryTimeout: 1s}, timeouts: {request: 2s}"),
        ),
    ]
}

#[test]
fn each_case_is_found_where_it_is_and_nowhere_else() {
    for (lint, field, bad, good) in cases() {
        let told = found(&bad, Seen::Part);
        let ids: Vec<(&str, &str)> = told.iter().map(|(id, field, _)| (id.as_str(), field.as_str())).collect();
        assert_eq!(ids, [(lint.id, field)], "{bad}\n{told:#?}");
        assert_eq!(found(&good, Seen::Part), [], "{good}");
    }
}

#[test]
fn everything_that_can_be_found_has_a_case() {
    // Schemas are judged where they are known; proxies are there in clusters only.
    let elsewhere = [OBJECT_INVALID, OBJECT_UNKNOWN_FIELD, ACCESS_NOT_MESHED];
    let mut tested: Vec<&str> = cases().iter().map(|case| case.0.id).chain(elsewhere.map(|lint| lint.id)).collect();
    let mut known: Vec<&str> = LINTS.iter().map(|lint| lint.id).collect();
    tested.sort_unstable();
    tested.dedup();
    known.sort_unstable();
    assert_eq!(tested, known);
    known.dedup();
    assert_eq!(known.len(), LINTS.len(), "an id stands for two things");
}

#[test]
fn what_files_say_nothing_about_is_not_missed() {
    let only = |text: &str| {
        let subject = Subject::of_files(objects(text), MeshConfig::default());
        lint(&subject).into_iter().map(|finding| finding.lint.id).collect::<Vec<_>>()
    };
    assert_eq!(only(&rule(CART)), <[&str; 0]>::default());
    assert_eq!(only(&policy("a", "target: {kind: Deployment, name: web}, rules: [{}]")), <[&str; 0]>::default());
    assert_eq!(found(&rule("backendRefs: [{name: x, namespace: unseen, port: 80}]"), Seen::Part), []);
}

#[test]
fn files_may_refer_to_what_a_cluster_has() {
    let told = |files: &str| {
        let subject = Subject::of_files_on(objects(GROUND), objects(files), MeshConfig::default());
        let of_files = |finding: &Finding| finding.kind == "HTTPRoute" || finding.kind == "AccessPolicy";
        lint(&subject).into_iter().filter(of_files).map(|finding| finding.lint.id).collect::<Vec<_>>()
    };
    // There are no pods on this cluster: nobody is behind `cart`.
    assert_eq!(told(&rule(CART)), ["backend.no-endpoints"]);
    let cart =
        "---\n{apiVersion: v1, kind: Pod, metadata: {name: c, labels: {app: cart}}, spec: {containers: [{name: c}]}}\n";
    assert_eq!(told(&(rule(CART) + cart)), <[&str; 0]>::default());
    assert_eq!(told(&rule("backendRefs: [{name: nowhere, port: 80}]")), ["backend.missing"]);
    let selects = policy("a", "target: {kind: Pod, name: c}, rules: [{}]");
    assert_eq!(told(&selects), ["access.selects-nothing"]);
    assert_eq!(told(&(selects + cart)), <[&str; 0]>::default());
}

#[test]
fn pods_without_a_proxy_enforce_nothing() {
    let pod = |proxy: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p, labels: {{app: x}}}}, spec: {{initContainers: [{{name: {proxy}}}], containers: [{{name: c}}]}}, status: {{phase: Running}}}}\n"
        ) + &policy("a", "target: {selector: {matchLabels: {app: x}}}, rules: [{}]")
    };
    let ids = |text: &str| found(text, Seen::All).into_iter().map(|(id, ..)| id).collect::<Vec<_>>();
    assert_eq!(ids(&pod("other")), ["access.not-meshed"]);
    assert_eq!(ids(&pod("mesh-proxy")), <[String; 0]>::default());
}

#[test]
fn messages_say_what_was_seen() {
    for (text, expect) in [
        (rule("backendRefs: [{name: crt, port: 80}]"), "there is no Service shop/crt"),
        (parent("name: web, port: 81"), "the Service shop/web has no TCP port 81; it has 80 (http)"),
        (
            rule("timeout: {}, backendRefs: [{name: cart, port: 80}]"),
            "not known to this release; did you mean timeouts?",
        ),
        (
            rule(&format!("timeouts: {{request: 1s, backendRequest: 500ms}}, retry: {{attempts: 2}}, {CART}")),
            "1s for the whole request, and 3 tries of 500ms are 1s500ms",
        ),
        (
            rule(
                "filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /a}}}]",
            ),
            "http://web:80/ → http://web:80/a → http://web:80/a",
        ),
        (web(&format!("rules: [{{{CART}}}, {{name: second, {CART}}}]")), "httproute/shop/web/0 takes all of it"),
    ] {
        let told = found(&text, Seen::Part);
        assert!(told.iter().any(|(_, _, message)| message == expect), "{expect}\n{told:#?}");
    }
}

#[test]
fn an_older_route_outranks_another_with_the_same_conditions() {
    let route = |name: &str, created: &str| {
        format!(
            "---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: {name}, creationTimestamp: '{created}'}}, \
             spec: {{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{{{CART}}}]}}}}\n"
        )
    };
    let told = |text: &str| {
        let subject = Subject::of_files(objects(&format!("{GROUND}{text}")), MeshConfig::default());
        lint(&subject).iter().map(|finding| (finding.lint.id, finding.name.name.clone())).collect::<Vec<_>>()
    };
    let text = route("first", "2026-01-02T00:00:00Z") + &route("second", "2026-01-01T00:00:00Z");
    assert_eq!(told(&text), [("route.unreachable", "first".to_owned())]);
}

#[test]
fn redirects_are_followed_through_rules() {
    let there_and_back = "rules: [
        {matches: [{path: {type: Exact, value: /a}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /b}}}]},
        {matches: [{path: {type: Exact, value: /b}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /a}}}]}]";
    let ids =
        |spec: &str| found(&web(spec), Seen::Part).into_iter().map(|(id, field, _)| (id, field)).collect::<Vec<_>>();
    let looped = |rule: usize| ("redirect.loop".to_owned(), format!("spec.rules[{rule}].filters"));
    assert_eq!(ids(there_and_back), [looped(0), looped(1)]);
    let onwards = there_and_back.replace("replaceFullPath: /a", "replaceFullPath: /c");
    assert_eq!(ids(&onwards), []);
    let prefix = "rules: [{matches: [{path: {value: /old}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: NEW}}}]}]";
    assert_eq!(ids(&prefix.replace("NEW", "/old/er")), [], "each step is another path");
    assert_eq!(ids(&prefix.replace("NEW", "/old")), [looped(0)]);
    assert_eq!(ids(&prefix.replace("NEW", "/new")), []);
}

#[test]
fn the_committed_page_is_that_of_the_code() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("LINTS.md");
    let page = reference();
    if std::env::var_os("MESH_UPDATE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(committed, page, "run with MESH_UPDATE=1 to write LINTS.md anew");
}
