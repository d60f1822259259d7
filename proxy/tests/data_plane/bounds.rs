//! What happens at the limits: the newest work is turned away and told so, what is under way goes on.

use crate::world::*;
use mesh_api::{FileConfig, Protocol};
use mesh_proxy::limits;
use mesh_proxy::proxy::Settings;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn past_the_limit_of_connections_the_newest_is_turned_away() {
    let app = App::start().await;
    let config = towards(Protocol::Detect, vec![endpoint(app.address, None)]);
    let load = Proxy::start_with(config, None, |settings| settings.max_connections = 2);
    let mut old = Http::one(load.outbound).await;
    assert_eq!(old.get("/").await.status, 200);
    let mut other = Http::one(load.outbound).await;
    assert_eq!(other.get("/").await.status, 200);

    for mut new in [Http::one(load.outbound).await, Http::two(load.outbound).await] {
        let got = new.get("/").await;
        assert_eq!((got.status, got.error()), (503, Some("overload")));
        let text = String::from_utf8_lossy(&got.body).into_owned();
        assert!(text.contains("limit"), "{text}");
    }
    let got = Http::two(load.outbound).await.grpc("/shop.Cart/Get", "x").await;
    assert_eq!((got.status, got.headers["grpc-status"].to_str().unwrap(), got.error()), (200, "14", Some("overload")));

    // Without words for it there is a reset, and without a word none either.
    let mut opaque = TcpStream::connect(load.outbound).await.unwrap();
    opaque.write_all(b"\0binary").await.unwrap();
    let error = tokio::time::timeout(SOON, opaque.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let mut silent = TcpStream::connect(load.outbound).await.unwrap();
    assert!(tokio::time::timeout(SOON, silent.read_u8()).await.unwrap().is_err());

    // Those that were there are not affected, and one that goes makes room.
    assert_eq!(old.get("/").await.status, 200);
    drop(other);
    let room = async {
        while Http::one(load.outbound).await.get("/").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, room).await.unwrap();
    assert!(load.metric("mesh_requests_total", &["error=\"overload\""]).await >= 3.0);
    let text = load.admin("/metrics").await;
    let shed = text.lines().find(|line| line.starts_with("mesh_connections_shed")).unwrap_or_default();
    assert!(shed.rsplit(' ').next().unwrap().parse::<f64>().unwrap() >= 5.0, "{shed}");
}

#[tokio::test]
async fn past_the_limit_of_handshakes_the_newest_caller_goes_elsewhere() {
    let authority = Authority::new();
    let app = App::start().await;
    let busy = FileConfig { inbound_default: Some(app.address), ..FileConfig::default() };
    let identity = authority.issue(&account("web"));
    let busy = Proxy::start_with(busy, Some(&identity), |settings: &mut Settings| settings.max_handshakes = 2);
    let free = server(&authority, "web", app.address);
    // Handshakes that begin and never go on.
    let mut stuck = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(busy.inbound).await.unwrap();
        stream.write_all(&client_hello(&[mesh_api::names::ALPN_H1])).await.unwrap();
        // The server's answer shows that it holds its place.
        tokio::time::timeout(SOON, stream.read_u8()).await.unwrap().unwrap();
        stuck.push(stream);
    }
    let endpoints = [&busy, &free].map(|proxy| endpoint(proxy.inbound, Some(account("web"))));
    let load = client(&authority, endpoints.to_vec());
    for _ in 0..10 {
        let got = Http::one(load.outbound).await.get("/").await;
        assert_eq!((got.status, got.error()), (200, None));
    }
    drop(stuck);
    let only = client(&authority, vec![endpoint(busy.inbound, Some(account("web")))]);
    let room = async {
        while Http::one(only.outbound).await.get("/").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, room).await.unwrap();
}

#[tokio::test]
async fn heads_past_the_limit_are_refused() {
    let (load, _web, app) = mesh().await;
    let mut stream = TcpStream::connect(load.outbound).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nhost: web\r\nx: {}\r\n\r\n", "x".repeat(limits::HTTP1_HEAD));
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let request = hyper::Request::get("http://web/").header("x", "x".repeat(limits::HTTP2_HEADER_LIST as usize));
    let mut two = Http::two(load.outbound).await;
    let got = two.send(request.body(Default::default()).unwrap()).await;
    assert_eq!(got.status, 431);
    assert_eq!(two.get("/").await.status, 200, "other streams of the connection go on");
    assert_eq!(app.count(), 1);
}

#[tokio::test]
async fn empty_frames_of_applications_do_not_add_up_on_the_clients_connection() {
    // The HTTP/2 library breaks a connection off after a hundred of them. No application here sends that many; all
    // together they do.
    let authority = Authority::new();
    let mut servers = Vec::new();
    for _ in 0..4 {
        let app = App::start().await;
        servers.push(server(&authority, "web", app.address));
    }
    let endpoints = servers.iter().map(|proxy| endpoint(proxy.inbound, Some(account("web")))).collect();
    let load = client(&authority, endpoints);
    let mut client = Http::two(load.outbound).await;
    for round in 0..150 {
        let got = client.grpc("/shop.Cart/Padded", "item").await;
        let status = got.trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
        assert!(status.is_some_and(|status| status == "0"), "round {round}: {got:?}");
        assert_eq!(&got.body[..], b"item");
    }
}

/// More bytes than all buffers on the way hold together: a writer nobody reads from has to wait.
#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_writer() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = Authority::new();
    let db = server(&authority, "db", listener.local_addr().unwrap());
    let load = client(&authority, vec![endpoint(db.inbound, Some(account("db")))]);
    let mut client = TcpStream::connect(load.outbound).await.unwrap();
    client.write_all(b"\0").await.unwrap();
    let (mut app, _) = tokio::time::timeout(SOON, listener.accept()).await.unwrap().unwrap();
    let block = vec![7; 1 << 20];
    let mut sent: u64 = 1;
    // The kernel's buffers of three connections may hold some megabytes each; ours hold next to nothing.
    while let Ok(n) = tokio::time::timeout(Duration::from_secs(2), client.write(&block)).await {
        sent += n.unwrap() as u64;
        assert!(sent < 256 << 20, "nothing stops the writer");
    }
    client.shutdown().await.unwrap();
    let mut got = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match tokio::time::timeout(SOON, app.read(&mut buffer)).await.unwrap().unwrap() {
            0 => break,
            n => got += n as u64,
        }
    }
    assert_eq!(got, sent);
}
