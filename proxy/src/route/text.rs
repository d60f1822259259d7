//! Conditions on single values: an exact text or a regular expression, and lists of hosts.

use crate::limits;
use mesh_api::route::TextMatch;
use regex::bytes::{Regex, RegexBuilder};
use std::borrow::Cow;

/// A condition on a value.
#[derive(Debug)]
pub enum Text {
    /// This value.
    Exact(Box<[u8]>),
    /// A value that the expression takes whole.
    Expression(Regex),
}

impl Text {
    /// The condition, ready for use.
    pub fn compile(text: &TextMatch) -> Result<Self, String> {
        match text {
            TextMatch::Exact(value) if value.len() > limits::ROUTE_TEXT_BYTES => {
                Err(format!("longer than {} bytes", limits::ROUTE_TEXT_BYTES))
            }
            TextMatch::Exact(value) => Ok(Text::Exact(value.as_bytes().into())),
            TextMatch::Regex(expression) => {
                let whole = Self::expression(expression)?;
                build(&whole).map(Text::Expression).map_err(|why| said(expression, &why))
            }
        }
    }

    /// The expression that takes whole values only. As in RE2, classes such as `\d` mean ASCII, unless the expression
    /// asks for classes of Unicode.
    pub fn expression(expression: &str) -> Result<String, String> {
        if expression.len() > limits::ROUTE_TEXT_BYTES {
            return Err(format!("a regular expression of more than {} bytes", limits::ROUTE_TEXT_BYTES));
        }
        let ascii = format!("(?-u:{expression})");
        // By itself first: parentheses that close what they have not opened must not pass.
        let body = match build(expression).and_then(|_| build(&ascii)) {
            Ok(_) => ascii,
            Err(_) => {
                build(expression).map_err(|why| said(expression, &why))?;
                format!("(?:{expression})")
            }
        };
        let whole = format!(r"\A{body}\z");
        build(&whole).map_err(|why| said(expression, &why))?;
        Ok(whole)
    }

    /// True if the value meets the condition.
    pub fn is(&self, value: &[u8]) -> bool {
        match self {
            Text::Exact(exact) => **exact == *value,
            Text::Expression(expression) => expression.is_match(value),
        }
    }

    /// The value, if there is only one.
    pub fn exact(&self) -> Option<&[u8]> {
        match self {
            Text::Exact(exact) => Some(exact),
            Text::Expression(_) => None,
        }
    }
}

fn build(expression: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(expression)
        .size_limit(limits::ROUTE_EXPRESSION_BYTES)
        .dfa_size_limit(limits::ROUTE_EXPRESSION_BYTES)
        .build()
}

fn said(expression: &str, why: &regex::Error) -> String {
    let why = match why {
        regex::Error::CompiledTooBig(most) => format!("it takes more than {most} bytes compiled"),
        // The message shows the place on several lines; the last one says what is wrong.
        why => why.to_string().lines().last().unwrap_or_default().trim().to_owned(),
    };
    format!("`{expression}` is no regular expression that can be used: {why}")
}

/// Hosts, exact or `*.example.com`; none means all.
#[derive(Debug, Default)]
pub struct Hosts(Vec<Box<str>>);

impl Hosts {
    /// These hosts.
    pub fn new(hosts: &[String]) -> Self {
        Self(hosts.iter().map(|host| host.to_ascii_lowercase().into()).collect())
    }

    /// True if a host is one of them.
    pub fn have(&self, host: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| is_host(pattern, host))
    }
}

fn is_host(pattern: &str, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).as_bytes();
    match pattern.strip_prefix('*') {
        // At least one label has to stand for the asterisk.
        Some(suffix) => {
            let rest = host.len().checked_sub(suffix.len()).filter(|rest| *rest > 0);
            rest.is_some_and(|rest| host[rest..].eq_ignore_ascii_case(suffix.as_bytes()))
        }
        None => host.eq_ignore_ascii_case(pattern.as_bytes()),
    }
}

/// A name or value of a query parameter, decoded (`application/x-www-form-urlencoded`). What is no code stays as it is.
pub fn decode(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match (byte, digit(bytes.get(at)), digit(bytes.get(at + 1))) {
            (b'+', ..) => decoded.push(b' '),
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8); // two hexadecimal digits
                at += 2;
            }
            _ => decoded.push(*byte),
        }
    }
    Cow::Owned(
        String::from_utf8(decoded).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn regex(expression: &str) -> Result<Text, String> {
        Text::compile(&TextMatch::Regex(expression.to_owned()))
    }

    #[test]
    fn expressions_take_the_whole_value() {
        for (expression, value, expect) in [
            ("a|ab", "ab", true),
            ("a", "ab", false),
            ("v[0-9]+", "v12", true),
            (r"\d+", "12", true),
            (r"\d+", "\u{0661}", false),
            (r"\p{Greek}+", "\u{03b1}\u{03b2}", true),
            ("(?i)abc", "ABC", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(regex(expression).unwrap().is(value.as_bytes()), expect, "{expression} {value}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused_with_the_reason() {
        for (expression, part) in [
            ("(", "unclosed group"),
            ("a)|(?:b", "unopened group"),
            ("a{1000}{1000}", "bytes compiled"),
            (&"x".repeat(limits::ROUTE_TEXT_BYTES + 1), "more than"),
        ] {
            let error = regex(expression).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn hosts_are_exact_or_below_a_name() {
        for (hosts, host, expect) in [
            (&[][..], "anything", true),
            (&["web"], "web", true),
            (&["web"], "WEB", true),
            (&["web"], "web.", true),
            (&["web"], "webs", false),
            (&["*.example.com"], "a.example.com", true),
            (&["*.example.com"], "a.b.Example.com", true),
            (&["*.example.com"], "example.com", false),
            (&["*.example.com"], ".example.com", false),
            (&["a", "b"], "b", true),
        ] {
            let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            assert_eq!(Hosts::new(&hosts).have(host), expect, "{hosts:?} {host}");
        }
    }

    #[test]
    fn parameters_are_decoded() {
        for (text, expect) in [
            ("plain", "plain"),
            ("a+b", "a b"),
            ("a%20b%2B", "a b+"),
            ("100%", "100%"),
            ("%zz%4", "%zz%4"),
            ("%C3%BC", "\u{fc}"),
            ("%FF", "\u{fffd}"),
        ] {
            assert_eq!(decode(text), expect);
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(expression in "\\PC{0,20}", value in proptest::collection::vec(any::<u8>(), 0..20), text in "\\PC{0,20}") {
            if let Ok(text) = regex(&expression) {
                text.is(&value);
            }
            decode(&text);
            is_host(&expression, &text);
        }
    }
}
