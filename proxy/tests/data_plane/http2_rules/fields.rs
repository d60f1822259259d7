//! Sections 4.3 and 8.2: header compression (RFC 7541), and names and values of fields.

use super::{Back, Case, case};
use crate::frames::*;

/// Why errors of compression come with another code.
pub const ONE_CODE: &str =
    "the connection ends all the same; the library does not tell errors of compression from others";

fn with(field: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, &[&block(&request("GET", "/")), field].concat())
}

pub fn cases() -> Vec<Case> {
    [compression(), names_and_values(), of_one_hop()].into_iter().flatten().collect()
}

fn compression() -> Vec<Case> {
    let broken = |what, field: &[u8]| {
        case("4.3", what, with(field), Back::Goaway(COMPRESSION_ERROR)).instead(Back::Goaway(PROTOCOL_ERROR), ONE_CODE)
    };
    let size = |value: usize| {
        let mut bytes = Vec::new();
        integer(&mut bytes, 5, 0x20, value);
        bytes
    };
    let sized =
        |sizes: &[u8]| frame(HEADERS, END_STREAM | END_HEADERS, 1, &[sizes, &block(&request("GET", "/"))].concat());
    vec![
        broken("index 0", &[0x80]),
        broken("an index beyond both tables", &[0xff, 0x20]),
        broken("a name's index beyond both tables", &[0x7f, 0x20, 0x01, b'x']),
        broken("an integer that overflows", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        broken("an integer cut short", &[0xff]),
        broken("a string longer than its block", &[0x00, 0x05, b'a', b'b']),
        broken("a Huffman string with the end-of-string symbol", &[0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 0x01, b'x']),
        broken("Huffman padding of zeros", &[0x00, 0x01, b'a', 0x81, 0x00]),
        broken("Huffman padding of more than 7 bits", &[0x00, 0x01, b'a', 0x82, 0x1f, 0xff]),
        broken("a change of the table's size after a field", &size(0)),
        case(
            "4.3",
            "a table larger than SETTINGS_HEADER_TABLE_SIZE",
            sized(&size(8192)),
            Back::Goaway(COMPRESSION_ERROR),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), ONE_CODE),
        case("4.3", "a smaller table, then the full one", sized(&[size(0), size(4096)].concat()), Back::Status(200)),
        case(
            "4.3",
            "an entry of the table that was evicted",
            [
                frame(
                    HEADERS,
                    END_STREAM | END_HEADERS,
                    1,
                    &[&block(&request("GET", "/"))[..], &[0x40, 1, b'a', 1, b'b']].concat(),
                ),
                frame(
                    HEADERS,
                    END_STREAM | END_HEADERS,
                    3,
                    &[&size(0)[..], &block(&request("GET", "/")), &[0xbe]].concat(),
                ),
            ]
            .concat(),
            Back::Goaway(COMPRESSION_ERROR),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), ONE_CODE),
        case(
            "4.3",
            "fields from the dynamic table",
            [
                frame(
                    HEADERS,
                    END_STREAM | END_HEADERS,
                    1,
                    &[&block(&request("GET", "/"))[..], &[0x40, 1, b'a', 1, b'b']].concat(),
                ),
                frame(HEADERS, END_STREAM | END_HEADERS, 3, &[&block(&request("GET", "/"))[..], &[0xbe]].concat()),
            ]
            .concat(),
            Back::Status(200),
        ),
        case(
            "4.3",
            "an indexed field within a refused message is known afterwards",
            [
                frame(
                    HEADERS,
                    END_STREAM | END_HEADERS,
                    1,
                    &[&block(&[(":method", "GET"), ("connection", "close")])[..], &[0x40, 1, b'a', 1, b'b']].concat(),
                ),
                frame(HEADERS, END_STREAM | END_HEADERS, 3, &[&block(&request("GET", "/"))[..], &[0xbe]].concat()),
            ]
            .concat(),
            Back::Reset(PROTOCOL_ERROR),
        ),
    ]
}

fn names_and_values() -> Vec<Case> {
    let refused = |what, name: &str, value: &str| {
        case("8.2.1", what, with(&literal(name, value)), Back::Reset(PROTOCOL_ERROR)).for_all_streams()
    };
    let raw = |what, value: &[u8]| {
        case("8.2.1", what, with(&literal("x-raw", value)), Back::Reset(PROTOCOL_ERROR)).for_all_streams()
    };
    let spaced = |what, value: &[u8]| case("8.2.1", what, with(&literal("x-raw", value)), Back::Status(400));
    vec![
        refused("a name in upper case", "X-Upper", "1"),
        refused("a name with a space", "x name", "1"),
        refused("a name with a colon within", "x:name", "1"),
        refused("a name with a control character", "x\u{1}", "1"),
        refused("a name with DEL", "x\u{7f}", "1"),
        refused("a name with a character beyond ASCII", "x-ü", "1"),
        refused("a name with a line break", "x\r\ny", "1"),
        refused("an empty name", "", "1"),
        raw("a value with NUL", b"a\0b"),
        raw("a value with CR", b"a\rb"),
        raw("a value with LF", b"a\nb"),
        raw("a value with a smuggled field", b"a\r\ntransfer-encoding: chunked"),
        spaced("a value that begins with a space", b" a"),
        spaced("a value that begins with a tab", b"\ta"),
        spaced("a value that ends with a space", b"a "),
        spaced("a value that ends with a tab", b"a\t"),
        case("8.2.1", "an empty value", with(&literal("x-empty", "")), Back::Status(200)),
        case("8.2.1", "a value with spaces and tabs within", with(&literal("x-inner", "a \t b")), Back::Status(200)),
        case("8.2.1", "a value beyond ASCII", with(&literal("x-high", b"\xff\xfe")), Back::Status(200)),
        case(
            "8.2.3",
            "cookies apart",
            with(&[literal("cookie", "a=1"), literal("cookie", "b=2")].concat()),
            Back::Status(200),
        ),
    ]
}

fn of_one_hop() -> Vec<Case> {
    let refused =
        |what, name: &str, value: &str| case("8.2.2", what, with(&literal(name, value)), Back::Reset(PROTOCOL_ERROR));
    vec![
        refused("Connection", "connection", "close"),
        refused("Keep-Alive", "keep-alive", "timeout=5"),
        refused("Proxy-Connection", "proxy-connection", "keep-alive"),
        refused("Transfer-Encoding", "transfer-encoding", "chunked"),
        refused("Upgrade", "upgrade", "h2c"),
        refused("TE other than trailers", "te", "gzip"),
        refused("TE with more than trailers", "te", "trailers, deflate"),
        case("8.2.2", "TE: trailers", with(&literal("te", "trailers")), Back::Status(200)),
        case(
            "8.2.2",
            "Connection in trailers",
            [post(1, "/echo"), frame(HEADERS, END_STREAM | END_HEADERS, 1, &literal("connection", "close"))].concat(),
            Back::Reset(PROTOCOL_ERROR),
        ),
    ]
}
