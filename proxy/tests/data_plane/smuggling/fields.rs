//! Cases about header fields: names, values, `Host`, `Connection`, and how many there may be.

use super::*;

fn get(fields: impl AsRef<[u8]>) -> Vec<u8> {
    [b"GET /a HTTP/1.1\r\nHost: web\r\n", fields.as_ref(), b"\r\n"].concat()
}

pub fn cases() -> Vec<Case> {
    let mut cases = names_and_values();
    cases.extend(hosts());
    cases.extend(nominated());
    cases.extend(sizes());
    cases
}

fn names_and_values() -> Vec<Case> {
    let bad: [(&str, &[u8]); 27] = [
        ("a space before the colon", b"X : 1\r\n"),
        ("a tab before the colon", b"X\t: 1\r\n"),
        ("a space in a name", b"X Y: 1\r\n"),
        ("no name", b": 1\r\n"),
        ("no colon", b"X\r\n"),
        ("NUL in a name", b"X\0: 1\r\n"),
        ("DEL in a name", b"X\x7f: 1\r\n"),
        ("a name in quotes", b"\"X\": 1\r\n"),
        ("a name in Latin-1", b"\xe4: 1\r\n"),
        ("a name in UTF-8", b"\xc3\xa4: 1\r\n"),
        ("brackets in a name", b"X[0]: 1\r\n"),
        ("a slash in a name", b"X/Y: 1\r\n"),
        ("an at sign in a name", b"X@Y: 1\r\n"),
        ("a bare CR in a name", b"X\rY: 1\r\n"),
        ("NUL in a value", b"X: a\0b\r\n"),
        ("SOH in a value", b"X: a\x01b\r\n"),
        ("ESC in a value", b"X: \x1b[0m\r\n"),
        ("a vertical tab in a value", b"X: a\x0bb\r\n"),
        ("a form feed in a value", b"X: a\x0cb\r\n"),
        ("a backspace in a value", b"X: a\x08b\r\n"),
        ("DEL in a value", b"X: a\x7fb\r\n"),
        ("a bare CR in a value", b"X: a\rY: b\r\n"),
        ("a bare LF in a value", b"X: a\nY: b\r\n"),
        ("CR CR LF at a line's end", b"X: a\r\r\n"),
        ("a folded value", b"X: a\r\n b\r\n"),
        ("a value folded with a tab", b"X: a\r\n\tb\r\n"),
        ("a line of white space", b"X: a\r\n \r\nY: b\r\n"),
    ];
    let mut cases: Vec<Case> =
        bad.into_iter().map(|(name, fields)| case(name, get(fields), Expect::Refused(400))).collect();
    cases.push(case("the first field folded", "GET /a HTTP/1.1\r\n Host: web\r\n\r\n", Expect::Refused(400)));
    cases.push(case("fields that end in LF", "GET /a HTTP/1.1\r\nHost: web\nX: 1\n\n", Expect::Refused(400)));
    cases.push(case("an empty line of LF", "GET /a HTTP/1.1\r\nHost: web\r\n\n", Expect::Refused(400)));
    let good: [(&str, &[u8], &[&str]); 8] = [
        ("no value", b"X-Empty:\r\n", &["+x-empty"]),
        ("white space only", b"X-Blank: \t \r\n", &["+x-blank"]),
        ("a tab in a value", b"X-Tab: a\tb\r\n", &["+x-tab: a\tb"]),
        ("UTF-8 in a value", "X-Name: J\u{fc}rgen\r\n".as_bytes(), &["+x-name"]),
        ("a colon in a value", b"X-Time: 12:30\r\n", &["+x-time: 12:30"]),
        ("all of a token in a name", b"!#$%&'*+-.^_`|~9z: 1\r\n", &["+!#$%&'*+-.^_`|~9z"]),
        ("the same field twice", b"X-Two: 1\r\nX-Two: 2\r\n", &["+x-two: 1", "+x-two: 2"]),
        ("no space behind the colon", b"X-Close:1\r\n", &["+x-close: 1"]),
    ];
    for (name, fields, seen) in good {
        cases.push(Case { seen: seen.to_vec(), ..case(&format!("field: {name}"), get(fields), passes(&["GET /a"])) });
    }
    cases
}

fn hosts() -> Vec<Case> {
    let host = |lines: &str| format!("GET /a HTTP/1.1\r\n{lines}\r\n");
    let bad = [
        ("no Host", "X: 1\r\n"),
        ("two Hosts", "Host: web\r\nHost: evil\r\n"),
        ("the same Host twice", "Host: web\r\nHost: web\r\n"),
        ("two Hosts apart", "Host: web\r\nX: 1\r\nhost: evil\r\n"),
        ("a list in Host", "Host: web, evil\r\n"),
        ("user information in Host", "Host: web@evil\r\n"),
        ("a URI in Host", "Host: http://web\r\n"),
        ("a path in Host", "Host: web/evil\r\n"),
        ("a query in Host", "Host: web?x\r\n"),
        ("a space in Host", "Host: web evil\r\n"),
        ("a tab in Host", "Host: web\tevil\r\n"),
        ("a port that is none", "Host: web:http\r\n"),
        ("two ports", "Host: web:80:80\r\n"),
        ("a port too long", "Host: web:800000\r\n"),
        ("a negative port", "Host: web:-80\r\n"),
        ("an IPv6 address without brackets", "Host: fe80::1\r\n"),
        ("brackets with something else", "Host: [web]\r\n"),
        ("brackets not closed", "Host: [::1\r\n"),
        ("something behind brackets", "Host: [::1]x\r\n"),
        ("NUL in Host", "Host: web\0evil\r\n"),
        ("percent signs in Host", "Host: web%00evil\r\n"),
        ("a backslash in Host", "Host: web\\evil\r\n"),
        ("only a port", "Host: :80\r\n"),
        ("Host before a space and a colon", "Host : web\r\n"),
        ("Host in UTF-8", "Host: w\u{e9}b\r\n"),
    ];
    let mut cases: Vec<Case> =
        bad.into_iter().map(|(name, lines)| case(name, host(lines), Expect::Refused(400))).collect();
    for value in ["web", "web:80", "WEB.shop.svc", "10.0.0.1:8080", "[::1]", "[fd00::1]:80", "a_b-c.d", "web:", ""] {
        cases.push(case(&format!("Host {value:?}"), host(&format!("Host: {value}\r\n")), passes(&["GET /a"])));
    }
    cases
}

/// What `Connection` names concerns one hop and stays behind, but it cannot take the message itself apart.
fn nominated() -> Vec<Case> {
    let post = |fields: &str| format!("POST /a HTTP/1.1\r\nHost: web\r\n{fields}Content-Length: 5\r\n\r\nhello");
    let named = |name: &str, fields: &str, seen: &[&'static str]| {
        case(name, post(fields), passes(&["POST /a [hello]"])).seen(seen)
    };
    vec![
        named("Connection: Host", "Connection: Host\r\n", &["+host: web"]),
        named("Connection: Content-Length", "Connection: Content-Length\r\n", &["+content-length: 5"]),
        named(
            "Connection: Authorization",
            "Connection: Authorization\r\nAuthorization: me\r\n",
            &["+authorization: me"],
        ),
        named("Connection: a field", "Connection: X-Mine\r\nX-Mine: 1\r\nX-Yours: 2\r\n", &["-x-mine", "+x-yours: 2"]),
        named("Connection: several", "Connection: X-A, ,X-B\r\nX-A: 1\r\nX-B: 1\r\n", &["-x-a", "-x-b"]),
        named("Connection twice", "Connection: X-A\r\nConnection: X-B\r\nX-A: 1\r\nX-B: 1\r\n", &["-x-a", "-x-b"]),
        named("Connection: TE", "Connection: TE\r\nTE: trailers\r\n", &["+te: trailers"]),
        named("TE with codings", "TE: gzip, deflate;q=0.5\r\n", &["-te"]),
        named("Keep-Alive", "Keep-Alive: timeout=9\r\n", &["-keep-alive"]),
        named("Proxy-Connection", "Proxy-Connection: keep-alive\r\n", &["-proxy-connection"]),
        named("Connection: Connection", "Connection: Connection\r\n", &["-x-none", "+host"]),
        named("an empty Connection", "Connection:\r\n", &["+host: web"]),
        case(
            "Connection: close and poison",
            format!("{}GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n", post("Connection: close\r\n")),
            ends(&["POST /a [hello]"]),
        ),
        case("Connection: CLOSE among others", post("Connection: x, CLOSE\r\n"), ends(&["POST /a [hello]"])),
    ]
}

fn sizes() -> Vec<Case> {
    let lines = |n: usize| (0..n).map(|i| format!("X-{i}: {i}\r\n")).collect::<String>();
    vec![
        case("99 fields", get(lines(98)), passes(&["GET /a"])),
        case("101 fields", get(lines(100)), Expect::Refused(431)),
        case("a large field", get(format!("X: {}\r\n", "x".repeat(50_000))), passes(&["GET /a"])),
        case("too large a field", get(format!("X: {}\r\n", "x".repeat(65_000))), Expect::Refused(431)),
        case("far too large a head", get(format!("X: {}\r\n", "x".repeat(1_000_000))), Expect::Refused(431)),
    ]
}
