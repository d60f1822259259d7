//! What the cluster looks like, as far as the mesh cares: plain maps, fed one object at a time.
//!
//! Every change returns what it [`Touched`], so that only those answers are compiled anew. No I/O, no clock; asking
//! questions is [`crate::compile`]'s part.

pub mod access_policy;
pub mod egress_policy;
mod finish;
pub mod key_set;
mod probe;
pub mod route;
pub mod traffic_policy;
pub mod view;

#[cfg(test)]
pub(crate) mod tests;

use access_policy::AccessPolicyView;
use egress_policy::EgressPolicyView;
use key_set::{KeySet, KeySetView};
use route::{BackendPolicyView, GrantView, RouteKey, RouteStatusView, RouteView};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use traffic_policy::{TargetKey, TrafficPolicyView};
use view::{Name, NamespaceView, NodeView, PodView, ServiceView, SliceView};

/// The objects that matter, and the ways to find them.
#[derive(Debug, Default)]
pub struct World {
    namespaces: HashMap<String, NamespaceView>,
    nodes: HashMap<String, NodeView>,
    services: HashMap<Name, ServiceView>,
    slices: HashMap<Name, SliceView>,
    pods: HashMap<Name, PodView>,
    access_policies: HashMap<Name, AccessPolicyView>,
    egress_policies: HashMap<Name, EgressPolicyView>,
    traffic_policies: HashMap<Name, TrafficPolicyView>,
    key_sets: HashMap<KeySet, KeySetView>,
    routes: HashMap<RouteKey, RouteView>,
    route_statuses: HashMap<RouteKey, RouteStatusView>,
    grants: HashMap<Name, GrantView>,
    backend_policies: HashMap<Name, BackendPolicyView>,
    services_by_ip: HashMap<IpAddr, BTreeSet<Name>>,
    pods_by_ip: HashMap<IpAddr, BTreeSet<Name>>,
    pods_by_node: HashMap<IpAddr, BTreeSet<Name>>,
    slices_by_service: HashMap<Name, BTreeSet<Name>>,
    slices_by_endpoint: HashMap<IpAddr, BTreeSet<Name>>,
    routes_by_parent: HashMap<Name, BTreeSet<RouteKey>>,
    routes_by_backend: HashMap<Name, BTreeSet<RouteKey>>,
    policies_by_backend: HashMap<Name, BTreeSet<Name>>,
    traffic_by_target: HashMap<TargetKey, BTreeSet<Name>>,
}

/// What may look different after a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Addresses: cluster IPs of services, IPs of pods.
    pub ips: HashSet<IpAddr>,
    /// Pods whose inbound policy may differ.
    pub pods: HashSet<Name>,
}

impl Touched {
    /// True if nothing looks different.
    pub fn is_empty(&self) -> bool {
        self.ips.is_empty() && self.pods.is_empty()
    }

    fn add(&mut self, other: Touched) {
        self.ips.extend(other.ips);
        self.pods.extend(other.pods);
    }
}

/// A kind of object the world keeps.
pub trait Kept: Sized + PartialEq {
    /// What objects of the kind are called by.
    type Key: Clone + Eq + std::hash::Hash;

    /// The map that holds them.
    fn map(world: &mut World) -> &mut HashMap<Self::Key, Self>;

    /// Enters the object into (`present`) or removes it from the indices.
    fn index(&self, world: &mut World, key: &Self::Key, present: bool);

    /// What looks different when this object comes, goes or changes.
    fn touches(&self, world: &World, key: &Self::Key) -> Touched;
}

impl World {
    /// Adds or replaces an object.
    pub fn apply<K: Kept>(&mut self, key: K::Key, object: K) -> Touched {
        let before = K::map(self).remove(&key);
        if before.as_ref() == Some(&object) {
            K::map(self).insert(key, object);
            return Touched::default();
        }
        let mut touched = Touched::default();
        if let Some(before) = before {
            touched.add(before.touches(self, &key));
            before.index(self, &key, false);
        }
        object.index(self, &key, true);
        touched.add(object.touches(self, &key));
        K::map(self).insert(key, object);
        touched
    }

    /// Removes an object.
    pub fn delete<K: Kept>(&mut self, key: &K::Key) -> Touched {
        let Some(object) = K::map(self).remove(key) else { return Touched::default() };
        let touched = object.touches(self, key);
        object.index(self, key, false);
        touched
    }

    /// Makes `objects` all there are of a kind.
    pub fn reset<K: Kept>(&mut self, objects: HashMap<K::Key, K>) -> Touched {
        self.reset_among(|_| true, objects)
    }

    /// Makes `objects` all there are `among` those of a kind.
    pub fn reset_among<K: Kept>(&mut self, among: impl Fn(&K::Key) -> bool, objects: HashMap<K::Key, K>) -> Touched {
        let gone = |key: &&K::Key| among(key) && !objects.contains_key(key);
        let gone: Vec<K::Key> = K::map(self).keys().filter(gone).cloned().collect();
        let mut touched = Touched::default();
        for key in gone {
            touched.add(self.delete::<K>(&key));
        }
        for (key, object) in objects {
            touched.add(self.apply(key, object));
        }
        touched
    }

    /// A namespace.
    pub fn namespace(&self, name: &str) -> Option<&NamespaceView> {
        self.namespaces.get(name)
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&NodeView> {
        self.nodes.get(name)
    }

    /// A service.
    pub fn service(&self, name: &Name) -> Option<&ServiceView> {
        self.services.get(name)
    }

    /// A pod.
    pub fn pod(&self, name: &Name) -> Option<&PodView> {
        self.pods.get(name)
    }

    /// Every pod.
    pub fn pods(&self) -> impl Iterator<Item = (&Name, &PodView)> {
        self.pods.iter()
    }

    /// Every service.
    pub fn services(&self) -> impl Iterator<Item = (&Name, &ServiceView)> {
        self.services.iter()
    }

    /// The service that has a cluster IP.
    pub fn service_at(&self, ip: IpAddr) -> Option<(&Name, &ServiceView)> {
        let name = self.services_by_ip.get(&ip)?.first()?;
        Some((name, self.services.get(name)?))
    }

    /// The pod that has an IP: one that runs, where an address is being handed on.
    pub fn pod_at(&self, ip: IpAddr) -> Option<(&Name, &PodView)> {
        let candidates = self.pods_by_ip.get(&ip)?.iter().filter_map(|name| Some((name, self.pods.get(name)?)));
        candidates.max_by_key(|(_, pod)| (pod.running, !pod.deleted))
    }

    /// True if the address is that of a node with pods.
    pub fn is_node(&self, ip: IpAddr) -> bool {
        self.pods_by_node.contains_key(&ip)
    }

    /// The endpoint slices of a service.
    pub fn slices_of(&self, service: &Name) -> impl Iterator<Item = &SliceView> {
        self.slices_by_service.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    /// The endpoint slices that contain an address, with their service.
    pub fn slices_with(&self, ip: IpAddr) -> impl Iterator<Item = (&SliceView, Name)> {
        let slices = self.slices_by_endpoint.get(&ip).into_iter().flatten();
        slices.filter_map(|name| {
            let slice = self.slices.get(name)?;
            Some((slice, Name::new(&name.namespace, slice.service.as_deref()?)))
        })
    }

    /// Everything that depends on a service: its addresses, those behind it, and the pods there.
    fn around_service(&self, name: &Name, service: Option<&ServiceView>) -> Touched {
        let mut touched = Touched::default();
        touched.ips.extend(service.into_iter().flat_map(|service| &service.cluster_ips));
        touched.ips.extend(self.led_here(name));
        touched.pods.extend(self.pods_that_ask(name));
        for slice in self.slices_of(name) {
            touched.add(self.behind(slice));
        }
        touched
    }

    fn behind(&self, slice: &SliceView) -> Touched {
        let ips: HashSet<IpAddr> = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).copied().collect();
        let pods = ips.iter().filter_map(|ip| self.pods_by_ip.get(ip)).flatten().cloned().collect();
        Touched { ips, pods }
    }
}

fn enter<K: std::hash::Hash + Eq, V: Ord + Clone>(
    index: &mut HashMap<K, BTreeSet<V>>,
    keys: impl Iterator<Item = K>,
    value: &V,
    present: bool,
) {
    for key in keys {
        if present {
            index.entry(key).or_default().insert(value.clone());
        } else if let Some(values) = index.get_mut(&key) {
            values.remove(value);
            if values.is_empty() {
                index.remove(&key);
            }
        }
    }
}

impl Kept for NamespaceView {
    type Key = String;

    fn map(world: &mut World) -> &mut HashMap<String, Self> {
        &mut world.namespaces
    }

    fn index(&self, _: &mut World, _: &String, _: bool) {}

    fn touches(&self, world: &World, key: &String) -> Touched {
        let mut touched = Touched::default();
        for (name, service) in world.services.iter().filter(|(name, _)| name.namespace == *key) {
            touched.ips.extend(&service.cluster_ips);
            touched.ips.extend(world.led_here(name));
        }
        for (name, pod) in world.pods.iter().filter(|(name, _)| name.namespace == *key) {
            touched.pods.insert(name.clone());
            touched.ips.extend(&pod.ips);
        }
        touched
    }
}

impl Kept for NodeView {
    type Key = String;

    fn map(world: &mut World) -> &mut HashMap<String, Self> {
        &mut world.nodes
    }

    fn index(&self, _: &mut World, _: &String, _: bool) {}

    fn touches(&self, world: &World, key: &String) -> Touched {
        let here = world.pods.iter().filter(|(_, pod)| pod.node.as_ref() == Some(key));
        Touched { pods: here.map(|(name, _)| name.clone()).collect(), ..Touched::default() }
    }
}

impl Kept for ServiceView {
    type Key = Name;

    fn map(world: &mut World) -> &mut HashMap<Name, Self> {
        &mut world.services
    }

    fn index(&self, world: &mut World, key: &Name, present: bool) {
        enter(&mut world.services_by_ip, self.cluster_ips.iter().copied(), key, present);
    }

    fn touches(&self, world: &World, key: &Name) -> Touched {
        world.around_service(key, Some(self))
    }
}

impl Kept for SliceView {
    type Key = Name;

    fn map(world: &mut World) -> &mut HashMap<Name, Self> {
        &mut world.slices
    }

    fn index(&self, world: &mut World, key: &Name, present: bool) {
        let service = self.service.iter().map(|service| Name::new(&key.namespace, service));
        enter(&mut world.slices_by_service, service, key, present);
        let ips: HashSet<IpAddr> = self.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).copied().collect();
        enter(&mut world.slices_by_endpoint, ips.into_iter(), key, present);
    }

    fn touches(&self, world: &World, key: &Name) -> Touched {
        let mut touched = world.behind(self);
        if let Some(service) = &self.service {
            let name = Name::new(&key.namespace, service);
            touched.ips.extend(world.services.get(&name).into_iter().flat_map(|service| &service.cluster_ips));
            touched.ips.extend(world.led_here(&name));
        }
        touched
    }
}

impl Kept for PodView {
    type Key = Name;

    fn map(world: &mut World) -> &mut HashMap<Name, Self> {
        &mut world.pods
    }

    fn index(&self, world: &mut World, key: &Name, present: bool) {
        enter(&mut world.pods_by_ip, self.ips.iter().copied(), key, present);
        enter(&mut world.pods_by_node, self.node_ips.iter().copied(), key, present);
    }

    fn touches(&self, world: &World, key: &Name) -> Touched {
        let mut touched = Touched::default();
        touched.pods.insert(key.clone());
        touched.ips.extend(&self.ips);
        // The first pod of a node tells of the node, and the last one takes it along.
        let others = |ip: &&IpAddr| world.pods_by_node.get(*ip).is_none_or(|pods| pods.iter().all(|pod| pod == key));
        touched.ips.extend(self.node_ips.iter().filter(others));
        for (_, service) in self.ips.iter().flat_map(|ip| world.slices_with(*ip)) {
            touched.ips.extend(world.services.get(&service).into_iter().flat_map(|service| &service.cluster_ips));
            touched.ips.extend(world.led_here(&service));
        }
        touched
    }
}
