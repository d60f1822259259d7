//! What is known of the shape of objects: a cursor over the schemas of built-in and custom kinds that says which
//! lists merge by key, which are sets, and which maps are owned as a whole.

use super::kinds::Resource;
use super::types::{self, definitions};
use serde_json::Value;

/// How a list field merges in server-side apply and strategic merge patches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListType {
    /// Replaced whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Items identified by these keys, the one strategic merge goes by first.
    Map(Vec<String>),
}

static UNKNOWN: Value = Value::Null;

/// A place in the schema of a kind. Where nothing is known, objects merge by field and lists are atomic.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    schema: &'a Value,
    /// The schema is from a definition: what it does not name is unknown.
    is_custom: bool,
    /// `apiVersion`, `kind` and `metadata` are known here although the schema need not name them.
    is_root: bool,
}

impl<'a> Shape<'a> {
    /// The root of a resource's objects.
    pub fn of(resource: &'a Resource) -> Self {
        match resource.custom.as_deref() {
            Some(version) => Self { schema: &version["schema"]["openAPIV3Schema"], is_custom: true, is_root: true },
            None => {
                let root = definitions().root(&resource.group, &resource.version, &resource.kind);
                let schema = root.and_then(|name| definitions().get(name)).unwrap_or(&UNKNOWN);
                Self { schema, is_custom: false, is_root: false }
            }
        }
    }

    fn at(&self, schema: &'a Value) -> Self {
        let schema = definitions().resolve(schema);
        let is_root = self.is_custom && schema["x-kubernetes-embedded-resource"] == true;
        Self { schema, is_custom: self.is_custom, is_root }
    }

    /// The field `name` of an object.
    pub fn field(&self, name: &str) -> Self {
        if self.is_root && name == "metadata" {
            let schema = definitions().get(types::OBJECT_META).unwrap_or(&UNKNOWN);
            return Self { schema, is_custom: false, is_root: false };
        }
        match self.schema["properties"].get(name) {
            Some(schema) => self.at(schema),
            None => self.at(&self.schema["additionalProperties"]),
        }
    }

    /// The items of a list.
    pub fn items(&self) -> Self {
        self.at(&self.schema["items"])
    }

    /// The schema itself; `null` where nothing is known.
    pub fn schema(&self) -> &'a Value {
        self.schema
    }

    /// How a list here merges.
    pub fn list(&self) -> ListType {
        match self.schema["x-kubernetes-list-type"].as_str() {
            Some("set") => ListType::Set,
            Some("map") => {
                let keys = self.schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
                ListType::Map(keys.filter_map(Value::as_str).map(str::to_owned).collect())
            }
            _ => ListType::Atomic,
        }
    }

    /// True if an object here is owned as a whole.
    pub fn is_atomic(&self) -> bool {
        self.schema["x-kubernetes-map-type"] == "atomic"
    }

    /// True if an object's keys here are data rather than fields.
    pub fn is_map(&self) -> bool {
        self.schema["properties"].is_null()
    }

    /// True if the schema names the field `name`, or takes any.
    pub fn knows(&self, name: &str) -> bool {
        let additional = &self.schema["additionalProperties"];
        self.schema["properties"].get(name).is_some()
            || self.is_root && matches!(name, "apiVersion" | "kind" | "metadata")
            || additional.is_object()
            || *additional == true
            || self.schema["x-kubernetes-preserve-unknown-fields"] == true
            // Raw objects inside built-in kinds.
            || !self.is_custom && self.is_map()
            || self.schema.is_null()
    }

    /// The value of an item's key field: what it says or the schema's default.
    pub fn key_of<'v>(&self, item: &'v Value, key: &str) -> &'v Value
    where
        'a: 'v,
    {
        match item.get(key) {
            Some(value) => value,
            None => self.field(key).schema.get("default").unwrap_or(&UNKNOWN),
        }
    }
}

/// Identity of a list item: its key fields, sorted by name, as `fieldsV1` writes them.
pub fn item_key(items: &Shape<'_>, keys: &[String], item: &Value) -> String {
    let mut sorted: Vec<&String> = keys.iter().collect();
    sorted.sort();
    let fields = sorted.into_iter().map(|key| format!("{}:{}", Value::from(key.as_str()), items.key_of(item, key)));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

/// Puts `order` first and everything `old` has besides after what it followed there, so that merging twice changes
/// nothing more. Both are lists of identities; the result names each once.
pub fn interleave(old: &[String], order: &[String]) -> Vec<String> {
    let mut out: Vec<String> = Vec::with_capacity(old.len() + order.len());
    for key in order {
        if !out.contains(key) {
            out.push(key.clone());
        }
    }
    let mut place = 0;
    for key in old {
        match out.iter().position(|other| other == key) {
            Some(index) => place = index + 1,
            None => {
                out.insert(place, key.clone());
                place += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::kinds::Registry;
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn list_at(group: &str, plural: &str, path: &str) -> ListType {
        let registry = Registry::built_in();
        let resource = registry.find_any_version(group, plural).unwrap();
        let shape = path.split('.').fold(Shape::of(resource), |shape, step| match step {
            "[]" => shape.items(),
            field => shape.field(field),
        });
        shape.list()
    }

    #[test]
    fn knows_how_lists_merge() {
        let map = |keys: &str| ListType::Map(keys.split(' ').map(str::to_owned).collect());
        let cases = [
            ("", "pods", "spec.containers", map("name")),
            ("", "pods", "spec.containers.[].ports", map("containerPort protocol")),
            ("apps", "deployments", "spec.template.spec.containers.[].env", map("name")),
            ("batch", "cronjobs", "spec.jobTemplate.spec.template.spec.volumes", map("name")),
            ("", "pods", "spec.tolerations", ListType::Atomic),
            ("", "pods", "spec.containers.[].args", ListType::Atomic),
            ("", "services", "spec.ports", map("port protocol")),
            ("", "configmaps", "metadata.finalizers", ListType::Set),
            ("", "configmaps", "metadata.ownerReferences", map("uid")),
            ("apps", "deployments", "status.conditions", map("type")),
            ("discovery.k8s.io", "endpointslices", "endpoints", ListType::Atomic),
            ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", "webhooks", map("name")),
        ];
        for (group, plural, path, expect) in cases {
            assert_eq!(list_at(group, plural, path), expect, "{plural} {path}");
        }
    }

    #[test]
    fn reads_custom_schemas() {
        let registry = Registry::built_in();
        let mut resource = Resource::clone(registry.find("", "v1", "configmaps").unwrap());
        resource.custom = Some(Arc::new(json!({"schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "rules": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a", "b"],
                    "items": {"type": "object", "properties": {"a": {"type": "string", "default": "x"}}}},
                "ref": {"type": "object", "x-kubernetes-map-type": "atomic"},
            }},
        }}}})));
        let root = Shape::of(&resource);
        let rules = root.field("spec").field("rules");
        let ListType::Map(keys) = rules.list() else { panic!("not a map") };
        assert_eq!(item_key(&rules.items(), &keys, &json!({"b": 1})), r#"{"a":"x","b":1}"#);
        assert!(root.field("spec").field("ref").is_atomic());
        assert_eq!(root.field("metadata").field("finalizers").list(), ListType::Set);
        assert!(root.knows("metadata") && !root.knows("data") && !root.field("spec").knows("other"));
    }

    #[test]
    fn interleaves() {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let cases = [
            ("a b c", "b", "a b c"),
            ("a b c", "c a", "c a b"),
            ("", "x y", "x y"),
            ("a b", "x", "a b x"),
            ("s a", "a b", "s a b"),
        ];
        for (old, order, expect) in cases {
            let once = interleave(&list(old), &list(order));
            assert_eq!(once, list(expect), "{old} / {order}");
            assert_eq!(interleave(&once, &list(order)), once);
        }
    }
}
