//! `mesh-forger ADDRESS CASE`: a client that pretends to be a mesh proxy.
//!
//! It opens TLS 1.3 to a meshed pod as another proxy would (ALPN `mesh-h1`) and sends one request. The cases differ in
//! what it shows: `no-certificate`, `own-authority` (the right identity, signed by an authority of its own) and
//! `other-domain` (another trust domain). It prints `refused: <why>` or `answered: <status line>`.

use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let outcome = match (arguments.get(1), arguments.get(2)) {
        (Some(address), Some(case)) => attempt(address, case),
        _ => Err(anyhow::anyhow!("usage: mesh-forger ADDRESS CASE")),
    };
    let line = match outcome {
        Ok(answer) => format!("answered: {answer}"),
        Err(error) => format!("refused: {error:#}"),
    };
    let _ = writeln!(std::io::stdout(), "{}", line.trim_end());
    ExitCode::SUCCESS
}

fn attempt(address: &str, case: &str) -> Result<String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let mut config = match case {
        "no-certificate" => builder.with_no_client_auth(),
        "own-authority" => with_certificate(builder, "spiffe://cluster.local/ns/shop/sa/web")?,
        "other-domain" => with_certificate(builder, "spiffe://elsewhere.test/ns/shop/sa/web")?,
        other => anyhow::bail!("there is no case `{other}`"),
    };
    config.alpn_protocols = vec![mesh_api::names::ALPN_H1.to_vec()];
    let name = ServerName::try_from("catalog.shop.sa.cluster.local")?;
    let socket = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::new(config), name)?, socket);
    stream.write_all(b"GET /products/1 HTTP/1.1\r\nhost: catalog\r\nconnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(&mut stream).read_line(&mut line)?;
    anyhow::ensure!(!line.is_empty(), "the connection was closed");
    Ok(line)
}

fn with_certificate(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    identity: &str,
) -> Result<ClientConfig> {
    let authority_key = rcgen::KeyPair::generate()?;
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate()?;
    let mut leaf = rcgen::CertificateParams::default();
    leaf.subject_alt_names = vec![rcgen::SanType::URI(identity.try_into()?)];
    let certificate = leaf.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    Ok(builder.with_client_auth_cert(vec![certificate.der().clone()], key)?)
}

/// The forger does not care whom it talks to.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
