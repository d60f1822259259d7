//! How the proxy gets its certificate: a key made here that never leaves, a signing request for the pod's SPIFFE
//! identity, and the projected service account token that proves the right to it.
//!
//! The certificate is renewed after about two thirds of its life, or when control signs with another one than it did
//! (a rotation of the mesh's authority). While control cannot be reached the last one stays in use and the attempts go on.

use crate::balance::Random;
use crate::client::{self, Control};
use crate::limits;
use crate::proxy::{Proxy, unix_ms};
use crate::tls::{self, Current};
use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use mesh_api::{CertifyRequest, CertifyResponse, SpiffeId};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use std::time::Duration;
use tokio::time::Instant;

/// Gets the first certificate, as long as that takes.
pub async fn obtain(proxy: &Proxy, control: &Control) {
    let mut pause = client::Backoff::default();
    loop {
        match certify(proxy, control).await {
            Ok(()) => return,
            Err(error) => pause.failed("cannot get a certificate", &error).await,
        }
    }
}

/// Keeps the certificate fresh, for ever.
pub async fn renew(proxy: &Proxy, control: &Control) {
    let mut random = Random::from_os();
    let mut tried = Instant::now();
    loop {
        if let Some(current) = proxy.credentials.current() {
            // Fixed once a certificate: what control says can only bring it forward.
            let mut due = Instant::now() + renew_in(unix_ms() / 1000, current.expires_at, &mut random);
            loop {
                if let Some(within) = proxy.credentials.renewal() {
                    due = due.min(Instant::now() + asked_in(within, tried.elapsed(), &mut random));
                }
                tokio::select! {
                    () = tokio::time::sleep_until(due) => break,
                    () = proxy.credentials.told_anew() => {}
                }
            }
        }
        obtain(proxy, control).await;
        tried = Instant::now();
    }
}

/// How long after control has named another issuer a certificate of it is asked for: at random, so that not all proxies
/// ask at once, and with a pause if one was asked for just now, since replicas of control may differ for a moment.
fn asked_in(within: Duration, since_last: Duration, random: &mut Random) -> Duration {
    let spread = within.min(limits::RENEW_WINDOW).mul_f64(random.below(1000) as f64 / 1000.0);
    spread + limits::RENEW_PAUSE.saturating_sub(since_last)
}

/// How long a certificate obtained now is used before the next is asked for.
fn renew_in(now_s: u64, expires_at_s: u64, random: &mut Random) -> Duration {
    let life = Duration::from_secs(expires_at_s.saturating_sub(now_s));
    // Two thirds, give or take a tenth of that; never so soon that a short-lived certificate floods control.
    let early = 1.0 / 3.0 + (random.below(1000) as f64 / 1000.0 - 0.5) * 2.0 / 15.0;
    life.mul_f64(1.0 - early).max(Duration::from_secs(1))
}

/// Gets one certificate and puts it into use.
async fn certify(proxy: &Proxy, control: &Control) -> anyhow::Result<()> {
    let token = std::fs::read_to_string(&control.token_file)
        .with_context(|| format!("cannot read the service account token {}", control.token_file.display()))?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make a key")?;
    let request = CertifyRequest { csr_pem: signing_request(&control.own, &key)?, token: token.trim().to_owned() };
    let response = ask(proxy, control, &request).await?;
    // An answer may have been on its way while the stream told of other anchors.
    let anchors = proxy.credentials.told().map_or(response.anchors_pem, |told| told.anchors);
    let current = Current::from_pem(&response.chain_pem, &key.serialize_pem(), &anchors)
        .context("control sent a certificate that cannot be used")?
        .issued_by(response.issuer);
    ensure!(current.identity == control.own, "control sent a certificate for {}", current.identity);
    tracing::info!(identity = %current.identity, expires_at = current.expires_at, "certificate obtained");
    proxy.credentials.set(Some(current));
    Ok(())
}

/// A PKCS#10 request whose only name is the identity, as a URI.
fn signing_request(identity: &SpiffeId, key: &KeyPair) -> anyhow::Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names =
        vec![SanType::URI(identity.to_string().try_into().context("the identity is not ASCII")?)];
    let request = params.serialize_request(key).context("cannot sign the request")?;
    request.pem().context("cannot write the request")
}

async fn ask(proxy: &Proxy, control: &Control, request: &CertifyRequest) -> anyhow::Result<CertifyResponse> {
    // Those that the pod was started with count only until control has told of others: they may be retired by now.
    let newer = proxy.credentials.current().map(|current| current.anchors.clone());
    let config = tls::anonymous_client(newer.as_ref().unwrap_or(&control.anchors))
        .context("MESH_TRUST_ANCHORS cannot be used")?;
    let tcp = client::dial(proxy, control).await?;
    let stream = client::within(tls::connect_control(&config, tcp, &control.identity)).await?;
    let mut connection = client::Http2::handshake(stream).await?;
    let body = Full::new(Bytes::from(serde_json::to_vec(request)?));
    let request = control.request(mesh_api::names::CERTIFY_PATH, "application/json", body)?;
    let exchange = async {
        let response = connection.sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limits::CERTIFY_BYTES).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the answer cannot be read: {error}"))?.to_bytes();
        ensure!(status.is_success(), "control refused: {status} {}", client::excerpt(&body));
        serde_json::from_slice(&body).context("the answer cannot be read")
    };
    tokio::time::timeout(limits::CERTIFY_TIMEOUT, exchange)
        .await
        .with_context(|| format!("no answer within {:?}", limits::CERTIFY_TIMEOUT))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension};

    #[test]
    fn renewal_comes_at_about_two_thirds() {
        let mut random = Random::seeded(3);
        for _ in 0..200 {
            let wait = renew_in(1_000, 1_000 + 86_400, &mut random);
            assert!((51_000..=64_000).contains(&wait.as_secs()), "{wait:?}");
        }
        assert_eq!(renew_in(10, 5, &mut random), Duration::from_secs(1));
    }

    #[test]
    fn another_issuer_is_asked_within_the_window_and_after_a_pause() {
        let mut random = Random::seeded(5);
        let long = Duration::from_secs(3600);
        for _ in 0..200 {
            assert!(asked_in(Duration::from_secs(2), long, &mut random) < Duration::from_secs(2));
            assert!(asked_in(long, long, &mut random) < limits::RENEW_WINDOW);
            assert!(asked_in(Duration::ZERO, Duration::ZERO, &mut random) == limits::RENEW_PAUSE);
        }
    }

    #[test]
    fn the_request_names_the_identity_and_nothing_else() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let pem = signing_request(&SpiffeId::new("cluster.local", "shop", "web"), &key).unwrap();
        let (_, der) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, csr) = X509CertificationRequest::from_der(&der.contents).unwrap();
        assert_eq!(csr.certification_request_info.subject.iter().count(), 0);
        let names: Vec<_> = csr
            .requested_extensions()
            .unwrap()
            .filter_map(|e| match e {
                ParsedExtension::SubjectAlternativeName(san) => Some(&san.general_names),
                _ => None,
            })
            .flatten()
            .collect();
        assert!(matches!(names[..], [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]));
    }
}
