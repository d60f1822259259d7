//! Clients that keep to the letter of HTTP/2 and mean harm. Each meets a limit with a defined answer, and the proxy,
//! here a process of its own, stays small and idle all the while.

use crate::frames::*;
use crate::world::{App, SOON, endpoint, towards};
use mesh_api::Protocol;
use std::net::{SocketAddr, TcpListener as Reserved};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// What a proxy may grow by under any abuse, bytes. The windows of one connection are the largest part.
const GROWTH: usize = 24 << 20;

/// The proxy as a process, so that memory and CPU are its own.
struct Process {
    child: Child,
    outbound: SocketAddr,
    _dir: TempDir,
}

impl Process {
    async fn start(app: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.json");
        let config = towards(Protocol::Http2, vec![endpoint(app, None)]);
        std::fs::write(&path, serde_json::to_string(&config).unwrap()).unwrap();
        let free = [(); 3].map(|()| Reserved::bind("127.0.0.1:0").unwrap());
        let [inbound, outbound, admin] = free.map(|listener| listener.local_addr().unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_mesh-proxy"))
            .arg("--config")
            .arg(&path)
            .args(["--inbound-port", &inbound.port().to_string()])
            .args(["--outbound-port", &outbound.port().to_string()])
            .args(["--admin-port", &admin.port().to_string()])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let process = Self { child, outbound, _dir: dir };
        let serves = async {
            loop {
                if let Ok(stream) = TcpStream::connect(outbound).await {
                    drop(stream);
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // The first request opens what the proxy keeps.
            assert_eq!(Peer::client(outbound).await.ask(1, "/").await.status(), 200);
        };
        tokio::time::timeout(SOON, serves).await.unwrap();
        process
    }

    /// Resident memory, bytes.
    fn memory(&self) -> usize {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    /// CPU time used so far.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a client behaves while the other side does not go away.
struct Abuse<'a> {
    what: &'a str,
    /// Sent again and again.
    wave: &'a dyn Fn(u32) -> Vec<u8>,
    waves: u32,
    /// True if the client reads what comes.
    reads: bool,
    /// The answer: GOAWAY with this code, or the end of the connection. `None`: none of it hurts.
    answer: Option<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Goaway(u32),
    Closed,
}

/// Sends waves until they are through, nothing moves any more, or the other side ends it.
async fn attack(process: &Process, abuse: &Abuse<'_>) -> (Option<Answer>, usize) {
    let peer = Peer::client(process.outbound).await;
    let (mut read, mut write) = peer.into_split();
    let mut most = 0;
    let reads = abuse.reads;
    let reader = tokio::spawn(async move {
        let mut goaway = None;
        if reads {
            while let Some(seen) = read.next().await {
                if seen.kind == GOAWAY {
                    goaway = Some(seen.code());
                }
            }
        } else {
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
        (read, goaway)
    });
    let mut broken = false;
    for wave in 0..abuse.waves {
        match tokio::time::timeout(Duration::from_secs(1), write.write_all(&(abuse.wave)(wave))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => {
                broken = true;
                break;
            }
            Err(_) => break, // back-pressure: the proxy reads no more until it can answer
        }
        if wave % 64 == 0 {
            most = most.max(process.memory());
        }
    }
    most = most.max(process.memory());
    if !broken && abuse.answer.is_none() {
        // It goes on, or stands still; either way it ends with the client.
        drop(write);
        reader.abort();
        return (None, most);
    }
    let ended = tokio::time::timeout(SOON, reader).await;
    let answer = match ended {
        Ok(Ok((_, Some(code)))) => Some(Answer::Goaway(code)),
        Ok(Ok((_, None))) => Some(Answer::Closed),
        _ => None,
    };
    (answer, most)
}

async fn survives(process: &Process, abuse: Abuse<'_>) {
    let (before, cpu, start) = (process.memory(), process.cpu(), Instant::now());
    let (answer, most) = attack(process, &abuse).await;
    let grown = most.saturating_sub(before);
    let busy = process.cpu() - cpu;
    let what = abuse.what;
    assert_eq!(answer, abuse.answer, "{what}");
    assert!(grown < GROWTH, "{what}: grew by {} KiB", grown >> 10);
    assert!(busy < Duration::from_secs(10), "{what}: {busy:?} of CPU in {:?}", start.elapsed());
    // Everyone else is served as before.
    let mut other = Peer::client(process.outbound).await;
    assert_eq!(tokio::time::timeout(SOON, other.ask(1, "/")).await.expect(what).status(), 200, "{what}");
}

fn abuse<'a>(
    what: &'a str,
    wave: &'a dyn Fn(u32) -> Vec<u8>,
    waves: u32,
    reads: bool,
    answer: Option<Answer>,
) -> Abuse<'a> {
    Abuse { what, wave, waves, reads, answer }
}

fn opening(stream: u32, path: &str) -> Vec<u8> {
    post(stream, path)
}

#[tokio::test]
async fn floods_end_with_a_limit() {
    let app = App::start().await;
    let process = Process::start(app.address).await;
    let calm = Some(Answer::Goaway(ENHANCE_YOUR_CALM));

    // CVE-2023-44487: streams opened and given up at once, in bursts.
    let rapid = |wave: u32| {
        (0..100)
            .flat_map(|i| [get(wave * 200 + i * 2 + 1, "/never"), reset(wave * 200 + i * 2 + 1, CANCEL)].concat())
            .collect()
    };
    survives(&process, abuse("rapid reset, in bursts", &rapid, 1000, true, calm)).await;

    // Malformed requests, each answered with RST_STREAM.
    let malformed = |wave: u32| {
        let bad = block(&[(":method", "GET"), ("connection", "close")]);
        (0..100).flat_map(|i| frame(HEADERS, END_STREAM | END_HEADERS, wave * 200 + i * 2 + 1, &bad)).collect()
    };
    survives(&process, abuse("errors of streams on end", &malformed, 1000, true, calm)).await;

    // A header block that never ends.
    let endless = |wave: u32| {
        if wave == 0 {
            frame(HEADERS, 0, 1, &block(&request("GET", "/")))
        } else {
            frame(CONTINUATION, 0, 1, &literal("x", "y")).repeat(64)
        }
    };
    survives(&process, abuse("CONTINUATION without end", &endless, 1000, true, calm)).await;
    let empty = |wave: u32| {
        if wave == 0 { frame(HEADERS, 0, 1, &[]) } else { frame(CONTINUATION, 0, 1, &[]).repeat(64) }
    };
    survives(&process, abuse("empty CONTINUATION without end", &empty, 1000, true, calm)).await;

    // DATA with nothing in it, for an application that reads and for one that does not.
    for path in ["/echo", "/never"] {
        let nothing = |wave: u32| if wave == 0 { opening(1, path) } else { frame(DATA, 0, 1, &[]).repeat(64) };
        survives(&process, abuse("empty DATA without end", &nothing, 1000, true, calm)).await;
    }

    // Header bombs: one entry of the table, named again and again.
    let bomb = |_: u32| {
        let mut block = block(&request("GET", "/"));
        block.push(0x40);
        block.extend([1, b'b']);
        integer(&mut block, 7, 0, 4000);
        block.extend([b'x'; 4000]);
        block.extend([0xbe; 10_000]);
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)
    };
    survives(&process, abuse("a header bomb", &bomb, 1, true, calm)).await;
}

#[tokio::test]
async fn floods_that_are_answered_meet_back_pressure() {
    let app = App::start().await;
    let process = Process::start(app.address).await;
    let harmless = None;
    let pings = |_: u32| frame(PING, 0, 0, b"flooding").repeat(1000);
    survives(&process, abuse("pings whose answers nobody reads", &pings, 2000, false, harmless)).await;
    survives(&process, abuse("pings", &pings, 200, true, harmless)).await;
    let settings = |_: u32| settings(&[(INITIAL_WINDOW_SIZE, 65_535)]).repeat(500);
    survives(&process, abuse("settings whose acknowledgements nobody reads", &settings, 2000, false, harmless)).await;
    survives(&process, abuse("settings", &settings, 200, true, harmless)).await;
    let priorities = |_: u32| frame(PRIORITY, 0, 77, &[0, 0, 0, 3, 9]).repeat(1000);
    survives(&process, abuse("priorities", &priorities, 300, true, harmless)).await;
    let unknown = |_: u32| frame(0x99, 0, 5, b"whatever").repeat(1000);
    survives(&process, abuse("frames of unknown type", &unknown, 300, true, harmless)).await;
    let updates = |wave: u32| if wave == 0 { opening(1, "/never") } else { window_update(1, 1).repeat(1000) };
    survives(&process, abuse("window updates", &updates, 200, true, harmless)).await;
}

/// Requests given up one after the other, each after the proxy took it: no burst ever shows.
#[tokio::test]
async fn requests_given_up_without_end_end_the_connection() {
    let app = App::start().await;
    let process = Process::start(app.address).await;
    let mut peer = Peer::client(process.outbound).await;
    let mut given_up = 0;
    let ended = async {
        for stream in (1..200_000).step_by(2) {
            peer.send(&[get(stream, "/never"), frame(PING, 0, 0, b"taken up")].concat()).await;
            loop {
                match peer.next().await {
                    Some(seen) if seen.is(PING, 0) && seen.has(ACK) => break,
                    Some(_) => {}
                    None => return,
                }
            }
            peer.send(&reset(stream, CANCEL)).await;
            given_up += 1;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
    assert!((100..=2000).contains(&given_up), "{given_up}");
    assert_eq!(Peer::client(process.outbound).await.ask(1, "/").await.status(), 200);
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused() {
    let app = App::start().await;
    let process = Process::start(app.address).await;
    let before = process.memory();
    let mut peer = Peer::connect(process.outbound).await;
    let theirs = peer.greet(&[(HEADER_TABLE_SIZE, 0)]).await;
    let most = theirs
        .payload
        .chunks(6)
        .find(|setting| setting[..2] == MAX_CONCURRENT_STREAMS.to_be_bytes())
        .map(|setting| u32::from_be_bytes(setting[2..].try_into().unwrap()))
        .expect("a limit is announced");
    for at in 0..most {
        peer.send(&opening(at * 2 + 1, "/never")).await;
    }
    assert!(peer.is_alive().await);
    for at in most..most + 5 {
        peer.send(&opening(at * 2 + 1, "/never")).await;
        let refused = peer.until(|seen| seen.stream == at * 2 + 1).await;
        assert_eq!((refused.kind, refused.code()), (RST_STREAM, REFUSED_STREAM));
    }
    // One that ends makes room for another.
    peer.send(&[reset(1, CANCEL), opening(most * 2 + 11, "/never"), frame(PING, 0, 0, b"in order")].concat()).await;
    let next = peer.until(|seen| seen.stream == most * 2 + 11 || seen.payload == "in order").await;
    assert_eq!(next.kind, PING, "not refused");
    assert!(process.memory() - before < GROWTH);
}

#[tokio::test]
async fn a_client_that_ignores_its_window_loses_its_stream() {
    let stalled = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = stalled.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((io, _)) = stalled.accept().await {
            held.push(Peer::server_with(io, &[(INITIAL_WINDOW_SIZE, 0)]).await);
        }
    });
    let proxy = crate::world::Proxy::start(towards(Protocol::Http2, vec![endpoint(address, None)]), None);
    let mut peer = Peer::client(proxy.outbound).await;
    peer.send(&opening(1, "/")).await;
    peer.send(&frame(DATA, 0, 1, &[0; 16_384]).repeat(40)).await;
    let last = peer.until(|seen| seen.stream == 1 && seen.kind != WINDOW_UPDATE).await;
    assert_eq!((last.kind, last.code()), (RST_STREAM, FLOW_CONTROL_ERROR));
    assert!(peer.is_alive().await);
}

#[tokio::test]
async fn header_lists_have_a_limit() {
    let app = App::start().await;
    let process = Process::start(app.address).await;
    let mut peer = Peer::client(process.outbound).await;
    // Under the limit it is carried, above it refused; the connection lives on.
    for (stream, bytes, expect) in [(1, 12_000, 200), (3, 70_000, 431), (5, 12_000, 200)] {
        let head = [block(&request("GET", "/")), literal("x-big", vec![b'x'; bytes])].concat();
        let (first, rest) = head.split_at(head.len().min(16_000));
        let mut pieces = rest.chunks(16_000).peekable();
        let whole = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        peer.send(&frame(HEADERS, END_STREAM | whole, stream, first)).await;
        while let Some(piece) = pieces.next() {
            let end = if pieces.peek().is_none() { END_HEADERS } else { 0 };
            peer.send(&frame(CONTINUATION, end, stream, piece)).await;
        }
        let answer = peer.until(|seen| seen.stream == stream).await;
        assert_eq!(answer.status(), expect, "{bytes}");
    }
}

/// An application that answers every request with more than any window holds.
async fn endless() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                    let size = if request.uri().path() == "/huge" { 8 << 20 } else { 5 };
                    let body = http_body_util::Full::new(bytes::Bytes::from(vec![b'x'; size]));
                    Ok::<_, std::convert::Infallible>(hyper::Response::new(body))
                });
                let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                let _ = builder.serve_connection(hyper_util::rt::TokioIo::new(io), service).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn slow_readers_slow_only_themselves() {
    let process = Process::start(endless().await).await;
    let before = process.memory();
    // Readers that take nothing, on one connection and on others.
    let mut stuck = Vec::new();
    for _ in 0..4 {
        let mut peer = Peer::client_with(process.outbound, &[(INITIAL_WINDOW_SIZE, 0)]).await;
        for stream in (1..24).step_by(2) {
            assert_eq!(peer.ask(stream, "/huge").await.status(), 200);
        }
        stuck.push(peer);
    }
    // Others, on the same connections and on new ones, get everything.
    for peer in stuck.iter_mut().take(2) {
        peer.send(&[get(25, "/small"), window_update(25, 100)].concat()).await;
        let data = peer.until(|seen| seen.is(DATA, 25)).await;
        assert_eq!(data.payload.len(), 5);
    }
    let wide = [(INITIAL_WINDOW_SIZE, 1 << 30)];
    let mut peer = Peer::client_with(process.outbound, &wide).await;
    peer.send(&[window_update(0, 1 << 30), get(1, "/huge")].concat()).await;
    let mut read = 0;
    while read < 8 << 20 {
        read += peer.until(|seen| seen.is(DATA, 1)).await.payload.len();
    }
    let grown = process.memory().saturating_sub(before);
    assert!(grown < GROWTH, "grew by {} KiB", grown >> 10);
    // What was stuck goes on as soon as its reader does.
    let late = &mut stuck[0];
    late.send(&[window_update(0, 16 << 20), window_update(1, 16 << 20)].concat()).await;
    let mut read = 0;
    while read < 8 << 20 {
        read += late.until(|seen| seen.is(DATA, 1)).await.payload.len();
    }
}
