//! JSON patch (RFC 6902), JSON merge patch (RFC 7396) and Kubernetes' strategic merge patch.

use super::kinds::Resource;
use super::schema::{self, ListType, Shape};
use super::status::ApiError;
use serde_json::{Map, Value};

/// Most operations one JSON patch may have, as in Kubernetes.
const LONGEST_JSON_PATCH: usize = 10_000;
/// Says what to do with the object or list item it stands in: `replace`, `merge` or `delete`.
const DIRECTIVE: &str = "$patch";
/// Names the only fields that stay.
const RETAIN_KEYS: &str = "$retainKeys";
/// Prefix of a field listing what to take out of a list of scalars.
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
/// Prefix of a field giving the order of a list.
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Applies an RFC 6902 patch.
pub fn json_patch(current: &Value, patch: &Value) -> Result<Value, ApiError> {
    let steps = patch.as_array().ok_or_else(|| ApiError::bad_request("a JSON patch is an array of operations"))?;
    if steps.len() > LONGEST_JSON_PATCH {
        return Err(ApiError::new(
            413,
            "RequestEntityTooLarge",
            format!("The allowed maximum operations in a JSON patch is {LONGEST_JSON_PATCH}, got {}", steps.len()),
        ));
    }
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
    let mut patched = current.clone();
    json_patch::patch(&mut patched, &patch).map_err(|error| {
        let message = format!("the server rejected our request due to an error in our request: {error}");
        ApiError::new(422, "Invalid", message)
    })?;
    Ok(patched)
}

/// Applies an RFC 7396 merge patch.
pub fn merge_patch(current: &Value, patch: &Value) -> Value {
    let mut patched = current.clone();
    json_patch::merge(&mut patched, patch);
    patched
}

/// Applies a strategic merge patch.
pub fn strategic_merge(resource: &Resource, current: &Value, patch: &Value) -> Result<Value, ApiError> {
    let (Some(fields), Some(current)) = (patch.as_object(), current.as_object()) else {
        return Err(ApiError::bad_request("a strategic merge patch is an object"));
    };
    let merged = Merge { path: Vec::new() }.object(Shape::of(resource), current.clone(), fields)?;
    Ok(merged.map_or(Value::Null, Value::Object))
}

/// One strategic merge on its way through the object; knows where it is.
struct Merge {
    path: Vec<String>,
}

impl Merge {
    fn error(&self, why: impl std::fmt::Display) -> ApiError {
        ApiError::bad_request(format!(
            "unable to apply the strategic merge patch at \"{}\": {why}",
            self.path.join(".")
        ))
    }

    /// Merges an object; `None` if the patch deletes it.
    fn object(
        &mut self,
        shape: Shape<'_>,
        mut current: Map<String, Value>,
        patch: &Map<String, Value>,
    ) -> Result<Option<Map<String, Value>>, ApiError> {
        match patch.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or_default()) {
            None | Some("merge") => {}
            Some("delete") => return Ok(None),
            Some("replace") => {
                let mut replaced = patch.clone();
                replaced.shift_remove(DIRECTIVE);
                return Ok(Some(replaced));
            }
            Some(other) => return Err(self.error(format_args!("Wrong value for $patch: {other}"))),
        }
        if let Some(retained) = patch.get(RETAIN_KEYS) {
            let retained = retained.as_array().ok_or_else(|| self.error("$retainKeys is not a list"))?;
            if let Some(key) =
                patch.keys().find(|key| !key.starts_with('$') && !retained.contains(&Value::from(key.as_str())))
            {
                return Err(self.error(format_args!("$retainKeys does not list \"{key}\", which the patch sets")));
            }
            current.retain(|key, _| retained.iter().any(|kept| kept == key));
        }
        for (key, value) in patch {
            if key.starts_with('$') {
                continue;
            }
            self.path.push(key.clone());
            let merged = self.field(shape.field(key), current.get(key), value)?;
            self.path.pop();
            match merged {
                Some(value) => current.insert(key.clone(), value),
                None => current.shift_remove(key),
            };
        }
        for (key, value) in patch {
            if let Some(field) = key.strip_prefix(DELETE_FROM_LIST) {
                let gone = value.as_array().ok_or_else(|| self.error(format_args!("{key} is not a list")))?;
                if let Some(list) = current.get_mut(field).and_then(Value::as_array_mut) {
                    list.retain(|item| !gone.contains(item));
                }
            } else if let Some(field) = key.strip_prefix(ELEMENT_ORDER) {
                let order = value.as_array().ok_or_else(|| self.error(format_args!("{key} is not a list")))?;
                if let Some(list) = current.get_mut(field).and_then(Value::as_array_mut) {
                    arrange(shape.field(field), list, order);
                }
            }
        }
        Ok(Some(current))
    }

    fn field(&mut self, shape: Shape<'_>, current: Option<&Value>, patch: &Value) -> Result<Option<Value>, ApiError> {
        match patch {
            Value::Null => Ok(None),
            Value::Object(fields) => {
                let current = current.and_then(Value::as_object).cloned().unwrap_or_default();
                Ok(self.object(shape, current, fields)?.map(Value::Object))
            }
            Value::Array(items) => {
                let current = current.and_then(Value::as_array).cloned().unwrap_or_default();
                let list = match shape.list() {
                    ListType::Atomic => without_directives(items),
                    ListType::Set => union(current, items),
                    ListType::Map(keys) => self.list(shape.items(), &keys, current, items)?,
                };
                Ok(Some(Value::Array(list)))
            }
            scalar => Ok(Some(scalar.clone())),
        }
    }

    fn list(
        &mut self,
        items: Shape<'_>,
        keys: &[String],
        mut current: Vec<Value>,
        patch: &[Value],
    ) -> Result<Vec<Value>, ApiError> {
        let key = keys.first().map(String::as_str).unwrap_or_default();
        if patch.iter().any(|item| item[DIRECTIVE] == "replace") {
            let kept = patch.iter().filter(|item| item.get(DIRECTIVE).is_none());
            return Ok(kept.cloned().collect());
        }
        for item in patch {
            let fields = item.as_object().ok_or_else(|| self.error("an item of this list is an object"))?;
            if !fields.contains_key(key) {
                return Err(self.error(format_args!("map: {item} does not contain declared merge key: {key}")));
            }
            if item[DIRECTIVE] == "delete" {
                current.retain(|old| !names_same(keys, old, item));
                continue;
            }
            let place = current.iter().position(|old| names_same(keys, old, item));
            let old = place.and_then(|place| current[place].as_object().cloned()).unwrap_or_default();
            self.path.push(format!("{}", item[key]));
            let merged = self.object(items, old, fields)?;
            self.path.pop();
            match (place, merged) {
                (Some(place), Some(merged)) => current[place] = Value::Object(merged),
                (None, Some(merged)) => current.push(Value::Object(merged)),
                (Some(place), None) => drop(current.remove(place)),
                (None, None) => {}
            }
        }
        Ok(current)
    }
}

/// True if a patch's item means `old`: the merge key is the same, and so are further keys if the patch has them.
fn names_same(keys: &[String], old: &Value, item: &Value) -> bool {
    let mut keys = keys.iter();
    let first = keys.next().is_some_and(|key| old[key.as_str()] == item[key.as_str()]);
    first
        && keys.all(|key| {
            item[key.as_str()].is_null() || old[key.as_str()].is_null() || old[key.as_str()] == item[key.as_str()]
        })
}

fn union(mut current: Vec<Value>, items: &[Value]) -> Vec<Value> {
    for item in items {
        if !current.contains(item) {
            current.push(item.clone());
        }
    }
    current
}

fn without_directives(items: &[Value]) -> Vec<Value> {
    items.iter().filter(|item| item.get(DIRECTIVE).is_none()).cloned().collect()
}

/// Puts a merged list in the order the patch asks for; what the patch doesn't name stays behind what it followed.
fn arrange(shape: Shape<'_>, list: &mut [Value], order: &[Value]) {
    let name = |item: &Value| match shape.list() {
        ListType::Map(keys) => keys.first().map_or_else(String::new, |key| item[key.as_str()].to_string()),
        _ => item.to_string(),
    };
    let names: Vec<String> = list.iter().map(name).collect();
    let wanted: Vec<String> = order.iter().map(name).filter(|wanted| names.contains(wanted)).collect();
    let arranged = schema::interleave(&names, &wanted);
    let rank = |item: &Value| {
        let name = name(item);
        arranged.iter().position(|other| *other == name)
    };
    list.sort_by_key(rank);
}

#[cfg(test)]
mod tests {
    use super::super::kinds::Registry;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn merged(plural: &str, current: Value, patch: Value) -> Result<Value, String> {
        let registry = Registry::built_in();
        let resource = registry.all().iter().find(|resource| resource.plural == plural).unwrap();
        strategic_merge(resource, &current, &patch).map_err(|error| error.message)
    }

    fn check(plural: &str, current: Value, patch: Value, expect: Value) {
        assert_eq!(merged(plural, current, patch.clone()).unwrap(), expect, "{patch}");
    }

    #[test]
    fn merges_strategically() {
        let pod = |containers: Value| json!({"spec": {"containers": containers}});
        let two = pod(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2", "args": ["x", "y"]}]));
        check(
            "pods",
            two.clone(),
            pod(json!([{"name": "b", "image": "3", "args": ["z"]}, {"name": "c"}])),
            pod(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "3", "args": ["z"]}, {"name": "c"}])),
        );
        check(
            "pods",
            two.clone(),
            pod(json!([{"name": "a", "$patch": "delete"}])),
            pod(json!([two["spec"]["containers"][1]])),
        );
        check("pods", two.clone(), pod(json!([{"$patch": "replace"}, {"name": "z"}])), pod(json!([{"name": "z"}])));
        check(
            "pods",
            two,
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a", "image": null}]}}),
            pod(json!([{"name": "b", "image": "2", "args": ["x", "y"]}, {"name": "a"}])),
        );
    }

    #[test]
    fn follows_directives() {
        check(
            "deployments",
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
            json!({"spec": {"strategy": {"type": "Recreate"}}}),
        );
        check(
            "configmaps",
            json!({"metadata": {"finalizers": ["a", "b", "c"]}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"], "finalizers": ["d"]}}),
            json!({"metadata": {"finalizers": ["a", "c", "d"]}}),
        );
        check(
            "configmaps",
            json!({"data": {"a": "1", "b": "2"}}),
            json!({"data": {"$patch": "replace", "c": "3"}}),
            json!({"data": {"c": "3"}}),
        );
        check("configmaps", json!({"data": {"a": "1"}}), json!({"data": {"a": null}}), json!({"data": {}}));
        check(
            "services",
            json!({"spec": {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}}),
            json!({"spec": {"ports": [{"port": 53, "protocol": "TCP", "name": "t"}]}}),
            json!({"spec": {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP", "name": "t"}]}}),
        );
        let error = merged("pods", json!({}), json!({"spec": {"containers": [{"image": "a"}]}})).unwrap_err();
        assert!(error.contains("spec.containers") && error.contains("merge key: name"), "{error}");
    }

    #[test]
    fn patches_by_steps() {
        let patched = json_patch(&json!({"a": [1, 2]}), &json!([{"op": "remove", "path": "/a/0"}])).unwrap();
        assert_eq!(patched, json!({"a": [2]}));
        let error = json_patch(&json!({}), &json!([{"op": "test", "path": "/a", "value": 1}])).unwrap_err();
        assert_eq!((error.code, error.message.contains("/a")), (422, true), "{error}");
        assert_eq!(json_patch(&json!({}), &json!({})).unwrap_err().code, 400);
        assert_eq!(
            merge_patch(&json!({"a": 1, "b": {"c": 1}}), &json!({"a": null, "b": {"d": 2}})),
            json!({"b": {"c": 1, "d": 2}})
        );
    }

    fn value() -> impl Strategy<Value = Value> {
        let field = prop::sample::select(vec![
            "spec",
            "containers",
            "ports",
            "name",
            "$patch",
            "$retainKeys",
            "env",
            "metadata",
            "finalizers",
        ]);
        let leaf = prop_oneof![Just(Value::Null), Just(json!("delete")), Just(json!(1)), Just(json!("a"))];
        leaf.prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::vec((field.clone(), inner), 0..3)
                    .prop_map(|fields| fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn never_panics(current in value(), patch in value()) {
            let registry = Registry::built_in();
            let _ = strategic_merge(registry.find("", "v1", "pods").unwrap(), &current, &patch);
            let _ = json_patch(&current, &patch);
            merge_patch(&current, &patch);
        }
    }
}
