//! Protocol detection: never panics, and what was once decided does not depend on how the bytes were cut.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_proxy::detect::{judge, server_name};

fuzz_target!(|bytes: &[u8]| {
    let whole = judge(bytes);
    let name = server_name(bytes);
    if let Some(name) = &name {
        assert!(!name.is_empty() && name.len() <= 255 && name.bytes().all(|b| b.is_ascii_graphic()), "{name:?}");
    }
    // A few cuts are enough: the fuzzer tries the others.
    for cut in [1, bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(1)] {
        let Some(part) = bytes.get(..cut) else { continue };
        if let Some(early) = judge(part) {
            assert_eq!(Some(early), whole, "decided after {cut} bytes, and otherwise after {}", bytes.len());
        }
    }
});
