//! The conversation with control: one long-lived HTTP/2 stream of [`mesh_api::wire`] messages, a JSON value a line.
//!
//! The proxy asks about destinations as traffic for them appears and applies what it is told. When the stream breaks
//! it comes back within a second, asks about everything again, and meanwhile goes on with what it knows.

use crate::balance::Random;
use crate::credentials;
use crate::identity;
use crate::limits;
use crate::metrics::count;
use crate::proxy::{Proxy, unix_ms};
use crate::rate_limit::shared;
use crate::state::News;
use crate::tls;
use anyhow::{Context, bail, ensure};
use bytes::{Bytes, BytesMut};
use http::{Method, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_api::golden::ProxyFrame;
use mesh_api::tap::TapLeftOut;
use mesh_api::wire::{ControlMessage, ProxyMessage};
use mesh_api::{SpiffeId, names};
use serde::Serialize;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// How control is reached, and who we are to it.
#[derive(Clone, Debug, Serialize)]
pub struct Control {
    /// Host and port.
    pub address: String,
    /// The identity control has to prove.
    pub identity: SpiffeId,
    /// Trust anchors, PEM.
    #[serde(skip)]
    pub anchors: String,
    /// Where the service account token lies.
    pub token_file: PathBuf,
    /// The identity of our pod.
    pub own: SpiffeId,
    /// Name of our pod.
    pub pod: String,
}

impl Control {
    /// A request to control.
    pub fn request<B>(&self, path: &str, content_type: &str, body: B) -> anyhow::Result<Request<B>> {
        Request::builder()
            .method(Method::POST)
            .uri(format!("https://{}{path}", self.address))
            .header(http::header::CONTENT_TYPE, content_type)
            .body(body)
            .with_context(|| format!("{} is no address of a control plane", self.address))
    }
}

/// Keeps the conversation going, for ever.
pub async fn follow(proxy: Arc<Proxy>, control: &Control) {
    let mut pause = Backoff::default();
    let mut refused: Option<Instant> = None;
    loop {
        let started = Instant::now();
        let ended = session(&proxy, control).await;
        if proxy.state.is_connected() {
            proxy.state.set_connected(false);
            pause = Backoff::default();
        }
        *proxy.observer.lock() = None;
        proxy.taps.stop_all();
        proxy.credentials.forget_told();
        let error = ended.err().unwrap_or_else(|| anyhow::anyhow!("control ended the stream"));
        let lately = refused.is_some_and(|at| at.elapsed() < limits::REFUSED_PAUSE);
        if !lately && tls::refuses_certificate(&error) {
            refused = Some(Instant::now());
            tracing::warn!("control refuses our certificate; asking for another");
            identity::obtain(&proxy, control).await;
        }
        tracing::debug!(after = ?started.elapsed(), "the stream from control ended");
        pause.failed("no stream from control", &error).await;
    }
}

/// Closes a golden frame at the end of every second of the clock (so that the seconds of all proxies are the same),
/// and sends it to whoever observes. What cannot be sent now goes with the next.
pub async fn tick(proxy: Arc<Proxy>) {
    let mut unsent: Option<ProxyFrame> = None;
    loop {
        let now_ms = unix_ms();
        tokio::time::sleep(Duration::from_millis(1000 - now_ms % 1000)).await;
        tick_once(&proxy, &mut unsent);
    }
}

fn tick_once(proxy: &Proxy, unsent: &mut Option<ProxyFrame>) {
    let observer = proxy.observer.lock().clone();
    let now_ms = unix_ms();
    let late_ms = now_ms % 1000;
    let at_ms = if late_ms < limits::TICK_SLACK_MS { now_ms - late_ms } else { now_ms };
    let frame = proxy.golden.tick(at_ms, observer.is_some());
    let Some(observer) = observer else {
        *unsent = None;
        return;
    };
    let mut frame = frame;
    frame.endpoints = proxy.state.endpoint_levels(std::time::Instant::now());
    let frame = match unsent.take() {
        Some(before) => ProxyFrame::sequence([&before, &frame]),
        None => frame,
    };
    match observer.try_send(frame) {
        Ok(()) => {}
        Err(mpsc::error::TrySendError::Full(frame)) => {
            count(&proxy.counters.frames_delayed);
            *unsent = Some(frame);
        }
        // The stream has just ended, and with it the interest in its frames.
        Err(mpsc::error::TrySendError::Closed(_)) => {}
    }
}

/// One stream, from Hello to its end.
async fn session(proxy: &Arc<Proxy>, control: &Control) -> anyhow::Result<()> {
    let current = proxy.credentials.current().context("there is no certificate")?;
    let tcp = dial(proxy, control).await?;
    let stream = within(current.connect_control(tcp, &control.identity)).await?;
    let mut connection = Http2::handshake(stream).await?;

    let (lines, queue) = mpsc::channel::<Bytes>(limits::CONTROL_QUEUE);
    let mut outgoing = Outgoing(lines);
    outgoing
        .send(&ProxyMessage::Hello {
            namespace: control.own.namespace.clone(),
            pod: control.pod.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            identity: current.identity.clone(),
        })
        .await?;
    let queue = futures::stream::unfold(queue, |mut queue| async move {
        queue.recv().await.map(|line| (Ok::<_, io::Error>(Frame::data(line)), queue))
    });
    let request =
        control.request(names::PROXY_STREAM_PATH, "application/x-ndjson", StreamBody::new(Box::pin(queue)))?;
    let response = timeout(limits::CERTIFY_TIMEOUT, connection.sender.send_request(request))
        .await
        .context("control does not answer")?
        .context("control does not answer")?;
    if !response.status().is_success() {
        let status = response.status();
        let body = timeout(limits::CONTROL_CONNECT_TIMEOUT, response.into_body().collect()).await;
        let body = body.ok().and_then(Result::ok).map(|b| b.to_bytes()).unwrap_or_default();
        bail!("control refused: {status} {}", excerpt(&body));
    }
    proxy.state.set_connected(true);
    tracing::info!(control = %control.address, "connected to control");
    for address in proxy.state.wanted() {
        outgoing.send(&ProxyMessage::Subscribe { address }).await?;
    }
    converse(proxy, outgoing, Lines::new(response.into_body())).await
}

async fn converse(proxy: &Arc<Proxy>, mut outgoing: Outgoing, mut lines: Lines) -> anyhow::Result<()> {
    let (observer, mut frames) = mpsc::channel::<ProxyFrame>(4);
    let mut flush = tokio::time::interval(limits::TAP_FLUSH);
    flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = Told::default();
    let mut second = tokio::time::interval(limits::RATE_USE);
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            line = timeout(limits::CONTROL_SILENCE, lines.next()) => {
                let Some(line) = line.context("control has fallen silent")?? else { return Ok(()) };
                let replies = match serde_json::from_slice(&line) {
                    Ok(message) => apply(proxy, message, &observer),
                    Err(error) => unreadable(&line, &error)?.into_iter().collect(),
                };
                for reply in replies {
                    outgoing.send(&reply).await?;
                }
            }
            news = proxy.state.news() => {
                for news in news {
                    let message = match news {
                        News::Wanted(address) => ProxyMessage::Subscribe { address },
                        News::Unwanted(address) => ProxyMessage::Unsubscribe { address },
                    };
                    outgoing.send(&message).await?;
                }
            }
            _ = flush.tick(), if proxy.taps.on() => {
                for message in proxy.taps.due() {
                    outgoing.send(&message).await?;
                }
            }
            _ = second.tick() => {
                if let Some(message) = told.rate_use(proxy) {
                    outgoing.send(&message).await?;
                }
            }
            Some(frame) = frames.recv() => outgoing.send(&ProxyMessage::Golden { frame, backfill: false }).await?,
            () = proxy.parting.asked.notified() => {
                let left = say_farewell(proxy, outgoing, frames, lines).await;
                proxy.parting.done.notify_one();
                return left;
            }
        }
    }
}

/// What control was told of shared rate limits.
struct Told {
    at: Instant,
    /// It was told of some.
    any: bool,
}

impl Default for Told {
    fn default() -> Self {
        Self { at: Instant::now(), any: false }
    }
}

impl Told {
    /// How often shared rate limits were asked for; nothing as long as there are none.
    fn rate_use(&mut self, proxy: &Proxy) -> Option<ProxyMessage> {
        let asked = shared::take_use(&proxy.state);
        let span_ms = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at = Instant::now();
        let before = std::mem::replace(&mut self.any, !asked.is_empty());
        (before || self.any).then_some(ProxyMessage::RateUse { span_ms, asked })
    }
}

/// Tells control what would be lost with this process, and waits until it has heard.
async fn say_farewell(
    proxy: &Proxy,
    mut outgoing: Outgoing,
    mut frames: mpsc::Receiver<ProxyFrame>,
    mut lines: Lines,
) -> anyhow::Result<()> {
    let observed = proxy.observer.lock().take().is_some();
    while let Ok(frame) = frames.try_recv() {
        outgoing.send(&ProxyMessage::Golden { frame, backfill: false }).await?;
    }
    let frame = proxy.golden.tick(unix_ms(), observed);
    if observed {
        outgoing.send(&ProxyMessage::Golden { frame, backfill: false }).await?;
    }
    outgoing.send(&ProxyMessage::Farewell { frames: proxy.golden.farewell() }).await?;
    // Our half ends; control ends its own when it has read all of it.
    drop(outgoing);
    while lines.next().await?.is_some() {}
    Ok(())
}

/// Says farewell, if there is a stream to say it on; returns when control has heard, or will not.
pub async fn part(proxy: &Proxy) {
    if proxy.state.is_connected() {
        proxy.parting.asked.notify_one();
        let _ = timeout(limits::FAREWELL_TIMEOUT, proxy.parting.done.notified()).await;
    }
}

/// What to answer to a line that cannot be read, because it holds a word that only later releases know. A version is
/// refused, and what was there stays in use; a tap is refused; anything else is left alone. An error: it is no message.
pub fn unreadable(line: &[u8], error: &serde_json::Error) -> anyhow::Result<Option<ProxyMessage>> {
    #[derive(serde::Deserialize)]
    struct Outline {
        r#type: String,
        version: Option<u64>,
        order: Option<OrderOutline>,
    }
    #[derive(serde::Deserialize)]
    struct OrderOutline {
        id: u64,
    }
    let Ok(Outline { r#type, version, order }) = serde_json::from_slice(line) else {
        bail!("control sent what is no message ({error}): {}", excerpt(line));
    };
    let reason = || format!("a proxy of release {} cannot read it: {error}", env!("CARGO_PKG_VERSION"));
    if let Some(version) = version {
        tracing::warn!(version, %error, "cannot read an update; what was there stays in use");
        return Ok(Some(ProxyMessage::Reject { version, reason: reason() }));
    }
    tracing::warn!(r#type, %error, "cannot read a message; ignoring it");
    Ok(order.map(|OrderOutline { id }| ProxyMessage::TapEnded { id, refusal: Some(reason()) }))
}

/// Does what control says; returns what to answer.
fn apply(proxy: &Proxy, message: ControlMessage, observer: &mpsc::Sender<ProxyFrame>) -> Vec<ProxyMessage> {
    let reply = match message {
        ControlMessage::Update { address, version, destination, endpoints, backends } => {
            Some(match proxy.state.update(address, destination, endpoints.as_ref(), &backends) {
                Ok(()) => ProxyMessage::Ack { version },
                Err(reason) => {
                    tracing::warn!(%address, version, %reason, "cannot use an update; what was there stays in use");
                    ProxyMessage::Reject { version, reason }
                }
            })
        }
        ControlMessage::Inbound { version, policy } => Some(match proxy.state.set_inbound(policy) {
            Ok(()) => ProxyMessage::Ack { version },
            Err(reason) => {
                tracing::warn!(version, %reason, "cannot use what is said of arriving traffic; what was said stays");
                ProxyMessage::Reject { version, reason }
            }
        }),
        ControlMessage::Egress { version, policy } => Some(match proxy.state.set_egress(policy) {
            Ok(()) => ProxyMessage::Ack { version },
            Err(reason) => {
                tracing::warn!(version, %reason, "cannot use what is said of leaving traffic; what was said stays");
                ProxyMessage::Reject { version, reason }
            }
        }),
        ControlMessage::Trust { anchors_pem, issuer, renew_within_ms } => {
            let renew_within = Duration::from_millis(renew_within_ms.into());
            if let Err(error) =
                proxy.credentials.trust(credentials::Told { anchors: anchors_pem, issuer, renew_within })
            {
                tracing::error!(%error, "cannot use the trust anchors that control tells of; those that were there stay");
            }
            None
        }
        ControlMessage::RateShares { shares } => {
            shared::set_shares(&proxy.state, shares);
            None
        }
        ControlMessage::Observe { backfill_s, since_ms, until_ms, untold } => {
            let since_ms = if untold { since_ms.max(proxy.golden.told_ms()) } else { since_ms };
            *proxy.observer.lock() = Some(observer.clone());
            let (past, later) = proxy.golden.backfill(backfill_s, since_ms, until_ms);
            let later = later.into_iter().map(|frame| ProxyMessage::Golden { frame, backfill: false });
            return std::iter::once(ProxyMessage::Golden { frame: past, backfill: true }).chain(later).collect();
        }
        ControlMessage::StopObserve {} => {
            *proxy.observer.lock() = None;
            None
        }
        ControlMessage::Tap { order } => {
            let id = order.id;
            Some(match proxy.taps.start(order, std::time::Instant::now()) {
                Ok(()) => ProxyMessage::Tap { id, events: Vec::new(), left_out: TapLeftOut::default() },
                Err(refusal) => ProxyMessage::TapEnded { id, refusal: Some(refusal) },
            })
        }
        ControlMessage::StopTap { id } => return proxy.taps.stop(id),
        ControlMessage::Finish {} => {
            proxy.drain.note_application_ended();
            None
        }
        ControlMessage::Heartbeat {} => Some(ProxyMessage::Heartbeat {}),
        ControlMessage::Unknown => None,
    };
    reply.into_iter().collect()
}

/// Connects to control, wherever its name leads at the moment.
pub async fn dial(proxy: &Proxy, control: &Control) -> anyhow::Result<TcpStream> {
    let address = &control.address;
    let found = timeout(limits::CONTROL_CONNECT_TIMEOUT, tokio::net::lookup_host(address)).await;
    let found = found.with_context(|| format!("cannot resolve {address}: no answer"))?;
    let mut last = None;
    for candidate in found.with_context(|| format!("cannot resolve {address}"))? {
        match proxy.dialer.dial(candidate, limits::CONTROL_CONNECT_TIMEOUT).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = Some(anyhow::Error::new(error).context(format!("cannot connect to {candidate}"))),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("{address} resolves to nothing")))
}

/// A TLS handshake with control, within its time.
pub async fn within<T>(handshake: impl Future<Output = io::Result<T>>) -> anyhow::Result<T> {
    let done = timeout(limits::CONTROL_HANDSHAKE_TIMEOUT, handshake).await;
    done.context("the TLS handshake with control took too long")?.context("the TLS handshake with control failed")
}

/// An HTTP/2 connection that ends when it is dropped.
pub struct Http2<B> {
    /// Takes requests.
    pub sender: http2::SendRequest<B>,
    driver: tokio::task::JoinHandle<()>,
}

impl<B> Http2<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<crate::error::BoxError>,
{
    /// Speaks HTTP/2 over `stream`.
    pub async fn handshake(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> anyhow::Result<Self> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(limits::CONTROL_PING)
            .keep_alive_timeout(limits::CONTROL_PING)
            .handshake(TokioIo::new(stream))
            .await
            .context("control does not speak HTTP/2")?;
        // Its errors also reach the request.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, driver })
    }
}

impl<B> Drop for Http2<B> {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What we say, a JSON value a line.
struct Outgoing(mpsc::Sender<Bytes>);

impl Outgoing {
    async fn send(&mut self, message: &ProxyMessage) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let sent = timeout(limits::CONTROL_SILENCE, self.0.send(Bytes::from(line))).await;
        sent.context("control does not read")?.ok().context("the stream to control is closed")
    }
}

/// What control says, line by line.
struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    fn new(body: Incoming) -> Self {
        Self { body, buffer: BytesMut::new() }
    }

    /// The next line that is not empty; `None` at the end. Loses nothing if it is dropped while waiting.
    async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            while let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let line = self.buffer.split_to(end + 1).freeze().slice(..end);
                if !line.iter().all(u8::is_ascii_whitespace) {
                    return Ok(Some(line));
                }
            }
            ensure!(
                self.buffer.len() <= limits::CONTROL_LINE_BYTES,
                "control sent a line of more than {} bytes",
                limits::CONTROL_LINE_BYTES
            );
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.context("the stream from control broke")?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// The beginning of a text, for an error message.
pub fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).trim().to_owned()
}

/// Pauses between attempts: growing, jittered, at most [`limits::BACKOFF_MAX`]; an outage is logged once and then
/// only when its reason changes.
pub struct Backoff {
    pause: Duration,
    said: String,
    random: Random,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: limits::BACKOFF_MIN, said: String::new(), random: Random::from_os() }
    }
}

impl Backoff {
    /// Logs the failure and waits before the next attempt.
    pub async fn failed(&mut self, what: &str, error: &anyhow::Error) {
        let reason = format!("{error:#}");
        if reason == self.said {
            tracing::debug!(%reason, "{what}; trying again");
        } else {
            tracing::warn!(%reason, "{what}; trying again");
            self.said = reason;
        }
        tokio::time::sleep(self.random.jitter(self.pause).min(limits::BACKOFF_MAX)).await;
        self.pause = (self.pause * 2).min(limits::BACKOFF_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_of_a_later_release_is_refused_and_nonsense_ends_the_stream() {
        let read = |text: &str| {
            let error = serde_json::from_str::<ControlMessage>(text).expect_err(text);
            unreadable(text.as_bytes(), &error)
        };
        let line = r#"{"type":"inbound","version":7,"policy":{"access":{"default":"lunar"}}}"#;
        let Some(ProxyMessage::Reject { version, reason }) = read(line).unwrap() else { panic!("a refusal") };
        assert_eq!(version, 7);
        assert!(reason.contains("lunar") && reason.contains(env!("CARGO_PKG_VERSION")), "{reason}");
        let order = r#"{"type":"tap","order":{"id":3,"filter":"moon=full","until_ms":"dusk"}}"#;
        let Some(ProxyMessage::TapEnded { id: 3, refusal: Some(reason) }) = read(order).unwrap() else {
            panic!("a refusal")
        };
        assert!(reason.contains(env!("CARGO_PKG_VERSION")), "{reason}");
        assert_eq!(read(r#"{"type":"trust","anchors_pem":7}"#).unwrap(), None);
        assert!(read("{\"kind\":\"inbound\"}").unwrap_err().to_string().contains("no message"));
        assert!(read("\u{1}").is_err());
    }
}
