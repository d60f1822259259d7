//! Defaults of pods and pod templates.

use super::{each, edit, set, within};
use serde_json::{Value, json};

/// Completes a pod's `spec`, or a pod template's; does nothing if there is none.
pub(super) fn spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    set(spec, "restartPolicy", "Always");
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "securityContext", json!({}));
    set(spec, "schedulerName", "default-scheduler");
    for (from, to) in [("serviceAccountName", "serviceAccount"), ("serviceAccount", "serviceAccountName")] {
        if let Some(name) = spec.get(from).cloned() {
            set(spec, to, name);
        }
    }
    let host_network = spec["hostNetwork"] == true;
    for list in ["/initContainers", "/containers", "/ephemeralContainers"] {
        each(spec, list, |container| self::container(container, list != "/ephemeralContainers", host_network));
    }
    each(spec, "/volumes", volume);
}

/// Pods (not templates) that limit a resource request as much, and take part in service links.
pub(super) fn requests_from_limits(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    set(spec, "enableServiceLinks", true);
    for list in ["/initContainers", "/containers"] {
        each(spec, list, |container| {
            let Some(limits) = container["resources"]["limits"].as_object().cloned() else { return };
            edit(container, "/resources", |resources| {
                within(resources, "requests", |requests| {
                    limits.into_iter().for_each(|(resource, limit)| set(requests, &resource, limit));
                });
            });
        });
    }
}

fn container(container: &mut Value, has_resources: bool, host_network: bool) {
    if !container.is_object() {
        return;
    }
    set(container, "terminationMessagePath", "/dev/termination-log");
    set(container, "terminationMessagePolicy", "File");
    let policy = pull_policy(container["image"].as_str().unwrap_or_default());
    set(container, "imagePullPolicy", policy);
    if has_resources {
        set(container, "resources", json!({}));
    }
    each(container, "/ports", |port| {
        set(port, "protocol", "TCP");
        let number = port["containerPort"].clone();
        if host_network && !number.is_null() {
            set(port, "hostPort", number);
        }
    });
    each(container, "/env", |variable| edit(variable, "/valueFrom/fieldRef", field_reference));
    for name in ["/livenessProbe", "/readinessProbe", "/startupProbe"] {
        edit(container, name, probe);
    }
    for hook in ["/lifecycle/postStart", "/lifecycle/preStop"] {
        edit(container, hook, handler);
    }
}

/// `latest` may change; other tags stand for one thing.
fn pull_policy(image: &str) -> &'static str {
    let name = image.rsplit('/').next().unwrap_or_default();
    if name.contains('@') {
        return "IfNotPresent";
    }
    match name.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn probe(probe: &mut Value) {
    handler(probe);
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if let Some(zero) = probe.get_mut(field).filter(|number| **number == 0) {
            *zero = value.into();
        }
        set(probe, field, value);
    }
}

fn handler(handler: &mut Value) {
    edit(handler, "/httpGet", |get| {
        set(get, "path", "/");
        set(get, "scheme", "HTTP");
    });
    edit(handler, "/grpc", |grpc| set(grpc, "service", ""));
}

/// `fieldRef` is of `v1` unless it says otherwise.
fn field_reference(reference: &mut Value) {
    set(reference, "apiVersion", "v1");
}

fn volume(volume: &mut Value) {
    const READABLE: i32 = 0o644;
    let Some(fields) = volume.as_object_mut() else { return };
    if fields.keys().all(|key| key == "name") {
        fields.insert("emptyDir".to_owned(), json!({}));
    }
    for (kind, source) in fields.iter_mut() {
        match kind.as_str() {
            "secret" | "configMap" => set(source, "defaultMode", READABLE),
            "downwardAPI" => {
                set(source, "defaultMode", READABLE);
                items_by_field(source);
            }
            "projected" => {
                set(source, "defaultMode", READABLE);
                each(source, "/sources", |part| {
                    edit(part, "/serviceAccountToken", |token| set(token, "expirationSeconds", 3600));
                    edit(part, "/downwardAPI", items_by_field);
                });
            }
            "hostPath" => set(source, "type", ""),
            _ => {}
        }
    }
}

fn items_by_field(downward: &mut Value) {
    each(downward, "/items", |item| edit(item, "/fieldRef", field_reference));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulls_what_may_change() {
        let cases = [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ];
        for (image, expect) in cases {
            assert_eq!(pull_policy(image), expect, "{image}");
        }
    }

    #[test]
    fn completes_pods() {
        let mut pod = json!({
            "serviceAccountName": "a", "volumes": [{"name": "e"}, {"name": "c", "configMap": {"name": "c"}}],
            "containers": [{
                "name": "c", "image": "i:1", "ports": [{"containerPort": 80}],
                "readinessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1"}},
                "env": [{"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
            }],
        });
        spec(&mut pod);
        requests_from_limits(&mut pod);
        let container = &pod["containers"][0];
        assert_eq!(container["ports"][0]["protocol"], "TCP");
        assert_eq!(
            container["readinessProbe"],
            json!({
                "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
                "successThreshold": 1, "failureThreshold": 3,
            })
        );
        assert_eq!(container["resources"]["requests"]["cpu"], "1");
        assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
        assert_eq!(container.get("env").unwrap().as_array().unwrap().len(), 1);
        assert_eq!(
            pod["volumes"],
            json!([{"name": "e", "emptyDir": {}}, {"name": "c", "configMap": {"name": "c", "defaultMode": 420}}])
        );
        assert_eq!(pod["serviceAccount"], "a");
    }
}
