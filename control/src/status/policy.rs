//! What is said of policies: `Accepted`, whether the policy is in force, and `Programmed`, if a proxy cannot use it.
//!
//! A kind of policy brings a function that tells of each object how it [stands](Standing); the rest is the same for all.

use super::{Due, Said, Seen};
use crate::compile;
use crate::kinds;
use crate::rejections::{Rejected, Subject};
use crate::world::view::Name;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::json;

/// How a policy stands.
struct Standing<'a> {
    name: &'a Name,
    /// Which version of the object this is.
    generation: i64,
    /// What is said of it at present.
    before: &'a [Condition],
    /// Reason and message if it is not in force.
    fault: Option<(&'static str, String)>,
    /// Proxies that cannot use it.
    rejected: Option<Rejected>,
}

/// Every AccessPolicy whose status says something else than it should.
pub(super) fn access(seen: &Seen<'_>) -> Vec<Due> {
    let standings = seen.world.access_policies().map(|(name, view)| {
        let selects = |pod: &Name| {
            let found = seen.world.pod(pod).filter(|_| pod.namespace == name.namespace);
            let selects = |found| compile::access::selects(seen.world, &view.spec, pod, found);
            found.is_some_and(|found| matches!(selects(found), Ok(Some(_))))
        };
        Standing {
            name,
            generation: view.generation,
            before: &view.conditions,
            fault: compile::access::fault(seen.world, name, &view.spec),
            rejected: seen.rejections.of_pods(&Subject::Inbound, selects),
        }
    });
    due("AccessPolicy", standings, seen)
}

/// Every EgressPolicy whose status says something else than it should.
pub(super) fn egress(seen: &Seen<'_>) -> Vec<Due> {
    let standings = seen.world.egress_policies().map(|(name, view)| {
        let selects = |pod: &Name| {
            let found = seen.world.pod(pod).filter(|_| pod.namespace == name.namespace);
            found.is_some_and(|found| compile::egress::selects(seen.world, &view.spec, pod, found))
        };
        Standing {
            name,
            generation: view.generation,
            before: &view.conditions,
            fault: compile::egress::fault(&view.spec),
            rejected: seen.rejections.of_pods(&Subject::Egress, selects),
        }
    });
    due("EgressPolicy", standings, seen)
}

/// Every TrafficPolicy whose status says something else than it should.
pub(super) fn traffic(seen: &Seen<'_>) -> Vec<Due> {
    let standings = seen.world.traffic_policies().map(|(name, view)| {
        let services = || compile::traffic::services(seen.world, name, view);
        let of_callers = || services().iter().find_map(|service| seen.rejections.of_service(service));
        let limits = !view.spec.policy.rate_limits.is_empty();
        let behind = |pod: &Name| limits && compile::traffic::is_behind(seen.world, pod, &services());
        Standing {
            name,
            generation: view.generation,
            before: &view.conditions,
            fault: compile::traffic::fault(seen.world, name, view),
            rejected: of_callers().or_else(|| seen.rejections.of_pods(&Subject::Inbound, behind)),
        }
    });
    due("TrafficPolicy", standings, seen)
}

/// Those of a kind whose status says something else than it should.
fn due<'a>(kind: &str, standings: impl Iterator<Item = Standing<'a>>, seen: &Seen<'_>) -> Vec<Due> {
    // A kind that we do not define ourselves has no place here.
    let Some(kind) = kinds::of_policies(kind) else { return Vec::new() };
    let said = standings.filter_map(|standing| {
        let Standing { name, generation, before, fault, rejected } = standing;
        let accepted = match fault {
            None => said("Accepted", true, "Accepted", "the policy is in force".to_owned()),
            Some((reason, message)) => said("Accepted", false, reason, message),
        };
        let rejected = rejected.map(|rejected| Said::rejected(rejected.to_string()));
        let conditions = [accepted].into_iter().chain(rejected);
        let conditions: Vec<Condition> = conditions.map(|said| said.condition(generation, before, seen.now)).collect();
        let same = conditions.len() == before.len() && conditions.iter().all(|said| before.contains(said));
        let status = json!({ "conditions": conditions });
        (!same).then(|| Due { kind, name: name.clone(), version: None, status })
    });
    let mut said: Vec<Due> = said.collect();
    said.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    said
}

fn said(kind: &'static str, holds: bool, reason: &'static str, message: String) -> Said {
    Said { kind, holds, reason, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rejections::Rejections;
    use crate::world::World;
    use crate::world::access_policy::AccessPolicyView;
    use crate::world::view::PodView;
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// The conditions that are to be written for the only policy.
    fn written(world: &World, rejections: &Rejections, now: Timestamp) -> Vec<Condition> {
        let due = access(&Seen { world, rejections, now }).remove(0);
        assert_eq!((due.kind.kind, due.kind.plural, &due.version), ("AccessPolicy", "accesspolicies", &None));
        serde_json::from_value(due.status["conditions"].clone()).unwrap()
    }

    #[test]
    fn only_what_differs_is_written_and_the_time_is_that_of_the_change() {
        let (mut world, none) = (World::default(), Rejections::default());
        let name = Name::new("shop", "a");
        let spec =
            serde_json::from_value(json!({"target": {"kind": "Service", "name": "web"}, "rules": [{}]})).unwrap();
        let policy = AccessPolicyView { spec, generation: 2, conditions: Vec::new() };
        world.apply(name.clone(), policy.clone());
        let first = written(&world, &none, at(100));
        assert_eq!((first[0].status.as_str(), first[0].reason.as_str()), ("False", "TargetNotFound"));
        assert!(first[0].message.contains("no Service web in namespace shop"), "{}", first[0].message);
        world.apply(name.clone(), AccessPolicyView { conditions: first.clone(), ..policy.clone() });
        assert_eq!(access(&Seen { world: &world, rejections: &none, now: at(200) }), []);
        world.apply(name.clone(), AccessPolicyView { conditions: first, generation: 3, ..policy.clone() });
        let next = written(&world, &none, at(300));
        assert_eq!((next[0].observed_generation, &next[0].last_transition_time), (Some(3), &Time(at(100))));
        world.put_service(json!({"metadata": {"namespace": "shop", "name": "web"}}));
        let mended = written(&world, &none, at(400));
        assert_eq!((mended[0].status.as_str(), &mended[0].last_transition_time), ("True", &Time(at(400))));
    }

    #[test]
    fn a_proxy_that_cannot_use_it_is_told_of_and_no_longer_once_it_can() {
        let (mut world, rejections) = (World::default(), Rejections::default());
        let (name, pod) = (Name::new("shop", "a"), Name::new("shop", "web-1"));
        let spec = serde_json::from_value(json!({"rules": [{}]})).unwrap();
        let policy = AccessPolicyView { spec, generation: 1, conditions: Vec::new() };
        world.apply(name.clone(), policy.clone());
        world.apply(pod.clone(), PodView::from(&k8s_openapi::api::core::v1::Pod::default()));
        rejections.add(Subject::Inbound, &Name::new("other", "web-1"), "elsewhere".to_owned());
        assert_eq!(written(&world, &rejections, at(100)).len(), 1);
        rejections.add(Subject::Inbound, &pod, "too many rules".to_owned());
        let told = written(&world, &rejections, at(100));
        assert_eq!((told[1].type_.as_str(), told[1].status.as_str()), ("Programmed", "False"));
        assert!(told[1].message.contains("shop/web-1") && told[1].message.contains("too many rules"));
        world.apply(name.clone(), AccessPolicyView { conditions: told, ..policy.clone() });
        rejections.remove(&Subject::Inbound, &pod);
        assert_eq!(written(&world, &rejections, at(200)).len(), 1, "the condition goes");
    }
}
