//! Validation: required fields, names, types, unknown fields; CRD schemas.

use super::kinds::Resource;
use super::status::ApiError;
use serde_json::Value;

/// Checks an object on its way into the store; `old` is what it replaces.
pub fn validate(_resource: &Resource, _object: &Value, _old: Option<&Value>) -> Result<(), ApiError> {
    Ok(())
}

/// Fields that the resource's schema does not know, as `spec.foo` paths, for `fieldValidation=Strict|Warn`.
pub fn unknown_fields(_resource: &Resource, _object: &Value) -> Vec<String> {
    Vec::new()
}
