//! From frames to rows: the pure model behind `stat` and `top`.
//!
//! A [`Window`] holds the frames of the last seconds. [`rows`] sums their series into rows: counters over all frames,
//! connections open as of the last frame, percentiles from merged histograms, rates over the span that the frames
//! really cover. Rows count what arrived (inbound series), unless the question is who called whom ([`Query::from`],
//! [`Query::to`]): that is known to the sender, so its outbound series are counted.

use crate::resource::{Kind, Resource};
use mesh_api::WorkloadRef;
use mesh_api::golden::{Carried, Direction, GoldenFrame, Series, SeriesKey, TlsStatus, WorkloadSeries, WorkloadStatus};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// The most frames a window keeps, whatever its span.
const MAX_FRAMES: usize = 600;

/// The frames of the last seconds.
#[derive(Clone, Debug)]
pub struct Window {
    span_ms: u64,
    frames: VecDeque<GoldenFrame>,
}

impl Window {
    /// An empty window that will cover at least `span`, once that much has been seen.
    pub fn new(span: Duration) -> Self {
        Self { span_ms: u64::try_from(span.as_millis()).unwrap_or(u64::MAX), frames: VecDeque::new() }
    }

    /// Adds a frame and drops those no longer needed to cover the span.
    pub fn push(&mut self, frame: GoldenFrame) {
        self.frames.push_back(frame);
        while let Some(oldest) = self.frames.front() {
            let enough_without = self.covered_ms().saturating_sub(oldest.span_ms) >= self.span_ms;
            if self.frames.len() <= 1 || !(enough_without || self.frames.len() > MAX_FRAMES) {
                break;
            }
            self.frames.pop_front();
        }
    }

    /// Forgets everything: what comes next starts a new account.
    pub fn clear(&mut self) {
        self.frames.clear();
    }

    /// The frames, oldest first.
    pub fn frames(&self) -> &VecDeque<GoldenFrame> {
        &self.frames
    }

    /// How much time the frames cover, milliseconds.
    pub fn covered_ms(&self) -> u64 {
        self.frames.iter().map(|frame| frame.span_ms).sum()
    }
}

/// What a row is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// What rows stand for, and which of them.
    pub of: Resource,
    /// Only in this namespace.
    pub namespace: Option<String>,
    /// Only these rows, by namespace, kind and name.
    pub only: Option<BTreeSet<WorkloadRef>>,
    /// Only what came from here, as the sender saw it.
    pub from: Option<Resource>,
    /// Only what was sent there, as the sender saw it.
    pub to: Option<Resource>,
    /// A row for each route instead of each resource.
    pub routes: bool,
    /// With `routes`: a row for opaque TCP, too.
    pub tcp_routes: bool,
}

impl Default for Query {
    fn default() -> Self {
        Self { of: Resource::ALL, namespace: None, only: None, from: None, to: None, routes: false, tcp_routes: false }
    }
}

/// What tells a row from the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RowId {
    /// Namespace; of a namespace's row, its own name.
    pub namespace: String,
    /// Kind, lower-case singular.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Route; empty if rows aren't routes, or for TCP.
    pub route: String,
    /// HTTP method; empty for gRPC and TCP.
    pub method: String,
}

/// Golden metrics of a workload, pod, service, namespace or route. The names are those of the JSON output.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// Namespace; of a namespace's row, its own name.
    pub namespace: String,
    /// Kind, lower-case singular.
    pub kind: String,
    /// Name.
    pub name: String,
    /// What only routes have.
    #[serde(flatten)]
    pub route: Option<RouteColumns>,
    /// Pods with a proxy.
    pub meshed_pods: u32,
    /// Pods that run.
    pub pods: u32,
    /// Requests a second.
    pub rps: f64,
    /// Share of requests that went well; null without requests.
    pub success_rate: Option<f64>,
    /// Median latency; null without requests.
    pub latency_p50_ms: Option<f64>,
    /// 95th percentile.
    pub latency_p95_ms: Option<f64>,
    /// 99th percentile.
    pub latency_p99_ms: Option<f64>,
    /// Share of requests and TCP connections under the mesh's mutual TLS; null without either.
    pub mtls_rate: Option<f64>,
    /// TCP connections open at the end of the span.
    pub tcp_open_connections: u64,
    /// TCP bytes a second from clients.
    pub tcp_read_bytes_rate: f64,
    /// TCP bytes a second to clients.
    pub tcp_write_bytes_rate: f64,
    /// Requests counted.
    #[serde(skip)]
    pub requests: u64,
    /// TCP connections counted.
    #[serde(skip)]
    pub connections: u64,
}

/// What only routes have.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RouteColumns {
    /// Route; empty for TCP.
    pub route: String,
    /// HTTP method; empty for gRPC and TCP.
    pub method: String,
    /// The Service behind which the workload answered; several, if it cannot be told, joined by commas.
    pub service: Option<String>,
    /// Second and further attempts a second.
    pub retries_rate: f64,
    /// Requests a second that ran into a time limit.
    pub timeouts_rate: f64,
}

impl Row {
    /// What tells this row from the others.
    pub fn id(&self) -> RowId {
        let (route, method) = self.route.as_ref().map(|r| (r.route.clone(), r.method.clone())).unwrap_or_default();
        RowId { namespace: self.namespace.clone(), kind: self.kind.clone(), name: self.name.clone(), route, method }
    }

    /// True if this is a route's row without requests: opaque TCP.
    pub fn is_tcp(&self) -> bool {
        self.requests == 0 && self.connections > 0
    }
}

/// Sums of series, from which a row's numbers are made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    /// Everything added up.
    pub(crate) sum: Series,
    mutual_requests: u64,
    /// Connections that were open at some time of the span: those closed during it, and those open at its end.
    connections: u64,
    mutual_connections: u64,
}

impl Tally {
    /// Adds a series of a frame; levels count only as of the last one.
    pub(crate) fn add(&mut self, key: &SeriesKey, series: &Series, is_last_frame: bool) {
        let open = if is_last_frame { series.tcp_open } else { 0 };
        let mut part = series.clone();
        part.tcp_open = open;
        self.sum.merge(&part, true);
        let mutual = key.tls == TlsStatus::Mutual;
        let connections = if key.carried == Carried::Tcp { series.tcp_closed + open } else { 0 };
        self.connections += connections;
        if mutual {
            self.mutual_requests += series.requests;
            self.mutual_connections += connections;
        }
    }

    /// Writes the numbers over so many seconds into a row.
    pub(crate) fn fill(&self, row: &mut Row, seconds: f64) {
        let per_second = |count: u64| if seconds > 0.0 { round(count as f64 / seconds, 3) } else { 0.0 };
        let share = |part: u64, whole: u64| (whole > 0).then(|| round(part as f64 / whole as f64, 6));
        let quantile = |q: f64| self.sum.latency.quantile_ms(q).map(|ms| round(ms, 3));
        row.requests = self.sum.requests;
        row.connections = self.connections;
        row.rps = per_second(self.sum.requests);
        row.success_rate = share(self.sum.successes, self.sum.requests);
        (row.latency_p50_ms, row.latency_p95_ms, row.latency_p99_ms) = (quantile(0.5), quantile(0.95), quantile(0.99));
        row.mtls_rate = share(self.mutual_requests + self.mutual_connections, self.sum.requests + self.connections);
        row.tcp_open_connections = self.sum.tcp_open;
        row.tcp_read_bytes_rate = per_second(self.sum.tcp_read_bytes);
        row.tcp_write_bytes_rate = per_second(self.sum.tcp_write_bytes);
        if let Some(route) = &mut row.route {
            route.retries_rate = per_second(self.sum.retries);
            route.timeouts_rate = per_second(self.sum.timeouts);
        }
    }
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// The rows that answer a query, in order of namespace, kind, name, route and method.
pub fn rows(frames: &VecDeque<GoldenFrame>, query: &Query) -> Vec<Row> {
    let Some(last) = frames.back() else { return Vec::new() };
    let seconds = frames.iter().map(|frame| frame.span_ms).sum::<u64>() as f64 / 1000.0;
    let statuses: BTreeMap<&WorkloadRef, &WorkloadStatus> = last.workloads.iter().map(|s| (&s.workload, s)).collect();
    let mut tallies: BTreeMap<RowId, (Tally, BTreeSet<WorkloadRef>)> = BTreeMap::new();
    if !query.routes {
        for status in &last.workloads {
            let pods: Vec<Option<&str>> = match query.of.kind {
                Kind::Pod => status.pod_list.iter().map(|pod| Some(pod.name.as_str())).collect(),
                _ => vec![None],
            };
            for id in pods.into_iter().flat_map(|pod| ids(query, &status.workload, pod, &statuses)) {
                tallies.entry(id).or_default().1.insert(status.workload.clone());
            }
        }
    }
    for (index, frame) in frames.iter().enumerate() {
        let is_last_frame = index + 1 == frames.len();
        for entry in frame.series.iter().filter(|entry| wanted(query, entry, &statuses)) {
            for mut id in ids(query, subject(query, entry), pod(query, entry), &statuses) {
                if query.routes {
                    id.route.clone_from(&entry.key.route);
                    id.method.clone_from(&entry.key.method);
                }
                let (tally, workloads) = tallies.entry(id).or_default();
                tally.add(&entry.key, &entry.series, is_last_frame);
                workloads.insert(subject(query, entry).clone());
            }
        }
    }
    let services = if query.routes { called_services(frames) } else { BTreeMap::new() };
    let finish = |(id, (tally, workloads)): (RowId, (Tally, BTreeSet<WorkloadRef>))| {
        // A workload without traffic is worth a row, a route or a pair without is not, unless asked for by name.
        let quiet_too = !query.routes && (query.of.name.is_some() || (query.from.is_none() && query.to.is_none()));
        let counted = tally.sum.requests > 0 || tally.connections > 0 || quiet_too;
        counted.then(|| finish_row(id, &tally, &workloads, query, &statuses, &services, seconds))
    };
    tallies.into_iter().filter_map(finish).collect()
}

/// The sum over everything a query selects, as one row without a name.
pub fn total(frames: &VecDeque<GoldenFrame>, query: &Query) -> Row {
    let Some(last) = frames.back() else { return Row::default() };
    let seconds = frames.iter().map(|frame| frame.span_ms).sum::<u64>() as f64 / 1000.0;
    let statuses: BTreeMap<&WorkloadRef, &WorkloadStatus> = last.workloads.iter().map(|s| (&s.workload, s)).collect();
    let mut tally = Tally::default();
    for (index, frame) in frames.iter().enumerate() {
        for entry in frame.series.iter().filter(|entry| wanted(query, entry, &statuses)) {
            if !ids(query, subject(query, entry), pod(query, entry), &statuses).is_empty() {
                tally.add(&entry.key, &entry.series, index + 1 == frames.len());
            }
        }
    }
    let mut row = Row::default();
    tally.fill(&mut row, seconds);
    for status in &last.workloads {
        if !ids(query, &status.workload, None, &statuses).is_empty() {
            row.pods += status.pods;
            row.meshed_pods += status.meshed_pods;
        }
    }
    row
}

fn finish_row(
    id: RowId,
    tally: &Tally,
    workloads: &BTreeSet<WorkloadRef>,
    query: &Query,
    statuses: &BTreeMap<&WorkloadRef, &WorkloadStatus>,
    services: &BTreeMap<(&WorkloadRef, &str, &str), BTreeSet<&str>>,
    seconds: f64,
) -> Row {
    let mut row = Row { namespace: id.namespace, kind: id.kind, name: id.name, ..Row::default() };
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for workload in workloads {
        if let Some(status) = statuses.get(workload) {
            row.pods += status.pods;
            row.meshed_pods += status.meshed_pods;
            known.extend(status.services.iter().map(String::as_str));
        }
        if let Some(called) = services.get(&(workload, id.route.as_str(), id.method.as_str())) {
            known.clone_from(called);
        }
    }
    if query.of.kind == Kind::Pod {
        let lists = workloads.iter().filter_map(|workload| statuses.get(workload)).flat_map(|status| &status.pod_list);
        let pod = lists.into_iter().find(|pod| pod.name == row.name);
        // One that counted and is not listed any more had a proxy.
        (row.pods, row.meshed_pods) = (1, u32::from(pod.is_none_or(|pod| pod.meshed)));
    }
    if query.routes {
        let service = (!known.is_empty()).then(|| known.into_iter().collect::<Vec<_>>().join(","));
        row.route = Some(RouteColumns { route: id.route, method: id.method, service, ..Default::default() });
    }
    tally.fill(&mut row, seconds);
    row
}

/// Which Services callers used for a route, as far as callers are in the frames, too.
fn called_services(frames: &VecDeque<GoldenFrame>) -> BTreeMap<(&WorkloadRef, &str, &str), BTreeSet<&str>> {
    let mut called: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
    for key in frames.iter().flat_map(|frame| &frame.series).map(|entry| &entry.key) {
        if let (Direction::Outbound, Some(service)) = (key.direction, &key.service) {
            called.entry((&key.peer, key.route.as_str(), key.method.as_str())).or_default().insert(&service.name);
        }
    }
    called
}

/// True if a series is of the kind the query counts.
fn wanted(query: &Query, entry: &WorkloadSeries, statuses: &BTreeMap<&WorkloadRef, &WorkloadStatus>) -> bool {
    if query.routes && !query.tcp_routes && entry.key.carried == Carried::Tcp {
        return false;
    }
    let is = |resource: &Resource, workload: &WorkloadRef| {
        resource.is_workload(workload)
            || (resource.kind == Kind::Service && serves(statuses.get(workload).copied(), resource.name.as_deref()))
    };
    let from_fits = |sender: &WorkloadRef| query.from.as_ref().is_none_or(|from| is(from, sender));
    match (&query.from, &query.to, entry.key.direction) {
        (None, None, Direction::Inbound) => true,
        (Some(_), None, Direction::Outbound) => from_fits(&entry.workload),
        (_, Some(to), Direction::Outbound) => {
            let called = entry.key.service.as_ref().is_some_and(|service| {
                to.kind == Kind::Service && to.name.as_ref().is_none_or(|name| *name == service.name)
            });
            from_fits(&entry.workload) && (called || is(to, &entry.key.peer))
        }
        _ => false,
    }
}

/// The workload that a series counts for: who counted it, or, if only the sender is given, who answered.
fn subject<'a>(query: &Query, entry: &'a WorkloadSeries) -> &'a WorkloadRef {
    if query.from.is_some() && query.to.is_none() { &entry.key.peer } else { &entry.workload }
}

/// The pod that counted, where rows are of those who counted.
fn pod<'a>(query: &Query, entry: &'a WorkloadSeries) -> Option<&'a str> {
    entry.pod.as_deref().filter(|_| query.from.is_none() || query.to.is_some())
}

fn serves(status: Option<&WorkloadStatus>, name: Option<&str>) -> bool {
    status.is_some_and(|status| {
        name.map_or(!status.services.is_empty(), |name| status.services.iter().any(|s| s == name))
    })
}

/// The rows that a workload (and pod) counts into.
fn ids(
    query: &Query,
    workload: &WorkloadRef,
    pod: Option<&str>,
    statuses: &BTreeMap<&WorkloadRef, &WorkloadStatus>,
) -> Vec<RowId> {
    if query.namespace.as_ref().is_some_and(|namespace| *namespace != workload.namespace) {
        return Vec::new();
    }
    let id = |kind: &str, name: &str| RowId {
        namespace: workload.namespace.clone(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        ..RowId::default()
    };
    let name_fits = |name: &str| query.of.name.as_deref().is_none_or(|wanted| wanted == name);
    let mut ids = match query.of.kind {
        Kind::All | Kind::Workload(_) if query.of.is_workload(workload) => vec![id(&workload.kind, &workload.name)],
        Kind::Pod => pod.filter(|pod| name_fits(pod)).map(|pod| id("pod", pod)).into_iter().collect(),
        Kind::Namespace if name_fits(&workload.namespace) => vec![id("namespace", &workload.namespace)],
        Kind::Service => statuses
            .get(workload)
            .map(|status| {
                status.services.iter().filter(|name| name_fits(name)).map(|name| id("service", name)).collect()
            })
            .unwrap_or_default(),
        _ => Vec::new(),
    };
    if let Some(only) = &query.only {
        ids.retain(|id| {
            only.contains(&WorkloadRef {
                namespace: id.namespace.clone(),
                kind: id.kind.clone(),
                name: id.name.clone(),
            })
        });
    }
    ids
}

/// Gives every series of a frame that a query counts to `take`, with the row it counts into (as if rows were routes).
pub(crate) fn each<'a>(frame: &'a GoldenFrame, query: &Query, mut take: impl FnMut(RowId, &'a WorkloadSeries)) {
    let statuses: BTreeMap<&WorkloadRef, &WorkloadStatus> = frame.workloads.iter().map(|s| (&s.workload, s)).collect();
    for entry in frame.series.iter().filter(|entry| wanted(query, entry, &statuses)) {
        for mut id in ids(query, subject(query, entry), pod(query, entry), &statuses) {
            id.route.clone_from(&entry.key.route);
            id.method.clone_from(&entry.key.method);
            take(id, entry);
        }
    }
}

#[cfg(test)]
#[path = "golden_tests.rs"]
pub(crate) mod tests;
