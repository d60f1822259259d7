//! The data path, protocol by protocol: through two injected pods unless a name says otherwise, with real clients and
//! servers where there are some and with `mesh-peer` where there are none.

mod families;
mod ground;
mod grpc;
mod http1;
mod http2;
mod opaque;

use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    [http1::tests(), http2::tests(), grpc::tests(), opaque::tests(), families::tests()].into_iter().flatten().collect()
}
