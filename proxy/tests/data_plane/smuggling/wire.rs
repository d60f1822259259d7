//! Answers as a client reads them from the wire, by the letter.

use tokio::io::{AsyncRead, AsyncReadExt};

/// One response.
#[derive(Clone, PartialEq)]
pub struct Answer {
    pub version: String,
    pub status: u16,
    /// Lines, names in lower case, `name: value`.
    pub fields: Vec<String>,
    pub body: Vec<u8>,
    pub trailers: Vec<String>,
    /// False if the connection ended in the middle.
    pub complete: bool,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Answer { version, status, fields, body, trailers, complete } = self;
        let body = String::from_utf8_lossy(body);
        write!(f, "{version} {status} {fields:?} {body:?} {trailers:?} complete={complete}")
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<String> {
        let mut values = self.fields.iter().filter_map(|f| f.strip_prefix(&format!("{name}: ")).map(str::to_owned));
        let value = values.next();
        assert!(values.next().is_none(), "{name} twice: {self:?}");
        value
    }
}

/// Reads responses until `last` says that one was the last, or the connection ends (`true`).
pub async fn answers(mut io: impl AsyncRead + Unpin, last: impl Fn(&Answer) -> bool) -> (Vec<Answer>, bool) {
    let mut bytes = Vec::new();
    let mut answers: Vec<Answer> = Vec::new();
    loop {
        while let Some((answer, length)) = parse(&bytes, false) {
            bytes.drain(..length);
            let done = last(&answer);
            if answer.status >= 200 {
                answers.push(answer);
            }
            if done {
                return (answers, false);
            }
        }
        // A reset behind the last answer is an end like any other.
        if io.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            while let Some((answer, length)) = parse(&bytes, true) {
                bytes.drain(..length);
                answers.push(answer);
            }
            assert!(bytes.is_empty(), "half an answer: {:?}", String::from_utf8_lossy(&bytes));
            return (answers, true);
        }
    }
}

/// The first response in `bytes` and its length.
pub fn parse(bytes: &[u8], ended: bool) -> Option<(Answer, usize)> {
    let end = find(bytes, b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end - 4]).expect("a head in ASCII");
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap();
    assert!(line.starts_with("HTTP/1."), "no answer: {line:?}");
    let mut words = line.splitn(3, ' ');
    let version = words.next().unwrap().to_owned();
    let status: u16 = words.next().unwrap().parse().expect("a status");
    let fields: Vec<String> = lines
        .map(|line| {
            let (name, value) = line.split_once(':').expect("a field");
            format!("{}: {}", name.to_ascii_lowercase(), value.trim())
        })
        .collect();
    let mut answer = Answer { version, status, fields, body: Vec::new(), trailers: Vec::new(), complete: true };
    let rest = &bytes[end..];
    let chunked = answer.header("transfer-encoding").is_some();
    let length = answer.header("content-length").map(|n| n.parse::<usize>().expect("a length"));
    assert!(!(chunked && length.is_some()), "both length and chunks: {answer:?}");
    if status < 200 || status == 204 || status == 304 || answer.header("x-head").is_some() {
        return Some((answer, end));
    }
    if chunked {
        return match dechunk(rest) {
            Some((body, trailers, length)) => {
                (answer.body, answer.trailers) = (body, trailers);
                Some((answer, end + length))
            }
            None if ended => {
                answer.complete = false;
                Some((answer, bytes.len()))
            }
            None => None,
        };
    }
    match length {
        Some(length) if rest.len() >= length => {
            answer.body = rest[..length].to_vec();
            Some((answer, end + length))
        }
        Some(_) | None if ended => {
            answer.complete = length.is_none();
            answer.body = rest.to_vec();
            Some((answer, bytes.len()))
        }
        _ => None,
    }
}

/// Content, trailer lines and the length of a chunked body, if it is complete.
pub fn dechunk(bytes: &[u8]) -> Option<(Vec<u8>, Vec<String>, usize)> {
    let (mut at, mut body) = (0, Vec::new());
    loop {
        let line = find(&bytes[at..], b"\r\n")?;
        let digits = std::str::from_utf8(&bytes[at..at + line]).unwrap();
        assert!(!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit()), "chunk size {digits:?}");
        let size = usize::from_str_radix(digits, 16).unwrap();
        at += line + 2;
        if size == 0 {
            let mut trailers = Vec::new();
            loop {
                let line = find(&bytes[at..], b"\r\n")?;
                let text = std::str::from_utf8(&bytes[at..at + line]).unwrap().to_owned();
                at += line + 2;
                if text.is_empty() {
                    return Some((body, trailers, at));
                }
                trailers.push(text);
            }
        }
        let chunk = bytes.get(at..at + size + 2)?;
        assert_eq!(&chunk[size..], b"\r\n", "a chunk's end");
        body.extend_from_slice(&chunk[..size]);
        at += size + 2;
    }
}

pub fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}
