//! The node's bridge and the pods' interfaces.
//!
//! Every pod has one address with no neighbours: all its packets go to the node, which routes them, so that replies of
//! a service's endpoints pass the node again and its address translation can be undone there.

use super::addresses::{Addresses, NODE_ADDRESS, NODE_ADDRESS6, POD_RANGE, POD_RANGE6};
use anyhow::Context as _;
use futures::TryStreamExt as _;
use nix::sched::{CloneFlags, setns};
use parking_lot::Mutex;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

/// The node's bridge.
pub const BRIDGE: &str = "mesh0";
/// The bridge's hardware address (locally administered). Left to itself a bridge takes the lowest of its ports', and another
/// one whenever that port goes: then no packet of a pod that still remembers the old one reaches the node, for half a
/// minute and more.
const BRIDGE_ADDRESS: [u8; 6] = [0x02, b'm', b'e', b's', b'h', 0];
/// First and last address for pods, as offsets into the range.
const POOL: std::ops::RangeInclusive<u16> = 2..=u16::MAX - 1;
/// The pod's end of its interface pair.
const INTERFACE: &str = "eth0";
/// Index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// Settings of the node's network namespace.
const SETTINGS: [(&str, &str); 11] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/accept_dad", "0"),
    // The pods' ends of their interfaces are ports of the bridge and need no addresses.
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/neigh/default/gc_thresh3", "16384"),
    ("ipv6/neigh/default/gc_thresh3", "16384"),
];

/// The node's network.
pub(crate) struct Network {
    node: Handle,
    bridge: u32,
    pool: Mutex<Pool>,
    /// Why there is no IPv6; `None` if there is.
    without_ipv6: Option<String>,
}

/// A pod's place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) addresses: Addresses,
    /// Its number in the pool.
    number: u16,
    /// The node's end of the interface pair.
    interface: u32,
}

/// Addresses given out one after the other, so that one is not used again soon.
#[derive(Debug)]
struct Pool {
    used: HashSet<u16>,
    next: u16,
}

impl Pool {
    fn new() -> Self {
        Self { used: HashSet::new(), next: *POOL.start() }
    }

    fn take(&mut self) -> Option<u16> {
        for _ in POOL {
            let number = self.next;
            self.next = if number == *POOL.end() { *POOL.start() } else { number + 1 };
            if self.used.insert(number) {
                return Some(number);
            }
        }
        None
    }

    fn give_back(&mut self, number: u16) {
        self.used.remove(&number);
    }
}

impl Network {
    /// Prepares the network namespace of this process.
    pub(crate) async fn create() -> anyhow::Result<Self> {
        for (name, value) in SETTINGS {
            // Some are not namespaced on older kernels, and then have sensible values; forwarding is indispensable.
            let written = std::fs::write(format!("/proc/sys/net/{name}"), value);
            if name == "ipv4/ip_forward" {
                written.context("switching on IP forwarding")?;
            }
        }
        let node = connect().context("opening the node's netlink socket")?;
        up(&node, LOOPBACK).await.context("starting the node's loopback interface")?;
        let bridge = LinkBridge::new(BRIDGE).address(BRIDGE_ADDRESS.to_vec()).up().build();
        node.link().add(bridge).execute().await.context("making the node's bridge")?;
        let bridge = index(&node, BRIDGE).await?;
        node.address()
            .add(bridge, IpAddr::V4(NODE_ADDRESS), POD_RANGE.prefix)
            .execute()
            .await
            .context("giving the bridge its address")?;
        let without_ipv6 = add_ipv6(&node, bridge).await.err().map(|error| format!("{error:#}"));
        if let Some(why) = &without_ipv6 {
            tracing::warn!(why, "this sandbox has IPv4 only");
        }
        Ok(Self { node, bridge, pool: Mutex::new(Pool::new()), without_ipv6 })
    }

    /// Why there is no IPv6; `None` if there is.
    pub(crate) fn without_ipv6(&self) -> Option<&str> {
        self.without_ipv6.as_deref()
    }

    /// The node's own addresses.
    pub(crate) fn addresses(&self) -> Addresses {
        Addresses::of_node(self.without_ipv6.is_none())
    }

    /// Connects a pod's network namespace.
    pub(crate) async fn attach(&self, net: &OwnedFd) -> anyhow::Result<Attachment> {
        let number = self.pool.lock().take().context("all addresses for pods are in use")?;
        let addresses = Addresses::of_pod(number, self.without_ipv6.is_none());
        match self.connect_pod(net, number, addresses).await {
            Ok(interface) => Ok(Attachment { addresses, number, interface }),
            Err(error) => {
                self.pool.lock().give_back(number);
                Err(error)
            }
        }
    }

    async fn connect_pod(&self, net: &OwnedFd, number: u16, addresses: Addresses) -> anyhow::Result<u32> {
        let name = format!("veth{number:04x}");
        let peer = LinkMessageBuilder::<LinkUnspec>::new().name(INTERFACE).setns_by_fd(net.as_raw_fd()).build();
        let pair = LinkVeth::new(&name, INTERFACE)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(self.bridge)
            .up()
            .build();
        self.node.link().add(pair).execute().await.context("making the pod's interface")?;
        let interface = index(&self.node, &name).await?;
        let pod = within(net, connect).await.context("opening a netlink socket in the pod")?;
        up(&pod, LOOPBACK).await.context("starting the pod's loopback interface")?;
        let inside = index(&pod, INTERFACE).await?;
        let v4 = IpAddr::V4(addresses.v4);
        pod.address().add(inside, v4, 32).execute().await.context("giving the pod its address")?;
        up(&pod, inside).await.context("starting the pod's interface")?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(NODE_ADDRESS).output_interface(inside).onlink();
        pod.route().add(route.build()).execute().await.context("setting the pod's route")?;
        if let Some(v6) = addresses.v6 {
            give_ipv6(&pod, inside, v6, 128).await.context("giving the pod its IPv6 address")?;
            let route = RouteMessageBuilder::<Ipv6Addr>::new().gateway(NODE_ADDRESS6).output_interface(inside).onlink();
            pod.route().add(route.build()).execute().await.context("setting the pod's IPv6 route")?;
        }
        Ok(interface)
    }

    /// Removes a pod's interface and frees its address.
    pub(crate) async fn detach(&self, attachment: Attachment) {
        // Gone already if the pod's namespace is.
        let _ = self.node.link().del(attachment.interface).execute().await;
        self.pool.lock().give_back(attachment.number);
    }
}

/// Gives the node's bridge its IPv6 address, or says why that cannot be.
async fn add_ipv6(node: &Handle, bridge: u32) -> anyhow::Result<()> {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{BRIDGE}/disable_ipv6"), "0")
        .context("the kernel has no IPv6: switching it on for the node's bridge")?;
    give_ipv6(node, bridge, NODE_ADDRESS6, POD_RANGE6.prefix).await.context("giving the bridge its IPv6 address")
}

/// Adds an address that is used at once: there is nobody who could have it, too (RFC 4862 §5.4 would take a second).
async fn give_ipv6(handle: &Handle, interface: u32, address: Ipv6Addr, prefix: u8) -> Result<(), rtnetlink::Error> {
    let mut request = handle.address().add(interface, IpAddr::V6(address), prefix);
    request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    request.execute().await
}

/// A netlink connection of the network namespace this thread is in.
fn connect() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn up(handle: &Handle, index: u32) -> Result<(), rtnetlink::Error> {
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await
}

async fn index(handle: &Handle, name: &str) -> anyhow::Result<u32> {
    let mut links = handle.link().get().match_name(name).execute();
    let link = links.try_next().await.with_context(|| format!("looking for the interface {name}"))?;
    Ok(link.with_context(|| format!("there is no interface {name}"))?.header.index)
}

/// Runs `work` in a network namespace, on a thread of its own, because a thread's namespace outlasts the work.
async fn within<T: Send + 'static>(
    net: &OwnedFd,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let net = net.try_clone()?;
    let runtime = tokio::runtime::Handle::current();
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new().name("in-pod".into()).spawn(move || {
        let _runtime = runtime.enter();
        let _ = sender.send(setns(net, CloneFlags::CLONE_NEWNET).map_err(Into::into).and_then(|()| work()));
    })?;
    receiver.await.map_err(|_| io::Error::other("the thread in the pod's network namespace ended early"))?
}

/// Connects from inside a network namespace.
pub(crate) async fn dial(net: &OwnedFd, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = within(net, if address.is_ipv4() { TcpSocket::new_v4 } else { TcpSocket::new_v6 }).await?;
    tokio::time::timeout(timeout, socket.connect(address))
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {address}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_late() {
        let mut pool = Pool::new();
        assert_eq!(pool.take(), Some(2));
        pool.give_back(2);
        assert_eq!(pool.take(), Some(3));
        pool.next = *POOL.end();
        assert_eq!(pool.take(), Some(u16::MAX - 1));
        assert_eq!(pool.take(), Some(2), "free again, but not 3");
        assert_eq!(pool.take(), Some(4));
    }
}
