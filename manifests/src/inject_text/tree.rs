//! A document's structure with the place of every part in the text.

use super::report::Fault;
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle};

/// Deepest nesting that is followed.
pub(super) const DEPTH: usize = 100;

/// A value and where it stands: byte offsets into the text.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) start: usize,
    /// After the last byte that belongs to it, without what follows on its line.
    pub(super) end: usize,
    /// From 1.
    pub(super) line: usize,
    /// Something else in the document may refer to it.
    pub(super) anchored: bool,
    pub(super) kind: Kind,
}

/// What a value is.
#[derive(Debug)]
pub(super) enum Kind {
    Map {
        flow: bool,
        entries: Vec<Entry>,
    },
    Seq {
        flow: bool,
        items: Vec<Node>,
    },
    /// `null` tells an unquoted scalar that means nothing.
    Scalar {
        text: String,
        null: bool,
    },
    Alias,
}

/// A key of a map with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Node,
    pub(super) value: Node,
}

impl Entry {
    /// Where the entry ends: an empty value has no place of its own.
    pub(super) fn end(&self) -> usize {
        self.value.end.max(self.key.end)
    }
}

impl Node {
    /// The text of a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Entries of a map; none for anything else.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.kind {
            Kind::Map { entries, .. } => entries,
            _ => &[],
        }
    }

    /// The entry of a key.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|e| e.key.text() == Some(key))
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|e| &e.value)
    }

    /// What a person would call it.
    pub(super) fn describe(&self) -> &'static str {
        match &self.kind {
            Kind::Map { .. } => "a map",
            Kind::Seq { .. } => "a list",
            Kind::Scalar { null: true, .. } => "nothing",
            Kind::Scalar { .. } => "a single value",
            Kind::Alias => "a reference",
        }
    }
}

/// Reads one document; `None` if it holds nothing. Errors come with their line.
pub(super) fn parse(text: &str) -> Result<Option<Node>, (usize, Fault)> {
    let mut builder = Builder { parser: Parser::new_from_str(text), text, line: 1 };
    loop {
        let (event, span) = builder.next()?;
        match event {
            Event::StreamEnd => return Ok(None),
            Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
            event => {
                let node = builder.node(event, span, 0)?;
                // To the end, so that an error behind the first value shows.
                loop {
                    match builder.next()?.0 {
                        Event::StreamEnd => break,
                        Event::DocumentStart(..) => {
                            let why = "a second document begins here without a `---` before it".to_owned();
                            return Err((builder.line, Fault::NotYaml(why)));
                        }
                        _ => {}
                    }
                }
                let nothing = matches!(node.kind, Kind::Scalar { null: true, .. });
                return Ok((!nothing).then_some(node));
            }
        }
    }
}

struct Builder<'t> {
    parser: Parser<'t, serde_saphyr::granit_parser::StrInput<'t>>,
    text: &'t str,
    line: usize,
}

type Found<T> = Result<T, (usize, Fault)>;

impl<'t> Builder<'t> {
    fn next(&mut self) -> Found<(Event<'t>, Span)> {
        loop {
            match self.parser.next_event() {
                None => return Ok((Event::StreamEnd, Span::default())),
                Some(Err(e)) => {
                    let (line, column) = (e.marker().line(), e.marker().col() + 1);
                    return Err((line, Fault::NotYaml(format!("{} (column {column})", e.info()))));
                }
                Some(Ok((event, span))) if event.is_node() || is_structure(&event) => {
                    self.line = span.start.line();
                    return Ok((event, span));
                }
                // Comments say nothing about the structure.
                Some(Ok(_)) => {}
            }
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Found<Node> {
        if depth > DEPTH {
            return Err((span.start.line(), Fault::TooDeep));
        }
        let range = span.byte_range().unwrap_or_default();
        let anchored = event.anchor_id().is_some_and(|id| id != 0);
        let line = span.start.line();
        let (kind, end) = match event {
            Event::Scalar(text, style, _, tag) => {
                let plain = matches!(style, ScalarStyle::Plain) && tag.is_none();
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let written = self.text.get(range.clone()).unwrap_or_default().trim_end();
                // What is not written stands nowhere.
                let end = if written.is_empty() { 0 } else { range.start + written.len() };
                (Kind::Scalar { text: text.into_owned(), null }, end)
            }
            Event::MappingStart(style, ..) => self.map(style, range.start, depth)?,
            Event::SequenceStart(style, ..) => self.seq(style, range.start, depth)?,
            _ => (Kind::Alias, range.end),
        };
        Ok(Node { start: range.start.min(end), end, line, anchored, kind })
    }

    fn map(&mut self, style: StructureStyle, start: usize, depth: usize) -> Found<(Kind, usize)> {
        let flow = matches!(style, StructureStyle::Flow);
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd | Event::StreamEnd) {
                let last = entries.last().map_or(start, Entry::end);
                return Ok((Kind::Map { flow, entries }, end(flow, &span, last)));
            }
            let key = self.node(event, span, depth + 1)?;
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            entries.push(Entry { key, value });
        }
    }

    fn seq(&mut self, style: StructureStyle, start: usize, depth: usize) -> Found<(Kind, usize)> {
        let flow = matches!(style, StructureStyle::Flow);
        let mut items: Vec<Node> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd | Event::StreamEnd) {
                let last = items.last().map_or(start, |i| i.end);
                return Ok((Kind::Seq { flow, items }, end(flow, &span, last)));
            }
            items.push(self.node(event, span, depth + 1)?);
        }
    }
}

/// A block has no closing mark; it ends with its last part.
fn end(flow: bool, close: &Span, last: usize) -> usize {
    if flow { close.byte_range().map_or(last, |r| r.end) } else { last }
}

fn is_structure(event: &Event<'_>) -> bool {
    matches!(
        event,
        Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd
            | Event::MappingEnd
            | Event::SequenceEnd
    )
}
