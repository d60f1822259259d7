//! Shares: which of several gets the next request, by weight. Chance comes in as a value.

/// Weights, summed up from the first to each.
#[derive(Debug, Default)]
pub struct Split {
    sums: Box<[u64]>,
}

impl Split {
    /// One share for each weight; those of weight zero get nothing.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let mut sum = 0_u64;
        let sums = weights.into_iter().map(|weight| {
            sum = sum.saturating_add(u64::from(weight));
            sum
        });
        Self { sums: sums.collect() }
    }

    /// The share that an even random number falls into; `None` if there is no weight at all.
    pub fn choose(&self, random: u64) -> Option<usize> {
        let whole = *self.sums.last().filter(|whole| **whole > 0)?;
        // Below `whole`, and as even as 64 bits make it.
        let point = ((u128::from(random) * u128::from(whole)) >> 64) as u64;
        Some(self.sums.partition_point(|sum| *sum <= point))
    }

    /// True if there is nothing to choose: one share, and it has weight.
    pub fn is_single(&self) -> bool {
        matches!(*self.sums, [whole] if whole > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::Random;
    use proptest::prelude::*;

    #[test]
    fn no_weight_is_no_choice() {
        for weights in [vec![], vec![0], vec![0, 0, 0]] {
            assert_eq!(Split::new(weights).choose(7), None);
        }
        assert_eq!(Split::new([0, 1, 0]).choose(u64::MAX), Some(1));
        assert_eq!(Split::new([0, 1, 0]).choose(0), Some(1));
        assert!(Split::new([3]).is_single() && !Split::new([0]).is_single() && !Split::new([1, 1]).is_single());
    }

    proptest! {
        #[test]
        fn shares_are_within_five_percent_of_their_weights(
            weights in proptest::collection::vec(prop_oneof![Just(0_u32), 1..1000_u32, Just(1_000_000)], 1..8),
            seed: u64,
        ) {
            const DRAWS: u32 = 20_000;
            let whole: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            prop_assume!(whole > 0.0);
            let split = Split::new(weights.iter().copied());
            let mut random = Random::seeded(seed);
            let mut counts = vec![0_u32; weights.len()];
            for _ in 0..DRAWS {
                counts[split.choose(random.number()).unwrap()] += 1;
            }
            for (count, weight) in counts.iter().zip(&weights) {
                let share = f64::from(*count) / f64::from(DRAWS);
                prop_assert!((share - f64::from(*weight) / whole).abs() < 0.05, "{counts:?} for {weights:?}");
                prop_assert!(*weight > 0 || *count == 0);
            }
        }

        #[test]
        fn any_number_falls_into_a_share_with_weight(
            weights in proptest::collection::vec(any::<u32>(), 0..8),
            random: u64,
        ) {
            let chosen = Split::new(weights.iter().copied()).choose(random);
            prop_assert_eq!(chosen.is_some(), weights.iter().any(|w| *w > 0));
            prop_assert!(chosen.is_none_or(|at| weights[at] > 0));
        }
    }
}
