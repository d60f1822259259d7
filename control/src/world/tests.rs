//! The world fed with objects as the API sends them, and what each change touches.

use super::view::workload;
use super::*;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use mesh_api::WorkloadRef;
use serde_json::{Value, json};

pub(crate) fn name(name: &str) -> Name {
    Name::new("shop", name)
}

/// A small world to change: objects are given as JSON.
impl World {
    pub(crate) fn put_namespace(&mut self, object: Value) -> Touched {
        let object: Namespace = serde_json::from_value(object).unwrap();
        self.apply(object.metadata.name.clone().unwrap(), NamespaceView::from(&object))
    }

    pub(crate) fn put_node(&mut self, name: &str, zone: Option<&str>) -> Touched {
        self.apply(name.to_owned(), NodeView { zone: zone.map(str::to_owned) })
    }

    pub(crate) fn put_service(&mut self, object: Value) -> Touched {
        let object: Service = serde_json::from_value(object).unwrap();
        self.apply(Name::of(&object.metadata), ServiceView::from(&object))
    }

    pub(crate) fn put_slice(&mut self, object: Value) -> Touched {
        let object: EndpointSlice = serde_json::from_value(object).unwrap();
        self.apply(Name::of(&object.metadata), SliceView::from(&object))
    }

    pub(crate) fn put_pod(&mut self, object: Value) -> Touched {
        let object: Pod = serde_json::from_value(object).unwrap();
        self.apply(Name::of(&object.metadata), PodView::from(&object))
    }
}

pub(crate) fn service(service: &str, ip: &str, ports: Value) -> Value {
    json!({"metadata": {"namespace": "shop", "name": service}, "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": ports}})
}

pub(crate) fn slice(service: &str, ports: Value, endpoints: Value) -> Value {
    json!({"metadata": {"namespace": "shop", "name": format!("{service}-x"), "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints})
}

/// A running pod of a Deployment `app`; `injected` has a proxy.
pub(crate) fn pod(pod: &str, app: &str, ip: &str, injected: bool) -> Value {
    let init = json!([
        {"name": "mesh-redirect", "args": ["redirect", "--proxy-uid", "2102", "--skip-inbound-ports", "4191,9000-9010"]},
        {"name": "mesh-proxy", "restartPolicy": "Always", "ports": [{"name": "mesh-admin", "containerPort": 4191}]},
    ]);
    json!({
        "metadata": {"namespace": "shop", "name": pod, "labels": {"pod-template-hash": "6d4cf"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-6d4cf"), "uid": "u", "controller": true}]},
        "spec": {"serviceAccountName": app, "initContainers": if injected { init } else { json!([]) },
            "containers": [{"name": "app", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn small() -> World {
    let mut world = World::default();
    world.put_namespace(json!({"metadata": {"name": "shop"}}));
    world.put_service(service("web", "10.96.0.7", json!([{"name": "http", "port": 80}])));
    let endpoints = json!([{"addresses": ["10.244.0.5"]}]);
    world.put_slice(slice("web", json!([{"name": "http", "port": 8080}]), endpoints));
    world.put_pod(pod("web-1", "web", "10.244.0.5", true));
    world
}

fn touched(ips: &[&str], pods: &[&str]) -> Touched {
    Touched { ips: ips.iter().map(|text| ip(text)).collect(), pods: pods.iter().map(|pod| name(pod)).collect() }
}

#[test]
fn a_change_touches_what_depends_on_it_and_nothing_else() {
    let mut world = small();
    let around = touched(&["10.96.0.7", "10.244.0.5"], &["web-1"]);
    assert_eq!(world.put_service(service("web", "10.96.0.7", json!([{"name": "grpc", "port": 80}]))), around);
    assert_eq!(world.put_pod(pod("web-1", "web", "10.244.0.5", true)), Touched::default(), "the same again");
    assert_eq!(world.put_pod(pod("web-1", "web", "10.244.0.5", false)), around);
    assert_eq!(world.put_pod(pod("cart-1", "cart", "10.244.0.6", true)), touched(&["10.244.0.6"], &["cart-1"]));
    let two = json!([{"addresses": ["10.244.0.5"]}, {"addresses": ["10.244.0.6"]}]);
    let both = touched(&["10.96.0.7", "10.244.0.5", "10.244.0.6"], &["web-1", "cart-1"]);
    assert_eq!(world.put_slice(slice("web", json!([{"name": "http", "port": 8080}]), two)), both);
    assert_eq!(world.delete::<PodView>(&name("cart-1")), touched(&["10.96.0.7", "10.244.0.6"], &["cart-1"]));
    let opaque = json!({"metadata": {"name": "shop", "annotations": {"meshctl.dev/opaque-ports": "25"}}});
    assert_eq!(world.put_namespace(opaque), around);
}

#[test]
fn a_moved_cluster_ip_touches_both() {
    let mut world = small();
    let moved = world.put_service(service("web", "10.96.0.8", json!([{"name": "http", "port": 80}])));
    assert_eq!(moved.ips, touched(&["10.96.0.7", "10.96.0.8", "10.244.0.5"], &[]).ips);
    assert!(world.service_at(ip("10.96.0.7")).is_none());
    assert_eq!(world.service_at(ip("10.96.0.8")).unwrap().0, &name("web"));
}

#[test]
fn a_reset_forgets_what_is_gone() {
    let mut world = small();
    let other: Pod = serde_json::from_value(pod("web-2", "web", "10.244.0.9", true)).unwrap();
    let gone = world.reset(HashMap::from([(name("web-2"), PodView::from(&other))]));
    assert_eq!(gone, touched(&["10.96.0.7", "10.244.0.5", "10.244.0.9"], &["web-1", "web-2"]));
    assert!(world.pod_at(ip("10.244.0.5")).is_none());
    world.reset::<SliceView>(HashMap::new());
    world.reset::<ServiceView>(HashMap::new());
    world.reset::<PodView>(HashMap::new());
    assert!(world.services_by_ip.is_empty() && world.pods_by_ip.is_empty());
    assert!(world.slices_by_endpoint.is_empty() && world.slices_by_service.is_empty(), "no index is left behind");
}

#[test]
fn addresses_belong_to_pods_that_have_them_now() {
    let mut world = small();
    let mut ended = pod("job-1", "job", "10.244.0.5", false);
    ended["status"]["phase"] = "Succeeded".into();
    world.put_pod(ended);
    assert_eq!(world.pod_at(ip("10.244.0.5")).unwrap().0, &name("web-1"));
    let mut host = pod("agent-1", "agent", "192.168.0.1", false);
    host["spec"]["hostNetwork"] = true.into();
    world.put_pod(host);
    assert!(world.pod_at(ip("192.168.0.1")).is_none(), "the address is the node's");
}

#[test]
fn a_pod_is_meshed_when_its_proxy_runs() {
    let check = |edit: &dyn Fn(&mut Value), expect: bool| {
        let mut object = pod("web-1", "web", "10.244.0.5", true);
        edit(&mut object);
        let object: Pod = serde_json::from_value(object).unwrap();
        assert_eq!(PodView::from(&object).is_meshed(), expect, "{object:?}");
    };
    check(&|_| {}, true);
    check(&|pod| pod["status"]["phase"] = "Pending".into(), false);
    check(&|pod| pod["spec"]["initContainers"] = json!([]), false);
    check(&|pod| pod["spec"]["hostNetwork"] = true.into(), false);
    check(
        &|pod| {
            pod["spec"]["initContainers"] = json!([]);
            pod["spec"]["containers"][0]["name"] = "mesh-proxy".into();
        },
        true,
    );
}

#[test]
fn the_owner_of_a_pod_is_what_the_user_deployed() {
    let check = |kind: &str, owner: &str, hash: Option<&str>, expect: (&str, &str)| {
        let meta = json!({"namespace": "shop", "name": "p", "labels": hash.map(|hash| json!({"pod-template-hash": hash})),
            "ownerReferences": [{"apiVersion": "v1", "kind": kind, "name": owner, "uid": "u", "controller": true}]});
        let meta = serde_json::from_value(meta).unwrap();
        assert_eq!(workload(&meta), WorkloadRef::new("shop", expect.0, expect.1));
    };
    check("ReplicaSet", "web-6d4cf", Some("6d4cf"), ("deployment", "web"));
    check("ReplicaSet", "web-6d4cf", None, ("replicaset", "web-6d4cf"));
    check("ReplicaSet", "web", Some("6d4cf"), ("replicaset", "web"));
    check("StatefulSet", "db", None, ("statefulset", "db"));
    check("DaemonSet", "agent", None, ("daemonset", "agent"));
    check("Job", "backup-29395260", None, ("cronjob", "backup"));
    check("Job", "backup-20261121", None, ("job", "backup-20261121"));
    check("Job", "once", None, ("job", "once"));
    check("Node", "n1", None, ("pod", "p"));
    let bare = serde_json::from_value(json!({"namespace": "shop", "name": "p"})).unwrap();
    assert_eq!(workload(&bare), WorkloadRef::new("shop", "pod", "p"));
}
