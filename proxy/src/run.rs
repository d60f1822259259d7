//! Runs a proxy: one thread (or more) that carries traffic, and one for control and the admin port.

use crate::drain::Phase;
use crate::memory::Thrift;
use crate::metrics::count;
use crate::proxy::{Proxy, Settings, Source};
use crate::stream::Stream;
use crate::{admin, application, client, file, identity, inbound, limits, listen, otlp, outbound, serve};
use anyhow::Context;
use mesh_api::MeshError;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// The sockets of a proxy; [`listen::bind_any`] and [`listen::bind`] make them.
#[derive(Debug)]
pub struct Listeners {
    /// What arrives for the application.
    pub inbound: StdListener,
    /// What the application sends.
    pub outbound: StdListener,
    /// `/live /ready /metrics /config`.
    pub admin: StdListener,
}

/// Runs until `shutdown` and the drain after it are over. The calling thread carries the traffic.
pub fn run(settings: Settings, listeners: Listeners, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let proxy = prepare(settings, &listeners)?;
    run_prepared(&proxy, listeners, shutdown)
}

/// A proxy for these listeners that knows what its file says, and does not carry anything yet.
pub fn prepare(settings: Settings, listeners: &Listeners) -> anyhow::Result<Arc<Proxy>> {
    let port = |listener: &StdListener| listener.local_addr().map(|address| address.port());
    let proxy = Arc::new(Proxy::new(settings, port(&listeners.inbound)?, port(&listeners.outbound)?));
    if let Source::File(path) = &proxy.settings.source {
        file::apply(&proxy, file::load(path)?);
    }
    Ok(proxy)
}

/// Runs a proxy as [`run`] does, for those who want to look into it meanwhile.
pub fn run_prepared(
    proxy: &Arc<Proxy>,
    listeners: Listeners,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let Listeners { inbound, outbound, admin } = listeners;
    let (stop, stopped) = oneshot::channel::<()>();
    let side = {
        let proxy = proxy.clone();
        std::thread::Builder::new()
            .name("control".to_owned())
            .stack_size(limits::THREAD_STACK)
            .spawn(move || run_control(proxy, admin, stopped))
            .context("cannot start the control thread")?
    };
    let runtime = data_runtime(proxy.settings.workers)?;
    let result = runtime.block_on(carry(proxy, inbound, outbound, shutdown));
    runtime.shutdown_background();
    proxy.access_log.flush();
    drop(stop);
    match side.join() {
        Ok(side) => result.and(side),
        Err(_) => result.and(Err(anyhow::anyhow!("the control thread panicked"))),
    }
}

fn data_runtime(workers: usize) -> anyhow::Result<Runtime> {
    let mut builder = if workers > 1 { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    builder
        .worker_threads(workers.max(1))
        .thread_stack_size(limits::THREAD_STACK)
        .enable_all()
        .build()
        .context("cannot start the data runtime")
}

/// The data thread: accepts, sweeps, drains.
async fn carry(
    proxy: &Arc<Proxy>,
    inbound: StdListener,
    outbound: StdListener,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let slots = Slots::new(proxy.settings.max_connections);
    let inbound = TcpListener::from_std(inbound).context("the inbound listener cannot be used")?;
    let outbound = TcpListener::from_std(outbound).context("the outbound listener cannot be used")?;
    let arriving = tokio::spawn(accept(proxy.clone(), slots.clone(), inbound, |proxy, stream, from, slot| {
        let refusal = slot.refusal;
        serve::spawn(&proxy.clone(), slot, inbound::serve(proxy, stream, from, refusal));
    }));
    let leaving = tokio::spawn(accept(proxy.clone(), slots, outbound, |proxy, stream, from, slot| {
        let refusal = slot.refusal;
        serve::spawn(&proxy.clone(), slot, outbound::serve(proxy, stream, from, refusal));
    }));
    let sweeper = tokio::spawn(sweep(proxy.clone()));
    tracing::info!(inbound = proxy.inbound_port, outbound = proxy.outbound_port, "carrying traffic");

    let linger = tokio::select! {
        () = shutdown => proxy.settings.drain_linger,
        () = proxy.drain.application_ended() => {
            tracing::info!("the application has ended");
            Duration::ZERO
        }
    };
    tracing::info!(connections = proxy.drain.open(), "draining");
    let outlived = async {
        if proxy.settings.outlive_application {
            tokio::select! {
                () = application::ended() => {}
                () = proxy.drain.application_ended() => {}
            }
        }
    };
    let cut = proxy.drain.run(linger, proxy.settings.drain_timeout, outlived).await;
    if cut > 0 {
        tracing::warn!(connections = cut, "connections were cut because the drain took too long");
    }
    for task in [arriving, leaving, sweeper] {
        task.abort();
    }
    Ok(())
}

async fn accept(
    proxy: Arc<Proxy>,
    slots: Slots,
    listener: TcpListener,
    start: impl Fn(Arc<Proxy>, TcpStream, SocketAddr, Slot),
) {
    let mut closing = pin!(proxy.drain.reached(Phase::Closing));
    loop {
        // Whoever is in the listen queue when we stop is still served: the queue comes first, then the end.
        tokio::select! {
            biased;
            (stream, from) = listen::accept(&listener) => {
                let slot = slots.take();
                if slot.as_ref().is_none_or(|slot| slot.refusal.is_some()) {
                    count(&proxy.counters.connections_shed);
                }
                match slot {
                    Some(slot) => start(proxy.clone(), stream, from, slot),
                    None => Stream::from(stream).reset(),
                }
            }
            () = &mut closing => return,
        }
    }
}

/// The places of accepted connections. When all are taken, the newest connection gets one of a few places to be turned
/// away in, so that its client learns why.
#[derive(Clone, Debug)]
struct Slots {
    served: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
}

/// The place of one connection.
#[derive(Debug)]
pub struct Slot {
    /// The error with which it is turned away.
    pub refusal: Option<MeshError>,
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    fn new(connections: usize) -> Self {
        let semaphore = |n| Arc::new(Semaphore::new(n));
        Self { served: semaphore(connections), turned_away: semaphore(limits::TURNED_AWAY) }
    }

    fn take(&self) -> Option<Slot> {
        let place = |of: &Arc<Semaphore>, refusal| {
            of.clone().try_acquire_owned().ok().map(|permit| Slot { refusal, _permit: permit })
        };
        place(&self.served, None).or_else(|| place(&self.turned_away, Some(MeshError::Overload)))
    }
}

async fn sweep(proxy: Arc<Proxy>) {
    let mut thrift = Thrift::default();
    loop {
        thrift.look(proxy.drain.open());
        tokio::time::sleep(limits::SWEEP_INTERVAL).await;
        proxy.state.sweep(Instant::now());
    }
}

/// The control thread: identity, configuration, golden frames and the admin port, until the data thread is done.
fn run_control(proxy: Arc<Proxy>, admin: StdListener, stopped: oneshot::Receiver<()>) -> anyhow::Result<()> {
    let runtime = Builder::new_current_thread()
        .max_blocking_threads(2) // name resolution
        .thread_stack_size(limits::THREAD_STACK)
        .enable_all()
        .build()
        .context("cannot start the control runtime")?;
    let result = runtime.block_on(async {
        let admin = TcpListener::from_std(admin).context("the admin listener cannot be used")?;
        tokio::spawn(admin::serve(proxy.clone(), admin));
        tokio::spawn(client::tick(proxy.clone()));
        if let Some(spans) = proxy.spans.lock().take() {
            tokio::spawn(otlp::run(proxy.clone(), spans));
        }
        match proxy.settings.source.clone() {
            Source::File(path) => drop(tokio::spawn(file::follow(proxy.clone(), path))),
            Source::Control(control) => {
                let proxy = proxy.clone();
                drop(tokio::spawn(async move {
                    identity::obtain(&proxy, &control).await;
                    tokio::join!(identity::renew(&proxy, &control), client::follow(proxy.clone(), &control));
                }));
            }
        }
        let _ = stopped.await; // an error only says that the data thread has gone, which is the same
        client::part(&proxy).await;
        Ok(())
    });
    runtime.shutdown_background();
    result
}
