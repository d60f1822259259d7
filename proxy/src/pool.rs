//! Connections to one endpoint, kept for the next request: HTTP/1 ones idle in a stack (the most recently used goes
//! first, so that the others can go cold and be closed), one connection that all exchanges of HTTP/2 share, to another
//! proxy one that all exchanges of HTTP/1 share, and one for tunnels in HTTP/2.

use crate::limits;
use crate::streams::Carrier;
use crate::upload::Upload;
use futures::task::AtomicWaker;
use hyper::client::conn::{http1, http2};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::Id;

/// An HTTP/1 connection, ready for a request.
pub type Http1 = http1::SendRequest<Upload>;
/// A handle to an HTTP/2 connection.
pub type Http2 = http2::SendRequest<Upload>;

/// The connections to one endpoint.
#[derive(Debug)]
pub struct Pool {
    idle: Mutex<Vec<Idle>>,
    /// Held while a connection is being opened, so that requests that arrive together open only one.
    pub http2: tokio::sync::Mutex<Option<Shared>>,
    /// To another proxy: exchanges of HTTP/1.
    pub http1_streams: Way,
    /// Exchanges of HTTP/2.
    pub http2_streams: Way,
    slots: Mutex<(usize, Arc<Semaphore>)>,
    /// Told when a connection becomes idle.
    returned: Notify,
}

/// What a request gets that needs a connection.
#[derive(Debug)]
pub enum Room {
    /// The right to open one.
    New(OwnedSemaphorePermit),
    /// Another one has just become idle.
    Idle,
}

/// The connection whose streams are exchanges of one kind.
#[derive(Debug, Default)]
pub struct Way {
    carrier: Mutex<Option<(Carrier, Instant)>>,
    /// Held while it is being opened, so that requests that arrive together open only one.
    pub opening: tokio::sync::Mutex<()>,
}

impl Way {
    /// The connection, if there is one.
    pub fn carrier(&self, now: Instant) -> Option<Carrier> {
        let mut carrier = self.carrier.lock();
        let (carrier, used) = carrier.as_mut().filter(|(carrier, _)| !carrier.is_closed())?;
        *used = now;
        Some(carrier.clone())
    }

    /// Shares a new connection.
    pub fn set(&self, carrier: Carrier, now: Instant) {
        *self.carrier.lock() = Some((carrier, now));
    }

    /// Lets go of that connection; streams that are under way on it finish.
    pub fn retire(&self, id: Id) {
        self.carrier.lock().take_if(|(carrier, _)| carrier.id() == id);
    }

    fn sweep(&self, cold: impl Fn(Instant) -> bool) {
        self.carrier.lock().take_if(|(carrier, used)| cold(*used) || carrier.is_closed());
    }
}

/// Whether the server of a connection takes extended CONNECT, which only the connection's task can see.
#[derive(Debug, Default)]
pub struct Tunnels {
    taken: AtomicBool,
    connection: AtomicWaker,
}

impl Tunnels {
    /// The connection's task says what it sees.
    pub fn tell(&self, taken: bool, cx: &Context<'_>) {
        self.connection.register(cx.waker());
        self.taken.store(taken, Ordering::Relaxed);
    }

    /// What it last saw; it is asked to look again.
    fn taken(&self) -> bool {
        self.connection.wake();
        self.taken.load(Ordering::Relaxed)
    }
}

/// The shared HTTP/2 connection.
#[derive(Debug)]
pub struct Shared {
    /// Handle to it.
    pub sender: Http2,
    /// True once the server has said that it takes extended CONNECT.
    pub tunnels: Arc<Tunnels>,
    /// When it was opened; tells it from its successors.
    pub opened: Instant,
    /// When a request last took it.
    pub used: Instant,
}

#[derive(Debug)]
struct Idle {
    sender: Http1,
    since: Instant,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            idle: Mutex::default(),
            http2: tokio::sync::Mutex::default(),
            http1_streams: Way::default(),
            http2_streams: Way::default(),
            slots: Mutex::new(slots(limits::POOL_CONNECTIONS)),
            returned: Notify::new(),
        }
    }
}

impl Pool {
    /// An idle connection that was used within `fresh`.
    pub fn take(&self, now: Instant, fresh: Duration) -> Option<Http1> {
        let mut idle = self.idle.lock();
        while let Some(Idle { sender, since }) = idle.pop() {
            if now.saturating_duration_since(since) > fresh {
                // All others are older still; they stay for requests that are less demanding.
                idle.push(Idle { sender, since });
                return None;
            }
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// Keeps a connection whose response has ended.
    pub fn put(&self, sender: Http1, now: Instant) {
        let mut idle = self.idle.lock();
        if idle.len() < limits::POOL_IDLE {
            idle.push(Idle { sender, since: now });
            drop(idle);
            self.returned.notify_one();
        }
    }

    /// True if the server of the HTTP/2 connection opened then has said that it takes extended CONNECT.
    pub async fn takes_tunnels(&self, opened: Instant) -> bool {
        let shared = self.http2.lock().await;
        shared.as_ref().is_some_and(|s| s.opened == opened && s.tunnels.taken())
    }

    /// Lets go of the HTTP/2 connection opened then; streams that are under way on it finish.
    pub async fn retire(&self, opened: Instant) {
        let mut shared = self.http2.lock().await;
        if shared.as_ref().is_some_and(|shared| shared.opened == opened) {
            *shared = None;
        }
    }

    /// Closes idle connections: the server is about to do so.
    pub fn clear(&self) {
        self.idle.lock().clear();
    }

    /// Room for a request of HTTP/1 that no idle connection suits; `None` if there is none until `until`.
    pub async fn room(&self, until: Instant) -> Option<Room> {
        let slots = self.slots.lock().1.clone();
        if let Ok(permit) = slots.clone().try_acquire_owned() {
            return Some(Room::New(permit));
        }
        // One that is too old for the request makes room for it.
        {
            let mut idle = self.idle.lock();
            if !idle.is_empty() {
                idle.remove(0);
            }
        }
        let room = async {
            tokio::select! {
                permit = slots.acquire_owned() => permit.ok().map(Room::New),
                () = self.returned.notified() => Some(Room::Idle),
            }
        };
        tokio::time::timeout_at(until.into(), room).await.ok().flatten()
    }

    /// The right to open a connection; `None` if the limit is reached and nothing becomes free in time.
    pub async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        let slots = self.slots.lock().1.clone();
        tokio::time::timeout(limits::POOL_WAIT, slots.acquire_owned()).await.ok()?.ok()
    }

    /// Changes how many connections may be open; those that are stay, and do not count.
    pub fn limit(&self, connections: Option<usize>) {
        let most = connections.unwrap_or(limits::POOL_CONNECTIONS).min(Semaphore::MAX_PERMITS);
        let mut slots = self.slots.lock();
        if slots.0 != most {
            *slots = self::slots(most);
        }
    }

    /// How many connections may be open.
    pub fn most(&self) -> usize {
        self.slots.lock().0
    }

    /// Closes connections not used for long; requests under way are not affected.
    pub fn sweep(&self, now: Instant) {
        let cold = |since: Instant| now.saturating_duration_since(since) > limits::POOL_IDLE_TIMEOUT;
        self.idle.lock().retain(|idle| !cold(idle.since) && !idle.sender.is_closed());
        self.http1_streams.sweep(cold);
        self.http2_streams.sweep(cold);
        if let Ok(mut shared) = self.http2.try_lock()
            && shared.as_ref().is_some_and(|s| cold(s.used) || s.sender.is_closed())
        {
            *shared = None;
        }
    }

    /// Idle HTTP/1 connections.
    pub fn idle(&self) -> usize {
        self.idle.lock().len()
    }
}

fn slots(n: usize) -> (usize, Arc<Semaphore>) {
    (n, Arc::new(Semaphore::new(n)))
}
