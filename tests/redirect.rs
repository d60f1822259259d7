//! Real connections in real network namespaces: what `mesh-proxy redirect` redirects and what it leaves alone.

#![allow(clippy::unwrap_used, reason = "a panic is how these bodies fail, inside a process of their own")]

mod cni;

use crate::harness::{Need, ourselves, test};
use crate::nft::{NEEDS, assert_ruleset, inside, output_of};
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use mesh_proxy::redirect::{RedirectArgs, run};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    let without = [Need::Namespaces, Need::Program("unshare")];
    let mut tests = vec![
        test("redirect::the_rules_read_as_intended", &NEEDS, the_rules_read_as_intended),
        test("redirect::traffic_goes_through_the_proxy", &NEEDS, traffic_goes_through_the_proxy),
        test("redirect::the_proxys_user_is_exempt", &NEEDS, the_proxys_user_is_exempt),
        test("redirect::without_privilege_the_error_says_what_to_do", &without, without_privilege),
    ];
    tests.extend(cni::tests());
    tests
}

fn args(skip_inbound: &str, skip_outbound: &str) -> RedirectArgs {
    RedirectArgs {
        proxy_uid: 2102,
        outbound_port: 4140,
        inbound_port: 4143,
        skip_inbound_ports: skip_inbound.parse().unwrap(),
        skip_outbound_ports: skip_outbound.parse().unwrap(),
    }
}

fn the_rules_read_as_intended() -> Result<()> {
    inside("redirect::the_rules_read_as_intended", || {
        run(&args("22,4190-4192", "25,3306-3310")).unwrap();
        run(&args("22,4190-4192", "25,3306-3310")).unwrap();
        assert_ruleset(include_str!("redirect/rules.nft"));
    })
}

/// In a user namespace of its own a process has every privilege, except over the network it came from.
fn without_privilege() -> Result<()> {
    let mut command = Command::new("unshare");
    let redirect = ourselves("mesh-proxy")?;
    let ran = command
        .args(["-U", "bash", "-c", "exec -a mesh-proxy \"$0\" redirect"])
        .arg(redirect.get_program())
        .output()?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(!ran.status.success(), "the redirect was set without privilege");
    ensure!(said.contains("CAP_NET_ADMIN") && said.contains("hint: the redirect container"), "{said}");
    Ok(())
}

/// The pod's end of a pair of interfaces, its neighbour in another network namespace, and both their addresses.
struct Neighbours {
    neighbour: std::process::Child,
}

const POD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

impl Neighbours {
    /// The neighbour is a shell in its own namespace that runs what is written to it.
    fn meet() -> Self {
        let neighbour = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo; exec sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut this = Self { neighbour };
        this.line();
        let pid = this.neighbour.id();
        for command in [
            format!("ip link add pod type veth peer name peer netns {pid}"),
            "ip link set pod up".to_owned(),
            format!("ip addr add {POD}/24 dev pod"),
            format!("ip -6 addr add {POD6}/64 dev pod nodad"),
        ] {
            let words: Vec<&str> = command.split(' ').collect();
            output_of(words[0], &words[1..]);
        }
        this.tell(&format!(
            "ip link set lo up; ip link set peer up; ip addr add {PEER}/24 dev peer; \
             ip -6 addr add {PEER6}/64 dev peer nodad; echo done"
        ));
        this.line();
        this
    }

    fn tell(&mut self, command: &str) {
        let stdin = self.neighbour.stdin.as_mut().unwrap();
        writeln!(stdin, "{command}").unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        let out = self.neighbour.stdout.as_mut().unwrap();
        while out.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        let _ = self.neighbour.kill();
        let _ = self.neighbour.wait();
    }
}

fn listen(port: u16) -> TcpListener {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()
}

/// Where the connection that `listener` takes next was going.
fn original_destination(listener: &TcpListener) -> SocketAddr {
    let (stream, _) = listener.accept().unwrap();
    let local = stream.local_addr().unwrap();
    if let IpAddr::V6(v6) = local.ip()
        && v6.to_ipv4_mapped().is_none()
    {
        let original = getsockopt(&stream, sockopt::Ip6tOriginalDst).unwrap();
        return SocketAddr::new(Ipv6Addr::from(original.sin6_addr.s6_addr).into(), u16::from_be(original.sin6_port));
    }
    let original = getsockopt(&stream, sockopt::OriginalDst).unwrap();
    SocketAddr::new(Ipv4Addr::from(u32::from_be(original.sin_addr.s_addr)).into(), u16::from_be(original.sin_port))
}

/// Connects without a redirect being expected: refused at once by the neighbour, who listens nowhere.
fn refused(to: SocketAddr, mark: Option<u32>) -> bool {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
    if let Some(mark) = mark {
        setsockopt(&socket, sockopt::Mark, &mark).unwrap();
    }
    match socket.connect_timeout(&to.into(), Duration::from_secs(5)) {
        Ok(()) => false,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionRefused || panic!("{to}: {e}"),
    }
}

fn traffic_goes_through_the_proxy() -> Result<()> {
    inside("redirect::traffic_goes_through_the_proxy", || {
        let mut neighbours = Neighbours::meet();
        run(&args("9000-9009", "7000-7009")).unwrap();
        let (outbound, inbound) = (listen(4140), listen(4143));

        // What the application connects to reaches the outbound proxy, which learns where it was going.
        for to in [SocketAddr::new(PEER.into(), 80), SocketAddr::new(PEER6.into(), 80)] {
            let client = std::thread::spawn(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap());
            assert_eq!(original_destination(&outbound), to);
            // The application sees the address it asked for.
            assert_eq!(client.join().unwrap().peer_addr().unwrap(), to);
        }

        // Excluded ports and the proxy itself get through to the neighbour, where nothing listens.
        assert!(refused((PEER, 7005).into(), None));
        assert!(refused((PEER, 80).into(), Some(mesh_api::names::PROXY_MARK)));
        assert!(refused((PEER6, 80).into(), Some(mesh_api::names::PROXY_MARK)));
        assert!(!refused((PEER, 80).into(), Some(1)), "another mark is redirected");
        // Loopback stays loopback.
        assert!(refused((Ipv4Addr::LOCALHOST, 80).into(), None));
        assert!(refused((Ipv6Addr::LOCALHOST, 80).into(), None));
        assert!(refused((POD, 80).into(), None), "the pod's own address is loopback, too");

        // What arrives reaches the inbound proxy, except at excluded ports and the admin port.
        let dial = |to: IpAddr, port: u16| {
            format!("bash -c 'exec 3<>/dev/tcp/{to}/{port}' 2>/dev/null && echo connected || echo refused")
        };
        for to in [SocketAddr::new(POD.into(), 80), SocketAddr::new(POD6.into(), 80)] {
            neighbours.tell(&dial(to.ip(), to.port()));
            assert_eq!(original_destination(&inbound), to);
            assert_eq!(neighbours.line(), "connected");
        }
        for port in [9000, 4191] {
            neighbours.tell(&dial(POD.into(), port));
            assert_eq!(neighbours.line(), "refused", "port {port}");
        }
    })
}

fn the_proxys_user_is_exempt() -> Result<()> {
    inside("redirect::the_proxys_user_is_exempt", || {
        let _neighbours = Neighbours::meet();
        // One user id is mapped here: the test's own, so it plays the proxy.
        let uid = nix::unistd::geteuid().as_raw();
        let _outbound = listen(4140);
        run(&RedirectArgs { proxy_uid: uid, ..args("", "") }).unwrap();
        assert!(refused((PEER, 80).into(), None));
        run(&RedirectArgs { proxy_uid: uid + 1, ..args("", "") }).unwrap();
        assert!(!refused((PEER, 80).into(), None));
    })
}
