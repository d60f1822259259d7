//! JSON patch (RFC 6902), JSON merge patch (RFC 7396) and Kubernetes' strategic merge patch.

use super::kinds::Resource;
use super::status::ApiError;
use serde_json::Value;

/// Applies an RFC 6902 patch.
pub fn json_patch(_current: &Value, _patch: &Value) -> Result<Value, ApiError> {
    Err(ApiError::internal("not built"))
}
/// Applies an RFC 7396 merge patch.
pub fn merge_patch(_current: &Value, _patch: &Value) -> Value {
    Value::Null
}
/// Applies a strategic merge patch.
pub fn strategic_merge(_resource: &Resource, _current: &Value, _patch: &Value) -> Result<Value, ApiError> {
    Err(ApiError::internal("not built"))
}
