//! Server-side apply and field ownership (`metadata.managedFields`).

use super::kinds::Resource;
use super::status::ApiError;
use serde_json::Value;

/// Merges an applied configuration into the current object; conflicts with other managers are a 409 with causes
/// unless `force`. Returns the object with its `managedFields` brought up to date. `now` is RFC 3339.
pub fn server_side_apply(
    _resource: &Resource,
    _current: Option<&Value>,
    _applied: &Value,
    _manager: &str,
    _subresource: Option<&str>,
    _force: bool,
    _now: &str,
) -> Result<Value, ApiError> {
    Err(ApiError::internal("not built"))
}

/// Brings `managedFields` up to date after a create, update or patch by `manager`.
pub fn track_update(
    _resource: &Resource,
    _old: Option<&Value>,
    _new: &mut Value,
    _manager: &str,
    _subresource: Option<&str>,
    _now: &str,
) {
}
