//! What users are told of their policies, in the status of the objects: whether each is in force, and why not. The
//! holder of the lease writes it, by server-side apply, and only what differs from what stands there.

use crate::compile;
use crate::limits;
use crate::subscriptions::Subscriptions;
use crate::world::World;
use crate::world::view::Name;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Api;
use kube::api::{Patch, PatchParams};
use mesh_api::names::CONTROL_NAME;
use mesh_manifests::policies::{AccessPolicy, GROUP, VERSION};
use serde_json::json;
use std::sync::Arc;
use tokio::sync::watch;

/// Type of the condition that says whether an object is in force.
const ACCEPTED: &str = "Accepted";

/// Something to be said of an object.
#[derive(Clone, Debug, PartialEq)]
struct Due {
    name: Name,
    conditions: Vec<Condition>,
}

/// Keeps the status of all policies current while we hold the lease, for ever.
pub async fn keep(client: kube::Client, subscriptions: Arc<Subscriptions>, mut leads: watch::Receiver<bool>) {
    // Both senders live as long as the process, so waiting cannot fail.
    loop {
        let _ = leads.wait_for(|mine| *mine).await;
        subscriptions.synced().await;
        let mut wait = limits::STATUS_CHECK;
        for Due { name, conditions } in subscriptions.read(|world| due(world, Timestamp::now())) {
            if let Err(error) = write(&client, &name, &conditions).await {
                tracing::warn!(policy = %name, %error, "cannot write the status of an AccessPolicy; trying again");
                wait = limits::STATUS_RETRY;
            }
        }
        tokio::select! {
            () = subscriptions.changed() => {}
            () = tokio::time::sleep(wait) => {}
            _ = leads.changed() => {}
        }
        // Changes come in crowds.
        tokio::time::sleep(limits::STATUS_PAUSE).await;
    }
}

async fn write(client: &kube::Client, name: &Name, conditions: &[Condition]) -> kube::Result<()> {
    let api: Api<AccessPolicy> = Api::namespaced(client.clone(), &name.namespace);
    let status = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "AccessPolicy",
        "metadata": { "name": name.name },
        "status": { "conditions": conditions },
    });
    let written = api.patch_status(&name.name, &PatchParams::apply(CONTROL_NAME).force(), &Patch::Apply(status)).await;
    match written {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()), // gone meanwhile
        written => written.map(drop),
    }
}

/// Every policy whose status says something else than it should.
fn due(world: &World, now: Timestamp) -> Vec<Due> {
    let said = world.access_policies().filter_map(|(name, view)| {
        let fault = compile::access::fault(world, name, &view.spec);
        let condition = accepted(view.generation, fault, &view.conditions, now);
        let same = view.conditions.contains(&condition);
        (!same).then(|| Due { name: name.clone(), conditions: vec![condition] })
    });
    let mut said: Vec<Due> = said.collect();
    said.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    said
}

/// The condition `Accepted` of one version of an object; `fault` is the reason and message if it is not in force.
fn accepted(generation: i64, fault: Option<(&'static str, String)>, before: &[Condition], now: Timestamp) -> Condition {
    let status = if fault.is_some() { "False" } else { "True" };
    let (reason, message) = fault.unwrap_or((ACCEPTED, "the policy is in force".to_owned()));
    let before = before.iter().find(|condition| condition.type_ == ACCEPTED && condition.status == status);
    Condition {
        last_transition_time: before.map_or(Time(now), |before| before.last_transition_time.clone()),
        message,
        observed_generation: Some(generation),
        reason: reason.to_owned(),
        status: status.to_owned(),
        type_: ACCEPTED.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::access_policy::AccessPolicyView;

    #[test]
    fn only_what_differs_is_written_and_the_time_is_that_of_the_change() {
        let mut world = World::default();
        let name = Name::new("shop", "a");
        let spec =
            serde_json::from_value(json!({"target": {"kind": "Service", "name": "web"}, "rules": [{}]})).unwrap();
        let policy = AccessPolicyView { spec, generation: 2, conditions: Vec::new() };
        world.apply(name.clone(), policy.clone());
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = due(&world, at(100)).remove(0).conditions;
        assert_eq!((first[0].status.as_str(), first[0].reason.as_str()), ("False", "TargetNotFound"));
        assert!(first[0].message.contains("no Service web in namespace shop"), "{}", first[0].message);
        world.apply(name.clone(), AccessPolicyView { conditions: first.clone(), ..policy.clone() });
        assert_eq!(due(&world, at(200)), []);
        world.apply(name.clone(), AccessPolicyView { conditions: first, generation: 3, ..policy.clone() });
        let next = due(&world, at(300)).remove(0).conditions;
        assert_eq!((next[0].observed_generation, &next[0].last_transition_time), (Some(3), &Time(at(100))));
        world.put_service(json!({"metadata": {"namespace": "shop", "name": "web"}}));
        let mended = due(&world, at(400)).remove(0).conditions;
        assert_eq!((mended[0].status.as_str(), &mended[0].last_transition_time), ("True", &Time(at(400))));
    }
}
