//! A recording of what `top` was told: small, plain, and readable when it was cut off.
//!
//! # Format, version 1
//!
//! A file is a sequence of gzip members (RFC 1952), so `zcat FILE` shows it whole. Uncompressed it is newline-delimited
//! JSON. The first line is the header:
//!
//! ```json
//! {"meshctl_recording": 1, "meshctl": "0.1.0", "cluster": "demo", "scope": "namespace shop", "window_s": 10, ...}
//! ```
//!
//! Every other line is something that arrived: when it did (Unix milliseconds, never falling), and one of
//!
//! - `golden`: a frame of golden metrics, as the observe API sends it;
//! - `tap`: a single request, or how the tap fares, as the observe API sends it (while the tap screen was open);
//! - `tapped`: what the taps after it are about;
//! - `connected`: `true` when a new stream of frames began; `lost`: why the stream broke.
//!
//! Unknown keys are ignored, so that a line can grow; unknown lines are counted and told. A member holds about a minute,
//! and each line is flushed: a reader can begin at any member, and what was written before a crash can be read.

use crate::error::{Context, Error, Hint, Result};
use crate::golden::Query;
use crate::top::state::Subject;
use bytes::buf::Reader;
use bytes::{Buf, Bytes};
use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use mesh_api::golden::GoldenFrame;
use mesh_api::tap::TapMessage;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// The format that is written, and the newest that is known.
pub const VERSION: u32 = 1;
/// How much time one gzip member holds, milliseconds.
const MEMBER_MS: u64 = 60_000;
/// The longest line that is believed.
const MAX_LINE: u64 = 64 << 20;
/// The largest file that is read, bytes.
const MAX_FILE: u64 = 1 << 30;

/// The first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the format.
    #[serde(rename = "meshctl_recording")]
    pub version: u32,
    /// Who wrote it.
    #[serde(default)]
    pub meshctl: String,
    /// Which cluster was looked at.
    #[serde(default)]
    pub cluster: String,
    /// The namespace that was looked at; all, if none.
    #[serde(default)]
    pub namespace: Option<String>,
    /// What was looked at, as the command line says it.
    #[serde(default)]
    pub resource: String,
    /// Seconds that numbers looked back.
    #[serde(default)]
    pub window_s: u64,
}

impl Header {
    /// The header for what is asked now.
    pub fn of(cluster: &str, query: &Query, window_s: u64) -> Self {
        Self {
            version: VERSION,
            meshctl: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: cluster.to_owned(),
            namespace: query.namespace.clone(),
            resource: query.of.to_string(),
            window_s,
        }
    }
}

/// Any other line; one of the options is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When it arrived, Unix milliseconds.
    pub at_ms: u64,
    /// A frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden: Option<Box<GoldenFrame>>,
    /// A single request, or how the tap fares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<TapMessage>,
    /// What the taps from here on are about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tapped: Option<Subject>,
    /// A new stream of frames begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected: Option<bool>,
    /// The stream of frames broke, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

impl Entry {
    /// True if the line says something that is known.
    fn is_known(&self) -> bool {
        let Entry { at_ms: _, golden, tap, tapped, connected, lost } = self;
        golden.is_some() || tap.is_some() || tapped.is_some() || connected.is_some() || lost.is_some()
    }
}

/// Writes a recording.
pub struct Writer {
    path: PathBuf,
    encoder: Option<GzEncoder<File>>,
    written: u64,
    member_since_ms: Option<u64>,
    last_ms: u64,
}

impl Writer {
    /// Begins a file; one that is there already is not overwritten.
    pub fn create(path: &Path, header: &Header) -> Result<Self> {
        let tried = || format!("record to {}", path.display());
        let file = File::create_new(path)
            .during(tried)
            .hint(|| "choose the name of a new file in a folder you may write to")?;
        let encoder = Some(GzEncoder::new(file, Compression::default()));
        let mut writer = Self { path: path.to_owned(), encoder, written: 0, member_since_ms: None, last_ms: 0 };
        writer.line(header)?;
        Ok(writer)
    }

    /// Adds a line, and tells how many bytes the file has now.
    pub fn add(&mut self, mut entry: Entry) -> Result<u64> {
        // A clock that is set back must not confuse whoever seeks.
        entry.at_ms = entry.at_ms.max(self.last_ms);
        self.last_ms = entry.at_ms;
        let since = *self.member_since_ms.get_or_insert(entry.at_ms);
        if entry.at_ms >= since + MEMBER_MS
            && let Some(encoder) = self.encoder.take()
        {
            let file = encoder.finish().during(|| format!("record to {}", self.path.display()))?;
            self.encoder = Some(GzEncoder::new(file, Compression::default()));
            self.member_since_ms = Some(entry.at_ms);
        }
        self.line(&entry)?;
        Ok(self.written)
    }

    fn line<T: Serialize>(&mut self, line: &T) -> Result<()> {
        let tried = || format!("record to {}", self.path.display());
        let Some(encoder) = &mut self.encoder else { return Err(Error::new("it has ended").during(tried())) };
        let mut text = serde_json::to_vec(line).during(tried)?;
        text.push(b'\n');
        encoder.write_all(&text).and_then(|()| encoder.flush()).during(tried)?;
        self.written = encoder.get_ref().metadata().map(|file| file.len()).unwrap_or(self.written);
        Ok(())
    }

    /// Ends the file.
    pub fn finish(mut self) -> Result<u64> {
        match self.encoder.take() {
            Some(encoder) => {
                let file = encoder.finish().during(|| format!("record to {}", self.path.display()))?;
                Ok(file.metadata().map(|file| file.len()).unwrap_or(self.written))
            }
            None => Ok(self.written),
        }
    }
}

/// A piece of a recording that can be read by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    /// Where it begins in the file.
    offset: usize,
    /// The time of its first entry, Unix milliseconds.
    from_ms: u64,
}

/// A recording, found readable as far as it goes. The file stays compressed in memory; an index says where to begin.
#[derive(Clone, Debug)]
pub struct Recording {
    bytes: Bytes,
    /// The first line.
    pub header: Header,
    members: Vec<Member>,
    /// Time of the first entry, Unix milliseconds.
    pub from_ms: u64,
    /// Time of the last entry, Unix milliseconds.
    pub to_ms: u64,
    /// How many entries there are.
    pub entries: u64,
    /// What is wrong with the file, if something is.
    pub damage: Option<String>,
}

/// As much of an entry as the index needs.
#[derive(Deserialize)]
struct At {
    at_ms: u64,
}

impl Recording {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Self> {
        let tried = || format!("replay {}", path.display());
        let file = File::open(path).during(tried)?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).during(tried)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(Error::new(format!("it is larger than {} MiB", MAX_FILE >> 20)).during(tried()));
        }
        Self::read(bytes).map_err(|error| error.during(tried()))
    }

    /// Reads what can be read of a file.
    pub fn read(bytes: Vec<u8>) -> Result<Self> {
        let bytes = Bytes::from(bytes);
        let not_one = |why: &str| {
            Error::new(format!("it is not a recording of meshctl: {why}"))
                .hint("`meshctl top --record FILE` makes one".to_owned())
        };
        let mut lines = Members::new(bytes.clone(), 0);
        let header = match lines.next_line() {
            Ok(Some((_, line))) => {
                serde_json::from_slice::<Header>(&line).map_err(|_| not_one("its first line is no header"))?
            }
            Ok(None) => return Err(not_one("it is empty")),
            Err(why) => return Err(not_one(&why)),
        };
        let mut recording = Self { bytes, header, members: Vec::new(), from_ms: 0, to_ms: 0, entries: 0, damage: None };
        let mut unknown = 0u64;
        let cut_off = loop {
            match lines.next_line() {
                Ok(None) => break None,
                Err(why) => break Some(why),
                Ok(Some((offset, line))) => match serde_json::from_slice::<At>(&line) {
                    Ok(At { at_ms }) => recording.note(offset, at_ms),
                    Err(_) => unknown += 1,
                },
            }
        };
        if recording.entries == 0 {
            let why = cut_off.unwrap_or_else(|| "nothing was recorded".to_owned());
            return Err(Error::new(format!("there is nothing to show: {why}")).hint("record for longer than a second"));
        }
        let newer = (recording.header.version > VERSION).then(|| {
            let Header { version, meshctl, .. } = &recording.header;
            format!("written by meshctl {meshctl} in format {version}, this one knows up to {VERSION}: what it understands is shown")
        });
        let cut_off = cut_off.map(|why| format!("the recording breaks off here: {why}"));
        let unknown = (unknown > 0).then(|| format!("{unknown} lines could not be read"));
        let damage: Vec<String> = [newer, cut_off, unknown].into_iter().flatten().collect();
        recording.damage = (!damage.is_empty()).then(|| damage.join("; "));
        Ok(recording)
    }

    fn note(&mut self, offset: usize, at_ms: u64) {
        if self.entries == 0 {
            self.from_ms = at_ms;
        }
        if self.members.last().is_none_or(|member| member.offset != offset) {
            self.members.push(Member { offset, from_ms: at_ms });
        }
        self.entries += 1;
        self.to_ms = self.to_ms.max(at_ms);
    }

    /// Reads from the last member that begins at or before a time.
    pub fn from(&self, at_ms: u64) -> Entries {
        let member = self.members.iter().rev().find(|member| member.from_ms <= at_ms).or(self.members.first());
        Entries { lines: Members::new(self.bytes.clone(), member.map_or(self.bytes.len(), |member| member.offset)) }
    }
}

/// The entries from somewhere on; lines that cannot be read are left out.
pub struct Entries {
    lines: Members,
}

impl Iterator for Entries {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            let (_, line) = self.lines.next_line().ok()??;
            if let Some(entry) = serde_json::from_slice(&line).ok().filter(Entry::is_known) {
                return Some(entry);
            }
        }
    }
}

/// Lines of consecutive gzip members.
struct Members {
    bytes: Bytes,
    /// Where the current member begins.
    offset: usize,
    reader: Option<BufReader<GzDecoder<Reader<Bytes>>>>,
}

impl Members {
    fn new(bytes: Bytes, offset: usize) -> Self {
        Self { bytes, offset, reader: None }
    }

    /// The next line and where its member begins; an error says why there is no more.
    fn next_line(&mut self) -> std::result::Result<Option<(usize, Vec<u8>)>, String> {
        loop {
            if self.offset >= self.bytes.len() {
                return Ok(None);
            }
            let (bytes, offset) = (&self.bytes, self.offset);
            let open = || BufReader::new(GzDecoder::new(bytes.slice(offset..).reader()));
            let reader = self.reader.get_or_insert_with(open);
            let mut line = Vec::new();
            match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => {
                    // The decoder takes no more than its member: what it left begins the next one.
                    let left =
                        self.reader.take().map_or(0, |reader| reader.into_inner().into_inner().into_inner().len());
                    self.offset = self.bytes.len() - left;
                }
                Ok(_) if line.ends_with(b"\n") => return Ok(Some((self.offset, line))),
                Ok(_) => return Err("its last line is incomplete".to_owned()),
                Err(cause) => return Err(format!("{cause}")),
            }
        }
    }
}

#[cfg(test)]
#[path = "recording_tests.rs"]
mod tests;
