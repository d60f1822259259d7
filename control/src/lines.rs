//! A request body as lines.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use std::error::Error;

/// Splits a body into lines of at most `limit` bytes.
pub struct Lines<B> {
    body: B,
    buffer: BytesMut,
    searched: usize,
    limit: usize,
}

/// Why there is no further line.
#[derive(Debug, thiserror::Error)]
pub enum LinesError {
    /// A line is too long.
    #[error("a line has more than {0} bytes")]
    TooLong(usize),
    /// The connection broke.
    #[error("the body broke off: {0}")]
    Broken(Box<dyn Error + Send + Sync>),
}

impl<B> Lines<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// The lines of a body.
    pub fn new(body: B, limit: usize) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0, limit }
    }

    /// The next line that is not blank; `None` at the end. What is left without a line break at the end is dropped:
    /// it was never finished. Loses nothing if it is dropped while waiting.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LinesError> {
        loop {
            while let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + at + 1).freeze();
                self.searched = 0;
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line.slice(..line.len() - 1)));
                }
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > self.limit {
                return Err(LinesError::TooLong(self.limit));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(LinesError::Broken(error.into())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn lines(chunks: Vec<Vec<u8>>, limit: usize) -> Result<Vec<Bytes>, LinesError> {
        let frames = chunks.into_iter().map(|chunk| Ok::<_, Infallible>(Frame::data(Bytes::from(chunk))));
        let mut lines = Lines::new(StreamBody::new(futures::stream::iter(frames)), limit);
        futures::executor::block_on(async {
            let mut all = Vec::new();
            while let Some(line) = lines.next().await? {
                all.push(line);
            }
            Ok(all)
        })
    }

    #[test]
    fn a_line_too_long_ends_it() {
        assert!(matches!(lines(vec![vec![b'x'; 20]], 10), Err(LinesError::TooLong(10))));
        assert_eq!(lines(vec![b"ab\n\n  \ncd".to_vec()], 10).unwrap(), ["ab"]);
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(text in "[a-c\n ]{0,60}", cut in 0usize..60) {
            let cut = cut.min(text.len());
            let (a, b) = text.split_at(cut);
            let whole = lines(vec![text.as_bytes().to_vec()], 100).unwrap();
            prop_assert_eq!(lines(vec![a.into(), b.into()], 100).unwrap(), whole.clone());
            let finished = text.rsplit_once('\n').map_or("", |(finished, _)| finished);
            let expect: Vec<_> = finished.split('\n').filter(|line| !line.trim().is_empty()).collect();
            prop_assert_eq!(whole, expect);
        }
    }
}
