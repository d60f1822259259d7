//! How a proxy ends without losing a request.
//!
//! After SIGTERM it stays open a moment, because clients still have it in their lists: answers on HTTP/1 carry
//! `Connection: close`, HTTP/2 connections get a GOAWAY. Then it stops listening, closes what is idle, and gives
//! what is under way its time.

use std::time::Duration;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// Where a proxy is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Normal work.
    Serving,
    /// Told to end: still accepting, asking clients to go elsewhere.
    Leaving,
    /// No longer accepting; what is idle closes, what is under way finishes.
    Closing,
}

/// The phase, and the connections that have to end before the process may.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    connections: TaskTracker,
}

impl Default for Drain {
    fn default() -> Self {
        Self { phase: watch::Sender::new(Phase::Serving), connections: TaskTracker::new() }
    }
}

impl Drain {
    /// Where we are.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Resolves as soon as `phase` (or a later one) begins.
    pub async fn reached(&self, phase: Phase) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// Runs a connection that the end of the process waits for.
    pub fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        self.connections.spawn(connection);
    }

    /// Connections open.
    pub fn open(&self) -> usize {
        self.connections.len()
    }

    /// Goes through all phases; returns how many connections had to be cut.
    pub async fn run(&self, linger: Duration, timeout: Duration) -> usize {
        self.phase.send_replace(Phase::Leaving);
        tokio::time::sleep(linger.min(timeout)).await;
        self.phase.send_replace(Phase::Closing);
        self.connections.close();
        let rest = timeout.saturating_sub(linger);
        let _ = tokio::time::timeout(rest, self.connections.wait()).await;
        self.connections.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[tokio::test]
    async fn what_is_under_way_gets_its_time_and_no_more() {
        let drain = Arc::new(Drain::default());
        let closing = drain.clone();
        drain.spawn(async move {
            closing.reached(Phase::Closing).await;
            tokio::time::sleep(ms(30)).await;
        });
        drain.spawn(std::future::pending());
        let start = tokio::time::Instant::now();
        let cut = drain.run(ms(20), ms(300)).await;
        assert_eq!(cut, 1);
        assert!(start.elapsed() >= ms(300));
        assert_eq!(drain.phase(), Phase::Closing);
    }

    #[tokio::test]
    async fn an_idle_proxy_ends_after_the_linger() {
        let drain = Drain::default();
        let start = tokio::time::Instant::now();
        assert_eq!(drain.run(ms(20), Duration::from_secs(60)).await, 0);
        assert!(start.elapsed() >= ms(20) && start.elapsed() < Duration::from_secs(30));
    }
}
