//! How much a service is asked to do at once.

use crate::millis::Millis;
use serde::{Deserialize, Serialize};

/// Limits of what one proxy sends to a service at once. What exceeds them waits for a while, and is then answered with
/// 503 (`overload`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Connections open to one endpoint: HTTP/1 to endpoints outside the mesh, and opaque ones (meshed endpoints share one
    /// connection between all HTTP requests). Default: 1024 of HTTP/1, any number of opaque ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub connections: Option<u32>,
    /// Requests under way to the service. Default: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub requests: Option<u32>,
    /// Requests under way to one endpoint; one that has so many is passed over. Default: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub endpoint_requests: Option<u32>,
    /// Requests that may wait until `requests` or `endpointRequests` lets them go. Default: 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<u32>,
    /// How long each may wait. Default: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_timeout: Option<Millis>,
}

impl Limits {
    /// Requests that may wait.
    pub fn pending(&self) -> u32 {
        self.pending.unwrap_or(1024)
    }

    /// How long each may wait.
    pub fn pending_timeout(&self) -> Millis {
        self.pending_timeout.unwrap_or(Millis(1000))
    }
}
