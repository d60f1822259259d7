//! Kubernetes' protocols over WebSocket: numbered channels in binary messages, or a tunnel for another protocol.
//!
//! In `v4.channel.k8s.io` and `v5.channel.k8s.io` every message begins with the number of its channel. v5 adds a signal
//! that a channel has ended: number 255, then the channel's. Only clients send it.

use super::streams::channel::{Channel, Frame, Inlet, channel, frames};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{Sink, SinkExt as _, Stream, StreamExt as _};
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

/// Signal of v5 that a channel has ended.
const END: u8 = 255;
/// Largest message taken.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// Bytes of a tunnel on their way in one direction, and sent in one message.
const TUNNEL: usize = 64 * 1024;
/// How long the client may take to close the connection after the server is done.
const LINGER: Duration = Duration::from_secs(5);

/// Takes over a connection whose opening handshake has been answered.
async fn server<IO: AsyncRead + AsyncWrite + Unpin>(io: IO) -> WebSocketStream<IO> {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Serves channels 0 to `count` - 1 over a connection: the channels, and the work that moves their data, which ends when
/// all channels are dropped or the client has gone.
pub(super) async fn channels<IO>(io: IO, count: u8) -> (Vec<Channel>, impl Future<Output = ()>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, source) = server(io).await.split();
    let gone = CancellationToken::new();
    let (sender, outgoing) = frames();
    let (channels, inlets): (Vec<_>, Vec<_>) =
        (0..count).map(|id| channel(u32::from(id), sender.clone(), gone.child_token())).unzip();
    let work = async move {
        let receive = receive_messages(source, inlets.into_iter().map(Some).collect(), gone.clone());
        let send = async move {
            if send_frames(sink, outgoing).await.is_err() {
                gone.cancel();
            }
        };
        finish_both(receive, send).await;
    };
    (channels, work)
}

/// Runs both directions; when the server has sent everything, the client has a moment to hang up.
async fn finish_both(receive: impl Future<Output = ()>, send: impl Future<Output = ()>) {
    let mut receive = std::pin::pin!(receive);
    let mut send = std::pin::pin!(send);
    tokio::select! {
        () = &mut receive => send.await,
        () = &mut send => {
            let _ = tokio::time::timeout(LINGER, receive).await;
        }
    }
}

/// Hands messages to their channels until the client closes the connection.
async fn receive_messages(
    mut source: impl Stream<Item = Result<Message, Error>> + Unpin,
    mut inlets: Vec<Option<Inlet>>,
    gone: CancellationToken,
) {
    while let Some(Ok(message)) = source.next().await {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            Message::Close(_) => break,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        match bytes.split_first() {
            Some((&END, ended)) => {
                if let Some(inlet) = ended.first().and_then(|id| inlets.get_mut(usize::from(*id))) {
                    *inlet = None;
                }
            }
            Some((id, [_, ..])) => {
                if let Some(Some(inlet)) = inlets.get(usize::from(*id)) {
                    inlet.deliver(bytes.split_off(1)).await;
                }
            }
            _ => {}
        }
    }
    gone.cancel();
}

/// Sends frames until nobody has any more, then closes the connection.
async fn send_frames(
    mut sink: impl Sink<Message, Error = Error> + Unpin,
    mut outgoing: mpsc::Receiver<Frame>,
) -> Result<(), Error> {
    while let Some(frame) = outgoing.recv().await {
        // There is no way to tell a client that a channel has ended; the others are SPDY's.
        let Frame::Data(id, bytes) = frame else { continue };
        let mut message = BytesMut::with_capacity(1 + bytes.len());
        message.put_u8(id as u8);
        message.put(bytes);
        sink.send(Message::Binary(message.freeze())).await?;
    }
    sink.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))).await
}

/// A byte stream carried by binary messages, and the work that moves it, which ends with either end.
pub(super) async fn tunnel<IO>(io: IO) -> (DuplexStream, impl Future<Output = ()>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sink, mut source) = server(io).await.split();
    let (inner, outer) = tokio::io::duplex(TUNNEL);
    let (mut reader, mut writer) = tokio::io::split(outer);
    let receive = async move {
        while let Some(Ok(message)) = source.next().await {
            let written = match message {
                Message::Binary(bytes) => writer.write_all(&bytes).await,
                Message::Close(_) => break,
                _ => continue,
            };
            if written.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
    };
    let send = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(TUNNEL);
            match reader.read_buf(&mut buffer).await {
                Ok(1..) => {}
                _ => break,
            }
            if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                return;
            }
        }
        let _ = sink.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))).await;
    };
    (inner, finish_both(receive, send))
}

#[cfg(test)]
mod tests;
