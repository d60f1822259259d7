//! CEL rules of custom resources (`x-kubernetes-validations`), for objects that match their schema otherwise.

use super::Findings;
use kube_cel::{RootContext, Validator};
use serde_json::Value;

const RULES: &str = "x-kubernetes-validations";

/// Checks an object against the rules of its schema; those about changes need what it replaces.
pub(super) fn check(schema: &Value, object: &Value, old: Option<&Value>, found: &mut Findings) {
    if !has_rules(schema) {
        return;
    }
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    let api_version = text("apiVersion");
    let api_group = api_version.split_once('/').map_or("", |(group, _)| group).to_owned();
    let root = RootContext { api_version, api_group, kind: text("kind") };
    let Err(errors) = Validator::new().validate_with_context(schema, object, old, Some(&root)) else { return };
    for error in errors {
        let field = if error.field_path.is_empty() { "<nil>".to_owned() } else { error.field_path.clone() };
        let reason = error.reason.as_deref().unwrap_or("FieldValueInvalid");
        found.add(reason, field, format!("Invalid value: {}", error.message));
    }
}

fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key(RULES) || map.values().any(has_rules),
        Value::Array(items) => items.iter().any(has_rules),
        _ => false,
    }
}

/// Rules of a schema that cannot be read: where they stand and what is wrong with them.
pub fn unreadable(schema: &Value, path: &str, wrong: &mut Vec<(String, String)>) {
    match schema {
        Value::Object(map) => {
            for (index, rule) in map.get(RULES).and_then(Value::as_array).into_iter().flatten().enumerate() {
                let text = rule["rule"].as_str().unwrap_or_default();
                if let Err(error) = kube_cel::cel::Program::compile(text) {
                    let why = format!("Invalid value: {text:?}: compilation failed: {error}");
                    wrong.push((format!("{path}.{RULES}[{index}].rule"), why));
                }
            }
            for (name, inner) in map {
                unreadable(inner, &format!("{path}.{name}"), wrong);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                unreadable(inner, &format!("{path}[{index}]"), wrong);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.min <= self.max", "message": "min must not be above max"},
                {"rule": "!has(oldSelf.name) || self.name == oldSelf.name", "message": "name cannot change"}],
            "properties": {
                "min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string"},
                "hosts": {"type": "array", "items": {"type": "string",
                    "x-kubernetes-validations": [{"rule": "self.startsWith('a')", "reason": "FieldValueForbidden"}]}}}}}})
    }

    #[track_caller]
    fn finds(spec: Value, old: Option<Value>, expect: &[(&str, &str)]) {
        let object =
            |spec: Value| json!({"apiVersion": "x.dev/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec});
        let mut found = Findings::default();
        check(&schema(), &object(spec), old.map(object).as_ref(), &mut found);
        let found: Vec<(&str, &str)> = found.0.iter().map(|(reason, field, _)| (&**reason, &**field)).collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn rules_decide() {
        finds(json!({"min": 1, "max": 2, "name": "n", "hosts": ["ab"]}), None, &[]);
        finds(json!({"min": 3, "max": 2}), None, &[("FieldValueInvalid", "spec")]);
        finds(json!({"min": 1, "max": 2, "hosts": ["ab", "b"]}), None, &[("FieldValueForbidden", "spec.hosts[1]")]);
    }

    #[test]
    fn rules_about_changes_see_what_was_there() {
        let old = json!({"min": 1, "max": 2, "name": "n"});
        finds(json!({"min": 1, "max": 2, "name": "n"}), Some(old.clone()), &[]);
        finds(json!({"min": 1, "max": 2, "name": "other"}), Some(old), &[("FieldValueInvalid", "spec")]);
    }

    #[test]
    fn rules_that_cannot_be_read_are_found_where_they_stand() {
        let mut wrong = Vec::new();
        unreadable(&schema(), "schema", &mut wrong);
        assert_eq!(wrong, []);
        let schema = json!({"properties": {"a": {"x-kubernetes-validations": [{"rule": "self <"}]}}});
        unreadable(&schema, "schema", &mut wrong);
        assert_eq!(wrong.len(), 1);
        assert_eq!(wrong[0].0, "schema.properties.a.x-kubernetes-validations[0].rule");
        assert!(wrong[0].1.contains("compilation failed"), "{wrong:?}");
    }

    #[test]
    fn rules_of_the_meshs_own_kinds_can_be_read() {
        let definitions = mesh_manifests::policies::definitions().unwrap();
        assert!(!definitions.is_empty());
        for definition in definitions {
            let mut wrong = Vec::new();
            unreadable(&definition, "", &mut wrong);
            assert_eq!(wrong, []);
        }
    }
}
