//! Interception and encryption are shown here, not assumed: what a wiretap sees, what happens without the proxy, and
//! how far somebody gets who only pretends to be one.

use crate::harness::{Need, SHOP, Sandbox, eventually, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl"), Need::Program("curl")];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("interception::the_wire_carries_tls_and_no_text", NEEDS, the_wire_carries_tls_and_no_text),
        test("interception::traffic_stops_with_the_proxy", NEEDS, traffic_stops_with_the_proxy),
        test("interception::pretenders_get_nowhere", NEEDS, pretenders_get_nowhere),
        test("interception::a_wrong_token_gets_no_certificate", NEEDS, a_wrong_token_gets_no_certificate),
        test("interception::unmeshed_peers_talk_in_plain_text", NEEDS, unmeshed_peers_talk_in_plain_text),
    ]
}

/// Makes this binary an image under one of its names.
fn image(s: &Sandbox, name: &str) -> Result<()> {
    // Beside this binary: the sandbox hides its own state folder from containers.
    let ourselves = std::env::current_exe()?;
    let link = ourselves.with_file_name(name);
    let _ = std::fs::remove_file(&link);
    std::fs::hard_link(&ourselves, &link)?;
    s.meshctl(["sandbox", "image", "add", "--name", &s.name, name, link.to_str().context("path")?])?.ok()?;
    Ok(())
}

/// Runs a pod to its end and returns its log.
fn pod_log(s: &Sandbox, ns: &str, name: &str) -> Result<String> {
    let pod = format!("pod/{name}");
    s.kubectl(["-n", ns, "wait", "--for=jsonpath={.status.phase}=Succeeded", &pod, "--timeout=60s"])?.ok()?;
    Ok(s.kubectl(["-n", ns, "logs", name])?.ok()?.stdout)
}

/// `curl` inside a pod of the shop, which knows nothing of the mesh.
fn curl(s: &Sandbox, from: &str, url: &str) -> Result<crate::harness::Ran> {
    s.kubectl(["-n", "shop", "exec", from, "-c", "main", "--", "curl", "-sS", "--max-time", "3", "-i", url])
}

/// A pod in the shop with nothing in it but a shell, meshed or not.
fn shell_pod(s: &Sandbox, name: &str, meshed: bool) -> Result<()> {
    let inject = if meshed { "enabled" } else { "disabled" };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": {"meshctl.dev/inject": inject}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "main", "image": "sh", "args": ["-c", "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"]},
        ]},
    });
    s.kubectl_with_input(["-n", "shop", "apply", "-f", "-"], &pod.to_string())?.ok()?;
    s.kubectl(["-n", "shop", "wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=30s"])?.ok()?;
    Ok(())
}

fn the_wire_carries_tls_and_no_text() -> Result<()> {
    let s = SHOP.get()?;
    image(s, "mesh-capture")?;
    shell_pod(s, "wire-meshed", true)?;
    shell_pod(s, "wire-plain", false)?;
    s.kubectl(["create", "ns", "wiretap"])?.ok()?;
    let tap = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tap"},
        "spec": {"hostNetwork": true, "restartPolicy": "Never", "containers": [
            {"name": "main", "image": "mesh-capture", "args": ["mesh0", "10", "secret-of-the-meshed", "text-of-the-unmeshed"], "securityContext": {"capabilities": {"add": ["NET_RAW"]}}},
        ]},
    });
    s.kubectl_with_input(["-n", "wiretap", "apply", "-f", "-"], &tap.to_string())?.ok()?;
    eventually(Duration::from_secs(15), "the wiretap listens", || {
        s.kubectl(["-n", "wiretap", "logs", "tap"])?.ok()?.says("capturing on mesh0")
    })?;
    curl(s, "wire-meshed", "http://catalog.shop/products/secret-of-the-meshed")?.ok()?;
    curl(s, "wire-plain", "http://catalog.shop/products/text-of-the-unmeshed")?.ok()?;
    let wire = pod_log(s, "wiretap", "tap")?;
    ensure!(wire.contains("text text-of-the-unmeshed"), "the wiretap does not even see plain text:\n{wire}");
    ensure!(!wire.contains("text secret-of-the-meshed"), "the meshed request crossed the bridge as text:\n{wire}");
    ensure!(!wire.contains(" 0 TLS records"), "no TLS record on the wire:\n{wire}");
    Ok(())
}

/// Host process id of the proxy beside a pod's application.
pub(crate) fn proxy_of(pod: &str) -> Result<Pid> {
    let wanted = format!("MESH_POD_NAME={pod}");
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        let read = |file: &str| std::fs::read(path.join(file)).unwrap_or_default();
        let line = read("cmdline");
        let program = line.split(|&b| b == 0).next().unwrap_or_default();
        if Path::new(&*String::from_utf8_lossy(program)).ends_with("mesh-proxy")
            && read("environ").split(|&b| b == 0).any(|variable| variable == wanted.as_bytes())
        {
            return Ok(Pid::from_raw(entry.file_name().to_string_lossy().parse()?));
        }
    }
    anyhow::bail!("no proxy of {pod} runs")
}

fn traffic_stops_with_the_proxy() -> Result<()> {
    let s = SHOP.get()?;
    shell_pod(s, "stopped", true)?;
    curl(s, "stopped", "http://catalog.shop/products/1")?.ok()?.says("200 OK")?;
    let proxy = proxy_of("stopped")?;
    kill(proxy, Signal::SIGSTOP)?;
    let without = curl(s, "stopped", "http://catalog.shop/products/1");
    kill(proxy, Signal::SIGCONT)?;
    let without = without?;
    ensure!(without.code != Some(0), "a request went through although the proxy was stopped: {}", without.stdout);
    eventually(Duration::from_secs(10), "traffic flows again", || {
        curl(s, "stopped", "http://catalog.shop/products/1")?.ok()?.says("200 OK")
    })?;
    Ok(())
}

fn pretenders_get_nowhere() -> Result<()> {
    let s = SHOP.get()?;
    image(s, "mesh-forger")?;
    let ip = "jsonpath={.items[0].status.podIP}";
    let ip = s.kubectl(["-n", "shop", "get", "pods", "-l", "app=catalog", "-o", ip])?.ok()?.stdout;
    let port = "jsonpath={.spec.template.spec.containers[0].ports[0].containerPort}";
    let port = s.kubectl(["-n", "shop", "get", "deploy", "catalog", "-o", port])?.ok()?.stdout;
    s.kubectl(["create", "ns", "forged"])?.ok()?;
    for case in ["no-certificate", "own-authority", "other-domain"] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": case},
            "spec": {"restartPolicy": "Never", "containers": [
                {"name": "main", "image": "mesh-forger", "args": [format!("{ip}:{port}"), case]},
            ]},
        });
        s.kubectl_with_input(["-n", "forged", "apply", "-f", "-"], &pod.to_string())?.ok()?;
        let said = pod_log(s, "forged", case)?;
        ensure!(said.starts_with("refused:"), "{case}: {said}");
        ensure!(!said.contains("connecting to"), "{case} never reached the proxy: {said}");
    }
    Ok(())
}

fn a_wrong_token_gets_no_certificate() -> Result<()> {
    let s = SHOP.get()?;
    let injected = "jsonpath={.items[0].spec.initContainers[?(@.name=='mesh-proxy')].env}";
    let environment = s.kubectl(["-n", "shop", "get", "pods", "-l", "app=web", "-o", injected])?.ok()?.stdout;
    let environment: serde_json::Value = serde_json::from_str(&environment)?;
    s.kubectl(["create", "ns", "intruder"])?.ok()?;
    // The proxy of `web`, but with the token of another account for another audience.
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "proxy"},
        "spec": {"containers": [{
            "name": "main", "image": "meshctl/proxy:0.1.0",
            "env": environment.as_array().context("no environment")?.iter()
                .filter(|&v| !["MESH_POD_NAMESPACE", "MESH_SERVICE_ACCOUNT", "MESH_TOKEN_FILE"].iter().any(|n| v["name"] == *n)).cloned()
                .chain([
                    json!({"name": "MESH_POD_NAMESPACE", "value": "shop"}),
                    json!({"name": "MESH_SERVICE_ACCOUNT", "value": "web"}),
                    json!({"name": "MESH_TOKEN_FILE", "value": "/var/run/secrets/kubernetes.io/serviceaccount/token"}),
                ]).collect::<Vec<_>>(),
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 4191}, "periodSeconds": 1},
        }]},
    });
    s.kubectl_with_input(["-n", "intruder", "apply", "-f", "-"], &pod.to_string())?.ok()?;
    eventually(Duration::from_secs(20), "control refuses, and says so", || {
        s.kubectl(["-n", "mesh-system", "logs", "deploy/mesh-control"])?.ok()?.says("refused")
    })?;
    s.kubectl(["-n", "intruder", "wait", "--for=condition=Ready", "pod/proxy", "--timeout=3s"])?.exits(1)?;
    let logs = s.kubectl(["-n", "intruder", "logs", "proxy"])?.ok()?;
    ensure!(!logs.stdout.contains("eyJ"), "a token is in the log");
    s.kubectl(["delete", "ns", "intruder", "--wait=false"])?.ok()?;
    Ok(())
}

fn unmeshed_peers_talk_in_plain_text() -> Result<()> {
    let s = SHOP.get()?;
    shell_pod(s, "plain-caller", false)?;
    curl(s, "plain-caller", "http://catalog.shop/products/7")?.ok()?.says("200 OK")?;
    // And the other way: a meshed pod calls one that has no proxy.
    let bare = json!({
        "apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare", "labels": {"app": "bare"},
                "annotations": {"meshctl.dev/inject": "disabled"}},
             "spec": {"containers": [{"name": "main", "image": "meshctl/demo:0.1.0", "args": ["catalog"]}]}},
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bare"},
             "spec": {"selector": {"app": "bare"}, "ports": [{"port": 80, "targetPort": 8080}]}},
        ],
    });
    s.kubectl_with_input(["-n", "shop", "apply", "-f", "-"], &bare.to_string())?.ok()?;
    s.kubectl(["-n", "shop", "wait", "--for=condition=Ready", "pod/bare", "--timeout=30s"])?.ok()?;
    shell_pod(s, "meshed-caller", true)?;
    eventually(Duration::from_secs(10), "the unmeshed answers", || {
        curl(s, "meshed-caller", "http://bare.shop/products/7")?.ok()?.says("200 OK")
    })?;
    Ok(())
}
