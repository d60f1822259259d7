//! The mesh's certificate authority as an install hands it over: generated, or brought and checked.

use crate::values::{IdentityValues, Values};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::time::SystemTime;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Years that a generated authority lasts. Long, because nothing renews it by itself; `meshctl check` warns in time.
const GENERATED_YEARS: i64 = 10;

/// An issuer and the anchors that vouch for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Issuer {
    /// Certificate and key; `None` if the Secret comes from elsewhere.
    pub pair: Option<IssuerPair>,
    /// Certificates that all proxies trust, PEM.
    pub anchors_pem: String,
}

/// What signs certificates. Holds a secret, so it has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuerPair {
    /// Certificate, with any intermediates after it, PEM.
    pub certificate_pem: String,
    /// Private key, PEM.
    pub key_pem: String,
}

/// Why there is no usable issuer.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// Some of what belongs together is missing.
    #[error("identity.{missing} is missing: {why}")]
    Missing {
        /// The key.
        missing: &'static str,
        /// What it would be needed for.
        why: &'static str,
    },
    /// Something brought is not what it should be.
    #[error("identity.{key}: {reason}")]
    Unusable {
        /// The key.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// No authority could be generated.
    #[error("no certificate authority could be generated: {0}")]
    Generate(#[from] rcgen::Error),
}

impl Issuer {
    /// The issuer that `values` bring, checked, or a generated one.
    pub fn resolve(values: &Values, now: SystemTime) -> Result<Self, IssuerError> {
        let IdentityValues { trust_anchors_pem, issuer_certificate_pem, issuer_key_pem, existing_secret } =
            &values.identity;
        let missing = |missing, why| IssuerError::Missing { missing, why };
        match (issuer_certificate_pem, issuer_key_pem, trust_anchors_pem) {
            (_, _, Some(anchors)) if *existing_secret => {
                certificates("trust_anchors_pem", anchors)?;
                Ok(Self { pair: None, anchors_pem: normal(anchors) })
            }
            _ if *existing_secret => {
                Err(missing("trust_anchors_pem", "proxies need them although the issuer's secret exists elsewhere"))
            }
            (None, None, None) => Ok(Self::generate(&values.trust_domain, now)?),
            (Some(certificate), Some(key), Some(anchors)) => Self::brought(certificate, key, anchors, now),
            (None, ..) => Err(missing("issuer_certificate_pem", "bring certificate, key and anchors, or none of them")),
            (_, None, _) => Err(missing("issuer_key_pem", "bring certificate, key and anchors, or none of them")),
            (.., None) => Err(missing("trust_anchors_pem", "bring certificate, key and anchors, or none of them")),
        }
    }

    /// A new authority: one self-signed ECDSA P-256 certificate that is issuer and anchor at once.
    pub fn generate(trust_domain: &str, now: SystemTime) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(Vec::new())?;
        let now = OffsetDateTime::from(now);
        // Clocks of nodes differ; a certificate from the future would stop them all.
        params.not_before = now - time::Duration::days(1);
        params.not_after = now + time::Duration::days(365 * GENERATED_YEARS);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("mesh identity {trust_domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key)?.pem().replace("\r\n", "\n");
        let key_pem = key.serialize_pem().replace("\r\n", "\n");
        let anchors_pem = certificate_pem.clone();
        Ok(Self { pair: Some(IssuerPair { certificate_pem, key_pem }), anchors_pem })
    }

    /// An authority that somebody brings, checked: a CA's certificate that is valid now, its key, and an anchor that
    /// has issued it.
    pub fn brought(certificate: &str, key: &str, anchors: &str, now: SystemTime) -> Result<Self, IssuerError> {
        let unusable = |key, reason: String| IssuerError::Unusable { key, reason };
        let chain = certificates("issuer_certificate_pem", certificate)?;
        let (issuer, last) = (parse(&chain[0])?, parse(&chain[chain.len() - 1])?);
        if !issuer.is_ca() {
            return Err(unusable("issuer_certificate_pem", "its first certificate is not a CA's".to_owned()));
        }
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let at = x509_parser::time::ASN1Time::from_timestamp(i64::try_from(seconds).unwrap_or(i64::MAX))
            .map_err(|e| unusable("issuer_certificate_pem", format!("the clock is unusable: {e}")))?;
        if !issuer.validity().is_valid_at(at) {
            let reason = format!(
                "it is valid from {} to {}, which is not now",
                issuer.validity().not_before,
                issuer.validity().not_after
            );
            return Err(unusable("issuer_certificate_pem", reason));
        }
        let pair = KeyPair::from_pem(key)
            .map_err(|e| unusable("issuer_key_pem", format!("it is not a private key that can be used: {e}")))?;
        if pair.subject_public_key_info() != issuer.public_key().raw {
            return Err(unusable("issuer_key_pem", "it does not belong to the issuer's certificate".to_owned()));
        }
        let anchor_list = certificates("trust_anchors_pem", anchors)?;
        let vouched = anchor_list.iter().map(parse).filter_map(Result::ok).any(|a| a.subject() == last.issuer());
        if !vouched {
            let reason = format!("none of its certificates is the issuer's issuer, `{}`", last.issuer());
            return Err(unusable("trust_anchors_pem", reason));
        }
        let pair = IssuerPair { certificate_pem: normal(certificate), key_pem: normal(key) };
        Ok(Self { pair: Some(pair), anchors_pem: normal(anchors) })
    }
}

/// One line-break style and one at the end, so that the text becomes a readable block.
fn normal(pem: &str) -> String {
    format!("{}\n", pem.replace("\r\n", "\n").trim())
}

fn certificates(key: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, IssuerError> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match list {
        Ok(list) if list.is_empty() => {
            Err(IssuerError::Unusable { key, reason: "there is no PEM certificate in it".to_owned() })
        }
        Ok(list) => {
            for certificate in &list {
                parse(certificate).map_err(|e| IssuerError::Unusable { key, reason: e.to_string() })?;
            }
            Ok(list)
        }
        Err(e) => Err(IssuerError::Unusable { key, reason: format!("it is not PEM: {e}") }),
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IssuerError> {
    X509Certificate::from_der(certificate).map(|(_, parsed)| parsed).map_err(|e| IssuerError::Unusable {
        key: "issuer_certificate_pem",
        reason: format!("a certificate in it cannot be read: {e}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(certificate: Option<&str>, key: Option<&str>, anchors: Option<&str>) -> Values {
        let own = |text: Option<&str>| text.map(str::to_owned);
        let identity = IdentityValues {
            issuer_certificate_pem: own(certificate),
            issuer_key_pem: own(key),
            trust_anchors_pem: own(anchors),
            existing_secret: false,
        };
        Values { identity, ..Values::default() }
    }

    fn error(values: &Values, now: SystemTime) -> String {
        Issuer::resolve(values, now).err().map_or_else(|| "no error".to_owned(), |e| e.to_string())
    }

    #[test]
    fn what_is_generated_would_pass_if_brought() {
        let now = SystemTime::now();
        let made = Issuer::generate("example.org", now).unwrap();
        let pair = made.pair.clone().unwrap();
        let again =
            values(Some(&pair.certificate_pem), Some(&pair.key_pem), Some(&made.anchors_pem.replace('\n', "\r\n")));
        assert!(Issuer::resolve(&again, now).unwrap() == made);
        let der = CertificateDer::from_pem_slice(pair.certificate_pem.as_bytes()).unwrap();
        let parsed = parse(&der).unwrap();
        assert_eq!(parsed.subject().to_string(), "CN=mesh identity example.org");
        assert!(parsed.is_ca() && parsed.validity().not_before.timestamp() < parsed.validity().not_after.timestamp());
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let now = SystemTime::now();
        let (one, other) = (Issuer::generate("a", now).unwrap(), Issuer::generate("b", now).unwrap());
        let (pair, stranger) = (one.pair.unwrap(), other.pair.unwrap());
        let (certificate, key, anchors) = (Some(&*pair.certificate_pem), Some(&*pair.key_pem), Some(&*one.anchors_pem));
        for (values, expect) in [
            (values(certificate, key, None), "identity.trust_anchors_pem is missing"),
            (values(certificate, None, anchors), "identity.issuer_key_pem is missing"),
            (values(None, key, anchors), "identity.issuer_certificate_pem is missing"),
            (values(certificate, Some(&stranger.key_pem), anchors), "does not belong to the issuer's certificate"),
            (values(certificate, key, Some(&other.anchors_pem)), "none of its certificates is the issuer's issuer"),
            (values(certificate, Some("x"), anchors), "identity.issuer_key_pem: it is not a private key"),
            (values(Some("x"), key, anchors), "identity.issuer_certificate_pem: there is no PEM certificate"),
        ] {
            let text = error(&values, now);
            assert!(text.contains(expect), "{text}");
        }
        let century = now + std::time::Duration::from_secs(3600 * 24 * 365 * 50);
        assert!(error(&values(certificate, key, anchors), century).contains("which is not now"));
    }

    #[test]
    fn a_secret_from_elsewhere_needs_only_anchors() {
        let now = SystemTime::now();
        let anchors = Issuer::generate("a", now).unwrap().anchors_pem;
        let mut values = values(None, None, Some(&anchors));
        values.identity.existing_secret = true;
        assert!(Issuer::resolve(&values, now).unwrap().pair.is_none());
        values.identity.trust_anchors_pem = None;
        assert!(error(&values, now).contains("identity.trust_anchors_pem is missing"));
    }
}
