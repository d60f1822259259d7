//! How long a request may take.

use crate::millis::Millis;
use serde::{Deserialize, Serialize};

/// Time limits of a request; each left out or zero is no limit. A caller can tighten `request` with the header
/// `mesh-timeout: 500ms` (and gRPC callers with `grpc-timeout`), never loosen it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// From the request's head to the end of the response, with all tries. Gateway API: `timeouts.request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Millis>,
    /// One try, from sending it to the end of its response. Gateway API: `timeouts.backendRequest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<Millis>,
    /// One try, from sending it to the head of its response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_head: Option<Millis>,
    /// Between two pieces of a body, either way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Millis>,
    /// To open a connection to an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Millis>,
}
