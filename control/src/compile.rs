//! From the world to what proxies are told. Pure: the same world and the same question give the same answer.

use crate::protocol::declared;
use crate::world::World;
use crate::world::view::{EndpointView, Name, PodView, PortView, ServiceView};
use mesh_api::{
    Destination, Endpoint, InboundPolicy, PortPolicy, Protocol, ServiceRef, SpiffeId, TrafficPolicy, WorkloadRef,
};
use mesh_manifests::config::MeshConfig;
use mesh_manifests::ports::PortSet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub mod route;
pub mod traffic;

pub mod access;
pub mod egress;
#[cfg(test)]
mod tests;

/// The answer about one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// What the address is.
    pub destination: Destination,
    /// Who answers, in address order.
    pub endpoints: Vec<Endpoint>,
    /// Who answers where its routes lead to.
    pub backends: BTreeMap<ServiceRef, Backend>,
}

/// A service's port that routes lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// What it speaks.
    pub protocol: Protocol,
    /// How traffic to it is carried.
    pub policy: Option<Arc<TrafficPolicy>>,
    /// Who answers, in address order.
    pub endpoints: Vec<Endpoint>,
}

/// What the address an application connects to leads to: a service's port, a pod, or something the mesh does not know.
/// `consumer` is the namespace of the one who asks.
pub fn destination(world: &World, config: &MeshConfig, address: SocketAddr, consumer: Option<&str>) -> Compiled {
    if let Some((name, service)) = world.service_at(address.ip())
        && let Some(port) = service.ports.iter().find(|port| port.port == address.port())
    {
        let family = Some(address.is_ipv4());
        return Target { world, config, name, service, port, family }.compile(consumer);
    }
    match world.pod_at(address.ip()) {
        Some((name, pod)) => Compiled {
            destination: Destination {
                service: headless_service(world, address),
                protocol: pod_port(world, config, name, pod, address.port()),
                external: false,
                cluster: false,
                routes: None,
                policy: None,
            },
            endpoints: vec![endpoint(world, config, address, None)],
            backends: BTreeMap::new(),
        },
        None => {
            let opaque = config.proxy.opaque_ports.contains(address.port());
            let protocol = if opaque { Protocol::Opaque } else { Protocol::Detect };
            Compiled {
                destination: Destination {
                    protocol,
                    external: true,
                    cluster: egress::is_of_cluster(world, address.ip()),
                    ..Destination::default()
                },
                endpoints: Vec::new(),
                backends: BTreeMap::new(),
            }
        }
    }
}

/// How a pod's proxy treats what arrives for its application.
pub fn inbound(world: &World, config: &MeshConfig, name: &Name) -> InboundPolicy {
    let Some(pod) = world.pod(name) else { return InboundPolicy::default() };
    let namespace = world.namespace(&name.namespace).and_then(|namespace| namespace.opaque.as_ref());
    let lists = pod.opaque.iter().chain(namespace).chain([&config.proxy.opaque_ports]);
    let mut ports: BTreeSet<u16> = lists.flat_map(PortSet::ranges).flat_map(|(first, last)| first..=last).collect();
    ports.extend(pod.ports.iter().map(|port| port.port));
    for (slice, _) in pod.ips.iter().flat_map(|ip| world.slices_with(*ip)) {
        ports.extend(slice.ports.iter().map(|port| port.port));
    }
    let slices = || pod.ips.iter().flat_map(|ip| world.slices_with(*ip));
    let policies = ports.into_iter().map(|port| {
        let protocol = pod_port(world, config, name, pod, port);
        (port, PortPolicy { protocol, rate_limits: traffic::rate_limits(world, slices(), port) })
    });
    InboundPolicy {
        workload: Some(pod.workload.clone()),
        zone: zone(world, pod),
        ports: policies.filter(|(_, policy)| *policy != PortPolicy::default()).collect(),
        access: access::compile(world, config, name, pod),
    }
}

/// The zone of a pod's node, as the node says it, or a slice with the pod.
fn zone(world: &World, pod: &PodView) -> Option<String> {
    if let Some(zone) = pod.node.as_deref().and_then(|node| world.node(node)?.zone.clone()) {
        return Some(zone);
    }
    let found = pod.ips.iter().flat_map(|ip| world.slices_with(*ip).map(move |(slice, _)| (ip, slice)));
    found
        .flat_map(|(ip, slice)| slice.endpoints.iter().filter(move |e| e.addresses.contains(ip)))
        .find_map(|e| e.zone.clone())
}

/// A port of a service, about to be compiled.
struct Target<'a> {
    world: &'a World,
    config: &'a MeshConfig,
    name: &'a Name,
    service: &'a ServiceView,
    port: &'a PortView,
    /// Only endpoints with addresses of IPv4 (or else of IPv6).
    family: Option<bool>,
}

impl Target<'_> {
    fn compile(&self, consumer: Option<&str>) -> Compiled {
        let Backend { protocol, policy, endpoints } = self.backend();
        let routes = route::routes(self.world, self.name, self.port, consumer);
        let mut backends = BTreeMap::new();
        for service in routes.iter().flat_map(route::services) {
            if !backends.contains_key(service)
                && let Some(backend) = backend(self.world, self.config, service)
            {
                backends.insert(service.clone(), backend);
            }
        }
        let service =
            ServiceRef { namespace: self.name.namespace.clone(), name: self.name.name.clone(), port: self.port.port };
        let destination = Destination {
            service: Some(service),
            protocol,
            routes: routes.map(Arc::new),
            policy,
            ..Destination::default()
        };
        Compiled { destination, endpoints, backends }
    }

    fn backend(&self) -> Backend {
        let ready = self.endpoints(|endpoint| endpoint.ready);
        // As kube-proxy does: while all that is left is stopping, it is better than nothing.
        let endpoints = if ready.is_empty() { self.endpoints(|endpoint| endpoint.serving) } else { ready };
        let policy = traffic::of_service(self.world, self.name, self.port);
        Backend { protocol: self.protocol(&endpoints), policy, endpoints }
    }

    fn endpoints(&self, takes: impl Fn(&EndpointView) -> bool) -> Vec<Endpoint> {
        let fits = |address: &&IpAddr| self.family.is_none_or(|ipv4| address.is_ipv4() == ipv4);
        let mut found = BTreeMap::new();
        for slice in self.world.slices_of(self.name) {
            for target in slice.ports.iter().filter(|target| target.name == self.port.name) {
                for view in slice.endpoints.iter().filter(|view| takes(view)) {
                    for address in view.addresses.iter().filter(fits) {
                        let address = SocketAddr::new(*address, target.port);
                        found.insert(address, endpoint(self.world, self.config, address, view.zone.clone()));
                    }
                }
            }
        }
        found.into_values().collect()
    }

    fn protocol(&self, endpoints: &[Endpoint]) -> Protocol {
        let pods = || {
            let at = |e: &Endpoint| Some((self.world.pod_at(e.address.ip())?.1, e.address.port()));
            endpoints.iter().filter_map(at)
        };
        let namespace = self.world.namespace(&self.name.namespace);
        let said = match &self.service.opaque {
            Some(ports) => Some(ports.contains(self.port.port)),
            None => pods().filter_map(|(pod, port)| Some(pod.opaque.as_ref()?.contains(port))).max(),
        };
        let said = said.or_else(|| Some(namespace?.opaque.as_ref()?.contains(self.port.port)));
        let declared = declared(self.port.app_protocol.as_deref(), &self.port.name)
            .or_else(|| pods().find_map(|(pod, port)| container_port(pod, port)));
        let defaults = &self.config.proxy.opaque_ports;
        let usual =
            || defaults.contains(self.port.port) || endpoints.iter().any(|e| defaults.contains(e.address.port()));
        settle(said, declared, usual)
    }
}

/// Who answers at a service's port; its clients have no address of it, so the family of its first one counts.
pub(crate) fn backend(world: &World, config: &MeshConfig, to: &ServiceRef) -> Option<Backend> {
    let name = Name::new(&to.namespace, &to.name);
    let service = world.service(&name)?;
    let port = service.ports.iter().find(|port| port.port == to.port)?;
    let family = service.cluster_ips.first().map(IpAddr::is_ipv4);
    Some(Target { world, config, name: &name, service, port, family }.backend())
}

/// What a port of a pod speaks, seen from the pod: what its annotations and the services in front of it say.
fn pod_port(world: &World, config: &MeshConfig, name: &Name, pod: &PodView, port: u16) -> Protocol {
    let mut services_say = None;
    let mut declarations = BTreeSet::new();
    for (slice, service) in pod.ips.iter().flat_map(|ip| world.slices_with(*ip)) {
        let service = world.service(&service);
        for target in slice.ports.iter().filter(|target| target.port == port) {
            declarations.extend(declared(target.app_protocol.as_deref(), &target.name));
            let of_service =
                service.and_then(|s| Some((s.opaque.as_ref()?, s.ports.iter().find(|p| p.name == target.name)?)));
            if let Some((opaque, service_port)) = of_service {
                services_say = services_say.max(Some(opaque.contains(service_port.port)));
            }
        }
    }
    let namespace = || world.namespace(&name.namespace)?.opaque.as_ref();
    let said = pod.opaque.as_ref().map(|ports| ports.contains(port)).or(services_say);
    let said = said.or_else(|| Some(namespace()?.contains(port)));
    let declared = match declarations.len() {
        0 => container_port(pod, port),
        1 => declarations.first().copied(),
        // Services disagree: whoever calls decides.
        _ => Some(Protocol::Detect),
    };
    settle(said, declared, || config.proxy.opaque_ports.contains(port))
}

/// An annotation outranks a declaration, which outranks the mesh's list of ports that are usually opaque.
fn settle(said: Option<bool>, declared: Option<Protocol>, usual: impl Fn() -> bool) -> Protocol {
    match (said, declared) {
        (Some(true), _) => Protocol::Opaque,
        (_, Some(protocol)) => protocol,
        (None, None) if usual() => Protocol::Opaque,
        _ => Protocol::Detect,
    }
}

fn container_port(pod: &PodView, port: u16) -> Option<Protocol> {
    declared(None, &pod.ports.iter().find(|named| named.port == port)?.name)
}

/// The headless service through whose DNS name a client has most likely found a pod's address.
fn headless_service(world: &World, address: SocketAddr) -> Option<ServiceRef> {
    let candidates = world.slices_with(address.ip()).filter_map(|(slice, name)| {
        let service = world.service(&name).filter(|service| service.headless)?;
        let target = slice.ports.iter().find(|target| target.port == address.port())?;
        let port = service.ports.iter().find(|port| port.name == target.name)?.port;
        Some(ServiceRef { namespace: name.namespace, name: name.name, port })
    });
    let mut candidates: BTreeSet<ServiceRef> = candidates.collect();
    if candidates.len() == 1 { candidates.pop_first() } else { None }
}

fn endpoint(world: &World, config: &MeshConfig, address: SocketAddr, zone: Option<String>) -> Endpoint {
    let Some((name, pod)) = world.pod_at(address.ip()) else {
        let workload = WorkloadRef::new("", "external", &address.ip().to_string());
        return Endpoint { address, identity: None, workload, pod: String::new(), zone };
    };
    let proxied = pod.is_meshed() && !pod.skip_inbound.contains(address.port());
    Endpoint {
        address,
        identity: proxied.then(|| SpiffeId::new(&config.trust_domain, &name.namespace, &pod.service_account)),
        workload: pod.workload.clone(),
        pod: name.name.clone(),
        zone,
    }
}
