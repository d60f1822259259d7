//! EgressPolicy: what may leave the cluster.

use super::PolicyStatus;
use super::access_policy::{AccessTarget, TargetKind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use mesh_api::EgressDefault;
use mesh_api::access::Action;
use mesh_api::egress::Outside;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the workloads of the policy's namespace, or some of them, may call outside the cluster.
///
/// All policies that select a workload act together, by one rule: a matching `Deny` refuses; else a matching `Allow`
/// lets out; else the default decides: the strictest that one of these policies asks for, or, if none does, the annotation
/// `meshctl.dev/default-egress`, or the mesh's `proxy.default_egress`. `Audit` changes nothing; what it matches is
/// counted and logged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "meshctl.dev",
    version = "v1alpha1",
    kind = "EgressPolicy",
    plural = "egresspolicies",
    namespaced,
    category = "meshctl",
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "What the workloads of a namespace, or some of them, may call outside the cluster.",
    printcolumn = r#"{"name":"Action", "type":"string", "jsonPath":".spec.action"}"#,
    printcolumn = r#"{"name":"Default", "type":"string", "jsonPath":".spec.default"}"#,
    printcolumn = r#"{"name":"Target", "type":"string", "jsonPath":".spec.target.kind"}"#,
    printcolumn = r#"{"name":"Name", "type":"string", "jsonPath":".spec.target.name"}"#,
    printcolumn = r#"{"name":"Accepted", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.default) || (has(self.rules) && size(self.rules) > 0)",
    "message": "write rules, a default, or both"
}]))]
pub struct EgressPolicySpec {
    /// Which workloads of the namespace the policy is about; all unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<EgressTarget>,
    /// What happens to traffic that matches one of the rules.
    #[serde(default)]
    pub action: Action,
    /// What becomes of traffic that no rule of any policy is about; `deny` unless given for an `Allow` policy with rules,
    /// and whatever others say for a `Deny` or `Audit` policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<EgressDefault>,
    /// Destinations outside the cluster: traffic matches the policy if it matches one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub rules: Vec<Outside>,
}

impl EgressPolicySpec {
    /// The default that the policy asks for.
    pub fn wanted_default(&self) -> Option<EgressDefault> {
        let implied = self.action == Action::Allow && !self.rules.is_empty();
        self.default.or(implied.then_some(EgressDefault::Deny))
    }
}

/// Workloads: by kind and name, or by labels.
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
pub struct EgressTarget {
    /// What `name` is the name of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<WorkloadKind>,
    /// Name of the workload, in the policy's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 253))]
    pub name: Option<String>,
    /// Labels of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// A kind of workload, as [`TargetKind`] has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WorkloadKind {
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
}

impl From<WorkloadKind> for TargetKind {
    fn from(kind: WorkloadKind) -> Self {
        match kind {
            WorkloadKind::Deployment => Self::Deployment,
            WorkloadKind::StatefulSet => Self::StatefulSet,
            WorkloadKind::DaemonSet => Self::DaemonSet,
            WorkloadKind::ReplicaSet => Self::ReplicaSet,
            WorkloadKind::Job => Self::Job,
            WorkloadKind::CronJob => Self::CronJob,
            WorkloadKind::Pod => Self::Pod,
        }
    }
}

impl From<&EgressTarget> for AccessTarget {
    fn from(target: &EgressTarget) -> Self {
        let EgressTarget { kind, name, selector } = target;
        Self { kind: kind.map(Into::into), name: name.clone(), selector: selector.clone() }
    }
}
