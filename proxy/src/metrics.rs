//! The Prometheus view: everything on `/metrics` is read at scrape time from where it is counted anyway, so that a
//! request is accounted once and an idle proxy keeps no second set of counters.

use crate::golden::{Golden, Outcome};
use crate::limits;
use crate::proxy::Proxy;
use mesh_api::golden::{Carried, Direction, SeriesKey, TlsStatus};
use mesh_api::histogram::bucket_value_us;
use mesh_api::{Histogram, WorkloadRef};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

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
    /// Connections forwarded without asking control because too many destinations are known.
    pub targets_untracked: AtomicU64,
}

/// Adds one to a counter.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// All metrics in the OpenMetrics text format.
pub fn render(proxy: &Arc<Proxy>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics(proxy.clone())));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

struct Metrics(Arc<Proxy>);

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

type Labels<'a> = Vec<(&'static str, String)>;
/// The encoder wants the type of an exemplar even where there is none.
const NO_EXEMPLAR: Option<&Exemplar<Vec<(&str, String)>, f64>> = None;

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let golden = &self.0.golden;
        requests(&mut encoder, golden)?;
        durations(&mut encoder, golden)?;
        retries(&mut encoder, golden)?;
        tcp(&mut encoder, golden)?;
        self.endpoints(&mut encoder)?;
        self.access(&mut encoder)?;
        self.process(&mut encoder)
    }
}

fn requests(encoder: &mut DescriptorEncoder<'_>, golden: &Golden) -> fmt::Result {
    let mut family = encoder.encode_descriptor("mesh_requests", "Requests finished", None, MetricType::Counter)?;
    each(golden, |key, totals| {
        for (Outcome { status, grpc_status, error }, n) in &totals.outcomes {
            if key.carried == Carried::Tcp {
                continue;
            }
            let mut labels = labels_of(key);
            labels.push(("status", status.map(|s| s.to_string()).unwrap_or_default()));
            labels.push(("grpc_status", grpc_status.map(|s| s.to_string()).unwrap_or_default()));
            labels.push(("error", error.map(|e| e.code().to_owned()).unwrap_or_default()));
            counter(&mut family, &labels, *n)?;
        }
        Ok(())
    })
}

fn durations(encoder: &mut DescriptorEncoder<'_>, golden: &Golden) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "mesh_request_duration",
        "From the request's head to the response's end",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    each(golden, |key, totals| {
        if totals.latency.is_empty() {
            return Ok(());
        }
        let labels = labels_of(key);
        let sum = totals.latency.sum_us() as f64 / 1e6;
        let buckets = classic(&totals.latency);
        family.encode_family(&labels)?.encode_histogram::<Labels<'_>>(sum, totals.latency.count(), &buckets, None)
    })
}

fn retries(encoder: &mut DescriptorEncoder<'_>, golden: &Golden) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "mesh_retries",
        "Second and further attempts made for requests",
        None,
        MetricType::Counter,
    )?;
    each(golden, |key, totals| match totals.retries {
        0 => Ok(()),
        n => counter(&mut family, &labels_of(key), n),
    })
}

fn tcp(encoder: &mut DescriptorEncoder<'_>, golden: &Golden) -> fmt::Result {
    let mut open = encoder.encode_descriptor(
        "mesh_tcp_open_connections",
        "Opaque connections open now",
        None,
        MetricType::Gauge,
    )?;
    each(golden, |key, totals| match totals.tcp_opened {
        0 => Ok(()),
        _ => open.encode_family(&labels_of(key))?.encode_gauge(&gauge(totals.tcp_open)),
    })?;
    let mut opened =
        encoder.encode_descriptor("mesh_tcp_opened", "Opaque connections ever opened", None, MetricType::Counter)?;
    each(golden, |key, totals| match totals.tcp_opened {
        0 => Ok(()),
        n => counter(&mut opened, &labels_of(key), n),
    })?;
    let mut failed = encoder.encode_descriptor(
        "mesh_tcp_failures",
        "Opaque connections the mesh could not serve",
        None,
        MetricType::Counter,
    )?;
    each(golden, |key, totals| {
        for (outcome, n) in totals.outcomes.iter().filter(|_| key.carried == Carried::Tcp) {
            let mut labels = labels_of(key);
            labels.push(("error", outcome.error.map(|e| e.code().to_owned()).unwrap_or_default()));
            counter(&mut failed, &labels, *n)?;
        }
        Ok(())
    })?;
    let mut bytes = encoder.encode_descriptor(
        "mesh_tcp",
        "Bytes of opaque connections; read: from the client, write: from the server",
        Some(&Unit::Bytes),
        MetricType::Counter,
    )?;
    each(golden, |key, totals| {
        if totals.tcp_opened == 0 {
            return Ok(());
        }
        for (flow, n) in [("read", totals.tcp_read_bytes), ("write", totals.tcp_write_bytes)] {
            let mut labels = labels_of(key);
            labels.push(("flow", flow.to_owned()));
            counter(&mut bytes, &labels, n)?;
        }
        Ok(())
    })
}

impl Metrics {
    fn endpoints(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "mesh_endpoint_state",
            "1 if the endpoint answers, 0 if the last attempt to reach it failed",
            None,
            MetricType::Gauge,
        )?;
        let now = Instant::now();
        let mut left = limits::MAX_ENDPOINT_METRICS;
        for (target, known) in self.0.state.known_targets() {
            for backend in known.backends.iter().take(left) {
                left -= 1;
                let labels: Labels<'_> = vec![
                    ("target", target.address.to_string()),
                    ("dst", workload(&backend.endpoint.workload)),
                    ("endpoint", backend.endpoint.address.to_string()),
                ];
                let failing = backend.load.lock().is_failing(now);
                family.encode_family(&labels)?.encode_gauge(&i64::from(!failing))?;
            }
        }
        Ok(())
    }

    fn access(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "mesh_access_decisions",
            "Arriving connections let in or refused",
            None,
            MetricType::Counter,
        )?;
        let counters = &self.0.counters;
        for (decision, tls, n) in [
            ("allow", "mutual", &counters.allowed_mutual),
            ("allow", "none", &counters.allowed_plain),
            ("deny", "unproven", &counters.denied_tls),
        ] {
            let labels: Labels<'_> = vec![("decision", decision.to_owned()), ("tls", tls.to_owned())];
            counter(&mut family, &labels, n.load(Ordering::Relaxed))?;
        }
        Ok(())
    }

    fn process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counters = &self.0.counters;
        for (name, help, n) in [
            (
                "mesh_golden_frames_delayed",
                "Golden frames sent with the next one because control was slow",
                &counters.frames_delayed,
            ),
            ("mesh_targets_untracked", "Connections past the limit of known destinations", &counters.targets_untracked),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            metric.encode_counter(&n.load(Ordering::Relaxed), NO_EXEMPLAR)?;
        }
        if let Some(current) = self.0.credentials.current() {
            let mut expiry = encoder.encode_descriptor(
                "mesh_identity_expiry_timestamp",
                "End of the certificate's validity, Unix time",
                Some(&Unit::Seconds),
                MetricType::Gauge,
            )?;
            expiry.encode_gauge(&gauge(current.expires_at))?;
        }
        let mut connected = encoder.encode_descriptor(
            "mesh_control_connected",
            "1 while the stream from control is up",
            None,
            MetricType::Gauge,
        )?;
        connected.encode_gauge(&i64::from(self.0.state.is_connected()))
    }
}

/// Shows every series to a fallible encoder; the first error wins.
fn each(golden: &Golden, mut show: impl FnMut(&SeriesKey, &crate::golden::Totals) -> fmt::Result) -> fmt::Result {
    let mut result = Ok(());
    golden.each(|key, totals| {
        if result.is_ok() {
            result = show(key, totals);
        }
    });
    result
}

fn counter(family: &mut MetricEncoder<'_>, labels: &Labels<'_>, n: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_counter(&n, NO_EXEMPLAR)
}

fn gauge(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// `src` and `dst` name the peer on its side; the proxy's own workload is known to the scraper.
fn labels_of(key: &SeriesKey) -> Labels<'static> {
    let (direction, src, dst) = match key.direction {
        Direction::Inbound => ("inbound", workload(&key.peer), String::new()),
        Direction::Outbound => ("outbound", String::new(), workload(&key.peer)),
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

fn workload(workload: &WorkloadRef) -> String {
    workload.to_string()
}

/// Counts per classic bucket, not cumulative (the encoder sums up), the last up to infinity.
fn classic(histogram: &Histogram) -> Vec<(f64, u64)> {
    let mut buckets: Vec<(f64, u64)> = BUCKETS.iter().map(|&bound| (bound, 0)).collect();
    buckets.push((f64::INFINITY, 0));
    for &(bucket, n) in histogram.buckets() {
        let seconds = bucket_value_us(bucket) / 1e6;
        let at = BUCKETS.partition_point(|&bound| bound < seconds);
        buckets[at].1 += n;
    }
    buckets
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
