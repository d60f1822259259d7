//! What is looked at: objects of a cluster, or of files, as a world.
//!
//! Files hold no pods and no endpoints. There, workloads' templates stand for pods, and Services' selectors for their
//! endpoints.

use crate::kinds;
use crate::world::World;
use crate::world::access_policy::AccessPolicyView;
use crate::world::egress_policy::EgressPolicyView;
use crate::world::route::{RouteKey, RouteKind, read};
use crate::world::traffic_policy::TrafficPolicyView;
use crate::world::view::{EndpointView, Name, NamespaceView, PodView, PortView, ServiceView, SliceView};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_api::WorkloadRef;
use mesh_manifests::config::MeshConfig;
use mesh_manifests::policies::{AccessPolicy, EgressPolicy, GROUP, TrafficPolicy};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// How much of what there is was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// A cluster: what is not among the objects is not there.
    All,
    /// Files: what they say nothing about may be elsewhere. A Service is missed only in a namespace of which the files have
    /// Services, pods only where they have workloads.
    Part,
}

/// Kind and name of an object.
type Key = (String, Name);

/// What is looked at.
#[derive(Debug)]
pub struct Subject {
    /// The objects as control keeps them.
    pub world: World,
    /// The mesh's configuration.
    pub config: MeshConfig,
    pub(super) seen: Seen,
    /// The objects, by kind and name.
    pub(super) objects: BTreeMap<Key, Value>,
    with_services: BTreeSet<String>,
    with_pods: BTreeSet<String>,
}

/// First of the addresses that templates get in place of pods' (RFC 2544 keeps this network for tests).
const FIRST_ADDRESS: u32 = u32::from_be_bytes([198, 18, 0, 0]);

impl Subject {
    /// Of a cluster's objects; others than those that matter may be among them.
    pub fn of_cluster(objects: impl IntoIterator<Item = Value>, config: MeshConfig) -> Self {
        Self::of(objects, config, Seen::All)
    }

    /// Of the objects in files.
    pub fn of_files(objects: impl IntoIterator<Item = Value>, config: MeshConfig) -> Self {
        let mut subject = Self::of(objects, config, Seen::Part);
        subject.stand_in(|_| true);
        subject
    }

    /// Of files as they would be on a cluster.
    pub fn of_files_on(
        cluster: impl IntoIterator<Item = Value>,
        files: impl IntoIterator<Item = Value>,
        config: MeshConfig,
    ) -> Self {
        let mut subject = Self::of_cluster(cluster, config);
        let mut added = BTreeSet::new();
        for object in files {
            added.insert(subject.add(object));
        }
        subject.stand_in(|key| added.contains(key));
        subject
    }

    fn of(objects: impl IntoIterator<Item = Value>, config: MeshConfig, seen: Seen) -> Self {
        let mut subject = Self {
            world: World::default(),
            config,
            seen,
            objects: BTreeMap::new(),
            with_services: BTreeSet::new(),
            with_pods: BTreeSet::new(),
        };
        for object in objects {
            subject.add(object);
        }
        subject
    }

    fn add(&mut self, object: Value) -> Key {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, version) = (text(&object["kind"]), text(&object["apiVersion"]));
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let meta: ObjectMeta = serde_json::from_value(object["metadata"].clone()).unwrap_or_default();
        let name = Name::of(&meta);
        let world = &mut self.world;
        match (group, kind.as_str()) {
            ("", "Namespace") => {
                if let Some(namespace) = typed::<Namespace>(&object) {
                    world.apply(name.name.clone(), NamespaceView::from(&namespace));
                }
            }
            ("", "Service") => {
                self.with_services.insert(name.namespace.clone());
                if let Some(service) = typed::<Service>(&object) {
                    world.apply(name.clone(), ServiceView::from(&service));
                }
            }
            ("discovery.k8s.io", "EndpointSlice") => {
                if let Some(slice) = typed::<EndpointSlice>(&object) {
                    world.apply(name.clone(), SliceView::from(&slice));
                }
            }
            ("", "Pod") if self.seen == Seen::All => {
                if let Some(pod) = typed::<Pod>(&object) {
                    world.apply(name.clone(), PodView::from(&pod));
                }
            }
            (read::GROUP, "ReferenceGrant") => drop(world.apply(name.clone(), read::grant(&meta, &object))),
            (read::GROUP, _) => {
                if let Some(kind) = RouteKind::ALL.into_iter().find(|known| known.kind() == kind) {
                    world.apply(RouteKey { kind, name: name.clone() }, read::route(kind, &meta, &object));
                }
            }
            (group, kind)
                if group == kinds::BACKEND_TRAFFIC_POLICY.group && kind == kinds::BACKEND_TRAFFIC_POLICY.kind =>
            {
                world.apply(name.clone(), read::backend_policy(&meta, &object));
            }
            // What is wrong with one that cannot be read is told by [`crate::validate`].
            (GROUP, "AccessPolicy") => {
                if let Some(policy) = typed::<AccessPolicy>(&object) {
                    world.apply(name.clone(), AccessPolicyView::from(&policy));
                }
            }
            (GROUP, "TrafficPolicy") => {
                if let Some(policy) = typed::<TrafficPolicy>(&object) {
                    world.apply(name.clone(), TrafficPolicyView::from(&policy));
                }
            }
            (GROUP, "EgressPolicy") => {
                if let Some(policy) = typed::<EgressPolicy>(&object) {
                    world.apply(name.clone(), EgressPolicyView::from(&policy));
                }
            }
            _ => {}
        }
        let key = (kind, name);
        self.objects.insert(key.clone(), object);
        key
    }

    /// Makes pods out of templates of `new` objects, and endpoints out of selectors.
    fn stand_in(&mut self, new: impl Fn(&Key) -> bool) {
        let mut pods = Vec::new();
        for ((kind, name), object) in self.objects.iter().filter(|(key, _)| new(key)) {
            let Some((metadata, spec)) = template(kind, object) else { continue };
            // Far fewer templates than addresses.
            let address = Ipv4Addr::from(FIRST_ADDRESS + 1 + u32::try_from(pods.len()).unwrap_or(0));
            let pod = json!({
                "metadata": {"namespace": name.namespace, "name": name.name, "labels": metadata["labels"], "annotations": metadata["annotations"]},
                "spec": spec,
                "status": {"phase": "Running", "podIPs": [{"ip": address.to_string()}]},
            });
            let Some(pod) = typed::<Pod>(&pod) else { continue };
            let workload = WorkloadRef::new(&name.namespace, &kind.to_ascii_lowercase(), &name.name);
            // Kinds apart, so that a Deployment and a StatefulSet of one name are two; a pod has its own name.
            let key = if kind == "Pod" { name.name.clone() } else { format!("{}/{}", workload.kind, name.name) };
            // Whether they get proxies is not known yet.
            let view = PodView { workload, injected: true, ..PodView::from(&pod) };
            pods.push((Name::new(&name.namespace, &key), view, pod));
        }
        for ((kind, name), object) in &self.objects {
            let Some(service) = (kind == "Service").then(|| typed::<Service>(object)).flatten() else { continue };
            for (number, slice) in slices(name, &service, &pods).into_iter().enumerate() {
                self.world.apply(Name::new(&name.namespace, &format!("{}/{number}", name.name)), slice);
            }
        }
        for (name, view, _) in pods {
            self.with_pods.insert(name.namespace.clone());
            self.world.apply(name, view);
        }
    }

    /// True if nothing is there but the objects.
    pub(super) fn sees_all(&self) -> bool {
        self.seen == Seen::All
    }

    /// True if a Service that is not among the objects is not there.
    pub(super) fn knows_services(&self, namespace: &str) -> bool {
        self.seen == Seen::All || self.with_services.contains(namespace)
    }

    /// True if a workload that is not among the objects is not there.
    pub(super) fn knows_pods(&self, namespace: &str) -> bool {
        self.seen == Seen::All || self.with_pods.contains(namespace)
    }

    /// True if somebody else than pods answers for a Service: it has no selector.
    pub(super) fn is_served_otherwise(&self, service: &Name) -> bool {
        let object = self.objects.get(&("Service".to_owned(), service.clone()));
        object.is_some_and(|object| object["spec"]["selector"].as_object().is_none_or(serde_json::Map::is_empty))
    }
}

fn typed<T: DeserializeOwned>(object: &Value) -> Option<T> {
    serde_json::from_value(object.clone()).ok()
}

/// Metadata and spec of the pods that an object stands for.
pub(super) fn template<'a>(kind: &str, object: &'a Value) -> Option<(&'a Value, &'a Value)> {
    let holder = match kind {
        "Pod" => object,
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            &object["spec"]["template"]
        }
        "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"],
        _ => return None,
    };
    holder["spec"].is_object().then(|| (&holder["metadata"], &holder["spec"]))
}

/// What the slices of a Service would hold: one for each pod, since named ports may differ from pod to pod.
fn slices(name: &Name, service: &Service, pods: &[(Name, PodView, Pod)]) -> Vec<SliceView> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(selector) = spec.selector.as_ref().filter(|selector| !selector.is_empty()) else { return Vec::new() };
    let selected = pods.iter().filter(|(pod, view, _)| {
        pod.namespace == name.namespace && selector.iter().all(|(key, value)| view.labels.get(key) == Some(value))
    });
    let slice = |(_, view, pod): &(Name, PodView, Pod)| {
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            let number = match &port.target_port {
                None => port.port,
                Some(IntOrString::Int(number)) => *number,
                Some(IntOrString::String(name)) => named(pod, name)?,
            };
            let name = port.name.clone().unwrap_or_default();
            Some(PortView { name, port: u16::try_from(number).ok()?, app_protocol: port.app_protocol.clone() })
        });
        let endpoint = EndpointView { addresses: view.ips.clone(), ready: true, serving: true, zone: None };
        SliceView { service: Some(name.name.clone()), ports: ports.collect(), endpoints: vec![endpoint] }
    };
    selected.map(slice).collect()
}

fn named(pod: &Pod, name: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port)
}
