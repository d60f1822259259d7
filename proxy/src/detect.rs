//! What a connection speaks, judged by its first bytes.
//!
//! [`judge`] is a pure function of the bytes seen so far. [`detect`] reads until it is sure or patience ends, and
//! gives the bytes back with the verdict. A client that says nothing speaks a protocol where the server begins.
//! [`server_name`] finds whom the application's own TLS is meant for, which is all that can be known of it.

use crate::limits;
use crate::tls::Alpn;
use bytes::{Bytes, BytesMut};
use mesh_api::Protocol;
use std::io;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// TLS that another mesh proxy began.
    MeshTls,
    /// TLS of the application.
    Tls,
    /// HTTP/1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else.
    Opaque,
    /// Nothing, and the client closed its side.
    Closed,
    /// Nothing within [`limits::DETECT_SILENCE`].
    Silent,
}

/// The preface of HTTP/2 (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Preface and head of the frame that must follow it: so much tells whether a client means HTTP/2.
pub const HTTP2_GREETING: usize = HTTP2_PREFACE.len() + 9;
/// Longest method in the IANA registry is 17 characters.
const MAX_METHOD: usize = 24;
/// Longest name in the DNS (RFC 1035, section 2.3.4).
const MAX_HOST: usize = 255;
/// Extension numbers (RFC 8446, section 4.2).
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// Reads from a new connection until it is clear what it speaks; `ahead` keeps what was read.
pub async fn detect(tcp: &mut TcpStream) -> io::Result<(Bytes, Spoken)> {
    let mut ahead = BytesMut::with_capacity(2048);
    let opened = Instant::now();
    let mut deadline = opened + limits::DETECT_SILENCE;
    loop {
        match timeout_at(deadline, tcp.read_buf(&mut ahead)).await {
            Err(_) if ahead.is_empty() => return Ok((Bytes::new(), Spoken::Silent)),
            Err(_) => return Ok((ahead.freeze(), Spoken::Opaque)),
            Ok(read) => {
                let ended = read? == 0;
                if let Some(spoken) = judge(&ahead) {
                    return Ok((ahead.freeze(), spoken));
                }
                if ended && ahead.is_empty() {
                    return Ok((Bytes::new(), Spoken::Closed));
                }
                if ended || ahead.len() >= limits::DETECT_BYTES {
                    return Ok((ahead.freeze(), Spoken::Opaque));
                }
                deadline = opened + limits::DETECT_TIMEOUT;
            }
        }
    }
}

/// What to do with a connection, given what is declared of its port and what was seen. What is declared wins, except that
/// the application's own TLS cannot be looked into whatever was declared.
pub fn settle(declared: Protocol, spoken: Spoken) -> Spoken {
    match (declared, spoken) {
        (_, Spoken::Tls | Spoken::MeshTls | Spoken::Closed) => spoken,
        (Protocol::Detect, spoken) => spoken,
        (Protocol::Opaque, _) => Spoken::Opaque,
        (Protocol::Http1, _) => Spoken::Http1,
        (Protocol::Http2 | Protocol::Grpc, _) => Spoken::Http2,
    }
}

/// What a connection that began with `bytes` speaks; `None` if that depends on what follows.
pub fn judge(bytes: &[u8]) -> Option<Spoken> {
    match *bytes.first()? {
        0x16 => judge_tls(bytes),
        b'P' if is_prefix(bytes, HTTP2_PREFACE) => (bytes.len() >= HTTP2_PREFACE.len()).then_some(Spoken::Http2),
        b'A'..=b'Z' | b'a'..=b'z' => judge_http1(bytes),
        _ => Some(Spoken::Opaque),
    }
}

/// True if the bytes begin with HTTP/2's preface and SETTINGS that are no acknowledgement (RFC 9113, section 3.4).
pub fn is_http2_greeting(bytes: &[u8]) -> bool {
    bytes.strip_prefix(HTTP2_PREFACE).is_some_and(|frame| matches!(frame, [_, _, _, 4, flags, ..] if flags & 1 == 0))
}

/// True if the shorter of the two begins the longer.
fn is_prefix(a: &[u8], b: &[u8]) -> bool {
    let n = a.len().min(b.len());
    a[..n] == b[..n]
}

/// HTTP/1 if the first line reads `METHOD target HTTP/1.x`; other line protocols (memcached, inline Redis, SMTP)
/// lack the last word.
fn judge_http1(bytes: &[u8]) -> Option<Spoken> {
    let method = bytes.iter().take(MAX_METHOD).take_while(|b| b.is_ascii_alphabetic() || **b == b'-').count();
    match bytes.get(method) {
        None => return None,
        Some(b' ') => {}
        Some(_) => return Some(Spoken::Opaque),
    }
    match bytes.iter().position(|&b| b == b'\n' || b == 0) {
        Some(end) if bytes[end] == 0 => Some(Spoken::Opaque),
        Some(end) => {
            let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
            let version = line.rsplit(|&b| b == b' ').next().unwrap_or_default();
            let is_http = version.strip_prefix(b"HTTP/1.").is_some_and(|minor| matches!(minor, b"0" | b"1"));
            Some(if is_http { Spoken::Http1 } else { Spoken::Opaque })
        }
        None => None,
    }
}

/// The server name that the client of a TLS connection asks for (RFC 6066, section 3), in lower case; `None` if it
/// names none, or none that could be a host.
pub fn server_name(bytes: &[u8]) -> Option<String> {
    match ClientHello::parse(bytes) {
        Hello::Complete(hello) => hello.server_name,
        Hello::Partial | Hello::Invalid => None,
    }
}

/// Mesh TLS if the ClientHello offers one of our protocol names.
fn judge_tls(bytes: &[u8]) -> Option<Spoken> {
    match ClientHello::parse(bytes) {
        Hello::Complete(hello) if hello.offers_mesh => Some(Spoken::MeshTls),
        Hello::Complete(_) => Some(Spoken::Tls),
        Hello::Partial => None,
        Hello::Invalid => Some(Spoken::Opaque),
    }
}

/// What we need of a TLS ClientHello (RFC 8446, section 4.1.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ClientHello {
    offers_mesh: bool,
    server_name: Option<String>,
}

/// How far a ClientHello could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hello {
    Complete(ClientHello),
    Partial,
    Invalid,
}

impl ClientHello {
    /// Reads a ClientHello from the start of a connection, also if it is spread over several records.
    fn parse(bytes: &[u8]) -> Hello {
        let mut message = Vec::new();
        let mut rest = bytes;
        loop {
            let Some((header, after)) = rest.split_at_checked(5) else {
                return if plausible_header(rest) { Hello::Partial } else { Hello::Invalid };
            };
            if !plausible_header(header) {
                return Hello::Invalid;
            }
            let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
            if length == 0 || length > 16 * 1024 + 256 {
                return Hello::Invalid;
            }
            let fragment = &after[..length.min(after.len())];
            message.extend_from_slice(fragment);
            if message.first().is_some_and(|&kind| kind != 1) {
                return Hello::Invalid;
            }
            if let Some((head, body)) = message.split_at_checked(4) {
                let wanted = (usize::from(head[1]) << 16) | (usize::from(head[2]) << 8) | usize::from(head[3]);
                if wanted > limits::DETECT_BYTES {
                    // Longer than we look: nobody's proxy; TLS all the same.
                    return Hello::Complete(ClientHello::default());
                }
                if let Some(body) = body.get(..wanted) {
                    return Self::parse_body(body).map_or(Hello::Invalid, Hello::Complete);
                }
            }
            if after.len() < length {
                return Hello::Partial;
            }
            rest = &after[length..];
        }
    }

    fn parse_body(body: &[u8]) -> Option<Self> {
        let mut body = Reader(body);
        body.take(2 + 32)?; // version, random
        body.vector8()?; // session
        body.vector16()?; // cipher suites
        body.vector8()?; // compression
        let mut hello = Self::default();
        if !body.0.is_empty() {
            let mut extensions = Reader(body.vector16()?);
            while !extensions.0.is_empty() {
                let kind = extensions.u16()?;
                let data = Reader(extensions.vector16()?);
                match kind {
                    SERVER_NAME => hello.server_name = host_name(data)?,
                    ALPN => hello.offers_mesh = offers_mesh(data)?,
                    _ => {}
                }
            }
        }
        Some(hello)
    }
}

/// The host in a `server_name` extension; names of other kinds are passed over.
fn host_name(mut data: Reader<'_>) -> Option<Option<String>> {
    let mut names = Reader(data.vector16()?);
    let mut host = None;
    while !names.0.is_empty() {
        let kind = names.take(1)?[0];
        let name = names.vector16()?;
        let plausible = !name.is_empty()
            && name.len() <= MAX_HOST
            && name.iter().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(b));
        if kind == 0 && plausible {
            host = Some(String::from_utf8_lossy(name).to_ascii_lowercase());
        }
    }
    Some(host)
}

fn offers_mesh(mut data: Reader<'_>) -> Option<bool> {
    let mut names = Reader(data.vector16()?);
    let mut offers = false;
    while !names.0.is_empty() {
        offers |= Alpn::from_name(names.vector8()?).is_some();
    }
    Some(offers)
}

/// True if the bytes can begin a record that carries a handshake.
fn plausible_header(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|&b| b == 0x16) && bytes.get(1).is_none_or(|&b| b == 3)
}

/// Takes length-prefixed pieces off a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let n = self.take(1)?[0];
        self.take(usize::from(n))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// The first flight of a rustls client that offers `alpn`.
    fn hello(alpn: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
        let mut client = rustls::ClientConnection::new(Arc::new(config), "a.example".try_into().unwrap()).unwrap();
        let mut out = Vec::new();
        client.write_tls(&mut out).unwrap();
        out
    }

    #[test]
    fn first_bytes_tell() {
        let check = |bytes: &[u8], expect: Option<Spoken>| {
            assert_eq!(judge(bytes), expect, "{:?}", String::from_utf8_lossy(bytes));
        };
        check(b"", None);
        check(b"G", None);
        check(b"GET /", None);
        check(b"GET / HTTP/1.1\r\n", Some(Spoken::Http1));
        check(b"GET / HTTP/1.0\nHost: a\n\n", Some(Spoken::Http1));
        check(b"M-SEARCH * HTTP/1.1\r\n", Some(Spoken::Http1));
        check(b"GET / HTTP/1.1 x\r\n", Some(Spoken::Opaque));
        check(b"GET key\r\n", Some(Spoken::Opaque));
        check(b"GET \0 HTTP/1.1\r\n", Some(Spoken::Opaque));
        check(b"GET / HTTP/1.1\r\n\0", Some(Spoken::Http1));
        check(b"PING\r\n", Some(Spoken::Opaque));
        check(b"get key\r\n", Some(Spoken::Opaque));
        check(b"EHLO me\r\n", Some(Spoken::Opaque));
        check(b"*1\r\n$4\r\nPING\r\n", Some(Spoken::Opaque));
        check(b"\0\0\0\x08\x04\xd2\x16\x2f", Some(Spoken::Opaque));
        check(b"SSH-2.0-x\r\n", Some(Spoken::Opaque));
        check(b"PRI * HT", None);
        check(HTTP2_PREFACE, Some(Spoken::Http2));
        check(b"PROPFIND / HTTP/1.1\r\n", Some(Spoken::Http1));
        check(b"PRI * HTTP/2.0\r\nxx", Some(Spoken::Opaque));
        check(b"\x16\x03\x01", None);
        check(b"\x16\x02\x01", Some(Spoken::Opaque));
    }

    #[test]
    fn a_client_hello_tells_mesh_from_application_at_every_cut() {
        for (alpn, expect) in [
            (&[Alpn::Http1.name()][..], Spoken::MeshTls),
            (&[b"other".as_slice(), Alpn::Tcp.name()], Spoken::MeshTls),
            (&[b"h2".as_slice(), b"http/1.1"], Spoken::Tls),
            (&[], Spoken::Tls),
        ] {
            let bytes = hello(alpn);
            for cut in 1..bytes.len() {
                assert_eq!(judge(&bytes[..cut]), None, "cut at {cut}");
            }
            assert_eq!(judge(&bytes), Some(expect));
            // The same, one byte a record.
            let shredded: Vec<u8> = bytes[5..].iter().flat_map(|b| [0x16, 3, 1, 0, 1, *b]).collect();
            assert_eq!(judge(&shredded), Some(expect));
            assert_eq!(server_name(&shredded).as_deref(), Some("a.example"));
        }
    }

    #[test]
    fn what_is_declared_wins_except_over_tls() {
        let check = |declared, spoken, expect| assert_eq!(settle(declared, spoken), expect);
        check(Protocol::Detect, Spoken::Http2, Spoken::Http2);
        check(Protocol::Opaque, Spoken::Http1, Spoken::Opaque);
        check(Protocol::Opaque, Spoken::Silent, Spoken::Opaque);
        check(Protocol::Grpc, Spoken::Opaque, Spoken::Http2);
        check(Protocol::Http1, Spoken::Silent, Spoken::Http1);
        check(Protocol::Http1, Spoken::Http2, Spoken::Http1);
        check(Protocol::Http1, Spoken::Tls, Spoken::Tls);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            judge(&bytes);
            judge(&[b"\x16\x03\x01", bytes.as_slice()].concat());
        }

        #[test]
        fn never_panics_on_a_damaged_hello(at in 0usize..1500, with in any::<u8>()) {
            let mut bytes = hello(&[Alpn::Http2.name()]);
            let at = at % bytes.len();
            bytes[at] = with;
            judge(&bytes);
        }
    }
}
