//! What happens to objects on their way in besides what their kind demands: built-in admission, then webhooks.

use super::kinds::Resource;
use super::service::Call;
use super::status::ApiError;
use super::{crd, defaults, timestamp, webhooks, write};
use serde_json::{Value, json};
use std::time::Duration;

/// What is done to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It is made.
    Create,
    /// It is changed.
    Update,
    /// It is removed.
    Delete,
}

impl Operation {
    /// As webhooks name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// How long a new pod waits for its namespace's service account, which a controller makes.
const SERVICE_ACCOUNT_WAIT: Duration = Duration::from_secs(1);
/// Where containers find their service account's token.
const TOKEN_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Completes an object: defaults, then what built-in admission and mutating webhooks add.
pub(super) async fn admit(
    call: &Call,
    operation: Operation,
    old: Option<&Value>,
    object: &mut Value,
) -> Result<(), ApiError> {
    defaults::apply_defaults(&call.resource, object);
    let is_pod = call.resource.group.is_empty() && call.resource.plural == "pods";
    if operation == Operation::Create && is_pod && call.info.subresource.is_empty() {
        service_account(call, object).await?;
        priority(call, object)?;
        tolerations(object);
    }
    let identity = object["metadata"].clone();
    if webhooks::mutate(call, operation, old, object).await? {
        for field in ["name", "namespace", "uid"] {
            if object["metadata"][field] != identity[field] {
                let name = identity["name"].as_str().unwrap_or_default();
                let why = format!("a mutating webhook may not change metadata.{field}");
                return Err(ApiError::internal(format!(
                    "Internal error occurred: {} \"{name}\": {why}",
                    call.resource.kind
                )));
            }
        }
        crd::prune(&call.resource, object);
        defaults::apply_defaults(&call.resource, object);
    }
    if crd::is_definition(&call.resource) {
        crd::complete(&call.api, object);
        crd::check(object)?;
    }
    Ok(())
}

/// Has the final object judged: by what this API can do, then by validating webhooks.
pub(super) async fn check(
    call: &Call,
    operation: Operation,
    old: Option<&Value>,
    object: Option<&Value>,
) -> Result<(), ApiError> {
    if call.resource.group == "admissionregistration.k8s.io"
        && let Some(object) = object
    {
        webhooks::check_configuration(call, object)?;
    }
    webhooks::validate(call, operation, old, object).await
}

/// Refuses new objects in namespaces that don't exist or are going away.
pub(super) fn namespace_open(call: &Call, object: &Value) -> Result<(), ApiError> {
    if !call.resource.namespaced {
        return Ok(());
    }
    let name = call.namespace();
    let Some(namespace) = call.api.store().get("namespaces", "", name) else {
        return Err(ApiError::not_found("namespaces", name));
    };
    if namespace["metadata"]["deletionTimestamp"].is_string() {
        let resource = call.resource.qualified();
        let object = object["metadata"]["name"].as_str().unwrap_or_default();
        let why = format!("namespace {name} is being terminated");
        let mut error = ApiError::forbidden(format!(
            "{resource} \"{object}\" is forbidden: unable to create new content in namespace {name} because it is being terminated"
        ));
        error.causes.push(("NamespaceTerminating".to_owned(), "metadata.namespace".to_owned(), why));
        return Err(error);
    }
    Ok(())
}

/// The state new objects of some kinds begin in.
pub(super) fn initial_state(resource: &Resource, object: &mut Value) {
    if !resource.group.is_empty() {
        return;
    }
    match resource.plural.as_str() {
        "pods" => {
            let class = qos_class(&object["spec"]);
            object["status"] = json!({"phase": "Pending", "qosClass": class});
        }
        "namespaces" => {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            object["spec"]["finalizers"] = json!(["kubernetes"]);
            object["status"] = json!({"phase": "Active"});
        }
        "persistentvolumeclaims" => object["status"] = json!({"phase": "Pending"}),
        "services" => object["status"] = json!({"loadBalancer": {}}),
        _ => {}
    }
}

/// How well a pod's needs are guaranteed, from its containers' requests and limits.
fn qos_class(spec: &Value) -> &'static str {
    let containers = ["containers", "initContainers"];
    let mut all = containers.iter().flat_map(|list| spec[*list].as_array().into_iter().flatten()).peekable();
    let (mut any, mut guaranteed) = (false, all.peek().is_some());
    for container in all {
        let (limits, requests) = (&container["resources"]["limits"], &container["resources"]["requests"]);
        for resource in ["cpu", "memory"] {
            let (limit, request) = (&limits[resource], &requests[resource]);
            any |= !limit.is_null() || !request.is_null();
            guaranteed &= !limit.is_null() && (request.is_null() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Gives a pod its service account and the volume that holds its token.
async fn service_account(call: &Call, pod: &mut Value) -> Result<(), ApiError> {
    let spec = &mut pod["spec"];
    let named = spec["serviceAccountName"].as_str().or(spec["serviceAccount"].as_str()).filter(|name| !name.is_empty());
    let name = named.unwrap_or("default").to_owned();
    spec["serviceAccountName"] = name.clone().into();
    spec["serviceAccount"] = name.clone().into();
    let account = find_account(call, &name).await.ok_or_else(|| {
        let namespace = call.namespace();
        let pod = pod["metadata"]["name"].as_str().unwrap_or_default();
        ApiError::forbidden(format!(
            "pods \"{pod}\" is forbidden: error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
        ))
    })?;
    let own = pod["spec"]["automountServiceAccountToken"].as_bool();
    if own.or_else(|| account["automountServiceAccountToken"].as_bool()).unwrap_or(true) {
        mount_token(pod);
    }
    let secrets = &account["imagePullSecrets"];
    if pod["spec"]["imagePullSecrets"].is_null() && secrets.as_array().is_some_and(|list| !list.is_empty()) {
        pod["spec"]["imagePullSecrets"] = secrets.clone();
    }
    Ok(())
}

async fn find_account(call: &Call, name: &str) -> Option<super::store::Object> {
    let store = call.api.store();
    let mut accounts = store.watch("serviceaccounts", store.revision());
    let deadline = tokio::time::Instant::now() + SERVICE_ACCOUNT_WAIT;
    loop {
        if let Some(account) = store.get("serviceaccounts", call.namespace(), name) {
            return Some(account);
        }
        tokio::time::timeout_at(deadline, accounts.next()).await.ok()?.ok()?;
    }
}

/// Projects token, authority and namespace into every container that has nothing at that place.
fn mount_token(pod: &mut Value) {
    let mounted = |container: &Value| {
        container["volumeMounts"].as_array().into_iter().flatten().any(|mount| mount["mountPath"] == TOKEN_MOUNT)
    };
    let volume = format!("kube-api-access-{}", write::name_suffix());
    let mut used = false;
    for list in ["initContainers", "containers"] {
        // `get_mut`, because indexing would leave a null where there are none.
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter(|container| !mounted(container)) {
            if !container["volumeMounts"].is_array() {
                container["volumeMounts"] = json!([]);
            }
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_MOUNT}));
                used = true;
            }
        }
    }
    if !used {
        return;
    }
    if !pod["spec"]["volumes"].is_array() {
        pod["spec"]["volumes"] = json!([]);
    }
    if let Some(volumes) = pod["spec"]["volumes"].as_array_mut() {
        volumes.push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
            ]}},
        ]}}));
    }
}

fn priority(call: &Call, pod: &mut Value) -> Result<(), ApiError> {
    let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let (value, policy) = match name.as_str() {
        "" => (json!(0), json!("PreemptLowerPriority")),
        name => {
            let Some(class) = call.api.store().get("priorityclasses.scheduling.k8s.io", "", name) else {
                let pod = pod["metadata"]["name"].as_str().unwrap_or_default();
                return Err(ApiError::forbidden(format!(
                    "pods \"{pod}\" is forbidden: no PriorityClass with name {name} was found"
                )));
            };
            let policy = &class["preemptionPolicy"];
            (class["value"].clone(), if policy.is_null() { json!("PreemptLowerPriority") } else { policy.clone() })
        }
    };
    pod["spec"]["priority"] = value;
    pod["spec"]["preemptionPolicy"] = policy;
    Ok(())
}

/// Pods tolerate a node's short absence.
fn tolerations(pod: &mut Value) {
    if !pod["spec"]["tolerations"].is_array() {
        pod["spec"]["tolerations"] = json!([]);
    }
    let Some(tolerations) = pod["spec"]["tolerations"].as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covers = |toleration: &Value| {
            let effect = toleration["effect"].as_str().unwrap_or_default();
            (toleration["key"] == key || toleration["key"].is_null()) && matches!(effect, "" | "NoExecute")
        };
        if !tolerations.iter().any(covers) {
            tolerations
                .push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
}

/// Marks an object with the time it was seeded; used for objects every cluster begins with.
pub(super) fn seed_metadata(object: &mut Value) {
    object["metadata"]["uid"] = super::uid().into();
    object["metadata"]["creationTimestamp"] = timestamp().into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classifies_quality_of_service() {
        let both = json!({"cpu": "1", "memory": "1Mi"});
        let cases = [
            (json!({"containers": [{}]}), "BestEffort"),
            (json!({"containers": [{"resources": {"limits": both}}]}), "Guaranteed"),
            (json!({"containers": [{"resources": {"limits": both, "requests": {"cpu": "2"}}}]}), "Burstable"),
            (json!({"containers": [{"resources": {"limits": both}}, {}]}), "Burstable"),
        ];
        for (spec, expect) in cases {
            assert_eq!(qos_class(&spec), expect, "{spec}");
        }
    }

    #[test]
    fn mounts_tokens_where_nothing_is_mounted() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"mountPath": TOKEN_MOUNT}]}]}});
        mount_token(&mut pod);
        let volume = &pod["spec"]["volumes"][0]["name"];
        assert_eq!(&pod["spec"]["containers"][0]["volumeMounts"][0]["name"], volume);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
    }
}
