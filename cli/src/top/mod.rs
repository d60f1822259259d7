//! The terminal screens: live routes, workloads, edges, taps and details.
//!
//! - [`state`]: plain data; [`update`] and [`mouse`]: `(state, message) → state`, pure; [`view`]: `state → frame`, pure.
//! - [`account`], [`edges`], [`details`], [`tap`]: what frames and taps add up to; [`map`]: edges as a drawing.
//! - [`layout`]: where things stand; [`keys`]: the one table of keys; [`filter`]: what `/` understands; [`theme`],
//!   [`format`]: how things look.
//! - [`recording`]: a file of what arrived; [`replay`]: plays it.
//! - [`run`], [`source`], [`terminal`]: the only parts that wait: the clock, the streams, the terminal.

pub mod account;
pub mod details;
pub mod edges;
pub mod filter;
pub mod format;
pub mod keys;
pub mod layout;
pub mod map;
pub mod mouse;
pub mod recording;
pub mod replay;
pub mod run;
pub mod source;
pub mod state;
pub mod tap;
pub mod terminal;
pub mod theme;
pub mod update;
pub mod view;
