//! Products, reviews and recommendations. Reviews are slow, and one recommendation in [`FAILURE_PERIOD`] fails.

use super::serve::{self, Body};
use super::steady::between;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Products there are: 1 to this.
pub(crate) const PRODUCTS: u64 = 200;
/// Of so many recommendations one fails: about 3 %.
pub(crate) const FAILURE_PERIOD: u64 = 33;

/// Answers until `stop`.
pub(crate) async fn run(listener: TcpListener, stop: CancellationToken) {
    let catalog = Arc::new(Catalog::default());
    let ready = stop.clone();
    serve::http(listener, stop, move |request| {
        let (catalog, stopping) = (catalog.clone(), ready.is_cancelled());
        async move { catalog.answer(&request, stopping).await }
    })
    .await;
}

#[derive(Default)]
struct Catalog {
    requests: AtomicU64,
    recommendations: AtomicU64,
}

impl Catalog {
    async fn answer(&self, request: &Request<Incoming>, stopping: bool) -> Response<Body> {
        if request.uri().path() == "/healthz" {
            let status = if stopping { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            return serve::text(status, "");
        }
        if request.method() != Method::GET {
            return serve::text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        let count = self.requests.fetch_add(1, Ordering::Relaxed);
        match serve::segments(request.uri().path())[..] {
            ["products"] => {
                pause(between(count, 2, 6)).await;
                serve::json(&(1..=PRODUCTS).map(product).collect())
            }
            ["products", id] => match known(id) {
                Some(id) => {
                    pause(between(count, 1, 4)).await;
                    serve::json(&product(id))
                }
                None => serve::text(StatusCode::NOT_FOUND, "no such product\n"),
            },
            ["products", id, "reviews"] => match known(id) {
                Some(id) => {
                    pause(between(count, 80, 150)).await;
                    serve::json(&reviews(id))
                }
                None => serve::text(StatusCode::NOT_FOUND, "no such product\n"),
            },
            ["recommendations", user] => {
                pause(between(count, 3, 9)).await;
                self.recommend(user)
            }
            _ => serve::text(StatusCode::NOT_FOUND, "no such page\n"),
        }
    }

    fn recommend(&self, user: &str) -> Response<Body> {
        let count = self.recommendations.fetch_add(1, Ordering::Relaxed);
        // In the middle of each period, so that even a short look sees the share.
        if count % FAILURE_PERIOD == FAILURE_PERIOD / 2 {
            return serve::text(StatusCode::INTERNAL_SERVER_ERROR, "the model has no idea\n");
        }
        let taste = user.bytes().fold(0_u64, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
        serve::json(&(0..3).map(|n| product(between(taste.wrapping_add(n), 1, PRODUCTS))).collect())
    }
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

fn known(id: &str) -> Option<u64> {
    id.parse().ok().filter(|id| (1..=PRODUCTS).contains(id))
}

fn product(id: u64) -> serde_json::Value {
    const THINGS: [&str; 8] = ["lamp", "chair", "kettle", "clock", "basket", "mirror", "stool", "vase"];
    let thing = THINGS[usize::try_from(id % 8).unwrap_or_default()];
    json!({ "id": id, "name": format!("{thing} no. {id}"), "price_cents": price_cents(id) })
}

/// What a product costs.
pub(crate) fn price_cents(id: u64) -> u64 {
    between(id, 490, 19_990)
}

fn reviews(id: u64) -> serde_json::Value {
    (0..between(id, 1, 5)).map(|n| json!({ "stars": between(id + n, 1, 5), "text": "As described." })).collect()
}
