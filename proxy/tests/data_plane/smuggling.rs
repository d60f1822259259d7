//! Malformed and ambiguous HTTP/1: every case is refused, or reaches a strict server with one meaning, and none puts
//! two parties out of step.
//!
//! Each request case is sent in one piece and byte by byte, through two proxies with mutual TLS between them and through
//! one to a plain server. Behind it follows a marker request. A case that must be refused gets one answer with the
//! status expected and a `mesh-error`, then the connection is closed, and the server has seen neither what was smuggled
//! nor the marker. A case that may pass arrives as exactly the requests expected, and the marker behind them as itself.
//! Connections to the server are kept from case to case, so that what one case leaves behind spoils the next.
//!
//! | class | file | source |
//! |---|---|---|
//! | CL.TE, TE.CL, both in either order, repeated | `lengths.rs` | RFC 9112, sections 6.1 and 6.3 |
//! | TE.TE: obfuscated, listed, repeated or unknown codings | `lengths.rs` | RFC 9112, section 6.1 |
//! | Content-Length: lists, signs, bases, overflow, not a number | `lengths.rs` | RFC 9110, section 8.6 |
//! | Transfer-Encoding or keep-alive with HTTP/1.0 | `lengths.rs` | RFC 9112, sections 6.1 and 9.3 |
//! | chunk sizes: overflow, signs, white space, other bases | `chunks.rs` | RFC 9112, section 7.1 |
//! | chunk ends: bare CR and LF, missing or early line ends | `chunks.rs` | RFC 9112, sections 2.2 and 7.1 |
//! | chunk extensions and trailers, forbidden fields in them | `chunks.rs` | RFC 9112, section 7.1; RFC 9110, section 6.5 |
//! | field names: white space before the colon, control bytes, look-alikes | `fields.rs` | RFC 9112, section 5.1 |
//! | field values: NUL, bare CR and LF, folding, other encodings | `fields.rs` | RFC 9110, section 5.5 |
//! | Host: missing, several, user information, lists, ports | `fields.rs` | RFC 9112, section 3.2 |
//! | fields named by `Connection`: Host, Content-Length, Authorization | `fields.rs` | RFC 9110, section 7.6.1 |
//! | heads too large, too many fields | `fields.rs` | RFC 6585, section 5 |
//! | request lines: spaces, tabs, control bytes, bare line ends | `lines.rs` | RFC 9112, section 3 |
//! | versions | `lines.rs` | RFC 9112, section 2.3 |
//! | targets: absolute form against Host, authority form, fragments | `lines.rs` | RFC 9112, section 3.2 |
//! | empty lines before a request | `lines.rs` | RFC 9112, section 2.2 |
//! | pipelines: poison behind good requests, behind an error, behind the last | `sequences.rs` | RFC 9112, sections 9.3 and 11.2 |
//! | upgrades (h2c too) and CONNECT with requests sent ahead | `sequences.rs` | RFC 9110, section 7.8; RFC 9113, section 3.1 |
//! | expectations | `sequences.rs` | RFC 9110, section 10.1.1 |
//! | answers: length and coding, splitting, extra bytes, floods, status without content | `answers.rs` | RFC 9112, section 6.3 |

mod answers;
mod backend;
mod chunks;
mod fields;
mod lengths;
mod lines;
mod sequences;
pub mod wire;

use crate::world::*;
use backend::Backend;
use mesh_api::Protocol;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use wire::Answer;

/// What must become of a case.
#[derive(Clone, Debug, PartialEq)]
enum Expect {
    /// One answer of the mesh with this status, and the end of the connection.
    Refused(u16),
    /// These requests (`METHOD target [content]`), and the connection goes on.
    Passes(Vec<String>),
    /// These requests, each answered, and then the end of the connection, whatever else was sent.
    Ends(Vec<String>),
    /// As [`Expect::Ends`], if what follows comes before the answer; else as [`Expect::Passes`].
    EndsOrPasses(Vec<String>),
    /// These requests are answered, then one answer with this status, and the end of the connection.
    ThenRefused(Vec<String>, u16),
}

/// Bytes of a client, and what must become of them.
#[derive(Clone, Debug)]
struct Case {
    name: String,
    bytes: Vec<u8>,
    expect: Expect,
    /// Header lines that the server must (`+`) or must not (`-`) have seen, lower-case names.
    seen: Vec<&'static str>,
}

fn case(name: &str, bytes: impl AsRef<[u8]>, expect: Expect) -> Case {
    Case { name: name.into(), bytes: bytes.as_ref().to_vec(), expect, seen: Vec::new() }
}

impl Case {
    fn seen(mut self, seen: &[&'static str]) -> Self {
        self.seen = seen.to_vec();
        self
    }
}

fn passes(requests: &[&str]) -> Expect {
    Expect::Passes(requests.iter().map(|r| (*r).to_owned()).collect())
}

fn ends(requests: &[&str]) -> Expect {
    Expect::Ends(requests.iter().map(|r| (*r).to_owned()).collect())
}

fn then_refused(requests: &[&str], status: u16) -> Expect {
    Expect::ThenRefused(requests.iter().map(|r| (*r).to_owned()).collect(), status)
}

fn all() -> Vec<Case> {
    [lengths::cases(), chunks::cases(), fields::cases(), lines::cases(), sequences::cases()].concat()
}

const MARKER: &str = "GET /marker HTTP/1.1\r\nHost: web\r\nX-Marker: 1\r\n\r\n";

/// Sends a case and the marker; what was answered until the connection ended, or the marker's answer came.
async fn play(address: std::net::SocketAddr, case: &Case, piece: usize) -> (Vec<Answer>, bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (read, mut write) = stream.split();
    let answers = wire::answers(read, |answer| answer.body == b"GET /marker");
    let bytes = [&case.bytes[..], MARKER.as_bytes()].concat();
    let sending = async {
        for piece in bytes.chunks(piece) {
            // A connection closed in the middle is one of the outcomes.
            if write.write_all(piece).await.is_err() {
                break;
            }
            if piece.len() < 64 {
                tokio::task::yield_now().await;
            }
        }
    };
    let both = async { tokio::join!(answers, sending).0 };
    tokio::time::timeout(SOON, both).await.unwrap_or_else(|_| panic!("{}: no end", case.name))
}

async fn check(address: std::net::SocketAddr, backend: &Backend, case: &Case, piece: usize) -> Result<(), String> {
    backend.forget();
    let (answers, ended) = play(address, case, piece).await;
    let statuses: Vec<u16> = answers.iter().map(|a| a.status).collect();
    let (wanted, refused, goes_on) = match &case.expect {
        Expect::Refused(status) => (Vec::new(), Some(*status), false),
        Expect::ThenRefused(requests, status) => (requests.clone(), Some(*status), false),
        Expect::Ends(requests) => (requests.clone(), None, false),
        Expect::EndsOrPasses(requests) => (requests.clone(), None, !ended),
        Expect::Passes(requests) => (requests.clone(), None, true),
    };
    let mut requests = wanted.clone();
    requests.extend(goes_on.then(|| "GET /marker".to_owned()));
    let count = requests.len() + usize::from(refused.is_some());
    if answers.len() != count || ended == goes_on {
        return Err(format!("answers {statuses:?}, connection {}", if ended { "ended" } else { "goes on" }));
    }
    for (answer, request) in answers.iter().zip(&requests) {
        let head = request.starts_with("HEAD ");
        if answer.status != 200 || (!head && answer.body != request.as_bytes()) {
            return Err(format!("answer {answer:?} to {request:?}"));
        }
    }
    if let Some(status) = refused {
        let last = &answers[count - 1];
        let code = last.header("mesh-error");
        if last.status != status || code.as_deref() != Some("invalid-request") {
            return Err(format!("answer {last:?}, not {status} with mesh-error"));
        }
        if last.header("connection").as_deref() != Some("close") {
            return Err(format!("answer {last:?} does not announce the end"));
        }
    }
    let seen = backend.seen();
    let complete: Vec<&str> = seen.iter().filter(|s| s.complete).map(|s| s.line.as_str()).collect();
    if complete != requests {
        return Err(format!("the server saw {complete:?}"));
    }
    // What a refused case left incomplete is noticed late.
    if let Some(half) = seen.iter().find(|s| !s.complete && (s.line.contains("marker") || s.line.contains("smuggled")))
    {
        return Err(format!("the server saw half of something: {half:?}"));
    }
    if let Some(broken) = backend.violation() {
        return Err(format!("the server was sent nonsense: {broken}"));
    }
    let first = seen.first().map(|s| s.fields.as_slice()).unwrap_or_default();
    for line in &case.seen {
        let (sign, line) = line.split_at(1);
        let present = first
            .iter()
            .any(|field| if line.contains(':') { field == line } else { field.starts_with(&format!("{line}:")) });
        if present != (sign == "+") {
            return Err(format!("{sign}{line}: the server saw {first:?}"));
        }
    }
    Ok(())
}

async fn run(address: std::net::SocketAddr, backend: &Backend) {
    let cases = all();
    let mut failed = Vec::new();
    for piece in [usize::MAX, 1] {
        for case in &cases {
            if case.bytes.len() > 4096 && piece == 1 {
                continue; // large heads are cut in larger pieces elsewhere
            }
            if let Err(why) = check(address, backend, case, piece.min(case.bytes.len() + MARKER.len())).await {
                let how = if piece == 1 { "byte by byte" } else { "at once" };
                failed.push(format!("{} ({how}): {why}", case.name));
            }
        }
    }
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

#[tokio::test]
async fn nothing_is_smuggled_through_two_proxies() {
    let authority = Authority::new();
    let backend = Backend::start().await;
    let web = server(&authority, "web", backend.address);
    let endpoints = vec![endpoint(web.inbound, Some(account("web")))];
    let load = Proxy::start(towards(Protocol::Http1, endpoints), Some(&authority.issue(&account("load"))));
    run(load.outbound, &backend).await;
    // Everything refused is counted, by the first proxy.
    assert!(load.metric("mesh_requests_total", &["error=\"invalid-request\""]).await >= 100.0);
}

#[tokio::test]
async fn nothing_is_smuggled_through_one_proxy() {
    let backend = Backend::start().await;
    let load = Proxy::start(towards(Protocol::Http1, vec![endpoint(backend.address, None)]), None);
    run(load.outbound, &backend).await;
}

#[test]
fn the_cases_are_many_and_distinct() {
    let cases = all();
    let mut names: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
    let mut bytes: Vec<&[u8]> = cases.iter().map(|c| c.bytes.as_slice()).collect();
    names.sort_unstable();
    names.dedup();
    bytes.sort_unstable();
    bytes.dedup();
    assert_eq!((names.len(), bytes.len()), (cases.len(), cases.len()), "two cases are the same");
    assert!(cases.len() + answers::cases().len() >= 150, "{} cases", cases.len());
}
