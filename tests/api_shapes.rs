//! A real `kubectl` against the API and its controllers: applying, comparing, rolling out, explaining.

#![allow(clippy::unwrap_used, reason = "a panic is how these bodies fail")]

use crate::api::{NEEDS, Shell, block_on, new};
use crate::harness::test;
use anyhow::Result;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api as Objects;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event};
use libtest_mimic::Trial;
use serde_json::json;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("api::kubectl_applies_and_rolls_out", &NEEDS, || block_on(kubectl_applies_and_rolls_out())),
        test("api::kubectl_applies_server_side", &NEEDS, || block_on(kubectl_applies_server_side())),
        test("api::kubectl_says_what_is_wrong", &NEEDS, || block_on(kubectl_says_what_is_wrong())),
        test("api::kubectl_knows_custom_kinds", &NEEDS, || block_on(kubectl_knows_custom_kinds())),
    ]
}

/// Controllers, and a node that only says that its pods run; they stop when the guard is dropped.
async fn start(client: kube::Client) -> DropGuard {
    let stop = CancellationToken::new();
    tokio::spawn(mesh_sandbox::controllers::run(client.clone(), "authority".to_owned(), stop.clone()));
    let node = json!({"metadata": {"name": "sandbox", "labels": {"kubernetes.io/hostname": "sandbox"}}});
    let node: Node = serde_json::from_value(node).unwrap();
    Objects::all(client.clone()).create(&PostParams::default(), &node).await.unwrap();
    tokio::spawn(stop.clone().run_until_cancelled_owned(run_pods(client)));
    stop.drop_guard()
}

async fn run_pods(client: kube::Client) {
    let mut events = watcher::watcher(Objects::<Pod>::all(client.clone()), watcher::Config::default()).boxed();
    let mut number = 0;
    while let Some(event) = events.next().await {
        let Ok(Event::Apply(pod) | Event::InitApply(pod)) = event else { continue };
        let pods: Objects<Pod> = Objects::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap());
        let name = pod.metadata.name.as_deref().unwrap();
        let has_ip = pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some());
        if pod.metadata.deletion_timestamp.is_some() {
            let _ = pods.delete(name, &DeleteParams { grace_period_seconds: Some(0), ..Default::default() }).await;
        } else if pod.spec.as_ref().unwrap().node_name.is_some() && !has_ip {
            number += 1;
            let ip = format!("10.244.1.{number}");
            let status = json!({"status": {
                "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            }});
            let _ = pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(&status)).await;
        }
    }
}

/// A Deployment and its Service.
fn web(replicas: &str, image: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, labels: {{app: web}}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
      - name: web
        image: {image}
        ports: [{{containerPort: 8080, name: http}}]
        readinessProbe: {{httpGet: {{port: http}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: http}}]}}
"#
    )
}

async fn given(shell: &Shell, line: &str, input: &str, expect: &str) {
    let printed = shell.run_with(line, input).await;
    assert!(printed.contains(expect), "kubectl {line}\nprinted: {printed}\nexpected: {expect}");
}

async fn kubectl_applies_and_rolls_out() -> Result<()> {
    let (api, client) = new();
    let shell = Shell::of(&api)?;
    let _guard = start(client).await;
    let (one, two) = (web("2", "web:1"), web("3", "web:2"));
    given(&shell, "apply -f -", &one, "deployment.apps/web created\nservice/web created").await;
    given(&shell, "apply -f -", &one, "deployment.apps/web unchanged\nservice/web unchanged").await;
    assert_eq!(shell.run_with("diff -f -", &one).await, "");
    given(&shell, "diff -f -", &two, "-      - image: web:1\n+      - image: web:2").await;
    shell.expect("rollout status deploy/web --timeout=20s", "successfully rolled out").await;
    shell.expect("get deploy web", "2/2     2            2").await;
    shell.expect("get pods -o wide", "10.244.1.1").await;
    shell.expect("get endpoints web", ":8080").await;
    given(&shell, "apply -f -", &two, "deployment.apps/web configured").await;
    shell.expect("rollout status deploy/web --timeout=20s", "successfully rolled out").await;
    shell.expect("rollout history deploy/web", "2         <none>").await;
    shell.expect("rollout undo deploy/web", "rolled back").await;
    shell.expect("rollout status deploy/web --timeout=20s", "successfully rolled out").await;
    shell.expect("get deploy web -o jsonpath={.spec.template.spec.containers[0].image}", "web:1").await;
    shell.expect("rollout restart deploy/web", "deployment.apps/web restarted").await;
    shell.expect("rollout status deploy/web --timeout=20s", "successfully rolled out").await;
    shell.expect("scale deploy/web --replicas=4", "deployment.apps/web scaled").await;
    shell.expect("wait --for=jsonpath={.status.readyReplicas}=4 deploy/web --timeout=20s", "condition met").await;
    let described = shell.run("describe deploy web").await;
    for expect in ["4 desired | 4 updated", "NewReplicaSetAvailable", "Scaled up replica set", "deployment-controller"]
    {
        assert!(described.contains(expect), "{described}");
    }
    shell.expect("set image deploy/web web=web:9", "image updated").await;
    shell.expect("delete deploy web --cascade=orphan", "deleted").await;
    given(&shell, "apply -f -", &one, "deployment.apps/web created").await;
    shell.expect("rollout status deploy/web --timeout=20s", "successfully rolled out").await;
    let sets = shell.run("get rs -o name").await;
    shell.expect("delete deploy web --cascade=foreground", "deleted").await;
    assert!(sets.lines().count() <= 4, "adopted, not made anew: {sets}");
    assert_eq!(shell.run("get rs,pods -o name").await, "");
    Ok(())
}

async fn kubectl_applies_server_side() -> Result<()> {
    let (api, client) = new();
    let shell = Shell::of(&api)?;
    let _guard = start(client).await;
    let version = "get deploy web -o jsonpath={.metadata.resourceVersion}";
    let (one, two) = (web("2", "web:1"), web("3", "web:1"));
    given(&shell, "apply --server-side -f -", &one, "deployment.apps/web serverside-applied").await;
    shell.expect("rollout status deploy/web --timeout=20s", "successfully rolled out").await;
    let before = shell.run(version).await;
    given(&shell, "apply --server-side -f -", &one, "deployment.apps/web serverside-applied").await;
    assert_eq!(shell.run(version).await, before, "a second apply changes nothing");
    assert_eq!(shell.run_with("diff --server-side -f -", &one).await, "");
    shell.expect("scale deploy/web --replicas=1", "scaled").await;
    let conflict = "conflict with \"kubectl\" with subresource \"scale\" using apps/v1: .spec.replicas";
    given(&shell, "apply --server-side -f -", &two, conflict).await;
    given(&shell, "apply --server-side --force-conflicts -f -", &two, "serverside-applied").await;
    shell.expect("get deploy web -o jsonpath={.spec.replicas}", "3").await;
    // From client-side apply to server-side apply and what was dropped on the way.
    let map = |data: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {{{data}}}\n");
    given(&shell, "apply -f -", &map("a: one, b: two"), "configmap/m created").await;
    given(&shell, "apply --server-side -f -", &map("a: three"), "configmap/m serverside-applied").await;
    assert_eq!(shell.run("get cm m -o jsonpath={.data}").await, "{\"a\":\"three\"}");
    let managers = "get cm m --show-managed-fields -o jsonpath={.metadata.managedFields[*].manager}";
    assert_eq!(shell.run(managers).await, "kubectl kubectl-last-applied");
    Ok(())
}

async fn kubectl_says_what_is_wrong() -> Result<()> {
    let (api, client) = new();
    let shell = Shell::of(&api)?;
    let _guard = start(client).await;
    let cases = [
        (web("two", "x"), "cannot unmarshal string into Go struct field Deployment.spec.replicas of type int32"),
        (web("-1", "x"), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        (web("1", "''"), "spec.template.spec.containers[0].image: Required value"),
        (web("1", "x").replace("replicas", "replicaz"), "strict decoding error: unknown field \"spec.replicaz\""),
        (
            web("1", "x").replace("8080", "80800"),
            "ports[0].containerPort: Invalid value: 80800: must be between 1 and 65535",
        ),
        (
            web("1", "x").replace("{matchLabels: {app: web}}", "{matchLabels: {app: x}}"),
            "`selector` does not match template",
        ),
    ];
    for (manifest, expect) in cases {
        given(&shell, "apply -f -", &manifest, expect).await;
    }
    let cases = [
        ("explain deployment", "DeploymentSpec"),
        ("explain pod.spec.containers.ports.containerPort", "FIELD: containerPort <integer>"),
        ("explain deploy --recursive", "maxUnavailable"),
        ("explain service.spec.ports.targetPort", "<IntOrString>"),
        ("explain deploy.spec.nothing", "field \"nothing\" does not exist"),
    ];
    for (line, expect) in cases {
        shell.expect(line, expect).await;
    }
    Ok(())
}

/// A kind of one's own, with everything a definition can say about it.
const WIDGETS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.io}
spec:
  group: example.io
  scope: Namespaced
  names: {plural: widgets, kind: Widget, shortNames: [wg]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.size, statusReplicasPath: .status.size}}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].status'}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, minimum: 1, description: How big.}
              mode: {type: string, enum: [fast, slow], default: fast}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
"#;

async fn kubectl_knows_custom_kinds() -> Result<()> {
    let (api, _) = new();
    let shell = Shell::of(&api)?;
    given(&shell, "apply -f -", WIDGETS, "widgets.example.io created").await;
    shell.expect("wait --for=condition=Established crd/widgets.example.io --timeout=10s", "condition met").await;
    given(&shell, "apply -f -", WIDGETS, "widgets.example.io unchanged").await;
    let widget = "apiVersion: example.io/v1\nkind: Widget\nmetadata: {name: w}\nspec: {size: 3}\n";
    given(&shell, "apply -f -", widget, "widget.example.io/w created").await;
    given(&shell, "apply -f -", widget, "widget.example.io/w unchanged").await;
    shell.expect("get wg w -o jsonpath={.spec.mode}", "fast").await;
    shell.expect("explain widget.spec.size", "How big.").await;
    let ready = r#"patch wg w --subresource=status --type=merge -p {"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#;
    shell.expect(ready, "patched").await;
    shell.expect("get wg", "w      3      True").await;
    shell.expect("scale wg w --replicas=5", "scaled").await;
    shell.expect("get wg", "w      5      True").await;
    shell.expect(r#"patch wg w --type=merge -p {"spec":{"size":0}}"#, "should be greater than or equal to 1").await;
    let unknown = widget.replace("size: 3", "size: 3, colour: red");
    given(&shell, "apply -f -", &unknown, "unknown field \"spec.colour\"").await;
    given(&shell, "apply --validate=false -f -", &unknown, "widget.example.io/w configured").await;
    Ok(())
}
