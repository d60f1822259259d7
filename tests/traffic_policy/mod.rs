//! Traffic policies between pods: what each field of TrafficPolicy does, to what it can be attached, and what is said of
//! it.
//!
//! All tests share one namespace and run one after the other: most policies are about the same Services.

mod balance;
mod breaker;
mod fault;
mod limit;
mod rate_limit;
mod retry;
mod stage;
mod target;
mod timeout;

use crate::harness::{Need, test};
use anyhow::Result;
use libtest_mimic::Trial;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl"), Need::Program("curl")];

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| test(&format!("traffic_policy::{name}"), NEEDS, run);
    vec![
        test("balance_algorithm", balance::algorithm),
        test("balance_hash", balance::hash),
        test("balance_zone_and_failover", balance::zone),
        test("breaker_consecutive_failures_ejection_and_probes", breaker::consecutive_failures),
        test("breaker_success_rate", breaker::success_rate),
        test("breaker_slow_calls", breaker::slow_calls),
        test("breaker_floor", breaker::floor),
        test("limits_of_requests", limit::requests),
        test("limits_of_endpoints", limit::endpoints),
        test("retry_codes_and_attempts", retry::codes_and_attempts),
        test("retry_resets_and_tries_that_take_too_long", retry::resets_and_slow_tries),
        test("retry_backoff_and_retry_after", retry::backoff),
        test("retry_unsafe_methods_and_bodies", retry::unsafe_methods_and_bodies),
        test("retry_grpc_codes", retry::grpc_codes),
        test("retry_budget", retry::budget),
        test("timeouts_of_requests", timeout::requests),
        test("timeouts_callers_tighten", timeout::tightened),
        test("timeouts_connect", timeout::connect),
        test("rate_limits_requests_interval_and_burst", rate_limit::requests),
        test("rate_limits_per_key", rate_limit::per_key),
        test("rate_limits_when", rate_limit::when),
        test("rate_limits_shared", rate_limit::shared),
        test("faults_delay_abort_and_reset", fault::delay_abort_and_reset),
        test("faults_bandwidth_and_percent", fault::bandwidth_and_percent),
        test("target_refs", target::refs),
        test("the_more_specific_policy_wins", target::precedence),
        test("status", target::status),
        test("mistakes_are_refused", target::mistakes),
    ]
}
