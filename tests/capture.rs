//! `mesh-capture INTERFACE SECONDS TEXT…`: what a wiretap would see.
//!
//! Started as a pod in the node's network, it reads every frame that crosses an interface, prints a line for every TCP
//! segment that has one of the texts in it, and at the end how many segments it saw and how many began a TLS record.
//! Nothing but a packet socket is used, so the test that looks for plain text on the wire depends on no tool.

use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let (Some(interface), Some(seconds)) = (arguments.get(1), arguments.get(2).and_then(|s| s.parse::<u64>().ok()))
    else {
        return fail("usage: mesh-capture INTERFACE SECONDS TEXT...");
    };
    match run(interface, Duration::from_secs(seconds), &arguments[3..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot capture on {interface}: {error}")),
    }
}

fn fail(message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::from(2)
}

fn run(interface: &str, time: Duration, texts: &[String]) -> std::io::Result<()> {
    let socket =
        nix::sys::socket::socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    nix::sys::socket::setsockopt(
        &socket,
        nix::sys::socket::sockopt::ReceiveTimeout,
        &nix::sys::time::TimeVal::new(0, 200_000),
    )?;
    let wanted = nix::net::if_::if_nametoindex(interface)? as usize;
    let (mut out, end) = (std::io::stdout().lock(), Instant::now() + time);
    writeln!(out, "capturing on {interface}")?;
    out.flush()?;
    let mut frame = vec![0u8; 65536];
    let (mut segments, mut records) = (0u64, 0u64);
    while Instant::now() < end {
        let Ok((length, from)) = nix::sys::socket::recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) else {
            continue;
        };
        if from.is_some_and(|a| a.ifindex() == wanted)
            && let Some((source, destination, payload)) = tcp_payload(&frame[..length])
        {
            segments += 1;
            // Handshake or application data, version bytes as TLS 1.3 writes them (RFC 8446 §5.1).
            records += u64::from(matches!(payload, [0x16 | 0x17, 0x03, 0x01 | 0x03, ..]));
            for text in texts.iter().filter(|text| payload.windows(text.len()).any(|part| part == text.as_bytes())) {
                writeln!(out, "text {text} in {source} > {destination}")?;
            }
        }
    }
    writeln!(out, "{segments} segments, {records} TLS records")?;
    out.flush()
}

/// Source, destination and payload of an Ethernet frame that carries TCP over IPv4 with data in it.
fn tcp_payload(frame: &[u8]) -> Option<(String, String, &[u8])> {
    let ip = frame.get(14..).filter(|_| frame[12..14] == [0x08, 0x00])?;
    let header = usize::from(ip.first()? & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
    if *ip.get(9)? != 6 {
        return None;
    }
    let source = Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(12..16)?).ok()?);
    let destination = Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(16..20)?).ok()?);
    let tcp = ip.get(header..total.min(ip.len()))?;
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let data = usize::from(tcp.get(12)? >> 4) * 4;
    let payload = tcp.get(data..).filter(|p| !p.is_empty())?;
    Some((format!("{source}:{}", port(0)?), format!("{destination}:{}", port(2)?), payload))
}
