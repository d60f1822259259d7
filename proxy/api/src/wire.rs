//! The conversation between a proxy and control: one long-lived HTTP/2 stream, mutual TLS, a JSON value a line,
//! both ways (`POST /v1/proxy`).
//!
//! The proxy says [`ProxyMessage::Hello`] first. It subscribes to the addresses its application connects to, as they
//! appear; control answers each with a full [`ControlMessage::Update`] and then only with what changed. The proxy
//! acknowledges every version or says why it could not use it, and keeps what it had.
//! A reader ignores messages it does not know, so that neighbouring releases can talk.

use crate::golden::ProxyFrame;
use crate::tap::{TapEvent, TapLeftOut, TapOrder};
use crate::{BackendChange, Destination, Egress, EndpointsChange, InboundPolicy, SpiffeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// What a proxy says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ProxyMessage {
    /// First line of every stream.
    Hello {
        /// Namespace of the pod.
        namespace: String,
        /// Name of the pod.
        pod: String,
        /// Version of the proxy.
        version: String,
        /// Its identity; must be the one its certificate proves.
        identity: SpiffeId,
    },
    /// Traffic for this address has appeared.
    Subscribe {
        /// The original destination.
        address: SocketAddr,
    },
    /// No traffic for a while; updates are no longer wanted.
    Unsubscribe {
        /// The original destination.
        address: SocketAddr,
    },
    /// A version is in use.
    Ack {
        /// The version.
        version: u64,
    },
    /// A version could not be used; what was there before stays in use.
    Reject {
        /// The version.
        version: u64,
        /// Why.
        reason: String,
    },
    /// Golden metrics; only after [`ControlMessage::Observe`].
    Golden {
        /// The frame.
        frame: ProxyFrame,
        /// True for the sum of the past that answers an [`ControlMessage::Observe`].
        #[serde(default)]
        backfill: bool,
    },
    /// What a tap has seen since the last such message; the first one, at once, says that it is on.
    Tap {
        /// The order's id.
        id: u64,
        /// What matched.
        #[serde(default)]
        events: Vec<TapEvent>,
        /// What matched too and is not among them.
        #[serde(default)]
        left_out: TapLeftOut,
    },
    /// A tap is off, or was never on: after [`ControlMessage::StopTap`] and whatever was still to be told, or instead
    /// of the first [`ProxyMessage::Tap`].
    TapEnded {
        /// The order's id.
        id: u64,
        /// Why the order was refused; `None`: it was stopped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refusal: Option<String>,
    },
    /// How often shared rate limits were asked for since the last such message; said once a second by proxies that have
    /// such limits, of each of them.
    RateUse {
        /// The time since then, milliseconds.
        span_ms: u64,
        /// Requests, passed or not, by what the limit is called ([`crate::PortLimit::shared_as`]).
        asked: BTreeMap<String, u64>,
    },
    /// The proxy ends; what it remembers is all that will be left of its past.
    Farewell {
        /// What it remembers, oldest first, as far as it fits.
        frames: Vec<ProxyFrame>,
    },
    /// Still there; answers a heartbeat.
    Heartbeat {},
    /// Something a later release says.
    #[serde(other)]
    Unknown,
}

/// What control says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ControlMessage {
    /// What is known of a subscribed address, or what changed.
    Update {
        /// The subscribed address.
        address: SocketAddr,
        /// Version of this update, rising within a stream.
        version: u64,
        /// What the address is; `None`: as before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        destination: Option<Destination>,
        /// Change to its endpoints; `None`: as before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoints: Option<EndpointsChange>,
        /// Changes to the services that the destination's routes lead to.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        backends: Vec<BackendChange>,
    },
    /// How to treat arriving traffic; sent after Hello and whenever it changes.
    Inbound {
        /// Version of this update, rising within a stream.
        version: u64,
        /// The policy, whole.
        policy: InboundPolicy,
    },
    /// What may leave the cluster; sent after Hello, before the first Update, and whenever it changes.
    Egress {
        /// Version of this update, rising within a stream.
        version: u64,
        /// The policy, whole.
        policy: Egress,
    },
    /// Whom to trust from now on, and who signs certificates; sent after Hello and whenever it changes.
    Trust {
        /// Trust anchors, PEM; they replace those the proxy had.
        anchors_pem: String,
        /// [`crate::identity::fingerprint`] of the certificate that signs. A proxy whose certificate another one signed
        /// asks for a new one.
        issuer: String,
        /// The time over which proxies spread their asking, milliseconds.
        #[serde(default)]
        renew_within_ms: u32,
    },
    /// Which part of shared rate limits the proxy may let through from now on.
    RateShares {
        /// Millionths of each limit, by what it is called. Those not named stay as they are.
        shares: BTreeMap<String, u32>,
    },
    /// Send golden frames: at once one that sums the last `backfill_s` whole seconds as far as remembered, then one a
    /// second. Said again while frames flow, it asks for another sum only; frames up to the sum's end are part of it.
    Observe {
        /// Seconds of the past wanted, at most 600.
        backfill_s: u16,
        /// Unix milliseconds: what ended by then has been told already. 0: nothing has.
        #[serde(default)]
        since_ms: u64,
        /// Unix milliseconds: where the sum should end, so that all proxies sum up the same seconds; what ended later
        /// follows second by second. 0: as late as possible.
        #[serde(default)]
        until_ms: u64,
        /// True: what an earlier stream has been told, perhaps one to another replica of control, is not told again.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        untold: bool,
    },
    /// Stop sending golden frames.
    StopObserve {},
    /// Tell of requests and connections that match, until [`ControlMessage::StopTap`] or the end of this stream.
    Tap {
        /// What is wanted.
        order: TapOrder,
    },
    /// Stop telling; answered by [`ProxyMessage::TapEnded`].
    StopTap {
        /// The order's id.
        id: u64,
    },
    /// The application has ended for good, and the pod waits for nothing but its proxy: end too, with success. Said to
    /// proxies that are no native sidecars, which the node would end itself.
    Finish {},
    /// Still there; sent every few seconds.
    Heartbeat {},
    /// Something a later release says.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::Series;

    #[test]
    fn messages_of_a_later_release_are_readable() {
        let message: ControlMessage = serde_json::from_str(r#"{"type":"tomorrow","x":1}"#).unwrap();
        assert_eq!(message, ControlMessage::Unknown);
        let message: ControlMessage = serde_json::from_str(r#"{"type":"heartbeat","sent_at":5}"#).unwrap();
        assert_eq!(message, ControlMessage::Heartbeat {});
    }

    #[test]
    fn what_is_written_reads_back() {
        let policy = InboundPolicy { ports: [(8080, Default::default())].into(), ..Default::default() };
        let message = ControlMessage::Inbound { version: 3, policy };
        assert_eq!(serde_json::from_slice::<ControlMessage>(&serde_json::to_vec(&message).unwrap()).unwrap(), message);
        let series = Series { statuses: [(200, 7)].into(), grpc_statuses: [(14, 1)].into(), ..Series::default() };
        let key = r#"{"direction":"inbound","carried":"http","peer":{"namespace":"","kind":"pod","name":""},"port":80,"tls":"plain"}"#;
        let frame = ProxyFrame {
            at_ms: 1,
            span_ms: 2,
            series: vec![(serde_json::from_str(key).unwrap(), series)],
            endpoints: vec![],
        };
        let message = ProxyMessage::Golden { frame, backfill: true };
        assert_eq!(serde_json::from_slice::<ProxyMessage>(&serde_json::to_vec(&message).unwrap()).unwrap(), message);
        for ports in [r#"{"x":{}}"#, r#"{"70000":{}}"#, r#"{"-1":{}}"#] {
            let text = format!(r#"{{"type":"inbound","version":1,"policy":{{"ports":{ports}}}}}"#);
            assert!(serde_json::from_str::<ControlMessage>(&text).is_err(), "{ports}");
        }
    }
}
