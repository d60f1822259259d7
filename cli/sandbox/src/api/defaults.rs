//! Default values of built-in kinds (custom ones default by their schema).

use super::kinds::Resource;
use serde_json::Value;

/// Fills in what Kubernetes would fill in for fields left out of a built-in or custom object.
pub fn apply_defaults(_resource: &Resource, _object: &mut Value) {}
