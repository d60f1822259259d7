//! Custom objects against their structural schema.

use super::Findings;
use serde_json::Value;
use std::collections::BTreeSet;

/// Checks a custom resource against its structural schema (apiextensions.k8s.io/v1 JSONSchemaProps).
pub(super) fn by_schema(schema: &Value, value: &Value, path: &str, found: &mut Findings) {
    let field = || if path.is_empty() { "<nil>".to_owned() } else { path.to_owned() };
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    let int_or_string = schema["x-kubernetes-int-or-string"] == true;
    if int_or_string && !(value.is_i64() || value.is_u64() || value.is_string()) {
        return found.invalid(field(), value, "must be an integer or a string");
    }
    if let Some(wanted) = schema["type"].as_str()
        && !is_of_type(value, wanted)
    {
        let message = format!("{} in body must be of type {wanted}: {}", field(), type_of(value));
        return found.add("FieldValueTypeInvalid", field(), format!("Invalid value: {}: {message}", type_of(value)));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let allowed: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        found.unsupported(field(), value, &allowed);
    }
    scalars(schema, value, &field(), found);
    match value {
        Value::Object(map) => {
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !map.contains_key(name) {
                    found.required(join(path, name));
                }
            }
            for (name, inner) in map
                .iter()
                .filter(|(name, _)| !(path.is_empty() && matches!(name.as_str(), "metadata" | "apiVersion" | "kind")))
            {
                let property = &schema["properties"][name.as_str()];
                let schema = if property.is_null() { &schema["additionalProperties"] } else { property };
                if schema.is_object() {
                    by_schema(schema, inner, &join(path, name), found);
                }
            }
            bounds(schema, "minProperties", "maxProperties", map.len(), value, &field(), found);
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                by_schema(&schema["items"], item, &format!("{path}[{index}]"), found);
            }
            bounds(schema, "minItems", "maxItems", items.len(), value, &field(), found);
            unique(schema, items, path, found);
        }
        _ => {}
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "\"null\"",
        Value::Bool(_) => "\"boolean\"",
        Value::Number(number) if number.is_f64() => "\"number\"",
        Value::Number(_) => "\"integer\"",
        Value::String(_) => "\"string\"",
        Value::Array(_) => "\"array\"",
        Value::Object(_) => "\"object\"",
    }
}

fn is_of_type(value: &Value, wanted: &str) -> bool {
    match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "number" => value.is_number(),
        _ => true,
    }
}

fn scalars(schema: &Value, value: &Value, field: &str, found: &mut Findings) {
    if let Some(number) = value.as_f64() {
        if let Some(least) = schema["minimum"].as_f64()
            && (number < least || (schema["exclusiveMinimum"] == true && number == least))
        {
            found.invalid(
                field,
                value,
                &format!("{field} in body should be greater than or equal to {}", schema["minimum"]),
            );
        }
        if let Some(most) = schema["maximum"].as_f64()
            && (number > most || (schema["exclusiveMaximum"] == true && number == most))
        {
            found.invalid(
                field,
                value,
                &format!("{field} in body should be less than or equal to {}", schema["maximum"]),
            );
        }
    }
    if let Some(text) = value.as_str() {
        bounds(schema, "minLength", "maxLength", text.chars().count(), value, field, found);
        if let Some(pattern) = schema["pattern"].as_str()
            // A pattern this engine does not know is no reason to refuse an object.
            && regex::Regex::new(pattern).is_ok_and(|regex| !regex.is_match(text))
        {
            found.invalid(field, value, &format!("{field} in body should match '{pattern}'"));
        }
    }
}

fn bounds(schema: &Value, least: &str, most: &str, length: usize, value: &Value, field: &str, found: &mut Findings) {
    if schema[least].as_u64().is_some_and(|n| (length as u64) < n) {
        found.invalid(
            field,
            value,
            &format!("{field} in body should have at least {} items or characters", schema[least]),
        );
    }
    if schema[most].as_u64().is_some_and(|n| length as u64 > n) {
        found.add("FieldValueTooLong", field, format!("Too many: {length}: must have at most {} items", schema[most]));
    }
}

fn unique(schema: &Value, items: &[Value], path: &str, found: &mut Findings) {
    let keys: Vec<&str> =
        schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let identity = |item: &Value| match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => Some(item.to_string()),
        Some("map") => Some(keys.iter().map(|key| item[*key].to_string()).collect::<Vec<_>>().join(",")),
        _ => None,
    };
    let mut seen = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        if let Some(identity) = identity(item)
            && !seen.insert(identity)
        {
            found.duplicate(format!("{path}[{index}]"), item);
        }
    }
}
