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
/// One call to the API.
pub const API_TIMEOUT: Duration = Duration::from_secs(5);
/// An AdmissionReview.
pub const REVIEW_BYTES: usize = 8 * 1024 * 1024;
/// Events being written at once; further ones are dropped with a log line.
pub const EVENTS_AT_ONCE: usize = 32;
/// Validity of the lease without renewal.
pub const LEASE: Duration = Duration::from_secs(15);
/// Interval of renewals.
pub const LEASE_RENEW: Duration = Duration::from_secs(5);
/// Interval of looks at a lease somebody else holds.
pub const LEASE_LOOK: Duration = Duration::from_secs(2);
