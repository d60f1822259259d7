//! What `/` understands: words separated by blanks, all of which must hold. A word is an expression over a column
//! (`success<99`, `p99>100ms`, `rps>=10`, `mtls<100`) or a regular expression over everything a row is called.

use crate::golden::Row;
use regex::{Regex, RegexBuilder};

/// A filter, read.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    text: String,
    words: Vec<Word>,
}

#[derive(Clone, Debug)]
enum Word {
    Compare(Field, Comparison, f64),
    Name(Regex),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Rps,
    Success,
    P50,
    P95,
    P99,
    Mtls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
}

/// The columns that can be compared, for help and messages.
pub const FIELDS: &[&str] = &["rps", "success", "p50", "p95", "p99", "mtls"];

/// The longest filter.
pub const MAX_LENGTH: usize = 200;

impl Filter {
    /// Reads a filter; the error says what is wrong with it.
    pub fn read(text: &str) -> Result<Self, String> {
        let words = text.split_whitespace().map(word).collect::<Result<_, _>>()?;
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

    /// True if a row passes.
    pub fn passes(&self, row: &Row) -> bool {
        self.words.iter().all(|word| match word {
            Word::Compare(field, comparison, wanted) => {
                field.of(row).is_some_and(|value| comparison.holds(value, *wanted))
            }
            Word::Name(regex) => {
                let route = row.route.as_ref();
                regex.is_match(&row.namespace)
                    || regex.is_match(&row.name)
                    || regex.is_match(&format!("{}/{}", row.namespace, row.name))
                    || route.is_some_and(|route| {
                        regex.is_match(&route.route)
                            || regex.is_match(&route.method)
                            || route.service.as_ref().is_some_and(|service| regex.is_match(service))
                    })
                    || (row.is_tcp() && regex.is_match("tcp"))
            }
        })
    }
}

impl Field {
    fn of(self, row: &Row) -> Option<f64> {
        match self {
            Field::Rps => Some(row.rps),
            Field::Success => row.success_rate.map(|rate| rate * 100.0),
            Field::P50 => row.latency_p50_ms,
            Field::P95 => row.latency_p95_ms,
            Field::P99 => row.latency_p99_ms,
            Field::Mtls => row.mtls_rate.map(|rate| rate * 100.0),
        }
    }
}

impl Comparison {
    fn holds(self, value: f64, wanted: f64) -> bool {
        match self {
            Comparison::Less => value < wanted,
            Comparison::LessOrEqual => value <= wanted,
            Comparison::Greater => value > wanted,
            Comparison::GreaterOrEqual => value >= wanted,
            Comparison::Equal => (value - wanted).abs() < 1e-9,
        }
    }
}

fn word(text: &str) -> Result<Word, String> {
    let Some(at) = text.find(['<', '>', '=']) else {
        return RegexBuilder::new(text)
            .case_insensitive(true)
            .size_limit(1 << 20)
            .build()
            .map(Word::Name)
            .map_err(|_| format!("`{text}` is not a regular expression"));
    };
    let (name, rest) = text.split_at(at);
    let (comparison, value) = match rest.as_bytes() {
        [b'<', b'=', ..] => (Comparison::LessOrEqual, &rest[2..]),
        [b'>', b'=', ..] => (Comparison::GreaterOrEqual, &rest[2..]),
        [b'=', b'=', ..] => (Comparison::Equal, &rest[2..]),
        [b'<', ..] => (Comparison::Less, &rest[1..]),
        [b'>', ..] => (Comparison::Greater, &rest[1..]),
        _ => (Comparison::Equal, &rest[1..]),
    };
    let (field, units): (_, &[(&str, f64)]) = match name.to_lowercase().as_str() {
        "rps" => (Field::Rps, &[("", 1.0), ("k", 1000.0)]),
        "success" | "sr" => (Field::Success, &[("%", 1.0), ("", 1.0)]),
        "p50" => (Field::P50, MILLISECONDS),
        "p95" => (Field::P95, MILLISECONDS),
        "p99" => (Field::P99, MILLISECONDS),
        "mtls" => (Field::Mtls, &[("%", 1.0), ("", 1.0)]),
        _ => return Err(format!("`{name}` is no column; there are {}", FIELDS.join(", "))),
    };
    let digits = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let scale = units.iter().find(|(known, _)| *known == unit).map(|(_, scale)| *scale);
    match (number.parse::<f64>(), scale) {
        (Ok(number), Some(scale)) => Ok(Word::Compare(field, comparison, number * scale)),
        _ => Err(format!("`{text}` needs a number, as in {}", if units.len() == 3 { "p99>100ms" } else { "rps>10" })),
    }
}

const MILLISECONDS: &[(&str, f64)] = &[("ms", 1.0), ("s", 1000.0), ("", 1.0)];

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
            let passed = all.iter().filter(|row| filter.passes(row));
            let passed: Vec<_> = passed.map(|r| format!("{} {}", r.name, r.route.as_ref().unwrap().route)).collect();
            assert_eq!(passed, expect, "{text}");
        };
        check("catalog", &["catalog /products/{id}", "catalog /products/{id}/reviews"]);
        check("CATALOG reviews$", &["catalog /products/{id}/reviews"]);
        check("shop/web post", &["web /orders"]);
        check("success<99", &["catalog /products/{id}/reviews"]);
        check("p99>100ms rps>=10", &["catalog /products/{id}/reviews"]);
        check("p99>0.1s", &["catalog /products/{id}/reviews"]);
        check("rps=10", &["cart /shop.Cart/Add"]);
        check("tcp", &["ledger "]);
        check("mtls<100%", &[]);
        assert_eq!(all.iter().filter(|row| Filter::default().passes(row)).count(), all.len());
    }

    #[test]
    fn what_cannot_be_read_is_explained() {
        let check = |text: &str, part: &str| {
            let error = Filter::read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        };
        check("a(", "not a regular expression");
        check("color<3", "there are rps, success");
        check("p99>fast", "p99>100ms");
        check("rps>", "rps>10");
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "\\PC{0,60}") {
            let _ = Filter::read(&text);
        }
    }
}
