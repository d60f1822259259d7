//! Whose requests a route takes: by Service, by address, by port, by the client's namespace.

use super::ground::{CONSUMER, Ground, NEEDS, NS, backend, parent, route};
use crate::harness::test;
use anyhow::Result;
use libtest_mimic::Trial;
use serde_json::{Value, json};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        test("mesh_conformance::mesh_frontend", NEEDS, mesh_frontend),
        test("mesh_conformance::mesh_frontend_hostname", NEEDS, mesh_frontend_hostname),
        test("mesh_conformance::mesh_consumer_route", NEEDS, mesh_consumer_route),
        test("mesh_conformance::mesh_ports", NEEDS, mesh_ports),
    ]
}

/// A rule that marks responses.
fn marking(value: &str, to: Value) -> Value {
    json!([{"filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {
        "set": [{"name": "x-header-set", "value": value}]}}], "backendRefs": [to]}])
}

fn mesh_frontend() -> Result<()> {
    let ground = Ground::get()?;
    ground.apply(&[route("HTTPRoute", NS, "frontend", parent("echo-v2"), marking("set", backend("echo-v2")))])?;
    // Clients of every namespace, and only of this Service: others with the same pods are not concerned.
    for namespace in [NS, CONSUMER] {
        let of = |service: &str| format!("http://{service}.{NS}/");
        ground.expect_in(namespace, &[&of("echo-v2")], |answer| {
            answer.is_from("echo-v2")?;
            answer.has("x-header-set", Some("set"))
        })?;
        ground.expect_in(namespace, &[&of("echo")], |answer| {
            answer.is_from("echo-v2")?;
            answer.has("x-header-set", None)
        })?;
    }
    Ok(())
}

fn mesh_frontend_hostname() -> Result<()> {
    let ground = Ground::get()?;
    ground.apply(&[route("HTTPRoute", NS, "frontend", parent("echo-v2"), marking("set", backend("echo-v2")))])?;
    let there = ground.sandbox.kubectl(["-n", NS, "get", "service", "echo-v2", "-o", "jsonpath={.spec.clusterIP}"])?;
    let there = format!("http://{}/", there.ok()?.stdout.trim());
    // Where the connection goes decides, not the name that the request carries.
    ground.expect(&["-H", "host: echo-v1", &there], |answer| {
        answer.is_from("echo-v2")?;
        answer.has("x-header-set", Some("set"))
    })?;
    ground.expect(&["-H", "host: echo-v2", "http://echo-v1/"], |answer| {
        answer.is_from("echo-v1")?;
        answer.has("x-header-set", None)
    })
}

fn mesh_consumer_route() -> Result<()> {
    let ground = Ground::get()?;
    let mut there = parent("echo-v1");
    there["namespace"] = NS.into();
    let mut to = backend("echo-v1");
    to["namespace"] = NS.into();
    let grant = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "ReferenceGrant",
        "metadata": {"namespace": NS, "name": "consumer"}, "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": CONSUMER}],
            "to": [{"group": "", "kind": "Service", "name": "echo-v1"}]}});
    ground.apply(&[
        route("HTTPRoute", CONSUMER, "consumer", there, marking("consumer", to)),
        route("HTTPRoute", NS, "producer", parent("echo-v1"), marking("producer", backend("echo-v1"))),
        grant,
    ])?;
    let address = format!("http://echo-v1.{NS}/");
    for (namespace, mark) in [(CONSUMER, "consumer"), (NS, "producer")] {
        ground.expect_in(namespace, &[&address], |answer| {
            answer.is_from("echo-v1")?;
            answer.has("x-header-set", Some(mark))
        })?;
    }
    Ok(())
}

fn mesh_ports() -> Result<()> {
    let ground = Ground::get()?;
    let at = |name: &str, port: u16, mark: &str| {
        let mut of = parent("echo-v1");
        of["port"] = port.into();
        route("HTTPRoute", NS, name, of, marking(mark, backend("echo-v1")))
    };
    ground.apply(&[at("port-80", 80, "v1")])?;
    ground.expect(&["http://echo-v1/"], |answer| answer.has("x-header-set", Some("v1")))?;
    ground.expect(&["http://echo-v1:8080/"], |answer| {
        answer.is_from("echo-v1")?;
        answer.has("x-header-set", None)
    })?;
    ground.apply(&[at("port-8080", 8080, "v2")])?;
    ground.expect(&["http://echo-v1:8080/"], |answer| answer.has("x-header-set", Some("v2")))?;
    ground.expect(&["http://echo-v1/"], |answer| answer.has("x-header-set", Some("v1")))
}
