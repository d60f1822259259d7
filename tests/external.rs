//! External authorisation in access policies between pods: a service is asked, with each field of `external`; what it says
//! decides, reaches the application, and is counted.

use crate::access_policy::{ALICE, BOB, Gate, NS, OUTSIDER, SOON};
use crate::harness::{Need, Sandbox, eventually, test};
use crate::peer::ports;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::time::Instant;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl"), Need::Program("curl")];

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| test(&format!("external::{name}"), NEEDS, run);
    vec![test("a_service_is_asked", a_service_is_asked), test("mistakes_are_told", mistakes_are_told)]
}

/// The service that is asked, and the application before which it is.
fn lay(sandbox: &Sandbox) -> Result<()> {
    let mut items = Vec::new();
    for (name, arguments) in [("guard", json!(["authz"])), ("guarded", json!(["echo", "guarded"]))] {
        items.push(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": NS},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}, "annotations": {"meshctl.dev/inject": "enabled"}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [
                {"name": "main", "image": "mesh-peer", "args": arguments}]}}}}));
        items.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NS},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": ports::HTTP1}]}}));
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    sandbox.kubectl_with_input(["apply", "-f", "-"], &list.to_string())?.ok()?;
    sandbox.kubectl(["-n", NS, "wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?.ok()?;
    Ok(())
}

/// A policy that asks `guard`, with these fields changed.
fn asking(change: Value) -> Result<Value> {
    let mut external = json!({"service": {"name": "guard", "port": ports::HTTP1}});
    for (name, value) in change.as_object().context("fields")? {
        external[name] = value.clone();
    }
    let target = json!({"kind": "Deployment", "name": "guarded"});
    Ok(json!({"target": target, "external": external, "rules": [{"from": [{"serviceAccounts": ["alice"]}]}]}))
}

fn at(path: &str) -> String {
    format!("http://guarded.gate:{}{path}", ports::HTTP1)
}

fn a_service_is_asked() -> Result<()> {
    let g = Gate::open()?;
    lay(g.sandbox)?;
    g.expect(&[(ALICE, &at("/no"), 200), (BOB, &at("/yes"), 200)])?;
    g.policy("test", asking(json!({"timeout": "2s"}))?)?.ok()?;
    g.expect(&[
        (ALICE, &at("/yes"), 200),
        (ALICE, &at("/no"), 403),
        (ALICE, &at("/key"), 403),
        (ALICE, &at("/error"), 503),
        // Those whom no rule means are refused without a question.
        (BOB, &at("/yes"), 403),
        (OUTSIDER, &at("/yes"), 403),
        // A body waits meanwhile.
        (ALICE, &format!("-d text {}", at("/yes")), 200),
    ])?;
    let said = |arguments: &str| -> Result<String> {
        Ok(g.exec(ALICE, &["bash", "-c", &format!("curl -sS -i --max-time 10 {arguments}")])?.ok()?.stdout)
    };
    let text = said(&at("/error"))?;
    ensure!(text.contains("mesh-error: external-auth-failed"), "{text}");
    let text = said(&at("/no"))?;
    ensure!(text.contains("mesh-error: access-denied"), "{text}");
    // What the service may see, how it is asked, and what of its answer goes on, in place of what the caller claims.
    g.policy(
        "test",
        asking(json!({"path": "/check", "method": "POST", "headers": ["authorization"],
            "responseHeaders": ["x-user", "x-asked", "x-none"]}))?,
    )?
    .ok()?;
    g.expect(&[(ALICE, &format!("-H 'authorization: open' {}", at("/key")), 200)])?;
    let text = said(&format!("-H 'x-user: root' -H 'x-none: forged' '{}'", at("/yes?a=b")))?;
    for line in ["header x-user=spiffe://cluster.local/ns/gate/sa/alice", "header x-asked=POST /check for GET /yes?a=b"]
    {
        ensure!(text.contains(line), "no {line}: {text}");
    }
    ensure!(!text.contains("root") && !text.contains("forged"), "a claim of the caller went on: {text}");
    // It takes no longer than it may; without an answer calls are refused, or let in where the policy says so.
    g.policy("test", asking(json!({"timeout": "300ms"}))?)?.ok()?;
    g.expect(&[(ALICE, &at("/slow"), 503)])?;
    let began = Instant::now();
    g.status(ALICE, &at("/slow"))?;
    ensure!(began.elapsed().as_secs() < 10, "it took {:?}", began.elapsed());
    g.policy("test", asking(json!({"timeout": "300ms", "failOpen": true}))?)?.ok()?;
    g.expect(&[
        (ALICE, &at("/slow"), 200),
        (ALICE, &at("/error"), 200),
        (ALICE, &at("/no"), 403),
        (BOB, &at("/yes"), 403),
    ])?;
    // What it costs is seen as any other traffic is.
    let edges = || g.sandbox.meshctl("edges -n gate -o json".split_whitespace());
    eventually(SOON, "the questions are counted", || {
        g.status(ALICE, &at("/yes"))?;
        let rows: Vec<Value> = serde_json::from_str(&edges()?.ok()?.stdout)?;
        let asked = rows.iter().any(|row| {
            let row = row.to_string();
            row.contains(r#""guarded""#) && row.contains(r#""guard""#)
        });
        ensure!(asked, "{rows:?}");
        Ok(())
    })
}

fn mistakes_are_told() -> Result<()> {
    let g = Gate::open()?;
    let mut missing = asking(json!({"service": {"name": "nobody", "port": 80}}))?;
    missing["target"] = json!({"kind": "Deployment", "name": "second"});
    g.policy("test", missing)?.ok()?;
    eventually(SOON, "the status says that there is no service", || {
        let path = "jsonpath={.status.conditions[?(@.type=='Accepted')].reason}";
        g.sandbox.kubectl(["-n", NS, "get", "accesspolicy", "test", "-o", path])?.ok()?.says("ServiceNotFound")?;
        Ok(())
    })?;
    g.expect(&[(ALICE, "http://second.gate:8080/some", 503), (BOB, "http://second.gate:8080/some", 403)])?;
    let mut deny = asking(json!({}))?;
    deny["action"] = json!("Deny");
    for (spec, complaint) in [
        (deny, "only Allow policies ask a service"),
        (asking(json!({"service": {"name": "a", "port": 0}}))?, "port"),
        (asking(json!({"path": "check"}))?, "path"),
        (asking(json!({"method": "get"}))?, "method"),
        (asking(json!({"timeout": "soon"}))?, "timeout"),
        (asking(json!({"headers": ["a b"]}))?, "headers[0]"),
    ] {
        g.policy("wrong", spec.clone())?.exits(1)?.complains(complaint).with_context(|| spec.to_string())?;
    }
    Ok(())
}
