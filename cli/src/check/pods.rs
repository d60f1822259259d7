//! Pods: whether those that should have a proxy have one, whether any is held up by it, and what they may trip over.

use super::proxy::{list, pod_name};
use super::{Finding, Subject, control};
use crate::error::{Context, Error};
use crate::shown::mesh_config;
use k8s_openapi::api::core::v1::{ContainerStatus, Namespace, Pod};
use kube::Api;
use kube::api::ListParams;
use mesh_api::Protocol;
use mesh_api::names::{OPAQUE_PORTS, PROXY_CONTAINER};
use mesh_control::compile;
use mesh_control::world::World;
use mesh_manifests::config::MeshConfig;
use mesh_manifests::inject::{Plan, plan};
use mesh_manifests::settings::Sources;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Ports of protocols whose server speaks first (IANA): FTP, SSH, SMTP, POP3, NNTP, IMAP, submission, MySQL, NATS, VNC.
const SERVER_FIRST: [u16; 10] = [21, 22, 25, 110, 119, 143, 587, 3306, 4222, 5900];

/// How long a sidecar may take to end after the last container did: a proxy's drain and the pod's grace period.
const SIDECARS_END_WITHIN_S: i64 = 120;

/// Has every pod a proxy that should have one?
pub(super) async fn injected(subject: Arc<Subject>) -> Result<Finding, Error> {
    let Some(config) = mesh_config(&subject.cluster).await? else {
        return Ok(Finding::skipped("the control plane is not installed"));
    };
    let namespaces: Api<Namespace> = Api::all(subject.cluster.client.clone());
    let namespaces = namespaces.list(&ListParams::default()).await.during(|| "list namespaces")?;
    let named =
        namespaces.items.iter().filter_map(|one| Some((one.metadata.name.clone()?, serde_json::to_value(one).ok()?)));
    Ok(judge_injected(subject.pods().await?, &named.collect(), &config))
}

fn judge_injected(pods: &[Pod], namespaces: &BTreeMap<String, Value>, config: &MeshConfig) -> Finding {
    let runs = |pod: &&Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
    };
    let should = |pod: &&Pod| {
        let Ok(object) = serde_json::to_value(pod) else { return false };
        let namespace = pod.metadata.namespace.as_ref().and_then(|name| namespaces.get(name)).unwrap_or(&Value::Null);
        let sources = Sources { pod: &object["metadata"], namespace: &namespace["metadata"] };
        matches!(plan(sources, &object["spec"], config), Ok(Plan::Inject(_)))
    };
    let without: Vec<&Pod> = pods.iter().filter(runs).filter(should).collect();
    let Some(first) = without.first() else { return Finding::ok("none is missing") };
    let namespace = first.metadata.namespace.as_deref().unwrap_or("default");
    let name = first.metadata.name.as_deref().unwrap_or_default();
    Finding::failed(
        format!(
            "{} should have a proxy and have none: {}; they were made before injection was enabled, or while the \
             webhook was away",
            without.len(),
            list(without.iter().map(|pod| pod_name(pod)).collect())
        ),
        format!(
            "make them anew: kubectl -n {namespace} rollout restart, or delete pods without an owner; \
             meshctl explain pod {name} -n {namespace} says what speaks for a proxy"
        ),
    )
}

/// Is a job finished but for its proxy?
pub(super) async fn jobs(subject: Arc<Subject>) -> Result<Finding, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed();
    Ok(judge_jobs(subject.pods().await?, now))
}

fn judge_jobs(pods: &[Pod], now_s: i64) -> Finding {
    let of_job = |pod: &&Pod| {
        let owners = pod.metadata.owner_references.iter().flatten();
        owners.into_iter().any(|owner| owner.kind == "Job") && pod.metadata.deletion_timestamp.is_none()
    };
    let jobs: Vec<&Pod> = pods.iter().filter(of_job).collect();
    let held: Vec<&&Pod> = jobs.iter().filter(|pod| is_held(pod, now_s)).collect();
    let Some(first) = held.first() else { return Finding::ok(format!("none of {} pods of jobs", jobs.len())) };
    let namespace = first.metadata.namespace.as_deref().unwrap_or("default");
    let name = first.metadata.name.as_deref().unwrap_or_default();
    let why = match is_native(first) {
        true => {
            "Kubernetes ends sidecars by itself once it knows them: look whether the node is of 1.29 or later and has \
             SidecarContainers enabled, or set proxy.native_sidecar=false"
        }
        false => {
            "control tells a proxy that is no native sidecar to end with its application: look whether the control plane \
             runs and the proxy is connected to it (meshctl check --proxy)"
        }
    };
    Finding::failed(
        format!(
            "{} of {} pods of jobs wait for nothing but their proxy: {}",
            held.len(),
            jobs.len(),
            list(held.iter().map(|pod| pod_name(pod)).collect())
        ),
        format!("{why}; kubectl -n {namespace} delete pod {name} frees the job meanwhile"),
    )
}

/// True if the pod's proxy is an init container that keeps running.
fn is_native(pod: &Pod) -> bool {
    let mut inits = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    inits.any(|container| container.name == PROXY_CONTAINER)
}

/// True if all containers ended a while ago, and the proxy goes on.
fn is_held(pod: &Pod, now_s: i64) -> bool {
    let Some(status) = &pod.status else { return false };
    let proxy = |status: &&ContainerStatus| status.name == PROXY_CONTAINER;
    let state = |status: &ContainerStatus| status.state.clone().unwrap_or_default();
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let runs = containers.iter().chain(status.init_container_statuses.iter().flatten()).find(proxy);
    let long_ended = |status: &ContainerStatus| {
        let ended = state(status).terminated.and_then(|ended| ended.finished_at);
        ended.is_some_and(|at| now_s - at.0.as_second() > SIDECARS_END_WITHIN_S)
    };
    let mut others = containers.iter().filter(|status| !proxy(status)).peekable();
    runs.is_some_and(|proxy| state(proxy).running.is_some()) && others.peek().is_some() && others.all(long_ended)
}

/// Are ports marked whose servers speak first?
pub(super) async fn server_first(subject: Arc<Subject>) -> Result<Finding, Error> {
    if control::deployment(&subject).await?.is_none() {
        return Ok(Finding::skipped("the control plane is not installed"));
    }
    let shown = subject.shown().await?;
    Ok(judge_server_first(&shown.world, &shown.config, subject.namespace.as_deref()))
}

fn judge_server_first(world: &World, config: &MeshConfig, namespace: Option<&str>) -> Finding {
    let mut unmarked = Vec::new();
    let mut services: Vec<_> = world.services().collect();
    services.sort_unstable_by_key(|(name, _)| *name);
    for (name, service) in services.into_iter().filter(|(name, _)| namespace.is_none_or(|only| only == name.namespace))
    {
        let Some(ip) = service.cluster_ips.first() else { continue };
        for port in service.ports.iter().filter(|port| SERVER_FIRST.contains(&port.port)) {
            let compiled = compile::destination(world, config, SocketAddr::new(*ip, port.port), None);
            if compiled.destination.protocol != Protocol::Opaque {
                unmarked.push((name, port.port));
            }
        }
    }
    let Some((name, port)) = unmarked.first() else { return Finding::ok("all that are known by their number") };
    Finding::failed(
        format!(
            "servers usually speak first at {}: what is not marked waits a moment for the client's first bytes, or is \
             taken for HTTP",
            list(unmarked.iter().map(|(name, port)| format!("{name}:{port}")).collect())
        ),
        format!("kubectl -n {} annotate service {} {OPAQUE_PORTS}={port}", name.namespace, name.name),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use mesh_control::world::view::{Name, ServiceView};
    use serde_json::json;

    fn pod(name: &str, spec: Value, status: Value, annotations: Value) -> Pod {
        let owner =
            json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "import", "uid": "u", "controller": true}]);
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop", "annotations": annotations,
            "ownerReferences": owner}, "spec": spec, "status": status}))
        .unwrap()
    }

    #[test]
    fn pods_that_should_have_a_proxy_are_named() {
        let bare = || json!({"containers": [{"name": "main"}]});
        let running = || json!({"phase": "Running"});
        let with = json!({"initContainers": [{"name": PROXY_CONTAINER}], "containers": [{"name": "main"}]});
        let namespaces = |inject: &str| {
            let object = json!({"metadata": {"name": "shop", "labels": {"meshctl.dev/inject": inject}}});
            BTreeMap::from([("shop".to_owned(), object)])
        };
        let config = MeshConfig::default();
        let check = |pods: &[Pod], inject: &str| judge_injected(pods, &namespaces(inject), &config);
        let all = [
            pod("a", bare(), running(), json!({})),
            pod("b", with, running(), json!({})),
            pod("c", bare(), running(), json!({"meshctl.dev/inject": "disabled"})),
            pod("d", bare(), json!({"phase": "Succeeded"}), json!({})),
        ];
        let finding = check(&all, "enabled");
        assert!(finding.status == Status::Failed && finding.seen.contains("1 should have"), "{finding:?}");
        assert!(
            finding.seen.contains("shop/a;") && finding.fix.unwrap().contains("rollout restart"),
            "{:?}",
            finding.seen
        );
        assert_eq!(check(&all, "disabled").status, Status::Ok);
        assert_eq!(check(&all[1..], "enabled").status, Status::Ok);
    }

    #[test]
    fn jobs_that_wait_for_their_proxy_are_named() {
        let status = |name: &str, state: &str| {
            let ended = json!({"terminated": {"exitCode": 0, "finishedAt": "2026-01-01T00:00:00Z"}});
            let state = if state == "terminated" { ended } else { json!({"running": {}}) };
            json!({"name": name, "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state})
        };
        let job = |main: &str, proxy: Option<&str>| {
            let (main, proxy) = (vec![status("main", main)], proxy.map(|proxy| vec![status(PROXY_CONTAINER, proxy)]));
            let statuses = json!({"containerStatuses": main, "initContainerStatuses": proxy});
            let spec = json!({"containers": [], "initContainers": [{"name": PROXY_CONTAINER}]});
            pod("import-1", spec, statuses, json!({}))
        };
        let ended = 1_767_225_600; // 2026-01-01
        let check = |pod: Pod| judge_jobs(&[pod], ended + 600).status;
        assert_eq!(check(job("terminated", Some("running"))), Status::Failed);
        assert_eq!(check(job("terminated", Some("terminated"))), Status::Ok);
        assert_eq!(check(job("running", Some("running"))), Status::Ok);
        assert_eq!(check(job("terminated", None)), Status::Ok);
        let finding = judge_jobs(&[job("terminated", Some("running"))], ended + 600);
        assert!(finding.seen.contains("shop/import-1") && finding.fix.unwrap().contains("SidecarContainers"));
        assert_eq!(judge_jobs(&[job("terminated", Some("running"))], ended + 20).status, Status::Ok, "just ended");
        // The proxy is one of the containers.
        let other = |main: &str| {
            let statuses = json!({"containerStatuses": [status(PROXY_CONTAINER, "running"), status("main", main)]});
            pod("import-2", json!({"containers": [{"name": PROXY_CONTAINER}]}), statuses, json!({}))
        };
        assert_eq!(check(other("running")), Status::Ok);
        let finding = judge_jobs(&[other("terminated")], ended + 600);
        assert_eq!(finding.status, Status::Failed);
        assert!(finding.fix.unwrap().contains("look whether the control plane runs"));
    }

    #[test]
    fn ports_whose_server_speaks_first_are_to_be_marked() {
        let check = |port: Value, annotations: Value| {
            let service = json!({"metadata": {"namespace": "shop", "name": "db", "annotations": annotations},
                "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": [port]}});
            let service: Service = serde_json::from_value(service).unwrap();
            let mut world = World::default();
            world.apply(Name::new("shop", "db"), ServiceView::from(&service));
            judge_server_first(&world, &MeshConfig::default(), None)
        };
        assert_eq!(check(json!({"port": 4222}), json!({})).status, Status::Failed);
        assert_eq!(check(json!({"port": 4222}), json!({OPAQUE_PORTS: "4222"})).status, Status::Ok);
        assert_eq!(check(json!({"port": 3306}), json!({})).status, Status::Ok, "opaque by default");
        assert_eq!(check(json!({"port": 3306, "name": "http"}), json!({})).status, Status::Failed, "declared wrongly");
        assert_eq!(check(json!({"port": 80}), json!({})).status, Status::Ok);
        let fix = check(json!({"port": 4222}), json!({})).fix.unwrap();
        assert_eq!(fix, format!("kubectl -n shop annotate service db {OPAQUE_PORTS}=4222"));
    }
}
