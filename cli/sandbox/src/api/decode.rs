//! Reads request bodies: JSON, YAML or Kubernetes' protobuf, and objects of the kind the path asks for.

use super::protobuf;
use super::service::Call;
use super::status::ApiError;
use serde_json::{Map, Value, json};

/// Reads a request's body as an object of the requested resource.
pub(super) fn decode(call: &Call, bytes: &[u8]) -> Result<Value, ApiError> {
    let mut object = parse(call, bytes)?;
    let (version, kind) = (call.resource.api_version(), &call.resource.kind);
    let fields = object.as_object_mut().ok_or_else(|| {
        ApiError::bad_request("couldn't get version/kind; json parse error: the body is not an object")
    })?;
    check_type(fields, "apiVersion", &version)?;
    check_type(fields, "kind", kind)?;
    fields.insert("apiVersion".to_owned(), Value::String(version.clone()));
    fields.insert("kind".to_owned(), Value::String(kind.clone()));
    if !fields.get("metadata").is_some_and(Value::is_object) {
        fields.insert("metadata".to_owned(), json!({}));
    }
    Ok(object)
}

/// Reads JSON or YAML, whatever it holds.
pub(super) fn parse(call: &Call, bytes: &[u8]) -> Result<Value, ApiError> {
    match call.content_type.as_str() {
        "application/vnd.kubernetes.protobuf" => {
            protobuf::decode(bytes).map_err(|why| ApiError::bad_request(format!("error decoding protobuf: {why}")))
        }
        "application/cbor" | "application/apply-patch+cbor" => {
            Err(unsupported_media("application/json, application/yaml, application/vnd.kubernetes.protobuf"))
        }
        "application/yaml" | "text/yaml" | "application/apply-patch+yaml" => serde_json::from_slice(bytes)
            .or_else(|_| serde_saphyr::from_slice(bytes))
            .map_err(|error| ApiError::bad_request(format!("error decoding YAML: {error}"))),
        _ => serde_json::from_slice(bytes).map_err(|error| {
            let what = if bytes.is_empty() { "the request has no body".to_owned() } else { error.to_string() };
            ApiError::bad_request(format!("couldn't get version/kind; json parse error: {what}"))
        }),
    }
}

/// 415.
pub(super) fn unsupported_media(accepted: &str) -> ApiError {
    ApiError::new(
        415,
        "UnsupportedMediaType",
        format!("the body of the request was in an unknown format - accepted media types include: {accepted}"),
    )
}

/// Refuses a body that says it is something else.
pub(super) fn check_type(fields: &Map<String, Value>, field: &str, expected: &str) -> Result<(), ApiError> {
    match fields.get(field).and_then(Value::as_str) {
        None | Some("") => Ok(()),
        Some(actual) if actual == expected => Ok(()),
        Some(actual) => {
            let what = if field == "kind" { "kind" } else { "API version" };
            Err(ApiError::bad_request(format!(
                "the {what} in the data ({actual}) does not match the expected {what} ({expected})"
            )))
        }
    }
}
