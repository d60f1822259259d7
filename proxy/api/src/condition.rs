//! Which requests a part of a policy is about. The proxy holds conditions against requests.

use serde::{Deserialize, Serialize};

/// Conditions on a request that must all hold; one without any takes every request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// The path, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathCondition>,
    /// The method. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Header fields, all of which must be as said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    pub headers: Vec<HeaderCondition>,
}

/// What a path must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PathCondition {
    /// How it is compared. Default: `PathPrefix`.
    #[serde(default, rename = "type")]
    pub how: PathComparison,
    /// What it is compared with.
    #[cfg_attr(feature = "schema", schemars(extend("minLength" = 1, "maxLength" = 1024)))]
    pub value: String,
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum PathComparison {
    /// This path or one below it, by whole segments.
    #[default]
    PathPrefix,
    /// This path.
    Exact,
    /// A path that this expression (as RE2 has them) takes whole.
    RegularExpression,
}

/// How the value of a header field is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum HeaderComparison {
    /// This value.
    #[default]
    Exact,
    /// A value that this expression (as RE2 has them) takes whole.
    RegularExpression,
}

/// What a header field must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct HeaderCondition {
    /// How the value is compared. Default: `Exact`.
    #[serde(default, rename = "type")]
    pub how: HeaderComparison,
    /// Name of the field.
    #[cfg_attr(feature = "schema", schemars(extend("minLength" = 1, "maxLength" = 256)))]
    pub name: String,
    /// Its whole value. Default: any, as long as the field is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}
