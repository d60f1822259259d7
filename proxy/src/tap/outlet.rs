//! What one tap lets through: a sample, so many events a second, and only what somebody fetches in time. All else is
//! counted. Pure: `now` comes from outside.

use crate::balance::Random;
use crate::limits;
use mesh_api::tap::bucket::Bucket;
use mesh_api::tap::{TapBody, TapEvent, TapLeftOut};
use std::time::Instant;

/// The limits of one tap, and what has passed them and waits.
#[derive(Debug)]
pub struct Outlet {
    sample: f64,
    random: Random,
    bucket: Bucket,
    events: Vec<TapEvent>,
    bytes: usize,
    left_out: TapLeftOut,
}

impl Outlet {
    /// Nothing waits; says which limit makes no sense.
    pub fn new(max_rps: u32, sample: f64, now: Instant) -> Result<Self, String> {
        if !(1..=limits::TAP_MAX_RPS).contains(&max_rps) {
            return Err(format!("max_rps is {max_rps}, not from 1 to {}", limits::TAP_MAX_RPS));
        }
        if !(sample > 0.0 && sample <= 1.0) {
            return Err(format!("sample is {sample}, not above 0 and at most 1"));
        }
        Ok(Self {
            sample,
            random: Random::from_os(),
            bucket: Bucket::new(max_rps, now),
            events: Vec::new(),
            bytes: 0,
            left_out: TapLeftOut::default(),
        })
    }

    /// True if the next event may pass; it is counted if not.
    pub fn admits(&mut self, now: Instant) -> bool {
        if self.sample < 1.0 && self.random.below(1 << 30) as f64 >= self.sample * f64::from(1 << 30) {
            self.left_out.sampled += 1;
            return false;
        }
        if !self.bucket.take(now) {
            self.left_out.rate_limited += 1;
            return false;
        }
        let full = self.events.len() >= limits::TAP_EVENTS || self.bytes >= limits::TAP_BYTES;
        self.left_out.buffer_full += u64::from(full);
        !full
    }

    /// Keeps an event that was admitted.
    pub fn put(&mut self, event: TapEvent) {
        self.bytes += size(&event);
        self.events.push(event);
    }

    /// What has passed and what was left out, since the last time.
    pub fn take(&mut self) -> (Vec<TapEvent>, TapLeftOut) {
        self.bytes = 0;
        (std::mem::take(&mut self.events), std::mem::take(&mut self.left_out))
    }
}

/// About how much memory the parts of an event take that can be large.
fn size(event: &TapEvent) -> usize {
    let Some(http) = &event.http else { return 0 };
    let fields = http.request_headers.iter().chain(&http.response_headers);
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let body = |body: &Option<TapBody>| body.as_ref().map_or(0, |body| text(&body.text) + text(&body.hex));
    let headers: usize = fields.map(|(name, value)| name.len() + value.len()).sum();
    headers + http.path.len() + body(&http.request_body) + body(&http.response_body)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use mesh_api::golden::{Carried, Direction, TlsStatus};
    use mesh_api::tap::{TapEnd, TapHttp, TapKind};
    use proptest::prelude::*;
    use std::time::Duration;

    /// Any event.
    pub(in crate::tap) fn event() -> TapEvent {
        let end = TapEnd { address: ([10, 0, 0, 1], 80).into(), workload: None, pod: None, identity: None };
        TapEvent {
            at_ms: 0,
            event: TapKind::Request,
            direction: Direction::Inbound,
            carried: Carried::Http,
            source: end.clone(),
            destination: end,
            service: None,
            tls: TlsStatus::Plain,
            http: Some(TapHttp::default()),
            error: None,
            ending: None,
            duration_us: 0,
            read_bytes: 0,
            write_bytes: 0,
        }
    }

    #[test]
    fn what_nobody_fetches_does_not_pile_up() {
        let now = Instant::now();
        let mut outlet = Outlet::new(limits::TAP_MAX_RPS, 1.0, now).unwrap();
        let offered = limits::TAP_EVENTS as u64 + 7;
        for _ in 0..offered {
            if outlet.admits(now) {
                outlet.put(event());
            }
        }
        let (events, left_out) = outlet.take();
        assert_eq!((events.len(), left_out.buffer_full), (limits::TAP_EVENTS, 7));
        let mut large = event();
        large.http = Some(TapHttp { path: "x".repeat(limits::TAP_BYTES), ..TapHttp::default() });
        assert!(outlet.admits(now));
        outlet.put(large);
        assert!(!outlet.admits(now));
        assert_eq!(outlet.take().1.buffer_full, 1);
        assert!(outlet.admits(now));
    }

    #[test]
    fn a_second_brings_what_is_allowed() {
        let start = Instant::now();
        let mut outlet = Outlet::new(5, 1.0, start).unwrap();
        let mut passed = |ms: u64| (0..20).filter(|_| outlet.admits(start + Duration::from_millis(ms))).count();
        assert_eq!((passed(0), passed(0), passed(200), passed(1200), passed(60_000)), (5, 0, 1, 5, 5));
        assert_eq!(outlet.take().1.rate_limited, 100 - 16);
    }

    proptest! {
        #[test]
        fn everything_offered_is_told_or_counted(
            max_rps in 1u32..50,
            sample in 0.01f64..1.0,
            gaps in proptest::collection::vec(0u64..40, 1..300),
        ) {
            let mut now = Instant::now();
            let mut outlet = Outlet::new(max_rps, sample, now).unwrap();
            for gap in &gaps {
                now += Duration::from_millis(*gap);
                if outlet.admits(now) {
                    outlet.put(event());
                }
            }
            let (events, left_out) = outlet.take();
            prop_assert_eq!(events.len() as u64 + left_out.total(), gaps.len() as u64);
            let seconds = gaps.iter().sum::<u64>() as f64 / 1000.0;
            prop_assert!(events.len() as f64 <= f64::from(max_rps) * (1.0 + seconds) + 1e-6);
        }
    }
}
