//! The whole of it: a real API, a real network namespace, real rules and names.

use super::*;
use crate::api::Api as Cluster;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Instant;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

#[path = "namespace.rs"]
pub(super) mod namespace;

/// Asks cluster DNS for an address.
async fn resolve(name: &str) -> Result<String, ResponseCode> {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    socket.send_to(&query.to_vec().unwrap(), (DNS_ADDRESS, 53)).await.unwrap();
    let mut buffer = [0; 1500];
    let received = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
    let reply = Message::from_vec(&buffer[..received.unwrap().unwrap()]).unwrap();
    reply.answers.first().map(|answer| answer.data.to_string()).ok_or(reply.metadata.response_code)
}

/// Tries again until `attempt` succeeds; returns how long it took.
async fn within_seconds<F: Future<Output = bool>>(what: &str, mut attempt: impl FnMut() -> F) -> Duration {
    let start = Instant::now();
    while !attempt().await {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    start.elapsed()
}

async fn connects(to: SocketAddr) -> bool {
    TcpStream::connect(to).await.is_ok()
}

async fn refuses(to: SocketAddr) -> bool {
    matches!(TcpStream::connect(to).await, Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
#[ignore = "needs network namespaces, unshare and ip: cargo test -p mesh-sandbox -- --ignored"]
fn services_follow_the_api() {
    namespace::inside("node::services::tests::services_follow_the_api", || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let bridge = "ip link add mesh0 type bridge && ip link set mesh0 up && ip addr add 10.244.0.1/16 dev mesh0 && \
                      ip addr add fd6d:6573:6800:244::1/64 dev mesh0 nodad";
        assert!(std::process::Command::new("sh").args(["-c", bridge]).status().unwrap().success());
        runtime.block_on(follow_a_service());
    });
}

async fn follow_a_service() {
    let cluster = Cluster::new(crate::api::Config::default()).unwrap();
    let client = cluster.client();
    let _network = ServiceNetwork::start(client.clone(), "mesh0", true).await.unwrap();
    // A second start in the same place is no obstacle to its preparations.
    prepare("mesh0", true, &mut JoinSet::new()).await.unwrap();

    let listener = TcpListener::bind((NODE_ADDRESS, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"clusterIP": "10.96.0.77", "ports": [{"name": "http", "port": 80, "targetPort": port}]}});
    services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
    let address: SocketAddr = "10.96.0.77:80".parse().unwrap();
    within_seconds("the service's name resolves", || async {
        resolve("web.default.svc.cluster.local.").await == Ok("10.96.0.77".to_owned())
    })
    .await;
    assert!(refuses(address).await, "without endpoints");

    let labels = json!({"kubernetes.io/service-name": "web"});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "labels": labels}, "addressType": "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [NODE_ADDRESS.to_string()], "conditions": {"ready": true}}]});
    slices.create(&PostParams::default(), &serde_json::from_value(slice).unwrap()).await.unwrap();
    within_seconds("the service connects", || connects(address)).await;

    let unready = json!({"endpoints": [{"addresses": [NODE_ADDRESS.to_string()], "conditions": {"ready": false}}]});
    slices.patch("web-1", &PatchParams::default(), &Patch::Merge(unready)).await.unwrap();
    within_seconds("the service refuses", || refuses(address)).await;

    services.delete("web", &DeleteParams::default()).await.unwrap();
    within_seconds("the service's name is gone", || async {
        resolve("web.default.svc.cluster.local.").await == Err(ResponseCode::NXDomain)
    })
    .await;
    // The API's own services are services like any others.
    assert_eq!(resolve("kubernetes.default.svc.cluster.local.").await, Ok("10.96.0.1".to_owned()));
    assert_eq!(resolve("kube-dns.kube-system.svc.cluster.local.").await, Ok("10.96.0.10".to_owned()));
    let _api = TcpListener::bind((NODE_ADDRESS, 6443)).await.unwrap();
    assert!(connects("10.96.0.1:443".parse().unwrap()).await);
}
