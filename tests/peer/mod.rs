//! `mesh-peer`: both ends of the data path tests where no real program plays the part.
//!
//! `mesh-peer origin` is an application with a port for each way of talking, `mesh-peer echo NAME` one that says what
//! reached it; the other commands are clients, each of which
//! prints what it saw for the test to judge.

mod authz;
mod echo;
mod grpc;
mod http;
mod http2;
mod tcp;
mod websocket;

use anyhow::{Context, Result};
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// No client waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(15);

/// Ports of `mesh-peer origin`.
pub(crate) mod ports {
    /// HTTP/1.
    pub(crate) const HTTP1: u16 = 8080;
    /// HTTP/2 with prior knowledge, gRPC too.
    pub(crate) const HTTP2: u16 = 8081;
    /// Greets, then echoes.
    pub(crate) const GREETS: u16 = 9000;
    /// Reads to the end, then says how much it was.
    pub(crate) const COUNTS: u16 = 9001;
    /// Resets the connection at the first byte.
    pub(crate) const RESETS: u16 = 9002;
    /// Echoes.
    pub(crate) const ECHOES: u16 = 9003;
    /// Sends as long as somebody takes it.
    pub(crate) const FLOODS: u16 = 9004;
    /// Notes how connections end.
    pub(crate) const NOTES: u16 = 9005;
    /// HTTP/1 of `mesh-peer echo`.
    pub(crate) const ECHO_HTTP1: u16 = 8080;
    /// HTTP/2 with prior knowledge and gRPC of `mesh-peer echo`.
    pub(crate) const ECHO_HTTP2: u16 = 7070;
}

pub(crate) fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = runtime.context("starting the runtime").and_then(|runtime| runtime.block_on(run(&arguments)));
    let (line, code) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (format!("failed: {error:#}"), ExitCode::FAILURE),
    };
    let _ = writeln!(std::io::stdout(), "{line}");
    code
}

async fn run(arguments: &[&str]) -> Result<String> {
    if let ["origin"] = arguments {
        return origin().await;
    }
    if let ["authz"] = arguments {
        return authz::serve().await;
    }
    if let ["echo", workload] = arguments {
        return echo::serve(workload).await;
    }
    if let ["full", port] = arguments {
        return tcp::full(port.parse()?).await;
    }
    if let ["idle"] = arguments {
        return ended().await;
    }
    let client = async {
        match arguments {
            ["raw", address, text] => tcp::raw(address, text, false).await,
            ["raw", address, text, "shut"] => tcp::raw(address, text, true).await,
            ["tcp", address, case] => tcp::client(address, case).await,
            ["websocket", address] => websocket::client(address).await,
            ["h2", address, case] => http2::client(address, case).await,
            ["grpc", address, case] => grpc::client(address, case).await,
            _ => anyhow::bail!("usage: mesh-peer origin|idle|raw|tcp|websocket|h2|grpc ADDRESS CASE"),
        }
    };
    tokio::time::timeout(PATIENCE, client).await.context("nothing more came")?
}

/// Resolves when the process is told to end.
async fn ended() -> Result<String> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    terminate.recv().await;
    Ok("ended".to_owned())
}

async fn origin() -> Result<String> {
    let seen = http::Seen::default();
    for (port, protocol) in [(ports::HTTP1, http::Protocol::Http1), (ports::HTTP2, http::Protocol::Http2)] {
        tokio::spawn(http::serve(listen(port).await?, protocol, seen.clone()));
    }
    for port in [ports::GREETS, ports::COUNTS, ports::RESETS, ports::ECHOES, ports::FLOODS, ports::NOTES] {
        tokio::spawn(tcp::serve(listen(port).await?, port, seen.clone()));
    }
    ended().await
}

/// Listens for IPv6 and IPv4 alike, or for IPv4 where there is nothing else.
async fn listen(port: u16) -> Result<TcpListener> {
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match TcpListener::bind(both).await {
        Ok(listener) => Ok(listener),
        Err(_) => Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?),
    }
}

async fn connect(address: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
