//! The certificate in use and the anchors trusted beside it, each swapped as a whole while connections go on: a new
//! certificate comes by [`crate::identity`], other anchors by the stream from control.

use crate::tls::{Current, InvalidCredentials};
use arc_swap::ArcSwapOption;
use mesh_api::Trust;
use mesh_api::identity::fingerprint;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The proxy's current certificate, if it has one; shared and swapped as a whole.
#[derive(Debug, Default)]
pub struct Credentials {
    current: ArcSwapOption<Current>,
    /// What control said last, on the stream that is open.
    told: Mutex<Option<Told>>,
    asked: Notify,
}

/// What control says of trust anchors and issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Trust anchors, PEM.
    pub anchors: String,
    /// Fingerprint of the certificate that signs.
    pub issuer: String,
    /// The time over which proxies spread their asking for a certificate of it.
    pub renew_within: Duration,
}

impl Credentials {
    /// The current certificate.
    pub fn current(&self) -> Option<Arc<Current>> {
        self.current.load_full()
    }

    /// Uses another certificate from now on; connections that exist go on with theirs.
    pub fn set(&self, current: Option<Current>) {
        self.current.store(current.map(Arc::new));
    }

    /// Trusts the anchors that control tells of, at once; connections that exist stay. Whoever renews learns of the
    /// issuer. An error changes nothing.
    pub fn trust(&self, told: Told) -> Result<(), InvalidCredentials> {
        if let Some(current) = self.current().filter(|current| current.anchors != told.anchors) {
            self.set(Some(current.with_anchors(&told.anchors)?));
            tracing::info!(anchors = ?fingerprints(&told.anchors), "trust anchors taken over");
        }
        *self.told.lock() = Some(told);
        self.asked.notify_one();
        Ok(())
    }

    /// What control said last, as long as it would say so if it changed.
    pub fn told(&self) -> Option<Told> {
        self.told.lock().clone()
    }

    /// The stream has ended: what was told may change unheard.
    pub fn forget_told(&self) {
        *self.told.lock() = None;
    }

    /// The time over which a new certificate should be asked for, if control signs with another one than it did.
    pub fn renewal(&self) -> Option<Duration> {
        let (told, current) = (self.told()?, self.current()?);
        (current.issuer.as_ref() != Some(&told.issuer)).then_some(told.renew_within)
    }

    /// Waits until control has said something.
    pub async fn told_anew(&self) {
        self.asked.notified().await;
    }

    /// Whom we trust and who vouches for us.
    pub fn report(&self, connected: bool) -> Trust {
        let Some(current) = self.current() else { return Trust { connected, ..Trust::default() } };
        Trust {
            anchors: fingerprints(&current.anchors),
            issuer: current.issuer.clone(),
            expires_at: Some(current.expires_at),
            connected,
        }
    }
}

/// The fingerprints of the certificates of a PEM text, sorted; what cannot be read has none.
fn fingerprints(pem: &str) -> Vec<String> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes()).flatten();
    let mut prints: Vec<String> = all.map(|der| fingerprint(&der)).collect();
    prints.sort();
    prints.dedup();
    prints
}
