//! `faults`: made on purpose.

use super::stage::{CALLER, ECHO, SOON, Stage, grpc};
use crate::harness::eventually;
use anyhow::{Result, ensure};
use serde_json::json;

pub(super) fn delay_abort_and_reset() -> Result<()> {
    let s = Stage::clear()?;
    let when = |value: &str| json!({"headers": [{"name": "x-fault", "value": value}]});
    s.policy(json!({"faults": [
        {"when": when("delay"), "delay": "600ms"},
        {"when": when("abort"), "abort": {"status": 418, "grpcStatus": 9}},
        {"when": when("both"), "delay": "400ms", "abort": {}},
        {"when": when("reset"), "reset": true},
        {"when": {"path": {"type": "RegularExpression", "value": "/bad/[a-z]+"}}, "abort": {"status": 410}},
    ]}))?;
    let with = |fault: &str| format!("-H 'x-fault: {fault}' {ECHO}");
    s.expect(CALLER, &with("abort"), |answer| answer.is_error(418, "fault-injected"))?;
    let answer = s.ask(CALLER, &with("delay"))?;
    ensure!(answer.status == 200 && answer.seconds >= 0.6, "{answer:?}");
    let answer = s.ask(CALLER, &with("both"))?;
    answer.is_error(500, "fault-injected")?;
    answer.took(0.4, 5.0)?;
    let answer = s.ask(CALLER, &with("reset"))?;
    ensure!((answer.status, answer.whole) == (0, false), "{answer:?}");
    let answer = s.ask(CALLER, &grpc("-H 'x-fault: abort'"))?;
    ensure!((answer.status, answer.field("grpc-status")) == (200, "9"), "{answer:?}");
    s.ask(CALLER, &format!("{ECHO}bad/thing"))?.is_error(410, "fault-injected")?;
    let fine = s.ask(CALLER, ECHO)?;
    ensure!(fine.status == 200 && fine.seconds < 0.4, "{fine:?}");
    Ok(())
}

pub(super) fn bandwidth_and_percent() -> Result<()> {
    let s = Stage::clear()?;
    // An answer of some hundred bytes.
    s.policy(json!({"faults": [{"bytesPerSecond": 200}]}))?;
    s.expect(CALLER, ECHO, |answer| {
        ensure!(answer.status == 200 && answer.whole && answer.seconds > 0.5, "{answer:?}");
        Ok(())
    })?;
    s.policy(json!({"faults": [{"percent": 30, "abort": {"status": 503}}]}))?;
    eventually(SOON, "three of ten requests fail", || {
        let tally = s.tally(CALLER, 300, ECHO, "")?;
        let failed = tally.get("503 fault-injected").copied().unwrap_or(0);
        ensure!((55..=130).contains(&failed), "{tally:?}");
        Ok(())
    })?;
    s.policy(json!({"faults": [{"percent": 0, "abort": {}}]}))?;
    s.expect_tally(30, "", |tally| tally.keys().all(|key| key.starts_with("200")))
}
