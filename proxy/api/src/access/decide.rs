//! The decider: who is let in, and why. Pure; takes what is known of the caller and of what it asks for.

use super::path::Readings;
use super::{Access, AccessDefault, AccessRule, Action, HeaderMatch, Operation, ProbeBy, Source, Token, like};
use crate::SpiffeId;
use std::cell::OnceCell;
use std::net::IpAddr;

/// Path of the call that a gRPC health probe makes.
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller<'a> {
    /// Where it calls from.
    pub address: IpAddr,
    /// The identity it has proved.
    pub identity: Option<&'a SpiffeId>,
}

impl<'a> Caller<'a> {
    /// A caller at an address, with the identity it has proved.
    pub fn new(address: IpAddr, identity: Option<&'a SpiffeId>) -> Self {
        Self { address: address.to_canonical(), identity }
    }
}

impl std::fmt::Display for Caller<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.identity {
            Some(identity) => identity.fmt(f),
            None => write!(f, "{} without identity", self.address),
        }
    }
}

/// What a caller asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The application's port.
    pub port: u16,
    /// What comes over the connection.
    pub what: What<'a>,
}

/// What comes over a connection.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// A request.
    Request(Head<'a>),
    /// Bytes nobody looks into.
    Opaque,
    /// The application's own TLS.
    Tls,
    /// Nothing: the client closed its side without a word.
    Silence,
}

/// The head of a request.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// Method.
    pub method: &'a str,
    /// Path as it came, without the query.
    pub path: &'a str,
    /// True for a gRPC call.
    pub grpc: bool,
    /// Asks whether a line of the named header field is as wanted.
    pub header: &'a AnyLine<'a>,
    /// What else can be found out about the request.
    pub evidence: &'a dyn Evidence,
}

/// What is found out about a request once a rule wants to know.
pub trait Evidence {
    /// True if it is a request of this one of [`Access::routes`].
    fn is_of_route(&self, route: usize) -> bool;
    /// The token it carries, judged by this one of [`Access::jwts`].
    fn token(&self, jwt: usize) -> Token<'_>;
}

/// Of a request nobody sends: it is of every route, and carries no token.
#[derive(Clone, Copy, Debug)]
pub struct NoEvidence;

impl Evidence for NoEvidence {
    fn is_of_route(&self, _: usize) -> bool {
        true
    }

    fn token(&self, _: usize) -> Token<'_> {
        Token::Missing
    }
}

/// Calls the judge for the lines of the named field until it likes one; false if it likes none.
pub type AnyLine<'a> = dyn Fn(&str, &dyn Fn(&[u8]) -> bool) -> bool + 'a;

impl std::fmt::Debug for Head<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// Whether a caller is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// True if it is.
    pub allowed: bool,
    /// What decided.
    pub why: Why<'a>,
    /// `Audit` rules that match.
    pub audits: Vec<&'a AccessRule>,
    /// Rules that would let the caller in if the service they name does; none if it is let in or refused anyway.
    pub asks: Vec<&'a AccessRule>,
    /// What kept a rule from letting the caller in, if it was nothing but the token.
    pub unproven: Option<Unproven>,
}

/// What is wrong with a caller's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// There is none.
    Missing,
    /// It does not count, for this reason.
    Invalid(&'static str),
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why<'a> {
    /// A rule matches.
    Rule(&'a AccessRule),
    /// This policy, among others perhaps, says whom it lets in, and none lets this caller in.
    NotAllowed(&'a AccessRule),
    /// It is a health probe of the kubelet.
    Probe,
    /// No rule says anything.
    Default(AccessDefault),
}

impl<'a> Why<'a> {
    /// The policy, as `namespace/name`, or `probe` or `default`, which are no names of policies.
    pub fn policy(self) -> &'a str {
        match self {
            Self::Rule(rule) | Self::NotAllowed(rule) => &rule.policy,
            Self::Probe => "probe",
            Self::Default(_) => "default",
        }
    }
}

impl std::fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rule(rule) if rule.action == Action::Deny => write!(f, "AccessPolicy {} denies it", rule.policy),
            Self::Rule(rule) => write!(f, "AccessPolicy {} allows it", rule.policy),
            Self::NotAllowed(rule) => {
                write!(f, "AccessPolicy {} says who may call, and no policy allows this caller", rule.policy)
            }
            Self::Probe => f.write_str("it is a health probe of the pod"),
            Self::Default(default) => write!(f, "no policy says anything, and the default is `{}`", default.word()),
        }
    }
}

/// Decides about a caller and what it asks for.
pub fn decide<'a>(access: &'a Access, caller: &Caller<'_>, asked: &Asked<'_>) -> Decision<'a> {
    if access.is_open() {
        let why = Why::Default(AccessDefault::All);
        return Decision { allowed: true, why, audits: Vec::new(), asks: Vec::new(), unproven: None };
    }
    let readings = match &asked.what {
        What::Request(head) => Some(Readings::of(head.path)),
        _ => None,
    };
    let question = Question { caller, uri: OnceCell::new(), asked, readings };
    let (mut allows, mut denies, mut selects, mut audits) = (None, None, None, Vec::new());
    let (mut unproven, mut asks) = (None, Vec::new());
    for rule in &access.rules {
        if (!rule.selects.is_empty() && !rule.selects.contains(&asked.port)) || !question.is_of_route(rule) {
            continue;
        }
        if rule.action == Action::Allow {
            selects = selects.or(Some(rule));
        }
        if question.is_about(rule) {
            match rule.action {
                Action::Allow if allows.is_some() => {}
                Action::Allow => match question.proves(rule) {
                    Ok(true) if rule.external.is_none() => allows = Some(rule),
                    Ok(true) => asks.push(rule),
                    Ok(false) => {}
                    // What somebody has shown in vain says more than that nothing was shown.
                    Err(why) if unproven != Some(Unproven::Missing) => unproven = unproven.or(Some(why)),
                    Err(why) => unproven = Some(why),
                },
                Action::Deny => denies = denies.or(Some(rule)),
                Action::Audit => audits.push(rule),
            }
        }
    }
    let (allowed, why) = if access.probes.iter().any(|probe| question.is_probe(probe.port, &probe.by)) {
        (true, Why::Probe)
    } else if let Some(rule) = denies {
        (false, Why::Rule(rule))
    } else if let Some(rule) = allows {
        (true, Why::Rule(rule))
    } else if let Some(rule) = selects {
        (false, Why::NotAllowed(rule))
    } else {
        (by_default(access, caller), Why::Default(access.default))
    };
    let unproven = unproven.filter(|_| matches!(why, Why::NotAllowed(_)));
    if !matches!(why, Why::NotAllowed(_)) || question.readings.is_none() {
        asks.clear();
    }
    let unproven = unproven.filter(|_| asks.is_empty());
    Decision { allowed, why, audits, asks, unproven }
}

fn by_default(access: &Access, caller: &Caller<'_>) -> bool {
    match access.default {
        AccessDefault::All | AccessDefault::Audit => true,
        AccessDefault::Authenticated => caller.identity.is_some(),
        AccessDefault::Cluster => {
            caller.identity.is_some() || access.cluster_networks.iter().any(|network| network.contains(caller.address))
        }
        AccessDefault::Deny => false,
    }
}

/// A caller and what it asks for, read once.
struct Question<'q, 'a> {
    caller: &'q Caller<'q>,
    /// Its identity as it is written, once a rule wants to know.
    uri: OnceCell<String>,
    asked: &'q Asked<'a>,
    readings: Option<Readings<'a>>,
}

impl Question<'_, '_> {
    /// True unless the rule is about a route the request is not of. What nobody sees may be of any.
    fn is_of_route(&self, rule: &AccessRule) -> bool {
        match (rule.route, &self.asked.what) {
            (Some(route), What::Request(head)) => head.evidence.is_of_route(route),
            _ => true,
        }
    }

    /// True if the caller's token, where the rule asks for one, says what it must.
    fn proves(&self, rule: &AccessRule) -> Result<bool, Unproven> {
        let Some(jwt) = rule.jwt else { return Ok(true) };
        let What::Request(head) = &self.asked.what else { return Err(Unproven::Missing) };
        match head.evidence.token(jwt) {
            Token::Missing => Err(Unproven::Missing),
            Token::Invalid(why) => Err(Unproven::Invalid(why)),
            Token::Valid(claims) => Ok(rule.from.is_empty()
                || rule
                    .from
                    .iter()
                    .any(|source| self.comes_from(source) && source.claims.iter().all(|claim| claim.holds(claims)))),
        }
    }

    fn is_about(&self, rule: &AccessRule) -> bool {
        if rule.route.is_some() && self.readings.is_none() && rule.action != Action::Deny {
            return false;
        }
        let from = rule.from.is_empty() || rule.from.iter().any(|source| self.comes_from(source));
        from && (rule.to.is_empty() || rule.to.iter().any(|to| self.goes_to(to, rule.action)))
    }

    fn comes_from(&self, source: &Source) -> bool {
        let Source { identities, service_accounts, namespaces, networks, unauthenticated, claims: _ } = source;
        let proves = |holds: &dyn Fn(&SpiffeId) -> bool| self.caller.identity.is_some_and(holds);
        let uri = |id: &SpiffeId| self.uri.get_or_init(|| id.to_string()).as_bytes();
        (!unauthenticated || self.caller.identity.is_none())
            && (identities.is_empty() || proves(&|id| identities.iter().any(|one| like(one, uri(id)))))
            && (service_accounts.is_empty() || proves(&|id| service_accounts.iter().any(|one| is_account(one, id))))
            && (namespaces.is_empty() || proves(&|id| namespaces.contains(&id.namespace)))
            && (networks.is_empty() || networks.iter().any(|network| network.contains(self.caller.address)))
    }

    /// What cannot be seen holds in a `Deny` rule and in no other.
    fn goes_to(&self, to: &Operation, action: Action) -> bool {
        let Operation { ports, methods, paths, headers, grpc_methods } = to;
        if !ports.is_empty() && !ports.contains(&self.asked.port) {
            return false;
        }
        if methods.is_empty() && paths.is_empty() && headers.is_empty() && grpc_methods.is_empty() {
            return true;
        }
        let (What::Request(head), Some(readings)) = (&self.asked.what, &self.readings) else {
            return action == Action::Deny;
        };
        let strict = action == Action::Deny;
        (methods.is_empty() || methods.iter().any(|method| method == head.method))
            && (paths.is_empty() || paths.iter().any(|path| readings.are(strict, |read| is_path(path, read))))
            && (grpc_methods.is_empty()
                || ((head.grpc || strict)
                    && grpc_methods.iter().any(|method| readings.are(strict, |read| is_grpc_method(method, read)))))
            && headers.iter().all(|header| has(head, header))
    }

    /// Probes come from outside the mesh, and ask for nothing but what the pod declares.
    fn is_probe(&self, port: u16, by: &ProbeBy) -> bool {
        if self.caller.identity.is_some() || self.asked.port != port {
            return false;
        }
        match (&self.asked.what, by) {
            (What::Request(head), ProbeBy::Http(path)) => head.method == "GET" && head.path == path,
            (What::Request(head), ProbeBy::Grpc) => head.grpc && head.path == GRPC_HEALTH,
            (What::Tls, ProbeBy::Https(nodes)) => nodes.contains(&self.caller.address),
            (What::Silence, ProbeBy::Tcp) => true,
            _ => false,
        }
    }
}

fn is_account(name: &str, id: &SpiffeId) -> bool {
    name.split_once('/').is_some_and(|(namespace, name)| namespace == id.namespace && name == id.service_account)
}

fn is_path(pattern: &str, path: &[u8]) -> bool {
    match pattern.strip_suffix("/*") {
        Some(stem) if !stem.contains('*') => match path.strip_prefix(stem.as_bytes()) {
            Some(rest) => rest.first() == Some(&b'/') || (rest.is_empty() && !stem.is_empty()),
            None => false,
        },
        _ => like(pattern, path),
    }
}

fn is_grpc_method(pattern: &str, path: &[u8]) -> bool {
    let Some(called) = path.strip_prefix(b"/") else { return false };
    if pattern.contains('/') || pattern.contains('*') {
        return like(pattern, called);
    }
    called.strip_prefix(pattern.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn has(head: &Head<'_>, HeaderMatch { name, values }: &HeaderMatch) -> bool {
    (head.header)(name, &|line| values.is_empty() || values.iter().any(|value| like(value, line)))
}
