//! Admission webhooks: which ones an object goes past, the call, and what their answers do.

use super::admission::Operation;
use super::remote::{self, Target, Trust};
use super::selector::LabelSelector;
use super::service::Call;
use super::status::ApiError;
use super::{negotiate, patch, reviews, uid};
use anyhow::{Context, anyhow, bail};
use base64::Engine;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};
use std::time::Duration;

const GROUP: &str = "admissionregistration.k8s.io";
/// Largest answer read.
const ANSWER_LIMIT: usize = 3 * 1024 * 1024;

/// What is being decided on.
struct Subject<'a> {
    call: &'a Call,
    operation: Operation,
    old: Option<&'a Value>,
}

/// Lets mutating webhooks change an object; true if one did.
pub(super) async fn mutate(
    call: &Call,
    operation: Operation,
    old: Option<&Value>,
    object: &mut Value,
) -> Result<bool, ApiError> {
    let hooks = registered(call, "mutatingwebhookconfigurations");
    if hooks.is_empty() {
        return Ok(false);
    }
    let subject = Subject { call, operation, old };
    let (mut invoked, mut last_change) = (Vec::new(), None);
    for (index, hook) in hooks.iter().enumerate() {
        if !subject.selected_by(hook, Some(object)) {
            continue;
        }
        invoked.push(index);
        if subject.apply(hook, object).await? {
            last_change = Some(index);
        }
    }
    // Those who asked to see what later ones changed see it, once.
    let again = invoked.into_iter().filter(|index| last_change.is_some_and(|last| *index < last));
    for hook in again.map(|index| &hooks[index]).filter(|hook| hook["reinvocationPolicy"] == "IfNeeded") {
        if subject.selected_by(hook, Some(object)) {
            subject.apply(hook, object).await?;
        }
    }
    Ok(last_change.is_some())
}

/// Asks validating webhooks, all at once; the first refusal in their order counts.
pub(super) async fn validate(
    call: &Call,
    operation: Operation,
    old: Option<&Value>,
    object: Option<&Value>,
) -> Result<(), ApiError> {
    let hooks = registered(call, "validatingwebhookconfigurations");
    let subject = Subject { call, operation, old };
    let asked = hooks.iter().filter(|hook| subject.selected_by(hook, object)).map(|hook| subject.ask(hook, object));
    for answer in futures::future::join_all(asked).await {
        answer?;
    }
    Ok(())
}

/// Deletions go past mutating webhooks too, which can only refuse them.
pub(super) async fn before_delete(call: &Call, old: &Value) -> Result<(), ApiError> {
    let subject = Subject { call, operation: Operation::Delete, old: Some(old) };
    for hook in registered(call, "mutatingwebhookconfigurations") {
        if subject.selected_by(&hook, None) {
            subject.ask(&hook, None).await?;
        }
    }
    Ok(())
}

/// All webhooks of one kind, in the order they are called. What configures webhooks goes past none.
fn registered(call: &Call, plural: &str) -> Vec<Value> {
    if call.resource.group == GROUP {
        return Vec::new();
    }
    let (_, configurations) = call.api.store().list(&format!("{plural}.{GROUP}"), None);
    configurations.iter().flat_map(|c| c["webhooks"].as_array().cloned().unwrap_or_default()).collect()
}

/// Refuses what this API cannot do, when a webhook is configured rather than when it silently isn't called.
pub(super) fn check_configuration(call: &Call, configuration: &Value) -> Result<(), ApiError> {
    let mut causes = Vec::new();
    for (index, hook) in configuration["webhooks"].as_array().into_iter().flatten().enumerate() {
        if hook["matchConditions"].as_array().is_some_and(|conditions| !conditions.is_empty()) {
            let why = "Forbidden: this cluster does not evaluate CEL expressions; select by rules, namespaceSelector and objectSelector";
            causes.push((
                "FieldValueForbidden".to_owned(),
                format!("webhooks[{index}].matchConditions"),
                why.to_owned(),
            ));
        }
    }
    if causes.is_empty() {
        return Ok(());
    }
    let name = configuration["metadata"]["name"].as_str().unwrap_or_default();
    Err(ApiError::invalid(&call.resource.qualified_kind(), name, causes))
}

impl Subject<'_> {
    fn selected_by(&self, hook: &Value, object: Option<&Value>) -> bool {
        let rules = hook["rules"].as_array().into_iter().flatten();
        if !rules.into_iter().any(|rule| self.ruled_by(rule)) {
            return false;
        }
        let either = |selector: LabelSelector| [object, self.old].into_iter().flatten().any(|o| selector.matches(o));
        either(LabelSelector::from_object(&hook["objectSelector"])) && self.in_namespace(hook, object)
    }

    fn ruled_by(&self, rule: &Value) -> bool {
        let has = |field: &str, wanted: &str| {
            rule[field].as_array().into_iter().flatten().any(|entry| entry == "*" || entry == wanted)
        };
        let info = &self.call.info;
        let resource = rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str).any(|entry| {
            match entry.split_once('/') {
                None => info.subresource.is_empty() && (entry == "*" || entry == info.resource),
                Some((resource, subresource)) => {
                    (resource == "*" || resource == info.resource)
                        && (subresource == "*" || subresource == info.subresource && !subresource.is_empty())
                }
            }
        });
        let scope = match rule["scope"].as_str() {
            Some("Cluster") => !self.call.resource.namespaced,
            Some("Namespaced") => self.call.resource.namespaced,
            _ => true,
        };
        resource
            && scope
            && has("operations", self.operation.name())
            && has("apiGroups", &info.group)
            && has("apiVersions", &info.version)
    }

    fn in_namespace(&self, hook: &Value, object: Option<&Value>) -> bool {
        let selector = LabelSelector::from_object(&hook["namespaceSelector"]);
        let call = self.call;
        if call.resource.namespaced {
            let namespace = call.api.store().get("namespaces", "", call.namespace());
            return namespace.is_some_and(|namespace| selector.matches(&namespace));
        }
        if call.resource.group.is_empty() && call.resource.plural == "namespaces" {
            return object.or(self.old).is_some_and(|namespace| selector.matches(namespace));
        }
        true
    }

    /// Calls a mutating webhook and applies its patch; true if that changed something.
    async fn apply(&self, hook: &Value, object: &mut Value) -> Result<bool, ApiError> {
        let Some(answer) = self.ask(hook, Some(object)).await? else { return Ok(false) };
        let Some(encoded) = answer["patch"].as_str().filter(|patch| !patch.is_empty()) else { return Ok(false) };
        let name = hook["name"].as_str().unwrap_or_default();
        let patched =
            read_patch(encoded).and_then(|steps| Ok(patch::json_patch(object, &steps)?)).map_err(|error| {
                ApiError::internal(format!(
                    "Internal error occurred: admission webhook \"{name}\" sent a patch that does not apply: {error:#}"
                ))
            })?;
        let changed = patched != *object;
        *object = patched;
        Ok(changed)
    }

    /// Calls a webhook. `None` if it failed and may be ignored.
    async fn ask(&self, hook: &Value, object: Option<&Value>) -> Result<Option<Value>, ApiError> {
        let name = hook["name"].as_str().unwrap_or_default();
        if self.call.dry_run() && !matches!(hook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")) {
            return Err(ApiError::bad_request(format!("admission webhook \"{name}\" does not support dry run")));
        }
        let review = self.review(object);
        let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30);
        let call = send(self.call, &hook["clientConfig"], seconds, &review);
        let answer = match tokio::time::timeout(Duration::from_secs(seconds), call).await {
            Ok(answer) => answer,
            Err(_) => Err(anyhow!("context deadline exceeded")),
        };
        match answer.and_then(|answer| check_answer(&review, answer)) {
            Ok(response) => self.judge(name, response).map(Some),
            Err(error) if hook["failurePolicy"] == "Ignore" => {
                tracing::warn!(webhook = name, "a webhook failed and is ignored: {error:#}");
                Ok(None)
            }
            Err(error) => {
                let place = place_of(&hook["clientConfig"], seconds);
                Err(ApiError::internal(format!(
                    "Internal error occurred: failed calling webhook \"{name}\": failed to call webhook: Post \"{place}\": {error:#}"
                )))
            }
        }
    }

    fn judge(&self, name: &str, response: Value) -> Result<Value, ApiError> {
        for warning in response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.call.warn(warning);
        }
        if response["allowed"] == true {
            return Ok(response);
        }
        let status = &response["status"];
        let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| *code >= 400);
        let why = status["message"].as_str().or(status["reason"].as_str()).filter(|text| !text.is_empty());
        let message = match why {
            Some(why) => format!("admission webhook \"{name}\" denied the request: {why}"),
            None => format!("admission webhook \"{name}\" denied the request without explanation"),
        };
        let code = code.unwrap_or(400);
        Err(ApiError::new(code, reason_of(code), message))
    }

    fn review(&self, object: Option<&Value>) -> Value {
        let call = self.call;
        let resource = &call.resource;
        let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
        let plural = json!({"group": resource.group, "version": resource.version, "resource": resource.plural});
        let options = match self.operation {
            Operation::Create => "CreateOptions",
            Operation::Update => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
        };
        let name = object.or(self.old).map_or(&Value::Null, |object| &object["metadata"]["name"]);
        let mut request = json!({
            "uid": uid(), "kind": kind, "resource": plural, "requestKind": kind, "requestResource": plural,
            "name": name, "operation": self.operation.name(), "userInfo": reviews::describe(&call.user),
            "object": object, "oldObject": self.old, "dryRun": call.dry_run(),
            "options": {"kind": options, "apiVersion": "meta.k8s.io/v1"},
        });
        if resource.namespaced {
            request["namespace"] = call.namespace().into();
        } else if resource.group.is_empty() && resource.plural == "namespaces" {
            request["namespace"] = name.clone();
        }
        if !call.info.subresource.is_empty() {
            request["subResource"] = call.info.subresource.clone().into();
            request["requestSubResource"] = call.info.subresource.clone().into();
        }
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
    }
}

fn reason_of(code: u16) -> &'static str {
    match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        422 => "Invalid",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        _ => "Unknown",
    }
}

fn read_patch(encoded: &str) -> anyhow::Result<Value> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).context("decoding its base64")?;
    serde_json::from_slice(&bytes).context("reading it as JSON")
}

/// The URL a webhook is called at, as messages show it.
fn place_of(client: &Value, seconds: u64) -> String {
    if let Some(url) = client["url"].as_str() {
        return format!("{url}?timeout={seconds}s");
    }
    let service = &client["service"];
    let text = |field: &str| service[field].as_str().unwrap_or_default();
    let path = text("path").trim_start_matches('/');
    let port = service["port"].as_u64().unwrap_or(443);
    format!("https://{}.{}.svc:{port}/{path}?timeout={seconds}s", text("name"), text("namespace"))
}

/// Posts a review and reads the answer.
async fn send(call: &Call, client: &Value, seconds: u64, review: &Value) -> anyhow::Result<Value> {
    let (target, path) = match client["url"].as_str() {
        Some(url) => Target::of_url(url)?,
        None => {
            let path = client["service"]["path"].as_str().unwrap_or("/");
            (Target::of_service(&call.api, &client["service"])?, format!("/{}", path.trim_start_matches('/')))
        }
    };
    let bundle = base64::engine::general_purpose::STANDARD
        .decode(client["caBundle"].as_str().unwrap_or_default())
        .context("decoding caBundle")?;
    let mut sender = remote::connect_tls(&call.api, &target, &Trust::Bundle(bundle), None).await?;
    let glue = if path.contains('?') { '&' } else { '?' };
    let mut request = Request::post(format!("{path}{glue}timeout={seconds}s"))
        .body(negotiate::full(serde_json::to_vec(review).context("encoding the review")?))
        .context("building the request")?;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(HOST, HeaderValue::from_str(&format!("{}:{}", target.server_name, target.port))?);
    let response = sender.send_request(request).await.context("sending the review")?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
    let bytes = body.map_err(|error| anyhow!("reading the answer: {error}"))?.to_bytes();
    if !status.is_success() {
        let text: String = String::from_utf8_lossy(&bytes).trim().chars().take(200).collect();
        bail!("the server answered {status}: {text}");
    }
    serde_json::from_slice(&bytes).context("the answer is not JSON")
}

fn check_answer(review: &Value, mut answer: Value) -> anyhow::Result<Value> {
    if answer["kind"] != "AdmissionReview" || answer["apiVersion"] != "admission.k8s.io/v1" {
        bail!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
            answer["apiVersion"].as_str().unwrap_or_default(),
            answer["kind"].as_str().unwrap_or_default()
        );
    }
    let (expected, actual) = (&review["request"]["uid"], &answer["response"]["uid"]);
    if expected != actual {
        bail!("expected response.uid={expected}, got {actual}");
    }
    let response = answer["response"].take();
    if response["patch"].is_string() && response["patchType"] != "JSONPatch" {
        bail!("invalid response.patchType, not JSONPatch");
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_place_it_calls() {
        let client = json!({"service": {"name": "hook", "namespace": "sys", "path": "/mutate"}});
        assert_eq!(place_of(&client, 10), "https://hook.sys.svc:443/mutate?timeout=10s");
        assert_eq!(place_of(&json!({"url": "https://a/b"}), 5), "https://a/b?timeout=5s");
    }

    #[test]
    fn answers_must_belong_to_the_question() {
        let review = json!({"request": {"uid": "1"}});
        let answer = |version: &str, uid: &str| json!({"apiVersion": version, "kind": "AdmissionReview", "response": {"uid": uid, "allowed": true}});
        assert!(check_answer(&review, answer("admission.k8s.io/v1", "1")).is_ok());
        assert!(check_answer(&review, answer("admission.k8s.io/v1", "2")).is_err());
        assert!(check_answer(&review, answer("admission.k8s.io/v1beta1", "1")).is_err());
        assert!(check_answer(&review, json!({})).is_err());
    }
}
