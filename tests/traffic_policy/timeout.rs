//! `timeouts`: how long a request may take.

use super::stage::{CALLER, ECHO, NS, SOON, Stage, pointed};
use crate::harness::eventually;
use crate::peer::ports;
use anyhow::{Context, Result, ensure};
use serde_json::json;

pub(super) fn requests() -> Result<()> {
    let s = Stage::clear()?;
    let late = |arguments: &str, least: f64, most: f64| -> Result<()> {
        let line = format!("{arguments} {ECHO}");
        s.expect(CALLER, &line, |answer| {
            answer.is_error(504, "timeout")?;
            answer.took(least, most)
        })?;
        Ok(())
    };
    s.policy(json!({"timeouts": {"request": "500ms"}}))?;
    late("-H 'x-do: delay=5000'", 0.5, 4.0)?;
    // With all tries: the third one is never made.
    s.policy(json!({"timeouts": {"request": "900ms"}, "retry": {"attempts": 9, "perTryTimeout": "400ms"}}))?;
    late("-H 'x-do: delay=5000'", 0.9, 4.0)?;
    s.policy(json!({"timeouts": {"responseHead": "400ms"}}))?;
    late("-H 'x-do: delay=5000'", 0.4, 4.0)?;
    // The head is in time; what comes later is not its concern.
    let slow_body = format!("-H 'x-do: pause=800' {ECHO}");
    s.expect(CALLER, &slow_body, |answer| {
        ensure!(answer.status == 200 && answer.whole, "{answer:?}");
        Ok(())
    })?;
    for limit in ["idle", "backendRequest"] {
        s.policy(json!({"timeouts": {limit: "400ms"}}))?;
        // The answer has begun, so that it can only be broken off.
        s.expect(CALLER, &format!("-H 'x-do: pause=5000' {ECHO}"), |answer| {
            ensure!(answer.status == 200 && !answer.whole && answer.seconds < 4.0, "{limit}: {answer:?}");
            Ok(())
        })?;
    }
    // Zero is no limit.
    s.policy(json!({"timeouts": {"request": "0s"}}))?;
    s.expect(CALLER, &format!("-H 'x-do: delay=1200' {ECHO}"), |answer| {
        ensure!(answer.status == 200 && answer.seconds >= 1.2, "{answer:?}");
        Ok(())
    })?;
    Ok(())
}

pub(super) fn tightened() -> Result<()> {
    let s = Stage::clear()?;
    s.policy(json!({"timeouts": {"request": "1s"}}))?;
    for (asked, least, most) in [("300ms", 0.3, 0.9), ("20s", 1.0, 4.0), ("0s", 1.0, 4.0), ("soon", 1.0, 4.0)] {
        let line = format!("-H 'mesh-timeout: {asked}' -H 'x-do: delay=5000' {ECHO}");
        s.expect(CALLER, &line, |answer| {
            answer.is_error(504, "timeout")?;
            answer.took(least, most)
        })?;
    }
    Ok(())
}

pub(super) fn connect() -> Result<()> {
    let s = Stage::clear()?;
    // A listener whose queue is full leaves all attempts unanswered.
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": NS, "name": "full", "labels": {"app": "full"}, "annotations": {"meshctl.dev/inject": "disabled"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "main", "image": "mesh-peer", "args": ["full", ports::ECHO_HTTP1.to_string()]}]}});
    s.apply(&[pod])?.ok()?;
    s.kubectl(&["wait", "--for=condition=Ready", "pod/full", "--timeout=60s"])?.ok()?;
    s.apply(&pointed("full", &[(&s.ip("full")?, "north")]))?.ok()?;
    let target = || json!([{"kind": "Service", "name": "full"}]);
    for (limit, least, most) in [("300ms", 0.3, 1.2), ("1500ms", 1.5, 4.0)] {
        s.policy_of("connect", target(), json!({"timeouts": {"connect": limit}}))?.ok()?;
        eventually(SOON, limit, || {
            let answer = s.ask(CALLER, "http://full/")?;
            answer.is_error(504, "connect-timeout")?;
            answer.took(least, most)
        })?;
    }
    connect_for_a_route(&s)?;
    s.kubectl(&["delete", "pod/full", "service/full", "endpointslice/full-by-hand", "--wait=false"])?.ok()?;
    Ok(())
}

/// The same for connections that a TLSRoute or TCPRoute takes: of the Service's policy and the route's, the route's counts.
fn connect_for_a_route(s: &Stage) -> Result<()> {
    let mut objects = pointed("full-tls", &[(&s.ip("full")?, "north")]);
    objects[0]["spec"]["ports"][0]["name"] = "tls".into();
    objects[1]["ports"][0]["name"] = "tls".into();
    s.apply(&objects)?.ok()?;
    s.policy_of("connect", json!([{"kind": "Service", "name": "full-tls"}]), json!({"timeouts": {"connect": "4s"}}))?
        .ok()?;
    for (kind, version) in [("TLSRoute", "v1"), ("TCPRoute", "v1alpha2")] {
        let mut spec = json!({"parentRefs": [{"group": "", "kind": "Service", "name": "full-tls"}],
            "rules": [{"backendRefs": [{"name": "full-tls", "port": 80}]}]});
        if kind == "TLSRoute" {
            spec["hostnames"] = json!(["full-tls"]);
        }
        s.apply(&[json!({"apiVersion": format!("gateway.networking.k8s.io/{version}"), "kind": kind,
            "metadata": {"name": "full"}, "spec": spec})])?
            .ok()?;
        let target = json!([{"kind": kind, "name": "full"}]);
        s.policy_of("of-route", target, json!({"timeouts": {"connect": "300ms"}}))?.ok()?;
        eventually(SOON, kind, || {
            let line = "curl -sk --max-time 10 -o /dev/null -w '%{time_total}' https://full-tls:80/ || echo \" $?\"";
            let said = s.bash(CALLER, line)?.stdout;
            let (seconds, code) = said.trim().split_once(' ').context("the connection was made")?;
            let seconds: f64 = seconds.parse()?;
            ensure!(matches!(code, "35" | "56") && (0.3..1.5).contains(&seconds), "{kind}: {said}");
            Ok(())
        })?;
        s.kubectl(&["delete", kind, "full"])?.ok()?;
    }
    s.kubectl(&["delete", "service/full-tls", "endpointslice/full-tls-by-hand", "--wait=false"])?.ok()?;
    Ok(())
}
