//! The status of a pod as the kubelet reports it: a pure function of what has been seen.

use super::addresses::Addresses;
use super::plan::{self, Ended, Part, Seen, Sightings, State};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What a container's id begins with.
const RUNTIME: &str = "mesh";

/// What is known of a pod besides its containers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) addresses: Option<Addresses>,
    /// The node's.
    pub(super) host: Addresses,
    pub(super) host_network: bool,
    /// When the node took it on.
    pub(super) started: Timestamp,
    /// It is ending: nothing will be started again.
    pub(super) ending: bool,
    /// It has been active for longer than it may.
    pub(super) overdue: bool,
}

/// The status to report at `now`, given the one reported before.
pub(super) fn report(pod: &Pod, seen: &Sightings, facts: Facts, now: Timestamp) -> PodStatus {
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let before = pod.status.clone().unwrap_or_default();
    let name = pod.metadata.name.clone().unwrap_or_default();
    let describe = |(part, container): (Part, &Container)| {
        let seen = seen.get(&container.name).cloned().unwrap_or_default();
        container_status(&Context { pod, spec, facts, name: &name, now }, part, container, &seen)
    };
    let init: Vec<ContainerStatus> =
        plan::containers(spec).filter(|(part, _)| *part != Part::App).map(describe).collect();
    let mut apps: Vec<ContainerStatus> =
        plan::containers(spec).filter(|(part, _)| *part == Part::App).map(describe).collect();
    apps.sort_by(|a, b| a.name.cmp(&b.name));
    let mut phase = phase(spec, seen, facts.ending);
    if facts.overdue {
        phase = "Failed";
    }
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        host_ip: Some(facts.host.v4.to_string()),
        host_ips: Some(facts.host.all().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ips: facts.addresses.map(|all| all.all().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        pod_ip: facts.addresses.map(|addresses| addresses.v4.to_string()),
        start_time: before.start_time.clone().or(Some(Time(facts.started))),
        qos_class: Some(qos_class(spec).to_owned()),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: Some(apps),
        observed_generation: pod.metadata.generation,
        reason: facts.overdue.then(|| "DeadlineExceeded".to_owned()),
        message: facts.overdue.then(|| "Pod was active on the node longer than the specified deadline".to_owned()),
        conditions: None,
        ..PodStatus::default()
    };
    status.conditions = Some(conditions(spec, seen, phase, facts, &before, now));
    status
}

struct Context<'a> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    facts: Facts,
    name: &'a str,
    now: Timestamp,
}

fn container_status(context: &Context<'_>, part: Part, container: &Container, seen: &Seen) -> ContainerStatus {
    let (state, last) = states(context, part, container, seen);
    let id = match &seen.state {
        State::Running { id, .. } => Some(id),
        State::Ended(ended) => Some(&ended.id),
        _ => seen.last.as_ref().map(|last| &last.id),
    };
    let image = container.image.clone().unwrap_or_default();
    ContainerStatus {
        name: container.name.clone(),
        image_id: if id.is_some() { format!("{RUNTIME}://{image}") } else { String::new() },
        image,
        container_id: id.map(|id| format!("{RUNTIME}://{id}")),
        ready: is_ready(part, seen),
        started: Some(seen.started && matches!(seen.state, State::Running { .. })),
        restart_count: seen.restarts,
        state: Some(state),
        last_state: Some(last.map_or_else(ContainerState::default, |ended| terminated(&ended))),
        resources: container.resources.clone(),
        ..ContainerStatus::default()
    }
}

/// A regular init container is ready once it has ended well, all others while they run and say so.
fn is_ready(part: Part, seen: &Seen) -> bool {
    match (part, &seen.state) {
        (Part::Init, State::Ended(ended)) => ended.code == 0,
        (Part::Init, _) => false,
        (_, State::Running { .. }) => seen.ready,
        _ => false,
    }
}

/// What the container does, and how its last run ended.
fn states(context: &Context<'_>, part: Part, container: &Container, seen: &Seen) -> (ContainerState, Option<Ended>) {
    match &seen.state {
        State::Running { since, .. } => {
            let running = ContainerStateRunning { started_at: Some(Time(*since)) };
            (ContainerState { running: Some(running), ..ContainerState::default() }, seen.last.clone())
        }
        State::Ended(ended) => {
            let wait = seen.not_before.filter(|until| *until > context.now);
            let again = !context.facts.ending && plan::restarts(part, plan::policy(context.spec), ended);
            let Some(until) = wait.filter(|_| again) else { return (terminated(ended), seen.last.clone()) };
            let seconds = until.duration_since(ended.finished).as_secs();
            let (namespace, uid) =
                (context.pod.metadata.namespace.as_deref().unwrap_or("default"), context.pod.metadata.uid.as_deref());
            let message = format!(
                "back-off {seconds}s restarting failed container={} pod={}_{namespace}({})",
                container.name,
                context.name,
                uid.unwrap_or_default(),
            );
            (waiting("CrashLoopBackOff", Some(message)), Some(ended.clone()))
        }
        State::Waiting(Some((reason, message))) => (waiting(reason, Some(message.clone())), seen.last.clone()),
        State::Waiting(None) | State::Starting => {
            let initializing =
                part == Part::App && context.spec.init_containers.as_ref().is_some_and(|c| !c.is_empty());
            let reason = if initializing && seen.last.is_none() { "PodInitializing" } else { "ContainerCreating" };
            (waiting(reason, None), seen.last.clone())
        }
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn terminated(ended: &Ended) -> ContainerState {
    let terminated = ContainerStateTerminated {
        container_id: Some(format!("{RUNTIME}://{}", ended.id)),
        exit_code: ended.code,
        signal: ended.signal,
        reason: Some(ended.reason.clone()),
        message: ended.message.clone(),
        started_at: Some(Time(ended.started)),
        finished_at: Some(Time(ended.finished)),
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

fn seen_of<'a>(seen: &'a Sightings, name: &str) -> Option<&'a Seen> {
    seen.get(name)
}

/// Init containers that are still to do what the next one waits for.
fn incomplete<'a>(spec: &'a PodSpec, seen: &Sightings) -> Vec<&'a str> {
    plan::containers(spec)
        .filter(|(part, container)| {
            let seen = seen_of(seen, &container.name);
            match part {
                Part::Init => seen.and_then(Seen::ended).is_none_or(|ended| ended.code != 0),
                Part::Sidecar => !seen.is_some_and(|seen| seen.started || seen.restarts > 0),
                Part::App => false,
            }
        })
        .map(|(_, container)| container.name.as_str())
        .collect()
}

fn phase(spec: &PodSpec, seen: &Sightings, ending: bool) -> &'static str {
    let of = |c: &Container| seen_of(seen, &c.name);
    let over = plan::is_over(spec, seen);
    let live = plan::containers(spec).any(|(_, c)| of(c).is_some_and(Seen::is_live));
    let begun = |c: &Container| {
        of(c).is_some_and(|s| s.last.is_some() || matches!(s.state, State::Running { .. } | State::Ended(_)))
    };
    let all_well = !spec.containers.is_empty()
        && spec.containers.iter().all(|c| of(c).and_then(Seen::ended).is_some_and(|ended| ended.code == 0));
    if (over || ending) && !live {
        let any = plan::containers(spec).any(|(_, c)| begun(c));
        return match (all_well, any || over) {
            (true, _) => "Succeeded",
            (false, true) => "Failed",
            (false, false) => "Pending",
        };
    }
    // A pod once running stays so while its init containers' records say otherwise (they do not run again).
    if spec.containers.iter().all(begun) && !spec.containers.is_empty() { "Running" } else { "Pending" }
}

fn conditions(
    spec: &PodSpec,
    seen: &Sightings,
    phase: &str,
    facts: Facts,
    before: &PodStatus,
    now: Timestamp,
) -> Vec<PodCondition> {
    let incomplete = incomplete(spec, seen);
    let started = |seen: &Seen| seen.is_live() || seen.last.is_some() || seen.ended().is_some();
    let begun = spec.containers.iter().any(|c| seen_of(seen, &c.name).is_some_and(started));
    let succeeded = phase == "Succeeded";
    let unready: Vec<&str> = plan::containers(spec)
        .filter(|(part, c)| *part != Part::Init && !seen_of(seen, &c.name).is_some_and(|seen| is_ready(*part, seen)))
        .map(|(_, c)| c.name.as_str())
        .collect();
    let done = || Some(("PodCompleted", String::new()));
    let initialized = if incomplete.is_empty() || succeeded || begun {
        None
    } else {
        Some(("ContainersNotInitialized", format!("containers with incomplete status: [{}]", incomplete.join(" "))))
    };
    let containers_ready = if succeeded {
        done()
    } else if phase == "Failed" {
        Some(("PodFailed", String::new()))
    } else if unready.is_empty() {
        None
    } else {
        Some(("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))))
    };
    let held = |kind: &str| before.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True");
    let missing_gate = spec.readiness_gates.iter().flatten().find(|gate| !held(&gate.condition_type));
    let ready = containers_ready.clone().or_else(|| {
        missing_gate.map(|gate| {
            let message =
                format!("corresponding condition of pod readiness gate \"{}\" does not exist.", gate.condition_type);
            ("ReadinessGatesNotReady", message)
        })
    });
    let networked = facts.addresses.is_some() || facts.host_network;
    let mut conditions = vec![
        condition("PodReadyToStartContainers", networked, None, before, now),
        condition("Initialized", initialized.is_none(), initialized, before, now),
        condition("Ready", ready.is_none(), ready, before, now),
        condition("ContainersReady", containers_ready.is_none(), containers_ready, before, now),
        condition("PodScheduled", true, None, before, now),
    ];
    // What others have said about the pod stays.
    let ours: Vec<String> = conditions.iter().map(|c| c.type_.clone()).collect();
    conditions.extend(before.conditions.iter().flatten().filter(|c| !ours.contains(&c.type_)).cloned());
    conditions
}

fn condition(kind: &str, holds: bool, why: Option<(&str, String)>, before: &PodStatus, now: Timestamp) -> PodCondition {
    let status = if holds { "True" } else { "False" };
    let previous = before.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        last_transition_time: previous.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        reason: why.as_ref().map(|(reason, _)| (*reason).to_owned()),
        message: why.map(|(_, message)| message).filter(|message| !message.is_empty()),
        ..PodCondition::default()
    }
}

/// `Guaranteed` if every container limits CPU and memory and asks for no less, `BestEffort` if none asks for anything.
pub(super) fn qos_class(spec: &PodSpec) -> &'static str {
    let all: Vec<Option<&ResourceRequirements>> =
        plan::containers(spec).map(|(_, container)| container.resources.as_ref()).collect();
    let asks = |r: &ResourceRequirements| {
        [&r.limits, &r.requests].into_iter().flatten().any(|m| m.contains_key("cpu") || m.contains_key("memory"))
    };
    if !all.iter().flatten().any(|r| asks(r)) {
        return "BestEffort";
    }
    let guaranteed = |r: &ResourceRequirements| {
        ["cpu", "memory"].iter().all(|resource| {
            let limit = r.limits.as_ref().and_then(|limits| limits.get(*resource));
            let request = r.requests.as_ref().and_then(|requests| requests.get(*resource));
            limit.is_some() && (request.is_none() || request == limit)
        })
    };
    if all.iter().all(|r| r.is_some_and(guaranteed)) { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
