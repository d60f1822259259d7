//! Shopping carts over gRPC: `shop.v1.Cart` with `GetCart`, `AddItem` and `EmptyCart`.
//!
//! Messages: a request is `{1: user, 2: product, 3: quantity}`, a cart is `{1: user, 2: [item]}` with items
//! `{1: product, 2: quantity}`.

use super::grpc::{self, Code, Message};
use super::serve::{self, Body};
use super::steady::between;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Paths of the service's methods.
pub(crate) const GET_CART: &str = "/shop.v1.Cart/GetCart";
pub(crate) const ADD_ITEM: &str = "/shop.v1.Cart/AddItem";
pub(crate) const EMPTY_CART: &str = "/shop.v1.Cart/EmptyCart";

/// Customers remembered; the one with the smallest number makes room.
const CARTS: usize = 10_000;
/// Different products in a cart.
const ITEMS: usize = 20;

/// Answers until `stop`.
pub(crate) async fn run(listener: TcpListener, stop: CancellationToken) {
    let carts = Arc::new(Mutex::new(Carts::default()));
    serve::http(listener, stop, move |request| answer(carts.clone(), request)).await;
}

async fn answer(carts: Arc<Mutex<Carts>>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if path == "/healthz" {
        return serve::text(StatusCode::OK, "");
    }
    let Some(message) = serve::body(request).await.and_then(Message::unframed) else {
        return grpc::failure(Code::InvalidArgument, "expected one uncompressed message");
    };
    let wait = between(message.get(1).wrapping_add(message.get(2)), 1, 3);
    tokio::time::sleep(Duration::from_millis(wait)).await;
    match carts.lock().call(&path, &message) {
        Ok(answer) => grpc::success(&answer),
        Err((code, text)) => grpc::failure(code, text),
    }
}

#[derive(Default)]
struct Carts(BTreeMap<u64, BTreeMap<u64, u64>>);

impl Carts {
    fn call(&mut self, method: &str, request: &Message) -> Result<Message, (Code, &'static str)> {
        let user = request.get(1);
        match method {
            GET_CART => {}
            ADD_ITEM => self.add(user, request.get(2), request.get(3))?,
            EMPTY_CART => {
                self.0.remove(&user);
            }
            _ => return Err((Code::Unimplemented, "no such method")),
        }
        let items = self.0.get(&user).into_iter().flatten();
        Ok(items.fold(Message::default().number(1, user), |cart, (product, quantity)| {
            cart.nested(2, &Message::default().number(1, *product).number(2, *quantity))
        }))
    }

    fn add(&mut self, user: u64, product: u64, quantity: u64) -> Result<(), (Code, &'static str)> {
        if product == 0 || !(1..=100).contains(&quantity) {
            return Err((Code::InvalidArgument, "expected a product and a quantity of 1 to 100"));
        }
        if self.0.len() >= CARTS && !self.0.contains_key(&user) {
            self.0.pop_first();
        }
        let cart = self.0.entry(user).or_default();
        if cart.len() >= ITEMS && !cart.contains_key(&product) {
            cart.pop_first();
        }
        let held = cart.entry(product).or_default();
        *held = (*held + quantity).min(100);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carts_are_bounded() {
        let mut carts = Carts::default();
        for n in 1..=30 {
            let request = Message::default().number(1, 5).number(2, n).number(3, 90);
            carts.call(ADD_ITEM, &request).unwrap();
            carts.call(ADD_ITEM, &request).unwrap();
        }
        let cart = carts.call(GET_CART, &Message::default().number(1, 5)).unwrap();
        assert_eq!(cart.all(2).count(), ITEMS);
        assert!(cart.all(2).all(|item| item.get(2) == 100));
        let none = Message::default().number(1, 5).number(2, 3);
        assert_eq!(carts.call(ADD_ITEM, &none).unwrap_err().0, Code::InvalidArgument);
        assert_eq!(carts.call("/shop.v1.Cart/Steal", &none).unwrap_err().0, Code::Unimplemented);
        assert_eq!(carts.call(EMPTY_CART, &none).unwrap().all(2).count(), 0);
    }
}
