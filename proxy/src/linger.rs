//! The end of a connection on which the other side may still be sending.
//!
//! A socket that is closed with something unread in it answers with a TCP reset, and a reset takes with it what the
//! other side has not read yet: the end of the last answer. An HTTP/2 client sends as long as it reads (windows, ping
//! answers), so the last response before a GOAWAY is the one that is lost. What still comes is therefore read and
//! dropped for a while, until the other side closes too (RFC 9112, section 9.6, which applies here as well).

use crate::limits;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Patience with what the other side still sends.
#[derive(Debug)]
pub struct Linger {
    /// Bytes read at most.
    left: usize,
    until: Pin<Box<Sleep>>,
}

impl Linger {
    /// From now on.
    pub fn begin() -> Self {
        let until = Instant::now() + limits::LINGER_TIME;
        Self { left: limits::LINGER_BYTES, until: Box::pin(tokio::time::sleep_until(until)) }
    }

    /// Reads and drops; ready when the other side has closed, or patience ends.
    pub fn poll(&mut self, io: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<()> {
        while self.left > 0 {
            let mut dropped = [0; 4096];
            let mut dropped = ReadBuf::new(&mut dropped);
            match Pin::new(&mut *io).poll_read(cx, &mut dropped) {
                Poll::Pending => return self.until.as_mut().poll(cx),
                Poll::Ready(Err(_)) => break,
                Poll::Ready(Ok(())) if dropped.filled().is_empty() => break,
                Poll::Ready(Ok(())) => self.left = self.left.saturating_sub(dropped.filled().len()),
            }
        }
        Poll::Ready(())
    }
}

/// A connection that lingers when it has been shut down.
#[derive(Debug)]
pub struct Lingering<S> {
    io: S,
    end: End,
}

#[derive(Debug)]
enum End {
    Open,
    Lingering(Linger),
    Closed,
}

impl<S> Lingering<S> {
    /// An open connection.
    pub fn new(io: S) -> Self {
        Self { io, end: End::Open }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.end {
                End::Open => {
                    ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
                    this.end = End::Lingering(Linger::begin());
                }
                End::Lingering(linger) => {
                    ready!(linger.poll(&mut this.io, cx));
                    this.end = End::Closed;
                }
                End::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn ends_when_the_other_side_closes() {
        let (ours, mut theirs) = duplex(64);
        let mut ours = Lingering::new(ours);
        let begun = Instant::now();
        let other = tokio::spawn(async move {
            theirs.read_to_end(&mut Vec::new()).await.unwrap();
            theirs.write_all(&[0; 1000]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        });
        ours.shutdown().await.unwrap();
        other.await.unwrap();
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_millis(300) && waited < limits::LINGER_TIME, "{waited:?}");
    }

    #[tokio::test]
    async fn has_limits() {
        let (ours, theirs) = duplex(64);
        let begun = Instant::now();
        Lingering::new(ours).shutdown().await.unwrap();
        assert!(begun.elapsed() >= limits::LINGER_TIME, "{:?}", begun.elapsed());
        drop(theirs);

        let (ours, mut theirs) = duplex(64);
        let endless = tokio::spawn(async move { while theirs.write_all(&[0; 64]).await.is_ok() {} });
        let begun = Instant::now();
        Lingering::new(ours).shutdown().await.unwrap();
        assert!(begun.elapsed() < limits::LINGER_TIME, "so many bytes were enough");
        endless.await.unwrap();
    }
}
