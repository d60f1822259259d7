//! The Prometheus view: everything on `/metrics` is read at scrape time from where it is counted anyway, so that a
//! request is accounted once and an idle proxy keeps no second set of counters.

pub mod families;
pub mod text;

use crate::golden::{Golden, Outcome, Totals};
use crate::limits;
use crate::proxy::Proxy;
use families::Family;
use mesh_api::golden::{Carried, Direction, SeriesKey, TlsStatus};
use mesh_api::histogram::bucket_value_us;
use mesh_api::{Histogram, MeshError};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use text::{Format, Labels, Text};

/// Upper bounds of the classic duration buckets, seconds. A duration near a bound may fall to either side of it, by
/// the 2 % that the underlying histogram allows.
const BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Counters that belong to no series.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections let in because the peer proved an identity of the mesh.
    pub allowed_mutual: AtomicU64,
    /// Connections let in unidentified.
    pub allowed_plain: AtomicU64,
    /// Connections refused because the peer proved no identity of the mesh.
    pub denied_tls: AtomicU64,
    /// Golden frames sent together with the next because control took too long to read.
    pub frames_delayed: AtomicU64,
    /// Connections turned away because of the limit of connections or of handshakes.
    pub connections_shed: AtomicU64,
    /// Connections forwarded without asking control because too many destinations are known.
    pub targets_untracked: AtomicU64,
    /// Access log lines not written because their reader was slow.
    pub access_log_dropped: AtomicU64,
    /// Tries not made again because the budget was spent.
    pub retries_over_budget: AtomicU64,
    /// Tries not made again because the answer asked to wait for too long.
    pub retries_asked_later: AtomicU64,
    /// Tries not made again because too much of the body was gone.
    pub retries_without_body: AtomicU64,
    /// Copies of requests that were answered.
    pub mirrors_answered: AtomicU64,
    /// Copies of requests that were not.
    pub mirrors_failed: AtomicU64,
    /// Copies of requests not sent, because the body was too long or broke off, or too many were under way.
    pub mirrors_left_out: AtomicU64,
    /// Spans that the collector took.
    pub spans_sent: AtomicU64,
    /// Spans not sent because the collector was slow or refused them.
    pub spans_dropped: AtomicU64,
}

/// Adds one to a counter.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// All metrics as text.
pub fn render(proxy: &Proxy, format: Format) -> String {
    let mut text = Text::new(format);
    let golden = &proxy.golden;
    requests(&mut text, golden);
    attempts(&mut text, golden);
    tcp(&mut text, golden);
    endpoints(&mut text, proxy);
    routes(&mut text, &proxy.counters);
    access(&mut text, proxy);
    egress(&mut text, proxy);
    process(&mut text, proxy);
    text.finish()
}

/// Writes a family with a sample for whatever `show` makes of each series.
fn each(text: &mut Text, golden: &Golden, family: &Family, show: impl Fn(&mut Text, &SeriesKey, &Totals)) {
    text.family(family);
    golden.each(|key, totals| show(text, key, totals));
}

/// Writes a family with a sample for each series that has a value.
fn each_value(text: &mut Text, golden: &Golden, family: &Family, value: impl Fn(&Totals) -> Option<u64>) {
    each(text, golden, family, |text, key, totals| {
        if let Some(value) = value(totals) {
            text.sample(family, &labels_of(key), value);
        }
    });
}

fn requests(text: &mut Text, golden: &Golden) {
    each(text, golden, &families::REQUESTS, |text, key, totals| {
        for (Outcome { status, grpc_status, error }, n) in &totals.outcomes {
            if key.carried != Carried::Tcp {
                let mut labels = labels_of(key);
                labels.push(("status", status.map(|s| s.to_string()).unwrap_or_default()));
                labels.push(("grpc_status", grpc_status.map(|s| s.to_string()).unwrap_or_default()));
                labels.push(("error", code(*error)));
                text.sample(&families::REQUESTS, &labels, n);
            }
        }
    });
    each(text, golden, &families::REQUEST_DURATION, |text, key, totals| {
        if !totals.latency.is_empty() {
            let sum = totals.latency.sum_us() as f64 / 1e6;
            let buckets = classic(&totals.latency);
            text.histogram(&families::REQUEST_DURATION, &labels_of(key), &buckets, sum, &totals.exemplars);
        }
    });
}

fn attempts(text: &mut Text, golden: &Golden) {
    each(text, golden, &families::ATTEMPTS, |text, key, totals| {
        for (outcome, n) in [("success", totals.attempt_successes), ("failure", totals.attempt_failures)] {
            if n > 0 {
                let mut labels = labels_of(key);
                labels.push(("outcome", outcome.to_owned()));
                text.sample(&families::ATTEMPTS, &labels, n);
            }
        }
    });
    each(text, golden, &families::RETRIES, |text, key, totals| {
        let failures = totals.retries - totals.retry_successes;
        for (outcome, n) in [("success", totals.retry_successes), ("failure", failures)] {
            if n > 0 {
                let mut labels = labels_of(key);
                labels.push(("outcome", outcome.to_owned()));
                text.sample(&families::RETRIES, &labels, n);
            }
        }
    });
}

fn tcp(text: &mut Text, golden: &Golden) {
    let of_tcp = |totals: &Totals, n: u64| (totals.tcp_opened > 0).then_some(n);
    each_value(text, golden, &families::TCP_OPEN, |totals| of_tcp(totals, totals.tcp_open));
    each_value(text, golden, &families::TCP_OPENED, |totals| of_tcp(totals, totals.tcp_opened));
    each(text, golden, &families::TCP_CLOSED, |text, key, totals| {
        for (how, n) in &totals.tcp_closes {
            let mut labels = labels_of(key);
            labels.push(("reason", how.word().to_owned()));
            text.sample(&families::TCP_CLOSED, &labels, n);
        }
    });
    each(text, golden, &families::TCP_FAILURES, |text, key, totals| {
        for (outcome, n) in totals.outcomes.iter().filter(|_| key.carried == Carried::Tcp) {
            let mut labels = labels_of(key);
            labels.push(("error", code(outcome.error)));
            text.sample(&families::TCP_FAILURES, &labels, n);
        }
    });
    each(text, golden, &families::TCP_BYTES, |text, key, totals| {
        if totals.tcp_opened > 0 {
            for (flow, n) in [("read", totals.tcp_read_bytes), ("write", totals.tcp_write_bytes)] {
                let mut labels = labels_of(key);
                labels.push(("flow", flow.to_owned()));
                text.sample(&families::TCP_BYTES, &labels, n);
            }
        }
    });
    each(text, golden, &families::TCP_DURATION, |text, key, totals| {
        if !totals.tcp_duration.is_empty() {
            let sum = totals.tcp_duration.sum_us() as f64 / 1e6;
            text.histogram(&families::TCP_DURATION, &labels_of(key), &classic(&totals.tcp_duration), sum, &[]);
        }
    });
}

fn endpoints(text: &mut Text, proxy: &Proxy) {
    text.family(&families::ENDPOINT_STATE);
    let now = Instant::now();
    let mut left = limits::MAX_ENDPOINT_METRICS;
    for (target, known) in proxy.state.known_targets() {
        for backend in known.all_groups().flat_map(|group| &group.backends).take(left) {
            left -= 1;
            let labels = vec![
                ("target", target.address.to_string()),
                ("dst", backend.endpoint.workload.to_string()),
                ("endpoint", backend.endpoint.address.to_string()),
            ];
            let ejected = backend.circuit.lock().as_ref().is_some_and(|circuit| circuit.is_ejected());
            let failing = ejected || backend.load.lock().is_failing(now);
            text.sample(&families::ENDPOINT_STATE, &labels, u8::from(!failing));
        }
    }
}

fn routes(text: &mut Text, counters: &Counters) {
    let mut outcomes = |family: &Family, label: &'static str, list: &[(&str, &AtomicU64)]| {
        text.family(family);
        for (outcome, n) in list {
            text.sample(family, &vec![(label, (*outcome).to_owned())], n.load(Ordering::Relaxed));
        }
    };
    let withheld = [
        ("budget", &counters.retries_over_budget),
        ("retry_after", &counters.retries_asked_later),
        ("body", &counters.retries_without_body),
    ];
    outcomes(&families::RETRIES_WITHHELD, "reason", &withheld);
    let mirrors = [
        ("answered", &counters.mirrors_answered),
        ("failed", &counters.mirrors_failed),
        ("left_out", &counters.mirrors_left_out),
    ];
    outcomes(&families::MIRRORS, "outcome", &mirrors);
}

fn access(text: &mut Text, proxy: &Proxy) {
    let counters = &proxy.counters;
    text.family(&families::ACCESS_DECISIONS);
    for (decision, tls, n) in [
        ("allow", "mutual", &counters.allowed_mutual),
        ("allow", "none", &counters.allowed_plain),
        ("deny", "unproven", &counters.denied_tls),
    ] {
        let labels = vec![("decision", decision.to_owned()), ("tls", tls.to_owned()), ("policy", String::new())];
        text.sample(&families::ACCESS_DECISIONS, &labels, n.load(Ordering::Relaxed));
    }
    for (decision, tls, policy, n) in proxy.access.counts() {
        let labels = vec![("decision", decision.to_owned()), ("tls", tls.to_owned()), ("policy", policy)];
        text.sample(&families::ACCESS_DECISIONS, &labels, n);
    }
}

fn egress(text: &mut Text, proxy: &Proxy) {
    text.family(&families::EGRESS_DECISIONS);
    for (decision, protocol, policy, n) in proxy.egress.counts() {
        let labels = vec![("decision", decision.to_owned()), ("protocol", protocol.to_owned()), ("policy", policy)];
        text.sample(&families::EGRESS_DECISIONS, &labels, n);
    }
}

fn process(text: &mut Text, proxy: &Proxy) {
    let counters = &proxy.counters;
    let mut plain = |family: &Family, value: u64| {
        text.family(family);
        text.sample(family, &Vec::new(), value);
    };
    let (series, remembered) = proxy.golden.sizes();
    plain(&families::GOLDEN_SERIES, series as u64);
    plain(&families::GOLDEN_REMEMBERED, remembered as u64);
    for (family, n) in [
        (&families::GOLDEN_FRAMES_DELAYED, &counters.frames_delayed),
        (&families::CONNECTIONS_SHED, &counters.connections_shed),
        (&families::TARGETS_UNTRACKED, &counters.targets_untracked),
        (&families::ACCESS_LOG_DROPPED, &counters.access_log_dropped),
        (&families::SPANS_SENT, &counters.spans_sent),
        (&families::SPANS_DROPPED, &counters.spans_dropped),
    ] {
        plain(family, n.load(Ordering::Relaxed));
    }
    if let Some(current) = proxy.credentials.current() {
        plain(&families::IDENTITY_EXPIRY, current.expires_at);
    }
    plain(&families::CONTROL_CONNECTED, u64::from(proxy.state.is_connected()));
    text.family(&families::PROXY_INFO);
    text.sample(&families::PROXY_INFO, &vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1);
}

fn code(error: Option<MeshError>) -> String {
    error.map(|error| error.code().to_owned()).unwrap_or_default()
}

/// `src` and `dst` name the peer on its side; the proxy's own workload is known to the scraper.
fn labels_of(key: &SeriesKey) -> Labels {
    let (direction, src, dst) = match key.direction {
        Direction::Inbound => ("inbound", key.peer.to_string(), String::new()),
        Direction::Outbound => ("outbound", String::new(), key.peer.to_string()),
    };
    let tls = match key.tls {
        TlsStatus::Mutual => "mutual",
        TlsStatus::Passthrough => "passthrough",
        TlsStatus::Plain => "plain",
    };
    vec![
        ("direction", direction.to_owned()),
        ("tls", tls.to_owned()),
        ("src", src),
        ("dst", dst),
        ("service", key.service.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("port", key.port.to_string()),
        ("route", key.route.clone()),
        ("method", key.method.clone()),
    ]
}

/// Counts per classic bucket, not cumulative, the last up to infinity.
fn classic(histogram: &Histogram) -> Vec<(f64, u64)> {
    let mut buckets: Vec<(f64, u64)> = BUCKETS.iter().map(|&bound| (bound, 0)).collect();
    buckets.push((f64::INFINITY, 0));
    for &(bucket, n) in histogram.buckets() {
        let seconds = bucket_value_us(bucket) / 1e6;
        let at = bucket_at(seconds);
        buckets[at].1 += n;
    }
    buckets
}

/// The classic bucket of a duration.
pub fn bucket_at(seconds: f64) -> usize {
    BUCKETS.partition_point(|&bound| bound < seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_buckets_hold_every_duration_once() {
        let mut histogram = Histogram::default();
        for us in [1, 700, 700, 30_000, 3_000_000_000] {
            histogram.record_us(us);
        }
        let buckets = classic(&histogram);
        assert_eq!(buckets.iter().map(|b| b.1).sum::<u64>(), 5);
        assert_eq!(buckets[0], (0.0005, 1));
        assert_eq!(buckets[1], (0.001, 2));
        assert_eq!(buckets[6], (0.05, 1));
        assert_eq!(buckets[16].1, 1);
    }
}
