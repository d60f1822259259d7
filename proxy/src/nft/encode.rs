//! Writes a [`Table`] as one netlink batch: pure, bytes out.
//!
//! A batch is a run of netlink messages between two markers that nf_tables executes as one transaction. Lengths and
//! types of messages and attributes are in host order, numbers inside attributes big-endian (`linux/netlink.h`,
//! `linux/netfilter/nfnetlink.h`, `linux/netfilter/nf_tables.h`).

use super::{
    Chain, ChainType, Element, ElementData, Expr, Family, Reg, Reject, Rule, Set, SetKind, Table, Type, Verdict,
};

/// `NFNL_SUBSYS_NFTABLES`.
pub(super) const SUBSYSTEM: u16 = 10;
/// Messages of nf_tables, `enum nf_tables_msg_types`.
pub(super) mod message {
    pub(in crate::nft) const NEW_TABLE: u16 = 0;
    pub(in crate::nft) const DEL_TABLE: u16 = 2;
    pub(in crate::nft) const NEW_CHAIN: u16 = 3;
    pub(in crate::nft) const NEW_RULE: u16 = 6;
    pub(in crate::nft) const GET_RULE: u16 = 7;
    pub(in crate::nft) const NEW_SET: u16 = 9;
    pub(in crate::nft) const NEW_ELEMENTS: u16 = 12;
}
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFT_SET_CONSTANT`, `NFT_SET_INTERVAL`, `NFT_SET_MAP`.
const SET_CONSTANT: u32 = 0x2;
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
/// `NFT_DATA_VERDICT` as a set's data type.
const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;
/// An attribute's length is a u16: lists of elements are split into messages well below it.
const ELEMENTS_PER_MESSAGE: usize = 400;
/// `nft` refuses longer comments.
const MAX_COMMENT: usize = 127;

/// Messages that take effect together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    bytes: Vec<u8>,
    /// What each message is about, for errors; its index is the message's sequence number.
    subjects: Vec<String>,
}

impl Table {
    /// The batch that puts this table in place of whatever stood under its name.
    pub fn replace(&self) -> Batch {
        let mut batch = Batch::begin();
        // Deleting what isn't there is an error, creating what is there is not.
        batch.table(self, message::NEW_TABLE);
        batch.table(self, message::DEL_TABLE);
        batch.table(self, message::NEW_TABLE);
        for chain in &self.chains {
            batch.chain(self, chain);
        }
        for (set, id) in self.sets.iter().zip(1..) {
            batch.set(self, set, id);
            for elements in set.elements.chunks(ELEMENTS_PER_MESSAGE) {
                batch.elements(self, set, id, elements);
            }
        }
        for chain in &self.chains {
            for rule in &chain.rules {
                batch.rule(self, chain, rule);
            }
        }
        batch.end()
    }

    /// The batch after which nothing stands under this table's name.
    pub fn remove(&self) -> Batch {
        let mut batch = Batch::begin();
        batch.table(self, message::NEW_TABLE);
        batch.table(self, message::DEL_TABLE);
        batch.end()
    }
}

impl Batch {
    /// What goes to the kernel in one datagram.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the message with this sequence number is about.
    pub fn subject(&self, sequence: u32) -> Option<&str> {
        self.subjects.get(usize::try_from(sequence).ok()?).map(String::as_str)
    }

    /// Sequence number of the last message, the one the kernel acknowledges.
    pub fn last_sequence(&self) -> u32 {
        // The end marker follows the last message; a batch never holds 2³² messages.
        (self.subjects.len() as u32).saturating_sub(2)
    }

    fn begin() -> Self {
        let mut batch = Self { bytes: Vec::new(), subjects: Vec::new() };
        batch.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, "the transaction".to_owned(), |_| {});
        batch
    }

    fn end(mut self) -> Self {
        self.acknowledge_last();
        self.message(BATCH_END, 0, 0, SUBSYSTEM, "the end of the transaction".to_owned(), |_| {});
        self
    }

    /// Sets `NLM_F_ACK` on the message just written.
    fn acknowledge_last(&mut self) {
        let mut at = 0;
        let mut last = 0;
        while let Some(length) = self.bytes.get(at..at + 4) {
            last = at;
            at += u32::from_ne_bytes([length[0], length[1], length[2], length[3]]) as usize;
        }
        if let Some(flags) = self.bytes.get_mut(last + 6..last + 8) {
            let with_ack = u16::from_ne_bytes([flags[0], flags[1]]) | libc::NLM_F_ACK as u16;
            flags.copy_from_slice(&with_ack.to_ne_bytes());
        }
    }

    fn message(
        &mut self,
        kind: u16,
        flags: i32,
        family: u8,
        resource: u16,
        subject: String,
        body: impl FnOnce(&mut Attributes<'_>),
    ) {
        let sequence = self.subjects.len() as u32;
        write_message(&mut self.bytes, kind, flags | libc::NLM_F_REQUEST, sequence, family, resource, body);
        self.subjects.push(subject);
    }

    fn nft(&mut self, kind: u16, flags: i32, family: Family, subject: String, body: impl FnOnce(&mut Attributes<'_>)) {
        self.message(SUBSYSTEM << 8 | kind, flags, family as u8, 0, subject, body);
    }

    fn table(&mut self, table: &Table, kind: u16) {
        let flags = if kind == message::NEW_TABLE { libc::NLM_F_CREATE } else { 0 };
        self.nft(kind, flags, table.family, format!("table {}", table.name), |a| {
            a.text(1, &table.name);
            if kind == message::NEW_TABLE {
                a.number(2, 0);
            }
        });
    }

    fn chain(&mut self, table: &Table, chain: &Chain) {
        let subject = format!("chain {} of table {}", chain.name, table.name);
        self.nft(message::NEW_CHAIN, libc::NLM_F_CREATE, table.family, subject, |a| {
            a.text(1, &table.name);
            a.text(3, &chain.name);
            if let Some(hook) = chain.hook {
                a.nested(4, |a| {
                    a.number(1, hook.point as u32);
                    a.number(2, hook.priority as u32);
                });
                a.number(5, libc::NF_ACCEPT as u32);
                a.text(
                    7,
                    match hook.chain_type {
                        ChainType::Filter => "filter",
                        ChainType::Nat => "nat",
                    },
                );
            }
        });
    }

    fn set(&mut self, table: &Table, set: &Set, id: u32) {
        let subject = format!("set {} of table {}", set.name, table.name);
        self.nft(message::NEW_SET, libc::NLM_F_CREATE, table.family, subject, |a| {
            let kind_flags = match set.kind {
                SetKind::Keys => 0,
                SetKind::Ranges => SET_INTERVAL,
                SetKind::Values(_) | SetKind::Verdicts => SET_MAP,
            };
            a.text(1, &table.name);
            a.text(2, &set.name);
            a.number(3, SET_CONSTANT | kind_flags);
            a.number(4, type_id(&set.key));
            a.number(5, type_len(&set.key));
            match &set.kind {
                SetKind::Values(types) => {
                    a.number(6, type_id(types));
                    a.number(7, type_len(types));
                }
                SetKind::Verdicts => a.number(6, DATA_TYPE_VERDICT),
                SetKind::Keys | SetKind::Ranges => {}
            }
            // Knowing the size lets the kernel take its fastest kind of set.
            a.nested(9, |a| a.number(1, set.elements.len().max(1) as u32));
            a.number(10, id);
        });
    }

    fn elements(&mut self, table: &Table, set: &Set, id: u32, elements: &[Element]) {
        let subject = format!("elements of set {} of table {}", set.name, table.name);
        self.nft(message::NEW_ELEMENTS, libc::NLM_F_CREATE, table.family, subject, |a| {
            a.text(1, &table.name);
            a.text(2, &set.name);
            a.number(4, id);
            a.nested(3, |a| {
                for element in elements {
                    a.nested(1, |a| write_element(a, element));
                }
            });
        });
    }

    fn rule(&mut self, table: &Table, chain: &Chain, rule: &Rule) {
        let subject = format!("rule \"{}\" of chain {} of table {}", rule.comment, chain.name, table.name);
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        self.nft(message::NEW_RULE, flags, table.family, subject, |a| {
            a.text(1, &table.name);
            a.text(2, &chain.name);
            a.nested(4, |a| {
                for expression in &rule.expressions {
                    a.nested(1, |a| write_expression(a, expression, table.family));
                }
            });
            a.bytes(7, &comment(&rule.comment));
        });
    }
}

/// Writes one netlink message with nfnetlink's own small header.
pub(super) fn write_message(
    out: &mut Vec<u8>,
    kind: u16,
    flags: i32,
    sequence: u32,
    family: u8,
    resource: u16,
    body: impl FnOnce(&mut Attributes<'_>),
) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(flags as u16).to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
    body(&mut Attributes { out });
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Appends attributes: length, type, value, padding to 4 bytes.
pub(super) struct Attributes<'a> {
    out: &'a mut Vec<u8>,
}

impl Attributes<'_> {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.write(kind, |out| out.extend_from_slice(value));
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.write(kind, |out| {
            out.extend_from_slice(value.as_bytes());
            out.push(0);
        });
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn register(&mut self, kind: u16, reg: Reg) {
        // NFT_REG32_00 is 8.
        self.number(kind, 8 + u32::from(reg.0));
    }

    fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        self.write(kind | libc::NLA_F_NESTED as u16, |out| body(&mut Attributes { out }));
    }

    /// A value wrapped as `NFTA_DATA_VALUE`.
    fn value(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |a| a.bytes(1, value));
    }

    fn write(&mut self, kind: u16, value: impl FnOnce(&mut Vec<u8>)) {
        let start = self.out.len();
        self.out.extend_from_slice(&[0; 2]);
        self.out.extend_from_slice(&kind.to_ne_bytes());
        value(self.out);
        let length = self.out.len() - start;
        debug_assert!(u16::try_from(length).is_ok(), "netlink attribute of {length} bytes");
        self.out[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

/// A comment in the form `nft` keeps it in a rule's user data: type 0, length, text, NUL.
fn comment(text: &str) -> Vec<u8> {
    let text = shortened(text);
    let mut data = vec![0, text.len() as u8 + 1];
    data.extend_from_slice(text.as_bytes());
    data.push(0);
    data
}

/// As much of a comment as `nft` allows.
pub(super) fn shortened(comment: &str) -> &str {
    let mut end = comment.len().min(MAX_COMMENT);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    &comment[..end]
}

/// `nft`'s numbers of types; a concatenation is six bits each.
fn type_id(types: &[Type]) -> u32 {
    types.iter().fold(0, |id, t| {
        id << 6
            | match t {
                Type::Ipv4Address => 7,
                Type::Ipv6Address => 8,
                Type::Protocol => 12,
                Type::Port => 13,
                Type::Number => 19,
            }
    })
}

fn type_len(types: &[Type]) -> u32 {
    match types {
        [one] => one.len() as u32,
        many => many.iter().map(|t| t.len().next_multiple_of(4) as u32).sum(),
    }
}

fn write_element(a: &mut Attributes<'_>, element: &Element) {
    a.value(1, &element.key);
    match &element.data {
        ElementData::None => {}
        ElementData::RangeEnd => a.number(3, 1),
        ElementData::Value(value) => a.value(2, value),
        ElementData::Verdict(verdict) => a.nested(2, |a| write_verdict(a, verdict)),
    }
}

/// `NFTA_DATA_VERDICT`.
fn write_verdict(a: &mut Attributes<'_>, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Drop => (libc::NF_DROP, None),
        Verdict::Accept => (libc::NF_ACCEPT, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    a.nested(2, |a| {
        a.number(1, code as u32);
        if let Some(chain) = chain {
            a.text(2, chain);
        }
    });
}

impl Expr {
    /// The kernel's name for it.
    pub(super) fn kernel_name(&self) -> &'static str {
        match self {
            Self::Meta { .. } => "meta",
            Self::Payload { .. } => "payload",
            Self::ConnectionState { .. } | Self::ConnectionStatus { .. } => "ct",
            Self::Bitwise { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Range { .. } => "range",
            Self::Lookup { .. } | Self::VerdictMap { .. } => "lookup",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Random { .. } => "numgen",
            Self::Hash { .. } => "hash",
            Self::Redirect { .. } => "redir",
            Self::DestinationNat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Reject(_) => "reject",
        }
    }
}

fn write_expression(a: &mut Attributes<'_>, expression: &Expr, family: Family) {
    a.text(1, expression.kernel_name());
    a.nested(2, |a| match expression {
        Expr::Meta { key, to } => {
            a.register(1, *to);
            a.number(2, *key as u32);
        }
        Expr::Payload { header, offset, len, to } => {
            a.register(1, *to);
            a.number(2, *header as u32);
            a.number(3, *offset);
            a.number(4, *len);
        }
        Expr::ConnectionState { to } => {
            a.register(1, *to);
            a.number(2, 0);
        }
        Expr::ConnectionStatus { to } => {
            a.register(1, *to);
            a.number(2, 2);
        }
        Expr::Bitwise { reg, mask, xor } => {
            a.register(1, *reg);
            a.register(2, *reg);
            a.number(3, mask.len() as u32);
            a.value(4, mask);
            a.value(5, xor);
        }
        Expr::Compare { reg, how, value } => {
            a.register(1, *reg);
            a.number(2, *how as u32);
            a.value(3, value);
        }
        Expr::Range { reg, low, high } => {
            a.register(1, *reg);
            a.number(2, 0);
            a.value(3, low);
            a.value(4, high);
        }
        Expr::Lookup { set, key, invert, value } => {
            a.text(1, set);
            a.register(2, *key);
            if let Some(value) = value {
                a.register(3, *value);
            }
            if *invert {
                a.number(5, 1);
            }
        }
        Expr::VerdictMap { map, key } => {
            a.text(1, map);
            a.register(2, *key);
            // NFT_REG_VERDICT.
            a.number(3, 0);
        }
        Expr::Immediate { to, value } => {
            a.register(1, *to);
            a.value(2, value);
        }
        Expr::Verdict(verdict) => {
            a.number(1, 0);
            a.nested(2, |a| write_verdict(a, verdict));
        }
        decide => write_action(a, decide, family),
    });
}

/// The second half of [`write_expression`]: numbers drawn, and what rewrites or refuses packets.
fn write_action(a: &mut Attributes<'_>, expression: &Expr, family: Family) {
    match expression {
        Expr::Random { to, modulus } => {
            a.register(1, *to);
            a.number(2, *modulus);
            a.number(3, 1);
            a.number(4, 0);
        }
        Expr::Hash { from, len, to, modulus } => {
            a.register(1, *from);
            a.register(2, *to);
            a.number(3, *len);
            a.number(4, *modulus);
            a.number(5, 0);
            a.number(6, 0);
            a.number(7, 0);
        }
        Expr::Redirect { port } => a.register(1, *port),
        Expr::DestinationNat { address, port } => {
            a.number(1, 1);
            let family = if family == Family::Ipv6 { libc::NFPROTO_IPV6 } else { libc::NFPROTO_IPV4 };
            a.number(2, family as u32);
            a.register(3, *address);
            a.register(5, *port);
        }
        Expr::Reject(how) => match (how, family) {
            (Reject::TcpReset, _) => {
                a.number(1, 1);
                a.bytes(2, &[0]);
            }
            (Reject::PortUnreachable, Family::Ipv4) => {
                a.number(1, 0);
                a.bytes(2, &[3]);
            }
            // ICMPV6_PORT_UNREACH.
            (Reject::PortUnreachable, Family::Ipv6) => {
                a.number(1, 0);
                a.bytes(2, &[4]);
            }
            (Reject::PortUnreachable, Family::Inet) => {
                a.number(1, 2);
                a.bytes(2, &[1]);
            }
        },
        // Masquerade has no attributes; everything else is written by the caller.
        _ => {}
    }
}
