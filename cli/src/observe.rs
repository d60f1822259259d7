//! Golden frames from the observe API: one request, an answer of one JSON object a line.

use crate::cluster::Cluster;
use crate::error::{Context, Error, Hint, Result};
use crate::tap::denial;
use futures::stream::{self, BoxStream, StreamExt};
use futures::{AsyncBufReadExt, AsyncReadExt};
use mesh_api::golden::GoldenFrame;
use mesh_api::names::{OBSERVE_GROUP, OBSERVE_VERSION};
use serde::de::DeserializeOwned;
use std::time::Duration;

/// The longest line that is believed to be a frame.
const MAX_FRAME_BYTES: u64 = 64 << 20;
/// The longest window: proxies remember no more.
pub const MAX_WINDOW: Duration = Duration::from_secs(600);

/// What to do about an answer that cannot be read.
pub const NEWER: &str =
    "the control plane may be of a newer release than this meshctl: compare them with `meshctl version`";

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// One namespace, or all.
    pub namespace: Option<String>,
    /// What the first frame covers.
    pub window: Duration,
    /// End after this many frames.
    pub frames: Option<u32>,
    /// Tell pods apart.
    pub pods: bool,
}

impl Ask {
    fn path(&self) -> String {
        let window = self.window.min(MAX_WINDOW).as_secs().max(1);
        let mut path = path(self.namespace.as_deref(), "all", &format!("golden?window={window}"));
        if let Some(frames) = self.frames {
            path.push_str(&format!("&frames={frames}"));
        }
        if self.pods {
            path.push_str("&pods=true");
        }
        path
    }
}

/// Where the observe API has something of workloads (`all` or `KIND.NAME`) of one namespace, or of all.
pub fn path(namespace: Option<&str>, workloads: &str, asked: &str) -> String {
    let namespace = namespace.map(|name| format!("/namespaces/{name}")).unwrap_or_default();
    format!("/apis/{OBSERVE_GROUP}/{OBSERVE_VERSION}{namespace}/workloads/{workloads}/{asked}")
}

/// Opens a stream of frames.
pub async fn stream(cluster: &Cluster, ask: &Ask) -> Result<BoxStream<'static, Result<GoldenFrame>>> {
    lines(cluster, ask.path(), "golden metrics").await
}

/// Opens a stream of JSON objects, one a line; `what` they are is for messages.
pub async fn lines<T: DeserializeOwned + Send + 'static>(
    cluster: &Cluster,
    path: String,
    what: &'static str,
) -> Result<BoxStream<'static, Result<T>>> {
    let request = http::Request::get(path).body(Vec::new()).during(|| format!("ask for {what}"))?;
    let lines = match cluster.client.request_stream(request).await {
        Err(kube::Error::Api(status)) if status.code == 403 && status.message.contains("\"workloads/") => {
            let place = status.message.split_once("in the namespace \"").and_then(|(_, rest)| rest.split_once('"'));
            return Err(denial(&status.message, place.map(|(namespace, _)| namespace)).during(format!("read {what}")));
        }
        answer => answer.during(|| format!("read {what}")).hint(
            || "run `meshctl check`; without a mesh in this cluster there is nothing to see (`meshctl install --apply`)",
        )?,
    };
    Ok(stream::unfold(Some(Box::pin(lines)), move |lines| async move {
        let mut lines = lines?;
        match read_line(&mut lines, what).await {
            Ok(Some(frame)) => Some((Ok(frame), Some(lines))),
            Ok(None) => None,
            // After a broken line nothing can be trusted: this was the last.
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed())
}

/// One frame, for commands that look once.
pub async fn once(cluster: &Cluster, ask: &Ask, deadline: Duration) -> Result<GoldenFrame> {
    let ask = Ask { frames: Some(1), ..ask.clone() };
    let read = async {
        let mut frames = stream(cluster, &ask).await?;
        match frames.next().await {
            Some(frame) => frame,
            None => Err(Error::new("the stream ended before the first frame").during("read golden metrics")),
        }
    };
    tokio::time::timeout(deadline, read).await.unwrap_or_else(|_| {
        Err(Error::new(format!("no answer within {} s", deadline.as_secs())).during("read golden metrics"))
            .hint(|| "run `meshctl check`")
    })
}

async fn read_line<T: DeserializeOwned>(
    lines: &mut (impl futures::AsyncBufRead + Unpin),
    what: &str,
) -> Result<Option<T>> {
    loop {
        let mut line = Vec::new();
        let length = (&mut *lines).take(MAX_FRAME_BYTES).read_until(b'\n', &mut line).await;
        if length.during(|| format!("read {what}"))? == 0 {
            return Ok(None);
        }
        if !line.trim_ascii().is_empty() {
            let understood = serde_json::from_slice(&line).during(|| format!("understand the control plane's {what}"));
            return understood.map(Some).hint(|| NEWER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::tests::{SHOP, frame};
    use proptest::prelude::*;

    fn ask() -> Ask {
        Ask { namespace: Some("shop".into()), window: Duration::from_secs(10), frames: None, pods: false }
    }

    fn cluster(status: u16, body: Vec<u8>) -> Cluster {
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            assert_eq!(request.uri().path(), "/apis/observe.meshctl.dev/v1alpha1/namespaces/shop/workloads/all/golden");
            let body = kube::client::Body::from(body.clone());
            async move { http::Response::builder().status(status).body(body) }
        });
        Cluster::of_client(kube::Client::new(service, "default"))
    }

    #[test]
    fn the_question_is_spelled_as_the_observe_api_wants_it() {
        assert_eq!(
            Ask { namespace: None, window: Duration::from_secs(6000), frames: Some(2), pods: true }.path(),
            "/apis/observe.meshctl.dev/v1alpha1/workloads/all/golden?window=600&frames=2&pods=true"
        );
    }

    #[tokio::test]
    async fn frames_are_read_line_by_line() {
        let mut body = serde_json::to_vec(&frame(SHOP, 1000, 1000)).unwrap();
        body.extend_from_slice(b"\n\n");
        body.extend(serde_json::to_vec(&frame(SHOP, 2000, 1000)).unwrap());
        let frames: Vec<_> = stream(&cluster(200, body), &ask()).await.unwrap().collect().await;
        let times: Vec<_> = frames.into_iter().map(|frame| frame.unwrap().at_ms).collect();
        assert_eq!(times, [1000, 2000]);
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_a_way_out() {
        let body = br#"{"kind":"Status","apiVersion":"v1","code":404,"message":"the server could not find it"}"#;
        let error = once(&cluster(404, body.to_vec()), &ask(), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot read golden metrics: the server could not find it (404)");
        assert!(error.hint_text().unwrap().contains("meshctl check"));
    }

    proptest! {
        #[test]
        fn nonsense_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = futures::io::Cursor::new(bytes);
            let _ = futures::executor::block_on(read_line::<GoldenFrame>(&mut reader, "golden metrics"));
        }
    }
}
