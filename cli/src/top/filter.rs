//! What `/` understands: words separated by blanks, all of which must hold.
//!
//! A word is an expression over a number (`success<99`, `p99>100ms`, `rps>=10`), over a name (`ns:shop`,
//! `route:^/orders`), or a regular expression over everything a row is called. `!` before a word turns it round.
//! [`FIELDS`] is the one table of what can be asked: it drives reading, messages and help.

use crate::golden::Row;
use crate::top::tap::{name_of, peer};
use mesh_api::WorkloadRef;
use mesh_api::tap::TapEvent;
use regex::{Regex, RegexBuilder};
use std::ops::Range;

/// The longest filter, bytes.
pub const MAX_LENGTH: usize = 200;
/// How much memory one regular expression may take, bytes.
const REGEX_LIMIT: usize = 1 << 20;

/// What a filter is asked about.
#[derive(Clone, Copy, Debug)]
pub enum Facts<'a> {
    /// A row of numbers, and for an edge who calls.
    Row(&'a Row, Option<&'a WorkloadRef>),
    /// A single request or connection.
    Event(&'a TapEvent),
}

/// Something that can be asked.
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: Value,
    /// A word that uses it.
    pub example: &'static str,
}

/// How a field's value is had, and in which units it may be written.
#[derive(Clone, Copy)]
pub enum Value {
    /// A number; none where there is no such thing.
    Number(fn(Facts) -> Option<f64>, &'static [(&'static str, f64)]),
    /// A text; none where there is no such thing.
    Text(fn(Facts) -> Option<String>),
}

const COUNT: &[(&str, f64)] = &[("", 1.0), ("k", 1e3), ("M", 1e6)];
const PERCENT: &[(&str, f64)] = &[("", 1.0), ("%", 1.0)];
const TIME: &[(&str, f64)] = &[("ms", 1.0), ("", 1.0), ("us", 1e-3), ("s", 1e3)];
const PLAIN: &[(&str, f64)] = &[("", 1.0)];

/// Everything that can be asked.
pub const FIELDS: &[Field] = &[
    number("rps", |f| f.row(|row| (row.requests > 0).then_some(row.rps)), COUNT, "rps>10"),
    number("success", |f| f.row(|row| row.success_rate.map(hundred)), PERCENT, "success<99"),
    number("p50", |f| f.row(|row| row.latency_p50_ms), TIME, "p50>10ms"),
    number("p95", |f| f.row(|row| row.latency_p95_ms), TIME, "p95>50ms"),
    number("p99", |f| f.row(|row| row.latency_p99_ms), TIME, "p99>100ms"),
    number("mtls", |f| f.row(|row| row.mtls_rate.map(hundred)), PERCENT, "mtls<100"),
    number(
        "conns",
        |f| f.row(|row| (row.connections > 0).then_some(row.tcp_open_connections as f64)),
        COUNT,
        "conns>5",
    ),
    number("latency", |f| f.event(|event| Some(event.duration_us as f64 / 1000.0)), TIME, "latency>100ms"),
    number("status", |f| f.event(|event| event.http.as_ref()?.status.map(f64::from)), PLAIN, "status>=500"),
    text("ns", |f| Some(f.namespace()), "ns:shop"),
    text("name", |f| f.row(|row| Some(row.name.clone())), "name:web"),
    text("kind", |f| f.row(|row| Some(row.kind.clone())), "kind:deployment"),
    text("route", |f| f.route(), "route:^/orders"),
    text("method", |f| f.method(), "method:POST"),
    text("from", |f| f.from(), "from:web"),
    text("path", |f| f.event(|event| event.http.as_ref().map(|http| http.path.clone())), "path:^/cart"),
    text("error", |f| f.event(|event| event.error.map(|error| error.code().to_owned())), "error:timeout"),
];

const fn number(
    name: &'static str,
    of: fn(Facts) -> Option<f64>,
    units: &'static [(&'static str, f64)],
    example: &'static str,
) -> Field {
    Field { name, value: Value::Number(of, units), example }
}

const fn text(name: &'static str, of: fn(Facts) -> Option<String>, example: &'static str) -> Field {
    Field { name, value: Value::Text(of), example }
}

fn hundred(share: f64) -> f64 {
    share * 100.0
}

impl Facts<'_> {
    fn row<T>(self, of: impl Fn(&Row) -> Option<T>) -> Option<T> {
        match self {
            Facts::Row(row, _) => of(row),
            Facts::Event(_) => None,
        }
    }

    fn event<T>(self, of: impl Fn(&TapEvent) -> Option<T>) -> Option<T> {
        match self {
            Facts::Row(..) => None,
            Facts::Event(event) => of(event),
        }
    }

    fn namespace(self) -> String {
        match self {
            Facts::Row(row, _) => row.namespace.clone(),
            Facts::Event(event) => peer(event).workload.as_ref().map(|peer| peer.namespace.clone()).unwrap_or_default(),
        }
    }

    fn route(self) -> Option<String> {
        match self {
            Facts::Row(row, _) => row.route.as_ref().map(|route| route.route.clone()),
            Facts::Event(event) => event.http.as_ref().map(|http| http.route.clone()),
        }
    }

    fn method(self) -> Option<String> {
        match self {
            Facts::Row(row, _) => row.route.as_ref().map(|route| route.method.clone()),
            Facts::Event(event) => event.http.as_ref().map(|http| http.method.clone()),
        }
    }

    fn from(self) -> Option<String> {
        match self {
            Facts::Row(_, from) => from.map(|from| from.name.clone()),
            Facts::Event(event) => Some(name_of(&event.source)),
        }
    }

    /// True if anything that this is called is found by a regular expression.
    fn is_called(self, regex: &Regex) -> bool {
        match self {
            Facts::Row(row, from) => {
                let route = row.route.as_ref();
                regex.is_match(&row.namespace)
                    || regex.is_match(&row.name)
                    || regex.is_match(&format!("{}/{}", row.namespace, row.name))
                    || route.is_some_and(|route| {
                        regex.is_match(&route.route)
                            || regex.is_match(&route.method)
                            || regex.is_match(&format!("{} {}", route.method, route.route))
                            || route.service.as_ref().is_some_and(|service| regex.is_match(service))
                    })
                    || from.is_some_and(|from| regex.is_match(&from.name))
                    || (row.is_tcp() && regex.is_match("tcp"))
            }
            Facts::Event(event) => {
                event.http.as_ref().is_some_and(|http| {
                    regex.is_match(&http.path)
                        || regex.is_match(&http.method)
                        || regex.is_match(&http.route)
                        || http.status.is_some_and(|status| regex.is_match(&status.to_string()))
                }) || regex.is_match(&name_of(peer(event)))
                    || (event.http.is_none() && regex.is_match("tcp"))
                    || event.error.is_some_and(|error| regex.is_match(error.code()))
            }
        }
    }
}

/// A filter, read.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    text: String,
    words: Vec<(bool, Word)>,
}

#[derive(Clone, Debug)]
enum Word {
    /// Which of [`FIELDS`], how it compares, and with what.
    Compare(usize, Comparison, f64),
    /// Which of [`FIELDS`] matches what.
    Field(usize, Regex),
    Name(Regex),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    Unequal,
}

const COMPARISONS: &[(&str, Comparison)] = &[
    ("<=", Comparison::LessOrEqual),
    (">=", Comparison::GreaterOrEqual),
    ("==", Comparison::Equal),
    ("!=", Comparison::Unequal),
    ("<", Comparison::Less),
    (">", Comparison::Greater),
    ("=", Comparison::Equal),
];

/// What is wrong with a filter, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The characters (not bytes) that cannot be read.
    pub at: Range<usize>,
    /// What was expected there.
    pub message: String,
    /// How it could look.
    pub example: &'static str,
}

impl Filter {
    /// Reads a filter.
    pub fn read(text: &str) -> Result<Self, Wrong> {
        let mut words = Vec::new();
        let mut at = 0;
        for piece in text.split_inclusive(char::is_whitespace) {
            let word = piece.trim_end();
            if !word.is_empty() {
                words.push(read_word(word, at)?);
            }
            at += piece.chars().count();
        }
        Ok(Self { text: text.trim().to_owned(), words })
    }

    /// As it was typed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// True if it lets everything through.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// True if something passes.
    pub fn passes(&self, facts: Facts) -> bool {
        self.words.iter().all(|(wanted, word)| {
            *wanted
                == match word {
                    Word::Compare(field, comparison, value) => match FIELDS[*field].value {
                        Value::Number(of, _) => of(facts).is_some_and(|number| comparison.holds(number, *value)),
                        Value::Text(_) => false,
                    },
                    Word::Field(field, regex) => match FIELDS[*field].value {
                        Value::Text(of) => of(facts).is_some_and(|text| regex.is_match(&text)),
                        Value::Number(..) => false,
                    },
                    Word::Name(regex) => facts.is_called(regex),
                }
        })
    }
}

impl Comparison {
    fn holds(self, value: f64, wanted: f64) -> bool {
        let equal = (value - wanted).abs() < 1e-9;
        match self {
            Comparison::Less => value < wanted,
            Comparison::LessOrEqual => value <= wanted,
            Comparison::Greater => value > wanted,
            Comparison::GreaterOrEqual => value >= wanted,
            Comparison::Equal => equal,
            Comparison::Unequal => !equal,
        }
    }
}

/// Reads a word that begins `at` so many characters into the filter.
fn read_word(whole: &str, at: usize) -> Result<(bool, Word), Wrong> {
    let (wanted, word, at) = match whole.strip_prefix('!') {
        Some(rest) if !rest.is_empty() => (false, rest, at + 1),
        _ => (true, whole, at),
    };
    let name_length = word.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(word.len());
    let (name, rest) = word.split_at(name_length);
    let comparison = COMPARISONS.iter().find(|(sign, _)| rest.starts_with(sign));
    let read = match comparison {
        // Only what begins with a word can be a comparison: other signs belong to a regular expression.
        Some((sign, comparison)) if !name.is_empty() => {
            read_comparison(name, *comparison, &rest[sign.len()..], at, at + name_length + sign.len())
        }
        _ if rest.starts_with(':') && name.chars().all(|c| c.is_ascii_lowercase()) && !name.is_empty() => {
            read_text_field(name, &rest[1..], at, at + name_length + 1)
        }
        _ => read_regex(word, at).map(Word::Name),
    };
    read.map(|word| (wanted, word))
}

fn read_comparison(
    name: &str,
    comparison: Comparison,
    value: &str,
    name_at: usize,
    value_at: usize,
) -> Result<Word, Wrong> {
    let field = find_field(name, name_at)?;
    let example = FIELDS[field].example;
    let Value::Number(_, units) = FIELDS[field].value else {
        let message = format!("`{name}` is text, it is matched with a colon");
        return Err(Wrong { at: name_at..value_at, message, example });
    };
    let digits = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let Ok(number) = number.parse::<f64>() else {
        let end = value_at + value.chars().count().max(1);
        return Err(Wrong { at: value_at..end, message: "a number belongs here".to_owned(), example });
    };
    let Some((_, scale)) = units.iter().find(|(known, _)| *known == unit) else {
        let known: Vec<&str> = units.iter().map(|(unit, _)| *unit).filter(|unit| !unit.is_empty()).collect();
        let message = match known[..] {
            [] => format!("`{name}` has no unit"),
            _ => format!("the units are {}", known.join(", ")),
        };
        let start = value_at + digits;
        return Err(Wrong { at: start..start + unit.chars().count(), message, example });
    };
    Ok(Word::Compare(field, comparison, number * scale))
}

fn read_text_field(name: &str, pattern: &str, name_at: usize, pattern_at: usize) -> Result<Word, Wrong> {
    let field = find_field(name, name_at)?;
    let example = FIELDS[field].example;
    if matches!(FIELDS[field].value, Value::Number(..)) {
        let message = format!("`{name}` is a number, it is compared");
        return Err(Wrong { at: name_at..pattern_at, message, example });
    }
    if pattern.is_empty() {
        let message = "a regular expression belongs here".to_owned();
        return Err(Wrong { at: pattern_at..pattern_at + 1, message, example });
    }
    read_regex(pattern, pattern_at).map(|regex| Word::Field(field, regex))
}

fn find_field(name: &str, at: usize) -> Result<usize, Wrong> {
    let lower = name.to_lowercase();
    let lower = if lower == "sr" { "success" } else { lower.as_str() };
    FIELDS.iter().position(|field| field.name == lower).ok_or_else(|| {
        let known: Vec<&str> = FIELDS.iter().map(|field| field.name).collect();
        let message = format!("no such field; there are {}", known.join(" "));
        Wrong { at: at..at + name.chars().count(), message, example: "p99>100ms" }
    })
}

fn read_regex(pattern: &str, at: usize) -> Result<Regex, Wrong> {
    RegexBuilder::new(pattern).case_insensitive(true).size_limit(REGEX_LIMIT).build().map_err(|_| Wrong {
        at: at..at + pattern.chars().count(),
        message: "this is no regular expression".to_owned(),
        example: "^/orders",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{Query, rows, tests::shop};
    use proptest::prelude::*;

    #[test]
    fn filters_select_rows() {
        let query = Query { routes: true, tcp_routes: true, ..Query::default() };
        let all = rows(&shop(), &query);
        let check = |text: &str, expect: &[&str]| {
            let filter = Filter::read(text).unwrap();
            let passed = all.iter().filter(|row| filter.passes(Facts::Row(row, None)));
            let passed: Vec<_> = passed.map(|r| format!("{} {}", r.name, r.route.as_ref().unwrap().route)).collect();
            assert_eq!(passed, expect, "{text}");
        };
        check("catalog", &["catalog /products/{id}", "catalog /products/{id}/reviews"]);
        check("CATALOG reviews$", &["catalog /products/{id}/reviews"]);
        check("catalog !reviews", &["catalog /products/{id}"]);
        check("shop/web post", &["web /orders"]);
        check("ns:shop method:post", &["web /orders"]);
        check("ns:other", &[]);
        check("name:^c !kind:statefulset route:id.$", &["catalog /products/{id}"]);
        check("success<99", &["catalog /products/{id}/reviews"]);
        check("p99>100ms rps>=10", &["catalog /products/{id}/reviews"]);
        check("p99>0.1s", &["catalog /products/{id}/reviews"]);
        check("p99>100000us", &["catalog /products/{id}/reviews"]);
        check("rps=10", &["cart /shop.Cart/Add"]);
        check("rps!=10 rps<20", &["web /orders"]);
        check("conns>2", &["ledger "]);
        check("tcp", &["ledger "]);
        check("mtls<100%", &[]);
        let all_pass = all.iter().filter(|row| Filter::default().passes(Facts::Row(row, None))).count();
        assert_eq!(all_pass, all.len());
    }

    #[test]
    fn what_cannot_be_read_is_pointed_at() {
        let check = |text: &str, at: Range<usize>, message: &str, example: &str| {
            let wrong = Filter::read(text).unwrap_err();
            assert_eq!((wrong.at.clone(), wrong.example), (at, example), "{text}: {wrong:?}");
            assert!(wrong.message.contains(message), "{text}: {wrong:?}");
        };
        check("web a(", 4..6, "no regular expression", "^/orders");
        check("ünd color<3", 4..9, "there are rps success", "p99>100ms");
        check("p99>fast", 4..8, "a number belongs here", "p99>100ms");
        check("rps>", 4..5, "a number belongs here", "rps>10");
        check("web p99>10min", 10..13, "the units are ms, us, s", "p99>100ms");
        check("!status>5x", 9..10, "has no unit", "status>=500");
        check("ns:", 3..4, "a regular expression belongs here", "ns:shop");
        check("ns<3", 0..3, "is text", "ns:shop");
        check("rps:3", 0..4, "is a number", "rps>10");
        check("nss:shop", 0..3, "no such field", "p99>100ms");
    }

    #[test]
    fn every_example_can_be_read() {
        for field in FIELDS {
            assert!(Filter::read(field.example).is_ok(), "{}", field.example);
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "\\PC{0,60}") {
            if let Err(wrong) = Filter::read(&text) {
                prop_assert!(wrong.at.start < wrong.at.end);
            }
        }
    }
}
