//! Single requests and connections from the observe API: one request, an answer of one JSON object a line.

pub mod lines;

use crate::cluster::Cluster;
use crate::error::{Context, Error, Hint, Result};
use crate::resource::{Kind, Resource};
use futures::stream::{self, BoxStream, StreamExt};
use futures::{AsyncBufReadExt, AsyncReadExt};
use mesh_api::WorkloadRef;
use mesh_api::names::{OBSERVE_GROUP, OBSERVE_VERSION};
use mesh_api::tap::TapMessage;
use mesh_api::tap::filter::TapFilter;
use mesh_manifests::rbac::{TAPPER_BODIES_ROLE, TAPPER_ROLE, TAPPER_SECRETS_ROLE, VIEWER_ROLE};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

/// The longest line that is believed to be an event.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// The control plane says something at least every five seconds.
const SILENCE: Duration = Duration::from_secs(30);
/// Events a second unless told otherwise.
pub const DEFAULT_RPS: u32 = 100;

/// Whose requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapTarget {
    /// One namespace, or all.
    pub namespace: Option<String>,
    /// What there.
    pub of: Resource,
    /// Only these.
    pub only: Option<BTreeSet<WorkloadRef>>,
}

/// What to ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct TapAsk {
    /// Whose requests.
    pub target: TapTarget,
    /// Which of them.
    pub filter: TapFilter,
    /// Events a second, at most.
    pub max_rps: u32,
    /// Share of what matches, above 0 and at most 1.
    pub sample: f64,
    /// With header fields.
    pub headers: bool,
    /// With the beginning of bodies.
    pub bodies: bool,
    /// With secret header fields as they are.
    pub secrets: bool,
    /// For how long; `None`: until the stream is dropped.
    pub duration: Option<Duration>,
}

impl TapAsk {
    /// Everything that matches, without headers, up to [`DEFAULT_RPS`].
    pub fn new(target: TapTarget, filter: TapFilter) -> Self {
        let (headers, bodies, secrets) = (false, false, false);
        Self { target, filter, max_rps: DEFAULT_RPS, sample: 1.0, headers, bodies, secrets, duration: None }
    }

    fn path(&self) -> String {
        let TapTarget { namespace, of, only } = &self.target;
        let mut narrow = String::new();
        // Writing to a String cannot fail.
        let (namespace, name) = match (of.kind, &of.name) {
            (Kind::Namespace, Some(name)) => (Some(name), "all".to_owned()),
            (Kind::Namespace, None) => (None, "all".to_owned()),
            (Kind::All, _) => (namespace.as_ref(), "all".to_owned()),
            (kind, Some(name)) => (namespace.as_ref(), format!("{}.{name}", Resource { kind, name: None })),
            (kind, None) => {
                let _ = write!(narrow, "&kind={}", Resource { kind, name: None });
                (namespace.as_ref(), "all".to_owned())
            }
        };
        let namespace = namespace.map(|name| format!("/namespaces/{name}")).unwrap_or_default();
        // As a watch, because API servers give other requests a minute only.
        let mut path = format!("/apis/{OBSERVE_GROUP}/{OBSERVE_VERSION}/watch{namespace}/workloads/{name}/tap?");
        let _ = write!(path, "filter={}&max_rps={}{narrow}", encode(&self.filter.to_string()), self.max_rps);
        if let Some(only) = only {
            let only: Vec<String> = only.iter().map(|one| encode(&one.to_string())).collect();
            let _ = write!(path, "&only={}", only.join(","));
        }
        if self.sample < 1.0 {
            let _ = write!(path, "&sample={}", self.sample);
        }
        for (name, wanted) in [("headers", self.headers), ("bodies", self.bodies), ("secrets", self.secrets)] {
            if wanted {
                let _ = write!(path, "&{name}=true");
            }
        }
        if let Some(duration) = self.duration {
            let _ = write!(path, "&for={}", duration.as_secs_f64());
        }
        path
    }

    /// What is tried, as it follows "cannot".
    fn tried(&self) -> String {
        let place = match &self.target.namespace {
            _ if self.target.of.kind == Kind::Namespace => String::new(),
            Some(namespace) => format!(" in namespace {namespace}"),
            None => " in all namespaces".to_owned(),
        };
        format!("tap {}{place}", self.target.of)
    }
}

/// Begins to tap with the usual limits.
pub async fn tap_stream(
    cluster: &Cluster,
    target: TapTarget,
    filter: TapFilter,
) -> Result<BoxStream<'static, Result<TapMessage>>> {
    stream(cluster, &TapAsk::new(target, filter)).await
}

/// Begins to tap. The stream ends orderly after a status that is the last one, else with an error; dropping it ends
/// the tap.
pub async fn stream(cluster: &Cluster, ask: &TapAsk) -> Result<BoxStream<'static, Result<TapMessage>>> {
    let request = http::Request::get(ask.path()).body(Vec::new()).during(|| ask.tried())?;
    let lines = match cluster.client.request_stream(request).await {
        Ok(lines) => lines,
        Err(kube::Error::Api(status)) if status.code == 403 => {
            return Err(denial(&status.message, ask.target.namespace.as_deref()).during(ask.tried()));
        }
        // These say all there is to say.
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 404 | 429) && !status.message.is_empty() => {
            let error = Error::new(status.message.clone()).during(ask.tried());
            let no_mesh = status.message.contains("could not find");
            return Err(if no_mesh { error.hint("run `meshctl check`: the observe API is not there") } else { error });
        }
        Err(other) => return Err(other).during(|| ask.tried()).hint(|| "run `meshctl check`"),
    };
    Ok(stream::unfold(Some(Box::pin(lines)), |lines| async move {
        let mut lines = lines?;
        let line = tokio::time::timeout(SILENCE, read_line(&mut lines)).await;
        match line.unwrap_or_else(|_| Err(Error::new(format!("nothing heard for {} s", SILENCE.as_secs())))) {
            Ok(Some(message @ TapMessage::Status(_))) => {
                let over = matches!(&message, TapMessage::Status(status) if status.last);
                Some((Ok(message), (!over).then_some(lines)))
            }
            Ok(Some(message)) => Some((Ok(message), Some(lines))),
            Ok(None) => Some((Err(Error::new("the control plane ended the tap").during("go on tapping")), None)),
            // After a broken line nothing can be trusted: this was the last.
            Err(error) => Some((Err(error.during("go on tapping")), None)),
        }
    })
    .boxed())
}

async fn read_line<R: futures::AsyncBufRead + Unpin>(lines: &mut R) -> Result<Option<TapMessage>> {
    loop {
        let mut line = Vec::new();
        let length = (&mut *lines).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await;
        if length.during(|| "read from the control plane")? == 0 {
            return Ok(None);
        }
        if !line.trim_ascii().is_empty() {
            let understood = serde_json::from_slice(&line).during(|| "understand the control plane");
            return understood.map(Some).hint(|| crate::observe::NEWER);
        }
    }
}

/// Which right is missing, and how somebody who may can grant it.
pub(crate) fn denial(message: &str, namespace: Option<&str>) -> Error {
    let between = |before: &str| {
        let rest = message.split_once(before)?.1;
        Some(rest.split_once('"')?.0)
    };
    let subresource = between("resource \"workloads/").unwrap_or("tap");
    let verb = between("cannot ").and_then(|rest| rest.split(' ').next()).unwrap_or("watch");
    let role = match subresource {
        "golden" => VIEWER_ROLE,
        "tapbodies" => TAPPER_BODIES_ROLE,
        "tapsecrets" => TAPPER_SECRETS_ROLE,
        _ => TAPPER_ROLE,
    };
    let place = namespace.map_or("in all namespaces".to_owned(), |namespace| format!("in namespace {namespace}"));
    let user = between("User \"");
    let who = user.map_or("you".to_owned(), |user| format!("user {user}"));
    let error = Error::new(format!(
        "{who} may not: the right to {verb} workloads/{subresource} of API group {OBSERVE_GROUP} {place} is missing"
    ));
    let user = user.unwrap_or("USER");
    let subject = match user.strip_prefix("system:serviceaccount:") {
        Some(account) => format!("--serviceaccount={account}"),
        None => format!("--user={}", shell_word(user)),
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c.to_ascii_lowercase() } else { '-' };
    let name: String = user.chars().map(plain).collect();
    let name = format!("{}-{role}", name.trim_matches(|c| c == '-' || c == '.'));
    error.hint(match namespace {
        Some(namespace) => {
            format!("to grant it: kubectl create rolebinding {name} -n {namespace} --clusterrole={role} {subject}")
        }
        None => format!("to grant it: kubectl create clusterrolebinding {name} --clusterrole={role} {subject}"),
    })
}

/// A word as a shell takes it literally.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@/,+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Percent-encodes a value of a query.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/*,:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests;
