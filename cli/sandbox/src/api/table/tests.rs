//! Tables as kubectl prints them.

use super::*;
use crate::api::kinds::Registry;
use std::sync::Arc;

#[test]
fn ages_have_at_most_two_units() {
    let ages = [
        (0, "0s"),
        (119, "119s"),
        (130, "2m10s"),
        (600, "10m"),
        (7200, "120m"),
        (3 * 3600 + 60, "3h1m"),
        (30 * 3600, "30h"),
        (3 * 86400 + 3600, "3d1h"),
        (400 * 86400, "400d"),
        (800 * 86400, "2y70d"),
    ];
    for (seconds, word) in ages {
        assert_eq!(words(seconds), word);
    }
}

#[test]
fn paths_of_printer_columns_are_followed() {
    let object =
        json!({"spec": {"a.b": 1, "list": [5, 6]}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(json_path(&object, ".spec.list[1]"), Some(json!(6)));
    assert_eq!(json_path(&object, ".spec['a.b']"), Some(json!(1)));
    assert_eq!(json_path(&object, r".spec.a\.b"), Some(json!(1)));
    assert_eq!(json_path(&object, r#".status.conditions[?(@.type=="Ready")].status"#), Some(json!("True")));
    for nowhere in [".spec.none", ".spec.list[9]", ".status.conditions[?(@.type", "[", ".."] {
        assert_eq!(json_path(&object, nowhere), None, "{nowhere}");
    }
}

#[test]
fn every_kind_has_a_table() {
    for resource in Registry::built_in().all() {
        let object = json!({"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}});
        let table = table(resource, &[object], "Metadata", 1_767_225_660_000);
        let columns = table["columnDefinitions"].as_array().unwrap().len();
        assert_eq!(table["rows"][0]["cells"].as_array().unwrap().len(), columns, "{}", resource.kind);
        assert_eq!(table["rows"][0]["object"]["metadata"]["name"], "x");
    }
}

#[test]
fn custom_columns_come_from_the_definition() {
    let mut resource = (**Registry::built_in().all().first().unwrap()).clone();
    resource.custom = Some(Arc::new(json!({"additionalPrinterColumns": [
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]})));
    let object = json!({"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"size": 3}});
    let table = table(&resource, &[object], "None", 1_767_225_660_000);
    assert_eq!(table["rows"][0]["cells"], json!(["x", 3, "60s"]));
}
