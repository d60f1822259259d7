//! The certificate of port 8443 (webhook and observe API), and its authority where the API server looks for it.
//!
//! Certificate, key and authority lie in the Secret `mesh-webhook-tls`, from which all replicas serve. The holder of
//! the lease makes them, renews them when a third of their life is left, and writes the authority into the
//! MutatingWebhookConfiguration, the ValidatingWebhookConfiguration and the APIService. A new authority is announced together with the one before it, so
//! that replicas still serving with the old certificate stay trusted.

use crate::ca;
use crate::issuer::text;
use crate::limits;
use crate::observe::Observers;
use crate::tls;
use anyhow::Context;
use arc_swap::ArcSwapOption;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use mesh_api::names::{CONTROL_NAME, OBSERVE_GROUP, OBSERVE_VERSION};
use mesh_manifests::install::VALIDATOR_NAME;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

/// Name of the Secret.
pub const WEBHOOK_SECRET: &str = "mesh-webhook-tls";
/// Name of the webhook's configuration.
pub const INJECTOR: &str = "mesh-injector";

/// A certificate with its key and the authority that vouches for it, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct ServingPair {
    /// Certificate.
    pub certificate: String,
    /// Key.
    pub key: String,
    /// Authorities, newest first.
    pub authorities: String,
}

impl std::fmt::Debug for ServingPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServingPair").finish_non_exhaustive() // holds a key
    }
}

/// The names under which the API server reaches us.
pub fn server_names(namespace: &str) -> Vec<String> {
    [
        format!("{CONTROL_NAME}.{namespace}.svc"),
        format!("{CONTROL_NAME}.{namespace}.svc.cluster.local"),
        format!("{CONTROL_NAME}.{namespace}"),
    ]
    .into()
}

impl ServingPair {
    /// A new authority and a certificate for `names`; `before` stays trusted while it is valid.
    pub fn generate(names: &[String], before: Option<&ServingPair>, now: SystemTime) -> anyhow::Result<Self> {
        let params = |name: &str| -> anyhow::Result<CertificateParams> {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.not_before = OffsetDateTime::from(now - limits::BACKDATE);
            params.not_after = OffsetDateTime::from(now + limits::WEBHOOK_LIFE);
            params.serial_number = Some(ca::random_serial()?);
            Ok(params)
        };
        let mut authority = params("mesh-webhook-ca")?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Its key signs one certificate and is forgotten.
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)?;
        let mut leaf = params(CONTROL_NAME)?;
        leaf.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = leaf.signed_by(&key, &authority)?;
        let mut authorities = authority.pem();
        if let Some(before) = before.filter(|before| before.left(now).is_some()) {
            // Only the newest of the old ones: the list does not grow.
            let newest = before.authorities.split_inclusive("-----END CERTIFICATE-----\n").next();
            authorities.push_str(newest.unwrap_or_default());
        }
        Ok(Self { certificate: certificate.pem(), key: key.serialize_pem(), authorities })
    }

    /// Reads the Secret.
    pub fn from_secret(secret: &Secret) -> anyhow::Result<Self> {
        let pair = Self {
            certificate: text(secret, "tls.crt")?,
            key: text(secret, "tls.key")?,
            authorities: text(secret, "ca.crt")?,
        };
        pair.config(None)?;
        tls::certificates(&pair.authorities, "authority (ca.crt)")?;
        Ok(pair)
    }

    fn data(&self) -> BTreeMap<String, ByteString> {
        let entry = |key: &str, text: &str| (key.to_owned(), ByteString(text.as_bytes().to_vec()));
        [entry("tls.crt", &self.certificate), entry("tls.key", &self.key), entry("ca.crt", &self.authorities)].into()
    }

    /// How much of its life is left; `None` once it is over.
    fn left(&self, now: SystemTime) -> Option<Duration> {
        let certificate = tls::certificates(&self.certificate, "certificate").ok()?;
        let (_, end) = tls::validity(&certificate[0])?;
        (UNIX_EPOCH + Duration::from_secs(u64::try_from(end).ok()?)).duration_since(now).ok()
    }

    /// True if it is time for another.
    pub fn is_due(&self, now: SystemTime) -> bool {
        self.left(now).is_none_or(|left| left < limits::WEBHOOK_LIFE / 3)
    }

    fn config(&self, clients: Option<&str>) -> anyhow::Result<ServerConfig> {
        let chain = tls::certificates(&self.certificate, "certificate (tls.crt)")?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).context("the key (tls.key) cannot be read")?;
        Ok(tls::server(chain, key, clients)?)
    }
}

/// What port 8443 is served with.
pub struct WebhookTls {
    current: Mutex<Option<ServingPair>>,
    /// True if the Secret holds `current`.
    stored: AtomicBool,
    known: watch::Sender<bool>,
    wake: Notify,
    /// For the listener.
    pub tls: Arc<ArcSwapOption<ServerConfig>>,
    observers: Arc<Observers>,
}

impl WebhookTls {
    /// Nothing yet.
    pub fn new(observers: Arc<Observers>) -> Self {
        Self {
            current: Mutex::new(None),
            stored: AtomicBool::new(false),
            known: watch::Sender::new(false),
            wake: Notify::new(),
            tls: Arc::default(),
            observers,
        }
    }

    /// The Secret has changed. What cannot be used is reported, and what was there stays in use.
    pub fn changed(&self, secret: Option<&Secret>) {
        let pair = secret.map(ServingPair::from_secret);
        self.stored.store(matches!(pair, Some(Ok(_))), Ordering::Relaxed);
        match pair {
            Some(Ok(pair)) => {
                *self.current.lock() = Some(pair);
                self.serve();
            }
            Some(Err(error)) => {
                tracing::warn!(error = format!("{error:#}"), "the Secret {WEBHOOK_SECRET} cannot be used");
            }
            None => {}
        }
        self.known.send_replace(true);
        self.wake.notify_one();
    }

    /// Serves with what there is, and with the authority for clients as it is now.
    fn serve(&self) {
        let Some(pair) = self.current.lock().clone() else { return };
        let clients = self.observers.current();
        let config = pair.config(clients.as_ref().map(|clients| clients.authority_pem.as_str()));
        let config = config.or_else(|error| {
            tracing::error!(error = format!("{error:#}"), "the observe API cannot verify the API server");
            pair.config(None)
        });
        match config {
            Ok(config) => self.tls.store(Some(Arc::new(config))),
            Err(error) => tracing::error!(error = format!("{error:#}"), "the webhook cannot be served"),
        }
    }

    /// Follows the authority for clients, for ever.
    pub async fn follow_observers(&self) {
        let mut changes = self.observers.changes();
        self.serve();
        while changes.changed().await.is_ok() {
            self.serve();
        }
    }
}

/// The writing part: only the holder of the lease does any of it.
pub struct Keeper {
    /// The Secret.
    pub secrets: Api<Secret>,
    /// Where the webhook is announced.
    pub webhooks: Api<MutatingWebhookConfiguration>,
    /// Where the webhook of policies and routes is announced.
    pub validators: Api<ValidatingWebhookConfiguration>,
    /// Where the observe API is announced.
    pub services: Api<APIService>,
    /// The names to be served.
    pub names: Vec<String>,
    /// What is served at the moment.
    pub tls: Arc<WebhookTls>,
}

impl Keeper {
    /// Keeps everything as it should be while we lead, for ever.
    pub async fn keep(&self, mut leads: watch::Receiver<bool>) {
        // What there is has to be known before anything is made anew.
        let _ = self.tls.known.subscribe().wait_for(|known| *known).await;
        let mut said = String::new();
        loop {
            if leads.wait_for(|leads| *leads).await.is_err() {
                return; // the process ends
            }
            let pause = match tokio::time::timeout(limits::API_TIMEOUT, self.look(SystemTime::now())).await {
                Ok(Ok(true)) => limits::WEBHOOK_CHECK,
                Ok(Ok(false)) => limits::WEBHOOK_RETRY,
                failed => {
                    let error = match failed {
                        Ok(Err(error)) => format!("{error:#}"),
                        _ => "the API server does not answer".to_owned(),
                    };
                    if error != said {
                        tracing::warn!(error, "the webhook's certificate cannot be kept current; trying again");
                        said = error;
                    }
                    limits::WEBHOOK_RETRY * 4
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.tls.wake.notified() => {}
            }
        }
    }

    /// Looks once; true if all is well.
    async fn look(&self, now: SystemTime) -> anyhow::Result<bool> {
        let before = self.tls.current.lock().clone();
        let stored = self.tls.stored.load(Ordering::Relaxed);
        let pair = match before {
            Some(pair) if !pair.is_due(now) && stored => pair,
            before => {
                let pair = match before {
                    // The Secret was deleted or spoilt; what is served is still good.
                    Some(pair) if !pair.is_due(now) => pair,
                    before => ServingPair::generate(&self.names, before.as_ref(), now)?,
                };
                self.write(&pair).await.with_context(|| format!("cannot write the Secret {WEBHOOK_SECRET}"))?;
                tracing::info!("webhook certificate written to the Secret {WEBHOOK_SECRET}");
                *self.tls.current.lock() = Some(pair.clone());
                self.tls.stored.store(true, Ordering::Relaxed);
                self.tls.serve();
                pair
            }
        };
        let webhook = self.announce_webhook(&pair).await.with_context(|| format!("cannot patch {INJECTOR}"))?;
        let observe = self.announce_observe(&pair).await.context("cannot patch the APIService")?;
        self.announce_validator(&pair).await.with_context(|| format!("cannot patch {VALIDATOR_NAME}"))?;
        Ok(webhook && observe)
    }

    async fn write(&self, pair: &ServingPair) -> kube::Result<()> {
        let mut secret = self.secrets.get_opt(WEBHOOK_SECRET).await?;
        match &mut secret {
            Some(secret) => {
                secret.data = Some(pair.data());
                self.secrets.replace(WEBHOOK_SECRET, &PostParams::default(), secret).await?;
            }
            None => {
                let secret = Secret {
                    metadata: ObjectMeta { name: Some(WEBHOOK_SECRET.to_owned()), ..ObjectMeta::default() },
                    type_: Some("kubernetes.io/tls".to_owned()),
                    data: Some(pair.data()),
                    ..Secret::default()
                };
                self.secrets.create(&PostParams::default(), &secret).await?;
            }
        }
        Ok(())
    }

    async fn announce_webhook(&self, pair: &ServingPair) -> kube::Result<bool> {
        let Some(found) = self.webhooks.get_opt(INJECTOR).await? else { return Ok(false) };
        let configs = found.webhooks.iter().flatten().map(|webhook| (&webhook.name, &webhook.client_config));
        if let Some(patch) = webhook_patch(configs, pair.authorities.as_bytes()).map_err(kube::Error::SerdeError)? {
            self.webhooks.patch(INJECTOR, &PatchParams::default(), &patch).await?;
            tracing::info!("authority announced in {INJECTOR}");
        }
        Ok(found.webhooks.is_some_and(|webhooks| !webhooks.is_empty()))
    }

    /// Where it is there: a mesh does without it.
    async fn announce_validator(&self, pair: &ServingPair) -> kube::Result<()> {
        let Some(found) = self.validators.get_opt(VALIDATOR_NAME).await? else { return Ok(()) };
        let configs = found.webhooks.iter().flatten().map(|webhook| (&webhook.name, &webhook.client_config));
        if let Some(patch) = webhook_patch(configs, pair.authorities.as_bytes()).map_err(kube::Error::SerdeError)? {
            self.validators.patch(VALIDATOR_NAME, &PatchParams::default(), &patch).await?;
            tracing::info!("authority announced in {VALIDATOR_NAME}");
        }
        Ok(())
    }

    async fn announce_observe(&self, pair: &ServingPair) -> kube::Result<bool> {
        let name = format!("{OBSERVE_VERSION}.{OBSERVE_GROUP}");
        let Some(found) = self.services.get_opt(&name).await? else { return Ok(false) };
        let spec = found.spec.unwrap_or_default();
        let wanted = pair.authorities.as_bytes();
        let same = spec.ca_bundle.is_some_and(|ca| ca.0 == wanted) && spec.insecure_skip_tls_verify != Some(true);
        if !same {
            let patch = json!({"spec": {"caBundle": encoded(wanted), "insecureSkipTLSVerify": null}});
            self.services.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            tracing::info!("authority announced in {name}");
        }
        Ok(true)
    }
}

fn encoded(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// The patch for those webhooks that do not have the authority, if there are any; it fails if they were reordered meanwhile.
fn webhook_patch<'a>(
    webhooks: impl Iterator<Item = (&'a String, &'a WebhookClientConfig)>,
    authorities: &[u8],
) -> Result<Option<Patch<()>>, serde_json::Error> {
    let has = |config: &WebhookClientConfig| config.ca_bundle.as_ref().is_some_and(|ca| ca.0 == authorities);
    let wrong = webhooks.enumerate().filter(|(_, (_, config))| !has(config));
    let operations = wrong.flat_map(|(at, (name, _))| {
        [
            json!({"op": "test", "path": format!("/webhooks/{at}/name"), "value": name}),
            json!({"op": "add", "path": format!("/webhooks/{at}/clientConfig/caBundle"), "value": encoded(authorities)}),
        ]
    });
    let operations: Vec<Value> = operations.collect();
    if operations.is_empty() {
        return Ok(None);
    }
    serde_json::from_value(Value::Array(operations)).map(|patch| Some(Patch::Json(patch)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls_pki_types::{ServerName, UnixTime};

    fn verifies(pair: &ServingPair, authorities: &str, name: &str) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        for anchor in tls::certificates(authorities, "test").unwrap() {
            roots.add(anchor).unwrap();
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::provider()).build().unwrap();
        let chain = tls::certificates(&pair.certificate, "test").unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(&chain[0], &[], &name, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn a_renewed_pair_leaves_the_old_one_trusted() {
        let now = SystemTime::now();
        let names = server_names("mesh-system");
        let first = ServingPair::generate(&names, None, now).unwrap();
        assert!(verifies(&first, &first.authorities, "mesh-control.mesh-system.svc"));
        assert!(!verifies(&first, &first.authorities, "other.mesh-system.svc"));
        let second = ServingPair::generate(&names, Some(&first), now).unwrap();
        assert!(!verifies(&second, &first.authorities, "mesh-control.mesh-system.svc"));
        assert!(verifies(&first, &second.authorities, "mesh-control.mesh-system.svc"));
        assert!(verifies(&second, &second.authorities, "mesh-control.mesh-system.svc"));
        let third = ServingPair::generate(&names, Some(&second), now).unwrap();
        assert_eq!(tls::certificates(&third.authorities, "test").unwrap().len(), 2);
    }

    #[test]
    fn it_is_renewed_with_a_third_left() {
        let now = SystemTime::now();
        let pair = ServingPair::generate(&server_names("s"), None, now).unwrap();
        let day = Duration::from_secs(24 * 3600);
        assert!(!pair.is_due(now));
        assert!(!pair.is_due(now + 243 * day));
        assert!(pair.is_due(now + 244 * day));
        assert!(pair.is_due(now + 400 * day));
    }

    #[test]
    fn a_secret_reads_back_and_nonsense_does_not() {
        let pair = ServingPair::generate(&server_names("s"), None, SystemTime::now()).unwrap();
        let mut secret = Secret { data: Some(pair.data()), ..Secret::default() };
        assert_eq!(ServingPair::from_secret(&secret).unwrap(), pair);
        secret.data.as_mut().unwrap().insert("tls.key".into(), ByteString(b"x".to_vec()));
        assert!(ServingPair::from_secret(&secret).is_err());
        assert!(ServingPair::from_secret(&Secret::default()).is_err());
        assert!(!format!("{pair:?}").contains("PRIVATE"));
    }

    #[test]
    fn only_webhooks_that_need_it_are_patched() {
        let (a, b) = ("a".to_owned(), "b".to_owned());
        let has = WebhookClientConfig { ca_bundle: Some(ByteString(b"x".to_vec())), ..WebhookClientConfig::default() };
        let lacks = WebhookClientConfig::default();
        let Some(Patch::Json::<()>(patch)) = webhook_patch([(&a, &has), (&b, &lacks)].into_iter(), b"x").unwrap()
        else {
            panic!("no patch");
        };
        assert_eq!(
            serde_json::to_value(patch).unwrap(),
            json!([{"op": "test", "path": "/webhooks/1/name", "value": "b"},
                {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": "eA=="}])
        );
        assert!(webhook_patch([(&a, &has)].into_iter(), b"x").unwrap().is_none());
    }

    /// A keeper in a cluster that has nothing and remembers what is created.
    fn keeper() -> (Keeper, Arc<Mutex<Vec<Value>>>) {
        let created = Arc::new(Mutex::new(Vec::new()));
        let store = created.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let store = store.clone();
            async move {
                let (status, answer) = if request.method() == http::Method::POST {
                    let body = request.into_body().collect_bytes().await.unwrap();
                    let object: Value = serde_json::from_slice(&body).unwrap();
                    store.lock().push(object.clone());
                    (201, object)
                } else {
                    (
                        404,
                        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                        "reason": "NotFound", "message": "not found", "metadata": {}}),
                    )
                };
                let body = kube::client::Body::from(serde_json::to_vec(&answer).unwrap());
                http::Response::builder().status(status).body(body)
            }
        });
        let client = kube::Client::new(service, "default");
        let keeper = Keeper {
            secrets: Api::namespaced(client.clone(), "mesh-system"),
            webhooks: Api::all(client.clone()),
            validators: Api::all(client.clone()),
            services: Api::all(client),
            names: server_names("mesh-system"),
            tls: Arc::new(WebhookTls::new(Arc::default())),
        };
        (keeper, created)
    }

    #[tokio::test]
    async fn the_secret_is_written_once_and_again_if_it_is_lost() {
        let (keeper, created) = keeper();
        let now = SystemTime::now();
        assert!(!keeper.look(now).await.unwrap(), "nobody to announce it to yet");
        assert!(keeper.tls.tls.load().is_some());
        assert!(!keeper.look(now).await.unwrap());
        assert_eq!(created.lock().len(), 1);
        keeper.tls.changed(None);
        keeper.look(now).await.unwrap();
        let created = created.lock().clone();
        assert_eq!(created.len(), 2);
        assert_eq!(created[0]["data"], created[1]["data"], "what is served is still good");
    }
}
