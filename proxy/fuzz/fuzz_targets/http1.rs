//! HTTP/1 framing as we see it: whatever a client sends, what goes on to the application is nothing but whole requests that
//! a strict reader (RFC 9112) finds to be the same ones.
//!
//! The input runs through the same server, the same refusals and the same client as in the proxy, in memory and polled by
//! hand, so that an execution is deterministic. Two things are asserted: the application's side holds exactly one
//! well-formed request for each one sent on, and where the strict reader understands the client's first request, the
//! proxy either refused it or understood the same.

#![no_main]

#[path = "../strict.rs"]
mod strict;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use mesh_proxy::body::Received;
use mesh_proxy::golden::Golden;
use mesh_proxy::guard::{Guard, Notes};
use mesh_proxy::headers::{ambiguity, wants_upgrade};
use mesh_proxy::limits;
use mesh_proxy::request::prepare;
use mesh_proxy::state::{State, Target};
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use strict::Reading;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Rounds of polling after which nothing more can happen in memory.
const ROUNDS: usize = 64;

/// One end of a connection: what there is to read, and what was written.
#[derive(Default)]
struct Ends {
    input: Vec<u8>,
    at: usize,
    closed: bool,
    output: Vec<u8>,
}

#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Ends>>);

impl Wire {
    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().expect("nothing panics while it holds the ends")
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut ends = self.ends();
        let rest = ends.input.len() - ends.at;
        if rest == 0 {
            return if ends.closed { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        let n = rest.min(buf.remaining());
        buf.put_slice(&ends.input[ends.at..ends.at + n]);
        ends.at += n;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.ends().output.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// An empty body that nobody waits for.
struct Nothing;

impl Body for Nothing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().expect("nothing panics while it notes a request")
}

/// What happened to one execution's requests.
#[derive(Default)]
struct Seen {
    /// For each request that came: what the application's side got of it, or nothing if it was refused.
    requests: Vec<Option<Wire>>,
}

fuzz_target!(|bytes: &[u8]| {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let wire = Wire::default();
    *wire.ends() = Ends { input: bytes.to_vec(), closed: true, ..Ends::default() };
    // The guard's time limits want a clock to be there; no execution lasts long enough to reach one.
    thread_local!(static CLOCK: tokio::runtime::Runtime = clock());
    let clock = CLOCK.with(|runtime| runtime.handle().clone());
    let _clock = clock.enter();
    let (guard, notes) = Guard::new(wire);
    let service = {
        let (seen, notes) = (seen.clone(), notes.clone());
        service_fn(move |request: Request<Incoming>| {
            let (seen, notes) = (seen.clone(), notes.clone());
            async move {
                let leaves = Notes::leaves_http(&request).then(|| request.method().clone());
                let mut response = serve(&seen, request).await;
                if let Some(method) = leaves {
                    notes.settle(&method, &mut response);
                }
                Ok::<_, Infallible>(response)
            }
        })
    };
    let connection = server::Builder::new()
        .half_close(true)
        .auto_date_header(false)
        .max_buf_size(limits::HTTP1_BUFFER)
        .serve_connection(TokioIo::new(guard), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..ROUNDS {
        if Future::poll(connection.as_mut(), &mut cx).is_ready() {
            break;
        }
    }
    check(bytes, &lock(&seen));
});

fn target() -> Arc<Target> {
    State::new(false, Arc::new(Golden::new(0)), Arc::default()).app(([127, 0, 0, 1], 80).into())
}

fn clock() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a thread can have a runtime")
}

/// The proxy's way of a request, without account and choice of endpoint.
async fn serve(seen: &Mutex<Seen>, request: Request<Incoming>) -> Response<Nothing> {
    if ambiguity(&request).is_some() || wants_upgrade(&request) {
        lock(seen).requests.push(None);
        return answer(StatusCode::BAD_REQUEST);
    }
    thread_local!(static TARGET: Arc<Target> = target());
    let request = TARGET.with(|target| prepare(request.map(Received::from), target, false));
    let wire = Wire::default();
    lock(seen).requests.push(Some(wire.clone()));
    let built = client::Builder::new().max_buf_size(limits::HTTP1_BUFFER).handshake(TokioIo::new(wire.clone())).await;
    let Ok((mut sender, connection)) = built else { return answer(StatusCode::BAD_GATEWAY) };
    let mut connection = pin!(connection);
    let mut response = pin!(sender.send_request(*request));
    std::future::poll_fn(|cx| {
        let _ = Future::poll(connection.as_mut(), cx);
        {
            // The application answers as soon as it has the whole request.
            let mut ends = wire.ends();
            if ends.input.is_empty() && matches!(strict::read(&ends.output), Reading::Request { .. }) {
                ends.input = b"HTTP/1.1 204 No Content\r\n\r\n".to_vec();
            }
        }
        Future::poll(response.as_mut(), cx)
    })
    .await
    .map_or_else(|_| answer(StatusCode::BAD_GATEWAY), |response| answer(response.status()))
}

fn answer(status: StatusCode) -> Response<Nothing> {
    let mut response = Response::new(Nothing);
    *response.status_mut() = status;
    response
}

fn check(bytes: &[u8], seen: &Seen) {
    for request in seen.requests.iter().flatten() {
        let ends = request.ends();
        match strict::read(&ends.output) {
            // Cut short: the client's body never came to its end.
            Reading::Partial => {}
            Reading::Request { length, .. } => {
                assert_eq!(length, ends.output.len(), "more than one request: {}", ends.output.escape_ascii());
            }
            Reading::Invalid(why) => panic!("forwarded what is invalid ({why}): {}", ends.output.escape_ascii()),
        }
    }
    let Some(Some(first)) = seen.requests.first() else { return };
    let ends = first.ends();
    let Reading::Request { method: sent_method, target: sent_target, body: sent_body, .. } = strict::read(&ends.output)
    else {
        return;
    };
    match strict::read(bytes) {
        Reading::Request { method, target, body, .. } => {
            assert_eq!(method, sent_method);
            // Letters of the scheme may be of either case, and an empty path is the same as `/`, before a query, too
            // (RFC 9110, section 4.2.3).
            let (target, sent_target) = (small_scheme(target), small_scheme(sent_target));
            let query = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
            let rooted = [&target[..query], b"/", &target[query..]].concat();
            assert!(
                target == sent_target || target.ends_with(&sent_target) || rooted == sent_target,
                "{} became {}",
                target.escape_ascii(),
                sent_target.escape_ascii()
            );
            assert_eq!(body.escape_ascii().to_string(), sent_body.escape_ascii().to_string());
        }
        Reading::Partial => panic!("forwarded before it was complete: {}", ends.output.escape_ascii()),
        Reading::Invalid(why) => panic!("understood what is invalid ({why}): {}", ends.output.escape_ascii()),
    }
}

fn small_scheme(mut target: Vec<u8>) -> Vec<u8> {
    if let Some(scheme) = target.windows(3).position(|three| three == b"://") {
        target[..scheme].make_ascii_lowercase();
    }
    target
}
