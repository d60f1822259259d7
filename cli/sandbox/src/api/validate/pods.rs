//! What pods and pod templates demand.

use super::{Findings, LABEL_RULE, is_label, range};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Checks a pod template; `claims` are volumes that its pods get besides their own.
pub(super) fn template(template: &Value, path: &str, claims: &[&str], found: &mut Findings) {
    super::labels(&template["metadata"]["labels"], &format!("{path}.metadata.labels"), found);
    spec(&template["spec"], &format!("{path}.spec"), claims, found);
}

/// Checks a pod's spec at `path`.
pub(super) fn spec(spec: &Value, path: &str, claims: &[&str], found: &mut Findings) {
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
    volumes.extend(claims);
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
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        probe(&container[name], &format!("{path}.{name}"), found);
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

fn probe(probe: &Value, path: &str, found: &mut Findings) {
    if !probe.is_object() {
        return;
    }
    let handlers = ["exec", "httpGet", "tcpSocket", "grpc"].iter().filter(|handler| probe[**handler].is_object());
    match handlers.count() {
        0 => found.add("FieldValueRequired", path, "Required value: must specify a handler type"),
        1 => {}
        _ => found.add("FieldValueForbidden", path, "Forbidden: may not specify more than 1 handler type"),
    }
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        if probe[field].as_i64().is_some_and(|number| number < 0) {
            found.invalid(format!("{path}.{field}"), &probe[field], "must be greater than or equal to 0");
        }
    }
    if !path.ends_with("readinessProbe") && probe["successThreshold"].as_i64().is_some_and(|number| number > 1) {
        found.invalid(format!("{path}.successThreshold"), &probe["successThreshold"], "must be 1");
    }
}

/// A pod's spec is fixed once made, but for images, tolerations, deadlines and what the scheduler sets.
pub(super) fn update(old: &Value, new: &Value, found: &mut Findings) {
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
