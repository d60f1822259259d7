//! When a request is sent again: a pure decider, and the budget that keeps retries from adding to an overload.
//!
//! Whoever set no budget has the default one. Time and chance come in as values.

use crate::body::Received;
use crate::grpc;
use crate::headers::retry_after;
use crate::limits;
use crate::upstream::is_idempotent;
use http::{Method, Response};
use mesh_api::retry::{Retry, RetryBudget};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Least pause before another try, unless said.
const BACKOFF: Duration = Duration::from_millis(25);
/// The longest pause is so many times the least, unless said.
const BACKOFF_SPAN: u32 = 10;

/// What is said of retries, ready for use.
#[derive(Debug)]
pub struct Retries {
    retry: Retry,
    budget: Mutex<Budget>,
}

/// What became of a try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// HTTP status; `None`: there was no answer.
    pub status: Option<u16>,
    /// gRPC status, if the answer consists of trailers only.
    pub grpc_status: Option<u16>,
    /// What the answer asks to wait.
    pub retry_after: Option<Duration>,
}

/// Why there is no other try although there was a reason for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// The budget is spent.
    Budget,
    /// The answer asks to wait for longer than is allowed.
    RetryAfter,
    /// Too much of the body is gone.
    Body,
}

/// The tries of one request.
#[derive(Debug)]
pub struct Tries<'a> {
    retries: Option<&'a Retries>,
    made: u32,
}

impl Outcome {
    /// What an answer says.
    pub fn of(response: &Response<Received>) -> Self {
        let headers = response.headers();
        Self {
            status: Some(response.status().as_u16()),
            grpc_status: grpc::status(headers),
            retry_after: retry_after(headers),
        }
    }
}

impl Retries {
    /// What a policy says of retries; `None` if there are none.
    pub fn new(retry: &Retry) -> Option<Arc<Self>> {
        let budget = Mutex::new(Budget::new(retry.budget.unwrap_or_default()));
        (retry.attempts > 0).then(|| Arc::new(Self { retry: retry.clone(), budget }))
    }

    /// Time for one try's response head.
    fn per_try(&self) -> Option<Duration> {
        self.retry.per_try_timeout.filter(|limit| !limit.is_zero()).map(|limit| limit.duration())
    }

    /// Bytes of a body that are kept for another try.
    pub fn body_bytes(&self) -> usize {
        let bytes = self.retry.body_bytes.map_or(limits::UPLOAD_KEPT, |bytes| bytes as usize);
        bytes.min(limits::UPLOAD_KEPT_MOST)
    }

    fn allows(&self, method: &Method, grpc: bool) -> bool {
        self.retry.unsafe_methods || (!grpc && is_idempotent(method))
    }

    /// True if another try may mend this.
    fn wants(&self, outcome: &Outcome) -> bool {
        match (outcome.grpc_status, outcome.status) {
            (Some(status), _) if status != 0 => self.retry.grpc_codes.contains(&status),
            (_, Some(status)) => self.retry.codes.contains(&status),
            (_, None) => self.retry.resets,
        }
    }

    /// How long to wait before the try after `made` ones that were made again; `None`: too long.
    fn pause(&self, made: u32, retry_after: Option<Duration>, random: u64) -> Option<Duration> {
        let least = self.retry.backoff.map_or(BACKOFF, |backoff| backoff.duration());
        let most = self.retry.max_backoff.map_or(least * BACKOFF_SPAN, |most| most.duration()).max(least);
        let double = least.saturating_mul(2_u32.saturating_pow(made.saturating_add(1))).min(most);
        let chance = random as f64 / u64::MAX as f64;
        let pause = least + double.saturating_sub(least).mul_f64(chance);
        match retry_after {
            Some(asked) if asked > most => None,
            asked => Some(pause.max(asked.unwrap_or_default())),
        }
    }
}

impl<'a> Tries<'a> {
    /// The tries of a request that begins now.
    pub fn begin(retries: Option<&'a Retries>, method: &Method, grpc: bool, now: Instant) -> Self {
        if let Some(retries) = retries {
            retries.budget.lock().request(now);
        }
        Self { retries: retries.filter(|retries| retries.allows(method, grpc)), made: 0 }
    }

    /// Time for the response head of each try, the last one too.
    pub fn per_try(&self) -> Option<Duration> {
        self.retries.and_then(Retries::per_try)
    }

    /// What is said of retries, as long as there may be another try.
    pub fn left(&self) -> Option<&'a Retries> {
        self.retries.filter(|retries| self.made < retries.retry.attempts)
    }

    /// The pause before another try after this outcome. `Ok(None)`: there is no reason for one.
    pub fn again(
        &mut self,
        outcome: &Outcome,
        whole: bool,
        now: Instant,
        random: u64,
    ) -> Result<Option<Duration>, Withheld> {
        let Some(retries) = self.left().filter(|retries| retries.wants(outcome)) else { return Ok(None) };
        if !whole {
            return Err(Withheld::Body);
        }
        let pause = retries.pause(self.made, outcome.retry_after, random).ok_or(Withheld::RetryAfter)?;
        if !retries.budget.lock().withdraw(now) {
            return Err(Withheld::Budget);
        }
        self.made += 1;
        Ok(Some(pause))
    }
}

/// Parts an interval is counted in.
const PARTS: u32 = 10;

/// Requests and retries of the last interval. In no interval are there more retries than the share of its requests and
/// what is allowed in any case: requests are counted over a little less than an interval, retries over a little more.
#[derive(Debug)]
struct Budget {
    said: RetryBudget,
    part: Duration,
    /// Newest last: when it began, requests, retries.
    parts: VecDeque<(Instant, u64, u64)>,
}

impl Budget {
    fn new(said: RetryBudget) -> Self {
        let part = (said.interval.duration() / PARTS).max(Duration::from_millis(1));
        Self { said, part, parts: VecDeque::new() }
    }

    fn request(&mut self, now: Instant) {
        self.current(now).1 += 1;
    }

    /// Takes a retry out, if there is one left.
    fn withdraw(&mut self, now: Instant) -> bool {
        self.current(now);
        let newest = self.parts.back().map_or(now, |part| part.0);
        let recent = |began: Instant, parts: u32| newest.saturating_duration_since(began) < self.part * parts;
        let requests: u64 = self.parts.iter().filter(|part| recent(part.0, PARTS)).map(|part| part.1).sum();
        let retries: u64 = self.parts.iter().map(|part| part.2).sum();
        let share = u128::from(requests) * u128::from(self.said.percent) / 100;
        let floor = u128::from(self.said.min_per_second) * u128::from(self.said.interval.0) / 1000;
        if u128::from(retries) + 1 > share + floor {
            return false;
        }
        self.current(now).2 += 1;
        true
    }

    /// The part of the interval that `now` falls into; those that no longer count are forgotten.
    fn current(&mut self, now: Instant) -> &mut (Instant, u64, u64) {
        let newest = self.parts.back().map(|part| part.0);
        let fresh = match newest {
            None => Some(now),
            Some(newest) => {
                let whole = now.saturating_duration_since(newest).as_nanos() / self.part.as_nanos();
                let steps = u32::try_from(whole).unwrap_or(u32::MAX);
                // After a long silence the parts begin anew.
                (steps > 0).then(|| if steps > 2 * PARTS { now } else { newest + self.part * steps })
            }
        };
        if let Some(fresh) = fresh {
            self.parts.retain(|part| fresh.saturating_duration_since(part.0) <= self.part * PARTS);
            self.parts.push_back((fresh, 0, 0));
        }
        let last = self.parts.len() - 1; // one was there, or has just been put there
        &mut self.parts[last]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::Millis;
    use proptest::prelude::*;

    fn budget(percent: u32, interval_ms: u64, min_per_second: u32) -> RetryBudget {
        RetryBudget { percent, interval: Millis(interval_ms), min_per_second }
    }

    fn retries(change: impl FnOnce(&mut Retry)) -> Arc<Retries> {
        let mut retry = Retry { attempts: 2, codes: vec![503], grpc_codes: vec![14], ..Retry::default() };
        change(&mut retry);
        Retries::new(&retry).unwrap()
    }

    fn outcome(status: u16) -> Outcome {
        Outcome { status: Some(status), ..Outcome::default() }
    }

    #[test]
    fn only_what_is_said_is_tried_again() {
        let grpc = |status| Outcome { grpc_status: Some(status), ..outcome(200) };
        let said = retries(|_| {});
        for (outcome, expect) in [
            (outcome(200), false),
            (outcome(500), false),
            (outcome(503), true),
            (grpc(0), false),
            (grpc(13), false),
            (grpc(14), true),
            (Outcome::default(), true),
        ] {
            assert_eq!(said.wants(&outcome), expect, "{outcome:?}");
        }
        assert!(!retries(|retry| retry.resets = false).wants(&Outcome::default()));
        assert!(Retries::new(&Retry { attempts: 0, ..Retry::default() }).is_none());
    }

    #[test]
    fn unsafe_methods_are_left_alone_unless_told() {
        let (careful, told) = (retries(|_| {}), retries(|retry| retry.unsafe_methods = true));
        for (method, grpc, expect) in [
            (Method::GET, false, true),
            (Method::PUT, false, true),
            (Method::POST, false, false),
            (Method::PATCH, false, false),
            (Method::POST, true, false),
        ] {
            assert_eq!(careful.allows(&method, grpc), expect, "{method}");
            assert!(told.allows(&method, grpc));
        }
    }

    #[test]
    fn tries_end_with_their_number_and_say_what_withholds_them() {
        let now = Instant::now();
        let said = retries(|retry| retry.per_try_timeout = Some(Millis(7000)));
        let mut tries = Tries::begin(Some(&said), &Method::GET, false, now);
        assert_eq!(tries.per_try(), Some(Duration::from_secs(7)));
        assert_eq!(tries.again(&outcome(200), true, now, 0), Ok(None));
        assert_eq!(tries.again(&outcome(503), false, now, 0), Err(Withheld::Body));
        let slow = Outcome { retry_after: Some(Duration::from_secs(1)), ..outcome(503) };
        assert_eq!(tries.again(&slow, true, now, 0), Err(Withheld::RetryAfter));
        assert_eq!(tries.again(&outcome(503), true, now, 0), Ok(Some(BACKOFF)));
        assert!(tries.again(&outcome(503), true, now, u64::MAX).unwrap().unwrap() <= BACKOFF * 4);
        assert_eq!(tries.again(&outcome(503), true, now, 0), Ok(None));
        assert!(tries.left().is_none());
        assert_eq!(tries.per_try(), Some(Duration::from_secs(7)), "the last try has no more time than the others");
        let poor = retries(|retry| retry.budget = Some(budget(0, 10_000, 0)));
        let mut tries = Tries::begin(Some(&poor), &Method::GET, false, now);
        assert_eq!(tries.again(&outcome(503), true, now, 0), Err(Withheld::Budget));
    }

    #[test]
    fn a_server_may_ask_for_a_longer_pause() {
        let said = retries(|retry| retry.max_backoff = Some(Millis(3000)));
        assert_eq!(said.pause(0, Some(Duration::from_secs(2)), 0), Some(Duration::from_secs(2)));
        assert_eq!(said.pause(0, Some(Duration::from_secs(4)), 0), None);
    }

    proptest! {
        #[test]
        fn pauses_stay_between_the_least_and_the_most(made: u32, random: u64, least in 0..5000_u64, most in 0..50_000_u64) {
            let said = retries(|retry| {
                retry.backoff = Some(Millis(least));
                retry.max_backoff = Some(Millis(most));
            });
            let pause = said.pause(made, None, random).unwrap();
            prop_assert!(pause >= Duration::from_millis(least) && pause <= Duration::from_millis(most.max(least)));
        }

        #[test]
        fn the_budget_is_never_exceeded(
            percent in 0..200_u32,
            interval in 10..20_000_u64,
            floor in 0..20_u32,
            steps in proptest::collection::vec((0..3000_u64, any::<bool>()), 1..300),
        ) {
            let said = budget(percent, interval, floor);
            let mut budget = Budget::new(said);
            let start = Instant::now();
            let (mut at, mut requests, mut retries) = (0_u64, Vec::new(), Vec::new());
            for (step, asks) in steps {
                at += step;
                let now = start + Duration::from_millis(at);
                if !asks {
                    budget.request(now);
                    requests.push(at);
                } else if budget.withdraw(now) {
                    retries.push(at);
                    let within = |list: &[u64]| list.iter().filter(|then| at - **then < interval).count() as u64;
                    let allowed = within(&requests) * u64::from(percent) / 100 + u64::from(floor) * interval / 1000;
                    prop_assert!(within(&retries) <= allowed, "{} of {allowed} at {at}", within(&retries));
                }
            }
        }
    }
}
