//! The shop over loopback: every program answers, fails as often as promised, and stops when told.

use super::client::{Http1Client, Http2Client};
use super::grpc::Message;
use super::{Listen, cart, catalog, grpc, ledger, load, web};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running shop.
struct Shop {
    web: String,
    catalog: String,
    cart: String,
    stop: CancellationToken,
    programs: Vec<JoinHandle<()>>,
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

impl Shop {
    async fn open() -> Self {
        let stop = CancellationToken::new();
        let (catalog_listener, catalog) = listener().await;
        let (cart_listener, cart) = listener().await;
        let (ledger_listener, ledger) = listener().await;
        let (web_listener, web) = listener().await;
        let args = web::Args {
            listen: Listen { listen: SocketAddr::from(([127, 0, 0, 1], 0)) },
            catalog: catalog.clone(),
            cart: cart.clone(),
            ledger,
        };
        let for_web = stop.clone();
        let programs = vec![
            tokio::spawn(catalog::run(catalog_listener, stop.clone())),
            tokio::spawn(cart::run(cart_listener, stop.clone())),
            tokio::spawn(ledger::run(ledger_listener, stop.clone())),
            tokio::spawn(async move { web::run(web_listener, &args, for_web).await }),
        ];
        Self { web, catalog, cart, stop, programs }
    }

    async fn close(self) {
        self.stop.cancel();
        for program in self.programs {
            tokio::time::timeout(Duration::from_secs(15), program).await.unwrap().unwrap();
        }
    }
}

async fn ask(client: &Http1Client, method: Method, path: &str) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri(path).header("user", "7").body(Full::new(Bytes::new()));
    let answer = client.send(request.unwrap()).await.unwrap();
    (answer.head.status, serde_json::from_slice(&answer.body).unwrap_or_default())
}

#[tokio::test]
async fn a_customer_can_look_choose_and_pay() {
    let shop = Shop::open().await;
    let client = Http1Client::new(&shop.web);
    let get = async |path: &str| ask(&client, Method::GET, path).await;
    let post = async |path: &str| ask(&client, Method::POST, path).await;

    let (status, home) = get("/").await;
    assert_eq!((status, home["recommended"].as_array().map(Vec::len)), (StatusCode::OK, Some(3)));
    let (_, product) = get("/products/12").await;
    assert_eq!(product["id"], 12);
    assert!(get("/products/12/reviews").await.1.as_array().is_some_and(|r| !r.is_empty()));

    post("/cart/7/items/12").await;
    assert_eq!(post("/cart/7/items/12").await.1, serde_json::json!([{ "product": 12, "quantity": 2 }]));
    assert_eq!(get("/cart/7").await.1[0]["product"], 12);
    let (status, paid) = post("/checkout").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(paid["cents"].as_u64(), product["price_cents"].as_u64().map(|p| p * 2));
    assert_eq!(get("/cart/7").await.1, serde_json::json!([]));
    assert_eq!(post("/checkout").await.1["payment"], 2);

    for (path, status) in
        [("/products/0", 404), ("/products/x", 404), ("/nowhere", 404), ("/cart/x", 400), ("/healthz", 200)]
    {
        assert_eq!(get(path).await.0.as_u16(), status, "{path}");
    }
    shop.close().await;
}

#[tokio::test]
async fn about_three_percent_of_recommendations_fail_and_home_does_not() {
    let shop = Shop::open().await;
    let (direct, web) = (Http1Client::new(&shop.catalog), Http1Client::new(&shop.web));
    let mut outcome = Vec::new();
    for user in 0..2 * catalog::FAILURE_PERIOD {
        let (status, _) = ask(&direct, Method::GET, &format!("/recommendations/{user}")).await;
        outcome.push(status.is_success());
    }
    let failed: Vec<usize> = (0..outcome.len()).filter(|n| !outcome[*n]).collect();
    assert_eq!(failed, [16, 49]);
    let mut empty = 0;
    for _ in 0..catalog::FAILURE_PERIOD {
        let (status, home) = ask(&web, Method::GET, "/").await;
        assert_eq!(status, StatusCode::OK);
        empty += usize::from(home["recommended"] == serde_json::json!([]));
    }
    assert_eq!(empty, 1);
    shop.close().await;
}

#[tokio::test]
async fn grpc_failures_have_a_status() {
    let shop = Shop::open().await;
    let client = Http2Client::new(&shop.cart);
    let message = Message::default().number(1, 1).number(2, 1).number(3, 1000);
    for (method, expect) in [(cart::ADD_ITEM, "3"), ("/shop.v1.Cart/Steal", "12")] {
        let error = grpc::call(&client, method, &message).await.unwrap_err();
        assert_eq!(error.to_string(), format!("gRPC status {expect}"));
    }
    shop.close().await;
}

#[tokio::test]
async fn web_says_which_of_its_helpers_is_away() {
    let stop = CancellationToken::new();
    let (web_listener, address) = listener().await;
    // Nobody listens on these any more.
    let (_, nowhere) = listener().await;
    let args = web::Args {
        listen: Listen { listen: SocketAddr::from(([127, 0, 0, 1], 0)) },
        catalog: nowhere.clone(),
        cart: nowhere.clone(),
        ledger: nowhere,
    };
    let token = stop.clone();
    let program = tokio::spawn(async move { web::run(web_listener, &args, token).await });
    let client = Http1Client::new(&address);
    for (method, path, who) in [
        (Method::GET, "/products/1", "catalog: could not connect"),
        (Method::GET, "/cart/1", "cart: could not connect"),
        (Method::POST, "/checkout", "cart: could not connect"),
    ] {
        let request = Request::builder().method(method).uri(path).body(Full::new(Bytes::new())).unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.head.status, StatusCode::BAD_GATEWAY);
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(text.starts_with(who), "{text}");
    }
    stop.cancel();
    program.await.unwrap();
}

#[tokio::test]
async fn load_keeps_its_rate_and_everybody_is_served() {
    let shop = Shop::open().await;
    let args = load::Args { web: shop.web.clone(), rps: 100 };
    let tally = std::sync::Arc::new(load::Tally::default());
    let _ = tokio::time::timeout(Duration::from_millis(1500), load::drive(&args, tally.clone())).await;
    let well = tally.well.load(Ordering::Relaxed);
    assert!((60..=160).contains(&well), "{well}");
    assert_eq!(tally.failed.load(Ordering::Relaxed), 0);
    shop.close().await;
}

#[test]
fn the_mix_of_visits_has_every_kind_and_never_changes() {
    let kind = |count| {
        let visit = load::visit(count);
        let words: Vec<String> = super::serve::segments(&visit.path)
            .iter()
            .map(|w| if w.parse::<u64>().is_ok() { "N".to_owned() } else { (*w).to_owned() })
            .collect();
        format!("{} /{}", visit.method, words.join("/"))
    };
    let mut kinds = std::collections::BTreeMap::<String, u32>::new();
    for count in 0..1000 {
        assert_eq!(load::visit(count), load::visit(count));
        *kinds.entry(kind(count)).or_default() += 1;
    }
    assert_eq!(kinds.len(), 6, "{kinds:?}");
    assert!(kinds["GET /"] > 280 && kinds["POST /checkout"] > 30, "{kinds:?}");
}

#[test]
fn the_manifests_are_ordinary_and_complete() {
    use std::collections::BTreeSet;
    let objects: Vec<Value> = serde_saphyr::from_multiple(super::SHOP_YAML).unwrap();
    let names = |kind: &str| -> BTreeSet<String> {
        let of_kind = objects.iter().filter(|o| o["kind"] == kind);
        of_kind.map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let all: BTreeSet<String> = ["web", "catalog", "cart", "ledger", "load"].map(str::to_owned).into();
    assert_eq!((names("Deployment"), names("ServiceAccount")), (all.clone(), all.clone()));
    assert_eq!(names("Service"), all.into_iter().filter(|n| n != "load").collect());
    assert!(!super::SHOP_YAML.contains("meshctl.dev"));
    let image = format!("meshctl/demo:{}", env!("CARGO_PKG_VERSION"));
    for object in objects.iter().filter(|o| o["kind"] == "Deployment") {
        assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["image"], image.as_str());
        serde_json::from_value::<k8s_openapi::api::apps::v1::Deployment>(object.clone()).unwrap();
    }
}

#[test]
fn the_manifests_can_be_injected_and_come_back_as_they_were() {
    use mesh_manifests::inject_text::{Mode, Outcome, transform};
    let run = |mode, text: &str| {
        let (mut out, mut outcomes) = (Vec::new(), Vec::new());
        transform("shop.yaml", text.as_bytes(), &mut out, mode, &mut |r| outcomes.push(r.outcome)).unwrap();
        (String::from_utf8(out).unwrap(), outcomes)
    };
    let (injected, outcomes) = run(Mode::Annotate, super::SHOP_YAML);
    assert_eq!(outcomes.iter().filter(|o| **o == Outcome::Injected).count(), 5);
    assert_eq!(injected.matches("meshctl.dev/inject: enabled").count(), 5);
    assert_eq!(run(Mode::Uninject, &injected).0, super::SHOP_YAML);
}
