//! Mesh TLS: mutual TLS 1.3 with a hybrid post-quantum key exchange, identities proven by SPIFFE URIs.
//!
//! A certificate counts if it chains to the mesh's trust anchors, is valid now, and names exactly one SPIFFE identity
//! of our trust domain. DNS names play no role: the server name only carries the identity (and where there is no
//! redirect, the port) so that sessions can be resumed. Certificates are swapped as a whole and never half.

use crate::stream::Rewound;
use mesh_api::SpiffeId;
use mesh_api::names::{ALPN_H1, ALPN_H1_MUX, ALPN_H2, ALPN_H2_MUX, ALPN_TCP};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Sessions a client can resume.
const RESUMABLE_SESSIONS: usize = 64;

/// What a mesh connection carries, settled by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/1.1, one exchange at a time.
    Http1,
    /// HTTP/1.1, many exchanges at a time, each a stream of HTTP/2 ([`crate::mux`]).
    Http1Mux,
    /// HTTP/2, with CONNECT.
    Http2,
    /// HTTP/2 but for CONNECT ([`crate::streams`]).
    Http2Mux,
    /// Opaque TCP.
    Tcp,
}

impl Alpn {
    /// Everything we speak.
    pub const ALL: [Alpn; 5] = [Alpn::Http1, Alpn::Http1Mux, Alpn::Http2, Alpn::Http2Mux, Alpn::Tcp];

    /// The name on the wire.
    pub fn name(self) -> &'static [u8] {
        match self {
            Alpn::Http1 => ALPN_H1,
            Alpn::Http1Mux => ALPN_H1_MUX,
            Alpn::Http2 => ALPN_H2,
            Alpn::Http2Mux => ALPN_H2_MUX,
            Alpn::Tcp => ALPN_TCP,
        }
    }

    /// What a name on the wire means; `None` if it is none of ours.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.name() == name)
    }
}

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCredentials {
    /// A PEM text holds nothing of the kind, or something broken.
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
    /// The certificate is no proof of a mesh identity.
    #[error("the certificate proves no mesh identity: {0}")]
    Identity(#[from] NoIdentity),
    /// The TLS library refuses.
    #[error("certificate and key cannot be used: {0}")]
    Rustls(#[from] rustls::Error),
    /// The anchors cannot verify clients.
    #[error("the trust anchors cannot be used: {0}")]
    Anchors(#[from] rustls::server::VerifierBuilderError),
}

/// Why a certificate proves no identity.
#[derive(Debug, thiserror::Error)]
pub enum NoIdentity {
    /// Not a certificate.
    #[error("it is not an X.509 certificate")]
    Malformed,
    /// Not exactly one URI.
    #[error("it must name exactly one SPIFFE URI, it names {0}")]
    Names(usize),
    /// A URI of another form.
    #[error(transparent)]
    Form(#[from] mesh_api::identity::InvalidSpiffeId),
    /// Not valid yet.
    #[error(
        "it is not valid before {0} s from now: the clock of this node is behind that of whoever signed it, or the other way round"
    )]
    Early(u64),
    /// No longer valid.
    #[error("it ended {0} s ago (or a clock is wrong)")]
    Expired(u64),
}

/// One certificate and everything made from it.
#[derive(Debug)]
pub struct Current {
    /// The identity it proves.
    pub identity: SpiffeId,
    /// End of its validity, Unix seconds.
    pub expires_at: u64,
    /// The trust anchors, PEM.
    pub anchors: String,
    /// Fingerprint of the certificate that signed it, as control told.
    pub issuer: Option<String>,
    /// Chain and key, for other anchors beside them.
    key: Arc<CertifiedKey>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// What a client has proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its identity.
    pub identity: SpiffeId,
    /// What the connection carries.
    pub alpn: Alpn,
    /// The port it wants where no redirect restores it.
    pub port: Option<u16>,
}

impl Current {
    /// Reads chain, key and anchors from PEM texts.
    pub fn from_pem(chain: &str, key: &str, anchors: &str) -> Result<Self, InvalidCredentials> {
        let chain = certificates(chain, "certificate chain")?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|source| InvalidCredentials::Pem { what: "private key", source })?;
        let (identity, expires_at) = proven_identity(&chain[0], UnixTime::now())?;
        let key = Arc::new(CertifiedKey::from_der(chain, key, &provider())?);
        let (server, client) = configs(&key, anchors, &identity)?;
        Ok(Self { identity, expires_at, anchors: anchors.to_owned(), issuer: None, key, server, client })
    }

    /// Says who signed it.
    pub fn issued_by(self, issuer: Option<String>) -> Self {
        Self { issuer, ..self }
    }

    /// The same certificate and key, trusting others. Sessions begun before are not resumed.
    pub fn with_anchors(&self, anchors: &str) -> Result<Self, InvalidCredentials> {
        let (server, client) = configs(&self.key, anchors, &self.identity)?;
        let (identity, issuer, key) = (self.identity.clone(), self.issuer.clone(), self.key.clone());
        Ok(Self { identity, expires_at: self.expires_at, anchors: anchors.to_owned(), issuer, key, server, client })
    }

    /// Terminates mesh TLS; the client has to prove an identity of our trust domain.
    pub async fn accept(&self, io: Rewound) -> io::Result<(TlsStream<Rewound>, Peer)> {
        let tls = TlsAcceptor::from(self.server.clone()).accept(io).await?;
        let connection = tls.get_ref().1;
        let identity = peer_identity(connection.peer_certificates())?;
        let alpn = connection.alpn_protocol().and_then(Alpn::from_name).ok_or_else(|| invalid("no mesh ALPN"))?;
        let port = connection.server_name().and_then(port_in_server_name);
        Ok((TlsStream::Server(tls), Peer { identity, alpn, port }))
    }

    /// Opens mesh TLS to exactly `expected`.
    pub async fn connect<IO>(
        &self,
        io: IO,
        expected: &SpiffeId,
        alpn: Alpn,
        port: Option<u16>,
    ) -> io::Result<TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let name = tls_server_name(expected, port);
        let connector = TlsConnector::from(self.client.clone());
        let tls = connector.with_alpn(vec![alpn.name().to_vec()]).connect(name, io).await?;
        let connection = tls.get_ref().1;
        expect_identity(connection.peer_certificates(), expected)?;
        if connection.alpn_protocol() != Some(alpn.name()) {
            return Err(invalid("the other side does not know our protocol"));
        }
        Ok(TlsStream::Client(tls))
    }

    /// Opens TLS to control, proving our identity.
    pub async fn connect_control<IO>(&self, io: IO, control: &SpiffeId) -> io::Result<TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        connect_control(&self.client, io, control).await
    }
}

/// Both sides of mesh TLS with a certificate of `identity`.
fn configs(
    key: &Arc<CertifiedKey>,
    anchors: &str,
    identity: &SpiffeId,
) -> Result<(Arc<ServerConfig>, Arc<ClientConfig>), InvalidCredentials> {
    let roots = Arc::new(root_store(anchors)?);
    let verifier = Arc::new(MeshVerifier::new(roots, Some(identity.trust_domain.clone()))?);
    let shown = Arc::new(SingleCertAndKey::from(key.clone()));
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(shown.clone());
    server.alpn_protocols = Alpn::ALL.map(|alpn| alpn.name().to_vec()).to_vec();
    server.ticketer = aws_lc_rs::Ticketer::new()?;
    server.send_tls13_tickets = 1;
    server.max_early_data_size = 0;

    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous() // the verifier checks chain and identity, just not DNS names
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(shown);
    client.resumption = Resumption::in_memory_sessions(RESUMABLE_SESSIONS);
    Ok((Arc::new(server), Arc::new(client)))
}

/// TLS to control before there is a certificate of our own.
pub fn anonymous_client(anchors: &str) -> Result<Arc<ClientConfig>, InvalidCredentials> {
    let verifier = MeshVerifier::new(Arc::new(root_store(anchors)?), None)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous() // the verifier checks chain and identity, just not DNS names
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Opens TLS with HTTP/2 to exactly the identity `control`.
pub async fn connect_control<IO>(config: &Arc<ClientConfig>, io: IO, control: &SpiffeId) -> io::Result<TlsStream<IO>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let connector = TlsConnector::from(config.clone());
    let tls = connector.with_alpn(vec![b"h2".to_vec()]).connect(tls_server_name(control, None), io).await?;
    expect_identity(tls.get_ref().1.peer_certificates(), control)?;
    Ok(TlsStream::Client(tls))
}

/// The one set of algorithms: TLS 1.3 suites, X25519MLKEM768 first.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
        Arc::new(provider)
    };
    PROVIDER.get_or_init(make).clone()
}

/// The identity a certificate proves and the end of its validity.
pub fn proven_identity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(SpiffeId, u64), NoIdentity> {
    let (_, x509) = X509Certificate::from_der(certificate).map_err(|_| NoIdentity::Malformed)?;
    let names = x509.subject_alternative_name().map_err(|_| NoIdentity::Malformed)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let [uri] = uris[..] else {
        return Err(NoIdentity::Names(uris.len()));
    };
    let identity = uri.parse()?;
    let seconds = |t: x509_parser::time::ASN1Time| u64::try_from(t.timestamp()).unwrap_or(0);
    let (from, to) = (seconds(x509.validity().not_before), seconds(x509.validity().not_after));
    // A resumed session is not verified again by the TLS library; this check also covers that.
    if now.as_secs() < from {
        return Err(NoIdentity::Early(from - now.as_secs()));
    }
    if now.as_secs() > to {
        return Err(NoIdentity::Expired(now.as_secs() - to));
    }
    Ok((identity, to))
}

fn peer_identity(certificates: Option<&[CertificateDer<'_>]>) -> io::Result<SpiffeId> {
    let leaf = certificates.and_then(<[_]>::first).ok_or_else(|| invalid("no certificate"))?;
    Ok(proven_identity(leaf, UnixTime::now()).map_err(invalid)?.0)
}

fn expect_identity(certificates: Option<&[CertificateDer<'_>]>, expected: &SpiffeId) -> io::Result<()> {
    let proven = peer_identity(certificates)?;
    if proven == *expected { Ok(()) } else { Err(invalid(format!("expected {expected}, the other side is {proven}"))) }
}

/// True if the other side does not accept our certificate: nobody vouches for it any more, or it has ended. In TLS 1.3
/// the alert (RFC 8446, section 6.2) arrives only with what is read after the handshake; HTTP/2 keeps no more of it than its
/// text.
pub fn refuses_certificate(error: &anyhow::Error) -> bool {
    use rustls::AlertDescription::{AccessDenied, BadCertificate, CertificateExpired, CertificateUnknown, UnknownCA};
    let refusals = [AccessDenied, BadCertificate, CertificateExpired, CertificateUnknown, UnknownCA];
    let texts = refusals.map(|alert| rustls::Error::AlertReceived(alert).to_string());
    error.chain().any(|cause| texts.iter().any(|text| cause.to_string().contains(text)))
}

fn invalid(why: impl Into<crate::error::BoxError>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// The server name of an identity; one too long for DNS is not sent.
fn tls_server_name(identity: &SpiffeId, port: Option<u16>) -> ServerName<'static> {
    ServerName::try_from(identity.server_name(port))
        .unwrap_or_else(|_| ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into()))
}

/// The port in `p<port>.<identity>`.
pub fn port_in_server_name(name: &str) -> Option<u16> {
    name.split_once('.')?.0.strip_prefix('p')?.parse().ok()
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, InvalidCredentials> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|source| InvalidCredentials::Pem { what, source })?;
    if all.is_empty() { Err(InvalidCredentials::Empty(what)) } else { Ok(all) }
}

fn root_store(anchors: &str) -> Result<RootCertStore, InvalidCredentials> {
    let mut roots = RootCertStore::empty();
    for anchor in certificates(anchors, "trust anchors")? {
        roots.add(anchor)?;
    }
    Ok(roots)
}

/// Verifies certificates of both sides: the chain, and that they name an identity of our trust domain.
#[derive(Debug)]
struct MeshVerifier {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    trust_domain: Option<String>,
}

impl MeshVerifier {
    fn new(roots: Arc<RootCertStore>, trust_domain: Option<String>) -> Result<Self, InvalidCredentials> {
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build()?;
        Ok(Self { roots, clients, trust_domain })
    }

    fn check_identity(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
        let (identity, _) = proven_identity(certificate, now).map_err(|e| rustls::Error::General(e.to_string()))?;
        match &self.trust_domain {
            Some(own) if *own != identity.trust_domain => {
                Err(rustls::Error::General(format!("{identity} is not of the trust domain {own}")))
            }
            _ => Ok(()),
        }
    }
}

impl ServerCertVerifier for MeshVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>, // whoever connects compares the identity itself
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = rustls::server::ParsedCertificate::try_from(end_entity)?;
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        self.check_identity(end_entity, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}

impl ClientCertVerifier for MeshVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[] // a mesh client has just one certificate to offer
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.clients.verify_client_cert(end_entity, intermediates, now)?;
        self.check_identity(end_entity, now)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}
