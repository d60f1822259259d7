//! The whole life of a mesh, from the objects of an earlier release to its end, while it carries traffic.

use crate::harness::{Need, Sandbox, test};
use crate::load::{CALLER, Load};
use crate::resilience::shop_in;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use mesh_manifests::issuer::Issuer;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::SystemTime;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl"), Need::Program("curl")];

/// What `meshctl install` of the first release printed, with a certificate and key that are nobody's.
const FIRST_RELEASE: &str = include_str!("fixtures/0.1.0/install.yaml");

pub(crate) fn tests() -> Vec<Trial> {
    vec![test("life::from_an_earlier_release_to_no_trace", NEEDS, from_an_earlier_release_to_no_trace)]
}

fn from_an_earlier_release_to_no_trace() -> Result<()> {
    let s = Sandbox::up("whole-life")?;
    let before = everything(&s)?;
    s.kubectl_with_input(["apply", "-f", "-"], &first_release()?)?.ok()?;
    s.meshctl(["check", "--wait"])?.ok()?;
    let s = shop_in(s)?;
    let load = Load::start(&s)?;

    s.meshctl(["upgrade", "--apply", "--set", "control.log=debug"])?.ok()?;
    s.meshctl(["upgrade", "--diff"])?.ok()?;
    s.meshctl(["identity", "rotate"])?.ok()?.complains("the identity is rotated")?;
    s.kubectl(["-n", "mesh-system", "rollout", "restart", "deploy/mesh-control"])?.ok()?;
    s.kubectl(["-n", "mesh-system", "rollout", "status", "deploy/mesh-control", "--timeout=90s"])?.ok()?;

    // As if all proxies were of the release before.
    let pods = s.kubectl(["-n", "shop", "get", "pods", "-o", "name"])?.ok()?.stdout;
    for pod in pods.lines().filter(|pod| !pod.ends_with(CALLER)) {
        s.kubectl(["-n", "shop", "annotate", pod, "meshctl.dev/proxy-version=0.0.9", "--overwrite"])?.ok()?;
    }
    s.meshctl(["upgrade", "--proxies"])?.ok()?.complains("have new proxies")?;
    let now = s.kubectl(["-n", "shop", "get", "pods", "-o", "name"])?.ok()?.stdout;
    ensure!(now.lines().filter(|pod| pods.contains(*pod)).eq([format!("pod/{CALLER}")]), "{pods} became {now}");
    s.meshctl(["check", "--wait"])?.ok()?;

    // Applications leave the mesh before the mesh leaves them.
    let deployments = s.kubectl(["-n", "shop", "get", "deploy", "-o", "yaml"])?.ok()?.stdout;
    let plain = s.meshctl_with_input(["uninject", "-"], &deployments)?.ok()?.stdout;
    s.kubectl_with_input(["apply", "-f", "-"], &plain)?.ok()?;
    for name in ["web", "catalog", "cart", "ledger", "load"] {
        let deployment = format!("deploy/{name}");
        s.kubectl(["-n", "shop", "rollout", "status", &deployment, "--timeout=90s"])?.ok()?;
    }
    load.stop(&s)?;
    s.meshctl(["uninstall", "--apply"])?.exits(2)?.complains(CALLER)?;
    s.kubectl(["delete", "ns", "shop"])?.ok()?;
    s.meshctl(["uninstall", "--apply"])?.ok()?;
    s.meshctl(["prune"])?.ok()?.complains("nothing is left over")?;
    let after = everything(&s)?;
    let left: Vec<&String> = after.difference(&before).collect();
    let lost: Vec<&String> = before.difference(&after).collect();
    ensure!(left.is_empty() && lost.is_empty(), "left behind: {left:?}; gone with it: {lost:?}");
    Ok(())
}

/// The first release's objects with an identity of their own.
fn first_release() -> Result<String> {
    let issuer = Issuer::generate("cluster.local", SystemTime::now())?;
    let pair = issuer.pair.context("no key")?;
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(FIRST_RELEASE)?;
    ensure!(objects.len() > 20, "{} objects", objects.len());
    for object in &mut objects {
        match object["metadata"]["name"].as_str() {
            Some("mesh-identity-issuer") => {
                object["data"] = Value::Null;
                object["stringData"] = serde_json::json!({
                    "tls.crt": pair.certificate_pem, "tls.key": pair.key_pem, "ca.crt": issuer.anchors_pem,
                });
            }
            Some("mesh-trust-anchors") => object["data"]["ca.crt"] = issuer.anchors_pem.as_str().into(),
            Some("mesh-config") => {
                let config = object["data"]["config.yaml"].as_str().context("no config")?;
                let mut config: Value = serde_saphyr::from_str(config)?;
                config["trust_anchors_pem"] = issuer.anchors_pem.as_str().into();
                object["data"]["config.yaml"] = config.to_string().into();
            }
            _ => {}
        }
    }
    Ok(serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())
}

/// Every object of the cluster but those that come and go by themselves, as `kind namespace/name`.
fn everything(s: &Sandbox) -> Result<BTreeSet<String>> {
    let kinds = s.kubectl(["api-resources", "--verbs=list,create", "-o", "name"])?.ok()?.stdout;
    let passing = ["events", "leases", "endpoints", "endpointslices", "pods", "replicasets", "controllerrevisions"];
    let is_passing = |kind: &str| passing.contains(&kind.split('.').next().unwrap_or_default());
    let mut all = BTreeSet::new();
    for kind in kinds.lines().filter(|kind| !is_passing(kind)) {
        let line = "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}{\"\\n\"}{end}";
        let names = s.kubectl(["get", kind, "-A", "-o", line])?.ok()?.stdout;
        all.extend(names.lines().map(|name| format!("{kind} {name}")));
    }
    ensure!(all.iter().any(|name| name.contains("kube-system")), "nothing is listed: {all:?}");
    Ok(all)
}
