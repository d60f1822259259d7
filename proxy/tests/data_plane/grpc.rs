//! gRPC through two proxies, framed by hand: all four kinds of call, answers of trailers only, deadlines, and the
//! statuses of errors that the mesh makes.

use crate::frames::*;
use crate::world::{Authority, Proxy, SOON, account, client, endpoint, server, towards};
use mesh_api::{MeshError, Protocol};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// A message with its prefix: not compressed, and its length.
fn message(text: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

/// HEADERS that open a call.
fn call(stream: u32, method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let path = format!("/test.Words/{method}");
    let grpc = [("content-type", "application/grpc+words"), ("te", "trailers")];
    frame(HEADERS, END_HEADERS, stream, &block(&[&request("POST", &path)[..], &grpc, more].concat()))
}

type Fields<'a> = &'a [(&'a str, &'a str)];

/// What became of a call.
#[derive(Debug, Default)]
struct Reply {
    head: Vec<(String, String)>,
    data: Vec<u8>,
    /// The last fields: trailers, or the head if there is nothing else.
    last: Vec<(String, String)>,
    reset: Option<u32>,
}

impl Reply {
    fn last(&self, name: &str) -> Option<&str> {
        self.last.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn status(&self) -> Option<&str> {
        self.last("grpc-status")
    }

    fn trailers_only(&self) -> bool {
        self.head == self.last && self.data.is_empty()
    }

    fn messages(&self) -> Vec<&str> {
        let mut rest = &self.data[..];
        let mut texts = Vec::new();
        while let Some((prefix, after)) = rest.split_at_checked(5) {
            let (text, after) =
                after.split_at(usize::try_from(u32::from_be_bytes(prefix[1..].try_into().unwrap())).unwrap());
            texts.push(std::str::from_utf8(text).unwrap());
            rest = after;
        }
        assert!(rest.is_empty());
        texts
    }
}

/// Everything that comes on a stream until its end.
async fn reply(peer: &mut Peer, stream: u32) -> Reply {
    let mut reply = Reply::default();
    loop {
        let seen = peer.until(|seen| seen.stream == stream && seen.kind != WINDOW_UPDATE).await;
        match seen.kind {
            HEADERS => {
                reply.last = seen.fields();
                if reply.head.is_empty() {
                    reply.head = reply.last.clone();
                }
            }
            DATA => reply.data.extend(&seen.payload),
            RST_STREAM => reply.reset = Some(seen.code()),
            _ => panic!("{seen:?}"),
        }
        if seen.ends() {
            return reply;
        }
    }
}

/// The next message of a stream, whole in one frame.
async fn next_message(peer: &mut Peer, stream: u32) -> String {
    let seen = peer.until(|seen| seen.is(DATA, stream) && !seen.payload.is_empty()).await;
    String::from_utf8(seen.payload[5..].to_vec()).unwrap()
}

/// A gRPC server that tells what it sees.
struct Words {
    address: SocketAddr,
    /// `METHOD: what happened`.
    events: mpsc::UnboundedReceiver<String>,
}

impl Words {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, events) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                tokio::spawn(serve(io, tell.clone()));
            }
        });
        Self { address, events }
    }

    /// Waits for an event.
    async fn saw(&mut self, event: &str) {
        let seen = async { while self.events.recv().await.unwrap() != event {} };
        tokio::time::timeout(SOON, seen).await.unwrap_or_else(|_| panic!("never saw {event}"));
    }

    /// Waits for a call of `method`; how much time it was told it has.
    async fn called(&mut self, method: &str) -> Duration {
        let called = async {
            loop {
                let event = self.events.recv().await.unwrap();
                if let Some(told) = event.strip_prefix(method).and_then(|rest| rest.strip_prefix(": called ")) {
                    return timeout(told);
                }
            }
        };
        tokio::time::timeout(SOON, called).await.unwrap_or_else(|_| panic!("{method} was never called"))
    }
}

/// A `grpc-timeout` in microseconds or any coarser unit that tests use.
fn timeout(text: &str) -> Duration {
    let (amount, unit) = text.split_at(text.len() - 1);
    let unit = match unit {
        "u" => Duration::from_micros(1),
        "m" => Duration::from_millis(1),
        "S" => Duration::from_secs(1),
        _ => panic!("{text}"),
    };
    unit * amount.parse::<u32>().unwrap()
}

async fn serve(io: tokio::net::TcpStream, tell: mpsc::UnboundedSender<String>) {
    let mut peer = Peer::server(io).await;
    let mut calls: HashMap<u32, (String, Vec<u8>)> = HashMap::new();
    let head = |stream, flags| {
        frame(
            HEADERS,
            END_HEADERS | flags,
            stream,
            &block(&[(":status", "200"), ("content-type", "application/grpc+words")]),
        )
    };
    let status =
        |stream, code: &str| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[("grpc-status", code)]));
    while let Some(seen) = peer.next().await {
        let stream = seen.stream;
        if seen.kind == HEADERS {
            let method = seen.field(":path").unwrap().rsplit('/').next().unwrap().to_owned();
            let timeout = seen.field("grpc-timeout").unwrap_or_default();
            let _ = tell.send(format!("{method}: called {timeout}").trim_end().to_owned());
            match method.as_str() {
                "Missing" => {
                    let fields = [
                        (":status", "200"),
                        ("content-type", "application/grpc+words"),
                        ("grpc-status", "5"),
                        ("grpc-message", "no%20such%20word%3A%20%C3%BC"),
                    ];
                    peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields))).await;
                }
                "Stalls" => peer.send(&[head(stream, 0), frame(DATA, 0, stream, &message("one"))].concat()).await,
                "Broken" | "Echo" => peer.send(&head(stream, 0)).await,
                "Unavailable" => {
                    peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[(":status", "503")]))).await;
                }
                _ => {}
            }
            calls.insert(stream, (method, Vec::new()));
        }
        let Some((method, data)) = calls.get_mut(&stream) else { continue };
        match seen.kind {
            RST_STREAM => drop(tell.send(format!("{method}: reset {}", seen.code()))),
            DATA if method == "Broken" => peer.send(&reset(stream, ENHANCE_YOUR_CALM)).await,
            DATA if method == "Echo" => peer.send(&frame(DATA, 0, stream, &seen.payload)).await,
            DATA => data.extend(&seen.payload),
            _ => {}
        }
        if seen.kind != RST_STREAM && seen.ends() {
            let answer = match method.as_str() {
                "Once" => [head(stream, 0), frame(DATA, 0, stream, data), status(stream, "0")].concat(),
                "Count" => {
                    let text = Reply { data: std::mem::take(data), ..Reply::default() }.messages().len().to_string();
                    [head(stream, 0), frame(DATA, 0, stream, &message(&text)), status(stream, "0")].concat()
                }
                "Repeat" => {
                    let repeated: Vec<u8> = (0..5).flat_map(|_| frame(DATA, 0, stream, data)).collect();
                    [head(stream, 0), repeated, status(stream, "0")].concat()
                }
                "Echo" => status(stream, "0"),
                _ => continue,
            };
            peer.send(&answer).await;
        }
    }
}

/// Client proxy, server proxy, gRPC server, and a connection of a client.
async fn world() -> (Proxy, Proxy, Words, Peer) {
    let authority = Authority::new();
    let words = Words::start().await;
    let web = server(&authority, "web", words.address);
    let load = client(&authority, vec![endpoint(web.inbound, Some(account("web")))]);
    let peer = Peer::client(load.outbound).await;
    (load, web, words, peer)
}

#[tokio::test]
async fn all_kinds_of_call_pass() {
    let (load, web, _words, mut peer) = world().await;
    let end = |stream, data: &[u8]| frame(DATA, END_STREAM, stream, data);

    peer.send(&[call(1, "Once", &[]), end(1, &message("hello"))].concat()).await;
    let unary = reply(&mut peer, 1).await;
    assert_eq!((unary.messages(), unary.status()), (vec!["hello"], Some("0")));
    assert!(unary.head.contains(&("content-type".into(), "application/grpc+words".into())));

    let uploads: Vec<u8> = (0..4).flat_map(|_| frame(DATA, 0, 3, &message("up"))).collect();
    peer.send(&[call(3, "Count", &[]), uploads, end(3, &[])].concat()).await;
    let counted = reply(&mut peer, 3).await;
    assert_eq!((counted.messages(), counted.status()), (vec!["4"], Some("0")));

    peer.send(&[call(5, "Repeat", &[]), end(5, &message("again"))].concat()).await;
    let repeated = reply(&mut peer, 5).await;
    assert_eq!((repeated.messages(), repeated.status()), (vec!["again"; 5], Some("0")));

    peer.send(&call(7, "Echo", &[])).await;
    for text in ["ping", "pong", "and so on"] {
        peer.send(&frame(DATA, 0, 7, &message(text))).await;
        assert_eq!(next_message(&mut peer, 7).await, text, "each answer comes before the next question");
    }
    peer.send(&end(7, &[])).await;
    assert_eq!(reply(&mut peer, 7).await.status(), Some("0"));

    for proxy in [&load, &web] {
        proxy.expect_metric("mesh_requests_total", &["grpc_status=\"0\"", "error=\"\""], 4.0).await;
        proxy.expect_metric("mesh_requests_total", &["route=\"/test.Words/Echo\""], 1.0).await;
    }
}

#[tokio::test]
async fn an_answer_of_trailers_only_stays_one() {
    let (load, web, _words, mut peer) = world().await;
    peer.send(&[call(1, "Missing", &[]), frame(DATA, END_STREAM, 1, &message("x"))].concat()).await;
    let missing = reply(&mut peer, 1).await;
    assert!(missing.trailers_only(), "{missing:?}");
    assert_eq!((missing.status(), missing.last("grpc-message")), (Some("5"), Some("no%20such%20word%3A%20%C3%BC")));
    peer.send(&[call(3, "Unavailable", &[]), frame(DATA, END_STREAM, 3, &message("x"))].concat()).await;
    let unavailable = reply(&mut peer, 3).await;
    assert_eq!(
        (unavailable.last(":status"), unavailable.status(), unavailable.last("mesh-error")),
        (Some("503"), None, None)
    );
    for proxy in [&load, &web] {
        proxy.expect_metric("mesh_requests_total", &["grpc_status=\"5\"", "status=\"200\""], 1.0).await;
        proxy.expect_metric("mesh_requests_total", &["status=\"503\""], 1.0).await;
    }
}

#[tokio::test]
async fn resets_travel_both_ways() {
    let (_load, _web, mut words, mut peer) = world().await;
    peer.send(&call(1, "Broken", &[])).await;
    peer.until(|seen| seen.is(HEADERS, 1)).await;
    peer.send(&frame(DATA, 0, 1, &message("now"))).await;
    assert_eq!(reply(&mut peer, 1).await.reset, Some(ENHANCE_YOUR_CALM), "as the application gave it");

    // Given up before an answer, within an answer, and while both sides talk.
    peer.send(&[call(3, "Silent", &[]), frame(DATA, END_STREAM, 3, &message("x"))].concat()).await;
    words.saw("Silent: called").await;
    peer.send(&reset(3, CANCEL)).await;
    words.saw("Silent: reset 8").await;

    peer.send(&[call(5, "Stalls", &[]), frame(DATA, END_STREAM, 5, &message("x"))].concat()).await;
    assert_eq!(next_message(&mut peer, 5).await, "one");
    peer.send(&reset(5, CANCEL)).await;
    words.saw("Stalls: reset 8").await;

    peer.send(&[call(7, "Echo", &[]), frame(DATA, 0, 7, &message("x"))].concat()).await;
    assert_eq!(next_message(&mut peer, 7).await, "x");
    peer.send(&reset(7, CANCEL)).await;
    words.saw("Echo: reset 8").await;
    assert!(peer.is_alive().await);
}

#[tokio::test]
async fn a_deadline_is_passed_on_and_kept() {
    let (load, web, mut words, mut peer) = world().await;
    let patience = [("grpc-timeout", "300m")];

    // In time: nothing happens.
    peer.send(&[call(1, "Once", &[("grpc-timeout", "20S")]), frame(DATA, END_STREAM, 1, &message("a"))].concat()).await;
    assert_eq!(reply(&mut peer, 1).await.status(), Some("0"));
    let told = words.called("Once").await;
    assert!(told <= Duration::from_secs(20) && told > Duration::from_secs(10), "{told:?}");

    // Nothing comes.
    let start = Instant::now();
    peer.send(&[call(3, "Silent", &patience), frame(DATA, END_STREAM, 3, &message("x"))].concat()).await;
    let silent = reply(&mut peer, 3).await;
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    assert!(silent.trailers_only());
    assert_eq!((silent.status(), silent.last("mesh-error")), (Some("4"), Some("deadline-exceeded")));
    assert!(words.called("Silent").await <= Duration::from_millis(300));
    words.saw("Silent: reset 8").await;

    // The answer has begun.
    peer.send(&[call(5, "Stalls", &patience), frame(DATA, END_STREAM, 5, &message("x"))].concat()).await;
    let stalled = reply(&mut peer, 5).await;
    assert_eq!((stalled.messages(), stalled.status()), (vec!["one"], Some("4")));
    assert_eq!(stalled.last("mesh-error"), Some("deadline-exceeded"));
    words.saw("Stalls: reset 8").await;

    // Both sides are still talking.
    peer.send(&[call(7, "Echo", &patience), frame(DATA, 0, 7, &message("x"))].concat()).await;
    let talking = reply(&mut peer, 7).await;
    assert_eq!((talking.messages(), talking.status()), (vec!["x"], Some("4")));
    words.saw("Echo: reset 8").await;

    // The client has not even sent everything.
    peer.send(&[call(13, "Once", &patience), frame(DATA, 0, 13, &message("x"))].concat()).await;
    assert_eq!(reply(&mut peer, 13).await.status(), Some("4"));
    words.saw("Once: reset 8").await;

    // No time at all.
    peer.send(&call(15, "Once", &[("grpc-timeout", "0n")])).await;
    assert_eq!(reply(&mut peer, 15).await.status(), Some("4"));

    // What is no timeout bounds nothing; the application may say so.
    peer.send(&[call(17, "Once", &[("grpc-timeout", "soon")]), frame(DATA, END_STREAM, 17, &message("a"))].concat())
        .await;
    assert_eq!(reply(&mut peer, 17).await.status(), Some("0"));

    load.expect_metric("mesh_requests_total", &["grpc_status=\"4\"", "error=\"deadline-exceeded\""], 5.0).await;
    load.expect_metric("mesh_requests_total", &["grpc_status=\"0\""], 2.0).await;
    web.expect_metric("mesh_requests_total", &["grpc_status=\"0\""], 2.0).await;
}

#[tokio::test]
async fn time_spent_on_a_failed_attempt_is_taken_off_the_deadline() {
    // A listener whose queue is full: an attempt to connect costs its whole timeout.
    let full = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Again, with another length of the queue than the standard library's.
    socket2::SockRef::from(&full).listen(0).unwrap();
    let address = full.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        queued.push(stream);
        assert!(queued.len() < 16);
    }
    let given = Duration::from_secs(60);
    let attempt = mesh_proxy::limits::CONNECT_TIMEOUT;
    // Which endpoint is tried first is left to chance: as often as it takes.
    for _ in 0..20 {
        let mut words = Words::start().await;
        let load =
            Proxy::start(towards(Protocol::Grpc, vec![endpoint(address, None), endpoint(words.address, None)]), None);
        let mut peer = Peer::client(load.outbound).await;
        let start = Instant::now();
        peer.send(&[call(1, "Once", &[("grpc-timeout", "60S")]), frame(DATA, END_STREAM, 1, &message("a"))].concat())
            .await;
        assert_eq!(reply(&mut peer, 1).await.status(), Some("0"));
        let told = words.called("Once").await;
        assert!(told <= given, "{told:?}");
        if told <= given - attempt {
            assert!(told + start.elapsed() + Duration::from_millis(1) >= given, "{told:?} after {:?}", start.elapsed());
            return;
        }
    }
    panic!("the endpoint that does not answer was never tried first, or nobody was told of the time it cost");
}

#[tokio::test]
async fn errors_of_the_mesh_have_a_status() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // Bound, so that nobody else gets the port, but not listening.
    let refusing = tokio::net::TcpSocket::new_v4().unwrap();
    refusing.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let no_http2 = silent.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((io, _)) = silent.accept().await {
            let mut peer = Peer::server(io).await;
            peer.until(|seen| seen.kind == HEADERS).await;
            peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            held.push(peer);
        }
    });
    let to = |endpoints| Proxy::start(towards(Protocol::Grpc, endpoints), None);
    let mismatch = [("host", "other")];
    let cases: [(&str, Proxy, Fields, MeshError); 5] = [
        ("nobody there", to(vec![]), &[], MeshError::NoEndpoints),
        ("nobody listens", to(vec![endpoint(refusing.local_addr().unwrap(), None)]), &[], MeshError::ConnectFailed),
        ("not HTTP/2", to(vec![endpoint(no_http2, None)]), &[], MeshError::InvalidResponse),
        ("malformed", to(vec![endpoint(no_http2, None)]), &mismatch, MeshError::InvalidRequest),
        ("a circle", Proxy::start(Default::default(), None), &[], MeshError::LoopDetected),
    ];
    for (what, proxy, more, error) in cases {
        let mut peer = Peer::client(proxy.outbound).await;
        peer.send(&[call(1, "Once", more), frame(DATA, END_STREAM, 1, &message("x"))].concat()).await;
        let reply = reply(&mut peer, 1).await;
        assert!(reply.trailers_only(), "{what}: {reply:?}");
        let status = error.grpc_status().to_string();
        assert_eq!((reply.last("mesh-error"), reply.status()), (Some(error.code()), Some(status.as_str())), "{what}");
        assert_eq!(
            (reply.last(":status"), reply.last("content-type")),
            (Some("200"), Some("application/grpc")),
            "{what}"
        );
        let text = reply.last("grpc-message").unwrap();
        assert!(text.bytes().all(|b| (0x20..0x7f).contains(&b)), "{what}: {text}");
        assert!(text.starts_with(error.cause()) && text.contains(error.cure()), "{what}: {text}");
    }
}

#[test]
fn every_error_has_a_status_of_grpc() {
    let known: BTreeSet<u16> = (1..=16).collect();
    for error in MeshError::ALL {
        assert!(known.contains(&error.grpc_status()), "{error}");
        // Only what may be tried again is UNAVAILABLE, and only a time limit is DEADLINE_EXCEEDED.
        let limits = [MeshError::DeadlineExceeded, MeshError::Timeout];
        assert_eq!(error.grpc_status() == 4, limits.contains(error), "{error}");
    }
}
