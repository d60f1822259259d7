//! Calls that never stop, from a meshed pod, while something happens to the mesh.

use crate::harness::Sandbox;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A caller in the shop that goes on until it is told to stop: each round once over connections that are kept between the
/// proxies, and once over a new one with a handshake of its own.
pub(crate) struct Load {
    caller: Child,
    process: String,
    rest: JoinHandle<Vec<String>>,
}

/// Its pod; no other test has one of this name.
pub(crate) const CALLER: &str = "rotation-caller";

const CALLS: &str = "echo $$; trap 'exit 0' TERM; while true; do for host in catalog fresh; do \
    curl -s -o /dev/null --max-time 10 -w \"%{http_code} $host $(date +%T) %{errormsg}\\n\" http://$host.shop/products/1; done; done";

impl Load {
    /// Starts it.
    pub(crate) fn start(s: &Sandbox) -> Result<Self> {
        let fresh = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "fresh", "annotations": {"meshctl.dev/opaque-ports": "80"}},
            "spec": {"selector": {"app": "catalog"}, "ports": [{"port": 80, "targetPort": 8080}]}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": CALLER, "annotations": {"meshctl.dev/inject": "enabled"}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": "sh",
                "args": ["-c", "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"]}]}});
        for object in [fresh, pod] {
            s.kubectl_with_input(["-n", "shop", "apply", "-f", "-"], &object.to_string())?.ok()?;
        }
        s.kubectl(["-n", "shop", "wait", "--for=condition=Ready", &format!("pod/{CALLER}"), "--timeout=60s"])?.ok()?;
        let arguments = ["-n", "shop", "exec", CALLER, "-c", "main", "--", "sh", "-c", CALLS];
        let mut caller = s.kubectl_command(arguments)?.stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(caller.stdout.take().context("no stdout")?).lines();
        let process = lines.next().context("the caller says nothing")??;
        let rest = std::thread::spawn(move || lines.map_while(|line| line.ok()).collect());
        Ok(Self { caller, process, rest })
    }

    /// Ends it; fails if a single call did.
    pub(crate) fn stop(mut self, s: &Sandbox) -> Result<()> {
        let line = format!("kill {}", self.process);
        s.kubectl(["-n", "shop", "exec", CALLER, "-c", "main", "--", "sh", "-c", &line])?.ok()?;
        let end = Instant::now() + Duration::from_secs(20);
        while self.caller.try_wait()?.is_none() {
            if Instant::now() > end {
                self.caller.kill()?;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let said = self.rest.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        let bad: Vec<&String> = said.iter().filter(|line| !line.starts_with("200 ")).collect();
        ensure!(said.len() > 30, "only {} calls", said.len());
        ensure!(bad.is_empty(), "{} of {} requests were lost: {:?}", bad.len(), said.len(), &bad[..bad.len().min(5)]);
        Ok(())
    }
}
