//! GRPCRoutes. The caller is curl, which speaks HTTP/2 with prior knowledge and says that it calls a method.

use super::ground::{Ground, NEEDS, NS, parent, route};
use crate::harness::test;
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

/// A call with an empty message.
const CALL: &[&str] =
    &["--http2-prior-knowledge", "-X", "POST", "-H", "content-type: application/grpc", "-H", "te: trailers"];

pub(super) fn tests() -> Vec<Trial> {
    vec![
        test("mesh_conformance::mesh_grpc_route_weight", NEEDS, mesh_grpc_route_weight),
        test(
            "mesh_conformance::mesh_grpc_route_request_header_modifier",
            NEEDS,
            mesh_grpc_route_request_header_modifier,
        ),
    ]
}

fn backend(service: &str, weight: u32) -> Value {
    json!({"name": service, "port": 7070, "weight": weight})
}

fn mesh_grpc_route_weight() -> Result<()> {
    let ground = Ground::get()?;
    let rules = json!([{"backendRefs": [backend("echo-v1", 70), backend("echo-v2", 30)]}]);
    let route = route("GRPCRoute", NS, "weight", parent("echo"), rules);
    ground.apply(std::slice::from_ref(&route))?;
    ground.says(&route, "Accepted", "True", "Accepted")?;
    let mut call = CALL.to_vec();
    call.push("http://echo:7070/test.Echo/Unary");
    ground.expect(&call, |answer| answer.is_from("echo-v2"))?;
    // One curl a call: Debian 12's cannot use a connection of prior knowledge twice.
    let line = "for i in $(seq 300); do curl -sS --max-time 5 -o /dev/null -w '%header{x-workload}\\n' \
                --http2-prior-knowledge -X POST -H 'content-type: application/grpc' -H 'te: trailers' \
                http://echo:7070/test.Echo/Unary || exit; done";
    let said = ground.run(NS, &["bash", "-c", line])?.ok()?.stdout;
    let of = |workload: &str| said.lines().filter(|line| *line == workload).count();
    let (first, second) = (of("echo-v1"), of("echo-v2"));
    ensure!(first + second == 300, "{said}");
    // Four times the standard deviation of 300 throws.
    ensure!((first as f64 / 300.0 - 0.7).abs() < 0.106, "{first} to {second}");
    Ok(())
}

fn mesh_grpc_route_request_header_modifier() -> Result<()> {
    let ground = Ground::get()?;
    let filter = json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {
        "set": [{"name": "X-Set", "value": "set"}], "add": [{"name": "X-Add", "value": "add"}], "remove": ["X-Remove"],
    }});
    let rules = json!([{"matches": [{"method": {"service": "test.Echo", "method": "Unary"}}],
        "filters": [filter], "backendRefs": [backend("echo-v1", 1)]}]);
    ground.apply(&[route("GRPCRoute", NS, "modifier", parent("echo"), rules)])?;
    let mut call = CALL.to_vec();
    call.extend(["-H", "x-set: theirs", "-H", "x-remove: it", "--output", "-", "http://echo:7070/test.Echo/Unary"]);
    ground.expect(&call, |answer| {
        answer.is_from("echo-v1")?;
        for (name, value) in [("x-set", Some("set")), ("x-add", Some("add")), ("x-remove", None)] {
            ensure!(answer.arrived(name) == value, "{name} is not {value:?}: {answer:?}");
        }
        Ok(())
    })?;
    let mut other = CALL.to_vec();
    other.push("http://echo:7070/test.Echo/Other");
    // No rule takes it: UNIMPLEMENTED.
    ground.expect(&other, |answer| answer.has("grpc-status", Some("12")))
}
