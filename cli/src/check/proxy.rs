//! The proxies: ready, connected, and of one version.

use super::control::{self, why_not_ready};
use super::subject::names;
use super::{Finding, Subject};
use crate::commands::diagnostics::{ProxyConfig, endpoints};
use crate::commands::version::{CLIENT, count_proxies};
use crate::error::Error;
use crate::observe::{self, Ask};
use crate::proxies::Proxy;
use crate::shown::Shown;
use k8s_openapi::api::core::v1::Pod;
use mesh_api::golden::{GoldenFrame, Senseless, Unreachable};
use mesh_api::names::{PROXY_CONTAINER, PROXY_VERSION};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// At most this many pods are named in one finding.
const NAMED: usize = 5;
/// A certificate of a day is renewed eight hours before its end, one of an hour twenty minutes.
const RENEWED_BY_S: u64 = 600;
/// What has changed reaches proxies within a second.
const SETTLES: Duration = Duration::from_millis(1500);

/// Is every proxy ready?
pub(super) async fn ready(subject: Arc<Subject>) -> Result<Finding, Error> {
    Ok(judge_ready(&subject.meshed().await?))
}

fn judge_ready(pods: &[&Pod]) -> Finding {
    if pods.is_empty() {
        return Finding::skipped("no pod has a proxy yet");
    }
    let unready: Vec<&Pod> = pods.iter().copied().filter(|pod| !proxy_ready(pod)).collect();
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
    Ok(judge_versions(&subject.meshed().await?))
}

fn judge_versions(pods: &[&Pod]) -> Finding {
    let versions = count_proxies(pods.iter().copied());
    if versions.keys().all(|version| version == CLIENT) {
        return match versions.get(CLIENT) {
            None => Finding::skipped("no pod has a proxy yet"),
            Some(count) => Finding::ok(format!("{count} of {count} at {CLIENT}")),
        };
    }
    let other =
        pods.iter().filter(|pod| version_of(pod).is_some_and(|version| version != CLIENT)).map(|pod| pod_name(pod));
    let counts = versions.iter().map(|(version, count)| format!("{count} at {version}")).collect::<Vec<_>>().join(", ");
    Finding::failed(
        format!("{counts}; not at {CLIENT}: {}", list(other.collect())),
        "restart these workloads, so that they get the current proxy: kubectl rollout restart",
    )
}

/// Is every proxy's certificate good for a while?
pub(super) async fn certificates(subject: Arc<Subject>) -> Result<Finding, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let asked = subject.proxies().await?;
    let seen =
        asked.iter().map(|(proxy, config)| (format!("{}/{}", proxy.namespace, proxy.pod), config.identity_expires_at));
    Ok(judge_certificates(&seen.collect::<Vec<_>>(), now))
}

fn judge_certificates(seen: &[(String, Option<u64>)], now: u64) -> Finding {
    if seen.is_empty() {
        return Finding::skipped("no proxy was asked");
    }
    let bad = |expires: &Option<u64>| expires.is_none_or(|at| at < now + RENEWED_BY_S);
    let bad: Vec<&(String, Option<u64>)> = seen.iter().filter(|(_, expires)| bad(expires)).collect();
    let Some((first, expires)) = bad.first() else { return Finding::ok(format!("{} of {}", seen.len(), seen.len())) };
    let how = match expires {
        None => "has none".to_owned(),
        Some(at) if *at <= now => format!("expired {} minutes ago", (now - at) / 60),
        Some(at) => format!("expires in {} minutes, and should have been renewed before", (at - now) / 60),
    };
    let (namespace, pod) = first.split_once('/').unwrap_or(("default", first));
    Finding::failed(
        format!(
            "{} of {}: {}; {first} {how}",
            bad.len(),
            seen.len(),
            list(bad.iter().map(|(name, _)| name.clone()).collect())
        ),
        format!("kubectl -n {namespace} logs {pod} -c {PROXY_CONTAINER} says why it gets no certificate"),
    )
}

/// Does every proxy know the endpoints that the API has?
pub(super) async fn endpoints(subject: Arc<Subject>) -> Result<Finding, Error> {
    if control::deployment(&subject).await?.is_none() {
        return Ok(Finding::skipped("the control plane is not installed"));
    }
    let (asked, shown) = futures::future::try_join(subject.proxies(), subject.shown()).await?;
    let first = differing(asked, shown);
    if first.is_empty() {
        return Ok(judge_endpoints(asked.len(), &first));
    }
    // A change may be under way: what counts differs still.
    tokio::time::sleep(SETTLES).await;
    let (asked, shown) = futures::future::try_join(subject.ask_proxies(), Shown::read(&subject.cluster)).await?;
    let second = differing(&asked, &shown);
    Ok(judge_endpoints(asked.len(), &first.intersection(&second).cloned().collect()))
}

fn differing(asked: &[(Proxy, ProxyConfig)], shown: &Shown) -> BTreeSet<String> {
    asked.iter().flat_map(|(proxy, config)| endpoints::differing(proxy, config, shown)).collect()
}

fn judge_endpoints(asked: usize, differ: &BTreeSet<String>) -> Finding {
    if asked == 0 {
        return Finding::skipped("no proxy was asked");
    }
    if differ.is_empty() {
        return Finding::ok(format!("{asked} of {asked} agree with the API"));
    }
    Finding::failed(
        list(differ.iter().cloned().collect()),
        "meshctl diagnostics endpoints POD shows all; a proxy without connection keeps what it last knew \
         (meshctl check --only proxy.connected), and the control plane's log says what it could not read",
    )
}

fn version_of(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(PROXY_VERSION).map(String::as_str)
}

pub(super) fn pod_name(pod: &Pod) -> String {
    let (namespace, name) = names(pod);
    format!("{namespace}/{name}")
}

/// Some of the names, and how many more there are.
pub(super) fn list(names: Vec<String>) -> String {
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
        assert_eq!(judge_ready(&[&pod("a", CLIENT, true)]), Finding::ok("1 of 1 ready"));
        let finding = judge_ready(&[&pod("a", CLIENT, true), &pod("b", CLIENT, false)]);
        assert_eq!(finding.seen, "1 of 2 are not ready: shop/b; b mesh-proxy: not ready");
        assert_eq!(finding.fix.as_deref(), Some("kubectl -n shop logs b -c mesh-proxy"));
    }

    #[test]
    fn versions_are_counted() {
        assert_eq!(judge_versions(&[]).status, Status::Skipped);
        assert_eq!(judge_versions(&[&pod("a", CLIENT, true)]).status, Status::Ok);
        let finding = judge_versions(&[&pod("a", CLIENT, true), &pod("b", "0.0.9", true)]);
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
    fn certificates_that_end_soon_are_told() {
        let check = |expires: &[Option<u64>]| {
            let seen: Vec<_> = expires.iter().enumerate().map(|(n, at)| (format!("shop/web-{n}"), *at)).collect();
            judge_certificates(&seen, 100_000)
        };
        assert_eq!(check(&[]).status, Status::Skipped);
        assert_eq!(check(&[Some(150_000)]), Finding::ok("1 of 1"));
        let finding = check(&[Some(150_000), Some(100_300)]);
        assert_eq!(
            finding.seen,
            "1 of 2: shop/web-1; shop/web-1 expires in 5 minutes, and should have been renewed before"
        );
        assert!(finding.fix.unwrap().starts_with("kubectl -n shop logs web-1 -c mesh-proxy"));
        assert!(check(&[Some(99_400)]).seen.ends_with("expired 10 minutes ago"));
        assert!(check(&[None]).seen.ends_with("has none"));
    }

    #[test]
    fn endpoints_that_differ_are_told() {
        assert_eq!(judge_endpoints(0, &BTreeSet::new()).status, Status::Skipped);
        assert_eq!(judge_endpoints(2, &BTreeSet::new()), Finding::ok("2 of 2 agree with the API"));
        let differ = BTreeSet::from(["shop/web-1: catalog:80 still has 10.0.0.1:80".to_owned()]);
        let finding = judge_endpoints(2, &differ);
        assert_eq!((finding.status, finding.seen.as_str()), (Status::Failed, differ.first().unwrap().as_str()));
        assert!(finding.fix.unwrap().contains("diagnostics endpoints"));
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(list((0..7).map(|n| n.to_string()).collect()), "0, 1, 2, 3, 4 and 2 more");
    }
}
