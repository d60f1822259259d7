//! The sandbox itself: from the process that [`super::up`] starts to a cluster that serves.

use super::control::{self, Answer, Request};
use super::isolation::{self, Mode};
use super::state::{Process, Record, StateDir, Taken};
use super::{Image, Orders, Ready, Status, guardian};
use crate::node::services::ServiceNetwork;
use crate::node::{self, BRIDGE, Images, Kubelet, NODE_ADDRESS, Network, Spawner};
use crate::{api, controllers};
use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::ServiceAccount;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, fork};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The API's port inside the sandbox.
const API_PORT: u16 = 6443;
/// Containers that do not end within this time when the sandbox ends are killed.
const FAREWELL: Duration = Duration::from_secs(3);
/// The first service account is there by then, or never.
const ACCOUNTS: Duration = Duration::from_secs(10);
/// The sandbox's log starts anew when it has grown to this.
const MAX_LOG: u64 = 4 * 1024 * 1024;
/// Threads of the node; it waits more than it works.
const THREADS: usize = 4;

/// The sandbox itself (argv[0] `mesh-sandbox`); started by [`super::up`] and nobody else.
pub fn main(_args: impl Iterator<Item = OsString>) -> ExitCode {
    let answer = match std::io::stdout().as_fd().try_clone_to_owned() {
        Ok(stdout) => Report(Some(File::from(stdout))),
        Err(_) => return ExitCode::FAILURE,
    };
    let orders = match read_orders() {
        Ok(orders) => orders,
        Err(error) => return answer.fail(&error),
    };
    let ground = match Ground::prepare(orders) {
        Ok(ground) => ground,
        Err(error) => return answer.fail(&error),
    };
    match ground.divide(answer) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(_) => ExitCode::FAILURE,
    }
}

/// Where to say that the sandbox is ready or why it isn't; once.
struct Report(Option<File>);

impl Report {
    fn say(&mut self, ready: &Ready) {
        if let (Some(mut pipe), Ok(mut line)) = (self.0.take(), serde_json::to_vec(ready)) {
            line.push(b'\n');
            let _ = pipe.write_all(&line);
        }
    }

    fn fail(mut self, error: &anyhow::Error) -> ExitCode {
        self.say(&Ready::Failed(format!("{error:#}")));
        ExitCode::FAILURE
    }
}

fn read_orders() -> anyhow::Result<Orders> {
    const ENOUGH: u64 = 1024 * 1024;
    let mut line = String::new();
    std::io::BufReader::new(std::io::stdin().lock().take(ENOUGH))
        .read_line(&mut line)
        .context("reading the sandbox's orders")?;
    serde_json::from_str(&line)
        .context("mesh-sandbox is started by `meshctl sandbox up`, which tells it on its standard input what to do")
}

/// What is made before the sandbox leaves the host's namespaces.
struct Ground {
    orders: Orders,
    mode: Mode,
    state: StateDir,
    images: Images,
    listener: TcpListener,
    control: UnixListener,
    /// Held by all processes of the sandbox, as long as one lives.
    _lock: File,
}

/// The three processes.
enum Role {
    Guardian { init: nix::unistd::Pid },
    Init { node: nix::unistd::Pid, socket: OwnedFd },
    Node { socket: OwnedFd, room: PathBuf, guardian: u32 },
}

impl Ground {
    fn prepare(orders: Orders) -> anyhow::Result<Self> {
        // Fails for a group leader, which nobody who started us makes us; then there is no terminal to leave either.
        let _ = nix::unistd::setsid();
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        let state = StateDir::of(&orders.name)?;
        let lock = match state.make_and_claim() {
            Ok(lock) => lock,
            Err(Taken::Failed(error)) => return Err(error),
            Err(Taken::Busy | Taken::Gone) => {
                bail!("sandbox {} is being started or ended by somebody else", orders.name)
            }
        };
        let ground = Self::on(orders, state.clone(), lock);
        if ground.is_err() {
            let _ = state.remove();
        }
        ground
    }

    fn on(orders: Orders, state: StateDir, lock: File) -> anyhow::Result<Self> {
        let mode = isolation::preflight()?;
        let images = Images::new().context("opening this program")?;
        for image in &orders.images {
            images.add(image.clone()).map_err(|error| anyhow::anyhow!("image {}: {error}", image.name))?;
        }
        // In the host's network, which everything else leaves.
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("listening on 127.0.0.1")?;
        let control = control::listen(&state)?;
        Ok(Self { orders, mode, state, images, listener, control, _lock: lock })
    }

    /// Becomes three processes, each of which returns from here with its exit code.
    fn divide(self, mut report: Report) -> anyhow::Result<i32> {
        guardian::signals().thread_block().context("blocking signals")?;
        let role = match self.fork_all() {
            Ok(role) => role,
            Err(error) => {
                report.say(&Ready::Failed(format!("{error:#}")));
                let _ = self.state.remove();
                return Err(error);
            }
        };
        match role {
            Role::Guardian { init } => {
                drop(report);
                let lifeline = self.orders.die_with_parent.then(|| std::io::stdin().as_fd().try_clone_to_owned());
                let lifeline = lifeline.transpose().context("holding on to the parent")?;
                detach_streams(lifeline.is_none())?;
                // The listeners are the node's alone: a client must not wait for a node that is gone.
                let Self { state, listener, control, _lock, .. } = self;
                drop((listener, control));
                guardian::watch_over(init, lifeline, &state)
            }
            Role::Init { node, socket } => {
                drop(report);
                detach_streams(true)?;
                let Self { listener, control, images, _lock, .. } = self;
                drop((listener, control, images));
                node::serve_spawner(socket, node)
            }
            Role::Node { socket, room, guardian } => {
                SigSet::empty().thread_set_mask().context("unblocking signals")?;
                detach_streams(true)?;
                let result = self.serve(socket, room, guardian, &mut report);
                if let Err(error) = &result {
                    tracing::error!("{error:#}");
                    report.say(&Ready::Failed(format!("{error:#}")));
                }
                result.map(|()| 0)
            }
        }
    }

    /// Leaves the host and forks twice.
    #[allow(unsafe_code)]
    fn fork_all(&self) -> anyhow::Result<Role> {
        let guardian = std::process::id();
        let guardian_record = Process::of(guardian as i32)?;
        isolation::leave_host(self.mode)?;
        let room = isolation::make_room()?;
        let (alive, guardian_end) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("making a pipe")?;
        // SAFETY: this process has a single thread.
        match unsafe { fork() }.context("forking process 1 of the sandbox")? {
            ForkResult::Parent { child } => {
                // Open until this process ends.
                std::mem::forget(guardian_end);
                let init = Process::of(child.as_raw());
                if let Ok(init) = init {
                    self.state.write_record(&Record { guardian: guardian_record, init })?;
                }
                return Ok(Role::Guardian { init: child });
            }
            ForkResult::Child => drop(guardian_end),
        }
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("tying process 1 to its guardian")?;
        if is_closed(&alive) {
            bail!("the sandbox was ended while it was starting");
        }
        // Process 1 keeps it from being an error to have no reader.
        std::mem::forget(alive);
        isolation::settle()?;
        let (ours, theirs) = node::spawner_sockets().context("making the spawner's socket")?;
        // SAFETY: as above.
        match unsafe { fork() }.context("forking the node")? {
            ForkResult::Parent { child } => Ok(Role::Init { node: child, socket: ours }),
            ForkResult::Child => Ok(Role::Node { socket: theirs, room, guardian }),
        }
    }

    /// Runs the cluster until it is told to end.
    fn serve(self, socket: OwnedFd, room: PathBuf, guardian: u32, report: &mut Report) -> anyhow::Result<()> {
        log_to_stderr();
        // Fails if there is one already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
            .context("starting the runtime")?;
        let done = runtime.block_on(self.run(socket, room, guardian, report));
        // Whatever still runs ends with the process.
        runtime.shutdown_background();
        done
    }

    async fn run(self, socket: OwnedFd, room: PathBuf, guardian: u32, report: &mut Report) -> anyhow::Result<()> {
        let began = Instant::now();
        let spawner = Spawner::connect(socket)?;
        let network = Network::create().await?;
        let without_ipv6 = network.without_ipv6().map(str::to_owned);
        let config = api::Config { dual_stack: without_ipv6.is_none(), ..api::Config::default() };
        let api = api::Api::new(config)?;
        let address = self.listener.local_addr().context("looking at the API's listener")?;
        let inner = TcpListener::bind((NODE_ADDRESS, API_PORT)).context("listening inside the sandbox")?;
        tokio::spawn(api.serve(self.listener)?);
        tokio::spawn(api.serve(inner)?);
        let shutdown = CancellationToken::new();
        tokio::spawn(controllers::run(api.client(), api.pki().ca.clone(), shutdown.clone()));
        let config = node::Config {
            root: room,
            hidden: self.state.path().parent().map(Path::to_owned).into_iter().collect(),
            rootless: self.mode == Mode::User,
            ca: api.pki().ca.clone(),
        };
        let kubelet = Kubelet::start(api.client(), config, spawner, network, self.images.clone()).await?;
        let streams = kubelet.clone();
        api.set_pod_streams(Arc::new(move |asked: api::PodRequest| {
            let kubelet = streams.clone();
            Box::pin(async move {
                let api::PodRequest { request, namespace, pod, subresource } = asked;
                node::streams::serve(&kubelet, request, &namespace, &pod, &subresource).await
            })
        }));
        let _services = ServiceNetwork::start(api.client(), BRIDGE, without_ipv6.is_none()).await?;
        let context = format!("meshctl-{}", self.orders.name);
        self.state.write(&self.state.kubeconfig(), api.kubeconfig(address, &context).as_bytes())?;
        first_account(&api).await?;
        let end = Arc::new(Notify::new());
        let desk = Arc::new(Desk {
            name: self.orders.name.clone(),
            guardian,
            server: format!("https://{address}"),
            kubeconfig: self.state.kubeconfig(),
            began,
            rootless: self.mode == Mode::User,
            without_ipv6,
            kubelet: kubelet.clone(),
            images: self.images,
            end: Arc::clone(&end),
        });
        tokio::spawn(control::serve(self.control, move |request| {
            let desk = Arc::clone(&desk);
            async move { desk.answer(request) }
        }));
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .context("watching for signals")?;
        tracing::info!(name = self.orders.name, %address, took_ms = began.elapsed().as_millis() as u64, "ready");
        report.say(&Ready::Up);
        tokio::select! {
            _ = terminate.recv() => {}
            () = end.notified() => {}
        }
        tracing::info!("ending");
        shutdown.cancel();
        kubelet.shut_down(FAREWELL).await;
        Ok(())
    }
}

/// Answers what is asked over the control socket.
struct Desk {
    name: String,
    guardian: u32,
    server: String,
    kubeconfig: PathBuf,
    began: Instant,
    rootless: bool,
    without_ipv6: Option<String>,
    kubelet: Kubelet,
    images: Images,
    end: Arc<Notify>,
}

impl Desk {
    fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Status => Answer::Status(Box::new(Status {
                name: self.name.clone(),
                running: true,
                pid: Some(self.guardian),
                server: Some(self.server.clone()),
                kubeconfig: Some(self.kubeconfig.clone()),
                up_seconds: Some(self.began.elapsed().as_secs()),
                pods: Some(self.kubelet.pods()),
                rootless: Some(self.rootless),
                without_ipv6: self.without_ipv6.clone(),
            })),
            Request::Down => {
                self.end.notify_one();
                Answer::Done
            }
            Request::AddImage(image) => self.add(image),
            Request::RemoveImage(name) => Answer::Removed(self.images.remove(&name)),
            Request::ListImages => Answer::Images(self.images.list()),
        }
    }

    fn add(&self, image: Image) -> Answer {
        match self.images.add(image) {
            Ok(()) => {
                self.kubelet.images_changed();
                Answer::Done
            }
            Err(why) => Answer::Failed(why),
        }
    }
}

/// Pods need their namespace's service account; a sandbox without it isn't ready.
async fn first_account(api: &api::Api) -> anyhow::Result<()> {
    let accounts: kube::Api<ServiceAccount> = kube::Api::namespaced(api.client(), "default");
    let looking = async {
        while accounts.get_opt("default").await.context("looking for the default service account")?.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(ACCOUNTS, looking).await.context("no controller made the default service account")?
}

/// Whether the other end of a pipe is closed.
fn is_closed(pipe: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

/// Lets go of the standard output (and input) of whoever started the sandbox.
fn detach_streams(input: bool) -> anyhow::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("opening /dev/null")?;
    nix::unistd::dup2_stdout(&null).context("letting go of the standard output")?;
    if input {
        nix::unistd::dup2_stdin(&null).context("letting go of the standard input")?;
    }
    Ok(())
}

fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("MESH_LOG").unwrap_or_else(|_| EnvFilter::new("warn,mesh_sandbox=info"));
    let log = std::io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let Ok(log) = log else { return };
    let log = Arc::new(BoundedLog(log));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(move || LogWriter(Arc::clone(&log)))
        .try_init();
}

/// A log file that starts anew when it has become too long.
struct BoundedLog(File);

struct LogWriter(Arc<BoundedLog>);

impl std::io::Write for LogWriter {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        let mut file = &self.0.0;
        if file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() >= MAX_LOG) {
            file.set_len(0)?;
        }
        file.write(text)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
