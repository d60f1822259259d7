//! From a fresh fork of the spawner to the program: namespaces, files, terminal, credentials, exec.

use super::protocol::{Failure, Launch, Place, Role};
use super::{credentials, root, server, wire};
use anyhow::Context as _;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, execve, execveat};
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Does it, or reports why not and ends.
pub(super) fn become_process(launch: Launch, fds: Vec<(Role, OwnedFd)>) -> ! {
    let report = find(&fds, Role::Report).and_then(|fd| fd.try_clone().ok());
    let Err(failure) = prepare_and_exec(launch, fds);
    if let Some(report) = report {
        let mut report = File::from(report);
        let _ = serde_json::to_writer(&mut report, &failure);
        let _ = report.flush();
    }
    std::process::exit(128)
}

fn find(fds: &[(Role, OwnedFd)], role: Role) -> Option<&OwnedFd> {
    fds.iter().find(|(r, _)| *r == role).map(|(_, fd)| fd)
}

fn prepare_and_exec(launch: Launch, fds: Vec<(Role, OwnedFd)>) -> Result<Infallible, Failure> {
    let place = |error: anyhow::Error| Failure { message: format!("{error:#}"), program: false };
    prepare(&launch, &fds).map_err(place)?;
    let program = find(&fds, Role::Program);
    let Err((path, errno)) = exec(&launch, program).map_err(place)?;
    let why = match errno {
        Errno::ENOENT if !path.contains('/') => "executable file not found in $PATH".to_owned(),
        Errno::ENOENT => "no such file or directory".to_owned(),
        Errno::EACCES => "permission denied".to_owned(),
        other => other.to_string(),
    };
    Err(Failure { message: format!("exec: \"{path}\": {why}"), program: true })
}

fn prepare(launch: &Launch, fds: &[(Role, OwnedFd)]) -> anyhow::Result<()> {
    reset_signals()?;
    nix::unistd::setsid().context("starting a session")?;
    let user = match &launch.place {
        Place::New(view) => {
            for (role, flag) in [
                (Role::Net, CloneFlags::CLONE_NEWNET),
                (Role::Ipc, CloneFlags::CLONE_NEWIPC),
                (Role::Uts, CloneFlags::CLONE_NEWUTS),
            ] {
                if let Some(fd) = find(fds, role) {
                    setns(fd, flag).with_context(|| format!("entering the pod's namespace ({role:?})"))?;
                }
            }
            unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
            root::enter(view)?;
            None
        }
        Place::Join { pid } => Some(join(*pid)?),
    };
    streams(launch.tty, fds)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    if matches!(launch.place, Place::New(_)) {
        // An image's working directory is made if it isn't there.
        let _ = std::fs::create_dir_all(&launch.cwd);
    }
    nix::unistd::chdir(launch.cwd.as_str())
        .with_context(|| format!("changing to the working directory {}", launch.cwd))?;
    if let Some(user) = user.filter(|_| launch.credentials.own_user_namespace) {
        setns(user, CloneFlags::CLONE_NEWUSER).context("entering the container's user namespace")?;
    }
    let new = matches!(launch.place, Place::New(_));
    credentials::assume(&launch.credentials, new)
}

/// Enters the namespaces of a process, but for its user namespace, which is returned; the pid namespace has been
/// entered by the fork.
fn join(pid: i32) -> anyhow::Result<File> {
    let pid = pid.to_string();
    let open = |name| server::namespace(&pid, name);
    let user = open("user")?;
    let others = [
        (open("net")?, CloneFlags::CLONE_NEWNET),
        (open("ipc")?, CloneFlags::CLONE_NEWIPC),
        (open("uts")?, CloneFlags::CLONE_NEWUTS),
        (open("mnt")?, CloneFlags::CLONE_NEWNS),
    ];
    for (file, flag) in others {
        setns(file, flag).context("entering the container's namespaces")?;
    }
    Ok(user)
}

/// The spawner blocks some signals and Rust ignores SIGPIPE; a program expects neither.
#[allow(unsafe_code)]
fn reset_signals() -> anyhow::Result<()> {
    // SAFETY: setting a signal to its default installs no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }.context("resetting SIGPIPE")?;
    SigSet::empty().thread_set_mask().context("unblocking signals")
}

fn streams(tty: bool, fds: &[(Role, OwnedFd)]) -> anyhow::Result<()> {
    if tty {
        return terminal(find(fds, Role::Terminal).context("no one to give the terminal to")?);
    }
    let null = || OpenOptions::new().read(true).write(true).open("/dev/null").context("opening /dev/null");
    let stream = |role| match find(fds, role) {
        Some(fd) => fd.try_clone().context("copying a stream"),
        None => Ok(OwnedFd::from(null()?)),
    };
    dup2_stdin(stream(Role::Stdin)?).context("setting the standard input")?;
    dup2_stdout(stream(Role::Stdout)?).context("setting the standard output")?;
    dup2_stderr(stream(Role::Stderr)?).context("setting the standard error")?;
    Ok(())
}

/// Makes a terminal of the container's own and hands the controlling side to the node.
#[allow(unsafe_code)]
fn terminal(node: &OwnedFd) -> anyhow::Result<()> {
    use nix::fcntl::OFlag;
    let master =
        nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).context("making a terminal")?;
    nix::pty::grantpt(&master).context("making a terminal")?;
    nix::pty::unlockpt(&master).context("making a terminal")?;
    let name = nix::pty::ptsname_r(&master).context("making a terminal")?;
    let slave = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(&name)
        .with_context(|| format!("opening {name}"))?;
    // SAFETY: TIOCSCTTY takes an integer and touches no memory of ours.
    if unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&slave), libc::TIOCSCTTY, 0) } != 0 {
        return Err(Errno::last()).context("taking the terminal");
    }
    dup2_stdin(&slave).context("using the terminal")?;
    dup2_stdout(&slave).context("using the terminal")?;
    dup2_stderr(&slave).context("using the terminal")?;
    wire::send(node.as_fd(), &(), &[master.as_fd()]).context("handing over the terminal")
}

/// Tries to become the program; what was tried and why it failed.
fn exec(launch: &Launch, program: Option<&OwnedFd>) -> anyhow::Result<Result<Infallible, (String, Errno)>> {
    let name = launch.argv.first().context("no command given")?;
    let c = |text: &str| CString::new(text).with_context(|| format!("{text:?} contains a zero byte"));
    let argv = launch.argv.iter().map(|a| c(a)).collect::<anyhow::Result<Vec<_>>>()?;
    let env = launch.env.iter().map(|(k, v)| c(&format!("{k}={v}"))).collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(fd) = program {
        let Err(errno) = execveat(fd, c"", &argv, &env, nix::fcntl::AtFlags::AT_EMPTY_PATH);
        return Ok(Err((name.clone(), errno)));
    }
    if name.contains('/') {
        let Err(errno) = execve(&c(name)?, &argv, &env);
        return Ok(Err((name.clone(), errno)));
    }
    let path = launch.env.iter().find(|(k, _)| k == "PATH").map(|(_, v)| v.as_str()).unwrap_or_default();
    let mut seen = Errno::ENOENT;
    for folder in path.split(':').filter(|folder| !folder.is_empty()) {
        let Err(errno) = execve(&c(&format!("{folder}/{name}"))?, &argv, &env);
        if errno != Errno::ENOENT && errno != Errno::ENOTDIR {
            seen = errno;
        }
    }
    Ok(Err((name.clone(), seen)))
}
