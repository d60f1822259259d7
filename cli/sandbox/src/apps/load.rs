//! Customers: a steady stream of requests to web, in a mix that never changes.

use super::catalog::PRODUCTS;
use super::client::Http1Client;
use super::steady::{between, mixed};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Requests under way at most; when web is slow, customers stay away rather than pile up.
const CUSTOMERS: usize = 64;
/// Different customers.
const USERS: u64 = 500;
/// How often the log says how it goes.
const REPORT_SECONDS: u64 = 10;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Where web answers
    #[arg(long, env = "SHOP_WEB", default_value = "web:80")]
    pub(crate) web: String,
    /// Requests a second
    #[arg(long, env = "SHOP_RPS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rps: u32,
}

/// One request of a customer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Visit {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) user: u64,
}

/// The request of a count: always the same for the same count.
pub(crate) fn visit(count: u64) -> Visit {
    let user = between(count.wrapping_mul(3), 1, USERS);
    let product = between(count.wrapping_mul(5).wrapping_add(1), 1, PRODUCTS);
    let (method, path) = match mixed(count) % 100 {
        0..35 => (Method::GET, "/".to_owned()),
        35..63 => (Method::GET, format!("/products/{product}")),
        63..73 => (Method::GET, format!("/products/{product}/reviews")),
        73..88 => (Method::POST, format!("/cart/{user}/items/{product}")),
        88..94 => (Method::GET, format!("/cart/{user}")),
        _ => (Method::POST, "/checkout".to_owned()),
    };
    Visit { method, path, user }
}

#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) well: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) stayed_away: AtomicU64,
}

/// Sends requests until `stop`, whatever becomes of them.
pub(crate) async fn run(args: &Args, stop: CancellationToken) {
    let tally = Arc::new(Tally::default());
    tokio::select! {
        () = stop.cancelled() => {}
        () = drive(args, tally.clone()) => {}
        () = report(&tally) => {}
    }
}

/// Never returns.
pub(crate) async fn drive(args: &Args, tally: Arc<Tally>) {
    let client = Arc::new(Http1Client::new(&args.web));
    let customers = Arc::new(Semaphore::new(CUSTOMERS));
    let mut clock = tokio::time::interval(Duration::from_secs(1) / args.rps);
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for count in 0_u64.. {
        clock.tick().await;
        let Ok(permit) = customers.clone().try_acquire_owned() else {
            tally.stayed_away.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let (client, tally) = (client.clone(), tally.clone());
        tokio::spawn(async move {
            let counter = match send(&client, &visit(count)).await {
                Ok(()) => &tally.well,
                Err(why) => {
                    tracing::debug!("{why}");
                    &tally.failed
                }
            };
            counter.fetch_add(1, Ordering::Relaxed);
            drop(permit);
        });
    }
}

async fn send(client: &Http1Client, visit: &Visit) -> Result<(), String> {
    let request = Request::builder()
        .method(&visit.method)
        .uri(&visit.path)
        .header("user", visit.user)
        .body(Full::new(Bytes::new()))
        .map_err(|e| e.to_string())?;
    let answer = client.send(request).await.map_err(|e| format!("{} {}: {e}", visit.method, visit.path))?;
    match answer.head.status {
        status if status.is_success() => Ok(()),
        status => Err(format!("{} {}: {status}", visit.method, visit.path)),
    }
}

async fn report(tally: &Tally) {
    loop {
        tokio::time::sleep(Duration::from_secs(REPORT_SECONDS)).await;
        let [well, failed, stayed_away] =
            [&tally.well, &tally.failed, &tally.stayed_away].map(|n| n.swap(0, Ordering::Relaxed));
        tracing::info!(well, failed, stayed_away, "requests of the last {REPORT_SECONDS} seconds");
    }
}
