//! Whole conversations over a real TLS socket, as a proxy has them.

use super::*;
use crate::ca::Authority;
use crate::ca::tests::{authority, request};
use crate::certify::Certifier;
use crate::issuer::IssuerKeeper;
use crate::serve;
use crate::world::egress_policy::EgressPolicyView;
use crate::world::tests::{pod, service, slice};
use crate::world::view::{PodView, ServiceView, SliceView};
use arc_swap::ArcSwapOption;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use mesh_api::Protocol;
use mesh_api::golden::ProxyFrame;
use mesh_manifests::config::MeshConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

/// A control plane that listens, and its parts.
pub(crate) struct Control {
    pub(crate) address: SocketAddr,
    authority: Arc<Authority>,
    pub(crate) streams: Arc<Streams>,
    /// How it calls other replicas.
    pub(crate) client: Arc<ArcSwapOption<ClientConfig>>,
    told: watch::Sender<Option<issuer::Told>>,
}

impl Control {
    pub(crate) async fn start() -> Self {
        Self::with(Arc::new(authority())).await
    }

    /// A further replica of the same mesh.
    pub(crate) async fn beside(&self) -> Self {
        Self::with(self.authority.clone()).await
    }

    async fn with(authority: Arc<Authority>) -> Self {
        let metrics = Arc::new(Metrics::new());
        let issuer = IssuerKeeper {
            identity: SpiffeId::new("cluster.local", "mesh-system", "mesh-control"),
            authority: Arc::new(ArcSwapOption::from(Some(authority.clone()))),
            tls: Arc::default(),
            client: Arc::default(),
            told: watch::Sender::new(None),
            metrics: metrics.clone(),
        };
        issuer.renew();
        let unavailable = tower::service_fn(|_: Request<kube::client::Body>| async {
            Err::<Response<kube::client::Body>, _>(std::io::Error::other("there is no API server"))
        });
        let client = kube::Client::new(unavailable, "default");
        let certifier = Certifier::new(client, "cluster.local", issuer.authority.clone(), metrics.clone());
        let streams = Arc::new(Streams {
            subscriptions: Subscriptions::new(Arc::new(MeshConfig::default())),
            golden: Golden::new(metrics.clone(), "cluster.local"),
            taps: Taps::new(metrics.clone()),
            shares: Arc::default(),
            trust: issuer.told.subscribe(),
            metrics,
            stop: CancellationToken::new(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve::serve(listener, issuer.tls.clone(), Arc::new(certifier), streams.clone()));
        let control = Self { address, authority, streams, client: issuer.client.clone(), told: issuer.told.clone() };
        control.put_service(json!([{"name": "http", "port": 80}]));
        control.put_slice(json!([{"addresses": ["10.244.0.5"]}, {"addresses": ["10.244.0.6"]}]));
        control.put_pod("web-1", "10.244.0.5");
        control
    }

    fn put_service(&self, ports: Value) {
        let object: Service = serde_json::from_value(service("web", "10.96.0.7", ports)).unwrap();
        self.streams.subscriptions.apply(Name::of(&object.metadata), ServiceView::from(&object));
    }

    fn put_slice(&self, endpoints: Value) {
        let ports = json!([{"name": "http", "port": 8080}, {"name": "grpc", "port": 8080}]);
        let object: EndpointSlice = serde_json::from_value(slice("web", ports, endpoints)).unwrap();
        self.streams.subscriptions.apply(Name::of(&object.metadata), SliceView::from(&object));
    }

    pub(crate) fn put_pod(&self, name: &str, ip: &str) {
        let object: Pod = serde_json::from_value(pod(name, "web", ip, true)).unwrap();
        self.streams.subscriptions.apply(Name::of(&object.metadata), PodView::from(&object));
    }

    /// Opens a stream with a certificate for `proven` (or none) and says Hello.
    pub(crate) async fn hello(
        &self,
        proven: Option<&SpiffeId>,
        claimed: &SpiffeId,
        pod: &str,
    ) -> Result<Proxy, (u16, String)> {
        let mut sender = self.connect(proven).await;
        let (lines, queue) = mpsc::channel::<Bytes>(16);
        let hello = ProxyMessage::Hello {
            namespace: claimed.namespace.clone(),
            pod: pod.to_owned(),
            version: "0".to_owned(),
            identity: claimed.clone(),
        };
        say(&lines, &hello).await;
        let body = futures::stream::unfold(queue, |mut queue| async move {
            queue.recv().await.map(|line| (Ok::<_, std::io::Error>(Frame::data(line)), queue))
        });
        let request = Request::post(format!("https://control{}", mesh_api::names::PROXY_STREAM_PATH));
        let response = sender.send_request(request.body(StreamBody::new(body).boxed_unsync()).unwrap()).await.unwrap();
        if response.status() != StatusCode::OK {
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            return Err((status, String::from_utf8_lossy(&body).into_owned()));
        }
        Ok(Proxy { lines, heard: Lines::new(response.into_body(), limits::LINE_BYTES), _sender: sender })
    }

    /// The status of the answer to a GET with a certificate for `proven` (or none).
    pub(crate) async fn get(&self, proven: Option<&SpiffeId>, path: &str) -> StatusCode {
        let request = Request::get(format!("https://control{path}"));
        let body = http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
        self.connect(proven).await.send_request(request.body(body).unwrap()).await.unwrap().status()
    }

    async fn connect(&self, proven: Option<&SpiffeId>) -> http2::SendRequest<Body> {
        let builder = ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = match proven {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (chain, key, _) = self.authority.own(identity, SystemTime::now()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("control").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

/// The proxy's side of a conversation.
pub(crate) struct Proxy {
    lines: mpsc::Sender<Bytes>,
    heard: Lines<Incoming>,
    _sender: http2::SendRequest<Body>,
}

async fn say(lines: &mpsc::Sender<Bytes>, message: &ProxyMessage) {
    let mut line = serde_json::to_vec(message).unwrap();
    line.push(b'\n');
    lines.send(line.into()).await.unwrap();
}

impl Proxy {
    pub(crate) async fn say(&self, message: ProxyMessage) {
        say(&self.lines, &message).await;
    }

    /// The next message, but for those about egress, which every proxy hears first.
    pub(crate) async fn hear(&mut self) -> ControlMessage {
        loop {
            match self.hear_any().await {
                ControlMessage::Egress { .. } => {}
                message => return message,
            }
        }
    }

    async fn hear_any(&mut self) -> ControlMessage {
        let line = timeout(Duration::from_secs(10), self.heard.next()).await.expect("control says something");
        serde_json::from_slice(&line.unwrap().expect("the stream goes on")).unwrap()
    }

    async fn hear_update(&mut self) -> (SocketAddr, Option<mesh_api::Destination>, Option<EndpointsChange>) {
        match self.hear().await {
            ControlMessage::Update { address, destination, endpoints, .. } => (address, destination, endpoints),
            other => panic!("expected an update: {other:?}"),
        }
    }
}

/// Trusts any server: who control is, proxies check; here it is not the question.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
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
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

pub(crate) fn web() -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", "web")
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_proxy_hears_everything_once_and_then_only_differences() {
    let control = Control::start().await;
    control.streams.subscriptions.set_synced();
    let mut proxy = control.hello(Some(&web()), &web(), "web-1").await.unwrap_or_else(|e| panic!("{e:?}"));
    let ControlMessage::Inbound { policy, .. } = proxy.hear().await else { panic!("the inbound policy comes first") };
    assert_eq!(policy.workload.unwrap().name, "web");
    assert!(policy.ports.contains_key(&5432), "a port that is usually opaque");

    proxy.say(ProxyMessage::Subscribe { address: address("10.96.0.7:80") }).await;
    let (about, destination, endpoints) = proxy.hear_update().await;
    assert_eq!(about, address("10.96.0.7:80"));
    assert_eq!(destination.unwrap().protocol, Protocol::Http1);
    let mut list = Vec::new();
    let first = endpoints.unwrap();
    assert!(first.reset);
    first.apply(&mut list);
    let addresses: Vec<_> = list.iter().map(|e| e.address.to_string()).collect();
    assert_eq!(addresses, ["10.244.0.5:8080", "10.244.0.6:8080"]);
    assert_eq!((list[0].identity.clone(), list[1].identity.clone()), (Some(web()), None));

    // One endpoint goes, one comes: nothing else is said. What concerns nobody is not said at all.
    control.put_pod("cart-1", "10.244.0.99");
    control.put_slice(json!([{"addresses": ["10.244.0.5"]}, {"addresses": ["10.244.0.7"]}]));
    let (_, destination, endpoints) = proxy.hear_update().await;
    let change = endpoints.unwrap();
    assert_eq!((destination, change.reset, change.upsert.len()), (None, false, 1));
    assert_eq!(change.remove, [address("10.244.0.6:8080")]);
    // A pod that turns out to be meshed changes its endpoint.
    control.put_pod("web-2", "10.244.0.7");
    let (_, _, endpoints) = proxy.hear_update().await;
    assert_eq!(endpoints.unwrap().upsert[0].identity, Some(web()));
    // Forgotten and asked again: the whole answer again.
    proxy.say(ProxyMessage::Unsubscribe { address: address("10.96.0.7:80") }).await;
    proxy.say(ProxyMessage::Subscribe { address: address("10.96.0.7:80") }).await;
    let (_, destination, endpoints) = proxy.hear_update().await;
    assert!(destination.is_some() && endpoints.unwrap().reset);
}

#[tokio::test]
async fn what_may_leave_is_told_before_any_address_and_when_it_changes() {
    let control = Control::start().await;
    control.streams.subscriptions.set_synced();
    let mut proxy = control.hello(Some(&web()), &web(), "web-1").await.unwrap_or_else(|e| panic!("{e:?}"));
    assert!(matches!(proxy.hear_any().await, ControlMessage::Inbound { .. }));
    // Also if it is everything: the proxy may remember something else.
    let ControlMessage::Egress { policy, .. } = proxy.hear_any().await else { panic!("what may leave") };
    assert!(policy.is_default());
    let spec = serde_json::from_value(json!({"rules": [{"hosts": ["api.example.com"]}]})).unwrap();
    let view = EgressPolicyView { spec, ..EgressPolicyView::default() };
    control.streams.subscriptions.apply(Name::new("shop", "out"), view);
    let ControlMessage::Egress { policy, .. } = proxy.hear_any().await else { panic!("what may leave now") };
    assert_eq!((policy.default, policy.default_by.as_deref()), (mesh_api::EgressDefault::Deny, Some("shop/out")));
}

#[tokio::test]
async fn nothing_is_answered_before_everything_is_listed() {
    let control = Control::start().await;
    let mut proxy = control.hello(Some(&web()), &web(), "web-1").await.unwrap_or_else(|e| panic!("{e:?}"));
    proxy.say(ProxyMessage::Subscribe { address: address("10.96.0.7:80") }).await;
    let early = timeout(Duration::from_millis(200), proxy.heard.next()).await;
    assert!(early.is_err(), "an answer from half a world");
    control.streams.subscriptions.set_synced();
    assert!(matches!(proxy.hear().await, ControlMessage::Inbound { .. }));
    assert_eq!(proxy.hear_update().await.0, address("10.96.0.7:80"));
}

#[tokio::test]
async fn golden_frames_come_from_whoever_is_watched() {
    let control = Control::start().await;
    control.streams.subscriptions.set_synced();
    let mut proxy = control.hello(Some(&web()), &web(), "web-1").await.unwrap_or_else(|e| panic!("{e:?}"));
    assert!(matches!(proxy.hear().await, ControlMessage::Inbound { .. }));
    let scope = crate::golden::Scope { namespace: Some("shop".to_owned()), workload: None };
    let mut watch = control.streams.golden.watch(scope, 60, false, Instant::now(), 100_321).unwrap();
    let observe = ControlMessage::Observe { backfill_s: 60, since_ms: 0, until_ms: 100_000, untold: false };
    assert_eq!(proxy.hear().await, observe);
    let frame = ProxyFrame { at_ms: 5, span_ms: 4_000, series: vec![], endpoints: vec![] };
    proxy.say(ProxyMessage::Golden { frame, backfill: true }).await;
    let subscriptions = control.streams.subscriptions.clone();
    let merged = watch.next(|look| subscriptions.read(|world| look(world)), || 9).await;
    assert_eq!((merged.at_ms, merged.span_ms, merged.silent_proxies), (9, 4_000, 0));
    let web = merged.workloads.iter().find(|status| status.workload.name == "web").unwrap();
    assert_eq!((web.pods, web.meshed_pods, web.connected), (1, 1, 1));
    drop(watch);
    assert_eq!(proxy.hear().await, ControlMessage::StopObserve {});
}

#[tokio::test]
async fn a_proxy_speaks_only_for_its_own_pod() {
    let control = Control::start().await;
    let cart = SpiffeId::new("cluster.local", "shop", "cart");
    let refused = async |proven: Option<&SpiffeId>, claimed: &SpiffeId, pod: &str| {
        control.hello(proven, claimed, pod).await.err().map(|(status, _)| status)
    };
    assert_eq!(refused(None, &web(), "web-1").await, Some(401));
    assert_eq!(refused(Some(&cart), &web(), "web-1").await, Some(403));
    assert_eq!(refused(Some(&cart), &cart, "web-1").await, Some(403), "the pod runs as web");
    assert_eq!(refused(Some(&web()), &web(), "web-1").await, None);
}

#[tokio::test]
async fn a_certificate_of_another_authority_gets_nowhere() {
    let control = Control::start().await;
    let (address, streams, client) = (control.address, control.streams.clone(), control.client.clone());
    let other = Control { authority: Arc::new(authority()), address, streams, client, told: control.told.clone() };
    let attempt = tokio::spawn(async move {
        let proxy = other.hello(Some(&web()), &web(), "web-1").await;
        proxy.map(|_| ()).map_err(|_| ())
    });
    // TLS 1.3 tells the client of it only with the first answer: the request fails.
    assert!(attempt.await.is_err(), "the connection was used");
}

#[tokio::test]
async fn whom_to_trust_is_told_at_the_beginning_and_whenever_it_changes() {
    let control = Control::start().await;
    let tell = |anchors: &str, issuer: &str| {
        let (anchors_pem, issuer) = (anchors.to_owned(), issuer.to_owned());
        control.told.send_replace(Some(issuer::Told { anchors_pem, issuer }));
    };
    tell("one", "a");
    // The world need not be known for that.
    let mut proxy = control.hello(Some(&web()), &web(), "web-1").await.unwrap_or_else(|e| panic!("{e:?}"));
    for (anchors, issuer) in [("one", "a"), ("both", "a"), ("both", "b")] {
        if anchors != "one" {
            tell(anchors, issuer);
        }
        let ControlMessage::Trust { anchors_pem, issuer: told, renew_within_ms } = proxy.hear_any().await else {
            panic!("whom to trust")
        };
        assert_eq!((anchors_pem.as_str(), told.as_str()), (anchors, issuer));
        assert!(renew_within_ms < 1000, "one proxy need not spread");
    }
    let many = issuer::Told { anchors_pem: String::new(), issuer: String::new() };
    assert!(matches!(many.message(1000), ControlMessage::Trust { renew_within_ms: 20_000, .. }));
}

#[tokio::test]
async fn stopping_ends_every_stream() {
    let control = Control::start().await;
    control.streams.subscriptions.set_synced();
    let mut proxy = control.hello(Some(&web()), &web(), "web-1").await.unwrap_or_else(|e| panic!("{e:?}"));
    assert!(matches!(proxy.hear().await, ControlMessage::Inbound { .. }));
    assert!(matches!(proxy.hear_any().await, ControlMessage::Egress { .. }));
    control.streams.stop.cancel();
    let end = timeout(Duration::from_secs(5), proxy.heard.next()).await.expect("an end");
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
}

#[tokio::test]
async fn certificates_are_asked_for_without_one() {
    let control = Control::start().await;
    let mut sender = control.connect(None).await;
    let (csr_pem, _) = request(vec![]);
    let body = serde_json::to_vec(&mesh_api::CertifyRequest { csr_pem, token: "t".to_owned() }).unwrap();
    let request = Request::post(format!("https://control{}", mesh_api::names::CERTIFY_PATH));
    let body = http_body_util::Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
    let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
    // The API server of this test does not answer: nobody can vouch for the token.
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

mod route;
