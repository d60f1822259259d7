//! Who a workload is, and how it gets the certificate that proves it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// A SPIFFE identity of a Kubernetes service account:
/// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    /// Trust domain, lower case.
    pub trust_domain: String,
    /// Namespace of the service account.
    pub namespace: String,
    /// Name of the service account.
    pub service_account: String,
}

/// Why a text is not an identity of this mesh.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an identity of the form spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>")]
pub struct InvalidSpiffeId(pub String);

impl SpiffeId {
    /// An identity from its parts.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        }
    }

    /// The name put into the TLS server name (a DNS name cannot hold a URI):
    /// `[p<port>.]<service-account>.<namespace>.sa.<trust-domain>`.
    /// The port travels only where no redirect would restore it.
    pub fn server_name(&self, port: Option<u16>) -> String {
        let base = format!("{}.{}.sa.{}", self.service_account, self.namespace, self.trust_domain);
        match port {
            Some(port) => format!("p{port}.{base}"),
            None => base,
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSpiffeId(text.to_owned());
        let rest = text.strip_prefix("spiffe://").ok_or_else(invalid)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", service_account] = parts[..] else {
            return Err(invalid());
        };
        let plain = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
        if !(plain(trust_domain) && plain(namespace) && plain(service_account)) {
            return Err(invalid());
        }
        Ok(Self::new(trust_domain, namespace, service_account))
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = InvalidSpiffeId;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

/// First contact of a proxy with control: a CSR whose only subject alternative name is the wanted identity,
/// and the projected service account token that proves the right to it.
#[derive(Clone, Serialize, Deserialize)]
pub struct CertifyRequest {
    /// PKCS#10 request, PEM.
    pub csr_pem: String,
    /// Service account token with audience [`crate::names::IDENTITY_AUDIENCE`]. A secret: never logged.
    pub token: String,
}

/// The certificate for a [`CertifyRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CertifyResponse {
    /// Leaf first, then intermediates; PEM.
    pub chain_pem: String,
    /// Trust anchors, PEM.
    pub anchors_pem: String,
    /// End of the leaf's validity, Unix seconds.
    pub expires_at: u64,
    /// [`fingerprint`] of the certificate that signed it; earlier releases do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
}

/// Whom a part of the mesh trusts, and who vouches for it: what its admin port answers at
/// [`crate::names::IDENTITY_PATH`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trust {
    /// [`fingerprint`]s of its trust anchors, sorted.
    pub anchors: Vec<String>,
    /// [`fingerprint`] of the certificate that signed its own (for control: that signs others'); `None` if nobody said.
    pub issuer: Option<String>,
    /// End of its own certificate's validity (for control: of the issuer's), Unix seconds.
    pub expires_at: Option<u64>,
    /// True if it hears of changes at once.
    pub connected: bool,
}

/// The short name of a certificate (DER): the first eight bytes of its SHA-256 digest, hexadecimal.
pub fn fingerprint(der: &[u8]) -> String {
    Sha256::digest(der).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        assert_eq!(id, SpiffeId::new("cluster.local", "shop", "web"));
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(id.server_name(Some(80)), "p80.web.shop.sa.cluster.local");
    }

    #[test]
    fn foreign_forms_are_refused() {
        for text in [
            "",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns/a%2f/sa/b",
            "spiffe://cluster.local/sa/b/ns/a",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
