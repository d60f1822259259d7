//! What a tap is interested in, and the one way to write it: terms `key=value` between spaces, all of which must hold.
//!
//! ```text
//! method=GET,HEAD path=/products/* status=5xx header=x-user=bob slower-than=200ms
//! ```
//!
//! A value with spaces stands in double quotes, in which a backslash takes the next character as it is. A term whose
//! [`Term::parse`] fails says at which character, what was expected there, and gives an example.

mod text;

use super::pattern::{Glob, PathPattern};
use crate::MeshError;
use crate::golden::{Carried, Direction};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// A filter longer than this is refused.
pub const MAX_BYTES: usize = 4096;

/// What must hold of a request or connection; whatever is empty holds of all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TapFilter {
    /// Side the proxy stands on.
    pub direction: Option<Direction>,
    /// What is carried: one of these.
    pub protocols: Vec<Carried>,
    /// Method: one of these, in upper case.
    pub methods: Vec<String>,
    /// Path without query.
    pub path: Option<PathPattern>,
    /// Route it is counted under.
    pub route: Option<Glob>,
    /// Fields of the request: all of these.
    pub headers: Vec<HeaderMatch>,
    /// HTTP status: within one of these.
    pub statuses: Vec<Statuses>,
    /// gRPC status: one of these.
    pub grpc_statuses: Vec<u16>,
    /// Error of the mesh: one of these.
    pub errors: Vec<MeshError>,
    /// Took longer than this.
    pub slower_than: Option<Duration>,
    /// Identity the other end proved.
    pub identity: Option<Glob>,
    /// The client.
    pub from: Option<Place>,
    /// The server.
    pub to: Option<Place>,
}

/// A field of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Name, in lower case.
    pub name: String,
    /// What one of its values is; `None`: anything.
    pub value: Option<Glob>,
}

/// A range of statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statuses {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// Where traffic comes from or goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An address, or all that begin with the same `bits`.
    Network {
        /// The address.
        address: IpAddr,
        /// How many bits of it count.
        bits: u8,
    },
    /// A resource of the cluster; control knows its addresses.
    Resource {
        /// Its namespace; `None`: the tap's own.
        namespace: Option<String>,
        /// Its kind, one of [`KINDS`].
        kind: String,
        /// Its name.
        name: String,
    },
}

/// The kinds of resources that a place can be.
pub const KINDS: [&str; 9] =
    ["deployment", "statefulset", "daemonset", "replicaset", "job", "cronjob", "pod", "service", "namespace"];

/// gRPC statuses by their numbers.
pub const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "Cancelled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// What is wrong with a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at character {}: expected {expected}{}, e.g. {example}", .at + 1, Found(.found))]
pub struct FilterError {
    /// Where, in characters from the beginning.
    pub at: usize,
    /// What should stand there.
    pub expected: String,
    /// What stands there.
    pub found: String,
    /// How it can look.
    pub example: &'static str,
}

struct Found<'a>(&'a str);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str(", found the end") } else { write!(f, ", found `{}`", self.0) }
    }
}

/// A kind of term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// `direction=`
    Direction,
    /// `protocol=`
    Protocol,
    /// `method=`
    Method,
    /// `path=`
    Path,
    /// `route=`
    Route,
    /// `header=`
    Header,
    /// `status=`
    Status,
    /// `grpc-status=`
    GrpcStatus,
    /// `error=`
    Error,
    /// `slower-than=`
    SlowerThan,
    /// `identity=`
    Identity,
    /// `from=`
    From,
    /// `to=`
    To,
}

/// Every term: its key, and how it can look.
pub const TERMS: [(Term, &str, &str); 13] = [
    (Term::Direction, "direction", "direction=inbound"),
    (Term::Protocol, "protocol", "protocol=http,grpc"),
    (Term::Method, "method", "method=GET,POST"),
    (Term::Path, "path", "path=/products/*"),
    (Term::Route, "route", "route=/products/{id}"),
    (Term::Header, "header", "header=x-user=bob"),
    (Term::Status, "status", "status=5xx,404"),
    (Term::GrpcStatus, "grpc-status", "grpc-status=Unavailable"),
    (Term::Error, "error", "error=no-endpoints"),
    (Term::SlowerThan, "slower-than", "slower-than=200ms"),
    (Term::Identity, "identity", "identity=*/ns/shop/sa/web"),
    (Term::From, "from", "from=deployment/web"),
    (Term::To, "to", "to=service/cart"),
];

/// A part of a value, and at which character of it it begins.
type Part<'a> = (usize, &'a str);

impl Term {
    fn example(self) -> &'static str {
        TERMS.iter().find(|(term, ..)| *term == self).map_or("", |(.., example)| example)
    }

    fn wrong(self, part: Part<'_>, expected: impl Into<String>) -> FilterError {
        FilterError { at: part.0, expected: expected.into(), found: part.1.to_owned(), example: self.example() }
    }

    /// Reads the value of this term into a filter. Positions of errors count from the value's beginning.
    pub fn parse(self, value: &str, into: &mut TapFilter) -> Result<(), FilterError> {
        let whole = (0, value);
        if value.is_empty() {
            return Err(self.wrong(whole, "a value"));
        }
        let once = |given: bool| if given { Err(self.wrong(whole, "this term only once")) } else { Ok(()) };
        match self {
            Term::Direction => {
                once(into.direction.is_some())?;
                let direction = word(value, &[("inbound", Direction::Inbound), ("outbound", Direction::Outbound)]);
                into.direction = Some(direction.ok_or_else(|| self.wrong(whole, "inbound or outbound"))?);
            }
            Term::Protocol => {
                once(!into.protocols.is_empty())?;
                let known = [("http", Carried::Http), ("grpc", Carried::Grpc), ("tcp", Carried::Tcp)];
                let read = |part: Part<'_>| word(part.1, &known).ok_or_else(|| self.wrong(part, "http, grpc or tcp"));
                into.protocols = list(value).map(read).collect::<Result<_, _>>()?;
            }
            Term::Method => {
                once(!into.methods.is_empty())?;
                let read = |part: Part<'_>| match is_token(part.1) {
                    true => Ok(part.1.to_ascii_uppercase()),
                    false => Err(self.wrong(part, "a method")),
                };
                into.methods = list(value).map(read).collect::<Result<_, _>>()?;
            }
            Term::Path => {
                once(into.path.is_some())?;
                if !value.starts_with(['/', '*']) {
                    return Err(self.wrong(whole, "a path that begins with / or *"));
                }
                if let Some(at) = value.find(['?', '#']) {
                    let at = (value[..at].chars().count(), &value[at..]);
                    return Err(self.wrong(at, "the end of the path (queries are not looked at)"));
                }
                into.path = Some(PathPattern::new(value));
            }
            Term::Route => {
                once(into.route.is_some())?;
                into.route = Some(Glob::new(value));
            }
            Term::Header => into.headers.push(self.header(value)?),
            Term::Status => {
                once(!into.statuses.is_empty())?;
                into.statuses = list(value).map(|part| self.statuses(part)).collect::<Result<_, _>>()?;
            }
            Term::GrpcStatus => {
                once(!into.grpc_statuses.is_empty())?;
                into.grpc_statuses = list(value).map(|part| self.grpc_status(part)).collect::<Result<_, _>>()?;
            }
            Term::Error => {
                once(!into.errors.is_empty())?;
                into.errors = self.errors(value)?;
            }
            Term::SlowerThan => {
                once(into.slower_than.is_some())?;
                let duration = duration(value).ok_or_else(|| self.wrong(whole, "a duration in us, ms, s or m"))?;
                into.slower_than = Some(duration);
            }
            Term::Identity => {
                once(into.identity.is_some())?;
                into.identity = Some(Glob::new(value));
            }
            Term::From => {
                once(into.from.is_some())?;
                into.from = Some(self.place(value)?);
            }
            Term::To => {
                once(into.to.is_some())?;
                into.to = Some(self.place(value)?);
            }
        }
        Ok(())
    }

    fn header(self, value: &str) -> Result<HeaderMatch, FilterError> {
        let (name, pattern) = match value.split_once('=') {
            Some((name, pattern)) => (name, Some(Glob::new(pattern))),
            None => (value, None),
        };
        if !is_token(name) {
            return Err(self.wrong((0, name), "the name of a header field"));
        }
        Ok(HeaderMatch { name: name.to_ascii_lowercase(), value: pattern })
    }

    fn statuses(self, part: Part<'_>) -> Result<Statuses, FilterError> {
        let wrong = || self.wrong(part, "a status (503), a class of them (5xx) or a range (500-504)");
        let one = |text: &str| text.parse().ok().filter(|status| (100..1000).contains(status));
        if let [class @ b'1'..=b'9', x, y] = part.1.as_bytes()
            && [x, y].into_iter().all(|digit| digit.eq_ignore_ascii_case(&b'x'))
        {
            let first = u16::from(class - b'0') * 100;
            return Ok(Statuses { first, last: first + 99 });
        }
        let (first, last) = part.1.split_once('-').unwrap_or((part.1, part.1));
        match (one(first), one(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Statuses { first, last }),
            _ => Err(wrong()),
        }
    }

    fn grpc_status(self, part: Part<'_>) -> Result<u16, FilterError> {
        let plain = |text: &str| text.replace('_', "").to_ascii_lowercase();
        let by_name = GRPC_STATUSES.iter().position(|name| plain(name) == plain(part.1));
        let by_number = || part.1.parse().ok().filter(|number| *number < GRPC_STATUSES.len());
        let number = by_name.or_else(by_number).and_then(|number| u16::try_from(number).ok());
        number.ok_or_else(|| self.wrong(part, "the name of a gRPC status, or a number from 0 to 16"))
    }

    fn errors(self, value: &str) -> Result<Vec<MeshError>, FilterError> {
        if value == "any" {
            return Ok(MeshError::ALL.to_vec());
        }
        let read = |part: Part<'_>| {
            let error = MeshError::ALL.iter().find(|error| error.code() == part.1).copied();
            error.ok_or_else(|| {
                let codes: Vec<&str> = MeshError::ALL.iter().map(|error| error.code()).collect();
                self.wrong(part, format!("any, or one of {}", codes.join(" ")))
            })
        };
        list(value).map(read).collect()
    }

    fn place(self, value: &str) -> Result<Place, FilterError> {
        if let Some(network) = network(value) {
            return Ok(network);
        }
        let parts: Vec<&str> = value.split('/').collect();
        let (namespace, kind, name) = match parts[..] {
            [kind, name] => (None, kind, name),
            [namespace, kind, name] => (Some(namespace), kind, name),
            _ => return Err(self.wrong((0, value), "KIND/NAME, NAMESPACE/KIND/NAME, an address or a network")),
        };
        let kind_at = namespace.map_or(0, |namespace| namespace.chars().count() + 1);
        if !KINDS.contains(&kind) {
            return Err(self.wrong((kind_at, kind), format!("a kind ({})", KINDS.join(", "))));
        }
        for (at, part) in [(0, namespace), (kind_at + kind.len() + 1, Some(name))] {
            if let Some(part) = part.filter(|part| !is_name(part)) {
                return Err(self.wrong((at, part), "a name"));
            }
        }
        Ok(Place::Resource { namespace: namespace.map(str::to_owned), kind: kind.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) if first % 100 == 0 && last == first + 99 => write!(f, "{}xx", first / 100),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Network { address, bits } if *bits == full(*address) => write!(f, "{address}"),
            Place::Network { address, bits } => write!(f, "{address}/{bits}"),
            Place::Resource { namespace, kind, name } => {
                if let Some(namespace) = namespace {
                    write!(f, "{namespace}/")?;
                }
                write!(f, "{kind}/{name}")
            }
        }
    }
}

impl Place {
    /// True if the address lies in this network; a resource has no addresses of its own here.
    pub fn has(&self, address: IpAddr) -> bool {
        let Place::Network { address: network, bits } = self else { return false };
        let top = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => u128::from(u32::from(ip)) << 96,
            IpAddr::V6(ip) => u128::from(ip),
        };
        network.is_ipv4() == address.is_ipv4()
            && (top(*network) ^ top(address)).checked_shr(128 - u32::from(*bits)).unwrap_or(0) == 0
    }
}

fn network(text: &str) -> Option<Place> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address.parse().ok()?, Some(bits.parse::<u8>().ok()?)),
        None => (text.parse::<IpAddr>().ok()?, None),
    };
    let bits = bits.unwrap_or(full(address));
    (bits <= full(address)).then_some(Place::Network { address, bits })
}

fn full(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn word<T: Copy>(text: &str, known: &[(&str, T)]) -> Option<T> {
    known.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, meaning)| *meaning)
}

/// The parts between commas.
fn list(value: &str) -> impl Iterator<Item = Part<'_>> {
    let mut at = 0;
    value.split(',').map(move |part| {
        let begins = at;
        at += part.chars().count() + 1;
        (begins, part)
    })
}

/// A token of HTTP (RFC 9110, section 5.6.2).
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A name of a Kubernetes object.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
}

/// `500us`, `200ms`, `1.5s`, `2m`.
fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(unit);
    let number: f64 = number.parse().ok()?;
    let micros = match unit {
        "us" | "µs" => number,
        "ms" => number * 1e3,
        "s" => number * 1e6,
        "m" => number * 60e6,
        _ => return None,
    };
    // More than a day is a slip; micros fit exactly.
    (micros <= 86_400e6).then(|| Duration::from_micros(micros.round() as u64))
}

#[cfg(test)]
mod tests;
