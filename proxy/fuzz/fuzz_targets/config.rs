//! The file of `--config`: reading it never panics, an error has something to say, and what was read can be used, written
//! and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_proxy::file;
use mesh_proxy::golden::Golden;
use mesh_proxy::state::State;
use std::sync::Arc;

fuzz_target!(|text: &str| {
    match file::parse(text) {
        Err(error) => assert!(!format!("{error:#}").is_empty()),
        Ok(config) => {
            let written = serde_json::to_string(&config).expect("what was read can be written");
            assert_eq!(file::parse(&written).expect("what was written can be read"), config);
            let state = State::new(false, Arc::new(Golden::new(0)), Arc::default());
            state.set_inbound(config.inbound).expect("a file that was read can be used");
            state.replace(config.destinations);
            assert!(state.known_targets().len() <= mesh_proxy::limits::MAX_TARGETS);
        }
    }
});
