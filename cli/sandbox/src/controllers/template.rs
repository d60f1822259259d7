//! Pods from templates, and what the states of pods mean to those who own them.

use super::cache::{Cached, owned_by};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

/// Letters of generated names: no vowels, nothing that looks like another (as Kubernetes' own generated names).
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A pod of `owner` from its template.
pub(crate) fn pod_of<K: Cached>(owner: &K, template: &PodTemplateSpec, name: PodName) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let (name, generate_name) = match name {
        PodName::Exact(name) => (Some(name), None),
        PodName::Prefix(prefix) => (None, Some(prefix)),
    };
    Pod {
        metadata: ObjectMeta {
            name,
            generate_name,
            namespace: owner.meta().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owned_by(owner)]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// How a pod gets its name.
pub(crate) enum PodName {
    Exact(String),
    Prefix(String),
}

/// A short name for a template: the same template always has the same.
pub(crate) fn hash_of(template: &PodTemplateSpec, collisions: i32) -> String {
    // The serialised form is independent of the order in which a user wrote the fields. The hasher's keys are fixed.
    let text = serde_json::to_string(template).unwrap_or_default();
    #[allow(deprecated)]
    let mut hasher = std::hash::SipHasher::new_with_keys(1, 2);
    text.hash(&mut hasher);
    collisions.hash(&mut hasher);
    let mut number = hasher.finish();
    let mut name = String::new();
    for _ in 0..9 {
        name.push(LETTERS[(number % LETTERS.len() as u64) as usize] as char);
        number /= LETTERS.len() as u64;
    }
    name
}

/// True if the pod will not run any more.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// True if the pod counts towards what its owner wants: it has not ended and nobody deletes it.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !has_ended(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// `status.phase`.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// When the pod became ready, if it is.
pub(crate) fn ready_since(pod: &Pod) -> Option<jiff::Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(jiff::Timestamp::UNIX_EPOCH, |time| time.0))
}

/// True if the pod answers.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// True if the pod has been ready for long enough to be relied on.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: jiff::Timestamp) -> bool {
    ready_since(pod).is_some_and(|since| {
        min_ready_seconds == 0 || now.as_second() - since.as_second() >= i64::from(min_ready_seconds)
    })
}

/// True if the labels satisfy the selector; an empty selector matches everything.
pub(crate) fn matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let value = |name: &str| labels.and_then(|labels| labels.get(name));
    let equal = selector.match_labels.iter().flatten().all(|(name, wanted)| value(name) == Some(wanted));
    equal
        && selector.match_expressions.iter().flatten().all(|rule| {
            let listed = || value(&rule.key).is_some_and(|v| rule.values.iter().flatten().any(|wanted| wanted == v));
            match rule.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value(&rule.key).is_some(),
                "DoesNotExist" => value(&rule.key).is_none(),
                _ => false,
            }
        })
}

/// Which of two pods is less worth keeping: the one further from being ready, then the younger.
pub(crate) fn worth(pod: &Pod) -> (bool, bool, bool, std::cmp::Reverse<Option<jiff::Timestamp>>) {
    let scheduled = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (scheduled, phase(pod) == "Running", is_ready(pod), std::cmp::Reverse(created))
}
