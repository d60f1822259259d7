//! What follows from a write before its author hears of it: definitions served, roles aggregated, services probed.

use super::service::Call;
use super::status::ApiError;
use super::store::Object;

/// Runs after a write is stored; `after` is `None` if the object is gone.
pub(super) async fn after_write(_call: &Call, _before: Option<&Object>, _after: Option<&Object>) {}

/// Runs before an object is deleted.
pub(super) async fn before_delete(_call: &Call, _object: &Object) -> Result<(), ApiError> {
    Ok(())
}
