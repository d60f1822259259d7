//! Objects as YAML a person can read: multi-line text as literal blocks, lists in the compact style of `kubectl`.

use serde_json::Value;

/// Why objects could not be written.
#[derive(Debug, thiserror::Error)]
#[error("an object could not be written as YAML: {0}")]
pub struct YamlError(String);

impl YamlError {
    pub(crate) fn from_text(error: &dyn std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// Several objects as one stream of documents.
pub fn to_yaml(objects: &[Value]) -> Result<String, YamlError> {
    let mut text = String::new();
    for (i, object) in objects.iter().enumerate() {
        if i > 0 {
            text.push_str("---\n");
        }
        text.push_str(&one(object)?);
    }
    Ok(text)
}

/// One value, ending in a line break.
pub(crate) fn one(value: &Value) -> Result<String, YamlError> {
    // Folding long lines would leave a program's arguments looking like prose.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    let mut text = serde_saphyr::to_string_with_options(value, options).map_err(|e| YamlError(e.to_string()))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn text_that_looks_like_something_else_is_quoted() {
        let value = json!({
            "b": "true", "a": "8080", "n": 8080, "t": true, "null": "null", "empty": "", "list": [], "map": {},
            "y": "y", "oct": "0o17", "date": "2026-11-21", "colon": "a: b", "star": "*", "hash": "a #b",
            "args": ["--skip-inbound-ports", "4191", "22,80"],
            "pem": "-----BEGIN X-----\nAAA\n-----END X-----\n",
            "long": "a text of more than eighty letters stays on its one line, however long it may be, as it was",
        });
        let text = to_yaml(&[value.clone(), json!({ "second": 1 })]).unwrap();
        insta::assert_snapshot!(text);
        let back: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        assert_eq!(back, [value, json!({ "second": 1 })]);
    }

    proptest! {
        #[test]
        fn any_text_reads_back(text in any::<String>(), key in "[a-z./~0-9 :#-]{1,12}") {
            let value = json!({ key: [text.clone(), { "inner": text }] });
            let written = one(&value).unwrap();
            let read: Value = serde_saphyr::from_str(&written).map_err(|e| TestCaseError::fail(format!("{e}\n{written}")))?;
            prop_assert_eq!(read, value, "{}", written);
        }
    }
}
