//! Pods as Kubernetes runs them: what containers are given, in which order they live and die, what is told of them.

use crate::harness::{BARE, Need, Sandbox, eventually, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl")];

pub(crate) fn tests() -> Vec<Trial> {
    [
        ("containers_get_what_they_ask_for", containers_get_what_they_ask_for as fn() -> Result<()>),
        ("config_maps_change_under_a_running_container", config_maps_change_under_a_running_container),
        ("init_containers_and_sidecars_keep_their_order", init_containers_and_sidecars_keep_their_order),
        ("probes_decide_over_readiness_and_life", probes_decide_over_readiness_and_life),
        ("a_failing_container_backs_off", a_failing_container_backs_off),
        ("containers_end_as_asked_or_by_force", containers_end_as_asked_or_by_force),
        ("containers_are_apart_from_the_machine", containers_are_apart_from_the_machine),
        ("security_contexts_hold", security_contexts_hold),
        ("a_program_that_is_not_there_is_named", a_program_that_is_not_there_is_named),
        ("pods_of_the_hosts_network_share_it", pods_of_the_hosts_network_share_it),
        ("pods_that_go_cut_nobody_off", pods_that_go_cut_nobody_off),
        ("a_pod_has_its_deadline", a_pod_has_its_deadline),
        ("what_was_missing_is_used_once_it_is_there", what_was_missing_is_used_once_it_is_there),
    ]
    .into_iter()
    .map(|(name, run)| test(&format!("node::{name}"), NEEDS, run))
    .collect()
}

/// A namespace of the test's own.
fn namespace(name: &str) -> Result<&'static Sandbox> {
    let sandbox = BARE.get()?;
    sandbox.kubectl(["create", "namespace", name])?.ok()?;
    Ok(sandbox)
}

fn apply(sandbox: &Sandbox, object: &Value) -> Result<()> {
    sandbox.kubectl_with_input(["apply", "-f", "-"], &object.to_string())?.ok().map(drop)
}

/// A pod of this spec, whose containers get the image `sh` and end at once when told to.
fn run(sandbox: &Sandbox, namespace: &str, name: &str, mut spec: Value) -> Result<()> {
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            container["image"] = "sh".into();
        }
    }
    if spec["terminationGracePeriodSeconds"].is_null() {
        spec["terminationGracePeriodSeconds"] = 0.into();
    }
    let metadata = json!({"name": name, "namespace": namespace, "labels": {"app": name}});
    apply(sandbox, &json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
}

fn get(sandbox: &Sandbox, namespace: &str, name: &str) -> Result<Value> {
    let pod = sandbox.kubectl(["-n", namespace, "get", "pod", name, "-o", "json"])?.ok()?;
    serde_json::from_str(&pod.stdout).context("reading a pod")
}

fn phase(sandbox: &Sandbox, namespace: &str, name: &str, phase: &str) -> Result<Value> {
    eventually(Duration::from_secs(20), &format!("pod {name} is {phase}"), || {
        let pod = get(sandbox, namespace, name)?;
        ensure!(pod["status"]["phase"] == phase, "{:#}", pod["status"]);
        Ok(pod)
    })
}

fn ready(sandbox: &Sandbox, namespace: &str, name: &str) -> Result<()> {
    let pod = format!("pod/{name}");
    sandbox.kubectl(["-n", namespace, "wait", "--for=condition=Ready", &pod, "--timeout=20s"])?.ok().map(drop)
}

fn logs(sandbox: &Sandbox, namespace: &str, name: &str, container: &str) -> Result<String> {
    Ok(sandbox.kubectl(["-n", namespace, "logs", name, "-c", container])?.ok()?.stdout)
}

fn exec(sandbox: &Sandbox, namespace: &str, name: &str, line: &str) -> Result<String> {
    Ok(sandbox.kubectl(["-n", namespace, "exec", name, "--", "sh", "-c", line])?.ok()?.stdout)
}

fn containers_get_what_they_ask_for() -> Result<()> {
    let sandbox = namespace("given")?;
    apply(
        sandbox,
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "given"},
            "data": {"colour": "green", "shape": "round"}}),
    )?;
    apply(
        sandbox,
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret", "namespace": "given"},
            "stringData": {"key": "s3cret"}}),
    )?;
    let script = "echo $GREETING $COLOUR $P_shape $KEY $WHO $LABEL $1; pwd; hostname; \
        cat /etc/settings/colour /etc/part /etc/secret/deep/key /info/app; echo; \
        stat -L -c '%a %F' /etc/secret/deep/key; cat /var/run/secrets/kubernetes.io/serviceaccount/namespace; echo; \
        cut -d. -f2 /token/audience | tr '_-' '/+' | base64 -d 2>/dev/null | grep -o 'for-me'; \
        echo data > /shared/file; cat /again/sub/file; grep -c 10.96.0.10 /etc/resolv.conf; \
        grep 9.9.9.9 /etc/hosts | tr '\\t' ' '; echo $KUBERNETES_SERVICE_HOST";
    let container = json!({
        "name": "main", "command": ["sh", "-c", script, "zero", "$(GREETING)"], "workingDir": "/somewhere/new",
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "settings"}}],
        "env": [
            {"name": "GREETING", "value": "hello"},
            {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "key"}}},
            {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        ],
        "volumeMounts": [
            {"name": "settings", "mountPath": "/etc/settings"},
            {"name": "settings", "mountPath": "/etc/part", "subPath": "shape"},
            {"name": "secret", "mountPath": "/etc/secret"},
            {"name": "all", "mountPath": "/info", "readOnly": true},
            {"name": "token", "mountPath": "/token"},
            {"name": "shared", "mountPath": "/shared", "subPath": "sub"},
            {"name": "shared", "mountPath": "/again"},
        ],
    });
    let projected = |source: Value| json!({"sources": [source]});
    let volumes = json!([
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "secret", "secret": {"secretName": "secret", "defaultMode": 256, "items": [{"key": "key", "path": "deep/key"}]}},
        {"name": "all", "projected": projected(json!({"downwardAPI": {"items": [{"path": "app", "fieldRef": {"fieldPath": "metadata.labels['app']"}}]}}))},
        {"name": "token", "projected": projected(json!({"serviceAccountToken": {"path": "audience", "audience": "for-me"}}))},
        {"name": "shared", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ]);
    let aliases = json!([{"ip": "9.9.9.9", "hostnames": ["quad", "nine"]}]);
    let spec = json!({"restartPolicy": "Never", "hostAliases": aliases, "containers": [container], "volumes": volumes});
    run(sandbox, "given", "asks", spec)?;
    phase(sandbox, "given", "asks", "Succeeded")?;
    let expected = "hello green round s3cret asks asks hello\n/somewhere/new\nasks\ngreenrounds3cretasks\n\
        400 regular file\ngiven\nfor-me\ndata\n1\n9.9.9.9 quad nine\n10.96.0.1\n";
    let told = logs(sandbox, "given", "asks", "main")?;
    ensure!(told == expected, "expected\n{expected}\ngot\n{told}");
    Ok(())
}

fn config_maps_change_under_a_running_container() -> Result<()> {
    let sandbox = namespace("live")?;
    let map = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "live"}, "data": {"k": value}});
    apply(sandbox, &map("old"))?;
    let container =
        json!({"name": "main", "args": ["-c", "exec sleep 600"], "volumeMounts": [{"name": "m", "mountPath": "/m"}]});
    run(
        sandbox,
        "live",
        "reader",
        json!({"containers": [container], "volumes": [{"name": "m", "configMap": {"name": "m"}}]}),
    )?;
    ready(sandbox, "live", "reader")?;
    ensure!(exec(sandbox, "live", "reader", "cat /m/k")? == "old");
    apply(sandbox, &map("new"))?;
    eventually(Duration::from_secs(5), "the file changes", || {
        ensure!(exec(sandbox, "live", "reader", "cat /m/k")? == "new");
        Ok(())
    })
}

fn init_containers_and_sidecars_keep_their_order() -> Result<()> {
    let sandbox = namespace("order")?;
    let mount = json!([{"name": "log", "mountPath": "/log"}]);
    let say = |name: &str, line: &str| json!({"name": name, "args": ["-c", line], "volumeMounts": mount});
    let side = |name: &str| {
        let line = format!(
            "echo {name} up >> /log/all; trap 'echo {name} down >> /log/all; cat /log/all; exit 0' TERM; \
             touch /log/{name}; while :; do sleep 0.05; done"
        );
        let mut container = say(name, &line);
        container["restartPolicy"] = "Always".into();
        container["startupProbe"] = json!({"exec": {"command": ["test", "-e", format!("/log/{name}")]}});
        container
    };
    let spec = json!({
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 10,
        "initContainers": [say("first", "echo first >> /log/all"), side("one"), say("second", "echo second >> /log/all"), side("two")],
        "containers": [say("app", "sleep 0.3; echo app >> /log/all")],
        "volumes": [{"name": "log", "emptyDir": {}}],
    });
    run(sandbox, "order", "p", spec)?;
    let pod = phase(sandbox, "order", "p", "Succeeded")?;
    let told = logs(sandbox, "order", "p", "one")?;
    ensure!(told == "first\none up\nsecond\ntwo up\napp\ntwo down\none down\n", "{told}");
    let reasons: Vec<_> = pod["status"]["initContainerStatuses"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|status| &status["state"]["terminated"]["reason"])
        .collect();
    ensure!(reasons == ["Completed"; 4], "{reasons:?}");
    Ok(())
}

fn probes_decide_over_readiness_and_life() -> Result<()> {
    let sandbox = namespace("probes")?;
    let container = json!({
        "name": "main", "args": ["-c", "touch /alive; echo began; exec sleep 600"],
        "readinessProbe": {"exec": {"command": ["test", "-e", "/ready"]}, "periodSeconds": 1, "failureThreshold": 1},
        // Later than the container's first command, also on a busy machine.
        "livenessProbe": {"exec": {"command": ["test", "-e", "/alive"]}, "initialDelaySeconds": 5, "periodSeconds": 1,
            "failureThreshold": 1},
    });
    run(sandbox, "probes", "p", json!({"containers": [container]}))?;
    phase(sandbox, "probes", "p", "Running")?;
    let is_ready = |wanted: bool| {
        eventually(Duration::from_secs(10), &format!("ready is {wanted}"), || {
            let pod = get(sandbox, "probes", "p")?;
            ensure!(pod["status"]["containerStatuses"][0]["ready"] == wanted, "{:#}", pod["status"]);
            Ok(pod)
        })
    };
    is_ready(false)?;
    exec(sandbox, "probes", "p", "touch /ready")?;
    is_ready(true)?;
    exec(sandbox, "probes", "p", "rm /ready")?;
    is_ready(false)?;
    exec(sandbox, "probes", "p", "rm /alive")?;
    eventually(Duration::from_secs(60), "the container is restarted", || {
        let pod = get(sandbox, "probes", "p")?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["restartCount"] == 1 && status["state"]["running"].is_object(), "{status:#}");
        ensure!(status["lastState"]["terminated"]["exitCode"] == 137, "{status:#}");
        Ok(())
    })?;
    let events = sandbox.kubectl(["-n", "probes", "get", "events"])?.ok()?;
    events.says("Readiness probe failed")?.says("failed liveness probe, will be restarted")?;
    Ok(())
}

fn a_failing_container_backs_off() -> Result<()> {
    let sandbox = namespace("failing")?;
    let line = "echo attempt; echo my last words > /dev/termination-log; exit 3";
    run(sandbox, "failing", "p", json!({"containers": [{"name": "main", "args": ["-c", line]}]}))?;
    let status = eventually(Duration::from_secs(20), "the pod backs off", || {
        let pod = get(sandbox, "failing", "p")?;
        let status = pod["status"]["containerStatuses"][0].clone();
        ensure!(status["state"]["waiting"]["reason"] == "CrashLoopBackOff", "{status:#}");
        Ok(status)
    })?;
    let last = &status["lastState"]["terminated"];
    ensure!(status["restartCount"] == 1 && last["exitCode"] == 3 && last["reason"] == "Error", "{status:#}");
    ensure!(last["message"] == "my last words\n", "{status:#}");
    sandbox.kubectl(["-n", "failing", "logs", "p", "--previous"])?.ok()?.says("attempt")?;
    sandbox.kubectl(["-n", "failing", "get", "pods"])?.ok()?.says("CrashLoopBackOff")?;
    Ok(())
}

fn containers_end_as_asked_or_by_force() -> Result<()> {
    let sandbox = namespace("ending")?;
    let polite = "trap 'echo told; exit 0' TERM; while :; do sleep 0.05; done";
    let lifecycle = json!({"preStop": {"exec": {"command": ["sh", "-c", "echo before > /proc/1/fd/1"]}}});
    let spec = |line: &str, grace: u64| {
        json!({
            "terminationGracePeriodSeconds": grace,
            "containers": [{"name": "main", "args": ["-c", line], "lifecycle": lifecycle}],
        })
    };
    run(sandbox, "ending", "polite", spec(polite, 20))?;
    run(sandbox, "ending", "deaf", spec("exec sleep 600", 1))?;
    ready(sandbox, "ending", "polite")?;
    ready(sandbox, "ending", "deaf")?;
    let mut follow = sandbox.kubectl_command(["-n", "ending", "logs", "-f", "polite"])?;
    let follow = follow.stdout(std::process::Stdio::piped()).spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    sandbox.kubectl(["-n", "ending", "delete", "pod", "polite"])?.ok()?;
    ensure!(begun.elapsed() < Duration::from_secs(10), "took {:?}", begun.elapsed());
    let told = String::from_utf8(follow.wait_with_output()?.stdout)?;
    ensure!(told == "before\ntold\n", "{told}");
    let begun = Instant::now();
    sandbox.kubectl(["-n", "ending", "delete", "pod", "deaf"])?.ok()?;
    let took = begun.elapsed();
    ensure!(took > Duration::from_millis(900) && took < Duration::from_secs(10), "took {took:?}");
    Ok(())
}

fn containers_are_apart_from_the_machine() -> Result<()> {
    let sandbox = namespace("apart")?;
    let mark = format!("mesh-test-{}", std::process::id());
    let outside = std::env::temp_dir().join(&mark);
    std::fs::write(&outside, "x")?;
    let shown = outside.display();
    for name in ["one", "two"] {
        run(sandbox, "apart", name, json!({"containers": [{"name": "main", "args": ["-c", "exec sleep 600"]}]}))?;
        ready(sandbox, "apart", name)?;
    }
    let seen =
        exec(sandbox, "apart", "one", &format!("test -e {shown} || echo hidden; touch /etc/{mark} && ls /etc/{mark}"))?;
    ensure!(seen == format!("hidden\n/etc/{mark}\n"), "{seen}");
    std::fs::remove_file(&outside)?;
    ensure!(!std::path::Path::new("/etc").join(&mark).exists(), "a container wrote to the machine's /etc");
    let other = exec(
        sandbox,
        "apart",
        "two",
        &format!("test -e /etc/{mark} || echo apart; ls /proc | grep -c '^[0-9]'; cat /proc/1/comm"),
    )?;
    let lines: Vec<&str> = other.lines().collect();
    ensure!(lines[0] == "apart" && lines[1].parse::<u32>()? <= 6 && lines[2] == "sleep", "{other}");
    let folder = sandbox.kubeconfig.display();
    let kept = exec(sandbox, "apart", "one", &format!("cat {folder} 2>/dev/null || echo kept"))?;
    ensure!(kept == "kept\n", "a container can read the administrator's kubeconfig");
    Ok(())
}

fn security_contexts_hold() -> Result<()> {
    let sandbox = namespace("secure")?;
    let line = "id -u; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'; \
        touch /x 2>/dev/null || echo read-only; touch /data/x && echo writable";
    let context = json!({
        "runAsUser": 4711, "runAsNonRoot": true, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    let container = json!({"name": "main", "args": ["-c", line], "securityContext": context, "volumeMounts": [{"name": "d", "mountPath": "/data"}]});
    let spec = json!({"restartPolicy": "Never", "containers": [container], "volumes": [{"name": "d", "emptyDir": {}}]});
    run(sandbox, "secure", "p", spec)?;
    phase(sandbox, "secure", "p", "Succeeded")?;
    let told = logs(sandbox, "secure", "p", "main")?;
    ensure!(told == "4711\nCapEff:0000000000000000\nNoNewPrivs:1\nSeccomp:2\nread-only\nwritable\n", "{told}");
    let root = json!({"name": "main", "args": ["-c", "true"], "securityContext": {"runAsNonRoot": true}});
    run(sandbox, "secure", "root", json!({"containers": [root]}))?;
    eventually(Duration::from_secs(10), "root is refused", || {
        let pod = get(sandbox, "secure", "root")?;
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        ensure!(waiting["reason"] == "CreateContainerConfigError", "{waiting:#}");
        Ok(())
    })
}

fn a_program_that_is_not_there_is_named() -> Result<()> {
    let sandbox = namespace("missing")?;
    run(
        sandbox,
        "missing",
        "p",
        json!({"restartPolicy": "Never", "containers": [{"name": "main", "command": ["no-such-program"]}]}),
    )?;
    let pod = phase(sandbox, "missing", "p", "Failed")?;
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(ended["reason"] == "StartError" && ended["exitCode"] == 128, "{ended:#}");
    let message = ended["message"].as_str().unwrap_or_default();
    ensure!(message.contains("\"no-such-program\": executable file not found in $PATH"), "{message}");
    Ok(())
}

fn pods_of_the_hosts_network_share_it() -> Result<()> {
    let sandbox = namespace("hostnet")?;
    let line = "ls /sys/class/net | grep mesh0 || grep -o mesh0 /proc/net/dev";
    let spec =
        json!({"restartPolicy": "Never", "hostNetwork": true, "containers": [{"name": "main", "args": ["-c", line]}]});
    run(sandbox, "hostnet", "p", spec)?;
    let pod = phase(sandbox, "hostnet", "p", "Succeeded")?;
    ensure!(pod["status"]["podIP"] == "10.244.0.1", "{:#}", pod["status"]);
    ensure!(logs(sandbox, "hostnet", "p", "main")?.contains("mesh0"));
    Ok(())
}

/// The node keeps its hardware address, whichever of its ports come and go: who remembers it goes on.
fn pods_that_go_cut_nobody_off() -> Result<()> {
    let s = namespace("going")?;
    let names = ["a", "b", "c", "d", "e", "f"];
    for name in names {
        let command = "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done";
        run(s, "going", name, json!({"containers": [{"name": "main", "args": ["-c", command]}]}))?;
    }
    for name in names {
        ready(s, "going", name)?;
    }
    let asks = "getent hosts kubernetes.default.svc.cluster.local > /dev/null && grep '^10.244.0.1 ' /proc/net/arp";
    let address = |name: &str| -> Result<String> {
        let entry = exec(s, "going", name, &format!("timeout 4 sh -c \"{asks}\""))?;
        Ok(entry.split_whitespace().nth(3).context("no hardware address")?.to_owned())
    };
    let before: Vec<String> = names.iter().map(|name| address(name)).collect::<Result<_>>()?;
    ensure!(before.iter().all(|one| *one == before[0]), "the node has several hardware addresses: {before:?}");
    for (at, name) in names[..5].iter().enumerate() {
        s.kubectl(["-n", "going", "delete", "pod", name])?.ok()?;
        for left in &names[at + 1..] {
            let now = address(left).with_context(|| format!("{left} is cut off since {name} is gone"))?;
            ensure!(now == before[0], "{left} reaches the node by {now}, not {}", before[0]);
        }
    }
    Ok(())
}

fn a_pod_has_its_deadline() -> Result<()> {
    let sandbox = namespace("deadline")?;
    let spec = json!({"activeDeadlineSeconds": 1, "containers": [{"name": "main", "args": ["-c", "exec sleep 600"]}]});
    run(sandbox, "deadline", "p", spec)?;
    let pod = phase(sandbox, "deadline", "p", "Failed")?;
    ensure!(pod["status"]["reason"] == "DeadlineExceeded", "{:#}", pod["status"]);
    Ok(())
}

fn what_was_missing_is_used_once_it_is_there() -> Result<()> {
    let sandbox = namespace("late")?;
    let env = json!([{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]);
    let container = json!({"name": "main", "args": ["-c", "echo got $K"], "env": env});
    run(sandbox, "late", "p", json!({"restartPolicy": "Never", "containers": [container]}))?;
    eventually(Duration::from_secs(10), "the config map is missed", || {
        let pod = get(sandbox, "late", "p")?;
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        ensure!(waiting["message"] == "configmap \"m\" not found", "{waiting:#}");
        Ok(())
    })?;
    apply(
        sandbox,
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "late"}, "data": {"k": "it"}}),
    )?;
    phase(sandbox, "late", "p", "Succeeded")?;
    ensure!(logs(sandbox, "late", "p", "main")? == "got it\n");
    Ok(())
}
