//! The straight line: what happens to one HTTP request, arriving or leaving, from its head to the end of its response.

use crate::access;
use crate::away::{Away, ERROR_HEADER};
use crate::balance;
use crate::body::{Download, Received};
use crate::carriage::{Carriage, Held};
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
use crate::retry::{self, Tries, Withheld};
use crate::state::{Backend, Group, Known, Target};
use crate::story::{self, Story};
use crate::tap::witness::{self, Onlooker};
use crate::tcp;
use crate::timeout::{self, Deadline};
use crate::traffic::Traffic;
use crate::upload::{Upload, listen_for_continue};
use crate::upstream::{self, Flight, Lease, Outgoing, Unanswered};
use http::header::{self, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::body::Body;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mesh_api::golden::{Carried, Direction, TlsStatus};
use mesh_api::timeout::Timeouts;
use mesh_api::{MeshError, SpiffeId};
use std::borrow::Cow;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    match admit(&client, &known, &mut request, record.is_grpc()) {
        Err(away) => return away.answer(record),
        Ok(None) => {}
        Ok(Some(open)) => {
            if let Some((error, why)) = Box::pin(access::ask(&client, *open, request.headers_mut())).await {
                return Away::Refused(error, why.into()).answer(record);
            }
        }
    }

    // Route: to the backend that the rule which takes it chooses, or to the destination's own endpoints.
    let course = match route(&client, &known, taken, &request) {
        Ok(course) => course,
        Err(away) => return away.answer(record),
    };
    let carriage = match Carriage::of(&client, &course, &request) {
        Ok(carriage) => carriage,
        Err(stopped) => return Away::from(stopped).answer(record),
    };

    // Prepare: the request as the next hop should see it, when it may go.
    let upgrade = wants_upgrade(&request).then(|| hyper::upgrade::on(&mut request));
    let mut request = prepare(request, &client.target, upgrade.is_some());
    course.change_request(&mut request);
    if let Some(witness) = &record.witness {
        request.body_mut().count_with(witness.upload());
    }
    let gate = request.body().gate();
    let mut exchange = Exchange::new(&client, &course, carriage, grpc, &mut request);
    let held = match exchange.hold().await {
        Ok(held) => held,
        Err(away) => return away.answer(record),
    };
    mirror::send(proxy, &known, course.mirrors(), &mut request);

    // Send: to the best endpoint, to another one as long as nothing was delivered, and again where a policy says so.
    let Answered { response, lease, flight, backend, began } = match exchange.send(request, &mut record).await {
        Ok(answered) => answered,
        Err(away) => return away.answer(record),
    };
    let limit = exchange.times.backend_request.map(|limit| (began + limit.duration()).into());
    let deadline = Deadline::sooner(exchange.deadline, limit);

    // Answer: pass the response on, if it can be read in one way only; the account closes with its end.
    if let Some(why) = response_ambiguity(&response, upgrade.is_some()) {
        return Away::Refused(MeshError::InvalidResponse, why.into()).answer(record);
    }
    let unwanted = gate.filter(|gate| gate.answered(response.status()));
    let lease = lease.filter(|_| unwanted.is_none());
    let close = unwanted.is_some();
    let watch = |body, record| Download::watch(body, record, flight, lease, unwanted, deadline).holding(held);
    let mut response = respond(&client, &backend, record, upgrade, response, watch);
    course.change_response(&backend, response.headers_mut());
    if close {
        // The client may or may not send its body now; nobody can tell from the bytes alone.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Refuses what must not be forwarded; what somebody else has to be asked about is given back.
fn admit(
    client: &Client,
    known: &Known,
    request: &mut Request<Received>,
    grpc: bool,
) -> Result<Option<Box<access::Open>>, Away> {
    if let Some(refusal) = client.refusal {
        return Err(refusal.into());
    }
    if let Some(why) = ambiguity(request) {
        return Err(Away::Refused(MeshError::InvalidRequest, Cow::Borrowed(why)));
    }
    if let Some(why) = egress::refused(client, known, request) {
        return Err(Away::Refused(MeshError::EgressDenied, why.into()));
    }
    match access::judge(client, request, grpc) {
        access::Verdict::In => Ok(None),
        access::Verdict::Refused(error, why) => Err(Away::Refused(error, why.into())),
        access::Verdict::Ask(open) => Ok(Some(open)),
    }
}

/// Where the request goes.
fn route<'a>(
    client: &Client,
    known: &'a Known,
    taken: Taken<'a>,
    request: &Request<Received>,
) -> Result<Course<'a>, Away> {
    if let Some((status, location)) = taken.redirect(&client.target, request) {
        return Err(Away::Redirected(status, location));
    }
    let course = Course::set(&client.proxy, known, taken, request)?;
    match course.redirect(&client.target, request) {
        Some((status, location)) => Err(Away::Redirected(status, location)),
        None => Ok(course),
    }
}

/// A request on its course, and the time it has.
struct Exchange<'a> {
    client: &'a Arc<Client>,
    course: &'a Course<'a>,
    carriage: Carriage<'a>,
    grpc: bool,
    times: Timeouts,
    deadline: Option<Deadline>,
}

/// What an endpoint answered.
struct Answered {
    response: Response<Received>,
    lease: Option<Lease>,
    flight: Flight,
    backend: Arc<Backend>,
    /// When it was sent the request.
    began: Instant,
}

impl<'a> Exchange<'a> {
    /// The time of the request begins now.
    fn new(
        client: &'a Arc<Client>,
        course: &'a Course<'a>,
        carriage: Carriage<'a>,
        grpc: bool,
        request: &mut Outgoing,
    ) -> Self {
        let times = course.timeouts();
        let asked = if client.direction == Direction::Outbound { timeout::asked(request) } else { None };
        let call = if grpc { grpc::allowed(request) } else { None };
        let deadline = Deadline::of(&times, asked, call, request);
        Self { client, course, carriage, grpc, times, deadline }
    }

    fn late(&self) -> Away {
        Deadline::reached(self.deadline.as_ref()).into()
    }

    /// Keeps the request until it may go.
    async fn hold(&mut self) -> Result<Held, Away> {
        if !self.carriage.is_special() {
            return Ok(Held::default());
        }
        match timeout::within(&mut self.deadline, Box::pin(self.carriage.prepare())).await {
            None => Err(self.late()),
            Some(held) => held.map_err(Away::from),
        }
    }

    /// Sends the request until there is an answer to pass on, or no reason for another try.
    async fn send(&mut self, mut request: Outgoing, record: &mut Record) -> Result<Answered, Away> {
        let (client, course, grpc) = (self.client, self.course, self.grpc);
        let proxy = &client.proxy;
        let mut tries = Tries::begin(course.retries(), request.method(), grpc, Instant::now());
        if let Some(retries) = tries.left() {
            request.body_mut().keep(retries.body_bytes());
        }
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut kept = course.kept.filter(|backend| self.carriage.keeps(backend)).cloned();
        loop {
            let backend = match kept.take() {
                Some(kept) => kept,
                None => self.endpoint(&tried).await?,
            };
            tried.push(backend.endpoint.address);
            record.attempt(backend.scope.as_ref(), protection(client, &backend));
            if let Some(witness) = &mut record.witness {
                witness.sent_to(&backend);
            }
            let flight = Flight::start(&backend, course.group);
            if let Some(deadline) = &self.deadline {
                deadline.tell(&mut request);
            }
            let began = Instant::now();
            let outcome = {
                let head = timeout::of_head(&self.times, tries.per_try());
                let attempt = pin!(attempt(client, course, &backend, request, &tries, &tried, head));
                timeout::within(&mut self.deadline, attempt).await
            };
            let Some(outcome) = outcome else {
                flight.timed_out();
                return Err(self.late());
            };
            let again = match outcome {
                Ok((response, lease, spare)) => {
                    flight.answered(&response, grpc);
                    match try_again(proxy, &mut tries, &outcome_of(client, &backend, &response), spare) {
                        Some(again) => again,
                        None => return Ok(Answered { response, lease, flight, backend, began }),
                    }
                }
                Err(Unanswered { failure, request: unsent }) => {
                    flight.failed(&failure);
                    let again = match unsent {
                        Some(unsent) if may_try_another(&failure, course.group, &tried) => {
                            Some((unsent, Duration::ZERO))
                        }
                        unsent => try_again(proxy, &mut tries, &retry::Outcome::default(), unsent),
                    };
                    again.ok_or_else(|| client.error_for(&failure))?
                }
            };
            drop(flight); // during a pause nothing is under way
            if all_tried(course.group, &tried) {
                tried.clear(); // all had their turn
            }
            let pause;
            (request, pause) = again;
            if !pause.is_zero() && timeout::within(&mut self.deadline, tokio::time::sleep(pause)).await.is_none() {
                return Err(self.late());
            }
        }
    }

    /// The endpoint for the next try; waits while all have as many requests as they may.
    async fn endpoint(&mut self, tried: &[SocketAddr]) -> Result<Arc<Backend>, Away> {
        let proxy = &self.client.proxy;
        match choose(proxy, self.course.group, self.carriage.key, tried) {
            Err(MeshError::Overload) => {
                let later = Box::pin(self.carriage.choose_later(tried, &proxy.random));
                match timeout::within(&mut self.deadline, later).await {
                    Some(chosen) => chosen.map_err(Away::from),
                    None => Err(self.late()),
                }
            }
            chosen => chosen.map_err(Away::from),
        }
    }
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
    tried: &[SocketAddr],
    head: Option<Duration>,
) -> Result<(Response<Received>, Option<Lease>, Option<Outgoing>), Unanswered> {
    let meshed = protection(client, backend) == TlsStatus::Mutual && client.direction == Direction::Outbound;
    let elsewhere = meshed && has_another(course.group, tried);
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

/// What an answer means for another try. One of the endpoint's proxy that tells of a reset is none.
fn outcome_of(client: &Client, backend: &Backend, response: &Response<Received>) -> retry::Outcome {
    let told = |code: &HeaderValue| code.as_bytes() == MeshError::ResetBeforeResponse.code().as_bytes();
    let of_proxy = client.direction == Direction::Outbound && backend.endpoint.identity.is_some();
    if of_proxy && response.headers().get(&ERROR_HEADER).is_some_and(told) {
        return retry::Outcome::default();
    }
    retry::Outcome::of(response)
}

/// The failure another proxy reports of a request that never reached its application, which has perhaps just ended.
fn undelivered(response: &Response<Received>) -> Option<Failure> {
    let code = response.headers().get(&ERROR_HEADER)?.as_bytes();
    let safe = [MeshError::ConnectFailed, MeshError::ConnectTimeout, MeshError::Draining];
    let error = safe.into_iter().find(|error| error.code().as_bytes() == code)?;
    Some(Failure::undelivered(error, "the endpoint's proxy could not reach its application"))
}

/// True if the failure lets the request, given back whole, go to an endpoint not tried yet.
fn may_try_another(failure: &Failure, group: &Group, tried: &[SocketAddr]) -> bool {
    failure.delivered == Delivered::Nothing && has_another(group, tried)
}

fn has_another(group: &Group, tried: &[SocketAddr]) -> bool {
    tried.len() < limits::MAX_ATTEMPTS && !all_tried(group, tried)
}

/// True if no endpoint in service is left that was not tried.
fn all_tried(group: &Group, tried: &[SocketAddr]) -> bool {
    let ejected = |traffic: &Arc<Traffic>| !traffic.has_another(tried, Instant::now());
    tried.len() >= group.backends.len() || group.traffic.as_ref().is_some_and(ejected)
}

/// The endpoint for the next attempt.
pub fn choose(proxy: &Proxy, group: &Group, key: Option<u64>, tried: &[SocketAddr]) -> Result<Arc<Backend>, MeshError> {
    let backends = &group.backends;
    let now = Instant::now();
    let mut random = proxy.random.lock();
    if let Some(traffic) = &group.traffic {
        return traffic.choose(key, tried, now, &mut random);
    }
    if tried.is_empty() {
        let at = balance::choose(backends.len(), |i| backends[i].load.lock().cost(now), &mut random);
        return at.map(|at| backends[at].clone()).ok_or(MeshError::NoEndpoints);
    }
    let rest: Vec<&Arc<Backend>> = backends.iter().filter(|b| !tried.contains(&b.endpoint.address)).collect();
    let at = balance::choose(rest.len(), |i| rest[i].load.lock().cost(now), &mut random);
    at.map(|at| rest[at].clone()).ok_or(MeshError::NoEndpoints)
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
