//! The thin part: sends a [`Batch`] to the kernel, turns its answers into text, reads rules back.

use super::encode::{SUBSYSTEM, message, shortened, write_message};
use super::{Batch, Table};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket,
    sockopt,
};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};

/// One netlink datagram from the kernel fits (it sends at most 32 KiB when dumping, an error quotes its message).
const RECEIVE_BUFFER: usize = 128 * 1024;
/// Datagrams read for one request before giving up on a kernel that doesn't stop.
const MAX_DATAGRAMS: usize = 4096;
/// Messages the kernel sends that are not nf_tables' own, `linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Why the kernel's rules are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The process may not change rules here.
    #[error(
        "not permitted to set nftables rules: CAP_NET_ADMIN is missing in the user namespace of this network namespace"
    )]
    NotPermitted,
    /// The kernel has no nf_tables.
    #[error("the kernel has no nf_tables ({0})")]
    NoNfTables(Errno),
    /// The kernel refused one message of a batch; nothing of the batch took effect.
    #[error("the kernel refused {subject}: {errno}{}", explain(*errno))]
    Refused {
        /// Table, chain, set or rule.
        subject: String,
        /// What it said.
        errno: Errno,
    },
    /// Sending or receiving failed.
    #[error("{what} over netlink: {errno}")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// What came back.
        errno: Errno,
    },
    /// The kernel neither refused nor acknowledged.
    #[error("the kernel did not acknowledge {0}")]
    Unacknowledged(String),
    /// The kernel holds something else than what it acknowledged.
    #[error("table {table} does not hold what was set: chain {chain} has {found:?}, expected {expected:?}")]
    Mismatch {
        /// Table.
        table: String,
        /// First chain that differs.
        chain: String,
        /// What it has.
        found: Vec<String>,
        /// What it should have.
        expected: Vec<String>,
    },
}

fn explain(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT => {
            " (the kernel lacks this kind of chain, set or expression, or a name in it is not defined)"
        }
        _ => "",
    }
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
}

/// A rule as the kernel has it: chain, comment, names of its expressions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InstalledRule {
    /// Table it belongs to.
    pub table: String,
    /// Chain it belongs to.
    pub chain: String,
    /// Its comment, and its expressions by the kernel's names: `comment: meta cmp immediate`.
    pub summary: String,
}

impl Netlink {
    /// Opens a socket; it belongs to the network namespace the calling thread is in.
    pub fn open() -> Result<Self, NftError> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
                .map_err(|errno| match errno {
                    Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => NftError::NoNfTables(errno),
                    errno => NftError::Socket { what: "opening a socket", errno },
                })?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))
            .map_err(|errno| NftError::Socket { what: "binding a socket", errno })?;
        Ok(Self { socket })
    }

    /// Executes a batch: all of it or nothing.
    pub fn apply(&self, batch: &Batch) -> Result<(), NftError> {
        self.send(batch.bytes())?;
        let mut acknowledged = false;
        let mut refused = None;
        // The kernel has executed the batch and queued its answers when sending returns: what isn't there won't come.
        self.receive(MsgFlags::MSG_DONTWAIT, |answer| {
            if let Answer::Result { sequence, errno } = answer {
                match errno {
                    None => acknowledged |= sequence == batch.last_sequence(),
                    Some(errno) => {
                        refused.get_or_insert((sequence, errno));
                    }
                }
            }
            true
        })?;
        match refused {
            None if acknowledged => Ok(()),
            None => Err(NftError::Unacknowledged(batch.subject(batch.last_sequence()).unwrap_or_default().to_owned())),
            Some((_, Errno::EPERM)) => Err(NftError::NotPermitted),
            // Sequence 0 is the transaction itself.
            Some((0, errno @ (Errno::EOPNOTSUPP | Errno::EINVAL))) => Err(NftError::NoNfTables(errno)),
            Some((sequence, errno)) => Err(NftError::Refused {
                subject: batch.subject(sequence).unwrap_or("an unknown message").to_owned(),
                errno,
            }),
        }
    }

    /// Puts `table` in place and reads back that the kernel holds its rules.
    pub fn replace(&self, table: &Table) -> Result<(), NftError> {
        self.apply(&table.replace())?;
        self.verify(table)
    }

    /// Compares the kernel's rules of `table` with what they should be.
    pub fn verify(&self, table: &Table) -> Result<(), NftError> {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for rule in self.rules(table)? {
            found.entry(rule.chain).or_default().push(rule.summary);
        }
        for chain in &table.chains {
            let expected: Vec<String> = chain.rules.iter().map(super::Rule::summary).collect();
            let found = found.remove(&chain.name).unwrap_or_default();
            if found != expected {
                return Err(NftError::Mismatch {
                    table: table.name.clone(),
                    chain: chain.name.clone(),
                    found,
                    expected,
                });
            }
        }
        Ok(())
    }

    /// The rules the kernel has in `table`; none if there is no such table.
    pub fn rules(&self, table: &Table) -> Result<Vec<InstalledRule>, NftError> {
        let mut request = Vec::new();
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        write_message(&mut request, SUBSYSTEM << 8 | message::GET_RULE, flags, 1, table.family as u8, 0, |a| {
            a.text(1, &table.name);
        });
        self.send(&request)?;
        let mut rules = Vec::new();
        let mut failed = None;
        self.receive(MsgFlags::empty(), |answer| match answer {
            Answer::Rule(rule) => {
                if rule.table == table.name {
                    rules.push(rule);
                }
                true
            }
            Answer::Result { errno, .. } => {
                failed = errno;
                false
            }
            Answer::Done => false,
        })?;
        match failed {
            None | Some(Errno::ENOENT) => Ok(rules),
            Some(Errno::EPERM) => Err(NftError::NotPermitted),
            Some(errno) => Err(NftError::Refused { subject: format!("listing table {}", table.name), errno }),
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NftError> {
        // A batch must fit into one datagram. Beyond the default buffer, ask for more: with privilege beyond the limit.
        let wanted = bytes.len().saturating_mul(2);
        if setsockopt(&self.socket, sockopt::SndBufForce, &wanted).is_err() {
            setsockopt(&self.socket, sockopt::SndBuf, &wanted)
                .map_err(|errno| NftError::Socket { what: "enlarging the send buffer", errno })?;
        }
        sendto(self.socket.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map_err(
            |errno| match errno {
                Errno::EPERM => NftError::NotPermitted,
                Errno::ECONNREFUSED => NftError::NoNfTables(errno),
                errno => NftError::Socket { what: "sending rules", errno },
            },
        )?;
        Ok(())
    }

    /// Hands each answer to `take` until it returns false or, without blocking, nothing is left.
    fn receive(&self, flags: MsgFlags, mut take: impl FnMut(Answer) -> bool) -> Result<(), NftError> {
        let mut buffer = vec![0; RECEIVE_BUFFER];
        for _ in 0..MAX_DATAGRAMS {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, flags) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(NftError::Socket { what: "receiving an answer", errno }),
            };
            for answer in answers(&buffer[..length]) {
                if !take(answer) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl super::Rule {
    /// Its comment and its expressions by the kernel's names, comparable with [`InstalledRule::summary`].
    pub(super) fn summary(&self) -> String {
        let mut summary = format!("{}:", shortened(&self.comment));
        for expression in &self.expressions {
            summary.push(' ');
            summary.push_str(expression.kernel_name());
        }
        summary
    }
}

/// A message of the kernel, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Message `sequence` succeeded or failed.
    Result {
        /// Which.
        sequence: u32,
        /// Why it failed.
        errno: Option<Errno>,
    },
    /// End of a listing.
    Done,
    /// A listed rule.
    Rule(InstalledRule),
}

/// Reads the messages of one datagram; what makes no sense ends it.
pub fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some((header, _)) = bytes.split_at_checked(16) {
        let length = u32_at(header, 0) as usize;
        let Some(body) = bytes.get(16..length) else { break };
        match u16::from_ne_bytes([header[4], header[5]]) {
            NLMSG_ERROR if body.len() >= 4 => {
                let code = (u32_at(body, 0) as i32).wrapping_neg();
                let errno = (code != 0).then(|| Errno::from_raw(code));
                answers.push(Answer::Result { sequence: u32_at(header, 8), errno });
            }
            NLMSG_DONE => answers.push(Answer::Done),
            kind if kind == SUBSYSTEM << 8 | message::NEW_RULE && body.len() >= 4 => {
                answers.push(Answer::Rule(installed_rule(&body[4..])));
            }
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    answers
}

fn installed_rule(bytes: &[u8]) -> InstalledRule {
    let mut rule = InstalledRule::default();
    let (mut comment, mut expressions) = (String::new(), String::new());
    for (kind, value) in attributes(bytes) {
        match kind {
            1 => rule.table = text(value),
            2 => rule.chain = text(value),
            4 => {
                for (_, expression) in attributes(value) {
                    let name = attributes(expression).find(|(kind, _)| *kind == 1);
                    expressions.push(' ');
                    expressions.push_str(&name.map(|(_, name)| text(name)).unwrap_or_default());
                }
            }
            // User data: type 0 is a comment.
            7 if value.first() == Some(&0) => comment = text(value.get(2..).unwrap_or_default()),
            _ => {}
        }
    }
    rule.summary = format!("{comment}:{expressions}");
    rule
}

/// Splits a run of netlink attributes into types and values.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_at_checked(4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & libc::NLA_TYPE_MASK as u16;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// The host-order number at `at`; the caller has checked the length.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}
