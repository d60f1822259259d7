//! Routes of the Gateway API with a Service as parent, and the grants that let them lead into other namespaces.
//!
//! [`read`] makes these views out of what the API sends; nothing in an object can keep the rest of it from counting.

pub mod read;

#[cfg(test)]
mod tests;

use super::view::{Name, PortView};
use super::{Kept, Touched, World, enter};
use mesh_api::retry::{Retry, RetryBudget};
use mesh_api::route::{Filter, PathMatch, SessionPersistence, ValueMatch};
use mesh_api::timeout::Timeouts;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// A kind of route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// HTTPRoute.
    Http,
    /// GRPCRoute.
    Grpc,
    /// TLSRoute.
    Tls,
    /// TCPRoute.
    Tcp,
}

impl RouteKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Http, Self::Grpc, Self::Tls, Self::Tcp];

    /// The kind as the API spells it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
        }
    }

    /// The kind in lower case, as it is shown.
    pub fn shown(self) -> &'static str {
        match self {
            Self::Http => "httproute",
            Self::Grpc => "grpcroute",
            Self::Tls => "tlsroute",
            Self::Tcp => "tcproute",
        }
    }
}

/// What routes are called by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// Kind.
    pub kind: RouteKind,
    /// Namespace and name.
    pub name: Name,
}

/// A route, as far as Services are concerned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteView {
    /// `metadata.generation`.
    pub generation: i64,
    /// When it was made, seconds since 1970; `i64::MAX`: not known.
    pub created: i64,
    /// Its parents of kind Service.
    pub parents: Vec<ParentView>,
    /// `hostnames`, in lower case.
    pub hosts: Vec<String>,
    /// Its rules.
    pub rules: Vec<RuleView>,
    /// What outside of rules was left out.
    pub problems: Vec<Problem>,
}

/// A Service whose traffic a route takes.
#[derive(Clone, Debug, PartialEq)]
pub struct ParentView {
    /// The reference as it was written, for the status.
    pub reference: Value,
    /// The Service.
    pub service: Name,
    /// Only this port.
    pub port: Option<i64>,
    /// Only the port of this name.
    pub section: Option<String>,
}

impl ParentView {
    /// True if it means this port.
    pub fn takes(&self, port: &PortView) -> bool {
        self.port.is_none_or(|number| number == i64::from(port.port))
            && self.section.as_ref().is_none_or(|section| *section == port.name)
    }
}

/// A rule of a route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleView {
    /// Its name, or its number in the route.
    pub name: String,
    /// What it takes, any of these; empty if nothing of it can be understood.
    pub matches: Vec<MatchView>,
    /// What is done to requests and responses.
    pub filters: Vec<FilterView>,
    /// Where requests go.
    pub backends: Vec<BackendView>,
    /// Time limits.
    pub timeouts: Timeouts,
    /// When requests are sent again.
    pub retry: Option<Retry>,
    /// Keeps clients at endpoints.
    pub session: Option<SessionPersistence>,
    /// What could not be used.
    pub problems: Vec<Problem>,
}

impl RuleView {
    /// True if its requests must be answered with an error, since part of what it asks for cannot be done.
    pub fn fails(&self) -> bool {
        self.problems.iter().any(|problem| problem.effect == Effect::Fails)
    }

    /// True if it does not do what was meant at all.
    pub fn is_invalid(&self) -> bool {
        self.matches.is_empty() || self.fails()
    }
}

/// What a rule takes: conditions that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MatchView {
    /// The path; `None`: any.
    pub path: Option<PathMatch>,
    /// The method.
    pub method: Option<String>,
    /// Header fields.
    pub headers: Vec<ValueMatch>,
    /// Query parameters.
    pub query: Vec<ValueMatch>,
    /// Characters of a gRPC service's and method's names, for the order of GRPCRoutes.
    pub grpc_chars: (usize, usize),
}

/// A filter.
#[derive(Clone, Debug, PartialEq)]
pub enum FilterView {
    /// One that needs nothing else.
    Plain(Filter),
    /// A mirror: of `denominator` requests `numerator` are copied there.
    Mirror {
        /// Where copies go.
        to: Reference,
        /// See above.
        numerator: u32,
        /// See above; not zero.
        denominator: u32,
    },
}

/// A share of a rule's requests.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendView {
    /// Where they go.
    pub to: Reference,
    /// The share.
    pub weight: u32,
    /// What is done to them.
    pub filters: Vec<FilterView>,
    /// A filter cannot be done: they are answered with an error.
    pub fails: bool,
}

/// A reference to something that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Where in the route it stands: `rules[0].backendRefs[1]`.
    pub path: String,
    /// API group; empty: core.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace and name.
    pub name: Name,
    /// Port.
    pub port: Option<u16>,
}

impl Reference {
    /// True for a Service.
    pub fn is_service(&self) -> bool {
        self.group.is_empty() && self.kind == "Service"
    }
}

/// Something in a route that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What became of it.
    pub effect: Effect,
    /// Why, in the Gateway API's words.
    pub reason: Reason,
    /// No release could use it: it is not merely unknown here, or not supported.
    pub wrong: bool,
    /// Where and what: ``rules[0].filters[1].type: `CORS` is not supported``.
    pub text: String,
}

/// What became of a part that could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The field was left out.
    Ignored,
    /// The match was left out; a rule without any takes nothing.
    Dropped,
    /// The rule's requests are answered with 500.
    Fails,
}

/// Reasons why a route is not accepted as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// `UnsupportedValue`.
    UnsupportedValue,
    /// `IncompatibleFilters`.
    IncompatibleFilters,
}

fn mirrored(filters: &[FilterView]) -> impl Iterator<Item = &Reference> {
    filters.iter().filter_map(|filter| match filter {
        FilterView::Mirror { to, .. } => Some(to),
        FilterView::Plain(_) => None,
    })
}

impl RouteView {
    /// Every reference in its rules.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.rules.iter().flat_map(|rule| {
            let backends = rule.backends.iter().flat_map(|b| mirrored(&b.filters).chain([&b.to]));
            backends.chain(mirrored(&rule.filters))
        })
    }

    /// The Services it leads to, each once.
    fn leads_to(&self) -> BTreeSet<Name> {
        self.references().filter(|to| to.is_service()).map(|to| to.name.clone()).collect()
    }

    /// The Services it takes traffic of, each once.
    fn takes_from(&self) -> BTreeSet<Name> {
        self.parents.iter().map(|parent| parent.service.clone()).collect()
    }
}

impl Kept for RouteView {
    type Key = RouteKey;

    fn map(world: &mut World) -> &mut HashMap<RouteKey, Self> {
        &mut world.routes
    }

    fn index(&self, world: &mut World, key: &RouteKey, present: bool) {
        enter(&mut world.routes_by_parent, self.takes_from().into_iter(), key, present);
        enter(&mut world.routes_by_backend, self.leads_to().into_iter(), key, present);
    }

    fn touches(&self, world: &World, key: &RouteKey) -> Touched {
        Touched { ips: self.cluster_ips(world).collect(), pods: world.pods_of_policies_for(key) }
    }
}

impl RouteView {
    /// Addresses whose traffic it takes.
    pub(super) fn cluster_ips(&self, world: &World) -> impl Iterator<Item = IpAddr> {
        let services = self.parents.iter().filter_map(|parent| world.services.get(&parent.service));
        services.flat_map(|service| &service.cluster_ips).copied()
    }
}

/// What stands in the status of a route. Apart from the route itself, so that telling of a route changes nothing about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteStatusView {
    /// The version of the object.
    pub version: String,
    /// `status.parents`, of everybody.
    pub parents: Vec<Value>,
}

impl Kept for RouteStatusView {
    type Key = RouteKey;

    fn map(world: &mut World) -> &mut HashMap<RouteKey, Self> {
        &mut world.route_statuses
    }

    fn index(&self, _: &mut World, _: &RouteKey, _: bool) {}

    fn touches(&self, _: &World, _: &RouteKey) -> Touched {
        Touched::default()
    }
}

/// A ReferenceGrant: who may refer to what in its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrantView {
    /// Group, kind and namespace of those who may refer.
    pub from: Vec<(String, String, String)>,
    /// Group, kind and (unless all are meant) name of what may be referred to.
    pub to: Vec<(String, String, Option<String>)>,
}

impl GrantView {
    /// True if it lets a route refer.
    pub fn permits(&self, route: &RouteKey, to: &Reference) -> bool {
        let from = |(group, kind, namespace): &(String, String, String)| {
            group == read::GROUP && kind == route.kind.kind() && *namespace == route.name.namespace
        };
        let target = |(group, kind, name): &(String, String, Option<String>)| {
            *group == to.group && *kind == to.kind && name.as_ref().is_none_or(|name| *name == to.name.name)
        };
        self.from.iter().any(from) && self.to.iter().any(target)
    }
}

impl Kept for GrantView {
    type Key = Name;

    fn map(world: &mut World) -> &mut HashMap<Name, Self> {
        &mut world.grants
    }

    fn index(&self, _: &mut World, _: &Name, _: bool) {}

    fn touches(&self, world: &World, key: &Name) -> Touched {
        let concerned = |route: &&RouteView| route.references().any(|to| to.name.namespace == key.namespace);
        let ips = world.routes.values().filter(concerned).flat_map(|route| route.cluster_ips(world)).collect();
        Touched { ips, ..Touched::default() }
    }
}

/// An XBackendTrafficPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendPolicyView {
    /// When it was made, seconds since 1970: of several policies for a Service the oldest counts.
    pub created: i64,
    /// The Services it is about, by name, in its own namespace.
    pub services: Vec<String>,
    /// `retryConstraint`.
    pub budget: Option<RetryBudget>,
    /// `sessionPersistence`.
    pub session: Option<SessionPersistence>,
}

impl Kept for BackendPolicyView {
    type Key = Name;

    fn map(world: &mut World) -> &mut HashMap<Name, Self> {
        &mut world.backend_policies
    }

    fn index(&self, world: &mut World, key: &Name, present: bool) {
        let services = self.services.iter().map(|service| Name::new(&key.namespace, service));
        enter(&mut world.policies_by_backend, services, key, present);
    }

    fn touches(&self, world: &World, key: &Name) -> Touched {
        let mut touched = Touched::default();
        for service in &self.services {
            let service = Name::new(&key.namespace, service);
            touched.ips.extend(world.services.get(&service).into_iter().flat_map(|service| &service.cluster_ips));
            touched.ips.extend(world.led_here(&service));
        }
        touched
    }
}

impl World {
    /// The routes that have a Service as parent.
    pub fn routes_of(&self, service: &Name) -> impl Iterator<Item = (&RouteKey, &RouteView)> {
        let keys = self.routes_by_parent.get(service).into_iter().flatten();
        keys.filter_map(|key| Some((key, self.routes.get(key)?)))
    }

    /// A route.
    pub fn route(&self, key: &RouteKey) -> Option<&RouteView> {
        self.routes.get(key)
    }

    /// The status of a route.
    pub fn route_status(&self, key: &RouteKey) -> Option<&RouteStatusView> {
        self.route_statuses.get(key)
    }

    /// Every route.
    pub fn routes(&self) -> impl Iterator<Item = (&RouteKey, &RouteView)> {
        self.routes.iter()
    }

    /// True if a grant lets a route refer to something in another namespace.
    pub fn permits(&self, route: &RouteKey, to: &Reference) -> bool {
        let there = self.grants.iter().filter(|(grant, _)| grant.namespace == to.name.namespace);
        route.name.namespace == to.name.namespace || there.into_iter().any(|(_, grant)| grant.permits(route, to))
    }

    /// The XBackendTrafficPolicy of a Service: the oldest one.
    pub fn backend_policy(&self, service: &Name) -> Option<&BackendPolicyView> {
        let policies = self.policies_by_backend.get(service)?.iter();
        policies.filter_map(|name| self.backend_policies.get(name)).min_by_key(|policy| policy.created)
    }

    /// Addresses whose traffic routes lead to a Service.
    pub(super) fn led_here(&self, service: &Name) -> impl Iterator<Item = IpAddr> {
        let routes = self.routes_by_backend.get(service).into_iter().flatten();
        routes.filter_map(|key| self.routes.get(key)).flat_map(|route| route.cluster_ips(self))
    }
}
