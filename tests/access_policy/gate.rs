//! What the tests of access policies stand on: two namespaces with callees and callers of several identities.

use super::{NS, OTHER_NS, SOON};
use crate::harness::{Ran, SHOP, Sandbox, eventually};
use crate::peer::ports;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard};

static READY: Mutex<bool> = Mutex::new(false);

/// The namespaces with their pods, for one test at a time.
pub(crate) struct Gate {
    pub(crate) sandbox: &'static Sandbox,
    _alone: MutexGuard<'static, bool>,
}

impl Gate {
    /// The gate, open: without policies.
    pub(crate) fn open() -> Result<Self> {
        let mut ready = READY.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let sandbox = SHOP.get()?;
        if !*ready {
            lay(sandbox)?;
            *ready = true;
        }
        let gate = Self { sandbox, _alone: ready };
        for namespace in [NS, OTHER_NS] {
            gate.sandbox.kubectl(["-n", namespace, "delete", "accesspolicies", "--all"])?.ok()?;
        }
        gate.default_access(None)?;
        gate.expect(&[(ALICE, GET, 200), (BOB, GET, 200), (CAROL, GET, 200), (OUTSIDER, GET, 200)])?;
        Ok(gate)
    }

    /// Applies a policy of the callee's namespace.
    pub(crate) fn policy(&self, name: &str, spec: Value) -> Result<Ran> {
        let policy = json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "AccessPolicy",
            "metadata": {"name": name, "namespace": NS}, "spec": spec});
        self.sandbox.kubectl_with_input(["apply", "-f", "-"], &policy.to_string())
    }

    /// Applies a policy with one rule: who, and what.
    pub(super) fn allow(&self, from: Value, to: Value) -> Result<()> {
        self.policy("test", json!({"rules": [{"from": from, "to": to}]}))?.ok()?;
        Ok(())
    }

    /// Sets or removes the default of the callee's namespace.
    pub(super) fn default_access(&self, default: Option<&str>) -> Result<()> {
        let annotation = match default {
            Some(default) => format!("meshctl.dev/default-access={default}"),
            None => "meshctl.dev/default-access-".to_owned(),
        };
        self.sandbox.kubectl(["annotate", "--overwrite", "namespace", NS, &annotation])?.ok()?;
        Ok(())
    }

    pub(crate) fn exec(&self, caller: Caller, command: &[&str]) -> Result<Ran> {
        let exec = ["-n", caller.0, "exec", caller.1, "-c", "main", "--", "timeout", "20"];
        self.sandbox.kubectl(exec.iter().chain(command))
    }

    /// Status of the answer to `curl ARGUMENTS` against the origin; 0 for none.
    pub(crate) fn status(&self, caller: Caller, arguments: &str) -> Result<u16> {
        let line = format!("curl -sS -o /dev/null --max-time 5 -w '%{{http_code}}' {arguments}");
        let ran = self.exec(caller, &["bash", "-c", &line])?;
        ran.stdout.trim().parse().with_context(|| format!("{line}: {} {}", ran.stdout, ran.stderr))
    }

    /// Waits until every call is answered with its status, all of them in one go.
    pub(crate) fn expect(&self, calls: &[(Caller, &str, u16)]) -> Result<()> {
        eventually(SOON, "the policy is in force", || {
            for (caller, arguments, expect) in calls {
                let got = self.status(*caller, arguments)?;
                ensure!(got == *expect, "{} {arguments}: {got}, not {expect}", caller.1);
            }
            Ok(())
        })
    }

    /// Text of the origin's metrics.
    pub(super) fn metrics(&self) -> Result<String> {
        Ok(self.sandbox.meshctl(["diagnostics", "proxy-metrics", "deploy/origin", "-n", NS])?.ok()?.stdout)
    }

    pub(super) fn ip(&self, caller: Caller) -> Result<String> {
        let ran = self.sandbox.kubectl(["-n", caller.0, "get", "pod", caller.1, "-o", "jsonpath={.status.podIP}"])?;
        Ok(ran.ok()?.stdout.trim().to_owned())
    }
}

/// Namespace and pod of a caller.
pub(crate) type Caller = (&'static str, &'static str);
pub(crate) const ALICE: Caller = (NS, "alice");
pub(crate) const BOB: Caller = (NS, "bob");
pub(crate) const CAROL: Caller = (OTHER_NS, "carol");
/// Without a proxy.
pub(crate) const OUTSIDER: Caller = (NS, "outsider");
pub(crate) const GET: &str = "http://origin.gate:8080/some";

fn lay(sandbox: &Sandbox) -> Result<()> {
    sandbox.add_peer()?;
    let namespaces =
        [NS, OTHER_NS].map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    let accounts = [ALICE, BOB, CAROL].map(|(namespace, name)| {
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}})
    });
    let mut items: Vec<Value> = namespaces.into_iter().chain(accounts).collect();
    items.extend([
        deployment("origin", json!({})),
        service("origin"),
        deployment("second", json!({})),
        service("second"),
    ]);
    items.extend([ALICE, BOB, CAROL].map(|(namespace, name)| caller(namespace, name, name, true)));
    items.push(caller(NS, "outsider", "default", false));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    sandbox.kubectl_with_input(["apply", "-f", "-"], &list.to_string())?.ok()?;
    sandbox.kubectl(["-n", NS, "wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?.ok()?;
    for namespace in [NS, OTHER_NS] {
        sandbox.kubectl(["-n", namespace, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?.ok()?;
    }
    Ok(())
}

pub(super) fn deployment(name: &str, annotations: Value) -> Value {
    let mut annotations = annotations;
    annotations["meshctl.dev/inject"] = json!("enabled");
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": NS},
    "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
        "metadata": {"labels": {"app": name}, "annotations": annotations},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
            "name": "main", "image": "mesh-peer", "args": ["origin"],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": ports::HTTP1}, "periodSeconds": 1},
            "livenessProbe": {"tcpSocket": {"port": ports::ECHOES}, "periodSeconds": 1, "failureThreshold": 5},
        }]}}}})
}

pub(super) fn service(name: &str) -> Value {
    let port = |name: &str, port: u16| json!({"name": name, "port": port, "targetPort": port});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NS},
    "spec": {"selector": {"app": name}, "ports": [
        port("one", ports::HTTP1), port("two", ports::HTTP2), port("greets", ports::GREETS), port("echoes", ports::ECHOES),
    ]}})
}

pub(super) fn caller(namespace: &str, name: &str, account: &str, meshed: bool) -> Value {
    let inject = if meshed { "enabled" } else { "disabled" };
    json!({"apiVersion": "v1", "kind": "Pod",
    "metadata": {"name": name, "namespace": namespace, "annotations": {"meshctl.dev/inject": inject}},
    "spec": {"serviceAccountName": account, "terminationGracePeriodSeconds": 1, "containers": [
        {"name": "main", "image": "mesh-peer", "args": ["idle"]},
    ]}})
}
