//! Cases about the length of a request's content: `Content-Length`, `Transfer-Encoding`, and both.

use super::*;

/// A request that must never arrive, for the place where a body's end is in doubt.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";

fn post(fields: &str, rest: &str) -> Vec<u8> {
    format!("POST /a HTTP/1.1\r\nHost: web\r\n{fields}\r\n{rest}").into_bytes()
}

pub fn cases() -> Vec<Case> {
    let mut cases = both();
    cases.extend(codings());
    cases.extend(lengths());
    cases.extend(old());
    cases
}

/// Both ways of saying it, in either order.
fn both() -> Vec<Case> {
    let chunks = format!("0\r\n\r\n{SMUGGLED}");
    let bad: [(&str, &str, &str); 11] = [
        ("CL.TE", "Content-Length: 41\r\nTransfer-Encoding: chunked\r\n", &chunks),
        ("TE.CL", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "5c\r\nGET /smuggled"),
        ("CL.TE agreeing", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("TE.CL with nothing", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", "0\r\n\r\n"),
        ("TE, others, CL", "Transfer-Encoding: chunked\r\nA: 1\r\nB: 2\r\nContent-Length: 3\r\n", "0\r\n\r\n"),
        ("CL, TE, CL", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
        ("TE.CL in capitals", "TRANSFER-ENCODING: chunked\r\nCONTENT-LENGTH: 5\r\n", "0\r\n\r\n"),
        ("TE.CL in small letters", "transfer-encoding: chunked\r\ncontent-length: 6\r\n", "0\r\n\r\n"),
        (
            "TE and CL named by Connection",
            "Connection: Content-Length\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n",
            "0\r\n\r\n",
        ),
        (
            "CL.TE with TE named by Connection",
            "Connection: Transfer-Encoding\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
        ),
        ("identity and CL", "Transfer-Encoding: identity\r\nContent-Length: 5\r\n", "hello"),
    ];
    bad.into_iter().map(|(name, fields, rest)| case(name, post(fields, rest), Expect::Refused(400))).collect()
}

/// Codings that some parser takes for chunked and another does not.
fn codings() -> Vec<Case> {
    let refused = |name: &str, value: &str, status| {
        case(name, post(&format!("Transfer-Encoding:{value}\r\n"), "0\r\n\r\n"), Expect::Refused(status))
    };
    let mut cases = vec![
        refused("xchunked", " xchunked", 400),
        refused("chunkedx", " chunkedx", 400),
        refused("chunked, identity", " chunked, identity", 400),
        refused("identity, chunked", " identity, chunked", 400),
        refused("chunked, chunked", " chunked, chunked", 400),
        refused("chunked, gzip", " chunked, gzip", 400),
        refused("gzip, chunked", " gzip, chunked", 501),
        refused("deflate , chunked", " deflate , chunked", 501),
        refused("gzip alone", " gzip", 400),
        refused("identity alone", " identity", 400),
        refused("an empty coding", "", 400),
        refused("a comma", " ,", 400),
        refused("a comma before chunked", " , chunked", 400),
        refused("a comma behind chunked", " chunked,", 400),
        refused("chunked in quotes", " \"chunked\"", 400),
        refused("chunked in single quotes", " 'chunked'", 400),
        refused("chunked with a parameter", " chunked;q=1", 400),
        refused("chunked with a comment", " chunked (really)", 400),
        refused("chunked behind a vertical tab", " \x0bchunked", 400),
        refused("chunked before a form feed", " chunked\x0c", 400),
        refused("chunked before NUL", " chunked\0", 400),
        refused("chunked behind a colon", ": chunked", 400),
        refused("two words", " chunked chunked", 400),
        refused("a bare CR in the coding", " chun\rked", 400),
        refused("folded", "\r\n chunked", 400),
        refused("folded with a tab", "\r\n\tchunked", 400),
    ];
    cases.push(case(
        "chunked behind a no-break space",
        [&post("", "")[..28], b"Transfer-Encoding: \xa0chunked\r\n\r\n0\r\n\r\n"].concat(),
        Expect::Refused(400),
    ));
    cases.push(case(
        "chunked with a dotless i in small capitals",
        [&post("", "")[..28], "Transfer-Encoding: chun\u{212a}ed\r\n\r\n0\r\n\r\n".as_bytes()].concat(),
        Expect::Refused(400),
    ));
    let twice = [
        ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ("chunked, then identity", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
        ("identity, then chunked", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n"),
        ("nonsense, then chunked", "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n"),
        ("chunked, then nothing", "Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n"),
        ("an underscore", "Transfer_Encoding: chunked\r\n"),
        ("an underscore beside a length", "Content-Length: 5\r\nTransfer_Encoding: chunked\r\n"),
        ("a space before the colon", "Transfer-Encoding : chunked\r\n"),
        ("a tab before the colon", "Transfer-Encoding\t: chunked\r\n"),
        ("a space before the name", " Transfer-Encoding: chunked\r\n"),
        ("a bare CR before the name", "X: 1\rTransfer-Encoding: chunked\r\n"),
        ("a bare LF before the name", "X: 1\nTransfer-Encoding: chunked\r\n"),
        ("NUL in the name", "Transfer-\0Encoding: chunked\r\n"),
    ];
    let twice =
        twice.map(|(name, fields)| case(&format!("TE: {name}"), post(fields, "0\r\n\r\n"), Expect::Refused(400)));
    cases.extend(twice);
    for (name, value) in [("no space", "chunked"), ("much space", "  \t chunked \t "), ("capitals", " ChUnKeD")] {
        let bytes = post(&format!("Transfer-Encoding:{value}\r\n"), "5\r\nhello\r\n0\r\n\r\n");
        cases.push(
            case(&format!("chunked with {name}"), bytes, passes(&["POST /a [hello]"]))
                .seen(&["+transfer-encoding: chunked", "-content-length"]),
        );
    }
    cases
}

/// Numbers that parsers read differently.
fn lengths() -> Vec<Case> {
    let values = [
        "+5",
        "-5",
        "-0",
        "0x5",
        "5h",
        "5.0",
        "5e0",
        "1_0",
        "5,5",
        "5, 5",
        "5,6",
        "5;5",
        "5 5",
        "",
        "five",
        "\"5\"",
        "5\0",
        "\x0b5",
        "5\x0c",
        "5\r6",
        "18446744073709551616",
        "18446744073709551621",
        "9223372036854775808",
        "99999999999999999999999999",
        "0b101",
        "00000000000000000005",
        "\u{0665}",
        "5\u{a0}",
        "(5)",
        "5,",
    ];
    let mut cases: Vec<Case> = values
        .iter()
        .map(|value| {
            let bytes = post(&format!("Content-Length: {value}\r\n"), &format!("hello{SMUGGLED}"));
            case(&format!("CL {value:?}"), bytes, Expect::Refused(400))
        })
        .collect();
    let lines = [
        ("CL twice, different", "Content-Length: 5\r\nContent-Length: 6\r\n"),
        ("CL twice, the same", "Content-Length: 5\r\nContent-Length: 5\r\n"),
        ("CL twice, one empty", "Content-Length: 5\r\nContent-Length:\r\n"),
        ("CL twice, apart", "Content-Length: 0\r\nX: 1\r\ncontent-length: 5\r\n"),
        ("CL with an underscore", "Content_Length: 5\r\n"),
        ("CL and its look-alike", "Content-Length: 5\r\nContent_Length: 0\r\n"),
        ("CL before a space and a colon", "Content-Length : 5\r\n"),
        ("CL with a space inside", "Content Length: 5\r\n"),
        ("CL folded", "Content-Length:\r\n 5\r\n"),
        ("CL behind a bare LF", "X: 1\nContent-Length: 5\r\n"),
        ("CL without a colon", "Content-Length 5\r\n"),
    ];
    cases.extend(
        lines.map(|(name, fields)| case(name, post(fields, &format!("hello{SMUGGLED}")), Expect::Refused(400))),
    );
    let fits = [
        ("5", "hello", "POST /a [hello]"),
        ("\t 5 \t", "hello", "POST /a [hello]"),
        ("0005", "hello", "POST /a [hello]"),
        ("0", "", "POST /a"),
        ("37", SMUGGLED, "POST /a [GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n]"),
    ];
    for (value, content, expect) in fits {
        let bytes = post(&format!("Content-Length: {value}\r\n"), content);
        cases.push(case(&format!("CL fits: {value:?}"), bytes, passes(&[expect])).seen(&["-transfer-encoding"]));
    }
    cases.push(case("no length, no content", post("", ""), passes(&["POST /a"])));
    cases.push(case(
        "GET with content",
        "GET /a HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello",
        passes(&["GET /a [hello]"]),
    ));
    cases.push(case(
        "GET with chunks",
        "GET /a HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        passes(&["GET /a [hello]"]),
    ));
    cases.push(case(
        "HEAD with chunks",
        "HEAD /a HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        passes(&["HEAD /a [hello]"]),
    ));
    cases
}

/// HTTP/1.0 knows no chunks and keeps no connection unasked.
fn old() -> Vec<Case> {
    let old = |fields: &str, rest: &str| format!("POST /a HTTP/1.0\r\n{fields}\r\n{rest}");
    vec![
        case("1.0 with TE", old("Host: web\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), Expect::Refused(400)),
        case(
            "1.0 with TE and keep-alive",
            old("Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            Expect::Refused(400),
        ),
        case(
            "1.0 with both",
            old("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            Expect::Refused(400),
        ),
        case("1.0 with CL", old("Host: web\r\nContent-Length: 5\r\n", "hello"), ends(&["POST /a [hello]"])),
        case("1.0 without Host", old("Content-Length: 5\r\n", "hello"), ends(&["POST /a [hello]"])),
        case(
            "1.0 kept alive",
            old("Host: web\r\nConnection: keep-alive\r\nContent-Length: 5\r\n", "hello"),
            passes(&["POST /a [hello]"]),
        ),
        case("1.0 with poison behind", old("Host: web\r\n", SMUGGLED), ends(&["POST /a"])),
        case("1.0 with two hosts", old("Host: web\r\nHost: web\r\n", ""), Expect::Refused(400)),
    ]
}
