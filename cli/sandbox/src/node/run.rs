//! A running container: its process and streams, commands run beside it, joining it.

use super::PodError;
use super::exec::{Attach, Exec, ExecOptions, Exit, Kill, Reader, Resize, Writer};
use super::logs::{LineCutter, Log};
use super::spawner::{Credentials, Launch, LaunchError, Namespaces, Place, Process, Spawner, Streams};
use super::terminal::Terminal;
use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::{broadcast, watch};

/// Pieces of output a client that joined a container may be behind.
const BEHIND: usize = 256;
/// Output after a container's end is waited for so long; something outside may hold its streams open.
const DRAIN: Duration = Duration::from_millis(500);
/// What a joined stream buffers.
const BUFFER: usize = 64 * 1024;

/// Output of a container: whether it is standard error, and what.
type Output = (bool, Bytes);

/// A running or ended container.
pub(super) struct Run {
    pub(super) id: String,
    pub(super) since: Timestamp,
    pub(super) process: Process,
    pub(super) log: Log,
    env: Vec<(String, String)>,
    cwd: String,
    credentials: Credentials,
    output: broadcast::Sender<Output>,
    stdin: Mutex<Option<Input>>,
    terminal: Option<Terminal>,
    /// True once everything it wrote is in the log.
    drained: watch::Receiver<bool>,
}

/// A container's standard input, which outlives the clients that write to it, unless it is for one only.
struct Input {
    pipe: Arc<tokio::sync::Mutex<pipe::Sender>>,
    once: bool,
}

/// How a container's standard input is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StdinMode {
    None,
    /// Open until the container ends.
    Open,
    /// Closed after the first client.
    Once,
}

fn pipe_pair() -> Result<(OwnedFd, OwnedFd), LaunchError> {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|errno| LaunchError::Broken(format!("making a pipe: {errno}")))
}

fn broken(error: std::io::Error) -> LaunchError {
    LaunchError::Broken(format!("connecting a container's streams: {error}"))
}

impl Run {
    /// Starts a container.
    pub(super) async fn start(
        spawner: &Spawner,
        id: String,
        launch: Launch,
        namespaces: Option<&Namespaces>,
        program: Option<&OwnedFd>,
        stdin: StdinMode,
    ) -> Result<Self, LaunchError> {
        let (env, cwd, credentials) = (launch.env.clone(), launch.cwd.clone(), launch.credentials.clone());
        let (log, output) = (Log::new(), broadcast::channel(BEHIND).0);
        let mut sources: Vec<(bool, Reader)> = Vec::new();
        let (process, terminal, input) = if launch.tty {
            let (process, terminal) = spawner.launch_on_terminal(launch, namespaces, program).await?;
            let terminal = Terminal::new(terminal).map_err(broken)?;
            sources.push((false, Box::pin(terminal.clone())));
            (process, Some(terminal), None)
        } else {
            let ((out, out_theirs), (err, err_theirs)) = (pipe_pair()?, pipe_pair()?);
            let (in_theirs, input) = match stdin {
                StdinMode::None => (None, None),
                mode => {
                    let (theirs, ours) = pipe_pair()?;
                    let ours = pipe::Sender::from_owned_fd(ours).map_err(broken)?;
                    let pipe = Arc::new(tokio::sync::Mutex::new(ours));
                    (Some(theirs), Some(Input { pipe, once: mode == StdinMode::Once }))
                }
            };
            let streams = Streams { stdin: in_theirs, stdout: Some(out_theirs), stderr: Some(err_theirs) };
            let process = spawner.launch(launch, namespaces, streams, program).await?;
            sources.push((false, Box::pin(pipe::Receiver::from_owned_fd(out).map_err(broken)?)));
            sources.push((true, Box::pin(pipe::Receiver::from_owned_fd(err).map_err(broken)?)));
            (process, None, input)
        };
        let drained = collect(sources, process.clone(), log.clone(), output.clone());
        let stdin = Mutex::new(input);
        Ok(Self { id, since: Timestamp::now(), process, log, env, cwd, credentials, output, stdin, terminal, drained })
    }

    /// Waits for its end and that of its output.
    pub(super) async fn ended(&self) -> Exit {
        let exit = self.process.clone().ended().await;
        let _ = self.drained.clone().wait_for(|drained| *drained).await;
        exit
    }

    /// Runs a command in it.
    pub(super) async fn exec(
        &self,
        spawner: &Spawner,
        argv: Vec<String>,
        options: ExecOptions,
    ) -> Result<Exec, PodError> {
        let mut env = self.env.clone();
        if options.tty && !env.iter().any(|(name, _)| name == "TERM") {
            env.push(("TERM".into(), "xterm".into()));
        }
        let launch = Launch {
            place: Place::Join { pid: self.process.pid },
            argv,
            env,
            cwd: self.cwd.clone(),
            credentials: self.credentials.clone(),
            tty: options.tty,
        };
        let failed = |error: LaunchError| match error {
            LaunchError::Refused(failure) if failure.program => PodError::NotNow(failure.message),
            other => PodError::Failed(other.to_string()),
        };
        if options.tty {
            let (process, terminal) = spawner.launch_on_terminal(launch, None, None).await.map_err(failed)?;
            let terminal = Terminal::new(terminal).map_err(|error| PodError::Failed(error.to_string()))?;
            return Ok(Exec {
                stdin: options.stdin.then(|| Box::pin(terminal.clone()) as Writer),
                resize: Resize(Some(Arc::clone(&terminal.control))),
                stdout: Box::pin(terminal),
                stderr: None,
                kill: Kill(process.pid),
                exit: Box::pin(async move { process.clone().ended().await }),
            });
        }
        let ((out, out_theirs), (err, err_theirs)) = (pipe_pair().map_err(failed)?, pipe_pair().map_err(failed)?);
        let (theirs, stdin) = match options.stdin.then(pipe_pair).transpose().map_err(failed)? {
            Some((theirs, ours)) => (Some(theirs), Some(ours)),
            None => (None, None),
        };
        let streams = Streams { stdin: theirs, stdout: Some(out_theirs), stderr: Some(err_theirs) };
        let process = spawner.launch(launch, None, streams, None).await.map_err(failed)?;
        let reader = |fd| -> Result<Reader, PodError> {
            let pipe = pipe::Receiver::from_owned_fd(fd).map_err(|error| PodError::Failed(error.to_string()))?;
            Ok(Box::pin(pipe))
        };
        let stdin = stdin.map(pipe::Sender::from_owned_fd).transpose();
        Ok(Exec {
            stdin: stdin.map_err(|error| PodError::Failed(error.to_string()))?.map(|pipe| Box::pin(pipe) as Writer),
            stdout: reader(out)?,
            stderr: Some(reader(err)?),
            resize: Resize(None),
            kill: Kill(process.pid),
            exit: Box::pin(async move { process.clone().ended().await }),
        })
    }

    /// Runs a command to its end: how it ended and the beginning of what it said.
    pub(super) async fn run_command(
        &self,
        spawner: &Spawner,
        argv: Vec<String>,
        timeout: Duration,
    ) -> Result<(Exit, String), String> {
        const ENOUGH: u64 = 10 * 1024;
        let exec = self.exec(spawner, argv, ExecOptions::default()).await.map_err(|error| error.to_string())?;
        let Exec { stdout, stderr, exit, kill, .. } = exec;
        let reading = async {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let (mut stdout, mut stderr) = (stdout.take(ENOUGH), stderr.map(|stderr| stderr.take(ENOUGH)));
            let read_err = async {
                if let Some(stderr) = &mut stderr {
                    let _ = stderr.read_to_end(&mut err).await;
                }
            };
            let (_, ()) = tokio::join!(stdout.read_to_end(&mut out), read_err);
            out.extend(err);
            (exit.await, String::from_utf8_lossy(&out).into_owned())
        };
        match tokio::time::timeout(timeout, reading).await {
            Ok(done) => Ok(done),
            Err(_) => {
                kill.now();
                Err(format!("command timed out after {}s", timeout.as_secs_f32()))
            }
        }
    }

    /// Joins its streams.
    pub(super) fn attach(&self) -> Attach {
        let process = self.process.clone();
        let exit = Box::pin(async move { process.clone().ended().await });
        if let Some(terminal) = &self.terminal {
            return Attach {
                stdin: Some(Box::pin(terminal.clone())),
                stdout: self.join(false),
                stderr: None,
                exit,
                resize: Resize(Some(Arc::clone(&terminal.control))),
            };
        }
        Attach {
            stdin: self.join_stdin(),
            stdout: self.join(false),
            stderr: Some(self.join(true)),
            exit,
            resize: Resize(None),
        }
    }

    /// A reader of one of its outputs from now on.
    fn join(&self, stderr: bool) -> Reader {
        let (mut write, read) = tokio::io::duplex(BUFFER);
        let (mut output, mut drained) = (self.output.subscribe(), self.drained.clone());
        tokio::spawn(async move {
            loop {
                let received = tokio::select! {
                    biased;
                    received = output.recv() => received,
                    _ = drained.wait_for(|drained| *drained) => break,
                };
                match received {
                    Ok((from, bytes)) if from == stderr => {
                        if write.write_all(&bytes).await.is_err() {
                            break;
                        }
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break,
                }
            }
            let _ = write.shutdown().await;
        });
        Box::pin(read)
    }

    /// A writer to its standard input, if it has one.
    fn join_stdin(&self) -> Option<Writer> {
        let mut slot = self.stdin.lock();
        let pipe = match &*slot {
            Some(input) if input.once => slot.take().map(|input| input.pipe),
            Some(input) => Some(Arc::clone(&input.pipe)),
            None => None,
        }?;
        let (mut read, write) = tokio::io::duplex(BUFFER);
        tokio::spawn(async move {
            let mut pipe = pipe.lock().await;
            let _ = tokio::io::copy(&mut read, &mut *pipe).await;
        });
        Some(Box::pin(write))
    }
}

impl Kill {
    /// Does it. The process must not have been seen to end yet.
    pub fn now(&self) {
        super::spawner::send_signal(self.0, libc::SIGKILL);
    }
}

/// Puts what the container writes into its log and passes it on.
fn collect(
    sources: Vec<(bool, Reader)>,
    process: Process,
    log: Log,
    output: broadcast::Sender<Output>,
) -> watch::Receiver<bool> {
    let (done, drained) = watch::channel(false);
    tokio::spawn(async move {
        let reading: Vec<_> =
            sources.into_iter().map(|(stderr, source)| read_out(source, stderr, &log, &output)).collect();
        let all = futures::future::join_all(reading);
        let late = async {
            process.clone().ended().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! { _ = all => { process.clone().ended().await; }, () = late => {} }
        log.complete();
        done.send_replace(true);
    });
    drained
}

async fn read_out(mut source: impl AsyncRead + Unpin, stderr: bool, log: &Log, output: &broadcast::Sender<Output>) {
    let mut cutter = LineCutter::default();
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = source.read(&mut buffer).await {
        let now = Timestamp::now();
        cutter.push(&buffer[..read], |line| log.add(now, line));
        if output.receiver_count() > 0 {
            let _ = output.send((stderr, Bytes::copy_from_slice(&buffer[..read])));
        }
    }
    if let Some(rest) = cutter.finish() {
        log.add(Timestamp::now(), rest);
    }
}
