//! Access policies as a proxy runs them, from the file form: per request, per connection, changed while connections are
//! open.

use crate::world::*;
use mesh_api::access::{Action, Operation, Source};
use mesh_api::{Access, AccessDefault, AccessRule, FileConfig, InboundPolicy, Protocol};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn config(app: SocketAddr, access: Access) -> FileConfig {
    let inbound = InboundPolicy { access, ..InboundPolicy::default() };
    FileConfig { inbound, inbound_default: Some(app), ..FileConfig::default() }
}

fn rule(action: Action, account: &str, paths: &[&str]) -> AccessRule {
    let from = vec![Source { service_accounts: vec![account.to_owned()], ..Source::default() }];
    let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
    let to = if paths.is_empty() { Vec::new() } else { vec![Operation { paths, ..Operation::default() }] };
    AccessRule { policy: "shop/test".to_owned(), action, from, to, ..AccessRule::default() }
}

fn access(rules: Vec<AccessRule>) -> Access {
    Access { rules, ..Access::default() }
}

fn metric(decision: &str) -> [String; 2] {
    [format!("decision=\"{decision}\""), "policy=\"shop/test\"".to_owned()]
}

async fn counted(proxy: &Proxy, decision: &str, expect: f64) {
    let labels = metric(decision);
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    proxy.expect_metric("mesh_access_decisions_total", &labels, expect).await;
}

#[tokio::test]
async fn each_request_is_decided_about() {
    let authority = Authority::new();
    let app = App::start().await;
    let rules = vec![rule(Action::Allow, "shop/load", &["/products/*", "/echo", "/shop.Cart/Get"])];
    let web = Proxy::start(config(app.address, access(rules)), Some(&authority.issue(&account("web"))));
    let load = client(&authority, vec![endpoint(web.inbound, Some(account("web")))]);
    for mut http in [Http::one(load.outbound).await, Http::two(load.outbound).await] {
        for (path, expect) in [("/products/1", 200), ("/other", 403), ("/products/2", 200)] {
            let got = http.get(path).await;
            assert_eq!(got.status, expect, "{path}");
            assert_eq!(got.error(), (expect == 403).then_some("access-denied"), "{path}");
            let text = String::from_utf8_lossy(&got.body);
            assert_eq!(text.contains("sa/load") && text.contains("shop/test"), expect == 403, "{text}");
        }
        // What is refused leaves the connection usable, a body or none.
        assert_eq!(http.post("/other", "some body").await.status, 403);
        assert_eq!(http.post("/echo", "some body").await.body, "some body");
    }
    counted(&web, "allow", 6.0).await;
    counted(&web, "deny", 4.0).await;
    web.expect_metric("mesh_requests_total", &["error=\"access-denied\""], 4.0).await;
    load.expect_metric("mesh_requests_total", &["error=\"access-denied\""], 4.0).await;
    let mut http = Http::two(load.outbound).await;
    let got = http.grpc("/shop.Cart/Add", "").await;
    assert_eq!((got.status, got.headers["grpc-status"].to_str().unwrap()), (200, "7"));

    // Without an identity, and without the name of a policy.
    let mut http = Http::one(web.inbound).await;
    let got = http.get("/products/1").await;
    let text = String::from_utf8_lossy(&got.body).into_owned();
    assert_eq!((got.status, got.error()), (403, Some("access-denied")));
    assert!(text.contains("127.0.0.1 without identity") && !text.contains("shop/test"), "{text}");
}

#[tokio::test]
async fn a_change_counts_for_the_next_request_of_an_open_connection() {
    let authority = Authority::new();
    let app = App::start().await;
    let pems = authority.issue(&account("web"));
    let web = Proxy::start(config(app.address, Access::default()), Some(&pems));
    let load = client(&authority, vec![endpoint(web.inbound, Some(account("web")))]);
    let mut http = Http::one(load.outbound).await;
    assert_eq!(http.get("/").await.status, 200);
    let rules = vec![rule(Action::Deny, "shop/load", &[])];
    web.rewrite(config(app.address, access(rules)));
    let refused = async {
        while http.get("/").await.status != 403 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, refused).await.expect("the file's change has no effect");
}

/// Greets whoever connects and echoes.
async fn greeter() -> (SocketAddr, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::spawn(async move {
                let _ = stream.write_all(b"220 ready\r\n").await;
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (address, accepted)
}

/// What a client hears of the server that sends `said` and waits.
async fn hears(address: SocketAddr, said: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(said).await;
    let mut heard = [0; 9];
    match tokio::time::timeout(Duration::from_secs(2), stream.read_exact(&mut heard)).await {
        Ok(Ok(_)) => String::from_utf8_lossy(&heard).into_owned(),
        _ => String::new(),
    }
}

#[tokio::test]
async fn unseen_connections_are_decided_about_before_the_application_hears_of_them() {
    let authority = Authority::new();
    let (app, accepted) = greeter().await;
    let allow = |account: &str| access(vec![rule(Action::Allow, account, &[])]);
    for (policy, expect) in [(allow("shop/load"), "220 ready"), (allow("shop/other"), "")] {
        let before = accepted.load(std::sync::atomic::Ordering::Relaxed);
        let db = Proxy::start(config(app, policy), Some(&authority.issue(&account("db"))));
        let to = vec![endpoint(db.inbound, Some(account("db")))];
        let load = Proxy::start(towards(Protocol::Opaque, to), Some(&authority.issue(&account("load"))));
        assert_eq!(hears(load.outbound, b"\x00\x01words").await, expect);
        // Nobody who is refused, or says nothing that could be judged, reaches the application.
        assert_eq!(hears(db.inbound, b"\x00\x01words").await, "");
        assert_eq!(hears(db.inbound, b"").await, "");
        let reached = accepted.load(std::sync::atomic::Ordering::Relaxed) - before;
        assert_eq!(reached, usize::from(!expect.is_empty()));
        // With its words, and when it gave up in silence.
        db.expect_metric("mesh_tcp_failures_total", &["error=\"access-denied\"", "tls=\"plain\""], 2.0).await;
    }
}

#[tokio::test]
async fn the_default_decides_where_no_rule_does() {
    let authority = Authority::new();
    let app = App::start().await;
    for (default, meshed, plain) in [
        (AccessDefault::All, 200, 200),
        (AccessDefault::Authenticated, 200, 403),
        (AccessDefault::Deny, 403, 403),
        (AccessDefault::Audit, 200, 200),
    ] {
        let policy = Access { default, ..Access::default() };
        let web = Proxy::start(config(app.address, policy), Some(&authority.issue(&account("web"))));
        let load = client(&authority, vec![endpoint(web.inbound, Some(account("web")))]);
        assert_eq!(Http::one(load.outbound).await.get("/").await.status, meshed, "{default:?}");
        assert_eq!(Http::one(web.inbound).await.get("/").await.status, plain, "{default:?}");
        if default == AccessDefault::Audit {
            let labels = ["decision=\"audit\"", "policy=\"default\""];
            web.expect_metric("mesh_access_decisions_total", &labels, 2.0).await;
        }
    }
}
