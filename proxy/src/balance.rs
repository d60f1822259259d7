//! Which endpoint gets the next request: unless a policy says otherwise, of two chosen at random the one with the lower
//! expected cost.
//!
//! The cost of an endpoint is its peak-sensitive moving average of latency times the requests it already has
//! (Mitzenmacher: The power of two choices, 2001; peak EWMA as in Finagle). A slower answer raises the average at
//! once, a faster one lowers it gradually, and without traffic it decays, so that a recovered endpoint is tried again.
//! Everything here is a pure function of its arguments: time and randomness come in as values.

pub mod hash;

use crate::limits;
use std::time::{Duration, Instant};

/// Cost of an endpoint that asked for a pause, beside its own: more than any other comes to.
const PAUSED: f64 = 1e15;
/// Draws of an endpoint before all are looked at for one that takes requests.
const DRAWS: usize = 8;

/// Time in which an old latency loses its weight.
const DECAY: Duration = Duration::from_secs(10);
/// Latency assumed of an endpoint not yet tried.
const UNKNOWN: Duration = Duration::from_millis(1);
/// Latency a failed attempt counts as.
const FAILURE: Duration = Duration::from_secs(2);
/// How long an endpoint counts as failing after a failed attempt.
const FAILING_FOR: Duration = Duration::from_secs(5);

/// How long after its last request an endpoint is in use.
const IN_USE_FOR: Duration = Duration::from_secs(60);

/// What is known of an endpoint's speed.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    average_us: f64,
    updated: Instant,
    in_flight: u32,
    failed: Option<Instant>,
    tried: bool,
    paused_until: Option<Instant>,
}

impl Load {
    /// An endpoint nobody has tried yet.
    pub fn new(now: Instant) -> Self {
        Self {
            average_us: UNKNOWN.as_micros() as f64,
            updated: now,
            in_flight: 0,
            failed: None,
            tried: false,
            paused_until: None,
        }
    }

    /// A request is on its way.
    pub fn start(&mut self) {
        self.in_flight += 1;
    }

    /// A request is over.
    pub fn finish(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// An answer came after `latency`.
    pub fn answered(&mut self, now: Instant, latency: Duration) {
        self.failed = None;
        self.observe(now, latency);
    }

    /// An attempt failed; true if that is news.
    pub fn failed(&mut self, now: Instant) -> bool {
        let news = !self.is_failing(now);
        self.failed = Some(now);
        self.observe(now, FAILURE);
        news
    }

    /// True if the last attempt failed not long ago.
    pub fn is_failing(&self, now: Instant) -> bool {
        self.failed.is_some_and(|at| now.saturating_duration_since(at) < FAILING_FOR)
    }

    /// The endpoint asked not to be sent requests for a while (`Retry-After`).
    pub fn pause(&mut self, now: Instant, pause: Duration) {
        self.paused_until = Some(now + pause.min(limits::MAX_PAUSE));
    }

    /// True while that lasts.
    pub fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// True if there are requests under way, or there was an answer or a failure in the last minute.
    pub fn is_in_use(&self, now: Instant) -> bool {
        self.in_flight > 0 || (self.tried && now.saturating_duration_since(self.updated) < IN_USE_FOR)
    }

    /// How long the next answer is expected to take.
    pub fn expected(&self, now: Instant) -> Duration {
        Duration::from_secs_f64(self.decayed(now).max(0.0) / 1e6)
    }

    /// Expected cost of one more request.
    pub fn cost(&self, now: Instant) -> f64 {
        let cost = self.decayed(now) * f64::from(self.in_flight + 1);
        if self.is_paused(now) { cost + PAUSED } else { cost }
    }

    fn observe(&mut self, now: Instant, latency: Duration) {
        let latency_us = latency.as_micros() as f64;
        let weight = self.weight(now);
        self.average_us = latency_us.max(self.average_us * weight + latency_us * (1.0 - weight));
        (self.updated, self.tried) = (now, true);
    }

    fn decayed(&self, now: Instant) -> f64 {
        (self.average_us * self.weight(now)).max(1.0)
    }

    fn weight(&self, now: Instant) -> f64 {
        (-now.saturating_duration_since(self.updated).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// Chooses among `candidates` endpoints by their cost; `None` if there are none.
pub fn choose(candidates: usize, cost: impl Fn(usize) -> f64, random: &mut Random) -> Option<usize> {
    match candidates {
        0 => None,
        1 => Some(0),
        n => {
            let one = random.below(n);
            let two = (one + 1 + random.below(n - 1)) % n;
            Some(if cost(two) < cost(one) { two } else { one })
        }
    }
}

/// One of `n` endpoints that `takes` requests, any with the same chance.
pub fn any(n: usize, takes: impl Fn(usize) -> bool, random: &mut Random) -> Option<usize> {
    if n == 0 {
        return None;
    }
    for _ in 0..DRAWS.min(n * 2) {
        let at = random.below(n);
        if takes(at) {
            return Some(at);
        }
    }
    // Whether one takes requests may change meanwhile: then the last to do so is it.
    let count = (0..n).filter(|at| takes(*at)).count();
    let nth = if count == 0 { return None } else { random.below(count) };
    let mut last = None;
    for at in (0..n).filter(|at| takes(*at)).take(nth + 1) {
        last = Some(at);
    }
    last
}

/// Of two of `n` endpoints that `takes` requests, the one with the lower cost.
pub fn better_of_two(
    n: usize,
    takes: impl Fn(usize) -> bool,
    cost: impl Fn(usize) -> f64,
    random: &mut Random,
) -> Option<usize> {
    let one = any(n, &takes, random)?;
    let two = any(n, |at| at != one && takes(at), random).unwrap_or(one);
    Some(if two != one && cost(two) < cost(one) { two } else { one })
}

/// The endpoint whose turn it is, or another one if it does not take requests.
pub fn next_in_turn(n: usize, turn: usize, takes: impl Fn(usize) -> bool, random: &mut Random) -> Option<usize> {
    let at = turn.checked_rem(n)?;
    // Its neighbour would get twice as much.
    if takes(at) { Some(at) } else { any(n, takes, random) }
}

/// A small generator of even pseudo-random numbers (SplitMix64; Steele, Lea, Flood 2014). Not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence that starts with `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A sequence nobody can foretell, from the standard library's own source of randomness.
    pub fn from_os() -> Self {
        use std::hash::{BuildHasher, Hasher};
        Self(std::collections::hash_map::RandomState::new().build_hasher().finish())
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n` (which is not 0).
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.number()) * n as u128) >> 64) as usize
    }

    /// `duration` give or take a fifth, so that many proxies do not act at once.
    pub fn jitter(&mut self, duration: Duration) -> Duration {
        duration.mul_f64(0.8 + 0.4 * (self.below(1_000_000) as f64 / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chooses one of so many.
    type Way<'a> = &'a dyn Fn(usize, &mut Random) -> usize;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_slow_answer_counts_at_once_and_fades() {
        let t0 = Instant::now();
        let mut load = Load::new(t0);
        load.answered(t0, ms(1));
        let before = load.cost(t0);
        load.answered(t0, ms(500));
        assert!(load.cost(t0) >= 500_000.0 && before < 2_000.0);
        load.answered(t0 + ms(100), ms(1));
        assert!(load.cost(t0 + ms(100)) > 400_000.0, "one fast answer does not clear it");
        assert!(load.cost(t0 + ms(60_000)) < 5_000.0, "time does");
    }

    #[test]
    fn requests_under_way_raise_the_cost() {
        let t0 = Instant::now();
        let mut load = Load::new(t0);
        let idle = load.cost(t0);
        load.start();
        load.start();
        assert!((load.cost(t0) - 3.0 * idle).abs() < 1e-6);
        load.finish();
        load.finish();
        load.finish();
        assert_eq!(load.in_flight(), 0);
    }

    #[test]
    fn a_failure_is_remembered_until_an_answer_or_some_seconds() {
        let t0 = Instant::now();
        let mut load = Load::new(t0);
        assert!(load.failed(t0) && !load.failed(t0));
        assert!(load.is_failing(t0 + ms(4_000)) && !load.is_failing(t0 + ms(6_000)));
        assert!(load.cost(t0) > 1_000_000.0);
        load.answered(t0, ms(1));
        assert!(!load.is_failing(t0));
    }

    #[test]
    fn of_three_the_slow_one_gets_the_fewest() {
        let costs = [1.0, 50.0, 1.0];
        let mut random = Random::seeded(7);
        let mut counts = [0u32; 3];
        for _ in 0..3000 {
            counts[choose(3, |i| costs[i], &mut random).unwrap()] += 1;
        }
        // It only wins when compared with itself, which does not happen.
        assert_eq!(counts[1], 0);
        assert!(counts[0] > 1000 && counts[2] > 1000);
        assert_eq!(choose(0, |_| 0.0, &mut random), None);
        assert_eq!(choose(1, |_| 0.0, &mut random), Some(0));
    }

    #[test]
    fn an_endpoint_that_asked_for_a_pause_is_dearer_than_any_other() {
        let t0 = Instant::now();
        let (mut paused, mut slow) = (Load::new(t0), Load::new(t0));
        paused.pause(t0, ms(2000));
        slow.answered(t0, Duration::from_secs(60));
        assert!(paused.cost(t0) > slow.cost(t0) && paused.is_paused(t0 + ms(1999)));
        assert!(!paused.is_paused(t0 + ms(2000)));
        paused.pause(t0, Duration::MAX);
        assert!(!paused.is_paused(t0 + limits::MAX_PAUSE), "a pause has an end");
    }

    #[test]
    fn every_way_is_even() {
        for n in [2_usize, 3, 10] {
            for out in [None, Some(1)] {
                let takes = |at| Some(at) != out;
                let mut random = Random::seeded(n as u64);
                let ways: [(&str, Way<'_>); 3] = [
                    ("any", &|_, random| any(n, takes, random).unwrap()),
                    ("two", &|_, random| better_of_two(n, takes, |_| 1.0, random).unwrap()),
                    ("turns", &|turn, random| next_in_turn(n, turn, takes, random).unwrap()),
                ];
                for (name, way) in ways {
                    let mut counts = vec![0_u32; n];
                    for turn in 0..100_000 {
                        counts[way(turn, &mut random)] += 1;
                    }
                    let even = 100_000.0 / (n - out.iter().count()) as f64;
                    for (at, count) in counts.into_iter().enumerate().filter(|(at, _)| takes(*at)) {
                        let off = (f64::from(count) - even).abs() / even;
                        assert!(off < 0.05, "{name} of {n} without {out:?}: {at} is off by {off}");
                    }
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_chosen_takes_requests(
            n in 0_usize..20, out in proptest::collection::btree_set(0_usize..20, 0..20), turn: usize, seed: u64,
        ) {
            let takes = |at: usize| !out.contains(&at);
            let mut random = Random::seeded(seed);
            for chosen in [
                any(n, takes, &mut random),
                better_of_two(n, takes, |at| at as f64, &mut random),
                next_in_turn(n, turn, takes, &mut random),
            ] {
                proptest::prop_assert_eq!(chosen.is_some(), (0..n).any(takes));
                proptest::prop_assert!(chosen.is_none_or(|at| at < n && takes(at)));
            }
        }
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        let mut random = Random::seeded(1);
        for _ in 0..100 {
            let d = random.jitter(ms(1000));
            assert!(d >= ms(800) && d <= ms(1200));
        }
    }
}
