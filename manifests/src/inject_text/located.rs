//! Objects out of a stream of documents, each with the lines its fields stand on, for those who find fault with them.

use super::report::{Fault, StreamError};
use super::split::{Document, Documents};
use super::tree::{self, Node};
use serde_json::Value;
use std::io::{BufReader, Read};

/// An object and where it stands.
#[derive(Debug)]
pub struct Located {
    /// The object.
    pub object: Value,
    /// File or stream.
    pub source_name: String,
    /// Its nodes, with lines counted in the document.
    root: Node,
    /// Line of the stream before the document's first.
    before: usize,
    /// Where in the document it is, if that holds a list of objects.
    item: Option<usize>,
}

/// Reads every object of a stream; what a List holds are objects of their own, and empty documents none.
pub fn read_objects(source_name: &str, input: impl Read) -> Result<Vec<Located>, StreamError> {
    let mut documents = Documents::new(source_name, BufReader::new(input));
    let mut found = Vec::new();
    while let Some(document) = documents.next()? {
        read_document(&document, &mut found)?;
    }
    Ok(found)
}

fn read_document(document: &Document, found: &mut Vec<Located>) -> Result<(), StreamError> {
    let parse = || tree::parse(&document.text).map_err(|(line, fault)| document.fault(line, fault));
    let Some(root) = parse()? else { return Ok(()) };
    let object: Value = serde_saphyr::from_str(&document.text)
        .map_err(|error| document.fault(root.line, Fault::NotYaml(error.to_string())))?;
    if !object["kind"].is_string() || !object["apiVersion"].is_string() {
        return Err(document.fault(root.line, Fault::NotObject(root.describe())));
    }
    let of = |object, root, item| Located {
        object,
        source_name: document.source_name.clone(),
        root,
        before: document.line - 1,
        item,
    };
    let is_list = object["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) && object["items"].is_array();
    if !is_list {
        found.push(of(object, root, None));
        return Ok(());
    }
    for (index, item) in object["items"].as_array().into_iter().flatten().enumerate() {
        // Lists are short and rare: each object may have nodes of its own.
        if let Some(root) = parse()? {
            found.push(of(item.clone(), root, Some(index)));
        }
    }
    Ok(())
}

impl Located {
    /// The line of the stream on which a field stands (`spec.rules[0].name`), or on which the nearest of those around it
    /// does; that of the object's first line for an empty path.
    pub fn line(&self, path: &str) -> usize {
        let mut node = &self.root;
        let mut line = node.line;
        let item = self.item.map(|index| format!("items[{index}]"));
        for part in item.iter().flat_map(|item| parts(item)).chain(parts(path)) {
            let step = match part {
                Part::Key(key) => node.entry(key).map(|entry| (entry.key.line, &entry.value)),
                Part::Index(index) => match &node.kind {
                    tree::Kind::Seq { items, .. } => items.get(index).map(|item| (item.line, item)),
                    _ => None,
                },
            };
            let Some((at, inner)) = step else { break };
            (line, node) = (at, inner);
        }
        self.before + line
    }
}

enum Part<'a> {
    Key(&'a str),
    Index(usize),
}

/// `spec.rules[0].name` in its parts. Keys with dots in them (annotations) stand in brackets: `annotations[a.b/c]`.
fn parts(path: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches('.');
        if let Some(inner) = rest.strip_prefix('[') {
            let (inside, after) = inner.split_once(']')?;
            rest = after;
            return Some(inside.parse().map_or(Part::Key(inside), Part::Index));
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        rest = after;
        (!key.is_empty()).then_some(Part::Key(key))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# a comment
---
apiVersion: v1
kind: Service
metadata:
  name: web
  annotations:
    meshctl.dev/inject: enabled
spec:
  ports:
    - port: 80
    - {name: admin,
       port: 81}
---
# nothing
---
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Pod
    metadata: {name: a}
  - {apiVersion: v1, kind: Pod, metadata: {name: b}}
";

    #[test]
    fn fields_are_found_on_their_lines() {
        let found = read_objects("x.yaml", TEXT.as_bytes()).unwrap();
        let names: Vec<_> = found.iter().map(|l| l.object["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["web", "a", "b"]);
        for (object, path, line) in [
            (0, "", 3),
            (0, "metadata.name", 6),
            (0, "metadata.annotations[meshctl.dev/inject]", 8),
            (0, "spec.ports[0].port", 11),
            (0, "spec.ports[1].port", 13),
            (0, "spec.ports[1].nothing.there", 12),
            (0, "status", 3),
            (1, "", 20),
            (1, "metadata.name", 22),
            (2, "", 23),
        ] {
            assert_eq!(found[object].line(path), line, "{object} {path}");
        }
    }

    #[test]
    fn what_is_no_object_is_told_with_its_line() {
        for (text, expect) in [
            ("a: 1\n---\n- b\n", "x.yaml: document 1, line 1: expected a Kubernetes object"),
            ("apiVersion: v1\nkind: Pod\n---\na: [\n", "x.yaml: document 2, line "),
        ] {
            let error = read_objects("x.yaml", text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(expect), "{error}");
        }
        assert_eq!(read_objects("x.yaml", "# nothing\n".as_bytes()).unwrap().len(), 0);
    }
}
