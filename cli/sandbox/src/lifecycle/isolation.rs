//! Namespaces of the sandbox's own, as root or through a user namespace, and finding out which is to be had.

use anyhow::Context as _;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::path::{Path, PathBuf};

/// How namespaces are to be had here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As root.
    Root,
    /// Through a user namespace.
    User,
}

/// Why there are no namespaces to be had here, in one line with the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Missing(String);

/// What a sandbox has of its own, besides users.
fn own() -> CloneFlags {
    CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
}

/// Finds out whether a sandbox could run here, by trying in a process that ends at once.
pub fn preflight() -> Result<Mode, Missing> {
    let root = nix::unistd::geteuid().is_root();
    if root && try_in_child(false).is_ok() {
        return Ok(Mode::Root);
    }
    match try_in_child(true) {
        Ok(()) => Ok(Mode::User),
        Err(errno) => Err(explain(errno, |name| fs::read_to_string(format!("/proc/sys/{name}")).ok())),
    }
}

/// Forks and tries to get the namespaces.
#[allow(unsafe_code)]
fn try_in_child(user: bool) -> Result<(), Errno> {
    let flags = own().bits();
    // SAFETY: the child of a process that may have threads makes system calls only, allocates nothing and ends by
    // `_exit`.
    match unsafe { libc::fork() } {
        -1 => Err(Errno::last()),
        0 => unsafe {
            let failed = (user && libc::unshare(libc::CLONE_NEWUSER) != 0) || libc::unshare(flags) != 0;
            libc::_exit(if failed { *libc::__errno_location() } else { 0 })
        },
        child => {
            use nix::sys::wait::{WaitStatus, waitpid};
            loop {
                match waitpid(nix::unistd::Pid::from_raw(child), None) {
                    Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
                    Ok(WaitStatus::Exited(_, errno)) => return Err(Errno::from_raw(errno)),
                    Ok(WaitStatus::Signaled(..)) => return Err(Errno::EPERM),
                    Err(Errno::EINTR) | Ok(_) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
    }
}

/// What stands in the way, from the settings that do so.
fn explain(errno: Errno, setting: impl Fn(&str) -> Option<String>) -> Missing {
    let is = |name: &str, value: &str| setting(name).is_some_and(|text| text.trim() == value);
    let culprits = [
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user.max_user_namespaces", "0", "15000"),
        ("user.max_net_namespaces", "0", "15000"),
    ];
    for (name, bad, good) in culprits {
        if is(&name.replace('.', "/"), bad) {
            return Missing(format!(
                "namespaces are not available to this user because {name} is {bad}; run as root, or: sudo sysctl -w {name}={good}"
            ));
        }
    }
    let hint = match errno {
        Errno::ENOSPC => "a limit on namespaces has been reached; see sysctl user.max_user_namespaces",
        Errno::EINVAL | Errno::ENOSYS => {
            "the kernel was built without them; it needs user, network, mount and pid namespaces"
        }
        _ => {
            "something forbids it, perhaps the container this runs in; run as root, or give the container --privileged"
        }
    };
    Missing(format!("namespaces are not available to this user ({errno}): {hint}"))
}

/// Leaves the host's namespaces. The pid namespace takes effect with the next fork. The calling process must have one
/// thread.
pub(super) fn leave_host(mode: Mode) -> anyhow::Result<()> {
    if mode == Mode::User {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        unshare(CloneFlags::CLONE_NEWUSER).context("making a user namespace")?;
        // Without this the kernel lets nobody but root map groups.
        fs::write("/proc/self/setgroups", "deny").context("giving up setting groups")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1")).context("mapping this user")?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context("mapping this group")?;
    }
    unshare(own()).context("making the sandbox's namespaces")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("separating the sandbox's mounts")
}

/// Places the sandbox's own file system can be mounted over; only the sandbox itself misses what was there.
const ROOMS: [&str; 3] = ["/dev/shm", "/var/log", "/mnt"];

/// Mounts the sandbox's own file system, which is gone with it, and returns where.
pub(super) fn make_room() -> anyhow::Result<PathBuf> {
    let room = ROOMS.iter().find(|room| Path::new(room).is_dir()).context("this machine has no /dev/shm")?;
    mount(Some("tmpfs"), *room, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .with_context(|| format!("mounting the sandbox's file system at {room}"))?;
    Ok(PathBuf::from(room))
}

/// What process 1 of the new pid namespace does first: processes get a `/proc` that shows them.
pub(super) fn settle() -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let none: Option<&str> = None;
    mount(Some("proc"), "/proc", Some("proc"), flags, none)
        .context("mounting the sandbox's /proc (in a container whose /proc is masked that is forbidden)")?;
    nix::unistd::sethostname(crate::node::NODE).context("setting the sandbox's host name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_in_one_line() {
        let check = |errno, settings: &'static [(&str, &str)], expect: &str| {
            let setting = |name: &str| settings.iter().find(|(n, _)| *n == name).map(|(_, v)| format!("{v}\n"));
            let text = explain(errno, setting).to_string();
            assert!(text.contains(expect) && !text.contains('\n'), "{text}");
        };
        check(
            Errno::EPERM,
            &[("kernel/unprivileged_userns_clone", "0")],
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        );
        check(
            Errno::EPERM,
            &[("kernel/unprivileged_userns_clone", "1"), ("kernel/apparmor_restrict_unprivileged_userns", "1")],
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        );
        check(Errno::ENOSPC, &[("user/max_user_namespaces", "0")], "user.max_user_namespaces=15000");
        check(Errno::ENOSPC, &[], "a limit on namespaces");
        check(Errno::EPERM, &[], "--privileged");
    }
}
