//! EgressPolicy objects as the world keeps them.

use super::view::Name;
use super::{Kept, Touched, World};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use mesh_manifests::policies::{EgressPolicy, EgressPolicySpec};
use std::collections::HashMap;

/// An EgressPolicy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EgressPolicyView {
    /// What it says.
    pub spec: EgressPolicySpec,
    /// Which version of the object says it.
    pub generation: i64,
    /// What is said of it at present.
    pub conditions: Vec<Condition>,
}

impl From<&EgressPolicy> for EgressPolicyView {
    fn from(policy: &EgressPolicy) -> Self {
        let conditions = policy.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
        Self { spec: policy.spec.clone(), generation: policy.metadata.generation.unwrap_or(0), conditions }
    }
}

impl World {
    /// The egress policies of a namespace, by name.
    pub fn egress_policies_in(&self, namespace: &str) -> Vec<(&Name, &EgressPolicyView)> {
        let mut found: Vec<_> = self.egress_policies.iter().filter(|(name, _)| name.namespace == namespace).collect();
        found.sort_unstable_by_key(|(name, _)| *name);
        found
    }

    /// Every egress policy.
    pub fn egress_policies(&self) -> impl Iterator<Item = (&Name, &EgressPolicyView)> {
        self.egress_policies.iter()
    }
}

impl Kept for EgressPolicyView {
    type Key = Name;

    fn map(world: &mut World) -> &mut HashMap<Name, Self> {
        &mut world.egress_policies
    }

    fn index(&self, _: &mut World, _: &Name, _: bool) {}

    /// Every pod of its namespace, as for access policies.
    fn touches(&self, world: &World, key: &Name) -> Touched {
        let pods = world.pods.keys().filter(|pod| pod.namespace == key.namespace).cloned().collect();
        Touched { pods, ..Touched::default() }
    }
}
