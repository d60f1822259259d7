//! Cases about request lines: method, target, version, and what stands before them.

use super::*;

fn line(line: impl AsRef<[u8]>) -> Vec<u8> {
    [line.as_ref(), b"\r\nHost: web\r\n\r\n"].concat()
}

pub fn cases() -> Vec<Case> {
    let mut cases = words();
    cases.extend(versions());
    cases.extend(targets());
    cases.extend(before());
    cases
}

fn words() -> Vec<Case> {
    let bad: [(&str, &[u8]); 25] = [
        ("two spaces behind the method", b"GET  /a HTTP/1.1"),
        ("two spaces behind the target", b"GET /a  HTTP/1.1"),
        ("a space behind the version", b"GET /a HTTP/1.1 "),
        ("a space before the method", b" GET /a HTTP/1.1"),
        ("tabs for spaces", b"GET\t/a\tHTTP/1.1"),
        ("a tab behind the method", b"GET\t/a HTTP/1.1"),
        ("a vertical tab for a space", b"GET\x0b/a HTTP/1.1"),
        ("a form feed for a space", b"GET\x0c/a HTTP/1.1"),
        ("a bare CR for a space", b"GET /a\rHTTP/1.1"),
        ("a space in the target", b"GET /a b HTTP/1.1"),
        ("a tab in the target", b"GET /a\tb HTTP/1.1"),
        ("NUL in the target", b"GET /a\0b HTTP/1.1"),
        ("DEL in the target", b"GET /a\x7f HTTP/1.1"),
        ("a bare CR in the target", b"GET /a\rb HTTP/1.1"),
        ("a bare LF in the target", b"GET /a\nb HTTP/1.1"),
        ("no target", b"GET HTTP/1.1"),
        ("an empty target", b"GET  HTTP/1.1"),
        ("no method", b"/a HTTP/1.1"),
        ("NUL in the method", b"GE\0T /a HTTP/1.1"),
        ("a colon in the method", b"GET: /a HTTP/1.1"),
        ("brackets in the method", b"(GET) /a HTTP/1.1"),
        ("a method in Latin-1", b"G\xcbT /a HTTP/1.1"),
        ("a line that ends in CR CR LF", b"GET /a HTTP/1.1\r"),
        ("a line that is a field", b"Host: web"),
        ("two versions", b"GET /a HTTP/1.1 HTTP/1.1"),
    ];
    let mut cases: Vec<Case> =
        bad.into_iter().map(|(name, bytes)| case(name, line(bytes), Expect::Refused(400))).collect();
    cases.push(case("a line that ends in LF", "GET /a HTTP/1.1\nHost: web\r\n\r\n", Expect::Refused(400)));
    cases.push(case("a head of LF only", "GET /a HTTP/1.1\nHost: web\n\n", Expect::Refused(400)));
    for method in ["get", "PATCH", "PURGE", "M-SEARCH", "VERSION-CONTROL", "TRACE"] {
        let expect = format!("{method} /a");
        cases.push(case(&format!("method {method}"), line(format!("{method} /a HTTP/1.1")), passes(&[&expect])));
    }
    cases
}

fn versions() -> Vec<Case> {
    let versions = [
        ("HTTP/2.0", 505),
        ("HTTP/1.2", 505),
        ("HTTP/0.9", 505),
        ("HTTP/3.0", 505),
        ("HTTP/9.9", 505),
        ("HTTP/1.10", 400),
        ("HTTP/1.01", 400),
        ("HTTP/01.1", 400),
        ("HTTP/1,1", 400),
        ("HTTP/1", 400),
        ("HTTP/1.", 400),
        ("HTTP/1.1x", 400),
        ("HTTP/+1.1", 400),
        ("HTTP / 1.1", 400),
        ("http/1.1", 400),
        ("HTTPS/1.1", 400),
        ("ICY/1.1", 400),
    ];
    let mut cases: Vec<Case> = versions
        .into_iter()
        .map(|(version, status)| case(version, line(format!("GET /a {version}")), Expect::Refused(status)))
        .collect();
    cases.push(case("no version (HTTP/0.9)", line("GET /a"), Expect::Refused(400)));
    cases
}

fn targets() -> Vec<Case> {
    let bad = [
        ("a target without a slash", "GET a HTTP/1.1"),
        ("dots without a slash", "GET ../a HTTP/1.1"),
        ("a query without a path", "GET ?x HTTP/1.1"),
        ("a fragment", "GET /a#b HTTP/1.1"),
        ("only a fragment", "GET #b HTTP/1.1"),
        ("angle brackets", "GET /<a> HTTP/1.1"),
        ("an asterisk with GET", "GET * HTTP/1.1"),
        ("an asterisk and more", "OPTIONS *a HTTP/1.1"),
        ("authority form with GET", "GET web:80 HTTP/1.1"),
        ("absolute form, another host", "GET http://evil/a HTTP/1.1"),
        ("absolute form, another port", "GET http://web:81/a HTTP/1.1"),
        ("absolute form, user information", "GET http://web@evil/a HTTP/1.1"),
        ("absolute form, a user of the host", "GET http://me@web/a HTTP/1.1"),
        ("absolute form, no host", "GET http:///a HTTP/1.1"),
        ("absolute form, no scheme", "GET ://web/a HTTP/1.1"),
        ("absolute form, no slashes", "GET http:/a HTTP/1.1"),
        ("absolute form, a fragment", "GET http://web/a#b HTTP/1.1"),
        ("absolute form, the host in the query", "GET http://evil?http://web/ HTTP/1.1"),
        ("absolute form, a backslash", "GET http://evil\\@web/a HTTP/1.1"),
        ("CONNECT to a path", "CONNECT /a HTTP/1.1"),
        ("CONNECT to a URI", "CONNECT http://web/ HTTP/1.1"),
        ("CONNECT without a port", "CONNECT web HTTP/1.1"),
        ("CONNECT to an asterisk", "CONNECT * HTTP/1.1"),
        ("CONNECT with user information", "CONNECT me@web:80 HTTP/1.1"),
        ("CONNECT elsewhere than Host says", "CONNECT evil:80 HTTP/1.1"),
        ("CONNECT to a port that is none", "CONNECT web:http HTTP/1.1"),
    ];
    let mut cases: Vec<Case> =
        bad.into_iter().map(|(name, bytes)| case(name, line(bytes), Expect::Refused(400))).collect();
    let long = format!("GET /{} HTTP/1.1", "a".repeat(40_000));
    cases.push(case("too long a target", line(long), Expect::Refused(414)));
    let good = [
        "GET /a?b=c&d=%20;e HTTP/1.1",
        "GET // HTTP/1.1",
        "GET //evil/a HTTP/1.1",
        "GET /../../a HTTP/1.1",
        "GET /a%0d%0aX:%201 HTTP/1.1",
        "GET /%00 HTTP/1.1",
        "GET /?http://evil/ HTTP/1.1",
        "GET /{a}|\"b\" HTTP/1.1",
        "GET http://web/a HTTP/1.1",
        "GET http://WEB:80/a?b HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "OPTIONS /a HTTP/1.1",
    ];
    for request in good {
        let expect = request.strip_suffix(" HTTP/1.1").unwrap();
        cases.push(case(&format!("passes: {expect}"), line(request), passes(&[expect])));
    }
    cases
}

fn before() -> Vec<Case> {
    vec![
        case("an empty line before", line("\r\nGET /a HTTP/1.1"), passes(&["GET /a"])),
        case("two empty lines before", line("\r\n\r\nGET /a HTTP/1.1"), Expect::Refused(400)),
        case("LF before", line("\nGET /a HTTP/1.1"), Expect::Refused(400)),
        case("CR before", line("\rGET /a HTTP/1.1"), Expect::Refused(400)),
        case("CR CR LF before", line("\r\r\nGET /a HTTP/1.1"), Expect::Refused(400)),
        case("NUL before", line("\0GET /a HTTP/1.1"), Expect::Refused(400)),
        case("a byte order mark before", line("\u{feff}GET /a HTTP/1.1"), Expect::Refused(400)),
        case("the preface of HTTP/2 as a request", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Expect::Refused(505)),
    ]
}
