//! What access policies ask about a request beyond its head: whether it is of a route, and what its token says. Made ready
//! once, when a policy is learned, so that nothing about it can fail on a request's way; found out for a request only if a
//! rule asks, and then once.

use crate::access::external::Question;
use crate::jwt::{Fault, Verifier};
use crate::limits;
use crate::route::matcher::{Asked, Matcher};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName};
use mesh_api::Access;
use mesh_api::access::{Evidence, JwtRule, RouteMatches, Token};
use serde_json::{Map, Value};
use std::cell::OnceCell;
use std::sync::Arc;

/// Routes and tokens that policies ask about, ready for use.
#[derive(Debug, Default)]
pub struct Checks {
    routes: Vec<Route>,
    tokens: Vec<Tokens>,
    /// Services that are asked, by their numbers.
    pub questions: Vec<Arc<Question>>,
}

#[derive(Debug)]
struct Route {
    grpc: bool,
    matcher: Matcher,
}

#[derive(Debug)]
struct Tokens {
    /// The field that holds nothing but the token.
    field: Option<HeaderName>,
    verifier: Verifier,
}

impl Checks {
    /// What these policies ask about; an error names what cannot be used, and why.
    pub fn compile(access: &Access) -> Result<Self, String> {
        if access.routes.len() > limits::ACCESS_ROUTES || access.jwts.len() > limits::ACCESS_JWTS {
            return Err(format!("access: {} routes and {} jwts are too many", access.routes.len(), access.jwts.len()));
        }
        for rule in &access.rules {
            let known = |at: Option<usize>, of: usize| at.is_none_or(|at| at < of);
            let there = known(rule.route, access.routes.len())
                && known(rule.jwt, access.jwts.len())
                && known(rule.external, access.external.len());
            if !there {
                return Err(format!(
                    "access.rules: {} refers to a route, jwt or service that is not there",
                    rule.policy
                ));
            }
        }
        let route = |(at, of): (usize, &RouteMatches)| {
            let matches = of.matches.len();
            if matches > limits::ROUTE_MATCHES {
                return Err(format!("access.routes[{at}]: {matches} conditions, more than {}", limits::ROUTE_MATCHES));
            }
            let matcher = Matcher::compile(&of.matches, 1).map_err(|why| format!("access.routes[{at}]{why}"))?;
            Ok(Route { grpc: of.grpc, matcher })
        };
        let tokens = |(at, of): (usize, &JwtRule)| {
            let field = of.header.as_ref().map(|name| name.parse::<HeaderName>());
            let field = field.transpose().map_err(|_| format!("access.jwts[{at}].header is no name of a field"))?;
            Ok(Tokens { field, verifier: Verifier::new(of) })
        };
        if access.external.len() > limits::EXTERNAL_SERVICES {
            return Err(format!("access.external: more than {}", limits::EXTERNAL_SERVICES));
        }
        let question =
            |(at, of)| Question::compile(of).map(Arc::new).map_err(|why| format!("access.external[{at}].{why}"));
        Ok(Self {
            questions: access.external.iter().enumerate().map(question).collect::<Result<_, String>>()?,
            routes: access.routes.iter().enumerate().map(route).collect::<Result<_, String>>()?,
            tokens: access.jwts.iter().enumerate().map(tokens).collect::<Result<_, String>>()?,
        })
    }

    /// Takes out of a request what only services that are asked may say of it.
    pub fn silence(&self, headers: &mut HeaderMap) {
        for name in self.questions.iter().flat_map(|question| question.takes()) {
            headers.remove(name);
        }
    }

    /// What can be found out about a request that arrives at a time, seconds since 1970.
    pub fn of<'a>(&'a self, asked: Asked<'a>, grpc: bool, now_s: u64) -> Found<'a> {
        let judged = self.tokens.iter().map(|_| OnceCell::new()).collect();
        Found { checks: self, asked, grpc, now_s, judged }
    }
}

/// Claims, or what is wrong with the token; `None`: there is none.
type Judged = Result<Map<String, Value>, Option<Fault>>;

/// What can be found out about a request.
#[derive(Debug)]
pub struct Found<'a> {
    checks: &'a Checks,
    asked: Asked<'a>,
    grpc: bool,
    now_s: u64,
    judged: Vec<OnceCell<Judged>>,
}

impl Evidence for Found<'_> {
    fn is_of_route(&self, route: usize) -> bool {
        let known = self.checks.routes.get(route).filter(|route| !route.grpc || self.grpc);
        known.is_some_and(|route| route.matcher.find(&self.asked).is_some())
    }

    fn token(&self, jwt: usize) -> Token<'_> {
        let (Some(tokens), Some(judged)) = (self.checks.tokens.get(jwt), self.judged.get(jwt)) else {
            return Token::Missing;
        };
        let judge = || {
            let token = token(self.asked.headers, tokens.field.as_ref())?;
            tokens.verifier.verify(token, self.now_s).map_err(Some)
        };
        match judged.get_or_init(judge) {
            Ok(claims) => Token::Valid(claims),
            Err(None) => Token::Missing,
            Err(Some(why)) => Token::Invalid(why),
        }
    }
}

/// The one token in a field: all of it, or what follows `Bearer` (RFC 6750, section 2.1).
fn token<'a>(headers: &'a HeaderMap, field: Option<&HeaderName>) -> Result<&'a [u8], Option<Fault>> {
    let mut lines = headers.get_all(field.unwrap_or(&AUTHORIZATION)).iter();
    let Some(line) = lines.next() else { return Err(None) };
    if lines.next().is_some() {
        return Err(Some("there are several"));
    }
    if field.is_some() {
        return Ok(line.as_bytes().trim_ascii());
    }
    match line.as_bytes().split_at_checked("Bearer ".len()) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"Bearer ") => Ok(token.trim_ascii()),
        _ => Err(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::AccessRule;
    use mesh_api::route::{HttpMatch, PathMatch};

    #[test]
    fn a_token_is_found_where_it_belongs() {
        let check = |lines: &[(&str, &str)], field: Option<&str>, expect: Result<&str, Option<Fault>>| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
            let field = field.map(|name| name.parse().unwrap());
            assert_eq!(token(&headers, field.as_ref()), expect.map(str::as_bytes), "{lines:?}");
        };
        check(&[("authorization", "Bearer a.b.c")], None, Ok("a.b.c"));
        check(&[("authorization", "bearer  a.b.c ")], None, Ok("a.b.c"));
        check(&[("authorization", "Basic a.b.c")], None, Err(None));
        check(&[("authorization", "a")], None, Err(None));
        check(&[], None, Err(None));
        check(&[("authorization", "Bearer a"), ("authorization", "Bearer b")], None, Err(Some("there are several")));
        check(&[("x-token", "a.b.c")], Some("x-token"), Ok("a.b.c"));
        check(&[("authorization", "Bearer a.b.c")], Some("x-token"), Err(None));
    }

    #[test]
    fn requests_are_of_the_routes_they_match() {
        let matches =
            |path: &str| vec![HttpMatch { path: Some(PathMatch::Prefix(path.to_owned())), ..HttpMatch::default() }];
        let routes = vec![
            RouteMatches { grpc: false, matches: matches("/api") },
            RouteMatches { grpc: true, matches: vec![HttpMatch::default()] },
        ];
        let checks = Checks::compile(&Access { routes, ..Access::default() }).unwrap();
        let headers = HeaderMap::new();
        let check = |path: &str, grpc: bool, expect: [bool; 3]| {
            let found = checks.of(Asked::new("GET", "web", path, "", &headers), grpc, 0);
            assert_eq!([0, 1, 2].map(|route| found.is_of_route(route)), expect, "{path}");
        };
        check("/api/x", false, [true, false, false]);
        check("/apis", false, [false, false, false]);
        check("/api", true, [true, true, false]);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let bad = vec![HttpMatch { path: Some(PathMatch::Regex("(".to_owned())), ..HttpMatch::default() }];
        let routes = vec![RouteMatches { grpc: false, matches: bad }];
        let error = Checks::compile(&Access { routes, ..Access::default() }).unwrap_err();
        assert!(error.starts_with("access.routes[0][0].path"), "{error}");
        let rules = vec![AccessRule { policy: "shop/a".to_owned(), jwt: Some(0), ..AccessRule::default() }];
        let error = Checks::compile(&Access { rules, ..Access::default() }).unwrap_err();
        assert!(error.contains("shop/a"), "{error}");
    }
}
