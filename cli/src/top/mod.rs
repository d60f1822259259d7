//! The terminal screen of live routes.
//!
//! - [`state`]: plain data; [`update`]: `(state, message) → state`, pure; [`view`]: `state → frame`, pure.
//! - [`layout`]: where things stand; [`keys`]: the one table of keys; [`filter`]: what `/` understands; [`theme`]: colours and marks.
//! - [`run`]: the only part that waits: the terminal, the clock, the frames.

pub mod filter;
pub mod format;
pub mod keys;
pub mod layout;
pub mod run;
pub mod state;
pub mod theme;
pub mod update;
pub mod view;
