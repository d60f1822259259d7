//! Numbers that look random and are not: the same count always gives the same number.

/// A well-mixed number for a count (the finalizer of splitmix64).
pub(crate) fn mixed(count: u64) -> u64 {
    let mut z = count.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number of `from..=to` for a count.
pub(crate) fn between(count: u64, from: u64, to: u64) -> u64 {
    from + mixed(count) % (to - from + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_in_their_range_and_use_all_of_it() {
        let mut seen = [0_u32; 5];
        for n in 0..1000 {
            seen[usize::try_from(between(n, 3, 7) - 3).unwrap()] += 1;
        }
        assert!(seen.iter().all(|n| *n > 150), "{seen:?}");
        assert_eq!(mixed(42), mixed(42));
    }
}
