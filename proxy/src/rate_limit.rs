//! Who has called too often. A bucket of tokens for each key: it holds as many as may come at once and fills evenly.

pub mod shared;

use crate::condition::Meant;
use crate::limits;
use mesh_api::PortLimit;
use mesh_api::rate_limit::{RateBy, RateLimit};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// All rate limits that a request has to pass, in the order of their policy.
#[derive(Debug)]
pub struct Limiters {
    all: Vec<Arc<Limiter>>,
}

/// What a request is told apart by.
pub trait Caller {
    /// What `by` finds, if the request has it.
    fn key(&self, by: RateBy, name: &str) -> Option<Vec<u8>>;
    /// True if it is one of those.
    fn is(&self, meant: &Meant) -> bool;
}

impl Limiters {
    /// Limiters for these limits, if there are any. Those that were in `before` go on where they were. An error says why
    /// a limit cannot be kept.
    pub fn new(limits: &[PortLimit], before: Option<&Self>) -> Result<Option<Arc<Self>>, String> {
        let all = limits.iter().enumerate().map(|(at, said)| {
            let kept = before.and_then(|before| before.all.iter().find(|limiter| limiter.is(said)).cloned());
            kept.map_or_else(|| Limiter::new(said.clone()).map(Arc::new), Ok)
                .map_err(|why| format!("rateLimits[{at}].{why}"))
        });
        let all: Vec<_> = all.collect::<Result<_, _>>()?;
        Ok((!all.is_empty()).then(|| Arc::new(Self { all })))
    }

    /// Counts a request; an error says after which time another one may pass. Limits before the one that refuses have
    /// counted it.
    pub fn pass(&self, caller: &impl Caller, now: Instant) -> Result<(), Duration> {
        for limiter in self.all.iter().filter(|limiter| caller.is(&limiter.when)) {
            let key = limiter.limit.per.as_ref().and_then(|per| caller.key(per.by, per.name.as_deref().unwrap_or("")));
            limiter.pass(key.as_deref(), now)?;
        }
        Ok(())
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Limiter>> {
        self.all.iter()
    }
}

/// One rate limit at work.
#[derive(Debug)]
pub struct Limiter {
    /// The limit.
    limit: RateLimit,
    /// Which requests it counts.
    when: Meant,
    /// What those call it who keep it together with us.
    shared_as: Option<String>,
    /// Our part of a shared limit, in millionths.
    share: AtomicU32,
    /// Requests counted so far, passed or not.
    asked: AtomicU64,
    hasher: RandomState,
    buckets: Mutex<Buckets>,
}

/// A whole share, in millionths.
pub const WHOLE: u32 = 1_000_000;

#[derive(Debug, Default)]
struct Buckets {
    /// By the hash of their key.
    keys: HashMap<u64, Bucket>,
    /// For requests without a key, and for those of keys that found no place.
    rest: Option<Bucket>,
    swept: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// How buckets fill.
#[derive(Clone, Copy, Debug)]
struct Pace {
    burst: f64,
    per_second: f64,
}

impl Limiter {
    /// A limit nobody has touched; an error says why it cannot be kept.
    pub fn new(said: PortLimit) -> Result<Self, String> {
        let PortLimit { limit, shared_as } = said;
        Ok(Self {
            when: Meant::compile(&limit.when)?,
            limit,
            shared_as,
            share: AtomicU32::new(WHOLE),
            asked: AtomicU64::new(0),
            hasher: RandomState::new(),
            buckets: Mutex::default(),
        })
    }

    fn is(&self, said: &PortLimit) -> bool {
        self.limit == said.limit && self.shared_as == said.shared_as
    }

    /// What those call it who keep it together with us, if somebody does.
    pub fn shared_as(&self) -> Option<&str> {
        self.shared_as.as_deref()
    }

    /// Counts a request with this key; an error says after which time another one may pass.
    pub fn pass(&self, key: Option<&[u8]>, now: Instant) -> Result<(), Duration> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let pace = self.pace();
        let mut buckets = self.buckets.lock();
        buckets.of(key.map(|key| self.hasher.hash_one(key)), pace, now).take(pace, now)
    }

    /// Our part of the limit from now on, in millionths.
    pub fn set_share(&self, share: u32) {
        self.share.store(share.min(WHOLE), Ordering::Relaxed);
    }

    /// Requests counted since the last time this was asked.
    pub fn take_asked(&self) -> u64 {
        self.asked.swap(0, Ordering::Relaxed)
    }

    /// Keys told apart now.
    pub fn keys(&self) -> usize {
        self.buckets.lock().keys.len()
    }

    fn pace(&self) -> Pace {
        let share = f64::from(self.share.load(Ordering::Relaxed)) / f64::from(WHOLE);
        let interval = self.limit.interval.duration().as_secs_f64().max(1e-3);
        Pace {
            burst: (f64::from(self.limit.burst()) * share).max(1.0),
            per_second: f64::from(self.limit.requests.max(1)) * share / interval,
        }
    }
}

impl Buckets {
    fn of(&mut self, key: Option<u64>, pace: Pace, now: Instant) -> &mut Bucket {
        let full = Bucket { tokens: pace.burst, filled: now };
        if let Some(key) = key {
            if self.keys.len() >= limits::RATE_KEYS && !self.keys.contains_key(&key) {
                self.sweep(pace, now);
            }
            if self.keys.len() < limits::RATE_KEYS || self.keys.contains_key(&key) {
                return self.keys.entry(key).or_insert(full);
            }
        }
        self.rest.get_or_insert(full)
    }

    /// Forgets keys that would find their whole burst.
    fn sweep(&mut self, pace: Pace, now: Instant) {
        if self.swept.is_none_or(|at| now.saturating_duration_since(at) >= limits::RATE_SWEEP) {
            self.swept = Some(now);
            self.keys.retain(|_, bucket| {
                bucket.fill(pace, now);
                bucket.tokens < pace.burst
            });
        }
    }
}

impl Bucket {
    fn fill(&mut self, pace: Pace, now: Instant) {
        let seconds = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + seconds * pace.per_second).min(pace.burst);
        self.filled = self.filled.max(now);
    }

    fn take(&mut self, pace: Pace, now: Instant) -> Result<(), Duration> {
        self.fill(pace, now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let seconds = (1.0 - self.tokens) / pace.per_second.max(1e-9);
        Err(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::Millis;
    use mesh_api::rate_limit::RateKey;
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn limiter(requests: u32, interval: u64, burst: Option<u32>) -> Limiter {
        let limit = RateLimit { requests, interval: Millis(interval), burst, ..RateLimit::default() };
        Limiter::new(limit.into()).unwrap()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let limiter = limiter(10, 1000, Some(3));
        let t0 = Instant::now();
        for _ in 0..3 {
            assert_eq!(limiter.pass(None, t0), Ok(()));
        }
        let wait = limiter.pass(None, t0).unwrap_err();
        assert!((wait.as_secs_f64() - 0.1).abs() < 1e-6, "{wait:?}");
        assert!(limiter.pass(None, t0 + ms(99)).is_err());
        assert_eq!(limiter.pass(None, t0 + ms(101)), Ok(()));
        assert_eq!(limiter.take_asked(), 6);
    }

    #[test]
    fn keys_do_not_touch_each_other_and_are_bounded() {
        let limiter = limiter(1, 1000, None);
        let t0 = Instant::now();
        assert_eq!(limiter.pass(Some(b"a"), t0), Ok(()));
        assert!(limiter.pass(Some(b"a"), t0).is_err());
        assert_eq!((limiter.pass(Some(b"b"), t0), limiter.pass(None, t0)), (Ok(()), Ok(())));
        for key in 0..limits::RATE_KEYS as u32 * 2 {
            let _ = limiter.pass(Some(&key.to_be_bytes()), t0);
        }
        assert_eq!(limiter.keys(), limits::RATE_KEYS);
        assert!(limiter.pass(Some(b"new"), t0).is_err(), "the others count together");
        assert_eq!(limiter.pass(Some(b"new"), t0 + ms(1100)), Ok(()), "old keys are forgotten");
        assert_eq!(limiter.keys(), 1);
    }

    #[test]
    fn a_share_is_a_part_of_the_limit() {
        let limiter = limiter(100, 1000, Some(1));
        limiter.set_share(WHOLE / 4);
        let t0 = Instant::now();
        let passed = (0..10_000).filter(|i| limiter.pass(None, t0 + ms(*i)).is_ok()).count();
        assert!((245..=255).contains(&passed), "{passed} in 10 s of 25 a second");
    }

    #[test]
    fn limits_that_stay_go_on_where_they_were() {
        let limit = |n: u32| PortLimit::from(RateLimit { requests: n, ..RateLimit::default() });
        let before = Limiters::new(&[limit(5), limit(1)], None).unwrap().unwrap();
        let after = Limiters::new(&[limit(6), limit(1)], Some(&before)).unwrap().unwrap();
        assert!(!Arc::ptr_eq(&before.all[0], &after.all[0]) && Arc::ptr_eq(&before.all[1], &after.all[1]));
        assert!(Limiters::new(&[], Some(&before)).unwrap().is_none());
        let json = r#"{"requests": 1, "when": {"path": {"type": "RegularExpression", "value": "["}}}"#;
        let wrong: RateLimit = serde_json::from_str(json).unwrap();
        let why = Limiters::new(&[limit(1), wrong.into()], None).unwrap_err();
        assert!(why.starts_with("rateLimits[1].when.path.value:"), "{why}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Over a minute of any load above the limit, as much passes as should, the first burst aside.
        #[test]
        fn a_minute_is_within_two_percent(
            requests in 1_u32..500, interval in 100_u64..5_000, burst in 1_u32..50, factor in 11_u32..40, seed: u64,
        ) {
            let per_second = f64::from(requests) * 1000.0 / interval as f64;
            prop_assume!((5.0..2_000.0).contains(&per_second));
            let limiter = limiter(requests, interval, Some(burst));
            let mut random = crate::balance::Random::seeded(seed);
            let (t0, mut at, mut passed) = (Instant::now(), 0.0, 0_u32);
            while at < 60.0 {
                passed += u32::from(limiter.pass(None, t0 + Duration::from_secs_f64(at)).is_ok());
                // On average `factor` tenths of the limit, unevenly.
                at += 2.0 * random.below(1_000_000) as f64 / 1e6 / (per_second * f64::from(factor) / 10.0);
            }
            let expect = per_second * 60.0;
            // A bucket of one loses what comes while it is full.
            let low = if burst < 10 { 0.5 } else { 0.98 };
            prop_assert!(f64::from(passed) <= expect * 1.02 + f64::from(burst), "{passed} of {expect}");
            prop_assert!(f64::from(passed) >= expect * low, "{passed} of {expect}");
        }

        #[test]
        fn nothing_makes_it_panic(
            (requests, interval, burst) in any::<(u32, u64, Option<u32>)>(), share: u32, key: Option<Vec<u8>>, by: bool, later: u32,
        ) {
            let per = by.then_some(RateKey { by: RateBy::Path, name: None });
            let limit = RateLimit { requests, interval: Millis(interval), burst, per, ..RateLimit::default() };
            let limiter = Limiter::new(limit.into()).unwrap();
            limiter.set_share(share);
            let now = Instant::now();
            for at in [now + ms(u64::from(later)), now, now + ms(1)] {
                let _ = limiter.pass(key.as_deref(), at);
            }
        }
    }
}
