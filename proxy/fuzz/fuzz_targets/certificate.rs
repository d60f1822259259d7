//! Certificates of peers and of control: reading one never panics, and whatever proves an identity proves one that reads
//! back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_api::SpiffeId;
use mesh_proxy::tls::{Current, proven_identity};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::time::Duration;

fuzz_target!(|bytes: &[u8]| {
    // Somewhen in the middle of the seeds' validity.
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
    if let Ok((identity, expires_at)) = proven_identity(&CertificateDer::from(bytes), now) {
        assert_eq!(identity.to_string().parse::<SpiffeId>().expect("an identity reads back"), identity);
        assert!(expires_at >= now.as_secs());
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let (chain, rest) = text.split_once('\u{1}').unwrap_or((text, ""));
        let (key, anchors) = rest.split_once('\u{1}').unwrap_or((rest, chain));
        let _ = Current::from_pem(chain, key, anchors);
    }
});
