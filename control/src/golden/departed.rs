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
    /// How far its clock was behind ours; 0 if that may as well have been the way here.
    behind_ms: i64,
}

/// The pasts of all that ended not long ago.
#[derive(Debug, Default)]
pub struct DepartedProxies {
    all: VecDeque<Departed>,
    series: usize,
}

impl DepartedProxies {
    /// A proxy has said farewell.
    pub fn keep(&mut self, pod: Name, workload: WorkloadRef, frames: Vec<ProxyFrame>, now: Instant, unix_ms: u64) {
        let ended_ms = frames.last().map_or(unix_ms, |frame| frame.at_ms);
        let behind_ms = i64::try_from(unix_ms).unwrap_or(0) - i64::try_from(ended_ms).unwrap_or(0);
        let behind_ms = if behind_ms.abs() < limits::CLOCKS_AGREE_MS { 0 } else { behind_ms };
        let series = frames.iter().map(|frame| frame.series.len()).sum();
        self.series += series;
        self.all.push_back(Departed { pod, workload, frames, series, at: now, behind_ms });
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

    /// What each of them counted in the seconds that ended after `since_ms`, up to `until_ms`; the span is how far back
    /// that reaches.
    pub fn past(&self, since_ms: u64, until_ms: u64) -> impl Iterator<Item = (&Name, &WorkloadRef, ProxyFrame)> {
        self.all.iter().filter_map(move |departed| {
            let at_ms = |frame: &ProxyFrame| frame.at_ms.saturating_add_signed(departed.behind_ms);
            let within = |frame: &&ProxyFrame| (since_ms + 1..=until_ms).contains(&at_ms(frame));
            let mut past = ProxyFrame::sequence(departed.frames.iter().filter(within));
            let begun = |frame: &ProxyFrame| at_ms(frame).saturating_sub(frame.span_ms);
            past.span_ms = until_ms - departed.frames.iter().filter(within).map(begun).min()?;
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
        let frames = || (1..=20).map(|s| frame(s * 1000, 1000, 1)).collect();
        let name = || (Name::new("shop", "web-1"), WorkloadRef::new("shop", "deployment", "web"));
        let past = |departed: &DepartedProxies, since_s: u64, until_s: u64| {
            let mut all = departed.past(since_s * 1000, until_s * 1000).map(|(_, _, past)| past);
            all.next().map(|past| (past.series.iter().map(|(_, s)| s.requests).sum::<u64>(), past.span_ms / 1000))
        };
        departed.keep(name().0, name().1, frames(), now, 20_300);
        assert_eq!(past(&departed, 10, 20), Some((10, 10)));
        assert_eq!(past(&departed, 5, 15), Some((10, 10)));
        assert_eq!(past(&departed, 0, 50), Some((20, 50)));
        assert_eq!(past(&departed, 10, 70), Some((10, 60)));
        assert_eq!(past(&departed, 20, 80), None);
        let mut slow = DepartedProxies::default();
        slow.keep(name().0, name().1, frames(), now, 3_620_000);
        assert_eq!(past(&slow, 3_610, 3_620), Some((10, 10)), "an hour behind");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut departed = DepartedProxies::default();
        let now = Instant::now();
        let pod = |n: usize| Name::new("shop", &n.to_string());
        let workload = WorkloadRef::new("shop", "deployment", "web");
        let many = || vec![ProxyFrame { series: vec![frame(0, 0, 1).series.remove(0); 5000], ..frame(1000, 1000, 0) }];
        for n in 0..100 {
            departed.keep(pod(n), workload.clone(), many(), now, 1000);
        }
        assert!(departed.series() <= limits::DEPARTED_SERIES);
        assert_eq!(departed.all.back().map(|last| last.pod.clone()), Some(pod(99)));
        departed.forget(now + Duration::from_secs(602));
        assert_eq!((departed.series(), departed.all.len()), (0, 0));
    }
}
