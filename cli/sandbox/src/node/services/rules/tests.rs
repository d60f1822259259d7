//! Which endpoints a service has, and whether real packets reach them.

use super::*;
use crate::node::services::tests::namespace;

use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn service(name: &str, address: &str, affinity: &str, ports: Value) -> Arc<Service> {
    Arc::new(
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"},
            "spec": {"clusterIP": address, "sessionAffinity": affinity, "ports": ports}}))
        .unwrap(),
    )
}

fn slice(service: &str, ports: Value, endpoints: Value) -> Arc<EndpointSlice> {
    Arc::new(
        serde_json::from_value(json!({"addressType": "IPv4", "ports": ports, "endpoints": endpoints, "metadata":
            {"name": service, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}}}))
        .unwrap(),
    )
}

fn backends_of(endpoints: Value) -> Vec<String> {
    let catalog = Catalog {
        services: vec![service("web", "10.96.0.7", "None", json!([{"name": "http", "port": 80}]))],
        slices: vec![slice("web", json!([{"name": "http", "port": 8080}, {"name": "other", "port": 1}]), endpoints)],
    };
    let frontends = frontends(&catalog);
    let (_, backends) = &frontends[&("10.96.0.7".parse().unwrap(), TCP, 80)];
    backends.iter().map(|(address, port)| format!("{address}:{port}")).collect()
}

#[test]
fn ready_endpoints_are_chosen() {
    let end =
        |last: u8, conditions: Value| json!({"addresses": [format!("10.244.0.{last}")], "conditions": conditions});
    let ready = end(2, json!({"ready": true}));
    let unsaid = end(3, json!({}));
    let starting = end(4, json!({"ready": false, "serving": false}));
    let ending = end(5, json!({"ready": false, "serving": true, "terminating": true}));
    assert_eq!(backends_of(json!([ready, unsaid, starting, ending])), ["10.244.0.2:8080", "10.244.0.3:8080"]);
    assert_eq!(backends_of(json!([starting, ending])), ["10.244.0.5:8080"]);
    assert_eq!(backends_of(json!([starting])), [""; 0]);
    assert_eq!(backends_of(json!([{"addresses": ["nonsense"]}, {"addresses": []}])), [""; 0]);
}

#[test]
fn services_without_an_address_take_no_part() {
    let catalog = Catalog {
        services: vec![
            service("headless", "None", "None", json!([{"port": 80}])),
            service("odd", "10.96.0.8", "None", json!([{"port": 80, "protocol": "SCTP"}, {"port": 70000}])),
        ],
        slices: Vec::new(),
    };
    assert!(frontends(&catalog).is_empty());
}

#[test]
fn endpoints_are_bounded() {
    let endpoints: Vec<_> =
        (0..1500u32).map(|n| json!({"addresses": [Ipv4Addr::from(0x0af4_0000 + n).to_string()]})).collect();
    let name = |n: u8| format!("s{n}");
    let catalog = Catalog {
        services: (0..8).map(|n| service(&name(n), &format!("10.96.1.{n}"), "None", json!([{"port": 80}]))).collect(),
        slices: (0..8).map(|n| slice(&name(n), json!([{"port": 80}]), json!(endpoints))).collect(),
    };
    let sizes: Vec<usize> = frontends(&catalog).values().map(|(_, backends)| backends.len()).collect();
    assert_eq!(sizes, [1000, 1000, 1000, 1000, 1000, 1000, 0, 0]);
}

/// A shell in network and process namespaces of its own, wired to the test's network as pods are to the node. What it has
/// started ends with it.
struct Pod(Child);

impl Pod {
    fn start(index: u8) -> Self {
        let mut child = Command::new("unshare")
            .args(["-npf", "--kill-child", "sh", "-c", "echo; exec sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let pid = child.id();
        let mut pod = Self(child);
        run(&format!(
            "ip link add p{index} type veth peer name eth0 netns {pid}; ip link set p{index} master mesh0; \
             ip link set p{index} up"
        ));
        pod.run(&format!(
            "ip link set lo up; ip link set eth0 up; ip addr add 10.244.0.{index}/32 dev eth0; \
             ip route add default via 10.244.0.1 dev eth0 onlink"
        ));
        pod
    }

    /// Runs a command to its end in the pod's namespace and returns what it prints.
    fn run(&mut self, command: &str) -> String {
        let Self(child) = self;
        writeln!(child.stdin.as_mut().unwrap(), "{{ {command}\n}} 2>&1; echo END").unwrap();
        let mut output = String::new();
        let mut byte = [0];
        while !output.ends_with("END\n") {
            child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
            output.push(char::from(byte[0]));
        }
        output.truncate(output.len() - 4);
        output
    }

    /// Connects to a service and returns what it says.
    fn call(&mut self, protocol: &str, address: &str) -> String {
        let dial = format!("timeout 5 bash -c 'exec 3<>/dev/{protocol}/{address} && echo hi >&3 && head -n1 <&3'");
        self.run(&dial).trim().to_owned()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Name of the server that this test binary plays, started once more inside a pod.
const ECHO: &str = "MESH_TEST_ECHO";

/// A server that says its name and who is calling, over TCP and UDP. Does nothing unless a pod was told to run it.
#[test]
fn echo_server() {
    let Ok(name) = std::env::var(ECHO) else { return };
    let answer = |peer: SocketAddr| format!("{name} {}\n", peer.ip());
    let udp = UdpSocket::bind("0.0.0.0:8080").unwrap();
    let tcp = std::net::TcpListener::bind("0.0.0.0:8080").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while let Ok((_, peer)) = udp.recv_from(&mut [0; 100]) {
                let _ = udp.send_to(answer(peer).as_bytes(), peer);
            }
        });
        while let Ok((mut stream, peer)) = tcp.accept() {
            let _ = stream.write_all(answer(peer).as_bytes());
        }
    });
}

fn start_echo_server(pod: &mut Pod, name: &str, address: &str) {
    let exe = std::env::current_exe().unwrap();
    let test = "node::services::rules::tests::echo_server";
    pod.run(&format!("{ECHO}={name} {} --exact {test} >/dev/null 2>&1 &", exe.display()));
    let address = address.parse().unwrap();
    for _ in 0..200 {
        if said_from_here(address).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("the server {name} does not answer on {address}");
}

fn said_from_here(to: SocketAddr) -> std::io::Result<String> {
    let mut said = String::new();
    TcpStream::connect_timeout(&to, Duration::from_secs(5))?.read_to_string(&mut said)?;
    Ok(said.trim().to_owned())
}

#[test]
fn cluster_ips_work_in_a_real_network() {
    namespace::inside("node::services::rules::tests::cluster_ips_work_in_a_real_network", || {
        run("ip link add mesh0 type bridge; ip link set mesh0 up; ip addr add 10.244.0.1/16 dev mesh0; \
             echo 1 > /proc/sys/net/ipv4/ip_forward");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(super::super::prepare("mesh0", &mut tokio::task::JoinSet::new())).unwrap();
        let (mut one, mut two) = (Pod::start(2), Pod::start(3));
        start_echo_server(&mut one, "one", "10.244.0.2:8080");
        start_echo_server(&mut two, "two", "10.244.0.3:8080");
        let ports = json!([{"name": "t", "port": 80}, {"name": "u", "port": 53, "protocol": "UDP"}]);
        let slice_ports = json!([{"name": "t", "port": 8080}, {"name": "u", "port": 8080, "protocol": "UDP"}]);
        let both = json!([{"addresses": ["10.244.0.2"]}, {"addresses": ["10.244.0.3"]}]);
        let catalog = Catalog {
            services: vec![
                service("both", "10.96.0.7", "None", ports.clone()),
                service("sticky", "10.96.0.8", "ClientIP", ports.clone()),
                service("own", "10.96.0.9", "None", ports.clone()),
                service("none", "10.96.0.11", "None", ports),
            ],
            slices: vec![
                slice("both", slice_ports.clone(), both.clone()),
                slice("sticky", slice_ports.clone(), both),
                slice("own", slice_ports.clone(), json!([{"addresses": ["10.244.0.2"]}])),
                slice("none", slice_ports, json!([])),
            ],
        };
        let netlink = mesh_proxy::nft::netlink::Netlink::open().unwrap();
        netlink.replace(&table(&catalog)).unwrap();

        // Both endpoints are used, and see the client's own address.
        for protocol in ["tcp/10.96.0.7/80", "udp/10.96.0.7/53"] {
            let (protocol, address) = protocol.split_once('/').unwrap();
            let mut seen = BTreeSet::new();
            for _ in 0..60 {
                seen.insert(two.call(protocol, address));
                if seen.len() == 2 {
                    break;
                }
            }
            // A pod that reaches itself sees the node.
            assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["one 10.244.0.3", "two 10.244.0.1"], "{protocol}");
        }
        // The node itself reaches them.
        assert_eq!(said_from_here("10.96.0.9:80".parse().unwrap()).unwrap(), "one 10.244.0.1");
        // A pod stays at one endpoint of a sticky service.
        let first = two.call("tcp", "10.96.0.8/80");
        for _ in 0..10 {
            assert_eq!(two.call("tcp", "10.96.0.8/80"), first);
        }
        // Hairpin.
        assert_eq!(one.call("tcp", "10.96.0.9/80"), "one 10.244.0.1");
        assert_eq!(one.call("udp", "10.96.0.9/53"), "one 10.244.0.1");
        // Without endpoints, and where there is no service at all, clients are refused at once.
        for address in ["10.96.0.11:80", "10.96.0.7:81", "10.111.0.1:80"] {
            let start = Instant::now();
            let error = said_from_here(address.parse().unwrap()).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{address}");
            let said = one.call("tcp", &address.replace(':', "/"));
            assert!(said.contains("Connection refused"), "{said}");
            assert!(start.elapsed() < Duration::from_secs(3));
        }
        assert!(one.call("udp", "10.96.0.11/53").contains("Connection refused"));
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert!(socket.send_to(b"hi", "10.96.0.11:53").is_err(), "a local sender learns of it from the call itself");
        // Addresses that are no cluster IPs are untouched.
        assert_eq!(two.call("tcp", "10.244.0.2/8080"), "one 10.244.0.3");
    });
}

#[test]
fn two_hundred_services_take_milliseconds() {
    namespace::inside("node::services::rules::tests::two_hundred_services_take_milliseconds", || {
        let name = |n: u32| format!("s{n}");
        let address = |base: u32, n: u32| Ipv4Addr::from(base + n).to_string();
        let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 443}]);
        let endpoints = |n: u32| -> Value {
            (0..=n % 5).map(|e| json!({"addresses": [address(0x0af4_0000, n * 8 + e)]})).collect()
        };
        let catalog = Catalog {
            services: (0..200).map(|n| service(&name(n), &address(0x0a60_0100, n), "None", ports.clone())).collect(),
            slices: (0..200).map(|n| slice(&name(n), ports.clone(), endpoints(n))).collect(),
        };
        let netlink = mesh_proxy::nft::netlink::Netlink::open().unwrap();
        let mut took = Duration::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            netlink.apply(&table(&catalog).replace()).unwrap();
            took = took.min(start.elapsed());
        }
        println!("200 services replaced in {took:?}");
        assert!(took < Duration::from_millis(200), "{took:?}");
    });
}
