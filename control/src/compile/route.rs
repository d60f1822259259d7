//! What the routes of a Service come to for one of its ports: rules, and conditions in order of precedence.
//!
//! Where the Gateway API leaves a choice:
//! * A route applies to traffic to its parent's cluster IPs only. Who connects to a pod, also through a headless
//!   Service, has chosen the pod.
//! * Routes in the client's namespace (consumer routes) replace those in the Service's own (producer routes), of whatever
//!   kind, for the ports they name.
//! * `hostnames` are conditions on the request's host, and outrank everything else by their length, as at a Gateway.
//! * A regular expression stands between exact paths and prefixes, the longer one first.
//! * A port with TCPRoutes and nothing for HTTP divides HTTP requests as it divides connections.

use crate::world::World;
use crate::world::route::{BackendView, FilterView, MatchView, Reference, RouteKey, RouteKind, RouteView, RuleView};
use crate::world::view::{Name, PortView};
use mesh_api::ServiceRef;
use mesh_api::route::{Filter, HttpMatch, Mirror, PathMatch, RouteBackend, Routes, Rule, RuleName, TlsMatch};
use std::cmp::Ordering;
use std::net::IpAddr;

#[cfg(test)]
mod tests;

/// True if a namespace has routes of its own for what is at an address.
pub fn is_consumer(world: &World, ip: IpAddr, namespace: &str) -> bool {
    let Some((service, _)) = world.service_at(ip) else { return false };
    namespace != service.namespace && world.routes_of(service).any(|(route, _)| route.name.namespace == namespace)
}

/// The routes of a service's port for clients in the namespace `consumer`; `None`: there are none.
pub fn routes(world: &World, service: &Name, port: &PortView, consumer: Option<&str>) -> Option<Routes> {
    flatten(world, &chosen(world, service, port, consumer).0)
}

/// Routes of a service that say nothing to clients in the namespace `consumer` about one of its ports, and why.
pub fn left_out<'a>(
    world: &'a World,
    service: &Name,
    port: &PortView,
    consumer: Option<&str>,
) -> Vec<(&'a RouteKey, &'static str)> {
    let (chosen, by_consumer) = chosen(world, service, port, consumer);
    let why = |key: &RouteKey, route: &RouteView| {
        if !takes_port(route, service, port) {
            return Some("it is about other ports of the service");
        }
        if chosen.iter().any(|(other, _)| *other == key) {
            let invalid = route.rules.iter().all(|rule| rule.matches.is_empty());
            return invalid.then_some("none of its rules can be used: its status says why");
        }
        Some(match by_consumer {
            _ if key.name.namespace != service.namespace => "it is for clients in its own namespace only",
            true => "routes in the client's own namespace replace it",
            false => "it is not in use",
        })
    };
    let mut left: Vec<_> = world.routes_of(service).filter_map(|(key, route)| Some((key, why(key, route)?))).collect();
    left.sort_by_key(|(key, _)| *key);
    left
}

/// The routes that apply, in the order that is left when nothing else decides, and whether they are the clients' own.
fn chosen<'a>(
    world: &'a World,
    service: &Name,
    port: &PortView,
    consumer: Option<&str>,
) -> (Vec<(&'a RouteKey, &'a RouteView)>, bool) {
    let all: Vec<(&RouteKey, &RouteView)> =
        world.routes_of(service).filter(|(_, route)| takes_port(route, service, port)).collect();
    let of =
        |namespace: &str| all.iter().filter(|(key, _)| key.name.namespace == namespace).copied().collect::<Vec<_>>();
    let consumers = consumer.filter(|consumer| *consumer != service.namespace).map(of).unwrap_or_default();
    let by_consumer = !consumers.is_empty();
    let mut chosen = if by_consumer { consumers } else { of(&service.namespace) };
    chosen.sort_by(|(a, first), (b, second)| {
        first.created.cmp(&second.created).then_with(|| a.name.cmp(&b.name)).then(a.kind.cmp(&b.kind))
    });
    (chosen, by_consumer)
}

fn takes_port(route: &RouteView, service: &Name, port: &PortView) -> bool {
    route.parents.iter().any(|parent| parent.service == *service && parent.takes(port))
}

/// The services that rules lead to, some more than once.
pub fn services(routes: &Routes) -> impl Iterator<Item = &ServiceRef> {
    routes.rules.iter().flat_map(|rule| {
        let backends = rule.backends.iter().flat_map(|b| b.service.iter().chain(mirrors(&b.filters)));
        backends.chain(mirrors(&rule.filters))
    })
}

fn mirrors(filters: &[Filter]) -> impl Iterator<Item = &ServiceRef> {
    filters.iter().filter_map(|filter| match filter {
        Filter::Mirror(mirror) => Some(&mirror.service),
        _ => None,
    })
}

/// One condition, with what decides its place.
struct Candidate {
    rank: Rank,
    condition: HttpMatch,
}

/// How special a condition is: the greater number at the first difference comes first. What is equal keeps the order in
/// which it was found, which is that of routes, rules and matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank([usize; 7]);

impl Rank {
    /// The rank of a condition of an HTTPRoute or a GRPCRoute for one of the route's hosts.
    pub fn of(kind: RouteKind, host: Option<&str>, of: &MatchView) -> Self {
        let (plain, whole) = host_rank(host);
        if kind == RouteKind::Grpc {
            let (service, method) = of.grpc_chars;
            return Self([plain, whole, service, method, of.headers.len(), 0, 0]);
        }
        let (class, chars) = match &of.path {
            Some(PathMatch::Exact(_)) => (2, 0),
            Some(PathMatch::Regex(expression)) => (1, expression.chars().count()),
            Some(PathMatch::Prefix(prefix)) => (0, prefix.chars().count()),
            // `/`
            None => (0, 1),
        };
        Self([plain, whole, class, chars, usize::from(of.method.is_some()), of.headers.len(), of.query.len()])
    }

    /// The more special one first.
    pub fn order(&self, other: &Self) -> Ordering {
        other.0.cmp(&self.0)
    }
}

/// Characters of a host that is no wildcard, and of any.
fn host_rank(host: Option<&str>) -> (usize, usize) {
    let Some(host) = host else { return (0, 0) };
    let chars = host.chars().count();
    if host.starts_with("*.") { (0, chars) } else { (chars, chars) }
}

fn flatten(world: &World, routes: &[(&RouteKey, &RouteView)]) -> Option<Routes> {
    let mut rules = Vec::new();
    let (mut http, mut grpc, mut tls, mut tcp) = (Vec::new(), Vec::new(), Vec::new(), None);
    for (key, route) in routes {
        for view in route.rules.iter().filter(|rule| !rule.matches.is_empty()) {
            let rule = rules.len();
            rules.push(compile_rule(world, key, view));
            // A wildcard's rank differs from that of other hosts: each has a condition of its own.
            let hosts = route.hosts.iter().map(|host| Some(host.as_str()));
            let hosts: Vec<Option<&str>> = if route.hosts.is_empty() { vec![None] } else { hosts.collect() };
            match key.kind {
                RouteKind::Tcp => tcp = tcp.or(Some(rule)),
                RouteKind::Tls => tls.extend(hosts.iter().map(|host| {
                    let of = TlsMatch { rule, hosts: host.iter().map(|host| (*host).to_owned()).collect() };
                    (host_rank(*host), of)
                })),
                RouteKind::Http | RouteKind::Grpc => {
                    let list = if key.kind == RouteKind::Grpc { &mut grpc } else { &mut http };
                    for host in hosts {
                        list.extend(view.matches.iter().map(|of| candidate(key.kind, rule, host, of)));
                    }
                }
            }
        }
    }
    if rules.is_empty() {
        return None;
    }
    if let (Some(rule), true) = (tcp, http.is_empty()) {
        http.push(candidate(RouteKind::Http, rule, None, &MatchView::default()));
    }
    tls.sort_by(|(a, _), (b, _)| b.cmp(a));
    Some(Routes {
        rules,
        http: in_order(http),
        grpc: in_order(grpc),
        tls: tls.into_iter().map(|(_, of)| of).collect(),
        tcp,
    })
}

fn in_order(mut candidates: Vec<Candidate>) -> Vec<HttpMatch> {
    candidates.sort_by(|a, b| a.rank.order(&b.rank));
    candidates.into_iter().map(|candidate| candidate.condition).collect()
}

fn candidate(kind: RouteKind, rule: usize, host: Option<&str>, of: &MatchView) -> Candidate {
    let MatchView { path, method, headers, query, grpc_chars: _ } = of.clone();
    let hosts = host.into_iter().map(str::to_owned).collect();
    Candidate { rank: Rank::of(kind, host, of), condition: HttpMatch { rule, hosts, path, method, headers, query } }
}

fn compile_rule(world: &World, key: &RouteKey, view: &RuleView) -> Rule {
    let name = RuleName {
        kind: key.kind.shown().to_owned(),
        namespace: key.name.namespace.clone(),
        name: key.name.name.clone(),
        rule: view.name.clone(),
    };
    if view.fails() {
        // Without filters and backends its requests are answered with 500.
        return Rule { name, ..Rule::default() };
    }
    let backends: Vec<RouteBackend> = view.backends.iter().map(|backend| share(world, key, backend)).collect();
    let mut rule = Rule {
        name,
        filters: filters(world, key, &view.filters),
        backends,
        timeouts: view.timeouts,
        retry: view.retry.clone(),
        session: view.session.clone(),
        policy: super::traffic::of_rule(world, key, &view.name),
    };
    apply_backend_policies(world, &mut rule);
    rule
}

/// XBackendTrafficPolicies of the services a rule leads to, the first that says something.
fn apply_backend_policies(world: &World, rule: &mut Rule) {
    let services = rule.backends.iter().filter_map(|backend| backend.service.as_ref());
    for policy in services.filter_map(|to| world.backend_policy(&Name::new(&to.namespace, &to.name))) {
        if let Some(retry) = rule.retry.as_mut().filter(|retry| retry.budget.is_none()) {
            retry.budget = policy.budget;
        }
        if rule.session.is_none() {
            rule.session.clone_from(&policy.session);
        }
    }
}

fn share(world: &World, key: &RouteKey, view: &BackendView) -> RouteBackend {
    let service = if view.fails { None } else { resolve(world, key, &view.to).ok() };
    RouteBackend { service, weight: view.weight, filters: filters(world, key, &view.filters) }
}

/// Filters; a mirror whose target is not there copies nothing.
fn filters(world: &World, key: &RouteKey, views: &[FilterView]) -> Vec<Filter> {
    let filter = |view: &FilterView| match view {
        FilterView::Plain(filter) => Some(filter.clone()),
        FilterView::Mirror { to, numerator, denominator } => {
            let service = resolve(world, key, to).ok()?;
            Some(Filter::Mirror(Mirror { service, numerator: *numerator, denominator: *denominator }))
        }
    };
    views.iter().filter_map(filter).collect()
}

/// Why a reference leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// The Gateway API's word for it.
    pub reason: &'static str,
    /// What is referred to and what is wrong with it.
    pub message: String,
}

/// What a route's reference leads to.
pub fn resolve(world: &World, route: &RouteKey, to: &Reference) -> Result<ServiceRef, Unresolved> {
    let Reference { path, group, kind, name, port } = to;
    let unresolved = |reason: &'static str, why: String| Err(Unresolved { reason, message: format!("{path}: {why}") });
    if !to.is_service() {
        let group = if group.is_empty() { "core" } else { group };
        return unresolved("InvalidKind", format!("{kind} of group {group} is not supported, only Service is"));
    }
    // Before anything about the other namespace is told.
    if !world.permits(route, to) {
        let namespace = &name.namespace;
        return unresolved("RefNotPermitted", format!("no ReferenceGrant in {namespace} permits the Service {name}"));
    }
    let Some(service) = world.service(name) else {
        return unresolved("BackendNotFound", format!("there is no Service {name}"));
    };
    let Some(port) = *port else {
        return unresolved("BackendNotFound", format!("no port of the Service {name} is named"));
    };
    if service.ports.iter().all(|known| known.port != port) {
        return unresolved("BackendNotFound", format!("the Service {name} has no TCP port {port}"));
    }
    Ok(ServiceRef { namespace: name.namespace.clone(), name: name.name.clone(), port })
}
