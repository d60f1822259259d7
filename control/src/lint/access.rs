//! What is wrong with AccessPolicies: what they select, and rules that leave nothing for others.

use super::subject::{Seen, Subject};
use super::{
    ACCESS_INVALID, ACCESS_NOT_MESHED, ACCESS_REDUNDANT, ACCESS_SELECTS_NOTHING, ACCESS_SHADOWED, ACCESS_TARGET_MISSING,
};
use super::{Finding, Lint};
use crate::compile::access::{fault, selects};
use crate::validate::{Fault, faults};
use crate::world::access_policy::AccessPolicyView;
use crate::world::view::Name;
use mesh_api::access::Action;
use mesh_manifests::policies::access_policy::{AccessClause, TargetKind};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Looks at every AccessPolicy.
pub(super) fn look(subject: &Subject, found: &mut Vec<Finding>) {
    for ((kind, name), object) in subject.objects.iter().filter(|((kind, _), _)| kind == "AccessPolicy") {
        for Fault { field, why } in faults(object) {
            found.push(Finding { lint: ACCESS_INVALID, kind: kind.clone(), name: name.clone(), field, message: why });
        }
    }
    let mut policies: Vec<(&Name, &AccessPolicyView)> = subject.world.access_policies().collect();
    policies.sort_unstable_by_key(|(name, _)| *name);
    let reach: BTreeMap<&Name, Reach> =
        policies.iter().map(|(name, view)| (*name, Reach::of(subject, name, view))).collect();
    for (name, view) in &policies {
        let mut say = |lint: &'static Lint, field: String, message: String| {
            found.push(Finding { lint, kind: "AccessPolicy".to_owned(), name: (*name).clone(), field, message });
        };
        match fault(&subject.world, name, &view.spec) {
            Some(("TargetNotFound", why)) => {
                if subject.knows_services(&name.namespace) {
                    say(ACCESS_TARGET_MISSING, "spec.target.name".to_owned(), why);
                }
                continue;
            }
            // Told above.
            Some(_) => continue,
            None => {}
        }
        let of = &reach[name];
        if of.0.is_empty() {
            if subject.knows_pods(&name.namespace) {
                let message = format!("no workload in namespace {} is selected", name.namespace);
                say(ACCESS_SELECTS_NOTHING, "spec.target".to_owned(), message);
            }
            continue;
        }
        let unmeshed = |pod: &&Name| subject.world.pod(pod).is_some_and(|pod| !pod.injected);
        if subject.seen == Seen::All && of.0.keys().all(|pod| unmeshed(&pod)) {
            say(
                ACCESS_NOT_MESHED,
                "spec.target".to_owned(),
                format!("{} pods are selected, none has a proxy", of.0.len()),
            );
        }
        for (number, clause) in view.spec.rules.iter().enumerate() {
            if let Some((lint, by)) = covered(&policies, &reach, name, view, number, clause) {
                let does = if lint == ACCESS_SHADOWED { "refuses all of it" } else { "covers it" };
                say(lint, format!("spec.rules[{number}]"), format!("{by} {does}"));
            }
        }
    }
}

/// The pods a policy selects, each with the ports; none means all.
struct Reach(BTreeMap<Name, Vec<u16>>);

impl Reach {
    fn of(subject: &Subject, policy: &Name, view: &AccessPolicyView) -> Self {
        let there = subject.world.pods().filter(|(pod, _)| pod.namespace == policy.namespace);
        // A target that cannot be read is told elsewhere.
        let selected = there.filter_map(|(name, pod)| {
            let ports = selects(&subject.world, &view.spec, name, pod).ok().flatten()?;
            Some((name.clone(), ports))
        });
        Self(selected.collect())
    }

    fn covers(&self, narrow: &Self) -> bool {
        narrow.0.iter().all(|(pod, ports)| {
            let wide = self.0.get(pod);
            wide.is_some_and(|wide| {
                wide.is_empty() || (!ports.is_empty() && ports.iter().all(|port| wide.contains(port)))
            })
        })
    }
}

/// The rule that leaves nothing for another one: one that denies for one that allows, or an earlier or wider one with the
/// same action.
fn covered(
    policies: &[(&Name, &AccessPolicyView)],
    reach: &BTreeMap<&Name, Reach>,
    name: &Name,
    view: &AccessPolicyView,
    number: usize,
    clause: &AccessClause,
) -> Option<(&'static Lint, String)> {
    // A policy that asks for more than its rules say, or is about the requests of a route, leaves something for others.
    let is_plain = |view: &AccessPolicyView| {
        let of_route = view.spec.target.as_ref().and_then(|target| target.kind);
        let of_route = matches!(of_route, Some(TargetKind::HttpRoute | TargetKind::GrpcRoute));
        view.spec.jwt.is_none() && view.spec.external.is_none() && !of_route
    };
    let wider = policies.iter().filter(|(other, wide)| is_plain(wide) && reach[*other].covers(&reach[name]));
    for (other, wide) in wider {
        let lint = match (wide.spec.action, view.spec.action) {
            (Action::Deny, Action::Allow) => ACCESS_SHADOWED,
            (wide, narrow) if wide == narrow => ACCESS_REDUNDANT,
            _ => continue,
        };
        for (at, rule) in wide.spec.rules.iter().enumerate() {
            let itself = (*other, at) == (name, number);
            if itself || !covers(rule, clause) {
                continue;
            }
            // Of two that say the same, only the later one is one too many.
            let same = reach[name].covers(&reach[*other]) && covers(clause, rule);
            if lint == ACCESS_SHADOWED || !same || (*other, at) < (name, number) {
                return Some((lint, format!("{other}, rule {at},")));
            }
        }
    }
    None
}

/// True if every call that `narrow` is about is one that `wide` is about. Policies that select the same pods are of one namespace, so
/// that bare names of service accounts mean the same.
fn covers(wide: &AccessClause, narrow: &AccessClause) -> bool {
    covers_list(&wide.from, &narrow.from) && covers_list(&wide.to, &narrow.to)
}

/// True if each entry of `narrow` lies within one of `wide`; no entries at all mean everything.
fn covers_list<T: Serialize>(wide: &[T], narrow: &[T]) -> bool {
    let fields = |entry: &T| match serde_json::to_value(entry) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    wide.is_empty()
        || (!narrow.is_empty()
            && narrow.iter().all(|narrow| wide.iter().any(|wide| covers_entry(&fields(wide), &fields(narrow)))))
}

/// The fields of an entry must all hold, and of the values of a field one: an entry is wider if each field it has is there,
/// too, with no value that it lacks. Of conditions on header fields all must hold.
fn covers_entry(wide: &Map<String, Value>, narrow: &Map<String, Value>) -> bool {
    wide.iter().all(|(field, values)| match (values, narrow.get(field)) {
        (_, None) => false,
        (Value::Array(wide), Some(Value::Array(narrow))) if field == "headers" => {
            wide.iter().all(|one| narrow.contains(one))
        }
        (Value::Array(wide), Some(Value::Array(narrow))) => narrow
            .iter()
            .all(|value| wide.iter().any(|wide| wide == value || is_pattern_of(wide.as_str(), value.as_str()))),
        (wide, Some(narrow)) => wide == narrow,
    })
}

/// True if a pattern that ends in its only `*` takes another text.
fn is_pattern_of(pattern: Option<&str>, text: Option<&str>) -> bool {
    let prefix = pattern.and_then(|pattern| pattern.strip_suffix('*')).filter(|prefix| !prefix.contains('*'));
    prefix.zip(text).is_some_and(|(prefix, text)| text.starts_with(prefix))
}
