//! Events of the cluster: what `kubectl describe` tells somebody who asks why an object is as it is.

use crate::limits;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::PostParams;
use kube::{Api, Client};

/// A warning about an object, in the object's namespace, from one of our programs; the API server ends its name.
pub(crate) fn warning(about: ObjectReference, program: &str, reason: &str, message: String) -> Event {
    let now = Time(Timestamp::now());
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{program}-")),
            namespace: about.namespace.clone(),
            ..ObjectMeta::default()
        },
        involved_object: about,
        type_: Some("Warning".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message),
        source: Some(EventSource { component: Some(program.to_owned()), host: None }),
        reporting_component: Some(program.to_owned()),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        ..Event::default()
    }
}

/// Writes an event; true if it stands in the cluster now, perhaps because another replica wrote one of this name.
pub(crate) async fn write(client: Client, event: &Event) -> bool {
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let events: Api<Event> = Api::namespaced(client, namespace);
    let post = PostParams::default();
    match tokio::time::timeout(limits::API_TIMEOUT, events.create(&post, event)).await {
        Ok(Ok(_)) => true,
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => true,
        failed => {
            tracing::debug!(?failed, "an event could not be written");
            false
        }
    }
}
