//! `mesh-golden serve|load`: an application that does what it is told, and a client that knows what it told.
//!
//! The client sends the same requests in every second of the clock, all of them early enough to be answered within that
//! second, and at the end prints what became of each: what the mesh counted over any whole seconds can be compared with
//! it to the last request.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::TokioIo;
use mesh_api::histogram::{bucket_of, bucket_value_us};
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A kind of request: path, how long the application takes, what it answers.
pub(crate) struct Kind {
    pub(crate) path: &'static str,
    pub(crate) delay_ms: u64,
    pub(crate) status: u16,
}

const fn kind(path: &'static str, delay_ms: u64, status: u16) -> Kind {
    Kind { path, delay_ms, status }
}

/// The requests of every second.
pub(crate) const SECOND: &[Kind] = &[
    kind("/fast", 430, 200),
    kind("/fast", 430, 200),
    kind("/fast", 430, 200),
    kind("/fast", 430, 200),
    kind("/fast", 600, 200),
    kind("/slow", 560, 200),
    kind("/slow", 560, 200),
    kind("/slow", 700, 200),
    kind("/sometimes", 430, 200),
    kind("/sometimes", 430, 200),
    kind("/sometimes", 430, 201),
    kind("/sometimes", 650, 503),
    kind("/missing", 600, 404),
    kind("/missing", 600, 404),
];

/// Begin of the first request within a second, and pause between two, milliseconds.
const FIRST_MS: u64 = 30;
const STEP_MS: u64 = 6;

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| match arguments[..] {
        ["serve"] => runtime.block_on(serve()),
        ["load", address, seconds] => runtime.block_on(load(address, seconds.parse()?)),
        _ => anyhow::bail!("usage: mesh-golden serve | load HOST:PORT SECONDS"),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Unix time.
pub(crate) fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Answers as the request's headers say; ends some time after it is told to, as applications behind a mesh should.
async fn serve() -> Result<()> {
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", 8080)).await?;
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let accept = async {
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                let begun = Instant::now();
                let number = |name: &str| request.headers().get(name)?.to_str().ok()?.parse::<u64>().ok();
                tokio::time::sleep(Duration::from_micros(number("delay-us").unwrap_or(0))).await;
                let mut response = http::Response::new(Full::new(Bytes::from_static(b"done\n")));
                let status = number("code").and_then(|code| u16::try_from(code).ok());
                *response.status_mut() = http::StatusCode::from_u16(status.unwrap_or(200)).unwrap_or_default();
                response.headers_mut().insert("took-us", (begun.elapsed().as_micros() as u64).into());
                Ok::<_, std::convert::Infallible>(response)
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    };
    tokio::select! {
        ended = accept => ended,
        _ = term.recv() => {
            tokio::time::sleep(Duration::from_secs(3)).await;
            Ok(())
        }
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;

async fn connect(address: &str) -> Result<Sender> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Delays lie amid the buckets of the mesh's histograms, less what the way takes: what is tested is the counting, not how
/// a value at a bucket's edge is rounded.
pub(crate) fn delay_us(ms: u64) -> u64 {
    (bucket_value_us(bucket_of(ms * 1000)) as u64).saturating_sub(1500)
}

/// How long a request took, microseconds: as the client saw it, and as the application did.
async fn ask(sender: &mut Sender, path: &str, delay_us: u64, status: u16) -> Result<(u64, u64)> {
    sender.ready().await?;
    let request = http::Request::builder()
        .uri(path)
        .header("host", "golden")
        .header("delay-us", delay_us)
        .header("code", status)
        .body(Empty::new())?;
    let begun = Instant::now();
    let response = sender.send_request(request).await?;
    let answered = response.status().as_u16();
    let served = response.headers().get("took-us").context("no took-us")?.to_str()?.parse()?;
    response.into_body().collect().await?;
    let took = begun.elapsed();
    ensure!(answered == status, "{path}: {answered} instead of {status}");
    Ok((took.as_micros() as u64, served))
}

/// Sends [`SECOND`] for so many seconds, then prints `request SECOND PATH STATUS MICROSECONDS MICROSECONDS` for each
/// (the client's time, and the application's) and `end`.
async fn load(address: &str, seconds: u64) -> Result<()> {
    let first = unix().as_secs() + 3;
    let mut lanes = Vec::new();
    for (lane, kind) in (0u64..).zip(SECOND) {
        let address = address.to_owned();
        lanes.push(tokio::spawn(async move {
            let mut sender = connect(&address).await?;
            ask(&mut sender, "/warm", 0, 200).await?;
            let mut seen = Vec::new();
            for second in first..first + seconds {
                let due = Duration::from_millis(second * 1000 + FIRST_MS + lane * STEP_MS);
                tokio::time::sleep(due.saturating_sub(unix())).await;
                let took = ask(&mut sender, kind.path, delay_us(kind.delay_ms), kind.status).await;
                seen.push((second, took.with_context(|| format!("at second {}", second - first))?));
            }
            anyhow::Ok(seen)
        }));
    }
    say(&format!("begins {first}"));
    for (lane, kind) in lanes.into_iter().zip(SECOND) {
        for (second, (took_us, served_us)) in lane.await?? {
            say(&format!("request {second} {} {} {took_us} {served_us}", kind.path, kind.status));
        }
    }
    say("end");
    std::future::pending().await
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
