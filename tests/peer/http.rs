//! The origin's HTTP side: what it answers, over HTTP/1 and HTTP/2.

use super::{grpc, websocket};
use bytes::Bytes;
use futures::StreamExt;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

/// A failure of a body: what HTTP/2 resets the stream with.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// What the origin has noticed, for clients to ask for at `/seen`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(pub(crate) Arc<Counters>);

#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Requests whose client went before they were answered.
    pub(crate) cancelled: AtomicU64,
    /// Bytes a flooded client took.
    pub(crate) flooded: AtomicU64,
    /// Connections that were reset, or closed in order.
    pub(crate) resets: AtomicU64,
    pub(crate) closes: AtomicU64,
}

pub(crate) async fn serve(listener: TcpListener, protocol: Protocol, seen: Seen) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let seen = seen.clone();
        let service = service_fn(move |request| {
            let seen = seen.clone();
            async move { Ok::<_, Infallible>(answer(request, seen).await) }
        });
        let io = TokioIo::new(stream);
        match protocol {
            Protocol::Http1 => {
                let mut server = hyper::server::conn::http1::Builder::new();
                server.half_close(true).max_buf_size(256 * 1024);
                tokio::spawn(server.serve_connection(io, service).with_upgrades());
            }
            Protocol::Http2 => {
                let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                server.enable_connect_protocol().max_header_list_size(256 * 1024);
                tokio::spawn(server.serve_connection(io, service));
            }
        }
    }
}

pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

fn empty(status: u16) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    response
}

async fn answer(request: Request<Incoming>, seen: Seen) -> Response<Body> {
    if request.method() == Method::CONNECT {
        return websocket::tunnel(request);
    }
    let path = request.uri().path().to_owned();
    if path.starts_with("/test.Echo/") {
        return grpc::answer(&path, request).await;
    }
    match path.as_str() {
        "/echo" => echo(request),
        "/collect" => {
            let bytes = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
            Response::new(full(format!("{bytes} bytes")))
        }
        "/headers" => headers(&request),
        "/chunks" => chunks(),
        "/upgrade" => websocket::upgrade(request, "echo"),
        "/websocket" => websocket::upgrade(request, "websocket"),
        "/early" => early(request),
        "/hang" => hang(seen).await,
        "/reset" => reset(),
        "/big" => big(request.uri().query()),
        "/seen" => said(&seen),
        "/not-modified" => {
            let mut response = empty(304);
            response.headers_mut().insert(header::ETAG, HeaderValue::from_static("\"one\""));
            response
        }
        "/no-content" => empty(204),
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            Response::new(full("slow"))
        }
        _ => Response::new(full(format!("this is {path}\n"))),
    }
}

/// The request's body, and its trailers as trailers.
fn echo(request: Request<Incoming>) -> Response<Body> {
    let mut response = Response::new(request.into_body().map_err(Into::into).boxed_unsync());
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
    response
}

/// What arrived of the request's head.
fn headers(request: &Request<Incoming>) -> Response<Body> {
    let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    Response::new(full(text))
}

/// Three pieces with a pause between, and a trailer.
fn chunks() -> Response<Body> {
    let pieces = futures::stream::iter(["one ", "two ", "three\n"]).then(|piece| async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok::<_, BodyError>(Frame::data(Bytes::from_static(piece.as_bytes())))
    });
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("14"));
    let end = futures::stream::iter([Ok(Frame::trailers(trailers))]);
    let mut response = Response::new(StreamBody::new(pieces.chain(end)).boxed_unsync());
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
    response
}

/// Refuses before it has the body; what comes of it all the same is thrown away, as RFC 9112 §9.6 has it of servers.
fn early(request: Request<Incoming>) -> Response<Body> {
    let unwanted = !request.headers().contains_key(header::EXPECT);
    if unwanted {
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(_)) = body.frame().await {}
        });
    }
    let mut response = Response::new(full("too much\n"));
    *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
    response
}

/// Never answers; notices when nobody waits any more.
async fn hang(seen: Seen) -> Response<Body> {
    struct Notice(Seen);
    impl Drop for Notice {
        fn drop(&mut self) {
            self.0.0.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }
    let _notice = Notice(seen);
    std::future::pending().await
}

/// Begins an answer and breaks it off.
fn reset() -> Response<Body> {
    let frames = futures::stream::iter([
        Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"half"))),
        Err(Box::new(h2::Error::from(h2::Reason::ENHANCE_YOUR_CALM)) as BodyError),
    ]);
    // Time for the first half to leave on its own.
    let frames = frames.then(|frame| async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        frame
    });
    Response::new(StreamBody::new(frames).boxed_unsync())
}

/// As many bytes as asked for.
fn big(query: Option<&str>) -> Response<Body> {
    const PIECE: usize = 16 * 1024;
    let bytes: usize = query.and_then(|q| q.parse().ok()).unwrap_or(PIECE);
    let pieces = (0..bytes.div_ceil(PIECE)).map(move |piece| {
        let length = PIECE.min(bytes - piece * PIECE);
        Ok::<_, BodyError>(Frame::data(Bytes::from(vec![b'x'; length])))
    });
    Response::new(StreamBody::new(futures::stream::iter(pieces)).boxed_unsync())
}

fn said(seen: &Seen) -> Response<Body> {
    let Counters { cancelled, flooded, resets, closes } = &*seen.0;
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let text = format!(
        "cancelled={} flooded={} resets={} closes={}\n",
        read(cancelled),
        read(flooded),
        read(resets),
        read(closes)
    );
    Response::new(full(text))
}
