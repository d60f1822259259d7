//! Access policies at work: asks the decider about each arriving request, and about each connection nobody looks into,
//! and keeps the account of what came of it.

use crate::body::Received;
use crate::ledger::{Ledger, Outcome};
use crate::request::Client;
use http::Request;
use http::header;
use mesh_api::access::{Access, AccessDefault, Asked, Caller, Decision, Head, What, Why, decide};
use mesh_api::golden::{Direction, TlsStatus};
use std::fmt::Display;
use std::time::Instant;

/// Why an arriving request is refused, for the caller; `None` if it is let in.
pub fn refused(client: &Client, request: &Request<Received>, grpc: bool) -> Option<String> {
    if client.direction != Direction::Inbound {
        return None;
    }
    let inbound = client.proxy.state.glance_inbound();
    if inbound.access.is_open() {
        return None;
    }
    let header = |name: &str, judge: &dyn Fn(&[u8]) -> bool| {
        let authority = request.uri().authority().filter(|_| name.eq_ignore_ascii_case(header::HOST.as_str()));
        request.headers().get_all(name).iter().any(|line| judge(line.as_bytes()))
            || authority.is_some_and(|authority| judge(authority.as_str().as_bytes()))
    };
    let (method, path) = (request.method().as_str(), request.uri().path());
    let head = Head { method, path, grpc, header: &header };
    let decision = settle(client, &inbound.access, What::Request(head));
    (!decision.allowed).then(|| told(client, decision.why))
}

/// True if an arriving connection that nobody looks into is refused.
pub fn refused_connection(client: &Client, what: What<'_>) -> bool {
    if client.direction != Direction::Inbound || client.refusal.is_some() {
        return false;
    }
    let inbound = client.proxy.state.glance_inbound();
    !inbound.access.is_open() && !settle(client, &inbound.access, what).allowed
}

/// As [`refused_connection`], but nobody has come in yet, and nothing is counted.
pub fn would_refuse(client: &Client, what: What<'_>) -> bool {
    if client.direction != Direction::Inbound || client.refusal.is_some() {
        return false;
    }
    let inbound = client.proxy.state.glance_inbound();
    !decide(&inbound.access, &caller(client), &asked(client, what)).allowed
}

fn caller(client: &Client) -> Caller<'_> {
    Caller::new(client.from.ip(), client.identity.as_ref())
}

fn asked<'a>(client: &Client, what: What<'a>) -> Asked<'a> {
    Asked { port: client.target.address.port(), what }
}

/// Decides, and keeps account of it.
fn settle<'a>(client: &Client, access: &'a Access, what: What<'_>) -> Decision<'a> {
    let (caller, asked) = (caller(client), asked(client, what));
    let decision = decide(access, &caller, &asked);
    let (ledger, tls) = (&client.proxy.access, protection(client.tls));
    let policy = decision.why.policy();
    ledger.count(if decision.allowed { Outcome::Allow } else { Outcome::Deny }, tls, policy);
    if !decision.allowed {
        log(ledger, Outcome::Deny, policy, &caller, &asked);
    }
    for rule in &decision.audits {
        ledger.count(Outcome::Audit, tls, &rule.policy);
        log(ledger, Outcome::Audit, &rule.policy, &caller, &asked);
    }
    if decision.why == Why::Default(AccessDefault::Audit) {
        ledger.count(Outcome::Audit, tls, policy);
        log(ledger, Outcome::Audit, policy, &caller, &asked);
    }
    decision
}

/// What a caller is told: who it is, and which policy decides only if it has proved to belong here.
fn told(client: &Client, why: Why<'_>) -> String {
    match client.identity {
        Some(_) => format!("{}: {why}", caller(client)),
        None => caller(client).to_string(),
    }
}

/// The label of a connection's protection.
fn protection(tls: TlsStatus) -> &'static str {
    match tls {
        TlsStatus::Mutual => "mutual",
        TlsStatus::Passthrough => "passthrough",
        TlsStatus::Plain => "none",
    }
}

/// An account of decisions by how connections are protected.
pub fn ledger() -> Ledger {
    Ledger::new([TlsStatus::Mutual, TlsStatus::Passthrough, TlsStatus::Plain].map(protection))
}

/// Says it once a minute for a policy and a caller, with this one as the sample.
fn log(ledger: &Ledger, outcome: Outcome, policy: &str, caller: &Caller<'_>, asked: &Asked<'_>) {
    let Some(before) = ledger.is_due(format!("{outcome:?} {policy} {caller}"), Instant::now()) else { return };
    let sample: &dyn Display = match &asked.what {
        What::Request(head) => &format!("{} {}", head.method, head.path),
        What::Opaque => &"a connection",
        What::Tls => &"a TLS connection",
        What::Silence => &"a connection without a word",
    };
    let port = asked.port;
    match outcome {
        Outcome::Audit => tracing::info!(policy, %caller, port, %sample, before, "audited by an access policy"),
        _ => tracing::warn!(policy, %caller, port, %sample, before, "denied by an access policy"),
    }
}
