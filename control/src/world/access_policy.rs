//! AccessPolicy objects as the world keeps them.

use super::route::RouteKey;
use super::view::Name;
use super::{Kept, Touched, World};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use mesh_manifests::policies::{AccessPolicy, AccessPolicySpec};
use std::collections::{HashMap, HashSet};

/// An AccessPolicy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AccessPolicyView {
    /// What it says.
    pub spec: AccessPolicySpec,
    /// Which version of the object says it.
    pub generation: i64,
    /// What is said of it at present.
    pub conditions: Vec<Condition>,
}

impl From<&AccessPolicy> for AccessPolicyView {
    fn from(policy: &AccessPolicy) -> Self {
        let conditions = policy.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
        Self { spec: policy.spec.clone(), generation: policy.metadata.generation.unwrap_or(0), conditions }
    }
}

impl World {
    /// The access policies of a namespace, by name.
    pub fn access_policies_in(&self, namespace: &str) -> Vec<(&Name, &AccessPolicyView)> {
        let mut found: Vec<_> = self.access_policies.iter().filter(|(name, _)| name.namespace == namespace).collect();
        found.sort_unstable_by_key(|(name, _)| *name);
        found
    }

    /// The pods that access policies for a route may be about: all of its namespace, if there are any.
    pub(super) fn pods_of_policies_for(&self, route: &RouteKey) -> HashSet<Name> {
        let named = |(name, view): (&Name, &AccessPolicyView)| {
            let target = view.spec.target.as_ref();
            name.namespace == route.name.namespace
                && target.is_some_and(|target| target.name.as_deref() == Some(&route.name.name))
        };
        if !self.access_policies.iter().any(named) {
            return HashSet::new();
        }
        self.pods.keys().filter(|pod| pod.namespace == route.name.namespace).cloned().collect()
    }

    /// The pods that access policies are about which ask a Service: all of their namespaces, if there are any.
    pub(super) fn pods_that_ask(&self, service: &Name) -> HashSet<Name> {
        let asks = |(name, view): (&Name, &AccessPolicyView)| {
            let asked = &view.spec.external.as_ref()?.service;
            let namespace = asked.namespace.as_ref().unwrap_or(&name.namespace);
            (asked.name == service.name && *namespace == service.namespace).then(|| name.namespace.clone())
        };
        let namespaces: HashSet<String> = self.access_policies.iter().filter_map(asks).collect();
        self.pods.keys().filter(|pod| namespaces.contains(&pod.namespace)).cloned().collect()
    }

    /// Every access policy.
    pub fn access_policies(&self) -> impl Iterator<Item = (&Name, &AccessPolicyView)> {
        self.access_policies.iter()
    }
}

impl Kept for AccessPolicyView {
    type Key = Name;

    fn map(world: &mut World) -> &mut HashMap<Name, Self> {
        &mut world.access_policies
    }

    fn index(&self, _: &mut World, _: &Name, _: bool) {}

    /// Every pod of its namespace: policies change rarely, and compiling one is cheap.
    fn touches(&self, world: &World, key: &Name) -> Touched {
        let pods = world.pods.keys().filter(|pod| pod.namespace == key.namespace).cloned().collect();
        Touched { pods, ..Touched::default() }
    }
}
