//! How a group's traffic is carried where a policy says so: the balancing it asks for, who is ejected, and how much may be
//! under way. Groups without a policy have none of this.

use crate::balance::hash::{Maglev, Ring, hash};
use crate::balance::{self, Random};
use crate::breaker::{Change, Outcome, Standing};
use crate::fault::Faults;
use crate::headers;
use crate::limits;
use crate::state::Backend;
use http::{HeaderMap, Uri};
use mesh_api::balance::{Algorithm, HashOn};
use mesh_api::{MeshError, TrafficPolicy};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A group's policy at work.
#[derive(Debug)]
pub struct Traffic {
    /// The policy.
    pub policy: Arc<TrafficPolicy>,
    /// What is made to fail.
    pub faults: Faults,
    backends: Vec<Arc<Backend>>,
    /// Places of the endpoints in our zone, if that makes a difference.
    zone: Option<Vec<usize>>,
    places: Places,
    live: Arc<Live>,
}

/// Where keys lead.
#[derive(Debug)]
enum Places {
    Nowhere,
    Ring(Ring),
    Maglev(Maglev),
}

/// What outlives a change of the policy or of the endpoints.
#[derive(Debug)]
struct Live {
    began: Instant,
    turn: AtomicUsize,
    /// True while some endpoint may be ejected or pausing.
    troubled: AtomicBool,
    /// When they were last looked through, milliseconds since `began`.
    looked_ms: AtomicU64,
    /// True if our zone had too few endpoints in service then.
    failed_over: AtomicBool,
    /// Held while an endpoint is ejected, so that two at once do not go below the floor.
    ejecting: parking_lot::Mutex<()>,
    under_way: AtomicU32,
    waiting: AtomicU32,
    released: Notify,
}

impl Live {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            turn: AtomicUsize::new(0),
            troubled: AtomicBool::new(true),
            looked_ms: AtomicU64::new(0),
            failed_over: AtomicBool::new(false),
            ejecting: parking_lot::Mutex::default(),
            under_way: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            released: Notify::new(),
        }
    }
}

impl Traffic {
    /// A policy for these endpoints; `zone` is our own. What `before` knows stays.
    pub fn new(
        policy: Arc<TrafficPolicy>,
        backends: &[Arc<Backend>],
        zone: Option<&str>,
        before: Option<&Self>,
    ) -> Arc<Self> {
        let balance = policy.balance.clone().unwrap_or_default();
        let addresses = || backends.iter().map(|b| b.endpoint.address).collect::<Vec<SocketAddr>>();
        let places = match balance.algorithm {
            Algorithm::RingHash => Places::Ring(Ring::new(&addresses())),
            Algorithm::Maglev => Places::Maglev(Maglev::new(&addresses())),
            _ => Places::Nowhere,
        };
        let own = |zone: &str| {
            let here = backends.iter().enumerate().filter(|(_, b)| b.endpoint.zone.as_deref() == Some(zone));
            here.map(|(at, _)| at).collect::<Vec<_>>()
        };
        let zone = balance.zone.and(zone).map(own).filter(|own| !own.is_empty() && own.len() < backends.len());
        let connections = policy.limits.and_then(|limits| limits.connections);
        for backend in backends {
            backend.pool.limit(connections.map(|n| n as usize));
        }
        let live = before.map_or_else(|| Arc::new(Live::new()), |before| before.live.clone());
        live.troubled.store(true, Ordering::Relaxed);
        live.looked_ms.store(0, Ordering::Relaxed);
        // Whoever takes a policy in has checked it: see `validate`.
        let faults = Faults::new(&policy.faults).unwrap_or_default();
        let traffic = Arc::new(Self { policy, faults, backends: backends.to_vec(), zone, places, live });
        traffic.keep_the_floor(Instant::now());
        traffic
    }

    /// Undoes what a policy did to endpoints that have none any more.
    pub fn forget(backends: &[Arc<Backend>]) {
        for backend in backends {
            backend.pool.limit(None);
            *backend.circuit.lock() = None;
        }
    }

    /// After endpoints left, too many of the rest may be ejected: those come back that would be tried out first.
    fn keep_the_floor(&self, now: Instant) {
        let _ejecting = self.live.ejecting.lock();
        let ejected = |b: &&Arc<Backend>| b.circuit.lock().as_ref().and_then(|circuit| circuit.ejected_until());
        let mut out: Vec<_> = self.backends.iter().filter_map(|b| Some((ejected(&b)?, b))).collect();
        out.sort_by_key(|(until, _)| *until);
        let ejectable = self.policy.breaker.map_or(0, |breaker| breaker.ejectable(self.backends.len()));
        let back = out.len().saturating_sub(ejectable);
        for (_, backend) in &out[..back] {
            if let Some(circuit) = &mut *backend.circuit.lock() {
                circuit.restore(now);
            }
        }
    }

    /// The endpoint for the next attempt of a request with this `key`, and not one of those `tried`. An error says why
    /// there is none; `Overload` means that all have as many requests as they may.
    pub fn choose(
        &self,
        key: Option<u64>,
        tried: &[SocketAddr],
        now: Instant,
        random: &mut Random,
    ) -> Result<Arc<Backend>, MeshError> {
        let fresh = |at: usize| !tried.contains(&self.backends[at].endpoint.address);
        let troubled = self.live.troubled.load(Ordering::Relaxed);
        if troubled
            && let Some(at) = self.look_through(now).filter(|at| fresh(*at))
            && self.begin_probe(at, now)
        {
            return Ok(self.backends[at].clone());
        }
        let has_room = |at: usize| self.has_room(&self.backends[at]);
        let serves = |at: usize| !troubled || self.serves(at, now);
        let rested = |at: usize| !troubled || !self.backends[at].load.lock().is_paused(now);
        let found = self
            .pick(key, now, |at| fresh(at) && serves(at) && rested(at) && has_room(at), random)
            // One that asked for a pause is better than none.
            .or_else(|| self.pick(key, now, |at| fresh(at) && serves(at) && has_room(at), random));
        match found {
            Some(at) => Ok(self.backends[at].clone()),
            None if !(0..self.backends.len()).any(fresh) => Err(MeshError::NoEndpoints),
            None if (0..self.backends.len()).any(|at| fresh(at) && serves(at)) => Err(MeshError::Overload),
            None => Err(MeshError::CircuitOpen),
        }
    }

    fn pick(
        &self,
        key: Option<u64>,
        now: Instant,
        takes: impl Fn(usize) -> bool,
        random: &mut Random,
    ) -> Option<usize> {
        let n = self.backends.len();
        match &self.places {
            Places::Ring(ring) => return ring.find(key.unwrap_or_else(|| random.number()), takes),
            Places::Maglev(maglev) => return maglev.find(key.unwrap_or_else(|| random.number()), takes),
            Places::Nowhere => {}
        }
        let here = self.zone.as_ref().filter(|_| !self.live.failed_over.load(Ordering::Relaxed));
        let near = here.and_then(|zone| Some(zone[self.spread(zone.len(), now, |i| zone[i], &takes, random)?]));
        near.or_else(|| self.spread(n, now, |i| i, &takes, random))
    }

    /// One of `n` endpoints, each at its `place`, by the policy's algorithm.
    fn spread(
        &self,
        n: usize,
        now: Instant,
        place: impl Fn(usize) -> usize,
        takes: impl Fn(usize) -> bool,
        random: &mut Random,
    ) -> Option<usize> {
        let takes = |i: usize| takes(place(i));
        let load = |i: usize| self.backends[place(i)].load.lock();
        match self.policy.balance.as_ref().map_or(Algorithm::PeakEwma, |balance| balance.algorithm) {
            Algorithm::LeastRequest => balance::better_of_two(n, takes, |i| f64::from(load(i).in_flight()), random),
            Algorithm::RoundRobin => {
                balance::next_in_turn(n, self.live.turn.fetch_add(1, Ordering::Relaxed), takes, random)
            }
            Algorithm::Random => balance::any(n, takes, random),
            _ => balance::better_of_two(n, takes, |i| load(i).cost(now), random),
        }
    }

    fn serves(&self, at: usize, now: Instant) -> bool {
        is_closed(&self.backends[at], now)
    }

    fn has_room(&self, backend: &Backend) -> bool {
        let most = self.policy.limits.and_then(|limits| limits.endpoint_requests);
        most.is_none_or(|most| backend.load.lock().in_flight() < most)
    }

    /// True if a request that would rather go to this endpoint than to another may do so.
    pub fn takes(&self, backend: &Backend, now: Instant) -> bool {
        is_closed(backend, now) && self.has_room(backend)
    }

    /// True if an endpoint is in service that is none of those `tried`.
    pub fn has_another(&self, tried: &[SocketAddr], now: Instant) -> bool {
        let troubled = self.live.troubled.load(Ordering::Relaxed);
        let fresh = |at: usize| !tried.contains(&self.backends[at].endpoint.address);
        (0..self.backends.len()).any(|at| fresh(at) && (!troubled || self.serves(at, now)))
    }

    /// Looks through all endpoints, if that was not done just now; the place of one to try out.
    fn look_through(&self, now: Instant) -> Option<usize> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let now_ms = ms(now.saturating_duration_since(self.live.began));
        let looked = self.live.looked_ms.load(Ordering::Relaxed);
        if looked != 0 && now_ms < looked + ms(limits::TROUBLE_POLL) {
            return None;
        }
        self.live.looked_ms.store(now_ms.max(1), Ordering::Relaxed);
        let (mut probe, mut troubled, mut in_zone) = (None, false, 0);
        for (at, backend) in self.backends.iter().enumerate() {
            let (ejected, due) =
                backend.circuit.lock().as_ref().map_or((false, false), |c| (c.is_ejected(), c.wants_probe(now)));
            let out = ejected || backend.load.lock().is_paused(now);
            troubled |= out;
            if due && probe.is_none() {
                probe = Some(at);
            }
            if !out && self.zone.as_ref().is_some_and(|zone| zone.binary_search(&at).is_ok()) {
                in_zone += 1;
            }
        }
        self.live.troubled.store(troubled, Ordering::Relaxed);
        if let (Some(zone), Some(prefers)) = (&self.zone, self.policy.balance.as_ref().and_then(|b| b.zone)) {
            let enough = in_zone * 100 >= zone.len() * prefers.failover_percent.min(100) as usize && in_zone > 0;
            self.live.failed_over.store(!enough, Ordering::Relaxed);
        }
        probe
    }

    /// True if the endpoint is to be tried out, and nobody else does it.
    fn begin_probe(&self, at: usize, now: Instant) -> bool {
        let mut circuit = self.backends[at].circuit.lock();
        let due = circuit.as_mut().filter(|circuit| circuit.wants_probe(now));
        due.map(|circuit| circuit.begin_probe(now)).is_some()
    }

    /// What of a request keeps it at one endpoint.
    pub fn key(&self, headers: &HeaderMap, uri: &Uri, from: IpAddr) -> Option<u64> {
        let balance = self.policy.balance.as_ref().filter(|balance| balance.algorithm.is_hash())?;
        let (on, name) =
            balance.hash.as_ref().map_or((HashOn::Source, ""), |h| (h.on, h.name.as_deref().unwrap_or_default()));
        match on {
            HashOn::Source => Some(source(from)),
            HashOn::Path => Some(hash(uri.path().as_bytes())),
            HashOn::Header => Some(hash(headers.get(name)?.as_bytes())),
            HashOn::Cookie => Some(hash(headers::cookie(headers, name)?)),
        }
    }

    /// The key of a connection that is not looked into.
    pub fn key_of_connection(&self, from: IpAddr) -> Option<u64> {
        let hashes = self.policy.balance.as_ref().is_some_and(|balance| balance.algorithm.is_hash());
        hashes.then(|| source(from))
    }

    /// Judges an endpoint by a request.
    pub fn report(&self, backend: &Backend, outcome: Outcome, now: Instant) {
        let Some(breaker) = &self.policy.breaker else { return };
        let _ejecting = self.live.ejecting.lock();
        let may_eject = || {
            let others = self.backends.iter().filter(|other| !std::ptr::eq(&***other, backend));
            let ejected = others.filter(|b| b.circuit.lock().as_ref().is_some_and(|c| c.is_ejected())).count();
            ejected < breaker.ejectable(self.backends.len())
        };
        let change = backend.circuit.lock().get_or_insert_default().report(breaker, outcome, now, may_eject);
        match change {
            None => return,
            Some(Change::Ejected(time)) => {
                tracing::warn!(endpoint = %backend.endpoint.address, ?time, "endpoint ejected");
            }
            Some(Change::Back) => tracing::info!(endpoint = %backend.endpoint.address, "endpoint is back"),
        }
        self.trouble();
    }

    /// Takes back that the endpoint is being tried out.
    pub fn unreported(&self, backend: &Backend) {
        if self.policy.breaker.is_some()
            && let Some(circuit) = &mut *backend.circuit.lock()
        {
            circuit.end_probe();
        }
    }

    /// Endpoints have to be looked through.
    pub fn trouble(&self) {
        self.live.looked_ms.store(0, Ordering::Relaxed);
        self.live.troubled.store(true, Ordering::Relaxed);
    }

    /// True if there is a limit to how many requests may be under way at once.
    pub fn limits_requests(&self) -> bool {
        self.policy.limits.is_some_and(|limits| limits.requests.is_some())
    }

    /// True if there is a limit to how many connections one endpoint may have.
    pub fn limits_connections(&self) -> bool {
        self.policy.limits.is_some_and(|limits| limits.connections.is_some())
    }

    /// Waits until the request may go, if there is a limit to how many may at once.
    pub async fn admit(self: &Arc<Self>) -> Result<Option<Permit>, MeshError> {
        let Some(most) = self.policy.limits.and_then(|limits| limits.requests) else { return Ok(None) };
        let enter = || {
            let more = |n: u32| (n < most).then_some(n + 1);
            self.live.under_way.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
        };
        if !enter() {
            let entered = self.waiting(async {
                while !enter() {
                    self.live.released.notified().await;
                }
            });
            entered.await?;
        }
        Ok(Some(Permit { live: self.live.clone() }))
    }

    /// [`choose`](Self::choose), which waits while all endpoints have as many requests as they may.
    pub async fn choose_in_time(
        &self,
        key: Option<u64>,
        tried: &[SocketAddr],
        random: &parking_lot::Mutex<Random>,
    ) -> Result<Arc<Backend>, MeshError> {
        let choose = || self.choose(key, tried, Instant::now(), &mut random.lock());
        match choose() {
            Err(MeshError::Overload) => {}
            chosen => return chosen,
        }
        let chosen = async {
            loop {
                self.live.released.notified().await;
                match choose() {
                    Err(MeshError::Overload) => {}
                    chosen => break chosen,
                }
            }
        };
        self.waiting(chosen).await?
    }

    /// Does `work` that waits for something to be released; [`MeshError::Overload`] if too many wait, or for too long.
    async fn waiting<T>(&self, work: impl Future<Output = T>) -> Result<T, MeshError> {
        let limits = self.policy.limits.unwrap_or_default();
        let more = |n: u32| (n < limits.pending()).then_some(n + 1);
        if self.live.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_err() {
            return Err(MeshError::Overload);
        }
        let _waiting = Waiting { live: &self.live };
        let done = tokio::time::timeout(limits.pending_timeout().duration(), work).await;
        // Whoever has what it waited for tells the next one, who may have missed that there is more.
        self.live.released.notify_one();
        done.map_err(|_| MeshError::Overload)
    }

    /// A request to one of the endpoints is over.
    pub fn release(&self) {
        if self.live.waiting.load(Ordering::Acquire) > 0 {
            self.live.released.notify_one();
        }
    }
}

/// Says why a policy cannot be at work.
pub fn validate(policy: &TrafficPolicy) -> Result<(), String> {
    policy.check()?;
    Faults::new(&policy.faults).map(drop)
}

fn is_closed(backend: &Backend, now: Instant) -> bool {
    backend.circuit.lock().as_ref().is_none_or(|circuit| circuit.standing(now) == Standing::Closed)
}

/// The hash of a caller's address.
fn source(from: IpAddr) -> u64 {
    match from {
        IpAddr::V4(ip) => hash(&ip.octets()),
        IpAddr::V6(ip) => hash(&ip.octets()),
    }
}

/// The right to have a request under way.
#[derive(Debug)]
pub struct Permit {
    live: Arc<Live>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.live.under_way.fetch_sub(1, Ordering::AcqRel);
        self.live.released.notify_one();
    }
}

struct Waiting<'a> {
    live: &'a Live,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.live.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
#[path = "traffic_tests.rs"]
mod tests;
