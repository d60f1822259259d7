//! `meshctl explain`: why a request, a pod or an error is as it is, step by step.
//!
//! Nothing is decided here: the injector's, the control plane's and the proxy's own pure deciders are run on what the
//! API shows, and what they say is told in order.

use super::explain_request;
use super::explain_route::Considered;
use crate::args::{Explain, ExplainError, ExplainPod, ExplainWhat, Global, TextFormat};
use crate::check::INJECTOR;
use crate::cluster::Cluster;
use crate::error::{Context, Error, Hint, Outcome, Result};
use crate::output::{Printer, words};
use crate::shown::mesh_config;
use comfy_table::Cell;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use mesh_api::MeshError;
use mesh_api::names::{INJECT, PROXY_CONTAINER, PROXY_VERSION};
use mesh_manifests::config::MeshConfig;
use mesh_manifests::inject::{Plan, Skip, plan};
use mesh_manifests::nearest::nearest;
use mesh_manifests::settings::{Holder, Sources, Wish, wish};
use serde::Serialize;
use serde_json::{Value, json};

/// One step of an explanation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Step {
    /// What was asked at this step.
    pub step: &'static str,
    /// False if things end here.
    pub goes_on: bool,
    /// What was found.
    pub says: String,
}

/// Steps and what they come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Explanation {
    /// What is explained.
    pub subject: String,
    /// In order.
    pub steps: Vec<Step>,
    /// Conditions of routes, in order of precedence.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Considered>,
    /// What it comes to.
    pub verdict: String,
    /// What to do, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Explanation {
    pub(super) fn of(subject: String) -> Self {
        Self { subject, steps: Vec::new(), routes: Vec::new(), verdict: String::new(), hint: None }
    }

    /// Adds a step after which things go on.
    pub(super) fn step(&mut self, step: &'static str, says: impl Into<String>) {
        self.steps.push(Step { step, goes_on: true, says: says.into() });
    }

    /// Adds the step at which things end.
    pub(super) fn end(mut self, step: &'static str, says: impl Into<String>, verdict: &str, hint: &str) -> Self {
        self.steps.push(Step { step, goes_on: false, says: says.into() });
        self.verdict(verdict, hint)
    }

    /// Closes with what it comes to.
    pub(super) fn verdict(mut self, verdict: impl Into<String>, hint: &str) -> Self {
        self.verdict = verdict.into();
        self.hint = (!hint.is_empty()).then(|| hint.to_owned());
        self
    }

    fn text(&self) -> String {
        let width = self.steps.iter().map(|step| step.step.len()).max().unwrap_or_default();
        let mut text = format!("{}\n\n", self.subject);
        for step in &self.steps {
            let mark = if step.goes_on { "✓" } else { "✗" };
            let says = step.says.replace('\n', &format!("\n  {:width$}  ", ""));
            text.push_str(&format!("{mark} {:width$}  {says}\n", step.step));
        }
        text.push_str(&format!("\n→ {}\n", self.verdict));
        text
    }

    fn print(&self, output: TextFormat, printer: &Printer) -> Result<Outcome> {
        match output {
            TextFormat::Json => printer.json(self)?,
            TextFormat::Table => {
                printer.data(&self.text())?;
                if let Some(hint) = &self.hint {
                    printer.hint(hint);
                }
            }
        }
        Ok(Outcome::Well)
    }
}

/// Explains.
pub async fn run(global: &Global, args: &Explain, printer: &Printer) -> Result<Outcome> {
    match &args.what {
        ExplainWhat::Error(args) => error(args, printer),
        ExplainWhat::Pod(args) => {
            let cluster = Cluster::connect(global).await?;
            pod(&cluster, args).await?.print(args.output, printer)
        }
        ExplainWhat::Request(args) => {
            let cluster = Cluster::connect(global).await?;
            explain_request::run(&cluster, args).await?.print(args.output, printer)
        }
    }
}

fn error(args: &ExplainError, printer: &Printer) -> Result<Outcome> {
    let Some(code) = &args.code else {
        let all: Vec<Value> = MeshError::ALL.iter().map(|error| described(*error)).collect();
        match args.output {
            TextFormat::Json => printer.json(&all)?,
            TextFormat::Table => printer.table(
                &[words("CODE"), words("HTTP"), words("GRPC"), words("CAUSE")],
                MeshError::ALL
                    .iter()
                    .map(|error| {
                        let status = [error.http_status(), error.grpc_status()].map(Cell::new);
                        let [http, grpc] = status;
                        vec![Cell::new(error.code()), http, grpc, Cell::new(error.cause())]
                    })
                    .collect(),
            )?,
        }
        return Ok(Outcome::Well);
    };
    let Some(error) = MeshError::ALL.iter().find(|error| error.code() == code) else {
        let codes: Vec<&str> = MeshError::ALL.iter().map(|error| error.code()).collect();
        let error = Error::new(format!("`{code}` is no code of the mesh"));
        return Err(match nearest(code, codes.iter().copied()) {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error.hint(format!("there are: {}", codes.join(", "))),
        });
    };
    match args.output {
        TextFormat::Json => printer.json(&described(*error))?,
        TextFormat::Table => printer.data(&format!(
            "{}\n\ncause   {}.\ncure    {}.\nstatus  HTTP {}, gRPC {}\n",
            error.code(),
            error.cause(),
            error.cure(),
            error.http_status(),
            error.grpc_status()
        ))?,
    }
    Ok(Outcome::Well)
}

fn described(error: MeshError) -> Value {
    json!({"code": error.code(), "cause": error.cause(), "cure": error.cure(),
        "http_status": error.http_status(), "grpc_status": error.grpc_status()})
}

async fn pod(cluster: &Cluster, args: &ExplainPod) -> Result<Explanation> {
    let namespace = args.namespace.as_deref().unwrap_or(&cluster.namespace);
    let name = args.pod.strip_prefix("pod/").or(args.pod.strip_prefix("po/")).unwrap_or(&args.pod);
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let pod = pods.get(name).await.during(|| format!("read pod {name} in {namespace}"));
    let pod = pod.hint(|| format!("kubectl -n {namespace} get pods lists them"))?;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = namespaces.get(namespace).await.during(|| format!("read namespace {namespace}"))?;
    let hooks: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let hook = hooks.get_opt(INJECTOR).await.during(|| format!("read webhook configuration {INJECTOR}"))?;
    let config = mesh_config(cluster).await?;
    let value = |object: serde_json::Result<Value>| object.during(|| "understand the cluster's answer");
    let (pod, namespace) = (value(serde_json::to_value(pod))?, value(serde_json::to_value(namespace))?);
    Ok(judge_pod(&pod, &namespace, hook.is_some(), config.as_ref()))
}

/// Why a pod has a proxy or has none; `webhook`: there is an injector.
fn judge_pod(pod: &Value, namespace: &Value, webhook: bool, config: Option<&MeshConfig>) -> Explanation {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (name, of) = (text(&pod["metadata"]["name"]), text(&pod["metadata"]["namespace"]));
    let mut told = Explanation::of(format!("pod {of}/{name}"));
    if let Some(version) = pod["metadata"]["annotations"][PROXY_VERSION].as_str() {
        let ready = ["initContainerStatuses", "containerStatuses"]
            .iter()
            .flat_map(|list| pod["status"][list].as_array().into_iter().flatten())
            .find(|status| status["name"] == PROXY_CONTAINER)
            .is_some_and(|status| status["ready"] == true);
        told.step("proxy", format!("it has one, version {version}, {}", if ready { "ready" } else { "not ready" }));
        let hint = if ready { String::new() } else { format!("kubectl -n {of} logs {name} -c {PROXY_CONTAINER}") };
        return told.verdict("it is meshed", &hint);
    }
    let sources = Sources { pod: &pod["metadata"], namespace: &namespace["metadata"] };
    let holder = |holder: Holder| match holder {
        Holder::Pod => format!("pod {name}"),
        Holder::Namespace => format!("namespace {of}"),
    };
    match wish(sources) {
        Err(refusal) => return told.end("wish", refusal.to_string(), "it has no proxy", "mend the annotation"),
        Ok(Wish::Unsaid) => {
            let hint = format!("kubectl label namespace {of} {INJECT}=enabled, then restart its workloads");
            return told.end("wish", Skip::NotEnabled.to_string(), "it has no proxy: nobody asked for one", &hint);
        }
        Ok(Wish::Disabled(by)) => {
            let says = format!("{} says {INJECT}: disabled", holder(by));
            return told.end("wish", says, "it has no proxy, as wished", "");
        }
        Ok(Wish::Enabled(by)) => told.step("wish", format!("{} says {INJECT}: enabled", holder(by))),
    }
    let config = config.cloned().unwrap_or_default();
    match plan(sources, &pod["spec"], &config) {
        Err(refusal) => return told.end("fitness", refusal.to_string(), "it cannot have a proxy as it is written", ""),
        Ok(Plan::Skip(why)) => return told.end("fitness", why.to_string(), "it has no proxy", ""),
        Ok(Plan::Inject(_)) => told.step("fitness", "nothing speaks against a proxy"),
    }
    if !webhook {
        let says = format!("there is no webhook configuration {INJECTOR}");
        return told.end("injector", says, "it has no proxy: the mesh is not installed", "meshctl install --apply");
    }
    told.step("injector", format!("webhook configuration {INJECTOR} exists"));
    let created = text(&pod["metadata"]["creationTimestamp"]);
    told.end(
        "creation",
        format!("it was created at {created}, before it was to have a proxy or while the injector was away"),
        "it has no proxy, but its successor will",
        &format!("restart its workload: kubectl -n {of} rollout restart, or delete the pod"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(pod: Value, namespace: Value, webhook: bool) -> Explanation {
        let mut pod = json!({"metadata": {"name": "web-1", "namespace": "shop", "annotations": pod["annotations"],
            "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": pod["spec"], "status": pod["status"]});
        if pod["spec"].is_null() {
            pod["spec"] = json!({"containers": [{"name": "main"}]});
        }
        judge_pod(&pod, &json!({"metadata": {"annotations": namespace}}), webhook, None)
    }

    #[test]
    fn every_reason_for_having_no_proxy_is_told() {
        let check = |pod: Value, namespace: Value, webhook: bool, step: &str, says: &str| {
            let told = judged(pod, namespace, webhook);
            let last = told.steps.last().unwrap();
            assert_eq!(last.step, step, "{told:?}");
            assert!(last.says.contains(says) && !last.goes_on, "{told:?}");
            assert!(told.verdict.starts_with("it has no proxy") || step == "fitness", "{told:?}");
        };
        let enabled = || json!({INJECT: "enabled"});
        check(json!({}), json!({}), true, "wish", "injection is not enabled");
        check(json!({"annotations": {INJECT: "disabled"}}), enabled(), true, "wish", "pod web-1 says");
        check(json!({}), json!({INJECT: "disabled"}), true, "wish", "namespace shop says");
        check(json!({"annotations": {INJECT: "yes"}}), enabled(), true, "wish", "`yes`");
        let host = json!({"spec": {"hostNetwork": true, "containers": []}});
        check(host, enabled(), true, "fitness", "host's network");
        let taken = json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 4143}]}]}});
        check(taken, enabled(), true, "fitness", "4143");
        check(json!({}), enabled(), false, "injector", "no webhook");
        check(json!({}), enabled(), true, "creation", "2026-01-01T00:00:00Z");
    }

    #[test]
    fn a_meshed_pod_is_told_with_its_proxy() {
        let status = json!({"initContainerStatuses": [{"name": PROXY_CONTAINER, "ready": true}]});
        let told = judged(json!({"annotations": {PROXY_VERSION: "0.1.0"}, "status": status}), json!({}), true);
        assert_eq!(told.text(), "pod shop/web-1\n\n✓ proxy  it has one, version 0.1.0, ready\n\n→ it is meshed\n");
    }

    #[test]
    fn errors_are_described_and_misspelt_ones_found() {
        let (printer, read) = Printer::memory();
        let of = |code: &str| ExplainError { code: Some(code.to_owned()), output: TextFormat::Table };
        for code in MeshError::ALL {
            error(&of(code.code()), &printer).unwrap();
        }
        assert!(read().0.contains("no-endpoints\n\ncause   The service has no ready endpoint.\n"), "{}", read().0);
        let refusal = error(&of("no-endpoint"), &printer).unwrap_err();
        assert_eq!(refusal.hint_text(), Some("did you mean no-endpoints?"));
        assert!(error(&of("teapot"), &printer).unwrap_err().hint_text().unwrap().contains("overload"));
    }
}
