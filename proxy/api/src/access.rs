//! Who may call whom: what control compiles from AccessPolicy objects, and what `mesh-proxy --config FILE` takes.
//!
//! One rule composes everything that selects a port, and [`decide()`] carries it out: a matching `Deny` rule refuses;
//! else a matching `Allow` rule lets in; else, if there is any `Allow` rule about the port, the caller is refused; else
//! the default decides. `Audit` rules never change the outcome, they only make it counted and logged.
//!
//! What cannot be seen counts against the caller: on a connection that is carried without a look into it, conditions on
//! requests (methods, paths, header fields, gRPC methods) hold in `Deny` rules and do not hold in `Allow` and `Audit`
//! rules.

pub mod decide;
pub mod external;
pub mod jwt;
pub mod path;

#[cfg(test)]
mod tests;

use crate::network::Network;
use crate::route::HttpMatch;
use crate::tap::pattern::glob;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::str::FromStr;

pub use decide::{Asked, Caller, Decision, Evidence, Head, NoEvidence, Unproven, What, Why, decide};
pub use external::ExternalRule;
pub use jwt::{ClaimMatch, JwtRule, Token};

/// Who may call a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Access {
    /// Who may call where no rule says anything.
    #[serde(default)]
    pub default: AccessDefault,
    /// Where callers of the cluster come from, for the default `cluster`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cluster_networks: Vec<Network>,
    /// Health probes of the kubelet, which need no rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<Probe>,
    /// Routes that policies are about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteMatches>,
    /// Whose tokens policies ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jwts: Vec<JwtRule>,
    /// Services that are asked about requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external: Vec<ExternalRule>,
    /// The rules of all policies that select the workload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<AccessRule>,
}

/// What requests of a route look like when they arrive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteMatches {
    /// True for a GRPCRoute, which takes calls of gRPC only.
    #[serde(default)]
    pub grpc: bool,
    /// One of these must hold; their `rule` is 0.
    pub matches: Vec<HttpMatch>,
}

impl Access {
    /// True if everybody may do everything and nobody wants to know.
    pub fn is_open(&self) -> bool {
        self.default == AccessDefault::All && self.rules.is_empty()
    }

    /// True if there is nothing to tell: a proxy of an older release, which has no word for it, need not hear of it.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Who may call where no rule says anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AccessDefault {
    /// Everybody.
    #[default]
    All,
    /// Whoever has proved an identity of the mesh.
    Authenticated,
    /// Whoever has proved an identity of the mesh, or calls from an address of the cluster.
    Cluster,
    /// Nobody.
    Deny,
    /// Everybody, but whoever `deny` would have refused is counted and logged.
    Audit,
}

impl AccessDefault {
    /// Every default, in the order of the documentation.
    pub const ALL: [AccessDefault; 5] = [Self::All, Self::Authenticated, Self::Cluster, Self::Deny, Self::Audit];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Authenticated => "authenticated",
            Self::Cluster => "cluster",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

impl FromStr for AccessDefault {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|default| default.word() == text);
        known.ok_or("write `all`, `authenticated`, `cluster`, `deny` or `audit`")
    }
}

/// What a rule does with the callers it matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Action {
    /// Lets them in. What no such rule lets in is refused from then on.
    #[default]
    Allow,
    /// Refuses them, whatever other rules say.
    Deny,
    /// Counts and logs them, and changes nothing.
    Audit,
}

impl Action {
    /// The label for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

/// One rule of one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AccessRule {
    /// The policy, as `namespace/name`.
    pub policy: String,
    /// Ports of the workload that the policy is about; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selects: Vec<u16>,
    /// The policy is about requests of this route only: an index into [`Access::routes`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<usize>,
    /// Callers must have such a token: an index into [`Access::jwts`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<usize>,
    /// This service must let them in, too: an index into [`Access::external`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<usize>,
    /// What happens to those who match.
    #[serde(default)]
    pub action: Action,
    /// Whom it is about: whoever matches one of these; none: everybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Source>,
    /// What it is about: whatever matches one of these; none: everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Operation>,
}

/// Callers. All fields that are given must hold; of the values of one field, one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[cfg_attr(feature = "schema", schemars(extend("minProperties" = 1, "x-kubernetes-validations" = [{
    "rule": "!(has(self.unauthenticated) && self.unauthenticated) || !(has(self.identities) || has(self.serviceAccounts) || has(self.namespaces))",
    "message": "a caller without identity has no identity, service account or namespace: put them into another entry of from"
}])))]
pub struct Source {
    /// SPIFFE identities the caller has proved, exact or with `*` for any run of characters
    /// (`spiffe://cluster.local/ns/shop/sa/*`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 64, "items" = {"type": "string", "minLength": 1, "maxLength": 512})))]
    pub identities: Vec<String>,
    /// Service accounts the caller runs under: `namespace/name`, or `name` for one of the policy's own namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 64, "items" = {"type": "string", "maxLength": 317,
        "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"})))]
    pub service_accounts: Vec<String>,
    /// Namespaces the caller runs in, proved by its identity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 64, "items" = {"type": "string", "maxLength": 63,
        "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"})))]
    pub namespaces: Vec<String>,
    /// Networks the caller's address belongs to, in CIDR notation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 64, "items" = {"type": "string", "minLength": 2, "maxLength": 49,
        "pattern": "^[0-9a-fA-F:.]+(/[0-9]{1,3})?$"})))]
    pub networks: Vec<Network>,
    /// `true`: callers that have proved no identity of the mesh.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unauthenticated: bool,
    /// What the caller's token must say, in policies with `jwt`; all of them must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 16)))]
    pub claims: Vec<ClaimMatch>,
}

/// What is called. All fields that are given must hold; of the values of one field, one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[cfg_attr(feature = "schema", schemars(extend("minProperties" = 1, "x-kubernetes-validations" = [{
    "rule": "!(has(self.grpcMethods) && has(self.methods)) || self.methods.exists(m, m == 'POST')",
    "message": "calls of gRPC are POST: leave methods out, or name POST among them"
}])))]
pub struct Operation {
    /// Ports the workload listens on (a Service's target ports).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 64, "items" = {"type": "integer", "minimum": 1, "maximum": 65535})))]
    pub ports: Vec<u16>,
    /// HTTP methods (RFC 9110, section 9), upper case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 16, "items" = {"type": "string", "maxLength": 32, "pattern": "^[A-Z-]+$"})))]
    pub methods: Vec<String>,
    /// Paths without query: exact (`/health`), a path and all below it (`/api/*`, which means `/api` too), or a
    /// pattern in which `*` stands for any run of characters, slashes included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 64, "items" = {"type": "string", "maxLength": 1024, "pattern": "^[/*][^?#]*$"})))]
    pub paths: Vec<String>,
    /// Header fields of the request; all of them must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 16)))]
    pub headers: Vec<HeaderMatch>,
    /// gRPC methods: `package.Service/Method`, `package.Service/*`, or a pattern with `*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 64, "items" = {"type": "string", "minLength": 1, "maxLength": 1024,
        "pattern": "^[^/]*(/[^/]*)?$"})))]
    pub grpc_methods: Vec<String>,
}

/// A header field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HeaderMatch {
    /// Its name, in any case.
    #[cfg_attr(feature = "schema", schemars(extend("minLength" = 1, "maxLength" = 256,
        "pattern" = "^[!#$%&'*+.^_|~0-9A-Za-z`-]+$")))]
    pub name: String,
    /// Values, exact or with `*` for any run of characters: one of them must be one of the field's lines. None: the
    /// field is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 16, "items" = {"type": "string", "maxLength": 4096})))]
    pub values: Vec<String>,
}

/// A health probe of the kubelet that reaches the application through the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Probe {
    /// The port it goes to.
    pub port: u16,
    /// How it asks.
    pub by: ProbeBy,
}

/// How a probe asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeBy {
    /// `GET` of this path, with any query.
    Http(String),
    /// `GET` over the application's own TLS, which the mesh cannot look into: from these addresses, the node's.
    Https(Vec<IpAddr>),
    /// A call of `grpc.health.v1.Health/Check`.
    Grpc,
    /// A connection that is closed without a word.
    Tcp,
}

/// Text with `*` for any run of characters.
fn like(pattern: &str, text: &[u8]) -> bool {
    glob(pattern.as_bytes(), text)
}
