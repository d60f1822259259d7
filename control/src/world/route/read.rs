//! From JSON as the API sends it to views, field by field. What is not known, not supported or makes no sense is left
//! out of the view and told as a [`Problem`]; everything beside it counts.

use super::{
    BackendPolicyView, BackendView, Effect, FilterView, GrantView, MatchView, ParentView, Problem, Reason, Reference,
    RouteKind, RouteView, RuleView,
};
use crate::limits;
use crate::world::view::Name;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh_api::Millis;
use mesh_api::retry::{Retry, RetryBudget};
use mesh_api::route::{
    Filter, HeaderChange, PathChange, PathMatch, Redirect, Rewrite, SessionPersistence, TextMatch, ValueMatch,
};
use mesh_api::timeout::Timeouts;
use mesh_manifests::nearest::nearest;
use serde_json::{Map, Value};
use std::cell::RefCell;

/// Group of the Gateway API's kinds.
pub const GROUP: &str = "gateway.networking.k8s.io";

/// How problems with fields that are not known begin, after their path.
pub const NOT_KNOWN: &str = "not known to this release";

/// A route; `data` is the object without its metadata.
pub fn route(kind: RouteKind, metadata: &ObjectMeta, data: &Value) -> RouteView {
    let log = Log::default();
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let known = ["parentRefs", "hostnames", "rules", "useDefaultGateways"];
    let spec = Fields::of(&data["spec"], "spec", &known, &log);
    let hosts = spec.list("hostnames").filter_map(|(_, host)| host.as_str()).map(str::to_ascii_lowercase).collect();
    let parents = spec.list("parentRefs").filter_map(|(path, parent)| parent_view(namespace, path, parent, &log));
    let parents = parents.collect();
    let rules = spec.list("rules").enumerate();
    let mut rules: Vec<RuleView> =
        rules.map(|(number, (path, rule))| rule_view(kind, metadata, number, &path, rule)).collect();
    if rules.is_empty() && kind == RouteKind::Http {
        // The API's default: everything is taken, and led nowhere.
        rules.push(rule_view(kind, metadata, 0, "rules[0]", &Value::Null));
    }
    RouteView {
        generation: metadata.generation.unwrap_or(0),
        created: created(metadata),
        parents,
        hosts,
        rules,
        problems: log.0.into_inner(),
    }
}

/// A ReferenceGrant.
pub fn grant(_: &ObjectMeta, data: &Value) -> GrantView {
    let list = |name: &str| data["spec"][name].as_array().cloned().unwrap_or_default();
    let text = |entry: &Value, name: &str| entry[name].as_str().map(str::to_owned);
    GrantView {
        from: list("from")
            .iter()
            .filter_map(|e| Some((text(e, "group").unwrap_or_default(), text(e, "kind")?, text(e, "namespace")?)))
            .collect(),
        to: list("to")
            .iter()
            .filter_map(|e| Some((text(e, "group").unwrap_or_default(), text(e, "kind")?, text(e, "name"))))
            .collect(),
    }
}

/// An XBackendTrafficPolicy. Parts that make no sense are left out: the kind is experimental and has no status of its
/// own here.
pub fn backend_policy(metadata: &ObjectMeta, data: &Value) -> BackendPolicyView {
    let log = Log::default();
    let known = ["targetRefs", "retryConstraint", "sessionPersistence"];
    let spec = Fields::of(&data["spec"], "spec", &known, &log);
    let targets = spec.list("targetRefs").filter(|(_, to)| to["kind"] == "Service" && to["group"] == "");
    BackendPolicyView {
        created: created(metadata),
        services: targets.filter_map(|(_, to)| to["name"].as_str()).map(str::to_owned).collect(),
        budget: spec.object("retryConstraint", &["budget", "minRetryRate"]).map(|constraint| budget(&constraint)),
        session: spec.object("sessionPersistence", SESSION).map(|fields| session(&fields, metadata, "")),
    }
}

fn created(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second())
}

/// What went wrong so far.
#[derive(Default)]
struct Log(RefCell<Vec<Problem>>);

impl Log {
    /// Something that cannot work.
    fn add(&self, effect: Effect, text: String) {
        self.0.borrow_mut().push(Problem { effect, reason: Reason::UnsupportedValue, wrong: true, text });
    }

    /// Something that others, or later releases, may know.
    fn leave_out(&self, effect: Effect, text: String) {
        self.0.borrow_mut().push(Problem { effect, reason: Reason::UnsupportedValue, wrong: false, text });
    }
}

/// An object, read by field.
struct Fields<'a> {
    path: String,
    fields: Option<&'a Map<String, Value>>,
    log: &'a Log,
}

impl<'a> Fields<'a> {
    /// Tells of every field that is not `known`.
    fn of(value: &'a Value, path: &str, known: &[&str], log: &'a Log) -> Self {
        let fields = value.as_object();
        if fields.is_none() && !value.is_null() {
            log.add(Effect::Ignored, format!("{path}: no object"));
        }
        for name in fields.into_iter().flat_map(|fields| fields.keys()).filter(|name| !known.contains(&name.as_str())) {
            let near = nearest(name, known.iter().copied()).map(|near| format!("; did you mean {near}?"));
            log.leave_out(Effect::Ignored, format!("{path}.{name}: {NOT_KNOWN}{}", near.unwrap_or_default()));
        }
        Self { path: path.to_owned(), fields, log }
    }

    fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields?.get(name).filter(|value| !value.is_null())
    }

    fn wrong(&self, effect: Effect, name: &str, value: &Value, what: &str) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        self.log.add(effect, format!("{}: `{value}` {what}", self.path(name)));
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        let value = self.get(name)?;
        if !value.is_string() {
            self.wrong(Effect::Ignored, name, value, "is no text");
        }
        value.as_str()
    }

    fn number<T: TryFrom<i64>>(&self, name: &str) -> Option<T> {
        let value = self.get(name)?;
        let number = value.as_i64().and_then(|number| T::try_from(number).ok());
        if number.is_none() {
            self.wrong(Effect::Ignored, name, value, "is no number that can be used here");
        }
        number
    }

    fn duration(&self, name: &str) -> Option<Millis> {
        match self.text(name)?.parse() {
            Ok(duration) => Some(duration),
            Err(error) => {
                self.log.add(Effect::Ignored, format!("{}: {error}", self.path(name)));
                None
            }
        }
    }

    fn object(&self, name: &str, known: &[&str]) -> Option<Fields<'a>> {
        Some(Fields::of(self.get(name)?, &self.path(name), known, self.log))
    }

    fn list(&self, name: &str) -> impl Iterator<Item = (String, &'a Value)> + use<'a> {
        let path = self.path(name);
        let items = self.get(name).and_then(Value::as_array).into_iter().flatten().enumerate();
        // Paths begin below `spec`, as the messages of the Gateway API do.
        let path = path.strip_prefix("spec.").map(str::to_owned).unwrap_or(path);
        items.map(move |(at, item)| (format!("{path}[{at}]"), item))
    }

    /// The type of something that comes in types, `usual` if it is left out.
    fn kind(&self, usual: &'a str) -> &'a str {
        self.text("type").unwrap_or(usual)
    }

    fn unsupported(&self, effect: Effect, name: &str, value: &str) {
        self.log.leave_out(effect, format!("{}: `{value}` is not supported", self.path(name)));
    }
}

fn parent_view(namespace: &str, path: String, parent: &Value, log: &Log) -> Option<ParentView> {
    let fields = Fields::of(parent, &path, &["group", "kind", "name", "namespace", "port", "sectionName"], log);
    if fields.text("group") != Some("") || fields.text("kind") != Some("Service") {
        return None;
    }
    Some(ParentView {
        reference: parent.clone(),
        service: Name::new(fields.text("namespace").unwrap_or(namespace), fields.text("name")?),
        port: fields.number("port"),
        section: fields.text("sectionName").map(str::to_owned),
    })
}

const RULE: &[&str] = &["name", "matches", "filters", "backendRefs", "timeouts", "retry", "sessionPersistence"];
const SESSION: &[&str] = &["sessionName", "type", "absoluteTimeout", "idleTimeout", "cookieConfig"];

fn rule_view(kind: RouteKind, metadata: &ObjectMeta, number: usize, path: &str, rule: &Value) -> RuleView {
    let log = Log::default();
    let fields = Fields::of(rule, path, RULE, &log);
    let name = fields.text("name").map_or_else(|| number.to_string(), str::to_owned);
    let read = |(path, value): (String, &Value)| match kind {
        RouteKind::Grpc => grpc_match(&path, value, &log),
        _ => http_match(&path, value, &log),
    };
    let matches: Vec<MatchView> = if fields.list("matches").next().is_none() {
        vec![MatchView::default()]
    } else {
        fields.list("matches").filter_map(read).collect()
    };
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let filters = filters(namespace, &fields, &log);
    let backends = fields.list("backendRefs").filter_map(|(path, value)| backend(namespace, &path, value, &log));
    let backends = backends.collect();
    let session = fields.object("sessionPersistence", SESSION).map(|fields| session(&fields, metadata, &name));
    let timeouts = timeouts(&fields);
    let retry = retry(&fields);
    check_together(path, &filters, &matches, &log);
    RuleView { name, matches, filters, backends, timeouts, retry, session, problems: log.0.into_inner() }
}

/// Filters that do not go with each other, or with what the rule takes.
fn check_together(path: &str, filters: &[FilterView], matches: &[MatchView], log: &Log) {
    let any = |is: fn(&Filter) -> bool| filters.iter().any(|f| matches!(f, FilterView::Plain(filter) if is(filter)));
    if any(|f| matches!(f, Filter::Redirect(_))) && any(|f| matches!(f, Filter::Rewrite(_))) {
        let text = format!("{path}.filters: URLRewrite and RequestRedirect cannot be combined");
        let problem = Problem { effect: Effect::Fails, reason: Reason::IncompatibleFilters, wrong: true, text };
        log.0.borrow_mut().push(problem);
    }
    let by_prefix = |path: &Option<PathChange>| matches!(path, Some(PathChange::Prefix(_)));
    let replaces = filters.iter().any(|filter| match filter {
        FilterView::Plain(Filter::Redirect(redirect)) => by_prefix(&redirect.path),
        FilterView::Plain(Filter::Rewrite(rewrite)) => by_prefix(&rewrite.path),
        _ => false,
    });
    let no_prefix = |m: &MatchView| matches!(m.path, Some(PathMatch::Exact(_) | PathMatch::Regex(_)));
    if replaces && matches.iter().any(no_prefix) {
        log.add(Effect::Fails, format!("{path}.filters: ReplacePrefixMatch needs matches of type PathPrefix"));
    }
}

fn http_match(path: &str, value: &Value, log: &Log) -> Option<MatchView> {
    let fields = Fields::of(value, path, &["path", "method", "headers", "queryParams"], log);
    let path = match fields.object("path", &["type", "value"]) {
        None => None,
        Some(fields) => path_match(&fields)?,
    };
    Some(MatchView {
        path,
        method: fields.text("method").map(str::to_owned),
        headers: value_matches(&fields, "headers", str::to_ascii_lowercase)?,
        query: value_matches(&fields, "queryParams", str::to_owned)?,
        grpc_chars: (0, 0),
    })
}

/// A path's condition; the outer `None`: it cannot be judged.
fn path_match(fields: &Fields<'_>) -> Option<Option<PathMatch>> {
    let value = fields.text("value").unwrap_or("/");
    match fields.kind("PathPrefix") {
        "PathPrefix" => {
            let segments = value.trim_end_matches('/');
            Some((!segments.is_empty()).then(|| PathMatch::Prefix(segments.to_owned())))
        }
        "Exact" => Some(Some(PathMatch::Exact(value.to_owned()))),
        "RegularExpression" => regex(fields, "value", value).map(|regex| Some(PathMatch::Regex(regex))),
        other => {
            fields.unsupported(Effect::Dropped, "type", other);
            None
        }
    }
}

fn regex(fields: &Fields<'_>, name: &str, value: &str) -> Option<String> {
    match regex::RegexBuilder::new(value).size_limit(limits::EXPRESSION_BYTES).build() {
        Ok(_) => Some(value.to_owned()),
        Err(error) => {
            // The last line says what is wrong, those before it point at it.
            let error = error.to_string();
            let why = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
            fields.log.add(Effect::Dropped, format!("{}: `{value}`: {why}", fields.path(name)));
            None
        }
    }
}

/// Conditions on values. Of several for one name the first counts (Gateway API: `HTTPHeaderMatch.name`).
fn value_matches(fields: &Fields<'_>, list: &str, spelled: fn(&str) -> String) -> Option<Vec<ValueMatch>> {
    let mut conditions: Vec<ValueMatch> = Vec::new();
    for (path, value) in fields.list(list) {
        let fields = Fields::of(value, &path, &["type", "name", "value"], fields.log);
        let (name, value) = (spelled(fields.text("name")?), fields.text("value").unwrap_or_default());
        let value = match fields.kind("Exact") {
            "Exact" => TextMatch::Exact(value.to_owned()),
            "RegularExpression" => TextMatch::Regex(regex(&fields, "value", value)?),
            other => {
                fields.unsupported(Effect::Dropped, "type", other);
                return None;
            }
        };
        if conditions.iter().all(|before| before.name != name) {
            conditions.push(ValueMatch { name, value });
        }
    }
    Some(conditions)
}

/// A gRPC method is a path: `/package.Service/Method`.
fn grpc_match(path: &str, value: &Value, log: &Log) -> Option<MatchView> {
    let fields = Fields::of(value, path, &["method", "headers"], log);
    let headers = value_matches(&fields, "headers", str::to_ascii_lowercase)?;
    let Some(method) = fields.object("method", &["type", "service", "method"]) else {
        return Some(MatchView { headers, ..MatchView::default() });
    };
    let (service, name) = (method.text("service"), method.text("method"));
    let (service, name) = (service.filter(|s| !s.is_empty()), name.filter(|n| !n.is_empty()));
    let exact = match method.kind("Exact") {
        "Exact" => true,
        "RegularExpression" => false,
        other => {
            method.unsupported(Effect::Dropped, "type", other);
            return None;
        }
    };
    let path = match (service, name) {
        (None, None) => None,
        (Some(service), Some(name)) if exact => Some(PathMatch::Exact(format!("/{service}/{name}"))),
        (Some(service), None) if exact => Some(PathMatch::Prefix(format!("/{service}"))),
        _ => {
            let part = |given: Option<&str>, field: &str| match given {
                None => Some("[^/]+".to_owned()),
                // Names of gRPC consist of letters, digits, dots and underscores.
                Some(text) if exact => Some(text.replace('.', r"\.")),
                Some(text) => regex(&method, field, text).map(|text| format!("(?:{text})")),
            };
            Some(PathMatch::Regex(format!("/{}/{}", part(service, "service")?, part(name, "method")?)))
        }
    };
    let chars = |text: Option<&str>| text.map_or(0, |text| text.chars().count());
    Some(MatchView { path, headers, grpc_chars: (chars(service), chars(name)), ..MatchView::default() })
}

fn backend(namespace: &str, path: &str, value: &Value, log: &Log) -> Option<BackendView> {
    let known = ["group", "kind", "name", "namespace", "port", "weight", "filters"];
    let fields = Fields::of(value, path, &known, log);
    let own = Log::default();
    let inner = Fields { path: path.to_owned(), fields: value.as_object(), log: &own };
    let filters = filters(namespace, &inner, &own);
    let problems = own.0.into_inner();
    let fails = problems.iter().any(|problem| problem.effect == Effect::Fails);
    // The rule still works for the other backends.
    let told = problems.into_iter().map(|problem| Problem { effect: Effect::Ignored, ..problem });
    log.0.borrow_mut().extend(told);
    let weight = fields.number("weight").unwrap_or(1);
    Some(BackendView { to: reference(namespace, &fields)?, weight, filters, fails })
}

fn reference(namespace: &str, fields: &Fields<'_>) -> Option<Reference> {
    Some(Reference {
        path: fields.path.clone(),
        group: fields.text("group").unwrap_or_default().to_owned(),
        kind: fields.text("kind").unwrap_or("Service").to_owned(),
        name: Name::new(fields.text("namespace").unwrap_or(namespace), fields.text("name")?),
        port: fields.number("port"),
    })
}

fn filters(namespace: &str, of: &Fields<'_>, log: &Log) -> Vec<FilterView> {
    let filters = of.list("filters");
    filters.filter_map(|(path, value)| filter(namespace, &path, value, log)).collect()
}

/// A filter; `None`: it cannot be done, and the problem says so.
fn filter(namespace: &str, path: &str, value: &Value, log: &Log) -> Option<FilterView> {
    // Of the fields beside `type` only the one it names counts.
    let fields = Fields { path: path.to_owned(), fields: value.as_object(), log };
    let incomplete = |name: &str| {
        log.add(Effect::Fails, format!("{path}.{name}: missing"));
    };
    let headers = |name: &str| {
        let change = fields.object(name, &["set", "add", "remove"]);
        if change.is_none() {
            incomplete(name);
        }
        change.map(|change| header_change(&change))
    };
    match fields.kind("") {
        "RequestHeaderModifier" => {
            headers("requestHeaderModifier").map(|change| FilterView::Plain(Filter::RequestHeaders(change)))
        }
        "ResponseHeaderModifier" => {
            headers("responseHeaderModifier").map(|change| FilterView::Plain(Filter::ResponseHeaders(change)))
        }
        "RequestRedirect" => {
            let known = ["scheme", "hostname", "path", "port", "statusCode"];
            let redirect = fields.object("requestRedirect", &known).or_else(|| {
                incomplete("requestRedirect");
                None
            });
            Some(FilterView::Plain(Filter::Redirect(redirect_of(&redirect?)?)))
        }
        "URLRewrite" => {
            let rewrite = fields.object("urlRewrite", &["hostname", "path"]).or_else(|| {
                incomplete("urlRewrite");
                None
            })?;
            let (host, path) = (rewrite.text("hostname").map(str::to_owned), path_change(&rewrite)?);
            Some(FilterView::Plain(Filter::Rewrite(Rewrite { host, path })))
        }
        "RequestMirror" => {
            let mirror = fields.object("requestMirror", &["backendRef", "percent", "fraction"]).or_else(|| {
                incomplete("requestMirror");
                None
            })?;
            mirror_of(namespace, &mirror)
        }
        other => {
            fields.unsupported(Effect::Fails, "type", other);
            None
        }
    }
}

/// Changes of header fields. Names are compared without case; of several entries for one name the first counts.
fn header_change(fields: &Fields<'_>) -> HeaderChange {
    let pairs = |list: &str| {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for (path, value) in fields.list(list) {
            let entry = Fields::of(value, &path, &["name", "value"], fields.log);
            let Some(name) = entry.text("name").map(str::to_ascii_lowercase) else { continue };
            if pairs.iter().all(|(before, _)| *before != name) {
                pairs.push((name, entry.text("value").unwrap_or_default().to_owned()));
            }
        }
        pairs
    };
    let mut remove: Vec<String> =
        fields.list("remove").filter_map(|(_, name)| name.as_str()).map(str::to_ascii_lowercase).collect();
    remove.sort_unstable();
    remove.dedup();
    HeaderChange { set: pairs("set"), add: pairs("add"), remove }
}

fn redirect_of(fields: &Fields<'_>) -> Option<Redirect> {
    let status = fields.number("statusCode").unwrap_or(302);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        fields.unsupported(Effect::Fails, "statusCode", &status.to_string());
        return None;
    }
    let scheme = fields.text("scheme").map(str::to_ascii_lowercase);
    if let Some(other) = scheme.as_deref().filter(|scheme| !matches!(*scheme, "http" | "https")) {
        fields.unsupported(Effect::Fails, "scheme", other);
        return None;
    }
    Some(Redirect {
        scheme,
        host: fields.text("hostname").map(str::to_owned),
        port: fields.number("port"),
        path: path_change(fields)?,
        status,
    })
}

/// A change of the path; the outer `None`: one that cannot be done.
fn path_change(fields: &Fields<'_>) -> Option<Option<PathChange>> {
    let Some(change) = fields.object("path", &["type", "replaceFullPath", "replacePrefixMatch"]) else {
        return Some(None);
    };
    match change.kind("") {
        "ReplaceFullPath" => {
            Some(Some(PathChange::Full(change.text("replaceFullPath").unwrap_or_default().to_owned())))
        }
        "ReplacePrefixMatch" => {
            Some(Some(PathChange::Prefix(change.text("replacePrefixMatch").unwrap_or_default().to_owned())))
        }
        other => {
            change.unsupported(Effect::Fails, "type", other);
            None
        }
    }
}

fn mirror_of(namespace: &str, fields: &Fields<'_>) -> Option<FilterView> {
    let Some(to) = fields
        .object("backendRef", &["group", "kind", "name", "namespace", "port"])
        .and_then(|to| reference(namespace, &to))
    else {
        fields.log.add(Effect::Fails, format!("{}: missing", fields.path("backendRef")));
        return None;
    };
    let (numerator, denominator) = match fields.object("fraction", &["numerator", "denominator"]) {
        Some(fraction) => {
            let denominator = fraction.number("denominator").unwrap_or(100);
            (fraction.number("numerator").unwrap_or(0), denominator)
        }
        None => (fields.number("percent").unwrap_or(100), 100),
    };
    if denominator == 0 || numerator > denominator {
        fields.unsupported(Effect::Fails, "fraction", &format!("{numerator}/{denominator}"));
        return None;
    }
    Some(FilterView::Mirror { to, numerator, denominator })
}

fn timeouts(rule: &Fields<'_>) -> Timeouts {
    let Some(fields) = rule.object("timeouts", &["request", "backendRequest"]) else { return Timeouts::default() };
    // Zero is no limit.
    let limit = |name: &str| fields.duration(name).filter(|limit| !limit.is_zero());
    Timeouts { request: limit("request"), backend_request: limit("backendRequest"), ..Timeouts::default() }
}

fn retry(rule: &Fields<'_>) -> Option<Retry> {
    let fields = rule.object("retry", &["codes", "attempts", "backoff"])?;
    let code = |(path, code): (String, &Value)| {
        let number = code.as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| (400..600).contains(code));
        if number.is_none() {
            fields.log.add(Effect::Ignored, format!("{path}: `{code}` is no status of an error"));
        }
        number
    };
    let usual = Retry::default();
    Some(Retry {
        attempts: fields.number("attempts").unwrap_or(usual.attempts),
        codes: fields.list("codes").filter_map(code).collect(),
        backoff: fields.duration("backoff").filter(|pause| !pause.is_zero()),
        ..usual
    })
}

fn session(fields: &Fields<'_>, metadata: &ObjectMeta, rule: &str) -> SessionPersistence {
    let in_header = match fields.kind("Cookie") {
        "Cookie" => false,
        "Header" => true,
        other => {
            fields.unsupported(Effect::Ignored, "type", other);
            false
        }
    };
    let cookie = fields.object("cookieConfig", &["lifetimeType"]);
    let lifetime = cookie.as_ref().and_then(|cookie| cookie.text("lifetimeType"));
    let name = fields.text("sessionName").map(str::to_owned);
    let limit = |name: &str| fields.duration(name).filter(|limit| !limit.is_zero());
    SessionPersistence {
        // Two rules must not share a cookie: each remembers endpoints of its own.
        name: name.unwrap_or_else(|| format!("mesh-session-{}", unlike(metadata, rule))),
        in_header,
        absolute: limit("absoluteTimeout"),
        idle: limit("idleTimeout"),
        permanent: lifetime == Some("Permanent"),
    }
}

/// Eight characters that tell one rule from another.
fn unlike(metadata: &ObjectMeta, rule: &str) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(format!("{}/{rule}", Name::of(metadata)));
    digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

fn budget(constraint: &Fields<'_>) -> RetryBudget {
    let usual = RetryBudget::default();
    let budget = constraint.object("budget", &["percent", "interval"]);
    let rate = constraint.object("minRetryRate", &["count", "interval"]);
    let interval = |fields: &Option<Fields<'_>>| fields.as_ref().and_then(|fields| fields.duration("interval"));
    let per_second = |rate: &Fields<'_>| {
        let count: u64 = rate.number("count").unwrap_or(10);
        let interval = rate.duration("interval").filter(|i| !i.is_zero()).unwrap_or(Millis(1000));
        u32::try_from(count.saturating_mul(1000).div_ceil(interval.0)).unwrap_or(u32::MAX)
    };
    RetryBudget {
        percent: budget.as_ref().and_then(|budget| budget.number("percent")).unwrap_or(usual.percent),
        interval: interval(&budget).filter(|i| !i.is_zero()).unwrap_or(usual.interval),
        min_per_second: rate.as_ref().map_or(usual.min_per_second, per_second),
    }
}
