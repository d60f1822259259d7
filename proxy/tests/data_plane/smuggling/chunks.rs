//! Cases about chunks: their sizes, their ends, extensions and trailers.

use super::*;

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";

fn chunked(body: impl AsRef<[u8]>) -> Vec<u8> {
    [b"POST /a HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n", body.as_ref()].concat()
}

pub fn cases() -> Vec<Case> {
    let mut cases = bad_sizes();
    cases.extend(bad_ends());
    cases.extend(bad_trailers());
    cases.extend(good());
    cases
}

fn bad_sizes() -> Vec<Case> {
    let sizes = [
        "",
        " 5",
        "+5",
        "-5",
        "0x5",
        "5h",
        "g",
        "5 5",
        "5,5",
        "5.",
        "\"5\"",
        "5 ",
        "5\t",
        "5\0",
        "\x0b5",
        "5\x0c",
        "10000000000000005",
        "fffffffffffffffff",
        "ffffffffffffffff",
        "00000000000000005",
        "5\u{a0}",
        "_5",
        "5_",
        "\u{0665}",
        "5:",
        "5=1",
        "5 x",
        "5 \t6",
    ];
    let whole = |size: &str| chunked(format!("{size}\r\nhello\r\n0\r\n\r\n{SMUGGLED}"));
    sizes.iter().map(|size| case(&format!("chunk size {size:?}"), whole(size), Expect::Refused(400))).collect()
}

fn bad_ends() -> Vec<Case> {
    let bodies: [(&str, &[u8]); 20] = [
        ("LF behind the size", b"5\nhello\r\n0\r\n\r\n"),
        ("CR behind the size", b"5\rhello\r\n0\r\n\r\n"),
        ("CR CR LF behind the size", b"5\r\r\nhello\r\n0\r\n\r\n"),
        ("LF behind the data", b"5\r\nhello\n0\r\n\r\n"),
        ("CR behind the data", b"5\r\nhello\r0\r\n\r\n"),
        ("nothing behind the data", b"5\r\nhello0\r\n\r\n"),
        ("more data than the size", b"5\r\nhello!\r\n0\r\n\r\n"),
        ("less data than the size", b"6\r\nhello\r\n0\r\n\r\n"),
        ("two bytes instead of a line end", b"5\r\nhelloXX0\r\n\r\n"),
        ("LF LF at the end", b"5\r\nhello\r\n0\n\n"),
        ("LF behind the last size", b"5\r\nhello\r\n0\n\r\n"),
        ("LF behind the trailers", b"5\r\nhello\r\n0\r\n\n"),
        ("CR CR behind the last size", b"5\r\nhello\r\n0\r\r"),
        ("a bare LF in an extension", b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("a bare CR in an extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
        ("NUL in an extension", b"5;a\0b\r\nhello\r\n0\r\n\r\n"),
        ("DEL in an extension", b"5;a\x7fb\r\nhello\r\n0\r\n\r\n"),
        ("an extension that ends in LF", b"5;\nhello\r\n0\r\n\r\n"),
        ("a line of the size's length", b"5;a=\"\nx\"\r\nhello\r\n0\r\n\r\n"),
        ("an empty line before a size", b"\r\n5\r\nhello\r\n0\r\n\r\n"),
    ];
    let with = |body: &[u8]| chunked([body, SMUGGLED.as_bytes()].concat());
    bodies.into_iter().map(|(name, body)| case(name, with(body), Expect::Refused(400))).collect()
}

fn bad_trailers() -> Vec<Case> {
    let bad = [
        ("a length in a trailer", "Content-Length: 5"),
        ("a coding in a trailer", "transfer-encoding: chunked"),
        ("a host in a trailer", "Host: evil"),
        ("a list of trailers in a trailer", "Trailer: x"),
        ("a look-alike of a length in a trailer", "content_length: 5"),
        ("a trailer without a colon", "hello"),
        ("a trailer without a name", ": x"),
        ("a trailer with a space before the colon", "X : 1"),
        ("a trailer folded", "X: 1\r\n 2"),
        ("a trailer with a bare CR", "X: 1\r2"),
        ("a trailer with a bare LF", "X: 1\nY: 2"),
        ("a trailer with NUL", "X: \0"),
        ("a trailer that looks like a request", "GET /smuggled HTTP/1.1"),
    ];
    let mut cases: Vec<Case> = bad
        .into_iter()
        .map(|(name, line)| case(name, chunked(format!("5\r\nhello\r\n0\r\n{line}\r\n\r\n")), Expect::Refused(400)))
        .collect();
    let many: String = (0..120).map(|i| format!("X-{i}: 1\r\n")).collect();
    cases.push(case("too many trailers", chunked(format!("0\r\n{many}\r\n")), Expect::Refused(400)));
    let large = "x".repeat(20_000);
    cases.push(case("too large a trailer", chunked(format!("0\r\nX: {large}\r\n\r\n")), Expect::Refused(400)));
    let large = "x".repeat(70_000);
    cases.push(case(
        "too large an extension",
        chunked(format!("5;{large}\r\nhello\r\n0\r\n\r\n")),
        Expect::Refused(400),
    ));
    cases
}

fn good() -> Vec<Case> {
    let bodies = [
        ("one chunk", "5\r\nhello\r\n0\r\n\r\n", "POST /a [hello]"),
        ("two chunks", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "POST /a [hello]"),
        ("no chunk but the last", "0\r\n\r\n", "POST /a"),
        ("zeros before the size", "0005\r\nhello\r\n000\r\n\r\n", "POST /a [hello]"),
        ("a size in capitals", "A\r\n0123456789\r\n0\r\n\r\n", "POST /a [0123456789]"),
        ("a size in small letters", "a\r\n9876543210\r\n0\r\n\r\n", "POST /a [9876543210]"),
        ("an extension", "5;a=b\r\nhello\r\n0\r\n\r\n", "POST /a [hello]"),
        ("an extension in quotes", "5;a=\"0; \\\" 5\"\r\nhello\r\n0;z\r\n\r\n", "POST /a [hello]"),
        ("an extension behind a space", "5 ;a\r\nhello\r\n0\r\n\r\n", "POST /a [hello]"),
        ("a trailer that nobody announced", "5\r\nhello\r\n0\r\nX: 1\r\n\r\n", "POST /a [hello]"),
        ("data that looks like chunks", "7\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n", "POST /a [0\r\n\r\n\r\n]"),
        (
            "data that looks like a request",
            "25\r\nGET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n\r\n0\r\n\r\n",
            "POST /a [GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n]",
        ),
    ];
    let good = |(name, body, expect)| case(&format!("chunks: {name}"), chunked(body), passes(&[expect]));
    bodies.into_iter().map(good).collect()
}
