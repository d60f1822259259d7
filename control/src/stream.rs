//! The conversation with one proxy: [`mesh_api::wire`] messages, a JSON value a line, both ways.
//!
//! Reading and telling are two loops that never wait for each other: what a proxy says only changes what it has to be
//! told, and telling sends the difference between that and what it was told before.

use crate::compile::{self, Backend, Compiled};
use crate::golden::{Golden, Link};
use crate::issuer;
use crate::limits;
use crate::lines::Lines;
use crate::listen::{self, Body, Peer};
use crate::metrics::Metrics;
use crate::observe::unix_ms;
use crate::rate_limit::{self, Shares};
use crate::rejections::Subject;
use crate::subscriptions::{Follower, Subscriptions};
use crate::tap::{self, Taps};
use crate::tls;
use crate::world::World;
use crate::world::view::Name;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use mesh_api::wire::{ControlMessage, ProxyMessage};
use mesh_api::{BackendChange, Egress, Endpoint, EndpointsChange, InboundPolicy, ServiceRef, SpiffeId, WorkloadRef};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// What every conversation shares.
pub struct Streams {
    /// The world and who follows it.
    pub subscriptions: Arc<Subscriptions>,
    /// Golden metrics.
    pub golden: Arc<Golden>,
    /// Single requests and connections.
    pub taps: Arc<Taps>,
    /// Rate limits kept by several proxies together.
    pub shares: Arc<Shares>,
    /// Whom proxies should trust.
    pub trust: watch::Receiver<Option<issuer::Told>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Ends every conversation.
    pub stop: CancellationToken,
}

/// Where what one proxy says belongs.
struct Links {
    golden: Link,
    tapped: tap::Link,
    shared: rate_limit::Link,
}

/// What a proxy says first.
struct Hello {
    pod: Name,
    identity: SpiffeId,
    version: String,
}

impl Streams {
    /// Answers a request to [`mesh_api::names::PROXY_STREAM_PATH`]: checks who it is and begins to talk.
    pub async fn answer(self: Arc<Self>, peer: Peer, request: Request<Incoming>) -> Response<Body> {
        if request.method() != Method::POST || request.version() != Version::HTTP_2 {
            return listen::text(StatusCode::METHOD_NOT_ALLOWED, "proxies talk by POST over HTTP/2");
        }
        let Some(proven) = peer.certificate.as_ref().and_then(tls::identity) else {
            return listen::text(StatusCode::UNAUTHORIZED, "a client certificate of the mesh is required");
        };
        let mut lines = Lines::new(request.into_body(), limits::LINE_BYTES);
        let hello = match hello(&mut lines).await {
            Ok(hello) => hello,
            Err(why) => return listen::text(StatusCode::BAD_REQUEST, &why),
        };
        if let Err(why) = self.admit(&hello, &proven) {
            tracing::warn!(from = %peer.address, %proven, claimed = %hello.identity, pod = %hello.pod, why, "proxy refused");
            return listen::text(StatusCode::FORBIDDEN, why);
        }
        let (sender, receiver) = mpsc::channel(limits::QUEUE);
        tokio::spawn(async move {
            tracing::info!(pod = %hello.pod, version = hello.version, "proxy connected");
            let why = self.converse(&hello, lines, sender).await;
            tracing::info!(pod = %hello.pod, why, "proxy disconnected");
        });
        let frames = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|line: Bytes| (Ok(Frame::data(line)), receiver))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        let content_type = header::HeaderValue::from_static("application/x-ndjson");
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response
    }

    /// A proxy speaks for its own pod only.
    fn admit(&self, hello: &Hello, proven: &SpiffeId) -> Result<(), &'static str> {
        if hello.identity != *proven {
            return Err("Hello names another identity than the certificate proves");
        }
        if hello.pod.namespace != proven.namespace {
            return Err("the pod is in another namespace than the identity");
        }
        let account = self.subscriptions.read(|world| world.pod(&hello.pod).map(|pod| pod.service_account.clone()));
        match account {
            Some(account) if account != proven.service_account => Err("the pod runs as another service account"),
            _ => Ok(()),
        }
    }

    async fn converse(&self, hello: &Hello, lines: Lines<Incoming>, sender: mpsc::Sender<Bytes>) -> String {
        let follower = self.subscriptions.follow(hello.pod.clone());
        let link = self.golden.link(&hello.pod, follower.todo.clone(), Instant::now());
        let tapped = self.taps.link(&hello.pod, follower.todo.clone());
        let shared = self.shares.link(&hello.pod, follower.todo.clone());
        let sent = Sent::default();
        tokio::select! {
            why = self.listen(&follower, Links { golden: link, tapped, shared }, &sent, lines) => why,
            why = self.tell(&follower, &sent, sender) => why.to_owned(),
        }
    }

    /// Takes in what the proxy says, until it ends.
    async fn listen(&self, follower: &Follower, links: Links, sent: &Sent, mut lines: Lines<Incoming>) -> String {
        let pod = follower.pod();
        let Links { golden: link, tapped, shared } = links;
        let (mut refused, mut unreadable) = (0u64, 0u64);
        loop {
            let line = match timeout(limits::SILENCE, lines.next()).await {
                Err(_) => return format!("it was silent for {:?}", limits::SILENCE),
                Ok(Err(error)) => return error.to_string(),
                Ok(Ok(None)) => return "it ended the stream".to_owned(),
                Ok(Ok(Some(line))) => line,
            };
            match serde_json::from_slice(&line) {
                Ok(ProxyMessage::Subscribe { address }) => {
                    if !follower.subscribe(address) {
                        self.metrics.subscriptions_refused.inc();
                        refused += 1;
                        if refused.is_power_of_two() {
                            tracing::warn!(%pod, refused, "too many subscriptions (limit {})", limits::SUBSCRIPTIONS);
                        }
                    }
                }
                Ok(ProxyMessage::Unsubscribe { address }) => follower.unsubscribe(address),
                Ok(ProxyMessage::Golden { frame, backfill }) => {
                    link.receive(frame, backfill, Instant::now(), unix_ms());
                }
                Ok(ProxyMessage::Farewell { frames }) => {
                    let known = self.subscriptions.read(|world| world.pod(pod).map(|pod| pod.workload.clone()));
                    let workload = known.unwrap_or_else(|| WorkloadRef::new(&pod.namespace, "pod", &pod.name));
                    link.farewell(workload, frames, Instant::now(), unix_ms());
                }
                Ok(ProxyMessage::Ack { version }) => {
                    tracing::trace!(%pod, version, "in use");
                    if let Some(subject) = sent.accepted(version) {
                        self.subscriptions.accept(&subject, pod);
                    }
                }
                Ok(ProxyMessage::Reject { version, reason }) => {
                    self.metrics.rejects.inc();
                    tracing::warn!(%pod, version, reason, "the proxy cannot use an update");
                    let Some(Pending { subject, address, .. }) = sent.rejected(version) else { continue };
                    self.subscriptions.reject(subject, pod, reason);
                    // What was told on top of it makes no sense without it.
                    if let Some(address) = address.filter(|address| sent.awaits(*address)) {
                        follower.todo.add(|due| _ = due.addresses.insert(address));
                    }
                }
                Ok(ProxyMessage::Tap { id, mut events, left_out }) => {
                    self.subscriptions.read(|world| tap::name_ends(world, pod, &mut events));
                    tapped.receive(id, events, &left_out, Instant::now());
                }
                Ok(ProxyMessage::RateUse { span_ms, asked }) => {
                    let keepers = |limit: &str| self.keepers(pod, limit);
                    shared.receive(&asked, span_ms, keepers, Instant::now());
                }
                Ok(ProxyMessage::TapEnded { id, refusal }) => tapped.ended(id, refusal),
                Ok(ProxyMessage::Heartbeat {} | ProxyMessage::Hello { .. } | ProxyMessage::Unknown) => {}
                Err(error) => {
                    link.babbles(Instant::now());
                    if !is_message(&line) {
                        return format!("it sent what is no message: {error}");
                    }
                    unreadable += 1;
                    if unreadable.is_power_of_two() {
                        tracing::warn!(%pod, unreadable, %error, "cannot read a message; ignoring it");
                    }
                }
            }
        }
    }

    /// How many proxies keep a shared rate limit together; `None`: that of this pod does not.
    fn keepers(&self, pod: &Name, limit: &str) -> Option<usize> {
        let policy = self.subscriptions.inbound(pod);
        self.subscriptions.read(|world| compile::traffic::keepers(world, &policy, limit))
    }

    /// Tells the proxy what is due, until it no longer listens.
    async fn tell(&self, follower: &Follower, sent: &Sent, sender: mpsc::Sender<Bytes>) -> &'static str {
        let mut told = Told::default();
        let mut heartbeat = tokio::time::interval(limits::HEARTBEAT);
        heartbeat.reset();
        let mut synced = std::pin::pin!(self.subscriptions.synced());
        let mut is_synced = false;
        let mut trust = self.trust.clone();
        trust.mark_changed();
        loop {
            let mut messages = Vec::new();
            tokio::select! {
                () = self.stop.cancelled() => return "the control plane stops",
                () = synced.as_mut(), if !is_synced => is_synced = true,
                () = follower.todo.wake.notified(), if is_synced => {}
                Ok(()) = trust.changed() => {
                    let told = trust.borrow_and_update().clone();
                    messages.extend(told.map(|told| told.message(self.metrics.proxies.get())));
                }
                _ = heartbeat.tick() => messages.push(ControlMessage::Heartbeat {}),
            }
            if is_synced {
                told.catch_up(&self.subscriptions, follower, sent, &mut messages);
            }
            for message in messages {
                if matches!(
                    message,
                    ControlMessage::Update { .. } | ControlMessage::Inbound { .. } | ControlMessage::Egress { .. }
                ) {
                    self.metrics.updates.inc();
                }
                let Ok(mut line) = serde_json::to_vec(&message) else { return "a message cannot be written" };
                line.push(b'\n');
                match timeout(limits::SEND_TIMEOUT, sender.send(line.into())).await {
                    Err(_) => return "it does not read",
                    Ok(Err(_)) => return "the connection is closed",
                    Ok(Ok(())) => {}
                }
            }
        }
    }
}

/// True if a line has the form of a message: then a later release may mean something by it.
pub fn is_message(line: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Outline {
        #[serde(rename = "type")]
        _type: String,
    }
    serde_json::from_slice::<Outline>(line).is_ok()
}

async fn hello(lines: &mut Lines<Incoming>) -> Result<Hello, String> {
    let line = timeout(limits::HELLO_TIMEOUT, lines.next()).await;
    let line = line.map_err(|_| format!("no Hello within {:?}", limits::HELLO_TIMEOUT))?;
    let line = line.map_err(|error| error.to_string())?.ok_or("the stream ended before Hello")?;
    match serde_json::from_slice(&line) {
        Ok(ProxyMessage::Hello { namespace, pod, version, identity }) => {
            Ok(Hello { pod: Name { namespace, name: pod }, identity, version })
        }
        Ok(_) => Err("the first message must be Hello".to_owned()),
        Err(error) => Err(format!("the first line is no message: {error}")),
    }
}

/// What a proxy has not answered yet, and what it has to be told anew.
#[derive(Default)]
struct Sent {
    pending: Mutex<BTreeMap<u64, Pending>>,
    /// Addresses of which the proxy did not take the last version, with the backends that it may still have.
    spoiled: Mutex<HashMap<SocketAddr, BTreeSet<ServiceRef>>>,
}

/// A version that is on its way.
struct Pending {
    subject: Subject,
    /// The address it is about.
    address: Option<SocketAddr>,
    /// What the proxy had before.
    before: Option<Arc<Compiled>>,
}

impl Sent {
    fn add(&self, version: u64, address: SocketAddr, compiled: &Compiled, before: Option<Arc<Compiled>>) {
        let mesh_api::Destination { service, .. } = &compiled.destination;
        let Some(service) = service else { return };
        let subject = Subject::Service(Name::new(&service.namespace, &service.name), address);
        self.expect(version, Pending { subject, address: Some(address), before });
    }

    fn expect(&self, version: u64, sent: Pending) {
        let mut pending = self.pending.lock();
        pending.insert(version, sent);
        // One that answers nothing must not cost memory.
        if pending.len() > limits::SUBSCRIPTIONS {
            pending.pop_first();
        }
    }

    /// What a version was about that the proxy uses, once.
    fn accepted(&self, version: u64) -> Option<Subject> {
        Some(self.pending.lock().remove(&version)?.subject)
    }

    /// What a version was about that the proxy cannot use, once.
    fn rejected(&self, version: u64) -> Option<Pending> {
        let pending = self.pending.lock().remove(&version)?;
        if let Some(address) = pending.address {
            let had = pending.before.iter().flat_map(|before| before.backends.keys().cloned());
            self.spoiled.lock().entry(address).or_default().extend(had);
        }
        Some(pending)
    }

    /// True if more about an address is on its way.
    fn awaits(&self, address: SocketAddr) -> bool {
        self.pending.lock().values().any(|pending| pending.address == Some(address))
    }
}

/// What a proxy was told last.
#[derive(Default)]
struct Told {
    version: u64,
    finish: bool,
    inbound: Option<InboundPolicy>,
    egress: Option<Egress>,
    destinations: HashMap<SocketAddr, Arc<Compiled>>,
}

impl Told {
    /// The messages that bring the proxy up to date.
    fn catch_up(
        &mut self,
        subscriptions: &Subscriptions,
        follower: &Follower,
        sent: &Sent,
        messages: &mut Vec<ControlMessage>,
    ) {
        let due = follower.todo.take();
        messages.extend(due.orders);
        messages.extend(due.taps.into_iter().map(|(id, order)| match order {
            Some(order) => ControlMessage::Tap { order },
            None => ControlMessage::StopTap { id },
        }));
        if !due.shares.is_empty() {
            messages.push(ControlMessage::RateShares { shares: due.shares });
        }
        if due.inbound {
            let policy = subscriptions.inbound(follower.pod());
            if self.inbound.as_ref() != Some(&policy) {
                self.inbound = Some(policy.clone());
                let version = self.next_version();
                sent.expect(version, Pending { subject: Subject::Inbound, address: None, before: None });
                messages.push(ControlMessage::Inbound { version, policy });
            }
            let policy = subscriptions.egress(follower.pod());
            if self.egress.as_ref() != Some(&policy) {
                self.egress = Some(policy.clone());
                let version = self.next_version();
                sent.expect(version, Pending { subject: Subject::Egress, address: None, before: None });
                messages.push(ControlMessage::Egress { version, policy });
            }
            let finished = |world: &World| world.pod(follower.pod()).is_some_and(|pod| pod.finished);
            if !self.finish && subscriptions.read(finished) {
                self.finish = true;
                tracing::info!(pod = %follower.pod(), "its application has ended; telling the proxy to end too");
                messages.push(ControlMessage::Finish {});
            }
        }
        for address in follower.meant(&due.addresses) {
            let new = subscriptions.destination(address, &follower.pod().namespace);
            let told = self.destinations.remove(&address);
            let spoiled = sent.spoiled.lock().remove(&address);
            // Named with its port, it was subscribed to just now: the proxy knows nothing of it.
            let before = told.clone().filter(|_| spoiled.is_none() && !due.addresses.contains(&address));
            if let Some(mut difference) = Difference::between(before.as_deref(), &new) {
                if let Some(mut has) = spoiled {
                    has.extend(told.iter().flat_map(|told| told.backends.keys().cloned()));
                    difference.backends.extend(has.iter().filter(|has| !new.backends.contains_key(has)).map(gone));
                }
                let Difference { destination, endpoints, backends } = difference;
                let version = self.next_version();
                sent.add(version, address, &new, told);
                messages.push(ControlMessage::Update { address, version, destination, endpoints, backends });
            }
            self.destinations.insert(address, new);
        }
        self.destinations.retain(|address, _| follower.follows(*address));
        sent.spoiled.lock().retain(|address, _| follower.follows(*address));
    }

    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }
}

/// What of an answer is new.
struct Difference {
    destination: Option<mesh_api::Destination>,
    endpoints: Option<EndpointsChange>,
    backends: Vec<BackendChange>,
}

impl Difference {
    /// `None`: nothing is new.
    fn between(before: Option<&Compiled>, new: &Compiled) -> Option<Self> {
        let difference = match before {
            None => Self {
                destination: Some(new.destination.clone()),
                endpoints: Some(whole(&new.endpoints)),
                backends: backend_changes(&BTreeMap::new(), &new.backends),
            },
            Some(before) => Self {
                destination: (before.destination != new.destination).then(|| new.destination.clone()),
                endpoints: endpoints_change(&before.endpoints, &new.endpoints),
                backends: backend_changes(&before.backends, &new.backends),
            },
        };
        let Self { destination, endpoints, backends } = &difference;
        let nothing = destination.is_none() && endpoints.is_none() && backends.is_empty();
        (!nothing).then_some(difference)
    }
}

fn whole(endpoints: &[Endpoint]) -> EndpointsChange {
    EndpointsChange { reset: true, upsert: endpoints.to_vec(), remove: Vec::new() }
}

fn endpoints_change(before: &[Endpoint], new: &[Endpoint]) -> Option<EndpointsChange> {
    (before != new).then(|| EndpointsChange::between(before, new))
}

fn gone(service: &ServiceRef) -> BackendChange {
    BackendChange { service: service.clone(), gone: true, protocol: None, policy: None, endpoints: None }
}

fn backend_changes(before: &BTreeMap<ServiceRef, Backend>, new: &BTreeMap<ServiceRef, Backend>) -> Vec<BackendChange> {
    let same = |service: &ServiceRef| BackendChange { gone: false, ..gone(service) };
    let gone = before.keys().filter(|service| !new.contains_key(service)).map(gone);
    let changed = new.iter().filter_map(|(service, new)| {
        let Some(before) = before.get(service) else {
            let (protocol, endpoints) = (Some(new.protocol), Some(whole(&new.endpoints)));
            return Some(BackendChange { protocol, policy: new.policy.clone(), endpoints, ..same(service) });
        };
        let carried = before.protocol != new.protocol || before.policy != new.policy;
        let endpoints = endpoints_change(&before.endpoints, &new.endpoints);
        (carried || endpoints.is_some()).then(|| BackendChange {
            protocol: carried.then_some(new.protocol),
            policy: new.policy.clone().filter(|_| carried),
            endpoints,
            ..same(service)
        })
    });
    gone.chain(changed).collect()
}

#[cfg(test)]
pub(crate) mod tests;
