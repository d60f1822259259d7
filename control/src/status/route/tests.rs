//! Routes, worlds and what is said of the one in the other.

use super::*;
use crate::rejections::{Rejections, Subject};
use crate::world::route::{RouteKind, read};
use crate::world::tests::service;
use crate::world::view::Name;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

fn world() -> World {
    let mut world = World::default();
    world.put_service(service("web", "10.96.0.7", json!([{"name": "http", "port": 80}])));
    world.put_service(service("pods", "None", json!([{"name": "http", "port": 80}])));
    world
}

fn key() -> RouteKey {
    RouteKey { kind: RouteKind::Http, name: Name::new("shop", "r") }
}

fn put(world: &mut World, spec: Value) {
    let metadata: ObjectMeta =
        serde_json::from_value(json!({"namespace": "shop", "name": "r", "generation": 4})).unwrap();
    world.apply(key(), read::route(RouteKind::Http, &metadata, &json!({"spec": spec})));
}

/// Type, status and reason of each condition for the first parent, and all messages.
fn said(spec: Value) -> (Vec<String>, String) {
    let mut world = world();
    put(&mut world, spec);
    let view = world.route(&key()).unwrap();
    let said = say(&world, &key(), view, &view.parents[0], None);
    let words = said.iter().map(|said| format!("{} {} {}", said.kind, said.holds, said.reason)).collect();
    (words, said.iter().map(|said| said.message.as_str()).collect::<Vec<_>>().join("\n"))
}

fn spec(parent: Value, rules: Value) -> Value {
    let mut of = json!({"group": "", "kind": "Service", "name": "web"});
    of.as_object_mut().unwrap().extend(parent.as_object().unwrap().clone());
    json!({"parentRefs": [of], "rules": rules})
}

fn good() -> Value {
    json!([{"backendRefs": [{"name": "web", "port": 80}]}])
}

#[test]
fn a_route_is_accepted_by_services_with_a_cluster_ip_and_its_port() {
    let check = |parent: Value, expect: &str, message: &str| {
        let (words, messages) = said(spec(parent.clone(), good()));
        assert_eq!(words[0], expect, "{parent}");
        assert!(messages.contains(message), "{messages}");
    };
    check(json!({}), "Accepted true Accepted", "");
    check(json!({"port": 80}), "Accepted true Accepted", "");
    check(json!({"port": 81}), "Accepted false NoMatchingParent", "no TCP port 81");
    check(json!({"sectionName": "grpc"}), "Accepted false NoMatchingParent", "no TCP port named grpc");
    check(json!({"name": "none"}), "Accepted false NoMatchingParent", "there is no Service shop/none");
    check(json!({"name": "pods"}), "Accepted false NoMatchingParent", "has no cluster IP");
}

#[test]
fn references_that_lead_nowhere_have_reasons() {
    let check = |backend: Value, reason: &str| {
        let (words, messages) = said(spec(json!({}), json!([{"backendRefs": [backend]}])));
        assert_eq!(words, ["Accepted true Accepted".to_owned(), format!("ResolvedRefs false {reason}")], "{messages}");
        assert!(messages.contains("rules[0].backendRefs[0]: "), "{messages}");
    };
    check(json!({"name": "none", "port": 80}), "BackendNotFound");
    check(json!({"name": "web", "port": 81}), "BackendNotFound");
    check(json!({"name": "web", "namespace": "other", "port": 80}), "RefNotPermitted");
    check(json!({"kind": "Bucket", "group": "example.com", "name": "b"}), "InvalidKind");
    let (words, _) = said(spec(json!({}), good()));
    assert_eq!(words, ["Accepted true Accepted", "ResolvedRefs true ResolvedRefs"]);
}

#[test]
fn what_is_left_out_is_told_as_the_gateway_api_wants_it() {
    let cors = || json!({"name": "shared", "filters": [{"type": "CORS"}]});
    let (words, messages) = said(spec(json!({}), json!([cors(), good()[0]])));
    assert_eq!(words[..2], ["Accepted true Accepted", "PartiallyInvalid true UnsupportedValue"]);
    assert!(messages.contains("Dropped Rule shared: rules[0].filters[0].type: `CORS`"), "{messages}");
    let (words, messages) = said(spec(json!({}), json!([cors()])));
    assert_eq!(words[0], "Accepted false UnsupportedValue", "{messages}");
    let (words, messages) = said(spec(json!({}), json!([{"fancy": 1, "backendRefs": good()[0]["backendRefs"]}])));
    assert_eq!(words[..2], ["Accepted true Accepted", "PartiallyInvalid true UnsupportedValue"]);
    assert!(messages.contains("Ignored: rules[0].fancy"), "{messages}");
}

#[test]
fn only_what_differs_is_written_and_others_words_stay() {
    let mut world = world();
    put(&mut world, spec(json!({}), good()));
    let rejections = Rejections::default();
    let due_at = |world: &World, second| {
        due(&Seen { world, rejections: &rejections, now: Timestamp::from_second(second).unwrap() })
    };
    assert_eq!(due_at(&world, 100), [], "its status has not been seen");
    let foreign = json!({"parentRef": {"name": "gateway"}, "controllerName": "example.com/gw", "conditions": []});
    let view = RouteStatusView { version: "7".to_owned(), parents: vec![foreign.clone()] };
    world.apply(key(), view);
    let first = due_at(&world, 100).remove(0);
    let parents = first.status["parents"].as_array().unwrap().clone();
    assert_eq!((first.version.as_deref(), parents.len(), &parents[0]), (Some("7"), 2, &foreign));
    assert_eq!((first.kind.kind, &parents[1]["controllerName"]), ("HTTPRoute", &json!(CONTROLLER)));
    assert_eq!(parents[1]["conditions"][0]["observedGeneration"], 4);
    world.apply(key(), RouteStatusView { version: "8".to_owned(), parents: parents.clone() });
    assert_eq!(due_at(&world, 200), []);

    let web = Subject::Service(Name::new("shop", "web"), ([10, 96, 0, 7], 80).into());
    rejections.add(web, &Name::new("shop", "a"), "too much".to_owned());
    let told = due_at(&world, 300).remove(0);
    let conditions = told.status["parents"][1]["conditions"].as_array().unwrap().clone();
    assert_eq!((&conditions[2]["type"], &conditions[2]["status"]), (&json!("Programmed"), &json!("False")));
    assert!(conditions[2]["message"].as_str().unwrap().contains("the proxy of shop/a cannot use it"));
    assert_eq!(conditions[0], parents[1]["conditions"][0], "what has not changed keeps its time");
}
