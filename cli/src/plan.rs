//! What applying objects would change: asked of the API server itself, which tries each without keeping it, so that
//! defaults and admission are accounted for.

use crate::apply::{FIELD_MANAGER, Kinds, in_order};
use crate::cluster::Cluster;
use crate::error::{Context, Result};
use kube::api::{Patch, PatchParams};
use mesh_manifests::inventory::Entry;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use similar::TextDiff;

/// What would become of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It would be made.
    Create,
    /// It would change: a unified diff of YAML, without secrets.
    Change(String),
    /// It would stay.
    Same,
    /// It would be deleted.
    Delete,
}

/// Objects with what would become of them, in the order of applying; deletions last.
pub async fn plan(
    cluster: &Cluster,
    objects: Vec<Value>,
    gone: &[Entry],
    namespace: &str,
) -> Result<Vec<(Entry, Change)>> {
    let mut kinds = Kinds::default();
    let mut planned = Vec::new();
    for object in in_order(objects) {
        let entry = Entry::of(&object);
        let target = kinds.target(cluster, object, namespace).await.during(|| format!("compare {entry}"))?;
        let live = target.api.get_opt(&target.name).await.during(|| format!("read {entry}"))?;
        let Some(live) = live else {
            planned.push((entry, Change::Create));
            continue;
        };
        let params = PatchParams { dry_run: true, ..PatchParams::apply(FIELD_MANAGER).force() };
        let after = target.api.patch(&target.name, &params, &Patch::Apply(&target.object)).await;
        let after = after.during(|| format!("try to apply {entry}"))?;
        let change = difference(&shown(&live)?, &shown(&after)?);
        planned.push((entry, change.map_or(Change::Same, Change::Change)));
    }
    planned.extend(gone.iter().map(|entry| (entry.clone(), Change::Delete)));
    Ok(planned)
}

fn shown<T: serde::Serialize>(object: &T) -> Result<Value> {
    let mut object = serde_json::to_value(object).during(|| "understand the cluster's answer")?;
    tidy(&mut object);
    Ok(object)
}

/// Takes away what nobody writes, and what nobody must read.
fn tidy(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    map.remove("status");
    if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
        for name in ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink"] {
            metadata.remove(name);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            // It repeats the whole object, secrets included.
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    }
    if map.get("kind").is_some_and(|kind| kind == "Secret") {
        for field in ["data", "stringData"] {
            for value in
                map.get_mut(field).and_then(Value::as_object_mut).into_iter().flat_map(|data| data.values_mut())
            {
                let digest = Sha256::digest(value.as_str().unwrap_or_default().as_bytes());
                let digest: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
                *value = json!(format!("(not shown, digest {digest})"));
            }
        }
    }
}

fn difference(before: &Value, after: &Value) -> Option<String> {
    if before == after {
        return None;
    }
    let text = |value: &Value| serde_saphyr::to_string(&sorted(value)).unwrap_or_else(|_| value.to_string());
    let (before, after) = (text(before), text(after));
    // The order of keys means nothing.
    let diff = TextDiff::from_lines(&before, &after);
    (before != after).then(|| diff.unified_diff().context_radius(3).to_string())
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut all: Vec<_> = map.iter().collect();
            all.sort_by_key(|(key, _)| key.as_str());
            Value::Object(all.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// The plan for people, and whether anything would change.
pub fn text(planned: &[(Entry, Change)]) -> (String, bool) {
    let mut text = String::new();
    let mut counts = [0usize; 3];
    for (entry, change) in planned {
        match change {
            Change::Same => {}
            Change::Create => {
                counts[0] += 1;
                text.push_str(&format!("+ {entry}\n"));
            }
            Change::Change(diff) => {
                counts[1] += 1;
                text.push_str(&format!("~ {entry}\n"));
                text.extend(diff.lines().map(|line| format!("    {line}\n")));
            }
            Change::Delete => {
                counts[2] += 1;
                text.push_str(&format!("- {entry}\n"));
            }
        }
    }
    let [create, change, delete] = counts;
    let same = planned.len() - create - change - delete;
    text.push_str(&format!("{create} to create, {change} to change, {delete} to delete, {same} as they are\n"));
    (text, create + change + delete > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestCluster;

    #[test]
    fn secrets_are_compared_but_not_shown() {
        let secret = |value: &str| json!({"kind": "Secret", "metadata": {"uid": "1"}, "data": {"key": value}});
        let (mut a, mut b) = (secret("c2VjcmV0"), secret("b3RoZXI="));
        tidy(&mut a);
        tidy(&mut b);
        let diff = difference(&a, &b).unwrap();
        assert!(diff.contains("(not shown, digest ") && !diff.contains("c2VjcmV0"), "{diff}");
        assert!(!diff.contains("uid"), "{diff}");
    }

    #[test]
    fn the_order_of_keys_is_no_difference() {
        assert_eq!(difference(&json!({"a": 1, "b": {"c": 1, "d": 2}}), &json!({"b": {"d": 2, "c": 1}, "a": 1})), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_plan_tells_creations_changes_and_deletions() {
        let server = TestCluster::start();
        let cluster = server.connect().await;
        let (printer, _) = crate::output::Printer::memory();
        let step = printer.step("applying");
        let map = |name: &str, value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}});
        crate::apply::apply(&cluster, vec![map("a", "1"), map("b", "1")], "default", &step).await.unwrap();
        let gone = [Entry::of(&map("old", ""))];
        let objects = vec![map("a", "1"), map("b", "2"), map("c", "1")];
        let planned = plan(&cluster, objects, &gone, "default").await.unwrap();
        let (text, changes) = text(&planned);
        assert!(changes);
        assert_eq!(
            text,
            "~ configmap b\n    @@ -1,6 +1,6 @@\n     apiVersion: v1\n     data:\n    -  k: \"1\"\n    +  k: \"2\"\n     \
             kind: ConfigMap\n     metadata:\n       name: b\n+ configmap c\n- configmap old\n1 to create, 1 to change, 1 to delete, 1 as they are\n"
        );
    }
}
