//! Talking to a running sandbox: one JSON line each way over a socket in its state directory.

use super::state::StateDir;
use super::{Image, Status};
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::future::Future;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};

/// Largest request or answer.
const MAX_LINE: u64 = 1024 * 1024;
/// A sandbox that doesn't answer by then doesn't.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked of a sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Status,
    Down,
    AddImage(Image),
    RemoveImage(String),
    ListImages,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Done,
    Status(Box<Status>),
    Images(Vec<Image>),
    Removed(bool),
    Failed(String),
}

/// A path to the socket that is short enough for one, whatever the directory's length; valid while the file is open.
fn short_path(state: &StateDir) -> anyhow::Result<(File, String)> {
    let folder = File::open(state.path()).with_context(|| format!("opening {}", state.path().display()))?;
    let name = state.socket().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    Ok((folder, path))
}

/// Makes the socket.
pub(super) fn listen(state: &StateDir) -> anyhow::Result<UnixListener> {
    let (_folder, path) = short_path(state)?;
    UnixListener::bind(path).context("making the sandbox's control socket")
}

/// Asks a sandbox.
pub(super) fn ask(state: &StateDir, request: &Request) -> anyhow::Result<Answer> {
    let (_folder, path) = short_path(state)?;
    let mut stream = UnixStream::connect(path).context("connecting to the sandbox")?;
    stream.set_read_timeout(Some(PATIENCE)).context("connecting to the sandbox")?;
    let mut line = serde_json::to_string(request).context("writing a request to the sandbox")?;
    line.push('\n');
    stream.write_all(line.as_bytes()).context("asking the sandbox")?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut answer).context("waiting for the sandbox's answer")?;
    match serde_json::from_str(&answer).context("reading the sandbox's answer")? {
        Answer::Failed(why) => bail!("{why}"),
        answer => Ok(answer),
    }
}

/// Answers until dropped.
pub(super) async fn serve<F>(listener: UnixListener, answer: impl Fn(Request) -> F + Send + Sync + 'static)
where
    F: Future<Output = Answer> + Send,
{
    let listener = listener.set_nonblocking(true).and_then(|()| tokio::net::UnixListener::from_std(listener));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the control socket cannot be served"),
    };
    let answer = Arc::new(answer);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let answer = Arc::clone(&answer);
        tokio::spawn(tokio::time::timeout(PATIENCE, async move {
            let (read, mut write) = stream.into_split();
            let mut line = String::new();
            let mut reader = tokio::io::BufReader::new(read.take(MAX_LINE));
            if reader.read_line(&mut line).await.is_err() {
                return;
            }
            let answer = match serde_json::from_str(&line) {
                Ok(request) => answer(request).await,
                Err(error) => Answer::Failed(format!("not a request: {error}")),
            };
            if let Ok(mut text) = serde_json::to_vec(&answer) {
                text.push(b'\n');
                let _ = write.write_all(&text).await;
            }
        }));
    }
}
