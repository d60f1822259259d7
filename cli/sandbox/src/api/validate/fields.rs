//! Objects against the fields and types of their kind, before anything else looks at them.

use super::super::kinds::Resource;
use super::super::schema::Shape;
use super::super::status::ApiError;
use serde_json::Value;

/// Most unknown fields reported of one object.
const MOST_REPORTED: usize = 100;

/// Refuses an object that has something of another type where its kind has a field: it cannot even be read. Of custom
/// objects only the metadata is judged; their schema judges the rest.
pub fn check_types(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    let root = Shape::of(resource);
    let wrong = match &resource.custom {
        None => first_mismatch(root, object, String::new()),
        Some(_) => first_mismatch(root.field("metadata"), &object["metadata"], "metadata".to_owned()),
    };
    let Some(mismatch) = wrong else { return Ok(()) };
    let (kind, version) = (&resource.kind, &resource.version);
    Err(ApiError::bad_request(format!(
        "{kind} in version \"{version}\" cannot be handled as a {kind}: json: cannot unmarshal {} into Go struct field {kind}.{} of type {}",
        mismatch.found, mismatch.path, mismatch.wanted
    )))
}

/// What stands at a path where something else belongs.
struct Mismatch {
    path: String,
    found: &'static str,
    wanted: String,
}

fn first_mismatch(shape: Shape<'_>, value: &Value, path: String) -> Option<Mismatch> {
    let schema = shape.schema();
    if value.is_null() {
        return None;
    }
    let wanted = schema["type"].as_str();
    let fits = if schema["x-kubernetes-int-or-string"] == true {
        value.is_number() || value.is_string()
    } else {
        match wanted {
            Some("string") => value.is_string(),
            Some("integer") => value.is_i64() || value.is_u64(),
            Some("number") => value.is_number(),
            Some("boolean") => value.is_boolean(),
            Some("array") => value.is_array(),
            Some("object") => value.is_object(),
            _ => true,
        }
    };
    if !fits {
        let wanted = match wanted.unwrap_or("intstr.IntOrString") {
            "integer" => schema["format"].as_str().unwrap_or("int64"),
            "boolean" => "bool",
            "number" => "float64",
            "array" => "[]object",
            other => other,
        };
        return Some(Mismatch { path, found: name_of(value), wanted: wanted.to_owned() });
    }
    match value {
        Value::Object(fields) => {
            fields.iter().find_map(|(name, value)| first_mismatch(shape.field(name), value, join(&path, name)))
        }
        Value::Array(items) => {
            let inner = shape.items();
            items.iter().enumerate().find_map(|(index, item)| first_mismatch(inner, item, format!("{path}[{index}]")))
        }
        _ => None,
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Fields that the resource's schema does not know, as `spec.foo` paths, for `fieldValidation=Strict|Warn`.
pub fn unknown_fields(resource: &Resource, object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    unknown(Shape::of(resource), object, "", &mut found);
    found
}

fn unknown(shape: Shape<'_>, value: &Value, path: &str, found: &mut Vec<String>) {
    if shape.schema().is_null() {
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if found.len() >= MOST_REPORTED {
                    return;
                }
                let path = join(path, name);
                if shape.knows(name) {
                    unknown(shape.field(name), value, &path, found);
                } else {
                    found.push(path);
                }
            }
        }
        Value::Array(items) => {
            let inner = shape.items();
            for (index, item) in items.iter().enumerate() {
                unknown(inner, item, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::kinds::Registry;
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn resource(plural: &str) -> Resource {
        Registry::built_in()
            .all()
            .iter()
            .find(|resource| resource.plural == plural)
            .map(|r| Resource::clone(r))
            .unwrap()
    }

    #[test]
    fn types_must_fit() {
        let check = |plural, object| check_types(&resource(plural), &object).map_err(|error| error.message).err();
        let good = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "a", "creationTimestamp": null, "labels": {"a": "b"}},
            "spec": {"replicas": 1, "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
                "template": {"spec": {"containers": [{"resources": {"limits": {"cpu": 0.5, "memory": "1Gi"}}}]}}},
        });
        assert_eq!(check("deployments", good), None);
        let cases = [
            (
                json!({"spec": {"replicas": "3"}}),
                "cannot unmarshal string into Go struct field Deployment.spec.replicas of type int32",
            ),
            (json!({"spec": "x"}), "string into Go struct field Deployment.spec of type object"),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                "number into Go struct field Deployment.metadata.labels.a of type string",
            ),
            (
                json!({"spec": {"template": {"spec": {"containers": {}}}}}),
                "Deployment.spec.template.spec.containers of type []object",
            ),
        ];
        for (object, expect) in cases {
            let error = check("deployments", object).unwrap_or_default();
            assert!(error.contains(expect), "{error}");
        }
    }

    #[test]
    fn names_unknown_fields() {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}, "foo": 1},
            "spec": {"containers": [{"name": "a", "imagee": "b", "resources": {"limits": {"any/thing": 1}}}], "bar": {}},
        });
        assert_eq!(
            unknown_fields(&resource("pods"), &object),
            ["metadata.foo", "spec.containers[0].imagee", "spec.bar"]
        );
        let revision = json!({"data": {"spec": {"anything": 1}}, "revision": 1});
        assert!(unknown_fields(&resource("controllerrevisions"), &revision).is_empty());

        let mut custom = resource("configmaps");
        custom.custom = Some(Arc::new(json!({"schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "properties": {"a": {"type": "string"}, "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
        }}}})));
        let object = json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "a"}, "spec": {"a": "b", "c": 1, "free": {"d": 1}}});
        assert_eq!(unknown_fields(&custom, &object), ["spec.c"]);
    }
}
