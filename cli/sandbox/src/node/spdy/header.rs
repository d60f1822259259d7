//! SPDY/3.1's header blocks: pairs of names and values, compressed by one zlib stream a direction that starts with a
//! dictionary both sides know (draft-mbelshe-httpbis-spdy-00, section 2.6.10.1).

use super::frame::FrameError;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use std::io;

/// Largest header block taken, decompressed.
const MAX_BLOCK: usize = 64 * 1024;
/// Most headers taken.
const MAX_HEADERS: u32 = 128;

/// Headers of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::node) struct Headers(pub(in crate::node) Vec<(String, String)>);

impl Headers {
    /// The value of a header; names ignore case.
    pub(in crate::node) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn encode(&self) -> Vec<u8> {
        let mut block = (self.0.len() as u32).to_be_bytes().to_vec();
        for (name, value) in &self.0 {
            for text in [name, value] {
                block.extend((text.len() as u32).to_be_bytes());
                block.extend(text.as_bytes());
            }
        }
        block
    }

    fn decode(mut block: &[u8]) -> Option<Self> {
        let count = take_number(&mut block)?;
        if count > MAX_HEADERS {
            return None;
        }
        (0..count).map(|_| Some((take_text(&mut block)?, take_text(&mut block)?))).collect::<Option<_>>().map(Self)
    }
}

fn take_number(block: &mut &[u8]) -> Option<u32> {
    let (number, rest) = block.split_first_chunk()?;
    *block = rest;
    Some(u32::from_be_bytes(*number))
}

fn take_text(block: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(take_number(block)?).ok()?;
    let (text, rest) = block.split_at_checked(length)?;
    *block = rest;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Decompresses the header blocks of one direction, in order.
pub(super) struct Inflater(Decompress);

impl Inflater {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Decompresses and reads one block.
    pub(super) fn inflate(&mut self, mut block: &[u8]) -> Result<Headers, FrameError> {
        let mut inflated = Vec::with_capacity(1024);
        while !block.is_empty() {
            if inflated.len() >= MAX_BLOCK {
                return Err(FrameError::Malformed("headers of more than 64 KiB"));
            }
            inflated.reserve(1024);
            let before = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress_vec(block, &mut inflated, FlushDecompress::Sync);
            let taken = (self.0.total_in() - before.0) as usize;
            block = block.get(taken..).unwrap_or_default();
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.0.set_dictionary(&dictionary());
                    set.map_err(|_| FrameError::Malformed("headers compressed with another dictionary"))?;
                }
                Err(_) => return Err(FrameError::Malformed("headers that cannot be decompressed")),
                Ok(_) if taken == 0 && self.0.total_out() == before.1 => {
                    return Err(FrameError::Malformed("headers whose compression has ended"));
                }
                Ok(_) => {}
            }
        }
        Headers::decode(&inflated).ok_or(FrameError::Malformed("headers that end early"))
    }
}

/// Compresses the header blocks of one direction, in order.
pub(super) struct Deflater(Compress, bool);

impl Deflater {
    pub(super) fn new() -> Self {
        Self(Compress::new(Compression::fast(), true), false)
    }

    /// Compresses one block.
    pub(super) fn deflate(&mut self, headers: &Headers) -> io::Result<Vec<u8>> {
        let Self(deflater, started) = self;
        if !*started {
            deflater.set_dictionary(&dictionary()).map_err(io::Error::other)?;
            *started = true;
        }
        let block = headers.encode();
        let mut left = block.as_slice();
        let mut deflated = Vec::with_capacity(block.len() + 64);
        loop {
            let before = deflater.total_in();
            deflater.compress_vec(left, &mut deflated, FlushCompress::Sync).map_err(io::Error::other)?;
            left = left.get((deflater.total_in() - before) as usize..).unwrap_or_default();
            // Spare room means that everything is out.
            if left.is_empty() && deflated.len() < deflated.capacity() {
                return Ok(deflated);
            }
            deflated.reserve(256);
        }
    }
}

/// The dictionary: frequent words, each after its length, and a tail of frequent values.
fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS {
        dictionary.extend((word.len() as u32).to_be_bytes());
        dictionary.extend(word.as_bytes());
    }
    dictionary.extend(TAIL.as_bytes());
    dictionary
}

const WORDS: [&str; 65] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug \
    Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
    charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn the_dictionary_is_everybody_elses() {
        // Its Adler-32 checksum is what zlib streams made with it announce.
        let mut deflater = Compress::new(Compression::fast(), true);
        assert_eq!(deflater.set_dictionary(&dictionary()).unwrap(), 0xe3c6_a7c2);
        assert_eq!(dictionary().len(), 1423);
    }

    #[test]
    fn blocks_survive_in_order() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let long = "x".repeat(20_000);
        for pairs in [&[("streamtype", "error"), ("port", "80")][..], &[], &[("long", &long), ("ü", "ß")]] {
            let block = deflater.deflate(&headers(pairs)).unwrap();
            assert_eq!(inflater.inflate(&block).unwrap(), headers(pairs));
        }
        assert_eq!(headers(&[("StreamType", "data")]).get("streamtype"), Some("data"));
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut deflater = Deflater::new();
        let block = deflater.deflate(&headers(&[("bomb", &"0".repeat(1_000_000))])).unwrap();
        assert!(block.len() < 64 * 1024, "{}", block.len());
        assert!(Inflater::new().inflate(&block).is_err());
    }

    proptest! {
        #[test]
        fn inflating_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Inflater::new().inflate(&bytes);
        }

        #[test]
        fn damaged_blocks_never_panic(at in 0usize..60, byte in any::<u8>()) {
            let mut block = Deflater::new().deflate(&headers(&[("streamtype", "error"), ("port", "80")])).unwrap();
            let at = at % block.len();
            block[at] = byte;
            let _ = Inflater::new().inflate(&block);
        }

        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Headers::decode(&bytes);
        }
    }
}
