//! Opaque TCP through two proxies.

use crate::world::*;
use mesh_api::Protocol;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Answers the whole of what a client said, reversed, once the client has closed its side.
async fn reverser() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut said = Vec::new();
                stream.read_to_end(&mut said).await.unwrap();
                said.reverse();
                stream.write_all(&said).await.unwrap();
            });
        }
    });
    address
}

#[tokio::test]
async fn half_closed_connections_work_through_tls() {
    let authority = Authority::new();
    let db = server(&authority, "db", reverser().await);
    let load = client(&authority, vec![endpoint(db.inbound, Some(account("db")))]);
    let mut stream = TcpStream::connect(load.outbound).await.unwrap();
    stream.write_all(b"\x00\x01question").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut got)).await.unwrap().unwrap();
    assert_eq!(got, b"noitseuq\x01\x00");
    for proxy in [&load, &db] {
        proxy.expect_metric("mesh_tcp_bytes_total", &["flow=\"read\"", "tls=\"mutual\""], 10.0).await;
        proxy.expect_metric("mesh_tcp_bytes_total", &["flow=\"write\"", "tls=\"mutual\""], 10.0).await;
        proxy.expect_metric("mesh_tcp_opened_total", &[], 1.0).await;
        proxy.expect_metric("mesh_tcp_open_connections", &[], 0.0).await;
        proxy.expect_metric("mesh_requests_total", &[], 0.0).await;
    }
}

#[tokio::test]
async fn a_server_may_speak_first() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"220 ready\r\n").await.unwrap();
                let mut word = [0; 4];
                stream.read_exact(&mut word).await.unwrap();
                stream.write_all(&word).await.unwrap();
            });
        }
    });
    let authority = Authority::new();
    let mail = server(&authority, "mail", app);
    let load = client(&authority, vec![endpoint(mail.inbound, Some(account("mail")))]);
    for round in 0..2 {
        let start = std::time::Instant::now();
        let mut stream = TcpStream::connect(load.outbound).await.unwrap();
        let mut banner = [0; 11];
        tokio::time::timeout(SOON, stream.read_exact(&mut banner)).await.unwrap().unwrap();
        assert_eq!(&banner, b"220 ready\r\n");
        assert!(round > 0 || start.elapsed() >= Duration::from_millis(100));
        stream.write_all(b"QUIT").await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"QUIT");
    }
    load.expect_metric("mesh_tcp_opened_total", &["tls=\"mutual\""], 2.0).await;
    load.expect_metric("mesh_tcp_bytes_total", &["flow=\"write\""], 30.0).await;
}

#[tokio::test]
async fn a_client_that_thinks_first_still_gets_http() {
    let (load, _web, _app) = mesh().await;
    let mut stream = TcpStream::connect(load.outbound).await.unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;
    stream.write_all(b"GET /late HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    load.expect_metric("mesh_requests_total", &["route=\"/late\""], 1.0).await;
}

#[tokio::test]
async fn a_reset_travels_through_both_proxies() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    let authority = Authority::new();
    let db = server(&authority, "db", app);
    let load = client(&authority, vec![endpoint(db.inbound, Some(account("db")))]);
    let mut stream = TcpStream::connect(load.outbound).await.unwrap();
    stream.write_all(b"\x00hello").await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    accepted.read_u8().await.unwrap();
    accepted.set_zero_linger().unwrap();
    drop(accepted);
    let error = tokio::time::timeout(SOON, stream.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn the_applications_own_tls_passes_through() {
    // Anything that begins like a ClientHello without our ALPN; the far end only has to see the same bytes.
    let mut hello = client_hello(&[b"h2".as_slice()]);
    let web = Proxy::start(
        mesh_api::FileConfig { inbound_default: Some(reverser().await), ..Default::default() },
        Some(&Authority::new().issue(&account("web"))),
    );
    let load = Proxy::start(towards(Protocol::Detect, vec![endpoint(web.inbound, None)]), None);
    let mut stream = TcpStream::connect(load.outbound).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut got)).await.unwrap().unwrap();
    hello.reverse();
    assert!(got == hello);
    load.expect_metric("mesh_tcp_opened_total", &["tls=\"passthrough\"", "route=\"example.org\""], 1.0).await;
    web.expect_metric("mesh_tcp_opened_total", &["tls=\"passthrough\"", "route=\"example.org\""], 1.0).await;
}

#[tokio::test]
async fn without_an_endpoint_the_client_is_reset_and_it_is_counted() {
    let load = Proxy::start(towards(Protocol::Opaque, vec![]), None);
    let mut stream = TcpStream::connect(load.outbound).await.unwrap();
    assert!(tokio::time::timeout(SOON, stream.read_u8()).await.unwrap().is_err());
    load.expect_metric("mesh_tcp_failures_total", &["error=\"no-endpoints\""], 1.0).await;
    load.expect_metric("mesh_tcp_open_connections", &[], 0.0).await;
}

/// A server that greets, and counts who comes.
async fn greeter(greeting: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                stream.write_all(greeting).await.unwrap();
                let _ = stream.read_u8().await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_silent_client_is_carried_within_a_tenth_of_a_second_and_its_port_remembered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    let load = Proxy::start(towards(Protocol::Detect, vec![endpoint(app, None)]), None);
    let mut took = Vec::new();
    for _ in 0..3 {
        let start = std::time::Instant::now();
        let mut stream = TcpStream::connect(load.outbound).await.unwrap();
        // Neither says anything, yet they are connected.
        let (mut accepted, _) = tokio::time::timeout(SOON, listener.accept()).await.unwrap().unwrap();
        took.push(start.elapsed());
        accepted.write_all(b"220 hello\r\n").await.unwrap();
        let mut greeting = [0; 11];
        tokio::time::timeout(SOON, stream.read_exact(&mut greeting)).await.unwrap().unwrap();
    }
    assert!(took[0] >= Duration::from_millis(100), "{took:?}");
    // The machine may be busy, but not always.
    assert!(took[1..].iter().min().unwrap() < &Duration::from_millis(100), "{took:?}");
    assert!(took[0] < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_server_that_gives_up_waiting_for_a_request_is_not_one_that_speaks_first() {
    let app = greeter(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    let load = Proxy::start(towards(Protocol::Detect, vec![endpoint(app, None)]), None);
    let mut silent = TcpStream::connect(load.outbound).await.unwrap();
    let mut word = [0; 4];
    tokio::time::timeout(SOON, silent.read_exact(&mut word)).await.unwrap().unwrap();
    assert_eq!(&word, b"HTTP");
    // The next client's request is still seen as one.
    let mut stream = TcpStream::connect(load.outbound).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
    tokio::time::timeout(SOON, stream.read_exact(&mut word)).await.unwrap().unwrap();
    load.expect_metric("mesh_requests_total", &["status=\"408\""], 1.0).await;
}

#[tokio::test]
async fn who_says_nothing_to_an_application_that_is_not_there_may_be_a_slow_probe() {
    let authority = Authority::new();
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let db = server(&authority, "db", app);
    // It leaves without a word, only later than most: no traffic.
    let probe = TcpStream::connect(db.inbound).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(probe);
    db.expect_metric("mesh_tcp_failures_total", &["route=\"probe\""], 1.0).await;
    db.expect_metric("mesh_tcp_opened_total", &["route=\"\""], 0.0).await;
    // It speaks after all, and is answered in its own protocol.
    let mut slow = TcpStream::connect(db.inbound).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    slow.write_all(b"GET / HTTP/1.1\r\nhost: db\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(SOON, slow.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("mesh-error: connect-failed"), "{answer}");
    // It waits to be greeted, and learns before long that nobody will.
    let mut patient = TcpStream::connect(db.inbound).await.unwrap();
    let error = tokio::time::timeout(SOON, patient.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    db.expect_metric("mesh_tcp_failures_total", &["route=\"\""], 1.0).await;
}

#[tokio::test]
async fn a_client_that_resets_has_its_server_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = Authority::new();
    let db = server(&authority, "db", listener.local_addr().unwrap());
    let load = client(&authority, vec![endpoint(db.inbound, Some(account("db")))]);
    let mut stream = TcpStream::connect(load.outbound).await.unwrap();
    stream.write_all(b"\0hello").await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    let mut word = [0; 6];
    accepted.read_exact(&mut word).await.unwrap();
    stream.set_zero_linger().unwrap();
    drop(stream);
    let error = tokio::time::timeout(SOON, accepted.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_is_declared_needs_no_detection() {
    // Opaque although it looks like HTTP: the server sees exactly these bytes.
    let request = b"GET /  HTTP/1.1\r\nodd";
    let load = Proxy::start(towards(Protocol::Opaque, vec![endpoint(reverser().await, None)]), None);
    let mut stream = TcpStream::connect(load.outbound).await.unwrap();
    stream.write_all(request).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut got)).await.unwrap().unwrap();
    got.reverse();
    assert_eq!(got, request);
    // And what is declared to be HTTP is held to it.
    let load = Proxy::start(towards(Protocol::Http1, vec![endpoint(reverser().await, None)]), None);
    let mut stream = TcpStream::connect(load.outbound).await.unwrap();
    stream.write_all(b"\0\x01\x02\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}
