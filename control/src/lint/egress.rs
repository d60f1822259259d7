//! What is wrong with EgressPolicies: what cannot be read, and what they select.

use super::subject::Subject;
use super::{EGRESS_INVALID, EGRESS_SELECTS_NOTHING, Finding};
use crate::compile::egress::{fault, selects};
use crate::validate::{Fault, faults};

/// Looks at every EgressPolicy.
pub(super) fn look(subject: &Subject, found: &mut Vec<Finding>) {
    for ((kind, name), object) in subject.objects.iter().filter(|((kind, _), _)| kind == "EgressPolicy") {
        for Fault { field, why } in faults(object) {
            found.push(Finding { lint: EGRESS_INVALID, kind: kind.clone(), name: name.clone(), field, message: why });
        }
    }
    // What is wrong with a target has been told above.
    for (name, view) in subject.world.egress_policies().filter(|(_, view)| fault(&view.spec).is_none()) {
        let mut there = subject.world.pods().filter(|(pod, _)| pod.namespace == name.namespace);
        let selected = there.any(|(pod, of)| selects(&subject.world, &view.spec, pod, of));
        if !selected && subject.knows_pods(&name.namespace) {
            found.push(Finding {
                lint: EGRESS_SELECTS_NOTHING,
                kind: "EgressPolicy".to_owned(),
                name: name.clone(),
                field: "spec.target".to_owned(),
                message: format!("no workload in namespace {} is selected", name.namespace),
            });
        }
    }
}
