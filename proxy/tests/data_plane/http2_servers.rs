//! Applications that break the rules of HTTP/2 towards our client side: the request fails with the mesh's own error or
//! is reset, nothing hangs, and other requests are served.

use crate::frames::*;
use crate::world::{App, Proxy, SOON, endpoint, towards};
use mesh_api::Protocol;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;

/// What the client of the proxy sees of stream 1.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// An answer the mesh made: status and code.
    Mesh(u16, String),
    /// The application's answer, complete.
    Answer(u16),
    /// RST_STREAM: the application's answer is cut off, perhaps before its head had left the proxy.
    CutOff(u32),
}

struct Case {
    what: &'static str,
    /// What the server sends when a request has come on stream 1, after its settings.
    answer: Vec<u8>,
    expect: Outcome,
    /// Why the rule is not kept, if it is not: `expect` then holds what comes instead.
    deviation: Option<&'static str>,
}

impl Case {
    fn instead(self, expect: Outcome, why: &'static str) -> Self {
        assert!(expect != self.expect);
        Self { expect, deviation: Some(why), ..self }
    }
}

fn mesh(status: u16, code: &str) -> Outcome {
    Outcome::Mesh(status, code.into())
}

fn head(fields: &[(&str, &str)], flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, 1, &block(fields))
}

fn ok(flags: u8) -> Vec<u8> {
    head(&[(":status", "200")], flags)
}

fn cases() -> Vec<Case> {
    let case = |what, answer: Vec<u8>, expect| Case { what, answer, expect, deviation: None };
    let broken = |what, answer| case(what, answer, mesh(502, "invalid-response"));
    let before = |what, answer| case(what, answer, mesh(502, "reset-before-response"));
    vec![
        // Responses that are malformed.
        broken("no :status", head(&[("x-a", "1")], END_STREAM)),
        broken(":status twice", head(&[(":status", "200"), (":status", "200")], END_STREAM)),
        broken(":status after a field", head(&[("x-a", "1"), (":status", "200")], END_STREAM)),
        broken(":status that is no number", head(&[(":status", "abc")], END_STREAM)),
        broken(":status of two digits", head(&[(":status", "20")], END_STREAM)),
        broken("a request's pseudo-header field", head(&[(":status", "200"), (":path", "/")], END_STREAM))
            .instead(Outcome::Answer(200), "the library drops the field; no client sees it"),
        broken("an unknown pseudo-header field", head(&[(":status", "200"), (":x", "1")], END_STREAM)),
        broken("a name in upper case", head(&[(":status", "200"), ("X-Upper", "1")], END_STREAM)),
        broken("Connection", head(&[(":status", "200"), ("connection", "close")], END_STREAM)),
        broken("Transfer-Encoding", head(&[(":status", "200"), ("transfer-encoding", "chunked")], END_STREAM)),
        broken("a value with a line break", head(&[(":status", "200"), ("x-a", "a\r\nb: c")], END_STREAM)),
        broken("a value that ends with a space", head(&[(":status", "200"), ("x-a", "a ")], END_STREAM)),
        broken("status 101", head(&[(":status", "101")], END_STREAM)),
        broken("an interim response that ends the stream", head(&[(":status", "103")], END_STREAM)),
        broken("DATA before HEADERS", frame(DATA, END_STREAM, 1, b"x")),
        broken("Content-Length without DATA", head(&[(":status", "200"), ("content-length", "3")], END_STREAM)),
        broken("a header block that cannot be decoded", frame(HEADERS, END_HEADERS, 1, &[0x80])),
        // Frames that break the connection.
        broken("HEADERS on stream 0", frame(HEADERS, END_HEADERS, 0, &block(&[(":status", "200")]))),
        broken("HEADERS on a stream nobody opened", frame(HEADERS, END_HEADERS, 7, &block(&[(":status", "200")]))),
        broken("HEADERS on an even stream", frame(HEADERS, END_HEADERS, 2, &block(&[(":status", "200")]))),
        broken(
            "PUSH_PROMISE",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &block(&request("GET", "/"))].concat()),
        ),
        broken("SETTINGS_ENABLE_PUSH of 1", [settings(&[(ENABLE_PUSH, 1)]), ok(END_STREAM)].concat())
            .instead(Outcome::Answer(200), "the library takes no notice; a push would still end the connection"),
        broken("SETTINGS that break a rule", settings(&[(MAX_FRAME_SIZE, 1)])),
        broken("a frame that is too large", frame(DATA, 0, 1, &[0; 16_385])),
        broken("PING of 7 octets", frame(PING, 0, 0, &[0; 7])),
        broken("WINDOW_UPDATE by 0", window_update(0, 0)),
        broken("WINDOW_UPDATE beyond 2^31-1", window_update(0, (1 << 31) - 1)),
        broken("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, &[])),
        broken("HTTP/1.1", b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".to_vec()),
        // Errors that the server itself reports.
        before("RST_STREAM", reset(1, INTERNAL_ERROR)),
        before("GOAWAY with an error", goaway(0, INTERNAL_ERROR)),
        before("the end of the connection", Vec::new()),
        // The answer has begun: it cannot be taken back.
        case(
            "DATA beyond Content-Length",
            [head(&[(":status", "200"), ("content-length", "1")], 0), frame(DATA, END_STREAM, 1, b"xy")].concat(),
            Outcome::CutOff(PROTOCOL_ERROR),
        ),
        case(
            "DATA short of Content-Length",
            [head(&[(":status", "200"), ("content-length", "3")], 0), frame(DATA, END_STREAM, 1, b"xy")].concat(),
            Outcome::CutOff(PROTOCOL_ERROR),
        ),
        case(
            "RST_STREAM within a body",
            [ok(0), frame(DATA, 0, 1, b"x"), reset(1, INTERNAL_ERROR)].concat(),
            Outcome::CutOff(INTERNAL_ERROR),
        ),
        case(
            "a broken frame within a body",
            [ok(0), frame(DATA, 0, 1, b"x"), frame(PING, 0, 0, &[0; 3])].concat(),
            Outcome::CutOff(PROTOCOL_ERROR),
        ),
        // What is allowed.
        case("a frame of unknown type", [frame(0x77, 0, 1, b"x"), ok(END_STREAM)].concat(), Outcome::Answer(200)),
        case("an interim response", [head(&[(":status", "103")], 0), ok(END_STREAM)].concat(), Outcome::Answer(200)),
        case("NO_ERROR after the answer", [ok(END_STREAM), reset(1, NO_ERROR)].concat(), Outcome::Answer(200)),
        case("GOAWAY after the answer", [ok(END_STREAM), goaway(1, NO_ERROR)].concat(), Outcome::Answer(200)),
        case(
            "GOAWAY before the answer, for later streams",
            [goaway(1, NO_ERROR), ok(END_STREAM)].concat(),
            Outcome::Answer(200),
        ),
    ]
}

/// An application that answers the first request of every connection with these bytes, and then says nothing more.
async fn hostile(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut peer = Peer::server(io).await;
                peer.until(|seen| seen.is(HEADERS, 1)).await;
                peer.send(&answer).await;
                if !answer.is_empty() {
                    while peer.next().await.is_some() {}
                }
            });
        }
    });
    address
}

async fn outcome(peer: &mut Peer) -> Outcome {
    let is_interim = |seen: &Seen| seen.field(":status").is_some_and(|status| status.starts_with('1'));
    let head = peer.until(|seen| seen.is(RST_STREAM, 1) || (seen.is(HEADERS, 1) && !is_interim(seen))).await;
    if head.kind == RST_STREAM {
        return Outcome::CutOff(head.code());
    }
    let status = head.status();
    if let Some(code) = head.field("mesh-error") {
        return Outcome::Mesh(status, code);
    }
    let last = if head.ends() { head } else { peer.until(|seen| seen.stream == 1 && seen.ends()).await };
    if last.kind == RST_STREAM { Outcome::CutOff(last.code()) } else { Outcome::Answer(status) }
}

#[tokio::test]
async fn a_broken_answer_costs_one_request() {
    let cases = cases();
    assert!(cases.len() >= 40);
    assert_eq!(cases.iter().filter(|case| case.deviation.is_some()).count(), 2);
    let mut wrong = Vec::new();
    for case in cases {
        let address = hostile(case.answer.clone()).await;
        let proxy = Proxy::start(towards(Protocol::Http2, vec![endpoint(address, None)]), None);
        let mut peer = Peer::client(proxy.outbound).await;
        peer.send(&get(1, "/")).await;
        match tokio::time::timeout(Duration::from_secs(5), outcome(&mut peer)).await {
            Ok(outcome) if outcome == case.expect => {}
            Ok(outcome) => wrong.push(format!("{}: {outcome:?} instead of {:?}", case.what, case.expect)),
            Err(_) => wrong.push(format!("{}: nothing in time", case.what)),
        }
        if !peer.is_alive().await {
            wrong.push(format!("{}: the client's connection suffered", case.what));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn requests_to_other_endpoints_do_not_suffer() {
    let bad = hostile(frame(PING, 0, 0, &[0; 3])).await;
    let good = App::start().await;
    let proxy = Proxy::start(towards(Protocol::Http2, vec![endpoint(bad, None), endpoint(good.address, None)]), None);
    let mut peer = Peer::client(proxy.outbound).await;
    let (mut served, mut failed) = (0, 0);
    for stream in (1..80).step_by(2) {
        let head = tokio::time::timeout(SOON, peer.ask(stream, "/")).await.unwrap();
        match head.status() {
            200 => served += 1,
            502 => failed += 1,
            status => panic!("{status}"),
        }
    }
    assert_eq!(served, good.count());
    assert!(failed < served / 2, "{failed} requests went to the broken endpoint, {served} were served");
}
