//! `balance`: which endpoint a request goes to.

use super::stage::{CALLER, ECHO, NS, Stage, pointed};
use crate::harness::eventually;
use anyhow::{Result, ensure};
use serde_json::json;

pub(super) fn algorithm() -> Result<()> {
    let s = Stage::clear()?;
    let share = |tally: &std::collections::BTreeMap<String, u32>| tally.get("200 echo-a").copied().unwrap_or(0);
    s.policy(json!({"balance": {"algorithm": "RoundRobin"}}))?;
    s.expect_tally(40, "", |tally| share(tally) == 20 && tally.len() == 2)?;
    s.policy(json!({"balance": {"algorithm": "Random"}}))?;
    // With 200 requests, chance gives each of them 60 at least.
    s.expect_tally(200, "", |tally| (60..=140).contains(&share(tally)) && share(tally) != 100)?;
    for algorithm in ["LeastRequest", "PeakEwma"] {
        s.policy(json!({"balance": {"algorithm": algorithm}}))?;
        // While one of them is busy, the other is asked.
        let line = format!(
            "curl -sS -Z -o /dev/null -H 'x-do: delay=4000 only=echo-a' '{ECHO}[1-8]' & sleep 1; \
             curl -sS -o /dev/null -w '%header{{x-workload}}\\n' '{ECHO}[1-20]'; kill %1"
        );
        eventually(super::stage::SOON, algorithm, || {
            let said = s.bash(CALLER, &line)?.stdout;
            let other = said.lines().filter(|line| *line == "echo-b").count();
            ensure!(other == 20, "{other} of 20: {said}");
            Ok(())
        })?;
    }
    Ok(())
}

pub(super) fn hash() -> Result<()> {
    let s = Stage::clear()?;
    for (algorithm, hash, same, other) in [
        ("RingHash", json!({"on": "Header", "name": "x-user"}), "-H 'x-user: 7'", "-H 'x-user: {n}'"),
        ("Maglev", json!({"on": "Header", "name": "x-user"}), "-H 'x-user: 7'", "-H 'x-user: {n}'"),
        ("Maglev", json!({"on": "Cookie", "name": "user"}), "-b 'a=b; user=7'", "-b 'user={n}'"),
        ("RingHash", json!({"on": "Source"}), "", ""),
        ("Maglev", json!({"on": "Path"}), "", "path"),
    ] {
        s.policy(json!({"balance": {"algorithm": algorithm, "hash": hash}}))?;
        // For a path, what differs is the number at its end, so that the query has to carry it.
        let url = if other == "path" { "http://echo/same?" } else { ECHO };
        eventually(super::stage::SOON, &format!("{algorithm} by {hash}"), || {
            let tally = s.tally(CALLER, 12, url, same)?;
            ensure!(tally.len() == 1 && tally.keys().all(|key| key.starts_with("200")), "{tally:?}");
            Ok(())
        })?;
        if other == "path" {
            let tally = s.tally(CALLER, 30, ECHO, "")?;
            ensure!(tally.len() == 2, "all paths lead to one: {tally:?}");
        } else if !other.is_empty() {
            let line = format!(
                "for n in $(seq 24); do curl -sS -o /dev/null -w '%header{{x-workload}}\\n' {} {ECHO}; done",
                other.replace("{n}", "'$n'").replace("''", "")
            );
            let said = s.bash(CALLER, &line)?.stdout;
            ensure!(said.contains("echo-a") && said.contains("echo-b"), "all users lead to one: {said}");
        }
    }
    Ok(())
}

pub(super) fn zone() -> Result<()> {
    let s = Stage::clear()?;
    let (a, b) = (s.ip("echo-a")?, s.ip("echo-b")?);
    // The slice of a Service tells in which zone its pods are, the node in which the caller is: in one with the second.
    s.apply(&pointed("zoned", &[(&a, "north"), (&b, "south")]))?.ok()?;
    s.kubectl(&["label", "nodes", "--all", "topology.kubernetes.io/zone=south"])?.ok()?;
    let target = || json!([{"kind": "Service", "name": "zoned"}]);
    let url = "http://zoned/";
    let tally = |arguments: &str| s.tally(CALLER, 20, url, arguments);
    s.policy_of("zones", target(), json!({"balance": {"algorithm": "RoundRobin"}}))?.ok()?;
    eventually(super::stage::SOON, "both zones are asked", || {
        let tally = tally("")?;
        ensure!(tally.len() == 2, "{tally:?}");
        Ok(())
    })?;
    let breaker = json!({"consecutiveFailures": 1, "ejection": "60s"});
    let says = json!({"balance": {"algorithm": "RoundRobin", "zone": {"failoverPercent": 70}}, "breaker": breaker});
    s.policy_of("zones", target(), says)?.ok()?;
    eventually(super::stage::SOON, "only the own zone is asked", || {
        let tally = tally("")?;
        ensure!(tally.keys().eq(["200 echo-b"]), "{tally:?}");
        Ok(())
    })?;
    // With the zone's only endpoint out of service, the other zone steps in.
    s.ask(CALLER, &format!("-H 'x-do: status=503' {url}"))?;
    let after = tally("")?;
    ensure!(after.keys().eq(["200 echo-a"]), "{after:?}");
    // A node that has moved takes its pods along.
    s.kubectl(&["label", "nodes", "--all", "--overwrite", "topology.kubernetes.io/zone=north"])?.ok()?;
    s.policy_of("zones", target(), json!({"balance": {"algorithm": "RoundRobin", "zone": {}}}))?.ok()?;
    eventually(super::stage::SOON, "the other zone is the own one", || {
        let tally = tally("")?;
        ensure!(tally.keys().eq(["200 echo-a"]), "{tally:?}");
        Ok(())
    })?;
    s.kubectl(&["label", "nodes", "--all", "topology.kubernetes.io/zone-"])?.ok()?;
    s.sandbox.kubectl(["-n", NS, "delete", "service/zoned", "endpointslice/zoned-by-hand"])?.ok()?;
    Ok(())
}
