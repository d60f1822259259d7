//! Real clients against the protocols: the cluster's API on a TLS socket, its one pod played by processes of this machine.

use super::*;
use crate::api::{Api, PodRequest};
use command::tests::shell_process;
use k8s_openapi::api::core::v1::Pod;
use kube::Api as Objects;
use kube::api::{AttachParams, PostParams, TerminalSize};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use std::process::Stdio;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A cluster whose pod `web` runs shell commands and forwards ports to this machine's loopback interface.
struct Cluster {
    pods: Objects<Pod>,
    kubeconfig: String,
    _tasks: JoinSet<()>,
}

impl Cluster {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let api = Api::new(crate::api::Config::default()).unwrap();
        api.set_pod_streams(Arc::new(|request| async move { answer(request) }.boxed()));
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
            "spec": {"nodeName": "sandbox", "containers": [{"name": "app", "image": "app"}]},
            "status": {"phase": "Running"}});
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        let accounts: Objects<k8s_openapi::api::core::v1::ServiceAccount> = Objects::default_namespaced(api.client());
        let _ = accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await;
        let pods: Objects<Pod> = Objects::default_namespaced(api.client());
        pods.create(&PostParams::default(), &serde_json::from_value(pod.clone()).unwrap()).await.unwrap();
        pods.replace_status("web", &PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let kubeconfig = api.kubeconfig(listener.local_addr().unwrap(), "test");
        let mut tasks = JoinSet::new();
        tasks.spawn(api.serve(listener).unwrap());
        let config = Kubeconfig::from_yaml(&kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        let client = kube::Client::try_from(config).unwrap();
        Self { pods: Objects::default_namespaced(client), kubeconfig, _tasks: tasks }
    }
}

fn answer(PodRequest { request, subresource, .. }: PodRequest) -> Response<Body> {
    let query = Query::parse(request.uri().query());
    let answer = match subresource.as_str() {
        "exec" => wanted(&query).and_then(|wanted| {
            let upgrade = Upgrade::negotiate(request.headers(), COMMAND_WEBSOCKET, COMMAND_SPDY)?;
            let script = query.all("command").last().unwrap_or_default().to_owned();
            Ok(command(request, upgrade, wanted, async move { Ok(shell_process(&script)) }.boxed()))
        }),
        _ => {
            let dial = |port| {
                let dial = tokio::net::TcpStream::connect(("127.0.0.1", port));
                async move { dial.await.map_err(|error| PodError::Failed(error.to_string())) }.boxed()
            };
            forward(request, Arc::new(dial), &query)
        }
    };
    answer.unwrap_or_else(|error| Accept::default().respond(error.code, &error.to_status()))
}

/// A server that sends back what it gets, to the end.
async fn echo_server() -> (u16, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    (port, tasks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kube_rs_runs_commands() {
    let cluster = Cluster::start().await;
    let params = AttachParams::default().stdin(true).stdout(true).stderr(true);
    let mut process = cluster.pods.exec("web", ["sh", "-c", "cat; echo err >&2; exit 7"], &params).await.unwrap();
    let (mut stdin, mut stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    let mut stderr = process.stderr().unwrap();
    let status = process.take_status().unwrap();
    let large = "0123456789abcdef".repeat(20_000);
    let feed = async {
        stdin.write_all(large.as_bytes()).await.unwrap();
        stdin.shutdown().await.unwrap();
        drop(stdin);
    };
    let (mut out, mut err) = (String::new(), String::new());
    let ((), out_result, err_result) =
        tokio::join!(feed, stdout.read_to_string(&mut out), stderr.read_to_string(&mut err));
    out_result.unwrap();
    err_result.unwrap();
    assert!(out == large, "{} of {} bytes", out.len(), large.len());
    assert_eq!(err, "err\n");
    let status = status.await.unwrap();
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"));
    assert_eq!(status.details.unwrap().causes.unwrap()[0].message.as_deref(), Some("7"));
    process.join().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kube_rs_resizes_terminals() {
    let cluster = Cluster::start().await;
    let params = AttachParams::interactive_tty();
    let mut process = cluster.pods.exec("web", ["sh", "-c", "echo hello; read line"], &params).await.unwrap();
    let mut sizes = process.terminal_size().unwrap();
    futures::SinkExt::send(&mut sizes, TerminalSize { width: 80, height: 24 }).await.unwrap();
    let mut stdout = process.stdout().unwrap();
    let mut hello = [0; 6];
    stdout.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello\n");
    process.stdin().unwrap().write_all(b"go on\n").await.unwrap();
    assert_eq!(process.take_status().unwrap().await.unwrap().status.as_deref(), Some("Success"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kube_rs_forwards_ports() {
    let cluster = Cluster::start().await;
    let (port, _tasks) = echo_server().await;
    let mut forward = cluster.pods.portforward("web", &[port]).await.unwrap();
    let stream = forward.take_stream(port).unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let large = vec![5; 500_000];
    let mut received = vec![0; large.len()];
    let (sent, read) = tokio::join!(writer.write_all(&large), reader.read_exact(&mut received));
    sent.unwrap();
    read.unwrap();
    assert!(received == large);
    drop((reader, writer));

    // Where nothing listens, the error says so.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut forward = cluster.pods.portforward("web", &[closed]).await.unwrap();
    let error = forward.take_error(closed).unwrap().await.unwrap();
    assert!(error.contains("refused"), "{error}");
}

/// A kubectl to test with: what `KUBECTL` says, or the one in the path.
fn kubectl(
    cluster: &Cluster,
    environment: &[(&str, &str)],
    args: &[&str],
) -> (tokio::process::Command, tempfile::NamedTempFile) {
    let kubeconfig = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(kubeconfig.path(), &cluster.kubeconfig).unwrap();
    let program = std::env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into());
    let mut command = tokio::process::Command::new(program);
    command.env("KUBECONFIG", kubeconfig.path()).envs(environment.iter().copied()).args(args).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    (command, kubeconfig)
}

/// Commands over both protocols.
const PROTOCOLS: [&[(&str, &str)]; 2] =
    [&[], &[("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")]];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs kubectl: cargo test -p mesh-sandbox -- --ignored"]
async fn kubectl_runs_commands() {
    let cluster = Cluster::start().await;
    for environment in PROTOCOLS {
        let args = ["exec", "-i", "web", "--", "sh", "-c", "cat; echo err >&2; exit 7"];
        let (mut command, _kubeconfig) = kubectl(&cluster, environment, &args);
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let large = "0123456789abcdef".repeat(50_000);
        let text = large.clone();
        let feed = tokio::spawn(async move { stdin.write_all(text.as_bytes()).await.map(|()| drop(stdin)) });
        let output = child.wait_with_output().await.unwrap();
        feed.await.unwrap().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(7), "{environment:?}: {err}");
        assert!(output.stdout == large.as_bytes(), "{environment:?}: {} bytes", output.stdout.len());
        assert!(err.starts_with("err\n") && err.contains("exit code 7"), "{environment:?}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs kubectl: cargo test -p mesh-sandbox -- --ignored"]
async fn kubectl_forwards_ports() {
    let cluster = Cluster::start().await;
    let (port, _tasks) = echo_server().await;
    for environment in PROTOCOLS {
        let (mut command, _kubeconfig) = kubectl(&cluster, environment, &["port-forward", "web", &format!(":{port}")]);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut stdout = tokio::io::BufReader::new(child.stdout.take().unwrap());
        tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut line).await.unwrap();
        let local = line.split([':', ' ']).find_map(|word| word.parse::<u16>().ok());
        let local = local.unwrap_or_else(|| panic!("{environment:?}: {line}"));
        let mut clients = JoinSet::new();

        for n in 0..20u8 {
            clients.spawn(async move {
                let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", local)).await.unwrap();
                let (mut reader, mut writer) = stream.split();
                let large = vec![n; 300_000];
                let mut received = Vec::new();
                let send = async {
                    writer.write_all(&large).await.unwrap();
                    writer.shutdown().await.unwrap();
                };
                let ((), read) = tokio::join!(send, reader.read_to_end(&mut received));
                read.unwrap();
                assert!(received == large, "connection {n}: {} bytes came back", received.len());
            });
        }
        let all = async {
            while let Some(result) = clients.join_next().await {
                result.unwrap()
            }
        };
        tokio::time::timeout(Duration::from_secs(30), all).await.unwrap();
        child.kill().await.unwrap();
    }
}
