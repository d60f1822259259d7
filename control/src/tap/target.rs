//! Whom a tap means: pods by what they belong to, addresses by what has them. Pure.

use crate::limits;
use crate::world::World;
use crate::world::view::{Name, PodView};
use mesh_api::WorkloadRef;
use mesh_api::tap::filter::Place;
use mesh_manifests::nearest::nearest;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Whose proxies tap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// One namespace, or all.
    pub namespace: Option<String>,
    /// Things of this kind only: a workload's, `pod` or `service`.
    pub kind: Option<String>,
    /// The one of this name only.
    pub name: Option<String>,
    /// Only these (namespace, kind, name).
    pub only: Option<BTreeSet<WorkloadRef>>,
}

impl Target {
    /// The running pods that are meant.
    pub fn pods(&self, world: &World) -> BTreeSet<Name> {
        let pods = world.pods().filter(|(name, pod)| pod.running && self.has(world, name, pod));
        pods.map(|(name, _)| name.clone()).collect()
    }

    fn has(&self, world: &World, name: &Name, pod: &PodView) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| *namespace == name.namespace)
            && self.kind.as_ref().is_none_or(|kind| names(world, name, pod, kind).any(|n| self.is_name(&n)))
            && self.only.as_ref().is_none_or(|only| only.iter().any(|one| is(world, name, pod, one)))
    }

    fn is_name(&self, name: &str) -> bool {
        self.name.as_ref().is_none_or(|wanted| wanted == name)
    }

    /// What to say if a name was given that nothing has: with the nearest one.
    pub fn missing(&self, world: &World) -> Option<String> {
        let (kind, wanted) = (self.kind.as_deref()?, self.name.as_deref()?);
        if !self.pods(world).is_empty() {
            return None;
        }
        let anyone = Self { name: None, ..self.clone() };
        let mut known: BTreeSet<String> = BTreeSet::new();
        for (name, pod) in world.pods().filter(|(name, pod)| pod.running && anyone.has(world, name, pod)) {
            known.extend(names(world, name, pod, kind));
        }
        let place = self.namespace.as_ref().map_or("any namespace".to_owned(), |name| format!("namespace {name}"));
        let message = format!("there is no {kind}/{wanted} with running pods in {place}");
        Some(match nearest(wanted, known.iter().map(String::as_str)) {
            Some(near) => format!("{message}; did you mean {near}?"),
            None if known.is_empty() => message,
            None => {
                let some: Vec<&str> = known.iter().take(8).map(String::as_str).collect();
                let more = if known.len() > some.len() { ", …" } else { "" };
                format!("{message}; there are {}{more}", some.join(", "))
            }
        })
    }
}

/// The names under which a pod is a thing of some kind.
fn names<'a>(world: &'a World, name: &'a Name, pod: &'a PodView, kind: &str) -> Box<dyn Iterator<Item = String> + 'a> {
    match kind {
        "pod" => Box::new(std::iter::once(name.name.clone())),
        "namespace" => Box::new(std::iter::once(name.namespace.clone())),
        "service" => {
            let services = pod.ips.iter().flat_map(|ip| world.slices_with(*ip)).map(|(_, service)| service);
            Box::new(services.filter(|service| service.namespace == name.namespace).map(|service| service.name))
        }
        _ => Box::new((pod.workload.kind == kind).then(|| pod.workload.name.clone()).into_iter()),
    }
}

fn is(world: &World, name: &Name, pod: &PodView, one: &WorkloadRef) -> bool {
    name.namespace == one.namespace && names(world, name, pod, &one.kind).any(|name| name == one.name)
}

/// The addresses of a place that is a resource; `None` for one that is a network. `namespace` is where to look if the
/// place names none; without it anywhere. What exceeds the limit is left out, with a log line.
pub fn addresses(world: &World, place: &Place, namespace: Option<&str>) -> Option<Vec<IpAddr>> {
    let Place::Resource { namespace: named, kind, name } = place else { return None };
    let namespace = match kind.as_str() {
        "namespace" => None, // its own name says where
        _ => named.as_deref().or(namespace),
    };
    let target = Target {
        namespace: namespace.map(str::to_owned),
        kind: Some(kind.clone()),
        name: Some(name.clone()),
        only: None,
    };
    let mut found = BTreeSet::new();
    for pod in target.pods(world) {
        found.extend(world.pod(&pod).into_iter().flat_map(|pod| pod.ips.iter().copied()));
    }
    if kind == "service" {
        // Requests that reach no endpoint have only the address that was called.
        let services = world.services().filter(|(service, _)| {
            service.name == *name && namespace.is_none_or(|namespace| namespace == service.namespace)
        });
        found.extend(services.flat_map(|(_, service)| service.cluster_ips.iter().copied()));
    }
    if found.len() > limits::TAP_ADDRESSES {
        tracing::warn!(%place, addresses = found.len(), "too many for a tap; only {} are used", limits::TAP_ADDRESSES);
    }
    Some(found.into_iter().take(limits::TAP_ADDRESSES).collect())
}
