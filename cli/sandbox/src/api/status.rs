//! Errors as Kubernetes reports them: a `Status` object with a reason and a code.

use serde_json::{Value, json};

/// A refusal of the API, rendered as `v1.Status`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason (`NotFound`, `Conflict`, `Invalid`, …).
    pub reason: &'static str,
    /// For a person.
    pub message: String,
    /// `details.causes`: `(reason, field, message)`.
    pub causes: Vec<(String, String, String)>,
    /// `details.{group,kind,name}` where known.
    pub details: Option<Box<(String, String, String)>>,
}

impl ApiError {
    /// An error from code, reason and message.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), causes: Vec::new(), details: None }
    }
    /// 400 BadRequest.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }
    /// 401 Unauthorized.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }
    /// 403 Forbidden.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, "Forbidden", message)
    }
    /// 404 NotFound for an object; `resource` is `deployments.apps`.
    pub fn not_found(resource: &str, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{resource} \"{name}\" not found")).on(resource, name)
    }
    /// 409 AlreadyExists.
    pub fn already_exists(resource: &str, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{resource} \"{name}\" already exists")).on(resource, name)
    }
    /// 409 Conflict.
    pub fn conflict(resource: &str, name: &str, why: impl std::fmt::Display) -> Self {
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}"))
            .on(resource, name)
    }
    /// 422 Invalid; each cause is `(reason, field, message)`, reasons as Kubernetes writes them (`FieldValueRequired`).
    pub fn invalid(kind: &str, name: &str, causes: Vec<(String, String, String)>) -> Self {
        let text =
            causes.iter().map(|(_, field, message)| format!("{field}: {message}")).collect::<Vec<_>>().join(", ");
        let mut error = Self::new(422, "Invalid", format!("{kind} \"{name}\" is invalid: {text}")).on(kind, name);
        error.causes = causes;
        error
    }
    /// 500 InternalError.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", message)
    }

    fn on(mut self, resource: &str, name: &str) -> Self {
        let (kind, group) = resource.split_once('.').unwrap_or((resource, ""));
        self.details = Some(Box::new((group.to_owned(), kind.to_owned(), name.to_owned())));
        self
    }

    /// The `v1.Status` object.
    pub fn to_status(&self) -> Value {
        let mut details = json!({});
        if let Some((group, kind, name)) = self.details.as_deref() {
            details = json!({"name": name, "group": group, "kind": kind});
        }
        if !self.causes.is_empty() {
            details["causes"] = self
                .causes
                .iter()
                .map(|(reason, field, message)| json!({"reason": reason, "field": field, "message": message}))
                .collect();
        }
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "details": details, "code": self.code,
        })
    }
}
