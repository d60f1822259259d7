//! What a tap costs a proxy under load: one that matches nothing, and one that matches everything.
//!
//! A proxy with one worker carries HTTP/1 in plain text between eight clients and an application, all in this process;
//! the CPU is that of the proxy's own thread.

use super::say;
use anyhow::{Context, Result, ensure};
use mesh_api::config::FileDestination;
use mesh_api::tap::{TapLeftOut, TapOrder};
use mesh_api::wire::ProxyMessage;
use mesh_api::{Destination, Endpoint, FileConfig, Protocol, ServiceRef, WorkloadRef};
use mesh_proxy::proxy::{Proxy, Settings, Source};
use mesh_proxy::run::{self, Listeners};
use mesh_proxy::{limits, listen};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const CLIENTS: u64 = 8;
const WARM_UP: Duration = Duration::from_secs(1);
const TURN: Duration = Duration::from_millis(100);
/// Turns with and turns without.
const PAIRS: usize = 600;
const EVERYTHING: Duration = Duration::from_secs(2);
const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 9)), 80);
const REQUEST: &[u8] = b"GET /products/1 HTTP/1.1\r\nhost: catalog\r\nuser-agent: bench\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

/// A proxy, and the thread it runs on.
struct Running {
    proxy: Arc<Proxy>,
    outbound: SocketAddr,
    thread: i32,
}

pub(super) fn measure() -> Result<()> {
    let running = start()?;
    running.nothing_matches()?;
    let (rate, told, left_out, cost) = running.everything()?;
    say(&format!(
        "| a tap of everything at {rate:.0} requests a second: events told / left out a second, CPU a request | {told:.0} / {left_out:.0} / {:.2} µs |",
        cost * 1e6
    ));
    Ok(())
}

/// The median, between the ends of the interval that holds the true one in 95 of 100 cases (by order statistics:
/// n/2 ± 0.98 √n).
fn median(mut all: Vec<f64>) -> (f64, f64, f64) {
    all.sort_by(f64::total_cmp);
    let (middle, reach) = (all.len() / 2, 0.98 * (all.len() as f64).sqrt());
    (all[middle - reach as usize], all[middle], all[middle + reach as usize])
}

fn start() -> Result<Running> {
    let application = TcpListener::bind("127.0.0.1:0")?;
    let address = application.local_addr()?;
    std::thread::spawn(move || {
        for stream in application.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    let service = Some(ServiceRef { namespace: "shop".into(), name: "catalog".into(), port: 80 });
    let destination = Destination { service, protocol: Protocol::Http1, ..Destination::default() };
    let workload = WorkloadRef::new("shop", "deployment", "catalog");
    let endpoint = Endpoint { address, identity: None, workload, pod: "catalog-1".to_owned(), zone: None };
    let config = FileConfig {
        destinations: vec![FileDestination {
            address: SERVICE,
            destination,
            endpoints: vec![endpoint],
            backends: Vec::new(),
        }],
        outbound_default: Some(SERVICE),
        ..FileConfig::default()
    };
    let file = tempfile::NamedTempFile::new()?.into_temp_path().keep()?;
    std::fs::write(&file, serde_json::to_string(&config)?)?;
    let bind = || listen::bind(SocketAddr::from(([127, 0, 0, 1], 0)));
    let listeners = Listeners { inbound: bind()?, outbound: bind()?, admin: bind()? };
    let settings = Settings {
        source: Source::File(file.clone()),
        pod_ips: Vec::new(),
        outlive_application: false,
        drain_linger: Duration::ZERO,
        drain_timeout: Duration::ZERO,
        workers: 1,
        max_connections: 1000,
        max_handshakes: limits::MAX_HANDSHAKES,
        access_log: Default::default(),
        tracing: Default::default(),
    };
    let proxy = run::prepare(settings, &listeners)?;
    std::fs::remove_file(&file)?;
    let outbound = listeners.outbound.local_addr()?;
    let (tell, told) = std::sync::mpsc::channel();
    let carried = proxy.clone();
    std::thread::spawn(move || {
        let _ = tell.send(nix::unistd::gettid().as_raw());
        run::run_prepared(&carried, listeners, std::future::pending())
    });
    Ok(Running { proxy, outbound, thread: told.recv()? })
}

fn answer(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(n) = stream.read(&mut buffer) {
        // Requests come one by one and whole.
        if n == 0 || stream.write_all(ANSWER).is_err() {
            return;
        }
    }
}

impl Running {
    fn tap(&self, filter: &str) -> Result<()> {
        let order = TapOrder {
            id: 1,
            filter: filter.to_owned(),
            from: None,
            to: None,
            max_rps: limits::TAP_MAX_RPS,
            sample: 1.0,
            headers: false,
            bodies: false,
            secrets: false,
        };
        self.proxy.taps.start(order, Instant::now()).map_err(anyhow::Error::msg)
    }

    /// CPU seconds of the proxy's thread so far.
    fn cpu(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.thread))?;
        Ok(text.split(' ').next().context("no time")?.parse::<f64>()? / 1e9)
    }

    /// Clients that ask until they are told to stop.
    fn clients(&self) -> Clients {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let each = |_| {
            let (address, stop, answered) = (self.outbound, stop.clone(), answered.clone());
            std::thread::spawn(move || client(address, &stop, &answered))
        };
        let threads = (0..CLIENTS).map(each).collect();
        Clients { stop, answered, threads }
    }

    /// Turns a tap on and off in quick turns under steady load: what else runs on the machine, and how warm it is, is
    /// the same for both.
    fn nothing_matches(&self) -> Result<()> {
        let clients = self.clients();
        self.turn(&clients, WARM_UP)?;
        let (mut without, mut with, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for pair in 0..PAIRS {
            let mut costs = [0.0; 2];
            // Whoever comes second has no advantage over all.
            for tapped in [pair % 2 == 0, pair % 2 != 0] {
                if tapped {
                    self.tap("path=/nothing/like/it")?;
                }
                costs[usize::from(tapped)] = self.turn(&clients, TURN)?.0;
                drop(self.proxy.taps.stop(1));
            }
            without.push(costs[0]);
            with.push(costs[1]);
            shares.push((costs[1] / costs[0] - 1.0) * 100.0);
        }
        clients.end()?;
        let (low, share, high) = median(shares);
        say(&format!(
            "| CPU of a proxy a request: nobody taps / a tap that matches nothing / its share (95 % sure) | {:.2} / {:.2} µs / {share:+.1} % ({low:+.1} to {high:+.1}) |",
            median(without).1 * 1e6,
            median(with).1 * 1e6,
        ));
        Ok(())
    }

    /// CPU seconds a request, and requests a second.
    fn turn(&self, clients: &Clients, long: Duration) -> Result<(f64, f64)> {
        let (cpu, answered, begun) = (self.cpu()?, clients.answered.load(Ordering::Relaxed), Instant::now());
        std::thread::sleep(long);
        let (spent, took) = (self.cpu()? - cpu, begun.elapsed());
        let answered = clients.answered.load(Ordering::Relaxed) - answered;
        ensure!(answered > 0, "no request was answered");
        Ok((spent / answered as f64, answered as f64 / took.as_secs_f64()))
    }

    /// Requests, events and events left out a second, and CPU seconds a request, while everything is tapped.
    fn everything(&self) -> Result<(f64, f64, f64, f64)> {
        self.tap("")?;
        let proxy = self.proxy.clone();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let reader = std::thread::spawn(move || {
            let (mut events, mut left) = (0, TapLeftOut::default());
            loop {
                let last = stopped.recv_timeout(limits::TAP_FLUSH).is_ok();
                for message in proxy.taps.due() {
                    let ProxyMessage::Tap { events: told, left_out, .. } = &message else { continue };
                    events += told.len();
                    left.add(left_out);
                    // As it travels.
                    let _ = serde_json::to_vec(&message);
                }
                if last {
                    return (events, left.total());
                }
            }
        });
        let clients = self.clients();
        let (cost, rate) = self.turn(&clients, EVERYTHING)?;
        stop.send(())?;
        let (events, left_out) = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        clients.end()?;
        let a_second = |n: f64| n / EVERYTHING.as_secs_f64();
        Ok((rate, a_second(events as f64), a_second(left_out as f64), cost))
    }
}

/// Clients under way.
struct Clients {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Clients {
    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.threads {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(())
    }
}

fn client(address: SocketAddr, stop: &AtomicBool, answered: &AtomicU64) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(REQUEST)?;
        let mut got = 0;
        while !buffer[..got].ends_with(b"hello") {
            let n = stream.read(&mut buffer[got..])?;
            ensure!(n > 0, "the proxy closed the connection");
            got += n;
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
