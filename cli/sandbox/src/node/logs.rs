//! Logs of containers: the last lines of each run with the moment each was written, read back with the options of the
//! log subresource.
//!
//! They are kept in memory, where the node's file system is too, so nothing has to be rotated or parsed.

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::watch;

/// Text kept of one run of a container; older lines go first.
const MAX_BYTES: usize = 1024 * 1024;
/// What a line costs besides its text.
const LINE_COST: usize = 48;
/// A line longer than this is kept in pieces.
pub(super) const MAX_LINE: usize = 16 * 1024;

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

#[derive(Debug, Clone)]
struct Line {
    at: Timestamp,
    /// With its line feed, unless it is a piece of a longer one.
    text: Bytes,
}

/// How much there is of a log.
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    /// Number of the line that comes next.
    next: u64,
    /// Nothing will be added.
    complete: bool,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Number of the first line kept.
    first: u64,
}

/// The log of one run of a container; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Log {
    ring: Arc<Mutex<Ring>>,
    extent: Arc<watch::Sender<Extent>>,
}

impl Log {
    pub(super) fn new() -> Self {
        Self { ring: Arc::default(), extent: Arc::new(watch::channel(Extent::default()).0) }
    }

    /// Adds a line or a piece of one.
    pub(super) fn add(&self, at: Timestamp, text: Bytes) {
        let mut ring = self.ring.lock();
        ring.bytes += text.len() + LINE_COST;
        ring.lines.push_back(Line { at, text });
        while ring.bytes > MAX_BYTES {
            let Some(line) = ring.lines.pop_front() else { break };
            ring.bytes -= line.text.len() + LINE_COST;
            ring.first += 1;
        }
        let next = ring.first + ring.lines.len() as u64;
        drop(ring);
        self.extent.send_modify(|extent| extent.next = next);
    }

    /// Says that nothing will be added.
    pub(super) fn complete(&self) {
        self.extent.send_modify(|extent| extent.complete = true);
    }

    /// The last lines, at most so many bytes, for a termination message.
    pub(super) fn last_text(&self, lines: usize, bytes: usize) -> String {
        let ring = self.ring.lock();
        let start = ring.lines.len().saturating_sub(lines);
        let text: Vec<u8> = ring.lines.iter().skip(start).flat_map(|line| line.text.iter().copied()).collect();
        String::from_utf8_lossy(&text[text.len().saturating_sub(bytes)..]).into_owned()
    }

    /// Reads it.
    pub(super) fn read(&self, options: &LogOptions) -> LogStream {
        let start = {
            let ring = self.ring.lock();
            let since = options.since.map_or(0, |since| ring.lines.partition_point(|line| line.at < since));
            let tail = options.tail.map_or(0, |tail| position_of_tail(&ring.lines, tail));
            ring.first + since.max(tail) as u64
        };
        let reader = Reader {
            log: self.clone(),
            next: start,
            extent: self.extent.subscribe(),
            follow: options.follow,
            timestamps: options.timestamps,
            left: options.limit_bytes,
            at_line_start: true,
        };
        stream::unfold(reader, |mut reader| async move { reader.next().await.map(|text| (Ok(text), reader)) }).boxed()
    }
}

/// Where the last `count` lines begin; pieces of a line count as one.
fn position_of_tail(lines: &VecDeque<Line>, count: usize) -> usize {
    let mut position = lines.len();
    let mut left = count;
    while position > 0 {
        // A line feed ends the line before this position.
        let ends_line = lines[position - 1].text.last() == Some(&b'\n') || position == lines.len();
        if ends_line {
            if left == 0 {
                return position;
            }
            left -= 1;
        }
        position -= 1;
    }
    0
}

struct Reader {
    log: Log,
    next: u64,
    extent: watch::Receiver<Extent>,
    follow: bool,
    timestamps: bool,
    left: Option<u64>,
    at_line_start: bool,
}

impl Reader {
    /// The next text; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.left == Some(0) {
            return None;
        }
        loop {
            let extent = *self.extent.borrow_and_update();
            if extent.next > self.next {
                let text = self.take();
                return (!text.is_empty()).then_some(text);
            }
            if !self.follow || extent.complete || self.extent.changed().await.is_err() {
                return None;
            }
        }
    }

    /// What there is, as one piece of bounded size.
    fn take(&mut self) -> Bytes {
        const ENOUGH: usize = 64 * 1024;
        let ring = self.log.ring.lock();
        let mut text = BytesMut::new();
        let skip = self.next.saturating_sub(ring.first) as usize;
        self.next = self.next.max(ring.first);
        for line in ring.lines.iter().skip(skip) {
            if text.len() >= ENOUGH {
                break;
            }
            if self.timestamps && self.at_line_start {
                text.extend_from_slice(format!("{:.9} ", line.at).as_bytes());
            }
            self.at_line_start = line.text.last() == Some(&b'\n');
            text.extend_from_slice(&line.text);
            self.next += 1;
        }
        if let Some(left) = &mut self.left {
            text.truncate((*left).min(text.len() as u64) as usize);
            *left -= text.len() as u64;
        }
        text.freeze()
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub(super) struct LineCutter {
    rest: BytesMut,
}

impl LineCutter {
    /// Takes more bytes and gives out the lines they complete, and pieces of lines that are too long.
    pub(super) fn push(&mut self, bytes: &[u8], mut line: impl FnMut(Bytes)) {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().take(MAX_LINE).position(|byte| *byte == b'\n') {
            line(self.rest.split_to(end + 1).freeze());
        }
        while self.rest.len() >= MAX_LINE {
            line(self.rest.split_to(MAX_LINE).freeze());
        }
    }

    /// What is left at the end.
    pub(super) fn finish(self) -> Option<Bytes> {
        (!self.rest.is_empty()).then(|| self.rest.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::constant(second, 0)
    }

    fn log() -> Log {
        let log = Log::new();
        for (second, text) in [(1, "one\n"), (2, "two-"), (2, "half\n"), (3, "three\n")] {
            log.add(at(second), Bytes::from_static(text.as_bytes()));
        }
        log
    }

    async fn read(log: &Log, options: LogOptions) -> String {
        let parts: Vec<_> = log.read(&options).collect().await;
        parts.into_iter().map(|part| String::from_utf8(part.unwrap().to_vec()).unwrap()).collect()
    }

    #[tokio::test]
    async fn options_choose() {
        let log = log();
        let none = LogOptions::default;
        assert_eq!(read(&log, none()).await, "one\ntwo-half\nthree\n");
        assert_eq!(read(&log, LogOptions { tail: Some(2), ..none() }).await, "two-half\nthree\n");
        assert_eq!(read(&log, LogOptions { tail: Some(0), ..none() }).await, "");
        assert_eq!(read(&log, LogOptions { tail: Some(9), ..none() }).await, "one\ntwo-half\nthree\n");
        assert_eq!(read(&log, LogOptions { since: Some(at(3)), ..none() }).await, "three\n");
        assert_eq!(read(&log, LogOptions { limit_bytes: Some(6), ..none() }).await, "one\ntw");
        let stamped = read(&log, LogOptions { timestamps: true, tail: Some(2), ..none() }).await;
        assert_eq!(stamped, "1970-01-01T00:00:02.000000000Z two-half\n1970-01-01T00:00:03.000000000Z three\n");
    }

    #[tokio::test]
    async fn following_ends_with_the_container() {
        let log = log();
        let mut stream = log.read(&LogOptions { follow: true, tail: Some(1), ..LogOptions::default() });
        assert_eq!(stream.next().await.unwrap().unwrap(), "three\n");
        let writer = log.clone();
        let task = tokio::spawn(async move {
            writer.add(at(4), Bytes::from_static(b"four\n"));
            writer.complete();
        });
        assert_eq!(stream.next().await.unwrap().unwrap(), "four\n");
        assert!(stream.next().await.is_none());
        task.await.unwrap();
    }

    #[tokio::test]
    async fn old_lines_go() {
        let log = Log::new();
        for n in 0..100_000 {
            log.add(at(n), Bytes::from(format!("{n}\n")));
        }
        let text = read(&log, LogOptions::default()).await;
        assert!(text.ends_with("99999\n") && text.len() < MAX_BYTES && !text.starts_with("0\n"));
    }

    #[test]
    fn lines_are_cut() {
        let mut cutter = LineCutter::default();
        let mut lines = Vec::new();
        for part in ["a", "b\nc\n", "\nrest", &"x".repeat(MAX_LINE)] {
            cutter.push(part.as_bytes(), |line| lines.push(line.len()));
        }
        assert_eq!(lines, [3, 2, 1, MAX_LINE]);
        assert_eq!(cutter.finish().unwrap().len(), 4);
    }
}
