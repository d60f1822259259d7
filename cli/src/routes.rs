//! From frames to a service's routes: what callers saw, and what each attempt came to. Pure.
//!
//! Both are known to the callers' proxies: effective numbers count a request once, with all its retries; actual ones
//! count every attempt where it went, so that the backends of a route add up to it.

use crate::resource::{Kind, Resource};
use mesh_api::golden::{Carried, Direction, GoldenFrame, Series, SeriesKey, TlsStatus, WorkloadSeries, WorkloadStatus};
use mesh_api::{Histogram, WorkloadRef};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// Which routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The service called, or the workload that answers.
    pub of: Resource,
    /// Only services (or workloads) of this namespace.
    pub namespace: Option<String>,
    /// Only what came from here.
    pub from: Option<Resource>,
}

/// A route of a service. The names are those of the JSON output.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RouteRow {
    /// Namespace of the service.
    pub namespace: String,
    /// The service.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// Name of the rule, gRPC method, or learned path template.
    pub route: String,
    /// HTTP method; empty for gRPC.
    pub method: String,
    /// Requests a second, as callers saw them.
    pub effective_rps: f64,
    /// Share of them that went well; null without.
    pub effective_success_rate: Option<f64>,
    /// Median of their latencies.
    pub effective_latency_p50_ms: Option<f64>,
    /// 95th percentile.
    pub effective_latency_p95_ms: Option<f64>,
    /// 99th percentile.
    pub effective_latency_p99_ms: Option<f64>,
    /// Attempts a second.
    pub actual_rps: f64,
    /// Share of them that went well; null without.
    pub actual_success_rate: Option<f64>,
    /// Median of their latencies.
    pub actual_latency_p50_ms: Option<f64>,
    /// 95th percentile.
    pub actual_latency_p95_ms: Option<f64>,
    /// 99th percentile.
    pub actual_latency_p99_ms: Option<f64>,
    /// Second and further attempts a second.
    pub retries_rate: f64,
    /// Requests a second that ran into a time limit.
    pub timeouts_rate: f64,
    /// Share of requests under the mesh's mutual TLS; null without.
    pub mtls_rate: Option<f64>,
    /// Who answered.
    pub backends: Vec<BackendRow>,
}

/// A workload that answered for a route, counted by attempts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BackendRow {
    /// Its namespace.
    pub namespace: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Share of the route's attempts.
    pub share: f64,
    /// Attempts a second.
    pub rps: f64,
    /// Share of them that went well.
    pub success_rate: Option<f64>,
    /// Median of their latencies.
    pub latency_p50_ms: Option<f64>,
    /// 95th percentile.
    pub latency_p95_ms: Option<f64>,
    /// 99th percentile.
    pub latency_p99_ms: Option<f64>,
}

/// What tells routes apart: namespace, service, port, route, method.
type Id<'a> = (&'a str, &'a str, u16, &'a str, &'a str);

#[derive(Default)]
struct Tally<'a> {
    sum: Series,
    mutual: u64,
    backends: BTreeMap<&'a WorkloadRef, Series>,
}

/// The routes that answer a query, by service, route and method.
pub fn rows(frames: &VecDeque<GoldenFrame>, query: &Query) -> Vec<RouteRow> {
    let Some(last) = frames.back() else { return Vec::new() };
    let seconds = frames.iter().map(|frame| frame.span_ms).sum::<u64>() as f64 / 1000.0;
    let statuses: BTreeMap<&WorkloadRef, &WorkloadStatus> = last.workloads.iter().map(|s| (&s.workload, s)).collect();
    let mut tallies: BTreeMap<Id<'_>, Tally<'_>> = BTreeMap::new();
    for entry in frames.iter().flat_map(|frame| &frame.series) {
        let Some(id) = id(entry, query, &statuses) else { continue };
        let tally = tallies.entry(id).or_default();
        tally.sum.merge(&entry.series, true);
        tally.mutual += if entry.key.tls == TlsStatus::Mutual { entry.series.requests } else { 0 };
        tally.backends.entry(&entry.key.peer).or_default().merge(&entry.series, true);
    }
    tallies.into_iter().map(|(id, tally)| tally.row(id, seconds)).collect()
}

/// The route a series counts for, if it is one that is asked for.
fn id<'a>(
    WorkloadSeries { workload: caller, pod, key, .. }: &'a WorkloadSeries,
    query: &Query,
    statuses: &BTreeMap<&WorkloadRef, &WorkloadStatus>,
) -> Option<Id<'a>> {
    let SeriesKey { direction, carried, peer, service, route, method, .. } = key;
    let service = service.as_ref()?;
    if *direction != Direction::Outbound || *carried == Carried::Tcp {
        return None;
    }
    let asked = match query.of.kind {
        Kind::Service => query.of.name.as_ref().is_none_or(|name| *name == service.name),
        Kind::Namespace => query.of.name.as_ref().is_none_or(|name| *name == service.namespace),
        // `routes books`, too, is more likely a service than anything else.
        Kind::All => query.of.name.as_ref().is_none_or(|name| *name == service.name || *name == peer.name),
        Kind::Workload(_) | Kind::Pod => query.of.is_workload(peer),
    };
    let here = query.namespace.as_ref().is_none_or(|namespace| *namespace == service.namespace);
    let from_here = query.from.as_ref().is_none_or(|from| match (from.kind, &from.name) {
        (Kind::Pod, Some(name)) => pod.as_ref() == Some(name),
        (Kind::Service, name) => statuses.get(caller).is_some_and(|status| {
            status.services.iter().any(|service| name.as_ref().is_none_or(|name| name == service))
        }),
        _ => from.is_workload(caller),
    });
    let id = (&*service.namespace, &*service.name, service.port, &**route, &**method);
    (asked && here && from_here).then_some(id)
}

impl Tally<'_> {
    fn row(self, (namespace, service, port, route, method): Id<'_>, seconds: f64) -> RouteRow {
        let per_second = |count: u64| if seconds > 0.0 { round(count as f64 / seconds, 3) } else { 0.0 };
        let actual = self.sum.actual();
        let [effective_p50, effective_p95, effective_p99] = quantiles(&self.sum.latency);
        let [actual_p50, actual_p95, actual_p99] = quantiles(&actual.latency);
        let backend = |(workload, series): (&WorkloadRef, Series)| {
            let own = series.actual();
            let [p50, p95, p99] = quantiles(&own.latency);
            (own.attempts > 0).then(|| BackendRow {
                namespace: workload.namespace.clone(),
                kind: workload.kind.clone(),
                name: workload.name.clone(),
                share: share(own.attempts, actual.attempts).unwrap_or_default(),
                rps: per_second(own.attempts),
                success_rate: share(own.successes, own.attempts),
                latency_p50_ms: p50,
                latency_p95_ms: p95,
                latency_p99_ms: p99,
            })
        };
        RouteRow {
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            port,
            route: route.to_owned(),
            method: method.to_owned(),
            effective_rps: per_second(self.sum.requests),
            effective_success_rate: share(self.sum.successes, self.sum.requests),
            effective_latency_p50_ms: effective_p50,
            effective_latency_p95_ms: effective_p95,
            effective_latency_p99_ms: effective_p99,
            actual_rps: per_second(actual.attempts),
            actual_success_rate: share(actual.successes, actual.attempts),
            actual_latency_p50_ms: actual_p50,
            actual_latency_p95_ms: actual_p95,
            actual_latency_p99_ms: actual_p99,
            retries_rate: per_second(self.sum.retries),
            timeouts_rate: per_second(self.sum.timeouts),
            mtls_rate: share(self.mutual, self.sum.requests),
            backends: self.backends.into_iter().filter_map(backend).collect(),
        }
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| round(part as f64 / whole as f64, 6))
}

fn quantiles(histogram: &Histogram) -> [Option<f64>; 3] {
    [0.5, 0.95, 0.99].map(|q| histogram.quantile_ms(q).map(|ms| round(ms, 3)))
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::golden::tests::{latencies, shop};
    use mesh_api::golden::Attempts;

    /// The shop with reviews split over two versions, some of them sent again.
    pub(crate) fn split() -> VecDeque<GoldenFrame> {
        let mut frames = shop();
        let outbound = |entry: &WorkloadSeries| {
            entry.key.direction == Direction::Outbound && entry.key.route == "/products/{id}/reviews"
        };
        for frame in &mut frames {
            let Some(first) = frame.series.iter_mut().find(|entry| outbound(entry)) else { continue };
            // Of thirty requests five failed here first; four of these went well elsewhere.
            first.series.requests = 25;
            first.series.successes = 25;
            first.series.latency = latencies(25, 90.0, 100.0);
            let failed = Attempts { attempts: 5, latency: latencies(5, 300.0, 310.0), ..Attempts::default() };
            first.series.attempts = Some(Box::new(failed));
            let mut second = first.clone();
            second.key.peer.name = "catalog-v2".to_owned();
            second.series = Series {
                requests: 5,
                successes: 4,
                retries: 5,
                timeouts: 1,
                latency: latencies(5, 320.0, 340.0),
                attempts: Some(Box::new(Attempts {
                    requests: 5,
                    request_successes: 4,
                    request_latency: latencies(5, 320.0, 340.0),
                    attempts: 5,
                    successes: 4,
                    latency: latencies(5, 20.0, 30.0),
                })),
                ..Series::default()
            };
            frame.series.push(second);
        }
        frames
    }

    fn query(of: &str) -> Query {
        Query { of: Resource::read_one(of).unwrap(), namespace: Some("shop".into()), from: None }
    }

    #[test]
    fn effective_and_actual_differ_by_what_was_sent_again() {
        let all = rows(&split(), &query("svc/catalog"));
        let names: Vec<_> = all.iter().map(|row| format!("{} {}", row.method, row.route)).collect();
        assert_eq!(names, ["GET /products/{id}", "GET /products/{id}/reviews"]);
        let plain = &all[0];
        assert_eq!((plain.effective_rps, plain.actual_rps, plain.backends.len()), (40.0, 40.0, 1));
        assert_eq!(plain.effective_latency_p99_ms, plain.actual_latency_p99_ms);
        let row = &all[1];
        assert_eq!((row.effective_rps, row.actual_rps, row.retries_rate, row.timeouts_rate), (30.0, 35.0, 5.0, 1.0));
        assert_eq!((row.effective_success_rate, row.actual_success_rate), (Some(0.966667), Some(0.828571)));
        assert!(row.effective_latency_p99_ms > row.actual_latency_p99_ms);
        let backends: Vec<_> = row.backends.iter().map(|b| (b.name.as_str(), b.rps, b.success_rate)).collect();
        assert_eq!(backends, [("catalog", 30.0, Some(0.833333)), ("catalog-v2", 5.0, Some(0.8))]);
        assert!((row.backends.iter().map(|b| b.share).sum::<f64>() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn routes_are_found_by_service_workload_and_caller() {
        let count = |of: &str, from: Option<&str>, namespace: &str| {
            let from = from.map(|from| Resource::read_one(from).unwrap());
            rows(&split(), &Query { from, namespace: Some(namespace.into()), ..query(of) }).len()
        };
        assert_eq!(count("all", None, "shop"), 5);
        assert_eq!(count("all", None, "other"), 0);
        assert_eq!(count("svc/cart", None, "shop"), 1);
        assert_eq!(count("svc/ledger", None, "shop"), 0, "TCP has no routes");
        assert_eq!(count("deploy/catalog-v2", None, "shop"), 1);
        assert_eq!(count("all", Some("deploy/load"), "shop"), 2);
        assert_eq!(count("all", Some("svc/web"), "shop"), 3);
        assert_eq!(count("all", Some("po/other"), "shop"), 0);
    }
}
