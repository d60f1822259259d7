//! What is wrong with TrafficPolicies: what they are about, what they say twice, and what was left on.

use super::route::too_short;
use super::subject::Subject;
use super::{
    FAULT_EVERYTHING, Finding, Lint, RETRY_UNSAFE_METHODS, TIMEOUT_SHORTER_THAN_TRIES, TRAFFIC_CONFLICTED,
    TRAFFIC_INVALID, TRAFFIC_TARGET_MISSING,
};
use crate::compile::traffic::fault;
use crate::validate::{Fault, faults};
use mesh_api::condition::Condition;
use mesh_manifests::policies::traffic_policy::TrafficTargetKind;

/// Looks at every TrafficPolicy.
pub(super) fn look(subject: &Subject, found: &mut Vec<Finding>) {
    for ((kind, name), object) in subject.objects.iter().filter(|((kind, _), _)| kind == "TrafficPolicy") {
        for Fault { field, why } in faults(object) {
            found.push(Finding { lint: TRAFFIC_INVALID, kind: kind.clone(), name: name.clone(), field, message: why });
        }
    }
    for (name, view) in subject.world.traffic_policies() {
        let mut say = |lint: &'static Lint, field: &str, message: String| {
            let (kind, name) = ("TrafficPolicy".to_owned(), name.clone());
            found.push(Finding { lint, kind, name, field: format!("spec.{field}"), message });
        };
        let of_services = view.spec.target_refs.iter().all(|target| target.kind == TrafficTargetKind::Service);
        // Routes are not missed in files: they may be anywhere.
        let looked = subject.sees_all() || (of_services && subject.knows_services(&name.namespace));
        match fault(&subject.world, name, view) {
            // Told above.
            Some(("Invalid", _)) => continue,
            Some(("TargetNotFound", why)) if looked => say(TRAFFIC_TARGET_MISSING, "targetRefs", why),
            Some(("TargetNotFound", _)) => {}
            Some((_, why)) => say(TRAFFIC_CONFLICTED, "targetRefs", why),
            None => {}
        }
        let policy = &view.spec.policy;
        for (at, fault) in policy.faults.iter().enumerate() {
            if fault.percent == 100 && fault.when == Condition::default() {
                say(FAULT_EVERYTHING, &format!("faults[{at}]"), "100 % of all requests, under no condition".to_owned());
            }
        }
        if let Some(retry) = policy.retry.as_ref().filter(|retry| retry.attempts > 0) {
            if retry.unsafe_methods {
                let message = "a request that is not idempotent may be carried out more than once".to_owned();
                say(RETRY_UNSAFE_METHODS, "retry.unsafeMethods", message);
            }
            if let Some(why) = policy.timeouts.as_ref().and_then(|timeouts| too_short(timeouts, retry)) {
                say(TIMEOUT_SHORTER_THAN_TRIES, "timeouts.request", why);
            }
        }
    }
}
