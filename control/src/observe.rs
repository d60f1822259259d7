//! The observe API, aggregated into the cluster's own: discovery, golden metrics and taps as streams of JSON lines.
//!
//! The API server authenticates the user and forwards the request; whether the user may look is asked of the cluster
//! (SubjectAccessReview on `workloads/golden`, `workloads/tap` and so on), so that its RBAC decides.

pub(crate) mod tap;

use crate::golden::{Golden, Look, Scope};
use crate::limits;
use crate::listen::{self, Body, Peer};
use crate::peers::{PEER_PATH, Peers, Together};
use crate::requestheader::{RequestHeader, Unauthenticated, User};
use crate::subscriptions::Subscriptions;
use crate::tap::Taps;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;
use mesh_api::names::{OBSERVE_GROUP, OBSERVE_VERSION};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Answers the observe API.
pub struct Observe {
    /// Asks whether a user may look.
    pub reviews: Api<SubjectAccessReview>,
    /// Who may ask on behalf of others.
    pub observers: Arc<Observers>,
    /// Golden metrics.
    pub golden: Arc<Golden>,
    /// Single requests and connections.
    pub taps: Arc<Taps>,
    /// The other replicas, which know other proxies.
    pub peers: Arc<Peers>,
    /// The world.
    pub subscriptions: Arc<Subscriptions>,
    /// Ends every stream.
    pub stop: CancellationToken,
}

/// Who may ask on behalf of others, as last heard.
#[derive(Debug)]
pub struct Observers {
    current: ArcSwapOption<RequestHeader>,
    changes: watch::Sender<()>,
}

impl Default for Observers {
    fn default() -> Self {
        Self { current: ArcSwapOption::empty(), changes: watch::Sender::new(()) }
    }
}

impl Observers {
    /// The ConfigMap has changed.
    pub fn changed(&self, map: Option<&ConfigMap>) {
        let new = map.and_then(|map| RequestHeader::from_data(map.data.as_ref()?));
        if new.is_none() {
            tracing::warn!("the API server names no requestheader authority; the observe API answers nobody");
        }
        let before = self.current.swap(new.map(Arc::new));
        if before != self.current() {
            self.changes.send_replace(());
        }
    }

    /// Whom to believe at the moment.
    pub fn current(&self) -> Option<Arc<RequestHeader>> {
        self.current.load_full()
    }

    /// Tells of changes.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Question {
    namespace: Option<String>,
    name: String,
    workload: Option<(String, String)>,
    window_s: u16,
    frames: Option<u32>,
    pods: bool,
}

/// An answer that is no success.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    code: StatusCode,
    reason: &'static str,
    message: String,
}

impl Failure {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    fn response(&self) -> Response<Body> {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16()});
        listen::json(self.code, &status)
    }
}

impl Observe {
    /// Answers a request below `/apis`.
    pub async fn answer(&self, peer: &Peer, method: &Method, uri: &Uri, headers: &HeaderMap) -> Response<Body> {
        if *method != Method::GET && *method != Method::HEAD {
            let failure =
                Failure::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "what is observed can only be read");
            return failure.response();
        }
        if let Some(document) = discovery(uri.path()) {
            return listen::json(StatusCode::OK, &document);
        }
        let answer = match uri.path().ends_with("/tap") {
            true => self.open_tap(peer, uri, headers).await,
            false => self
                .open(peer, uri, headers)
                .await
                .map(|(watch, frames)| stream(watch, frames, self.subscriptions.clone(), self.stop.clone())),
        };
        answer.unwrap_or_else(|failure| failure.response())
    }

    async fn open(&self, peer: &Peer, uri: &Uri, headers: &HeaderMap) -> Result<(Together, Option<u32>), Failure> {
        let question = parse(uri.path(), uri.query().unwrap_or_default())?;
        let user = self.who(peer, headers)?;
        self.authorize(&user, question.namespace.as_deref(), &question.name, ("get", "golden")).await?;
        let path = format!("{PEER_PATH}{}?window={}&pods={}", uri.path(), question.window_s, question.pods);
        let frames = question.frames;
        let watch = self.golden.look(question.look(), Instant::now(), unix_ms());
        let watch = watch.ok_or_else(|| {
            let message = format!("{} observers look already", limits::WATCHES);
            Failure::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message)
        })?;
        Ok((Together::new(watch, self.peers.clone(), path), frames))
    }

    fn who(&self, peer: &Peer, headers: &HeaderMap) -> Result<User, Failure> {
        let user = match self.observers.current() {
            Some(believed) => believed.user(peer, headers),
            None => Err(Unauthenticated::NoCertificate),
        };
        user.map_err(|error| Failure::new(StatusCode::UNAUTHORIZED, "Unauthorized", error.to_string()))
    }

    /// Asks the cluster whether a user may get (or watch) `workloads/{subresource}` of a workload or, under the name `all`, of a
    /// namespace or the cluster.
    async fn authorize(
        &self,
        user: &User,
        namespace: Option<&str>,
        name: &str,
        (verb, subresource): (&'static str, &'static str),
    ) -> Result<(), Failure> {
        let spec = review(user, namespace, name, (verb, subresource));
        let review = SubjectAccessReview { spec, ..Default::default() };
        let post = PostParams::default();
        let answer = tokio::time::timeout(limits::API_TIMEOUT, self.reviews.create(&post, &review)).await;
        let unavailable = |why: String| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", why);
        let answer = answer.map_err(|_| unavailable("the API server does not say who may look".to_owned()))?;
        let answer = answer.map_err(|error| unavailable(format!("cannot ask the API server who may look: {error}")))?;
        let status = answer.status.unwrap_or_default();
        if status.allowed {
            return Ok(());
        }
        let place = match namespace {
            Some(namespace) => format!("in the namespace \"{namespace}\""),
            None => "at the cluster scope".to_owned(),
        };
        let why = status.reason.filter(|why| !why.is_empty()).map(|why| format!(": {why}")).unwrap_or_default();
        let message = format!(
            "workloads.{OBSERVE_GROUP} \"{name}\" is forbidden: User \"{}\" cannot {verb} resource \
             \"workloads/{subresource}\" in API group \"{OBSERVE_GROUP}\" {place}{why}",
            user.name,
        );
        Err(Failure::new(StatusCode::FORBIDDEN, "Forbidden", message))
    }
}

/// Frames as lines. A reader that is slow gets fewer of them, each over a longer span; nothing is lost.
pub(crate) fn stream(
    watch: Together,
    frames: Option<u32>,
    subscriptions: Arc<Subscriptions>,
    stop: CancellationToken,
) -> Response<Body> {
    let lines = futures::stream::unfold((watch, frames), move |(mut watch, left)| {
        let (subscriptions, stop) = (subscriptions.clone(), stop.clone());
        async move {
            if left == Some(0) {
                return None;
            }
            let frame = tokio::select! {
                () = stop.cancelled() => return None,
                frame = watch.next(|look| subscriptions.read(|world| look(world)), unix_ms) => frame,
            };
            let line = serde_json::to_vec(&frame).map(|mut line| {
                line.push(b'\n');
                Frame::data(Bytes::from(line))
            });
            Some((line.map_err(std::io::Error::other), (watch, left.map(|left| left - 1))))
        }
    });
    stream_of(lines)
}

fn stream_of(
    lines: impl futures::Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send + 'static,
) -> Response<Body> {
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    let content_type = header::HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// Unix time, milliseconds.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Question {
    fn look(self) -> Look {
        let scope = Scope { namespace: self.namespace, workload: self.workload };
        Look { scope, window_s: self.window_s, pods: self.pods, ..Look::default() }
    }
}

/// Reads a question about golden metrics; an error says what is wrong with it.
pub(crate) fn look(path: &str, query: &str) -> Result<Look, String> {
    parse(path, query).map(Question::look).map_err(|failure| failure.message)
}

/// What to ask the cluster about a user.
fn review(
    user: &User,
    namespace: Option<&str>,
    name: &str,
    (verb, subresource): (&str, &str),
) -> SubjectAccessReviewSpec {
    SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        groups: Some(user.groups.clone()),
        extra: Some(user.extra.clone()),
        uid: None,
        resource_attributes: Some(ResourceAttributes {
            group: Some(OBSERVE_GROUP.to_owned()),
            version: Some(OBSERVE_VERSION.to_owned()),
            resource: Some("workloads".to_owned()),
            subresource: Some(subresource.to_owned()),
            verb: Some(verb.to_owned()),
            namespace: namespace.map(str::to_owned),
            name: Some(name.to_owned()),
            ..ResourceAttributes::default()
        }),
        non_resource_attributes: None,
    }
}

/// Reads `/apis/GROUP/VERSION[/namespaces/NS]/workloads/{all|KIND.NAME}/golden?window=10&frames=N&pods=true`.
fn parse(path: &str, query: &str) -> Result<Question, Failure> {
    let not_found = || {
        let message = format!(
            "{path} is not there; golden metrics are at /apis/{OBSERVE_GROUP}/{OBSERVE_VERSION}[/namespaces/NAMESPACE]/workloads/{{all|KIND.NAME}}/golden, taps beside them at /tap"
        );
        Failure::new(StatusCode::NOT_FOUND, "NotFound", message)
    };
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (namespace, name) = match parts[..] {
        ["apis", OBSERVE_GROUP, OBSERVE_VERSION, "workloads", name, "golden"] => (None, name),
        ["apis", OBSERVE_GROUP, OBSERVE_VERSION, "namespaces", namespace, "workloads", name, "golden"] => {
            (Some(namespace.to_owned()), name)
        }
        _ => return Err(not_found()),
    };
    let workload = match name {
        "all" => None,
        _ => {
            let (kind, name) = name.split_once('.').ok_or_else(not_found)?;
            Some((kind.to_ascii_lowercase(), name.to_owned()))
        }
    };
    let mut question = Question {
        namespace,
        name: name.to_owned(),
        workload,
        window_s: limits::DEFAULT_WINDOW_S,
        ..Question::default()
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let wrong = |expected: &str| {
            let message = format!("{key}={value}: expected {expected}");
            Failure::new(StatusCode::BAD_REQUEST, "BadRequest", message)
        };
        match key {
            "window" => {
                let range = 1..=limits::WINDOW_S;
                let seconds = value.parse().ok().filter(|seconds| range.contains(seconds));
                question.window_s = seconds.ok_or_else(|| wrong(&format!("seconds from 1 to {}", limits::WINDOW_S)))?;
            }
            "frames" => {
                let frames = value.parse().ok().filter(|frames| *frames > 0);
                question.frames = Some(frames.ok_or_else(|| wrong("a number of frames above 0"))?);
            }
            "pods" => question.pods = value.parse().map_err(|_| wrong("true or false"))?,
            // API clients add parameters of their own (timeout, pretty): they change nothing here.
            _ => {}
        }
    }
    Ok(question)
}

/// The documents by which API clients find the resources.
fn discovery(path: &str) -> Option<Value> {
    let group_version = format!("{OBSERVE_GROUP}/{OBSERVE_VERSION}");
    let version = json!({"groupVersion": group_version, "version": OBSERVE_VERSION});
    let group = json!({"name": OBSERVE_GROUP, "versions": [version], "preferredVersion": version});
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts[..] {
        ["apis"] => Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]})),
        ["apis", OBSERVE_GROUP] => {
            let mut document = group;
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            Some(document)
        }
        ["apis", OBSERVE_GROUP, OBSERVE_VERSION] => {
            let resource = |name: &str, kind: &str| json!({"name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": ["get", "watch"]});
            Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version,
                "resources": [resource("workloads", "Workload"), resource("workloads/golden", "GoldenFrame"),
                    resource("workloads/tap", "TapMessage")]}))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
