//! Adding to a document's text and taking out again, so that the second undoes the first to the byte.
//!
//! There are no marks in the text, so the shape of what is added tells how it came there:
//!
//! | before | in a block | in a flow (`{…}`, JSON) |
//! |---|---|---|
//! | the map or list holds something | lines at its head | parts at its head, `, ` (JSON: `,`) after each |
//! | it is there and empty, `{}` | | parts right after the opening mark |
//! | it isn't there | key, then lines 2 deeper (list items: as deep) | key, then parts with 1 space inside the marks |
//! | it is there and nothing | lines 4 deeper than the key | |
//! | it is `~`, `null`, `Null`, `NULL` | parts with 2, 3, 4, 5 spaces inside the marks | the same |
//!
//! What has to stand last in a list that holds something follows the last item, as lines or as parts with the separator
//! before each.

use super::tree::{Entry, Kind, Node};
use crate::yaml::{self, YamlError};
use serde_json::Value;
use std::ops::Range;

/// Spellings of nothing, each with its number of spaces inside the marks that replace it.
const NULLS: [(&str, usize); 4] = [("~", 2), ("null", 3), ("Null", 4), ("NULL", 5)];
/// Spaces inside the marks of what was not there at all.
const CREATED: usize = 1;
/// Indentation of what was nothing, relative to its key.
const FROM_NOTHING: usize = 4;

/// A replacement of a range of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Edit {
    pub(super) range: Range<usize>,
    pub(super) text: String,
}

/// Applies edits that do not overlap. Insertions at one place keep their order.
pub(super) fn apply(text: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|e| (e.range.start, e.range.end));
    let mut out = String::with_capacity(text.len() + edits.iter().map(|e| e.text.len()).sum::<usize>());
    let mut at = 0;
    for edit in edits {
        out.push_str(text.get(at..edit.range.start).unwrap_or_default());
        out.push_str(&edit.text);
        at = at.max(edit.range.end);
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out
}

/// Why the text cannot be edited at a place, for the report.
#[derive(Debug, thiserror::Error)]
pub(super) enum Obstacle {
    #[error("{0}")]
    Form(String),
    #[error(transparent)]
    Yaml(#[from] YamlError),
}

fn obstacle<T>(why: impl Into<String>) -> Result<T, Obstacle> {
    Err(Obstacle::Form(why.into()))
}

/// What is added to a map or a list.
pub(super) enum Payload {
    Entries(Vec<(&'static str, Value)>),
    /// Before what a list holds.
    Items(Vec<Value>),
    /// Behind what it holds.
    Last(Vec<Value>),
}

impl Payload {
    /// As the lines of a block.
    fn lines(&self, indent: usize) -> Result<Vec<String>, YamlError> {
        let text = match self {
            Self::Entries(entries) => {
                let map = entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
                yaml::one(&Value::Object(map))?
            }
            Self::Items(items) | Self::Last(items) => yaml::one(&Value::Array(items.clone()))?,
        };
        let pad = " ".repeat(indent);
        Ok(text.lines().map(|l| if l.is_empty() { String::new() } else { format!("{pad}{l}") }).collect())
    }

    /// As parts of a flow, each followed by the separator if `more` follow.
    fn parts(&self, more: bool, json: bool) -> Result<String, YamlError> {
        let mut parts: Vec<String> = match self {
            Self::Entries(entries) => entries
                .iter()
                .map(|(key, value)| match json {
                    true => Ok(format!("{}:{value}", Value::from(*key))),
                    false => Ok(format!("{key}: {}", yaml::one(value)?.trim_end())),
                })
                .collect::<Result<_, YamlError>>()?,
            Self::Items(items) | Self::Last(items) => items.iter().map(Value::to_string).collect(),
        };
        if more {
            parts.push(String::new());
        }
        Ok(parts.join(separator(json)))
    }

    fn marks(&self) -> (char, char) {
        match self {
            Self::Entries(_) => ('{', '}'),
            Self::Items(_) | Self::Last(_) => ('[', ']'),
        }
    }
}

/// What is taken out of a map or a list, however it came there.
pub(super) enum Known<'a> {
    /// Keys of a map, where a value is given only with this value.
    Keys(&'a [(&'a str, Option<&'a str>)]),
    /// Items of a list by their `name`.
    Names(&'a [&'a str]),
}

impl Known<'_> {
    fn recognises(&self, child: &Child<'_>) -> bool {
        match (self, child) {
            (Self::Keys(keys), Child::Entry(e)) => keys
                .iter()
                .any(|(key, value)| e.key.text() == Some(key) && value.is_none_or(|v| e.value.text() == Some(v))),
            (Self::Names(names), Child::Item(node)) => name(node).is_some_and(|n| names.contains(&n)),
            _ => false,
        }
    }
}

fn name(node: &Node) -> Option<&str> {
    node.get("name")?.text()
}

fn separator(json: bool) -> &'static str {
    if json { "," } else { ", " }
}

/// A document that is edited.
pub(super) struct Editor<'t> {
    pub(super) text: &'t str,
    /// The whole document is one flow, like JSON.
    pub(super) json: bool,
}

/// An entry of a map or an item of a list.
#[derive(Clone, Copy)]
enum Child<'n> {
    Entry(&'n Entry),
    Item(&'n Node),
}

impl Child<'_> {
    fn end(&self) -> usize {
        match self {
            Child::Entry(e) => e.end(),
            Child::Item(n) => n.end,
        }
    }
}

fn children(node: &Node) -> Vec<Child<'_>> {
    match &node.kind {
        Kind::Map { entries, .. } => entries.iter().map(Child::Entry).collect(),
        Kind::Seq { items, .. } => items.iter().map(Child::Item).collect(),
        _ => Vec::new(),
    }
}

fn is_flow(node: &Node) -> bool {
    matches!(node.kind, Kind::Map { flow: true, .. } | Kind::Seq { flow: true, .. })
}

impl Editor<'_> {
    /// The edit that adds `payload` at the head of the map or list at `path` below `root`, making it if need be.
    pub(super) fn add(&self, root: &Node, path: &[&str], payload: &Payload) -> Result<Edit, Obstacle> {
        let (mut at, mut key): (&Node, Option<&Node>) = (root, None);
        for (depth, step) in path.iter().enumerate() {
            self.may_edit(at, path, depth)?;
            let Some(entry) = at.entry(step) else {
                return self.insert(at, key, &path[depth..], payload);
            };
            if let Kind::Scalar { null: true, .. } = entry.value.kind {
                return self.fill(at, entry, &path[depth + 1..], payload);
            }
            (at, key) = (&entry.value, Some(&entry.key));
        }
        match (&at.kind, payload) {
            (Kind::Seq { items, .. }, Payload::Last(_)) if !at.anchored && !items.is_empty() => {
                return self.append(at, payload);
            }
            (Kind::Seq { .. }, Payload::Items(_) | Payload::Last(_)) if !at.anchored => {}
            (Kind::Map { .. }, Payload::Entries(_)) => self.may_edit(at, path, path.len())?,
            _ => return obstacle(format!("its {} is {}, which cannot be added to", path.join("."), at.describe())),
        }
        self.insert(at, key, &[], payload)
    }

    /// Parts added at the same place of an empty flow need a separator between them, too.
    pub(super) fn side_by_side(&self, mut edits: Vec<Edit>) -> Vec<Edit> {
        for i in 1..edits.len() {
            let (before, rest) = edits.split_at_mut(i);
            if let (Some(before), Some(edit)) = (before.last_mut(), rest.first())
                && before.range == edit.range
                && !before.text.ends_with([',', ' ', '\n'])
            {
                before.text.push_str(separator(self.json));
            }
        }
        edits
    }

    fn may_edit(&self, map: &Node, path: &[&str], depth: usize) -> Result<(), Obstacle> {
        let place = if depth == 0 { "pod template".to_owned() } else { path[..depth].join(".") };
        let Kind::Map { .. } = map.kind else {
            return obstacle(format!("its {place} is {}, which cannot be added to", map.describe()));
        };
        if map.anchored && depth > 0 {
            return obstacle(format!("its {place} is shared with other objects by a YAML anchor"));
        }
        match map.entry("<<").is_some() && depth > 0 {
            true => obstacle(format!("its {place} is merged from elsewhere by a YAML `<<`")),
            false => Ok(()),
        }
    }

    /// Adds to `parent`, the value of `key`, a chain of new keys that ends in the payload.
    fn insert(&self, parent: &Node, key: Option<&Node>, chain: &[&str], payload: &Payload) -> Result<Edit, Obstacle> {
        let more = !children(parent).is_empty();
        if is_flow(parent) {
            let at = parent.start + 1;
            return Ok(Edit { range: at..at, text: self.flow(chain, payload, more)? });
        }
        let (first, column, own_line) = self.head(parent)?;
        let newline = self.newline(first);
        let lines = block(chain, payload, column)?;
        if !own_line {
            // Behind a `- `: the first line goes there, the old first line gets one of its own.
            let text = lines.join(newline).trim_start().to_owned() + newline + &" ".repeat(column);
            return Ok(Edit { range: first..first, text });
        }
        let line = self.line_start(first);
        let at = match key.map(|k| self.line_end(k.end) + 1) {
            Some(below) if below <= line && self.only_comments(below..line) => below,
            _ => line,
        };
        Ok(Edit { range: at..at, text: lines.join(newline) + newline })
    }

    /// Adds behind the last item of a list that holds some.
    fn append(&self, list: &Node, payload: &Payload) -> Result<Edit, Obstacle> {
        let Some(last) = children(list).last().map(Child::end) else { return obstacle("it is empty") };
        if is_flow(list) {
            let text = separator(self.json).to_owned() + &payload.parts(false, self.json)?;
            return Ok(Edit { range: last..last, text });
        }
        let (first, column, _) = self.head(list)?;
        let (newline, lines) = (self.newline(first), payload.lines(column)?.join(self.newline(first)));
        let end = self.line_end(last);
        Ok(match end < self.text.len() {
            true => Edit { range: end + 1..end + 1, text: lines + newline },
            false => Edit { range: end..end, text: newline.to_owned() + &lines },
        })
    }

    /// Gives a key without a value one.
    fn fill(&self, parent: &Node, entry: &Entry, chain: &[&str], payload: &Payload) -> Result<Edit, Obstacle> {
        let value = &entry.value;
        if value.end > 0 {
            let written = &self.text[value.start..value.end];
            let Some((_, pad)) = NULLS.iter().find(|(spelling, _)| *spelling == written) else {
                return obstacle(format!("its {} cannot be read", entry.key.text().unwrap_or_default()));
            };
            let text = self.enclosed(chain, payload, *pad)?;
            return Ok(Edit { range: value.start..value.end, text });
        }
        let end = self.line_end(entry.key.end);
        let rest = self.text[entry.key.end..end].trim_start().strip_prefix(':').map(str::trim_start);
        let plain = rest.is_some_and(|r| r.is_empty() || r.starts_with('#'));
        if is_flow(parent) || !plain {
            return obstacle(format!("its {} has no value", entry.key.text().unwrap_or_default()));
        }
        let column = self.column(entry.key.start) + FROM_NOTHING;
        let newline = self.newline(entry.key.start);
        let text: String = block(chain, payload, column)?.iter().map(|l| format!("{newline}{l}")).collect();
        let at = if self.text[..end].ends_with('\r') { end - 1 } else { end };
        Ok(Edit { range: at..at, text })
    }

    fn flow(&self, chain: &[&str], payload: &Payload, more: bool) -> Result<String, YamlError> {
        let Some((key, below)) = chain.split_first() else { return payload.parts(more, self.json) };
        let key = if self.json { format!("{}:", Value::from(*key)) } else { format!("{key}: ") };
        let separator = if more { separator(self.json) } else { "" };
        Ok(format!("{key}{}{separator}", self.enclosed(below, payload, CREATED)?))
    }

    fn enclosed(&self, chain: &[&str], payload: &Payload, pad: usize) -> Result<String, YamlError> {
        let (open, close) = if chain.is_empty() { payload.marks() } else { ('{', '}') };
        let pad = " ".repeat(pad);
        Ok(format!("{open}{pad}{}{pad}{close}", self.flow(chain, payload, false)?))
    }

    /// The edits that take out of the map or list at `path` what is `known`; none if nothing is there.
    pub(super) fn remove(&self, root: &Node, path: &[&str], known: &Known<'_>) -> Result<Vec<Edit>, Obstacle> {
        let mut way: Vec<(&Node, &Entry)> = Vec::new();
        let mut at = root;
        for step in path {
            let Some(entry) = at.entry(step) else { return Ok(Vec::new()) };
            way.push((at, entry));
            at = &entry.value;
        }
        let all = children(at);
        let ours: Vec<usize> = (0..all.len()).filter(|i| known.recognises(&all[*i])).collect();
        if ours.is_empty() {
            return Ok(Vec::new());
        }
        if ours.len() < all.len() {
            return ours.iter().map(|i| self.cut(at, *i)).collect();
        }
        self.vacate(at, &way)
    }

    /// Empties a map or list of all it holds; if it was made for that, it goes as well.
    fn vacate(&self, node: &Node, way: &[(&Node, &Entry)]) -> Result<Vec<Edit>, Obstacle> {
        let all = children(node);
        let (Some((parent, entry)), Some(last)) = (way.last(), all.last()) else { return Ok(Vec::new()) };
        let last = last.end();
        if is_flow(node) {
            let first = self.child_start(&all[0])?;
            let inside = |range: Range<usize>| {
                let text = self.text.get(range).unwrap_or_default();
                text.bytes().all(|b| b == b' ').then_some(text.len())
            };
            let pads = (inside(node.start + 1..first), inside(last..node.end - 1));
            match pads {
                (Some(CREATED), Some(CREATED)) => {}
                (Some(left), Some(right)) if left == right && left > CREATED => {
                    let spelling = NULLS.iter().find(|(_, pad)| *pad == left).map_or("null", |(s, _)| s);
                    return Ok(vec![Edit { range: node.start..node.end, text: spelling.to_owned() }]);
                }
                _ => return Ok(vec![Edit { range: first..last, text: String::new() }]),
            }
        } else {
            let deeper = self.column(self.child_start(&all[0])?).saturating_sub(self.column(entry.key.start));
            if deeper == FROM_NOTHING {
                let mut from = self.line_end(entry.key.end);
                if self.text[..from].ends_with('\r') {
                    from -= 1;
                }
                let mut to = self.line_end(last);
                if self.text[..to].ends_with('\r') {
                    to -= 1;
                }
                return Ok(vec![Edit { range: from..to, text: String::new() }]);
            }
        }
        // The pod template and its spec were there before; metadata may have been made, too.
        let siblings = parent.entries().len();
        if siblings == 1 && way.len() > 1 {
            return self.vacate(parent, &way[..way.len() - 1]);
        }
        let index = parent.entries().iter().position(|e| std::ptr::eq(e, *entry)).unwrap_or_default();
        Ok(vec![self.cut(parent, index)?])
    }

    /// Takes one child out of a map or list that keeps others.
    fn cut(&self, node: &Node, index: usize) -> Result<Edit, Obstacle> {
        let all = children(node);
        let (start, end) = (self.child_start(&all[index])?, all[index].end());
        let next = all.get(index + 1).map(|c| self.child_start(c)).transpose()?;
        let range = match (is_flow(node), next) {
            (true, Some(next)) => {
                let separator = separator(self.json);
                match self.as_we_write(&all[index]) && self.text[end..].starts_with(separator) {
                    true => start..end + separator.len(),
                    false => start..next,
                }
            }
            (true, None) => match index.checked_sub(1) {
                Some(before) => all[before].end()..end,
                None => start..end,
            },
            (false, next) => {
                let line = self.line_start(start);
                let own_line = self.text[line..start].bytes().all(|b| b == b' ');
                match (own_line, next) {
                    (true, _) => self.whole_lines(line, end),
                    (false, Some(next)) => start..next,
                    (false, None) => return obstacle("the annotation is the only thing on its line and in its map"),
                }
            }
        };
        Ok(Edit { range, text: String::new() })
    }

    /// Whether a part of a flow may be one of ours; in JSON ours have no space behind their colons.
    fn as_we_write(&self, child: &Child<'_>) -> bool {
        let from = match child {
            Child::Entry(e) => e.key.end,
            Child::Item(item) => item.start + "{\"name\"".len(),
        };
        !self.json || self.text.get(from..).is_some_and(|t| t.starts_with(':') && !t[1..].starts_with([' ', '\n']))
    }

    /// From the start of a line to the end of another with its line break, or with the break before if it has none.
    fn whole_lines(&self, line: usize, end: usize) -> Range<usize> {
        let end = self.line_end(end);
        if end < self.text.len() {
            return line..end + 1;
        }
        let before = self.text[..line].strip_suffix('\n').map_or(line, |t| t.strip_suffix('\r').unwrap_or(t).len());
        before..end
    }

    /// Where a child begins; an item of a block list with its dash.
    fn child_start(&self, child: &Child<'_>) -> Result<usize, Obstacle> {
        let item = match child {
            Child::Entry(e) => return Ok(e.key.start),
            Child::Item(item) => item,
        };
        // Between the dash and the item there may be an anchor, a tag and line breaks.
        let mut before = self.text[..item.start].trim_end();
        loop {
            let word = before.rfind(char::is_whitespace).map_or(0, |blank| blank + 1);
            if !before[word..].starts_with(['&', '!']) {
                break;
            }
            before = before[..word].trim_end();
        }
        let line = self.line_start(before.len());
        match before[line..].strip_suffix('-') {
            Some(indent) if indent.bytes().all(|b| b == b' ') => Ok(line + indent.len()),
            // In a flow there is none.
            _ => Ok(item.start),
        }
    }

    /// Start and column of the first part of a block, and whether it begins its line.
    fn head(&self, block: &Node) -> Result<(usize, usize, bool), Obstacle> {
        let Some(first) = children(block).first().map(|c| self.child_start(c)).transpose()? else {
            return obstacle("it is empty");
        };
        let before = &self.text[self.line_start(first)..first];
        let own_line = before.bytes().all(|b| b == b' ');
        if !own_line && !before.bytes().all(|b| b == b' ' || b == b'-') || before.contains("---") {
            return obstacle("it is written in a form that cannot be added to");
        }
        Ok((first, before.chars().count(), own_line))
    }

    fn column(&self, at: usize) -> usize {
        self.text[self.line_start(at)..at].chars().count()
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |n| n + 1)
    }

    /// The place of the line break that ends the line, or the end of the text.
    fn line_end(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |n| at + n)
    }

    fn newline(&self, at: usize) -> &'static str {
        let end = self.line_end(at);
        if self.text[..end].ends_with('\r') { "\r\n" } else { "\n" }
    }

    fn only_comments(&self, range: Range<usize>) -> bool {
        self.text[range].lines().all(|l| l.trim_start().is_empty() || l.trim_start().starts_with('#'))
    }
}

fn block(chain: &[&str], payload: &Payload, indent: usize) -> Result<Vec<String>, YamlError> {
    let Some((key, below)) = chain.split_first() else { return payload.lines(indent) };
    // Items of a list stand as deep as its key, as `kubectl` writes them.
    let deeper = match (below.is_empty(), payload) {
        (true, Payload::Items(_) | Payload::Last(_)) => indent,
        _ => indent + 2,
    };
    let mut lines = vec![format!("{}{key}:", " ".repeat(indent))];
    lines.extend(block(below, payload, deeper)?);
    Ok(lines)
}
