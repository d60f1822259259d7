//! How a proxy ends without losing a request.
//!
//! After SIGTERM it stays open a moment, because clients still have it in their lists: answers on HTTP/1 carry
//! `Connection: close`, HTTP/2 connections get a GOAWAY. Then it stops listening, closes what is idle, and gives
//! what is under way its time.
//!
//! A proxy that is no native sidecar is told to end together with its application, which may still have something to say
//! to others: it stays open until the application has ended (see [`crate::application`]). And when the application has
//! ended by itself, as a Job's does, control says so, and the proxy ends with it.

use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
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
    application_ended: watch::Sender<bool>,
    connections: TaskTracker,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            application_ended: watch::Sender::new(false),
            connections: TaskTracker::new(),
        }
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

    /// The application has ended, and will not be started again.
    pub fn note_application_ended(&self) {
        self.application_ended.send_replace(true);
    }

    /// Resolves as soon as the application is known to have ended.
    pub async fn application_ended(&self) {
        // As above.
        let _ = self.application_ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Runs a connection that the end of the process waits for.
    pub fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        self.connections.spawn(connection);
    }

    /// Connections open.
    pub fn open(&self) -> usize {
        self.connections.len()
    }

    /// Goes through all phases; goes on accepting for `linger` and until `outlived` resolves. Returns how many connections
    /// had to be cut when `timeout` was over.
    pub async fn run(&self, linger: Duration, timeout: Duration, outlived: impl Future<Output = ()>) -> usize {
        let deadline = Instant::now() + timeout;
        self.phase.send_replace(Phase::Leaving);
        let open = async { tokio::join!(tokio::time::sleep(linger), outlived) };
        let _ = tokio::time::timeout_at(deadline, open).await;
        self.phase.send_replace(Phase::Closing);
        self.connections.close();
        let _ = tokio::time::timeout_at(deadline, self.connections.wait()).await;
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
        let cut = drain.run(ms(20), ms(300), async {}).await;
        assert_eq!(cut, 1);
        assert!(start.elapsed() >= ms(300));
        assert_eq!(drain.phase(), Phase::Closing);
    }

    #[tokio::test]
    async fn an_idle_proxy_ends_after_the_linger() {
        let drain = Drain::default();
        let start = tokio::time::Instant::now();
        assert_eq!(drain.run(ms(20), Duration::from_secs(60), async {}).await, 0);
        assert!(start.elapsed() >= ms(20) && start.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn a_proxy_outlives_its_application_but_not_its_time() {
        let drain = Arc::new(Drain::default());
        let (ending, outlived) = (drain.clone(), drain.clone());
        let run = tokio::spawn(async move {
            ending.run(ms(20), Duration::from_secs(60), async move { outlived.application_ended().await }).await
        });
        tokio::time::sleep(ms(200)).await;
        assert_eq!(drain.phase(), Phase::Leaving, "the application has not ended");
        drain.note_application_ended();
        assert_eq!(run.await.unwrap(), 0);
        assert_eq!(drain.phase(), Phase::Closing);
        let began = Instant::now();
        assert_eq!(Drain::default().run(ms(20), ms(200), std::future::pending()).await, 0);
        assert!(began.elapsed() >= ms(200));
    }
}
