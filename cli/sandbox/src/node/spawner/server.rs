//! Process 1 of the sandbox: starts processes when asked and reaps all of them.
//!
//! It is single-threaded and small, so that it can fork freely and do between fork and exec whatever is needed, which
//! the node itself, with its threads, could not. If it ends, the kernel ends everything else in the sandbox.

use super::enter;
use super::protocol::{ExitWire, Launch, News, Order, Place, Request, Role};
use super::wire;
use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

/// Namespaces a pod's containers share.
const SHARED: [(&str, CloneFlags); 3] =
    [("net", CloneFlags::CLONE_NEWNET), ("ipc", CloneFlags::CLONE_NEWIPC), ("uts", CloneFlags::CLONE_NEWUTS)];

/// The spawner's own namespaces, to come back to.
struct Home {
    shared: Vec<(File, CloneFlags)>,
    pid: File,
}

impl Home {
    fn remember() -> anyhow::Result<Self> {
        let open = |name: &str| namespace("self", name);
        let shared = SHARED.iter().map(|(name, flag)| Ok((open(name)?, *flag))).collect::<anyhow::Result<_>>()?;
        Ok(Self { shared, pid: open("pid")? })
    }
}

pub(super) fn namespace(process: &str, name: &str) -> anyhow::Result<File> {
    let path = format!("/proc/{process}/ns/{name}");
    File::open(&path).with_context(|| format!("opening {path}"))
}

/// Serves the node, process `daemon`, over `socket` until it ends; returns its exit code.
pub(crate) fn serve(socket: OwnedFd, daemon: Pid) -> anyhow::Result<i32> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("blocking signals")?;
    let signal_fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let home = Home::remember()?;
    // Children that ended before the signals were blocked.
    if let Some(code) = reap(&socket, daemon) {
        return Ok(code);
    }
    loop {
        let mut fds =
            [PollFd::new(signal_fd.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.context("waiting for signals and requests")?,
        };
        let asked = fds[1].revents().is_some_and(|events| !events.is_empty());
        while let Ok(Some(signal)) = signal_fd.read_signal() {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                let _ = kill(daemon, Signal::SIGTERM);
            }
        }
        if let Some(code) = reap(&socket, daemon) {
            return Ok(code);
        }
        if asked {
            match wire::receive::<Request>(socket.as_fd()) {
                Ok(Some((request, fds))) => handle(&socket, &home, request, fds),
                // The node closed its end; its own end follows.
                Ok(None) => {
                    let _ = kill(daemon, Signal::SIGTERM);
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                Err(error) => return Err(error).context("reading a request"),
            }
        }
    }
}

/// Collects every ended process; the node's exit code if it is among them.
fn reap(socket: &OwnedFd, daemon: Pid) -> Option<i32> {
    loop {
        let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, ExitWire::Code(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, ExitWire::Signal(signal as i32)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            Ok(_) | Err(_) => continue,
        };
        if pid == daemon {
            return Some(super::super::exec::Exit::from(exit).code());
        }
        let _ = wire::send(socket.as_fd(), &News::Exited { pid: pid.as_raw(), exit }, &[]);
    }
}

fn handle(socket: &OwnedFd, home: &Home, request: Request, fds: Vec<OwnedFd>) {
    let id = request.id;
    let result = match request.order {
        Order::Namespaces { hostname } => make_namespaces(home, &hostname).map(|made| (0, made)),
        Order::Launch(launch) => {
            let fds = request.fds.into_iter().zip(fds).collect();
            start(home, *launch, fds).map(|pid| (pid, Vec::new()))
        }
    };
    let (news, fds) = match result {
        Ok((pid, fds)) => (News::Done { id, pid }, fds),
        Err(error) => (News::Failed { id, message: format!("{error:#}") }, Vec::new()),
    };
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let _ = wire::send(socket.as_fd(), &news, &fds);
}

/// Makes a pod's namespaces by going there and coming back.
fn make_namespaces(home: &Home, hostname: &str) -> anyhow::Result<Vec<File>> {
    let flags = SHARED.iter().fold(CloneFlags::empty(), |all, (_, flag)| all | *flag);
    unshare(flags).context("making the pod's namespaces")?;
    let made = (|| {
        nix::unistd::sethostname(hostname).context("setting the pod's host name")?;
        // Written while inside, because /proc/sys/net shows the namespace of whoever looks.
        std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
            .context("opening low ports to every user")?;
        // Not needed by every pod, nor there on every kernel.
        let _ = std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
        // For the pod's interface, which is yet to come: its addresses are what it is given, and nobody else's; it goes
        // through the node although other pods are closer (the node would tell it of a shorter way).
        for (setting, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("autoconf", "0"), ("accept_redirects", "0")]
        {
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/default/{setting}"), value);
        }
        SHARED.iter().map(|(name, _)| namespace("self", name)).collect()
    })();
    for (file, flag) in &home.shared {
        setns(file, *flag).context("coming back from the pod's namespaces")?;
    }
    made
}

/// Forks; the child becomes the process that was asked for.
#[allow(unsafe_code)]
fn start(home: &Home, launch: Launch, fds: Vec<(Role, OwnedFd)>) -> anyhow::Result<i32> {
    match &launch.place {
        Place::New(_) => unshare(CloneFlags::CLONE_NEWPID).context("making a pid namespace")?,
        Place::Join { pid } => setns(namespace(&pid.to_string(), "pid")?, CloneFlags::CLONE_NEWPID)
            .context("entering the container's pid namespace")?,
    }
    // SAFETY: this process has a single thread, so the child's memory is in order.
    let forked = unsafe { fork() };
    if let Ok(ForkResult::Child) = forked {
        enter::become_process(launch, fds);
    }
    setns(&home.pid, CloneFlags::CLONE_NEWPID).context("coming back from a pid namespace")?;
    match forked.context("forking")? {
        ForkResult::Parent { child } => Ok(child.as_raw()),
        // `become_process` does not return.
        ForkResult::Child => Ok(0),
    }
}
