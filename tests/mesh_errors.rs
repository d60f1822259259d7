//! Every error the mesh can answer with, provoked: the answer, the access log, the metric, the tap and `explain error`
//! all say the same code.
//!
//! A proxy of the test is this binary under the name `mesh-errors`: the real data path with a configuration file, with
//! its access log and what a tap sees on its standard output.

mod provoke;

use crate::harness::{eventually, ourselves, run_with_input, test};
use crate::tidy::root;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use mesh_api::tap::TapOrder;
use mesh_api::wire::ProxyMessage;
use mesh_api::{FileConfig, MeshError};
use mesh_proxy::proxy::{Settings, Source};
use mesh_proxy::run::{self, Listeners};
use mesh_proxy::{limits, listen};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Patience for what should come at once.
const SOON: Duration = Duration::from_secs(20);

pub(crate) fn tests() -> Vec<Trial> {
    vec![test("mesh_errors::every_code_is_the_same_everywhere", &[], every_code_is_the_same_everywhere)]
}

fn every_code_is_the_same_everywhere() -> Result<()> {
    let sources = sources()?;
    for error in MeshError::ALL {
        if provoke::NOT_YET_MADE.contains(error) {
            // Listed there until the proxy makes it, and no longer.
            let made = format!("MeshError::{error:?}");
            let file = sources.iter().find(|(_, text)| text.contains(&made));
            ensure!(
                file.is_none(),
                "{} makes `{error}`: take it out of NOT_YET_MADE in tests/mesh_errors/provoke.rs and provoke it",
                file.map(|(path, _)| path.display().to_string()).unwrap_or_default()
            );
            continue;
        }
        let case = provoke::CASES.iter().find(|(provoked, _)| provoked == error);
        let (_, provoke) = case.with_context(|| {
            format!(
                "nobody provokes `{error}`: add a line for it to CASES in tests/mesh_errors/provoke.rs, with a function \
                 that starts a proxy, has a request fail with it, and returns both"
            )
        })?;
        for form in ["json", "apache"] {
            *FORM.lock().unwrap_or_else(PoisonError::into_inner) = form;
            let answered = provoke().with_context(|| format!("provoking `{error}` with a log in the form {form}"))?;
            check(*error, &answered).with_context(|| format!("`{error}` is not the same everywhere"))?;
        }
    }
    Ok(())
}

/// In what form the proxies that are started log.
static FORM: Mutex<&str> = Mutex::new("json");

/// The source of the proxy.
fn sources() -> Result<Vec<(PathBuf, String)>> {
    let (mut found, mut folders) = (Vec::new(), vec![root().join("proxy/src")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(&path)?;
                found.push((path, text));
            }
        }
    }
    Ok(found)
}

/// A request that failed, and the proxy whose account of it is looked at.
struct Answered {
    proxy: Meshed,
    /// `mesh-error` of the answer.
    code: Option<String>,
    /// Status of the answer.
    status: u16,
}

/// The same code stands everywhere; in the access log in the form of the moment.
fn check(error: MeshError, answered: &Answered) -> Result<()> {
    let form = *FORM.lock().unwrap_or_else(PoisonError::into_inner);
    if form == "json" { check_all(error, answered) } else { check_text(error, answered) }
}

fn check_all(error: MeshError, answered: &Answered) -> Result<()> {
    let Answered { proxy, code, status } = answered;
    let code = code.as_deref().context("the answer has no mesh-error")?;
    ensure!(code == error.code(), "the answer says {code}");
    ensure!([200, error.http_status()].contains(status), "the status is {status}");
    eventually(SOON, "the access log", || {
        let lines = proxy.lines("{");
        let logged = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        ensure!(logged.clone().any(|entry| entry["error"] == code), "{lines:?}");
        let others: Vec<Value> = logged.filter(|entry| !entry["error"].is_null() && entry["error"] != code).collect();
        ensure!(others.is_empty(), "other errors are logged too: {others:?}");
        Ok(())
    })?;
    eventually(SOON, "the tap", || {
        let lines = proxy.lines("tap ");
        let mut events = lines.iter().filter_map(|line| serde_json::from_str::<Value>(&line[4..]).ok());
        ensure!(events.any(|event| event["error"] == code && event["ending"] == "by_mesh"), "{lines:?}");
        Ok(())
    })?;
    eventually(SOON, "the metric", || {
        let text = proxy.metrics()?;
        let label = format!("error=\"{code}\"");
        let failed = text.lines().find(|line| line.starts_with("mesh_requests_total{") && line.contains(&label));
        let count = failed.and_then(|line| line.rsplit_once("} ")?.1.split(' ').next()?.parse::<f64>().ok());
        ensure!(count.is_some_and(|count| count >= 1.0), "no {label}:\n{text}");
        Ok(())
    })?;
    let explained = |form: &str| -> Result<String> {
        let mut meshctl = ourselves("meshctl")?;
        meshctl.args(["explain", "error", code, "-o", form]);
        Ok(run_with_input(meshctl, "")?.ok()?.stdout)
    };
    let text = explained("table")?;
    ensure!(text.lines().next() == Some(code) && text.contains(error.cure()), "{text}");
    let json: Value = serde_json::from_str(&explained("json")?)?;
    ensure!(json["code"] == code, "{json}");
    Ok(())
}

/// The same code stands at the end of a line in Apache's form, and no line has another.
fn check_text(error: MeshError, answered: &Answered) -> Result<()> {
    let Answered { proxy, code, .. } = answered;
    ensure!(code.as_deref() == Some(error.code()), "the answer says {code:?}");
    eventually(SOON, "the access log", || {
        let lines: Vec<String> = proxy.lines("").into_iter().filter(|line| !line.starts_with("tap ")).collect();
        let codes: Vec<&str> = lines.iter().filter_map(|line| line.rsplit_once(' ').map(|(_, code)| code)).collect();
        ensure!(codes.contains(&error.code()), "{lines:?}");
        ensure!(codes.iter().all(|code| ["-", error.code()].contains(code)), "other errors are logged too: {lines:?}");
        Ok(())
    })
}

/// A proxy in a process of its own; gone when dropped.
struct Meshed {
    child: Child,
    /// Told to end when this is closed.
    stdin: Option<ChildStdin>,
    said: Arc<Mutex<Vec<String>>>,
    inbound: SocketAddr,
    outbound: SocketAddr,
    admin: SocketAddr,
    _config: tempfile::NamedTempFile,
}

impl Meshed {
    /// Starts a proxy that takes no more than `connections` at once.
    fn start(config: &FileConfig, connections: usize) -> Result<Self> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(serde_json::to_string(config)?.as_bytes())?;
        let mut command = ourselves("mesh-errors")?;
        let form = *FORM.lock().unwrap_or_else(PoisonError::into_inner);
        command.arg(file.path()).arg(connections.to_string()).arg(form).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut ready = String::new();
        lines.read_line(&mut ready)?;
        let ports: Vec<SocketAddr> = ready.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [inbound, outbound, admin] = ports[..] else { anyhow::bail!("the proxy did not start: {ready}") };
        let said = Arc::new(Mutex::new(Vec::new()));
        let hears = said.clone();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if let Ok(mut said) = hears.lock() {
                    said.push(line);
                }
            }
        });
        let stdin = child.stdin.take();
        Ok(Self { child, stdin, said, inbound, outbound, admin, _config: file })
    }

    /// What it said so far that begins like this.
    fn lines(&self, beginning: &str) -> Vec<String> {
        let said = self.said.lock().map(|said| said.clone()).unwrap_or_default();
        said.into_iter().filter(|line| line.starts_with(beginning)).collect()
    }

    /// What its admin port answers.
    fn admin(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    fn metrics(&self) -> Result<String> {
        self.admin("/metrics")
    }

    /// Tells it to end, and waits until it is about to.
    fn end(&mut self) -> Result<()> {
        drop(self.stdin.take());
        eventually(SOON, "the proxy is ending", || {
            ensure!(self.admin("/ready")?.starts_with("HTTP/1.1 503"), "it is ready");
            Ok(())
        })
    }
}

impl Drop for Meshed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `mesh-errors CONFIG CONNECTIONS FORM`: a proxy that logs in this form and ends when its standard input does.
pub(crate) fn main() -> ExitCode {
    match proxy() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "mesh-errors: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn proxy() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let config = arguments.next().context("no configuration")?;
    let max_connections = arguments.next().context("no limit of connections")?.parse()?;
    let access_log = arguments.next().context("no form of the access log")?.parse().map_err(anyhow::Error::msg)?;
    let bind = || listen::bind(SocketAddr::from(([127, 0, 0, 1], 0)));
    let listeners = Listeners { inbound: bind()?, outbound: bind()?, admin: bind()? };
    let settings = Settings {
        source: Source::File(config.into()),
        pod_ips: Vec::new(),
        outlive_application: false,
        drain_linger: SOON,
        drain_timeout: SOON,
        workers: 1,
        max_connections,
        max_handshakes: limits::MAX_HANDSHAKES,
        access_log,
        tracing: Default::default(),
    };
    let proxy = run::prepare(settings, &listeners)?;
    let order = TapOrder {
        id: 1,
        filter: "error=any".to_owned(),
        from: None,
        to: None,
        max_rps: 1000,
        sample: 1.0,
        headers: false,
        bodies: false,
        secrets: false,
    };
    proxy.taps.start(order, Instant::now()).map_err(anyhow::Error::msg)?;
    let ports = [&listeners.inbound, &listeners.outbound, &listeners.admin].map(|listener| listener.local_addr());
    let [inbound, outbound, admin] = ports;
    writeln!(std::io::stdout(), "{} {} {}", inbound?, outbound?, admin?)?;
    let taps = proxy.clone();
    std::thread::spawn(move || {
        loop {
            for message in taps.taps.due() {
                let ProxyMessage::Tap { events, .. } = message else { continue };
                for event in events.iter().filter_map(|event| serde_json::to_string(event).ok()) {
                    let _ = writeln!(std::io::stdout(), "tap {event}");
                }
            }
            std::thread::sleep(limits::TAP_FLUSH);
        }
    });
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        drop(end);
    });
    run::run_prepared(&proxy, listeners, async { drop(ended.await) })
}
