//! When a pod waits for nothing but its proxy: pods that run to an end, of Jobs for instance, where the proxy is one of the
//! containers and not a sidecar that the node ends itself.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use mesh_api::names::PROXY_CONTAINER;

/// True once every container but the proxy has ended and will not be started again.
pub(super) fn is_finished(pod: &Pod) -> bool {
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { return false };
    let is_proxy = |container: &&Container| container.name == PROXY_CONTAINER;
    if !spec.containers.iter().any(|container| is_proxy(&container)) {
        return false;
    }
    let statuses = status.container_statuses.as_deref().unwrap_or_default();
    let mut others = spec.containers.iter().filter(|container| !is_proxy(container)).peekable();
    others.peek().is_some()
        && others.all(|container| {
            // A container's own policy, where the cluster knows such, outranks the pod's.
            let policy = container.restart_policy.as_deref().or(spec.restart_policy.as_deref()).unwrap_or("Always");
            let status = statuses.iter().find(|status| status.name == container.name);
            status.is_some_and(|status| has_ended(status, policy))
        })
}

fn has_ended(status: &ContainerStatus, policy: &str) -> bool {
    let ended = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    ended.is_some_and(|ended| match policy {
        "Never" => true,
        "OnFailure" => ended.exit_code == 0,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_pod_is_finished_when_its_application_will_not_run_again() {
        // The policy, the containers, what each of them does (exit code, `run`, `wait` for none of these), and the verdict.
        for (policy, containers, states, expect) in [
            ("Never", "mesh-proxy a", "run 0", true),
            ("Never", "mesh-proxy a", "run 1", true),
            ("Never", "mesh-proxy a b", "run 0 0", true),
            ("Never", "mesh-proxy a b", "run 0 run", false),
            ("Never", "mesh-proxy a b", "run 0 wait", false),
            ("Never", "mesh-proxy a b", "run 0", false),
            ("Never", "mesh-proxy a", "0 0", true),
            ("OnFailure", "mesh-proxy a", "run 0", true),
            ("OnFailure", "mesh-proxy a", "run 1", false),
            ("OnFailure", "mesh-proxy a b", "run 0 1", false),
            ("Always", "mesh-proxy a", "run 0", false),
            ("", "mesh-proxy a", "run 0", false),
            ("Never", "a b", "0 0", false),
            ("Never", "mesh-proxy", "run", false),
        ] {
            let containers = containers.split(' ');
            let statuses = containers.clone().zip(states.split(' ')).map(|(name, state)| {
                let state = match state {
                    "run" => json!({"running": {}}),
                    "wait" => json!({"waiting": {"reason": "CrashLoopBackOff"}}),
                    code => json!({"terminated": {"exitCode": code.parse::<i32>().unwrap()}}),
                };
                json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state})
            });
            let policy = Some(policy).filter(|policy| !policy.is_empty());
            let pod = json!({
                "metadata": {},
                "spec": {"restartPolicy": policy, "containers": containers.map(|name| json!({"name": name})).collect::<Vec<Value>>()},
                "status": {"containerStatuses": statuses.collect::<Vec<Value>>()},
            });
            assert_eq!(is_finished(&serde_json::from_value(pod.clone()).unwrap()), expect, "{pod}");
        }
    }
}
