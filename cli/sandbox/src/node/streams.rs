//! The pod subresources that carry streams: `log`, `exec`, `attach` and `portforward`.
//!
//! A request is read and answered here: whatever can be refused is refused before the connection changes its protocol, in
//! the form `kubectl` shows. What happens after that is [`command`]'s and [`super::portforward`]'s business, over
//! [`super::websocket`] or [`super::spdy`].

pub(super) mod channel;
mod command;

use super::exec::ExecOptions;
use super::logs::LogOptions;
use super::portforward::{self, Dial};
use super::{Kubelet, PodError, spdy, websocket};
use crate::api::Body;
use crate::api::negotiate::Accept;
use crate::api::path::Query;
use crate::api::status::ApiError;
use command::{Process, Start, Streams, Wanted};
use futures::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use http::header::{
    CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Which version of a protocol a SPDY client speaks, in its own header.
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
/// Versions of the remote command protocol over WebSocket, best first.
const COMMAND_WEBSOCKET: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// The version of the remote command protocol over SPDY.
const COMMAND_SPDY: &[&str] = &["v4.channel.k8s.io"];
/// Port-forward over SPDY.
const FORWARD_SPDY: &[&str] = &["portforward.k8s.io"];
/// Port-forward over WebSocket: as a tunnel for SPDY, or by channels.
const FORWARD_TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const FORWARD_WEBSOCKET: &[&str] = &[FORWARD_TUNNEL, "v4.channel.k8s.io"];
/// Ports forwarded over one WebSocket: two channels each, numbered by a byte.
const MAX_PORTS: usize = 100;
/// How long a SPDY client may take to open the streams of a command.
const OPENING: Duration = Duration::from_secs(30);

/// A pod on a node.
struct Target {
    kubelet: Kubelet,
    namespace: String,
    pod: String,
}

impl Target {
    /// How to connect to the pod's ports.
    fn dial(self) -> Dial {
        let target = Arc::new(self);
        Arc::new(move |port| {
            let target = Arc::clone(&target);
            async move { target.kubelet.dial(&target.namespace, &target.pod, port).await }.boxed()
        })
    }
}

/// Answers a request for a pod's `log`, `exec`, `attach` or `portforward`, which has been authorised.
pub async fn serve(
    kubelet: &Kubelet,
    request: Request<Incoming>,
    namespace: &str,
    pod: &str,
    subresource: &str,
) -> Response<Body> {
    let query = Query::parse(request.uri().query());
    let accept = Accept::read(request.headers(), &query).unwrap_or_default();
    let target = Target { kubelet: kubelet.clone(), namespace: namespace.to_owned(), pod: pod.to_owned() };
    let answer = match subresource {
        "log" => log(&target, &query).await,
        "exec" => exec(request, target, &query),
        "attach" => attach(request, target, &query),
        "portforward" => forward(request, target.dial(), &query),
        other => Err(ApiError::not_found("pods", &format!("{}/{other}", target.pod))),
    };
    answer.unwrap_or_else(|error| accept.respond(error.code, &error.to_status()))
}

/// A failure of the node, as the API reports it.
fn refusal(error: &PodError) -> ApiError {
    match error {
        PodError::NoPod(_, pod) => ApiError::not_found("pods", pod),
        PodError::NoContainer { .. } | PodError::NotNow(_) => ApiError::bad_request(error.to_string()),
        PodError::Failed(_) => ApiError::internal(error.to_string()),
    }
}

async fn log(target: &Target, query: &Query) -> Result<Response<Body>, ApiError> {
    let options = log_options(query, jiff::Timestamp::now())?;
    let logs = target.kubelet.logs(&target.namespace, &target.pod, query.get("container"), options).await;
    let text = logs.map_err(|error| refusal(&error))?.map_ok(Frame::data).boxed();
    let mut response = Response::new(StreamBody::new(text).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

fn log_options(query: &Query, now: jiff::Timestamp) -> Result<LogOptions, ApiError> {
    let invalid = |name: &str, value: &str, expected: &str| {
        ApiError::bad_request(format!("invalid value \"{value}\" of the log option {name}: expected {expected}"))
    };
    let number = |name: &str, least: u64| match query.get(name) {
        None => Ok(None),
        Some(text) => match text.parse::<u64>() {
            Ok(number) if number >= least => Ok(Some(number)),
            _ => Err(invalid(name, text, &format!("a whole number not below {least}"))),
        },
    };
    let seconds = number("sinceSeconds", 1)?;
    let moment = match query.get("sinceTime") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| invalid("sinceTime", text, "a time as in RFC 3339"))?),
    };
    let since = match (seconds, moment) {
        (Some(_), Some(_)) => {
            return Err(ApiError::bad_request(
                "at most one of the log options sinceTime and sinceSeconds may be given",
            ));
        }
        // A duration beyond the beginning of time means everything.
        (Some(seconds), None) => i64::try_from(seconds)
            .ok()
            .and_then(|seconds| now.checked_sub(jiff::SignedDuration::from_secs(seconds)).ok()),
        (None, moment) => moment,
    };
    Ok(LogOptions {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        since,
        tail: number("tailLines", 0)?.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX)),
        limit_bytes: number("limitBytes", 1)?,
    })
}

fn exec(request: Request<Incoming>, target: Target, query: &Query) -> Result<Response<Body>, ApiError> {
    let wanted = wanted(query)?;
    let argv: Vec<String> = query.all("command").map(str::to_owned).collect();
    if argv.is_empty() {
        return Err(ApiError::bad_request("you must specify at least one command for the container"));
    }
    let upgrade = Upgrade::negotiate(request.headers(), COMMAND_WEBSOCKET, COMMAND_SPDY)?;
    let options = ExecOptions { stdin: wanted.stdin, tty: wanted.tty };
    let Target { kubelet, namespace, pod } = target;
    let container = query.get("container").map(str::to_owned);
    kubelet.running(&namespace, &pod, container.as_deref()).map_err(|error| refusal(&error))?;
    let start = async move { kubelet.exec(&namespace, &pod, container.as_deref(), argv, options).await };
    Ok(command(request, upgrade, wanted, start.map_ok(Process::from).boxed()))
}

fn attach(request: Request<Incoming>, target: Target, query: &Query) -> Result<Response<Body>, ApiError> {
    let wanted = wanted(query)?;
    let upgrade = Upgrade::negotiate(request.headers(), COMMAND_WEBSOCKET, COMMAND_SPDY)?;
    let Target { kubelet, namespace, pod } = target;
    let container = query.get("container").map(str::to_owned);
    kubelet.running(&namespace, &pod, container.as_deref()).map_err(|error| refusal(&error))?;
    let join = async move { kubelet.attach(&namespace, &pod, container.as_deref()).await };
    Ok(command(request, upgrade, wanted, join.map_ok(Process::from).boxed()))
}

fn wanted(query: &Query) -> Result<Wanted, ApiError> {
    let flag = |name| query.flag(name);
    let wanted = Wanted { stdin: flag("stdin"), stdout: flag("stdout"), stderr: flag("stderr"), tty: flag("tty") };
    match wanted {
        Wanted { stdin: false, stdout: false, stderr: false, .. } => {
            Err(ApiError::bad_request("you must specify at least one of stdin, stdout, stderr"))
        }
        // A terminal has no separate standard error; clients that ask for both get the terminal.
        Wanted { tty: true, .. } => Ok(Wanted { stderr: false, ..wanted }),
        _ => Ok(wanted),
    }
}

/// Connects a process with the client once the connection has changed its protocol.
fn command(request: Request<Incoming>, upgrade: Upgrade, wanted: Wanted, start: Start) -> Response<Body> {
    let is_websocket = matches!(upgrade, Upgrade::WebSocket { .. });
    upgrade.answer(request, move |io| async move {
        if is_websocket {
            let (channels, work) = websocket::channels(io, 5).await;
            let session = async {
                let mut channels = channels.into_iter();
                let mut next = |wanted: bool| channels.next().filter(|_| wanted);
                let streams = Streams {
                    stdin: next(wanted.stdin),
                    stdout: next(wanted.stdout),
                    stderr: next(wanted.stderr),
                    error: next(true),
                    resize: next(wanted.tty),
                };
                drop(channels);
                command::greet(&streams).await;
                command::run(start, streams).await;
            };
            tokio::join!(work, session);
        } else {
            let mut connection = spdy::Connection::start(io);
            match tokio::time::timeout(OPENING, open_streams(&mut connection, wanted)).await {
                Ok(Some(streams)) => command::run(start, streams).await,
                Ok(None) => {}
                Err(_) => tracing::debug!("a client did not open the streams of its command in time"),
            }
            connection.close().await;
        }
    })
}

/// Waits for the SPDY streams that the client has announced in its request.
async fn open_streams(connection: &mut spdy::Connection, wanted: Wanted) -> Option<Streams> {
    let mut streams = Streams::default();
    let complete = |s: &Streams| {
        s.error.is_some()
            && s.stdin.is_some() >= wanted.stdin
            && s.stdout.is_some() >= wanted.stdout
            && s.stderr.is_some() >= wanted.stderr
            && s.resize.is_some() >= wanted.tty
    };
    while !complete(&streams) {
        let (headers, channel) = connection.accept().await?;
        let place = match headers.get("streamtype") {
            Some("stdin") => &mut streams.stdin,
            Some("stdout") => &mut streams.stdout,
            Some("stderr") => &mut streams.stderr,
            Some("error") => &mut streams.error,
            Some("resize") => &mut streams.resize,
            _ => {
                channel.outlet().reset().await;
                continue;
            }
        };
        *place = Some(channel);
    }
    Some(streams)
}

fn forward(request: Request<Incoming>, dial: Dial, query: &Query) -> Result<Response<Body>, ApiError> {
    let upgrade = Upgrade::negotiate(request.headers(), FORWARD_WEBSOCKET, FORWARD_SPDY)?;
    let by_channels = matches!(upgrade, Upgrade::WebSocket { protocol, .. } if protocol != FORWARD_TUNNEL);
    let ports = if by_channels { ports(query)? } else { Vec::new() };
    let is_spdy = matches!(upgrade, Upgrade::Spdy { .. });
    Ok(upgrade.answer(request, move |io| async move {
        if is_spdy {
            portforward::serve_spdy(spdy::Connection::start(io), &dial).await;
        } else if by_channels {
            let (channels, work) = websocket::channels(io, 2 * ports.len() as u8).await;
            tokio::join!(work, portforward::serve_channels(channels, &ports, &dial));
        } else {
            let (tunnel, work) = websocket::tunnel(io).await;
            tokio::join!(work, portforward::serve_spdy(spdy::Connection::start(tunnel), &dial));
        }
    }))
}

/// The ports a WebSocket client wants, repeated or separated by commas.
fn ports(query: &Query) -> Result<Vec<u16>, ApiError> {
    let ports = query.all("ports").flat_map(|list| list.split(','));
    let ports: Option<Vec<u16>> = ports.map(|port| port.parse().ok().filter(|port| *port > 0)).collect();
    match ports {
        Some(ports) if !ports.is_empty() && ports.len() <= MAX_PORTS => Ok(ports),
        _ => Err(ApiError::bad_request(format!("query parameter \"ports\" must name 1 to {MAX_PORTS} ports"))),
    }
}

/// How a client wants to go on after the HTTP request.
#[derive(Debug, PartialEq, Eq)]
enum Upgrade {
    WebSocket { accept: String, protocol: &'static str },
    Spdy { protocol: &'static str },
}

impl Upgrade {
    /// Finds the best protocol that client and server share.
    fn negotiate(
        headers: &HeaderMap,
        websocket: &'static [&'static str],
        spdy: &'static [&'static str],
    ) -> Result<Self, ApiError> {
        let offered = |header: &str| -> Vec<String> {
            let values = headers.get_all(header).into_iter().filter_map(|value| value.to_str().ok());
            values.flat_map(|value| value.split(',')).map(|value| value.trim().to_owned()).collect()
        };
        let choose = |ours: &'static [&'static str], theirs: &[String]| {
            ours.iter().copied().find(|protocol| theirs.iter().any(|t| t == protocol)).ok_or_else(|| {
                let message =
                    format!("unable to negotiate a protocol: client offers {theirs:?}, server speaks {ours:?}");
                ApiError::new(403, "Forbidden", message)
            })
        };
        let wants = offered(UPGRADE.as_str());
        if wants.iter().any(|protocol| protocol.eq_ignore_ascii_case("websocket")) {
            let key = headers.get(SEC_WEBSOCKET_KEY);
            let key = key.ok_or_else(|| ApiError::bad_request("a WebSocket request without Sec-WebSocket-Key"))?;
            let protocol = choose(websocket, &offered(SEC_WEBSOCKET_PROTOCOL.as_str()))?;
            return Ok(Self::WebSocket { accept: derive_accept_key(key.as_bytes()), protocol });
        }
        if wants.iter().any(|protocol| protocol.eq_ignore_ascii_case("SPDY/3.1")) {
            return Ok(Self::Spdy { protocol: choose(spdy, &offered(STREAM_PROTOCOL))? });
        }
        Err(ApiError::bad_request("Upgrade request required: this subresource speaks WebSocket or SPDY/3.1"))
    }

    /// Answers the request and goes on with `serve` on the changed connection.
    fn answer<S, F>(self, mut request: Request<Incoming>, serve: S) -> Response<Body>
    where
        S: FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let changed = hyper::upgrade::on(&mut request);
        // Ends with the client's connection or with what it is connected to, whichever is first.
        tokio::spawn(async move {
            match changed.await {
                Ok(connection) => serve(TokioIo::new(connection)).await,
                Err(error) => tracing::debug!(%error, "a client did not change the protocol as it asked for"),
            }
        });
        let mut response = Response::new(crate::api::negotiate::full(""));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        match self {
            Self::WebSocket { accept, protocol } => {
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
                // Base64 is always a valid header value.
                headers.extend(HeaderValue::from_str(&accept).ok().map(|accept| (SEC_WEBSOCKET_ACCEPT, accept)));
            }
            Self::Spdy { protocol } => {
                headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
                headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
        response
    }
}

#[cfg(test)]
mod client_tests;
#[cfg(test)]
mod tests;
