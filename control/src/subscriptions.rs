//! Who wants to know what: which proxy has to be told when something looks different.
//!
//! Compiled answers are shared: a thousand proxies that call one service hold one list of its endpoints.
//! Locks are taken in the order world, then this module's; an answer enters the shared map only while the world it
//! was compiled from cannot change, so that no stale one can stay there.

use crate::compile::{self, Compiled};
use crate::limits;
use crate::rejections::{Rejections, Subject};
use crate::world::view::Name;
use crate::world::{Kept, Touched, World};
use mesh_api::tap::TapOrder;
use mesh_api::wire::ControlMessage;
use mesh_api::{Egress, InboundPolicy};
use mesh_manifests::config::MeshConfig;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// The world and everybody who follows it.
#[derive(Debug)]
pub struct Subscriptions {
    config: Arc<MeshConfig>,
    world: RwLock<World>,
    followers: Mutex<Followers>,
    compiled: Mutex<HashMap<Question, Arc<Compiled>>>,
    synced: watch::Sender<bool>,
    changes: watch::Sender<()>,
    rejections: Rejections,
}

/// An address, and the namespace of the one who asks where that makes a difference.
type Question = (SocketAddr, Option<String>);

#[derive(Debug, Default)]
struct Followers {
    next: u64,
    all: HashMap<u64, Arc<Todo>>,
    by_ip: HashMap<IpAddr, HashSet<u64>>,
    by_pod: HashMap<Name, HashSet<u64>>,
}

/// What one proxy has to be told next.
#[derive(Debug, Default)]
pub struct Todo {
    /// What there is to tell.
    pub due: Mutex<Due>,
    /// Wakes whoever tells it.
    pub wake: Notify,
}

/// What there is to tell: sets, so that it stays small however much happens meanwhile.
#[derive(Debug, Default)]
pub struct Due {
    /// Addresses that may look different.
    pub addresses: BTreeSet<SocketAddr>,
    /// The policies of the pod, about what arrives and what leaves, may look different.
    pub inbound: bool,
    /// Orders about golden metrics.
    pub orders: Vec<ControlMessage>,
    /// Parts of shared rate limits.
    pub shares: BTreeMap<String, u32>,
    /// Taps to begin or change; `None`: to end.
    pub taps: BTreeMap<u64, Option<TapOrder>>,
}

impl Todo {
    /// Adds something to tell.
    pub fn add(&self, change: impl FnOnce(&mut Due)) {
        change(&mut self.due.lock());
        self.wake.notify_one();
    }

    /// Takes all there is to tell.
    pub fn take(&self) -> Due {
        std::mem::take(&mut *self.due.lock())
    }
}

/// One proxy's subscriptions; they end when it is dropped.
#[derive(Debug)]
pub struct Follower {
    subscriptions: Arc<Subscriptions>,
    id: u64,
    pod: Name,
    addresses: Mutex<HashSet<SocketAddr>>,
    /// What the proxy has to be told.
    pub todo: Arc<Todo>,
}

impl Subscriptions {
    /// An empty world.
    pub fn new(config: Arc<MeshConfig>) -> Arc<Self> {
        Arc::new(Self {
            config,
            world: RwLock::default(),
            followers: Mutex::default(),
            compiled: Mutex::default(),
            synced: watch::Sender::new(false),
            changes: watch::Sender::new(()),
            rejections: Rejections::default(),
        })
    }

    /// The mesh's configuration.
    pub fn config(&self) -> &MeshConfig {
        &self.config
    }

    /// Reads the world.
    pub fn read<T>(&self, read: impl FnOnce(&World) -> T) -> T {
        read(&self.world.read())
    }

    /// An object is there, or has changed.
    pub fn apply<K: Kept>(&self, key: K::Key, object: K) {
        self.change(|world| world.apply(key, object));
    }

    /// An object is gone.
    pub fn delete<K: Kept>(&self, key: &K::Key) {
        self.change(|world| world.delete::<K>(key));
    }

    /// These are all objects of a kind.
    pub fn reset<K: Kept>(&self, objects: HashMap<K::Key, K>) {
        self.change(|world| world.reset(objects));
    }

    /// These are all objects `among` those of a kind.
    pub fn reset_among<K: Kept>(&self, among: impl Fn(&K::Key) -> bool, objects: HashMap<K::Key, K>) {
        self.change(|world| world.reset_among(among, objects));
    }

    /// Everything has been listed once: answers can be given from now on.
    pub fn set_synced(&self) {
        self.synced.send_replace(true);
    }

    /// True once everything has been listed.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Waits until everything has been listed: before that, an address might look unknown that is not.
    pub async fn synced(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    fn change(&self, change: impl FnOnce(&mut World) -> Touched) {
        let touched = {
            let mut world = self.world.write();
            let touched = change(&mut world);
            if !touched.ips.is_empty() {
                self.compiled.lock().retain(|(address, _), _| !touched.ips.contains(&address.ip()));
            }
            touched
        };
        self.changes.send_replace(());
        if !touched.is_empty() {
            self.followers.lock().tell(&touched);
        }
    }

    /// Wakes at every change of the world, and when a proxy cannot use what it was told, or can again.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// What proxies could not use.
    pub fn rejections(&self) -> &Rejections {
        &self.rejections
    }

    /// A pod's proxy could not use something, for a reason.
    pub fn reject(&self, subject: Subject, pod: &Name, reason: String) {
        if self.rejections.add(subject, pod, reason) {
            self.changes.send_replace(());
        }
    }

    /// A pod's proxy uses something.
    pub fn accept(&self, subject: &Subject, pod: &Name) {
        if self.rejections.remove(subject, pod) {
            self.changes.send_replace(());
        }
    }

    /// The answer about an address to a pod of a namespace.
    pub fn destination(&self, address: SocketAddr, namespace: &str) -> Arc<Compiled> {
        let world = self.world.read();
        let consumer = compile::route::is_consumer(&world, address.ip(), namespace).then(|| namespace.to_owned());
        let question = (address, consumer);
        if let Some(compiled) = self.compiled.lock().get(&question) {
            return compiled.clone();
        }
        let answer = Arc::new(compile::destination(&world, &self.config, address, question.1.as_deref()));
        let mut compiled = self.compiled.lock();
        if compiled.len() >= limits::COMPILED {
            compiled.retain(|_, shared| Arc::strong_count(shared) > 1);
        }
        if compiled.len() < limits::COMPILED {
            compiled.insert(question, answer.clone());
        }
        answer
    }

    /// The inbound policy of a pod.
    pub fn inbound(&self, pod: &Name) -> InboundPolicy {
        compile::inbound(&self.world.read(), &self.config, pod)
    }

    /// What may leave the cluster from a pod.
    pub fn egress(&self, pod: &Name) -> Egress {
        compile::egress::compile(&self.world.read(), &self.config, pod)
    }

    /// Begins to follow the world for the proxy of a pod.
    pub fn follow(self: &Arc<Self>, pod: Name) -> Follower {
        let todo = Arc::new(Todo::default());
        let mut followers = self.followers.lock();
        let id = followers.next;
        followers.next += 1;
        followers.all.insert(id, todo.clone());
        followers.by_pod.entry(pod.clone()).or_default().insert(id);
        drop(followers);
        todo.add(|due| due.inbound = true);
        Follower { subscriptions: self.clone(), id, pod, addresses: Mutex::default(), todo }
    }
}

impl Followers {
    fn tell(&self, touched: &Touched) {
        for ip in &touched.ips {
            for todo in self.by_ip.get(ip).into_iter().flatten().filter_map(|id| self.all.get(id)) {
                // The proxy's own list says which ports of the address it follows.
                todo.add(|due| {
                    due.addresses.insert(SocketAddr::new(*ip, 0));
                });
            }
        }
        for pod in &touched.pods {
            for todo in self.by_pod.get(pod).into_iter().flatten().filter_map(|id| self.all.get(id)) {
                todo.add(|due| due.inbound = true);
            }
        }
    }
}

impl Follower {
    /// Follows an address too. False if the proxy follows too many already.
    pub fn subscribe(&self, address: SocketAddr) -> bool {
        {
            let mut addresses = self.addresses.lock();
            if addresses.len() >= limits::SUBSCRIPTIONS && !addresses.contains(&address) {
                return false;
            }
            addresses.insert(address);
            // Under the same lock as `unsubscribe`'s, so that the two cannot overtake each other.
            self.subscriptions.followers.lock().by_ip.entry(address.ip()).or_default().insert(self.id);
        }
        self.todo.add(|due| {
            due.addresses.insert(address);
        });
        true
    }

    /// Follows an address no longer.
    pub fn unsubscribe(&self, address: SocketAddr) {
        let mut addresses = self.addresses.lock();
        if addresses.remove(&address) && !addresses.iter().any(|other| other.ip() == address.ip()) {
            self.subscriptions.followers.lock().forget_ip(address.ip(), self.id);
        }
        drop(addresses);
        if self.subscriptions.rejections.unfollow(address, &self.pod) {
            self.subscriptions.changes.send_replace(());
        }
    }

    /// True if the proxy follows this address.
    pub fn follows(&self, address: SocketAddr) -> bool {
        self.addresses.lock().contains(&address)
    }

    /// Which of the followed addresses are meant by those that are due.
    pub fn meant(&self, due: &BTreeSet<SocketAddr>) -> Vec<SocketAddr> {
        let addresses = self.addresses.lock();
        let whole = |address: &SocketAddr| due.contains(&SocketAddr::new(address.ip(), 0));
        addresses.iter().filter(|address| due.contains(address) || whole(address)).copied().collect()
    }

    /// The pod whose proxy this is.
    pub fn pod(&self) -> &Name {
        &self.pod
    }
}

impl Followers {
    fn forget_ip(&mut self, ip: IpAddr, id: u64) {
        if let Some(ids) = self.by_ip.get_mut(&ip) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_ip.remove(&ip);
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let addresses = std::mem::take(&mut *self.addresses.lock());
        let mut followers = self.subscriptions.followers.lock();
        followers.all.remove(&self.id);
        for address in addresses {
            followers.forget_ip(address.ip(), self.id);
        }
        if let Some(ids) = followers.by_pod.get_mut(&self.pod) {
            ids.remove(&self.id);
            if ids.is_empty() {
                followers.by_pod.remove(&self.pod);
                if self.subscriptions.rejections.forget(&self.pod) {
                    self.subscriptions.changes.send_replace(());
                }
            }
        }
    }
}
