//! The conversation with control, against a control plane of thirty lines.

use crate::world::*;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_api::golden::{Direction, TlsStatus};
use mesh_api::tap::{TapLeftOut, TapOrder};
use mesh_api::wire::{ControlMessage, ProxyMessage};
use mesh_api::{
    CertifyRequest, CertifyResponse, Destination, EndpointsChange, InboundPolicy, Protocol, SpiffeId, WorkloadRef,
};
use mesh_proxy::client::{self, Control};
use mesh_proxy::proxy::{Proxy as Shared, Settings, Source};
use mesh_proxy::{identity, request};
use rustls_pki_types::pem::PemObject;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// What the tests see of a stream: what the proxy says, and a way to answer.
struct Session {
    heard: mpsc::UnboundedReceiver<ProxyMessage>,
    say: mpsc::UnboundedSender<ControlMessage>,
}

impl Session {
    fn say(&self, message: ControlMessage) {
        self.say.send(message).unwrap();
    }

    async fn hear(&mut self) -> ProxyMessage {
        tokio::time::timeout(SOON, self.heard.recv()).await.expect("nothing heard").expect("the stream has ended")
    }
}

/// A control plane that certifies whoever brings the right token and hands every stream to the test.
struct Plane {
    address: SocketAddr,
    sessions: mpsc::UnboundedReceiver<Session>,
    task: tokio::task::JoinHandle<()>,
}

fn control_identity() -> SpiffeId {
    SpiffeId::new("cluster.local", "mesh-system", "mesh-control")
}

impl Plane {
    async fn start(authority: &Arc<Authority>, address: SocketAddr) -> Self {
        let pems = authority.issue(&control_identity());
        let chain =
            rustls_pki_types::CertificateDer::pem_slice_iter(pems.chain.as_bytes()).map(Result::unwrap).collect();
        let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(pems.key.as_bytes()).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(mesh_proxy::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::from_std(mesh_proxy::listen::bind(address).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (report, sessions) = mpsc::unbounded_channel();
        let authority = authority.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, authority, report) = (acceptor.clone(), authority.clone(), report.clone());
                connections.spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request| {
                        let response = answer(authority.clone(), report.clone(), request);
                        async move { Ok::<_, Infallible>(response.await) }
                    });
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        Self { address, sessions, task }
    }

    async fn session(&mut self) -> Session {
        tokio::time::timeout(SOON, self.sessions.recv()).await.expect("no stream").unwrap()
    }
}

async fn answer(
    authority: Arc<Authority>,
    report: mpsc::UnboundedSender<Session>,
    request: Request<Incoming>,
) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
    let boxed = |text: String| Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    if request.uri().path() == "/v1/certify" {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let CertifyRequest { csr_pem, token } = serde_json::from_slice(&body).unwrap();
        if token != "good token" {
            return Response::builder().status(401).body(boxed("the token is not valid".into())).unwrap();
        }
        let chain_pem = authority.sign(&csr_pem, &account("web"));
        let answer = CertifyResponse { chain_pem, anchors_pem: authority.anchors(), expires_at: 0, issuer: None };
        return Response::new(boxed(serde_json::to_string(&answer).unwrap()));
    }
    let (hear, heard) = mpsc::unbounded_channel();
    let (say, said) = mpsc::unbounded_channel::<ControlMessage>();
    tokio::spawn(async move {
        let (mut body, mut text) = (request.into_body(), Vec::new());
        while let Some(Ok(frame)) = body.frame().await {
            text.extend_from_slice(frame.data_ref().unwrap());
            while let Some(end) = text.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let _ = hear.send(serde_json::from_slice(&line).unwrap());
            }
        }
    });
    report.send(Session { heard, say }).unwrap();
    let lines = futures::stream::unfold(said, |mut said| async move {
        let line = serde_json::to_string(&said.recv().await?).unwrap() + "\n";
        Some((Ok::<_, io::Error>(Frame::data(Bytes::from(line))), said))
    });
    Response::new(StreamBody::new(lines).boxed_unsync())
}

/// A proxy that follows the plane, with the parts of it that run on the control thread.
struct Follower {
    proxy: Arc<Shared>,
    tasks: tokio::task::JoinSet<()>,
}

fn follow(authority: &Authority, plane: &Plane, token: &std::path::Path) -> Follower {
    let control = Control {
        address: plane.address.to_string(),
        identity: control_identity(),
        anchors: authority.anchors(),
        token_file: token.to_owned(),
        own: account("web"),
        pod: "web-1".to_owned(),
    };
    let settings = Settings {
        source: Source::Control(Box::new(control.clone())),
        pod_ips: Vec::new(),
        outlive_application: false,
        drain_linger: Duration::ZERO,
        max_connections: 1000,
        max_handshakes: 100,
        drain_timeout: Duration::ZERO,
        workers: 1,
        access_log: Default::default(),
        tracing: Default::default(),
    };
    let proxy = Arc::new(Shared::new(settings, 4143, 4140));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(client::tick(proxy.clone()));
    let follower = proxy.clone();
    tasks.spawn(async move {
        identity::obtain(&follower, &control).await;
        client::follow(follower, &control).await;
    });
    Follower { proxy, tasks }
}

fn token(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, text).unwrap();
    file
}

fn update(version: u64, change: EndpointsChange) -> ControlMessage {
    let destination = Destination {
        service: None,
        protocol: Protocol::Http1,
        external: false,
        cluster: false,
        routes: None,
        policy: None,
    };
    ControlMessage::Update {
        address: SERVICE,
        version,
        destination: Some(destination),
        endpoints: Some(change),
        backends: Vec::new(),
    }
}

fn reset(address: &str) -> EndpointsChange {
    EndpointsChange { reset: true, upsert: vec![endpoint(address.parse().unwrap(), None)], remove: vec![] }
}

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[tokio::test]
async fn a_destination_is_asked_about_answered_updated_and_observed() {
    let authority = Arc::new(Authority::new());
    let mut plane = Plane::start(&authority, anywhere()).await;
    let token = token("good token\n");
    let Follower { proxy, tasks: _tasks } = follow(&authority, &plane, token.path());
    let mut session = plane.session().await;
    let hello = ProxyMessage::Hello {
        namespace: "shop".into(),
        pod: "web-1".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        identity: account("web"),
    };
    assert_eq!(session.hear().await, hello);
    assert_eq!(proxy.credentials.current().unwrap().identity, account("web"));

    let target = proxy.state.target(SERVICE);
    assert_eq!(session.hear().await, ProxyMessage::Subscribe { address: SERVICE });
    session.say(update(1, reset("10.0.0.1:80")));
    assert_eq!(session.hear().await, ProxyMessage::Ack { version: 1 });
    let known = target.resolve(SOON).await;
    assert_eq!(known.group.backends[0].endpoint.address.to_string(), "10.0.0.1:80");

    session.say(update(2, reset("10.0.0.2:0")));
    let ProxyMessage::Reject { version: 2, reason } = session.hear().await else { panic!() };
    assert!(reason.contains("10.0.0.2:0"), "{reason}");
    assert_eq!(target.now().group.backends[0].endpoint.address.to_string(), "10.0.0.1:80");

    let workload = Some(WorkloadRef::new("shop", "deployment", "web"));
    session.say(ControlMessage::Inbound {
        version: 3,
        policy: InboundPolicy { workload: workload.clone(), ..Default::default() },
    });
    assert_eq!(session.hear().await, ProxyMessage::Ack { version: 3 });
    assert_eq!(Some(proxy.state.workload()), workload);

    session.say(ControlMessage::Unknown);
    session.say(ControlMessage::Heartbeat {});
    assert_eq!(session.hear().await, ProxyMessage::Heartbeat {});

    session.say(ControlMessage::Observe { backfill_s: 10, since_ms: 0, until_ms: 0, untold: false });
    for _ in 0..2 {
        assert!(matches!(session.hear().await, ProxyMessage::Golden { .. }));
    }
    assert_eq!(proxy.state.wanted(), [SERVICE]);
}

#[tokio::test]
async fn taps_are_ordered_refused_stopped_and_end_with_the_stream() {
    let authority = Arc::new(Authority::new());
    let mut plane = Plane::start(&authority, anywhere()).await;
    let token = token("good token");
    let Follower { proxy, tasks: _tasks } = follow(&authority, &plane, token.path());
    let mut session = plane.session().await;
    session.hear().await;
    let order = |id: u64, filter: &str| ControlMessage::Tap {
        order: TapOrder {
            id,
            filter: filter.to_owned(),
            from: None,
            to: None,
            max_rps: 1,
            sample: 1.0,
            headers: false,
            bodies: false,
            secrets: false,
        },
    };
    let on = |id| ProxyMessage::Tap { id, events: vec![], left_out: TapLeftOut::default() };
    session.say(order(7, "status=5xx"));
    assert_eq!(session.hear().await, on(7));
    session.say(order(8, "tomorrow=yes"));
    let ProxyMessage::TapEnded { id: 8, refusal: Some(why) } = session.hear().await else { panic!() };
    assert!(why.contains("at character 1"), "{why}");
    request::malformed(&Arc::new(request::Client {
        proxy: proxy.clone(),
        direction: Direction::Outbound,
        target: proxy.state.target(SERVICE),
        from: anywhere(),
        identity: None,
        scope: proxy.golden.scope(Direction::Outbound, &WorkloadRef::new("a", "b", "c"), None, 1),
        tls: TlsStatus::Plain,
        refusal: None,
    }));
    assert_eq!(session.hear().await, ProxyMessage::Subscribe { address: SERVICE });
    session.say(order(9, ""));
    assert_eq!(session.hear().await, on(9));
    session.say(ControlMessage::StopTap { id: 7 });
    assert_eq!(session.hear().await, ProxyMessage::TapEnded { id: 7, refusal: None });
    assert!(proxy.taps.on());
    drop(session);
    plane.task.abort();
    let ended = async {
        while proxy.taps.on() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, ended).await.expect("a tap outlives the stream it came over");
}

#[tokio::test]
async fn what_is_known_outlives_control_and_is_in_sync_soon_after_its_return() {
    let authority = Arc::new(Authority::new());
    let mut plane = Plane::start(&authority, anywhere()).await;
    let token = token("good token");
    let Follower { proxy, tasks: _tasks } = follow(&authority, &plane, token.path());
    let mut session = plane.session().await;
    session.hear().await;
    let target = proxy.state.target(SERVICE);
    session.hear().await;
    session.say(update(1, reset("10.0.0.1:80")));
    session.hear().await;

    let address = plane.address;
    plane.task.abort();
    drop((plane, session));
    while proxy.state.is_connected() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(1500)).await; // long enough for the pauses to have grown
    assert_eq!(target.now().group.backends[0].endpoint.address.to_string(), "10.0.0.1:80");
    assert!(proxy.is_ready());

    let mut plane = Plane::start(&authority, address).await;
    let back = Instant::now();
    let mut session = plane.session().await;
    assert!(matches!(session.hear().await, ProxyMessage::Hello { .. }));
    assert_eq!(session.hear().await, ProxyMessage::Subscribe { address: SERVICE });
    session.say(update(1, reset("10.0.0.7:80")));
    assert_eq!(session.hear().await, ProxyMessage::Ack { version: 1 });
    assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
    assert_eq!(target.now().group.backends[0].endpoint.address.to_string(), "10.0.0.7:80");
}

#[tokio::test]
async fn a_wrong_token_or_a_false_control_gets_nowhere() {
    let authority = Arc::new(Authority::new());
    let mut plane = Plane::start(&authority, anywhere()).await;
    let wrong = token("bad token");
    let refused = follow(&authority, &plane, wrong.path());
    let good = token("good token");
    let deceived = follow(&Authority::new(), &plane, good.path());
    assert!(tokio::time::timeout(Duration::from_millis(700), plane.sessions.recv()).await.is_err());
    for follower in [&refused, &deceived] {
        assert!(follower.proxy.credentials.current().is_none() && !follower.proxy.is_ready());
    }
    std::fs::write(&wrong, "good token").unwrap();
    plane.session().await; // the attempts have gone on
}
