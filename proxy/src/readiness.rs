//! `mesh-proxy await`: returns when the proxy beside it is ready. Where the proxy is no native sidecar, this is its
//! `postStart` hook, for which a node waits before it starts the application.

use crate::limits;
use anyhow::{Context, bail, ensure};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Which proxy to wait for, and how long.
#[derive(Debug, clap::Args)]
pub struct AwaitArgs {
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = crate::args::duration)]
    timeout: Duration,
    /// Port of /ready
    #[arg(long, value_name = "PORT", default_value_t = mesh_api::names::ADMIN_PORT)]
    admin_port: u16,
}

/// Waits. An error says what the proxy was waiting for when the time was over.
pub fn run(args: &AwaitArgs) -> anyhow::Result<()> {
    let AwaitArgs { timeout, admin_port } = args;
    let deadline = Instant::now() + *timeout;
    loop {
        let Err(why) = ask(*admin_port) else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(why).with_context(|| format!("the proxy is not ready after {timeout:?}"));
        }
        std::thread::sleep(limits::READY_POLL);
    }
}

/// Asks once, over whichever family there is.
fn ask(port: u16) -> anyhow::Result<()> {
    let mut last = None;
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        match TcpStream::connect_timeout(&SocketAddr::new(ip, port), limits::READY_TIMEOUT) {
            Ok(stream) => return answer(stream),
            Err(error) => last = last.or(Some(error)),
        }
    }
    bail!("its port {port} cannot be reached: {}", last.map(|error| error.to_string()).unwrap_or_default());
}

fn answer(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(limits::READY_TIMEOUT))?;
    stream.set_write_timeout(Some(limits::READY_TIMEOUT))?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.take(limits::READY_BYTES).read_to_string(&mut text).context("it does not answer")?;
    let status = text.split_ascii_whitespace().nth(1).unwrap_or_default();
    ensure!(status == "200", "it says {}", text.lines().last().unwrap_or_default());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn it_waits_until_the_proxy_says_so() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin_port = listener.local_addr().unwrap().port();
        let serving = std::thread::spawn(move || {
            for (status, body) in [("503 Service Unavailable", "waiting for a certificate"), ("200 OK", "ready")] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 512];
                assert!(stream.read(&mut request).unwrap() > 0);
                write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}\n", body.len() + 1).unwrap();
            }
            listener
        });
        run(&AwaitArgs { timeout: Duration::from_secs(30), admin_port }).unwrap();
        drop(serving.join().unwrap());
        let error = run(&AwaitArgs { timeout: Duration::ZERO, admin_port }).unwrap_err();
        assert!(format!("{error:#}").contains("cannot be reached"), "{error:#}");
    }

    #[test]
    fn what_it_waits_for_is_said() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin_port = listener.local_addr().unwrap().port();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            assert!(stream.read(&mut request).unwrap() > 0);
            write!(stream, "HTTP/1.1 503 Service Unavailable\r\n\r\nwaiting for a certificate\n").unwrap();
        });
        let error = run(&AwaitArgs { timeout: Duration::ZERO, admin_port }).unwrap_err();
        serving.join().unwrap();
        assert!(format!("{error:#}").contains("waiting for a certificate"), "{error:#}");
    }
}
