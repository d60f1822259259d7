//! Which requests a part of a policy is about.

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
}

/// What a header field must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct HeaderCondition {
    /// Name of the field.
    pub name: String,
    /// Its whole value. Default: any, as long as the field is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl Condition {
    /// True if a request is meant; `header` finds the value of a field by its name in lower case.
    pub fn holds<'a>(&self, method: &str, path: &str, header: impl Fn(&str) -> Option<&'a [u8]>) -> bool {
        self.method.as_ref().is_none_or(|wanted| wanted == method)
            && self.path.as_ref().is_none_or(|wanted| wanted.holds(path))
            && self.headers.iter().all(|wanted| {
                header(&wanted.name)
                    .is_some_and(|got| wanted.value.as_ref().is_none_or(|value| value.as_bytes() == got))
            })
    }
}

impl PathCondition {
    fn holds(&self, path: &str) -> bool {
        match self.how {
            PathComparison::Exact => path == self.value,
            PathComparison::PathPrefix => {
                let prefix = self.value.strip_suffix('/').unwrap_or(&self.value);
                path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_conditions_must_hold() {
        let json = r#"{"path": {"value": "/shop"}, "method": "GET", "headers": [{"name": "x-a", "value": "1"}, {"name": "x-b"}]}"#;
        let condition: Condition = serde_json::from_str(json).unwrap();
        let fields = |name: &str| match name {
            "x-a" => Some(&b"1"[..]),
            "x-b" => Some(&b""[..]),
            _ => None,
        };
        for (method, path, expect) in [
            ("GET", "/shop", true),
            ("GET", "/shop/cart", true),
            ("GET", "/shopping", false),
            ("POST", "/shop", false),
            ("GET", "/", false),
        ] {
            assert_eq!(condition.holds(method, path, fields), expect, "{method} {path}");
        }
        assert!(!condition.holds("GET", "/shop", |name| fields(name).filter(|_| name != "x-b")));
        assert!(!condition.holds("GET", "/shop", |name| fields(name).map(|_| &b"2"[..])));
        assert!(Condition::default().holds("PUT", "*", |_| None));
    }

    #[test]
    fn a_prefix_ends_at_a_segment() {
        for (how, value, path, expect) in [
            (PathComparison::PathPrefix, "/", "/a", true),
            (PathComparison::PathPrefix, "/a/", "/a", true),
            (PathComparison::PathPrefix, "/a/", "/ab", false),
            (PathComparison::Exact, "/a", "/a/", false),
            (PathComparison::Exact, "/a", "/a", true),
        ] {
            assert_eq!(PathCondition { how, value: value.into() }.holds(path), expect, "{how:?} {value} {path}");
        }
    }
}
