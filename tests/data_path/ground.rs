//! What all tests of the data path stand on: one namespace in the shared sandbox with callers and origins, meshed and
//! not.

use crate::harness::{Need, Ran, SHOP, Sandbox, eventually, find_program};
use crate::peer::ports;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::sync::Mutex;
use std::time::Duration;

/// The namespace.
const NS: &str = "path";
/// Ports of the Services in front of `mesh-peer origin` that declare what is spoken behind them.
pub(super) const DECLARED_HTTP1: u16 = 8090;
pub(super) const DECLARED_GRPC: u16 = 8091;
pub(super) const DECLARED_TCP: u16 = 9010;
/// Ports of nghttpd and `openssl s_server`, which run beside the meshed origin.
pub(super) const NGHTTPD: u16 = 8082;
pub(super) const TLS: u16 = 8443;

pub(super) const NEEDS: &[Need] = &[
    Need::Namespaces,
    Need::Program("kubectl"),
    Need::Program("curl"),
    Need::Program("nghttp"),
    Need::Program("nghttpd"),
    Need::Program("h2load"),
    Need::Program("openssl"),
];

static READY: Mutex<Option<&'static Ground>> = Mutex::new(None);

/// The namespace with its pods.
pub(super) struct Ground {
    pub(super) sandbox: &'static Sandbox,
    /// Where `mesh-peer` lies, inside pods too.
    peer: String,
}

/// A pod to call from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Meshed,
    Unmeshed,
}

impl Ground {
    /// The ground, laid by the first test to ask.
    pub(super) fn get() -> Result<&'static Self> {
        let mut ready = READY.lock().map_err(|e| anyhow::anyhow!("an earlier test panicked: {e}"))?;
        if let Some(ground) = *ready {
            return Ok(ground);
        }
        let ground: &'static Self = Box::leak(Box::new(Self::lay()?));
        *ready = Some(ground);
        Ok(ground)
    }

    fn lay() -> Result<Self> {
        let sandbox = SHOP.get()?;
        let peer = sandbox.add_peer()?;
        let nghttpd = find_program("nghttpd").context("nghttpd is not installed")?;
        let openssl = find_program("openssl").context("openssl is not installed")?;
        for (image, program) in [("nghttpd", &nghttpd.to_string_lossy()), ("openssl", &openssl.to_string_lossy())] {
            sandbox.meshctl(["sandbox", "image", "add", "--name", &sandbox.name, image, program])?.ok()?;
        }
        // Another run of this may have been broken off half way.
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NS}});
        sandbox.kubectl_with_input(["apply", "-f", "-"], &namespace.to_string())?.ok()?;
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            // Called by the meshed caller only, so that all its traffic must be encrypted.
            deployment("origin", true, &[peer_container(), nghttpd_container(), openssl_container()]),
            service("origin"),
            // Meshed, but called by those who are not.
            deployment("open", true, &[peer_container()]),
            service("open"),
            deployment("bare", false, &[peer_container()]),
            service("bare"),
            caller("caller", true),
            caller("outsider", false),
        ]});
        sandbox.kubectl_with_input(["-n", NS, "apply", "-f", "-"], &objects.to_string())?.ok()?;
        sandbox.kubectl(["-n", NS, "wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?.ok()?;
        let callers = ["pod/caller", "pod/outsider"];
        let wait = ["-n", NS, "wait", "--for=condition=Ready", "--timeout=60s"];
        sandbox.kubectl(wait.iter().chain(&callers))?.ok()?;
        let ground = Self { sandbox, peer };
        // The proxies' first sight of the Services behind them.
        eventually(Duration::from_secs(10), "the origin answers", || {
            ground.sh(From::Meshed, "curl -sS --max-time 2 http://origin:8080/ready")?.ok()?.says("/ready")
        })?;
        Ok(ground)
    }

    /// `kubectl -n path ARGS`.
    pub(super) fn kubectl(&self, arguments: &[&str]) -> Result<Ran> {
        self.sandbox.kubectl(["-n", NS].iter().chain(arguments))
    }

    /// Runs a command in a caller.
    pub(super) fn run(&self, from: From, command: &[&str]) -> Result<Ran> {
        let pod = match from {
            From::Meshed => "caller",
            From::Unmeshed => "outsider",
        };
        self.sandbox.kubectl(["-n", NS, "exec", pod, "-c", "main", "--"].iter().chain(command))
    }

    /// Runs a line of bash in a caller, for at most ten seconds.
    pub(super) fn sh(&self, from: From, line: &str) -> Result<Ran> {
        self.run(from, &["timeout", "10", "bash", "-c", line])
    }

    /// Runs `mesh-peer ARGS` in a caller and returns what it prints.
    pub(super) fn peer(&self, from: From, arguments: &[&str]) -> Result<String> {
        let mut command = vec![self.peer.as_str()];
        command.extend(arguments);
        Ok(self.run(from, &command)?.ok()?.stdout.trim_end().to_owned())
    }

    /// Runs `mesh-peer ARGS` in the meshed caller, which must print exactly this.
    pub(super) fn peer_says(&self, arguments: &[&str], expected: &str) -> Result<()> {
        let said = self.peer(From::Meshed, arguments)?;
        ensure!(said == expected, "mesh-peer {arguments:?} says `{said}`, not `{expected}`");
        Ok(())
    }

    /// One row of `stat` for a Deployment.
    pub(super) fn row(&self, deployment: &str) -> Result<Value> {
        let rows =
            self.sandbox.meshctl(["stat", &format!("deploy/{deployment}"), "-n", NS, "-o", "json"])?.ok()?.stdout;
        serde_json::from_str::<Vec<Value>>(&rows)?.into_iter().next().context("no row")
    }

    /// Fails unless the origin's traffic (`rps`, `tcp_read_bytes_rate`, …) shows and every bit of it was mutual TLS.
    pub(super) fn encrypted(&self, key: &str) -> Result<()> {
        eventually(Duration::from_secs(5), "the traffic shows up in stat", || {
            let row = self.row("origin")?;
            ensure!(row[key].as_f64().is_some_and(|value| value > 0.0), "no {key}: {row}");
            ensure!(row["mtls_rate"] == 1.0, "not all encrypted: {row}\n{}", self.plain_series()?);
            Ok(())
        })
    }

    /// What the origin's proxy counted as not encrypted.
    fn plain_series(&self) -> Result<String> {
        let line = "curl -sS http://127.0.0.1:4191/metrics | grep inbound | grep -v mutual";
        let command = ["exec", "deploy/origin", "-c", "main", "--", "bash", "-c", line];
        Ok(self.kubectl(&command)?.stdout)
    }
}

fn deployment(name: &str, meshed: bool, containers: &[Value]) -> Value {
    let inject = if meshed { "enabled" } else { "disabled" };
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}, "annotations": {"meshctl.dev/inject": inject}},
            "spec": {"terminationGracePeriodSeconds": 2, "containers": containers}}}})
}

fn peer_container() -> Value {
    json!({"name": "main", "image": "mesh-peer", "args": ["origin"],
        "readinessProbe": {"tcpSocket": {"port": ports::NOTES}, "periodSeconds": 1}})
}

fn nghttpd_container() -> Value {
    // It serves files of the folder it starts in.
    json!({"name": "nghttpd", "image": "nghttpd", "workingDir": "/etc",
        "args": ["--no-tls", "--trailer=x-sum: 7", "-d", "/etc", NGHTTPD.to_string()]})
}

fn openssl_container() -> Value {
    let prepare = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /tmp/key.pem \
                   -out /tmp/cert.pem -subj /CN=theirs.example -days 2 2>/dev/null && \
                   exec openssl s_server -quiet -accept 8443 -key /tmp/key.pem -cert /tmp/cert.pem -www";
    json!({"name": "openssl", "image": "sh", "args": ["-c", prepare],
        "volumeMounts": [], "readinessProbe": {"tcpSocket": {"port": TLS}, "periodSeconds": 1}})
}

fn service(name: &str) -> Value {
    let port = |name: &str, port: u16, target: u16| json!({"name": name, "port": port, "targetPort": target});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
    "spec": {"selector": {"app": name}, "ipFamilyPolicy": "PreferDualStack", "ports": [
        port("one", ports::HTTP1, ports::HTTP1), port("two", ports::HTTP2, ports::HTTP2),
        port("http-one", DECLARED_HTTP1, ports::HTTP1), port("grpc-two", DECLARED_GRPC, ports::HTTP2),
        port("greets", ports::GREETS, ports::GREETS), port("tcp-greets", DECLARED_TCP, ports::GREETS),
        port("counts", ports::COUNTS, ports::COUNTS), port("resets", ports::RESETS, ports::RESETS),
        port("echoes", ports::ECHOES, ports::ECHOES), port("floods", ports::FLOODS, ports::FLOODS),
        port("notes", ports::NOTES, ports::NOTES), port("nghttpd", NGHTTPD, NGHTTPD), port("own", TLS, TLS),
    ]}})
}

fn caller(name: &str, meshed: bool) -> Value {
    let inject = if meshed { "enabled" } else { "disabled" };
    json!({"apiVersion": "v1", "kind": "Pod",
    "metadata": {"name": name, "labels": {"app": name}, "annotations": {"meshctl.dev/inject": inject}},
    "spec": {"terminationGracePeriodSeconds": 1, "containers": [
        {"name": "main", "image": "mesh-peer", "args": ["idle"]},
    ]}})
}
