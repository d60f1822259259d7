//! What is wrong with routes: parents, backends, what is out of reach, what has no time.

use super::subject::Subject;
use super::{
    BACKEND_KIND, BACKEND_MISSING, BACKEND_NO_ENDPOINTS, BACKEND_NO_WEIGHT, BACKEND_NOT_PERMITTED, MIRROR_TO_ITSELF,
    PARENT_HEADLESS, PARENT_MISSING, PARENT_PORT, RETRY_UNSAFE_METHODS, ROUTE_HOST_NEVER_MATCHES, ROUTE_IGNORED_VALUE,
    ROUTE_UNKNOWN_FIELD, ROUTE_UNREACHABLE, ROUTE_UNUSABLE, RULE_LEADS_NOWHERE, SESSION_NOTHING_TO_KEEP,
    TIMEOUT_SHORTER_THAN_TRIES,
};
use super::{Finding, Lint, shadow};
use crate::compile;
use crate::compile::route::{resolve, routes};
use crate::world::route::read::NOT_KNOWN;
use crate::world::route::{
    Effect, FilterView, ParentView, Problem, Reference, RouteKey, RouteKind, RouteView, RuleView,
};
use crate::world::view::{Name, PortView};
use mesh_api::retry::Retry;
use mesh_api::route::{Filter, Routes, RuleName};
use mesh_api::timeout::Timeouts;
use std::collections::{BTreeMap, BTreeSet};

/// Looks at every route with a Service as parent.
pub(super) fn look(subject: &Subject, found: &mut Vec<Finding>) {
    for (key, view) in subject.world.routes().filter(|(_, view)| !view.parents.is_empty()) {
        let mut at = At { subject, key, view, found };
        at.problems();
        at.parents();
        at.hosts();
        for (number, rule) in view.rules.iter().enumerate() {
            at.leads(number, rule);
            at.carried(number, rule);
        }
        at.reach();
    }
}

/// A route that is being looked at.
struct At<'a> {
    subject: &'a Subject,
    key: &'a RouteKey,
    view: &'a RouteView,
    found: &'a mut Vec<Finding>,
}

impl At<'_> {
    fn say(&mut self, lint: &'static Lint, field: impl Into<String>, message: impl Into<String>) {
        let (kind, name) = (self.key.kind.kind().to_owned(), self.key.name.clone());
        self.found.push(Finding { lint, kind, name, field: field.into(), message: message.into() });
    }

    /// What reading the route left out.
    fn problems(&mut self) {
        let all: Vec<&Problem> =
            self.view.problems.iter().chain(self.view.rules.iter().flat_map(|rule| &rule.problems)).collect();
        for problem in all {
            // Every problem begins with its path.
            let (path, why) = problem.text.split_once(": ").unwrap_or(("", &problem.text));
            let lint = match problem.effect {
                Effect::Ignored if why.starts_with(NOT_KNOWN) => ROUTE_UNKNOWN_FIELD,
                Effect::Ignored => ROUTE_IGNORED_VALUE,
                Effect::Dropped | Effect::Fails => ROUTE_UNUSABLE,
            };
            self.say(lint, in_spec(path), why);
        }
    }

    /// Where a parent stands among `spec.parentRefs`, Gateways included.
    fn parent_field(&self, parent: &ParentView) -> String {
        let object = self.subject.objects.get(&(self.key.kind.kind().to_owned(), self.key.name.clone()));
        let refs = object.and_then(|object| object["spec"]["parentRefs"].as_array());
        let number = refs.and_then(|refs| refs.iter().position(|one| *one == parent.reference)).unwrap_or(0);
        format!("spec.parentRefs[{number}]")
    }

    fn parents(&mut self) {
        for parent in &self.view.parents {
            let (field, name) = (self.parent_field(parent), &parent.service);
            let Some(service) = self.subject.world.service(name) else {
                if self.subject.knows_services(&name.namespace) {
                    self.say(PARENT_MISSING, format!("{field}.name"), format!("there is no Service {name}"));
                }
                continue;
            };
            if service.headless {
                self.say(PARENT_HEADLESS, format!("{field}.name"), format!("the Service {name} has no cluster IP"));
            } else if !service.ports.iter().any(|port| parent.takes(port)) {
                let (part, wanted) = match (&parent.port, &parent.section) {
                    (Some(port), _) => ("port", port.to_string()),
                    (None, Some(section)) => ("sectionName", section.clone()),
                    (None, None) => ("name", "at all".to_owned()),
                };
                let message = format!("the Service {name} has no TCP port {wanted}; it has {}", ports(&service.ports));
                self.say(PARENT_PORT, format!("{field}.{part}"), message);
            }
        }
    }

    /// Names that nobody calls the parents by. Of TLS any name may be asked for.
    fn hosts(&mut self) {
        if self.key.kind == RouteKind::Tls {
            return;
        }
        let named: Vec<String> = self.view.parents.iter().flat_map(|parent| dns_names(&parent.service)).collect();
        for (number, host) in self.view.hosts.iter().enumerate() {
            if !named.iter().any(|name| shadow::covers_host(host, name)) {
                let message = format!("`{host}`: clients call the Service {}", named.join(", "));
                self.say(ROUTE_HOST_NEVER_MATCHES, format!("spec.hostnames[{number}]"), message);
            }
        }
    }

    /// Where a rule leads.
    fn leads(&mut self, number: usize, rule: &RuleView) {
        let field = format!("spec.rules[{number}]");
        let redirects = redirects(rule);
        if rule.backends.is_empty() && !redirects && !rule.fails() {
            self.say(RULE_LEADS_NOWHERE, &field, "it has neither backends nor a redirect");
        } else if !rule.backends.is_empty() && !redirects && rule.backends.iter().all(|backend| backend.weight == 0) {
            self.say(BACKEND_NO_WEIGHT, format!("{field}.backendRefs"), "every weight is 0");
        }
        if rule.session.is_some() && (redirects || rule.backends.iter().all(|backend| backend.weight == 0)) {
            self.say(SESSION_NOTHING_TO_KEEP, format!("{field}.sessionPersistence"), "the rule leads to no endpoint");
        } else if rule.session.is_some() && matches!(self.key.kind, RouteKind::Tls | RouteKind::Tcp) {
            let message = "connections that nobody looks into have neither cookies nor header fields";
            self.say(SESSION_NOTHING_TO_KEEP, format!("{field}.sessionPersistence"), message);
        }
        let mirrors = |filters: &[FilterView]| -> Vec<Reference> {
            let to = |filter: &FilterView| match filter {
                FilterView::Mirror { to, .. } => Some(to.clone()),
                FilterView::Plain(_) => None,
            };
            filters.iter().filter_map(to).collect()
        };
        let of_rule = mirrors(&rule.filters);
        for backend in &rule.backends {
            self.reference(&backend.to, backend.weight > 0);
            for to in of_rule.iter().chain(&mirrors(&backend.filters)) {
                if backend.weight > 0 && (&to.name, to.port) == (&backend.to.name, backend.to.port) {
                    self.say(MIRROR_TO_ITSELF, in_spec(&to.path), format!("{} gets each of them already", to.name));
                }
            }
            mirrors(&backend.filters).iter().for_each(|to| self.reference(to, true));
        }
        of_rule.iter().for_each(|to| self.reference(to, true));
    }

    fn reference(&mut self, to: &Reference, used: bool) {
        let namespace = &to.name.namespace;
        // Files that hold no Service of the other namespace need not hold its grants.
        if to.is_service() && !self.subject.knows_services(namespace) {
            return;
        }
        match resolve(&self.subject.world, self.key, to) {
            Err(unresolved) => {
                let lint = match unresolved.reason {
                    "InvalidKind" => BACKEND_KIND,
                    "RefNotPermitted" => BACKEND_NOT_PERMITTED,
                    _ => BACKEND_MISSING,
                };
                let why = unresolved.message.strip_prefix(&format!("{}: ", to.path)).unwrap_or(&unresolved.message);
                self.say(lint, in_spec(&to.path), why);
            }
            Ok(service)
                if used && self.subject.knows_pods(namespace) && !self.subject.is_served_otherwise(&to.name) =>
            {
                let backend = compile::backend(&self.subject.world, &self.subject.config, &service);
                if backend.is_none_or(|backend| backend.endpoints.is_empty()) {
                    let message =
                        format!("the Service {} has no endpoint for port {} that is ready", to.name, service.port);
                    self.say(BACKEND_NO_ENDPOINTS, in_spec(&to.path), message);
                }
            }
            Ok(_) => {}
        }
    }

    /// How requests are carried.
    fn carried(&mut self, number: usize, rule: &RuleView) {
        let field = format!("spec.rules[{number}]");
        let Some(retry) = rule.retry.as_ref().filter(|retry| retry.attempts > 0) else { return };
        if let Some(why) = too_short(&rule.timeouts, retry) {
            self.say(TIMEOUT_SHORTER_THAN_TRIES, format!("{field}.timeouts.request"), why);
        }
        let methods: BTreeSet<&str> = rule.matches.iter().filter_map(|of| of.method.as_deref()).collect();
        let unsafe_ones: Vec<&str> =
            methods.into_iter().filter(|method| matches!(*method, "POST" | "PATCH" | "CONNECT")).collect();
        if self.key.kind == RouteKind::Grpc {
            let message = "gRPC calls are not known to be idempotent: the proxy sends them once";
            self.say(RETRY_UNSAFE_METHODS, format!("{field}.retry"), message);
        } else if !unsafe_ones.is_empty() {
            let message = format!("{} is not idempotent: the proxy sends such requests once", unsafe_ones.join(", "));
            self.say(RETRY_UNSAFE_METHODS, format!("{field}.retry"), message);
        }
    }

    /// Rules that are out of reach on every port they are about.
    fn reach(&mut self) {
        let mut reached = BTreeSet::new();
        let mut hidden: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for parent in &self.view.parents {
            let Some(service) = self.subject.world.service(&parent.service) else { continue };
            for port in service.ports.iter().filter(|port| parent.takes(port)) {
                let consumer = Some(self.key.name.namespace.as_str());
                let Some(compiled) = routes(&self.subject.world, &parent.service, port, consumer) else { continue };
                reaches(&compiled, &mut |rule, by| {
                    if is_of(rule, self.key) {
                        match by {
                            None => drop(reached.insert(rule.rule.clone())),
                            Some(by) => drop(hidden.entry(rule.rule.clone()).or_default().insert(by.to_string())),
                        }
                    }
                });
            }
        }
        for (rule, by) in hidden.into_iter().filter(|(rule, _)| !reached.contains(rule)) {
            let number = self.view.rules.iter().position(|known| known.name == rule).unwrap_or(0);
            let by: Vec<String> = by.into_iter().collect();
            self.say(ROUTE_UNREACHABLE, format!("spec.rules[{number}]"), format!("{} takes all of it", by.join(", ")));
        }
    }
}

/// Tells of each condition's rule whether a request can get there, or else which rule takes them all. A rule is heard of
/// once for each of its conditions.
fn reaches(compiled: &Routes, tell: &mut dyn FnMut(&RuleName, Option<&RuleName>)) {
    let name = |rule: usize| &compiled.rules[rule].name;
    for list in [&compiled.http, &compiled.grpc] {
        for (at, condition) in list.iter().enumerate() {
            let before = list[..at].iter().find(|wide| wide.rule != condition.rule && shadow::covers(wide, condition));
            tell(name(condition.rule), before.map(|wide| name(wide.rule)));
        }
    }
    for (at, condition) in compiled.tls.iter().enumerate() {
        let wide =
            |wide: &&mesh_api::route::TlsMatch| wide.rule != condition.rule && shadow::covers_tls(wide, condition);
        tell(name(condition.rule), compiled.tls[..at].iter().find(wide).map(|wide| name(wide.rule)));
    }
    let of_tcp = compiled.rules.iter().filter(|rule| rule.name.kind == RouteKind::Tcp.shown());
    for rule in of_tcp {
        let first = compiled.tcp.map(name).filter(|first| **first != rule.name);
        tell(&rule.name, first);
    }
}

fn is_of(rule: &RuleName, route: &RouteKey) -> bool {
    rule.kind == route.kind.shown() && rule.namespace == route.name.namespace && rule.name == route.name.name
}

/// Paths in messages begin below `spec`.
pub(super) fn in_spec(path: &str) -> String {
    if path.is_empty() || path == "spec" || path.starts_with("spec.") {
        path.to_owned()
    } else {
        format!("spec.{path}")
    }
}

/// True if a rule answers by itself.
pub(super) fn redirects(rule: &RuleView) -> bool {
    rule.filters.iter().any(|filter| matches!(filter, FilterView::Plain(Filter::Redirect(_))))
}

/// The names that clients call a Service by, those of its own namespace first.
pub(super) fn dns_names(service: &Name) -> [String; 4] {
    let Name { namespace, name } = service;
    [
        name.clone(),
        format!("{name}.{namespace}"),
        format!("{name}.{namespace}.svc"),
        format!("{name}.{namespace}.svc.cluster.local"),
    ]
}

fn ports(ports: &[PortView]) -> String {
    let shown = |port: &PortView| match port.name.as_str() {
        "" => port.port.to_string(),
        name => format!("{} ({name})", port.port),
    };
    if ports.is_empty() { "none".to_owned() } else { ports.iter().map(shown).collect::<Vec<_>>().join(", ") }
}

/// Why the whole request has less time than its tries, if it has.
pub(super) fn too_short(timeouts: &Timeouts, retry: &Retry) -> Option<String> {
    let limit = |limit: Option<mesh_api::Millis>| limit.filter(|limit| !limit.is_zero());
    let whole = limit(timeouts.request)?;
    let each = limit(timeouts.backend_request).or(limit(retry.per_try_timeout)).or(limit(timeouts.response_head))?;
    let tries = u64::from(retry.attempts) + 1;
    let together = mesh_api::Millis(each.0.saturating_mul(tries));
    (whole < together).then(|| format!("{whole} for the whole request, and {tries} tries of {each} are {together}"))
}
