//! How often a service may be called.

use crate::condition::Condition;
use crate::millis::Millis;
use serde::{Deserialize, Serialize};

/// Lets through so many requests in an interval and answers the others with 429 (`rate-limited`; gRPC:
/// ResourceExhausted) and `Retry-After`.
///
/// The limits of a Service are kept by the proxies of its pods, each for itself unless `shared`; those of a route or of one
/// of its rules by the proxy of each caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(
    feature = "schema",
    schemars(extend("x-kubernetes-validations" = [
        {"rule": "duration(self.interval) > duration('0s')", "message": "interval must be longer than 0s"},
    ]))
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// Requests in each interval.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub requests: u32,
    /// The interval. Default: 1s.
    #[serde(default = "RateLimit::default_interval")]
    pub interval: Millis,
    /// Requests that may come at once after a pause. Default: as many as `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub burst: Option<u32>,
    /// Each of these has the whole limit for itself. Default: all requests count together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<RateKey>,
    /// Which requests are counted. Default: all.
    #[serde(default)]
    pub when: Condition,
    /// All proxies of the service keep the limit together: control divides it among them once a second by what each is
    /// asked for, so that the sum follows a change of load within some seconds. Without control each keeps the share it
    /// had last. Default: each proxy has the whole limit for itself.
    #[serde(default)]
    pub shared: bool,
}

/// What requests are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(
    feature = "schema",
    schemars(extend("x-kubernetes-validations" = [
        {"rule": "has(self.name) == (self.by == 'Header')", "message": "Header needs a name, nothing else takes one"},
    ]))
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateKey {
    /// Where the key is found.
    pub by: RateBy,
    /// Name of the header field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Where the key of a rate limit is found. Requests without it count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum RateBy {
    /// The identity that the caller proved.
    Identity,
    /// The address of the caller, without its port.
    Source,
    /// A header field; needs `name`.
    Header,
    /// The request's path, without the query.
    Path,
}

impl RateLimit {
    /// Requests that may come at once.
    pub fn burst(&self) -> u32 {
        self.burst.unwrap_or(self.requests).max(1)
    }

    fn default_interval() -> Millis {
        Millis(1000)
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            requests: 1,
            interval: Self::default_interval(),
            burst: None,
            per: None,
            when: Condition::default(),
            shared: false,
        }
    }
}
