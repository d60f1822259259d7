//! The past: a frame for each second of the last minute, then one for each ten seconds up to ten minutes.
//!
//! Sums over up to a minute are exact to the second; longer ones begin at a ten seconds' border and say so by their
//! span. When there are too many series to remember them all, seconds are folded into tens earlier, and then the oldest
//! tens go.

use crate::limits;
use mesh_api::golden::{ProxyFrame, Series, SeriesKey};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// What changed during a span of time; `K` is what a series is counted in.
#[derive(Debug)]
pub struct Past<K> {
    /// End of the span, Unix milliseconds.
    pub at_ms: u64,
    /// Its length, milliseconds.
    pub span_ms: u64,
    /// What changed.
    pub series: Vec<(Arc<K>, Series)>,
}

/// Series by the address of what they are counted in.
pub type Sums<K> = HashMap<*const K, (Arc<K>, Series)>;

/// Frames of the past.
#[derive(Debug)]
pub struct Ring<K> {
    seconds: VecDeque<Past<K>>,
    tens: VecDeque<Past<K>>,
    series: usize,
}

impl<K> Default for Ring<K> {
    fn default() -> Self {
        Self { seconds: VecDeque::new(), tens: VecDeque::new(), series: 0 }
    }
}

impl<K> Past<K> {
    /// Adds the span that follows.
    fn append(&mut self, later: Past<K>) {
        self.at_ms = later.at_ms;
        self.span_ms += later.span_ms;
        let places: HashMap<*const K, usize> =
            self.series.iter().enumerate().map(|(at, (key, _))| (Arc::as_ptr(key), at)).collect();
        for (key, series) in later.series {
            match places.get(&Arc::as_ptr(&key)) {
                Some(&at) => self.series[at].1.merge(&series, false),
                None => self.series.push((key, series)),
            }
        }
    }
}

impl<K> Ring<K> {
    /// Adds the span that has just ended.
    pub fn remember(&mut self, past: Past<K>) {
        self.series += past.series.len();
        self.seconds.push_back(past);
        while self.seconds.len() > limits::RING_SECONDS {
            self.fold();
        }
        while self.tens.iter().map(|past| past.span_ms).sum::<u64>() > limits::RING_TENS_MS {
            self.forget();
        }
        while self.series > limits::RING_SERIES {
            match self.seconds.len() {
                11.. => self.fold(),
                _ if !self.tens.is_empty() => self.forget(),
                2.. => self.fold(),
                _ => break,
            }
        }
    }

    /// Series in all frames together.
    pub fn len(&self) -> usize {
        self.series
    }

    /// True if nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.series == 0
    }

    /// The oldest second becomes part of the newest ten.
    fn fold(&mut self) {
        let Some(oldest) = self.seconds.pop_front() else { return };
        self.series -= oldest.series.len();
        match self.tens.back_mut().filter(|ten| ten.span_ms + oldest.span_ms <= limits::RING_TEN_MS) {
            Some(ten) => {
                self.series -= ten.series.len();
                ten.append(oldest);
                self.series += ten.series.len();
            }
            None => {
                self.series += oldest.series.len();
                self.tens.push_back(oldest);
            }
        }
    }

    fn forget(&mut self) {
        if let Some(oldest) = self.tens.pop_front() {
            self.series -= oldest.series.len();
        }
    }

    fn newest_first(&self) -> impl Iterator<Item = &Past<K>> {
        self.seconds.iter().rev().chain(self.tens.iter().rev())
    }

    /// The sum of the frames that ended after `since_ms`, up to `until_ms`, and how much time it covers: the first of them
    /// may have begun earlier. What was open is left out.
    pub fn sum(&self, since_ms: u64, until_ms: u64) -> (u64, Sums<K>) {
        let mut span_ms = 0;
        let mut sums: Sums<K> = HashMap::new();
        let wanted = self.newest_first().skip_while(|past| past.at_ms > until_ms);
        for past in wanted.take_while(|past| past.at_ms > since_ms) {
            span_ms += past.span_ms;
            for (key, series) in &past.series {
                let sum = sums.entry(Arc::as_ptr(key)).or_insert_with(|| (key.clone(), Series::default()));
                sum.1.merge(series, false);
            }
        }
        for (_, sum) in sums.values_mut() {
            sum.tcp_open = 0;
        }
        (span_ms, sums)
    }

    /// The frames that ended after `at_ms`, oldest first.
    pub fn after(&self, at_ms: u64, key: impl Fn(&K) -> SeriesKey) -> Vec<ProxyFrame> {
        let later: Vec<&Past<K>> = self.newest_first().take_while(|past| past.at_ms > at_ms).collect();
        let series = |past: &Past<K>| past.series.iter().map(|(cell, series)| (key(cell), series.clone())).collect();
        let frame = |past: &Past<K>| ProxyFrame {
            at_ms: past.at_ms,
            span_ms: past.span_ms,
            series: series(past),
            endpoints: Vec::new(),
        };
        later.into_iter().rev().map(frame).collect()
    }

    /// Every frame, oldest first, in at most `limit` series or one frame; older ones are summed up in the first.
    pub fn all(&self, limit: usize, key: impl Fn(&K) -> SeriesKey) -> Vec<ProxyFrame> {
        let mut left = limit;
        let mut frames: VecDeque<ProxyFrame> = VecDeque::new();
        for past in self.newest_first() {
            let closed = |(cell, series): &(Arc<K>, Series)| (key(cell), Series { tcp_open: 0, ..series.clone() });
            let series = past.series.iter().map(closed).collect();
            let mut frame = ProxyFrame { at_ms: past.at_ms, span_ms: past.span_ms, series, endpoints: Vec::new() };
            left = left.saturating_sub(frame.series.len());
            if left == 0
                && let Some(later) = frames.pop_front()
            {
                let at_ms = later.at_ms;
                frame = ProxyFrame::sequence([&frame, &later]);
                frame.at_ms = at_ms;
            }
            frames.push_front(frame);
        }
        frames.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: &u64) -> SeriesKey {
        serde_json::from_value(serde_json::json!({"direction": "inbound", "carried": "http", "port": n, "tls": "plain",
            "peer": {"namespace": "", "kind": "pod", "name": ""}}))
        .unwrap()
    }

    fn second(at_s: u64, cells: &[Arc<u64>]) -> Past<u64> {
        let one = Series { requests: 1, tcp_open: 2, ..Series::default() };
        let series = cells.iter().map(|cell| (cell.clone(), one.clone())).collect();
        Past { at_ms: at_s * 1000, span_ms: 1000, series }
    }

    fn requests(sums: &Sums<u64>) -> u64 {
        sums.values().map(|(_, series)| series.requests).sum()
    }

    #[test]
    fn a_minute_is_exact_to_the_second_and_ten_minutes_to_ten() {
        let mut ring = Ring::default();
        let cell = [Arc::new(1)];
        for s in 1..=1000 {
            ring.remember(second(s, &cell));
        }
        let last = |ring: &Ring<u64>, wanted: u64| ring.sum(1_000_000 - wanted * 1000, 1_000_000);
        for wanted in [1, 2, 10, 59, 60] {
            let (span_ms, sums) = last(&ring, wanted);
            assert_eq!((span_ms, requests(&sums)), (wanted * 1000, wanted));
        }
        for wanted in [61, 100, 355, 590] {
            let (span_ms, sums) = last(&ring, wanted);
            assert_eq!(span_ms, requests(&sums) * 1000, "a request a second");
            assert!((wanted * 1000..(wanted + 10) * 1000).contains(&span_ms), "{wanted}: {span_ms}");
        }
        let (span_ms, sums) = last(&ring, 600);
        assert!((590_000..=610_000).contains(&span_ms), "{span_ms}");
        assert_eq!(sums.len(), 1);
        assert!(ring.len() <= 64 + 55, "{}", ring.len());
        assert_eq!(sums.values().next().unwrap().1.tcp_open, 0);
        assert_eq!(requests(&ring.sum(980_000, 990_000).1), 10);
    }

    #[test]
    fn what_is_told_at_the_end_is_all_of_it() {
        let mut ring = Ring::default();
        let cells: Vec<_> = (0..10).map(Arc::new).collect();
        for s in 1..=100 {
            ring.remember(second(s, &cells));
        }
        let frames = ring.all(usize::MAX, key);
        assert_eq!((frames.len(), frames[0].at_ms, frames.last().unwrap().at_ms), (68, 10_000, 100_000));
        let few = ring.all(35, key);
        assert_eq!(few.len(), 3, "two seconds, and the rest together with a third");
        for frames in [frames, few] {
            let all = frames.iter().flat_map(|frame| &frame.series);
            assert_eq!(all.map(|(_, series)| series.requests).sum::<u64>(), 1000);
            assert_eq!(frames.iter().map(|frame| frame.span_ms).sum::<u64>(), 100_000);
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_it_is_bounded_and_sums_are_what_their_span_says(
            busy in proptest::collection::vec(0usize..2000, 1..200), wanted in 1u64..700,
        ) {
            let cells: Vec<_> = (0..2000).map(Arc::new).collect();
            let mut ring = Ring::default();
            for (s, busy) in busy.iter().enumerate() {
                ring.remember(second(s as u64 + 1, &cells[..*busy]));
                prop_assert!(ring.len() <= limits::RING_SERIES);
            }
            let until_ms = busy.len() as u64 * 1000;
            let (span_ms, sums) = ring.sum(until_ms.saturating_sub(wanted * 1000), until_ms);
            let seconds = usize::try_from(span_ms / 1000).unwrap();
            let expect: usize = busy.iter().rev().take(seconds).sum();
            prop_assert_eq!(requests(&sums), expect as u64);
            prop_assert!(seconds >= busy.len().min(usize::try_from(wanted).unwrap()).min(8));
        }
    }
}
