//! From AccessPolicy objects to what a pod's proxy is told of who may call.

use crate::world::World;
use crate::world::access_policy::AccessPolicyView;
use crate::world::key_set::{KeySet, KeySetView};
use crate::world::route::{FilterView, MatchView, RouteKey, RouteKind, RouteView, RuleView};
use crate::world::view::{Name, PodView, PortView};
use kube::core::{Selector, SelectorExt};
use mesh_api::Millis;
use mesh_api::access::{AccessRule, ExternalRule, JwtRule, RouteMatches, Source};
use mesh_api::route::{Filter, HttpMatch, PathChange, PathMatch};
use mesh_api::{Access, AccessDefault};
use mesh_manifests::config::MeshConfig;
use mesh_manifests::policies::AccessPolicySpec;
use mesh_manifests::policies::access_policy::{AccessTarget, ExternalSpec, JwtSpec, TargetKind};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Who may call a pod.
pub fn compile(world: &World, config: &MeshConfig, name: &Name, pod: &PodView) -> Access {
    let of_namespace = || world.namespace(&name.namespace)?.default_access;
    let default = pod.default_access.or_else(of_namespace).unwrap_or(config.proxy.default_access);
    let (mut rules, mut routes, mut jwts, mut services) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (policy, AccessPolicyView { spec, .. }) in world.access_policies_in(&name.namespace) {
        let Ok(Some(selects)) = selected(world, spec.target.as_ref(), name, pod) else { continue };
        let from = rules.len();
        add(&mut rules, policy, spec, &selects);
        let route = spec.target.as_ref().and_then(|target| route_of(world, policy, target));
        let route = route.map(|(key, view)| numbered(&mut routes, arriving(key.kind, view)));
        let jwt = spec.jwt.as_ref().map(|spec| numbered(&mut jwts, jwt(world, policy, spec)));
        let external = spec.external.as_ref().map(|spec| numbered(&mut services, external(world, policy, spec)));
        for rule in &mut rules[from..] {
            (rule.route, rule.jwt, rule.external) = (route, jwt, external);
        }
    }
    if default == AccessDefault::All && rules.is_empty() {
        return Access::default();
    }
    let cluster_networks = match default {
        AccessDefault::Cluster => config.proxy.cluster_networks.clone(),
        _ => Vec::new(),
    };
    Access { default, cluster_networks, probes: pod.probes.clone(), routes, jwts, external: services, rules }
}

/// The number of a value in a list, where it is put unless it is there.
fn numbered<T: PartialEq>(list: &mut Vec<T>, value: T) -> usize {
    list.iter().position(|known| *known == value).unwrap_or_else(|| {
        list.push(value);
        list.len() - 1
    })
}

/// Whose tokens count. Without keys, none.
fn jwt(world: &World, policy: &Name, spec: &JwtSpec) -> JwtRule {
    let JwtSpec { issuer, audiences, keys, leeway_seconds, header } = spec;
    let keys = KeySet::of(&policy.namespace, keys).and_then(|set| world.key_set(&set));
    JwtRule {
        issuer: issuer.clone(),
        audiences: audiences.clone(),
        leeway_s: leeway_seconds.unwrap_or(60).into(),
        header: header.clone(),
        keys: keys.and_then(|view| view.keys.clone().ok()).unwrap_or_default(),
    }
}

/// A service that is asked. One that is not there is asked all the same, and gives no answer.
fn external(world: &World, policy: &Name, spec: &ExternalSpec) -> ExternalRule {
    let ExternalSpec { service, path, method, timeout, fail_open, headers, response_headers } = spec;
    let name = service_of(policy, spec);
    // Nobody listens there.
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    ExternalRule {
        address: address_of(world, policy, spec).unwrap_or(nowhere),
        authority: format!("{}.{}:{}", name.name, name.namespace, service.port),
        path: path.clone().unwrap_or_else(|| "/".to_owned()),
        method: method.clone().unwrap_or_else(|| "GET".to_owned()),
        timeout: timeout.unwrap_or(Millis(500)),
        fail_open: *fail_open,
        headers: headers.clone(),
        response_headers: response_headers.clone(),
    }
}

fn service_of(policy: &Name, spec: &ExternalSpec) -> Name {
    Name::new(spec.service.namespace.as_ref().unwrap_or(&policy.namespace), &spec.service.name)
}

fn address_of(world: &World, policy: &Name, spec: &ExternalSpec) -> Result<SocketAddr, String> {
    let (name, port) = (service_of(policy, spec), spec.service.port);
    let service = world.service(&name).ok_or_else(|| format!("there is no Service {name}"))?;
    if service.ports.iter().all(|known| known.port != port) {
        return Err(format!("the Service {name} has no TCP port {port}"));
    }
    let ip = service.cluster_ips.first().ok_or_else(|| format!("the Service {name} has no cluster IP"))?;
    Ok(SocketAddr::new(*ip, port))
}

/// The route that a target names.
fn route_of<'a>(world: &'a World, policy: &Name, target: &AccessTarget) -> Option<(RouteKey, &'a RouteView)> {
    let kind = match target.kind? {
        TargetKind::HttpRoute => RouteKind::Http,
        TargetKind::GrpcRoute => RouteKind::Grpc,
        _ => return None,
    };
    let key = RouteKey { kind, name: Name::new(&policy.namespace, target.name.as_deref()?) };
    let view = world.route(&key)?;
    Some((key, view))
}

/// What requests of a route look like when they arrive: what its rules match, as they rewrite it.
fn arriving(kind: RouteKind, route: &RouteView) -> RouteMatches {
    let mut matches = Vec::new();
    for rule in &route.rules {
        for of in &rule.matches {
            matches.push(HttpMatch { hosts: route.hosts.clone(), ..rewritten(of, &rule.filters) });
            // Backends may rewrite besides.
            let changed = rule.backends.iter().filter(|backend| !backend.filters.is_empty());
            let filters = |extra: &[FilterView]| [&rule.filters[..], extra].concat();
            matches.extend(changed.map(|backend| rewritten(of, &filters(&backend.filters))));
            if rewrites_host(rule) {
                matches.push(rewritten(of, &rule.filters));
            }
        }
    }
    RouteMatches { grpc: kind == RouteKind::Grpc, matches }
}

fn rewrites_host(rule: &RuleView) -> bool {
    rule.filters.iter().any(|filter| matches!(filter, FilterView::Plain(Filter::Rewrite(to)) if to.host.is_some()))
}

fn rewritten(of: &MatchView, filters: &[FilterView]) -> HttpMatch {
    let MatchView { path, method, headers, query, grpc_chars: _ } = of.clone();
    let changes = filters.iter().filter_map(|filter| match filter {
        FilterView::Plain(Filter::Rewrite(to)) => to.path.clone(),
        _ => None,
    });
    let path = changes.fold(path, |_, change| match change {
        PathChange::Full(path) => Some(PathMatch::Exact(path)),
        PathChange::Prefix(prefix) if prefix.starts_with('/') => Some(PathMatch::Prefix(prefix)),
        PathChange::Prefix(_) => None,
    });
    HttpMatch { rule: 0, hosts: Vec::new(), path, method, headers, query }
}

/// Adds the rules of a policy that selects a pod, or these of its ports.
pub fn add(rules: &mut Vec<AccessRule>, policy: &Name, spec: &AccessPolicySpec, selects: &[u16]) {
    rules.extend(spec.rules.iter().map(|clause| AccessRule {
        policy: policy.to_string(),
        selects: selects.to_vec(),
        action: spec.action,
        from: clause.from.iter().map(|source| qualified(source, &policy.namespace)).collect(),
        to: clause.to.clone(),
        ..AccessRule::default()
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
        Read::Named(TargetKind::HttpRoute | TargetKind::GrpcRoute, _) => {
            let policy = Name::new(&name.namespace, "");
            route_of(world, &policy, target).and_then(|(key, route)| behind_route(world, &key, route, pod))
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

/// The target ports on a pod that requests of a route go to: those of its parents and of its backends.
fn behind_route(world: &World, key: &RouteKey, route: &RouteView, pod: &PodView) -> Option<Vec<u16>> {
    let mut ports = BTreeSet::new();
    for parent in &route.parents {
        ports.extend(target_ports(world, &parent.service, pod, |port| parent.takes(port)));
    }
    for backend in route.rules.iter().flat_map(|rule| &rule.backends) {
        if let Ok(to) = super::route::resolve(world, key, &backend.to) {
            let service = Name::new(&to.namespace, &to.name);
            ports.extend(target_ports(world, &service, pod, |port| port.port == to.port));
        }
    }
    (!ports.is_empty()).then(|| ports.into_iter().collect())
}

/// The target ports on a pod of some ports of a service.
fn target_ports(world: &World, service: &Name, pod: &PodView, takes: impl Fn(&PortView) -> bool) -> Vec<u16> {
    let Some(view) = world.service(service) else { return Vec::new() };
    let named: Vec<&str> = view.ports.iter().filter(|port| takes(port)).map(|port| port.name.as_str()).collect();
    let holds = |ip: &std::net::IpAddr| pod.ips.contains(ip);
    let slices = world.slices_of(service);
    let with_pod = slices.filter(|slice| slice.endpoints.iter().any(|endpoint| endpoint.addresses.iter().any(holds)));
    with_pod.flat_map(|slice| &slice.ports).filter(|port| named.contains(&port.name.as_str())).map(|p| p.port).collect()
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
        Some(Ok(Read::Named(TargetKind::HttpRoute | TargetKind::GrpcRoute, route)))
            if spec.target.as_ref().and_then(|target| route_of(world, name, target)).is_none() =>
        {
            Some(("TargetNotFound", format!("there is no such route {route} in namespace {}", name.namespace)))
        }
        _ => {
            if let Some(Err(why)) = spec.external.as_ref().map(|spec| address_of(world, name, spec)) {
                return Some(("ServiceNotFound", format!("{why}; it gives no answer")));
            }
            let set = KeySet::of(&name.namespace, &spec.jwt.as_ref()?.keys)?;
            match world.key_set(&set).map(|KeySetView { keys }| keys) {
                None => Some(("KeysNotFound", format!("{set} has not been read yet; until then no token counts"))),
                Some(Err(why)) => Some(("KeysNotFound", format!("{set}: {why}; no token counts"))),
                Some(Ok(_)) => None,
            }
        }
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

    /// The pod `shop/web-1` behind the Service `web`, and a route of it.
    fn routed(policy: Value) -> World {
        let mut world = world(&[("shop/a", policy)], None);
        let pod = json!({"metadata": {"namespace": "shop", "name": "web-1"},
            "spec": {"containers": []}, "status": {"phase": "Running", "podIP": "10.244.0.2"}});
        world.put_pod(pod);
        world.put_service(json!({"metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}, {"name": "admin", "port": 81}]}}));
        world.put_slice(json!({"metadata": {"namespace": "shop", "name": "web-1",
            "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}, {"name": "admin", "port": 8081}],
            "endpoints": [{"addresses": ["10.244.0.2"]}]}));
        let route = json!({"spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web", "port": 80}],
            "hostnames": ["web.example"],
            "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": "/old"}}, {"method": "POST"}],
                "filters": [{"type": "URLRewrite", "urlRewrite": {"path":
                    {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}}}],
                "backendRefs": [{"name": "web", "port": 81}]}]}});
        let meta = serde_json::from_value(json!({"namespace": "shop", "name": "web"})).unwrap();
        let key = RouteKey { kind: RouteKind::Http, name: Name::new("shop", "web") };
        world.apply(key, crate::world::route::read::route(RouteKind::Http, &meta, &route));
        world
    }

    #[test]
    fn a_route_selects_its_ports_and_its_requests_as_they_arrive() {
        let target = json!({"kind": "HTTPRoute", "name": "web"});
        let world = routed(json!({"target": target, "rules": [{}]}));
        let access = compiled(&world, &MeshConfig::default());
        assert_eq!((access.rules[0].selects.as_slice(), access.rules[0].route), (&[8080, 8081][..], Some(0)));
        let matches = &access.routes[0].matches;
        assert!(matches.iter().all(|of| of.path == Some(PathMatch::Prefix("/new".to_owned()))), "{matches:?}");
        assert_eq!(
            (matches[0].hosts.as_slice(), matches[1].method.as_deref()),
            (&["web.example".to_owned()][..], Some("POST"))
        );
        let other = routed(json!({"target": {"kind": "GRPCRoute", "name": "web"}, "rules": [{}]}));
        assert!(compiled(&other, &MeshConfig::default()).is_default());
        let (name, view) = other.access_policies().next().unwrap();
        assert_eq!(super::fault(&other, name, &view.spec).map(|(reason, _)| reason), Some("TargetNotFound"));
    }

    #[test]
    fn keys_and_services_come_from_the_world_and_their_lack_is_told() {
        let mut world = routed(json!({"rules": [{}],
            "jwt": {"issuer": "https://login", "keys": {"configMap": {"name": "login"}}},
            "external": {"service": {"name": "web", "port": 80}, "timeout": "200ms"}}));
        let fault = |world: &World| {
            let (name, view) = world.access_policies().next().unwrap();
            super::fault(world, name, &view.spec).map(|(reason, _)| reason)
        };
        let access = compiled(&world, &MeshConfig::default());
        assert_eq!((access.rules[0].jwt, access.rules[0].external), (Some(0), Some(0)));
        assert_eq!((access.jwts[0].leeway_s, access.jwts[0].keys.len()), (60, 0));
        assert_eq!(access.external[0].address, SocketAddr::from(([10, 96, 0, 7], 80)));
        assert_eq!(access.external[0].authority, "web.shop:80");
        assert_eq!(fault(&world), Some("KeysNotFound"));
        let set = world.key_sets_wanted().pop_first().unwrap();
        assert_eq!(set.to_string(), "jwks.json of ConfigMap shop/login");
        let touched = world.apply(set.clone(), KeySetView::read(br#"{"keys": [{"kty": "OKP", "crv": "Ed25519"}]}"#));
        assert!(touched.pods.contains(&Name::new("shop", "web-1")));
        assert_eq!(fault(&world), None);
        assert_eq!(compiled(&world, &MeshConfig::default()).jwts[0].keys.len(), 1);
        let gone = world.delete::<crate::world::view::ServiceView>(&Name::new("shop", "web"));
        assert!(gone.pods.contains(&Name::new("shop", "web-1")));
        assert_eq!(fault(&world), Some("ServiceNotFound"));
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
