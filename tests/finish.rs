//! Pods of clusters without native sidecars: the application starts when its proxy is ready, has it until its own end, and
//! a pod that runs to an end, like that of a Job, is not kept up by its proxy.

use crate::harness::{Need, Sandbox, eventually, test};
use crate::peer::ports;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::Duration;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl"), Need::Program("curl"), Need::Program("bash")];
const NS: &str = "finish";

pub(crate) fn tests() -> Vec<Trial> {
    vec![test("finish::pods_end_without_native_sidecars", NEEDS, pods_end_without_native_sidecars)]
}

/// Arguments of a shell that asks `echo` once and does not try again.
fn asks(then: &str) -> Value {
    json!(["-c", format!("curl -sSf --max-time 10 -o /dev/null http://echo:{}/ && {then}", ports::HTTP1)])
}

fn job(name: &str, policy: &str, args: Value) -> Value {
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": NS}, "spec": {
        "backoffLimit": 0, "template": {"spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 5,
            // It runs before the proxy does, and is not redirected to it.
            "initContainers": [{"name": "before", "image": "bash", "args": asks("true")}],
            "containers": [{"name": "main", "image": "bash", "args": args, "volumeMounts": [{"name": "kept", "mountPath": "/kept"}]}],
            "volumes": [{"name": "kept", "emptyDir": {}}]}}}})
}

fn lay(s: &Sandbox) -> Result<()> {
    s.kubectl(["create", "ns", NS])?.ok()?;
    s.kubectl(["annotate", "ns", NS, "meshctl.dev/inject=enabled"])?.ok()?;
    let ending = format!(
        "exec 3<>/dev/tcp/echo/{port}; trap 'sleep 5; curl -sSf --max-time 5 -o /dev/null http://echo:{port}/late && echo well; exit 0' TERM; \
         echo up; while true; do sleep 0.2 & wait $!; done",
        port = ports::HTTP1
    );
    let once = asks("if test -e /kept/once; then exit 0; else touch /kept/once; exit 1; fi");
    let run = job("run", "Never", asks("true"));
    // Containers that are started again count against the limit, too.
    let mut again = job("again", "OnFailure", once);
    again["spec"]["backoffLimit"] = json!(3);
    let items = json!([
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "echo", "namespace": NS}, "spec": {
            "selector": {"matchLabels": {"app": "echo"}}, "template": {"metadata": {"labels": {"app": "echo"}}, "spec": {
                "terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": "mesh-peer", "args": ["echo", "echo"]}]}}}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "echo", "namespace": NS},
            "spec": {"selector": {"app": "echo"}, "ports": [{"name": "http", "port": ports::HTTP1}]}},
    ]);
    apply(s, items)?;
    s.kubectl(["-n", NS, "wait", "--for=condition=Available", "deploy/echo", "--timeout=60s"])?.ok()?;
    apply(
        s,
        json!([
            job("good", "Never", asks("true")),
            job("bad", "Never", asks("exit 3")),
            again,
            {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly", "namespace": NS},
                "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": run["spec"]}}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ending", "namespace": NS}, "spec": {
                "terminationGracePeriodSeconds": 20, "containers": [{"name": "main", "image": "bash", "args": ["-c", ending]}]}},
        ]),
    )?;
    s.kubectl(["-n", NS, "create", "job", "tonight", "--from=cronjob/nightly"])?.ok()?;
    Ok(())
}

fn apply(s: &Sandbox, items: Value) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    s.kubectl_with_input(["apply", "-f", "-"], &list.to_string())?.ok()?;
    Ok(())
}

fn pod_of(s: &Sandbox, label: &str) -> Result<Value> {
    let list = s.kubectl(["-n", NS, "get", "pods", "-l", label, "-o", "json"])?.ok()?.stdout;
    let list: Value = serde_json::from_str(&list)?;
    Ok(list["items"][0].clone())
}

fn pods_end_without_native_sidecars() -> Result<()> {
    let s = Sandbox::up("finish")?;
    s.meshctl(["sandbox", "image", "add", "--name", &s.name, "bash", "/bin/bash"])?.ok()?;
    s.add_peer()?;
    s.meshctl(["install", "--apply", "--set", "proxy.native_sidecar=false"])?.ok()?;
    s.meshctl(["check", "--wait"])?.ok()?;
    lay(&s)?;
    the_application_has_its_proxy_to_the_end(&s)?;
    for name in ["good", "tonight", "again"] {
        s.kubectl(["-n", NS, "wait", "--for=condition=Complete", &format!("job/{name}"), "--timeout=60s"])?.ok()?;
        let pod = pod_of(&s, &format!("job-name={name}"))?;
        ensure!(pod["status"]["phase"] == "Succeeded", "{name}: {:#}", pod["status"]);
        started_in_order(&pod)?;
    }
    s.kubectl(["-n", NS, "wait", "--for=condition=Failed", "job/bad", "--timeout=60s"])?.ok()?;
    let pod = pod_of(&s, "job-name=bad")?;
    ensure!(pod["status"]["phase"] == "Failed", "{:#}", pod["status"]);
    let states = pod["status"]["containerStatuses"].as_array().context("statuses")?;
    for (name, code) in [("mesh-proxy", 0), ("main", 3)] {
        let state = states.iter().find(|state| state["name"] == name).context("no status")?;
        ensure!(state["state"]["terminated"]["exitCode"] == code, "{name}: {state:#}");
    }
    started_in_order(&pod_of(&s, "app=echo")?)?;
    // A namespace, a workload or a pod may want it the other way.
    let native = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "native", "namespace": NS, "annotations": {"meshctl.dev/native-sidecar": "true"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "bash", "args": asks("true")}]}});
    s.kubectl_with_input(["apply", "-f", "-"], &native.to_string())?.ok()?;
    s.kubectl(["-n", NS, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/native", "--timeout=60s"])?.ok()?;
    Ok(())
}

/// The proxy is the first container, and the next was started when it was ready. (The containers of a pod that was slow
/// show it; the others at least do not show the contrary.)
fn started_in_order(pod: &Value) -> Result<()> {
    let names: Vec<&str> =
        pod["spec"]["containers"].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect();
    ensure!(names == ["mesh-proxy", "main"], "{names:?}");
    let inits = pod["spec"]["initContainers"].as_array().context("no init containers")?;
    ensure!(inits.last().is_some_and(|last| last["name"] == "mesh-redirect"), "{inits:#?}");
    Ok(())
}

/// Told to end at the same moment as its proxy, an application still gets through seconds later.
fn the_application_has_its_proxy_to_the_end(s: &Sandbox) -> Result<()> {
    s.kubectl(["-n", NS, "wait", "--for=condition=Ready", "pod/ending", "--timeout=60s"])?.ok()?;
    eventually(Duration::from_secs(20), "the application is up", || {
        // The container that is meant where none is named is the application.
        s.kubectl(["-n", NS, "logs", "ending"])?.ok()?.says("up")
    })?;
    let mut follow = s.kubectl_command(["-n", NS, "logs", "-f", "ending"])?;
    let follow = follow.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    s.kubectl(["-n", NS, "delete", "pod", "ending", "--timeout=60s"])?.ok()?;
    let said = String::from_utf8(follow.wait_with_output()?.stdout)?;
    ensure!(said.contains("well"), "the application could not speak to others while it was ending: {said}");
    Ok(())
}
