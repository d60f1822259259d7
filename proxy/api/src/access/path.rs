//! The ways an application may read a path: as it is written, decoded, and put straight.
//!
//! `/public/..%2Fadmin` is a path below `/public` to one reader and `/admin` to another. A rule that refuses has to hold
//! if it does in any reading; one that lets in, only if it holds in all that an application might act on.

use std::borrow::Cow;

/// A path in all its readings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readings<'a> {
    /// As it is written.
    raw: &'a [u8],
    /// With percent-encoding decoded (RFC 3986, section 2.1).
    decoded: Cow<'a, [u8]>,
    /// Decoded, with slashes for backslashes, without parameters (`;…`), empty and dot segments.
    straight: Cow<'a, [u8]>,
}

impl<'a> Readings<'a> {
    /// The readings of a path without its query.
    pub fn of(path: &'a str) -> Self {
        let raw = path.as_bytes();
        if is_plain(raw) {
            return Self { raw, decoded: Cow::Borrowed(raw), straight: Cow::Borrowed(raw) };
        }
        let decoded = decode(raw);
        let straight = straighten(&decoded);
        Self { raw, decoded: Cow::Owned(decoded), straight: Cow::Owned(straight) }
    }

    /// True if the path is as wanted: in any reading if `strict`, else in every one that decodes it.
    pub fn are(&self, strict: bool, wanted: impl Fn(&[u8]) -> bool) -> bool {
        if !strict {
            return wanted(&self.straight) && wanted(&self.decoded);
        }
        let bare = self.straight.strip_suffix(b"/").filter(|bare| !bare.is_empty());
        wanted(&self.straight) || wanted(self.raw) || wanted(&self.decoded) || bare.is_some_and(wanted)
    }
}

/// True if there is only one way to read the path.
fn is_plain(path: &[u8]) -> bool {
    let mut before = 0;
    path.iter().all(|&byte| {
        let odd = matches!(byte, b'%' | b'\\' | b';') || (before == b'/' && matches!(byte, b'/' | b'.'));
        before = byte;
        !odd
    })
}

fn decode(path: &[u8]) -> Vec<u8> {
    let digit = |at: usize| path.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        // Two hexadecimal digits are at most 255.
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

fn straighten(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut ends_open = false;
    for segment in path.split(|byte| matches!(byte, b'/' | b'\\')) {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        ends_open = matches!(name, b"" | b"." | b"..");
        match name {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            name => segments.push(name),
        }
    }
    let mut straight = Vec::with_capacity(path.len());
    for segment in &segments {
        straight.push(b'/');
        straight.extend_from_slice(segment);
    }
    if ends_open || segments.is_empty() {
        straight.push(b'/');
    }
    straight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_straight() {
        let check = |path: &str, decoded: &str, straight: &str| {
            let readings = Readings::of(path);
            assert_eq!(String::from_utf8_lossy(&readings.decoded), decoded, "{path}");
            assert_eq!(String::from_utf8_lossy(&readings.straight), straight, "{path}");
        };
        check("/a/b", "/a/b", "/a/b");
        check("/a/b/", "/a/b/", "/a/b/");
        check("/", "/", "/");
        check("*", "*", "*");
        check("/a%2Fb", "/a/b", "/a/b");
        check("/a/../b", "/a/../b", "/b");
        check("/a/%2e%2e/b", "/a/../b", "/b");
        check("/a/..", "/a/..", "/");
        check("/../../b", "/../../b", "/b");
        check("//a///b", "//a///b", "/a/b");
        check("/a/./b", "/a/./b", "/a/b");
        check("/a\\b", "/a\\b", "/a/b");
        check("/a;x=1/b", "/a;x=1/b", "/a/b");
        check("/a/..;/b", "/a/..;/b", "/b");
        check("/a%zz%4", "/a%zz%4", "/a%zz%4");
        check("/.well-known/x", "/.well-known/x", "/.well-known/x");
        check("/a%252e", "/a%2e", "/a%2e");
    }

    #[test]
    fn a_plain_path_is_not_copied() {
        assert!(matches!(Readings::of("/a/b.c/d").straight, Cow::Borrowed(_)));
    }
}
