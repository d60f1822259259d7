//! A mergeable log-scale histogram of durations with a bounded relative error.
//!
//! Bucket `i` holds values in `(GAMMA^(i-1), GAMMA^i]` microseconds, with `GAMMA = 1.04`; its reported value is the
//! middle `2·GAMMA^i / (GAMMA+1)`, so the relative error of a quantile is at most `(GAMMA-1)/(GAMMA+1)` = 1.96 %
//! (Masson, Rim, Lee: DDSketch, VLDB 2019). Histograms of several proxies add up without loss.

use serde::{Deserialize, Serialize};

/// Ratio of one bucket's bound to the next.
pub const GAMMA: f64 = 1.04;
/// Buckets reach just above one hour; longer durations are counted in the last.
pub const BUCKETS: usize = 563;

/// Durations, counted in sparse log-scale buckets kept in index order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// `(bucket, count)`, ascending, no zero counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    buckets: Vec<(u16, u64)>,
    /// Sum of all values, microseconds.
    #[serde(default)]
    sum_us: u64,
}

/// The bucket of a duration in microseconds.
pub fn bucket_of(us: u64) -> u16 {
    if us <= 1 {
        return 0;
    }
    let index = ((us as f64).ln() / GAMMA.ln()).ceil();
    (index as usize).min(BUCKETS - 1) as u16
}

/// The value reported for a bucket, microseconds.
pub fn bucket_value_us(bucket: u16) -> f64 {
    2.0 * GAMMA.powi(i32::from(bucket)) / (GAMMA + 1.0)
}

impl Histogram {
    /// Counts one duration.
    pub fn record_us(&mut self, us: u64) {
        self.add(bucket_of(us), 1);
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// Adds another histogram.
    pub fn merge(&mut self, other: &Histogram) {
        for &(bucket, count) in &other.buckets {
            self.add(bucket, count);
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// Takes away a histogram that had been added before; buckets and sum end at zero.
    pub fn subtract(&mut self, other: &Histogram) {
        for &(bucket, count) in &other.buckets {
            if let Ok(at) = self.buckets.binary_search_by_key(&bucket, |&(b, _)| b) {
                self.buckets[at].1 = self.buckets[at].1.saturating_sub(count);
            }
        }
        self.buckets.retain(|&(_, count)| count > 0);
        self.sum_us = self.sum_us.saturating_sub(other.sum_us);
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|&(_, n)| n).sum()
    }

    /// Sum of all durations, microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// True if nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// `(bucket, count)` in ascending order.
    pub fn buckets(&self) -> &[(u16, u64)] {
        &self.buckets
    }

    /// The `q`-quantile (0 to 1) in milliseconds by nearest rank; `None` if empty.
    pub fn quantile_ms(&self, q: f64) -> Option<f64> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let rank = ((q.clamp(0.0, 1.0) * total as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for &(bucket, count) in &self.buckets {
            seen += count;
            if seen >= rank {
                return Some(bucket_value_us(bucket) / 1000.0);
            }
        }
        None
    }

    fn add(&mut self, bucket: u16, count: u64) {
        match self.buckets.binary_search_by_key(&bucket, |&(b, _)| b) {
            Ok(at) => self.buckets[at].1 = self.buckets[at].1.saturating_add(count),
            Err(at) => self.buckets.insert(at, (bucket, count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_quantile_is_within_two_percent(mut values in proptest::collection::vec(2u64..3_600_000_000, 1..200), q in 0.0f64..=1.0) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|&v| histogram.record_us(v));
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).max(1);
            let exact = values[rank - 1] as f64 / 1000.0;
            let got = histogram.quantile_ms(q).unwrap();
            prop_assert!((got - exact).abs() <= exact * 0.02, "q={q} exact={exact} got={got}");
        }

        #[test]
        fn merging_equals_counting_together(a in proptest::collection::vec(0u64..10_000_000, 0..50), b in proptest::collection::vec(0u64..10_000_000, 0..50)) {
            let (mut one, mut two, mut both) = (Histogram::default(), Histogram::default(), Histogram::default());
            a.iter().for_each(|&v| { one.record_us(v); both.record_us(v); });
            b.iter().for_each(|&v| { two.record_us(v); both.record_us(v); });
            let before = one.clone();
            one.merge(&two);
            prop_assert_eq!(&one, &both);
            one.subtract(&two);
            prop_assert_eq!(one, before);
        }
    }

    #[test]
    fn an_empty_histogram_has_no_quantile() {
        assert_eq!(Histogram::default().quantile_ms(0.5), None);
    }
}
