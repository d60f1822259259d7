//! Containers' variables, by example.

use super::super::addresses::Addresses;
use super::*;
use serde_json::json;

#[test]
fn references_expand() {
    let look = |name: &str| [("A", "1"), ("B", "two")].into_iter().find(|(n, _)| *n == name).map(|(_, v)| v);
    for (text, expect) in
        [("$(A)-$(B)", "1-two"), ("$$(A) $A $", "$(A) $A $"), ("$(C) $(", "$(C) $("), ("$$$(A)", "$1"), ("", "")]
    {
        assert_eq!(expand(text, look), expect, "{text}");
    }
}

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x", "tier": "a\"b"}},
        "spec": {"containers": [{
            "name": "c", "image": "i",
            "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "100m"}},
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "no", "optional": true}}],
            "env": [
                {"name": "PLAIN", "value": "v"},
                {"name": "JOINED", "value": "$(PLAIN)/$(P_k)/$(LATER)"},
                {"name": "LATER", "value": "l"},
                {"name": "PLAIN", "value": "again $(PLAIN)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
                {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "no", "key": "k", "optional": true}}},
            ],
        }]},
    }))
    .unwrap()
}

fn subject(pod: &Pod) -> Subject<'_> {
    Subject { pod, addresses: Addresses::of_pod(7, true), node: "sandbox" }
}

#[test]
fn variables_come_from_everywhere() {
    let pod = pod();
    let container = &pod.spec.as_ref().unwrap().containers[0];
    assert_eq!(references(container), [Reference::ConfigMap("cm".into()), Reference::Secret("no".into())]);
    let mut contents = Contents::from([
        (Reference::ConfigMap("cm".into()), Some(BTreeMap::from([("k".to_owned(), b"config".to_vec())]))),
        (Reference::Secret("no".into()), None),
    ]);
    let services = [("S_SERVICE_HOST".to_owned(), "10.96.0.9".to_owned())];
    let env = variables(&subject(&pod), container, &services, &contents).unwrap();
    let lines: Vec<String> = env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(
        lines.join("\n"),
        "S_SERVICE_HOST=10.96.0.9\nP_k=config\nPLAIN=again v\nJOINED=v/config/$(LATER)\nLATER=l\nIP=10.244.0.7\n\
         LABEL=x\nCPU=2\nMEM=64\nKEY=config"
    );
    contents.insert(Reference::ConfigMap("cm".into()), None);
    assert_eq!(variables(&subject(&pod), container, &services, &contents).unwrap_err(), "configmap \"cm\" not found");
}

#[test]
fn labels_are_quoted_lines() {
    let pod = pod();
    assert_eq!(field_value(&subject(&pod), "metadata.labels").unwrap(), "app=\"x\"\ntier=\"a\\\"b\"");
    assert!(field_value(&subject(&pod), "spec.nonsense").is_err());
}

#[test]
fn services_are_told() {
    let service = |name: &str, ip: &str, ports: serde_json::Value| -> Service {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"clusterIP": ip, "ports": ports}})).unwrap()
    };
    let services = [
        service("kubernetes", "10.96.0.1", json!([{"name": "https", "port": 443}])),
        service("headless", "None", json!([{"port": 1}])),
    ];
    let env = service_variables(&services);
    let lines: Vec<String> = env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(
        lines,
        [
            "KUBERNETES_SERVICE_HOST=10.96.0.1",
            "KUBERNETES_SERVICE_PORT=443",
            "KUBERNETES_SERVICE_PORT_HTTPS=443",
            "KUBERNETES_PORT=tcp://10.96.0.1:443",
            "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
            "KUBERNETES_PORT_443_TCP_PROTO=tcp",
            "KUBERNETES_PORT_443_TCP_PORT=443",
            "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
        ]
    );
}

#[test]
fn quantities() {
    for (text, expect) in [("500m", 0.5), ("1.5Gi", 1_610_612_736.0), ("2", 2.0), ("1e3", 1000.0), ("10M", 1e7)] {
        assert_eq!(parse_quantity(text), Ok(expect), "{text}");
    }
    assert!(parse_quantity("much").is_err() && parse_quantity("").is_err());
}
