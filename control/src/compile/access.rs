//! From AccessPolicy objects to what a pod's proxy is told of who may call.

use crate::world::World;
use crate::world::access_policy::AccessPolicyView;
use crate::world::view::{Name, PodView};
use kube::core::{Selector, SelectorExt};
use mesh_api::access::{AccessRule, Source};
use mesh_api::{Access, AccessDefault};
use mesh_manifests::config::MeshConfig;
use mesh_manifests::policies::AccessPolicySpec;
use mesh_manifests::policies::access_policy::{AccessTarget, TargetKind};
use std::collections::BTreeSet;

/// Who may call a pod.
pub fn compile(world: &World, config: &MeshConfig, name: &Name, pod: &PodView) -> Access {
    let of_namespace = || world.namespace(&name.namespace)?.default_access;
    let default = pod.default_access.or_else(of_namespace).unwrap_or(config.proxy.default_access);
    let mut rules = Vec::new();
    for (policy, AccessPolicyView { spec, .. }) in world.access_policies_in(&name.namespace) {
        if let Ok(Some(selects)) = selected(world, spec.target.as_ref(), name, pod) {
            add(&mut rules, policy, spec, &selects);
        }
    }
    if default == AccessDefault::All && rules.is_empty() {
        return Access::default();
    }
    let cluster_networks = match default {
        AccessDefault::Cluster => config.proxy.cluster_networks.clone(),
        _ => Vec::new(),
    };
    Access { default, cluster_networks, probes: pod.probes.clone(), rules }
}

/// Adds the rules of a policy that selects a pod, or these of its ports.
pub fn add(rules: &mut Vec<AccessRule>, policy: &Name, spec: &AccessPolicySpec, selects: &[u16]) {
    rules.extend(spec.rules.iter().map(|clause| AccessRule {
        policy: policy.to_string(),
        selects: selects.to_vec(),
        action: spec.action,
        from: clause.from.iter().map(|source| qualified(source, &policy.namespace)).collect(),
        to: clause.to.clone(),
    }));
}

/// The source with the namespace of every service account written out.
fn qualified(source: &Source, namespace: &str) -> Source {
    let accounts = source.service_accounts.iter();
    let whole = |name: &String| if name.contains('/') { name.clone() } else { format!("{namespace}/{name}") };
    Source { service_accounts: accounts.map(whole).collect(), ..source.clone() }
}

/// The ports of the pod that a policy selects, none for all; `None` if it does not select the pod.
pub fn selects(world: &World, spec: &AccessPolicySpec, name: &Name, pod: &PodView) -> Result<Option<Vec<u16>>, String> {
    selected(world, spec.target.as_ref(), name, pod)
}

/// The ports of the pod that a target selects, none for all; `None` if it does not select the pod.
pub fn selected(
    world: &World,
    target: Option<&AccessTarget>,
    name: &Name,
    pod: &PodView,
) -> Result<Option<Vec<u16>>, String> {
    let Some(target) = target else { return Ok(Some(Vec::new())) };
    Ok(match read(target)? {
        Read::Labels(selector) => selector.matches(&pod.labels).then(Vec::new),
        Read::Named(TargetKind::Service, service) => {
            behind(world, &Name::new(&name.namespace, service), pod).filter(|ports| !ports.is_empty())
        }
        Read::Named(TargetKind::Pod, wanted) => (name.name == wanted).then(Vec::new),
        Read::Named(kind, wanted) => (pod.workload.kind == kind.word() && pod.workload.name == wanted).then(Vec::new),
    })
}

/// Why a target makes no sense.
pub fn unusable(target: &AccessTarget) -> Option<String> {
    read(target).err()
}

/// A target that makes sense.
enum Read<'a> {
    Labels(Selector),
    Named(TargetKind, &'a str),
}

fn read(target: &AccessTarget) -> Result<Read<'_>, String> {
    match target {
        AccessTarget { kind: Some(kind), name: Some(name), selector: None } => Ok(Read::Named(*kind, name)),
        AccessTarget { kind: None, name: None, selector: Some(selector) } => {
            let selector = Selector::try_from(selector.clone());
            selector.map(Read::Labels).map_err(|error| format!("spec.target.selector cannot be used: {error}"))
        }
        _ => Err("spec.target has neither kind and name nor a selector alone".to_owned()),
    }
}

/// The target ports of a service on a pod; `None` if it is not behind the service.
fn behind(world: &World, service: &Name, pod: &PodView) -> Option<Vec<u16>> {
    let holds = |ip: &std::net::IpAddr| pod.ips.contains(ip);
    let slices = world.slices_of(service);
    let with_pod = slices.filter(|slice| slice.endpoints.iter().any(|endpoint| endpoint.addresses.iter().any(holds)));
    let ports: BTreeSet<u16> = with_pod.flat_map(|slice| &slice.ports).map(|port| port.port).collect();
    (!ports.is_empty()).then(|| ports.into_iter().collect())
}

/// Why a policy is not in force: reason (as in conditions) and message.
pub fn fault(world: &World, name: &Name, spec: &AccessPolicySpec) -> Option<(&'static str, String)> {
    match spec.target.as_ref().map(read) {
        Some(Err(why)) => Some(("Invalid", why)),
        Some(Ok(Read::Named(TargetKind::Service, service)))
            if world.service(&Name::new(&name.namespace, service)).is_none() =>
        {
            Some(("TargetNotFound", format!("there is no Service {service} in namespace {}", name.namespace)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::view::NamespaceView;
    use mesh_api::WorkloadRef;
    use mesh_api::access::{Action, Probe, ProbeBy};
    use mesh_manifests::policies::access_policy::AccessClause;
    use serde_json::{Value, json};

    fn spec(text: Value) -> AccessPolicySpec {
        serde_json::from_value(text).unwrap()
    }

    fn world(policies: &[(&str, Value)], namespace: Option<AccessDefault>) -> World {
        let mut world = World::default();
        world.apply("shop".to_owned(), NamespaceView { default_access: namespace, ..NamespaceView::default() });
        for (name, text) in policies {
            let policy = AccessPolicyView { spec: spec(text.clone()), ..AccessPolicyView::default() };
            let (namespace, name) = name.split_once('/').unwrap();
            world.apply(Name::new(namespace, name), policy);
        }
        let pod = PodView {
            workload: WorkloadRef::new("shop", "deployment", "web"),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            probes: vec![Probe { port: 80, by: ProbeBy::Tcp }],
            ..PodView::from(&k8s_openapi::api::core::v1::Pod::default())
        };
        world.apply(Name::new("shop", "web-1"), pod);
        world
    }

    fn compiled(world: &World, config: &MeshConfig) -> Access {
        let name = Name::new("shop", "web-1");
        compile(world, config, &name, world.pod(&name).unwrap())
    }

    #[test]
    fn the_nearest_default_counts() {
        let mut config = MeshConfig::default();
        assert!(compiled(&world(&[], None), &config).is_default());
        config.proxy.default_access = AccessDefault::Cluster;
        let access = compiled(&world(&[], None), &config);
        assert_eq!((access.default, access.cluster_networks.len()), (AccessDefault::Cluster, 5));
        let access = compiled(&world(&[], Some(AccessDefault::Deny)), &config);
        assert_eq!((access.default, access.cluster_networks.len(), access.probes.len()), (AccessDefault::Deny, 0, 1));
    }

    #[test]
    fn policies_select_by_namespace_name_and_labels() {
        let check = |target: Value, expect: bool| {
            let mut policy = json!({"rules": [{}]});
            if !target.is_null() {
                policy["target"] = target.clone();
            }
            let access =
                compiled(&world(&[("shop/a", policy.clone()), ("other/b", policy)], None), &MeshConfig::default());
            assert_eq!(!access.rules.is_empty(), expect, "{target}");
            assert!(access.rules.iter().all(|rule| rule.policy == "shop/a"), "{target}");
        };
        check(Value::Null, true);
        check(json!({"kind": "Deployment", "name": "web"}), true);
        check(json!({"kind": "Deployment", "name": "cart"}), false);
        check(json!({"kind": "StatefulSet", "name": "web"}), false);
        check(json!({"kind": "Pod", "name": "web-1"}), true);
        check(json!({"kind": "Service", "name": "web"}), false);
        check(json!({"selector": {"matchLabels": {"app": "web"}}}), true);
        check(json!({"selector": {"matchLabels": {"app": "cart"}}}), false);
        check(
            json!({"selector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "x"]}]}}),
            true,
        );
        check(json!({"selector": {"matchExpressions": [{"key": "app", "operator": "Near"}]}}), false);
        check(json!({"kind": "Pod"}), false);
    }

    #[test]
    fn rules_are_those_of_the_policy_with_whole_names() {
        let policy = json!({"action": "Deny", "rules": [
            {"from": [{"serviceAccounts": ["load", "other/load"]}]},
            {"to": [{"paths": ["/admin/*"]}]},
        ]});
        let access = compiled(&world(&[("shop/a", policy)], None), &MeshConfig::default());
        assert_eq!(access.rules.len(), 2);
        assert_eq!(access.rules[0].action, Action::Deny);
        assert_eq!(access.rules[0].from[0].service_accounts, ["shop/load", "other/load"]);
        assert_eq!(access.rules[1].to[0].paths, ["/admin/*"]);
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let world = world(&[], None);
        let fault = |target: Value| {
            let target = serde_json::from_value(target).unwrap();
            let spec = AccessPolicySpec { target, rules: vec![AccessClause::default()], ..AccessPolicySpec::default() };
            fault(&world, &Name::new("shop", "a"), &spec).map(|(reason, _)| reason)
        };
        assert_eq!(fault(Value::Null), None);
        assert_eq!(fault(json!({"kind": "Deployment", "name": "later"})), None);
        assert_eq!(fault(json!({"kind": "Service", "name": "later"})), Some("TargetNotFound"));
        assert_eq!(fault(json!({"kind": "Pod"})), Some("Invalid"));
        assert_eq!(
            fault(json!({"selector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}})),
            Some("Invalid")
        );
    }
}
