//! `rateLimits`: how often a service may be called.

use super::stage::{CALLER, ECHO, OTHER, SOON, Stage};
use crate::harness::eventually;
use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// One endpoint, so that one proxy counts everything.
const ONE: &str = "http://echo-a/";

fn limits(stage: &Stage, limit: Value) -> Result<()> {
    let target = json!([{"kind": "Service", "name": "echo-a"}]);
    stage.policy_of("limits", target, json!({"rateLimits": [limit]}))?.ok()?;
    Ok(())
}

pub(super) fn requests() -> Result<()> {
    let s = Stage::clear()?;
    limits(&s, json!({"requests": 4, "interval": "1h"}))?;
    eventually(SOON, "the limit is there", || s.ask(CALLER, ONE)?.is_error(429, "rate-limited"))?;
    let answer = s.ask(CALLER, ONE)?;
    let wait: u64 = answer.field("retry-after").parse()?;
    ensure!((600..=900).contains(&wait), "a quarter of an hour at most: {answer:?}");
    // A new limit begins anew; a small burst, and what comes back in time.
    limits(&s, json!({"requests": 20, "interval": "1s", "burst": 2}))?;
    eventually(SOON, "a burst of two, and twenty a second", || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let line = format!("curl -sS -o /dev/null -w '%{{http_code}} %{{time_starttransfer}}\\n' '{ONE}[1-300]'");
        let begun = std::time::Instant::now();
        let said = s.bash(CALLER, &line)?.stdout;
        let seconds = begun.elapsed().as_secs_f64();
        let passed = said.lines().filter(|line| line.starts_with("200")).count();
        let most = 2.0 + 20.0 * seconds;
        ensure!(passed >= 2 && passed as f64 <= most + 1.0 && passed < 290, "{passed} in {seconds} s");
        Ok(())
    })
}

pub(super) fn per_key() -> Result<()> {
    let s = Stage::clear()?;
    for (at, (per, first, second)) in [
        (json!({"by": "Identity"}), (CALLER, ""), (OTHER, "")),
        (json!({"by": "Source"}), (CALLER, ""), (OTHER, "")),
        (json!({"by": "Header", "name": "x-user"}), (CALLER, "-H 'x-user: a'"), (CALLER, "-H 'x-user: b'")),
        (json!({"by": "Path"}), (CALLER, "http://echo-a/a"), (CALLER, "http://echo-a/b")),
    ]
    .into_iter()
    .enumerate()
    {
        // Another number each time, so that nothing is left of the limit before.
        limits(&s, json!({"requests": 3 + at, "interval": "1h", "burst": 1, "per": per}))?;
        let ask = |(pod, arguments): (&str, &str)| {
            let url = if arguments.contains("http://") { "" } else { ONE };
            s.ask(pod, &format!("{arguments} {url}"))
        };
        eventually(SOON, &format!("the limit by {per}"), || ask(first)?.is_error(429, "rate-limited"))?;
        let answer = ask(second)?;
        ensure!(answer.status == 200, "{per}: the other one has used nothing: {answer:?}");
        ask(second)?.is_error(429, "rate-limited")?;
    }
    Ok(())
}

pub(super) fn when() -> Result<()> {
    let s = Stage::clear()?;
    for (at, (when, meant, other)) in [
        (json!({"path": {"value": "/cart"}}), "http://echo-a/cart/1", "http://echo-a/carts"),
        (json!({"path": {"type": "Exact", "value": "/cart"}}), "http://echo-a/cart", "http://echo-a/cart/1"),
        (json!({"path": {"type": "RegularExpression", "value": "/c.*t"}}), "http://echo-a/cost", "http://echo-a/costs"),
        (json!({"method": "DELETE"}), "-X DELETE http://echo-a/", "http://echo-a/"),
        (json!({"headers": [{"name": "x-a"}]}), "-H 'x-a: 1' http://echo-a/", "http://echo-a/"),
        (
            json!({"headers": [{"name": "x-a", "value": "1"}]}),
            "-H 'x-a: 1' http://echo-a/",
            "-H 'x-a: 2' http://echo-a/",
        ),
        (
            json!({"headers": [{"type": "RegularExpression", "name": "x-a", "value": "[0-9]+"}]}),
            "-H 'x-a: 12' http://echo-a/",
            "-H 'x-a: b' http://echo-a/",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        limits(&s, json!({"requests": 2 + at, "interval": "1h", "burst": 1, "when": when}))?;
        eventually(SOON, &format!("the limit when {when}"), || s.ask(CALLER, meant)?.is_error(429, "rate-limited"))?;
        let answer = s.ask(CALLER, other)?;
        ensure!(answer.status == 200, "{when}: {answer:?}");
    }
    Ok(())
}

pub(super) fn shared() -> Result<()> {
    let s = Stage::clear()?;
    let says = json!({"balance": {"algorithm": "RoundRobin"},
        "rateLimits": [{"requests": 20, "interval": "1s", "burst": 4, "shared": true}]});
    s.policy(says)?;
    // Two proxies keep 20 a second together; each for itself would let through twice as many.
    let line = format!(
        "end=$((SECONDS+4)); while [ $SECONDS -lt $end ]; do \
         curl -sS -o /dev/null -w '%{{http_code}} %header{{x-workload}}\\n' '{ECHO}[1-100]'; done"
    );
    eventually(SOON, "the limit is kept together", || {
        let begun = std::time::Instant::now();
        let said = s.bash(CALLER, &line)?.stdout;
        let seconds = begun.elapsed().as_secs_f64();
        let passed = said.lines().filter(|line| line.starts_with("200")).count() as f64;
        let asked = said.lines().count() as f64;
        let rate = passed / seconds;
        ensure!(asked / seconds > 60.0, "too little was asked to tell: {asked} in {seconds} s");
        ensure!((12.0..=27.0).contains(&rate), "{rate} a second passed of {} asked", asked / seconds);
        Ok(())
    })?;
    Ok(())
}
