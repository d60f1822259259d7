//! Logs of containers: bounded files with a timestamp a line, read back with the options of the log subresource.

use bytes::Bytes;
use futures::stream::BoxStream;

/// What part of a log is asked for; as the query parameters of `pods/log`.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on as the container writes, until it ends.
    pub follow: bool,
    /// The container before the last restart.
    pub previous: bool,
    /// Begin every line with when it was written.
    pub timestamps: bool,
    /// Only lines written at or after this moment.
    pub since: Option<jiff::Timestamp>,
    /// Only the last lines.
    pub tail: Option<usize>,
    /// End after so many bytes.
    pub limit_bytes: Option<u64>,
}

/// The text of a log as it comes.
pub type LogStream = BoxStream<'static, std::io::Result<Bytes>>;
