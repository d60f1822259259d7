//! What a proxy is told about its own pod, and the file form that replaces the control plane.

use crate::rate_limit::RateLimit;
use crate::{Access, Destination, Egress, Endpoint, Protocol, ServiceRef, TrafficPolicy, WorkloadRef};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// How a proxy treats what arrives for its application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InboundPolicy {
    /// The workload this proxy stands beside, as control knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadRef>,
    /// Zone of its node, for zone-aware balancing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Ports with something to say; all others are detected.
    #[serde(default, deserialize_with = "crate::number_keys::deserialize")]
    pub ports: BTreeMap<u16, PortPolicy>,
    /// Who may call; everybody unless said.
    #[serde(default, skip_serializing_if = "Access::is_default")]
    pub access: Access,
}

/// How one inbound port is treated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortPolicy {
    /// What the port speaks.
    #[serde(default)]
    pub protocol: Protocol,
    /// How often the services behind this port may be called; a request passes if all of them let it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<PortLimit>,
}

/// A rate limit of a port, and with whom it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortLimit {
    /// The limit.
    pub limit: RateLimit,
    /// What all proxies that keep it together call it; `None`: this one keeps it alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_as: Option<String>,
}

impl From<RateLimit> for PortLimit {
    fn from(limit: RateLimit) -> Self {
        Self { limit, shared_as: None }
    }
}

/// The file that `mesh-proxy --config FILE` loads (YAML or JSON) instead of following a control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// Certificate and anchors; without it the proxy neither offers nor accepts mesh TLS.
    #[serde(default)]
    pub identity: Option<FileIdentity>,
    /// How arriving traffic is treated.
    #[serde(default)]
    pub inbound: InboundPolicy,
    /// What may leave the cluster; everything unless said.
    #[serde(default, skip_serializing_if = "Egress::is_default")]
    pub egress: Egress,
    /// Known destinations.
    #[serde(default)]
    pub destinations: Vec<FileDestination>,
    /// Where to send inbound connections that were not redirected (no original destination and no port in the
    /// server name): the application's address.
    #[serde(default)]
    pub inbound_default: Option<SocketAddr>,
    /// Where to send outbound connections that were not redirected: one of `destinations`, by address.
    #[serde(default)]
    pub outbound_default: Option<SocketAddr>,
}

/// Where a certificate lies on disk; reloaded when the files change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileIdentity {
    /// Chain, leaf first, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM (PKCS#8, SEC1 or PKCS#1).
    pub key: PathBuf,
    /// Trust anchors, PEM.
    pub anchors: PathBuf,
}

/// A destination known from the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDestination {
    /// The address applications connect to.
    pub address: SocketAddr,
    /// What it is.
    pub destination: Destination,
    /// Who answers.
    pub endpoints: Vec<Endpoint>,
    /// The services that its routes lead to.
    #[serde(default)]
    pub backends: Vec<FileBackend>,
}

/// A service that routes lead to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileBackend {
    /// The service's port, as routes name it.
    pub service: ServiceRef,
    /// What the port speaks.
    #[serde(default)]
    pub protocol: Protocol,
    /// How traffic to it is carried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<TrafficPolicy>>,
    /// Who answers.
    pub endpoints: Vec<Endpoint>,
}
