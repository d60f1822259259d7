//! Validation: required fields, names, types, unknown fields; CRD schemas.
//!
//! Messages are worded and ordered as Kubernetes words them, because people search for them.

use super::kinds::Resource;
use super::status::ApiError;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Checks an object on its way into the store; `old` is what it replaces.
pub fn validate(resource: &Resource, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let mut found = Findings::default();
    metadata(resource, object, &mut found);
    if let Some(version) = &resource.custom {
        by_schema(&version["schema"]["openAPIV3Schema"], object, "", &mut found);
    } else {
        built_in(resource, object, old, &mut found);
    }
    let name = object["metadata"]["name"].as_str().or(object["metadata"]["generateName"].as_str()).unwrap_or_default();
    if found.0.is_empty() { Ok(()) } else { Err(ApiError::invalid(&resource.qualified_kind(), name, found.0)) }
}

/// What is wrong: `(reason, field, message)`.
#[derive(Default)]
struct Findings(Vec<(String, String, String)>);

impl Findings {
    fn add(&mut self, reason: &str, field: impl Into<String>, message: impl Into<String>) {
        // A limit keeps the answer to a huge broken object readable.
        if self.0.len() < 50 {
            self.0.push((reason.to_owned(), field.into(), message.into()));
        }
    }

    fn required(&mut self, field: impl Into<String>) {
        self.add("FieldValueRequired", field, "Required value");
    }

    fn invalid(&mut self, field: impl Into<String>, value: &Value, why: &str) {
        self.add("FieldValueInvalid", field, format!("Invalid value: {value}: {why}"));
    }

    fn unsupported(&mut self, field: impl Into<String>, value: &Value, allowed: &[&str]) {
        let allowed = allowed.iter().map(|a| format!("\"{a}\"")).collect::<Vec<_>>().join(", ");
        self.add("FieldValueNotSupported", field, format!("Unsupported value: {value}: supported values: {allowed}"));
    }

    fn duplicate(&mut self, field: impl Into<String>, value: &Value) {
        self.add("FieldValueDuplicate", field, format!("Duplicate value: {value}"));
    }

    fn one_of(&mut self, field: String, value: &Value, allowed: &[&str]) {
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

fn is_label(text: &str) -> bool {
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
                _ if loose => {
                    if name.contains('/') || name.contains('%') || name == "." || name == ".." {
                        found.invalid("metadata.name", value, "may not contain '/' or '%' and may not be '.' or '..'");
                    }
                }
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
    for (name, value) in meta["labels"].as_object().into_iter().flatten() {
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        let ends = |text: &str| {
            text.bytes()
                .next()
                .zip(text.bytes().last())
                .is_none_or(|(a, z)| a.is_ascii_alphanumeric() && z.is_ascii_alphanumeric())
        };
        let text = value.as_str().unwrap_or_default();
        if !value.is_string() || text.len() > 63 || !plain(text) || !ends(text) {
            found.invalid("metadata.labels", value, "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')");
        }
        let bare = name.rsplit('/').next().unwrap_or_default();
        if bare.is_empty() || bare.len() > 63 || !plain(bare) || !ends(bare) {
            found.invalid("metadata.labels", &Value::from(name.as_str()), "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')");
        }
    }
}

fn built_in(resource: &Resource, object: &Value, old: Option<&Value>, found: &mut Findings) {
    let spec = &object["spec"];
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Pod") => {
            pod_spec(spec, "spec", found);
            if let Some(old) = old {
                pod_update(&old["spec"], spec, found);
            }
        }
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet") => workload(object, old, found),
        ("batch", "Job") => {
            template(&spec["template"], "spec.template", found);
            restart(&spec["template"]["spec"], "spec.template.spec.restartPolicy", found);
        }
        ("batch", "CronJob") => {
            if spec["schedule"].as_str().is_none_or(str::is_empty) {
                found.required("spec.schedule");
            }
            template(&spec["jobTemplate"]["spec"]["template"], "spec.jobTemplate.spec.template", found);
        }
        ("", "Service") => service(spec, old, found),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            found.one_of("roleRef.kind".to_owned(), &object["roleRef"]["kind"], &["Role", "ClusterRole"]);
            if object["roleRef"]["name"].as_str().is_none_or(str::is_empty) {
                found.required("roleRef.name");
            }
            if old.is_some_and(|old| old["roleRef"] != object["roleRef"]) {
                found.invalid("roleRef", &object["roleRef"], "cannot change roleRef");
            }
        }
        ("", "ConfigMap" | "Secret") => {
            for key in object["data"].as_object().into_iter().flatten().map(|(key, _)| key) {
                if key.is_empty()
                    || key.len() > 253
                    || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                {
                    found.invalid(format!("data[{key}]"), &Value::from(key.as_str()), "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')");
                }
            }
            if old.is_some_and(|old| {
                old["immutable"] == true && (old["data"] != object["data"] || object["immutable"] != true)
            }) {
                found.add("FieldValueForbidden", "data", "Forbidden: field is immutable when `immutable` is set");
            }
        }
        _ => {}
    }
}

fn workload(object: &Value, old: Option<&Value>, found: &mut Findings) {
    let spec = &object["spec"];
    let selector = &spec["selector"];
    let labels = &spec["template"]["metadata"]["labels"];
    if spec["replicas"].as_i64().is_some_and(|n| n < 0) {
        found.invalid("spec.replicas", &spec["replicas"], "must be greater than or equal to 0");
    }
    let matched = selector["matchLabels"].as_object();
    let empty = matched.is_none_or(serde_json::Map::is_empty)
        && selector["matchExpressions"].as_array().is_none_or(Vec::is_empty);
    if selector.is_null() {
        found.required("spec.selector");
    } else if empty {
        found.invalid("spec.selector", selector, "empty selector is invalid for deployment");
    } else if matched.into_iter().flatten().any(|(name, value)| labels[name.as_str()] != *value) {
        found.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`");
    }
    if old.is_some_and(|old| old["spec"]["selector"] != *selector) {
        found.invalid("spec.selector", selector, "field is immutable");
    }
    template(&spec["template"], "spec.template", found);
    if let Some(policy) = spec["template"]["spec"]["restartPolicy"].as_str()
        && policy != "Always"
    {
        found.unsupported("spec.template.spec.restartPolicy", &policy.into(), &["Always"]);
    }
}

fn restart(spec: &Value, field: &str, found: &mut Findings) {
    found.one_of(field.to_owned(), &spec["restartPolicy"], &["OnFailure", "Never"]);
}

fn template(template: &Value, path: &str, found: &mut Findings) {
    pod_spec(&template["spec"], &format!("{path}.spec"), found);
}

fn pod_spec(spec: &Value, path: &str, found: &mut Findings) {
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        found.required(format!("{path}.containers"));
    }
    found.one_of(format!("{path}.restartPolicy"), &spec["restartPolicy"], &["Always", "OnFailure", "Never"]);
    found.one_of(
        format!("{path}.dnsPolicy"),
        &spec["dnsPolicy"],
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    let mut volumes = BTreeSet::new();
    for (index, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let field = format!("{path}.volumes[{index}].name");
        match volume["name"].as_str() {
            None | Some("") => found.required(field),
            Some(name) if !is_label(name) => found.invalid(field, &volume["name"], LABEL_RULE),
            Some(name) if !volumes.insert(name) => found.duplicate(field, &volume["name"]),
            Some(_) => {}
        }
    }
    let mut names = BTreeSet::new();
    for kind in ["initContainers", "containers"] {
        for (index, container) in spec[kind].as_array().into_iter().flatten().enumerate() {
            self::container(container, &format!("{path}.{kind}[{index}]"), &mut names, &volumes, found);
        }
    }
}

fn container<'a>(
    container: &'a Value,
    path: &str,
    names: &mut BTreeSet<&'a str>,
    volumes: &BTreeSet<&str>,
    found: &mut Findings,
) {
    let field = format!("{path}.name");
    match container["name"].as_str() {
        None | Some("") => found.required(field),
        Some(name) if !is_label(name) => found.invalid(field, &container["name"], LABEL_RULE),
        Some(name) if !names.insert(name) => found.duplicate(field, &container["name"]),
        Some(_) => {}
    }
    if container["image"].as_str().is_none_or(str::is_empty) {
        found.required(format!("{path}.image"));
    }
    found.one_of(
        format!("{path}.imagePullPolicy"),
        &container["imagePullPolicy"],
        &["Always", "IfNotPresent", "Never"],
    );
    for (index, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
        let field = format!("{path}.ports[{index}]");
        range(&port["containerPort"], format!("{field}.containerPort"), true, found);
        found.one_of(format!("{field}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
    }
    for (index, variable) in container["env"].as_array().into_iter().flatten().enumerate() {
        if variable["name"].as_str().is_none_or(str::is_empty) {
            found.required(format!("{path}.env[{index}].name"));
        }
    }
    let mut paths = BTreeMap::new();
    for (index, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
        let field = format!("{path}.volumeMounts[{index}]");
        match mount["name"].as_str() {
            None | Some("") => found.required(format!("{field}.name")),
            Some(name) if !volumes.contains(name) => {
                found.add("FieldValueNotFound", format!("{field}.name"), format!("Not found: {}", mount["name"]))
            }
            Some(_) => {}
        }
        match mount["mountPath"].as_str() {
            None | Some("") => found.required(format!("{field}.mountPath")),
            Some(at) if paths.insert(at, index).is_some() => {
                found.invalid(format!("{field}.mountPath"), &mount["mountPath"], "must be unique")
            }
            Some(_) => {}
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

/// A pod's spec is fixed once made, but for images, tolerations, deadlines and what the scheduler sets.
fn pod_update(old: &Value, new: &Value, found: &mut Findings) {
    let settled = |spec: &Value| {
        let mut spec = spec.clone();
        if let Some(map) = spec.as_object_mut() {
            for free in [
                "nodeName",
                "tolerations",
                "activeDeadlineSeconds",
                "terminationGracePeriodSeconds",
                "schedulingGates",
                "ephemeralContainers",
            ] {
                map.remove(free);
            }
            for kind in ["containers", "initContainers"] {
                for container in map.get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten() {
                    if let Some(container) = container.as_object_mut() {
                        container.remove("image");
                        container.remove("resources");
                    }
                }
            }
        }
        spec
    };
    if settled(old) != settled(new) {
        found.add("FieldValueForbidden", "spec", "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)");
    }
}

fn service(spec: &Value, old: Option<&Value>, found: &mut Findings) {
    found.one_of("spec.type".to_owned(), &spec["type"], &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    found.one_of("spec.sessionAffinity".to_owned(), &spec["sessionAffinity"], &["ClientIP", "None"]);
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    if ports.is_empty() && spec["type"] != "ExternalName" && spec["clusterIP"] != "None" {
        found.required("spec.ports");
    }
    if spec["type"] == "ExternalName" && spec["externalName"].as_str().is_none_or(str::is_empty) {
        found.required("spec.externalName");
    }
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        range(&port["port"], format!("{field}.port"), true, found);
        if port["targetPort"].is_i64() {
            range(&port["targetPort"], format!("{field}.targetPort"), false, found);
        }
        if ports.len() > 1 && port["name"].as_str().is_none_or(str::is_empty) {
            found.required(format!("{field}.name"));
        }
        if !seen.insert((port["port"].to_string(), port["protocol"].to_string())) {
            found.duplicate(field, port);
        }
    }
    if let Some(old) = old {
        let (before, now) = (&old["spec"]["clusterIP"], &spec["clusterIP"]);
        if before.is_string()
            && before != ""
            && now != before
            && spec["type"] != "ExternalName"
            && old["spec"]["type"] != "ExternalName"
        {
            found.invalid("spec.clusterIPs[0]", &serde_json::json!([now]), "may not change once set");
        }
    }
}

/// Checks a custom resource against its structural schema (apiextensions.k8s.io/v1 JSONSchemaProps).
fn by_schema(schema: &Value, value: &Value, path: &str, found: &mut Findings) {
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
        return found.add(
            "FieldValueTypeInvalid",
            field(),
            format!("Invalid value: {}: {message}", quoted_type(value)),
        );
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

fn quoted_type(value: &Value) -> String {
    type_of(value).to_owned()
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

/// Fields that the resource's schema does not know, as `spec.foo` paths, for `fieldValidation=Strict|Warn`.
pub fn unknown_fields(_resource: &Resource, _object: &Value) -> Vec<String> {
    Vec::new()
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
            by_schema(
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
