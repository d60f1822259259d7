//! The head of an HTTP/1 request, judged byte by byte before anybody acts on it (RFC 9112; smuggling: section 11.2).
//!
//! The codec behind this is lenient in places where leniency lets two parsers disagree: it takes a bare LF for a line
//! end, drops `Content-Length` beside `Transfer-Encoding`, cuts fragments off targets. What passes here has one reading
//! only. The codec still parses the request itself; this is a veto, never a second opinion on where a body ends.
//!
//! It allocates and copies nothing: line ends and colons are found by `memchr`, names are looked up byte by byte in a
//! table, and forbidden control characters by a loop that the compiler turns into vector instructions.

use crate::limits;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Status of the answer.
    pub status: u16,
    /// What is wrong, for the client's author.
    pub why: &'static str,
}

impl Refusal {
    /// A malformed or ambiguous request: 400.
    pub const fn bad(why: &'static str) -> Self {
        Self { status: 400, why }
    }
}

/// How long a request's content is (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Exactly so many bytes, perhaps none.
    Length(u64),
    /// Chunks until the last one.
    Chunked,
}

/// What follows a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The request's content.
    pub content: Content,
    /// True if the connection may carry something else than HTTP after the answer.
    pub leaves_http: bool,
    /// True if no further request follows on this connection, for certain.
    pub last: bool,
}

/// Where the section that starts with `bytes` ends: behind its first empty line. `None`: not within `bytes`.
/// Lines before `seen` were looked at in an earlier call.
pub fn end(bytes: &[u8], seen: usize) -> Result<Option<usize>, Refusal> {
    // The line that `seen` is in begins behind the last line end before it.
    let mut line = memchr::memrchr(b'\n', &bytes[..seen]).map_or(0, |at| at + 1);
    let from = line;
    for at in memchr::memchr_iter(b'\n', &bytes[from..]).map(|at| from + at) {
        if at == line || bytes[at - 1] != b'\r' {
            return Err(Refusal::bad("a line ends in a bare LF"));
        }
        if at - line == 1 {
            return Ok(Some(at + 1));
        }
        line = at + 1;
    }
    Ok(None)
}

/// Judges the head that `bytes` begin with, up to and with the empty line behind it, and says how long it is. `None`: it
/// is not complete. Lines before `seen` were looked at in an earlier call.
pub fn inspect(bytes: &[u8], seen: usize) -> Result<Option<(usize, Head)>, Refusal> {
    // What arrives in pieces is not judged again with every piece.
    if seen > 0 && end(bytes, seen)?.is_none() {
        return Ok(None);
    }
    walk(bytes).or_else(|refusal| end(bytes, 0)?.map_or(Ok(None), |_| Err(refusal)))
}

fn walk(bytes: &[u8]) -> Result<Option<(usize, Head)>, Refusal> {
    let mut at = 0;
    let Some(line) = next_line(bytes, &mut at)? else { return Ok(None) };
    let line = RequestLine::parse(line)?;
    let mut fields = Fields::default();
    loop {
        match next_line(bytes, &mut at)? {
            None => return Ok(None),
            Some([]) => break,
            Some(field) => fields.add(line, field)?,
        }
    }
    plain_text(&bytes[..at])?;
    Ok(Some((at, fields.settle(line)?)))
}

/// The line at `at`, without its CRLF.
fn next_line<'a>(bytes: &'a [u8], at: &mut usize) -> Result<Option<&'a [u8]>, Refusal> {
    let rest = &bytes[*at..];
    let Some(lf) = memchr::memchr(b'\n', rest) else { return Ok(None) };
    *at += lf + 1;
    match &rest[..lf] {
        [line @ .., b'\r'] => Ok(Some(line)),
        _ => Err(Refusal::bad("a line ends in a bare LF")),
    }
}

/// Judges the trailer section of a chunked body, the empty line at its end included.
pub fn inspect_trailers(section: &[u8]) -> Result<(), Refusal> {
    plain_text(section)?;
    let (mut at, mut count) = (0, 0);
    while let Some(field) = next_line(section, &mut at)?.filter(|line| !line.is_empty()) {
        count += 1;
        if count > limits::HTTP1_FIELDS {
            return Err(Refusal { status: 431, why: "too many trailer fields" });
        }
        let (name, _) = split(field)?;
        let framing: [&[u8]; 4] = [b"content-length", b"transfer-encoding", b"host", b"trailer"];
        if framing.iter().any(|forbidden| alike(name, forbidden)) {
            return Err(Refusal::bad("a trailer field that belongs into the head"));
        }
    }
    Ok(())
}

/// Checks that there are no control characters but tabs and the CRLFs of line ends, which have been found in order.
fn plain_text(section: &[u8]) -> Result<(), Refusal> {
    let (mut control, mut crs, mut lfs) = (false, 0usize, 0usize);
    // Sums of bytes over short pieces, so that the compiler can use vector instructions.
    for piece in section.chunks(128) {
        let (mut bad, mut cr, mut lf) = (0u8, 0u8, 0u8);
        for &b in piece {
            let (is_cr, is_lf) = (u8::from(b == b'\r'), u8::from(b == b'\n'));
            bad |= (u8::from(b < b' ') & u8::from(b != b'\t') & (is_cr ^ 1) & (is_lf ^ 1)) | u8::from(b == 0x7f);
            cr += is_cr;
            lf += is_lf;
        }
        control |= bad != 0;
        crs += usize::from(cr);
        lfs += usize::from(lf);
    }
    if control {
        return Err(Refusal::bad("a control character in the head"));
    }
    if crs != lfs { Err(Refusal::bad("a bare CR in the head")) } else { Ok(()) }
}

/// The request line (RFC 9112, section 3).
#[derive(Clone, Copy, Debug)]
struct RequestLine<'a> {
    connect: bool,
    target: &'a [u8],
    form: Form,
    minor: u8,
}

/// Forms of a target (RFC 9112, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Origin,
    Absolute,
    Authority,
    Asterisk,
}

impl<'a> RequestLine<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, Refusal> {
        let mut words = line.split(|&b| b == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Refusal::bad("the request line is not method, target and version, one space apart"));
        };
        if !is_token(method) {
            return Err(Refusal::bad("the method is no token"));
        }
        let minor = match version {
            b"HTTP/1.1" => 1,
            b"HTTP/1.0" => 0,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
                return Err(Refusal { status: 505, why: "a version of HTTP that is neither 1.0 nor 1.1" });
            }
            _ => return Err(Refusal::bad("the request line does not end in a version of HTTP")),
        };
        let form = form(method, target)?;
        Ok(Self { connect: method == b"CONNECT", target, form, minor })
    }
}

/// Checks that the target is well-formed and fits the method.
fn form(method: &[u8], target: &[u8]) -> Result<Form, Refusal> {
    if target.len() > limits::HTTP1_TARGET {
        return Err(Refusal { status: 414, why: "the target is too long" });
    }
    let form = match target {
        b"*" => Form::Asterisk,
        [b'/', ..] => Form::Origin,
        _ if method == b"CONNECT" => Form::Authority,
        _ => Form::Absolute,
    };
    let harmless = form == Form::Origin && target.iter().all(|&b| TARGET[usize::from(b)]);
    if !harmless {
        if target.contains(&b'#') {
            return Err(Refusal::bad("a fragment in the target"));
        }
        // The codec will take it for the same, or not at all.
        let parsed = http::Uri::try_from(target).map_err(|_| Refusal::bad("the target is no URI"))?;
        match form {
            Form::Absolute if !has_scheme(target) || !is_host(authority(target)) => {
                return Err(Refusal::bad("the target is neither a path nor a URI with a plain host"));
            }
            Form::Authority if parsed.port_u16().is_none() || !is_host(target) => {
                return Err(Refusal::bad("the target of CONNECT is not a host and a port"));
            }
            _ => {}
        }
    }
    match (form, method) {
        (Form::Asterisk, b"OPTIONS") | (Form::Authority, _) => Ok(form),
        (Form::Asterisk, _) => Err(Refusal::bad("the target * with another method than OPTIONS")),
        (_, b"CONNECT") => Err(Refusal::bad("the target of CONNECT is not a host and a port")),
        _ => Ok(form),
    }
}

/// True if the target begins with a scheme and its slashes (RFC 3986, section 3.1).
fn has_scheme(target: &[u8]) -> bool {
    memchr::memmem::find(target, b"://").is_some_and(|at| {
        let scheme = &target[..at];
        scheme.first().is_some_and(u8::is_ascii_alphabetic)
            && scheme.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    })
}

/// The authority of an absolute-form target.
fn authority(target: &[u8]) -> &[u8] {
    let start = memchr::memmem::find(target, b"://").map_or(target.len(), |at| at + 3);
    let rest = &target[start..];
    &rest[..rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len())]
}

/// What the fields of a head say about its framing.
#[derive(Debug, Default)]
struct Fields<'a> {
    count: usize,
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    close: bool,
    connection: bool,
}

impl<'a> Fields<'a> {
    fn add(&mut self, line: RequestLine<'_>, field: &'a [u8]) -> Result<(), Refusal> {
        self.count += 1;
        if self.count > limits::HTTP1_FIELDS {
            return Err(Refusal { status: 431, why: "too many header fields" });
        }
        let (name, value) = split(field)?;
        // Most names are told apart by their length.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                if self.host.replace(value).is_some() {
                    return Err(Refusal::bad("more than one Host field"));
                }
                if !value.is_empty() && !is_host(value) {
                    return Err(Refusal::bad("Host is not a host with an optional port"));
                }
            }
            7 if line.minor == 1 && name.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
            10 if name.eq_ignore_ascii_case(b"connection") => {
                self.connection = true;
                self.close |= value.split(|&b| b == b',').any(|o| o.trim_ascii().eq_ignore_ascii_case(b"close"));
            }
            14 if alike(name, b"content-length") => {
                let length = (name[7] == b'-').then(|| digits(value)).flatten();
                let length = length.ok_or(Refusal::bad("Content-Length is not a number"))?;
                if self.length.replace(length).is_some() {
                    return Err(Refusal::bad("more than one Content-Length"));
                }
            }
            17 if alike(name, b"transfer-encoding") => {
                if line.minor == 0 || name[8] != b'-' {
                    return Err(Refusal::bad("Transfer-Encoding in a message that cannot have it"));
                }
                if std::mem::replace(&mut self.chunked, true) {
                    return Err(Refusal::bad("more than one Transfer-Encoding"));
                }
                coding(value)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn settle(self, line: RequestLine<'_>) -> Result<Head, Refusal> {
        if self.chunked && self.length.is_some() {
            return Err(Refusal::bad("both Transfer-Encoding and Content-Length"));
        }
        match self.host {
            None if line.minor == 1 => return Err(Refusal::bad("no Host field")),
            Some(host) if line.form == Form::Absolute && !same_host(line.target, host) => {
                return Err(Refusal::bad("Host differs from the target's host"));
            }
            Some(host) if line.form == Form::Authority && !host.is_empty() && !same_authority(line.target, host) => {
                return Err(Refusal::bad("Host differs from the target's host"));
            }
            _ => {}
        }
        if line.connect && (self.chunked || self.length.is_some_and(|n| n > 0)) {
            return Err(Refusal::bad("CONNECT with content"));
        }
        Ok(Head {
            content: if self.chunked { Content::Chunked } else { Content::Length(self.length.unwrap_or(0)) },
            leaves_http: line.connect || self.upgrade,
            last: self.close || (line.minor == 0 && !self.connection),
        })
    }
}

/// Name and value of a field (RFC 9112, section 5).
fn split(field: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if let Some(colon) = memchr::memchr(b':', field)
        && colon > 0
        && field[..colon].iter().fold(true, |token, &b| token & TOKEN[usize::from(b)])
    {
        return Ok((&field[..colon], trim(&field[colon + 1..])));
    }
    let at = field.iter().position(|&b| !TOKEN[usize::from(b)]);
    match at.map(|at| field[at]) {
        Some(b' ' | b'\t') if at == Some(0) => Err(Refusal::bad("a folded header line")),
        Some(b' ' | b'\t') => Err(Refusal::bad("white space in or behind a field name")),
        Some(_) => Err(Refusal::bad("a field name is no token")),
        None => Err(Refusal::bad("a header line without a colon")),
    }
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Checks the one transfer coding we take: chunked, and nothing before it.
fn coding(value: &[u8]) -> Result<(), Refusal> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let known: [&[u8]; 5] = [b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress"];
    let mut codings = value.rsplit(|&b| b == b',').map(trim);
    let chunked = codings.next().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"));
    if chunked && codings.all(|coding| known.iter().any(|k| coding.eq_ignore_ascii_case(k))) {
        return Err(Refusal { status: 501, why: "a transfer coding other than chunked" });
    }
    Err(Refusal::bad("Transfer-Encoding is not chunked"))
}

/// A decimal number without sign, below 2^63 so that no parser's arithmetic overflows.
fn digits(value: &[u8]) -> Option<u64> {
    let plain = (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let number = value.iter().filter(|_| plain).fold(0u64, |n, b| n * 10 + u64::from(b - b'0'));
    (plain && number <= i64::MAX as u64).then_some(number)
}

/// True if the two are the same name, or one is what a CGI-style server makes of the other.
fn alike(name: &[u8], known: &[u8]) -> bool {
    name.len() == known.len()
        && name.iter().zip(known).all(|(a, b)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-'))
}

/// True for a host with an optional port, without user information (RFC 9110, sections 4.2.4 and 7.2).
fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value {
        [b'[', ..] => match value.iter().position(|&b| b == b']') {
            Some(at) => value.split_at(at + 1),
            None => return false,
        },
        _ => value.split_at(value.iter().position(|&b| b == b':').unwrap_or(value.len())),
    };
    let host_fits = match host {
        [b'[', inner @ .., b']'] => {
            std::str::from_utf8(inner).is_ok_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
        }
        host => !host.is_empty() && host.iter().all(|&b| HOST[usize::from(b)]),
    };
    let port_fits = match port {
        [] => true,
        [b':', port @ ..] => port.len() <= 5 && port.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    host_fits && port_fits
}

/// True if `Host` names the authority of an absolute target, the scheme's port being the same as none.
fn same_host(target: &[u8], host: &[u8]) -> bool {
    let default: &[u8] = match target.split(|&b| b == b':').next() {
        Some(scheme) if scheme.eq_ignore_ascii_case(b"http") => b":80",
        Some(scheme) if scheme.eq_ignore_ascii_case(b"https") => b":443",
        _ => b"",
    };
    let bare = |host: &'_ [u8]| -> usize { host.len() - if host.ends_with(default) { default.len() } else { 0 } };
    let authority = authority(target);
    authority[..bare(authority)].eq_ignore_ascii_case(&host[..bare(host)])
}

/// True if `Host` names the target of CONNECT, with or without its port.
fn same_authority(target: &[u8], host: &[u8]) -> bool {
    let name = target.iter().rposition(|&b| b == b':').map_or(target, |at| &target[..at]);
    host.eq_ignore_ascii_case(target) || host.eq_ignore_ascii_case(name)
}

fn is_token(word: &[u8]) -> bool {
    !word.is_empty() && word.iter().all(|&b| TOKEN[usize::from(b)])
}

/// Characters of tokens (RFC 9110, section 5.6.2).
static TOKEN: [bool; 256] = table(b"!#$%&'*+-.^_`|~");
/// Characters that a path with a query consists of as a rule; others are looked at more closely.
static TARGET: [bool; 256] = table(b"/?%-._~!$&'()*+,;=:@");
/// Characters of a registered name or IPv4 address (RFC 3986, section 3.2.2); percent signs and sub-delimiters are
/// left out: no name that resolves has them, and parsers disagree about them.
static HOST: [bool; 256] = table(b"-._");

const fn table(punctuation: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut b = 0;
    while b < 128 {
        table[b] = (b as u8).is_ascii_alphanumeric();
        b += 1;
    }
    let mut i = 0;
    while i < punctuation.len() {
        table[punctuation[i] as usize] = true;
        i += 1;
    }
    table
}

#[cfg(test)]
#[path = "head_reference.rs"]
mod reference;

#[cfg(test)]
mod tests {
    use super::reference;
    use super::*;
    use proptest::prelude::*;

    fn judge(head: &[u8]) -> Result<Head, Refusal> {
        match inspect(head, 0)? {
            Some((at, verdict)) if at == head.len() => Ok(verdict),
            _ => Err(Refusal::bad("not one head")),
        }
    }

    #[test]
    fn a_head_says_what_follows() {
        let check = |fields: &str, content, leaves_http, last| {
            let head = format!("POST /a HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            assert_eq!(judge(head.as_bytes()), Ok(Head { content, leaves_http, last }), "{fields:?}");
        };
        check("", Content::Length(0), false, false);
        check("Content-Length: 0042\r\n", Content::Length(42), false, false);
        check("transfer-encoding: Chunked\r\n", Content::Chunked, false, false);
        check("Connection: a, Close\r\n", Content::Length(0), false, true);
        check("Upgrade: x\r\nContent-Length: 1\r\n", Content::Length(1), true, false);
        let old = judge(b"GET /a HTTP/1.0\r\nUpgrade: x\r\n\r\n");
        assert_eq!(old, Ok(Head { content: Content::Length(0), leaves_http: false, last: true }));
        assert!(judge(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n").is_ok_and(|head| head.leaves_http));
    }

    #[test]
    fn the_end_is_found_however_the_head_arrives() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for cut in 0..head.len() {
            assert_eq!(end(&head[..cut], 0), Ok(None), "{cut}");
            assert_eq!(end(head, cut), Ok(Some(head.len())), "{cut}");
            let mut more = head.to_vec();
            more.extend_from_slice(b"GET / HT\n\n");
            assert_eq!(end(&more, cut), Ok(Some(head.len())), "{cut}");
        }
        assert!(end(b"GET / HTTP/1.1\nHost: a", 0).is_err() && end(b"\n", 0).is_err());
        assert_eq!(end(b"\r\nrest", 0), Ok(Some(2)));
    }

    /// Pieces that heads are made of, and pieces that spoil them.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        let whole = prop::sample::select(vec![
            "GET /a HTTP/1.1\r\n",
            "POST /a?b=c HTTP/1.1\r\n",
            "GET http://web/x HTTP/1.1\r\n",
            "GET http://me@web/ HTTP/1.1\r\n",
            "OPTIONS * HTTP/1.1\r\n",
            "CONNECT web:80 HTTP/1.1\r\n",
            "CONNECT [::1]:80 HTTP/1.1\r\n",
            "GET /{x}|\" HTTP/1.0\r\n",
            "GET /a#b HTTP/1.1\r\n",
            "Host: web\r\n",
            "Host: [::1]:80\r\n",
            "hOST:web:80\r\n",
            "Content-Length: 5\r\n",
            "content-length:\t05 \r\n",
            "Content_Length: 5\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "transfer-encoding:CHUNKED\r\n",
            "Connection: close\r\n",
            "Connection: keep-alive, Upgrade\r\n",
            "Upgrade: websocket\r\n",
            "X-Any: \t some value \r\n",
            "X-Text: J\u{fc}rgen\r\n",
            "\r\n",
        ])
        .prop_map(|s| s.as_bytes().to_vec());
        let broken = prop::sample::select(b"\r\n\0\t :;,=\x7f\x80\xffAz09-_#*/[]@%".to_vec()).prop_map(|b| vec![b]);
        prop_oneof![12 => whole, 1 => broken]
    }

    /// A head that is mostly in order, with a few bytes changed, inserted, removed or doubled.
    fn head() -> impl Strategy<Value = Vec<u8>> {
        let first = prop::sample::select(vec![
            "GET /a HTTP/1.1\r\nHost: web\r\n",
            "GET http://web/x HTTP/1.1\r\nHost: web:80\r\n",
            "CONNECT web:80 HTTP/1.1\r\nHost: web\r\n",
            "POST /a HTTP/1.0\r\n",
            "",
        ]);
        let change = (any::<prop::sample::Index>(), 0u8..4, any::<u8>());
        (first, prop::collection::vec(piece(), 0..5), prop::collection::vec(change, 0..3)).prop_map(
            |(first, pieces, changes)| {
                let mut head = [first.as_bytes(), &pieces.concat(), b"\r\n"].concat();
                for (at, how, with) in changes {
                    let at = at.index(head.len());
                    match how {
                        0 => head[at] = with,
                        1 => head.insert(at, with),
                        2 if head.len() > 1 => drop(head.remove(at)),
                        _ => head.insert(at, head[at]),
                    }
                }
                head
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn the_verdict_is_that_of_the_slow_way(head in head()) {
            let slow = reference::judge(&head);
            prop_assert_eq!(judge(&head).ok(), slow, "{:?}", String::from_utf8_lossy(&head));
        }

        #[test]
        fn what_passes_is_the_same_to_the_codec(head in head()) {
            if let Ok(verdict) = judge(&head) {
                let mut fields = [httparse::EMPTY_HEADER; 128];
                let mut request = httparse::Request::new(&mut fields);
                let parsed = request.parse(&head);
                prop_assert_eq!(parsed, Ok(httparse::Status::Complete(head.len())));
                prop_assert!(http::Uri::try_from(request.path.unwrap()).is_ok());
                prop_assert!(http::Method::from_bytes(request.method.unwrap().as_bytes()).is_ok());
                let chunked = request.headers.iter().any(|h| h.name.eq_ignore_ascii_case("transfer-encoding"));
                prop_assert_eq!(chunked, verdict.content == Content::Chunked);
            }
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), seen in any::<prop::sample::Index>()) {
            let seen = seen.index(bytes.len() + 1);
            let _ = end(&bytes, seen);
            let _ = inspect(&bytes, seen);
            let _ = inspect_trailers(&bytes);
        }
    }
}
