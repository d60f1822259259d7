//! The proxies: ready, connected, and of one version.

use super::control::why_not_ready;
use super::{Finding, Subject};
use crate::commands::version::{CLIENT, count_proxies};
use crate::error::{Context, Error};
use crate::observe::{self, Ask};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use mesh_api::golden::{GoldenFrame, Senseless, Unreachable};
use mesh_api::names::{PROXY_CONTAINER, PROXY_VERSION};
use std::sync::Arc;
use std::time::Duration;

/// At most this many pods are named in one finding.
const NAMED: usize = 5;

async fn meshed(subject: &Subject) -> Result<Vec<Pod>, Error> {
    let client = subject.cluster.client.clone();
    let api: Api<Pod> = match &subject.namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let pods = api.list(&ListParams::default()).await.during(|| "list pods")?;
    Ok(pods.items.into_iter().filter(is_meshed).collect())
}

fn is_meshed(pod: &Pod) -> bool {
    let injected = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(PROXY_VERSION));
    let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    injected && pod.metadata.deletion_timestamp.is_none() && !matches!(ended, Some("Succeeded" | "Failed"))
}

/// Is every proxy ready?
pub(super) async fn ready(subject: Arc<Subject>) -> Result<Finding, Error> {
    Ok(judge_ready(&meshed(&subject).await?))
}

fn judge_ready(pods: &[Pod]) -> Finding {
    if pods.is_empty() {
        return Finding::skipped("no pod has a proxy yet");
    }
    let unready: Vec<&Pod> = pods.iter().filter(|pod| !proxy_ready(pod)).collect();
    let Some(first) = unready.first() else { return Finding::ok(format!("{} of {} ready", pods.len(), pods.len())) };
    let (namespace, name) = names(first);
    Finding::failed(
        format!(
            "{} of {} are not ready: {}; {name} {}",
            unready.len(),
            pods.len(),
            list(unready.iter().map(|pod| pod_name(pod)).collect()),
            why_not_ready(first)
        ),
        format!("kubectl -n {namespace} logs {name} -c {PROXY_CONTAINER}"),
    )
}

fn proxy_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let mut containers = status
        .into_iter()
        .flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses))
        .flatten();
    containers.any(|container| container.name == PROXY_CONTAINER && container.ready)
}

/// Does every proxy talk to the control plane?
pub(super) async fn connected(subject: Arc<Subject>) -> Result<Finding, Error> {
    observed(&subject, judge_connected).await
}

/// Does what the proxies count make sense?
pub(super) async fn sense(subject: Arc<Subject>) -> Result<Finding, Error> {
    observed(&subject, judge_sense).await
}

async fn observed(subject: &Subject, judge: impl Fn(&GoldenFrame) -> Finding) -> Result<Finding, Error> {
    let ask =
        Ask { namespace: subject.namespace.clone(), window: Duration::from_secs(1), frames: Some(1), pods: false };
    Ok(match observe::once(&subject.cluster, &ask, Duration::from_secs(8)).await {
        Ok(frame) => judge(&frame),
        Err(error) => Finding::skipped(format!("the observe API does not tell: {error}")),
    })
}

fn judge_sense(frame: &GoldenFrame) -> Finding {
    let meshed: u32 = frame.workloads.iter().map(|status| status.meshed_pods).sum();
    let Some(first) = frame.senseless.first() else {
        return if meshed == 0 {
            Finding::skipped("no pod has a proxy yet")
        } else {
            Finding::ok(format!("nothing was left out of {meshed}"))
        };
    };
    let Senseless { namespace, pod, frames, why } = first;
    let others = frame.senseless.iter().map(|one| format!("{}/{}", one.namespace, one.pod)).collect();
    Finding::failed(
        format!("the figures of {} are left out; {namespace}/{pod}: {why} ({frames} times)", list(others)),
        format!(
            "look at its log and its image: kubectl -n {namespace} logs {pod} -c {PROXY_CONTAINER}; \
             then have it replaced: kubectl -n {namespace} delete pod {pod}"
        ),
    )
}

fn judge_connected(frame: &GoldenFrame) -> Finding {
    let meshed: u32 = frame.workloads.iter().map(|status| status.meshed_pods).sum();
    if meshed == 0 {
        return Finding::skipped("no pod has a proxy yet");
    }
    if let Some(Unreachable { replica, why }) = frame.unreachable.first() {
        let replicas = frame.unreachable.iter().map(|one| one.replica.clone()).collect();
        return Finding::failed(
            format!(
                "not every proxy can be asked after: no answer from the control plane's {}; {replica}: {why}",
                list(replicas)
            ),
            format!("look at the replica's log: kubectl logs {replica} in the namespace of the control plane"),
        );
    }
    let lost: Vec<_> = frame.workloads.iter().filter(|status| status.connected < status.meshed_pods).collect();
    match lost.first() {
        None if frame.silent_proxies == 0 => Finding::ok(format!("{meshed} of {meshed} connected")),
        None => Finding::failed(
            format!("{} of {meshed} are connected but do not answer in time", frame.silent_proxies),
            "look at the nodes' load",
        ),
        Some(first) => Finding::failed(
            format!("no connection from {}", list(lost.iter().map(|status| status.workload.to_string()).collect())),
            format!(
                "kubectl -n {} logs {}/{} -c {PROXY_CONTAINER}",
                first.workload.namespace, first.workload.kind, first.workload.name
            ),
        ),
    }
}

/// Do all proxies have one version?
pub(super) async fn version(subject: Arc<Subject>) -> Result<Finding, Error> {
    Ok(judge_versions(&meshed(&subject).await?))
}

fn judge_versions(pods: &[Pod]) -> Finding {
    let versions = count_proxies(pods);
    if versions.keys().all(|version| version == CLIENT) {
        return match versions.get(CLIENT) {
            None => Finding::skipped("no pod has a proxy yet"),
            Some(count) => Finding::ok(format!("{count} of {count} at {CLIENT}")),
        };
    }
    let other = pods.iter().filter(|pod| version_of(pod).is_some_and(|version| version != CLIENT)).map(pod_name);
    let counts = versions.iter().map(|(version, count)| format!("{count} at {version}")).collect::<Vec<_>>().join(", ");
    Finding::failed(
        format!("{counts}; not at {CLIENT}: {}", list(other.collect())),
        "restart these workloads, so that they get the current proxy: kubectl rollout restart",
    )
}

fn version_of(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(PROXY_VERSION).map(String::as_str)
}

fn names(pod: &Pod) -> (&str, &str) {
    (pod.metadata.namespace.as_deref().unwrap_or("default"), pod.metadata.name.as_deref().unwrap_or_default())
}

fn pod_name(pod: &Pod) -> String {
    let (namespace, name) = names(pod);
    format!("{namespace}/{name}")
}

fn list(names: Vec<String>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let mut text = names.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use crate::golden::tests::{SHOP, frame};
    use serde_json::json;

    fn pod(name: &str, version: &str, ready: bool) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "annotations": {PROXY_VERSION: version}},
            "spec": {"containers": []},
            "status": {"phase": "Running", "initContainerStatuses": [{"name": "mesh-proxy", "image": "", "imageID": "",
                "restartCount": 0, "ready": ready, "state": {"running": {}}}]},
        }))
        .unwrap()
    }

    #[test]
    fn proxies_that_are_not_ready_are_named() {
        assert_eq!(judge_ready(&[]).status, Status::Skipped);
        assert_eq!(judge_ready(&[pod("a", CLIENT, true)]), Finding::ok("1 of 1 ready"));
        let finding = judge_ready(&[pod("a", CLIENT, true), pod("b", CLIENT, false)]);
        assert_eq!(finding.seen, "1 of 2 are not ready: shop/b; b mesh-proxy: not ready");
        assert_eq!(finding.fix.as_deref(), Some("kubectl -n shop logs b -c mesh-proxy"));
    }

    #[test]
    fn versions_are_counted() {
        assert_eq!(judge_versions(&[]).status, Status::Skipped);
        assert_eq!(judge_versions(&[pod("a", CLIENT, true)]).status, Status::Ok);
        let finding = judge_versions(&[pod("a", CLIENT, true), pod("b", "0.0.9", true)]);
        assert_eq!(finding.seen, format!("1 at 0.0.9, 1 at {CLIENT}; not at {CLIENT}: shop/b"));
    }

    #[test]
    fn a_workload_without_connection_is_named() {
        let mut frame = frame(SHOP, 0, 1000);
        assert_eq!(judge_connected(&frame), Finding::ok("5 of 5 connected"));
        frame.workloads[0].connected = 0;
        let away = Unreachable { replica: "mesh-control-b".into(), why: "cannot connect to 10.0.0.9:8086".into() };
        let missing = GoldenFrame { unreachable: vec![away], ..frame.clone() };
        let seen = judge_connected(&missing).seen;
        assert!(seen.contains("mesh-control-b: cannot connect to 10.0.0.9:8086"), "{seen}");
        assert_eq!(judge_connected(&frame).seen, "no connection from shop/deployment/cart");
    }

    #[test]
    fn a_proxy_that_sends_nonsense_is_named() {
        let mut frame = frame(SHOP, 0, 1000);
        assert_eq!(judge_sense(&frame), Finding::ok("nothing was left out of 5"));
        let why = "its seconds run backwards".to_owned();
        frame.senseless = vec![Senseless { namespace: "shop".into(), pod: "web-1".into(), frames: 3, why }];
        let finding = judge_sense(&frame);
        assert_eq!(
            finding.seen,
            "the figures of shop/web-1 are left out; shop/web-1: its seconds run backwards (3 times)"
        );
        assert!(finding.fix.is_some_and(|fix| fix.ends_with("kubectl -n shop delete pod web-1")));
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(list((0..7).map(|n| n.to_string()).collect()), "0, 1, 2, 3, 4 and 2 more");
    }
}
