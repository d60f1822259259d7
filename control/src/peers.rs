//! The other replicas of the control plane. Each proxy is connected to one of them, so whoever is asked for golden
//! metrics asks the others for their part and merges it, frame by frame.
//!
//! Replicas call each other on the port for proxies, over mutual TLS with the identity of the control plane, and answer
//! such calls from their own proxies only. One that cannot be reached is named in every frame until it can.

mod merge;

use crate::golden::{Look, Watch};
use crate::limits;
use crate::lines::Lines;
use crate::listen::{self, Body, Peer};
use crate::observe;
use crate::rejections::Told;
use crate::stream::Streams;
use crate::tls;
use crate::world::World;
use crate::world::view::Name;
use anyhow::{Context, bail, ensure};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_api::SpiffeId;
use mesh_api::golden::{GoldenFrame, Unreachable};
use mesh_api::names::CONTROL_NAME;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// Path under which replicas ask each other, before that of the observe API.
pub const PEER_PATH: &str = "/v1/peer";
/// Where a replica tells what its proxies could not use.
const REJECTIONS_PATH: &str = "/v1/peer/rejections";
/// Name of the port that replicas reach each other at, in the Service of the control plane.
const PORT: &str = "proxy-api";

/// A replica.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replica {
    /// Its pod.
    pub name: String,
    /// Where it answers.
    pub address: SocketAddr,
}

/// What keeps an answer coming.
pub struct Held {
    _sender: http2::SendRequest<Empty<Bytes>>,
    _driver: AbortOnDropHandle<()>,
}

/// Says who the other replicas are at the moment.
type List = dyn Fn() -> Vec<Replica> + Send + Sync;

/// The other replicas, and how they are called.
pub struct Peers {
    /// Who they have to be.
    identity: SpiffeId,
    tls: Arc<ArcSwapOption<ClientConfig>>,
    list: Box<List>,
}

impl Peers {
    /// Replicas as `list` names them.
    pub fn new(
        identity: SpiffeId,
        tls: Arc<ArcSwapOption<ClientConfig>>,
        list: impl Fn() -> Vec<Replica> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { identity, tls, list: Box::new(list) })
    }

    /// Nobody else.
    pub fn none() -> Arc<Self> {
        Self::new(SpiffeId::new("", "", ""), Arc::default(), Vec::new)
    }

    /// The other replicas at the moment.
    pub fn list(&self) -> Vec<Replica> {
        (self.list)()
    }

    /// Opens a replica's answer, line by line, for as long as both parts are held.
    pub async fn ask(&self, replica: &Replica, path: &str) -> anyhow::Result<(Lines<Incoming>, Held)> {
        let connecting = timeout(limits::PEER_CONNECT, self.call(replica, path)).await;
        connecting.with_context(|| format!("no answer within {:?}", limits::PEER_CONNECT))?
    }

    /// What the proxies of other replicas could not use. A replica that does not answer says nothing.
    pub async fn rejections(&self) -> Vec<Told> {
        let told = self.list().into_iter().map(|replica| self.rejections_of(replica));
        futures::future::join_all(told).await.into_iter().filter_map(Result::ok).flatten().collect()
    }

    async fn rejections_of(&self, replica: Replica) -> anyhow::Result<Vec<Told>> {
        let (mut lines, _held) = self.ask(&replica, REJECTIONS_PATH).await?;
        let line = timeout(limits::PEER_CONNECT, lines.next()).await??.context("it says nothing")?;
        Ok(serde_json::from_slice(&line)?)
    }

    /// Takes in a replica's frames until it has no more.
    async fn receive(&self, replica: &Replica, path: &str, mail: &Mail) -> anyhow::Result<()> {
        let (mut lines, _held) = self.ask(replica, path).await?;
        loop {
            let line = timeout(limits::PEER_SILENCE, lines.next()).await;
            let line = line.with_context(|| format!("silent for {:?}", limits::PEER_SILENCE))??;
            let Some(line) = line else { return Ok(()) };
            mail.put(serde_json::from_slice(&line).context("it sent what is no frame")?);
        }
    }

    async fn call(&self, replica: &Replica, path: &str) -> anyhow::Result<(Lines<Incoming>, Held)> {
        let config = self.tls.load_full().context("there is no certificate of our own yet")?;
        let address = replica.address;
        let tcp = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        let name = ServerName::try_from(CONTROL_NAME).context("its name")?;
        let tls = TlsConnector::from(config).connect(name, tcp).await;
        let tls = tls.with_context(|| format!("the TLS handshake with {address} failed"))?;
        let proven = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(tls::identity);
        ensure!(proven.as_ref() == Some(&self.identity), "{address} is not {}", self.identity);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await?;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            // How it ends is seen at the answer.
            let _ = connection.await;
        }));
        let request = Request::get(format!("https://{CONTROL_NAME}{path}")).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await.with_context(|| format!("{address} does not answer"))?;
        let status = response.status();
        if status != StatusCode::OK {
            let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            bail!("{address} answers {status}: {}", String::from_utf8_lossy(&body[..body.len().min(200)]));
        }
        let held = Held { _sender: sender, _driver: driver };
        Ok((Lines::new(response.into_body(), limits::PEER_LINE_BYTES), held))
    }
}

/// The replicas behind the Service of the control plane, without the pod `me`.
pub fn replicas(world: &World, system_namespace: &str, me: &str) -> Vec<Replica> {
    let service = Name::new(system_namespace, CONTROL_NAME);
    let mut found: BTreeMap<String, SocketAddr> = BTreeMap::new();
    for slice in world.slices_of(&service) {
        let Some(port) = slice.ports.iter().find(|port| port.name == PORT) else { continue };
        let ready = slice.endpoints.iter().filter(|endpoint| endpoint.ready);
        for ip in ready.flat_map(|endpoint| &endpoint.addresses) {
            let name = world.pod_at(*ip).map_or_else(|| ip.to_string(), |(pod, _)| pod.name.clone());
            if name != me {
                found.entry(name).or_insert(SocketAddr::new(*ip, port.port));
            }
        }
    }
    found.into_iter().take(limits::PEERS).map(|(name, address)| Replica { name, address }).collect()
}

/// What a replica has sent and nobody has taken yet.
#[derive(Debug, Default)]
struct Mail {
    inner: Mutex<Inbox>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Inbox {
    queue: VecDeque<GoldenFrame>,
    /// Why there is nothing more to come at the moment.
    fault: Option<String>,
    /// What was open at the end of the last frame taken.
    last: Option<GoldenFrame>,
}

impl Mail {
    fn put(&self, frame: GoldenFrame) {
        let mut inner = self.inner.lock();
        inner.fault = None;
        inner.queue.push_back(frame);
        if inner.queue.len() > limits::PEER_FRAMES
            && let (Some(last), Some(mut before)) = (inner.queue.pop_back(), inner.queue.pop_back())
        {
            merge::then(&mut before, last);
            inner.queue.push_back(before);
        }
        drop(inner);
        self.news.notify_one();
    }

    fn fail(&self, why: String) {
        self.inner.lock().fault = Some(why);
        self.news.notify_one();
    }

    /// Waits until there is something to take, or something to say.
    async fn arrives(&self) {
        loop {
            let news = self.news.notified();
            {
                let inner = self.inner.lock();
                if !inner.queue.is_empty() || inner.fault.is_some() {
                    return;
                }
            }
            news.await;
        }
    }

    /// A frame, or two in one when they pile up; of one that is late what it last had open. And what is wrong with it.
    fn take(&self) -> (Option<GoldenFrame>, Option<String>) {
        let mut inner = self.inner.lock();
        let Some(mut frame) = inner.queue.pop_front() else {
            let last = inner.last.clone().filter(|_| inner.fault.is_none());
            return (last, inner.fault.clone());
        };
        if inner.queue.len() > 1
            && let Some(next) = inner.queue.pop_front()
        {
            merge::then(&mut frame, next);
        }
        inner.last = Some(merge::levels(&frame));
        (Some(frame), inner.fault.clone())
    }
}

/// A replica that is being asked; dropped, it is asked no longer.
struct Feed {
    mail: Arc<Mail>,
    _task: AbortOnDropHandle<()>,
}

impl Feed {
    fn open(peers: Arc<Peers>, replica: Replica, path: String, joins: bool) -> Self {
        let mail = Arc::new(Mail::default());
        let inbox = mail.clone();
        let task = tokio::spawn(async move {
            let mut joins = joins;
            loop {
                let why = match peers.receive(&replica, &format!("{path}&joins={joins}"), &inbox).await {
                    Ok(()) => "it ended the stream".to_owned(),
                    Err(error) => format!("{error:#}"),
                };
                tracing::warn!(replica = replica.name, why, "another replica cannot be asked; trying again");
                inbox.fail(why);
                // What it has told before is not told again.
                joins = true;
                tokio::time::sleep(limits::PEER_RETRY).await;
            }
        });
        Self { mail, _task: AbortOnDropHandle::new(task) }
    }
}

/// A look at the golden metrics of all replicas' proxies; it ends when this is dropped.
pub struct Together {
    local: Watch,
    peers: Arc<Peers>,
    path: String,
    feeds: BTreeMap<Replica, Feed>,
}

impl Together {
    /// Our own watch, and what others have to be asked to see the same.
    pub fn new(local: Watch, peers: Arc<Peers>, path: String) -> Self {
        let mut together = Self { local, peers, path, feeds: BTreeMap::new() };
        together.keep_feeds(&mut GoldenFrame::default());
        together
    }

    /// Asks those who are there, and leaves those who are gone; what they still had to say goes into `frame`.
    fn keep_feeds(&mut self, frame: &mut GoldenFrame) {
        let there = self.peers.list();
        self.feeds.retain(|replica, feed| {
            let stays = there.contains(replica);
            while let Some(rest) = (!stays).then(|| feed.mail.inner.lock().queue.pop_front()).flatten() {
                merge::beside(frame, merge::closed(rest));
            }
            stays
        });
        let joins = !self.local.is_new();
        for replica in there {
            if !self.feeds.contains_key(&replica) {
                self.local.is_among_others();
                let feed = Feed::open(self.peers.clone(), replica.clone(), self.path.clone(), joins);
                self.feeds.insert(replica, feed);
            }
        }
    }

    /// The next frame: at once, as soon as everybody has answered, the first, then one a second.
    pub async fn next(
        &mut self,
        world: impl FnOnce(&mut dyn FnMut(&World)),
        unix_ms: impl FnOnce() -> u64,
    ) -> GoldenFrame {
        let first = self.local.is_new();
        let mut frame = self.local.next(world, unix_ms).await;
        if first {
            let deadline = Instant::now() + limits::PEER_WAIT;
            for feed in self.feeds.values() {
                // Whoever has nothing to say by then is named below.
                let _ = timeout_at(deadline, feed.mail.arrives()).await;
            }
        }
        for (replica, feed) in &self.feeds {
            let (sent, fault) = feed.mail.take();
            let late = first && sent.is_none() && fault.is_none();
            let fault = fault.or_else(|| late.then(|| format!("nothing came within {:?}", limits::PEER_WAIT)));
            frame.unreachable.extend(fault.map(|why| Unreachable { replica: replica.name.clone(), why }));
            if let Some(sent) = sent {
                if first {
                    frame.span_ms = frame.span_ms.max(sent.span_ms);
                }
                merge::beside(&mut frame, sent);
            }
        }
        self.keep_feeds(&mut frame);
        frame
    }
}

/// Answers another replica's question about our own proxies.
pub fn answer(streams: &Streams, peer: &Peer, (method, uri): (&Method, &Uri)) -> Response<Body> {
    let Streams { golden, taps, subscriptions, stop, .. } = streams;
    let proven = peer.certificate.as_ref().and_then(tls::identity);
    if proven.as_ref() != Some(&subscriptions.config().control_identity()) {
        return listen::text(StatusCode::FORBIDDEN, "only replicas of the control plane may ask this");
    }
    if *method != Method::GET {
        return listen::text(StatusCode::METHOD_NOT_ALLOWED, "replicas ask by GET");
    }
    let query = uri.query().unwrap_or_default();
    let path = uri.path().strip_prefix(PEER_PATH).unwrap_or_default();
    if uri.path() == REJECTIONS_PATH {
        let told = serde_json::to_string(&subscriptions.rejections().all()).unwrap_or_default();
        return listen::text(StatusCode::OK, &format!("{told}\n"));
    }
    if path.ends_with("/tap") {
        let asker = format!("{} at {}", CONTROL_NAME, peer.address.ip());
        return observe::tap::answer(taps, (path, query), asker, subscriptions.clone(), stop.clone());
    }
    let joins = query.split('&').any(|pair| pair == "joins=true");
    let look = match observe::look(path, query) {
        Ok(look) => Look { among: true, joins, ..look },
        Err(why) => return listen::text(StatusCode::BAD_REQUEST, &why),
    };
    match golden.look(look, Instant::now(), observe::unix_ms()) {
        Some(watch) => {
            let watch = Together::new(watch, Peers::none(), String::new());
            observe::stream(watch, None, subscriptions.clone(), stop.clone())
        }
        None => listen::text(StatusCode::TOO_MANY_REQUESTS, "too many observers look already"),
    }
}

#[cfg(test)]
mod tests;
