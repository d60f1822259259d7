//! The scheduler: binds pods to the sandbox's one node, or says why it cannot.

use super::cache::{Cluster, Key};
use super::{Again, event};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::api::PatchParams;
use serde_json::json;
use std::time::Duration;

/// The scheduler's name in events and in `spec.schedulerName`.
const NAME: &str = "default-scheduler";

/// Who the scheduler is in `managedFields`.
const MANAGER: &str = "kube-scheduler";

/// True if the pod waits for a node and for us to find it.
pub(crate) fn is_unscheduled(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    pod.metadata.deletion_timestamp.is_none()
        && spec.is_some_and(|s| {
            s.node_name.is_none()
                && s.scheduler_name.as_deref().unwrap_or(NAME) == NAME
                && s.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        })
}

pub(crate) async fn reconcile(cluster: &mut Cluster, key: &Key) -> kube::Result<Again> {
    let Some(pod) = cluster.pods.get(key).filter(|pod| is_unscheduled(pod)).cloned() else { return Ok(None) };
    let nodes: Vec<&Node> = cluster.nodes.iter().collect();
    match choose(&pod, &nodes) {
        Ok(node) => {
            let node = node.metadata.name.clone().unwrap_or_default();
            let binding = json!({
                "apiVersion": "v1", "kind": "Binding", "metadata": {"name": key.1, "namespace": key.0},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node},
            });
            let path = format!("/api/v1/namespaces/{}/pods/{}/binding?fieldManager={MANAGER}", key.0, key.1);
            let request = http::Request::post(path)
                .header("content-type", "application/json")
                .body(binding.to_string().into_bytes())
                .map_err(kube::Error::HttpError)?;
            cluster.client.request::<serde_json::Value>(request).await?;
            let message = format!("Successfully assigned {}/{} to {node}", key.0, key.1);
            event::normal(cluster, &pod, NAME, "Scheduled", message).await;
            Ok(None)
        }
        Err(why) => {
            let told = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
            if !told.clone().any(|c| c.type_ == "PodScheduled" && c.message.as_deref() == Some(&why)) {
                let condition = json!({"status": {"conditions": [{"type": "PodScheduled", "status": "False",
                    "reason": "Unschedulable", "message": why, "lastTransitionTime": jiff::Timestamp::now()}]}});
                let api: kube::Api<Pod> = kube::Api::namespaced(cluster.client.clone(), &key.0);
                let patch = kube::api::Patch::Strategic(&condition);
                let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
                api.patch_status(&key.1, &params, &patch).await?;
                event::warning(cluster, &pod, NAME, "FailedScheduling", why).await;
            }
            // A node that changes wakes us; this is for a node whose change was missed.
            Ok(Some(Duration::from_secs(30)))
        }
    }
}

/// The first node that will do, or why none will.
fn choose<'a>(pod: &Pod, nodes: &[&'a Node]) -> Result<&'a Node, String> {
    let total = nodes.len();
    let mut reasons: Vec<String> = Vec::new();
    for node in nodes {
        match obstacle(pod, node) {
            None => return Ok(node),
            Some(reason) => reasons.push(format!("1 {reason}")),
        }
    }
    if reasons.is_empty() {
        return Err("no nodes available to schedule pods".to_owned());
    }
    Err(format!("0/{total} nodes are available: {}.", reasons.join(", ")))
}

fn obstacle(pod: &Pod, node: &Node) -> Option<String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let labels = node.metadata.labels.clone().unwrap_or_default();
    if spec.node_selector.iter().flatten().any(|(name, value)| labels.get(name) != Some(value)) {
        return Some("node(s) didn't match Pod's node affinity/selector".to_owned());
    }
    let node_spec = node.spec.clone().unwrap_or_default();
    if node_spec.unschedulable == Some(true) {
        return Some("node(s) were unschedulable".to_owned());
    }
    let tolerations = spec.tolerations.unwrap_or_default();
    let repels =
        |taint: &&Taint| taint.effect != "PreferNoSchedule" && !tolerations.iter().any(|t| tolerates(t, taint));
    let taint = node_spec.taints.unwrap_or_default().iter().find(repels).map(|t| t.key.clone())?;
    Some(format!("node(s) had untolerated taint {{{taint}}}"))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_ref().is_none_or(|e| e.is_empty() || *e == taint.effect);
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    effect && ((exists && key.is_empty()) || (key == taint.key && (exists || toleration.value == taint.value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: serde_json::Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn selectors_and_taints_keep_pods_away() {
        let pod = |spec| serde_json::from_value::<Pod>(json!({"spec": spec})).unwrap();
        let plain = node(json!({"metadata": {"name": "a", "labels": {"disk": "ssd"}}}));
        let tainted =
            node(json!({"metadata": {"name": "b"}, "spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}}));
        assert!(choose(&pod(json!({"containers": []})), &[&plain]).is_ok());
        assert!(choose(&pod(json!({"containers": [], "nodeSelector": {"disk": "ssd"}})), &[&plain]).is_ok());
        let why = choose(&pod(json!({"containers": [], "nodeSelector": {"disk": "tape"}})), &[&plain]).unwrap_err();
        assert_eq!(why, "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.");
        let why = choose(&pod(json!({"containers": []})), &[&tainted]).unwrap_err();
        assert!(why.contains("untolerated taint {gpu}"), "{why}");
        let brave = pod(json!({"containers": [], "tolerations": [{"key": "gpu", "operator": "Exists"}]}));
        assert!(choose(&brave, &[&tainted]).is_ok());
        assert_eq!(choose(&brave, &[]).unwrap_err(), "no nodes available to schedule pods");
    }
}
