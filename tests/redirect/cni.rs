//! CNI mode for real: the plugin in network namespaces of its own, and a mesh in which nodes set the redirect of pods.

#![allow(clippy::unwrap_used, reason = "a panic is how bodies inside a namespace fail, in a process of their own")]

use crate::harness::{Need, Sandbox, eventually, ourselves, run_with_input, test};
use crate::nft::{NEEDS as NFT, inside, output_of};
use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use libtest_mimic::Trial;
use mesh_api::names;
use mesh_manifests::config::MeshConfig;
use mesh_manifests::inject::{Decision, decide};
use mesh_manifests::values::{CniValues, Values};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl")];
const PLUGIN: [Need; 5] = [NFT[0], NFT[1], NFT[2], NFT[3], Need::Program("bash")];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("cni::programs_take_what_manifests_give_them", &[], programs_take_what_manifests_give_them),
        test("cni::the_plugin_sets_the_redirect_and_the_check_proves_it", &PLUGIN, the_plugin_sets_the_redirect),
        test("cni::a_mesh_whose_pods_need_no_capability", NEEDS, a_mesh_whose_pods_need_no_capability),
    ]
}

fn programs_take_what_manifests_give_them() -> Result<()> {
    let values = Values { cni: CniValues { enabled: true, ..CniValues::default() }, ..Values::default() };
    let objects = mesh_manifests::install::render(&values)?;
    let set = objects.iter().find(|object| object["kind"] == "DaemonSet").context("no agents are rendered")?;
    let pod = &set["spec"]["template"]["spec"];
    let words = |program: &str, container: &Value| -> Vec<String> {
        let args = container["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
        std::iter::once(program).chain(args).map(str::to_owned).collect()
    };
    mesh_proxy::args::Args::try_parse_from(words("mesh-proxy", &pod["initContainers"][0]))?;
    let agent = &pod["containers"][0];
    let args = mesh_control::args::Args::try_parse_from(words("mesh-control", agent))?;
    let Some(mesh_control::args::Command::Cni(args)) = args.command else { bail!("{args:?}") };
    // Where the agent listens is what is mounted from the node, and what its readiness asks.
    ensure!(args.socket == Path::new(names::CNI_SOCKET) && args.repair);
    ensure!(args.socket.parent() == Some(Path::new(names::CNI_RUN_DIR)));
    let probe = &agent["readinessProbe"]["exec"]["command"];
    let probe: Vec<&str> = probe.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    mesh_control::args::Args::try_parse_from(probe)?;

    // What a pod is injected with is what the agent passes on, and what the plugin takes.
    let config = MeshConfig { cni_enabled: true, ..MeshConfig::default() };
    let pod = json!({ "metadata": { "name": "a", "annotations": { names::INJECT: "enabled", names::SKIP_OUTBOUND_PORTS: "25" } },
        "spec": { "containers": [{ "name": "main", "image": "a" }] } });
    let Decision::Inject(pod) = decide(&pod, &Value::Null, &config) else { bail!("not injected") };
    let step = words("mesh-proxy", &pod["spec"]["initContainers"][0]);
    let Some(mesh_proxy::args::Command::Redirect(step)) = mesh_proxy::args::Args::try_parse_from(step)?.command else {
        bail!("the step is no redirect")
    };
    ensure!(step.check && step.redirect.skip_outbound_ports.to_string() == "25");
    let told = mesh_control::cni::answer::wanted(&serde_json::from_value(pod)?).context("the agent sees no need")?;
    ensure!(mesh_proxy::cni::read_args(told)? == step.redirect);
    Ok(())
}

/// A pod's network namespace, as a runtime has made it: an interface, an address, a route; and a shell inside.
struct Pod {
    shell: Child,
}

impl Pod {
    fn start() -> Self {
        let shell = Command::new("unshare")
            .args(["-n", "bash", "-c", "ip link set lo up; echo; exec bash"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut this = Self { shell };
        this.line();
        let node = format!("ip link add node type veth peer name eth0 netns {}", this.shell.id());
        // Who has the address of documentation is the node: it refuses at once what is not redirected.
        for command in
            [&node, "ip link set node up", "ip addr add 10.8.0.1/24 dev node", "ip addr add 192.0.2.1/32 dev lo"]
        {
            let words: Vec<&str> = command.split(' ').collect();
            output_of(words[0], &words[1..]);
        }
        let up = "ip link set eth0 up; ip addr add 10.8.0.2/24 dev eth0; ip route add default via 10.8.0.1; echo up";
        assert_eq!(this.run(up), "up");
        this
    }

    fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.shell.id())
    }

    /// Runs a command that says one line.
    fn run(&mut self, command: &str) -> String {
        writeln!(self.shell.stdin.as_mut().unwrap(), "{command}").unwrap();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        let out = self.shell.stdout.as_mut().unwrap();
        while std::io::Read::read(out, &mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// What the check step of this pod ends with.
    fn check(&mut self) -> String {
        let program = ourselves("mesh-proxy").unwrap().get_program().to_str().unwrap().to_owned();
        self.run(&format!("(exec -a mesh-proxy {program} redirect --check) 2>/dev/null; echo $?"))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// An agent that knows one meshed pod, `shop/web`.
fn play_agent(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            let meshed = line.contains("\"web\"");
            let answer = if meshed { "{\"redirect\":[\"--skip-outbound-ports\",\"25\"]}\n" } else { "\"none\"\n" };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
}

/// What the plugin says when a runtime calls it, and whether it succeeded.
fn call(command: &str, namespace: &str, pod: &str, netns: &str, socket: &Path) -> (bool, Value) {
    let conf = json!({ "cniVersion": "1.0.0", "name": "pods", "type": "mesh-cni", "socket": socket,
        "excluded_namespaces": ["kube-system"], "prevResult": { "cniVersion": "1.0.0", "ips": [], "dns": {} } });
    let mut plugin = ourselves("mesh-cni").unwrap();
    plugin.env("CNI_COMMAND", command).env("CNI_CONTAINERID", "c").env("CNI_IFNAME", "eth0").env("CNI_NETNS", netns);
    plugin.env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod}"));
    let ran = run_with_input(plugin, &conf.to_string()).unwrap();
    (ran.code == Some(0), serde_json::from_str(&ran.stdout).unwrap_or_default())
}

fn the_plugin_sets_the_redirect() -> Result<()> {
    inside("cni::the_plugin_sets_the_redirect_and_the_check_proves_it", || {
        let folder = tempfile::tempdir().unwrap();
        let (socket, nowhere) = (folder.path().join("agent.sock"), folder.path().join("none.sock"));
        let mut pod = Pod::start();
        let netns = pod.netns();
        let missing = names::REDIRECT_MISSING.to_string();
        assert_eq!(pod.check(), missing, "nothing is redirected yet");

        // Fails closed, but not for what a node lives by.
        let (done, said) = call("ADD", "shop", "web", &netns, &nowhere);
        assert!(!done && said["code"] == 11, "{said}");
        assert!(said["details"].as_str().unwrap().contains("hint:"), "{said}");
        assert!(call("ADD", "kube-system", "dns", &netns, &nowhere).0);
        assert_eq!(pod.check(), missing);

        play_agent(&socket);
        let (done, said) = call("ADD", "shop", "plain", &netns, &socket);
        assert!(done, "{said}");
        assert_eq!(pod.check(), missing, "this pod is not meshed");

        let (done, said) = call("ADD", "shop", "web", &netns, &socket);
        assert!(done, "{said}");
        assert_eq!(said, json!({ "cniVersion": "1.0.0", "ips": [], "dns": {} }), "the result before is passed on");
        assert_eq!(pod.check(), "0");
        assert!(call("CHECK", "shop", "web", &netns, &socket).0);
        assert_eq!(output_of("nft", &["list", "tables"]), "", "the node's own network has no part in it");

        // Called again, it changes nothing; what is taken away is noticed.
        assert!(call("ADD", "shop", "web", &netns, &socket).0);
        assert_eq!(pod.check(), "0");
        assert_eq!(pod.run("nft delete table inet mesh; echo gone"), "gone");
        let (done, said) = call("CHECK", "shop", "web", &netns, &socket);
        assert!(!done && said["code"] == 100, "{said}");
        assert_eq!(pod.check(), missing);
        assert!(call("DEL", "shop", "web", "", &nowhere).0);
    })
}

/// A workload outside of the mesh's reach that a node has to prove its redirect to.
const EARLY: &str = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: early, namespace: early}, spec: {selector: {matchLabels: {app: early}},
  template: {metadata: {labels: {app: early}}, spec: {terminationGracePeriodSeconds: 1,
    initContainers: [{name: mesh-redirect, image: 'meshctl/proxy:VERSION', args: [redirect, --check],
      securityContext: {runAsUser: 2104, runAsGroup: 2104, runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}],
    containers: [{name: main, image: sh, args: [-c, 'while sleep 1; do :; done']}]}}}}";

/// A pod that shows what stands in the node's network configuration.
const LOOK: &str = "{apiVersion: v1, kind: Pod, metadata: {name: look, namespace: default}, spec: {restartPolicy: Never,
  containers: [{name: main, image: sh, args: [-c, 'cat /conf/*; ls /bin-dir'], volumeMounts: [{name: conf, mountPath: /conf}, {name: bin, mountPath: /bin-dir}]}],
  volumes: [{name: conf, hostPath: {path: /etc/cni/net.d}}, {name: bin, hostPath: {path: /opt/cni/bin}}]}}";

/// A pod that needs a network and nothing else.
fn bare_pod(s: &Sandbox, namespace: &str, name: &str) -> Result<()> {
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": namespace },
        "spec": { "terminationGracePeriodSeconds": 0, "containers": [
            { "name": "main", "image": "sh", "args": ["-c", "while sleep 1; do :; done"] }] } });
    s.kubectl_with_input(["apply", "-f", "-"], &pod.to_string())?.ok().map(drop)
}

fn ready(s: &Sandbox, namespace: &str, what: &str, within: &str) -> Result<()> {
    let within = format!("--timeout={within}");
    s.kubectl(["-n", namespace, "wait", "--for=condition=Ready", what, &within])?.ok().map(drop)
}

/// Lets the agents run this image, and waits until those of before are gone.
fn agents_of(s: &Sandbox, image: &str) -> Result<()> {
    let pods = ["-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=mesh-cni", "-o", "name"];
    let before = s.kubectl(pods)?.ok()?.stdout;
    s.kubectl(["-n", "kube-system", "set", "image", "daemonset/mesh-cni", &format!("mesh-cni={image}")])?.ok()?;
    for pod in before.lines() {
        s.kubectl(["-n", "kube-system", "wait", "--for=delete", pod, "--timeout=40s"])?.ok()?;
    }
    Ok(())
}

fn a_mesh_whose_pods_need_no_capability() -> Result<()> {
    let s = Sandbox::up("cni")?;
    s.meshctl(["sandbox", "image", "add", "--name", &s.name, "sh", "/bin/sh"])?.ok()?;
    s.meshctl(["install", "--apply"])?.ok()?;
    s.meshctl(["check", "--wait"])?.ok()?;

    // Before there is a plugin, the check holds the pod; later the pod is made anew, and passes.
    s.kubectl(["create", "namespace", "early"])?.ok()?;
    s.kubectl_with_input(["apply", "-f", "-"], &EARLY.replace("VERSION", env!("CARGO_PKG_VERSION")))?.ok()?;
    let code = [
        "-n",
        "early",
        "get",
        "pods",
        "-o",
        "jsonpath={.items[*].status.initContainerStatuses[*]['state','lastState'].terminated.exitCode}",
    ];
    eventually(Duration::from_secs(30), "the check fails", || {
        s.kubectl(code)?.ok()?.says(&names::REDIRECT_MISSING.to_string())
    })?;
    s.meshctl(["upgrade", "--apply", "--set", "cni.enabled=true"])?.ok()?;
    // The upgrade has waited for the agents.
    s.meshctl(["check"])?.ok()?.says("1 of 1 nodes ready")?;
    s.kubectl(["-n", "early", "wait", "--for=condition=Available", "deploy/early", "--timeout=60s"])?.ok()?;
    s.kubectl(["-n", "early", "get", "events"])?.ok()?.says("MeshRedirectMissing")?;

    // The mesh works, and its part of a pod holds nothing that Pod Security `restricted` forbids.
    let injected = s.meshctl_with_input(["inject", "-"], mesh_sandbox::apps::SHOP_YAML)?.ok()?.stdout;
    s.kubectl_with_input(["apply", "-f", "-"], &injected)?.ok()?;
    s.kubectl(["-n", "shop", "wait", "--for=condition=Available", "deploy", "--all", "--timeout=120s"])?.ok()?;
    let pods: Value = serde_json::from_str(&s.kubectl(["-n", "shop", "get", "pods", "-o", "json"])?.ok()?.stdout)?;
    let steps = pods["items"].as_array().into_iter().flatten();
    let steps: Vec<&Value> =
        steps.flat_map(|pod| pod["spec"]["initContainers"].as_array().into_iter().flatten()).collect();
    ensure!(steps.len() >= 4, "{pods}");
    for step in steps {
        let context = &step["securityContext"];
        ensure!(context["capabilities"] == json!({ "drop": ["ALL"] }) && context["runAsNonRoot"] == true, "{step}");
    }
    eventually(Duration::from_secs(40), "traffic passes the proxies", || {
        s.meshctl(["edges", "-n", "shop"])?.ok()?.says("web")
    })?;

    // Without its agent a node starts no pod, but those that it lives by.
    agents_of(&s, "meshctl/nowhere:1")?;
    bare_pod(&s, "default", "held")?;
    bare_pod(&s, "kube-system", "needed")?;
    ready(&s, "kube-system", "pod/needed", "30s")?;
    eventually(Duration::from_secs(30), "the pod is held, and it is said why", || {
        s.kubectl(["-n", "default", "get", "events"])?.ok()?.says("the mesh's agent on this node does not answer")
    })?;
    let held = s.kubectl(["-n", "default", "get", "pod", "held", "-o", "jsonpath={.status.podIP}"])?.ok()?.stdout;
    ensure!(held.is_empty(), "the pod got the address {held}");
    agents_of(&s, concat!("meshctl/control:", env!("CARGO_PKG_VERSION")))?;
    ready(&s, "default", "pod/held", "60s")?;

    // What is uninstalled leaves a node that works, and no trace.
    s.kubectl(["delete", "namespace", "shop", "early"])?.ok()?;
    s.meshctl(["uninstall", "--apply"])?.ok()?;
    bare_pod(&s, "default", "after")?;
    ready(&s, "default", "pod/after", "60s")?;
    eventually(Duration::from_secs(30), "the node is as it was", || {
        s.kubectl(["-n", "default", "delete", "pod", "look", "--ignore-not-found", "--now"])?.ok()?;
        s.kubectl_with_input(["apply", "-f", "-"], LOOK)?.ok()?;
        s.kubectl(["-n", "default", "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/look", "--timeout=20s"])?
            .ok()?;
        let seen = s.kubectl(["-n", "default", "logs", "look"])?.ok()?.says("\"sandbox\"")?.stdout;
        ensure!(!seen.contains("mesh-cni"), "{seen}");
        Ok(())
    })
}
