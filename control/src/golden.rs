//! Golden metrics on their way from the proxies to those who look.
//!
//! Proxies are asked for frames only while somebody watches them. What a proxy counted reaches every watcher exactly
//! once: each watcher asks each proxy for the sum of its past, and then takes part in the seconds that follow. Seconds
//! of different proxies do not arrive at the same time, so each waits in a short queue and a watcher takes one of each
//! proxy a second. Proxies that end leave their past behind ([`departed`]).

pub mod departed;
pub mod frames;
pub mod sense;

use crate::limits;
use crate::metrics::Metrics;
use crate::subscriptions::Todo;
use crate::world::World;
use crate::world::view::{Name, PodView};
use departed::DepartedProxies;
use frames::Part;
use mesh_api::golden::{GoldenFrame, PodStatus, ProxyFrame, Senseless, WorkloadStatus};
use mesh_api::wire::ControlMessage;
use mesh_api::{SpiffeId, WorkloadRef};
use parking_lot::Mutex;
use sense::{Nonsense, Suspects, judge};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a watcher looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// One namespace, or all.
    pub namespace: Option<String>,
    /// One workload (kind and name), or all.
    pub workload: Option<(String, String)>,
}

impl Scope {
    fn has_pod(&self, pod: &Name) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| *namespace == pod.namespace)
    }

    fn has(&self, workload: &WorkloadRef) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| *namespace == workload.namespace)
            && self.workload.as_ref().is_none_or(|(kind, name)| *kind == workload.kind && *name == workload.name)
    }
}

/// How a watcher looks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// At what.
    pub scope: Scope,
    /// How far back, seconds.
    pub window_s: u16,
    /// A row for each pod.
    pub pods: bool,
    /// Other replicas are asked at the same time. Proxies go from one to another, and must not tell anything twice.
    pub among: bool,
    /// The watcher has been looking at other replicas for a while: only what nobody was told is missing.
    pub joins: bool,
}

/// Connected proxies and those who watch them.
#[derive(Debug)]
pub struct Golden {
    inner: Mutex<Inner>,
    metrics: Arc<Metrics>,
    trust_domain: String,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    links: HashMap<Name, Linked>,
    watches: HashMap<u64, Watching>,
    departed: DepartedProxies,
    suspects: Suspects,
}

/// A connected proxy.
#[derive(Debug)]
struct Linked {
    id: u64,
    todo: Arc<Todo>,
    /// Who waits for a sum of its past, in the order of asking.
    asked: VecDeque<u64>,
    /// End of the last second it sent, Unix milliseconds by its own clock.
    last_ms: u64,
}

/// A watcher.
#[derive(Debug)]
struct Watching {
    scope: Scope,
    /// Other replicas tell the same watcher of other proxies.
    among: bool,
    feeds: HashMap<FeedId, Feed>,
    /// Until when the counts of each pod are known, Unix milliseconds by its own clock.
    told: HashMap<Name, u64>,
    complete: Arc<Notify>,
}

/// The part of a proxy's past that a watcher wants: the last `backfill_s` seconds that ended after `since_ms` and by
/// `until_ms`; if `untold`, only what the proxy has told nobody.
#[derive(Clone, Copy, Debug)]
struct Past {
    backfill_s: u16,
    since_ms: u64,
    until_ms: u64,
    untold: bool,
}

/// A pod, and which of its connections.
type FeedId = (Name, u64);

/// What one proxy has sent to one watcher.
#[derive(Debug)]
struct Feed {
    /// True until the sum of the past is there.
    waits: bool,
    /// What is known of its workload without looking into the world: of those that left it.
    workload: Option<WorkloadRef>,
    queue: VecDeque<Arc<ProxyFrame>>,
    last: Option<Arc<ProxyFrame>>,
    heard: Instant,
}

/// A proxy's place among the connected ones; it ends when this is dropped.
#[derive(Debug)]
pub struct Link {
    golden: Arc<Golden>,
    pod: Name,
    id: u64,
}

/// A look at golden metrics; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    golden: Arc<Golden>,
    id: u64,
    scope: Scope,
    window: Duration,
    pods: bool,
    complete: Arc<Notify>,
    begun: Instant,
    emitted: Option<Instant>,
    /// Workloads of the pods seen, for when they are gone and their last second is not.
    workloads: HashMap<Name, WorkloadRef>,
}

/// What a watcher takes once a second.
#[derive(Debug, Default)]
struct Taken {
    frames: Vec<(Name, Option<WorkloadRef>, ProxyFrame)>,
    silent: Vec<Name>,
    connected: HashSet<Name>,
    senseless: Vec<Senseless>,
}

impl Golden {
    /// Nobody connected, nobody watching, in a mesh of this trust domain.
    pub fn new(metrics: Arc<Metrics>, trust_domain: &str) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), metrics, trust_domain: trust_domain.to_owned() })
    }

    /// A proxy has connected. It takes the place of an older connection of the same pod.
    pub fn link(self: &Arc<Self>, pod: &Name, todo: Arc<Todo>, now: Instant) -> Link {
        let mut inner = self.inner.lock();
        let id = inner.new_id();
        let mut linked = Linked { id, todo, asked: VecDeque::new(), last_ms: 0 };
        for (watch, watching) in inner.watches.iter_mut().filter(|(_, watching)| watching.scope.has_pod(pod)) {
            // Of one that was away for a while, what it counted meanwhile. Of a new one nothing is old.
            let since_ms = watching.told.get(pod).copied();
            let backfill_s = if since_ms.is_some() { limits::WINDOW_S } else { limits::NEW_PROXY_S };
            linked.ask(
                *watch,
                Past { backfill_s, since_ms: since_ms.unwrap_or_default(), until_ms: 0, untold: watching.among },
            );
            watching.feeds.insert((pod.clone(), id), Feed::waiting(now));
        }
        inner.links.insert(pod.clone(), linked);
        self.metrics.proxies.set(i64::try_from(inner.links.len()).unwrap_or(i64::MAX));
        Link { golden: self.clone(), pod: pod.clone(), id }
    }

    /// Begins to watch at `now`, which is `unix_ms`; `None` if too many do. The window ends with the last second that
    /// every proxy must have closed by now: so all of them sum up the same seconds.
    pub fn watch(
        self: &Arc<Self>,
        scope: Scope,
        window_s: u16,
        pods: bool,
        now: Instant,
        unix_ms: u64,
    ) -> Option<Watch> {
        self.look(Look { scope, window_s, pods, among: false, joins: false }, now, unix_ms)
    }

    /// Begins to watch, perhaps as one of several replicas that are asked; see [`Golden::watch`].
    pub fn look(self: &Arc<Self>, look: Look, now: Instant, unix_ms: u64) -> Option<Watch> {
        let Look { scope, window_s, pods, among, joins } = look;
        let until_ms = unix_ms.saturating_sub(limits::CLOSE_WAIT_MS) / 1000 * 1000;
        let window_s = window_s.clamp(1, limits::WINDOW_S);
        let window = Duration::from_secs(window_s.into());
        let mut inner = self.inner.lock();
        if inner.watches.len() >= limits::WATCHES {
            return None;
        }
        let id = inner.new_id();
        let complete = Arc::new(Notify::new());
        let mut watching = Watching {
            scope: scope.clone(),
            among,
            feeds: HashMap::new(),
            told: HashMap::new(),
            complete: complete.clone(),
        };
        let Inner { next, links, watches, departed, .. } = &mut *inner;
        departed.forget(now);
        for (pod, workload, past) in departed.past(until_ms.saturating_sub(u64::from(window_s) * 1000), until_ms) {
            if scope.has(workload) && !joins {
                *next += 1;
                watching.feeds.insert((pod.clone(), *next), Feed::of_departed(workload, past, now));
            }
        }
        for (pod, linked) in links.iter_mut().filter(|(pod, _)| scope.has_pod(pod)) {
            let until_ms = if joins { 0 } else { until_ms };
            linked.ask(id, Past { backfill_s: window_s, since_ms: 0, until_ms, untold: joins });
            watching.feeds.insert((pod.clone(), linked.id), Feed::waiting(now));
        }
        watching.tell_if_complete();
        watches.insert(id, watching);
        self.metrics.observers.inc();
        Some(Watch {
            golden: self.clone(),
            id,
            scope,
            window,
            pods,
            complete,
            begun: now,
            emitted: None,
            workloads: HashMap::new(),
        })
    }

    fn received(&self, pod: &Name, id: u64, mut frame: ProxyFrame, backfill: bool, now: Instant, unix_ms: u64) {
        self.metrics.frames.inc();
        let judged = judge(&frame, unix_ms); // before anybody has to wait for it
        let mut inner = self.inner.lock();
        let Inner { links, watches, suspects, .. } = &mut *inner;
        let Some(linked) = links.get_mut(pod).filter(|linked| linked.id == id) else { return };
        // A few seconds come again for whoever asked for a sum that ends before them.
        let in_order = backfill || frame.at_ms.saturating_add(limits::REPEATED_MS) >= linked.last_ms;
        if !backfill {
            linked.last_ms = frame.at_ms;
        }
        if let Err(what) = judged.and(if in_order { Ok(()) } else { Err(Nonsense::Order) }) {
            self.leave_out(suspects, pod, what, now);
            if !backfill {
                return;
            }
            // Whoever asked for it waits for something, if only nothing.
            frame = ProxyFrame::default();
        }
        let frame = Arc::new(frame);
        if backfill {
            let asker = linked.asked.pop_front().and_then(|watch| watches.get_mut(&watch));
            if let Some(watching) = asker {
                watching.receive(pod, id, &frame, true, now);
                watching.tell_if_complete();
            }
            return;
        }
        for watching in watches.values_mut() {
            watching.receive(pod, id, &frame, false, now);
        }
    }

    /// Counts what made no sense, and remembers who sent it.
    fn leave_out(&self, suspects: &mut Suspects, pod: &Name, what: Nonsense, now: Instant) {
        self.metrics.frame_left_out(what.label());
        tracing::debug!(%pod, what = what.sentence(), "left out what a proxy sent");
        suspects.note(pod, what, now);
    }

    fn parted(&self, link: &Link, workload: WorkloadRef, mut frames: Vec<ProxyFrame>, now: Instant, unix_ms: u64) {
        let mut inner = self.inner.lock();
        frames.retain(|frame| match judge(frame, unix_ms) {
            Ok(()) => true,
            Err(what) => {
                self.leave_out(&mut inner.suspects, &link.pod, what, now);
                false
            }
        });
        if inner.links.get(&link.pod).is_some_and(|linked| linked.id == link.id) {
            inner.departed.keep(link.pod.clone(), workload, frames, now, unix_ms);
        }
    }

    fn take(&self, watch: u64, first: bool, now: Instant) -> Taken {
        let mut inner = self.inner.lock();
        let Inner { links, watches, suspects, .. } = &mut *inner;
        let Some(watching) = watches.get_mut(&watch) else { return Taken::default() };
        let senseless = suspects.named(now, |pod| watching.scope.has_pod(pod));
        let mut taken = Taken { connected: links.keys().cloned().collect(), senseless, ..Taken::default() };
        let is_linked = |(pod, id): &FeedId| links.get(pod).is_some_and(|linked| linked.id == *id);
        for (feed_id, feed) in &mut watching.feeds {
            let linked = is_linked(feed_id);
            if linked && (feed.waits || now.duration_since(feed.heard) > limits::SILENT_AFTER) {
                taken.silent.push(feed_id.0.clone());
            }
            let frame = feed.take(first, linked);
            taken.frames.extend(frame.map(|frame| (feed_id.0.clone(), feed.workload.clone(), frame)));
        }
        watching.feeds.retain(|id, feed| is_linked(id) || !feed.queue.is_empty());
        if watching.told.len() > 2 * links.len() + limits::TOLD_SPARE {
            watching.told.retain(|pod, _| links.contains_key(pod));
        }
        taken
    }

    fn unlink(&self, pod: &Name, id: u64) {
        let mut inner = self.inner.lock();
        if inner.links.get(pod).is_some_and(|linked| linked.id == id) {
            inner.links.remove(pod);
            // Nobody has to wait any longer for what will not come.
            for watching in inner.watches.values_mut() {
                if watching.feeds.get(&(pod.clone(), id)).is_some_and(|feed| feed.waits) {
                    watching.feeds.remove(&(pod.clone(), id));
                    watching.tell_if_complete();
                }
            }
        }
        self.metrics.proxies.set(i64::try_from(inner.links.len()).unwrap_or(i64::MAX));
    }

    fn unwatch(&self, id: u64) {
        let mut inner = self.inner.lock();
        let Inner { links, watches, .. } = &mut *inner;
        let Some(gone) = watches.remove(&id) else { return };
        for (pod, linked) in links.iter_mut().filter(|(pod, _)| gone.scope.has_pod(pod)) {
            if !watches.values().any(|watching| watching.scope.has_pod(pod)) {
                linked.stop();
            }
        }
        self.metrics.observers.dec();
    }
}

impl Inner {
    fn new_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Linked {
    /// Asks for the sum of some of its past, and for every second from then on.
    fn ask(&mut self, watch: u64, past: Past) {
        let Past { backfill_s, since_ms, until_ms, untold } = past;
        if self.asked.len() >= limits::ASKED {
            return; // it has not answered for very long, and counts as silent
        }
        self.asked.push_back(watch);
        self.todo.add(|due| due.orders.push(ControlMessage::Observe { backfill_s, since_ms, until_ms, untold }));
    }

    /// Nobody looks any more. Sums still on their way are nobody's: their askers are gone.
    fn stop(&mut self) {
        self.todo.add(|due| due.orders.push(ControlMessage::StopObserve {}));
    }
}

impl Watching {
    fn tell_if_complete(&self) {
        if self.feeds.values().all(|feed| !feed.waits) {
            self.complete.notify_one();
        }
    }

    /// Takes in what a proxy sent. The sum of its past comes first; seconds that are part of it are not counted again.
    fn receive(&mut self, pod: &Name, id: u64, frame: &Arc<ProxyFrame>, backfill: bool, now: Instant) {
        let Some(feed) = self.feeds.get_mut(&(pod.clone(), id)) else { return };
        let told_ms = self.told.entry(pod.clone()).or_default();
        if backfill || (!feed.waits && frame.at_ms > *told_ms) {
            feed.waits = false;
            *told_ms = frame.at_ms.max(*told_ms);
            feed.push(frame.clone(), now);
        }
    }
}

impl Feed {
    fn waiting(now: Instant) -> Self {
        Self { waits: true, workload: None, queue: VecDeque::new(), last: None, heard: now }
    }

    fn of_departed(workload: &WorkloadRef, past: ProxyFrame, now: Instant) -> Self {
        let queue = VecDeque::from([Arc::new(past)]);
        Self { waits: false, workload: Some(workload.clone()), queue, last: None, heard: now }
    }

    fn push(&mut self, frame: Arc<ProxyFrame>, now: Instant) {
        self.heard = now;
        self.queue.push_back(frame);
        if self.queue.len() > limits::WAITING_FRAMES
            && let (Some(last), Some(before)) = (self.queue.pop_back(), self.queue.pop_back())
        {
            self.queue.push_back(Arc::new(ProxyFrame::sequence([&*before, &*last])));
        }
    }

    /// All there is at first; later one frame, or two when they pile up. A proxy that is late shows what it last had
    /// open, and no traffic; one that is gone has nothing open.
    fn take(&mut self, all: bool, linked: bool) -> Option<ProxyFrame> {
        let count = if all { self.queue.len() } else { 1 + usize::from(self.queue.len() > 2) };
        let frames: Vec<_> = (0..count).filter_map(|_| self.queue.pop_front()).collect();
        match frames.last() {
            Some(last) => {
                self.last = Some(last.clone());
                let mut sum = ProxyFrame::sequence(frames.iter().map(|frame| &**frame));
                if !linked {
                    sum.series.iter_mut().for_each(|(_, series)| series.tcp_open = 0);
                }
                Some(sum)
            }
            None => self.last.as_ref().filter(|_| linked).map(|last| frames::levels(last)),
        }
    }
}

impl Link {
    /// The proxy has sent a frame.
    pub fn receive(&self, frame: ProxyFrame, backfill: bool, now: Instant, unix_ms: u64) {
        self.golden.received(&self.pod, self.id, frame, backfill, now, unix_ms);
    }

    /// The proxy has sent what is no message.
    pub fn babbles(&self, now: Instant) {
        self.golden.leave_out(&mut self.golden.inner.lock().suspects, &self.pod, Nonsense::Message, now);
    }

    /// The proxy ends at `now`, which is `unix_ms`, and leaves its past behind.
    pub fn farewell(&self, workload: WorkloadRef, frames: Vec<ProxyFrame>, now: Instant, unix_ms: u64) {
        self.golden.parted(self, workload, frames, now, unix_ms);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.golden.unlink(&self.pod, self.id);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.golden.unwatch(self.id);
    }
}

impl Watch {
    /// From now on other replicas are asked, too.
    pub fn is_among_others(&self) {
        if let Some(watching) = self.golden.inner.lock().watches.get_mut(&self.id) {
            watching.among = true;
        }
    }

    /// True until the first frame has been given out.
    pub fn is_new(&self) -> bool {
        self.emitted.is_none()
    }

    /// The next frame: at once (as soon as the proxies have answered) the first, then one a second.
    pub async fn next(
        &mut self,
        world: impl FnOnce(&mut dyn FnMut(&World)),
        unix_ms: impl FnOnce() -> u64,
    ) -> GoldenFrame {
        match self.emitted {
            None => {
                let deadline = self.begun + limits::BACKFILL_WAIT;
                // Whoever has not answered by then is reported as silent.
                let _ = tokio::time::timeout_at(deadline, self.complete.notified()).await;
            }
            Some(before) => tokio::time::sleep_until(before + Duration::from_secs(1)).await,
        }
        let now = Instant::now();
        let taken = self.golden.take(self.id, self.emitted.is_none(), now);
        let span_ms = match self.emitted {
            Some(before) => u64::try_from((now - before).as_millis()).unwrap_or(u64::MAX),
            None => {
                let known = taken.frames.iter().map(|(_, _, frame)| frame.span_ms).max();
                known.unwrap_or_else(|| u64::try_from(self.window.as_millis()).unwrap_or(u64::MAX))
            }
        };
        self.emitted = Some(now);
        let mut frame = GoldenFrame { at_ms: unix_ms(), span_ms: span_ms.max(1), ..GoldenFrame::default() };
        world(&mut |world| self.fill(&mut frame, world, &taken));
        frame
    }

    fn fill(&mut self, frame: &mut GoldenFrame, world: &World, taken: &Taken) {
        for (pod, departed, _) in &taken.frames {
            if let Some(workload) = world.pod(pod).map(|known| &known.workload).or(departed.as_ref()) {
                self.workloads.insert(pod.clone(), workload.clone());
            }
        }
        if self.workloads.len() > taken.frames.len() {
            let seen: HashSet<&Name> = taken.frames.iter().map(|(pod, _, _)| pod).collect();
            self.workloads.retain(|pod, _| seen.contains(pod));
        }
        let of = |pod: &Name| match self.workloads.get(pod).or_else(|| world.pod(pod).map(|known| &known.workload)) {
            Some(known) => known.clone(),
            None => WorkloadRef::new(&pod.namespace, "pod", &pod.name),
        };
        let parts = taken.frames.iter().map(|(pod, _, frame)| Part { workload: of(pod), pod: &pod.name, frame });
        frame.endpoints =
            frames::endpoints(taken.frames.iter().map(|(_, _, frame)| frame), |workload| self.scope.has(workload));
        frame.series = frames::merge(parts.filter(|part| self.scope.has(&part.workload)), self.pods);
        let silent = taken.silent.iter().filter(|pod| self.scope.has(&of(pod))).count();
        frame.silent_proxies = u32::try_from(silent).unwrap_or(u32::MAX);
        frame.senseless = taken.senseless.clone();
        frame.workloads = self.statuses(world, &taken.connected);
    }

    /// How much of each workload of the scope runs, is meshed and is connected.
    fn statuses(&self, world: &World, connected: &HashSet<Name>) -> Vec<WorkloadStatus> {
        let mut sums: BTreeMap<&WorkloadRef, Sum> = BTreeMap::new();
        let runs = |pod: &PodView| pod.running && !pod.deleted && self.scope.has(&pod.workload);
        for (name, pod) in world.pods().filter(|(_, pod)| runs(pod)) {
            let sum = sums.entry(&pod.workload).or_default();
            sum.pods += 1;
            sum.meshed += u32::from(pod.is_meshed());
            sum.connected += u32::from(pod.is_meshed() && connected.contains(name));
            let services = pod.ips.iter().flat_map(|ip| world.slices_with(*ip)).map(|(_, service)| service.name);
            sum.services.extend(services);
            sum.accounts.extend(pod.is_meshed().then_some(pod.service_account.as_str()));
            if self.pods {
                sum.list.push(PodStatus { name: name.name.clone(), meshed: pod.is_meshed() });
            }
        }
        let identity = |namespace: &str, account: &&str| SpiffeId::new(&self.golden.trust_domain, namespace, account);
        sums.into_iter()
            .map(|(workload, sum)| WorkloadStatus {
                workload: workload.clone(),
                pods: sum.pods,
                meshed_pods: sum.meshed,
                connected: sum.connected,
                services: sum.services.into_iter().collect(),
                identities: sum.accounts.iter().map(|account| identity(&workload.namespace, account)).collect(),
                pod_list: sum.list,
            })
            .collect()
    }
}

/// A workload's pods, added up.
#[derive(Default)]
struct Sum<'a> {
    pods: u32,
    meshed: u32,
    connected: u32,
    services: BTreeSet<String>,
    accounts: BTreeSet<&'a str>,
    list: Vec<PodStatus>,
}

#[cfg(test)]
pub(crate) mod tests;
