//! The semantics of HTTP/1, byte by byte, through two proxies: what RFC 9110 and RFC 9112 promise to clients and servers
//! holds with a mesh between them.
//!
//! Every test drives both ends from here: a client on a raw connection, and a server that is a script of what it waits
//! for and what it says.

use crate::smuggling::wire::{self, Answer};
use crate::world::*;
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Long enough for what should not come to have come.
const MOMENT: Duration = Duration::from_millis(250);

/// One end of a raw connection.
struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).await.unwrap();
    }

    /// Reads until `end` has come; what was read up to there.
    async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = wire::find(&self.read, end.as_bytes()) {
                let rest = self.read.split_off(at + end.len());
                return String::from_utf8_lossy(&std::mem::replace(&mut self.read, rest)).into_owned();
            }
            let read = tokio::time::timeout(SOON, self.stream.read_buf(&mut self.read)).await;
            let n = read.unwrap_or_else(|_| panic!("{end:?} did not come: {:?}", self.text())).unwrap();
            assert!(n > 0, "the end came, not {end:?}: {:?}", self.text());
        }
    }

    /// The next head.
    async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await.to_ascii_lowercase()
    }

    /// The next response.
    async fn answer(&mut self) -> Answer {
        let mut ended = false;
        loop {
            if let Some((answer, length)) = wire::parse(&self.read, ended) {
                self.read.drain(..length);
                return answer;
            }
            assert!(!ended, "the end came: {:?}", self.text());
            let read = tokio::time::timeout(SOON, self.stream.read_buf(&mut self.read)).await;
            ended = read.expect("no answer in time").unwrap_or(0) == 0;
        }
    }

    /// True if nothing comes for a moment.
    async fn is_silent(&mut self) -> bool {
        self.read.is_empty() && tokio::time::timeout(MOMENT, self.stream.read_buf(&mut self.read)).await.is_err()
    }

    /// Waits for the other side to close.
    async fn ends(&mut self) {
        let read = tokio::time::timeout(SOON, self.stream.read_to_end(&mut self.read)).await;
        let _ = read.expect("the connection is still open");
        assert!(self.read.is_empty(), "more came: {:?}", self.text());
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }
}

/// Client and server of one test, with two proxies between them.
struct Path {
    load: Proxy,
    _web: Proxy,
    listener: TcpListener,
}

impl Path {
    async fn new() -> Self {
        let authority = Authority::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = server(&authority, "web", listener.local_addr().unwrap());
        let load = client(&authority, vec![endpoint(web.inbound, Some(account("web")))]);
        Self { load, _web: web, listener }
    }

    async fn client(&self) -> Wire {
        Wire::new(TcpStream::connect(self.load.outbound).await.unwrap())
    }

    async fn server(&self) -> Wire {
        let accepted = tokio::time::timeout(SOON, self.listener.accept()).await;
        Wire::new(accepted.expect("nobody connects to the server").unwrap().0)
    }

    /// A client that has sent `request`, and the server it reached.
    async fn begin(&self, request: impl AsRef<[u8]>) -> (Wire, Wire) {
        let mut client = self.client().await;
        client.send(request).await;
        let server = self.server().await;
        (client, server)
    }
}

/// Runs a test with a deadline of its own, so that a hang says where.
async fn path<T: Future<Output = ()>>(test: impl FnOnce(Path) -> T) {
    test(Path::new().await).await;
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn http10_ends_with_its_answer() {
    path(|path| async move {
        let (mut client, mut server) = path.begin("GET /a HTTP/1.0\r\n\r\n").await;
        let head = server.head().await;
        assert!(head.starts_with("get /a http/1.1\r\n") && head.contains("host: "), "{head}");
        server.send(OK).await;
        let answer = client.answer().await;
        assert_eq!((answer.version.as_str(), answer.status, &answer.body[..]), ("HTTP/1.0", 200, &b"ok"[..]));
        client.ends().await;
    })
    .await;
}

#[tokio::test]
async fn http10_is_kept_alive_on_request() {
    path(|path| async move {
        let request = "GET /a HTTP/1.0\r\nHost: web\r\nConnection: keep-alive\r\n\r\n";
        let (mut client, mut server) = path.begin(request).await;
        for _ in 0..2 {
            server.head().await;
            server.send(OK).await;
            let answer = client.answer().await;
            assert_eq!(answer.header("connection").as_deref(), Some("keep-alive"));
            client.send(request).await;
        }
    })
    .await;
}

#[tokio::test]
async fn http10_gets_no_chunks() {
    path(|path| async move {
        let (mut client, mut server) = path.begin("GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        server.head().await;
        server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await;
        let answer = client.answer().await;
        assert_eq!((answer.header("transfer-encoding"), &answer.body[..]), (None, &b"ok"[..]));
    })
    .await;
}

#[tokio::test]
async fn a_server_of_http10_is_answered_for_in_http11() {
    path(|path| async move {
        let (mut client, mut server) = path.begin("GET /a HTTP/1.1\r\nHost: web\r\n\r\n").await;
        server.head().await;
        server.send("HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
        drop(server);
        let answer = client.answer().await;
        assert_eq!((answer.version.as_str(), &answer.body[..]), ("HTTP/1.1", &b"until the end"[..]));
        // The connection to the client does not share the fate of that to the server.
        client.send("GET /b HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let mut server = path.server().await;
        assert!(server.head().await.starts_with("get /b "));
        server.send(OK).await;
        assert_eq!(client.answer().await.body, b"ok");
    })
    .await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    path(|path| async move {
        let requests: String = (0..20).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: web\r\n\r\n")).collect();
        let (mut client, mut server) = path.begin(requests).await;
        for i in 0..20 {
            assert!(server.head().await.starts_with(&format!("get /{i} ")));
            if i == 0 {
                assert!(client.is_silent().await);
            }
            server.send(format!("HTTP/1.1 200 OK\r\nX-Number: {i}\r\nContent-Length: 2\r\n\r\nok")).await;
        }
        for i in 0..20 {
            assert_eq!(client.answer().await.header("x-number"), Some(i.to_string()));
        }
    })
    .await;
}

#[tokio::test]
async fn chunks_flow_both_ways_as_they_come() {
    path(|path| async move {
        let request = "POST /a HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (mut client, mut server) = path.begin(request).await;
        assert!(server.head().await.contains("transfer-encoding: chunked"));
        server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        assert!(client.head().await.contains("transfer-encoding: chunked"));
        // Each piece arrives before the next one is sent.
        for i in 0..5 {
            client.send(format!("5\r\nask-{i}\r\n")).await;
            assert!(server.until(&format!("ask-{i}\r\n")).await.starts_with("5\r\n"));
            server.send(format!("5\r\nsay-{i}\r\n")).await;
            assert!(client.until(&format!("say-{i}\r\n")).await.starts_with("5\r\n"));
        }
        client.send("0\r\n\r\n").await;
        server.until("0\r\n\r\n").await;
        server.send("0\r\n\r\n").await;
        client.until("0\r\n\r\n").await;
        client.send("GET /next HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert!(server.head().await.starts_with("get /next "), "both connections are kept");
    })
    .await;
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    path(|path| async move {
        let request = "POST /a HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                       5\r\nhello\r\n0\r\nX-Sum: up\r\n\r\n";
        let (mut client, mut server) = path.begin(request).await;
        let head = server.head().await;
        assert!(head.contains("trailer: x-sum") && head.contains("te: trailers"), "{head}");
        assert!(server.until("0\r\n").await.contains("hello"));
        assert_eq!(server.head().await, "x-sum: up\r\n\r\n");
        server
            .send("HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: down\r\n\r\n")
            .await;
        let answer = client.answer().await;
        assert_eq!((&answer.body[..], &answer.trailers[..]), (&b"ok"[..], &["x-sum: down".to_owned()][..]));
    })
    .await;
}

const EXPECTING: &str = "POST /a HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";

#[tokio::test]
async fn the_application_says_whether_to_continue() {
    path(|path| async move {
        let (mut client, mut server) = path.begin(EXPECTING).await;
        assert!(server.head().await.contains("expect: 100-continue"));
        assert!(client.is_silent().await, "nobody but the application says 100");
        server.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(client.head().await, "http/1.1 100 continue\r\n\r\n");
        assert!(server.is_silent().await, "no content before it was sent");
        client.send("hello").await;
        server.until("hello").await;
        server.send(OK).await;
        assert_eq!(client.answer().await.body, b"ok");
        client.send("GET /next HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert!(server.head().await.starts_with("get /next "));
    })
    .await;
}

#[tokio::test]
async fn the_application_may_decline_before_the_content_is_sent() {
    path(|path| async move {
        let (mut client, mut server) = path.begin(EXPECTING).await;
        server.head().await;
        server.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno").await;
        let answer = client.answer().await;
        assert_eq!((answer.status, &answer.body[..]), (417, &b"no"[..]));
        // Whether content follows cannot be told from the bytes, so the connection does not go on.
        assert_eq!(answer.header("connection").as_deref(), Some("close"));
        client.ends().await;
        server.ends().await;
    })
    .await;
}

#[tokio::test]
async fn an_application_that_knows_no_expectations_gets_the_content() {
    path(|path| async move {
        let (mut client, mut server) = path.begin(EXPECTING).await;
        server.head().await;
        // A client that loses patience sends its content unasked.
        client.send("hello").await;
        server.until("hello").await;
        server.send(OK).await;
        assert!(client.until("\r\n\r\nok").await.ends_with("ok"));
    })
    .await;
}

#[tokio::test]
async fn an_answer_may_come_before_the_upload_ends() {
    path(|path| async move {
        let request = "POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 20000000\r\n\r\nbegin";
        let (mut client, mut server) = path.begin(request).await;
        server.until("begin").await;
        server.send("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno").await;
        // It goes on sending for a while, as clients do, and can read the answer all the same.
        for _ in 0..10 {
            if client.stream.write_all(&[b'x'; 8192]).await.is_err() {
                break;
            }
        }
        let answer = client.answer().await;
        assert_eq!((answer.status, &answer.body[..]), (413, &b"no"[..]));
    })
    .await;
}

#[tokio::test]
async fn an_upload_goes_on_behind_an_early_answer() {
    path(|path| async move {
        let request = "POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\nbegin";
        let (mut client, mut server) = path.begin(request).await;
        server.until("begin").await;
        server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n").await;
        client.until("early\r\n").await;
        client.send("ended").await;
        server.until("ended").await;
        server.send("4\r\nlate\r\n0\r\n\r\n").await;
        client.until("late\r\n0\r\n\r\n").await;
    })
    .await;
}

#[tokio::test]
async fn answers_without_content_keep_their_framing() {
    path(|path| async move {
        let ask = |method: &str| format!("{method} /a HTTP/1.1\r\nHost: web\r\n\r\n");
        let (mut client, mut server) = path.begin(ask("HEAD")).await;
        let cases = [
            ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", Some("5000")),
            ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
            ("HEAD", "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n", Some("9")),
            ("GET", "HTTP/1.1 204 No Content\r\n\r\n", None),
            ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", None),
            ("POST", "HTTP/1.1 204 No Content\r\n\r\n", None),
            ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Some("0")),
        ];
        for (i, (method, answer, length)) in cases.into_iter().enumerate() {
            if i > 0 {
                client.send(ask(method)).await;
            }
            server.head().await;
            server.send(answer).await;
            let head = client.head().await;
            let seen = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            assert_eq!(seen, length, "{method} {answer:?}: {head}");
            assert!(client.is_silent().await, "{method} {answer:?}: content where there is none");
        }
    })
    .await;
}

#[tokio::test]
async fn a_switch_of_protocols_becomes_a_tunnel_that_closes_by_halves() {
    path(|path| async move {
        let request = "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
        let (mut client, mut server) = path.begin(request).await;
        let head = server.head().await;
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        assert!(head.contains("sec-websocket-key: "), "{head}");
        // The first frame comes with the answer.
        server
            .send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n")
            .await;
        server.send(b"\x81\x05hello").await;
        let head = client.head().await;
        assert!(head.contains("upgrade: websocket") && head.contains("sec-websocket-accept: x"), "{head}");
        client.until("hello").await;
        // Bytes that would be refused as HTTP.
        client.send(b"\x81\x02\n\n GET / HTTP/1.1\r\n\r\n").await;
        server.until("GET / HTTP/1.1\r\n\r\n").await;
        // One side is done, the other still speaks.
        client.stream.shutdown().await.unwrap();
        server.read.clear();
        server.ends().await;
        server.send("last words").await;
        drop(server);
        client.until("last words").await;
        client.ends().await;
    })
    .await;
}

#[tokio::test]
async fn a_declined_upgrade_leaves_the_connection_as_it_is() {
    path(|path| async move {
        let asking = "GET /a HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let (mut client, mut server) = path.begin(asking).await;
        for _ in 0..3 {
            server.head().await;
            server.send(OK).await;
            let answer = client.answer().await;
            assert_eq!((answer.status, answer.header("connection")), (200, None));
            client.send(asking).await;
        }
        server.head().await;
        server.send(OK).await;
        client.answer().await;
        // What follows is HTTP again, and judged as such. (The codec lets go of a connection that once asked for an
        // upgrade instead of shutting it down, so there is no answer that says why.)
        client.send("GET /a HTTP/1.1\nHost: web\n\n").await;
        client.ends().await;
        assert!(server.is_silent().await);
    })
    .await;
}

#[tokio::test]
async fn h2c_is_served_as_http1_and_the_connection_kept() {
    path(|path| async move {
        // What Java's client and `curl --http2` begin with.
        let asking = "GET /a HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                      HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
        let (mut client, mut server) = path.begin(asking).await;
        let head = server.head().await;
        assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
        server.send(OK).await;
        assert_eq!(client.answer().await.header("connection"), None);
        client.send("GET /b HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert!(server.head().await.starts_with("get /b "));
    })
    .await;
}

#[tokio::test]
async fn connect_becomes_a_tunnel() {
    path(|path| async move {
        let (mut client, mut server) = path.begin("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").await;
        assert!(server.head().await.starts_with("connect db:5432 http/1.1\r\n"));
        server.send("HTTP/1.1 200 Connection established\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("http/1.1 200 ") && !head.contains("content-length"), "{head}");
        client.send("\0\x01 not HTTP \n").await;
        server.until("not HTTP \n").await;
        server.send("nor this").await;
        client.until("nor this").await;
    })
    .await;
}

#[tokio::test]
async fn a_declined_connect_is_an_answer() {
    path(|path| async move {
        let (mut client, mut server) = path.begin("CONNECT db:5432 HTTP/1.1\r\nHost: db\r\n\r\n").await;
        server.head().await;
        server.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
        let answer = client.answer().await;
        assert_eq!((answer.status, &answer.body[..]), (403, &b"no"[..]));
    })
    .await;
}

#[tokio::test]
async fn targets_arrive_as_they_were_sent() {
    path(|path| async move {
        let lines = [
            "OPTIONS * HTTP/1.1",
            "GET http://web/a?b HTTP/1.1",
            "GET /a//b/../c?d=%20&e=;f HTTP/1.1",
            "GET /%E2%82%AC HTTP/1.1",
            "GET /\"quoted\"{and}|more HTTP/1.1",
        ];
        let ask = |line: &str| format!("{line}\r\nHost: web\r\n\r\n");
        let (mut client, mut server) = path.begin(ask(lines[0])).await;
        for (i, line) in lines.into_iter().enumerate() {
            if i > 0 {
                client.send(ask(line)).await;
            }
            assert_eq!(server.until("\r\n").await.trim_end(), line);
            server.head().await;
            server.send(OK).await;
            assert_eq!(client.answer().await.status, 200);
        }
    })
    .await;
}

#[tokio::test]
async fn large_heads_pass_up_to_the_limit() {
    path(|path| async move {
        let ask = |size: usize| format!("GET /a HTTP/1.1\r\nHost: web\r\nX-Large: {}\r\n\r\n", "x".repeat(size));
        let (mut client, mut server) = path.begin(ask(55_000)).await;
        assert_eq!(server.head().await.matches('x').count(), 55_001);
        server.send(format!("HTTP/1.1 200 OK\r\nX-Large: {}\r\nContent-Length: 2\r\n\r\nok", "y".repeat(55_000))).await;
        assert_eq!(client.answer().await.header("x-large").unwrap().len(), 55_000);
        client.send(ask(65_000)).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.header("mesh-error").as_deref()), (431, Some("invalid-request")));
        client.ends().await;
        assert!(server.is_silent().await);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_closed_its_side_gets_its_answer() {
    path(|path| async move {
        for request in [
            "GET /a HTTP/1.1\r\nHost: web\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello",
            "POST /a HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "GET /a HTTP/1.0\r\n\r\n",
        ] {
            let mut client = path.client().await;
            client.send(request).await;
            client.stream.shutdown().await.unwrap();
            let mut server = path.server().await;
            server.head().await;
            tokio::time::sleep(MOMENT).await;
            server.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
            assert_eq!(client.answer().await.body, b"ok", "{request:?}");
            client.ends().await;
        }
    })
    .await;
}

#[tokio::test]
async fn half_a_request_and_the_end_is_no_request() {
    path(|path| async move {
        for half in ["GET /a HTTP/1.1\r\nHost: w", "POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhe"] {
            let mut client = path.client().await;
            client.send(half).await;
            client.stream.shutdown().await.unwrap();
            let answer = client.answer().await;
            assert_eq!(
                (answer.status, answer.header("mesh-error").as_deref()),
                (400, Some("invalid-request")),
                "{half:?}"
            );
            client.ends().await;
        }
    })
    .await;
}

#[tokio::test]
async fn dates_and_stations_are_left_alone() {
    path(|path| async move {
        let (mut client, mut server) = path.begin("GET /a HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let head = server.head().await;
        for added in ["via", "date", "forwarded", "x-forwarded-for", "user-agent", "server"] {
            assert!(!head.contains(&format!("{added}:")), "{added}: {head}");
        }
        server.send(OK).await;
        let answer = client.answer().await;
        assert_eq!(answer.fields, ["content-length: 2"]);
        client.send("GET /b HTTP/1.1\r\nHost: web\r\nVia: 1.0 fred\r\n\r\n").await;
        assert!(server.head().await.contains("via: 1.0 fred\r\n"));
        let date = "date: Tue, 15 Nov 1994 08:12:31 GMT";
        server
            .send(format!("HTTP/1.1 200 OK\r\n{date}\r\nVia: 1.1 x\r\nServer: y\r\nContent-Length: 2\r\n\r\nok"))
            .await;
        assert_eq!(client.answer().await.fields, [date, "via: 1.1 x", "server: y", "content-length: 2"]);
    })
    .await;
}

#[tokio::test]
async fn a_connection_outlives_many_requests_of_every_kind() {
    path(|path| async move {
        let requests = [
            "GET /a HTTP/1.1\r\nHost: web\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello",
            "PUT /a HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "DELETE /a HTTP/1.1\r\nHost: web\r\n\r\n",
        ];
        let (mut client, mut server) = path.begin(requests[0]).await;
        for i in 0..40 {
            if i > 0 {
                client.send(requests[i % requests.len()]).await;
            }
            server.head().await;
            match i % requests.len() {
                1 => drop(server.until("hello").await),
                2 => drop(server.until("0\r\n\r\n").await),
                _ => {}
            }
            server.send(OK).await;
            assert_eq!(client.answer().await.body, b"ok");
        }
    })
    .await;
}
