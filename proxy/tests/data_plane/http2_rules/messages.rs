//! Section 8: what makes a request well-formed.

use super::{Back, Case, case};
use crate::frames::*;

fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(list))
}

/// An ordinary request with more fields, or with one of its own replaced.
fn get_with(more: &[(&str, &str)]) -> Vec<u8> {
    let mut all = request("GET", "/").to_vec();
    for (name, value) in more {
        match all.iter_mut().find(|(n, _)| n == name && name.starts_with(':')) {
            Some(field) => field.1 = value,
            None => all.push((name, value)),
        }
    }
    fields(&all)
}

fn get_without(name: &str) -> Vec<u8> {
    let all: Vec<_> = request("GET", "/").into_iter().filter(|(n, _)| *n != name).collect();
    fields(&all)
}

fn post_with(length: &str, data: &[&[u8]]) -> Vec<u8> {
    let head = block(&[&request("POST", "/echo")[..], &[("content-length", length)]].concat());
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &head);
    for (at, piece) in data.iter().enumerate() {
        bytes.extend(frame(DATA, if at + 1 == data.len() { END_STREAM } else { 0 }, 1, piece));
    }
    bytes
}

pub fn cases() -> Vec<Case> {
    [pseudo_fields(), authority_and_path(), content_length(), connect()].into_iter().flatten().collect()
}

fn pseudo_fields() -> Vec<Case> {
    let refused = |what, bytes: Vec<u8>| case("8.3", what, bytes, Back::Reset(PROTOCOL_ERROR));
    let missing = |what, bytes: Vec<u8>| case("8.3.1", what, bytes, Back::Reset(PROTOCOL_ERROR));
    let tolerated = "the library drops the field; no application sees it";
    let trailers = |list: &[(&str, &str)]| [post(1, "/echo"), frame(DATA, 0, 1, b"x"), fields(list)].concat();
    vec![
        refused("an unknown pseudo-header field", fields(&[&request("GET", "/")[..], &[(":unknown", "1")]].concat()))
            .for_all_streams(),
        refused(":status in a request", fields(&[&request("GET", "/")[..], &[(":status", "200")]].concat())),
        refused(
            "a pseudo-header field after a regular one",
            fields(&[("x-a", "1"), (":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "/")]),
        ),
        refused(
            ":path after a regular one",
            fields(&[(":method", "GET"), (":scheme", "http"), (":authority", "web"), ("x-a", "1"), (":path", "/")]),
        ),
        refused(":method twice", fields(&[&[(":method", "GET")][..], &request("GET", "/")].concat())),
        refused(":scheme twice", fields(&[&[(":scheme", "http")][..], &request("GET", "/")].concat())),
        refused(":authority twice", fields(&[&[(":authority", "web")][..], &request("GET", "/")].concat())),
        refused(":path twice", fields(&[&[(":path", "/")][..], &request("GET", "/")].concat())),
        refused("a pseudo-header field in trailers", trailers(&[(":path", "/")])).instead(Back::Status(200), tolerated),
        refused(":status in trailers", trailers(&[(":status", "200")])).instead(Back::Status(200), tolerated),
        missing("no :method", get_without(":method")),
        missing("no :scheme", get_without(":scheme")),
        missing("no :path", get_without(":path")),
        missing("an empty :path", get_with(&[(":path", "")])),
        missing("an empty :method", get_with(&[(":method", "")])).for_all_streams(),
        case("8.3.1", "an empty :scheme", get_with(&[(":scheme", "")]), Back::Status(400)),
        missing("a :method with a space", get_with(&[(":method", "GE T")])).for_all_streams(),
        missing("a :scheme that is none", get_with(&[(":scheme", "ht tp")])),
        missing("no field at all", fields(&[])),
        case("8.3.1", "a method nobody knows", get_with(&[(":method", "BREW")]), Back::Status(200)),
    ]
}

fn authority_and_path() -> Vec<Case> {
    let refused = |what, bytes: Vec<u8>| case("8.3.1", what, bytes, Back::Status(400));
    let malformed = |what, bytes: Vec<u8>| case("8.3.1", what, bytes, Back::Reset(PROTOCOL_ERROR));
    vec![
        refused("neither :authority nor Host", get_without(":authority")),
        refused("Host that differs from :authority", get_with(&[("host", "other")])),
        refused("Host twice", get_with(&[("host", "web"), ("host", "web")])),
        refused(":authority with user information", get_with(&[(":authority", "user@web")])),
        refused(
            "Host with user information",
            fields(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "user@web")]),
        ),
        malformed("a malformed :authority", get_with(&[(":authority", "we b")])),
        malformed(":authority with a path", get_with(&[(":authority", "web/x")])),
        malformed("an empty :authority", get_with(&[(":authority", "")])),
        malformed(":path with a space", get_with(&[(":path", "/a b")])),
        malformed(":path with a control character", get_with(&[(":path", "/a\u{1}")])),
        malformed(":path with a line break", get_with(&[(":path", "/a HTTP/1.1\r\nhost: evil\r\n\r\n")])),
        malformed(":path that does not begin with a slash", get_with(&[(":path", "x")])),
        malformed(":path with scheme and authority", get_with(&[(":path", "http://other/")])),
        refused(":path of an asterisk without OPTIONS", get_with(&[(":path", "*")])),
        malformed(":path with a fragment", get_with(&[(":path", "/a#b")]))
            .instead(Back::Status(200), "the library cuts the fragment off; no application sees it"),
        case(
            "8.3.1",
            ":path of an asterisk with OPTIONS",
            get_with(&[(":method", "OPTIONS"), (":path", "*")]),
            Back::Status(200),
        ),
        case("8.3.1", "Host in other letters than :authority", get_with(&[("host", "WEB")]), Back::Status(200)),
        case(
            "8.3.1",
            "Host without :authority",
            fields(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "web")]),
            Back::Status(200),
        ),
        case("8.3.1", "a scheme that is not the connection's", get_with(&[(":scheme", "https")]), Back::Status(200)),
    ]
}

fn content_length() -> Vec<Case> {
    let refused = |what, bytes: Vec<u8>| case("8.1.1", what, bytes, Back::Reset(PROTOCOL_ERROR));
    let trailers = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[("x-end", "1")]));
    vec![
        refused("DATA beyond Content-Length", post_with("1", &[b"xy"])),
        refused("DATA beyond Content-Length, in two frames", post_with("1", &[b"x", b"y"])),
        refused("DATA short of Content-Length", post_with("3", &[b"xy"])),
        refused("no DATA in spite of Content-Length", get_with(&[("content-length", "3")])),
        refused(
            "trailers before Content-Length is reached",
            [
                frame(
                    HEADERS,
                    END_HEADERS,
                    1,
                    &block(&[&request("POST", "/echo")[..], &[("content-length", "3")]].concat()),
                ),
                frame(DATA, 0, 1, b"x"),
                trailers,
            ]
            .concat(),
        ),
        refused("two Content-Length that differ", get_with(&[("content-length", "0"), ("content-length", "1")])),
        refused("Content-Length that is no number", get_with(&[("content-length", "x")])),
        refused("a negative Content-Length", get_with(&[("content-length", "-1")])),
        refused("Content-Length beyond 64 bits", post_with("18446744073709551616", &[b"x"])),
        refused("a list of Content-Length", post_with("1, 1", &[b"x"])),
        refused("Content-Length with a sign", post_with("+1", &[b"x"])),
        case("8.1.1", "DATA that meets Content-Length", post_with("3", &[b"xy", b"z"]), Back::Status(200)),
        case("8.1.1", "no body and Content-Length of 0", get_with(&[("content-length", "0")]), Back::Status(200)),
    ]
}

fn connect() -> Vec<Case> {
    let refused = |section, what, list: &[(&str, &str)]| {
        case(section, what, frame(HEADERS, END_HEADERS, 1, &block(list)), Back::Reset(PROTOCOL_ERROR))
    };
    vec![
        refused(
            "8.5",
            "CONNECT with :scheme",
            &[(":method", "CONNECT"), (":scheme", "http"), (":authority", "web:80")],
        ),
        refused("8.5", "CONNECT with :path", &[(":method", "CONNECT"), (":path", "/"), (":authority", "web:80")]),
        case(
            "8.5",
            "CONNECT without :authority",
            frame(HEADERS, END_HEADERS, 1, &block(&[(":method", "CONNECT")])),
            Back::Status(400),
        ),
        refused(
            "4 of RFC 8441",
            ":protocol without CONNECT",
            &[
                (":method", "GET"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "web"),
            ],
        ),
        refused(
            "4 of RFC 8441",
            "extended CONNECT without :scheme",
            &[(":method", "CONNECT"), (":protocol", "websocket"), (":path", "/"), (":authority", "web")],
        ),
        refused(
            "4 of RFC 8441",
            "extended CONNECT without :path",
            &[(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":authority", "web")],
        ),
        refused(
            "4 of RFC 8441",
            ":protocol twice",
            &[
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "web"),
            ],
        ),
    ]
}
