//! Sets of fields: who owns what, as `metadata.managedFields[].fieldsV1` writes it.
//!
//! A set is a tree. `f:name` is a field, `k:{"name":"web"}` the list item with these keys, `v:"a"` a member of a set; a
//! node that is itself owned besides what is in it says so with `.`.

use super::super::schema::{ListType, Shape, item_key};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A tree of owned fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldSet {
    /// The node itself is owned.
    pub(super) owned: bool,
    /// What is owned in it, by path element as `fieldsV1` writes it.
    pub(super) inside: BTreeMap<String, FieldSet>,
}

/// Metadata that the API itself keeps.
const SYSTEM: [&str; 9] = [
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "generation",
    "resourceVersion",
    "managedFields",
    "selfLink",
    "deletionTimestamp",
];

impl FieldSet {
    fn leaf() -> Self {
        Self { owned: true, inside: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.owned && self.inside.is_empty()
    }

    /// Every field of an object that somebody can own.
    pub(super) fn of_object(shape: &Shape<'_>, object: &Value) -> Self {
        let mut all = Self::of(shape, object);
        all.owned = false;
        all.inside.remove("f:apiVersion");
        all.inside.remove("f:kind");
        if let Some(metadata) = all.inside.get_mut("f:metadata") {
            metadata.inside.retain(|field, _| !SYSTEM.iter().any(|name| field.strip_prefix("f:") == Some(name)));
            metadata.owned = false;
            if metadata.inside.is_empty() {
                all.inside.remove("f:metadata");
            }
        }
        all
    }

    fn of(shape: &Shape<'_>, value: &Value) -> Self {
        let children: BTreeMap<String, FieldSet> = match value {
            Value::Object(map) if !shape.is_atomic() => map
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (format!("f:{name}"), Self::of(&shape.field(name), value)))
                .collect(),
            Value::Array(items) => match shape.list() {
                ListType::Atomic => BTreeMap::new(),
                ListType::Set => items.iter().map(|item| (format!("v:{item}"), Self::leaf())).collect(),
                ListType::Map(keys) => {
                    let inner = shape.items();
                    let entry = |item: &Value| {
                        let mut set = Self::of(&inner, item);
                        set.owned = true;
                        (format!("k:{}", item_key(&inner, &keys, item)), set)
                    };
                    items.iter().map(entry).collect()
                }
            },
            _ => BTreeMap::new(),
        };
        Self { owned: children.is_empty(), inside: children }
    }

    /// The fields of `new` that `old` lacks or has with another value.
    pub(super) fn changed(shape: &Shape<'_>, old: &Value, new: &Value) -> Self {
        let all = Self::of_object(shape, new);
        all.filter(&mut Vec::new(), &|path| value_at(shape, old, path) != value_at(shape, new, path))
    }

    /// The owned nodes for which the test holds.
    pub(super) fn filter(&self, path: &mut Vec<String>, test: &dyn Fn(&[String]) -> bool) -> Self {
        let mut kept = Self { owned: self.owned && test(path), inside: BTreeMap::new() };
        for (element, set) in &self.inside {
            path.push(element.clone());
            let inner = set.filter(path, test);
            path.pop();
            if !inner.is_empty() {
                kept.inside.insert(element.clone(), inner);
            }
        }
        kept
    }

    /// True if the node at the path is owned.
    pub(super) fn owns(&self, path: &[String]) -> bool {
        self.node(path).is_some_and(|node| node.owned)
    }

    fn node(&self, path: &[String]) -> Option<&FieldSet> {
        path.iter().try_fold(self, |set, element| set.inside.get(element))
    }

    pub(super) fn union(&mut self, other: &FieldSet) {
        self.owned |= other.owned;
        for (element, set) in &other.inside {
            self.inside.entry(element.clone()).or_default().union(set);
        }
    }

    /// This set without what the other owns.
    pub(super) fn without(&self, other: &FieldSet) -> Self {
        self.filter(&mut Vec::new(), &|path| !other.owns(path))
    }

    /// What both own.
    pub(super) fn intersection(&self, other: &FieldSet) -> Self {
        self.filter(&mut Vec::new(), &|path| other.owns(path))
    }

    /// The paths of all owned nodes.
    pub(super) fn paths(&self) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        self.collect(&mut Vec::new(), &mut found);
        found
    }

    fn collect(&self, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
        if self.owned {
            found.push(path.clone());
        }
        for (element, set) in &self.inside {
            path.push(element.clone());
            set.collect(path, found);
            path.pop();
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.owned && !self.inside.is_empty() {
            map.insert(".".to_owned(), json!({}));
        }
        map.extend(self.inside.iter().map(|(element, set)| (element.clone(), set.to_json())));
        Value::Object(map)
    }

    pub(super) fn from_json(value: &Value) -> Self {
        let map = value.as_object();
        let inside: BTreeMap<String, FieldSet> = map
            .into_iter()
            .flatten()
            .filter(|(element, _)| *element != ".")
            .map(|(element, value)| (element.clone(), Self::from_json(value)))
            .collect();
        let owned = inside.is_empty() || map.is_some_and(|map| map.contains_key("."));
        Self { owned, inside }
    }

    /// As [`Self::from_json`] for the root, which is never owned itself.
    pub(super) fn root_from_json(value: &Value) -> Self {
        Self { owned: false, ..Self::from_json(value) }
    }
}

/// What stands at a path of an object; `None` if nothing does. For nodes with something in them only whether they exist
/// counts, so that ownership of a list item does not depend on its fields.
pub(super) fn value_at<'v>(shape: &Shape<'_>, value: &'v Value, path: &[String]) -> Option<&'v Value> {
    static THERE: Value = Value::Bool(true);
    let Some((first, rest)) = path.split_first() else {
        let branches = match value {
            Value::Object(map) => !map.is_empty() && !shape.is_atomic(),
            Value::Array(items) => !items.is_empty() && shape.list() != ListType::Atomic,
            Value::Null => return None,
            _ => false,
        };
        return Some(if branches { &THERE } else { value });
    };
    if let Some(name) = first.strip_prefix("f:") {
        return value_at(&shape.field(name), value.get(name)?, rest);
    }
    let position = position(shape, value, first)?;
    value_at(&shape.items(), value.get(position)?, rest)
}

/// Where the item that a `k:` or `v:` element names stands in a list.
pub(super) fn position(shape: &Shape<'_>, list: &Value, element: &str) -> Option<usize> {
    let items = list.as_array()?;
    let (inner, kind) = (shape.items(), shape.list());
    items.iter().position(|item| match (&kind, element.split_at_checked(2)) {
        (ListType::Map(keys), Some(("k:", key))) => item_key(&inner, keys, item) == key,
        (_, Some(("v:", member))) => serde_json::from_str::<Value>(member).is_ok_and(|member| *item == member),
        _ => false,
    })
}

/// A path for people: `.spec.containers[name="web"].image`.
pub(super) fn spell(path: &[String]) -> String {
    path.iter()
        .map(|element| match element.split_at_checked(2) {
            Some(("f:", name)) => format!(".{name}"),
            Some(("k:", key)) => {
                let keys: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
                format!(
                    "[{}]",
                    keys.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
                )
            }
            Some((_, member)) => format!("[={member}]"),
            None => element.clone(),
        })
        .collect()
}
