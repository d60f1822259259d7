//! Servers that answer wrongly: the client gets an error of the mesh, or an answer with one meaning, and what is left
//! over is nobody's answer.

use super::*;
use std::net::SocketAddr;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

/// What the client of a hostile server must get.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// 502 with a `mesh-error`.
    Bad,
    /// This status and content, in full.
    Good(u16, &'static str),
    /// This status, and a connection that ends before the content does.
    Cut(u16),
}

use Outcome::{Bad, Cut, Good};

#[derive(Clone, Debug)]
pub struct Reply {
    pub name: &'static str,
    pub method: &'static str,
    pub bytes: Vec<u8>,
    /// True if the server closes the connection behind it.
    pub closes: bool,
    pub outcome: Outcome,
}

fn reply(name: &'static str, bytes: impl AsRef<[u8]>, outcome: Outcome) -> Reply {
    Reply { name, method: "GET", bytes: bytes.as_ref().to_vec(), closes: false, outcome }
}

fn closing(name: &'static str, bytes: impl AsRef<[u8]>, outcome: Outcome) -> Reply {
    Reply { closes: true, ..reply(name, bytes, outcome) }
}

fn head(name: &'static str, bytes: &str, outcome: Outcome) -> Reply {
    Reply { method: "HEAD", ..reply(name, bytes, outcome) }
}

pub fn cases() -> Vec<Reply> {
    let mut cases = framing();
    cases.extend(lines_and_fields());
    cases.extend(chunks());
    cases.extend(without_content());
    cases.extend(more_than_an_answer());
    cases
}

const EVIL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";

fn framing() -> Vec<Reply> {
    vec![
        reply(
            "CL.TE",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            Bad,
        ),
        reply(
            "TE.CL",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            Bad,
        ),
        reply("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!", Bad),
        reply("the same length twice", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", Bad),
        reply("a list of lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", Bad),
        reply("a length with a sign", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", Bad),
        reply("a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok", Bad),
        reply("a length in hex", "HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok", Bad),
        reply("an empty length", "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok", Bad),
        reply("a length too large", "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\nok", Bad),
        closing("gzip and chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Bad),
        closing("an unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\n\r\nok", Bad),
        closing("identity", "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok", Bad),
        closing("chunked and then something", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n", Bad),
        closing("chunked twice", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", Bad),
        reply(
            "chunked in two fields",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Bad,
        ),
        reply(
            "chunked with HTTP/1.0",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            Bad,
        ),
        reply(
            "chunked in capitals",
            "HTTP/1.1 200 OK\r\nTRANSFER-ENCODING: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            Good(200, "ok"),
        ),
        closing("until the end", "HTTP/1.1 200 OK\r\n\r\nok", Good(200, "ok")),
        closing("until the end, HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nok", Good(200, "ok")),
        closing("less than the length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok", Cut(200)),
    ]
}

fn lines_and_fields() -> Vec<Reply> {
    vec![
        closing("no HTTP", "hello\r\n\r\n", Bad),
        closing("HTTP/0.9", "ok", Bad),
        closing("nothing", "", Bad),
        closing("half a head", "HTTP/1.1 200 OK\r\nX: ", Bad),
        reply("another version", "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", Bad),
        reply("a status that is none", "HTTP/1.1 2x0 OK\r\nContent-Length: 2\r\n\r\nok", Bad),
        reply("a status of two digits", "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok", Bad),
        reply("a status of four digits", "HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok", Bad),
        reply("a status below 100", "HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok", Bad),
        reply("no reason", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", Good(200, "ok")),
        reply("a reason of its own", "HTTP/1.1 200 Fine with me\r\nContent-Length: 2\r\n\r\nok", Good(200, "ok")),
        reply("a status of its own", "HTTP/1.1 299 Well\r\nContent-Length: 2\r\n\r\nok", Good(299, "ok")),
        reply("NUL in a value", "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok", Bad),
        reply("a bare CR in a value", "HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: x\r\nContent-Length: 2\r\n\r\nok", Bad),
        reply("a folded value", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok", Bad),
        reply("a space before the colon", "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", Bad),
        reply("a line without a colon", "HTTP/1.1 200 OK\r\nhello\r\nContent-Length: 2\r\n\r\nok", Bad),
        reply("too large a head", format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(200_000)), Bad),
        reply("too many fields", format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: 1\r\n".repeat(200)), Bad),
        reply(
            "fields that belong to one hop",
            "HTTP/1.1 200 OK\r\nConnection: x-mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nok",
            Good(200, "ok"),
        ),
        reply(
            "Connection: Content-Length",
            "HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: 2\r\n\r\nok",
            Good(200, "ok"),
        ),
    ]
}

fn chunks() -> Vec<Reply> {
    let chunked = |body: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    vec![
        closing("a chunk size that is none", chunked("x\r\nok\r\n0\r\n\r\n"), Cut(200)),
        closing("a chunk size with a sign", chunked("+2\r\nok\r\n0\r\n\r\n"), Cut(200)),
        closing("a chunk size too large", chunked("fffffffffffffffff\r\nok\r\n0\r\n\r\n"), Cut(200)),
        closing("more data than the chunk's size", chunked("2\r\nokay\r\n0\r\n\r\n"), Cut(200)),
        closing("LF behind the data", chunked("2\r\nok\n0\r\n\r\n"), Cut(200)),
        closing("LF in an extension", chunked("2;a\nb\r\nok\r\n0\r\n\r\n"), Cut(200)),
        closing("no last chunk", chunked("2\r\nok\r\n"), Cut(200)),
        closing("half a chunk", chunked("5\r\nok"), Cut(200)),
        closing("half a trailer section", chunked("2\r\nok\r\n0\r\nX: 1"), Cut(200)),
        reply("a length in a trailer", chunked("2\r\nok\r\n0\r\nContent-Length: 9\r\n\r\n"), Good(200, "ok")),
        reply("an extension", chunked("2;x=y\r\nok\r\n0\r\n\r\n"), Good(200, "ok")),
    ]
}

fn without_content() -> Vec<Reply> {
    vec![
        reply("204 with a length", "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n", Good(204, "")),
        reply("204 with content", "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil", Good(204, "")),
        reply(
            "204 with chunks",
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
            Good(204, ""),
        ),
        reply("304 with a length", "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n", Good(304, "")),
        reply("304 with content", "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil", Good(304, "")),
        head("HEAD with content", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", Good(200, "")),
        head(
            "HEAD with a second answer",
            &format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{EVIL}"),
            Good(200, ""),
        ),
        head("HEAD with chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Good(200, "")),
        closing(
            "101 that nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nevil",
            Bad,
        ),
    ]
}

fn more_than_an_answer() -> Vec<Reply> {
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    vec![
        reply("bytes behind the answer", format!("{ok}evil"), Good(200, "ok")),
        reply("an answer behind the answer", format!("{ok}{EVIL}"), Good(200, "ok")),
        reply(
            "an answer behind chunks",
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{EVIL}"),
            Good(200, "ok"),
        ),
        reply("an answer behind nothing", format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n{EVIL}"), Good(200, "")),
        reply("an answer behind half a line", format!("{ok}\r\n{EVIL}"), Good(200, "ok")),
        reply(
            "split by a percent-encoded line end",
            "HTTP/1.1 200 OK\r\nLocation: /%0d%0aX:%20y\r\nContent-Length: 2\r\n\r\nok",
            Good(200, "ok"),
        ),
        reply("one interim answer", format!("{interim}{ok}"), Good(200, "ok")),
        reply("a flood of interim answers", format!("{}{ok}", interim.repeat(5000)), Good(200, "ok")),
        closing("interim answers and no other", interim.repeat(10), Bad),
        closing(
            "Connection: close and more",
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok{EVIL}"),
            Good(200, "ok"),
        ),
    ]
}

/// A server that answers `/attack/<n>` with the bytes of case n, and everything else as it should.
async fn hostile(cases: Vec<Reply>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let cases = cases.clone();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while stream.read_buf(&mut bytes).await.is_ok_and(|n| n > 0) {
                    while let Some(end) = wire::find(&bytes, b"\r\n\r\n") {
                        let line = String::from_utf8_lossy(&bytes[..end]).lines().next().unwrap_or_default().to_owned();
                        bytes.drain(..end + 4);
                        let target = line.split(' ').nth(1).unwrap();
                        let attack: Option<usize> = target.strip_prefix("/attack/").and_then(|n| n.parse().ok());
                        match attack.map(|n| &cases[n]) {
                            Some(case) => {
                                // Written in one go, so that what is too much has arrived with the answer.
                                let _ = stream.write_all(&case.bytes).await;
                                if case.closes {
                                    return;
                                }
                            }
                            None => {
                                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", target.len() + 4);
                                let _ = stream.write_all(format!("{head}GET {target}").as_bytes()).await;
                            }
                        }
                    }
                }
            });
        }
    });
    address
}

/// Asks for the case's answer, and then for the marker's on a connection that must not have been spoiled.
async fn check(address: SocketAddr, n: usize, case: &Reply) -> Result<(), String> {
    let ask = |method: &str, target: &str| format!("{method} {target} HTTP/1.1\r\nHost: web\r\n\r\n");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(ask(case.method, &format!("/attack/{n}")).as_bytes()).await.unwrap();
    let first = match read_one(&mut stream, case.method == "HEAD").await {
        // Content that breaks off at once takes the head with it.
        Err(ended) if matches!(case.outcome, Cut(_)) && ended.ends_with("ended: \"\"") => return Ok(()),
        first => first?,
    };
    let error = first.header("mesh-error");
    match case.outcome {
        Bad if first.status == 502 && error.is_some() && first.complete => {}
        Good(status, body)
            if first.status == status && first.body == body.as_bytes() && error.is_none() && first.complete => {}
        Cut(status) if first.status == status && !first.complete => return Ok(()),
        Cut(_) if first.status == 502 && error.is_some() => {}
        _ => return Err(format!("{:?}, not {:?}", first, case.outcome)),
    }
    if ["x-mine", "keep-alive"].iter().any(|name| first.header(name).is_some()) {
        return Err(format!("fields of one hop came through: {first:?}"));
    }
    if first.header("connection").is_some_and(|c| c.contains("close")) {
        return Ok(());
    }
    stream.write_all(ask("GET", "/marker").as_bytes()).await.map_err(|e| e.to_string())?;
    let second = read_one(&mut stream, false).await?;
    match &second.body[..] {
        b"GET /marker" if second.status == 200 => Ok(()),
        _ => Err(format!("the next answer is {second:?}")),
    }
}

async fn read_one(stream: &mut TcpStream, head: bool) -> Result<Answer, String> {
    let mut bytes = Vec::new();
    let reading = async {
        loop {
            let ended = stream.read_buf(&mut bytes).await.unwrap_or(0) == 0;
            // What answers HEAD has no content, whatever its head says.
            let end = wire::find(&bytes, b"\r\n\r\n").map(|end| end + 2).filter(|_| head);
            let marked = end.map(|end| [&bytes[..end], b"x-head: 1\r\n\r\n"].concat());
            if let Some((answer, _)) = wire::parse(marked.as_deref().unwrap_or(&bytes), ended) {
                return Ok(answer);
            }
            if ended {
                return Err(format!("the connection ended: {:?}", String::from_utf8_lossy(&bytes)));
            }
        }
    };
    tokio::time::timeout(SOON, reading).await.unwrap_or_else(|_| Err("no answer".into()))
}

async fn run(address: SocketAddr, cases: &[Reply]) {
    let mut failed = Vec::new();
    for (n, case) in cases.iter().enumerate() {
        if let Err(why) = check(address, n, case).await {
            failed.push(format!("{}: {why}", case.name));
        }
    }
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

#[tokio::test]
async fn no_answer_is_split_or_taken_for_another_through_two_proxies() {
    let authority = Authority::new();
    let web = server(&authority, "web", hostile(cases()).await);
    let load = client(&authority, vec![endpoint(web.inbound, Some(account("web")))]);
    run(load.outbound, &cases()).await;
}

#[tokio::test]
async fn no_answer_is_split_or_taken_for_another_through_one_proxy() {
    let address = hostile(cases()).await;
    let load = Proxy::start(towards(Protocol::Http1, vec![endpoint(address, None)]), None);
    run(load.outbound, &cases()).await;
}
