//! The issuer Secret, followed: whenever it changes the authority is swapped, and with it the certificate we serve
//! proxies with; connected proxies are told of the anchors and of who signs. Ours is renewed at half its life.

use crate::ca::Authority;
use crate::limits;
use crate::metrics::Metrics;
use crate::tls;
use arc_swap::ArcSwapOption;
use k8s_openapi::api::core::v1::Secret;
use mesh_api::SpiffeId;
use mesh_api::wire::ControlMessage;
use mesh_manifests::rotation::CROSS_KEY;
use rustls::{ClientConfig, ServerConfig};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Name of the Secret.
pub const ISSUER_SECRET: &str = "mesh-identity-issuer";

/// Keeps the authority and what is served with it current.
pub struct IssuerKeeper {
    /// Our identity.
    pub identity: SpiffeId,
    /// Who signs.
    pub authority: Arc<ArcSwapOption<Authority>>,
    /// What proxies are served with.
    pub tls: Arc<ArcSwapOption<ServerConfig>>,
    /// What other replicas are called with.
    pub client: Arc<ArcSwapOption<ClientConfig>>,
    /// What connected proxies are told.
    pub told: watch::Sender<Option<Told>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// What proxies are told of the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Trust anchors, PEM.
    pub anchors_pem: String,
    /// Fingerprint of the issuer's certificate.
    pub issuer: String,
}

impl Told {
    /// The message, to one of so many connected proxies: the more there are, the longer they take to renew.
    pub fn message(&self, connected: i64) -> ControlMessage {
        let Self { anchors_pem, issuer } = self.clone();
        let ms = connected.max(1).saturating_mul(1000) / limits::RENEWALS_PER_SECOND;
        ControlMessage::Trust { anchors_pem, issuer, renew_within_ms: u32::try_from(ms).unwrap_or(u32::MAX) }
    }
}

impl IssuerKeeper {
    /// The Secret has changed. What cannot be used is reported, and what was there stays in use.
    pub fn changed(&self, secret: Option<&Secret>) {
        let Some(secret) = secret else {
            tracing::warn!("the issuer Secret {ISSUER_SECRET} is missing; `meshctl install` makes it");
            return;
        };
        let outcome = text(secret, "tls.crt").and_then(|certificate| {
            let authority = Authority::from_pem(&certificate, &text(secret, "tls.key")?, &text(secret, "ca.crt")?)?;
            let authority = authority.with_cross(text(secret, CROSS_KEY).ok().as_deref());
            let seconds = |at: u64| i64::try_from(at).unwrap_or(i64::MAX);
            self.metrics.issuer_expires.set(seconds(authority.expires_at));
            self.metrics.anchors_expire.set(authority.anchors.iter().map(|(_, at)| seconds(*at)).min().unwrap_or(0));
            let (issuer, anchors) = (&authority.fingerprint, authority.anchors.len());
            tracing::info!(expires_at = authority.expires_at, issuer, anchors, "issuer loaded");
            self.authority.store(Some(Arc::new(authority)));
            Ok(())
        });
        match outcome {
            Ok(()) => {
                self.renew();
                self.tell();
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the issuer Secret {ISSUER_SECRET} cannot be used")
            }
        }
    }

    /// Tells connected proxies, if there is something new to tell.
    fn tell(&self) {
        let Some(authority) = self.authority.load_full() else { return };
        let told = Told { anchors_pem: authority.anchors_pem.clone(), issuer: authority.fingerprint.clone() };
        self.told.send_if_modified(|before| {
            let new = before.as_ref() != Some(&told);
            *before = Some(told);
            new
        });
    }

    /// Makes a new certificate of our own; returns how long to wait before the next.
    pub fn renew(&self) -> Duration {
        let retry = Duration::from_secs(30);
        let Some(authority) = self.authority.load_full() else { return retry };
        let now = SystemTime::now();
        let made = authority.own(&self.identity, now).map_err(anyhow::Error::from).and_then(|(chain, key, end)| {
            let client = tls::client(chain.clone(), key.clone_key(), &authority.anchors_pem)?;
            Ok((tls::server(chain, key, Some(&authority.anchors_pem))?, client, end))
        });
        match made {
            Ok((server, client, end)) => {
                self.tls.store(Some(Arc::new(server)));
                self.client.store(Some(Arc::new(client)));
                let now_s = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                Duration::from_secs(end.saturating_sub(now_s) / 2).max(retry)
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "cannot make a certificate for the proxy API");
                retry
            }
        }
    }

    /// Renews our certificate, for ever.
    pub async fn keep_renewed(&self) {
        let mut wait = Duration::from_secs(30);
        loop {
            tokio::time::sleep(wait).await;
            wait = self.renew();
        }
    }
}

/// A text of a Secret.
pub fn text(secret: &Secret, key: &str) -> anyhow::Result<String> {
    let data: Option<&BTreeMap<_, _>> = secret.data.as_ref();
    let bytes = data.and_then(|data| data.get(key)).ok_or_else(|| anyhow::anyhow!("it has no {key}"))?;
    String::from_utf8(bytes.0.clone()).map_err(|_| anyhow::anyhow!("{key} is no text"))
}
