//! How many events a second: the limit that each proxy keeps for its own part of a tap, and control for the whole.

use std::time::Instant;

/// A token bucket: a second's worth at once, then evenly.
#[derive(Debug)]
pub struct Bucket {
    rate: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket for `rate` a second.
    pub fn new(rate: u32, now: Instant) -> Self {
        Self { rate: rate.into(), tokens: rate.into(), filled: now }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = self.filled.max(now);
        self.tokens = (self.tokens + passed * self.rate).min(self.rate);
        let some = self.tokens >= 1.0;
        self.tokens -= f64::from(u8::from(some));
        some
    }
}
