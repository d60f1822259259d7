//! The circuit breaker, by time told to it.

use super::*;
use mesh_api::breaker::{SlowCalls, SuccessRate};
use proptest::prelude::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const GOOD: Outcome = Outcome { success: true, latency: Duration::from_millis(1) };
const BAD: Outcome = Outcome { success: false, latency: Duration::from_millis(1) };
const SLOW: Outcome = Outcome { success: true, latency: Duration::from_millis(900) };

/// Reports outcomes 10 ms apart; the changes with their places.
fn run(circuit: &mut Circuit, breaker: &Breaker, from: Instant, outcomes: &[Outcome]) -> Vec<(usize, Change)> {
    let at = |i: usize| from + ms(10) * u32::try_from(i).unwrap();
    let reports = outcomes.iter().enumerate();
    reports.filter_map(|(i, o)| Some((i, circuit.report(breaker, *o, at(i), || true)?))).collect()
}

#[test]
fn consecutive_failures_eject() {
    let breaker = Breaker { consecutive_failures: Some(3), ..Breaker::default() };
    let t0 = Instant::now();
    let changes = run(&mut Circuit::default(), &breaker, t0, &[BAD, BAD, GOOD, BAD, BAD, BAD, BAD]);
    assert_eq!(changes, [(5, Change::Ejected(ms(10_000)))]);
}

#[test]
fn a_low_success_rate_ejects_once_enough_was_seen() {
    let breaker =
        Breaker { success_rate: Some(SuccessRate { min_percent: 80 }), min_requests: 10, ..Breaker::default() };
    let mut outcomes = vec![BAD, BAD, BAD, BAD, BAD, BAD];
    outcomes.extend([GOOD; 4]);
    outcomes.push(BAD);
    let changes = run(&mut Circuit::default(), &breaker, Instant::now(), &outcomes);
    assert_eq!(changes, [(10, Change::Ejected(ms(10_000)))], "failures in a row alone are no reason then");
    let mut fine = vec![GOOD; 9];
    fine.extend([BAD, BAD]);
    assert_eq!(run(&mut Circuit::default(), &breaker, Instant::now(), &fine), []);
}

#[test]
fn old_failures_are_forgotten() {
    let breaker =
        Breaker { success_rate: Some(SuccessRate { min_percent: 50 }), min_requests: 10, ..Breaker::default() };
    let mut circuit = Circuit::default();
    let t0 = Instant::now();
    assert_eq!(run(&mut circuit, &breaker, t0, &[BAD; 9]), []);
    assert_eq!(run(&mut circuit, &breaker, t0 + ms(11_000), &[BAD; 9]), []);
    assert_eq!(run(&mut circuit, &breaker, t0 + ms(11_500), &[BAD]).len(), 1);
}

#[test]
fn slow_calls_eject() {
    let slow_calls = Some(SlowCalls { over: Millis(500), max_percent: 50 });
    let breaker = Breaker { slow_calls, min_requests: 4, ..Breaker::default() };
    assert_eq!(run(&mut Circuit::default(), &breaker, Instant::now(), &[SLOW, GOOD, GOOD, SLOW]), []);
    let changes = run(&mut Circuit::default(), &breaker, Instant::now(), &[GOOD, SLOW, GOOD, SLOW, SLOW]);
    assert_eq!(changes, [(4, Change::Ejected(ms(10_000)))]);
}

#[test]
fn probes_bring_it_back_or_eject_it_for_longer() {
    let breaker = Breaker { consecutive_failures: Some(1), probes: 2, ..Breaker::default() };
    let mut circuit = Circuit::default();
    let mut now = Instant::now();
    assert_eq!(circuit.report(&breaker, BAD, now, || true), Some(Change::Ejected(ms(10_000))));
    assert_eq!((circuit.standing(now), circuit.wants_probe(now)), (Standing::Open, false));
    assert_eq!(circuit.report(&breaker, GOOD, now, || true), None, "the answer to an older request changes nothing");
    for longer in [20_000, 40_000] {
        now = circuit.ejected_until().unwrap();
        assert!(circuit.wants_probe(now) && circuit.standing(now) == Standing::HalfOpen);
        circuit.begin_probe(now);
        assert!(!circuit.wants_probe(now), "one at a time");
        assert_eq!(circuit.report(&breaker, BAD, now, || false), Some(Change::Ejected(ms(longer))));
    }
    now = circuit.ejected_until().unwrap();
    circuit.begin_probe(now);
    assert!(circuit.wants_probe(now + PROBE_LOST + ms(1)), "a lost probe is made again");
    assert_eq!(circuit.report(&breaker, GOOD, now, || true), None);
    assert!(circuit.wants_probe(now));
    assert_eq!(circuit.report(&breaker, GOOD, now, || true), Some(Change::Back));
    assert_eq!(circuit.standing(now), Standing::Closed);
    assert_eq!(
        circuit.report(&breaker, BAD, now + ms(1000), || true),
        Some(Change::Ejected(ms(80_000))),
        "failed again soon"
    );
    now = circuit.ejected_until().unwrap();
    circuit.restore(now);
    now += ms(300_000);
    assert_eq!(circuit.report(&breaker, BAD, now, || true), Some(Change::Ejected(ms(10_000))), "served long enough");
}

#[test]
fn it_stays_while_no_other_may_be_ejected() {
    let breaker = Breaker { consecutive_failures: Some(1), ..Breaker::default() };
    let mut circuit = Circuit::default();
    let now = Instant::now();
    assert_eq!(circuit.report(&breaker, BAD, now, || false), None);
    assert_eq!(circuit.standing(now), Standing::Closed);
    assert_eq!(circuit.report(&breaker, GOOD, now, || panic!("a success is no reason to ask")), None);
}

fn breakers() -> impl Strategy<Value = Breaker> {
    (any::<Option<u32>>(), any::<Option<u32>>(), any::<Option<u64>>(), any::<u64>(), any::<(u32, u64, u64, u32, u32)>())
        .prop_map(|(consecutive, rate, over, window, (min, ejection, longest, probes, floor))| Breaker {
            consecutive_failures: consecutive.map(|n| n % 4),
            success_rate: rate.map(|min_percent| SuccessRate { min_percent }),
            slow_calls: over.map(|over| SlowCalls { over: Millis(over), max_percent: min }),
            window: Millis(window),
            min_requests: min % 8,
            ejection: Millis(ejection),
            max_ejection: Millis(longest),
            probes: probes % 4,
            floor_percent: floor % 120,
        })
}

proptest! {
    /// Whatever is configured and happens: no panic, and never more endpoints ejected than the floor allows.
    #[test]
    fn the_floor_holds(
        breaker in breakers(),
        endpoints in 1_usize..8,
        steps in proptest::collection::vec((0_usize..8, any::<bool>(), 0_u64..30_000), 0..200),
    ) {
        let mut circuits = vec![Circuit::default(); endpoints];
        let mut now = Instant::now();
        for (at, success, passed) in steps {
            let at = at % endpoints;
            now += ms(passed);
            let others = circuits.iter().filter(|c| c.is_ejected()).count();
            if circuits[at].wants_probe(now) {
                circuits[at].begin_probe(now);
            }
            circuits[at].report(&breaker, Outcome { success, latency: ms(passed) }, now, || others < breaker.ejectable(endpoints));
            let ejected = circuits.iter().filter(|c| c.is_ejected()).count();
            prop_assert!(ejected <= breaker.ejectable(endpoints), "{ejected} of {endpoints}");
        }
    }
}
