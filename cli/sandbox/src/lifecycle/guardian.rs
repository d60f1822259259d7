//! The sandbox's outermost process: passes on requests to end, cleans up after it.

use super::state::StateDir;
use super::{GRACE, KILLED};
use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

/// Signals that mean the sandbox should end, and the one that means it has.
pub(super) fn signals() -> SigSet {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals
}

/// Waits for process 1 of the sandbox to end, and removes the state directory. When a signal asks for it or the other
/// end of `lifeline` closes, the sandbox is asked to end, and in the end made to.
pub(super) fn watch_over(init: Pid, lifeline: Option<OwnedFd>, state: &StateDir) -> anyhow::Result<i32> {
    let code = wait(init, lifeline);
    if code.is_err() {
        let _ = kill(init, Signal::SIGKILL);
        let _ = waitpid(init, None);
    }
    state.remove()?;
    code
}

fn wait(init: Pid, mut lifeline: Option<OwnedFd>) -> anyhow::Result<i32> {
    let signal_fd = SignalFd::with_flags(&signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("watching for signals")?;
    let mut deadline: Option<Instant> = None;
    loop {
        let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
            PollTimeout::try_from(deadline.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(signal_fd.as_fd(), PollFlags::POLLIN)];
        fds.extend(lifeline.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => continue,
            other => other.context("waiting for signals")?,
        };
        let parted = fds.get(1).and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
        let mut end = parted;
        while let Ok(Some(signal)) = signal_fd.read_signal() {
            end |= signal.ssi_signo != Signal::SIGCHLD as u32;
        }
        match waitpid(init, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Err(Errno::ECHILD) => return Ok(1),
            _ => {}
        }
        if parted {
            lifeline = None;
        }
        if end && deadline.is_none() {
            let _ = kill(init, Signal::SIGTERM);
            deadline = Some(Instant::now() + GRACE);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let _ = kill(init, Signal::SIGKILL);
            deadline = Some(Instant::now() + KILLED);
        }
    }
}
