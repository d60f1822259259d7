//! Server-side apply and field ownership (`metadata.managedFields`).
//!
//! An applied configuration is what its manager wants to hold, no more and no less: fields it names are set, fields it
//! named before and no longer does go, unless somebody else owns them too. A field that somebody else owns with another
//! value is a conflict.

mod fields;

use super::defaults;
use super::kinds::Resource;
use super::schema::{ListType, Shape, interleave, item_key};
use super::status::ApiError;
use fields::{FieldSet, position, spell, value_at};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Updates by different managers that are kept apart.
const MOST_UPDATES: usize = 10;

/// One line of `managedFields`.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: String,
    fields: FieldSet,
}

impl Entry {
    fn read_all(object: &Value) -> Vec<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = object["metadata"]["managedFields"].as_array();
        list.into_iter()
            .flatten()
            .map(|entry| Self {
                manager: text(&entry["manager"]),
                operation: text(&entry["operation"]),
                api_version: text(&entry["apiVersion"]),
                subresource: text(&entry["subresource"]),
                time: text(&entry["time"]),
                fields: FieldSet::root_from_json(&entry["fieldsV1"]),
            })
            .collect()
    }

    fn is(&self, manager: &str, operation: &str, subresource: &str) -> bool {
        self.manager == manager && self.operation == operation && self.subresource == subresource
    }

    fn write(&self) -> Value {
        let mut entry = json!({
            "manager": self.manager, "operation": self.operation, "apiVersion": self.api_version, "time": self.time,
            "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_json(),
        });
        if !self.subresource.is_empty() {
            entry["subresource"] = self.subresource.as_str().into();
        }
        entry
    }
}

fn write_all(object: &mut Value, entries: &[Entry]) {
    let list: Vec<Value> = entries.iter().filter(|entry| !entry.fields.is_empty()).map(Entry::write).collect();
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if list.is_empty() {
        metadata.shift_remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), list.into());
    }
}

/// Merges an applied configuration into the current object; conflicts with other managers are a 409 with causes
/// unless `force`. Returns the object with its `managedFields` brought up to date. `now` is RFC 3339.
pub fn server_side_apply(
    resource: &Resource,
    current: Option<&Value>,
    applied: &Value,
    manager: &str,
    subresource: Option<&str>,
    force: bool,
    now: &str,
) -> Result<Value, ApiError> {
    let shape = Shape::of(resource);
    let subresource = subresource.unwrap_or_default();
    let mut applied = applied.clone();
    if resource.custom.is_none() {
        defaults::drop_nulls(&mut applied);
    }
    if let Some(metadata) = applied.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
    let wanted = FieldSet::of_object(&shape, &applied);
    let empty = json!({});
    let live = current.unwrap_or(&empty);
    let mut entries = Entry::read_all(live);
    let mine = entries.iter().position(|entry| entry.is(manager, "Apply", subresource));
    let before = mine.map(|at| entries[at].fields.clone()).unwrap_or_default();

    let differs = |path: &[String]| value_at(&shape, live, path) != value_at(&shape, &applied, path);
    let disputed = wanted.filter(&mut Vec::new(), &differs);
    let force = force || manager == "kubectl" && is_own_past(&shape, live, &disputed, &entries, mine);
    let mut conflicts = Vec::new();
    for (at, entry) in entries.iter_mut().enumerate() {
        let overlap = entry.fields.intersection(&disputed);
        if Some(at) == mine || overlap.is_empty() {
            continue;
        }
        if force {
            entry.fields = entry.fields.without(&overlap);
        } else {
            let owner = owner(entry);
            conflicts.extend(overlap.paths().into_iter().map(|path| (owner.clone(), spell(&path))));
        }
    }
    if !conflicts.is_empty() {
        return Err(conflict(&conflicts));
    }

    let mut merged = merge(&shape, live, &applied);
    let others: Vec<&FieldSet> =
        entries.iter().enumerate().filter(|(at, _)| Some(*at) != mine).map(|(_, entry)| &entry.fields).collect();
    // The metadata itself stays, whoever owns any of it.
    let mut kept = wanted.clone();
    kept.inside.entry("f:metadata".to_owned()).or_default();
    prune(&shape, &mut merged, &before, Some(&kept), &others);
    let entry = Entry {
        manager: manager.to_owned(),
        operation: "Apply".to_owned(),
        api_version: resource.api_version(),
        subresource: subresource.to_owned(),
        time: now.to_owned(),
        fields: wanted,
    };
    match mine {
        Some(at) if entries[at].fields == entry.fields && entries[at].api_version == entry.api_version => {}
        Some(at) => entries[at] = entry,
        None => entries.push(entry),
    }
    write_all(&mut merged, &entries);
    if manager == "kubectl" && subresource.is_empty() {
        keep_last_applied(&mut merged, &applied);
    }
    Ok(merged)
}

/// Annotation in which client-side apply remembers what it applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// True if nothing is in dispute but what `kubectl` itself applied client-side before, and nobody changed since.
fn is_own_past(shape: &Shape<'_>, live: &Value, disputed: &FieldSet, entries: &[Entry], mine: Option<usize>) -> bool {
    let memory = live["metadata"]["annotations"][LAST_APPLIED].as_str();
    let Some(past) = memory.and_then(|text| serde_json::from_str::<Value>(text).ok()) else { return false };
    let applied = FieldSet::of_object(shape, &past);
    let kept = applied.filter(&mut Vec::new(), &|path| value_at(shape, live, path) == value_at(shape, &past, path));
    let others = entries.iter().enumerate().filter(|(at, _)| Some(*at) != mine);
    others.into_iter().all(|(_, entry)| entry.fields.intersection(disputed).without(&kept).is_empty())
}

/// Keeps the memory of client-side apply current, where there is one, so that users can go back to it.
fn keep_last_applied(merged: &mut Value, applied: &Value) {
    let Some(annotations) = merged.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else { return };
    if let Some(memory) = annotations.get_mut(LAST_APPLIED) {
        let mut applied = applied.clone();
        if let Some(own) = applied.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
            own.shift_remove(LAST_APPLIED);
        }
        *memory = format!("{applied}\n").into();
    }
}

/// Brings `managedFields` up to date after a create, update or patch by `manager`.
pub fn track_update(
    resource: &Resource,
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    subresource: Option<&str>,
    now: &str,
) {
    let shape = Shape::of(resource);
    let subresource = subresource.unwrap_or_default();
    let empty = json!({});
    let old = old.unwrap_or(&empty);
    let mut entries = Entry::read_all(new);
    if entries.is_empty() {
        entries = Entry::read_all(old);
    }
    let changed = FieldSet::changed(&shape, old, new);
    let all = FieldSet::of_object(&shape, new);
    let mine = entries.iter().position(|entry| entry.is(manager, "Update", subresource));
    for (at, entry) in entries.iter_mut().enumerate() {
        let left = entry.fields.intersection(&all);
        entry.fields = if Some(at) == mine { left } else { left.without(&changed) };
    }
    if !changed.is_empty() {
        let mut fields = mine.map(|at| entries[at].fields.clone()).unwrap_or_default();
        fields.union(&changed);
        let entry = Entry {
            manager: manager.to_owned(),
            operation: "Update".to_owned(),
            api_version: resource.api_version(),
            subresource: subresource.to_owned(),
            time: now.to_owned(),
            fields,
        };
        match mine {
            Some(at) => entries[at] = entry,
            None => entries.push(entry),
        }
        forget_old_updates(&mut entries);
    }
    write_all(new, &entries);
}

fn owner(entry: &Entry) -> String {
    let what = if entry.subresource.is_empty() {
        String::new()
    } else {
        format!(" with subresource \"{}\"", entry.subresource)
    };
    format!("\"{}\"{what} using {}", entry.manager, entry.api_version)
}

fn conflict(conflicts: &[(String, String)]) -> ApiError {
    let text = match conflicts {
        [(owner, field)] => format!("Apply failed with 1 conflict: conflict with {owner}: {field}"),
        _ => {
            let mut by_owner: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for (owner, field) in conflicts {
                by_owner.entry(owner).or_default().push(field);
            }
            let groups = by_owner.into_iter().map(|(owner, fields)| {
                let fields: String = fields.into_iter().map(|field| format!("\n- {field}")).collect();
                format!("conflicts with {owner}:{fields}")
            });
            let count = conflicts.len();
            format!("Apply failed with {count} conflicts: {}", groups.collect::<Vec<_>>().join("\n"))
        }
    };
    let mut error = ApiError::new(409, "Conflict", text);
    error.causes = conflicts
        .iter()
        .map(|(owner, field)| ("FieldManagerConflict".to_owned(), field.clone(), format!("conflict with {owner}")))
        .collect();
    error
}

/// `live` with everything `applied` says.
fn merge(shape: &Shape<'_>, live: &Value, applied: &Value) -> Value {
    match (live, applied) {
        (Value::Object(old), Value::Object(new)) if !shape.is_atomic() => {
            let mut map: Map<String, Value> = old.clone();
            for (name, value) in new {
                let before = old.get(name).unwrap_or(&Value::Null);
                let merged = merge(&shape.field(name), before, value);
                if merged.is_null() {
                    map.shift_remove(name);
                } else {
                    map.insert(name.clone(), merged);
                }
            }
            Value::Object(map)
        }
        (Value::Array(old), Value::Array(new)) => merge_lists(shape, old, new),
        _ => applied.clone(),
    }
}

fn merge_lists(shape: &Shape<'_>, old: &[Value], new: &[Value]) -> Value {
    let inner = shape.items();
    let identity = |item: &Value| match shape.list() {
        ListType::Map(keys) => item_key(&inner, &keys, item),
        _ => item.to_string(),
    };
    if shape.list() == ListType::Atomic {
        return Value::Array(new.to_vec());
    }
    let names = |items: &[Value]| items.iter().map(identity).collect::<Vec<_>>();
    let find = |items: &[Value], name: &str| items.iter().find(|item| identity(item) == name).cloned();
    let order = interleave(&names(old), &names(new));
    let merged = order.iter().filter_map(|name| match (find(old, name), find(new, name)) {
        (Some(old), Some(new)) => Some(merge(&inner, &old, &new)),
        (old, new) => new.or(old),
    });
    Value::Array(merged.collect())
}

/// Takes out what the manager owned before, does not want any more, and nobody else owns any part of. Values nobody
/// owns, such as defaults, go with the object or list item they stand in.
fn prune(shape: &Shape<'_>, value: &mut Value, before: &FieldSet, wanted: Option<&FieldSet>, others: &[&FieldSet]) {
    for (element, old) in &before.inside {
        let still = wanted.and_then(|set| set.inside.get(element));
        let others: Vec<&FieldSet> = others.iter().filter_map(|set| set.inside.get(element)).collect();
        let unwanted = still.is_none() && others.is_empty();
        if let Some(name) = element.strip_prefix("f:") {
            let inner = shape.field(name);
            let Some(map) = value.as_object_mut() else { return };
            if unwanted {
                map.shift_remove(name);
            } else if let Some(child) = map.get_mut(name) {
                prune(&inner, child, old, still, &others);
            }
        } else if let Some(at) = position(shape, value, element) {
            let inner = shape.items();
            let Some(items) = value.as_array_mut() else { return };
            if unwanted {
                items.remove(at);
            } else if let Some(item) = items.get_mut(at) {
                prune(&inner, item, old, still, &others);
            }
        }
    }
}

/// Merges the oldest updates, so that an object's account of its fields stays bounded.
fn forget_old_updates(entries: &mut Vec<Entry>) {
    const ANCIENT: &str = "ancient-changes";
    let updates = |entries: &[Entry]| -> Vec<usize> {
        let mut found: Vec<usize> = (0..entries.len()).filter(|at| entries[*at].operation == "Update").collect();
        found.sort_by(|a, b| entries[*a].time.cmp(&entries[*b].time));
        found
    };
    let found = updates(entries);
    let Some(surplus) = found.len().checked_sub(MOST_UPDATES).filter(|surplus| *surplus > 0) else { return };
    let mut old: Vec<usize> = found[..=surplus].to_vec();
    old.sort_unstable();
    let mut ancient: Option<Entry> = None;
    for at in old.into_iter().rev() {
        let entry = entries.remove(at);
        match &mut ancient {
            Some(ancient) => {
                ancient.fields.union(&entry.fields);
                ancient.time = ancient.time.clone().max(entry.time);
            }
            None => ancient = Some(Entry { manager: ANCIENT.to_owned(), subresource: String::new(), ..entry }),
        }
    }
    entries.extend(ancient);
}

#[cfg(test)]
mod tests;
