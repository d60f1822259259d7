//! One pod's life on the node: a task that takes in what happens, asks [`super::plan`] what to do, does it, and reports.

use super::addresses::Addresses;
use super::container::{self, Site};
use super::events::Events;
use super::exec::Exit;
use super::object::Object;
use super::place::{self, Place};
use super::plan::{self, Action, Ended, Part, Seen, Sightings, State, Stop};
use super::run::Run;
use super::spawner::Namespaces;
use super::supervise::Ward;
use super::volumes::{Volumes, with_api_access};
use super::{Node, layout, status};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::AbortHandle;

/// What happens to a pod. The queue is bounded by what feeds it: watch events, and a few words a container.
pub(super) enum Word {
    /// Its object changed.
    Changed(Arc<Pod>),
    /// Its object is gone: nothing of it may stay.
    Gone,
    /// Objects or images it may refer to changed.
    Contents,
    /// It is time to look again.
    Time,
    /// Something about a run of a container.
    Container { name: String, id: String, news: News },
}

/// News of a run of a container.
pub(super) enum News {
    Hooked,
    Started,
    Ready(bool),
    Condemned(String),
    Event { reason: &'static str, message: String },
    Ended(Exit),
}

/// What others may know of a pod and reach of it.
pub(super) struct Shared {
    pub(super) uid: String,
    pub(super) containers: Vec<String>,
    /// The one meant where none is named.
    pub(super) default_container: String,
    pub(super) namespaces: RwLock<Option<Arc<Namespaces>>>,
    pub(super) host_network: bool,
    pub(super) runs: RwLock<HashMap<String, Runs>>,
}

/// The last two runs of a container.
#[derive(Clone, Default)]
pub(super) struct Runs {
    pub(super) current: Option<Arc<Run>>,
    pub(super) previous: Option<Arc<Run>>,
}

impl Shared {
    pub(super) fn new(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            containers: spec.iter().flat_map(|spec| plan::containers(spec)).map(|(_, c)| c.name.clone()).collect(),
            default_container: default_container(pod),
            namespaces: RwLock::default(),
            host_network: spec.and_then(|spec| spec.host_network) == Some(true),
            runs: RwLock::default(),
        }
    }
}

/// Where the pod is in its life.
enum Stage {
    /// Its network and volumes are to be made.
    New { failures: u32 },
    /// Containers may run.
    Prepared(Place),
    /// Everything of it is given back.
    Over,
}

pub(super) struct Worker {
    node: Arc<Node>,
    object: Object,
    /// With what the node adds.
    effective: Arc<Pod>,
    automount: Option<bool>,
    shared: Arc<Shared>,
    folder: PathBuf,
    volumes: Volumes,
    events: Arc<Events>,
    seen: Sightings,
    stage: Stage,
    /// The addresses it has or had.
    addresses: Option<Addresses>,
    began: Timestamp,
    gone: bool,
    /// When the node saw that the pod is to be deleted; its object says so only in whole seconds.
    asked_to_stop: Option<Timestamp>,
    retry_at: Option<Timestamp>,
    /// The probes of running containers.
    wards: HashMap<String, AbortHandle>,
    words: UnboundedSender<Word>,
}

impl Worker {
    pub(super) fn new(node: Arc<Node>, pod: &Pod, shared: Arc<Shared>, words: UnboundedSender<Word>) -> Self {
        let folder = layout::pod(&node.config.root, &shared.uid);
        let volumes = Volumes::new(
            node.client.clone(),
            node.config.ca.clone(),
            node.config.root.clone(),
            layout::volumes(&folder),
        );
        Self {
            events: Arc::new(Events::new(node.client.clone())),
            effective: Arc::new(pod.clone()),
            object: Object::new(node.client.clone(), pod),
            automount: None,
            shared,
            folder,
            volumes,
            seen: Sightings::new(),
            stage: Stage::New { failures: 0 },
            addresses: None,
            began: Timestamp::now(),
            gone: false,
            asked_to_stop: None,
            retry_at: None,
            wards: HashMap::new(),
            words,
            node,
        }
    }

    /// Lives the pod's life to its end.
    pub(super) async fn run(mut self, mut words: UnboundedReceiver<Word>) {
        loop {
            let wake = self.advance().await;
            if self.gone && matches!(self.stage, Stage::Over) {
                return;
            }
            let word = match wake {
                None => words.recv().await,
                Some(at) => {
                    let wait = at.duration_since(Timestamp::now()).max(SignedDuration::from_millis(1));
                    let wait = Duration::try_from(wait).unwrap_or(Duration::from_secs(1));
                    tokio::time::timeout(wait, words.recv()).await.unwrap_or(Some(Word::Time))
                }
            };
            let Some(word) = word else { return };
            self.note(word).await;
            while let Ok(word) = words.try_recv() {
                self.note(word).await;
            }
        }
    }

    /// Takes in what happened.
    async fn note(&mut self, word: Word) {
        match word {
            Word::Gone => {
                self.gone = true;
                for run in self.shared.runs.read().values().filter_map(|runs| runs.current.as_ref()) {
                    run.process.signal(libc::SIGKILL);
                }
            }
            Word::Changed(pod) => {
                if self.object.take(&pod) {
                    self.effective = Arc::new(with_api_access(self.object.pod(), self.automount));
                    self.refresh_volumes().await;
                }
            }
            Word::Time => self.refresh_volumes().await,
            Word::Contents => {
                // What was missing may be there now.
                self.retry_at = None;
                self.seen.values_mut().for_each(Seen::try_again);
                self.refresh_volumes().await;
            }
            Word::Container { name, id, news } => self.note_container(&name, &id, news),
        }
    }

    fn note_container(&mut self, name: &str, id: &str, news: News) {
        let current =
            matches!(self.seen.get(name).map(|seen| &seen.state), Some(State::Running { id: now, .. }) if now == id);
        if let News::Event { reason, message } = news {
            return self.events.warning(self.object.pod(), name, reason, message);
        }
        let Some(seen) = self.seen.get_mut(name).filter(|_| current) else { return };
        match news {
            News::Hooked => seen.hooked = true,
            News::Started => seen.started = true,
            News::Ready(ready) => seen.ready = ready,
            News::Condemned(why) => seen.condemned = Some(why),
            News::Ended(exit) => self.note_end(name, id, exit),
            News::Event { .. } => {}
        }
    }

    fn note_end(&mut self, name: &str, id: &str, exit: Exit) {
        if let Some(ward) = self.wards.remove(name) {
            ward.abort();
        }
        let run = self.shared.runs.read().get(name).and_then(|runs| runs.current.clone());
        let code = exit.code();
        let message = self
            .container(name)
            .and_then(|(_, container)| container::last_words(&self.folder, &container, run.as_deref(), code != 0));
        let Some(seen) = self.seen.get_mut(name) else { return };
        let ended = Ended {
            code,
            signal: match exit {
                Exit::Signal(signal) => Some(signal),
                Exit::Code(_) => None,
            },
            reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
            message,
            started: run.map_or_else(Timestamp::now, |run| run.since),
            finished: Timestamp::now(),
            id: id.to_owned(),
        };
        seen.note_end(ended);
        self.tell_of_backoff(name);
    }

    /// Says that a container will be started again, but not at once.
    fn tell_of_backoff(&self, name: &str) {
        let (Some((part, _)), Some(seen), Some(spec)) =
            (self.container(name), self.seen.get(name), &self.object.pod().spec)
        else {
            return;
        };
        let Some(ended) = seen.ended() else { return };
        let waits = seen.not_before.is_some_and(|until| until > ended.finished);
        if waits && self.stop().is_none() && plan::restarts(part, plan::policy(spec), ended) {
            let meta = &self.object.pod().metadata;
            let (pod, namespace) = (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref());
            let message = format!(
                "Back-off restarting failed container {name} in pod {pod}_{}({})",
                namespace.unwrap_or("default"),
                self.shared.uid
            );
            self.events.warning(self.object.pod(), name, "BackOff", message);
        }
    }

    fn container(&self, name: &str) -> Option<(Part, Container)> {
        let spec = self.effective.spec.as_ref()?;
        plan::containers(spec).find(|(_, c)| c.name == name).map(|(part, c)| (part, c.clone()))
    }

    fn stop(&self) -> Option<Stop> {
        if self.gone {
            return Some(Stop { since: self.began, grace: SignedDuration::ZERO });
        }
        let meta = &self.object.pod().metadata;
        let grace = SignedDuration::from_secs(meta.deletion_grace_period_seconds.unwrap_or(30).max(0));
        let asked = self.asked_to_stop.map(|since| Stop { since, grace });
        asked.or_else(|| self.deadline().filter(|at| *at <= Timestamp::now()).map(|since| Stop { since, grace }))
    }

    /// When the pod has been active for longer than it may, if it may not for ever.
    fn deadline(&self) -> Option<Timestamp> {
        let seconds = self.object.pod().spec.as_ref()?.active_deadline_seconds?;
        self.began.checked_add(SignedDuration::from_secs(seconds)).ok()
    }

    /// Does what is to be done now; returns when to look again if nothing happens.
    async fn advance(&mut self) -> Option<Timestamp> {
        let now = Timestamp::now();
        let mut wake = None;
        if self.object.pod().metadata.deletion_timestamp.is_some() {
            self.asked_to_stop.get_or_insert(now);
        }
        let stop = self.stop();
        if let Stage::New { failures } = self.stage {
            if stop.is_some() || self.has_ended_before() {
                self.finish().await;
            } else if self.retry_at.is_none_or(|at| at <= now) {
                self.prepare(failures).await;
            }
            wake = self.retry_at;
        }
        if matches!(self.stage, Stage::Prepared(_)) {
            let decision = plan::decide(&self.effective, &self.seen, stop, Timestamp::now());
            wake = earlier(decision.wake, self.volumes.refresh_at());
            wake = earlier(wake, self.deadline().filter(|_| stop.is_none()));
            let again = !decision.actions.is_empty();
            for action in decision.actions {
                self.act(action).await;
            }
            if again {
                // Refusals and missing programs show at once; ask again right after reporting.
                wake = earlier(wake, self.next_start());
            }
        }
        if !self.report().await {
            wake = earlier(wake, now.checked_add(SignedDuration::from_secs(1)).ok());
        }
        let leaving = self.object.pod().metadata.deletion_timestamp.is_some() && !self.gone;
        if matches!(self.stage, Stage::Over) && leaving && !self.object.remove().await {
            wake = earlier(wake, now.checked_add(SignedDuration::from_secs(1)).ok());
        }
        wake
    }

    /// When the next container waiting for its time may start.
    fn next_start(&self) -> Option<Timestamp> {
        let now = Timestamp::now();
        let waiting = self.seen.values().filter(|seen| !seen.is_live());
        waiting.filter_map(|seen| seen.not_before).filter(|at| *at > now).min()
    }

    /// The pod ran to its end before this node knew of it.
    fn has_ended_before(&self) -> bool {
        let phase = self.object.pod().status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    async fn prepare(&mut self, failures: u32) {
        match self.make_place().await {
            Ok(place) => {
                self.addresses = Some(place.addresses());
                self.retry_at = None;
                self.tell_of_limits();
                *self.shared.namespaces.write() = place.namespaces.clone();
                self.stage = Stage::Prepared(place);
            }
            Err(error) => {
                let wait = SignedDuration::from_millis(200).saturating_mul(1 << failures.min(6));
                self.retry_at = Timestamp::now().checked_add(wait).ok();
                self.stage = Stage::New { failures: failures + 1 };
                let text = format!("{error:#}");
                let reason = if text.starts_with("MountVolume") { "FailedMount" } else { "FailedCreatePodSandBox" };
                self.events.warning(self.object.pod(), "", reason, text);
            }
        }
    }

    /// Says what of the pod's specification this node cannot do.
    fn tell_of_limits(&self) {
        let ignored = self.object.pod().spec.as_ref().map(plan::ignored).unwrap_or_default();
        if !ignored.is_empty() {
            let message = format!("this node ignores {}", ignored.join(", "));
            self.events.warning(self.object.pod(), "", "Unsupported", message);
        }
    }

    /// What the node adds to the pod, its volumes and its network.
    async fn make_place(&mut self) -> anyhow::Result<Place> {
        if self.automount.is_none() {
            self.automount = Some(place::account_mounts_token(&self.node.client, self.object.pod()).await?);
        }
        self.effective = Arc::new(with_api_access(self.object.pod(), self.automount));
        place::make_folders(&self.folder)?;
        let pod = Arc::clone(&self.effective);
        // Before the network, because what is missing here may be missing for long.
        let before = container::subject(&pod, Addresses::NONE);
        self.volumes.refresh(&before, Timestamp::now()).await?;
        let place = Place::make(&self.node, self.object.pod(), self.shared.host_network).await?;
        let after = container::subject(&pod, place.addresses());
        let files = place::write_files(&self.folder, self.object.pod(), place.addresses());
        match files.and(self.volumes.refresh(&after, Timestamp::now()).await) {
            Ok(()) => Ok(place),
            Err(error) => {
                place.release(&self.node).await;
                Err(error)
            }
        }
    }

    async fn refresh_volumes(&mut self) {
        if !matches!(self.stage, Stage::Prepared(_)) {
            return;
        }
        let addresses = self.addresses.unwrap_or_else(|| self.node.network.addresses());
        let pod = Arc::clone(&self.effective);
        if let Err(error) = self.volumes.refresh(&container::subject(&pod, addresses), Timestamp::now()).await {
            self.events.warning(self.object.pod(), "", "FailedMount", format!("{error:#}"));
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Start(name) => self.start(&name).await,
            Action::Stop { container, grace, why } => self.stop_container(&container, grace, &why),
            Action::Finish => self.finish().await,
        }
    }

    async fn start(&mut self, name: &str) {
        let Some((_, container)) = self.container(name) else { return };
        let Stage::Prepared(place) = &self.stage else { return };
        let image = container.image.clone().unwrap_or_default();
        let id = format!("{:016x}{:016x}", Timestamp::now().as_nanosecond() as u64, self.node.next_id());
        let seen = self.seen.entry(name.to_owned()).or_default();
        seen.note_start();
        let attempt = seen.restarts;
        let addresses = place.addresses();
        let effective = Arc::clone(&self.effective);
        let site = Site {
            node: &self.node,
            pod: &effective,
            folder: &self.folder,
            volumes: &self.volumes,
            namespaces: place.namespaces.as_deref(),
            addresses,
        };
        let started = match site.pull(&container) {
            Ok(entrypoint) => {
                let message = format!("Container image \"{image}\" already present on machine");
                self.events.normal(self.object.pod(), name, "Pulled", message);
                site.start(&container, entrypoint, id.clone(), attempt).await
            }
            Err(refusal) => Err(refusal),
        };
        match started {
            Ok(run) => self.note_running(container, Arc::new(run), addresses.v4),
            Err(refusal) => self.note_refusal(name, &image, id, refusal),
        }
    }

    fn note_running(&mut self, container: Container, run: Arc<Run>, address: Ipv4Addr) {
        let name = container.name.clone();
        self.events.normal(self.object.pod(), &name, "Created", format!("Created container: {name}"));
        self.events.normal(self.object.pod(), &name, "Started", format!("Started container {name}"));
        if let Some(seen) = self.seen.get_mut(&name) {
            seen.state = State::Running { since: run.since, id: run.id.clone() };
        }
        {
            let mut runs = self.shared.runs.write();
            let runs = runs.entry(name.clone()).or_default();
            runs.previous = runs.current.replace(Arc::clone(&run));
        }
        let words = self.words.clone();
        let (ending, id) = (Arc::clone(&run), run.id.clone());
        let ended_name = name.clone();
        tokio::spawn(async move {
            let exit = ending.ended().await;
            let _ = words.send(Word::Container { name: ended_name, id, news: News::Ended(exit) });
        });
        let ward = self.ward(container, run, address);
        self.wards.insert(name, tokio::spawn(ward.watch_over()).abort_handle());
    }

    fn ward(&self, container: Container, run: Arc<Run>, address: Ipv4Addr) -> Ward {
        Ward { node: Arc::clone(&self.node), run, container: Arc::new(container), address, words: self.words.clone() }
    }

    fn note_refusal(&mut self, name: &str, image: &str, id: String, refusal: container::Refusal) {
        let now = Timestamp::now();
        let Some(seen) = self.seen.get_mut(name) else { return };
        if refusal.ran {
            self.events.warning(self.object.pod(), name, "Failed", format!("Error: {}", refusal.message));
            return seen.note_end(Ended {
                code: 128,
                signal: None,
                reason: "StartError".to_owned(),
                message: Some(refusal.message),
                started: now,
                finished: now,
                id,
            });
        }
        let mut reason = refusal.reason;
        if reason == "ErrImagePull" {
            self.events.warning(
                self.object.pod(),
                name,
                "Failed",
                format!("Failed to pull image \"{image}\": {}", refusal.message),
            );
            if seen.failures > 0 {
                reason = "ImagePullBackOff";
            }
        }
        seen.note_refused(reason, refusal.message.clone(), now);
        let message =
            if reason.starts_with("Err") || reason.starts_with("Image") { reason.to_owned() } else { refusal.message };
        self.events.warning(self.object.pod(), name, "Failed", format!("Error: {message}"));
    }

    fn stop_container(&mut self, name: &str, grace: SignedDuration, why: &str) {
        let Some((_, container)) = self.container(name) else { return };
        let run = self.shared.runs.read().get(name).and_then(|runs| runs.current.clone());
        let (Some(run), Some(seen)) = (run, self.seen.get_mut(name)) else { return };
        seen.stopping = true;
        let message = match &seen.condemned {
            Some(_) => format!("Container {name} {why}"),
            None => format!("Stopping container {name}"),
        };
        self.events.normal(self.object.pod(), name, "Killing", message);
        if let Some(ward) = self.wards.remove(name) {
            ward.abort();
        }
        let grace = Duration::try_from(grace).unwrap_or_default();
        let address = self.addresses.unwrap_or_else(|| self.node.network.addresses()).v4;
        tokio::spawn(self.ward(container, run, address).stop(grace));
    }

    /// Gives back what was made for the pod.
    async fn finish(&mut self) {
        for (_, ward) in self.wards.drain() {
            ward.abort();
        }
        self.shared.namespaces.write().take();
        if let Stage::Prepared(place) = std::mem::replace(&mut self.stage, Stage::Over) {
            place.release(&self.node).await;
        }
        let folder = self.folder.clone();
        let removed = tokio::task::spawn_blocking(move || place::remove_folder(&folder)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, folder = %self.folder.display(), "removing a pod's files");
        }
    }

    /// Tells the API how the pod is, if that is news; false if it should be tried again.
    async fn report(&mut self) -> bool {
        if self.gone || (matches!(self.stage, Stage::Over) && self.has_ended_before() && self.seen.is_empty()) {
            return true;
        }
        let facts = status::Facts {
            host: self.node.network.addresses(),
            addresses: self.addresses.filter(|_| !matches!(self.stage, Stage::New { .. })),
            host_network: self.shared.host_network,
            started: self.began,
            ending: self.stop().is_some(),
            overdue: self.asked_to_stop.is_none() && self.deadline().is_some_and(|at| at <= Timestamp::now()),
        };
        let status = status::report(self.object.pod(), &self.seen, facts, Timestamp::now());
        self.object.write_status(&status).await
    }
}

/// The container an annotation names, else the first.
fn default_container(pod: &Pod) -> String {
    let annotated =
        pod.metadata.annotations.iter().flatten().find(|(key, _)| *key == "kubectl.kubernetes.io/default-container");
    let first = || pod.spec.as_ref().and_then(|spec| spec.containers.first()).map(|container| container.name.clone());
    annotated.map(|(_, name)| name.clone()).or_else(first).unwrap_or_default()
}

fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
