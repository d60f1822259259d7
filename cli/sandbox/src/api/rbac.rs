//! Who may do what.

use super::Api;
use super::authn::User;
use super::path::RequestInfo;
use super::service::Call;
use super::status::ApiError;

/// Refuses what the user may not do.
pub(super) fn authorize(_api: &Api, user: &User, info: &RequestInfo) -> Result<(), ApiError> {
    if user.is_master() { Ok(()) } else { Err(ApiError::forbidden(format!("forbidden: {}", info.path))) }
}

/// Refuses unless the user may also do `verb` on what the call is about.
pub(super) fn require(call: &Call, verb: &str) -> Result<(), ApiError> {
    let info = RequestInfo { verb: verb.to_owned(), ..call.info.clone() };
    authorize(&call.api, &call.user, &info)
}

/// Refuses roles that grant, and bindings that hand out, more than their author has.
pub(super) fn check_escalation(_call: &Call, _object: &serde_json::Value) -> Result<(), ApiError> {
    Ok(())
}
