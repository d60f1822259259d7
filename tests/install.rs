//! From an empty cluster to a meshed shop, typed command by command, and what bad input gets.

use crate::harness::{BARE, Need, SHOP, Sandbox, eventually, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use std::time::Duration;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl")];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("install::typed_one_by_one", NEEDS, typed_one_by_one),
        test("install::a_second_install_is_refused", NEEDS, a_second_install_is_refused),
        test("install::a_bad_stream_applies_nothing", NEEDS, a_bad_stream_applies_nothing),
        test("install::a_bad_annotation_is_refused_with_an_event", NEEDS, a_bad_annotation_is_refused_with_an_event),
        test("install::host_network_pods_are_skipped", NEEDS, host_network_pods_are_skipped),
        test("install::check_finds_a_missing_mesh", NEEDS, check_finds_a_missing_mesh),
        test("install::viewers_need_a_role", NEEDS, viewers_need_a_role),
    ]
}

fn typed_one_by_one() -> Result<()> {
    let s = Sandbox::up("typed")?;
    s.meshctl(["check", "--pre"])?.ok()?;
    let manifests = s.meshctl(["install"])?.ok()?.stdout;
    s.kubectl_with_input(["apply", "-f", "-"], &manifests)?.ok()?.says("deployment.apps/mesh-control created")?;
    s.meshctl(["check", "--wait"])?.ok()?;
    s.kubectl(["create", "ns", "shop"])?.ok()?;
    let injected = s.meshctl_with_input(["inject", "-"], mesh_sandbox::apps::SHOP_YAML)?.ok()?.stdout;
    s.kubectl_with_input(["apply", "-f", "-"], &injected)?.ok()?;
    s.kubectl(["-n", "shop", "wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?.ok()?;
    let pods = s.kubectl(["-n", "shop", "get", "pods", "--no-headers"])?.ok()?.stdout;
    ensure!(pods.lines().count() >= 5 && pods.lines().all(|line| line.contains("2/2")), "{pods}");
    eventually(Duration::from_secs(20), "traffic shows up", || {
        let rows = s.meshctl(["stat", "deploy", "-n", "shop", "-o", "json"])?.ok()?.stdout;
        let rows: Vec<Value> = serde_json::from_str(&rows)?;
        for name in ["web", "catalog", "cart"] {
            let row = rows.iter().find(|row| row["name"] == name).with_context(|| format!("no row for {name}"))?;
            ensure!(row["rps"].as_f64().is_some_and(|rps| rps > 0.0) && row["mtls_rate"] == 1.0, "{row}");
        }
        let ledger = rows.iter().find(|row| row["name"] == "ledger").context("no row for ledger")?;
        ensure!(ledger["tcp_read_bytes_rate"].as_f64().is_some_and(|rate| rate > 0.0), "{ledger}");
        Ok(())
    })?;
    s.meshctl(["check", "--proxy", "-n", "shop"])?.ok()?;
    // What somebody deleted is found, and the fix mends it.
    s.kubectl(["delete", "crd", "egresspolicies.meshctl.dev"])?.ok()?;
    let definitions = ["check", "--only", "definitions.current"];
    s.meshctl(definitions)?
        .exits(1)?
        .says("not defined: egresspolicies.meshctl.dev")?
        .says("meshctl install --crds")?;
    let manifests = s.meshctl(["install", "--crds"])?.ok()?.stdout;
    s.kubectl_with_input(["apply", "--server-side", "-f", "-"], &manifests)?.ok()?;
    s.meshctl(definitions)?.ok()?;
    Ok(())
}

fn a_second_install_is_refused() -> Result<()> {
    let ran = SHOP.get()?.meshctl(["install", "--apply"])?.exits(2)?;
    ran.complains("hint:")?.complains("upgrade")?;
    Ok(())
}

fn a_bad_stream_applies_nothing() -> Result<()> {
    let s = BARE.get()?;
    let good = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: first\n";
    for (bad, expected) in [("just text\n", "object"), ("a: [1, 2\n", "line"), ("- a\n- list\n", "object")] {
        let ran = s.meshctl_with_input(["inject", "-"], &format!("{good}---\n{bad}"))?.exits(2)?;
        ensure!(ran.stdout.is_empty(), "something of a bad stream was written: {}", ran.stdout);
        ran.complains("document 2")?.complains(expected)?;
    }
    Ok(())
}

/// A bare pod with annotations and a spec's extra fields.
fn pod(name: &str, annotations: Value, more: Value) -> String {
    let mut spec = serde_json::json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": "sh", "args": ["-c", "sleep 60"]}],
    });
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations}, "spec": spec})
        .to_string()
}

fn a_bad_annotation_is_refused_with_an_event() -> Result<()> {
    let s = SHOP.get()?;
    s.kubectl(["create", "ns", "annotated"])?.ok()?;
    let bad = pod("bad", serde_json::json!({"meshctl.dev/inject": "perhaps"}), Value::Null);
    let refused = s.kubectl_with_input(["-n", "annotated", "apply", "-f", "-"], &bad)?.exits(1)?;
    refused.complains("meshctl.dev/inject")?.complains("perhaps")?;
    eventually(Duration::from_secs(5), "an event says why", || {
        s.kubectl(["-n", "annotated", "get", "events"])?.ok()?.says("perhaps")
    })?;
    Ok(())
}

fn host_network_pods_are_skipped() -> Result<()> {
    let s = SHOP.get()?;
    s.kubectl(["create", "ns", "hosted"])?.ok()?;
    let host =
        pod("host", serde_json::json!({"meshctl.dev/inject": "enabled"}), serde_json::json!({"hostNetwork": true}));
    s.kubectl_with_input(["-n", "hosted", "apply", "-f", "-"], &host)?.ok()?;
    let containers = "jsonpath={.spec.initContainers}";
    let found = s.kubectl(["-n", "hosted", "get", "pod", "host", "-o", containers])?.ok()?.stdout;
    ensure!(found.is_empty(), "injected all the same: {found}");
    Ok(())
}

fn check_finds_a_missing_mesh() -> Result<()> {
    let s = BARE.get()?;
    s.meshctl(["check"])?.exits(1)?;
    let json = s.meshctl(["check", "-o", "json"])?.exits(1)?.stdout;
    serde_json::from_str::<Value>(&json).context("check -o json is not JSON")?;
    Ok(())
}

fn viewers_need_a_role() -> Result<()> {
    let s = SHOP.get()?;
    let refused = s.meshctl(["stat", "deploy", "-n", "shop", "--as", "somebody"])?.exits(2)?;
    refused.complains("the right to get workloads/golden")?.complains("kubectl create rolebinding")?;
    s.kubectl(["-n", "shop", "create", "rolebinding", "look", "--clusterrole=view", "--user=somebody"])?.ok()?;
    s.meshctl(["stat", "deploy", "-n", "shop", "--as", "somebody"])?.ok()?.says("catalog")?;
    Ok(())
}
