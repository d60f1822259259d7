//! Tap: single requests and connections as a proxy saw them.
//!
//! Whoever looks states a [`filter::TapFilter`]; proxies evaluate it and send [`TapEvent`]s of what matches, with
//! secret headers redacted ([`secrets`]). A request is one event, told at its end; a connection is two. Whatever
//! matched and is not told is counted in [`TapLeftOut`].

pub mod bucket;
pub mod filter;
pub mod pattern;
pub mod secrets;

pub use crate::golden::Ending as TapEnding;
use crate::golden::{Carried, Direction, TlsStatus};
use crate::{MeshError, ServiceRef, SpiffeId, WorkloadRef};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// Bytes of a request's or response's body that are shown, each.
pub const BODY_BYTES: usize = 4096;

/// What an event tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TapKind {
    /// A request came to its end.
    Request,
    /// An opaque connection was opened.
    Open,
    /// An opaque connection came to its end, or could not be opened.
    Close,
}

/// One end of a request or connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapEnd {
    /// Its address.
    pub address: SocketAddr,
    /// The workload there, as far as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadRef>,
    /// The pod there, as far as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The identity it proved, or (for the proxy's own end) has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<SpiffeId>,
}

/// A request or connection, as one proxy saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TapEvent {
    /// When it ended (for [`TapKind::Open`]: began), Unix milliseconds.
    pub at_ms: u64,
    /// What it tells of.
    pub event: TapKind,
    /// Side the proxy stood on.
    pub direction: Direction,
    /// What was carried.
    pub carried: Carried,
    /// The client.
    pub source: TapEnd,
    /// The server: the endpoint, or the address called if none was chosen.
    pub destination: TapEnd,
    /// The Service called, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// Protection of the leg between pods.
    pub tls: TlsStatus,
    /// What HTTP says; nothing for opaque connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<TapHttp>,
    /// Error the mesh answered.
    #[serde(default, deserialize_with = "crate::later::optional", skip_serializing_if = "Option::is_none")]
    pub error: Option<MeshError>,
    /// How it ended; nothing for [`TapKind::Open`].
    #[serde(default, deserialize_with = "crate::later::optional", skip_serializing_if = "Option::is_none")]
    pub ending: Option<TapEnding>,
    /// From the head (of a connection: its opening) to the end, microseconds.
    pub duration_us: u64,
    /// Bytes from the client; of a request: of its body.
    pub read_bytes: u64,
    /// Bytes to the client; of a request: of the response's body.
    pub write_bytes: u64,
}

/// What HTTP says of a request and its response.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TapHttp {
    /// Method; empty if what came was no request.
    pub method: String,
    /// Host called.
    #[serde(default)]
    pub authority: String,
    /// Path without query.
    pub path: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// Route it was counted under.
    #[serde(default)]
    pub route: String,
    /// HTTP status; none if nothing was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// gRPC status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    /// Second and further attempts.
    #[serde(default)]
    pub retries: u32,
    /// From the request's head to the response's head, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_us: Option<u64>,
    /// Fields of the request, if asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<(String, String)>,
    /// Fields of the response, if asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<(String, String)>,
    /// Beginning of the request's body, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_body: Option<TapBody>,
    /// Beginning of the response's body, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_body: Option<TapBody>,
}

/// The beginning of a body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapBody {
    /// As text, if it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Else in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hex: Option<String>,
    /// True if there was more.
    #[serde(default)]
    pub truncated: bool,
}

impl TapBody {
    /// The first [`BODY_BYTES`] of a body of `total` bytes.
    pub fn new(bytes: &[u8], total: u64) -> Self {
        let bytes = &bytes[..bytes.len().min(BODY_BYTES)];
        let truncated = total > bytes.len() as u64;
        let valid = match std::str::from_utf8(bytes) {
            Ok(text) => Some(text),
            // What was cut off may have cut a character.
            Err(error) if truncated && error.error_len().is_none() => {
                std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        let hex = valid.is_none().then(|| bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        Self { text: valid.map(str::to_owned), hex, truncated }
    }
}

/// Matching events that were not told, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapLeftOut {
    /// Not in the sample.
    #[serde(default)]
    pub sampled: u64,
    /// More than `max_rps` in a second.
    #[serde(default)]
    pub rate_limited: u64,
    /// Nobody took them in time.
    #[serde(default)]
    pub buffer_full: u64,
}

impl TapLeftOut {
    /// Adds what others left out.
    pub fn add(&mut self, other: &Self) {
        self.sampled += other.sampled;
        self.rate_limited += other.rate_limited;
        self.buffer_full += other.buffer_full;
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.sampled + self.rate_limited + self.buffer_full
    }
}

/// What control asks of a proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TapOrder {
    /// Names the tap; an order with the id of a running one replaces it.
    pub id: u64,
    /// A [`filter::TapFilter`], as text: a proxy that does not know one of its terms refuses the order instead of
    /// telling too much.
    #[serde(default)]
    pub filter: String,
    /// The addresses that the filter's `from` means, where it names a resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<IpAddr>>,
    /// The addresses that the filter's `to` means, where it names a resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<IpAddr>>,
    /// Events a second, at most.
    pub max_rps: u32,
    /// Share of the matching events that is wanted, above 0 and at most 1.
    pub sample: f64,
    /// Tell header fields.
    #[serde(default)]
    pub headers: bool,
    /// Tell the beginning of bodies.
    #[serde(default)]
    pub bodies: bool,
    /// Tell secret header fields as they are.
    #[serde(default)]
    pub secrets: bool,
}

/// A line of the observe API's tap stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TapMessage {
    /// Something matched.
    Event(Box<TapEvent>),
    /// How the tap is doing: first of all, when something has changed, and last of all.
    Status(TapStatus),
    /// Something a later release says.
    #[serde(other)]
    Unknown,
}

/// How a tap is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapStatus {
    /// Pods that are meant and run.
    pub pods: u32,
    /// Of these, pods with a proxy.
    pub meshed_pods: u32,
    /// Proxies that tap.
    pub proxies: u32,
    /// Why proxies do not: a few reasons, each once.
    #[serde(default)]
    pub refusals: Vec<String>,
    /// Events told since the beginning.
    pub shown: u64,
    /// Matching events left out since the beginning.
    pub left_out: TapLeftOut,
    /// True in the last line.
    #[serde(default)]
    pub last: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_text_or_hexadecimal_and_end_in_time() {
        let check = |bytes: &[u8], total: u64, text: Option<&str>, hex: Option<&str>, truncated: bool| {
            let body = TapBody::new(bytes, total);
            assert_eq!((body.text.as_deref(), body.hex.as_deref(), body.truncated), (text, hex, truncated));
        };
        check(b"", 0, Some(""), None, false);
        check("grün".as_bytes(), 5, Some("grün"), None, false);
        check(&"grü".as_bytes()[..3], 5, Some("gr"), None, true);
        check(b"\xff\x00", 2, None, Some("ff00"), false);
        check(b"gr\xc3", 3, None, Some("6772c3"), false);
        let long = TapBody::new(&[b'x'; BODY_BYTES + 1], 5000);
        assert_eq!((long.text.unwrap().len(), long.truncated), (BODY_BYTES, true));
    }

    #[test]
    fn lines_of_a_later_release_are_readable() {
        assert_eq!(serde_json::from_str::<TapMessage>(r#"{"type":"news"}"#).unwrap(), TapMessage::Unknown);
        let status = TapMessage::Status(TapStatus { pods: 2, shown: 7, ..TapStatus::default() });
        let text = serde_json::to_string(&status).unwrap();
        assert!(text.starts_with(r#"{"type":"status","pods":2,"#), "{text}");
        assert_eq!(serde_json::from_str::<TapMessage>(&text).unwrap(), status);
    }
}
