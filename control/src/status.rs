//! What users are told of what they wrote, in the status of the objects: whether it is in force, and why not.
//!
//! One loop writes for every kind; the holder of the lease runs it. Each kind has a function in [`SAYERS`] that says
//! purely what should stand there; only what differs is written, by server-side apply.

mod policy;
pub mod route;

use crate::kinds::CustomKind;
use crate::limits;
use crate::peers::Peers;
use crate::rejections::Rejections;
use crate::subscriptions::Subscriptions;
use crate::world::World;
use crate::world::view::Name;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use mesh_api::names::CONTROL_NAME;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::timeout;

/// Everybody who has something to say: one function a kind.
const SAYERS: &[fn(&Seen<'_>) -> Vec<Due>] = &[policy::access, policy::egress, policy::traffic, route::due];

/// What there is to judge by.
pub struct Seen<'a> {
    /// The cluster.
    pub world: &'a World,
    /// What proxies could not use.
    pub rejections: &'a Rejections,
    /// The time of whatever changes now.
    pub now: Timestamp,
}

/// A status that says something else than it should.
#[derive(Clone, Debug, PartialEq)]
pub struct Due {
    /// Kind of the object.
    pub kind: CustomKind,
    /// The object.
    pub name: Name,
    /// The version of the object that this was decided for, if it must not be written over another one.
    pub version: Option<String>,
    /// Our part of the status.
    pub status: Value,
}

/// A condition without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// `Accepted`, `PartiallyInvalid`, `ResolvedRefs` or `Programmed`.
    pub kind: &'static str,
    /// True or false.
    pub holds: bool,
    /// The reason.
    pub reason: &'static str,
    /// What a user reads.
    pub message: String,
}

impl Said {
    /// `Programmed`, if some proxies cannot use what the object comes to.
    pub fn rejected(why: String) -> Self {
        Self { kind: "Programmed", holds: false, reason: "Invalid", message: short([why.as_str()].into_iter()) }
    }

    /// The condition about one version of an object. It keeps its time while its status stays.
    pub fn condition(&self, generation: i64, before: &[Condition], now: Timestamp) -> Condition {
        let status = if self.holds { "True" } else { "False" };
        let before = before.iter().find(|old| old.type_ == self.kind && old.status == status);
        Condition {
            last_transition_time: before.map_or(Time(now), |old| old.last_transition_time.clone()),
            message: self.message.clone(),
            observed_generation: Some(generation),
            reason: self.reason.to_owned(),
            status: status.to_owned(),
            type_: self.kind.to_owned(),
        }
    }
}

/// Messages in one, as long as a condition may hold.
fn short<'a>(messages: impl Iterator<Item = &'a str>) -> String {
    let mut text = messages.collect::<Vec<_>>().join("; ");
    if text.len() > limits::STATUS_MESSAGE_BYTES {
        let end = (0..=limits::STATUS_MESSAGE_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Every status that has to be written.
pub fn due(seen: &Seen<'_>) -> Vec<Due> {
    SAYERS.iter().flat_map(|say| say(seen)).collect()
}

/// Keeps all statuses current while we hold the lease, for ever.
pub async fn keep(
    client: kube::Client,
    subscriptions: Arc<Subscriptions>,
    peers: Arc<Peers>,
    mut leads: watch::Receiver<bool>,
) {
    let mut changes = subscriptions.changes();
    // The senders live as long as the process, so waiting cannot fail.
    loop {
        let _ = leads.wait_for(|mine| *mine).await;
        subscriptions.synced().await;
        changes.mark_unchanged();
        // Whoever leads has only some of the proxies.
        let rejections = &subscriptions.rejections().with(peers.rejections().await);
        let due = subscriptions.read(|world| due(&Seen { world, rejections, now: Timestamp::now() }));
        let mut writer = Writer { client: &client, served: Vec::new() };
        let mut wait = if peers.list().is_empty() { limits::STATUS_CHECK } else { limits::STATUS_PEERS };
        for due in due {
            if !*leads.borrow() {
                break;
            }
            if let Err(why) = writer.write(&due).await {
                tracing::warn!(kind = due.kind.kind, object = %due.name, why, "cannot write the status; trying again");
                wait = limits::STATUS_RETRY;
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(wait) => {}
            _ = leads.changed() => {}
        }
        // Changes come in crowds.
        tokio::time::sleep(limits::STATUS_PAUSE).await;
    }
}

/// Writes statuses; remembers how the cluster serves their kinds.
struct Writer<'a> {
    client: &'a kube::Client,
    served: Vec<(CustomKind, Option<ApiResource>)>,
}

impl Writer<'_> {
    async fn write(&mut self, due: &Due) -> Result<(), String> {
        let written = timeout(limits::API_TIMEOUT, self.apply(due)).await;
        match written {
            Err(_) => Err(format!("no answer within {:?}", limits::API_TIMEOUT)),
            // Gone, or changed meanwhile: then it is looked at again.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(()),
            Ok(written) => written.map_err(|error| error.to_string()),
        }
    }

    async fn apply(&mut self, Due { kind, name, version, status }: &Due) -> kube::Result<()> {
        let Some(resource) = self.find(*kind).await? else { return Ok(()) };
        let ApiResource { api_version, kind, .. } = &resource;
        let mut metadata = json!({ "name": name.name });
        if let Some(version) = version {
            metadata["resourceVersion"] = json!(version);
        }
        let object = json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata, "status": status });
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &name.namespace, &resource);
        let params = PatchParams::apply(CONTROL_NAME).force();
        api.patch_status(&name.name, &params, &Patch::Apply(object)).await.map(drop)
    }

    async fn find(&mut self, kind: CustomKind) -> kube::Result<Option<ApiResource>> {
        if let Some((_, found)) = self.served.iter().find(|(known, _)| *known == kind) {
            return Ok(found.clone());
        }
        let found = kind.find(self.client).await?;
        self.served.push((kind, found.clone()));
        Ok(found)
    }
}
