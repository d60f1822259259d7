//! Section 5: identifiers and states of streams.

use super::{Back, Case, HEALTHY, case};
use crate::frames::*;

/// Why errors of one stream come with another code, for the connection.
const ONE_CODE: &str =
    "the connection ends all the same; the library has one code for frames that its states do not foresee";

pub fn cases() -> Vec<Case> {
    let trailers = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[("x-end", "1")]));
    vec![
        // 5.1: idle
        case("5.1", "DATA on an idle stream", frame(DATA, END_STREAM, 1, b"x"), Back::Goaway(PROTOCOL_ERROR)),
        case(
            "5.1",
            "DATA on an idle stream that only the server may open",
            frame(DATA, END_STREAM, 2, b"x"),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "5.1",
            "RST_STREAM on an idle stream that only the server may open",
            reset(2, CANCEL),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "5.1",
            "WINDOW_UPDATE on an idle stream that only the server may open",
            window_update(2, 1),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        // 5.1: half-closed (remote)
        case(
            "5.1",
            "DATA after END_STREAM",
            [get(1, "/slow"), frame(DATA, END_STREAM, 1, b"x")].concat(),
            Back::Reset(STREAM_CLOSED),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), ONE_CODE),
        case(
            "5.1",
            "HEADERS after END_STREAM",
            [get(1, "/slow"), trailers.clone()].concat(),
            Back::Reset(STREAM_CLOSED),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), ONE_CODE),
        case(
            "5.1",
            "DATA after trailers",
            [post(1, "/slow"), trailers.clone(), frame(DATA, END_STREAM, 1, b"x")].concat(),
            Back::Reset(STREAM_CLOSED),
        )
        .instead(Back::Goaway(PROTOCOL_ERROR), ONE_CODE),
        case(
            "5.1",
            "WINDOW_UPDATE and PRIORITY after END_STREAM",
            [get(1, "/"), window_update(1, 9), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])].concat(),
            Back::Status(200),
        ),
        // 5.1: closed
        case("5.1", "DATA on a stream that has ended", get(1, "/"), Back::Reset(STREAM_CLOSED))
            .then(frame(DATA, END_STREAM, 1, b"x")),
        case("5.1", "HEADERS on a stream that has ended", get(1, "/"), Back::Goaway(PROTOCOL_ERROR)).then(get(1, "/")),
        case("5.1", "RST_STREAM on a stream that has ended", get(1, "/"), Back::Status(200)).then(reset(1, CANCEL)),
        case(
            "5.1",
            "DATA after the client's own RST_STREAM",
            [post(1, "/never"), reset(1, CANCEL), frame(DATA, 0, 1, b"x")].concat(),
            Back::Reset(STREAM_CLOSED),
        ),
        case(
            "5.1",
            "HEADERS after the client's own RST_STREAM",
            [post(1, "/never"), reset(1, CANCEL), trailers.clone()].concat(),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        case(
            "5.1",
            "WINDOW_UPDATE after the client's own RST_STREAM",
            [post(1, "/never"), reset(1, CANCEL), window_update(1, 1)].concat(),
            Back::Nothing,
        ),
        case(
            "5.1",
            "DATA that crosses the server's RST_STREAM",
            [frame(HEADERS, END_HEADERS, 1, &block(&[(":method", "GET")])), frame(DATA, END_STREAM, 1, b"x")].concat(),
            Back::Reset(PROTOCOL_ERROR),
        ),
        // 5.1.1
        case("5.1.1", "an even identifier", get(2, "/"), Back::Goaway(PROTOCOL_ERROR)),
        case("5.1.1", "identifiers that decrease", [get(5, "/"), get(3, "/")].concat(), Back::Goaway(PROTOCOL_ERROR)),
        case("5.1.1", "an identifier used before", get(1, "/"), Back::Goaway(PROTOCOL_ERROR)).then(get(1, "/")),
        case("5.1.1", "identifiers with gaps", [get(1, "/"), get(77, "/")].concat(), Back::Status(200)),
        case(
            "5.1.1",
            "an identifier passed over, then used",
            [get(HEALTHY - 2, "/"), get(1, "/")].concat(),
            Back::Goaway(PROTOCOL_ERROR),
        ),
        // 5.1.2: the limit itself is tried where abuse is.
        // 5.4.2
        case(
            "5.4.2",
            "RST_STREAM, which is not answered by another",
            [post(1, "/never"), reset(1, STREAM_CLOSED)].concat(),
            Back::Nothing,
        ),
        // 8.1
        case(
            "8.1",
            "HEADERS without END_STREAM after the first",
            [post(1, "/echo"), frame(HEADERS, END_HEADERS, 1, &block(&[("x-end", "1")]))].concat(),
            Back::Reset(PROTOCOL_ERROR),
        ),
        case(
            "8.1",
            "DATA after HEADERS that were trailers but did not say so",
            [
                post(1, "/echo"),
                frame(HEADERS, END_HEADERS, 1, &block(&[("x-end", "1")])),
                frame(DATA, END_STREAM, 1, b"x"),
            ]
            .concat(),
            Back::Reset(PROTOCOL_ERROR),
        ),
        case("8.1", "trailers", [post(1, "/echo"), frame(DATA, 0, 1, b"x"), trailers].concat(), Back::Status(200)),
    ]
}
