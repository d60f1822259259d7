//! Applies objects to a cluster: server-side, as field manager `meshctl`, in an order in which each finds what it
//! needs; and waits until what was applied works.

use crate::check::{is_ready, why_not_ready};
use crate::cluster::Cluster;
use crate::error::{Context, Error, Hint, Result};
use crate::output::Step;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams, TypeMeta};
use kube::core::GroupVersionKind;
use kube::discovery::{Scope, oneshot};
use mesh_api::names::{OBSERVE_GROUP, OBSERVE_VERSION};
use mesh_manifests::inventory;
use serde_json::Value;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::{Duration, Instant};

/// Who we are in `managedFields`.
pub const FIELD_MANAGER: &str = "meshctl";
/// Pause between two looks at what is being waited for.
pub const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long a log may take that would only be a help.
const LOG_DEADLINE: Duration = Duration::from_secs(2);

/// How long an aggregated API may take to answer once; while a pod is replaced, a connection can lead nowhere.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// How long namespaces may take to go.
const GONE_DEADLINE: Duration = Duration::from_secs(60);

/// Kinds that others need, in the order they are applied.
const FIRST: &[&str] = &[
    "Namespace",
    "CustomResourceDefinition",
    "ServiceAccount",
    "ClusterRole",
    "Role",
    "ClusterRoleBinding",
    "RoleBinding",
    "ConfigMap",
    "Secret",
    "Service",
    "NetworkPolicy",
];
/// Kinds that make the API server call what runs by then.
const LAST: &[&str] = &["APIService", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];

/// Sorts objects so that each finds what it needs; among equals the order stays.
pub fn in_order(mut objects: Vec<Value>) -> Vec<Value> {
    let place = |object: &Value| {
        let kind = object["kind"].as_str().unwrap_or_default();
        let first = FIRST.iter().position(|known| *known == kind);
        let last = LAST.iter().position(|known| *known == kind).map(|at| FIRST.len() + 1 + at);
        first.or(last).unwrap_or(FIRST.len())
    };
    objects.sort_by_key(place);
    objects
}

/// Applies objects in order; those without a namespace go to `namespace` if their kind lives in one.
/// Fields that somebody else has set are a conflict, and an error.
pub async fn apply(cluster: &Cluster, objects: Vec<Value>, namespace: &str, step: &Step) -> Result<usize> {
    apply_as(cluster, objects, namespace, PatchParams::apply(FIELD_MANAGER), step).await
}

/// As [`apply`], but takes fields over from whoever set them: objects that are the mesh's own.
pub async fn apply_over(cluster: &Cluster, objects: Vec<Value>, namespace: &str, step: &Step) -> Result<usize> {
    apply_as(cluster, objects, namespace, PatchParams::apply(FIELD_MANAGER).force(), step).await
}

async fn apply_as(
    cluster: &Cluster,
    objects: Vec<Value>,
    namespace: &str,
    params: PatchParams,
    step: &Step,
) -> Result<usize> {
    let mut kinds = Kinds::default();
    let objects = in_order(objects);
    let count = objects.len();
    for (index, object) in objects.into_iter().enumerate() {
        let label = label(&object);
        step.now(&format!("applying {label} ({} of {count})", index + 1));
        let target = kinds.target(cluster, object, namespace).await.during(|| format!("apply {label}"))?;
        let applied = target.api.patch(&target.name, &params, &Patch::Apply(&target.object)).await;
        applied.during(|| format!("apply {label}"))?;
    }
    Ok(count)
}

/// Deletes objects in the opposite order, with everything that belongs to them, and waits until namespaces are gone.
/// What is gone already is fine.
pub async fn delete(cluster: &Cluster, objects: Vec<Value>, namespace: &str, step: &Step) -> Result<()> {
    let mut kinds = Kinds::default();
    let namespaces = objects.iter().filter(|object| object["kind"] == "Namespace");
    let namespaces: Vec<String> =
        namespaces.filter_map(|it| it["metadata"]["name"].as_str()).map(str::to_owned).collect();
    for object in in_order(objects).into_iter().rev() {
        let label = label(&object);
        step.now(&format!("deleting {label}"));
        let target = kinds.target(cluster, object, namespace).await.during(|| format!("delete {label}"))?;
        match target.api.delete(&target.name, &DeleteParams::background()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            deleted => drop(deleted.during(|| format!("delete {label}"))?),
        }
    }
    wait_gone(cluster, &namespaces, Instant::now() + GONE_DEADLINE, step).await
}

/// Waits until namespaces are gone.
async fn wait_gone(cluster: &Cluster, names: &[String], deadline: Instant, step: &Step) -> Result<()> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    for name in names {
        step.now(&format!("waiting until namespace {name} is gone"));
        while api.get_opt(name).await.during(|| format!("read namespace {name}"))?.is_some() {
            if Instant::now() >= deadline {
                let why = format!("it is still being deleted after {} s", GONE_DEADLINE.as_secs());
                return Err(Error::new(why).during(format!("delete namespace {name}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}

/// An object, and where it lives.
pub(crate) struct Target {
    /// Its kind, in its namespace.
    pub api: Api<DynamicObject>,
    /// Its name.
    pub name: String,
    /// Itself.
    pub object: DynamicObject,
}

/// What the API server said of kinds so far.
#[derive(Default)]
pub(crate) struct Kinds(BTreeMap<(String, String), (ApiResource, Scope)>);

impl Kinds {
    /// Where an object lives.
    pub(crate) async fn target(&mut self, cluster: &Cluster, object: Value, namespace: &str) -> Result<Target> {
        let object: DynamicObject = serde_json::from_value(object).during(|| "read it")?;
        let Some(TypeMeta { api_version, kind }) = object.types.clone() else {
            return Err(Error::new("it has no apiVersion and kind"));
        };
        let Some(name) = object.metadata.name.clone() else {
            return Err(Error::new("it has no name"));
        };
        let (resource, scope) = match self.0.entry((api_version.clone(), kind.clone())) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let gvk = gvk(&api_version, &kind);
                let found = oneshot::pinned_kind(&cluster.client, &gvk).await;
                let (resource, capabilities) = found.during(|| format!("find the kind {kind} of {api_version}"))?;
                unknown.insert((resource, capabilities.scope))
            }
        };
        let client = cluster.client.clone();
        let api = match scope {
            Scope::Cluster => Api::all_with(client, resource),
            Scope::Namespaced => {
                Api::namespaced_with(client, object.metadata.namespace.as_deref().unwrap_or(namespace), resource)
            }
        };
        Ok(Target { api, name, object })
    }
}

fn gvk(api_version: &str, kind: &str) -> GroupVersionKind {
    match api_version.split_once('/') {
        Some((group, version)) => GroupVersionKind::gvk(group, version, kind),
        None => GroupVersionKind::gvk("", api_version, kind),
    }
}

/// `deployment web`, for people.
fn label(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or("object").to_lowercase();
    format!("{kind} {}", object["metadata"]["name"].as_str().unwrap_or("without a name"))
}

/// The deployments and daemon sets among objects.
pub fn workloads(objects: &[Value], namespace: &str) -> Vec<inventory::Entry> {
    let workloads = objects.iter().filter(|object| object["kind"] == "Deployment" || object["kind"] == "DaemonSet");
    let mut workloads: Vec<_> = workloads.map(inventory::Entry::of).collect();
    workloads.iter_mut().for_each(|entry| entry.namespace = entry.namespace.take().or(Some(namespace.to_owned())));
    workloads
}

/// Waits until all pods of these workloads are ready.
pub async fn wait_available(
    cluster: &Cluster,
    workloads: &[inventory::Entry],
    deadline: Instant,
    step: &Step,
) -> Result<()> {
    let mut waiting: Vec<_> = workloads.iter().collect();
    loop {
        let mut still = Vec::new();
        for workload in waiting {
            if !is_available(cluster, workload).await? {
                still.push(workload);
            }
        }
        let Some(first) = still.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            let (namespace, name) = (first.namespace.as_deref().unwrap_or_default(), &first.name);
            let why = unready(cluster, namespace, name).await;
            return Err(Error::new(why).during(format!("wait for {} {name} in {namespace}", first.kind.to_lowercase())))
                .hint(|| format!("kubectl -n {namespace} describe pods; give it longer with --timeout"));
        }
        step.now(&match still.len() {
            1 => format!("waiting for {}", first.name),
            n => format!("waiting for {n} of {} workloads", workloads.len()),
        });
        waiting = still;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn is_available(cluster: &Cluster, workload: &inventory::Entry) -> Result<bool> {
    let (client, name) = (cluster.client.clone(), &workload.name);
    let namespace = workload.namespace.as_deref().unwrap_or_default();
    let read = || format!("read {workload}");
    Ok(match workload.kind.as_str() {
        "DaemonSet" => on_every_node(&Api::namespaced(client, namespace).get(name).await.during(read)?),
        _ => available(&Api::namespaced(client, namespace).get(name).await.during(read)?),
    })
}

/// True if a pod of the newest template is ready on every node that is to have one.
pub(crate) fn on_every_node(set: &DaemonSet) -> bool {
    let Some(status) = &set.status else { return false };
    status.observed_generation >= set.metadata.generation
        && status.updated_number_scheduled.unwrap_or(0) >= status.desired_number_scheduled
        && status.number_ready >= status.desired_number_scheduled
}

/// True if all pods of the newest template are ready, and no others are left.
pub(crate) fn available(deployment: &Deployment) -> bool {
    let (Some(spec), Some(status)) = (&deployment.spec, &deployment.status) else { return false };
    let wanted = spec.replicas.unwrap_or(1);
    let current = status.observed_generation >= deployment.metadata.generation;
    current
        && status.updated_replicas.unwrap_or(0) >= wanted
        && status.ready_replicas.unwrap_or(0) >= wanted
        && status.replicas.unwrap_or(0) == wanted
}

async fn unready(cluster: &Cluster, namespace: &str, workload: &str) -> String {
    let pods_api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let Ok(pods) = pods_api.list(&ListParams::default()).await else { return "it did not become ready".to_owned() };
    let prefix = format!("{workload}-");
    let mut of_it = pods
        .items
        .iter()
        .filter(|pod| pod.metadata.name.as_deref().is_some_and(|name| name.starts_with(&prefix)) && !is_ready(pod));
    match of_it.next() {
        Some(pod) => {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let last_words = last_words(&pods_api, pod).await.map(|line| format!("; it said last: {line}"));
            format!("pod {name} is not ready: {}{}", why_not_ready(pod), last_words.unwrap_or_default())
        }
        None => "it did not become ready, and none of its pods says why".to_owned(),
    }
}

/// The last line in the log of a pod's first container that is not ready.
async fn last_words(pods: &Api<Pod>, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let mut containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let container = containers.find(|container| !container.ready && container.restart_count > 0)?;
    let params = LogParams {
        container: Some(container.name.clone()),
        previous: container.state.as_ref().is_some_and(|state| state.running.is_none()),
        tail_lines: Some(1),
        ..LogParams::default()
    };
    let log = tokio::time::timeout(LOG_DEADLINE, pods.logs(pod.metadata.name.as_deref()?, &params)).await;
    log.ok()?.ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Waits until the API server can use the control plane: the webhook has its certificate, the observe API answers.
pub async fn wait_wired(cluster: &Cluster, deadline: Instant, step: &Step) -> Result<()> {
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let version = format!("{OBSERVE_GROUP}/{OBSERVE_VERSION}");
    loop {
        let webhook = webhooks.get_opt(crate::check::INJECTOR).await.during(|| "read the webhook's configuration")?;
        let ready = webhook.into_iter().flat_map(|found| found.webhooks.unwrap_or_default());
        let ready = ready.into_iter().all(|webhook| webhook.client_config.ca_bundle.is_some_and(|ca| !ca.0.is_empty()));
        let observe = if ready { answers(cluster, &version).await.err() } else { None };
        let missing = match (ready, observe) {
            (true, None) => return Ok(()),
            (false, _) => "the webhook has no certificate yet".to_owned(),
            (true, Some(error)) => error.to_string(),
        };
        if Instant::now() >= deadline {
            return Err(Error::new(missing).during("wait for the control plane")).hint(|| "run `meshctl check`");
        }
        step.now(if ready { "waiting for the observe API" } else { "waiting for the webhook's certificate" });
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Asks an aggregated API whether it is there.
async fn answers(cluster: &Cluster, version: &str) -> Result<()> {
    let tried = || format!("ask {version}");
    match tokio::time::timeout(ANSWER_DEADLINE, cluster.client.list_api_group_resources(version)).await {
        Ok(answer) => answer.map(drop).during(tried),
        Err(_) => Err(Error::new(format!("no answer within {} s", ANSWER_DEADLINE.as_secs())).during(tried())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_others_need_comes_first() {
        let kinds = ["MutatingWebhookConfiguration", "Deployment", "Gadget", "Secret", "Namespace", "APIService"];
        let objects = kinds.map(|kind| json!({"kind": kind})).to_vec();
        let order: Vec<_> =
            in_order(objects).iter().map(|object| object["kind"].as_str().unwrap().to_owned()).collect();
        let expect = ["Namespace", "Secret", "Deployment", "Gadget", "APIService", "MutatingWebhookConfiguration"];
        assert_eq!(order, expect);
    }

    #[test]
    fn a_deployment_is_available_when_all_its_new_pods_are() {
        let check = |status: Value, expect: bool| {
            let deployment = json!({"metadata": {"generation": 2}, "status": status,
                "spec": {"replicas": 2, "selector": {}, "template": {}}});
            assert_eq!(available(&serde_json::from_value(deployment).unwrap()), expect, "{status}");
        };
        check(json!({}), false);
        let all = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2});
        check(all, true);
        check(json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}), false);
        check(json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "readyReplicas": 3}), false);
        check(json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 1}), false);
    }

    #[test]
    fn a_daemon_set_is_available_when_every_node_has_its_new_pod() {
        let check = |observed: i64, wanted: i32, updated: i32, ready: i32, expect: bool| {
            let set = json!({"metadata": {"generation": 2}, "spec": {"selector": {}, "template": {}}, "status": {
                "observedGeneration": observed, "desiredNumberScheduled": wanted, "currentNumberScheduled": wanted,
                "numberMisscheduled": 0, "updatedNumberScheduled": updated, "numberReady": ready}});
            assert_eq!(on_every_node(&serde_json::from_value(set.clone()).unwrap()), expect, "{set}");
        };
        check(2, 3, 3, 3, true);
        check(1, 3, 3, 3, false);
        check(2, 3, 2, 3, false);
        check(2, 3, 3, 2, false);
        check(2, 0, 0, 0, true);
    }

    #[test]
    fn core_and_named_groups_are_read() {
        assert_eq!(gvk("v1", "Pod"), GroupVersionKind::gvk("", "v1", "Pod"));
        assert_eq!(gvk("apps/v1", "Deployment"), GroupVersionKind::gvk("apps", "v1", "Deployment"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn objects_are_applied_by_us_and_deleted_again() {
        let cluster = crate::testing::TestCluster::start();
        let cluster = cluster.connect().await;
        let (printer, _) = crate::output::Printer::memory();
        let step = printer.step("applying");
        let objects = vec![
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}}),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
        ];
        assert_eq!(apply(&cluster, objects.clone(), "shop", &step).await.unwrap(), 2);
        assert_eq!(apply(&cluster, objects.clone(), "shop", &step).await.unwrap(), 2, "a second time changes nothing");
        let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(cluster.client.clone(), "shop");
        let map = maps.get("a").await.unwrap();
        let managers: Vec<_> = map.metadata.managed_fields.iter().flatten().map(|f| f.manager.as_deref()).collect();
        assert_eq!(managers, [Some(FIELD_MANAGER)]);
        for _ in 0..2 {
            delete(&cluster, vec![objects[0].clone()], "shop", &step).await.unwrap();
        }
        assert!(maps.get_opt("a").await.unwrap().is_none());
        let nameless = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}});
        let error = apply(&cluster, vec![nameless], "shop", &step).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot apply configmap without a name: it has no name");
    }
}
