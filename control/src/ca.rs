//! The certificate authority: what it signs, and what it refuses.
//!
//! Nothing of a signing request but its public key reaches the certificate. The request has to name exactly the
//! identity that its token proved: this is what keeps one workload from becoming another.

use crate::limits;
use crate::tls::{self, TlsError};
use mesh_api::identity::fingerprint;
use mesh_api::{SpiffeId, Trust};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The authority's key and certificates, as they lie in the issuer Secret.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Certificates between a leaf and the anchors, PEM; empty if the issuer is an anchor itself.
    intermediates_pem: String,
    /// What everybody in the mesh trusts, PEM.
    pub anchors_pem: String,
    /// End of the issuer's validity, Unix seconds.
    pub expires_at: u64,
    /// Fingerprint of the issuer's certificate.
    pub fingerprint: String,
    /// Fingerprints of the anchors, and the ends of their validity, Unix seconds.
    pub anchors: Vec<(String, u64)>,
    /// Certificates by which earlier authorities vouch for this one, PEM: shown to proxies that were started before it
    /// was there.
    cross_pem: String,
}

/// A certificate and when it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Leaf first, PEM.
    pub chain_pem: String,
    /// End of its validity, Unix seconds.
    pub expires_at: u64,
}

/// Why an issuer cannot be used, or nothing can be signed with it.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A PEM text is broken.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate cannot be read.
    #[error("the issuer's certificate cannot be read")]
    Certificate,
    /// It is no authority.
    #[error("the issuer's certificate may not sign others (basicConstraints CA is not set)")]
    NotAuthority,
    /// The key belongs to another certificate.
    #[error("the issuer's key does not belong to its certificate")]
    OtherKey,
    /// It has ended.
    #[error("the issuer's certificate has expired")]
    Expired,
    /// The certificate library refuses.
    #[error("cannot sign: {0}")]
    Rcgen(#[from] rcgen::Error),
    /// There is no randomness.
    #[error("the system gives no random numbers")]
    Random,
}

/// Why a signing request is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a signing request, or its signature is wrong.
    #[error("the signing request cannot be read: {0}")]
    Malformed(String),
    /// It wants to be an authority.
    #[error("the signing request asks for an authority's certificate")]
    WantsAuthority,
    /// It does not name exactly one thing.
    #[error("the signing request must name exactly one SPIFFE URI, it names {0} things")]
    Names(usize),
    /// It names something else than the token proved.
    #[error("the token proves {proven}, the signing request is for {wanted}")]
    OtherIdentity {
        /// What the token proved.
        proven: SpiffeId,
        /// What the request names.
        wanted: String,
    },
}

/// Checks a signing request against the identity that was proven, and returns its public key.
pub fn check_request(pem: &str, proven: &SpiffeId) -> Result<rcgen::PublicKey, Refusal> {
    let request =
        CertificateSigningRequestParams::from_pem(pem).map_err(|error| Refusal::Malformed(error.to_string()))?;
    let params = &request.params;
    if matches!(params.is_ca, IsCa::Ca(_)) {
        return Err(Refusal::WantsAuthority);
    }
    let [name] = &params.subject_alt_names[..] else { return Err(Refusal::Names(params.subject_alt_names.len())) };
    match name {
        SanType::URI(uri) if uri.as_str() == proven.to_string() => Ok(request.public_key),
        SanType::URI(uri) => Err(Refusal::OtherIdentity { proven: proven.clone(), wanted: uri.as_str().to_owned() }),
        other => Err(Refusal::OtherIdentity { proven: proven.clone(), wanted: format!("{other:?}") }),
    }
}

impl Authority {
    /// Reads the three texts of the issuer Secret.
    pub fn from_pem(certificate: &str, key: &str, anchors_pem: &str) -> Result<Self, AuthorityError> {
        let chain = tls::certificates(certificate, "issuer's certificate (tls.crt)")?;
        let trusted = tls::certificates(anchors_pem, "trust anchors (ca.crt)")?;
        let key = KeyPair::from_pem(key)?;
        let (_, x509) = X509Certificate::from_der(&chain[0]).map_err(|_| AuthorityError::Certificate)?;
        if !x509.is_ca() {
            return Err(AuthorityError::NotAuthority);
        }
        if x509.public_key().raw != key.subject_public_key_info() {
            return Err(AuthorityError::OtherKey);
        }
        let expires_at = ends(&x509);
        let mut anchors = Vec::new();
        for anchor in &trusted {
            let (_, x509) = X509Certificate::from_der(anchor).map_err(|_| AuthorityError::Certificate)?;
            anchors.push((fingerprint(anchor), ends(&x509)));
        }
        anchors.sort();
        anchors.dedup();
        let intermediates = chain.iter().filter(|certificate| !trusted.contains(certificate));
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&chain[0], key)?,
            intermediates_pem: intermediates.map(to_pem).collect(),
            anchors_pem: anchors_pem.to_owned(),
            expires_at,
            fingerprint: fingerprint(&chain[0]),
            anchors,
            cross_pem: String::new(),
        })
    }

    /// Shows these certificates (PEM) after our own ones, as far as they can be read.
    pub fn with_cross(self, pem: Option<&str>) -> Self {
        let cross = pem.filter(|pem| !pem.trim().is_empty()).map(|pem| tls::certificates(pem, "cross certificates"));
        let cross = match cross {
            None => Vec::new(),
            Some(Ok(cross)) => cross,
            Some(Err(error)) => {
                tracing::warn!(%error, "proxies that were started with earlier trust anchors cannot come back");
                Vec::new()
            }
        };
        Self { cross_pem: cross.iter().map(to_pem).collect(), ..self }
    }

    /// Whom those trust who trust us, and who vouches for them.
    pub fn report(&self) -> Trust {
        let anchors = self.anchors.iter().map(|(fingerprint, _)| fingerprint.clone()).collect();
        let issuer = Some(self.fingerprint.clone());
        Trust { anchors, issuer, expires_at: Some(self.expires_at), connected: true }
    }

    /// Signs a certificate for `identity`, which somebody has proven.
    pub fn sign(
        &self,
        identity: &SpiffeId,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Signed, AuthorityError> {
        let now_s = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let expires_at = (now_s + limits::LEAF_LIFE.as_secs()).min(self.expires_at);
        if expires_at <= now_s {
            return Err(AuthorityError::Expired);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial()?);
        params.not_before = OffsetDateTime::from(now - limits::BACKDATE);
        params.not_after = OffsetDateTime::from(UNIX_EPOCH + Duration::from_secs(expires_at));
        let leaf = params.signed_by(key, &self.issuer)?;
        Ok(Signed { chain_pem: leaf.pem() + &self.intermediates_pem, expires_at })
    }

    /// A key and a certificate of our own.
    pub fn own(
        &self,
        identity: &SpiffeId,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, u64), AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let signed = self.sign(identity, &key, now)?;
        let chain = tls::certificates(&(signed.chain_pem + &self.cross_pem), "own certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())
            .map_err(|source| TlsError::Pem { what: "own key", source })?;
        Ok((chain, key, signed.expires_at))
    }
}

/// End of a certificate's validity, Unix seconds.
fn ends(certificate: &X509Certificate<'_>) -> u64 {
    u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0)
}

/// 127 random bits: unpredictable, positive, and never zero.
pub fn random_serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0; 16];
    tls::provider().secure_random.fill(&mut bytes).map_err(|_| AuthorityError::Random)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// A certificate as PEM.
fn to_pem(certificate: &CertificateDer<'static>) -> String {
    use base64::Engine;
    let encoded = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertifiedIssuer, DnType};

    /// An authority for tests: certificate, key.
    pub(crate) fn root(name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let pem = key.serialize_pem();
        (CertifiedIssuer::self_signed(authority_params(name), key).unwrap().pem(), pem)
    }

    fn authority_params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    pub(crate) fn authority() -> Authority {
        let (certificate, key) = root("test");
        Authority::from_pem(&certificate, &key, &certificate).unwrap()
    }

    pub(crate) fn web() -> SpiffeId {
        SpiffeId::new("cluster.local", "shop", "web")
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    /// A signing request and its key.
    pub(crate) fn request(names: Vec<SanType>) -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        (params.serialize_request(&key).unwrap().pem().unwrap(), key)
    }

    #[test]
    fn only_the_proven_identity_is_signed() {
        let check = |names: Vec<SanType>, expect: &str| {
            let outcome = check_request(&request(names).0, &web());
            let said = outcome.err().map(|refusal| refusal.to_string()).unwrap_or_default();
            assert!(if expect.is_empty() { said.is_empty() } else { said.contains(expect) }, "{said} / {expect}");
        };
        let own = "spiffe://cluster.local/ns/shop/sa/web";
        check(vec![uri(own)], "");
        check(vec![], "names 0 things");
        check(vec![uri("spiffe://cluster.local/ns/shop/sa/cart")], "is for spiffe://cluster.local/ns/shop/sa/cart");
        check(vec![uri("spiffe://cluster.local/ns/other/sa/web")], "token proves");
        check(vec![uri("spiffe://elsewhere/ns/shop/sa/web")], "token proves");
        check(vec![uri("spiffe://CLUSTER.local/ns/shop/sa/web")], "token proves");
        check(vec![uri("spiffe://cluster.local/ns/shop/sa/web/")], "token proves");
        check(vec![uri(own), uri("spiffe://cluster.local/ns/shop/sa/cart")], "names 2 things");
        check(vec![uri(own), uri(own)], "names 2 things");
        check(vec![uri(own), SanType::DnsName("web.shop.svc".try_into().unwrap())], "names 2 things");
        check(vec![SanType::DnsName("web.shop.svc".try_into().unwrap())], "token proves");
        check(vec![uri(own), SanType::IpAddress([10, 0, 0, 1].into())], "names 2 things");
    }

    #[test]
    fn authority_requests_and_nonsense_are_refused() {
        let key = KeyPair::generate().unwrap();
        let mut params = authority_params("sneaky");
        params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/shop/sa/web")];
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        assert_eq!(check_request(&pem, &web()).unwrap_err(), Refusal::WantsAuthority);
        assert!(matches!(check_request("hello", &web()), Err(Refusal::Malformed(_))));
        let (honest, _) = request(vec![uri("spiffe://cluster.local/ns/shop/sa/web")]);
        let (other, _) = request(vec![uri("spiffe://cluster.local/ns/shop/sa/web")]);
        // A request whose signature belongs to another one.
        let (a, b) = (body(&honest), body(&other));
        let mixed = [&a[..a.len() - 40], &b[b.len() - 40..]].concat();
        assert!(check_request(&pem_of(&mixed), &web()).is_err());
    }

    fn body(pem: &str) -> Vec<u8> {
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
    }

    fn pem_of(der: &[u8]) -> String {
        to_pem(&CertificateDer::from(der.to_vec())).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    }

    #[test]
    fn a_leaf_is_what_it_should_be_and_nothing_more() {
        let (_, key) = request(vec![]);
        let now = SystemTime::now();
        let now_s = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let authority = authority();
        let signed = authority.sign(&web(), &key, now).unwrap();
        assert_eq!(signed.expires_at, now_s + 86_400);
        let chain = tls::certificates(&signed.chain_pem, "chain").unwrap();
        assert_eq!(chain.len(), 1, "an anchor is not sent along");
        assert_eq!(tls::identity(&chain[0]), Some(web()));
        let (from, to) = tls::validity(&chain[0]).unwrap();
        assert_eq!((now_s as i64 - from, to - now_s as i64), (300, 86_400));
        let (_, x509) = X509Certificate::from_der(&chain[0]).unwrap();
        assert!(!x509.is_ca());
        let usage = x509.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth && !usage.any);
        let other = authority.sign(&web(), &key, now).unwrap();
        let other = tls::certificates(&other.chain_pem, "chain").unwrap();
        let (_, other) = X509Certificate::from_der(&other[0]).unwrap();
        assert_ne!(x509.serial, other.serial);
    }

    #[test]
    fn who_knows_only_an_earlier_authority_still_believes_us() {
        use mesh_manifests::issuer::Issuer;
        use mesh_manifests::rotation::IssuerState;
        use rustls::client::verify_server_cert_signed_by_trust_anchor;
        let now = SystemTime::now();
        let made = || Issuer::generate("cluster.local", now).unwrap();
        let first = made();
        let pair = first.pair.clone().unwrap();
        let data =
            [("tls.crt", pair.certificate_pem), ("tls.key", pair.key_pem), ("ca.crt", first.anchors_pem.clone())];
        let data: Vec<(String, String)> = data.map(|(key, text)| (key.to_owned(), text)).into();
        let mut state = IssuerState::read(None, data.iter().map(|(key, text)| (key, text.as_bytes()))).unwrap();
        for _ in 0..2 {
            state = state.begin(&made(), now).unwrap();
            while state.progress().is_some() {
                state = state.advanced(now).unwrap();
            }
        }
        let text = |key: &str| state.texts()[key].as_str();
        let believed = |cross: Option<&str>| {
            let authority = Authority::from_pem(text("tls.crt"), text("tls.key"), text("ca.crt")).unwrap();
            let (chain, ..) = authority.with_cross(cross).own(&web(), now).unwrap();
            let mut roots = rustls::RootCertStore::empty();
            roots.add(tls::certificates(&first.anchors_pem, "first").unwrap().remove(0)).unwrap();
            let leaf = rustls::server::ParsedCertificate::try_from(&chain[0]).unwrap();
            let algorithms = tls::provider().signature_verification_algorithms.all;
            let at = rustls_pki_types::UnixTime::now();
            verify_server_cert_signed_by_trust_anchor(&leaf, &roots, &chain[1..], at, algorithms).is_ok()
        };
        assert!(believed(Some(text("cross.crt"))));
        assert!(!believed(None) && !believed(Some("nonsense")));
    }

    #[test]
    fn an_intermediate_goes_along_and_limits_the_life() {
        let (root_pem, root_key) = root("root");
        let root_key = KeyPair::from_pem(&root_key).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&root_pem, &root_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = authority_params("intermediate");
        let now = SystemTime::now();
        params.not_after = OffsetDateTime::from(now + Duration::from_secs(3600));
        let intermediate = params.signed_by(&key, &issuer).unwrap().pem();
        let authority = Authority::from_pem(&intermediate, &key.serialize_pem(), &root_pem).unwrap();
        let signed = authority.sign(&web(), &request(vec![]).1, now).unwrap();
        assert_eq!(tls::certificates(&signed.chain_pem, "chain").unwrap().len(), 2);
        assert_eq!(signed.expires_at, authority.expires_at);
        let later = now + Duration::from_secs(7200);
        assert!(matches!(authority.sign(&web(), &key, later), Err(AuthorityError::Expired)));
        let other_key = Authority::from_pem(&root_pem, &key.serialize_pem(), &root_pem);
        assert!(matches!(other_key, Err(AuthorityError::OtherKey)));
    }
}
