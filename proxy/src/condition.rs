//! Which requests a part of a policy is about: its conditions, ready to be held against requests.

use crate::route::text::Text;
use http::{HeaderName, Request};
use mesh_api::condition::{Condition, HeaderComparison, HeaderCondition, PathComparison};
use mesh_api::route::TextMatch;

/// Conditions on a request that must all hold.
#[derive(Debug, Default)]
pub struct Meant {
    path: Option<Path>,
    method: Option<Box<str>>,
    /// Fields, and what their value must be.
    headers: Box<[(HeaderName, Option<Text>)]>,
}

#[derive(Debug)]
enum Path {
    /// This path, which has no slash at its end, or one below it.
    Below(Box<str>),
    Is(Text),
}

impl Meant {
    /// The conditions ready for use; an error says where they cannot be.
    pub fn compile(condition: &Condition) -> Result<Self, String> {
        let Condition { path, method, headers } = condition;
        let path = path.as_ref().map(|path| {
            let text = match path.how {
                PathComparison::PathPrefix => {
                    return Ok(Path::Below(path.value.strip_suffix('/').unwrap_or(&path.value).into()));
                }
                PathComparison::Exact => TextMatch::Exact(path.value.clone()),
                PathComparison::RegularExpression => TextMatch::Regex(path.value.clone()),
            };
            Text::compile(&text).map(Path::Is).map_err(|why| format!("when.path.value: {why}"))
        });
        let headers = headers.iter().enumerate().map(|(at, condition)| {
            header(condition).map_err(|(field, why)| format!("when.headers[{at}].{field}: {why}"))
        });
        Ok(Self {
            path: path.transpose()?,
            method: method.as_deref().map(Box::from),
            headers: headers.collect::<Result<_, _>>()?,
        })
    }

    /// True if a request is meant.
    pub fn is<B>(&self, request: &Request<B>) -> bool {
        self.method.as_ref().is_none_or(|method| **method == *request.method().as_str())
            && self.path.as_ref().is_none_or(|path| path.is(request.uri().path()))
            && self.headers.iter().all(|(name, value)| {
                let mut said = request.headers().get_all(name).iter();
                match value {
                    None => said.next().is_some(),
                    Some(value) => said.any(|said| value.is(said.as_bytes())),
                }
            })
    }
}

impl Path {
    fn is(&self, path: &str) -> bool {
        match self {
            Path::Is(text) => text.is(path.as_bytes()),
            Path::Below(parent) => {
                path.strip_prefix(&**parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

fn header(condition: &HeaderCondition) -> Result<(HeaderName, Option<Text>), (&'static str, String)> {
    let HeaderCondition { name, how, value } = condition;
    let name = name.parse().map_err(|_| ("name", format!("`{name}` cannot be the name of a field")))?;
    let value = value.as_ref().map(|value| match how {
        HeaderComparison::Exact => TextMatch::Exact(value.clone()),
        HeaderComparison::RegularExpression => TextMatch::Regex(value.clone()),
    });
    let value = value.as_ref().map(Text::compile).transpose().map_err(|why| ("value", why))?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(json: &str) -> Result<Meant, String> {
        Meant::compile(&serde_json::from_str(json).unwrap())
    }

    fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn all_conditions_must_hold() {
        let all = r#"{"path": {"value": "/shop"}, "method": "GET", "headers": [{"name": "X-A", "value": "1"}, {"name": "x-b"}]}"#;
        let meant = meant(all).unwrap();
        let fields = [("x-a", "1"), ("x-b", "")];
        for (method, path, fields, expect) in [
            ("GET", "/shop", &fields[..], true),
            ("GET", "/shop/cart?q", &fields[..], true),
            ("GET", "/shopping", &fields[..], false),
            ("POST", "/shop", &fields[..], false),
            ("GET", "/", &fields[..], false),
            ("GET", "/shop", &fields[..1], false),
            ("GET", "/shop", &[("x-a", "2"), ("x-b", "")], false),
        ] {
            assert_eq!(meant.is(&request(method, path, fields)), expect, "{method} {path} {fields:?}");
        }
        assert!(Meant::default().is(&request("OPTIONS", "*", &[])));
    }

    #[test]
    fn each_comparison_takes_what_it_should() {
        let path = |how: &str, value: &str| format!(r#"{{"path": {{"type": "{how}", "value": "{value}"}}}}"#);
        let field = |how: &str, value: &str| {
            format!(r#"{{"headers": [{{"type": "{how}", "name": "x-a", "value": "{value}"}}]}}"#)
        };
        for (condition, path, value, expect) in [
            (path("PathPrefix", "/"), "/a", "", true),
            (path("PathPrefix", "/a/"), "/a", "", true),
            (path("PathPrefix", "/a/"), "/ab", "", false),
            (path("Exact", "/a"), "/a/", "", false),
            (path("Exact", "/a"), "/a", "", true),
            (path("RegularExpression", "/a/[0-9]+"), "/a/12", "", true),
            (path("RegularExpression", "/a/[0-9]+"), "/a/12/b", "", false),
            (field("Exact", "a.c"), "/", "abc", false),
            (field("RegularExpression", "a.c"), "/", "abc", true),
            (field("RegularExpression", "a.c"), "/", "abcd", false),
        ] {
            let is = meant(&condition).unwrap().is(&request("GET", path, &[("x-a", value)]));
            assert_eq!(is, expect, "{condition} {path} {value}");
        }
    }

    #[test]
    fn what_cannot_be_compared_is_refused_with_its_place() {
        for (condition, expect) in [
            (r#"{"path": {"type": "RegularExpression", "value": "/("}}"#, "when.path.value: `/(`"),
            (r#"{"headers": [{"name": "a"}, {"name": "b c"}]}"#, "when.headers[1].name: `b c`"),
            (
                r#"{"headers": [{"type": "RegularExpression", "name": "a", "value": "["}]}"#,
                "when.headers[0].value: `[`",
            ),
        ] {
            let why = meant(condition).unwrap_err();
            assert!(why.starts_with(expect), "{condition}: {why}");
        }
    }
}
