//! How traffic is carried: everything a `TrafficPolicy` says about the requests of a service, a route or one rule of it.

use crate::balance::{Balance, HashOn};
use crate::breaker::Breaker;
use crate::fault::Fault;
use crate::limit::Limits;
use crate::rate_limit::{RateBy, RateLimit};
use crate::retry::Retry;
use crate::timeout::Timeouts;
use serde::{Deserialize, Serialize};

/// Most rate limits, and most faults, of one policy.
pub const MAX_LIST: usize = 16;

/// How traffic is carried. What is left out stays as it is without a policy, or as a less specific policy says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicy {
    /// How requests are spread over endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<Balance>,
    /// When an endpoint that does badly is left alone for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<Breaker>,
    /// How much the service is asked to do at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// When a request is sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// How long a request may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// How often the service may be called; a request passes if all of them let it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    pub rate_limits: Vec<RateLimit>,
    /// Faults made on purpose; the first that is about a request and meant to happen to it does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    pub faults: Vec<Fault>,
}

impl TrafficPolicy {
    /// This policy over a less specific one, field by field.
    pub fn over(self, less: Self) -> Self {
        let Self { balance, breaker, limits, retry, timeouts, rate_limits, faults } = self;
        Self {
            balance: balance.or(less.balance),
            breaker: breaker.or(less.breaker),
            limits: limits.or(less.limits),
            retry: retry.or(less.retry),
            timeouts: timeouts.or(less.timeouts),
            rate_limits: if rate_limits.is_empty() { less.rate_limits } else { rate_limits },
            faults: if faults.is_empty() { less.faults } else { faults },
        }
    }

    /// True if nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Names of the fields that say something, as written in a manifest.
    pub fn fields(&self) -> Vec<&'static str> {
        let Self { balance, breaker, limits, retry, timeouts, rate_limits, faults } = self;
        let said = [
            ("balance", balance.is_some()),
            ("breaker", breaker.is_some()),
            ("limits", limits.is_some()),
            ("retry", retry.is_some()),
            ("timeouts", timeouts.is_some()),
            ("rateLimits", !rate_limits.is_empty()),
            ("faults", !faults.is_empty()),
        ];
        said.into_iter().filter(|(_, said)| *said).map(|(name, _)| name).collect()
    }

    /// Why it cannot be run: the path of the field and what is wrong with it. `Ok` for everything that can.
    pub fn check(&self) -> Result<(), String> {
        if let Some(balance) = &self.balance {
            check_balance(balance)?;
        }
        if let Some(breaker) = &self.breaker {
            check_breaker(breaker)?;
        }
        if let Some(Limits { connections, requests, endpoint_requests, .. }) = &self.limits {
            for (name, limit) in
                [("connections", connections), ("requests", requests), ("endpointRequests", endpoint_requests)]
            {
                ensure(*limit != Some(0), || format!("limits.{name}: 0 would let nothing through"))?;
            }
        }
        if let Some(retry) = &self.retry {
            check_retry(retry)?;
        }
        ensure(self.rate_limits.len() <= MAX_LIST, || format!("rateLimits: more than {MAX_LIST}"))?;
        ensure(self.faults.len() <= MAX_LIST, || format!("faults: more than {MAX_LIST}"))?;
        for (i, limit) in self.rate_limits.iter().enumerate() {
            check_rate_limit(limit).map_err(|why| format!("rateLimits[{i}].{why}"))?;
        }
        for (i, fault) in self.faults.iter().enumerate() {
            check_fault(fault).map_err(|why| format!("faults[{i}].{why}"))?;
        }
        Ok(())
    }
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

fn check_balance(balance: &Balance) -> Result<(), String> {
    let hashes = balance.algorithm.is_hash();
    if let Some(hash) = &balance.hash {
        ensure(hashes, || "balance.hash: only RingHash and Maglev hash a key".into())?;
        let needs = matches!(hash.on, HashOn::Header | HashOn::Cookie);
        let named = hash.name.as_ref().is_some_and(|name| !name.is_empty());
        ensure(needs == named, || "balance.hash.name: Header and Cookie need one, nothing else takes one".into())?;
    }
    ensure(balance.zone.is_none() || !hashes, || {
        "balance.zone: RingHash and Maglev keep keys in place in all zones".into()
    })
}

fn check_breaker(breaker: &Breaker) -> Result<(), String> {
    ensure(breaker.consecutive_failures != Some(0), || "breaker.consecutiveFailures: must be at least 1".into())?;
    ensure(breaker.floor_percent <= 100, || "breaker.floorPercent: more than 100".into())?;
    ensure(breaker.window.0 >= 1000, || "breaker.window: must be at least 1s".into())?;
    ensure(!breaker.ejection.is_zero(), || "breaker.ejection: must be longer than 0s".into())?;
    ensure(breaker.max_ejection >= breaker.ejection, || "breaker.maxEjection: shorter than ejection".into())?;
    let rate = breaker.success_rate.map_or(1, |rate| rate.min_percent);
    ensure((1..=100).contains(&rate), || "breaker.successRate.minPercent: must be from 1 to 100".into())
}

fn check_retry(retry: &Retry) -> Result<(), String> {
    ensure(retry.codes.iter().all(|code| (400..=599).contains(code)), || {
        "retry.codes: must be from 400 to 599: what is no error needs no other try".into()
    })?;
    ensure(retry.grpc_codes.iter().all(|code| (1..=16).contains(code)), || {
        "retry.grpcCodes: must be from 1 to 16".into()
    })
}

fn check_rate_limit(limit: &RateLimit) -> Result<(), String> {
    ensure(limit.requests > 0, || "requests: 0 would let nothing through; deny with an AccessPolicy instead".into())?;
    ensure(!limit.interval.is_zero(), || "interval: must be longer than 0s".into())?;
    ensure(limit.burst != Some(0), || "burst: must be at least 1".into())?;
    let Some(per) = &limit.per else { return Ok(()) };
    let named = per.name.as_ref().is_some_and(|name| !name.is_empty());
    ensure(named == (per.by == RateBy::Header), || "per.name: Header needs one, nothing else takes one".into())
}

fn check_fault(fault: &Fault) -> Result<(), String> {
    ensure(fault.percent <= 100, || "percent: more than 100".into())?;
    ensure(!(fault.reset && fault.abort.is_some()), || "reset: a request is either answered or reset".into())?;
    ensure(fault.bytes_per_second != Some(0), || "bytesPerSecond: must be at least 1".into())?;
    let Some(abort) = &fault.abort else { return Ok(()) };
    ensure((200..=599).contains(&abort.status), || "abort.status: must be from 200 to 599".into())?;
    ensure((1..=16).contains(&abort.grpc_status), || "abort.grpcStatus: must be from 1 to 16".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: &str) -> TrafficPolicy {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_more_specific_wins_field_by_field() {
        let service =
            policy(r#"{"balance": {"algorithm": "Random"}, "retry": {"attempts": 3}, "faults": [{"reset": true}]}"#);
        let rule = policy(r#"{"retry": {"attempts": 0}, "timeouts": {"request": "1s"}}"#);
        let both = rule.clone().over(service.clone());
        assert_eq!((both.balance, both.faults), (service.balance, service.faults));
        assert_eq!((&both.retry, &both.timeouts), (&rule.retry, &rule.timeouts));
        assert!(policy("{}").is_empty());
        assert_eq!(rule.fields(), ["retry", "timeouts"]);
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_place() {
        for (json, expect) in [
            (r#"{"balance": {"algorithm": "Random", "hash": {"on": "Path"}}}"#, "balance.hash:"),
            (r#"{"balance": {"algorithm": "Maglev", "hash": {"on": "Header"}}}"#, "balance.hash.name:"),
            (r#"{"balance": {"algorithm": "Maglev", "hash": {"on": "Path", "name": "x"}}}"#, "balance.hash.name:"),
            (r#"{"balance": {"algorithm": "RingHash", "zone": {}}}"#, "balance.zone:"),
            (r#"{"breaker": {"consecutiveFailures": 0}}"#, "breaker.consecutiveFailures:"),
            (r#"{"breaker": {"floorPercent": 101}}"#, "breaker.floorPercent:"),
            (r#"{"breaker": {"window": "10ms"}}"#, "breaker.window:"),
            (r#"{"breaker": {"ejection": "0s"}}"#, "breaker.ejection:"),
            (r#"{"breaker": {"ejection": "1m", "maxEjection": "1s"}}"#, "breaker.maxEjection:"),
            (r#"{"breaker": {"successRate": {"minPercent": 0}}}"#, "breaker.successRate.minPercent:"),
            (r#"{"limits": {"endpointRequests": 0}}"#, "limits.endpointRequests:"),
            (r#"{"retry": {"codes": [503, 200]}}"#, "retry.codes:"),
            (r#"{"retry": {"grpcCodes": [0]}}"#, "retry.grpcCodes:"),
            (r#"{"rateLimits": [{"requests": 1}, {"requests": 0}]}"#, "rateLimits[1].requests:"),
            (r#"{"rateLimits": [{"requests": 1, "interval": "0s"}]}"#, "rateLimits[0].interval:"),
            (r#"{"rateLimits": [{"requests": 1, "burst": 0}]}"#, "rateLimits[0].burst:"),
            (r#"{"rateLimits": [{"requests": 1, "per": {"by": "Header"}}]}"#, "rateLimits[0].per.name:"),
            (r#"{"faults": [{"percent": 101}]}"#, "faults[0].percent:"),
            (r#"{"faults": [{"reset": true, "abort": {}}]}"#, "faults[0].reset:"),
            (r#"{"faults": [{"bytesPerSecond": 0}]}"#, "faults[0].bytesPerSecond:"),
            (r#"{"faults": [{"abort": {"status": 100}}]}"#, "faults[0].abort.status:"),
            (r#"{"faults": [{"abort": {"grpcStatus": 0}}]}"#, "faults[0].abort.grpcStatus:"),
        ] {
            let error = policy(json).check().unwrap_err();
            assert!(error.starts_with(expect), "{json}: {error}");
        }
        let fine = r#"{"balance": {"algorithm": "Maglev", "hash": {"on": "Cookie", "name": "s"}}, "breaker": {},
            "limits": {"requests": 1}, "rateLimits": [{"requests": 5, "per": {"by": "Header", "name": "x"}}],
            "faults": [{"abort": {"status": 503}}]}"#;
        assert_eq!(policy(fine).check(), Ok(()));
    }

    #[test]
    fn what_is_written_reads_back() {
        let all = policy(
            r#"{"balance": {"algorithm": "RingHash"}, "breaker": {}, "limits": {}, "retry": {}, "timeouts": {},
                "rateLimits": [{"requests": 5}], "faults": [{}]}"#,
        );
        assert_eq!(all.fields().len(), 7);
        assert_eq!(policy(&serde_json::to_string(&all).unwrap()), all);
    }
}
