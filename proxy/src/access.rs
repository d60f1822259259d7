//! Access policies at work: asks the decider about each arriving request, and about each connection nobody looks into,
//! and keeps the account of what came of it.

use crate::body::Received;
use crate::limits;
use crate::request::Client;
use http::Request;
use http::header;
use mesh_api::access::{Access, AccessDefault, Asked, Caller, Decision, Head, What, Why, decide};
use mesh_api::golden::{Direction, TlsStatus};
use parking_lot::Mutex;
use std::collections::HashMap;
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
    let ledger = &client.proxy.access;
    let policy = decision.why.policy();
    ledger.count(if decision.allowed { Outcome::Allow } else { Outcome::Deny }, client.tls, policy);
    if !decision.allowed {
        ledger.log(Outcome::Deny, policy, &caller, &asked);
    }
    for rule in &decision.audits {
        ledger.count(Outcome::Audit, client.tls, &rule.policy);
        ledger.log(Outcome::Audit, &rule.policy, &caller, &asked);
    }
    if decision.why == Why::Default(AccessDefault::Audit) {
        ledger.count(Outcome::Audit, client.tls, policy);
        ledger.log(Outcome::Audit, policy, &caller, &asked);
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

/// What came of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Allow,
    Deny,
    Audit,
}

const OUTCOMES: [(Outcome, &str); 3] = [(Outcome::Allow, "allow"), (Outcome::Deny, "deny"), (Outcome::Audit, "audit")];
const PROTECTIONS: [(TlsStatus, &str); 3] =
    [(TlsStatus::Mutual, "mutual"), (TlsStatus::Passthrough, "passthrough"), (TlsStatus::Plain, "none")];

/// Decisions by policy, by outcome and protection, and what was said of them in the log.
#[derive(Debug, Default)]
pub struct Ledger {
    counts: Mutex<HashMap<String, [[u64; 3]; 3]>>,
    said: Mutex<HashMap<String, Said>>,
}

/// A line in the log.
#[derive(Clone, Copy, Debug)]
struct Said {
    at: Instant,
    /// How many there were since that it did not speak of.
    since: u64,
}

impl Ledger {
    /// Every count above zero: decision, protection, policy.
    pub fn counts(&self) -> Vec<(&'static str, &'static str, String, u64)> {
        let counts = self.counts.lock();
        let mut all = Vec::new();
        for (policy, by_outcome) in counts.iter() {
            for ((_, decision), by_tls) in OUTCOMES.iter().zip(by_outcome) {
                for ((_, tls), n) in PROTECTIONS.iter().zip(by_tls).filter(|(_, n)| **n > 0) {
                    all.push((*decision, *tls, policy.clone(), *n));
                }
            }
        }
        all.sort_unstable();
        all
    }

    fn count(&self, outcome: Outcome, tls: TlsStatus, policy: &str) {
        let tls = PROTECTIONS.iter().position(|(known, _)| *known == tls).unwrap_or(PROTECTIONS.len() - 1);
        let mut counts = self.counts.lock();
        let known = counts.contains_key(policy);
        let policy = if known || counts.len() < limits::ACCESS_POLICIES { policy } else { "other" };
        if !counts.contains_key(policy) {
            counts.insert(policy.to_owned(), Default::default());
        }
        if let Some(by_outcome) = counts.get_mut(policy) {
            by_outcome[outcome as usize][tls] += 1;
        }
    }

    /// Says it once a minute for a policy and a caller, with this one as the sample.
    fn log(&self, outcome: Outcome, policy: &str, caller: &Caller<'_>, asked: &Asked<'_>) {
        let Some(before) = self.is_due(format!("{outcome:?} {policy} {caller}"), Instant::now()) else { return };
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

    /// If it is time for a line: how many there were since the last one without one.
    fn is_due(&self, key: String, now: Instant) -> Option<u64> {
        let mut said = self.said.lock();
        if said.len() >= limits::ACCESS_LOG_CALLERS && !said.contains_key(&key) {
            said.retain(|_, said| now.saturating_duration_since(said.at) < limits::ACCESS_LOG_EVERY);
        }
        let full = said.len() >= limits::ACCESS_LOG_CALLERS && !said.contains_key(&key);
        let key = if full { "others".to_owned() } else { key };
        match said.get_mut(&key) {
            Some(line) if now.saturating_duration_since(line.at) < limits::ACCESS_LOG_EVERY => {
                line.since += 1;
                None
            }
            Some(line) => {
                let since = line.since;
                *line = Said { at: now, since: 0 };
                Some(since)
            }
            None => {
                said.insert(key, Said { at: now, since: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_counted_by_policy_up_to_a_limit() {
        let ledger = Ledger::default();
        ledger.count(Outcome::Deny, TlsStatus::Mutual, "shop/a");
        ledger.count(Outcome::Deny, TlsStatus::Mutual, "shop/a");
        ledger.count(Outcome::Audit, TlsStatus::Plain, "shop/a");
        let expect = [("audit", "none", "shop/a".to_owned(), 1), ("deny", "mutual", "shop/a".to_owned(), 2)];
        assert_eq!(ledger.counts(), expect);
        for n in 0..limits::ACCESS_POLICIES * 2 {
            ledger.count(Outcome::Allow, TlsStatus::Plain, &format!("shop/{n}"));
        }
        let counts = ledger.counts();
        let other = counts.iter().find(|(_, _, policy, _)| policy == "other").unwrap();
        assert_eq!(other.3 as usize, limits::ACCESS_POLICIES + 1);
        assert!(counts.len() <= limits::ACCESS_POLICIES + 3);
    }

    #[test]
    fn a_line_a_minute_is_said_for_each_caller() {
        let ledger = Ledger::default();
        let start = Instant::now();
        let due =
            |key: &str, after_s: u64| ledger.is_due(key.to_owned(), start + std::time::Duration::from_secs(after_s));
        assert_eq!(due("a", 0), Some(0));
        assert_eq!(due("a", 1), None);
        assert_eq!(due("b", 1), Some(0));
        assert_eq!(due("a", 59), None);
        assert_eq!(due("a", 60), Some(2));
        for n in 0..limits::ACCESS_LOG_CALLERS * 2 {
            due(&n.to_string(), 61);
        }
        assert_eq!(due("one more", 62), None);
        assert!(ledger.said.lock().len() <= limits::ACCESS_LOG_CALLERS + 1);
    }
}
