//! Pods in a table: how many containers are ready, and one word for what the pod is doing.

use super::{Column, age, moment, name, narrow, plain, text, wide};
use serde_json::{Value, json};

pub(super) const COLUMNS: &[Column] = &[
    narrow("Name", name),
    narrow("Ready", |pod, _| ready(pod)),
    narrow("Status", |pod, _| status(pod).into()),
    narrow("Restarts", restarts),
    narrow("Age", age),
    wide("IP", |pod, _| text(&pod["status"]["podIP"])),
    wide("Node", |pod, _| text(&pod["spec"]["nodeName"])),
    wide("Nominated Node", |pod, _| text(&pod["status"]["nominatedNodeName"])),
    wide("Readiness Gates", |pod, _| gates(pod)),
];

fn list(value: &Value) -> impl DoubleEndedIterator<Item = &Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

/// Init containers that keep running beside the others.
fn is_sidecar(pod: &Value, container: &str) -> bool {
    list(&pod["spec"]["initContainers"]).any(|c| c["name"] == container && c["restartPolicy"] == "Always")
}

/// Statuses of the containers that stay: sidecars and applications.
fn lasting(pod: &Value) -> impl Iterator<Item = &Value> {
    let sidecars = list(&pod["status"]["initContainerStatuses"]).filter(|c| is_sidecar(pod, &plain(&c["name"])));
    sidecars.chain(list(&pod["status"]["containerStatuses"]))
}

fn ready(pod: &Value) -> Value {
    let sidecars = list(&pod["spec"]["initContainers"]).filter(|c| c["restartPolicy"] == "Always").count();
    let total = sidecars + list(&pod["spec"]["containers"]).count();
    let ready = lasting(pod).filter(|c| c["ready"] == true).count();
    format!("{ready}/{total}").into()
}

fn restarts(pod: &Value, now: i64) -> Value {
    let total: i64 = lasting(pod).map(|c| c["restartCount"].as_i64().unwrap_or(0)).sum();
    let last = lasting(pod).filter_map(|c| c["lastState"]["terminated"]["finishedAt"].as_str()).max();
    match last.filter(|_| total > 0) {
        Some(last) => format!("{total} ({} ago)", plain(&moment(&json!(last), now))).into(),
        None => total.into(),
    }
}

fn gates(pod: &Value) -> Value {
    let gates: Vec<&Value> = list(&pod["spec"]["readinessGates"]).collect();
    if gates.is_empty() {
        return "<none>".into();
    }
    let holds = |gate: &&&Value| {
        list(&pod["status"]["conditions"]).any(|c| c["type"] == gate["conditionType"] && c["status"] == "True")
    };
    format!("{}/{}", gates.iter().filter(holds).count(), gates.len()).into()
}

/// The one word that tells most: the reason the first container is not running, or the phase.
fn status(pod: &Value) -> String {
    let phase = plain(&pod["status"]["phase"]);
    let mut word = match pod["status"]["reason"].as_str() {
        Some(reason) => reason.to_owned(),
        None => phase.clone(),
    };
    if list(&pod["status"]["conditions"]).any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated") {
        word = "SchedulingGated".to_owned();
    }
    let starting = initializing(pod);
    if let Some(init) = &starting {
        word.clone_from(init);
    } else {
        let mut running = false;
        for container in list(&pod["status"]["containerStatuses"]).rev() {
            let state = &container["state"];
            if let Some(reason) = state["waiting"]["reason"].as_str() {
                word = reason.to_owned();
            } else if state["terminated"].is_object() {
                word = ended(&state["terminated"], "");
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
            }
        }
        if word == "Completed" && running {
            let ready = list(&pod["status"]["conditions"]).any(|c| c["type"] == "Ready" && c["status"] == "True");
            word = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    match pod["metadata"]["deletionTimestamp"].is_string() {
        true if pod["status"]["reason"] == "NodeLost" => "Unknown".to_owned(),
        true if phase != "Succeeded" && phase != "Failed" => "Terminating".to_owned(),
        _ => word,
    }
}

/// `Init:1/2`, `Init:CrashLoopBackOff` and the like while init containers have not all done their part.
fn initializing(pod: &Value) -> Option<String> {
    let total = list(&pod["spec"]["initContainers"]).count();
    for (index, container) in list(&pod["status"]["initContainerStatuses"]).enumerate() {
        let state = &container["state"];
        let sidecar = is_sidecar(pod, &plain(&container["name"]));
        if state["terminated"]["exitCode"] == 0 || (sidecar && container["started"] == true) {
            continue;
        }
        if state["terminated"].is_object() {
            return Some(ended(&state["terminated"], "Init:"));
        }
        return match state["waiting"]["reason"].as_str() {
            Some(reason) if !reason.is_empty() && reason != "PodInitializing" => Some(format!("Init:{reason}")),
            _ => Some(format!("Init:{index}/{total}")),
        };
    }
    None
}

fn ended(terminated: &Value, prefix: &str) -> String {
    match (terminated["reason"].as_str(), terminated["signal"].as_i64()) {
        (Some(reason), _) if !reason.is_empty() => format!("{prefix}{reason}"),
        (_, Some(signal)) if signal != 0 => format!("{prefix}Signal:{signal}"),
        _ => format!("{prefix}ExitCode:{}", terminated["exitCode"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value, status: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": spec, "status": status})
    }

    #[test]
    fn a_status_is_the_word_that_tells_most() {
        let app = json!({"containers": [{"name": "c"}]});
        let state = |state: Value, ready: bool| json!({"phase": "Running", "containerStatuses": [{"name": "c", "state": state, "ready": ready}]});
        assert_eq!(status(&pod(app.clone(), state(json!({"running": {}}), true))), "Running");
        assert_eq!(
            status(&pod(app.clone(), state(json!({"waiting": {"reason": "CrashLoopBackOff"}}), false))),
            "CrashLoopBackOff"
        );
        assert_eq!(
            status(&pod(app.clone(), state(json!({"terminated": {"exitCode": 0, "reason": "Completed"}}), false))),
            "Completed"
        );
        assert_eq!(status(&pod(app.clone(), state(json!({"terminated": {"exitCode": 3}}), false))), "ExitCode:3");
        let mut dying = pod(app, state(json!({"running": {}}), true));
        dying["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(status(&dying), "Terminating");
        let spec = json!({"initContainers": [{"name": "a"}, {"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "c"}]});
        let init = |first: Value, second: Value| {
            json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "a", "state": first}, {"name": "s", "state": second, "started": second["running"].is_object(), "ready": true}]})
        };
        assert_eq!(status(&pod(spec.clone(), init(json!({"running": {}}), json!({})))), "Init:0/2");
        let done = json!({"terminated": {"exitCode": 0}});
        assert_eq!(
            status(&pod(spec.clone(), init(done.clone(), json!({"waiting": {"reason": "ErrImagePull"}})))),
            "Init:ErrImagePull"
        );
        assert_eq!(status(&pod(spec.clone(), init(done.clone(), json!({"running": {}})))), "Pending");
        assert_eq!(ready(&pod(spec, init(done, json!({"running": {}})))), json!("1/2"));
    }
}
