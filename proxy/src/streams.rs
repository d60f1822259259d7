//! Both ends of an HTTP/2 connection between two proxies, without an HTTP client or server on top: exchanges of HTTP/1
//! are folded into its streams ([`crate::mux`]), those of HTTP/2 are its streams. The sending end also speaks to
//! applications.
//!
//! A request is handed to the connection by the task that serves it, and its body is pumped there too: an exchange
//! needs no task or channel of its own on the sending side, and one task on the receiving side.
//!
//! Why HTTP/1 between proxies is carried like this (T2 of `tests/bench`, both proxies together): pooled HTTP/1
//! connections need four system calls a request and proxy, the same as any other proxy; streams of one connection share
//! reads, TLS records and writes. At 64 connections the kernel's part of a request fell from 23-27 to 18-19 µs; with a
//! client library on top the user's part rose from 22-30 to 24-33, without one it is 23-25. At 1,000 connections a
//! thousand TLS sessions became one, and memory fell from 137 to 79 MiB.

use crate::body::Received;
use crate::drain::Phase;
use crate::error::{BoxError, Chain};
use crate::limits;
use crate::linger::Lingering;
use crate::mux;
use crate::request::{self, Client};
use crate::stream::Stream;
use crate::upload::Upload;
use crate::upstream::Outgoing;
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response};
use hyper::body::Body;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::task::{AbortHandle, Id};

/// The sending end.
#[derive(Clone, Debug)]
pub struct Carrier {
    sender: SendRequest<Bytes>,
    connection: AbortHandle,
}

impl Carrier {
    /// Opens HTTP/2 on a connection to another proxy, which is asked now and then whether it is alive.
    pub async fn open(stream: Stream) -> Result<Self, h2::Error> {
        let (sender, mut connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(limits::HTTP2_STREAM_WINDOW)
            .initial_connection_window_size(limits::HTTP2_CONNECTION_WINDOW)
            .max_send_buffer_size(limits::HTTP2_SEND_BUFFER)
            .max_header_list_size(limits::HTTP2_HEADER_LIST)
            .handshake(stream)
            .await?;
        let pings = connection.ping_pong();
        let connection = tokio::spawn(async move {
            let ended = tokio::select! {
                ended = connection => ended,
                () = silence(pings) => {
                    tracing::debug!("the endpoint no longer answers pings");
                    return;
                }
            };
            // What goes wrong here is also reported to the exchanges under way.
            if let Err(error) = ended {
                tracing::debug!(error = %Chain(&error), "HTTP/2 connection to an endpoint ended");
            }
        });
        Ok(Self { sender, connection: connection.abort_handle() })
    }

    /// Tells one connection from another.
    pub fn id(&self) -> Id {
        self.connection.id()
    }

    /// True if nothing can be sent any more.
    pub fn is_closed(&self) -> bool {
        self.connection.is_finished()
    }

    /// Sends a request and waits for the head of its response.
    pub async fn exchange(mut self, request: Outgoing) -> Result<Response<Received>, Broken> {
        let unsent = |error| Broken::Stream { error, sent: false };
        poll_fn(|cx| self.sender.poll_ready(cx)).await.map_err(unsent)?;
        let (head, body) = request.into_parts();
        let ended = body.is_end_stream();
        let sent = self.sender.send_request(Request::from_parts(head, ()), ended);
        drop(self);
        let (mut response, stream) = sent.map_err(unsent)?;
        let mut sending = (!ended).then(|| Sending::new(stream, body));
        let response = poll_fn(|cx| poll_exchange(cx, &mut response, &mut sending)).await?;
        if let Some(sending) = sending {
            tokio::spawn(sending); // the endpoint answers before it has the whole request
        }
        let rest = content_length(response.headers());
        Ok(response.map(|stream| Received::stream(stream, rest)))
    }
}

/// Why an exchange has no response.
#[derive(Debug)]
pub enum Broken {
    /// The body that the client sends broke off, or is malformed.
    Body(BoxError),
    /// The stream or its connection failed.
    Stream {
        /// How.
        error: h2::Error,
        /// False if nothing of the request left.
        sent: bool,
    },
}

fn poll_exchange(
    cx: &mut Context<'_>,
    response: &mut ResponseFuture,
    sending: &mut Option<Sending<Upload>>,
) -> Poll<Result<Response<RecvStream>, Broken>> {
    if let Some(pump) = sending
        && let Poll::Ready(broken) = Pin::new(pump).poll(cx)
    {
        *sending = None;
        if let Some(error) = broken {
            return Poll::Ready(Err(Broken::Body(error)));
        }
    }
    Pin::new(response).poll(cx).map_err(|error| Broken::Stream { error, sent: true })
}

/// Resolves when the other side leaves a ping unanswered.
async fn silence(pings: Option<PingPong>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(limits::HTTP2_PING_INTERVAL).await;
        match tokio::time::timeout(limits::HTTP2_PING_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection is about to say so itself.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// What the streams of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Exchanges of HTTP/1, folded.
    Folded,
    /// Exchanges of HTTP/2.
    Whole,
}

/// The receiving end: serves what another proxy sends until it goes or the proxy ends.
pub async fn serve(client: Arc<Client>, stream: Stream, form: Form) {
    if let Err(error) = accept_all(&client, stream, form).await {
        tracing::debug!(error = %Chain(&error), "connection of a proxy ended");
    }
}

async fn accept_all(client: &Arc<Client>, stream: Stream, form: Form) -> Result<(), h2::Error> {
    let mut connection = h2::server::Builder::new()
        .max_concurrent_streams(limits::HTTP2_STREAMS)
        .initial_window_size(limits::HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(limits::HTTP2_CONNECTION_WINDOW)
        .max_send_buffer_size(limits::HTTP2_SEND_BUFFER)
        .max_header_list_size(limits::HTTP2_HEADER_LIST)
        .handshake(Lingering::new(stream))
        .await?;
    let mut leaving = pin!(client.proxy.drain.reached(Phase::Leaving));
    let mut told = false;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            // GOAWAY in two steps: the other proxy learns of it before streams are refused, so none is lost.
            () = &mut leaving, if !told => {
                connection.graceful_shutdown();
                told = true;
                continue;
            }
        };
        match accepted.transpose()? {
            Some((request, respond)) => drop(tokio::spawn(answer(client.clone(), request, respond, form))),
            None => return Ok(()),
        }
    }
}

/// Serves one exchange.
async fn answer(client: Arc<Client>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>, form: Form) {
    let rest = content_length(request.headers());
    let mut request = request.map(|stream| Received::stream(stream, rest));
    if form == Form::Folded {
        mux::unfold(&mut request);
    }
    let response = {
        let mut serving = pin!(request::serve(client, request));
        let served = poll_fn(|cx| {
            if respond.poll_reset(cx).is_ready() {
                return Poll::Ready(None); // nobody waits for the answer any more
            }
            serving.as_mut().poll(cx).map(Some)
        });
        let Some(response) = served.await else { return };
        response
    };
    let (mut head, body) = response.into_parts();
    // `close` can only be about the exchange: the connection belongs to all.
    head.headers.remove(header::CONNECTION);
    if let Some(length) = body.size_hint().exact().filter(|&length| length > 0) {
        head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    let ended = body.is_end_stream();
    match respond.send_response(Response::from_parts(head, ()), ended) {
        Ok(stream) if !ended => drop(Sending::new(stream, body).await),
        Ok(_) => {}
        Err(error) => tracing::debug!(error = %Chain(&error), "an answer could not be sent"),
    }
}

/// What the headers say of the body's length; the HTTP/2 library holds the other side to it.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A body on its way into a stream; ready when all of it is there, or the stream is reset: with the body's own error,
/// if that is the reason.
struct Sending<B> {
    stream: SendStream<Bytes>,
    body: B,
    /// Read from the body, waiting for room.
    rest: Bytes,
}

impl<B> Sending<B> {
    fn new(stream: SendStream<Bytes>, body: B) -> Self {
        Self { stream, body, rest: Bytes::new() }
    }
}

impl<B> Future for Sending<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Output = Option<BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BoxError>> {
        // An error says that the stream or its connection is gone: whoever reads the other half learns it too.
        Poll::Ready(ready!(self.get_mut().poll_all(cx)).unwrap_or_else(|error| {
            tracing::debug!(error = %Chain(&error), "a body was not sent to its end");
            None
        }))
    }
}

impl<B> Sending<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<BoxError>, h2::Error>> {
        loop {
            if !self.rest.is_empty() {
                if ready!(self.poll_send(cx))? {
                    return Poll::Ready(Ok(None));
                }
                continue;
            }
            if let Poll::Ready(reset) = self.stream.poll_reset(cx) {
                return Poll::Ready(reset.map(|_| None));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(self.stream.send_data(Bytes::new(), true).map(|()| None)),
                Some(Err(error)) => {
                    let error = error.into();
                    self.stream.send_reset(reason(&*error));
                    return Poll::Ready(Ok(Some(error)));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            return Poll::Ready(self.stream.send_trailers(trailers).map(|()| None));
                        }
                    }
                },
            }
        }
    }

    /// Sends what was read, as far as there is room; true if that was all.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, h2::Error>> {
        while !self.rest.is_empty() {
            self.stream.reserve_capacity(self.rest.len());
            if self.stream.capacity() == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(room) => drop(room?),
                    None => return Poll::Ready(Err(Reason::CANCEL.into())),
                }
                continue;
            }
            let piece = self.rest.split_to(self.stream.capacity().min(self.rest.len()));
            let end = self.rest.is_empty() && self.body.is_end_stream();
            self.stream.send_data(piece, end)?;
            if end {
                return Poll::Ready(Ok(true));
            }
        }
        Poll::Ready(Ok(false))
    }
}

/// Why a stream is reset whose body broke off.
fn reason(error: &(dyn std::error::Error + 'static)) -> Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(reason) = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason) {
            return reason;
        }
        cause = error.source();
    }
    Reason::INTERNAL_ERROR
}
