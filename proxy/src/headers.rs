//! What happens to header fields on the way through: fields of one hop are taken off, ambiguous framing is refused.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode, Version};
use std::time::{Duration, SystemTime};

/// Fields that concern one connection only (RFC 9110, section 7.6.1), beside those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Why a request is refused: two parsers could read it differently.
pub fn ambiguity<B>(request: &Request<B>) -> Option<&'static str> {
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Some("more than one Host field");
    }
    if headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH) {
        return Some("both Transfer-Encoding and Content-Length");
    }
    match request.version() {
        Version::HTTP_11 if host.is_none() => Some("no Host field"),
        Version::HTTP_2 => malformed(request, host),
        _ => None,
    }
}

/// What makes an HTTP/2 request malformed beyond what its codec looks at (RFC 9113, sections 8.2.1 and 8.3.1).
fn malformed<B>(request: &Request<B>, host: Option<&HeaderValue>) -> Option<&'static str> {
    let uri = request.uri();
    match (uri.authority(), host) {
        (None, None) => return Some("no authority"),
        (Some(authority), _) if authority.as_str().contains('@') => return Some("user information in :authority"),
        (Some(_), Some(host)) if disagrees(host, uri) => return Some("Host differs from :authority"),
        (None, Some(host)) if authority(host).is_none() => return Some("Host is no authority"),
        _ => {}
    }
    if uri.scheme_str() == Some("") {
        return Some("an empty :scheme");
    }
    if uri.path() == "*" && request.method() != Method::OPTIONS {
        return Some("an asterisk for :path without OPTIONS");
    }
    has_outer_space(request.headers()).then_some("a field's value begins or ends with a space")
}

/// True if a value begins or ends with whitespace, which HTTP/2 forbids and HTTP/1 takes for no part of it
/// (RFC 9113, section 8.2.1).
pub fn has_outer_space(headers: &HeaderMap) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    headers.values().any(|value| is_space(value.as_bytes().first()) || is_space(value.as_bytes().last()))
}

/// The authority that `Host` names.
pub fn authority(host: &HeaderValue) -> Option<Authority> {
    let text = host.to_str().ok().filter(|text| !text.contains('@'))?;
    text.parse().ok()
}

fn disagrees(host: &HeaderValue, uri: &http::Uri) -> bool {
    uri.authority().is_some_and(|a| !host.as_bytes().eq_ignore_ascii_case(a.as_str().as_bytes()))
}

/// True if the request asks to leave HTTP/1 behind: an upgrade, or a tunnel. An upgrade to HTTP/2 is not passed on
/// (RFC 9113 has dropped it): behind it requests would travel that nobody looks at.
pub fn wants_upgrade<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT
        || (request.version() == Version::HTTP_11
            && request.headers().contains_key(header::UPGRADE)
            && !has_option(request.headers(), &header::UPGRADE, "h2c")
            && has_option(request.headers(), &header::CONNECTION, "upgrade"))
}

/// Why a response is refused: its end could be found in two places, or its coding would be lost on the way.
pub fn response_ambiguity<B>(response: &Response<B>, asked_for_upgrade: bool) -> Option<&'static str> {
    let headers = response.headers();
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !asked_for_upgrade {
        return Some("it switches protocols unasked");
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else {
        let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
        return match (lengths.next(), lengths.next()) {
            (Some(length), None) if !length.as_bytes().iter().all(u8::is_ascii_digit) => {
                Some("Content-Length is not a number")
            }
            (Some(_), Some(_)) => Some("more than one Content-Length"),
            _ => None,
        };
    };
    if headers.contains_key(header::CONTENT_LENGTH) {
        Some("both Transfer-Encoding and Content-Length")
    } else if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        Some("a transfer coding other than chunked")
    } else {
        None
    }
}

/// Takes off what concerns one hop only; `Upgrade` stays if `upgrade`.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    let nominated: Vec<HeaderName> = connection_options(headers)
        .filter(|option| !option.eq_ignore_ascii_case("upgrade") && !option.eq_ignore_ascii_case("te"))
        .filter_map(|option| option.parse().ok())
        // Fields that carry the message itself cannot be made to vanish by naming them.
        .filter(|name| {
            ![header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE, header::AUTHORIZATION].contains(name)
        })
        .collect();
    for name in &nominated {
        headers.remove(name);
    }
    let protocol = headers.get(header::UPGRADE).cloned().filter(|_| upgrade);
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
    // Trailers pass through us, other transfer codings do not.
    if let Some(te) = headers.get(header::TE) {
        let trailers = te.to_str().is_ok_and(|te| te.split(',').any(|t| t.trim().eq_ignore_ascii_case("trailers")));
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(header::TE);
        }
    }
}

/// The value of a cookie (RFC 6265, section 4.2).
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let fields = headers.get_all(header::COOKIE).into_iter().map(HeaderValue::as_bytes);
    let pairs = fields.flat_map(|field| field.split(|b| *b == b';')).map(<[u8]>::trim_ascii);
    pairs.into_iter().find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// The pause that a response asks for, in seconds or until a date (RFC 9110, section 10.2.3). A date counts from the
/// response's own, so that clocks need not agree; only without one from ours.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let said = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !said.is_empty() && said.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(said.parse().unwrap_or(u64::MAX)));
    }
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let until = date(said)?;
    let now = headers.get(header::DATE).and_then(|now| date(now.to_str().ok()?)).unwrap_or_else(SystemTime::now);
    Some(until.duration_since(now).unwrap_or_default())
}

/// What `Connection` says, option by option.
pub fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    options(headers, &header::CONNECTION)
}

fn has_option(headers: &HeaderMap, name: &HeaderName, option: &str) -> bool {
    options(headers, name).any(|o| o.eq_ignore_ascii_case(option))
}

fn options<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|option| !option.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_said_in_seconds_or_by_a_date() {
        let asks = |after: &str, date: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, after.parse().unwrap());
            date.map(|date| headers.insert(header::DATE, date.parse().unwrap()));
            retry_after(&headers)
        };
        let noon = Some("Fri, 20 Nov 2026 12:00:00 GMT");
        for (after, expect) in [
            ("120", Some(120)),
            ("0", Some(0)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Fri, 20 Nov 2026 12:00:30 GMT", Some(30)),
            ("Friday, 20-Nov-26 12:01:00 GMT", Some(60)),
            ("Fri, 20 Nov 2026 11:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(asks(after, noon), expect.map(Duration::from_secs), "{after}");
        }
        // Without a date of the response our clock counts.
        assert_eq!(asks("Wed, 21 Oct 2015 07:28:00 GMT", None), Some(Duration::ZERO));
        assert!(asks("Fri, 31 Dec 9999 00:00:00 GMT", None).unwrap() > Duration::from_secs(1 << 30));
    }

    fn request(version: Version, fields: &[(&str, &str)]) -> Request<()> {
        let mut builder =
            Request::builder().version(version).uri(if version == Version::HTTP_2 { "http://a/" } else { "/" });
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        let h1 = |fields: &[(&str, &str)]| ambiguity(&request(Version::HTTP_11, fields)).is_some();
        assert!(!h1(&[("host", "a")]));
        assert!(h1(&[]));
        assert!(h1(&[("host", "a"), ("host", "a")]));
        assert!(h1(&[("host", "a"), ("content-length", "1"), ("transfer-encoding", "chunked")]));
        let h2 = |fields: &[(&str, &str)]| ambiguity(&request(Version::HTTP_2, fields)).is_some();
        assert!(!h2(&[]) && !h2(&[("host", "A")]) && h2(&[("host", "b")]));
        assert!(
            h2(&[("x", "a ")]) && h2(&[("x", "\ta")]) && !h2(&[("x", "a b")]) && !h1(&[("host", "a"), ("x", "a ")])
        );
        assert!(ambiguity(&request(Version::HTTP_10, &[])).is_none());
    }

    #[test]
    fn an_answer_with_two_ends_is_refused() {
        let refused = |status: u16, asked: bool, fields: &[(&str, &str)]| {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            *response.headers_mut() = request(Version::HTTP_11, fields).headers().clone();
            response_ambiguity(&response, asked).is_some()
        };
        assert!(!refused(200, false, &[]) && !refused(200, false, &[("content-length", "5")]));
        assert!(!refused(200, false, &[("transfer-encoding", "Chunked")]));
        assert!(refused(200, false, &[("transfer-encoding", "gzip, chunked")]));
        assert!(refused(200, false, &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]));
        assert!(refused(200, false, &[("transfer-encoding", "chunked"), ("content-length", "5")]));
        assert!(refused(200, false, &[("content-length", "5"), ("content-length", "5")]));
        assert!(refused(200, false, &[("content-length", "+5")]));
        assert!(refused(101, false, &[]) && !refused(101, true, &[]));
    }

    #[test]
    fn fields_of_one_hop_are_taken_off() {
        let mut headers = request(
            Version::HTTP_11,
            &[
                ("connection", "close, X-Mine"),
                ("connection", "host"),
                ("x-mine", "1"),
                ("host", "a"),
                ("keep-alive", "timeout=5"),
                ("te", "gzip, trailers"),
                ("upgrade", "h2c"),
                ("accept", "*/*"),
            ],
        )
        .headers()
        .clone();
        strip_hop_by_hop(&mut headers, false);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "host", "te"]);
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn an_upgrade_stays_if_it_is_wanted() {
        let request = request(Version::HTTP_11, &[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert!(wants_upgrade(&request));
        let mut headers = request.headers().clone();
        strip_hop_by_hop(&mut headers, true);
        assert_eq!(
            (&headers["connection"], &headers["upgrade"]),
            (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap())
        );
    }
}
