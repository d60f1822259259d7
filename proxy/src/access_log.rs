//! The access log: a line for each request and each opaque connection that has ended, in JSON or in Apache's combined
//! form, on standard output.
//!
//! Nothing waits for it. Lines go through a bounded queue to a thread of their own; what does not fit is dropped and
//! counted.

use crate::limits;
use crate::metrics::{Counters, count};
use mesh_api::golden::TlsStatus;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, sync_channel};

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Not at all.
    #[default]
    Off,
    /// A JSON object a line.
    Json,
    /// Apache's combined form, with the mesh's error code (or `-`) after it.
    Apache,
}

impl FromStr for Form {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Form::Off),
            "json" => Ok(Form::Json),
            "apache" => Ok(Form::Apache),
            _ => Err(format!("`{text}` is no form of an access log; there are json, apache and off")),
        }
    }
}

/// A request that has ended, as the log tells it. Field names are those of the JSON form.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// End, RFC 3339.
    pub time: String,
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// Who called.
    pub client: SocketAddr,
    /// The identity the caller proved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_identity: Option<String>,
    /// The workload at the other end.
    pub peer: String,
    /// HTTP method.
    pub method: String,
    /// `Host`, or `:authority`.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// `HTTP/1.1` and the like.
    pub version: String,
    /// The route it was counted under.
    pub route: String,
    /// HTTP status; none if the request ended without an answer.
    pub status: Option<u16>,
    /// gRPC status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    /// The mesh's error, as in the `mesh-error` header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'static str>,
    /// Bytes of the response's body.
    pub response_bytes: u64,
    /// From the request's head to the response's end.
    pub duration_ms: f64,
    /// From the request's head to the response's head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<f64>,
    /// Attempts made.
    pub attempts: u32,
    /// `mutual`, `plain` or `passthrough`.
    pub tls: &'static str,
    /// `Referer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub referer: Option<String>,
    /// `User-Agent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    /// W3C trace id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

/// An opaque connection that has ended, as the log tells it. Field names are those of the JSON form.
#[derive(Debug, Serialize)]
pub struct Connection {
    /// End, RFC 3339.
    pub time: String,
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// Always `TCP`; requests have `HTTP/1.1` and the like here.
    pub version: &'static str,
    /// Who called.
    pub client: SocketAddr,
    /// The identity the caller proved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_identity: Option<String>,
    /// The workload at the other end.
    pub peer: String,
    /// Where it went: the endpoint, or the address called where there was none.
    pub server: SocketAddr,
    /// The server name of the application's own TLS, where there is one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub route: String,
    /// Why it ended: `orderly`, `by_client`, `by_server`, `by_mesh` or `cut`.
    pub ending: &'static str,
    /// The mesh's error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'static str>,
    /// Bytes that came from the client.
    pub read_bytes: u64,
    /// Bytes that came from the server.
    pub written_bytes: u64,
    /// From its acceptance to its end.
    pub duration_ms: f64,
    /// `mutual`, `plain` or `passthrough`.
    pub tls: &'static str,
}

/// How a leg is protected, in a word.
pub fn protection(tls: TlsStatus) -> &'static str {
    match tls {
        TlsStatus::Mutual => "mutual",
        TlsStatus::Passthrough => "passthrough",
        TlsStatus::Plain => "plain",
    }
}

/// Civil time of Unix milliseconds, in UTC: year, month, day, hour, minute, second, millisecond.
pub fn civil(unix_ms: u64) -> (i64, u8, u8, u8, u8, u8, u16) {
    let (days, ms) = ((unix_ms / 86_400_000) as i64, unix_ms % 86_400_000);
    // Days since 0000-03-01, in eras of 400 years: leap days then stand at the end of a year.
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    (year, month as u8, day as u8, hour as u8, minute as u8, second as u8, (ms % 1000) as u16)
}

/// A time as RFC 3339 writes it.
pub fn rfc3339(unix_ms: u64) -> String {
    let (year, month, day, hour, minute, second, ms) = civil(unix_ms);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// A time as Apache writes it.
fn apache_time(unix_ms: u64) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (year, month, day, hour, minute, second, _) = civil(unix_ms);
    let month = MONTHS[usize::from(month.clamp(1, 12)) - 1];
    format!("[{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000]")
}

fn or_dash(text: Option<&str>) -> String {
    text.map_or("-".to_owned(), quoted)
}

/// An opaque connection in Apache's combined form: it stands where a request would, with the server for a target; no
/// status, and the bytes the client got.
fn apache_connection(connection: &Connection, unix_ms: u64) -> String {
    format!(
        "{} - {} {} \"CONNECT {} {}\" - {} \"-\" \"-\" {}\n",
        connection.client.ip(),
        or_dash(connection.client_identity.as_deref()),
        apache_time(unix_ms),
        connection.server,
        connection.version,
        connection.written_bytes,
        connection.error.unwrap_or("-"),
    )
}

/// A line in Apache's combined form.
fn apache(entry: &Entry, unix_ms: u64) -> String {
    let status = entry.status.map_or("-".to_owned(), |status| status.to_string());
    format!(
        "{} - {} {} \"{} {} {}\" {status} {} \"{}\" \"{}\" {}\n",
        entry.client.ip(),
        or_dash(entry.client_identity.as_deref()),
        apache_time(unix_ms),
        quoted(&entry.method),
        quoted(&entry.path),
        entry.version,
        entry.response_bytes,
        or_dash(entry.referer.as_deref()),
        or_dash(entry.user_agent.as_deref()),
        entry.error.unwrap_or("-"),
    )
}

/// Text that stays between its quotation marks and on its line.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            // Writing to a String cannot fail.
            c if c.is_control() => drop(write!(out, "\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

fn json(told: &impl Serialize) -> String {
    serde_json::to_string(told).map(|line| line + "\n").unwrap_or_default()
}

enum Message {
    Line(String),
    Flush(SyncSender<()>),
}

/// The way to the log.
#[derive(Debug)]
pub struct AccessLog {
    form: Form,
    queue: Option<SyncSender<Message>>,
    counters: Arc<Counters>,
}

impl AccessLog {
    /// A log on standard output; none if its form is `off` or its thread cannot start.
    pub fn start(form: Form, counters: Arc<Counters>) -> Self {
        let queue = (form != Form::Off).then(|| Self::write_to(std::io::stdout())).flatten();
        Self { form, queue, counters }
    }

    fn write_to(out: impl Write + Send + 'static) -> Option<SyncSender<Message>> {
        let (queue, lines) = sync_channel(limits::ACCESS_LOG_LINES);
        let writer = std::thread::Builder::new().name("access-log".to_owned()).stack_size(limits::THREAD_STACK);
        match writer.spawn(move || write_lines(&lines, out)) {
            Ok(_) => Some(queue),
            Err(error) => {
                tracing::warn!(%error, "there will be no access log: its thread cannot start");
                None
            }
        }
    }

    /// True if requests are logged.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Logs a request that ended at this Unix time.
    pub fn tell(&self, entry: &Entry, unix_ms: u64) {
        self.put(|form| match form {
            Form::Apache => apache(entry, unix_ms),
            Form::Json | Form::Off => json(entry),
        });
    }

    /// Logs an opaque connection that ended at this Unix time.
    pub fn tell_connection(&self, connection: &Connection, unix_ms: u64) {
        self.put(|form| match form {
            Form::Apache => apache_connection(connection, unix_ms),
            Form::Json | Form::Off => json(connection),
        });
    }

    /// Puts a line into the queue; drops and counts it if that is full.
    fn put(&self, line: impl FnOnce(Form) -> String) {
        let Some(queue) = &self.queue else { return };
        let line = line(self.form);
        if queue.try_send(Message::Line(line)).is_err() {
            count(&self.counters.access_log_dropped);
        }
    }

    /// Waits a moment until what was logged is written: before the process ends.
    pub fn flush(&self) {
        let Some(queue) = &self.queue else { return };
        let (done, wait) = sync_channel(1);
        if queue.try_send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(limits::ACCESS_LOG_FLUSH);
        }
    }
}

/// Writes lines until nobody sends any; whole batches, flushed when there is nothing left to wait for.
fn write_lines(lines: &Receiver<Message>, out: impl Write) {
    let mut out = std::io::BufWriter::with_capacity(limits::ACCESS_LOG_BUFFER, out);
    loop {
        let message = match lines.try_recv() {
            Ok(message) => Ok(message),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                // A reader that has gone away is no reason to stop carrying traffic.
                let _ = out.flush();
                lines.recv()
            }
        };
        match message {
            Ok(Message::Line(line)) => drop(out.write_all(line.as_bytes())),
            Ok(Message::Flush(done)) => {
                let _ = out.flush();
                let _ = done.try_send(());
            }
            Err(RecvError) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::Ordering;
    use std::sync::mpsc::channel;

    fn entry() -> Entry {
        Entry {
            time: rfc3339(1_795_256_430_042),
            direction: "inbound",
            client: ([10, 244, 0, 9], 41000).into(),
            client_identity: Some("spiffe://cluster.local/ns/shop/sa/load".to_owned()),
            peer: "shop/serviceaccount/load".to_owned(),
            method: "GET".to_owned(),
            host: "web".to_owned(),
            path: "/a\"b\n?c=1".to_owned(),
            version: "HTTP/1.1".to_owned(),
            route: "/a".to_owned(),
            status: Some(503),
            grpc_status: None,
            error: Some("no-endpoints"),
            response_bytes: 77,
            duration_ms: 1.5,
            first_byte_ms: Some(1.25),
            attempts: 0,
            tls: "mutual",
            referer: None,
            user_agent: Some("curl/8".to_owned()),
            trace_id: None,
        }
    }

    #[test]
    fn lines_are_what_readers_of_logs_expect() {
        insta::assert_snapshot!(apache(&entry(), 1_795_256_430_042), @r#"10.244.0.9 - spiffe://cluster.local/ns/shop/sa/load [21/Nov/2026:10:20:30 +0000] "GET /a\"b\x0a?c=1 HTTP/1.1" 503 77 "-" "curl/8" no-endpoints"#);
        insta::assert_snapshot!(serde_json::to_string(&entry()).unwrap(), @r#"{"time":"2026-11-21T10:20:30.042Z","direction":"inbound","client":"10.244.0.9:41000","client_identity":"spiffe://cluster.local/ns/shop/sa/load","peer":"shop/serviceaccount/load","method":"GET","host":"web","path":"/a\"b\n?c=1","version":"HTTP/1.1","route":"/a","status":503,"error":"no-endpoints","response_bytes":77,"duration_ms":1.5,"first_byte_ms":1.25,"attempts":0,"tls":"mutual","user_agent":"curl/8"}"#);
    }

    #[test]
    fn connections_have_lines_too() {
        let connection = Connection {
            time: rfc3339(1_795_256_430_042),
            direction: "outbound",
            version: "TCP",
            client: ([10, 244, 0, 9], 41000).into(),
            client_identity: None,
            peer: "shop/deployment/ledger".to_owned(),
            server: ([10, 244, 0, 3], 7000).into(),
            route: String::new(),
            ending: "by_server",
            error: None,
            read_bytes: 4,
            written_bytes: 6,
            duration_ms: 2.5,
            tls: "mutual",
        };
        insta::assert_snapshot!(apache_connection(&connection, 1_795_256_430_042), @r#"10.244.0.9 - - [21/Nov/2026:10:20:30 +0000] "CONNECT 10.244.0.3:7000 TCP" - 6 "-" "-" -"#);
        insta::assert_snapshot!(json(&connection), @r#"{"time":"2026-11-21T10:20:30.042Z","direction":"outbound","version":"TCP","client":"10.244.0.9:41000","peer":"shop/deployment/ledger","server":"10.244.0.3:7000","ending":"by_server","read_bytes":4,"written_bytes":6,"duration_ms":2.5,"tls":"mutual"}"#);
    }

    #[test]
    fn dates_are_right() {
        for (ms, expect) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(ms), expect);
        }
    }

    /// A reader that reads a line when it is allowed to.
    struct Slow(std::sync::mpsc::Receiver<()>, Arc<parking_lot::Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            self.1.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_reader_costs_lines_and_never_time() {
        let (allow, allowed) = channel();
        let (written, counters) = (Arc::default(), Arc::new(Counters::default()));
        let queue = AccessLog::write_to(Slow(allowed, Arc::clone(&written)));
        let log = AccessLog { form: Form::Json, queue, counters: counters.clone() };
        let begun = std::time::Instant::now();
        let sent = 3 * limits::ACCESS_LOG_LINES as u64;
        for _ in 0..sent {
            log.tell(&entry(), 0);
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(20));
        let dropped = counters.access_log_dropped.load(Ordering::Relaxed);
        assert!(dropped > 0);
        drop(allow); // from now on it reads all there is
        while (written.lock().iter().filter(|b| **b == b'\n').count() as u64) < sent - dropped {
            log.flush();
        }
        assert!(written.lock().split(|b| *b == b'\n').filter(|l| !l.is_empty()).all(|line| line.ends_with(b"}")));
    }

    proptest! {
        #[test]
        fn a_quoted_text_is_one_word_of_one_line(text in "\\PC{0,20}[\"\\\\\n]{0,3}") {
            let quoted = quoted(&text);
            prop_assert!(!quoted.contains('\n'));
            let mut escaped = false;
            for c in quoted.chars() {
                prop_assert!(escaped || c != '"');
                escaped = !escaped && c == '\\';
            }
        }
    }
}
