//! Golden metrics of this proxy: one cell of counters per series, a [`ring`] of the last ten minutes' frames of what
//! changed, and cumulative totals for `/metrics`.
//!
//! Everything is bounded: past the limits traffic is counted under an explicit `other`, never dropped. Names are
//! interned when a connection or endpoint appears ([`Golden::scope`]), so that counting a request clones no string.

pub mod ring;

use crate::limits;
use crate::metrics::bucket_at;
use crate::metrics::text::Exemplar;
use mesh_api::golden::{Carried, Direction, Ending, ProxyFrame, Series, SeriesKey, TlsStatus, is_success};
use mesh_api::{Histogram, MeshError, ServiceRef, WorkloadRef};
use parking_lot::Mutex;
use ring::{Past, Ring};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

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
    /// Attempts made; 0 if no endpoint was asked.
    pub attempts: u32,
    /// From the last attempt's start to its end.
    pub last_attempt: Duration,
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
    /// Those of them that went well.
    pub retry_successes: u64,
    /// Attempts that went well.
    pub attempt_successes: u64,
    /// Attempts that did not.
    pub attempt_failures: u64,
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
    /// How connections were closed.
    pub tcp_closes: BTreeMap<Ending, u64>,
    /// How long closed connections had been open.
    pub tcp_duration: Histogram,
    /// Traced requests, the last of each classic bucket.
    pub exemplars: Vec<Exemplar>,
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
    changed_at_ms: u64,
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
    ring: Ring<Cell>,
    ticked_at_ms: u64,
    /// End of the last second that somebody was told of.
    told_ms: u64,
}

/// A scope is interned, so its address identifies it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct SeriesId {
    scope: usize,
    subject: Subject,
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

    /// What is counted here.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// True for what golden metrics are about; health probes are not.
    fn is_traffic(&self) -> bool {
        &*self.subject.route != crate::learned::PROBE
    }

    /// Counts a finished request.
    pub fn finish(&self, finished: &Finished) {
        let latency_us = micros(finished.latency);
        let well = is_success(finished.status, finished.grpc_status, finished.complete);
        let retries = u64::from(finished.attempts.saturating_sub(1));
        self.change(|recent, totals| {
            recent.requests += 1;
            recent.successes += u64::from(well);
            recent.retries += retries;
            recent.timeouts += u64::from(finished.error.is_some_and(MeshError::is_timeout));
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
            if finished.attempts != 1 {
                let differing = recent.attempts.get_or_insert_default();
                differing.requests += 1;
                differing.request_successes += u64::from(well);
                differing.request_latency.record_us(latency_us);
                if finished.attempts > 1 {
                    differing.attempts += 1;
                    differing.successes += u64::from(well);
                    differing.latency.record_us(micros(finished.last_attempt));
                }
            }
            totals.retries += retries;
            totals.retry_successes += u64::from(well && retries > 0);
            if finished.attempts > 0 {
                *totals.attempts(well) += 1;
            }
            totals.latency.record_us(latency_us);
            totals.count(Outcome { status: finished.status, grpc_status: finished.grpc_status, error: finished.error });
        });
    }

    /// Remembers a traced request that has finished as one that stands for others.
    pub fn exemplar(&self, exemplar: Exemplar) {
        let exemplars = &mut self.counts.lock().totals.exemplars;
        let same = |other: &&mut Exemplar| bucket_at(other.seconds) == bucket_at(exemplar.seconds);
        match exemplars.iter_mut().find(same) {
            Some(older) => *older = exemplar,
            None => exemplars.push(exemplar),
        }
    }

    /// Counts an attempt after which the request was sent again.
    pub fn attempt_failed(&self, took: Duration) {
        self.change(|recent, totals| {
            let differing = recent.attempts.get_or_insert_default();
            differing.attempts += 1;
            differing.latency.record_us(micros(took));
            *totals.attempts(false) += 1;
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
    pub fn tcp_closed(&self, how: Ending, error: Option<MeshError>, open_for: Duration) {
        let open_us = micros(open_for);
        self.change(|recent, totals| {
            recent.tcp_closed += 1;
            *recent.tcp_closes.entry(how).or_default() += 1;
            recent.tcp_duration.record_us(open_us);
            totals.tcp_open = totals.tcp_open.saturating_sub(1);
            *totals.tcp_closes.entry(how).or_default() += 1;
            totals.tcp_duration.record_us(open_us);
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
    fn attempts(&mut self, well: bool) -> &mut u64 {
        if well { &mut self.attempt_successes } else { &mut self.attempt_failures }
    }

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
            ring: Ring::default(),
            ticked_at_ms: now_ms,
            told_ms: 0,
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
            (inner.other.clone(), Subject { carried, tls, route: Arc::from(crate::learned::OTHER), method: "" })
        };
        let id = SeriesId { scope: Arc::as_ptr(&scope) as usize, subject: subject.clone() };
        let cell = Arc::new(Cell { scope, subject, counts: Mutex::default() });
        inner.series.entry(id).or_insert(cell).clone()
    }

    /// Closes the frame of the span that ends now, remembers it, forgets series without traffic for long, and returns
    /// the frame (empty if nobody is `looking`).
    pub fn tick(&self, now_ms: u64, looking: bool) -> ProxyFrame {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let span_ms = now_ms.saturating_sub(inner.ticked_at_ms);
        inner.ticked_at_ms = now_ms;
        if looking {
            inner.told_ms = now_ms;
        }
        let mut frame = ProxyFrame { at_ms: now_ms, span_ms, ..ProxyFrame::default() };
        let mut remembered = Past { at_ms: now_ms, span_ms, series: Vec::new() };
        inner.series.retain(|_, cell| {
            let mut counts = cell.counts.lock();
            if std::mem::take(&mut counts.changed) {
                counts.changed_at_ms = now_ms;
                let mut recent = std::mem::take(&mut counts.recent);
                recent.tcp_open = counts.totals.tcp_open;
                if cell.is_traffic() {
                    if looking {
                        frame.series.push((cell.key(), recent.clone()));
                    }
                    remembered.series.push((cell.clone(), recent));
                }
            } else if counts.totals.tcp_open > 0 {
                let open = Series { tcp_open: counts.totals.tcp_open, ..Series::default() };
                if looking && cell.is_traffic() {
                    frame.series.push((cell.key(), open));
                }
            } else {
                return now_ms.saturating_sub(counts.changed_at_ms) < limits::SERIES_IDLE_MS;
            }
            true
        });
        inner.ring.remember(remembered);
        if inner.scopes.len() > limits::MAX_SCOPES / 2 {
            inner.scopes.retain(|scope, ()| Arc::strong_count(scope) > 1);
        }
        frame
    }

    /// The sum of `seconds` up to `until_ms` (0: the last tick), as far as remembered and later than `since_ms`, and the
    /// frames that ended after it.
    pub fn backfill(&self, seconds: u16, since_ms: u64, until_ms: u64) -> (ProxyFrame, Vec<ProxyFrame>) {
        let mut inner = self.inner.lock();
        inner.told_ms = inner.ticked_at_ms;
        let at_ms = if until_ms == 0 { inner.ticked_at_ms } else { until_ms.min(inner.ticked_at_ms) };
        let since_ms = since_ms.max(at_ms.saturating_sub(u64::from(seconds) * 1000));
        let (span_ms, mut sums) = inner.ring.sum(since_ms, at_ms);
        for cell in inner.series.values().filter(|cell| cell.is_traffic()) {
            let open = cell.counts.lock().totals.tcp_open;
            if open > 0 || sums.contains_key(&Arc::as_ptr(cell)) {
                sums.entry(Arc::as_ptr(cell)).or_insert_with(|| (cell.clone(), Series::default())).1.tcp_open = open;
            }
        }
        let series = sums.into_values().map(|(cell, series)| (cell.key(), series)).collect();
        (ProxyFrame { at_ms, span_ms, series, endpoints: Vec::new() }, inner.ring.after(at_ms, Cell::key))
    }

    /// End of the last second that somebody was told of, Unix milliseconds; 0: nobody ever was.
    pub fn told_ms(&self) -> u64 {
        self.inner.lock().told_ms
    }

    /// All that is remembered, oldest first and without what was open, in at most
    /// [`limits::FAREWELL_SERIES`] series; what is too much is summed up at the beginning.
    pub fn farewell(&self) -> Vec<ProxyFrame> {
        self.inner.lock().ring.all(limits::FAREWELL_SERIES, Cell::key)
    }

    /// Series known now, and those in all remembered frames together.
    pub fn sizes(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.series.len(), inner.ring.len())
    }

    /// Shows every series with its totals.
    pub fn each(&self, mut show: impl FnMut(&SeriesKey, &Totals)) {
        let cells: Vec<_> = self.inner.lock().series.values().cloned().collect();
        for cell in cells {
            show(&cell.key(), &cell.counts.lock().totals);
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
