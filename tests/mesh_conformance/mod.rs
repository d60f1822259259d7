//! The Gateway API's conformance tests for meshes, each under its own name: what a route of that shape does to requests
//! between pods, and what its status says. Written from the specification.

mod change;
mod connections;
mod ground;
mod grpc;
mod http;
mod redirects;
mod scope;
mod status;

use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    [
        http::tests(),
        redirects::tests(),
        scope::tests(),
        grpc::tests(),
        connections::tests(),
        status::tests(),
        change::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
