//! Golden metrics: what every request and connection is counted into.
//!
//! A proxy keeps one [`Series`] per [`SeriesKey`] and closes a [`ProxyFrame`] of what changed each second. Control
//! merges frames of many proxies into a [`GoldenFrame`] and streams those to whoever looks. Everything adds up:
//! counters and histograms by addition, open connections by summing over proxies.

use crate::breaker::Standing;
use crate::{Histogram, MeshError, ServiceRef, SpiffeId, WorkloadRef};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

/// From which side a proxy saw the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Arriving for the application beside the proxy.
    Inbound,
    /// Sent by the application beside the proxy.
    Outbound,
}

/// What was carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carried {
    /// HTTP requests that are not gRPC.
    Http,
    /// gRPC requests.
    Grpc,
    /// Opaque connections.
    Tcp,
}

/// How the leg between the two pods was protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsStatus {
    /// Mutual TLS between two mesh proxies.
    Mutual,
    /// TLS that is not the mesh's, passed through.
    Passthrough,
    /// No encryption.
    Plain,
}

/// What a series is about. Label values are bounded by the proxy; past its limits everything goes to `other`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SeriesKey {
    /// Side.
    pub direction: Direction,
    /// What was carried.
    pub carried: Carried,
    /// The workload at the other end: the callee when outbound, the caller when inbound.
    pub peer: WorkloadRef,
    /// The Service called (outbound), where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// The application's port (inbound) or the port called (outbound).
    pub port: u16,
    /// Route: a configured rule's name, a gRPC `/package.Service/Method`, or a learned path template
    /// (`/products/{id}`); `other` past the cap; empty for TCP.
    #[serde(default)]
    pub route: String,
    /// HTTP method; empty for TCP and gRPC.
    #[serde(default)]
    pub method: String,
    /// Protection of the leg between pods.
    pub tls: TlsStatus,
}

/// How a request or connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// As both sides wanted it.
    Orderly,
    /// The client broke it off.
    ByClient,
    /// The server broke it off.
    ByServer,
    /// The mesh answered or refused it; the error says why.
    ByMesh,
    /// The proxy gave it up, because it was shutting down.
    Cut,
}

impl Ending {
    /// The word that stands for it in metrics and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Ending::Orderly => "orderly",
            Ending::ByClient => "by_client",
            Ending::ByServer => "by_server",
            Ending::ByMesh => "by_mesh",
            Ending::Cut => "cut",
        }
    }
}

/// Where attempts differ from requests: requests that were not sent exactly once. All others are one attempt each,
/// with the same outcome and latency, and need not be counted twice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attempts {
    /// Requests that were sent more than once, or never.
    pub requests: u64,
    /// Of these, requests that finished well.
    pub request_successes: u64,
    /// Latency of these requests, as their callers saw it.
    #[serde(default, skip_serializing_if = "Histogram::is_empty")]
    pub request_latency: Histogram,
    /// Attempts made for such requests, each counted where it went.
    pub attempts: u64,
    /// Of these, attempts that went well.
    pub successes: u64,
    /// Latency of each attempt.
    #[serde(default, skip_serializing_if = "Histogram::is_empty")]
    pub latency: Histogram,
}

impl Attempts {
    fn merge(&mut self, other: &Attempts) {
        self.requests += other.requests;
        self.request_successes += other.request_successes;
        self.request_latency.merge(&other.request_latency);
        self.attempts += other.attempts;
        self.successes += other.successes;
        self.latency.merge(&other.latency);
    }
}

/// What endpoints saw of a series: every attempt by itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Actual {
    /// Attempts made.
    pub attempts: u64,
    /// Attempts that went well.
    pub successes: u64,
    /// From an attempt's start to its end.
    pub latency: Histogram,
}

/// Counters and distributions of one series over a span of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Requests finished.
    #[serde(default)]
    pub requests: u64,
    /// Requests finished well, by the rule of [`is_success`].
    #[serde(default)]
    pub successes: u64,
    /// Second and further attempts made for these requests.
    #[serde(default)]
    pub retries: u64,
    /// Requests that ran into a time limit.
    #[serde(default)]
    pub timeouts: u64,
    /// HTTP statuses.
    #[serde(default, deserialize_with = "crate::number_keys::deserialize", skip_serializing_if = "BTreeMap::is_empty")]
    pub statuses: BTreeMap<u16, u64>,
    /// gRPC statuses.
    #[serde(default, deserialize_with = "crate::number_keys::deserialize", skip_serializing_if = "BTreeMap::is_empty")]
    pub grpc_statuses: BTreeMap<u16, u64>,
    /// Errors the mesh itself answered.
    #[serde(default, deserialize_with = "crate::later::keys", skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<MeshError, u64>,
    /// From the request's head to the response's end.
    #[serde(default, skip_serializing_if = "Histogram::is_empty")]
    pub latency: Histogram,
    /// From the request's head to the response's head.
    #[serde(default, skip_serializing_if = "Histogram::is_empty")]
    pub first_byte: Histogram,
    /// Where attempts differ from requests; see [`Series::actual`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<Box<Attempts>>,
    /// Connections opened (TCP series).
    #[serde(default)]
    pub tcp_opened: u64,
    /// Connections closed (TCP series).
    #[serde(default)]
    pub tcp_closed: u64,
    /// Connections open at the end of the span: a level, not a count.
    #[serde(default)]
    pub tcp_open: u64,
    /// Bytes from the client to the server.
    #[serde(default)]
    pub tcp_read_bytes: u64,
    /// Bytes from the server to the client.
    #[serde(default)]
    pub tcp_write_bytes: u64,
    /// How connections were closed.
    #[serde(default, deserialize_with = "crate::later::keys", skip_serializing_if = "BTreeMap::is_empty")]
    pub tcp_closes: BTreeMap<Ending, u64>,
    /// How long closed connections had been open.
    #[serde(default, skip_serializing_if = "Histogram::is_empty")]
    pub tcp_duration: Histogram,
}

impl Series {
    /// Adds a later span of the same proxy, or (with `parallel`) the same span of another proxy.
    /// The two differ only in levels: later replaces, parallel sums.
    pub fn merge(&mut self, other: &Series, parallel: bool) {
        self.requests += other.requests;
        self.successes += other.successes;
        self.retries += other.retries;
        self.timeouts += other.timeouts;
        for (status, n) in &other.statuses {
            *self.statuses.entry(*status).or_default() += n;
        }
        for (status, n) in &other.grpc_statuses {
            *self.grpc_statuses.entry(*status).or_default() += n;
        }
        for (error, n) in &other.errors {
            *self.errors.entry(*error).or_default() += n;
        }
        self.latency.merge(&other.latency);
        self.first_byte.merge(&other.first_byte);
        self.tcp_opened += other.tcp_opened;
        self.tcp_closed += other.tcp_closed;
        self.tcp_open = if parallel { self.tcp_open + other.tcp_open } else { other.tcp_open };
        self.tcp_read_bytes += other.tcp_read_bytes;
        self.tcp_write_bytes += other.tcp_write_bytes;
        for (how, n) in &other.tcp_closes {
            *self.tcp_closes.entry(*how).or_default() += n;
        }
        self.tcp_duration.merge(&other.tcp_duration);
        if let Some(attempts) = &other.attempts {
            self.attempts.get_or_insert_default().merge(attempts);
        }
    }

    /// What the endpoints saw of an outbound series: the requests sent once, and every attempt of the others.
    pub fn actual(&self) -> Actual {
        let mut actual = Actual { attempts: self.requests, successes: self.successes, latency: self.latency.clone() };
        if let Some(differing) = &self.attempts {
            actual.attempts = actual.attempts.saturating_sub(differing.requests) + differing.attempts;
            actual.successes = actual.successes.saturating_sub(differing.request_successes) + differing.successes;
            actual.latency.subtract(&differing.request_latency);
            actual.latency.merge(&differing.latency);
        }
        actual
    }
}

/// gRPC statuses that count as failures: Unknown, DeadlineExceeded, PermissionDenied, Internal, Unavailable, DataLoss.
pub const GRPC_FAILURES: [u16; 6] = [2, 4, 7, 13, 14, 15];

/// The rule of [`is_success`] in words, as every command's help prints it.
pub const SUCCESS_RULE: &str = "A request succeeds if it was answered to the end with an HTTP status below 500, and, for gRPC, with no status \
of Unknown, DeadlineExceeded, PermissionDenied, Internal, Unavailable or DataLoss. Resets and timeouts fail.";

/// The success rule of every command: HTTP status below 500 and no reset or timeout; for gRPC additionally no
/// status of [`GRPC_FAILURES`]. `status` is `None` if the request ended without an answer.
pub fn is_success(status: Option<u16>, grpc_status: Option<u16>, complete: bool) -> bool {
    complete && status.is_some_and(|s| s < 500) && !grpc_status.is_some_and(|s| GRPC_FAILURES.contains(&s))
}

/// What one proxy saw during one span; only series that changed, plus TCP series with open connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProxyFrame {
    /// End of the span, Unix milliseconds.
    pub at_ms: u64,
    /// Length of the span, milliseconds.
    pub span_ms: u64,
    /// What changed.
    pub series: Vec<(SeriesKey, Series)>,
    /// What the balancer knows of the endpoints in use, at the end of the span.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<EndpointLevel>,
}

/// How the balancer of one proxy sees an endpoint: levels, not counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointLevel {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its workload.
    pub workload: WorkloadRef,
    /// Its pod; empty where there is none.
    #[serde(default)]
    pub pod: String,
    /// Requests under way there.
    pub in_flight: u32,
    /// How long the next answer is expected to take, microseconds.
    pub expected_us: u64,
    /// True if the last attempt failed not long ago.
    #[serde(default)]
    pub failing: bool,
    /// What the circuit breaker lets through to it, where there is one that has seen it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit: Option<Standing>,
    /// How long it stays ejected, milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ejected_ms: u64,
}

/// How all callers together see an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its workload.
    pub workload: WorkloadRef,
    /// Its pod; empty where there is none.
    #[serde(default)]
    pub pod: String,
    /// Proxies that have it in use.
    pub callers: u32,
    /// Of these, proxies whose last attempt failed not long ago.
    pub failing: u32,
    /// Requests under way there.
    pub in_flight: u32,
    /// How long the next answer is expected to take, microseconds: by the most pessimistic of them.
    pub expected_us: u64,
    /// Of the callers, proxies whose circuit breaker has ejected it.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub ejected: u32,
    /// Of the callers, proxies that are trying out whether it may come back.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub half_open: u32,
    /// How long it stays ejected, milliseconds: by the most patient of them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ejected_ms: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_none_of_them(n: &u32) -> bool {
    *n == 0
}

impl ProxyFrame {
    /// Adds up consecutive spans of one proxy, oldest first.
    pub fn sequence<'a>(frames: impl IntoIterator<Item = &'a ProxyFrame>) -> ProxyFrame {
        let mut sum = ProxyFrame::default();
        let mut series: HashMap<&SeriesKey, Series> = HashMap::new();
        for frame in frames {
            sum.at_ms = frame.at_ms;
            sum.span_ms += frame.span_ms;
            sum.endpoints.clone_from(&frame.endpoints);
            // A series with open connections is in every frame: one that is missing has none.
            series.values_mut().for_each(|series| series.tcp_open = 0);
            for (key, later) in &frame.series {
                series.entry(key).or_default().merge(later, false);
            }
        }
        sum.series = series.into_iter().map(|(key, series)| (key.clone(), series)).collect();
        sum
    }
}

/// How much of a workload is meshed and up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadStatus {
    /// The workload.
    pub workload: WorkloadRef,
    /// Pods that run.
    pub pods: u32,
    /// Of these, pods with a proxy.
    pub meshed_pods: u32,
    /// Of the meshed ones, proxies connected to control right now.
    pub connected: u32,
    /// Names of the Services that select its pods.
    #[serde(default)]
    pub services: Vec<String>,
    /// The identities its meshed pods prove.
    #[serde(default)]
    pub identities: Vec<SpiffeId>,
    /// Its pods one by one, if the request asked for a row per pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pod_list: Vec<PodStatus>,
}

/// A running pod of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Its name.
    pub name: String,
    /// True if it has a proxy.
    pub meshed: bool,
}

/// A series of one workload, summed over its pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadSeries {
    /// The workload whose proxies counted.
    pub workload: WorkloadRef,
    /// The pod, if the request asked for a row per pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// What it is about.
    pub key: SeriesKey,
    /// The numbers.
    pub series: Series,
}

/// What the mesh saw during one span: one line of the observe API's stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GoldenFrame {
    /// End of the span, Unix milliseconds.
    pub at_ms: u64,
    /// Length of the span, milliseconds. The first frame of a stream covers the window asked for, as far as
    /// proxies remember; the following ones a second each.
    pub span_ms: u64,
    /// Every workload of the scope, whether it saw traffic or not.
    pub workloads: Vec<WorkloadStatus>,
    /// What the scope's proxies counted.
    pub series: Vec<WorkloadSeries>,
    /// Proxies of the scope that are connected but did not answer in time.
    #[serde(default)]
    pub silent_proxies: u32,
    /// How callers see the endpoints of the scope.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<EndpointView>,
    /// Proxies of the scope's namespace that sent what made no sense in the last ten minutes; it was left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub senseless: Vec<Senseless>,
    /// Replicas of the control plane that could not be asked: what their proxies count is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreachable: Vec<Unreachable>,
}

/// A replica of the control plane that does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreachable {
    /// Its pod.
    pub replica: String,
    /// What was tried, and what came of it.
    pub why: String,
}

/// A proxy whose figures cannot be true.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Senseless {
    /// Its pod's namespace.
    pub namespace: String,
    /// Its pod.
    pub pod: String,
    /// Frames left out.
    pub frames: u64,
    /// What was wrong with the last one.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_follows_the_documented_rule() {
        assert!(is_success(Some(200), None, true));
        assert!(is_success(Some(404), None, true));
        assert!(!is_success(Some(500), None, true));
        assert!(!is_success(Some(200), None, false));
        assert!(!is_success(None, None, true));
        assert!(is_success(Some(200), Some(5), true));
        assert!(!is_success(Some(200), Some(14), true));
    }

    fn took(us: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        us.iter().for_each(|us| histogram.record_us(*us));
        histogram
    }

    #[test]
    fn attempts_are_the_requests_sent_once_and_each_try_of_the_others() {
        let mut a = Series { requests: 10, successes: 9, latency: took(&[100; 10]), ..Series::default() };
        assert_eq!((a.actual().attempts, a.actual().successes, a.actual().latency), (10, 9, a.latency.clone()));
        // One more request that went well at the second try, and one that nobody could be asked.
        let twice = Attempts {
            requests: 1,
            request_successes: 1,
            request_latency: took(&[900]),
            attempts: 2,
            successes: 1,
            latency: took(&[500, 300]),
        };
        let once = Series {
            requests: 1,
            successes: 1,
            latency: took(&[900]),
            attempts: Some(Box::new(twice)),
            ..Series::default()
        };
        let never = Attempts { requests: 1, request_latency: took(&[7]), ..Attempts::default() };
        let refused = Series { requests: 1, latency: took(&[7]), attempts: Some(Box::new(never)), ..Series::default() };
        a.merge(&once, false);
        a.merge(&refused, true);
        assert_eq!((a.requests, a.successes), (12, 10));
        let actual = a.actual();
        assert_eq!((actual.attempts, actual.successes), (12, 10));
        let mut expect = took(&[100; 10]);
        expect.merge(&took(&[500, 300]));
        assert_eq!(actual.latency, expect);
    }

    #[test]
    fn open_connections_are_a_level() {
        let mut a = Series { tcp_open: 3, tcp_opened: 3, ..Default::default() };
        a.merge(&Series { tcp_open: 2, tcp_closed: 1, ..Default::default() }, false);
        assert_eq!((a.tcp_open, a.tcp_opened, a.tcp_closed), (2, 3, 1));
        a.merge(&Series { tcp_open: 5, ..Default::default() }, true);
        assert_eq!(a.tcp_open, 7);
    }
}
