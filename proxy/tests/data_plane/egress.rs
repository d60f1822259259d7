//! Egress policies as a proxy runs them, from the file form: per request, per connection, before the destination hears of
//! it; and the hosts outside that traffic is counted under.

use crate::world::*;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use mesh_api::access::Action;
use mesh_api::config::FileDestination;
use mesh_api::egress::{EgressProtocol, EgressRule, Outside};
use mesh_api::{Destination, Egress, EgressDefault, FileConfig};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the application connects to lies outside the cluster, and is `app`.
fn config(app: SocketAddr, egress: Egress) -> FileConfig {
    let destination = Destination { external: true, ..Destination::default() };
    let endpoints = vec![endpoint(app, None)];
    FileConfig {
        destinations: vec![FileDestination { address: SERVICE, destination, endpoints, backends: Vec::new() }],
        outbound_default: Some(SERVICE),
        egress,
        ..FileConfig::default()
    }
}

fn rule(action: Action, hosts: &[&str]) -> EgressRule {
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    EgressRule { policy: "shop/test".to_owned(), action, to: Outside { hosts, ..Outside::default() } }
}

fn denying(rules: Vec<EgressRule>) -> Egress {
    Egress { default: EgressDefault::Deny, default_by: Some("shop/test".to_owned()), rules, ..Egress::default() }
}

async fn get(http: &mut Http, host: &str) -> Got {
    let request = match http {
        Http::One(_) => Request::get("/some").header("host", host),
        Http::Two(_) => Request::get(format!("http://{host}/some")),
    };
    http.send(request.body(Full::<Bytes>::default()).unwrap()).await
}

#[tokio::test]
async fn each_request_is_decided_about_and_counted_under_its_host() {
    let app = App::start().await;
    let proxy = Proxy::start(config(app.address, denying(vec![rule(Action::Allow, &["*.example.com"])])), None);
    for mut http in [Http::one(proxy.outbound).await, Http::two(proxy.outbound).await] {
        for (host, expect) in [("api.example.com", 200), ("other.org", 403), ("api.example.com:80", 200)] {
            let got = get(&mut http, host).await;
            assert_eq!(got.status, expect, "{host}");
            assert_eq!(got.error(), (expect == 403).then_some("egress-denied"), "{host}");
            assert_eq!(String::from_utf8_lossy(&got.body).contains("EgressPolicy shop/test"), expect == 403);
        }
    }
    assert_eq!(app.count(), 4);
    for (decision, expect) in [("allow", 4.0), ("deny", 2.0)] {
        let decision = format!("decision=\"{decision}\"");
        let labels = [decision.as_str(), "protocol=\"http\"", "policy=\"shop/test\""];
        proxy.expect_metric("mesh_egress_decisions_total", &labels, expect).await;
    }
    proxy.expect_metric("mesh_requests_total", &["api.example.com", "status=\"200\""], 4.0).await;
    proxy.expect_metric("mesh_requests_total", &["other.org", "error=\"egress-denied\""], 2.0).await;
}

#[tokio::test]
async fn two_names_for_one_request_pass_nowhere() {
    let app = App::start().await;
    let proxy = Proxy::start(config(app.address, denying(vec![rule(Action::Allow, &["api.example.com"])])), None);
    let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
    stream.write_all(b"GET http://api.example.com/ HTTP/1.1\r\nhost: other.org\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 400");
    assert_eq!(app.count(), 0);
}

#[tokio::test]
async fn addresses_of_the_cluster_need_no_rule() {
    let app = App::start().await;
    let mut config = config(app.address, denying(vec![]));
    config.destinations[0].destination.cluster = true;
    let proxy = Proxy::start(config, None);
    let mut http = Http::one(proxy.outbound).await;
    assert_eq!(get(&mut http, "anything").await.status, 200);
}

/// Counts who connects, greets and keeps quiet.
async fn greeter() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let _ = stream.write_all(b"220 ready\r\n").await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    (address, accepted)
}

/// True if a server greets the client that says this.
async fn is_greeted(address: SocketAddr, said: &[u8]) -> bool {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(said).await;
    let mut heard = [0; 9];
    let read = tokio::time::timeout(Duration::from_secs(2), stream.read_exact(&mut heard)).await;
    matches!(read, Ok(Ok(_)))
}

#[tokio::test]
async fn connections_are_decided_about_before_the_destination_hears_of_them() {
    let hello = client_hello(&[]); // asks for example.org
    let tls = |protocol| EgressRule {
        to: Outside { protocols: vec![protocol], ..Outside::default() },
        ..rule(Action::Allow, &[])
    };
    // Who is greeted: TLS, words nobody understands, silence.
    for (rules, expect) in [
        (vec![rule(Action::Allow, &["example.org"])], [true, false, false]),
        (vec![rule(Action::Allow, &["example.com"])], [false, false, false]),
        (vec![tls(EgressProtocol::Tls)], [true, false, false]),
        (vec![tls(EgressProtocol::Tcp)], [false, true, true]),
        (vec![rule(Action::Allow, &[]), rule(Action::Deny, &["example.org"])], [false, false, false]),
    ] {
        let (app, accepted) = greeter().await;
        let proxy = Proxy::start(config(app, denying(rules.clone())), None);
        let mut reached = 0;
        for (said, expect) in [&hello[..], b"\x00\x01words", b""].into_iter().zip(expect) {
            assert_eq!(is_greeted(proxy.outbound, said).await, expect, "{rules:?} {said:?}");
            reached += usize::from(expect);
        }
        assert_eq!(accepted.load(Ordering::Relaxed), reached, "{rules:?}");
        let refused = [expect[0], expect[1]].into_iter().filter(|greeted| !greeted).count();
        let told = proxy.metric("mesh_tcp_failures_total", &["error=\"egress-denied\""]).await;
        assert!(told >= refused as f64, "{rules:?}: {told}");
    }
}

#[tokio::test]
async fn tls_is_counted_under_the_name_it_asks_for() {
    let (app, _) = greeter().await;
    let proxy = Proxy::start(config(app, Egress::default()), None);
    assert!(is_greeted(proxy.outbound, &client_hello(&[])).await);
    proxy.expect_metric("mesh_tcp_opened_total", &["example.org", "tls=\"passthrough\""], 1.0).await;
}

#[tokio::test]
async fn a_change_counts_for_the_next_request_and_audits_are_counted() {
    let app = App::start().await;
    let audit = Egress { default: EgressDefault::Audit, rules: vec![rule(Action::Audit, &["*"])], ..Egress::default() };
    let proxy = Proxy::start(config(app.address, audit), None);
    let mut http = Http::one(proxy.outbound).await;
    assert_eq!(get(&mut http, "api.example.com").await.status, 200);
    for policy in ["policy=\"shop/test\"", "policy=\"default\""] {
        proxy.expect_metric("mesh_egress_decisions_total", &["decision=\"audit\"", policy], 1.0).await;
    }
    proxy.rewrite(config(app.address, denying(vec![])));
    let refused = async {
        while get(&mut http, "api.example.com").await.status != 403 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, refused).await.expect("the file's change has no effect");
}
