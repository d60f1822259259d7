//! The server side of SPDY/3.1 over any byte stream, as far as Kubernetes' streaming protocols use it.
//!
//! Clients open streams, each with a few headers; [`Connection::accept`] yields them as [`Channel`]s. Clients of Kubernetes
//! neither keep nor announce flow-control windows, so none are kept here: a reader that falls behind holds up the
//! connection, and TCP the client.

mod frame;
mod header;

use super::streams::channel::{Channel, Frame, Frames, Inlet, channel, frames};
use bytes::Bytes;
use frame::{Control, FrameError, Head};
pub(super) use header::Headers;
use header::{Deflater, Inflater};
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Streams open at once on a connection; further ones are refused.
const MAX_STREAMS: usize = 2048;
/// Streams opened but not yet accepted.
const BACKLOG: usize = 64;
/// Bytes of a data frame handed on at once.
const PIECE: usize = 32 * 1024;
/// How long the client may take to close the connection after the server is done.
const LINGER: Duration = Duration::from_secs(5);

/// A SPDY connection. Dropping it ends it; [`Connection::close`] sends what is still to be sent first.
#[derive(Debug)]
pub(super) struct Connection {
    accepted: mpsc::Receiver<(Headers, Channel)>,
    /// Keeps the sending side alive while no stream is open.
    frames: Frames,
    gone: CancellationToken,
    tasks: JoinSet<()>,
}

impl Connection {
    /// Begins to serve SPDY on a connected byte stream.
    pub(super) fn start(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (reader, writer) = tokio::io::split(io);
        let (accept, accepted) = mpsc::channel(BACKLOG);
        let (sender, frames) = frames();
        let gone = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let ended = gone.clone();
        tasks.spawn(async move {
            if let Err(error) = write_frames(writer, frames).await {
                tracing::debug!(%error, "SPDY connection: sending");
                ended.cancel();
            }
        });
        let ended = gone.clone();
        let answers = sender.downgrade();
        tasks.spawn(async move {
            let mut reader = Reader::new(reader, accept, answers, ended.clone());
            if let Err(error) = reader.run().await {
                tracing::debug!(%error, "SPDY connection: receiving");
            }
            ended.cancel();
        });
        Self { accepted, frames: sender, gone, tasks }
    }

    /// The next stream the client opens, with its headers; `None` when it is gone.
    pub(super) async fn accept(&mut self) -> Option<(Headers, Channel)> {
        tokio::select! {
            accepted = self.accepted.recv() => accepted,
            () = self.gone.cancelled() => None,
        }
    }

    /// Waits a moment for the client to take what was sent and hang up. All channels must be gone by then.
    pub(super) async fn close(self) {
        let Self { accepted, frames, gone: _, mut tasks } = self;
        drop((accepted, frames));
        let _ = tokio::time::timeout(LINGER, async { while tasks.join_next().await.is_some() {} }).await;
    }
}

/// Sends frames until nobody has any more to send.
async fn write_frames<W: AsyncWrite>(
    mut writer: WriteHalf<W>,
    mut frames: mpsc::Receiver<Frame>,
) -> std::io::Result<()> {
    let mut deflater = Deflater::new();
    while let Some(frame) = frames.recv().await {
        match frame {
            Frame::Data(stream, bytes) => {
                // A frame's length has 24 bits; pieces are never near that.
                writer.write_all(&frame::data_head(stream, false, bytes.len())).await?;
                writer.write_all(&bytes).await?;
            }
            Frame::End(stream) => writer.write_all(&frame::data_head(stream, true, 0)).await?,
            Frame::Reset(stream) => writer.write_all(&frame::reset(stream, frame::CANCEL)).await?,
            Frame::Refuse(stream) => writer.write_all(&frame::reset(stream, frame::REFUSED_STREAM)).await?,
            Frame::Accept(stream) => {
                let reply = frame::syn_reply(stream, &deflater.deflate(&Headers::default())?);
                writer.write_all(&reply).await?;
            }
            Frame::Pong(id) => writer.write_all(&frame::ping(id)).await?,
        }
        writer.flush().await?;
    }
    writer.shutdown().await
}

/// Reads frames and hands their content to streams.
struct Reader<R> {
    reader: BufReader<ReadHalf<R>>,
    inflater: Inflater,
    streams: HashMap<u32, Inlet>,
    last_stream: u32,
    accept: mpsc::Sender<(Headers, Channel)>,
    /// Held weakly: the sending side ends with the connection's owner and channels, not with the client.
    frames: mpsc::WeakSender<Frame>,
    gone: CancellationToken,
}

impl<R: AsyncRead> Reader<R> {
    fn new(
        reader: ReadHalf<R>,
        accept: mpsc::Sender<(Headers, Channel)>,
        frames: mpsc::WeakSender<Frame>,
        gone: CancellationToken,
    ) -> Self {
        Self {
            reader: BufReader::with_capacity(PIECE, reader),
            inflater: Inflater::new(),
            streams: HashMap::new(),
            last_stream: 0,
            accept,
            frames,
            gone,
        }
    }

    async fn run(&mut self) -> Result<(), FrameError> {
        loop {
            let mut head = [0; 8];
            match self.reader.read_exact(&mut head).await {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            };
            match Head::parse(head)? {
                Head::Data { stream, fin, length } => self.data(stream, fin, length).await?,
                Head::Control { kind, flags, length } => {
                    let mut payload = vec![0; length];
                    self.reader.read_exact(&mut payload).await?;
                    let control = Control::parse(kind, flags, &payload, &mut self.inflater)?;
                    if !self.control(control).await {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn data(&mut self, stream: u32, fin: bool, mut left: usize) -> Result<(), FrameError> {
        while left > 0 {
            let mut piece = vec![0; left.min(PIECE)];
            self.reader.read_exact(&mut piece).await?;
            left -= piece.len();
            if let Some(inlet) = self.streams.get(&stream) {
                inlet.deliver(Bytes::from(piece)).await;
            }
        }
        if fin {
            self.streams.remove(&stream);
        }
        Ok(())
    }

    /// Acts on a control frame; false if nobody is left to serve.
    async fn control(&mut self, control: Control) -> bool {
        match control {
            Control::Open { stream, fin, headers } => return self.open(stream, fin, headers).await,
            Control::Headers { stream, fin: true } => {
                self.streams.remove(&stream);
            }
            Control::Reset { stream } => {
                if let Some(inlet) = self.streams.remove(&stream) {
                    inlet.abandon();
                }
            }
            // Clients' pings are odd; even ones would be answers to ours, and we send none.
            Control::Ping { id } if id % 2 == 1 => self.send(Frame::Pong(id)).await,
            Control::Headers { .. } | Control::Ping { .. } | Control::Ignored => {}
        }
        true
    }

    async fn open(&mut self, stream: u32, fin: bool, headers: Headers) -> bool {
        // Streams of clients have odd, rising numbers.
        if stream.is_multiple_of(2) || stream <= self.last_stream {
            self.send(Frame::Refuse(stream)).await;
            return true;
        }
        self.last_stream = stream;
        if self.streams.len() >= MAX_STREAMS {
            self.streams.retain(|_, inlet| !inlet.is_closed());
        }
        if self.streams.len() >= MAX_STREAMS {
            self.send(Frame::Refuse(stream)).await;
            return true;
        }
        let Some(frames) = self.frames.upgrade() else { return false };
        let (channel, inlet) = channel(stream, frames.clone(), self.gone.child_token());
        if !fin {
            self.streams.insert(stream, inlet);
        }
        if frames.send(Frame::Accept(stream)).await.is_err() {
            return false;
        }
        drop(frames);
        self.accept.send((headers, channel)).await.is_ok()
    }

    async fn send(&mut self, frame: Frame) {
        if let Some(frames) = self.frames.upgrade() {
            let _ = frames.send(frame).await;
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
