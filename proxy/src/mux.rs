//! HTTP/1 exchanges between two proxies as streams of one HTTP/2 connection, instead of a connection each.
//!
//! Only the carriage is HTTP/2: the sending proxy folds a request into the form a stream has, the receiving one
//! unfolds it, and its application sees what it would have seen over HTTP/1. Requests that a stream cannot carry
//! unchanged (upgrades, tunnels, targets in other forms than a path) go over pooled HTTP/1 connections.

use http::header::{self, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Uri, Version};
use hyper::body::Body;

/// True if a stream can carry the request so that [`unfold`] restores it.
pub fn carries<B>(request: &Request<B>) -> bool {
    let uri = request.uri();
    request.version() == Version::HTTP_11
        && *request.method() != Method::CONNECT
        && uri.scheme().is_none()
        && uri.authority().is_none()
        && uri.path().starts_with('/')
        && !request.headers().contains_key(header::UPGRADE)
        && !request.headers().contains_key(header::EXPECT)
        && authority(request).is_some()
}

/// The form for a stream: the host as authority. A request that [`carries`] denies stays as it is.
pub fn fold<B>(mut request: Box<Request<B>>) -> Box<Request<B>> {
    let Some(authority) = authority(&request) else { return request };
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    // Scheme, authority and path are all there, which is the one thing `from_parts` asks for.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    request.headers_mut().remove(header::HOST);
    // A stream has an end of its own (RFC 9113, section 8.2.2); the receiving proxy chooses chunks again.
    request.headers_mut().remove(header::TRANSFER_ENCODING);
    *request.version_mut() = Version::HTTP_2;
    request
}

/// The HTTP/1 request that was folded.
pub fn unfold<B: Body>(request: &mut Request<B>) {
    let parts = std::mem::take(request.uri_mut()).into_parts();
    if let Some(host) = parts.authority.and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
        request.headers_mut().insert(header::HOST, host);
    }
    *request.uri_mut() = Uri::from(parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")));
    if !request.headers().contains_key(header::CONTENT_LENGTH) && !request.body().is_end_stream() {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    *request.version_mut() = Version::HTTP_11;
}

/// The one `Host` as an authority that is the same text.
fn authority<B>(request: &Request<B>) -> Option<Authority> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next().filter(|_| hosts.next().is_none())?;
    Authority::try_from(host.as_bytes())
        .ok()
        .filter(|a| a.as_str().as_bytes() == host.as_bytes() && !a.as_str().contains('@'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::Full;

    fn request(method: &str, target: &str, fields: &[(&str, &str)]) -> Box<Request<Full<Bytes>>> {
        let mut builder = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        Box::new(builder.body(Full::default()).unwrap())
    }

    #[test]
    fn what_is_unfolded_is_what_was_folded() {
        for (target, host) in [("/", "a"), ("/a%20b?c=d&e", "Shop.example:8080"), ("/x?", "[::1]:80"), ("//a/b", "a.b")]
        {
            let sent = request("POST", target, &[("host", host), ("x-a", "1"), ("x-a", "2")]);
            assert!(carries(&sent), "{target} {host}");
            let mut got = fold(sent.clone());
            assert_eq!(got.uri().authority().map(Authority::as_str), Some(host));
            assert!(!got.headers().contains_key(header::HOST) && got.version() == Version::HTTP_2);
            unfold(&mut got);
            assert_eq!((got.uri(), got.version(), got.headers()), (sent.uri(), sent.version(), sent.headers()));
        }
    }

    #[test]
    fn a_body_of_unknown_length_stays_one() {
        let sent = request("GET", "/", &[("host", "a"), ("transfer-encoding", "chunked")]);
        let sent = Box::new(sent.map(|_| Full::new(Bytes::from_static(b"x"))));
        let mut got = fold(sent);
        assert!(!got.headers().contains_key(header::TRANSFER_ENCODING));
        unfold(&mut got);
        assert_eq!(got.headers()[header::TRANSFER_ENCODING], "chunked");
    }

    #[test]
    fn what_a_stream_would_change_goes_another_way() {
        let host = ("host", "a");
        for (method, target, fields) in [
            ("CONNECT", "a:80", &[host][..]),
            ("OPTIONS", "*", &[host]),
            ("GET", "http://a/b", &[host]),
            ("GET", "/", &[]),
            ("GET", "/", &[("host", "")]),
            ("GET", "/", &[("host", "a/b")]),
            ("GET", "/", &[("host", "user@a")]),
            ("GET", "/", &[host, ("upgrade", "websocket")]),
            ("PUT", "/", &[host, ("expect", "100-continue")]),
        ] {
            assert!(!carries(&request(method, target, fields)), "{method} {target} {fields:?}");
        }
    }
}
