//! Events about pods, counted instead of repeated.

use super::registration::NODE;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::HashMap;

/// Different events remembered of one pod, to count their repetitions.
const MAX_KINDS: usize = 64;

/// Writes the events of one pod.
pub(super) struct Events {
    client: Client,
    seen: Mutex<HashMap<(String, String), (String, u32)>>,
}

impl Events {
    pub(super) fn new(client: Client) -> Self {
        Self { client, seen: Mutex::default() }
    }

    /// Something normal happened; `container` is a field path's container name, or empty.
    pub(super) fn normal(&self, pod: &Pod, container: &str, reason: &str, message: impl Into<String>) {
        self.write(pod, container, "Normal", reason, message.into());
    }

    /// Something went wrong.
    pub(super) fn warning(&self, pod: &Pod, container: &str, reason: &str, message: impl Into<String>) {
        self.write(pod, container, "Warning", reason, message.into());
    }

    fn write(&self, pod: &Pod, container: &str, kind: &str, reason: &str, message: String) {
        let (Some(name), Some(uid)) = (&pod.metadata.name, &pod.metadata.uid) else { return };
        let namespace = pod.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let now = Timestamp::now();
        let key = (format!("{reason}/{container}"), message.clone());
        let mut seen = self.seen.lock();
        let known = seen.get_mut(&key).map(|(event, count)| {
            *count += 1;
            (event.clone(), *count)
        });
        if seen.len() >= MAX_KINDS {
            seen.clear();
        }
        let event_name = format!("{name}.{:x}", now.as_nanosecond());
        if known.is_none() {
            seen.insert(key, (event_name.clone(), 1));
        }
        drop(seen);
        let time = format!("{now:.0}");
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Some((event, count)) = known {
            let patch = json!({"count": count, "lastTimestamp": time});
            tokio::spawn(async move { events.patch(&event, &PatchParams::default(), &Patch::Merge(patch)).await });
            return;
        }
        let mut about = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "namespace": namespace, "uid": uid});
        if !container.is_empty() {
            let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
            let list = if init.clone().any(|c| c.name == container) { "initContainers" } else { "containers" };
            about["fieldPath"] = format!("spec.{list}{{{container}}}").into();
        }
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": event_name, "namespace": namespace},
            "involvedObject": about, "type": kind, "reason": reason, "message": message, "count": 1,
            "firstTimestamp": time, "lastTimestamp": time,
            "source": {"component": "kubelet", "host": NODE},
            "reportingComponent": "kubelet", "reportingInstance": NODE,
        });
        tokio::spawn(async move {
            let Ok(event) = serde_json::from_value(event) else { return };
            if let Err(error) = events.create(&PostParams::default(), &event).await {
                tracing::debug!(%error, "writing an event");
            }
        });
    }
}
