//! gRPC as an application speaks it: the four kinds of calls, answers of trailers only, deadlines. Messages are bytes
//! behind the five-byte prefix; what is in them is nobody's business on the way.

use super::http::{Body, BodyError, full};
use super::http2::open;
use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use h2::{RecvStream, SendStream};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, Version};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use std::time::{Duration, Instant};

/// NOT_FOUND.
const NOT_FOUND: HeaderValue = HeaderValue::from_static("5");

/// A message behind its prefix: not compressed, length.
fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + 5);
    out.put_u8(0);
    out.put_u32(message.len() as u32);
    out.put_slice(message);
    out.freeze()
}

/// Takes the next complete message off the front.
fn next(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = usize::try_from(u32::from_be_bytes(buffer.get(1..5)?.try_into().ok()?)).ok()?;
    (buffer.len() >= 5 + length).then(|| {
        buffer.advance(5);
        buffer.split_to(length).freeze()
    })
}

pub(crate) async fn answer(path: &str, request: Request<Incoming>) -> Response<Body> {
    let deadline = request.headers().get("grpc-timeout").cloned();
    let mut response = match path {
        "/test.Echo/Missing" => {
            let mut response = Response::new(full(""));
            response.headers_mut().insert("grpc-status", NOT_FOUND);
            response.headers_mut().insert("grpc-message", HeaderValue::from_static("no such thing"));
            response
        }
        // Would answer after everybody's deadline.
        "/test.Echo/Slow" => {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Response::new(finished(vec![framed(b"late")]))
        }
        "/test.Echo/Deadline" => {
            let text = deadline.as_ref().map_or(&b"none"[..], HeaderValue::as_bytes);
            Response::new(finished(vec![framed(text)]))
        }
        "/test.Echo/Client" => {
            let all = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let mut buffer = BytesMut::from(&all[..]);
            let count = std::iter::from_fn(|| next(&mut buffer)).count();
            Response::new(finished(vec![framed(format!("{count} messages").as_bytes())]))
        }
        "/test.Echo/Server" => {
            let answers = ["one", "two", "three"].map(|text| framed(text.as_bytes()));
            Response::new(finished(answers.into()))
        }
        // Unary, and both ways: each message comes back as soon as it is there.
        _ => Response::new(echo(request.into_body())),
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn status_ok() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))])
}

fn finished(messages: Vec<Bytes>) -> Body {
    let frames = messages.into_iter().map(Frame::data).chain([Frame::trailers(status_ok())]);
    StreamBody::new(futures::stream::iter(frames.map(Ok::<_, BodyError>))).boxed_unsync()
}

fn echo(body: Incoming) -> Body {
    let data = body.into_data_stream().map(|data| Ok(Frame::data(data?)));
    StreamBody::new(data.chain(futures::stream::iter([Ok(Frame::trailers(status_ok()))]))).boxed_unsync()
}

/// A call in progress.
struct Call {
    send: SendStream<Bytes>,
    headers: HeaderMap,
    body: RecvStream,
    buffer: BytesMut,
}

impl Call {
    async fn begin(address: &str, method: &str, first: Option<&[u8]>, timeout: Option<&str>) -> Result<Self> {
        let mut client = open(address).await?;
        let mut request = Request::builder()
            .method(Method::POST)
            .version(Version::HTTP_2)
            .uri(format!("http://{address}/test.Echo/{method}"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers");
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        let (response, mut send) = client.send_request(request.body(())?, false)?;
        if let Some(first) = first {
            send.send_data(framed(first), false)?;
        }
        if matches!(method, "Unary" | "Server" | "Missing" | "Slow" | "Deadline") {
            send.send_data(Bytes::new(), true)?;
        }
        if method == "Client" {
            for _ in 0..4 {
                send.send_data(framed(b"more"), false)?;
            }
            send.send_data(Bytes::new(), true)?;
        }
        let (head, body) = response.await?.into_parts();
        ensure!(head.status == 200, "HTTP status {}", head.status);
        Ok(Self { send, headers: head.headers, body, buffer: BytesMut::new() })
    }

    async fn next(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(message) = next(&mut self.buffer) {
                return Ok(Some(String::from_utf8(message.into())?));
            }
            let Some(data) = self.body.data().await else { return Ok(None) };
            let data = data?;
            self.body.flow_control().release_capacity(data.len())?;
            self.buffer.extend_from_slice(&data);
        }
    }

    /// All messages left, and the status, wherever it is.
    async fn rest(mut self) -> Result<String> {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await? {
            messages.push(message);
        }
        let trailers = if self.body.is_end_stream() { None } else { self.body.trailers().await? };
        let text = |name: &str| {
            let found = trailers.as_ref().and_then(|trailers| trailers.get(name)).or_else(|| self.headers.get(name));
            found.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let status = text("grpc-status").context("no status")?;
        let why = text(mesh_api::names::ERROR_HEADER).map(|error| format!(" mesh-error={error}")).unwrap_or_default();
        Ok(format!("{messages:?} status={status}{why}"))
    }
}

pub(crate) async fn client(address: &str, case: &str) -> Result<String> {
    match case {
        "unary" => Call::begin(address, "Unary", Some(b"hello"), None).await?.rest().await,
        "client" => Call::begin(address, "Client", Some(b"first"), None).await?.rest().await,
        "server" => Call::begin(address, "Server", Some(b"go"), None).await?.rest().await,
        "missing" => Call::begin(address, "Missing", Some(b"x"), None).await?.rest().await,
        "deadline" => Call::begin(address, "Deadline", Some(b"x"), Some("5S")).await?.rest().await,
        "both" => {
            let mut call = Call::begin(address, "Both", Some(b"0"), None).await?;
            for number in 0..5 {
                // The answer to each message before the next one is sent.
                ensure!(call.next().await? == Some(number.to_string()), "message {number} did not come back");
                if number < 4 {
                    call.send.send_data(framed((number + 1).to_string().as_bytes()), false)?;
                }
            }
            call.send.send_data(Bytes::new(), true)?;
            call.rest().await
        }
        "late" => {
            let start = Instant::now();
            let ended = Call::begin(address, "Slow", Some(b"x"), Some("500m")).await?.rest().await?;
            let waited = start.elapsed();
            ensure!(waited < Duration::from_secs(5), "{ended}, but only after {waited:?}");
            Ok(ended)
        }
        other => bail!("there is no case `{other}`"),
    }
}
