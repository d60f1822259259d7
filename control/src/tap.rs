//! Taps on their way from the proxies to those who look.
//!
//! A tap goes to the proxies of the pods it means, and follows as these come and go. Each proxy keeps the tap's limits
//! for its own part, control once more for the sum; whatever matched and was not told is counted on the way. A tap
//! ends when its [`Watch`] is dropped.

mod relay;
pub mod target;

use crate::limits;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::subscriptions::{Subscriptions, Todo};
use crate::world::World;
use crate::world::view::Name;
use mesh_api::golden::Direction;
use mesh_api::tap::bucket::Bucket;
use mesh_api::tap::filter::TapFilter;
use mesh_api::tap::{TapEnd, TapEvent, TapLeftOut, TapMessage, TapOrder, TapStatus};
use parking_lot::Mutex;
use relay::Elsewhere;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use target::Target;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// What somebody wants to see.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Whose proxies.
    pub target: Target,
    /// What of it.
    pub filter: TapFilter,
    /// Events a second, at most.
    pub max_rps: u32,
    /// Share of the matching events.
    pub sample: f64,
    /// Header fields too.
    pub headers: bool,
    /// Bodies too.
    pub bodies: bool,
    /// Secret header fields as they are.
    pub secrets: bool,
    /// For how long; `None`: until nobody reads.
    pub duration: Option<Duration>,
}

/// Connected proxies and the taps on them.
#[derive(Debug)]
pub struct Taps {
    inner: Mutex<Inner>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    links: HashMap<Name, Linked>,
    watches: HashMap<u64, Watching>,
}

/// A connected proxy.
#[derive(Debug)]
struct Linked {
    id: u64,
    todo: Arc<Todo>,
}

/// A tap.
#[derive(Debug)]
struct Watching {
    wish: Wish,
    /// The addresses that the filter's places mean.
    places: [Option<Vec<IpAddr>>; 2],
    pods: u32,
    meshed_pods: u32,
    asked: HashMap<Name, Asked>,
    bucket: Bucket,
    events: VecDeque<TapEvent>,
    left_out: TapLeftOut,
    /// The same tap at other replicas, by their names.
    others: BTreeMap<String, Elsewhere>,
    wake: Arc<Notify>,
}

/// How far a proxy is with a tap.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Waiting,
    On,
    Refused(String),
    Over,
}

/// A proxy's place among the connected ones; it ends when this is dropped.
#[derive(Debug)]
pub struct Link {
    taps: Arc<Taps>,
    pod: Name,
    id: u64,
}

/// A tap; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    taps: Arc<Taps>,
    id: u64,
    phase: Phase,
    wake: Arc<Notify>,
    looked: Instant,
    /// What was told last, and when.
    told: (TapStatus, Instant),
    shown: u64,
    /// Asks other replicas.
    _relay: Option<AbortOnDropHandle<()>>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Waits for the proxies' first answers.
    Begins,
    /// Goes on, perhaps until a certain time.
    Runs(Option<Instant>),
    /// Waits for what proxies still have to tell, until a certain time.
    Ends(Instant),
    Over,
}

impl Taps {
    /// Nobody connected, nobody tapping.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), metrics })
    }

    /// A proxy has connected. It knows of no taps; those that mean it will find it at their next look.
    pub fn link(self: &Arc<Self>, pod: &Name, todo: Arc<Todo>) -> Link {
        let mut inner = self.inner.lock();
        inner.next += 1;
        let id = inner.next;
        for watching in inner.watches.values_mut() {
            watching.asked.remove(pod);
        }
        inner.links.insert(pod.clone(), Linked { id, todo });
        Link { taps: self.clone(), pod: pod.clone(), id }
    }

    /// Begins a tap; `None` if there are too many.
    pub fn watch(self: &Arc<Self>, wish: Wish, now: Instant) -> Option<Watch> {
        let mut inner = self.inner.lock();
        if inner.watches.len() >= limits::TAPS {
            return None;
        }
        inner.next += 1;
        let id = inner.next;
        let wake = Arc::new(Notify::new());
        let watching = Watching {
            places: [None, None],
            pods: 0,
            meshed_pods: 0,
            asked: HashMap::new(),
            bucket: Bucket::new(wish.max_rps, now.into_std()),
            events: VecDeque::new(),
            left_out: TapLeftOut::default(),
            others: BTreeMap::new(),
            wake: wake.clone(),
            wish,
        };
        inner.watches.insert(id, watching);
        self.metrics.taps.inc();
        let told = (TapStatus::default(), now);
        Some(Watch { taps: self.clone(), id, phase: Phase::Begins, wake, looked: now, told, shown: 0, _relay: None })
    }

    /// Looks whose proxies a tap means by now, and gives the orders that are missing.
    fn look(&self, id: u64, world: &World) {
        let mut inner = self.inner.lock();
        let Inner { links, watches, .. } = &mut *inner;
        let Some(watching) = watches.get_mut(&id) else { return };
        let wanted = watching.wish.target.pods(world);
        let is_meshed = |pod: &&Name| world.pod(pod).is_some_and(|pod| pod.is_meshed());
        watching.pods = count(wanted.len());
        watching.meshed_pods = count(wanted.iter().filter(is_meshed).count());
        let place = |place: &Option<_>| {
            place.as_ref().and_then(|place| target::addresses(world, place, watching.wish.target.namespace.as_deref()))
        };
        let places = [place(&watching.wish.filter.from), place(&watching.wish.filter.to)];
        let moved = std::mem::replace(&mut watching.places, places) != watching.places;
        for pod in &wanted {
            let Some(linked) = links.get(pod) else { continue };
            if moved || !watching.asked.contains_key(pod) {
                watching.asked.entry(pod.clone()).or_insert(Asked::Waiting);
                linked.order(id, Some(watching.order(id)));
            }
        }
        watching.asked.retain(|pod, asked| {
            let over = matches!(asked, Asked::Over | Asked::Refused(_));
            if wanted.contains(pod) {
                return true;
            }
            // What it still has to tell counts, until it says that it has ended.
            if let Some(linked) = links.get(pod).filter(|_| !over) {
                linked.order(id, None);
            }
            !over
        });
    }

    /// Tells all proxies of a tap that it is over.
    fn stop(&self, id: u64) {
        let mut inner = self.inner.lock();
        let Inner { links, watches, .. } = &mut *inner;
        let Some(watching) = watches.get_mut(&id) else { return };
        for linked in watching.asked.keys().filter_map(|pod| links.get(pod)) {
            linked.order(id, None);
        }
    }

    fn settled(&self, id: u64, is: impl Fn(&Asked) -> bool, others: fn(&Elsewhere) -> bool) -> bool {
        let settled = |watching: &Watching| watching.asked.values().all(is) && watching.others.values().all(others);
        self.inner.lock().watches.get(&id).is_none_or(settled)
    }

    fn take(&self, id: u64) -> Vec<TapEvent> {
        let mut inner = self.inner.lock();
        let Some(watching) = inner.watches.get_mut(&id) else { return Vec::new() };
        let count = watching.events.len().min(limits::TAP_BATCH);
        watching.events.drain(..count).collect()
    }

    fn status(&self, id: u64, shown: u64) -> TapStatus {
        self.inner.lock().watches.get(&id).map(|watching| watching.status(shown)).unwrap_or_default()
    }
}

impl Linked {
    fn order(&self, id: u64, order: Option<TapOrder>) {
        self.todo.add(|due| {
            due.taps.insert(id, order);
        });
    }
}

impl Watching {
    fn order(&self, id: u64) -> TapOrder {
        let Wish { filter, max_rps, sample, headers, bodies, secrets, .. } = &self.wish;
        let [from, to] = self.places.clone();
        TapOrder {
            id,
            filter: filter.to_string(),
            from,
            to,
            max_rps: *max_rps,
            sample: *sample,
            headers: *headers,
            bodies: *bodies,
            secrets: *secrets,
        }
    }

    fn receive(&mut self, events: Vec<TapEvent>, left_out: &TapLeftOut, now: Instant) {
        self.left_out.add(left_out);
        for event in events {
            if !self.bucket.take(now.into_std()) {
                self.left_out.rate_limited += 1;
            } else if self.events.len() >= limits::TAP_QUEUE {
                self.left_out.buffer_full += 1;
            } else {
                self.events.push_back(event);
            }
        }
    }

    fn status(&self, shown: u64) -> TapStatus {
        let own = self.asked.values().filter_map(|asked| match asked {
            Asked::Refused(why) => Some(why.clone()),
            _ => None,
        });
        let others = self.others.iter().flat_map(|(replica, elsewhere)| elsewhere.refusals(replica));
        let refusals: BTreeSet<String> = own.chain(others).collect();
        let elsewhere: u32 = self.others.values().map(Elsewhere::proxies).sum();
        TapStatus {
            pods: self.pods,
            meshed_pods: self.meshed_pods,
            proxies: count(self.asked.values().filter(|asked| **asked == Asked::On).count()) + elsewhere,
            refusals: refusals.into_iter().take(limits::TAP_REFUSALS).collect(),
            shown,
            left_out: self.left_out,
            last: false,
        }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Link {
    /// The proxy tells of a tap.
    pub fn receive(&self, tap: u64, events: Vec<TapEvent>, left_out: &TapLeftOut, now: Instant) {
        self.taps.metrics.tap_events.inc_by(events.len() as u64);
        self.change(tap, Asked::On, |watching| watching.receive(events, left_out, now));
    }

    /// The proxy has ended a tap, or never began it.
    pub fn ended(&self, tap: u64, refusal: Option<String>) {
        let asked = refusal.map_or(Asked::Over, |why| Asked::Refused(why.chars().take(300).collect()));
        self.change(tap, asked, |_| {});
    }

    /// Nothing, if nobody asked this proxy: one cannot tell what happens elsewhere.
    fn change(&self, tap: u64, now: Asked, change: impl FnOnce(&mut Watching)) {
        let mut inner = self.taps.inner.lock();
        let Inner { links, watches, .. } = &mut *inner;
        if links.get(&self.pod).is_none_or(|linked| linked.id != self.id) {
            return;
        }
        let Some(watching) = watches.get_mut(&tap) else { return };
        let Some(asked) = watching.asked.get_mut(&self.pod) else { return };
        *asked = now;
        change(watching);
        watching.wake.notify_one();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut inner = self.taps.inner.lock();
        if inner.links.get(&self.pod).is_some_and(|linked| linked.id == self.id) {
            inner.links.remove(&self.pod);
            for watching in inner.watches.values_mut() {
                watching.asked.remove(&self.pod);
                watching.wake.notify_one();
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.taps.stop(self.id);
        self.taps.inner.lock().watches.remove(&self.id);
        self.taps.metrics.taps.dec();
    }
}

impl Watch {
    /// Lets other replicas, too, tell of what their proxies see; `path` is where they answer the same question.
    pub fn with(mut self, peers: Arc<Peers>, path: String) -> Self {
        self._relay = Some(relay::relay(self.taps.clone(), self.id, peers, path));
        self
    }

    /// The next lines; `None` after the last. The first says who taps, as soon as proxies have answered.
    pub async fn next(&mut self, subscriptions: &Subscriptions) -> Option<Vec<TapMessage>> {
        loop {
            let now = Instant::now();
            match self.phase {
                Phase::Begins => {
                    let duration = subscriptions.read(|world| self.begin(world));
                    self.wait(now + limits::TAP_WAIT, |asked| *asked != Asked::Waiting, Elsewhere::is_known).await;
                    self.phase = Phase::Runs(duration.map(|duration| now + duration));
                    return Some(vec![self.status(Instant::now())]);
                }
                Phase::Runs(until) if until.is_some_and(|until| until <= now) => {
                    self.taps.stop(self.id);
                    self.phase = Phase::Ends(now + limits::TAP_WAIT);
                }
                Phase::Runs(until) => {
                    if now >= self.looked + limits::TAP_LOOK {
                        self.looked = now;
                        subscriptions.read(|world| self.taps.look(self.id, world));
                    }
                    let messages = self.due(now);
                    if !messages.is_empty() {
                        return Some(messages);
                    }
                    let wait = (now + limits::TAP_STATUS).min(until.unwrap_or(now + limits::TAP_STATUS));
                    // Woken or not: what is due is looked for again.
                    let _ = tokio::time::timeout_at(wait, self.wake.notified()).await;
                }
                Phase::Ends(until) => {
                    let over = |asked: &Asked| matches!(asked, Asked::Over | Asked::Refused(_));
                    self.wait(until, over, Elsewhere::is_over).await;
                    let events = self.events();
                    if !events.is_empty() {
                        return Some(events);
                    }
                    self.phase = Phase::Over;
                    let status = TapStatus { last: true, ..self.taps.status(self.id, self.shown) };
                    return Some(vec![TapMessage::Status(status)]);
                }
                Phase::Over => return None,
            }
        }
    }

    /// Events told so far.
    pub fn shown(&self) -> u64 {
        self.shown
    }

    fn begin(&mut self, world: &World) -> Option<Duration> {
        self.taps.look(self.id, world);
        self.taps.inner.lock().watches.get(&self.id).and_then(|watching| watching.wish.duration)
    }

    async fn wait(&self, until: Instant, is: impl Fn(&Asked) -> bool, others: fn(&Elsewhere) -> bool) {
        while !self.taps.settled(self.id, &is, others) {
            if tokio::time::timeout_at(until, self.wake.notified()).await.is_err() {
                return; // whoever has not answered by then shows in the count of proxies
            }
        }
    }

    fn due(&mut self, now: Instant) -> Vec<TapMessage> {
        let mut messages = self.events();
        let (told, at) = &self.told;
        let is_due = now >= *at + limits::TAP_SILENCE
            || (now >= *at + limits::TAP_STATUS && *told != self.taps.status(self.id, self.shown));
        if is_due {
            messages.push(self.status(now));
        }
        messages
    }

    fn events(&mut self) -> Vec<TapMessage> {
        let events = self.taps.take(self.id);
        self.shown += events.len() as u64;
        events.into_iter().map(|event| TapMessage::Event(Box::new(event))).collect()
    }

    fn status(&mut self, now: Instant) -> TapMessage {
        let status = self.taps.status(self.id, self.shown);
        self.told = (status.clone(), now);
        TapMessage::Status(status)
    }
}

/// Gives the ends of events, told by the proxy of `pod`, the names they have in the cluster.
pub fn name_ends(world: &World, pod: &Name, events: &mut [TapEvent]) {
    for event in events {
        let (own, other) = match event.direction {
            Direction::Inbound => (&mut event.destination, &mut event.source),
            Direction::Outbound => (&mut event.source, &mut event.destination),
        };
        own.pod = Some(pod.name.clone());
        if let Some(known) = world.pod(pod) {
            own.workload = Some(known.workload.clone());
        }
        name_end(world, other);
    }
}

fn name_end(world: &World, end: &mut TapEnd) {
    if let Some((name, pod)) = world.pod_at(end.address.ip()) {
        end.pod = Some(name.name.clone());
        end.workload = Some(pod.workload.clone());
    }
}

#[cfg(test)]
mod tests;
