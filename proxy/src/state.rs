//! What the proxy knows of the world: how to treat arriving traffic, and the destinations its application talks to.
//!
//! Readers take snapshots and never wait for writers. A destination is learned when traffic for it first appears, and
//! forgotten after a while without. Whatever is known stays in use until control (or the file) says otherwise.

use crate::access::evidence::Checks;
use crate::golden::{Golden, Scope};
pub use crate::group::{Backend, Group, Port};
use crate::limits;
use crate::metrics::{Counters, count};
use crate::rate_limit::shared::{self, Shares};
use crate::route::Table;
pub use crate::target::{Known, Target};
use crate::told::{self, Told};
use arc_swap::ArcSwap;
use mesh_api::breaker::Standing;
use mesh_api::config::FileDestination;
use mesh_api::golden::{Direction, EndpointLevel};
use mesh_api::{BackendChange, Destination, Egress, Endpoint, EndpointsChange, InboundPolicy, PortPolicy, WorkloadRef};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::Notify;

/// Everything control or the file has told.
#[derive(Debug)]
pub struct State {
    inbound: ArcSwap<Inbound>,
    egress: ArcSwap<Egress>,
    targets: Mutex<HashMap<SocketAddr, Arc<Target>>>,
    apps: Mutex<HashMap<SocketAddr, Arc<Target>>>,
    /// Our parts of rate limits kept together with others.
    pub shares: Shares,
    /// True if somebody can be asked about an unknown address.
    asks: bool,
    connected: AtomicBool,
    news: Mutex<Vec<News>>,
    has_news: Notify,
    golden: Arc<Golden>,
    counters: Arc<Counters>,
}

/// How arriving traffic is treated.
#[derive(Debug, Default)]
pub struct Inbound {
    policy: InboundPolicy,
    /// What its access policies ask about requests, ready for use.
    pub checks: Checks,
}

impl std::ops::Deref for Inbound {
    type Target = InboundPolicy;

    fn deref(&self) -> &InboundPolicy {
        &self.policy
    }
}

/// What control has to be told about targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Traffic for the address has appeared.
    Wanted(SocketAddr),
    /// There was none for a while.
    Unwanted(SocketAddr),
}

impl State {
    /// Nothing known yet; `asks` if control can be asked about addresses.
    pub fn new(asks: bool, golden: Arc<Golden>, counters: Arc<Counters>) -> Self {
        Self {
            inbound: ArcSwap::default(),
            egress: ArcSwap::default(),
            targets: Mutex::default(),
            apps: Mutex::default(),
            shares: Shares::default(),
            asks,
            connected: AtomicBool::new(false),
            news: Mutex::default(),
            has_news: Notify::new(),
            golden,
            counters,
        }
    }

    /// The target of an address the application connects to. A new one is asked about.
    pub fn target(&self, address: SocketAddr) -> Arc<Target> {
        let mut targets = self.targets.lock();
        if let Some(target) = targets.get(&address) {
            *target.used.lock() = Instant::now();
            return target.clone();
        }
        let target = Arc::new(Target::new(address, self.as_is(address), self.asks));
        if targets.len() >= limits::MAX_TARGETS {
            count(&self.counters.targets_untracked);
            target.waits.store(false, Ordering::Relaxed);
            return target;
        }
        targets.insert(address, target.clone());
        if self.asks {
            self.tell(News::Wanted(address));
        }
        target
    }

    /// The target of a connection that arrived for the application.
    pub fn app(&self, address: SocketAddr) -> Arc<Target> {
        let mut apps = self.apps.lock();
        if let Some(app) = apps.get(&address) {
            return app.clone();
        }
        let endpoint = Endpoint { address, identity: None, workload: self.workload(), pod: String::new(), zone: None };
        let destination = Destination::default();
        // Never shown: inbound traffic is counted under its client.
        let scope = self.golden.scope(Direction::Inbound, &endpoint.workload, None, address.port());
        let group = Group::new(Port::default(), None, vec![endpoint], None, |_| None);
        let known = Known::new(destination, true, group, scope);
        let app = Arc::new(Target::new(address, Arc::new(known), false));
        app.set_limits(&self.port_policy(address.port()), &self.shares);
        if apps.len() < limits::MAX_TARGETS {
            apps.insert(address, app.clone());
        }
        app
    }

    /// How an arriving connection for a port is treated.
    pub fn port_policy(&self, port: u16) -> PortPolicy {
        self.inbound.load().ports.get(&port).cloned().unwrap_or_default()
    }

    /// The workload we stand beside, as far as known.
    pub fn workload(&self) -> WorkloadRef {
        self.inbound.load().workload.clone().unwrap_or_else(|| WorkloadRef::new("", "pod", ""))
    }

    /// How arriving traffic is treated.
    pub fn inbound(&self) -> InboundPolicy {
        self.inbound.load().policy.clone()
    }

    /// How arriving traffic is treated, for a short look.
    pub fn glance_inbound(&self) -> arc_swap::Guard<Arc<Inbound>> {
        self.inbound.load()
    }

    /// Changes how arriving traffic is treated; an error says why it cannot be used and leaves everything as it was.
    pub fn set_inbound(&self, policy: InboundPolicy) -> Result<(), String> {
        let checks = read_inbound(&policy)?;
        // Held, so that no application is made in between that misses it.
        let apps = self.apps.lock();
        for app in apps.values() {
            app.set_limits(policy.ports.get(&app.address.port()).unwrap_or(&PortPolicy::default()), &self.shares);
        }
        self.inbound.store(Arc::new(Inbound { policy, checks }));
        Ok(())
    }

    /// What may leave the cluster.
    pub fn egress(&self) -> Arc<Egress> {
        self.egress.load_full()
    }

    /// What may leave the cluster, for a short look.
    pub fn glance_egress(&self) -> arc_swap::Guard<Arc<Egress>> {
        self.egress.load()
    }

    /// Changes what may leave the cluster; an error says why it cannot be used and leaves everything as it was.
    pub fn set_egress(&self, policy: Egress) -> Result<(), String> {
        let rules = policy.rules.len();
        if rules > limits::POLICY_RULES {
            return Err(format!("egress.rules: {rules} of them, more than {}", limits::POLICY_RULES));
        }
        self.egress.store(Arc::new(policy));
        Ok(())
    }

    /// The ports of the application that somebody has called.
    pub fn apps(&self) -> Vec<Arc<Target>> {
        self.apps.lock().values().cloned().collect()
    }

    /// Changes what is known of a target; an error says why it cannot be used and leaves everything as it was.
    pub fn update(
        &self,
        address: SocketAddr,
        destination: Option<Destination>,
        change: Option<&EndpointsChange>,
        backends: &[BackendChange],
    ) -> Result<(), String> {
        let Some(target) = self.targets.lock().get(&address).cloned() else {
            return Ok(()); // unsubscribed meanwhile
        };
        let before = target.known.load_full();
        let destination = match (destination, &before) {
            (Some(destination), _) => destination,
            (None, Some(before)) => before.destination.clone(),
            (None, None) => return Err(format!("{address}: the first update does not say what the address is")),
        };
        let endpoints = Group::changed(before.as_ref().map(|known| &*known.group), change);
        let groups = before.as_ref().map_or(&[][..], |known| &known.told);
        let told = Told { destination, endpoints, backends: told::changed_backends(groups, backends) };
        let known = self.known(address, told, before.as_deref()).map_err(|reason| format!("{address}: {reason}"))?;
        target.learn(Some(known));
        Ok(())
    }

    /// Replaces all targets by those of a file, which has been found usable.
    pub fn replace(&self, destinations: Vec<FileDestination>) {
        let mut targets = self.targets.lock();
        let mut gone: Vec<SocketAddr> = targets.keys().copied().collect();
        for entry in destinations {
            let address = entry.address;
            gone.retain(|a| *a != address);
            let target = targets
                .entry(address)
                .or_insert_with(|| Arc::new(Target::new(address, self.as_is(address), self.asks)));
            let before = target.known.load_full();
            match self.known(address, Told::from(entry), before.as_deref()) {
                Ok(known) => target.learn(Some(known)),
                Err(reason) => tracing::warn!(%address, %reason, "cannot use a destination; it stays as it was"),
            }
        }
        for address in gone {
            if let Some(target) = targets.remove(&address) {
                target.learn(None);
            }
        }
    }

    /// Every target with what is known of it.
    pub fn known_targets(&self) -> Vec<(Arc<Target>, Arc<Known>)> {
        let targets: Vec<_> = self.targets.lock().values().cloned().collect();
        targets.into_iter().filter_map(|t| t.known.load_full().map(|k| (t, k))).collect()
    }

    /// What is known of the endpoints in use, at most [`limits::FRAME_ENDPOINTS`], by address.
    pub fn endpoint_levels(&self, now: Instant) -> Vec<EndpointLevel> {
        let mut levels: BTreeMap<SocketAddr, EndpointLevel> = BTreeMap::new();
        let targets = self.known_targets();
        let groups = targets.iter().flat_map(|(_, known)| std::iter::once(&known.group).chain(known.told()));
        for backend in groups.flat_map(|group| &group.backends) {
            let load = *backend.load.lock();
            let circuit =
                backend.circuit.lock().as_ref().map(|circuit| (circuit.standing(now), circuit.ejected_for(now)));
            let is_ejected = circuit.is_some_and(|(standing, _)| standing != Standing::Closed);
            let Endpoint { address, workload, pod, .. } = &backend.endpoint;
            if !(load.is_in_use(now) || is_ejected)
                || (levels.len() >= limits::FRAME_ENDPOINTS && !levels.contains_key(address))
            {
                continue;
            }
            // Of several services with the same endpoint it is one.
            let level = levels.entry(*address).or_insert_with(|| EndpointLevel {
                address: *address,
                workload: workload.clone(),
                pod: pod.clone(),
                in_flight: 0,
                expected_us: 0,
                failing: false,
                circuit: None,
                ejected_ms: 0,
            });
            level.in_flight += load.in_flight();
            level.expected_us = level.expected_us.max(load.expected(now).as_micros() as u64);
            level.failing |= load.is_failing(now);
            if let Some((standing, ejected)) = circuit.filter(|_| level.circuit.is_none() || is_ejected) {
                level.circuit = Some(standing);
                level.ejected_ms = ejected.as_millis() as u64;
            }
        }
        levels.into_values().collect()
    }

    /// Addresses a new stream has to ask about.
    pub fn wanted(&self) -> Vec<SocketAddr> {
        self.news.lock().clear();
        self.targets.lock().keys().copied().collect()
    }

    /// Waits until control has to be told something.
    pub async fn news(&self) -> Vec<News> {
        loop {
            let news = std::mem::take(&mut *self.news.lock());
            if !news.is_empty() {
                return news;
            }
            self.has_news.notified().await;
        }
    }

    /// Notes whether the stream from control is up.
    pub fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    /// True while the stream from control is up.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Closes idle connections and forgets targets without traffic.
    pub fn sweep(&self, now: Instant) {
        let mut backends: Vec<Arc<Backend>> = Vec::new();
        {
            let mut targets = self.targets.lock();
            if self.asks {
                targets.retain(|address, target| {
                    let idle = now.saturating_duration_since(*target.used.lock()) > limits::TARGET_IDLE;
                    let keep = !idle || Arc::strong_count(target) > 1;
                    if !keep {
                        self.tell(News::Unwanted(*address));
                    }
                    keep
                });
            }
            for target in targets.values().chain(self.apps.lock().values()) {
                let known = target.known.load_full().unwrap_or_else(|| target.as_is.clone());
                backends.extend(known.all_groups().flat_map(|group| &group.backends).cloned());
            }
        }
        for backend in backends {
            backend.pool.sweep(now);
        }
    }

    /// Without a stream there is nobody to tell, and the next stream asks about everything anyway.
    fn tell(&self, news: News) {
        if self.is_connected() {
            self.news.lock().push(news);
            self.has_news.notify_one();
        }
    }

    /// The address itself, reached as it is.
    fn as_is(&self, address: SocketAddr) -> Arc<Known> {
        let destination = Destination { external: true, ..Destination::default() };
        let group = self.group(address, &destination, vec![itself(address)], None);
        let scope = self.scope(address, &destination);
        Arc::new(Known::new(destination, !self.asks, group, scope))
    }

    fn known(&self, address: SocketAddr, told: Told, before: Option<&Known>) -> Result<Known, String> {
        told.check()?;
        let Told { destination, mut endpoints, backends } = told;
        let table = match (&destination.routes, before) {
            (None, _) => None,
            (Some(routes), Some(before)) if before.destination.routes.as_ref() == Some(routes) => before.table.clone(),
            (Some(routes), _) => Some(Arc::new(Table::compile(routes)?)),
        };
        if destination.external && endpoints.is_empty() {
            endpoints.push(itself(address));
        }
        let before = before.filter(|before| before.destination.service == destination.service);
        let group = Arc::new(self.group(address, &destination, endpoints, before.map(|known| &*known.group)));
        let service = destination.service.as_ref();
        let inbound = self.inbound.load();
        let zone = inbound.zone.as_deref();
        let others: Vec<Arc<Group>> = backends
            .into_iter()
            .map(|(port, endpoints)| {
                let before = before.and_then(|known| told::find(&known.told, port.service.as_ref()?));
                let same =
                    |before: &Group| before.port == port && before.backends.iter().map(|b| &b.endpoint).eq(&endpoints);
                match before {
                    Some(before) if same(before) => before.clone(),
                    before => Arc::new(Group::new(port, zone, endpoints, before.map(|before| &**before), |endpoint| {
                        Some(self.golden.scope(Direction::Outbound, &endpoint.workload, service, address.port()))
                    })),
                }
            })
            .collect();
        let groups = table.iter().flat_map(|table| table.services()).map(|wanted| match service {
            Some(service) if service == wanted => group.clone(),
            _ => told::find(&others, wanted).cloned().unwrap_or_else(|| Arc::new(Group::empty(wanted))),
        });
        let groups = groups.collect();
        let scope = self.scope(address, &destination);
        Ok(Known { destination, certain: true, group, table, groups, told: others, scope })
    }

    fn group(
        &self,
        address: SocketAddr,
        destination: &Destination,
        endpoints: Vec<Endpoint>,
        before: Option<&Group>,
    ) -> Group {
        let Destination { service, protocol, external, policy, .. } = destination;
        let port = Port { service: service.clone(), protocol: *protocol, policy: policy.clone() };
        let service = service.as_ref();
        // What leaves the cluster is counted by the host that each request or connection names.
        let scope = |workload: &WorkloadRef| self.golden.scope(Direction::Outbound, workload, service, address.port());
        Group::new(port, self.inbound.load().zone.as_deref(), endpoints, before, |endpoint| {
            (!external).then(|| scope(&endpoint.workload))
        })
    }

    fn scope(&self, address: SocketAddr, destination: &Destination) -> Arc<Scope> {
        let itself = match &destination.service {
            Some(service) => WorkloadRef::new(&service.namespace, "service", &service.name),
            None => WorkloadRef::new("", "external", &address.ip().to_string()),
        };
        self.golden.scope(Direction::Outbound, &itself, destination.service.as_ref(), address.port())
    }
}

/// An address outside the cluster as its own endpoint.
fn itself(address: SocketAddr) -> Endpoint {
    let workload = WorkloadRef::new("", "external", &address.ip().to_string());
    Endpoint { address, identity: None, workload, pod: String::new(), zone: None }
}

/// Says why what is told of arriving traffic cannot be used.
pub fn validate_inbound(policy: &InboundPolicy) -> Result<(), String> {
    read_inbound(policy).map(drop)
}

fn read_inbound(policy: &InboundPolicy) -> Result<Checks, String> {
    let rules = policy.access.rules.len();
    if rules > limits::POLICY_RULES {
        return Err(format!("access.rules: {rules} of them, more than {}", limits::POLICY_RULES));
    }
    shared::validate(policy)?;
    Checks::compile(&policy.access)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::Protocol;
    use std::time::Duration;

    fn state(asks: bool) -> State {
        State::new(asks, Arc::new(Golden::new(0)), Arc::default())
    }

    fn endpoint(last: u8) -> Endpoint {
        Endpoint {
            address: SocketAddr::from(([10, 0, 0, last], 80)),
            identity: None,
            workload: WorkloadRef::new("shop", "deployment", "web"),
            pod: format!("web-{last}"),
            zone: None,
        }
    }

    fn reset(endpoints: Vec<Endpoint>) -> EndpointsChange {
        EndpointsChange { reset: true, upsert: endpoints, remove: vec![] }
    }

    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 5)), 80);

    #[test]
    fn what_cannot_be_used_of_arriving_traffic_changes_nothing() {
        let state = state(true);
        let policy = |zone: &str, rules| InboundPolicy {
            zone: Some(zone.to_owned()),
            access: mesh_api::Access { rules: vec![Default::default(); rules], ..Default::default() },
            ..InboundPolicy::default()
        };
        assert_eq!(state.set_inbound(policy("a", limits::POLICY_RULES)), Ok(()));
        let refusal = state.set_inbound(policy("b", limits::POLICY_RULES + 1)).unwrap_err();
        assert_eq!(refusal, "access.rules: 4097 of them, more than 4096");
        assert_eq!(state.inbound().zone.as_deref(), Some("a"));
    }

    #[tokio::test]
    async fn an_unknown_address_waits_once_and_goes_as_it_is() {
        let state = state(true);
        state.set_connected(true);
        let target = state.target(ADDRESS);
        assert_eq!(state.news().await, [News::Wanted(ADDRESS)]);
        let known = target.resolve(Duration::from_millis(20)).await;
        assert!(known.destination.external && known.group.backends[0].endpoint.address == ADDRESS);
        let again = tokio::time::timeout(Duration::from_secs(10), target.resolve(Duration::from_secs(60)));
        assert!(again.await.is_ok(), "the second connection does not wait");
    }

    #[tokio::test]
    async fn an_answer_ends_the_wait() {
        let state = Arc::new(state(true));
        let target = state.target(ADDRESS);
        let later = state.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let destination = Destination { protocol: Protocol::Http1, ..Destination::default() };
            later.update(ADDRESS, Some(destination), Some(&reset(vec![endpoint(1)])), &[]).unwrap();
        });
        assert_eq!(target.resolve(Duration::from_secs(60)).await.group.backends[0].endpoint, endpoint(1));
    }

    #[test]
    fn an_update_keeps_what_it_does_not_touch() {
        let state = state(true);
        let target = state.target(ADDRESS);
        let destination = Destination::default();
        state.update(ADDRESS, Some(destination), Some(&reset(vec![endpoint(1), endpoint(2)])), &[]).unwrap();
        let before = target.now();
        let change = EndpointsChange { reset: false, upsert: vec![endpoint(3)], remove: vec![endpoint(1).address] };
        state.update(ADDRESS, None, Some(&change), &[]).unwrap();
        let after = target.now();
        assert_eq!(after.group.backends.len(), 2);
        assert!(Arc::ptr_eq(&before.group.backends[1], &after.group.backends[0]), "connections and load stay");
    }

    #[test]
    fn what_cannot_be_used_changes_nothing() {
        let state = state(true);
        let target = state.target(ADDRESS);
        let destination = Destination::default();
        assert!(state.update(ADDRESS, None, None, &[]).is_err());
        state.update(ADDRESS, Some(destination), Some(&reset(vec![endpoint(1)])), &[]).unwrap();
        let mut bad = endpoint(9);
        bad.address.set_port(0);
        let error = state.update(ADDRESS, None, Some(&reset(vec![bad])), &[]).unwrap_err();
        assert!(error.contains("10.0.0.9:0"), "{error}");
        assert_eq!(target.now().group.backends[0].endpoint, endpoint(1));
    }

    #[test]
    fn targets_without_traffic_are_forgotten_unless_in_use() {
        let state = state(true);
        let used = state.target(ADDRESS);
        drop(state.target(SocketAddr::from(([10, 96, 0, 6], 80))));
        let later = Instant::now() + limits::TARGET_IDLE + Duration::from_secs(1);
        state.sweep(later);
        assert_eq!(state.wanted(), [used.address]);
    }
}
