//! External authorisation: a service that is asked whether a request may pass.

use crate::Millis;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// A service that is asked about requests, over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ExternalRule {
    /// Where it is called: its cluster IP and port.
    pub address: SocketAddr,
    /// What it is called by in questions: host and port.
    pub authority: String,
    /// The path that is asked for.
    pub path: String,
    /// The method.
    pub method: String,
    /// How long an answer may take.
    pub timeout: Millis,
    /// True if requests pass when nobody answers.
    #[serde(default)]
    pub fail_open: bool,
    /// Header fields of the request that questions carry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Header fields of the answer that the request carries on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<String>,
}
