//! A node's files as the agent leaves them, what pods need, and which are made anew. The agent as a whole, against an API
//! and with the real plugin, is in the end-to-end tests.

use super::conflist::{with, without};
use super::repair::{Broken, lacks_redirect};
use super::*;
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;

fn plugin() -> Plugin {
    Plugin::new(vec!["mesh-system".to_owned(), "kube-system".to_owned()])
}

const OTHERS: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "future": {"a": [1]}, "plugins": [
    {"type": "bridge", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/16"}]]}}, {"type": "portmap"}]}"#;

fn types(text: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(text).unwrap();
    list["plugins"].as_array().unwrap().iter().map(|entry| entry["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_plugin_stands_last_and_all_else_stays() {
    let once = with(OTHERS, &plugin()).unwrap().unwrap();
    assert_eq!(types(&once), ["bridge", "portmap", "mesh-cni"]);
    assert_eq!(with(&once, &plugin()).unwrap(), None, "nothing is left to do");
    let back: Value = serde_json::from_str(&without(&once).unwrap()).unwrap();
    assert_eq!(back, serde_json::from_str::<Value>(OTHERS).unwrap());
    assert_eq!(without(OTHERS), None);
}

#[test]
fn an_older_entry_and_a_plugin_behind_it_are_put_right() {
    let mut list: Value = serde_json::from_str(&with(OTHERS, &Plugin::new(Vec::new())).unwrap().unwrap()).unwrap();
    list["plugins"].as_array_mut().unwrap().push(json!({ "type": "bandwidth" }));
    let right = with(&list.to_string(), &plugin()).unwrap().unwrap();
    assert_eq!(types(&right), ["bridge", "portmap", "bandwidth", "mesh-cni"]);
    assert!(right.contains("kube-system"), "{right}");
}

#[test]
fn what_is_no_list_of_plugins_is_left_alone() {
    for text in
        ["", "[]", "{", "{\"type\": \"bridge\"}", "{\"plugins\": []}", "{\"plugins\": [{\"type\": \"mesh-cni\"}]}"]
    {
        assert!(with(text, &plugin()).is_err(), "{text}");
    }
}

/// A node's two directories, with a plugin's program.
struct Folders(tempfile::TempDir);

impl Folders {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        fs::create_dir(this.path("bin")).unwrap();
        fs::create_dir(this.path("conf")).unwrap();
        fs::write(this.path("bin/mesh-cni"), "the program").unwrap();
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn node(&self) -> Node {
        Node::open(&self.path("conf"), &self.path("bin"), plugin()).unwrap()
    }

    fn types(&self, name: &str) -> Vec<String> {
        types(&fs::read_to_string(self.path("conf").join(name)).unwrap())
    }
}

#[test]
fn the_first_configuration_is_the_one_that_counts() {
    let folders = Folders::new();
    let mut node = folders.node();
    assert!(node.keep().unwrap_err().to_string().contains("there is no network configuration"));
    fs::write(folders.path("conf/00-broken.conflist"), "{").unwrap();
    fs::write(folders.path("conf/05-notes.txt"), OTHERS).unwrap();
    fs::write(folders.path("conf/10-own.conflist"), OTHERS).unwrap();
    fs::write(folders.path("conf/20-other.conflist"), OTHERS).unwrap();
    node.keep().unwrap();
    assert_eq!(folders.types("10-own.conflist"), ["bridge", "portmap", "mesh-cni"]);
    assert_eq!(folders.types("20-other.conflist"), ["bridge", "portmap"]);
    // The network plugin starts anew and writes what it always does.
    fs::write(folders.path("conf/10-own.conflist"), OTHERS).unwrap();
    node.keep().unwrap();
    assert_eq!(folders.types("10-own.conflist"), ["bridge", "portmap", "mesh-cni"]);
    // Nothing else comes to lie there.
    assert_eq!(fs::read_dir(folders.path("conf")).unwrap().count(), 4);
}

#[test]
fn one_plugin_alone_is_told_about() {
    let folders = Folders::new();
    fs::write(folders.path("conf/10-own.conf"), r#"{"cniVersion": "1.0.0", "type": "bridge"}"#).unwrap();
    let error = folders.node().keep().unwrap_err().to_string();
    assert!(error.contains("10-own.conf configures one plugin alone") && error.contains("hint:"), "{error}");
}

#[test]
fn a_program_that_goes_is_brought_back() {
    let folders = Folders::new();
    fs::write(folders.path("conf/10-own.conflist"), OTHERS).unwrap();
    let mut node = folders.node();
    for _ in 0..2 {
        fs::remove_file(folders.path("bin/mesh-cni")).unwrap();
        node.keep().unwrap();
        assert_eq!(fs::read_to_string(folders.path("bin/mesh-cni")).unwrap(), "the program");
    }
}

#[test]
fn who_leaves_leaves_a_node_that_works() {
    let folders = Folders::new();
    fs::write(folders.path("conf/10-own.conflist"), OTHERS).unwrap();
    let mut node = folders.node();
    node.keep().unwrap();
    // Another configuration has come before ours since.
    fs::rename(folders.path("conf/10-own.conflist"), folders.path("conf/30-own.conflist")).unwrap();
    fs::write(folders.path("conf/20-new.conflist"), OTHERS).unwrap();
    node.leave().unwrap();
    assert_eq!(folders.types("30-own.conflist"), ["bridge", "portmap"]);
    assert!(!folders.path("bin/mesh-cni").exists());
    node.leave().unwrap();
}

#[test]
fn without_the_program_nothing_refers_to_it() {
    let folders = Folders::new();
    fs::remove_file(folders.path("bin/mesh-cni")).unwrap();
    let error = Node::open(&folders.path("conf"), &folders.path("bin"), plugin()).err().unwrap();
    assert!(format!("{error:#}").contains("hint: the init container"), "{error:#}");
}

fn pod(uid: &str, args: Value, status: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "shop", "uid": uid },
        "spec": { "containers": [], "initContainers": [{ "name": "mesh-redirect", "args": args }] },
        "status": { "initContainerStatuses": [status] },
    }))
    .unwrap()
}

fn status(state: Value, last: Value) -> Value {
    json!({ "name": "mesh-redirect", "image": "", "imageID": "", "ready": false, "restartCount": 1, "state": state, "lastState": last })
}

#[test]
fn a_pods_own_step_says_what_it_needs() {
    let none = || status(json!({}), json!({}));
    let needs = |args: Value| answer::wanted(&pod("a", args, none()));
    assert_eq!(
        needs(json!(["redirect", "--check", "--proxy-uid", "2102"])),
        Some(vec!["--proxy-uid".into(), "2102".into()])
    );
    assert_eq!(needs(json!(["redirect", "--proxy-uid", "2102"])), None, "it sets the redirect itself");
    for other in [json!([]), json!(["redirect"]), json!(["run", "--check"]), Value::Null] {
        assert_eq!(needs(other.clone()), None, "{other}");
    }
    assert_eq!(answer::wanted(&Pod::default()), None);
}

#[test]
fn only_a_pod_whose_redirect_is_missing_is_made_anew() {
    let check = || json!(["redirect", "--check"]);
    let ended = |code: i32| json!({ "terminated": { "exitCode": code } });
    let waiting = || json!({ "waiting": { "reason": "CrashLoopBackOff" } });
    for (state, last, expect) in [
        (ended(69), json!({}), true),
        (waiting(), ended(69), true),
        (json!({ "running": {} }), ended(69), true),
        (ended(0), ended(69), false),
        (waiting(), ended(1), false),
        (waiting(), json!({}), false),
    ] {
        assert_eq!(lacks_redirect(&pod("a", check(), status(state.clone(), last.clone()))), expect, "{state} {last}");
    }
    assert!(!lacks_redirect(&pod("a", json!(["redirect"]), status(ended(69), json!({})))));
    let mut going = pod("a", check(), status(ended(69), json!({})));
    going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    assert!(!lacks_redirect(&going));
}

#[test]
fn each_is_repaired_once_and_what_recovers_is_not() {
    let broken = |uid: &str| {
        pod(uid, json!(["redirect", "--check"]), status(json!({ "terminated": { "exitCode": 69 } }), json!({})))
    };
    let well = pod("b", json!(["redirect", "--check"]), status(json!({ "terminated": { "exitCode": 0 } }), json!({})));
    let mut known = Broken::default();
    for pod in [broken("a"), broken("b"), broken("a"), well] {
        known.see(&pod);
    }
    assert_eq!(known.take().and_then(|pod| pod.metadata.uid).as_deref(), Some("a"));
    known.see(&broken("a"));
    assert_eq!(known.take(), None);
}

proptest! {
    /// Whatever stands in a list, it stands there again when the plugin has come and gone.
    #[test]
    fn coming_and_going_leaves_no_trace(
        names in proptest::collection::vec("[a-z]{1,6}", 1..5),
        extra in proptest::collection::btree_map("[a-z]{1,4}", any::<i64>(), 0..4),
    ) {
        let mut list = json!({ "cniVersion": "1.0.0", "name": "x", "extra": extra });
        list["plugins"] = names.iter().map(|name| json!({ "type": name, "x": extra })).collect();
        let there = with(&list.to_string(), &plugin()).unwrap().unwrap();
        let back: Value = serde_json::from_str(&without(&there).unwrap()).unwrap();
        prop_assert_eq!(back, list);
    }
}
