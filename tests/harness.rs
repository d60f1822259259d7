//! What every end-to-end test uses: a `meshctl` to call, a `kubectl` if there is one, sandboxes that end with the run.

use anyhow::{Context, Result, bail};
use libtest_mimic::{Failed, Trial};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The name this process was started by.
pub(crate) fn called_as() -> String {
    let name = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&name).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    // The network plugin is the proxy's program.
    if name == mesh_api::names::CNI_PLUGIN { "mesh-proxy".to_owned() } else { name }
}

/// What a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Network namespaces, as root or through user namespaces.
    Namespaces,
    /// A kernel with IPv6.
    Ipv6,
    /// A program in `PATH`.
    Program(&'static str),
}

impl Need {
    /// Why the need is not met here; `None` if it is.
    fn missing(self) -> Option<String> {
        match self {
            Need::Namespaces => mesh_sandbox::lifecycle::preflight().err().map(|missing| missing.to_string()),
            Need::Ipv6 => (!Path::new("/proc/sys/net/ipv6").exists()).then(|| "the kernel has no IPv6".to_owned()),
            Need::Program(name) => find_program(name).is_none().then(|| format!("{name} is not installed")),
        }
    }
}

/// A test under its name; listed as ignored, with the reason, if a need is not met (or failed, when strict).
pub(crate) fn test(name: &str, needs: &[Need], run: fn() -> Result<()>) -> Trial {
    let report = move || run().map_err(|error| Failed::from(format!("{error:?}")));
    let Some(reason) = needs.iter().find_map(|need| need.missing()) else {
        return Trial::test(name, report);
    };
    if std::env::var_os("MESH_TEST_STRICT").is_some_and(|v| v == "1") {
        let reason = format!("MESH_TEST_STRICT is set and this test cannot run here: {reason}");
        return Trial::test(name, move || Err(Failed::from(reason)));
    }
    Trial::test(format!("{name} (skipped: {reason})"), report).with_ignored_flag(true)
}

/// Where a program lies: in `PATH` or where Debian keeps servers.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|v| v.path().join("bin")));
    }
    folders.into_iter().map(|f| f.join(name)).find(|p| p.is_file())
}

/// What a program did.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    line: String,
}

impl Ran {
    /// The output, if the program ended well.
    pub(crate) fn ok(self) -> Result<Self> {
        self.exits(0)
    }

    /// The output, if the program ended with this code.
    pub(crate) fn exits(self, code: i32) -> Result<Self> {
        if self.code != Some(code) {
            bail!(
                "`{}` ended with {:?}, not {code}\n--- stdout\n{}\n--- stderr\n{}",
                self.line,
                self.code,
                self.stdout,
                self.stderr
            );
        }
        Ok(self)
    }

    /// Fails unless stdout contains the text.
    pub(crate) fn says(self, text: &str) -> Result<Self> {
        if !self.stdout.contains(text) {
            bail!("`{}` does not say `{text}`\n--- stdout\n{}\n--- stderr\n{}", self.line, self.stdout, self.stderr);
        }
        Ok(self)
    }

    /// Fails unless stderr contains the text.
    pub(crate) fn complains(self, text: &str) -> Result<Self> {
        if !self.stderr.contains(text) {
            bail!(
                "`{}` does not complain of `{text}`\n--- stdout\n{}\n--- stderr\n{}",
                self.line,
                self.stdout,
                self.stderr
            );
        }
        Ok(self)
    }
}

/// Runs a command to its end with a text on its standard input; ends it after two minutes.
pub(crate) fn run_with_input(mut command: Command, input: &str) -> Result<Ran> {
    let line = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {line}"))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(input.as_bytes());
    });
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let (done, watch) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if watch.recv_timeout(Duration::from_secs(120)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    });
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    drop(done);
    let _ = (watchdog.join(), writer.join());
    Ok(Ran {
        code: status.code(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        line,
    })
}

/// This binary under another name.
pub(crate) fn ourselves(name: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0(name);
    Ok(command)
}

/// A running sandbox with its own kubeconfig; gone when dropped.
pub(crate) struct Sandbox {
    pub(crate) name: String,
    pub(crate) kubeconfig: PathBuf,
}

/// Sandboxes still up; what a panicking test leaves behind is taken down at the end of the run, and what a run leaves
/// that is killed, by the keeper of each.
static RUNNING: Mutex<Vec<(String, Child)>> = Mutex::new(Vec::new());

/// A process that takes a sandbox down when this one ends in whatever way: its standard input does then, too.
fn keeper_of(sandbox: &str) -> Result<Child> {
    let mut keeper = ourselves("mesh-keeper")?;
    // What ends a run by its process group is not to end the keeper.
    keeper.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut keeper = keeper.spawn().context("starting the sandbox's keeper")?;
    keeper.stdin.as_mut().context("no stdin")?.write_all(sandbox.as_bytes())?;
    Ok(keeper)
}

/// The keeper's own life.
pub(crate) fn keeper_main() -> ExitCode {
    let mut sandbox = String::new();
    if std::io::stdin().read_to_string(&mut sandbox).is_err() {
        return ExitCode::FAILURE;
    }
    take_down(&sandbox);
    ExitCode::SUCCESS
}

/// Starts a sandbox, says its name, and stays.
pub(crate) fn holder_main() -> ExitCode {
    let Ok(sandbox) = Sandbox::up("held") else { return ExitCode::FAILURE };
    let _ = writeln!(std::io::stdout(), "{}", sandbox.name);
    std::thread::sleep(Duration::from_secs(60));
    ExitCode::SUCCESS
}

impl Sandbox {
    /// Starts a sandbox under a name of this run's own.
    pub(crate) fn up(name: &str) -> Result<Self> {
        let name = format!("{name}-{}", std::process::id());
        let keeper = keeper_of(&name)?;
        RUNNING.lock().map_err(|e| anyhow::anyhow!("{e}"))?.push((name.clone(), keeper));
        let mut up = ourselves("meshctl")?;
        up.args(["sandbox", "up", "--name", &name]);
        run_with_input(up, "")?.ok()?;
        let mut show = ourselves("meshctl")?;
        show.args(["sandbox", "kubeconfig", "--name", &name]);
        let kubeconfig = PathBuf::from(run_with_input(show, "")?.ok()?.stdout.trim());
        Ok(Self { name, kubeconfig })
    }

    /// A sandbox with the mesh installed and its control plane ready.
    pub(crate) fn meshed(name: &str) -> Result<Self> {
        let sandbox = Self::up(name)?;
        sandbox.meshctl(["install", "--apply"])?.ok()?;
        sandbox.meshctl(["check", "--wait"])?.ok()?;
        Ok(sandbox)
    }

    /// Makes this binary known as the image `mesh-peer`, and tells where it is.
    pub(crate) fn add_peer(&self) -> Result<String> {
        static LINKING: Mutex<()> = Mutex::new(());
        let linking = LINKING.lock();
        let ourselves = std::env::current_exe()?;
        let peer = ourselves.with_file_name("mesh-peer");
        let _ = std::fs::remove_file(&peer);
        std::fs::hard_link(&ourselves, &peer)?;
        drop(linking);
        let peer = peer.to_str().context("path")?.to_owned();
        self.meshctl(["sandbox", "image", "add", "--name", &self.name, "mesh-peer", &peer])?.ok()?;
        Ok(peer)
    }

    /// `meshctl ARGS` against this sandbox.
    pub(crate) fn meshctl<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Ran> {
        self.meshctl_with_input(arguments, "")
    }

    /// `meshctl ARGS` with a text on standard input.
    pub(crate) fn meshctl_with_input<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        input: &str,
    ) -> Result<Ran> {
        let mut command = ourselves("meshctl")?;
        command.env("KUBECONFIG", &self.kubeconfig).args(arguments);
        run_with_input(command, input)
    }

    /// A `kubectl` command against this sandbox, not yet started.
    pub(crate) fn kubectl_command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Command> {
        let mut command = Command::new(find_program("kubectl").context("kubectl is not installed")?);
        // A home of its own keeps kubectl's discovery cache from telling one sandbox about another.
        let home = self.kubeconfig.parent().context("the kubeconfig lies nowhere")?;
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", home).args(arguments);
        Ok(command)
    }

    /// `kubectl ARGS` against this sandbox.
    pub(crate) fn kubectl<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Ran> {
        self.kubectl_with_input(arguments, "")
    }

    /// `kubectl ARGS` with a text on standard input.
    pub(crate) fn kubectl_with_input<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        input: &str,
    ) -> Result<Ran> {
        run_with_input(self.kubectl_command(arguments)?, input)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        take_down(&self.name);
    }
}

fn take_down(name: &str) {
    if let Ok(mut down) = ourselves("meshctl") {
        down.args(["sandbox", "down", "--name", name]);
        let _ = run_with_input(down, "");
    }
    if let Ok(mut running) = RUNNING.lock()
        && let Some(at) = running.iter().position(|(known, _)| known == name)
    {
        let (_, mut keeper) = running.swap_remove(at);
        let _ = (keeper.kill(), keeper.wait());
    }
}

/// A sandbox started once and used by every test that asks for it.
pub(crate) struct Shared {
    cell: Mutex<Option<&'static Sandbox>>,
    start: fn() -> Result<Sandbox>,
}

impl Shared {
    pub(crate) const fn new(start: fn() -> Result<Sandbox>) -> Self {
        Self { cell: Mutex::new(None), start }
    }

    /// The sandbox, started by the first to ask; a failed start is tried again by the next.
    pub(crate) fn get(&self) -> Result<&'static Sandbox> {
        let mut cell = self.cell.lock().map_err(|e| anyhow::anyhow!("an earlier test panicked: {e}"))?;
        if let Some(sandbox) = *cell {
            return Ok(sandbox);
        }
        let sandbox: &'static Sandbox = Box::leak(Box::new((self.start)()?));
        *cell = Some(sandbox);
        Ok(sandbox)
    }
}

/// A cluster without a mesh.
pub(crate) static BARE: Shared = Shared::new(|| {
    let sandbox = Sandbox::up("bare")?;
    sandbox.meshctl(["sandbox", "image", "add", "--name", &sandbox.name, "sh", "/bin/sh"])?.ok()?;
    Ok(sandbox)
});

/// A cluster with the mesh and the demo shop in it, every pod ready.
pub(crate) static SHOP: Shared = Shared::new(|| {
    let sandbox = Sandbox::meshed("shop")?;
    sandbox.meshctl(["sandbox", "image", "add", "--name", &sandbox.name, "sh", "/bin/sh"])?.ok()?;
    let injected = sandbox.meshctl_with_input(["inject", "-"], mesh_sandbox::apps::SHOP_YAML)?.ok()?.stdout;
    sandbox.kubectl_with_input(["apply", "-f", "-"], &injected)?.ok()?;
    sandbox.kubectl(["-n", "shop", "wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?.ok()?;
    Ok(sandbox)
});

/// Takes down what tests left running.
pub(crate) fn tear_down() {
    let left: Vec<String> =
        RUNNING.lock().map(|r| r.iter().map(|(name, _)| name.clone()).collect()).unwrap_or_default();
    left.iter().for_each(|name| take_down(name));
}

/// Asks again and again until the answer is there, and says what the last try said when it never is.
pub(crate) fn eventually<T>(within: Duration, what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + within;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                return Err(error.context(format!("{what}: not within {within:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
