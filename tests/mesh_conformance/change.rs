//! Changes of routes: one that proxies refuse, many under load, and what `explain` says of the routes as they are.

use super::ground::{Ground, NEEDS, NS, backend, echo_route};
use crate::harness::{eventually, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::time::Duration;

/// How long a change may take to show, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

pub(super) fn tests() -> Vec<Trial> {
    vec![
        test("mesh_conformance::a_refused_change_keeps_the_last_good_one", NEEDS, a_refused_change),
        test("mesh_conformance::changes_under_load_fail_nothing", NEEDS, changes_under_load_fail_nothing),
        test("mesh_conformance::explain_says_why_a_rule_does_not_match", NEEDS, explain_says_why),
    ]
}

fn path(kind: &str, value: &str) -> Value {
    json!({"path": {"type": kind, "value": value}})
}

/// Each expression is fine by itself; together they are more than a proxy takes.
fn a_refused_change() -> Result<()> {
    let ground = Ground::get()?;
    let good = echo_route("refused", json!([{"backendRefs": [backend("echo-v1")]}]));
    ground.apply(std::slice::from_ref(&good))?;
    ground.expect(&["http://echo/"], |answer| answer.is_from("echo-v1"))?;

    // Each by itself is small enough for control; together they are more than a proxy takes.
    let large: Vec<Value> =
        (0..60).map(|n| path("RegularExpression", &format!("/{n}/([a-z]{{800}}|[0-9]{{800}})*"))).collect();
    let bad = echo_route("refused", json!([{"matches": large, "backendRefs": [backend("echo-v2")]}]));
    ground.apply(std::slice::from_ref(&bad))?;
    ground.says(&bad, "Accepted", "True", "Accepted")?;
    ground.says(&bad, "Programmed", "False", "Invalid")?;
    let message = ground.conditions(&bad)?.remove("Programmed").unwrap_or_default().2;
    // Whichever proxy of those that call the service said so first.
    ensure!(message.contains("/caller") && message.contains("too large together"), "{message}");
    for _ in 0..5 {
        ground.ask(NS, &["http://echo/"])?.is_from("echo-v1").context("the last good one stays in use")?;
    }
    let check = ["check", "--only", "routes.accepted", "-n", NS, "-o", "json"];
    let checked = ground.sandbox.meshctl(check)?.stdout;
    ensure!(
        checked.contains("HTTPRoute mesh-conformance/refused") && checked.contains("too large together"),
        "{checked}"
    );

    let mended = echo_route("refused", json!([{"backendRefs": [backend("echo-v2")]}]));
    ground.apply(std::slice::from_ref(&mended))?;
    ground.expect(&["http://echo/"], |answer| answer.is_from("echo-v2"))?;
    eventually(SOON, "the status says no more of it", || {
        let conditions = ground.conditions(&mended)?;
        ensure!(!conditions.contains_key("Programmed"), "{conditions:?}");
        Ok(())
    })
}

/// A thousand requests a second for ten seconds, from four connections (fewer a second where the machine cannot), while a
/// route and a policy change that let them all through.
fn changes_under_load_fail_nothing() -> Result<()> {
    let ground = Ground::get()?;
    let routes = [
        json!([{"backendRefs": [backend("echo-v1")]}]),
        json!([
            {"matches": [path("PathPrefix", "/even")], "backendRefs": [backend("echo-v2")]},
            {"backendRefs": [{"name": "echo-v1", "port": 80, "weight": 1}, {"name": "echo-v2", "port": 80, "weight": 1}]},
        ]),
    ];
    let policies = [
        json!({"rules": [{"from": [{"namespaces": [NS]}]}]}),
        json!({"rules": [{"from": [{"serviceAccounts": ["default"]}], "to": [{"methods": ["GET"]}]}]}),
    ];
    let objects = |n: usize| {
        let policy = json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "AccessPolicy",
            "metadata": {"name": "under-load", "namespace": NS}, "spec": policies[n % 2]});
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [echo_route("under-load", routes[n % 2].clone()), policy]});
        ground.sandbox.kubectl_with_input(["apply", "-f", "-"], &list.to_string())?.ok()
    };
    objects(0)?;
    ground.expect(&["http://echo/"], |answer| answer.is_from("echo-v1"))?;
    let load = "for n in 1 2 3 4; do \
                curl -sS --rate 250/s -o /dev/null -w '%{http_code}\\n' --max-time 60 \"http://echo/even/$n/[1-2500]\" & done; wait";
    let outcome = std::thread::scope(|scope| -> Result<(String, usize)> {
        let load = scope.spawn(|| ground.run(NS, &["bash", "-c", load]));
        let mut changes = 0;
        while !load.is_finished() {
            changes += 1;
            objects(changes)?;
        }
        Ok((load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??.stdout, changes))
    });
    ground.sandbox.kubectl(["-n", NS, "delete", "accesspolicies", "--all"])?.ok()?;
    let (answers, changes) = outcome?;
    let failed: Vec<&str> = answers.lines().filter(|status| *status != "200").collect();
    let count = answers.lines().count();
    ensure!(changes >= 4, "only {changes} changes under load");
    ensure!(count == 10_000 && failed.is_empty(), "{count} requests, {} failed: {failed:?}", failed.len());
    Ok(())
}

fn explain_says_why() -> Result<()> {
    let ground = Ground::get()?;
    let header = json!([{"headers": [{"name": "version", "value": "two"}]}]);
    let rules = json!([
        {"name": "two", "matches": header, "backendRefs": [backend("echo-v2")]},
        {"name": "write", "matches": [{"method": "POST"}], "backendRefs": [backend("echo-v2")]},
        {"name": "rest", "backendRefs": [backend("echo-v1")]},
    ]);
    let route = echo_route("explained", rules);
    ground.apply(std::slice::from_ref(&route))?;
    let explain = |arguments: &[&str]| -> Result<Value> {
        let question = ["explain", "request", "--from", "po/caller", "--to", "echo:80", "-n", NS, "-o", "json"];
        let ran = ground.sandbox.meshctl(question.iter().chain(arguments))?.ok()?;
        serde_json::from_str(&ran.stdout).context(ran.stdout)
    };
    let told = explain(&["GET", "/x"])?;
    let considered = told["routes"].as_array().context("no routes")?;
    let why = |rule: &str| {
        let found = considered.iter().find(|one| one["rule"].as_str().is_some_and(|name| name.ends_with(rule)));
        found.map(|one| one["why_not"].as_str().unwrap_or("it takes it").to_owned()).unwrap_or_default()
    };
    ensure!(why("/two") == "the header field version is missing, not `two`", "{told}");
    ensure!(why("/write") == "the method is GET", "{told}");
    ensure!(why("/rest") == "it takes it", "{told}");
    // What is explained is what happens.
    ground.expect(&["http://echo/x"], |answer| answer.is_from("echo-v1"))?;
    let told = explain(&["GET", "/x", "--header", "version=two"])?.to_string();
    ensure!(told.contains("httproute/mesh-conformance/explained/two takes it"), "{told}");
    ground.expect(&["-H", "version: two", "http://echo/x"], |answer| answer.is_from("echo-v2"))?;
    // And what the caller's proxy has.
    let config = ["diagnostics", "proxy-config", "po/caller", "-n", NS];
    eventually(SOON, "the proxy's rules", || {
        let shown = ground.sandbox.meshctl(config)?.ok()?;
        shown
            .says("httproute/mesh-conformance/explained/two")?
            .says("header version: two")?
            .says("echo-v2:80 weight 1")?;
        Ok(())
    })
}
