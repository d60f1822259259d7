//! `workloads/{all|KIND.NAME}/tap`: who may see which single requests, and the stream of them.
//!
//! Seeing heads needs a right to `workloads/tap`; bodies need `workloads/tapbodies` beside it, secret header fields
//! `workloads/tapsecrets`. Below `/watch` the verb is `watch`, and API servers let the stream go on; else it is `get`,
//! and they end it after their request timeout. Who taps whom is logged.

use super::{Failure, Observe, stream_of};
use crate::limits;
use crate::listen::{Body, Peer};
use crate::peers::PEER_PATH;
use crate::subscriptions::Subscriptions;
use crate::tap::target::Target;
use crate::tap::{Taps, Watch, Wish};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, Uri};
use hyper::body::Frame;
use mesh_api::WorkloadRef;
use mesh_api::names::{OBSERVE_GROUP, OBSERVE_VERSION};
use mesh_api::tap::filter::{self, TapFilter};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Question {
    /// The name in the path: `all` or `KIND.NAME`.
    name: String,
    verb: &'static str,
    wish: Wish,
}

/// A tap with its place in the log.
struct Logged {
    watch: Watch,
    user: String,
    name: String,
    namespace: String,
    begun: Instant,
}

impl Observe {
    pub(super) async fn open_tap(
        &self,
        peer: &Peer,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Failure> {
        let Question { name, verb, wish } = parse(uri.path(), uri.query().unwrap_or_default())?;
        let user = self.who(peer, headers)?;
        let namespace = wish.target.namespace.clone();
        let mut rights = vec!["tap"];
        rights.extend(wish.bodies.then_some("tapbodies"));
        // Comparing with a secret is a way to find it out.
        rights.extend((wish.secrets || wish.filter.compares_secrets()).then_some("tapsecrets"));
        for right in rights {
            self.authorize(&user, namespace.as_deref(), &name, (verb, right)).await?;
        }
        if let Some(message) = self.subscriptions.read(|world| wish.target.missing(world)) {
            return Err(Failure::new(StatusCode::NOT_FOUND, "NotFound", message));
        }
        let namespace = namespace.unwrap_or_default();
        let said = (wish.filter.without_secrets(), wish.bodies, wish.secrets);
        let begun = Instant::now();
        let watch = self.taps.watch(wish, begun).ok_or_else(|| {
            let message = format!("{} taps are on already", limits::TAPS);
            Failure::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message)
        })?;
        let (filter, bodies, secrets) = said;
        tracing::info!(user = user.name, groups = ?user.groups, namespace, workload = name, filter, bodies, secrets, "a tap begins");
        let path = format!("{PEER_PATH}{}?{}", uri.path(), uri.query().unwrap_or_default());
        let watch = watch.with(self.peers.clone(), path);
        let logged = Logged { watch, user: user.name, name, namespace, begun };
        Ok(stream(logged, self.subscriptions.clone(), self.stop.clone()))
    }
}

/// Answers another replica, which has made sure that somebody may see what it asks for.
pub(crate) fn answer(
    taps: &Arc<Taps>,
    (path, query): (&str, &str),
    asker: String,
    subscriptions: Arc<Subscriptions>,
    stop: CancellationToken,
) -> Response<Body> {
    let Question { name, verb: _, wish } = match parse(path, query) {
        Ok(question) => question,
        Err(failure) => return failure.response(),
    };
    let namespace = wish.target.namespace.clone().unwrap_or_default();
    let begun = Instant::now();
    match taps.watch(wish, begun) {
        Some(watch) => stream(Logged { watch, user: asker, name, namespace, begun }, subscriptions, stop),
        None => {
            let message = format!("{} taps are on already", limits::TAPS);
            Failure::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message).response()
        }
    }
}

fn stream(logged: Logged, subscriptions: Arc<Subscriptions>, stop: CancellationToken) -> Response<Body> {
    let lines = futures::stream::unfold(logged, move |mut logged| {
        let (subscriptions, stop) = (subscriptions.clone(), stop.clone());
        async move {
            let messages = tokio::select! {
                () = stop.cancelled() => return None,
                messages = logged.watch.next(&subscriptions) => messages?,
            };
            let mut text = Vec::new();
            for message in messages {
                if let Err(error) = serde_json::to_writer(&mut text, &message) {
                    return Some((Err(std::io::Error::other(error)), logged));
                }
                text.push(b'\n');
            }
            Some((Ok(Frame::data(Bytes::from(text))), logged))
        }
    });
    stream_of(lines)
}

impl Drop for Logged {
    fn drop(&mut self) {
        let Self { watch, user, name, namespace, begun } = self;
        tracing::info!(user, namespace, workload = name, shown = watch.shown(), lasted = ?begun.elapsed(), "a tap ends");
    }
}

/// Reads `/apis/GROUP/VERSION[/watch][/namespaces/NS]/workloads/{all|KIND.NAME}/tap?filter=…`, with these parameters: `kind`
/// and `only` (`NS/KIND/NAME,…`) narrow `all` down; `max_rps`, `sample`, `headers`, `bodies`, `secrets`; `for` seconds.
fn parse(path: &str, query: &str) -> Result<Question, Failure> {
    let not_found = || {
        let message = format!(
            "{path} is not there; taps are at /apis/{OBSERVE_GROUP}/{OBSERVE_VERSION}[/namespaces/NAMESPACE]/workloads/{{all|KIND.NAME}}/tap"
        );
        Failure::new(StatusCode::NOT_FOUND, "NotFound", message)
    };
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let ["apis", OBSERVE_GROUP, OBSERVE_VERSION, rest @ ..] = &parts[..] else { return Err(not_found()) };
    let (verb, rest) = match rest {
        ["watch", rest @ ..] => ("watch", rest),
        rest => ("get", rest),
    };
    let (namespace, name) = match *rest {
        ["workloads", name, "tap"] => (None, name),
        ["namespaces", namespace, "workloads", name, "tap"] => (Some(namespace.to_owned()), name),
        _ => return Err(not_found()),
    };
    let mut target = Target { namespace, ..Target::default() };
    if name != "all" {
        let (kind, name) = name.split_once('.').ok_or_else(not_found)?;
        target.kind = Some(kind_of(kind)?);
        target.name = Some(name.to_owned());
    }
    let mut wish = Wish {
        target,
        filter: TapFilter::default(),
        max_rps: limits::TAP_DEFAULT_RPS,
        sample: 1.0,
        headers: false,
        bodies: false,
        secrets: false,
        duration: None,
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value).ok_or_else(|| bad(key, value, "percent-encoded UTF-8"))?;
        apply(&mut wish, key, &value)?;
    }
    Ok(Question { name: name.to_owned(), verb, wish })
}

fn apply(wish: &mut Wish, key: &str, value: &str) -> Result<(), Failure> {
    let flag = || value.parse().map_err(|_| bad(key, value, "true or false"));
    match key {
        "filter" => {
            wish.filter = value.parse().map_err(|error: filter::FilterError| {
                Failure::new(StatusCode::BAD_REQUEST, "BadRequest", format!("filter `{value}`: {error}"))
            })?;
        }
        "kind" => wish.target.kind = Some(kind_of(value)?),
        "only" => wish.target.only = Some(only(value)?),
        "max_rps" => {
            let range = 1..=limits::TAP_MAX_RPS;
            let number = value.parse().ok().filter(|number| range.contains(number));
            wish.max_rps = number.ok_or_else(|| bad(key, value, "a number from 1 to 10000"))?;
        }
        "sample" => {
            let share = value.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
            wish.sample = share.ok_or_else(|| bad(key, value, "a share above 0 and at most 1"))?;
        }
        "headers" => wish.headers = flag()?,
        "bodies" => wish.bodies = flag()?,
        "secrets" => wish.secrets = flag()?,
        "for" => {
            let seconds = value.parse::<f64>().ok().filter(|seconds| *seconds > 0.0);
            let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            wish.duration = Some(duration.filter(|d| *d < A_YEAR).ok_or_else(|| bad(key, value, "seconds above 0"))?);
        }
        // API clients add parameters of their own (timeout, pretty): they change nothing here.
        _ => {}
    }
    Ok(())
}

const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn bad(key: &str, value: &str, expected: &str) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, "BadRequest", format!("{key}={value}: expected {expected}"))
}

fn kind_of(text: &str) -> Result<String, Failure> {
    let kind = text.to_ascii_lowercase();
    let known = filter::KINDS.contains(&kind.as_str());
    if known { Ok(kind) } else { Err(bad("kind", text, &format!("one of {}", filter::KINDS.join(", ")))) }
}

fn only(value: &str) -> Result<BTreeSet<WorkloadRef>, Failure> {
    let read = |one: &str| match one.split('/').collect::<Vec<_>>()[..] {
        [namespace, kind, name] => Ok(WorkloadRef::new(namespace, &kind_of(kind)?, name)),
        _ => Err(bad("only", one, "NAMESPACE/KIND/NAME")),
    };
    let only: BTreeSet<_> = value.split(',').filter(|one| !one.is_empty()).map(read).collect::<Result<_, _>>()?;
    match only.len() {
        0..=limits::TAP_ONLY => Ok(only),
        count => Err(bad("only", &format!("{count} resources"), &format!("at most {}", limits::TAP_ONLY))),
    }
}

/// Undoes percent-encoding, and `+` for a space.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
