//! A real `kubectl` against the sandbox: every command the README promises, and what it prints or does.

use crate::harness::{BARE, Need, Sandbox, eventually, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::time::Duration;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl")];

pub(crate) fn tests() -> Vec<Trial> {
    [
        ("get_in_every_form", get_in_every_form as fn() -> Result<()>),
        ("get_watches", get_watches),
        ("selectors_choose", selectors_choose),
        ("describe_tells_the_story", describe_tells_the_story),
        ("create_and_its_errors", create_and_its_errors),
        ("apply_client_side", apply_client_side),
        ("apply_server_side", apply_server_side),
        ("diff_shows_a_change", diff_shows_a_change),
        ("patches_of_every_type", patches_of_every_type),
        ("delete_cascades", delete_cascades),
        ("logs_follow", logs_follow),
        ("exec_runs_inside", exec_runs_inside),
        ("port_forward_carries_bytes", port_forward_carries_bytes),
        ("wait_and_rollout", wait_and_rollout),
        ("scale_changes_the_number_of_pods", scale_changes_the_number_of_pods),
        ("auth_can_i", auth_can_i),
        ("api_resources_and_explain", api_resources_and_explain),
        ("create_token_authenticates", create_token_authenticates),
        ("an_unknown_image_says_what_to_do", an_unknown_image_says_what_to_do),
    ]
    .into_iter()
    .map(|(name, run)| test(&format!("kubectl::{name}"), NEEDS, run))
    .collect()
}

/// A namespace of the test's own.
fn namespace(name: &str) -> Result<&'static Sandbox> {
    let sandbox = BARE.get()?;
    sandbox.kubectl(["create", "namespace", name])?.ok()?.says(&format!("namespace/{name} created"))?;
    Ok(sandbox)
}

/// A Deployment whose container runs a line of shell.
fn deployment(name: &str, replicas: u32, line: &str) -> String {
    serde_json::json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "main", "image": "sh", "args": ["-c", line]}],
                },
            },
        },
    })
    .to_string()
}

/// A shell line that counts once a second, so that logs have something to show, and ends at SIGTERM.
const COUNT: &str = "trap 'exit 0' TERM; i=0; while true; do i=$((i+1)); echo line $i; sleep 1 & wait $!; done";

fn start(sandbox: &Sandbox, ns: &str, name: &str, replicas: u32) -> Result<()> {
    sandbox.kubectl_with_input(["-n", ns, "apply", "-f", "-"], &deployment(name, replicas, COUNT))?.ok()?;
    sandbox.kubectl(["-n", ns, "rollout", "status", "deploy", name, "--timeout=60s"])?.ok()?;
    Ok(())
}

fn get_in_every_form() -> Result<()> {
    let s = namespace("forms")?;
    start(s, "forms", "web", 1)?;
    let table = s.kubectl(["-n", "forms", "get", "pods"])?.ok()?.stdout;
    ensure!(table.starts_with("NAME") && table.contains("READY") && table.contains("1/1"), "{table}");
    ensure!(table.contains("Running"), "{table}");
    s.kubectl(["-n", "forms", "get", "pods", "-o", "wide"])?.ok()?.says("NODE")?.says("10.244.")?;
    s.kubectl(["-n", "forms", "get", "deploy", "web", "-o", "yaml"])?.ok()?.says("kind: Deployment")?;
    let json = s.kubectl(["-n", "forms", "get", "deploy", "web", "-o", "json"])?.ok()?.stdout;
    ensure!(serde_json::from_str::<serde_json::Value>(&json)?["status"]["readyReplicas"] == 1, "{json}");
    s.kubectl(["-n", "forms", "get", "deploy", "-o", "name"])?.ok()?.says("deployment.apps/web")?;
    let path = "jsonpath={.items[*].metadata.name}";
    s.kubectl(["-n", "forms", "get", "deploy", "-o", path])?.ok()?.says("web")?;
    let columns = "custom-columns=N:.metadata.name,R:.spec.replicas";
    s.kubectl(["-n", "forms", "get", "deploy", "-o", columns])?.ok()?.says("N     R")?.says("web   1")?;
    s.kubectl(["-n", "forms", "get", "all"])?
        .ok()?
        .says("pod/web-")?
        .says("deployment.apps/web")?
        .says("replicaset.apps/web-")?;
    s.kubectl(["get", "nodes"])?.ok()?.says("Ready")?;
    s.kubectl(["get", "pods", "-A"])?.ok()?.says("forms")?;
    let missing = s.kubectl(["-n", "forms", "get", "pod", "nobody-here"])?.exits(1)?;
    missing.complains("Error from server (NotFound): pods \"nobody-here\" not found")?;
    Ok(())
}

fn get_watches() -> Result<()> {
    let s = namespace("watched")?;
    let mut command = s.kubectl_command(["-n", "watched", "get", "configmaps", "-w", "-o", "name"])?;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let seen = (|| -> Result<()> {
        s.kubectl(["-n", "watched", "create", "configmap", "late", "--from-literal=a=b"])?.ok()?;
        for line in lines.by_ref() {
            if line? == "configmap/late" {
                return Ok(());
            }
        }
        anyhow::bail!("the watch ended without the new object")
    })();
    child.kill()?;
    child.wait()?;
    seen
}

fn selectors_choose() -> Result<()> {
    let s = namespace("chosen")?;
    for (name, tier) in [("a", "front"), ("b", "back"), ("c", "back")] {
        s.kubectl(["-n", "chosen", "create", "configmap", name])?.ok()?;
        s.kubectl(["-n", "chosen", "label", "configmap", name, &format!("tier={tier}")])?.ok()?.says("labeled")?;
    }
    let names = |arguments: &[&str]| -> Result<String> {
        let mut all = vec!["-n", "chosen", "get", "configmap", "-o", "name"];
        all.extend(arguments);
        Ok(s.kubectl(all)?.ok()?.stdout)
    };
    ensure!(names(&["-l", "tier=back"])? == "configmap/b\nconfigmap/c\n");
    ensure!(names(&["-l", "tier in (front,none)"])? == "configmap/a\n");
    ensure!(names(&["-l", "tier!=back,tier"])? == "configmap/a\n");
    ensure!(names(&["--field-selector", "metadata.name=b"])? == "configmap/b\n");
    Ok(())
}

fn describe_tells_the_story() -> Result<()> {
    let s = namespace("told")?;
    start(s, "told", "web", 1)?;
    s.kubectl(["-n", "told", "describe", "deploy", "web"])?.ok()?.says("ScalingReplicaSet")?.says("1 available")?;
    s.kubectl(["-n", "told", "describe", "pod", "-l", "app=web"])?.ok()?.says("Scheduled")?.says("Started")?;
    Ok(())
}

fn create_and_its_errors() -> Result<()> {
    let s = namespace("created")?;
    s.kubectl(["-n", "created", "create", "configmap", "one", "--from-literal=a=1"])?.ok()?;
    let again = s.kubectl(["-n", "created", "create", "configmap", "one"])?.exits(1)?;
    again.complains("configmaps \"one\" already exists")?;
    let unknown = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"two"},"dat":{"a":"b"}}"#;
    s.kubectl_with_input(["-n", "created", "create", "-f", "-"], unknown)?
        .exits(1)?
        .complains("unknown field \"dat\"")?;
    let invalid = deployment("UPPER", 1, "true");
    s.kubectl_with_input(["-n", "created", "create", "-f", "-"], &invalid)?.exits(1)?.complains("metadata.name")?;
    let nowhere = s.kubectl(["-n", "no-such-namespace", "create", "configmap", "x"])?.exits(1)?;
    nowhere.complains("namespaces \"no-such-namespace\" not found")?;
    Ok(())
}

fn apply_client_side() -> Result<()> {
    let s = namespace("applied")?;
    let apply = |text: &str| s.kubectl_with_input(["-n", "applied", "apply", "-f", "-"], text);
    apply(&deployment("web", 1, COUNT))?.ok()?.says("deployment.apps/web created")?;
    let version = || -> Result<String> {
        Ok(s.kubectl(["-n", "applied", "get", "deploy", "web", "-o", "jsonpath={.metadata.generation}"])?.ok()?.stdout)
    };
    let before = version()?;
    apply(&deployment("web", 1, COUNT))?.ok()?.says("deployment.apps/web unchanged")?;
    ensure!(version()? == before);
    apply(&deployment("web", 2, COUNT))?.ok()?.says("deployment.apps/web configured")?;
    s.kubectl(["-n", "applied", "get", "deploy", "web", "-o", "jsonpath={.spec.replicas}"])?.ok()?.says("2")?;
    Ok(())
}

fn apply_server_side() -> Result<()> {
    let s = namespace("owned")?;
    let apply = |manager: &str, replicas: u32, more: &[&str]| {
        let manager = format!("--field-manager={manager}");
        let mut arguments = vec!["-n", "owned", "apply", "--server-side", &manager, "-f", "-"];
        arguments.extend(more);
        s.kubectl_with_input(arguments, &deployment("web", replicas, COUNT))
    };
    apply("one", 1, &[])?.ok()?.says("serverside-applied")?;
    let version = || -> Result<String> {
        let spec = "jsonpath={.metadata.generation} {.metadata.managedFields[?(@.manager==\"one\")].time}";
        Ok(s.kubectl(["-n", "owned", "get", "deploy", "web", "-o", spec, "--show-managed-fields"])?.ok()?.stdout)
    };
    let before = version()?;
    apply("one", 1, &[])?.ok()?;
    ensure!(version()? == before, "a second apply changed something");
    apply("two", 3, &[])?.exits(1)?.complains("conflict with \"one\"")?.complains(".spec.replicas")?;
    apply("two", 3, &["--force-conflicts"])?.ok()?;
    s.kubectl(["-n", "owned", "get", "deploy", "web", "-o", "jsonpath={.spec.replicas}"])?.ok()?.says("3")?;
    Ok(())
}

fn diff_shows_a_change() -> Result<()> {
    let s = namespace("differing")?;
    let diff = |text: &str| s.kubectl_with_input(["-n", "differing", "diff", "-f", "-"], text);
    s.kubectl_with_input(["-n", "differing", "apply", "-f", "-"], &deployment("web", 1, COUNT))?.ok()?;
    diff(&deployment("web", 1, COUNT))?.ok()?;
    diff(&deployment("web", 4, COUNT))?.exits(1)?.says("-  replicas: 1")?.says("+  replicas: 4")?;
    s.kubectl(["-n", "differing", "get", "deploy", "web", "-o", "jsonpath={.spec.replicas}"])?.ok()?.says("1")?;
    Ok(())
}

fn patches_of_every_type() -> Result<()> {
    let s = namespace("patched")?;
    s.kubectl_with_input(["-n", "patched", "apply", "-f", "-"], &deployment("web", 1, COUNT))?.ok()?;
    let patch =
        |kind: &str, text: &str| s.kubectl(["-n", "patched", "patch", "deploy", "web", "--type", kind, "-p", text]);
    let strategic =
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"main","env":[{"name":"A","value":"1"}]}]}}}}"#;
    patch("strategic", strategic)?.ok()?.says("patched")?;
    patch("merge", r#"{"metadata":{"labels":{"merged":"yes"}}}"#)?.ok()?;
    patch("json", r#"[{"op":"replace","path":"/spec/replicas","value":2}]"#)?.ok()?;
    let all = "jsonpath={.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].env[0].value} {.metadata.labels.merged} {.spec.replicas}";
    s.kubectl(["-n", "patched", "get", "deploy", "web", "-o", all])?.ok()?.says("sh 1 yes 2")?;
    patch("json", r#"[{"op":"test","path":"/spec/replicas","value":9}]"#)?.exits(1)?;
    s.kubectl(["-n", "patched", "annotate", "deploy", "web", "note=x"])?.ok()?.says("annotated")?;
    s.kubectl(["-n", "patched", "set", "env", "deploy/web", "B=2"])?.ok()?.says("env updated")?;
    Ok(())
}

fn delete_cascades() -> Result<()> {
    let s = namespace("deleted")?;
    start(s, "deleted", "web", 2)?;
    s.kubectl(["-n", "deleted", "delete", "deploy", "web", "--timeout=30s"])?
        .ok()?
        .says("deployment.apps \"web\" deleted")?;
    eventually(Duration::from_secs(20), "the pods go with their deployment", || {
        let left = s.kubectl(["-n", "deleted", "get", "pods,rs", "-o", "name"])?.ok()?.stdout;
        ensure!(left.is_empty(), "still there: {left}");
        Ok(())
    })?;
    s.kubectl(["-n", "deleted", "create", "configmap", "x"])?.ok()?;
    s.kubectl(["delete", "namespace", "deleted", "--timeout=30s"])?.ok()?;
    s.kubectl(["get", "namespace", "deleted"])?.exits(1)?.complains("NotFound")?;
    Ok(())
}

fn logs_follow() -> Result<()> {
    let s = namespace("logged")?;
    start(s, "logged", "web", 1)?;
    eventually(Duration::from_secs(10), "three lines of log", || {
        s.kubectl(["-n", "logged", "logs", "deploy/web"])?.ok()?.says("line 3")
    })?;
    let tail = s.kubectl(["-n", "logged", "logs", "deploy/web", "--tail=1"])?.ok()?.stdout;
    ensure!(tail.lines().count() == 1, "{tail}");
    s.kubectl(["-n", "logged", "logs", "deploy/web", "--timestamps", "--tail=1"])?.ok()?.says("T")?.says("Z line")?;
    let mut child =
        s.kubectl_command(["-n", "logged", "logs", "-f", "--tail=0", "deploy/web"])?.stdout(Stdio::piped()).spawn()?;
    let out = BufReader::new(child.stdout.take().context("no stdout")?);
    let lines: Vec<String> = out.lines().take(2).collect::<std::io::Result<_>>()?;
    child.kill()?;
    child.wait()?;
    ensure!(lines.len() == 2 && lines.iter().all(|l| l.starts_with("line ")), "{lines:?}");
    Ok(())
}

fn exec_runs_inside() -> Result<()> {
    let s = namespace("entered")?;
    start(s, "entered", "web", 1)?;
    let exec = |command: &[&str]| {
        let mut arguments = vec!["-n", "entered", "exec", "deploy/web", "--"];
        arguments.extend(command);
        s.kubectl(arguments)
    };
    let ip = s.kubectl(["-n", "entered", "get", "pods", "-o", "jsonpath={.items[0].status.podIP}"])?.ok()?.stdout;
    exec(&["sh", "-c", "cat /etc/hosts"])?.ok()?.says(&ip)?;
    exec(&["sh", "-c", "cat /var/run/secrets/kubernetes.io/serviceaccount/namespace"])?.ok()?.says("entered")?;
    exec(&["sh", "-c", "exit 7"])?.exits(7)?;
    exec(&["no-such-program"])?.code.filter(|&c| c != 0).context("a missing program must fail")?;
    let echoed = s.kubectl_with_input(["-n", "entered", "exec", "-i", "deploy/web", "--", "cat"], "to and fro\n")?;
    echoed.ok()?.says("to and fro")?;
    Ok(())
}

fn port_forward_carries_bytes() -> Result<()> {
    let s = namespace("forwarded")?;
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "echo"},
        "spec": {"containers": [{"name": "main", "image": "meshctl/demo:0.1.0", "args": ["ledger"],
            "ports": [{"containerPort": 8080}]}]},
    });
    s.kubectl_with_input(["-n", "forwarded", "apply", "-f", "-"], &pod.to_string())?.ok()?;
    s.kubectl(["-n", "forwarded", "wait", "--for=condition=Ready", "pod/echo", "--timeout=30s"])?.ok()?;
    let mut command = s.kubectl_command(["-n", "forwarded", "port-forward", "pod/echo", ":8080"])?;
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let carried = (|| -> Result<()> {
        let line = lines.next().context("port-forward said nothing")??;
        let port: u16 = line
            .split_once("127.0.0.1:")
            .and_then(|(_, rest)| rest.split_once(' '))
            .with_context(|| format!("no port in `{line}`"))?
            .0
            .parse()?;
        for _ in 0..3 {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"SUM\n")?;
            let mut answer = [0u8; 3];
            stream.read_exact(&mut answer)?;
            ensure!(answer == *b"OK ", "{}", answer.escape_ascii());
        }
        Ok(())
    })();
    child.kill()?;
    child.wait()?;
    carried
}

fn wait_and_rollout() -> Result<()> {
    let s = namespace("rolled")?;
    start(s, "rolled", "web", 2)?;
    s.kubectl(["-n", "rolled", "wait", "--for=condition=Available", "deploy/web", "--timeout=30s"])?
        .ok()?
        .says("condition met")?;
    let pods = || -> Result<String> {
        Ok(s.kubectl(["-n", "rolled", "get", "pods", "-o", "name", "--field-selector=status.phase=Running"])?
            .ok()?
            .stdout)
    };
    let before = pods()?;
    s.kubectl(["-n", "rolled", "rollout", "restart", "deploy/web"])?.ok()?.says("restarted")?;
    s.kubectl(["-n", "rolled", "rollout", "status", "deploy/web", "--timeout=60s"])?
        .ok()?
        .says("successfully rolled out")?;
    eventually(Duration::from_secs(20), "only new pods are left", || {
        let now = pods()?;
        ensure!(now.lines().count() == 2 && now.lines().all(|pod| !before.contains(pod)), "{before} → {now}");
        Ok(())
    })?;
    s.kubectl(["-n", "rolled", "rollout", "history", "deploy/web"])?.ok()?.says("REVISION")?;
    let never = s.kubectl(["-n", "rolled", "wait", "--for=condition=Nonsense", "deploy/web", "--timeout=1s"])?;
    never.exits(1)?.complains("timed out")?;
    Ok(())
}

fn scale_changes_the_number_of_pods() -> Result<()> {
    let s = namespace("scaled")?;
    start(s, "scaled", "web", 1)?;
    for (replicas, wanted) in [("3", 3), ("0", 0)] {
        s.kubectl(["-n", "scaled", "scale", "deploy/web", "--replicas", replicas])?.ok()?.says("scaled")?;
        eventually(Duration::from_secs(20), "as many pods as asked for", || {
            let pods = s.kubectl(["-n", "scaled", "get", "pods", "-o", "name"])?.ok()?.stdout;
            ensure!(pods.lines().count() == wanted, "{pods}");
            Ok(())
        })?;
    }
    Ok(())
}

fn auth_can_i() -> Result<()> {
    let s = namespace("judged")?;
    s.kubectl(["auth", "can-i", "delete", "nodes"])?.ok()?.says("yes")?;
    let account = "--as=system:serviceaccount:judged:default";
    s.kubectl(["-n", "judged", "auth", "can-i", "list", "pods", account])?.exits(1)?.says("no")?;
    s.kubectl(["-n", "judged", "create", "role", "reader", "--verb=list", "--resource=pods"])?.ok()?;
    let binding =
        ["-n", "judged", "create", "rolebinding", "reads", "--role=reader", "--serviceaccount=judged:default"];
    s.kubectl(binding)?.ok()?;
    s.kubectl(["-n", "judged", "auth", "can-i", "list", "pods", account])?.ok()?.says("yes")?;
    s.kubectl(["-n", "judged", "get", "pods", account])?.ok()?;
    let refused = s.kubectl(["-n", "judged", "get", "secrets", account])?.exits(1)?;
    refused.complains(
        "User \"system:serviceaccount:judged:default\" cannot list resource \"secrets\" in API group \"\"",
    )?;
    Ok(())
}

fn api_resources_and_explain() -> Result<()> {
    let s = BARE.get()?;
    let all = s.kubectl(["api-resources"])?.ok()?;
    all.says("deployments")?.says("endpointslices")?.says("mutatingwebhookconfigurations")?;
    s.kubectl(["explain", "deployment.spec.replicas"])?.ok()?.says("FIELD: replicas <integer>")?;
    s.kubectl(["explain", "pod.spec.containers"])?.ok()?.says("livenessProbe")?;
    s.kubectl(["explain", "pod.spec.nonsense"])?.exits(1)?.complains("does not exist")?;
    Ok(())
}

fn create_token_authenticates() -> Result<()> {
    let s = namespace("tokened")?;
    let token = s.kubectl(["-n", "tokened", "create", "token", "default"])?.ok()?.stdout;
    ensure!(token.trim().split('.').count() == 3, "not a JWT");
    let bearer = format!("--token={}", token.trim());
    // The admin's client certificate would win over the token, so only server and authority are given.
    let config = s.kubectl(["config", "view", "--raw", "-o", "json"])?.ok()?.stdout;
    let config: serde_json::Value = serde_json::from_str(&config)?;
    let server = config["clusters"][0]["cluster"]["server"].as_str().context("no server")?.to_owned();
    let who =
        s.kubectl(["--kubeconfig=/dev/null", "--insecure-skip-tls-verify", "-s", &server, &bearer, "auth", "whoami"])?;
    who.ok()?.says("system:serviceaccount:tokened:default")?;
    Ok(())
}

fn an_unknown_image_says_what_to_do() -> Result<()> {
    let s = namespace("strange")?;
    s.kubectl(["-n", "strange", "run", "x", "--image=ghost:1"])?.ok()?;
    eventually(Duration::from_secs(15), "the pull fails", || {
        s.kubectl(["-n", "strange", "get", "pod", "x"])?.ok()?.says("ErrImagePull")
    })
    .or_else(|_| s.kubectl(["-n", "strange", "get", "pod", "x"])?.ok()?.says("ImagePullBackOff"))?;
    s.kubectl(["-n", "strange", "describe", "pod", "x"])?.ok()?.says("meshctl sandbox image add")?;
    Ok(())
}
