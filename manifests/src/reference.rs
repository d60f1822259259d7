//! The reference documentation of what users write, made from the types: fields of policies, annotations, errors.
//!
//! `manifests/REFERENCE.md` holds it, and a test keeps it current. What a field means stands in its doc comment and
//! nowhere else.

use crate::policies;
use crate::settings::ANNOTATIONS;
use mesh_api::MeshError;
use serde_json::{Map, Value};
use std::fmt::Write;

const HEAD: &str = "\
# Reference

Everything users write for the mesh, made from its types: `MESH_UPDATE=1 cargo test -p mesh-manifests` writes this page
anew, and a test fails where it is out of date. [POLICIES.md](POLICIES.md) tells how policies act together.
";

/// The page, in Markdown.
pub fn reference() -> Result<String, serde_json::Error> {
    let mut page = HEAD.to_owned();
    for definition in policies::definitions()? {
        kind(&mut page, &definition);
    }
    annotations(&mut page);
    errors(&mut page);
    Ok(page)
}

/// Adds a line; text has room for every line.
macro_rules! line {
    ($page:expr, $($arg:tt)*) => { let _ = writeln!($page, $($arg)*); };
}

fn kind(page: &mut String, definition: &Value) {
    let names = &definition["spec"]["names"];
    let version = &definition["spec"]["versions"][0];
    let schema = &version["schema"]["openAPIV3Schema"];
    let spec = &schema["properties"]["spec"];
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    line!(page, "\n## {}\n", word(&names["kind"]));
    line!(
        page,
        "`apiVersion: {}/{}`, namespaced; `kubectl get {}`.\n",
        word(&definition["spec"]["group"]),
        word(&version["name"]),
        word(&names["plural"])
    );
    line!(page, "{}\n", word(&spec["description"]));
    line!(page, "| field | type | default | bounds | meaning |\n|---|---|---|---|---|");
    let mut rules = Vec::new();
    fields(page, &mut rules, "spec", spec);
    fields(page, &mut rules, "status", &schema["properties"]["status"]);
    if !rules.is_empty() {
        line!(page, "\nThe API server refuses what breaks one of these rules:\n");
    }
    for (path, message) in rules {
        line!(page, "- `{path}`: {message}");
    }
}

/// The rows of the fields of an object, and of those below them; `rules` takes what fields must obey together.
fn fields(page: &mut String, rules: &mut Vec<(String, String)>, path: &str, schema: &Value) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        rules.push((path.to_owned(), rule["message"].as_str().unwrap_or_default().to_owned()));
    }
    if is_opaque(schema) {
        return;
    }
    for (name, field) in in_order(schema) {
        let path = format!("{path}.{name}");
        let default = match field.get("default") {
            _ if is_required(schema, name) => "required".to_owned(),
            None | Some(Value::Null) => String::new(),
            Some(default) => format!("`{}`", plain(default)),
        };
        let meaning = field["description"].as_str().unwrap_or_default();
        let cells = [format!("`{path}`"), type_of(field), default, bounds(field), meaning.to_owned()];
        let cells = cells.map(|cell| cell.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|"));
        line!(page, "| {} |", cells.join(" | "));
        let (inner, mark) = innermost(field);
        fields(page, rules, &format!("{path}{mark}"), inner);
    }
}

/// What is inside of lists and maps, with the marks a path has for them.
fn innermost(schema: &Value) -> (&Value, String) {
    let mut at = schema;
    let mut mark = String::new();
    loop {
        if let Some(items) = at.get("items") {
            at = items;
            mark.push_str("[]");
        } else if let Some(values) = at.get("additionalProperties").filter(|values| values.is_object()) {
            at = values;
            mark.push_str(".*");
        } else {
            return (at, mark);
        }
    }
}

/// Fields that must be there first, then the others, each by name.
fn in_order(schema: &Value) -> Vec<(&String, &Value)> {
    let all: Option<&Map<String, Value>> = schema["properties"].as_object();
    let mut all: Vec<_> = all.into_iter().flatten().collect();
    let required = |name: &str| is_required(schema, name);
    all.sort_by_key(|(name, _)| (!required(name), *name));
    all
}

/// True for objects of Kubernetes itself, which has documentation of its own.
fn is_opaque(schema: &Value) -> bool {
    has(schema, "matchExpressions") || has(schema, "lastTransitionTime")
}

fn is_required(schema: &Value, field: &str) -> bool {
    schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == field))
}

fn has(schema: &Value, property: &str) -> bool {
    schema["properties"].get(property).is_some()
}

fn type_of(schema: &Value) -> String {
    if let Some(items) = schema.get("items") {
        return format!("list of {}", type_of(items));
    }
    if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
        return format!("map to {}", type_of(values));
    }
    match schema["type"].as_str() {
        Some("object") if has(schema, "matchExpressions") => "label selector".to_owned(),
        Some("object") if has(schema, "lastTransitionTime") => "condition".to_owned(),
        Some("string") if schema.get("enum").is_some() => "word".to_owned(),
        Some("string") => "text".to_owned(),
        Some("integer") => "whole number".to_owned(),
        Some("boolean") => "true or false".to_owned(),
        Some(other) => other.to_owned(),
        None => "anything".to_owned(),
    }
}

/// What values are allowed; for lists also what each entry may be.
fn bounds(schema: &Value) -> String {
    let mut said = Vec::new();
    if let Some(words) = schema["enum"].as_array() {
        let words: Vec<String> =
            words.iter().filter(|word| !word.is_null()).map(|word| format!("`{}`", plain(word))).collect();
        said.push(words.join(", "));
    }
    for (least, most, unit) in [
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " of them"),
        ("minProperties", "maxProperties", " of its fields"),
    ] {
        // The range of the machine's integers is no bound that somebody thought of.
        let most = schema[most].as_f64().filter(|most| *most < f64::from(u32::MAX));
        let least = schema[least].as_f64().filter(|least| unit.is_empty() || *least > 0.0);
        match (least, most) {
            (Some(least), Some(most)) => said.push(format!("{least} to {most}{unit}")),
            (Some(least), None) => said.push(format!("at least {least}{unit}")),
            (None, Some(most)) => said.push(format!("at most {most}{unit}")),
            (None, None) => {}
        }
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        said.push(format!("`{pattern}`"));
    }
    let (inner, mark) = innermost(schema);
    if !mark.is_empty() {
        let each = bounds(inner);
        if !each.is_empty() {
            said.push(format!("each {each}"));
        }
    }
    said.join("; ")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn annotations(page: &mut String) {
    line!(page, "\n## Annotations\n");
    line!(page, "An annotation of a pod (or of a workload's pod template) outranks that of its namespace.\n");
    line!(page, "| annotation | on | value | meaning |\n|---|---|---|---|");
    for known in ANNOTATIONS {
        line!(page, "| `{}` | {} | {} | {} |", known.name, known.on, known.value, known.meaning);
    }
}

fn errors(page: &mut String) {
    line!(page, "\n## Errors\n");
    line!(
        page,
        "Answers that the mesh makes itself carry the header `mesh-error`; `meshctl explain error CODE` says the"
    );
    line!(page, "same.\n\n| code | HTTP | gRPC | what went wrong | what to do |\n|---|---|---|---|---|");
    for error in MeshError::ALL {
        let (http, grpc) = (error.http_status(), error.grpc_status());
        line!(page, "| `{}` | {http} | {grpc} | {} | {} |", error.code(), error.cause(), error.cure());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::PathBuf;

    #[test]
    fn the_committed_page_is_that_of_the_types() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("REFERENCE.md");
        let page = reference().unwrap();
        if std::env::var_os("MESH_UPDATE").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(committed, page, "run with MESH_UPDATE=1 to write REFERENCE.md anew");
    }

    #[test]
    fn every_field_says_what_it_means() {
        for line in reference().unwrap().lines().filter(|line| line.starts_with("| `")) {
            let meaning = line.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
            assert!(meaning.len() > 3, "{line}");
        }
    }

    #[test]
    fn rows_tell_type_default_and_bounds() {
        let mut page = String::new();
        let mut rules = Vec::new();
        let schema = json!({
            "required": ["name"],
            "x-kubernetes-validations": [{"rule": "true", "message": "all is well"}],
            "properties": {
                "many": {"type": "array", "maxItems": 3, "items": {"type": "integer", "minimum": 1, "maximum": 9}},
                "name": {"type": "string", "minLength": 1, "maxLength": 5, "description": "What it\nis called."},
                "size": {"type": "integer", "format": "uint64", "minimum": 0, "default": 7},
                "word": {"type": "string", "enum": ["A", "B|C"], "nullable": true},
                "deep": {"type": "array", "items": {"type": "object", "properties": {"on": {"type": "boolean"}}}},
                "pods": {"type": "object", "properties": {"matchExpressions": {"type": "array"}}},
            },
        });
        fields(&mut page, &mut rules, "spec", &schema);
        assert_eq!(rules, [("spec".to_owned(), "all is well".to_owned())]);
        insta::assert_snapshot!(page, @r"
        | `spec.name` | text | required | 1 to 5 characters | What it is called. |
        | `spec.deep` | list of object |  |  |  |
        | `spec.deep[].on` | true or false |  |  |  |
        | `spec.many` | list of whole number |  | at most 3 of them; each 1 to 9 |  |
        | `spec.pods` | label selector |  |  |  |
        | `spec.size` | whole number | `7` | at least 0 |  |
        | `spec.word` | word |  | `A`, `B\|C` |  |
        ");
    }
}
