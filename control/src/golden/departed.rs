//! What proxies that have ended left behind: the last ten minutes of their past, for whoever asks about it later.
//!
//! Without it a rolling update would take its pods' requests out of every window. Bounded by time and by the number of
//! series; the oldest go first.

use crate::limits;
use crate::world::view::Name;
use mesh_api::WorkloadRef;
use mesh_api::golden::ProxyFrame;
use std::collections::VecDeque;
use tokio::time::Instant;

/// The past of a proxy that has ended.
#[derive(Debug)]
struct Departed {
    pod: Name,
    workload: WorkloadRef,
    frames: Vec<ProxyFrame>,
    series: usize,
    at: Instant,
}

/// The pasts of all that ended not long ago.
#[derive(Debug, Default)]
pub struct DepartedProxies {
    all: VecDeque<Departed>,
    series: usize,
}

impl DepartedProxies {
    /// A proxy has said farewell.
    pub fn keep(&mut self, pod: Name, workload: WorkloadRef, frames: Vec<ProxyFrame>, now: Instant) {
        let series = frames.iter().map(|frame| frame.series.len()).sum();
        self.series += series;
        self.all.push_back(Departed { pod, workload, frames, series, at: now });
        self.forget(now);
    }

    /// Forgets what is too old for any window, and the oldest of what is too much.
    pub fn forget(&mut self, now: Instant) {
        let too_old = |oldest: &Departed| now.duration_since(oldest.at).as_secs() > limits::WINDOW_S.into();
        while self.all.front().is_some_and(|oldest| self.series > limits::DEPARTED_SERIES || too_old(oldest)) {
            if let Some(gone) = self.all.pop_front() {
                self.series -= gone.series;
            }
        }
    }

    /// Series kept.
    pub fn series(&self) -> usize {
        self.series
    }

    /// What each of them counted within the last `window_ms`; the span is how far back that reaches. Times are those
    /// that passed since the farewell, so that the proxy's clock does not matter.
    pub fn past(&self, window_ms: u64, now: Instant) -> impl Iterator<Item = (&Name, &WorkloadRef, ProxyFrame)> {
        self.all.iter().filter_map(move |departed| {
            let age_ms = u64::try_from(now.duration_since(departed.at).as_millis()).unwrap_or(u64::MAX);
            let end_ms = departed.frames.last()?.at_ms;
            let begun_before = |frame: &ProxyFrame| age_ms + end_ms.saturating_sub(frame.at_ms) + frame.span_ms;
            let within = |frame: &&ProxyFrame| begun_before(frame) <= window_ms + limits::WINDOW_SLACK_MS;
            let mut past = ProxyFrame::sequence(departed.frames.iter().filter(within));
            past.span_ms = departed.frames.iter().filter(within).map(begun_before).max()?.min(window_ms);
            past.series.iter_mut().for_each(|(_, series)| series.tcp_open = 0);
            Some((&departed.pod, &departed.workload, past))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::tests::frame;
    use std::time::Duration;

    #[test]
    fn the_past_is_what_lies_within_the_window() {
        let mut departed = DepartedProxies::default();
        let now = Instant::now();
        let frames = (1..=20).map(|s| frame(s * 1000, 1000, 1)).collect();
        departed.keep(Name::new("shop", "web-1"), WorkloadRef::new("shop", "deployment", "web"), frames, now);
        let past = |window_s: u64, later_s: u64| {
            let later = now + Duration::from_secs(later_s);
            let mut all = departed.past(window_s * 1000, later).map(|(_, _, past)| past);
            all.next().map(|past| (past.series.iter().map(|(_, s)| s.requests).sum::<u64>(), past.span_ms / 1000))
        };
        assert_eq!(past(10, 0), Some((10, 10)));
        assert_eq!(past(60, 0), Some((20, 20)));
        assert_eq!(past(60, 50), Some((10, 60)));
        assert_eq!(past(60, 60), None);
        assert_eq!(past(600, 30), Some((20, 50)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut departed = DepartedProxies::default();
        let now = Instant::now();
        let pod = |n: usize| Name::new("shop", &n.to_string());
        let workload = WorkloadRef::new("shop", "deployment", "web");
        let many = || vec![ProxyFrame { series: vec![frame(0, 0, 1).series.remove(0); 5000], ..frame(1000, 1000, 0) }];
        for n in 0..100 {
            departed.keep(pod(n), workload.clone(), many(), now);
        }
        assert!(departed.series() <= limits::DEPARTED_SERIES);
        assert_eq!(departed.all.back().map(|last| last.pod.clone()), Some(pod(99)));
        departed.forget(now + Duration::from_secs(602));
        assert_eq!((departed.series(), departed.all.len()), (0, 0));
    }
}
