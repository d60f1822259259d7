//! AccessPolicy objects as the world keeps them.

use super::view::Name;
use super::{Kept, Touched, World};
use mesh_manifests::policies::{AccessPolicy, AccessPolicySpec};
use std::collections::HashMap;

/// An AccessPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessPolicyView {
    /// What it says.
    pub spec: AccessPolicySpec,
    /// Which version of the object says it.
    pub generation: i64,
}

impl From<&AccessPolicy> for AccessPolicyView {
    fn from(policy: &AccessPolicy) -> Self {
        Self { spec: policy.spec.clone(), generation: policy.metadata.generation.unwrap_or(0) }
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
