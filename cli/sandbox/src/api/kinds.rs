//! The one list of resources the API serves: built-in kinds here, custom ones added from CRDs at run time.

use serde_json::Value;
use std::sync::Arc;

/// A served resource: everything discovery, storage, tables and validation need to know of it.
#[derive(Debug, Clone)]
pub struct Resource {
    /// API group; empty for core.
    pub group: String,
    /// Served version.
    pub version: String,
    /// Kind, `Deployment`.
    pub kind: String,
    /// Plural, lower case, `deployments`.
    pub plural: String,
    /// Singular, `deployment`.
    pub singular: String,
    /// Short names, `deploy`.
    pub short_names: Vec<String>,
    /// Categories, `all`.
    pub categories: Vec<String>,
    /// True if its objects live in namespaces.
    pub namespaced: bool,
    /// Subresources served: `status`, `scale`, `log`, ….
    pub subresources: Vec<String>,
    /// For custom resources: the version's entry of the CRD (`schema`, `additionalPrinterColumns`, `subresources`).
    pub custom: Option<Arc<Value>>,
}

/// Verbs of an ordinary resource, in the order discovery lists them.
const ALL_VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Resource {
    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
    /// `deployments.apps`, as in error messages.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }
    /// `Deployment.apps`, as in messages about invalid objects.
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }
    /// Name of the store's collection; all versions share it, and both kinds of events are one.
    pub fn collection(&self) -> String {
        if self.group == "events.k8s.io" { "events".to_owned() } else { self.qualified() }
    }
    /// What may be done with it. Reviews can only be created and are never stored.
    pub fn verbs(&self) -> &'static [&'static str] {
        match self.group.as_str() {
            "authentication.k8s.io" | "authorization.k8s.io" => &["create"],
            _ => ALL_VERBS,
        }
    }
    /// True if it serves this subresource.
    pub fn has(&self, subresource: &str) -> bool {
        self.subresources.iter().any(|s| s == subresource)
    }
    /// True if `metadata.generation` counts changes of its desired state.
    pub fn counts_generations(&self) -> bool {
        self.custom.is_some()
            || matches!(
                self.group.as_str(),
                "apps"
                    | "batch"
                    | "policy"
                    | "networking.k8s.io"
                    | "admissionregistration.k8s.io"
                    | "apiextensions.k8s.io"
                    | "scheduling.k8s.io"
                    | "discovery.k8s.io"
            ) && self.plural != "controllerrevisions"
            || self.group.is_empty() && self.plural == "pods"
    }
}

/// One row of the table of built-in resources.
struct BuiltIn {
    group_version: &'static str,
    kind: &'static str,
    plural: &'static str,
    /// Space separated short names.
    short: &'static str,
    namespaced: bool,
    /// Space separated subresources.
    subresources: &'static str,
}

const fn row(
    group_version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    namespaced: bool,
    subresources: &'static str,
) -> BuiltIn {
    BuiltIn { group_version, kind, plural, short, namespaced, subresources }
}

/// Lives in namespaces.
const NS: bool = true;
/// Belongs to the cluster as a whole.
const CLUSTER: bool = false;

const POD_SUBRESOURCES: &str = "attach binding ephemeralcontainers eviction exec log portforward proxy resize status";

#[rustfmt::skip]
const BUILT_IN: &[BuiltIn] = &[
    row("v1", "ConfigMap", "configmaps", "cm", NS, ""),
    row("v1", "Endpoints", "endpoints", "ep", NS, ""),
    row("v1", "Event", "events", "ev", NS, ""),
    row("v1", "LimitRange", "limitranges", "limits", NS, ""),
    row("v1", "Namespace", "namespaces", "ns", CLUSTER, "finalize status"),
    row("v1", "Node", "nodes", "no", CLUSTER, "proxy status"),
    row("v1", "PersistentVolumeClaim", "persistentvolumeclaims", "pvc", NS, "status"),
    row("v1", "PersistentVolume", "persistentvolumes", "pv", CLUSTER, "status"),
    row("v1", "Pod", "pods", "po", NS, POD_SUBRESOURCES),
    row("v1", "ResourceQuota", "resourcequotas", "quota", NS, "status"),
    row("v1", "Secret", "secrets", "", NS, ""),
    row("v1", "ServiceAccount", "serviceaccounts", "sa", NS, "token"),
    row("v1", "Service", "services", "svc", NS, "proxy status"),
    row("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", "", CLUSTER, ""),
    row("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", "", CLUSTER, ""),
    row("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", "crd crds", CLUSTER, "status"),
    row("apiregistration.k8s.io/v1", "APIService", "apiservices", "", CLUSTER, "status"),
    row("apps/v1", "ControllerRevision", "controllerrevisions", "", NS, ""),
    row("apps/v1", "DaemonSet", "daemonsets", "ds", NS, "status"),
    row("apps/v1", "Deployment", "deployments", "deploy", NS, "scale status"),
    row("apps/v1", "ReplicaSet", "replicasets", "rs", NS, "scale status"),
    row("apps/v1", "StatefulSet", "statefulsets", "sts", NS, "scale status"),
    row("authentication.k8s.io/v1", "SelfSubjectReview", "selfsubjectreviews", "", CLUSTER, ""),
    row("authentication.k8s.io/v1", "TokenReview", "tokenreviews", "", CLUSTER, ""),
    row("authorization.k8s.io/v1", "LocalSubjectAccessReview", "localsubjectaccessreviews", "", NS, ""),
    row("authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", "", CLUSTER, ""),
    row("authorization.k8s.io/v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", "", CLUSTER, ""),
    row("authorization.k8s.io/v1", "SubjectAccessReview", "subjectaccessreviews", "", CLUSTER, ""),
    row("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", "hpa", NS, "status"),
    row("batch/v1", "CronJob", "cronjobs", "cj", NS, "status"),
    row("batch/v1", "Job", "jobs", "", NS, "status"),
    row("coordination.k8s.io/v1", "Lease", "leases", "", NS, ""),
    row("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", "", NS, ""),
    row("events.k8s.io/v1", "Event", "events", "ev", NS, ""),
    row("networking.k8s.io/v1", "IngressClass", "ingressclasses", "", CLUSTER, ""),
    row("networking.k8s.io/v1", "Ingress", "ingresses", "ing", NS, "status"),
    row("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", "netpol", NS, ""),
    row("node.k8s.io/v1", "RuntimeClass", "runtimeclasses", "", CLUSTER, ""),
    row("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", "pdb", NS, "status"),
    row("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", "", CLUSTER, ""),
    row("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles", "", CLUSTER, ""),
    row("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", "", NS, ""),
    row("rbac.authorization.k8s.io/v1", "Role", "roles", "", NS, ""),
    row("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", "pc", CLUSTER, ""),
    row("storage.k8s.io/v1", "StorageClass", "storageclasses", "sc", CLUSTER, ""),
];

/// What `kubectl get all` lists.
const IN_CATEGORY_ALL: &[&str] = &[
    "pods",
    "services",
    "daemonsets",
    "deployments",
    "replicasets",
    "statefulsets",
    "horizontalpodautoscalers",
    "cronjobs",
    "jobs",
];

impl BuiltIn {
    fn resource(&self) -> Resource {
        let (group, version) = self.group_version.split_once('/').unwrap_or(("", self.group_version));
        let mut categories = Vec::new();
        if IN_CATEGORY_ALL.contains(&self.plural) {
            categories.push("all".to_owned());
        }
        if matches!(group, "apiextensions.k8s.io" | "apiregistration.k8s.io" | "admissionregistration.k8s.io") {
            categories.push("api-extensions".to_owned());
        }
        Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
            singular: self.kind.to_lowercase(),
            short_names: self.short.split_whitespace().map(str::to_owned).collect(),
            categories,
            namespaced: self.namespaced,
            subresources: self.subresources.split_whitespace().map(str::to_owned).collect(),
            custom: None,
        }
    }
}

/// The resources served at one moment: built-in ones, then custom ones.
#[derive(Debug, Clone)]
pub struct Registry {
    resources: Vec<Arc<Resource>>,
}

impl Registry {
    /// The built-in resources alone.
    pub fn built_in() -> Self {
        Self { resources: BUILT_IN.iter().map(|row| Arc::new(row.resource())).collect() }
    }

    /// The built-in resources and these custom ones.
    pub fn with_custom(custom: impl IntoIterator<Item = Resource>) -> Self {
        let mut registry = Self::built_in();
        registry.resources.extend(custom.into_iter().map(Arc::new));
        registry
    }

    /// Everything served, in the order discovery shows it.
    pub fn all(&self) -> &[Arc<Resource>] {
        &self.resources
    }

    /// The resource at `group/version/plural`.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.resources.iter().find(|r| r.plural == plural && r.group == group && r.version == version)
    }

    /// The resource of `plural` in `group`, whatever its version.
    pub fn find_any_version(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.resources.iter().find(|r| r.plural == plural && r.group == group)
    }

    /// True if the group version is served by the API itself.
    pub fn serves(&self, group: &str, version: &str) -> bool {
        self.resources.iter().any(|r| r.group == group && r.version == version)
    }

    /// Groups (never empty: core is left out) with their versions, preferred first.
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for resource in self.resources.iter().filter(|r| !r.group.is_empty()) {
            let index = groups.iter().position(|(group, _)| *group == resource.group).unwrap_or_else(|| {
                groups.push((resource.group.clone(), Vec::new()));
                groups.len() - 1
            });
            if !groups[index].1.contains(&resource.version) {
                groups[index].1.push(resource.version.clone());
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|v| std::cmp::Reverse(version_priority(v)));
        }
        groups
    }
}

/// Orders versions as Kubernetes prefers them: stable before beta before alpha, newer before older.
fn version_priority(version: &str) -> (u8, u32, u32) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..digits].parse().ok()?;
        let stage = &rest[digits..];
        Some(if stage.is_empty() {
            (3, major, 0)
        } else if let Some(minor) = stage.strip_prefix("beta") {
            (2, major, minor.parse().ok()?)
        } else {
            (1, major, stage.strip_prefix("alpha")?.parse().ok()?)
        })
    };
    parse().unwrap_or((0, 0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_by_group_version_and_plural() {
        let registry = Registry::built_in();
        let deployments = registry.find("apps", "v1", "deployments").unwrap();
        assert_eq!(deployments.qualified_kind(), "Deployment.apps");
        assert!(deployments.has("scale") && deployments.counts_generations());
        assert!(registry.find("apps", "v2", "deployments").is_none());
        assert_eq!(registry.find("events.k8s.io", "v1", "events").unwrap().collection(), "events");
    }

    #[test]
    fn prefers_stable_and_new_versions() {
        let mut versions = vec!["v1alpha1", "v1beta2", "v2", "v1", "foo", "v1beta1"];
        versions.sort_by_key(|v| std::cmp::Reverse(version_priority(v)));
        assert_eq!(versions, ["v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }
}
