//! The root directory under a container's own mounts: an overlay over the host's where the kernel allows it. In a user
//! namespace it does so only for directories that nothing else is mounted in; then the container's root is put together
//! from overlays over the host's top-level directories and, for those with mounts, the directories themselves,
//! write-protected.

use super::protocol::View;
use super::root::{bind_recursively, mount_simple, read_only, resolve, tmpfs};
use anyhow::Context as _;
use nix::mount::MsFlags;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

/// Directories of the host's root that a container gets its own of.
const OWN: [&str; 8] = ["/proc", "/sys", "/dev", "/tmp", "/run", "/var/tmp", "/var/log", "/var/run"];
/// Directories that images let their root user write to; where the host's belong to somebody else the container gets
/// its own, with the host's content.
const WRITABLE: [&str; 9] = ["/etc", "/home", "/mnt", "/opt", "/srv", "/usr/local", "/var", "/var/cache", "/var/lib"];
/// Entries of a directory that can be shown one by one when something has to be put between them.
const MAX_MIRRORED: usize = 4096;

/// Makes the root directory and returns where.
pub(super) fn make(view: &View) -> anyhow::Result<PathBuf> {
    let folder = |name: &str| {
        let path = view.scratch.join(name);
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&path);
        made.with_context(|| format!("making {}", path.display())).map(|()| path)
    };
    let (upper, work, root) = (folder("upper")?, folder("work")?, folder("root")?);
    if view.rootless {
        for path in WRITABLE {
            if Path::new(path).is_dir() {
                shadow(&upper, Path::new(path));
            }
        }
        for bind in &view.mounts {
            let target = resolve(Path::new("/"), Path::new(&bind.target))?;
            let folder = if bind.source.is_dir() { Some(target.as_path()) } else { target.parent() };
            shadow(&upper, folder.unwrap_or(Path::new("/")));
        }
    }
    if overlay(Path::new("/"), &upper, &work, &root, view.rootless).is_err() {
        assemble(view, &upper, &work, &root)?;
        return Ok(root);
    }
    for mountpoint in other_mounts(&fs::read_to_string("/proc/self/mountinfo").context("reading mounts")?, view) {
        let target = resolve(&root, &mountpoint)?;
        // What can't be shown (a mount the user may not see, say) is left out: the container has the empty directory.
        if bind_recursively(&mountpoint, &target).is_ok() {
            let _ = read_only(&target);
        }
    }
    Ok(root)
}

fn overlay(lower: &Path, upper: &Path, work: &Path, target: &Path, rootless: bool) -> anyhow::Result<()> {
    let (lower, upper, work) = (lower.display(), upper.display(), work.display());
    let attributes = if rootless { ",userxattr" } else { "" };
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}{attributes}");
    mount_simple(Some(Path::new("overlay")), target, Some("overlay"), MsFlags::MS_NODEV, Some(&options))
        .context("mounting overlay")
}

/// Puts the root together from the host's top-level directories.
fn assemble(view: &View, upper: &Path, work: &Path, root: &Path) -> anyhow::Result<()> {
    tmpfs(root, "mode=755")?;
    let own = |path: &Path| OWN.iter().any(|own| path == Path::new(own));
    for path in entries(Path::new("/"))? {
        let name = path.file_name().unwrap_or_default();
        let target = root.join(name);
        let directory = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        if own(&path) {
            fs::create_dir(&target).with_context(|| format!("making {}", path.display()))?;
            continue;
        }
        let layer = |layers: &Path| -> anyhow::Result<PathBuf> {
            let folder = layers.join(name);
            fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
            Ok(folder)
        };
        let written = |inside: &Path| inside.starts_with(&path);
        let wanted = WRITABLE.iter().any(|path| written(Path::new(path)))
            || view.mounts.iter().any(|bind| written(Path::new(&bind.target)));
        // A name with a comma or colon would be read as several options.
        let plain = !name.to_string_lossy().contains([',', ':', '\\']);
        if directory && plain && wanted {
            fs::create_dir(&target).with_context(|| format!("making {}", path.display()))?;
            if overlay(&path, &layer(upper)?, &layer(work)?, &target, view.rootless).is_ok() {
                continue;
            }
            fs::remove_dir(&target).with_context(|| format!("removing {}", target.display()))?;
        }
        show(&path, &target)?;
    }
    for path in ["/var/tmp", "/var/log"] {
        let _ = make_room(root, true, path);
    }
    for bind in &view.mounts {
        make_room(root, bind.source.is_dir(), &bind.target)?;
    }
    Ok(())
}

/// Makes `path` and its parents in the layer the container may write to, so that they belong to it.
fn shadow(upper: &Path, path: &Path) {
    let mut inside = PathBuf::new();
    for part in path.components().skip(1) {
        inside.push(part);
        let host = Path::new("/").join(&inside);
        // A file or link there stays what it is.
        if fs::symlink_metadata(&host).is_ok_and(|meta| !meta.is_dir()) {
            return;
        }
        let own = upper.join(&inside);
        if !own.exists() && fs::DirBuilder::new().mode(0o755).create(&own).is_err() {
            return;
        }
    }
}

/// Mounts of the host below its root that a container should see, outermost first, from `/proc/self/mountinfo`.
fn other_mounts(mountinfo: &str, view: &View) -> Vec<PathBuf> {
    let mut chosen: Vec<PathBuf> = Vec::new();
    let mut points: Vec<PathBuf> = mountinfo
        .lines()
        .filter(|line| !line.contains(" - autofs "))
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(unescape(path)))
        .collect();
    points.sort();
    for point in points {
        let own = OWN.iter().any(|path| point.starts_with(path))
            || ["/etc/resolv.conf", "/etc/hosts", "/etc/hostname"].iter().any(|path| point == Path::new(path));
        let covered = chosen.iter().any(|outer| point.starts_with(outer));
        let holds_scratch = view.scratch.starts_with(&point);
        if point != Path::new("/") && !own && !covered && !holds_scratch {
            chosen.push(point);
        }
    }
    chosen
}

/// Undoes the octal escapes of `/proc/self/mountinfo`.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listed = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    let entries: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).take(MAX_MIRRORED + 1).collect();
    anyhow::ensure!(entries.len() <= MAX_MIRRORED, "{} has too many entries", folder.display());
    Ok(entries)
}

/// Shows one entry of the host at an equal place.
fn show(path: &Path, target: &Path) -> anyhow::Result<()> {
    let meta = fs::symlink_metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    if meta.is_symlink() {
        return symlink(fs::read_link(path)?, target).with_context(|| format!("linking {}", path.display()));
    }
    if meta.is_dir() {
        fs::create_dir(target)?;
    } else {
        fs::write(target, "")?;
    }
    let _ = fs::set_permissions(target, meta.permissions());
    if bind_recursively(path, target).is_ok() {
        let _ = read_only(target);
    }
    Ok(())
}

/// Makes a place to mount something at. Where a write-protected directory is in the way, its entries are shown one by one
/// in a new one.
fn make_room(root: &Path, directory: bool, target: &str) -> anyhow::Result<()> {
    let target = resolve(root, Path::new(target))?;
    let wanted = if directory { target.as_path() } else { target.parent().unwrap_or(root) };
    let inside = Path::new("/").join(target.strip_prefix(root).unwrap_or(&target));
    // In these nothing has been mounted yet.
    if target.exists() || OWN.iter().any(|own| inside.starts_with(own)) {
        return Ok(());
    }
    if fs::create_dir_all(wanted).is_err() || !is_writable(wanted) {
        let mut folder = target.parent().unwrap_or(root).to_owned();
        while !folder.exists() {
            folder.pop();
        }
        let host = Path::new("/").join(folder.strip_prefix(root).unwrap_or(&folder));
        let before = entries(&host)?;
        tmpfs(&folder, "mode=755")?;
        for path in before {
            let name = path.file_name().unwrap_or_default();
            show(&path, &folder.join(name))?;
        }
        fs::create_dir_all(wanted).with_context(|| format!("making {}", wanted.display()))?;
    }
    Ok(())
}

/// Whether a file could be made in a directory.
fn is_writable(folder: &Path) -> bool {
    let probe = folder.join(".room");
    fs::create_dir(&probe).is_ok_and(|()| fs::remove_dir(&probe).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_outermost_other_mounts_are_shown() {
        let view = View {
            scratch: "/home/me/.meshctl/sandbox/x/node/c".into(),
            read_only: false,
            mounts: Vec::new(),
            hidden: Vec::new(),
            shm: PathBuf::new(),
            privileged: false,
            rootless: false,
        };
        let info = "1 0 8:1 / / rw - ext4 /dev/sda rw\n\
                    2 1 0:5 / /proc rw - proc proc rw\n\
                    3 1 8:2 / /data rw - ext4 /dev/sdb rw\n\
                    4 3 8:3 / /data/inner rw - ext4 /dev/sdc rw\n\
                    5 1 8:4 / /with\\040space rw - ext4 /dev/sdd rw\n\
                    6 1 0:9 / /run/user/1000 rw - tmpfs tmpfs rw\n\
                    7 1 0:10 / /home/me/.meshctl/sandbox/x/node rw - tmpfs tmpfs rw\n\
                    8 1 8:5 / /etc/resolv.conf rw - ext4 /dev/sde rw\n\
                    9 1 0:11 / /mnt/auto rw - autofs x rw\n";
        assert_eq!(other_mounts(info, &view), [Path::new("/data"), Path::new("/with space")]);
    }
}
