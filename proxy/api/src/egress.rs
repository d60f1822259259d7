//! What may leave the cluster: what control compiles from EgressPolicy objects, and what `mesh-proxy --config FILE` takes.
//!
//! One rule composes everything that selects a workload, and [`decide()`] carries it out: a matching `Deny` rule refuses;
//! else a matching `Allow` rule lets out; else the default decides, which is the strictest that a policy asks for, or that
//! of the pod, its namespace or the mesh if none does. `Audit` rules never change the outcome, they only make it counted
//! and logged.
//!
//! Hosts are what the client claims: the authority of a request, the server name of TLS. What cannot be seen counts
//! against the caller: where no host is named, conditions on hosts hold in `Deny` rules and in no others.

pub mod decide;

#[cfg(test)]
mod tests;

use crate::access::Action;
use crate::network::Network;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

pub use decide::{Decision, Leaving, Seen, Why, decide};

/// What may leave the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Egress {
    /// What becomes of traffic that no rule is about.
    #[serde(default)]
    pub default: EgressDefault,
    /// The policy that asks for this default, as `namespace/name`; none if no policy does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_by: Option<String>,
    /// Where the cluster's own addresses lie: what decides about an address of which control has not said yet whether it
    /// is one of the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cluster_networks: Vec<Network>,
    /// The rules of all policies that select the workload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<EgressRule>,
}

impl Egress {
    /// True if everything may leave and nobody wants to know.
    pub fn is_open(&self) -> bool {
        self.default == EgressDefault::Allow && self.rules.is_empty()
    }

    /// True if there is nothing to tell.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of traffic out of the cluster that no rule is about. From the mildest to the strictest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum EgressDefault {
    /// It is let out.
    #[default]
    Allow,
    /// It is let out, but whatever `deny` would have refused is counted and logged.
    Audit,
    /// It is refused.
    Deny,
}

impl EgressDefault {
    /// Every default, in the order of the documentation.
    pub const ALL: [EgressDefault; 3] = [Self::Allow, Self::Audit, Self::Deny];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Audit => "audit",
            Self::Deny => "deny",
        }
    }
}

impl FromStr for EgressDefault {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|default| default.word() == text).ok_or("write `allow`, `audit` or `deny`")
    }
}

/// One rule of one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EgressRule {
    /// The policy, as `namespace/name`.
    pub policy: String,
    /// What happens to what matches.
    #[serde(default)]
    pub action: Action,
    /// What it is about.
    #[serde(default)]
    pub to: Outside,
}

/// Destinations outside the cluster. All fields that are given must hold; of the values of one field, one. Without any
/// field: all destinations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.hosts) || !has(self.protocols) || self.protocols.exists(p, p != 'TCP')",
    "message": "a TCP connection names no host: write networks, or HTTP or TLS among the protocols"
}])))]
pub struct Outside {
    /// Hosts as the client names them (authority of a request, server name of TLS), in lower case and without a port:
    /// exact, `*.example.org` for all names below it, or `*` for any. Given with `networks`, the host is pinned to these
    /// addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 64, "items" = {"type": "string", "minLength": 1, "maxLength": 253,
        "pattern": "^(\\*|(\\*\\.)?[a-z0-9_]([-a-z0-9_]*[a-z0-9])?(\\.[a-z0-9_]([-a-z0-9_]*[a-z0-9])?)*)$"})))]
    pub hosts: Vec<String>,
    /// Networks the destination's address belongs to, in CIDR notation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 64, "items" = {"type": "string", "minLength": 2, "maxLength": 49,
        "pattern": "^[0-9a-fA-F:.]+(/[0-9]{1,3})?$"})))]
    pub networks: Vec<Network>,
    /// Ports connected to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 64, "items" = {"type": "integer", "minimum": 1, "maximum": 65535})))]
    pub ports: Vec<u16>,
    /// What is spoken, as the proxy finds out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 3)))]
    pub protocols: Vec<EgressProtocol>,
}

/// What is spoken with a destination outside the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum EgressProtocol {
    /// HTTP of any version in plain text, gRPC included.
    Http,
    /// The application's own TLS.
    Tls,
    /// Anything else: nobody looks into it.
    Tcp,
}

impl EgressProtocol {
    /// Every protocol, in the order of the documentation.
    pub const ALL: [EgressProtocol; 3] = [Self::Http, Self::Tls, Self::Tcp];

    /// The label for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }
}
