//! Section 6: each type of frame, its length, its stream and its values.

use super::{Back, Case, case};
use crate::frames::*;

/// The library tells a frame it cannot load by one code, whatever is wrong with it.
const LOADING: &str = "the connection ends all the same; the library knows one code for frames it cannot load";

const STALE: u32 = 7;

pub fn cases() -> Vec<Case> {
    [data_and_headers(), small_frames(), settings_frames(), flow_control(), continuation()]
        .into_iter()
        .flatten()
        .collect()
}

fn data_and_headers() -> Vec<Case> {
    let head = block(&request("GET", "/"));
    let with = |before: &[u8]| [before, &head].concat();
    let upload = |frame: Vec<u8>| [post(1, "/echo"), frame].concat();
    vec![
        case("6.1", "DATA on stream 0", frame(DATA, 0, 0, b"x"), Back::Goaway(PROTOCOL_ERROR)),
        case(
            "6.1",
            "padding as long as the payload of DATA",
            upload(frame(DATA, END_STREAM | PADDED, 1, &[5, 0, 0, 0, 0])),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.1",
            "padding longer than the payload of DATA",
            upload(frame(DATA, END_STREAM | PADDED, 1, &[255, 0])),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.1",
            "padded DATA without a pad length",
            upload(frame(DATA, END_STREAM | PADDED, 1, &[])),
            Back::Goaway(FRAME_SIZE_ERROR),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), LOADING),
        case("6.1", "padded DATA", upload(frame(DATA, END_STREAM | PADDED, 1, &[2, b'x', 0, 0])), Back::Status(200)),
        case(
            "6.1",
            "DATA that is nothing but padding",
            upload(frame(DATA, END_STREAM | PADDED, 1, &[2, 0, 0])),
            Back::Status(200),
        ),
        case(
            "6.2",
            "HEADERS on stream 0",
            frame(HEADERS, END_STREAM | END_HEADERS, 0, &head),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.2",
            "padding longer than the payload of HEADERS",
            frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &with(&[255])),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.2",
            "padded HEADERS without a pad length",
            frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &[]),
            Back::Goaway(FRAME_SIZE_ERROR),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), LOADING),
        case(
            "6.2",
            "HEADERS too short for the priority they announce",
            frame(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, &[0, 0, 0]),
            Back::Goaway(FRAME_SIZE_ERROR),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), LOADING),
        case(
            "6.2",
            "padded HEADERS with priority",
            frame(
                HEADERS,
                END_STREAM | END_HEADERS | PADDED | WITH_PRIORITY,
                1,
                &[&[2, 0, 0, 0, 3, 9][..], &head, &[0, 0]].concat(),
            ),
            Back::Status(200),
        ),
        case(
            "5.3.1 of RFC 7540",
            "HEADERS whose stream depends on itself",
            frame(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, &with(&[0, 0, 0, 1, 9])),
            Back::Reset(PROTOCOL_ERROR),
        ),
        case(
            "8.4",
            "PUSH_PROMISE from a client",
            [post(1, "/echo"), frame(PUSH_PROMISE, END_HEADERS, 1, &with(&2u32.to_be_bytes()))].concat(),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.6",
            "PUSH_PROMISE on stream 0",
            frame(PUSH_PROMISE, END_HEADERS, 0, &with(&2u32.to_be_bytes())),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.6",
            "PUSH_PROMISE on an idle stream",
            frame(PUSH_PROMISE, END_HEADERS, 9, &with(&2u32.to_be_bytes())),
            Back::Goaway(PROTOCOL_ERROR),
        ),
    ]
}

fn small_frames() -> Vec<Case> {
    vec![
        case("6.3", "PRIORITY on an idle stream", frame(PRIORITY, 0, STALE, &[0, 0, 0, 0, 9]), Back::Nothing),
        case("6.3", "PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0, 0, 0, 3, 9]), Back::Goaway(PROTOCOL_ERROR)),
        case(
            "6.3",
            "PRIORITY of 4 octets",
            [post(1, "/echo"), frame(PRIORITY, 0, 1, &[0; 4])].concat(),
            Back::Reset(FRAME_SIZE_ERROR),
        )
        .instead(
            Back::Goaway(PROTOCOL_ERROR),
            "an error of a stream may end the connection (5.4.1); no sane client sends it",
        ),
        case(
            "5.3.1 of RFC 7540",
            "PRIORITY of a stream that depends on itself",
            [post(1, "/echo"), frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 9])].concat(),
            Back::Reset(PROTOCOL_ERROR),
        ),
        case("6.3", "PRIORITY of a closed stream", get(1, "/"), Back::Status(200)).then(frame(
            PRIORITY,
            0,
            1,
            &[0, 0, 0, 0, 9],
        )),
        case("6.4", "RST_STREAM on stream 0", reset(0, CANCEL), Back::Goaway(PROTOCOL_ERROR)),
        case("6.4", "RST_STREAM on an idle stream", reset(STALE, CANCEL), Back::Goaway(PROTOCOL_ERROR)),
        case(
            "6.4",
            "RST_STREAM of 3 octets",
            [post(1, "/echo"), frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
            Back::Goaway(FRAME_SIZE_ERROR),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), LOADING),
        case(
            "6.4",
            "RST_STREAM of 5 octets",
            [post(1, "/echo"), frame(RST_STREAM, 0, 1, &[0; 5])].concat(),
            Back::Goaway(FRAME_SIZE_ERROR),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), LOADING),
        case("6.4", "RST_STREAM with an unknown code", [post(1, "/never"), reset(1, 0xdead)].concat(), Back::Nothing),
        case("6.7", "PING of 6 octets", frame(PING, 0, 0, &[0; 6]), Back::Goaway(FRAME_SIZE_ERROR))
            .instead(Back::Goaway(PROTOCOL_ERROR), LOADING),
        case("6.7", "PING of 9 octets", frame(PING, 0, 0, &[0; 9]), Back::Goaway(FRAME_SIZE_ERROR))
            .instead(Back::Goaway(PROTOCOL_ERROR), LOADING),
        case("6.7", "PING on a stream", frame(PING, 0, 1, &[0; 8]), Back::Goaway(PROTOCOL_ERROR)),
        case("6.7", "an acknowledgement of a ping never sent", frame(PING, ACK, 0, &[0; 8]), Back::Nothing),
        case(
            "6.8",
            "GOAWAY on a stream",
            [post(1, "/echo"), frame(GOAWAY, 0, 1, &[0; 8])].concat(),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case("6.8", "GOAWAY of 7 octets", frame(GOAWAY, 0, 0, &[0; 7]), Back::Goaway(FRAME_SIZE_ERROR))
            .instead(Back::Goaway(PROTOCOL_ERROR), LOADING),
        case(
            "6.8",
            "GOAWAY whose last stream grows",
            [post(1, "/echo"), goaway(0, NO_ERROR), goaway(2, NO_ERROR)].concat(),
            Back::Goaway(PROTOCOL_ERROR),
        ),
    ]
}

fn settings_frames() -> Vec<Case> {
    let lone = |id: u16, value: u32| settings(&[(id, value)]);
    vec![
        case("6.5", "SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), Back::Goaway(PROTOCOL_ERROR)),
        case(
            "6.5",
            "an acknowledgement with a payload",
            frame(SETTINGS, ACK, 0, &[0; 6]),
            Back::Goaway(FRAME_SIZE_ERROR),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), LOADING),
        case("6.5", "SETTINGS of 5 octets", frame(SETTINGS, 0, 0, &[0; 5]), Back::Goaway(FRAME_SIZE_ERROR))
            .instead(Back::Goaway(PROTOCOL_ERROR), LOADING),
        case("6.5", "SETTINGS of 7 octets", frame(SETTINGS, 0, 0, &[0; 7]), Back::Goaway(FRAME_SIZE_ERROR))
            .instead(Back::Goaway(PROTOCOL_ERROR), LOADING),
        case("6.5.2", "an unknown setting", lone(0xff0a, 7), Back::Nothing),
        case("6.5.2", "SETTINGS_ENABLE_PUSH of 2", lone(ENABLE_PUSH, 2), Back::Goaway(PROTOCOL_ERROR)),
        case(
            "6.5.2",
            "SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1",
            lone(INITIAL_WINDOW_SIZE, 1 << 31),
            Back::Goaway(FLOW_CONTROL_ERROR),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), LOADING),
        case(
            "6.5.2",
            "SETTINGS_INITIAL_WINDOW_SIZE of 2^31-1",
            lone(INITIAL_WINDOW_SIZE, (1 << 31) - 1),
            Back::Nothing,
        ),
        case(
            "6.5.2",
            "SETTINGS_MAX_FRAME_SIZE below 16384",
            lone(MAX_FRAME_SIZE, 16_383),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.5.2",
            "SETTINGS_MAX_FRAME_SIZE above 2^24-1",
            lone(MAX_FRAME_SIZE, 1 << 24),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case("6.5.2", "SETTINGS_MAX_FRAME_SIZE of 2^24-1", lone(MAX_FRAME_SIZE, (1 << 24) - 1), Back::Nothing),
        case("6.5.2", "SETTINGS_MAX_CONCURRENT_STREAMS of 0", lone(MAX_CONCURRENT_STREAMS, 0), Back::Nothing),
        case(
            "6.5.3",
            "the same setting twice, the last one bad",
            settings(&[(ENABLE_PUSH, 0), (ENABLE_PUSH, 2)]),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.5.3",
            "an acknowledgement of settings never sent",
            frame(SETTINGS, ACK, 0, &[]),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "3 of RFC 8441",
            "SETTINGS_ENABLE_CONNECT_PROTOCOL of 2",
            lone(ENABLE_CONNECT_PROTOCOL, 2),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "3 of RFC 8441",
            "SETTINGS_ENABLE_CONNECT_PROTOCOL from a client",
            lone(ENABLE_CONNECT_PROTOCOL, 1),
            Back::Nothing,
        ),
    ]
}

fn flow_control() -> Vec<Case> {
    let opened = |more: Vec<u8>| [post(1, "/echo"), more].concat();
    let most = (1 << 31) - 1;
    vec![
        case("6.9", "WINDOW_UPDATE by 0 on a stream", opened(window_update(1, 0)), Back::Reset(PROTOCOL_ERROR))
            .for_all_streams(),
        case("6.9", "WINDOW_UPDATE by 0 on the connection", window_update(0, 0), Back::Goaway(PROTOCOL_ERROR)),
        case(
            "6.9",
            "WINDOW_UPDATE of 3 octets",
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1]),
            Back::Goaway(FRAME_SIZE_ERROR),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), LOADING),
        case(
            "6.9",
            "WINDOW_UPDATE of 5 octets",
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1, 0]),
            Back::Goaway(FRAME_SIZE_ERROR),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), LOADING),
        case("6.9", "WINDOW_UPDATE with the reserved bit", window_update(0, 1 << 31 | 5), Back::Nothing),
        case("5.1", "WINDOW_UPDATE on an idle stream", window_update(STALE, 1), Back::Goaway(PROTOCOL_ERROR)),
        case("6.9", "WINDOW_UPDATE on a closed stream", get(1, "/"), Back::Status(200)).then(window_update(1, 1)),
        case(
            "6.9.1",
            "a stream's window beyond 2^31-1",
            opened(window_update(1, most)),
            Back::Reset(FLOW_CONTROL_ERROR),
        ),
        case(
            "6.9.1",
            "the connection's window beyond 2^31-1",
            window_update(0, most),
            Back::Goaway(FLOW_CONTROL_ERROR),
        ),
        case(
            "6.9.2",
            "an initial window that pushes a stream's beyond 2^31-1",
            [post(1, "/never"), window_update(1, most - 65_535), settings(&[(INITIAL_WINDOW_SIZE, 65_536)])].concat(),
            Back::Goaway(FLOW_CONTROL_ERROR),
        ),
        case(
            "6.9.2",
            "an initial window that makes a stream's negative",
            [
                post(1, "/echo"),
                settings(&[(INITIAL_WINDOW_SIZE, 0)]),
                settings(&[(INITIAL_WINDOW_SIZE, 65_535)]),
                frame(DATA, END_STREAM, 1, b"x"),
            ]
            .concat(),
            Back::Status(200),
        ),
    ]
}

fn continuation() -> Vec<Case> {
    let head = block(&request("GET", "/"));
    let (first, rest) = head.split_at(10);
    vec![
        case(
            "6.10",
            "CONTINUATION without HEADERS",
            frame(CONTINUATION, END_HEADERS, 1, &head),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.10",
            "CONTINUATION on stream 0",
            frame(CONTINUATION, END_HEADERS, 0, &head),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.10",
            "CONTINUATION of a block that has ended",
            [get(1, "/"), frame(CONTINUATION, END_HEADERS, 1, &[])].concat(),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.10",
            "CONTINUATION after DATA",
            [post(1, "/echo"), frame(DATA, 0, 1, b"x"), frame(CONTINUATION, END_HEADERS, 1, &[])].concat(),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.10",
            "CONTINUATION of another stream's block",
            [frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 3, rest)].concat(),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.10",
            "an empty CONTINUATION in between",
            [
                frame(HEADERS, END_STREAM, 1, first),
                frame(CONTINUATION, 0, 1, &[]),
                frame(CONTINUATION, END_HEADERS, 1, rest),
            ]
            .concat(),
            Back::Status(200),
        ),
    ]
}
