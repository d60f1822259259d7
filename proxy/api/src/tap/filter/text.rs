//! A filter as text, read and written: see [`super`].

use super::{FilterError, HeaderMatch, MAX_BYTES, TERMS, TapFilter, Term};
use crate::tap::secrets;
use std::fmt;
use std::str::FromStr;

impl FromStr for TapFilter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let general = |at: usize, expected: &str, found: &str| {
            let example = "status=5xx slower-than=200ms";
            FilterError { at, expected: expected.to_owned(), found: found.to_owned(), example }
        };
        if text.len() > MAX_BYTES {
            return Err(general(MAX_BYTES, &format!("at most {MAX_BYTES} bytes"), "more"));
        }
        let mut filter = Self::default();
        let mut words = Words { rest: text.chars().enumerate().peekable() };
        while let Some(word) = words.next() {
            if let Some(at) = word.open {
                return Err(general(at, "a closing quote", "\""));
            }
            let Some((key, value)) = word.text.split_once('=') else {
                return Err(general(word.place(usize::MAX), "= and a value", ""));
            };
            let Some((term, ..)) = TERMS.iter().find(|(_, known, _)| *known == key) else {
                let known: Vec<&str> = TERMS.iter().map(|(_, key, _)| *key).collect();
                return Err(general(word.place(0), &format!("one of {}", known.join(" ")), key));
            };
            let before = key.chars().count() + 1;
            term.parse(value, &mut filter)
                .map_err(|error| FilterError { at: word.place(before + error.at), ..error })?;
        }
        Ok(filter)
    }
}

/// Words between spaces; quotes and backslashes are resolved.
struct Words<'a> {
    rest: std::iter::Peekable<std::iter::Enumerate<std::str::Chars<'a>>>,
}

struct Word {
    text: String,
    /// Where each of its characters stands, and where it ends.
    places: Vec<usize>,
    /// Where a quote was opened that is never closed.
    open: Option<usize>,
}

impl Word {
    /// Where its character `n` stands; past its end: where it ends.
    fn place(&self, n: usize) -> usize {
        self.places.get(n).or(self.places.last()).copied().unwrap_or_default()
    }
}

impl Words<'_> {
    fn next(&mut self) -> Option<Word> {
        while self.rest.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        let mut word = Word { text: String::new(), places: Vec::new(), open: None };
        let (mut last, _) = *self.rest.peek()?;
        while let Some((at, c)) = self.rest.next_if(|(_, c)| word.open.is_some() || !c.is_whitespace()) {
            last = at;
            match (c, word.open) {
                ('"', None) => word.open = Some(at),
                ('"', Some(_)) => word.open = None,
                ('\\', Some(_)) => {
                    if let Some((at, c)) = self.rest.next() {
                        last = at;
                        word.places.push(at);
                        word.text.push(c);
                    }
                }
                _ => {
                    word.places.push(at);
                    word.text.push(c);
                }
            }
        }
        word.places.push(last + 1);
        Some(word)
    }
}

impl fmt::Display for TapFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

impl TapFilter {
    /// True if a value of a secret header field is compared: whoever may do that can guess it.
    pub fn compares_secrets(&self) -> bool {
        self.headers.iter().any(|header| header.value.is_some() && secrets::is_secret(&header.name))
    }

    /// The filter as text, without the values of secret fields: for logs.
    pub fn without_secrets(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text, true);
        text
    }

    fn write(&self, f: &mut impl fmt::Write, hide: bool) -> fmt::Result {
        let mut terms = Terms { f, first: true };
        let words = |words: Vec<String>| (!words.is_empty()).then(|| words.join(","));
        let json = |value: serde_json::Result<serde_json::Value>| {
            value.ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
        };
        terms.put(Term::Direction, self.direction.map(|direction| json(serde_json::to_value(direction))))?;
        terms.put(
            Term::Protocol,
            words(self.protocols.iter().map(|carried| json(serde_json::to_value(carried))).collect()),
        )?;
        terms.put(Term::Method, words(self.methods.clone()))?;
        terms.put(Term::Path, self.path.as_ref().map(ToString::to_string))?;
        terms.put(Term::Route, self.route.as_ref().map(ToString::to_string))?;
        for HeaderMatch { name, value } in &self.headers {
            let value = value.as_ref().map(|value| match hide && secrets::is_secret(name) {
                true => format!("={}", secrets::REDACTED),
                false => format!("={value}"),
            });
            terms.put(Term::Header, Some(format!("{name}{}", value.unwrap_or_default())))?;
        }
        terms.put(Term::Status, words(self.statuses.iter().map(ToString::to_string).collect()))?;
        terms.put(Term::GrpcStatus, words(self.grpc_statuses.iter().map(ToString::to_string).collect()))?;
        terms.put(Term::Error, words(self.errors.iter().map(|error| error.code().to_owned()).collect()))?;
        terms.put(Term::SlowerThan, self.slower_than.map(|limit| format!("{}us", limit.as_micros())))?;
        terms.put(Term::Identity, self.identity.as_ref().map(ToString::to_string))?;
        terms.put(Term::From, self.from.as_ref().map(ToString::to_string))?;
        terms.put(Term::To, self.to.as_ref().map(ToString::to_string))
    }
}

struct Terms<'a, W> {
    f: &'a mut W,
    first: bool,
}

impl<W: fmt::Write> Terms<'_, W> {
    fn put(&mut self, term: Term, value: Option<String>) -> fmt::Result {
        let Some(value) = value else { return Ok(()) };
        let key = TERMS.iter().find(|(known, ..)| *known == term).map_or("", |(_, key, _)| key);
        if !std::mem::replace(&mut self.first, false) {
            self.f.write_char(' ')?;
        }
        write!(self.f, "{key}=")?;
        if !value.contains(|c: char| c.is_whitespace() || c == '"') {
            return self.f.write_str(&value);
        }
        self.f.write_char('"')?;
        for c in value.chars() {
            if matches!(c, '"' | '\\') {
                self.f.write_char('\\')?;
            }
            self.f.write_char(c)?;
        }
        self.f.write_char('"')
    }
}
