//! Adding frames up: over time for one proxy, over proxies for one workload. Pure.

use crate::limits;
use mesh_api::WorkloadRef;
use mesh_api::golden::{ProxyFrame, Series, SeriesKey, WorkloadSeries};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// One proxy's part of a merged frame.
#[derive(Debug)]
pub struct Part<'a> {
    /// The workload its pod belongs to.
    pub workload: WorkloadRef,
    /// Name of the pod.
    pub pod: &'a str,
    /// What it counted.
    pub frame: &'a ProxyFrame,
}

/// Adds up the same span of many proxies, a row per workload (and pod) and series.
pub fn merge<'a>(parts: impl Iterator<Item = Part<'a>>, pods: bool) -> Vec<WorkloadSeries> {
    let mut rows: BTreeMap<(WorkloadRef, Option<&str>, &SeriesKey), Series> = BTreeMap::new();
    for Part { workload, pod, frame } in parts {
        for (key, series) in &frame.series {
            rows.entry((workload.clone(), pods.then_some(pod), key)).or_default().merge(series, true);
        }
    }
    rows.into_iter()
        .map(|((workload, pod, key), series)| WorkloadSeries {
            workload,
            pod: pod.map(str::to_owned),
            key: key.clone(),
            series,
        })
        .collect()
}

/// Adds up consecutive spans of one proxy, oldest first.
pub fn sequence<'a>(frames: impl IntoIterator<Item = &'a ProxyFrame>) -> ProxyFrame {
    let mut sum = ProxyFrame::default();
    let mut series: HashMap<&SeriesKey, Series> = HashMap::new();
    for frame in frames {
        sum.at_ms = frame.at_ms;
        sum.span_ms += frame.span_ms;
        // A series with open connections is in every frame: one that is missing has none.
        series.values_mut().for_each(|series| series.tcp_open = 0);
        for (key, later) in &frame.series {
            series.entry(key).or_default().merge(later, false);
        }
    }
    sum.series = series.into_iter().map(|(key, series)| (key.clone(), series)).collect();
    sum
}

/// What is still open after a frame, without anything counted.
pub fn levels(frame: &ProxyFrame) -> ProxyFrame {
    let open = frame.series.iter().filter(|(_, series)| series.tcp_open > 0);
    let series = open.map(|(key, s)| (key.clone(), Series { tcp_open: s.tcp_open, ..Series::default() }));
    ProxyFrame { at_ms: frame.at_ms, span_ms: 0, series: series.collect() }
}

/// What one observed proxy has told: sums of the time before it was observed, and the seconds since.
#[derive(Debug, Default)]
pub struct Memory {
    observed: bool,
    awaited: usize,
    since_ms: u64,
    sums: Vec<Arc<ProxyFrame>>,
    recent: VecDeque<Arc<ProxyFrame>>,
    recent_series: usize,
}

/// What a frame means for watchers.
#[derive(Debug, PartialEq)]
pub enum News {
    /// Nothing: it was counted already, or nobody looks.
    Nothing,
    /// Every awaited sum is there now.
    Complete,
    /// A second has passed.
    Second(Arc<ProxyFrame>),
}

impl Memory {
    /// The proxy has been asked for so many sums, and to go on from there.
    pub fn begin(&mut self, sums: usize) {
        *self = Self { observed: true, awaited: sums, ..Self::default() };
    }

    /// True if the proxy has been asked.
    pub fn is_observed(&self) -> bool {
        self.observed
    }

    /// True if every sum it was asked for is there.
    pub fn is_complete(&self) -> bool {
        self.observed && self.awaited == 0
    }

    /// Takes in a frame.
    pub fn receive(&mut self, frame: ProxyFrame, backfill: bool) -> News {
        match (backfill, self.awaited) {
            (true, 1..) => {
                self.awaited -= 1;
                self.since_ms = self.since_ms.max(frame.at_ms);
                self.sums.push(Arc::new(frame));
                if self.awaited == 0 { News::Complete } else { News::Nothing }
            }
            // A second that ended before the last sum was made is part of that sum.
            (false, 0) if self.observed && frame.at_ms > self.since_ms => {
                self.since_ms = frame.at_ms;
                let frame = Arc::new(frame);
                self.remember(frame.clone());
                News::Second(frame)
            }
            _ => News::Nothing,
        }
    }

    fn remember(&mut self, frame: Arc<ProxyFrame>) {
        self.recent_series += frame.series.len();
        self.recent.push_back(frame);
        let seconds = usize::from(limits::WINDOW_S);
        while self.recent.len() > seconds || (self.recent_series > limits::REMEMBERED_SERIES && self.recent.len() > 1) {
            if let Some(oldest) = self.recent.pop_front() {
                self.recent_series -= oldest.series.len();
                // The sums ended where the oldest second began; now there would be a hole.
                self.sums.clear();
            }
        }
    }

    /// The past as close to `window_ms` as the frames allow; its span is what it really covers.
    pub fn past(&self, window_ms: u64) -> ProxyFrame {
        let mut span_ms = 0;
        let enough = self.recent.iter().rev().take_while(|frame| {
            let wanted = span_ms < window_ms;
            span_ms += if wanted { frame.span_ms } else { 0 };
            wanted
        });
        let count = enough.count();
        let recent = self.recent.iter().skip(self.recent.len() - count).map(|frame| &**frame);
        let off_by = |sum: &&Arc<ProxyFrame>| (span_ms + sum.span_ms).abs_diff(window_ms);
        let best = self
            .sums
            .iter()
            .min_by_key(off_by)
            .filter(|sum| span_ms < window_ms && (span_ms == 0 || off_by(sum) <= window_ms - span_ms));
        sequence(best.map(|sum| &**sum).into_iter().chain(recent))
    }
}
