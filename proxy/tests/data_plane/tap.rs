//! What taps see of real traffic, on either side, and what they never see.

use crate::world::*;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use mesh_api::config::{FileConfig, FileIdentity};
use mesh_api::golden::{Carried, Direction, TlsStatus};
use mesh_api::tap::{TapEnding, TapEvent, TapHttp, TapKind, TapLeftOut, TapOrder};
use mesh_api::wire::ProxyMessage;
use mesh_api::{MeshError, Protocol};
use mesh_proxy::proxy::{Proxy as Shared, Settings, Source};
use mesh_proxy::{file, inbound, outbound};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A proxy in this task's runtime, so that its taps are within reach.
struct Tapped {
    proxy: Arc<Shared>,
    inbound: SocketAddr,
    outbound: SocketAddr,
    _dir: TempDir,
}

impl Tapped {
    async fn start(mut config: FileConfig, pems: &Pems) -> Self {
        let dir = tempfile::tempdir().unwrap();
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
        let path = write("proxy.json", &serde_json::to_string(&config).unwrap());
        let bind = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (arriving, leaving) = (bind().await, bind().await);
        let [inbound, outbound] = [&arriving, &leaving].map(|listener| listener.local_addr().unwrap());
        let settings = Settings {
            source: Source::File(path.clone()),
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
        let proxy = Arc::new(Shared::new(settings, inbound.port(), outbound.port()));
        file::apply(&proxy, file::load(&path).unwrap());
        let served = proxy.clone();
        tokio::spawn(async move {
            while let Ok((tcp, from)) = arriving.accept().await {
                tokio::spawn(inbound::serve(served.clone(), tcp, from, None));
            }
        });
        let served = proxy.clone();
        tokio::spawn(async move {
            while let Ok((tcp, from)) = leaving.accept().await {
                tokio::spawn(outbound::serve(served.clone(), tcp, from, None));
            }
        });
        Self { proxy, inbound, outbound, _dir: dir }
    }

    fn tap(&self, order: TapOrder) {
        self.proxy.taps.start(order, Instant::now()).unwrap();
    }

    /// The next events, as many as asked for: records close a moment after the client has its answer.
    async fn events(&self, count: usize) -> Vec<TapEvent> {
        let (mut all, mut left) = (Vec::new(), TapLeftOut::default());
        let deadline = Instant::now() + SOON;
        while all.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} events: {all:#?}", all.len());
            for message in self.proxy.taps.due() {
                let ProxyMessage::Tap { events, left_out, .. } = message else { panic!("{message:?}") };
                all.extend(events);
                left.add(&left_out);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!((all.len(), left), (count, TapLeftOut::default()), "{all:#?}");
        all
    }

    async fn event(&self) -> TapEvent {
        self.events(1).await.remove(0)
    }
}

fn order(filter: &str) -> TapOrder {
    TapOrder {
        id: 1,
        filter: filter.to_owned(),
        from: None,
        to: None,
        max_rps: 1000,
        sample: 1.0,
        headers: false,
        bodies: false,
        secrets: false,
    }
}

/// Client proxy and server proxy before `app`.
async fn pair(app: SocketAddr) -> (Tapped, Tapped) {
    let authority = Authority::new();
    let config = FileConfig { inbound_default: Some(app), ..FileConfig::default() };
    let web = Tapped::start(config, &authority.issue(&account("web"))).await;
    let endpoints = vec![endpoint(web.inbound, Some(account("web")))];
    let load = Tapped::start(towards(Protocol::Detect, endpoints), &authority.issue(&account("load"))).await;
    (load, web)
}

fn http(event: &TapEvent) -> &TapHttp {
    event.http.as_ref().unwrap()
}

fn request(path: &str) -> hyper::http::request::Builder {
    Request::post(path).header("host", "web")
}

#[tokio::test]
async fn both_sides_see_a_request_whole() {
    let app = App::start().await;
    let (load, web) = pair(app.address).await;
    load.tap(order(""));
    web.tap(order(""));
    let mut client = Http::one(load.outbound).await;
    client.post("/echo?token=1", "question").await;

    let sent = load.event().await;
    assert_eq!((sent.direction, sent.event, sent.carried), (Direction::Outbound, TapKind::Request, Carried::Http));
    assert_eq!((sent.destination.address, sent.destination.identity.clone()), (web.inbound, Some(account("web"))));
    assert_eq!(sent.destination.workload.as_ref().unwrap().to_string(), "shop/deployment/web");
    assert_eq!(sent.service.as_ref().unwrap().name, "web");
    assert_eq!((sent.tls, sent.ending, sent.error), (TlsStatus::Mutual, Some(TapEnding::Orderly), None));
    assert_eq!((sent.read_bytes, sent.write_bytes), (8, 8));
    let TapHttp { method, authority, path, version, route, status, .. } = http(&sent);
    assert_eq!([method, authority, path, version, route], ["POST", "web", "/echo", "HTTP/1.1", "/echo"]);
    assert_eq!(*status, Some(200));
    assert!(http(&sent).first_byte_us.unwrap() <= sent.duration_us && sent.duration_us > 0);
    assert!(http(&sent).request_headers.is_empty() && http(&sent).request_body.is_none());

    let arrived = web.event().await;
    assert_eq!((arrived.direction, arrived.source.identity.clone()), (Direction::Inbound, Some(account("load"))));
    assert_eq!(arrived.source.workload.as_ref().unwrap().to_string(), "shop/serviceaccount/load");
    assert_eq!((arrived.destination.address, arrived.destination.identity), (app.address, Some(account("web"))));
}

#[tokio::test]
async fn filters_choose_by_what_is_known_at_the_end() {
    let app = App::start().await;
    let (load, web) = pair(app.address).await;
    for (filter, path) in [
        ("status=5xx", "/fail"),
        ("status=204", "/empty"),
        ("path=/echo method=POST", "/echo"),
        ("route=/headers", "/headers"),
        ("header=x-wanted=y*", "/wanted"),
        ("slower-than=1s", "/slow"),
        ("error=any", "/none-of-these"),
    ] {
        load.tap(order(filter));
        web.tap(order("direction=outbound"));
        let mut client = Http::one(load.outbound).await;
        for sent in ["/fail", "/empty", "/echo", "/headers", "/slow"] {
            if sent != "/slow" || path == "/slow" {
                client.post(sent, "x").await;
            }
        }
        let wanted = request("/wanted").header("x-wanted", "yes").body(Full::new(Bytes::from("x"))).unwrap();
        client.send(wanted).await;
        if path == "/none-of-these" {
            assert!(load.proxy.taps.due().is_empty() && web.proxy.taps.due().is_empty());
        } else {
            assert_eq!(http(&load.event().await).path, path, "{filter}");
        }
    }
}

#[tokio::test]
async fn grpc_and_http2_show_their_statuses() {
    let app = App::start().await;
    let (load, web) = pair(app.address).await;
    web.tap(order("grpc-status=Internal"));
    load.tap(order(""));
    let mut client = Http::two(load.outbound).await;
    client.grpc("/shop.Cart/Add", "x").await;
    client.grpc("/shop.Cart/Fail", "x").await;
    client.get("/empty").await;
    let failed = web.event().await;
    assert_eq!((failed.carried, http(&failed).grpc_status), (Carried::Grpc, Some(13)));
    assert_eq!((http(&failed).path.as_str(), http(&failed).route.as_str()), ("/shop.Cart/Fail", "/shop.Cart/Fail"));
    assert_eq!(http(&failed).version, "HTTP/2.0");
    let seen = load.events(3).await;
    let statuses: Vec<_> = seen.iter().map(|event| (http(event).status.unwrap(), http(event).grpc_status)).collect();
    assert_eq!(statuses, [(200, Some(0)), (200, Some(13)), (204, None)]);
    assert_eq!(http(&seen[2]).authority, "web");
}

#[tokio::test]
async fn secrets_stay_and_bodies_are_cut() {
    let app = App::start().await;
    let (load, web) = pair(app.address).await;
    load.tap(TapOrder { headers: true, bodies: true, ..order("") });
    web.tap(TapOrder { headers: true, secrets: true, ..order("") });
    let mut client = Http::one(load.outbound).await;
    let body = Full::new(Bytes::from("x".repeat(10_000)));
    let sent = request("/echo").header("Authorization", "Bearer hush").header("x-plain", "open").body(body).unwrap();
    client.send(sent).await;
    let field = |event: &TapEvent, name: &str| {
        http(event).request_headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()).unwrap()
    };
    let redacted = load.event().await;
    assert!(!serde_json::to_string(&redacted).unwrap().contains("hush"));
    assert_eq!((field(&redacted, "authorization"), field(&redacted, "x-plain")), ("[redacted]".into(), "open".into()));
    for body in [&http(&redacted).request_body, &http(&redacted).response_body] {
        let body = body.as_ref().unwrap();
        assert_eq!((body.text.as_ref().unwrap().len(), body.truncated), (4096, true));
    }
    assert_eq!((redacted.read_bytes, redacted.write_bytes), (10_000, 10_000));
    let whole = web.event().await;
    assert_eq!(field(&whole, "authorization"), "Bearer hush");
    assert!(http(&whole).request_body.is_none());
}

#[tokio::test]
async fn refusals_carry_their_error() {
    let authority = Authority::new();
    let load = Tapped::start(towards(Protocol::Detect, vec![]), &authority.issue(&account("load"))).await;
    load.tap(order("error=any"));
    let mut client = Http::one(load.outbound).await;
    assert_eq!(client.get("/").await.error(), Some("no-endpoints"));
    let refused = load.event().await;
    assert_eq!((refused.error, refused.ending), (Some(MeshError::NoEndpoints), Some(TapEnding::ByMesh)));
    assert_eq!((http(&refused).status, refused.destination.address), (Some(503), SERVICE));
    // No request at all: answered before there was one.
    let mut raw = TcpStream::connect(load.outbound).await.unwrap();
    raw.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n").await.unwrap();
    raw.read_to_end(&mut Vec::new()).await.unwrap();
    assert_eq!(load.event().await.error, Some(MeshError::InvalidRequest));
    // And a connection that nobody takes.
    let mut opaque = TcpStream::connect(load.outbound).await.unwrap();
    opaque.write_all(b"\x00\x01\x02").await.unwrap();
    assert!(opaque.read_u8().await.is_err());
    let refused = load.event().await;
    assert_eq!((refused.event, refused.carried), (TapKind::Close, Carried::Tcp));
    assert_eq!((refused.error, refused.ending), (Some(MeshError::NoEndpoints), Some(TapEnding::ByMesh)));
}

#[tokio::test]
async fn connections_open_and_close_with_bytes_and_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (load, web) = pair(listener.local_addr().unwrap()).await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut word = [0; 4];
                stream.read_exact(&mut word).await.unwrap();
                stream.write_all(b"answer").await.unwrap();
                let _ = stream.read_exact(&mut word).await;
            });
        }
    });
    let dial = async || {
        let mut stream = TcpStream::connect(load.outbound).await.unwrap();
        stream.write_all(b"\x00\x01\x02\x03").await.unwrap();
        let mut got = [0; 6];
        stream.read_exact(&mut got).await.unwrap();
        stream
    };
    load.tap(order("protocol=tcp"));
    let orderly = dial().await;
    let opened = load.event().await;
    assert_eq!((opened.event, opened.ending, opened.tls), (TapKind::Open, None, TlsStatus::Mutual));
    assert_eq!(opened.destination.identity, Some(account("web")));
    web.tap(order("slower-than=1us")); // begins after the connection did, and demands something of its end
    drop(orderly);
    let closed = load.event().await;
    assert_eq!((closed.event, closed.ending), (TapKind::Close, Some(TapEnding::Orderly)));
    assert_eq!((closed.read_bytes, closed.write_bytes), (4, 6));
    let arrived = web.event().await;
    assert_eq!((arrived.event, arrived.source.identity), (TapKind::Close, Some(account("load"))));
    let broken = dial().await;
    broken.set_zero_linger().unwrap();
    drop(broken);
    assert_eq!(load.events(2).await[1].ending, Some(TapEnding::ByClient));
}

#[tokio::test]
async fn a_request_the_client_gives_up_is_told_as_such() {
    let app = App::start().await;
    let (load, _web) = pair(app.address).await;
    load.tap(order(""));
    let mut client = Http::two(load.outbound).await;
    let asking = tokio::spawn(async move { client.get("/slow").await });
    while app.count() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    asking.abort();
    let event = load.event().await;
    assert_eq!((event.ending, http(&event).status), (Some(TapEnding::ByClient), None));
}
