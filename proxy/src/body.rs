//! The body of a response on its way to the client. It streams; nothing is collected. It carries everything that has
//! to end with the response: the record, the endpoint's load, and the connection that goes back to its pool.

use crate::carriage::Held;
use crate::error::BoxError;
use crate::grpc;
use crate::record::Record;
use crate::timeout::Deadline;
use crate::upload::Gate;
use crate::upstream::{Flight, Lease};
use bytes::Bytes;
use h2::{Reason, RecvStream};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use mesh_api::MeshError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// A body as it comes from a client or an endpoint.
#[derive(Debug)]
pub enum Received {
    /// From a connection of HTTP/1.
    Incoming(Incoming),
    /// From a connection of HTTP/2 that the HTTP library serves.
    Http2(Incoming),
    /// From a stream of HTTP/2 without a library on top.
    Stream(Inflow),
    /// Nothing: what came has been taken already.
    Nothing,
}

/// A body that comes as a stream of HTTP/2.
#[derive(Debug)]
pub struct Inflow {
    stream: RecvStream,
    /// What is still to come, if that is known.
    rest: Option<u64>,
    /// True if all data has come, though trailers may follow.
    data_ended: bool,
}

impl From<Incoming> for Received {
    fn from(body: Incoming) -> Self {
        Received::Incoming(body)
    }
}

impl Received {
    /// A body that came over HTTP/2.
    pub fn http2(body: Incoming) -> Self {
        Received::Http2(body)
    }

    /// The body in a stream; `length` is what its head says.
    pub fn stream(stream: RecvStream, length: Option<u64>) -> Self {
        Received::Stream(Inflow { stream, rest: length, data_ended: false })
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        loop {
            let polled = match this {
                Received::Incoming(body) => Pin::new(body).poll_frame(cx).map_err(BoxError::from),
                Received::Http2(body) => poll_http2(body, cx),
                Received::Stream(inflow) => inflow.poll(cx).map_err(|error| BoxError::from(cut_off(error))),
                Received::Nothing => Poll::Ready(None),
            };
            match polled {
                // An empty piece says nothing, and receivers take many of them for an attack.
                Poll::Ready(Some(Ok(frame))) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                polled => return polled,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Received::Incoming(body) | Received::Http2(body) => body.is_end_stream(),
            Received::Stream(inflow) => inflow.stream.is_end_stream(),
            Received::Nothing => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Received::Incoming(body) | Received::Http2(body) => body.size_hint(),
            Received::Nothing => SizeHint::with_exact(0),
            Received::Stream(inflow) if inflow.stream.is_end_stream() => SizeHint::with_exact(0),
            Received::Stream(inflow) => inflow.rest.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

/// The library takes RST_STREAM with NO_ERROR for the end of a body, but only END_STREAM is: what was cut off must not
/// be passed on as whole.
fn poll_http2(body: &mut Incoming, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
    match ready!(Pin::new(&mut *body).poll_frame(cx)) {
        None if !body.is_end_stream() => Poll::Ready(Some(Err(h2::Error::from(Reason::CANCEL).into()))),
        polled => Poll::Ready(polled.map(|frame| frame.map_err(BoxError::from))),
    }
}

/// What to tell of a stream that was reset before its end: NO_ERROR would have it taken for whole further on.
fn cut_off(error: h2::Error) -> h2::Error {
    let quiet = error.is_reset() && error.reason() == Some(Reason::NO_ERROR);
    if quiet { Reason::CANCEL.into() } else { error }
}

impl Inflow {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)).transpose()? {
                Some(data) => {
                    // Whoever asks has room for it, so the other side may send as much again.
                    self.stream.flow_control().release_capacity(data.len())?;
                    self.rest = self.rest.map(|rest| rest.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

/// The body of a response to a client.
#[derive(Debug)]
pub enum Download {
    /// A short text of our own.
    Text(Bytes),
    /// An endpoint's, watched until it ends.
    Stream(Box<Watched>),
}

/// A response body and what ends with it.
#[derive(Debug)]
pub struct Watched {
    body: Received,
    record: Record,
    lease: Option<Lease>,
    gate: Option<Arc<Gate>>,
    deadline: Option<Deadline>,
    broken: bool,
    flight: Flight,
    held: Held,
}

impl Download {
    /// Passes `body` on and settles the account when it ends.
    /// `gate` is that of a request body which the application did not want; at `deadline` the response is over,
    /// whether it has ended or not.
    pub fn watch(
        body: Received,
        record: Record,
        flight: Flight,
        lease: Option<Lease>,
        gate: Option<Arc<Gate>>,
        deadline: Option<Deadline>,
    ) -> Self {
        Download::Stream(Box::new(Watched {
            body,
            record,
            lease,
            gate,
            deadline,
            broken: false,
            flight,
            held: Held::default(),
        }))
    }
}

impl Download {
    /// Keeps what the request has until its response ends.
    pub fn holding(mut self, held: Held) -> Self {
        if let Download::Stream(watched) = &mut self {
            watched.held = held;
        }
        self
    }
}

impl Watched {
    /// The next piece of a response that is slowed down, or of the endpoint's body.
    fn poll_slowly(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(throttle) = &mut self.held.throttle else { return Pin::new(&mut self.body).poll_frame(cx) };
        ready!(throttle.poll(cx));
        if !throttle.holds() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => throttle.hold(data),
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return Poll::Ready(other),
            }
        }
        Poll::Ready(throttle.piece().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_at_end(&self) -> bool {
        self.body.is_end_stream() && self.held.throttle.as_ref().is_none_or(|throttle| !throttle.holds())
    }

    fn end(&mut self) {
        self.record.completed();
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }

    /// The end of a response whose time ran out: trailers of a gRPC call, else the connection or stream breaks off.
    fn too_late(&mut self, error: MeshError) -> Result<Frame<Bytes>, BoxError> {
        self.broken = true;
        let grpc = self.record.is_grpc();
        self.record.failed(error);
        self.flight.timed_out();
        if grpc { Ok(Frame::trailers(grpc::trailers(error, ""))) } else { Err(error.sentence("").into()) }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A body known to be at its end may be dropped without having been asked for its last frame.
        if !self.broken && self.is_at_end() {
            self.end();
        }
        if let Some(gate) = &self.gate {
            gate.give_up();
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let watched = match this {
            Download::Text(text) if text.is_empty() => return Poll::Ready(None),
            Download::Text(text) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Download::Stream(watched) => watched,
        };
        if let Some(Poll::Ready(error)) = watched.deadline.as_mut().map(|deadline| deadline.poll(cx)) {
            let end = watched.too_late(error);
            // Letting go of the endpoint's body tells the endpoint.
            *this = Download::Text(Bytes::new());
            return Poll::Ready(Some(end));
        }
        let polled = watched.poll_slowly(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(deadline) = &watched.deadline {
                    deadline.touch();
                }
                watched.record.passes(frame);
                if let Some(status) = frame.trailers_ref().and_then(grpc::status) {
                    watched.record.grpc_status(status);
                    watched.flight.ended_with(status);
                }
            }
            Poll::Ready(Some(Err(_))) => {
                watched.broken = true;
                if let Some(witness) = &mut watched.record.witness {
                    witness.broken();
                }
            }
            Poll::Ready(None) => watched.end(),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Download::Text(text) => text.is_empty(),
            Download::Stream(watched) => watched.is_at_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Download::Text(text) => SizeHint::with_exact(text.len() as u64),
            Download::Stream(watched) if watched.held.throttle.is_some() => SizeHint::default(),
            Download::Stream(watched) => watched.body.size_hint(),
        }
    }
}
