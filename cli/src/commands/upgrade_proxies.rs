//! The second half of an upgrade: workloads whose proxies are old are restarted in waves, each watched until its pods
//! are ready, and success rates compared with those before. When they get worse, it stops.

use crate::apply;
use crate::args::Upgrade;
use crate::cluster::Cluster;
use crate::error::{Context, Error, Outcome, Result};
use crate::golden::{self, Query};
use crate::observe::{self, Ask};
use crate::output::Printer;
use crate::resource::short_kind;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Resource};
use mesh_api::WorkloadRef;
use mesh_api::names::PROXY_VERSION;
use mesh_control::world::view::workload;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// What a success rate may lose before the rollout stops: one request in a hundred.
const MAY_LOSE: f64 = 0.01;
/// How long success is measured before and after a wave.
const LOOK: Duration = Duration::from_secs(10);

/// Restarts what has old proxies.
pub(super) async fn run(cluster: &Cluster, args: &Upgrade, version: &str, printer: &Printer) -> Result<Outcome> {
    let (old, alone) = old_workloads(&pods(cluster).await?, version);
    if old.is_empty() && alone.is_empty() {
        printer.note(&format!("every proxy is at {version} already"));
        return Ok(Outcome::Well);
    }
    let waves: Vec<Vec<WorkloadRef>> = waves(&old, args.wave);
    let count = waves.len();
    for (index, wave) in waves.iter().enumerate() {
        let before = success(cluster).await;
        let names: Vec<String> = wave.iter().map(name).collect();
        let step = printer.step(&format!("wave {} of {count}: restarting {}", index + 1, names.join(", ")));
        for workload in wave {
            restart(cluster, workload).await?;
        }
        let deadline = Instant::now() + args.timeout;
        for workload in wave {
            wait(cluster, workload, deadline).await.map_err(|error| stopped(error, index, count))?;
        }
        step.now("comparing success rates");
        tokio::time::sleep(LOOK).await;
        if let Some(worse) = worse(&before, &success(cluster).await, wave) {
            return Err(stopped(Error::new(worse), index, count));
        }
        step.done(&format!("wave {} of {count}: {} have new proxies", index + 1, names.join(", ")));
    }
    if !alone.is_empty() {
        let names: Vec<String> = alone.iter().map(ToString::to_string).collect();
        printer.warn(&format!("nobody restarts these for you: {}", names.join(", ")));
    }
    Ok(Outcome::Well)
}

/// Says which workloads still have old proxies.
pub(super) async fn note_old(cluster: &Cluster, printer: &Printer) -> Result<()> {
    let (old, alone) = old_workloads(&pods(cluster).await?, super::version::CLIENT);
    let count = old.len() + alone.len();
    if count > 0 {
        printer
            .note(&format!("{count} workloads have older proxies: `meshctl upgrade --proxies` restarts them in waves"));
    }
    Ok(())
}

fn stopped(error: Error, index: usize, count: usize) -> Error {
    error
        .during(format!("go on after wave {} of {count}", index + 1))
        .hint("what was restarted has new proxies, the rest old ones, which go on working; look, then run it again")
}

async fn pods(cluster: &Cluster) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    Ok(pods.list(&ListParams::default()).await.during(|| "list pods")?.items)
}

/// Workloads with proxies of another version: those that can be restarted, and those that somebody has to.
fn old_workloads(pods: &[Pod], version: &str) -> (BTreeSet<WorkloadRef>, BTreeSet<WorkloadRef>) {
    let old = pods.iter().filter(|pod| {
        let has = pod.metadata.annotations.as_ref().and_then(|all| all.get(PROXY_VERSION));
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        has.is_some_and(|has| has != version)
            && pod.metadata.deletion_timestamp.is_none()
            && !matches!(phase, Some("Succeeded" | "Failed"))
    });
    old.map(|pod| workload(&pod.metadata))
        .partition(|workload| matches!(workload.kind.as_str(), "deployment" | "statefulset" | "daemonset"))
}

/// Waves of `size` workloads, or of a quarter of them.
fn waves(old: &BTreeSet<WorkloadRef>, size: Option<u16>) -> Vec<Vec<WorkloadRef>> {
    let size = size.map_or(old.len().div_ceil(4), usize::from).max(1);
    let all: Vec<WorkloadRef> = old.iter().cloned().collect();
    all.chunks(size).map(<[WorkloadRef]>::to_vec).collect()
}

fn name(workload: &WorkloadRef) -> String {
    format!("{}/{} in {}", short_kind(&workload.kind), workload.name, workload.namespace)
}

/// Success rates by workload; empty where nobody tells.
async fn success(cluster: &Cluster) -> BTreeMap<WorkloadRef, f64> {
    let ask = Ask { namespace: None, window: LOOK, frames: Some(1), pods: false };
    let Ok(frame) = observe::once(cluster, &ask, LOOK).await else { return BTreeMap::new() };
    let rows = golden::rows(&VecDeque::from([frame]), &Query::default());
    let rates = rows
        .into_iter()
        .filter_map(|row| Some((WorkloadRef::new(&row.namespace, &row.kind, &row.name), row.success_rate?)));
    rates.collect()
}

/// What got worse, if something did. Workloads without traffic before or after cannot tell.
fn worse(
    before: &BTreeMap<WorkloadRef, f64>,
    after: &BTreeMap<WorkloadRef, f64>,
    wave: &[WorkloadRef],
) -> Option<String> {
    wave.iter().find_map(|workload| {
        let (before, after) = (before.get(workload)?, after.get(workload)?);
        let percent = |rate: &f64| format!("{:.1}%", rate * 100.0);
        (after + MAY_LOSE < *before).then(|| {
            format!("the success rate of {} fell from {} to {}", name(workload), percent(before), percent(after))
        })
    })
}

async fn restart(cluster: &Cluster, workload: &WorkloadRef) -> Result<()> {
    let now = jiff::Timestamp::now().to_string();
    let patch =
        json!({"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": now}}}}});
    match workload.kind.as_str() {
        "deployment" => patched::<Deployment>(cluster, workload, &patch).await,
        "statefulset" => patched::<StatefulSet>(cluster, workload, &patch).await,
        _ => patched::<DaemonSet>(cluster, workload, &patch).await,
    }
}

async fn patched<K>(cluster: &Cluster, workload: &WorkloadRef, patch: &serde_json::Value) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(cluster.client.clone(), &workload.namespace);
    let params = PatchParams { field_manager: Some(apply::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patched = api.patch(&workload.name, &params, &Patch::Strategic(patch)).await;
    patched.map(drop).during(|| format!("restart {}", name(workload)))
}

async fn wait(cluster: &Cluster, workload: &WorkloadRef, deadline: Instant) -> Result<()> {
    loop {
        let (namespace, called) = (&workload.namespace, &workload.name);
        let client = cluster.client.clone();
        let read = || format!("read {}", name(workload));
        let done = match workload.kind.as_str() {
            "deployment" => {
                let api: Api<Deployment> = Api::namespaced(client, namespace);
                apply::available(&api.get(called).await.during(read)?)
            }
            "statefulset" => {
                let api: Api<StatefulSet> = Api::namespaced(client, namespace);
                let set = api.get(called).await.during(read)?;
                let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                set.status.is_some_and(|status| {
                    status.observed_generation >= set.metadata.generation
                        && status.updated_replicas.unwrap_or(0) >= wanted
                        && status.ready_replicas.unwrap_or(0) >= wanted
                })
            }
            _ => {
                let api: Api<DaemonSet> = Api::namespaced(client, namespace);
                let set = api.get(called).await.during(read)?;
                set.status.is_some_and(|status| {
                    status.observed_generation >= set.metadata.generation
                        && status.updated_number_scheduled.unwrap_or(0) >= status.desired_number_scheduled
                        && status.number_ready >= status.desired_number_scheduled
                })
            }
        };
        if done {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::new("its new pods did not become ready in time")
                .during(format!("restart {}", name(workload)))
                .hint(format!("kubectl -n {namespace} get pods; meshctl check --proxy -n {namespace}")));
        }
        tokio::time::sleep(apply::LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, owner: Option<&str>, version: &str) -> Pod {
        let owners = owner.map(|owner| {
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{owner}-abc"), "uid": "1", "controller": true}])
        });
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "shop", "labels": {"pod-template-hash": "abc"},
            "annotations": {PROXY_VERSION: version}, "ownerReferences": owners}, "status": {"phase": "Running"}}),
        )
        .unwrap()
    }

    #[test]
    fn old_proxies_are_found_and_split_into_waves() {
        let pods = [
            pod("a-1", Some("a"), "0.0.9"),
            pod("a-2", Some("a"), "0.1.0"),
            pod("b-1", Some("b"), "0.1.0"),
            pod("c-1", Some("c"), "0.0.9"),
            pod("bare", None, "0.0.9"),
        ];
        let (old, alone) = old_workloads(&pods, "0.1.0");
        let names: Vec<_> = old.iter().map(|workload| workload.name.as_str()).collect();
        assert_eq!(names, ["a", "c"]);
        assert_eq!(alone.iter().map(ToString::to_string).collect::<Vec<_>>(), ["shop/pod/bare"]);
        assert_eq!(waves(&old, None).len(), 2);
        assert_eq!(waves(&old, Some(5)).len(), 1);
        assert_eq!(waves(&BTreeSet::new(), None).len(), 0);
    }

    #[test]
    fn a_lower_success_rate_is_noticed() {
        let web = WorkloadRef::new("shop", "deployment", "web");
        let rate = |rate: f64| BTreeMap::from([(web.clone(), rate)]);
        let wave = [web.clone()];
        assert_eq!(worse(&rate(1.0), &rate(0.995), &wave), None);
        assert_eq!(worse(&rate(0.9), &rate(0.95), &wave), None);
        assert_eq!(worse(&BTreeMap::new(), &rate(0.1), &wave), None);
        assert_eq!(
            worse(&rate(1.0), &rate(0.9), &wave).unwrap(),
            "the success rate of deploy/web in shop fell from 100.0% to 90.0%"
        );
    }
}
