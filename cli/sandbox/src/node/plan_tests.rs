//! Pods in every stage of their lives, and what is decided for them.

use super::*;
use serde_json::json;

const NOW: Timestamp = Timestamp::constant(1_000_000, 0);

fn at(seconds: i64) -> Timestamp {
    NOW.checked_add(SignedDuration::from_secs(seconds)).unwrap()
}

/// `init` before `side` (a sidecar) before `late` (another init), then `a` and `b`.
fn pod(policy: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n"},
        "spec": {
            "restartPolicy": policy, "terminationGracePeriodSeconds": 10,
            "initContainers": [
                {"name": "init", "image": "i"},
                {"name": "side", "image": "i", "restartPolicy": "Always"},
                {"name": "late", "image": "i"},
            ],
            "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}],
        },
    }))
    .unwrap()
}

fn ended(code: i32, finished: i64) -> Ended {
    let reason = if code == 0 { "Completed" } else { "Error" };
    Ended {
        code,
        signal: None,
        reason: reason.into(),
        message: None,
        started: at(finished - 1),
        finished: at(finished),
        id: "x".into(),
    }
}

/// Reads `init:0 side:started late:run a:wait`: exit code, or what it is doing.
fn sightings(text: &str) -> Sightings {
    let one = |word: &str| {
        let (name, state) = word.split_once(':').unwrap();
        let mut seen = Seen::default();
        let running = State::Running { since: NOW, id: "x".into() };
        match state {
            "wait" => {}
            "starting" => seen.state = State::Starting,
            "run" => seen.state = running,
            "hooked" => (seen.state, seen.hooked) = (running, true),
            "started" => (seen.state, seen.started) = (running, true),
            "stopping" => (seen.state, seen.stopping) = (running, true),
            "sick" => (seen.state, seen.condemned) = (running, Some("sick".into())),
            code => seen.note_end(ended(code.parse().unwrap(), 0)),
        }
        (name.to_owned(), seen)
    };
    text.split_whitespace().map(one).collect()
}

fn check(policy: &str, seen: &str, stop: Option<Stop>, expect: &str) {
    check_pod(&pod(policy), seen, stop, expect);
}

fn check_pod(pod: &Pod, seen: &str, stop: Option<Stop>, expect: &str) {
    let decision = decide(pod, &sightings(seen), stop, NOW);
    let words: Vec<String> = decision
        .actions
        .iter()
        .map(|action| match action {
            Action::Start(name) => format!("start {name}"),
            Action::Stop { container, grace, .. } => format!("stop {container} {}", grace.as_secs()),
            Action::Finish => "finish".into(),
        })
        .collect();
    assert_eq!(
        words.join(", "),
        expect,
        "{:?} {seen}",
        pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_ref())
    );
}

#[test]
fn the_next_container_waits_for_a_hook() {
    let spec =
        json!({"containers": [{"name": "a", "lifecycle": {"postStart": {"sleep": {"seconds": 1}}}}, {"name": "b"}]});
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
    check_pod(&pod, "", None, "start a");
    check_pod(&pod, "a:starting", None, "");
    check_pod(&pod, "a:run", None, "");
    check_pod(&pod, "a:hooked", None, "start b");
    check_pod(&pod, "a:sick", None, "stop a 30, start b");
    check_pod(&pod, "a:1", None, "start a, start b");
}

#[test]
fn containers_start_in_order() {
    check("Always", "", None, "start init");
    check("Always", "init:starting", None, "");
    check("Always", "init:0", None, "start side");
    check("Always", "init:0 side:run", None, "");
    check("Always", "init:0 side:started", None, "start late");
    check("Always", "init:0 side:started late:0", None, "start a, start b");
    check("Always", "init:0 side:started late:0 a:run b:wait", None, "start b");
}

#[test]
fn ended_containers_start_again_by_policy() {
    check("Always", "init:1", None, "start init");
    check("Never", "init:1", None, "finish");
    check("Always", "init:0 side:started late:0 a:0 b:run", None, "start a");
    check("OnFailure", "init:0 side:started late:0 a:0 b:run", None, "");
    check("OnFailure", "init:0 side:started late:0 a:2 b:run", None, "start a");
    check("Never", "init:0 side:started late:0 a:2 b:run", None, "");
    // A sidecar that is down doesn't keep applications from running, once they have.
    check("Always", "init:0 side:1 late:0 a:0 b:run", None, "start side, start a");
    check("Never", "init:0 side:1 late:wait", None, "start side");
}

#[test]
fn a_pod_whose_applications_are_done_sends_its_sidecars_home() {
    check("Never", "init:0 side:started late:0 a:0 b:1", None, "stop side 10");
    check("Never", "init:0 side:stopping late:0 a:0 b:1", None, "");
    check("Never", "init:0 side:0 late:0 a:0 b:1", None, "finish");
}

#[test]
fn stopping_goes_from_applications_to_sidecars() {
    let stop = |ago: i64, grace| Some(Stop { since: at(-ago), grace: SignedDuration::from_secs(grace) });
    check("Always", "init:0 side:started late:0 a:run b:run", stop(0, 10), "stop a 10, stop b 10");
    check("Always", "init:0 side:started late:0 a:stopping b:0", stop(3, 10), "");
    check("Always", "init:0 side:started late:0 a:0 b:0", stop(3, 10), "stop side 7");
    check("Always", "init:0 side:started late:0 a:0 b:0", stop(30, 10), "stop side 2");
    check("Always", "init:0 side:started late:0 a:0 b:0", stop(0, 0), "stop side 0");
    check("Always", "init:0 side:143 late:0 a:0 b:0", stop(3, 10), "finish");
    check("Always", "init:starting", stop(0, 10), "");
    check("Always", "init:run", stop(0, 10), "stop init 10");
    check("Always", "", stop(0, 10), "finish");
}

#[test]
fn the_condemned_are_stopped_once() {
    check("Always", "init:0 side:started late:0 a:sick b:run", None, "stop a 10");
    check("Always", "init:0 side:started late:0 a:stopping b:run", None, "");
}

#[test]
fn waits_grow_and_are_forgotten() {
    let mut seen = Seen::default();
    let mut waits = Vec::new();
    for _ in 0..8 {
        seen.note_end(ended(1, 0));
        waits.push(seen.not_before.unwrap().duration_since(NOW).as_secs());
    }
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    seen.note_end(Ended { started: at(-700), ..ended(1, 0) });
    assert_eq!(seen.not_before, Some(NOW));
    let decision = decide(
        &pod("Always"),
        &[("init".to_owned(), {
            seen.note_end(ended(1, 0));
            seen
        })]
        .into(),
        None,
        NOW,
    );
    assert_eq!(decision, Decision { actions: vec![], wake: Some(at(10)) });
}

#[test]
fn restarts_are_counted_once() {
    let mut seen = Seen::default();
    seen.note_start();
    seen.note_refused("ErrImagePull", "none".into(), NOW);
    assert_eq!((seen.restarts, seen.last.is_none()), (0, true));
    seen.note_start();
    seen.note_end(ended(1, 0));
    seen.note_start();
    seen.note_refused("CreateContainerConfigError", "none".into(), NOW);
    seen.note_start();
    assert_eq!((seen.restarts, seen.last.is_some()), (1, true));
}
