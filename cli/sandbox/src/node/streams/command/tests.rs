//! Real processes behind channels: output, input, sizes, ends.

use super::super::channel::{Frame, Inlet, channel, frames};
use super::*;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// A client's end of a command's channels 0 to 4: what to feed them with, and what comes out.
struct Client {
    inlets: Vec<Option<Inlet>>,
    frames: mpsc::Receiver<Frame>,
    gone: CancellationToken,
}

fn client() -> (Client, Streams) {
    let gone = CancellationToken::new();
    let (sender, frames) = frames();
    let (channels, inlets): (Vec<_>, Vec<_>) = (0..5).map(|id| channel(id, sender.clone(), gone.child_token())).unzip();
    let mut channels = channels.into_iter();
    let streams = Streams {
        stdin: channels.next(),
        stdout: channels.next(),
        stderr: channels.next(),
        error: channels.next(),
        resize: channels.next(),
    };
    (Client { inlets: inlets.into_iter().map(Some).collect(), frames, gone }, streams)
}

impl Client {
    /// Everything sent on each channel until all of them have ended.
    async fn outputs(&mut self) -> [String; 5] {
        let mut outputs: [Vec<u8>; 5] = Default::default();
        let mut ends = 0;
        while ends < 3 {
            match self.frames.recv().await.unwrap() {
                Frame::Data(id, bytes) => outputs[id as usize].extend(bytes),
                Frame::End(_) => ends += 1,
                other => panic!("{other:?}"),
            }
        }
        outputs.map(|bytes| String::from_utf8(bytes).unwrap())
    }
}

/// Runs a real command; its output streams are the process's own pipes.
pub(in crate::node::streams) fn shell_process(script: &str) -> Process {
    let mut child = tokio::process::Command::new("sh")
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    Process {
        stdin: child.stdin.take().map(|stdin| Box::pin(stdin) as Writer),
        stdout: Box::pin(child.stdout.take().unwrap()),
        stderr: child.stderr.take().map(|stderr| Box::pin(stderr) as Reader),
        exit: Box::pin(async move { Exit::Code(child.wait().await.unwrap().code().unwrap()) }),
        resize: Resize::default(),
    }
}

fn ready(process: Process) -> Start {
    Box::pin(std::future::ready(Ok(process)))
}

#[tokio::test]
async fn a_process_that_cannot_start_says_why() {
    let (mut client, streams) = client();
    let failure = Box::pin(std::future::ready(Err(PodError::Failed("no such program".to_owned()))));
    run(failure, streams).await;
    let Some(Frame::Data(3, status)) = client.frames.recv().await else { panic!("a status") };
    let status: Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["message"], "Internal error occurred: no such program");
}

#[tokio::test]
async fn output_and_exit_code_arrive() {
    let (mut client, streams) = client();
    let script = "echo out; echo err >&2; exit 3";
    let (outputs, ()) = tokio::join!(client.outputs(), run(ready(shell_process(script)), streams));
    assert_eq!((outputs[1].as_str(), outputs[2].as_str()), ("out\n", "err\n"));
    let status: Value = serde_json::from_str(&outputs[3]).unwrap();
    assert_eq!((&status["status"], &status["reason"]), (&json!("Failure"), &json!("NonZeroExitCode")));
    assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": "3"}]));
}

#[tokio::test]
async fn input_flows_to_its_end() {
    let (mut client, streams) = client();
    let large = "0123456789abcdef".repeat(20_000);
    let stdin = client.inlets[0].take().unwrap();
    let text = large.clone();
    let feed = async move {
        for part in text.as_bytes().chunks(10_000) {
            stdin.deliver(Bytes::copy_from_slice(part)).await;
        }
    };
    let (outputs, (), ()) = tokio::join!(client.outputs(), feed, run(ready(shell_process("cat")), streams));
    assert_eq!(outputs[1], large);
    assert_eq!(outputs[3], r#"{"metadata":{},"status":"Success"}"#);
}

#[tokio::test]
async fn a_child_left_behind_does_not_hold_the_command_up() {
    let (mut client, streams) = client();
    let work = async { tokio::join!(client.outputs(), run(ready(shell_process("sleep 20 & echo done")), streams)).0 };
    let outputs = tokio::time::timeout(Duration::from_secs(10), work).await.unwrap();
    assert_eq!(outputs[1], "done\n");
}

#[tokio::test]
async fn the_end_of_the_client_is_the_end() {
    let (client, streams) = client();
    let work = tokio::spawn(run(ready(shell_process("sleep 20")), streams));
    client.gone.cancel();
    tokio::time::timeout(Duration::from_secs(10), work).await.unwrap().unwrap();
}

#[tokio::test]
async fn output_nobody_wants_is_read_all_the_same() {
    let (mut client, mut streams) = client();
    streams.stdout = None;
    let (sender, receiver) = oneshot::channel();
    let script = "head -c 1000000 /dev/zero; echo err >&2";
    let collect = async {
        let mut seen = Vec::new();
        while let Some(frame) = client.frames.recv().await {
            seen.push(frame);
        }
        sender.send(seen).unwrap();
    };
    tokio::join!(run(ready(shell_process(script)), streams), collect);
    let seen = receiver.await.unwrap();
    assert_eq!(seen[0], Frame::Data(2, Bytes::from_static(b"err\n")));
}

#[test]
fn sizes_come_in_any_pieces() {
    let size = |width, height| Some(Size { width, height });
    for (pieces, expect) in [
        (&[r#"{"Width":80,"Height":24}"#][..], vec![size(80, 24)]),
        (&[r#"{"Width":80,"#, r#""Height":24}"#], vec![None, size(80, 24)]),
        (
            &["{\"Width\":1,\"Height\":2}\n{\"Width\":3,\"Height\":4}\n{\"Wid", "th\":5,\"Height\":6}"],
            vec![size(3, 4), size(5, 6)],
        ),
        (&["nonsense", r#"{"Width":80,"Height":24}"#], vec![None, size(80, 24)]),
        (&[r#"{"Width":-1,"Height":24}"#, r#"{"Width":80,"Height":24}"#], vec![None, size(80, 24)]),
    ] {
        let mut text = Vec::new();
        let sizes: Vec<_> = pieces
            .iter()
            .map(|piece| {
                text.extend(piece.bytes());
                last_size(&mut text)
            })
            .collect();
        assert_eq!(sizes, expect, "{pieces:?}");
    }
    let mut endless = vec![b'['; 2000];
    last_size(&mut endless);
    assert!(endless.is_empty());
}
