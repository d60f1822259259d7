//! The mesh's end-to-end tests: one binary, one file a feature.
//!
//! The binary is two things. Called by cargo it is the test runner. Called under the name `meshctl` (or one of the
//! names the sandbox starts its programs by) it is that program, so that the tests run exactly the code they were
//! built with and need no other binary.
//!
//! A test that needs a privilege or a tool the machine lacks is listed as ignored with the reason in its name;
//! with `MESH_TEST_STRICT=1` it fails instead.

mod access_policy;
mod api;
mod api_shapes;
mod capture;
mod chart;
mod data_path;
mod demo;
mod docs;
mod egress_policy;
mod explain;
mod external;
mod finish;
mod forger;
mod golden;
mod golden_load;
mod harness;
mod install;
mod interception;
mod jwt;
mod kubectl;
mod liar;
mod life;
mod lint;
mod load;
mod mesh_conformance;
mod mesh_errors;
mod nft;
mod node;
mod observability;
mod peer;
mod real_programs;
mod redirect;
mod release;
mod resilience;
mod rotation;
mod sandbox;
mod skew;
mod tap;
mod terminal;
mod tidy;
mod traffic_policy;
mod upgrade;

use std::process::ExitCode;

fn main() -> ExitCode {
    match harness::called_as().as_str() {
        "meshctl" | "mesh-proxy" | "mesh-control" | "mesh-demo" | "mesh-sandbox" => return meshctl::main(),
        "mesh-capture" => return capture::main(),
        "mesh-forger" => return forger::main(),
        "mesh-golden" => return golden_load::main(),
        "mesh-errors" => return mesh_errors::main(),
        "mesh-holder" => return harness::holder_main(),
        "mesh-keeper" => return harness::keeper_main(),
        "mesh-liar" => return liar::main(),
        "mesh-peer" => return peer::main(),
        "mesh-session" => return terminal::session_main(),
        "mesh-panics" => return terminal::panics_main(),
        _ => {}
    }
    let mut arguments = libtest_mimic::Arguments::from_args();
    // Most tests start processes of their own: more than two at a time only wait for each other.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let tests = [
        tidy::tests(),
        nft::tests(),
        redirect::tests(),
        api::tests(),
        api_shapes::tests(),
        sandbox::tests(),
        kubectl::tests(),
        node::tests(),
        install::tests(),
        chart::tests(),
        explain::tests(),
        finish::tests(),
        skew::tests(),
        tap::tests(),
        upgrade::tests(),
        terminal::tests(),
        interception::tests(),
        real_programs::tests(),
        data_path::tests(),
        access_policy::tests(),
        egress_policy::tests(),
        traffic_policy::tests(),
        external::tests(),
        jwt::tests(),
        mesh_conformance::tests(),
        resilience::tests(),
        rotation::tests(),
        life::tests(),
        golden::tests(),
        mesh_errors::tests(),
        lint::tests(),
        liar::tests(),
        observability::tests(),
        demo::tests(),
        docs::tests(),
        release::tests(),
    ];
    let tests = tests.into_iter().flatten().collect();
    let conclusion = libtest_mimic::run(&arguments, tests);
    harness::tear_down();
    conclusion.exit_code()
}
