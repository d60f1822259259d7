//! A real `kubectl` against the sandbox's API alone, in this process: what users type, and what they expect to read.

#![allow(clippy::unwrap_used, reason = "a panic is how these bodies fail")]

use crate::harness::{Need, find_program, test};
use anyhow::{Context, Result};
use libtest_mimic::Trial;
use mesh_sandbox::api::{Api, Config};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What every test here needs.
pub(crate) const NEEDS: [Need; 1] = [Need::Program("kubectl")];

pub(crate) fn tests() -> Vec<Trial> {
    vec![test("api::kubectl_feels_at_home", &NEEDS, || block_on(kubectl_feels_at_home()))]
}

/// Runs a test's body to its end.
pub(crate) fn block_on(body: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(body)
}

/// An API of one's own, in this process.
pub(crate) fn new() -> (Api, kube::Client) {
    let api = Api::new(Config::default()).unwrap();
    let client = api.client();
    (api, client)
}

pub(crate) struct Shell {
    program: PathBuf,
    folder: tempfile::TempDir,
}

impl Shell {
    /// A shell for this cluster's administrator. The API is served until the runtime ends.
    pub(crate) fn of(api: &Api) -> Result<Self> {
        let program = find_program("kubectl").context("kubectl is not installed")?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        tokio::spawn(api.serve(listener)?);
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("config"), api.kubeconfig(address, "sandbox"))?;
        Ok(Self { program, folder })
    }

    /// Runs a command line; returns what it printed, standard error after standard output.
    pub(crate) async fn run(&self, line: &str) -> String {
        self.run_with(line, "").await
    }

    /// As [`Self::run`], with something on standard input.
    pub(crate) async fn run_with(&self, line: &str, input: &str) -> String {
        let file = self.path("input.yaml");
        std::fs::write(&file, input).unwrap();
        let mut command = tokio::process::Command::new(&self.program);
        command.env("KUBECONFIG", self.path("config")).env("HOME", self.folder.path()).kill_on_drop(true);
        command.args(line.split_whitespace()).stdin(std::fs::File::open(file).unwrap());
        let output = tokio::time::timeout(Duration::from_secs(30), command.output()).await.unwrap().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::join(self.folder.path(), name)
    }

    pub(crate) async fn expect(&self, line: &str, expect: &str) {
        let printed = self.run(line).await;
        assert!(printed.contains(expect), "kubectl {line}\nprinted: {printed}\nexpected: {expect}");
    }
}

async fn kubectl_feels_at_home() -> Result<()> {
    let (api, _) = new();
    let shell = Shell::of(&api)?;
    let cases = [
        ("version", "Server Version: v1.34.0+meshctl"),
        ("api-resources -o name", "deployments.apps"),
        ("api-versions", "rbac.authorization.k8s.io/v1"),
        ("get ns -o name", "namespace/kube-system"),
        ("create ns shop", "namespace/shop created"),
        ("create configmap a --from-literal=k=v -n shop", "configmap/a created"),
        ("create configmap a -n shop", "configmaps \"a\" already exists"),
        ("create configmap a -n nowhere", "namespaces \"nowhere\" not found"),
        ("get cm a -n shop -o yaml", "k: v"),
        ("get cm a -n shop -o json", "\"k\": \"v\""),
        ("get cm -n shop -o jsonpath={.items[*].data.k}", "v"),
        ("get cm -n shop -o custom-columns=NAME:.metadata.name", "NAME\na"),
        ("get cm a -n shop", "NAME   DATA   AGE\na      1 "),
        ("get ns shop -o wide", "shop   Active"),
        ("label cm a x=y -n shop", "configmap/a labeled"),
        ("describe cm a -n shop", "Name:         a"),
        ("explain configmap.data", "Data contains the configuration data"),
        ("get cm nope -n shop", "Error from server (NotFound): configmaps \"nope\" not found"),
        ("get foos", "error: the server doesn't have a resource type \"foos\""),
        ("get cm -n shop -l x=y -o name", "configmap/a"),
        ("get cm -n shop --field-selector metadata.name=a -o name", "configmap/a"),
        ("create serviceaccount web -n shop", "serviceaccount/web created"),
        ("create token web -n shop", "ey"),
        ("auth whoami", "kubernetes-admin"),
        ("auth can-i delete pods", "yes"),
        ("auth can-i list pods -n shop --as system:serviceaccount:shop:web", "no"),
        (
            "get pods -n shop --as system:serviceaccount:shop:web",
            "Error from server (Forbidden): pods is forbidden: User \"system:serviceaccount:shop:web\" cannot list resource \"pods\" in API group \"\" in the namespace \"shop\"",
        ),
        (
            "create rolebinding r --clusterrole view --serviceaccount shop:web -n shop",
            "rolebinding.rbac.authorization.k8s.io/r created",
        ),
        ("auth can-i list pods -n shop --as system:serviceaccount:shop:web", "yes"),
        ("auth can-i --list -n shop --as system:serviceaccount:shop:web", "configmaps"),
        ("create deployment web --image=x --replicas=2 -n shop", "deployment.apps/web created"),
        ("get deploy web -n shop -o jsonpath={.spec.template.spec.containers[0].image}", "x"),
        ("create service clusterip web --tcp=80:8080 -n shop", "service/web created"),
        ("get svc web -n shop -o jsonpath={.spec.ports[0].targetPort}/{.spec.clusterIP}", "8080/10."),
        ("delete deploy web -n shop", "deployment.apps \"web\" deleted"),
        ("delete cm a -n shop --dry-run=server", "configmap \"a\" deleted"),
        ("delete cm a -n shop", "configmap \"a\" deleted"),
        (
            "delete ns kube-system",
            "Error from server (Forbidden): namespaces \"kube-system\" is forbidden: this namespace may not be deleted",
        ),
        ("get --raw /readyz", "ok"),
    ];
    for (line, expect) in cases {
        shell.expect(line, expect).await;
    }
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nspec: {serviceAccountName: gone, containers: [{name: c, image: i}]}\n";
    let printed = shell.run_with("create --validate=false -f -", pod).await;
    assert!(
        printed.contains("error looking up service account shop/gone: serviceaccount \"gone\" not found"),
        "{printed}"
    );
    Ok(())
}
