//! Where traffic can go: services, their endpoints, and the workloads behind them.

use crate::route::Routes;
use crate::{SpiffeId, TrafficPolicy};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// What a port speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Found out from the first bytes of each connection.
    #[default]
    Detect,
    /// HTTP/1.0 or 1.1, declared.
    Http1,
    /// HTTP/2 with prior knowledge, declared.
    Http2,
    /// gRPC over HTTP/2, declared.
    Grpc,
    /// Opaque TCP: never looked into.
    Opaque,
}

/// A port of a Kubernetes Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceRef {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// The Service's port (not the target port).
    pub port: u16,
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.name, self.port)
    }
}

/// The thing a user deployed that owns a pod: a Deployment, StatefulSet, Job and so on, or the bare pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkloadRef {
    /// Namespace.
    pub namespace: String,
    /// Lower-case singular kind: `deployment`, `statefulset`, `daemonset`, `job`, `cronjob`, `pod`;
    /// `serviceaccount` where only an identity is known, `external` for hosts and addresses outside the cluster.
    pub kind: String,
    /// Name; host or address for `external`.
    pub name: String,
}

impl WorkloadRef {
    /// A workload from its parts.
    pub fn new(namespace: &str, kind: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), kind: kind.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.kind, self.name)
    }
}

/// One address that can answer for a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The pod's own address and port.
    pub address: SocketAddr,
    /// The identity its proxy will prove; `None`: not meshed, reached in plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<SpiffeId>,
    /// Who owns the pod.
    pub workload: WorkloadRef,
    /// Name of the pod.
    pub pod: String,
    /// Zone of its node, for zone-aware balancing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// What an original destination address turned out to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The Service, if the address is a cluster IP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// What the port speaks.
    #[serde(default)]
    pub protocol: Protocol,
    /// True if the address belongs to no Service and no pod the mesh knows: forwarded to itself as it is.
    #[serde(default)]
    pub external: bool,
    /// True for such an address that belongs to the cluster all the same: a node's, or a Service's where that has no
    /// such port. What may leave the cluster is not asked there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cluster: bool,
    /// Where requests go instead of to the destination's own endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Arc<Routes>>,
    /// How traffic to its endpoints is carried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<TrafficPolicy>>,
}

/// What changed about a service that a destination's routes lead to, under the destination that leads there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendChange {
    /// The service's port.
    pub service: ServiceRef,
    /// No route leads there any more; nothing else is said.
    #[serde(default)]
    pub gone: bool,
    /// What the port speaks; `None`: as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// How traffic to it is carried; said together with `protocol`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<TrafficPolicy>>,
    /// Change to its endpoints; `None`: as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<EndpointsChange>,
}

/// A change to the endpoints of a destination; a first answer resets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointsChange {
    /// Forget everything known before.
    #[serde(default)]
    pub reset: bool,
    /// Endpoints added or altered, keyed by address.
    #[serde(default)]
    pub upsert: Vec<Endpoint>,
    /// Addresses that are gone.
    #[serde(default)]
    pub remove: Vec<SocketAddr>,
}

impl EndpointsChange {
    /// Applies the change to a list kept in address order.
    pub fn apply(&self, endpoints: &mut Vec<Endpoint>) {
        if self.reset {
            endpoints.clear();
        }
        endpoints.retain(|e| !self.remove.contains(&e.address));
        for endpoint in &self.upsert {
            match endpoints.binary_search_by_key(&endpoint.address, |e| e.address) {
                Ok(at) => endpoints[at] = endpoint.clone(),
                Err(at) => endpoints.insert(at, endpoint.clone()),
            }
        }
    }

    /// The change that turns `old` into `new` (both in address order).
    pub fn between(old: &[Endpoint], new: &[Endpoint]) -> Self {
        let mut change = Self::default();
        let mut before = old.iter().peekable();
        for endpoint in new {
            while let Some(gone) = before.next_if(|e| e.address < endpoint.address) {
                change.remove.push(gone.address);
            }
            if before.next_if(|e| e.address == endpoint.address) != Some(endpoint) {
                change.upsert.push(endpoint.clone());
            }
        }
        change.remove.extend(before.map(|e| e.address));
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8, pod: &str) -> Endpoint {
        Endpoint {
            address: SocketAddr::from(([10, 0, 0, last], 80)),
            identity: None,
            workload: WorkloadRef::new("shop", "deployment", "web"),
            pod: pod.to_owned(),
            zone: None,
        }
    }

    #[test]
    fn a_difference_applied_gives_the_new_list() {
        let old = vec![endpoint(1, "a"), endpoint(2, "b"), endpoint(4, "d")];
        let new = vec![endpoint(2, "b2"), endpoint(3, "c"), endpoint(4, "d")];
        let change = EndpointsChange::between(&old, &new);
        assert_eq!(change.upsert.len(), 2);
        let mut list = old;
        change.apply(&mut list);
        assert_eq!(list, new);
        EndpointsChange { reset: true, ..Default::default() }.apply(&mut list);
        assert!(list.is_empty());
    }
}
