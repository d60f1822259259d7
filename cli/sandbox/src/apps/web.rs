//! The shop's front. A page whose ornament fails (recommendations) is still a page; one whose substance fails isn't.

use super::cart::{ADD_ITEM, EMPTY_CART, GET_CART};
use super::client::{CallError, Http1Client, Http2Client};
use super::grpc::{self, GrpcError, Message};
use super::ledger::{LedgerClient, LedgerError};
use super::serve::{self, Body};
use super::{Listen, catalog};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) listen: Listen,
    /// Where catalog answers
    #[arg(long, env = "SHOP_CATALOG", default_value = "catalog:80")]
    pub(crate) catalog: String,
    /// Where cart answers
    #[arg(long, env = "SHOP_CART", default_value = "cart:80")]
    pub(crate) cart: String,
    /// Where ledger answers
    #[arg(long, env = "SHOP_LEDGER", default_value = "ledger:7000")]
    pub(crate) ledger: String,
}

/// Answers until `stop`.
pub(crate) async fn run(listener: TcpListener, args: &Args, stop: CancellationToken) {
    let web = Arc::new(Web {
        catalog: Http1Client::new(&args.catalog),
        cart: Http2Client::new(&args.cart),
        ledger: LedgerClient::new(&args.ledger),
        orders: AtomicU64::new(0),
    });
    let stopping = stop.clone();
    serve::http(listener, stop, move |request| {
        let (web, stopping) = (web.clone(), stopping.is_cancelled());
        async move { web.answer(request, stopping).await }
    })
    .await;
}

struct Web {
    catalog: Http1Client,
    cart: Http2Client,
    ledger: LedgerClient,
    orders: AtomicU64,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
enum PageError {
    #[error("{0}")]
    Unknown(&'static str),
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("catalog: {0}")]
    Catalog(#[from] CallError),
    #[error("catalog answered {0}")]
    CatalogStatus(StatusCode),
    #[error("cart: {0}")]
    Cart(#[from] GrpcError),
    #[error("{0}")]
    Ledger(#[from] LedgerError),
}

impl PageError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unknown(_) => StatusCode::NOT_FOUND,
            Self::CatalogStatus(status) if *status == StatusCode::NOT_FOUND => StatusCode::NOT_FOUND,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Catalog(CallError::Timeout(_)) | Self::Cart(GrpcError::Call(CallError::Timeout(_))) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Ledger(LedgerError::Timeout(_)) => StatusCode::GATEWAY_TIMEOUT,
            Self::Catalog(_) | Self::CatalogStatus(_) | Self::Cart(_) | Self::Ledger(_) => StatusCode::BAD_GATEWAY,
        }
    }
}

impl Web {
    async fn answer(&self, request: Request<Incoming>, stopping: bool) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if path == "/healthz" {
            let status = if stopping { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            return serve::text(status, "");
        }
        match self.page(request, &path).await {
            Ok(page) => serve::json(&page),
            Err(e) => {
                if e.status().is_server_error() {
                    tracing::warn!(path, "{e}");
                }
                serve::text(e.status(), format!("{e}\n"))
            }
        }
    }

    async fn page(&self, request: Request<Incoming>, path: &str) -> Result<Value, PageError> {
        let method = request.method().clone();
        match (&method, &serve::segments(path)[..]) {
            (&Method::GET, []) => self.home(user(&request)).await,
            (&Method::GET, ["products", id]) => self.catalog(&format!("/products/{id}")).await,
            (&Method::GET, ["products", id, "reviews"]) => self.catalog(&format!("/products/{id}/reviews")).await,
            (&Method::GET, ["cart", user]) => Ok(shown(&self.cart(GET_CART, number(user)?, 0, 0).await?)),
            (&Method::POST, ["cart", user, "items", product]) => {
                Ok(shown(&self.cart(ADD_ITEM, number(user)?, number(product)?, 1).await?))
            }
            (&Method::POST, ["checkout"]) => self.checkout(user(&request)).await,
            _ => Err(PageError::Unknown("no such page")),
        }
    }

    /// The home page: what the customer might like and what is in the cart.
    async fn home(&self, user: u64) -> Result<Value, PageError> {
        let path = format!("/recommendations/{user}");
        let (recommended, cart) = tokio::join!(self.catalog(&path), self.cart(GET_CART, user, 0, 0));
        Ok(json!({ "recommended": recommended.unwrap_or_else(|_| json!([])), "cart": shown(&cart?) }))
    }

    /// Pays for what is in the cart (at least one thing) and empties it.
    async fn checkout(&self, user: u64) -> Result<Value, PageError> {
        let cart = self.cart(GET_CART, user, 0, 0).await?;
        let cents: u64 = cart.all(2).map(|item| catalog::price_cents(item.get(1)).saturating_mul(item.get(2))).sum();
        let order = self.orders.fetch_add(1, Ordering::Relaxed) + 1;
        let payment = self.ledger.record(&format!("{user}-{order}"), cents).await?;
        self.cart(EMPTY_CART, user, 0, 0).await?;
        Ok(json!({ "order": order, "payment": payment, "cents": cents }))
    }

    async fn catalog(&self, path: &str) -> Result<Value, PageError> {
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = path.parse().map_err(|_| PageError::BadRequest("the path cannot be passed on"))?;
        let answer = self.catalog.send(request).await?;
        match answer.head.status {
            StatusCode::OK => Ok(serde_json::from_slice(&answer.body).unwrap_or_default()),
            other => Err(PageError::CatalogStatus(other)),
        }
    }

    async fn cart(&self, method: &str, user: u64, product: u64, quantity: u64) -> Result<Message, GrpcError> {
        let message = Message::default().number(1, user).number(2, product).number(3, quantity);
        grpc::call(&self.cart, method, &message).await
    }
}

/// The customer, from the `user` header; 0 is a stranger.
fn user(request: &Request<Incoming>) -> u64 {
    request.headers().get("user").and_then(|u| u.to_str().ok()?.parse().ok()).unwrap_or(0)
}

fn number(text: &str) -> Result<u64, PageError> {
    text.parse().map_err(|_| PageError::BadRequest("expected a number"))
}

fn shown(cart: &Message) -> Value {
    cart.all(2).map(|item| json!({ "product": item.get(1), "quantity": item.get(2) })).collect()
}
