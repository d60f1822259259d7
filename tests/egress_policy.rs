//! Egress policies of injected pods: each field of EgressPolicy, each action, each default, and where refusals show.
//!
//! What lies outside the cluster is a server on the node's network under two addresses set aside for documentation
//! (RFC 5737). All tests share one namespace and run one after the other.

use crate::harness::{Need, Ran, SHOP, Sandbox, eventually, find_program, test};
use crate::peer::ports;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl"), Need::Program("curl"), Need::Program("ip")];
/// Where the callers are.
const NS: &str = "leave";
/// Where the server outside is.
const OUTSIDE_NS: &str = "leave-outside";
/// Its addresses.
const HERE: &str = "203.0.113.7";
const THERE: &str = "203.0.113.8";
/// A policy reaches proxies within a second; the machine may be busy.
const SOON: Duration = Duration::from_secs(15);

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| test(&format!("egress_policy::{name}"), NEEDS, run);
    vec![
        test("hosts", hosts),
        test("networks_and_pinned_hosts", networks_and_pinned_hosts),
        test("ports", ports_of_rules),
        test("protocols", protocols),
        test("target", target),
        test("actions", actions),
        test("defaults", defaults),
        test("the_cluster_stays_reachable", the_cluster_stays_reachable),
        test("refusals_are_seen", refusals_are_seen),
        test("hosts_outside_are_counted_by_name", hosts_outside_are_counted_by_name),
        test("status_and_mistakes", status_and_mistakes),
        test("explain_shows_the_decision", explain_shows_the_decision),
        test("policy_test_says_what_could_not_leave", policy_test_says_what_could_not_leave),
    ]
}

static READY: Mutex<bool> = Mutex::new(false);

/// The namespace with its pods, for one test at a time.
struct Border {
    sandbox: &'static Sandbox,
    _alone: MutexGuard<'static, bool>,
}

const ADA: &str = "ada";
const BEN: &str = "ben";
/// With an annotation that lets it out nowhere.
const CID: &str = "cid";

impl Border {
    /// The border, open: without policies.
    fn open() -> Result<Self> {
        let mut ready = READY.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let sandbox = SHOP.get()?;
        if !*ready {
            lay(sandbox)?;
            *ready = true;
        }
        let border = Self { sandbox, _alone: ready };
        border.sandbox.kubectl(["-n", NS, "delete", "egresspolicies", "--all"])?.ok()?;
        border.default_egress(None)?;
        border.expect(&[(ADA, &http("any.example.com", HERE), 200), (BEN, &http("any.example.com", THERE), 200)])?;
        Ok(border)
    }

    fn policy(&self, name: &str, spec: Value) -> Result<Ran> {
        let policy = json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "EgressPolicy",
            "metadata": {"name": name, "namespace": NS}, "spec": spec});
        self.sandbox.kubectl_with_input(["apply", "-f", "-"], &policy.to_string())
    }

    /// Applies the policy `test`, which lets out to one destination only.
    fn only(&self, to: Value) -> Result<()> {
        self.policy("test", json!({"rules": [to]}))?.ok()?;
        Ok(())
    }

    /// Sets or removes the default of the namespace.
    fn default_egress(&self, default: Option<&str>) -> Result<()> {
        let annotation = match default {
            Some(default) => format!("meshctl.dev/default-egress={default}"),
            None => "meshctl.dev/default-egress-".to_owned(),
        };
        self.sandbox.kubectl(["annotate", "--overwrite", "namespace", NS, &annotation])?.ok()?;
        Ok(())
    }

    fn exec(&self, caller: &str, command: &[&str]) -> Result<Ran> {
        let exec = ["-n", NS, "exec", caller, "-c", "main", "--", "timeout", "20"];
        self.sandbox.kubectl(exec.iter().chain(command))
    }

    /// Status of the answer to `curl ARGUMENTS`; 0 for none.
    fn status(&self, caller: &str, arguments: &str) -> Result<u16> {
        let line = format!("curl -sS -o /dev/null --max-time 5 -w '%{{http_code}}' {arguments}");
        let ran = self.exec(caller, &["bash", "-c", &line])?;
        ran.stdout.trim().parse().with_context(|| format!("{line}: {} {}", ran.stdout, ran.stderr))
    }

    /// Waits until every call is answered with its status, all of them in one go.
    fn expect(&self, calls: &[(&str, &str, u16)]) -> Result<()> {
        eventually(SOON, "the policy is in force", || {
            for (caller, arguments, expect) in calls {
                let got = self.status(caller, arguments)?;
                ensure!(got == *expect, "{caller} {arguments}: {got}, not {expect}");
            }
            Ok(())
        })
    }

    /// True if TLS that asks for a host reaches the server, which only echoes.
    fn tls_passes(&self, caller: &str, host: &str) -> Result<bool> {
        let port = ports::ECHOES;
        let line = format!("curl -sS --max-time 5 --resolve {host}:{port}:{HERE} https://{host}:{port}/");
        let ran = self.exec(caller, &["bash", "-c", &line])?;
        ensure!(ran.code != Some(0), "an echo is no TLS server: {}", ran.stdout);
        Ok(!ran.stderr.contains("reset") && !ran.stderr.contains("SSL_ERROR_SYSCALL"))
    }

    /// True if a server that speaks first is heard.
    fn greeted(&self, caller: &str) -> Result<bool> {
        let line = format!("exec 3<>/dev/tcp/{HERE}/{} && timeout 3 head -n1 <&3", ports::GREETS);
        Ok(self.exec(caller, &["bash", "-c", &line])?.stdout.starts_with("220"))
    }
}

/// Arguments that have `curl` ask for a host at an address.
fn http(host: &str, address: &str) -> String {
    let port = ports::HTTP1;
    format!("--resolve {host}:{port}:{address} http://{host}:{port}/some")
}

fn lay(sandbox: &Sandbox) -> Result<()> {
    sandbox.add_peer()?;
    let ip = find_program("ip").context("no ip")?;
    let ip = ip.to_str().context("path")?;
    sandbox.meshctl(["sandbox", "image", "add", "--name", &sandbox.name, "ip", ip])?.ok()?;
    let mut items: Vec<Value> = [NS, OUTSIDE_NS]
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
        .into();
    items.push(outside());
    items.push(caller(ADA, json!({})));
    items.push(caller(BEN, json!({})));
    items.push(caller(CID, json!({"meshctl.dev/default-egress": "deny"})));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    sandbox.kubectl_with_input(["apply", "-f", "-"], &list.to_string())?.ok()?;
    for namespace in [NS, OUTSIDE_NS] {
        sandbox.kubectl(["-n", namespace, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?.ok()?;
    }
    Ok(())
}

/// A server on the node's network that has addresses the cluster knows nothing of.
fn outside() -> Value {
    let adds = |name: &str, address: &str| {
        json!({"name": name, "image": "ip", "args": ["address", "replace", format!("{address}/32"), "dev", "lo"],
            "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}})
    };
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "outside", "namespace": OUTSIDE_NS},
        "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 1,
            "initContainers": [adds("here", HERE), adds("there", THERE)],
            "containers": [{"name": "main", "image": "mesh-peer", "args": ["origin"],
                "readinessProbe": {"tcpSocket": {"port": ports::HTTP1}, "periodSeconds": 1}}]}})
}

fn caller(name: &str, annotations: Value) -> Value {
    let mut annotations = annotations;
    annotations["meshctl.dev/inject"] = json!("enabled");
    json!({"apiVersion": "v1", "kind": "Pod",
    "metadata": {"name": name, "namespace": NS, "annotations": annotations, "labels": {"name": name}},
    "spec": {"terminationGracePeriodSeconds": 1, "containers": [
        {"name": "main", "image": "mesh-peer", "args": ["idle"]},
    ]}})
}

fn hosts() -> Result<()> {
    let b = Border::open()?;
    b.policy("test", json!({"rules": [{"hosts": ["api.example.com", "*.example.org"]}]}))?.ok()?;
    b.expect(&[
        (ADA, &http("api.example.com", HERE), 200),
        (ADA, &http("API.example.com", HERE), 200),
        (ADA, &http("other.example.com", HERE), 403),
        (ADA, &http("a.b.example.org", HERE), 200),
        (ADA, &http("example.org", HERE), 403),
        // The host is what the client says it is; nobody looks the address up.
        (ADA, &format!("-H 'Host: api.example.com' http://{HERE}:8080/some"), 200),
        (ADA, &format!("http://{HERE}:8080/some"), 403),
        (
            ADA,
            &format!("--http2-prior-knowledge --resolve api.example.com:8081:{HERE} http://api.example.com:8081/some"),
            200,
        ),
        (
            ADA,
            &format!("--http2-prior-knowledge --resolve no.example.com:8081:{HERE} http://no.example.com:8081/some"),
            403,
        ),
    ])?;
    ensure!(b.tls_passes(ADA, "api.example.com")? && b.tls_passes(ADA, "x.example.org")?, "TLS to an allowed name");
    ensure!(!b.tls_passes(ADA, "other.example.com")?, "TLS to another name passed");
    ensure!(!b.greeted(ADA)?, "a connection without a host passed a rule about hosts");
    Ok(())
}

fn networks_and_pinned_hosts() -> Result<()> {
    let b = Border::open()?;
    b.only(json!({"networks": [format!("{HERE}/32")]}))?;
    b.expect(&[(ADA, &http("a.example.com", HERE), 200), (ADA, &http("a.example.com", THERE), 403)])?;
    ensure!(b.greeted(ADA)?, "an opaque connection to an allowed address");
    b.only(json!({"hosts": ["api.example.com"], "networks": [THERE]}))?;
    b.expect(&[
        (ADA, &http("api.example.com", THERE), 200),
        (ADA, &http("api.example.com", HERE), 403),
        (ADA, &http("a.example.com", THERE), 403),
    ])
}

fn ports_of_rules() -> Result<()> {
    let b = Border::open()?;
    b.only(json!({"ports": [ports::HTTP2, ports::GREETS]}))?;
    let two = format!("--http2-prior-knowledge --resolve a.example.com:8081:{HERE} http://a.example.com:8081/some");
    b.expect(&[(ADA, &two, 200), (ADA, &http("a.example.com", HERE), 403)])?;
    ensure!(b.greeted(ADA)?, "an opaque connection to an allowed port");
    Ok(())
}

fn protocols() -> Result<()> {
    let b = Border::open()?;
    ensure!(b.tls_passes(ADA, "a.example.com")? && b.greeted(ADA)?, "without a policy everything passes");
    for (protocol, [by_http, by_tls, by_tcp]) in
        [("HTTP", [true, false, false]), ("TLS", [false, true, false]), ("TCP", [false, false, true])]
    {
        b.only(json!({"protocols": [protocol]}))?;
        b.expect(&[(ADA, &http("a.example.com", HERE), if by_http { 200 } else { 403 })])?;
        eventually(SOON, "the protocol alone passes", || {
            let (tls, tcp) = (b.tls_passes(ADA, "a.example.com")?, b.greeted(ADA)?);
            ensure!((tls, tcp) == (by_tls, by_tcp), "{protocol}: TLS {tls}, TCP {tcp}");
            Ok(())
        })?;
    }
    Ok(())
}

fn target() -> Result<()> {
    let b = Border::open()?;
    let call = http("a.example.com", HERE);
    for target in [json!({"kind": "Pod", "name": ADA}), json!({"selector": {"matchLabels": {"name": ADA}}})] {
        b.policy("test", json!({"target": target, "rules": [{"hosts": ["none"]}]}))?.ok()?;
        b.expect(&[(ADA, &call, 403), (BEN, &call, 200)]).with_context(|| target.to_string())?;
        b.sandbox.kubectl(["-n", NS, "delete", "egresspolicy", "test"])?.ok()?;
        b.expect(&[(ADA, &call, 200)])?;
    }
    b.only(json!({"hosts": ["none"]}))?;
    b.expect(&[(ADA, &call, 403), (BEN, &call, 403)])
}

fn actions() -> Result<()> {
    let b = Border::open()?;
    let (good, bad) = (http("good.example.com", HERE), http("bad.example.com", HERE));
    // Audit changes nothing, and is counted.
    b.policy("watch", json!({"action": "Audit", "rules": [{"hosts": ["good.example.com"]}]}))?.ok()?;
    let metrics = || -> Result<String> {
        Ok(b.sandbox.meshctl(["diagnostics", "proxy-metrics", ADA_POD, "-n", NS])?.ok()?.stdout)
    };
    eventually(SOON, "the audit is counted", || {
        ensure!(b.status(ADA, &good)? == 200 && b.status(ADA, &bad)? == 200, "an audit refuses");
        let line = r#"mesh_egress_decisions_total{decision="audit",protocol="http",policy="leave/watch"}"#;
        ensure!(metrics()?.contains(line), "no {line}");
        Ok(())
    })?;
    // Deny beats Allow, in whichever policy, and says nothing about the rest.
    b.policy("no", json!({"action": "Deny", "rules": [{"hosts": ["bad.example.com"]}]}))?.ok()?;
    b.expect(&[(ADA, &good, 200), (ADA, &bad, 403)])?;
    b.policy("yes", json!({"rules": [{"hosts": ["*.example.com"]}]}))?.ok()?;
    b.expect(&[(ADA, &good, 200), (ADA, &bad, 403), (ADA, &http("example.net", HERE), 403)])?;
    // What nobody can look into may be anything.
    b.policy("yes", json!({"rules": [{}]}))?.ok()?;
    b.expect(&[(ADA, &http("example.net", HERE), 200), (ADA, &bad, 403)])?;
    ensure!(!b.greeted(ADA)?, "an opaque connection passed a refusal of a host");
    Ok(())
}

const ADA_POD: &str = "pod/ada";

fn defaults() -> Result<()> {
    let b = Border::open()?;
    let (call, other) = (http("a.example.com", HERE), http("b.example.com", HERE));
    // Of the pod, of its namespace.
    b.expect(&[(CID, &call, 403), (ADA, &call, 200)])?;
    b.default_egress(Some("deny"))?;
    b.expect(&[(ADA, &call, 403)])?;
    b.default_egress(Some("audit"))?;
    b.expect(&[(ADA, &call, 200), (CID, &call, 403)])?;
    // Of a policy, which outranks both; of several the strictest.
    b.policy("open", json!({"default": "allow"}))?.ok()?;
    b.expect(&[(ADA, &call, 200), (CID, &call, 200)])?;
    b.policy("shut", json!({"default": "deny", "rules": [{"hosts": ["a.example.com"]}]}))?.ok()?;
    b.expect(&[(ADA, &call, 200), (ADA, &other, 403), (CID, &call, 200), (CID, &other, 403)])
}

fn the_cluster_stays_reachable() -> Result<()> {
    let b = Border::open()?;
    b.policy("shut", json!({"default": "deny"}))?.ok()?;
    b.expect(&[(ADA, &http("a.example.com", HERE), 403)])?;
    // A service, by its name; a pod, by its address; the API server.
    let pod =
        b.sandbox.kubectl(["-n", "shop", "get", "pod", "-l", "app=web", "-o", "jsonpath={.items[0].status.podIP}"])?;
    let pod = pod.ok()?.stdout.trim().to_owned();
    let api = "-k https://kubernetes.default.svc.cluster.local/version";
    let reached = |arguments: &str| -> Result<()> {
        let status = b.status(ADA, arguments)?;
        ensure!(status != 0 && status != 403 || arguments.contains("kubernetes"), "{arguments}: {status}");
        ensure!(status != 0, "{arguments}: no answer");
        Ok(())
    };
    reached("http://web.shop/")?;
    reached(&format!("http://{pod}:8080/"))?;
    reached(api)
}

/// When a line of a log was written: `2026-11-22T06:47:50.211199Z …`.
fn second_of_the_day(line: &str) -> Result<i64> {
    let time = line.get(11..19).with_context(|| format!("no time: {line}"))?;
    time.split(':').try_fold(0, |total, part| Ok(total * 60 + part.parse::<i64>()?))
}

fn refusals_are_seen() -> Result<()> {
    let b = Border::open()?;
    let call = http("secret.example.net", HERE);
    b.only(json!({"hosts": ["api.example.com"]}))?;
    b.expect(&[(ADA, &call, 403)])?;
    let text = b.exec(ADA, &["bash", "-c", &format!("curl -sS -i {call}")])?.ok()?.stdout;
    for word in ["mesh-error: egress-denied", "EgressPolicy leave/test"] {
        ensure!(text.contains(word), "no {word}: {text}");
    }
    let metrics = b.sandbox.meshctl(["diagnostics", "proxy-metrics", ADA_POD, "-n", NS])?.ok()?.stdout;
    let line = r#"mesh_egress_decisions_total{decision="deny",protocol="http",policy="leave/test"}"#;
    ensure!(metrics.contains(line), "no {line}");
    let logs = b.sandbox.kubectl(["-n", NS, "logs", ADA, "-c", "mesh-proxy"])?.ok()?.stdout;
    let told: Vec<&str> = logs
        .lines()
        .filter(|line| line.contains("denied by an egress policy") && line.contains("leave/test"))
        .collect();
    let times = told.iter().map(|line| second_of_the_day(line)).collect::<Result<Vec<i64>>>()?;
    let a_minute_apart = times.windows(2).all(|pair| (pair[1] - pair[0]).rem_euclid(86_400) >= 59);
    ensure!(!told.is_empty() && a_minute_apart, "not one line a minute: {logs}");
    ensure!(told.iter().all(|line| line.contains("example.net") || line.contains("example.com")), "{logs}");
    let tap = std::thread::scope(|scope| -> Result<Ran> {
        let tap = scope.spawn(|| b.sandbox.meshctl("tap pod/ada -n leave --for 6s -o json".split_whitespace()));
        for _ in 0..8 {
            b.status(ADA, &call)?;
            std::thread::sleep(Duration::from_millis(300));
        }
        tap.join().map_err(|_| anyhow::anyhow!("the tap panicked"))?
    })?;
    ensure!(tap.stdout.contains("egress-denied"), "{} {}", tap.stdout, tap.stderr);
    b.sandbox.meshctl(["diagnostics", "policy", ADA_POD, "-n", NS])?.ok()?.says("allow leave/test, default deny")?;
    Ok(())
}

fn hosts_outside_are_counted_by_name() -> Result<()> {
    let b = Border::open()?;
    b.status(ADA, &http("api.example.com", HERE))?;
    b.tls_passes(ADA, "tls.example.com")?;
    let golden = "/apis/observe.meshctl.dev/v1alpha1/namespaces/leave/workloads/all/golden?window=60&frames=1";
    eventually(SOON, "golden metrics name both hosts", || {
        let said = b.sandbox.kubectl(["get", "--raw", golden])?.ok()?.stdout;
        ensure!(said.contains(r#""name":"api.example.com""#) && said.contains(r#""name":"tls.example.com""#), "{said}");
        Ok(())
    })?;
    eventually(SOON, "edges show them", || {
        b.status(ADA, &http("api.example.com", HERE))?;
        b.sandbox.meshctl("edges -n leave".split_whitespace())?.ok()?.says("api.example.com")?;
        Ok(())
    })
}

fn status_and_mistakes() -> Result<()> {
    let b = Border::open()?;
    b.only(json!({"hosts": ["api.example.com"]}))?;
    eventually(SOON, "it is accepted", || {
        let status = "jsonpath={.status.conditions[?(@.type=='Accepted')].status}";
        b.sandbox.kubectl(["-n", NS, "get", "egresspolicy", "test", "-o", status])?.ok()?.says("True")?;
        Ok(())
    })?;
    for (spec, complaint) in [
        (json!({}), "write rules, a default, or both"),
        (json!({"rules": []}), "write rules, a default, or both"),
        (json!({"action": "Forbid", "rules": [{}]}), "spec.action"),
        (json!({"default": "maybe"}), "spec.default"),
        (json!({"target": {"kind": "Service", "name": "a"}, "rules": [{}]}), "spec.target.kind"),
        (json!({"target": {"kind": "Pod"}, "rules": [{}]}), "kind and name go together"),
        (json!({"target": {}, "rules": [{}]}), "write kind and name, or a selector"),
        (json!({"rules": [{"hosts": ["API.example.com"]}]}), "hosts[0]"),
        (json!({"rules": [{"hosts": ["a.*.com"]}]}), "hosts[0]"),
        (json!({"rules": [{"hosts": ["http://a.com"]}]}), "hosts[0]"),
        (json!({"rules": [{"networks": ["example.org"]}]}), "networks[0]"),
        (json!({"rules": [{"ports": [0]}]}), "ports[0]"),
        (json!({"rules": [{"protocols": ["UDP"]}]}), "protocols[0]"),
        (json!({"rules": [{"hosts": ["a.com"], "protocols": ["TCP"]}]}), "a TCP connection names no host"),
    ] {
        b.policy("wrong", spec.clone())?.exits(1)?.complains(complaint).with_context(|| spec.to_string())?;
    }
    Ok(())
}

fn explain_shows_the_decision() -> Result<()> {
    let b = Border::open()?;
    b.only(json!({"hosts": ["api.example.com"]}))?;
    let explain = |to: &str| {
        let line = format!("explain request --from {ADA_POD} --to {to} GET / -n {NS}");
        b.sandbox.meshctl(line.split_whitespace())
    };
    eventually(SOON, "the policy is seen", || {
        explain("api.example.com:443")?.says("EgressPolicy leave/test allows it")?;
        Ok(())
    })?;
    let denied = explain("other.example.com:80")?;
    denied.says("EgressPolicy leave/test makes the default `deny`")?.says("mesh-error: egress-denied")?;
    explain(&format!("{HERE}:5432"))?.says("egress-denied")?;
    b.sandbox.meshctl(["explain", "error", "egress-denied"])?.says("egress policies")?;
    Ok(())
}

/// A policy that is not applied, held against what was seen.
fn policy_test_says_what_could_not_leave() -> Result<()> {
    let b = Border::open()?;
    let policy = json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "EgressPolicy", "metadata": {"name": "new"},
        "spec": {"target": {"kind": "Pod", "name": ADA}, "rules": [{"hosts": ["*.example.com"]}]}});
    let command = ["policy", "test", "-f", "-", "-n", NS, "-w", "1m", "-o", "json"];
    eventually(SOON, "the calls have been counted", || {
        b.expect(&[(ADA, &http("any.example.com", HERE), 200), (ADA, &http("any.example.org", HERE), 200)])?;
        let ran = b.sandbox.meshctl_with_input(command, &policy.to_string())?.exits(1)?;
        let changes: Vec<Value> = serde_json::from_str(&ran.stdout)?;
        let hosts: Vec<&str> = changes.iter().filter_map(|change| change["dst"].as_str()).collect();
        ensure!(hosts.contains(&"any.example.org") && !hosts.contains(&"any.example.com"), "{changes:?}");
        ensure!(changes.iter().all(|c| c["src"].as_str().is_some_and(|src| src.ends_with(ADA))), "{changes:?}");
        ensure!(changes.iter().all(|c| c["allowed_now"] == true && c["allowed_then"] == false), "{changes:?}");
        Ok(())
    })?;
    // Nothing was applied.
    b.expect(&[(ADA, &http("any.example.org", HERE), 200)])
}
