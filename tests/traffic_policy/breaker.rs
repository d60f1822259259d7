//! `breaker`: endpoints that do badly are left alone for a while.

use super::stage::{CALLER, ECHO, SOON, Stage};
use crate::harness::eventually;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A policy with this breaker that asks the endpoints in turn.
fn breaks(stage: &Stage, breaker: Value) -> Result<()> {
    stage.policy(json!({"balance": {"algorithm": "RoundRobin"}, "breaker": breaker}))
}

pub(super) fn consecutive_failures() -> Result<()> {
    let s = Stage::clear()?;
    breaks(&s, json!({"consecutiveFailures": 3, "ejection": "2s", "maxEjection": "10s", "probes": 2}))?;
    let failing = "-H 'x-do: status=500 only=echo-a'";
    eventually(SOON, "the endpoint is ejected after three failures", || {
        let tally = s.tally(CALLER, 30, ECHO, failing)?;
        ensure!(tally.get("500 echo-a").is_some_and(|failed| *failed <= 3), "{tally:?}");
        Ok(())
    })?;
    let ejected = Instant::now();
    let after = s.tally(CALLER, 10, ECHO, "")?;
    ensure!(after.keys().eq(["200 echo-b"]), "it is asked all the same: {after:?}");
    let shown = s.sandbox.meshctl(["diagnostics", "endpoints", "pod/caller", "-n", super::stage::NS])?.stdout;
    ensure!(shown.contains("open"), "the circuit's state is not shown: {shown}");
    // Its time over, one request at a time tries it out; after two it is back.
    eventually(SOON, "the endpoint is back", || {
        let tally = s.tally(CALLER, 10, ECHO, "")?;
        ensure!(tally.get("200 echo-a") == Some(&5), "{tally:?}");
        Ok(())
    })?;
    ensure!(ejected.elapsed() > Duration::from_millis(1000), "it is back too early");
    Ok(())
}

pub(super) fn success_rate() -> Result<()> {
    let s = Stage::clear()?;
    let rate = json!({"successRate": {"minPercent": 60}, "window": "30s", "minRequests": 10, "ejection": "60s"});
    breaks(&s, rate)?;
    // Every other request to it fails, so that there are never two failures in a row.
    eventually(SOON, "the endpoint is ejected for half of its answers", || {
        let line = format!(
            "for n in $(seq 12); do curl -sS -o /dev/null -H 'x-do: status=500 only=echo-a' '{ECHO}[1-2]'; \
             curl -sS -o /dev/null '{ECHO}[1-2]'; done; \
             curl -sS -o /dev/null -w '%header{{x-workload}}\\n' '{ECHO}[1-10]'"
        );
        let said = s.bash(CALLER, &line)?.stdout;
        ensure!(!said.contains("echo-a") && said.contains("echo-b"), "{said}");
        Ok(())
    })
}

pub(super) fn slow_calls() -> Result<()> {
    let s = Stage::clear()?;
    let slow = json!({"over": "100ms", "maxPercent": 50});
    breaks(&s, json!({"slowCalls": slow, "minRequests": 3, "ejection": "60s"}))?;
    eventually(SOON, "the slow endpoint is ejected", || {
        s.tally(CALLER, 10, ECHO, "-H 'x-do: delay=150 only=echo-a'")?;
        let after = s.tally(CALLER, 10, ECHO, "")?;
        ensure!(after.keys().eq(["200 echo-b"]), "{after:?}");
        Ok(())
    })
}

pub(super) fn floor() -> Result<()> {
    let s = Stage::clear()?;
    let failing = "-H 'x-do: status=500'";
    // Half of the endpoints stay, whatever they do.
    breaks(&s, json!({"consecutiveFailures": 1, "ejection": "60s", "floorPercent": 50}))?;
    eventually(SOON, "one endpoint stays", || {
        let tally = s.tally(CALLER, 10, ECHO, failing)?;
        ensure!(tally.len() == 1 && tally.keys().all(|key| key.starts_with("500 echo")), "{tally:?}");
        Ok(())
    })?;
    // With nothing that has to stay, the circuit opens.
    breaks(&s, json!({"consecutiveFailures": 1, "ejection": "60s", "floorPercent": 0}))?;
    s.expect(CALLER, &format!("{failing} {ECHO}"), |answer| answer.is_error(503, "circuit-open"))?;
    Ok(())
}
