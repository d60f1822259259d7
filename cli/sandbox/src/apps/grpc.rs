//! As much of gRPC over HTTP/2 as the cart needs, by hand: unary calls, five-byte message prefix, status in trailers,
//! and the two protobuf wire types in use. (Protocol: `doc/PROTOCOL-HTTP2.md` of the gRPC project.)

use super::client::{CallError, Http2Client};
use super::serve::Body;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use std::convert::Infallible;

/// gRPC's status codes in use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidArgument = 3,
    Unimplemented = 12,
}

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrpcError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("gRPC status {0}")]
    Status(String),
    #[error("the answer is not a gRPC message")]
    Malformed,
}

/// A message: protobuf fields in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message(pub(crate) Vec<(u32, Field)>);

/// The value of a protobuf field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Varint(u64),
    Text(Bytes),
}

impl Message {
    pub(crate) fn number(mut self, field: u32, value: u64) -> Self {
        self.0.push((field, Field::Varint(value)));
        self
    }

    pub(crate) fn nested(mut self, field: u32, message: &Message) -> Self {
        self.0.push((field, Field::Text(message.encoded())));
        self
    }

    /// The last number of a field; 0 if it is missing, as protobuf has it.
    pub(crate) fn get(&self, field: u32) -> u64 {
        let found = self.0.iter().rev().find_map(|(n, value)| match value {
            Field::Varint(value) if *n == field => Some(*value),
            _ => None,
        });
        found.unwrap_or(0)
    }

    /// All messages nested in a field.
    pub(crate) fn all(&self, field: u32) -> impl Iterator<Item = Message> + '_ {
        self.0.iter().filter_map(move |(n, value)| match value {
            Field::Text(text) if *n == field => Message::decoded(text.clone()),
            _ => None,
        })
    }

    fn encoded(&self) -> Bytes {
        let mut out = BytesMut::new();
        for (number, field) in &self.0 {
            match field {
                Field::Varint(value) => {
                    put_varint(&mut out, u64::from(*number) << 3);
                    put_varint(&mut out, *value);
                }
                Field::Text(text) => {
                    put_varint(&mut out, (u64::from(*number) << 3) | 2);
                    put_varint(&mut out, text.len() as u64);
                    out.put_slice(text);
                }
            }
        }
        out.freeze()
    }

    fn decoded(mut bytes: Bytes) -> Option<Self> {
        let mut fields = Vec::new();
        while bytes.has_remaining() {
            let tag = take_varint(&mut bytes)?;
            let number = u32::try_from(tag >> 3).ok()?;
            let field = match tag & 7 {
                0 => Field::Varint(take_varint(&mut bytes)?),
                2 => {
                    let length = usize::try_from(take_varint(&mut bytes)?).ok()?;
                    if length > bytes.len() {
                        return None;
                    }
                    Field::Text(bytes.split_to(length))
                }
                _ => return None,
            };
            fields.push((number, field));
        }
        Some(Self(fields))
    }

    /// The message behind its five-byte prefix: not compressed, length.
    fn framed(&self) -> Bytes {
        let message = self.encoded();
        let mut out = BytesMut::with_capacity(message.len() + 5);
        out.put_u8(0);
        out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        out.put_slice(&message);
        out.freeze()
    }

    /// Reads exactly one message with its prefix.
    pub(crate) fn unframed(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < 5 || bytes.get_u8() != 0 {
            return None;
        }
        let length = usize::try_from(bytes.get_u32()).ok()?;
        (length == bytes.len()).then(|| Self::decoded(bytes)).flatten()
    }
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn take_varint(bytes: &mut Bytes) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = bytes.has_remaining().then(|| bytes.get_u8())?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Calls a method and returns its answer.
pub(crate) async fn call(client: &Http2Client, method: &str, message: &Message) -> Result<Message, GrpcError> {
    let mut request = Request::new(Full::new(message.framed()));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = method.parse().map_err(|_| GrpcError::Malformed)?;
    request.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(http::header::TE, HeaderValue::from_static("trailers"));
    let answer = client.send(request).await?;
    // A call that fails at once has its status among the headers.
    let status = answer.trailers.get("grpc-status").or_else(|| answer.head.headers.get("grpc-status"));
    match status.and_then(|s| s.to_str().ok()) {
        Some("0") => Message::unframed(answer.body).ok_or(GrpcError::Malformed),
        Some(other) => Err(GrpcError::Status(other.to_owned())),
        None => Err(GrpcError::Malformed),
    }
}

/// The answer to a call that succeeded: one message, then trailers.
pub(crate) fn success(message: &Message) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok::<_, Infallible>(Frame::data(message.framed())), Ok(Frame::trailers(trailers))];
    grpc_response(StreamBody::new(futures::stream::iter(frames)).boxed_unsync())
}

/// The answer to a call that failed: headers only.
pub(crate) fn failure(code: Code, message: &'static str) -> Response<Body> {
    let mut response = grpc_response(Full::new(Bytes::new()).boxed_unsync());
    response.headers_mut().insert("grpc-status", HeaderValue::from(code as u16));
    response.headers_mut().insert("grpc-message", HeaderValue::from_static(message));
    response
}

fn grpc_response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_read_back() {
        let item = Message::default().number(1, 300).number(2, u64::MAX);
        let message = Message::default().number(1, 7).nested(2, &item).nested(2, &Message::default());
        let back = Message::unframed(message.framed()).unwrap();
        assert_eq!(back, message);
        assert_eq!((back.get(1), back.get(9)), (7, 0));
        assert_eq!(back.all(2).collect::<Vec<_>>(), [item, Message::default()]);
        // As protoc has it: field 1 = 150 is 08 96 01.
        assert_eq!(Message::default().number(1, 150).encoded().as_ref(), [0x08, 0x96, 0x01]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Message::unframed(bytes.clone().into());
            let _ = Message::decoded(bytes.into());
        }
    }
}
