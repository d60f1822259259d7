//! A real server on a free port: truncation, TCP, changes, nonsense.

use super::*;
use hickory_proto::op::{Edns, Query};
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;
use serde_json::json;

/// A server with one headless service of `endpoints` endpoints, on a free port of the loopback interface.
async fn serve(endpoints: u8) -> (SocketAddr, JoinSet<()>, watch::Sender<Arc<Catalog>>) {
    let addresses: Vec<_> = (0..endpoints).map(|n| json!({"addresses": [format!("10.244.1.{n}")]})).collect();
    let meta = json!({"name": "many", "namespace": "shop", "labels": {"kubernetes.io/service-name": "many"}});
    let catalog = Catalog {
        services: vec![serde_json::from_value(json!({"metadata": meta, "spec": {"clusterIP": "None"}})).unwrap()],
        slices: vec![
            serde_json::from_value(json!({"metadata": meta, "addressType": "IPv4", "endpoints": addresses})).unwrap(),
        ],
    };
    let mut server = Server::bind(Ipv4Addr::LOCALHOST, 0).await.unwrap();
    server.upstreams = Upstreams::none();
    let address = server.address().unwrap();
    let (sender, receiver) = watch::channel(Arc::new(catalog));
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run(receiver));
    (address, tasks, sender)
}

fn query(name: &str, payload: Option<u16>) -> Message {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        query.set_edns(edns);
    }
    query
}

async fn over_udp(server: SocketAddr, bytes: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(bytes, server).await.unwrap();
    let mut buffer = [0; 4096];
    let length = timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn over_tcp(server: SocketAddr, queries: &[Message]) -> Vec<Message> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let mut replies = Vec::new();
    for query in queries {
        let bytes = query.to_vec().unwrap();
        stream.write_u16(bytes.len() as u16).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut reply).await.unwrap();
        replies.push(Message::from_vec(&reply).unwrap());
    }
    replies
}

#[tokio::test]
async fn large_answers_come_over_tcp() {
    let (server, _tasks, _sender) = serve(200).await;
    let name = "many.shop.svc.cluster.local.";
    for payload in [None, Some(4096)] {
        let reply = over_udp(server, &query(name, payload).to_vec().unwrap()).await;
        assert!(reply.metadata.truncation && reply.answers.is_empty());
        assert_eq!(reply.edns.is_some(), payload.is_some());
    }
    let replies = over_tcp(server, &[query(name, None), query("svc.cluster.local.", None)]).await;
    assert_eq!((replies[0].answers.len(), replies[1].answers.len()), (200, 0));
    assert!(!replies[0].metadata.truncation);
}

#[tokio::test]
async fn changes_are_seen() {
    let (server, _tasks, sender) = serve(2).await;
    let bytes = query("many.shop.svc.cluster.local.", None).to_vec().unwrap();
    assert_eq!(over_udp(server, &bytes).await.answers.len(), 2);
    sender.send_replace(Arc::default());
    let seen = async { while over_udp(server, &bytes).await.metadata.response_code != ResponseCode::NXDomain {} };
    timeout(Duration::from_secs(5), seen).await.unwrap();
}

#[tokio::test]
async fn names_outside_fail_at_once_where_no_resolver_is_reachable() {
    let (server, _tasks, _sender) = serve(0).await;
    let reply = over_udp(server, &query("example.org.", None).to_vec().unwrap()).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn nonsense_is_answered_or_ignored_but_survived() {
    let (server, _tasks, _sender) = serve(1).await;
    // A header that promises a question, and none.
    let reply = over_udp(server, &[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await;
    assert_eq!((reply.metadata.id, reply.metadata.response_code), (0x0707, ResponseCode::FormErr));
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for bytes in [&[][..], &[1], &[0xff; 12], &[0xff; 600]] {
        socket.send_to(bytes, server).await.unwrap();
    }
    let bytes = query("many.shop.svc.cluster.local.", None).to_vec().unwrap();
    assert_eq!(over_udp(server, &bytes).await.answers.len(), 1);
}

proptest! {
    #[test]
    fn received_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        decide(&Zone::new(&Catalog::default()), &bytes);
    }

    #[test]
    fn damaged_queries_never_panic(at in 0usize..60, byte in any::<u8>(), cut in 12usize..80) {
        let mut bytes = query("web.shop.svc.cluster.local.", Some(1232)).to_vec().unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(cut);
        decide(&Zone::new(&Catalog::default()), &bytes);
    }
}
