//! `pods/portforward`: carries connections of the client to ports of a pod.
//!
//! Over SPDY the client opens two streams for each connection: `error`, on which the server says what went wrong, and
//! `data`. Over WebSocket channels there is one connection for each port asked for: channel 2·n for data, 2·n+1 for
//! errors, each starting with the port's number.

use super::PodError;
use super::spdy::Connection;
use super::streams::channel::{Channel, Outlet};
use bytes::BytesMut;
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Bytes carried at once.
const PIECE: usize = 32 * 1024;
/// Connections at once over one client's connection.
const MAX_CONNECTIONS: usize = 1024;
/// Streams waiting for their counterpart.
const MAX_UNPAIRED: usize = 64;

/// Connects to a port of a pod.
pub(super) type Dial = Arc<dyn Fn(u16) -> BoxFuture<'static, Result<TcpStream, PodError>> + Send + Sync>;

/// The two streams of one connection, as they come.
#[derive(Default)]
struct Pair {
    data: Option<Channel>,
    error: Option<Channel>,
}

/// Serves connections over SPDY until the client is gone.
pub(super) async fn serve_spdy(mut connection: Connection, dial: &Dial) {
    let mut waiting: HashMap<(String, u16), Pair> = HashMap::new();
    let mut forwards = JoinSet::new();
    loop {
        let (headers, stream) = tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(accepted) => accepted,
                None => break,
            },
            Some(_) = forwards.join_next() => continue,
        };
        let port = headers.get("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0);
        let (Some(kind), Some(port)) = (headers.get("streamtype"), port) else {
            stream.outlet().reset().await;
            continue;
        };
        let key = (headers.get("requestid").unwrap_or_default().to_owned(), port);
        if forwards.len() >= MAX_CONNECTIONS || waiting.len() >= MAX_UNPAIRED && !waiting.contains_key(&key) {
            stream.outlet().reset().await;
            continue;
        }
        let mut pair = waiting.remove(&key).unwrap_or_default();
        match kind {
            "data" => pair.data = Some(stream),
            "error" => pair.error = Some(stream),
            _ => stream.outlet().reset().await,
        }
        match pair {
            Pair { data: Some(data), error: Some(error) } => {
                let dial = Arc::clone(dial);
                forwards.spawn(async move { forward(&dial, port, data, &error.outlet()).await });
            }
            Pair { data: None, error: None } => {}
            half => {
                waiting.insert(key, half);
            }
        }
    }
    forwards.shutdown().await;
    connection.close().await;
}

/// Serves one connection for each of `ports` over WebSocket channels.
pub(super) async fn serve_channels(channels: Vec<Channel>, ports: &[u16], dial: &Dial) {
    let mut channels = channels.into_iter();
    let mut forwards = JoinSet::new();
    for port in ports {
        let (Some(data), Some(error)) = (channels.next(), channels.next()) else { break };
        let (dial, port) = (Arc::clone(dial), *port);
        let error = error.outlet();
        for outlet in [&data.outlet(), &error] {
            if outlet.send(port.to_le_bytes().to_vec()).await.is_err() {
                return;
            }
        }
        forwards.spawn(async move { forward(&dial, port, data, &error).await });
    }
    while forwards.join_next().await.is_some() {}
}

/// Carries one connection from beginning to end.
async fn forward(dial: &Dial, port: u16, data: Channel, error: &Outlet) {
    match dial(port).await {
        Ok(stream) => carry(stream, data).await,
        Err(failure) => {
            let _ = error.send(failure.to_string()).await;
            data.outlet().reset().await;
        }
    }
    error.finish().await;
}

/// Copies both directions, each to its own end, until both have ended or the client gives the connection up.
async fn carry(stream: TcpStream, mut data: Channel) {
    let (mut from_pod, mut to_pod) = stream.into_split();
    let (outlet, gone) = (data.outlet(), data.gone());
    let upstream = async {
        while let Some(bytes) = data.receive().await {
            if to_pod.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to_pod.shutdown().await;
    };
    let downstream = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            match from_pod.read_buf(&mut buffer).await {
                Ok(1..) if outlet.send(buffer.split().freeze()).await.is_ok() => {}
                _ => break,
            }
        }
        outlet.finish().await;
    };
    tokio::select! {
        _ = async { tokio::join!(upstream, downstream) } => {}
        () = gone.cancelled() => {}
    }
}

#[cfg(test)]
mod tests;
