//! `retry`: when a request is sent again.

use super::stage::{CALLER, Stage, grpc};
use crate::harness::eventually;
use anyhow::{Result, ensure};
use serde_json::json;
use std::sync::atomic::{AtomicU32, Ordering};

/// One endpoint, so that tries can be counted there.
const ONE: &str = "http://echo-a/";

/// A policy about the Service with one endpoint.
fn retries(stage: &Stage, retry: serde_json::Value) -> Result<()> {
    stage.policy_of("retries", json!([{"kind": "Service", "name": "echo-a"}]), json!({"retry": retry}))?.ok()?;
    Ok(())
}

/// A count of its own for each request: what the application saw of it is then its number of tries.
fn counted(wish: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("-H 'x-count: retry-{}-{count}' -H 'x-do: {wish}'", std::process::id())
}

/// Asks anew, under a count of its own, until the answer is of this try.
fn expect(stage: &Stage, wish: &str, arguments: &str, status: u16, nth: &str) -> Result<()> {
    let what = format!("{status} of try {nth} for {wish}");
    eventually(super::stage::SOON, &what, || {
        stage.ask(CALLER, &format!("{} {arguments} {ONE}", counted(wish)))?.is_try(status, nth)
    })
}

pub(super) fn codes_and_attempts() -> Result<()> {
    let s = Stage::clear()?;
    expect(&s, "first=2 status=503", "", 503, "1")?;
    retries(&s, json!({"attempts": 2, "codes": [503, 429]}))?;
    expect(&s, "first=2 status=503", "", 200, "3")?;
    expect(&s, "first=1 status=429", "", 200, "2")?;
    expect(&s, "first=3 status=503", "", 503, "3")?;
    expect(&s, "first=1 status=500", "", 500, "1")?;
    retries(&s, json!({"attempts": 0, "codes": [503]}))?;
    expect(&s, "first=1 status=503", "", 503, "1")
}

pub(super) fn resets_and_slow_tries() -> Result<()> {
    let s = Stage::clear()?;
    // By a method that nobody sends again over a kept connection that breaks, as is done with idempotent ones.
    retries(&s, json!({"attempts": 1, "unsafeMethods": true}))?;
    expect(&s, "first=1 reset", "-d text", 200, "2")?;
    retries(&s, json!({"attempts": 1, "unsafeMethods": true, "resets": false, "codes": [503]}))?;
    eventually(super::stage::SOON, "a reset is not tried again", || {
        let answer = s.ask(CALLER, &format!("{} -d text {ONE}", counted("first=1 reset")))?;
        ensure!(answer.status == 502, "{answer:?}");
        Ok(())
    })?;
    retries(&s, json!({"attempts": 1, "perTryTimeout": "300ms"}))?;
    expect(&s, "first=1 delay=5000", "", 200, "2")?;
    eventually(super::stage::SOON, "both tries take too long", || {
        let answer = s.ask(CALLER, &format!("{} {ONE}", counted("first=2 delay=5000")))?;
        answer.is_error(504, "timeout")?;
        answer.took(0.55, 4.0)
    })
}

pub(super) fn backoff() -> Result<()> {
    let s = Stage::clear()?;
    // At least so long before each of two tries, at most the longest pause.
    retries(&s, json!({"attempts": 2, "codes": [503], "backoff": "300ms", "maxBackoff": "400ms"}))?;
    eventually(super::stage::SOON, "pauses as said", || {
        let answer = s.ask(CALLER, &format!("{} {ONE}", counted("first=2 status=503")))?;
        answer.is_try(200, "3")?;
        answer.took(0.6, 2.5)
    })?;
    retries(&s, json!({"attempts": 1, "codes": [503], "maxBackoff": "3s"}))?;
    eventually(super::stage::SOON, "a server may ask for a longer pause, in seconds", || {
        let answer = s.ask(CALLER, &format!("{} {ONE}", counted("first=1 status=503 retry-after=1")))?;
        answer.is_try(200, "2")?;
        answer.took(1.0, 2.9)
    })?;
    // A date counts from the response's own, whatever clocks say: this one is long past.
    let past = "first=1 status=503 retry-after=Wed,_21_Oct_2015_07:28:00_GMT";
    expect(&s, past, "", 200, "2")?;
    // Longer than any pause may be: there is no other try.
    expect(&s, "first=1 status=503 retry-after=60", "", 503, "1")?;
    expect(&s, "first=1 status=503 retry-after=Fri,_01_Jan_2100_00:00:00_GMT", "", 503, "1")
}

pub(super) fn unsafe_methods_and_bodies() -> Result<()> {
    let s = Stage::clear()?;
    retries(&s, json!({"attempts": 1, "codes": [503]}))?;
    expect(&s, "first=1 status=503", "", 200, "2")?;
    expect(&s, "first=1 status=503", "-d text", 503, "1")?;
    expect(&s, "first=1 status=503", "-X PUT -d text", 200, "2")?;
    retries(&s, json!({"attempts": 1, "codes": [503], "unsafeMethods": true, "bodyBytes": 1000}))?;
    expect(&s, "first=1 status=503", "-d text", 200, "2")?;
    // More than is kept of a body is sent once.
    let long = "-X PUT -H 'expect:' --data-binary @<(head -c 200000 /dev/zero)";
    expect(&s, "first=1 status=503", long, 503, "1")
}

pub(super) fn grpc_codes() -> Result<()> {
    let s = Stage::clear()?;
    let status = |wish: &str| s.ask(CALLER, &grpc(&counted(wish)));
    // Which of two endpoints a try goes to does not matter: it is the same for the caller.
    s.policy(json!({"retry": {"attempts": 3, "grpcCodes": [14], "unsafeMethods": true}}))?;
    eventually(super::stage::SOON, "a call is made again", || {
        let answer = status("first=1 grpc=14")?;
        ensure!(answer.status == 200 && matches!(answer.field("grpc-status"), "" | "0"), "{answer:?}");
        let other = status("first=1 grpc=13")?;
        ensure!(other.field("grpc-status") == "13", "{other:?}");
        Ok(())
    })
}

pub(super) fn budget() -> Result<()> {
    let s = Stage::clear()?;
    let budget = json!({"percent": 20, "interval": "10s", "minPerSecond": 0});
    retries(&s, json!({"attempts": 1, "codes": [503], "backoff": "1ms", "budget": budget}))?;
    eventually(super::stage::SOON, "a fifth of the requests may be sent again", || {
        // Every first try fails, and no second one would.
        let line = format!(
            "for n in $(seq 50); do curl -sS -o /dev/null -w '%{{http_code}}\\n' {} -H \"x-count: $RANDOM$n\" {ONE}; done",
            "-H 'x-do: status=503 first=1'"
        );
        let said = s.bash(CALLER, &line)?.stdout;
        let saved = said.lines().filter(|line| *line == "200").count();
        ensure!((1..=10).contains(&saved) && said.lines().count() == 50, "{saved} of 50 were saved");
        Ok(())
    })
}
