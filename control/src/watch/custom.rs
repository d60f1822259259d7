//! Watches of kinds that the cluster may not have: looked for until they are there, and again once they are gone.

use super::{Kinds, jittered};
use crate::kinds::CustomKind;
use crate::limits;
use crate::world::Kept;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::DynamicObject;
use kube::core::ApiResource;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::Value;
use std::collections::HashMap;
use std::time::Duration;

/// How objects of a kind become part of the world.
pub(super) struct Reading<V: Kept, K, R, A> {
    /// Key of an object.
    pub(super) key: K,
    /// View of an object, from its metadata and the rest of it.
    pub(super) read: R,
    /// Which of the world's objects of this type are of this kind.
    pub(super) among: A,
    /// What else wants to see the objects.
    pub(super) seen: fn(&Kinds<'_>, &V::Key, Option<&DynamicObject>),
}

/// What a watch has said so far.
#[derive(Default)]
struct Course {
    said: String,
    pause: Duration,
    /// The kind's objects, or that there are none, have been told once.
    listed: bool,
}

impl Kinds<'_> {
    /// Keeps all objects of a kind in the world, while the cluster has the kind, for ever.
    pub(super) async fn keep_custom<V, K, R, A>(&self, kind: CustomKind, reading: Reading<V, K, R, A>)
    where
        V: Kept,
        K: Fn(&ObjectMeta) -> V::Key,
        R: Fn(&ObjectMeta, &Value) -> V,
        A: Fn(&V::Key) -> bool,
    {
        let mut course = Course { pause: limits::WATCH_BACKOFF, ..Course::default() };
        loop {
            match kind.find(self.client).await {
                Ok(Some(resource)) => self.follow_custom(kind, &resource, &reading, &mut course).await,
                Ok(None) => {
                    self.is_listed(&mut course);
                    tokio::time::sleep(jittered(limits::KIND_LOOK)).await;
                }
                Err(error) => self.failed(kind, &error.to_string(), &mut course).await,
            }
        }
    }

    /// Follows a kind until the cluster no longer has it.
    async fn follow_custom<V, K, R, A>(
        &self,
        kind: CustomKind,
        resource: &ApiResource,
        reading: &Reading<V, K, R, A>,
        course: &mut Course,
    ) where
        V: Kept,
        K: Fn(&ObjectMeta) -> V::Key,
        R: Fn(&ObjectMeta, &Value) -> V,
        A: Fn(&V::Key) -> bool,
    {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), resource);
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
        let mut listing: HashMap<V::Key, V> = HashMap::new();
        let enter = |object: &DynamicObject| {
            let key = (reading.key)(&object.metadata);
            (reading.seen)(self, &key, Some(object));
            (key, (reading.read)(&object.metadata, &object.data))
        };
        while let Some(event) = events.next().await {
            if event.is_ok() {
                course.pause = limits::WATCH_BACKOFF;
                course.said.clear();
            }
            match event {
                Ok(Event::Init) => listing.clear(),
                Ok(Event::InitApply(object)) => listing.extend([enter(&object)]),
                Ok(Event::InitDone) => {
                    self.subscriptions.reset_among(&reading.among, std::mem::take(&mut listing));
                    self.is_listed(course);
                }
                Ok(Event::Apply(object)) => {
                    let (key, view) = enter(&object);
                    self.subscriptions.apply(key, view);
                }
                Ok(Event::Delete(object)) => {
                    let key = (reading.key)(&object.metadata);
                    (reading.seen)(self, &key, None);
                    self.subscriptions.delete::<V>(&key);
                }
                Err(error) => {
                    let code = code(&error);
                    if code == Some(404) {
                        tracing::info!(kind = kind.kind, "the cluster no longer has this kind");
                        self.subscriptions.reset_among::<V>(&reading.among, HashMap::new());
                        return;
                    }
                    if code == Some(403) {
                        // Better to go on without these objects than not at all.
                        self.is_listed(course);
                    }
                    self.failed(kind, &error.to_string(), course).await;
                }
            }
        }
    }

    fn is_listed(&self, course: &mut Course) {
        if !std::mem::replace(&mut course.listed, true) {
            self.listed.add_permits(1);
        }
    }

    /// Counts an error, tells it unless it was the last thing told, and waits a little.
    async fn failed(&self, kind: CustomKind, error: &str, course: &mut Course) {
        self.metrics.watch_error(kind.kind);
        if error != course.said {
            tracing::warn!(kind = kind.kind, error, "cannot follow the API; trying again");
            error.clone_into(&mut course.said);
        }
        tokio::time::sleep(jittered(course.pause)).await;
        course.pause = (course.pause * 2).min(limits::WATCH_BACKOFF_MAX);
    }
}

/// The status that the API answered with.
fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}
