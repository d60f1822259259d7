//! Whether what a proxy sends can be true. A proxy that is broken (or is none) must not spoil the figures of all others:
//! a frame that makes no sense is left out and counted, and its sender is remembered for `meshctl check` to name.

use crate::limits;
use crate::world::view::Name;
use mesh_api::Histogram;
use mesh_api::golden::{Attempts, EndpointLevel, ProxyFrame, Senseless, Series, SeriesKey};
use mesh_api::histogram::BUCKETS;
use std::collections::{HashMap, HashSet};
use tokio::time::Instant;

/// Why a frame cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nonsense {
    /// It ends later than now.
    Future,
    /// It ends long before the one that came before it.
    Order,
    /// It covers more time than a proxy remembers.
    Span,
    /// It has more series than a proxy counts, or one twice.
    Series,
    /// A name in it is longer than any name is.
    Name,
    /// Parts add up to more than the whole, or a count is beyond all bounds.
    Counts,
    /// A histogram's buckets are not in order.
    Histogram,
    /// It is no message at all.
    Message,
}

impl Nonsense {
    /// The label that stands for it in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Nonsense::Future => "future",
            Nonsense::Order => "order",
            Nonsense::Span => "span",
            Nonsense::Series => "series",
            Nonsense::Name => "name",
            Nonsense::Counts => "counts",
            Nonsense::Histogram => "histogram",
            Nonsense::Message => "message",
        }
    }

    /// What is wrong, for a person.
    pub fn sentence(self) -> &'static str {
        match self {
            Nonsense::Future => "it counts seconds that have not begun",
            Nonsense::Order => "its seconds run backwards",
            Nonsense::Span => "it sums up more time than a proxy remembers",
            Nonsense::Series => "it has more series than a proxy counts, or one twice",
            Nonsense::Name => "it has names that are too long for any",
            Nonsense::Counts => "its parts add up to more than the whole, or are beyond all bounds",
            Nonsense::Histogram => "its histograms are not in order",
            Nonsense::Message => "what it sends is no message",
        }
    }
}

/// Looks whether a frame can be true at `unix_ms`.
pub fn judge(frame: &ProxyFrame, unix_ms: u64) -> Result<(), Nonsense> {
    if frame.at_ms > unix_ms.saturating_add(limits::CLOCK_AHEAD_MS) {
        return Err(Nonsense::Future);
    }
    if frame.span_ms > limits::FRAME_SPAN_MS {
        return Err(Nonsense::Span);
    }
    if frame.series.len() > limits::FRAME_SERIES || frame.endpoints.len() > limits::FRAME_ENDPOINTS {
        return Err(Nonsense::Series);
    }
    let mut keys = HashSet::with_capacity(frame.series.len());
    for (key, series) in &frame.series {
        if !keys.insert(key) {
            return Err(Nonsense::Series);
        }
        judge_key(key)?;
        judge_series(series)?;
    }
    for EndpointLevel { workload, pod, .. } in &frame.endpoints {
        judge_names([&workload.namespace, &workload.kind, &workload.name, pod].into_iter())?;
    }
    Ok(())
}

fn judge_key(key: &SeriesKey) -> Result<(), Nonsense> {
    let service = key.service.iter().flat_map(|service| [&service.namespace, &service.name]);
    let peer = [&key.peer.namespace, &key.peer.kind, &key.peer.name];
    judge_names(service.chain(peer).chain([&key.route, &key.method]))
}

fn judge_names<'a>(mut names: impl Iterator<Item = &'a String>) -> Result<(), Nonsense> {
    if names.any(|name| name.len() > limits::FRAME_NAME_BYTES) { Err(Nonsense::Name) } else { Ok(()) }
}

fn judge_series(series: &Series) -> Result<(), Nonsense> {
    // Before anything is added up: what is not bounded may not even be that.
    [&series.latency, &series.first_byte, &series.tcp_duration].into_iter().try_for_each(judge_histogram)?;
    if let Some(attempts) = &series.attempts {
        judge_attempts(attempts)?;
    }
    let Series { requests, tcp_opened, tcp_closed, tcp_open, retries, .. } = *series;
    let ended = requests.saturating_add(tcp_closed);
    let sum = |counts: &mut dyn Iterator<Item = &u64>| counts.fold(0u64, |sum, n| sum.saturating_add(*n));
    let parts = [
        (series.successes, requests),
        (series.timeouts, ended),
        (sum(&mut series.statuses.values()), requests),
        (sum(&mut series.grpc_statuses.values()), requests),
        (sum(&mut series.errors.values()), ended),
        (sum(&mut series.tcp_closes.values()), tcp_closed),
        (series.latency.count(), requests),
        (series.first_byte.count(), requests),
        (series.tcp_duration.count(), tcp_closed),
    ];
    let wholes = [requests, tcp_opened, tcp_closed, tcp_open, retries];
    let bytes = [series.tcp_read_bytes, series.tcp_write_bytes];
    let absurd = wholes.into_iter().any(|n| n > limits::FRAME_COUNT) || bytes.iter().any(|n| *n > limits::FRAME_BYTES);
    if absurd || parts.into_iter().any(|(part, whole)| part > whole) {
        return Err(Nonsense::Counts);
    }
    Ok(())
}

fn judge_attempts(all: &Attempts) -> Result<(), Nonsense> {
    let Attempts { requests, request_successes, request_latency, attempts, successes, latency } = all;
    [request_latency, latency].into_iter().try_for_each(judge_histogram)?;
    let parts = [
        (*request_successes, *requests),
        (*successes, *attempts),
        (request_latency.count(), *requests),
        (latency.count(), *attempts),
    ];
    let absurd = [requests, attempts].into_iter().any(|n| *n > limits::FRAME_COUNT);
    if absurd || parts.into_iter().any(|(part, whole)| part > whole) { Err(Nonsense::Counts) } else { Ok(()) }
}

fn judge_histogram(histogram: &Histogram) -> Result<(), Nonsense> {
    let buckets = histogram.buckets();
    let ordered = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0);
    let known = buckets.last().is_none_or(|(last, _)| usize::from(*last) < BUCKETS);
    let bounded = buckets.iter().all(|(_, n)| (1..=limits::FRAME_COUNT).contains(n));
    if ordered && known && bounded { Ok(()) } else { Err(Nonsense::Histogram) }
}

/// Who sent what made no sense, in the last ten minutes.
#[derive(Debug, Default)]
pub struct Suspects {
    pods: HashMap<Name, Suspect>,
}

#[derive(Debug)]
struct Suspect {
    frames: u64,
    last: Nonsense,
    at: Instant,
}

impl Suspects {
    /// A proxy sent nonsense.
    pub fn note(&mut self, pod: &Name, what: Nonsense, now: Instant) {
        if self.pods.len() >= limits::SUSPECTS && !self.pods.contains_key(pod) {
            self.forget(now);
            if self.pods.len() >= limits::SUSPECTS {
                return; // counted all the same; with that many, one more name helps nobody
            }
        }
        let suspect = self.pods.entry(pod.clone()).or_insert(Suspect { frames: 0, last: what, at: now });
        suspect.frames += 1;
        (suspect.last, suspect.at) = (what, now);
    }

    /// Those to be named, in the order of their names.
    pub fn named(&mut self, now: Instant, of: impl Fn(&Name) -> bool) -> Vec<Senseless> {
        self.forget(now);
        let told = |(pod, suspect): (&Name, &Suspect)| Senseless {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            frames: suspect.frames,
            why: suspect.last.sentence().to_owned(),
        };
        let mut named: Vec<_> = self.pods.iter().filter(|(pod, _)| of(pod)).map(told).collect();
        named.sort_unstable_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
        named
    }

    fn forget(&mut self, now: Instant) {
        self.pods.retain(|_, suspect| now.duration_since(suspect.at) <= limits::SUSPECT_MEMORY);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::frame;
    use super::*;
    use mesh_api::MeshError;
    use serde_json::json;
    use std::time::Duration;

    const NOW_MS: u64 = 1_795_256_430_000;

    fn sound() -> ProxyFrame {
        let mut frame = frame(NOW_MS, 1000, 7);
        let series = &mut frame.series[0].1;
        series.successes = 6;
        series.statuses = [(200, 6), (503, 1)].into();
        series.errors = [(MeshError::NoEndpoints, 1)].into();
        frame
    }

    /// A histogram as it comes over the wire, where nothing keeps it from being anything.
    fn histogram(buckets: serde_json::Value) -> Histogram {
        serde_json::from_value(json!({"buckets": buckets, "sum_us": 0})).unwrap()
    }

    #[test]
    fn what_can_be_true_is_taken() {
        assert_eq!(judge(&sound(), NOW_MS), Ok(()));
        assert_eq!(judge(&ProxyFrame::default(), NOW_MS), Ok(()));
        let late = ProxyFrame { at_ms: 5, span_ms: 600_000, ..sound() };
        assert_eq!(judge(&late, NOW_MS), Ok(()), "a clock may be wrong, and the past is long");
        let ahead = ProxyFrame { at_ms: NOW_MS + 60_000, ..sound() };
        assert_eq!(judge(&ahead, NOW_MS), Ok(()));
    }

    #[test]
    fn what_cannot_be_true_is_told_by_its_reason() {
        type Change = fn(&mut ProxyFrame);
        let cases: [(Change, Nonsense); 15] = [
            (|f| f.at_ms = u64::MAX, Nonsense::Future),
            (|f| f.span_ms = u64::MAX, Nonsense::Span),
            (|f| f.series.push(f.series[0].clone()), Nonsense::Series),
            (|f| f.series = vec![f.series[0].clone(); limits::FRAME_SERIES + 1], Nonsense::Series),
            (|f| f.series[0].0.route = "r".repeat(limits::FRAME_NAME_BYTES + 1), Nonsense::Name),
            (|f| f.series[0].0.peer.name = "p".repeat(limits::FRAME_NAME_BYTES + 1), Nonsense::Name),
            (|f| f.series[0].1.successes = 8, Nonsense::Counts),
            (|f| f.series[0].1.statuses = [(404, u64::MAX)].into(), Nonsense::Counts),
            (|f| f.series[0].1.errors = [(MeshError::Overload, 8)].into(), Nonsense::Counts),
            (|f| f.series[0].1.requests = u64::MAX, Nonsense::Counts),
            (|f| f.series[0].1.tcp_read_bytes = u64::MAX, Nonsense::Counts),
            (|f| f.series[0].1.latency = histogram(json!([[9, 8]])), Nonsense::Counts),
            (|f| f.series[0].1.latency = histogram(json!([[9, 1], [4, 1]])), Nonsense::Histogram),
            (|f| f.series[0].1.latency = histogram(json!([[60_000, 1]])), Nonsense::Histogram),
            (|f| f.series[0].1.latency = histogram(json!([[4, 0]])), Nonsense::Histogram),
        ];
        for (change, expect) in cases {
            let mut frame = sound();
            change(&mut frame);
            assert_eq!(judge(&frame, NOW_MS), Err(expect));
        }
    }

    #[test]
    fn suspects_are_named_for_ten_minutes() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        let pod = Name { namespace: "shop".to_owned(), name: "web-1".to_owned() };
        suspects.note(&pod, Nonsense::Future, now);
        suspects.note(&pod, Nonsense::Counts, now);
        let named = suspects.named(now, |_| true);
        assert_eq!((named.len(), named[0].frames, named[0].pod.as_str()), (1, 2, "web-1"));
        assert_eq!(named[0].why, Nonsense::Counts.sentence());
        assert!(suspects.named(now, |pod| pod.namespace == "other").is_empty());
        let later = now + limits::SUSPECT_MEMORY + Duration::from_secs(1);
        assert!(suspects.named(later, |_| true).is_empty());
        for n in 0..2 * limits::SUSPECTS {
            suspects.note(&Name { namespace: "shop".to_owned(), name: n.to_string() }, Nonsense::Span, now);
        }
        assert_eq!(suspects.named(now, |_| true).len(), limits::SUSPECTS);
    }
}
