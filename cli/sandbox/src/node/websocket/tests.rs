//! Channels and tunnels against a WebSocket client.

use super::*;

type Client = WebSocketStream<DuplexStream>;

async fn connected() -> (Client, DuplexStream) {
    let (client, server) = tokio::io::duplex(1 << 16);
    (WebSocketStream::from_raw_socket(client, Role::Client, None).await, server)
}

/// The next message that carries data; `None` when the server closes the connection as it should.
async fn next(client: &mut Client) -> Option<Vec<u8>> {
    loop {
        match client.next().await.unwrap().unwrap() {
            Message::Binary(bytes) => return Some(bytes.to_vec()),
            Message::Close(Some(CloseFrame { code: CloseCode::Normal, .. })) => return None,
            Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn channels_are_numbered() {
    let (mut client, server) = connected().await;
    let (mut all, work) = channels(server, 3).await;
    let work = tokio::spawn(work);
    client.send(Message::binary(b"\x00to stdin".as_slice())).await.unwrap();
    client.send(Message::text("\u{2}text works, too")).await.unwrap();
    assert_eq!(all[0].receive().await.as_deref(), Some(&b"to stdin"[..]));
    assert_eq!(all[2].receive().await.as_deref(), Some(&b"text works, too"[..]));
    all[1].outlet().send("from stdout").await.unwrap();
    assert_eq!(next(&mut client).await.unwrap(), b"\x01from stdout");
    // Channels that don't exist, and messages that say nothing, are ignored.
    for nonsense in [&b"\x09x"[..], b"", b"\x00", b"\xff", b"\xff\x09"] {
        client.send(Message::binary(nonsense)).await.unwrap();
    }
    // The end of one channel leaves the others open.
    client.send(Message::binary(&[END, 0][..])).await.unwrap();
    assert_eq!(all[0].receive().await, None);
    client.send(Message::binary(b"\x02still here".as_slice())).await.unwrap();
    assert_eq!(all[2].receive().await.as_deref(), Some(&b"still here"[..]));
    assert!(!all[0].gone().is_cancelled());
    // When the server is done it says so.
    drop(all);
    assert_eq!(next(&mut client).await, None);
    assert!(client.next().await.is_none());
    work.await.unwrap();
}

#[tokio::test]
async fn pings_are_answered_while_nothing_is_sent() {
    let (mut client, server) = connected().await;
    let (_all, work) = channels(server, 1).await;
    tokio::spawn(work);
    client.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"there?")));
}

#[tokio::test]
async fn a_client_that_hangs_up_is_gone() {
    let (client, server) = connected().await;
    let (mut all, work) = channels(server, 2).await;
    let work = tokio::spawn(work);
    drop(client);
    all[0].gone().cancelled().await;
    assert_eq!(all[1].receive().await, None);
    drop(all);
    work.await.unwrap();
}

#[tokio::test]
async fn a_tunnel_carries_any_bytes() {
    let (mut client, server) = connected().await;
    let (mut inner, work) = tunnel(server).await;
    let work = tokio::spawn(work);
    let sent = vec![9; 3 * TUNNEL];
    let echo = tokio::spawn(async move {
        let mut bytes = vec![0; 3 * TUNNEL];
        inner.read_exact(&mut bytes).await.unwrap();
        inner.write_all(&bytes).await.unwrap();
        inner.shutdown().await.unwrap();
        assert_eq!(inner.read(&mut [0]).await.unwrap(), 0);
    });
    for part in sent.chunks(50_000) {
        client.send(Message::binary(part.to_vec())).await.unwrap();
    }
    let mut received = Vec::new();
    while let Some(bytes) = next(&mut client).await {
        received.extend(bytes);
    }
    assert_eq!(received, sent);
    assert!(client.next().await.is_none());
    echo.await.unwrap();
    work.await.unwrap();
}
