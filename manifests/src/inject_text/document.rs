//! One document: which of its objects have pods, what shall become of them, and the text with that done.

use super::Mode;
use super::edit::{Edit, Editor, Known, Obstacle, Payload, apply};
use super::report::{Fault, Outcome, Report, StreamError};
use super::split::Document;
use super::tree::{self, Kind, Node};
use crate::config::MeshConfig;
use crate::inject::{Plan, Skip, plan_enabled, unfit};
use crate::settings::{self, Holder, Refusal, Sources, Wish, wish};
use crate::sidecar;
use mesh_api::names;
use serde_json::Value;

/// Kinds with pods: group, kind, where the pod template lies.
const WORKLOADS: [(&str, &str, &[&str]); 8] = [
    ("", "Pod", &[]),
    ("", "ReplicationController", &["spec", "template"]),
    ("apps", "Deployment", &["spec", "template"]),
    ("apps", "ReplicaSet", &["spec", "template"]),
    ("apps", "StatefulSet", &["spec", "template"]),
    ("apps", "DaemonSet", &["spec", "template"]),
    ("batch", "Job", &["spec", "template"]),
    ("batch", "CronJob", &["spec", "jobTemplate", "spec", "template"]),
];

/// The text with everything done that `mode` asks for.
pub(super) fn rewrite(
    document: &Document,
    mode: Mode<'_>,
    report: &mut dyn FnMut(Report),
) -> Result<String, StreamError> {
    // A byte order mark belongs to the file, not to the document.
    let (mark, text) = match document.text.strip_prefix('\u{feff}') {
        Some(rest) => ("\u{feff}", rest),
        None => ("", &*document.text),
    };
    let Some(root) = tree::parse(text).map_err(|(line, fault)| document.fault(line, fault))? else {
        return Ok(document.text.clone());
    };
    let Kind::Map { flow, .. } = root.kind else {
        return Err(document.fault(root.line, Fault::NotObject(root.describe())));
    };
    let mut objects = Vec::new();
    collect(&root, "", &mut objects);
    // Values are read only where they are looked at: documents of other kinds pass however exotic their YAML is.
    let mut values = Value::Null;
    if objects.iter().any(|o| o.template.is_some()) {
        values = serde_saphyr::from_str(text).map_err(|e| document.fault(root.line, Fault::NotYaml(e.to_string())))?;
    }
    let pointers: Vec<String> = objects.iter().filter_map(|o| Some(o.template.as_ref()?.1.clone())).collect();
    let (editor, mut edited, mut current) = (Editor { text, json: flow }, Vec::new(), values);
    for object in objects {
        let outcome = object.handle(&editor, mode, &mut current, &mut edited);
        let outcome = outcome.map_err(|fault| document.fault(object.node.line, fault))?;
        report(object.report(document, outcome));
    }
    if edited.is_empty() {
        return Ok(document.text.clone());
    }
    let out = apply(text, edited);
    // What an unforeseen form of YAML could make of the edits must not reach a cluster.
    let pruned = |mut value: Value| {
        for pointer in &pointers {
            value.pointer_mut(pointer).into_iter().for_each(prune);
        }
        value
    };
    match serde_saphyr::from_str::<Value>(&out) {
        Ok(value) if pruned(value.clone()) == pruned(current) => Ok(mark.to_owned() + &out),
        _ => {
            let why = "its form is too unusual to be edited; annotate the pod template by hand".to_owned();
            Err(document.fault(root.line, Fault::NotYaml(why)))
        }
    }
}

/// An object of the document.
struct Object<'n> {
    node: &'n Node,
    /// The pod template and the JSON pointer to it, if the kind has one.
    template: Option<(&'n Node, String)>,
}

/// The document's object, or the objects of a List.
fn collect<'n>(node: &'n Node, pointer: &str, into: &mut Vec<Object<'n>>) {
    let text = |key: &str| node.get(key).and_then(Node::text).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let items = match node.get("items").map(|n| &n.kind) {
        Some(Kind::Seq { items, .. }) if kind.ends_with("List") => items,
        _ => {
            let group = version.split_once('/').map_or("", |(group, _)| group);
            let path = WORKLOADS.iter().find(|(g, k, _)| *g == group && *k == kind).map(|(.., path)| path);
            let template = path.and_then(|path| {
                let found = path.iter().try_fold(node, |at, step| at.get(step))?;
                Some((found, path.iter().fold(pointer.to_owned(), |p, step| format!("{p}/{step}"))))
            });
            into.push(Object { node, template });
            return;
        }
    };
    for (i, item) in items.iter().enumerate() {
        collect(item, &format!("{pointer}/items/{i}"), into);
    }
}

impl Object<'_> {
    fn text(&self, path: &[&str]) -> Option<String> {
        path.iter().try_fold(self.node, |at, step| at.get(step)).and_then(Node::text).map(str::to_owned)
    }

    fn report(&self, document: &Document, outcome: Outcome) -> Report {
        Report {
            source_name: document.source_name.clone(),
            document: document.number,
            line: document.line + self.node.line.max(1) - 1,
            kind: self.text(&["kind"]).unwrap_or_default(),
            namespace: self.text(&["metadata", "namespace"]),
            name: self.text(&["metadata", "name"]).unwrap_or_default(),
            outcome,
        }
    }

    /// Decides about the object and adds what is to be edited; `values` become what the text will say.
    fn handle(
        &self,
        editor: &Editor<'_>,
        mode: Mode<'_>,
        values: &mut Value,
        edits: &mut Vec<Edit>,
    ) -> Result<Outcome, Fault> {
        let Some((template, pointer)) = &self.template else { return Ok(Outcome::NoPods) };
        let Some(value) = values.pointer_mut(pointer) else {
            return Ok(Outcome::Skipped("its pod template cannot be found".to_owned()));
        };
        if !value["spec"].is_object() {
            return Ok(Outcome::Skipped("it has no containers".to_owned()));
        }
        let changes = match mode {
            Mode::Uninject => return uninject(editor, template, value, edits),
            Mode::Annotate => annotation(value),
            Mode::Manual(config) => sidecar_parts(value, config),
        };
        let refused = |refusal| {
            let name = self.text(&["metadata", "name"]).unwrap_or_default();
            Fault::Refused {
                object: format!("{}/{name}", self.text(&["kind"]).unwrap_or_default()),
                refusal: Box::new(refusal),
            }
        };
        let changes = match changes.map_err(refused)? {
            Ok(changes) => changes,
            Err(why) => return Ok(Outcome::Skipped(why)),
        };
        let added: Result<Vec<_>, _> =
            changes.iter().map(|(path, payload)| editor.add(template, path, payload)).collect();
        match added {
            Ok(added) => edits.extend(editor.side_by_side(added)),
            Err(Obstacle::Form(why)) => return Ok(Outcome::Skipped(why)),
            Err(Obstacle::Yaml(e)) => return Err(e.into()),
        }
        for (path, payload) in changes {
            put(value, path, payload);
        }
        Ok(Outcome::Injected)
    }
}

/// Payloads and where they go, below the pod template.
type Changes = Vec<(&'static [&'static str], Payload)>;

const ANNOTATIONS: &[&str] = &["metadata", "annotations"];
const INIT_CONTAINERS: &[&str] = &["spec", "initContainers"];
const CONTAINERS: &[&str] = &["spec", "containers"];
const VOLUMES: &[&str] = &["spec", "volumes"];
const PULL_SECRETS: &[&str] = &["spec", "imagePullSecrets"];

fn annotation(template: &Value) -> Result<Result<Changes, String>, Refusal> {
    let sources = Sources { pod: &template["metadata"], namespace: &Value::Null };
    match wish(sources)? {
        Wish::Enabled(_) => return Ok(Err("it asks for a proxy already".to_owned())),
        Wish::Disabled(_) => return Ok(Err(Skip::Disabled(Holder::Pod).to_string())),
        Wish::Unsaid => {}
    }
    // The injector would read the other annotations only when pods are created; a slip is better told now.
    Ok(match plan_enabled(sources, &template["spec"], &MeshConfig::default())? {
        Plan::Inject(_) => Ok(vec![(ANNOTATIONS, Payload::Entries(vec![(names::INJECT, "enabled".into())]))]),
        Plan::Skip(why) => Err(why.to_string()),
    })
}

fn sidecar_parts(template: &Value, config: &MeshConfig) -> Result<Result<Changes, String>, Refusal> {
    let sources = Sources { pod: &template["metadata"], namespace: &Value::Null };
    if let Wish::Disabled(holder) = wish(sources)? {
        return Ok(Err(Skip::Disabled(holder).to_string()));
    }
    Ok(match plan_enabled(sources, &template["spec"], config)? {
        Plan::Inject(settings) => {
            let secrets = sidecar::pull_secrets(&template["spec"], config);
            let mut annotations = vec![(names::PROXY_VERSION, Value::from(config.version.as_str()))];
            if !secrets.is_empty() {
                let added: Vec<&str> = secrets.iter().filter_map(|secret| secret["name"].as_str()).collect();
                annotations.push((settings::PULL_SECRETS, added.join(" ").into()));
            }
            let mut changes: Changes = vec![(ANNOTATIONS, Payload::Entries(annotations))];
            changes.extend(sidecar::containers(&settings, config).into_iter().map(|added| {
                let path = if added.list == "containers" { CONTAINERS } else { INIT_CONTAINERS };
                let payload = if added.last { Payload::Last } else { Payload::Items };
                (path, payload(added.containers))
            }));
            changes.push((VOLUMES, Payload::Items(vec![sidecar::token_volume()])));
            if !secrets.is_empty() {
                changes.push((PULL_SECRETS, Payload::Items(secrets)));
            }
            Ok(changes)
        }
        Plan::Skip(why) => Err(why.to_string()),
    })
}

const OUR_ANNOTATIONS: [(&str, Option<&str>); 3] =
    [(names::INJECT, Some("enabled")), (names::PROXY_VERSION, None), (settings::PULL_SECRETS, None)];
const OUR_CONTAINERS: [&str; 2] = [names::REDIRECT_CONTAINER, names::PROXY_CONTAINER];

/// The pull secrets that were added to a pod template, which says so itself.
fn added_secrets(template: &Value) -> Vec<String> {
    let said = template["metadata"]["annotations"][settings::PULL_SECRETS].as_str().unwrap_or_default();
    said.split_whitespace().map(str::to_owned).collect()
}

fn uninject(editor: &Editor<'_>, template: &Node, value: &mut Value, edits: &mut Vec<Edit>) -> Result<Outcome, Fault> {
    let mut removed = Vec::new();
    let secrets = added_secrets(value);
    let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
    for (path, known) in [
        (ANNOTATIONS, Known::Keys(&OUR_ANNOTATIONS)),
        (INIT_CONTAINERS, Known::Names(&OUR_CONTAINERS)),
        (CONTAINERS, Known::Names(&OUR_CONTAINERS)),
        (VOLUMES, Known::Names(&[sidecar::TOKEN_VOLUME])),
        (PULL_SECRETS, Known::Names(&secrets)),
    ] {
        match editor.remove(template, path, &known) {
            Ok(edits) => removed.extend(edits),
            Err(Obstacle::Form(why)) => return Ok(Outcome::Skipped(why)),
            Err(Obstacle::Yaml(e)) => return Err(e.into()),
        }
    }
    if removed.is_empty() {
        let why = match unfit(&value["spec"]) {
            Some(Skip::AlreadyInjected) => "its proxy is written in a form that cannot be taken out",
            _ => "it has neither a proxy nor asks for one",
        };
        return Ok(Outcome::Skipped(why.to_owned()));
    }
    edits.extend(removed);
    forget(value);
    Ok(Outcome::Uninjected)
}

/// Does to the value what [`Editor::add`] does to the text.
fn put(template: &mut Value, path: &[&str], payload: Payload) {
    let mut at = template;
    for step in path {
        at = &mut at[*step];
    }
    match payload {
        Payload::Entries(entries) => entries.into_iter().for_each(|(key, value)| at[key] = value),
        Payload::Items(items) => {
            let old = at.as_array().into_iter().flatten().cloned();
            *at = Value::Array(items.into_iter().chain(old).collect());
        }
        Payload::Last(items) => {
            let old = at.as_array().into_iter().flatten().cloned();
            *at = Value::Array(old.chain(items).collect());
        }
    }
}

/// Does to the value what [`Editor::remove`] does to the text.
fn forget(template: &mut Value) {
    let secrets = added_secrets(template);
    let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
    if let Some(annotations) = template.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.shift_remove(names::PROXY_VERSION);
        annotations.shift_remove(settings::PULL_SECRETS);
        if annotations.get(names::INJECT).is_some_and(|v| v == "enabled") {
            annotations.shift_remove(names::INJECT);
        }
    }
    for (list, ours) in [
        ("/spec/initContainers", &OUR_CONTAINERS[..]),
        ("/spec/containers", &OUR_CONTAINERS[..]),
        ("/spec/volumes", &[sidecar::TOKEN_VOLUME]),
        ("/spec/imagePullSecrets", &secrets),
    ] {
        if let Some(items) = template.pointer_mut(list).and_then(Value::as_array_mut) {
            items.retain(|i| !i["name"].as_str().is_some_and(|n| ours.contains(&n)));
        }
    }
}

/// Leaves out what is empty where something may have been taken out: to a cluster, `{}`, nothing and absent are one.
fn prune(template: &mut Value) {
    for (parent, key) in [
        ("/metadata", "annotations"),
        ("", "metadata"),
        ("/spec", "initContainers"),
        ("/spec", "containers"),
        ("/spec", "volumes"),
        ("/spec", "imagePullSecrets"),
    ] {
        let Some(parent) = template.pointer_mut(parent).and_then(Value::as_object_mut) else { continue };
        let empty = match parent.get(key) {
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            other => other.is_some_and(Value::is_null),
        };
        if empty {
            parent.shift_remove(key);
        }
    }
}
