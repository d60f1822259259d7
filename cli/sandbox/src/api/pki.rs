//! Keys and certificates of the cluster: its authority, the API's serving certificate, the administrator's client
//! certificate, and the separate authority that vouches for requests forwarded to aggregated APIs.

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::time::Duration;
use time::OffsetDateTime;

/// How long everything is valid; a sandbox does not live longer.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// Names every API server answers to.
const SERVER_NAMES: &[&str] = &[
    "localhost",
    "127.0.0.1",
    "::1",
    "10.96.0.1",
    "10.244.0.1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// A certificate and its key.
pub struct Credential {
    /// The certificate, PEM.
    pub certificate: String,
    /// The private key, PEM (PKCS#8).
    pub key: String,
    certificate_der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

impl Credential {
    /// Both parts as rustls takes them.
    pub fn der(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        (self.certificate_der.clone(), PrivatePkcs8KeyDer::from(self.key_der.clone()).into())
    }
}

/// All of the cluster's credentials.
pub struct Pki {
    /// The cluster authority's certificate: clients trust the API by it, the API trusts client certificates by it.
    pub ca: String,
    ca_der: CertificateDer<'static>,
    /// The authority that signs [`Pki::front_proxy`], published to aggregated APIs.
    pub front_proxy_ca: String,
    /// What the API serves with.
    pub server: Credential,
    /// User `kubernetes-admin` of group `system:masters`.
    pub admin: Credential,
    /// What the API shows to aggregated APIs.
    pub front_proxy: Credential,
}

impl Pki {
    /// Makes everything anew.
    pub fn generate(extra_names: &[String]) -> anyhow::Result<Self> {
        let ca = authority("kubernetes")?;
        let front_proxy_ca = authority("front-proxy-ca")?;
        let names: Vec<String> =
            SERVER_NAMES.iter().map(|s| (*s).to_owned()).chain(extra_names.iter().cloned()).collect();
        let server = leaf(&ca, names, "kube-apiserver", None, ExtendedKeyUsagePurpose::ServerAuth)?;
        let client = ExtendedKeyUsagePurpose::ClientAuth;
        let admin = leaf(&ca, Vec::new(), "kubernetes-admin", Some("system:masters"), client.clone())?;
        let front_proxy = leaf(&front_proxy_ca, Vec::new(), "front-proxy-client", None, client)?;
        Ok(Self {
            ca: ca.pem(),
            ca_der: ca.der().clone(),
            front_proxy_ca: front_proxy_ca.pem(),
            server,
            admin,
            front_proxy,
        })
    }

    /// The cluster authority's certificate.
    pub fn ca_der(&self) -> &CertificateDer<'static> {
        &self.ca_der
    }

    /// A kubeconfig for the administrator, certificates embedded; `server` is the API's URL.
    pub fn kubeconfig(&self, server: &str, context: &str) -> String {
        use base64::Engine;
        let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
        let (ca, certificate, key) = (encode(&self.ca), encode(&self.admin.certificate), encode(&self.admin.key));
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {context}\npreferences: {{}}\n\
             clusters:\n- name: {context}\n  cluster:\n    server: {server}\n    certificate-authority-data: {ca}\n\
             contexts:\n- name: {context}\n  context:\n    cluster: {context}\n    user: {context}\n\
             users:\n- name: {context}\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n"
        )
    }
}

fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    // An hour back, for clients whose clock is a little behind.
    params.not_before = now - Duration::from_secs(3600);
    params.not_after = now + LIFETIME;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn authority(name: &str) -> anyhow::Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().context("generating the key of an authority")?;
    CertifiedIssuer::self_signed(params, key).with_context(|| format!("signing the authority {name}"))
}

fn leaf(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    names: Vec<String>,
    common_name: &str,
    organization: Option<&str>,
    purpose: ExtendedKeyUsagePurpose,
) -> anyhow::Result<Credential> {
    let mut params = params(common_name);
    params.subject_alt_names =
        CertificateParams::new(names).context("reading the names of a certificate")?.subject_alt_names;
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    let key = KeyPair::generate().context("generating a key")?;
    let certificate = params.signed_by(&key, issuer).with_context(|| format!("signing {common_name}"))?;
    Ok(Credential {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
        certificate_der: certificate.der().clone(),
        key_der: key.serialize_der(),
    })
}
