//! AccessPolicy: who may call whom.

use super::PolicyStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
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
pub struct AccessPolicySpec {
    /// Which workloads of the namespace the policy is about; all unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<AccessTarget>,
    /// What happens to callers that match one of the rules.
    #[serde(default)]
    pub action: Action,
    /// What the policy is about: a call matches if it matches one of these. An `Allow` policy with a rule that nobody
    /// matches lets nobody in.
    #[schemars(extend("minItems" = 1, "maxItems" = 32))]
    pub rules: Vec<AccessClause>,
}

/// Workloads: by kind and name, by labels, or those behind a Service.
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
    /// Name of the workload or Service, in the policy's namespace.
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
}

impl TargetKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [TargetKind; 8] = [
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::ReplicaSet,
        Self::Job,
        Self::CronJob,
        Self::Pod,
        Self::Service,
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
