//! OpenAPI v3 documents (`/openapi/v3`), which `kubectl explain` and field validation read.

use super::kinds::Resource;
use serde_json::Value;

/// The index at `/openapi/v3` for the served group versions.
pub fn index(_resources: &[Resource]) -> Value {
    Value::Null
}
/// The document of one group version, `None` if nothing of it is served.
pub fn document(_resources: &[Resource], _group: &str, _version: &str) -> Option<Value> {
    None
}
