//! The connection of an HTTP/1 client as the codec sees it: requests pass when [`crate::framing`] has nothing against
//! them, and what must not be forwarded is answered here, with a status that fits and the reason.
//!
//! Bytes are read straight into the codec's buffer and looked at there. Only a head that arrives in pieces is kept back
//! (and given a time limit) until it is whole, so the codec never acts on half a head. To the codec a refusal looks
//! like a client that sends no more: requests that came before it are answered in order, and the refusal goes out when
//! the codec shuts the connection down. Whoever is refused in the middle of sending gets a chance to read the answer:
//! what it still sends is read and dropped for a while (RFC 9112, section 9.6).

use crate::framing::{Followed, Framing, Stop};
use crate::head::Refusal;
use crate::limits;
use crate::linger::Linger;
use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use mesh_api::MeshError;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::io::poll_read_buf;

/// What the connection and the requests on it tell each other.
#[derive(Debug, Default)]
pub struct Notes {
    passage: AtomicU8,
    /// Bytes came behind a request that might end HTTP, before it was answered.
    early: AtomicBool,
    refused: AtomicBool,
}

const HTTP: u8 = 0;
const ASKED: u8 = 1;
const TUNNEL: u8 = 2;

impl Notes {
    /// True if `request` may turn the connection into something else than HTTP.
    pub fn leaves_http<B>(request: &Request<B>) -> bool {
        request.method() == Method::CONNECT
            || (request.version() == Version::HTTP_11 && request.headers().contains_key(header::UPGRADE))
    }

    /// Takes note of the answer to a request that might have ended HTTP. If it did not, and the client did not wait
    /// for that answer, nobody can tell what its bytes were meant to be: the connection is closed.
    pub fn settle<B>(&self, method: &Method, response: &mut Response<B>) {
        let tunnel = response.status() == StatusCode::SWITCHING_PROTOCOLS
            || (*method == Method::CONNECT && response.status().is_success());
        if !tunnel && self.early.load(Ordering::Relaxed) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.passage.store(if tunnel { TUNNEL } else { HTTP }, Ordering::Relaxed);
    }

    /// True if something was refused before it became a request.
    pub fn refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }
}

/// The connection of an HTTP/1 client.
#[derive(Debug)]
pub struct Guard<S> {
    io: S,
    framing: Framing,
    notes: Arc<Notes>,
    /// A section that is not complete yet, or was not handed over yet.
    held: BytesMut,
    /// So much of `held` may be handed over.
    free: usize,
    /// When an incomplete section has to be complete.
    deadline: Option<Pin<Box<Sleep>>>,
    /// How long it may take from its first byte on.
    patience: Duration,
    stop: Option<Stop>,
    closing: Closing,
}

#[derive(Debug)]
enum Closing {
    Open,
    /// What is left of our own answer.
    Answering(Bytes),
    ShuttingDown,
    /// Reading what the client still sends.
    Lingering(Linger),
    Closed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guard<S> {
    /// Guards a client's connection.
    pub fn new(io: S) -> (Self, Arc<Notes>) {
        let notes = Arc::<Notes>::default();
        let guard = Self {
            io,
            framing: Framing::default(),
            notes: notes.clone(),
            held: BytesMut::new(),
            free: 0,
            deadline: None,
            patience: limits::HTTP1_HEAD_TIMEOUT,
            stop: None,
            closing: Closing::Open,
        };
        (guard, notes)
    }

    /// Looks at bytes that follow those passed on so far.
    fn follow(&mut self, from_held: bool, fresh: &[u8]) -> usize {
        let pending = self.framing.is_pending();
        if pending && self.notes.passage.load(Ordering::Relaxed) == HTTP {
            self.framing.go_on();
        }
        let Followed { passed, stop } = self.framing.follow(if from_held { &self.held } else { fresh });
        if self.framing.is_pending() {
            if !pending {
                self.notes.passage.store(ASKED, Ordering::Relaxed);
            }
            self.notes.early.fetch_or(self.framing.is_early(), Ordering::Relaxed);
        }
        self.stop = stop;
        if matches!(stop, Some(Stop::Head(_))) {
            self.notes.refused.store(true, Ordering::Relaxed);
        }
        passed
    }

    /// What the codec learns when nothing more is passed on.
    fn stopped(stop: Stop) -> io::Result<()> {
        match stop {
            // To the codec both look like the end of what the client sends.
            Stop::Head(_) | Stop::Ended => Ok(()),
            Stop::Content(refusal) => Err(io::Error::new(io::ErrorKind::InvalidData, refusal.why)),
        }
    }

    /// Reads behind an incomplete section until it is complete.
    fn complete(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.held.reserve(limits::HTTP1_HELD_STEP);
        match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.held) {
            Poll::Pending => {
                let patience = self.patience;
                let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                ready!(deadline.as_mut().poll(cx));
                self.refuse(Refusal { status: 408, why: "the head did not arrive in time" });
            }
            // What was an empty line in the making is no request.
            Poll::Ready(Ok(0)) if *self.held == *b"\r" => self.stop = Some(Stop::Ended),
            Poll::Ready(Ok(0)) => self.refuse(Refusal::bad("the client closed its side in the middle of a head")),
            Poll::Ready(Ok(_)) => {
                self.free = self.follow(true, &[]);
                if self.free > 0 {
                    self.deadline = None;
                }
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
        }
        Poll::Ready(Ok(()))
    }

    fn refuse(&mut self, refusal: Refusal) {
        let between = self.framing.is_between();
        self.notes.refused.fetch_or(between, Ordering::Relaxed);
        self.stop = Some(if between { Stop::Head(refusal) } else { Stop::Content(refusal) });
    }

    /// Hands over what is held and may pass.
    fn hand_over(&mut self, buf: &mut ReadBuf<'_>) {
        let n = self.free.min(buf.remaining());
        buf.put_slice(&self.held[..n]);
        self.held.advance(n);
        self.free -= n;
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
    }

    /// True if the client may be in the middle of sending something.
    fn is_unread(&self) -> bool {
        self.stop.is_some() || !self.held.is_empty() || !self.framing.is_between()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.notes.passage.load(Ordering::Relaxed) == TUNNEL && this.held.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        loop {
            if this.free > 0 {
                this.hand_over(buf);
                return Poll::Ready(Ok(()));
            }
            if let Some(stop) = this.stop {
                return Poll::Ready(Self::stopped(stop));
            }
            if !this.held.is_empty() {
                ready!(this.complete(cx))?;
                continue;
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let fresh = buf.filled().len() - before;
            if fresh == 0 {
                return Poll::Ready(Ok(()));
            }
            let passed = this.follow(false, &buf.filled()[before..]);
            if this.stop.is_none() {
                this.held.extend_from_slice(&buf.filled()[before + passed..]);
            }
            buf.set_filled(before + passed);
            if passed > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<S> {
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
            match &mut this.closing {
                Closing::Open => {
                    this.closing = match this.stop {
                        Some(Stop::Head(refusal)) => Closing::Answering(answer(refusal)),
                        _ => Closing::ShuttingDown,
                    };
                }
                Closing::Answering(rest) if rest.is_empty() => {
                    ready!(Pin::new(&mut this.io).poll_flush(cx))?;
                    this.closing = Closing::ShuttingDown;
                }
                Closing::Answering(rest) => {
                    let n = ready!(Pin::new(&mut this.io).poll_write(cx, rest))?;
                    if n == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    rest.advance(n);
                }
                Closing::ShuttingDown => {
                    ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
                    let tunnel = this.notes.passage.load(Ordering::Relaxed) == TUNNEL;
                    this.closing =
                        if !tunnel && this.is_unread() { Closing::Lingering(Linger::begin()) } else { Closing::Closed };
                }
                Closing::Lingering(linger) => {
                    ready!(linger.poll(&mut this.io, cx));
                    this.closing = Closing::Closed;
                }
                Closing::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// The answer to what is refused.
fn answer(Refusal { status, why }: Refusal) -> Bytes {
    let error = MeshError::InvalidRequest;
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Refused");
    let text = format!("{}: {} ({why}). {}.\n", error.code(), error.cause(), error.cure());
    Bytes::from(format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: text/plain; charset=utf-8\r\n{}: {}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{text}",
        mesh_api::names::ERROR_HEADER,
        error.code(),
        text.len(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Download;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use std::convert::Infallible;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    const PATIENCE: Duration = Duration::from_millis(400);

    /// A client's end of a guarded connection on which every request is answered with its path.
    fn serve() -> (DuplexStream, Arc<Notes>, tokio::task::JoinHandle<hyper::Result<()>>) {
        let (client, server) = duplex(256 * 1024);
        let (mut guard, notes) = Guard::new(server);
        guard.patience = PATIENCE;
        let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
            Ok::<_, Infallible>(Response::new(Download::Text(Bytes::from(request.uri().path().to_owned()))))
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(guard), service);
        (client, notes, tokio::spawn(connection))
    }

    async fn rest(mut client: DuplexStream) -> String {
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_head_that_does_not_arrive_is_answered_with_408() {
        let (mut client, notes, _connection) = serve();
        client.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHo").await.unwrap();
        // A byte now and then does not help.
        for _ in 0..3 {
            tokio::time::sleep(PATIENCE / 8).await;
            client.write_all(b"s").await.unwrap();
        }
        let text = rest(client).await;
        assert!(
            text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("\r\n\r\n/aHTTP/1.1 408 Request Timeout\r\n"),
            "{text}"
        );
        assert!(text.contains("mesh-error: invalid-request\r\n") && notes.refused());
    }

    #[tokio::test]
    async fn a_silent_client_is_not_hurried() {
        let (mut client, notes, _connection) = serve();
        client.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        tokio::time::sleep(PATIENCE * 3 / 2).await;
        client.write_all(b"GET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let text = rest(client).await;
        assert!(text.contains("/a") && text.ends_with("/b") && !notes.refused(), "{text}");
    }

    #[tokio::test]
    async fn whoever_is_refused_can_read_why_while_still_sending() {
        let (mut client, _notes, connection) = serve();
        client.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await.unwrap();
        for _ in 0..20 {
            client.write_all(&[b'x'; 1000]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut text = vec![0; 12];
        client.read_exact(&mut text).await.unwrap();
        assert_eq!(text, b"HTTP/1.1 400");
        // A client that never stops is left after a while.
        connection.await.unwrap().unwrap();
        assert!(rest(client).await.contains("more than one Host"));
    }

    #[tokio::test]
    async fn heads_in_pieces_arrive_whole() {
        let (mut client, notes, _connection) = serve();
        let large = format!("X: {}\r\n", "x".repeat(50_000));
        let all =
            format!("GET /a HTTP/1.1\r\nHost: a\r\n{large}\r\nGET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        for piece in all.as_bytes().chunks(977) {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        let text = rest(client).await;
        assert!(text.contains("/aHTTP") && text.ends_with("/b") && !notes.refused(), "{text}");
    }
}
