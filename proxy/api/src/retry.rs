//! When a request is sent again.

use crate::millis::Millis;
use serde::{Deserialize, Serialize};

/// Sends requests again that failed in a way that another try may mend. Without it the proxy only tries another endpoint
/// when nothing of a request was delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retry {
    /// Tries after the first one; 0 switches retries off.
    #[serde(default = "Retry::default_attempts")]
    #[cfg_attr(feature = "schema", schemars(range(max = 100)))]
    pub attempts: u32,
    /// HTTP statuses to try again after. Gateway API: `retry.codes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64), inner(range(min = 400, max = 599))))]
    pub codes: Vec<u16>,
    /// gRPC statuses to try again after, by number (14: Unavailable).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 16), inner(range(min = 1, max = 16))))]
    pub grpc_codes: Vec<u16>,
    /// Tries again when the connection broke before a response, though the request may have been seen.
    #[serde(default = "yes")]
    pub resets: bool,
    /// Least pause before a try; doubles with each one, with full jitter, up to ten times itself.
    /// Gateway API: `retry.backoff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Millis>,
    /// Longest pause before a try; tries after a `Retry-After` that asks for more are not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_backoff: Option<Millis>,
    /// Time for one try's response head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Millis>,
    /// Also tries methods again that are not idempotent (RFC 9110, section 9.2.2), and gRPC calls.
    #[serde(default)]
    pub unsafe_methods: bool,
    /// Bytes of a body kept for another try; a longer one is sent once. At most 1 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(max = 1_048_576)))]
    pub body_bytes: Option<u32>,
    /// How many retries there may be beside first tries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<RetryBudget>,
}

/// Keeps retries from adding to an overload. Gateway API: `XBackendTrafficPolicy.retryConstraint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// Retries allowed in the interval, in percent of the requests in it.
    #[serde(default = "RetryBudget::default_percent")]
    pub percent: u32,
    /// The interval.
    #[serde(default = "RetryBudget::default_interval")]
    pub interval: Millis,
    /// Retries a second that are allowed in any case.
    #[serde(default = "RetryBudget::default_min_per_second")]
    pub min_per_second: u32,
}

fn yes() -> bool {
    true
}

impl Retry {
    fn default_attempts() -> u32 {
        1
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: Self::default_attempts(),
            codes: Vec::new(),
            grpc_codes: Vec::new(),
            resets: true,
            backoff: None,
            max_backoff: None,
            per_try_timeout: None,
            unsafe_methods: false,
            body_bytes: None,
            budget: None,
        }
    }
}

impl RetryBudget {
    fn default_percent() -> u32 {
        20
    }

    fn default_interval() -> Millis {
        Millis(10_000)
    }

    fn default_min_per_second() -> u32 {
        10
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            percent: Self::default_percent(),
            interval: Self::default_interval(),
            min_per_second: Self::default_min_per_second(),
        }
    }
}
