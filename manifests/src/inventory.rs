//! What an install put into a cluster: recorded with it, so that an upgrade knows what is no longer needed and an
//! uninstall what to take away.

use crate::install::CONFIG_MAP;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Key of the ConfigMap `mesh-config` with the inventory, JSON.
pub const INVENTORY_KEY: &str = "inventory.json";

/// Labels of every object of an install, as a selector. Helm writes its own name over who manages an object.
pub const SELECTOR: &str = "app.kubernetes.io/managed-by in (meshctl,Helm),app.kubernetes.io/part-of=meshctl";

/// Every kind that an install of this or an earlier release puts into a cluster: apiVersion, kind.
pub const KINDS: &[(&str, &str)] = &[
    ("v1", "Namespace"),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
    ("v1", "ServiceAccount"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("v1", "Service"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "DaemonSet"),
    ("policy/v1", "PodDisruptionBudget"),
    ("apiregistration.k8s.io/v1", "APIService"),
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
];

/// One object, by what it is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// Where it lives, if its kind lives in namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl Entry {
    /// What an object is called.
    pub fn of(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            api_version: text(&object["apiVersion"]),
            kind: text(&object["kind"]),
            namespace: object["metadata"]["namespace"].as_str().map(str::to_owned),
            name: text(&object["metadata"]["name"]),
        }
    }

    /// The least that `kubectl delete -f -` needs.
    pub fn object(&self) -> Value {
        let mut object = json!({"apiVersion": self.api_version, "kind": self.kind, "metadata": {"name": self.name}});
        if let Some(namespace) = &self.namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        object
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.kind.to_lowercase())?;
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What objects are called.
pub fn of(objects: &[Value]) -> Vec<Entry> {
    objects.iter().map(Entry::of).collect()
}

/// Makes the record among `objects` name all of them and `more`: what is no longer needed is there until it has been
/// deleted. Returns the record as it was.
pub fn record(objects: &mut [Value], more: &[Entry]) -> Option<Value> {
    let inventory = written(&[&of(objects), more].concat());
    let is_record = |object: &&mut Value| object["kind"] == "ConfigMap" && object["metadata"]["name"] == CONFIG_MAP;
    let record = objects.iter_mut().find(is_record)?;
    let before = record.clone();
    record["data"][INVENTORY_KEY] = inventory.into();
    Some(before)
}

/// Reads a recorded inventory.
pub fn read(text: &str) -> Result<Vec<Entry>, serde_json::Error> {
    serde_json::from_str(text)
}

/// Writes an inventory, an entry a line.
fn written(entries: &[Entry]) -> String {
    let lines: Vec<String> = entries.iter().map(line).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

/// One entry as the inventory has it.
pub(crate) fn line(entry: &Entry) -> String {
    // Four texts: nothing that JSON cannot hold.
    serde_json::to_string(entry).unwrap_or_default()
}

/// What is in `old` and not in `new`; another version of the same kind's API is the same object.
pub fn gone(old: &[Entry], new: &[Entry]) -> Vec<Entry> {
    let group = |entry: &Entry| entry.api_version.split_once('/').map_or("", |(group, _)| group).to_owned();
    let same =
        |a: &Entry, b: &Entry| (group(a), &a.kind, &a.namespace, &a.name) == (group(b), &b.kind, &b.namespace, &b.name);
    old.iter().filter(|entry| !new.iter().any(|other| same(entry, other))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::render;
    use crate::values::{CniValues, Values};

    fn entry(api_version: &str, name: &str) -> Entry {
        Entry { api_version: api_version.into(), kind: "Gadget".into(), namespace: None, name: name.into() }
    }

    #[test]
    fn an_install_records_all_it_consists_of() {
        for on in [false, true] {
            let cni = CniValues { enabled: on, ..CniValues::default() };
            let objects = render(&Values { ha: on, cni, ..Values::default() }).unwrap();
            let map = objects.iter().find(|object| object["data"][INVENTORY_KEY].is_string()).unwrap();
            let recorded = read(map["data"][INVENTORY_KEY].as_str().unwrap()).unwrap();
            assert_eq!(recorded, of(&objects));
            for entry in &recorded {
                assert!(KINDS.contains(&(entry.api_version.as_str(), entry.kind.as_str())), "{entry}");
            }
        }
    }

    #[test]
    fn what_a_newer_version_does_without_is_gone() {
        let old = [entry("g/v1beta1", "a"), entry("g/v1", "b"), entry("h/v1", "a")];
        let new = [entry("g/v1", "a")];
        assert_eq!(gone(&old, &new), [entry("g/v1", "b"), entry("h/v1", "a")]);
        assert_eq!(gone(&new, &old), []);
    }
}
