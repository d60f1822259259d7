//! The routes of a destination, ready for use: what takes a request or connection, and what happens to it then.
//!
//! A table is made once, when it is learned, and checked then, so that nothing about it can fail on a request's way. It
//! does not know who answers: the services that rules lead to have numbers in it, and their endpoints stand beside it, so
//! that they change without it.

pub mod matcher;
pub mod text;

use crate::carriage::OfRule;
use crate::filter::Filters;
use crate::limits;
use crate::retry::Retries;
use crate::session;
use crate::timeout::or;
use crate::weight::Split;
use matcher::{Asked, Hit, Matcher, Miss};
use mesh_api::ServiceRef;
use mesh_api::route::{HttpMatch, RouteBackend, RuleName, SessionPersistence};
use mesh_api::{route, timeout::Timeouts};
use std::sync::Arc;
use text::Hosts;

/// The routes of a destination.
#[derive(Debug, Default)]
pub struct Table {
    rules: Vec<Rule>,
    http: Matcher,
    grpc: Matcher,
    tls: Vec<(usize, Hosts)>,
    tcp: Option<usize>,
    services: Vec<ServiceRef>,
}

/// What happens to the requests that a condition takes.
#[derive(Debug)]
pub struct Rule {
    /// What its requests are counted under.
    pub name: Arc<str>,
    /// What is done to all of them.
    pub filters: Filters,
    /// Where they go.
    pub shares: Vec<Share>,
    /// How they are divided.
    pub split: Split,
    /// Time limits, over those of the services they go to.
    pub timeouts: Timeouts,
    /// When they are sent again; `None`: as the services they go to say. `Some(None)`: never.
    pub retries: Option<Option<Arc<Retries>>>,
    /// Keeps those of a client at one endpoint.
    pub session: Option<SessionPersistence>,
    /// What a policy about it does, over what the services it goes to say.
    pub carriage: Option<Box<OfRule>>,
}

/// A share of a rule's requests.
#[derive(Debug)]
pub struct Share {
    /// Where they go, by the number of the service; `None`: nowhere.
    pub service: Option<usize>,
    /// What is done to them besides.
    pub filters: Filters,
}

/// What came of one condition for a request.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// The condition.
    pub condition: &'a HttpMatch,
    /// The first thing that the request does not meet.
    pub miss: Option<Miss<'a>>,
}

/// The services that rules lead to, each with its number.
#[derive(Debug, Default)]
pub struct Services(Vec<ServiceRef>);

impl Services {
    /// The number of a service.
    pub fn number(&mut self, service: &ServiceRef) -> usize {
        self.0.iter().position(|known| known == service).unwrap_or_else(|| {
            self.0.push(service.clone());
            self.0.len() - 1
        })
    }
}

impl Table {
    /// The table of some routes; an error names the field that cannot be used, and why.
    pub fn compile(routes: &route::Routes) -> Result<Self, String> {
        let route::Routes { rules, http, grpc, tls, tcp } = routes;
        if rules.len() > limits::ROUTE_RULES {
            return Err(format!("routes.rules: {} of them, more than {}", rules.len(), limits::ROUTE_RULES));
        }
        let matches = http.len() + grpc.len() + tls.len();
        if matches > limits::ROUTE_MATCHES {
            return Err(format!("routes: {matches} conditions, more than {}", limits::ROUTE_MATCHES));
        }
        let mut services = Services::default();
        let rule = |(at, rule)| {
            let name = name(rule, rules);
            Rule::compile(rule, name, &mut services).map_err(|why| format!("routes.rules[{at}] ({}): {why}", rule.name))
        };
        let compiled = rules.iter().enumerate().map(rule).collect::<Result<_, _>>()?;
        if services.0.len() > limits::ROUTE_SERVICES {
            return Err(format!("routes lead to {} services, more than {}", services.0.len(), limits::ROUTE_SERVICES));
        }
        for (at, of) in tls.iter().enumerate() {
            exists(of.rule, rules.len()).map_err(|why| format!("routes.tls[{at}].rule: {why}"))?;
        }
        tcp.map_or(Ok(()), |rule| exists(rule, rules.len())).map_err(|why| format!("routes.tcp: {why}"))?;
        Ok(Self {
            rules: compiled,
            http: Matcher::compile(http, rules.len()).map_err(|why| format!("routes.http{why}"))?,
            grpc: Matcher::compile(grpc, rules.len()).map_err(|why| format!("routes.grpc{why}"))?,
            tls: tls.iter().map(|of| (of.rule, Hosts::new(&of.hosts))).collect(),
            tcp: *tcp,
            services: services.0,
        })
    }

    /// The services that rules lead to, by their numbers.
    pub fn services(&self) -> &[ServiceRef] {
        &self.services
    }

    /// True if requests have to be taken by a rule.
    pub fn judges_requests(&self) -> bool {
        !self.http.is_empty() || !self.grpc.is_empty()
    }

    /// The rule that takes a request.
    pub fn take(&self, asked: &Asked<'_>, grpc: bool) -> Option<(&Rule, Hit)> {
        let matcher = if grpc && !self.grpc.is_empty() { &self.grpc } else { &self.http };
        let hit = matcher.find(asked)?;
        Some((self.rules.get(hit.rule)?, hit))
    }

    /// How each condition judges a request, in order of precedence: its number among those of `routes`, which are what
    /// this table was compiled from, and what is not met. The first that misses nothing takes the request.
    pub fn judge<'a>(&'a self, routes: &'a route::Routes, asked: &Asked<'_>, grpc: bool) -> Vec<Judged<'a>> {
        let (matcher, conditions) = match grpc && !self.grpc.is_empty() {
            true => (&self.grpc, &routes.grpc),
            false => (&self.http, &routes.http),
        };
        let judged = conditions.iter().zip(matcher.judge(asked));
        judged.map(|(condition, miss)| Judged { condition, miss }).collect()
    }

    /// A rule by its number.
    pub fn rule(&self, at: usize) -> Option<&Rule> {
        self.rules.get(at)
    }

    /// The rule that takes an opaque connection, which asks for `server_name` if it is TLS; `None`: such connections
    /// are not judged. `Some(None)`: none takes it.
    pub fn take_connection(&self, server_name: Option<&str>) -> Option<Option<&Rule>> {
        if let Some(name) = server_name
            && !self.tls.is_empty()
        {
            let taken = self.tls.iter().find(|(_, hosts)| hosts.have(name)).map(|(rule, _)| *rule);
            return Some(taken.or(self.tcp).and_then(|rule| self.rules.get(rule)));
        }
        self.tcp.map(|rule| self.rules.get(rule))
    }
}

fn exists(rule: usize, rules: usize) -> Result<(), String> {
    if rule < rules { Ok(()) } else { Err(format!("{rule} is none of the {rules} rules")) }
}

/// What a rule's requests are counted under: the route's name, and that of the rule if it has one or is one of several.
fn name(rule: &route::Rule, rules: &[route::Rule]) -> Arc<str> {
    let RuleName { kind, namespace, name, rule: part } = &rule.name;
    let siblings = rules.iter().map(|rule| &rule.name);
    let of_route = siblings.filter(|other| (&other.kind, &other.namespace, &other.name) == (kind, namespace, name));
    let numbered = part.bytes().all(|byte| byte.is_ascii_digit());
    let short = part.is_empty() || (numbered && of_route.take(2).count() < 2);
    let mut text = if short { name.clone() } else { format!("{name}/{part}") };
    if text.len() > limits::MAX_ROUTE_BYTES {
        let end = (0..=limits::MAX_ROUTE_BYTES - "…".len()).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
        text.push('…');
    }
    text.into()
}

impl Rule {
    fn compile(rule: &route::Rule, name: Arc<str>, services: &mut Services) -> Result<Self, String> {
        let route::Rule { name: _, filters, backends, timeouts, retry, session, policy } = rule;
        if backends.len() > limits::ROUTE_BACKENDS {
            return Err(format!("backends: {} of them, more than {}", backends.len(), limits::ROUTE_BACKENDS));
        }
        session.as_ref().map_or(Ok(()), session::validate)?;
        let carriage = policy.as_ref().map_or(Ok(None), |policy| OfRule::new(policy));
        let carriage = carriage.map_err(|why| format!("policy.{why}"))?;
        let shares = backends.iter().enumerate().map(|(at, RouteBackend { service, weight: _, filters })| {
            let filters = Filters::compile(filters, services).map_err(|why| format!("backends[{at}].{why}"))?;
            Ok(Share { service: service.as_ref().map(|service| services.number(service)), filters })
        });
        let shares = shares.collect::<Result<_, String>>()?;
        Ok(Self {
            name,
            filters: Filters::compile(filters, services)?,
            shares,
            split: Split::new(backends.iter().map(|backend| backend.weight)),
            timeouts: or(*timeouts, policy.as_ref().and_then(|policy| policy.timeouts).unwrap_or_default()),
            retries: retry.as_ref().or(policy.as_ref().and_then(|p| p.retry.as_ref())).map(Retries::new),
            session: session.clone(),
            carriage,
        })
    }

    /// The share that the next request falls into; `None` if there is none.
    pub fn share(&self, random: impl FnOnce() -> u64) -> Option<&Share> {
        let at = if self.split.is_single() { Some(0) } else { self.split.choose(random()) };
        self.shares.get(at?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::route::TlsMatch;

    fn rule(name: &str, part: &str) -> route::Rule {
        let name = RuleName {
            kind: "httproute".to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            rule: part.to_owned(),
        };
        route::Rule { name, ..route::Rule::default() }
    }

    #[test]
    fn names_are_as_short_as_they_can_be() {
        let routes = route::Routes {
            rules: vec![
                rule("web", "0"),
                rule("web", "canary"),
                rule("api", "0"),
                rule("old", ""),
                rule(&"x".repeat(300), "y"),
            ],
            ..route::Routes::default()
        };
        let table = Table::compile(&routes).unwrap();
        let names: Vec<&str> = table.rules.iter().map(|rule| &*rule.name).collect();
        assert_eq!(names[..4], ["web/0", "web/canary", "api", "old"]);
        assert!(names[4].len() <= limits::MAX_ROUTE_BYTES && names[4].ends_with('…'));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let refusal = |routes| Table::compile(&routes).unwrap_err();
        let rules = || vec![rule("web", "0")];
        let http = vec![HttpMatch { rule: 1, ..HttpMatch::default() }];
        let error = refusal(route::Routes { rules: rules(), http, ..route::Routes::default() });
        assert_eq!(error, "routes.http[0].rule: 1 is none of the 1 rules");
        let tls = vec![TlsMatch { rule: 9, hosts: vec![] }];
        let error = refusal(route::Routes { rules: rules(), tls, ..route::Routes::default() });
        assert_eq!(error, "routes.tls[0].rule: 9 is none of the 1 rules");
        let error = refusal(route::Routes { rules: rules(), tcp: Some(1), ..route::Routes::default() });
        assert_eq!(error, "routes.tcp: 1 is none of the 1 rules");
        let redirect = route::Redirect { scheme: None, host: None, port: None, path: None, status: 200 };
        let bad = route::Rule { filters: vec![route::Filter::Redirect(redirect)], ..rule("web", "canary") };
        let error = refusal(route::Routes { rules: vec![bad], ..route::Routes::default() });
        assert!(error.starts_with("routes.rules[0] (httproute/shop/web/canary): filters[0]: 200"), "{error}");
    }

    #[test]
    fn connections_are_taken_by_their_server_name() {
        let tls = |rule, host: &str| TlsMatch { rule, hosts: vec![host.to_owned()] };
        let routes = route::Routes {
            rules: vec![rule("a", ""), rule("b", ""), rule("c", "")],
            tls: vec![tls(0, "a.example"), tls(1, "*.example")],
            ..route::Routes::default()
        };
        let taken = |table: &Table, name: Option<&str>| {
            table.take_connection(name).map(|rule| rule.map(|rule| rule.name.to_string()))
        };
        let table = Table::compile(&routes).unwrap();
        assert_eq!(taken(&table, Some("a.example")), Some(Some("a".to_owned())));
        assert_eq!(taken(&table, Some("x.example")), Some(Some("b".to_owned())));
        assert_eq!(taken(&table, Some("other")), Some(None));
        assert_eq!(taken(&table, None), None);
        let table = Table::compile(&route::Routes { tcp: Some(2), ..routes }).unwrap();
        assert_eq!(taken(&table, Some("other")), Some(Some("c".to_owned())));
        assert_eq!(taken(&table, None), Some(Some("c".to_owned())));
    }
}
