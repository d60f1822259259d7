//! Which replica writes: the holder of the Lease `mesh-control`. All replicas serve; only what exists once in the
//! cluster (the webhook's certificate and where it is announced) needs a single writer.

use crate::limits;
use crate::metrics::Metrics;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;
use mesh_api::names::CONTROL_NAME;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// Somebody else holds it.
    Leave,
    /// It is ours, or free: write it.
    Write,
}

/// When we first saw the lease as it is now. The holder's clock is not trusted, except for a lease long over.
#[derive(Clone, Debug)]
struct Seen {
    version: String,
    at: Instant,
}

fn decide(spec: &LeaseSpec, me: &str, seen_for: Duration, now: Timestamp) -> Action {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let lasts = Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
    let renewed = spec.renew_time.as_ref().map(|time| time.0);
    let long_over = renewed.is_none_or(|at| now.duration_since(at).unsigned_abs() > lasts * 2 && at < now);
    if holder.is_empty() || holder == me || seen_for > lasts || long_over { Action::Write } else { Action::Leave }
}

fn next_spec(before: Option<&LeaseSpec>, me: &str, now: Timestamp) -> LeaseSpec {
    let mine = before.is_some_and(|spec| spec.holder_identity.as_deref() == Some(me));
    let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(limits::LEASE.as_secs()).ok(),
        acquire_time: if mine { before.and_then(|spec| spec.acquire_time.clone()) } else { Some(MicroTime(now)) },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if mine || before.is_none() { transitions } else { transitions + 1 }),
        ..LeaseSpec::default()
    }
}

/// Takes part in the election until `stop`, then gives the lease back. `leads` says who we are.
pub async fn hold(
    leases: Api<Lease>,
    me: String,
    leads: Arc<watch::Sender<bool>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut seen = None;
    let mut renewed = Instant::now();
    loop {
        let attempt = tokio::time::timeout(limits::API_TIMEOUT, attempt(&leases, &me, &mut seen)).await;
        let mine = match attempt {
            Ok(Ok(mine)) => {
                renewed = Instant::now();
                mine
            }
            failed => {
                match failed {
                    Ok(Err(error)) => tracing::warn!(%error, "cannot read or write the lease {CONTROL_NAME}"),
                    _ => tracing::warn!("no answer about the lease {CONTROL_NAME}"),
                }
                // Until it runs out nobody else takes it.
                *leads.borrow() && renewed.elapsed() < limits::LEASE * 2 / 3
            }
        };
        if leads.send_if_modified(|before| std::mem::replace(before, mine) != mine) {
            tracing::info!(mine, "lease {CONTROL_NAME}");
            metrics.leads.set(i64::from(mine));
        }
        let pause = if mine { limits::LEASE_RENEW } else { limits::LEASE_LOOK };
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    if leads.send_replace(false) {
        // If it cannot be given back it runs out by itself.
        let _ = tokio::time::timeout(limits::API_TIMEOUT, give_back(&leases, &me)).await;
    }
}

async fn attempt(leases: &Api<Lease>, me: &str, seen: &mut Option<Seen>) -> kube::Result<bool> {
    let now = Timestamp::now();
    let Some(mut lease) = leases.get_opt(CONTROL_NAME).await? else {
        let metadata = ObjectMeta { name: Some(CONTROL_NAME.to_owned()), ..ObjectMeta::default() };
        let lease = Lease { metadata, spec: Some(next_spec(None, me, now)) };
        return won(leases.create(&PostParams::default(), &lease).await);
    };
    let version = lease.metadata.resource_version.clone().unwrap_or_default();
    let seen = match seen {
        Some(seen) if seen.version == version => seen,
        other => other.insert(Seen { version, at: Instant::now() }),
    };
    let spec = lease.spec.clone().unwrap_or_default();
    if decide(&spec, me, seen.at.elapsed(), now) == Action::Leave {
        return Ok(false);
    }
    lease.spec = Some(next_spec(Some(&spec), me, now));
    // With the resource version in it, this fails if anybody else was faster.
    won(leases.replace(CONTROL_NAME, &PostParams::default(), &lease).await)
}

fn won(outcome: kube::Result<Lease>) -> kube::Result<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

async fn give_back(leases: &Api<Lease>, me: &str) -> kube::Result<()> {
    let mut lease = leases.get(CONTROL_NAME).await?;
    if let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(me)) {
        spec.holder_identity = None;
        leases.replace(CONTROL_NAME, &PostParams::default(), &lease).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_it_is_free_ours_or_over() {
        let now: Timestamp = "2026-11-21T06:00:00Z".parse().unwrap();
        let ago = |seconds: i64| MicroTime(Timestamp::from_second(now.as_second() - seconds).unwrap());
        let check = |holder: &str, renewed: i64, seen_s: u64, expect: Action| {
            let spec = LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(15),
                renew_time: Some(ago(renewed)),
                ..LeaseSpec::default()
            };
            assert_eq!(decide(&spec, "me", Duration::from_secs(seen_s), now), expect, "{holder} {renewed} {seen_s}");
        };
        check("me", 3, 0, Action::Write);
        check("", 3, 0, Action::Write);
        check("other", 3, 0, Action::Leave);
        check("other", 20, 10, Action::Leave); // its clock may be behind
        check("other", 3, 16, Action::Write); // not renewed for as long as we look
        check("other", 100, 0, Action::Write); // long over
        check("other", -100, 0, Action::Leave); // its clock is ahead
        assert_eq!(decide(&LeaseSpec::default(), "me", Duration::ZERO, now), Action::Write);
    }

    #[test]
    fn transitions_count_changes_of_hands() {
        let now = Timestamp::now();
        let first = next_spec(None, "a", now);
        assert_eq!(first.lease_transitions, Some(0));
        assert_eq!(next_spec(Some(&first), "a", now).lease_transitions, Some(0));
        let second = next_spec(Some(&first), "b", now);
        assert_eq!((second.lease_transitions, second.holder_identity.as_deref()), (Some(1), Some("b")));
    }
}
