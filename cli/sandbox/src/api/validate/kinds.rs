//! What built-in kinds other than pods demand of their objects.

use super::pods::{self, template};
use super::{Findings, range};
use crate::api::kinds::Resource;
use crate::api::selector::LabelSelector;
use serde_json::Value;
use std::collections::BTreeSet;

/// Checks what an object's kind demands of it.
pub(super) fn check(resource: &Resource, object: &Value, old: Option<&Value>, found: &mut Findings) {
    let spec = &object["spec"];
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Pod") => {
            pods::spec(spec, "spec", &[], found);
            if let Some(old) = old {
                pods::update(&old["spec"], spec, found);
            }
        }
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet") => {
            workload(&resource.kind, object, old, found)
        }
        ("batch", "Job") => {
            template(&spec["template"], "spec.template", &[], found);
            if let Some(old) = old {
                unchanged(&["template", "selector", "completionMode"], &old["spec"], spec, found);
            }
            restart(&spec["template"]["spec"], "spec.template.spec.restartPolicy", found);
        }
        ("batch", "CronJob") => {
            schedule(&spec["schedule"], found);
            template(&spec["jobTemplate"]["spec"]["template"], "spec.jobTemplate.spec.template", &[], found);
            restart(
                &spec["jobTemplate"]["spec"]["template"]["spec"],
                "spec.jobTemplate.spec.template.spec.restartPolicy",
                found,
            );
            found.one_of(
                "spec.concurrencyPolicy".to_owned(),
                &spec["concurrencyPolicy"],
                &["Allow", "Forbid", "Replace"],
            );
        }
        ("", "Service") => service(spec, old, found),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => binding(object, old, found),
        ("rbac.authorization.k8s.io", kind) => rules(&object["rules"], kind == "Role", found),
        ("policy", "PodDisruptionBudget") if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() => {
            found.invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set");
        }
        ("", "ConfigMap" | "Secret") => data(object, old, found),
        _ => {}
    }
}

fn binding(object: &Value, old: Option<&Value>, found: &mut Findings) {
    found.one_of("roleRef.kind".to_owned(), &object["roleRef"]["kind"], &["Role", "ClusterRole"]);
    if object["roleRef"]["name"].as_str().is_none_or(str::is_empty) {
        found.required("roleRef.name");
    }
    if old.is_some_and(|old| old["roleRef"] != object["roleRef"]) {
        found.invalid("roleRef", &object["roleRef"], "cannot change roleRef");
    }
}

fn data(object: &Value, old: Option<&Value>, found: &mut Findings) {
    for key in object["data"].as_object().into_iter().flatten().map(|(key, _)| key) {
        if key.is_empty() || key.len() > 253 || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            found.invalid(format!("data[{key}]"), &Value::from(key.as_str()), "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')");
        }
    }
    if old.is_some_and(|old| old["immutable"] == true && (old["data"] != object["data"] || object["immutable"] != true))
    {
        found.add("FieldValueForbidden", "data", "Forbidden: field is immutable when `immutable` is set");
    }
}

fn workload(kind: &str, object: &Value, old: Option<&Value>, found: &mut Findings) {
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
        found.invalid("spec.selector", selector, &format!("empty selector is invalid for {}", kind.to_lowercase()));
    } else if !LabelSelector::from_object(selector).matches(&spec["template"]) {
        found.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`");
    }
    if old.is_some_and(|old| old["spec"]["selector"] != *selector) {
        found.invalid("spec.selector", selector, "field is immutable");
    }
    let claims: Vec<&str> = spec["volumeClaimTemplates"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|claim| claim["metadata"]["name"].as_str())
        .collect();
    template(&spec["template"], "spec.template", &claims, found);
    strategy(kind, spec, found);
    if let (Some(old), "StatefulSet") = (old, kind) {
        stateful_set_update(&old["spec"], spec, found);
    }
    if let Some(policy) = spec["template"]["spec"]["restartPolicy"].as_str()
        && policy != "Always"
    {
        found.unsupported("spec.template.spec.restartPolicy", &policy.into(), &["Always"]);
    }
}

fn strategy(kind: &str, spec: &Value, found: &mut Findings) {
    let (field, allowed): (&str, &[&str]) = match kind {
        "Deployment" => ("strategy", &["Recreate", "RollingUpdate"]),
        "StatefulSet" | "DaemonSet" => ("updateStrategy", &["OnDelete", "RollingUpdate"]),
        _ => return,
    };
    let strategy = &spec[field];
    found.one_of(format!("spec.{field}.type"), &strategy["type"], allowed);
    if kind == "Deployment" && strategy["type"] == "Recreate" && strategy["rollingUpdate"].is_object() {
        let why = "Forbidden: may not be specified when strategy `type` is 'Recreate'";
        found.add("FieldValueForbidden", format!("spec.{field}.rollingUpdate"), why);
    }
}

fn stateful_set_update(old: &Value, new: &Value, found: &mut Findings) {
    const FREE: &[&str] = &[
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let settled = |spec: &Value| {
        let fields = spec.as_object().into_iter().flatten().filter(|(field, _)| !FREE.contains(&field.as_str()));
        fields.map(|(field, value)| (field.clone(), value.clone())).collect::<serde_json::Map<_, _>>()
    };
    if settled(old) != settled(new) {
        found.add("FieldValueForbidden", "spec", "Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
    }
}

fn unchanged(fields: &[&str], old: &Value, new: &Value, found: &mut Findings) {
    for field in fields.iter().filter(|field| old[**field] != new[**field]) {
        found.invalid(format!("spec.{field}"), &new[*field], "field is immutable");
    }
}

fn rules(rules: &Value, namespaced: bool, found: &mut Findings) {
    let none = |value: &Value| value.as_array().is_none_or(Vec::is_empty);
    for (index, rule) in rules.as_array().into_iter().flatten().enumerate() {
        let field = |name: &str| format!("rules[{index}].{name}");
        if none(&rule["verbs"]) {
            found.add("FieldValueRequired", field("verbs"), "Required value: verbs must contain at least one value");
        }
        if !none(&rule["nonResourceURLs"]) {
            if namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                found.invalid(field("nonResourceURLs"), &rule["nonResourceURLs"], why);
            }
            continue;
        }
        if none(&rule["apiGroups"]) {
            let why = "Required value: resource rules must supply at least one api group";
            found.add("FieldValueRequired", field("apiGroups"), why);
        }
        if none(&rule["resources"]) {
            let why = "Required value: resource rules must supply at least one resource";
            found.add("FieldValueRequired", field("resources"), why);
        }
    }
}

fn schedule(schedule: &Value, found: &mut Findings) {
    let text = schedule.as_str().unwrap_or_default();
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.is_empty() {
        found.required("spec.schedule");
    } else if !text.starts_with('@') && fields.len() != 5 {
        let count = fields.len();
        let why = format!("expected exactly 5 fields, found {count}: [{}]", fields.join(" "));
        found.invalid("spec.schedule", schedule, &why);
    }
}

fn restart(spec: &Value, field: &str, found: &mut Findings) {
    found.one_of(field.to_owned(), &spec["restartPolicy"], &["OnFailure", "Never"]);
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
