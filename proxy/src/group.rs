//! Those who answer for one port of a service. A destination has a group of its own, and one for every service that its
//! routes lead to. What was learned of an endpoint, and the connections to it, outlive a change that does not touch it.

use crate::balance::Load;
use crate::breaker::Circuit;
use crate::golden::Scope;
use crate::limits;
use crate::pool::Pool;
use crate::retry::Retries;
use crate::session;
use crate::traffic::Traffic;
use mesh_api::{Endpoint, EndpointsChange, Protocol, ServiceRef, TrafficPolicy};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// A port of a service, and how its traffic is carried.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Port {
    /// The service, if it is one.
    pub service: Option<ServiceRef>,
    /// What the port speaks.
    pub protocol: Protocol,
    /// How its traffic is carried.
    pub policy: Option<Arc<TrafficPolicy>>,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.as_ref().map_or(Ok(()), |service| service.fmt(f))
    }
}

/// The endpoints of one port of a service.
#[derive(Debug)]
pub struct Group {
    /// The port.
    pub port: Port,
    /// Who answers, in the order of their addresses.
    pub backends: Vec<Arc<Backend>>,
    /// When requests are sent again, if its policy says so.
    pub retries: Option<Arc<Retries>>,
    /// The policy at work, where there is one.
    pub traffic: Option<Arc<Traffic>>,
}

/// An endpoint with what we have learned of it, and our connections to it.
#[derive(Debug)]
pub struct Backend {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The name under which traffic to it is counted; `None` where the client decides (inbound, and out of the
    /// cluster).
    pub scope: Option<Arc<Scope>>,
    /// What tokens of sessions call it.
    pub session: u64,
    /// How fast it is.
    pub load: Mutex<Load>,
    /// Whether it is ejected, where a circuit breaker has seen it.
    pub circuit: Mutex<Option<Box<Circuit>>>,
    /// Connections to it.
    pub pool: Pool,
}

impl Group {
    /// A service of which nothing is known but that something leads to it.
    pub fn empty(service: &ServiceRef) -> Self {
        Self {
            port: Port { service: Some(service.clone()), ..Port::default() },
            backends: Vec::new(),
            retries: None,
            traffic: None,
        }
    }

    /// The group with these endpoints (in the order of their addresses). Those that were in `before` as they are now
    /// stay; `scope` names new ones, and `zone` is our own.
    pub fn new(
        port: Port,
        zone: Option<&str>,
        endpoints: Vec<Endpoint>,
        before: Option<&Self>,
        scope: impl Fn(&Endpoint) -> Option<Arc<Scope>>,
    ) -> Self {
        let backends = endpoints.into_iter().map(|endpoint| {
            let kept = before.and_then(|before| before.backend(&endpoint));
            kept.cloned().unwrap_or_else(|| {
                let scope = scope(&endpoint);
                Backend::new(endpoint, scope)
            })
        });
        let backends: Vec<_> = backends.collect();
        // A budget goes on as long as what is said of it stays.
        let kept = before.filter(|before| before.port.policy == port.policy).map(|before| before.retries.clone());
        let said = || port.policy.as_ref()?.retry.as_ref().and_then(Retries::new);
        let retries = kept.unwrap_or_else(said);
        let before = before.and_then(|before| before.traffic.as_ref());
        let traffic = port.policy.clone().map(|policy| Traffic::new(policy, &backends, zone, before.map(|b| &**b)));
        if traffic.is_none() && before.is_some() {
            Traffic::forget(&backends);
        }
        Self { port, backends, retries, traffic }
    }

    /// The endpoints after a change.
    pub fn changed(before: Option<&Self>, change: Option<&EndpointsChange>) -> Vec<Endpoint> {
        let mut endpoints: Vec<Endpoint> =
            before.into_iter().flat_map(|group| &group.backends).map(|b| b.endpoint.clone()).collect();
        if let Some(change) = change {
            change.apply(&mut endpoints);
        }
        endpoints
    }

    fn backend(&self, endpoint: &Endpoint) -> Option<&Arc<Backend>> {
        let at = self.backends.binary_search_by_key(&endpoint.address, |b| b.endpoint.address).ok()?;
        self.backends.get(at).filter(|backend| backend.endpoint == *endpoint)
    }
}

impl Backend {
    /// An endpoint nobody has been sent to yet.
    pub fn new(endpoint: Endpoint, scope: Option<Arc<Scope>>) -> Arc<Self> {
        Arc::new(Self {
            session: session::name(&endpoint),
            endpoint,
            scope,
            load: Mutex::new(Load::new(Instant::now())),
            circuit: Mutex::default(),
            pool: Pool::default(),
        })
    }
}

/// Says why endpoints cannot be used.
pub fn validate(endpoints: &[Endpoint]) -> Result<(), String> {
    if endpoints.len() > limits::MAX_ENDPOINTS {
        return Err(format!("{} endpoints, more than {}", endpoints.len(), limits::MAX_ENDPOINTS));
    }
    match endpoints.iter().find(|e| e.address.port() == 0 || e.address.ip().is_unspecified()) {
        Some(endpoint) => Err(format!("{} is no address to connect to", endpoint.address)),
        None => Ok(()),
    }
}
