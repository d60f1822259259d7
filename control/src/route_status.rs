//! What users are told of their routes: per parent of kind Service, whether the route is accepted, what of it is left
//! out, and whether what it refers to is there. The holder of the lease writes it, by server-side apply, and only what
//! differs; what other controllers say of other parents stays as it is.

use crate::compile::route::resolve;
use crate::kinds;
use crate::limits;
use crate::subscriptions::Subscriptions;
use crate::world::World;
use crate::world::route::{Effect, ParentView, Problem, Reason, RouteKey, RouteStatusView, RouteView};
use crate::world::view::Name;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use mesh_api::names::CONTROL_NAME;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::watch;

/// By what name the status says that it is ours.
pub const CONTROLLER: &str = "meshctl.dev/control";

/// A status to be written.
#[derive(Clone, Debug, PartialEq)]
struct Due {
    route: RouteKey,
    version: String,
    parents: Vec<Value>,
}

/// Keeps the status of all routes current while we hold the lease, for ever.
pub async fn keep(client: kube::Client, subscriptions: Arc<Subscriptions>, mut leads: watch::Receiver<bool>) {
    let mut changes = subscriptions.changes();
    // The senders live as long as the process, so waiting cannot fail.
    loop {
        let _ = leads.wait_for(|mine| *mine).await;
        subscriptions.synced().await;
        changes.mark_unchanged();
        let mut wait = limits::ROUTE_STATUS_CHECK;
        let rejected = |service: &Name| subscriptions.rejected(service);
        for due in subscriptions.read(|world| due(world, rejected, Timestamp::now())) {
            if let Err(error) = write(&client, &due).await {
                let RouteKey { kind, name } = &due.route;
                tracing::warn!(kind = kind.kind(), route = %name, %error, "cannot write the status; trying again");
                wait = limits::ROUTE_STATUS_RETRY;
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(wait) => {}
            _ = leads.changed() => {}
        }
        // Changes come in crowds.
        tokio::time::sleep(limits::ROUTE_STATUS_PAUSE).await;
    }
}

/// Writes a status over the version it was decided for.
async fn write(client: &kube::Client, due: &Due) -> kube::Result<()> {
    let Due { route: RouteKey { kind, name }, version, parents } = due;
    let Some(resource) = kinds::of_routes(*kind).find(client).await? else { return Ok(()) };
    let ApiResource { api_version, kind, .. } = &resource;
    let status = json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": { "name": name.name, "resourceVersion": version },
        "status": { "parents": parents },
    });
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &name.namespace, &resource);
    let written = api.patch_status(&name.name, &PatchParams::apply(CONTROL_NAME).force(), &Patch::Apply(status)).await;
    match written {
        // Gone, or changed meanwhile: then it is looked at again.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        written => written.map(drop),
    }
}

/// Every route whose status says something else than it should. `rejected` tells why a proxy could not use what a
/// service's routes came to.
fn due(world: &World, rejected: impl Fn(&Name) -> Option<String>, now: Timestamp) -> Vec<Due> {
    let said = world.routes().filter_map(|(key, view)| {
        let before = world.route_status(key)?;
        let parents = parents(world, key, view, before, &rejected, now);
        (parents != before.parents).then(|| Due { route: key.clone(), version: before.version.clone(), parents })
    });
    let mut said: Vec<Due> = said.collect();
    said.sort_unstable_by(|a, b| a.route.cmp(&b.route));
    said
}

/// `status.parents` as it should be: what others say, then what we say.
fn parents(
    world: &World,
    key: &RouteKey,
    view: &RouteView,
    before: &RouteStatusView,
    rejected: &impl Fn(&Name) -> Option<String>,
    now: Timestamp,
) -> Vec<Value> {
    let is_ours = |parent: &&Value| parent["controllerName"] == CONTROLLER;
    let theirs = before.parents.iter().filter(|parent| !is_ours(parent)).cloned();
    let ours = view.parents.iter().map(|parent| {
        let old = before.parents.iter().filter(is_ours).find(|old| old["parentRef"] == parent.reference);
        let old: Vec<Condition> =
            old.and_then(|old| serde_json::from_value(old["conditions"].clone()).ok()).unwrap_or_default();
        let conditions = say(world, key, view, parent, rejected(&parent.service));
        let conditions: Vec<Value> = conditions.iter().map(|said| said.condition(view.generation, &old, now)).collect();
        json!({ "parentRef": parent.reference, "controllerName": CONTROLLER, "conditions": conditions })
    });
    theirs.chain(ours).collect()
}

/// A condition without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// `Accepted`, `PartiallyInvalid`, `ResolvedRefs` or `Programmed`.
    pub kind: &'static str,
    /// True or false.
    pub holds: bool,
    /// The reason.
    pub reason: &'static str,
    /// What a user reads.
    pub message: String,
}

impl Said {
    fn condition(&self, generation: i64, before: &[Condition], now: Timestamp) -> Value {
        let status = if self.holds { "True" } else { "False" };
        let before = before.iter().find(|old| old.type_ == self.kind && old.status == status);
        let condition = Condition {
            last_transition_time: before.map_or(Time(now), |old| old.last_transition_time.clone()),
            message: self.message.clone(),
            observed_generation: Some(generation),
            reason: self.reason.to_owned(),
            status: status.to_owned(),
            type_: self.kind.to_owned(),
        };
        // Plain data, which can always be written.
        serde_json::to_value(condition).unwrap_or_default()
    }
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
    if let Some(why) = rejected {
        said.push(Said { kind: "Programmed", holds: false, reason: "Invalid", message: why });
    }
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

/// Messages in one, as long as a condition may hold.
fn short<'a>(messages: impl Iterator<Item = &'a str>) -> String {
    let mut text = messages.collect::<Vec<_>>().join("; ");
    if text.len() > limits::STATUS_MESSAGE_BYTES {
        let end = (0..=limits::STATUS_MESSAGE_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
