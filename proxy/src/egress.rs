//! Egress policies at work: asks the decider about each request and each connection that leaves the cluster, keeps the
//! account of what came of it, and names the hosts outside that traffic is counted under.

pub mod hosts;

use crate::golden::Scope;
use crate::headers::authority;
use crate::ledger::{Ledger, Outcome};
use crate::request::Client;
use crate::state::Known;
use http::Request;
use http::header;
use mesh_api::egress::{Decision, EgressProtocol, Leaving, Seen, Why, decide};
use mesh_api::golden::{Direction, TlsStatus};
use mesh_api::{Egress, EgressDefault};
use std::sync::Arc;
use std::time::Instant;

/// An account of decisions by what is spoken.
pub fn ledger() -> Ledger {
    Ledger::new(EgressProtocol::ALL.map(EgressProtocol::word))
}

/// Why a request that leaves the cluster is refused, for the caller; `None` if it is let out, or does not leave.
pub fn refused<B>(client: &Client, known: &Known, request: &Request<B>) -> Option<String> {
    if !is_external(client, known) {
        return None;
    }
    let egress = client.proxy.state.glance_egress();
    if egress.is_open() || !leaves(&egress, client, known) {
        return None;
    }
    let host = host(request);
    let decision = settle(client, &egress, Seen::Http(host.as_deref()));
    (!decision.allowed).then(|| decision.why.to_string())
}

/// True if a connection that leaves the cluster, and nobody looks into, is refused. `server_name` is what it asks for, if
/// it is TLS.
pub fn refused_connection(client: &Client, known: &Known, server_name: Option<&str>) -> bool {
    if !is_external(client, known) || client.refusal.is_some() {
        return false;
    }
    let egress = client.proxy.state.glance_egress();
    if egress.is_open() || !leaves(&egress, client, known) {
        return false;
    }
    let seen = if client.tls == TlsStatus::Passthrough { Seen::Tls(server_name) } else { Seen::Tcp };
    !settle(client, &egress, seen).allowed
}

/// True if a connection that nobody has said a word on would be refused; nothing is counted.
pub fn would_refuse(client: &Client, known: &Known) -> bool {
    if !is_external(client, known) || client.refusal.is_some() {
        return false;
    }
    let egress = client.proxy.state.glance_egress();
    leaves(&egress, client, known) && !decide(&egress, &leaving(client, Seen::Tcp)).allowed
}

/// The name under which a request that leaves the cluster is counted, if it names a host.
pub fn scope_of_request<B>(client: &Client, known: &Known, request: &Request<B>) -> Option<Arc<Scope>> {
    if !is_external(client, known) {
        return None;
    }
    scope(client, host(request)?.as_str())
}

/// The name under which a connection that leaves the cluster is counted, if it is TLS and names a host.
pub fn scope_of_connection(client: &Client, known: &Known, server_name: Option<&str>) -> Option<Arc<Scope>> {
    let name = server_name.filter(|name| is_external(client, known) && !name.is_empty())?;
    scope(client, name)
}

fn scope(client: &Client, host: &str) -> Option<Arc<Scope>> {
    let port = client.target.address.port();
    Some(client.proxy.hosts.scope(&client.proxy.golden, host, port, Instant::now()))
}

fn is_external(client: &Client, known: &Known) -> bool {
    known.destination.external && client.direction == Direction::Outbound
}

/// True if the destination lies outside the cluster. Where control has not said, networks decide.
fn leaves(egress: &Egress, client: &Client, known: &Known) -> bool {
    let ip = client.target.address.ip();
    !known.destination.cluster && (known.certain || !egress.cluster_networks.iter().any(|network| network.contains(ip)))
}

/// The one host that a request names. A target and a `Host` that differ name none.
fn host<B>(request: &Request<B>) -> Option<String> {
    let named = request.headers().get(header::HOST).map(|host| authority(host).map(|a| a.host().to_owned()));
    let target = request.uri().authority().map(|authority| authority.host());
    match (target, named) {
        (None, named) => named.flatten(),
        (Some(target), None) => Some(target.to_owned()),
        (Some(target), Some(named)) => named.filter(|named| named.eq_ignore_ascii_case(target)),
    }
}

fn leaving<'a>(client: &Client, seen: Seen<'a>) -> Leaving<'a> {
    let address = client.target.address;
    Leaving { address: Some(address.ip()), port: address.port(), seen }
}

/// Decides, and keeps account of it.
fn settle<'a>(client: &Client, egress: &'a Egress, seen: Seen<'_>) -> Decision<'a> {
    let leaving = leaving(client, seen);
    let decision = decide(egress, &leaving);
    let (ledger, protocol) = (&client.proxy.egress, seen.protocol().word());
    let policy = decision.why.policy();
    ledger.count(if decision.allowed { Outcome::Allow } else { Outcome::Deny }, protocol, policy);
    if !decision.allowed {
        log(ledger, Outcome::Deny, policy, &leaving);
    }
    for rule in &decision.audits {
        ledger.count(Outcome::Audit, protocol, &rule.policy);
        log(ledger, Outcome::Audit, &rule.policy, &leaving);
    }
    if matches!(decision.why, Why::Default(EgressDefault::Audit, _)) {
        ledger.count(Outcome::Audit, protocol, policy);
        log(ledger, Outcome::Audit, policy, &leaving);
    }
    decision
}

/// Says it once a minute for a policy, with this one as the sample.
fn log(ledger: &Ledger, outcome: Outcome, policy: &str, sample: &Leaving<'_>) {
    let Some(before) = ledger.is_due(format!("{outcome:?} {policy}"), Instant::now()) else { return };
    match outcome {
        Outcome::Audit => tracing::info!(policy, %sample, before, "audited by an egress policy"),
        _ => tracing::warn!(policy, %sample, before, "denied by an egress policy"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_one_host_or_none() {
        let check = |uri: &str, field: Option<&str>, expect: Option<&str>| {
            let mut request = Request::get(uri);
            if let Some(field) = field {
                request = request.header("host", field);
            }
            assert_eq!(host(&request.body(()).unwrap()).as_deref(), expect, "{uri} {field:?}");
        };
        check("/", Some("api.example.com"), Some("api.example.com"));
        check("/", Some("api.example.com:8080"), Some("api.example.com"));
        check("/", None, None);
        check("/", Some("user@api.example.com"), None);
        check("/", Some("not a host"), None);
        check("http://api.example.com/", None, Some("api.example.com"));
        check("http://api.example.com/", Some("API.example.com:80"), Some("API.example.com"));
        check("http://api.example.com/", Some("other.example.com"), None);
        check("http://[2001:db8::1]:80/", None, Some("[2001:db8::1]"));
    }
}
