//! How traffic is carried: what the TrafficPolicies about a Service, a route or a rule come to.

use crate::limits;
use crate::world::World;
use crate::world::route::{RouteKey, RouteKind};
use crate::world::traffic_policy::{TargetKey, TrafficPolicyView};
use crate::world::view::{Name, PortView, SliceView};
use mesh_api::condition::{Condition, HeaderComparison, PathComparison};
use mesh_api::{InboundPolicy, PortLimit, TrafficPolicy};
use mesh_manifests::policies::traffic_policy::{TrafficTarget, TrafficTargetKind};
use std::collections::BTreeSet;
use std::sync::Arc;

/// How the proxies of callers carry traffic to a port of a Service. Its rate limits are kept by the Service's own
/// proxies, see [`rate_limits`].
pub fn of_service(world: &World, service: &Name, port: &PortView) -> Option<Arc<TrafficPolicy>> {
    let policy = TrafficPolicy { rate_limits: Vec::new(), ..about_port(world, service, port) };
    (!policy.is_empty()).then(|| Arc::new(policy))
}

/// How the traffic of a rule is carried.
pub fn of_rule(world: &World, route: &RouteKey, rule: &str) -> Option<Arc<TrafficPolicy>> {
    let kind = match route.kind {
        RouteKind::Http => TrafficTargetKind::HttpRoute,
        RouteKind::Grpc => TrafficTargetKind::GrpcRoute,
        RouteKind::Tls => TrafficTargetKind::TlsRoute,
        RouteKind::Tcp => TrafficTargetKind::TcpRoute,
    };
    let said = sum(world, &(kind, route.name.clone()), |section| section == rule);
    // These belong to endpoints.
    let policy = TrafficPolicy { balance: None, breaker: None, limits: None, ..said };
    (!policy.is_empty()).then(|| Arc::new(policy))
}

/// How often a port of a pod may be called: what is said of all Services that lead there. `slices` are those with the pod.
pub fn rate_limits<'a>(
    world: &World,
    slices: impl Iterator<Item = (&'a SliceView, Name)>,
    target: u16,
) -> Vec<PortLimit> {
    let mut limits: Vec<PortLimit> = Vec::new();
    for (slice, service) in slices {
        let Some(view) = world.service(&service) else { continue };
        let led = |port: &&PortView| slice.ports.iter().any(|to| to.port == target && to.name == port.name);
        for port in view.ports.iter().filter(led) {
            for (at, limit) in about_port(world, &service, port).rate_limits.into_iter().enumerate() {
                let shared_as = limit.shared.then(|| format!("{service}:{}#{at}", port.port));
                let limit = PortLimit { limit, shared_as };
                if !limits.contains(&limit) {
                    limits.push(limit);
                }
            }
        }
    }
    limits
}

/// How many proxies keep a shared rate limit together: those of its service's pods that are ready. `None`: this one does
/// not.
pub fn keepers(world: &World, keeps: &InboundPolicy, shared_as: &str) -> Option<usize> {
    let limits = keeps.ports.values().flat_map(|port| &port.rate_limits);
    limits.clone().find(|limit| limit.shared_as.as_deref() == Some(shared_as))?;
    let (service, _) = shared_as.rsplit_once(':')?;
    let (namespace, name) = service.split_once('/')?;
    let service = Name::new(namespace, name);
    let ready = world.slices_of(&service).flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.ready);
    let pods = ready.flat_map(|endpoint| &endpoint.addresses).filter_map(|address| world.pod_at(*address));
    let pods: BTreeSet<&Name> = pods.filter(|(_, pod)| pod.is_meshed()).map(|(name, _)| name).collect();
    Some(pods.len())
}

/// Why a policy is not in force: reason and message for its status.
pub fn fault(world: &World, name: &Name, view: &TrafficPolicyView) -> Option<(&'static str, String)> {
    if let Err(why) = check(&view.spec.policy) {
        return Some(("Invalid", why));
    }
    let missing = view.spec.target_refs.iter().find_map(|target| missing(world, &name.namespace, target));
    if let Some(what) = missing {
        let others = if view.spec.target_refs.len() > 1 { "; what else it is about is carried as it says" } else { "" };
        return Some(("TargetNotFound", format!("{what} in namespace {}{others}", name.namespace)));
    }
    let conflict = view.spec.target_refs.iter().find_map(|target| conflict(world, name, view, target))?;
    Some(("Conflicted", conflict))
}

/// The services whose traffic a policy is about.
pub fn services(world: &World, name: &Name, view: &TrafficPolicyView) -> BTreeSet<Name> {
    let targets = view.spec.target_refs.iter().map(|target| (target.kind, Name::new(&name.namespace, &target.name)));
    let services = targets.flat_map(|(kind, name)| match route_kind(kind) {
        None => vec![name],
        Some(kind) => {
            let route = world.route(&RouteKey { kind, name });
            route.into_iter().flat_map(|route| &route.parents).map(|parent| parent.service.clone()).collect()
        }
    });
    services.collect()
}

/// True if a pod is behind one of these services.
pub fn is_behind(world: &World, pod: &Name, services: &BTreeSet<Name>) -> bool {
    let ips = world.pod(pod).into_iter().flat_map(|pod| &pod.ips);
    ips.flat_map(|ip| world.slices_with(*ip)).any(|(_, service)| services.contains(&service))
}

/// What of a target there is not.
fn missing(world: &World, namespace: &str, target: &TrafficTarget) -> Option<String> {
    let (kind, name) = (target.kind.name(), &target.name);
    let key = Name::new(namespace, name);
    let section = target.section_name.as_deref();
    let found = match route_kind(target.kind) {
        None => world.service(&key).map(|service| {
            let is_it = |port: &PortView| section.is_none_or(|section| is_port(section, port));
            service.ports.iter().any(is_it)
        }),
        Some(kind) => world
            .route(&RouteKey { kind, name: key })
            .map(|route| section.is_none_or(|section| route.rules.iter().any(|rule| rule.name == section))),
    };
    match (found, section) {
        (None, _) => Some(format!("there is no {kind} {name}")),
        (Some(false), Some(section)) if kind == "Service" => Some(format!("Service {name} has no port {section}")),
        (Some(false), Some(section)) => Some(format!("{kind} {name} has no rule {section}")),
        _ => None,
    }
}

/// Which older policy has its say about the same, in what.
fn conflict(world: &World, name: &Name, view: &TrafficPolicyView, target: &TrafficTarget) -> Option<String> {
    let key = (target.kind, Name::new(&name.namespace, &target.name));
    let same = |other: &TrafficTarget| {
        (other.kind, &other.name, &other.section_name) == (target.kind, &target.name, &target.section_name)
    };
    let about = world.traffic_policies_of(&key, |section| target.section_name.as_deref() == Some(section));
    let older = about.into_iter().filter(|(other, theirs)| {
        (theirs.created, *other) < (view.created, name)
            && theirs.spec.target_refs.iter().any(same)
            && check(&theirs.spec.policy).is_ok()
    });
    let ours = view.spec.policy.fields();
    for (other, theirs) in older {
        let both: Vec<_> = theirs.spec.policy.fields().into_iter().filter(|field| ours.contains(field)).collect();
        if !both.is_empty() {
            let of = target.section_name.as_ref().map_or(String::new(), |section| format!(" ({section})"));
            let what = format!("{} {}{of}", target.kind.name(), target.name);
            return Some(format!(
                "TrafficPolicy {other}, which is older, says {} of {what} already",
                both.join(" and ")
            ));
        }
    }
    None
}

fn route_kind(kind: TrafficTargetKind) -> Option<RouteKind> {
    match kind {
        TrafficTargetKind::Service => None,
        TrafficTargetKind::HttpRoute => Some(RouteKind::Http),
        TrafficTargetKind::GrpcRoute => Some(RouteKind::Grpc),
        TrafficTargetKind::TlsRoute => Some(RouteKind::Tls),
        TrafficTargetKind::TcpRoute => Some(RouteKind::Tcp),
    }
}

/// Says why a proxy could not run a policy, with the field's path.
fn check(policy: &TrafficPolicy) -> Result<(), String> {
    policy.check()?;
    let limits = policy.rate_limits.iter().enumerate().map(|(at, limit)| (format!("rateLimits[{at}]"), &limit.when));
    let faults = policy.faults.iter().enumerate().map(|(at, fault)| (format!("faults[{at}]"), &fault.when));
    limits.chain(faults).try_for_each(|(path, when)| expressions(when).map_err(|why| format!("{path}.when.{why}")))
}

/// Says why a regular expression of a condition cannot be used.
fn expressions(when: &Condition) -> Result<(), String> {
    let path = when.path.iter().filter(|path| path.how == PathComparison::RegularExpression);
    let path = path.map(|path| ("path.value".to_owned(), &path.value));
    let headers = when.headers.iter().enumerate().filter(|(_, field)| field.how == HeaderComparison::RegularExpression);
    let headers = headers.filter_map(|(at, field)| Some((format!("headers[{at}].value"), field.value.as_ref()?)));
    path.chain(headers).try_for_each(|(path, value)| {
        let built = regex::RegexBuilder::new(value).size_limit(limits::EXPRESSION_BYTES).build();
        built.map(drop).map_err(|error| {
            // The last line says what is wrong, those before it point at it.
            let error = error.to_string();
            let why = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("{path}: `{value}`: {why}")
        })
    })
}

fn is_port(section: &str, port: &PortView) -> bool {
    section == port.name || section.parse() == Ok(port.port)
}

fn about_port(world: &World, service: &Name, port: &PortView) -> TrafficPolicy {
    let target = (TrafficTargetKind::Service, service.clone());
    sum(world, &target, |section| is_port(section, port))
}

/// The most specific policy over the others, field by field; one that cannot be run says nothing.
fn sum(world: &World, target: &TargetKey, in_section: impl Fn(&str) -> bool) -> TrafficPolicy {
    let policies = world.traffic_policies_of(target, in_section);
    let fine = policies.into_iter().map(|(_, view)| &view.spec.policy).filter(|policy| check(policy).is_ok());
    fine.fold(TrafficPolicy::default(), |sum, less| sum.over(less.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::balance::Algorithm;
    use mesh_manifests::policies::TrafficPolicy as Object;

    fn apply(world: &mut World, name: &str, created: &str, spec: serde_json::Value) {
        let metadata = serde_json::json!({"namespace": "shop", "name": name, "creationTimestamp": created});
        let object = serde_json::json!({
            "apiVersion": "meshctl.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": metadata, "spec": spec,
        });
        let object: Object = serde_json::from_value(object).unwrap();
        world.apply(Name::new("shop", name), TrafficPolicyView::from(&object));
    }

    #[test]
    fn the_more_specific_and_then_the_older_has_its_say() {
        let mut world = World::default();
        let service = serde_json::json!([{"kind": "Service", "name": "web"}]);
        let port = serde_json::json!([{"kind": "Service", "name": "web", "sectionName": "http"}]);
        apply(
            &mut world,
            "b-old",
            "2026-01-01T00:00:00Z",
            serde_json::json!({
                "targetRefs": service, "balance": {"algorithm": "Random"}, "retry": {"attempts": 1},
            }),
        );
        apply(
            &mut world,
            "a-new",
            "2026-01-02T00:00:00Z",
            serde_json::json!({
                "targetRefs": service, "balance": {"algorithm": "Maglev"}, "breaker": {}, "rateLimits": [{"requests": 5}],
            }),
        );
        apply(
            &mut world,
            "port",
            "2026-01-03T00:00:00Z",
            serde_json::json!({
                "targetRefs": port, "retry": {"attempts": 7},
            }),
        );
        apply(
            &mut world,
            "bad",
            "2025-01-01T00:00:00Z",
            serde_json::json!({
                "targetRefs": service, "limits": {"requests": 0},
            }),
        );
        let web = Name::new("shop", "web");
        let view = |name: &str| PortView { name: name.into(), port: 80, app_protocol: None };
        let policy = of_service(&world, &web, &view("http")).unwrap();
        assert_eq!(policy.fields(), ["balance", "breaker", "retry"], "rate limits stay with the service's proxies");
        assert_eq!(policy.balance.as_ref().unwrap().algorithm, Algorithm::Random);
        assert_eq!(policy.retry.as_ref().unwrap().attempts, 7);
        assert_eq!(of_service(&world, &web, &view("other")).unwrap().retry.as_ref().unwrap().attempts, 1);
        assert_eq!(about_port(&world, &web, &view("http")).rate_limits.len(), 1);
        assert!(of_service(&world, &Name::new("other", "web"), &view("http")).is_none());
    }

    #[test]
    fn who_is_not_in_force_is_told_why() {
        let mut world = World::default();
        let service = |name: &str| {
            serde_json::json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"clusterIP": "10.96.0.1",
                "ports": [{"name": "http", "port": 80}]}})
        };
        world.put_service(service("web"));
        let on = |section: Option<&str>, name: &str| match section {
            Some(section) => serde_json::json!([{"kind": "Service", "name": name, "sectionName": section}]),
            None => serde_json::json!([{"kind": "Service", "name": name}]),
        };
        let wrong = serde_json::json!([{"when": {"path": {"type": "RegularExpression", "value": "/("}}, "abort": {}}]);
        for (name, spec) in [
            ("a", serde_json::json!({"targetRefs": on(None, "web"), "retry": {}, "breaker": {}})),
            ("b", serde_json::json!({"targetRefs": on(None, "web"), "retry": {}, "limits": {}})),
            ("c", serde_json::json!({"targetRefs": on(None, "web"), "timeouts": {}})),
            ("d", serde_json::json!({"targetRefs": on(Some("http"), "web"), "retry": {}})),
            ("e", serde_json::json!({"targetRefs": on(Some("ftp"), "web"), "retry": {}})),
            ("f", serde_json::json!({"targetRefs": on(None, "none"), "retry": {}})),
            ("g", serde_json::json!({"targetRefs": on(None, "web"), "faults": wrong})),
            ("h", serde_json::json!({"targetRefs": [{"kind": "HTTPRoute", "name": "web"}], "retry": {}})),
        ] {
            apply(&mut world, name, "2026-01-01T00:00:00Z", spec);
        }
        let told = |name: &str| {
            let name = Name::new("shop", name);
            let (_, view) = world.traffic_policies().find(|(key, _)| **key == name).unwrap();
            fault(&world, &name, view)
        };
        for (name, reason, part) in [
            ("b", "Conflicted", "TrafficPolicy shop/a, which is older, says retry of Service web"),
            ("e", "TargetNotFound", "Service web has no port ftp in namespace shop"),
            ("f", "TargetNotFound", "there is no Service none in namespace shop"),
            ("g", "Invalid", "faults[0].when.path.value: `/(`: unclosed group"),
            ("h", "TargetNotFound", "there is no HTTPRoute web"),
        ] {
            let (why, message) = told(name).unwrap();
            assert!(why == reason && message.contains(part), "{name}: {why} {message}");
        }
        assert_eq!([told("a"), told("c"), told("d")], [None, None, None]);
    }

    #[test]
    fn rules_are_named_by_their_section() {
        let mut world = World::default();
        let refs = serde_json::json!([{"kind": "HTTPRoute", "name": "web", "sectionName": "canary"}]);
        let spec = serde_json::json!({"targetRefs": refs, "faults": [{"delay": "1s"}]});
        apply(&mut world, "slow", "2026-01-01T00:00:00Z", spec);
        let key = |kind| RouteKey { kind, name: Name::new("shop", "web") };
        assert!(of_rule(&world, &key(RouteKind::Http), "canary").is_some());
        assert!(of_rule(&world, &key(RouteKind::Http), "1").is_none());
        assert!(of_rule(&world, &key(RouteKind::Grpc), "canary").is_none());
    }
}
