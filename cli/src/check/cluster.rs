//! What the mesh has put into the cluster beside its control plane, and what everybody's clock says: definitions of kinds,
//! webhooks that could stand in the way, time.

use super::{Finding, Status, Subject, control};
use crate::error::{Context, Error};
use crate::observe::{self, Ask};
use http::header::DATE;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Api;
use kube::api::ListParams;
use kube::client::Body;
use mesh_api::names::INJECT;
use mesh_manifests::install::WEBHOOK_NAME;
use mesh_manifests::policies;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Clocks that differ by more are told of. Certificates are valid from five minutes before they are made.
const CLOCKS_MAY_DIFFER_S: i64 = 60;

/// The label by which Kubernetes itself marks a namespace with its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Are the definitions of the mesh's kinds those of this release?
pub(super) async fn definitions(subject: Arc<Subject>) -> Result<Finding, Error> {
    if control::deployment(&subject).await?.is_none() {
        return Ok(Finding::skipped("the control plane is not installed"));
    }
    let api: Api<CustomResourceDefinition> = Api::all(subject.cluster.client.clone());
    let wanted = policies::definitions().during(|| "write the definitions of this release")?;
    let mut there = Vec::new();
    for definition in &wanted {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        let found = api.get_opt(name).await.during(|| format!("read custom resource definition {name}"))?;
        there.push(found.map(serde_json::to_value).transpose().during(|| format!("understand {name}"))?);
    }
    Ok(judge_definitions(&wanted, &there, &subject.meshctl))
}

fn judge_definitions(wanted: &[Value], there: &[Option<Value>], meshctl: &str) -> Finding {
    let name = |definition: &Value| definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let fix = format!("{meshctl} install --crds | kubectl apply --server-side -f -");
    let pairs = || wanted.iter().zip(there);
    let missing: Vec<String> = pairs().filter(|(_, there)| there.is_none()).map(|(wanted, _)| name(wanted)).collect();
    if !missing.is_empty() {
        return Finding::failed(format!("not defined: {}", missing.join(", ")), fix);
    }
    let differs = |(wanted, there): &(&Value, &Option<Value>)| {
        there
            .as_ref()
            .and_then(|there| difference(&wanted["spec"]["versions"], &there["spec"]["versions"], String::new()))
    };
    let other: Vec<String> =
        pairs().filter_map(|pair| Some(format!("{} ({})", name(pair.0), differs(&pair)?))).collect();
    match other.is_empty() {
        true => Finding::ok(format!("{} kinds", wanted.len())),
        false => Finding::failed(format!("of another release: {}", other.join(", ")), fix),
    }
}

/// The first place where something wanted is not there, or is something else. What is there beside it does not count:
/// the API server adds fields of its own.
fn difference(wanted: &Value, there: &Value, place: String) -> Option<String> {
    match (wanted, there) {
        (Value::Object(wanted), Value::Object(there)) => wanted.iter().find_map(|(key, value)| {
            let place = format!("{place}.{key}");
            match there.get(key) {
                None if value.is_null() || value.as_str() == Some("") => None,
                None => Some(format!("no {}", place.trim_start_matches('.'))),
                Some(there) => difference(value, there, place),
            }
        }),
        (Value::Array(wanted), Value::Array(there)) => {
            if wanted.len() != there.len() {
                return Some(place.trim_start_matches('.').to_owned());
            }
            let mut pairs = wanted.iter().zip(there).enumerate();
            pairs.find_map(|(at, (wanted, there))| difference(wanted, there, format!("{place}[{at}]")))
        }
        // Whole numbers may come back as such.
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => None,
        (a, b) if a == b => None,
        _ => Some(place.trim_start_matches('.').to_owned()),
    }
}

/// Can a webhook of the mesh lock the cluster?
pub(super) async fn webhooks(subject: Arc<Subject>) -> Result<Finding, Error> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(subject.cluster.client.clone());
    let found = api.get_opt(WEBHOOK_NAME).await.during(|| format!("read webhook configuration {WEBHOOK_NAME}"))?;
    let hooks: Vec<_> = found.into_iter().flat_map(|found| found.webhooks.unwrap_or_default()).collect();
    let finding = judge_webhooks(&hooks, &subject.cluster.system_namespace, &subject.meshctl);
    if finding.status != Status::Ok || !hooks.iter().any(refuses) {
        return Ok(finding);
    }
    let api: Api<Namespace> = Api::all(subject.cluster.client.clone());
    let namespaces = api.list(&ListParams::default()).await.during(|| "list namespaces")?.items;
    Ok(judge_labels(&namespaces).unwrap_or(finding))
}

/// Namespaces that ask for proxies in a way that webhooks are not told by.
fn judge_labels(namespaces: &[Namespace]) -> Option<Finding> {
    let says = |of: &Option<BTreeMap<String, String>>| {
        of.as_ref().and_then(|all| all.get(INJECT)).is_some_and(|value| value == "enabled")
    };
    let only_annotated = namespaces.iter().map(|namespace| &namespace.metadata);
    let only_annotated: Vec<String> = only_annotated
        .filter(|metadata| says(&metadata.annotations) && !says(&metadata.labels))
        .filter_map(|metadata| metadata.name.clone())
        .collect();
    let fix = format!("kubectl label namespace {} {INJECT}=enabled", only_annotated.join(" "));
    (!only_annotated.is_empty()).then(|| {
        Finding::warning(
            format!(
                "while the control plane is down, pods of {} start without a proxy: these namespaces are annotated, \
                 and the cluster selects by labels",
                super::proxy::list(only_annotated)
            ),
            fix,
        )
    })
}

/// True if pods are refused while nobody answers. `Fail` is what Kubernetes takes for a policy that is not said.
fn refuses(hook: &MutatingWebhook) -> bool {
    hook.failure_policy.as_deref() != Some("Ignore")
}

/// Only what takes pods can lock a cluster: the webhook that judges policies and routes stands in nobody else's way.
fn judge_webhooks(hooks: &[MutatingWebhook], system: &str, meshctl: &str) -> Finding {
    if hooks.is_empty() {
        return Finding::skipped("there is no webhook that takes pods");
    }
    for hook in hooks.iter().filter(|hook| refuses(hook)) {
        let free = |namespace: &str| {
            hook.namespace_selector.as_ref().is_some_and(|selector| leaves_out(selector, namespace))
                || hook.object_selector.as_ref().is_some_and(only_marked)
        };
        if let Some(namespace) = ["kube-system", system].into_iter().find(|namespace| !free(namespace)) {
            return Finding::failed(
                format!("while the control plane is down, {} refuses every new pod in {namespace}", hook.name),
                format!("have the webhook leave these namespaces out again: {meshctl} upgrade --apply"),
            );
        }
        // No namespace has this name.
        if !free("") {
            return Finding::warning(
                format!(
                    "while the control plane is down, {} refuses pods of namespaces that are not meshed, too",
                    hook.name
                ),
                format!("have it ask for labelled namespaces only: {meshctl} upgrade --apply"),
            );
        }
    }
    match hooks.iter().any(refuses) {
        true => Finding::ok(format!(
            "while the control plane is down, pods start all the same in kube-system, {system} and wherever none are meshed"
        )),
        false => Finding::ok("while the control plane is down, pods start, without a proxy"),
    }
}

/// True if a selector does not select a namespace of this name that has no labels but those of Kubernetes itself.
fn leaves_out(selector: &LabelSelector, namespace: &str) -> bool {
    let label = |key: &str| (key == NAME_LABEL).then_some(namespace);
    let labels = selector.match_labels.iter().flatten();
    let unlike = labels.into_iter().any(|(key, value)| label(key) != Some(value));
    let expressions = selector.match_expressions.iter().flatten();
    unlike
        || expressions.into_iter().any(|expression| {
            let values = expression.values.as_deref().unwrap_or_default();
            let is_one = label(&expression.key).is_some_and(|value| values.iter().any(|one| one == value));
            match expression.operator.as_str() {
                "In" => !is_one,
                "NotIn" => is_one,
                "Exists" => label(&expression.key).is_none(),
                "DoesNotExist" => label(&expression.key).is_some(),
                _ => false,
            }
        })
}

/// True if a selector selects only objects that carry a label.
fn only_marked(selector: &LabelSelector) -> bool {
    let expressions = selector.match_expressions.iter().flatten();
    selector.match_labels.as_ref().is_some_and(|labels| !labels.is_empty())
        || expressions.into_iter().any(|expression| matches!(expression.operator.as_str(), "In" | "Exists"))
}

/// Do the clocks of the API server, of control and of this machine agree?
pub(super) async fn clocks(subject: Arc<Subject>) -> Result<Finding, Error> {
    let request = http::Request::get("/version").body(Body::empty()).during(|| "ask for the time")?;
    let asked = seconds(SystemTime::now());
    let answer = subject.cluster.client.send(request).await.during(|| "ask the API server for the time")?;
    let server = answer.headers().get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    let mut seen = vec![("the API server's", server.map(|time| seconds(time) - asked))];
    if control::deployment(&subject).await?.is_some() {
        let ask = Ask { namespace: None, window: Duration::from_secs(1), frames: Some(1), pods: false };
        let frame = observe::once(&subject.cluster, &ask, Duration::from_secs(6)).await.ok();
        let now = seconds(SystemTime::now());
        seen.push(("the control plane's", frame.map(|frame| i64::try_from(frame.at_ms / 1000).unwrap_or(0) - now)));
    }
    Ok(judge_clocks(&seen))
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Clocks, each with how many seconds it is before ours, if it could be read.
fn judge_clocks(seen: &[(&str, Option<i64>)]) -> Finding {
    let read: Vec<(&str, i64)> = seen.iter().filter_map(|(whose, by)| Some((*whose, (*by)?))).collect();
    let Some((whose, by)) = read.iter().copied().max_by_key(|(_, by)| by.abs()) else {
        return Finding::skipped("nobody says what time it is");
    };
    if by.abs() <= CLOCKS_MAY_DIFFER_S {
        return Finding::ok(format!("within {} s of this machine's", by.abs().max(1)));
    }
    let side = if by > 0 { "before" } else { "behind" };
    Finding::failed(
        format!("{whose} clock is {} s {side} this machine's", by.abs()),
        "have nodes and this machine keep time (chrony, systemd-timesyncd): certificates are good for a time only",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn definitions_of_another_release_are_named_with_the_place() {
        let wanted = policies::definitions().unwrap();
        let there: Vec<Option<Value>> = wanted.iter().cloned().map(Some).collect();
        let judge = |there: &[Option<Value>]| judge_definitions(&wanted, there, "meshctl");
        assert_eq!(judge(&there), Finding::ok("3 kinds"));
        let mut with_more = there.clone();
        with_more[0].as_mut().unwrap()["spec"]["versions"][0]["served-since"] = json!("today");
        assert_eq!(judge(&with_more).status, Status::Ok, "what the API server adds");
        let mut gone = there.clone();
        gone[1] = None;
        let finding = judge(&gone);
        let name = wanted[1]["metadata"]["name"].as_str().unwrap();
        assert_eq!((finding.status, finding.seen), (Status::Failed, format!("not defined: {name}")));
        let mut older = there;
        let schema = &mut older[0].as_mut().unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        schema["properties"]["spec"]["properties"].as_object_mut().unwrap().remove("retry");
        let finding = judge(&older);
        assert!(finding.seen.starts_with("of another release: "), "{finding:?}");
        assert!(finding.seen.contains("properties.spec.properties.retry)"), "{finding:?}");
        assert!(finding.fix.unwrap().contains("install --crds"));
    }

    fn hook(policy: Option<&str>, selector: Value, objects: Value) -> MutatingWebhook {
        serde_json::from_value(
            json!({"name": "injector.meshctl.dev", "admissionReviewVersions": ["v1"], "clientConfig": {},
            "sideEffects": "None", "failurePolicy": policy, "namespaceSelector": selector, "objectSelector": objects}),
        )
        .unwrap()
    }

    #[test]
    fn a_webhook_that_could_lock_the_cluster_is_told() {
        let judge = |hook: MutatingWebhook| judge_webhooks(&[hook], "mesh-system", "meshctl").status;
        assert_eq!(judge_webhooks(&[], "mesh-system", "meshctl").status, Status::Skipped);
        assert_eq!(judge(hook(Some("Ignore"), Value::Null, Value::Null)), Status::Ok);
        assert_eq!(judge(hook(None, Value::Null, Value::Null)), Status::Failed);
        let not_in =
            |values: Value| json!({"matchExpressions": [{"key": NAME_LABEL, "operator": "NotIn", "values": values}]});
        assert_eq!(
            judge(hook(Some("Fail"), not_in(json!(["kube-system"])), Value::Null)),
            Status::Failed,
            "its own namespace"
        );
        assert_eq!(
            judge(hook(Some("Fail"), not_in(json!(["kube-system", "mesh-system"])), Value::Null)),
            Status::Warning,
            "namespaces that are not meshed"
        );
        assert_eq!(
            judge(hook(Some("Fail"), json!({"matchLabels": {"meshctl.dev/inject": "enabled"}}), Value::Null)),
            Status::Ok
        );
        let marked = json!({"matchExpressions": [{"key": "meshctl.dev/inject", "operator": "Exists"}]});
        assert_eq!(judge(hook(Some("Fail"), Value::Null, marked)), Status::Ok);
        let unmarked =
            json!({"matchExpressions": [{"key": "meshctl.dev/inject", "operator": "NotIn", "values": ["disabled"]}]});
        assert_eq!(judge(hook(Some("Fail"), Value::Null, unmarked)), Status::Failed);
    }

    #[test]
    fn namespaces_that_are_only_annotated_are_named() {
        let namespace = |name: &str, annotation: Option<&str>, label: Option<&str>| -> Namespace {
            let metadata = json!({"name": name, "annotations": {INJECT: annotation}, "labels": {INJECT: label}});
            let mut value = json!({"metadata": metadata});
            for place in ["annotations", "labels"] {
                if let Some(all) = value["metadata"][place].as_object_mut() {
                    all.retain(|_, value| !value.is_null());
                }
            }
            serde_json::from_value(value).unwrap()
        };
        let enabled = Some("enabled");
        let well =
            [namespace("a", None, None), namespace("b", enabled, enabled), namespace("c", Some("disabled"), None)];
        assert_eq!(judge_labels(&well), None);
        let finding = judge_labels(&[namespace("shop", enabled, None), namespace("web", enabled, Some("no"))]).unwrap();
        assert_eq!(finding.status, Status::Warning);
        assert!(finding.seen.contains("pods of shop, web start without a proxy"), "{}", finding.seen);
        assert_eq!(finding.fix.unwrap(), "kubectl label namespace shop web meshctl.dev/inject=enabled");
    }

    #[test]
    fn clocks_that_differ_are_told() {
        let judge = |seen: &[(&str, Option<i64>)]| judge_clocks(seen);
        assert_eq!(judge(&[("a", None)]).status, Status::Skipped);
        assert_eq!(judge(&[("a", Some(-3)), ("b", None)]), Finding::ok("within 3 s of this machine's"));
        let finding = judge(&[("the API server's", Some(2)), ("the control plane's", Some(-400))]);
        assert_eq!(finding.seen, "the control plane's clock is 400 s behind this machine's");
        assert!(finding.fix.unwrap().contains("chrony"));
        assert_eq!(judge(&[("a", Some(61))]).status, Status::Failed);
    }
}
