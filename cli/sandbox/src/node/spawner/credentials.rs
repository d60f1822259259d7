//! The last step before a program: user, groups, capabilities, what it can never gain.

use super::protocol::Credentials;
use super::seccomp;
use anyhow::Context as _;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// Capabilities by number, as `linux/capability.h` has them.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// All capabilities there are.
pub(crate) const ALL: u64 = (1 << NAMES.len()) - 1;

/// What container runtimes leave a container that asks for nothing.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The bit of a capability, named with or without `CAP_`; `None` if there is none of this name.
pub(crate) fn capability(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    NAMES.iter().position(|n| *n == name).map(|position| 1 << position)
}

/// The capabilities of a container that drops and adds these; the unknown name if there is one.
pub(crate) fn capabilities(drop: &[String], add: &[String]) -> Result<u64, String> {
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let bits = |names: &[String]| {
        names
            .iter()
            .filter(|name| !is_all(name))
            .try_fold(0, |all, name| capability(name).map(|bit| all | bit).ok_or_else(|| name.clone()))
    };
    let default = DEFAULT.iter().filter_map(|name| capability(name)).fold(0, |all, bit| all | bit);
    let (dropped, added) = (bits(drop)?, bits(add)?);
    let base = if add.iter().any(is_all) { ALL } else { default };
    let base = if drop.iter().any(is_all) { 0 } else { base };
    Ok((base & !dropped) | added)
}

/// Takes on the credentials. `new` is false for a process that joined a container and its user namespace.
pub(super) fn assume(credentials: &Credentials, new: bool) -> anyhow::Result<()> {
    let Credentials { uid, gid, groups, capabilities, no_new_privileges, seccomp, own_user_namespace } = credentials;
    if *own_user_namespace && new {
        user_namespace(*uid, *gid)?;
    }
    if *seccomp {
        // Before privileges go: without them and without `no_new_privileges` a filter could not be set.
        seccomp::install().context("setting the seccomp filter")?;
    }
    drop_bounding(*capabilities)?;
    if let Some(groups) = groups {
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups).context("setting supplementary groups")?;
    }
    let (user, group) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
    setresgid(group, group, group).with_context(|| format!("becoming group {gid}"))?;
    setresuid(user, user, user).with_context(|| format!("becoming user {uid}"))?;
    // For another user than root the change has cleared them already, and exec gives root what the bounding set allows.
    if *uid == 0 {
        set_capabilities(*capabilities).context("setting capabilities")?;
    }
    if *no_new_privileges {
        nix::sys::prctl::set_no_new_privs().context("forbidding new privileges")?;
    }
    Ok(())
}

/// A user namespace in which the only user there is goes by another number.
fn user_namespace(uid: u32, gid: u32) -> anyhow::Result<()> {
    let (outer_uid, outer_gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER).context("making a user namespace for runAsUser")?;
    // A namespace that may not set groups: writing again what is so already is refused, and right.
    let _ = std::fs::write("/proc/self/setgroups", "deny");
    std::fs::write("/proc/self/uid_map", format!("{uid} {outer_uid} 1")).context("mapping the user")?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {outer_gid} 1")).context("mapping the group")
}

#[allow(unsafe_code)]
fn drop_bounding(keep: u64) -> anyhow::Result<()> {
    for (number, name) in NAMES.iter().enumerate() {
        if keep & (1 << number) != 0 {
            continue;
        }
        // SAFETY: PR_CAPBSET_DROP takes one integer.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number as libc::c_ulong, 0, 0, 0) };
        // A kernel that doesn't know the capability can't give it either.
        if dropped != 0 && Errno::last() != Errno::EINVAL {
            return Err(Errno::last()).with_context(|| format!("dropping the capability {name}"));
        }
    }
    Ok(())
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`; two of them hold 64 bits.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Version 3, 64-bit sets.
const VERSION: u32 = 0x2008_0522;

#[allow(unsafe_code)]
fn set_capabilities(keep: u64) -> nix::Result<()> {
    let header = Header { version: VERSION, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: header and data are what version 3 of the call defines and outlive it.
    if unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) } != 0 {
        return Err(Errno::last());
    }
    for (half, data) in data.iter_mut().enumerate() {
        let keep = (keep >> (32 * half)) as u32 & data.permitted;
        *data = Data { effective: keep, permitted: keep, inheritable: 0 };
    }
    // SAFETY: as above.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } != 0 {
        return Err(Errno::last());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(bits: u64) -> Vec<&'static str> {
        NAMES.iter().enumerate().filter(|(n, _)| bits & (1 << n) != 0).map(|(_, name)| *name).collect()
    }

    fn check(drop: &[&str], add: &[&str], expect: &[&str]) {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(names(capabilities(&own(drop), &own(add)).unwrap()), expect, "drop {drop:?} add {add:?}");
    }

    #[test]
    fn dropped_and_added() {
        check(&["ALL"], &[], &[]);
        check(&["all"], &["NET_ADMIN", "CAP_NET_RAW"], &["NET_ADMIN", "NET_RAW"]);
        let mut most: Vec<&str> = names(capabilities(&[], &[]).unwrap());
        assert_eq!(most.len(), DEFAULT.len());
        most.retain(|name| *name != "CHOWN");
        check(&["CHOWN"], &[], &most);
        check(&[], &["ALL"], &NAMES);
        assert_eq!(capabilities(&[], &["FLY".into()]), Err("FLY".into()));
    }

    #[test]
    fn numbers_are_the_kernels() {
        for (name, number) in [("NET_ADMIN", 12), ("NET_RAW", 13), ("SYS_ADMIN", 21), ("SETFCAP", 31), ("BPF", 39)] {
            assert_eq!(capability(name), Some(1 << number), "{name}");
        }
    }
}
