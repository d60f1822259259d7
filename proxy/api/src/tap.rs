//! Tap: single requests and connections as a proxy saw them.

use crate::golden::{Carried, Direction, TlsStatus};
use crate::{MeshError, ServiceRef, SpiffeId, WorkloadRef};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// One finished request or connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TapEvent {
    /// End, Unix milliseconds.
    pub at_ms: u64,
    /// Side the proxy stood on.
    pub direction: Direction,
    /// What was carried.
    pub carried: Carried,
    /// Client address.
    pub source: SocketAddr,
    /// Server address.
    pub destination: SocketAddr,
    /// The other end's workload.
    pub peer: WorkloadRef,
    /// The identity the other end proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_identity: Option<SpiffeId>,
    /// The Service called, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// Protection of the leg between pods.
    pub tls: TlsStatus,
    /// HTTP method; empty for TCP.
    #[serde(default)]
    pub method: String,
    /// Path without query; empty for TCP.
    #[serde(default)]
    pub path: String,
    /// Route it was counted under.
    #[serde(default)]
    pub route: String,
    /// HTTP status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// gRPC status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    /// Error the mesh answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<MeshError>,
    /// From the head to the end, microseconds.
    pub duration_us: u64,
    /// Bytes from the client.
    pub read_bytes: u64,
    /// Bytes to the client.
    pub write_bytes: u64,
}
