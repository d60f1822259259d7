//! Patterns of a filter: text with `*` for any run of characters, and paths.

use std::fmt;

/// Text in which `*` stands for any run of characters, slashes included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// A pattern as written.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    /// True if the whole text is as the pattern says. Takes at most pattern times text steps.
    pub fn matches(&self, text: &str) -> bool {
        glob(self.0.as_bytes(), text.as_bytes())
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A path: with `*` the whole path as a pattern, without one the path itself and everything below it
/// (`/api` means `/api` and `/api/items`, not `/apis`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern(Glob);

impl PathPattern {
    /// A pattern as written.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(Glob::new(pattern))
    }

    /// True if a path (without query) is meant.
    pub fn matches(&self, path: &str) -> bool {
        let pattern = self.0.as_str();
        if pattern.contains('*') {
            return self.0.matches(path);
        }
        let stem = pattern.strip_suffix('/').unwrap_or(pattern);
        match path.strip_prefix(stem) {
            Some("") => stem.len() == pattern.len() || stem.is_empty(),
            Some(rest) => rest.starts_with('/'),
            None => false,
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Greedy with one way back: to the last star.
pub(crate) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            p = at + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_stand_for_anything() {
        let check = |pattern: &str, text: &str, expect: bool| {
            assert_eq!(Glob::new(pattern).matches(text), expect, "{pattern} {text}");
        };
        check("", "", true);
        check("", "a", false);
        check("*", "", true);
        check("a*c", "abc", true);
        check("a*c", "abcd", false);
        check("*/sa/web", "spiffe://cluster.local/ns/shop/sa/web", true);
        check("a*b*c", "axxbyybzc", true);
        check("**a", "ba", true);
    }

    #[test]
    fn a_path_without_a_star_means_what_is_below_it_too() {
        let check = |pattern: &str, path: &str, expect: bool| {
            assert_eq!(PathPattern::new(pattern).matches(path), expect, "{pattern} {path}");
        };
        check("/api", "/api", true);
        check("/api", "/api/items", true);
        check("/api", "/apis", false);
        check("/api/", "/api", false);
        check("/api/", "/api/x", true);
        check("/api/", "/api/", true);
        check("/", "/", true);
        check("/", "/x", true);
        check("/api/*/x", "/api/1/2/x", true);
        check("/api/*", "/api", false);
    }

    /// The definition, slowly.
    fn slowly(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|at| slowly(rest, &text[at..])),
            Some((byte, rest)) => text.split_first().is_some_and(|(t, more)| t == byte && slowly(rest, more)),
        }
    }

    proptest! {
        #[test]
        fn the_quick_way_finds_what_the_slow_one_finds(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), slowly(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
