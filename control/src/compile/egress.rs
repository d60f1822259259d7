//! From EgressPolicy objects to what a pod's proxy is told of what may leave the cluster, and which addresses are of the
//! cluster in the first place.

use super::access;
use crate::world::World;
use crate::world::egress_policy::EgressPolicyView;
use crate::world::view::{Name, PodView};
use mesh_api::egress::EgressRule;
use mesh_api::{Egress, EgressDefault};
use mesh_manifests::config::MeshConfig;
use mesh_manifests::policies::EgressPolicySpec;
use std::net::IpAddr;

/// What may leave the cluster from a pod.
pub fn compile(world: &World, config: &MeshConfig, name: &Name) -> Egress {
    let Some(pod) = world.pod(name) else { return Egress::default() };
    let of_namespace = || world.namespace(&name.namespace)?.default_egress;
    let mut default = pod.default_egress.or_else(of_namespace).unwrap_or(config.proxy.default_egress);
    let mut default_by: Option<String> = None;
    let mut rules = Vec::new();
    for (policy, EgressPolicyView { spec, .. }) in world.egress_policies_in(&name.namespace) {
        if !selects(world, spec, name, pod) {
            continue;
        }
        if let Some(wanted) = spec.wanted_default()
            && (default_by.is_none() || wanted > default)
        {
            (default, default_by) = (wanted, Some(policy.to_string()));
        }
        rules.extend(spec.rules.iter().map(|to| EgressRule {
            policy: policy.to_string(),
            action: spec.action,
            to: to.clone(),
        }));
    }
    if default == EgressDefault::Allow && rules.is_empty() {
        return Egress::default();
    }
    Egress { default, default_by, cluster_networks: config.proxy.cluster_networks.clone(), rules }
}

/// True if a policy selects a pod.
pub fn selects(world: &World, spec: &EgressPolicySpec, name: &Name, pod: &PodView) -> bool {
    let target = spec.target.as_ref().map(Into::into);
    matches!(access::selected(world, target.as_ref(), name, pod), Ok(Some(_)))
}

/// Why a policy is not in force: reason (as in conditions) and message.
pub fn fault(spec: &EgressPolicySpec) -> Option<(&'static str, String)> {
    let target = spec.target.as_ref().map(Into::into);
    Some(("Invalid", access::unusable(target.as_ref()?)?))
}

/// True if the address belongs to the cluster: a Service's, a pod's, an endpoint's or a node's.
pub fn is_of_cluster(world: &World, ip: IpAddr) -> bool {
    world.service_at(ip).is_some()
        || world.pod_at(ip).is_some()
        || world.slices_with(ip).next().is_some()
        || world.is_node(ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::destination;
    use crate::world::view::NamespaceView;
    use k8s_openapi::api::core::v1::Pod;
    use mesh_api::WorkloadRef;
    use mesh_api::access::Action;
    use serde_json::{Value, json};
    use std::net::SocketAddr;

    fn world(policies: &[(&str, Value)], namespace: Option<EgressDefault>) -> World {
        let mut world = World::default();
        world.apply("shop".to_owned(), NamespaceView { default_egress: namespace, ..NamespaceView::default() });
        for (name, text) in policies {
            let spec = serde_json::from_value(text.clone()).unwrap();
            let (namespace, name) = name.split_once('/').unwrap();
            world.apply(Name::new(namespace, name), EgressPolicyView { spec, ..EgressPolicyView::default() });
        }
        let pod: Pod = serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "web-1"},
            "status": {"phase": "Running", "podIP": "10.244.0.2", "hostIP": "10.244.0.1"}}))
        .unwrap();
        let pod = PodView { workload: WorkloadRef::new("shop", "deployment", "web"), ..PodView::from(&pod) };
        world.apply(Name::new("shop", "web-1"), pod);
        world
    }

    fn compiled(policies: &[(&str, Value)], namespace: Option<EgressDefault>) -> Egress {
        compile(&world(policies, namespace), &MeshConfig::default(), &Name::new("shop", "web-1"))
    }

    #[test]
    fn the_strictest_default_of_a_policy_counts_and_else_the_nearest() {
        let allow = || json!({"rules": [{"hosts": ["api.example.com"]}]});
        let check = |policies: &[(&str, Value)], namespace, expect: (EgressDefault, Option<&str>)| {
            let egress = compiled(policies, namespace);
            assert_eq!((egress.default, egress.default_by.as_deref()), expect, "{policies:?} {namespace:?}");
        };
        assert!(compiled(&[], None).is_default());
        check(&[], Some(EgressDefault::Deny), (EgressDefault::Deny, None));
        check(&[("shop/a", allow())], None, (EgressDefault::Deny, Some("shop/a")));
        let open = json!({"default": "allow", "rules": [{}]});
        check(&[("shop/a", open.clone())], Some(EgressDefault::Deny), (EgressDefault::Allow, Some("shop/a")));
        let audit = json!({"default": "audit"});
        check(&[("shop/a", open.clone()), ("shop/b", audit.clone())], None, (EgressDefault::Audit, Some("shop/b")));
        let all = [("shop/a", open), ("shop/b", allow()), ("shop/c", audit)];
        check(&all, None, (EgressDefault::Deny, Some("shop/b")));
        let deny = json!({"action": "Deny", "rules": [{"ports": [25]}]});
        check(&[("shop/a", deny)], None, (EgressDefault::Allow, None));
        check(&[("other/a", allow())], None, (EgressDefault::Allow, None));
    }

    #[test]
    fn policies_select_by_name_and_labels() {
        let check = |target: Value, expect: bool| {
            let policy = json!({"target": target, "action": "Deny", "rules": [{"hosts": ["a"]}]});
            let egress = compiled(&[("shop/a", policy)], None);
            assert_eq!(!egress.rules.is_empty(), expect, "{target}");
            assert!(egress.rules.iter().all(|rule| rule.action == Action::Deny && rule.policy == "shop/a"));
        };
        check(Value::Null, true);
        check(json!({"kind": "Deployment", "name": "web"}), true);
        check(json!({"kind": "Deployment", "name": "cart"}), false);
        check(json!({"kind": "Pod", "name": "web-1"}), true);
        check(json!({"selector": {"matchLabels": {"app": "web"}}}), false);
        check(json!({"selector": {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}}), true);
        check(json!({"kind": "Pod"}), false);
        let half: EgressPolicySpec = serde_json::from_value(json!({"target": {"kind": "Pod"}})).unwrap();
        assert_eq!(fault(&half).unwrap().0, "Invalid");
        assert_eq!(fault(&EgressPolicySpec::default()), None);
    }

    #[test]
    fn addresses_of_the_cluster_do_not_lead_out_of_it() {
        let mut world = world(&[], None);
        world.put_service(json!({"metadata": {"namespace": "shop", "name": "db"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}}));
        world.put_slice(json!({"metadata": {"namespace": "shop", "name": "db-1",
            "labels": {"kubernetes.io/service-name": "db"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["198.51.100.9"]}]}));
        let check = |address: &str, external: bool, cluster: bool| {
            let address: SocketAddr = address.parse().unwrap();
            let to = destination(&world, &MeshConfig::default(), address, None).destination;
            assert_eq!((to.external, to.cluster), (external, cluster), "{address}");
        };
        check("10.96.0.7:80", false, false);
        check("10.96.0.7:81", true, true);
        check("10.244.0.2:80", false, false);
        check("10.244.0.1:6443", true, true);
        check("198.51.100.9:80", true, true);
        check("203.0.113.7:80", true, false);
    }
}
