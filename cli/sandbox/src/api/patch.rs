//! JSON patch (RFC 6902), JSON merge patch (RFC 7396) and Kubernetes' strategic merge patch.

use super::kinds::Resource;
use super::status::ApiError;
use serde_json::Value;

/// Applies an RFC 6902 patch.
pub fn json_patch(current: &Value, patch: &Value) -> Result<Value, ApiError> {
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| ApiError::bad_request(format!("the JSON patch cannot be read: {error}")))?;
    let mut patched = current.clone();
    json_patch::patch(&mut patched, &operations).map_err(|error| {
        ApiError::new(
            422,
            "Invalid",
            format!("the server rejected our request due to an error in our request: {error}"),
        )
    })?;
    Ok(patched)
}
/// Applies an RFC 7396 merge patch.
pub fn merge_patch(current: &Value, patch: &Value) -> Value {
    let mut merged = current.clone();
    json_patch::merge(&mut merged, patch);
    merged
}
/// Applies a strategic merge patch.
pub fn strategic_merge(_resource: &Resource, _current: &Value, _patch: &Value) -> Result<Value, ApiError> {
    Err(ApiError::internal("not built"))
}
