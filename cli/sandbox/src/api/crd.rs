//! Custom resources.

use super::kinds::Resource;
use serde_json::Value;

/// Drops fields a custom resource's schema does not know.
pub(super) fn prune(_resource: &Resource, _object: &mut Value) {}
