//! AccessPolicy: who may call whom.

use super::PolicyStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use mesh_api::Millis;
use mesh_api::access::{Action, Operation, Source};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may call the workloads of the policy's namespace, or some of them.
///
/// All policies that select a port of a workload act together, by one rule: a matching `Deny` refuses; else a matching
/// `Allow` lets in; else, if any `Allow` selects the port, the call is refused; else the default decides (the
/// annotation `meshctl.dev/default-access`, or the mesh's `proxy.default_access`). `Audit` changes nothing; what it
/// matches is counted and logged. Health probes that the pod declares need no rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "meshctl.dev",
    version = "v1alpha1",
    kind = "AccessPolicy",
    plural = "accesspolicies",
    namespaced,
    category = "meshctl",
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "Who may call the workloads of a namespace, or some of them.",
    printcolumn = r#"{"name":"Action", "type":"string", "jsonPath":".spec.action"}"#,
    printcolumn = r#"{"name":"Target", "type":"string", "jsonPath":".spec.target.kind"}"#,
    printcolumn = r#"{"name":"Name", "type":"string", "jsonPath":".spec.target.name"}"#,
    printcolumn = r#"{"name":"Accepted", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.jwt) || !has(self.action) || self.action == 'Allow'",
        "message": "only Allow policies ask for tokens"
    },
    {
        "rule": "!has(self.external) || !has(self.action) || self.action == 'Allow'",
        "message": "only Allow policies ask a service"
    },
    {
        "rule": "has(self.jwt) || !self.rules.exists(r, has(r.from) && r.from.exists(f, has(f.claims)))",
        "message": "claims are those of a token: write jwt, too"
    },
]))]
pub struct AccessPolicySpec {
    /// Which workloads of the namespace the policy is about; all unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<AccessTarget>,
    /// What happens to callers that match one of the rules.
    #[serde(default)]
    pub action: Action,
    /// Callers must show a token (JWT, RFC 7519) that counts, beside what the rules ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<JwtSpec>,
    /// A service that must let calls in, too, beside what the rules ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalSpec>,
    /// What the policy is about: a call matches if it matches one of these. An `Allow` policy with a rule that nobody
    /// matches lets nobody in.
    #[schemars(extend("minItems" = 1, "maxItems" = 32))]
    pub rules: Vec<AccessClause>,
}

/// A service that is asked over HTTP about each request: it lets a request in by a status from 200 to 299.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalSpec {
    /// The service; it must have a cluster IP.
    pub service: ExternalService,
    /// The path that is asked for; `/` unless given. What is asked about stands in `x-forwarded-method`,
    /// `x-forwarded-host`, `x-forwarded-uri`, `x-forwarded-for` and `x-mesh-caller` (the SPIFFE identity).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 1024, "pattern" = "^/"))]
    pub path: Option<String>,
    /// The method; `GET` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 32, "pattern" = "^[A-Z-]+$"))]
    pub method: Option<String>,
    /// How long an answer may take, at most 30 seconds; `500ms` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Millis>,
    /// `true`: calls are let in while the service gives no answer, or one of 500 and above. They are refused unless given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fail_open: bool,
    /// Header fields of the request that the service gets to see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 32, "items" = {"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[-!#$%&'*+.^_`|~0-9A-Za-z]+$"}))]
    pub headers: Vec<String>,
    /// Header fields of its answer that the request carries on; what the caller sends under these names is taken off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 32, "items" = {"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[-!#$%&'*+.^_`|~0-9A-Za-z]+$"}))]
    pub response_headers: Vec<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalService {
    /// Its name.
    #[schemars(extend("minLength" = 1, "maxLength" = 253))]
    pub name: String,
    /// Its namespace; that of the policy unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 63))]
    pub namespace: Option<String>,
    /// Its port.
    #[schemars(extend("minimum" = 1, "maximum" = 65535))]
    pub port: u16,
}

/// Whose tokens count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JwtSpec {
    /// The claim `iss`.
    #[schemars(extend("minLength" = 1, "maxLength" = 1024))]
    pub issuer: String,
    /// One of these must be in the claim `aud`; any audience will do unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 16, "items" = {"type": "string", "minLength": 1, "maxLength": 1024}))]
    pub audiences: Vec<String>,
    /// Where the issuer's public keys are, as a JWK set (RFC 7517).
    pub keys: KeySource,
    /// By how many seconds clocks may differ; 60 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 0, "maximum" = 3600))]
    pub leeway_seconds: Option<u16>,
    /// The header field that holds nothing but the token; `authorization: Bearer TOKEN` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 256, "pattern" = "^[-!#$%&'*+.^_`|~0-9A-Za-z]+$"))]
    pub header: Option<String>,
}

/// An object with a JWK set, in the policy's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.configMap) != has(self.secret)",
    "message": "write configMap or secret"
}]))]
pub struct KeySource {
    /// In a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<KeyRef>,
    /// In a Secret, which the control plane must be allowed to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<KeyRef>,
}

/// A key of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// Name of the object.
    #[schemars(extend("minLength" = 1, "maxLength" = 253))]
    pub name: String,
    /// The key in its data; `jwks.json` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 253))]
    pub key: Option<String>,
}

impl KeyRef {
    /// The key in its data.
    pub fn key(&self) -> &str {
        self.key.as_deref().unwrap_or("jwks.json")
    }
}

/// Workloads: by kind and name, by labels, or those behind a Service or a route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.kind) == has(self.name)",
        "message": "kind and name go together"
    },
    {
        "rule": "has(self.name) != has(self.selector)",
        "message": "write kind and name, or a selector; without target the policy is about the whole namespace"
    },
]))]
pub struct AccessTarget {
    /// What `name` is the name of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<TargetKind>,
    /// Name of the workload, Service or route, in the policy's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 253))]
    pub name: Option<String>,
    /// Labels of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// What a policy can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// A Deployment's pods.
    Deployment,
    /// A StatefulSet's pods.
    StatefulSet,
    /// A DaemonSet's pods.
    DaemonSet,
    /// A ReplicaSet's pods, if no Deployment owns it.
    ReplicaSet,
    /// A Job's pods, if no CronJob owns it.
    Job,
    /// The pods of a CronJob's Jobs.
    CronJob,
    /// One pod.
    Pod,
    /// The pods behind a Service, at its target ports; their other ports are none of the policy's business.
    Service,
    /// Requests that match a rule of an HTTPRoute, at the pods behind its parent Services and its backends.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// Calls that match a rule of a GRPCRoute, at the pods behind its parent Services and its backends.
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
}

impl TargetKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [TargetKind; 10] = [
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::ReplicaSet,
        Self::Job,
        Self::CronJob,
        Self::Pod,
        Self::Service,
        Self::HttpRoute,
        Self::GrpcRoute,
    ];

    /// The kind as workloads are named by: in lower case.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::StatefulSet => "statefulset",
            Self::DaemonSet => "daemonset",
            Self::ReplicaSet => "replicaset",
            Self::Job => "job",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Service => "service",
            Self::HttpRoute => "httproute",
            Self::GrpcRoute => "grpcroute",
        }
    }
}

/// Callers and what they call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessClause {
    /// Callers: whoever matches one of these; everybody unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 32))]
    pub from: Vec<Source>,
    /// What is called: whatever matches one of these; everything unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 32))]
    pub to: Vec<Operation>,
}
