//! When an endpoint that does badly is left alone for a while.

use crate::millis::Millis;
use serde::{Deserialize, Serialize};

/// Ejects endpoints that do badly. Each proxy judges by what it sees itself.
///
/// A failure is a broken or refused connection, a time limit that ran out, an HTTP status of 500 or more, or one of the
/// gRPC statuses Unknown, DeadlineExceeded, Internal, Unavailable and DataLoss. An ejected endpoint gets no requests until its
/// time is over; then single requests try it out, and so many successes in a row as `probes` says bring it back, while
/// a failure ejects it for twice as long as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(
    feature = "schema",
    schemars(extend("x-kubernetes-validations" = [
        {"rule": "duration(self.maxEjection) >= duration(self.ejection)", "message": "maxEjection is shorter than ejection"},
        {"rule": "duration(self.ejection) > duration('0s')", "message": "ejection must be longer than 0s"},
        {"rule": "duration(self.window) >= duration('1s')", "message": "window must be at least 1s"},
    ]))
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Breaker {
    /// Ejects after so many failures without a success between them. Default: 5, unless `successRate` or `slowCalls` is
    /// set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub consecutive_failures: Option<u32>,
    /// Ejects when too few requests succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
    /// Ejects when too many requests are slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_calls: Option<SlowCalls>,
    /// Time over which rates are taken. Default: 10s; at least 1s.
    #[serde(default = "Breaker::default_window")]
    pub window: Millis,
    /// Requests to an endpoint within the window below which its rates say nothing. Default: 20.
    #[serde(default = "Breaker::default_min_requests")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub min_requests: u32,
    /// How long an endpoint is ejected for the first time; doubles each time it fails again soon. Default: 10s.
    #[serde(default = "Breaker::default_ejection")]
    pub ejection: Millis,
    /// The longest ejection; an endpoint that served for so long starts over with `ejection`. Default: 5m.
    #[serde(default = "Breaker::default_max_ejection")]
    pub max_ejection: Millis,
    /// Requests that try an endpoint out, one at a time, before it is back. Default: 3.
    #[serde(default = "Breaker::default_probes")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub probes: u32,
    /// Percent of the endpoints that are never ejected, rounded up. With 0 all may be, and requests are then answered
    /// with 503 (`circuit-open`). Default: 50.
    #[serde(default = "Breaker::default_floor_percent")]
    #[cfg_attr(feature = "schema", schemars(range(max = 100)))]
    pub floor_percent: u32,
}

/// The share of requests that must succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuccessRate {
    /// Ejects when fewer than so many percent of the window's requests succeeded.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 100)))]
    pub min_percent: u32,
}

/// The share of requests that may be slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SlowCalls {
    /// A request whose response head took longer is slow.
    pub over: Millis,
    /// Ejects when more than so many percent of the window's requests were slow. Default: 50.
    #[serde(default = "SlowCalls::default_max_percent")]
    #[cfg_attr(feature = "schema", schemars(range(max = 99)))]
    pub max_percent: u32,
}

/// What an endpoint may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Requests.
    Closed,
    /// Nothing until its time is over.
    Open,
    /// One request, to try it out.
    HalfOpen,
}

impl Standing {
    /// The word for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Standing::Closed => "closed",
            Standing::Open => "open",
            Standing::HalfOpen => "half_open",
        }
    }
}

impl Breaker {
    /// Failures in a row after which an endpoint is ejected, if that is a reason.
    pub fn consecutive(&self) -> Option<u32> {
        let only = self.success_rate.is_none() && self.slow_calls.is_none();
        self.consecutive_failures.or(only.then_some(5))
    }

    /// How many of `endpoints` may be ejected at once.
    pub fn ejectable(&self, endpoints: usize) -> usize {
        let floor = (endpoints as u64 * u64::from(self.floor_percent.min(100))).div_ceil(100);
        // The floor is at most the number of endpoints, so it fits.
        endpoints - floor as usize
    }

    fn default_window() -> Millis {
        Millis(10_000)
    }

    fn default_min_requests() -> u32 {
        20
    }

    fn default_ejection() -> Millis {
        Millis(10_000)
    }

    fn default_max_ejection() -> Millis {
        Millis(300_000)
    }

    fn default_probes() -> u32 {
        3
    }

    fn default_floor_percent() -> u32 {
        50
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            consecutive_failures: None,
            success_rate: None,
            slow_calls: None,
            window: Self::default_window(),
            min_requests: Self::default_min_requests(),
            ejection: Self::default_ejection(),
            max_ejection: Self::default_max_ejection(),
            probes: Self::default_probes(),
            floor_percent: Self::default_floor_percent(),
        }
    }
}

impl SlowCalls {
    fn default_max_percent() -> u32 {
        50
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_rounded_up() {
        for (floor_percent, endpoints, expect) in
            [(50, 1, 0), (50, 2, 1), (50, 3, 1), (0, 1, 1), (0, 3, 3), (100, 5, 0), (1, 10, 9), (900, 4, 0), (50, 0, 0)]
        {
            let breaker = Breaker { floor_percent, ..Breaker::default() };
            assert_eq!(breaker.ejectable(endpoints), expect, "{floor_percent} % of {endpoints}");
        }
    }
}
