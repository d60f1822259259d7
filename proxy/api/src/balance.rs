//! How requests are spread over a service's endpoints.

use serde::{Deserialize, Serialize};

/// How requests are spread over a service's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(
    feature = "schema",
    schemars(extend("x-kubernetes-validations" = [
        {"rule": "!has(self.hash) || self.algorithm in ['RingHash', 'Maglev']", "message": "only RingHash and Maglev hash a key"},
        {"rule": "!has(self.zone) || !(self.algorithm in ['RingHash', 'Maglev'])", "message": "RingHash and Maglev keep keys in place in all zones"},
    ]))
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Balance {
    /// The algorithm. Default: `PeakEwma`.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// What `RingHash` and `Maglev` keep at one endpoint; no other algorithm takes it. Default: the caller's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashKey>,
    /// Keeps requests in the caller's zone while it has enough endpoints in service; not with `RingHash` and `Maglev`,
    /// whose keys would move. Default: zones make no difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZonePreference>,
}

/// How one of the endpoints is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Algorithm {
    /// Of two chosen at random, the one with the lower product of latency (a moving average that rises at once and
    /// falls slowly) and requests under way.
    #[default]
    PeakEwma,
    /// Of two chosen at random, the one with fewer requests under way.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// By a hash of the key on a ring: when an endpoint goes, its keys alone move, to many others.
    RingHash,
    /// By a hash of the key in a table: more even than a ring, and when an endpoint goes, few other keys move.
    Maglev,
}

impl Algorithm {
    /// True if the same key leads to the same endpoint.
    pub fn is_hash(self) -> bool {
        matches!(self, Algorithm::RingHash | Algorithm::Maglev)
    }
}

/// What of a request is hashed. Requests without it are spread at random.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(
    feature = "schema",
    schemars(extend("x-kubernetes-validations" = [
        {"rule": "has(self.name) == (self.on in ['Header', 'Cookie'])", "message": "Header and Cookie need a name, nothing else takes one"},
    ]))
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashKey {
    /// Where the key is found.
    #[serde(default)]
    pub on: HashOn,
    /// Name of the header field or cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Where a hash key is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum HashOn {
    /// The address of the caller, without its port.
    #[default]
    Source,
    /// A header field; needs `name`.
    Header,
    /// A cookie; needs `name`.
    Cookie,
    /// The request's path, without the query.
    Path,
}

/// When requests stay in the caller's zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ZonePreference {
    /// With fewer than so many percent of the zone's endpoints in service (not ejected by the breaker, not asking for a
    /// pause), requests go to all zones. Default: 70.
    #[serde(default = "ZonePreference::default_failover_percent")]
    #[cfg_attr(feature = "schema", schemars(range(max = 100)))]
    pub failover_percent: u32,
}

impl ZonePreference {
    fn default_failover_percent() -> u32 {
        70
    }
}

impl Default for ZonePreference {
    fn default() -> Self {
        Self { failover_percent: Self::default_failover_percent() }
    }
}
