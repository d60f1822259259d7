//! The validating webhook: an AdmissionReview about a policy or a route in, yes or no and why out. What cannot work is decided by
//! [`crate::validate`].

use crate::limits;
use crate::listen::{self, Body};
use crate::metrics::Metrics;
use crate::validate::{Fault, faults};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

/// Path of the webhook.
pub const VALIDATE_PATH: &str = mesh_manifests::install::VALIDATE_PATH;

/// Reads an AdmissionReview with a request; the error is the answer to somebody who sent something else.
pub async fn read(request: Request<Incoming>) -> Result<Value, Response<Body>> {
    if request.method() != Method::POST {
        return Err(listen::text(StatusCode::METHOD_NOT_ALLOWED, "reviews come by POST"));
    }
    let body = listen::read(request.into_body(), limits::REVIEW_BYTES, limits::API_TIMEOUT).await;
    let body = body.map_err(|(status, why)| listen::text(status, &why))?;
    match serde_json::from_slice::<Value>(&body) {
        Ok(review) if review["request"]["uid"].is_string() => Ok(review),
        Ok(_) => Err(listen::text(StatusCode::BAD_REQUEST, "the body is no AdmissionReview with a request")),
        Err(error) => Err(listen::text(StatusCode::BAD_REQUEST, &format!("the body is no AdmissionReview: {error}"))),
    }
}

/// Answers an AdmissionReview.
pub async fn answer(request: Request<Incoming>, metrics: &Metrics) -> Response<Body> {
    let review = match read(request).await {
        Ok(review) => review,
        Err(answer) => return answer,
    };
    let response = judge(&review["request"]);
    let allowed = response["allowed"] == true;
    metrics.validation(if allowed { "allowed" } else { "refused" });
    if !allowed {
        let (kind, name) = (&review["request"]["kind"]["kind"], &review["request"]["name"]);
        tracing::info!(%kind, %name, why = %response["status"]["message"], "refused");
    }
    let version = review["apiVersion"].as_str().unwrap_or("admission.k8s.io/v1");
    listen::json(StatusCode::OK, &json!({"apiVersion": version, "kind": "AdmissionReview", "response": response}))
}

/// Decides about the object of a request.
fn judge(request: &Value) -> Value {
    let (object, old) = (&request["object"], &request["oldObject"]);
    // Who takes away a finalizer or changes a label of what was let in before must not be held up.
    let is_known = !old.is_null() && old["spec"] == object["spec"];
    let found =
        if is_known || !object["metadata"]["deletionTimestamp"].is_null() { Vec::new() } else { faults(object) };
    if found.is_empty() {
        return json!({"uid": request["uid"], "allowed": true});
    }
    let message: Vec<String> = found.iter().map(ToString::to_string).collect();
    let cause = |Fault { field, why }: &Fault| json!({"reason": "FieldValueInvalid", "field": field, "message": why});
    json!({
        "uid": request["uid"],
        "allowed": false,
        "status": {
            "code": 422,
            "reason": "Invalid",
            "message": message.join("; "),
            "details": {"name": request["name"], "causes": found.iter().map(cause).collect::<Vec<_>>()},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rule: Value) -> Value {
        json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"namespace": "shop", "name": "a"},
            "spec": {"rules": [rule]}})
    }

    fn route(parent: &str, rule: Value) -> Value {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"namespace": "shop", "name": "a"},
            "spec": {"parentRefs": [{"group": if parent == "Service" { "" } else { "gateway.networking.k8s.io" }, "kind": parent, "name": "web"}],
                "rules": [rule]}})
    }

    fn message(object: &Value) -> String {
        let answer = judge(&json!({"uid": "u", "name": "a", "object": object}));
        assert_eq!(answer["allowed"] == true, answer["status"].is_null());
        answer["status"]["message"].as_str().unwrap_or_default().to_owned()
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_field_and_why() {
        let spiffe = "spiffe://cluster.local/ns/shop/sa/web";
        for (object, expect) in [
            (
                policy(json!({"from": [{"networks": ["10.0.0.0/8", "10.0.0.0/99"]}]})),
                "spec.rules[0].from[0].networks[1]: ",
            ),
            (
                json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": "a"}, "spec": {
                    "targetRefs": [{"kind": "Service", "name": "web"}], "breaker": {"ejection": "1m", "maxEjection": "1s"}}}),
                "spec.breaker.maxEjection: shorter than ejection",
            ),
            (
                json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "EgressPolicy", "metadata": {"name": "a"},
                    "spec": {"rules": [{"networks": ["192.0.2.0/33"]}]}}),
                "spec.rules[0].networks[0]: ",
            ),
            (
                policy(json!({"from": [{"identities": ["spiffe://x"]}]})),
                "spec.rules[0].from[0].identities[0]: `spiffe://x` is not an identity",
            ),
            (
                policy(json!({"from": [{"identities": [spiffe], "namespaces": ["other"]}]})),
                "spec.rules[0].from[0].namespaces: nobody",
            ),
            (
                policy(json!({"from": [{"serviceAccounts": ["shop/web"], "namespaces": ["other"]}]})),
                "spec.rules[0].from[0].namespaces: none",
            ),
            (
                route("Service", json!({"matches": [{"path": {"type": "RegularExpression", "value": "/("}}]})),
                "spec.rules[0].matches[0].path.value: `/(`: ",
            ),
            (route("Service", json!({"timeouts": {"request": "soon"}})), "spec.rules[0].timeouts.request: "),
            (
                route(
                    "Service",
                    json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {}}, {"type": "URLRewrite", "urlRewrite": {}}]}),
                ),
                "spec.rules[0].filters: URLRewrite and RequestRedirect cannot be combined",
            ),
        ] {
            let message = message(&object);
            assert!(message.starts_with(expect), "{object}\n{message}");
        }
    }

    #[test]
    fn everything_else_is_let_in() {
        let bad = json!({"matches": [{"path": {"type": "RegularExpression", "value": "/("}}]});
        for object in [
            policy(json!({})),
            policy(
                json!({"from": [{"identities": ["*"], "namespaces": ["shop"]}, {"serviceAccounts": ["web"], "namespaces": ["shop"]}]}),
            ),
            // Not known, or not supported: told in the status.
            route("Service", json!({"timeout": {}, "filters": [{"type": "CORS"}]})),
            route("Service", json!({"matches": [{"path": {"type": "Glob", "value": "/*"}}]})),
            // None of the mesh's business.
            route("Gateway", bad.clone()),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}),
        ] {
            assert_eq!(message(&object), "", "{object}");
        }
        let bad = route("Service", bad);
        let mut labelled = bad.clone();
        labelled["metadata"]["labels"] = json!({"a": "b"});
        assert_eq!(judge(&json!({"uid": "u", "object": labelled, "oldObject": bad}))["allowed"], true);
        let mut going = bad;
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(judge(&json!({"uid": "u", "object": going}))["allowed"], true);
    }

    #[test]
    fn an_answer_names_every_fault() {
        let object = policy(json!({"from": [{"networks": ["10.0.0.0/99", "10.0.0.0/8", "x"]}]}));
        let answer = judge(&json!({"uid": "u", "name": "a", "object": object}));
        assert_eq!(answer["status"]["code"], 422);
        let causes: Vec<&str> = answer["status"]["details"]["causes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|cause| cause["field"].as_str().unwrap())
            .collect();
        assert_eq!(causes, ["spec.rules[0].from[0].networks[0]", "spec.rules[0].from[0].networks[2]"]);
    }
}
