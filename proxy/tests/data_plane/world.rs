//! What the tests are made of: a certificate authority, proxies, applications and clients.

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_api::config::{FileConfig, FileDestination, FileIdentity};
use mesh_api::{Destination, Endpoint, Protocol, ServiceRef, SpiffeId, WorkloadRef};
use mesh_proxy::listen;
use mesh_proxy::proxy::{Settings, Source};
use mesh_proxy::run::{Listeners, run};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// Patience for what should come at once.
pub const SOON: Duration = Duration::from_secs(20);
/// The address the tests' service is called by.
pub const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 9)), 80);

/// A certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Certificate chain, key and anchors, PEM.
pub struct Pems {
    pub chain: String,
    pub key: String,
    pub anchors: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub fn anchors(&self) -> String {
        self.issuer.pem()
    }

    pub fn issue(&self, identity: &SpiffeId) -> Pems {
        self.issue_for_hours(identity, 24)
    }

    pub fn issue_for_hours(&self, identity: &SpiffeId, hours: i64) -> Pems {
        let key = KeyPair::generate().unwrap();
        let mut params = self.params(identity);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(hours);
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pems { chain, key: key.serialize_pem(), anchors: self.anchors() }
    }

    /// A certificate for a signing request, whatever it asks for.
    pub fn sign(&self, csr_pem: &str, identity: &SpiffeId) -> String {
        let mut csr = rcgen::CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        csr.params = self.params(identity);
        csr.signed_by(&self.issuer).unwrap().pem()
    }

    fn params(&self, identity: &SpiffeId) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = time::OffsetDateTime::now_utc() - time::Duration::hours(1);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(24);
        params
    }
}

/// The identity of a service account in the tests' namespace.
pub fn account(name: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", name)
}

/// A proxy on a thread of its own.
pub struct Proxy {
    pub inbound: SocketAddr,
    pub outbound: SocketAddr,
    pub admin: SocketAddr,
    pub config: PathBuf,
    dir: TempDir,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl Proxy {
    /// Starts a proxy with `config`; `pems` becomes its identity.
    pub fn start(config: FileConfig, pems: Option<&Pems>) -> Self {
        Self::start_with(config, pems, |_| {})
    }

    /// The same with other settings.
    pub fn start_with(mut config: FileConfig, pems: Option<&Pems>, change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        if let Some(pems) = pems {
            let write = |name: &str, text: &str| {
                let path = dir.path().join(name);
                std::fs::write(&path, text).unwrap();
                path
            };
            config.identity = Some(FileIdentity {
                certificate: write("tls.crt", &pems.chain),
                key: write("tls.key", &pems.key),
                anchors: write("ca.crt", &pems.anchors),
            });
        }
        let path = dir.path().join("proxy.json");
        std::fs::write(&path, serde_json::to_string(&config).unwrap()).unwrap();
        Self::launch_with(Source::File(path.clone()), path, dir, change)
    }

    fn launch_with(source: Source, config: PathBuf, dir: TempDir, change: impl FnOnce(&mut Settings)) -> Self {
        let bind = || listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listeners = Listeners { inbound: bind(), outbound: bind(), admin: bind() };
        let [inbound, outbound, admin] =
            [&listeners.inbound, &listeners.outbound, &listeners.admin].map(|l| l.local_addr().unwrap());
        let mut settings = Settings {
            source,
            pod_ips: Vec::new(),
            outlive_application: false,
            drain_linger: Duration::from_millis(300),
            max_connections: 1000,
            max_handshakes: 100,
            drain_timeout: Duration::from_secs(10),
            workers: 1,
            access_log: Default::default(),
            tracing: Default::default(),
        };
        change(&mut settings);
        let (end, ended) = oneshot::channel();
        let thread = std::thread::spawn(move || run(settings, listeners, async { drop(ended.await) }));
        Self { inbound, outbound, admin, config, dir, end: Some(end), thread: Some(thread) }
    }

    /// Replaces the configuration file, keeping the identity.
    pub fn rewrite(&self, mut config: FileConfig) {
        let path = |name: &str| self.dir.path().join(name);
        if path("tls.crt").exists() {
            config.identity =
                Some(FileIdentity { certificate: path("tls.crt"), key: path("tls.key"), anchors: path("ca.crt") });
        }
        std::fs::write(&self.config, serde_json::to_string(&config).unwrap()).unwrap();
    }

    /// Replaces certificate, key and anchors, one after the other.
    pub fn replace_identity(&self, pems: &Pems) {
        for (name, text) in [("tls.crt", &pems.chain), ("tls.key", &pems.key), ("ca.crt", &pems.anchors)] {
            std::fs::write(self.dir.path().join(name), text).unwrap();
        }
    }

    /// Its private key.
    pub fn key(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("tls.key")).unwrap()
    }

    /// Tells it to end, without waiting.
    pub fn shut_down(&mut self) {
        drop(self.end.take());
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) {
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(|| thread.join().unwrap().unwrap()).await.unwrap();
    }

    /// What a path of the admin port says.
    pub async fn admin(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    /// Sum of all samples of a metric whose labels contain every one of `labels`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.admin("/metrics").await;
        let samples =
            text.lines().filter(|l| l.starts_with(&format!("{name}{{")) && labels.iter().all(|x| l.contains(x)));
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Waits until a metric has a value: records close a moment after the client has its answer.
    pub async fn expect_metric(&self, name: &str, labels: &[&str], expect: f64) {
        let reached = async {
            while self.metric(name, labels).await != expect {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), reached).await.is_err() {
            panic!("{name} {labels:?} is not {expect}:\n{}", self.admin("/metrics").await);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.end.take());
    }
}

/// A proxy whose inbound side stands before `app`.
pub fn server(authority: &Authority, name: &str, app: SocketAddr) -> Proxy {
    let config = FileConfig { inbound_default: Some(app), ..FileConfig::default() };
    Proxy::start(config, Some(&authority.issue(&account(name))))
}

/// The configuration of a client whose outbound side leads to `endpoints`.
pub fn towards(protocol: Protocol, endpoints: Vec<Endpoint>) -> FileConfig {
    let service = Some(ServiceRef { namespace: "shop".into(), name: "web".into(), port: 80 });
    let destination = Destination { service, protocol, external: false, cluster: false, routes: None, policy: None };
    FileConfig {
        destinations: vec![FileDestination { address: SERVICE, destination, endpoints, backends: Vec::new() }],
        outbound_default: Some(SERVICE),
        ..FileConfig::default()
    }
}

/// A proxy whose outbound side leads to `endpoints`.
pub fn client(authority: &Authority, endpoints: Vec<Endpoint>) -> Proxy {
    Proxy::start(towards(Protocol::Detect, endpoints), Some(&authority.issue(&account("load"))))
}

/// An endpoint of the workload `web`.
pub fn endpoint(address: SocketAddr, identity: Option<SpiffeId>) -> Endpoint {
    let workload = WorkloadRef::new("shop", "deployment", "web");
    Endpoint { address, identity, workload, pod: format!("web-{}", address.port()), zone: None }
}

/// Client proxy, server proxy and an application that speaks HTTP.
pub async fn mesh() -> (Proxy, Proxy, App) {
    let authority = Authority::new();
    let app = App::start().await;
    let web = server(&authority, "web", app.address);
    let load = client(&authority, vec![endpoint(web.inbound, Some(account("web")))]);
    (load, web, app)
}

/// The first flight of a TLS client that asks for `example.org` and offers `alpn`.
pub fn client_hello(alpn: &[&[u8]]) -> Vec<u8> {
    let mut config = rustls::ClientConfig::builder_with_provider(mesh_proxy::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let mut tls = rustls::ClientConnection::new(config.into(), "example.org".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    hello
}

type Body = BoxBody<Bytes, hyper::Error>;

/// An HTTP/1 and HTTP/2 application.
pub struct App {
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
}

impl App {
    pub async fn start() -> Self {
        Self::slow(Duration::ZERO).await
    }

    /// One that takes its time for every answer.
    pub async fn slow(delay: Duration) -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.unwrap(), delay)
    }

    /// One with a certain address.
    pub async fn start_at(address: SocketAddr) -> Self {
        Self::serve(TcpListener::bind(address).await.unwrap(), Duration::ZERO)
    }

    fn serve(listener: TcpListener, delay: Duration) -> Self {
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let counter = counter.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        counter.fetch_add(1, Ordering::Relaxed);
                        async move {
                            tokio::time::sleep(delay).await;
                            Ok::<_, Infallible>(answer(request).await)
                        }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, requests }
    }

    pub fn count(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

async fn answer(mut request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if request.headers().get("content-type").is_some_and(|t| t == "application/grpc") {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", if path.ends_with("Fail") { "13" } else { "0" }.parse().unwrap());
        let padding = path.ends_with("Padded").then(|| Ok(Frame::data(Bytes::new())));
        let frames: Vec<_> =
            [Some(Ok(Frame::data(body))), padding, Some(Ok(Frame::trailers(trailers)))].into_iter().flatten().collect();
        let body = StreamBody::new(futures::stream::iter(frames));
        return Response::builder().header("content-type", "application/grpc").body(BodyExt::boxed(body)).unwrap();
    }
    if request.headers().contains_key("upgrade") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 4];
            io.read_exact(&mut word).await.unwrap();
            word.reverse();
            io.write_all(&word).await.unwrap();
        });
        return Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "reverse")
            .body(full(""))
            .unwrap();
    }
    match path.as_str() {
        "/echo" => Response::new(request.into_body().boxed()),
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(1200)).await;
            Response::new(full("slow"))
        }
        "/busy" => Response::builder().status(429).header("retry-after", "60").body(full("later")).unwrap(),
        "/never" => std::future::pending().await,
        "/headers" => Response::new(full(format!("{:?}", request.headers()))),
        "/empty" => Response::builder().status(StatusCode::NO_CONTENT).body(full("")).unwrap(),
        "/fail" => Response::builder().status(StatusCode::INTERNAL_SERVER_ERROR).body(full("no")).unwrap(),
        _ => Response::builder().header("mesh-error", "forged").body(full("hello")).unwrap(),
    }
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// What a client got.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Got {
    async fn from(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned();
        Self { status: parts.status.as_u16(), headers: parts.headers, body: body.to_bytes(), trailers }
    }

    pub fn error(&self) -> Option<&str> {
        self.headers.get("mesh-error").map(|v| v.to_str().unwrap())
    }
}

/// A connection of an HTTP client.
pub enum Http {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Http {
    pub async fn one(address: SocketAddr) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Http::One(sender)
    }

    pub async fn two(address: SocketAddr) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        Http::Two(sender)
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Got {
        Got::from(self.raw(request).await).await
    }

    pub async fn raw(&mut self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let response = match self {
            Http::One(sender) => {
                sender.ready().await.unwrap();
                tokio::time::timeout(SOON, sender.send_request(request)).await
            }
            Http::Two(sender) => {
                sender.ready().await.unwrap();
                tokio::time::timeout(SOON, sender.send_request(request)).await
            }
        };
        response.expect("no answer in time").unwrap()
    }

    pub async fn get(&mut self, path: &str) -> Got {
        let request = match self {
            Http::One(_) => Request::get(path).header("host", "web"),
            Http::Two(_) => Request::get(format!("http://web{path}")),
        };
        self.send(request.body(Full::default()).unwrap()).await
    }

    pub async fn post(&mut self, path: &str, body: &'static str) -> Got {
        let request = match self {
            Http::One(_) => Request::post(path).header("host", "web"),
            Http::Two(_) => Request::post(format!("http://web{path}")),
        };
        self.send(request.body(Full::new(Bytes::from(body))).unwrap()).await
    }

    pub async fn grpc(&mut self, path: &str, body: &'static str) -> Got {
        let request = Request::post(format!("http://web{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        self.send(request.body(Full::new(Bytes::from(body))).unwrap()).await
    }
}
