//! Default values of built-in kinds (custom ones default by their schema).
//!
//! A default is written only where nothing stands, so applying them twice changes nothing. Field names and values are
//! those of the Kubernetes API reference.

use super::kinds::Resource;
use serde_json::{Map, Value, json};

/// Fills in what Kubernetes would fill in for fields left out of a built-in or custom object.
pub fn apply_defaults(resource: &Resource, object: &mut Value) {
    if let Some(version) = &resource.custom {
        return by_schema(&version["schema"]["openAPIV3Schema"], object);
    }
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Pod") => pod_spec(object, &["spec"]),
        ("", "Service") => service(object),
        ("", "Secret") => secret(object),
        ("apps", kind) => {
            if let Some(spec) = at(object, &["spec"]) {
                workload(kind, spec);
            }
        }
        ("batch", "Job") => {
            if let Some(spec) = at(object, &["spec"]) {
                job(spec);
            }
        }
        ("batch", "CronJob") => {
            if let Some(spec) = at(object, &["spec"]) {
                cron_job(spec);
            }
        }
        ("discovery.k8s.io", "EndpointSlice") => {
            for port in list(object, &["ports"]) {
                set(port, "protocol", json!("TCP"));
                set(port, "name", json!(""));
            }
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => binding(object),
        ("admissionregistration.k8s.io", kind) => {
            for webhook in list(object, &["webhooks"]) {
                self::webhook(kind, webhook);
            }
        }
        ("apiregistration.k8s.io", "APIService") => {
            set_at(object, &["spec", "service"], &[("port", json!(443))]);
        }
        ("networking.k8s.io", "NetworkPolicy") => {
            if let Some(spec) = at(object, &["spec"]) {
                network_policy(spec);
            }
        }
        _ => {}
    }
}

/// Fills in the `default`s of a structural schema, in what is there and in what the defaults themselves bring.
fn by_schema(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(default) = property.get("default")
                    && map.get(name).is_none_or(|value| value.is_null() && property["nullable"] != true)
                {
                    map.insert(name.clone(), default.clone());
                }
                if let Some(value) = map.get_mut(name) {
                    by_schema(property, value);
                }
            }
            if schema["additionalProperties"].is_object() {
                map.values_mut().for_each(|value| by_schema(&schema["additionalProperties"], value));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| by_schema(&schema["items"], item)),
        _ => {}
    }
}

/// Writes a field where nothing stands; what is no object is left to validation.
fn set(object: &mut Value, field: &str, value: Value) {
    if let Some(map) = object.as_object_mut()
        && map.get(field).is_none_or(Value::is_null)
    {
        map.insert(field.to_owned(), value);
    }
}

fn set_all(object: &mut Value, fields: &[(&str, Value)]) {
    for (field, value) in fields {
        set(object, field, value.clone());
    }
}

/// What stands at a path, if anything but null does and everything on the way is an object.
fn at<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |value, field| value.as_object_mut()?.get_mut(*field)).filter(|value| !value.is_null())
}

/// The items of the list at a path, none if there is no list.
fn list<'a>(value: &'a mut Value, path: &[&str]) -> impl Iterator<Item = &'a mut Value> {
    at(value, path).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Sets fields of the object at a path, if there is one.
fn set_at(value: &mut Value, path: &[&str], fields: &[(&str, Value)]) {
    if let Some(object) = at(value, path) {
        set_all(object, fields);
    }
}

/// The object at a field, made if nothing stands there; `None` if something else does.
fn child<'a>(object: &'a mut Value, field: &str) -> Option<&'a mut Value> {
    set(object, field, Value::Object(Map::new()));
    object.get_mut(field).filter(|value| value.is_object())
}

fn secret(object: &mut Value) {
    use base64::Engine;
    set(object, "type", json!("Opaque"));
    let Some(plain) = object.as_object_mut().and_then(|o| o.shift_remove("stringData")) else { return };
    let Some(data) = child(object, "data").and_then(Value::as_object_mut) else { return };
    for (key, value) in plain.as_object().into_iter().flatten() {
        let encoded = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
        data.insert(key.clone(), encoded.into());
    }
}

fn service(object: &mut Value) {
    let Some(spec) = at(object, &["spec"]) else { return };
    set_all(spec, &[("type", json!("ClusterIP")), ("sessionAffinity", json!("None"))]);
    if spec["type"] != "ExternalName" {
        set_all(
            spec,
            &[
                ("internalTrafficPolicy", json!("Cluster")),
                ("ipFamilyPolicy", json!("SingleStack")),
                ("ipFamilies", json!(["IPv4"])),
            ],
        );
    }
    if spec["type"] == "NodePort" || spec["type"] == "LoadBalancer" {
        set(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if spec["sessionAffinity"] == "ClientIP" {
        set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
    for port in list(spec, &["ports"]) {
        set(port, "protocol", json!("TCP"));
        let own = port["port"].clone();
        if (port["targetPort"].is_null() || port["targetPort"] == 0 || port["targetPort"] == "")
            && let Some(port) = port.as_object_mut()
        {
            port.insert("targetPort".to_owned(), own);
        }
    }
}

fn workload(kind: &str, spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    match kind {
        "Deployment" => {
            set_all(
                spec,
                &[("replicas", json!(1)), ("revisionHistoryLimit", json!(10)), ("progressDeadlineSeconds", json!(600))],
            );
            rolling(spec, "strategy", &[("maxUnavailable", json!("25%")), ("maxSurge", json!("25%"))]);
        }
        "ReplicaSet" => set(spec, "replicas", json!(1)),
        "StatefulSet" => {
            set_all(
                spec,
                &[
                    ("replicas", json!(1)),
                    ("revisionHistoryLimit", json!(10)),
                    ("podManagementPolicy", json!("OrderedReady")),
                ],
            );
            rolling(spec, "updateStrategy", &[("partition", json!(0))]);
            set(spec, "persistentVolumeClaimRetentionPolicy", json!({"whenDeleted": "Retain", "whenScaled": "Retain"}));
        }
        "DaemonSet" => {
            set(spec, "revisionHistoryLimit", json!(10));
            rolling(spec, "updateStrategy", &[("maxUnavailable", json!(1)), ("maxSurge", json!(0))]);
        }
        _ => return,
    }
    pod_spec(spec, &["template", "spec"]);
}

fn rolling(spec: &mut Value, field: &str, values: &[(&str, Value)]) {
    let Some(strategy) = child(spec, field) else { return };
    set(strategy, "type", json!("RollingUpdate"));
    if strategy["type"] == "RollingUpdate"
        && let Some(rolling) = child(strategy, "rollingUpdate")
    {
        set_all(rolling, values);
    }
}

fn job(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        set(spec, "completions", json!(1));
    }
    set_all(
        spec,
        &[
            ("parallelism", json!(1)),
            ("backoffLimit", json!(6)),
            ("completionMode", json!("NonIndexed")),
            ("suspend", json!(false)),
            ("podReplacementPolicy", json!("TerminatingOrFailed")),
        ],
    );
    pod_spec(spec, &["template", "spec"]);
}

fn cron_job(spec: &mut Value) {
    set_all(
        spec,
        &[
            ("concurrencyPolicy", json!("Allow")),
            ("suspend", json!(false)),
            ("successfulJobsHistoryLimit", json!(3)),
            ("failedJobsHistoryLimit", json!(1)),
        ],
    );
    pod_spec(spec, &["jobTemplate", "spec", "template", "spec"]);
}

fn binding(object: &mut Value) {
    let group = json!("rbac.authorization.k8s.io");
    set_at(object, &["roleRef"], &[("apiGroup", group.clone())]);
    for subject in list(object, &["subjects"]) {
        if subject["kind"] == "User" || subject["kind"] == "Group" {
            set(subject, "apiGroup", group.clone());
        }
    }
}

fn webhook(kind: &str, webhook: &mut Value) {
    set_all(
        webhook,
        &[
            ("failurePolicy", json!("Fail")),
            ("matchPolicy", json!("Equivalent")),
            ("namespaceSelector", json!({})),
            ("objectSelector", json!({})),
            ("timeoutSeconds", json!(10)),
        ],
    );
    if kind == "MutatingWebhookConfiguration" {
        set(webhook, "reinvocationPolicy", json!("Never"));
    }
    for rule in list(webhook, &["rules"]) {
        set(rule, "scope", json!("*"));
    }
    set_at(webhook, &["clientConfig", "service"], &[("port", json!(443))]);
}

fn network_policy(spec: &mut Value) {
    let mut types = vec![json!("Ingress")];
    if spec["egress"].as_array().is_some_and(|rules| !rules.is_empty()) {
        types.push(json!("Egress"));
    }
    set(spec, "policyTypes", Value::Array(types));
    for direction in ["ingress", "egress"] {
        for rule in list(spec, &[direction]) {
            for port in list(rule, &["ports"]) {
                set(port, "protocol", json!("TCP"));
            }
        }
    }
}

fn pod_spec(object: &mut Value, path: &[&str]) {
    let Some(spec) = at(object, path).filter(|spec| spec.is_object()) else { return };
    set_all(
        spec,
        &[
            ("restartPolicy", json!("Always")),
            ("dnsPolicy", json!("ClusterFirst")),
            ("schedulerName", json!("default-scheduler")),
            ("terminationGracePeriodSeconds", json!(30)),
            ("securityContext", json!({})),
            ("enableServiceLinks", json!(true)),
        ],
    );
    // The old name of the field still counts, and both are kept alike.
    match (spec["serviceAccountName"].clone(), spec["serviceAccount"].clone()) {
        (Value::String(name), _) => set(spec, "serviceAccount", name.into()),
        (_, Value::String(name)) => set(spec, "serviceAccountName", name.into()),
        _ => {}
    }
    let host_network = spec["hostNetwork"] == true;
    for kind in ["containers", "initContainers", "ephemeralContainers"] {
        for container in list(spec, &[kind]) {
            self::container(container, host_network);
        }
    }
    for volume in list(spec, &["volumes"]) {
        self::volume(volume);
    }
}

fn container(container: &mut Value, host_network: bool) {
    if !container.is_object() {
        return;
    }
    let image = container["image"].as_str().unwrap_or_default();
    let tag = image.rsplit('/').next().and_then(|name| name.split_once(':')).map(|(_, tag)| tag);
    let pull = if tag.is_none_or(|tag| tag == "latest") && !image.contains('@') { "Always" } else { "IfNotPresent" };
    set_all(
        container,
        &[
            ("terminationMessagePath", json!("/dev/termination-log")),
            ("terminationMessagePolicy", json!("File")),
            ("imagePullPolicy", json!(pull)),
            ("resources", json!({})),
        ],
    );
    for port in list(container, &["ports"]) {
        set(port, "protocol", json!("TCP"));
        if host_network {
            let number = port["containerPort"].clone();
            set(port, "hostPort", number);
        }
    }
    for variable in list(container, &["env"]) {
        set_at(variable, &["valueFrom", "fieldRef"], &[("apiVersion", json!("v1"))]);
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        set_at(
            container,
            &[probe],
            &[
                ("timeoutSeconds", json!(1)),
                ("periodSeconds", json!(10)),
                ("successThreshold", json!(1)),
                ("failureThreshold", json!(3)),
            ],
        );
        set_at(container, &[probe, "httpGet"], &[("path", json!("/")), ("scheme", json!("HTTP"))]);
        set_at(container, &[probe, "grpc"], &[("service", json!(""))]);
    }
    for hook in ["postStart", "preStop"] {
        set_at(container, &["lifecycle", hook, "httpGet"], &[("path", json!("/")), ("scheme", json!("HTTP"))]);
    }
    // Limits are requests where nothing less is asked for.
    let limits = container["resources"]["limits"].as_object().cloned().unwrap_or_default();
    if !limits.is_empty()
        && let Some(requests) = at(container, &["resources"]).and_then(|resources| child(resources, "requests"))
    {
        for (name, amount) in limits {
            set(requests, &name, amount);
        }
    }
}

fn volume(volume: &mut Value) {
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        set_at(volume, &[source], &[("defaultMode", json!(0o644))]);
    }
    set_at(volume, &["hostPath"], &[("type", json!(""))]);
    field_references(volume);
    for source in list(volume, &["projected", "sources"]) {
        set_at(source, &["serviceAccountToken"], &[("expirationSeconds", json!(3600))]);
        field_references(source);
    }
    let sourceless = volume.as_object().is_some_and(|map| map.len() == 1 && map.contains_key("name"));
    if sourceless {
        set(volume, "emptyDir", json!({}));
    }
}

fn field_references(source: &mut Value) {
    for item in list(source, &["downwardAPI", "items"]) {
        set_at(item, &["fieldRef"], &[("apiVersion", json!("v1"))]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kinds::Registry;

    fn defaulted(group: &str, plural: &str, mut object: Value) -> Value {
        let registry = Registry::built_in();
        let resource = registry.all().iter().find(|r| r.group == group && r.plural == plural).cloned().unwrap();
        apply_defaults(&resource, &mut object);
        let once = object.clone();
        apply_defaults(&resource, &mut object);
        assert_eq!(object, once, "defaults applied twice differ");
        object
    }

    #[test]
    fn a_deployment_gets_what_kubernetes_would_give_it() {
        let d = defaulted(
            "apps",
            "deployments",
            json!({"spec": {"template": {"spec": {"containers": [
            {"name": "c", "image": "web", "ports": [{"containerPort": 80}], "readinessProbe": {"httpGet": {"port": 80}}}]}}}}),
        );
        assert_eq!(d["spec"]["replicas"], 1);
        assert_eq!(d["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
        let pod = &d["spec"]["template"]["spec"];
        assert_eq!((&pod["restartPolicy"], &pod["terminationGracePeriodSeconds"]), (&json!("Always"), &json!(30)));
        let container = &pod["containers"][0];
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["ports"][0]["protocol"], "TCP");
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/");
        assert_eq!(container["readinessProbe"]["failureThreshold"], 3);
        let text = d.to_string();
        assert!(!text.contains("null"), "{text}");
    }

    #[test]
    fn services_and_secrets_are_completed() {
        let s = defaulted("", "services", json!({"spec": {"ports": [{"port": 80}, {"port": 81, "targetPort": "x"}]}}));
        assert_eq!(
            s["spec"]["ports"],
            json!([{"port": 80, "protocol": "TCP", "targetPort": 80}, {"port": 81, "targetPort": "x", "protocol": "TCP"}])
        );
        assert_eq!(s["spec"]["type"], "ClusterIP");
        let s = defaulted("", "secrets", json!({"stringData": {"a": "b"}}));
        assert_eq!((&s["data"]["a"], &s["type"]), (&json!("Yg=="), &json!("Opaque")));
        assert!(s.get("stringData").is_none());
    }

    #[test]
    fn garbage_is_left_to_validation() {
        for object in
            [json!({}), json!({"spec": null}), json!({"spec": 3}), json!({"spec": {"template": "x", "containers": {}}})]
        {
            for (group, plural) in
                [("", "pods"), ("apps", "deployments"), ("batch", "jobs"), ("batch", "cronjobs"), ("", "services")]
            {
                let registry = Registry::built_in();
                let resource = registry.all().iter().find(|r| r.group == group && r.plural == plural).cloned().unwrap();
                apply_defaults(&resource, &mut object.clone());
            }
        }
    }
}
