//! Routes and policies: does the cluster have their kinds, and has the control plane anything to say against one.

use super::{Finding, Subject};
use crate::error::{Context, Error};
use kube::Api;
use kube::api::{DynamicObject, ListParams};
use mesh_control::kinds::{self, CustomKind};
use mesh_control::status::route::CONTROLLER;
use mesh_control::world::route::RouteKind;
use mesh_manifests::policies;
use serde_json::Value;
use std::sync::Arc;

/// How many objections are told.
const TOLD: usize = 3;

/// Are the Gateway API's kinds installed?
pub(super) async fn installed(subject: Arc<Subject>) -> Result<Finding, Error> {
    let mut missing = Vec::new();
    for kind in kinds::all() {
        if kind.find(&subject.cluster.client).await.during(|| format!("look for the kind {}", kind.kind))?.is_none() {
            missing.push(kind.kind);
        }
    }
    Ok(judge_installed(&missing))
}

fn judge_installed(missing: &[&str]) -> Finding {
    // The standard channel has neither of the last two.
    let needed = ["HTTPRoute", "GRPCRoute", "TLSRoute", "ReferenceGrant"];
    if missing.iter().any(|kind| needed.contains(kind)) {
        return Finding::warning(
            format!("the cluster does not have {}: there can be no such routes", missing.join(", ")),
            "kubectl apply --server-side -f \
             https://github.com/kubernetes-sigs/gateway-api/releases/latest/download/standard-install.yaml",
        );
    }
    Finding::ok(match missing {
        [] => "every kind is there".to_owned(),
        missing => format!("all but the experimental {}", missing.join(", ")),
    })
}

/// Is every route accepted, and does it lead somewhere?
pub(super) async fn accepted(subject: Arc<Subject>) -> Result<Finding, Error> {
    judge(&subject, "route", RouteKind::ALL.into_iter().map(kinds::of_routes), objection).await
}

/// Is every policy of ours in force?
pub(super) async fn policies(subject: Arc<Subject>) -> Result<Finding, Error> {
    let ours = policies::KINDS.iter().filter_map(|known| kinds::of_policies(known.kind));
    judge(&subject, "policy", ours, |status| first_bad(status["conditions"].as_array().into_iter().flatten())).await
}

/// Looks at the status of every object of some kinds; those that are not installed have none.
async fn judge(
    subject: &Subject,
    what: &str,
    kinds: impl Iterator<Item = CustomKind>,
    objection: impl Fn(&Value) -> Option<String>,
) -> Result<Finding, Error> {
    let (mut count, mut objections) = (0, Vec::new());
    for kind in kinds {
        let tried = || format!("list objects of the kind {}", kind.kind);
        let client = &subject.cluster.client;
        let Some(resource) = kind.find(client).await.during(tried)? else { continue };
        let api: Api<DynamicObject> = match &subject.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        for object in api.list(&ListParams::default()).await.during(tried)? {
            let metadata = &object.metadata;
            let namespace = metadata.namespace.as_deref().unwrap_or_default();
            let name = format!("{} {namespace}/{}", kind.kind, metadata.name.as_deref().unwrap_or_default());
            objections.extend(objection(&object.data["status"]).map(|found| format!("{name}: {found}")));
            count += 1;
        }
    }
    Ok(judge_accepted(what, count, &objections))
}

/// The first thing that the control plane has against a route.
fn objection(status: &Value) -> Option<String> {
    let parents = status["parents"].as_array().into_iter().flatten();
    let ours = parents.filter(|parent| parent["controllerName"] == CONTROLLER);
    first_bad(ours.flat_map(|parent| parent["conditions"].as_array().into_iter().flatten()))
}

/// What the first condition says that is not as it should be.
fn first_bad<'a>(mut conditions: impl Iterator<Item = &'a Value>) -> Option<String> {
    let bad = conditions.find(|condition| {
        let wanted = if condition["type"] == "PartiallyInvalid" { "False" } else { "True" };
        condition["status"] != wanted
    })?;
    let text = |name: &str| bad[name].as_str().unwrap_or_default();
    Some(format!("{} ({})", text("message"), text("reason")))
}

fn judge_accepted(what: &str, count: usize, objections: &[String]) -> Finding {
    if objections.is_empty() {
        return Finding::ok(match (what, count) {
            (_, 0) => "there are none".to_owned(),
            (what, 1) => format!("1 {what}"),
            ("policy", count) => format!("{count} policies"),
            (what, count) => format!("{count} {what}s"),
        });
    }
    let mut told = objections.iter().take(TOLD).cloned().collect::<Vec<_>>().join("; ");
    if objections.len() > TOLD {
        told.push_str(&format!("; and {} more", objections.len() - TOLD));
    }
    Finding::warning(told, format!("look at the {what}'s status: kubectl describe it, and mend what it names"))
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use serde_json::json;

    #[test]
    fn kinds_of_the_experimental_channel_may_be_missing() {
        assert_eq!(judge_installed(&[]).status, Status::Ok);
        assert_eq!(judge_installed(&["TCPRoute", "XBackendTrafficPolicy"]).status, Status::Ok);
        let finding = judge_installed(&["HTTPRoute"]);
        assert_eq!(finding.status, Status::Warning);
        assert!(finding.seen.contains("HTTPRoute") && finding.fix.is_some());
    }

    #[test]
    fn the_control_planes_objections_are_told_and_no_others() {
        let condition =
            |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "R", "message": "m"});
        let status = |controller: &str, conditions: &[Value]| json!({"parents": [{"controllerName": controller, "conditions": conditions}]});
        let check = |status: Value, expect: Option<&str>| assert_eq!(objection(&status).as_deref(), expect, "{status}");
        check(Value::Null, None);
        check(status(CONTROLLER, &[condition("Accepted", "True"), condition("ResolvedRefs", "True")]), None);
        check(status(CONTROLLER, &[condition("Accepted", "True"), condition("ResolvedRefs", "False")]), Some("m (R)"));
        check(status(CONTROLLER, &[condition("PartiallyInvalid", "True")]), Some("m (R)"));
        check(status("example.com/other", &[condition("Accepted", "False")]), None);
        assert_eq!(judge_accepted("route", 2, &["a".to_owned()]).status, Status::Warning);
        assert_eq!(judge_accepted("route", 2, &[]).seen, "2 routes");
        assert_eq!(judge_accepted("policy", 2, &[]).seen, "2 policies");
        let refused = [condition("Accepted", "True"), condition("Programmed", "False")];
        assert_eq!(first_bad(refused.iter()).as_deref(), Some("m (R)"));
    }
}
