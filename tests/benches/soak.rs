//! `cargo bench -p mesh-tests --bench soak -- --minutes 60`: whether the data path stays well under everything at once.
//!
//! Clients of every protocol go through two real `mesh-proxy` processes (`--config`, loopback, mutual TLS) to an
//! application that never fails. Connections are opened and closed all the time; endpoints come and go every few
//! seconds; every other minute a third proxy, which is one of the endpoints, is told to end and started again; all
//! certificates are renewed every minute. Whatever a client sees beside the right answer is a failure, because it would
//! not have seen it without the mesh. The memory of the two proxies that stay is sampled, and its slope stated.
//!
//! Options: `--minutes N` (default 5), `--rate N` operations a second in all (default 200), `--restart SECONDS` between
//! restarts of the third proxy (default 120), `--proxy PATH` (default: `mesh-proxy` in the folder of the build). Ends
//! with 1 if anything failed.

#[path = "soak/app.rs"]
mod app;
#[path = "soak/load.rs"]
mod load;

use anyhow::{Context, Result, bail, ensure};
use load::{Dice, Load};
use mesh_api::config::{FileConfig, FileDestination, FileIdentity};
use mesh_api::{Destination, Endpoint, ServiceRef, SpiffeId, WorkloadRef};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How often certificates are renewed.
const RENEWAL: Duration = Duration::from_secs(60);
/// How often the list of endpoints changes.
const ENDPOINTS: Duration = Duration::from_secs(4);
/// How often memory is sampled.
const SAMPLE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    // `cargo test --benches` and the like only want to know that it builds.
    if std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    let outcome = Options::read().and_then(|options| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(soak(&options))
    });
    match outcome {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:?}");
            ExitCode::from(2)
        }
    }
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

struct Options {
    minutes: f64,
    rate: f64,
    /// How often the proxy that comes and goes is ended.
    restart: Duration,
    proxy: PathBuf,
}

impl Options {
    fn read() -> Result<Self> {
        let beside = std::env::current_exe()?.ancestors().nth(2).context("no folder of the build")?.join("mesh-proxy");
        let mut options = Self { minutes: 5.0, rate: 200.0, restart: Duration::from_secs(120), proxy: beside };
        let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
        while let Some(name) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--minutes" => options.minutes = value.parse()?,
                "--rate" => options.rate = value.parse()?,
                "--restart" => options.restart = Duration::from_secs_f64(value.parse()?),
                "--proxy" => options.proxy = value.into(),
                _ => bail!("there are --minutes, --rate, --restart and --proxy, not {name}"),
            }
        }
        ensure!(
            options.proxy.exists(),
            "there is no {}\nhint: cargo build --release -p mesh-proxy",
            options.proxy.display()
        );
        Ok(options)
    }
}

/// Runs everything; returns how many operations failed.
async fn soak(options: &Options) -> Result<u64> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new()?;
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(options.minutes * 60.0);

    let app = app::start().await?;
    let serving = FileConfig { inbound_default: Some(app), ..FileConfig::default() };
    let stays = Proxy::new(options, &authority, folder.path(), "stays", "web", &serving)?;
    let mut comes_and_goes = Proxy::new(options, &authority, folder.path(), "comes-and-goes", "web", &serving)?;
    // The proxy that stays answers on several addresses, so that endpoints can come and go without it.
    let steady: Vec<SocketAddr> = (2..6).map(|last| SocketAddr::from(([127, 0, 0, last], stays.inbound))).collect();
    let fleeting = SocketAddr::from((Ipv4Addr::LOCALHOST, comes_and_goes.inbound));
    let calling = Proxy::new(options, &authority, folder.path(), "calling", "load", &towards(&steady))?;
    for proxy in [&stays, &comes_and_goes, &calling] {
        proxy.wait_until_ready().await?;
    }

    let lanes = 11.0;
    let pause = Duration::from_secs_f64(lanes / options.rate);
    let outbound = SocketAddr::from((Ipv4Addr::LOCALHOST, calling.outbound));
    let load = Load { outbound, tally: Arc::default(), pause, begun };
    load::start(&load);

    let mut dice = Dice::new(7);
    let mut samples = Vec::new();
    let mut due =
        Due { renewal: begun + RENEWAL, endpoints: begun, restart: begun + options.restart / 2, sample: begun };
    let (mut renewals, mut changes, mut restarts) = (0, 0, 0);
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = Instant::now();
        if due.endpoints <= now {
            due.endpoints = now + ENDPOINTS;
            changes += 1;
            let mut some: Vec<SocketAddr> = steady.iter().copied().filter(|_| dice.below(2) == 0).collect();
            some.push(steady[dice.below(4) as usize]);
            // Also while it is down: lists lag behind.
            some.push(fleeting);
            some.sort();
            some.dedup();
            calling.write_config(&towards(&some))?;
        }
        if due.renewal <= now {
            due.renewal = now + RENEWAL;
            renewals += 1;
            for proxy in [&stays, &comes_and_goes, &calling] {
                proxy.renew(&authority)?;
            }
        }
        if due.restart <= now {
            due.restart = now + options.restart;
            restarts += 1;
            comes_and_goes.restart(options).await?;
        }
        if due.sample <= now {
            due.sample = now + SAMPLE;
            samples.push(Sample::take(begun, &[&calling, &stays])?);
            if samples.len() % 30 == 0 {
                let tally = load.tally.lock().expect("no lane panics while it holds the tally");
                let (operations, failures) =
                    tally.kinds.values().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
                say(&format!("{:6.0} s: {operations} operations, {failures} failed", begun.elapsed().as_secs_f64()));
            }
        }
    }
    say(&format!("{changes} changes of endpoints, {renewals} renewals, {restarts} restarts of a proxy"));
    let failures = report(&load, &samples);
    for (name, proxy) in [("calling", &calling), ("called", &stays)] {
        say(&format!("{name}: CPU {:.1} s", proxy.cpu_seconds()?));
    }
    Ok(failures)
}

struct Due {
    renewal: Instant,
    endpoints: Instant,
    restart: Instant,
    sample: Instant,
}

/// Prints what was found; returns how many operations failed.
fn report(load: &Load, samples: &[Sample]) -> u64 {
    let tally = load.tally.lock().expect("no lane panics while it holds the tally");
    say("| kind | operations | failed |\n|---|---|---|");
    for (kind, (operations, failures)) in &tally.kinds {
        say(&format!("| {kind} | {operations} | {failures} |"));
    }
    for text in &tally.described {
        say(text);
    }
    // The first fifth is warming up: pools, buffers and the allocator's arenas fill.
    let settled = &samples[samples.len() / 5..];
    say("| proxy | resident first → last | anonymous first → last | slope of anonymous |\n|---|---|---|---|");
    for (at, name) in ["calling", "called"].iter().enumerate() {
        let (Some(first), Some(last)) = (settled.first(), settled.last()) else { continue };
        let points: Vec<(f64, f64)> = settled.iter().map(|s| (s.at_s / 3600.0, s.memory[at].1)).collect();
        say(&format!(
            "| {name} | {:.1} → {:.1} MiB | {:.1} → {:.1} MiB | {:+.2} MiB an hour |",
            first.memory[at].0,
            last.memory[at].0,
            first.memory[at].1,
            last.memory[at].1,
            slope(&points)
        ));
    }
    tally.kinds.values().map(|(_, failures)| failures).sum()
}

/// Slope of the straight line with the least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / n, sum.1 + point.1 / n));
    let (above, below) = points
        .iter()
        .fold((0.0, 0.0), |sum, point| (sum.0 + (point.0 - x) * (point.1 - y), sum.1 + (point.0 - x).powi(2)));
    above / below
}

/// Memory of proxies at one time.
struct Sample {
    at_s: f64,
    /// Resident and anonymous, MiB.
    memory: Vec<(f64, f64)>,
}

impl Sample {
    fn take(begun: Instant, proxies: &[&Proxy]) -> Result<Self> {
        let memory: Result<_> = proxies.iter().map(|proxy| proxy.memory_mib()).collect();
        Ok(Self { at_s: begun.elapsed().as_secs_f64(), memory: memory? })
    }
}

/// A configuration that leads to `addresses`.
fn towards(addresses: &[SocketAddr]) -> FileConfig {
    let address = SocketAddr::from(([10, 96, 0, 9], 80));
    let service = Some(ServiceRef { namespace: "soak".into(), name: "web".into(), port: 80 });
    let endpoints = addresses.iter().map(|address| Endpoint {
        address: *address,
        identity: Some(SpiffeId::new("cluster.local", "soak", "web")),
        workload: WorkloadRef::new("soak", "deployment", "web"),
        pod: address.to_string(),
        zone: None,
    });
    let destination = Destination { service, ..serde_json::from_str("{}").expect("everything has a default") };
    FileConfig {
        destinations: vec![FileDestination {
            address,
            destination,
            endpoints: endpoints.collect(),
            backends: Vec::new(),
        }],
        outbound_default: Some(address),
        ..FileConfig::default()
    }
}

/// A proxy process.
struct Proxy {
    name: &'static str,
    account: &'static str,
    folder: PathBuf,
    process: Child,
    inbound: u16,
    outbound: u16,
    admin: u16,
}

impl Proxy {
    fn new(
        options: &Options,
        authority: &Authority,
        folder: &Path,
        name: &'static str,
        account: &'static str,
        config: &FileConfig,
    ) -> Result<Self> {
        let folder = folder.join(name);
        std::fs::create_dir(&folder)?;
        let [inbound, outbound, admin] = free_ports()?;
        authority.issue(account, &folder)?;
        write(&folder, "proxy.json", &with_identity(config))?;
        let process = launch(options, &folder, [inbound, outbound, admin])?;
        Ok(Self { name, account, folder, process, inbound, outbound, admin })
    }

    fn write_config(&self, config: &FileConfig) -> Result<()> {
        write(&self.folder, "proxy.json", &with_identity(config))
    }

    fn renew(&self, authority: &Authority) -> Result<()> {
        authority.issue(self.account, &self.folder)
    }

    /// Ends it as a pod is ended, and starts it again.
    async fn restart(&mut self, options: &Options) -> Result<()> {
        self.terminate();
        let patience = Instant::now() + Duration::from_secs(40);
        while self.process.try_wait()?.is_none() {
            ensure!(Instant::now() < patience, "{} does not end", self.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.process = launch(options, &self.folder, [self.inbound, self.outbound, self.admin])?;
        self.wait_until_ready().await
    }

    fn terminate(&self) {
        let _ = kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM);
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let patience = Instant::now() + Duration::from_secs(30);
        while !self.answers("/ready").await.unwrap_or(false) {
            ensure!(Instant::now() < patience, "{} does not become ready", self.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn answers(&self, path: &str) -> Result<bool> {
        let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.admin)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text.starts_with("HTTP/1.1 200"))
    }

    /// Resident and anonymous memory, MiB.
    fn memory_mib(&self) -> Result<(f64, f64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let field = |name: &str| -> Option<f64> {
            let line = status.lines().find(|line| line.starts_with(name))?;
            Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
        };
        field("VmRSS:").zip(field("RssAnon:")).with_context(|| format!("{} has gone", self.name))
    }

    fn cpu_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // Clock ticks are hundredths of a second on every Linux.
        let ticks = |at: usize| -> f64 { fields.get(at).and_then(|t| t.parse().ok()).unwrap_or(0.0) };
        Ok((ticks(11) + ticks(12)) / 100.0)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn launch(options: &Options, folder: &Path, [inbound, outbound, admin]: [u16; 3]) -> Result<Child> {
    let mut command = Command::new(&options.proxy);
    command.arg("--config").arg(folder.join("proxy.json")).args(["--drain-timeout", "30s"]);
    for (name, port) in [("--inbound-port", inbound), ("--outbound-port", outbound), ("--admin-port", admin)] {
        command.args([name, &port.to_string()]);
    }
    command.env("MESH_LOG", "error").stdin(Stdio::null());
    command.spawn().with_context(|| format!("cannot start {}", options.proxy.display()))
}

fn with_identity(config: &FileConfig) -> String {
    let identity = FileIdentity { certificate: "tls.crt".into(), key: "tls.key".into(), anchors: "ca.crt".into() };
    serde_json::to_string(&FileConfig { identity: Some(identity), ..config.clone() }).unwrap_or_default()
}

/// Writes a file beside its place and moves it there.
fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let new = folder.join(format!("{name}.new"));
    std::fs::write(&new, text)?;
    Ok(std::fs::rename(&new, folder.join(name))?)
}

/// Ports nobody listens on at the moment, outside the range that connections take theirs from.
fn free_ports() -> Result<[u16; 3]> {
    let mut found = Vec::new();
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    while NEXT.load(Ordering::Relaxed) < 32_000 {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if std::net::TcpListener::bind(("0.0.0.0", port)).is_ok() {
            found.push(port);
        }
        if let [a, b, c] = found[..] {
            return Ok([a, b, c]);
        }
    }
    bail!("there are no three free ports")
}

/// The mesh's certificate authority.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// Writes a new certificate with its key.
    fn issue(&self, account: &str, folder: &Path) -> Result<()> {
        let mut params = CertificateParams::default();
        let identity = SpiffeId::new("cluster.local", "soak", account);
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        write(folder, "ca.crt", &self.issuer.pem())?;
        write(folder, "tls.crt", &params.signed_by(&key, &self.issuer)?.pem())?;
        write(folder, "tls.key", &key.serialize_pem())
    }
}
