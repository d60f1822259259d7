//! Watches: every change of a kind, in order, for as long as somebody listens.

use super::cache::Change;
use futures::{StreamExt, TryStreamExt};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Follows one kind for as long as somebody listens.
pub(super) fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    out: &mpsc::Sender<Change>,
    stop: &CancellationToken,
    wrap: fn(Event<K>) -> Change,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let (out, stop) = (out.clone(), stop.clone());
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let mut events = watcher(api, config).default_backoff().boxed();
        loop {
            match events.try_next().await {
                Ok(Some(event)) => {
                    if out.send(wrap(event)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => tracing::debug!(%error, kind = %K::kind(&()), "a watch broke off and is taken up again"),
            }
        }
    }));
}

/// Follows the metadata of a kind known only by name.
pub(crate) fn follow_metadata(
    client: &Client,
    resource: kube::core::ApiResource,
    out: &mpsc::Sender<Change>,
    stop: &CancellationToken,
) {
    let (out, stop) = (out.clone(), stop.clone());
    let api: Api<PartialObjectMeta<kube::core::DynamicObject>> = Api::all_with(client.clone(), &resource);
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        loop {
            match events.try_next().await {
                Ok(Some(event)) => {
                    if out.send(Change::Metadata(resource.clone(), Box::new(event))).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => tracing::debug!(%error, kind = %resource.kind, "a watch broke off and is taken up again"),
            }
        }
    }));
}
