//! OpenAPI v3 documents (`/openapi/v3`), which `kubectl explain`, `apply` and field validation read.
//!
//! Nothing is built before it is asked for: the index needs only names, a document only its own group version.

use super::kinds::Resource;
use super::types::{self, definitions};
use serde_json::{Map, Value, json};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Extension that says which kind a schema or an operation is of.
const KIND: &str = "x-kubernetes-group-version-kind";

/// The index at `/openapi/v3` for the served group versions.
pub fn index(resources: &[Resource]) -> Value {
    let mut paths = Map::new();
    for resource in resources {
        let root = root(&resource.group, &resource.version);
        if paths.contains_key(&root) {
            continue;
        }
        let mut hasher = DefaultHasher::new();
        for other in resources.iter().filter(|other| is_of(other, &resource.group, &resource.version)) {
            other.plural.hash(&mut hasher);
            other.custom.as_deref().map(Value::to_string).hash(&mut hasher);
        }
        let url = format!("/openapi/v3/{root}?hash={:016X}", hasher.finish());
        paths.insert(root, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// The document of one group version, `None` if nothing of it is served.
pub fn document(resources: &[Resource], group: &str, version: &str) -> Option<Value> {
    let mut document = Document::default();
    for resource in resources.iter().filter(|resource| is_of(resource, group, version)) {
        document.add(resource);
    }
    if document.paths.is_empty() {
        return None;
    }
    document.schemas.sort_keys();
    document.paths.sort_keys();
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": document.paths,
        "components": {"schemas": document.schemas},
    }))
}

fn is_of(resource: &Resource, group: &str, version: &str) -> bool {
    resource.group == group && resource.version == version
}

/// Path of a group version, without the leading slash.
fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

#[derive(Default)]
struct Document {
    paths: Map<String, Value>,
    schemas: Map<String, Value>,
}

impl Document {
    fn add(&mut self, resource: &Resource) {
        let built_in = definitions().root(&resource.group, &resource.version, &resource.kind);
        let name = built_in.map_or_else(|| custom_name(resource), str::to_owned);
        match &resource.custom {
            Some(version) => {
                let schema = custom_schema(&version["schema"]["openAPIV3Schema"]);
                self.include(types::OBJECT_META);
                self.schemas.insert(name.clone(), schema);
            }
            None => self.include(&name),
        }
        if let Some(schema) = self.schemas.get_mut(&name) {
            schema[KIND] = json!([gvk(resource)]);
            // The library's types always have metadata; manifests need not.
            if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
                required.retain(|field| field != "metadata");
            }
        }
        self.add_paths(resource, &name);
    }

    /// Takes a definition, and whatever it refers to, into the document.
    fn include(&mut self, name: &str) {
        if self.schemas.contains_key(name) {
            return;
        }
        let Some(schema) = definitions().get(name) else { return };
        let (schema, references) = published(name, schema);
        self.schemas.insert(name.to_owned(), schema);
        references.iter().for_each(|reference| self.include(reference));
    }

    fn add_paths(&mut self, resource: &Resource, name: &str) {
        let verbs = resource.verbs();
        let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let base = format!("/{}{scope}/{}", root(&resource.group, &resource.version), resource.plural);
        let mut collection = Map::new();
        let mut item = Map::new();
        for verb in verbs {
            let (method, action) = match *verb {
                "list" => ("get", "list"),
                "create" => ("post", "post"),
                "deletecollection" => ("delete", "deletecollection"),
                "get" => ("get", "get"),
                "update" => ("put", "put"),
                "patch" => ("patch", "patch"),
                "delete" => ("delete", "delete"),
                _ => continue,
            };
            let place =
                if matches!(*verb, "list" | "create" | "deletecollection") { &mut collection } else { &mut item };
            place.insert(method.to_owned(), operation(resource, action, name));
        }
        self.paths.insert(base.clone(), Value::Object(collection));
        if !item.is_empty() {
            self.paths.insert(format!("{base}/{{name}}"), Value::Object(item));
        }
    }
}

fn gvk(resource: &Resource) -> Value {
    json!({"group": resource.group, "version": resource.version, "kind": resource.kind})
}

fn operation(resource: &Resource, action: &str, name: &str) -> Value {
    let options: &[(&str, &str)] = match action {
        "post" | "put" => &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")],
        "patch" => {
            &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")]
        }
        "delete" | "deletecollection" => &[("dryRun", "string"), ("propagationPolicy", "string")],
        "list" => &[("fieldSelector", "string"), ("labelSelector", "string"), ("watch", "boolean")],
        _ => &[],
    };
    let parameters: Vec<Value> = options
        .iter()
        .map(|(name, kind)| json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}}))
        .collect();
    let reference = json!({"$ref": format!("{}{name}", types::REFERENCE)});
    let mut operation = json!({
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}},
        "x-kubernetes-action": action,
        KIND: gvk(resource),
    });
    if matches!(action, "post" | "put") {
        operation["requestBody"] = json!({"required": true, "content": {"*/*": {"schema": reference}}});
    }
    operation
}

/// A custom kind's schema name: its group backwards, `io.example.v1.Widget`.
fn custom_name(resource: &Resource) -> String {
    let mut parts: Vec<&str> = resource.group.split('.').rev().collect();
    parts.extend([resource.version.as_str(), resource.kind.as_str()]);
    parts.join(".")
}

/// A definition's schema with the fields every object has.
fn custom_schema(schema: &Value) -> Value {
    let mut schema = if schema.is_object() { schema.clone() } else { json!({"type": "object"}) };
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    let meta = definitions().get("io.k8s.api.core.v1.ConfigMap").map(|kind| &kind["properties"]);
    let described = |field: &str| meta.map_or(Value::Null, |fields| fields[field]["description"].clone());
    for field in ["apiVersion", "kind"] {
        schema["properties"][field] = json!({"type": "string", "description": described(field)});
    }
    schema["properties"]["metadata"] = json!({
        "description": described("metadata"), "allOf": [{"$ref": format!("{}{}", types::REFERENCE, types::OBJECT_META)}],
    });
    schema
}

/// A definition as Kubernetes publishes it, and what it refers to.
fn published(name: &str, schema: &Value) -> (Value, Vec<String>) {
    let mut references = Vec::new();
    let mut schema = schema.clone();
    match name.rsplit('.').next() {
        Some("IntOrString") => {
            schema["format"] = "int-or-string".into();
            schema["oneOf"] = json!([{"type": "integer"}, {"type": "string"}]);
        }
        Some("Quantity") => schema["oneOf"] = json!([{"type": "string"}, {"type": "number"}]),
        _ => {}
    }
    if let Some(fields) = schema.as_object_mut() {
        fields.shift_remove("x-kubernetes-int-or-string");
        fields.shift_remove("title");
    }
    rewrite(&mut schema, &mut references);
    (schema, references)
}

/// A reference beside a description becomes `allOf`: elsewhere nothing may stand beside it.
fn rewrite(value: &mut Value, references: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let reference = fields.get("$ref").and_then(Value::as_str).map(str::to_owned);
            if let Some(reference) = reference {
                if let Some(name) = reference.strip_prefix(types::REFERENCE) {
                    references.push(name.to_owned());
                }
                if fields.len() > 1 {
                    fields.shift_remove("$ref");
                    fields.insert("allOf".to_owned(), json!([{"$ref": reference}]));
                }
                return;
            }
            fields.values_mut().for_each(|value| rewrite(value, references));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rewrite(item, references)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::kinds::Registry;
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::Arc;

    fn served() -> Vec<Resource> {
        Registry::built_in().all().iter().map(|resource| Resource::clone(resource)).collect()
    }

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_document_is_whole() {
        let resources = served();
        let index = index(&resources);
        for path in index["paths"].as_object().unwrap().keys() {
            let parts: Vec<&str> = path.split('/').collect();
            let (group, version) = if parts[0] == "api" { ("", parts[1]) } else { (parts[1], parts[2]) };
            let document = document(&resources, group, version).unwrap();
            let mut found = BTreeSet::new();
            references(&document, &mut found);
            for reference in found {
                let name = reference.strip_prefix(types::REFERENCE).unwrap();
                assert!(document["components"]["schemas"][name].is_object(), "{path}: {name}");
            }
        }
        assert_eq!(document(&resources, "apps", "v9"), None);
    }

    #[test]
    fn kinds_are_found_by_path() {
        let document = document(&served(), "apps", "v1").unwrap();
        let path = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments"];
        assert_eq!(path["get"][KIND], json!({"group": "apps", "version": "v1", "kind": "Deployment"}));
        let schemas = &document["components"]["schemas"];
        assert_eq!(schemas["io.k8s.api.apps.v1.Deployment"][KIND][0]["kind"], "Deployment");
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        let spec = &schemas["io.k8s.api.apps.v1.Deployment"]["properties"]["spec"];
        assert_eq!(spec["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec");
    }

    #[test]
    fn custom_kinds_have_documents() {
        let mut resources = served();
        let mut widget = resources[0].clone();
        (widget.group, widget.version, widget.kind) = ("example.io".into(), "v1".into(), "Widget".into());
        widget.plural = "widgets".into();
        widget.custom = Some(Arc::new(json!({"schema": {"openAPIV3Schema": {
            "type": "object", "description": "A widget.", "properties": {"spec": {"type": "object"}},
        }}})));
        let before = index(&resources);
        resources.push(widget);
        assert_ne!(index(&resources), before);
        let document = document(&resources, "example.io", "v1").unwrap();
        let schema = &document["components"]["schemas"]["io.example.v1.Widget"];
        assert_eq!(schema["description"], "A widget.");
        assert!(schema["properties"]["metadata"]["allOf"].is_array() && schema["properties"]["spec"].is_object());
    }
}
