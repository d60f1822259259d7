//! TLSRoute and TCPRoute: connections that nobody looks into go where their server name, or the route alone, says. The
//! servers are `openssl s_server`, each with a certificate of its own name.

use super::ground::{Ground, NS, parent};
use crate::harness::{Need, eventually, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const NEEDS: &[Need] = &[
    Need::Namespaces,
    Need::Program("kubectl"),
    Need::Program("curl"),
    Need::Program("openssl"),
    Need::Program("bash"),
];
/// How long a route may take to show its effect, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

pub(super) fn tests() -> Vec<Trial> {
    vec![
        test("mesh_conformance::mesh_tls_route_simple_same_namespace", NEEDS, by_server_name),
        test("mesh_conformance::mesh_tcp_route_weight", NEEDS, by_weight),
    ]
}

/// Two servers, each behind a Service of its own, and a Service `tls` for both.
fn servers(ground: &Ground) -> Result<()> {
    let server = |name: &str| {
        let serve = format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN={name} \
             -keyout /data/key -out /data/cert 2>/data/log && exec openssl s_server -accept 4433 -key /data/key -cert \
             /data/cert -quiet -www"
        );
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": NS, "name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name, "part": "tls"}},
            "spec": {"terminationGracePeriodSeconds": 1, "volumes": [{"name": "data", "emptyDir": {}}], "containers": [{
                "name": "main", "image": "sh", "args": ["-c", serve],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "readinessProbe": {"tcpSocket": {"port": 4433}, "periodSeconds": 1},
            }]}}}})
    };
    let service = |name: &str, selector: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": NS, "name": name},
            "spec": {"selector": selector, "ports": [{"name": "tls", "port": 443, "targetPort": 4433}]}})
    };
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        server("tls-v1"), server("tls-v2"),
        service("tls", json!({"part": "tls"})),
        service("tls-v1", json!({"app": "tls-v1"})),
        service("tls-v2", json!({"app": "tls-v2"})),
    ]});
    ground.sandbox.kubectl_with_input(["apply", "-f", "-"], &objects.to_string())?.ok()?;
    let wait = ["-n", NS, "wait", "--for=condition=Available", "deploy/tls-v1", "deploy/tls-v2", "--timeout=60s"];
    ground.sandbox.kubectl(wait)?.ok()?;
    Ok(())
}

fn route(kind: &str, name: &str, hosts: &[&str], backends: Value) -> Value {
    let mut spec = json!({"parentRefs": [parent("tls")], "rules": [{"backendRefs": backends}]});
    if !hosts.is_empty() {
        spec["hostnames"] = json!(hosts);
    }
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    json!({"apiVersion": format!("gateway.networking.k8s.io/{version}"), "kind": kind,
        "metadata": {"namespace": NS, "name": name}, "spec": spec})
}

fn to(service: &str, weight: u32) -> Value {
    json!({"name": service, "port": 443, "weight": weight})
}

/// Whose certificate each of some connections shows; `none` for one that is not made.
fn shown(ground: &Ground, name: &str, connections: u32) -> Result<BTreeMap<String, u32>> {
    let name = if name.is_empty() { "-noservername".to_owned() } else { format!("-servername {name}") };
    let line = format!(
        "for n in $(seq {connections}); do timeout 5 openssl s_client -connect tls:443 {name} </dev/null 2>/dev/null | \
         openssl x509 -noout -subject 2>/dev/null || echo none; done"
    );
    let mut found = BTreeMap::new();
    for said in ground.run(NS, &["bash", "-c", &line])?.ok()?.stdout.lines() {
        let name = said.rsplit(['=', ' ']).next().context("an empty line")?;
        *found.entry(name.to_owned()).or_default() += 1;
    }
    Ok(found)
}

fn expect(ground: &Ground, name: &str, whom: &str) -> Result<()> {
    eventually(SOON, &format!("{whom} for {name}"), || {
        let found = shown(ground, name, 3)?;
        ensure!(found.len() == 1 && found.get(whom) == Some(&3), "{name}: {found:?}");
        Ok(())
    })
}

fn by_server_name() -> Result<()> {
    let ground = Ground::get()?;
    servers(&ground)?;
    let first = route("TLSRoute", "first", &["one.example.com"], json!([to("tls-v1", 1)]));
    let others = route("TLSRoute", "others", &["*.example.com"], json!([to("tls-v2", 1)]));
    ground.apply(&[first.clone(), others])?;
    ground.says(&first, "Accepted", "True", "Accepted")?;
    ground.says(&first, "ResolvedRefs", "True", "ResolvedRefs")?;
    expect(&ground, "one.example.com", "tls-v1")?;
    expect(&ground, "two.example.com", "tls-v2")?;
    expect(&ground, "a.b.example.com", "tls-v2")?;
    // What no route takes goes nowhere.
    expect(&ground, "example.org", "none")?;
    let broken = route("TLSRoute", "first", &["one.example.com"], json!([to("nobody", 1)]));
    ground.apply(std::slice::from_ref(&broken))?;
    ground.says(&broken, "ResolvedRefs", "False", "BackendNotFound")?;
    expect(&ground, "one.example.com", "none")?;
    expect(&ground, "two.example.com", "tls-v2")
}

fn by_weight() -> Result<()> {
    let ground = Ground::get()?;
    servers(&ground)?;
    let weighted = |first: u32, second: u32| {
        route("TCPRoute", "weighted", &[], json!([to("tls-v1", first), to("tls-v2", second)]))
    };
    for (weights, whom) in [((1, 0), "tls-v1"), ((0, 1), "tls-v2")] {
        let route = weighted(weights.0, weights.1);
        ground.apply(std::slice::from_ref(&route))?;
        ground.says(&route, "Accepted", "True", "Accepted")?;
        expect(&ground, "", whom)?;
        expect(&ground, "one.example.com", whom)?;
    }
    ground.apply(&[weighted(9, 1)])?;
    eventually(SOON, "nine of ten", || {
        // Of 60 connections chance gives the lesser one 1 to 15 in all but one of a thousand cases.
        let found = shown(&ground, "", 60)?;
        let lesser = found.get("tls-v2").copied().unwrap_or(0);
        ensure!(found.values().sum::<u32>() == 60 && (1..=15).contains(&lesser) && found.len() == 2, "{found:?}");
        Ok(())
    })
}
