//! Where traffic goes: an address, what it turned out to be, and what has been learned of it meanwhile.

use crate::golden::Scope;
use crate::group::Group;
use crate::learned::Learned;
use crate::limits;
use crate::rate_limit::Limiters;
use crate::rate_limit::shared::Shares;
use crate::route::Table;
use arc_swap::ArcSwapOption;
use mesh_api::{Destination, PortPolicy};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// An address traffic goes to: an original destination (outbound) or a port of the application (inbound).
#[derive(Debug)]
pub struct Target {
    /// The address.
    pub address: SocketAddr,
    /// Learned routes of its requests.
    pub learned: Learned,
    pub(crate) known: ArcSwapOption<Known>,
    /// The address itself as its only endpoint, in plain text.
    pub(crate) as_is: Arc<Known>,
    told: Notify,
    pub(crate) waits: AtomicBool,
    /// How often it may be called, if it is a port of the application.
    limiters: ArcSwapOption<Limiters>,
    pub(crate) used: Mutex<Instant>,
    server_first: Mutex<Option<Instant>>,
}

/// What a target turned out to be.
#[derive(Debug)]
pub struct Known {
    /// What it is.
    pub destination: Destination,
    /// False while whoever can be asked has not said so.
    pub certain: bool,
    /// Who answers where no route says otherwise.
    pub group: Arc<Group>,
    /// Where requests go instead, if there are routes.
    pub table: Option<Arc<Table>>,
    /// Who answers for each of [`Table::services`].
    pub groups: Vec<Arc<Group>>,
    /// What was told of such services, in their order.
    pub(crate) told: Vec<Arc<Group>>,
    /// The name under which it is counted while no endpoint is chosen.
    pub scope: Arc<Scope>,
}

impl Known {
    pub(crate) fn new(destination: Destination, certain: bool, group: Group, scope: Arc<Scope>) -> Self {
        Self { destination, certain, group: Arc::new(group), table: None, groups: Vec::new(), told: Vec::new(), scope }
    }

    /// Its own group and those of the services that its routes lead to.
    pub fn all_groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        std::iter::once(&self.group).chain(&self.told)
    }

    /// The services that its routes lead to, as told.
    pub fn told(&self) -> &[Arc<Group>] {
        &self.told
    }
}

impl Target {
    pub(crate) fn new(address: SocketAddr, as_is: Arc<Known>, waits: bool) -> Self {
        Self {
            address,
            learned: Learned::default(),
            known: ArcSwapOption::empty(),
            as_is,
            told: Notify::new(),
            waits: AtomicBool::new(waits),
            limiters: ArcSwapOption::empty(),
            used: Mutex::new(Instant::now()),
            server_first: Mutex::new(None),
        }
    }

    /// What the target is, as known now.
    pub fn now(&self) -> Arc<Known> {
        self.known.load_full().unwrap_or_else(|| self.as_is.clone())
    }

    /// What the target is. The first connections wait up to `patience` for control's answer; without one the address
    /// is used as it is.
    pub async fn resolve(&self, patience: Duration) -> Arc<Known> {
        if self.waits.load(Ordering::Relaxed) {
            let told = self.told.notified();
            if self.known.load().is_none() && tokio::time::timeout(patience, told).await.is_err() {
                tracing::warn!(address = %self.address, "control did not say what the address is; forwarding as it is");
            }
            self.waits.store(false, Ordering::Relaxed);
        }
        self.now()
    }

    /// How often it may be called, if there is a limit.
    pub fn limiters(&self) -> Option<Arc<Limiters>> {
        self.limiters.load_full()
    }

    pub(crate) fn set_limits(&self, policy: &PortPolicy, shares: &Shares) {
        let before = self.limiters.load_full();
        // Whoever takes a policy in has checked it.
        let limiters = Limiters::new(&policy.rate_limits, before.as_deref()).unwrap_or_default();
        limiters.iter().for_each(|limiters| shares.give(limiters));
        self.limiters.store(limiters);
    }

    /// Remembers that the server speaks first here.
    pub fn set_server_first(&self, now: Instant) {
        *self.server_first.lock() = Some(now);
    }

    /// True if the server was seen to speak first not long ago.
    pub fn is_server_first(&self, now: Instant) -> bool {
        self.server_first.lock().is_some_and(|at| now.saturating_duration_since(at) < limits::SERVER_FIRST_MEMORY)
    }

    pub(crate) fn learn(&self, known: Option<Known>) {
        self.known.store(known.map(Arc::new));
        self.told.notify_waiters();
    }
}
