//! What control or the file says of a destination, before it is put into use: held against the limits, and, where only a
//! change was told, put together with what was known.

use crate::group::{self, Group, Port};
use crate::limits;
use crate::route::Table;
use crate::traffic;
use mesh_api::config::{FileBackend, FileDestination};
use mesh_api::{BackendChange, Destination, Endpoint, ServiceRef, TrafficPolicy};
use std::sync::Arc;

/// What is said of a destination, all of it.
pub(crate) struct Told {
    pub(crate) destination: Destination,
    pub(crate) endpoints: Vec<Endpoint>,
    /// In the order of the services.
    pub(crate) backends: Vec<(Port, Vec<Endpoint>)>,
}

impl Told {
    /// Says why it cannot be used; its routes are another matter.
    pub(crate) fn check(&self) -> Result<(), String> {
        check_endpoints(&self.endpoints, &self.backends)?;
        check_policies(&self.destination, &self.backends)
    }
}

impl From<FileDestination> for Told {
    fn from(entry: FileDestination) -> Self {
        let FileDestination { address: _, destination, mut endpoints, backends } = entry;
        endpoints.sort_by_key(|e| e.address);
        let mut backends: Vec<_> = backends
            .into_iter()
            .map(|FileBackend { service, protocol, policy, mut endpoints }| {
                endpoints.sort_by_key(|e| e.address);
                (Port { service: Some(service), protocol, policy }, endpoints)
            })
            .collect();
        backends.sort_by(|(a, _), (b, _)| a.service.cmp(&b.service));
        Self { destination, endpoints, backends }
    }
}

/// Of groups in the order of their services the one of a service.
pub(crate) fn find<'a>(groups: &'a [Arc<Group>], service: &ServiceRef) -> Option<&'a Arc<Group>> {
    let at = groups.binary_search_by(|group| group.port.service.as_ref().cmp(&Some(service))).ok()?;
    groups.get(at)
}

/// The services that routes lead to, after changes; in their order.
pub(crate) fn changed_backends(before: &[Arc<Group>], changes: &[BackendChange]) -> Vec<(Port, Vec<Endpoint>)> {
    let mut backends: Vec<(Port, Vec<Endpoint>)> =
        before.iter().map(|group| (group.port.clone(), Group::changed(Some(group), None))).collect();
    for BackendChange { service, gone, protocol, policy, endpoints } in changes {
        let found = backends.binary_search_by(|(port, _)| port.service.as_ref().cmp(&Some(service)));
        if *gone {
            found.into_iter().for_each(|at| drop(backends.remove(at)));
            continue;
        }
        let at = found.unwrap_or_else(|at| {
            backends.insert(at, (Port { service: Some(service.clone()), ..Port::default() }, Vec::new()));
            at
        });
        let (port, known) = &mut backends[at];
        if let Some(protocol) = protocol {
            port.protocol = *protocol;
            port.policy.clone_from(policy);
        }
        if let Some(change) = endpoints {
            change.apply(known);
        }
    }
    backends
}

/// Says why endpoints cannot be used, by themselves and together.
fn check_endpoints(endpoints: &[Endpoint], backends: &[(Port, Vec<Endpoint>)]) -> Result<(), String> {
    group::validate(endpoints)?;
    if backends.len() > limits::ROUTE_SERVICES {
        return Err(format!("routes lead to {} services, more than {}", backends.len(), limits::ROUTE_SERVICES));
    }
    if let Some(pair) = backends.windows(2).find(|pair| pair[0].0.service == pair[1].0.service) {
        return Err(format!("{} is there twice", pair[0].0));
    }
    backends.iter().try_for_each(|(port, endpoints)| group::validate(endpoints).map_err(|why| format!("{port}: {why}")))
}

fn check_policies(destination: &Destination, backends: &[(Port, Vec<Endpoint>)]) -> Result<(), String> {
    let check =
        |policy: &Option<Arc<TrafficPolicy>>| policy.as_ref().map_or(Ok(()), |policy| traffic::validate(policy));
    check(&destination.policy).map_err(|why| format!("policy.{why}"))?;
    backends.iter().try_for_each(|(port, _)| check(&port.policy).map_err(|why| format!("{port}: policy.{why}")))
}

/// Says why what a file says of a destination cannot be used.
pub fn validate(entry: &FileDestination) -> Result<(), String> {
    let told = Told::from(entry.clone());
    told.check()?;
    entry.destination.routes.as_ref().map_or(Ok(()), |routes| Table::compile(routes).map(drop))
}
