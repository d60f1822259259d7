//! Probes: when to ask a container how it is, how to ask, what the answers amount to.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// What an answer may contain; the rest isn't read.
const MAX_ANSWER: usize = 10 * 1024;
/// A probe that has not succeeded yet is repeated quickly at first, so that a container that needs some milliseconds
/// to listen doesn't count as down for a whole period. These early failures count for nothing.
const EAGER: [Duration; 6] = [
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(325),
];

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// As events name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// The container's probe of this kind.
    pub(super) fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// When a probe is made and what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timing {
    pub(super) delay: Duration,
    pub(super) period: Duration,
    pub(super) timeout: Duration,
    successes: u32,
    failures: u32,
}

impl Timing {
    pub(super) fn of(probe: &Probe) -> Self {
        let seconds =
            |value: Option<i32>, default: u64| Duration::from_secs(value.map_or(default, |v| v.max(0) as u64));
        let count = |value: Option<i32>, default| value.filter(|v| *v > 0).map_or(default, |v| v as u32);
        Self {
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
        }
    }
}

/// Counts answers in a row.
#[derive(Debug, Default)]
pub(super) struct Tally {
    succeeded: u32,
    failed: u32,
    eager: usize,
    ever: bool,
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The threshold has been reached, for success or failure.
    pub(super) settled: Option<bool>,
    /// Wait before the next probe.
    pub(super) wait: Duration,
    /// A failure that counts.
    pub(super) counts: bool,
}

impl Tally {
    pub(super) fn note(&mut self, kind: Kind, timing: &Timing, success: bool) -> Verdict {
        if success {
            (self.succeeded, self.failed, self.ever) = (self.succeeded + 1, 0, true);
            let settled = (self.succeeded >= timing.successes).then_some(true);
            return Verdict { settled, wait: timing.period, counts: false };
        }
        if !self.ever && kind != Kind::Liveness && self.eager < EAGER.len() {
            self.eager += 1;
            return Verdict { settled: None, wait: EAGER[self.eager - 1], counts: false };
        }
        (self.succeeded, self.failed) = (0, self.failed + 1);
        let settled = (self.failed >= timing.failures).then_some(false);
        Verdict { settled, wait: timing.period, counts: true }
    }
}

/// Asks; `Err` says what was wrong with the answer. Commands are run by `run`.
pub(super) async fn ask<F>(
    probe: &Probe,
    container: &Container,
    pod: Ipv4Addr,
    timeout: Duration,
    run: impl FnOnce(Vec<String>) -> F,
) -> Result<(), String>
where
    F: Future<Output = Result<(), String>>,
{
    let asking = async {
        if let Some(get) = &probe.http_get {
            http_get(get, container, pod).await
        } else if let Some(TCPSocketAction { host, port }) = &probe.tcp_socket {
            let address = address(host.as_deref(), port, container, pod).await?;
            TcpStream::connect(address).await.map(drop).map_err(|error| format!("dial tcp {address}: {error}"))
        } else if let Some(grpc) = &probe.grpc {
            grpc_health(grpc, pod).await
        } else if let Some(exec) = &probe.exec {
            run(exec.command.clone().unwrap_or_default()).await
        } else {
            Err("the probe says neither httpGet, tcpSocket, grpc nor exec".into())
        }
    };
    let seconds = timeout.as_secs();
    tokio::time::timeout(timeout, asking).await.unwrap_or_else(|_| Err(format!("no answer within {seconds}s")))
}

/// The number of a port given as such or by the name it has in the container.
pub(super) fn port_number(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok()),
    };
    number.and_then(|number| u16::try_from(number).ok()).ok_or_else(|| format!("the container has no port {port:?}"))
}

async fn address(
    host: Option<&str>,
    port: &IntOrString,
    container: &Container,
    pod: Ipv4Addr,
) -> Result<SocketAddr, String> {
    let port = port_number(port, container)?;
    let Some(host) = host.filter(|host| !host.is_empty()) else { return Ok((pod, port).into()) };
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok((ip, port).into());
    }
    let mut found =
        tokio::net::lookup_host((host, port)).await.map_err(|error| format!("looking up {host}: {error}"))?;
    found.next().ok_or_else(|| format!("{host} has no address"))
}

/// Makes an HTTP request; any status from 200 to 399 is well.
pub(super) async fn http_get(get: &HTTPGetAction, container: &Container, pod: Ipv4Addr) -> Result<(), String> {
    let address = address(get.host.as_deref(), &get.port, container, pod).await?;
    let tls = get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let url = format!("{}://{address}{slash}{path}", if tls { "https" } else { "http" });
    let failed = |error: &dyn std::fmt::Display| format!("Get \"{url}\": {error}");
    let mut request = http::Request::get(format!("{slash}{path}"))
        .header("host", get.host.clone().unwrap_or_else(|| address.to_string()))
        .header("user-agent", concat!("kube-probe/", env!("CARGO_PKG_VERSION")))
        .header("accept", "*/*")
        .header("connection", "close");
    for header in get.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host")
            && let Some(headers) = request.headers_mut()
        {
            headers.remove("host");
        }
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(&error))?;
    let stream = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let (status, body) = if tls {
        let name = rustls_pki_types::ServerName::from(address.ip());
        let connector = tokio_rustls::TlsConnector::from(Arc::new(blind_tls().map_err(|error| failed(&error))?));
        let stream = connector.connect(name, stream).await.map_err(|error| failed(&error))?;
        exchange(TokioIo::new(stream), request).await.map_err(|error| failed(&error))?
    } else {
        exchange(TokioIo::new(stream), request).await.map_err(|error| failed(&error))?
    };
    if (200..400).contains(&status) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&body);
    tracing::debug!(%url, status, %text, "a probe was answered badly");
    Err(format!("HTTP probe failed with statuscode: {status}"))
}

async fn exchange(
    io: impl hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    request: http::Request<Empty<Bytes>>,
) -> anyhow::Result<(u16, Bytes)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    connection.abort();
    Ok((status, body.map(|body| body.to_bytes()).unwrap_or_default()))
}

/// TLS that accepts any certificate, as kubelets' probes do: they ask about health, not identity.
fn blind_tls() -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(schemes))).with_no_client_auth())
}

#[derive(Debug)]
struct AnyCertificate(Vec<rustls::SignatureScheme>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.clone()
    }
}

/// `grpc.health.v1.Health/Check`.
async fn grpc_health(grpc: &GRPCAction, pod: Ipv4Addr) -> Result<(), String> {
    let port = u16::try_from(grpc.port).map_err(|_| format!("{} is not a port", grpc.port))?;
    let address = SocketAddr::from((pod, port));
    let failed = |error: &dyn std::fmt::Display| format!("grpc {address}: {error}");
    let stream = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(health_request(grpc.service.as_deref().unwrap_or_default())))
        .map_err(|error| failed(&error))?;
    let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
    let headers = response.headers().clone();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|error| failed(&error))?;
    connection.abort();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let status = trailers.get("grpc-status").or_else(|| headers.get("grpc-status"));
    match status.map(|status| status.as_bytes()) {
        Some(b"0") => {}
        other => {
            let code = other.map(String::from_utf8_lossy).unwrap_or_default();
            return Err(format!("grpc {address}: the health service answered with status {code}"));
        }
    }
    match serving_status(&body.to_bytes()) {
        Some(1) => Ok(()),
        status => Err(format!("service unhealthy (responded with {})", status.unwrap_or(0))),
    }
}

/// A length-prefixed `HealthCheckRequest`: field 1 is the service's name.
fn health_request(service: &str) -> Bytes {
    let service = &service.as_bytes()[..service.len().min(127)];
    let mut message = Vec::new();
    if !service.is_empty() {
        message.extend_from_slice(&[0x0a, service.len() as u8]);
        message.extend_from_slice(service);
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// `status` of a length-prefixed `HealthCheckResponse`; left out means 0, unknown.
fn serving_status(framed: &[u8]) -> Option<u8> {
    match framed.get(5..)? {
        [] => Some(0),
        [0x08, status, ..] => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn timing(json: serde_json::Value) -> Timing {
        Timing::of(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn timings_have_defaults() {
        let t = timing(json!({}));
        assert_eq!(
            (t.delay.as_secs(), t.period.as_secs(), t.timeout.as_secs(), t.successes, t.failures),
            (0, 10, 1, 1, 3)
        );
        let t =
            timing(json!({"periodSeconds": 0, "timeoutSeconds": -1, "failureThreshold": 7, "initialDelaySeconds": 4}));
        assert_eq!((t.delay.as_secs(), t.period.as_secs(), t.timeout.as_secs(), t.failures), (4, 1, 1, 7));
    }

    #[test]
    fn answers_add_up() {
        let t = timing(json!({"failureThreshold": 2, "successThreshold": 2}));
        let mut tally = Tally::default();
        for _ in EAGER {
            let verdict = tally.note(Kind::Readiness, &t, false);
            assert!(verdict.settled.is_none() && !verdict.counts && verdict.wait < t.period);
        }
        let mut settled =
            |answers: &[bool]| answers.iter().map(|a| tally.note(Kind::Readiness, &t, *a).settled).collect::<Vec<_>>();
        assert_eq!(settled(&[false, false, true, true]), [None, Some(false), None, Some(true)]);
        assert_eq!(settled(&[false, true, false, false]), [None, None, None, Some(false)]);
        let mut strict = Tally::default();
        assert!(strict.note(Kind::Liveness, &t, false).counts);
    }

    #[test]
    fn health_messages() {
        assert_eq!(health_request("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(serving_status(&[0, 0]), None);
    }

    async fn probe(answer: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let n = stream.read(&mut request).await.unwrap();
            assert!(request[..n].starts_with(b"GET /ready HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": port}]})).unwrap();
        let probe = serde_json::from_value(json!({"httpGet": {"path": "/ready", "port": "web"}})).unwrap();
        let none = |_| async { Err("not a command".into()) };
        ask(&probe, &container, Ipv4Addr::LOCALHOST, Duration::from_secs(5), none).await
    }

    #[tokio::test]
    async fn http_statuses() {
        assert_eq!(probe("HTTP/1.1 204 No Content\r\n\r\n").await, Ok(()));
        assert_eq!(probe("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n").await, Ok(()));
        let refused = probe("HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(refused, Err("HTTP probe failed with statuscode: 503".into()));
        assert!(probe("nonsense\r\n\r\n").await.is_err());
    }
}
