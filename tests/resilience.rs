//! The mesh when its parts go away: traffic must not notice.

use crate::harness::{Need, Sandbox, eventually, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use mesh_api::golden::GoldenFrame;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Stdio;
use std::time::{Duration, Instant};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl"), Need::Program("curl")];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("resilience::control_killed_under_load_loses_nothing", NEEDS, control_killed_under_load_loses_nothing),
        test("resilience::a_rolling_restart_loses_nothing", NEEDS, a_rolling_restart_loses_nothing),
        test("resilience::replicas_answer_for_each_other", NEEDS, replicas_answer_for_each_other),
    ]
}

/// A shop of the test's own, since it is going to be hurt, with a meshed pod to call from.
pub(crate) fn shop(name: &str) -> Result<Sandbox> {
    shop_in(Sandbox::meshed(name)?)
}

/// The same in a mesh that is there.
pub(crate) fn shop_in(s: Sandbox) -> Result<Sandbox> {
    s.meshctl(["sandbox", "image", "add", "--name", &s.name, "sh", "/bin/sh"])?.ok()?;
    let injected = s.meshctl_with_input(["inject", "-"], mesh_sandbox::apps::SHOP_YAML)?.ok()?.stdout;
    s.kubectl_with_input(["apply", "-f", "-"], &injected)?.ok()?;
    s.kubectl(["-n", "shop", "wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?.ok()?;
    Ok(s)
}

/// Calls the catalog from a meshed pod for so long, and at least thirty times, while something happens; returns every
/// status seen.
fn under_load(s: &Sandbox, seconds: u32, happens: impl FnOnce() -> Result<()>) -> Result<Vec<String>> {
    let line = format!(
        "end=$(($(date +%s)+{seconds})); calls=0; while [ $(date +%s) -lt $end ] || [ $calls -lt 30 ]; do \
         calls=$((calls+1)); \
         curl -s -o /dev/null --max-time 5 -w '%{{http_code}} %{{errormsg}}\\n' http://catalog.shop/products/1; done"
    );
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "caller", "annotations": {"meshctl.dev/inject": "enabled"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "main", "image": "sh", "args": ["-c", "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"]}]},
    });
    s.kubectl_with_input(["-n", "shop", "apply", "-f", "-"], &pod.to_string())?.ok()?;
    s.kubectl(["-n", "shop", "wait", "--for=condition=Ready", "pod/caller", "--timeout=30s"])?.ok()?;
    let mut command = s.kubectl_command(["-n", "shop", "exec", "caller", "-c", "main", "--", "sh", "-c", &line])?;
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    std::thread::sleep(Duration::from_secs(1));
    let happened = happens();
    let output = child.wait_with_output()?;
    happened?;
    let statuses: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    ensure!(statuses.len() > 20, "only {} calls: {}", statuses.len(), String::from_utf8_lossy(&output.stderr));
    Ok(statuses)
}

fn all_well(statuses: &[String]) -> Result<()> {
    let bad: Vec<&String> = statuses.iter().filter(|status| status.trim() != "200").collect();
    ensure!(bad.is_empty(), "{} of {} requests were lost: {:?}", bad.len(), statuses.len(), &bad[..bad.len().min(5)]);
    Ok(())
}

/// Host process ids of this sandbox's control planes: the programs called `mesh-control` whose environment or root
/// belongs to it cannot be told from another sandbox's, so they are found through their parent.
fn control_process(s: &Sandbox) -> Result<Pid> {
    let mut parents = std::collections::BTreeMap::new();
    let mut candidates = Vec::new();
    let mut daemons = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok());
        parents.insert(pid, parent.unwrap_or_default());
        if line.split(' ').next().is_some_and(|program| program.ends_with("mesh-control")) {
            candidates.push(pid);
        }
        if line.contains(&s.name) {
            daemons.push(pid);
        }
    }
    candidates
        .into_iter()
        .find(|&pid| {
            std::iter::successors(Some(pid), |pid| parents.get(pid).copied()).take(20).any(|p| daemons.contains(&p))
        })
        .map(Pid::from_raw)
        .context("no mesh-control runs in this sandbox")
}

/// How many proxies there are, and how many of them are connected to control.
fn connected(s: &Sandbox) -> Result<(u32, u32)> {
    let path = "/apis/observe.meshctl.dev/v1alpha1/namespaces/shop/workloads/all/golden?window=1&frames=1";
    let text = s.kubectl(["get", "--raw", path])?.ok()?.stdout;
    let frame: GoldenFrame = serde_json::from_str(text.lines().next().context("no frame")?)?;
    Ok((frame.workloads.iter().map(|w| w.meshed_pods).sum(), frame.workloads.iter().map(|w| w.connected).sum()))
}

fn control_killed_under_load_loses_nothing() -> Result<()> {
    let s = shop("headless")?;
    let statuses = under_load(&s, 8, || {
        kill(control_process(&s)?, Signal::SIGKILL)?;
        s.kubectl(["-n", "mesh-system", "wait", "--for=condition=Available", "deploy/mesh-control", "--timeout=60s"])?
            .ok()?;
        Ok(())
    })?;
    all_well(&statuses)?;
    let returned = Instant::now();
    eventually(Duration::from_secs(30), "every proxy is connected again", || {
        let (meshed, connected) = connected(&s)?;
        ensure!(meshed > 4 && connected == meshed, "{connected} of {meshed}");
        Ok(())
    })?;
    ensure!(returned.elapsed() < Duration::from_secs(4), "back in sync only after {:?}", returned.elapsed());
    Ok(())
}

fn a_rolling_restart_loses_nothing() -> Result<()> {
    let s = shop("rolling")?;
    let statuses = under_load(&s, 12, || {
        s.kubectl(["-n", "shop", "rollout", "restart", "deploy/catalog"])?.ok()?;
        s.kubectl(["-n", "shop", "rollout", "status", "deploy/catalog", "--timeout=60s"])?.ok()?;
        Ok(())
    })?;
    all_well(&statuses)
}

/// Proxies are connected to one of several replicas each; whichever is asked knows of all of them, also after one of
/// them is gone.
fn replicas_answer_for_each_other() -> Result<()> {
    let s = Sandbox::up("replicas")?;
    s.meshctl(["install", "--apply", "--set", "control.replicas=2"])?.ok()?;
    s.meshctl(["check", "--wait"])?.ok()?;
    let s = shop_in(s)?;
    let all_connected = || {
        eventually(Duration::from_secs(30), "every proxy is known of", || {
            for _ in 0..4 {
                let said = s.meshctl(["check", "--only", "proxy.connected", "-n", "shop", "-o", "json"])?.stdout;
                let said: serde_json::Value = serde_json::from_str(&said)?;
                ensure!(said["checks"][0]["status"] == "ok", "{said}");
            }
            Ok(())
        })
    };
    all_connected()?;
    let name = "jsonpath={.items[*].metadata.name}";
    let label = "app.kubernetes.io/name=mesh-control";
    let replicas = s.kubectl(["-n", "mesh-system", "get", "pods", "-l", label, "-o", name])?.ok()?.stdout;
    let replicas: Vec<&str> = replicas.split_whitespace().collect();
    ensure!(replicas.len() == 2, "{replicas:?}");
    s.kubectl(["-n", "mesh-system", "delete", "pod", replicas[0], "--grace-period=0", "--force"])?.ok()?;
    all_connected()
}
