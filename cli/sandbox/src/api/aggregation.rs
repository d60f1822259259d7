//! APIs served by somebody else: `APIService` objects that name a Service are probed, shown in discovery, and
//! requests for them passed on with the identity of who asks.

use super::authn::User;
use super::remote::{self, Target, Trust};
use super::service::RequestBody;
use super::status::ApiError;
use super::store::{Key, Object};
use super::{Api, Body, Inner, timestamp, uid};
use base64::Engine;
use http::header::{AUTHORIZATION, CONNECTION, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

const COLLECTION: &str = "apiservices.apiregistration.k8s.io";
/// How long an API may take to show that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often APIs are probed while all of them answer.
const CALM: Duration = Duration::from_secs(10);
/// How often they are probed while one does not.
const EAGER: Duration = Duration::from_millis(500);
/// Largest discovery document read.
const DISCOVERY_LIMIT: usize = 1024 * 1024;

/// An aggregated group version.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub(super) group: String,
    pub(super) version: String,
    /// True if it answered the last probe.
    pub(super) available: bool,
    /// Its `APIResourceList`, as last seen.
    pub(super) resources: Option<Value>,
}

/// What probing has found.
#[derive(Default)]
pub(super) struct Probes {
    found: Mutex<HashMap<String, Remote>>,
    running: AtomicBool,
    wake: Arc<Notify>,
}

/// All aggregated group versions, those that want to come first first.
pub(super) fn remotes(api: &Api) -> Vec<Remote> {
    let (_, objects) = api.store().list(COLLECTION, None);
    let mut objects: Vec<Object> = objects.into_iter().filter(|object| is_remote(object)).collect();
    let rank = |object: &Value, field: &str| -object["spec"][field].as_i64().unwrap_or(0);
    objects.sort_by_key(|object| (rank(object, "groupPriorityMinimum"), rank(object, "versionPriority")));
    let found = api.inner.probes.found.lock();
    objects
        .iter()
        .map(|object| {
            let text = |field: &str| object["spec"][field].as_str().unwrap_or_default().to_owned();
            let known = found.get(name_of(object));
            Remote {
                group: text("group"),
                version: text("version"),
                available: known.is_some_and(|known| known.available),
                resources: known.and_then(|known| known.resources.clone()),
            }
        })
        .collect()
}

fn is_remote(object: &Value) -> bool {
    object["spec"]["service"].is_object()
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The `APIService` that serves a group version elsewhere, if one does.
pub(super) fn find(api: &Api, group: &str, version: &str) -> Option<Object> {
    api.store().get(COLLECTION, "", &format!("{version}.{group}")).filter(|object| is_remote(object))
}

/// Notices that an `APIService` changed: probes it at once, and from then on.
pub(super) fn changed(api: &Api) {
    sync_local(api);
    let probes = &api.inner.probes;
    probes.wake.notify_one();
    if !probes.running.swap(true, Ordering::SeqCst) {
        tokio::spawn(probe_forever(Arc::downgrade(&api.inner), probes.wake.clone()));
    }
}

async fn probe_forever(inner: Weak<Inner>, wake: Arc<Notify>) {
    while let Some(inner) = inner.upgrade() {
        let api = Api { inner };
        let (_, objects) = api.store().list(COLLECTION, None);
        let checks = objects.iter().filter(|object| is_remote(object)).map(|object| probe(&api, object));
        let all_well = futures::future::join_all(checks).await.into_iter().all(|available| available);
        drop(api);
        let pause = if all_well { CALM } else { EAGER };
        // A timeout is the usual way this wait ends.
        let _ = tokio::time::timeout(pause, wake.notified()).await;
    }
}

async fn probe(api: &Api, object: &Value) -> bool {
    let outcome = match tokio::time::timeout(PROBE_TIMEOUT, discover(api, object)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(("FailedDiscoveryCheck", format!("no answer within {} s", PROBE_TIMEOUT.as_secs()))),
    };
    let spec = |field: &str| object["spec"][field].as_str().unwrap_or_default().to_owned();
    let mut found = api.inner.probes.found.lock();
    let entry = found.entry(name_of(object).to_owned()).or_insert_with(|| Remote {
        group: spec("group"),
        version: spec("version"),
        available: false,
        resources: None,
    });
    entry.available = outcome.is_ok();
    let (status, reason, message) = match outcome {
        Ok(resources) => {
            entry.resources = Some(resources);
            ("True", "Passed", "all checks passed".to_owned())
        }
        Err((reason, message)) => ("False", reason, message),
    };
    drop(found);
    set_condition(api, name_of(object), status, reason, &message);
    status == "True"
}

async fn discover(api: &Api, object: &Value) -> Result<Value, (&'static str, String)> {
    let service = &object["spec"]["service"];
    let target = Target::of_service(api, service).map_err(|error| ("ServiceNotFound", error.to_string()))?;
    let spec = |field: &str| object["spec"][field].as_str().unwrap_or_default();
    let path = format!("/apis/{}/{}", spec("group"), spec("version"));
    let place = format!("https://{}:{}{path}", target.host, target.port);
    let failed = |why: String| ("FailedDiscoveryCheck", format!("failing or missing response from {place}: {why}"));
    let mut sender = connect(api, object, &target).await.map_err(|error| failed(format!("{error:#}")))?;
    let mut request =
        Request::get(&path).body(super::negotiate::full("")).map_err(|error| failed(error.to_string()))?;
    request.headers_mut().insert(http::header::ACCEPT, HeaderValue::from_static("application/json"));
    identify(request.headers_mut(), &User::new("system:kube-aggregator", &["system:masters"]), &target);
    let response = sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
    if !response.status().is_success() {
        return Err(failed(format!("bad status from {place}: {}", response.status().as_u16())));
    }
    let body = http_body_util::Limited::new(response.into_body(), DISCOVERY_LIMIT).collect().await;
    let bytes = body.map_err(|error| failed(error.to_string()))?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| failed(format!("its discovery is not JSON: {error}")))
}

fn set_condition(api: &Api, name: &str, status: &str, reason: &str, message: &str) {
    api.store().transact(COLLECTION, |tx| {
        let key = Key::new("", name);
        let Some(object) = tx.get(&key).cloned() else { return };
        let old = &object["status"]["conditions"][0];
        let same = |field: &str, value: &str| old[field] == value;
        if same("status", status) && same("reason", reason) && same("message", message) {
            return;
        }
        let since = if same("status", status) { old["lastTransitionTime"].clone() } else { timestamp().into() };
        let mut next = Value::clone(&object);
        next["status"]["conditions"] = json!([{
            "type": "Available", "status": status, "lastTransitionTime": since, "reason": reason, "message": message,
        }]);
        tx.put(key, next);
    });
}

async fn connect(api: &Api, object: &Value, target: &Target) -> anyhow::Result<SendRequest<Body>> {
    let spec = &object["spec"];
    let trust = if spec["insecureSkipTLSVerify"] == true {
        Trust::Anything
    } else {
        let bundle = base64::engine::general_purpose::STANDARD.decode(spec["caBundle"].as_str().unwrap_or_default());
        Trust::Bundle(bundle.unwrap_or_default())
    };
    remote::connect_tls(api, target, &trust, Some(api.pki().front_proxy.der())).await
}

/// Says who asks, in the headers the API's client certificate vouches for.
fn identify(headers: &mut HeaderMap, user: &User, target: &Target) {
    let spoofable: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-remote-") || name.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in spoofable {
        headers.remove(name);
    }
    headers.remove(AUTHORIZATION);
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escape(key));
        for value in values {
            add(&name, value);
        }
    }
    if let Ok(host) = HeaderValue::from_str(&target.server_name) {
        headers.insert(HOST, host);
    }
}

/// Percent-encodes what header names may not hold.
fn escape(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    key.bytes().map(|byte| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Passes a request on to the API that serves it; both bodies flow as they come.
pub(super) async fn proxy(
    api: &Api,
    user: &User,
    object: &Value,
    parts: Parts,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let unreachable = |error: anyhow::Error| {
        ApiError::new(503, "ServiceUnavailable", format!("error trying to reach service: {error:#}"))
    };
    let target = Target::of_service(api, &object["spec"]["service"]).map_err(unreachable)?;
    let sender = connect(api, object, &target).await.map_err(unreachable)?;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    forward(sender, parts, body, &path, |headers| identify(headers, user, &target)).await
}

/// Sends a request over a connection of its own and returns what comes back, following upgrades.
pub(super) async fn forward(
    mut sender: SendRequest<Body>,
    mut parts: Parts,
    body: RequestBody,
    path: &str,
    headers: impl FnOnce(&mut HeaderMap),
) -> Result<Response<Body>, ApiError> {
    let failed = |error: &dyn std::fmt::Display| {
        ApiError::new(503, "ServiceUnavailable", format!("error trying to reach service: {error}"))
    };
    let client = parts.extensions.remove::<OnUpgrade>();
    let upgrades = parts.headers.contains_key(UPGRADE) && client.is_some();
    strip_hop_by_hop(&mut parts.headers, upgrades);
    headers(&mut parts.headers);
    parts.version = Version::HTTP_11;
    parts.uri = path.parse().map_err(|error: http::uri::InvalidUri| failed(&error))?;
    parts.extensions.clear();
    let request = Request::from_parts(parts, body.stream());
    let mut response = sender.send_request(request).await.map_err(|error| failed(&error))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let server = hyper::upgrade::on(&mut response);
        tokio::spawn(join_streams(client, server));
    } else {
        strip_hop_by_hop(response.headers_mut(), false);
    }
    Ok(response.map(|body: Incoming| body.map_err(std::io::Error::other).boxed_unsync()))
}

/// Copies bytes between two upgraded connections until both ends are done.
async fn join_streams(client: Option<OnUpgrade>, server: OnUpgrade) {
    let Some(client) = client else { return };
    match tokio::try_join!(client, server) {
        Ok((client, server)) => {
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut server).await {
                tracing::debug!(%error, "a proxied connection broke");
            }
        }
        Err(error) => tracing::debug!(%error, "upgrading a proxied connection"),
    }
}

/// Removes headers that are about one connection only (RFC 9110, section 7.6.1).
fn strip_hop_by_hop(headers: &mut HeaderMap, keep_upgrade: bool) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .filter(|name| !(keep_upgrade && *name == UPGRADE))
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [TE, TRAILER, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    if keep_upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    } else {
        headers.remove(CONNECTION);
        headers.remove(UPGRADE);
    }
}

/// Objects about aggregation every cluster begins with: what extension APIs need to believe forwarded identities.
pub(super) fn own_objects(api: &Api) -> Vec<Value> {
    let pki = api.pki();
    vec![json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {
            "client-ca-file": pki.ca,
            "requestheader-allowed-names": "[\"front-proxy-client\"]",
            "requestheader-client-ca-file": pki.front_proxy_ca,
            "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
            "requestheader-group-headers": "[\"X-Remote-Group\"]",
            "requestheader-uid-headers": "[\"X-Remote-Uid\"]",
            "requestheader-username-headers": "[\"X-Remote-User\"]",
        },
    })]
}

/// Keeps an `APIService` for every group version the API serves itself, as `kubectl get apiservices` shows them.
pub(super) fn sync_local(api: &Api) {
    const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
    let registry = api.registry();
    let mut served = vec![(String::new(), "v1".to_owned())];
    for (group, versions) in registry.groups() {
        served.extend(versions.into_iter().map(|version| (group.clone(), version)));
    }
    api.store().transact(COLLECTION, |tx| {
        let stale: Vec<Key> = tx
            .objects()
            .filter(|object| object["metadata"]["labels"][MANAGED].is_string())
            .filter(|object| {
                let spec = |field: &str| object["spec"][field].as_str().unwrap_or_default().to_owned();
                !served.contains(&(spec("group"), spec("version")))
            })
            .map(|object| Key::new("", name_of(object)))
            .collect();
        for key in stale {
            tx.remove(&key);
        }
        for (group, version) in &served {
            let key = Key::new("", format!("{version}.{group}"));
            if tx.get(&key).is_none() {
                let object = json!({
                    "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                    "metadata": {
                        "name": key.name, "uid": uid(), "creationTimestamp": timestamp(),
                        "labels": {MANAGED: "true"},
                    },
                    "spec": {"group": group, "version": version, "groupPriorityMinimum": 1000, "versionPriority": 15},
                    "status": {"conditions": [{
                        "type": "Available", "status": "True", "lastTransitionTime": timestamp(), "reason": "Local",
                        "message": "Local APIServices are always available",
                    }]},
                });
                tx.put(key, object);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_says_who_asks() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("root"));
        headers.insert("x-remote-extra-a", HeaderValue::from_static("b"));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer secret"));
        let mut user = User::service_account("a", "b");
        user.extra.insert("authentication.kubernetes.io/pod-name".to_owned(), vec!["p".to_owned()]);
        let target = Target { host: "10.96.0.7".to_owned(), port: 443, server_name: "s.n.svc".to_owned() };
        identify(&mut headers, &user, &target);
        let names: Vec<&str> = headers.get_all("x-remote-user").iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(names, ["system:serviceaccount:a:b"]);
        assert!(headers.get(AUTHORIZATION).is_none() && headers.get("x-remote-extra-a").is_none());
        assert_eq!(headers["x-remote-extra-authentication.kubernetes.io%2fpod-name"], "p");
        assert_eq!(headers[HOST], "s.n.svc");
    }

    #[test]
    fn connection_headers_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("connection", "close, x-own"), ("x-own", "1"), ("te", "trailers"), ("accept", "*/*")] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers, false);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }
}
