//! Accepting connections and HTTP requests, and stopping without cutting one off.

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// How long a stopping program still accepts connections: others hear of its end a little later.
const LINGER: Duration = Duration::from_secs(1);
/// How long it then waits for requests to finish.
const DRAIN: Duration = Duration::from_secs(10);
/// Connections served at once.
const CONNECTIONS: usize = 1024;
/// Longest request body that is read.
const BODY_BYTES: usize = 64 * 1024;

/// Hands connections to `serve` until `stop`, then waits for those that are open. `serve` must end when the token it
/// gets is cancelled and its connection has nothing left to do.
pub(crate) async fn connections<F>(
    listener: TcpListener,
    stop: CancellationToken,
    serve: impl Fn(TcpStream, CancellationToken) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let open = TaskTracker::new();
    let drain = CancellationToken::new();
    let lingered = async {
        stop.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::pin!(lingered);
    loop {
        let accepted = tokio::select! {
            () = &mut lingered => break,
            accepted = listener.accept(), if open.len() < CONNECTIONS => accepted,
            () = tokio::time::sleep(Duration::from_millis(50)), if open.len() >= CONNECTIONS => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                // Small answers must not wait for each other.
                let _ = stream.set_nodelay(true);
                open.spawn(serve(stream, drain.clone()));
            }
            Err(e) => {
                tracing::warn!("could not accept a connection: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drain.cancel();
    open.close();
    if tokio::time::timeout(DRAIN, open.wait()).await.is_err() {
        tracing::warn!(open = open.len(), "some connections did not end in time");
    }
}

/// Answers HTTP/1.1 and HTTP/2 (with prior knowledge) requests until `stop`.
pub(crate) async fn http<H, F>(listener: TcpListener, stop: CancellationToken, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    connections(listener, stop, |stream, drain| {
        let handler = handler.clone();
        async move {
            let service = hyper::service::service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = drain.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(e) = ended {
                tracing::debug!("a connection ended badly: {e}");
            }
        }
    })
    .await;
}

/// The request's body, if it is complete and of a sensible size.
pub(crate) async fn body(request: Request<Incoming>) -> Option<Bytes> {
    Limited::new(request.into_body(), BODY_BYTES).collect().await.ok().map(http_body_util::Collected::to_bytes)
}

/// An answer with text.
pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", text.into())
}

/// An answer with JSON.
pub(crate) fn json(value: &serde_json::Value) -> Response<Body> {
    with_type(StatusCode::OK, "application/json", value.to_string())
}

fn with_type(status: StatusCode, content_type: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// The parts of a path: `/products/7` is `["products", "7"]`.
pub(crate) fn segments(path: &str) -> Vec<&str> {
    path.split('/').filter(|s| !s.is_empty()).collect()
}
