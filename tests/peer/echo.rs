//! An application that says which workload it is and what reached it, for tests of routes.

use super::http::{Body, BodyError, full};
use super::ports;
use anyhow::Result;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::fmt::Write;
use tokio::net::TcpListener;

pub(super) async fn serve(workload: &str) -> Result<String> {
    for (port, http2) in [(ports::ECHO_HTTP1, false), (ports::ECHO_HTTP2, true)] {
        tokio::spawn(accept(super::listen(port).await?, http2, workload.to_owned()));
    }
    super::ended().await
}

async fn accept(listener: TcpListener, http2: bool, workload: String) {
    while let Ok((stream, _)) = listener.accept().await {
        let workload = workload.clone();
        let service = service_fn(move |request| {
            let answer = answer(&workload, &request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let io = TokioIo::new(stream);
        if http2 {
            tokio::spawn(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service));
        } else {
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    }
}

/// A line each: the workload, the request's target, and every header field as it came.
fn answer(workload: &str, request: &Request<Incoming>) -> Response<Body> {
    let mut text = format!("workload={workload}\nmethod={}\ntarget={}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "header {name}={}", String::from_utf8_lossy(value.as_bytes()));
    }
    let is_grpc =
        request.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    let mut response = if is_grpc { call(&text) } else { Response::new(full(text)) };
    if let Ok(value) = HeaderValue::from_str(workload) {
        response.headers_mut().insert(HeaderName::from_static("x-workload"), value);
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
