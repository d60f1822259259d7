//! `meshctl explain request`, the part about carrying: which timeouts, retries and limits are in force for a request, and
//! which TrafficPolicies say so.

use mesh_api::route::{Rule, RuleName};
use mesh_api::{ServiceRef, TrafficPolicy};
use mesh_control::world::World;
use mesh_control::world::view::Name;
use mesh_manifests::policies::traffic_policy::TrafficTargetKind;

/// What decides how the request is carried: the rule's own words, TrafficPolicies about it, and those about the services
/// that may answer. `None` if nothing does.
pub(super) fn carried(
    world: &World,
    rule: Option<&Rule>,
    services: &[(Option<&ServiceRef>, Option<&TrafficPolicy>)],
) -> Option<String> {
    let mut lines = Vec::new();
    let mut say = |whose: &dyn Fn() -> String, what: serde_json::Result<String>| {
        let what = what.unwrap_or_default();
        if what != "{}" && what != "null" {
            lines.push(format!("{}: {what}", whose()));
        }
    };
    if let Some(rule) = rule {
        say(&|| "the rule's timeouts".to_owned(), serde_json::to_string(&rule.timeouts));
        say(&|| "the rule's retries".to_owned(), serde_json::to_string(&rule.retry));
        say(&|| "the rule's sessions".to_owned(), serde_json::to_string(&rule.session));
        say(
            &|| format!("TrafficPolicy of the rule{}", about_rule(world, &rule.name)),
            serde_json::to_string(&rule.policy),
        );
    }
    for (service, policy) in services {
        let whose = || {
            let name = service.map(ToString::to_string).unwrap_or_default();
            format!(
                "TrafficPolicy of {name}{}",
                service.map(|service| about_service(world, service)).unwrap_or_default()
            )
        };
        say(&whose, serde_json::to_string(policy));
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Names of the TrafficPolicies about a rule or its route.
fn about_rule(world: &World, rule: &RuleName) -> String {
    let kinds = [
        TrafficTargetKind::HttpRoute,
        TrafficTargetKind::GrpcRoute,
        TrafficTargetKind::TlsRoute,
        TrafficTargetKind::TcpRoute,
    ];
    let kind = kinds.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(&rule.kind));
    kind.map(|kind| about(world, kind, Name::new(&rule.namespace, &rule.name), |section| section == rule.rule))
        .unwrap_or_default()
}

/// Names of the TrafficPolicies about a service or its port.
fn about_service(world: &World, service: &ServiceRef) -> String {
    let name = Name::new(&service.namespace, &service.name);
    let ports = world.service(&name).into_iter().flat_map(|known| &known.ports);
    let named = ports.filter(|known| known.port == service.port).map(|known| known.name.as_str()).next();
    let in_section = |section: &str| section == service.port.to_string() || Some(section) == named;
    about(world, TrafficTargetKind::Service, name, in_section)
}

/// Names of TrafficPolicies in brackets; the first has its say first.
fn about(world: &World, kind: TrafficTargetKind, name: Name, in_section: impl Fn(&str) -> bool) -> String {
    let policies = world.traffic_policies_of(&(kind, name), in_section);
    let names: Vec<String> = policies.iter().map(|(name, _)| name.to_string()).collect();
    if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_control::world::traffic_policy::TrafficPolicyView;
    use serde_json::{Value, json};

    fn world(policies: &[(&str, Value, Value)]) -> World {
        let mut world = World::default();
        for (name, target, says) in policies {
            let mut spec = says.clone();
            spec["targetRefs"] = json!([target]);
            let object = json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "TrafficPolicy",
                "metadata": {"namespace": "shop", "name": name}, "spec": spec});
            let object: mesh_manifests::policies::TrafficPolicy = serde_json::from_value(object).unwrap();
            world.apply(Name::new("shop", name), TrafficPolicyView::from(&object));
        }
        world
    }

    #[test]
    fn policies_are_named_that_have_their_say() {
        let retry = json!({"retry": {"attempts": 2}});
        let world = world(&[
            ("of-rule", json!({"kind": "HTTPRoute", "name": "web", "sectionName": "canary"}), retry.clone()),
            ("of-route", json!({"kind": "HTTPRoute", "name": "web"}), retry.clone()),
            ("of-other", json!({"kind": "GRPCRoute", "name": "web"}), retry.clone()),
            ("of-port", json!({"kind": "Service", "name": "web", "sectionName": "80"}), retry.clone()),
            ("of-other-port", json!({"kind": "Service", "name": "web", "sectionName": "81"}), retry),
        ]);
        let policy = TrafficPolicy { retry: Some(Default::default()), ..TrafficPolicy::default() };
        let name = RuleName {
            kind: "httproute".to_owned(),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            rule: "canary".to_owned(),
        };
        let rule = Rule { name, policy: Some(std::sync::Arc::new(policy.clone())), ..Rule::default() };
        let service = ServiceRef { namespace: "shop".to_owned(), name: "web".to_owned(), port: 80 };
        let told = carried(&world, Some(&rule), &[(Some(&service), Some(&policy))]).unwrap();
        let lines: Vec<&str> = told.lines().map(|line| line.split_once(": {").unwrap().0).collect();
        assert_eq!(
            lines,
            ["TrafficPolicy of the rule (shop/of-rule, shop/of-route)", "TrafficPolicy of shop/web:80 (shop/of-port)"]
        );
        assert_eq!(carried(&world, Some(&Rule::default()), &[(Some(&service), None)]), None);
    }
}
