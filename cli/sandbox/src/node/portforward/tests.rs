//! Connections over SPDY streams, from a client that controls every frame.

use super::super::spdy::tests::Client;
use super::*;
use futures::FutureExt as _;
use tokio::net::TcpListener;

/// A client of a pod whose ports are this machine's.
fn connect() -> (Client, JoinSet<()>) {
    let (client, connection) = Client::connect();
    let dial: Dial = Arc::new(|port| {
        let dial = TcpStream::connect(("127.0.0.1", port));
        async move { dial.await.map_err(|error| PodError::Failed(format!("port {port}: {error}"))) }.boxed()
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { serve_spdy(connection, &dial).await });
    (client, tasks)
}

impl Client {
    async fn open_pair(&mut self, request: u32, port: u16, data_first: bool) -> (u32, u32) {
        let (first, second) = (4 * request + 1, 4 * request + 3);
        let (data, error) = if data_first { (first, second) } else { (second, first) };
        for stream in [first, second] {
            let kind = if stream == data { "data" } else { "error" };
            let (port, request) = (port.to_string(), request.to_string());
            self.open_with(stream, &[("streamtype", kind), ("port", &port), ("requestid", &request)]).await;
            self.accepted(stream).await;
        }
        (data, error)
    }
}

#[tokio::test]
async fn each_pair_of_streams_is_a_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (mut client, _tasks) = connect();
    for (request, data_first) in [(0, false), (1, true)] {
        let (data, error) = client.open_pair(request, port, data_first).await;
        let (mut stream, _) = listener.accept().await.unwrap();
        client.data(data, false, b"question").await;
        let mut question = [0; 8];
        stream.read_exact(&mut question).await.unwrap();
        assert_eq!(&question, b"question");
        // The client has nothing more to say, the pod has.
        client.data(data, true, b"").await;
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        stream.write_all(b"answer").await.unwrap();
        assert_eq!(client.next().await, Ok((data, false, b"answer".to_vec())));
        drop(stream);
        assert_eq!(client.next().await, Ok((data, true, Vec::new())));
        assert_eq!(client.next().await, Ok((error, true, Vec::new())));
    }
}

#[tokio::test]
async fn a_connection_that_fails_says_why() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (mut client, _tasks) = connect();
    let (data, error) = client.open_pair(0, closed, false).await;
    let (stream, _, text) = client.next().await.unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(stream == error && text.contains(&closed.to_string()) && text.contains("refused"), "{text}");
    assert_eq!(client.next().await, Err((3, [data.to_be_bytes(), 5u32.to_be_bytes()].concat())));
    assert_eq!(client.next().await, Ok((error, true, Vec::new())));
}

#[tokio::test]
async fn a_client_that_gives_up_closes_the_pods_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (mut client, mut tasks) = connect();
    client.open_pair(0, port, false).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    drop(client);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn streams_that_make_no_sense_are_reset() {
    let (mut client, _tasks) = connect();
    for (stream, headers) in [
        (1, &[("streamtype", "data")][..]),
        (3, &[("streamtype", "data"), ("port", "0")]),
        (5, &[("port", "80")]),
        (7, &[("streamtype", "other"), ("port", "80")]),
    ] {
        client.open_with(stream, headers).await;
        client.accepted(stream).await;
        assert_eq!(client.next().await, Err((3, [stream.to_be_bytes(), 5u32.to_be_bytes()].concat())));
    }
    // Halves without their counterpart are kept, but only so many.
    for n in 0..=64u32 {
        let id = n.to_string();
        client.open_with(9 + 2 * n, &[("streamtype", "data"), ("port", "80"), ("requestid", &id)]).await;
        client.accepted(9 + 2 * n).await;
    }
    assert_eq!(client.next().await, Err((3, [137u32.to_be_bytes(), 5u32.to_be_bytes()].concat())));
}
