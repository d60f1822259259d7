//! What is kept of each object: the few fields that compiling needs, read leniently. A field that makes no sense is
//! left out and reported, the rest of the object still counts.

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use mesh_api::access::Probe;
use mesh_api::{AccessDefault, EgressDefault, WorkloadRef, names};
use mesh_manifests::ports::PortSet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

/// Where a node says its zone (well-known label of Kubernetes).
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Name {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Name {
    /// A name from its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The name of an object.
    pub fn of(meta: &ObjectMeta) -> Self {
        Self { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceView {
    /// Its `opaque-ports` annotation.
    pub opaque: Option<PortSet>,
    /// Its `default-access` annotation.
    pub default_access: Option<AccessDefault>,
    /// Its `default-egress` annotation.
    pub default_egress: Option<EgressDefault>,
}

/// A node, by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Its zone: the label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceView {
    /// Its cluster IPs; none if it is headless.
    pub cluster_ips: Vec<IpAddr>,
    /// True if clients connect to its pods directly.
    pub headless: bool,
    /// Its TCP ports.
    pub ports: Vec<PortView>,
    /// Its `opaque-ports` annotation.
    pub opaque: Option<PortSet>,
}

/// A port of a service, a slice or a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortView {
    /// Name; empty if it has none.
    pub name: String,
    /// Number.
    pub port: u16,
    /// Declared protocol.
    pub app_protocol: Option<String>,
}

/// A slice of a service's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceView {
    /// Name of the service.
    pub service: Option<String>,
    /// Target ports by the name of the service's port; `None` for port: all.
    pub ports: Vec<PortView>,
    /// The endpoints.
    pub endpoints: Vec<EndpointView>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointView {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// True if it takes new connections.
    pub ready: bool,
    /// True if it still answers while it is being stopped.
    pub serving: bool,
    /// Zone of its node.
    pub zone: Option<String>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Its own addresses; none while it has none, shares its node's, or has ended.
    pub ips: Vec<IpAddr>,
    /// Its service account.
    pub service_account: String,
    /// What the user deployed.
    pub workload: WorkloadRef,
    /// True if it has a proxy.
    pub injected: bool,
    /// True while its containers run.
    pub running: bool,
    /// True once it is asked to stop.
    pub deleted: bool,
    /// True once its application has ended for good and it waits for nothing but its proxy.
    pub finished: bool,
    /// Ports that bypass its proxy.
    pub skip_inbound: PortSet,
    /// Named TCP ports of its containers.
    pub ports: Vec<PortView>,
    /// Its `opaque-ports` annotation.
    pub opaque: Option<PortSet>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its `default-access` annotation.
    pub default_access: Option<AccessDefault>,
    /// Its `default-egress` annotation.
    pub default_egress: Option<EgressDefault>,
    /// Name of its node; `None` while it has none.
    pub node: Option<String>,
    /// Addresses of its node.
    pub node_ips: Vec<IpAddr>,
    /// Health probes that reach its application through its proxy.
    pub probes: Vec<Probe>,
}

impl PodView {
    /// True if its proxy carries what is sent to it.
    pub fn is_meshed(&self) -> bool {
        self.injected && self.running
    }
}

/// The `opaque-ports` annotation of an object.
fn opaque(kind: &str, meta: &ObjectMeta) -> Option<PortSet> {
    annotation(kind, meta, names::OPAQUE_PORTS)
}

/// The `default-access` annotation of an object.
fn default_access(kind: &str, meta: &ObjectMeta) -> Option<AccessDefault> {
    annotation(kind, meta, names::DEFAULT_ACCESS)
}

/// The `default-egress` annotation of an object.
fn default_egress(kind: &str, meta: &ObjectMeta) -> Option<EgressDefault> {
    annotation(kind, meta, names::DEFAULT_EGRESS)
}

fn annotation<T: FromStr<Err: Display>>(kind: &str, meta: &ObjectMeta, name: &str) -> Option<T> {
    let parsed = meta.annotations.as_ref()?.get(name)?.trim().parse();
    if let Err(error) = &parsed {
        tracing::warn!(kind, object = %Name::of(meta), %error, "annotation {name} ignored");
    }
    parsed.ok()
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.unwrap_or("TCP") == "TCP"
}

impl From<&Namespace> for NamespaceView {
    fn from(namespace: &Namespace) -> Self {
        Self {
            opaque: opaque("Namespace", &namespace.metadata),
            default_access: default_access("Namespace", &namespace.metadata),
            default_egress: default_egress("Namespace", &namespace.metadata),
        }
    }
}

impl From<&Service> for ServiceView {
    fn from(service: &Service) -> Self {
        let Some(spec) = &service.spec else { return Self::default() };
        let single = spec.cluster_ip.iter();
        let ips: Vec<&String> = spec.cluster_ips.as_ref().map_or_else(|| single.collect(), |all| all.iter().collect());
        let ports = spec.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
        Self {
            cluster_ips: ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
            headless: ips.iter().any(|ip| *ip == "None"),
            ports: ports
                .filter_map(|port| {
                    Some(PortView {
                        name: port.name.clone().unwrap_or_default(),
                        port: number(port.port)?,
                        app_protocol: port.app_protocol.clone(),
                    })
                })
                .collect(),
            opaque: opaque("Service", &service.metadata),
        }
    }
}

impl From<&EndpointSlice> for SliceView {
    fn from(slice: &EndpointSlice) -> Self {
        let labels = slice.metadata.labels.as_ref();
        let ports = slice.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
        let endpoints = slice.endpoints.iter().map(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            EndpointView {
                addresses: endpoint.addresses.iter().filter_map(|ip| ip.parse().ok()).collect(),
                ready,
                serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
                zone: endpoint.zone.clone(),
            }
        });
        Self {
            service: labels.and_then(|labels| labels.get("kubernetes.io/service-name")).cloned(),
            ports: ports
                .filter_map(|port| {
                    Some(PortView {
                        name: port.name.clone().unwrap_or_default(),
                        port: number(port.port?)?,
                        app_protocol: port.app_protocol.clone(),
                    })
                })
                .collect(),
            endpoints: endpoints.filter(|endpoint| !endpoint.addresses.is_empty()).collect(),
        }
    }
}

impl From<&PartialObjectMeta<Node>> for NodeView {
    fn from(node: &PartialObjectMeta<Node>) -> Self {
        let labels = node.metadata.labels.as_ref();
        Self { zone: labels.and_then(|labels| labels.get(ZONE_LABEL)).filter(|zone| !zone.is_empty()).cloned() }
    }
}

impl From<&Pod> for PodView {
    fn from(pod: &Pod) -> Self {
        let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let own_network = !spec.and_then(|spec| spec.host_network).unwrap_or(false);
        let has_ips = own_network && !matches!(phase, "Succeeded" | "Failed");
        let listed = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.as_str());
        let mut ips: Vec<IpAddr> =
            listed.chain(status.and_then(|s| s.pod_ip.as_deref())).filter_map(|ip| ip.parse().ok()).collect();
        ips.sort_unstable();
        ips.dedup();
        let listed = status.and_then(|status| status.host_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.as_str());
        let mut node_ips: Vec<IpAddr> =
            listed.chain(status.and_then(|s| s.host_ip.as_deref())).filter_map(|ip| ip.parse().ok()).collect();
        node_ips.sort_unstable();
        node_ips.dedup();
        let containers = || spec.into_iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
        let named = |c: &k8s_openapi::api::core::v1::Container| {
            let ports = c.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
            let view = |port: &k8s_openapi::api::core::v1::ContainerPort| {
                Some(PortView { name: port.name.clone()?, port: number(port.container_port)?, app_protocol: None })
            };
            ports.filter_map(view).collect::<Vec<_>>()
        };
        let account = spec.and_then(|spec| spec.service_account_name.clone()).filter(|name| !name.is_empty());
        Self {
            ips: if has_ips { ips } else { Vec::new() },
            service_account: account.unwrap_or_else(|| "default".to_owned()),
            workload: workload(&pod.metadata),
            injected: own_network && containers().any(|c| c.name == names::PROXY_CONTAINER),
            running: phase == "Running",
            deleted: pod.metadata.deletion_timestamp.is_some(),
            finished: super::finish::is_finished(pod),
            skip_inbound: skip_inbound(pod),
            ports: containers().filter(|c| c.name != names::PROXY_CONTAINER).flat_map(named).collect(),
            opaque: opaque("Pod", &pod.metadata),
            labels: pod.metadata.labels.clone().unwrap_or_default().into_iter().collect(),
            default_access: default_access("Pod", &pod.metadata),
            default_egress: default_egress("Pod", &pod.metadata),
            node: spec.and_then(|spec| spec.node_name.clone()),
            node_ips,
            probes: super::probe::probes(pod),
        }
    }
}

/// The ports that really bypass the proxy: what the redirect was started with, and only where that is not to be
/// seen, what the annotation wishes.
fn skip_inbound(pod: &Pod) -> PortSet {
    const FLAG: &str = "--skip-inbound-ports";
    let inits = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let args: Vec<&str> = inits
        .filter(|container| container.name == names::REDIRECT_CONTAINER)
        .flat_map(|container| container.args.iter().flatten())
        .map(String::as_str)
        .collect();
    let separate = || args.iter().position(|arg| *arg == FLAG).and_then(|at| args.get(at + 1).copied());
    let joined = || args.iter().find_map(|arg| arg.strip_prefix(FLAG)?.strip_prefix('='));
    let wished = || Some(pod.metadata.annotations.as_ref()?.get(names::SKIP_INBOUND_PORTS)?.as_str());
    let text = separate().or_else(joined).or_else(wished);
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The workload that owns a pod. The names that the Deployment and CronJob controllers give their children say whose
/// they are, so that neither ReplicaSets nor Jobs need to be watched.
pub fn workload(meta: &ObjectMeta) -> WorkloadRef {
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let owners = meta.owner_references.iter().flatten();
    let Some(owner) = owners.into_iter().find(|owner| owner.controller == Some(true)) else {
        return WorkloadRef::new(namespace, "pod", meta.name.as_deref().unwrap_or_default());
    };
    let hash = meta.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    let (kind, name) = match owner.kind.as_str() {
        "ReplicaSet" => match hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')) {
            Some(deployment) => ("deployment", deployment),
            None => ("replicaset", owner.name.as_str()),
        },
        "Job" => match owner.name.rsplit_once('-') {
            Some((cron_job, minute)) if is_scheduled_minute(minute) => ("cronjob", cron_job),
            _ => ("job", owner.name.as_str()),
        },
        "Node" => ("pod", meta.name.as_deref().unwrap_or_default()),
        kind => return WorkloadRef::new(namespace, &kind.to_ascii_lowercase(), &owner.name),
    };
    WorkloadRef::new(namespace, kind, name)
}

/// CronJobs name their Jobs after the scheduled time in minutes since 1970. The span from 2019 to 2084 contains no
/// date written as `20261121`.
fn is_scheduled_minute(text: &str) -> bool {
    text.len() == 8 && text.parse::<u32>().is_ok_and(|minute| (26_000_000..60_000_000).contains(&minute))
}
