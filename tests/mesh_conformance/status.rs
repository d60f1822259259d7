//! What routes' statuses say of parents and backends that are not there, and of what is not supported.

use super::ground::{Ground, NEEDS, NS, backend, echo_route, parent, route};
use crate::harness::test;
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;

pub(super) fn tests() -> Vec<Trial> {
    vec![
        test("mesh_conformance::status_of_parents", NEEDS, status_of_parents),
        test("mesh_conformance::status_of_backends", NEEDS, status_of_backends),
        test("mesh_conformance::status_of_unsupported_rules", NEEDS, status_of_unsupported_rules),
    ]
}

fn status_of_parents() -> Result<()> {
    let ground = Ground::get()?;
    let rules = || json!([{"backendRefs": [backend("echo-v1")]}]);
    let mut other_port = parent("echo");
    other_port["port"] = 81.into();
    for (name, parent) in [("nowhere", parent("nowhere")), ("port", other_port)] {
        let route = route("HTTPRoute", NS, name, parent, rules());
        ground.apply(std::slice::from_ref(&route))?;
        ground.says(&route, "Accepted", "False", "NoMatchingParent")?;
    }
    Ok(())
}

fn status_of_backends() -> Result<()> {
    let ground = Ground::get()?;
    for (name, backend, reason) in [
        ("missing", json!({"name": "nowhere", "port": 80}), "BackendNotFound"),
        ("foreign", json!({"name": "web", "namespace": "shop", "port": 80}), "RefNotPermitted"),
        ("kind", json!({"group": "example.com", "kind": "Bucket", "name": "b", "port": 80}), "InvalidKind"),
    ] {
        let route = echo_route(name, json!([{"backendRefs": [backend]}]));
        ground.apply(std::slice::from_ref(&route))?;
        ground.says(&route, "Accepted", "True", "Accepted")?;
        ground.says(&route, "ResolvedRefs", "False", reason)?;
        // Mended, it says so.
        let mended = echo_route(name, json!([{"backendRefs": [super::ground::backend("echo-v1")]}]));
        ground.apply(std::slice::from_ref(&mended))?;
        ground.says(&mended, "ResolvedRefs", "True", "ResolvedRefs")?;
    }
    Ok(())
}

fn status_of_unsupported_rules() -> Result<()> {
    let ground = Ground::get()?;
    let cors = json!({"filters": [{"type": "CORS", "cors": {}}], "matches": [{"path": {"type": "PathPrefix", "value": "/cors"}}],
        "backendRefs": [backend("echo-v1")]});
    let route = echo_route("cors", json!([cors, {"backendRefs": [backend("echo-v2")]}]));
    ground.apply(std::slice::from_ref(&route))?;
    ground.says(&route, "PartiallyInvalid", "True", "UnsupportedValue")?;
    let message = ground.conditions(&route)?.remove("PartiallyInvalid").unwrap_or_default().2;
    ensure!(message.starts_with("Dropped Rule 0: rules[0].filters[0].type: `CORS`"), "{message}");
    let whole = echo_route("cors", json!([cors]));
    ground.apply(std::slice::from_ref(&whole))?;
    ground.says(&whole, "Accepted", "False", "UnsupportedValue")
}
