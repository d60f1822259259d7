//! The files a container sees: the host's, with its own writable layer over them, its volumes, and a `/proc`, `/sys`
//! and `/dev` of its own. Runs in the forked child, in a mount namespace of its own.

use super::layers;
use super::protocol::{Bind, View};
use anyhow::Context as _;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

/// Empty, writable directories of every container; the host's are nobody's business.
const FRESH: [(&str, &str); 4] =
    [("/tmp", "mode=1777"), ("/run", "mode=755"), ("/var/tmp", "mode=1777"), ("/var/log", "mode=755")];
/// Symbolic links followed before a path is taken for a loop.
const MAX_LINKS: usize = 40;
/// Devices every container has.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Parts of `/proc` that only show or change the machine.
const MASKED: [&str; 6] = ["kcore", "keys", "latency_stats", "timer_list", "sched_debug", "scsi"];
const PROTECTED: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Makes the view and moves into it.
pub(super) fn enter(view: &View) -> anyhow::Result<()> {
    mount_simple(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None).context("separating mounts")?;
    let root = layers::make(view)?;
    for (path, options) in FRESH {
        if let Some(target) = directory_if_possible(&root, path) {
            tmpfs(&target, options)?;
        }
    }
    if view.rootless && fs::read_dir("/root").is_err() {
        tmpfs(&directory(&root, "/root")?, "mode=700")?;
    }
    for hidden in &view.hidden {
        let target = resolve(&root, hidden)?;
        if target.is_dir() {
            tmpfs(&target, "mode=000,size=4k")?;
        }
    }
    proc(&root, view)?;
    sys(&root, view)?;
    dev(&root, view)?;
    for bind in &view.mounts {
        attach(&root, bind).with_context(|| format!("mounting {} at {}", bind.source.display(), bind.target))?;
    }
    if view.read_only {
        for path in ["/"].into_iter().chain(FRESH.iter().map(|(path, _)| *path)) {
            let target = resolve(&root, Path::new(path))?;
            if path == "/" || fs::metadata(&target).is_ok() {
                // Alone: volumes stay writable, and so does /proc, through which a user is mapped yet.
                protect(&target, 0).with_context(|| format!("write-protecting {path}"))?;
            }
        }
    }
    pivot(&root)
}

/// Makes `root` the root directory and lets go of the old one.
fn pivot(root: &Path) -> anyhow::Result<()> {
    nix::unistd::chdir(root).context("entering the container's root")?;
    nix::unistd::pivot_root(".", ".").context("changing the root directory")?;
    umount2(".", MntFlags::MNT_DETACH).context("letting go of the host's root directory")?;
    nix::unistd::chdir("/").context("entering the container's root")
}

pub(super) fn mount_simple(
    source: Option<&Path>,
    target: impl AsRef<Path>,
    kind: Option<&str>,
    flags: MsFlags,
    data: Option<&str>,
) -> nix::Result<()> {
    mount(source, target.as_ref(), kind, flags, data)
}

pub(super) fn tmpfs(target: &Path, options: &str) -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_simple(Some(Path::new("tmpfs")), target, Some("tmpfs"), flags, Some(options))
        .with_context(|| format!("mounting an empty {}", target.display()))
}

/// Where `path` lies under `root`, links followed inside it; the rest after the first missing part is taken literally.
pub(super) fn resolve(root: &Path, path: &Path) -> anyhow::Result<PathBuf> {
    let mut todo: Vec<std::ffi::OsString> = parts(path);
    let (mut inside, mut links) = (PathBuf::new(), 0);
    while let Some(part) = todo.pop() {
        if part == ".." {
            inside.pop();
            continue;
        }
        let next = inside.join(&part);
        match fs::read_link(root.join(&next)) {
            Ok(link) => {
                links += 1;
                anyhow::ensure!(links <= MAX_LINKS, "too many symbolic links in {}", path.display());
                if link.is_absolute() {
                    inside = PathBuf::new();
                }
                todo.extend(parts(&link));
            }
            Err(_) => inside = next,
        }
    }
    Ok(root.join(inside))
}

/// The parts of a path, last first; `.` and the root left out.
fn parts(path: &Path) -> Vec<std::ffi::OsString> {
    let mut parts: Vec<_> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(part) => Some(part.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect();
    parts.reverse();
    parts
}

/// The directory `path` under `root`, made if it isn't there.
fn directory(root: &Path, path: &str) -> anyhow::Result<PathBuf> {
    let target = resolve(root, Path::new(path))?;
    if !target.is_dir() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&target)
            .with_context(|| format!("making the directory {path} in the container"))?;
    }
    Ok(target)
}

fn directory_if_possible(root: &Path, path: &str) -> Option<PathBuf> {
    directory(root, path).ok()
}

/// Shows `bind.source` at `bind.target`, which is made if it isn't there.
fn attach(root: &Path, bind: &Bind) -> anyhow::Result<()> {
    let is_dir = fs::metadata(&bind.source).context("looking at the source")?.is_dir();
    let target = if is_dir {
        directory(root, &bind.target)?
    } else {
        let target = resolve(root, Path::new(&bind.target))?;
        if fs::metadata(&target).is_err() {
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).context("making its directory")?;
            }
            OpenOptions::new().create(true).append(true).open(&target).context("making an empty file there")?;
        }
        target
    };
    bind_recursively(&bind.source, &target)?;
    if bind.read_only {
        read_only(&target).context("write-protecting it")?;
    }
    Ok(())
}

pub(super) fn bind_recursively(source: &Path, target: &Path) -> anyhow::Result<()> {
    mount_simple(Some(source), target, None, MsFlags::MS_BIND | MsFlags::MS_REC, None)
        .with_context(|| format!("binding {}", source.display()))
}

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

const MOUNT_ATTR_RDONLY: u64 = 1;

/// Write-protects a mount and those in it; on kernels before 5.12 only the mount itself.
pub(super) fn read_only(target: &Path) -> nix::Result<()> {
    protect(target, libc::AT_RECURSIVE)
}

/// Write-protects a mount, with `AT_RECURSIVE` also those in it.
#[allow(unsafe_code)]
fn protect(target: &Path, flags: i32) -> nix::Result<()> {
    use nix::NixPath as _;
    let attributes = Attributes { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, user_namespace: 0 };
    let done = target.with_nix_path(|path| {
        // SAFETY: path and attributes outlive the call, whose size argument is theirs.
        unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                libc::AT_FDCWD,
                path.as_ptr(),
                flags,
                &raw const attributes,
                size_of::<Attributes>(),
            )
        }
    })?;
    if done == 0 {
        return Ok(());
    }
    if Errno::last() != Errno::ENOSYS {
        return Err(Errno::last());
    }
    mount_simple(None, target, None, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None)
}

fn proc(root: &Path, view: &View) -> anyhow::Result<()> {
    let target = directory(root, "/proc")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_simple(Some(Path::new("proc")), &target, Some("proc"), flags, None)
        .context("mounting the container's /proc (masked on this machine?)")?;
    if view.privileged {
        return Ok(());
    }
    for name in PROTECTED {
        let path = target.join(name);
        if path.exists() {
            bind_recursively(&path, &path)?;
            read_only(&path).with_context(|| format!("write-protecting /proc/{name}"))?;
        }
    }
    for name in MASKED {
        let path = target.join(name);
        if path.is_dir() {
            tmpfs(&path, "mode=000,size=4k")?;
        } else if path.exists() {
            bind_recursively(Path::new("/dev/null"), &path)?;
        }
    }
    Ok(())
}

/// The pod's own `/sys` where the kernel allows one, else the host's, write-protected.
fn sys(root: &Path, view: &View) -> anyhow::Result<()> {
    let target = directory(root, "/sys")?;
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if !view.privileged {
        flags |= MsFlags::MS_RDONLY;
    }
    if mount_simple(Some(Path::new("sysfs")), &target, Some("sysfs"), flags, None).is_err() {
        bind_recursively(Path::new("/sys"), &target)?;
        let _ = read_only(&target);
    }
    Ok(())
}

fn dev(root: &Path, view: &View) -> anyhow::Result<()> {
    let dev = directory(root, "/dev")?;
    mount_simple(Some(Path::new("tmpfs")), &dev, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755,size=64k"))
        .context("mounting /dev")?;
    for name in DEVICES {
        let target = dev.join(name);
        fs::write(&target, "").with_context(|| format!("making /dev/{name}"))?;
        bind_recursively(&Path::new("/dev").join(name), &target)?;
    }
    let links = [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ];
    for (to, name) in links {
        symlink(to, dev.join(name)).with_context(|| format!("making /dev/{name}"))?;
    }
    let pts = dev.join("pts");
    fs::create_dir(&pts).context("making /dev/pts")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = "newinstance,ptmxmode=0666,mode=620";
    mount_simple(Some(Path::new("devpts")), &pts, Some("devpts"), flags, Some(options)).context("mounting /dev/pts")?;
    let shm = dev.join("shm");
    fs::create_dir(&shm).context("making /dev/shm")?;
    let _ = fs::set_permissions(&view.shm, fs::Permissions::from_mode(0o1777));
    bind_recursively(&view.shm, &shm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("run/here")).unwrap();
        fs::create_dir_all(root.join("var")).unwrap();
        symlink("/run", root.join("var/run")).unwrap();
        symlink("../../../../etc", root.join("var/up")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for (path, expect) in [
            ("/var/run/secrets/x", "run/secrets/x"),
            ("/var/up/passwd", "etc/passwd"),
            ("/../../var/./run/here/../y", "run/y"),
            ("/", ""),
            ("/not/there", "not/there"),
        ] {
            assert_eq!(resolve(root, Path::new(path)).unwrap(), root.join(expect), "{path}");
        }
        assert!(resolve(root, Path::new("/loop/x")).is_err());
    }
}
