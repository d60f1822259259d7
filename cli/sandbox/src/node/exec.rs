//! Commands run in a container that already runs, and joining the container's own streams.

use std::future::Future;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite};

/// Something that bytes come out of.
pub type Reader = Pin<Box<dyn AsyncRead + Send>>;
/// Something that takes bytes.
pub type Writer = Pin<Box<dyn AsyncWrite + Send>>;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The one number shells and container runtimes report: the code, or 128 and the signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// What a command run in a container should be connected to.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExecOptions {
    /// Give it a standard input.
    pub stdin: bool,
    /// Give it a terminal; then there is no separate standard error.
    pub tty: bool,
}

/// A command running in a container. Dropping it closes its streams but does not end it; use [`Exec::kill`].
pub struct Exec {
    /// Its standard input, if asked for; dropping it is end of input.
    pub stdin: Option<Writer>,
    /// Its standard output, or the terminal's.
    pub stdout: Reader,
    /// Its standard error; `None` with a terminal.
    pub stderr: Option<Reader>,
    /// Resolves when it has ended.
    pub exit: Pin<Box<dyn Future<Output = Exit> + Send>>,
    /// Changes the terminal's size; does nothing without one.
    pub resize: Resize,
    /// Ends it.
    pub kill: Kill,
}

/// Changes the size of a terminal.
#[derive(Clone, Default)]
pub struct Resize(pub(super) Option<std::sync::Arc<std::os::fd::OwnedFd>>);

/// Sends SIGKILL to a command.
#[derive(Clone)]
pub struct Kill(pub(super) i32);

/// A container's own streams, from now on.
pub struct Attach {
    /// Its standard input, if the container has `stdin: true`.
    pub stdin: Option<Writer>,
    /// Its standard output from now on (with a terminal: everything).
    pub stdout: Reader,
    /// Its standard error from now on; `None` with a terminal.
    pub stderr: Option<Reader>,
    /// Resolves when the container has ended.
    pub exit: Pin<Box<dyn Future<Output = Exit> + Send>>,
    /// Changes the terminal's size; does nothing without one.
    pub resize: Resize,
}

impl Resize {
    /// Sets the terminal's size in characters; programs in it are told by a signal.
    #[allow(unsafe_code)]
    pub fn set(&self, columns: u16, rows: u16) {
        let Some(terminal) = &self.0 else { return };
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open for as long as `terminal` is borrowed, and the kernel only reads the struct. There
        // is no safe wrapper for this call in the crates used here.
        let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        if result < 0 {
            tracing::debug!(error = %std::io::Error::last_os_error(), "cannot set the size of a terminal");
        }
    }
}
