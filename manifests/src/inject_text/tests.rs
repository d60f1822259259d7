//! Every form of YAML that is edited, there and back; what is refused, and where.

use super::*;
use serde_json::{Value, json};

fn run(mode: Mode<'_>, text: &str) -> Result<(String, Vec<Report>), String> {
    let (mut out, mut reports) = (Vec::new(), Vec::new());
    transform("test.yaml", text.as_bytes(), &mut out, mode, &mut |r| reports.push(r)).map_err(|e| e.to_string())?;
    Ok((String::from_utf8(out).unwrap(), reports))
}

fn manual() -> MeshConfig {
    let trust_anchors_pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".to_owned();
    MeshConfig { trust_anchors_pem, version: "0.1.0".to_owned(), ..MeshConfig::default() }
}

/// Injects in both ways, checks that it can be done once only and undone to the byte; gives the annotated text.
fn there_and_back(text: &str) -> String {
    let config = manual();
    let private = MeshConfig { image_pull_secrets: vec!["x".to_owned(), "registry".to_owned()], ..manual() };
    let (old, old_private) = (config.clone().settled(Some(28)), private.clone().settled(Some(28)));
    let mut annotated = String::new();
    for mode in [&private, &config, &old_private, &old].map(Mode::Manual).into_iter().chain([Mode::Annotate]) {
        let (injected, reports) = run(mode, text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert!(reports.iter().any(|r| r.outcome == Outcome::Injected), "{reports:?}\n{text}");
        let (again, _) = run(mode, &injected).unwrap_or_else(|e| panic!("{e}\n{injected}"));
        assert_eq!(again, injected, "injected twice");
        let (back, _) = run(Mode::Uninject, &injected).unwrap_or_else(|e| panic!("{e}\n{injected}"));
        assert_eq!(back, text, "not undone from:\n{injected}");
        annotated = injected;
    }
    annotated
}

const SPEC: &str = "    spec:\n      containers:\n      - name: web\n        image: web:1\n";

fn deployment(template: &str) -> String {
    format!("apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  template:\n{template}{SPEC}")
}

#[test]
fn blocks_with_and_without_annotations() {
    for (template, expect) in [
        (
            "    metadata:\n      labels: {app: web}\n",
            "    metadata:\n      annotations:\n        meshctl.dev/inject: enabled\n      labels: {app: web}\n",
        ),
        (
            "    metadata: # why\n      # labels\n      labels:\n        app: web\n",
            "    metadata: # why\n      annotations:\n        meshctl.dev/inject: enabled\n      # labels\n      labels:\n        app: web\n",
        ),
        (
            "    metadata:\n      annotations:\n        a: b # keep\n\n        c: d\n",
            "    metadata:\n      annotations:\n        meshctl.dev/inject: enabled\n        a: b # keep\n\n        c: d\n",
        ),
        ("    metadata:\n      annotations: {}\n", "    metadata:\n      annotations: {meshctl.dev/inject: enabled}\n"),
        (
            "    metadata:\n      annotations: { a: b }\n",
            "    metadata:\n      annotations: {meshctl.dev/inject: enabled,  a: b }\n",
        ),
        (
            "    metadata:\n      annotations: # none\n      labels: {}\n",
            "    metadata:\n      annotations: # none\n          meshctl.dev/inject: enabled\n      labels: {}\n",
        ),
        (
            "    metadata:\n      annotations: ~\n",
            "    metadata:\n      annotations: {  meshctl.dev/inject: enabled  }\n",
        ),
        ("    metadata:\n", "    metadata:\n        annotations:\n          meshctl.dev/inject: enabled\n"),
        ("    metadata: null\n", "    metadata: {   annotations: { meshctl.dev/inject: enabled }   }\n"),
        ("    metadata: {}\n", "    metadata: {annotations: { meshctl.dev/inject: enabled }}\n"),
        ("", "    metadata:\n      annotations:\n        meshctl.dev/inject: enabled\n"),
        (
            "    # nothing yet\n\n",
            "    # nothing yet\n\n    metadata:\n      annotations:\n        meshctl.dev/inject: enabled\n",
        ),
    ] {
        assert_eq!(there_and_back(&deployment(template)), deployment(expect), "{template}");
    }
}

#[test]
fn other_forms_go_there_and_back() {
    let block = deployment("    metadata:\n      annotations:\n        a: b\n");
    for text in [
        block.replace('\n', "\r\n"),
        format!("\u{feff}{block}"),
        block.trim_end().to_owned(),
        deployment("    metadata:\n      annotations:").replace(SPEC, "\n    spec: {containers: []}"),
        format!("---\n# one\n{block}---\n# two\n{block}...\n"),
        format!("{block}      initContainers:\n      # first\n      - name: a\n      volumes:\n      - name: v\n"),
        format!("{block}      initContainers: []\n      volumes: [ ]\n"),
        format!("{block}      # before\n      initContainers:\n      - name: a\n        args:\n        - |\n          one\n\n          two\n      # behind\n      dnsPolicy: Default\n"),
        format!("{block}      initContainers:\n      - {{name: a}}\n      - name: b # last"),
        format!("{block}      initContainers: [{{name: a}}, {{name: b}} ]\n"),
        format!("{block}      initContainers: [\n        {{name: a}}, # one\n        {{name: b}}, # two\n      ]\n"),
        format!("{block}      initContainers:\n        - name: a\n\n\n      volumes: []\n"),
        format!("{block}      initContainers:\n      volumes: ~\n"),
        format!("{block}      initContainers: null\n      volumes: [{{name: v}}]\n"),
        format!("{block}      initContainers:\n          - name: a\n            image: b\n      volumes:\n        -   name: v\n"),
        format!("{block}      hostAliases:\n      - ip: 10.0.0.1\n"),
        "kind: Pod\napiVersion: v1\nspec:\n  containers: []\n".to_owned(),
        "# only a pod\nkind: Pod\napiVersion: v1\nmetadata:\n  name: a\nspec:\n  containers: []".to_owned(),
        "apiVersion: v1\nkind: List\nitems:\n- kind: Pod\n  apiVersion: v1\n  spec: {}\n\
         - apiVersion: v1\n  kind: Pod\n  metadata: {name: b}\n  spec: {containers: []}\n"
            .to_owned(),
        "apiVersion: v1\nkind: List\nitems:\n  - spec:\n      containers: []\n    kind: Pod\n    apiVersion: v1\n".to_owned(),
        "{apiVersion: apps/v1, kind: DaemonSet, spec: {template: {spec: {containers: []}}}}".to_owned(),
        "apiVersion: batch/v1\nkind: CronJob\nspec:\n  jobTemplate:\n    spec:\n      template:\n        spec:\n          containers: []\n"
            .to_owned(),
        "'apiVersion': \"v1\"\n\"kind\": 'Pod'\n\"metadata\":\n  'annotations':\n    \"x\": y\n\"spec\": {}\n".to_owned(),
    ] {
        there_and_back(&text);
    }
}

#[test]
fn json_stays_json() {
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "spec": { "containers": [{ "name": "a" }] } });
    for metadata in [
        json!(null),
        json!({}),
        json!({ "name": "a" }),
        json!({ "annotations": null }),
        json!({ "annotations": {} }),
        json!({ "annotations": { "a": "b" }, "name": "a" }),
    ] {
        let mut pod = pod.clone();
        pod["metadata"] = metadata;
        for text in [pod.to_string(), serde_json::to_string_pretty(&pod).unwrap() + "\n"] {
            let out: Value = serde_json::from_str(&there_and_back(&text)).unwrap();
            assert_eq!(out["metadata"]["annotations"]["meshctl.dev/inject"], "enabled");
        }
    }
    there_and_back(&pod.to_string());
}

#[test]
fn the_full_sidecar_reads_as_the_injected_pod() {
    let text = "# a pod\napiVersion: v1\nkind: Pod\nmetadata:\n  name: web # the name\nspec:\n  containers:\n  - name: web\n    image: \"web:1\"\n";
    let (out, _) = run(Mode::Manual(&manual()), text).unwrap();
    insta::assert_snapshot!(out);
    let mut pod: Value = serde_saphyr::from_str(text).unwrap();
    pod["metadata"]["annotations"] = json!({ "meshctl.dev/inject": "enabled" });
    let crate::inject::Decision::Inject(mut decided) = crate::inject::decide(&pod, &Value::Null, &manual()) else {
        panic!("not injected");
    };
    decided["metadata"]["annotations"].as_object_mut().unwrap().shift_remove("meshctl.dev/inject");
    assert_eq!(serde_saphyr::from_str::<Value>(&out).unwrap(), decided);
}

#[test]
fn what_has_no_pods_is_passed_on_untouched() {
    let text = "# nothing\n---\n---\napiVersion: v1\nkind: Service # c\nmetadata: {name: a}\n---\n\
                kind: Strange\nspec: !secret [1, *x]\n"
        .replace("[1, *x]", "[1, 0x1F, 'a']");
    let (out, reports) = run(Mode::Annotate, &text).unwrap();
    assert_eq!(out, text);
    let seen: Vec<_> = reports.iter().map(|r| (r.document, r.line, r.kind.as_str(), &r.outcome)).collect();
    assert_eq!(seen, [(2, 4, "Service", &Outcome::NoPods), (3, 8, "Strange", &Outcome::NoPods)]);
}

#[test]
fn skipped_workloads_have_a_reason() {
    let pod = |metadata: &str, spec: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a, {metadata}}}\nspec: {{{spec}}}\n")
    };
    for (text, expect) in [
        (pod("annotations: {meshctl.dev/inject: enabled}", ""), "it asks for a proxy already"),
        (pod("annotations: {meshctl.dev/inject: disabled}", ""), "the pod says meshctl.dev/inject: disabled"),
        (pod("labels: {meshctl.dev/inject: disabled}", ""), "the pod says meshctl.dev/inject: disabled"),
        ("apiVersion: v1\nkind: Pod\nspec: ~\n".to_owned(), "it has no containers"),
        (pod("", "hostNetwork: true"), "it uses the host's network"),
        (pod("", "initContainers: [{name: mesh-proxy}]"), "it has a proxy already"),
        (pod("labels: &l {a: b}, annotations: *l", ""), "its metadata.annotations is a reference"),
        (pod("annotations: &l {a: b}, labels: *l", ""), "shared with other objects by a YAML anchor"),
    ] {
        let (out, reports) = run(Mode::Annotate, &text).unwrap();
        assert_eq!(out, text);
        let Outcome::Skipped(why) = &reports[0].outcome else { panic!("{reports:?}") };
        assert!(why.contains(expect), "{why}");
    }
    let (_, reports) = run(Mode::Uninject, &pod("", "")).unwrap();
    assert_eq!(reports[0].outcome, Outcome::Skipped("it has neither a proxy nor asks for one".to_owned()));
}

#[test]
fn uninject_also_takes_out_what_others_wrote() {
    for (template, expect) in [
        (
            "    metadata:\n      annotations:\n        a: b\n        \"meshctl.dev/inject\": \"enabled\"\n        c: d\n",
            "    metadata:\n      annotations:\n        a: b\n        c: d\n",
        ),
        (
            "    metadata:\n      annotations: {a: b, meshctl.dev/inject: enabled}\n",
            "    metadata:\n      annotations: {a: b}\n",
        ),
        (
            "    metadata:\n      labels: {a: b}\n      annotations:\n        meshctl.dev/inject: enabled\n",
            "    metadata:\n      labels: {a: b}\n",
        ),
    ] {
        assert_eq!(run(Mode::Uninject, &deployment(template)).unwrap().0, deployment(expect));
    }
    // Both ways at once.
    let (annotated, _) = run(Mode::Annotate, &deployment("")).unwrap();
    let (both, _) = run(Mode::Manual(&manual()), &annotated).unwrap();
    assert_eq!(run(Mode::Uninject, &both).unwrap().0, deployment(""));
}

#[test]
fn mistakes_are_placed_and_nothing_is_written() {
    let good = deployment("");
    for (text, expect) in [
        (
            format!("{good}---\n- a\n- b\n"),
            "test.yaml: document 2, line 12: expected a Kubernetes object (a map with apiVersion and kind), found a list",
        ),
        (
            "hello\n".to_owned(),
            "test.yaml: document 1, line 1: expected a Kubernetes object (a map with apiVersion and kind), found a single value",
        ),
        (format!("{good}---\na: [1, 2\n---\nb: 1\n"), "test.yaml: document 2, line 1"),
        ("a: 1\nb:\n\t- c\n".to_owned(), "test.yaml: document 1, line 3: expected YAML: "),
        ("a: b: c\n".to_owned(), "test.yaml: document 1, line 1: expected YAML: "),
        (good.replace("image: web:1", "image: web:1\n        image: web:2"), "document 1, line "),
        (
            deployment("    metadata: {annotations: {meshctl.dev/inject: sure}}\n"),
            "document 1, line 1: Deployment/web: meshctl.dev/inject: `sure` on the pod is not allowed: write `enabled` or `disabled`",
        ),
        (deployment("    metadata: {annotations: {meshctl.dev/opaque-ports: x}}\n"), "`x` is not a port"),
        ("a: ".repeat(3) + &"[".repeat(200), "expected"),
    ] {
        let mut out = Vec::new();
        let input = std::io::Cursor::new(text.clone());
        let error = transform_checked("test.yaml", input, &mut out, Mode::Annotate, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains(expect), "{error}\n{text}");
        assert!(out.is_empty());
    }
}

#[test]
fn a_checked_stream_is_written_whole() {
    let (mut out, mut count) = (Vec::new(), 0);
    let text = deployment("") + "---\n" + &deployment("");
    transform_checked("x", std::io::Cursor::new(&text), &mut out, Mode::Annotate, &mut |_| count += 1).unwrap();
    assert_eq!((String::from_utf8(out).unwrap(), count), (run(Mode::Annotate, &text).unwrap().0, 2));
}

#[test]
fn what_is_read_is_written_before_more_is_read() {
    use std::cell::Cell;
    /// Reads the same document over and over, and knows how far the writer is behind.
    struct Endless<'c> {
        document: &'c [u8],
        left: usize,
        at: usize,
        ahead: &'c Cell<usize>,
        most: &'c Cell<usize>,
    }
    impl Read for Endless<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.at == self.document.len() {
                (self.at, self.left) = (0, self.left.saturating_sub(1));
            }
            if self.left == 0 {
                return Ok(0);
            }
            let count = buffer.len().min(self.document.len() - self.at);
            buffer[..count].copy_from_slice(&self.document[self.at..self.at + count]);
            self.at += count;
            self.ahead.set(self.ahead.get() + count);
            self.most.set(self.most.get().max(self.ahead.get()));
            Ok(count)
        }
    }
    struct Counted<'c>(&'c Cell<usize>, usize);
    impl Write for Counted<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            // Injected text is longer than what was read.
            self.0.set(self.0.get().saturating_sub(bytes.len()));
            self.1 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let document = format!("---\n{}", deployment(""));
    let (ahead, most) = (Cell::new(0), Cell::new(0));
    let input = Endless { document: document.as_bytes(), left: 2000, at: 0, ahead: &ahead, most: &most };
    let mut output = Counted(&ahead, 0);
    let mut count = 0;
    transform("endless", input, &mut output, Mode::Annotate, &mut |_| count += 1).unwrap();
    assert_eq!(count, 2000);
    assert!(output.1 > 2000 * document.len());
    assert!(most.get() < 64 * 1024, "{} bytes were held back", most.get());
}

#[test]
fn a_long_list_and_json_with_tabs_are_handled() {
    let item = "- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n  spec: {containers: [{name: a, image: b}]}\n";
    let list = format!("apiVersion: v1\nkind: List\nitems:\n{}", item.repeat(3000));
    let (out, reports) = run(Mode::Annotate, &list).unwrap();
    assert_eq!(reports.iter().filter(|r| r.outcome == Outcome::Injected).count(), 3000);
    assert_eq!(run(Mode::Uninject, &out).unwrap().0, list);
    there_and_back(
        "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\",\n\t\"spec\": {\n\t\t\"containers\": []\n\t}\n}\n",
    );
}

/// Manifests as people and programs write them.
fn corpus() -> Vec<(String, String)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 6, "{files:?}");
    files.into_iter().map(|path| (path.display().to_string(), std::fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn files_of_the_corpus_go_there_and_back() {
    for (file, text) in corpus() {
        let annotated = there_and_back(&text);
        // What is no template of pods is passed on as it is, and comments stay.
        for line in text.lines().filter(|line| line.contains('#')) {
            assert!(annotated.contains(line), "{file}: lost `{line}`");
        }
    }
}

#[test]
fn ten_thousand_lines_go_there_and_back() {
    let files: Vec<String> =
        corpus().into_iter().filter(|(file, _)| file.ends_with(".yaml")).map(|(_, text)| text).collect();
    let mut text = String::new();
    let mut lines = 0;
    while lines < 10_000 {
        for file in &files {
            text.push_str(file.trim_end());
            text.push_str("\n---\n");
            lines += file.lines().count() + 1;
        }
    }
    there_and_back(&text);
}

mod any_form {
    use super::*;
    use proptest::prelude::*;

    /// A map's value for `annotations` or `metadata`, in some form, as it would stand behind its key.
    fn annotations(indent: usize) -> impl Strategy<Value = String> {
        let pad = " ".repeat(indent);
        prop_oneof![
            Just(String::new()),
            Just(" # why".to_owned()),
            prop_oneof![Just(" ~"), Just(" null"), Just(" Null"), Just(" NULL"), Just(" {}"), Just(" {  }")]
                .prop_map(str::to_owned),
            Just(" { a: b }".to_owned()),
            Just(" {a: b, 'c d': \"e\"} # why".to_owned()),
            Just(format!("\n{pad}a: b")),
            Just(format!("\n\n  # deep\n{pad}a: |\n{pad}  text\n{pad}   more\n{pad}c: 'd' # why")),
            Just(format!("\n{pad}\"a\": >-\n{pad} folded")),
        ]
    }

    fn list(indent: usize) -> impl Strategy<Value = Option<String>> {
        let pad = " ".repeat(indent);
        prop_oneof![
            Just(None),
            prop_oneof![Just(""), Just(" ~"), Just(" []"), Just(" [ ]"), Just(" [{name: x}, {name: y}]")]
                .prop_map(|s| Some(s.to_owned())),
            Just(Some(format!("\n{pad}- name: x # why\n{pad}- {{name: y}}"))),
            Just(Some(format!("\n{pad}  # above\n{pad}  -   name: x\n{pad}      command: [a]"))),
        ]
    }

    prop_compose! {
        fn template(step: usize)(
            metadata in prop_oneof![
                Just(None),
                annotations(4 * step).prop_map(Some),
                annotations(5 * step).prop_map(move |a| Some(format!("\n{}annotations:{a}", " ".repeat(4 * step)))),
                annotations(5 * step).prop_map(move |a| {
                    let pad = " ".repeat(4 * step);
                    Some(format!("\n{pad}labels: {{}}\n\n{pad}# about\n{pad}annotations:{a}\n{pad}name: x"))
                }),
            ],
            init in list(4 * step),
            volumes in list(4 * step),
            secrets in list(4 * step),
            spec_first in any::<bool>(),
            gap in prop_oneof![Just(""), Just("\n"), Just("    # gap\n")],
            last in any::<bool>(),
            windows in any::<bool>(),
        ) -> String {
            let (three, four) = (" ".repeat(3 * step), " ".repeat(4 * step));
            let metadata = metadata.map(|m| format!("{three}metadata:{m}\n")).unwrap_or_default();
            let field = |key: &str, list: Option<String>| list.map(|l| format!("{four}{key}:{l}\n")).unwrap_or_default();
            let spec = format!(
                "{three}spec:\n{}{four}containers:\n{four}- name: web\n{}{}",
                field("initContainers", init),
                field("volumes", volumes),
                field("imagePullSecrets", secrets),
            );
            let body = if spec_first { spec + gap + &metadata } else { metadata + gap + &spec };
            let (one, two) = (" ".repeat(step), " ".repeat(2 * step));
            let mut text = format!("apiVersion: apps/v1\nkind: Deployment\nspec:\n{one}x: y\n{one}template:\n{gap}{two}{}", "");
            text.truncate(text.len() - two.len());
            // The template's keys stand 3 steps deep; 2 would do as well.
            text.push_str(&body);
            if last {
                text.truncate(text.trim_end().len());
            }
            if windows { text.replace('\n', "\r\n") } else { text }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn any_deployment_goes_there_and_back(text in prop_oneof![template(1), template(2), template(4)]) {
            prop_assume!(serde_saphyr::from_str::<Value>(&text).is_ok());
            there_and_back(&text);
        }

        #[test]
        fn any_text_is_answered(text in "[-a-z:{}\\[\\],&*!|>'\"%@# \n\t\r.~?]{0,60}") {
            let _ = run(Mode::Annotate, &text);
            let _ = run(Mode::Uninject, &text);
            let _ = run(Mode::Annotate, &format!("apiVersion: v1\nkind: Pod\nspec: {{}}\nmetadata: {text}"));
            let _ = run(Mode::Uninject, &format!("apiVersion: v1\nkind: Pod\nmetadata:\n  annotations: {text}"));
        }

        #[test]
        fn any_json_pod_goes_there_and_back(
            name in "[ -~]{0,8}",
            annotations in proptest::option::of(proptest::collection::btree_map("[a-z./]{1,6}", "[ -~]{0,8}", 0..3)),
            pretty in any::<bool>(),
        ) {
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": name, "annotations": annotations },
                "spec": { "containers": [] },
            });
            let text = if pretty { serde_json::to_string_pretty(&pod).unwrap() } else { pod.to_string() };
            there_and_back(&text);
        }
    }
}
