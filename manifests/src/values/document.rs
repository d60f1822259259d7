//! Values as users first see them: a file with every key, its default and what it means, and a JSON schema for editors
//! and pipelines. Both are made from the types; `manifests/values.yaml` and `manifests/values.schema.json` hold them, and a
//! test keeps them current.

use super::Values;
use crate::yaml::YamlError;
use serde_json::Value;

const HEAD: &str = "\
# Values of `meshctl install`, each with its default. Give what you change with -f FILE or --set KEY=VALUE
# (--set proxy.workers=2); a key that is not here is refused. `null` means: decided by the mesh, as described.
";

/// The JSON schema of a file of values (draft 2020-12). A key with `null` has its default.
pub fn schema() -> Value {
    let settings =
        schemars::generate::SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Values>().to_value();
    schema["title"] = "Values of meshctl install".into();
    crate::policies::write_whole_numbers(&mut schema);
    schema
}

/// A file of values with every default, and above each key what it means.
pub fn annotated() -> Result<String, YamlError> {
    annotated_under(HEAD)
}

/// As [`annotated`], with other comments at its head.
pub(crate) fn annotated_under(head: &str) -> Result<String, YamlError> {
    let defaults = serde_saphyr::to_string(&Values::default()).map_err(|error| YamlError::from_text(&error))?;
    let schema = schema();
    let mut text = head.to_owned();
    // Names of the maps around a line, each with its indentation.
    let mut around: Vec<(usize, String)> = Vec::new();
    for line in defaults.lines() {
        let indent = line.len() - line.trim_start().len();
        let key = line.trim_start().split_once(':').map(|(key, _)| key).filter(|key| !key.starts_with('-'));
        if let Some(key) = key {
            around.retain(|(outer, _)| *outer < indent);
            around.push((indent, key.to_owned()));
            comment(&mut text, indent, field(&schema, &around));
        }
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

/// The schema of the key that a path leads to.
fn field<'a>(schema: &'a Value, path: &[(usize, String)]) -> &'a Value {
    path.iter().fold(schema, |at, (_, key)| &at["properties"][key.as_str()])
}

/// Description and allowed words, as comments that fit 110 columns.
fn comment(text: &mut String, indent: usize, field: &Value) {
    if indent == 0 {
        text.push('\n');
    }
    let mut said = field["description"].as_str().unwrap_or_default().to_owned();
    let words = words(field);
    if !words.is_empty() {
        said.push_str(&format!(" One of: {}.", words.join(", ")));
    }
    let mut line = String::new();
    for word in said.split_whitespace() {
        if indent + line.len() + word.len() > 106 {
            text.push_str(&format!("{:indent$}#{line}\n", ""));
            line.clear();
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&format!("{:indent$}#{line}\n", ""));
}

/// The words that a key may hold, if it holds nothing else.
fn words(field: &Value) -> Vec<&str> {
    let list = |value: &'_ Value| value.as_array().map(Vec::len).unwrap_or_default() > 0;
    let mut found: Vec<&str> = field["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for alternatives in [&field["oneOf"], &field["anyOf"]].into_iter().filter(|alternatives| list(alternatives)) {
        for one in alternatives.as_array().into_iter().flatten() {
            found.extend(one["const"].as_str());
            found.extend(words(one));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn the_committed_files_are_those_of_the_types() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let (yaml, json) = (folder.join("values.yaml"), folder.join("values.schema.json"));
        let (text, schema) = (annotated().unwrap(), schema());
        if std::env::var_os("MESH_UPDATE").is_some() {
            std::fs::write(&yaml, &text).unwrap();
            std::fs::write(&json, serde_json::to_string_pretty(&schema).unwrap() + "\n").unwrap();
        }
        let committed = std::fs::read_to_string(&yaml).unwrap_or_default();
        assert_eq!(committed, text, "run with MESH_UPDATE=1 to write values.yaml anew");
        // The order of keys depends on how the JSON library was built; what they say does not.
        let committed = std::fs::read_to_string(&json).unwrap_or_default();
        let committed: Value = serde_json::from_str(&committed).unwrap_or_default();
        assert_eq!(committed, schema, "run with MESH_UPDATE=1 to write values.schema.json anew");
    }

    #[test]
    fn the_file_says_what_each_key_means_and_changes_nothing() {
        let text = annotated().unwrap();
        let values = Values::from_sources(&[("values.yaml".to_owned(), text.clone())], &[]).unwrap();
        assert_eq!(values, Values::default());
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let is_key = !line.trim_start().starts_with(['#', '-']) && line.contains(':');
            if is_key {
                assert!(lines[number - 1].trim_start().len() > 3, "{line} has no comment");
            }
            assert!(line.len() <= 110, "{line}");
        }
        let words: Vec<&str> = text.split_whitespace().filter(|word| *word != "#").collect();
        assert!(words.join(" ").contains("One of: all, authenticated, cluster, deny, audit."), "{text}");
    }

    #[test]
    fn the_schema_knows_every_key_and_takes_the_defaults() {
        fn walk(schema: &Value, value: &Value, path: &str) {
            if let (Some(fields), true) = (value.as_object(), schema["properties"].is_object()) {
                assert_eq!(schema["additionalProperties"], false, "{path}");
                assert!(schema["required"].is_null(), "{path}: every key has a default");
                for (name, value) in fields {
                    let inner = &schema["properties"][name.as_str()];
                    assert!(inner["description"].is_string(), "{path}.{name} says nothing");
                    walk(inner, value, &format!("{path}.{name}"));
                }
            } else {
                let types = match &schema["type"] {
                    Value::String(one) => vec![one.clone()],
                    Value::Array(all) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
                    _ => return,
                };
                let is = match value {
                    Value::Null => "null",
                    Value::Bool(_) => "boolean",
                    Value::Number(_) => "integer",
                    Value::String(_) => "string",
                    Value::Array(_) => "array",
                    Value::Object(_) => "object",
                };
                assert!(types.iter().any(|known| known == is), "{path}: {is} is none of {types:?}");
            }
        }
        walk(&schema(), &serde_json::to_value(Values::default()).unwrap(), "values");
    }
}
