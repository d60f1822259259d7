//! A two-way flow of bytes, one of many over a connection; the same whether WebSocket or SPDY carries it.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Pieces of data waiting on one channel, and frames waiting to be sent on one connection.
const QUEUE: usize = 16;

/// Something to send to the client.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::node) enum Frame {
    /// Bytes of a channel.
    Data(u32, Bytes),
    /// No more bytes will come on a channel.
    End(u32),
    /// The channel is abandoned.
    Reset(u32),
    /// The channel is accepted (SPDY).
    Accept(u32),
    /// The channel is refused (SPDY).
    Refuse(u32),
    /// An answer to a ping (SPDY).
    Pong(u32),
}

/// Frames on their way to the client.
pub(in crate::node) type Frames = mpsc::Sender<Frame>;

/// The sending end of a channel; clones share it.
#[derive(Debug, Clone)]
pub(in crate::node) struct Outlet {
    id: u32,
    frames: Frames,
}

/// A channel as its user has it.
#[derive(Debug)]
pub(in crate::node) struct Channel {
    incoming: mpsc::Receiver<Bytes>,
    outlet: Outlet,
    gone: CancellationToken,
}

/// A channel as its connection has it.
#[derive(Debug)]
pub(in crate::node) struct Inlet {
    incoming: mpsc::Sender<Bytes>,
    gone: CancellationToken,
}

/// The client isn't there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node) struct Gone;

/// A queue of frames for one connection.
pub(in crate::node) fn frames() -> (Frames, mpsc::Receiver<Frame>) {
    mpsc::channel(QUEUE)
}

/// Both ends of a channel; `gone` is cancelled when its connection ends.
pub(in crate::node) fn channel(id: u32, frames: Frames, gone: CancellationToken) -> (Channel, Inlet) {
    let (sender, incoming) = mpsc::channel(QUEUE);
    let inlet = Inlet { incoming: sender, gone: gone.clone() };
    (Channel { incoming, outlet: Outlet { id, frames }, gone }, inlet)
}

impl Channel {
    /// The next piece of data; `None` when the client has sent all it will.
    pub(in crate::node) async fn receive(&mut self) -> Option<Bytes> {
        self.incoming.recv().await
    }

    /// The sending end.
    pub(in crate::node) fn outlet(&self) -> Outlet {
        self.outlet.clone()
    }

    /// Cancelled when the client has abandoned the channel or is gone.
    pub(in crate::node) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }
}

impl Outlet {
    /// Sends bytes; waits while the client takes none.
    pub(in crate::node) async fn send(&self, bytes: impl Into<Bytes>) -> Result<(), Gone> {
        self.frames.send(Frame::Data(self.id, bytes.into())).await.map_err(|_| Gone)
    }

    /// Says that nothing more will be sent.
    pub(in crate::node) async fn finish(&self) {
        let _ = self.frames.send(Frame::End(self.id)).await;
    }

    /// Abandons the channel.
    pub(in crate::node) async fn reset(&self) {
        let _ = self.frames.send(Frame::Reset(self.id)).await;
    }
}

impl Inlet {
    /// Hands data to the channel's user, waiting until there is room; of a user who doesn't care any more, it is dropped.
    pub(in crate::node) async fn deliver(&self, bytes: Bytes) {
        tokio::select! {
            _ = self.incoming.send(bytes) => {}
            () = self.gone.cancelled() => {}
        }
    }

    /// Tells the user that the client has abandoned the channel.
    pub(in crate::node) fn abandon(&self) {
        self.gone.cancel();
    }

    /// True if the user doesn't receive any more.
    pub(in crate::node) fn is_closed(&self) -> bool {
        self.incoming.is_closed()
    }
}
