//! Garbage collection: what belonged to something that is gone goes too.
//!
//! [`Graph`] holds the metadata of every object of every kind, custom ones included, and who owns what. An object all of
//! whose owners are gone is deleted; one that is being deleted in the foreground waits for what it owns; one deleted
//! with `orphan` first lets go of what it owns.

use super::cache::{Change, Cluster, Key, is_conflict, is_gone, key_of, patching};
use super::watches::follow_metadata;
use super::{Again, Work};
use kube::api::{DeleteParams, Patch};
use kube::core::{ApiResource, DynamicObject, ObjectMeta, PartialObjectMeta};
use kube::discovery::{Discovery, verbs};
use kube::runtime::watcher::Event;
use kube::{Api, Client};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How often newly defined kinds are looked for.
const DISCOVERY: Duration = Duration::from_secs(5);
/// An owner that is not known is believed to be gone only when the watches have had this long to show it.
const DOUBT: Duration = Duration::from_millis(200);

/// An object, as far as ownership is concerned.
struct Node {
    resource: ApiResource,
    key: Key,
    owners: Vec<String>,
    deleting: bool,
    finalizers: Vec<String>,
}

/// Every object by uid.
#[derive(Default)]
pub(crate) struct Graph {
    nodes: BTreeMap<String, Node>,
    owned: BTreeMap<String, BTreeSet<String>>,
    namespaced: BTreeMap<(String, String), ApiResource>,
}

impl Graph {
    /// Takes a change in and says whose fate has to be looked at.
    pub(crate) fn apply(
        &mut self,
        resource: &ApiResource,
        event: Event<PartialObjectMeta<DynamicObject>>,
    ) -> Vec<Work> {
        match event {
            Event::Apply(object) | Event::InitApply(object) => self.put(resource, object.metadata),
            Event::Delete(object) => self.remove(&object.metadata.uid.unwrap_or_default()),
            Event::Init | Event::InitDone => Vec::new(),
        }
    }

    /// Kinds whose objects live in namespaces, as far as any object of them was ever seen.
    pub(crate) fn namespaced_resources(&self) -> Vec<ApiResource> {
        self.namespaced.values().cloned().collect()
    }

    fn put(&mut self, resource: &ApiResource, meta: ObjectMeta) -> Vec<Work> {
        let Some(uid) = meta.uid.clone() else { return Vec::new() };
        if meta.namespace.is_some() {
            self.namespaced.entry((resource.group.clone(), resource.kind.clone())).or_insert_with(|| resource.clone());
        }
        self.forget(&uid);
        let owners: Vec<String> = meta.owner_references.iter().flatten().map(|owner| owner.uid.clone()).collect();
        for owner in &owners {
            self.owned.entry(owner.clone()).or_default().insert(uid.clone());
        }
        let finalizers: Vec<String> = meta.finalizers.clone().unwrap_or_default();
        let deleting = meta.deletion_timestamp.is_some();
        let interesting = !owners.is_empty() || (deleting && finalizers.iter().any(|f| is_ours(f)));
        let mut work: Vec<Work> = interesting.then(|| Work::Garbage(uid.clone())).into_iter().collect();
        // An owner deleted in the foreground waits for this one to start going.
        work.extend(
            owners
                .iter()
                .filter(|owner| self.nodes.get(*owner).is_some_and(|n| n.deleting))
                .cloned()
                .map(Work::Garbage),
        );
        self.nodes.insert(uid, Node { resource: resource.clone(), key: key_of(&meta), owners, deleting, finalizers });
        work
    }

    fn remove(&mut self, uid: &str) -> Vec<Work> {
        let owners = self.nodes.get(uid).map(|node| node.owners.clone()).unwrap_or_default();
        self.forget(uid);
        let orphans = self.owned.get(uid).into_iter().flatten().cloned();
        orphans.chain(owners).map(Work::Garbage).collect()
    }

    fn forget(&mut self, uid: &str) {
        let Some(node) = self.nodes.remove(uid) else { return };
        for owner in node.owners {
            if let Some(set) = self.owned.get_mut(&owner) {
                set.remove(uid);
                if set.is_empty() {
                    self.owned.remove(&owner);
                }
            }
        }
    }

    fn owned_by(&self, uid: &str) -> Vec<&Node> {
        self.owned.get(uid).into_iter().flatten().filter_map(|uid| self.nodes.get(uid)).collect()
    }
}

fn is_ours(finalizer: &str) -> bool {
    matches!(finalizer, "foregroundDeletion" | "orphan")
}

/// Follows the metadata of every kind there is, and of those defined later.
pub(crate) fn follow_everything(client: Client, out: mpsc::Sender<Change>, stop: CancellationToken) {
    let token = stop.clone();
    tokio::spawn(token.run_until_cancelled_owned(async move {
        let mut followed = BTreeSet::new();
        loop {
            match Discovery::new(client.clone()).run().await {
                Ok(found) => {
                    for group in found.groups() {
                        for (resource, capabilities) in group.recommended_resources() {
                            let watchable = capabilities.supports_operation(verbs::WATCH)
                                && capabilities.supports_operation(verbs::DELETE);
                            // Events come and go by themselves, and exist once under two names.
                            if watchable
                                && resource.kind != "Event"
                                && followed.insert((resource.group.clone(), resource.kind.clone()))
                            {
                                follow_metadata(&client, resource, &out, &stop);
                            }
                        }
                    }
                }
                Err(error) => tracing::debug!(%error, "discovery failed and is tried again"),
            }
            tokio::time::sleep(DISCOVERY).await;
        }
    }));
}

pub(crate) async fn reconcile(cluster: &mut Cluster, uid: &str) -> kube::Result<Again> {
    let Some(node) = cluster.graph.nodes.get(uid) else { return Ok(None) };
    let api = api_of(&cluster.client, node);
    let name = node.key.1.clone();
    if node.deleting {
        if node.finalizers.iter().any(|f| f == "orphan") {
            for owned in cluster.graph.owned_by(uid) {
                let keep: Vec<_> = owned.owners.iter().filter(|owner| *owner != uid).collect();
                let whole = api_of(&cluster.client, owned);
                let found = gone_is_fine(whole.get_metadata(&owned.key.1).await)?;
                let Some(found) = found else { continue };
                let references: Vec<_> =
                    found.metadata.owner_references.into_iter().flatten().filter(|r| keep.contains(&&r.uid)).collect();
                let patch = json!({"metadata": {"ownerReferences": references}});
                gone_is_fine(whole.patch_metadata(&owned.key.1, &patching(), &Patch::Merge(&patch)).await)?;
            }
            drop_finalizer(&api, &name, &node.finalizers, "orphan").await?;
        } else if node.finalizers.iter().any(|f| f == "foregroundDeletion") {
            let owned = cluster.graph.owned_by(uid);
            if owned.is_empty() {
                drop_finalizer(&api, &name, &node.finalizers, "foregroundDeletion").await?;
                return Ok(None);
            }
            for child in owned.iter().filter(|child| !child.deleting) {
                delete(&cluster.client, child, DeleteParams::foreground()).await?;
            }
            return Ok(Some(Duration::from_millis(200)));
        }
        return Ok(None);
    }
    if node.owners.is_empty() || node.owners.iter().any(|owner| cluster.graph.nodes.contains_key(owner)) {
        return Ok(None);
    }
    // No owner is known. The object may have been seen before its owner was: the object itself is asked once more.
    let created = gone_is_fine(api.get_metadata(&name).await)?.and_then(|object| object.metadata.creation_timestamp);
    let Some(created) = created else { return Ok(None) };
    let age = jiff::Timestamp::now().as_millisecond() - created.0.as_millisecond();
    // Creation times are whole seconds, so a second is added to the doubt.
    if age < 1000 + DOUBT.as_millis() as i64 {
        return Ok(Some(DOUBT));
    }
    tracing::debug!(kind = %node.resource.kind, namespace = %node.key.0, name = %node.key.1, "collecting what has no owner any more");
    delete(&cluster.client, node, DeleteParams::background()).await?;
    Ok(None)
}

fn api_of(client: &Client, node: &Node) -> Api<DynamicObject> {
    match node.key.0.as_str() {
        "" => Api::all_with(client.clone(), &node.resource),
        namespace => Api::namespaced_with(client.clone(), namespace, &node.resource),
    }
}

async fn delete(client: &Client, node: &Node, options: DeleteParams) -> kube::Result<()> {
    gone_is_fine(api_of(client, node).delete(&node.key.1, &options).await).map(|_| ())
}

async fn drop_finalizer(api: &Api<DynamicObject>, name: &str, all: &[String], which: &str) -> kube::Result<()> {
    let left: Vec<&String> = all.iter().filter(|f| *f != which).collect();
    let patch = json!({"metadata": {"finalizers": left}});
    gone_is_fine(api.patch_metadata(name, &patching(), &Patch::Merge(&patch)).await).map(|_| ())
}

fn gone_is_fine<T>(outcome: kube::Result<T>) -> kube::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_gone(&error) || is_conflict(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
