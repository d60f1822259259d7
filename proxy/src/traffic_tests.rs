//! Tests of policies at work on a group: whatever happens, the floor holds and what is chosen may be chosen.

use super::*;
use crate::golden::Golden;
use mesh_api::Endpoint;
use mesh_api::golden::Direction;
use proptest::prelude::*;

fn backends(n: usize) -> Vec<Arc<Backend>> {
    let golden = Arc::new(Golden::new(0));
    let one = |at: usize| {
        let workload = mesh_api::WorkloadRef::new("shop", "deployment", "web");
        let scope = golden.scope(Direction::Outbound, &workload, None, 80);
        let address = ([10, 0, 0, at as u8 + 1], 80).into();
        let zone = Some(["a", "b"][at % 2].to_owned());
        Backend::new(Endpoint { address, identity: None, workload, pod: String::new(), zone }, Some(scope))
    };
    (0..n).map(one).collect()
}

fn traffic(json: &str, backends: &[Arc<Backend>], before: Option<&Traffic>) -> Arc<Traffic> {
    Traffic::new(Arc::new(serde_json::from_str(json).unwrap()), backends, Some("a"), before)
}

fn ejected(backends: &[Arc<Backend>]) -> usize {
    backends.iter().filter(|b| b.circuit.lock().as_ref().is_some_and(|circuit| circuit.is_ejected())).count()
}

const BAD: Outcome = Outcome { success: false, latency: Duration::from_millis(1) };

#[test]
fn when_endpoints_leave_those_come_back_that_the_floor_asks_for() {
    let all = backends(4);
    let policy = r#"{"breaker": {"consecutiveFailures": 1, "floorPercent": 50}}"#;
    let before = traffic(policy, &all, None);
    let now = Instant::now();
    for backend in &all {
        before.report(backend, BAD, now);
    }
    assert_eq!(ejected(&all), 2);
    let left: Vec<_> = all[..2].to_vec();
    traffic(policy, &left, Some(&before));
    assert_eq!(ejected(&left), 1);
}

#[test]
fn a_zone_with_too_little_in_service_is_left() {
    let all = backends(4);
    let policy = r#"{"balance": {"zone": {"failoverPercent": 60}}, "breaker": {"consecutiveFailures": 1}}"#;
    let traffic = traffic(policy, &all, None);
    let mut random = Random::seeded(1);
    let zones = |now: Instant, random: &mut Random| -> std::collections::BTreeSet<String> {
        let chosen = (0..50).filter_map(|_| traffic.choose(None, &[], now, random).ok());
        chosen.filter_map(|backend| backend.endpoint.zone.clone()).collect()
    };
    let now = Instant::now();
    assert_eq!(zones(now, &mut random), ["a".to_owned()].into());
    traffic.report(&all[0], BAD, now);
    assert_eq!(zones(now, &mut random), ["a".to_owned(), "b".to_owned()].into(), "one of two is less than 60 %");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Of any algorithm under any breaker: never below the floor, never somebody who was tried or is out of service.
    #[test]
    fn the_floor_holds_and_the_choice_is_good(
        algorithm in prop::sample::select(vec!["PeakEwma", "LeastRequest", "RoundRobin", "Random", "RingHash", "Maglev"]),
        endpoints in 1..9_usize,
        floor in 0..=100_u32,
        failures in 1..4_u32,
        steps in prop::collection::vec((any::<bool>(), any::<u64>(), 0..9_usize, 0..4000_u64), 1..200),
    ) {
        let all = backends(endpoints);
        let policy = format!(
            r#"{{"balance": {{"algorithm": "{algorithm}"}}, "breaker": {{"consecutiveFailures": {failures}, "floorPercent": {floor}}}}}"#
        );
        let traffic = traffic(&policy, &all, None);
        let breaker = traffic.policy.breaker.unwrap();
        let mut random = Random::seeded(7);
        let mut now = Instant::now();
        for (success, key, tried, passed) in steps {
            now += Duration::from_millis(passed);
            let tried = [all[tried % endpoints].endpoint.address];
            let tried = if endpoints > 1 { &tried[..] } else { &[] };
            match traffic.choose(Some(key), tried, now, &mut random) {
                Ok(backend) => {
                    prop_assert!(!tried.contains(&backend.endpoint.address));
                    let standing = backend.circuit.lock().as_ref().map(|circuit| circuit.standing(now));
                    prop_assert!(standing != Some(Standing::Open));
                    traffic.report(&backend, Outcome { success, latency: Duration::from_millis(1) }, now);
                }
                Err(error) => prop_assert_eq!(error, MeshError::CircuitOpen),
            }
            let out = ejected(&all);
            prop_assert!(out <= breaker.ejectable(endpoints), "{} of {} with a floor of {} %", out, endpoints, floor);
        }
    }
}
