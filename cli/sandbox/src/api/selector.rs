//! Label selectors and field selectors, as query parameters and as objects.

use super::kinds::Resource;
use super::status::ApiError;
use serde_json::Value;

/// One condition on a label.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    /// Also true if the label is missing.
    NotIn(String, Vec<String>),
    Greater(String, i64),
    Less(String, i64),
}

/// A label selector: all its requirements must hold; an empty one selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

impl LabelSelector {
    /// Reads `app=web,tier in (a,b),!old`.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        split_outside_parentheses(text)
            .into_iter()
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(parse_requirement)
            .collect::<Result<_, _>>()
            .map(Self)
            .map_err(|why| ApiError::bad_request(format!("unable to parse requirement: {why}")))
    }

    /// Reads a `LabelSelector` object (`matchLabels`, `matchExpressions`).
    pub fn from_object(selector: &Value) -> Self {
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            requirements.push(Requirement::In(key.clone(), vec![text(value)]));
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let key = text(&expression["key"]);
            let values = expression["values"].as_array().into_iter().flatten().map(text).collect();
            requirements.push(match expression["operator"].as_str() {
                Some("In") => Requirement::In(key, values),
                Some("NotIn") => Requirement::NotIn(key, values),
                Some("DoesNotExist") => Requirement::Absent(key),
                _ => Requirement::Exists(key),
            });
        }
        Self(requirements)
    }

    /// True if the object's labels fulfil every requirement.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.0.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &Value) -> bool {
        let label = |key: &str| labels.get(key).and_then(Value::as_str);
        let number = |key: &str| label(key).and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::Exists(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
            Self::In(key, values) => label(key).is_some_and(|label| values.iter().any(|v| v == label)),
            Self::NotIn(key, values) => label(key).is_none_or(|label| values.iter().all(|v| v != label)),
            Self::Greater(key, bound) => number(key).is_some_and(|n| n > *bound),
            Self::Less(key, bound) => number(key).is_some_and(|n| n < *bound),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (index, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_requirement(part: &str) -> Result<Requirement, String> {
    if let Some(key) = part.strip_prefix('!') {
        return Ok(Requirement::Absent(label_key(key)?));
    }
    if let Some((head, values)) = part.split_once('(') {
        let values = values.strip_suffix(')').ok_or_else(|| format!("found '{part}', expected: ')'"))?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        let key = label_key(words.next().unwrap_or_default())?;
        return match (words.next(), words.next()) {
            (Some("in"), None) => Ok(Requirement::In(key, values)),
            (Some("notin"), None) => Ok(Requirement::NotIn(key, values)),
            (operator, _) => Err(format!("found '{}', expected: in, notin", operator.unwrap_or_default())),
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(label_key(key)?, vec![label_value(value)?]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(label_key(key)?, vec![label_value(value)?]));
    }
    for (sign, build) in [
        ('>', Requirement::Greater as fn(String, i64) -> Requirement),
        ('<', Requirement::Less as fn(String, i64) -> _),
    ] {
        if let Some((key, value)) = part.split_once(sign) {
            let bound = value
                .trim()
                .parse()
                .map_err(|_| format!("{value:?}: for 'Gt', 'Lt' operators, the value must be an integer"))?;
            return Ok(build(label_key(key)?, bound));
        }
    }
    Ok(Requirement::Exists(label_key(part)?))
}

fn label_key(key: &str) -> Result<String, String> {
    let key = key.trim();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if key.is_empty() || !key.chars().all(allowed) {
        return Err(format!(
            "<nil>: Invalid value: {key:?}: name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
        ));
    }
    Ok(key.to_owned())
}

fn label_value(value: &str) -> Result<String, String> {
    let value = value.trim();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if value.len() > 63 || !value.chars().all(allowed) {
        return Err(format!(
            "values[0][label]: Invalid value: {value:?}: a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.'"
        ));
    }
    Ok(value.to_owned())
}

/// A field selector: all conditions must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<(Vec<String>, bool, String)>);

impl FieldSelector {
    /// Reads `metadata.name=a,status.phase!=Running`, refusing fields the resource does not select by.
    pub fn parse(resource: &Resource, text: &str) -> Result<Self, ApiError> {
        let mut conditions = Vec::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (field, equal, value) = if let Some((field, value)) = part.split_once("!=") {
                (field, false, value)
            } else if let Some((field, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (field, true, value)
            } else {
                return Err(ApiError::bad_request(format!(
                    "invalid field selector: {text:?}; can't understand '{part}'"
                )));
            };
            let field = field.trim();
            if !selectable(resource, field) {
                return Err(ApiError::bad_request(format!(
                    "Unable to find \"{}\" that match label selector \"\", field selector \"{text}\": field label not supported: {field}",
                    resource.api_version()
                )));
            }
            conditions.push((field.split('.').map(str::to_owned).collect(), equal, unescape(value.trim())));
        }
        Ok(Self(conditions))
    }

    /// True if the object fulfils every condition; a missing field is the empty string.
    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(path, equal, expected)| {
            let value = path.iter().try_fold(object, |value, step| value.get(step));
            let actual = match value {
                None | Some(Value::Null) => default_of(path).to_owned(),
                Some(value) => text(value),
            };
            (actual == *expected) == *equal
        })
    }

    /// The one name this selector can match, if it demands one.
    pub fn name(&self) -> Option<&str> {
        self.0
            .iter()
            .find(|(path, equal, _)| *equal && path.iter().map(String::as_str).eq(["metadata", "name"]))
            .map(|(_, _, value)| value.as_str())
    }
}

fn default_of(path: &[String]) -> &'static str {
    if path.last().is_some_and(|field| field == "unschedulable") { "false" } else { "" }
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

/// Fields a resource's objects can be selected by, besides name and namespace.
fn selectable(resource: &Resource, field: &str) -> bool {
    if field == "metadata.name" || field == "metadata.namespace" && resource.namespaced {
        return true;
    }
    if let Some(version) = &resource.custom {
        return version["selectableFields"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|entry| entry["jsonPath"].as_str())
            .any(|path| path.trim_start_matches('.') == field);
    }
    let fields: &[&str] = match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "namespaces") => &["status.phase"],
        ("", "secrets") => &["type"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("events.k8s.io", "events") => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        ("apps", "replicasets") => &["status.replicas"],
        ("batch", "jobs") => &["status.successful"],
        _ => &[],
    };
    fields.contains(&field)
}

/// Label and field selector together, as list, watch and deletecollection take them.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    /// By label.
    pub labels: LabelSelector,
    /// By field.
    pub fields: FieldSelector,
}

impl Selector {
    /// True if both match.
    pub fn matches(&self, object: &Value) -> bool {
        self.labels.matches(object) && self.fields.matches(object)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kinds::Registry;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn selects_by_label() {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "front", "n": "5", "empty": ""}}});
        let cases = [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app=web,tier=back", false),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (web, api)", true),
            ("app in (api),tier", false),
            ("app notin (api)", true),
            ("other notin (api)", true),
            ("tier", true),
            ("!tier", false),
            ("!other", true),
            ("empty=", true),
            ("n>4,n<6", true),
            ("n>5", false),
        ];
        for (selector, expect) in cases {
            assert_eq!(LabelSelector::parse(selector).unwrap().matches(&object), expect, "{selector}");
        }
        for bad in ["app in web", "a b=c", "app in (web", "=x", "n>x", "a=b c"] {
            assert_eq!(LabelSelector::parse(bad).map_err(|e| e.code), Err(400), "{bad}");
        }
    }

    #[test]
    fn reads_selector_objects() {
        let object = json!({"metadata": {"labels": {"app": "web"}}});
        let selector = |value| LabelSelector::from_object(&value).matches(&object);
        assert!(selector(json!({})));
        assert!(selector(json!({"matchLabels": {"app": "web"}})));
        assert!(!selector(json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]})));
        assert!(selector(json!({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]})));
    }

    #[test]
    fn selects_by_field() {
        let registry = Registry::built_in();
        let pods = registry.find("", "v1", "pods").unwrap();
        let pod = json!({"metadata": {"name": "a", "namespace": "b"}, "status": {"phase": "Running"}});
        let cases = [
            ("metadata.name=a", true),
            ("status.phase!=Running", false),
            ("spec.nodeName=", true),
            ("metadata.namespace=b,metadata.name=c", false),
        ];
        for (selector, expect) in cases {
            assert_eq!(FieldSelector::parse(pods, selector).unwrap().matches(&pod), expect, "{selector}");
        }
        let error = FieldSelector::parse(pods, "spec.foo=1").unwrap_err();
        assert!(error.message.contains("field label not supported: spec.foo"), "{error}");
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = LabelSelector::parse(&text);
            let registry = Registry::built_in();
            let _ = FieldSelector::parse(registry.find("", "v1", "pods").unwrap(), &text);
        }
    }
}
