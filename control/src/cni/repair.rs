//! Pods of this node that started without their redirect: their check ends with [`names::REDIRECT_MISSING`] and holds the
//! pod, for ever, because a redirect is set only with a pod's network. Such a pod is deleted, for whoever owns it to make
//! it anew: once the plugin is in place, a few at a time, and only if it has an owner. Any other is only told about.

use super::State;
use super::answer::wanted;
use crate::event;
use crate::limits;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use mesh_api::names;
use std::collections::BTreeMap;

/// Reason of the Events about such pods.
const REASON: &str = "MeshRedirectMissing";

/// Follows the pods of a node, for ever.
pub async fn run(client: Client, node: &str, state: State) {
    let pods: Api<Pod> = Api::all(client.clone());
    let mine = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let mut changes = std::pin::pin!(watcher(pods, mine).default_backoff());
    let mut broken = Broken::default();
    let mut every = tokio::time::interval(limits::CNI_REPAIR);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) => broken.see(&pod),
                Some(Ok(watcher::Event::Delete(pod))) => broken.forget(&pod),
                Some(Ok(watcher::Event::Init)) => broken = Broken::default(),
                Some(Ok(watcher::Event::InitDone)) => {}
                Some(Err(error)) => tracing::warn!(%error, "cannot follow this node's pods; trying again"),
                None => return,
            },
            _ = every.tick() => {
                // Before, a new pod would be no better.
                if state.get().is_ok() && let Some(next) = broken.take() {
                    repair(&client, next).await;
                }
            }
        }
    }
}

/// Pods that wait for their repair, by uid; as many as a node can have, and no more.
#[derive(Default)]
pub struct Broken(BTreeMap<String, Found>);

/// A pod without its redirect.
#[derive(Clone, Debug)]
pub struct Found {
    pod: Box<Pod>,
    done: bool,
}

impl Broken {
    /// Takes a pod in or, if it has recovered, out.
    pub fn see(&mut self, pod: &Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        if !lacks_redirect(pod) {
            self.0.remove(&uid);
        } else if self.0.len() < limits::CNI_BROKEN && !self.0.contains_key(&uid) {
            self.0.insert(uid, Found { pod: Box::new(pod.clone()), done: false });
        }
    }

    fn forget(&mut self, pod: &Pod) {
        pod.metadata.uid.as_ref().and_then(|uid| self.0.remove(uid));
    }

    /// The next one that nothing was done about yet.
    pub fn take(&mut self) -> Option<Pod> {
        let found = self.0.values_mut().find(|found| !found.done)?;
        found.done = true;
        Some((*found.pod).clone())
    }
}

/// True if a pod's check has ended without finding the redirect, and not with success since.
pub fn lacks_redirect(pod: &Pod) -> bool {
    if pod.metadata.deletion_timestamp.is_some() || wanted(pod).is_none() {
        return false;
    }
    let statuses = pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten());
    let missing = i32::from(names::REDIRECT_MISSING);
    statuses.filter(|status| status.name == names::REDIRECT_CONTAINER).any(|status| {
        let now = status.state.as_ref().and_then(|state| state.terminated.as_ref());
        let before = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        now.or(before).is_some_and(|ended| ended.exit_code == missing)
    })
}

/// Deletes a pod that somebody makes anew, and says so; of any other it is only said.
async fn repair(client: &Client, pod: Pod) {
    let (namespace, name) =
        (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default());
    let owned = pod.metadata.owner_references.iter().flatten().any(|owner| owner.controller == Some(true));
    let message = match owned {
        true => {
            "the pod started without its redirect, before the network plugin mesh-cni was in place: it is made anew"
        }
        false => {
            "the pod started without its redirect, before the network plugin mesh-cni was in place. Nobody owns it: delete it \
             and make it anew"
        }
    };
    let told = event::warning(pod.object_ref(&()), names::CNI_PLUGIN, REASON, message.to_owned());
    event::write(client.clone(), &told).await;
    if !owned {
        tracing::warn!(pod = %format!("{namespace}/{name}"), "{message}");
        return;
    }
    let exactly = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    let how = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    match tokio::time::timeout(limits::API_TIMEOUT, api.delete(&name, &how)).await {
        Ok(Ok(_)) => tracing::info!(pod = %format!("{namespace}/{name}"), "deleted a pod without its redirect"),
        // Gone, or another pod of this name.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
        failed => {
            tracing::warn!(pod = %format!("{namespace}/{name}"), ?failed, "a pod without its redirect could not be deleted")
        }
    }
}
