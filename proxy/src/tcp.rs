//! Opaque connections: bytes copied both ways, each direction closed by itself, resets passed on as resets, and
//! everything counted while it flows.

use crate::limits;
use crate::record::ConnectionRecord;
use crate::stream::Stream;
use bytes::{Buf, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

/// How a copied connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both sides closed.
    Orderly,
    /// The client broke off.
    ByClient,
    /// The server broke off.
    ByServer,
}

/// Copies between client and server until both have closed. `from_server` is what the server had already said.
pub async fn carry(mut client: Stream, mut server: Stream, from_server: BytesMut, record: &ConnectionRecord) {
    if !from_server.is_empty() {
        record.written(from_server.len() as u64);
    }
    match copy_with(&mut client, &mut server, from_server, record).await {
        Ended::Orderly => {}
        Ended::ByClient => server.reset(),
        Ended::ByServer => client.reset(),
    }
}

/// Copies between client and server until both have closed.
pub async fn copy<C, S>(client: &mut C, server: &mut S, record: &ConnectionRecord) -> Ended
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    copy_with(client, server, BytesMut::new(), record).await
}

async fn copy_with<C, S>(client: &mut C, server: &mut S, from_server: BytesMut, record: &ConnectionRecord) -> Ended
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Flow::new(BytesMut::new());
    let mut down = Flow::new(from_server);
    record.begins();
    let ended = std::future::poll_fn(|cx| {
        let upward = up.poll(cx, client, server, |n| record.read(n));
        let downward = down.poll(cx, server, client, |n| record.written(n));
        match (upward, downward) {
            (Poll::Ready(Err(Side::From)), _) | (_, Poll::Ready(Err(Side::To))) => Poll::Ready(Ended::ByClient),
            (Poll::Ready(Err(Side::To)), _) | (_, Poll::Ready(Err(Side::From))) => Poll::Ready(Ended::ByServer),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ended::Orderly),
            _ => Poll::Pending,
        }
    })
    .await;
    record.ended(ended);
    ended
}

/// The side of a flow that broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    From,
    To,
}

/// One direction.
#[derive(Debug)]
struct Flow {
    buffer: BytesMut,
    unflushed: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Copying,
    ShuttingDown,
    Done,
}

impl Flow {
    fn new(buffer: BytesMut) -> Self {
        Self { buffer, unflushed: false, stage: Stage::Copying }
    }

    /// Moves as much as goes; ready when the source has ended and the end was passed on.
    fn poll<F, T>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        count: impl Fn(u64),
    ) -> Poll<Result<(), Side>>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        loop {
            match self.stage {
                Stage::Done => return Poll::Ready(Ok(())),
                Stage::ShuttingDown => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(|_| Side::To)?;
                    self.stage = Stage::Done;
                }
                Stage::Copying if !self.buffer.is_empty() => {
                    let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.buffer));
                    match written {
                        Ok(0) | Err(_) => return Poll::Ready(Err(Side::To)),
                        Ok(n) => self.buffer.advance(n),
                    }
                    self.unflushed = true;
                }
                Stage::Copying => match self.fill(cx, from) {
                    Poll::Ready(Ok(0)) => {
                        self.buffer = BytesMut::new();
                        self.stage = Stage::ShuttingDown;
                    }
                    Poll::Ready(Ok(n)) => count(n as u64),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Side::From)),
                    Poll::Pending => {
                        self.buffer = BytesMut::new(); // an idle connection holds no buffer
                        if self.unflushed {
                            ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(|_| Side::To)?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    fn fill<F: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, from: &mut F) -> Poll<io::Result<usize>> {
        self.buffer.clear();
        self.buffer.reserve(limits::COPY_BUFFER);
        poll_read_buf(Pin::new(from), cx, &mut self.buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::Golden;
    use mesh_api::WorkloadRef;
    use mesh_api::golden::{Direction, Ending, TlsStatus};
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (a, b) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (a.unwrap(), b.unwrap().0)
    }

    struct Setup {
        client: TcpStream,
        server: TcpStream,
        golden: Arc<Golden>,
        task: tokio::task::JoinHandle<()>,
    }

    async fn setup(from_server: &[u8]) -> Setup {
        let ((client, near_client), (near_server, server)) = (pair().await, pair().await);
        let golden = Arc::new(Golden::new(0));
        let scope = golden.scope(Direction::Outbound, &WorkloadRef::new("a", "b", "c"), None, 1);
        let record = ConnectionRecord::open(&golden, &scope, TlsStatus::Plain, Arc::default());
        let from_server = BytesMut::from(from_server);
        let task = tokio::spawn(async move {
            carry(near_client.into(), near_server.into(), from_server, &record).await;
        });
        Setup { client, server, golden, task }
    }

    #[tokio::test]
    async fn a_half_closed_connection_goes_on_the_other_way() {
        let Setup { mut client, mut server, golden, task } = setup(b"hello ").await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        got.clear();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"hello answer");
        task.await.unwrap();
        let series = &golden.tick(1000, true).series[0].1;
        assert_eq!((series.tcp_read_bytes, series.tcp_write_bytes), (8, 12));
        assert_eq!((series.tcp_opened, series.tcp_closed, series.tcp_open), (1, 1, 0));
        assert_eq!((series.tcp_closes[&Ending::Orderly], series.tcp_duration.count()), (1, 1));
    }

    #[tokio::test]
    async fn a_reset_stays_a_reset() {
        let Setup { client, mut server, task, golden } = setup(b"").await;
        client.set_zero_linger().unwrap();
        drop(client);
        let error = server.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        task.await.unwrap();
        assert_eq!(golden.tick(1000, true).series[0].1.tcp_closes, [(Ending::ByClient, 1)].into());
    }

    /// However long an opaque connection is silent, nothing of ours ends it: on a runtime without a clock, whatever set a
    /// timer would panic. (The kernel's keep-alive tells of peers that are gone.)
    #[test]
    fn a_connection_may_be_silent_for_ever() {
        let golden = Golden::new(0);
        let scope = golden.scope(Direction::Outbound, &WorkloadRef::new("a", "b", "c"), None, 1);
        let record = ConnectionRecord::open(&golden, &scope, TlsStatus::Plain, Arc::default());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut client, mut near) = tokio::io::duplex(64);
            let (mut far, mut server) = tokio::io::duplex(64);
            let carried = tokio::spawn(async move { copy(&mut near, &mut far, &record).await });
            for _ in 0..3 {
                client.write_all(b"ping").await.unwrap();
                let mut got = [0; 4];
                server.read_exact(&mut got).await.unwrap();
                server.write_all(&got).await.unwrap();
                client.read_exact(&mut got).await.unwrap();
                assert_eq!(&got, b"ping");
                // Everything is idle, and says so.
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                assert!(!carried.is_finished());
            }
            drop((client, server));
            assert_eq!(carried.await.unwrap(), Ended::Orderly);
        });
    }

    #[tokio::test]
    async fn more_than_a_buffer_passes_unharmed() {
        let Setup { mut client, mut server, task, .. } = setup(b"").await;
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i * 31 % 251) as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            client
        });
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert!(got == expected);
        drop(server);
        writer.await.unwrap();
        task.await.unwrap();
    }
}
