//! Faults made on purpose, to see what they do to callers.

use crate::condition::Condition;
use crate::millis::Millis;
use serde::{Deserialize, Serialize};

/// A fault for some requests, made by the caller's proxy. A delay comes first, then `abort` or `reset` if either is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(
    feature = "schema",
    schemars(extend("x-kubernetes-validations" = [
        {"rule": "!(self.reset && has(self.abort))", "message": "a request is either answered or reset"},
    ]))
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Percent of the requests it is made for, chosen at random. Default: 100.
    #[serde(default = "Fault::default_percent")]
    #[cfg_attr(feature = "schema", schemars(range(max = 100)))]
    pub percent: u32,
    /// Which requests it may be made for. Default: all.
    #[serde(default)]
    pub when: Condition,
    /// Waits before the request goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Millis>,
    /// Answers in place of the service (`fault-injected`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// Breaks off without an answer: closes the connection of HTTP/1, resets the stream of HTTP/2. Default: no.
    #[serde(default)]
    pub reset: bool,
    /// Lets the response's body pass with so many bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub bytes_per_second: Option<u32>,
}

/// How an aborted request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Abort {
    /// The HTTP status. Default: 500.
    #[serde(default = "Abort::default_status")]
    #[cfg_attr(feature = "schema", schemars(range(min = 200, max = 599)))]
    pub status: u16,
    /// The status that a gRPC call gets. Default: 14 (Unavailable).
    #[serde(default = "Abort::default_grpc_status")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 16)))]
    pub grpc_status: u16,
}

impl Fault {
    fn default_percent() -> u32 {
        100
    }
}

impl Default for Fault {
    fn default() -> Self {
        Self {
            percent: Self::default_percent(),
            when: Condition::default(),
            delay: None,
            abort: None,
            reset: false,
            bytes_per_second: None,
        }
    }
}

impl Abort {
    fn default_status() -> u16 {
        500
    }

    fn default_grpc_status() -> u16 {
        14
    }
}

impl Default for Abort {
    fn default() -> Self {
        Self { status: Self::default_status(), grpc_status: Self::default_grpc_status() }
    }
}
