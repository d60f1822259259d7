//! HTTPRoutes: which requests a rule takes, where they go, and what is changed about them.

use super::ground::{Ground, NEEDS, backend, echo_route};
use crate::harness::test;
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        test("mesh_conformance::mesh_basic", NEEDS, mesh_basic),
        test("mesh_conformance::mesh_traffic_split", NEEDS, mesh_traffic_split),
        test("mesh_conformance::mesh_http_route_matching", NEEDS, mesh_http_route_matching),
        test("mesh_conformance::mesh_http_route_simple_same_namespace", NEEDS, mesh_http_route_simple_same_namespace),
        test("mesh_conformance::mesh_http_route_weight", NEEDS, mesh_http_route_weight),
        test(
            "mesh_conformance::mesh_http_route_request_header_modifier",
            NEEDS,
            mesh_http_route_request_header_modifier,
        ),
        test("mesh_conformance::mesh_http_route_rewrite_path", NEEDS, mesh_http_route_rewrite_path),
        test(
            "mesh_conformance::mesh_http_route_backend_request_header_modifier",
            NEEDS,
            mesh_http_route_backend_request_header_modifier,
        ),
        test("mesh_conformance::mesh_http_route_query_param_matching", NEEDS, mesh_http_route_query_param_matching),
        test("mesh_conformance::mesh_http_route_named_rule", NEEDS, mesh_http_route_named_rule),
    ]
}

fn mesh_basic() -> Result<()> {
    let ground = Ground::get()?;
    ground.expect(&["http://echo/"], |answer| {
        ensure!(answer.status == 200 && answer.workload().starts_with("echo-v"), "{answer:?}");
        Ok(())
    })
}

fn mesh_traffic_split() -> Result<()> {
    let ground = Ground::get()?;
    let exact = |path: &str, to: &str| json!({"matches": [{"path": {"type": "Exact", "value": path}}], "backendRefs": [backend(to)]});
    let route = echo_route("split", json!([exact("/v1", "echo-v1"), exact("/v2", "echo-v2")]));
    ground.apply(std::slice::from_ref(&route))?;
    ground.says(&route, "Accepted", "True", "Accepted")?;
    ground.expect(&["http://echo/v1"], |answer| answer.is_from("echo-v1"))?;
    ground.expect(&["http://echo/v2"], |answer| answer.is_from("echo-v2"))?;
    ground.expect(&["http://echo/"], |answer| {
        ensure!(answer.status == 404, "no rule takes this: {answer:?}");
        answer.has("mesh-error", Some("no-route"))
    })
}

fn mesh_http_route_matching() -> Result<()> {
    let ground = Ground::get()?;
    let rules = json!([
        {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}, {"headers": [{"name": "version", "value": "one"}]}],
            "backendRefs": [backend("echo-v1")]},
        {"matches": [{"path": {"type": "PathPrefix", "value": "/v2"}}, {"headers": [{"name": "version", "value": "two"}]}],
            "backendRefs": [backend("echo-v2")]},
    ]);
    ground.apply(&[echo_route("matching", rules)])?;
    let check = |path: &str, header: &str, workload: &str| {
        let address = format!("http://echo{path}");
        ground.expect(&["-H", header, &address], |answer| answer.is_from(workload))
    };
    check("/v2", "x: y", "echo-v2")?;
    check("/", "x: y", "echo-v1")?;
    check("/", "version: one", "echo-v1")?;
    check("/", "Version: two", "echo-v2")?;
    check("/v2/", "x: y", "echo-v2")?;
    check("/v2/example", "x: y", "echo-v2")?;
    // Prefixes are of whole segments, and a longer one outranks a header.
    check("/v2example", "x: y", "echo-v1")?;
    check("/v2/example", "version: one", "echo-v2")
}

fn mesh_http_route_simple_same_namespace() -> Result<()> {
    let ground = Ground::get()?;
    let route = echo_route("simple", json!([{"backendRefs": [backend("echo-v1")]}]));
    ground.apply(std::slice::from_ref(&route))?;
    ground.says(&route, "Accepted", "True", "Accepted")?;
    ground.says(&route, "ResolvedRefs", "True", "ResolvedRefs")?;
    ground.expect(&["http://echo/"], |answer| answer.is_from("echo-v1"))?;
    let shares = ground.shares(30)?;
    ensure!(shares.keys().eq(["echo-v1"]), "{shares:?}");
    Ok(())
}

fn weighted(service: &str, weight: u32) -> Value {
    let mut of = backend(service);
    of["weight"] = weight.into();
    of
}

fn mesh_http_route_weight() -> Result<()> {
    let ground = Ground::get()?;
    let backends = json!([weighted("echo-v1", 70), weighted("echo-v2", 30), weighted("echo", 0)]);
    ground.apply(&[echo_route("weight", json!([{"backendRefs": backends}]))])?;
    ground.expect(&["http://echo/"], |answer| answer.is_from("echo-v2"))?;
    let shares = ground.shares(500)?;
    let first = f64::from(shares.get("echo-v1").copied().unwrap_or(0)) / 500.0;
    // Four standard deviations.
    ensure!((first - 0.7).abs() < 0.082, "{shares:?}");
    ensure!(shares.values().sum::<u32>() == 500, "not all were answered: {shares:?}");
    Ok(())
}

fn mesh_http_route_request_header_modifier() -> Result<()> {
    let ground = Ground::get()?;
    let filter = json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {
        "set": [{"name": "X-Set", "value": "set"}], "add": [{"name": "X-Add", "value": "add"}], "remove": ["X-Remove"],
    }});
    ground.apply(&[echo_route("modifier", json!([{"filters": [filter], "backendRefs": [backend("echo-v1")]}]))])?;
    let sent = ["-H", "x-set: theirs", "-H", "x-remove: it", "-H", "x-other: stays", "http://echo/"];
    ground.expect(&sent, |answer| {
        answer.is_from("echo-v1")?;
        for (name, value) in
            [("x-set", Some("set")), ("x-add", Some("add")), ("x-remove", None), ("x-other", Some("stays"))]
        {
            ensure!(answer.arrived(name) == value, "{name} is not {value:?}: {answer:?}");
        }
        Ok(())
    })?;
    ground.expect(&["-H", "x-add: theirs", "http://echo/"], |answer| {
        let values: Vec<&str> = answer.body.lines().filter_map(|line| line.strip_prefix("header x-add=")).collect();
        ensure!(values.join(",") == "theirs,add", "{answer:?}");
        Ok(())
    })
}

fn mesh_http_route_rewrite_path() -> Result<()> {
    let ground = Ground::get()?;
    let rule = |prefix: &str, path: Value| {
        json!({"matches": [{"path": {"type": "PathPrefix", "value": prefix}}],
            "filters": [{"type": "URLRewrite", "urlRewrite": {"path": path}}], "backendRefs": [backend("echo-v1")]})
    };
    let prefix = |to: &str| json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": to});
    let rules = json!([
        rule("/prefix/one", prefix("/one")),
        rule("/strip", prefix("/")),
        rule("/full/one", json!({"type": "ReplaceFullPath", "replaceFullPath": "/one"})),
    ]);
    ground.apply(&[echo_route("rewrite", rules)])?;
    for (from, to) in [
        ("/prefix/one/two", "/one/two"),
        ("/prefix/one", "/one"),
        ("/strip/three", "/three"),
        ("/strip", "/"),
        ("/full/one/two", "/one"),
        ("/full/one?q=1", "/one?q=1"),
    ] {
        ground.expect(&[&format!("http://echo{from}")], |answer| {
            answer.is_from("echo-v1")?;
            ensure!(answer.target() == Some(to), "{from} did not become {to}: {answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn mesh_http_route_backend_request_header_modifier() -> Result<()> {
    let ground = Ground::get()?;
    let mut to = backend("echo-v1");
    to["filters"] = json!([{"type": "RequestHeaderModifier", "requestHeaderModifier": {
        "set": [{"name": "x-backend", "value": "v1"}], "remove": ["x-remove"]}}]);
    let rules = json!([{"backendRefs": [to, backend("echo-v2")]}]);
    ground.apply(&[echo_route("backend-modifier", rules)])?;
    for (workload, value) in [("echo-v1", Some("v1")), ("echo-v2", None)] {
        ground.expect(&["-H", "x-remove: it", "http://echo/"], |answer| {
            answer.is_from(workload)?;
            ensure!(answer.arrived("x-backend") == value, "{answer:?}");
            ensure!(answer.arrived("x-remove").is_some() == value.is_none(), "{answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn mesh_http_route_query_param_matching() -> Result<()> {
    let ground = Ground::get()?;
    let animal = |value: &str, to: &str| json!({"matches": [{"queryParams": [{"name": "animal", "value": value}]}], "backendRefs": [backend(to)]});
    let both = json!({"matches": [{"queryParams": [{"name": "animal", "value": "whale"}, {"name": "color", "value": "blue"}]}],
        "backendRefs": [backend("echo-v2")]});
    ground.apply(&[echo_route("query", json!([animal("whale", "echo-v1"), animal("dolphin", "echo-v2"), both]))])?;
    ground.expect(&["http://echo/?animal=whale"], |answer| answer.is_from("echo-v1"))?;
    ground.expect(&["http://echo/?animal=dolphin"], |answer| answer.is_from("echo-v2"))?;
    ground.expect(&["http://echo/?animal=dolphin&color=blue"], |answer| answer.is_from("echo-v2"))?;
    ground.expect(&["http://echo/?color=blue&animal=whale"], |answer| answer.is_from("echo-v2"))?;
    for nothing in ["http://echo/?animal=dog", "http://echo/?animal=whaledolphin", "http://echo/"] {
        ground.expect(&[nothing], |answer| {
            ensure!(answer.status == 404, "no rule takes this: {answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn mesh_http_route_named_rule() -> Result<()> {
    let ground = Ground::get()?;
    let rules = json!([
        {"name": "named-rule", "matches": [{"path": {"type": "PathPrefix", "value": "/named"}}],
            "backendRefs": [backend("echo-v1")]},
        {"matches": [{"path": {"type": "PathPrefix", "value": "/unnamed"}}], "backendRefs": [backend("echo-v2")]},
    ]);
    let route = echo_route("named", rules);
    ground.apply(std::slice::from_ref(&route))?;
    ground.says(&route, "Accepted", "True", "Accepted")?;
    ground.expect(&["http://echo/named"], |answer| answer.is_from("echo-v1"))?;
    ground.expect(&["http://echo/unnamed"], |answer| answer.is_from("echo-v2"))
}
