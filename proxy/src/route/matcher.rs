//! Which of many conditions a request meets, the first in order of precedence. Only those are looked at that may hold:
//! exact paths are found by their hash, prefixes by the hash of the path's own prefixes, all regular expressions of paths
//! are run in one pass, and where many conditions ask for the same path they are told apart by the header field or query
//! parameter they want. So a thousand conditions cost about what one does.

use super::text::{Hosts, Text, decode};
use crate::limits;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use mesh_api::route::{HttpMatch, PathMatch, TextMatch, ValueMatch};
use regex::bytes::{RegexSet, RegexSetBuilder};
use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashMap;

/// What conditions are about.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The method.
    pub method: &'a str,
    /// The host, without a port.
    pub host: &'a str,
    /// The path.
    pub path: &'a str,
    /// Header fields.
    pub headers: &'a HeaderMap,
    query: &'a str,
    parameters: OnceCell<HashMap<Cow<'a, str>, Cow<'a, str>>>,
}

impl<'a> Asked<'a> {
    /// What a request asks for.
    pub fn of<B>(request: &'a Request<B>) -> Self {
        let uri = request.uri();
        let host = uri.host().or_else(|| host_of(request.headers())).unwrap_or_default();
        let query = uri.query().unwrap_or_default();
        Self::new(request.method().as_str(), host, uri.path(), query, request.headers())
    }

    /// The parts of a request.
    pub fn new(method: &'a str, host: &'a str, path: &'a str, query: &'a str, headers: &'a HeaderMap) -> Self {
        Self { method, host, path, headers, query, parameters: OnceCell::new() }
    }

    /// The first value of a query parameter.
    fn parameter(&self, name: &str) -> Option<&str> {
        if self.query.is_empty() {
            return None;
        }
        let parameters = self.parameters.get_or_init(|| {
            let mut parameters = HashMap::new();
            for pair in self.query.split('&').take(limits::ROUTE_PARAMETERS) {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                parameters.entry(decode(name)).or_insert_with(|| decode(value));
            }
            parameters
        });
        parameters.get(name).map(AsRef::as_ref)
    }
}

/// The host that `Host` names.
fn host_of(headers: &HeaderMap) -> Option<&str> {
    let host = headers.get(http::header::HOST)?.to_str().ok()?;
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') && !port.is_empty() => Some(name),
        Some((name, "")) => Some(name),
        _ => Some(host),
    }
}

/// The value of a header field; several are joined by commas (RFC 9110, section 5.2).
fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
    let mut all = [first, b",", second].concat();
    for value in values {
        all.push(b',');
        all.extend_from_slice(value);
    }
    Some(Cow::Owned(all))
}

/// What took a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The condition.
    pub at: usize,
    /// The rule it leads to.
    pub rule: usize,
    /// Length of the path's prefix that was asked for, without a slash at its end; zero if none was.
    pub prefix: usize,
}

/// The first thing that a request does not meet of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss<'a> {
    /// The host is none of those that are asked for.
    Host,
    /// The path is another.
    Path,
    /// The method is another.
    Method,
    /// This header field is missing or has another value.
    Header(&'a str),
    /// This query parameter is missing or has another value.
    Parameter(&'a str),
}

/// Conditions in order of precedence.
#[derive(Debug, Default)]
pub struct Matcher {
    conditions: Vec<Condition>,
    exact: HashMap<Box<str>, Bucket>,
    /// By prefix without a slash at its end; each is empty or begins with one.
    prefixes: HashMap<Box<str>, Bucket>,
    /// Slashes in the longest of them.
    deepest: usize,
    expressions: RegexSet,
    /// The condition of each expression.
    expressed: Vec<u32>,
    any: Bucket,
}

/// One condition but for its path, which is what it is found by.
#[derive(Debug)]
struct Condition {
    rule: usize,
    prefix: usize,
    hosts: Hosts,
    method: Option<Method>,
    headers: Vec<(HeaderName, Text)>,
    query: Vec<(Box<str>, Text)>,
}

/// Conditions by the value that they want.
type ByValue<T> = HashMap<Box<T>, Vec<u32>>;

/// Conditions on the same path.
#[derive(Debug, Default)]
struct Bucket {
    /// Those that want a value of some field, by the field.
    by_header: Vec<(HeaderName, ByValue<[u8]>)>,
    /// Those that want a value of some query parameter, by the parameter.
    by_query: Vec<(Box<str>, ByValue<str>)>,
    others: Vec<u32>,
}

impl Matcher {
    /// The matcher for conditions; an error says which one cannot be used, and why. `rules` is how many rules there are.
    pub fn compile(matches: &[HttpMatch], rules: usize) -> Result<Self, String> {
        let mut matcher = Self::default();
        let mut expressions: Vec<String> = Vec::new();
        for (at, of) in matches.iter().enumerate() {
            let condition = Condition::compile(of, rules).map_err(|why| format!("[{at}].{why}"))?;
            // The number of conditions is bounded far below.
            let id = u32::try_from(at).map_err(|_| "too many conditions".to_owned())?;
            match &of.path {
                None => matcher.any.add(id, of, &condition),
                Some(PathMatch::Exact(path)) => {
                    check_path(path).map_err(|why| format!("[{at}].path: {why}"))?;
                    matcher.exact.entry(path.as_str().into()).or_default().add(id, of, &condition);
                }
                Some(PathMatch::Prefix(path)) => {
                    check_path(path).map_err(|why| format!("[{at}].path: {why}"))?;
                    let prefix = bare(path);
                    matcher.deepest = matcher.deepest.max(prefix.bytes().filter(|b| *b == b'/').count());
                    matcher.prefixes.entry(prefix.into()).or_default().add(id, of, &condition);
                }
                Some(PathMatch::Regex(expression)) => {
                    let whole = Text::expression(expression).map_err(|why| format!("[{at}].path: {why}"))?;
                    expressions.push(whole);
                    matcher.expressed.push(id);
                }
            }
            matcher.conditions.push(condition);
        }
        matcher.expressions = RegexSetBuilder::new(&expressions)
            .size_limit(limits::ROUTE_EXPRESSIONS_BYTES)
            .dfa_size_limit(limits::ROUTE_EXPRESSIONS_BYTES)
            .build()
            .map_err(|error| format!(": the regular expressions of paths are too large together: {error}"))?;
        Ok(matcher)
    }

    /// True if there are no conditions.
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty()
    }

    /// The first condition that a request meets.
    pub fn find(&self, asked: &Asked<'_>) -> Option<Hit> {
        let mut best = self.conditions.len();
        self.each_bucket(asked.path, |bucket| bucket.search(&self.conditions, asked, &mut best));
        if !self.expressed.is_empty() {
            first(&self.conditions, self.held(asked.path), asked, &mut best);
        }
        let condition = self.conditions.get(best)?;
        Some(Hit { at: best, rule: condition.rule, prefix: condition.prefix })
    }

    /// What a request does not meet of each condition, in order of precedence; the first without anything is the one
    /// that [`Matcher::find`] finds.
    pub fn judge(&self, asked: &Asked<'_>) -> Vec<Option<Miss<'_>>> {
        let mut on_path = vec![false; self.conditions.len()];
        let mut mark = |id: &u32| on_path.get_mut(*id as usize).into_iter().for_each(|on_path| *on_path = true);
        self.each_bucket(asked.path, |bucket| bucket.ids().for_each(&mut mark));
        self.held(asked.path).for_each(&mut mark);
        let missed = self.conditions.iter().zip(on_path).map(|(condition, on_path)| match condition.missed(asked) {
            Some(Miss::Host) => Some(Miss::Host),
            _ if !on_path => Some(Miss::Path),
            missed => missed,
        });
        missed.collect()
    }

    /// The buckets of conditions whose paths, but for regular expressions, a path meets.
    fn each_bucket(&self, path: &str, mut see: impl FnMut(&Bucket)) {
        see(&self.any);
        if !self.exact.is_empty()
            && let Some(bucket) = self.exact.get(path)
        {
            see(bucket);
        }
        if self.prefixes.is_empty() {
            return;
        }
        let ends = memchr::memchr_iter(b'/', path.as_bytes()).chain([path.len()]);
        for end in ends.take(self.deepest + 1) {
            if let Some(bucket) = path.get(..end).and_then(|prefix| self.prefixes.get(prefix)) {
                see(bucket);
            }
        }
    }

    /// The conditions whose regular expressions take a path.
    fn held(&self, path: &str) -> impl Iterator<Item = &u32> {
        self.expressions.matches(path.as_bytes()).into_iter().filter_map(|at| self.expressed.get(at))
    }
}

/// Lowers `best` to the first of `ids`, which rise, whose condition holds.
fn first<'a>(conditions: &[Condition], ids: impl Iterator<Item = &'a u32>, asked: &Asked<'_>, best: &mut usize) {
    for id in ids {
        let at = *id as usize;
        if at >= *best {
            return;
        }
        if conditions.get(at).is_some_and(|condition| condition.holds(asked)) {
            *best = at;
            return;
        }
    }
}

impl Bucket {
    fn add(&mut self, id: u32, of: &HttpMatch, condition: &Condition) {
        let exact_header = condition.headers.iter().find_map(|(name, text)| Some((name, text.exact()?)));
        let exact_query = of.query.iter().find_map(|ValueMatch { name, value }| match value {
            TextMatch::Exact(value) => Some((name, value)),
            TextMatch::Regex(_) => None,
        });
        if let Some((name, value)) = exact_header {
            let at = position_or_push(&mut self.by_header, |known| known == name, || name.clone());
            self.by_header[at].1.entry(value.into()).or_default().push(id);
        } else if let Some((name, value)) = exact_query {
            let at = position_or_push(&mut self.by_query, |known| **known == **name, || name.as_str().into());
            self.by_query[at].1.entry(value.as_str().into()).or_default().push(id);
        } else {
            self.others.push(id);
        }
    }

    /// All conditions in it.
    fn ids(&self) -> impl Iterator<Item = &u32> {
        let by_header = self.by_header.iter().flat_map(|(_, by_value)| by_value.values());
        let by_query = self.by_query.iter().flat_map(|(_, by_value)| by_value.values());
        by_header.chain(by_query).chain([&self.others]).flatten()
    }

    fn search(&self, conditions: &[Condition], asked: &Asked<'_>, best: &mut usize) {
        for (name, by_value) in &self.by_header {
            if let Some(ids) = joined(asked.headers, name).and_then(|value| by_value.get(&*value)) {
                first(conditions, ids.iter(), asked, best);
            }
        }
        for (name, by_value) in &self.by_query {
            if let Some(ids) = asked.parameter(name).and_then(|value| by_value.get(value)) {
                first(conditions, ids.iter(), asked, best);
            }
        }
        first(conditions, self.others.iter(), asked, best);
    }
}

/// Where in `list` the key is that `is` knows; it is put there if it was not.
fn position_or_push<K, V: Default>(list: &mut Vec<(K, V)>, is: impl Fn(&K) -> bool, key: impl FnOnce() -> K) -> usize {
    list.iter().position(|(known, _)| is(known)).unwrap_or_else(|| {
        list.push((key(), V::default()));
        list.len() - 1
    })
}

impl Condition {
    fn compile(of: &HttpMatch, rules: usize) -> Result<Self, String> {
        let HttpMatch { rule, hosts, path, method, headers, query } = of;
        if *rule >= rules {
            return Err(format!("rule: {rule} is none of the {rules} rules"));
        }
        let most = limits::ROUTE_CONDITIONS;
        if headers.len() > most || query.len() > most || hosts.len() > most {
            return Err(format!("headers, query, hosts: more than {most} of them"));
        }
        let method = method
            .as_ref()
            .map(|method| method.parse().map_err(|_| format!("method: `{method}` is no method")))
            .transpose()?;
        let headers = headers.iter().map(|ValueMatch { name, value }| {
            let parsed = name.parse().map_err(|_| format!("headers: `{name}` is no name of a header field"))?;
            Ok((parsed, Text::compile(value).map_err(|why| format!("headers: {name}: {why}"))?))
        });
        let query = query.iter().map(|ValueMatch { name, value }| {
            Ok((name.as_str().into(), Text::compile(value).map_err(|why| format!("query: {name}: {why}"))?))
        });
        let prefix = if let Some(PathMatch::Prefix(path)) = path { bare(path).len() } else { 0 };
        Ok(Self {
            rule: *rule,
            prefix,
            hosts: Hosts::new(hosts),
            method,
            headers: headers.collect::<Result<_, String>>()?,
            query: query.collect::<Result<_, String>>()?,
        })
    }

    fn holds(&self, asked: &Asked<'_>) -> bool {
        self.missed(asked).is_none()
    }

    /// The first thing that a request does not meet, but for the path.
    fn missed(&self, asked: &Asked<'_>) -> Option<Miss<'_>> {
        if !self.hosts.have(asked.host) {
            return Some(Miss::Host);
        }
        if self.method.as_ref().is_some_and(|method| method.as_str() != asked.method) {
            return Some(Miss::Method);
        }
        let is = |(name, text): &&(HeaderName, Text)| joined(asked.headers, name).is_some_and(|value| text.is(&value));
        if let Some((name, _)) = self.headers.iter().find(|header| !is(header)) {
            return Some(Miss::Header(name.as_str()));
        }
        let is = |(name, text): &&(Box<str>, Text)| asked.parameter(name).is_some_and(|v| text.is(v.as_bytes()));
        let parameter = self.query.iter().find(|parameter| !is(parameter))?;
        Some(Miss::Parameter(&parameter.0))
    }
}

/// A prefix without the slash at its end.
fn bare(prefix: &str) -> &str {
    prefix.strip_suffix('/').unwrap_or(prefix)
}

fn check_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("`{path}` does not begin with a slash"));
    }
    if path.len() > limits::ROUTE_TEXT_BYTES {
        return Err(format!("longer than {} bytes", limits::ROUTE_TEXT_BYTES));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
