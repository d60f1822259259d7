//! The injection webhook: an AdmissionReview about a new pod in, a JSON patch out.
//!
//! What happens to a pod is decided by [`mesh_manifests::inject`], as for `meshctl inject`. A refusal, and a pod that
//! asked for a proxy and cannot have one, are also told by an Event where its owner will be looked at.

use crate::ca::Authority;
use crate::cluster_version::ClusterVersion;
use crate::event;
use crate::limits;
use crate::listen::{self, Body};
use crate::metrics::Metrics;
use crate::validation;
use arc_swap::ArcSwapOption;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::{Event, Namespace, ObjectReference};
use kube::Api;
use mesh_api::names::CONTROL_NAME;
use mesh_manifests::config::MeshConfig;
use mesh_manifests::inject::{Decision, Skip, decide};
use mesh_manifests::settings;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Path of the webhook.
pub const INJECT_PATH: &str = "/inject";

/// Answers the webhook.
pub struct Webhook {
    client: kube::Client,
    config: Arc<MeshConfig>,
    authority: Arc<ArcSwapOption<Authority>>,
    version: Arc<ClusterVersion>,
    metrics: Arc<Metrics>,
    event_slots: Arc<Semaphore>,
}

/// What is said about a pod.
#[derive(Debug, PartialEq)]
struct Verdict {
    response: Value,
    outcome: &'static str,
    event: Option<(&'static str, String)>,
}

impl Webhook {
    /// Injects proxies as `config` says, with the anchors of the authority there is at the moment, and in the form that a
    /// cluster of this version runs.
    pub fn new(
        client: kube::Client,
        config: Arc<MeshConfig>,
        authority: Arc<ArcSwapOption<Authority>>,
        version: Arc<ClusterVersion>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let event_slots = Arc::new(Semaphore::new(limits::EVENTS_AT_ONCE));
        Self { client, config, authority, version, metrics, event_slots }
    }

    /// Answers an AdmissionReview.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        match validation::read(request).await {
            Ok(review) => listen::json(StatusCode::OK, &self.review(&review).await),
            Err(answer) => answer,
        }
    }

    /// Answers an AdmissionReview about a policy or a route.
    pub async fn validate(&self, request: Request<Incoming>) -> Response<Body> {
        validation::answer(request, &self.metrics).await
    }

    async fn review(&self, review: &Value) -> Value {
        let request = &review["request"];
        let namespace = request["namespace"].as_str().unwrap_or_default();
        let known = self.namespace(namespace).await;
        let verdict = judge(request, &known, &self.config());
        self.metrics.admission(verdict.outcome);
        tracing::debug!(namespace, pod = pod_name(&request["object"]), outcome = verdict.outcome, "pod reviewed");
        if let Some((reason, message)) = verdict.event {
            tracing::info!(namespace, pod = pod_name(&request["object"]), reason, message, "pod not injected");
            if request["dryRun"] != true {
                self.tell(event(namespace, &request["object"], reason, message));
            }
        }
        let version = review["apiVersion"].as_str().unwrap_or("admission.k8s.io/v1");
        json!({"apiVersion": version, "kind": "AdmissionReview", "response": verdict.response})
    }

    /// The mesh's configuration: its anchors may be others than those we were started with, and the cluster may have been
    /// upgraded.
    fn config(&self) -> MeshConfig {
        let mut config = (*self.config).clone().settled(self.version.minor());
        if let Some(authority) = self.authority.load_full() {
            config.trust_anchors_pem.clone_from(&authority.anchors_pem);
        }
        config
    }

    /// The Namespace as it is now: it may have been labelled a moment ago. Unknown is `Null`.
    async fn namespace(&self, name: &str) -> Value {
        let api: Api<Namespace> = Api::all(self.client.clone());
        match tokio::time::timeout(limits::API_TIMEOUT, api.get_opt(name)).await {
            Ok(Ok(Some(namespace))) => serde_json::to_value(namespace).unwrap_or_default(),
            Ok(Ok(None)) => Value::Null,
            Ok(Err(error)) => {
                tracing::warn!(name, %error, "cannot read the namespace of a new pod; only the pod itself decides");
                Value::Null
            }
            Err(_) => {
                tracing::warn!(name, "no answer about the namespace of a new pod; only the pod itself decides");
                Value::Null
            }
        }
    }

    /// Writes an Event, without keeping the pod waiting.
    fn tell(&self, event: Event) {
        let Ok(slot) = self.event_slots.clone().try_acquire_owned() else {
            self.metrics.events_dropped.inc();
            return;
        };
        let (client, metrics) = (self.client.clone(), self.metrics.clone());
        tokio::spawn(async move {
            let _slot = slot;
            if !event::write(client, &event).await {
                metrics.events_dropped.inc();
            }
        });
    }
}

/// Decides about the pod of an admission request.
fn judge(request: &Value, namespace: &Value, config: &MeshConfig) -> Verdict {
    let pod = &request["object"];
    let mut response = json!({"uid": request["uid"], "allowed": true});
    let warnings = settings::warnings(&pod["metadata"]);
    if !warnings.is_empty() {
        response["warnings"] = json!(warnings);
    }
    match decide(pod, namespace, config) {
        Decision::Inject(injected) => match patch(pod, &injected) {
            Ok(patch) => {
                response["patchType"] = "JSONPatch".into();
                response["patch"] = patch.into();
                Verdict { response, outcome: "injected", event: None }
            }
            Err(error) => refuse(response, "error", 500, format!("the patch cannot be written: {error}")),
        },
        Decision::Skip(why) => {
            let event = match why {
                // It asked for a proxy and gets none: somebody may wonder.
                Skip::HostNetwork | Skip::NotLinux => {
                    Some(("MeshInjectionSkipped", format!("the pod gets no proxy: {why}")))
                }
                Skip::NotEnabled | Skip::Disabled(_) | Skip::AlreadyInjected => None,
            };
            Verdict { response, outcome: why.code(), event }
        }
        Decision::Refuse(why) => refuse(response, "refused", 400, format!("the mesh refuses the pod: {why}")),
    }
}

fn refuse(mut response: Value, outcome: &'static str, code: u16, message: String) -> Verdict {
    response["allowed"] = false.into();
    response["status"] = json!({"code": code, "message": message});
    Verdict { response, outcome, event: Some(("MeshInjectionRefused", message)) }
}

/// The difference as the API server wants it: a JSON patch in base64.
fn patch(before: &Value, after: &Value) -> Result<String, serde_json::Error> {
    use base64::Engine;
    let operations = serde_json::to_vec(&json_patch::diff(before, after))?;
    Ok(base64::engine::general_purpose::STANDARD.encode(operations))
}

fn pod_name(pod: &Value) -> &str {
    let metadata = &pod["metadata"];
    metadata["name"].as_str().or_else(|| metadata["generateName"].as_str()).unwrap_or_default()
}

/// An Event about whoever makes the pod; the pod itself may never come into being, and often has no name yet.
fn event(namespace: &str, pod: &Value, reason: &str, message: String) -> Event {
    let string = |value: &Value| value.as_str().map(str::to_owned);
    let owners = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let owner = owners.into_iter().find(|owner| owner["controller"] == true);
    let about = match (owner, pod["metadata"]["name"].as_str()) {
        (Some(owner), _) => ObjectReference {
            api_version: string(&owner["apiVersion"]),
            kind: string(&owner["kind"]),
            name: string(&owner["name"]),
            uid: string(&owner["uid"]),
            ..ObjectReference::default()
        },
        (None, Some(name)) => ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        },
        (None, None) => ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Namespace".to_owned()),
            name: Some(namespace.to_owned()),
            ..ObjectReference::default()
        },
    };
    let about = ObjectReference { namespace: Some(namespace.to_owned()), ..about };
    event::warning(about, CONTROL_NAME, reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use mesh_api::names::{INJECT, PROXY_CONTAINER};

    fn request(annotation: Option<&str>, spec: Value) -> Value {
        let mut metadata = json!({"generateName": "web-"});
        if let Some(value) = annotation {
            metadata["annotations"] = json!({INJECT: value});
        }
        json!({"uid": "u1", "namespace": "shop", "object": {"metadata": metadata, "spec": spec}})
    }

    fn spec() -> Value {
        json!({"containers": [{"name": "app", "image": "app"}]})
    }

    fn enabled() -> Value {
        json!({"metadata": {"name": "shop", "annotations": {INJECT: "enabled"}}})
    }

    #[test]
    fn an_injected_pod_is_told_as_a_patch() {
        let config = MeshConfig { trust_anchors_pem: "anchors".to_owned(), ..MeshConfig::default() };
        let request = request(None, spec());
        let verdict = judge(&request, &enabled(), &config);
        assert_eq!((verdict.outcome, verdict.response["allowed"] == true), ("injected", true));
        let patch = verdict.response["patch"].as_str().unwrap();
        let patch = base64::engine::general_purpose::STANDARD.decode(patch).unwrap();
        let mut pod = request["object"].clone();
        json_patch::patch(&mut pod, &serde_json::from_slice::<json_patch::Patch>(&patch).unwrap()).unwrap();
        assert!(pod["spec"]["initContainers"].as_array().unwrap().iter().any(|c| c["name"] == PROXY_CONTAINER));
    }

    #[test]
    fn pods_without_a_proxy_say_why() {
        let config = MeshConfig::default();
        let check = |annotation, spec, namespace: &Value, outcome, allowed: bool, reason: Option<&str>| {
            let verdict = judge(&request(annotation, spec), namespace, &config);
            assert_eq!((verdict.outcome, verdict.response["allowed"] == allowed), (outcome, true));
            assert_eq!(verdict.event.as_ref().map(|event| event.0), reason);
            assert_eq!(verdict.response["uid"], "u1");
        };
        check(None, spec(), &Value::Null, "not-enabled", true, None);
        check(Some("disabled"), spec(), &enabled(), "disabled", true, None);
        let host = json!({"hostNetwork": true, "containers": []});
        check(None, host, &enabled(), "host-network", true, Some("MeshInjectionSkipped"));
        check(Some("perhaps"), spec(), &enabled(), "refused", false, Some("MeshInjectionRefused"));
    }

    #[test]
    fn the_event_is_about_whoever_makes_the_pod() {
        let about = |metadata: Value| {
            let event = event("shop", &json!({"metadata": metadata}), "R", "m".to_owned());
            (event.involved_object.kind.unwrap(), event.involved_object.name.unwrap())
        };
        let owner = json!([{"kind": "ReplicaSet", "name": "web-1", "controller": true}]);
        assert_eq!(about(json!({"ownerReferences": owner})), ("ReplicaSet".into(), "web-1".into()));
        assert_eq!(about(json!({"name": "web"})), ("Pod".into(), "web".into()));
        assert_eq!(about(json!({"generateName": "web-"})), ("Namespace".into(), "shop".into()));
    }
}
