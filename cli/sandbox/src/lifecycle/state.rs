//! Where a sandbox keeps its few files, and whether one lives there.
//!
//! A lock on a file in the directory is held by all of a sandbox's own processes. The kernel drops it with the last of
//! them, so a crashed sandbox never looks alive.

use super::LOOK;
use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A name may not be longer; paths and interface names are made of it.
const MAX_NAME: usize = 40;

/// The directory of one sandbox.
#[derive(Debug, Clone)]
pub(super) struct StateDir {
    path: PathBuf,
}

/// Why a state directory can't be had.
#[derive(Debug)]
pub(super) enum Taken {
    /// A sandbox lives there.
    Busy,
    /// There is no directory.
    Gone,
    /// Looking failed.
    Failed(anyhow::Error),
}

/// The processes of a sandbox, as the host numbers them.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) guardian: Process,
    pub(super) init: Process,
}

/// A process and when it started, so that a number used again is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: i32,
    started: u64,
}

impl Process {
    /// A process that runs now.
    pub(super) fn of(pid: i32) -> anyhow::Result<Self> {
        let started = start_time(pid).with_context(|| format!("looking up process {pid}"))?;
        Ok(Self { pid, started })
    }

    fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// When a process started, in clock ticks since boot; `None` if it has ended.
fn start_time(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may contain anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // The state is field 3, the start time field 22.
    let started = fields.nth(18)?.parse().ok()?;
    (state != "Z" && state != "X").then_some(started)
}

impl Record {
    /// Kills the sandbox: with its guardian or its process 1 everything goes.
    pub(super) fn kill(&self) {
        for process in [self.init, self.guardian] {
            if process.is_alive() {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
        }
    }

    /// Waits until its processes are gone.
    pub(super) fn wait_until_gone(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while (self.guardian.is_alive() || self.init.is_alive()) && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
    }
}

/// The directory all sandboxes of this user are in.
fn base() -> PathBuf {
    let own =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute() && is_writable(path));
    if let Some(runtime) = own("XDG_RUNTIME_DIR") {
        return runtime.join("meshctl/sandbox");
    }
    match own("HOME") {
        Some(home) => home.join(".meshctl/sandbox"),
        None => PathBuf::from(format!("/tmp/meshctl-{}/sandbox", nix::unistd::getuid())),
    }
}

fn is_writable(path: &Path) -> bool {
    use nix::unistd::{AccessFlags, access};
    path.is_dir() && access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
}

/// Names of all sandboxes there are traces of.
pub(super) fn names() -> anyhow::Result<Vec<String>> {
    let base = base();
    let entries = match fs::read_dir(&base) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("listing {}", base.display()))?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| is_name(name)).collect();
    names.sort();
    Ok(names)
}

fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(plain) && !name.starts_with('-')
}

impl StateDir {
    /// The directory of the sandbox of this name, which need not exist.
    pub(super) fn of(name: &str) -> anyhow::Result<Self> {
        ensure!(
            is_name(name),
            "{name:?} is not a name for a sandbox; use at most {MAX_NAME} lower-case letters, digits and dashes"
        );
        Ok(Self { path: base().join(name) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.path.join("kubeconfig")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.path.join("control")
    }

    fn lock_file(&self) -> PathBuf {
        self.path.join("lock")
    }

    fn record_file(&self) -> PathBuf {
        self.path.join("processes")
    }

    /// Makes the directory; nobody else may look into it.
    fn make(&self) -> anyhow::Result<()> {
        let shown = self.path.display();
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path).with_context(|| format!("making {shown}"))?;
        let meta = fs::symlink_metadata(&self.path).with_context(|| format!("looking at {shown}"))?;
        let ours = meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw();
        if !ours || meta.mode() & 0o077 != 0 {
            bail!("{shown} belongs to somebody else or is open to others; remove it");
        }
        Ok(())
    }

    /// Opens the sandbox's log, empty if no sandbox writes to it.
    pub(super) fn open_log(&self) -> anyhow::Result<File> {
        self.make()?;
        let path = self.path.join("log");
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        options.open(&path).with_context(|| format!("opening {}", path.display()))
    }

    /// Takes the directory for a sandbox; as long as the file is open somewhere, it is taken.
    pub(super) fn claim(&self) -> Result<File, Taken> {
        loop {
            let mut options = OpenOptions::new();
            let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(self.lock_file());
            let file = match opened {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(Taken::Gone),
                Err(error) => {
                    return Err(Taken::Failed(anyhow::Error::new(error).context("opening the sandbox's lock")));
                }
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(Taken::Busy),
                Err(TryLockError::Error(error)) => {
                    return Err(Taken::Failed(anyhow::Error::new(error).context("locking the sandbox's directory")));
                }
            }
            // An ending sandbox may have removed the file in between; then the lock is worth nothing.
            let same = |meta: fs::Metadata| file.metadata().is_ok_and(|own| own.ino() == meta.ino());
            if fs::metadata(self.lock_file()).is_ok_and(same) {
                return Ok(file);
            }
        }
    }

    /// Makes the directory and takes it.
    pub(super) fn make_and_claim(&self) -> Result<File, Taken> {
        self.make().map_err(Taken::Failed)?;
        let lock = self.claim()?;
        for stale in [self.kubeconfig(), self.socket(), self.record_file()] {
            let _ = fs::remove_file(stale);
        }
        Ok(lock)
    }

    /// Whether a sandbox lives here.
    pub(super) fn is_taken(&self) -> anyhow::Result<bool> {
        match File::open(self.lock_file()) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context("opening the sandbox's lock"),
            // Shared, so that two who look don't disturb each other.
            Ok(file) => match file.try_lock_shared() {
                Ok(()) => Ok(false),
                Err(TryLockError::WouldBlock) => Ok(true),
                Err(TryLockError::Error(error)) => Err(error).context("looking at the sandbox's lock"),
            },
        }
    }

    /// Waits until no sandbox lives here; false if one still does.
    pub(super) fn wait_until_free(&self, patience: Duration) -> anyhow::Result<bool> {
        let deadline = Instant::now() + patience;
        while self.is_taken()? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
        Ok(true)
    }

    pub(super) fn record(&self) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.record_file()).ok()?).ok()
    }

    pub(super) fn write_record(&self, record: &Record) -> anyhow::Result<()> {
        let text = serde_json::to_vec(record).context("describing the sandbox's processes")?;
        self.write(&self.record_file(), &text)
    }

    /// Writes a file that readers see whole or not at all, and nobody else sees.
    pub(super) fn write(&self, path: &Path, content: &[u8]) -> anyhow::Result<()> {
        use std::io::Write as _;
        let fresh = path.with_extension("new");
        let _ = fs::remove_file(&fresh);
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)
            .with_context(|| format!("making {}", fresh.display()))?;
        file.write_all(content).with_context(|| format!("writing {}", fresh.display()))?;
        fs::rename(&fresh, path).with_context(|| format!("writing {}", path.display()))
    }

    /// Removes the directory, and those above it that are ours and empty.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", self.path.display()));
            }
            _ => {}
        }
        let above = self.path.ancestors().skip(1).take(2);
        for folder in above {
            // Fails, rightly, when something else is in it.
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(folder: &Path) -> StateDir {
        StateDir { path: folder.join("above/sandbox/x") }
    }

    #[test]
    fn names_are_plain() {
        for (name, expect) in
            [("default", true), ("a-1", true), ("", false), ("-a", false), ("A", false), ("a/b", false), ("..", false)]
        {
            assert_eq!(is_name(name), expect, "{name}");
        }
        assert!(!is_name(&"a".repeat(41)));
    }

    #[test]
    fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let state = state(folder.path());
        assert!(!state.is_taken().unwrap() && !state.exists());
        assert!(matches!(state.claim(), Err(Taken::Gone)));
        let lock = state.make_and_claim().unwrap();
        assert!(state.is_taken().unwrap());
        assert!(matches!(state.make_and_claim(), Err(Taken::Busy)));
        drop(lock);
        assert!(!state.is_taken().unwrap());
        state.write(&state.kubeconfig(), b"secret").unwrap();
        assert_eq!(fs::metadata(state.kubeconfig()).unwrap().mode() & 0o777, 0o600);
        state.remove().unwrap();
        assert!(!folder.path().join("above").exists() && folder.path().exists());
    }

    #[test]
    fn processes_are_known_by_their_start() {
        let own = Process::of(std::process::id() as i32).unwrap();
        assert!(own.is_alive());
        assert!(!Process { started: own.started + 1, ..own }.is_alive());
        assert!(Process::of(i32::MAX).is_err());
    }
}
