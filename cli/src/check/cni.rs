//! CNI mode: does every node have its agent, without which it starts no pod.

use super::control::{is_ready, why_not_ready};
use super::{Finding, Subject};
use crate::apply::on_every_node;
use crate::error::{Context, Error};
use crate::shown::mesh_config;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use mesh_manifests::cni::{NAME, NAMESPACE};
use std::sync::Arc;

/// Is the agent ready on every node?
pub(super) async fn ready(subject: Arc<Subject>) -> Result<Finding, Error> {
    let client = &subject.cluster.client;
    let enabled = mesh_config(&subject.cluster).await?.is_some_and(|config| config.cni_enabled);
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
    let set = sets.get_opt(NAME).await.during(|| format!("read daemon set {NAME}"))?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let labels = format!("app.kubernetes.io/name={NAME}");
    let pods = match set {
        Some(_) => pods.list(&ListParams::default().labels(&labels)).await.during(|| "list the agents' pods")?.items,
        None => Vec::new(),
    };
    Ok(judge(enabled, set.as_ref(), &pods, &subject.meshctl))
}

fn judge(enabled: bool, set: Option<&DaemonSet>, pods: &[Pod], meshctl: &str) -> Finding {
    let Some(set) = set else {
        return match enabled {
            false => Finding::skipped("CNI mode is not enabled"),
            true => Finding::failed(
                format!("CNI mode is enabled, but there is no daemon set {NAME} in {NAMESPACE}: no meshed pod starts"),
                format!("{meshctl} upgrade --apply"),
            ),
        };
    };
    if !enabled {
        return Finding::warning(
            format!("daemon set {NAME} runs, but pods are injected with a redirect of their own"),
            format!("{meshctl} upgrade --apply --set cni.enabled=true; or without it, and {meshctl} prune"),
        );
    }
    let status = set.status.clone().unwrap_or_default();
    let seen = format!("{} of {} nodes ready", status.number_ready, status.desired_number_scheduled);
    if on_every_node(set) {
        return Finding::ok(seen);
    }
    let describe = format!("kubectl -n {NAMESPACE} describe daemonset {NAME}");
    match pods.iter().find(|pod| pod.metadata.deletion_timestamp.is_none() && !is_ready(pod)) {
        None if status.number_ready >= status.desired_number_scheduled => {
            Finding::failed(format!("{seen}; some of them run an earlier agent still"), describe)
        }
        None => Finding::failed(format!("{seen}; no pod starts on the others"), describe),
        Some(pod) => {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node");
            Finding::failed(
                format!("{seen}; on {node} no pod starts: {name} {}", why_not_ready(pod)),
                format!("kubectl -n {NAMESPACE} logs {name}; {describe}"),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;
    use serde_json::{Value, json};

    const DESCRIBE: &str = "kubectl -n kube-system describe daemonset mesh-cni";

    fn set(ready: i32, wanted: i32, observed: i64) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": { "generation": 2 },
            "spec": { "selector": {}, "template": {} },
            "status": { "numberReady": ready, "desiredNumberScheduled": wanted, "observedGeneration": observed,
                "currentNumberScheduled": wanted, "updatedNumberScheduled": wanted, "numberMisscheduled": 0 },
        }))
        .unwrap()
    }

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "mesh-cni-x1" }, "spec": { "nodeName": "n1", "containers": [] }, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn every_node_needs_its_agent() {
        let waits = json!({ "containerStatuses": [{ "name": "mesh-cni", "image": "", "imageID": "", "ready": false,
            "restartCount": 3, "state": { "waiting": { "reason": "ErrImagePull" } } }] });
        for (enabled, set, pods, status, seen, fix) in [
            (false, None, vec![], Status::Skipped, "CNI mode is not enabled", None),
            (true, Some(set(3, 3, 2)), vec![], Status::Ok, "3 of 3 nodes ready", None),
            (true, None, vec![], Status::Failed, "there is no daemon set mesh-cni", Some("meshctl upgrade --apply")),
            (
                true,
                Some(set(2, 3, 2)),
                vec![pod(waits)],
                Status::Failed,
                "2 of 3 nodes ready; on n1 no pod starts: mesh-cni-x1 mesh-cni: ErrImagePull",
                Some("kubectl -n kube-system logs mesh-cni-x1; kubectl -n kube-system describe daemonset mesh-cni"),
            ),
            (
                true,
                Some(set(3, 3, 1)),
                vec![],
                Status::Failed,
                "3 of 3 nodes ready; some of them run an earlier agent still",
                Some(DESCRIBE),
            ),
            (true, Some(set(2, 3, 2)), vec![], Status::Failed, "no pod starts on the others", Some(DESCRIBE)),
            (
                false,
                Some(set(3, 3, 2)),
                vec![],
                Status::Warning,
                "pods are injected with a redirect of their own",
                Some("meshctl upgrade --apply --set cni.enabled=true; or without it, and meshctl prune"),
            ),
        ] {
            let finding = judge(enabled, set.as_ref(), &pods, "meshctl");
            assert_eq!(finding.status, status, "{finding:?}");
            assert!(finding.seen.contains(seen), "{finding:?}");
            assert_eq!(finding.fix.as_deref(), fix, "{finding:?}");
        }
    }
}
