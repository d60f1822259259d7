//! The control plane: is it there, is it ready, does it answer.

use super::{Finding, Subject};
use crate::commands::version::{CLIENT, control_version, skew};
use crate::error::{Context, Error};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PostParams};
use mesh_api::names::{CONTROL_NAME, INJECT, OBSERVE_GROUP, OBSERVE_VERSION, PROXY_CONTAINER};
pub(crate) use mesh_manifests::install::WEBHOOK_NAME as INJECTOR;
use serde_json::json;
use std::sync::Arc;

/// The control plane's deployment, if there is one.
pub(super) async fn deployment(subject: &Subject) -> Result<Option<Deployment>, Error> {
    let api: Api<Deployment> = Api::namespaced(subject.cluster.client.clone(), &subject.cluster.system_namespace);
    api.get_opt(CONTROL_NAME).await.during(|| format!("read deployment {CONTROL_NAME}"))
}

/// Is there no mesh yet?
pub(super) async fn absent(subject: Arc<Subject>) -> Result<Finding, Error> {
    let installed = deployment(&subject).await?;
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(subject.cluster.client.clone());
    let webhook = webhooks.get_opt(INJECTOR).await.during(|| format!("read webhook configuration {INJECTOR}"))?;
    Ok(match (installed, webhook) {
        (None, None) => Finding::ok("nothing is in the way"),
        (Some(deployment), _) => Finding::failed(
            format!(
                "version {} is installed in {}",
                control_version(&deployment).unwrap_or_else(|| "unknown".to_owned()),
                subject.cluster.system_namespace
            ),
            format!("this cluster has its mesh already; run {} check", subject.meshctl),
        ),
        (None, Some(_)) => Finding::failed(
            format!("a webhook configuration {INJECTOR} is left over, or belongs to a mesh in another namespace"),
            format!("if it is left over: kubectl delete mutatingwebhookconfiguration {INJECTOR}"),
        ),
    })
}

/// Is the control plane there?
pub(super) async fn installed(subject: Arc<Subject>) -> Result<Finding, Error> {
    let namespace = &subject.cluster.system_namespace;
    Ok(match deployment(&subject).await? {
        Some(_) => Finding::ok(format!("deployment {CONTROL_NAME} in {namespace}")),
        None => Finding::failed(
            format!("there is no deployment {CONTROL_NAME} in {namespace}"),
            format!("{} install --apply", subject.meshctl),
        ),
    })
}

/// Are its pods ready?
pub(super) async fn pods_ready(subject: Arc<Subject>) -> Result<Finding, Error> {
    let Some(deployment) = deployment(&subject).await? else {
        return Ok(Finding::skipped("the control plane is not installed"));
    };
    let selector = deployment.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    let labels = selector.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    let pods: Api<Pod> = Api::namespaced(subject.cluster.client.clone(), &subject.cluster.system_namespace);
    let pods = pods.list(&ListParams::default().labels(&labels)).await.during(|| "list the control plane's pods")?;
    let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
    Ok(judge_pods(&pods.items, usize::try_from(wanted).unwrap_or(0), &subject.cluster.system_namespace))
}

fn judge_pods(pods: &[Pod], wanted: usize, namespace: &str) -> Finding {
    let alive: Vec<&Pod> = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
    let ready = alive.iter().filter(|pod| is_ready(pod)).count();
    let seen = format!("{ready} of {wanted} ready");
    if ready >= wanted {
        return Finding::ok(seen);
    }
    match alive.iter().find(|pod| !is_ready(pod)) {
        None => Finding::failed(
            format!("{seen}; there are no more pods"),
            format!("kubectl -n {namespace} describe deployment {CONTROL_NAME}"),
        ),
        Some(pod) => {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let fix = format!("kubectl -n {namespace} describe pod {name}; kubectl -n {namespace} logs {name}");
            Finding::failed(format!("{seen}: {name} {}", why_not_ready(pod)), fix)
        }
    }
}

/// True if the pod's Ready condition holds.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// In a few words, why a pod is not ready: the first container that waits or has ended, else the phase.
pub(crate) fn why_not_ready(pod: &Pod) -> String {
    let Some(status) = &pod.status else { return "has no status yet".to_owned() };
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    for container in containers {
        let Some(state) = &container.state else { continue };
        let ended =
            state.terminated.as_ref().or(container.last_state.as_ref().and_then(|last| last.terminated.as_ref()));
        let ended = ended.filter(|ended| ended.exit_code != 0).map(|ended| {
            let message = ended.message.as_deref().map(|text| format!(" ({})", text.trim())).unwrap_or_default();
            format!("ended with code {}{message}", ended.exit_code)
        });
        if let Some(waiting) = &state.waiting {
            let reason = waiting.reason.as_deref().unwrap_or("waits");
            // A pod that has just begun says nothing else of its later containers.
            if reason != "PodInitializing" && reason != "ContainerCreating" {
                // How it ended says more than that it is tried again later.
                let message = ended.or(waiting.message.clone()).map(|text| format!(": {text}")).unwrap_or_default();
                return format!("{}: {reason}{message}", container.name);
            }
        } else if let Some(ended) = ended.filter(|_| state.terminated.is_some()) {
            return format!("{}: {ended}", container.name);
        }
        if state.running.is_some() && !container.ready {
            return format!("{}: not ready", container.name);
        }
    }
    format!("is {}", status.phase.as_deref().unwrap_or("without a phase"))
}

/// Does the control plane's version fit?
pub(super) async fn version(subject: Arc<Subject>) -> Result<Finding, Error> {
    let Some(deployment) = deployment(&subject).await? else {
        return Ok(Finding::skipped("the control plane is not installed"));
    };
    let version = control_version(&deployment);
    Ok(match (&version, skew(CLIENT, version.as_deref())) {
        (_, Some(note)) => Finding::failed(note, "use the meshctl of the control plane's release"),
        (Some(version), None) if version == CLIENT => Finding::ok(version.clone()),
        (Some(version), None) => Finding::ok(format!("{version}, and meshctl {CLIENT}")),
        (None, None) => Finding::skipped("its image has no tag"),
    })
}

/// Does a new pod get its proxy? Asked with a dry run: nothing is created.
pub(super) async fn webhook_answers(subject: Arc<Subject>) -> Result<Finding, Error> {
    if deployment(&subject).await?.is_none() {
        return Ok(Finding::skipped("the control plane is not installed"));
    }
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"generateName": "mesh-check-", "annotations": {INJECT: "enabled"}},
        "spec": {"containers": [{"name": "check", "image": "mesh-check"}]},
    }))
    .during(|| "write a pod")?;
    let pods: Api<Pod> = Api::namespaced(subject.cluster.client.clone(), "default");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let namespace = &subject.cluster.system_namespace;
    let look = format!(
        "kubectl get mutatingwebhookconfiguration {INJECTOR}; kubectl -n {namespace} logs deployment/{CONTROL_NAME}"
    );
    Ok(match pods.create(&dry, &pod).await {
        Ok(made) => judge_injected(&made, &look),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            Finding::skipped("you may not create pods in the namespace default, not even as a dry run")
        }
        Err(cause) => {
            let error = Err::<(), _>(cause).during(|| "create a pod as a dry run").err();
            Finding::failed(error.map(|error| error.to_string()).unwrap_or_default(), look)
        }
    })
}

fn judge_injected(pod: &Pod, look: &str) -> Finding {
    let spec = pod.spec.as_ref();
    let mut containers =
        spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    match containers.find(|container| container.name == PROXY_CONTAINER) {
        Some(proxy) => {
            Finding::ok(format!("a dry run was given {}", proxy.image.as_deref().unwrap_or(PROXY_CONTAINER)))
        }
        None => Finding::failed("a pod created as a dry run came back without a proxy", look),
    }
}

/// Does the observe API answer?
pub(super) async fn observe(subject: Arc<Subject>) -> Result<Finding, Error> {
    if deployment(&subject).await?.is_none() {
        return Ok(Finding::skipped("the control plane is not installed"));
    }
    let version = format!("{OBSERVE_GROUP}/{OBSERVE_VERSION}");
    Ok(match subject.cluster.client.list_api_group_resources(&version).await {
        Ok(resources) if resources.resources.iter().any(|resource| resource.name == "workloads/golden") => {
            Finding::ok(format!("{version} lists its resources"))
        }
        Ok(_) => Finding::failed(
            format!("{version} answers, but has no golden metrics"),
            "use the meshctl of the control plane's release",
        ),
        Err(cause) => {
            let error = Err::<(), _>(cause).during(|| format!("list the resources of {version}")).err();
            Finding::failed(
                error.map(|error| error.to_string()).unwrap_or_default(),
                format!("kubectl get apiservice {OBSERVE_VERSION}.{OBSERVE_GROUP} -o yaml"),
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn pod(ready: bool, waiting: Option<&str>) -> Pod {
        let state = match waiting {
            Some(reason) => json!({"waiting": {"reason": reason, "message": "no such image"}}),
            None => json!({"running": {}}),
        };
        serde_json::from_value(json!({
            "metadata": {"name": "mesh-control-x"},
            "spec": {"containers": []},
            "status": {"phase": "Running",
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
                "containerStatuses": [{"name": "mesh-control", "image": "", "imageID": "", "restartCount": 0,
                    "ready": ready, "state": state}]},
        }))
        .unwrap()
    }

    #[test]
    fn pods_that_are_not_ready_say_why() {
        let check = |pods: &[Pod], wanted, status: Status, seen: &str| {
            let finding = judge_pods(pods, wanted, "mesh-system");
            assert_eq!((finding.status, finding.seen.as_str()), (status, seen));
        };
        check(&[pod(true, None)], 1, Status::Ok, "1 of 1 ready");
        check(&[], 1, Status::Failed, "0 of 1 ready; there are no more pods");
        check(
            &[pod(true, None), pod(false, None)],
            2,
            Status::Failed,
            "1 of 2 ready: mesh-control-x mesh-control: not ready",
        );
        check(
            &[pod(false, Some("ErrImagePull"))],
            1,
            Status::Failed,
            "0 of 1 ready: mesh-control-x mesh-control: ErrImagePull: no such image",
        );
    }

    #[test]
    fn a_container_that_keeps_ending_says_how() {
        let mut pod = pod(false, Some("CrashLoopBackOff"));
        let status = &mut pod.status.as_mut().unwrap().container_statuses.as_mut().unwrap()[0];
        let ended = json!({"terminated": {"exitCode": 128, "message": "no such program\n"}});
        status.last_state = Some(serde_json::from_value(ended).unwrap());
        assert_eq!(why_not_ready(&pod), "mesh-control: CrashLoopBackOff: ended with code 128 (no such program)");
    }

    #[test]
    fn a_pod_without_a_proxy_is_a_failure() {
        let bare: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "a"}]}})).unwrap();
        assert_eq!(judge_injected(&bare, "look").status, Status::Failed);
        let meshed: Pod = serde_json::from_value(
            json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "mesh-proxy", "image": "p:1"}]}}),
        )
        .unwrap();
        assert_eq!(judge_injected(&meshed, "look"), Finding::ok("a dry run was given p:1"));
    }
}
