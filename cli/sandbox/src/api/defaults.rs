//! Default values: what the API fills in for fields left out. Built-in kinds default here (pods, which many kinds
//! hold, in [`pod`]); custom ones by their schema.

mod pod;

use super::kinds::Resource;
use base64::Engine;
use serde_json::{Map, Value, json};

/// Fills in what Kubernetes would fill in for fields left out of a built-in or custom object.
pub fn apply_defaults(resource: &Resource, object: &mut Value) {
    if let Some(version) = resource.custom.as_deref() {
        from_schema(&version["schema"]["openAPIV3Schema"], object);
        return;
    }
    if !object.is_object() {
        return;
    }
    if resource.plural != "controllerrevisions" {
        drop_nulls(object);
    }
    match resource.group.as_str() {
        "" => core(&resource.plural, object),
        "apps" => apps(&resource.plural, object),
        "batch" => batch(&resource.plural, object),
        "rbac.authorization.k8s.io" => roles(&resource.plural, object),
        "admissionregistration.k8s.io" => webhooks(&resource.plural, object),
        "apiregistration.k8s.io" => edit(object, "/spec/service", |service| set(service, "port", 443)),
        "apiextensions.k8s.io" => edit(object, "/spec", |spec| set(spec, "conversion", json!({"strategy": "None"}))),
        "discovery.k8s.io" => each(object, "/ports", |port| {
            set(port, "name", "");
            set(port, "protocol", "TCP");
        }),
        "networking.k8s.io" if resource.plural == "networkpolicies" => edit(object, "/spec", network_policy),
        "autoscaling" => edit(object, "/spec", |spec| set(spec, "minReplicas", 1)),
        "scheduling.k8s.io" => set(object, "preemptionPolicy", "PreemptLowerPriority"),
        "storage.k8s.io" => {
            set(object, "reclaimPolicy", "Delete");
            set(object, "volumeBindingMode", "Immediate");
        }
        _ => {}
    }
}

/// Sets a field that is missing; does nothing to what is no object.
fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(fields) = object.as_object_mut()
        && !fields.contains_key(field)
    {
        fields.insert(field.to_owned(), value.into());
    }
}

/// Changes what is at a JSON pointer, if there is anything. Objects come from anybody: indexing could insert or panic.
fn edit(object: &mut Value, pointer: &str, change: impl FnOnce(&mut Value)) {
    if let Some(place) = object.pointer_mut(pointer) {
        change(place);
    }
}

/// Changes the items of the list at a JSON pointer, if there is one.
fn each(object: &mut Value, pointer: &str, change: impl FnMut(&mut Value)) {
    let list = object.pointer_mut(pointer).and_then(Value::as_array_mut);
    list.into_iter().flatten().for_each(change);
}

/// Changes the object in a field, which is made if it is missing.
fn within(parent: &mut Value, field: &str, change: impl FnOnce(&mut Value)) {
    if let Some(fields) = parent.as_object_mut() {
        change(fields.entry(field).or_insert_with(|| Value::Object(Map::new())));
    }
}

/// `null` means the same as nothing in built-in kinds.
pub(super) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Fills in a custom object's `default`s. A default replaces `null` where the schema does not allow `null`.
fn from_schema(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(default) = property.get("default")
                    && fields.get(name).is_none_or(|value| value.is_null() && property["nullable"] != true)
                {
                    fields.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in fields.iter_mut() {
                let property = &schema["properties"][name.as_str()];
                from_schema(if property.is_null() { &schema["additionalProperties"] } else { property }, value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| from_schema(&schema["items"], item)),
        _ => {}
    }
}

fn core(plural: &str, object: &mut Value) {
    match plural {
        "pods" => edit(object, "/spec", |spec| {
            pod::spec(spec);
            pod::requests_from_limits(spec);
        }),
        "services" => edit(object, "/spec", service),
        "secrets" => secret(object),
        "endpoints" => each(object, "/subsets", |subset| each(subset, "/ports", |port| set(port, "protocol", "TCP"))),
        "persistentvolumeclaims" => edit(object, "/spec", |spec| set(spec, "volumeMode", "Filesystem")),
        "persistentvolumes" => edit(object, "/spec", |spec| {
            set(spec, "volumeMode", "Filesystem");
            set(spec, "persistentVolumeReclaimPolicy", "Retain");
        }),
        _ => {}
    }
}

fn service(spec: &mut Value) {
    set(spec, "type", "ClusterIP");
    set(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    if kind != "ExternalName" {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
    each(spec, "/ports", |port| {
        set(port, "protocol", "TCP");
        let Some(number) = port.get("port").cloned() else { return };
        match port.get_mut("targetPort") {
            Some(target) if *target == 0 || *target == "" => *target = number,
            _ => set(port, "targetPort", number),
        }
    });
}

fn secret(object: &mut Value) {
    set(object, "type", "Opaque");
    let Some(Value::Object(text)) = object.as_object_mut().and_then(|fields| fields.shift_remove("stringData")) else {
        return;
    };
    within(object, "data", |data| {
        for (key, value) in text {
            if let (Some(value), Some(data)) = (value.as_str(), data.as_object_mut()) {
                data.insert(key, base64::engine::general_purpose::STANDARD.encode(value).into());
            }
        }
    });
}

fn apps(plural: &str, object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    if matches!(plural, "deployments" | "replicasets" | "statefulsets") {
        set(spec, "replicas", 1);
    }
    if matches!(plural, "deployments" | "statefulsets" | "daemonsets") {
        set(spec, "revisionHistoryLimit", 10);
    }
    match plural {
        "deployments" => {
            set(spec, "progressDeadlineSeconds", 600);
            let share = json!({"maxSurge": "25%", "maxUnavailable": "25%"});
            rolling(spec, "strategy", &share);
        }
        "statefulsets" => {
            set(spec, "podManagementPolicy", "OrderedReady");
            let retain = json!({"whenDeleted": "Retain", "whenScaled": "Retain"});
            set(spec, "persistentVolumeClaimRetentionPolicy", retain);
            rolling(spec, "updateStrategy", &json!({"partition": 0}));
            each(spec, "/volumeClaimTemplates", |claim| {
                set(claim, "apiVersion", "v1");
                set(claim, "kind", "PersistentVolumeClaim");
                edit(claim, "/spec", |spec| set(spec, "volumeMode", "Filesystem"));
                set(claim, "status", json!({"phase": "Pending"}));
            });
        }
        "daemonsets" => rolling(spec, "updateStrategy", &json!({"maxSurge": 0, "maxUnavailable": 1})),
        _ => {}
    }
    if plural != "controllerrevisions" {
        edit(spec, "/template/spec", pod::spec);
    }
}

/// An update strategy and, if it is a rolling one, its parameters.
fn rolling(spec: &mut Value, field: &str, parameters: &Value) {
    within(spec, field, |strategy| {
        set(strategy, "type", "RollingUpdate");
        if strategy["type"] != "RollingUpdate" {
            return;
        }
        within(strategy, "rollingUpdate", |rolling| {
            for (name, value) in parameters.as_object().into_iter().flatten() {
                set(rolling, name, value.clone());
            }
        });
    });
}

fn batch(plural: &str, object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    if plural == "cronjobs" {
        set(spec, "concurrencyPolicy", "Allow");
        set(spec, "suspend", false);
        set(spec, "successfulJobsHistoryLimit", 3);
        set(spec, "failedJobsHistoryLimit", 1);
        edit(spec, "/jobTemplate/spec/template/spec", pod::spec);
        return;
    }
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        set(spec, "completions", 1);
    }
    set(spec, "parallelism", 1);
    set(spec, "backoffLimit", 6);
    set(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    let replacement = if spec["podFailurePolicy"].is_object() { "Failed" } else { "TerminatingOrFailed" };
    set(spec, "podReplacementPolicy", replacement);
    edit(spec, "/template/spec", pod::spec);
    if spec["manualSelector"] != true {
        job_selector(object);
    }
}

/// A job finds its pods by labels nobody else's have.
fn job_selector(job: &mut Value) {
    let (uid, name) = (job["metadata"]["uid"].clone(), job["metadata"]["name"].clone());
    if !uid.is_string() || !job["spec"]["template"].is_object() {
        return;
    }
    edit(job, "/spec/template", |template| {
        within(template, "metadata", |metadata| {
            within(metadata, "labels", |labels| {
                for (label, value) in [
                    ("batch.kubernetes.io/controller-uid", &uid),
                    ("batch.kubernetes.io/job-name", &name),
                    ("controller-uid", &uid),
                    ("job-name", &name),
                ] {
                    set(labels, label, value.clone());
                }
            });
        });
    });
    let selector = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    edit(job, "/spec", |spec| set(spec, "selector", selector));
}

fn roles(plural: &str, object: &mut Value) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    if !plural.ends_with("bindings") {
        return;
    }
    edit(object, "/roleRef", |role| set(role, "apiGroup", GROUP));
    each(object, "/subjects", |subject| {
        if matches!(subject["kind"].as_str(), Some("User" | "Group")) {
            set(subject, "apiGroup", GROUP);
        }
    });
}

fn webhooks(plural: &str, object: &mut Value) {
    let mutating = plural == "mutatingwebhookconfigurations";
    each(object, "/webhooks", |webhook| {
        set(webhook, "failurePolicy", "Fail");
        set(webhook, "matchPolicy", "Equivalent");
        set(webhook, "namespaceSelector", json!({}));
        set(webhook, "objectSelector", json!({}));
        set(webhook, "timeoutSeconds", 10);
        if mutating {
            set(webhook, "reinvocationPolicy", "Never");
        }
        each(webhook, "/rules", |rule| set(rule, "scope", "*"));
        edit(webhook, "/clientConfig/service", |service| set(service, "port", 443));
    });
}

fn network_policy(spec: &mut Value) {
    let egress = spec["egress"].as_array().is_some_and(|rules| !rules.is_empty());
    set(spec, "policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    for direction in ["/ingress", "/egress"] {
        each(spec, direction, |rule| each(rule, "/ports", |port| set(port, "protocol", "TCP")));
    }
}

#[cfg(test)]
mod tests {
    use super::super::kinds::Registry;
    use super::*;
    use proptest::prelude::*;

    /// The object with its defaults, and that defaulting twice changes nothing more.
    fn defaulted(group: &str, plural: &str, mut object: Value) -> Value {
        let registry = Registry::built_in();
        let resource = registry.find_any_version(group, plural).unwrap();
        apply_defaults(resource, &mut object);
        let once = object.clone();
        apply_defaults(resource, &mut object);
        assert_eq!(object, once, "{plural}");
        object
    }

    #[test]
    fn services() {
        let spec = |spec: Value| defaulted("", "services", json!({"spec": spec}))["spec"].clone();
        assert_eq!(
            spec(json!({"ports": [{"port": 80}]})),
            json!({
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "type": "ClusterIP", "sessionAffinity": "None",
                "internalTrafficPolicy": "Cluster",
            })
        );
        assert_eq!(spec(json!({"type": "NodePort"}))["externalTrafficPolicy"], "Cluster");
        assert_eq!(spec(json!({"type": "ExternalName", "externalName": "x"})).get("ipFamilies"), None);
    }

    #[test]
    fn workloads() {
        let deployment = defaulted(
            "apps",
            "deployments",
            json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}}),
        );
        let spec = &deployment["spec"];
        assert_eq!((&spec["replicas"], &spec["strategy"]["rollingUpdate"]["maxSurge"]), (&json!(1), &json!("25%")));
        assert_eq!(spec["template"]["spec"]["containers"][0]["imagePullPolicy"], "Always");
        let recreate = defaulted("apps", "deployments", json!({"spec": {"strategy": {"type": "Recreate"}}}));
        assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));

        let job = defaulted(
            "batch",
            "jobs",
            json!({"metadata": {"uid": "u", "name": "j"}, "spec": {"template": {"spec": {"containers": []}}}}),
        );
        assert_eq!(job["spec"]["selector"]["matchLabels"], json!({"batch.kubernetes.io/controller-uid": "u"}));
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        assert_eq!((&job["spec"]["completions"], &job["spec"]["backoffLimit"]), (&json!(1), &json!(6)));
        let many = defaulted("batch", "jobs", json!({"metadata": {}, "spec": {"parallelism": 3}}));
        assert!(many["spec"].get("completions").is_none());
    }

    #[test]
    fn small_kinds() {
        let secret = defaulted(
            "",
            "secrets",
            json!({"data": {"a": "YQ=="}, "stringData": {"b": "b"}, "metadata": {"creationTimestamp": null}}),
        );
        assert_eq!(secret, json!({"data": {"a": "YQ==", "b": "Yg=="}, "metadata": {}, "type": "Opaque"}));
        let binding = defaulted(
            "rbac.authorization.k8s.io",
            "rolebindings",
            json!({
                "roleRef": {"kind": "Role"}, "subjects": [{"kind": "User"}, {"kind": "ServiceAccount"}],
            }),
        );
        assert_eq!(binding["roleRef"]["apiGroup"], "rbac.authorization.k8s.io");
        assert_eq!(binding["subjects"][1].get("apiGroup"), None);
        let hook = defaulted(
            "admissionregistration.k8s.io",
            "mutatingwebhookconfigurations",
            json!({"webhooks": [{"rules": [{}]}]}),
        );
        assert_eq!(
            (&hook["webhooks"][0]["timeoutSeconds"], &hook["webhooks"][0]["rules"][0]["scope"]),
            (&json!(10), &json!("*"))
        );
        let policy = defaulted("networking.k8s.io", "networkpolicies", json!({"spec": {"podSelector": {}}}));
        assert_eq!(policy["spec"], json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
    }

    proptest! {
        #[test]
        fn never_panics(path in prop::collection::vec(prop::sample::select(vec![
            "spec", "template", "containers", "ports", "strategy", "metadata", "labels", "webhooks", "volumes",
            "subjects", "stringData", "[", "resources", "limits", "lifecycle", "jobTemplate", "rollingUpdate",
        ]), 0..6), leaf in prop_oneof![Just(json!(1)), Just(json!("a")), Just(json!({})), Just(json!([{}]))]) {
            let object = path.iter().rev().fold(leaf, |value, step| match *step {
                "[" => json!([value]),
                field => json!({field: value}),
            });
            for resource in Registry::built_in().all() {
                apply_defaults(resource, &mut object.clone());
            }
        }
    }

    #[test]
    fn custom_kinds_default_by_schema() {
        let schema = json!({"properties": {"spec": {"default": {}, "properties": {
            "mode": {"default": "on"}, "maybe": {"default": 1, "nullable": true},
            "items": {"items": {"properties": {"weight": {"default": 1}}}},
        }}}});
        let mut object = json!({"spec": {"mode": null, "maybe": null, "items": [{}, {"weight": 2}]}});
        from_schema(&schema, &mut object);
        assert_eq!(object, json!({"spec": {"mode": "on", "maybe": null, "items": [{"weight": 1}, {"weight": 2}]}}));
        let mut empty = json!({});
        from_schema(&schema, &mut empty);
        assert_eq!(empty, json!({"spec": {"mode": "on", "maybe": 1}}));
    }
}
