//! What goes on beside a running container: hooks and probes.

use super::exec::Exit;
use super::probes::{self, Kind, Tally, Timing};
use super::run::Run;
use super::worker::{News, Word};
use super::{Node, PodError};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep, sleep_until};

/// What may be done to a container by a hook takes at most so long, unless a grace period says otherwise.
const HOOK: Duration = Duration::from_secs(60);

/// A run of a container, as its probes and hooks see it.
#[derive(Clone)]
pub(super) struct Ward {
    pub(super) node: Arc<Node>,
    pub(super) run: Arc<Run>,
    pub(super) container: Arc<Container>,
    pub(super) address: Ipv4Addr,
    pub(super) words: UnboundedSender<Word>,
}

impl Ward {
    fn tell(&self, news: News) {
        let _ = self.words.send(Word::Container { name: self.container.name.clone(), id: self.run.id.clone(), news });
    }

    /// Runs the post-start hook and all probes until the container ends or is condemned.
    pub(super) async fn watch_over(self) {
        if let Some(hook) = self.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref())
            && let Err(message) = self.hook(hook, HOOK).await
        {
            self.tell(News::Event {
                reason: "FailedPostStartHook",
                message: format!("PostStartHook failed: {message}"),
            });
            return self.tell(News::Condemned("failed its postStart hook".into()));
        }
        self.tell(News::Hooked);
        if Kind::Startup.of(&self.container).is_some() && !self.probe(Kind::Startup).await {
            return;
        }
        self.tell(News::Started);
        if Kind::Readiness.of(&self.container).is_none() {
            self.tell(News::Ready(true));
        }
        tokio::join!(self.probe(Kind::Liveness), self.probe(Kind::Readiness));
    }

    /// Probes again and again; a startup probe until it has succeeded. False if the container was condemned.
    async fn probe(&self, kind: Kind) -> bool {
        let Some(probe) = kind.of(&self.container) else { return true };
        let timing = Timing::of(probe);
        let began = Instant::now() - self.age();
        sleep_until(began + timing.delay).await;
        let (mut tally, mut ready) = (Tally::default(), false);
        loop {
            let begun = Instant::now();
            let ask = probes::ask(probe, &self.container, self.address, timing.timeout, |argv| {
                self.command(argv, timing.timeout)
            });
            let answer = ask.await;
            let verdict = tally.note(kind, &timing, answer.is_ok());
            if let (Err(why), true) = (&answer, verdict.counts) {
                self.tell(News::Event { reason: "Unhealthy", message: format!("{} probe failed: {why}", kind.name()) });
            }
            match (kind, verdict.settled) {
                (Kind::Startup, Some(true)) => return true,
                (Kind::Startup | Kind::Liveness, Some(false)) => {
                    let kind = kind.name().to_lowercase();
                    self.tell(News::Condemned(format!("failed {kind} probe, will be restarted")));
                    return false;
                }
                (Kind::Readiness, Some(now)) if now != ready => {
                    ready = now;
                    self.tell(News::Ready(now));
                }
                _ => {}
            }
            sleep_until(begun + verdict.wait).await;
        }
    }

    fn age(&self) -> Duration {
        jiff::Timestamp::now().duration_since(self.run.since).try_into().unwrap_or_default()
    }

    async fn command(&self, argv: Vec<String>, timeout: Duration) -> Result<(), String> {
        match self.run.run_command(&self.node.spawner, argv, timeout).await? {
            (Exit::Code(0), _) => Ok(()),
            (exit, output) if output.is_empty() => Err(format!("command exited with {}", exit.code())),
            (_, output) => Err(output.trim_end().to_owned()),
        }
    }

    async fn hook(&self, hook: &LifecycleHandler, timeout: Duration) -> Result<(), String> {
        let running = async {
            if let Some(exec) = &hook.exec {
                self.command(exec.command.clone().unwrap_or_default(), timeout).await
            } else if let Some(get) = &hook.http_get {
                probes::http_get(get, &self.container, self.address).await
            } else if let Some(pause) = &hook.sleep {
                sleep(Duration::from_secs(pause.seconds.max(0) as u64)).await;
                Ok(())
            } else {
                Ok(())
            }
        };
        let late = || Err(format!("not done after {}s", timeout.as_secs()));
        tokio::time::timeout(timeout, running).await.unwrap_or_else(|_| late())
    }

    /// Asks the container to end, and ends it when its grace is over.
    pub(super) async fn stop(self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let mut process = self.run.process.clone();
        if !grace.is_zero() {
            if let Some(hook) = self.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) {
                let done = tokio::select! {
                    done = self.hook(hook, grace) => done,
                    _ = process.ended() => Ok(()),
                };
                if let Err(message) = done {
                    self.tell(News::Event {
                        reason: "FailedPreStopHook",
                        message: format!("PreStopHook failed: {message}"),
                    });
                }
            }
            process.signal(self.stop_signal());
            if tokio::time::timeout_at(deadline, process.ended()).await.is_ok() {
                return;
            }
        }
        process.signal(libc::SIGKILL);
    }

    fn stop_signal(&self) -> i32 {
        let wanted = self.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref());
        wanted
            .and_then(|name| name.parse::<nix::sys::signal::Signal>().ok())
            .map_or(libc::SIGTERM, |signal| signal as i32)
    }
}

/// The error of a container that has none of what was asked.
pub(super) fn not_running(container: &str) -> PodError {
    PodError::NotNow(format!("container {container} is not running"))
}
