//! Watches: a response that goes on for as long as the client wants, one JSON line a change.

use super::negotiate::Form;
use super::selector::Selector;
use super::service::Call;
use super::status::ApiError;
use super::store::{self, Change};
use super::{Body, verbs};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// Watches end by themselves after this long, unless `timeoutSeconds` says otherwise; clients start new ones.
const LIFETIME: Duration = Duration::from_secs(40 * 60);
/// How often a quiet watch says how far it has read.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(30);

/// Serves a watch.
pub(super) fn serve(call: &Call) -> Result<Response<Body>, ApiError> {
    let selector = verbs::selector(call)?;
    let lifetime = call.query.number("timeoutSeconds").map_or(LIFETIME, Duration::from_secs);
    let start = Start::read(call)?;
    let collection = call.resource.collection();
    let (revision, existing) = match start {
        Start::After(revision) => (revision, Vec::new()),
        Start::Now => (call.api.store().revision(), Vec::new()),
        Start::WithExisting { .. } => call.api.store().list(&collection, verbs::scope(call)),
    };
    let renderer = Renderer {
        namespace: verbs::scope(call).map(str::to_owned),
        selector,
        accept: super::negotiate::Accept { pretty: false, yaml: false, ..call.accept.clone() },
        resource: call.resource.clone(),
    };
    let mut first = String::new();
    for object in &existing {
        let shown = verbs::present_as(&renderer.resource, object);
        if renderer.selector.matches(&shown) {
            renderer.event(&mut first, "ADDED", &shown);
        }
    }
    let bookmarks = call.query.flag("allowWatchBookmarks");
    if matches!(start, Start::WithExisting { announce_end: true }) && bookmarks {
        renderer.bookmark(&mut first, revision, true);
    }
    let now = Instant::now();
    let state = State {
        changes: call.api.store().watch(&collection, revision),
        renderer,
        first: Some(first).filter(|first| !first.is_empty()),
        deadline: now + lifetime,
        next_bookmark: bookmarks.then(|| now + BOOKMARK_INTERVAL),
        ended: false,
    };
    let chunks = futures::stream::unfold(state, |mut state| async move {
        let chunk = state.next().await?;
        Some((Ok(Frame::data(Bytes::from(chunk))), state))
    });
    let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Where a watch begins.
enum Start {
    /// With changes after this resource version.
    After(u64),
    /// With changes from now on.
    Now,
    /// With everything that exists, as if just added; then a bookmark if `announce_end`.
    WithExisting { announce_end: bool },
}

impl Start {
    fn read(call: &Call) -> Result<Self, ApiError> {
        let streaming = call.query.get("sendInitialEvents").is_some();
        let matching = call.query.get("resourceVersionMatch");
        if streaming && matching != Some("NotOlderThan") {
            return Err(verbs::list_option("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
        }
        if !streaming && matching.is_some() {
            return Err(verbs::list_option(
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        let revision = call.query.get("resourceVersion").map(verbs::parse_revision).transpose()?;
        Ok(match (streaming, call.query.flag("sendInitialEvents"), revision) {
            (true, true, _) => Self::WithExisting { announce_end: true },
            (true, false, None | Some(0)) => Self::Now,
            (false, _, None | Some(0)) => Self::WithExisting { announce_end: false },
            (_, _, Some(revision)) => Self::After(revision),
        })
    }
}

struct State {
    changes: store::Watch,
    renderer: Renderer,
    first: Option<String>,
    deadline: Instant,
    next_bookmark: Option<Instant>,
    ended: bool,
}

impl State {
    /// The next piece of the response; `None` ends it.
    async fn next(&mut self) -> Option<String> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let mut chunk = String::new();
        while chunk.is_empty() && !self.ended {
            let bookmark_at = self.next_bookmark.unwrap_or(self.deadline).min(self.deadline);
            match tokio::time::timeout_at(bookmark_at, self.changes.next()).await {
                Ok(Ok(changes)) => changes.iter().for_each(|change| self.renderer.change(&mut chunk, change)),
                Ok(Err(expired)) => {
                    let error = verbs::expired_error(self.changes.position(), &expired);
                    Renderer::line(&mut chunk, "ERROR", &error.to_status());
                    self.ended = true;
                }
                Err(_) if Instant::now() >= self.deadline => self.ended = true,
                Err(_) => {
                    let revision = self.changes.bookmark();
                    self.renderer.bookmark(&mut chunk, revision, false);
                    self.next_bookmark = Some(Instant::now() + BOOKMARK_INTERVAL);
                }
            }
        }
        Some(chunk).filter(|chunk| !chunk.is_empty())
    }
}

/// Turns changes into the lines this watch's client should see.
struct Renderer {
    namespace: Option<String>,
    selector: Selector,
    accept: super::negotiate::Accept,
    resource: std::sync::Arc<super::kinds::Resource>,
}

impl Renderer {
    fn change(&self, out: &mut String, change: &Change) {
        if self.namespace.as_deref().is_some_and(|namespace| namespace != change.key.namespace) {
            return;
        }
        let shown = verbs::present_as(&self.resource, &change.object);
        let before = change.before.as_ref().map(|before| verbs::present_as(&self.resource, before));
        let was = before.as_ref().is_some_and(|before| self.selector.matches(before));
        let is = !change.deleted && self.selector.matches(&shown);
        match (was, is, before) {
            (false, true, _) => self.event(out, "ADDED", &shown),
            (true, true, _) => self.event(out, "MODIFIED", &shown),
            (true, false, _) if change.deleted => self.event(out, "DELETED", &shown),
            (true, false, Some(before)) => {
                // No longer selected: the client sees its last selected state go away.
                let mut last = before.into_owned();
                last["metadata"]["resourceVersion"] = Value::String(change.revision.to_string());
                self.event(out, "DELETED", &last);
            }
            _ => {}
        }
    }

    fn event(&self, out: &mut String, kind: &str, object: &Value) {
        if self.accept.form == Form::Object {
            Self::line(out, kind, object);
        } else {
            Self::line(out, kind, &self.accept.object(&self.resource, object));
        }
    }

    fn bookmark(&self, out: &mut String, revision: u64, initial_end: bool) {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.accept.form {
            Form::Table => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": null,
                "rows": [],
            }),
            Form::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            _ => json!({
                "kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata,
            }),
        };
        Self::line(out, "BOOKMARK", &object);
    }

    fn line(out: &mut String, kind: &str, object: &Value) {
        out.push_str("{\"type\":\"");
        out.push_str(kind);
        out.push_str("\",\"object\":");
        out.push_str(&object.to_string());
        out.push_str("}\n");
    }
}
