//! Questions asked as objects: who is this token, may this user do that. They are answered and never stored.

use super::authn::User;
use super::path::RequestInfo;
use super::service::Call;
use super::status::ApiError;
use super::{rbac, tokens};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Answers a review; `review` is its request.
pub(super) fn answer(call: &Call, mut review: Value) -> Result<Value, ApiError> {
    let spec = &review["spec"];
    review["status"] = match call.resource.kind.as_str() {
        "TokenReview" => token(call, spec),
        "SelfSubjectReview" => json!({"userInfo": describe(&call.user)}),
        "SelfSubjectRulesReview" => rules(call, spec)?,
        "SelfSubjectAccessReview" => access(call, &call.user, spec)?,
        _ => {
            if call.resource.namespaced
                && spec["resourceAttributes"]["namespace"].as_str() != call.info.namespace.as_deref()
            {
                return Err(ApiError::bad_request(
                    "spec.resourceAttributes.namespace: must match the namespace of the request",
                ));
            }
            access(call, &subject(spec)?, spec)?
        }
    };
    review["metadata"]["creationTimestamp"] = Value::Null;
    Ok(review)
}

/// A user as objects describe one.
pub(super) fn describe(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn token(call: &Call, spec: &Value) -> Value {
    let mut audiences: Vec<String> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    if audiences.is_empty() {
        audiences.push(tokens::ISSUER.to_owned());
    }
    match tokens::verify(&call.api, spec["token"].as_str().unwrap_or_default(), &audiences) {
        Ok(verified) => {
            json!({"authenticated": true, "user": describe(&verified.user), "audiences": verified.audiences})
        }
        Err(why) => json!({"user": {}, "error": format!("[invalid bearer token, {why}]")}),
    }
}

fn subject(spec: &Value) -> Result<User, ApiError> {
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let name = spec["user"].as_str().unwrap_or_default().to_owned();
    let groups = strings(&spec["groups"]);
    if name.is_empty() && groups.is_empty() {
        let why = "Invalid value: \"\": at least one of user or group must be specified".to_owned();
        let cause = ("FieldValueInvalid".to_owned(), "spec.user".to_owned(), why);
        return Err(ApiError::invalid("SubjectAccessReview.authorization.k8s.io", "", vec![cause]));
    }
    let extra: BTreeMap<String, Vec<String>> =
        spec["extra"].as_object().into_iter().flatten().map(|(key, values)| (key.clone(), strings(values))).collect();
    Ok(User { name, groups, uid: spec["uid"].as_str().unwrap_or_default().to_owned(), extra })
}

fn access(call: &Call, user: &User, spec: &Value) -> Result<Value, ApiError> {
    let text = |attributes: &Map<String, Value>, field: &str| {
        attributes.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let optional = |text: String| Some(text).filter(|text| !text.is_empty());
    let info = match (spec["resourceAttributes"].as_object(), spec["nonResourceAttributes"].as_object()) {
        (Some(resource), None) => RequestInfo {
            is_resource: true,
            verb: text(resource, "verb"),
            group: text(resource, "group"),
            version: text(resource, "version"),
            namespace: optional(text(resource, "namespace")),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            name: optional(text(resource, "name")),
            ..RequestInfo::default()
        },
        (None, Some(path)) => {
            RequestInfo { verb: text(path, "verb"), path: text(path, "path"), ..RequestInfo::default() }
        }
        _ => {
            let why = "Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified";
            let cause = ("FieldValueInvalid".to_owned(), "spec.resourceAttributes".to_owned(), why.to_owned());
            let kind = call.resource.qualified_kind();
            return Err(ApiError::invalid(&kind, "", vec![cause]));
        }
    };
    let reason = rbac::decide(&call.api, user, &info);
    let mut status = json!({"allowed": reason.is_some()});
    if let Some(reason) = reason.filter(|reason| !reason.is_empty()) {
        status["reason"] = reason.into();
    }
    Ok(status)
}

fn rules(call: &Call, spec: &Value) -> Result<Value, ApiError> {
    let Some(namespace) = spec["namespace"].as_str().filter(|namespace| !namespace.is_empty()) else {
        return Err(ApiError::bad_request("no namespace on request"));
    };
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in rbac::rules_of(&call.api, &call.user, Some(namespace)) {
        let mut shown = json!({"verbs": rule["verbs"]});
        if rule["nonResourceURLs"].is_array() {
            shown["nonResourceURLs"] = rule["nonResourceURLs"].clone();
            paths.push(shown);
            continue;
        }
        for field in ["apiGroups", "resources", "resourceNames"] {
            if rule[field].is_array() {
                shown[field] = rule[field].clone();
            }
        }
        resources.push(shown);
    }
    Ok(json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false}))
}
