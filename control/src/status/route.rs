//! What is said of routes: per parent of kind Service, whether the route is accepted, what of it is left out, whether
//! what it refers to is there, and whether proxies can use what the Service comes to with it. What other controllers
//! say of other parents stays as it is.

use super::{Due, Said, Seen, short};
use crate::compile::route::resolve;
use crate::kinds;
use crate::world::World;
use crate::world::route::{Effect, ParentView, Problem, Reason, RouteKey, RouteStatusView, RouteView};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};

/// By what name the status says that it is ours.
pub const CONTROLLER: &str = "meshctl.dev/control";

/// Every route whose status says something else than it should.
pub(super) fn due(seen: &Seen<'_>) -> Vec<Due> {
    let said = seen.world.routes().filter_map(|(key, view)| {
        let before = seen.world.route_status(key)?;
        let parents = parents(seen, key, view, before);
        let due = || Due {
            kind: kinds::of_routes(key.kind),
            name: key.name.clone(),
            // The list holds what others say, too, as it stands in this version.
            version: Some(before.version.clone()),
            status: json!({ "parents": parents }),
        };
        (parents != before.parents).then(due)
    });
    let mut said: Vec<Due> = said.collect();
    said.sort_unstable_by(|a, b| (a.kind.kind, &a.name).cmp(&(b.kind.kind, &b.name)));
    said
}

/// `status.parents` as it should be: what others say, then what we say.
fn parents(seen: &Seen<'_>, key: &RouteKey, view: &RouteView, before: &RouteStatusView) -> Vec<Value> {
    let is_ours = |parent: &&Value| parent["controllerName"] == CONTROLLER;
    let theirs = before.parents.iter().filter(|parent| !is_ours(parent)).cloned();
    let ours = view.parents.iter().map(|parent| {
        let old = before.parents.iter().filter(is_ours).find(|old| old["parentRef"] == parent.reference);
        let old: Vec<Condition> =
            old.and_then(|old| serde_json::from_value(old["conditions"].clone()).ok()).unwrap_or_default();
        let rejected = seen.rejections.of_service(&parent.service).map(|rejected| rejected.to_string());
        let said = say(seen.world, key, view, parent, rejected);
        let conditions: Vec<Condition> =
            said.iter().map(|said| said.condition(view.generation, &old, seen.now)).collect();
        json!({ "parentRef": parent.reference, "controllerName": CONTROLLER, "conditions": conditions })
    });
    theirs.chain(ours).collect()
}

/// What is to be said of a route to one of its parents.
pub fn say(
    world: &World,
    key: &RouteKey,
    view: &RouteView,
    parent: &ParentView,
    rejected: Option<String>,
) -> Vec<Said> {
    let mut said = vec![accepted(world, view, parent)];
    let problems: Vec<&Problem> = view.problems.iter().chain(view.rules.iter().flat_map(|r| &r.problems)).collect();
    if said[0].holds && !problems.is_empty() {
        let reason = reason(&problems);
        said.push(Said { kind: "PartiallyInvalid", holds: true, reason, message: invalid_parts(view, &problems) });
    }
    let unresolved = view.references().filter_map(|to| resolve(world, key, to).err());
    let unresolved: Vec<_> = unresolved.collect();
    said.push(Said {
        kind: "ResolvedRefs",
        holds: unresolved.is_empty(),
        reason: unresolved.first().map_or("ResolvedRefs", |first| first.reason),
        message: match unresolved.as_slice() {
            [] => "everything it refers to is there".to_owned(),
            all => short(all.iter().map(|one| one.message.as_str())),
        },
    });
    said.extend(rejected.map(Said::rejected));
    said
}

fn accepted(world: &World, view: &RouteView, parent: &ParentView) -> Said {
    let said =
        |reason: &'static str, message: String| Said { kind: "Accepted", holds: reason == "Accepted", reason, message };
    let name = &parent.service;
    let Some(service) = world.service(name) else {
        return said("NoMatchingParent", format!("there is no Service {name}"));
    };
    if service.cluster_ips.is_empty() || service.headless {
        let why = "has no cluster IP: its clients connect to pods, which no route changes";
        return said("NoMatchingParent", format!("the Service {name} {why}"));
    }
    if !service.ports.iter().any(|port| parent.takes(port)) {
        let number = parent.port.map(|port| format!(" {port}")).unwrap_or_default();
        let section = parent.section.as_ref().map(|section| format!(" named {section}")).unwrap_or_default();
        return said("NoMatchingParent", format!("the Service {name} has no TCP port{number}{section}"));
    }
    if !view.rules.is_empty() && view.rules.iter().all(|rule| rule.is_invalid()) {
        let problems: Vec<&Problem> =
            view.rules.iter().flat_map(|r| &r.problems).filter(|p| p.effect != Effect::Ignored).collect();
        return said(reason(&problems), short(problems.iter().map(|problem| problem.text.as_str())));
    }
    let whose = if view.rules.is_empty() { "it has no rules and takes nothing" } else { "proxies are told of it" };
    said("Accepted", whose.to_owned())
}

fn reason(problems: &[&Problem]) -> &'static str {
    match problems.iter().map(|problem| problem.reason).max() {
        Some(Reason::IncompatibleFilters) => "IncompatibleFilters",
        _ => "UnsupportedValue",
    }
}

/// Rules that are left out by their names, then every problem.
fn invalid_parts(view: &RouteView, problems: &[&Problem]) -> String {
    let dropped: Vec<&str> =
        view.rules.iter().filter(|rule| rule.is_invalid()).map(|rule| rule.name.as_str()).collect();
    let why = short(problems.iter().map(|problem| problem.text.as_str()));
    match dropped.as_slice() {
        [] => format!("Ignored: {why}"),
        // The Gateway API wants these words in front.
        rules => format!("Dropped Rule {}: {why}", rules.join(", ")),
    }
}

#[cfg(test)]
mod tests;
