//! Access policies between pods: each field of AccessPolicy, each action, each default, and where refusals show.
//!
//! All tests share two namespaces and run one after the other: a policy changes what everybody there may do.

use crate::harness::{Need, Ran, SHOP, Sandbox, eventually, test};
use crate::peer::ports;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

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
        test("refusals_are_seen", refusals_are_seen),
        test("status_says_whether_a_policy_is_in_force", status_says_whether_a_policy_is_in_force),
        test("mistakes_are_refused", mistakes_are_refused),
        test("a_change_under_load_fails_nothing_both_allow", a_change_under_load_fails_nothing_both_allow),
        test("explain_shows_the_decision", explain_shows_the_decision),
        test("policy_test_says_what_would_change", policy_test_says_what_would_change),
        test("policy_suggest_lets_in_what_was_seen_and_nobody_else", policy_suggest_lets_in_what_was_seen),
        test("a_cluster_without_the_kind_works", a_cluster_without_the_kind_works),
    ]
}

static READY: Mutex<bool> = Mutex::new(false);

/// The namespaces with their pods, for one test at a time.
pub(crate) struct Gate {
    pub(crate) sandbox: &'static Sandbox,
    _alone: MutexGuard<'static, bool>,
}

impl Gate {
    /// The gate, open: without policies.
    pub(crate) fn open() -> Result<Self> {
        let mut ready = READY.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let sandbox = SHOP.get()?;
        if !*ready {
            lay(sandbox)?;
            *ready = true;
        }
        let gate = Self { sandbox, _alone: ready };
        for namespace in [NS, OTHER_NS] {
            gate.sandbox.kubectl(["-n", namespace, "delete", "accesspolicies", "--all"])?.ok()?;
        }
        gate.default_access(None)?;
        gate.expect(&[(ALICE, GET, 200), (BOB, GET, 200), (CAROL, GET, 200), (OUTSIDER, GET, 200)])?;
        Ok(gate)
    }

    /// Applies a policy of the callee's namespace.
    pub(crate) fn policy(&self, name: &str, spec: Value) -> Result<Ran> {
        let policy = json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "AccessPolicy",
            "metadata": {"name": name, "namespace": NS}, "spec": spec});
        self.sandbox.kubectl_with_input(["apply", "-f", "-"], &policy.to_string())
    }

    /// Applies a policy with one rule: who, and what.
    fn allow(&self, from: Value, to: Value) -> Result<()> {
        self.policy("test", json!({"rules": [{"from": from, "to": to}]}))?.ok()?;
        Ok(())
    }

    /// Sets or removes the default of the callee's namespace.
    fn default_access(&self, default: Option<&str>) -> Result<()> {
        let annotation = match default {
            Some(default) => format!("meshctl.dev/default-access={default}"),
            None => "meshctl.dev/default-access-".to_owned(),
        };
        self.sandbox.kubectl(["annotate", "--overwrite", "namespace", NS, &annotation])?.ok()?;
        Ok(())
    }

    pub(crate) fn exec(&self, caller: Caller, command: &[&str]) -> Result<Ran> {
        let exec = ["-n", caller.0, "exec", caller.1, "-c", "main", "--", "timeout", "20"];
        self.sandbox.kubectl(exec.iter().chain(command))
    }

    /// Status of the answer to `curl ARGUMENTS` against the origin; 0 for none.
    pub(crate) fn status(&self, caller: Caller, arguments: &str) -> Result<u16> {
        let line = format!("curl -sS -o /dev/null --max-time 5 -w '%{{http_code}}' {arguments}");
        let ran = self.exec(caller, &["bash", "-c", &line])?;
        ran.stdout.trim().parse().with_context(|| format!("{line}: {} {}", ran.stdout, ran.stderr))
    }

    /// Waits until every call is answered with its status, all of them in one go.
    pub(crate) fn expect(&self, calls: &[(Caller, &str, u16)]) -> Result<()> {
        eventually(SOON, "the policy is in force", || {
            for (caller, arguments, expect) in calls {
                let got = self.status(*caller, arguments)?;
                ensure!(got == *expect, "{} {arguments}: {got}, not {expect}", caller.1);
            }
            Ok(())
        })
    }

    /// Text of the origin's metrics.
    fn metrics(&self) -> Result<String> {
        Ok(self.sandbox.meshctl(["diagnostics", "proxy-metrics", "deploy/origin", "-n", NS])?.ok()?.stdout)
    }

    fn ip(&self, caller: Caller) -> Result<String> {
        let ran = self.sandbox.kubectl(["-n", caller.0, "get", "pod", caller.1, "-o", "jsonpath={.status.podIP}"])?;
        Ok(ran.ok()?.stdout.trim().to_owned())
    }
}

/// Namespace and pod of a caller.
pub(crate) type Caller = (&'static str, &'static str);
pub(crate) const ALICE: Caller = (NS, "alice");
pub(crate) const BOB: Caller = (NS, "bob");
const CAROL: Caller = (OTHER_NS, "carol");
/// Without a proxy.
pub(crate) const OUTSIDER: Caller = (NS, "outsider");
pub(crate) const GET: &str = "http://origin.gate:8080/some";

fn lay(sandbox: &Sandbox) -> Result<()> {
    let ourselves = std::env::current_exe()?;
    let peer = ourselves.with_file_name("mesh-peer");
    if !peer.exists() {
        std::fs::hard_link(&ourselves, &peer)?;
    }
    let peer = peer.to_str().context("path")?;
    sandbox.meshctl(["sandbox", "image", "add", "--name", &sandbox.name, "mesh-peer", peer])?.ok()?;
    let namespaces =
        [NS, OTHER_NS].map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    let accounts = [ALICE, BOB, CAROL].map(|(namespace, name)| {
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}})
    });
    let mut items: Vec<Value> = namespaces.into_iter().chain(accounts).collect();
    items.extend([
        deployment("origin", json!({})),
        service("origin"),
        deployment("second", json!({})),
        service("second"),
    ]);
    items.extend([ALICE, BOB, CAROL].map(|(namespace, name)| caller(namespace, name, name, true)));
    items.push(caller(NS, "outsider", "default", false));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    sandbox.kubectl_with_input(["apply", "-f", "-"], &list.to_string())?.ok()?;
    sandbox.kubectl(["-n", NS, "wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?.ok()?;
    for namespace in [NS, OTHER_NS] {
        sandbox.kubectl(["-n", namespace, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?.ok()?;
    }
    Ok(())
}

fn deployment(name: &str, annotations: Value) -> Value {
    let mut annotations = annotations;
    annotations["meshctl.dev/inject"] = json!("enabled");
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": NS},
    "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
        "metadata": {"labels": {"app": name}, "annotations": annotations},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
            "name": "main", "image": "mesh-peer", "args": ["origin"],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": ports::HTTP1}, "periodSeconds": 1},
            "livenessProbe": {"tcpSocket": {"port": ports::ECHOES}, "periodSeconds": 1, "failureThreshold": 5},
        }]}}}})
}

fn service(name: &str) -> Value {
    let port = |name: &str, port: u16| json!({"name": name, "port": port, "targetPort": port});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NS},
    "spec": {"selector": {"app": name}, "ports": [
        port("one", ports::HTTP1), port("two", ports::HTTP2), port("greets", ports::GREETS), port("echoes", ports::ECHOES),
    ]}})
}

fn caller(namespace: &str, name: &str, account: &str, meshed: bool) -> Value {
    let inject = if meshed { "enabled" } else { "disabled" };
    json!({"apiVersion": "v1", "kind": "Pod",
    "metadata": {"name": name, "namespace": namespace, "annotations": {"meshctl.dev/inject": inject}},
    "spec": {"serviceAccountName": account, "terminationGracePeriodSeconds": 1, "containers": [
        {"name": "main", "image": "mesh-peer", "args": ["idle"]},
    ]}})
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

fn refusals_are_seen() -> Result<()> {
    let g = Gate::open()?;
    g.allow(json!([{"serviceAccounts": ["bob"]}]), json!([]))?;
    g.expect(&[(ALICE, GET, 403), (BOB, GET, 200)])?;
    // The answer says what it is and who is meant; to a stranger it names no policy.
    let text = g.exec(ALICE, &["curl", "-sS", "-i", GET])?.ok()?.stdout;
    for word in ["mesh-error: access-denied", "ns/gate/sa/alice", "AccessPolicy gate/test"] {
        ensure!(text.contains(word), "no {word}: {text}");
    }
    let text = g.exec(OUTSIDER, &["curl", "-sS", "-i", GET])?.ok()?.stdout;
    ensure!(text.contains("access-denied") && !text.contains("gate/test"), "{text}");
    // The metric.
    let metrics = g.metrics()?;
    for tls in ["mutual", "none"] {
        let line = format!(r#"mesh_access_decisions_total{{decision="deny",tls="{tls}",policy="gate/test"}}"#);
        ensure!(metrics.contains(&line), "no {line}");
    }
    // The log, once for each caller however many there were.
    let logs = g.sandbox.kubectl(["-n", NS, "logs", "deploy/origin", "-c", "mesh-proxy"])?.ok()?.stdout;
    let told: Vec<_> = logs.lines().filter(|line| line.contains("denied") && line.contains("gate/test")).collect();
    ensure!(told.iter().any(|line| line.contains("sa/alice")), "{logs}");
    // A tap, and golden metrics.
    let tap = std::thread::scope(|scope| -> Result<Ran> {
        let tap = scope.spawn(|| {
            let line = "tap deploy/origin -n gate --for 6s -o json";
            g.sandbox.meshctl(line.split_whitespace())
        });
        for _ in 0..8 {
            g.status(ALICE, GET)?;
            std::thread::sleep(Duration::from_millis(300));
        }
        tap.join().map_err(|_| anyhow::anyhow!("the tap panicked"))?
    })?;
    ensure!(tap.stdout.contains("access-denied"), "{} {}", tap.stdout, tap.stderr);
    let golden = "/apis/observe.meshctl.dev/v1alpha1/namespaces/gate/workloads/all/golden?window=60&frames=1";
    g.sandbox.kubectl(["get", "--raw", golden])?.ok()?.says(r#""errors":{"access-denied":"#)?;
    Ok(())
}

fn status_says_whether_a_policy_is_in_force() -> Result<()> {
    let g = Gate::open()?;
    let accepted = || -> Result<Value> {
        let policy = g.sandbox.kubectl(["-n", NS, "get", "accesspolicy", "test", "-o", "json"])?.ok()?.stdout;
        let policy: Value = serde_json::from_str(&policy)?;
        let conditions = policy["status"]["conditions"].as_array().into_iter().flatten();
        let found = conditions.clone().find(|condition| condition["type"] == "Accepted");
        found.cloned().with_context(|| policy.to_string())
    };
    g.policy("test", json!({"target": {"kind": "Service", "name": "origin"}, "rules": [{}]}))?.ok()?;
    eventually(SOON, "it is accepted", || {
        let condition = accepted()?;
        ensure!(condition["status"] == "True" && condition["observedGeneration"].is_i64(), "{condition}");
        Ok(())
    })?;
    g.policy("test", json!({"target": {"kind": "Service", "name": "none"}, "rules": [{}]}))?.ok()?;
    eventually(SOON, "it is not accepted", || {
        let condition = accepted()?;
        ensure!(condition["status"] == "False" && condition["reason"] == "TargetNotFound", "{condition}");
        Ok(())
    })?;
    g.sandbox.kubectl(["-n", NS, "get", "accesspolicies"])?.ok()?.says("False")?;
    Ok(())
}

fn mistakes_are_refused() -> Result<()> {
    let g = Gate::open()?;
    for (spec, complaint) in [
        (json!({"rules": []}), "spec.rules"),
        (json!({"action": "Forbid", "rules": [{}]}), "spec.action"),
        (json!({"target": {"kind": "Gadget", "name": "a"}, "rules": [{}]}), "spec.target.kind"),
        (json!({"rules": [{"to": [{"ports": [0]}]}]}), "ports[0]"),
        (json!({"rules": [{"to": [{"paths": ["some"]}]}]}), "paths[0]"),
        (json!({"rules": [{"from": [{"networks": ["example.org"]}]}]}), "networks[0]"),
        (json!({"rules": [{"from": [{}]}]}), "from[0]"),
        (json!({"target": {"kind": "Pod"}, "rules": [{}]}), "kind and name go together"),
        (json!({"target": {}, "rules": [{}]}), "write kind and name, or a selector"),
        (
            json!({"rules": [{"from": [{"unauthenticated": true, "namespaces": ["a"]}]}]}),
            "a caller without identity has no",
        ),
    ] {
        g.policy("test", spec.clone())?.exits(1)?.complains(complaint).with_context(|| spec.to_string())?;
    }
    g.expect(&[(ALICE, GET, 200)])
}

/// Held against what proxies have seen and against a recording of it, a policy that is not applied says whom it would
/// refuse.
fn policy_test_says_what_would_change() -> Result<()> {
    let g = Gate::open()?;
    let policy = json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "new"},
        "spec": {"target": {"kind": "Deployment", "name": "origin"}, "rules": [{"from": [{"serviceAccounts": ["alice"]}]}]}});
    let folder = tempfile::tempdir()?;
    let recording = folder.path().join("seen.rec");
    let path = "/apis/observe.meshctl.dev/v1alpha1/namespaces/gate/workloads/all/golden?window=300&frames=1";
    let frame = eventually(SOON, "bob's calls are seen", || {
        g.expect(&[(ALICE, GET, 200), (BOB, GET, 200)])?;
        let frame = g.sandbox.kubectl(["get", "--raw", path])?.ok()?.stdout;
        ensure!(frame.contains("\"bob\"") && frame.contains("\"alice\""), "{frame}");
        Ok(frame)
    })?;
    record(&recording, &frame)?;
    let recorded = recording.to_str().context("path")?;
    for seen in [&[][..], &["--recording", recorded]] {
        let command = ["policy", "test", "-f", "-", "-n", NS, "-o", "json"].iter().chain(seen);
        let ran = g.sandbox.meshctl_with_input(command, &policy.to_string())?.exits(1)?;
        let changes: Value = serde_json::from_str(&ran.stdout)?;
        let changes = changes.as_array().context("no list")?;
        let of = |caller: &str| -> Vec<&Value> {
            changes.iter().filter(|change| change["src"].as_str().is_some_and(|src| src.ends_with(caller))).collect()
        };
        ensure!(!of("/bob").is_empty() && of("/alice").is_empty(), "{seen:?}: {}", ran.stdout);
        for change in of("/bob") {
            let verdicts = (&change["allowed_now"], &change["allowed_then"]);
            ensure!(verdicts == (&json!(true), &json!(false)), "{change}");
            ensure!(change["why"].as_str().is_some_and(|why| why.contains("gate/new")), "{change}");
        }
    }
    // Nothing was applied.
    g.expect(&[(ALICE, GET, 200), (BOB, GET, 200)])?;
    let all = json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "new"},
        "spec": {"rules": [{}]}});
    g.sandbox.meshctl_with_input(["policy", "test", "-f", "-", "-n", NS], &all.to_string())?.ok()?;
    Ok(())
}

/// A recording with one frame.
fn record(path: &std::path::Path, frame: &str) -> Result<()> {
    use meshctl::golden::Query;
    use meshctl::top::recording::{Entry, Header, Writer};
    let frame: mesh_api::golden::GoldenFrame = serde_json::from_str(frame)?;
    let mut writer = Writer::create(path, &Header::of("test", &Query::default(), 10))?;
    writer.add(Entry { at_ms: frame.at_ms, golden: Some(Box::new(frame)), ..Entry::default() })?;
    writer.finish()?;
    Ok(())
}

/// What is suggested after a while in which only one has called, once applied, lets that one in and refuses others.
fn policy_suggest_lets_in_what_was_seen() -> Result<()> {
    let g = Gate::open()?;
    let suggest = ["policy", "suggest", "-n", NS, "-w", "2s"];
    let suggested = eventually(SOON, "only alice has called", || {
        g.expect(&[(ALICE, GET, 200)])?;
        let yaml = g.sandbox.meshctl(suggest)?.ok()?.stdout;
        ensure!(yaml.contains("- alice") && !yaml.contains("- bob") && !yaml.contains("networks"), "{yaml}");
        Ok(yaml)
    })?;
    g.sandbox.kubectl_with_input(["apply", "-f", "-"], &suggested)?.ok()?;
    g.expect(&[(ALICE, GET, 200), (BOB, GET, 403), (CAROL, GET, 403), (OUTSIDER, GET, 403)])
}

fn a_change_under_load_fails_nothing_both_allow() -> Result<()> {
    let g = Gate::open()?;
    let policies = [
        json!({"rules": [{"from": [{"serviceAccounts": ["alice"]}]}]}),
        json!({"rules": [{"from": [{"serviceAccounts": ["alice", "bob"]}], "to": [{"paths": ["/n/*", "/some"]}]}]}),
    ];
    g.policy("test", policies[0].clone())?.ok()?;
    g.expect(&[(ALICE, GET, 200), (BOB, GET, 403)])?;
    let answers = std::thread::scope(|scope| -> Result<String> {
        let load = scope.spawn(|| {
            let line = "for i in $(seq 3); do curl -sS -o /dev/null -w '%{http_code}\\n' --max-time 15 \
                        'http://origin.gate:8080/n/[1-3000]'; done";
            g.exec(ALICE, &["bash", "-c", line])
        });
        let mut changes = 0;
        while !load.is_finished() {
            changes += 1;
            g.policy("test", policies[changes % 2].clone())?.ok()?;
        }
        ensure!(changes >= 4, "only {changes} changes under load");
        Ok(load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??.stdout)
    })?;
    let other: Vec<&str> = answers.lines().filter(|status| *status != "200").collect();
    let count = answers.lines().count();
    ensure!(count >= 3000 && other.is_empty(), "{count} requests, {} failed: {other:?}", other.len());
    Ok(())
}

fn explain_shows_the_decision() -> Result<()> {
    let g = Gate::open()?;
    g.allow(json!([{"serviceAccounts": ["bob"]}]), json!([{"paths": ["/some"]}]))?;
    let explain = |pod: &str, path: &str| {
        let line = format!("explain request --from po/{pod} --to origin:8080 GET {path} -n gate");
        g.sandbox.meshctl(line.split_whitespace())
    };
    explain("bob", "/some")?.says("let in: AccessPolicy gate/test allows it")?;
    explain("bob", "/other")?.says("refused: AccessPolicy gate/test says who may call")?.says("access-denied")?;
    explain("alice", "/some")?.says("403 and mesh-error: access-denied")?;
    g.sandbox.meshctl(["explain", "error", "access-denied"])?.says("access policies")?;
    eventually(SOON, "the proxy knows the policy", || {
        g.sandbox.meshctl(["diagnostics", "policy", "deploy/origin", "-n", NS])?.ok()?.says("allow gate/test")
    })?;
    Ok(())
}

fn a_cluster_without_the_kind_works() -> Result<()> {
    let s = Sandbox::meshed("kindless")?;
    s.kubectl(["delete", "crd", "accesspolicies.meshctl.dev"])?.ok()?;
    s.kubectl(["-n", "mesh-system", "rollout", "restart", "deploy/mesh-control"])?.ok()?;
    s.kubectl(["-n", "mesh-system", "rollout", "status", "deploy/mesh-control", "--timeout=60s"])?.ok()?;
    let injected = s.meshctl_with_input(["inject", "-"], mesh_sandbox::apps::SHOP_YAML)?.ok()?.stdout;
    s.kubectl_with_input(["apply", "-f", "-"], &injected)?.ok()?;
    s.kubectl(["-n", "shop", "wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?.ok()?;
    let logs = s.kubectl(["-n", "mesh-system", "logs", "deploy/mesh-control"])?.ok()?.stdout;
    ensure!(!logs.contains("cannot follow the API"), "it is not quiet about it: {logs}");
    // Once the kind is there, it works.
    let definition = include_str!("../manifests/crds/accesspolicy.yaml");
    s.kubectl_with_input(["apply", "-f", "-"], definition)?.ok()?;
    s.kubectl(["wait", "--for=condition=Established", "crd/accesspolicies.meshctl.dev", "--timeout=30s"])?.ok()?;
    let policy = json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "AccessPolicy",
        "metadata": {"name": "none", "namespace": "shop"}, "spec": {"target": {"kind": "Service", "name": "none"}, "rules": [{}]}});
    s.kubectl_with_input(["apply", "-f", "-"], &policy.to_string())?.ok()?;
    eventually(Duration::from_secs(30), "the policy is looked at", || {
        s.kubectl(["-n", "shop", "get", "accesspolicies"])?.ok()?.says("False")
    })?;
    Ok(())
}
