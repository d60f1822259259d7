//! What users write and what gets installed.
//!
//! Everything here takes values and gives values back: no cluster, no clock that is not handed in, no I/O beyond the
//! reader and writer of a YAML stream. The control plane's webhook, `meshctl install` and `meshctl inject` all
//! decide with this crate, so that they cannot disagree.

pub mod chart;
pub mod cni;
pub mod config;
pub mod inject;
pub mod inject_text;
pub mod install;
pub mod inventory;
pub mod issuer;
pub mod kustomization;
pub mod nearest;
pub mod policies;
pub mod ports;
#[cfg(test)]
mod published_tests;
pub mod quantity;
pub mod rbac;
pub mod reference;
pub mod rotation;
mod scalar;
pub mod settings;
pub mod sidecar;
mod terms;
pub mod values;
pub mod yaml;
