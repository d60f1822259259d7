//! Access policies at work: asks the decider about each arriving request, and about each connection nobody looks into,
//! and keeps the account of what came of it.

pub mod evidence;
pub mod external;

use self::external::Question;
use crate::body::Received;
use crate::ledger::{Ledger, Outcome};
use crate::proxy::unix_s;
use crate::request::Client;
use crate::route::matcher::Asked;
use http::header;
use http::{HeaderMap, Request};
use mesh_api::MeshError;
use mesh_api::access::{self, Access, AccessDefault, Caller, Decision, Head, Unproven, What, Why, decide};
use mesh_api::golden::{Direction, TlsStatus};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

/// What becomes of an arriving request.
#[derive(Debug)]
pub enum Verdict {
    /// It is let in.
    In,
    /// It is refused with an error, and why, for the caller.
    Refused(MeshError, String),
    /// It is let in if a service lets it in.
    Ask(Box<Open>),
}

/// A request that services are asked about.
#[derive(Debug)]
pub struct Open {
    /// Its head as the caller sent it.
    head: Request<()>,
    /// Policies, and whom they ask.
    questions: Vec<(String, Arc<Question>)>,
    /// Why it is refused if none lets it in.
    why: String,
}

/// Asks services whether a request is let in, one after the other until one lets it in; its body waits meanwhile. What they
/// say is put into the request. The error it is refused with, and why, if it is.
pub async fn ask(client: &Client, open: Open, headers: &mut HeaderMap) -> Option<(MeshError, String)> {
    let Open { head, questions, why } = open;
    let ledger = &client.proxy.access;
    let mut failed = None;
    for (policy, question) in questions {
        let (outcome, refused) = match question.ask(client, &head).await {
            external::Answer::Yes(said) => {
                question.add(&said, headers);
                (Outcome::Allow, false)
            }
            external::Answer::No(status) => {
                let caller = caller(client);
                if let Some(before) = ledger.is_due(format!("Deny {policy} {caller}"), Instant::now()) {
                    let sample = format!("{} {}", head.method(), head.uri().path());
                    tracing::warn!(policy, %caller, sample, before, %status, "denied by a service that an access policy asks");
                }
                (Outcome::Deny, true)
            }
            external::Answer::Nothing(why) => {
                if ledger.is_due(format!("external {policy}"), Instant::now()).is_some() {
                    tracing::warn!(
                        policy,
                        why,
                        open = question.fails_open(),
                        "a service gives no answer about requests"
                    );
                }
                let open = question.fails_open();
                failed = failed.or((!open).then_some(why));
                (if open { Outcome::Allow } else { Outcome::Deny }, !open)
            }
        };
        ledger.count(outcome, protection(client.tls), &policy);
        if !refused {
            return None;
        }
    }
    Some(match failed {
        Some(why) => (MeshError::ExternalAuthFailed, why.to_owned()),
        None => (MeshError::AccessDenied, why),
    })
}

/// Decides about an arriving request. What only services may say of it is taken out of the caller's words.
pub fn judge(client: &Client, request: &mut Request<Received>, grpc: bool) -> Verdict {
    if client.direction != Direction::Inbound {
        return Verdict::In;
    }
    let inbound = client.proxy.state.glance_inbound();
    if inbound.access.is_open() {
        return Verdict::In;
    }
    let decision = {
        let header = |name: &str, judge: &dyn Fn(&[u8]) -> bool| {
            let authority = request.uri().authority().filter(|_| name.eq_ignore_ascii_case(header::HOST.as_str()));
            request.headers().get_all(name).iter().any(|line| judge(line.as_bytes()))
                || authority.is_some_and(|authority| judge(authority.as_str().as_bytes()))
        };
        let (method, path) = (request.method().as_str(), request.uri().path());
        let evidence = inbound.checks.of(Asked::of(request), grpc, unix_s());
        let head = Head { method, path, grpc, header: &header, evidence: &evidence };
        settle(client, &inbound.access, What::Request(head))
    };
    if decision.allowed {
        inbound.checks.silence(request.headers_mut());
        return Verdict::In;
    }
    let why = told(client, decision.why);
    let mut questions: Vec<(String, Arc<Question>)> = Vec::new();
    for rule in &decision.asks {
        let question = rule.external.and_then(|at| inbound.checks.questions.get(at));
        // Several rules of a policy are one question.
        if let Some(question) = question.filter(|new| questions.iter().all(|(_, known)| !Arc::ptr_eq(known, new))) {
            questions.push((rule.policy.clone(), question.clone()));
        }
    }
    match decision.unproven {
        _ if !questions.is_empty() => {
            let head = external::head_of(request);
            inbound.checks.silence(request.headers_mut());
            Verdict::Ask(Box::new(Open { head, questions, why }))
        }
        Some(Unproven::Missing) => Verdict::Refused(MeshError::JwtMissing, String::new()),
        Some(Unproven::Invalid(why)) => Verdict::Refused(MeshError::JwtInvalid, why.to_owned()),
        None => Verdict::Refused(MeshError::AccessDenied, why),
    }
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

fn asked<'a>(client: &Client, what: What<'a>) -> access::Asked<'a> {
    access::Asked { port: client.target.address.port(), what }
}

/// Decides, and keeps account of it.
fn settle<'a>(client: &Client, access: &'a Access, what: What<'_>) -> Decision<'a> {
    let (caller, asked) = (caller(client), asked(client, what));
    let decision = decide(access, &caller, &asked);
    let (ledger, tls) = (&client.proxy.access, protection(client.tls));
    if !decision.asks.is_empty() {
        return decision; // counted once the answer is there
    }
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
fn log(ledger: &Ledger, outcome: Outcome, policy: &str, caller: &Caller<'_>, asked: &access::Asked<'_>) {
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
