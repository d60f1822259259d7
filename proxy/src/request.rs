//! The straight line: what happens to one HTTP request, arriving or leaving, from its head to the end of its response.

use crate::access;
use crate::balance;
use crate::body::{Download, Received};
use crate::course::{Course, Taken};
use crate::drain::Phase;
use crate::egress;
use crate::error::{Delivered, Failure};
use crate::golden::{Scope, Subject};
use crate::grpc;
use crate::headers::{ambiguity, authority, response_ambiguity, strip_hop_by_hop, wants_upgrade};
use crate::limits;
use crate::metrics::count;
use crate::mirror;
use crate::proxy::Proxy;
use crate::record::{ConnectionRecord, Record, method_label};
use crate::retry::{self, Retries, Tries, Withheld};
use crate::state::{Backend, Group, Target};
use crate::story::{self, Story};
use crate::tap::witness::{self, Onlooker};
use crate::tcp;
use crate::timeout::{self, Deadline};
use crate::upload::{Upload, listen_for_continue};
use crate::upstream::{self, Flight, Lease, Outgoing, Unanswered};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::body::Body;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mesh_api::golden::{Carried, Direction, TlsStatus};
use mesh_api::{MeshError, SpiffeId};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ERROR_HEADER: HeaderName = HeaderName::from_static(mesh_api::names::ERROR_HEADER);

/// What all requests of one client connection have in common.
#[derive(Debug)]
pub struct Client {
    /// The proxy.
    pub proxy: Arc<Proxy>,
    /// Arriving for the application, or leaving it.
    pub direction: Direction,
    /// Where requests go.
    pub target: Arc<Target>,
    /// Who calls.
    pub from: SocketAddr,
    /// The identity the caller proved.
    pub identity: Option<SpiffeId>,
    /// Under which name they are counted until an endpoint is chosen.
    pub scope: Arc<Scope>,
    /// How the leg between the pods is protected, as far as this side knows (outbound: the endpoint decides).
    pub tls: TlsStatus,
    /// An error that answers every request.
    pub refusal: Option<MeshError>,
}

impl Client {
    /// The error that a failure is answered with. An application that is gone while its pod ends is no riddle.
    pub fn error_for(&self, failure: &Failure) -> MeshError {
        let ends = self.direction == Direction::Inbound && self.proxy.drain.phase() >= Phase::Leaving;
        if ends && failure.code == MeshError::ConnectFailed { MeshError::Draining } else { failure.code }
    }
}

/// Serves one request.
pub async fn serve(client: Arc<Client>, mut request: Request<Received>) -> Response<Download> {
    let proxy = &client.proxy;
    let known = client.target.now();

    // Account: from here on the request counts, whatever happens.
    let grpc = grpc::is_call(&request);
    let taken = Taken::of(&known, &request, grpc);
    let outside = egress::scope_of_request(&client, &known, &request);
    let scope = outside.as_ref().unwrap_or(&client.scope);
    let mut record = Record::open(&proxy.golden, scope, subject(&client, &request, grpc, &taken));
    record.call_witness(&client, &request);
    record.story = Story::begin(&client, &mut request);

    // Admit: refuse what must not be forwarded.
    if let Some(refusal) = client.refusal {
        return refuse(record, refusal, "");
    }
    if let Some(why) = ambiguity(&request) {
        return refuse(record, MeshError::InvalidRequest, why);
    }
    if let Some(why) = access::refused(&client, &request, record.is_grpc()) {
        return refuse(record, MeshError::AccessDenied, &why);
    }
    if let Some(why) = egress::refused(&client, &known, &request) {
        return refuse(record, MeshError::EgressDenied, &why);
    }

    // Route: to the backend that the rule which takes it chooses, or to the destination's own endpoints.
    if let Some(redirect) = taken.redirect(&client.target, &request) {
        return send_elsewhere(record, redirect);
    }
    let course = match Course::set(proxy, &known, taken, &request) {
        Ok(course) => course,
        Err(refusal) => return refuse(record, refusal, ""),
    };
    if let Some(redirect) = course.redirect(&client.target, &request) {
        return send_elsewhere(record, redirect);
    }

    // Prepare: the request as the next hop should see it.
    let upgrade = wants_upgrade(&request).then(|| hyper::upgrade::on(&mut request));
    let mut request = prepare(request, &client.target, upgrade.is_some());
    course.change_request(&mut request);
    mirror::send(proxy, &known, course.mirrors(), &mut request);
    if let Some(witness) = &record.witness {
        request.body_mut().count_with(witness.upload());
    }
    let gate = request.body().gate();
    let times = course.timeouts();
    let asked = if client.direction == Direction::Outbound { timeout::asked(&request) } else { None };
    let call = if grpc { grpc::allowed(&request) } else { None };
    let mut deadline = Deadline::of(&times, asked, call, &mut request);
    let mut tries = Tries::begin(course.retries(), request.method(), grpc, Instant::now());
    if let Some(retries) = tries.left() {
        request.body_mut().keep(retries.body_bytes());
    }

    // Send: to the best endpoint, to another one as long as nothing was delivered, and again where a policy says so.
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut kept = course.kept.cloned();
    let (response, lease, flight, backend, began) = loop {
        let Some(backend) = kept.take().or_else(|| choose(proxy, course.group, &tried)) else {
            return refuse(record, MeshError::NoEndpoints, "");
        };
        record.attempt(backend.scope.as_ref(), protection(&client, &backend));
        if let Some(witness) = &mut record.witness {
            witness.sent_to(&backend);
        }
        let flight = Flight::start(&backend);
        if let Some(deadline) = &deadline {
            deadline.tell(&mut request);
        }
        let began = Instant::now();
        let outcome = {
            let head = timeout::of_head(&times, tries.left().and_then(Retries::per_try));
            let attempt = pin!(attempt(&client, &course, &backend, request, &tries, tried.len(), head));
            timeout::within(&mut deadline, attempt).await
        };
        let Some(outcome) = outcome else {
            return refuse(record, Deadline::reached(deadline.as_ref()), "");
        };
        tried.push(backend.endpoint.address);
        let again = match outcome {
            Ok((response, lease, spare)) => {
                flight.answered();
                match try_again(proxy, &mut tries, &retry::Outcome::of(&response), spare) {
                    Some(again) => again,
                    None => break (response, lease, flight, backend, began),
                }
            }
            Err(Unanswered { failure, request: unsent }) => {
                flight.failed(&failure);
                let again = match unsent {
                    Some(unsent) if may_try_another(&failure, course.group, tried.len()) => {
                        Some((unsent, Duration::ZERO))
                    }
                    unsent => try_again(proxy, &mut tries, &retry::Outcome::default(), unsent),
                };
                match again {
                    Some(again) => again,
                    None => return refuse(record, client.error_for(&failure), ""),
                }
            }
        };
        if tried.len() >= course.group.backends.len() {
            tried.clear(); // all had their turn
        }
        let pause;
        (request, pause) = again;
        if !pause.is_zero() && timeout::within(&mut deadline, tokio::time::sleep(pause)).await.is_none() {
            return refuse(record, Deadline::reached(deadline.as_ref()), "");
        }
    };
    let limit = times.backend_request.map(|limit| (began + limit.duration()).into());
    let deadline = Deadline::sooner(deadline, limit);

    // Answer: pass the response on, if it can be read in one way only; the account closes with its end.
    if let Some(why) = response_ambiguity(&response, upgrade.is_some()) {
        return refuse(record, MeshError::InvalidResponse, why);
    }
    let unwanted = gate.filter(|gate| gate.answered(response.status()));
    let lease = lease.filter(|_| unwanted.is_none());
    let close = unwanted.is_some();
    let watch = |body, record| Download::watch(body, record, flight, lease, unwanted, deadline);
    let mut response = respond(&client, &backend, record, upgrade, response, watch);
    course.change_response(&backend, response.headers_mut());
    if close {
        // The client may or may not send its body now; nobody can tell from the bytes alone.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What the request is counted as.
fn subject(client: &Client, request: &Request<Received>, grpc: bool, taken: &Taken<'_>) -> Subject {
    let learned = &client.target.learned;
    let route = match taken.name() {
        Some(rule) => rule,
        None if is_probe(client, request) => learned.probe(),
        None => learned.name(request.uri().path(), grpc),
    };
    Subject {
        carried: if grpc { Carried::Grpc } else { Carried::Http },
        tls: client.tls,
        route,
        method: if grpc { "" } else { method_label(request.method()) },
    }
}

/// Has the request answered by `backend`, its head within `head`. An answer of the other proxy that says its application
/// never saw the request counts as none, if the request can be sent again elsewhere. As long as there may be another try,
/// the request is given back with whatever comes, if all of it is there.
async fn attempt(
    client: &Client,
    course: &Course<'_>,
    backend: &Arc<Backend>,
    request: Outgoing,
    tries: &Tries<'_>,
    tried: usize,
    head: Option<Duration>,
) -> Result<(Response<Received>, Option<Lease>, Option<Outgoing>), Unanswered> {
    let meshed = protection(client, backend) == TlsStatus::Mutual && client.direction == Direction::Outbound;
    let elsewhere = meshed && has_another(course.group, tried + 1);
    let spare = (elsewhere || tries.left().is_some()).then(|| upstream::copy(&request));
    let whole = |spare: Option<Outgoing>| spare.filter(|spare| spare.body().is_whole());
    let sent = upstream::send(&client.proxy, backend, request, timeout::of_connect(&course.timeouts()));
    match timeout::at_most(head, sent).await {
        None => {
            let failure = Failure::delivered(MeshError::Timeout, "no response in the time of one try");
            Err(Unanswered { failure, request: whole(spare) })
        }
        Some(Err(Unanswered { failure, request })) => Err(Unanswered { failure, request: request.or(whole(spare)) }),
        Some(Ok((response, lease))) => {
            let spare = whole(spare);
            match spare.is_some().then(|| undelivered(&response)).flatten() {
                Some(failure) if elsewhere => Err(Unanswered { failure, request: spare }),
                _ => Ok((response, lease, spare)),
            }
        }
    }
}

/// The request again, and the pause before, if there is to be another try.
fn try_again(
    proxy: &Proxy,
    tries: &mut Tries<'_>,
    outcome: &retry::Outcome,
    request: Option<Outgoing>,
) -> Option<(Outgoing, Duration)> {
    tries.left()?;
    let random = proxy.random.lock().number();
    let counters = &proxy.counters;
    let withheld = match tries.again(outcome, request.is_some(), Instant::now(), random) {
        Ok(pause) => return Some((request?, pause?)),
        Err(Withheld::Budget) => &counters.retries_over_budget,
        Err(Withheld::RetryAfter) => &counters.retries_asked_later,
        Err(Withheld::Body) => &counters.retries_without_body,
    };
    count(withheld);
    None
}

/// The failure another proxy reports of a request that never reached its application, which has perhaps just ended.
fn undelivered(response: &Response<Received>) -> Option<Failure> {
    let code = response.headers().get(&ERROR_HEADER)?.as_bytes();
    let safe = [MeshError::ConnectFailed, MeshError::ConnectTimeout, MeshError::Draining];
    let error = safe.into_iter().find(|error| error.code().as_bytes() == code)?;
    Some(Failure::undelivered(error, "the endpoint's proxy could not reach its application"))
}

/// True if the failure lets the request, given back whole, go to an endpoint not tried yet.
fn may_try_another(failure: &Failure, group: &Group, tried: usize) -> bool {
    failure.delivered == Delivered::Nothing && has_another(group, tried)
}

fn has_another(group: &Group, tried: usize) -> bool {
    tried < limits::MAX_ATTEMPTS.min(group.backends.len())
}

/// The endpoint for the next attempt.
pub fn choose(proxy: &Proxy, group: &Group, tried: &[SocketAddr]) -> Option<Arc<Backend>> {
    let backends = &group.backends;
    let now = Instant::now();
    let mut random = proxy.random.lock();
    if tried.is_empty() {
        let at = balance::choose(backends.len(), |i| backends[i].load.lock().cost(now), &mut random)?;
        return Some(backends[at].clone());
    }
    let rest: Vec<&Arc<Backend>> = backends.iter().filter(|b| !tried.contains(&b.endpoint.address)).collect();
    let at = balance::choose(rest.len(), |i| rest[i].load.lock().cost(now), &mut random)?;
    Some(rest[at].clone())
}

/// How the leg between the pods is protected when traffic goes to `backend`.
fn protection(client: &Client, backend: &Backend) -> TlsStatus {
    match client.direction {
        Direction::Inbound => client.tls,
        Direction::Outbound if backend.endpoint.identity.is_some() && client.proxy.offers_identity() => {
            TlsStatus::Mutual
        }
        Direction::Outbound => client.tls,
    }
}

/// True for a health probe of the kubelet, which is no part of the mesh and says who it is.
fn is_probe(client: &Client, request: &Request<Received>) -> bool {
    client.direction == Direction::Inbound
        && client.tls == TlsStatus::Plain
        && request.headers().get(header::USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"kube-probe/"))
}

/// Turns the request into the one to be sent.
pub fn prepare(request: Request<Received>, target: &Target, upgrade: bool) -> Outgoing {
    let (mut parts, body) = request.into_parts();
    if parts.version != Version::HTTP_2 {
        strip_hop_by_hop(&mut parts.headers, upgrade);
        // HTTP/1.0 clients may leave the host out; HTTP/1.1 servers insist on it.
        if parts.version == Version::HTTP_10
            && !parts.headers.contains_key(header::HOST)
            && let Ok(host) = HeaderValue::from_str(&target.address.to_string())
        {
            parts.headers.insert(header::HOST, host);
        }
        // Content of unknown length travels in chunks, whatever the method.
        if !parts.headers.contains_key(header::CONTENT_LENGTH) && !body.is_end_stream() {
            parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let expects =
            parts.headers.get(header::EXPECT).is_some_and(|e| e.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if expects && parts.version == Version::HTTP_10 {
            parts.headers.remove(header::EXPECT); // HTTP/1.0 does not know it (RFC 9110, section 10.1.1)
        } else if expects {
            parts.version = Version::HTTP_11;
            let mut request = Box::new(Request::from_parts(parts, Upload::on_request(body)));
            listen_for_continue(&mut request);
            return request;
        }
        parts.version = Version::HTTP_11;
    } else if parts.uri.authority().is_none()
        && let Some(authority) = parts.headers.get(header::HOST).and_then(authority)
        && let Ok(uri) = absolute(&parts.uri, authority)
    {
        // A client may name the host in HTTP/1's way; the next hop is told in HTTP/2's (RFC 9113, section 8.3.1).
        parts.uri = uri;
    }
    Box::new(Request::from_parts(parts, Upload::from(body)))
}

fn absolute(uri: &Uri, authority: Authority) -> Result<Uri, http::Error> {
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path).build()
}

/// Turns an endpoint's response into the client's.
fn respond(
    client: &Arc<Client>,
    backend: &Arc<Backend>,
    mut record: Record,
    upgrade: Option<OnUpgrade>,
    mut response: Response<Received>,
    watch: impl FnOnce(Received, Record) -> Download,
) -> Response<Download> {
    record.answered(response.status().as_u16());
    if let Some(witness) = &mut record.witness {
        witness.answered(response.headers());
    }
    if let Some(status) = grpc::status(response.headers()) {
        record.grpc_status(status);
    }
    note_remote_error(client, backend, &mut record, &mut response);
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS
        || (upgrade.is_some() && response.status().is_success() && is_tunnel(&response));
    if let (true, Some(theirs)) = (switched, upgrade) {
        tunnel(client, backend, record.scope(), theirs, hyper::upgrade::on(&mut response));
    }
    if response.version() != Version::HTTP_2 {
        strip_hop_by_hop(response.headers_mut(), switched);
        if switched || response.status() == StatusCode::NO_CONTENT {
            response.headers_mut().remove(header::CONTENT_LENGTH);
        }
        *response.version_mut() = Version::HTTP_11; // ours, not that of the server
    }
    response.map(|body| watch(body, record))
}

/// True if hyper left the connection behind a CONNECT's answer to us.
fn is_tunnel(response: &Response<Received>) -> bool {
    response.extensions().get::<OnUpgrade>().is_some()
}

/// The error code of a response that the other proxy made is counted here too; from an application it is only noise.
fn note_remote_error(client: &Client, backend: &Backend, record: &mut Record, response: &mut Response<Received>) {
    if client.direction == Direction::Inbound || backend.endpoint.identity.is_none() {
        response.headers_mut().remove(&ERROR_HEADER);
    } else if let Some(code) = response.headers().get(&ERROR_HEADER)
        && let Some(error) = MeshError::ALL.iter().find(|error| error.code().as_bytes() == code.as_bytes())
    {
        record.remote_error(*error);
    }
}

/// Carries what follows an upgrade as an opaque connection.
fn tunnel(client: &Arc<Client>, backend: &Arc<Backend>, scope: &Arc<Scope>, theirs: OnUpgrade, ours: OnUpgrade) {
    let tls = protection(client, backend);
    let record = ConnectionRecord::open(&client.proxy.golden, scope, tls, Arc::default()).seen_by(Onlooker::of(
        client,
        Some(backend),
        scope,
        tls,
    ));
    client.proxy.drain.spawn(async move {
        match tokio::try_join!(theirs, ours) {
            Ok((theirs, ours)) => {
                tcp::copy(&mut TokioIo::new(theirs), &mut TokioIo::new(ours), &record).await;
            }
            Err(error) => tracing::debug!(%error, "upgrade was not completed"),
        }
    });
}

/// True for an answer to a client whose next bytes are not to be trusted either.
pub fn is_distrusted<B>(response: &Response<B>) -> bool {
    response.status() == StatusCode::BAD_REQUEST
        && response.headers().get(&ERROR_HEADER).is_some_and(|e| e == MeshError::InvalidRequest.code())
}

/// Counts what came instead of a request.
pub fn malformed(client: &Client) {
    let route = client.target.learned.name("/", false);
    let subject = Subject { carried: Carried::Http, tls: client.tls, route, method: "other" };
    witness::tell_malformed(client, &subject, MeshError::InvalidRequest);
    story::log_malformed(client, &subject, MeshError::InvalidRequest);
    Record::open(&client.proxy.golden, &client.scope, subject).failed(MeshError::InvalidRequest);
}

/// Answers with a redirect.
fn send_elsewhere(mut record: Record, (status, location): (StatusCode, HeaderValue)) -> Response<Download> {
    record.answered(status.as_u16());
    record.completed();
    let mut response = Response::new(Download::Text(Bytes::new()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::LOCATION, location);
    response
}

/// Answers in place of an endpoint; says what is wrong and what to do about it.
fn refuse(mut record: Record, error: MeshError, detail: &str) -> Response<Download> {
    record.failed(error);
    if record.is_grpc() {
        let mut response = Response::new(Download::Text(Bytes::new()));
        *response.headers_mut() = grpc::trailers_only(error, detail);
        return response;
    }
    let text = format!("{}: {}\n", error.code(), error.sentence(detail));
    let mut response = Response::new(Download::Text(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response.headers_mut().insert(ERROR_HEADER, HeaderValue::from_static(error.code()));
    response
}
