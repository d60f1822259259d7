//! A server that takes HTTP/1.1 by the letter only, and remembers every request that reaches it.

use super::wire::{dechunk, find};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `METHOD target`, and the content in brackets if there is any.
    pub line: String,
    /// Header lines, names in lower case.
    pub fields: Vec<String>,
    /// False if the connection ended in the middle.
    pub complete: bool,
}

#[derive(Debug, Default)]
struct Log {
    seen: Vec<Seen>,
    violation: Option<String>,
}

/// The server.
pub struct Backend {
    pub address: SocketAddr,
    log: Arc<Mutex<Log>>,
}

impl Backend {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::<Mutex<Log>>::default();
        let all = log.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let log = all.clone();
                tokio::spawn(async move { serve(stream, &log).await });
            }
        });
        Self { address, log }
    }

    /// Forgets the requests seen so far. What was violated stays on record.
    pub fn forget(&self) {
        self.log.lock().unwrap().seen.clear();
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.log.lock().unwrap().seen.clone()
    }

    pub fn violation(&self) -> Option<String> {
        self.log.lock().unwrap().violation.clone()
    }
}

async fn serve(mut stream: TcpStream, log: &Mutex<Log>) {
    let mut bytes = Vec::new();
    loop {
        let parsed = std::panic::catch_unwind(AssertUnwindSafe(|| parse(&bytes)));
        let parsed = match parsed {
            Ok(parsed) => parsed,
            Err(_) => {
                log.lock().unwrap().violation = Some(String::from_utf8_lossy(&bytes).into_owned());
                return;
            }
        };
        if let Some((seen, length)) = parsed {
            bytes.drain(..length);
            let line = seen.line.clone();
            log.lock().unwrap().seen.push(seen);
            // What is asked for with HEAD has the length of the answer to GET.
            let head = line.starts_with("HEAD ");
            let mark = if head { "x-head: 1\r\n" } else { "" };
            let body = if head { "" } else { &line };
            let answer = format!("HTTP/1.1 200 OK\r\n{mark}content-length: {}\r\n\r\n{body}", line.len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            if !bytes.is_empty() {
                let line = String::from_utf8_lossy(&bytes).into_owned();
                log.lock().unwrap().seen.push(Seen { line, fields: Vec::new(), complete: false });
            }
            return;
        }
    }
}

/// The first request in `bytes`, if it is complete, and its length. Panics at what is not to the letter.
fn parse(bytes: &[u8]) -> Option<(Seen, usize)> {
    let end = find(bytes, b"\r\n\r\n")? + 4;
    let head = &bytes[..end];
    let bare = |at: usize| head[at] == b'\n' && head[at - 1] != b'\r' || head[at] == b'\r' && head[at + 1] != b'\n';
    assert!(!(1..end - 1).any(bare), "a bare CR or LF");
    let head = String::from_utf8_lossy(&head[..end - 4]).into_owned();
    let mut lines = head.split("\r\n");
    let words: Vec<&str> = lines.next().unwrap().split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else { panic!("request line {words:?}") };
    assert!(method.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && !method.is_empty());
    assert!(!target.is_empty() && !target.contains('#') && target.bytes().all(|b| b > b' ' && b != 0x7f));
    let (mut fields, mut hosts, mut lengths, mut codings) = (Vec::new(), 0, Vec::new(), Vec::new());
    for line in lines {
        let (name, value) = line.split_once(':').expect("a colon");
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        assert!(!name.is_empty() && name.bytes().all(token), "field name {name:?}");
        let value = value.trim_matches([' ', '\t']);
        assert!(!value.bytes().any(|b| (b < b' ' && b != b'\t') || b == 0x7f), "field value {value:?}");
        let name = name.to_ascii_lowercase();
        match name.as_str() {
            "host" => hosts += 1,
            "content-length" => lengths.push(value.parse::<usize>().expect("a length")),
            "transfer-encoding" => codings.push(value.to_owned()),
            _ => {}
        }
        fields.push(format!("{name}: {value}"));
    }
    assert_eq!(hosts, 1, "hosts");
    assert!(lengths.len() + codings.len() <= 1, "lengths {lengths:?} and codings {codings:?}");
    let rest = &bytes[end..];
    let (body, length) = match (lengths.first(), codings.first()) {
        (Some(&n), None) => (rest.get(..n)?.to_vec(), n),
        (None, Some(coding)) => {
            assert_eq!(coding, "chunked");
            let (body, trailers, length) = dechunk(rest)?;
            assert!(!trailers.iter().any(|t| t.to_ascii_lowercase().starts_with("content-length")));
            (body, length)
        }
        _ => (Vec::new(), 0),
    };
    let content = if body.is_empty() { String::new() } else { format!(" [{}]", String::from_utf8_lossy(&body)) };
    Some((Seen { line: format!("{method} {target}{content}"), fields, complete: true }, end + length))
}
