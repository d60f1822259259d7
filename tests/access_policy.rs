//! Access policies between pods: each field of AccessPolicy, each action, each default, and where refusals show.
//!
//! All tests share two namespaces and run one after the other: a policy changes what everybody there may do.

mod gate;
mod seen;

use crate::harness::{Need, eventually, test};
use crate::peer::ports;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;
use std::time::Duration;

pub(crate) use gate::{ALICE, BOB, GET, Gate, OUTSIDER};
use gate::{CAROL, Caller, deployment, service};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl"), Need::Program("curl")];
/// Where the callees and most callers are.
pub(crate) const NS: &str = "gate";
/// Where one caller is.
const OTHER_NS: &str = "gate-two";
/// A policy reaches proxies within a second; the machine may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(15);

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| test(&format!("access_policy::{name}"), NEEDS, run);
    vec![
        test("identities_exact_and_by_pattern", identities_exact_and_by_pattern),
        test("service_accounts", service_accounts),
        test("namespaces", namespaces),
        test("networks", networks),
        test("unauthenticated", unauthenticated),
        test("ports", ports_of_operations),
        test("methods", methods),
        test("paths", paths),
        test("headers", headers),
        test("grpc_methods", grpc_methods),
        test("target", target),
        test("target_routes", target_routes),
        test("deny_beats_allow", deny_beats_allow),
        test("audit_counts_and_changes_nothing", audit_counts_and_changes_nothing),
        test("defaults", defaults),
        test("default_of_a_workload", default_of_a_workload),
        test("probes_pass_under_deny", probes_pass_under_deny),
        test("opaque_connections_are_refused", opaque_connections_are_refused),
        test("refusals_are_seen", seen::refusals_are_seen),
        test("status_says_whether_a_policy_is_in_force", seen::status_says_whether_a_policy_is_in_force),
        test("mistakes_are_refused", seen::mistakes_are_refused),
        test("a_change_under_load_fails_nothing_both_allow", seen::a_change_under_load_fails_nothing_both_allow),
        test("explain_shows_the_decision", seen::explain_shows_the_decision),
        test("policy_test_says_what_would_change", seen::policy_test_says_what_would_change),
        test("policy_suggest_lets_in_what_was_seen_and_nobody_else", seen::policy_suggest_lets_in_what_was_seen),
        test("a_cluster_without_the_kind_works", seen::a_cluster_without_the_kind_works),
    ]
}

fn identities_exact_and_by_pattern() -> Result<()> {
    let g = Gate::open()?;
    g.allow(json!([{"identities": ["spiffe://cluster.local/ns/gate/sa/alice"]}]), json!([]))?;
    g.expect(&[(ALICE, GET, 200), (BOB, GET, 403), (CAROL, GET, 403), (OUTSIDER, GET, 403)])?;
    g.allow(json!([{"identities": ["spiffe://cluster.local/ns/*/sa/*o*"]}]), json!([]))?;
    g.expect(&[(ALICE, GET, 403), (BOB, GET, 200), (CAROL, GET, 200), (OUTSIDER, GET, 403)])
}

fn service_accounts() -> Result<()> {
    let g = Gate::open()?;
    g.allow(json!([{"serviceAccounts": ["bob", "gate-two/carol"]}]), json!([]))?;
    g.expect(&[(ALICE, GET, 403), (BOB, GET, 200), (CAROL, GET, 200), (OUTSIDER, GET, 403)])
}

fn namespaces() -> Result<()> {
    let g = Gate::open()?;
    g.allow(json!([{"namespaces": ["gate-two"]}]), json!([]))?;
    g.expect(&[(ALICE, GET, 403), (BOB, GET, 403), (CAROL, GET, 200), (OUTSIDER, GET, 403)])
}

fn networks() -> Result<()> {
    let g = Gate::open()?;
    let (alice, outsider) = (g.ip(ALICE)?, g.ip(OUTSIDER)?);
    g.allow(json!([{"networks": [alice, format!("{outsider}/32")]}]), json!([]))?;
    g.expect(&[(ALICE, GET, 200), (BOB, GET, 403), (CAROL, GET, 403), (OUTSIDER, GET, 200)])
}

fn unauthenticated() -> Result<()> {
    let g = Gate::open()?;
    g.allow(json!([{"unauthenticated": true}]), json!([]))?;
    g.expect(&[(ALICE, GET, 403), (BOB, GET, 403), (CAROL, GET, 403), (OUTSIDER, GET, 200)])
}

fn ports_of_operations() -> Result<()> {
    let g = Gate::open()?;
    let two = "--http2-prior-knowledge http://origin.gate:8081/some";
    g.expect(&[(ALICE, two, 200)])?;
    g.allow(json!([]), json!([{"ports": [ports::HTTP2]}]))?;
    g.expect(&[(ALICE, GET, 403), (ALICE, two, 200), (OUTSIDER, GET, 403), (OUTSIDER, two, 200)])
}

fn methods() -> Result<()> {
    let g = Gate::open()?;
    g.allow(json!([]), json!([{"methods": ["GET"]}]))?;
    let post = "-d text http://origin.gate:8080/some";
    g.expect(&[(ALICE, GET, 200), (ALICE, post, 403), (OUTSIDER, GET, 200), (OUTSIDER, post, 403)])
}

fn paths() -> Result<()> {
    let g = Gate::open()?;
    g.allow(json!([]), json!([{"paths": ["/exact", "/below/*", "*/edit"]}]))?;
    let at = |path: &str| format!("--path-as-is 'http://origin.gate:8080{path}'");
    let check = |path: &str, expect: u16| g.expect(&[(ALICE, &at(path), expect)]);
    check("/other", 403)?;
    check("/exact", 200)?;
    check("/exact?query", 200)?;
    check("/exact/more", 403)?;
    check("/below/some/thing", 200)?;
    check("/a/b/edit", 200)?;
    check("/below/../other", 403)?;
    check("/below/%2e%2e/other", 403)?;
    g.policy("test", json!({"action": "Deny", "rules": [{"to": [{"paths": ["/admin/*"]}]}]}))?.ok()?;
    check("/admin/x", 403)?;
    check("/x", 200)?;
    check("//admin/x", 403)?;
    check("/%61dmin", 403)?;
    check("/x/../admin", 403)
}

fn headers() -> Result<()> {
    let g = Gate::open()?;
    let fields = json!([{"name": "X-Team", "values": ["red", "blue-*"]}, {"name": "x-there"}]);
    g.allow(json!([]), json!([{"headers": fields}]))?;
    let with = |team: &str| format!("-H 'x-there: 1' -H 'x-team: {team}' {GET}");
    g.expect(&[
        (ALICE, GET, 403),
        (ALICE, &with("red"), 200),
        (ALICE, &with("blue-7"), 200),
        (ALICE, &with("green"), 403),
        (ALICE, &format!("-H 'x-team: red' {GET}"), 403),
    ])
}

/// `grpc-status` of a call without content.
fn grpc_status(g: &Gate, caller: Caller, method: &str) -> Result<String> {
    let line = format!(
        "curl -sS --max-time 5 --http2-prior-knowledge -H 'content-type: application/grpc' -H 'te: trailers' \
         --data-binary '' -D - -o /dev/null http://origin.gate:8081/test.Echo/{method}"
    );
    let said = g.exec(caller, &["bash", "-c", &line])?.ok()?.stdout;
    let status = said.lines().find_map(|line| line.strip_prefix("grpc-status: ")).map(str::trim);
    Ok(status.unwrap_or("none").to_owned())
}

fn grpc_methods() -> Result<()> {
    let g = Gate::open()?;
    let status = |method: &str| grpc_status(&g, ALICE, method);
    g.allow(json!([]), json!([{"grpcMethods": ["test.Echo/Missing"]}]))?;
    eventually(SOON, "only one method is let in", || {
        // The origin answers this one with NOT_FOUND; 7 is PERMISSION_DENIED.
        ensure!(status("Missing")? == "5" && status("Server")? == "7", "{} {}", status("Missing")?, status("Server")?);
        Ok(())
    })?;
    g.allow(json!([]), json!([{"grpcMethods": ["test.Echo/*"]}]))?;
    eventually(SOON, "the whole service is let in", || {
        ensure!(status("Missing")? == "5" && status("Server")? == "0", "{}", status("Server")?);
        Ok(())
    })?;
    // What is no call of gRPC is none of these methods.
    g.expect(&[(ALICE, "--http2-prior-knowledge http://origin.gate:8081/test.Echo/Missing", 403)])
}

fn target() -> Result<()> {
    let g = Gate::open()?;
    let second = "http://second.gate:8080/some";
    let only_bob = json!([{"from": [{"serviceAccounts": ["bob"]}]}]);
    for target in [
        json!({"kind": "Deployment", "name": "second"}),
        json!({"kind": "Service", "name": "second"}),
        json!({"selector": {"matchLabels": {"app": "second"}}}),
        json!({"selector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["origin"]}]}}),
    ] {
        g.policy("test", json!({"target": target, "rules": only_bob}))?.ok()?;
        g.expect(&[(ALICE, second, 403), (BOB, second, 200), (ALICE, GET, 200)]).with_context(|| target.to_string())?;
        g.sandbox.kubectl(["-n", NS, "delete", "accesspolicy", "test"])?.ok()?;
        g.expect(&[(ALICE, second, 200)])?;
    }
    g.policy("test", json!({"rules": only_bob}))?.ok()?;
    g.expect(&[(ALICE, second, 403), (BOB, second, 200), (ALICE, GET, 403), (BOB, GET, 200)])
}

fn target_routes() -> Result<()> {
    let g = Gate::open()?;
    let group = "gateway.networking.k8s.io/v1";
    let parent = json!([{"group": "", "kind": "Service", "name": "origin"}]);
    let backend = |port: u16| json!([{"name": "origin", "port": port}]);
    let http = json!({"apiVersion": group, "kind": "HTTPRoute", "metadata": {"name": "web", "namespace": NS},
    "spec": {"parentRefs": parent, "rules": [
        {"matches": [{"path": {"type": "PathPrefix", "value": "/api"}}], "backendRefs": backend(ports::HTTP1)},
        {"matches": [{"path": {"type": "PathPrefix", "value": "/old"}}], "backendRefs": backend(ports::HTTP1), "filters": [
            {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}}}]},
    ]}});
    let other = json!({"apiVersion": group, "kind": "HTTPRoute", "metadata": {"name": "rest", "namespace": NS},
    "spec": {"parentRefs": parent, "rules": [
        {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "backendRefs": backend(ports::HTTP1)}]}});
    for route in [&http, &other] {
        g.sandbox.kubectl_with_input(["apply", "-f", "-"], &route.to_string())?.ok()?;
    }
    let at = |path: &str| format!("http://origin.gate:8080{path}");
    let only_bob = json!([{"from": [{"serviceAccounts": ["bob"]}]}]);
    g.policy("test", json!({"target": {"kind": "HTTPRoute", "name": "web"}, "rules": only_bob}))?.ok()?;
    // Requests of the route, with or without the mesh, as they are when they arrive; and no others.
    g.expect(&[
        (ALICE, &at("/api/x"), 403),
        (BOB, &at("/api/x"), 200),
        (OUTSIDER, &at("/api/x"), 403),
        (ALICE, &at("/old/x"), 403),
        (BOB, &at("/old/x"), 200),
        (ALICE, &at("/apis"), 200),
        (ALICE, GET, 200),
        (OUTSIDER, GET, 200),
    ])?;
    g.policy("test", json!({"target": {"kind": "HTTPRoute", "name": "web"}, "action": "Deny", "rules": [{}]}))?.ok()?;
    g.expect(&[(BOB, &at("/api/x"), 403), (BOB, GET, 200)])?;
    // A change of the route changes what the policy is about.
    let mut changed = http.clone();
    changed["spec"]["rules"][0]["matches"][0]["path"]["value"] = json!("/v2");
    g.sandbox.kubectl_with_input(["apply", "-f", "-"], &changed.to_string())?.ok()?;
    g.expect(&[(BOB, &at("/api/x"), 200), (BOB, &at("/v2/x"), 403)])?;
    g.sandbox.kubectl(["-n", NS, "delete", "httproute", "web", "rest"])?.ok()?;
    eventually(SOON, "the policy has lost its target", || {
        let path = "jsonpath={.status.conditions[?(@.type=='Accepted')].reason}";
        g.sandbox.kubectl(["-n", NS, "get", "accesspolicy", "test", "-o", path])?.ok()?.says("TargetNotFound")?;
        Ok(())
    })?;
    // Calls of gRPC.
    let call = json!({"apiVersion": group, "kind": "GRPCRoute", "metadata": {"name": "calls", "namespace": NS},
    "spec": {"parentRefs": parent, "rules": [
        {"matches": [{"method": {"service": "test.Echo", "method": "Missing"}}], "backendRefs": backend(ports::HTTP2)},
        {"backendRefs": backend(ports::HTTP2)}]}});
    let mut only_missing = call.clone();
    only_missing["spec"]["rules"] = json!([call["spec"]["rules"][0]]);
    g.sandbox.kubectl_with_input(["apply", "-f", "-"], &only_missing.to_string())?.ok()?;
    g.policy("test", json!({"target": {"kind": "GRPCRoute", "name": "calls"}, "action": "Deny", "rules": [{}]}))?
        .ok()?;
    eventually(SOON, "the method is refused", || {
        let status = grpc_status(&g, ALICE, "Missing")?;
        ensure!(status == "7", "{status}");
        Ok(())
    })?;
    g.sandbox.kubectl(["-n", NS, "delete", "grpcroute", "calls"])?.ok()?;
    Ok(())
}

fn deny_beats_allow() -> Result<()> {
    let g = Gate::open()?;
    g.policy("a-all", json!({"rules": [{}]}))?.ok()?;
    g.policy("b-not-bob", json!({"action": "Deny", "rules": [{"from": [{"serviceAccounts": ["bob"]}]}]}))?.ok()?;
    g.expect(&[(ALICE, GET, 200), (BOB, GET, 403), (CAROL, GET, 200), (OUTSIDER, GET, 200)])?;
    // Without the policy that allows, the default does; the refusal stays.
    g.sandbox.kubectl(["-n", NS, "delete", "accesspolicy", "a-all"])?.ok()?;
    g.expect(&[(ALICE, GET, 200), (BOB, GET, 403)])?;
    g.default_access(Some("deny"))?;
    g.expect(&[(ALICE, GET, 403), (BOB, GET, 403)])
}

fn audit_counts_and_changes_nothing() -> Result<()> {
    let g = Gate::open()?;
    g.policy("watched", json!({"action": "Audit", "rules": [{"from": [{"serviceAccounts": ["bob"]}]}]}))?.ok()?;
    eventually(SOON, "what is audited is counted", || {
        ensure!(g.status(BOB, GET)? == 200 && g.status(ALICE, GET)? == 200, "an audit changes the outcome");
        let line = r#"mesh_access_decisions_total{decision="audit",tls="mutual",policy="gate/watched"}"#;
        ensure!(g.metrics()?.contains(line), "no {line}");
        Ok(())
    })?;
    let logs = g.sandbox.kubectl(["-n", NS, "logs", "deploy/origin", "-c", "mesh-proxy"])?.ok()?.stdout;
    let told =
        logs.lines().filter(|line| line.contains("audited by an access policy") && line.contains("gate/watched"));
    ensure!(told.clone().count() == 1, "one line a minute for a caller: {logs}");
    ensure!(told.clone().all(|line| line.contains("sa/bob") && line.contains("GET /some")), "{logs}");
    Ok(())
}

fn defaults() -> Result<()> {
    let g = Gate::open()?;
    for (default, meshed, plain) in
        [("authenticated", 200, 403), ("cluster", 200, 200), ("deny", 403, 403), ("audit", 200, 200), ("all", 200, 200)]
    {
        g.default_access(Some(default))?;
        g.expect(&[(ALICE, GET, meshed), (CAROL, GET, meshed), (OUTSIDER, GET, plain)]).context(default)?;
        if default == "audit" {
            let line = r#"mesh_access_decisions_total{decision="audit",tls="none",policy="default"}"#;
            ensure!(g.metrics()?.contains(line), "no {line}");
        }
    }
    // A policy outranks the default.
    g.default_access(Some("deny"))?;
    g.allow(json!([{"serviceAccounts": ["alice"]}]), json!([]))?;
    g.expect(&[(ALICE, GET, 200), (BOB, GET, 403), (OUTSIDER, GET, 403)])
}

fn default_of_a_workload() -> Result<()> {
    let g = Gate::open()?;
    let mut strict = deployment("strict", json!({"meshctl.dev/default-access": "authenticated"}));
    // Whatever the namespace says.
    g.default_access(Some("deny"))?;
    g.sandbox.kubectl_with_input(["apply", "-f", "-"], &strict.to_string())?.ok()?;
    g.sandbox.kubectl_with_input(["apply", "-f", "-"], &service("strict").to_string())?.ok()?;
    g.sandbox.kubectl(["-n", NS, "wait", "--for=condition=Available", "deploy/strict", "--timeout=60s"])?.ok()?;
    let url = "http://strict.gate:8080/some";
    g.expect(&[(ALICE, url, 200), (OUTSIDER, url, 403), (ALICE, GET, 403)])?;
    let pods = strict["spec"]["template"].take();
    let wrong = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "wrong", "namespace": NS,
        "annotations": {"meshctl.dev/inject": "enabled", "meshctl.dev/default-access": "nobody"}}, "spec": pods["spec"]});
    g.sandbox
        .kubectl_with_input(["apply", "-f", "-"], &wrong.to_string())?
        .exits(1)?
        .complains("write `all`, `authenticated`, `cluster`, `deny` or `audit`")?;
    g.sandbox.kubectl(["-n", NS, "delete", "deploy/strict", "svc/strict"])?.ok()?;
    Ok(())
}

fn probes_pass_under_deny() -> Result<()> {
    let g = Gate::open()?;
    g.default_access(Some("deny"))?;
    let ready = "http://origin.gate:8080/ready";
    // The path of the probe, for those without identity only, and nothing beside it.
    g.expect(&[(OUTSIDER, GET, 403), (OUTSIDER, ready, 200), (ALICE, ready, 403)])?;
    g.expect(&[(OUTSIDER, "-X POST http://origin.gate:8080/ready", 403)])?;
    // A pod that starts under `deny` becomes ready, and stays alive.
    g.sandbox.kubectl(["-n", NS, "rollout", "restart", "deploy/second"])?.ok()?;
    g.sandbox.kubectl(["-n", NS, "rollout", "status", "deploy/second", "--timeout=60s"])?.ok()?;
    std::thread::sleep(Duration::from_secs(7)); // longer than the liveness probe would take to give up
    let restarts = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let counts = g.sandbox.kubectl(["-n", NS, "get", "pods", "-l", "app=second", "-o", restarts])?.ok()?.stdout;
    ensure!(counts.split_whitespace().all(|count| count == "0"), "restarted: {counts}");
    g.sandbox.kubectl(["-n", NS, "wait", "--for=condition=Available", "deploy", "--all", "--timeout=30s"])?.ok()?;
    Ok(())
}

fn opaque_connections_are_refused() -> Result<()> {
    let g = Gate::open()?;
    let says = |caller: Caller, port: u16, words: &str| -> Result<String> {
        let line = format!("exec 3<>/dev/tcp/origin.gate/{port} && {{ {words} timeout 3 head -n1 <&3; }}");
        Ok(g.exec(caller, &["bash", "-c", &line])?.stdout)
    };
    let greeted = |caller| says(caller, ports::GREETS, "");
    let echoed = |caller| says(caller, ports::ECHOES, "echo hello >&3;");
    eventually(SOON, "both servers answer", || {
        ensure!(greeted(ALICE)?.starts_with("220") && echoed(ALICE)?.starts_with("hello"), "not yet");
        Ok(())
    })?;
    g.allow(json!([{"serviceAccounts": ["bob"]}]), json!([]))?;
    eventually(SOON, "only one caller is served", || {
        for caller in [ALICE, OUTSIDER] {
            ensure!(greeted(caller)?.is_empty() && echoed(caller)?.is_empty(), "{} is served", caller.1);
        }
        ensure!(greeted(BOB)?.starts_with("220") && echoed(BOB)?.starts_with("hello"), "bob is not served");
        Ok(())
    })?;
    // A rule about requests lets nobody in whose requests are not seen.
    g.allow(json!([]), json!([{"paths": ["/some"]}]))?;
    g.expect(&[(ALICE, GET, 200), (ALICE, "http://origin.gate:8080/other", 403)])?;
    ensure!(echoed(ALICE)?.is_empty() && echoed(BOB)?.is_empty(), "an opaque connection passed a rule about paths");
    Ok(())
}
