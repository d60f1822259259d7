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
use std::time::{Duration, Instant};

const CLIENTS: u64 = 8;
/// Requests of each client in one round.
const REQUESTS: u64 = 3000;
const ROUNDS: usize = 15;
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
    running.round()?; // connections, caches, learned routes
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(running.round()?.0);
        running.tap("path=/nothing/like/it")?;
        with.push(running.round()?.0);
        drop(running.proxy.taps.stop(1));
    }
    // What else runs on the machine only ever adds.
    let (without, with) = (least(&without), least(&with));
    say(&format!(
        "| CPU of a proxy a request: nobody taps / a tap that matches nothing / its share | {:.2} / {:.2} µs / {:+.1} % |",
        without * 1e6,
        with * 1e6,
        (with / without - 1.0) * 100.0
    ));
    let (rate, told, left_out, cost) = running.everything()?;
    say(&format!(
        "| a tap of everything at {rate:.0} requests a second: events told / left out a second, CPU a request | {told:.0} / {left_out:.0} / {:.2} µs |",
        cost * 1e6
    ));
    Ok(())
}

fn least(all: &[f64]) -> f64 {
    all.iter().copied().fold(f64::INFINITY, f64::min)
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

    /// CPU seconds a request, and how long all of them took.
    fn round(&self) -> Result<(f64, Duration)> {
        let (cpu, begun) = (self.cpu()?, Instant::now());
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                std::thread::spawn({
                    let address = self.outbound;
                    move || client(address)
                })
            })
            .collect();
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(((self.cpu()? - cpu) / (CLIENTS * REQUESTS) as f64, begun.elapsed()))
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
        let (cost, took) = self.round()?;
        stop.send(())?;
        let (events, left_out) = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        let a_second = |n: f64| n / took.as_secs_f64();
        Ok((a_second((CLIENTS * REQUESTS) as f64), a_second(events as f64), a_second(left_out as f64), cost))
    }
}

fn client(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    for _ in 0..REQUESTS {
        stream.write_all(REQUEST)?;
        let mut got = 0;
        while !buffer[..got].ends_with(b"hello") {
            let n = stream.read(&mut buffer[got..])?;
            ensure!(n > 0, "the proxy closed the connection");
            got += n;
        }
    }
    Ok(())
}
