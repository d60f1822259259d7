//! What is seen and said of decisions: in taps, metrics, status and `explain`, and of policies that are not applied.

use super::gate::{ALICE, BOB, CAROL, GET, Gate, OUTSIDER};
use super::{NS, SOON};
use crate::harness::{Ran, Sandbox, eventually};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;

pub(super) fn refusals_are_seen() -> Result<()> {
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

pub(super) fn status_says_whether_a_policy_is_in_force() -> Result<()> {
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

pub(super) fn mistakes_are_refused() -> Result<()> {
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
pub(super) fn policy_test_says_what_would_change() -> Result<()> {
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
pub(super) fn policy_suggest_lets_in_what_was_seen() -> Result<()> {
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

pub(super) fn a_change_under_load_fails_nothing_both_allow() -> Result<()> {
    let g = Gate::open()?;
    let policies = [
        json!({"rules": [{"from": [{"serviceAccounts": ["alice"]}]}]}),
        json!({"rules": [{"from": [{"serviceAccounts": ["alice", "bob"]}], "to": [{"paths": ["/n/*", "/some"]}]}]}),
    ];
    g.policy("test", policies[0].clone())?.ok()?;
    g.expect(&[(ALICE, GET, 200), (BOB, GET, 403)])?;
    let answers = std::thread::scope(|scope| -> Result<String> {
        let load = scope.spawn(|| {
            let line = "while [ $SECONDS -lt 8 ]; do curl -sS -o /dev/null -w '%{http_code}\\n' --max-time 15 \
                        'http://origin.gate:8080/n/[1-200]'; done";
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
    ensure!(count >= 400 && other.is_empty(), "{count} requests, {} failed: {other:?}", other.len());
    Ok(())
}

pub(super) fn explain_shows_the_decision() -> Result<()> {
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

pub(super) fn a_cluster_without_the_kind_works() -> Result<()> {
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
    let definition = include_str!("../../manifests/crds/accesspolicy.yaml");
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
