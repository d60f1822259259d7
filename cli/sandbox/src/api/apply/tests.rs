//! Apply as its users meet it: create, repeat, share, take over, let go.

use super::*;
use crate::api::kinds::Registry;
use proptest::prelude::*;
use std::sync::Arc;

const NOW: &str = "2026-01-01T00:00:00Z";
const LATER: &str = "2026-01-02T00:00:00Z";

fn deployments() -> Arc<Resource> {
    Registry::built_in().find("apps", "v1", "deployments").cloned().unwrap()
}

fn apply(current: Option<&Value>, applied: &Value, manager: &str, force: bool, now: &str) -> Result<Value, ApiError> {
    server_side_apply(&deployments(), current, applied, manager, None, force, now)
}

fn web(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
}

fn containers(list: Value) -> Value {
    web(json!({"template": {"spec": {"containers": list}}}))
}

#[test]
fn a_second_apply_changes_nothing() {
    let wanted = web(json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}));
    let first = apply(None, &wanted, "one", false, NOW).unwrap();
    assert_eq!(first["spec"], wanted["spec"]);
    assert_eq!(first["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:replicas"], json!({}));
    assert_eq!(apply(Some(&first), &wanted, "one", false, LATER).unwrap(), first);
}

#[test]
fn another_value_is_a_conflict_and_the_same_value_is_shared() {
    let first = apply(None, &web(json!({"replicas": 2})), "one", false, NOW).unwrap();
    let error = apply(Some(&first), &web(json!({"replicas": 3})), "two", false, LATER).unwrap_err();
    assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"one\" using apps/v1: .spec.replicas");
    assert_eq!(error.causes[0].0, "FieldManagerConflict");
    let shared = apply(Some(&first), &web(json!({"replicas": 2})), "two", false, LATER).unwrap();
    assert_eq!(shared["metadata"]["managedFields"].as_array().unwrap().len(), 2);
    // One of the two lets go: the other still wants it.
    let left = apply(Some(&shared), &web(json!({})), "one", false, LATER).unwrap();
    assert_eq!(left["spec"]["replicas"], 2);
    let taken = apply(Some(&first), &web(json!({"replicas": 3})), "two", true, LATER).unwrap();
    assert_eq!(taken["spec"]["replicas"], 3);
    let owners: Vec<_> =
        taken["metadata"]["managedFields"].as_array().unwrap().iter().map(|e| e["manager"].clone()).collect();
    assert_eq!(owners, [json!("two")]);
}

#[test]
fn what_is_no_longer_applied_goes_and_what_others_added_stays() {
    let two = containers(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]));
    let first = apply(None, &two, "one", false, NOW).unwrap();
    let mut edited = first.clone();
    edited["spec"]["template"]["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "sidecar", "image": "3"}));
    edited["metadata"]["labels"] = json!({"by": "editor"});
    track_update(&deployments(), Some(&first), &mut edited, "editor", None, LATER);
    let one = containers(json!([{"name": "a", "image": "1"}]));
    let merged = apply(Some(&edited), &one, "one", false, LATER).unwrap();
    let names: Vec<_> = merged["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].clone())
        .collect();
    assert_eq!(names, [json!("a"), json!("sidecar")]);
    assert_eq!(merged["metadata"]["labels"]["by"], "editor");
}

#[test]
fn an_update_takes_ownership_of_what_it_changes() {
    let first = apply(None, &web(json!({"replicas": 2, "paused": true})), "one", false, NOW).unwrap();
    let mut edited = first.clone();
    edited["spec"]["replicas"] = json!(5);
    track_update(&deployments(), Some(&first), &mut edited, "kubectl-edit", None, LATER);
    let error = apply(Some(&edited), &web(json!({"replicas": 2, "paused": true})), "one", false, LATER).unwrap_err();
    assert!(
        error.message.contains("conflict with \"kubectl-edit\" using apps/v1: .spec.replicas"),
        "{}",
        error.message
    );
    // Writing the same object again is nobody's change.
    let again = edited.clone();
    track_update(&deployments(), Some(&again), &mut edited, "somebody", None, LATER);
    assert_eq!(edited, again);
}

#[test]
fn kubectl_goes_on_server_side_where_it_was_client_side() {
    let memory = json!({"spec": {"replicas": 2}}).to_string();
    let mut live = web(json!({"replicas": 2, "paused": true}));
    live["metadata"]["annotations"] = json!({LAST_APPLIED: memory});
    track_update(&deployments(), None, &mut live, "kubectl-client-side-apply", None, NOW);
    let wanted = web(json!({"replicas": 3}));
    assert_eq!(apply(Some(&live), &wanted, "else", false, LATER).map_err(|e| e.code), Err(409));
    let next = apply(Some(&live), &wanted, "kubectl", false, LATER).unwrap();
    assert_eq!((&next["spec"]["replicas"], &next["spec"]["paused"]), (&json!(3), &json!(true)));
    assert!(next["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap().contains("\"replicas\":3"));
    // What others changed since is theirs.
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(5);
    track_update(&deployments(), Some(&live), &mut scaled, "somebody", None, LATER);
    assert_eq!(apply(Some(&scaled), &wanted, "kubectl", false, LATER).map_err(|e| e.code), Err(409));
}

#[test]
fn defaults_go_with_what_they_stand_in() {
    let probed = containers(json!([{"name": "a", "readinessProbe": {"tcpSocket": {"port": 1}}}]));
    let mut live = apply(None, &probed, "one", false, NOW).unwrap();
    live["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["periodSeconds"] = json!(10);
    live["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
    let merged = apply(Some(&live), &containers(json!([{"name": "a"}])), "one", false, LATER).unwrap();
    assert_eq!(merged["spec"], containers(json!([{"name": "a", "imagePullPolicy": "Always"}]))["spec"]);
    assert_eq!(merged["metadata"]["name"], "web");
}

#[test]
fn several_conflicts_are_listed_by_owner() {
    let first = apply(None, &web(json!({"replicas": 2, "paused": true})), "one", false, NOW).unwrap();
    let error = apply(Some(&first), &web(json!({"replicas": 3, "paused": false})), "two", false, NOW).unwrap_err();
    assert_eq!(
        error.message,
        "Apply failed with 2 conflicts: conflicts with \"one\" using apps/v1:\n- .spec.paused\n- .spec.replicas"
    );
}

#[test]
fn many_managers_are_summed_up() {
    let mut live = web(json!({}));
    for number in 0..20 {
        let old = live.clone();
        live["metadata"]["labels"][format!("l{number}")] = "x".into();
        let manager = format!("m{number}");
        track_update(&deployments(), Some(&old), &mut live, &manager, None, &format!("2026-01-01T00:00:{number:02}Z"));
    }
    let entries = live["metadata"]["managedFields"].as_array().unwrap().clone();
    assert_eq!(entries.len(), MOST_UPDATES);
    let ancient = entries.iter().find(|entry| entry["manager"] == "ancient-changes").unwrap();
    assert_eq!(ancient["fieldsV1"]["f:metadata"]["f:labels"]["f:l0"], json!({}));
    let kept = FieldSet::root_from_json(&ancient["fieldsV1"]);
    assert_eq!(FieldSet::root_from_json(&kept.to_json()), kept);
}

fn objects() -> impl Strategy<Value = Value> {
    let container =
        (0..4u8, 0..3u8).prop_map(|(name, image)| json!({"name": format!("c{name}"), "image": format!("i{image}")}));
    let containers = proptest::collection::vec(container, 0..4).prop_map(|list| {
        let mut seen = std::collections::BTreeSet::new();
        list.into_iter().filter(|c| seen.insert(c["name"].to_string())).collect::<Vec<_>>()
    });
    (0..3u8, containers).prop_map(|(replicas, containers)| {
        web(json!({"replicas": replicas, "template": {"spec": {"containers": containers}}}))
    })
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(first in objects(), second in objects(), third in objects()) {
        let live = apply(None, &first, "one", false, NOW).unwrap();
        let live = apply(Some(&live), &second, "two", true, NOW).unwrap();
        let once = apply(Some(&live), &third, "one", true, NOW).unwrap();
        let twice = apply(Some(&once), &third, "one", true, LATER).unwrap();
        prop_assert_eq!(&once, &twice);
        // Every field that was applied is there with its value.
        prop_assert_eq!(&once["spec"]["replicas"], &third["spec"]["replicas"]);
        // Nobody owns what isn't there.
        let resource = deployments();
        for path in Entry::read_all(&once).iter().flat_map(|entry| entry.fields.paths()) {
            prop_assert!(value_at(&Shape::of(&resource), &once, &path).is_some(), "{}", spell(&path));
        }
    }

    #[test]
    fn letting_go_of_everything_leaves_what_others_want(first in objects(), second in objects()) {
        let live = apply(None, &first, "one", false, NOW).unwrap();
        let live = apply(Some(&live), &second, "two", true, NOW).unwrap();
        let mut left = apply(Some(&live), &json!({"metadata": {"name": "web"}}), "one", false, LATER).unwrap();
        let mut alone = apply(None, &second, "two", false, NOW).unwrap();
        for object in [&mut left, &mut alone] {
            if let Some(list) = object.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut) {
                list.sort_by_key(|container| container["name"].to_string());
            }
        }
        prop_assert_eq!(&left["spec"], &alone["spec"]);
        prop_assert_eq!(&left["metadata"]["managedFields"], &alone["metadata"]["managedFields"]);
    }
}
