//! What a mesh proxy understands.
//!
//! These are the words control and proxy exchange: plain serde structs, each defined once and used from the
//! compiler that fills them to the data path that runs them. The same structs load from a file
//! (`mesh-proxy --config FILE`). There is no I/O here and nothing of Kubernetes.

pub mod access;
pub mod balance;
pub mod breaker;
pub mod cni;
pub mod condition;
pub mod config;
pub mod egress;
pub mod error;
pub mod fault;
pub mod golden;
pub mod histogram;
pub mod identity;
mod later;
pub mod limit;
pub mod millis;
pub mod names;
pub mod network;
mod number_keys;
pub mod rate_limit;
pub mod retry;
pub mod route;
pub mod service;
pub mod tap;
pub mod timeout;
pub mod traffic;
pub mod wire;

pub use access::{Access, AccessDefault, AccessRule};
pub use config::{FileConfig, FileIdentity, InboundPolicy, PortLimit, PortPolicy};
pub use egress::{Egress, EgressDefault, EgressRule};
pub use error::MeshError;
pub use histogram::Histogram;
pub use identity::{CertifyRequest, CertifyResponse, SpiffeId, Trust};
pub use millis::Millis;
pub use network::Network;
pub use service::{BackendChange, Destination, Endpoint, EndpointsChange, Protocol, ServiceRef, WorkloadRef};
pub use traffic::TrafficPolicy;
