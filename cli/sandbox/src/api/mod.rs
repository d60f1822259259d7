//! The Kubernetes API of the sandbox.

pub mod apply;
pub mod defaults;
pub mod kinds;
pub mod openapi;
pub mod patch;
pub mod schema;
pub mod status;
pub mod table;
pub mod validate;
