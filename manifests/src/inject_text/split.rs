//! Cuts a stream into documents without understanding them: at `---` before a document and after `...` at its end.
//! Neither can stand at the start of a line inside a document, whatever it holds.

use super::report::{Fault, StreamError};
use std::io::BufRead;

/// Longest document that is read. Kubernetes itself takes no object above 3 MiB; a List may hold many.
pub(super) const DOCUMENT_BYTES: usize = 64 << 20;

/// A document with its markers and directives, as it stands in the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Document {
    pub(super) source_name: String,
    pub(super) text: String,
    /// Counted from 1.
    pub(super) number: usize,
    /// Line of the stream on which the text begins, from 1.
    pub(super) line: usize,
}

impl Document {
    /// An error about a line of the text, counted from 1.
    pub(super) fn fault(&self, line: usize, fault: Fault) -> StreamError {
        let line = self.line + line.max(1) - 1;
        StreamError::Document { source_name: self.source_name.clone(), document: self.number, line, fault }
    }
}

/// Reads documents one after the other.
pub(super) struct Documents<R> {
    source_name: String,
    input: R,
    /// A line read ahead: the marker of the next document.
    ahead: Vec<u8>,
    number: usize,
    /// Lines handed out so far.
    lines: usize,
}

/// What a line means for the cutting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    /// `---`
    Start,
    /// `...`
    End,
    /// Blank, a comment or a directive.
    Prefix,
    Content,
}

fn classify(line: &[u8]) -> Line {
    // A byte order mark is not content.
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
    let marker = |m: &[u8]| line.strip_prefix(m).is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace));
    if marker(b"---") {
        return Line::Start;
    }
    if marker(b"...") {
        return Line::End;
    }
    match line.trim_ascii_start().first() {
        None | Some(b'#') => Line::Prefix,
        Some(b'%') if line.starts_with(b"%") => Line::Prefix,
        Some(_) => Line::Content,
    }
}

impl<R: BufRead> Documents<R> {
    pub(super) fn new(source_name: &str, input: R) -> Self {
        Self { source_name: source_name.to_owned(), input, ahead: Vec::new(), number: 0, lines: 0 }
    }

    /// The next document; what stands before its `---` belongs to it. `None` at the end of the stream.
    pub(super) fn next(&mut self) -> Result<Option<Document>, StreamError> {
        let mut text = std::mem::take(&mut self.ahead);
        let mut begun = !text.is_empty();
        let mut line = Vec::new();
        loop {
            line.clear();
            let limit = DOCUMENT_BYTES.saturating_sub(text.len()) as u64 + 1;
            let read = std::io::Read::take(&mut self.input, limit).read_until(b'\n', &mut line);
            let read = read.map_err(|error| StreamError::Read { source_name: self.source_name.clone(), error })?;
            if read == 0 {
                break;
            }
            if text.len() + line.len() > DOCUMENT_BYTES {
                let document = self.document(String::new(), begun);
                return Err(document.fault(1, Fault::TooLarge));
            }
            match classify(&line) {
                Line::Start if begun => {
                    self.ahead = std::mem::take(&mut line);
                    break;
                }
                Line::Start | Line::Content => begun = true,
                Line::End => {
                    text.extend_from_slice(&line);
                    break;
                }
                Line::Prefix => {}
            }
            text.extend_from_slice(&line);
        }
        if text.is_empty() {
            return Ok(None);
        }
        match String::from_utf8(text) {
            Ok(text) => Ok(Some(self.document(text, begun))),
            Err(e) => {
                let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
                let lines = good.iter().filter(|b| **b == b'\n').count() + 1;
                Err(self.document(String::new(), begun).fault(lines, Fault::NotText))
            }
        }
    }

    fn document(&mut self, text: String, begun: bool) -> Document {
        self.number += usize::from(begun);
        let line = self.lines + 1;
        self.lines += text.bytes().filter(|b| *b == b'\n').count();
        Document { source_name: self.source_name.clone(), text, number: self.number.max(1), line }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<(usize, usize, String)> {
        let mut documents = Documents::new("test", text.as_bytes());
        let mut all = Vec::new();
        while let Some(document) = documents.next().unwrap() {
            all.push((document.number, document.line, document.text));
        }
        assert_eq!(all.iter().map(|d| d.2.as_str()).collect::<String>(), text);
        all
    }

    #[test]
    fn documents_are_cut_at_their_markers_and_nowhere_else() {
        for (text, expect) in [
            ("", vec![]),
            ("a: 1\n", vec![(1, 1, "a: 1\n")]),
            ("a: 1", vec![(1, 1, "a: 1")]),
            ("---\na: 1\n---\nb: 2\n", vec![(1, 1, "---\na: 1\n"), (2, 3, "---\nb: 2\n")]),
            ("# head\n\n---\na: 1\n", vec![(1, 1, "# head\n\n---\na: 1\n")]),
            ("a: 1\n# between\n---\nb: 2", vec![(1, 1, "a: 1\n# between\n"), (2, 3, "---\nb: 2")]),
            ("---\n---\nb: 2", vec![(1, 1, "---\n"), (2, 2, "---\nb: 2")]),
            ("a: |\n  ---\n  x\n", vec![(1, 1, "a: |\n  ---\n  x\n")]),
            ("a: 1\n----\n", vec![(1, 1, "a: 1\n----\n")]),
            ("--- # c\r\na: 1\r\n---\r\nb: 2", vec![(1, 1, "--- # c\r\na: 1\r\n"), (2, 3, "---\r\nb: 2")]),
            (
                "%YAML 1.2\n---\na: 1\n...\n%YAML 1.2\n---\nb: 2\n",
                vec![(1, 1, "%YAML 1.2\n---\na: 1\n...\n"), (2, 5, "%YAML 1.2\n---\nb: 2\n")],
            ),
            ("a: 1\n...\n# the end\n", vec![(1, 1, "a: 1\n...\n"), (1, 3, "# the end\n")]),
        ] {
            let expect: Vec<_> = expect.into_iter().map(|(n, l, t)| (n, l, t.to_owned())).collect();
            assert_eq!(split(text), expect, "{text}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_placed() {
        let mut documents = Documents::new("x.yaml", &b"a: 1\n---\nb: 2\nc: \xff\n"[..]);
        documents.next().unwrap();
        let error = documents.next().unwrap_err().to_string();
        assert_eq!(error, "x.yaml: document 2, line 4: expected text in UTF-8, found other bytes");
    }
}
