//! Where messages come from: streams of the observe API, opened again when they break.

use crate::cluster::Cluster;
use crate::error::{Error, Hint, Result};
use crate::observe::{self, Ask};
use crate::resource::Resource;
use crate::tap::{TapAsk, TapTarget};
use crate::top::account::Lines;
use crate::top::state::{Screen, State, Subject};
use crate::top::tap::filter_of;
use crate::top::update::Msg;
use futures::StreamExt;
use futures::stream::BoxStream;
use mesh_api::WorkloadRef;
use mesh_api::golden::GoldenFrame;
use mesh_api::tap::TapMessage;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;

/// A control plane that is silent for so long is taken for lost.
const SILENCE: Duration = Duration::from_secs(5);
/// How long opening a stream may take.
const OPENING: Duration = Duration::from_secs(10);
/// Waits between attempts to get a stream back: doubling from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Single requests a second that are asked for: more than anybody can read, few enough for a screen.
const TAP_RPS: u32 = 200;

/// A stream of golden frames.
pub type Frames = BoxStream<'static, Result<GoldenFrame>>;

/// Opens the stream of frames, under a deadline.
pub async fn open(cluster: &Cluster, ask: &Ask) -> Result<Frames> {
    under_deadline(observe::stream(cluster, ask)).await
}

async fn under_deadline<T>(opening: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(OPENING, opening).await.unwrap_or_else(|_| {
        Err(Error::new(format!("no answer within {} s", OPENING.as_secs())).during("read golden metrics"))
            .hint(|| "run `meshctl check`")
    })
}

/// Frames, for as long as somebody looks: when the stream breaks, opens another.
pub async fn follow(cluster: Cluster, ask: Ask, first: Frames, to_screen: Sender<Msg>) {
    let mut pause = RETRY.0;
    let mut opened = Ok(first);
    loop {
        let why = match opened {
            Err(error) => error,
            Ok(mut frames) => {
                if to_screen.send(Msg::Connected).await.is_err() {
                    return;
                }
                loop {
                    match tokio::time::timeout(SILENCE, frames.next()).await {
                        Ok(Some(Ok(frame))) => {
                            pause = RETRY.0;
                            if to_screen.send(Msg::Frame(Box::new(frame))).await.is_err() {
                                return;
                            }
                        }
                        Ok(Some(Err(error))) => break error,
                        Ok(None) => break Error::new("the control plane ended the stream"),
                        Err(_) => break Error::new(format!("no numbers for {} s", SILENCE.as_secs())),
                    }
                }
            }
        };
        if to_screen.send(Msg::Lost(why.cause().to_owned())).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
        opened = open(&cluster, &ask).await;
    }
}

/// What the screen shown needs beyond the frames that always come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// Frames that tell this workload's pods apart.
    pub pods: Option<WorkloadRef>,
    /// Single requests of this.
    pub tap: Option<Subject>,
}

/// What a state needs. A recording brings all it has by itself.
pub fn wants(state: &State) -> Wants {
    if state.replay.is_some() {
        return Wants::default();
    }
    let subject = state.subject.as_ref().filter(|_| state.screen == Screen::Details);
    // What the frames tell apart by pod already need not be asked for.
    let told = state.account.window.frames().back().is_some_and(|frame| frame.series.iter().any(|s| s.pod.is_some()));
    let pods = subject.filter(|_| !told).and_then(workload_of);
    let tap = state.tap.subject.clone().filter(|_| state.screen == Screen::Tap);
    Wants { pods, tap }
}

/// The workload that the observe API knows a subject by; pods, services and namespaces are none.
fn workload_of(subject: &Subject) -> Option<WorkloadRef> {
    const OTHERS: [&str; 4] = ["service", "namespace", "serviceaccount", "external"];
    let workload = subject.workload();
    let is_one = subject.lines == Lines::Edges || workload.kind != "pod";
    (is_one && !OTHERS.contains(&workload.kind.as_str())).then_some(workload)
}

/// Streams that are open because the screen needs them.
#[derive(Default)]
pub struct Extras {
    wanted: Wants,
    pods: Option<JoinHandle<()>>,
    tap: Option<JoinHandle<()>>,
}

impl Extras {
    /// Opens what is needed now, and ends what is not needed any longer.
    pub fn keep(&mut self, cluster: &Cluster, window: Duration, wanted: Wants, to_screen: &Sender<Msg>) {
        if wanted.pods != self.wanted.pods {
            self.pods.take().inspect(JoinHandle::abort);
            self.pods = wanted
                .pods
                .clone()
                .map(|workload| tokio::spawn(follow_pods(cluster.clone(), workload, window, to_screen.clone())));
        }
        if wanted.tap != self.wanted.tap {
            self.tap.take().inspect(JoinHandle::abort);
            self.tap =
                wanted.tap.clone().map(|subject| tokio::spawn(follow_tap(cluster.clone(), subject, to_screen.clone())));
        }
        self.wanted = wanted;
    }
}

impl Drop for Extras {
    fn drop(&mut self) {
        self.pods.take().inspect(JoinHandle::abort);
        self.tap.take().inspect(JoinHandle::abort);
    }
}

/// Frames of one workload, by pod. That they are missing is seen, why is told by the stream of all frames.
async fn follow_pods(cluster: Cluster, workload: WorkloadRef, window: Duration, to_screen: Sender<Msg>) {
    let WorkloadRef { namespace, kind, name } = workload;
    let seconds = window.min(observe::MAX_WINDOW).as_secs().max(1);
    let ask = format!("golden?window={seconds}&pods=true");
    let path = observe::path(Some(&namespace), &format!("{kind}.{name}"), &ask);
    loop {
        if let Ok(mut frames) = under_deadline(observe::lines(&cluster, path.clone(), "golden metrics")).await {
            let mut first = true;
            while let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE, frames.next()).await {
                if to_screen.send(Msg::Pods(Box::new(frame), first)).await.is_err() {
                    return;
                }
                first = false;
            }
        }
        tokio::time::sleep(RETRY.1).await;
    }
}

/// Single requests of a subject, as they end.
async fn follow_tap(cluster: Cluster, subject: Subject, to_screen: Sender<Msg>) {
    let mut pause = RETRY.0;
    loop {
        let why = match under_deadline(observe_tap(&cluster, &subject)).await {
            Err(error) => error,
            Ok(mut messages) => {
                if to_screen.send(Msg::TapConnected).await.is_err() {
                    return;
                }
                loop {
                    match messages.next().await {
                        Some(Ok(message)) => {
                            pause = RETRY.0;
                            if to_screen.send(Msg::Tapped(message)).await.is_err() {
                                return;
                            }
                        }
                        Some(Err(error)) => break error,
                        None => break Error::new("the control plane ended the tap"),
                    }
                }
            }
        };
        let hint = why.hint_text().map(str::to_owned);
        if to_screen.send(Msg::TapLost(why.cause().to_owned(), hint)).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Opens a tap of a subject.
async fn observe_tap(cluster: &Cluster, subject: &Subject) -> Result<BoxStream<'static, Result<TapMessage>>> {
    let WorkloadRef { namespace, kind, name } = subject.workload();
    let of = Resource::read_one(&format!("{kind}/{name}"))?;
    let target = TapTarget { namespace: Some(namespace), of, only: None };
    crate::tap::stream(cluster, &TapAsk { max_rps: TAP_RPS, ..TapAsk::new(target, filter_of(subject)) }).await
}
