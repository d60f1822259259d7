//! nftables without the `nft` program: a model of tables, chains, sets and rules, and its way into the kernel.
//!
//! The proxy's image holds one binary and the sandbox asks for nothing to be installed, so both speak netlink
//! themselves. This file is the model: plain values that say what shall hold. `encode` turns a [`Table`] into one
//! netlink batch (pure, bytes out), [`netlink`] sends it and reads back what the kernel holds. A batch replaces a whole
//! table atomically: a packet sees the old rules or the new ones, never a mixture and never none.
//!
//! Only what the mesh needs is modelled; names and numbers follow `linux/netfilter/nf_tables.h`. Expressions work on
//! sixteen 4-byte registers ([`Reg`]); a longer value occupies consecutive ones. What a packet or socket gives is in
//! network byte order (addresses, ports) or host byte order (user ids, marks), as noted at each item.

mod encode;
pub mod netlink;

pub use encode::Batch;
use std::net::Ipv4Addr;

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6 together; NAT in this family needs Linux 5.2.
    Inet = 1,
    /// IPv4 alone.
    Ipv4 = 2,
    /// IPv6 alone.
    Ipv6 = 10,
}

/// Everything that shall stand under one table name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Family.
    pub family: Family,
    /// Name, unique in its family.
    pub name: String,
    /// Sets and maps; created before the rules that look into them.
    pub sets: Vec<Set>,
    /// Chains, in the order of creation.
    pub chains: Vec<Chain>,
}

/// A list of rules, called by the kernel ([`Chain::hook`]) or by a jump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name, unique in its table.
    pub name: String,
    /// Where packets enter; `None` for a chain that is only jumped to.
    pub hook: Option<Hook>,
    /// Rules, tried in this order. A base chain accepts what no rule decides.
    pub rules: Vec<Rule>,
}

/// What a base chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainType {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of a connection; what it decides holds for the rest.
    Nat,
}

/// Point on a packet's way, `enum nf_inet_hooks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    /// Just arrived.
    Prerouting = 0,
    /// Passing through.
    Forward = 2,
    /// Sent by a local process.
    Output = 3,
    /// About to leave.
    Postrouting = 4,
}

/// Attaches a chain to packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// Type of the chain.
    pub chain_type: ChainType,
    /// Point on the way.
    pub point: HookPoint,
    /// Order among chains of the same point: lower first.
    pub priority: i32,
}

/// Priority at which destinations are rewritten (`NF_IP_PRI_NAT_DST`).
pub const PRIORITY_DNAT: i32 = -100;
/// Priority at which sources are rewritten (`NF_IP_PRI_NAT_SRC`).
pub const PRIORITY_SNAT: i32 = 100;

/// A rule: expressions evaluated from left to right until one doesn't match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// For people: shown by `nft list ruleset` as the rule's comment and named in errors. At most 127 bytes.
    pub comment: String,
    /// The expressions.
    pub expressions: Vec<Expr>,
}

/// One of sixteen 4-byte registers (`NFT_REG32_00` onwards).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg(pub u8);

/// What is known about a packet beside its bytes, `enum nft_meta_keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    /// Mark of packet or socket: 4 bytes, host order.
    Mark = 3,
    /// Name of the interface it came in by: 16 bytes, zero-padded.
    InputInterface = 6,
    /// Name of the interface it leaves by: 16 bytes, zero-padded.
    OutputInterface = 7,
    /// User id of the sending socket, as its network namespace's user namespace sees it: 4 bytes, host order.
    SocketUser = 10,
    /// IPv4 or IPv6 (`NFPROTO_IPV4` 2, `NFPROTO_IPV6` 10): 1 byte.
    Family = 15,
    /// Transport protocol: 1 byte.
    Protocol = 16,
}

/// Part of a packet that [`Expr::Payload`] counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// IP header.
    Network = 1,
    /// TCP or UDP header.
    Transport = 2,
}

/// How [`Expr::Compare`] compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Equal.
    Equal = 0,
    /// Not equal.
    NotEqual = 1,
}

/// How a refused packet is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// TCP reset: "connection refused" at once.
    TcpReset,
    /// ICMP or ICMPv6 "port unreachable".
    PortUnreachable,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on.
    Accept,
    /// Vanishes.
    Drop,
    /// Continues in that chain and comes back.
    Jump(String),
    /// Continues in that chain and does not come back.
    Goto(String),
    /// Back to the calling chain.
    Return,
}

/// One step of a rule. Field meanings are those of the kernel's expression of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads packet information.
    Meta {
        /// What to load.
        key: Meta,
        /// Where to.
        to: Reg,
    },
    /// Loads bytes of the packet.
    Payload {
        /// Part the offset counts from.
        header: Header,
        /// First byte.
        offset: u32,
        /// Number of bytes.
        len: u32,
        /// Where to.
        to: Reg,
    },
    /// Loads the connection's state as a bit mask ([`CT_STATE_NEW`]): 4 bytes, host order.
    ConnectionState {
        /// Where to.
        to: Reg,
    },
    /// Loads the connection's status as a bit mask ([`CT_STATUS_DNAT`]): 4 bytes, host order.
    ConnectionStatus {
        /// Where to.
        to: Reg,
    },
    /// `register = (register & mask) ^ xor`.
    Bitwise {
        /// Register changed in place.
        reg: Reg,
        /// Bits kept.
        mask: Vec<u8>,
        /// Bits flipped; as long as the mask.
        xor: Vec<u8>,
    },
    /// Goes on if the register compares to the value.
    Compare {
        /// Register.
        reg: Reg,
        /// How.
        how: Compare,
        /// With what; its length says how many bytes count.
        value: Vec<u8>,
    },
    /// Goes on if the register lies between two values, ends included; compared as big-endian numbers.
    Range {
        /// Register.
        reg: Reg,
        /// Lowest.
        low: Vec<u8>,
        /// Highest, as long as the lowest.
        high: Vec<u8>,
    },
    /// Goes on if the set has (or, inverted, has not) the key; of a map, loads the value.
    Lookup {
        /// Name of the set or map.
        set: String,
        /// First register of the key.
        key: Reg,
        /// True to go on if the key is *not* there.
        invert: bool,
        /// Where a map's value goes; `None` for sets and verdict maps.
        value: Option<Reg>,
    },
    /// Loads the verdict that a verdict map has for the key, and executes it.
    VerdictMap {
        /// Name of the map.
        map: String,
        /// First register of the key.
        key: Reg,
    },
    /// Loads a constant.
    Immediate {
        /// Where to.
        to: Reg,
        /// The bytes.
        value: Vec<u8>,
    },
    /// Decides.
    Verdict(Verdict),
    /// Loads a random number below `modulus`: 4 bytes, host order.
    Random {
        /// Where to.
        to: Reg,
        /// Upper bound, excluded.
        modulus: u32,
    },
    /// Loads a hash below `modulus` of `len` bytes from register `from`: 4 bytes, host order.
    Hash {
        /// First register hashed.
        from: Reg,
        /// Bytes hashed.
        len: u32,
        /// Where to.
        to: Reg,
        /// Upper bound, excluded.
        modulus: u32,
    },
    /// To the local machine, at the port in a register (network order). Nat chains of prerouting and output.
    Redirect {
        /// Register of the port.
        port: Reg,
    },
    /// To another address and port (network order); an IPv6 address in a table of IPv6 alone, else an IPv4 one. Nat
    /// chains of prerouting and output.
    DestinationNat {
        /// Register of the address.
        address: Reg,
        /// Register of the port.
        port: Reg,
    },
    /// From the address of the interface it leaves by. Nat chains of postrouting.
    Masquerade,
    /// Refuses with an answer.
    Reject(Reject),
}

/// [`Expr::ConnectionState`] bit of the first packet of a connection.
pub const CT_STATE_NEW: u32 = 1 << 3;
/// [`Expr::ConnectionStatus`] bit of a connection whose destination was rewritten (`IPS_DST_NAT`).
pub const CT_STATUS_DNAT: u32 = 1 << 5;
/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;

/// Type of a key or value in a set: what `nft` needs to print it, and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// IPv4 address, network order.
    Ipv4Address,
    /// IPv6 address, network order; four registers.
    Ipv6Address,
    /// Transport protocol.
    Protocol,
    /// Port, network order.
    Port,
    /// A number, host order.
    Number,
}

/// A set, a map (`values`) or a verdict map (`verdicts`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name, unique in its table.
    pub name: String,
    /// Type of the key; several are concatenated ([`concat`]).
    pub key: Vec<Type>,
    /// What it maps to.
    pub kind: SetKind,
    /// Content.
    pub elements: Vec<Element>,
}

/// What a set holds beside its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetKind {
    /// Nothing: single keys.
    Keys,
    /// Nothing: ranges of keys, as [`Element::range`] makes them.
    Ranges,
    /// A value of these types for each key.
    Values(Vec<Type>),
    /// A verdict for each key.
    Verdicts,
}

/// One entry of a [`Set`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Key bytes.
    pub key: Vec<u8>,
    /// What belongs to it.
    pub data: ElementData,
}

/// What belongs to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ElementData {
    /// Nothing.
    None,
    /// Nothing, and the key is the first one *after* a range.
    RangeEnd,
    /// A value.
    Value(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}

impl Chain {
    /// A chain called by the kernel.
    pub fn hooked(name: &str, chain_type: ChainType, point: HookPoint, priority: i32) -> Self {
        Self { name: name.to_owned(), hook: Some(Hook { chain_type, point, priority }), rules: Vec::new() }
    }

    /// Appends a rule.
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }
}

/// Builders: each appends the expressions of one clause of `nft`'s language. Those that load use register 0.
impl Rule {
    /// A rule without expressions, which matches everything and does nothing.
    pub fn new(comment: impl Into<String>) -> Self {
        Self { comment: comment.into(), expressions: Vec::new() }
    }

    /// Appends one expression.
    pub fn with(mut self, expression: Expr) -> Self {
        self.expressions.push(expression);
        self
    }

    /// `meta KEY == VALUE`, value in the key's length and order.
    pub fn meta_is(self, key: Meta, value: impl Into<Vec<u8>>) -> Self {
        self.with(Expr::Meta { key, to: Reg(0) }).with(Expr::Compare {
            reg: Reg(0),
            how: Compare::Equal,
            value: value.into(),
        })
    }

    /// `iifname` or `oifname` is `name`.
    pub fn interface_is(self, direction: Meta, name: &str) -> Self {
        let mut value = name.as_bytes().to_vec();
        value.resize(16, 0);
        self.meta_is(direction, value)
    }

    /// `meta l4proto PROTOCOL`.
    pub fn protocol_is(self, protocol: u8) -> Self {
        self.meta_is(Meta::Protocol, [protocol])
    }

    /// `th dport @set`; check the protocol first.
    pub fn destination_port_in(self, set: &str) -> Self {
        self.with(destination_port(Reg(0))).with(Expr::Lookup {
            set: set.to_owned(),
            key: Reg(0),
            invert: false,
            value: None,
        })
    }

    /// `ct state new`.
    pub fn new_connection(self) -> Self {
        self.with(Expr::ConnectionState { to: Reg(0) }).any_bit(CT_STATE_NEW)
    }

    /// `ct status dnat`.
    pub fn destination_rewritten(self) -> Self {
        self.with(Expr::ConnectionStatus { to: Reg(0) }).any_bit(CT_STATUS_DNAT)
    }

    fn any_bit(self, bits: u32) -> Self {
        self.with(Expr::Bitwise { reg: Reg(0), mask: bits.to_ne_bytes().into(), xor: vec![0; 4] }).with(Expr::Compare {
            reg: Reg(0),
            how: Compare::NotEqual,
            value: vec![0; 4],
        })
    }

    /// `accept`.
    pub fn accept(self) -> Self {
        self.with(Expr::Verdict(Verdict::Accept))
    }

    /// `redirect to :PORT`; check the protocol first.
    pub fn redirect_to(self, port: u16) -> Self {
        self.with(Expr::Immediate { to: Reg(0), value: port.to_be_bytes().into() })
            .with(Expr::Redirect { port: Reg(0) })
    }
}

/// Loads the destination port of TCP or UDP (2 bytes, network order).
pub fn destination_port(to: Reg) -> Expr {
    Expr::Payload { header: Header::Transport, offset: 2, len: 2, to }
}

/// Loads the source address of an IPv4 packet (4 bytes, network order).
pub fn ipv4_source(to: Reg) -> Expr {
    Expr::Payload { header: Header::Network, offset: 12, len: 4, to }
}

/// Loads the destination address of an IPv4 packet (4 bytes, network order).
pub fn ipv4_destination(to: Reg) -> Expr {
    Expr::Payload { header: Header::Network, offset: 16, len: 4, to }
}

/// Loads the source address of an IPv6 packet (16 bytes, network order; four registers).
pub fn ipv6_source(to: Reg) -> Expr {
    Expr::Payload { header: Header::Network, offset: 8, len: 16, to }
}

/// Loads the destination address of an IPv6 packet (16 bytes, network order; four registers).
pub fn ipv6_destination(to: Reg) -> Expr {
    Expr::Payload { header: Header::Network, offset: 24, len: 16, to }
}

/// Joins parts into a concatenated key or value: each starts on a register, so each is padded to 4 bytes.
pub fn concat(parts: &[&[u8]]) -> Vec<u8> {
    let mut joined = Vec::new();
    for part in parts {
        joined.extend_from_slice(part);
        joined.resize(joined.len().next_multiple_of(4), 0);
    }
    joined
}

impl Type {
    /// Bytes of a value alone; in a concatenation it is padded to 4.
    fn len(self) -> usize {
        match self {
            Self::Ipv4Address | Self::Number => 4,
            Self::Ipv6Address => 16,
            Self::Port => 2,
            Self::Protocol => 1,
        }
    }
}

impl Element {
    /// A key alone.
    pub fn key(key: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into(), data: ElementData::None }
    }

    /// A key and its value.
    pub fn value(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into(), data: ElementData::Value(value.into()) }
    }

    /// A range of ports, ends included.
    pub fn range(low: u16, high: u16) -> impl Iterator<Item = Self> {
        // The kernel marks the first key after a range; a range up to the last key has none.
        let end =
            high.checked_add(1).map(|after| Self { key: after.to_be_bytes().into(), data: ElementData::RangeEnd });
        std::iter::once(Self::key(low.to_be_bytes())).chain(end)
    }

    /// An IPv4 address alone.
    pub fn address(address: Ipv4Addr) -> Self {
        Self::key(address.octets())
    }
}

#[cfg(test)]
mod tests;
