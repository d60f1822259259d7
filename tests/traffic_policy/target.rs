//! What a policy can be about, which of several counts, and what is said of those that cannot be in force.

use super::stage::{CALLER, ECHO, SOON, Stage, grpc};
use crate::harness::eventually;
use anyhow::{Result, ensure};
use serde_json::{Value, json};

fn abort(status: u16) -> Value {
    json!({"faults": [{"abort": {"status": status, "grpcStatus": status - 500}}]})
}

fn route(kind: &str, rules: Value) -> Value {
    let port = if kind == "GRPCRoute" { 7070 } else { 80 };
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": "echo"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "echo", "port": port}], "rules": rules}})
}

/// A route of each kind with two rules, one of them by name.
fn routes() -> [Value; 2] {
    let backend = |port: u16| json!([{"name": "echo", "port": port}]);
    let named = json!([{"path": {"type": "PathPrefix", "value": "/named"}}]);
    let method = json!([{"method": {"service": "test.Any", "method": "Call"}}]);
    [
        route(
            "HTTPRoute",
            json!([{"name": "named", "matches": named, "backendRefs": backend(80)}, {"backendRefs": backend(80)}]),
        ),
        route(
            "GRPCRoute",
            json!([{"name": "named", "matches": method, "backendRefs": backend(7070)}, {"backendRefs": backend(7070)}]),
        ),
    ]
}

pub(super) fn refs() -> Result<()> {
    let s = Stage::clear()?;
    s.apply(&routes())?.ok()?;
    let named = format!("{ECHO}named");
    let call = grpc("");
    let other_call = call.replace("test.Any/Call", "test.Any/Other");
    let status = |arguments: &str| -> Result<String> {
        let answer = s.ask(CALLER, arguments)?;
        let grpc = answer.field("grpc-status");
        Ok(if matches!(grpc, "" | "0") { answer.status.to_string() } else { format!("grpc {grpc}") })
    };
    for (target, hit, missed) in [
        (json!({"kind": "Service", "name": "echo"}), &[ECHO, &named, &call][..], &[][..]),
        (json!({"kind": "Service", "name": "echo", "sectionName": "http"}), &[ECHO], &[&call]),
        (json!({"kind": "Service", "name": "echo", "sectionName": "7070"}), &[&call], &[ECHO]),
        (json!({"kind": "HTTPRoute", "name": "echo"}), &[ECHO, &named], &[&call]),
        (json!({"kind": "HTTPRoute", "name": "echo", "sectionName": "named"}), &[&named], &[ECHO, &call]),
        (json!({"kind": "GRPCRoute", "name": "echo", "sectionName": "named"}), &[&call], &[ECHO, &other_call]),
    ] as [(Value, &[&str], &[&str]); 6]
    {
        s.policy_of("target", json!([target]), abort(502))?.ok()?;
        eventually(SOON, &target.to_string(), || {
            for url in hit {
                let status = status(url)?;
                ensure!(status == "502" || status == "grpc 2", "{url}: {status}");
            }
            for url in missed {
                let status = status(url)?;
                ensure!(status == "200", "{url}: {status}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

pub(super) fn precedence() -> Result<()> {
    let s = Stage::clear()?;
    s.apply(&routes())?.ok()?;
    let named = format!("{ECHO}named");
    let expect = |url: &str, status: u16| s.expect(CALLER, url, |answer| answer.is_error(status, "fault-injected"));
    let service = json!([{"kind": "Service", "name": "echo"}]);
    s.policy_of("of-service", service, abort(501))?.ok()?;
    expect(ECHO, 501)?;
    s.policy_of("of-port", json!([{"kind": "Service", "name": "echo", "sectionName": "http"}]), abort(502))?.ok()?;
    expect(ECHO, 502)?;
    s.policy_of("of-route", json!([{"kind": "HTTPRoute", "name": "echo"}]), abort(503))?.ok()?;
    expect(ECHO, 503)?;
    let rule = json!([{"kind": "HTTPRoute", "name": "echo", "sectionName": "named"}]);
    s.policy_of("of-rule", rule.clone(), abort(504))?.ok()?;
    expect(&named, 504)?;
    expect(ECHO, 503)?;
    // What the rule itself says of time limits comes before any policy.
    s.kubectl(&["delete", "trafficpolicies", "--all"])?.ok()?;
    let mut routes = routes();
    routes[0]["spec"]["rules"][0]["timeouts"] = json!({"request": "300ms"});
    s.apply(&routes[..1])?.ok()?;
    s.policy_of("of-rule", rule, json!({"timeouts": {"request": "3s"}}))?.ok()?;
    s.policy_of("of-service", json!([{"kind": "Service", "name": "echo"}]), json!({"timeouts": {"request": "1s"}}))?
        .ok()?;
    for (url, least, most) in [(&*named, 0.3, 0.95), (ECHO, 1.0, 2.9)] {
        s.expect(CALLER, &format!("-H 'x-do: delay=5000' {url}"), |answer| {
            answer.is_error(504, "timeout")?;
            answer.took(least, most)
        })?;
    }
    Ok(())
}

pub(super) fn status() -> Result<()> {
    let s = Stage::clear()?;
    let says = |policy: &str, status: &str, reason: &str, part: &str| {
        eventually(SOON, &format!("{policy} is {status}, {reason}"), || {
            let condition = s.accepted(policy)?;
            ensure!(condition["status"] == status && condition["reason"] == reason, "{condition}");
            ensure!(condition["message"].as_str().is_some_and(|message| message.contains(part)), "{condition}");
            Ok(())
        })
    };
    let service = |name: &str| json!([{"kind": "Service", "name": name}]);
    s.policy_of("a-first", service("echo"), json!({"balance": {"algorithm": "Random"}, "retry": {}}))?.ok()?;
    says("a-first", "True", "Accepted", "")?;
    s.policy_of("b-missing", service("nobody"), json!({"retry": {}}))?.ok()?;
    says("b-missing", "False", "TargetNotFound", "nobody")?;
    s.policy_of("c-conflict", service("echo"), json!({"retry": {"attempts": 5}}))?.ok()?;
    says("c-conflict", "False", "Conflicted", "a-first")?;
    // One that is more specific is in no conflict.
    s.policy_of("d-port", json!([{"kind": "Service", "name": "echo", "sectionName": "http"}]), json!({"retry": {}}))?
        .ok()?;
    says("d-port", "True", "Accepted", "")?;
    let section = json!([{"kind": "Service", "name": "echo", "sectionName": "ftp"}]);
    s.policy_of("e-section", section, json!({"retry": {}}))?.ok()?;
    says("e-section", "False", "TargetNotFound", "ftp")?;
    let wrong = json!({"faults": [{"when": {"path": {"type": "RegularExpression", "value": "/("}}, "abort": {}}]});
    // Not even taken while control is there to judge it.
    s.policy_of("f-wrong", service("echo-a"), wrong)?.exits(1)?.complains("spec.faults[0].when.path.value")?;
    s.kubectl(&["delete", "trafficpolicy", "a-first"])?.ok()?;
    says("c-conflict", "True", "Accepted", "")?;
    s.kubectl(&["get", "trafficpolicies"])?.ok()?.says("False")?;
    Ok(())
}

pub(super) fn mistakes() -> Result<()> {
    let s = Stage::clear()?;
    let echo = || json!([{"kind": "Service", "name": "echo"}]);
    for (targets, says, complaint) in [
        (json!([]), json!({"retry": {}}), "spec.targetRefs"),
        (json!([{"kind": "Pod", "name": "a"}]), json!({"retry": {}}), "spec.targetRefs[0].kind"),
        (json!([{"kind": "HTTPRoute", "name": "a"}]), json!({"breaker": {}}), "target the Service, not a route"),
        (
            json!([{"kind": "HTTPRoute", "name": "a"}]),
            json!({"rateLimits": [{"requests": 1, "shared": true}]}),
            "only the proxies of a Service share a rate limit",
        ),
        (echo(), json!({"balance": {"algorithm": "Best"}}), "spec.balance.algorithm"),
        (echo(), json!({"balance": {"algorithm": "Random", "hash": {}}}), "only RingHash and Maglev hash a key"),
        (echo(), json!({"rateLimits": [{"requests": 0}]}), "spec.rateLimits[0].requests"),
        (echo(), json!({"rateLimits": [{"requests": 1, "interval": "0s"}]}), "longer than 0s"),
        (echo(), json!({"faults": [{"percent": 101}]}), "spec.faults[0].percent"),
        (echo(), json!({"faults": [{"reset": true, "abort": {}}]}), "either answered or reset"),
        (echo(), json!({"retry": {"codes": [200]}}), "spec.retry.codes[0]"),
        (echo(), json!({"retry": {"grpcCodes": [17]}}), "spec.retry.grpcCodes[0]"),
        (echo(), json!({"timeouts": {"request": "soon"}}), "spec.timeouts.request"),
    ] {
        let shown = format!("{targets} {says}");
        s.policy_of("wrong", targets, says)?.exits(1)?.complains(complaint).map_err(|error| error.context(shown))?;
    }
    Ok(())
}
