//! TLS on our ports: TLS 1.3 with a hybrid post-quantum key exchange, and client certificates where one is shown.

use mesh_api::SpiffeId;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::{Arc, OnceLock};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM text is broken.
    #[error("the {what} cannot be read as PEM: {source}")]
    Pem {
        /// Which text.
        what: &'static str,
        /// What is wrong.
        source: rustls_pki_types::pem::Error,
    },
    /// A PEM text is empty.
    #[error("there is no certificate in the {0}")]
    Empty(&'static str),
    /// The TLS library refuses.
    #[error("certificate and key cannot be used: {0}")]
    Rustls(#[from] rustls::Error),
    /// The anchors cannot verify clients.
    #[error("the authority for clients cannot be used: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The one set of algorithms: TLS 1.3 suites, X25519MLKEM768 first.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        use aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1];
        Arc::new(provider)
    };
    PROVIDER.get_or_init(make).clone()
}

/// All certificates of a PEM text; at least one.
pub fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|source| TlsError::Pem { what, source })?;
    if all.is_empty() { Err(TlsError::Empty(what)) } else { Ok(all) }
}

/// A server that asks clients for a certificate of `clients` (PEM) and serves those without one, too.
pub fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: Option<&str>,
) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for anchor in certificates(pem, "authority for clients")? {
                roots.add(anchor)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Resumed sessions would outlive a change of the authority for clients.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The identity that a verified certificate proves: exactly one SPIFFE URI.
pub fn identity(certificate: &CertificateDer<'_>) -> Option<SpiffeId> {
    let (_, x509) = X509Certificate::from_der(certificate).ok()?;
    let names = x509.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next()?;
    if uris.next().is_some() { None } else { uri.parse().ok() }
}

/// The common name of a certificate.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, x509) = X509Certificate::from_der(certificate).ok()?;
    x509.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}

/// Beginning and end of a certificate's validity, Unix seconds.
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(i64, i64)> {
    let (_, x509) = X509Certificate::from_der(certificate).ok()?;
    Some((x509.validity().not_before.timestamp(), x509.validity().not_after.timestamp()))
}
