//! HTTP clients that keep their connections: a few for HTTP/1.1, one for HTTP/2.

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use std::time::Duration;
use tokio::net::TcpStream;

/// A request is given up after this long.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Idle HTTP/1.1 connections kept.
const IDLE: usize = 32;
/// Longest answer that is read.
const BODY_BYTES: usize = 1024 * 1024;

/// Why a request had no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("could not connect to {0}: {1}")]
    Connect(String, std::io::Error),
    #[error("no answer from {0}: {1}")]
    Http(String, hyper::Error),
    #[error("the answer of {0} broke off: {1}")]
    Body(String, Box<dyn std::error::Error + Send + Sync>),
    #[error("no answer from {0} within {TIMEOUT:?}")]
    Timeout(String),
}

/// A whole answer: head, body and (with gRPC) trailers.
pub(crate) struct Answer {
    pub(crate) head: http::response::Parts,
    pub(crate) body: Bytes,
    pub(crate) trailers: http::HeaderMap,
}

async fn connect(authority: &str) -> Result<TokioIo<TcpStream>, CallError> {
    let stream = TcpStream::connect(authority).await.map_err(|e| CallError::Connect(authority.to_owned(), e))?;
    // Small requests must not wait for each other.
    let _ = stream.set_nodelay(true);
    Ok(TokioIo::new(stream))
}

async fn whole(authority: &str, response: Response<Incoming>) -> Result<Answer, CallError> {
    let (head, body) = response.into_parts();
    let collected =
        Limited::new(body, BODY_BYTES).collect().await.map_err(|e| CallError::Body(authority.to_owned(), e))?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    Ok(Answer { head, body: collected.to_bytes(), trailers })
}

async fn in_time<T>(authority: &str, call: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    tokio::time::timeout(TIMEOUT, call).await.unwrap_or_else(|_| Err(CallError::Timeout(authority.to_owned())))
}

/// Sets what HTTP/1.1 wants: a path as target, and `Host`.
fn addressed(request: Request<Full<Bytes>>, authority: &str) -> Request<Full<Bytes>> {
    let (mut head, body) = request.into_parts();
    if let Ok(host) = http::HeaderValue::from_str(authority) {
        head.headers.insert(http::header::HOST, host);
    }
    Request::from_parts(head, body)
}

/// HTTP/1.1 to one server.
pub(crate) struct Http1Client {
    authority: String,
    idle: Mutex<Vec<http1::SendRequest<Full<Bytes>>>>,
}

impl Http1Client {
    pub(crate) fn new(authority: &str) -> Self {
        Self { authority: authority.to_owned(), idle: Mutex::new(Vec::new()) }
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, CallError> {
        in_time(&self.authority, self.attempt(addressed(request, &self.authority))).await
    }

    /// Sends on an idle connection; where the server has closed that meanwhile, on the next, at last on a new one.
    async fn attempt(&self, mut request: Request<Full<Bytes>>) -> Result<Answer, CallError> {
        loop {
            let reused = self.idle.lock().pop();
            let mut sender = match reused {
                Some(sender) => sender,
                None => self.open().await?,
            };
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let answer = whole(&self.authority, response).await?;
                    let mut idle = self.idle.lock();
                    if idle.len() < IDLE && !sender.is_closed() {
                        idle.push(sender);
                    }
                    return Ok(answer);
                }
                Err(mut e) => match e.take_message() {
                    // It never left: the connection had closed.
                    Some(unsent) => request = unsent,
                    None => return Err(CallError::Http(self.authority.clone(), e.into_error())),
                },
            }
        }
    }

    async fn open(&self) -> Result<http1::SendRequest<Full<Bytes>>, CallError> {
        let io = connect(&self.authority).await?;
        let handshake = http1::handshake(io).await;
        let (sender, connection) = handshake.map_err(|e| CallError::Http(self.authority.clone(), e))?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// HTTP/2 with prior knowledge to one server, all requests on one connection.
pub(crate) struct Http2Client {
    authority: String,
    sender: tokio::sync::Mutex<Option<http2::SendRequest<Full<Bytes>>>>,
}

impl Http2Client {
    pub(crate) fn new(authority: &str) -> Self {
        Self { authority: authority.to_owned(), sender: tokio::sync::Mutex::new(None) }
    }

    /// Sends a request whose target is a path.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, CallError> {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
        if let Ok(uri) = Uri::builder().scheme("http").authority(&*self.authority).path_and_query(path).build() {
            head.uri = uri;
        }
        in_time(&self.authority, self.attempt(Request::from_parts(head, body))).await
    }

    async fn attempt(&self, mut request: Request<Full<Bytes>>) -> Result<Answer, CallError> {
        loop {
            let mut sender = self.current().await?;
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return whole(&self.authority, response).await,
                Err(mut e) => match e.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(CallError::Http(self.authority.clone(), e.into_error())),
                },
            }
        }
    }

    async fn current(&self) -> Result<http2::SendRequest<Full<Bytes>>, CallError> {
        let mut slot = self.sender.lock().await;
        if let Some(sender) = slot.as_ref().filter(|s| !s.is_closed()) {
            return Ok(sender.clone());
        }
        let io = connect(&self.authority).await?;
        let handshake = http2::handshake(TokioExecutor::new(), io).await;
        let (sender, connection) = handshake.map_err(|e| CallError::Http(self.authority.clone(), e))?;
        tokio::spawn(connection);
        *slot = Some(sender.clone());
        Ok(sender)
    }
}
