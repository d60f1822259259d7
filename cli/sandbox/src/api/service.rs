//! The API as a tower service, and the one way every request goes: authenticate, read, authorise, dispatch.

use super::authn::User;
use super::kinds::Resource;
use super::negotiate::{self, Accept};
use super::path::{Query, RequestInfo};
use super::status::ApiError;
use super::{Api, Body, aggregation, authn, discovery, rbac, verbs};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde_json::Value;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Largest request body, as in Kubernetes.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// The API for one user, as a function call.
#[derive(Clone)]
pub struct ApiService {
    api: Api,
    user: User,
}

impl ApiService {
    pub(super) fn new(api: Api, user: User) -> Self {
        Self { api, user }
    }
}

impl tower::Service<Request<kube::client::Body>> for ApiService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let (api, user) = (self.api.clone(), self.user.clone());
        Box::pin(async move { Ok(handle(api, parts, RequestBody::InProcess(body), Ok(user)).await) })
    }
}

/// A request's body, from a function call or from the network.
pub(super) enum RequestBody {
    InProcess(kube::client::Body),
    Network(Incoming),
}

impl RequestBody {
    /// The whole body, if it isn't too large.
    pub(super) async fn collect(self) -> Result<Bytes, ApiError> {
        let collected = match self {
            Self::InProcess(body) => Limited::new(body, BODY_LIMIT).collect().await,
            Self::Network(body) => Limited::new(body, BODY_LIMIT).collect().await,
        };
        collected.map(|collected| collected.to_bytes()).map_err(|error| {
            if error.is::<LengthLimitError>() {
                let message = format!("Request entity too large: limit is {BODY_LIMIT}");
                ApiError::new(413, "RequestEntityTooLarge", message)
            } else {
                ApiError::bad_request(format!("reading the request's body: {error}"))
            }
        })
    }

    /// The body as a stream, for requests that are passed on.
    pub(super) fn stream(self) -> Body {
        match self {
            Self::InProcess(body) => body.map_err(std::io::Error::other).boxed_unsync(),
            Self::Network(body) => body.map_err(std::io::Error::other).boxed_unsync(),
        }
    }
}

/// Everything known of a request for a resource once it may go ahead.
pub(super) struct Call {
    pub(super) api: Api,
    pub(super) user: User,
    pub(super) info: RequestInfo,
    pub(super) query: Query,
    pub(super) accept: Accept,
    pub(super) resource: Arc<Resource>,
    /// Content type of the body, without parameters.
    pub(super) content_type: String,
    user_agent: String,
    warnings: Mutex<Vec<String>>,
}

impl Call {
    /// Whose fields a write sets: `fieldManager`, else the program's name.
    pub(super) fn manager(&self) -> String {
        let name = self.query.get("fieldManager").unwrap_or_else(|| self.user_agent.split('/').next().unwrap_or(""));
        if name.is_empty() { "unknown".to_owned() } else { name.chars().take(128).collect() }
    }

    /// True if nothing may be changed (`dryRun=All`).
    pub(super) fn dry_run(&self) -> bool {
        self.query.all("dryRun").any(|value| value == "All")
    }

    /// Namespace part of the key of the object asked for.
    pub(super) fn namespace(&self) -> &str {
        if self.resource.namespaced { self.info.namespace.as_deref().unwrap_or_default() } else { "" }
    }

    /// Name of the object asked for.
    pub(super) fn name(&self) -> &str {
        self.info.name.as_deref().unwrap_or_default()
    }

    /// Something the user should know though the request goes ahead.
    pub(super) fn warn(&self, warning: impl Into<String>) {
        let warning = warning.into();
        let mut warnings = self.warnings.lock();
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// The object asked for does not exist.
    pub(super) fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.resource.qualified(), self.name())
    }

    /// Renders one object.
    pub(super) fn reply(&self, code: u16, object: &Value) -> Response<Body> {
        self.accept.respond(code, &self.accept.object(&self.resource, object))
    }
}

/// Serves one request. `user` is whom the connection or its caller authenticated.
pub(super) async fn handle(api: Api, parts: Parts, body: RequestBody, user: Result<User, ApiError>) -> Response<Body> {
    let query = Query::parse(parts.uri.query());
    let accept = match Accept::read(&parts.headers, &query) {
        Ok(accept) => accept,
        Err(error) => return refuse(&Accept::default(), &error),
    };
    match dispatch(api, parts, body, user, query, accept.clone()).await {
        Ok(response) => response,
        Err(error) => refuse(&accept, &error),
    }
}

async fn dispatch(
    api: Api,
    parts: Parts,
    body: RequestBody,
    user: Result<User, ApiError>,
    query: Query,
    accept: Accept,
) -> Result<Response<Body>, ApiError> {
    let user = authn::impersonate(&api, user?, &parts.headers)?;
    let info = RequestInfo::new(&parts.method, parts.uri.path(), &query);
    rbac::authorize(&api, &user, &info)?;
    if let Some((group, version)) = group_version(&info)
        && let Some(remote) = aggregation::find(&api, group, version)
    {
        return aggregation::proxy(&api, &user, &remote, parts, body).await;
    }
    if !info.is_resource {
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            return Err(verbs::not_allowed());
        }
        return discovery::serve(&api, &info.path, &accept);
    }
    let registry = api.registry();
    let found = registry.find(&info.group, &info.version, &info.resource).cloned();
    let resource = found.ok_or_else(discovery::not_found)?;
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content_type = header(CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_owned();
    let user_agent = header(USER_AGENT).to_owned();
    let warnings = Mutex::new(Vec::new());
    let call = Call { api, user, info, query, accept, resource, content_type, user_agent, warnings };
    let mut response = verbs::serve(&call, parts, body).await.unwrap_or_else(|error| refuse(&call.accept, &error));
    negotiate::warn(&mut response, &call.warnings.lock());
    Ok(response)
}

/// Group and version a request is within, its discovery included.
fn group_version(info: &RequestInfo) -> Option<(&str, &str)> {
    if info.is_resource {
        return Some((info.group.as_str(), info.version.as_str())).filter(|(group, _)| !group.is_empty());
    }
    let mut parts = info.path.split('/').filter(|part| !part.is_empty());
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("apis"), Some(group), Some(version), None) => Some((group, version)),
        _ => None,
    }
}

/// Renders an error as a `Status`.
pub(super) fn refuse(accept: &Accept, error: &ApiError) -> Response<Body> {
    accept.respond(error.code, &error.to_status())
}
