//! Session persistence: a client's requests go to the endpoint that answered its first one, for as long as that is there.
//!
//! Nothing is remembered here: the client brings a token, in a cookie or a header field, that names the endpoint and says
//! when the session began and was last used. Tokens are no secrets and prove nothing; a client that makes one up chooses
//! among endpoints it may call anyway.

use crate::route::Rule;
use crate::state::{Backend, Group};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use mesh_api::Endpoint;
use mesh_api::route::SessionPersistence;
use std::sync::Arc;

/// A session of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The endpoint.
    pub endpoint: u64,
    /// When the session began, Unix seconds.
    pub began: u64,
    /// When it was last used, Unix seconds.
    pub used: u64,
}

impl Token {
    /// Reads a token.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text
            .trim()
            .trim_matches('"')
            .split('.')
            .map(|part| (1..=16).contains(&part.len()).then(|| u64::from_str_radix(part, 16).ok()).flatten());
        let token = Self { endpoint: numbers.next()??, began: numbers.next()??, used: numbers.next()?? };
        numbers.next().is_none().then_some(token)
    }

    /// True if the session has not ended at `now` (Unix seconds).
    pub fn lives(&self, session: &SessionPersistence, now: u64) -> bool {
        let within = |since: u64, limit: Option<mesh_api::Millis>| {
            limit.is_none_or(|limit| limit.is_zero() || now.saturating_sub(since).saturating_mul(1000) < limit.0)
        };
        // What claims to come from the future does not get longer by it.
        self.began <= now && within(self.began, session.absolute) && within(self.used.min(now), session.idle)
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}.{:x}.{:x}", self.endpoint, self.began, self.used)
    }
}

/// What tokens call an endpoint: the same in all proxies (FNV-1a over its address and pod).
pub fn name(endpoint: &Endpoint) -> u64 {
    let text = format!("{} {}", endpoint.address, endpoint.pod);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The session that a request belongs to.
pub fn of(session: &SessionPersistence, headers: &HeaderMap, now: u64) -> Option<Token> {
    let token = if session.in_header {
        Token::parse(headers.get(&*session.name)?.to_str().ok()?)
    } else {
        let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
        let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(name, _)| *name == session.name).and_then(|(_, value)| Token::parse(value))
    };
    token.filter(|token| token.lives(session, now))
}

/// The endpoint of a session, and the share it belongs to: sessions go before weights, so that a share without weight
/// keeps those it has.
pub fn find<'a>(token: &Token, rule: &Rule, groups: &'a [Arc<Group>]) -> Option<(usize, &'a Arc<Backend>)> {
    rule.shares.iter().enumerate().find_map(|(at, share)| {
        let group = groups.get(share.service?)?;
        let backend = group.backends.iter().find(|backend| backend.session == token.endpoint)?;
        Some((at, backend))
    })
}

/// Tells the client of its session, if that is news.
pub fn tell(session: &SessionPersistence, before: Option<Token>, backend: &Backend, now: u64, headers: &mut HeaderMap) {
    let kept = before.filter(|token| token.endpoint == backend.session);
    let token = Token { endpoint: backend.session, began: kept.map_or(now, |token| token.began), used: now };
    if kept.is_some() && session.idle.is_none() {
        return;
    }
    let (name, text) = if session.in_header {
        let Ok(name) = session.name.parse::<HeaderName>() else { return };
        (name, token.to_string())
    } else {
        let mut text = format!("{}={token}; Path=/; HttpOnly", session.name);
        if let Some(absolute) = session.absolute.filter(|_| session.permanent) {
            let left = (absolute.0 / 1000).saturating_sub(now.saturating_sub(token.began));
            text.push_str(&format!("; Max-Age={left}"));
        }
        (header::SET_COOKIE, text)
    };
    if let Ok(value) = HeaderValue::try_from(text) {
        if session.in_header {
            headers.insert(name, value);
        } else {
            headers.append(name, value);
        }
    }
}

/// Says why a session cannot be kept.
pub fn validate(session: &SessionPersistence) -> Result<(), String> {
    // The characters of a cookie's name are those of a field's (RFC 6265, section 4.1.1).
    let usable = session.name.parse::<HeaderName>().is_ok();
    if usable { Ok(()) } else { Err(format!("session.name: `{}` is no name", session.name)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::Millis;
    use proptest::prelude::*;

    fn session(in_header: bool) -> SessionPersistence {
        SessionPersistence { name: "sid".into(), in_header, absolute: None, idle: None, permanent: false }
    }

    #[test]
    fn sessions_end_by_age_and_by_silence() {
        let token = Token { endpoint: 1, began: 1000, used: 1050 };
        for (absolute, idle, now, expect) in [
            (None, None, 9_999_999, true),
            (Some(100), None, 1099, true),
            (Some(100), None, 1100, false),
            (None, Some(10), 1059, true),
            (None, Some(10), 1060, false),
            (Some(0), Some(0), 9_999_999, true),
            (None, None, 999, false),
        ] {
            let ms = |seconds: Option<u64>| seconds.map(|s| Millis(s * 1000));
            let said = SessionPersistence { absolute: ms(absolute), idle: ms(idle), ..session(false) };
            assert_eq!(token.lives(&said, now), expect, "{said:?} at {now}");
        }
    }

    #[test]
    fn tokens_come_in_cookies_or_fields() {
        let token = Token { endpoint: 0xabc, began: 1, used: 2 };
        let headers = |name: &'static str, value: String| {
            HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
        };
        assert_eq!(of(&session(false), &headers("cookie", format!("a=b; sid={token}; c=d")), 5), Some(token));
        assert_eq!(of(&session(true), &headers("sid", token.to_string()), 5), Some(token));
        assert_eq!(of(&session(true), &headers("cookie", format!("sid={token}")), 5), None);
        assert_eq!(of(&session(false), &headers("cookie", "sid=forged".to_owned()), 5), None);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(endpoint: u64, began: u64, used: u64) {
            let token = Token { endpoint, began, used };
            prop_assert_eq!(Token::parse(&token.to_string()), Some(token));
        }

        #[test]
        fn nothing_makes_it_panic(text in "\\PC{0,40}", now: u64, absolute: u64) {
            let said = SessionPersistence { absolute: Some(Millis(absolute)), idle: Some(Millis(absolute)), ..session(false) };
            if let Some(token) = Token::parse(&text) {
                token.lives(&said, now);
            }
            Token { endpoint: now, began: absolute, used: now }.lives(&said, now);
        }
    }
}
