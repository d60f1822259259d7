//! Custom resources: definitions are accepted, served at once, and their objects pruned to their schemas.
//!
//! Versions convert by changing their `apiVersion` (strategy `None`); webhook conversion is refused.

use super::kinds::{Registry, Resource};
use super::status::ApiError;
use super::store::Key;
use super::validate::unreadable;
use super::{Api, aggregation, delete, timestamp};
use serde_json::{Value, json};
use std::sync::Arc;

const COLLECTION: &str = "customresourcedefinitions.apiextensions.k8s.io";
/// Keeps a definition until the last of its objects is gone.
const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// True for the resource that holds definitions.
pub(super) fn is_definition(resource: &Resource) -> bool {
    resource.group == "apiextensions.k8s.io" && resource.plural == "customresourcedefinitions"
}

/// Fills in a definition: names, conversion, and the status that says it is served.
pub(super) fn complete(api: &Api, definition: &mut Value) {
    let kind = definition["spec"]["names"]["kind"].as_str().unwrap_or_default().to_owned();
    let names = &mut definition["spec"]["names"];
    if names["singular"].as_str().is_none_or(str::is_empty) {
        names["singular"] = kind.to_lowercase().into();
    }
    if names["listKind"].as_str().is_none_or(str::is_empty) {
        names["listKind"] = format!("{kind}List").into();
    }
    let names = names.clone();
    if !definition["spec"]["conversion"].is_object() {
        definition["spec"]["conversion"] = json!({"strategy": "None"});
    }
    let mut stored = definition["status"]["storedVersions"].as_array().cloned().unwrap_or_default();
    for version in definition["spec"]["versions"].as_array().into_iter().flatten() {
        if version["storage"] == true && !stored.contains(&version["name"]) {
            stored.push(version["name"].clone());
        }
    }
    let conflict = conflict(api, definition);
    let old = definition["status"]["conditions"].take();
    let condition = |kind: &str, good: bool, reason: &str, message: &str| {
        let status = if good { "True" } else { "False" };
        let before = old.as_array().into_iter().flatten().find(|c| c["type"] == kind && c["status"] == status);
        let since = before.map_or_else(|| timestamp().into(), |before| before["lastTransitionTime"].clone());
        json!({"type": kind, "status": status, "lastTransitionTime": since, "reason": reason, "message": message})
    };
    let conditions = match &conflict {
        None => json!([
            condition("NamesAccepted", true, "NoConflicts", "no conflicts found"),
            condition("Established", true, "InitialNamesAccepted", "the initial names have been accepted"),
        ]),
        Some(why) => json!([
            condition("NamesAccepted", false, "NameConflict", why),
            condition("Established", false, "NotAccepted", "not all names are accepted"),
        ]),
    };
    let accepted = if conflict.is_none() { names } else { json!({"plural": "", "kind": ""}) };
    definition["status"] = json!({"conditions": conditions, "acceptedNames": accepted, "storedVersions": stored});
}

/// Why the names of a definition cannot be accepted: another one of its group has one of them.
fn conflict(api: &Api, definition: &Value) -> Option<String> {
    let group = &definition["spec"]["group"];
    let (_, others) = api.store().list(COLLECTION, None);
    let others = others.iter().filter(|other| {
        other["spec"]["group"] == *group && other["metadata"]["name"] != definition["metadata"]["name"]
    });
    let names = |definition: &Value| -> Vec<String> {
        let names = &definition["spec"]["names"];
        let own = ["plural", "singular", "kind"].into_iter().filter_map(|field| names[field].as_str());
        let short = names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str);
        own.chain(short).map(str::to_owned).collect()
    };
    let own = names(definition);
    others
        .flat_map(|other| names(other))
        .find(|name| own.contains(name))
        .map(|name| format!("\"{name}\" is already in use"))
}

/// Refuses definitions that cannot be served.
pub(super) fn check(definition: &Value) -> Result<(), ApiError> {
    let spec = &definition["spec"];
    let mut causes = Vec::new();
    let mut bad = |reason: &str, field: String, why: String| causes.push((reason.to_owned(), field, why));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = text(&definition["metadata"]["name"]);
    let expected = format!("{}.{}", text(&spec["names"]["plural"]), text(&spec["group"]));
    for (field, value) in [
        ("spec.group", &spec["group"]),
        ("spec.names.plural", &spec["names"]["plural"]),
        ("spec.names.kind", &spec["names"]["kind"]),
    ] {
        if text(value).is_empty() {
            bad("FieldValueRequired", field.to_owned(), "Required value".to_owned());
        }
    }
    if name != expected {
        bad(
            "FieldValueInvalid",
            "metadata.name".to_owned(),
            format!("Invalid value: \"{name}\": must be spec.names.plural+\".\"+spec.group"),
        );
    }
    if !matches!(spec["scope"].as_str(), Some("Cluster" | "Namespaced")) {
        let scope = text(&spec["scope"]);
        bad(
            "FieldValueNotSupported",
            "spec.scope".to_owned(),
            format!("Unsupported value: \"{scope}\": supported values: \"Cluster\", \"Namespaced\""),
        );
    }
    if spec["conversion"]["strategy"] != "None" {
        bad(
            "FieldValueNotSupported",
            "spec.conversion.strategy".to_owned(),
            "Unsupported value: this cluster converts with strategy \"None\" only".to_owned(),
        );
    }
    if spec["preserveUnknownFields"] == true {
        bad(
            "FieldValueInvalid",
            "spec.preserveUnknownFields".to_owned(),
            "Invalid value: true: must be false in order to use defaults in the schema".to_owned(),
        );
    }
    let versions = spec["versions"].as_array().cloned().unwrap_or_default();
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        bad(
            "FieldValueInvalid",
            "spec.versions".to_owned(),
            "Invalid value: must have exactly one version marked as storage version".to_owned(),
        );
    }
    for (index, version) in versions.iter().enumerate() {
        if !version["schema"]["openAPIV3Schema"].is_object() {
            bad(
                "FieldValueRequired",
                format!("spec.versions[{index}].schema.openAPIV3Schema"),
                "Required value: schemas are required".to_owned(),
            );
        } else if version["schema"]["openAPIV3Schema"]["type"] != "object" {
            bad(
                "FieldValueInvalid",
                format!("spec.versions[{index}].schema.openAPIV3Schema.type"),
                "Invalid value: must be object at the root".to_owned(),
            );
        }
        let schema = format!("spec.versions[{index}].schema.openAPIV3Schema");
        let mut wrong = Vec::new();
        unreadable(&version["schema"]["openAPIV3Schema"], &schema, &mut wrong);
        wrong.into_iter().for_each(|(field, why)| bad("FieldValueInvalid", field, why));
    }
    if causes.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid("CustomResourceDefinition.apiextensions.k8s.io", &name, causes))
    }
}

/// Serves what the definitions now define.
pub(super) fn serve_definitions(api: &Api) {
    let (_, definitions) = api.store().list(COLLECTION, None);
    let established = definitions.iter().filter(|definition| is_established(definition));
    let resources = established.flat_map(|definition| resources(definition));
    let registry = Arc::new(Registry::with_custom(resources));
    *api.inner.registry.write() = registry;
    aggregation::sync_local(api);
}

/// What a definition has served, a resource a version.
pub(super) fn resources(definition: &Value) -> Vec<Resource> {
    let versions = definition["spec"]["versions"].as_array().cloned().unwrap_or_default();
    let served = versions.into_iter().filter(|version| version["served"] == true);
    served.map(|version| resource(definition, version)).collect()
}

fn is_established(definition: &Value) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Established" && c["status"] == "True")
}

fn resource(definition: &Value, version: Value) -> Resource {
    let (spec, names) = (&definition["spec"], &definition["spec"]["names"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().into_iter().flatten().map(text).collect();
    let subresources = ["scale", "status"].into_iter().filter(|name| version["subresources"][*name].is_object());
    Resource {
        group: text(&spec["group"]),
        version: text(&version["name"]),
        kind: text(&names["kind"]),
        plural: text(&names["plural"]),
        singular: text(&names["singular"]),
        short_names: list(&names["shortNames"]),
        categories: list(&names["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        subresources: subresources.map(str::to_owned).collect(),
        custom: Some(Arc::new(version)),
    }
}

/// Makes a definition wait for its objects before it is deleted.
pub(super) fn hold(api: &Api, name: &str) {
    api.store().transact(COLLECTION, |tx| {
        let key = Key::new("", name);
        let Some(definition) = tx.get(&key) else { return };
        let mut held = Value::clone(definition);
        let mut finalizers = held["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        if held["metadata"]["deletionTimestamp"].is_string() || finalizers.iter().any(|f| f == FINALIZER) {
            return;
        }
        finalizers.push(FINALIZER.into());
        held["metadata"]["finalizers"] = finalizers.into();
        tx.put(key, held);
    });
}

/// Deletes the objects of definitions that are going, and those definitions whose objects are gone.
pub(super) fn clean_up(api: &Api) {
    let (_, definitions) = api.store().list(COLLECTION, None);
    for definition in definitions.iter().filter(|d| d["metadata"]["deletionTimestamp"].is_string()) {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        let left = api.store().transact(name, |tx| {
            let objects: Vec<_> = tx.objects().cloned().collect();
            let mut left = 0;
            for object in objects {
                let part = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
                let key = Key::new(part("namespace"), part("name"));
                if object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty) {
                    tx.remove(&key);
                } else {
                    left += 1;
                    let mut going = Value::clone(&object);
                    delete::mark(&mut going);
                    if going != *object {
                        tx.put(key, going);
                    }
                }
            }
            left
        });
        if left == 0 {
            release(api, name);
        }
    }
}

fn release(api: &Api, name: &str) {
    api.store().transact(COLLECTION, |tx| {
        let key = Key::new("", name);
        let Some(definition) = tx.get(&key) else { return };
        let mut next = Value::clone(definition);
        let mut finalizers = next["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        let last = finalizers.is_empty();
        next["metadata"]["finalizers"] = finalizers.into();
        if last {
            tx.remove_as(&key, next);
        } else {
            tx.put(key, next);
        }
    });
    api.store().drop_collection(name);
    serve_definitions(api);
}

/// Drops fields a custom resource's schema does not know.
pub(super) fn prune(resource: &Resource, object: &mut Value) {
    let Some(version) = &resource.custom else { return };
    let schema = &version["schema"]["openAPIV3Schema"];
    prune_to(schema, object, true);
}

fn prune_to(schema: &Value, value: &mut Value, is_resource: bool) {
    match value {
        Value::Object(fields) => {
            let keeps = schema["x-kubernetes-preserve-unknown-fields"] == true;
            let additional = &schema["additionalProperties"];
            let resource_field = |key: &str| is_resource && matches!(key, "apiVersion" | "kind" | "metadata");
            fields.retain(|key, _| {
                resource_field(key)
                    || keeps
                    || !schema["properties"][key.as_str()].is_null()
                    || additional.is_object()
                    || *additional == true
            });
            for (key, value) in fields.iter_mut().filter(|(key, _)| !resource_field(key)) {
                let property = &schema["properties"][key.as_str()];
                let inner = if property.is_null() { additional } else { property };
                if inner.is_object() {
                    prune_to(inner, value, inner["x-kubernetes-embedded-resource"] == true);
                }
            }
        }
        Value::Array(items) if schema["items"].is_object() => {
            let inner = &schema["items"];
            items.iter_mut().for_each(|item| prune_to(inner, item, inner["x-kubernetes-embedded-resource"] == true));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prunes_what_no_schema_names() {
        let schema = json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "known": {"type": "string"},
                "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "integer"}}}},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {}}}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "empty": {"type": "object"},
            }},
        }});
        let mut object = json!({
            "apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"}, "other": 1,
            "spec": {
                "known": "a", "unknown": 1, "list": [{"a": 1, "b": 2}], "map": {"x": {"a": 1, "b": 2}},
                "free": {"any": {"thing": 1}}, "empty": {"x": 1},
            },
        });
        prune_to(&schema, &mut object, true);
        assert_eq!(
            object,
            json!({
                "apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"},
                "spec": {
                    "known": "a", "list": [{"a": 1}], "map": {"x": {"a": 1}}, "free": {"any": {"thing": 1}}, "empty": {},
                },
            })
        );
    }

    #[test]
    fn checks_definitions() {
        let good = json!({
            "metadata": {"name": "things.example.com"},
            "spec": {
                "group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
                "conversion": {"strategy": "None"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}],
            },
        });
        check(&good).unwrap();
        for (pointer, value, expect) in [
            ("/metadata/name", json!("thing.example.com"), "must be spec.names.plural+\".\"+spec.group"),
            ("/spec/scope", json!("World"), "supported values: \"Cluster\", \"Namespaced\""),
            ("/spec/versions/0/storage", json!(false), "exactly one version marked as storage version"),
            ("/spec/versions/0/schema", json!({}), "schemas are required"),
            ("/spec/conversion/strategy", json!("Webhook"), "strategy \"None\" only"),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            let error = check(&bad).unwrap_err();
            assert!(error.message.contains(expect), "{pointer}: {error}");
        }
    }
}
