//! Golden metrics on their way from the proxies to those who look.
//!
//! Proxies are asked for frames only while somebody watches them. Each frame reaches every watcher exactly once: the
//! first answer of a proxy sums up its past, every later one is a second of its own. Seconds of different proxies do
//! not end at the same time, so each waits in a short queue and a watcher takes one of each proxy a second.

pub mod frames;

use crate::limits;
use crate::metrics::Metrics;
use crate::subscriptions::Todo;
use crate::world::World;
use crate::world::view::Name;
use frames::{Memory, News, Part, sequence};
use mesh_api::WorkloadRef;
use mesh_api::golden::{GoldenFrame, ProxyFrame, WorkloadStatus};
use mesh_api::wire::ControlMessage;
use parking_lot::Mutex;
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

/// Connected proxies and those who watch them.
#[derive(Debug)]
pub struct Golden {
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
    memory: Memory,
}

/// A watcher.
#[derive(Debug)]
struct Watching {
    scope: Scope,
    window_ms: u64,
    feeds: HashMap<Name, Feed>,
    complete: Arc<Notify>,
}

/// What one proxy has sent to one watcher.
#[derive(Debug)]
struct Feed {
    /// True until the sum of the past is there.
    waits: bool,
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
}

/// What a watcher takes once a second.
#[derive(Debug, Default)]
struct Taken {
    frames: Vec<(Name, ProxyFrame)>,
    silent: Vec<Name>,
    connected: HashSet<Name>,
}

impl Golden {
    /// Nobody connected, nobody watching.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), metrics })
    }

    /// A proxy has connected. It takes the place of an older connection of the same pod.
    pub fn link(self: &Arc<Self>, pod: &Name, todo: Arc<Todo>, now: Instant) -> Link {
        let mut inner = self.inner.lock();
        let id = inner.new_id();
        let mut linked = Linked { id, todo, memory: Memory::default() };
        for watching in inner.watches.values_mut().filter(|watching| watching.scope.has_pod(pod)) {
            // Its past is not wanted: what it counted before it came may already have been told.
            linked.observe(&[0]);
            watching.feeds.insert(pod.clone(), Feed::waiting(now));
        }
        inner.links.insert(pod.clone(), linked);
        self.metrics.proxies.set(i64::try_from(inner.links.len()).unwrap_or(i64::MAX));
        Link { golden: self.clone(), pod: pod.clone(), id }
    }

    /// Begins to watch; `None` if too many do.
    pub fn watch(self: &Arc<Self>, scope: Scope, window_s: u16, pods: bool, now: Instant) -> Option<Watch> {
        let window_s = window_s.clamp(1, limits::WINDOW_S);
        let window = Duration::from_secs(window_s.into());
        let mut inner = self.inner.lock();
        if inner.watches.len() >= limits::WATCHES {
            return None;
        }
        let id = inner.new_id();
        let complete = Arc::new(Notify::new());
        let window_ms = u64::from(window_s) * 1000;
        let mut watching =
            Watching { scope: scope.clone(), window_ms, feeds: HashMap::new(), complete: complete.clone() };
        for (pod, linked) in inner.links.iter_mut().filter(|(pod, _)| scope.has_pod(pod)) {
            let mut feed = Feed::waiting(now);
            if !linked.memory.is_observed() {
                // The whole minute too, for those who come later and want to see more.
                let windows = [limits::WINDOW_S, window_s];
                linked.observe(if window_s == limits::WINDOW_S { &windows[1..] } else { &windows });
            } else if linked.memory.is_complete() {
                feed.begin(linked.memory.past(window_ms), now);
            }
            watching.feeds.insert(pod.clone(), feed);
        }
        watching.tell_if_complete();
        inner.watches.insert(id, watching);
        self.metrics.observers.inc();
        Some(Watch { golden: self.clone(), id, scope, window, pods, complete, begun: now, emitted: None })
    }

    fn received(&self, pod: &Name, id: u64, frame: ProxyFrame, backfill: bool, now: Instant) {
        self.metrics.frames.inc();
        let mut inner = self.inner.lock();
        let Inner { links, watches, .. } = &mut *inner;
        let Some(linked) = links.get_mut(pod).filter(|linked| linked.id == id) else { return };
        let news = linked.memory.receive(frame, backfill);
        for watching in watches.values_mut() {
            let window_ms = watching.window_ms;
            let Some(feed) = watching.feeds.get_mut(pod) else { continue };
            match &news {
                News::Nothing => {}
                News::Complete if feed.waits => {
                    feed.begin(linked.memory.past(window_ms), now);
                    watching.tell_if_complete();
                }
                News::Complete => {}
                News::Second(frame) if !feed.waits => feed.push(frame.clone(), now),
                News::Second(_) => {}
            }
        }
    }

    fn take(&self, watch: u64, first: bool, now: Instant) -> Taken {
        let mut inner = self.inner.lock();
        let Inner { links, watches, .. } = &mut *inner;
        let Some(watching) = watches.get_mut(&watch) else { return Taken::default() };
        let mut taken = Taken { connected: links.keys().cloned().collect(), ..Taken::default() };
        for (pod, feed) in &mut watching.feeds {
            if feed.waits || now.duration_since(feed.heard) > limits::SILENT_AFTER {
                taken.silent.push(pod.clone());
            }
            taken.frames.extend(feed.take(first).map(|frame| (pod.clone(), frame)));
        }
        taken.silent.retain(|pod| taken.connected.contains(pod));
        watching.feeds.retain(|pod, feed| links.contains_key(pod) || !feed.queue.is_empty());
        taken
    }

    fn unlink(&self, pod: &Name, id: u64) {
        let mut inner = self.inner.lock();
        if inner.links.get(pod).is_some_and(|linked| linked.id == id) {
            inner.links.remove(pod);
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
    fn observe(&mut self, windows: &[u16]) {
        if self.memory.is_observed() {
            return;
        }
        self.memory.begin(windows.len());
        self.todo.add(|due| {
            due.orders.extend(windows.iter().map(|&backfill_s| ControlMessage::Observe { backfill_s }));
        });
    }

    fn stop(&mut self) {
        self.memory = Memory::default();
        self.todo.add(|due| {
            // Orders not yet given are void; were some given, this one ends them.
            due.orders.clear();
            due.orders.push(ControlMessage::StopObserve {});
        });
    }
}

impl Watching {
    fn tell_if_complete(&self) {
        if self.feeds.values().all(|feed| !feed.waits) {
            self.complete.notify_one();
        }
    }
}

impl Feed {
    fn waiting(now: Instant) -> Self {
        Self { waits: true, queue: VecDeque::new(), last: None, heard: now }
    }

    fn begin(&mut self, past: ProxyFrame, now: Instant) {
        self.waits = false;
        self.push(Arc::new(past), now);
    }

    fn push(&mut self, frame: Arc<ProxyFrame>, now: Instant) {
        self.heard = now;
        self.queue.push_back(frame);
        if self.queue.len() > limits::WAITING_FRAMES
            && let (Some(last), Some(before)) = (self.queue.pop_back(), self.queue.pop_back())
        {
            self.queue.push_back(Arc::new(sequence([&*before, &*last])));
        }
    }

    /// All there is at first; later one frame, or two when they pile up. A proxy that is late shows what it last had
    /// open, and no traffic.
    fn take(&mut self, all: bool) -> Option<ProxyFrame> {
        let count = if all { self.queue.len() } else { 1 + usize::from(self.queue.len() > 2) };
        let frames: Vec<_> = (0..count).filter_map(|_| self.queue.pop_front()).collect();
        match frames.last() {
            Some(last) => {
                self.last = Some(last.clone());
                Some(sequence(frames.iter().map(|frame| &**frame)))
            }
            None => self.last.as_ref().map(|last| frames::levels(last)),
        }
    }
}

impl Link {
    /// The proxy has sent a frame.
    pub fn receive(&self, frame: ProxyFrame, backfill: bool, now: Instant) {
        self.golden.received(&self.pod, self.id, frame, backfill, now);
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
                let known = taken.frames.iter().map(|(_, frame)| frame.span_ms).max();
                known.unwrap_or_else(|| u64::try_from(self.window.as_millis()).unwrap_or(u64::MAX))
            }
        };
        self.emitted = Some(now);
        let mut frame = GoldenFrame { at_ms: unix_ms(), span_ms: span_ms.max(1), ..GoldenFrame::default() };
        world(&mut |world| self.fill(&mut frame, world, &taken));
        frame
    }

    fn fill(&self, frame: &mut GoldenFrame, world: &World, taken: &Taken) {
        let of = |pod: &Name| match world.pod(pod) {
            Some(known) => known.workload.clone(),
            None => WorkloadRef::new(&pod.namespace, "pod", &pod.name),
        };
        let parts = taken.frames.iter().map(|(pod, frame)| Part { workload: of(pod), pod: &pod.name, frame });
        frame.series = frames::merge(parts.filter(|part| self.scope.has(&part.workload)), self.pods);
        let silent = taken.silent.iter().filter(|pod| self.scope.has(&of(pod))).count();
        frame.silent_proxies = u32::try_from(silent).unwrap_or(u32::MAX);
        frame.workloads = statuses(world, &self.scope, &taken.connected);
    }
}

/// How much of each workload of a scope runs, is meshed and is connected.
fn statuses(world: &World, scope: &Scope, connected: &HashSet<Name>) -> Vec<WorkloadStatus> {
    #[derive(Default)]
    struct Sum {
        pods: u32,
        meshed: u32,
        connected: u32,
        services: BTreeSet<String>,
    }
    let mut sums: BTreeMap<&WorkloadRef, Sum> = BTreeMap::new();
    for (name, pod) in world.pods().filter(|(_, pod)| pod.running && !pod.deleted && scope.has(&pod.workload)) {
        let sum = sums.entry(&pod.workload).or_default();
        sum.pods += 1;
        sum.meshed += u32::from(pod.is_meshed());
        sum.connected += u32::from(pod.is_meshed() && connected.contains(name));
        let services = pod.ips.iter().flat_map(|ip| world.slices_with(*ip)).map(|(_, service)| service.name);
        sum.services.extend(services);
    }
    sums.into_iter()
        .map(|(workload, sum)| WorkloadStatus {
            workload: workload.clone(),
            pods: sum.pods,
            meshed_pods: sum.meshed,
            connected: sum.connected,
            services: sum.services.into_iter().collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests;
