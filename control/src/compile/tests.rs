//! Tables of worlds, questions and answers.

use super::*;
use crate::world::tests::{name, pod, service, slice};
use serde_json::{Value, json};

fn config() -> MeshConfig {
    MeshConfig::default()
}

fn web(ports: Value, targets: Value) -> World {
    let mut world = World::default();
    world.put_namespace(json!({"metadata": {"name": "shop"}}));
    world.put_service(service("web", "10.96.0.7", ports));
    let endpoints = json!([
        {"addresses": ["10.244.0.6"], "zone": "b", "conditions": {"ready": true}},
        {"addresses": ["10.244.0.5"], "zone": "a", "conditions": {"ready": true}},
        {"addresses": ["10.244.0.9"], "conditions": {"ready": false, "serving": false}},
    ]);
    world.put_slice(slice("web", targets, endpoints));
    world.put_pod(pod("web-1", "web", "10.244.0.5", true));
    world.put_pod(pod("web-2", "web", "10.244.0.6", false));
    world
}

fn ask(world: &World, address: &str) -> Compiled {
    destination(world, &config(), address.parse().unwrap(), None)
}

#[test]
fn a_cluster_ip_leads_to_the_ready_endpoints() {
    // One port's target is a number, the other's a name that differs from pod to pod: the slice has both resolved.
    let world = web(
        json!([{"name": "http", "port": 80, "targetPort": 8080}, {"name": "admin", "port": 81, "targetPort": "admin"}]),
        json!([{"name": "http", "port": 8080}, {"name": "admin", "port": 9005}]),
    );
    let compiled = ask(&world, "10.96.0.7:80");
    let service = ServiceRef { namespace: "shop".into(), name: "web".into(), port: 80 };
    assert_eq!(
        compiled.destination,
        Destination {
            service: Some(service),
            protocol: Protocol::Http1,
            external: false,
            cluster: false,
            routes: None,
            policy: None
        }
    );
    let workload = WorkloadRef::new("shop", "deployment", "web");
    let endpoint = |address: &str, meshed: bool, pod: &str, zone: &str| Endpoint {
        address: address.parse().unwrap(),
        identity: meshed.then(|| SpiffeId::new("cluster.local", "shop", "web")),
        workload: workload.clone(),
        pod: pod.into(),
        zone: Some(zone.into()),
    };
    assert_eq!(
        compiled.endpoints,
        [endpoint("10.244.0.5:8080", true, "web-1", "a"), endpoint("10.244.0.6:8080", false, "web-2", "b")]
    );
    // The second port bypasses the proxy: nobody there would prove an identity.
    let admin = ask(&world, "10.96.0.7:81");
    assert_eq!(admin.endpoints[0], endpoint("10.244.0.5:9005", false, "web-1", "a"));
}

#[test]
fn endpoints_that_are_stopping_are_better_than_none() {
    let mut world = web(json!([{"port": 80}]), json!([{"port": 8080}]));
    let endpoints = json!([
        {"addresses": ["10.244.0.5"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.244.0.6"], "conditions": {"ready": false, "serving": false}},
    ]);
    world.put_slice(slice("web", json!([{"port": 8080}]), endpoints));
    let addresses: Vec<_> = ask(&world, "10.96.0.7:80").endpoints.iter().map(|e| e.address.to_string()).collect();
    assert_eq!(addresses, ["10.244.0.5:8080"]);
    world.delete::<crate::world::view::SliceView>(&name("web-x"));
    let none = ask(&world, "10.96.0.7:80");
    assert!(none.endpoints.is_empty() && none.destination.service.is_some());
}

#[test]
fn other_addresses_are_pods_or_external() {
    let world = web(json!([{"name": "http", "port": 80}]), json!([{"name": "http", "port": 8080}]));
    let direct = ask(&world, "10.244.0.5:8080");
    assert_eq!((direct.destination.service, direct.destination.external), (None, false));
    assert_eq!(direct.endpoints.len(), 1);
    assert_eq!(direct.endpoints[0].identity, Some(SpiffeId::new("cluster.local", "shop", "web")));
    assert_eq!(ask(&world, "10.244.0.5:4191").endpoints[0].identity, None, "the admin port is never redirected");
    for address in ["10.96.0.7:81", "10.96.0.99:80", "192.0.2.1:443", "[2001:db8::1]:80"] {
        let external = ask(&world, address);
        assert!(external.destination.external && external.endpoints.is_empty(), "{address}");
    }
    assert_eq!(ask(&world, "192.0.2.1:5432").destination.protocol, Protocol::Opaque);
}

#[test]
fn a_headless_service_is_recognised_by_its_pods() {
    let mut world = web(json!([]), json!([]));
    let headless = json!({"metadata": {"namespace": "shop", "name": "peers"},
        "spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "grpc", "port": 70}]}});
    world.put_service(headless);
    world.put_slice(slice("peers", json!([{"name": "grpc", "port": 7000}]), json!([{"addresses": ["10.244.0.5"]}])));
    let found = ask(&world, "10.244.0.5:7000").destination;
    assert_eq!(found.service, Some(ServiceRef { namespace: "shop".into(), name: "peers".into(), port: 70 }));
    assert_eq!(found.protocol, Protocol::Grpc);
    assert_eq!(ask(&world, "10.244.0.5:7001").destination.service, None);
}

/// Protocol of a service's port 5432 (target 8080, container port name `http`), asked from outside and from inside.
fn protocols(edit: impl Fn(&mut Value, &mut Value, &mut Value)) -> (Protocol, Protocol) {
    let mut namespace = json!({"metadata": {"name": "shop", "annotations": {}}});
    let mut of_service = service("web", "10.96.0.7", json!([{"port": 5432}]));
    of_service["metadata"]["annotations"] = json!({});
    let mut of_pod = pod("web-1", "web", "10.244.0.5", true);
    of_pod["metadata"]["annotations"] = json!({});
    of_pod["spec"]["containers"][0]["ports"] = json!([]);
    edit(&mut namespace, &mut of_service, &mut of_pod);
    let mut world = World::default();
    world.put_namespace(namespace);
    let port = &of_service["spec"]["ports"][0];
    let target = json!([{"port": 8080, "name": port["name"], "appProtocol": port["appProtocol"]}]);
    world.put_slice(slice("web", target, json!([{"addresses": ["10.244.0.5"]}])));
    world.put_service(of_service);
    world.put_pod(of_pod);
    let inside = inbound(&world, &config(), &name("web-1")).ports.get(&8080).cloned().unwrap_or_default();
    (ask(&world, "10.96.0.7:5432").destination.protocol, inside.protocol)
}

#[test]
fn annotations_outrank_declarations_which_outrank_the_usual() {
    const OPAQUE: &str = "meshctl.dev/opaque-ports";
    use Protocol::{Detect, Grpc, Http1, Opaque};
    let annotate = |object: &mut Value, ports: &str| object["metadata"]["annotations"][OPAQUE] = ports.into();
    // 5432 is usually opaque, as service port; the target 8080 is not.
    assert_eq!(protocols(|_, _, _| {}), (Opaque, Detect));
    assert_eq!(protocols(|_, service, _| service["spec"]["ports"][0]["name"] = "grpc".into()), (Grpc, Grpc));
    assert_eq!(protocols(|_, service, _| service["spec"]["ports"][0]["appProtocol"] = "http".into()), (Http1, Http1));
    let container = json!([{"name": "http", "containerPort": 8080}]);
    assert_eq!(protocols(|_, _, pod| pod["spec"]["containers"][0]["ports"] = container.clone()), (Http1, Http1));
    assert_eq!(protocols(|_, service, _| annotate(service, "5432")), (Opaque, Opaque));
    assert_eq!(protocols(|_, service, _| annotate(service, "1")), (Detect, Detect));
    assert_eq!(protocols(|_, _, pod| annotate(pod, "8000-8999")), (Opaque, Opaque));
    assert_eq!(protocols(|_, _, pod| annotate(pod, "nonsense")), (Opaque, Detect));
    assert_eq!(protocols(|namespace, _, _| annotate(namespace, "5432,8080")), (Opaque, Opaque));
    let named_and_annotated = |_: &mut Value, service: &mut Value, pod: &mut Value| {
        service["spec"]["ports"][0]["name"] = "http".into();
        annotate(pod, "8080");
    };
    assert_eq!(protocols(named_and_annotated), (Opaque, Opaque));
}

#[test]
fn a_zone_is_that_of_the_node_or_else_of_a_slice() {
    let mut world = web(json!([{"port": 80}]), json!([{"port": 8080}]));
    let zone = |world: &World, of: &str| inbound(world, &config(), &name(of)).zone;
    assert_eq!(zone(&world, "web-1").as_deref(), Some("a"));
    let mut batch = pod("batch-1", "batch", "10.244.0.8", true);
    batch["spec"]["nodeName"] = "n1".into();
    world.put_pod(batch);
    assert_eq!(zone(&world, "batch-1"), None, "nobody's endpoint, and the node is not known");
    assert!(world.put_node("n1", Some("north")).pods.contains(&name("batch-1")));
    assert_eq!(zone(&world, "batch-1").as_deref(), Some("north"));
    assert!(world.put_node("n2", Some("south")).is_empty(), "a node without pods");
    world.put_node("n1", None);
    assert_eq!(zone(&world, "batch-1"), None);
}

#[test]
fn an_inbound_policy_names_the_workload_and_what_is_not_detected() {
    let world = web(json!([{"name": "grpc", "port": 80}]), json!([{"name": "grpc", "port": 8080}]));
    let policy = inbound(&world, &config(), &name("web-1"));
    assert_eq!(policy.workload, Some(WorkloadRef::new("shop", "deployment", "web")));
    assert_eq!(policy.ports[&8080].protocol, Protocol::Grpc);
    assert_eq!(policy.ports[&5432].protocol, Protocol::Opaque);
    assert!(!policy.ports.contains_key(&8081) && !policy.ports.contains_key(&4191));
    assert_eq!(inbound(&world, &config(), &name("nobody")), InboundPolicy::default());
}
