//! The life of a mesh after its install: previewed, upgraded, its proxies restarted, taken away without a trace.

use crate::harness::{Need, Sandbox, test};
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;

pub(crate) fn tests() -> Vec<Trial> {
    vec![test("upgrade::a_mesh_lives_changes_and_goes", &[Need::Namespaces, Need::Program("kubectl")], a_mesh_lives)]
}

fn a_mesh_lives() -> Result<()> {
    let s = Sandbox::up("life")?;
    s.meshctl(["sandbox", "image", "add", "--name", &s.name, "sh", "/bin/sh"])?.ok()?;
    s.meshctl(["upgrade"])?.exits(2)?.complains("there is no mesh in namespace mesh-system")?;
    let preview = s.meshctl(["install", "--diff"])?.exits(1)?;
    preview.says("+ deployment mesh-system/mesh-control")?.says("0 to change, 0 to delete, 0 as they are")?;
    // As most people install: with kubectl, whose fields an upgrade takes over.
    let manifests = s.meshctl(["install"])?.ok()?.stdout;
    s.kubectl_with_input(["apply", "-f", "-"], &manifests)?.ok()?;
    s.meshctl(["check", "--wait"])?.ok()?;
    let issuer = ["-n", "mesh-system", "get", "secret", "mesh-identity-issuer", "-o", "jsonpath={.data.tls\\.crt}"];
    let identity = s.kubectl(issuer)?.ok()?.stdout;
    s.meshctl(["upgrade", "--diff"])?.ok()?.says("0 to create, 0 to change, 0 to delete")?;

    let diff = s.meshctl(["upgrade", "--diff", "--set", "control.log=debug"])?.exits(1)?;
    diff.says("~ configmap mesh-system/mesh-config")?.says("+    control:")?;
    s.meshctl(["upgrade", "--apply", "--set", "trust_domain=example.org"])?
        .exits(2)?
        .complains("the trust domain would change from cluster.local to example.org")?;
    s.meshctl(["upgrade", "--apply", "--set", "control.log=debug"])?.ok()?;
    s.meshctl(["upgrade", "--diff"])?.ok()?;
    ensure!(s.kubectl(issuer)?.ok()?.stdout == identity, "the upgrade replaced the identity");

    // One of two workloads has an old proxy: it is restarted, the other is not.
    s.kubectl(["create", "ns", "apps"])?.ok()?;
    s.kubectl(["annotate", "ns", "apps", "meshctl.dev/inject=enabled"])?.ok()?;
    for name in ["old", "new"] {
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": "sh",
                    "args": ["-c", "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"]}]}}}});
        s.kubectl_with_input(["-n", "apps", "apply", "-f", "-"], &deployment.to_string())?.ok()?;
    }
    s.kubectl(["-n", "apps", "wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?.ok()?;
    let pods = |app: &str| -> Result<String> {
        let label = format!("app={app}");
        Ok(s.kubectl(["-n", "apps", "get", "pods", "-l", &label, "-o", "name"])?.ok()?.stdout)
    };
    let (old, new) = (pods("old")?, pods("new")?);
    s.kubectl(["-n", "apps", "annotate", old.trim(), "meshctl.dev/proxy-version=0.0.9", "--overwrite"])?.ok()?;
    s.meshctl(["upgrade", "--proxies"])?.ok()?.complains("wave 1 of 1: deploy/old in apps have new proxies")?;
    ensure!(pods("old")? != old && pods("new")? == new, "wrong pods were restarted");
    s.meshctl(["upgrade", "--proxies"])?.ok()?.complains("every proxy is at")?;

    s.meshctl(["uninstall", "--apply"])?.exits(2)?.complains("apps/deployment/old")?;
    s.kubectl(["delete", "ns", "apps"])?.ok()?;
    s.meshctl(["prune"])?.ok()?.complains("nothing is left over")?;
    s.meshctl(["uninstall", "--apply"])?.ok()?;
    for kind in ["clusterroles", "clusterrolebindings", "mutatingwebhookconfigurations", "apiservices", "ns"] {
        let left = s.kubectl(["get", kind, "-l", "app.kubernetes.io/part-of=meshctl", "-o", "name"])?.ok()?.stdout;
        ensure!(left.is_empty(), "left behind: {left}");
    }
    let bindings =
        ["-n", "kube-system", "get", "rolebindings", "-l", "app.kubernetes.io/part-of=meshctl", "-o", "name"];
    ensure!(s.kubectl(bindings)?.ok()?.stdout.is_empty(), "a role binding in kube-system was left behind");
    s.meshctl(["check", "--pre"])?.ok()?;
    Ok(())
}
