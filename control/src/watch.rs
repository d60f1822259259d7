//! Watches: one line a kind. Whatever fails is tried again; one object that cannot be read is reported and left out,
//! and the watch goes on.

mod custom;

use crate::issuer::{ISSUER_SECRET, IssuerKeeper};
use crate::kinds::{self, BACKEND_TRAFFIC_POLICY, CustomKind, REFERENCE_GRANT};
use crate::limits;
use crate::metrics::Metrics;
use crate::observe::Observers;
use crate::subscriptions::Subscriptions;
use crate::webhook_cert::{WEBHOOK_SECRET, WebhookTls};
use crate::world::Kept;
use crate::world::access_policy::AccessPolicyView;
use crate::world::egress_policy::EgressPolicyView;
use crate::world::route::{RouteKey, RouteKind, RouteStatusView, read};
use crate::world::traffic_policy::TrafficPolicyView;
use crate::world::view::{Name, NamespaceView, NodeView, PodView, ServiceView, SliceView};
use custom::Reading;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use mesh_manifests::policies::{AccessPolicy, EgressPolicy, TrafficPolicy};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Everybody who wants to hear of changes.
pub struct Audience {
    /// The world.
    pub subscriptions: Arc<Subscriptions>,
    /// The issuer.
    pub issuer: Arc<IssuerKeeper>,
    /// The webhook's certificate.
    pub webhook: Arc<WebhookTls>,
    /// Who may ask on behalf of others.
    pub observers: Arc<Observers>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Follows everything, for ever.
pub async fn follow(client: kube::Client, system_namespace: &str, audience: Audience) {
    let Audience { subscriptions, issuer, webhook, observers, metrics } = audience;
    let world = Kinds { client: &client, subscriptions: &subscriptions, metrics: &metrics, listed: Semaphore::new(0) };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), system_namespace);
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    tokio::join!(
        world.keep("Namespace", |meta| meta.name.clone().unwrap_or_default(), |o: &Namespace| NamespaceView::from(o)),
        // Only what they are called and labelled: the rest of a node is large, and nobody's business here.
        world.keep(
            "Node",
            |meta| meta.name.clone().unwrap_or_default(),
            |o: &PartialObjectMeta<Node>| NodeView::from(o)
        ),
        world.keep("Service", Name::of, |o: &Service| ServiceView::from(o)),
        world.keep("EndpointSlice", Name::of, |o: &EndpointSlice| SliceView::from(o)),
        world.keep("Pod", Name::of, |o: &Pod| PodView::from(o)),
        world.keep("AccessPolicy", Name::of, |o: &AccessPolicy| AccessPolicyView::from(o)),
        world.keep("EgressPolicy", Name::of, |o: &EgressPolicy| EgressPolicyView::from(o)),
        world.keep("TrafficPolicy", Name::of, |o: &TrafficPolicy| TrafficPolicyView::from(o)),
        world.keep_routes(RouteKind::Http),
        world.keep_routes(RouteKind::Grpc),
        world.keep_routes(RouteKind::Tls),
        world.keep_routes(RouteKind::Tcp),
        world.keep_beside(REFERENCE_GRANT, read::grant),
        world.keep_beside(BACKEND_TRAFFIC_POLICY, read::backend_policy),
        world.tell_when_listed(8 + 6),
        one("Secret", secrets.clone(), ISSUER_SECRET, &metrics, |secret| issuer.changed(secret)),
        one("Secret", secrets, WEBHOOK_SECRET, &metrics, |secret| webhook.changed(secret)),
        one("ConfigMap", config_maps, "extension-apiserver-authentication", &metrics, |map| observers.changed(map)),
    );
}

struct Kinds<'a> {
    client: &'a kube::Client,
    subscriptions: &'a Arc<Subscriptions>,
    metrics: &'a Metrics,
    listed: Semaphore,
}

impl Kinds<'_> {
    /// Keeps all objects of a kind in the world, for ever.
    async fn keep<K, V>(&self, kind: &'static str, key: fn(&ObjectMeta) -> V::Key, view: fn(&K) -> V)
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static,
        V: Kept,
    {
        let mut events =
            std::pin::pin!(events(kind, Api::<DeserializeGuard<K>>::all(self.client.clone()), None, self.metrics));
        let mut listing: HashMap<V::Key, V> = HashMap::new();
        let mut listed = false;
        while let Some(event) = events.next().await {
            match event {
                Event::Init => listing.clear(),
                Event::InitApply(object) => {
                    if let Some(object) = readable(kind, object) {
                        listing.insert(key(object.meta()), view(&object));
                    }
                }
                Event::InitDone => {
                    self.subscriptions.reset(std::mem::take(&mut listing));
                    if !std::mem::replace(&mut listed, true) {
                        self.listed.add_permits(1);
                    }
                }
                Event::Apply(object) => {
                    if let Some(object) = readable(kind, object) {
                        self.subscriptions.apply(key(object.meta()), view(&object));
                    }
                }
                Event::Delete(object) => self.subscriptions.delete::<V>(&key(object.meta())),
            }
        }
    }

    /// Keeps all routes of a kind in the world.
    async fn keep_routes(&self, kind: RouteKind) {
        let reading = Reading {
            key: |meta: &ObjectMeta| RouteKey { kind, name: Name::of(meta) },
            read: |meta: &ObjectMeta, data: &Value| read::route(kind, meta, data),
            among: |key: &RouteKey| key.kind == kind,
            seen: |kinds: &Kinds<'_>, key: &RouteKey, object| match object {
                Some(object) => {
                    let parents = object.data["status"]["parents"].as_array().cloned().unwrap_or_default();
                    let version = object.metadata.resource_version.clone().unwrap_or_default();
                    kinds.subscriptions.apply(key.clone(), RouteStatusView { version, parents });
                }
                None => kinds.subscriptions.delete::<RouteStatusView>(key),
            },
        };
        self.keep_custom(kinds::of_routes(kind), reading).await;
    }

    /// Keeps all objects of a kind with a type of its own in the world.
    async fn keep_beside<V: Kept<Key = Name>>(&self, kind: CustomKind, read: fn(&ObjectMeta, &Value) -> V) {
        self.keep_custom(kind, Reading { key: Name::of, read, among: |_: &Name| true, seen: |_, _, _| {} }).await;
    }

    async fn tell_when_listed(&self, kinds: u32) {
        // The semaphore is never closed.
        if self.listed.acquire_many(kinds).await.is_ok() {
            self.subscriptions.set_synced();
            tracing::info!("the cluster's objects are listed");
        }
    }
}

/// An object, unless it cannot be read; then its last readable state stays in use.
fn readable<K>(kind: &'static str, object: DeserializeGuard<K>) -> Option<K> {
    match object.0 {
        Ok(object) => Some(object),
        Err(invalid) => {
            tracing::warn!(kind, object = %Name::of(&invalid.metadata), error = invalid.error, "object cannot be read");
            None
        }
    }
}

/// Tells of one object by name whenever it changes, for ever.
async fn one<K>(kind: &'static str, api: Api<K>, name: &'static str, metrics: &Metrics, tell: impl Fn(Option<&K>))
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static,
{
    let mut events = std::pin::pin!(events(kind, api, Some(name), metrics));
    let mut seen = false;
    while let Some(event) = events.next().await {
        match event {
            Event::Init => seen = false,
            Event::InitApply(object) | Event::Apply(object) if object.name_any() == name => {
                seen = true;
                tell(Some(&object));
            }
            Event::InitDone if !seen => tell(None),
            Event::Delete(object) if object.name_any() == name => tell(None),
            _ => {}
        }
    }
}

/// The events of a watch. Errors are counted, told once until things change, and followed by a growing pause. A kind that
/// the cluster does not know (yet) has no objects: that is no error.
fn events<K>(kind: &'static str, api: Api<K>, name: Option<&str>, metrics: &Metrics) -> impl Stream<Item = Event<K>>
where
    K: Resource + DeserializeOwned + Clone + Debug + Send + 'static,
{
    let config = match name {
        Some(name) => watcher::Config::default().fields(&format!("metadata.name={name}")),
        None => watcher::Config::default(),
    };
    let mut said = String::new();
    let mut pause = limits::WATCH_BACKOFF;
    let (mut listed, mut missing) = (false, false);
    watcher(api, config).filter_map(move |event| {
        let wait = match &event {
            // Also comes before a list that fails.
            Ok(Event::Init) => None,
            Ok(seen) => {
                listed |= matches!(seen, Event::InitDone);
                pause = limits::WATCH_BACKOFF;
                said.clear();
                None
            }
            Err(error) if is_unknown_kind(error) => {
                std::mem::replace(&mut missing, true).then_some(limits::WATCH_MISSING)
            }
            Err(error) => {
                metrics.watch_error(kind);
                let error = error.to_string();
                if error != said {
                    tracing::warn!(kind, error, "cannot follow the API; trying again");
                    said = error;
                }
                let wait = pause;
                pause = (pause * 2).min(limits::WATCH_BACKOFF_MAX);
                Some(wait)
            }
        };
        async move {
            if let Some(wait) = wait {
                tokio::time::sleep(jittered(wait)).await;
            }
            match event {
                // What has been listed stays in use: objects are gone when their deletion was seen.
                Err(error) if is_unknown_kind(&error) => (!listed).then_some(Event::InitDone),
                event => event.ok(),
            }
        }
    })
}

/// True if the API server has no such kind: its definition is not installed.
fn is_unknown_kind(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}

/// Half to one and a half times as long: replicas that failed together do not come back together.
fn jittered(wait: Duration) -> Duration {
    let mut byte = [128];
    // Without randomness the pause is just not jittered.
    let _ = crate::tls::provider().secure_random.fill(&mut byte);
    wait.mul_f64(0.5 + f64::from(byte[0]) / 255.0)
}
