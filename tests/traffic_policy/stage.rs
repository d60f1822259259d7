//! What all tests of traffic policies stand on: a Service `echo` in front of two workloads, a Service for each of them,
//! and two callers with identities of their own.

use crate::harness::{Ran, SHOP, Sandbox, eventually};
use crate::peer::ports;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// The namespace.
pub(super) const NS: &str = "carried";
/// How long a policy may take to show its effect: generous, since the machine may be busy.
pub(super) const SOON: Duration = Duration::from_secs(20);
/// The callers.
pub(super) const CALLER: &str = "caller";
pub(super) const OTHER: &str = "other";
/// The Service of both workloads.
pub(super) const ECHO: &str = "http://echo/";

static READY: Mutex<bool> = Mutex::new(false);

/// The stage, for one test at a time, without policies and routes.
pub(super) struct Stage {
    pub(super) sandbox: &'static Sandbox,
    _alone: MutexGuard<'static, bool>,
}

/// What a caller got.
#[derive(Debug)]
pub(super) struct Answer {
    /// 0: nothing that is an answer.
    pub(super) status: u16,
    /// The head, names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    /// How long it took.
    pub(super) seconds: f64,
    /// False if the answer broke off.
    pub(super) whole: bool,
}

impl Answer {
    /// A field of the head; empty if it is not there.
    pub(super) fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Fails unless the answer is this error of the mesh.
    pub(super) fn is_error(&self, status: u16, code: &str) -> Result<()> {
        ensure!((self.status, self.field("mesh-error")) == (status, code), "not {status} {code}: {self:?}");
        Ok(())
    }

    /// Fails unless the answer has this status and comes from an application that saw so many tries.
    pub(super) fn is_try(&self, status: u16, nth: &str) -> Result<()> {
        ensure!((self.status, self.field("x-nth")) == (status, nth), "not {status} of try {nth}: {self:?}");
        Ok(())
    }

    /// Fails unless it took at least and at most so many seconds.
    pub(super) fn took(&self, least: f64, most: f64) -> Result<()> {
        ensure!((least..=most).contains(&self.seconds), "not between {least} and {most} s: {self:?}");
        Ok(())
    }
}

impl Stage {
    /// The stage, laid by the first test to ask.
    pub(super) fn clear() -> Result<Self> {
        let mut ready = READY.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let sandbox = SHOP.get()?;
        if !*ready {
            lay(sandbox)?;
            *ready = true;
        }
        let stage = Self { sandbox, _alone: ready };
        stage.kubectl(&["delete", "trafficpolicies,httproutes,grpcroutes,tlsroutes,tcproutes", "--all"])?.ok()?;
        Ok(stage)
    }

    pub(super) fn kubectl(&self, arguments: &[&str]) -> Result<Ran> {
        self.sandbox.kubectl(["-n", NS].iter().chain(arguments))
    }

    /// Applies objects of the namespace.
    pub(super) fn apply(&self, objects: &[Value]) -> Result<Ran> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.sandbox.kubectl_with_input(["-n", NS, "apply", "-f", "-"], &list.to_string())
    }

    /// Applies a policy about the Service `echo`.
    pub(super) fn policy(&self, says: Value) -> Result<()> {
        self.policy_of("test", json!([{"kind": "Service", "name": "echo"}]), says)?.ok()?;
        Ok(())
    }

    /// Applies a policy about something.
    pub(super) fn policy_of(&self, name: &str, targets: Value, says: Value) -> Result<Ran> {
        let mut spec = says;
        spec["targetRefs"] = targets;
        self.apply(&[json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "TrafficPolicy",
            "metadata": {"name": name}, "spec": spec})])
    }

    /// Runs a line of bash in a pod.
    pub(super) fn bash(&self, pod: &str, line: &str) -> Result<Ran> {
        self.kubectl(&["exec", pod, "-c", "main", "--", "timeout", "30", "bash", "-c", line])
    }

    /// The answer to `curl ARGUMENTS`, written as for a shell.
    pub(super) fn ask(&self, pod: &str, arguments: &str) -> Result<Answer> {
        let line =
            format!("curl -sS -D - -o /dev/null --max-time 15 -w '\\n%{{time_total}} %{{exitcode}}' {arguments}");
        let said = self.bash(pod, &line)?;
        let text = said.stdout.replace("\r\n", "\n");
        let (head, end) = text.rsplit_once('\n').with_context(|| format!("{line}: {text} {}", said.stderr))?;
        let (seconds, code) = end.split_once(' ').with_context(|| format!("{line}: {text}"))?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(": "));
        Ok(Answer {
            status: status.unwrap_or(0),
            headers: headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect(),
            seconds: seconds.parse()?,
            whole: code == "0",
        })
    }

    /// Asks until the answer is right.
    pub(super) fn expect(&self, pod: &str, arguments: &str, judge: impl Fn(&Answer) -> Result<()>) -> Result<Answer> {
        eventually(SOON, &format!("the right answer to {arguments}"), || {
            let answer = self.ask(pod, arguments)?;
            judge(&answer).map(|()| answer)
        })
    }

    /// How many of `n` requests, one after the other (or all at once with `-Z` among the arguments), got each answer:
    /// `STATUS WORKLOAD`, or `STATUS CODE` for an error of the mesh.
    pub(super) fn tally(&self, pod: &str, n: u32, url: &str, arguments: &str) -> Result<BTreeMap<String, u32>> {
        let line = format!(
            "curl -sS --max-time 15 -o /dev/null -w '%{{http_code}} %header{{x-workload}}%header{{mesh-error}}\\n' \
             {arguments} '{url}[1-{n}]'"
        );
        let said = self.bash(pod, &line)?.stdout;
        let mut tally = BTreeMap::new();
        for line in said.lines().filter(|line| !line.is_empty()) {
            *tally.entry(line.trim().to_owned()).or_default() += 1;
        }
        ensure!(tally.values().sum::<u32>() == n, "{line}: {said}");
        Ok(tally)
    }

    /// Counts until the tally is right.
    pub(super) fn expect_tally(
        &self,
        n: u32,
        arguments: &str,
        judge: impl Fn(&BTreeMap<String, u32>) -> bool,
    ) -> Result<()> {
        eventually(SOON, &format!("the right answers to {n} times {arguments}"), || {
            let tally = self.tally(CALLER, n, ECHO, arguments)?;
            ensure!(judge(&tally), "{tally:?}");
            Ok(())
        })
    }

    /// The address of a pod, found by a label `app`.
    pub(super) fn ip(&self, app: &str) -> Result<String> {
        let app = format!("app={app}");
        let ran = self.kubectl(&["get", "pods", "-l", &app, "-o", "jsonpath={.items[0].status.podIP}"])?.ok()?;
        Ok(ran.stdout.trim().to_owned())
    }

    /// The condition `Accepted` of a policy.
    pub(super) fn accepted(&self, policy: &str) -> Result<Value> {
        let shown = self.kubectl(&["get", "trafficpolicy", policy, "-o", "json"])?.ok()?.stdout;
        let shown: Value = serde_json::from_str(&shown)?;
        let conditions = shown["status"]["conditions"].as_array().into_iter().flatten();
        let found = conditions.clone().find(|condition| condition["type"] == "Accepted").cloned();
        let found = found.with_context(|| shown.to_string())?;
        ensure!(found["observedGeneration"] == shown["metadata"]["generation"], "outdated: {found}");
        Ok(found)
    }
}

fn lay(sandbox: &Sandbox) -> Result<()> {
    sandbox.add_peer()?;
    let labels = json!({"meshctl.dev/inject": "enabled"});
    let account =
        |name: &str| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": NS, "name": name}});
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NS, "labels": labels}},
        account(CALLER), account(OTHER),
        workload("echo-a"), workload("echo-b"),
        service("echo", &json!({"part": "echo"})),
        service("echo-a", &json!({"app": "echo-a"})),
        service("echo-b", &json!({"app": "echo-b"})),
        caller(CALLER), caller(OTHER),
    ]});
    sandbox.kubectl_with_input(["apply", "-f", "-"], &objects.to_string())?.ok()?;
    sandbox.kubectl(["-n", NS, "wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?.ok()?;
    sandbox.kubectl(["-n", NS, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?.ok()?;
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

/// A Service at port 80, and for gRPC at 7070.
pub(super) fn service(name: &str, selector: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": NS, "name": name},
    "spec": {"selector": selector, "ports": [
        {"name": "http", "port": 80, "targetPort": ports::ECHO_HTTP1},
        {"name": "grpc", "port": 7070, "targetPort": ports::ECHO_HTTP2, "appProtocol": "kubernetes.io/h2c"},
    ]}})
}

fn caller(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
    "metadata": {"namespace": NS, "name": name, "labels": {"app": name}},
    "spec": {"serviceAccountName": name, "terminationGracePeriodSeconds": 1, "containers": [
        {"name": "main", "image": "mesh-peer", "args": ["idle"]},
    ]}})
}

/// A Service without pods of its own, whose endpoints are these addresses in these zones.
pub(super) fn pointed(name: &str, endpoints: &[(&str, &str)]) -> [Value; 2] {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, zone)| json!({"addresses": [address], "zone": zone, "conditions": {"ready": true}}))
        .collect();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": NS, "name": name},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": ports::ECHO_HTTP1}]}});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": NS, "name": format!("{name}-by-hand"), "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "http", "port": ports::ECHO_HTTP1, "protocol": "TCP"}], "endpoints": endpoints});
    [service, slice]
}

/// A call of gRPC, for `curl`.
pub(super) fn grpc(arguments: &str) -> String {
    format!(
        "--http2-prior-knowledge -H 'content-type: application/grpc' -H 'te: trailers' --data-binary '' {arguments} \
         http://echo:7070/test.Any/Call"
    )
}
