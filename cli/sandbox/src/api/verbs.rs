//! What can be done with resources: routes a request to its verb or subresource, and serves the reading ones.

use super::kinds::Resource;
use super::negotiate::Accept;
use super::selector::{FieldSelector, LabelSelector, Selector};
use super::service::{Call, RequestBody};
use super::status::ApiError;
use super::store::{Expired, Key, Object};
use super::{Body, decode, delete, events, reviews, subresources, watch, write};
use base64::Engine;
use http::Response;
use http::request::Parts;
use serde_json::{Value, json};
use std::borrow::Cow;

/// Serves a request for a resource.
pub(super) async fn serve(call: &Call, parts: Parts, body: RequestBody) -> Result<Response<Body>, ApiError> {
    if !call.info.subresource.is_empty() {
        return subresources::serve(call, parts, body).await;
    }
    let verb = call.info.verb.as_str();
    if !call.resource.verbs().contains(&verb) {
        return Err(not_allowed());
    }
    if call.resource.namespaced && call.info.namespace.is_none() && !matches!(verb, "list" | "watch") {
        return Err(not_allowed());
    }
    match verb {
        "get" => {
            let object = find(call)?;
            Ok(call.reply(200, &present(call, &object)))
        }
        "list" => list(call),
        "watch" => watch::serve(call),
        "create" => {
            let object = decode::decode(call, &body.collect().await?)?;
            if call.resource.verbs() == ["create"] {
                return Ok(call.reply(201, &reviews::answer(call, object)?));
            }
            let created = write::create(call, object).await?;
            Ok(call.reply(201, &present(call, &created)))
        }
        "update" => {
            let object = decode::decode(call, &body.collect().await?)?;
            let (code, updated) = write::replace(call, object, None).await?;
            Ok(call.reply(code, &present(call, &updated)))
        }
        "patch" => {
            let (code, patched) = write::patch(call, &body.collect().await?, None).await?;
            Ok(call.reply(code, &present(call, &patched)))
        }
        "delete" => delete::one(call, &body.collect().await?).await,
        "deletecollection" => delete::many(call, &body.collect().await?).await,
        _ => Err(not_allowed()),
    }
}

/// 405.
pub(super) fn not_allowed() -> ApiError {
    ApiError::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
}

/// The object asked for.
pub(super) fn find(call: &Call) -> Result<Object, ApiError> {
    let store = call.api.store();
    store.get(&call.resource.collection(), call.namespace(), call.name()).ok_or_else(|| call.not_found())
}

/// An object as the requested version shows it.
pub(super) fn present<'a>(call: &Call, object: &'a Value) -> Cow<'a, Value> {
    present_as(&call.resource, object)
}

/// An object as `resource`'s version shows it.
pub(super) fn present_as<'a>(resource: &Resource, object: &'a Value) -> Cow<'a, Value> {
    let version = resource.api_version();
    if object["apiVersion"] == version.as_str() {
        return Cow::Borrowed(object);
    }
    let mut shown = object.clone();
    if resource.collection() == "events" {
        events::convert(&mut shown, &version);
    }
    shown["apiVersion"] = Value::String(version);
    Cow::Owned(shown)
}

/// Reads `labelSelector` and `fieldSelector`.
pub(super) fn selector(call: &Call) -> Result<Selector, ApiError> {
    Ok(Selector {
        labels: LabelSelector::parse(call.query.get("labelSelector").unwrap_or_default())?,
        fields: FieldSelector::parse(&call.resource, call.query.get("fieldSelector").unwrap_or_default())?,
    })
}

/// Objects that match, in the requested version.
pub(super) fn select(call: &Call, objects: Vec<Object>, selector: &Selector) -> Vec<Value> {
    objects.iter().map(|object| present(call, object)).filter(|o| selector.matches(o)).map(Cow::into_owned).collect()
}

/// Namespace a list is limited to.
pub(super) fn scope(call: &Call) -> Option<&str> {
    if call.resource.namespaced { call.info.namespace.as_deref() } else { None }
}

fn list(call: &Call) -> Result<Response<Body>, ApiError> {
    let selector = selector(call)?;
    let (collection, scope) = (call.resource.collection(), scope(call));
    let resume = call.query.get("continue").map(Continue::decode).transpose()?;
    let (revision, objects) = match &resume {
        Some(resume) => (resume.revision, past(call, resume.revision)?),
        None => match exact_revision(call)? {
            Some(revision) => (revision, past(call, revision)?),
            None => call.api.store().list(&collection, scope),
        },
    };
    let mut items = select(call, objects, &selector);
    if let Some(resume) = &resume {
        items.retain(|item| key(item) > resume.after);
    }
    let mut meta = json!({"resourceVersion": revision.to_string()});
    let limit = call.query.number("limit").and_then(|limit| usize::try_from(limit).ok()).unwrap_or(0);
    if limit > 0 && items.len() > limit {
        let remaining = items.len() - limit;
        items.truncate(limit);
        if let Some(last) = items.last() {
            meta["continue"] = Continue { revision, after: key(last) }.encode().into();
        }
        if call.query.get("labelSelector").is_none() && call.query.get("fieldSelector").is_none() {
            meta["remainingItemCount"] = remaining.into();
        }
    }
    Ok(call.accept.respond(200, &call.accept.list(&call.resource, items, meta)))
}

fn key(item: &Value) -> Key {
    let part = |name| item["metadata"][name].as_str().unwrap_or_default();
    Key::new(part("namespace"), part("name"))
}

/// The revision an exact list wants; checks the others are not from the future.
fn exact_revision(call: &Call) -> Result<Option<u64>, ApiError> {
    let matching = call.query.get("resourceVersionMatch");
    let Some(text) = call.query.get("resourceVersion") else {
        return match matching {
            Some(_) => Err(list_option("resourceVersionMatch is forbidden unless resourceVersion is provided")),
            None => Ok(None),
        };
    };
    let revision = parse_revision(text)?;
    let current = call.api.store().revision();
    if revision > current {
        let message = format!("Too large resource version: {revision}, current: {current}");
        let mut error = ApiError::new(504, "Timeout", message.clone());
        error.causes.push(("ResourceVersionTooLarge".to_owned(), String::new(), message));
        return Err(error);
    }
    match matching {
        Some("Exact") if revision == 0 => {
            Err(list_option("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""))
        }
        Some("Exact") => Ok(Some(revision)),
        Some("NotOlderThan") | None => Ok(None),
        Some(_) => Err(list_option("resourceVersionMatch: supported values: \"Exact\", \"NotOlderThan\"")),
    }
}

/// 422 for a bad combination of list options.
pub(super) fn list_option(why: &str) -> ApiError {
    ApiError::invalid(
        "ListOptions.meta.k8s.io",
        "",
        vec![("FieldValueForbidden".to_owned(), "resourceVersionMatch".to_owned(), format!("Forbidden: {why}"))],
    )
}

/// A resource version from a query.
pub(super) fn parse_revision(text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| {
        ApiError::bad_request(format!(
            "invalid resource version \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"
        ))
    })
}

fn past(call: &Call, revision: u64) -> Result<Vec<Object>, ApiError> {
    let store = call.api.store();
    store
        .list_at(&call.resource.collection(), scope(call), revision)
        .map_err(|expired| expired_error(revision, &expired))
}

/// 410: the past asked for is forgotten.
pub(super) fn expired_error(revision: u64, expired: &Expired) -> ApiError {
    ApiError::new(410, "Expired", format!("too old resource version: {revision} ({})", expired.oldest))
}

/// Where a paged list goes on.
struct Continue {
    revision: u64,
    after: Key,
}

impl Continue {
    fn encode(&self) -> String {
        let token =
            json!({"v": "meta.k8s.io/v1", "rv": self.revision, "ns": self.after.namespace, "name": self.after.name});
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token.to_string())
    }

    fn decode(text: &str) -> Result<Self, ApiError> {
        let read = || {
            let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok()?;
            let token: Value = serde_json::from_slice(&bytes).ok()?;
            let after = Key::new(token["ns"].as_str()?, token["name"].as_str()?);
            Some(Self { revision: token["rv"].as_u64()?, after })
        };
        read().ok_or_else(|| ApiError::bad_request("continue key is not valid: it was not made by this server"))
    }
}

/// A `Status` that says it went well.
pub(super) fn success(accept: &Accept, details: &Value) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    });
    accept.respond(200, &status)
}
