//! From an empty cluster to a meshed shop, typed command by command, and what bad input gets.

use crate::harness::{BARE, Need, SHOP, Sandbox, eventually, ourselves, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl")];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("install::typed_one_by_one", NEEDS, typed_one_by_one),
        test("install::a_second_install_is_refused", NEEDS, a_second_install_is_refused),
        test("install::a_killed_install_is_continued", NEEDS, a_killed_install_is_continued),
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
    // Every field is one that the API server's own schemas know, and a second time changes nothing.
    s.kubectl_with_input(["apply", "--dry-run=server", "--validate=strict", "-f", "-"], &manifests)?.ok()?;
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
    let ran = SHOP.get()?.meshctl(["install", "--apply", "--set", "control.log=debug"])?.exits(2)?;
    ran.complains("hint:")?.complains("upgrade")?;
    Ok(())
}

/// Killed whenever it may be, the same command goes on; done, it does nothing.
fn a_killed_install_is_continued() -> Result<()> {
    let s = Sandbox::up("killed")?;
    s.meshctl(["sandbox", "image", "add", "--name", &s.name, "sh", "/bin/sh"])?.ok()?;
    let mut finished = 0;
    // Later and later: from before the first object to while the control plane starts.
    for after_ms in [40, 80, 120, 180, 260, 380, 550, 800] {
        let mut command = ourselves("meshctl")?;
        command.env("KUBECONFIG", &s.kubeconfig).args(["install", "--apply"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(Duration::from_millis(after_ms));
        finished += usize::from(child.try_wait()?.is_some());
        child.kill()?;
        child.wait()?;
    }
    ensure!(finished < 8, "it was never killed");
    s.meshctl(["install", "--apply"])?.ok()?;
    s.meshctl(["check", "--wait"])?.ok()?;
    s.meshctl(["install", "--apply"])?.ok()?.complains("going on with the identity it has")?;
    s.meshctl(["upgrade", "--diff"])?.ok()?.says("0 to create, 0 to change, 0 to delete")?;
    // An upgrade likewise, with pods that must not notice.
    for after_ms in [50, 150, 300, 500, 900] {
        let mut command = ourselves("meshctl")?;
        command.env("KUBECONFIG", &s.kubeconfig).args(["upgrade", "--apply", "--set", "control.log=debug", "--ha"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(Duration::from_millis(after_ms));
        child.kill()?;
        child.wait()?;
    }
    s.meshctl(["upgrade", "--apply", "--set", "control.log=debug", "--ha"])?.ok()?;
    s.meshctl(["check", "--wait"])?.ok()?;
    s.meshctl(["upgrade", "--diff"])?.ok()?.says("0 to create, 0 to change, 0 to delete")?;
    while_control_is_down(&s)
}

/// With `--ha`, pods of labelled namespaces are refused while nobody answers; all others go on as if there were no mesh.
fn while_control_is_down(s: &Sandbox) -> Result<()> {
    for (namespace, label) in [("meshed", Some("meshctl.dev/inject=enabled")), ("plain", None), ("annotated", None)] {
        s.kubectl(["create", "ns", namespace])?.ok()?;
        if let Some(label) = label {
            s.kubectl(["label", "ns", namespace, label])?.ok()?;
        }
    }
    s.kubectl(["annotate", "ns", "annotated", "meshctl.dev/inject=enabled"])?.ok()?;
    let scope = s.meshctl(["check", "--only", "webhook.scope"])?.ok()?;
    scope.says("pods of annotated start without a proxy")?.says("kubectl label namespace annotated")?;
    s.kubectl(["-n", "mesh-system", "scale", "deploy/mesh-control", "--replicas=0"])?.ok()?;
    let pods = ["-n", "mesh-system", "get", "pods", "-o", "name"];
    eventually(Duration::from_secs(60), "the control plane is gone", || {
        let left = s.kubectl(pods)?.ok()?.stdout;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })?;
    let plain = pod("one", serde_json::json!({}), Value::Null);
    for namespace in ["plain", "annotated", "default"] {
        s.kubectl_with_input(["-n", namespace, "apply", "-f", "-"], &plain)?.ok()?;
        s.kubectl(["-n", namespace, "wait", "--for=condition=Ready", "pod/one", "--timeout=60s"])?.ok()?;
        s.kubectl(["-n", namespace, "delete", "pod", "one", "--wait=true"])?.ok()?;
    }
    let refused = s.kubectl_with_input(["-n", "meshed", "apply", "-f", "-"], &plain)?.exits(1)?;
    refused.complains("meshed.injector.meshctl.dev")?;
    s.kubectl(["-n", "mesh-system", "scale", "deploy/mesh-control", "--replicas=3"])?.ok()?;
    s.meshctl(["check", "--wait", "--only", "webhook"])?.ok()?;
    s.kubectl_with_input(["-n", "meshed", "apply", "-f", "-"], &plain)?.ok()?;
    s.kubectl(["-n", "meshed", "wait", "--for=condition=Ready", "pod/one", "--timeout=60s"])?.ok()?;
    let containers = "jsonpath={.spec.initContainers[*].name}";
    s.kubectl(["-n", "meshed", "get", "pod", "one", "-o", containers])?.ok()?.says("mesh-proxy")?;
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
    holds_to_the_schema(&s.meshctl(["check", "-o", "json"])?.exits(1)?.stdout)?;
    // One that names other things than the schema does not pass.
    ensure!(holds_to_the_schema(r#"{"healthy": true, "checks": [{"id": "api.version"}]}"#).is_err());
    let meshed = SHOP.get()?.meshctl(["check", "-n", "shop", "-o", "json"])?;
    holds_to_the_schema(&meshed.stdout)
}

/// Fails unless this is what `cli/check.schema.json` promises of `check -o json`.
fn holds_to_the_schema(printed: &str) -> Result<()> {
    let mut schemas = boon::Schemas::new();
    let mut compiler = boon::Compiler::new();
    let schema = serde_json::from_str(include_str!("../cli/check.schema.json"))?;
    let name = "check.schema.json";
    compiler.add_resource(name, schema).map_err(|error| anyhow::anyhow!("{error}"))?;
    let index = compiler.compile(name, &mut schemas).map_err(|error| anyhow::anyhow!("{error}"))?;
    let report: Value = serde_json::from_str(printed).context("check -o json is not JSON")?;
    ensure!(report["checks"].as_array().is_some_and(|checks| !checks.is_empty()), "no check was run: {printed}");
    schemas.validate(&report, index).map_err(|error| anyhow::anyhow!("{error:#}"))
}

fn viewers_need_a_role() -> Result<()> {
    let s = SHOP.get()?;
    let refused = s.meshctl(["stat", "deploy", "-n", "shop", "--as", "somebody"])?.exits(2)?;
    refused.complains("the right to get workloads/golden")?.complains("kubectl create rolebinding")?;
    s.kubectl(["-n", "shop", "create", "rolebinding", "look", "--clusterrole=view", "--user=somebody"])?.ok()?;
    s.meshctl(["stat", "deploy", "-n", "shop", "--as", "somebody"])?.ok()?.says("catalog")?;
    Ok(())
}
