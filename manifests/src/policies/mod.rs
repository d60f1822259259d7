//! The kinds of our own that users write, as custom resources of `meshctl.dev/v1alpha1`.
//!
//! Their specs embed the structs that proxies run ([`mesh_api`]); the definitions that clusters get are generated from
//! the types. `manifests/crds/` holds them as files for those who install by other means, and a test keeps them current.

pub mod access_policy;
pub mod egress_policy;
pub mod traffic_policy;

pub use access_policy::{AccessPolicy, AccessPolicySpec};
pub use egress_policy::{EgressPolicy, EgressPolicySpec};
pub use traffic_policy::{TrafficPolicy, TrafficPolicySpec};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResourceExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Group of all kinds of the mesh.
pub const GROUP: &str = "meshctl.dev";
/// Version of all kinds of the mesh.
pub const VERSION: &str = "v1alpha1";

/// A kind of ours: how it is called, and the definition a cluster needs.
#[derive(Clone, Copy, Debug)]
pub struct PolicyKind {
    /// `AccessPolicy`.
    pub kind: &'static str,
    /// `accesspolicies`, as in URLs and roles.
    pub plural: &'static str,
    definition: fn() -> CustomResourceDefinition,
}

/// Every kind of ours, in the order of the documentation.
pub const KINDS: &[PolicyKind] = &[
    PolicyKind { kind: "TrafficPolicy", plural: "trafficpolicies", definition: TrafficPolicy::crd },
    PolicyKind { kind: "AccessPolicy", plural: "accesspolicies", definition: AccessPolicy::crd },
    PolicyKind { kind: "EgressPolicy", plural: "egresspolicies", definition: EgressPolicy::crd },
];

/// What control says of an object: whether it is in force, and why not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// `Accepted`: whether the policy is in force, with the reason if it is not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The definitions of all kinds, without metadata but their names.
pub fn definitions() -> Result<Vec<Value>, serde_json::Error> {
    KINDS
        .iter()
        .map(|kind| {
            let mut definition = serde_json::to_value((kind.definition)())?;
            write_whole_numbers(&mut definition);
            Ok(definition)
        })
        .collect()
}

/// The types hold bounds as floating point; API servers write whole ones without a fraction.
pub(crate) fn write_whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            // Bounds of ports and lengths are far below the limit of exact integers.
            if let Some(float) =
                number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0 && float.abs() < 1e15)
            {
                *number = (float as i64).into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(write_whole_numbers),
        Value::Object(map) => map.values_mut().for_each(write_whole_numbers),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn the_committed_definitions_are_those_of_the_types() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("crds");
        let mut names = Vec::new();
        for (kind, definition) in KINDS.iter().zip(definitions().unwrap()) {
            assert_eq!(definition["metadata"]["name"], format!("{}.{GROUP}", kind.plural));
            assert_eq!(definition["spec"]["names"]["kind"], kind.kind);
            assert_eq!(definition["spec"]["versions"][0]["name"], VERSION);
            let name = format!("{}.yaml", kind.kind.to_lowercase());
            let text = crate::yaml::to_yaml(&[definition]).unwrap();
            if std::env::var_os("MESH_UPDATE").is_some() {
                std::fs::write(folder.join(&name), &text).unwrap();
            }
            let committed = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
            assert_eq!(committed, text, "run with MESH_UPDATE=1 to write crds/{name} anew");
            names.push(name);
        }
        let mut found: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        found.sort_unstable();
        names.sort_unstable();
        assert_eq!(found, names, "a file of a kind that is no more");
    }

    /// What an API server demands of a schema beyond being JSON schema (structural schemas).
    #[test]
    fn schemas_are_structural() {
        fn walk(schema: &Value, at: &str) {
            let Some(map) = schema.as_object() else { return };
            for word in ["$ref", "definitions", "$defs", "anyOf", "allOf", "oneOf", "patternProperties"] {
                assert!(!map.contains_key(word), "{at}: {word}");
            }
            let typed = map.contains_key("type")
                || map.contains_key("x-kubernetes-int-or-string")
                || map.contains_key("x-kubernetes-preserve-unknown-fields");
            assert!(typed, "{at}: no type");
            assert!(map["type"].is_string(), "{at}: {}", map["type"]);
            for (name, property) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
                walk(property, &format!("{at}.{name}"));
            }
            for inner in ["items", "additionalProperties"] {
                map.get(inner).into_iter().for_each(|schema| walk(schema, &format!("{at}.{inner}")));
            }
        }
        for definition in definitions().unwrap() {
            let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
            walk(&definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], kind);
        }
    }
}
