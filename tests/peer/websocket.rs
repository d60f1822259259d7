//! What follows an upgrade or a CONNECT: WebSocket by a library that is nobody's here, or bytes echoed.

use super::http::{Body, full};
use anyhow::{Context, Result, ensure};
use futures::{SinkExt, StreamExt};
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Answers 101 to a request that asks for `protocol`.
pub(crate) fn upgrade(mut request: Request<Incoming>, protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(full(""));
    if request.headers().get(header::UPGRADE).is_none_or(|asked| asked != protocol) {
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        return response;
    }
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(protocol));
    if let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY)
        && let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
    {
        response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let io = TokioIo::new(upgraded.await?);
        if protocol == "websocket" { talk(io).await } else { echo(io).await }
    });
    response
}

/// Answers a CONNECT with a tunnel that leads nowhere but echoes; over HTTP/2 one may name a protocol (RFC 8441).
pub(crate) fn tunnel(mut request: Request<Incoming>) -> Response<Body> {
    let websocket = request.extensions().get::<hyper::ext::Protocol>().is_some_and(|p| p.as_str() == "websocket");
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let io = TokioIo::new(upgraded.await?);
        if websocket { talk(io).await } else { echo(io).await }
    });
    Response::new(full(""))
}

async fn echo(io: impl AsyncRead + AsyncWrite) -> Result<()> {
    let (mut read, mut write) = tokio::io::split(io);
    tokio::io::copy(&mut read, &mut write).await?;
    Ok(write.shutdown().await?)
}

/// Sends every message back.
async fn talk(io: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    while let Some(Ok(message)) = socket.next().await {
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}

/// Talks as a client: texts, a large binary message, a ping, the end.
pub(crate) async fn talk_as_client(io: impl AsyncRead + AsyncWrite + Unpin) -> Result<String> {
    let socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    converse(socket).await
}

pub(crate) async fn client(address: &str) -> Result<String> {
    let url = format!("ws://{address}/websocket");
    let (socket, response) =
        tokio_tungstenite::client_async(&url, super::connect(address).await?).await.context("the handshake")?;
    ensure!(response.status() == StatusCode::SWITCHING_PROTOCOLS, "{}", response.status());
    converse(socket).await
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(mut socket: WebSocketStream<S>) -> Result<String> {
    for text in ["one", "two", "three"] {
        socket.send(Message::text(text)).await?;
        let answer = socket.next().await.context("no answer")??;
        ensure!(answer == Message::text(text), "{answer:?}");
    }
    let large = Message::binary(vec![7; 300_000]);
    socket.send(large.clone()).await?;
    ensure!(socket.next().await.context("no answer")?? == large, "the large message changed");
    socket.send(Message::Ping("?".into())).await?;
    let pong = socket.next().await.context("no answer")??;
    ensure!(pong == Message::Pong("?".into()), "{pong:?}");
    socket.close(None).await?;
    while let Some(message) = socket.next().await {
        ensure!(message?.is_close(), "something came after the end");
    }
    Ok("conversed".to_owned())
}
