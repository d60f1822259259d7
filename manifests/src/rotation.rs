//! The rotation of the mesh's authority: what the issuer Secret holds in each phase, and what has to be true before the
//! next. Pure; `meshctl identity rotate` reads and writes.
//!
//! Everything about a rotation lies in the Secret itself, so that one that was interrupted is continued by whoever runs
//! the command next:
//!
//! | phase | `tls.crt` `tls.key` | `ca.crt` | goes on when |
//! |---|---|---|---|
//! | [`Phase::Trust`] | old | old and new | every proxy trusts both |
//! | [`Phase::Issue`] | new | old and new | every certificate is signed by the new issuer |
//! | [`Phase::Retire`] | new | new | nobody trusts the old anchor any more |
//!
//! The next authority waits in `next.crt`, `next.key` and `next-ca.crt`, the anchors to return to in `previous-ca.crt`.
//! `cross.crt` stays: in it earlier authorities vouch for later ones, for proxies whose container starts again with the
//! anchors that its pod was made with.

use crate::issuer::{Issuer, IssuerPair};
use mesh_api::Trust;
use mesh_api::identity::fingerprint;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Annotation on the issuer Secret while a rotation is under way: [`Progress`] as JSON.
pub const ROTATION_ANNOTATION: &str = "meshctl.dev/rotation";
/// Key of the issuer Secret with certificates by which earlier authorities vouch for later ones.
pub const CROSS_KEY: &str = "cross.crt";

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ANCHORS: &str = crate::install::ANCHORS_KEY;
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const NEXT_ANCHORS: &str = "next-ca.crt";
const PREVIOUS_ANCHORS: &str = "previous-ca.crt";

/// Earlier authorities that go on vouching for the present one.
const KEPT_CROSS: usize = 3;

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The new anchor is being made known; the old issuer signs.
    Trust,
    /// The new issuer signs.
    Issue,
    /// The old anchor is being withdrawn.
    Retire,
}

/// A rotation under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How far it is.
    pub phase: Phase,
    /// When it began, Unix seconds.
    pub since: u64,
}

/// What has to be true of every proxy before the next phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// It trusts these anchors, by fingerprint.
    Trusts(Vec<String>),
    /// Its certificate is signed by this issuer.
    IssuedBy(String),
    /// It trusts no other anchors than these.
    TrustsOnly(Vec<String>),
}

/// The issuer Secret. Holds keys, so it has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuerState {
    progress: Option<Progress>,
    texts: BTreeMap<String, String>,
}

/// Why a rotation cannot go on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RotationError {
    /// A key is missing.
    #[error("the issuer's secret has no {0}")]
    Missing(&'static str),
    /// A key holds no text or no certificate.
    #[error("{key} of the issuer's secret cannot be read: {reason}")]
    Unreadable {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// The annotation holds something else.
    #[error("the annotation {ROTATION_ANNOTATION} of the issuer's secret cannot be read: {0}")]
    Annotation(String),
    /// There is one already.
    #[error("a rotation is under way, in phase {0}")]
    UnderWay(Phase),
    /// There is none.
    #[error("no rotation is under way")]
    None,
    /// Certificates of the new issuer are in use.
    #[error("the rotation is in phase {0}: proxies have certificates of the new issuer, there is no way back")]
    TooLate(Phase),
    /// Nothing would change.
    #[error("this is the issuer already")]
    Same,
    /// The certificate library refuses.
    #[error("the old authority cannot vouch for the new one: {0}")]
    Cross(String),
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trust => "trust",
            Self::Issue => "issue",
            Self::Retire => "retire",
        })
    }
}

impl Progress {
    /// Reads the annotation.
    pub fn read(annotation: &str) -> Result<Self, RotationError> {
        serde_json::from_str(annotation).map_err(|error| RotationError::Annotation(error.to_string()))
    }
}

impl Goal {
    /// Why a proxy holds the rotation up; `None` if it does not.
    pub fn unmet(&self, report: &Trust) -> Option<String> {
        let why = match self {
            Self::Trusts(wanted) => {
                let missing = wanted.iter().find(|print| !report.anchors.contains(print))?;
                format!("it does not trust {missing} yet")
            }
            Self::IssuedBy(wanted) if report.issuer.as_ref() == Some(wanted) => return None,
            Self::IssuedBy(_) => match &report.issuer {
                Some(other) => format!("its certificate is still signed by {other}"),
                None => "it cannot tell who signed its certificate".to_owned(),
            },
            Self::TrustsOnly(wanted) => {
                let more = report.anchors.iter().find(|print| !wanted.contains(print))?;
                format!("it still trusts {more}")
            }
        };
        Some(if report.connected { why } else { format!("{why}, and it is not connected to the control plane") })
    }
}

impl IssuerState {
    /// Reads the Secret: its annotation [`ROTATION_ANNOTATION`] and its data.
    pub fn read<'a>(
        annotation: Option<&str>,
        data: impl IntoIterator<Item = (&'a String, &'a [u8])>,
    ) -> Result<Self, RotationError> {
        let progress = annotation.map(Progress::read).transpose()?;
        let mut texts = BTreeMap::new();
        for (key, value) in data {
            let text = std::str::from_utf8(value)
                .map_err(|_| RotationError::Unreadable { key: key.clone(), reason: "it is no text".to_owned() })?;
            texts.insert(key.clone(), text.to_owned());
        }
        Ok(Self { progress, texts })
    }

    /// The annotation that belongs on the Secret, if one does.
    pub fn annotation(&self) -> Option<String> {
        // Two plain fields: writing them cannot fail.
        self.progress.as_ref().and_then(|progress| serde_json::to_string(progress).ok())
    }

    /// The data that belongs into the Secret.
    pub fn texts(&self) -> &BTreeMap<String, String> {
        &self.texts
    }

    /// The rotation under way.
    pub fn progress(&self) -> Option<&Progress> {
        self.progress.as_ref()
    }

    /// Whom everybody should trust, PEM.
    pub fn anchors_pem(&self) -> Result<&str, RotationError> {
        self.text(ANCHORS)
    }

    /// True if earlier authorities vouch for the present one, or will.
    pub fn vouched(&self) -> bool {
        self.texts.get(CROSS_KEY).is_some_and(|pem| !pem.trim().is_empty())
    }

    /// Fingerprint of the issuer that signs.
    pub fn issuer(&self) -> Result<String, RotationError> {
        first_print(CERTIFICATE, self.text(CERTIFICATE)?)
    }

    /// Fingerprint of the issuer that is to sign.
    pub fn next_issuer(&self) -> Result<String, RotationError> {
        first_print(NEXT_CERTIFICATE, self.text(NEXT_CERTIFICATE)?)
    }

    /// Fingerprints of the trust anchors.
    pub fn anchors(&self) -> Result<Vec<String>, RotationError> {
        Ok(prints(&blocks(ANCHORS, self.text(ANCHORS)?)?))
    }

    /// What has to be true of every proxy before [`Self::advanced`]; `None`: no rotation is under way.
    pub fn goal(&self) -> Result<Option<Goal>, RotationError> {
        let Some(progress) = &self.progress else { return Ok(None) };
        Ok(Some(match progress.phase {
            Phase::Trust => Goal::Trusts(self.anchors()?),
            Phase::Issue => Goal::IssuedBy(self.next_issuer()?),
            Phase::Retire => Goal::TrustsOnly(self.anchors()?),
        }))
    }

    /// Begins a rotation to `next`: from now on both are trusted.
    pub fn begin(&self, next: &Issuer, now: SystemTime) -> Result<Self, RotationError> {
        if let Some(progress) = &self.progress {
            return Err(RotationError::UnderWay(progress.phase));
        }
        let pair = next.pair.as_ref().ok_or(RotationError::Missing(NEXT_KEY))?;
        let mut begun = self.clone();
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        begun.progress = Some(Progress { phase: Phase::Trust, since });
        begun.put(PREVIOUS_ANCHORS, self.text(ANCHORS)?.to_owned());
        begun.put(NEXT_CERTIFICATE, pair.certificate_pem.clone());
        begun.put(NEXT_KEY, pair.key_pem.clone());
        begun.put(NEXT_ANCHORS, next.anchors_pem.clone());
        if begun.next_issuer()? == self.issuer()? {
            return Err(RotationError::Same);
        }
        begun.settled()
    }

    /// The Secret as it belongs in its phase: anything else, such as an older one applied meanwhile, is put right.
    pub fn settled(&self) -> Result<Self, RotationError> {
        let mut settled = self.clone();
        let Some(Progress { phase, .. }) = self.progress else { return Ok(settled) };
        let anchors = match phase {
            Phase::Trust | Phase::Issue => bundle(self.text(PREVIOUS_ANCHORS)?, self.text(NEXT_ANCHORS)?)?,
            Phase::Retire => self.text(NEXT_ANCHORS)?.to_owned(),
        };
        settled.put(ANCHORS, anchors);
        if phase >= Phase::Issue {
            settled.put(CERTIFICATE, self.text(NEXT_CERTIFICATE)?.to_owned());
            settled.put(KEY, self.text(NEXT_KEY)?.to_owned());
        }
        Ok(settled)
    }

    /// The next phase, or the end.
    pub fn advanced(&self, now: SystemTime) -> Result<Self, RotationError> {
        let mut next = self.clone();
        let progress = next.progress.as_mut().ok_or(RotationError::None)?;
        match progress.phase {
            Phase::Trust => {
                progress.phase = Phase::Issue;
                let cross = self.cross(now)?;
                next.texts.retain(|key, _| key != CROSS_KEY);
                if !cross.is_empty() {
                    next.put(CROSS_KEY, cross);
                }
            }
            Phase::Issue => progress.phase = Phase::Retire,
            Phase::Retire => return Ok(next.without_rotation()),
        }
        next.settled()
    }

    /// Back to what was, as long as no certificate of the new issuer is in use.
    pub fn aborted(&self) -> Result<Self, RotationError> {
        match self.progress.as_ref().map(|progress| progress.phase) {
            None => Err(RotationError::None),
            Some(Phase::Trust) => {
                let mut back = self.clone();
                back.put(ANCHORS, self.text(PREVIOUS_ANCHORS)?.to_owned());
                Ok(back.without_rotation())
            }
            Some(phase) => Err(RotationError::TooLate(phase)),
        }
    }

    fn without_rotation(mut self) -> Self {
        self.progress = None;
        let gone = [NEXT_CERTIFICATE, NEXT_KEY, NEXT_ANCHORS, PREVIOUS_ANCHORS];
        self.texts.retain(|key, _| !gone.contains(&key.as_str()));
        self
    }

    fn text(&self, key: &'static str) -> Result<&str, RotationError> {
        self.texts.get(key).map(String::as_str).ok_or(RotationError::Missing(key))
    }

    fn put(&mut self, key: &str, text: String) {
        self.texts.insert(key.to_owned(), text);
    }

    /// What will stand in [`CROSS_KEY`]: the present authority vouches for the next, earlier ones for later ones.
    fn cross(&self, now: SystemTime) -> Result<String, RotationError> {
        let pair = |certificate, key| -> Result<IssuerPair, RotationError> {
            Ok(IssuerPair { certificate_pem: self.text(certificate)?.to_owned(), key_pem: self.text(key)?.to_owned() })
        };
        let (old, next) = (pair(CERTIFICATE, KEY)?, pair(NEXT_CERTIFICATE, NEXT_KEY)?);
        let previous = blocks(PREVIOUS_ANCHORS, self.text(PREVIOUS_ANCHORS)?)?;
        let later = blocks(NEXT_ANCHORS, self.text(NEXT_ANCHORS)?)?;
        let retired = previous.iter().any(|(der, _)| !later.iter().any(|(other, _)| other == der));
        let made = if retired { cross_sign(&old, &previous, &next, now)? } else { None };
        let before = self.texts.get(CROSS_KEY).map_or("", String::as_str);
        let before = blocks(CROSS_KEY, before)?.into_iter().filter(|(der, _)| is_valid(der, now)).map(|(_, text)| text);
        Ok(made.into_iter().chain(before).take(KEPT_CROSS).collect())
    }
}

/// A certificate for the next issuer's key signed by the present one; `None` where that would not help: the present
/// issuer is no anchor itself (then it may not vouch for another authority), or has ended.
fn cross_sign(
    old: &IssuerPair,
    anchors: &[(CertificateDer<'static>, String)],
    next: &IssuerPair,
    now: SystemTime,
) -> Result<Option<String>, RotationError> {
    let failed = |error: &dyn fmt::Display| RotationError::Cross(error.to_string());
    let (olds, nexts) = (blocks(CERTIFICATE, &old.certificate_pem)?, blocks(NEXT_CERTIFICATE, &next.certificate_pem)?);
    let (Some((old_der, _)), Some((next_der, _))) = (olds.first(), nexts.first()) else { return Ok(None) };
    if !anchors.iter().any(|(anchor, _)| anchor == old_der) || !is_valid(old_der, now) {
        return Ok(None);
    }
    let (_, old_x509) = X509Certificate::from_der(old_der).map_err(|error| failed(&error))?;
    let (_, x509) = X509Certificate::from_der(next_der).map_err(|error| failed(&error))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = same_name(&x509);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = old_x509.validity().not_before.to_datetime().max(x509.validity().not_before.to_datetime());
    params.not_after = old_x509.validity().not_after.to_datetime().min(x509.validity().not_after.to_datetime());
    let old_key = KeyPair::from_pem(&old.key_pem).map_err(|error| failed(&error))?;
    let next_key = KeyPair::from_pem(&next.key_pem).map_err(|error| failed(&error))?;
    let signer = rcgen::Issuer::from_ca_cert_der(old_der, old_key).map_err(|error| failed(&error))?;
    let cross = params.signed_by(&next_key, &signer).map_err(|error| failed(&error))?;
    // A chain is followed by names, byte for byte: one that came out otherwise leads nowhere.
    let (_, made) = X509Certificate::from_der(cross.der()).map_err(|error| failed(&error))?;
    let fits = made.subject().as_raw() == x509.subject().as_raw();
    Ok(fits.then(|| cross.pem().replace("\r\n", "\n")))
}

/// The name of a certificate's subject, as far as it can be written again.
fn same_name(x509: &X509Certificate<'_>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for attribute in x509.subject().iter_attributes() {
        let Some(kind) = attribute.attr_type().iter().map(|parts| parts.collect::<Vec<u64>>()) else { continue };
        let Ok(text) = attribute.as_str() else { continue };
        let printable = attribute.attr_value().header.tag() == x509_parser::der_parser::asn1_rs::Tag::PrintableString;
        let value = match text.try_into() {
            Ok(text) if printable => DnValue::PrintableString(text),
            _ => DnValue::Utf8String(text.to_owned()),
        };
        name.push(DnType::CustomDnType(kind), value);
    }
    name
}

fn is_valid(der: &CertificateDer<'_>, now: SystemTime) -> bool {
    let now = OffsetDateTime::from(now);
    X509Certificate::from_der(der).is_ok_and(|(_, x509)| x509.validity().not_after.to_datetime() > now)
}

/// The certificates of two PEM texts, each once.
fn bundle(one: &str, other: &str) -> Result<String, RotationError> {
    let mut all = blocks(PREVIOUS_ANCHORS, one)?;
    for block in blocks(NEXT_ANCHORS, other)? {
        if !all.iter().any(|(der, _)| *der == block.0) {
            all.push(block);
        }
    }
    Ok(all.into_iter().map(|(_, text)| text).collect())
}

/// The certificates of a PEM text, each with its own text.
fn blocks(key: &'static str, pem: &str) -> Result<Vec<(CertificateDer<'static>, String)>, RotationError> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut all = Vec::new();
    for piece in pem.split(BEGIN).skip(1) {
        let body = piece.split(END).next().unwrap_or_default();
        let text = format!("{BEGIN}{body}{END}\n").replace("\r\n", "\n");
        let der = CertificateDer::from_pem_slice(text.as_bytes());
        let der = der.map_err(|error| RotationError::Unreadable { key: key.to_owned(), reason: error.to_string() })?;
        all.push((der, text));
    }
    Ok(all)
}

fn prints(blocks: &[(CertificateDer<'static>, String)]) -> Vec<String> {
    let mut prints: Vec<String> = blocks.iter().map(|(der, _)| fingerprint(der)).collect();
    prints.sort();
    prints.dedup();
    prints
}

fn first_print(key: &'static str, pem: &str) -> Result<String, RotationError> {
    let blocks = blocks(key, pem)?;
    let (der, _) = blocks.first().ok_or_else(|| RotationError::Unreadable {
        key: key.to_owned(),
        reason: "there is no certificate".to_owned(),
    })?;
    Ok(fingerprint(der))
}

/// Fingerprints of the certificates of a PEM text, sorted; an error if one cannot be read.
pub fn fingerprints(pem: &str) -> Result<Vec<String>, RotationError> {
    Ok(prints(&blocks(ANCHORS, pem)?))
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
