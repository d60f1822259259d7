//! A reader of HTTP/1.1 requests that takes RFC 9112 by its letter and forgives nothing; it exists to be compared with.

/// What the bytes begin with.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    /// A whole request.
    Request {
        /// Its method.
        method: Vec<u8>,
        /// Its target.
        target: Vec<u8>,
        /// Its body, chunks put together.
        body: Vec<u8>,
        /// How many bytes it takes.
        length: usize,
    },
    /// The beginning of one.
    Partial,
    /// Something else.
    Invalid(&'static str),
}

/// Reads one request from the start of `bytes`.
pub fn read(bytes: &[u8]) -> Reading {
    parse(bytes).unwrap_or_else(|stopped| stopped)
}

fn parse(bytes: &[u8]) -> Result<Reading, Reading> {
    let mut rest = Rest { bytes, at: 0 };
    let mut line = rest.line()?;
    if line.is_empty() {
        line = rest.line()?; // one empty line in front is put up with (section 2.2)
    }
    let mut words = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Reading::Invalid("the request line has not three words"));
    };
    if method.is_empty() || !method.iter().all(|b| is_token(*b)) {
        return Err(Reading::Invalid("the method is no token"));
    }
    if target.is_empty() || !target.iter().all(|b| (0x21..0x7f).contains(b) || *b >= 0x80) {
        return Err(Reading::Invalid("the target is none"));
    }
    let old = version == b"HTTP/1.0";
    if version != b"HTTP/1.1" && !old {
        return Err(Reading::Invalid("another version"));
    }
    let fields = fields(&mut rest)?;
    let body = match framing(&fields)? {
        Framing::Chunked if old => return Err(Reading::Invalid("chunks in a version that has none")),
        Framing::Length(length) => rest.take(length)?.to_vec(),
        Framing::Chunked => chunked(&mut rest)?,
    };
    Ok(Reading::Request { method: method.to_vec(), target: target.to_vec(), body, length: rest.at })
}

enum Framing {
    Length(usize),
    Chunked,
}

/// RFC 9112, section 6.3, for requests.
fn framing(fields: &[(Vec<u8>, Vec<u8>)]) -> Result<Framing, Reading> {
    let all = |wanted: &[u8]| -> Vec<&[u8]> {
        fields.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_slice()).collect()
    };
    let (codings, lengths) = (all(b"transfer-encoding"), all(b"content-length"));
    match (&codings[..], &lengths[..]) {
        ([], []) => Ok(Framing::Length(0)),
        ([], [length]) if !length.is_empty() && length.len() < 19 && length.iter().all(u8::is_ascii_digit) => {
            let digits = std::str::from_utf8(length).ok().and_then(|digits| digits.parse().ok());
            digits.map(Framing::Length).ok_or(Reading::Invalid("the length is no number"))
        }
        ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        _ => Err(Reading::Invalid("the framing is ambiguous")),
    }
}

/// Field lines up to the empty line; names in lower case, values trimmed.
fn fields(rest: &mut Rest<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Reading> {
    let mut fields = Vec::new();
    loop {
        let line = rest.line()?;
        if line.is_empty() {
            return Ok(fields);
        }
        let colon = line.iter().position(|b| *b == b':').ok_or(Reading::Invalid("a field without colon"))?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
            return Err(Reading::Invalid("a field name is no token"));
        }
        if value.iter().any(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f) {
            return Err(Reading::Invalid("a control character in a field value"));
        }
        fields.push((name.to_ascii_lowercase(), value.to_vec()));
    }
}

/// RFC 9112, section 7.1.
fn chunked(rest: &mut Rest<'_>) -> Result<Vec<u8>, Reading> {
    let mut body = Vec::new();
    loop {
        let line = rest.line()?;
        let size = line.split(|b| *b == b';').next().unwrap_or_default();
        if size.is_empty() || size.len() > 15 || !size.iter().all(u8::is_ascii_hexdigit) {
            return Err(Reading::Invalid("a chunk size is no number"));
        }
        let size = std::str::from_utf8(size).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let size = size.ok_or(Reading::Invalid("a chunk size is no number"))?;
        if size == 0 {
            fields(rest)?;
            return Ok(body);
        }
        body.extend_from_slice(rest.take(size)?);
        if rest.take(2)? != b"\r\n" {
            return Err(Reading::Invalid("a chunk does not end where it says"));
        }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What is still to be read.
struct Rest<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    /// A line without its CRLF.
    fn line(&mut self) -> Result<&'a [u8], Reading> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|b| *b == b'\n') else {
            return Err(Reading::Partial);
        };
        let line = rest[..end].strip_suffix(b"\r").ok_or(Reading::Invalid("a line ends without carriage return"))?;
        if line.contains(&b'\r') {
            return Err(Reading::Invalid("a bare carriage return"));
        }
        self.at += end + 1;
        Ok(line)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Reading> {
        let taken = self.bytes[self.at..].get(..n).ok_or(Reading::Partial)?;
        self.at += n;
        Ok(taken)
    }
}
