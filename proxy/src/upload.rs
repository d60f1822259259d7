//! The body of a request on its way to an endpoint. It streams; but as long as the request may have to be sent again,
//! the first pieces are kept beside it (they are shared, not copied), up to a limit. The body of a client that asks
//! before it sends (`Expect: 100-continue`) is not read before the application has said yes.

use crate::body::Received;
use crate::error::BoxError;
use crate::limits;
use crate::tap::witness::Meter;
use bytes::Bytes;
use futures::task::AtomicWaker;
use http::{HeaderMap, Request, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::time::Sleep;

/// One reading of a request body; the latest one to be polled is the valid one.
#[derive(Debug)]
pub struct Upload {
    /// `None`: there is no body.
    source: Option<Arc<Mutex<Source<Received>>>>,
    cursor: Cursor,
    expected: Option<Expected>,
}

/// The wait for an application's word on a body.
#[derive(Debug)]
struct Expected {
    gate: Arc<Gate>,
    /// When the body is sent without that word: not every server knows the expectation (RFC 9110, section 10.1.1).
    patience: Option<Pin<Box<Sleep>>>,
}

/// Whether a client that asked first may send its body.
#[derive(Debug, Default)]
pub struct Gate {
    state: AtomicU8,
    waker: AtomicWaker,
}

const ASKED: u8 = 0;
const OPEN: u8 = 1;
const ANSWERED: u8 = 2;
const GIVEN_UP: u8 = 3;

impl Gate {
    /// The application said 100, or went on waiting for the body.
    fn open(&self) {
        let _ = self.state.compare_exchange(ASKED, OPEN, Ordering::AcqRel, Ordering::Acquire);
        self.waker.wake();
    }

    /// The application has answered. True if it did so without wanting the body, which will then not be sent. Clients
    /// send it after a success that came without a 100 (servers may begin their answer before they read), so then it
    /// goes on, too.
    pub fn answered(&self, status: StatusCode) -> bool {
        if !(status.is_client_error() || status.is_server_error()) {
            self.open();
            return false;
        }
        self.state.compare_exchange(ASKED, ANSWERED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The answer is through; the connection that still waits for the body may go.
    pub fn give_up(&self) {
        self.state.store(GIVEN_UP, Ordering::Release);
        self.waker.wake();
    }
}

/// Ends a body before its time: its stream is reset with CANCEL.
#[derive(Debug, Default)]
pub struct Brake {
    pulled: AtomicBool,
    waker: AtomicWaker,
}

impl Brake {
    /// Ends the body.
    pub fn pull(&self) {
        self.pulled.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn is_pulled(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.pulled.load(Ordering::Acquire)
    }
}

/// When something of a request or its response last passed.
#[derive(Debug)]
pub struct Pulse {
    began: Instant,
    last_ms: AtomicU64,
    /// True while the body is on its way.
    uploading: AtomicBool,
    /// True once the response has begun.
    answering: AtomicBool,
}

impl Pulse {
    fn new(uploading: bool) -> Self {
        Self {
            began: Instant::now(),
            last_ms: AtomicU64::new(0),
            uploading: AtomicBool::new(uploading),
            answering: AtomicBool::new(false),
        }
    }

    fn beat(&self) {
        self.last_ms.store(self.passed_ms(), Ordering::Relaxed);
    }

    fn passed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A piece of the response has come.
    pub fn answering(&self) {
        self.beat();
        self.answering.store(true, Ordering::Relaxed);
    }

    /// How long nothing has passed; `None` while nothing has to.
    pub fn silent_for(&self) -> Option<Duration> {
        let due = self.uploading.load(Ordering::Relaxed) || self.answering.load(Ordering::Relaxed);
        due.then(|| Duration::from_millis(self.passed_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed))))
    }
}

/// How far a reading has come.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    reading: u32,
    at: usize,
}

#[derive(Debug)]
struct Source<B> {
    body: B,
    kept: Vec<Piece>,
    kept_bytes: usize,
    /// So much is kept at most.
    limit: usize,
    /// True once something was handed out that is not kept.
    gone: bool,
    ended: bool,
    reading: u32,
    /// Counts what comes, while somebody taps.
    meter: Option<Arc<Meter>>,
    /// Ends the body before its time.
    brake: Option<Arc<Brake>>,
    /// Beats with every piece.
    pulse: Option<Arc<Pulse>>,
    /// Gets everything, too, if it is not too much.
    tees: Vec<Tee>,
}

/// A copy of a body in the making.
#[derive(Debug)]
struct Tee {
    pieces: Vec<Piece>,
    done: oneshot::Sender<Copied>,
}

/// A whole body, kept.
#[derive(Debug)]
pub struct Copied(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl From<Received> for Upload {
    fn from(body: Received) -> Self {
        let source = (!body.is_end_stream()).then(|| Arc::new(Mutex::new(Source::new(body))));
        Self { source, cursor: Cursor::default(), expected: None }
    }
}

/// Has an informational response open the gate of a request's body, if there is one.
pub fn listen_for_continue(request: &mut Request<Upload>) {
    if let Some(gate) = request.body().gate() {
        hyper::ext::on_informational(request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                gate.open();
            }
        });
    }
}

impl Upload {
    /// Has everything that comes counted.
    pub fn count_with(&mut self, meter: Arc<Meter>) {
        if let Some(source) = &self.source {
            source.lock().meter = Some(meter);
        }
    }

    /// What ends the body before its time; `None` if there is no body.
    pub fn brake(&mut self) -> Option<Arc<Brake>> {
        Some(self.source.as_ref()?.lock().brake.get_or_insert_default().clone())
    }

    /// Keeps up to so many bytes for another reading.
    pub fn keep(&mut self, bytes: usize) {
        if let Some(source) = &self.source {
            source.lock().limit = bytes;
        }
    }

    /// What beats with every piece.
    pub fn pulse(&mut self) -> Arc<Pulse> {
        match &self.source {
            Some(source) => source.lock().pulse.get_or_insert_with(|| Arc::new(Pulse::new(true))).clone(),
            None => Arc::new(Pulse::new(false)),
        }
    }

    /// A copy of the whole body, as soon as all of it has passed; it never comes if that is more than is kept of a
    /// body, or if the body breaks off.
    pub fn tee(&mut self) -> oneshot::Receiver<Copied> {
        let (done, copied) = oneshot::channel();
        match &self.source {
            Some(source) => source.lock().tees.push(Tee { pieces: Vec::new(), done }),
            None => drop(done.send(Copied(Vec::new()))),
        }
        copied
    }

    /// Another reading from the start. As long as it exists, what is sent is kept.
    pub fn again(&self) -> Self {
        let expected = self.expected.as_ref().map(|e| Expected { gate: e.gate.clone(), patience: None });
        Self { source: self.source.clone(), cursor: Cursor { reading: self.cursor.reading + 1, at: 0 }, expected }
    }

    /// The body of a client that asks before it sends.
    pub fn on_request(body: Received) -> Self {
        let mut upload = Self::from(body);
        upload.expected = upload.source.is_some().then(|| Expected { gate: Arc::default(), patience: None });
        upload
    }

    /// What the body waits for, if it waits.
    pub fn gate(&self) -> Option<Arc<Gate>> {
        self.expected.as_ref().map(|expected| expected.gate.clone())
    }

    /// True if a reading from the start would find everything.
    pub fn is_whole(&self) -> bool {
        self.source.as_ref().is_none_or(|source| !source.lock().gone)
    }
}

impl From<Copied> for Upload {
    fn from(Copied(kept): Copied) -> Self {
        let source = (!kept.is_empty()).then(|| {
            let kept_bytes = kept.iter().map(Piece::len).sum();
            Arc::new(Mutex::new(Source { kept, kept_bytes, ended: true, ..Source::new(Received::Nothing) }))
        });
        Self { source, cursor: Cursor::default(), expected: None }
    }
}

impl Piece {
    fn of(frame: &Frame<Bytes>) -> Option<Self> {
        let data = || frame.data_ref().cloned().map(Piece::Data);
        data().or_else(|| frame.trailers_ref().cloned().map(Piece::Trailers))
    }

    fn len(&self) -> usize {
        if let Piece::Data(data) = self { data.len() } else { 0 }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Some(expected) = &mut this.expected {
            ready!(expected.poll(cx))?;
        }
        match &this.source {
            None => Poll::Ready(None),
            Some(source) => {
                let wanted_again = Arc::strong_count(source) > 1;
                source.lock().poll(cx, &mut this.cursor, wanted_again)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.as_ref().is_none_or(|source| source.lock().is_end(self.cursor))
    }

    fn size_hint(&self) -> SizeHint {
        self.source.as_ref().map_or_else(|| SizeHint::with_exact(0), |source| source.lock().size_hint(self.cursor))
    }
}

impl Expected {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.gate.waker.register(cx.waker());
        match self.gate.state.load(Ordering::Acquire) {
            ASKED => {
                let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(limits::EXPECT_WAIT)));
                ready!(patience.as_mut().poll(cx));
                self.gate.open();
                Poll::Ready(Ok(()))
            }
            OPEN => Poll::Ready(Ok(())),
            ANSWERED => Poll::Pending,
            _ => Poll::Ready(Err("the application did not want the body".into())),
        }
    }
}

impl<B> Source<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    fn new(body: B) -> Self {
        Self {
            body,
            kept: Vec::new(),
            kept_bytes: 0,
            limit: limits::UPLOAD_KEPT,
            gone: false,
            ended: false,
            reading: 0,
            meter: None,
            brake: None,
            pulse: None,
            tees: Vec::new(),
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        cursor: &mut Cursor,
        wanted_again: bool,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if cursor.reading < self.reading {
            return Poll::Ready(Some(Err("the request is being sent again".into())));
        }
        if cursor.reading > self.reading && self.gone {
            return Poll::Ready(Some(Err("the body is no longer whole".into())));
        }
        self.reading = cursor.reading;
        if self.brake.as_ref().is_some_and(|brake| brake.is_pulled(cx)) {
            return Poll::Ready(Some(Err(h2::Error::from(h2::Reason::CANCEL).into())));
        }
        if let Some(piece) = self.kept.get(cursor.at) {
            cursor.at += 1;
            return Poll::Ready(Some(Ok(match piece.clone() {
                Piece::Data(data) => Frame::data(data),
                Piece::Trailers(trailers) => Frame::trailers(trailers),
            })));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            None => {
                self.end();
                return Poll::Ready(None);
            }
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => frame,
        };
        if let Some(meter) = &self.meter {
            meter.saw(&frame);
        }
        self.keep(&frame, wanted_again);
        cursor.at = self.kept.len();
        if let Some(pulse) = &self.pulse {
            pulse.beat();
        }
        if !self.tees.is_empty() {
            self.copy(&frame);
        }
        // Whoever reads may not ask again when it knows that this was all.
        if self.body.is_end_stream() {
            self.end();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn end(&mut self) {
        self.ended = true;
        if let Some(pulse) = &self.pulse {
            pulse.uploading.store(false, Ordering::Relaxed);
        }
        for Tee { pieces, done } in self.tees.drain(..) {
            // Nobody may want it any more.
            let _ = done.send(Copied(pieces));
        }
    }

    fn copy(&mut self, frame: &Frame<Bytes>) {
        let Some(piece) = Piece::of(frame) else { return };
        self.tees.retain_mut(|tee| {
            let bytes: usize = tee.pieces.iter().map(Piece::len).sum();
            let fits = bytes + piece.len() <= limits::UPLOAD_KEPT && tee.pieces.len() < limits::MIRROR_PIECES;
            if fits {
                tee.pieces.push(piece.clone());
            }
            fits
        });
    }

    fn keep(&mut self, frame: &Frame<Bytes>, wanted_again: bool) {
        self.kept_bytes += frame.data_ref().map_or(0, Bytes::len);
        if self.gone || !wanted_again || self.kept_bytes > self.limit {
            self.gone = true;
            self.kept = Vec::new();
        } else if let Some(piece) = Piece::of(frame) {
            self.kept.push(piece);
        }
    }

    fn is_end(&self, cursor: Cursor) -> bool {
        cursor.at >= self.kept.len() && (self.ended || self.body.is_end_stream())
    }

    fn size_hint(&self, cursor: Cursor) -> SizeHint {
        let ahead: usize = self.kept.iter().skip(cursor.at).map(Piece::len).sum();
        let mut hint = self.body.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + ahead as u64);
        }
        hint.set_lower(hint.lower() + ahead as u64);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;

    type Frames = Vec<Result<Frame<Bytes>, std::convert::Infallible>>;

    fn source(
        frames: &[&'static [u8]],
    ) -> Source<impl Body<Data = Bytes, Error = std::convert::Infallible> + Unpin + use<>> {
        let mut all: Frames = frames.iter().map(|data| Ok(Frame::data(Bytes::from_static(data)))).collect();
        all.push(Ok(Frame::trailers(HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]))));
        Source::new(StreamBody::new(futures::stream::iter(all)))
    }

    /// Everything a reading finds, trailers as `~`; or the error it meets.
    fn read<B>(source: &mut Source<B>, cursor: &mut Cursor, wanted_again: bool, pieces: usize) -> Result<String, String>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut text = String::new();
        for _ in 0..pieces {
            match source.poll(&mut cx, cursor, wanted_again) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => text.push_str(std::str::from_utf8(&data).unwrap()),
                    Err(_) => text.push('~'),
                },
                Poll::Ready(Some(Err(error))) => return Err(error.to_string()),
                Poll::Ready(None) => break,
                Poll::Pending => unreachable!("all frames are there"),
            }
        }
        Ok(text)
    }

    #[test]
    fn a_body_is_withheld_only_after_a_refusal() {
        for (status, withheld) in [(200, false), (302, false), (413, true), (417, true), (503, true)] {
            let gate = Gate::default();
            assert_eq!(gate.answered(StatusCode::from_u16(status).unwrap()), withheld, "{status}");
            assert_eq!(gate.state.load(Ordering::Relaxed), if withheld { ANSWERED } else { OPEN }, "{status}");
        }
        let gate = Gate::default();
        gate.open();
        assert!(!gate.answered(StatusCode::PAYLOAD_TOO_LARGE), "it was wanted, and is on its way");
    }

    #[test]
    fn a_second_reading_finds_everything_and_ends_the_first() {
        let mut source = source(&[b"one ", b"two ", b"three"]);
        let mut first = Cursor::default();
        assert_eq!(read(&mut source, &mut first, true, 2).unwrap(), "one two ");
        let mut second = Cursor { reading: 1, at: 0 };
        assert_eq!(read(&mut source, &mut second, true, 9).unwrap(), "one two three~");
        assert!(source.is_end(second));
        assert!(read(&mut source, &mut first, true, 1).unwrap_err().contains("sent again"));
    }

    #[test]
    fn what_nobody_wants_again_is_not_kept() {
        let mut source = source(&[b"one ", b"two ", b"three"]);
        assert_eq!(read(&mut source, &mut Cursor::default(), false, 2).unwrap(), "one two ");
        assert!(source.kept.is_empty());
        let late = read(&mut source, &mut Cursor { reading: 1, at: 0 }, true, 1);
        assert!(late.unwrap_err().contains("no longer whole"));
    }

    #[test]
    fn no_more_than_the_limit_is_kept() {
        let big: &'static [u8] = vec![b'x'; limits::UPLOAD_KEPT].leak();
        let frames: [&'static [u8]; 3] = [big, b"y", b"z"];
        let mut source = source(&frames);
        let mut cursor = Cursor::default();
        read(&mut source, &mut cursor, true, 1).unwrap();
        assert!(!source.gone);
        assert_eq!(read(&mut source, &mut cursor, true, 9).unwrap(), "yz~");
        assert!(source.gone && source.kept.is_empty());
    }
}
