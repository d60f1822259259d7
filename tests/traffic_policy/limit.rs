//! `limits`: how much a service is asked to do at once.

use super::stage::{CALLER, SOON, Stage, service};
use crate::harness::eventually;
use crate::peer::ports;
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};

pub(super) fn requests() -> Result<()> {
    let s = Stage::clear()?;
    let slow = "-Z --parallel-immediate -H 'x-do: delay=700'";
    s.policy(json!({"limits": {"requests": 2, "pending": 2, "pendingTimeout": "10s"}}))?;
    // Two are under way, two wait for them, the others are turned away.
    s.expect_tally(8, slow, |tally| {
        tally.get("503 overload") == Some(&4)
            && tally.iter().filter(|(key, _)| key.starts_with("200")).map(|(_, n)| n).sum::<u32>() == 4
    })?;
    s.policy(json!({"limits": {"requests": 2, "pending": 8, "pendingTimeout": "100ms"}}))?;
    s.expect_tally(8, slow, |tally| tally.get("503 overload") == Some(&6))
}

pub(super) fn endpoints() -> Result<()> {
    let s = Stage::clear()?;
    let slow = "-Z --parallel-immediate -H 'x-do: delay=700'";
    s.policy(json!({"limits": {"endpointRequests": 1, "pending": 0}}))?;
    s.expect_tally(6, slow, |tally| {
        tally.get("200 echo-a") == Some(&1)
            && tally.get("200 echo-b") == Some(&1)
            && tally.get("503 overload") == Some(&4)
    })?;
    // Endpoints outside the mesh speak HTTP/1 over connections that one request has at a time.
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "plain", "labels": {"app": "plain"}, "annotations": {"meshctl.dev/inject": "disabled"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "main", "image": "mesh-peer", "args": ["echo", "plain"]}]}});
    s.apply(&[pod, service("plain", &json!({"app": "plain"}))])?.ok()?;
    s.kubectl(&["wait", "--for=condition=Ready", "pod/plain", "--timeout=60s"])?.ok()?;
    s.policy_of("few", json!([{"kind": "Service", "name": "plain"}]), json!({"limits": {"connections": 1}}))?.ok()?;
    eventually(SOON, "one request after the other", || {
        let begun = Instant::now();
        let tally = s.tally(CALLER, 5, "http://plain/", "-Z --parallel-immediate -H 'x-do: delay=150'")?;
        ensure!(tally.keys().eq(["200 plain"]), "{tally:?}");
        ensure!(begun.elapsed() >= Duration::from_millis(750), "all at once");
        Ok(())
    })?;
    // Connections that nobody looks into: the second waits for a while, then it is turned away.
    let mut opaque = service("plain-opaque", &json!({"app": "plain"}));
    opaque["spec"]["ports"] = json!([{"port": 5432, "targetPort": ports::ECHO_HTTP1}]);
    s.apply(&[opaque])?.ok()?;
    let target = json!([{"kind": "Service", "name": "plain-opaque"}]);
    s.policy_of("one", target, json!({"limits": {"connections": 1}}))?.ok()?;
    let url = "http://plain-opaque:5432/";
    let curl = format!("curl -sS -o /dev/null --max-time 8 -w '%{{http_code}}\\n' {url}");
    let line = format!(
        "exec 3<>/dev/tcp/plain-opaque/5432; printf 'GET / HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n' >&3; head -c 12 <&3; echo; \
         {curl}; exec 3>&- 3<&-; {curl}"
    );
    eventually(SOON, "one connection at a time", || {
        let said = s.bash(CALLER, &line)?.stdout;
        let lines: Vec<&str> = said.lines().collect();
        ensure!(lines == ["HTTP/1.1 200", "000", "200"], "{said}");
        Ok(())
    })?;
    s.kubectl(&["delete", "pod/plain", "service/plain", "service/plain-opaque", "--wait=false"])?.ok()?;
    Ok(())
}
