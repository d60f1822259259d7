//! `up`, `down`, `status`: sandboxes as seen from outside.
//!
//! A sandbox is three processes. The guardian ([`guardian`]) is what others see: it removes the state directory when
//! the sandbox ends, however it ends. Process 1 of the sandbox's pid namespace starts containers, and everything in
//! the sandbox dies with it. The node ([`daemon`]) holds the API, the controllers and the kubelet. [`state`] says where
//! a sandbox keeps its few files and whether it lives; [`control`] is how one talks to it.

mod control;
mod daemon;
mod guardian;
mod isolation;
mod state;

pub use daemon::main as daemon_main;
pub use isolation::{Missing, Mode, preflight};

use anyhow::{Context as _, bail};
use control::{Answer, Request};
use state::{StateDir, Taken};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Name of the sandbox where none is given.
pub const DEFAULT_NAME: &str = "default";
/// A sandbox that isn't ready by then has failed.
const READY: Duration = Duration::from_secs(60);
/// A sandbox that has been asked to end and is still there by then is killed.
const GRACE: Duration = Duration::from_secs(10);
/// The kernel takes a moment to take apart what was killed.
const KILLED: Duration = Duration::from_secs(5);
/// Between two looks at something that is about to change.
const LOOK: Duration = Duration::from_millis(10);

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
    /// The sandbox that is to die with this value sees the other end close.
    _lifeline: Option<OwnedFd>,
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
    /// Why pods and services have IPv4 addresses only; not there if they have IPv6 ones, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_ipv6: Option<String>,
}

/// What [`up`] tells the process it starts, as one line on its standard input.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Orders {
    name: String,
    die_with_parent: bool,
    images: Vec<Image>,
}

/// What that process answers, as one line on its standard output.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum Ready {
    /// It serves.
    Up,
    /// It does not, and why.
    Failed(String),
}

fn named(name: &str) -> &str {
    if name.is_empty() { DEFAULT_NAME } else { name }
}

/// Starts a sandbox and returns when it is ready; does nothing if it runs already.
pub fn up(options: UpOptions) -> anyhow::Result<Up> {
    let name = named(&options.name).to_owned();
    let state = StateDir::of(&name)?;
    let deadline = Instant::now() + READY;
    while state.is_taken()? {
        if control::ask(&state, &Request::Status).is_ok() {
            return Ok(Up { name, kubeconfig: state.kubeconfig(), already: true, _lifeline: None });
        }
        // It is coming up or going down.
        if Instant::now() >= deadline {
            bail!("sandbox {name} exists but does not answer; end it with: meshctl sandbox down --name {name}");
        }
        std::thread::sleep(LOOK);
    }
    if let Err(missing) = preflight() {
        bail!("{missing}");
    }
    start(&state, options, name)
}

fn start(state: &StateDir, options: UpOptions, name: String) -> anyhow::Result<Up> {
    let mut log = state.open_log()?;
    let program = std::env::current_exe().context("finding this program")?;
    let mut child = Command::new(&program)
        .arg0("mesh-sandbox")
        .arg(&name)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log.try_clone().context("opening the sandbox's log")?)
        .current_dir("/")
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    // Somebody has to take note of its end; nobody has to wait for it.
    std::thread::spawn(move || child.wait());
    let (Some(mut stdin), Some(stdout)) = (stdin, stdout) else { bail!("the sandbox was started without pipes") };
    let orders = Orders { name: name.clone(), die_with_parent: options.die_with_parent, images: options.images };
    let mut line = serde_json::to_string(&orders).context("writing the sandbox's orders")?;
    line.push('\n');
    stdin.write_all(line.as_bytes()).context("giving the sandbox its orders")?;
    let answer = read_answer(stdout)?;
    match serde_json::from_str(&answer) {
        Ok(Ready::Up) => {}
        Ok(Ready::Failed(why)) => bail!("{why}"),
        Err(_) => bail!("the sandbox ended while it was starting{}", last_lines(&mut log)),
    }
    let lifeline = options.die_with_parent.then(|| OwnedFd::from(stdin));
    Ok(Up { name, kubeconfig: state.kubeconfig(), already: false, _lifeline: lifeline })
}

/// The line with which the sandbox says that it is ready, or nothing if it ended.
fn read_answer(mut pipe: std::process::ChildStdout) -> anyhow::Result<String> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let deadline = Instant::now() + READY;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("the sandbox was not ready within {}s", READY.as_secs());
        }
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            other => other.context("waiting for the sandbox")?,
        };
        let mut buffer = [0; 4096];
        match pipe.read(&mut buffer).context("waiting for the sandbox")? {
            0 => break,
            read => answer.extend_from_slice(&buffer[..read]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The end of the log, for an error that nobody else explains.
fn last_lines(log: &mut File) -> String {
    const ENOUGH: i64 = 2000;
    let mut text = Vec::new();
    let end = log.seek(SeekFrom::End(0)).unwrap_or(0);
    let _ = log.seek(SeekFrom::Start(end.saturating_sub(ENOUGH as u64)));
    let _ = log.take(ENOUGH as u64).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!("; it said:\n{text}") }
}

/// Ends a sandbox and removes everything it or an earlier crashed one left; false if there was nothing.
pub fn down(name: &str) -> anyhow::Result<bool> {
    let state = StateDir::of(named(name))?;
    if !state.exists() {
        return Ok(false);
    }
    let record = state.record();
    if state.is_taken()? {
        let asked = control::ask(&state, &Request::Down).is_ok();
        if !asked || !state.wait_until_free(GRACE)? {
            if let Some(record) = &record {
                record.kill();
            }
            if !state.wait_until_free(KILLED)? {
                bail!(
                    "sandbox {} does not end{}",
                    named(name),
                    record.map_or_else(String::new, |record| format!("; its process is {}", record.guardian.pid))
                );
            }
        }
    }
    if let Some(record) = record {
        record.wait_until_gone(KILLED);
    }
    // Nobody may come up meanwhile, else its files would be removed.
    match state.claim() {
        Ok(_lock) => state.remove()?,
        Err(Taken::Gone) => {}
        Err(Taken::Busy) => bail!("sandbox {} is being started by somebody else", named(name)),
        Err(Taken::Failed(error)) => return Err(error),
    }
    Ok(true)
}

/// What the sandbox is doing; `running` is false if there is none.
pub fn status(name: &str) -> anyhow::Result<Status> {
    let name = named(name);
    let state = StateDir::of(name)?;
    if let Ok(Answer::Status(status)) = control::ask(&state, &Request::Status) {
        return Ok(*status);
    }
    Ok(Status {
        name: name.to_owned(),
        running: false,
        pid: None,
        server: None,
        kubeconfig: None,
        up_seconds: None,
        pods: None,
        rootless: None,
        without_ipv6: None,
    })
}

/// All sandboxes of this user, those that have crashed among them.
pub fn list() -> anyhow::Result<Vec<Status>> {
    state::names()?.iter().map(|name| status(name)).collect()
}

/// Where the kubeconfig of a running sandbox lies; an error that says how to start it if it doesn't run.
pub fn kubeconfig_path(name: &str) -> anyhow::Result<PathBuf> {
    let state = running(name)?;
    control::ask(&state, &Request::Status)?;
    Ok(state.kubeconfig())
}

fn running(name: &str) -> anyhow::Result<StateDir> {
    let name = named(name);
    let state = StateDir::of(name)?;
    if !state.exists() || !state.is_taken()? {
        let option = if name == DEFAULT_NAME { String::new() } else { format!(" --name {name}") };
        bail!("sandbox {name} is not running; start it with: meshctl sandbox up{option}");
    }
    Ok(state)
}

/// Adds or replaces an image of a running sandbox.
pub fn image_add(name: &str, image: Image) -> anyhow::Result<()> {
    control::ask(&running(name)?, &Request::AddImage(image)).map(drop)
}

/// Removes an image; false if there was none of that name.
pub fn image_remove(name: &str, image: &str) -> anyhow::Result<bool> {
    match control::ask(&running(name)?, &Request::RemoveImage(image.to_owned()))? {
        Answer::Removed(removed) => Ok(removed),
        other => bail!("the sandbox answered {other:?}"),
    }
}

/// The images of a running sandbox.
pub fn image_list(name: &str) -> anyhow::Result<Vec<Image>> {
    match control::ask(&running(name)?, &Request::ListImages)? {
        Answer::Images(images) => Ok(images),
        other => bail!("the sandbox answered {other:?}"),
    }
}
