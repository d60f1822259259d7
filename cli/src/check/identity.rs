//! Certificates: valid, far from expiry, and vouched for.

use super::control::{INJECTOR, deployment};
use super::{Finding, Subject};
use crate::error::{Context, Error};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use mesh_manifests::install::ISSUER_SECRET;
use mesh_manifests::rotation::{Phase, Progress, ROTATION_ANNOTATION};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{FromDer, X509Certificate};

const DAY_S: i64 = 24 * 3600;
/// An issuer or anchor with less left than this is worth a warning.
const ISSUER_WARN_S: i64 = 60 * DAY_S;
/// The webhook's certificate renews itself; with less left than this it evidently didn't.
const WEBHOOK_WARN_S: i64 = 4 * 3600;

/// Is the issuer's certificate valid for long enough?
pub(super) async fn issuer(subject: Arc<Subject>) -> Result<Finding, Error> {
    let secret = match issuer_secret(&subject).await? {
        Ok(secret) => secret,
        Err(finding) => return Ok(finding),
    };
    Ok(judge_expiry("the issuer", &field(&secret, "tls.crt"), now_s(), ISSUER_WARN_S, FIX_ISSUER))
}

const FIX_ISSUER: &str = "meshctl identity rotate (with identity.existing_secret: let whoever keeps the secret \
    mesh-identity-issuer put an issuer there that one of its anchors has signed)";
const FIX_ANCHORS: &str = "meshctl identity rotate (with identity.existing_secret: add a new trust anchor beside the old \
    one to ca.crt of the secret mesh-identity-issuer, then a new issuer)";

/// Are the anchors valid, and is the issuer signed by one of them?
pub(super) async fn anchors(subject: Arc<Subject>) -> Result<Finding, Error> {
    let secret = match issuer_secret(&subject).await? {
        Ok(secret) => secret,
        Err(finding) => return Ok(finding),
    };
    let (anchors, issuer) = (field(&secret, "ca.crt"), field(&secret, "tls.crt"));
    Ok(judge_anchors(&anchors, &issuer, now_s()))
}

/// Is a rotation of the authority under way?
pub(super) async fn rotation(subject: Arc<Subject>) -> Result<Finding, Error> {
    let secret = match issuer_secret(&subject).await? {
        Ok(secret) => secret,
        Err(finding) => return Ok(finding),
    };
    let annotation = secret.metadata.annotations.as_ref().and_then(|all| all.get(ROTATION_ANNOTATION));
    Ok(judge_rotation(annotation.map(String::as_str), now_s(), &subject.meshctl))
}

fn judge_rotation(annotation: Option<&str>, now_s: i64, meshctl: &str) -> Finding {
    match annotation.map(Progress::read).transpose() {
        Ok(None) => Finding::ok("none is under way"),
        Ok(Some(progress)) => {
            let since = now_s.saturating_sub(i64::try_from(progress.since).unwrap_or(now_s)).max(0);
            let seen = format!("one is under way for {}, in phase {}", span_text(since), progress.phase);
            let way_back = match progress.phase {
                Phase::Trust => format!("; back: {meshctl} identity rotate --abort"),
                Phase::Issue | Phase::Retire => String::new(),
            };
            Finding::warning(seen, format!("unless it is running, continue it: {meshctl} identity rotate{way_back}"))
        }
        Err(why) => Finding::failed(why.to_string(), "take the annotation off the secret if no rotation is under way"),
    }
}

/// Is the certificate that the API server is told to expect of the webhook valid?
pub(super) async fn webhook(subject: Arc<Subject>) -> Result<Finding, Error> {
    if deployment(&subject).await?.is_none() {
        return Ok(Finding::skipped("the control plane is not installed"));
    }
    let api: Api<MutatingWebhookConfiguration> = Api::all(subject.cluster.client.clone());
    let found = api.get_opt(INJECTOR).await.during(|| format!("read webhook configuration {INJECTOR}"))?;
    let Some(configuration) = found else {
        return Ok(Finding::failed(
            format!("there is no webhook configuration {INJECTOR}"),
            format!("{} install --apply", subject.meshctl),
        ));
    };
    let bundle = configuration.webhooks.into_iter().flatten().find_map(|webhook| webhook.client_config.ca_bundle);
    let fix = format!(
        "look why the control plane does not renew it: kubectl -n {} logs deployment/mesh-control",
        subject.cluster.system_namespace
    );
    Ok(match bundle {
        Some(bundle) if !bundle.0.is_empty() => judge_expiry("the webhook", &bundle.0, now_s(), WEBHOOK_WARN_S, &fix),
        _ => Finding::failed("the control plane has not filled in its certificate yet", fix),
    })
}

async fn issuer_secret(subject: &Subject) -> Result<Result<Secret, Finding>, Error> {
    if deployment(subject).await?.is_none() {
        return Ok(Err(Finding::skipped("the control plane is not installed")));
    }
    let namespace = &subject.cluster.system_namespace;
    let api: Api<Secret> = Api::namespaced(subject.cluster.client.clone(), namespace);
    match api.get_opt(ISSUER_SECRET).await {
        Ok(Some(secret)) => Ok(Ok(secret)),
        Ok(None) => Ok(Err(Finding::failed(
            format!("there is no secret {ISSUER_SECRET} in {namespace}"),
            format!("{} install --apply", subject.meshctl),
        ))),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            Ok(Err(Finding::skipped(format!("you may not read secrets in {namespace}"))))
        }
        Err(cause) => Err(cause).during(|| format!("read secret {ISSUER_SECRET}")),
    }
}

fn field(secret: &Secret, name: &str) -> Vec<u8> {
    secret.data.as_ref().and_then(|data| data.get(name)).map(|bytes| bytes.0.clone()).unwrap_or_default()
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err("there is no certificate".to_owned()),
        Ok(all) => Ok(all),
        Err(cause) => Err(format!("the PEM text cannot be read: {cause}")),
    }
}

fn parse<'a>(der: &'a CertificateDer<'static>) -> Result<X509Certificate<'a>, String> {
    X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(|cause| cause.to_string())
}

/// Judges the certificate of a chain that expires first.
fn judge_expiry(whose: &str, pem: &[u8], now_s: i64, warn_s: i64, fix: &str) -> Finding {
    let read = certificates(pem).and_then(|all| {
        let spans = all.iter().map(|der| parse(der).map(|certificate| span(&certificate)));
        spans.collect::<Result<Vec<_>, _>>()
    });
    let spans = match read {
        Ok(spans) => spans,
        Err(why) => return Finding::failed(format!("{whose}'s certificate: {why}"), fix),
    };
    let from = spans.iter().map(|(from, _)| *from).max().unwrap_or(i64::MAX);
    let until = spans.iter().map(|(_, until)| *until).min().unwrap_or(i64::MIN);
    match until - now_s {
        _ if from > now_s + 60 => {
            Finding::failed(format!("{whose}'s certificate is not valid yet"), "check the clocks")
        }
        left if left <= 0 => Finding::failed(format!("{whose}'s certificate expired {} ago", span_text(-left)), fix),
        left if left < warn_s => Finding::warning(format!("{whose}'s certificate expires in {}", span_text(left)), fix),
        left => Finding::ok(format!("expires in {}", span_text(left))),
    }
}

fn judge_anchors(anchors: &[u8], issuer: &[u8], now_s: i64) -> Finding {
    let expiry = judge_expiry("a trust anchor", anchors, now_s, ISSUER_WARN_S, FIX_ANCHORS);
    if expiry.status == super::Status::Failed {
        return expiry;
    }
    let vouched = certificates(anchors).and_then(|anchors| {
        let chain = certificates(issuer)?;
        // The last certificate of the chain is the one that an anchor must have signed.
        let last = chain.last().ok_or("there is no issuer")?;
        let last = parse(last)?;
        let mut signed = false;
        for anchor in &anchors {
            let anchor = parse(anchor)?;
            signed |= anchor.subject() == last.issuer() && last.verify_signature(Some(anchor.public_key())).is_ok();
        }
        Ok((signed, anchors.len()))
    });
    match vouched {
        Err(why) => Finding::failed(why, FIX_ANCHORS),
        Ok((false, count)) => {
            Finding::failed(format!("none of {count} trust anchors has signed the issuer"), FIX_ISSUER)
        }
        Ok((true, _)) if expiry.status != super::Status::Ok => expiry,
        Ok((true, 1)) => Finding::ok(format!("1 anchor, {}", expiry.seen)),
        Ok((true, count)) => Finding::ok(format!("{count} anchors, the first {}", expiry.seen)),
    }
}

/// First and last second of validity, Unix time.
fn span(certificate: &X509Certificate) -> (i64, i64) {
    let validity = certificate.validity();
    (validity.not_before.timestamp(), validity.not_after.timestamp())
}

fn span_text(seconds: i64) -> String {
    match seconds {
        s if s >= 2 * DAY_S => format!("{} days", s / DAY_S),
        s if s >= 2 * 3600 => format!("{} hours", s / 3600),
        s => format!("{} minutes", s / 60),
    }
}

fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2030, 1, 1);
        params
    }

    const YEAR_2025: i64 = 1_735_689_600;
    const YEAR_2030: i64 = 1_893_456_000;

    #[test]
    fn expiry_is_judged_by_what_is_left() {
        let pem = params("issuer").self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        let check = |now_s, status: Status, seen: &str| {
            let finding = judge_expiry("the issuer", pem.as_bytes(), now_s, ISSUER_WARN_S, "fix");
            assert_eq!((finding.status, finding.seen.as_str()), (status, seen));
        };
        check(YEAR_2025, Status::Ok, "expires in 1826 days");
        check(YEAR_2030 - 3 * DAY_S, Status::Warning, "the issuer's certificate expires in 3 days");
        check(YEAR_2030 + 7200, Status::Failed, "the issuer's certificate expired 2 hours ago");
        check(0, Status::Failed, "the issuer's certificate is not valid yet");
        assert_eq!(judge_expiry("x", b"", 0, 0, "fix").seen, "x's certificate: there is no certificate");
        let junk = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(judge_expiry("x", junk, 0, 0, "fix").status, Status::Failed);
    }

    #[test]
    fn a_rotation_under_way_is_told() {
        let check = |annotation, status: Status, seen: &str, fix: &str| {
            let finding = judge_rotation(annotation, 10_000, "meshctl");
            assert_eq!((finding.status, finding.seen.as_str()), (status, seen));
            assert_eq!(finding.fix.unwrap_or_default(), fix);
        };
        check(None, Status::Ok, "none is under way", "");
        let go_on = "unless it is running, continue it: meshctl identity rotate";
        check(
            Some(r#"{"phase":"trust","since":2800}"#),
            Status::Warning,
            "one is under way for 2 hours, in phase trust",
            &format!("{go_on}; back: meshctl identity rotate --abort"),
        );
        let seen = "one is under way for 1 minutes, in phase issue";
        check(Some(r#"{"phase":"issue","since":9940}"#), Status::Warning, seen, go_on);
        assert_eq!(judge_rotation(Some("x"), 0, "meshctl").status, Status::Failed);
    }

    #[test]
    fn an_anchor_must_have_signed_the_issuer() {
        let (anchor_key, issuer_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let anchor = params("anchor").self_signed(&anchor_key).unwrap();
        let signer = Issuer::new(params("anchor"), anchor_key);
        let issuer = params("issuer").signed_by(&issuer_key, &signer).unwrap();
        // The same name on another key proves nothing.
        let impostor = params("anchor").self_signed(&KeyPair::generate().unwrap()).unwrap();
        let judge = |anchors: &str| judge_anchors(anchors.as_bytes(), issuer.pem().as_bytes(), YEAR_2025);
        assert_eq!(judge(&anchor.pem()), Finding::ok("1 anchor, expires in 1826 days"));
        assert_eq!(judge(&format!("{}{}", impostor.pem(), anchor.pem())).status, Status::Ok);
        assert_eq!(judge(&impostor.pem()).seen, "none of 1 trust anchors has signed the issuer");
    }
}
