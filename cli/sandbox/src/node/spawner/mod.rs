//! Starting processes in namespaces.
//!
//! A process with threads may do very little between fork and exec, and making a container takes a lot. So the sandbox
//! has a second, single-threaded process, which is also process 1 of its pid namespace: [`server`]. This file is the
//! node's side of the socket between them; [`enter`], [`root`] and [`credentials`] are what a forked child does before
//! it becomes the program.

mod credentials;
mod enter;
mod layers;
mod protocol;
mod root;
mod seccomp;
mod server;
mod wire;

pub(crate) use credentials::{ALL as ALL_CAPABILITIES, capabilities, capability};
pub(crate) use protocol::{Bind, Credentials, Failure, Launch, Place, View};
pub(crate) use server::serve;
pub(crate) use wire::{pair, register};

use super::exec::Exit;
use anyhow::Context as _;
use parking_lot::Mutex;
use protocol::{News, Order, Request, Role};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};

/// A pod's namespaces; gone when this is dropped and its processes have ended.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pub(crate) net: OwnedFd,
    pub(crate) ipc: OwnedFd,
    pub(crate) uts: OwnedFd,
}

/// A started process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// How it ended, once it has.
    pub(crate) exit: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> Exit {
        match self.exit.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            // The spawner is gone, and with it all processes.
            _ => Exit::Signal(libc::SIGKILL),
        }
    }

    /// Sends a signal, unless it has ended.
    pub(crate) fn signal(&self, signal: i32) {
        if self.exit.borrow().is_none() {
            send_signal(self.pid, signal);
        }
    }
}

/// Sends a signal to a process of this sandbox.
pub(crate) fn send_signal(pid: i32, signal: i32) {
    if let Ok(signal) = nix::sys::signal::Signal::try_from(signal) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
    }
}

/// Whether a process has a handler for a signal.
pub(crate) fn handles(pid: i32, signal: i32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal - 1)) != 0
}

/// Where a new process's streams go.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// Its place or program.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// The spawner.
    #[error("{0}")]
    Broken(String),
}

/// The node's end; clones share it.
#[derive(Clone)]
pub(crate) struct Spawner {
    shared: Arc<Shared>,
}

type Answer = Result<(i32, watch::Receiver<Option<Exit>>, Vec<OwnedFd>), String>;

struct Shared {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    running: Mutex<HashMap<i32, watch::Sender<Option<Exit>>>>,
}

impl Spawner {
    /// Takes the socket whose other end [`serve`] has. Needs a tokio runtime.
    pub(crate) fn connect(socket: OwnedFd) -> anyhow::Result<Self> {
        let socket = register(socket).context("watching the spawner's socket")?;
        let shared =
            Arc::new(Shared { socket, next: AtomicU64::new(1), waiting: Mutex::default(), running: Mutex::default() });
        let reader = Arc::clone(&shared);
        tokio::spawn(async move {
            if let Err(error) = reader.read().await {
                tracing::error!(%error, "lost the spawner");
            }
        });
        Ok(Self { shared })
    }

    /// Makes a pod's namespaces.
    pub(crate) async fn namespaces(&self, hostname: &str) -> anyhow::Result<Namespaces> {
        let order = Order::Namespaces { hostname: hostname.to_owned() };
        let (_, _, fds) = self.ask(order, &[]).await.map_err(anyhow::Error::msg)?;
        let [net, ipc, uts] = <[OwnedFd; 3]>::try_from(fds)
            .map_err(|fds| anyhow::anyhow!("the spawner sent {} namespaces instead of three", fds.len()))?;
        Ok(Namespaces { net, ipc, uts })
    }

    /// Starts a process and returns once its program runs.
    pub(crate) async fn launch(
        &self,
        launch: Launch,
        namespaces: Option<&Namespaces>,
        streams: Streams,
        program: Option<&OwnedFd>,
    ) -> Result<Process, LaunchError> {
        self.launch_inner(launch, namespaces, streams, program, None).await
    }

    /// Starts a process with a terminal and returns that with it.
    pub(crate) async fn launch_on_terminal(
        &self,
        launch: Launch,
        namespaces: Option<&Namespaces>,
        program: Option<&OwnedFd>,
    ) -> Result<(Process, OwnedFd), LaunchError> {
        let broken = |error: std::io::Error| LaunchError::Broken(format!("handing over a terminal: {error}"));
        let (ours, theirs) = pair().map_err(broken)?;
        let process = self.launch_inner(launch, namespaces, Streams::default(), program, Some(&theirs)).await?;
        drop(theirs);
        // It was sent before the program was executed.
        match wire::receive::<()>(ours.as_fd()).map_err(broken)? {
            Some(((), mut fds)) if !fds.is_empty() => Ok((process, fds.remove(0))),
            _ => Err(LaunchError::Broken("the container handed over no terminal".into())),
        }
    }

    async fn launch_inner(
        &self,
        launch: Launch,
        namespaces: Option<&Namespaces>,
        streams: Streams,
        program: Option<&OwnedFd>,
        terminal: Option<&OwnedFd>,
    ) -> Result<Process, LaunchError> {
        let broken = |error: std::io::Error| LaunchError::Broken(format!("making a pipe: {error}"));
        let (report, report_write) = wire::pipe().map_err(broken)?;
        let mut fds: Vec<(Role, &OwnedFd)> = vec![(Role::Report, &report_write)];
        let streams = &streams;
        for (role, fd) in
            [(Role::Stdin, &streams.stdin), (Role::Stdout, &streams.stdout), (Role::Stderr, &streams.stderr)]
        {
            fds.extend(fd.as_ref().map(|fd| (role, fd)));
        }
        fds.extend(program.map(|fd| (Role::Program, fd)));
        fds.extend(terminal.map(|fd| (Role::Terminal, fd)));
        if let Some(Namespaces { net, ipc, uts }) = namespaces {
            fds.extend([(Role::Net, net), (Role::Ipc, ipc), (Role::Uts, uts)]);
        }
        let (pid, exit, _) = self.ask(Order::Launch(Box::new(launch)), &fds).await.map_err(LaunchError::Broken)?;
        drop(report_write);
        let process = Process { pid, exit };
        match failure(report).await.map_err(broken)? {
            Some(failure) => Err(LaunchError::Refused(failure)),
            None => Ok(process),
        }
    }

    async fn ask(&self, order: Order, fds: &[(Role, &OwnedFd)]) -> Answer {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.shared.waiting.lock().insert(id, sender);
        let request = Request { id, fds: fds.iter().map(|(role, _)| *role).collect(), order };
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(|(_, fd)| fd.as_fd()).collect();
        let sent = self
            .shared
            .socket
            .async_io(Interest::WRITABLE, |socket| wire::send(socket.as_fd(), &request, &borrowed))
            .await;
        if let Err(error) = sent {
            self.shared.waiting.lock().remove(&id);
            return Err(format!("asking the spawner: {error}"));
        }
        receiver.await.unwrap_or_else(|_| Err("the spawner is gone".into()))
    }
}

impl Shared {
    async fn read(&self) -> std::io::Result<()> {
        loop {
            let received =
                self.socket.async_io(Interest::READABLE, |socket| wire::receive::<News>(socket.as_fd())).await?;
            let Some((news, fds)) = received else { return Err(std::io::ErrorKind::UnexpectedEof.into()) };
            match news {
                News::Done { id, pid } => {
                    let (sender, exit) = watch::channel(None);
                    // Registered here, before the next message can be the news of its end.
                    if pid != 0 {
                        self.running.lock().insert(pid, sender);
                    }
                    self.answer(id, Ok((pid, exit, fds)));
                }
                News::Failed { id, message } => self.answer(id, Err(message)),
                News::Exited { pid, exit } => {
                    if let Some(sender) = self.running.lock().remove(&pid) {
                        sender.send_replace(Some(exit.into()));
                    }
                }
            }
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        if let Some(sender) = self.waiting.lock().remove(&id) {
            let _ = sender.send(answer);
        }
    }
}

/// What a child says about its start; nothing if it became the program.
async fn failure(report: OwnedFd) -> std::io::Result<Option<Failure>> {
    let mut text = Vec::new();
    pipe::Receiver::from_owned_fd(report)?.read_to_end(&mut text).await?;
    if text.is_empty() {
        return Ok(None);
    }
    Ok(Some(
        serde_json::from_slice(&text)
            .unwrap_or_else(|_| Failure { message: String::from_utf8_lossy(&text).into_owned(), program: false }),
    ))
}
