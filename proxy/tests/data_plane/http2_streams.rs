//! HTTP/2 as it is meant to be, through two proxies: streams side by side, resets and drains, tunnels, trailers.

use crate::frames::*;
use crate::world::{App, Authority, Proxy, SOON, account, client, endpoint, mesh, server, towards};
use mesh_api::Protocol;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// An application made of frames: `serve` runs for each of its connections.
async fn application<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::spawn(serve(io));
        }
    });
    address
}

/// Client proxy and server proxy before an application, and a connection of a client.
async fn before(app: SocketAddr) -> (Proxy, Proxy, Peer) {
    let authority = Authority::new();
    let web = server(&authority, "web", app);
    let load = client(&authority, vec![endpoint(web.inbound, Some(account("web")))]);
    let peer = Peer::client(load.outbound).await;
    (load, web, peer)
}

fn ok(stream: u32, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &block(&[(":status", "200")]))
}

#[tokio::test]
async fn the_fast_overtake_the_slow() {
    let (load, _web, _app) = mesh().await;
    let mut peer = Peer::client(load.outbound).await;
    peer.send(&get(1, "/slow")).await;
    let fast: Vec<u8> = (3..103).step_by(2).flat_map(|stream| get(stream, "/fast")).collect();
    peer.send(&fast).await;
    let mut ended = Vec::new();
    while ended.len() < 51 {
        ended.push(peer.until(|seen| seen.ends()).await.stream);
    }
    assert_eq!(ended.last(), Some(&1));
    assert_eq!(ended.iter().collect::<HashSet<_>>().len(), 51);
}

#[tokio::test]
async fn pings_are_answered_and_priorities_are_not() {
    let (load, _web, _app) = mesh().await;
    let mut peer = Peer::client(load.outbound).await;
    assert!(peer.is_alive().await);
    // Streams that depend on each other in a circle, and weights of all sizes: nobody minds.
    for (stream, on) in [(1u32, 3u32), (3, 5), (5, 1)] {
        let head = [&on.to_be_bytes()[..], &[255], &block(&request("GET", "/"))].concat();
        peer.send(&frame(PRIORITY, 0, stream, &[0x80, 0, 0, 7, 0])).await;
        peer.send(&frame(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, stream, &head)).await;
    }
    // PRIORITY_UPDATE (RFC 9218) is a frame of unknown type to us.
    peer.send(&frame(0x10, 0, 0, b"\0\0\0\x01u=0")).await;
    for _ in 0..3 {
        assert_eq!(peer.until(|seen| seen.kind == HEADERS).await.status(), 200);
    }
    assert!(peer.is_alive().await);
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let app = application(move |io| {
        let tell = tell.clone();
        async move {
            let mut peer = Peer::server(io).await;
            peer.until(|seen| seen.is(HEADERS, 1)).await;
            let trailers = peer.until(|seen| seen.is(HEADERS, 1)).await;
            tell.send(trailers.field("x-sum").unwrap()).unwrap();
            let end = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("x-sum", "theirs")]));
            peer.send(&[ok(1, 0), frame(DATA, 0, 1, b"body"), end].concat()).await;
            while peer.next().await.is_some() {}
        }
    })
    .await;
    let (_load, _web, mut peer) = before(app).await;
    let end = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("x-sum", "ours")]));
    peer.send(&[post(1, "/"), frame(DATA, 0, 1, b"body"), end].concat()).await;
    assert_eq!(tokio::time::timeout(SOON, told.recv()).await.unwrap().unwrap(), "ours");
    let trailers = peer.until(|seen| seen.is(HEADERS, 1) && seen.has(END_STREAM)).await;
    assert_eq!(trailers.field("x-sum").unwrap(), "theirs");
}

#[tokio::test]
async fn resets_travel_both_ways() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let app = application(move |io| {
        let tell = tell.clone();
        async move {
            let mut peer = Peer::server(io).await;
            while let Some(seen) = peer.next().await {
                match seen.kind {
                    HEADERS if seen.field(":path").unwrap() == "/refuse" => {
                        peer.send(&ok(seen.stream, 0)).await;
                    }
                    HEADERS => tell.send(None).unwrap(),
                    DATA => peer.send(&reset(seen.stream, u32::from(seen.payload[0]))).await,
                    RST_STREAM => tell.send(Some(seen.code())).unwrap(),
                    _ => {}
                }
            }
        }
    })
    .await;
    let (_load, _web, mut peer) = before(app).await;
    for (stream, opening) in [(1, get(1, "/wait")), (3, post(3, "/wait"))] {
        peer.send(&opening).await;
        assert_eq!(tokio::time::timeout(SOON, told.recv()).await.unwrap().unwrap(), None);
        peer.send(&reset(stream, CANCEL)).await;
        assert_eq!(tokio::time::timeout(SOON, told.recv()).await.unwrap().unwrap(), Some(CANCEL));
    }
    // The application's code arrives as it is; but that a body was cut off shows, whatever the code.
    for (stream, code, expect) in [(5, 0xb, ENHANCE_YOUR_CALM), (7, 0x8, CANCEL), (9, 0x0, CANCEL)] {
        peer.send(&post(stream, "/refuse")).await;
        peer.until(|seen| seen.is(HEADERS, stream)).await;
        peer.send(&frame(DATA, 0, stream, &[code])).await;
        let last = peer.until(|seen| seen.stream == stream && seen.ends()).await;
        assert_eq!((last.kind, last.code()), (RST_STREAM, expect));
    }
    // So does the client's.
    peer.send(&post(11, "/wait")).await;
    assert_eq!(tokio::time::timeout(SOON, told.recv()).await.unwrap().unwrap(), None);
    peer.send(&reset(11, NO_ERROR)).await;
    assert_eq!(tokio::time::timeout(SOON, told.recv()).await.unwrap().unwrap(), Some(CANCEL));
    assert!(peer.is_alive().await);
}

#[tokio::test]
async fn a_drain_lets_streams_finish() {
    let (mut load, _web, _app) = mesh().await;
    let mut peer = Peer::client(load.outbound).await;
    peer.send(&[get(1, "/slow"), post(3, "/echo")].concat()).await;
    peer.until(|seen| seen.is(HEADERS, 3)).await;
    load.shut_down();
    // The first GOAWAY announces the end and refuses nothing.
    let first = peer.until(|seen| seen.kind == GOAWAY).await;
    assert_eq!((first.code(), &first.payload[..4]), (NO_ERROR, &[0x7f, 0xff, 0xff, 0xff][..]));
    let ping = peer.until(|seen| seen.kind == PING && !seen.has(ACK)).await;
    peer.send(&get(5, "/crossed-the-goaway")).await;
    peer.send(&frame(PING, ACK, 0, &ping.payload)).await;
    // The answer and the second GOAWAY come in any order.
    let both = |seen: &[Seen]| seen.iter().any(|s| s.is(HEADERS, 5)) && seen.iter().any(|s| s.kind == GOAWAY);
    let (came, _) = peer.collect(both).await;
    assert_eq!(came.iter().find(|seen| seen.is(HEADERS, 5)).map(Seen::status), Some(200), "{came:?}");
    let second = came.iter().find(|seen| seen.kind == GOAWAY).unwrap();
    assert_eq!((second.code(), &second.payload[..4]), (NO_ERROR, &[0, 0, 0, 5][..]));
    // What comes later is ignored; what is under way ends as if nothing had happened.
    peer.send(&[get(7, "/too-late"), frame(DATA, END_STREAM, 3, b"the rest")].concat()).await;
    let mut ended: HashSet<u32> = came.iter().filter(|seen| seen.ends()).map(|seen| seen.stream).collect();
    ended.remove(&5);
    let all = async {
        while let Some(seen) = peer.next().await {
            assert!(seen.kind != RST_STREAM && seen.stream != 7, "{seen:?}");
            if seen.ends() && seen.stream != 5 {
                ended.insert(seen.stream);
            }
        }
    };
    tokio::time::timeout(SOON, all).await.expect("the connection closes by itself");
    assert_eq!(ended, HashSet::from([1, 3]));
    tokio::time::timeout(Duration::from_secs(5), load.ended()).await.unwrap();
}

#[tokio::test]
async fn an_application_that_leaves_loses_nothing() {
    // Its first connection says GOAWAY as soon as it has a request, answers that one late, and takes no other.
    let connections = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let app = application(move |io| {
        let first = connections.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        async move {
            let mut peer = Peer::server(io).await;
            while let Some(seen) = peer.next().await {
                if seen.kind == HEADERS && first {
                    assert_eq!(seen.stream, 1, "no request on a connection that is leaving");
                    peer.send(&goaway(1, NO_ERROR)).await;
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                if seen.kind == HEADERS {
                    peer.send(&ok(seen.stream, END_STREAM)).await;
                }
            }
        }
    })
    .await;
    let load = Proxy::start(towards(Protocol::Http2, vec![endpoint(app, None)]), None);
    let mut peer = Peer::client(load.outbound).await;
    peer.send(&get(1, "/")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    for stream in (3..13).step_by(2) {
        peer.send(&get(stream, "/")).await;
    }
    for _ in 0..6 {
        assert_eq!(peer.until(|seen| seen.kind == HEADERS).await.status(), 200);
    }
}

#[tokio::test]
async fn a_refused_stream_is_tried_again() {
    let app = application(|io| async move {
        let mut peer = Peer::server(io).await;
        let mut refused = false;
        while let Some(seen) = peer.next().await {
            match (seen.kind, refused) {
                (HEADERS, false) => {
                    refused = true;
                    peer.send(&reset(seen.stream, REFUSED_STREAM)).await;
                }
                (HEADERS, true) => peer.send(&ok(seen.stream, END_STREAM)).await,
                _ => {}
            }
        }
    })
    .await;
    let load = Proxy::start(towards(Protocol::Http2, vec![endpoint(app, None)]), None);
    let mut peer = Peer::client(load.outbound).await;
    assert_eq!(peer.ask(1, "/").await.status(), 200);
}

#[tokio::test]
async fn empty_frames_are_not_passed_on() {
    // One client may send a few of them; together, on a shared connection, they would look like an attack.
    let (load, web, _app) = mesh().await;
    for _ in 0..20 {
        let mut peer = Peer::client(load.outbound).await;
        peer.send(&post(1, "/echo")).await;
        peer.send(&frame(DATA, 0, 1, &[]).repeat(90)).await;
        peer.send(&frame(DATA, END_STREAM, 1, b"the end")).await;
        let last = peer.until(|seen| seen.ends()).await;
        assert_eq!(last.kind, DATA);
    }
    web.expect_metric("mesh_access_decisions_total", &["decision=\"allow\""], 1.0).await;
}

/// An application that takes extended CONNECT and sends back what it gets, in upper case.
async fn tunnels() -> SocketAddr {
    application(|io| async move {
        let mut peer = Peer::server_with(io, &[(ENABLE_CONNECT_PROTOCOL, 1)]).await;
        while let Some(seen) = peer.next().await {
            match seen.kind {
                HEADERS => {
                    let fields: Vec<_> = seen.fields();
                    let has = |name: &str, value: &str| fields.contains(&(name.to_owned(), value.to_owned()));
                    assert!(
                        has(":method", "CONNECT") && has(":protocol", "websocket") && has(":path", "/chat?x=1"),
                        "{fields:?}"
                    );
                    assert!(
                        has("sec-websocket-version", "13") && has(":scheme", "http") && has(":authority", "web"),
                        "{fields:?}"
                    );
                    let answer = block(&[(":status", "200"), ("sec-websocket-protocol", "chat")]);
                    peer.send(&frame(HEADERS, END_HEADERS, seen.stream, &answer)).await;
                }
                DATA => {
                    let flags = seen.flags & END_STREAM;
                    peer.send(&frame(DATA, flags, seen.stream, &seen.payload.to_ascii_uppercase())).await;
                }
                _ => {}
            }
        }
    })
    .await
}

fn connect(stream: u32) -> Vec<u8> {
    let fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", "/chat?x=1"),
        (":authority", "web"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "chat"),
    ];
    frame(HEADERS, END_HEADERS, stream, &block(&fields))
}

#[tokio::test]
async fn websockets_over_http2_are_tunnels() {
    let (load, web, _) = before(tunnels().await).await;
    let mut peer = Peer::connect(load.outbound).await;
    let theirs = peer.greet(&[(HEADER_TABLE_SIZE, 0)]).await;
    assert!(theirs.payload.chunks(6).any(|setting| setting == [0, 8, 0, 0, 0, 1]), "the proxy offers it");
    peer.send(&connect(1)).await;
    let head = peer.until(|seen| seen.is(HEADERS, 1)).await;
    assert_eq!(
        (head.status(), head.field("sec-websocket-protocol").as_deref(), head.ends()),
        (200, Some("chat"), false)
    );
    for text in ["one", "two"] {
        peer.send(&frame(DATA, 0, 1, text.as_bytes())).await;
        assert_eq!(peer.until(|seen| seen.is(DATA, 1)).await.payload, text.to_uppercase());
    }
    // An ordinary request on the same connection is not concerned; the tunnel's end is.
    assert!(peer.is_alive().await);
    peer.send(&frame(DATA, END_STREAM, 1, b"bye")).await;
    assert_eq!(peer.until(|seen| seen.is(DATA, 1) && !seen.payload.is_empty()).await.payload, "BYE");
    peer.until(|seen| seen.is(DATA, 1) && seen.has(END_STREAM)).await;
    for proxy in [&load, &web] {
        proxy.expect_metric("mesh_requests_total", &["status=\"200\"", "error=\"\""], 1.0).await;
        proxy.expect_metric("mesh_tcp_bytes_total", &["flow=\"read\""], 9.0).await;
    }
}

#[tokio::test]
async fn an_application_without_tunnels_is_not_asked() {
    let app = App::start().await;
    let load = Proxy::start(towards(Protocol::Http2, vec![endpoint(app.address, None)]), None);
    let mut peer = Peer::client(load.outbound).await;
    peer.send(&connect(1)).await;
    let head = peer.until(|seen| seen.is(HEADERS, 1)).await;
    assert_eq!((head.status(), head.field("mesh-error").as_deref()), (501, Some("not-extended")));
    assert_eq!(app.count(), 0);
    assert_eq!(peer.ask(3, "/").await.status(), 200);
}
