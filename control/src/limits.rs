//! Every bound of the control plane in one place: sizes, counts and times.

use std::time::Duration;

// Connections.

/// Connections to the proxy API open at once; the next ones wait in the listen queue.
pub const PROXY_CONNECTIONS: usize = 16_384;
/// Connections to the webhook and observe API open at once.
pub const API_CONNECTIONS: usize = 512;
/// Connections to the admin port open at once.
pub const ADMIN_CONNECTIONS: usize = 64;
/// TLS handshake of a client.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Head of an HTTP/1 request.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failed `accept` (usually: out of file descriptors).
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Streams of one HTTP/2 connection open at once.
pub const HTTP2_STREAMS: u32 = 100;
/// Interval of HTTP/2 pings.
pub const HTTP2_PING: Duration = Duration::from_secs(10);
/// How long a ping may stay unanswered.
pub const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests under way may take after SIGTERM.
pub const DRAIN: Duration = Duration::from_secs(5);

// Certificates.

/// A certificate request with its token.
pub const CERTIFY_BYTES: usize = 64 * 1024;
/// Certificate requests looked at at once; further ones wait.
pub const CERTIFY_AT_ONCE: usize = 64;
/// How long reading, reviewing and signing one may take.
pub const CERTIFY_TIMEOUT: Duration = Duration::from_secs(4);
/// Validity of a proxy's certificate.
pub const LEAF_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Certificates that proxies ask for in a second when the issuer changes: they are told to spread over the time it takes.
pub const RENEWALS_PER_SECOND: i64 = 50;
/// Issuer and anchors with less time left than this are told of by an Event a day.
pub const EXPIRY_WARNING: Duration = Duration::from_secs(60 * 24 * 3600);
/// Interval at which that is looked at.
pub const EXPIRY_CHECK: Duration = Duration::from_secs(3600);
/// How far certificates are dated back, for clocks that are behind.
pub const BACKDATE: Duration = Duration::from_secs(300);
/// Validity of the webhook's certificate and of the authority made for it.
pub const WEBHOOK_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Interval at which the webhook's wiring is looked at while all is well.
pub const WEBHOOK_CHECK: Duration = Duration::from_secs(10);
/// The same while something is missing.
pub const WEBHOOK_RETRY: Duration = Duration::from_millis(500);

// The stream to a proxy.

/// How long a stream may take to say Hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses one proxy may subscribe to: what the proxy tracks itself, and a little more.
pub const SUBSCRIPTIONS: usize = 5_000;
/// One line from a proxy: a golden frame with every series it may keep fits in.
pub const LINE_BYTES: usize = 16 * 1024 * 1024;
/// Lines to a proxy waiting to be sent.
pub const QUEUE: usize = 16;
/// How long a proxy may leave the queue full.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Rate limits that one proxy may keep together with others.
pub const SHARED_LIMITS: usize = 1024;
/// A shared rate limit is divided anew at most this often.
pub const SHARE_INTERVAL: Duration = Duration::from_millis(500);
/// Interval of heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(4);
/// Silence of a proxy after which its stream is taken for dead.
pub const SILENCE: Duration = Duration::from_secs(20);
/// Compiled destinations kept for proxies to share.
pub const COMPILED: usize = 50_000;

/// Size of a compiled regular expression; proxies have the same bound.
pub const EXPRESSION_BYTES: usize = 256 * 1024;

// Golden metrics.

/// Longest window a first frame can cover: what proxies remember.
pub const WINDOW_S: u16 = 600;
/// How long after a second's end every proxy has closed it, milliseconds.
pub const CLOSE_WAIT_MS: u64 = 150;
/// Clocks that differ by less are taken for the same, milliseconds.
pub const CLOCKS_AGREE_MS: i64 = 2_000;
/// Past of a proxy that appears while somebody looks: what it may have counted before it reached us, seconds.
pub const NEW_PROXY_S: u16 = 5;
/// Series in what ended proxies left behind; the oldest go first.
pub const DEPARTED_SERIES: usize = 64 * 1024;
/// Sums of its past that a proxy owes at once.
pub const ASKED: usize = 4096;
/// Pods remembered by a watcher beyond twice those connected.
pub const TOLD_SPARE: usize = 1024;
/// Window of a first frame unless asked otherwise.
pub const DEFAULT_WINDOW_S: u16 = 10;
/// How long the first frame waits for proxies to answer.
pub const BACKFILL_WAIT: Duration = Duration::from_millis(1_000);
/// Observers at once.
pub const WATCHES: usize = 256;
/// Frames of one proxy waiting to be merged; further ones are added to the last.
pub const WAITING_FRAMES: usize = 3;
/// Seconds without a frame after which a connected proxy is called silent.
pub const SILENT_AFTER: Duration = Duration::from_secs(4);

/// How far ahead of ours the clock of a proxy may be, milliseconds.
pub const CLOCK_AHEAD_MS: u64 = 3_600_000;
/// How far back a second may lie that comes after a later one, milliseconds.
pub const REPEATED_MS: u64 = 60_000;
/// Time one frame may cover, milliseconds: twice what proxies remember.
pub const FRAME_SPAN_MS: u64 = 2 * 1000 * WINDOW_S as u64;
/// Series of one frame: what proxies remember, and what they count now.
pub const FRAME_SERIES: usize = 20 * 1024;
/// Endpoints of one frame.
pub const FRAME_ENDPOINTS: usize = 1024;
/// Bytes of one name in a frame.
pub const FRAME_NAME_BYTES: usize = 1024;
/// Largest count in a frame: a billion a second for as long as proxies remember, and small enough to be added up.
pub const FRAME_COUNT: u64 = 1_000_000_000_000;
/// Most bytes in a frame: a terabyte a second for as long as proxies remember.
pub const FRAME_BYTES: u64 = 1_000_000_000_000_000;
/// Proxies remembered for having sent what makes no sense.
pub const SUSPECTS: usize = 256;
/// How long they are remembered.
pub const SUSPECT_MEMORY: Duration = Duration::from_secs(600);

// Other replicas.

/// Replicas that are asked at once.
pub const PEERS: usize = 16;
/// To connect to a replica, with TLS, until its answer begins.
pub const PEER_CONNECT: Duration = Duration::from_secs(2);
/// Silence after which a replica is asked anew: it sends a frame a second.
pub const PEER_SILENCE: Duration = Duration::from_secs(5);
/// Pause before a replica that failed is asked again.
pub const PEER_RETRY: Duration = Duration::from_secs(1);
/// How much longer than our own proxies a replica may take for its first frame.
pub const PEER_WAIT: Duration = Duration::from_millis(1_500);
/// Frames of a replica waiting to be merged; further ones are added to the last.
pub const PEER_FRAMES: usize = 3;
/// One line of a replica: a frame of everything.
pub const PEER_LINE_BYTES: usize = 64 * 1024 * 1024;

// Taps.

/// Taps at once.
pub const TAPS: usize = 64;
/// Events a second of one tap.
pub const TAP_MAX_RPS: u32 = 10_000;
/// Events a second of one tap unless asked otherwise.
pub const TAP_DEFAULT_RPS: u32 = 100;
/// Events of one tap waiting to be read; further ones are counted as left out.
pub const TAP_QUEUE: usize = 8_192;
/// Events told at once.
pub const TAP_BATCH: usize = 256;
/// How long a tap waits for proxies, before its first line and before its last one.
pub const TAP_WAIT: Duration = Duration::from_millis(1_000);
/// Interval at which it is looked whose proxies a tap means.
pub const TAP_LOOK: Duration = Duration::from_secs(1);
/// Shortest time between two lines about how a tap is doing.
pub const TAP_STATUS: Duration = Duration::from_millis(250);
/// Longest time between two lines: whoever no longer reads is noticed by it.
pub const TAP_SILENCE: Duration = Duration::from_secs(5);
/// Reasons told why proxies do not tap.
pub const TAP_REFUSALS: usize = 4;
/// Addresses that a filter's place may mean.
pub const TAP_ADDRESSES: usize = 10_000;
/// Resources that a tap may be narrowed down to by name.
pub const TAP_ONLY: usize = 500;

// The Kubernetes API.

/// Interval at which it is looked for kinds that the cluster did not have yet.
pub const KIND_LOOK: Duration = Duration::from_secs(3);
/// First pause after a failed list or watch.
pub const WATCH_BACKOFF: Duration = Duration::from_millis(100);
/// Longest pause after a failed list or watch.
pub const WATCH_BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Pause before asking again for a kind that the cluster does not know.
pub const WATCH_MISSING: Duration = Duration::from_secs(3);
/// Pause between a change and the look at what is to be said of it.
pub const STATUS_PAUSE: Duration = Duration::from_millis(100);
/// How often keys that access policies name are read again.
pub const KEY_SETS_EVERY: Duration = Duration::from_secs(20);
/// Interval at which all statuses are looked at without a change.
pub const STATUS_CHECK: Duration = Duration::from_secs(60);
/// The same where other replicas have to be asked what their proxies could not use.
pub const STATUS_PEERS: Duration = Duration::from_secs(5);
/// The same after one could not be written.
pub const STATUS_RETRY: Duration = Duration::from_secs(2);
/// One call to the API.
pub const API_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the API server is asked for its version.
pub const VERSION_INTERVAL: Duration = Duration::from_secs(600);
/// The same after it did not answer.
pub const VERSION_RETRY: Duration = Duration::from_secs(10);
/// An AdmissionReview.
pub const REVIEW_BYTES: usize = 8 * 1024 * 1024;
/// Events being written at once; further ones are dropped with a log line.
pub const EVENTS_AT_ONCE: usize = 32;
/// Length of a condition's message; the API takes 32768.
pub const STATUS_MESSAGE_BYTES: usize = 2048;
/// Remembered cases of a proxy that could not use something.
pub const REJECTIONS: usize = 1024;
/// Validity of the lease without renewal.
pub const LEASE: Duration = Duration::from_secs(15);
/// Interval of renewals.
pub const LEASE_RENEW: Duration = Duration::from_secs(5);
/// Interval of looks at a lease somebody else holds.
pub const LEASE_LOOK: Duration = Duration::from_secs(2);

// The agent of CNI mode.

/// Interval at which the node's network configuration is looked at.
pub const CNI_LOOK: Duration = Duration::from_secs(3);
/// Files of a node's directory of configurations that are looked at.
pub const CNI_FILES: usize = 1_000;
/// Size of one of them.
pub const CNI_CONF_BYTES: u64 = 1024 * 1024;
/// Questions of the plugin answered at once.
pub const CNI_QUESTIONS: usize = 64;
/// How long a question may take to be asked and answered; the plugin waits longer.
pub const CNI_QUESTION: Duration = Duration::from_secs(12);
/// How often a pod is looked up that is not there, or another.
pub const CNI_LOOKUPS: usize = 4;
/// Pause in between.
pub const CNI_LOOKUP_PAUSE: Duration = Duration::from_millis(250);
/// Pause between two pods that are deleted because they lack their redirect.
pub const CNI_REPAIR: Duration = Duration::from_secs(2);
/// Such pods remembered; a node has fewer.
pub const CNI_BROKEN: usize = 1_000;
