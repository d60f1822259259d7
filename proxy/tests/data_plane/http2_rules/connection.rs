//! Sections 3 and 4: the preface, settings, and the frame's outer form.

use super::{Back, Case, case};
use crate::frames::*;

pub fn cases() -> Vec<Case> {
    let hello = |rest: &[u8]| [PREFACE, &settings(&[(HEADER_TABLE_SIZE, 0)]), rest].concat();
    vec![
        // 3.4: GOAWAY may be left out where the preface, of which SETTINGS are part, is none.
        case("3.4", "a preface with a wrong letter", b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n".to_vec(), Back::Closed)
            .without_greeting(),
        case(
            "3.4",
            "HTTP/1.1 where the preface belongs",
            b"GET / HTTP/1.1\r\nhost: web\r\n\r\n".to_vec(),
            Back::Closed,
        )
        .without_greeting(),
        case("3.4", "a request before SETTINGS", [PREFACE, &get(1, "/")].concat(), Back::Closed).without_greeting(),
        case("3.4", "PING before SETTINGS", [PREFACE, &frame(PING, 0, 0, b"12345678")].concat(), Back::Closed)
            .without_greeting(),
        case(
            "3.4",
            "an acknowledgement instead of SETTINGS",
            [PREFACE, &frame(SETTINGS, ACK, 0, &[])].concat(),
            Back::Closed,
        )
        .without_greeting(),
        case("3.4", "a request right behind preface and SETTINGS", hello(&get(1, "/")), Back::Status(200))
            .without_greeting(),
        case("3.4", "empty SETTINGS", hello(&[]), Back::Nothing).without_greeting(),
        // 4.1
        case("4.1", "a frame of unknown type", frame(0xfa, 0xff, 0, b"anything"), Back::Nothing),
        case(
            "4.1",
            "a frame of unknown type on an open stream",
            [post(1, "/echo"), frame(0x42, 0, 1, b"x"), frame(DATA, END_STREAM, 1, b"x")].concat(),
            Back::Status(200),
        ),
        case("4.1", "a frame of unknown type on an idle stream", frame(0xb, 0, 7, b"x"), Back::Nothing),
        case("4.1", "flags that mean nothing on PING", frame(PING, 0xfe, 0, b"12345678"), Back::Nothing),
        case(
            "4.1",
            "flags that mean nothing on DATA",
            [post(1, "/echo"), frame(DATA, END_STREAM | 0x72, 1, b"x")].concat(),
            Back::Status(200),
        ),
        case(
            "4.1",
            "the reserved bit of the stream identifier",
            {
                let mut bytes = get(1, "/");
                bytes[5] |= 0x80;
                bytes
            },
            Back::Status(200),
        ),
        case(
            "4.1",
            "the reserved bit on SETTINGS",
            {
                let mut bytes = settings(&[]);
                bytes[5] |= 0x80;
                bytes
            },
            Back::Nothing,
        ),
        // 4.2
        case(
            "4.2",
            "DATA larger than SETTINGS_MAX_FRAME_SIZE",
            [post(1, "/echo"), frame(DATA, END_STREAM, 1, &[0; 16_385])].concat(),
            Back::Goaway(FRAME_SIZE_ERROR),
        ),
        case(
            "4.2",
            "HEADERS larger than SETTINGS_MAX_FRAME_SIZE",
            frame(HEADERS, END_HEADERS, 1, &[0x88; 16_385]),
            Back::Goaway(FRAME_SIZE_ERROR),
        ),
        case(
            "4.2",
            "a frame of unknown type larger than SETTINGS_MAX_FRAME_SIZE",
            frame(0x42, 0, 0, &[0; 16_385]),
            Back::Goaway(FRAME_SIZE_ERROR),
        ),
        case(
            "4.2",
            "SETTINGS larger than SETTINGS_MAX_FRAME_SIZE",
            frame(SETTINGS, 0, 0, &[0; 16_386]),
            Back::Goaway(FRAME_SIZE_ERROR),
        ),
        case(
            "4.2",
            "DATA of exactly SETTINGS_MAX_FRAME_SIZE",
            [post(1, "/echo"), frame(DATA, END_STREAM, 1, &[b'x'; 16_384])].concat(),
            Back::Status(200),
        ),
        // 4.3
        case(
            "4.3",
            "a header block cut short",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&request("GET", "/"))[..40]),
            Back::Goaway(COMPRESSION_ERROR),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), super::fields::ONE_CODE),
        case(
            "4.3",
            "a header block over two frames",
            {
                let block = block(&request("GET", "/"));
                [frame(HEADERS, END_STREAM, 1, &block[..10]), frame(CONTINUATION, END_HEADERS, 1, &block[10..])]
                    .concat()
            },
            Back::Status(200),
        ),
        case(
            "4.3",
            "PING within a header block",
            {
                let block = block(&request("GET", "/"));
                [frame(HEADERS, END_STREAM, 1, &block[..10]), frame(PING, 0, 0, b"12345678")].concat()
            },
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "4.3",
            "a frame of unknown type within a header block",
            {
                let block = block(&request("GET", "/"));
                [frame(HEADERS, END_STREAM, 1, &block[..10]), frame(0xfa, 0, 1, b"x")].concat()
            },
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "4.3",
            "HEADERS of another stream within a header block",
            {
                let block = block(&request("GET", "/"));
                [frame(HEADERS, END_STREAM, 1, &block[..10]), get(3, "/")].concat()
            },
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "4.3",
            "DATA of the same stream within a header block",
            {
                let block = block(&request("POST", "/echo"));
                [frame(HEADERS, 0, 1, &block), frame(DATA, END_STREAM, 1, b"x")].concat()
            },
            Back::Goaway(PROTOCOL_ERROR),
        ),
    ]
}
