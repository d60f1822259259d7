//! What all conformance tests stand on: a Service `echo` in front of two workloads, each with a Service of its own, a
//! caller beside them and one in another namespace.

use crate::harness::{Need, Ran, SHOP, Sandbox, eventually};
use crate::peer::ports;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Namespace of the Services.
pub(super) const NS: &str = "mesh-conformance";
/// Namespace of a caller from elsewhere.
pub(super) const CONSUMER: &str = "mesh-conformance-consumer";
/// How long a route may take to show its effect: generous, since the machine may be busy.
const SOON: Duration = Duration::from_secs(20);

pub(super) const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl"), Need::Program("curl")];

static READY: Mutex<bool> = Mutex::new(false);

/// The ground, for one test at a time: all routes are about the same Services.
pub(super) struct Ground {
    pub(super) sandbox: &'static Sandbox,
    _alone: MutexGuard<'static, bool>,
}

impl Drop for Ground {
    fn drop(&mut self) {
        for namespace in [NS, CONSUMER] {
            let all = [
                "-n",
                namespace,
                "delete",
                "httproutes,grpcroutes,tlsroutes,tcproutes,referencegrants",
                "--all",
                "--wait=false",
            ];
            let _ = self.sandbox.kubectl(all);
        }
    }
}

/// What a caller got.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Header fields of the response, names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

impl Answer {
    fn parse(text: &str) -> Result<Self> {
        let text = text.replace("\r\n", "\n");
        let (head, body) = text.split_once("\n\n").with_context(|| format!("no answer: {text}"))?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status line")?;
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Ok(Self { status: status.parse()?, headers, body: body.to_owned() })
    }

    /// The workload that answered.
    pub(super) fn workload(&self) -> &str {
        self.headers.get("x-workload").map_or("nobody", String::as_str)
    }

    /// A header field of the request as it arrived.
    pub(super) fn arrived(&self, name: &str) -> Option<&str> {
        let prefix = format!("header {name}=");
        self.body.lines().find_map(|line| line.strip_prefix(&prefix))
    }

    /// The target of the request as it arrived: path and query.
    pub(super) fn target(&self) -> Option<&str> {
        self.body.lines().find_map(|line| line.strip_prefix("target="))
    }

    pub(super) fn is_from(&self, workload: &str) -> Result<()> {
        ensure!((self.status, self.workload()) == (200, workload), "not an answer of {workload}: {self:?}");
        Ok(())
    }

    pub(super) fn has(&self, name: &str, value: Option<&str>) -> Result<()> {
        let got = self.headers.get(name).map(String::as_str);
        ensure!(got == value, "the response's {name} is {got:?}, not {value:?}: {self:?}");
        Ok(())
    }
}

impl Ground {
    /// The ground, laid by the first test to ask.
    pub(super) fn get() -> Result<Self> {
        let mut ready = READY.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let sandbox = SHOP.get()?;
        if !*ready {
            lay(sandbox)?;
            *ready = true;
        }
        Ok(Self { sandbox, _alone: ready })
    }

    /// Applies objects and waits until every route among them has been judged in its present form.
    pub(super) fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.sandbox.kubectl_with_input(["apply", "-f", "-"], &list.to_string())?.ok()?;
        for object in objects.iter().filter(|object| object["spec"]["parentRefs"].is_array()) {
            eventually(SOON, "the route has a status", || self.conditions(object).map(drop))?;
        }
        Ok(())
    }

    /// The conditions of an applied route for its first parent, by type: status, reason and message.
    pub(super) fn conditions(&self, route: &Value) -> Result<BTreeMap<String, (String, String, String)>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, name) = (text(&route["kind"]), text(&route["metadata"]["name"]));
        let namespace = text(&route["metadata"]["namespace"]);
        let shown = self.sandbox.kubectl(["-n", &namespace, "get", &kind, &name, "-o", "json"])?.ok()?.stdout;
        let shown: Value = serde_json::from_str(&shown)?;
        let parents = shown["status"]["parents"].as_array().cloned().unwrap_or_default();
        let ours =
            parents.iter().find(|parent| parent["controllerName"] == "meshctl.dev/control").context("no status")?;
        ensure!(ours["parentRef"] == route["spec"]["parentRefs"][0], "another parent: {ours}");
        let conditions = ours["conditions"].as_array().context("no conditions")?;
        for condition in conditions {
            ensure!(condition["observedGeneration"] == shown["metadata"]["generation"], "outdated: {condition}");
        }
        let entry = |c: &Value| (text(&c["type"]), (text(&c["status"]), text(&c["reason"]), text(&c["message"])));
        Ok(conditions.iter().map(entry).collect())
    }

    /// Fails unless a condition of a route has this status and reason.
    pub(super) fn says(&self, route: &Value, kind: &str, status: &str, reason: &str) -> Result<()> {
        eventually(SOON, "the route's status", || {
            let conditions = self.conditions(route)?;
            let (is, why, message) = conditions.get(kind).with_context(|| format!("no {kind}: {conditions:?}"))?;
            ensure!((is.as_str(), why.as_str()) == (status, reason), "{kind} is {is}, {why}: {message}");
            Ok(())
        })
    }

    /// `curl ARGS` in the caller of a namespace.
    pub(super) fn curl(&self, namespace: &str, arguments: &[&str]) -> Result<Ran> {
        let command: Vec<&str> = ["curl", "-sS", "--max-time", "5"].iter().chain(arguments).copied().collect();
        self.run(namespace, &command)
    }

    /// Runs a command in the caller of a namespace.
    pub(super) fn run(&self, namespace: &str, command: &[&str]) -> Result<Ran> {
        self.sandbox.kubectl(["-n", namespace, "exec", "caller", "-c", "main", "--"].iter().chain(command))
    }

    /// One request.
    pub(super) fn ask(&self, namespace: &str, arguments: &[&str]) -> Result<Answer> {
        let all: Vec<&str> = ["-i"].iter().chain(arguments).copied().collect();
        Answer::parse(&self.curl(namespace, &all)?.ok()?.stdout)
    }

    /// Asks from beside the Services until the answer is right.
    pub(super) fn expect(&self, arguments: &[&str], judge: impl Fn(&Answer) -> Result<()>) -> Result<()> {
        self.expect_in(NS, arguments, judge)
    }

    /// Asks from a namespace until the answer is right.
    pub(super) fn expect_in(
        &self,
        namespace: &str,
        arguments: &[&str],
        judge: impl Fn(&Answer) -> Result<()>,
    ) -> Result<()> {
        eventually(SOON, &format!("the right answer to {arguments:?}"), || judge(&self.ask(namespace, arguments)?))
    }

    /// How many of some requests each workload answered.
    pub(super) fn shares(&self, requests: u32) -> Result<BTreeMap<String, u32>> {
        let address = format!("http://echo/[1-{requests}]");
        let all = ["-o", "/dev/null", "-w", "%header{x-workload}\\n", &address];
        let said = self.curl(NS, &all)?.ok()?.stdout;
        let mut shares = BTreeMap::new();
        for workload in said.lines().filter(|line| !line.is_empty()) {
            *shares.entry(workload.to_owned()).or_default() += 1;
        }
        Ok(shares)
    }
}

fn lay(sandbox: &Sandbox) -> Result<()> {
    sandbox.add_peer()?;
    let namespace = |name: &str| {
        let labels = json!({"meshctl.dev/inject": "enabled"});
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    };
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        namespace(NS), namespace(CONSUMER),
        workload("echo-v1"), workload("echo-v2"),
        service("echo", &json!({"part": "echo"})),
        service("echo-v1", &json!({"app": "echo-v1"})),
        service("echo-v2", &json!({"app": "echo-v2"})),
        caller(NS), caller(CONSUMER),
    ]});
    sandbox.kubectl_with_input(["apply", "-f", "-"], &objects.to_string())?.ok()?;
    sandbox.kubectl(["-n", NS, "wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?.ok()?;
    for namespace in [NS, CONSUMER] {
        sandbox.kubectl(["-n", namespace, "wait", "--for=condition=Ready", "pod/caller", "--timeout=60s"])?.ok()?;
    }
    Ok(())
}

fn workload(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": NS, "name": name},
    "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
        "metadata": {"labels": {"app": name, "part": "echo"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
            "name": "main", "image": "mesh-peer", "args": ["echo", name],
            "readinessProbe": {"tcpSocket": {"port": ports::ECHO_HTTP2}, "periodSeconds": 1},
        }]}}}})
}

fn service(name: &str, selector: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": NS, "name": name},
    "spec": {"selector": selector, "ports": [
        {"name": "http", "port": 80, "targetPort": ports::ECHO_HTTP1},
        {"name": "http-alt", "port": 8080, "targetPort": ports::ECHO_HTTP1},
        {"name": "grpc", "port": 7070, "targetPort": ports::ECHO_HTTP2, "appProtocol": "kubernetes.io/h2c"},
    ]}})
}

fn caller(namespace: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": "caller"},
    "spec": {"terminationGracePeriodSeconds": 1, "containers": [
        {"name": "main", "image": "mesh-peer", "args": ["idle"]},
    ]}})
}

/// A parent: a Service beside the route, or in the Services' namespace.
pub(super) fn parent(service: &str) -> Value {
    json!({"group": "", "kind": "Service", "name": service})
}

/// A backend at port 80.
pub(super) fn backend(service: &str) -> Value {
    json!({"name": service, "port": 80})
}

/// A route.
pub(super) fn route(kind: &str, namespace: &str, name: &str, parent: Value, rules: Value) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"parentRefs": [parent], "rules": rules}})
}

/// An HTTPRoute of the Service `echo`.
pub(super) fn echo_route(name: &str, rules: Value) -> Value {
    route("HTTPRoute", NS, name, parent("echo"), rules)
}
