//! What follows from a write before its author hears of it: definitions served, roles aggregated, services probed.

use super::kinds::Resource;
use super::service::Call;
use super::status::ApiError;
use super::store::Object;
use super::{aggregation, crd, rbac, webhooks};

/// Runs after a write is stored; `after` is `None` if the object is gone.
pub(super) fn after_write(call: &Call, after: Option<&Object>) {
    if call.dry_run() {
        return;
    }
    let resource: &Resource = &call.resource;
    if crd::is_definition(resource) {
        crd::serve_definitions(&call.api);
        crd::clean_up(&call.api);
        return;
    }
    if resource.custom.is_some() && after.is_none_or(|object| object["metadata"]["deletionTimestamp"].is_string()) {
        crd::clean_up(&call.api);
        return;
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("rbac.authorization.k8s.io", "clusterroles") => rbac::aggregate(&call.api),
        ("apiregistration.k8s.io", "apiservices") => aggregation::changed(&call.api),
        _ => {}
    }
}

/// Runs before an object is deleted.
pub(super) async fn before_delete(call: &Call, name: &str, object: &Object, dry_run: bool) -> Result<(), ApiError> {
    webhooks::before_delete(call, &super::verbs::present(call, object)).await?;
    if crd::is_definition(&call.resource) && !dry_run {
        crd::hold(&call.api, name);
    }
    Ok(())
}
