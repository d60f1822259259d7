//! The clients: one lane per kind of traffic, each opening connections, using them for a while and letting go of them.
//! Every answer is compared with what was sent.

use crate::app::OPAQUE;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest an operation may take: no answer by then is a failure.
const PATIENCE: Duration = Duration::from_secs(20);
/// Failures described one by one.
const DESCRIBED: usize = 40;

type Body = BoxBody<Bytes, Infallible>;

/// What was tried and what failed, by kind.
#[derive(Default)]
pub(crate) struct Tally {
    /// Kind → (operations, failures).
    pub(crate) kinds: BTreeMap<&'static str, (u64, u64)>,
    /// The first failures, as text.
    pub(crate) described: Vec<String>,
}

/// What all lanes share.
#[derive(Clone)]
pub(crate) struct Load {
    /// Where they connect to.
    pub(crate) outbound: SocketAddr,
    /// What they found.
    pub(crate) tally: Arc<Mutex<Tally>>,
    /// Pause between the operations of a lane.
    pub(crate) pause: Duration,
    /// When everything began.
    pub(crate) begun: Instant,
}

/// A small generator of pseudo-random numbers (Marsaglia's xorshift); a run's load is the same every time.
pub(crate) struct Dice(u64);

impl Dice {
    /// A generator; different seeds, different loads.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    /// Some bytes: mostly few, sometimes many.
    fn bytes(&mut self) -> Bytes {
        let length = match self.below(20) {
            0 => 100_000 + self.below(100_000),
            1..=4 => self.below(20_000),
            _ => self.below(500),
        };
        let seed = self.below(256);
        (0..length).map(|at| (at.wrapping_mul(31).wrapping_add(seed) >> 3) as u8).collect()
    }
}

/// Starts all lanes; returns how many.
pub(crate) fn start(load: &Load) -> u64 {
    let mut lanes = 0;
    for kind in ["http1", "http1", "http1", "http1 once", "http2", "http2", "grpc", "grpc", "tcp", "tcp", "websocket"] {
        lanes += 1;
        tokio::spawn(lane(load.clone(), kind, Dice::new(lanes)));
    }
    lanes
}

async fn lane(load: Load, kind: &'static str, mut dice: Dice) {
    loop {
        let uses = 1 + dice.below(if kind == "http1 once" { 1 } else { 60 });
        let done = match kind {
            "http2" => http2_connection(&load, kind, &mut dice, uses).await,
            "grpc" => grpc_connection(&load, kind, &mut dice, uses).await,
            "tcp" => tcp_connection(&load, kind, &mut dice, uses / 4 + 1).await,
            "websocket" => websocket(&load, kind, &mut dice, uses / 4 + 1).await,
            _ => http1_connection(&load, kind, &mut dice, uses).await,
        };
        if let Err(error) = done {
            load.failed(kind, &error);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Load {
    fn failed(&self, kind: &'static str, error: &anyhow::Error) {
        let mut tally = self.tally.lock().expect("no lane panics while it holds the tally");
        tally.kinds.entry(kind).or_default().1 += 1;
        if tally.described.len() < DESCRIBED {
            let text = format!("{:8.1} s  {kind}: {error:#}", self.begun.elapsed().as_secs_f64());
            tally.described.push(text);
        }
    }

    /// Counts an operation that is about to begin, after the lane's pause.
    async fn next(&self, kind: &'static str) {
        tokio::time::sleep(self.pause).await;
        self.tally.lock().expect("no lane panics while it holds the tally").kinds.entry(kind).or_default().0 += 1;
    }

    async fn connect(&self) -> Result<TcpStream> {
        let stream = timeout(PATIENCE, TcpStream::connect(self.outbound)).await.context("connecting took too long")?;
        let stream = stream.context("cannot connect")?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// A body of known length, or in pieces.
fn body(dice: &mut Dice, content: &Bytes) -> Body {
    if dice.below(2) == 0 {
        return Full::new(content.clone()).boxed();
    }
    let pieces: Vec<_> = content.chunks(7_000).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
    BodyExt::boxed(StreamBody::new(futures::stream::iter(pieces)))
}

async fn check(
    sent: impl Future<Output = hyper::Result<http::Response<hyper::body::Incoming>>>,
    expect: &[u8],
) -> Result<()> {
    let exchange = async {
        let response = sent.await.context("no answer")?;
        let (parts, body) = response.into_parts();
        let collected = body.collect().await.context("the answer broke off")?;
        let trailers = collected.trailers().cloned();
        let got = collected.to_bytes();
        ensure!(
            parts.status == 200,
            "{} {:?}: {}",
            parts.status,
            parts.headers.get("mesh-error"),
            String::from_utf8_lossy(&got).trim_end()
        );
        ensure!(
            got == expect,
            "{} bytes came back of {}, mesh-error {:?}, gRPC message {:?}",
            got.len(),
            expect.len(),
            parts.headers.get("mesh-error"),
            parts.headers.get("grpc-message")
        );
        if parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/grpc") {
            let status = trailers.as_ref().and_then(|t| t.get("grpc-status"));
            ensure!(status.is_some_and(|status| status == "0"), "gRPC status {status:?}");
        }
        Ok(())
    };
    timeout(PATIENCE, exchange).await.context("no complete answer in time")?
}

async fn http1_connection(load: &Load, kind: &'static str, dice: &mut Dice, uses: u64) -> Result<()> {
    let (mut sender, connection) = http1::handshake::<_, Body>(TokioIo::new(load.connect().await?)).await?;
    tokio::spawn(connection);
    for _ in 0..uses {
        load.next(kind).await;
        sender.ready().await.context("the connection was closed between requests")?;
        let get = dice.below(2) == 0;
        let (method, path, content) = if get { ("GET", "/", Bytes::new()) } else { ("POST", "/echo", dice.bytes()) };
        let sent = if get { Full::default().boxed() } else { body(dice, &content) };
        let request = Request::builder().method(method).uri(path).header(header::HOST, "web").body(sent)?;
        check(sender.send_request(request), if get { b"hello" } else { &content }).await?;
    }
    Ok(())
}

async fn http2_connection(load: &Load, kind: &'static str, dice: &mut Dice, uses: u64) -> Result<()> {
    let stream = TokioIo::new(load.connect().await?);
    let (sender, connection) = http2::handshake::<_, _, Body>(TokioExecutor::new(), stream).await?;
    tokio::spawn(connection);
    for _ in 0..uses.div_ceil(4) {
        let mut streams = Vec::new();
        for _ in 0..=dice.below(4) {
            load.next(kind).await;
            let content = dice.bytes();
            let request = Request::post("http://web/echo").body(body(dice, &content))?;
            let mut sender = sender.clone();
            streams.push(async move { check(sender.send_request(request), &content).await });
        }
        for done in futures::future::join_all(streams).await {
            done?;
        }
    }
    Ok(())
}

async fn grpc_connection(load: &Load, kind: &'static str, dice: &mut Dice, uses: u64) -> Result<()> {
    let stream = TokioIo::new(load.connect().await?);
    let (mut sender, connection) = http2::handshake::<_, _, Body>(TokioExecutor::new(), stream).await?;
    tokio::spawn(connection);
    for _ in 0..uses {
        load.next(kind).await;
        // Messages with gRPC's five-byte prefix, one or several.
        let mut content = Vec::new();
        for _ in 0..=dice.below(3) {
            let message = dice.bytes();
            content.push(0);
            content.extend((message.len() as u32).to_be_bytes());
            content.extend(message);
        }
        let content = Bytes::from(content);
        let request = Request::post("http://web/soak.Echo/Stream")
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(body(dice, &content))?;
        check(sender.send_request(request), &content).await?;
    }
    Ok(())
}

async fn tcp_connection(load: &Load, kind: &'static str, dice: &mut Dice, uses: u64) -> Result<()> {
    let mut stream = load.connect().await?;
    stream.write_all(&[OPAQUE]).await?;
    let exchange = async {
        let mut got = vec![0];
        stream.read_exact(&mut got).await.context("nothing came back")?;
        for _ in 0..uses {
            load.next(kind).await;
            let content = dice.bytes();
            got.resize(content.len(), 0);
            let (mut from, mut to) = stream.split();
            let (written, read) = tokio::join!(to.write_all(&content), from.read_exact(&mut got));
            written.context("cannot write")?;
            read.context("the connection broke off")?;
            ensure!(got == content, "other bytes came back");
        }
        stream.shutdown().await?;
        got.clear();
        stream.read_to_end(&mut got).await.context("the end was not orderly")?;
        ensure!(got.is_empty(), "{} bytes came after the end", got.len());
        Ok(())
    };
    timeout(PATIENCE + load.pause * (uses as u32), exchange).await.context("the exchange took too long")?
}

async fn websocket(load: &Load, kind: &'static str, dice: &mut Dice, uses: u64) -> Result<()> {
    let (mut sender, connection) = http1::handshake::<_, Body>(TokioIo::new(load.connect().await?)).await?;
    tokio::spawn(connection.with_upgrades());
    load.next(kind).await;
    let request = Request::get("/socket")
        .header(header::HOST, "web")
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(Full::default().boxed())?;
    let exchange = async {
        let response = sender.send_request(request).await.context("no answer")?;
        ensure!(response.status() == 101, "{}", response.status());
        let mut io = TokioIo::new(hyper::upgrade::on(response).await?);
        for round in 0..=uses {
            load.next(kind).await;
            // Text frames, and a close frame at the end.
            let last = round == uses;
            let content: Vec<u8> = if last { Vec::new() } else { (0..dice.below(126)).map(|_| b'w').collect() };
            let mut frame = vec![if last { 0x88 } else { 0x81 }, 0x80 | content.len() as u8, 1, 2, 3, 4];
            frame.extend(content.iter().enumerate().map(|(at, byte)| byte ^ (1 + at as u8 % 4)));
            io.write_all(&frame).await.context("cannot write")?;
            let mut got = vec![0; 2 + content.len()];
            io.read_exact(&mut got).await.context("the connection broke off")?;
            ensure!(got[0] == frame[0] && got[2..] == content, "another frame came back");
        }
        let mut rest = Vec::new();
        io.read_to_end(&mut rest).await.context("the end was not orderly")?;
        ensure!(rest.is_empty(), "{} bytes came after the end", rest.len());
        Ok(())
    };
    timeout(PATIENCE + load.pause * (uses as u32 + 1), exchange).await.context("the exchange took too long")?
}
