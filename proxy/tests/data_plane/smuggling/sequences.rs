//! Cases of several requests on one connection: pipelines, poison behind good requests, upgrades and expectations.

use super::*;

const GOOD: &str = "GET /good HTTP/1.1\r\nHost: web\r\n\r\n";
const POST: &str = "POST /good HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello";
const CHUNKED: &str = "POST /good HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
const BOTH: &str = "POST /smuggled HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n";

pub fn cases() -> Vec<Case> {
    let mut cases = pipelines();
    cases.extend(upgrades());
    cases.extend(expectations());
    cases
}

fn pipelines() -> Vec<Case> {
    let post = "POST /good [hello]";
    let get = "GET /good";
    vec![
        case("three requests", [GOOD, POST, CHUNKED].concat(), passes(&[get, post, post])),
        case("an empty line between requests", [POST, "\r\n", GOOD].concat(), passes(&[post, get])),
        case("poison behind GET", [GOOD, BOTH].concat(), then_refused(&[get], 400)),
        case("poison behind content", [POST, BOTH].concat(), then_refused(&[post], 400)),
        case("poison behind chunks", [CHUNKED, BOTH].concat(), then_refused(&[post], 400)),
        case("poison behind three", [GOOD, GOOD, POST, BOTH].concat(), then_refused(&[get, get, post], 400)),
        case("nonsense behind GET", [GOOD, "nonsense\r\n\r\n"].concat(), then_refused(&[get], 400)),
        case("more content than announced", [POST, "extra\r\n\r\n"].concat(), then_refused(&[post], 400)),
        case("a bare LF behind GET", [GOOD, "\n"].concat(), then_refused(&[get], 400)),
        case("two empty lines between", [GOOD, "\r\n\r\n"].concat(), then_refused(&[get], 400)),
        case("a request behind an error", [BOTH, "0\r\n\r\n", GOOD].concat(), Expect::Refused(400)),
        case(
            "a version behind a good one",
            [GOOD, "GET /smuggled HTTP/2.0\r\nHost: web\r\n\r\n"].concat(),
            then_refused(&[get], 505),
        ),
        case(
            "a chunk that lies behind a good request",
            [GOOD, &CHUNKED.replace("hello", "hello!")].concat(),
            then_refused(&[get], 400),
        ),
        case(
            "1.0 behind 1.1",
            [GOOD, "GET /old HTTP/1.0\r\nHost: web\r\n\r\n", GOOD].concat(),
            ends(&[get, "GET /old"]),
        ),
        case(
            "behind the last request",
            ["GET /last HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n", BOTH].concat(),
            ends(&["GET /last"]),
        ),
    ]
}

fn upgrades() -> Vec<Case> {
    let asking = |fields: &str| format!("GET /up HTTP/1.1\r\nHost: web\r\n{fields}\r\n");
    vec![
        // The marker comes before the answer: nobody knows what it was meant for.
        case(
            "an upgrade declined, and bytes sent ahead",
            [&asking("Connection: Upgrade\r\nUpgrade: websocket\r\n"), BOTH].concat(),
            ends(&["GET /up"]),
        ),
        case(
            "h2c with a request sent ahead",
            [
                &asking("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            ]
            .concat(),
            ends(&["GET /up"]),
        )
        .seen(&["-upgrade", "-http2-settings"]),
        case(
            "h2c hidden among others",
            asking("Connection: Upgrade\r\nUpgrade: websocket, H2C\r\n"),
            Expect::EndsOrPasses(vec!["GET /up".to_owned()]),
        )
        .seen(&["-upgrade"]),
        case(
            "Upgrade without Connection",
            asking("Upgrade: websocket\r\n"),
            Expect::EndsOrPasses(vec!["GET /up".to_owned()]),
        )
        .seen(&["-upgrade"]),
        case(
            "an upgrade with content, and bytes sent ahead",
            [
                "POST /up HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 5\r\n\r\nhello",
                BOTH,
            ]
            .concat(),
            ends(&["POST /up [hello]"]),
        ),
        case(
            "an upgrade in a request that lies",
            [&BOTH[..BOTH.len() - 2], "Connection: Upgrade\r\nUpgrade: x\r\n\r\n"].concat(),
            Expect::Refused(400),
        ),
        case(
            "CONNECT with content",
            "CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\nContent-Length: 5\r\n\r\nhello",
            Expect::Refused(400),
        ),
        case(
            "CONNECT with chunks",
            "CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Expect::Refused(400),
        ),
    ]
}

fn expectations() -> Vec<Case> {
    let expecting = |expect: &str| {
        format!("POST /good HTTP/1.1\r\nHost: web\r\nExpect: {expect}\r\nContent-Length: 5\r\n\r\nhello")
    };
    let post = "POST /good [hello]";
    vec![
        case("an expectation that nobody knows", expecting("200-ok"), passes(&[post])).seen(&["+expect: 200-ok"]),
        case(
            "100-continue without content",
            "GET /good HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\n\r\n",
            passes(&["GET /good"]),
        ),
        case(
            "100-continue with a lie",
            [&BOTH[..BOTH.len() - 2], "Expect: 100-continue\r\n\r\n"].concat(),
            Expect::Refused(400),
        ),
        case(
            "100-continue with HTTP/1.0",
            "POST /good HTTP/1.0\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
            ends(&[post]),
        )
        .seen(&["-expect"]),
    ]
}
