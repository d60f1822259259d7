//! `meshctl explain request`: what would happen to a request that nobody sends.
//!
//! The world is read from the API as control reads it, [`compile`] says what the caller's proxy would be told and how
//! the callee's proxy would treat the request, the proxy's own table of routes judges it ([`explain_route`]), and the
//! proxy's own [`learned`] names it where no rule does.

use super::explain::Explanation;
use super::explain_name::{Resolved, resolve};
use super::explain_policy;
use super::explain_route::{self, Judgement, Taken};
use crate::args::ExplainRequest;
use crate::cluster::Cluster;
use crate::error::{Error, Hint, Result};
use crate::resource::{Kind, Resource};
use crate::shown::Shown;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderName, HeaderValue, Request, Version};
use mesh_api::access::{Asked, Caller, Head, What, decide};
use mesh_api::egress::{self, Leaving, Seen};
use mesh_api::names::SKIP_OUTBOUND_PORTS;
use mesh_api::route::Rule;
use mesh_api::{Endpoint, Protocol, ServiceRef, SpiffeId, TrafficPolicy};
use mesh_control::compile::{self, Compiled};
use mesh_control::world::World;
use mesh_control::world::view::{Name, PodView};
use mesh_proxy::access::evidence::Checks;
use mesh_proxy::route::matcher;
use mesh_proxy::{grpc, learned};
use std::net::IpAddr;

/// At most this many endpoints are written out.
const SHOWN: usize = 8;

/// What comes of a name that the cluster does not answer for.
const OUTSIDE: &str = "the name leads out of the cluster; the address it leads to is forwarded as it is";
/// The port where TLS is to be expected.
const HTTPS: u16 = 443;

/// What is asked.
struct Question<'a> {
    from: Resource,
    namespace: &'a str,
    to: &'a str,
    /// The request as the caller's proxy would see it.
    request: Request<()>,
}

/// Explains a request.
pub(super) async fn run(cluster: &Cluster, args: &ExplainRequest) -> Result<Explanation> {
    let question = Question {
        from: Resource::read_one(&args.from)?,
        namespace: args.namespace.as_deref().unwrap_or(&cluster.namespace),
        to: &args.to,
        request: request(args)?,
    };
    judge(&Shown::read(cluster).await?, &question)
}

/// The request that is asked about.
fn request(args: &ExplainRequest) -> Result<Request<()>> {
    let wrong = |what: &str, text: &str| Error::new(format!("`{text}` is no {what}"));
    let mut request = Request::new(());
    *request.method_mut() = args.method.to_ascii_uppercase().parse().map_err(|_| wrong("method", &args.method))?;
    *request.uri_mut() = match args.path.starts_with('/') {
        true => args.path.parse().map_err(|_| wrong("path", &args.path))?,
        false => return Err(wrong("path", &args.path).hint("a path begins with a slash: GET /products/7")),
    };
    let bare = args.to.strip_prefix("svc/").or(args.to.strip_prefix("service/")).unwrap_or(&args.to);
    let host = args.host.as_deref().unwrap_or(bare);
    request.headers_mut().insert(HOST, HeaderValue::from_str(host).map_err(|_| wrong("host", host))?);
    for given in &args.header {
        let fault = || wrong("header field", given).hint("write NAME=VALUE: --header version=v2");
        let (name, value) = given.split_once('=').ok_or_else(fault)?;
        let name: HeaderName = name.trim().parse().map_err(|_| fault())?;
        request.headers_mut().append(name, HeaderValue::from_str(value.trim()).map_err(|_| fault())?);
    }
    if request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        *request.version_mut() = Version::HTTP_2;
    }
    Ok(request)
}

/// The request, which is a gRPC call if that is what the callee declares to speak.
fn as_declared(question: &Question<'_>, protocol: Protocol) -> Request<()> {
    let mut request = question.request.clone();
    if protocol == Protocol::Grpc {
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/grpc"));
    }
    request
}

fn judge(shown: &Shown, question: &Question<'_>) -> Result<Explanation> {
    let Question { from, namespace, to, request } = question;
    let mut told =
        Explanation::of(format!("{} {} from {from} in {namespace} to {to}", request.method(), request.uri()));

    // The caller.
    let (caller, pod) = find_caller(&shown.world, from, namespace)?;
    if !pod.is_meshed() {
        let says = format!("{} has no proxy", caller.name);
        let hint = format!("meshctl explain pod {} -n {} says why", caller.name, caller.namespace);
        return Ok(told.end("caller", says, "the request goes out as it is, uncounted and unencrypted", &hint));
    }
    told.step("caller", format!("pod {} has a proxy, which acts as {}", caller.name, identity(shown, caller, pod)));

    // Resolution.
    let address = match resolve(shown, namespace, to)? {
        Resolved::Address(address, says) => {
            told.step("name", says);
            address
        }
        Resolved::Outside(host, port, says) => {
            told.step("name", says);
            if is_skipped(shown, caller, port) {
                return Ok(past_the_proxy(told, port));
            }
            let seen = if port == HTTPS { Seen::Tls(Some(&host)) } else { Seen::Http(Some(&host)) };
            return Ok(leave(told, shown, caller, &Leaving { address: None, port, seen }, OUTSIDE));
        }
        Resolved::Nothing(says, verdict, hint) => return Ok(told.end("name", says, verdict, &hint)),
    };
    if is_skipped(shown, caller, address.port()) {
        return Ok(past_the_proxy(told, address.port()));
    }
    told.step("redirect", format!("the connection to {address} is taken over by the caller's proxy"));

    // What the caller's proxy is told.
    let compiled = compile::destination(&shown.world, &shown.config, address, Some(&caller.namespace));
    let opaque = compiled.destination.protocol == Protocol::Opaque;
    told.step("protocol", protocol(compiled.destination.protocol));
    if compiled.destination.external {
        let verdict = format!("forwarded to {address} as it is, in plain text, and counted");
        if compiled.destination.cluster {
            return Ok(told.end("destination", "an address of this cluster, but no port of a service", &verdict, ""));
        }
        told.step("destination", "neither a service nor a pod of this cluster");
        let host = address.ip().to_string();
        let seen = match (opaque, address.port()) {
            (true, _) => Seen::Tcp,
            (false, HTTPS) => Seen::Tls(None),
            (false, _) => Seen::Http(Some(&host)),
        };
        let leaving = Leaving { address: Some(address.ip()), port: address.port(), seen };
        return Ok(leave(told, shown, caller, &leaving, &verdict));
    }
    let request = as_declared(question, compiled.destination.protocol);
    let (rule, endpoints) = match course(shown, &mut told, &compiled, &request, caller) {
        Ok(course) => course,
        Err(Ends { step, says, verdict, hint }) => return Ok(told.end(step, says, &verdict, &hint)),
    };
    let services: Vec<_> = endpoints.iter().map(|to| (to.service, to.policy)).collect();
    if let Some(carried) = explain_policy::carried(&shown.world, rule, &services) {
        told.step("carried", carried);
    }
    if endpoints.iter().all(|to| to.endpoints.is_empty()) {
        return Ok(told.end(
            "endpoints",
            "none is ready",
            "answered by the proxy with 503 and mesh-error: no-endpoints",
            "meshctl explain error no-endpoints",
        ));
    }
    told.step("endpoints", each(&endpoints, |to| Some(list(to.endpoints))));
    told.step(
        "balancing",
        each(&endpoints, |to| Some(explain_route::balancing(to.endpoints.len(), opaque, to.policy))),
    );

    // The callee.
    told.step("callee", each(&endpoints, |to| Some(callee(shown, to.endpoints))));
    let decided = |to: &Eligible<'_>| access(shown, &request, (caller, pod), opaque, to.endpoints);
    let says = each(&endpoints, |to| decided(to).map(|(_, says)| says));
    let refused = |to: &Eligible<'_>| decided(to).is_some_and(|(allowed, _)| !allowed);
    if endpoints.iter().filter(|to| !to.endpoints.is_empty()).all(refused) {
        let verdict = match opaque {
            true => "the callee's proxy resets the connection (access-denied)",
            false => "answered by the callee's proxy with 403 and mesh-error: access-denied",
        };
        return Ok(told.end("access", says, verdict, "meshctl explain error access-denied"));
    }
    if !says.is_empty() {
        told.step("access", says);
    }
    Ok(sent(told, &endpoints))
}

/// The verdict on a request that gets through.
fn sent(told: Explanation, endpoints: &[Eligible<'_>]) -> Explanation {
    let all: Vec<&Endpoint> = endpoints.iter().flat_map(|to| to.endpoints).collect();
    let plain = all.iter().filter(|endpoint| endpoint.identity.is_none()).count();
    match plain {
        0 => told.verdict(format!("sent to one of {} over mutual TLS 1.3", count(all.len())), ""),
        n if n == all.len() => told.verdict(
            format!("sent to one of {} in plain text", count(n)),
            "the callee has no proxy: meshctl explain pod NAME says why",
        ),
        n => told.verdict(
            format!("sent to one of {}: {n} in plain text, the others over mutual TLS 1.3", count(all.len())),
            "pods without a proxy: meshctl explain pod NAME says why",
        ),
    }
}

/// Endpoints that may answer: those of the destination, or of one of the services that a rule leads to.
struct Eligible<'a> {
    service: Option<&'a ServiceRef>,
    endpoints: &'a [Endpoint],
    policy: Option<&'a TrafficPolicy>,
}

/// Something about each service, under its name where there are several.
fn each(services: &[Eligible<'_>], says: impl Fn(&Eligible<'_>) -> Option<String>) -> String {
    let line = |to: &Eligible<'_>| {
        let says = if to.endpoints.is_empty() { Some("none is ready".to_owned()) } else { says(to) };
        let name = to.service.map(ToString::to_string).unwrap_or_default();
        Some(if services.len() == 1 { says? } else { format!("{name}: {}", says?.replace('\n', "\n  ")) })
    };
    services.iter().filter_map(line).collect::<Vec<_>>().join("\n")
}

/// Where a request ends.
struct Ends {
    step: &'static str,
    says: String,
    verdict: String,
    hint: String,
}

/// What routes make of a request: the rule that takes it, if there are any, and who may answer.
fn course<'a>(
    shown: &Shown,
    told: &mut Explanation,
    compiled: &'a Compiled,
    request: &Request<()>,
    caller: &Name,
) -> std::result::Result<(Option<&'a Rule>, Vec<Eligible<'a>>), Ends> {
    let Compiled { destination, endpoints, backends } = compiled;
    let opaque = destination.protocol == Protocol::Opaque;
    let own =
        || vec![Eligible { service: destination.service.as_ref(), endpoints, policy: destination.policy.as_deref() }];
    let Judgement { mut considered, taken } = explain_route::judge(destination, request, opaque);
    considered.extend(explain_route::others(&shown.world, destination, &caller.namespace));
    told.routes.clone_from(&considered);
    let counted = || format!("counted as {}", template(request.uri().path()));
    let rule = match taken {
        Taken::Unjudged => {
            if !opaque {
                told.step("route", explain_route::told(&considered, &counted()));
            }
            return Ok((None, own()));
        }
        Taken::Unusable(why) => {
            told.step("route", format!("proxies cannot use the routes and go on with what they had: {why}"));
            return Ok((None, own()));
        }
        Taken::ByNone => {
            let verdict = match (opaque, grpc::is_call(request)) {
                (true, _) => "the caller's proxy resets the connection (no-route)",
                (false, true) => "answered by the caller's proxy with status Unimplemented and mesh-error: no-route",
                (false, false) => "answered by the caller's proxy with 404 and mesh-error: no-route",
            };
            let says = explain_route::told(&considered, "no rule takes it");
            let hint = "meshctl explain error no-route".to_owned();
            return Err(Ends { step: "route", says, verdict: verdict.to_owned(), hint });
        }
        Taken::By(rule) => destination.routes.as_ref().and_then(|routes| routes.rules.get(rule)),
    };
    let Some(rule) = rule else { return Ok((None, own())) };
    told.step("route", explain_route::told(&considered, &explain_route::taker(&considered, rule)));
    if let Some(filters) = explain_route::filters(rule) {
        told.step("filters", filters);
    }
    if let Some(status) = explain_route::redirects(rule) {
        let verdict = format!("answered by the caller's proxy with {status}, a redirect");
        return Err(Ends { step: "backends", says: "none is asked".to_owned(), verdict, hint: String::new() });
    }
    let leads: Vec<_> = rule.backends.iter().filter(|to| to.weight > 0).filter_map(|to| to.service.as_ref()).collect();
    let Some(shares) = explain_route::shares(rule).filter(|_| !leads.is_empty()) else {
        return Err(Ends {
            step: "backends",
            says: "the rule leads to nothing that is there".to_owned(),
            verdict: "answered by the caller's proxy with 500 and mesh-error: no-backend".to_owned(),
            hint: "meshctl explain error no-backend".to_owned(),
        });
    };
    told.step("backends", shares);
    let eligible = leads.into_iter().map(|service| match backends.get(service) {
        Some(to) => Eligible { service: Some(service), endpoints: &to.endpoints, policy: to.policy.as_deref() },
        None if destination.service.as_ref() == Some(service) => {
            Eligible { service: Some(service), endpoints, policy: destination.policy.as_deref() }
        }
        None => Eligible { service: Some(service), endpoints: &[], policy: None },
    });
    Ok((Some(rule), eligible.collect()))
}

/// What the callee's proxy decides about the caller, by its own decider: whether it is let in, and why. `None` without
/// a proxy, or if everybody is let in.
fn access(
    shown: &Shown,
    request: &Request<()>,
    (name, pod): (&Name, &PodView),
    opaque: bool,
    endpoints: &[Endpoint],
) -> Option<(bool, String)> {
    let endpoint = endpoints.first()?;
    let callee = Name::new(&endpoint.workload.namespace, &endpoint.pod);
    let port = endpoint.address.port();
    let app = shown.world.pod(&callee).filter(|app| app.is_meshed() && !app.skip_inbound.contains(port))?;
    let access = compile::access::compile(&shown.world, &shown.config, &callee, app);
    if access.is_open() {
        return None;
    }
    let id = SpiffeId::new(&shown.config.trust_domain, &name.namespace, &pod.service_account);
    let address = pod.ips.first().copied().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let fields = |name: &str, judge: &dyn Fn(&[u8]) -> bool| {
        request.headers().get_all(name).iter().any(|line| judge(line.as_bytes()))
    };
    let (method, path, grpc) = (request.method().as_str(), request.uri().path(), grpc::is_call(request));
    let checks = Checks::compile(&access).unwrap_or_default();
    let evidence = checks.of(matcher::Asked::of(request), grpc, 0);
    let head = Head { method, path, grpc, header: &fields, evidence: &evidence };
    let what = if opaque { What::Opaque } else { What::Request(head) };
    let decision = decide(&access, &Caller::new(address, Some(&id)), &Asked { port, what });
    let mut says = format!("{}: {}", if decision.allowed { "let in" } else { "refused" }, decision.why);
    for rule in &decision.asks {
        says.push_str(&format!("\nlet in if the service that AccessPolicy {} asks lets it in", rule.policy));
    }
    if decision.unproven.is_some() {
        says.push_str("\na token (JWT) that counts would let it in");
    }
    for rule in &decision.audits {
        says.push_str(&format!("\ncounted and logged by AccessPolicy {}", rule.policy));
    }
    Some((decision.allowed, says))
}

fn is_skipped(shown: &Shown, caller: &Name, port: u16) -> bool {
    shown.skip_outbound.iter().any(|(name, ports)| name == caller && ports.contains(port))
}

fn past_the_proxy(told: Explanation, port: u16) -> Explanation {
    let says = format!("port {port} is excluded by {SKIP_OUTBOUND_PORTS}");
    told.end("redirect", says, "the request goes past the proxy, uncounted and unencrypted", "")
}

/// What the caller's proxy decides about a request that leaves the cluster, by its own decider; `verdict` if it is let out.
fn leave(mut told: Explanation, shown: &Shown, caller: &Name, leaving: &Leaving<'_>, verdict: &str) -> Explanation {
    let egress = compile::egress::compile(&shown.world, &shown.config, caller);
    if egress.is_open() {
        return told.verdict(verdict.to_owned(), "");
    }
    let decision = egress::decide(&egress, leaving);
    let mut says = format!("{}, {leaving}: {}", if decision.allowed { "let out" } else { "refused" }, decision.why);
    for rule in &decision.audits {
        says.push_str(&format!("\ncounted and logged by EgressPolicy {}", rule.policy));
    }
    if decision.allowed {
        told.step("egress", says);
        return told.verdict(verdict.to_owned(), "");
    }
    let verdict = match leaving.seen {
        Seen::Http(_) => "answered by the proxy with 403 and mesh-error: egress-denied",
        Seen::Tls(_) | Seen::Tcp => "the proxy resets the connection (egress-denied)",
    };
    told.end("egress", says, verdict, "meshctl explain error egress-denied")
}

fn find_caller<'a>(world: &'a World, from: &Resource, namespace: &str) -> Result<(&'a Name, &'a PodView)> {
    let meant = |name: &Name, pod: &PodView| match from.kind {
        Kind::Pod => from.name.as_ref().is_none_or(|wanted| *wanted == name.name),
        _ => from.is_workload(&pod.workload),
    };
    let pods = world.pods().filter(|(name, pod)| name.namespace == namespace && !pod.deleted && meant(name, pod));
    pods.max_by_key(|(name, pod)| (pod.running, pod.is_meshed(), std::cmp::Reverse(name.name.clone())))
        .ok_or_else(|| Error::new(format!("there is no {from} with pods in namespace {namespace}")))
        .hint(|| "name the caller as deploy/NAME or po/NAME; -n chooses its namespace")
}

fn identity(shown: &Shown, name: &Name, pod: &PodView) -> String {
    mesh_api::SpiffeId::new(&shown.config.trust_domain, &name.namespace, &pod.service_account).to_string()
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Detect => "not declared: found out from the first bytes of each connection",
        Protocol::Http1 => "HTTP/1, as declared",
        Protocol::Http2 => "HTTP/2, as declared",
        Protocol::Grpc => "gRPC, as declared",
        Protocol::Opaque => "opaque TCP, as declared: requests are not looked into",
    }
}

fn template(path: &str) -> String {
    let mut out = String::new();
    learned::collapse(path, &mut out);
    out
}

fn count(endpoints: usize) -> String {
    if endpoints == 1 { "1 endpoint".to_owned() } else { format!("{endpoints} endpoints") }
}

fn list(endpoints: &[Endpoint]) -> String {
    let mut lines: Vec<String> = endpoints
        .iter()
        .take(SHOWN)
        .map(|endpoint| {
            let pod = if endpoint.pod.is_empty() { "no pod of this cluster" } else { &endpoint.pod };
            match &endpoint.identity {
                Some(identity) => format!("{} {pod}, must prove {identity}", endpoint.address),
                None => format!("{} {pod}, no proxy: plain text", endpoint.address),
            }
        })
        .collect();
    if endpoints.len() > SHOWN {
        lines.push(format!("… and {} more", endpoints.len() - SHOWN));
    }
    lines.join("\n")
}

fn callee(shown: &Shown, endpoints: &[Endpoint]) -> String {
    // All endpoints of a service listen alike, but for rollouts; the first stands for them.
    let Some(endpoint) = endpoints.first() else { return String::new() };
    let name = Name::new(&endpoint.workload.namespace, &endpoint.pod);
    let port = endpoint.address.port();
    match shown.world.pod(&name) {
        Some(pod) if pod.is_meshed() && pod.skip_inbound.contains(port) => {
            format!("port {port} is excluded from the callee's proxy")
        }
        Some(pod) if pod.is_meshed() => {
            let policy = compile::inbound(&shown.world, &shown.config, &name);
            let treated = policy.ports.get(&port).map_or(Protocol::Detect, |port| port.protocol);
            format!("its proxy checks the caller's certificate and hands on to port {port} ({})", protocol(treated))
        }
        _ => "no proxy there: the application itself answers".to_owned(),
    }
}

#[cfg(test)]
mod tests;
