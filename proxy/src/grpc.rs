//! What the proxy knows of gRPC: which requests are calls, how long they may take, and how an answer looks that the mesh
//! gives in an application's place (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Version};
use mesh_api::MeshError;
use std::fmt::Write;
use std::time::Duration;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const MESH_ERROR: HeaderName = HeaderName::from_static(mesh_api::names::ERROR_HEADER);
const CONTENT_TYPE: &[u8] = b"application/grpc";

/// How long the caller of a call waits.
pub fn allowed<B>(request: &Request<B>) -> Option<Duration> {
    timeout(request.headers().get(&TIMEOUT)?.as_bytes())
}

/// Has the next hop told how much time is left of what the caller of a call allows.
pub fn tell_left<B>(request: &mut Request<B>, left: Duration) {
    if let Ok(value) = HeaderValue::from_str(&timeout_text(left)) {
        request.headers_mut().insert(TIMEOUT, value);
    }
}

/// True if the request is a call of gRPC; gRPC-Web, which has other trailers, is not.
pub fn is_call<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_2
        && request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|content_type| content_type.as_bytes().strip_prefix(CONTENT_TYPE))
            .is_some_and(|rest| matches!(rest, [] | [b'+' | b';', ..]))
}

/// The status among headers or trailers.
pub fn status(headers: &HeaderMap) -> Option<u16> {
    headers.get(&STATUS)?.to_str().ok()?.parse().ok()
}

/// Changes the status of an answer.
pub fn set_status(headers: &mut HeaderMap, status: u16) {
    headers.insert(STATUS, HeaderValue::from(status));
}

/// True if a call with this status failed for a reason that lies with the server.
pub fn is_failure(status: u16) -> bool {
    matches!(status, 2 | 4 | 13 | 14 | 15)
}

/// Reads the value of `grpc-timeout`: up to eight digits and a unit. What is no timeout bounds nothing.
fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits.iter().fold(0, |amount, digit| amount * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(amount * 3600)),
        b'M' => Some(Duration::from_secs(amount * 60)),
        b'S' => Some(Duration::from_secs(amount)),
        b'm' => Some(Duration::from_millis(amount)),
        b'u' => Some(Duration::from_micros(amount)),
        b'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// A duration as `grpc-timeout` has it, rounded down to the finest unit in which eight digits suffice.
fn timeout_text(left: Duration) -> String {
    const MOST: u128 = 99_999_999;
    let seconds = u128::from(left.as_secs());
    let units = [(left.as_micros(), 'u'), (left.as_millis(), 'm'), (seconds, 'S'), (seconds / 60, 'M')];
    match units.into_iter().find(|(amount, _)| *amount <= MOST) {
        Some((amount, unit)) => format!("{amount}{unit}"),
        None => format!("{}H", (seconds / 3600).min(MOST)),
    }
}

/// The head of an answer that consists of trailers only.
pub fn trailers_only(error: MeshError, detail: &str) -> HeaderMap {
    let mut headers = trailers(error, detail);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers
}

/// The trailers that end a call in place of an application.
pub fn trailers(error: MeshError, detail: &str) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(4);
    trailers.insert(STATUS, HeaderValue::from(error.grpc_status()));
    if let Ok(message) = HeaderValue::from_str(&percent_encode(&error.sentence(detail))) {
        trailers.insert(MESSAGE, message);
    }
    trailers.insert(MESH_ERROR, HeaderValue::from_static(error.code()));
    trailers
}

/// Encodes a text for `grpc-message`: everything but printable ASCII, and the percent sign itself.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => {
                // Writing to a string does not fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_digits_and_a_unit() {
        let ok = [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("10S", Duration::from_secs(10)),
            ("250m", Duration::from_millis(250)),
            ("7u", Duration::from_micros(7)),
            ("0n", Duration::ZERO),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
        ];
        for (text, expect) in ok {
            assert_eq!(timeout(text.as_bytes()), Some(expect), "{text}");
        }
        for text in ["", "S", "10", "10s", "-1S", "+1S", "1.5S", "123456789S", " 1S", "1 S", "1S "] {
            assert_eq!(timeout(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn what_is_left_is_written_in_eight_digits() {
        for (left, expect) in [
            (Duration::ZERO, "0u"),
            (Duration::from_nanos(1_999), "1u"),
            (Duration::from_millis(250), "250000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_000), "1666666M"),
            (Duration::from_secs(99_999_999 * 3600), "99999999H"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(timeout_text(left), expect, "{left:?}");
            assert!(timeout(expect.as_bytes()).is_some_and(|read| read <= left));
        }
    }

    #[test]
    fn messages_are_percent_encoded() {
        for (text, expect) in [
            ("plain: text, `code` & \"quotes\"~", "plain: text, `code` & \"quotes\"~"),
            ("50 %", "50 %25"),
            ("a\nb", "a%0Ab"),
            ("\u{fc}", "%C3%BC"),
            ("\u{7f}\t", "%7F%09"),
        ] {
            assert_eq!(percent_encode(text), expect);
        }
        for error in MeshError::ALL {
            assert!(trailers(*error, "50 %").contains_key(&MESSAGE), "{error}");
        }
    }

    #[test]
    fn calls_are_known_by_their_content_type() {
        for (content_type, expect) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;v=1", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
        ] {
            let request = |version| {
                let builder = Request::builder().version(version).header(header::CONTENT_TYPE, content_type);
                builder.body(()).expect("a request")
            };
            assert_eq!(is_call(&request(Version::HTTP_2)), expect, "{content_type}");
            assert!(!is_call(&request(Version::HTTP_11)), "{content_type}");
        }
    }
}
