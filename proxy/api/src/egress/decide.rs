//! The decider: what is let out, and why. Pure; takes what is known of the destination.

use super::{Egress, EgressDefault, EgressProtocol, EgressRule, Outside};
use crate::access::Action;
use std::net::IpAddr;

/// What is about to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving<'a> {
    /// The address it goes to; `None` if that is not known, as when nobody sends it.
    pub address: Option<IpAddr>,
    /// The port there.
    pub port: u16,
    /// What is seen of it.
    pub seen: Seen<'a>,
}

/// What is seen of traffic that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// A request to this host (without a port), if it names one and only one.
    Http(Option<&'a str>),
    /// The application's own TLS, with the server name it asks for.
    Tls(Option<&'a str>),
    /// A connection nobody looks into.
    Tcp,
}

impl<'a> Seen<'a> {
    /// The host that is named.
    pub fn host(self) -> Option<&'a str> {
        match self {
            Self::Http(host) | Self::Tls(host) => host.filter(|host| !host.is_empty()),
            Self::Tcp => None,
        }
    }

    /// What is spoken.
    pub fn protocol(self) -> EgressProtocol {
        match self {
            Self::Http(_) => EgressProtocol::Http,
            Self::Tls(_) => EgressProtocol::Tls,
            Self::Tcp => EgressProtocol::Tcp,
        }
    }
}

impl std::fmt::Display for Leaving<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { address, port, seen } = self;
        write!(f, "{} to ", seen.protocol().word())?;
        match (seen.host(), address) {
            (Some(host), Some(address)) => write!(f, "{host} at {address} port {port}"),
            (Some(host), None) => write!(f, "{host} port {port}"),
            (None, Some(address)) => write!(f, "{address} port {port}"),
            (None, None) => write!(f, "port {port}"),
        }
    }
}

/// Whether traffic is let out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// True if it is.
    pub allowed: bool,
    /// What decided.
    pub why: Why<'a>,
    /// `Audit` rules that match.
    pub audits: Vec<&'a EgressRule>,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why<'a> {
    /// A rule matches.
    Rule(&'a EgressRule),
    /// No rule does: the default, and the policy that asks for it.
    Default(EgressDefault, Option<&'a str>),
}

impl<'a> Why<'a> {
    /// The policy, as `namespace/name`, or `default`, which is no name of a policy.
    pub fn policy(self) -> &'a str {
        match self {
            Self::Rule(rule) => &rule.policy,
            Self::Default(_, by) => by.unwrap_or("default"),
        }
    }
}

impl std::fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rule(rule) if rule.action == Action::Deny => write!(f, "EgressPolicy {} denies it", rule.policy),
            Self::Rule(rule) => write!(f, "EgressPolicy {} allows it", rule.policy),
            Self::Default(default, Some(policy)) => {
                write!(f, "no rule is about it, and EgressPolicy {policy} makes the default `{}`", default.word())
            }
            Self::Default(default, None) => {
                write!(f, "no policy says anything, and the default is `{}`", default.word())
            }
        }
    }
}

/// Decides about what is about to leave.
pub fn decide<'a>(egress: &'a Egress, leaving: &Leaving<'_>) -> Decision<'a> {
    let (mut allows, mut denies, mut audits) = (None, None, Vec::new());
    for rule in egress.rules.iter().filter(|rule| is_about(&rule.to, rule.action, leaving)) {
        match rule.action {
            Action::Allow => allows = allows.or(Some(rule)),
            Action::Deny => denies = denies.or(Some(rule)),
            Action::Audit => audits.push(rule),
        }
    }
    let (allowed, why) = match (denies, allows) {
        (Some(rule), _) => (false, Why::Rule(rule)),
        (None, Some(rule)) => (true, Why::Rule(rule)),
        (None, None) => {
            let why = Why::Default(egress.default, egress.default_by.as_deref());
            (egress.default != EgressDefault::Deny, why)
        }
    };
    Decision { allowed, why, audits }
}

/// What cannot be seen holds in a `Deny` rule and in no other.
fn is_about(to: &Outside, action: Action, leaving: &Leaving<'_>) -> bool {
    let Outside { hosts, networks, ports, protocols } = to;
    let unseen = action == Action::Deny;
    let Leaving { address, port, seen } = leaving;
    (ports.is_empty() || ports.contains(port))
        && (protocols.is_empty() || protocols.contains(&seen.protocol()))
        && (networks.is_empty()
            || address.map_or(unseen, |address| networks.iter().any(|network| network.contains(address))))
        && (hosts.is_empty() || seen.host().map_or(unseen, |host| hosts.iter().any(|pattern| is_host(pattern, host))))
}

/// True if the pattern is about the host. Names are compared without regard to case and to a dot at their end
/// (RFC 4343, RFC 1034 section 3.1).
fn is_host(pattern: &str, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).as_bytes();
    let Some(suffix) = pattern.strip_prefix('*') else { return pattern.as_bytes().eq_ignore_ascii_case(host) };
    let Some(above) = host.len().checked_sub(suffix.len()).filter(|above| *above > 0) else { return false };
    host[above..].eq_ignore_ascii_case(suffix.as_bytes())
}
