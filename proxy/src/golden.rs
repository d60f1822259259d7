//! Golden metrics of this proxy: one cell of counters per series, a ring of one-second frames of what changed, and
//! cumulative totals for `/metrics`.
//!
//! Everything is bounded: past the limits traffic is counted under an explicit `other`, never dropped. Names are
//! interned when a connection or endpoint appears ([`Golden::scope`]), so that counting a request clones no string.

use crate::limits;
use mesh_api::golden::{Carried, Direction, ProxyFrame, Series, SeriesKey, TlsStatus, is_success};
use mesh_api::{Histogram, MeshError, ServiceRef, WorkloadRef};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Ticks after which a series without traffic may be forgotten once room gets short.
const STALE_TICKS: u64 = 600;

/// The part of a series key that is known before a request arrives: who is at the other end, and where.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    direction: Direction,
    peer: WorkloadRef,
    service: Option<ServiceRef>,
    port: u16,
}

/// The part of a series key that a request or connection brings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// What is carried.
    pub carried: Carried,
    /// How the leg between the pods is protected.
    pub tls: TlsStatus,
    /// Route; empty for TCP.
    pub route: Arc<str>,
    /// Method, one of a bounded set; empty for TCP and gRPC.
    pub method: &'static str,
}

impl Scope {
    /// The other end: the callee when outbound, the caller when inbound.
    pub fn peer(&self) -> &WorkloadRef {
        &self.peer
    }

    /// The Service called.
    pub fn service(&self) -> Option<&ServiceRef> {
        self.service.as_ref()
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// gRPC status, if there was one.
    pub grpc_status: Option<u16>,
    /// Error the mesh answered.
    pub error: Option<MeshError>,
    /// True if the response came to its regular end.
    pub complete: bool,
    /// Second and further attempts.
    pub retries: u32,
    /// From the request's head to the response's end.
    pub latency: Duration,
    /// From the request's head to the response's head.
    pub first_byte: Option<Duration>,
}

/// The label set under which a finished request is counted on `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// gRPC status, if there was one.
    pub grpc_status: Option<u16>,
    /// Error the mesh answered.
    pub error: Option<MeshError>,
}

/// Everything counted in a series since it appeared.
#[derive(Debug, Default)]
pub struct Totals {
    /// Requests by outcome.
    pub outcomes: Vec<(Outcome, u64)>,
    /// Second and further attempts.
    pub retries: u64,
    /// Durations of requests.
    pub latency: Histogram,
    /// Connections open now.
    pub tcp_open: u64,
    /// Connections ever opened.
    pub tcp_opened: u64,
    /// Bytes from the client to the server.
    pub tcp_read_bytes: u64,
    /// Bytes from the server to the client.
    pub tcp_write_bytes: u64,
}

/// The counters of one series.
#[derive(Debug)]
pub struct Cell {
    scope: Arc<Scope>,
    subject: Subject,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    recent: Series,
    changed: bool,
    changed_tick: u64,
    totals: Totals,
}

/// All series of this proxy.
#[derive(Debug)]
pub struct Golden {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    scopes: HashMap<Arc<Scope>, ()>,
    other: Arc<Scope>,
    series: HashMap<SeriesId, Arc<Cell>>,
    ring: VecDeque<Frame>,
    ring_series: usize,
    tick: u64,
    ticked_at_ms: u64,
}

/// A scope is interned, so its address identifies it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct SeriesId {
    scope: usize,
    subject: Subject,
}

#[derive(Debug)]
struct Frame {
    span_ms: u64,
    series: Vec<(Arc<Cell>, Series)>,
}

impl Cell {
    /// The full key, as control and CLI see it.
    pub fn key(&self) -> SeriesKey {
        SeriesKey {
            direction: self.scope.direction,
            carried: self.subject.carried,
            peer: self.scope.peer.clone(),
            service: self.scope.service.clone(),
            port: self.scope.port,
            route: self.subject.route.as_ref().to_owned(),
            method: self.subject.method.to_owned(),
            tls: self.subject.tls,
        }
    }

    /// True for what golden metrics are about; health probes are not.
    fn is_traffic(&self) -> bool {
        &*self.subject.route != crate::route::PROBE
    }

    /// Counts a finished request.
    pub fn finish(&self, finished: &Finished) {
        let latency_us = micros(finished.latency);
        self.change(|recent, totals| {
            recent.requests += 1;
            recent.successes += u64::from(is_success(finished.status, finished.grpc_status, finished.complete));
            recent.retries += u64::from(finished.retries);
            recent.timeouts += u64::from(finished.error == Some(MeshError::ConnectTimeout));
            if let Some(status) = finished.status {
                *recent.statuses.entry(status).or_default() += 1;
            }
            if let Some(status) = finished.grpc_status {
                *recent.grpc_statuses.entry(status).or_default() += 1;
            }
            if let Some(error) = finished.error {
                *recent.errors.entry(error).or_default() += 1;
            }
            recent.latency.record_us(latency_us);
            if let Some(first_byte) = finished.first_byte {
                recent.first_byte.record_us(micros(first_byte));
            }
            totals.retries += u64::from(finished.retries);
            totals.latency.record_us(latency_us);
            totals.count(Outcome { status: finished.status, grpc_status: finished.grpc_status, error: finished.error });
        });
    }

    /// Counts an opened connection.
    pub fn tcp_opened(&self) {
        self.change(|recent, totals| {
            recent.tcp_opened += 1;
            totals.tcp_opened += 1;
            totals.tcp_open += 1;
        });
    }

    /// Counts bytes of an open connection.
    pub fn tcp_bytes(&self, read: u64, written: u64) {
        self.change(|recent, totals| {
            recent.tcp_read_bytes += read;
            recent.tcp_write_bytes += written;
            totals.tcp_read_bytes += read;
            totals.tcp_write_bytes += written;
        });
    }

    /// Counts a closed connection.
    pub fn tcp_closed(&self, error: Option<MeshError>) {
        self.change(|recent, totals| {
            recent.tcp_closed += 1;
            totals.tcp_open = totals.tcp_open.saturating_sub(1);
            if let Some(error) = error {
                *recent.errors.entry(error).or_default() += 1;
                totals.count(Outcome { status: None, grpc_status: None, error: Some(error) });
            }
        });
    }

    fn change(&self, with: impl FnOnce(&mut Series, &mut Totals)) {
        let mut counts = self.counts.lock();
        counts.changed = true;
        let Counts { recent, totals, .. } = &mut *counts;
        with(recent, totals);
    }
}

impl Totals {
    fn count(&mut self, outcome: Outcome) {
        match self.outcomes.iter_mut().find(|(o, _)| *o == outcome) {
            Some((_, n)) => *n += 1,
            None => self.outcomes.push((outcome, 1)),
        }
    }
}

impl Golden {
    /// No traffic yet; `now_ms` is Unix time.
    pub fn new(now_ms: u64) -> Self {
        let other = Arc::new(Scope {
            direction: Direction::Outbound,
            peer: WorkloadRef::new("", "other", "other"),
            service: None,
            port: 0,
        });
        let inner = Inner {
            scopes: HashMap::new(),
            other,
            series: HashMap::new(),
            ring: VecDeque::new(),
            ring_series: 0,
            tick: 0,
            ticked_at_ms: now_ms,
        };
        Self { inner: Mutex::new(inner) }
    }

    /// The shared name of a peer.
    pub fn scope(
        &self,
        direction: Direction,
        peer: &WorkloadRef,
        service: Option<&ServiceRef>,
        port: u16,
    ) -> Arc<Scope> {
        let wanted = Scope { direction, peer: peer.clone(), service: service.cloned(), port };
        let mut inner = self.inner.lock();
        if let Some((scope, ())) = inner.scopes.get_key_value(&wanted) {
            return scope.clone();
        }
        let scope = if inner.scopes.len() < limits::MAX_SCOPES {
            Arc::new(wanted)
        } else {
            // One `other` per direction, so that the two sides never mix.
            let other = Scope { direction, peer: inner.other.peer.clone(), service: None, port: 0 };
            match inner.scopes.get_key_value(&other) {
                Some((scope, ())) => return scope.clone(),
                None => Arc::new(other),
            }
        };
        inner.scopes.insert(scope.clone(), ());
        scope
    }

    /// The counters of a subject within a scope.
    pub fn cell(&self, scope: &Arc<Scope>, subject: Subject) -> Arc<Cell> {
        let mut inner = self.inner.lock();
        let id = SeriesId { scope: Arc::as_ptr(scope) as usize, subject };
        if let Some(cell) = inner.series.get(&id) {
            return cell.clone();
        }
        let (scope, subject) = if inner.series.len() < limits::MAX_SERIES {
            (scope.clone(), id.subject)
        } else {
            let Subject { carried, tls, .. } = id.subject;
            (inner.other.clone(), Subject { carried, tls, route: Arc::from(crate::route::OTHER), method: "" })
        };
        let id = SeriesId { scope: Arc::as_ptr(&scope) as usize, subject: subject.clone() };
        let cell = Arc::new(Cell { scope, subject, counts: Mutex::default() });
        inner.series.entry(id).or_insert(cell).clone()
    }

    /// Closes the frame of the span that ends now, remembers it, and returns it if somebody looks.
    pub fn tick(&self, now_ms: u64, looking: bool) -> ProxyFrame {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        inner.tick += 1;
        let span_ms = now_ms.saturating_sub(inner.ticked_at_ms);
        inner.ticked_at_ms = now_ms;
        let mut frame = ProxyFrame { at_ms: now_ms, span_ms, series: Vec::new() };
        let mut remembered = Frame { span_ms, series: Vec::new() };
        for cell in inner.series.values().filter(|cell| cell.is_traffic()) {
            let mut counts = cell.counts.lock();
            if !counts.changed && counts.totals.tcp_open == 0 {
                continue;
            }
            let mut recent = std::mem::take(&mut counts.recent);
            recent.tcp_open = counts.totals.tcp_open;
            if std::mem::take(&mut counts.changed) {
                counts.changed_tick = inner.tick;
                remembered.series.push((cell.clone(), recent.clone()));
            }
            if looking {
                frame.series.push((cell.key(), recent));
            }
        }
        inner.remember(remembered);
        inner.forget_stale();
        frame
    }

    /// The sum of the last `seconds`, as far as remembered.
    pub fn backfill(&self, now_ms: u64, seconds: u16) -> ProxyFrame {
        self.tick(now_ms, false);
        let inner = self.inner.lock();
        let mut span_ms = 0;
        let mut sums: HashMap<*const Cell, (Arc<Cell>, Series)> = HashMap::new();
        let wanted = inner.ring.iter().rev().take_while(|frame| {
            let within = span_ms < u64::from(seconds) * 1000;
            span_ms += if within { frame.span_ms } else { 0 };
            within
        });
        for (cell, series) in wanted.flat_map(|frame| &frame.series) {
            let sum = sums.entry(Arc::as_ptr(cell)).or_insert_with(|| (cell.clone(), Series::default()));
            sum.1.merge(series, false);
        }
        for cell in inner.series.values().filter(|cell| cell.is_traffic()) {
            let open = cell.counts.lock().totals.tcp_open;
            if open > 0 || sums.contains_key(&Arc::as_ptr(cell)) {
                let sum = sums.entry(Arc::as_ptr(cell)).or_insert_with(|| (cell.clone(), Series::default()));
                sum.1.tcp_open = open;
            }
        }
        let series = sums.into_values().map(|(cell, series)| (cell.key(), series)).collect();
        ProxyFrame { at_ms: now_ms, span_ms, series }
    }

    /// Shows every series with its totals.
    pub fn each(&self, mut show: impl FnMut(&SeriesKey, &Totals)) {
        let cells: Vec<_> = self.inner.lock().series.values().cloned().collect();
        for cell in cells {
            show(&cell.key(), &cell.counts.lock().totals);
        }
    }
}

impl Inner {
    fn remember(&mut self, frame: Frame) {
        self.ring_series += frame.series.len();
        self.ring.push_back(frame);
        while self.ring.len() > limits::RING_FRAMES || (self.ring_series > limits::RING_SERIES && self.ring.len() > 1) {
            if let Some(oldest) = self.ring.pop_front() {
                self.ring_series -= oldest.series.len();
            }
        }
    }

    /// Makes room once half of it is used: series without traffic for long, then scopes nobody holds.
    fn forget_stale(&mut self) {
        if self.series.len() > limits::MAX_SERIES / 2 {
            let tick = self.tick;
            self.series.retain(|_, cell| {
                let counts = cell.counts.lock();
                counts.changed || counts.totals.tcp_open > 0 || tick - counts.changed_tick < STALE_TICKS
            });
        }
        if self.scopes.len() > limits::MAX_SCOPES / 2 {
            self.scopes.retain(|scope, ()| Arc::strong_count(scope) > 1);
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(route: &str) -> Subject {
        Subject { carried: Carried::Http, tls: TlsStatus::Mutual, route: Arc::from(route), method: "GET" }
    }

    fn tcp() -> Subject {
        Subject { carried: Carried::Tcp, tls: TlsStatus::Plain, route: Arc::from(""), method: "" }
    }

    fn finished(status: u16) -> Finished {
        Finished {
            status: Some(status),
            grpc_status: None,
            error: None,
            complete: true,
            retries: 0,
            latency: Duration::from_millis(5),
            first_byte: Some(Duration::from_millis(4)),
        }
    }

    fn scope(golden: &Golden, name: &str) -> Arc<Scope> {
        golden.scope(Direction::Outbound, &WorkloadRef::new("shop", "deployment", name), None, 80)
    }

    #[test]
    fn a_frame_holds_what_changed_and_the_ring_sums_up() {
        let golden = Golden::new(0);
        let web = scope(&golden, "web");
        golden.cell(&web, subject("/a")).finish(&finished(200));
        golden.cell(&web, subject("/a")).finish(&finished(500));
        let frame = golden.tick(1000, true);
        assert_eq!((frame.span_ms, frame.series.len()), (1000, 1));
        let (key, series) = &frame.series[0];
        assert_eq!((key.route.as_str(), series.requests, series.successes), ("/a", 2, 1));
        assert_eq!(series.latency.count(), 2);
        assert!(golden.tick(2000, true).series.is_empty());
        golden.cell(&web, subject("/a")).finish(&finished(200));
        let sum = golden.backfill(2500, 10);
        assert_eq!((sum.span_ms, sum.series[0].1.requests), (2500, 3));
        let recent = golden.backfill(2600, 1);
        assert_eq!((recent.span_ms, recent.series[0].1.requests), (1600, 1));
    }

    #[test]
    fn open_connections_show_in_every_frame() {
        let golden = Golden::new(0);
        let cell = golden.cell(&scope(&golden, "db"), tcp());
        cell.tcp_opened();
        cell.tcp_bytes(10, 20);
        assert_eq!(golden.tick(1000, true).series[0].1.tcp_open, 1);
        let quiet = golden.tick(2000, true);
        assert_eq!((quiet.series[0].1.tcp_open, quiet.series[0].1.tcp_read_bytes), (1, 0));
        assert_eq!(golden.backfill(2000, 60).series[0].1.tcp_write_bytes, 20);
        cell.tcp_closed(None);
        assert_eq!(golden.tick(3000, true).series[0].1.tcp_open, 0);
        assert!(golden.tick(4000, true).series.is_empty());
    }

    #[test]
    fn probes_are_counted_but_not_shown_as_traffic() {
        let golden = Golden::new(0);
        golden.cell(&scope(&golden, "web"), subject(crate::route::PROBE)).finish(&finished(200));
        assert!(golden.tick(1000, true).series.is_empty() && golden.backfill(1500, 60).series.is_empty());
        let mut seen = 0;
        golden.each(|_, totals| seen += totals.latency.count());
        assert_eq!(seen, 1);
    }

    #[test]
    fn past_the_limits_nothing_is_lost() {
        let golden = Golden::new(0);
        let n = limits::MAX_SERIES + 50;
        let web = scope(&golden, "web");
        for i in 0..n {
            golden.cell(&web, subject(&format!("/{i}"))).finish(&finished(200));
        }
        let frame = golden.tick(1000, true);
        assert_eq!(frame.series.iter().map(|(_, s)| s.requests).sum::<u64>(), n as u64);
        let other = frame.series.iter().find(|(k, _)| k.peer.kind == "other").unwrap();
        assert_eq!(other.1.requests, 50);
        let scopes: Vec<_> = (0..limits::MAX_SCOPES + 50).map(|i| scope(&golden, &i.to_string())).collect();
        assert!(Arc::ptr_eq(&scopes[limits::MAX_SCOPES + 1], &scopes[limits::MAX_SCOPES + 2]));
    }

    #[test]
    fn the_ring_forgets_the_oldest_second() {
        let golden = Golden::new(0);
        let web = scope(&golden, "web");
        for second in 1..=100 {
            golden.cell(&web, subject("/")).finish(&finished(200));
            golden.tick(second * 1000, true);
        }
        let sum = golden.backfill(100_000, 60);
        // The extra tick of the backfill itself takes the place of one second.
        assert_eq!(sum.series[0].1.requests, 59);
    }
}
