//! `meshctl explain request`, the part about routes: which rule takes a request, why each other one does not, and where
//! the rule leads. The proxy's own [`Table`] judges; this puts what it says into words.

use http::{HeaderMap, Request};
use mesh_api::balance::Algorithm;
use mesh_api::route::{Filter, HttpMatch, PathMatch, RouteBackend, Rule, TextMatch, ValueMatch};
use mesh_api::{Destination, ServiceRef, TrafficPolicy};
use mesh_control::compile::route::left_out;
use mesh_control::world::World;
use mesh_control::world::view::{Name, PortView};
use mesh_proxy::grpc;
use mesh_proxy::route::matcher::{Asked, Miss};
use mesh_proxy::route::{Judged, Table};
use serde::Serialize;

/// At most this many rules that do not take the request are written out as text.
const SHOWN: usize = 12;

/// A condition of a route, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Considered {
    /// The rule: `httproute/shop/web/canary`; the route alone if it is left out whole.
    pub rule: String,
    /// What it asks for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub asks: String,
    /// True for the one that takes the request.
    pub takes: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// What routes come to for a request.
pub(super) struct Judgement {
    /// Every condition, in order of precedence, then the routes that are left out.
    pub considered: Vec<Considered>,
    /// What becomes of the request.
    pub taken: Taken,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// No route judges such traffic: it goes to the service's own endpoints.
    Unjudged,
    /// The rule with this number takes it.
    By(usize),
    /// None does.
    ByNone,
    /// Proxies cannot use the routes, and go on with what they had.
    Unusable(String),
}

/// Judges a request to a destination, or the connection if it is opaque.
pub(super) fn judge(destination: &Destination, request: &Request<()>, opaque: bool) -> Judgement {
    let Some(routes) = destination.routes.as_deref() else {
        return Judgement { considered: Vec::new(), taken: Taken::Unjudged };
    };
    let table = match Table::compile(routes) {
        Ok(table) => table,
        Err(why) => return Judgement { considered: Vec::new(), taken: Taken::Unusable(why) },
    };
    let number = |rule: &mesh_proxy::route::Rule| {
        (0..routes.rules.len()).find(|at| table.rule(*at).is_some_and(|other| std::ptr::eq(other, rule)))
    };
    if opaque {
        let host = Asked::of(request).host;
        let taken = match table.take_connection(Some(host).filter(|host| !host.is_empty())) {
            None => Taken::Unjudged,
            Some(rule) => rule.and_then(number).map_or(Taken::ByNone, Taken::By),
        };
        return Judgement { considered: Vec::new(), taken };
    }
    if !table.judges_requests() {
        return Judgement { considered: Vec::new(), taken: Taken::Unjudged };
    }
    let (asked, is_grpc) = (Asked::of(request), grpc::is_call(request));
    let hit = table.take(&asked, is_grpc).map(|(_, hit)| hit);
    let judged = table.judge(routes, &asked, is_grpc);
    let considered = judged.iter().enumerate().map(|(at, Judged { condition, miss })| {
        let takes = hit.is_some_and(|hit| hit.at == at);
        let outranked = || "it is met too, but another one has precedence".to_owned();
        Considered {
            rule: routes.rules.get(condition.rule).map(|rule| rule.name.to_string()).unwrap_or_default(),
            asks: asks(condition),
            takes,
            why_not: (!takes).then(|| miss.map_or_else(outranked, |miss| missed(condition, miss, &asked))),
        }
    });
    let taken = hit.map_or(Taken::ByNone, |hit| Taken::By(hit.rule));
    Judgement { considered: considered.collect(), taken }
}

/// Routes that name the service and still say nothing to the caller.
pub(super) fn others(world: &World, destination: &Destination, consumer: &str) -> Vec<Considered> {
    let Some(ServiceRef { namespace, name, port }) = &destination.service else { return Vec::new() };
    let service = Name::new(namespace, name);
    let ports = world.service(&service).into_iter().flat_map(|service| &service.ports);
    let Some(port): Option<&PortView> = ports.into_iter().find(|known| known.port == *port) else { return Vec::new() };
    let left = left_out(world, &service, port, Some(consumer));
    let left = left.into_iter().map(|(key, why)| Considered {
        rule: format!("{}/{}", key.kind.shown(), key.name),
        asks: String::new(),
        takes: false,
        why_not: Some(why.to_owned()),
    });
    left.collect()
}

/// What a condition asks for.
pub(super) fn asks(of: &HttpMatch) -> String {
    let HttpMatch { rule: _, hosts, path, method, headers, query } = of;
    let mut parts = Vec::new();
    if !hosts.is_empty() {
        parts.push(format!("host {}", hosts.join(" or ")));
    }
    parts.extend(method.clone());
    match path {
        None => {}
        Some(PathMatch::Exact(path)) => parts.push(format!("path {path}")),
        Some(PathMatch::Prefix(path)) => parts.push(format!("path {path} and below")),
        Some(PathMatch::Regex(expression)) => parts.push(format!("path like {expression}")),
    }
    let value = |ValueMatch { name, value }: &ValueMatch, sign: &str| match value {
        TextMatch::Exact(value) => format!("{name}{sign}{value}"),
        TextMatch::Regex(expression) => format!("{name}{sign}like {expression}"),
    };
    parts.extend(headers.iter().map(|header| format!("header {}", value(header, ": "))));
    parts.extend(query.iter().map(|parameter| format!("query {}", value(parameter, "="))));
    if parts.is_empty() { "everything".to_owned() } else { parts.join(", ") }
}

/// Why a request does not meet a condition.
fn missed(of: &HttpMatch, miss: Miss<'_>, asked: &Asked<'_>) -> String {
    let wanted = |all: &[ValueMatch], name: &str| {
        all.iter().find(|one| one.name.eq_ignore_ascii_case(name)).map_or_else(String::new, |one| match &one.value {
            TextMatch::Exact(value) => format!("`{value}`"),
            TextMatch::Regex(expression) => format!("like `{expression}`"),
        })
    };
    match miss {
        Miss::Host => format!("the host is {}, not {}", or_none(asked.host), of.hosts.join(" or ")),
        Miss::Path => format!("the path is {}", asked.path),
        Miss::Method => format!("the method is {}", asked.method),
        Miss::Header(name) => {
            let has = values(asked.headers, name);
            let has = if has.is_empty() { "missing".to_owned() } else { format!("`{}`", has.join(",")) };
            format!("the header field {name} is {has}, not {}", wanted(&of.headers, name))
        }
        Miss::Parameter(name) => format!("the query parameter {name} is not {}", wanted(&of.query, name)),
    }
}

fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "not given" } else { text }
}

/// The step about routes, in words: what takes the request, then what does not.
pub(super) fn told(considered: &[Considered], taken: &str) -> String {
    let mut lines = vec![taken.to_owned()];
    let rest: Vec<&Considered> = considered.iter().filter(|one| !one.takes).collect();
    for one in rest.iter().take(SHOWN) {
        let asks = if one.asks.is_empty() { String::new() } else { format!(" ({})", one.asks) };
        lines.push(format!("not {}{asks}: {}", one.rule, one.why_not.as_deref().unwrap_or_default()));
    }
    if rest.len() > SHOWN {
        lines.push(format!("… and {} more, all with -o json", rest.len() - SHOWN));
    }
    lines.join("\n")
}

/// What takes the request, in words.
pub(super) fn taker(considered: &[Considered], rule: &Rule) -> String {
    match considered.iter().find(|one| one.takes) {
        Some(one) => format!("{} takes it ({})", one.rule, one.asks),
        None => format!("{} takes it", rule.name),
    }
}

/// What a rule does to requests on the way, a line each.
pub(super) fn filters(rule: &Rule) -> Option<String> {
    let mut lines: Vec<String> = rule.filters.iter().map(|filter| told_filter(filter, "")).collect();
    for backend in &rule.backends {
        let whose = backend.service.as_ref().map(|service| format!("to {service}: ")).unwrap_or_default();
        lines.extend(backend.filters.iter().map(|filter| told_filter(filter, &whose)));
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn told_filter(filter: &Filter, whose: &str) -> String {
    let (name, value) = match filter {
        Filter::RequestHeaders(change) => ("request headers", serde_json::to_string(change)),
        Filter::ResponseHeaders(change) => ("response headers", serde_json::to_string(change)),
        Filter::Redirect(redirect) => ("redirect", serde_json::to_string(redirect)),
        Filter::Rewrite(rewrite) => ("rewrite", serde_json::to_string(rewrite)),
        Filter::Mirror(mirror) => {
            return format!(
                "{whose}{} of {} requests are copied to {}",
                mirror.numerator, mirror.denominator, mirror.service
            );
        }
    };
    // Plain data, which can always be written.
    format!("{whose}{name} {}", value.unwrap_or_default())
}

/// The status of the redirect that answers in place of all backends.
pub(super) fn redirects(rule: &Rule) -> Option<u16> {
    rule.filters.iter().find_map(|filter| match filter {
        Filter::Redirect(redirect) => Some(redirect.status),
        _ => None,
    })
}

/// The shares of a rule's backends in percent, in words; `None` if there is nothing to divide.
pub(super) fn shares(rule: &Rule) -> Option<String> {
    let whole: u64 = rule.backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if whole == 0 {
        return None;
    }
    let share = |RouteBackend { service, weight, .. }: &RouteBackend| {
        let percent = 100.0 * f64::from(*weight) / whole as f64;
        let to = service.as_ref().map_or("nothing that is there: 500, no-backend".to_owned(), ToString::to_string);
        format!("{percent:.1} % to {to}").replace(".0 %", " %")
    };
    Some(rule.backends.iter().map(share).collect::<Vec<_>>().join("\n"))
}

/// How one of several endpoints is chosen.
pub(super) fn balancing(endpoints: usize, opaque: bool, policy: Option<&TrafficPolicy>) -> String {
    let what = if opaque { "connection" } else { "request" };
    if endpoints == 1 {
        return "nothing to choose".to_owned();
    }
    match policy.and_then(|policy| policy.balance.as_ref()).map(|balance| balance.algorithm).unwrap_or_default() {
        Algorithm::PeakEwma => {
            format!("each {what} goes to the less loaded of two endpoints picked at random (peak EWMA of latency)")
        }
        Algorithm::LeastRequest => {
            format!("each {what} goes to that of two endpoints picked at random which has fewer under way")
        }
        Algorithm::RoundRobin => format!("each {what} goes to the next endpoint in turn"),
        Algorithm::Random => format!("each {what} goes to any endpoint"),
        Algorithm::RingHash => format!("each {what} goes where its key falls on a ring of hashes"),
        Algorithm::Maglev => format!("each {what} goes where its key falls in a table of hashes (Maglev)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::route::{Routes, RuleName};
    use std::sync::Arc;

    fn rule(part: &str, backends: Vec<(&str, u32)>) -> Rule {
        let name = RuleName {
            kind: "httproute".to_owned(),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            rule: part.to_owned(),
        };
        let service = |name: &str| ServiceRef { namespace: "shop".to_owned(), name: name.to_owned(), port: 80 };
        let backends = backends.into_iter().map(|(name, weight)| RouteBackend {
            service: Some(service(name)),
            weight,
            filters: Vec::new(),
        });
        Rule { name, backends: backends.collect(), ..Rule::default() }
    }

    fn destination() -> Destination {
        let value =
            |name: &str, value: &str| ValueMatch { name: name.to_owned(), value: TextMatch::Exact(value.to_owned()) };
        let on = |path: &str| HttpMatch { path: Some(PathMatch::Prefix(path.to_owned())), ..HttpMatch::default() };
        let routes = Routes {
            rules: vec![rule("canary", vec![("new", 1), ("old", 3)]), rule("all", vec![("old", 1)])],
            http: vec![
                HttpMatch { hosts: vec!["api.shop".to_owned()], ..on("/") },
                HttpMatch { method: Some("POST".to_owned()), ..on("/a") },
                HttpMatch { headers: vec![value("version", "v2")], ..on("/a") },
                HttpMatch { query: vec![value("beta", "1")], ..on("/a") },
                HttpMatch { rule: 1, ..on("/a") },
                HttpMatch { rule: 1, ..on("/b") },
                HttpMatch { rule: 1, ..on("/") },
            ],
            ..Routes::default()
        };
        Destination { routes: Some(Arc::new(routes)), ..Destination::default() }
    }

    fn asked(path: &str, headers: &[(&str, &str)]) -> Judgement {
        let mut request = Request::get(path).header("host", "web");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        judge(&destination(), &request.body(()).unwrap(), false)
    }

    #[test]
    fn every_condition_says_why_it_does_not_take_the_request() {
        let Judgement { considered, taken } = asked("/a/7?beta=0", &[("version", "v1")]);
        assert_eq!(taken, Taken::By(1));
        let said: Vec<_> = considered.iter().map(|one| one.why_not.as_deref().unwrap_or("takes it")).collect();
        assert_eq!(
            said,
            [
                "the host is web, not api.shop",
                "the method is GET",
                "the header field version is `v1`, not `v2`",
                "the query parameter beta is not `1`",
                "takes it",
                "the path is /a/7",
                "it is met too, but another one has precedence",
            ]
        );
        let asks: Vec<_> = considered.iter().map(|one| one.asks.as_str()).collect();
        assert_eq!(
            asks[1..4],
            ["POST, path /a and below", "path /a and below, header version: v2", "path /a and below, query beta=1"]
        );
        let Judgement { considered, taken } = asked("/a", &[("version", "v2")]);
        assert_eq!((taken, considered.iter().position(|one| one.takes)), (Taken::By(0), Some(2)));
        let text = told(&considered, "x");
        assert_eq!(text.lines().count(), 7, "{text}");
        assert!(text.contains("not httproute/shop/web/all (path /b and below): the path is /a"), "{text}");
    }

    #[test]
    fn what_proxies_cannot_use_is_said() {
        let routes = Routes {
            rules: vec![rule("0", vec![])],
            http: vec![HttpMatch { rule: 5, ..HttpMatch::default() }],
            ..Routes::default()
        };
        let destination = Destination { routes: Some(Arc::new(routes)), ..Destination::default() };
        let Judgement { taken, .. } = judge(&destination, &Request::new(()), false);
        assert_eq!(taken, Taken::Unusable("routes.http[0].rule: 5 is none of the 1 rules".to_owned()));
    }

    #[test]
    fn shares_are_told_in_percent() {
        let split = rule("0", vec![("new", 1), ("old", 3)]);
        assert_eq!(shares(&split).unwrap(), "25 % to shop/new:80\n75 % to shop/old:80");
        assert_eq!(shares(&rule("0", vec![("new", 0)])), None);
    }
}
