//! Cluster IPs: what kube-proxy is to a node, and the start of cluster DNS beside it.
//!
//! Services and EndpointSlices are watched like by any other client of the API. Every change, gathered for a moment,
//! becomes a new [`Catalog`]; [`rules`] makes nftables rules of it, [`super::dns`] names. The rules hold in the node's
//! network namespace, which every packet between pods crosses, and for the sandbox's own connections, too.

mod rules;

use super::addresses::{NODE_ADDRESS, NODE_ADDRESS6, SERVICE_RANGE, SERVICE_RANGE6};
use super::dns;
use anyhow::Context as _;
use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client};
use mesh_proxy::nft::Table;
use mesh_proxy::nft::netlink::{Netlink, NftError};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::RouteScope;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Cluster IP of `kube-system/kube-dns`, on which the node itself answers.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// How long changes gather before they take effect together.
const GATHER: Duration = Duration::from_millis(10);
/// After the kernel refused rules.
const RETRY: Duration = Duration::from_secs(1);

/// Services and their endpoints at one moment.
#[derive(Debug, Default, Clone)]
pub struct Catalog {
    /// All services.
    pub services: Vec<Arc<Service>>,
    /// All endpoint slices.
    pub slices: Vec<Arc<EndpointSlice>>,
}

impl Catalog {
    /// The endpoint slices of each service, by namespace and name of the service; those of names are left out.
    pub fn slices_by_service(&self) -> HashMap<(&str, &str), Vec<&EndpointSlice>> {
        let mut by_service: HashMap<_, Vec<&EndpointSlice>> = HashMap::new();
        for slice in self.slices.iter().filter(|s| s.address_type != "FQDN") {
            let labels = slice.metadata.labels.as_ref();
            let service = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
            if let (Some(namespace), Some(service)) = (&slice.metadata.namespace, service) {
                by_service.entry((namespace.as_str(), service.as_str())).or_default().push(slice);
            }
        }
        by_service
    }
}

/// The cluster IPs of a service: none if it is headless or another name.
pub fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = service.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName")) else {
        return Vec::new();
    };
    let first = spec.cluster_ip.iter();
    let mut ips: Vec<IpAddr> =
        first.chain(spec.cluster_ips.iter().flatten()).filter_map(|address| address.parse().ok()).collect();
    ips.dedup();
    ips
}

/// Cluster IPs and cluster DNS of this node, kept current until dropped.
#[derive(Debug)]
pub struct ServiceNetwork {
    _tasks: JoinSet<()>,
}

impl ServiceNetwork {
    /// Prepares the network namespace of the calling process, in which `bridge` is up and has [`NODE_ADDRESS`], and
    /// begins to follow the API. When this returns, DNS answers and connections to cluster IPs are refused rather than lost;
    /// services follow with the first sight of the API's objects. With `ipv6`, the bridge has [`NODE_ADDRESS6`], too.
    pub async fn start(client: Client, bridge: &str, ipv6: bool) -> anyhow::Result<Self> {
        let mut tasks = JoinSet::new();
        prepare(bridge, ipv6, &mut tasks).await.context("cannot prepare the node's network for cluster IPs")?;
        install(&rules::tables(&Catalog::default(), ipv6)).context("cannot set up cluster IPs")?;
        let server = dns::Server::bind(DNS_ADDRESS, 53).await?;
        let catalog = follow(client, &mut tasks);
        tasks.spawn(server.run(catalog.clone()));
        tasks.spawn(apply(catalog, ipv6));
        Ok(Self { _tasks: tasks })
    }
}

/// Gives the node the address DNS answers on, and a route by which its own connections to cluster IPs get as far as the
/// rules that rewrite them.
async fn prepare(bridge: &str, ipv6: bool, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    let (connection, netlink, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
    tasks.spawn(connection);
    let link = netlink.link().get().match_name(bridge.to_owned()).execute().try_next().await;
    let index = link.with_context(|| format!("looking for interface {bridge}"))?.map(|link| link.header.index);
    let index = index.with_context(|| format!("there is no interface {bridge}"))?;
    netlink
        .address()
        .add(index, DNS_ADDRESS.into(), 32)
        .replace()
        .execute()
        .await
        .with_context(|| format!("adding address {DNS_ADDRESS} to {bridge}"))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(SERVICE_RANGE.first, SERVICE_RANGE.prefix)
        .output_interface(index)
        .scope(RouteScope::Link)
        .pref_source(NODE_ADDRESS);
    let added = netlink.route().add(route.build()).replace().execute().await;
    added.with_context(|| format!("adding the route to {SERVICE_RANGE} by {bridge}"))?;
    if ipv6 {
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(SERVICE_RANGE6.first, SERVICE_RANGE6.prefix)
            .output_interface(index)
            .pref_source(NODE_ADDRESS6);
        let added = netlink.route().add(route.build()).replace().execute().await;
        added.with_context(|| format!("adding the route to {SERVICE_RANGE6} by {bridge}"))?;
    }
    // Pods reach each other through the node although they share a bridge: don't advise them to take the short way,
    // on which rewritten addresses would not be restored.
    for interface in ["all", bridge] {
        let path = format!("/proc/sys/net/ipv4/conf/{interface}/send_redirects");
        std::fs::write(&path, "0").with_context(|| format!("writing {path}"))?;
    }
    keep_bridge_plain()
}

/// Where the module `br_netfilter` is loaded (container runtimes load it), frames are rewritten while still on the bridge,
/// which then won't send a frame back out of the port it came from: a pod could not reach itself by a cluster IP.
fn keep_bridge_plain() -> anyhow::Result<()> {
    for setting in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let path = format!("/proc/sys/net/bridge/{setting}");
        match std::fs::write(&path, "0") {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("writing {path}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Follows services and endpoint slices; the receiver sees its first change once both are known.
fn follow(client: Client, tasks: &mut JoinSet<()>) -> watch::Receiver<Arc<Catalog>> {
    let (sender, receiver) = watch::channel(Arc::default());
    tasks.spawn(async move {
        let (services, writer) = reflector::store();
        let watch = watcher(Api::<Service>::all(client.clone()), watcher::Config::default());
        let service_changes = changes("services", watch.default_backoff().reflect(writer));
        let (slices, writer) = reflector::store();
        let watch = watcher(Api::<EndpointSlice>::all(client), watcher::Config::default());
        let slice_changes = changes("endpoint slices", watch.default_backoff().reflect(writer));
        let mut changes = pin!(futures::stream::select(service_changes, slice_changes));
        while changes.next().await.is_some() {
            let gathered = async { while changes.next().await.is_some() {} };
            let _ = tokio::time::timeout(GATHER, gathered).await;
            let known = |ready: Option<Result<(), _>>| matches!(ready, Some(Ok(())));
            if known(services.wait_until_ready().now_or_never()) && known(slices.wait_until_ready().now_or_never()) {
                sender.send_replace(Arc::new(Catalog { services: services.state(), slices: slices.state() }));
            }
        }
    });
    receiver
}

fn changes<K>(
    what: &'static str,
    events: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>>,
) -> impl Stream<Item = ()> {
    events.map(move |event| {
        if let Err(error) = event {
            tracing::debug!(%error, what, "watch interrupted, trying again");
        }
    })
}

/// Puts rules in place of those there are: a few milliseconds of processor time, no waiting.
fn install(tables: &[Table]) -> Result<(), NftError> {
    tables.iter().try_for_each(|table| Netlink::open()?.apply(&table.replace()))
}

/// Puts the rules of each new catalog in place.
async fn apply(mut catalog: watch::Receiver<Arc<Catalog>>, ipv6: bool) {
    let mut installed = Vec::new();
    while catalog.changed().await.is_ok() {
        loop {
            let tables = rules::tables(&catalog.borrow_and_update(), ipv6);
            if installed == tables {
                break;
            }
            match install(&tables) {
                Ok(()) => {
                    installed = tables;
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "cluster IPs are not up to date, trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
