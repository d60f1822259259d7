//! Which condition leaves nothing for another one. What cannot be told (whether one regular expression takes all that
//! another does) counts as no.

use mesh_api::route::{HttpMatch, PathMatch, TextMatch, TlsMatch, ValueMatch};

/// True if every request that `narrow` takes is taken by `wide`, too.
pub(super) fn covers(wide: &HttpMatch, narrow: &HttpMatch) -> bool {
    covers_hosts(&wide.hosts, &narrow.hosts)
        && covers_path(wide.path.as_ref(), narrow.path.as_ref())
        && wide.method.as_ref().is_none_or(|method| narrow.method.as_ref() == Some(method))
        && covers_values(&wide.headers, &narrow.headers)
        && covers_values(&wide.query, &narrow.query)
}

/// The same for connections with TLS of their own.
pub(super) fn covers_tls(wide: &TlsMatch, narrow: &TlsMatch) -> bool {
    covers_hosts(&wide.hosts, &narrow.hosts)
}

fn covers_hosts(wide: &[String], narrow: &[String]) -> bool {
    let covered = |host: &String| wide.iter().any(|wide| covers_host(wide, host));
    wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(covered))
}

/// True if a host (`example.com`, `*.example.com`) takes all that another does.
pub(super) fn covers_host(wide: &str, narrow: &str) -> bool {
    match wide.strip_prefix('*') {
        Some(suffix) => narrow.trim_start_matches('*').ends_with(suffix) && narrow.len() >= wide.len(),
        None => wide == narrow,
    }
}

fn covers_path(wide: Option<&PathMatch>, narrow: Option<&PathMatch>) -> bool {
    let below = |path: &str, prefix: &str| {
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match (wide, narrow) {
        (None, _) => true,
        (Some(PathMatch::Regex(wide)), _) if takes_all(wide) => true,
        (Some(PathMatch::Regex(wide)), Some(PathMatch::Regex(narrow))) => wide == narrow,
        (Some(PathMatch::Regex(wide)), Some(PathMatch::Exact(path))) => takes(wide, path),
        (Some(PathMatch::Prefix(wide)), Some(PathMatch::Prefix(path) | PathMatch::Exact(path))) => below(path, wide),
        (Some(PathMatch::Exact(wide)), Some(PathMatch::Exact(path))) => wide == path,
        _ => false,
    }
}

fn covers_values(wide: &[ValueMatch], narrow: &[ValueMatch]) -> bool {
    let covered = |wide: &ValueMatch| {
        let values = narrow.iter().filter(|narrow| narrow.name == wide.name);
        values.into_iter().any(|narrow| match (&wide.value, &narrow.value) {
            (TextMatch::Regex(wide), _) if takes_all(wide) => true,
            (TextMatch::Regex(wide), TextMatch::Exact(text)) => takes(wide, text),
            (wide, narrow) => wide == narrow,
        })
    };
    wide.iter().all(covered)
}

/// True if a regular expression is one of the usual ways to write "anything".
fn takes_all(expression: &str) -> bool {
    let expression = expression.trim_start_matches('^').trim_end_matches('$');
    matches!(expression, ".*" | "(.*)" | "/.*" | "/(.*)" | ".+" | "(.+)")
}

/// True if a regular expression takes a whole text. One that cannot be read takes nothing.
fn takes(expression: &str, text: &str) -> bool {
    let whole = format!("^(?:{expression})$");
    let built = regex::RegexBuilder::new(&whole).size_limit(crate::limits::EXPRESSION_BYTES).build();
    built.is_ok_and(|expression| expression.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(mut condition: Value) -> HttpMatch {
        condition["rule"] = 0.into();
        serde_json::from_value(condition).unwrap()
    }

    #[test]
    fn wide_conditions_leave_nothing_for_narrow_ones() {
        let check = |wide: Value, narrow: Value, expect: bool| {
            assert_eq!(covers(&of(wide.clone()), &of(narrow.clone())), expect, "{wide} {narrow}");
        };
        let header = |kind: &str, value: &str| json!({"headers": [{"name": "a", "value": {kind: value}}]});
        check(json!({}), json!({"path": {"exact": "/a"}, "method": "GET"}), true);
        check(json!({"method": "GET"}), json!({}), false);
        check(json!({"method": "GET"}), json!({"method": "GET", "path": {"prefix": "/a"}}), true);
        check(json!({"path": {"prefix": "/a"}}), json!({"path": {"prefix": "/a/b"}}), true);
        check(json!({"path": {"prefix": "/a"}}), json!({"path": {"prefix": "/ab"}}), false);
        check(json!({"path": {"prefix": "/a"}}), json!({"path": {"exact": "/a"}}), true);
        check(json!({"path": {"prefix": "/a"}}), json!({}), false);
        check(json!({"path": {"exact": "/a"}}), json!({"path": {"prefix": "/a"}}), false);
        check(json!({"path": {"regex": "/a+"}}), json!({"path": {"exact": "/aa"}}), true);
        check(json!({"path": {"regex": "/a+"}}), json!({"path": {"exact": "/aab"}}), false);
        check(json!({"path": {"regex": "/.*"}}), json!({"path": {"prefix": "/x"}}), true);
        check(json!({"path": {"regex": "/a.*"}}), json!({"path": {"prefix": "/a"}}), false);
        check(header("exact", "1"), json!({}), false);
        check(json!({}), header("exact", "1"), true);
        check(header("regex", "[0-9]"), header("exact", "1"), true);
        check(header("regex", "[0-9]"), header("exact", "11"), false);
        check(header("exact", "1"), header("exact", "2"), false);
        check(json!({"hosts": ["*.example.com"]}), json!({"hosts": ["a.example.com"]}), true);
        check(json!({"hosts": ["*.example.com"]}), json!({"hosts": ["*.a.example.com"]}), true);
        check(json!({"hosts": ["*.example.com"]}), json!({"hosts": ["example.com"]}), false);
        check(json!({"hosts": ["a"]}), json!({}), false);
        check(json!({}), json!({"hosts": ["a"]}), true);
    }
}
