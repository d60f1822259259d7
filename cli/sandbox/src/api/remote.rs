//! Calls from the API into the cluster: webhooks, aggregated APIs, proxied pods and services.

use super::{Api, Body};
use anyhow::{Context, anyhow, bail};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

/// How long one attempt at a connection may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Attempts at a connection.
const DIALS: usize = 3;

/// Where a call goes.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// IP address or name to dial.
    pub(super) host: String,
    pub(super) port: u16,
    /// Name the certificate must be for, and the `Host` header.
    pub(super) server_name: String,
}

/// Which certificates are believed.
pub(super) enum Trust {
    /// Those of this bundle (PEM).
    Bundle(Vec<u8>),
    /// Any: the user asked for it.
    Anything,
}

impl Target {
    /// The Service a webhook or an aggregated API names, as seen from inside the cluster.
    pub(super) fn of_service(api: &Api, reference: &Value) -> anyhow::Result<Self> {
        let name = reference["name"].as_str().unwrap_or_default();
        let namespace = reference["namespace"].as_str().unwrap_or_default();
        let port = reference["port"].as_u64().unwrap_or(443);
        let port = u16::try_from(port).with_context(|| format!("{port} is not a port"))?;
        let service = api
            .store()
            .get("services", namespace, name)
            .ok_or_else(|| anyhow!("service \"{name}\" not found in namespace \"{namespace}\""))?;
        let spec = &service["spec"];
        let host = match spec["type"].as_str() {
            Some("ExternalName") => spec["externalName"].as_str(),
            _ => spec["clusterIP"].as_str().filter(|ip| *ip != "None" && !ip.is_empty()),
        };
        let host = host.ok_or_else(|| anyhow!("service {namespace}/{name} has no cluster IP"))?.to_owned();
        let has_port = spec["ports"].as_array().into_iter().flatten().any(|entry| entry["port"] == port);
        if !has_port && spec["type"] != "ExternalName" {
            bail!("no service port {port} found for service \"{name}\"");
        }
        Ok(Self { host, port, server_name: format!("{name}.{namespace}.svc") })
    }

    /// The host and port of an `https` URL, and its path with query.
    pub(super) fn of_url(url: &str) -> anyhow::Result<(Self, String)> {
        let uri: http::Uri = url.parse().with_context(|| format!("reading the URL {url:?}"))?;
        if uri.scheme_str() != Some("https") {
            bail!("the URL {url:?} is not https");
        }
        let host = uri.host().ok_or_else(|| anyhow!("the URL {url:?} has no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok((Self { server_name: host.clone(), port: uri.port_u16().unwrap_or(443), host }, path))
    }
}

/// Opens a TLS connection for one request; `identity` is shown if the other side asks.
pub(super) async fn connect_tls(
    api: &Api,
    target: &Target,
    trust: &Trust,
    identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> anyhow::Result<SendRequest<Body>> {
    let stream = dial(api, target).await?;
    let name = ServerName::try_from(target.server_name.clone())
        .with_context(|| format!("{:?} is no server name", target.server_name))?;
    let config = tls_config(trust, identity)?;
    let tls = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .with_context(|| format!("TLS handshake with {}:{}", target.host, target.port))?;
    handshake(tls).await
}

/// Opens a plain connection for one request.
pub(super) async fn connect_plain(api: &Api, target: &Target) -> anyhow::Result<SendRequest<Body>> {
    handshake(dial(api, target).await?).await
}

async fn dial(api: &Api, target: &Target) -> anyhow::Result<tokio::net::TcpStream> {
    let (host, port) = (target.host.clone(), target.port);
    let place = || format!("dial tcp {host}:{port}");
    for _ in 1..DIALS {
        // A pod that has just gone answers nothing, not even a refusal; the next connection goes to another.
        if let Ok(stream) = tokio::time::timeout(DIAL_TIMEOUT, (api.config().dial)(host.clone(), port)).await {
            return stream.with_context(place);
        }
    }
    match tokio::time::timeout(DIAL_TIMEOUT, (api.config().dial)(host.clone(), port)).await {
        Ok(stream) => stream.with_context(place),
        Err(_) => bail!("{}: i/o timeout", place()),
    }
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> anyhow::Result<SendRequest<Body>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("HTTP handshake")?;
    // Ends with the connection, which ends with its one request.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection of the API into the cluster");
        }
    });
    Ok(sender)
}

fn tls_config(
    trust: &Trust,
    identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> anyhow::Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?;
    let builder = match trust {
        Trust::Bundle(pem) => builder.with_root_certificates(roots(pem)?),
        Trust::Anything => builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAnything { provider })),
    };
    Ok(match identity {
        Some((certificate, key)) => {
            builder.with_client_auth_cert(vec![certificate], key).context("loading the API's client certificate")?
        }
        None => builder.with_no_client_auth(),
    })
}

fn roots(pem: &[u8]) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.context("reading the CA bundle")?).context("using the CA bundle")?;
    }
    if roots.is_empty() {
        bail!("x509: certificate signed by unknown authority (the CA bundle is empty)");
    }
    Ok(roots)
}

/// Believes any certificate, for `insecureSkipTLSVerify`; signatures of the handshake are checked all the same.
#[derive(Debug)]
struct AcceptAnything {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AcceptAnything {
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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
