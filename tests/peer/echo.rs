//! An application that says which workload it is and what reached it, and that fails as it is asked to, for tests of
//! routes and policies.

use super::http::{Body, BodyError, full};
use super::ports;
use anyhow::Result;
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;

pub(super) async fn serve(workload: &str) -> Result<String> {
    let echo = Arc::new(Echo { workload: workload.to_owned(), counts: Mutex::default() });
    for (port, http2) in [(ports::ECHO_HTTP1, false), (ports::ECHO_HTTP2, true)] {
        tokio::spawn(accept(super::listen(port).await?, http2, echo.clone()));
    }
    super::ended().await
}

struct Echo {
    workload: String,
    /// Requests with each value of `x-count`.
    counts: Mutex<HashMap<String, u32>>,
}

async fn accept(listener: TcpListener, http2: bool, echo: Arc<Echo>) {
    while let Ok((stream, _)) = listener.accept().await {
        let echo = echo.clone();
        let service = service_fn(move |request| {
            let echo = echo.clone();
            async move { echo.answer(&request).await }
        });
        let io = TokioIo::new(stream);
        if http2 {
            tokio::spawn(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service));
        } else {
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    }
}

/// What a request asks for with `x-do`, words with spaces between: `status=503 retry-after=1 grpc=14 delay=200 reset
/// pause=300 first=2 only=WORKLOAD`.
#[derive(Debug, Default)]
struct Wish {
    status: Option<u16>,
    retry_after: Option<String>,
    grpc: Option<String>,
    /// Milliseconds before the head, and in the middle of the body.
    delay: u64,
    pause: u64,
    /// Breaks the connection off.
    reset: bool,
}

impl Wish {
    /// What is asked of this workload for the request that is the `nth` of its count.
    fn of(words: &str, workload: &str, nth: u32) -> Self {
        let mut wish = Self::default();
        for word in words.split_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name {
                "status" => wish.status = value.parse().ok(),
                "retry-after" => wish.retry_after = Some(value.replace('_', " ")),
                "grpc" => wish.grpc = Some(value.to_owned()),
                "delay" => wish.delay = value.parse().unwrap_or(0),
                "pause" => wish.pause = value.parse().unwrap_or(0),
                "reset" => wish.reset = true,
                "first" if value.parse().is_ok_and(|first: u32| nth > first) => return Self::default(),
                "only" if value != workload => return Self::default(),
                _ => {}
            }
        }
        wish
    }
}

impl Echo {
    /// A line each: the workload, the request's target, and every header field as it came.
    async fn answer(&self, request: &Request<Incoming>) -> Result<Response<Body>, BodyError> {
        let field = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let nth = self.count(field("x-count"));
        let wish = Wish::of(field("x-do"), &self.workload, nth);
        tokio::time::sleep(Duration::from_millis(wish.delay)).await;
        if wish.reset {
            return Err("as asked".into());
        }
        let mut text = format!("workload={}\nmethod={}\ntarget={}\n", self.workload, request.method(), request.uri());
        for (name, value) in request.headers() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "header {name}={}", String::from_utf8_lossy(value.as_bytes()));
        }
        let is_grpc =
            request.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
        let mut response = match (&wish.grpc, is_grpc) {
            (Some(status), _) => refused_call(status),
            (None, true) => call(&text),
            (None, false) => Response::new(in_two(text, Duration::from_millis(wish.pause))),
        };
        if let Some(status) = wish.status.and_then(|status| StatusCode::from_u16(status).ok()) {
            *response.status_mut() = status;
        }
        let said = [("x-workload", self.workload.clone()), ("x-nth", nth.to_string())];
        let said = said.into_iter().chain(wish.retry_after.map(|after| ("retry-after", after)));
        for (name, value) in said {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
        Ok(response)
    }

    /// Which request with this value of `x-count` it is.
    fn count(&self, name: &str) -> u32 {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(name.to_owned()).or_default();
        *count += 1;
        *count
    }
}

/// A text, with a pause in the middle if there is to be one.
fn in_two(text: String, pause: Duration) -> Body {
    if pause.is_zero() {
        return full(text);
    }
    let middle = text.len() / 2;
    let halves = [(Duration::ZERO, text[..middle].to_owned()), (pause, text[middle..].to_owned())];
    let halves = futures::stream::iter(halves).then(|(pause, half)| async move {
        tokio::time::sleep(pause).await;
        Ok::<_, BodyError>(Frame::data(Bytes::from(half)))
    });
    StreamBody::new(halves).boxed_unsync()
}

/// A call that fails at once.
fn refused_call(status: &str) -> Response<Body> {
    let mut response = Response::new(full(""));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Ok(status) = HeaderValue::from_str(status) {
        response.headers_mut().insert(HeaderName::from_static("grpc-status"), status);
    }
    response
}

/// The text as the one message of a call that ends well.
fn call(text: &str) -> Response<Body> {
    let mut message = BytesMut::with_capacity(text.len() + 5);
    message.put_u8(0);
    message.put_u32(text.len() as u32);
    message.put_slice(text.as_bytes());
    let ok = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let frames = [Frame::data(Bytes::from(message)), Frame::trailers(ok)];
    let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, BodyError>))).boxed_unsync();
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}
