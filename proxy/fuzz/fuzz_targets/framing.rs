//! Following HTTP/1 framing through a connection: how the bytes are cut must not change what passes or why it stops, and
//! heads are judged without panicking, whatever they hold.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_proxy::framing::{Framing, Stop};
use mesh_proxy::head;

fuzz_target!(|bytes: &[u8]| {
    let _ = head::inspect(bytes, 0);
    let _ = head::inspect_trailers(bytes);
    // The first byte says where the rest is cut.
    let Some((step, bytes)) = bytes.split_first() else { return };
    let whole = follow(bytes, bytes.len().max(1));
    let pieces = follow(bytes, usize::from(*step) % 29 + 1);
    assert_eq!(whole, pieces);
});

/// What passes and what stops it when bytes arrive `step` at a time. What comes behind a request that may end HTTP passes
/// without a look until the answer is known, which it never is here.
fn follow(bytes: &[u8], step: usize) -> (usize, Option<Stop>) {
    let mut framing = Framing::default();
    let (mut passed, mut arrived) = (0, 0);
    while arrived < bytes.len() {
        arrived = bytes.len().min(arrived + step);
        let followed = framing.follow(&bytes[passed..arrived]);
        assert!(passed + followed.passed <= arrived);
        passed += followed.passed;
        if let Some(stop) = followed.stop {
            return (passed, Some(stop));
        }
    }
    (passed, None)
}
