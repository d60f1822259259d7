//! CNI mode: what an install adds so that the node sets every pod's redirect, and meshed pods need no capability.
//!
//! One pod on every node puts the plugin (`mesh-proxy` under the name `mesh-cni`) behind the cluster's own network plugin
//! and tells it what each new pod needs. It lives in `kube-system`, beside the cluster's network plugin: it has to write
//! to the node, which the control plane's namespace forbids (Pod Security `restricted`), and no webhook holds up pods
//! there. It shares its node's network, so that it starts, and can repair, where no pod gets a network.

use crate::install::Names;
use crate::sidecar::resource_object;
use crate::terms::Terms;
use mesh_api::names;
use serde_json::{Value, json};

/// Where the agent lives.
pub const NAMESPACE: &str = "kube-system";
/// Its DaemonSet, service account and roles. There can be one in a cluster.
pub const NAME: &str = "mesh-cni";
/// Where the agent sees the node's directory of network configurations.
const CONF_MOUNT: &str = "/host/cni/conf";
/// Where it sees the node's directory of network plugins.
const BIN_MOUNT: &str = "/host/cni/bin";

/// All objects, in the order of applying.
pub(crate) fn objects(names: &Names<'_>, terms: &Terms) -> Vec<Value> {
    let metadata = || names.metadata_in(NAMESPACE, NAME);
    let rbac = "rbac.authorization.k8s.io";
    let bound = |kind: &str, role: &str, metadata: Value| {
        json!({
            "apiVersion": format!("{rbac}/v1"),
            "kind": kind,
            "metadata": metadata,
            "roleRef": { "apiGroup": rbac, "kind": role, "name": NAME },
            "subjects": [{ "kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE }],
        })
    };
    vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata() }),
        json!({
            "apiVersion": format!("{rbac}/v1"),
            "kind": "ClusterRole",
            "metadata": names.cluster_metadata(NAME),
            "rules": [
                // What does this pod need; which pods of this node lack their redirect. These are deleted, for whoever
                // owns them to make them anew.
                { "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "delete"] },
                { "apiGroups": [""], "resources": ["events"], "verbs": ["create"] },
            ],
        }),
        bound("ClusterRoleBinding", "ClusterRole", names.cluster_metadata(NAME)),
        json!({
            "apiVersion": format!("{rbac}/v1"),
            "kind": "Role",
            "metadata": metadata(),
            // Is the agent that stops being replaced, or is it gone for good and has to leave the node as it was.
            "rules": [
                { "apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": [NAME], "verbs": ["get"] },
            ],
        }),
        bound("RoleBinding", "Role", metadata()),
        daemon_set(names, terms),
    ]
}

fn daemon_set(names: &Names<'_>, terms: &Terms) -> Value {
    let mut metadata = names.metadata_in(NAMESPACE, NAME);
    metadata["labels"]["app.kubernetes.io/name"] = NAME.into();
    let labels = metadata["labels"].clone();
    let host =
        |name: &str, path: &Value| json!({ "name": name, "hostPath": { "path": path, "type": "DirectoryOrCreate" } });
    let mut pod = json!({
        "serviceAccountName": NAME,
        "priorityClassName": "system-node-critical",
        "nodeSelector": { "kubernetes.io/os": "linux" },
        // Every node: one without an agent starts no pod.
        "tolerations": [{ "operator": "Exists" }],
        "hostNetwork": true,
        // The end takes one question to the API server.
        "terminationGracePeriodSeconds": 15,
        "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
        "initContainers": [install_container(terms)],
        "containers": [agent_container(terms)],
        "volumes": [
            host("cni-bin", &terms.cni.bin_dir),
            host("cni-conf", &terms.cni.conf_dir),
            host("run", &json!(names::CNI_RUN_DIR)),
        ],
    });
    let (secrets_given, secrets) = &terms.pull_secrets;
    secrets_given.put(&mut pod, "imagePullSecrets", secrets.clone());
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": metadata,
        "spec": {
            "selector": {
                "matchLabels": { "app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "meshctl" },
            },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1 } },
            "template": {
                "metadata": { "labels": labels, "annotations": { names::INJECT: "disabled" } },
                "spec": pod,
            },
        },
    })
}

/// Puts the plugin into the node's directory of plugins: its program is that of the proxy.
fn install_container(terms: &Terms) -> Value {
    json!({
        "name": "mesh-cni-install",
        "image": terms.cni.proxy_image,
        "imagePullPolicy": terms.cni.proxy_pull_policy,
        "args": ["cni-install", "--to", BIN_MOUNT],
        "resources": resource_object(&crate::config::ProxyResources::default()),
        "securityContext": security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{ "name": "cni-bin", "mountPath": BIN_MOUNT }],
    })
}

fn agent_container(terms: &Terms) -> Value {
    let ready = json!({
        "exec": { "command": ["/usr/local/bin/mesh-control", "cni", "--ready"] },
        "periodSeconds": 10,
        "timeoutSeconds": 5,
        "failureThreshold": 3,
    });
    json!({
        "name": NAME,
        "image": terms.image,
        "imagePullPolicy": terms.pull_policy,
        "args": ["cni"],
        "env": [
            { "name": "MESH_NODE_NAME", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
            { "name": "MESH_CNI_BIN_DIR", "value": BIN_MOUNT },
            { "name": "MESH_CNI_CONF_DIR", "value": CONF_MOUNT },
            { "name": "MESH_CNI_EXCLUDED_NAMESPACES", "value": terms.cni.excluded_namespaces },
            { "name": "MESH_LOG", "value": terms.log },
        ],
        "readinessProbe": ready,
        "resources": resource_object(&crate::config::ProxyResources::default()),
        "securityContext": security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            { "name": "cni-bin", "mountPath": BIN_MOUNT },
            { "name": "cni-conf", "mountPath": CONF_MOUNT },
            { "name": "run", "mountPath": names::CNI_RUN_DIR },
        ],
    })
}

/// Root, because the node's directories are root's; and nothing that root could do beyond that.
fn security() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsGroup": 0,
        "runAsNonRoot": false,
        "runAsUser": 0,
        // Where SELinux is enforced, a confined process writes to no directory of the node.
        "seLinuxOptions": { "type": "spc_t" },
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}
