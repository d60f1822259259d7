//! Redirects: every part of the target, every status.

use super::ground::{Ground, NEEDS, echo_route};
use crate::harness::test;
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        test(
            "mesh_conformance::mesh_http_route_redirect_host_and_status",
            NEEDS,
            mesh_http_route_redirect_host_and_status,
        ),
        test("mesh_conformance::mesh_http_route_scheme_redirect", NEEDS, mesh_http_route_scheme_redirect),
        test("mesh_conformance::mesh_http_route_redirect_port", NEEDS, mesh_http_route_redirect_port),
        test("mesh_conformance::mesh_http_route_redirect_path", NEEDS, mesh_http_route_redirect_path),
        test("mesh_conformance::mesh_http_route_303_redirect", NEEDS, mesh_http_route_303_redirect),
        test("mesh_conformance::mesh_http_route_307_redirect", NEEDS, mesh_http_route_307_redirect),
        test("mesh_conformance::mesh_http_route_308_redirect", NEEDS, mesh_http_route_308_redirect),
    ]
}

/// Redirects by prefix: prefix of the path, the filter, the path asked for, status and target.
fn check(cases: &[(&str, Value, &str, u16, &str)]) -> Result<()> {
    let ground = Ground::get()?;
    let rule = |(prefix, redirect, ..): &(&str, Value, &str, u16, &str)| {
        json!({"matches": [{"path": {"type": "PathPrefix", "value": prefix}}],
            "filters": [{"type": "RequestRedirect", "requestRedirect": redirect}]})
    };
    let route = echo_route("redirect", cases.iter().map(rule).collect());
    ground.apply(std::slice::from_ref(&route))?;
    ground.says(&route, "Accepted", "True", "Accepted")?;
    for (_, _, path, status, target) in cases {
        ground.expect(&[&format!("http://echo{path}")], |answer| {
            ensure!(answer.status == *status, "{path}: {answer:?}");
            answer.has("location", Some(target))
        })?;
    }
    Ok(())
}

fn mesh_http_route_redirect_host_and_status() -> Result<()> {
    check(&[
        ("/hostname", json!({"hostname": "example.org"}), "/hostname", 302, "http://example.org/hostname"),
        (
            "/host-and-status",
            json!({"hostname": "example.org", "statusCode": 301}),
            "/host-and-status",
            301,
            "http://example.org/host-and-status",
        ),
    ])
}

fn mesh_http_route_scheme_redirect() -> Result<()> {
    check(&[
        ("/scheme", json!({"scheme": "https"}), "/scheme", 302, "https://echo/scheme"),
        (
            "/all",
            json!({"scheme": "https", "hostname": "example.org", "statusCode": 301}),
            "/all?q=1",
            301,
            "https://example.org/all?q=1",
        ),
    ])
}

fn mesh_http_route_redirect_port() -> Result<()> {
    check(&[
        ("/port", json!({"port": 8083}), "/port", 302, "http://echo:8083/port"),
        ("/port-80", json!({"scheme": "http", "port": 80}), "/port-80", 302, "http://echo/port-80"),
        (
            "/host-and-port",
            json!({"hostname": "example.org", "port": 8083, "statusCode": 301}),
            "/host-and-port",
            301,
            "http://example.org:8083/host-and-port",
        ),
    ])
}

fn mesh_http_route_redirect_path() -> Result<()> {
    let prefix = |to: &str| json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": to});
    let full = |to: &str| json!({"type": "ReplaceFullPath", "replaceFullPath": to});
    check(&[
        (
            "/original-prefix",
            json!({"path": prefix("/replacement-prefix")}),
            "/original-prefix/lemon",
            302,
            "http://echo/replacement-prefix/lemon",
        ),
        (
            "/full",
            json!({"path": full("/full-path-replacement")}),
            "/full/path/original",
            302,
            "http://echo/full-path-replacement",
        ),
        (
            "/path-and-host",
            json!({"hostname": "example.org", "path": prefix("/replacement-prefix")}),
            "/path-and-host/lemon",
            302,
            "http://example.org/replacement-prefix/lemon",
        ),
        (
            "/path-and-status",
            json!({"path": prefix("/replacement-prefix"), "statusCode": 301}),
            "/path-and-status/lemon",
            301,
            "http://echo/replacement-prefix/lemon",
        ),
    ])
}

fn of_status(status: u16) -> Result<()> {
    let redirect = json!({"scheme": "https", "hostname": "example.org", "statusCode": status});
    check(&[("/", redirect, "/there", status, "https://example.org/there")])
}

fn mesh_http_route_303_redirect() -> Result<()> {
    of_status(303)
}

fn mesh_http_route_307_redirect() -> Result<()> {
    of_status(307)
}

fn mesh_http_route_308_redirect() -> Result<()> {
    of_status(308)
}
