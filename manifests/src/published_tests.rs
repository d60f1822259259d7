//! What is printed and injected, held against the schemas that Kubernetes publishes of its oldest and newest releases that
//! the mesh supports.

use crate::config::{MeshConfig, NATIVE_SIDECAR_MINOR};
use crate::inject_text;
use crate::install::{LEAST_KUBERNETES_MINOR, render, to_yaml};
use crate::values::Values;
use std::io::Write;
use std::process::{Command, Stdio};

/// The newest release whose schemas were looked at.
const NEWEST_KUBERNETES_MINOR: u32 = 37;

/// Fails unless every object of `yaml` has the schema of this release, with no field that it does not know. Returns how
/// many objects there were.
fn hold(yaml: &str, minor: u32) -> Result<usize, String> {
    let mut child = Command::new("kubernetes-validate")
        .args(["--strict", "-k", &format!("1.{minor}"), "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubernetes-validate of PyPI is in PATH");
    child.stdin.take().unwrap().write_all(yaml.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let bad: Vec<&str> = said.lines().filter(|line| !line.starts_with("INFO ")).collect();
    // A kind without a schema is only warned of.
    if bad.is_empty() && output.status.success() { Ok(said.lines().count()) } else { Err(bad.join("\n")) }
}

#[test]
#[ignore = "needs kubernetes-validate of PyPI: cargo test -p mesh-manifests --lib -- --ignored"]
fn an_install_holds_to_the_published_schemas() {
    for sets in [
        &[][..],
        &["ha=true"],
        &["cni.enabled=true"],
        &["image_pull_secrets=a", "control.priority_class=system-cluster-critical"],
    ] {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let objects = render(&Values::from_sources(&[], &sets).unwrap()).unwrap();
        let yaml = to_yaml(&objects).unwrap();
        for minor in [LEAST_KUBERNETES_MINOR, NEWEST_KUBERNETES_MINOR] {
            assert_eq!(hold(&yaml, minor), Ok(objects.len()), "{sets:?} 1.{minor}");
        }
        let wrong = yaml.replacen("replicas:", "replicsa:", 1);
        assert!(hold(&wrong, NEWEST_KUBERNETES_MINOR).is_err_and(|why| why.contains("replicsa")));
    }
}

#[test]
#[ignore = "needs kubernetes-validate of PyPI: cargo test -p mesh-manifests --lib -- --ignored"]
fn injected_pods_hold_to_the_published_schemas() {
    let text = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      initContainers:
      - {name: first, image: some/first}
      containers:
      - {name: main, image: some/web, ports: [{containerPort: 80}]}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: once
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: main, image: some/job}
";
    for minor in [LEAST_KUBERNETES_MINOR, NATIVE_SIDECAR_MINOR, NEWEST_KUBERNETES_MINOR] {
        let config = MeshConfig::default().settled(Some(minor));
        let (mode, mut injected) = (inject_text::Mode::Manual(&config), Vec::new());
        inject_text::transform("web.yaml", text.as_bytes(), &mut injected, mode, &mut |_| {}).unwrap();
        let injected = String::from_utf8(injected).unwrap();
        assert_eq!(injected.matches("name: mesh-proxy").count(), 2, "{injected}");
        assert_eq!(hold(&injected, minor), Ok(2), "1.{minor}");
    }
}
