//! `meshctl inject` and `uninject`: manifests in, the same manifests out, with or without a sidecar.
//!
//! Works on the text, not on objects: comments, order, quoting, unknown kinds and every other byte stay as they are.
//! A stream is read document by document, so memory does not grow with it. `uninject` gives back the very bytes that
//! `inject` was given (of a manifest that had no `meshctl.dev/inject` of its own).
//!
//! [`transform`] writes while it reads. To write nothing unless all is well, use [`transform_checked`], which reads
//! its input twice, or run [`check`] over all inputs first.

mod document;
mod edit;
mod located;
mod report;
mod split;
mod tree;

pub use located::{Located, read_objects};
pub use report::{Outcome, Report, StreamError};

use crate::config::MeshConfig;
use split::Documents;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};

/// What to do with workloads.
#[derive(Clone, Copy, Debug)]
pub enum Mode<'a> {
    /// Ask for a proxy by annotation; the cluster's injector adds it.
    Annotate,
    /// Write the proxy itself, for clusters without an injector.
    Manual(&'a MeshConfig),
    /// Take both back.
    Uninject,
}

/// Rewrites a stream of documents. `source_name` is how messages call it; `report` hears of every object.
pub fn transform(
    source_name: &str,
    input: impl Read,
    mut output: impl Write,
    mode: Mode<'_>,
    report: &mut dyn FnMut(Report),
) -> Result<(), StreamError> {
    let mut documents = Documents::new(source_name, BufReader::new(input));
    while let Some(document) = documents.next()? {
        let text = document::rewrite(&document, mode, report)?;
        output.write_all(text.as_bytes()).map_err(StreamError::Write)?;
    }
    output.flush().map_err(StreamError::Write)
}

/// Finds out whether [`transform`] would succeed.
pub fn check(source_name: &str, input: impl Read, mode: Mode<'_>) -> Result<(), StreamError> {
    transform(source_name, input, std::io::sink(), mode, &mut |_| {})
}

/// [`transform`], after a [`check`] of the whole input: nothing is written unless all of it is well.
pub fn transform_checked(
    source_name: &str,
    mut input: impl Read + Seek,
    output: impl Write,
    mode: Mode<'_>,
    report: &mut dyn FnMut(Report),
) -> Result<(), StreamError> {
    let rewound = |error| StreamError::Read { source_name: source_name.to_owned(), error };
    let start = input.stream_position().map_err(rewound)?;
    check(source_name, &mut input, mode)?;
    input.seek(SeekFrom::Start(start)).map_err(rewound)?;
    transform(source_name, input, output, mode, report)
}

#[cfg(test)]
mod tests;
