//! Where requests go: what HTTPRoutes, GRPCRoutes, TLSRoutes and TCPRoutes with a Service as parent come to, flattened and
//! put into order of precedence, so that a proxy takes the first match.

use crate::millis::Millis;
use crate::retry::Retry;
use crate::timeout::Timeouts;
use crate::{ServiceRef, TrafficPolicy};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The routes of a destination. A destination with any answers 404 (`no-route`; gRPC: Unimplemented) to a request that
/// none of them matches (Gateway API, GEP-1426).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routes {
    /// What matches may lead to.
    pub rules: Vec<Rule>,
    /// Conditions of HTTP requests, the first that holds decides; several may lead to one rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpMatch>,
    /// Conditions of gRPC requests. Where there are none, gRPC requests are judged by `http`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grpc: Vec<HttpMatch>,
    /// The rule of each server name of TLS that is passed through; empty names mean all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<TlsMatch>,
    /// The rule of opaque connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<usize>,
}

/// One rule of a route: what happens to the requests it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Where it comes from.
    pub name: RuleName,
    /// What is done to requests and responses, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Where requests go, by weight. Empty or without any weight: answered with 500 (`no-backend`), unless a filter
    /// answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<RouteBackend>,
    /// Time limits.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// When requests are sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Keeps a client's requests at one endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionPersistence>,
    /// How its traffic is carried, over what the services it goes to say: `retry`, `timeouts`, `rate_limits` and `faults`
    /// (`retry` and `timeouts` of the route itself go first).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<TrafficPolicy>>,
}

/// The rule's origin, as shown and counted: `httproute/shop/web/canary`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleName {
    /// Lower-case kind: `httproute`, `grpcroute`, `tlsroute`, `tcproute`.
    pub kind: String,
    /// Namespace of the route.
    #[serde(default)]
    pub namespace: String,
    /// Name of the route.
    pub name: String,
    /// Name of the rule, or its number among its route's rules, from 0.
    #[serde(default)]
    pub rule: String,
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)?;
        if self.rule.is_empty() { Ok(()) } else { write!(f, "/{}", self.rule) }
    }
}

/// Conditions that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpMatch {
    /// Index into [`Routes::rules`].
    pub rule: usize,
    /// The request's host is one of these (`example.com` or `*.example.com`); empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// The path, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// The method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Header fields; names in lower case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<ValueMatch>,
    /// Query parameters; the first of a name counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<ValueMatch>,
}

/// A condition on a path. A gRPC method `S/M` is the path `/S/M`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    /// This path.
    Exact(String),
    /// This path or one below it, by whole segments: `/a` takes `/a` and `/a/b`, not `/ab`.
    Prefix(String),
    /// A regular expression (RE2's syntax) that takes the whole path.
    Regex(String),
}

/// A condition on a header field or query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueMatch {
    /// Name of the field or parameter.
    pub name: String,
    /// What its value must be.
    pub value: TextMatch,
}

/// A condition on a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextMatch {
    /// This value.
    Exact(String),
    /// A regular expression (RE2's syntax) that takes the whole value.
    Regex(String),
}

/// Server names of TLS connections and the rule for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsMatch {
    /// Index into [`Routes::rules`].
    pub rule: usize,
    /// Names (`example.com` or `*.example.com`); empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
}

/// A share of a rule's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteBackend {
    /// Where they go; `None`: to something that does not exist or may not be referred to, answered with 500
    /// (`no-backend`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// The share: this by the sum of all weights.
    pub weight: u32,
    /// What is done to the requests that go here, after the rule's own filters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
}

/// Something done to requests or responses on their way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Changes header fields of requests.
    RequestHeaders(HeaderChange),
    /// Changes header fields of responses.
    ResponseHeaders(HeaderChange),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Changes the request's host or path.
    Rewrite(Rewrite),
    /// Sends a copy of requests elsewhere, too, and ignores what comes back.
    Mirror(Mirror),
}

/// Changes to header fields; each name at most once in each list. Set, then add, then remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderChange {
    /// Fields that get this value alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<(String, String)>,
    /// Fields that get this value besides those they have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<(String, String)>,
    /// Fields that go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// A redirect; what is left out stays as in the request (Gateway API: `RequestRedirect`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// `http` or `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// The host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The port; left out: that of `scheme` if that is set, else the one the client called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathChange>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A change of a request's target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rewrite {
    /// The host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathChange>,
}

/// A change of a path; the query stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathChange {
    /// This path instead.
    Full(String),
    /// This instead of the prefix that the match took.
    Prefix(String),
}

/// A copy of some requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// Where copies go.
    pub service: ServiceRef,
    /// Of `denominator` requests so many are copied.
    pub numerator: u32,
    /// See `numerator`; not zero.
    pub denominator: u32,
}

/// Keeps a client's requests at one endpoint for as long as it is there (Gateway API: `SessionPersistence`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionPersistence {
    /// Name of the cookie or header field.
    pub name: String,
    /// In a header field instead of a cookie.
    #[serde(default)]
    pub in_header: bool,
    /// A session ends so long after it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absolute: Option<Millis>,
    /// A session ends after such a time without a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Millis>,
    /// The cookie outlives the client's session: it gets an expiry.
    #[serde(default)]
    pub permanent: bool,
}
