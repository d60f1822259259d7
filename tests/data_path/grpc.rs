//! gRPC between meshed pods.

use super::ground::{DECLARED_GRPC, From, Ground, NEEDS};
use crate::harness::test;
use anyhow::{Result, ensure};
use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| test(&format!("data_path::grpc::{name}"), NEEDS, run);
    vec![
        test("unary_calls_are_answered", || call("unary", r#"["hello"] status=0"#)),
        test("clients_stream", || call("client", r#"["5 messages"] status=0"#)),
        test("servers_stream", || call("server", r#"["one", "two", "three"] status=0"#)),
        test("both_sides_stream_at_once", || call("both", "[] status=0")),
        test("an_answer_of_trailers_alone_passes", || call("missing", "[] status=5")),
        test("deadlines_are_passed_on", deadlines_are_passed_on),
        test("deadlines_are_kept", || call("late", "[] status=4 mesh-error=deadline-exceeded")),
        test("errors_of_the_mesh_are_statuses", errors_of_the_mesh_are_statuses),
        test("a_real_client_calls_the_cart", a_real_client_calls_the_cart),
    ]
}

/// Makes a call of one kind over a port that is detected, and over one that is declared.
fn call(case: &str, expected: &str) -> Result<()> {
    let g = Ground::get()?;
    for address in ["origin:8081".to_owned(), format!("origin:{DECLARED_GRPC}")] {
        g.peer_says(&["grpc", &address, case], expected)?;
    }
    g.encrypted("rps")
}

fn deadlines_are_passed_on() -> Result<()> {
    let g = Ground::get()?;
    let said = g.peer(From::Meshed, &["grpc", "origin:8081", "deadline"])?;
    // What is left of five seconds.
    let left = said.strip_prefix("[\"").and_then(|rest| rest.strip_suffix("\"] status=0"));
    let left = left.ok_or_else(|| anyhow::anyhow!("{said}"))?;
    let (number, unit) = left.split_at(left.len() - 1);
    let scale = match unit {
        "S" => 1e3,
        "m" => 1.0,
        "u" => 1e-3,
        "n" => 1e-6,
        _ => 0.0,
    };
    let milliseconds = number.parse::<f64>()? * scale;
    ensure!((3000.0..=5000.0).contains(&milliseconds), "{left} is left");
    g.encrypted("rps")
}

fn errors_of_the_mesh_are_statuses() -> Result<()> {
    let g = Ground::get()?;
    // A Service without a pod behind it: status 14 is UNAVAILABLE.
    let service = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "nobody"},
        "spec": {"selector": {"app": "nobody"}, "ports": [{"name": "grpc", "port": 8081}]}}"#;
    g.sandbox.kubectl_with_input(["-n", "path", "apply", "-f", "-"], service)?.ok()?;
    g.peer_says(&["grpc", "nobody:8081", "unary"], "[] status=14 mesh-error=no-endpoints")
}

fn a_real_client_calls_the_cart() -> Result<()> {
    let g = Ground::get()?;
    // curl with a message of five bytes of prefix and none of content: an empty cart for user 0.
    let line = "printf '\\0\\0\\0\\0\\0' | curl -sS --http2-prior-knowledge -D - -H 'content-type: application/grpc' \
                -H 'te: trailers' --data-binary @- -o /dev/null http://cart.shop:8080/shop.Cart/Get";
    let ran = g.sh(From::Meshed, line)?.ok()?;
    ensure!(ran.stdout.contains("grpc-status: "), "{}", ran.stdout);
    Ok(())
}
