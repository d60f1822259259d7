//! Names for requests that no configured route names: the path with everything that looks like an identifier
//! collapsed to `{id}`, learned up to a cap per service. A gRPC method is its own route.

use crate::limits::{MAX_ROUTE_BYTES, MAX_ROUTES};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// What replaces a segment that looks like an identifier.
const ID: &str = "{id}";
/// The route of everything past the cap.
pub const OTHER: &str = "other";
/// The route of health probes: counted on `/metrics`, left out of golden metrics, which are about traffic.
pub const PROBE: &str = "probe";

/// The learned routes of one service.
#[derive(Debug)]
pub struct Learned {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    known: HashMap<Box<str>, Arc<str>>,
    other: Arc<str>,
    probe: Arc<str>,
    template: String, // scratch, so that naming a known route allocates nothing
}

impl Default for Learned {
    fn default() -> Self {
        let inner =
            Inner { known: HashMap::new(), other: Arc::from(OTHER), probe: Arc::from(PROBE), template: String::new() };
        Self { inner: Mutex::new(inner) }
    }
}

impl Learned {
    /// The route of a request path; every request of one route shares the same name.
    pub fn name(&self, path: &str, grpc: bool) -> Arc<str> {
        let mut inner = self.inner.lock();
        let Inner { known, other, template, probe: _ } = &mut *inner;
        template.clear();
        if grpc && path.len() <= MAX_ROUTE_BYTES {
            template.push_str(path);
        } else {
            collapse(path, template);
        }
        if let Some(route) = known.get(template.as_str()) {
            return route.clone();
        }
        if known.len() >= MAX_ROUTES {
            return other.clone();
        }
        let route: Arc<str> = Arc::from(template.as_str());
        known.insert(Box::from(template.as_str()), route.clone());
        route
    }
}

impl Learned {
    /// The route of the application's own TLS to a server of that name.
    pub fn host(&self, name: &str) -> Arc<str> {
        let mut inner = self.inner.lock();
        if let Some(route) = inner.known.get(name) {
            return route.clone();
        }
        if inner.known.len() >= MAX_ROUTES || name.len() > MAX_ROUTE_BYTES {
            return inner.other.clone();
        }
        let route: Arc<str> = Arc::from(name);
        inner.known.insert(Box::from(name), route.clone());
        route
    }

    /// The route of health probes.
    pub fn probe(&self) -> Arc<str> {
        self.inner.lock().probe.clone()
    }
}

/// Writes the template of `path` to `out`: `/orders/81/items/` becomes `/orders/{id}/items/`.
/// What would be longer than [`MAX_ROUTE_BYTES`] ends in `/…`.
pub fn collapse(path: &str, out: &mut String) {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    for (at, segment) in path.split('/').enumerate() {
        let segment = if is_identifier(segment) { ID } else { segment };
        if out.len() + segment.len() + "//…".len() > MAX_ROUTE_BYTES {
            out.push_str("/…");
            return;
        }
        if at > 0 {
            out.push('/');
        }
        out.push_str(segment);
    }
    if out.is_empty() {
        out.push('/');
    }
}

/// True for what is more likely the name of one thing than of a kind of things: numbers, UUIDs, hashes, dates,
/// e-mail addresses, long mixtures of letters and digits, anything percent-encoded.
fn is_identifier(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    if bytes.is_empty() || is_version(bytes) {
        return false;
    }
    let digits = bytes.iter().filter(|b| b.is_ascii_digit()).count();
    let hex = bytes.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-');
    let numeric = bytes.iter().all(|b| b.is_ascii_digit() || b"-_.:,+TZ".contains(b));
    let mixed_case = bytes.iter().any(u8::is_ascii_uppercase) && bytes.iter().any(u8::is_ascii_lowercase);
    (numeric && digits > 0)
        || (hex && digits > 0 && bytes.len() >= 8)
        || (digits >= 4 && digits * 3 >= bytes.len())
        || (digits >= 3 && bytes.len() >= 16)
        || (digits >= 1 && mixed_case && bytes.len() >= 10)
        || ends_in_number(bytes)
        || bytes.contains(&b'@')
        || bytes.contains(&b'%')
        || bytes.len() > 48
}

/// `v1`, `v1alpha1`, `v2.1`: versions of an API are kinds, not things.
fn is_version(bytes: &[u8]) -> bool {
    let Some((b'v' | b'V', [first, rest @ ..])) = bytes.split_first() else {
        return false;
    };
    first.is_ascii_digit()
        && rest.len() <= 8
        && rest.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'.')
}

/// `item-17`, `sku_4711`, `user:5`: a word and a number.
fn ends_in_number(bytes: &[u8]) -> bool {
    let number = bytes.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    number > 0 && number < bytes.len() && matches!(bytes[bytes.len() - number - 1], b'-' | b'_' | b':')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn identifiers_collapse_and_words_stay() {
        let check = |path: &str, expect: &str| {
            let mut out = String::new();
            collapse(path, &mut out);
            assert_eq!(out, expect, "{path}");
        };
        check("/", "/");
        check("", "/");
        check("*", "*");
        check("/products", "/products");
        check("/products/", "/products/");
        check("/products/17", "/products/{id}");
        check("/products/17/reviews?page=2", "/products/{id}/reviews");
        check("/users/6f9619ff-8b86-d011-b42d-00c04fc964ff", "/users/{id}");
        check("/blobs/da39a3ee5e6b4b0d3255bfef95601890afd80709", "/blobs/{id}");
        check("/commits/da39a3e1", "/commits/{id}");
        check("/days/2026-11-21", "/days/{id}");
        check("/at/2026-11-21T10:00:00Z", "/at/{id}");
        check("/mail/a@b.example", "/mail/{id}");
        check("/p/sku-4711", "/p/{id}");
        check("/u/dQw4w9WgXcQ", "/u/{id}");
        check("/api/v1/items", "/api/v1/items");
        check("/apis/apps/v1beta2/x", "/apis/apps/v1beta2/x");
        check("/robots.txt", "/robots.txt");
        check("/oauth2/callback", "/oauth2/callback");
        check("/static/app.js", "/static/app.js");
        check("/deadbeef", "/deadbeef");
        check("/name/J%C3%BCrgen", "/name/{id}");
    }

    #[test]
    fn the_cap_leads_to_other() {
        let routes = Learned::default();
        let word = |i: usize| -> String {
            format!("/{}", "abcdefghij".chars().cycle().skip(i % 10).take(2 + i / 10).collect::<String>())
        };
        for i in 0..MAX_ROUTES {
            assert_ne!(&*routes.name(&word(i), false), OTHER);
        }
        assert_eq!(&*routes.name("/one/more", false), OTHER);
        assert_eq!(&*routes.name(&word(3), false), word(3));
    }

    #[test]
    fn a_grpc_method_is_its_own_route() {
        let routes = Learned::default();
        assert_eq!(&*routes.name("/shop.v1.Cart/Add2", true), "/shop.v1.Cart/Add2");
        assert!(Arc::ptr_eq(&routes.name("/a/1", false), &routes.name("/a/2", false)));
    }

    proptest! {
        #[test]
        fn a_template_is_bounded_and_stable(path in "(/[a-zA-Z0-9@%._:-]{0,60}){0,12}") {
            let (mut once, mut twice) = (String::new(), String::new());
            collapse(&path, &mut once);
            collapse(&once, &mut twice);
            prop_assert!(once.len() <= MAX_ROUTE_BYTES);
            prop_assert_eq!(once, twice);
        }
    }
}
