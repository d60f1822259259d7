//! The application behind the proxies: one port that speaks HTTP/1, HTTP/2, gRPC, WebSocket and an opaque echo, and
//! never fails by itself.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The first byte of an opaque connection; no HTTP begins with it.
pub(crate) const OPAQUE: u8 = 0;

type Body = BoxBody<Bytes, hyper::Error>;

/// Starts the application on a free port.
pub(crate) async fn start() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        loop {
            // Whatever goes wrong with a connection shows on the client's side, which counts it.
            if let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(async move { drop(connection(stream).await) });
            }
        }
    });
    Ok(address)
}

async fn connection(mut stream: TcpStream) -> std::io::Result<()> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] == OPAQUE {
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await?;
        return to.shutdown().await;
    }
    let builder = auto::Builder::new(TokioExecutor::new());
    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(request)) });
    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
    Ok(())
}

fn answer(mut request: Request<Incoming>) -> Response<Body> {
    if request.headers().contains_key(header::UPGRADE) {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            if let Ok(io) = upgrade.await {
                drop(frames(TokioIo::new(io)).await);
            }
        });
        let mut response = Response::new(full(""));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
        return response;
    }
    let grpc = request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/grpc");
    if grpc {
        let trailers = HeaderMap::from_iter([(
            header::HeaderName::from_static("grpc-status"),
            header::HeaderValue::from_static("0"),
        )]);
        let end = futures::stream::once(async move { Ok(Frame::trailers(trailers)) });
        let body = futures::StreamExt::chain(echoed(request.into_body()), end);
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(body)));
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/grpc"));
        return response;
    }
    match request.uri().path() {
        "/echo" => Response::new(request.into_body().boxed()),
        _ => Response::new(full("hello")),
    }
}

/// The frames of a body without its trailers, and without the empty one at its end: sent on in the middle of a response,
/// HTTP/2 libraries count such frames as abuse.
fn echoed(body: Incoming) -> impl futures::Stream<Item = Result<Frame<Bytes>, hyper::Error>> + Send + Sync {
    futures::stream::unfold(body, |mut body| async move {
        loop {
            match body.frame().await? {
                Ok(frame) if frame.is_trailers() || frame.data_ref().is_some_and(Bytes::is_empty) => {}
                frame => return Some((frame, body)),
            }
        }
    })
}

/// Answers masked WebSocket frames (RFC 6455, section 5) of up to 125 bytes with unmasked ones of the same content,
/// until a close frame.
async fn frames(mut io: TokioIo<hyper::upgrade::Upgraded>) -> std::io::Result<()> {
    loop {
        let mut head = [0; 6];
        io.read_exact(&mut head).await?;
        let mut content = vec![0; usize::from(head[1] & 0x7f)];
        io.read_exact(&mut content).await?;
        for (at, byte) in content.iter_mut().enumerate() {
            *byte ^= head[2 + at % 4];
        }
        let mut frame = vec![head[0], content.len() as u8];
        frame.extend(content);
        io.write_all(&frame).await?;
        io.flush().await?;
        if head[0] & 0x0f == 8 {
            return io.shutdown().await;
        }
    }
}

fn full(text: &'static str) -> Body {
    Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed()
}
