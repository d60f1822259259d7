//! The controllers of the sandbox: what turns a Deployment into pods, a Service into endpoints, a deletion into peace.
//!
//! They are ordinary clients of the API. Watches fill [`cache::Cluster`]; every change names the work it calls for; one
//! loop does the work, an object at a time, from the state it finds and not from the event that woke it. What a
//! controller writes goes into the cache at once, so that it never acts twice on what it has not yet seen itself do.
//!
//! One file a controller: each has `reconcile(&mut Cluster, key)`, and says when it wants to be called again.

mod adoption;
pub mod cache;
mod cron_job;
mod daemon_set;
mod deployment;
mod disruption_budget;
mod endpoints;
mod event;
mod garbage;
mod job;
mod legacy_endpoints;
mod namespace;
mod replica_set;
mod scheduler;
mod service_account;
mod stateful_set;
mod template;
mod watches;

use cache::{Change, Cluster, Key};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What has to be looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    Namespace(String),
    ServiceAccounts(String),
    Schedule(Key),
    Deployment(Key),
    ReplicaSet(Key),
    StatefulSet(Key),
    DaemonSet(Key),
    Job(Key),
    CronJob(Key),
    Endpoints(Key),
    Budget(Key),
    Garbage(String),
}

/// When an object wants to be looked at again although nothing changed; `None`: only when something does.
pub(crate) type Again = Option<Duration>;

/// How long work that failed waits before it is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

/// Runs every controller until told to stop. `ca_pem` is the authority of the API's certificate, which pods get to see
/// as `kube-root-ca.crt`.
pub async fn run(client: kube::Client, ca_pem: String, shutdown: CancellationToken) {
    let (mut cluster, mut changes) = Cluster::watch(client, ca_pem, &shutdown);
    let mut queue = Queue::default();
    loop {
        let next = queue.next_at();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            change = changes.recv() => {
                let Some(change) = change else { return };
                take(&mut cluster, change, &mut queue);
                // Whatever arrived together is worked on together.
                while let Ok(change) = changes.try_recv() {
                    take(&mut cluster, change, &mut queue);
                }
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(far)), if next.is_some() => {
                if let Some(work) = queue.pop() {
                    let outcome = reconcile(&mut cluster, &work).await;
                    queue.done(work, outcome);
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

fn take(cluster: &mut Cluster, change: Change, queue: &mut Queue) {
    for work in cluster.apply(change) {
        queue.add(work, Instant::now());
    }
}

async fn reconcile(cluster: &mut Cluster, work: &Work) -> kube::Result<Again> {
    match work {
        Work::Namespace(name) => namespace::reconcile(cluster, name).await,
        Work::ServiceAccounts(namespace) => service_account::reconcile(cluster, namespace).await,
        Work::Schedule(key) => scheduler::reconcile(cluster, key).await,
        Work::Deployment(key) => deployment::reconcile(cluster, key).await,
        Work::ReplicaSet(key) => replica_set::reconcile(cluster, key).await,
        Work::StatefulSet(key) => stateful_set::reconcile(cluster, key).await,
        Work::DaemonSet(key) => daemon_set::reconcile(cluster, key).await,
        Work::Job(key) => job::reconcile(cluster, key).await,
        Work::CronJob(key) => cron_job::reconcile(cluster, key).await,
        Work::Endpoints(key) => endpoints::reconcile(cluster, key).await,
        Work::Budget(key) => disruption_budget::reconcile(cluster, key).await,
        Work::Garbage(uid) => garbage::reconcile(cluster, uid).await,
    }
}

/// Work to do, each item once, in the order it is due.
#[derive(Default)]
struct Queue {
    due: BTreeSet<(Instant, Work)>,
    when: BTreeMap<Work, Instant>,
    failures: BTreeMap<Work, u32>,
}

impl Queue {
    /// Adds work, or brings it forward if it waits already.
    fn add(&mut self, work: Work, at: Instant) {
        if let Some(&waiting) = self.when.get(&work) {
            if waiting <= at {
                return;
            }
            self.due.remove(&(waiting, work.clone()));
        }
        self.when.insert(work.clone(), at);
        self.due.insert((at, work));
    }

    fn next_at(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    fn pop(&mut self) -> Option<Work> {
        let (_, work) = self.due.pop_first()?;
        self.when.remove(&work);
        Some(work)
    }

    fn done(&mut self, work: Work, outcome: kube::Result<Again>) {
        match outcome {
            Ok(again) => {
                self.failures.remove(&work);
                if let Some(wait) = again {
                    self.add(work, Instant::now() + wait);
                }
            }
            Err(error) => {
                let failures = self.failures.entry(work.clone()).or_default();
                *failures += 1;
                let wait = (RETRY.0 * 2u32.saturating_pow((*failures).min(10))).min(RETRY.1);
                // A conflict only means that somebody else was faster; the next look sees what they wrote.
                if cache::is_conflict(&error) {
                    tracing::debug!(?work, %error, "will look again");
                } else {
                    tracing::warn!(?work, %error, ?wait, "a controller failed and will try again");
                }
                self.add(work, Instant::now() + wait);
            }
        }
    }
}

#[cfg(test)]
mod tests;
