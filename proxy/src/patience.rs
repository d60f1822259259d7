//! How long a client is put up with that opens requests only to give them up: each costs it a few bytes, and us and the
//! application the work of a request (CVE-2023-44487). The codec ends bursts; what comes one by one is counted here.

use crate::limits;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::Notify;

/// The requests of one connection.
#[derive(Debug, Default)]
pub struct Patience {
    begun: AtomicU32,
    given_up: AtomicU32,
    lost: Notify,
}

/// A request that has no answer yet. Dropped as such, it was given up.
#[derive(Debug)]
pub struct Unanswered {
    patience: Option<Arc<Patience>>,
}

impl Patience {
    /// A request begins.
    pub fn begin(self: &Arc<Self>) -> Unanswered {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Unanswered { patience: Some(self.clone()) }
    }

    /// Resolves when the connection should end; never without a limit.
    pub async fn lost(patience: Option<&Self>) {
        match patience {
            Some(patience) => patience.lost.notified().await,
            None => std::future::pending().await,
        }
    }

    fn give_up(&self) {
        let given_up = self.given_up.fetch_add(1, Ordering::Relaxed) + 1;
        if is_abuse(self.begun.load(Ordering::Relaxed), given_up) {
            self.lost.notify_one();
        }
    }
}

impl Unanswered {
    /// The answer is there.
    pub fn answered(mut self) {
        self.patience = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(patience) = self.patience.take() {
            patience.give_up();
        }
    }
}

/// True if so many requests were given up that it is not for want of patience: browsers and hedging clients give up
/// some, never most.
fn is_abuse(begun: u32, given_up: u32) -> bool {
    given_up >= limits::HTTP2_GIVEN_UP && given_up > begun / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn only_who_gives_up_most_of_many_is_sent_away() {
        let most = limits::HTTP2_GIVEN_UP;
        for (begun, given_up, expect) in [
            (most, most - 1, false),
            (most, most, true),
            (most * 2, most, false),
            (most * 2 - 1, most, true),
            (most * 10, most * 4, false),
        ] {
            assert_eq!(is_abuse(begun, given_up), expect, "{given_up} of {begun}");
        }
    }

    #[test]
    fn answered_requests_do_not_count() {
        let patience = Arc::new(Patience::default());
        for _ in 0..limits::HTTP2_GIVEN_UP * 2 {
            patience.begin().answered();
        }
        for _ in 0..limits::HTTP2_GIVEN_UP {
            drop(patience.begin());
        }
        assert!(Patience::lost(Some(&patience)).now_or_never().is_none());
        for _ in 0..limits::HTTP2_GIVEN_UP * 2 {
            drop(patience.begin());
        }
        assert!(Patience::lost(Some(&patience)).now_or_never().is_some());
    }
}
