//! TrafficPolicy: how traffic is carried.

use super::PolicyStatus;
use kube::CustomResource;
use mesh_api::TrafficPolicy as Carried;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How traffic to a Service, or of a route or one of its rules, is carried.
///
/// Where several policies are about a request, the most specific one that has a field decides it: a rule's before its
/// route's, the route's before that of a port of the Service it goes to, and that before the whole Service's. Of two that
/// are about the same, the older one has its say (the one first by name where they are of the same second), and the status
/// of the other tells so. `balance`, `breaker` and `limits` belong to endpoints, so a route has none of them. What a route itself says of
/// retries and time limits comes before any policy.
///
/// The caller's proxy does most of this. The rate limits of a Service are kept by the proxies of its pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "meshctl.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    plural = "trafficpolicies",
    namespaced,
    category = "meshctl",
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "How traffic to a Service, or of a route or one of its rules, is carried.",
    printcolumn = r#"{"name":"Target", "type":"string", "jsonPath":".spec.targetRefs[0].kind"}"#,
    printcolumn = r#"{"name":"Name", "type":"string", "jsonPath":".spec.targetRefs[0].name"}"#,
    printcolumn = r#"{"name":"Accepted", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Reason", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Accepted\")].reason"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!(has(self.balance) || has(self.breaker) || has(self.limits)) || self.targetRefs.all(t, t.kind == 'Service')",
        "message": "balance, breaker and limits are about a Service's endpoints: target the Service, not a route"
    },
    {
        "rule": "!has(self.rateLimits) || self.rateLimits.all(l, !has(l.shared) || !l.shared) || self.targetRefs.all(t, t.kind == 'Service')",
        "message": "only the proxies of a Service share a rate limit: target the Service, not a route"
    },
    {
        "rule": "!(has(self.retry) || has(self.rateLimits) || has(self.faults)) || self.targetRefs.all(t, !(t.kind in ['TLSRoute', 'TCPRoute']))",
        "message": "the connections of a TLSRoute or TCPRoute are not looked into: only timeouts can be said of them"
    },
]))]
pub struct TrafficPolicySpec {
    /// What the policy is about, in its own namespace.
    #[schemars(extend("minItems" = 1, "maxItems" = 16))]
    pub target_refs: Vec<TrafficTarget>,
    /// What it says.
    #[serde(flatten)]
    pub policy: Carried,
}

/// A Service or one of its ports, a route or one of its rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.group) || self.group == (self.kind == 'Service' ? '' : 'gateway.networking.k8s.io')",
        "message": "the group of routes is gateway.networking.k8s.io, that of Services is empty"
    },
]))]
pub struct TrafficTarget {
    /// The kind's group; may be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The kind.
    pub kind: TrafficTargetKind,
    /// Name of the object.
    #[schemars(extend("minLength" = 1, "maxLength" = 253))]
    pub name: String,
    /// Name of one port of the Service, or of one rule of the route. Default: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 253))]
    pub section_name: Option<String>,
}

/// What a policy can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TrafficTargetKind {
    /// Requests to a Service.
    Service,
    /// Requests that an HTTPRoute takes.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// Calls that a GRPCRoute takes.
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
    /// Connections that a TLSRoute takes; of them a policy says `timeouts.connect`.
    #[serde(rename = "TLSRoute")]
    TlsRoute,
    /// Connections that a TCPRoute takes; of them a policy says `timeouts.connect`.
    #[serde(rename = "TCPRoute")]
    TcpRoute,
}

impl TrafficTargetKind {
    /// The kind as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
        }
    }
}
