//! Every bound of the proxy in one place: sizes, counts and times.
//!
//! Whatever grows with traffic has its limit here, and whoever reaches a limit says so: in a log line, a counter or a
//! `mesh-error`. The values are chosen for a proxy that idles in a few megabytes and still carries thousands of
//! requests a second.

use std::time::Duration;

// Connections.

/// Accepted connections open at once, both directions together, unless set otherwise (`--max-connections`). Newer ones
/// are turned away with [`mesh_api::MeshError::Overload`]: as an answer where the client speaks HTTP in plain text, else
/// as a reset.
pub const MAX_CONNECTIONS: usize = 16_384;
/// Connections in the process of being turned away; past it they are reset at once.
pub const TURNED_AWAY: usize = 256;
/// Time to turn one away: to read what it asks, and to answer.
pub const TURN_AWAY_TIME: Duration = Duration::from_secs(2);
/// Open files that are not connections: listeners, logs, control, the admin port.
pub const OTHER_FILES: usize = 256;
/// Length of the kernel's queue of connections not yet accepted.
pub const LISTEN_BACKLOG: i32 = 4096;
/// Pause after a failed `accept` (usually: out of file descriptors).
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// One attempt to connect to an endpoint, TLS handshake not included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// TLS handshake, either side.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// TLS handshakes of arriving connections under way at once, unless set otherwise (`--max-handshakes`); newer ones are
/// reset, and their callers try another endpoint.
pub const MAX_HANDSHAKES: usize = 1024;
/// Different endpoints tried for one request or connection while nothing of it was delivered.
pub const MAX_ATTEMPTS: usize = 3;
/// Silence on a connection before the kernel probes whether the other end is alive, and between probes.
pub const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

// Protocol detection.

/// How long a new connection may stay silent before it counts as one where the server speaks first.
pub const DETECT_SILENCE: Duration = Duration::from_millis(100);
/// How long the rest of a started message may take before the connection is carried as opaque.
pub const DETECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes looked at: a TLS ClientHello with a post-quantum key share takes under 2 KiB.
pub const DETECT_BYTES: usize = 16 * 1024;
/// How long a port is remembered as one where the server speaks first.
pub const SERVER_FIRST_MEMORY: Duration = Duration::from_secs(600);

// HTTP.

/// Read and write buffer of an HTTP/1 connection, hence the size of a request's or response's head.
pub const HTTP1_BUFFER: usize = 64 * 1024;
/// Size of a request's head; below the buffer, so that a head which may pass fits.
pub const HTTP1_HEAD: usize = 60 * 1024;
/// Header fields of a request, and trailer fields.
pub const HTTP1_FIELDS: usize = 100;
/// Length of a request's target.
pub const HTTP1_TARGET: usize = 32 * 1024;
/// Size of the trailer section behind a chunked body.
pub const HTTP1_TRAILERS: usize = 15 * 1024;
/// Digits of a chunk's size.
pub const HTTP1_CHUNK_DIGITS: u8 = 15;
/// How long a head may take from its first byte to its last.
pub const HTTP1_HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// Room made at a time for a head that arrives in pieces.
pub const HTTP1_HELD_STEP: usize = 2048;
/// How long a request that asks first (`Expect: 100-continue`) waits for the application's word before its content
/// is sent all the same.
pub const EXPECT_WAIT: Duration = Duration::from_secs(1);
/// How long a closed connection is still read, so that the client can read the last answer.
pub const LINGER_TIME: Duration = Duration::from_secs(1);
/// How much is read and dropped then.
pub const LINGER_BYTES: usize = 1024 * 1024;
/// Size of the header list of an HTTP/2 message.
pub const HTTP2_HEADER_LIST: u32 = 64 * 1024;
/// Streams of one HTTP/2 connection open at once.
pub const HTTP2_STREAMS: u32 = 1024;
/// Flow control window of an HTTP/2 stream.
pub const HTTP2_STREAM_WINDOW: u32 = 256 * 1024;
/// Flow control window of an HTTP/2 connection, and so the most that is held for its readers. Proxies share connections:
/// so many times a stream's window, readers may stand still before those of other streams feel it.
pub const HTTP2_CONNECTION_WINDOW: u32 = 64 * HTTP2_STREAM_WINDOW;
/// Requests given up before their answer, if they are most of the connection's, after which it is closed. Clients that
/// are merely impatient stay far below; one that is not costs an application no more than this for a connection.
pub const HTTP2_GIVEN_UP: u32 = 200;
/// How long a tunnel over HTTP/2 (extended CONNECT) waits for the server's settings, which say whether it takes one.
pub const HTTP2_SETTINGS_WAIT: Duration = Duration::from_secs(1);
/// Interval at which that is looked for.
pub const HTTP2_SETTINGS_POLL: Duration = Duration::from_millis(2);
/// Bytes buffered for writing on an HTTP/2 stream.
pub const HTTP2_SEND_BUFFER: usize = 64 * 1024;
/// Interval of HTTP/2 pings between proxies while requests are open.
pub const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long a ping may stay unanswered.
pub const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client's HTTP/1 connection may stay without a complete request head.
pub const HTTP1_CLIENT_IDLE: Duration = Duration::from_secs(600);

/// Bytes of a request body kept in case it has to be sent again.
pub const UPLOAD_KEPT: usize = 64 * 1024;
/// The same where a policy asks for more.
pub const UPLOAD_KEPT_MOST: usize = 1024 * 1024;
/// Copies of requests under way at once; further ones are left out and counted.
pub const MIRRORS: usize = 256;
/// Pieces of a body that is copied.
pub const MIRROR_PIECES: usize = 1024;
/// How long a copy may take, and how much of its answer is read.
pub const MIRROR_TIME: Duration = Duration::from_secs(15);
/// Bytes of the answer to a copy that are read so that its connection can be used again.
pub const MIRROR_ANSWER: usize = 1024 * 1024;

// Pool of connections to one endpoint.

/// HTTP/1 connections to one endpoint, idle or busy.
pub const POOL_CONNECTIONS: usize = 1024;
/// Idle HTTP/1 connections kept for one endpoint: as many as may be open. When it was 128, 1,000 busy clients over mutual
/// TLS had nearly every connection closed after its response and opened anew for the next request, which cost 568 µs of
/// CPU a request instead of under 90; [`POOL_IDLE_TIMEOUT`] alone now decides what is closed.
pub const POOL_IDLE: usize = POOL_CONNECTIONS;
/// How long an unused connection is kept.
pub const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// A request that must not be sent twice takes only a connection to an application used within this time:
/// applications close idle connections without warning.
pub const POOL_FRESH: Duration = Duration::from_secs(1);
/// How long a request waits for a free connection to an endpoint at its limit before it is shed.
pub const POOL_WAIT: Duration = Duration::from_secs(1);
/// How long a connection may take to become reusable after its response ended.
pub const POOL_SETTLE: Duration = Duration::from_secs(5);
/// Interval at which idle connections and targets are looked through.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

// Opaque connections.

/// Copy buffer, one a direction, held only while bytes are under way; four TLS records go out in one write.
pub const COPY_BUFFER: usize = 64 * 1024;

// Destinations.

/// Destinations known at once; further ones are forwarded as they are, without asking control.
pub const MAX_TARGETS: usize = 4096;
/// Endpoints of one destination.
pub const MAX_ENDPOINTS: usize = 10_000;
/// How long the first connection to an address waits for control to say what it is.
pub const RESOLVE_WAIT: Duration = Duration::from_secs(2);
/// Destinations without traffic for this long are forgotten.
pub const TARGET_IDLE: Duration = Duration::from_secs(600);

// Routes of one destination.

/// Rules.
pub const ROUTE_RULES: usize = 2048;
/// Conditions, all kinds together.
pub const ROUTE_MATCHES: usize = 16 * 1024;
/// Header fields, query parameters or hosts of one condition.
pub const ROUTE_CONDITIONS: usize = 64;
/// Length of a path, value or regular expression.
pub const ROUTE_TEXT_BYTES: usize = 4096;
/// Size of a compiled regular expression, and of what is learned while it runs.
pub const ROUTE_EXPRESSION_BYTES: usize = 256 * 1024;
/// The same for all expressions of paths, which run as one.
pub const ROUTE_EXPRESSIONS_BYTES: usize = 4 * 1024 * 1024;
/// Query parameters of a request that are looked at.
pub const ROUTE_PARAMETERS: usize = 1024;
/// Filters of a rule or of a backend.
pub const ROUTE_FILTERS: usize = 64;
/// Header fields in one list of a filter.
pub const ROUTE_FIELDS: usize = 64;
/// Backends of a rule.
pub const ROUTE_BACKENDS: usize = 256;
/// Services that all rules lead to.
pub const ROUTE_SERVICES: usize = 512;

// Policies.

/// Points on the ring of one group's endpoints, 16 bytes each.
pub const RING_POINTS: usize = 64 * 1024;
/// Points of one endpoint; so many keep shares within 5 %.
pub const RING_POINTS_EACH: usize = 8 * 1024;
/// The longest pause that an endpoint can ask for with `Retry-After`.
pub const MAX_PAUSE: Duration = Duration::from_secs(300);
/// Interval at which all endpoints of a group are looked through while some of them are ejected or pausing.
pub const TROUBLE_POLL: Duration = Duration::from_millis(20);
/// Keys that one rate limit tells apart; past it the others count together.
pub const RATE_KEYS: usize = 8192;
/// Interval at which keys are forgotten that have their whole burst again.
pub const RATE_SWEEP: Duration = Duration::from_secs(1);
/// Interval at which control is told how often shared rate limits are asked for.
pub const RATE_USE: Duration = Duration::from_secs(1);

// Telemetry.

/// Series of golden metrics; past it everything is counted under `other`.
pub const MAX_SERIES: usize = 1024;
/// Peers (workload, service and port) named in series; past it they are `other`.
pub const MAX_SCOPES: usize = 4096;
/// Learned routes of one service; past it they are `other`.
pub const MAX_ROUTES: usize = 100;
/// Length of a learned route.
pub const MAX_ROUTE_BYTES: usize = 128;
/// Lines of the access log waiting to be written; further ones are dropped and counted.
pub const ACCESS_LOG_LINES: usize = 4096;
/// Bytes of the access log written at once.
pub const ACCESS_LOG_BUFFER: usize = 64 * 1024;
/// How long the end of the proxy waits for the access log.
pub const ACCESS_LOG_FLUSH: Duration = Duration::from_millis(300);
/// Spans waiting to be sent; further ones are dropped and counted.
pub const SPANS: usize = 2048;
/// Spans sent at once.
pub const SPAN_BATCH: usize = 256;
/// How long a batch waits to become full.
pub const SPAN_WAIT: Duration = Duration::from_secs(1);
/// How long the collector may take.
pub const SPAN_TIMEOUT: Duration = Duration::from_secs(5);
/// A series without traffic for this long is forgotten, milliseconds.
pub const SERIES_IDLE_MS: u64 = 600_000;
/// One-second frames remembered: a minute, and some for windows that do not end with the last of them.
pub const RING_SECONDS: usize = 64;
/// What older seconds are folded into, milliseconds.
pub const RING_TEN_MS: u64 = 10_000;
/// How long these are remembered, milliseconds.
pub const RING_TENS_MS: u64 = 550_000;
/// Series in all remembered frames together; the oldest are told apart less, then forgotten.
pub const RING_SERIES: usize = 16 * 1024;
/// Endpoints that a golden frame tells of.
pub const FRAME_ENDPOINTS: usize = 256;
/// Series in what a proxy tells of its past when it ends.
pub const FAREWELL_SERIES: usize = 4 * 1024;
/// A second's frame that is closed this much late still counts as that second, milliseconds.
pub const TICK_SLACK_MS: u64 = 100;
/// Endpoints listed on `/metrics`.
pub const MAX_ENDPOINT_METRICS: usize = 2048;

// Taps.

/// Taps at once.
pub const TAPS: usize = 16;
/// Events a second that one tap may ask for.
pub const TAP_MAX_RPS: u32 = 10_000;
/// Events of one tap that wait to be fetched; further ones are counted as left out.
pub const TAP_EVENTS: usize = 2048;
/// Bytes of their headers and bodies.
pub const TAP_BYTES: usize = 1024 * 1024;
/// Interval at which they are fetched.
pub const TAP_FLUSH: Duration = Duration::from_millis(50);
/// Addresses that a filter's place may mean.
pub const TAP_ADDRESSES: usize = 10_000;
/// Header fields of one message that are told.
pub const TAP_HEADERS: usize = 100;
/// Length of a header field's value, as told.
pub const TAP_VALUE_BYTES: usize = 1024;

// Control.

/// Attempt to connect to control, name resolution and connecting each; short, so that its return is noticed soon.
pub const CONTROL_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// TLS handshake with control, which may be busy when all proxies come back at once.
pub const CONTROL_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Answer to a certificate request.
pub const CERTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time over which proxies spread their asking for a certificate of another issuer.
pub const RENEW_WINDOW: Duration = Duration::from_secs(120);
/// Pause between two certificates asked for because of another issuer.
pub const RENEW_PAUSE: Duration = Duration::from_secs(3);
/// Pause between two certificates asked for because control refuses ours.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// First pause after a failed attempt to reach control.
pub const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause after a failed attempt to reach control.
pub const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// Silence of control after which the stream is taken for dead.
pub const CONTROL_SILENCE: Duration = Duration::from_secs(15);
/// Interval of HTTP/2 pings to control.
pub const CONTROL_PING: Duration = Duration::from_secs(2);
/// One line from control.
pub const CONTROL_LINE_BYTES: usize = 8 * 1024 * 1024;
/// Messages to control waiting to be sent.
pub const CONTROL_QUEUE: usize = 64;
/// How long the end of the proxy waits until control has heard its last words.
pub const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);
/// Size of the answer to a certificate request.
pub const CERTIFY_BYTES: usize = 256 * 1024;

// Access and egress policies.

/// Rules of the policies of a kind about one workload: each request is held against them one by one.
pub const POLICY_RULES: usize = 4096;
/// Policies of a kind whose decisions are counted under their own names; those of others under `other`.
pub const POLICIES_COUNTED: usize = 256;
/// How often a refusal is logged for a policy and a caller, or for a policy about what leaves.
pub const POLICY_LOG_EVERY: Duration = Duration::from_secs(60);
/// Pairs of policy and caller that have a log line of their own; further ones share one.
pub const POLICY_LOG_LINES: usize = 1024;
/// How long a client that would not be let in unseen may stay silent before it says what it wants.
pub const ACCESS_SILENCE: Duration = Duration::from_secs(30);
/// How long a client that says nothing is heard when no endpoint can be: it may turn out to be a probe, which goes
/// without a word, or speak a protocol that has an answer for that.
pub const UNREACHED_SILENCE: Duration = Duration::from_secs(1);
/// Routes that access policies of a workload are about.
pub const ACCESS_ROUTES: usize = 64;
/// Issuers of tokens that they ask for.
pub const ACCESS_JWTS: usize = 16;
/// Keys of each issuer.
pub const JWT_KEYS: usize = 32;
/// Length of a token.
pub const JWT_BYTES: usize = 16 * 1024;
/// Services that access policies of a workload ask about requests.
pub const EXTERNAL_SERVICES: usize = 16;
/// Questions to such services under way at once.
pub const EXTERNAL_QUESTIONS: usize = 512;
/// How long an answer may take, whatever a policy says.
pub const EXTERNAL_TIME: Duration = Duration::from_secs(30);
/// Size of an answer's body, which nobody reads.
pub const EXTERNAL_ANSWER: usize = 64 * 1024;
/// Hosts outside the cluster that are counted under their own names; others under `other`.
pub const EGRESS_HOSTS: usize = 128;
/// Ports of each of them.
pub const EGRESS_HOST_PORTS: usize = 8;
/// Length of such a name (RFC 1035, section 2.3.4).
pub const EGRESS_HOST_BYTES: usize = 253;

// Process.

/// How long the proxy goes on listening after SIGTERM, while others forget it, unless set otherwise (`--drain-linger`).
pub const DRAIN_LINGER: Duration = Duration::from_secs(2);
/// How long after that an HTTP/1 connection may stay silent before it is closed: a request may be on its way on it.
pub const DRAIN_SETTLE: Duration = Duration::from_secs(1);
/// How long an application must hold no TCP socket to count as ended. Part of the linger, unless that is shorter.
pub const APPLICATION_SETTLE: Duration = Duration::from_secs(1);
/// How often a proxy that ends looks whether it holds one.
pub const APPLICATION_POLL: Duration = Duration::from_millis(200);
/// How often `mesh-proxy await` asks.
pub const READY_POLL: Duration = Duration::from_millis(100);
/// How long the answer may take.
pub const READY_TIMEOUT: Duration = Duration::from_secs(2);
/// Size of the answer.
pub const READY_BYTES: u64 = 4096;
/// How often the files of `--config` are looked at.
pub const FILE_POLL: Duration = Duration::from_secs(1);
/// How long they must stay as they are before a change counts.
pub const FILE_SETTLE: Duration = Duration::from_millis(200);
/// Size of each of them.
pub const FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Stack of every thread but the first.
pub const THREAD_STACK: usize = 512 * 1024;
/// Connections to the admin port.
pub const ADMIN_CONNECTIONS: usize = 64;

// An idle connection is closed by the side that may open another one, never while a request is on its way on it.
const _: () = assert!(POOL_IDLE_TIMEOUT.as_secs() + SWEEP_INTERVAL.as_secs() < HTTP1_CLIENT_IDLE.as_secs());

// The node's network plugin (CNI).

/// What a container runtime hands to the plugin: its configuration, and what the plugins before it did.
pub const CNI_INPUT_BYTES: u64 = 1024 * 1024;
/// Connecting to the agent.
pub const CNI_CONNECT: Duration = Duration::from_secs(2);
/// Its answer, for which it may have to ask the API server more than once.
pub const CNI_ANSWER: Duration = Duration::from_secs(15);
/// Each step of the connection that proves a redirect.
pub const CHECK_WAIT: Duration = Duration::from_secs(3);
