//! SPDY/3.1's frames as bytes (pure): draft-mbelshe-httpbis-spdy-00 as amended by SPDY/3.1, sections 2.2 and 2.6.

use super::header::{Headers, Inflater};

/// Largest control frame taken: headers of streaming protocols are a few dozen bytes.
const MAX_CONTROL: usize = 64 * 1024;
const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const HEADERS: u16 = 8;
const FLAG_FIN: u8 = 1;
/// Status of a stream that is refused.
pub(super) const REFUSED_STREAM: u32 = 3;
/// Status of a stream that isn't needed any more.
pub(super) const CANCEL: u32 = 5;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// The bytes are not SPDY/3.1, or more than is taken.
    #[error("{0}")]
    Malformed(&'static str),
    /// Reading failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The eight bytes that every frame begins with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Bytes of a stream follow.
    Data {
        /// Which stream.
        stream: u32,
        /// The last ones.
        fin: bool,
        /// How many.
        length: usize,
    },
    /// Something else follows.
    Control {
        /// What.
        kind: u16,
        /// Its flags.
        flags: u8,
        /// How many bytes.
        length: usize,
    },
}

impl Head {
    /// Reads a frame's first bytes.
    pub(super) fn parse(bytes: [u8; 8]) -> Result<Self, FrameError> {
        let [a, b, c, d, flags, x, y, z] = bytes;
        let length = u32::from_be_bytes([0, x, y, z]) as usize;
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return Ok(Self::Data { stream, fin: flags & FLAG_FIN != 0, length });
        }
        if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
            return Err(FrameError::Malformed("a frame of another version of SPDY"));
        }
        if length > MAX_CONTROL {
            return Err(FrameError::Malformed("a control frame of more than 64 KiB"));
        }
        Ok(Self::Control { kind: u16::from_be_bytes([c, d]), flags, length })
    }
}

/// A control frame, as far as a server cares.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// The client opens a stream.
    Open {
        /// Its number.
        stream: u32,
        /// The client will send nothing on it.
        fin: bool,
        /// Its headers.
        headers: Headers,
    },
    /// More headers, which no protocol here uses.
    Headers {
        /// For this stream.
        stream: u32,
        /// The client will send nothing more on it.
        fin: bool,
    },
    /// The client abandons a stream.
    Reset {
        /// Which.
        stream: u32,
    },
    /// To be sent back.
    Ping {
        /// As it came.
        id: u32,
    },
    /// Settings, windows and whatever else needs no action.
    Ignored,
}

impl Control {
    /// Reads what follows a control frame's head. Header blocks are decompressed whether or not they matter: they
    /// share one dictionary.
    pub(super) fn parse(kind: u16, flags: u8, payload: &[u8], inflater: &mut Inflater) -> Result<Self, FrameError> {
        let fin = flags & FLAG_FIN != 0;
        Ok(match kind {
            SYN_STREAM => {
                let (stream, rest) = number(payload)?;
                let block = rest.get(6..).ok_or(FrameError::Malformed("a stream's opening that ends early"))?;
                Self::Open { stream, fin, headers: inflater.inflate(block)? }
            }
            SYN_REPLY | HEADERS => {
                let (stream, block) = number(payload)?;
                inflater.inflate(block)?;
                Self::Headers { stream, fin }
            }
            RST_STREAM => Self::Reset { stream: number(payload)?.0 },
            PING => {
                let id = payload.first_chunk().ok_or(FrameError::Malformed("a ping that ends early"))?;
                Self::Ping { id: u32::from_be_bytes(*id) }
            }
            _ => Self::Ignored,
        })
    }
}

/// A stream's number, and what follows it.
fn number(payload: &[u8]) -> Result<(u32, &[u8]), FrameError> {
    let (number, rest) = payload.split_first_chunk().ok_or(FrameError::Malformed("a control frame that ends early"))?;
    Ok((u32::from_be_bytes(*number) & 0x7fff_ffff, rest))
}

/// Head of a data frame; the caller sends `length` bytes after it.
pub(super) fn data_head(stream: u32, fin: bool, length: usize) -> [u8; 8] {
    let [a, b, c, d] = stream.to_be_bytes();
    let [_, x, y, z] = (length as u32).to_be_bytes();
    [a & 0x7f, b, c, d, if fin { FLAG_FIN } else { 0 }, x, y, z]
}

/// Accepts a stream.
pub(super) fn syn_reply(stream: u32, header_block: &[u8]) -> Vec<u8> {
    control(SYN_REPLY, 0, &[&stream.to_be_bytes(), header_block])
}

/// Ends a stream.
pub(super) fn reset(stream: u32, status: u32) -> Vec<u8> {
    control(RST_STREAM, 0, &[&stream.to_be_bytes(), &status.to_be_bytes()])
}

/// Answers a ping.
pub(super) fn ping(id: u32) -> Vec<u8> {
    control(PING, 0, &[&id.to_be_bytes()])
}

pub(super) fn control(kind: u16, flags: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let [_, x, y, z] = (length as u32).to_be_bytes();
    let mut frame = vec![0x80, VERSION as u8];
    frame.extend(kind.to_be_bytes());
    frame.extend([flags, x, y, z]);
    parts.iter().for_each(|part| frame.extend_from_slice(part));
    frame
}
