//! The answers to "why?": `explain`, `diagnostics` and `identity` about a shop that runs.

use crate::harness::{Need, SHOP, Sandbox, eventually, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    let needs = [Need::Namespaces, Need::Program("kubectl")];
    vec![
        test("explain::a_request_is_followed_to_its_endpoints", &needs, a_request_is_followed),
        test("explain::a_pod_without_a_proxy_says_why", &needs, a_pod_says_why),
        test("explain::proxies_know_what_the_api_knows", &needs, proxies_know_what_the_api_knows),
        test("explain::certificates_are_listed", &needs, certificates_are_listed),
    ]
}

fn json(s: &Sandbox, line: &str) -> Result<Value> {
    let ran = s.meshctl(line.split_whitespace())?.ok()?;
    serde_json::from_str(&ran.stdout).with_context(|| format!("meshctl {line} printed: {}", ran.stdout))
}

fn a_request_is_followed() -> Result<()> {
    let s = SHOP.get()?;
    let request = "explain request --from deploy/web --to catalog:80 GET /products/7 -n shop";
    let told = json(s, &format!("{request} -o json"))?;
    let says = |step: &str| {
        let steps = told["steps"].as_array().into_iter().flatten();
        steps.clone().find(|found| found["step"] == step).and_then(|found| found["says"].as_str()).unwrap_or_default()
    };
    ensure!(says("caller").ends_with("spiffe://cluster.local/ns/shop/sa/web"), "{told}");
    ensure!(says("route") == "counted as /products/{id}", "{told}");
    let cluster_ip = s.kubectl(["-n", "shop", "get", "svc", "catalog", "-o", "jsonpath={.spec.clusterIP}"])?.ok()?;
    ensure!(says("name").ends_with(cluster_ip.stdout.trim()), "{told}");
    let listed = "jsonpath={.items[*].status.podIP}";
    let pods = s.kubectl(["-n", "shop", "get", "pods", "-l", "app=catalog", "-o", listed])?.ok()?;
    for ip in pods.stdout.split_whitespace() {
        ensure!(says("endpoints").contains(&format!("{ip}:8080 ")), "{ip} is missing: {told}");
    }
    ensure!(told["verdict"].as_str().is_some_and(|v| v.ends_with("over mutual TLS 1.3")), "{told}");
    s.meshctl(request.split_whitespace())?.ok()?.says("→ sent to one of")?;
    let nowhere = "explain request --from deploy/web --to nothing -n shop";
    s.meshctl(nowhere.split_whitespace())?.ok()?.says("there is no service nothing in namespace shop")?;
    s.meshctl("explain request --from deploy/none --to catalog -n shop".split_whitespace())?
        .exits(2)?
        .complains("there is no deployment/none with pods in namespace shop")?;
    Ok(())
}

fn a_pod_says_why() -> Result<()> {
    let s = SHOP.get()?;
    let control = s.kubectl(["-n", "mesh-system", "get", "pods", "-o", "jsonpath={.items[0].metadata.name}"])?.ok()?;
    s.meshctl(["explain", "pod", control.stdout.trim(), "-n", "mesh-system"])?
        .ok()?
        .says("says meshctl.dev/inject: disabled")?;
    let first = "jsonpath={.items[0].metadata.name}";
    let web = s.kubectl(["-n", "shop", "get", "pods", "-l", "app=web", "-o", first])?.ok()?;
    s.meshctl(["explain", "pod", web.stdout.trim(), "-n", "shop"])?.ok()?.says("→ it is meshed")?;
    s.meshctl(["explain", "pod", "nobody", "-n", "shop"])?.exits(2)?.complains("pods \"nobody\" not found")?;
    Ok(())
}

fn proxies_know_what_the_api_knows() -> Result<()> {
    let s = SHOP.get()?;
    let known = eventually(Duration::from_secs(20), "the proxies of web know the shop's services", || {
        let rows = json(s, "diagnostics endpoints deploy/web -n shop -o json")?;
        for service in ["shop/catalog:80", "shop/cart:80", "shop/ledger:7000"] {
            let mut rows = rows.as_array().into_iter().flatten();
            ensure!(rows.any(|row| row["destination"] == service && row["state"] == "ok"), "{service}: {rows:?}");
        }
        Ok(rows)
    })?;
    let identity =
        |row: &Value| row["identity"].as_str().is_some_and(|id| id.starts_with("spiffe://cluster.local/ns/"));
    ensure!(known.as_array().into_iter().flatten().all(identity), "{known}");
    let config = json(s, "diagnostics proxy-config deploy/web -n shop -o json")?;
    ensure!(config[0]["config"]["control_connected"] == true, "{config}");
    let metrics = ["diagnostics", "proxy-metrics", "deploy/web", "-n", "shop"];
    s.meshctl(metrics)?.ok()?.says("mesh_requests_total{direction=\"inbound\",tls=\"mutual\"")?;
    s.meshctl(["diagnostics", "controller-metrics"])?.ok()?.says("mesh_control_proxies ")?;
    s.meshctl(["diagnostics", "policy", "deploy/ledger", "-n", "shop"])?.ok()?.says("opaque")?;
    s.meshctl(["diagnostics", "endpoints", "deploy/wep", "-n", "shop"])?.exits(2)?.complains("did you mean web?")?;
    Ok(())
}

fn certificates_are_listed() -> Result<()> {
    let s = SHOP.get()?;
    let rows = json(s, "identity deploy/web -n shop -o json")?;
    for kind in ["issuer", "anchor", "proxy"] {
        let mut rows = rows.as_array().into_iter().flatten();
        let row = rows.find(|row| row["kind"] == kind).with_context(|| format!("no {kind}: {rows:?}"))?;
        ensure!(row["expires_in_s"].as_i64().is_some_and(|left| left > 3600), "{row}");
    }
    s.meshctl(["diagnostics", "identity", "deploy/web", "-n", "shop"])?
        .ok()?
        .says("spiffe://cluster.local/ns/shop/sa/web")?;
    Ok(())
}
