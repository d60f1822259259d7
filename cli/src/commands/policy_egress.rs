//! `meshctl policy test`, the part about what leaves the cluster: calls of hosts outside, as the callers' proxies counted
//! them, judged by the proxies' own decider.
//!
//! A host that was called by its name is judged by it; to which address it led is not recorded, so that a rule that
//! names networks only is about calls of addresses.

use super::policy::{Sight, sight};
use mesh_api::WorkloadRef;
use mesh_api::egress::{Leaving, Seen, decide};
use mesh_api::golden::{Direction, GoldenFrame};
use mesh_control::compile;
use mesh_control::world::World;
use mesh_manifests::config::MeshConfig;
use mesh_proxy::egress::hosts::OTHER;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Calls of one kind that left the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Exit {
    /// Who called.
    pub caller: WorkloadRef,
    /// The host, by the name or address it was called by.
    pub host: String,
    /// The port there.
    pub port: u16,
    seen: Sight,
}

/// Every kind of call out of the cluster with how often it was seen. Hosts that were not told apart are left out.
pub(super) fn exits(frames: &[GoldenFrame], namespace: Option<&str>) -> BTreeMap<Exit, u64> {
    let mut exits = BTreeMap::new();
    for entry in frames.iter().flat_map(|frame| &frame.series) {
        let key = &entry.key;
        let meant = namespace.is_none_or(|name| name == entry.workload.namespace);
        let outside = key.direction == Direction::Outbound && key.peer.kind == "external" && key.peer.name != OTHER;
        let (seen, count) = sight(entry);
        if meant && outside && count > 0 {
            let exit = Exit { caller: entry.workload.clone(), host: key.peer.name.clone(), port: key.port, seen };
            *exits.entry(exit).or_insert(0) += count;
        }
    }
    exits
}

/// Whether a call is let out, and why; `None` if the caller is gone.
pub(super) fn decision(world: &World, config: &MeshConfig, exit: &Exit) -> Option<(bool, String)> {
    let (name, _) = world.pods().find(|(_, pod)| pod.workload == exit.caller && !pod.deleted)?;
    let egress = compile::egress::compile(world, config, name);
    let address: Option<IpAddr> = exit.host.parse().ok();
    let seen = match exit.seen {
        Sight::Http | Sight::Grpc => Seen::Http(Some(&exit.host)),
        // A name that is an address was not asked for: the connection named none.
        Sight::Tls => Seen::Tls(Some(exit.host.as_str()).filter(|_| address.is_none())),
        Sight::Opaque => Seen::Tcp,
    };
    let decision = decide(&egress, &Leaving { address, port: exit.port, seen });
    Some((decision.allowed, decision.why.to_string()))
}
