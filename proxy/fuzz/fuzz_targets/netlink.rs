//! The kernel's netlink answers: whatever a datagram holds, reading it ends and never panics.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_proxy::nft::netlink::answers;

fuzz_target!(|bytes: &[u8]| {
    // Every message has a header of sixteen bytes.
    assert!(answers(bytes).len() <= bytes.len() / 16);
});
