//! Pods in every stage of their lives, and what is reported of them.

use super::*;
use jiff::SignedDuration;
use serde_json::json;

const NOW: Timestamp = Timestamp::constant(1_000_000, 0);

fn pod(policy: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {
            "restartPolicy": policy,
            "initContainers": [{"name": "init", "image": "i"}, {"name": "side", "image": "i", "restartPolicy": "Always"}],
            "containers": [{"name": "app", "image": "i"}],
        },
    }))
    .unwrap()
}

fn running(ready: bool) -> Seen {
    Seen { state: State::Running { since: NOW, id: "r".into() }, started: true, ready, ..Seen::default() }
}

fn exited(code: i32) -> Seen {
    let mut seen = Seen::default();
    let reason = if code == 0 { "Completed" } else { "Error" };
    seen.note_end(Ended {
        code,
        signal: None,
        reason: reason.into(),
        message: None,
        started: NOW,
        finished: NOW,
        id: "e".into(),
    });
    seen
}

fn facts() -> Facts {
    Facts {
        addresses: Some(Addresses::of_pod(9, true)),
        host: Addresses::of_node(true),
        host_network: false,
        started: NOW,
        ending: false,
        overdue: false,
    }
}

/// `phase; condition=status …; container:state …`
fn summary(policy: &str, seen: &[(&str, Seen)]) -> String {
    let seen = seen.iter().map(|(name, seen)| ((*name).to_owned(), seen.clone())).collect();
    let status = report(&pod(policy), &seen, facts(), NOW);
    let short = |c: &ContainerStatus| {
        let state = c.state.clone().unwrap();
        let what = match state {
            ContainerState { running: Some(_), .. } => "running".to_owned(),
            ContainerState { terminated: Some(t), .. } => t.reason.unwrap(),
            ContainerState { waiting, .. } => waiting.unwrap().reason.unwrap(),
        };
        format!("{}:{what}{}", c.name, if c.ready { "+" } else { "" })
    };
    let held: Vec<_> =
        status.conditions.iter().flatten().filter(|c| c.status == "True").map(|c| c.type_.as_str()).collect();
    let all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    format!("{}; {}; {}", status.phase.unwrap(), held.join(" "), all.map(short).collect::<Vec<_>>().join(" "))
}

#[test]
fn from_pending_to_ready() {
    let base = "PodReadyToStartContainers";
    assert_eq!(
        summary("Always", &[]),
        format!("Pending; {base} PodScheduled; init:ContainerCreating side:ContainerCreating app:PodInitializing")
    );
    assert_eq!(
        summary("Always", &[("init", exited(0)), ("side", running(true))]),
        format!("Pending; {base} Initialized PodScheduled; init:Completed+ side:running+ app:PodInitializing")
    );
    let up = |ready| [("init", exited(0)), ("side", running(true)), ("app", running(ready))];
    assert_eq!(
        summary("Always", &up(false)),
        format!("Running; {base} Initialized PodScheduled; init:Completed+ side:running+ app:running")
    );
    assert_eq!(
        summary("Always", &up(true)),
        format!(
            "Running; {base} Initialized Ready ContainersReady PodScheduled; init:Completed+ side:running+ app:running+"
        )
    );
}

#[test]
fn ends() {
    let end = |side: Seen, code| [("init", exited(0)), ("side", side), ("app", exited(code))];
    let base = "PodReadyToStartContainers Initialized PodScheduled";
    assert_eq!(
        summary("Never", &end(running(true), 0)),
        format!("Running; {base}; init:Completed+ side:running+ app:Completed")
    );
    assert_eq!(
        summary("Never", &end(exited(143), 0)),
        format!("Succeeded; {base}; init:Completed+ side:Error app:Completed")
    );
    assert_eq!(
        summary("Never", &end(exited(0), 3)),
        format!("Failed; {base}; init:Completed+ side:Completed app:Error")
    );
    assert_eq!(
        summary("Never", &[("init", exited(1))]),
        "Failed; PodReadyToStartContainers PodScheduled; init:Error side:ContainerCreating app:PodInitializing"
    );
}

#[test]
fn a_crash_loop_shows_itself() {
    let mut app = exited(1);
    let ended = app.ended().unwrap().clone();
    app.note_start();
    app.note_end(ended);
    let seen = [("init".to_owned(), exited(0)), ("side".to_owned(), running(true)), ("app".to_owned(), app)].into();
    let status = report(&pod("Always"), &seen, facts(), NOW);
    let app = &status.container_statuses.unwrap()[0];
    let waiting = app.state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(waiting.message.as_deref(), Some("back-off 10s restarting failed container=app pod=p_n(u)"));
    assert_eq!((app.restart_count, app.last_state.clone().unwrap().terminated.unwrap().exit_code), (1, 1));
    assert_eq!(status.phase.as_deref(), Some("Running"));
}

#[test]
fn transition_times_stay_while_nothing_changes() {
    let mut pod = pod("Always");
    pod.status = Some(report(&pod, &Sightings::new(), facts(), NOW));
    let later = NOW.checked_add(SignedDuration::from_secs(60)).unwrap();
    let status = report(&pod, &Sightings::new(), facts(), later);
    assert_eq!(status, pod.status.unwrap());
}

#[test]
fn quality_of_service() {
    for (resources, expect) in [
        (json!({}), "BestEffort"),
        (json!({"requests": {"cpu": "1"}}), "Burstable"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable"),
    ] {
        let spec = serde_json::from_value(json!({"containers": [{"name": "c", "resources": resources}]})).unwrap();
        assert_eq!(qos_class(&spec), expect, "{spec:?}");
    }
}
