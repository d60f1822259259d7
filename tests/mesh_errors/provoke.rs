//! How each error of the mesh comes about: a proxy, an application that misbehaves (or none), and a request.

use super::{Answered, Meshed, SOON};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request};
use mesh_api::access::{ExternalRule, JwtRule};
use mesh_api::config::{FileDestination, FileIdentity};
use mesh_api::{
    Access, AccessDefault, AccessRule, Destination, Egress, EgressDefault, Endpoint, FileConfig, InboundPolicy,
    MeshError, Millis, PortPolicy, Protocol, ServiceRef, SpiffeId, WorkloadRef,
};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use tempfile::TempDir;

type Provoke = fn() -> Result<Answered>;

/// A way to provoke each error.
pub(super) const CASES: &[(MeshError, Provoke)] = &[
    (MeshError::NoEndpoints, || plain(towards(Protocol::Detect, vec![]))),
    (MeshError::NoRoute, || {
        plain(routed(
            r#"{"rules": [{"name": {"kind": "httproute", "name": "web"}}], "http": [{"rule": 0, "path": {"exact": "/other"}}]}"#,
        )?)
    }),
    (MeshError::NoBackend, || {
        plain(routed(r#"{"rules": [{"name": {"kind": "httproute", "name": "web"}}], "http": [{"rule": 0}]}"#)?)
    }),
    (MeshError::ConnectFailed, || plain(towards(Protocol::Detect, vec![endpoint(nobody()?, None)]))),
    (MeshError::ConnectTimeout, connect_timeout),
    (MeshError::Timeout, || {
        let mut config = routed(
            r#"{"rules": [{"name": {"kind": "httproute", "name": "web"}, "timeouts": {"request": "200ms"}, "backends":
                [{"service": {"namespace": "shop", "name": "web", "port": 80}, "weight": 1}]}], "http": [{"rule": 0}]}"#,
        )?;
        config.destinations[0].endpoints = vec![endpoint(deaf()?, None)];
        plain(config)
    }),
    (MeshError::TlsFailed, tls_failed),
    (MeshError::ResetBeforeResponse, || plain(towards(Protocol::Detect, vec![endpoint(app(b"")?, None)]))),
    (MeshError::DeadlineExceeded, deadline_exceeded),
    (MeshError::NotExtended, not_extended),
    (MeshError::InvalidRequest, invalid_request),
    (MeshError::InvalidResponse, || {
        let two_lengths = app(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab")?;
        plain(towards(Protocol::Detect, vec![endpoint(two_lengths, None)]))
    }),
    (MeshError::AccessDenied, access_denied),
    (MeshError::JwtMissing, || without_token(GET)),
    (MeshError::JwtInvalid, || without_token("GET / HTTP/1.1\r\nhost: web\r\nauthorization: Bearer a.b.c\r\n\r\n")),
    (MeshError::ExternalAuthFailed, external_auth_failed),
    (MeshError::EgressDenied, egress_denied),
    (MeshError::CircuitOpen, || {
        // The only endpoint is ejected by the first try, so that the second one finds none.
        let breaks = r#"{"breaker": {"consecutiveFailures": 1, "floorPercent": 0}, "retry": {"backoff": "5ms"}}"#;
        plain(carried(breaks, nobody()?)?)
    }),
    (MeshError::RateLimited, rate_limited),
    (MeshError::FaultInjected, || plain(carried(r#"{"faults": [{"abort": {}}]}"#, deaf()?)?)),
    (MeshError::Overload, overload),
    (MeshError::Draining, draining),
    (MeshError::LoopDetected, || plain(FileConfig::default())),
];

/// Codes that the table has and no proxy answers with so far.
pub(super) const NOT_YET_MADE: &[MeshError] = &[];

const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 0, 9)), 80);
const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
const MANY: usize = 1000;

fn endpoint(address: SocketAddr, identity: Option<SpiffeId>) -> Endpoint {
    let workload = WorkloadRef::new("shop", "deployment", "web");
    Endpoint { address, identity, workload, pod: "web-1".to_owned(), zone: None }
}

fn towards(protocol: Protocol, endpoints: Vec<Endpoint>) -> FileConfig {
    let service = Some(ServiceRef { namespace: "shop".into(), name: "web".into(), port: 80 });
    let destination = Destination { service, protocol, ..Destination::default() };
    FileConfig {
        destinations: vec![FileDestination { address: SERVICE, destination, endpoints, backends: Vec::new() }],
        outbound_default: Some(SERVICE),
        ..FileConfig::default()
    }
}

/// A service that has these routes, as JSON.
fn routed(routes: &str) -> Result<FileConfig> {
    let mut config = towards(Protocol::Http1, vec![endpoint(nobody()?, None)]);
    config.destinations[0].destination.routes = Some(serde_json::from_str(routes)?);
    Ok(config)
}

/// A service with one endpoint whose traffic is carried as a policy says, in JSON.
fn carried(policy: &str, address: SocketAddr) -> Result<FileConfig> {
    let mut config = towards(Protocol::Http1, vec![endpoint(address, None)]);
    config.destinations[0].destination.policy = Some(serde_json::from_str(policy)?);
    Ok(config)
}

/// An address where nobody listens, and nobody else can: it stays bound.
fn nobody() -> Result<SocketAddr> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    let address = socket.local_addr()?.as_socket().context("no address")?;
    std::mem::forget(socket);
    Ok(address)
}

/// An application that is connected to and never reads.
fn deaf() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::mem::forget(listener);
    Ok(address)
}

/// An application that answers the first bytes of every connection with these, and closes it.
fn app(answer: &'static [u8]) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(answer));
        }
    });
    Ok(address)
}

/// A GET through a proxy's outbound side.
fn plain(config: FileConfig) -> Result<Answered> {
    let proxy = Meshed::start(&config, MANY)?;
    let stream = TcpStream::connect(proxy.outbound)?;
    answer(proxy, stream, GET)
}

/// What comes back for these bytes.
fn answer(proxy: Meshed, mut stream: TcpStream, request: &str) -> Result<Answered> {
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).with_context(|| format!("after {}", String::from_utf8_lossy(&head)))?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    let code = head.lines().find_map(|line| line.strip_prefix("mesh-error: ")).map(str::to_owned);
    Ok(Answered { proxy, code, status })
}

/// A workload that asks for a token, and a request that carries none that counts.
fn without_token(request: &str) -> Result<Answered> {
    let rule = AccessRule { policy: "shop/tokens".to_owned(), jwt: Some(0), ..AccessRule::default() };
    arriving(Access { jwts: vec![JwtRule::default()], rules: vec![rule], ..Access::default() }, request)
}

/// A workload that asks a service that is not there.
fn external_auth_failed() -> Result<Answered> {
    let external = ExternalRule {
        address: nobody()?,
        authority: "guard.shop:80".to_owned(),
        path: "/".to_owned(),
        method: "GET".to_owned(),
        timeout: Millis(5000),
        fail_open: false,
        headers: Vec::new(),
        response_headers: Vec::new(),
    };
    let rule = AccessRule { policy: "shop/ask".to_owned(), external: Some(0), ..AccessRule::default() };
    arriving(Access { external: vec![external], rules: vec![rule], ..Access::default() }, GET)
}

/// A workload that may call nothing outside the cluster.
fn egress_denied() -> Result<Answered> {
    let egress = Egress { default: EgressDefault::Deny, ..Egress::default() };
    let mut config = FileConfig { egress, ..towards(Protocol::Detect, vec![endpoint(nobody()?, None)]) };
    config.destinations[0].destination = Destination { external: true, ..Destination::default() };
    plain(config)
}

/// A workload that lets nobody in.
fn access_denied() -> Result<Answered> {
    arriving(Access { default: AccessDefault::Deny, ..Access::default() }, GET)
}

/// What comes of a request that arrives at a workload with these policies.
fn arriving(access: Access, request: &str) -> Result<Answered> {
    let inbound = InboundPolicy { access, ..InboundPolicy::default() };
    let config = FileConfig { inbound, inbound_default: Some(nobody()?), ..FileConfig::default() };
    let proxy = Meshed::start(&config, MANY)?;
    let stream = TcpStream::connect(proxy.inbound)?;
    answer(proxy, stream, request)
}

/// A listener whose queue is full leaves further attempts unanswered.
fn connect_timeout() -> Result<Answered> {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(0)?;
    let address = listener.local_addr()?.as_socket().context("no address")?;
    let mut queued = Vec::new();
    loop {
        ensure!(queued.len() < 16, "the queue does not fill");
        match TcpStream::connect_timeout(&address, std::time::Duration::from_millis(300)) {
            Ok(stream) => queued.push(stream),
            Err(error) if error.kind() == ErrorKind::TimedOut => break,
            Err(error) => return Err(error.into()),
        }
    }
    plain(towards(Protocol::Http1, vec![endpoint(address, None)]))
}

/// The endpoint's proxy proves another identity than the one it should have.
fn tls_failed() -> Result<Answered> {
    let files = Authority::new()?;
    let account = |name: &str| SpiffeId::new("cluster.local", "shop", name);
    let inbound = FileConfig {
        identity: Some(files.issue(&account("other"))?),
        inbound_default: Some(nobody()?),
        ..FileConfig::default()
    };
    let other = Meshed::start(&inbound, MANY)?;
    let outbound = towards(Protocol::Detect, vec![endpoint(other.inbound, Some(account("web")))]);
    plain(FileConfig { identity: Some(files.issue(&account("load"))?), ..outbound })
}

fn deadline_exceeded() -> Result<Answered> {
    let application = silent()?;
    let proxy = Meshed::start(&towards(Protocol::Grpc, vec![endpoint(application, None)]), MANY)?;
    let request = Request::post("http://web/shop.Cart/Get")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "200m");
    http2(proxy, request.body(())?)
}

/// An HTTP/2 application that answers nothing and does not take extended CONNECT.
fn silent() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let settings_and_their_acknowledgement = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0];
            let _ = stream.write_all(&settings_and_their_acknowledgement);
            held.push(stream);
        }
    });
    Ok(address)
}

fn not_extended() -> Result<Answered> {
    let proxy = Meshed::start(&towards(Protocol::Http2, vec![endpoint(silent()?, None)]), MANY)?;
    let mut request = Request::connect("http://web/chat").body(())?;
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    http2(proxy, request)
}

/// A request over HTTP/2.
fn http2(proxy: Meshed, request: Request<()>) -> Result<Answered> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let head = runtime.block_on(async { tokio::time::timeout(SOON, exchange(proxy.outbound, request)).await })??;
    let code = head.1.get("mesh-error").map(|code| String::from_utf8_lossy(code.as_bytes()).into_owned());
    Ok(Answered { proxy, code, status: head.0 })
}

async fn exchange(address: SocketAddr, request: Request<()>) -> Result<(u16, HeaderMap)> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    let (client, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let mut client = client.ready().await?;
    // The other side allows extended CONNECT in its settings, which may be on their way.
    while request.method() == http::Method::CONNECT && !client.is_extended_connect_protocol_enabled() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let connect = request.method() == http::Method::CONNECT;
    let (response, mut body) = client.send_request(request, false)?;
    if !connect {
        body.send_data(Bytes::from_static(&[0; 5]), true)?;
    }
    let response = response.await?;
    Ok((response.status().as_u16(), response.headers().clone()))
}

fn invalid_request() -> Result<Answered> {
    // Refused before it is a request, and after.
    let malformed = "GET / HTTP/1.1\r\nhost: web\r\nbad header\r\n\r\n";
    let ambiguous = "GET http://other/ HTTP/1.1\r\nhost: web\r\nhost: web\r\n\r\n";
    let proxy = || Meshed::start(&towards(Protocol::Detect, vec![endpoint(app(b"")?, None)]), MANY);
    let first = proxy()?;
    let stream = TcpStream::connect(first.outbound)?;
    let first = answer(first, stream, ambiguous)?;
    super::check(MeshError::InvalidRequest, &first)?;
    let second = proxy()?;
    let stream = TcpStream::connect(second.outbound)?;
    answer(second, stream, malformed)
}

/// One request an hour is all there may be.
fn rate_limited() -> Result<Answered> {
    let application = app(b"HTTP/1.1 204 No Content\r\n\r\n")?;
    let rate_limits = serde_json::from_str(r#"[{"limit": {"requests": 1, "interval": "1h"}}]"#)?;
    let policy = PortPolicy { rate_limits, ..PortPolicy::default() };
    let inbound = InboundPolicy { ports: [(application.port(), policy)].into(), ..InboundPolicy::default() };
    let config = FileConfig { inbound, inbound_default: Some(application), ..FileConfig::default() };
    let proxy = Meshed::start(&config, MANY)?;
    let mut stream = TcpStream::connect(proxy.inbound)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(GET.as_bytes())?;
    let mut line = [0; 12];
    stream.read_exact(&mut line)?;
    ensure!(&line == b"HTTP/1.1 204", "{line:?}");
    let second = TcpStream::connect(proxy.inbound)?;
    answer(proxy, second, GET)
}

/// One connection is all there may be.
fn overload() -> Result<Answered> {
    let application = app(b"HTTP/1.1 204 No Content\r\n\r\n")?;
    let proxy = Meshed::start(&towards(Protocol::Detect, vec![endpoint(application, None)]), 1)?;
    let mut first = TcpStream::connect(proxy.outbound)?;
    first.set_read_timeout(Some(SOON))?;
    first.write_all(GET.as_bytes())?;
    let mut line = [0; 12];
    first.read_exact(&mut line)?;
    ensure!(&line == b"HTTP/1.1 204", "{line:?}");
    let second = TcpStream::connect(proxy.outbound)?;
    let answered = answer(proxy, second, GET)?;
    drop(first);
    Ok(answered)
}

/// The application has gone before the last of its callers.
fn draining() -> Result<Answered> {
    let config = FileConfig { inbound_default: Some(nobody()?), ..FileConfig::default() };
    let mut proxy = Meshed::start(&config, MANY)?;
    proxy.end()?;
    let stream = TcpStream::connect(proxy.inbound)?;
    answer(proxy, stream, GET)
}

/// An authority and what it issued, as files.
struct Authority {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Result<Self> {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate()?)?;
        Ok(Self { issuer, folder: TempDir::new()? })
    }

    fn issue(&self, identity: &SpiffeId) -> Result<FileIdentity> {
        use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(identity.to_string().try_into()?)];
        params.extended_key_usages = vec![ServerAuth, ClientAuth];
        let write = |name: &str, text: &str| -> Result<std::path::PathBuf> {
            let path = self.folder.path().join(format!("{}-{name}", identity.service_account));
            std::fs::write(&path, text)?;
            Ok(path)
        };
        Ok(FileIdentity {
            certificate: write("tls.crt", &params.signed_by(&key, &self.issuer)?.pem())?,
            key: write("tls.key", &key.serialize_pem())?,
            anchors: write("ca.crt", &self.issuer.pem())?,
        })
    }
}
