//! One record per request and one per opaque connection, opened first and closed on drop: whatever happens in
//! between, it is counted exactly once.

use crate::body::Received;
use crate::golden::{Cell, Finished, Golden, Scope, Subject};
use crate::request::Client;
use crate::story::Story;
use crate::tap::witness::{Onlooker, Witness};
use crate::tcp::Ended;
use bytes::Bytes;
use hyper::body::Frame;
use mesh_api::MeshError;
use mesh_api::golden::{Carried, Ending, TlsStatus};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// The account of one HTTP request.
#[derive(Debug)]
pub struct Record {
    golden: Arc<Golden>,
    scope: Arc<Scope>,
    subject: Subject,
    opened: Instant,
    first_byte: Option<Duration>,
    status: Option<u16>,
    grpc_status: Option<u16>,
    error: Option<MeshError>,
    /// The statuses of a refusal, if they are not the error's own.
    refusal: Option<(u16, u16)>,
    complete: bool,
    attempts: u32,
    /// Sees the request for taps that may be interested.
    pub witness: Option<Box<Witness>>,
    /// What is told of the request whether somebody looks or not.
    pub story: Option<Box<Story>>,
    attempted: Instant,
}

impl Record {
    /// Opens the account when the request's head has been read.
    pub fn open(golden: &Arc<Golden>, scope: &Arc<Scope>, subject: Subject) -> Self {
        let opened = Instant::now();
        Self {
            golden: golden.clone(),
            scope: scope.clone(),
            subject,
            opened,
            attempted: opened,
            first_byte: None,
            status: None,
            grpc_status: None,
            error: None,
            refusal: None,
            complete: false,
            attempts: 0,
            witness: None,
            story: None,
        }
    }

    /// Lets taps look on.
    pub fn call_witness(&mut self, client: &Arc<Client>, request: &http::Request<Received>) {
        self.witness = Witness::of(client, &self.subject, request);
    }

    /// A piece of the response's body passes.
    pub fn passes(&mut self, frame: &Frame<Bytes>) {
        if let (Some(story), Some(data)) = (&mut self.story, frame.data_ref()) {
            story.passed(data.len());
        }
        if let Some(witness) = &self.witness {
            witness.download(frame);
        }
    }

    /// The request goes to an endpoint: from now on it is counted there. An attempt before this one has failed, and is
    /// counted as such where it went.
    pub fn attempt(&mut self, scope: Option<&Arc<Scope>>, tls: TlsStatus) {
        if self.attempts > 0 {
            let now = Instant::now();
            let took = now.saturating_duration_since(self.attempted);
            self.golden.cell(&self.scope, self.subject.clone()).attempt_failed(took);
            self.attempted = now;
        }
        self.attempts += 1;
        self.subject.tls = tls;
        if let Some(scope) = scope {
            self.scope = scope.clone();
        }
    }

    /// Where it is counted.
    pub fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }

    /// The response's head has arrived.
    pub fn answered(&mut self, status: u16) {
        self.first_byte = Some(self.opened.elapsed());
        self.status = Some(status);
    }

    /// A gRPC status has arrived, in the head or the trailers.
    pub fn grpc_status(&mut self, status: u16) {
        self.grpc_status = Some(status);
    }

    /// The mesh will answer with this HTTP or gRPC status.
    pub fn refused_with(&mut self, status: Option<(u16, u16)>) {
        self.refusal = status;
    }

    /// The mesh answers instead of an endpoint.
    pub fn failed(&mut self, error: MeshError) {
        self.error = Some(error);
        self.first_byte.get_or_insert(self.opened.elapsed());
        if self.is_grpc() {
            self.status = Some(200);
            self.grpc_status = Some(self.refusal.map_or(error.grpc_status(), |(_, grpc)| grpc));
        } else {
            self.status = Some(self.refusal.map_or(error.http_status(), |(http, _)| http));
        }
        self.complete = true;
    }

    /// The answer is an error of the other proxy.
    pub fn remote_error(&mut self, error: MeshError) {
        self.error = Some(error);
    }

    /// The response came to its regular end.
    pub fn completed(&mut self) {
        self.complete = true;
    }

    /// True if the request is gRPC.
    pub fn is_grpc(&self) -> bool {
        self.subject.carried == Carried::Grpc
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let now = Instant::now();
        let finished = Finished {
            status: self.status,
            grpc_status: self.grpc_status,
            error: self.error,
            complete: self.complete,
            attempts: self.attempts,
            last_attempt: now.saturating_duration_since(self.attempted),
            latency: now.saturating_duration_since(self.opened),
            first_byte: self.first_byte,
        };
        let cell = self.golden.cell(&self.scope, self.subject.clone());
        cell.finish(&finished);
        if let Some(story) = self.story.take() {
            story.end(&cell, &self.subject, &finished);
        }
        if let Some(witness) = self.witness.take() {
            witness.tell(&self.subject, &self.scope, &finished);
        }
    }
}

/// The account of one opaque connection.
#[derive(Debug)]
pub struct ConnectionRecord {
    cell: Arc<Cell>,
    opened: Instant,
    error: Option<MeshError>,
    ending: OnceLock<Ending>,
    onlooker: Option<Onlooker>,
}

impl ConnectionRecord {
    /// Opens the account; `route` is empty for all but probes.
    pub fn open(golden: &Golden, scope: &Arc<Scope>, tls: TlsStatus, route: Arc<str>) -> Self {
        let subject = Subject { carried: Carried::Tcp, tls, route, method: "" };
        let cell = golden.cell(scope, subject);
        cell.tcp_opened();
        Self { cell, opened: Instant::now(), error: None, ending: OnceLock::new(), onlooker: None }
    }

    /// Lets taps look on.
    #[must_use]
    pub fn seen_by(mut self, onlooker: Onlooker) -> Self {
        self.onlooker = Some(onlooker);
        self
    }

    /// Bytes are going to pass.
    pub fn begins(&self) {
        if let Some(onlooker) = &self.onlooker {
            onlooker.opened();
        }
    }

    /// Bytes came from the client.
    pub fn read(&self, bytes: u64) {
        self.cell.tcp_bytes(bytes, 0);
        if let Some(onlooker) = &self.onlooker {
            onlooker.bytes(bytes, 0);
        }
    }

    /// Bytes came from the server.
    pub fn written(&self, bytes: u64) {
        self.cell.tcp_bytes(0, bytes);
        if let Some(onlooker) = &self.onlooker {
            onlooker.bytes(0, bytes);
        }
    }

    /// No more bytes pass.
    pub fn ended(&self, ended: Ended) {
        // It ends once.
        let _ = self.ending.set(match ended {
            Ended::Orderly => Ending::Orderly,
            Ended::ByClient => Ending::ByClient,
            Ended::ByServer => Ending::ByServer,
        });
    }

    /// The mesh could not serve the connection.
    pub fn failed(&mut self, error: MeshError) {
        self.error = Some(error);
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        let given_up = if self.error.is_some() { Ending::ByMesh } else { Ending::Cut };
        let ending = self.ending.get().copied().unwrap_or(given_up);
        self.cell.tcp_closed(ending, self.error, self.opened.elapsed());
        if let Some(onlooker) = &self.onlooker {
            onlooker.closed(self.cell.subject(), ending, self.error);
        }
    }
}

/// The label for a method: a registered one, or `other`.
pub fn method_label(method: &http::Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::WorkloadRef;
    use mesh_api::golden::{Direction, Series};

    fn one_series(golden: &Golden) -> Series {
        let frame = golden.tick(1000, true);
        assert_eq!(frame.series.len(), 1);
        frame.series[0].1.clone()
    }

    fn record(golden: &Arc<Golden>, carried: Carried) -> Record {
        let scope = golden.scope(Direction::Inbound, &WorkloadRef::new("a", "serviceaccount", "b"), None, 80);
        let subject = Subject { carried, tls: TlsStatus::Plain, route: Arc::from("/"), method: "GET" };
        Record::open(golden, &scope, subject)
    }

    #[test]
    fn a_dropped_record_counts_once_as_a_failure() {
        let golden = Arc::new(Golden::new(0));
        drop(record(&golden, Carried::Http));
        let series = one_series(&golden);
        assert_eq!((series.requests, series.successes, series.statuses.len()), (1, 0, 0));
    }

    #[test]
    fn attempts_and_statuses_are_kept() {
        let golden = Arc::new(Golden::new(0));
        let mut r = record(&golden, Carried::Http);
        r.attempt(None, TlsStatus::Mutual);
        r.attempt(None, TlsStatus::Mutual);
        r.answered(204);
        r.completed();
        drop(r);
        let series = one_series(&golden);
        assert_eq!((series.retries, series.successes, series.statuses[&204]), (1, 1, 1));
        let actual = series.actual();
        assert_eq!((actual.attempts, actual.successes, actual.latency.count()), (2, 1, 2));
    }

    #[test]
    fn an_error_of_the_mesh_has_both_statuses() {
        let golden = Arc::new(Golden::new(0));
        record(&golden, Carried::Grpc).failed(MeshError::NoEndpoints);
        let series = one_series(&golden);
        assert_eq!((series.statuses[&200], series.grpc_statuses[&14], series.successes), (1, 1, 0));
        assert_eq!(series.errors[&MeshError::NoEndpoints], 1);
    }

    #[test]
    fn method_labels_are_bounded() {
        assert_eq!(method_label(&http::Method::GET), "GET");
        assert_eq!(method_label(&http::Method::from_bytes(b"PURGE").unwrap()), "other");
    }
}
