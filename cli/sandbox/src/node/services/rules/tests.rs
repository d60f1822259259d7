//! Which endpoints a service has, and whether real packets reach them.

use super::*;
use crate::node::services::tests::namespace;

use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
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

/// The IPv6 address that goes with an IPv4 one in these tests.
fn v6(v4: &str) -> String {
    let [a, b, c, d] = v4.parse::<Ipv4Addr>().unwrap().octets();
    let net = if (a, b) == (10, 244) { "244" } else { "96" };
    format!("fd6d:6573:6800:{net}::{:x}", u16::from_be_bytes([c, d]))
}

/// The same services and endpoints with addresses of both families.
fn dual(catalog: &Catalog) -> Catalog {
    let mut both = catalog.clone();
    for service in &mut both.services {
        let spec = Arc::make_mut(service).spec.as_mut().unwrap();
        let v4 = spec.cluster_ip.clone().unwrap();
        spec.cluster_ips = Some(vec![v4.clone(), v6(&v4)]);
    }
    for slice in &catalog.slices {
        let mut slice = (**slice).clone();
        slice.address_type = "IPv6".to_owned();
        for endpoint in &mut slice.endpoints {
            endpoint.addresses[0] = v6(&endpoint.addresses[0]);
        }
        both.slices.push(Arc::new(slice));
    }
    both
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
    let frontends = frontends(&catalog, Stack::V4);
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
    assert!(frontends(&catalog, Stack::V4).is_empty());
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
    let sizes: Vec<usize> = frontends(&catalog, Stack::V4).values().map(|(_, backends)| backends.len()).collect();
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
             ip route add default via 10.244.0.1 dev eth0 onlink; \
             ip addr add fd6d:6573:6800:244::{index}/128 dev eth0 nodad; \
             ip route add default via fd6d:6573:6800:244::1 dev eth0 onlink"
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
#[ignore = "no test but the server that pods of other tests run"]
fn echo_server() {
    let Ok(name) = std::env::var(ECHO) else { return };
    let answer = |peer: SocketAddr| format!("{name} {}\n", peer.ip().to_canonical());
    let udp = UdpSocket::bind("[::]:8080").unwrap();
    let tcp = std::net::TcpListener::bind("[::]:8080").unwrap();
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
    pod.run(&format!("{ECHO}={name} {} --exact {test} --ignored >/dev/null 2>&1 &", exe.display()));
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
#[ignore = "needs network namespaces, unshare and ip: cargo test -p mesh-sandbox -- --ignored"]
fn cluster_ips_work_in_a_real_network() {
    namespace::inside("node::services::rules::tests::cluster_ips_work_in_a_real_network", || {
        run("ip link add mesh0 type bridge; ip link set mesh0 up; ip addr add 10.244.0.1/16 dev mesh0; \
             ip addr add fd6d:6573:6800:244::1/64 dev mesh0 nodad; \
             echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(super::super::prepare("mesh0", true, &mut tokio::task::JoinSet::new())).unwrap();
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
        for table in tables(&dual(&catalog), true) {
            netlink.replace(&table).unwrap();
        }
        for ipv6 in [false, true] {
            reach_everything(&mut one, &mut two, &|v4| if ipv6 { v6(v4) } else { v4.to_owned() });
        }
    });
}

/// Calls what the test above has set up, at addresses of one family.
fn reach_everything(one: &mut Pod, two: &mut Pod, ip: &dyn Fn(&str) -> String) {
    let at = |v4: &str, port: u16| SocketAddr::new(ip(v4).parse::<IpAddr>().unwrap(), port);
    let path = |v4: &str, port: u16| format!("{}/{port}", ip(v4));
    let said = |name: &str, v4: &str| format!("{name} {}", ip(v4));
    // Both endpoints are used, and see the client's own address.
    for (protocol, port) in [("tcp", 80), ("udp", 53)] {
        let mut seen = BTreeSet::new();
        for _ in 0..60 {
            seen.insert(two.call(protocol, &path("10.96.0.7", port)));
            if seen.len() == 2 {
                break;
            }
        }
        // A pod that reaches itself sees the node.
        let expected = BTreeSet::from([said("one", "10.244.0.3"), said("two", "10.244.0.1")]);
        assert_eq!(seen, expected, "{protocol}");
    }
    // The node itself reaches them.
    assert_eq!(said_from_here(at("10.96.0.9", 80)).unwrap(), said("one", "10.244.0.1"));
    // A pod stays at one endpoint of a sticky service.
    let first = two.call("tcp", &path("10.96.0.8", 80));
    for _ in 0..10 {
        assert_eq!(two.call("tcp", &path("10.96.0.8", 80)), first);
    }
    // Hairpin.
    assert_eq!(one.call("tcp", &path("10.96.0.9", 80)), said("one", "10.244.0.1"));
    assert_eq!(one.call("udp", &path("10.96.0.9", 53)), said("one", "10.244.0.1"));
    // Without endpoints, and where there is no service at all, clients are refused at once.
    for (address, port) in [("10.96.0.11", 80), ("10.96.0.7", 81), ("10.96.200.1", 80)] {
        let start = Instant::now();
        let error = said_from_here(at(address, port)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{address}");
        let said = one.call("tcp", &path(address, port));
        assert!(said.contains("Connection refused"), "{said}");
        assert!(start.elapsed() < Duration::from_secs(3));
    }
    // The kernel limits how many errors it sends to one address (RFC 4443, section 2.4), and some were sent just now: a
    // datagram that nobody answers is sent again, as clients do.
    let answers: Vec<String> = (0..2).map(|_| one.call("udp", &path("10.96.0.11", 53))).collect();
    assert!(answers.iter().any(|answer| answer.contains("Connection refused")), "{answers:?}");
    // Addresses that are no cluster IPs are untouched.
    assert_eq!(two.call("tcp", &path("10.244.0.2", 8080)), said("one", "10.244.0.3"));
    let socket = UdpSocket::bind(if ip("10.96.0.11").contains(':') { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
    let refused = socket.send_to(b"hi", at("10.96.0.11", 53));
    assert!(refused.is_err(), "a local sender learns of it from the call itself");
}

#[test]
#[ignore = "needs network namespaces, unshare and ip: cargo test -p mesh-sandbox -- --ignored"]
fn two_hundred_services_fit_into_one_transaction() {
    namespace::inside("node::services::rules::tests::two_hundred_services_fit_into_one_transaction", || {
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
        let table = table(Stack::V4, &frontends(&catalog, Stack::V4));
        netlink.apply(&table.replace()).unwrap();
        netlink.verify(&table).unwrap();
    });
}
