//! HTTP/2 by hand (RFC 9113): frames and header blocks written and read byte by byte, so that a test can send what no
//! library would.

#![allow(dead_code)] // the lists of the protocol are complete, whether or not a test needs every entry

use bytes::{Buf, Bytes, BytesMut};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Frame types (section 6).
pub const DATA: u8 = 0x0;
pub const HEADERS: u8 = 0x1;
pub const PRIORITY: u8 = 0x2;
pub const RST_STREAM: u8 = 0x3;
pub const SETTINGS: u8 = 0x4;
pub const PUSH_PROMISE: u8 = 0x5;
pub const PING: u8 = 0x6;
pub const GOAWAY: u8 = 0x7;
pub const WINDOW_UPDATE: u8 = 0x8;
pub const CONTINUATION: u8 = 0x9;

// Flags.
pub const ACK: u8 = 0x1;
pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
pub const WITH_PRIORITY: u8 = 0x20;

// Error codes (section 7).
pub const NO_ERROR: u32 = 0x0;
pub const PROTOCOL_ERROR: u32 = 0x1;
pub const INTERNAL_ERROR: u32 = 0x2;
pub const FLOW_CONTROL_ERROR: u32 = 0x3;
pub const STREAM_CLOSED: u32 = 0x5;
pub const FRAME_SIZE_ERROR: u32 = 0x6;
pub const REFUSED_STREAM: u32 = 0x7;
pub const CANCEL: u32 = 0x8;
pub const COMPRESSION_ERROR: u32 = 0x9;
pub const ENHANCE_YOUR_CALM: u32 = 0xb;

// Settings (section 6.5.2, and RFC 8441, section 3).
pub const HEADER_TABLE_SIZE: u16 = 0x1;
pub const ENABLE_PUSH: u16 = 0x2;
pub const MAX_CONCURRENT_STREAMS: u16 = 0x3;
pub const INITIAL_WINDOW_SIZE: u16 = 0x4;
pub const MAX_FRAME_SIZE: u16 = 0x5;
pub const ENABLE_CONNECT_PROTOCOL: u16 = 0x8;

/// A frame with whatever length its payload has.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        values.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

pub fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// A field as a literal without indexing and without Huffman coding (RFC 7541, section 6.2.2).
pub fn literal(name: &str, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name.as_bytes(), value.as_ref()] {
        integer(&mut bytes, 7, 0, text.len());
        bytes.extend(text);
    }
    bytes
}

/// An integer after `prefix` bits' worth of room in a byte that begins with `pattern` (RFC 7541, section 5.1).
pub fn integer(bytes: &mut Vec<u8>, prefix: u8, pattern: u8, value: usize) {
    let most = (1 << prefix) - 1;
    if value < most {
        bytes.push(pattern | u8::try_from(value).unwrap());
        return;
    }
    bytes.push(pattern | u8::try_from(most).unwrap());
    let mut rest = value - most;
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
}

pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

/// The pseudo-header fields of an ordinary request.
pub fn request<'a>(method: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    [(":method", method), (":scheme", "http"), (":authority", "web"), (":path", path)]
}

/// HEADERS with everything in it that a request without a body needs.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(&request("GET", path)))
}

/// HEADERS of a request whose body follows.
pub fn post(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(&request("POST", path)))
}

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Bytes,
}

impl Seen {
    pub fn is(&self, kind: u8, stream: u32) -> bool {
        (self.kind, self.stream) == (kind, stream)
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// True if it is the last frame of its stream.
    pub fn ends(&self) -> bool {
        self.kind == RST_STREAM || (matches!(self.kind, DATA | HEADERS) && self.has(END_STREAM))
    }

    /// The error code of RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The fields of HEADERS.
    pub fn fields(&self) -> Vec<(String, String)> {
        assert!(self.kind == HEADERS && self.has(END_HEADERS) && !self.has(PADDED | WITH_PRIORITY), "{self:?}");
        decode(&self.payload)
    }

    pub fn field(&self, name: &str) -> Option<String> {
        self.fields().into_iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    pub fn status(&self) -> u16 {
        self.field(":status").unwrap().parse().unwrap()
    }
}

/// One end of a connection, client or server.
pub struct Peer {
    io: TcpStream,
    read: BytesMut,
}

/// The reading half of a peer.
pub struct Reader {
    io: OwnedReadHalf,
    read: BytesMut,
}

impl Reader {
    /// The next frame; `None` if the other side has closed.
    pub async fn next(&mut self) -> Option<Seen> {
        next(&mut self.io, &mut self.read).await
    }
}

async fn next(io: &mut (impl AsyncRead + Unpin), read: &mut BytesMut) -> Option<Seen> {
    loop {
        if let Some(seen) = parse(read) {
            return Some(seen);
        }
        match io.read_buf(read).await {
            Ok(n) if n > 0 => {}
            _ => return None,
        }
    }
}

fn parse(read: &mut BytesMut) -> Option<Seen> {
    let head = read.get(..9)?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let (kind, flags) = (head[3], head[4]);
    let stream = u32::from_be_bytes(head[5..9].try_into().unwrap()) & 0x7fff_ffff;
    if read.len() < 9 + length {
        return None;
    }
    read.advance(9);
    Some(Seen { kind, flags, stream, payload: read.split_to(length).freeze() })
}

impl Peer {
    /// Both directions, apart.
    pub fn into_split(self) -> (Reader, OwnedWriteHalf) {
        let (io, write) = self.io.into_split();
        (Reader { io, read: self.read }, write)
    }

    /// Connects, says nothing.
    pub async fn connect(address: SocketAddr) -> Self {
        let io = TcpStream::connect(address).await.unwrap();
        io.set_nodelay(true).unwrap();
        Self { io, read: BytesMut::new() }
    }

    /// Connects with so small a receive buffer that what comes waits on the other side until it is read.
    pub async fn connect_narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let io = socket.connect(address).await.unwrap();
        io.set_nodelay(true).unwrap();
        Self { io, read: BytesMut::new() }
    }

    /// A client whose connection is set up: both sides' settings are known. The server is told to compress without a
    /// table, so that a header block can be read by itself.
    pub async fn client(address: SocketAddr) -> Self {
        Self::client_with(address, &[]).await
    }

    pub async fn client_with(address: SocketAddr, values: &[(u16, u32)]) -> Self {
        let mut peer = Self::connect(address).await;
        peer.greet(&[&[(HEADER_TABLE_SIZE, 0)], values].concat()).await;
        peer
    }

    /// Preface and settings, and the server's settings acknowledged.
    pub async fn greet(&mut self, values: &[(u16, u32)]) -> Seen {
        self.send(PREFACE).await;
        self.send(&settings(values)).await;
        let theirs = self.until(|seen| seen.is(SETTINGS, 0) && !seen.has(ACK)).await;
        self.send(&frame(SETTINGS, ACK, 0, &[])).await;
        self.until(|seen| seen.is(SETTINGS, 0) && seen.has(ACK)).await;
        theirs
    }

    /// A server that has read the client's settings; a request may already be on its way.
    pub async fn server(io: TcpStream) -> Self {
        Self::server_with(io, &[]).await
    }

    pub async fn server_with(io: TcpStream, values: &[(u16, u32)]) -> Self {
        let mut peer = Self { io, read: BytesMut::new() };
        let mut preface = [0; PREFACE.len()];
        peer.io.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
        peer.send(&settings(&[&[(HEADER_TABLE_SIZE, 0)], values].concat())).await;
        peer.until(|seen| seen.is(SETTINGS, 0) && !seen.has(ACK)).await;
        peer.send(&frame(SETTINGS, ACK, 0, &[])).await;
        peer
    }

    /// Sends; that the other side has closed already shows when reading.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.io.write_all(bytes).await;
    }

    /// The next frame; `None` if the other side has closed.
    pub async fn next(&mut self) -> Option<Seen> {
        next(&mut self.io, &mut self.read).await
    }

    /// The first frame that `wanted` wants; those before it are passed over, but never the end of the connection.
    pub async fn until(&mut self, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let found = async {
            let mut passed = Vec::new();
            loop {
                match self.next().await {
                    Some(seen) if wanted(&seen) => return seen,
                    Some(seen) => passed.push(seen),
                    None => panic!("closed after {passed:?}"),
                }
            }
        };
        tokio::time::timeout(crate::world::SOON, found).await.expect("the frame in time")
    }

    /// Frames until `enough`, the end of the connection, or silence of two seconds.
    pub async fn collect(&mut self, enough: impl Fn(&[Seen]) -> bool) -> (Vec<Seen>, bool) {
        let mut all = Vec::new();
        while !enough(&all) {
            match tokio::time::timeout(Duration::from_secs(2), self.next()).await {
                Ok(Some(seen)) => all.push(seen),
                Ok(None) => return (all, true),
                Err(_) => return (all, false),
            }
        }
        (all, false)
    }

    /// Sends a request and waits for the head of its response.
    pub async fn ask(&mut self, stream: u32, path: &str) -> Seen {
        self.send(&get(stream, path)).await;
        self.until(|seen| seen.is(HEADERS, stream)).await
    }

    /// True if a ping is answered, with its own words.
    pub async fn is_alive(&mut self) -> bool {
        self.send(&frame(PING, 0, 0, b"are you?")).await;
        let pong = |seen: &[Seen]| seen.last().is_some_and(|s| s.is(PING, 0) && s.has(ACK) && s.payload == "are you?");
        pong(&self.collect(pong).await.0)
    }
}

/// Decodes a header block that uses no dynamic table.
pub fn decode(mut block: &[u8]) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    while let Some(&first) = block.first() {
        match first {
            0x80.. => {
                let index = take_integer(&mut block, 7);
                let (name, value) = STATIC.get(index - 1).copied().unwrap_or(("from the dynamic table", ""));
                fields.push((name.into(), value.into()));
            }
            0x20..0x40 => {
                assert_eq!(take_integer(&mut block, 5), 0, "the table was to stay empty");
            }
            _ => {
                let index = take_integer(&mut block, if first >= 0x40 { 6 } else { 4 });
                let name = if index == 0 { take_text(&mut block) } else { STATIC[index - 1].0.into() };
                fields.push((name, take_text(&mut block)));
            }
        }
    }
    fields
}

fn take_integer(block: &mut &[u8], prefix: u8) -> usize {
    let most = (1 << prefix) - 1;
    let mut value = usize::from(block.get_u8()) & most;
    let mut shift = 0;
    while value >= most {
        let more = block.get_u8();
        value += usize::from(more & 127) << shift;
        shift += 7;
        if more < 128 {
            break;
        }
    }
    value
}

fn take_text(block: &mut &[u8]) -> String {
    let huffman = block[0] >= 0x80;
    let length = take_integer(block, 7);
    let (text, rest) = block.split_at(length);
    *block = rest;
    String::from_utf8(if huffman { unhuffman(text) } else { text.to_vec() }).unwrap()
}

/// Symbols of each code length; the code is canonical, so that lengths and order are all there is to know (RFC 7541,
/// appendix B; only what may stand in a field).
const HUFFMAN: [(u32, &[u8]); 10] = [
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b"!\"()?"),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\0$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
];

fn unhuffman(text: &[u8]) -> Vec<u8> {
    let mut bits = text.iter().flat_map(|byte| (0..8).rev().map(move |bit| u32::from(byte >> bit & 1)));
    let mut out = Vec::new();
    loop {
        let (mut code, mut first, mut length) = (0, 0, 0);
        let symbol = HUFFMAN.iter().find_map(|&(longer, symbols)| {
            for _ in length..longer {
                code = code << 1 | bits.next().unwrap_or(1);
                first <<= 1;
            }
            length = longer;
            let found = symbols.get(usize::try_from(code - first).unwrap()).copied();
            first += u32::try_from(symbols.len()).unwrap();
            found
        });
        match symbol {
            Some(symbol) => out.push(symbol),
            None => return out, // the padding: all ones
        }
    }
}

/// RFC 7541, appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[test]
fn header_blocks_are_read_as_the_specification_has_them() {
    // RFC 7541, appendices C.4.1 (its name index refers to the static table) and C.6.1's first two fields.
    let block = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff\x48\x82\x64\x02\x58\x85\xae\xc3\x77\x1a\x4b";
    let fields: Vec<_> = decode(block).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let expect = [
        ":method=GET",
        ":scheme=http",
        ":path=/",
        ":authority=www.example.com",
        ":status=302",
        "cache-control=private",
    ];
    assert_eq!(fields, expect);
    let long = "x".repeat(300);
    assert_eq!(decode(&literal("a", &long)), [("a".to_owned(), long)]);
}
