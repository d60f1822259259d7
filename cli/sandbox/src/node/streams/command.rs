//! `pods/exec` and `pods/attach`: connects a process with the channels of a client, whichever protocol carries them.

use super::channel::{Channel, Gone, Outlet};
use crate::node::PodError;
use crate::node::exec::{Attach, Exec, Exit, Reader, Resize, Writer};
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Bytes of output carried at once.
const PIECE: usize = 32 * 1024;
/// Output that comes later than this after the process has ended is somebody else's: of a child it left behind.
const LATE_OUTPUT: Duration = Duration::from_millis(500);

/// How long to wait for the size of a client's terminal before a program starts in it.
const FIRST_SIZE: Duration = Duration::from_millis(100);

/// Starts or joins the process a client wants to be connected to.
pub(in crate::node) type Start = BoxFuture<'static, Result<Process, PodError>>;

/// What a client wants to be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node) struct Wanted {
    /// Standard input.
    pub(in crate::node) stdin: bool,
    /// Standard output.
    pub(in crate::node) stdout: bool,
    /// Standard error; never together with a terminal.
    pub(in crate::node) stderr: bool,
    /// A terminal.
    pub(in crate::node) tty: bool,
}

/// The channels of one client.
#[derive(Debug, Default)]
pub(in crate::node) struct Streams {
    /// From the client to the process.
    pub(in crate::node) stdin: Option<Channel>,
    /// From the process.
    pub(in crate::node) stdout: Option<Channel>,
    /// From the process.
    pub(in crate::node) stderr: Option<Channel>,
    /// How it ended, as a `v1.Status`.
    pub(in crate::node) error: Option<Channel>,
    /// From the client: sizes of its terminal.
    pub(in crate::node) resize: Option<Channel>,
}

/// A process to connect with.
pub(in crate::node) struct Process {
    stdin: Option<Writer>,
    stdout: Reader,
    stderr: Option<Reader>,
    exit: Pin<Box<dyn Future<Output = Exit> + Send>>,
    resize: Resize,
}

impl From<Exec> for Process {
    fn from(Exec { stdin, stdout, stderr, exit, resize, kill: _ }: Exec) -> Self {
        Self { stdin, stdout, stderr, exit, resize }
    }
}

impl From<Attach> for Process {
    fn from(Attach { stdin, stdout, stderr, exit, resize }: Attach) -> Self {
        Self { stdin, stdout, stderr, exit, resize }
    }
}

/// A terminal's size, as clients send it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// Starts a process, or joins one, for a client whose channels stand; then carries input and output until the process
/// has ended and its output is sent, or the client is gone.
pub(in crate::node) async fn run(start: Start, streams: Streams) {
    let Streams { stdin, stdout, stderr, error, resize } = streams;
    let Some(error) = error else { return };
    let mut sizes = resize.map(Sizes::new);
    // A program should find its terminal in the client's size: clients that know it say so at once.
    let size = match &mut sizes {
        Some(sizes) => tokio::time::timeout(FIRST_SIZE, sizes.next()).await.ok().flatten(),
        None => None,
    };
    let gone = error.gone();
    let process = tokio::select! {
        process = start => process,
        () = gone.cancelled() => return,
    };
    match process {
        Ok(process) => {
            if let Some(Size { width, height }) = size {
                process.resize.set(width, height);
            }
            connect(process, Connected { stdin, stdout, stderr, status: error, sizes }).await;
        }
        Err(failure) => {
            let _ = error.outlet().send(failure_of(&failure).to_string()).await;
            error.outlet().finish().await;
        }
    }
}

/// The channels of one client, the necessary ones being there.
struct Connected {
    stdin: Option<Channel>,
    stdout: Option<Channel>,
    stderr: Option<Channel>,
    status: Channel,
    sizes: Option<Sizes>,
}

async fn connect(process: Process, client: Connected) {
    let Process { stdin, stdout, stderr, exit, resize } = process;
    let Connected { stdin: input, stdout: output, stderr: errors, status, sizes } = client;
    let ended = tokio_util::sync::CancellationToken::new();
    let outlet = |channel: &Option<Channel>| channel.as_ref().map(Channel::outlet);
    let (output_outlet, errors_outlet) = (outlet(&output), outlet(&errors));
    let outputs = async {
        let exit = async {
            let exit = exit.await;
            ended.cancel();
            exit
        };
        let (exit, out, err) = tokio::join!(
            exit,
            copy_output(Some(stdout), output_outlet.as_ref(), &ended),
            copy_output(stderr, errors_outlet.as_ref(), &ended),
        );
        if out.is_ok() && err.is_ok() {
            let _ = status.outlet().send(status_of(exit).to_string()).await;
        }
        for outlet in [output_outlet.as_ref(), errors_outlet.as_ref(), Some(&status.outlet())].into_iter().flatten() {
            outlet.finish().await;
        }
    };
    let inputs = async {
        tokio::join!(copy_input(input, stdin), follow_size(sizes, &resize));
        // The end of input is not the end.
        std::future::pending::<()>().await;
    };
    let gone = status.gone();
    tokio::select! {
        () = outputs => {}
        () = inputs => {}
        () = gone.cancelled() => {}
    }
}

async fn copy_input(input: Option<Channel>, stdin: Option<Writer>) {
    let (Some(mut input), Some(mut stdin)) = (input, stdin) else { return };
    while let Some(bytes) = input.receive().await {
        let written = async {
            stdin.write_all(&bytes).await?;
            stdin.flush().await
        };
        if written.await.is_err() {
            return;
        }
    }
    let _ = stdin.shutdown().await;
}

async fn follow_size(sizes: Option<Sizes>, resize: &Resize) {
    let Some(mut sizes) = sizes else { return };
    while let Some(Size { width, height }) = sizes.next().await {
        resize.set(width, height);
    }
}

/// A channel on which a client sends sizes, one JSON object after the other.
struct Sizes {
    channel: Channel,
    text: Vec<u8>,
}

impl Sizes {
    fn new(channel: Channel) -> Self {
        Self { channel, text: Vec::new() }
    }

    /// The latest size; `None` when no more will come. Nothing is lost if this is not waited for to the end.
    async fn next(&mut self) -> Option<Size> {
        loop {
            let bytes = self.channel.receive().await?;
            self.text.extend_from_slice(&bytes);
            if let Some(size) = last_size(&mut self.text) {
                return Some(size);
            }
        }
    }
}

/// The last complete size in `text`; takes out what has been read, and whatever makes no sense.
fn last_size(text: &mut Vec<u8>) -> Option<Size> {
    let mut sizes = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let mut last = None;
    let mut read = 0;
    let complete = loop {
        match sizes.next() {
            Some(Ok(size)) => {
                last = Some(size);
                read = sizes.byte_offset();
            }
            Some(Err(error)) if error.is_eof() && text.len() < 1024 => break false,
            _ => break true,
        }
    };
    if complete {
        text.clear();
    } else {
        text.drain(..read);
    }
    last
}

/// Copies output to its end; after the process has ended, until nothing has come for a moment.
async fn copy_output(
    reader: Option<Reader>,
    outlet: Option<&Outlet>,
    ended: &tokio_util::sync::CancellationToken,
) -> Result<(), Gone> {
    let Some(mut reader) = reader else { return Ok(()) };
    let late = async {
        ended.cancelled().await;
        tokio::time::sleep(LATE_OUTPUT).await;
    };
    let mut late = std::pin::pin!(late);
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        let read = tokio::select! {
            biased;
            read = reader.read_buf(&mut buffer) => read,
            () = &mut late => return Ok(()),
        };
        match (read, outlet) {
            // A terminal whose last process is gone reports an input/output error.
            (Ok(0) | Err(_), _) => return Ok(()),
            (Ok(_), Some(outlet)) => outlet.send(buffer.split().freeze()).await?,
            (Ok(_), None) => buffer.clear(),
        }
    }
}

/// How a process ended, as clients expect to hear it.
fn status_of(exit: Exit) -> Value {
    match exit.code() {
        0 => json!({"metadata": {}, "status": "Success"}),
        code => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
    }
}

/// That a process could not be started, as clients expect to hear it.
fn failure_of(failure: &PodError) -> Value {
    let text = failure.to_string();
    json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: {text}"), "details": {"causes": [{"message": text}]},
    })
}

/// Tells a client over WebSocket that the connection stands, before there is any output.
pub(in crate::node) async fn greet(streams: &Streams) {
    let first = streams.stdout.as_ref().or(streams.stderr.as_ref()).or(streams.error.as_ref());
    if let Some(channel) = first {
        let _ = channel.outlet().send(Bytes::new()).await;
    }
}

#[cfg(test)]
pub(super) mod tests;
