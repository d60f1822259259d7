//! `up`, `down`, `status`: sandboxes as seen from outside.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Name of the sandbox where none is given.
pub const DEFAULT_NAME: &str = "default";

/// How a sandbox is started.
#[derive(Debug, Clone, Default)]
pub struct UpOptions {
    /// Its name; [`DEFAULT_NAME`] if empty.
    pub name: String,
    /// The sandbox ends when the returned [`Up`] is dropped or this process ends, in whatever way.
    pub die_with_parent: bool,
    /// Images besides the built-in ones.
    pub images: Vec<Image>,
}

/// A program that containers can run under a name.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Image {
    /// As manifests name it.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// What the program is called with; its path if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv0: Option<String>,
}

/// A running sandbox.
#[derive(Debug)]
pub struct Up {
    /// Its name.
    pub name: String,
    /// Where its kubeconfig lies; the context in it is called like the file says.
    pub kubeconfig: PathBuf,
    /// It ran already.
    pub already: bool,
    _lifeline: Option<std::os::fd::OwnedFd>,
}

/// What a sandbox is doing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// It runs and answers.
    pub running: bool,
    /// The process that watches over it.
    pub pid: Option<u32>,
    /// Where the API listens on the host.
    pub server: Option<String>,
    /// Where its kubeconfig lies.
    pub kubeconfig: Option<PathBuf>,
    /// Seconds since it came up.
    pub up_seconds: Option<u64>,
    /// Pods on its node.
    pub pods: Option<usize>,
    /// True if it uses user namespaces instead of root.
    pub rootless: Option<bool>,
}

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

/// Finds out whether a sandbox could run here.
pub fn preflight() -> Result<Mode, Missing> {
    Err(Missing("not built".into()))
}

/// Starts a sandbox and returns when it is ready; does nothing if it runs already.
pub fn up(_options: UpOptions) -> anyhow::Result<Up> {
    anyhow::bail!("not built")
}

/// Ends a sandbox and removes everything it or an earlier crashed one left; false if there was nothing.
pub fn down(_name: &str) -> anyhow::Result<bool> {
    anyhow::bail!("not built")
}

/// What the sandbox is doing; `running` is false if there is none.
pub fn status(_name: &str) -> anyhow::Result<Status> {
    anyhow::bail!("not built")
}

/// All sandboxes of this user.
pub fn list() -> anyhow::Result<Vec<Status>> {
    anyhow::bail!("not built")
}

/// Where the kubeconfig of a running sandbox lies; an error that says how to start it if it doesn't run.
pub fn kubeconfig_path(_name: &str) -> anyhow::Result<PathBuf> {
    anyhow::bail!("not built")
}

/// Adds or replaces an image of a running sandbox.
pub fn image_add(_name: &str, _image: Image) -> anyhow::Result<()> {
    anyhow::bail!("not built")
}

/// Removes an image; false if there was none of that name.
pub fn image_remove(_name: &str, _image: &str) -> anyhow::Result<bool> {
    anyhow::bail!("not built")
}

/// The images of a running sandbox.
pub fn image_list(_name: &str) -> anyhow::Result<Vec<Image>> {
    anyhow::bail!("not built")
}

/// The sandbox itself (argv[0] `mesh-sandbox`); started by [`up`] and nobody else.
pub fn daemon_main(_args: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::FAILURE
}
