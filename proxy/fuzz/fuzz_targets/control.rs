//! What control says, line by line: no line panics, and an update that cannot be used changes nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_api::identity::CertifyResponse;
use mesh_api::wire::{ControlMessage, ProxyMessage};
use mesh_proxy::golden::Golden;
use mesh_proxy::state::State;
use std::sync::Arc;

fuzz_target!(|bytes: &[u8]| {
    let _ = serde_json::from_slice::<CertifyResponse>(bytes);
    let state = State::new(true, Arc::new(Golden::new(0)), Arc::default());
    for line in bytes.split(|b| *b == b'\n') {
        // What proxies say is read by control with the same structs.
        if let Ok(message) = serde_json::from_slice::<ProxyMessage>(line) {
            serde_json::to_vec(&message).expect("what was read can be written");
        }
        let Ok(message) = serde_json::from_slice::<ControlMessage>(line) else { continue };
        serde_json::to_vec(&message).expect("what was read can be written");
        match message {
            ControlMessage::Update { address, destination, endpoints, backends, .. } => {
                let target = state.target(address);
                let before: Vec<_> = target.now().group.backends.iter().map(|b| b.endpoint.clone()).collect();
                if state.update(address, destination, endpoints.as_ref(), &backends).is_err() {
                    let after: Vec<_> = target.now().group.backends.iter().map(|b| b.endpoint.clone()).collect();
                    assert_eq!(before, after);
                }
            }
            ControlMessage::Inbound { policy, .. } => drop(state.set_inbound(policy)),
            _ => {}
        }
    }
});
