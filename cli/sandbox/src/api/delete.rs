//! Deleting: preconditions, grace periods, finalizers, propagation.

use super::kinds::Resource;
use super::service::Call;
use super::status::ApiError;
use super::store::{Key, Object};
use super::{Body, admission, decode, settle, timestamp, timestamp_of, verbs};
use http::Response;
use serde_json::{Value, json};
use std::time::Duration;

/// Longest grace period counted; longer ones mean the same.
const LONGEST_GRACE: i64 = 10 * 365 * 24 * 3600;

/// `DeleteOptions`, from body and query.
struct Options {
    grace: Option<i64>,
    uid: Option<String>,
    revision: Option<String>,
    propagation: Option<String>,
    dry_run: bool,
}

impl Options {
    fn read(call: &Call, bytes: &[u8]) -> Result<Self, ApiError> {
        let body = if bytes.is_empty() { json!({}) } else { decode::parse(call, bytes)? };
        let text = |field: &str| body[field].as_str().or_else(|| call.query.get(field)).map(str::to_owned);
        let flag = |field: &str| body[field].as_bool().or_else(|| call.query.get(field).map(|value| value == "true"));
        let grace = body["gracePeriodSeconds"].as_i64().or_else(|| call.query.get("gracePeriodSeconds")?.parse().ok());
        let propagation = match (text("propagationPolicy"), flag("orphanDependents")) {
            (Some(policy), None) if !matches!(policy.as_str(), "Orphan" | "Background" | "Foreground") => {
                let why = format!(
                    "Unsupported value: \"{policy}\": supported values: \"Background\", \"Foreground\", \"Orphan\""
                );
                let cause = ("FieldValueNotSupported".to_owned(), "propagationPolicy".to_owned(), why);
                return Err(ApiError::invalid("DeleteOptions.meta.k8s.io", "", vec![cause]));
            }
            (Some(_), Some(_)) => {
                return Err(ApiError::bad_request("orphanDependents and deletionPropagation cannot be both set"));
            }
            (Some(policy), None) => Some(policy),
            (None, Some(true)) => Some("Orphan".to_owned()),
            (None, Some(false)) => Some("Background".to_owned()),
            (None, None) => None,
        };
        let dry_run = call.dry_run() || body["dryRun"].as_array().is_some_and(|all| all.iter().any(|v| v == "All"));
        let precondition = |field: &str| body["preconditions"][field].as_str().map(str::to_owned);
        Ok(Self { grace, uid: precondition("uid"), revision: precondition("resourceVersion"), propagation, dry_run })
    }

    /// The policy, or what Kubernetes does without one: jobs made by old clients keep their pods.
    fn propagation(&self, call: &Call) -> &str {
        match &self.propagation {
            Some(policy) => policy,
            None if call.resource.group == "batch" && call.resource.plural == "jobs" => {
                call.warn("child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning");
                "Orphan"
            }
            None => "Background",
        }
    }
}

/// Deletes the object asked for.
pub(super) async fn one(call: &Call, bytes: &[u8]) -> Result<Response<Body>, ApiError> {
    let options = Options::read(call, bytes)?;
    let deleted = delete(call, call.name(), &options).await?;
    if deleted.gone && !returns_object(&call.resource) {
        let details = json!({
            "name": call.name(), "group": call.resource.group, "kind": call.resource.plural,
            "uid": deleted.object["metadata"]["uid"],
        });
        return Ok(verbs::success(&call.accept, &details));
    }
    Ok(call.reply(200, &verbs::present(call, &deleted.object)))
}

/// Deletes everything a selector finds.
pub(super) async fn many(call: &Call, bytes: &[u8]) -> Result<Response<Body>, ApiError> {
    let options = Options::read(call, bytes)?;
    let (revision, objects) = call.api.store().list(&call.resource.collection(), verbs::scope(call));
    let selected = verbs::select(call, objects, &verbs::selector(call)?);
    let mut items = Vec::new();
    for object in selected {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        match delete(call, name, &options).await {
            Ok(deleted) => items.push(verbs::present(call, &deleted.object).into_owned()),
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let meta = json!({"resourceVersion": revision.to_string()});
    Ok(call.accept.respond(200, &call.accept.list(&call.resource, items, meta)))
}

/// Kinds whose deletion answers with the object rather than with a `Status`.
fn returns_object(resource: &Resource) -> bool {
    resource.group.is_empty()
        && matches!(resource.plural.as_str(), "pods" | "services" | "serviceaccounts" | "persistentvolumeclaims")
}

/// What a deletion came to.
struct Deleted {
    object: Object,
    /// False if the object waits for its grace period or finalizers.
    gone: bool,
}

/// Deletes an object as pods' eviction does: gracefully, in the background.
pub(super) async fn evict(call: &Call, bytes: &[u8]) -> Result<(), ApiError> {
    let options = Options::read(call, bytes)?;
    delete(call, call.name(), &options).await.map(|_| ())
}

async fn delete(call: &Call, name: &str, options: &Options) -> Result<Deleted, ApiError> {
    let (resource, store) = (&call.resource, call.api.store());
    let key = Key::new(call.namespace(), name);
    let not_found = || ApiError::not_found(&resource.qualified(), name);
    let current = store.get(&resource.collection(), &key.namespace, name).ok_or_else(not_found)?;
    protect(call, name)?;
    let policy = options.propagation(call);
    admission::check(call, admission::Operation::Delete, Some(&verbs::present(call, &current)), None).await?;
    settle::before_delete(call, name, &current, options.dry_run).await?;
    let deleted = store.transact(&resource.collection(), |tx| {
        let before = tx.get(&key).cloned().ok_or_else(not_found)?;
        check_preconditions(resource, name, options, &before)?;
        let next = decide(resource, &before, options.grace, policy, jiff::Timestamp::now());
        let gone = next.is_none();
        let object = match next {
            _ if options.dry_run => before.clone(),
            Some(next) if next == *before => before.clone(),
            Some(next) => tx.put(key.clone(), next),
            None => tx.remove(&key).unwrap_or_else(|| before.clone()),
        };
        Ok::<_, ApiError>(Deleted { object, gone })
    })?;
    if !options.dry_run {
        settle::after_write(call, (!deleted.gone).then_some(&deleted.object));
    }
    Ok(deleted)
}

fn protect(call: &Call, name: &str) -> Result<(), ApiError> {
    let is_namespace = call.resource.group.is_empty() && call.resource.plural == "namespaces";
    if is_namespace && matches!(name, "default" | "kube-system" | "kube-public") {
        return Err(ApiError::forbidden(format!(
            "namespaces \"{name}\" is forbidden: this namespace may not be deleted"
        )));
    }
    Ok(())
}

fn check_preconditions(resource: &Resource, name: &str, options: &Options, object: &Value) -> Result<(), ApiError> {
    for (wanted, field, label) in
        [(&options.uid, "uid", "UID"), (&options.revision, "resourceVersion", "ResourceVersion")]
    {
        let actual = object["metadata"][field].as_str().unwrap_or_default();
        if let Some(wanted) = wanted
            && wanted != actual
        {
            let why =
                format!("Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {actual}");
            return Err(ApiError::conflict(&resource.qualified(), name, why));
        }
    }
    Ok(())
}

/// The object as deletion leaves it, or `None` if it goes at once.
fn decide(
    resource: &Resource,
    object: &Value,
    grace: Option<i64>,
    policy: &str,
    now: jiff::Timestamp,
) -> Option<Value> {
    let mut next = object.clone();
    let mut finalizers: Vec<Value> = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    finalizers.retain(|finalizer| finalizer != "orphan" && finalizer != "foregroundDeletion");
    match policy {
        "Orphan" => finalizers.push("orphan".into()),
        "Foreground" => finalizers.push("foregroundDeletion".into()),
        _ => {}
    }
    let grace = grace_seconds(resource, object, grace);
    if finalizers.is_empty() {
        if let Some(metadata) = next["metadata"].as_object_mut() {
            metadata.shift_remove("finalizers");
        }
    } else {
        next["metadata"]["finalizers"] = Value::Array(finalizers);
    }
    let pending = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
    let already = object["metadata"]["deletionTimestamp"].is_string();
    if !already || pending.is_some_and(|pending| grace < pending) {
        let deadline = now.checked_add(Duration::from_secs(grace.unsigned_abs())).unwrap_or(now);
        next["metadata"]["deletionTimestamp"] = timestamp_of(deadline).into();
        next["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        if resource.counts_generations() && !already {
            next["metadata"]["generation"] = (object["metadata"]["generation"].as_i64().unwrap_or(0) + 1).into();
        }
    }
    if resource.group.is_empty() && resource.plural == "namespaces" {
        next["status"]["phase"] = "Terminating".into();
    }
    (!is_finished(resource, &next)).then_some(next)
}

/// Only pods have grace: the node needs time to stop their containers.
fn grace_seconds(resource: &Resource, object: &Value, asked: Option<i64>) -> i64 {
    if !(resource.group.is_empty() && resource.plural == "pods") {
        return 0;
    }
    let unscheduled = object["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unscheduled || ended {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    // A negative period means as soon as possible, but not at once.
    let grace = asked.unwrap_or(own);
    if grace < 0 { 1 } else { grace.min(LONGEST_GRACE) }
}

/// True if an object is being deleted and nothing holds it back any more.
pub(super) fn is_finished(resource: &Resource, object: &Value) -> bool {
    let metadata = &object["metadata"];
    let empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    metadata["deletionTimestamp"].is_string()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && empty(&metadata["finalizers"])
        && (resource.plural != "namespaces" || !resource.group.is_empty() || empty(&object["spec"]["finalizers"]))
}

/// Marks an object as being deleted, for deletions the API itself carries out over time.
pub(super) fn mark(object: &mut Value) {
    if !object["metadata"]["deletionTimestamp"].is_string() {
        object["metadata"]["deletionTimestamp"] = timestamp().into();
        object["metadata"]["deletionGracePeriodSeconds"] = 0.into();
    }
}

#[cfg(test)]
mod tests {
    use super::super::kinds::Registry;
    use super::*;

    fn outcome(plural: &str, object: Value, grace: Option<i64>, policy: &str) -> String {
        let registry = Registry::built_in();
        let resource = registry.find("", "v1", plural).unwrap();
        match decide(resource, &object, grace, policy, "2026-01-01T00:00:00Z".parse().unwrap()) {
            None => "gone".to_owned(),
            Some(next) => {
                let meta = &next["metadata"];
                format!("{} {} {}", meta["deletionTimestamp"], meta["deletionGracePeriodSeconds"], meta["finalizers"])
            }
        }
    }

    #[test]
    fn deletes_as_kubernetes_does() {
        let running = json!({"metadata": {}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5}});
        let ending = json!({
            "metadata": {"deletionTimestamp": "2026-01-01T00:00:05Z", "deletionGracePeriodSeconds": 5},
            "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5},
        });
        let cases = [
            ("configmaps", json!({"metadata": {}}), None, "Background", "gone"),
            (
                "configmaps",
                json!({"metadata": {"finalizers": ["a"]}}),
                None,
                "Background",
                "\"2026-01-01T00:00:00Z\" 0 [\"a\"]",
            ),
            (
                "configmaps",
                json!({"metadata": {}}),
                None,
                "Foreground",
                "\"2026-01-01T00:00:00Z\" 0 [\"foregroundDeletion\"]",
            ),
            ("pods", running.clone(), None, "Background", "\"2026-01-01T00:00:05Z\" 5 null"),
            ("pods", running.clone(), Some(1), "Background", "\"2026-01-01T00:00:01Z\" 1 null"),
            ("pods", running, Some(0), "Background", "gone"),
            ("pods", json!({"metadata": {}, "spec": {}}), None, "Background", "gone"),
            ("pods", ending.clone(), None, "Background", "\"2026-01-01T00:00:05Z\" 5 null"),
            ("pods", ending, Some(0), "Background", "gone"),
            (
                "namespaces",
                json!({"metadata": {}, "spec": {"finalizers": ["kubernetes"]}}),
                None,
                "Background",
                "\"2026-01-01T00:00:00Z\" 0 null",
            ),
        ];
        for (plural, object, grace, policy, expect) in cases {
            assert_eq!(outcome(plural, object.clone(), grace, policy), expect, "{plural} {object} {grace:?} {policy}");
        }
    }
}
