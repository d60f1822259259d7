//! A pod's object in the API, as its worker reads and writes it.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};

/// One pod's object.
pub(super) struct Object {
    api: Api<Pod>,
    pod: Pod,
    removed: bool,
}

impl Object {
    pub(super) fn new(client: Client, pod: &Pod) -> Self {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        Self { api: Api::namespaced(client, namespace), pod: pod.clone(), removed: false }
    }

    /// Its last known state.
    pub(super) fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Takes note of a state seen in the watch; false if it is older than what our own writes were answered with.
    pub(super) fn take(&mut self, pod: &Pod) -> bool {
        let newer = revision(pod) >= revision(&self.pod);
        if newer {
            self.pod = pod.clone();
        }
        newer
    }

    /// Writes the status, if it is news; false if it should be tried again.
    pub(super) async fn write_status(&mut self, status: &PodStatus) -> bool {
        let (Ok(new), Ok(old)) = (serde_json::to_value(status), serde_json::to_value(&self.pod.status)) else {
            return true;
        };
        let Some(patch) = changes(&new, &old) else { return true };
        let body = json!({"metadata": {"uid": self.pod.metadata.uid}, "status": patch});
        let name = self.name();
        match self.api.patch_status(&name, &PatchParams::default(), &Patch::Merge(body)).await {
            Ok(pod) => {
                self.take(&pod);
                true
            }
            Err(error) if is_gone(&error) => true,
            Err(error) => {
                tracing::warn!(%error, pod = name, "reporting a pod's status");
                false
            }
        }
    }

    /// Removes the object of a pod that has ended, once; false if it should be tried again.
    pub(super) async fn remove(&mut self) -> bool {
        if self.removed {
            return true;
        }
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: self.pod.metadata.uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        let name = self.name();
        self.removed = match self.api.delete(&name, &parameters).await {
            Ok(_) => true,
            Err(error) if is_gone(&error) => true,
            Err(error) => {
                tracing::warn!(%error, pod = name, "removing an ended pod");
                false
            }
        };
        self.removed
    }

    fn name(&self) -> String {
        self.pod.metadata.name.clone().unwrap_or_default()
    }
}

/// It doesn't exist any more, or another pod of the same name does; the watch will say so, too.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

fn revision(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// The merge patch from the old status to the new; `None` if there is nothing to change.
fn changes(new: &Value, old: &Value) -> Option<Value> {
    let mut patch = serde_json::Map::new();
    for (field, value) in new.as_object().into_iter().flatten() {
        if old.get(field) != Some(value) {
            patch.insert(field.clone(), value.clone());
        }
    }
    for field in ["reason", "message", "podIP", "podIPs"] {
        if old.get(field).is_some() && new.get(field).is_none() {
            patch.insert(field.to_owned(), Value::Null);
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_written() {
        let old = json!({"phase": "Pending", "podIP": "1.2.3.4", "hostIP": "1.1.1.1", "qosClass": "BestEffort"});
        assert_eq!(changes(&old, &old), None);
        let new = json!({"phase": "Running", "hostIP": "1.1.1.1"});
        assert_eq!(changes(&new, &old), Some(json!({"phase": "Running", "podIP": null})));
        assert_eq!(changes(&new, &Value::Null), Some(new.clone()));
    }
}
