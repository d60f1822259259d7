//! Reads the public keys that access policies name, from ConfigMaps and Secrets: one object at a time and again and again,
//! so that the control plane needs no right to list either. Secrets it may read only where their owner lets it.

use crate::limits;
use crate::subscriptions::Subscriptions;
use crate::world::key_set::{KeySet, KeySetView};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use std::sync::Arc;
use tokio::time::Instant;

/// Keeps all sets of keys that policies name current, for ever.
pub async fn follow(client: kube::Client, subscriptions: Arc<Subscriptions>) {
    let mut changes = subscriptions.changes();
    let mut due = Instant::now();
    loop {
        let wanted = subscriptions.read(|world| world.key_sets_wanted());
        let gone = subscriptions
            .read(|world| world.key_sets().filter(|set| !wanted.contains(*set)).cloned().collect::<Vec<_>>());
        gone.iter().for_each(|set| subscriptions.delete::<KeySetView>(set));
        let all = Instant::now() >= due;
        for set in wanted {
            if all || subscriptions.read(|world| world.key_set(&set).is_none()) {
                let view = read(&client, &set).await;
                subscriptions.apply(set, view);
            }
        }
        if all {
            due = Instant::now() + limits::KEY_SETS_EVERY;
        }
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            // The sender lives as long as the subscriptions, so waiting cannot fail.
            _ = changes.changed() => tokio::time::sleep(limits::STATUS_PAUSE).await,
        }
    }
}

async fn read(client: &kube::Client, set: &KeySet) -> KeySetView {
    let KeySet { secret, name, key } = set;
    let (client, namespace) = (client.clone(), &name.namespace);
    let text = if *secret {
        let read = Api::<Secret>::namespaced(client, namespace).get_opt(&name.name).await;
        read.map(|found| found.map(|secret| secret.data.unwrap_or_default().remove(key).map(|bytes| bytes.0)))
    } else {
        let read = Api::<ConfigMap>::namespaced(client, namespace).get_opt(&name.name).await;
        read.map(|found| found.map(|map| map.data.unwrap_or_default().remove(key).map(String::into_bytes)))
    };
    match text {
        Ok(Some(Some(text))) => KeySetView::read(&text),
        Ok(Some(None)) => KeySetView { keys: Err("the object has no such key in its data".to_owned()) },
        Ok(None) => KeySetView { keys: Err("there is no such object".to_owned()) },
        Err(kube::Error::Api(status)) if status.code == 403 => {
            let why = "the control plane may not read it: bind a Role that may `get` it to its service account";
            KeySetView { keys: Err(why.to_owned()) }
        }
        Err(error) => {
            tracing::warn!(%set, %error, "cannot read keys of an issuer of tokens; trying again");
            KeySetView { keys: Err("it cannot be read at the moment".to_owned()) }
        }
    }
}
