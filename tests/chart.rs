//! The same mesh by other ways: what `kubectl kustomize` and Helm make of our folders is, object by object, what `install`
//! prints; and a mesh that came by either is one that check, upgrade, prune and uninstall know.

use crate::harness::{Need, Ran, Sandbox, find_program, ourselves, run_with_input, test};
use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest;
use libtest_mimic::Trial;
use mesh_manifests::config::MeshConfig;
use mesh_manifests::values::Values;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const KUBECTL: Need = Need::Program("kubectl");
const HELM: Need = Need::Program("helm");

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("chart::kustomize_gives_what_install_prints", &[KUBECTL], kustomize_gives_what_install_prints),
        test("chart::helm_gives_what_install_prints", &[HELM], helm_gives_what_install_prints),
        test("chart::helm_refuses_what_install_refuses", &[HELM], helm_refuses_what_install_refuses),
        test("chart::a_kustomization_becomes_a_mesh", &[Need::Namespaces, KUBECTL], a_kustomization_becomes_a_mesh),
        test("chart::a_chart_becomes_a_mesh", &[Need::Namespaces, KUBECTL, HELM], a_chart_becomes_a_mesh),
    ]
}

/// Values as users write them, each set a whole file.
const SETS: &[(&str, &str)] = &[
    ("defaults", ""),
    ("highly available", "ha: true\n"),
    (
        "private registry",
        "network_policies: false\nimage_pull_secrets: [registry, other]\ncontrol: {image: 'registry.example.org:5000/control@sha256:0123', \
         image_pull_policy: Always, priority_class: system-cluster-critical}\nproxy: {image: registry.example.org/proxy, image_pull_policy: Never}\n",
    ),
    (
        "elsewhere",
        "system_namespace: mesh-two\ntrust_domain: example.org\ncluster_domain: cluster.example\n\
         webhook: {excluded_namespaces: [build, kube-system], timeout_seconds: 9}\n",
    ),
    (
        "against the grain",
        "ha: true\nwebhook: {failure_policy: Ignore}\ncontrol: {replicas: 5, log: 'info,mesh_control=debug', resources: \
         {cpu_limit: '2', memory_request: 1Gi}}\n",
    ),
    (
        "proxies",
        "proxy: {workers: 3, drain_timeout: 45s, skip_inbound_ports: '22,8000-8010', opaque_ports: '25', default_access: deny, \
         default_egress: audit, cluster_networks: [10.0.0.0/8, 'fd00::/8'], resources: {cpu_request: 0.5m, cpu_limit: '1'}}\n",
    ),
    (
        "network plugin",
        "cni: {enabled: true, conf_dir: /var/lib/cni/conf}\nimage_pull_secrets: [registry]\nwebhook: {excluded_namespaces: [build]}\n",
    ),
    ("nothing", "proxy: {workers: null, resources: null}\ncontrol: null\n"),
];

/// Files of one test, and a certificate authority for it.
struct Room {
    folder: tempfile::TempDir,
    identity: PathBuf,
}

impl Room {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let identity = folder.path().join("identity.yaml");
        std::fs::write(&identity, meshctl(&["install", "--new-identity"])?.ok()?.stdout)?;
        Ok(Self { folder, identity })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn file(&self, name: &str, text: &str) -> Result<String> {
        std::fs::write(self.path(name), text)?;
        Ok(self.path(name))
    }

    fn identity(&self) -> &str {
        self.identity.to_str().unwrap_or_default()
    }

    fn chart(&self) -> Result<String> {
        let chart = self.path("chart");
        meshctl(&["install", "--chart", &chart])?.ok()?;
        Ok(chart)
    }
}

/// `meshctl` without a cluster.
fn meshctl(arguments: &[&str]) -> Result<Ran> {
    let mut command = ourselves("meshctl")?;
    command.env("KUBECONFIG", "/nowhere").args(arguments);
    run_with_input(command, "")
}

/// `helm`, with a home of its own in `room`.
fn helm(room: &Path, kubeconfig: &Path, arguments: &[&str]) -> Result<Ran> {
    let mut command = Command::new(find_program("helm").context("helm is not installed")?);
    command.env("HOME", room).env("KUBECONFIG", kubeconfig).args(arguments);
    run_with_input(command, "")
}

/// Objects by what they are called.
fn by_name(objects: Vec<Value>) -> Result<BTreeMap<String, Value>> {
    let mut named = BTreeMap::new();
    for object in objects.into_iter().filter(|object| !object.is_null()) {
        let metadata = &object["metadata"];
        let name = format!("{} {} {}", object["kind"], metadata["namespace"], metadata["name"]);
        ensure!(named.insert(name.clone(), object).is_none(), "{name} stands twice");
    }
    Ok(named)
}

fn documents(text: &str) -> Result<BTreeMap<String, Value>> {
    by_name(serde_saphyr::from_multiple(text).context("the rendering is not YAML")?)
}

/// What `install` prints for a file of values.
fn printed(identity: &str, values: &str) -> Result<BTreeMap<String, Value>> {
    documents(&meshctl(&["install", "--ignore-cluster", "-f", identity, "-f", values])?.ok()?.stdout)
}

fn same(set: &str, found: &BTreeMap<String, Value>, expected: &BTreeMap<String, Value>) -> Result<()> {
    let names = |objects: &BTreeMap<String, Value>| objects.keys().cloned().collect::<Vec<_>>();
    ensure!(names(found) == names(expected), "{set}: {:?} are not {:?}", names(found), names(expected));
    for (name, expected) in expected {
        ensure!(&found[name] == expected, "{set}: {name} is\n{:#}\nbut install prints\n{expected:#}", found[name]);
    }
    Ok(())
}

fn kustomize_gives_what_install_prints() -> Result<()> {
    let room = Room::new()?;
    for (set, values) in SETS {
        let (values, folder) = (room.file("values.yaml", values)?, room.path("mesh"));
        let arguments =
            ["install", "--ignore-cluster", "-f", room.identity(), "-f", &values, "--kustomization", &folder];
        meshctl(&arguments)?.ok()?;
        let mut kubectl = Command::new(find_program("kubectl").context("kubectl is not installed")?);
        kubectl.env("HOME", room.folder.path()).args(["kustomize", &folder]);
        let rendered = documents(&run_with_input(kubectl, "")?.ok()?.stdout)?;
        same(set, &rendered, &printed(room.identity(), &values)?)?;
    }
    Ok(())
}

/// The documents inside of `mesh-config` are equal if they say the same: Helm writes YAML in another style. The digest of
/// one of them is held against the very text that Helm wrote.
fn normalise(objects: &mut BTreeMap<String, Value>) -> Result<()> {
    let mut digested = String::new();
    for object in objects.values_mut().filter(|object| object["metadata"]["name"] == "mesh-config") {
        let text = |key: &str| object["data"][key].as_str().with_context(|| format!("mesh-config has no {key}"));
        let config = text("config.yaml")?;
        // Without the trust anchors, a block of text: control follows those of the Secret.
        let (before, after) = config.split_once("trust_anchors_pem:").context("no anchors")?;
        let rest = after.lines().skip(1).skip_while(|line| line.is_empty() || line.starts_with(' '));
        let without = rest.fold(before.to_owned(), |text, line| text + line + "\n");
        digested = digest::digest(&digest::SHA256, without.as_bytes())
            .as_ref()
            .iter()
            .take(8)
            .map(|b| format!("{b:02x}"))
            .collect();
        let config = serde_json::to_value(MeshConfig::from_yaml(config)?)?;
        let values =
            Values::from_sources(&[("recorded".to_owned(), text("values.yaml")?.to_owned())], &[])?.overrides();
        object["data"]["config.yaml"] = config;
        object["data"]["values.yaml"] = values;
    }
    for object in objects.values_mut().filter(|object| object["kind"] == "Deployment") {
        let said = &mut object["spec"]["template"]["metadata"]["annotations"]["meshctl.dev/config-digest"];
        ensure!(
            *said == digested.as_str(),
            "control would not restart when its configuration changes: {said}, {digested}"
        );
        *said = Value::Null;
    }
    Ok(())
}

fn helm_gives_what_install_prints() -> Result<()> {
    let room = Room::new()?;
    let chart = room.chart()?;
    helm(room.folder.path(), Path::new("/nowhere"), &["lint", "--strict", &chart, "-f", room.identity()])?.ok()?;
    let compare = |set: &str, identity: &str, values: &str| -> Result<()> {
        let arguments = ["template", "mesh", &chart, "-f", identity, "-f", values];
        let mut rendered = documents(&helm(room.folder.path(), Path::new("/nowhere"), &arguments)?.ok()?.stdout)?;
        let mut expected = printed(identity, values)?;
        normalise(&mut rendered)?;
        normalise(&mut expected)?;
        same(set, &rendered, &expected)
    };
    for (set, values) in SETS {
        compare(set, room.identity(), &room.file("values.yaml", values)?)?;
    }
    // The Secret comes from elsewhere: only anchors are brought.
    let identity = std::fs::read_to_string(room.identity())?;
    let anchors = identity.split("  issuer_certificate_pem").next().context("the identity has no anchors")?;
    let anchors = room.file("anchors.yaml", &format!("{anchors}  existing_secret: true\n"))?;
    compare("existing secret", &anchors, &room.file("values.yaml", "")?)
}

fn helm_refuses_what_install_refuses() -> Result<()> {
    let room = Room::new()?;
    let chart = room.chart()?;
    let template = |arguments: &[&str]| {
        helm(room.folder.path(), Path::new("/nowhere"), &[&["template", "mesh", chart.as_str()], arguments].concat())
    };
    template(&[])?
        .exits(1)?
        .complains("is missing. Make a certificate authority with `meshctl install --new-identity")?;
    for (values, names) in [
        ("proxy: {wrokers: 2}", "wrokers"),
        ("proxy: {workers: two}", "workers"),
        ("proxy: {drain_timeout: soon}", "drain_timeout"),
        ("proxy: {default_access: everybody}", "default_access"),
        ("proxy: {opaque_ports: '22,x'}", "opaque_ports"),
        ("proxy: {opaque_ports: '8010-8000'}", "opaque_ports"),
        ("proxy: {skip_inbound_ports: '70000'}", "skip_inbound_ports"),
        ("proxy: {resources: {cpu_limit: many}}", "cpu_limit"),
        ("proxy: {cluster_networks: [home]}", "cluster_networks"),
        ("control: {replicas: 0}", "replicas"),
        ("control: {priority_class: Very_High}", "priority_class"),
        ("trust_domain: Example_Org", "trust_domain"),
        ("webhook: {timeout_seconds: 60}", "timeout_seconds"),
        ("image_pull_secrets: registry", "image_pull_secrets"),
        ("ha: perhaps", "ha"),
    ] {
        let file = room.file("wrong.yaml", values)?;
        template(&["-f", room.identity(), "-f", &file])?.exits(1)?.complains(names)?;
        meshctl(&["install", "--ignore-cluster", "-f", &file])?.exits(2)?.complains(names)?;
    }
    Ok(())
}

/// Nothing of the mesh is left in a cluster.
fn nothing_is_left(s: &Sandbox) -> Result<()> {
    s.meshctl(["prune"])?.ok()?.complains("nothing is left over")?;
    for kind in ["clusterroles", "crds", "mutatingwebhookconfigurations", "apiservices", "ns"] {
        let left = s.kubectl(["get", kind, "-l", "app.kubernetes.io/part-of=meshctl", "-o", "name"])?.ok()?.stdout;
        ensure!(left.is_empty(), "left behind: {left}");
    }
    s.meshctl(["check", "--pre"])?.ok().map(drop)
}

fn a_kustomization_becomes_a_mesh() -> Result<()> {
    let s = Sandbox::up("kustomized")?;
    let room = Room::new()?;
    let folder = room.path("mesh");
    s.meshctl(["install", "--kustomization", &folder, "--set", "control.priority_class=system-cluster-critical"])?
        .ok()?;
    s.kubectl(["apply", "-k", &folder])?.ok()?.says("networkpolicy.networking.k8s.io/mesh-control created")?;
    s.meshctl(["check", "--wait"])?.ok()?;
    s.meshctl(["prune"])?.ok()?.complains("nothing is left over")?;
    s.meshctl(["upgrade", "--diff"])?.ok()?.says("0 to create, 0 to change, 0 to delete")?;
    s.meshctl(["install", "--kustomization", &room.path("second")])?.exits(2)?.complains("has a mesh already")?;
    // Without the policies, an upgrade takes away what the kustomization brought.
    s.meshctl(["upgrade", "--apply", "--set", "network_policies=false"])?.ok()?;
    let policies = s.kubectl(["-n", "mesh-system", "get", "networkpolicies", "-o", "name"])?.ok()?.stdout;
    ensure!(policies.is_empty(), "still there: {policies}");
    s.meshctl(["uninstall", "--apply"])?.ok()?;
    nothing_is_left(&s)
}

fn a_chart_becomes_a_mesh() -> Result<()> {
    let s = Sandbox::up("charted")?;
    let room = Room::new()?;
    let chart = room.chart()?;
    let helm = |arguments: &[&str]| helm(room.folder.path(), &s.kubeconfig, arguments);
    helm(&["install", "mesh", &chart, "-n", "default", "-f", room.identity()])?.ok()?.says("meshctl check --wait")?;
    s.meshctl(["check", "--wait"])?.ok()?;
    s.meshctl(["prune"])?.ok()?.complains("nothing is left over")?;
    let more =
        ["upgrade", "mesh", &chart, "-n", "default", "-f", room.identity(), "--set", "ha=true,control.log=debug"];
    helm(&more)?.ok()?;
    s.kubectl(["-n", "mesh-system", "rollout", "status", "deploy/mesh-control", "--timeout=60s"])?.ok()?;
    s.meshctl(["check", "--wait"])?.ok()?;
    // What Helm was told is what an upgrade starts from; and Helm's own records are not gone behind.
    s.meshctl(["upgrade"])?.ok()?.says("replicas: 3")?.says("log: debug")?;
    s.meshctl(["upgrade", "--apply"])?.exits(2)?.complains("it belongs to the Helm release default/mesh")?;
    s.meshctl(["uninstall", "--apply"])?.exits(2)?.complains("helm uninstall mesh -n default")?;
    helm(&["uninstall", "mesh", "-n", "default", "--wait"])?.ok()?;
    nothing_is_left(&s)
}
