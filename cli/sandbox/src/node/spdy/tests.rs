//! The connection against a client that speaks just enough SPDY, and against nonsense.

use super::*;
use proptest::prelude::*;
use tokio::io::DuplexStream;

/// A client that speaks just enough SPDY.
pub(in crate::node) struct Client {
    pub(in crate::node) io: DuplexStream,
    deflater: Deflater,
    inflater: Inflater,
}

impl Client {
    pub(in crate::node) fn connect() -> (Self, Connection) {
        let (io, server) = tokio::io::duplex(1 << 20);
        (Self { io, deflater: Deflater::new(), inflater: Inflater::new() }, Connection::start(server))
    }

    pub(in crate::node) async fn open(&mut self, stream: u32, kind: &str) {
        self.open_with(stream, &[("streamtype", kind)]).await;
    }

    pub(in crate::node) async fn open_with(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let headers = Headers(headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect());
        let block = self.deflater.deflate(&headers).unwrap();
        let frame = frame::control(1, 0, &[&stream.to_be_bytes(), &[0; 4], &[0; 2], &block]);
        self.io.write_all(&frame).await.unwrap();
    }

    pub(in crate::node) async fn data(&mut self, stream: u32, fin: bool, bytes: &[u8]) {
        self.io.write_all(&frame::data_head(stream, fin, bytes.len())).await.unwrap();
        self.io.write_all(bytes).await.unwrap();
    }

    /// The next frame: data as `(stream, fin, bytes)`, control frames as `(kind, payload)`.
    pub(in crate::node) async fn next(&mut self) -> Result<(u32, bool, Vec<u8>), (u16, Vec<u8>)> {
        let mut head = [0; 8];
        self.io.read_exact(&mut head).await.unwrap();
        match Head::parse(head).unwrap() {
            Head::Data { stream, fin, length } => {
                let mut bytes = vec![0; length];
                self.io.read_exact(&mut bytes).await.unwrap();
                Ok((stream, fin, bytes))
            }
            Head::Control { kind, length, .. } => {
                let mut payload = vec![0; length];
                self.io.read_exact(&mut payload).await.unwrap();
                Err((kind, payload))
            }
        }
    }

    /// Expects a stream to be accepted.
    pub(in crate::node) async fn accepted(&mut self, stream: u32) {
        let (kind, payload) = self.next().await.unwrap_err();
        assert_eq!((kind, &payload[..4]), (2, &stream.to_be_bytes()[..]));
        assert_eq!(self.inflater.inflate(&payload[4..]).unwrap(), Headers::default());
    }
}

#[tokio::test]
async fn streams_carry_data_both_ways() {
    let (mut client, mut connection) = Client::connect();
    for (stream, kind) in [(1, "error"), (3, "data")] {
        client.open(stream, kind).await;
        client.accepted(stream).await;
    }
    let (headers, error) = connection.accept().await.unwrap();
    assert_eq!(headers.get("StreamType"), Some("error"));
    let (_, mut data) = connection.accept().await.unwrap();

    let sent = vec![7; 3 * PIECE + 5];
    client.data(3, false, &sent).await;
    client.data(3, true, b"end").await;
    let mut received = Vec::new();
    while let Some(bytes) = data.receive().await {
        received.extend(bytes);
    }
    assert_eq!(received, [sent.as_slice(), b"end"].concat());

    data.outlet().send("hello").await.unwrap();
    assert_eq!(client.next().await, Ok((3, false, b"hello".to_vec())));
    data.outlet().finish().await;
    assert_eq!(client.next().await, Ok((3, true, Vec::new())));
    error.outlet().reset().await;
    assert_eq!(client.next().await, Err((3, vec![0, 0, 0, 1, 0, 0, 0, 5])));
}

#[tokio::test]
async fn pings_are_answered_and_unknown_frames_skipped() {
    let (mut client, _connection) = Client::connect();
    // Settings, a window update, a goaway and a type nobody knows.
    for (kind, payload) in [(4u16, &[0; 4][..]), (9, &[0, 0, 0, 1, 0, 0, 1, 0]), (7, &[0; 8]), (99, b"?")] {
        client.io.write_all(&frame::control(kind, 0, &[payload])).await.unwrap();
    }
    client.io.write_all(&frame::ping(2)).await.unwrap();
    client.io.write_all(&frame::ping(5)).await.unwrap();
    assert_eq!(client.next().await, Err((6, vec![0, 0, 0, 5])));
}

#[tokio::test]
async fn streams_with_wrong_numbers_are_refused() {
    let (mut client, _connection) = Client::connect();
    client.open(5, "data").await;
    client.accepted(5).await;
    for stream in [6, 5, 3] {
        client.open(stream, "data").await;
        let refused = [stream.to_be_bytes(), 3u32.to_be_bytes()].concat();
        assert_eq!(client.next().await, Err((3, refused)));
    }
}

#[tokio::test]
async fn a_reset_and_a_hang_up_are_noticed() {
    let (mut client, mut connection) = Client::connect();
    client.open(1, "a").await;
    client.open(3, "b").await;
    let (_, mut first) = connection.accept().await.unwrap();
    let (_, mut second) = connection.accept().await.unwrap();
    client.io.write_all(&frame::reset(1, frame::CANCEL)).await.unwrap();
    first.gone().cancelled().await;
    assert_eq!(first.receive().await, None);
    assert!(!second.gone().is_cancelled());
    drop(client);
    second.gone().cancelled().await;
    assert_eq!(second.receive().await, None);
    assert!(connection.accept().await.is_none());
}

#[tokio::test]
async fn closing_sends_what_is_left_and_ends_with_the_client() {
    let (mut client, mut connection) = Client::connect();
    client.open(1, "a").await;
    let (_, channel) = connection.accept().await.unwrap();
    channel.outlet().send("last words").await.unwrap();
    drop(channel);
    let closing = tokio::spawn(connection.close());
    client.accepted(1).await;
    assert_eq!(client.next().await, Ok((1, false, b"last words".to_vec())));
    assert_eq!(client.io.read(&mut [0]).await.unwrap(), 0, "the server has nothing more to send");
    drop(client);
    closing.await.unwrap();
}

#[tokio::test]
async fn data_for_a_stream_nobody_reads_does_not_stop_the_others() {
    let (mut client, mut connection) = Client::connect();
    client.open(1, "unread").await;
    client.open(3, "read").await;
    drop(connection.accept().await.unwrap());
    let (_, mut read) = connection.accept().await.unwrap();
    for _ in 0..100 {
        client.data(1, false, b"x").await;
    }
    client.data(77, false, b"no such stream").await;
    client.data(3, false, b"y").await;
    assert_eq!(read.receive().await.as_deref(), Some(&b"y"[..]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn received_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut client, mut connection) = Client::connect();
            client.io.write_all(&bytes).await.unwrap();
            drop(client);
            while connection.accept().await.is_some() {}
        });
    }

    #[test]
    fn control_frames_never_panic(kind in 0u16..12, flags in any::<u8>(), payload in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = Control::parse(kind, flags, &payload, &mut Inflater::new());
    }
}
