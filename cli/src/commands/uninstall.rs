//! `meshctl uninstall` and `meshctl prune`: take away exactly what install recorded, or what is left of other versions.

use crate::apply;
use crate::args::{Global, Prune, Uninstall};
use crate::cluster::Cluster;
use crate::error::{Context, Error, Outcome, Result};
use crate::installed;
use crate::output::{Printer, words};
use comfy_table::Cell;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use mesh_api::names::PROXY_VERSION;
use mesh_control::world::view::workload;
use mesh_manifests::install::to_yaml;
use mesh_manifests::inventory::{self, Entry, KINDS, SELECTOR};
use serde_json::Value;
use std::collections::BTreeSet;

/// At most this many workloads are named in a refusal.
const NAMED: usize = 10;

/// Prints or deletes what install recorded.
pub async fn run(global: &Global, args: &Uninstall, printer: &Printer) -> Result<Outcome> {
    let cluster = Cluster::connect(global).await?;
    let installed = installed::expect(&cluster).await?;
    if installed.inventory.is_empty() {
        return Err(Error::new("the mesh was installed without an inventory")
            .hint("meshctl prune lists all objects that carry the mesh's labels, and deletes them with --apply"));
    }
    if args.apply && !args.force {
        installed.refuse_beside_helm("uninstall", "helm uninstall NAME")?;
    }
    let meshed = meshed(&cluster).await?;
    if !meshed.is_empty() && !args.force {
        let names: Vec<&str> = meshed.iter().take(NAMED).map(String::as_str).collect();
        let more = if meshed.len() > NAMED { format!(" and {} more", meshed.len() - NAMED) } else { String::new() };
        return Err(Error::new(format!("these workloads still have proxies: {}{more}", names.join(", ")))
            .during("uninstall")
            .hint(
                "take the proxies out first (kubectl get deploy -o yaml | meshctl uninject - | kubectl apply -f -, and \
                   remove meshctl.dev/inject from namespaces); --force leaves proxies that run on with what they know",
            ));
    }
    let objects: Vec<Value> = apply::in_order(installed.inventory.iter().map(Entry::object).collect());
    if !args.apply {
        let reversed: Vec<Value> = objects.into_iter().rev().collect();
        printer.data(&to_yaml(&reversed).during(|| "write YAML")?)?;
        printer.note("nothing was deleted: pipe this into `kubectl delete -f -`, or give --apply");
        return Ok(Outcome::Well);
    }
    delete(&cluster, objects, printer).await?;
    let left = labelled(&cluster).await?;
    if left.is_empty() {
        return Ok(Outcome::Well);
    }
    let left: Vec<String> = left.iter().map(Entry::to_string).collect();
    printer.warn(&format!("left over from other versions, `meshctl prune --apply` deletes it: {}", left.join(", ")));
    Ok(Outcome::Problems)
}

async fn delete(cluster: &Cluster, objects: Vec<Value>, printer: &Printer) -> Result<()> {
    let step = printer.step("deleting the mesh");
    let count = objects.len();
    apply::delete(cluster, objects, &cluster.system_namespace, &step).await?;
    step.done(&format!("{count} objects deleted"));
    Ok(())
}

/// Lists or deletes what carries the mesh's labels and belongs to no mesh that is installed.
pub async fn prune(global: &Global, args: &Prune, printer: &Printer) -> Result<Outcome> {
    let cluster = Cluster::connect(global).await?;
    let recorded = installed::read(&cluster).await?.map(|installed| installed.inventory).unwrap_or_default();
    let left = inventory::gone(&labelled(&cluster).await?, &recorded);
    if left.is_empty() {
        printer.note("nothing is left over");
        return Ok(Outcome::Well);
    }
    if args.apply {
        delete(&cluster, left.iter().map(Entry::object).collect(), printer).await?;
        return Ok(Outcome::Well);
    }
    let rows = left.iter().map(|entry| {
        vec![
            Cell::new(&entry.kind),
            Cell::new(entry.namespace.as_deref().unwrap_or("-")),
            Cell::new(&entry.name),
            Cell::new(&entry.api_version),
        ]
    });
    printer.table(&[words("KIND"), words("NAMESPACE"), words("NAME"), words("API VERSION")], rows.collect())?;
    printer.note("nothing was deleted: --apply does it");
    Ok(Outcome::Problems)
}

/// Every object of the mesh's kinds that carries its labels. Kinds that the cluster does not have are passed over.
async fn labelled(cluster: &Cluster) -> Result<Vec<Entry>> {
    let query = ListParams::default().labels(SELECTOR);
    let mut found = Vec::new();
    for (api_version, kind) in KINDS {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let list = match api.list(&query).await {
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            list => list.during(|| format!("list the mesh's objects of kind {kind}"))?,
        };
        found.extend(list.items.into_iter().filter(|object| object.metadata.deletion_timestamp.is_none()).map(
            |object| Entry {
                api_version: (*api_version).to_owned(),
                kind: (*kind).to_owned(),
                namespace: object.metadata.namespace,
                name: object.metadata.name.unwrap_or_default(),
            },
        ));
    }
    Ok(found)
}

/// Workloads whose pods have proxies.
async fn meshed(cluster: &Cluster) -> Result<Vec<String>> {
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let pods = pods.list(&ListParams::default()).await.during(|| "list pods")?.items;
    let with_proxy = pods.iter().filter(|pod| {
        let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(PROXY_VERSION))
            && !matches!(ended, Some("Succeeded" | "Failed"))
    });
    let workloads: BTreeSet<String> = with_proxy.map(|pod| workload(&pod.metadata).to_string()).collect();
    Ok(workloads.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestCluster;
    use serde_json::json;

    async fn mesh() -> (TestCluster, Cluster) {
        let server = TestCluster::start();
        let cluster = server.connect().await;
        let (printer, _) = Printer::memory();
        let step = printer.step("installing");
        let objects = crate::commands::install::defaults("mesh-system").unwrap();
        apply::apply(&cluster, objects, "mesh-system", &step).await.unwrap();
        (server, cluster)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn uninstall_prints_and_deletes_what_was_recorded() {
        let (server, cluster) = mesh().await;
        assert!(!labelled(&cluster).await.unwrap().is_empty());
        let (printer, told) = Printer::memory();
        run(&server.global(), &Uninstall { apply: false, force: false }, &printer).await.unwrap();
        let (yaml, notes) = told();
        assert!(yaml.trim_end().ends_with("kind: Namespace\nmetadata:\n  name: mesh-system"), "{yaml}");
        assert!(notes.contains("nothing was deleted"));
        assert!(installed::read(&cluster).await.unwrap().is_some());

        let outcome = run(&server.global(), &Uninstall { apply: true, force: false }, &printer).await.unwrap();
        assert_eq!((outcome, labelled(&cluster).await.unwrap()), (Outcome::Well, vec![]));
        let error = run(&server.global(), &Uninstall { apply: true, force: false }, &printer).await.unwrap_err();
        assert_eq!(error.to_string(), "there is no mesh in namespace mesh-system");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_mesh_that_is_used_is_not_taken_away() {
        let (server, cluster) = mesh().await;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "default");
        let pod = json!({"metadata": {"name": "web", "annotations": {PROXY_VERSION: "0.1.0"}},
            "spec": {"containers": [{"name": "main", "image": "x"}]}});
        pods.create(&Default::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        let (printer, _) = Printer::memory();
        let error = run(&server.global(), &Uninstall { apply: true, force: false }, &printer).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot uninstall: these workloads still have proxies: default/pod/web");
        assert!(installed::read(&cluster).await.unwrap().is_some());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn prune_finds_what_no_install_knows() {
        let (server, cluster) = mesh().await;
        let (printer, told) = Printer::memory();
        assert_eq!(prune(&server.global(), &Prune { apply: false }, &printer).await.unwrap(), Outcome::Well);
        let labels = json!({"app.kubernetes.io/managed-by": "meshctl", "app.kubernetes.io/part-of": "meshctl"});
        let old = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "old", "namespace": "mesh-system", "labels": labels}});
        let step = printer.step("making");
        apply::apply(&cluster, vec![old], "mesh-system", &step).await.unwrap();
        assert_eq!(prune(&server.global(), &Prune { apply: false }, &printer).await.unwrap(), Outcome::Problems);
        assert!(told().0.contains("ConfigMap   mesh-system   old"), "{}", told().0);
        prune(&server.global(), &Prune { apply: true }, &printer).await.unwrap();
        assert_eq!(prune(&server.global(), &Prune { apply: false }, &printer).await.unwrap(), Outcome::Well);
        assert!(installed::read(&cluster).await.unwrap().is_some());
    }
}
