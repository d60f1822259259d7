//! What the node asks of the spawner and what it answers.

use super::super::exec::Exit;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A request, with its descriptors' roles in the order in which they come.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) fds: Vec<Role>,
    pub(crate) order: Order,
}

/// What a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    Stdin,
    Stdout,
    Stderr,
    /// Gets a [`Failure`] if the program could not be started; closed without a word once it was.
    Report,
    /// Gets the controlling side of a terminal made inside the container.
    Terminal,
    Net,
    Ipc,
    Uts,
    /// The program itself, executed by descriptor.
    Program,
}

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Make network, IPC and UTS namespaces; answered with their descriptors in this order.
    Namespaces { hostname: String },
    /// Start a process.
    Launch(Box<Launch>),
}

/// A process to be started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) place: Place,
    /// Program and arguments; the program is looked up in `PATH` of `env` unless it has a slash or is given by
    /// descriptor.
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) credentials: Credentials,
    /// Make a terminal and use it for all three streams.
    pub(crate) tty: bool,
}

/// Where a process is to live.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Place {
    /// In a file system view and pid namespace of its own.
    New(Box<View>),
    /// In all namespaces of a process.
    Join { pid: i32 },
}

/// The files a container sees.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct View {
    /// An empty directory for what the container writes.
    pub(crate) scratch: PathBuf,
    pub(crate) read_only: bool,
    /// Directories and files shown at other places.
    pub(crate) mounts: Vec<Bind>,
    /// Host paths that must not be seen.
    pub(crate) hidden: Vec<PathBuf>,
    /// `/dev/shm` of the pod.
    pub(crate) shm: PathBuf,
    /// Nothing of `/proc` and `/sys` is write-protected.
    pub(crate) privileged: bool,
    /// Directories of the host belong to a user that this one may not act for.
    pub(crate) rootless: bool,
}

/// A file or directory shown at another place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bind {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

/// As whom a process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Credentials {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `None` where they cannot be set.
    pub(crate) groups: Option<Vec<u32>>,
    /// Bits of the capabilities it may ever have.
    pub(crate) capabilities: u64,
    pub(crate) no_new_privileges: bool,
    /// Refuse system calls that only administrators of a machine need.
    pub(crate) seccomp: bool,
    /// Give the process a user namespace in which the one user there is appears as `uid` and `gid`.
    pub(crate) own_user_namespace: bool,
}

/// Answers and news from the spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum News {
    /// What became of a request: the process's id, or 0 for namespaces.
    Done { id: u64, pid: i32 },
    /// It failed.
    Failed { id: u64, message: String },
    /// A process ended.
    Exited { pid: i32, exit: ExitWire },
}

/// [`Exit`] on the wire.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum ExitWire {
    Code(i32),
    Signal(i32),
}

impl From<ExitWire> for Exit {
    fn from(exit: ExitWire) -> Self {
        match exit {
            ExitWire::Code(code) => Self::Code(code),
            ExitWire::Signal(signal) => Self::Signal(signal),
        }
    }
}

/// Why a program was not started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) message: String,
    /// The program does not exist or isn't executable, as opposed to a place that could not be made.
    pub(crate) program: bool,
}
