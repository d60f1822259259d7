//! `mesh-proxy redirect`: makes a pod's TCP traffic pass through its proxy, unknown to the application.
//!
//! Runs once in the pod's network namespace, as an init container, before the application starts. [`rules`] says what
//! shall hold (pure); [`run`] puts it in place of whatever an earlier run left, and checks that the kernel holds it.
//! The proxy finds out where a redirected connection was going from `SO_ORIGINAL_DST`.
//!
//! Not redirected: traffic over the loopback interface, the proxy's own connections (recognised by its user id or, where
//! the sandbox can map only one user id, by a mark on its sockets), ports the user excludes, and anything but TCP.

use crate::nft::netlink::{Netlink, NftError};
use crate::nft::{
    Chain, ChainType, Element, Family, HookPoint, Meta, PRIORITY_DNAT, Rule, Set, SetKind, TCP, Table, Type,
};
use std::fmt;
use std::str::FromStr;

pub mod check;

/// Name of the table that holds the redirect.
pub const TABLE: &str = "mesh";

/// The command line of `mesh-proxy redirect`.
#[derive(Debug, clap::Args)]
pub struct RedirectCommand {
    /// Set nothing; prove by a connection that the node has set the redirect. Ends with 69 where it is missing
    #[arg(long)]
    pub check: bool,
    /// What to redirect.
    #[command(flatten)]
    pub redirect: RedirectArgs,
}

/// What to redirect.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct RedirectArgs {
    /// User id of the proxy, whose connections are not redirected
    #[arg(long, default_value_t = mesh_api::names::PROXY_UID)]
    pub proxy_uid: u32,
    /// Port on which the proxy takes what the application connects to
    #[arg(long, default_value_t = mesh_api::names::OUTBOUND_PORT)]
    pub outbound_port: u16,
    /// Port on which the proxy takes what arrives for the application
    #[arg(long, default_value_t = mesh_api::names::INBOUND_PORT)]
    pub inbound_port: u16,
    /// Ports of this pod to leave alone, for example 22,8000-8010
    #[arg(long, default_value_t, value_name = "PORTS")]
    pub skip_inbound_ports: PortRanges,
    /// Ports of others to leave alone, for example 25,3306
    #[arg(long, default_value_t, value_name = "PORTS")]
    pub skip_outbound_ports: PortRanges,
}

/// Sets the redirect in the network namespace of the calling thread.
pub fn run(args: &RedirectArgs) -> anyhow::Result<()> {
    let table = rules(args);
    Netlink::open().and_then(|netlink| netlink.replace(&table)).map_err(with_hint)?;
    tracing::info!(
        outbound = args.outbound_port,
        inbound = args.inbound_port,
        skip_inbound = %args.skip_inbound_ports,
        skip_outbound = %args.skip_outbound_ports,
        "TCP traffic of this pod is redirected to its proxy"
    );
    Ok(())
}

/// The rules that `args` ask for.
pub fn rules(args: &RedirectArgs) -> Table {
    let RedirectArgs { proxy_uid, outbound_port, inbound_port, skip_inbound_ports, skip_outbound_ports } = args;
    let admin = PortRange { low: mesh_api::names::ADMIN_PORT, high: mesh_api::names::ADMIN_PORT };
    let skip_inbound = skip_inbound_ports.0.iter().copied().chain([admin]);
    Table {
        family: Family::Inet,
        name: TABLE.to_owned(),
        sets: vec![
            port_set("skip-outbound", skip_outbound_ports.0.iter().copied()),
            port_set("skip-inbound", skip_inbound),
        ],
        chains: vec![
            Chain::hooked("outbound", ChainType::Nat, HookPoint::Output, PRIORITY_DNAT)
                .rule(Rule::new("loopback").interface_is(Meta::OutputInterface, "lo").accept())
                .rule(Rule::new("the proxy, by user").meta_is(Meta::SocketUser, proxy_uid.to_ne_bytes()).accept())
                .rule(
                    Rule::new("the proxy, by mark")
                        .meta_is(Meta::Mark, mesh_api::names::PROXY_MARK.to_ne_bytes())
                        .accept(),
                )
                .rule(Rule::new("excluded ports").protocol_is(TCP).destination_port_in("skip-outbound").accept())
                .rule(Rule::new("to the outbound proxy").protocol_is(TCP).redirect_to(*outbound_port)),
            Chain::hooked("inbound", ChainType::Nat, HookPoint::Prerouting, PRIORITY_DNAT)
                .rule(Rule::new("loopback").interface_is(Meta::InputInterface, "lo").accept())
                .rule(
                    Rule::new("excluded and admin ports").protocol_is(TCP).destination_port_in("skip-inbound").accept(),
                )
                .rule(Rule::new("to the inbound proxy").protocol_is(TCP).redirect_to(*inbound_port)),
        ],
    }
}

fn port_set(name: &str, ranges: impl Iterator<Item = PortRange>) -> Set {
    let elements = merge(ranges.collect()).into_iter().flat_map(|range| Element::range(range.low, range.high));
    Set { name: name.to_owned(), key: vec![Type::Port], kind: SetKind::Ranges, elements: elements.collect() }
}

/// Sorts ranges and joins those that overlap or touch: the kernel refuses overlapping ranges in a set.
fn merge(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.sort_unstable();
    let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.low <= last.high.saturating_add(1) => last.high = last.high.max(range.high),
            _ => merged.push(range),
        }
    }
    merged
}

fn with_hint(error: NftError) -> anyhow::Error {
    let hint = match &error {
        NftError::NotPermitted => {
            "the redirect container must run as root with the capability NET_ADMIN \
             (securityContext: runAsUser: 0, capabilities: add: [NET_ADMIN, NET_RAW])"
        }
        NftError::NoNfTables(_) => {
            "the node's kernel needs nf_tables with NAT (CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_REDIR; \
             Linux 5.2 or newer): try `modprobe nf_tables` on the node"
        }
        NftError::Refused { .. } => {
            "the node's kernel may lack a module of nf_tables: try `modprobe -a nft_chain_nat nft_redir` on the node"
        }
        _ => "nothing was changed; run it again, and report this if it stays",
    };
    anyhow::anyhow!("cannot redirect this pod's traffic to its proxy: {error}\nhint: {hint}")
}

/// Ports from `low` to `high`, ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// First port.
    pub low: u16,
    /// Last port.
    pub high: u16,
}

/// A list of ports and port ranges, written `22,8000-8010`; may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortRanges(pub Vec<PortRange>);

/// Text that is not a list of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a port (1 to 65535) nor a range of ports (8000-8010)")]
pub struct InvalidPorts(String);

impl FromStr for PortRange {
    type Err = InvalidPorts;
    fn from_str(text: &str) -> Result<Self, InvalidPorts> {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        match (low.trim().parse(), high.trim().parse()) {
            (Ok(low), Ok(high)) if 0 < low && low <= high => Ok(Self { low, high }),
            _ => Err(InvalidPorts(text.to_owned())),
        }
    }
}

impl FromStr for PortRanges {
    type Err = InvalidPorts;
    fn from_str(text: &str) -> Result<Self, InvalidPorts> {
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.low == self.high { write!(f, "{}", self.low) } else { write!(f, "{}-{}", self.low, self.high) }
    }
}

impl fmt::Display for PortRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            range.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
