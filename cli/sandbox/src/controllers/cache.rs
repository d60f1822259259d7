//! What the controllers know: the objects of the kinds they deal in, kept current by watches and by their own writes.

use super::Work;
use super::garbage::Graph;
use super::watches::follow;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Namespace (empty for what lives in none) and name.
pub(crate) type Key = (String, String);

/// Changes on their way from the watches; a full queue slows the watches down.
const CHANGES: usize = 1024;

/// Namespace and name of an object.
pub(crate) fn key_of(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// True if somebody else wrote in between, or did already what was wanted.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// True if the object is not there (any more).
pub(crate) fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// What `metadata.ownerReferences` calls the controller of an object.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

/// A reference that makes `owner` the controller of what carries it.
pub(crate) fn owned_by<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Who the controllers are in `managedFields`.
const MANAGER: &str = "kube-controller-manager";

/// How the controllers create and replace.
pub(crate) fn writing() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() }
}

/// How the controllers patch.
pub(crate) fn patching() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() }
}

fn revision(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_ref().and_then(|v| v.parse().ok()).unwrap_or_default()
}

/// All objects of a kind.
pub(crate) struct Objects<K> {
    known: BTreeMap<Key, K>,
    /// While a watch lists anew: what was known when it began and has not come up since.
    unseen: BTreeSet<Key>,
}

impl<K> Default for Objects<K> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), unseen: BTreeSet::new() }
    }
}

impl<K: Resource> Objects<K> {
    pub(crate) fn get(&self, key: &Key) -> Option<&K> {
        self.known.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &K> {
        self.known.values()
    }

    /// The objects of one namespace.
    pub(crate) fn inside<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a K> {
        self.known
            .range((namespace.to_owned(), String::new())..)
            .take_while(move |(k, _)| k.0 == namespace)
            .map(|(_, o)| o)
    }

    /// The objects of a namespace that this owner controls.
    pub(crate) fn controlled<'a>(&'a self, owner: &'a ObjectMeta) -> impl Iterator<Item = &'a K> {
        let namespace = owner.namespace.as_deref().unwrap_or_default();
        self.inside(namespace)
            .filter(|object| controller_of(object.meta()).is_some_and(|c| Some(&c.uid) == owner.uid.as_ref()))
    }

    /// Takes in a version unless a later one, or a deletion under way, is known already.
    fn put(&mut self, object: K) -> bool {
        let key = key_of(object.meta());
        self.unseen.remove(&key);
        if let Some(known) = self.known.get(&key)
            && known.meta().uid == object.meta().uid
        {
            let deleting = known.meta().deletion_timestamp.is_some() && object.meta().deletion_timestamp.is_none();
            if deleting || revision(known.meta()) > revision(object.meta()) {
                return false;
            }
        }
        self.known.insert(key, object);
        true
    }

    /// A watch begins to list everything there is.
    fn begin_list(&mut self) {
        self.unseen = self.known.keys().cloned().collect();
    }

    /// The list is complete: what did not come up is gone.
    fn end_list(&mut self) -> Vec<K> {
        std::mem::take(&mut self.unseen).iter().filter_map(|key| self.known.remove(key)).collect()
    }

    fn remove(&mut self, object: &K) -> bool {
        let key = key_of(object.meta());
        if self.known.get(&key).is_some_and(|known| known.meta().uid == object.meta().uid) {
            return self.known.remove(&key).is_some();
        }
        false
    }
}

/// Something a watch saw. Few exist at a time, so their size does not matter.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Change {
    Namespace(Event<Namespace>),
    Node(Event<Node>),
    Pod(Event<Pod>),
    Service(Event<Service>),
    ServiceAccount(Event<ServiceAccount>),
    RootCertificate(Event<ConfigMap>),
    Slice(Event<EndpointSlice>),
    Endpoints(Event<Endpoints>),
    Deployment(Event<Deployment>),
    ReplicaSet(Event<ReplicaSet>),
    StatefulSet(Event<StatefulSet>),
    DaemonSet(Event<DaemonSet>),
    Job(Event<Job>),
    CronJob(Event<CronJob>),
    Budget(Event<PodDisruptionBudget>),
    /// Only the metadata of any object, for garbage collection.
    Metadata(kube::core::ApiResource, Box<Event<PartialObjectMeta<kube::core::DynamicObject>>>),
}

/// Everything the controllers know, and the client they act through.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) ca_pem: String,
    pub(crate) namespaces: Objects<Namespace>,
    pub(crate) nodes: Objects<Node>,
    pub(crate) pods: Objects<Pod>,
    pub(crate) services: Objects<Service>,
    pub(crate) service_accounts: Objects<ServiceAccount>,
    pub(crate) root_certificates: Objects<ConfigMap>,
    pub(crate) slices: Objects<EndpointSlice>,
    pub(crate) endpoints: Objects<Endpoints>,
    pub(crate) deployments: Objects<Deployment>,
    pub(crate) replica_sets: Objects<ReplicaSet>,
    pub(crate) stateful_sets: Objects<StatefulSet>,
    pub(crate) daemon_sets: Objects<DaemonSet>,
    pub(crate) jobs: Objects<Job>,
    pub(crate) cron_jobs: Objects<CronJob>,
    pub(crate) budgets: Objects<PodDisruptionBudget>,
    pub(crate) graph: Graph,
}

/// Where the cache keeps objects of a kind, so that a write can put its result there.
pub(crate) trait Cached:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static
{
    fn objects(cluster: &mut Cluster) -> &mut Objects<Self>;
}

macro_rules! cached {
    ($($kind:ident $field:ident)*) => {$(
        impl Cached for $kind {
            fn objects(cluster: &mut Cluster) -> &mut Objects<Self> {
                &mut cluster.$field
            }
        }
    )*};
}

cached! {
    Namespace namespaces
    Node nodes
    Pod pods
    Service services
    ServiceAccount service_accounts
    ConfigMap root_certificates
    EndpointSlice slices
    Endpoints endpoints
    Deployment deployments
    ReplicaSet replica_sets
    StatefulSet stateful_sets
    DaemonSet daemon_sets
    Job jobs
    CronJob cron_jobs
    PodDisruptionBudget budgets
}

impl Cluster {
    /// Starts every watch.
    pub(crate) fn watch(client: Client, ca_pem: String, stop: &CancellationToken) -> (Self, mpsc::Receiver<Change>) {
        let (out, changes) = mpsc::channel(CHANGES);
        macro_rules! follow_all {
            ($($wrap:ident)*) => {$(
                follow(Api::all(client.clone()), watcher::Config::default(), &out, stop, Change::$wrap);
            )*};
        }
        follow_all!(Namespace Node Pod Service ServiceAccount Slice Endpoints Deployment ReplicaSet StatefulSet DaemonSet Job CronJob Budget);
        let only =
            watcher::Config::default().fields(&format!("metadata.name={}", super::service_account::ROOT_CERTIFICATE));
        follow(Api::all(client.clone()), only, &out, stop, Change::RootCertificate);
        super::garbage::follow_everything(client.clone(), out, stop.clone());
        let cluster = Self {
            client,
            ca_pem,
            namespaces: Objects::default(),
            nodes: Objects::default(),
            pods: Objects::default(),
            services: Objects::default(),
            service_accounts: Objects::default(),
            root_certificates: Objects::default(),
            slices: Objects::default(),
            endpoints: Objects::default(),
            deployments: Objects::default(),
            replica_sets: Objects::default(),
            stateful_sets: Objects::default(),
            daemon_sets: Objects::default(),
            jobs: Objects::default(),
            cron_jobs: Objects::default(),
            budgets: Objects::default(),
            graph: Graph::default(),
        };
        (cluster, changes)
    }

    /// Takes a change in and says what has to be looked at because of it.
    pub(crate) fn apply(&mut self, change: Change) -> Vec<Work> {
        match change {
            Change::Namespace(event) => self.take(event, |_, o| {
                let name = o.metadata.name.clone().unwrap_or_default();
                vec![Work::Namespace(name.clone()), Work::ServiceAccounts(name)]
            }),
            Change::Node(event) => self.take(event, |cluster, _| {
                let pending = cluster.pods.iter().filter(|p| super::scheduler::is_unscheduled(p));
                pending
                    .map(|p| Work::Schedule(key_of(&p.metadata)))
                    .chain(cluster.daemon_sets.iter().map(|d| Work::DaemonSet(key_of(&d.metadata))))
                    .collect()
            }),
            Change::Pod(event) => self.take(event, Self::work_for_pod),
            Change::Service(event) => self.take(event, |_, o| vec![Work::Endpoints(key_of(&o.metadata))]),
            Change::ServiceAccount(event) => {
                self.take(event, |_, o| vec![Work::ServiceAccounts(o.metadata.namespace.clone().unwrap_or_default())])
            }
            Change::RootCertificate(event) => {
                self.take(event, |_, o| vec![Work::ServiceAccounts(o.metadata.namespace.clone().unwrap_or_default())])
            }
            Change::Slice(event) => self.take(event, |_, o| {
                let labels = o.metadata.labels.as_ref();
                let service = labels.and_then(|l| l.get("kubernetes.io/service-name"));
                service.map(|s| Work::Endpoints((key_of(&o.metadata).0, s.clone()))).into_iter().collect()
            }),
            Change::Endpoints(event) => self.take(event, |_, o| vec![Work::Endpoints(key_of(&o.metadata))]),
            Change::Deployment(event) => self.take(event, |_, o| vec![Work::Deployment(key_of(&o.metadata))]),
            Change::ReplicaSet(event) => self.take(event, |cluster, o| {
                let own = [Work::ReplicaSet(key_of(&o.metadata))];
                let adopters = super::adoption::adopters_of_set(cluster, o);
                own.into_iter().chain(work_for_owner(&o.metadata)).chain(adopters).collect()
            }),
            Change::StatefulSet(event) => self.take(event, |_, o| vec![Work::StatefulSet(key_of(&o.metadata))]),
            Change::DaemonSet(event) => self.take(event, |_, o| vec![Work::DaemonSet(key_of(&o.metadata))]),
            Change::Job(event) => self.take(event, |_, o| {
                let own = [Work::Job(key_of(&o.metadata))];
                own.into_iter().chain(work_for_owner(&o.metadata)).collect()
            }),
            Change::CronJob(event) => self.take(event, |_, o| vec![Work::CronJob(key_of(&o.metadata))]),
            Change::Budget(event) => self.take(event, |_, o| vec![Work::Budget(key_of(&o.metadata))]),
            Change::Metadata(resource, event) => self.graph.apply(&resource, *event),
        }
    }

    fn take<K: Cached>(&mut self, event: Event<K>, work: fn(&Self, &K) -> Vec<Work>) -> Vec<Work> {
        match event {
            Event::Apply(object) | Event::InitApply(object) => {
                if K::objects(self).put(object.clone()) {
                    work(self, &object)
                } else {
                    Vec::new()
                }
            }
            Event::Delete(object) => {
                K::objects(self).remove(&object);
                work(self, &object)
            }
            Event::Init => {
                K::objects(self).begin_list();
                Vec::new()
            }
            Event::InitDone => {
                let gone = K::objects(self).end_list();
                gone.iter().flat_map(|object| work(self, object)).collect()
            }
        }
    }

    fn work_for_pod(&self, pod: &Pod) -> Vec<Work> {
        let key = key_of(&pod.metadata);
        let mut work: Vec<Work> = work_for_owner(&pod.metadata).collect();
        work.extend(super::adoption::adopters_of_pod(self, pod));
        if super::scheduler::is_unscheduled(pod) {
            work.push(Work::Schedule(key.clone()));
        }
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        for service in self.services.inside(&key.0) {
            if super::endpoints::selects(service, &labels) {
                work.push(Work::Endpoints(key_of(&service.metadata)));
            }
        }
        work.extend(self.budgets.inside(&key.0).map(|budget| Work::Budget(key_of(&budget.metadata))));
        work
    }

    fn namespaced<K: Cached + Resource<Scope = k8s_openapi::NamespaceResourceScope>>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates an object and knows of it at once.
    pub(crate) async fn create<K>(&mut self, object: &K) -> kube::Result<K>
    where
        K: Cached + Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    {
        let namespace = object.meta().namespace.clone().unwrap_or_default();
        let created = self.namespaced::<K>(&namespace).create(&writing(), object).await?;
        K::objects(self).put(created.clone());
        Ok(created)
    }

    /// Writes an object back and knows of it at once.
    pub(crate) async fn replace<K>(&mut self, object: &K) -> kube::Result<K>
    where
        K: Cached + Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    {
        let (namespace, name) = key_of(object.meta());
        let written = self.namespaced::<K>(&namespace).replace(&name, &writing(), object).await?;
        K::objects(self).put(written.clone());
        Ok(written)
    }

    /// Patches an object (merge patch) and knows of it at once.
    pub(crate) async fn patch<K>(&mut self, key: &Key, patch: &serde_json::Value) -> kube::Result<K>
    where
        K: Cached + Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    {
        let api = self.namespaced::<K>(&key.0);
        let written = api.patch(&key.1, &patching(), &Patch::Merge(patch)).await?;
        K::objects(self).put(written.clone());
        Ok(written)
    }

    /// Writes a status if it differs from the known one, which is `None` for objects that have none yet.
    pub(crate) async fn set_status<K, S>(&mut self, key: &Key, old: Option<&S>, new: &S) -> kube::Result<()>
    where
        K: Cached + Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        S: Serialize + PartialEq,
    {
        if old == Some(new) {
            return Ok(());
        }
        // A merge patch leaves fields that became empty in place, so the whole status is written.
        let (Some(mut object), Ok(status)) = (K::objects(self).get(key).cloned(), serde_json::to_value(new)) else {
            return Ok(());
        };
        object.meta_mut().managed_fields = None;
        let mut object = serde_json::to_value(object).map_err(kube::Error::SerdeError)?;
        object["status"] = status;
        let object: K = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
        let api = self.namespaced::<K>(&key.0);
        let written = api.replace_status(&key.1, &writing(), &object).await?;
        K::objects(self).put(written);
        Ok(())
    }

    /// Deletes an object; counts as being deleted from now on.
    pub(crate) async fn delete<K>(&mut self, key: &Key, options: &DeleteParams) -> kube::Result<()>
    where
        K: Cached + Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    {
        match self.namespaced::<K>(&key.0).delete(&key.1, options).await {
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
        if let Some(object) = K::objects(self).known.get_mut(key)
            && object.meta().deletion_timestamp.is_none()
        {
            object.meta_mut().deletion_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now()));
        }
        Ok(())
    }
}

/// The work a change of an owned object means for its controller.
fn work_for_owner(meta: &ObjectMeta) -> impl Iterator<Item = Work> {
    let namespace = meta.namespace.clone().unwrap_or_default();
    controller_of(meta)
        .and_then(|owner| {
            let key = (namespace, owner.name.clone());
            Some(match owner.kind.as_str() {
                "ReplicaSet" => Work::ReplicaSet(key),
                "Deployment" => Work::Deployment(key),
                "StatefulSet" => Work::StatefulSet(key),
                "DaemonSet" => Work::DaemonSet(key),
                "Job" => Work::Job(key),
                "CronJob" => Work::CronJob(key),
                _ => return None,
            })
        })
        .into_iter()
}
