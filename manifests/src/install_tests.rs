//! What an install looks like, and what must hold for every one.

use super::*;
use crate::issuer::IssuerPair;

fn issuer() -> Issuer {
    let pem = |what: &str| format!("-----BEGIN {what}-----\nTUlJ\n-----END {what}-----\n");
    let pair = IssuerPair { certificate_pem: pem("CERTIFICATE"), key_pem: pem("PRIVATE KEY") };
    Issuer { anchors_pem: pem("CERTIFICATE"), pair: Some(pair) }
}

fn rendered(sets: &[&str]) -> Vec<Value> {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    render_with(&Values::from_sources(&[], &sets).unwrap(), &issuer()).unwrap()
}

fn find<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|o| o["kind"] == kind).unwrap_or(&Value::Null)
}

/// The version changes with every release and says nothing here.
fn text(objects: &[Value]) -> String {
    to_yaml(objects).unwrap().replace(VERSION, "VERSION")
}

#[test]
fn a_plain_install() {
    insta::assert_snapshot!(text(&rendered(&[])));
}

#[test]
fn a_highly_available_install_differs_in_this() {
    let objects = rendered(&["ha=true"]);
    let mut shown = vec![find(&objects, "PodDisruptionBudget").clone()];
    let spec = &find(&objects, "Deployment")["spec"];
    let pod = &spec["template"]["spec"];
    shown.push(json!({
        "replicas": spec["replicas"],
        "affinity": pod["affinity"],
        "topologySpreadConstraints": pod["topologySpreadConstraints"],
        "failurePolicy": find(&objects, "MutatingWebhookConfiguration")["webhooks"][0]["failurePolicy"],
    }));
    insta::assert_snapshot!(text(&shown));
}

#[test]
fn cni_mode_adds_these_objects() {
    let plain = rendered(&[]);
    let added: Vec<Value> =
        rendered(&["cni.enabled=true", "cni.bin_dir=/var/lib/cni/bin", "webhook.excluded_namespaces=build"])
            .into_iter()
            .filter(|object| {
                !plain.iter().any(|it| it["kind"] == object["kind"] && it["metadata"] == object["metadata"])
            })
            .collect();
    insta::assert_snapshot!(text(&added));
}

#[test]
fn every_object_is_recognisable_as_ours_and_stands_once() {
    let objects = rendered(&["ha=true", "cni.enabled=true"]);
    let mut seen = std::collections::BTreeSet::new();
    for object in &objects {
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/part-of"], "meshctl", "{object}");
        assert_eq!(labels["app.kubernetes.io/managed-by"], "meshctl", "{object}");
        let id = [&object["kind"], &object["metadata"]["namespace"], &object["metadata"]["name"]].map(Value::to_string);
        assert!(seen.insert(id), "{object}");
    }
}

#[test]
fn what_others_need_comes_first() {
    let kinds: Vec<String> = rendered(&["ha=true"]).iter().map(|o| o["kind"].as_str().unwrap().to_owned()).collect();
    let at = |kind: &str| kinds.iter().position(|k| k == kind).unwrap();
    assert_eq!(at("Namespace"), 0);
    assert!(at("ServiceAccount") < at("ClusterRoleBinding"));
    assert!(at("ConfigMap") < at("Deployment") && at("Secret") < at("Deployment"));
    assert!(at("Service") < at("APIService"));
    assert_eq!(at("MutatingWebhookConfiguration"), kinds.len() - 1);
}

#[test]
fn the_same_values_give_the_same_bytes() {
    assert_eq!(text(&rendered(&["ha=true"])), text(&rendered(&["ha=true"])));
}

#[test]
fn the_output_is_yaml_that_reads_back_as_the_objects() {
    let objects = render(&Values::default()).unwrap();
    let back: Vec<Value> = serde_saphyr::from_multiple(&to_yaml(&objects).unwrap()).unwrap();
    assert_eq!(back, objects);
}

#[test]
fn control_reads_what_install_writes() {
    let objects = rendered(&["trust_domain=example.org", "proxy.workers=3", "proxy.resources.cpu_request=1"]);
    let data = &find(&objects, "ConfigMap")["data"];
    let config = MeshConfig::from_yaml(data[CONFIG_KEY].as_str().unwrap()).unwrap();
    assert_eq!((config.trust_domain.as_str(), config.proxy.workers), ("example.org", 3));
    assert_eq!(config.trust_anchors_pem, issuer().anchors_pem);
    let recorded = data[VALUES_KEY].as_str().unwrap().to_owned();
    let again = Values::from_sources(&[("recorded".to_owned(), recorded)], &[]).unwrap();
    assert_eq!((again.trust_domain.as_str(), again.proxy.workers), ("example.org", 3));
}

#[test]
fn another_namespace_is_used_throughout() {
    let objects = rendered(&["system_namespace=mesh-two"]);
    assert!(!text(&objects).contains("mesh-system"));
    assert_eq!(find(&objects, "ClusterRole")["metadata"]["name"], "mesh-control-mesh-two");
}

#[test]
fn a_changed_configuration_restarts_control() {
    let digest = |sets: &[&str]| {
        let objects = rendered(sets);
        find(&objects, "Deployment")["spec"]["template"]["metadata"]["annotations"]["meshctl.dev/config-digest"].clone()
    };
    assert_eq!(digest(&[]), digest(&[]));
    assert_ne!(digest(&[]), digest(&["proxy.workers=2"]));
}

#[test]
fn other_trust_anchors_do_not_restart_control() {
    let rotated = Issuer { anchors_pem: issuer().anchors_pem.repeat(2), ..issuer() };
    let objects = render_with(&Values::default(), &rotated).unwrap();
    assert_eq!(find(&objects, "Deployment"), find(&rendered(&[]), "Deployment"));
}

#[test]
fn a_secret_from_elsewhere_is_not_rendered() {
    let objects = render_with(&Values::default(), &Issuer { pair: None, ..issuer() }).unwrap();
    assert_eq!(find(&objects, "Secret"), &Value::Null);
    assert_eq!(objects.iter().filter(|o| o["kind"] == "ConfigMap").count(), 2);
}

#[test]
fn the_kubernetes_types_accept_every_object() {
    use k8s_openapi::api::rbac::v1 as rbac;
    use k8s_openapi::api::{admissionregistration::v1 as ad, apps::v1 as apps, core::v1 as core, policy::v1 as policy};
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as extensions;
    fn same<T: serde::Serialize + serde::de::DeserializeOwned>(object: &Value) -> Value {
        serde_json::to_value(serde_json::from_value::<T>(object.clone()).unwrap()).unwrap()
    }
    for object in rendered(&["ha=true", "cni.enabled=true"]) {
        let mut typed = match object["kind"].as_str().unwrap() {
            "Namespace" => same::<core::Namespace>(&object),
            "CustomResourceDefinition" => same::<extensions::CustomResourceDefinition>(&object),
            "ServiceAccount" => same::<core::ServiceAccount>(&object),
            "ClusterRole" => same::<rbac::ClusterRole>(&object),
            "ClusterRoleBinding" => same::<rbac::ClusterRoleBinding>(&object),
            "Role" => same::<rbac::Role>(&object),
            "RoleBinding" => same::<rbac::RoleBinding>(&object),
            "ConfigMap" => same::<core::ConfigMap>(&object),
            "Secret" => same::<core::Secret>(&object),
            "Service" => same::<core::Service>(&object),
            "NetworkPolicy" => same::<k8s_openapi::api::networking::v1::NetworkPolicy>(&object),
            "DaemonSet" => same::<apps::DaemonSet>(&object),
            "Deployment" => same::<apps::Deployment>(&object),
            "PodDisruptionBudget" => same::<policy::PodDisruptionBudget>(&object),
            "MutatingWebhookConfiguration" => same::<ad::MutatingWebhookConfiguration>(&object),
            "ValidatingWebhookConfiguration" => same::<ad::ValidatingWebhookConfiguration>(&object),
            "APIService" => same::<k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService>(&object),
            other => panic!("unexpected kind {other}"),
        };
        crate::policies::write_whole_numbers(&mut typed);
        // Types drop fields they do not know, so a misspelt one would show as a difference.
        assert_eq!(typed, object);
    }
}
