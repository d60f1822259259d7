//! Redirects that lead back to where they came from: each is followed as a client would, by the same order of conditions
//! that proxies have.

use super::route::dns_names;
use super::subject::Subject;
use super::{Finding, REDIRECT_LOOP, shadow};
use crate::compile::route::routes;
use crate::world::route::RouteKey;
use crate::world::view::{Name, PortView};
use mesh_api::route::{Filter, HttpMatch, PathChange, PathMatch, Redirect, Routes, Rule};
use std::collections::BTreeSet;

/// Browsers give up after about twenty; a loop of more rules than this is no slip.
const STEPS: usize = 16;

/// Follows every redirect of every route.
pub(super) fn look(subject: &Subject, found: &mut Vec<Finding>) {
    for (key, view) in subject.world.routes() {
        for parent in &view.parents {
            let Some(service) = subject.world.service(&parent.service) else { continue };
            for port in service.ports.iter().filter(|port| parent.takes(port)) {
                for (rule, way) in loops(subject, key, &parent.service, port) {
                    let Some(number) = view.rules.iter().position(|known| known.name == rule) else { continue };
                    let (kind, name) = (key.kind.kind().to_owned(), key.name.clone());
                    let field = format!("spec.rules[{number}].filters");
                    found.push(Finding { lint: REDIRECT_LOOP, kind, name, field, message: way });
                }
            }
        }
    }
}

/// A request as far as redirects change it; what else it has is what the first condition asked for.
#[derive(Clone)]
struct Sent {
    service: Name,
    port: u16,
    condition: HttpMatch,
}

impl Sent {
    fn shown(&self) -> String {
        let host = self.condition.hosts.first().map_or("", String::as_str);
        let path = match &self.condition.path {
            Some(PathMatch::Exact(path)) => path,
            _ => "/",
        };
        format!("http://{host}:{}{path}", self.port)
    }
}

/// Rules of a route that lead to themselves, with the way.
fn loops(subject: &Subject, key: &RouteKey, service: &Name, port: &PortView) -> Vec<(String, String)> {
    let namespace = key.name.namespace.as_str();
    let Some(compiled) = routes(&subject.world, service, port, Some(namespace)) else { return Vec::new() };
    let mut found = Vec::new();
    for condition in &compiled.http {
        let name = &compiled.rules[condition.rule].name;
        let is_ours = name.kind == key.kind.shown() && name.namespace == namespace && name.name == key.name.name;
        let Some(sent) = sample(condition, service, port).filter(|_| is_ours) else { continue };
        if let Some(way) = follow(subject, namespace, sent) {
            found.push((name.rule.clone(), way));
        }
    }
    found
}

/// A request that a condition takes; of a regular expression none is known.
fn sample(condition: &HttpMatch, service: &Name, port: &PortView) -> Option<Sent> {
    let path = match &condition.path {
        None => "/".to_owned(),
        Some(PathMatch::Exact(path) | PathMatch::Prefix(path)) => path.clone(),
        Some(PathMatch::Regex(_)) => return None,
    };
    let host = match condition.hosts.first() {
        Some(host) => host.replacen('*', "any", 1),
        None => dns_names(service)[0].clone(),
    };
    let condition = HttpMatch { hosts: vec![host], path: Some(PathMatch::Exact(path)), ..condition.clone() };
    Some(Sent { service: service.clone(), port: port.port, condition })
}

/// The way of a request that comes to a rule a second time with the same path.
fn follow(subject: &Subject, namespace: &str, mut sent: Sent) -> Option<String> {
    let mut way = vec![sent.shown()];
    let mut seen = BTreeSet::from([sent.shown()]);
    for _ in 0..STEPS {
        let service = subject.world.service(&sent.service)?;
        let port = service.ports.iter().find(|port| port.port == sent.port)?;
        let compiled = routes(&subject.world, &sent.service, port, Some(namespace))?;
        let (redirect, condition) = answer(&compiled, &sent)?;
        sent = redirected(subject, namespace, &sent, redirect, condition)?;
        way.push(sent.shown());
        if !seen.insert(sent.shown()) {
            return Some(way.join(" → "));
        }
    }
    None
}

/// The redirect that a request is answered with.
fn answer<'a>(compiled: &'a Routes, sent: &Sent) -> Option<(&'a Redirect, &'a HttpMatch)> {
    let condition = compiled.http.iter().find(|condition| shadow::covers(condition, &sent.condition))?;
    let Rule { filters, .. } = &compiled.rules[condition.rule];
    let redirect = filters.iter().find_map(|filter| match filter {
        Filter::Redirect(redirect) => Some(redirect),
        _ => None,
    });
    Some((redirect?, condition))
}

/// The request that a client sends next; `None` if it leaves what is known here.
fn redirected(subject: &Subject, namespace: &str, sent: &Sent, redirect: &Redirect, taken: &HttpMatch) -> Option<Sent> {
    let Redirect { scheme, host, port, path, status: _ } = redirect;
    if scheme.as_deref() == Some("https") {
        return None;
    }
    let mut next = sent.clone();
    if let Some(host) = host {
        if next.condition.hosts.first() != Some(host) {
            next.service = called(subject, namespace, host)?;
        }
        next.condition.hosts = vec![host.clone()];
    }
    next.port = port.unwrap_or(if scheme.is_some() { 80 } else { sent.port });
    let Some(PathMatch::Exact(before)) = &sent.condition.path else { return None };
    let after = match (path, &taken.path) {
        (None, _) => before.clone(),
        (Some(PathChange::Full(path)), _) => path.clone(),
        (Some(PathChange::Prefix(instead)), prefix) => {
            let prefix = match prefix {
                Some(PathMatch::Prefix(prefix)) => prefix.as_str(),
                _ => "",
            };
            let rest = before.strip_prefix(prefix)?.trim_start_matches('/');
            let instead = instead.trim_end_matches('/');
            if rest.is_empty() && !instead.is_empty() { instead.to_owned() } else { format!("{instead}/{rest}") }
        }
    };
    next.condition.path = Some(PathMatch::Exact(after));
    Some(next)
}

/// The Service that a host name means to clients of a namespace.
fn called(subject: &Subject, namespace: &str, host: &str) -> Option<Name> {
    let mut parts = host.split('.');
    let name = Name::new(parts.clone().nth(1).unwrap_or(namespace), parts.next()?);
    let is_name = dns_names(&name).iter().any(|known| known == host);
    (is_name && subject.world.service(&name).is_some()).then_some(name)
}
