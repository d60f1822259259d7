//! Validation: what an object must be to be stored.
//!
//! Names and labels are judged here, built-in kinds in [`kinds`] and [`pods`], custom ones by their schema in
//! [`custom`] and [`rules`]; [`fields`] compares objects with the fields and types their kind has. Messages are worded as Kubernetes
//! words them, because people search for them.

mod custom;
mod fields;
mod kinds;
mod pods;
mod rules;

pub use fields::{check_types, unknown_fields};
pub use rules::unreadable;

use super::kinds::Resource;
use super::status::ApiError;
use serde_json::Value;

/// Checks an object on its way into the store; `old` is what it replaces.
pub fn validate(resource: &Resource, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let mut found = Findings::default();
    metadata(resource, object, &mut found);
    if let Some(version) = &resource.custom {
        let schema = &version["schema"]["openAPIV3Schema"];
        custom::by_schema(schema, object, "", &mut found);
        if found.0.is_empty() {
            rules::check(schema, object, old, &mut found);
        }
    } else {
        kinds::check(resource, object, old, &mut found);
    }
    let name = object["metadata"]["name"].as_str().or(object["metadata"]["generateName"].as_str()).unwrap_or_default();
    if found.0.is_empty() { Ok(()) } else { Err(ApiError::invalid(&resource.qualified_kind(), name, found.0)) }
}

/// What is wrong: `(reason, field, message)`.
#[derive(Default)]
struct Findings(Vec<(String, String, String)>);

impl Findings {
    pub(super) fn add(&mut self, reason: &str, field: impl Into<String>, message: impl Into<String>) {
        // A limit keeps the answer to a huge broken object readable.
        if self.0.len() < 50 {
            self.0.push((reason.to_owned(), field.into(), message.into()));
        }
    }

    pub(super) fn required(&mut self, field: impl Into<String>) {
        self.add("FieldValueRequired", field, "Required value");
    }

    pub(super) fn invalid(&mut self, field: impl Into<String>, value: &Value, why: &str) {
        self.add("FieldValueInvalid", field, format!("Invalid value: {value}: {why}"));
    }

    pub(super) fn unsupported(&mut self, field: impl Into<String>, value: &Value, allowed: &[&str]) {
        let allowed = allowed.iter().map(|a| format!("\"{a}\"")).collect::<Vec<_>>().join(", ");
        self.add("FieldValueNotSupported", field, format!("Unsupported value: {value}: supported values: {allowed}"));
    }

    pub(super) fn duplicate(&mut self, field: impl Into<String>, value: &Value) {
        self.add("FieldValueDuplicate", field, format!("Duplicate value: {value}"));
    }

    pub(super) fn one_of(&mut self, field: String, value: &Value, allowed: &[&str]) {
        if let Some(text) = value.as_str()
            && !allowed.contains(&text)
        {
            self.unsupported(field, value, allowed);
        }
    }
}

const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const SERVICE_RULE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

pub(super) fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inside = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    !bytes.is_empty()
        && bytes.len() <= 63
        && bytes.iter().all(inside)
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

fn metadata(resource: &Resource, object: &Value, found: &mut Findings) {
    let meta = &object["metadata"];
    match (meta["name"].as_str(), meta["generateName"].as_str()) {
        (Some(name), _) if !name.is_empty() => {
            // RBAC objects and the like may have colons; a path may not be climbed.
            let loose = resource.group == "rbac.authorization.k8s.io" || resource.group == "apiregistration.k8s.io";
            let value = &meta["name"];
            match resource.kind.as_str() {
                _ if loose && (name.contains(['/', '%']) || name == "." || name == "..") => {
                    found.invalid("metadata.name", value, "may not contain '/' or '%' and may not be '.' or '..'");
                }
                _ if loose => {}
                "Service" if !is_label(name) || name.as_bytes()[0].is_ascii_digit() => {
                    found.invalid("metadata.name", value, SERVICE_RULE)
                }
                "Namespace" if !is_label(name) => found.invalid("metadata.name", value, LABEL_RULE),
                _ if !is_subdomain(name) => found.invalid("metadata.name", value, SUBDOMAIN_RULE),
                _ => {}
            }
        }
        (_, Some(_)) => {}
        _ => found.add("FieldValueRequired", "metadata.name", "Required value: name or generateName is required"),
    }
    labels(&meta["labels"], "metadata.labels", found);
}

fn labels(labels: &Value, path: &str, found: &mut Findings) {
    for (name, value) in labels.as_object().into_iter().flatten() {
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        let ends = |text: &str| {
            text.bytes()
                .next()
                .zip(text.bytes().last())
                .is_none_or(|(a, z)| a.is_ascii_alphanumeric() && z.is_ascii_alphanumeric())
        };
        let text = value.as_str().unwrap_or_default();
        if !value.is_string() || text.len() > 63 || !plain(text) || !ends(text) {
            found.invalid(path, value, "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')");
        }
        let bare = name.rsplit('/').next().unwrap_or_default();
        if bare.is_empty() || bare.len() > 63 || !plain(bare) || !ends(bare) {
            found.invalid(path, &Value::from(name.as_str()), "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')");
        }
    }
}

fn range(value: &Value, field: String, required: bool, found: &mut Findings) {
    match value.as_i64() {
        Some(1..=65535) => {}
        Some(_) => found.invalid(field, value, "must be between 1 and 65535, inclusive"),
        None if required => found.required(field),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kinds::Registry;
    use serde_json::json;

    fn check(group: &str, plural: &str, object: Value) -> String {
        let resource =
            Registry::built_in().all().iter().find(|r| r.group == group && r.plural == plural).cloned().unwrap();
        validate(&resource, &object, None).err().map(|e| e.message).unwrap_or_default()
    }

    #[test]
    fn messages_name_the_field() {
        let pod = |spec: Value| check("", "pods", json!({"metadata": {"name": "p"}, "spec": spec}));
        assert_eq!(pod(json!({"containers": [{"name": "c", "image": "i"}]})), "");
        assert!(pod(json!({})).contains("spec.containers: Required value"));
        assert!(pod(json!({"containers": [{"name": "c"}]})).contains("spec.containers[0].image: Required value"));
        assert!(pod(json!({"containers": [{"name": "C", "image": "i"}]})).contains("RFC 1123 label"));
        let two = json!([{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]);
        assert!(pod(json!({"containers": two})).contains("spec.containers[1].name: Duplicate value: \"c\""));
        let mount = json!([{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]);
        assert!(pod(json!({"containers": mount})).contains("volumeMounts[0].name: Not found: \"v\""));
        assert!(check("", "configmaps", json!({"metadata": {"name": "UP"}})).contains("RFC 1123 subdomain"));
        let ports = json!({"ports": [{"port": 70000}]});
        assert!(
            check("", "services", json!({"metadata": {"name": "s"}, "spec": ports}))
                .contains("must be between 1 and 65535")
        );
        let cron =
            |text: &str| check("batch", "cronjobs", json!({"metadata": {"name": "c"}, "spec": {"schedule": text}}));
        assert!(
            cron("bad").contains("spec.schedule: Invalid value: \"bad\": expected exactly 5 fields, found 1: [bad]")
        );
        assert!(!cron("*/5 * * * *").contains("spec.schedule") && !cron("@hourly").contains("spec.schedule"));
        let selector = json!({"selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}});
        assert!(
            check("apps", "deployments", json!({"metadata": {"name": "d"}, "spec": selector}))
                .contains("does not match template")
        );
    }

    #[test]
    fn custom_resources_answer_to_their_schema() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1}, "mode": {"type": "string", "enum": ["a", "b"]},
            "port": {"x-kubernetes-int-or-string": true}, "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}}}});
        let errors = |spec: Value| {
            let mut found = Findings::default();
            custom::by_schema(
                &schema,
                &json!({"apiVersion": "x/v1", "kind": "X", "metadata": {}, "spec": spec}),
                "",
                &mut found,
            );
            found.0.into_iter().map(|(_, field, _)| field).collect::<Vec<_>>()
        };
        assert!(errors(json!({"size": 1, "mode": "a", "port": "http", "name": "abc", "tags": ["x"]})).is_empty());
        assert_eq!(errors(json!({})), ["spec.size"]);
        assert_eq!(errors(json!({"size": "1"})), ["spec.size"]);
        assert_eq!(errors(json!({"size": 0, "mode": "c"})), ["spec.size", "spec.mode"]);
        assert_eq!(errors(json!({"size": 1, "port": true, "name": "ABCD"})), ["spec.port", "spec.name", "spec.name"]);
        assert_eq!(errors(json!({"size": 1, "tags": ["x", "x"]})), ["spec.tags[1]"]);
    }
}
