//! Who may do what: the control plane's rights, each with its reason, and the rights to look at golden metrics and to tap.

use crate::install::Names;
use crate::policies;
use mesh_api::names;
use serde_json::{Value, json};

/// ClusterRole that lets its subjects read golden metrics and policies; aggregated into `view`, `edit` and `admin`.
pub const VIEWER_ROLE: &str = "mesh-viewer";
/// ClusterRole that lets its subjects write policies; aggregated into `edit` and `admin`, as network policies are.
pub const EDITOR_ROLE: &str = "mesh-editor";

/// ClusterRole that lets its subjects tap requests and connections too. Aggregated into nothing: what requests look like
/// is for those whom somebody trusts with it.
pub const TAPPER_ROLE: &str = "mesh-tapper";
/// ClusterRole that adds the beginning of bodies to a tap.
pub const TAPPER_BODIES_ROLE: &str = "mesh-tapper-bodies";
/// ClusterRole that adds secret header fields to a tap.
pub const TAPPER_SECRETS_ROLE: &str = "mesh-tapper-secrets";

const GATEWAY_API: &str = "gateway.networking.k8s.io";
const ROUTES: [&str; 4] = ["httproutes", "grpcroutes", "tlsroutes", "tcproutes"];

/// All roles and bindings, in the order of applying.
pub(crate) fn objects(names: &Names<'_>) -> Vec<Value> {
    let control = names.cluster;
    let subject = json!([{ "kind": "ServiceAccount", "name": names::CONTROL_NAME, "namespace": names.namespace }]);
    let binding = |kind: &str, role_kind: &str, role: &str, metadata: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": kind,
            "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role },
            "subjects": subject,
        })
    };
    vec![
        cluster_role(names),
        viewer_role(names),
        editor_role(names),
        observer_role(names, TAPPER_ROLE, &["workloads", "workloads/golden", "workloads/tap"]),
        observer_role(names, TAPPER_BODIES_ROLE, &["workloads/tapbodies"]),
        observer_role(names, TAPPER_SECRETS_ROLE, &["workloads/tapsecrets"]),
        binding("ClusterRoleBinding", "ClusterRole", control, names.cluster_metadata(control)),
        role(names),
        binding("RoleBinding", "Role", names::CONTROL_NAME, names.metadata(names::CONTROL_NAME)),
        // The API server tells there how it signs the requests it passes on to aggregated APIs.
        binding(
            "RoleBinding",
            "Role",
            "extension-apiserver-authentication-reader",
            names.metadata_in("kube-system", &format!("{control}-authentication-reader")),
        ),
    ]
}

/// The resources of all kinds of ours, or a subresource of each.
fn plurals(subresource: &str) -> Vec<String> {
    policies::KINDS.iter().map(|kind| format!("{}{subresource}", kind.plural)).collect()
}

fn rule(groups: &[&str], resources: &[impl AsRef<str>], verbs: &[&str]) -> Value {
    let resources: Vec<&str> = resources.iter().map(AsRef::as_ref).collect();
    json!({ "apiGroups": groups, "resources": resources, "verbs": verbs })
}

fn named(group: &str, resource: &str, name: &str, verbs: &[&str]) -> Value {
    json!({ "apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": verbs })
}

fn cluster_role(names: &Names<'_>) -> Value {
    let read = ["get", "list", "watch"];
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": names.cluster_metadata(names.cluster),
        "rules": [
            // The world: where traffic can go. (Who owns a pod follows from the pod's own labels and references.)
            rule(&[""], &["services", "pods", "namespaces", "nodes"], &read),
            rule(&["discovery.k8s.io"], &["endpointslices"], &read),
            // Keys that tokens are signed with, where access policies name them. (Secrets are for whoever owns them to grant.)
            rule(&[""], &["configmaps"], &["get"]),
            // What users decide about traffic, and what is said of it there.
            rule(&[policies::GROUP], &plurals(""), &read),
            rule(&[policies::GROUP], &plurals("/status"), &["patch"]),
            // Where routes send requests, and what lets them.
            rule(&[GATEWAY_API], &[&ROUTES[..], &["referencegrants"]].concat(), &read),
            rule(&["gateway.networking.x-k8s.io"], &["xbackendtrafficpolicies"], &read),
            // What became of each route.
            rule(&[GATEWAY_API], &ROUTES.map(|route| format!("{route}/status")).each_ref().map(String::as_str), &["patch"]),
            // Identity: whose token is it; observe API: may this user look.
            rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
            rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
            // Its own serving certificate, told to those who call it.
            named(
                "admissionregistration.k8s.io",
                "mutatingwebhookconfigurations",
                crate::install::WEBHOOK_NAME,
                &["get", "patch"],
            ),
            named(
                "admissionregistration.k8s.io",
                "validatingwebhookconfigurations",
                crate::install::VALIDATOR_NAME,
                &["get", "patch"],
            ),
            named("apiregistration.k8s.io", "apiservices", &crate::install::api_service_name(), &["get", "patch"]),
            // Why a pod was refused or left unmeshed.
            rule(&[""], &["events"], &["create"]),
        ],
    })
}

fn viewer_role(names: &Names<'_>) -> Value {
    let mut metadata = names.cluster_metadata(VIEWER_ROLE);
    for role in ["view", "edit", "admin"] {
        metadata["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{role}")] = "true".into();
    }
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": metadata,
        "rules": [
            rule(&[names::OBSERVE_GROUP], &["workloads", "workloads/golden"], &["get", "list"]),
            rule(&[policies::GROUP], &plurals(""), &["get", "list", "watch"]),
        ],
    })
}

fn editor_role(names: &Names<'_>) -> Value {
    let mut metadata = names.cluster_metadata(EDITOR_ROLE);
    for role in ["edit", "admin"] {
        metadata["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{role}")] = "true".into();
    }
    let write = ["create", "update", "patch", "delete", "deletecollection"];
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": metadata,
        "rules": [rule(&[policies::GROUP], &plurals(""), &write)],
    })
}

fn observer_role(names: &Names<'_>, name: &str, resources: &[&str]) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": names.cluster_metadata(name),
        "rules": [rule(&[names::OBSERVE_GROUP], resources, &["get", "watch"])],
    })
}

fn role(names: &Names<'_>) -> Value {
    use crate::install::{ISSUER_SECRET, WEBHOOK_SECRET};
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": names.metadata(names::CONTROL_NAME),
        "rules": [
            named("", "secrets", ISSUER_SECRET, &["get", "list", "watch"]),
            named("", "secrets", WEBHOOK_SECRET, &["get", "list", "watch", "update", "patch"]),
            // A name cannot be demanded of what does not exist yet.
            rule(&[""], &["secrets"], &["create"]),
            rule(&["coordination.k8s.io"], &["leases"], &["create"]),
            named("coordination.k8s.io", "leases", names::CONTROL_NAME, &["get", "list", "watch", "update", "patch"]),
        ],
    })
}
