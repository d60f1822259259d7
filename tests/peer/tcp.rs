//! Protocols that are not HTTP: who speaks first, who ends, and how.

use super::http::Seen;
use super::{connect, ports};
use anyhow::{Context, Result, bail, ensure};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a server says that speaks first.
const GREETING: &[u8] = b"220 ready\r\n";

pub(crate) async fn serve(listener: TcpListener, port: u16, seen: Seen) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        tokio::spawn(converse(stream, port, seen.clone()));
    }
}

async fn converse(mut stream: TcpStream, port: u16, seen: Seen) -> std::io::Result<()> {
    match port {
        ports::GREETS | ports::ECHOES => {
            if port == ports::GREETS {
                stream.write_all(GREETING).await?;
            }
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        }
        ports::COUNTS => {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await?;
            stream.write_all(format!("got {} bytes\n", all.len()).as_bytes()).await?;
            stream.shutdown().await
        }
        ports::RESETS => {
            stream.read_u8().await?;
            stream.set_zero_linger()
        }
        ports::FLOODS => loop {
            let sent = stream.write(&[b'x'; 65536]).await?;
            seen.0.flooded.fetch_add(sent as u64, Ordering::Relaxed);
        },
        _ => {
            let mut sink = tokio::io::sink();
            let counter = match tokio::io::copy(&mut stream, &mut sink).await {
                Ok(_) => &seen.0.closes,
                Err(_) => &seen.0.resets,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }
}

/// Sends a text (`\r` and `\n` as such) and prints all that comes until the other side closes.
pub(crate) async fn raw(address: &str, text: &str, shut: bool) -> Result<String> {
    let mut stream = connect(address).await?;
    let bytes = text.replace("\\r", "\r").replace("\\n", "\n");
    stream.write_all(bytes.as_bytes()).await?;
    if shut {
        stream.shutdown().await?;
    }
    let mut answer = Vec::new();
    let ended = match stream.read_to_end(&mut answer).await {
        Ok(_) => "closed".to_owned(),
        Err(error) => error.kind().to_string(),
    };
    Ok(format!("{}[{ended}]", String::from_utf8_lossy(&answer)))
}

pub(crate) async fn client(address: &str, case: &str) -> Result<String> {
    let start = Instant::now();
    let mut stream = connect(address).await?;
    match case {
        // Waits to be greeted, says how many milliseconds that took, and then talks.
        "listen" => {
            let mut greeting = vec![0; GREETING.len()];
            stream.read_exact(&mut greeting).await.context("waiting for the greeting")?;
            let waited = start.elapsed().as_millis();
            ensure!(greeting == GREETING, "{greeting:?}");
            exchange(&mut stream, b"hello").await?;
            Ok(format!("waited {waited} ms"))
        }
        "half-close" => {
            stream.write_all(&[b'y'; 100_000]).await?;
            stream.shutdown().await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer.trim_end().to_owned())
        }
        "be-reset" => {
            stream.write_all(b"x").await?;
            match stream.read_u8().await {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok("reset".to_owned()),
                other => bail!("{other:?}"),
            }
        }
        "reset" => {
            stream.write_all(b"some bytes\n").await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            stream.set_zero_linger()?;
            Ok("reset".to_owned())
        }
        "close" => {
            stream.write_all(b"some bytes\n").await?;
            stream.shutdown().await?;
            ensure!(stream.read(&mut [0]).await? == 0, "it answered");
            Ok("closed".to_owned())
        }
        "idle" => {
            exchange(&mut stream, b"before\n").await?;
            tokio::time::sleep(Duration::from_secs(4)).await;
            exchange(&mut stream, b"after").await?;
            Ok("still there".to_owned())
        }
        // Takes a little and then nothing; the server must not be able to send for ever.
        "stall" => {
            stream.write_all(b"go").await?;
            stream.read_exact(&mut [0; 1000]).await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok("stalled".to_owned())
        }
        "bulk" => {
            let sent: Vec<u8> = (0..4_000_000_u32).map(|i| (i * 31 % 251) as u8).collect();
            let (mut read, mut write) = stream.split();
            let mut back = Vec::new();
            let writing = async {
                write.write_all(&sent).await?;
                write.shutdown().await
            };
            let (wrote, got) = tokio::join!(writing, read.read_to_end(&mut back));
            wrote?;
            got?;
            ensure!(back == sent, "{} of {} bytes came back, or others", back.len(), sent.len());
            Ok(format!("{} bytes came back", back.len()))
        }
        other => bail!("there is no case `{other}`"),
    }
}

/// A listener whose queue is full, so that nobody's attempt to connect is answered.
pub(super) async fn full(port: u16) -> Result<String> {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    let address = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
    listener.bind(&std::net::SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, port)).into())?;
    listener.listen(0)?;
    // Those it still queues are ours.
    let mut queued = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
        queued.push(stream?);
    }
    super::ended().await
}

async fn exchange(stream: &mut TcpStream, what: &[u8]) -> Result<()> {
    stream.write_all(what).await?;
    let mut back = vec![0; what.len()];
    stream.read_exact(&mut back).await?;
    ensure!(back == what, "{back:?}");
    Ok(())
}
