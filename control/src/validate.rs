//! What cannot work, whatever else there is: the field and why. The webhook refuses it ([`crate::validation`]), `meshctl lint`
//! finds it in files. Pure.
//!
//! Definitions refuse what a schema or a rule can tell, also while control is down; here is what needs more than that. Of
//! routes only values that no release could use are refused. What is not known or not supported is told in their status.

use crate::compile::{self, access::fault};
use crate::world::World;
use crate::world::route::{RouteKind, read};
use crate::world::traffic_policy::TrafficPolicyView;
use crate::world::view::Name;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh_api::access::Source;
use mesh_api::{Network, SpiffeId};
use mesh_manifests::policies::{AccessPolicySpec, EgressPolicySpec, GROUP, TrafficPolicy};
use serde_json::Value;

/// Something that cannot work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Path of the field: `spec.rules[0].from[1].networks[0]`.
    pub field: String,
    /// Why.
    pub why: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

fn add(faults: &mut Vec<Fault>, field: impl Into<String>, why: impl Into<String>) {
    faults.push(Fault { field: field.into(), why: why.into() });
}

/// Everything about an object that cannot work; nothing for kinds that are not ours to judge.
pub fn faults(object: &Value) -> Vec<Fault> {
    let (kind, version) =
        (object["kind"].as_str().unwrap_or_default(), object["apiVersion"].as_str().unwrap_or_default());
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let meta: ObjectMeta = serde_json::from_value(object["metadata"].clone()).unwrap_or_default();
    match (group, kind) {
        (GROUP, "AccessPolicy") => access(&meta, &object["spec"]),
        (GROUP, "TrafficPolicy") => traffic(&meta, object),
        (GROUP, "EgressPolicy") => egress(&object["spec"]),
        (read::GROUP, _) => match RouteKind::ALL.into_iter().find(|known| known.kind() == kind) {
            Some(kind) => route(kind, &meta, object),
            None => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// Of a route with a Service as parent; others are none of the mesh's business.
fn route(kind: RouteKind, meta: &ObjectMeta, object: &Value) -> Vec<Fault> {
    let view = read::route(kind, meta, object);
    if view.parents.is_empty() {
        return Vec::new();
    }
    let problems = view.problems.iter().chain(view.rules.iter().flat_map(|rule| &rule.problems));
    let fault = |text: &str| {
        let (path, why) = text.split_once(": ").unwrap_or(("spec", text));
        let field = if path.starts_with("spec") { path.to_owned() } else { format!("spec.{path}") };
        Fault { field, why: why.to_owned() }
    };
    problems.filter(|problem| problem.wrong).map(|problem| fault(&problem.text)).collect()
}

fn access(meta: &ObjectMeta, spec: &Value) -> Vec<Fault> {
    let mut faults = networks(spec);
    if !faults.is_empty() {
        return faults;
    }
    let read = match serde_json::from_value::<AccessPolicySpec>(spec.clone()) {
        Ok(read) => read,
        Err(error) => {
            add(&mut faults, "spec", error.to_string());
            return faults;
        }
    };
    // Without a world every Service is missing; that is no fault of the policy's.
    if let Some(("Invalid", why)) = fault(&World::default(), &Name::of(meta), &read) {
        let (field, why) = why.split_once(' ').unwrap_or(("spec.target", &why));
        add(&mut faults, field, why);
    }
    for (number, clause) in read.rules.iter().enumerate() {
        for (at, from) in clause.from.iter().enumerate() {
            caller(&mut faults, &format!("spec.rules[{number}].from[{at}]"), from);
        }
    }
    faults
}

fn egress(spec: &Value) -> Vec<Fault> {
    let mut faults = networks(spec);
    if !faults.is_empty() {
        return faults;
    }
    match serde_json::from_value::<EgressPolicySpec>(spec.clone()) {
        Ok(read) => {
            if let Some((_, why)) = compile::egress::fault(&read) {
                let (field, why) = why.split_once(' ').unwrap_or(("spec.target", &why));
                add(&mut faults, field, why);
            }
        }
        Err(error) => add(&mut faults, "spec", error.to_string()),
    }
    faults
}

fn traffic(meta: &ObjectMeta, object: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    match serde_json::from_value::<TrafficPolicy>(object.clone()) {
        Ok(policy) => {
            // Without a world no target is there; that is no fault of the policy's.
            let found = compile::traffic::fault(&World::default(), &Name::of(meta), &TrafficPolicyView::from(&policy));
            if let Some(("Invalid", why)) = found {
                let (path, why) = why.split_once(": ").unwrap_or(("", &why));
                add(&mut faults, format!("spec.{path}"), why);
            }
        }
        Err(error) => add(&mut faults, "spec", error.to_string()),
    }
    faults
}

/// Networks in rules that are none, each with its path.
fn networks(spec: &Value) -> Vec<Fault> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default().into_iter().enumerate();
    let mut faults = Vec::new();
    for (rule, clause) in list(&spec["rules"]) {
        // Those of a destination, and those of each caller.
        let callers = list(&clause["from"]).map(|(at, from)| (format!("spec.rules[{rule}].from[{at}]"), from));
        for (path, holder) in callers.chain([(format!("spec.rules[{rule}]"), clause.clone())]) {
            for (index, network) in list(&holder["networks"]) {
                if let Some(Err(why)) = network.as_str().map(str::parse::<Network>) {
                    add(&mut faults, format!("{path}.networks[{index}]"), why.to_string());
                }
            }
        }
    }
    faults
}

/// All conditions on a caller must hold, so those of one entry must be able to hold together.
fn caller(faults: &mut Vec<Fault>, path: &str, from: &Source) {
    let mut namespaces = Vec::new();
    for (index, identity) in from.identities.iter().enumerate() {
        if identity.contains('*') {
            continue;
        }
        match identity.parse::<SpiffeId>() {
            Ok(identity) => namespaces.push(identity.namespace),
            Err(why) => add(faults, format!("{path}.identities[{index}]"), format!("{why}, and no pattern with *")),
        }
    }
    let patterns = from.identities.iter().any(|identity| identity.contains('*'));
    let contradicts = |of: &[String]| {
        !of.is_empty() && !from.namespaces.is_empty() && of.iter().all(|one| !from.namespaces.contains(one))
    };
    if !patterns && contradicts(&namespaces) {
        add(
            faults,
            format!("{path}.namespaces"),
            "nobody with one of the identities runs in any of them, and both must hold",
        );
    }
    let of_accounts: Option<Vec<String>> = from
        .service_accounts
        .iter()
        .map(|name| name.split_once('/').map(|(namespace, _)| namespace.to_owned()))
        .collect();
    if of_accounts.is_some_and(|of| contradicts(&of)) {
        add(faults, format!("{path}.namespaces"), "none of the service accounts is in any of them, and both must hold");
    }
}
