//! Rate limits kept together with the other proxies of a service: control is told how often they are asked for, and tells
//! which part is ours. Until it has, and without control, each of us has the whole limit.

use super::Limiters;
use crate::state::State;
use mesh_api::{InboundPolicy, TrafficPolicy};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};

/// Our parts of shared limits, in millionths, by what the limits are called.
#[derive(Debug, Default)]
pub struct Shares(Mutex<BTreeMap<String, u32>>);

impl Shares {
    /// Gives each of these its part, as far as it is known.
    pub fn give(&self, limiters: &Limiters) {
        let shares = self.0.lock();
        for limiter in limiters.iter() {
            if let Some(share) = limiter.shared_as().and_then(|name| shares.get(name)) {
                limiter.set_share(*share);
            }
        }
    }
}

/// How often each shared limit was asked for since the last time; limits of ports nobody has called are among them.
pub fn take_use(state: &State) -> BTreeMap<String, u64> {
    let mut asked: BTreeMap<String, u64> = names(&state.inbound()).into_iter().map(|name| (name, 0)).collect();
    if asked.is_empty() {
        return asked;
    }
    for limiters in state.apps().iter().filter_map(|app| app.limiters()) {
        for limiter in limiters.iter() {
            if let Some(sum) = limiter.shared_as().and_then(|name| asked.get_mut(name)) {
                *sum += limiter.take_asked();
            }
        }
    }
    asked
}

/// Control says which parts are ours.
pub fn set_shares(state: &State, told: BTreeMap<String, u32>) {
    let names = names(&state.inbound());
    {
        let mut shares = state.shares.0.lock();
        shares.extend(told);
        shares.retain(|name, _| names.contains(name));
    }
    for limiters in state.apps().iter().filter_map(|app| app.limiters()) {
        state.shares.give(&limiters);
    }
}

fn names(policy: &InboundPolicy) -> BTreeSet<String> {
    policy.ports.values().flat_map(|port| &port.rate_limits).filter_map(|limit| limit.shared_as.clone()).collect()
}

/// Says why the rate limits of a policy cannot be kept.
pub fn validate(policy: &InboundPolicy) -> Result<(), String> {
    policy.ports.iter().try_for_each(|(port, policy)| {
        let each = policy.rate_limits.iter().map(|said| vec![said.limit.clone()]);
        let mut each = each.map(|rate_limits| TrafficPolicy { rate_limits, ..TrafficPolicy::default() });
        let checked = each.try_for_each(|policy| policy.check());
        let ready = checked.and_then(|()| Limiters::new(&policy.rate_limits, None).map(drop));
        ready.map_err(|why| format!("ports[{port}].{why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::Golden;
    use std::sync::Arc;

    #[test]
    fn use_is_told_and_shares_are_kept() {
        let state = State::new(false, Arc::new(Golden::new(0)), Arc::default());
        let json = r#"{"ports": {"80": {"rate_limits": [
            {"limit": {"requests": 100, "burst": 10, "shared": true}, "shared_as": "a"}, {"limit": {"requests": 5000}}]},
            "81": {"rate_limits": [{"limit": {"requests": 1}, "shared_as": "b"}]}}}"#;
        state.set_inbound(serde_json::from_str(json).unwrap()).unwrap();
        let now = std::time::Instant::now();
        let pass = |times: usize| {
            let limiters = state.app(([127, 0, 0, 1], 80).into()).limiters().unwrap();
            let limiter = limiters.iter().next().unwrap().clone();
            (0..times).filter(|_| limiter.pass(None, now).is_ok()).count()
        };
        set_shares(&state, [("a".to_owned(), 500_000), ("other".to_owned(), 1)].into());
        assert_eq!(pass(20), 5, "half of the burst is ours");
        let told = take_use(&state);
        assert_eq!(told, [("a".to_owned(), 20), ("b".to_owned(), 0)].into());
        assert_eq!(take_use(&state)["a"], 0);
        assert_eq!(state.shares.0.lock().len(), 1);
        let wrong = json.replace("5000", "0");
        let why = state.set_inbound(serde_json::from_str(&wrong).unwrap()).unwrap_err();
        assert!(why.starts_with("ports[80]."), "{why}");
    }
}
