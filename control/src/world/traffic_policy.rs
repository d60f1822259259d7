//! TrafficPolicy objects as the world keeps them.

use super::route::{RouteKey, RouteKind};
use super::view::Name;
use super::{Kept, Touched, World, enter};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use mesh_manifests::policies::traffic_policy::{TrafficTarget, TrafficTargetKind};
use mesh_manifests::policies::{TrafficPolicy, TrafficPolicySpec};
use std::collections::HashMap;

/// What a policy is about: kind and name.
pub type TargetKey = (TrafficTargetKind, Name);

/// A TrafficPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct TrafficPolicyView {
    /// What it says.
    pub spec: TrafficPolicySpec,
    /// When it was made, seconds since 1970: of two about the same the older one has its say.
    pub created: i64,
    /// Which version of the object says it.
    pub generation: i64,
    /// What is said of it at present.
    pub conditions: Vec<Condition>,
}

impl From<&TrafficPolicy> for TrafficPolicyView {
    fn from(policy: &TrafficPolicy) -> Self {
        let created = policy.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second());
        let conditions = policy.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
        Self { spec: policy.spec.clone(), created, generation: policy.metadata.generation.unwrap_or(0), conditions }
    }
}

impl TrafficPolicyView {
    fn targets<'a>(&'a self, key: &'a Name) -> impl Iterator<Item = TargetKey> + 'a {
        let refs = self.spec.target_refs.iter();
        refs.map(|target| (target.kind, Name::new(&key.namespace, &target.name)))
    }
}

impl Kept for TrafficPolicyView {
    type Key = Name;

    fn map(world: &mut World) -> &mut HashMap<Name, Self> {
        &mut world.traffic_policies
    }

    fn index(&self, world: &mut World, key: &Name, present: bool) {
        enter(&mut world.traffic_by_target, self.targets(key), key, present);
    }

    fn touches(&self, world: &World, key: &Name) -> Touched {
        let mut touched = Touched::default();
        for (kind, name) in self.targets(key) {
            let kind = match kind {
                TrafficTargetKind::Service => {
                    touched.add(world.around_service(&name, world.services.get(&name)));
                    touched.ips.extend(world.led_here(&name));
                    continue;
                }
                TrafficTargetKind::HttpRoute => RouteKind::Http,
                TrafficTargetKind::GrpcRoute => RouteKind::Grpc,
                TrafficTargetKind::TlsRoute => RouteKind::Tls,
                TrafficTargetKind::TcpRoute => RouteKind::Tcp,
            };
            let route = world.routes.get(&RouteKey { kind, name });
            touched.ips.extend(route.into_iter().flat_map(|route| route.cluster_ips(world)));
        }
        touched
    }
}

impl World {
    /// Every traffic policy.
    pub fn traffic_policies(&self) -> impl Iterator<Item = (&Name, &TrafficPolicyView)> {
        self.traffic_policies.iter()
    }

    /// The policies about an object, those about a section of it first, the older before the newer.
    pub fn traffic_policies_of(
        &self,
        target: &TargetKey,
        in_section: impl Fn(&str) -> bool,
    ) -> Vec<(&Name, &TrafficPolicyView)> {
        let mut found = Vec::new();
        for name in self.traffic_by_target.get(target).into_iter().flatten() {
            let Some(view) = self.traffic_policies.get(name) else { continue };
            let about = |t: &&TrafficTarget| t.kind == target.0 && t.name == target.1.name;
            let section = |t: &TrafficTarget| match &t.section_name {
                None => Some(1),
                Some(section) => in_section(section).then_some(0),
            };
            // Of several references to the same object the closest one counts.
            if let Some(rank) = view.spec.target_refs.iter().filter(about).filter_map(section).min() {
                found.push(((rank, view.created, name), view));
            }
        }
        found.sort_by_key(|(rank, _)| *rank);
        found.into_iter().map(|((_, _, name), view)| (name, view)).collect()
    }
}
