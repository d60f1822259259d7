//! The circuit of one endpoint: when it is ejected, tried out and taken back. A pure state machine; whoever reports says
//! what time it is and whether another endpoint may be ejected.

use mesh_api::Millis;
use mesh_api::breaker::Breaker;
pub use mesh_api::breaker::Standing;
use std::time::{Duration, Instant};

/// Pieces of the window over which rates are taken.
const PIECES: usize = 10;
/// A probe whose end nobody reported no longer keeps others from being made.
const PROBE_LOST: Duration = Duration::from_secs(30);

/// How a request ended, as far as its endpoint is to be judged by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The endpoint did what it should.
    pub success: bool,
    /// Time to the response's head.
    pub latency: Duration,
}

/// A change worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The endpoint was ejected for so long.
    Ejected(Duration),
    /// The endpoint is back.
    Back,
}

/// What is remembered of an endpoint.
#[derive(Clone, Debug, Default)]
pub struct Circuit {
    /// When it may be tried out, if it is ejected.
    ejected: Option<Ejected>,
    /// Failures since the last success.
    consecutive: u32,
    window: Window,
    /// Ejections in a row, and when the last one ended.
    ejections: u32,
    back_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Ejected {
    until: Instant,
    /// Successes of probes so far.
    passed: u32,
    /// When the probe under way began.
    probe: Option<Instant>,
}

impl Circuit {
    /// What the endpoint may be sent now.
    pub fn standing(&self, now: Instant) -> Standing {
        match &self.ejected {
            None => Standing::Closed,
            Some(ejected) if now < ejected.until => Standing::Open,
            Some(_) => Standing::HalfOpen,
        }
    }

    /// True if it is ejected, or being tried out.
    pub fn is_ejected(&self) -> bool {
        self.ejected.is_some()
    }

    /// When it may be tried out, if it is ejected.
    pub fn ejected_until(&self) -> Option<Instant> {
        self.ejected.map(|ejected| ejected.until)
    }

    /// How long until it may be tried out; zero if it is not ejected.
    pub fn ejected_for(&self, now: Instant) -> Duration {
        self.ejected_until().map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// True if a request to try it out may be sent now: `begin_probe` then says that it is.
    pub fn wants_probe(&self, now: Instant) -> bool {
        self.ejected.is_some_and(|ejected| {
            now >= ejected.until && ejected.probe.is_none_or(|at| now.saturating_duration_since(at) > PROBE_LOST)
        })
    }

    /// A request to try it out leaves.
    pub fn begin_probe(&mut self, now: Instant) {
        if let Some(ejected) = &mut self.ejected {
            ejected.probe = Some(now);
        }
    }

    /// The request that was to try it out told nothing: another one may.
    pub fn end_probe(&mut self) {
        if let Some(ejected) = &mut self.ejected {
            ejected.probe = None;
        }
    }

    /// Takes it back at once.
    pub fn restore(&mut self, now: Instant) {
        *self = Self { ejections: self.ejections, back_since: Some(now), ..Self::default() };
    }

    /// Judges the endpoint by one more request; `may_eject` says if another endpoint may be ejected, and is asked only
    /// when that is wanted.
    pub fn report(
        &mut self,
        breaker: &Breaker,
        outcome: Outcome,
        now: Instant,
        may_eject: impl FnOnce() -> bool,
    ) -> Option<Change> {
        if let Some(mut ejected) = self.ejected {
            if now < ejected.until {
                return None; // sent before it was ejected
            }
            ejected.probe = None;
            let slow = breaker.slow_calls.is_some_and(|slow| outcome.latency > slow.over.duration());
            if !outcome.success || slow {
                return Some(self.eject(breaker, now));
            }
            ejected.passed += 1;
            self.ejected = Some(ejected);
            if ejected.passed < breaker.probes.max(1) {
                return None;
            }
            self.restore(now);
            return Some(Change::Back);
        }
        let slow = breaker.slow_calls.is_some_and(|slow| outcome.latency > slow.over.duration());
        self.consecutive = if outcome.success { 0 } else { self.consecutive.saturating_add(1) };
        self.window.count(now, breaker.window, outcome.success, slow);
        (self.is_bad(breaker, !outcome.success || slow) && may_eject()).then(|| self.eject(breaker, now))
    }

    /// True if what was seen is reason enough to eject. A request that went well is never what tips the scale.
    fn is_bad(&self, breaker: &Breaker, last_was_bad: bool) -> bool {
        if !last_was_bad {
            return false;
        }
        if breaker.consecutive().is_some_and(|limit| self.consecutive >= limit.max(1)) {
            return true;
        }
        let Counts { all, failed, slow } = self.window.sum();
        if all < breaker.min_requests.max(1) {
            return false;
        }
        let percent = |n: u32| u64::from(n) * 100;
        let fails = |min: u32| percent(all - failed) < u64::from(all) * u64::from(min);
        let drags = |max: u32| percent(slow) > u64::from(all) * u64::from(max);
        breaker.success_rate.is_some_and(|rate| fails(rate.min_percent))
            || breaker.slow_calls.is_some_and(|slow| drags(slow.max_percent))
    }

    fn eject(&mut self, breaker: &Breaker, now: Instant) -> Change {
        let longest = breaker.max_ejection.max(breaker.ejection).duration();
        let recovered = self.ejected.is_none()
            && self.back_since.is_none_or(|since| now.saturating_duration_since(since) >= longest);
        if recovered {
            self.ejections = 0;
        }
        let factor = 1_u32.checked_shl(self.ejections.min(20)).unwrap_or(u32::MAX);
        let time = breaker.ejection.duration().saturating_mul(factor).min(longest);
        self.ejections = self.ejections.saturating_add(1);
        // A time past all clocks is as good as a year.
        let until = now.checked_add(time).unwrap_or(now + Duration::from_secs(365 * 86_400));
        self.ejected = Some(Ejected { until, passed: 0, probe: None });
        self.consecutive = 0;
        self.window = Window::default();
        Change::Ejected(time)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    all: u32,
    failed: u32,
    slow: u32,
}

/// Requests of the last while, in pieces that are forgotten one after the other.
#[derive(Clone, Debug, Default)]
struct Window {
    pieces: [Counts; PIECES],
    at: usize,
    began: Option<Instant>,
}

impl Window {
    fn count(&mut self, now: Instant, window: Millis, success: bool, slow: bool) {
        let piece = (window.duration() / PIECES as u32).max(Duration::from_millis(1));
        let began = *self.began.get_or_insert(now);
        let passed = now.saturating_duration_since(began).as_nanos() / piece.as_nanos();
        let steps = usize::try_from(passed).unwrap_or(PIECES).min(PIECES);
        for _ in 0..steps {
            self.at = (self.at + 1) % PIECES;
            self.pieces[self.at] = Counts::default();
        }
        if steps == PIECES {
            self.began = Some(now);
        } else {
            self.began = Some(began + piece * steps as u32);
        }
        let counts = &mut self.pieces[self.at];
        counts.all = counts.all.saturating_add(1);
        counts.failed = counts.failed.saturating_add(u32::from(!success));
        counts.slow = counts.slow.saturating_add(u32::from(slow));
    }

    fn sum(&self) -> Counts {
        self.pieces.iter().fold(Counts::default(), |sum, piece| Counts {
            all: sum.all.saturating_add(piece.all),
            failed: sum.failed.saturating_add(piece.failed),
            slow: sum.slow.saturating_add(piece.slow),
        })
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
