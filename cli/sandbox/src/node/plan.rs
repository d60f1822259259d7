//! What to do next with a pod: a pure function of its specification, what has been seen of its containers, and the time.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use std::collections::BTreeMap;

/// Wait before the second restart of a container; doubles with each further one.
const BACKOFF: SignedDuration = SignedDuration::from_secs(10);
/// Longest wait.
const MAX_BACKOFF: SignedDuration = SignedDuration::from_secs(300);
/// A container that ran for so long starts with a clean slate.
const BACKOFF_RESET: SignedDuration = SignedDuration::from_secs(600);
/// Grace that is left to a sidecar whose pod has used up its own.
const LEAST_GRACE: SignedDuration = SignedDuration::from_secs(2);
/// Wait after something outside the container (its image, its configuration) was missing; doubles.
const RETRY: SignedDuration = SignedDuration::from_millis(250);
/// Longest such wait.
const MAX_RETRY: SignedDuration = SignedDuration::from_secs(10);

/// What a container is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Runs to its end before the next.
    Init,
    /// An init container that stays: restarted always, stopped last.
    Sidecar,
    /// What the pod is for.
    App,
}

/// How a run of a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) code: i32,
    pub(super) signal: Option<i32>,
    pub(super) reason: String,
    pub(super) message: Option<String>,
    pub(super) started: Timestamp,
    pub(super) finished: Timestamp,
    pub(super) id: String,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Not started yet; for a reason, if something is wrong.
    Waiting(Option<(String, String)>),
    /// Being started.
    Starting,
    /// Its program runs.
    Running { since: Timestamp, id: String },
    /// Its program has ended.
    Ended(Ended),
}

/// What the node has seen of a container.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) state: State,
    /// The run before this one.
    pub(super) last: Option<Ended>,
    pub(super) restarts: i32,
    /// Its post-start hook, if any, has succeeded.
    pub(super) hooked: bool,
    /// Its startup probe and post-start hook, if any, have succeeded.
    pub(super) started: bool,
    pub(super) ready: bool,
    /// Being stopped.
    pub(super) stopping: bool,
    /// A probe or hook has condemned it.
    pub(super) condemned: Option<String>,
    /// Failures in a row, for the length of waits.
    pub(super) failures: u32,
    /// Not to be started before.
    pub(super) not_before: Option<Timestamp>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            state: State::Waiting(None),
            last: None,
            restarts: 0,
            hooked: false,
            started: false,
            ready: false,
            stopping: false,
            condemned: None,
            failures: 0,
            not_before: None,
        }
    }
}

impl Seen {
    /// It occupies a process, or is about to.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, State::Starting | State::Running { .. })
    }

    /// It is about to be started, or its post-start hook is not done yet. As with the kubelet, the next container waits for
    /// the hook, however that comes out; not for a container that cannot be started.
    fn is_before_hook(&self) -> bool {
        let coming = matches!(self.state, State::Waiting(None) | State::Starting | State::Running { .. });
        coming && !self.hooked && self.condemned.is_none()
    }

    /// The end of its current run.
    pub(super) fn ended(&self) -> Option<&Ended> {
        match &self.state {
            State::Ended(ended) => Some(ended),
            _ => None,
        }
    }

    /// It is about to be started.
    pub(super) fn note_start(&mut self) {
        if let State::Ended(ended) = &self.state {
            self.last = Some(ended.clone());
            self.restarts += 1;
        }
        self.state = State::Starting;
        (self.hooked, self.started, self.ready, self.stopping) = (false, false, false, false);
        self.condemned = None;
    }

    /// It could not be started for a reason outside of it.
    pub(super) fn note_refused(&mut self, reason: &str, message: String, now: Timestamp) {
        self.state = State::Waiting(Some((reason.to_owned(), message)));
        let wait = RETRY.saturating_mul(1 << self.failures.min(10)).min(MAX_RETRY);
        self.failures += 1;
        self.not_before = now.checked_add(wait).ok();
    }

    /// What kept it from being started may be different now.
    pub(super) fn try_again(&mut self) {
        if matches!(self.state, State::Waiting(Some(_))) {
            (self.failures, self.not_before) = (0, None);
        }
    }

    /// Its program ended.
    pub(super) fn note_end(&mut self, ended: Ended) {
        let ran = ended.finished.duration_since(ended.started);
        if ran >= BACKOFF_RESET {
            self.failures = 0;
        }
        // The first restart is immediate, as the kubelet's is.
        let wait = match self.failures {
            0 => SignedDuration::ZERO,
            n => BACKOFF.saturating_mul(1 << (n - 1).min(10)).min(MAX_BACKOFF),
        };
        self.failures += 1;
        self.not_before = ended.finished.checked_add(wait).ok();
        self.state = State::Ended(ended);
        (self.hooked, self.started, self.ready, self.stopping) = (false, false, false, false);
    }
}

/// Containers by name.
pub(super) type Sightings = BTreeMap<String, Seen>;

/// The pod is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) since: Timestamp,
    pub(super) grace: SignedDuration,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Start a container.
    Start(String),
    /// Stop one, asking first.
    Stop { container: String, grace: SignedDuration, why: String },
    /// Nothing of the pod runs or will run again.
    Finish,
}

/// What to do, and when to ask again if nothing happens.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) actions: Vec<Action>,
    pub(super) wake: Option<Timestamp>,
}

/// The containers of a pod in the order in which they start.
pub(super) fn containers(spec: &PodSpec) -> impl DoubleEndedIterator<Item = (Part, &Container)> {
    let part = |c: &Container| if c.restart_policy.as_deref() == Some("Always") { Part::Sidecar } else { Part::Init };
    let init = spec.init_containers.iter().flatten().map(move |c| (part(c), c));
    init.chain(spec.containers.iter().map(|c| (Part::App, c)))
}

/// Whether a container that ended like this is started again.
pub(super) fn restarts(part: Part, policy: &str, ended: &Ended) -> bool {
    match (part, policy) {
        (Part::Sidecar, _) => true,
        (Part::Init, "Never") => false,
        (Part::Init, _) => ended.code != 0,
        (Part::App, "Never") => false,
        (Part::App, "OnFailure") => ended.code != 0,
        (Part::App, _) => true,
    }
}

/// The restart policy, `Always` unless given.
pub(super) fn policy(spec: &PodSpec) -> &str {
    spec.restart_policy.as_deref().unwrap_or("Always")
}

fn has_hook(container: &Container) -> bool {
    container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some())
}

/// The pod's grace period.
pub(super) fn grace(spec: &PodSpec) -> SignedDuration {
    SignedDuration::from_secs(spec.termination_grace_period_seconds.unwrap_or(30).max(0))
}

/// Fields of a pod that have no effect here.
pub(super) fn ignored(spec: &PodSpec) -> Vec<&'static str> {
    let ports = containers(spec).flat_map(|(_, container)| container.ports.iter().flatten());
    let host_port = ports.into_iter().any(|port| port.host_port.is_some());
    [
        ("shareProcessNamespace", spec.share_process_namespace == Some(true)),
        ("hostPID", spec.host_pid == Some(true)),
        ("hostIPC", spec.host_ipc == Some(true)),
        ("hostPort", host_port && spec.host_network != Some(true)),
    ]
    .into_iter()
    .filter_map(|(field, set)| set.then_some(field))
    .collect()
}

/// Whether all applications have ended for good, or an init container has failed for good.
pub(super) fn is_over(spec: &PodSpec, seen: &Sightings) -> bool {
    let policy = policy(spec);
    let final_end =
        |part, name: &str| seen.get(name).and_then(Seen::ended).filter(|ended| !restarts(part, policy, ended));
    let init_failed = containers(spec)
        .filter(|(part, _)| *part == Part::Init)
        .any(|(part, c)| final_end(part, &c.name).is_some_and(|ended| ended.code != 0));
    init_failed || spec.containers.iter().all(|c| final_end(Part::App, &c.name).is_some())
}

/// Decides. A pod that isn't to stop still ends by itself when its applications have.
pub(super) fn decide(pod: &Pod, seen: &Sightings, stop: Option<Stop>, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let Some(spec) = &pod.spec else { return decision };
    let none = Seen::default();
    let look = |name: &str| seen.get(name).unwrap_or(&none);
    if stop.is_some() || is_over(spec, seen) {
        let stop = stop.unwrap_or(Stop { since: now, grace: grace(spec) });
        decision.actions = wind_down(spec, look, stop, now);
        return decision;
    }
    for (_, container) in containers(spec) {
        let seen = look(&container.name);
        if let (State::Running { .. }, Some(why), false) = (&seen.state, &seen.condemned, seen.stopping) {
            let own = container.liveness_probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds);
            let grace = own.map_or_else(|| grace(spec), SignedDuration::from_secs);
            decision.actions.push(Action::Stop { container: container.name.clone(), grace, why: why.clone() });
        }
    }
    let begun = spec.containers.iter().any(|c| {
        let seen = look(&c.name);
        seen.last.is_some() || seen.ended().is_some() || seen.is_live()
    });
    for (part, container) in containers(spec) {
        let seen = look(&container.name);
        let wanted = match &seen.state {
            State::Waiting(_) => true,
            State::Ended(ended) => restarts(part, policy(spec), ended),
            State::Starting | State::Running { .. } => false,
        };
        if wanted {
            match seen.not_before.filter(|until| *until > now) {
                Some(until) => decision.wake = Some(decision.wake.map_or(until, |wake| wake.min(until))),
                None => decision.actions.push(Action::Start(container.name.clone())),
            }
        }
        let passed = match part {
            Part::Init => seen.ended().is_some_and(|ended| ended.code == 0),
            Part::Sidecar => begun || (seen.started && matches!(seen.state, State::Running { .. })),
            Part::App => !(has_hook(container) && seen.is_before_hook()),
        };
        if !passed {
            break;
        }
    }
    decision
}

/// Stops applications together, then sidecars one by one in reverse.
fn wind_down<'a>(spec: &PodSpec, look: impl Fn(&str) -> &'a Seen, stop: Stop, now: Timestamp) -> Vec<Action> {
    let left = stop.grace - now.duration_since(stop.since);
    let order = |container: &Container, grace| Action::Stop {
        container: container.name.clone(),
        grace,
        why: "the pod ends".to_owned(),
    };
    let live: Vec<_> = containers(spec).filter(|(_, c)| look(&c.name).is_live()).collect();
    if live.is_empty() {
        return vec![Action::Finish];
    }
    let mut others = live.iter().filter(|(part, _)| *part != Part::Sidecar).peekable();
    if others.peek().is_some() {
        let running = others.filter(|(_, c)| {
            let seen = look(&c.name);
            !seen.stopping && matches!(seen.state, State::Running { .. })
        });
        return running.map(|(_, c)| order(c, left.max(SignedDuration::ZERO))).collect();
    }
    let last = live.last().filter(|(_, c)| {
        let seen = look(&c.name);
        !seen.stopping && matches!(seen.state, State::Running { .. })
    });
    let grace = if stop.grace.is_zero() { stop.grace } else { left.max(LEAST_GRACE) };
    last.map(|(_, c)| order(c, grace)).into_iter().collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
