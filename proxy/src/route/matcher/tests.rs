//! The matcher against what it should do: a list of conditions looked through from its begin, with nothing clever in it.

use super::*;
use http::HeaderMap;
use proptest::prelude::*;

/// A request in plain values.
#[derive(Clone, Debug)]
struct Question {
    method: String,
    host: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
}

impl Question {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }
}

/// The first condition that holds, found the slow way.
fn slowly(matches: &[HttpMatch], question: &Question) -> Option<usize> {
    matches.iter().position(|of| missed_slowly(of, question).is_none())
}

/// What is not met of a condition, in words.
fn missed_slowly(of: &HttpMatch, question: &Question) -> Option<&'static str> {
    let path = match &of.path {
        None => true,
        Some(PathMatch::Exact(path)) => *path == question.path,
        Some(PathMatch::Prefix(prefix)) => {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            question.path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        Some(PathMatch::Regex(expression)) => takes(expression, &question.path),
    };
    let method = of.method.as_ref().is_none_or(|method| *method == question.method);
    let host = of.hosts.is_empty()
        || of.hosts.iter().any(|host| match host.strip_prefix("*.") {
            Some(suffix) => {
                question.host.strip_suffix(suffix).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            None => *host == question.host,
        });
    let headers = of.headers.iter().all(|wanted| {
        let values: Vec<&str> =
            question.headers.iter().filter(|(name, _)| *name == wanted.name).map(|(_, value)| value.as_str()).collect();
        !values.is_empty() && is(&wanted.value, &values.join(","))
    });
    let query = of.query.iter().all(|wanted| {
        let mut pairs = question.query.split('&').filter(|_| !question.query.is_empty());
        let value = pairs.find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == wanted.name).then_some(value)
        });
        value.is_some_and(|value| is(&wanted.value, value))
    });
    let all = [(host, "host"), (path, "path"), (method, "method"), (headers, "headers"), (query, "query")];
    all.into_iter().find(|(holds, _)| !holds).map(|(_, what)| what)
}

fn is(text: &TextMatch, value: &str) -> bool {
    match text {
        TextMatch::Exact(exact) => exact == value,
        TextMatch::Regex(expression) => takes(expression, value),
    }
}

fn takes(expression: &str, value: &str) -> bool {
    regex::Regex::new(&format!("^(?:{expression})$")).unwrap().is_match(value)
}

fn find(matches: &[HttpMatch], question: &Question) -> Option<usize> {
    let matcher = Matcher::compile(matches, 1).unwrap();
    let headers = question.headers();
    let Question { method, host, path, query, .. } = question;
    matcher.find(&Asked::new(method, host, path, query, &headers)).map(|hit| hit.at)
}

/// What is not met of each condition, in words.
fn judge(matches: &[HttpMatch], question: &Question) -> Vec<Option<&'static str>> {
    let matcher = Matcher::compile(matches, 1).unwrap();
    let headers = question.headers();
    let Question { method, host, path, query, .. } = question;
    let word = |miss: Miss<'_>| match miss {
        Miss::Host => "host",
        Miss::Path => "path",
        Miss::Method => "method",
        Miss::Header(_) => "headers",
        Miss::Parameter(_) => "query",
    };
    matcher.judge(&Asked::new(method, host, path, query, &headers)).into_iter().map(|miss| miss.map(word)).collect()
}

fn judge_slowly(matches: &[HttpMatch], question: &Question) -> Vec<Option<&'static str>> {
    matches.iter().map(|of| missed_slowly(of, question)).collect()
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("ab"), Just("")], 0..4)
        .prop_map(|segments| format!("/{}", segments.join("/")))
}

fn text() -> impl Strategy<Value = TextMatch> {
    prop_oneof![
        4 => prop_oneof![Just("1"), Just("2"), Just("1,2")].prop_map(|value| TextMatch::Exact(value.to_owned())),
        1 => prop_oneof![Just("[0-9]"), Just("1.*"), Just("1|2")].prop_map(|value| TextMatch::Regex(value.to_owned())),
    ]
}

fn values() -> impl Strategy<Value = Vec<ValueMatch>> {
    let name = prop_oneof![Just("x"), Just("y")].prop_map(str::to_owned);
    proptest::collection::vec((name, text()).prop_map(|(name, value)| ValueMatch { name, value }), 0..3)
}

fn condition() -> impl Strategy<Value = HttpMatch> {
    let path = prop_oneof![
        3 => path().prop_map(|path| Some(PathMatch::Exact(path))),
        3 => path().prop_map(|path| Some(PathMatch::Prefix(path))),
        1 => prop_oneof![Just("/a.*"), Just("/(a|ab)/b?"), Just(".*")].prop_map(|e| Some(PathMatch::Regex(e.to_owned()))),
        1 => Just(None),
    ];
    let host = prop_oneof![Just("web"), Just("*.shop"), Just("a.shop")].prop_map(str::to_owned);
    let hosts = prop_oneof![2 => Just(Vec::new()), 1 => proptest::collection::vec(host, 1..3)];
    let method = proptest::option::weighted(0.3, prop_oneof![Just("GET"), Just("POST")].prop_map(str::to_owned));
    (path, hosts, method, values(), values()).prop_map(|(path, hosts, method, headers, query)| HttpMatch {
        rule: 0,
        hosts,
        path,
        method,
        headers,
        query,
    })
}

fn question() -> impl Strategy<Value = Question> {
    let pair = || (prop_oneof![Just("x"), Just("y"), Just("z")], prop_oneof![Just("1"), Just("2"), Just("")]);
    let host = prop_oneof![Just("web"), Just("a.shop"), Just("shop"), Just("b.a.shop")].prop_map(str::to_owned);
    let method = prop_oneof![Just("GET"), Just("POST")].prop_map(str::to_owned);
    let headers = proptest::collection::vec(pair(), 0..4);
    let query = proptest::collection::vec(pair(), 0..4);
    (method, host, path(), query, headers).prop_map(|(method, host, path, query, headers)| Question {
        method,
        host,
        path,
        query: query.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&"),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn it_finds_what_the_slow_way_finds(
        matches in proptest::collection::vec(condition(), 0..12),
        questions in proptest::collection::vec(question(), 1..12),
    ) {
        for question in questions {
            prop_assert_eq!(find(&matches, &question), slowly(&matches, &question), "{:?}", question);
            prop_assert_eq!(judge(&matches, &question), judge_slowly(&matches, &question), "{:?}", question);
        }
    }

    #[test]
    fn nothing_makes_it_panic(
        matches in proptest::collection::vec((any::<usize>(), proptest::option::of("\\PC{0,8}"), "\\PC{0,8}", "\\PC{0,8}"), 0..4),
        parts in proptest::collection::vec("\\PC{0,12}", 4),
    ) {
        let matches: Vec<HttpMatch> = matches
            .into_iter()
            .map(|(kind, path, name, value)| HttpMatch {
                path: path.map(|path| match kind % 3 {
                    0 => PathMatch::Exact(path),
                    1 => PathMatch::Prefix(format!("/{path}")),
                    _ => PathMatch::Regex(path),
                }),
                hosts: if kind % 5 == 0 { vec![value.clone()] } else { vec![] },
                query: vec![ValueMatch { name, value: TextMatch::Exact(value) }],
                ..HttpMatch::default()
            })
            .collect();
        if let Ok(matcher) = Matcher::compile(&matches, 1) {
            matcher.find(&Asked::new(&parts[0], &parts[1], &parts[2], &parts[3], &HeaderMap::new()));
        }
    }
}

fn ask(method: &str, url: &str, headers: &[(&str, &str)]) -> Question {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    Question {
        method: method.to_owned(),
        host: "web".to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    }
}

#[test]
fn prefixes_are_whole_segments() {
    let matches = [HttpMatch { path: Some(PathMatch::Prefix("/a/b/".to_owned())), ..HttpMatch::default() }];
    for (path, expect) in [
        ("/a/b", true),
        ("/a/b/", true),
        ("/a/b/c/d", true),
        ("/a/b?x=1", true),
        ("/a/bc", false),
        ("/a", false),
        ("/a//b", false),
    ] {
        assert_eq!(find(&matches, &ask("GET", path, &[])).is_some(), expect, "{path}");
    }
}

#[test]
fn query_values_are_decoded_and_the_first_counts() {
    let query = vec![ValueMatch { name: "q".to_owned(), value: TextMatch::Exact("a b&".to_owned()) }];
    let matches = [HttpMatch { query, ..HttpMatch::default() }];
    for (url, expect) in [("/?q=a+b%26", true), ("/?q=a%20b%26&q=x", true), ("/?q=x&q=a+b%26", false), ("/", false)] {
        assert_eq!(find(&matches, &ask("GET", url, &[])).is_some(), expect, "{url}");
    }
}

#[test]
fn what_cannot_be_used_is_named() {
    let refusal = |of: HttpMatch| Matcher::compile(&[HttpMatch::default(), of], 1).unwrap_err();
    let path = |path: PathMatch| HttpMatch { path: Some(path), ..HttpMatch::default() };
    let header = |name: &str, value: TextMatch| HttpMatch {
        headers: vec![ValueMatch { name: name.to_owned(), value }],
        ..HttpMatch::default()
    };
    for (of, part) in [
        (HttpMatch { rule: 7, ..HttpMatch::default() }, "[1].rule: 7 is none of the 1 rules"),
        (path(PathMatch::Exact("a".to_owned())), "[1].path: `a` does not begin with a slash"),
        (path(PathMatch::Prefix(String::new())), "[1].path"),
        (path(PathMatch::Regex("[".to_owned())), "[1].path: `[` is no regular expression"),
        (header("a b", TextMatch::Exact(String::new())), "[1].headers: `a b`"),
        (header("a", TextMatch::Regex("(".to_owned())), "[1].headers: a: `(` is no regular"),
        (HttpMatch { method: Some("A B".to_owned()), ..HttpMatch::default() }, "[1].method: `A B`"),
    ] {
        let error = refusal(of);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn hosts_come_from_the_target_or_the_field() {
    for (uri, field, expect) in [
        ("/", "web:80", "web"),
        ("/", "web", "web"),
        ("/", "[::1]:80", "[::1]"),
        ("/", "[::1]", "[::1]"),
        ("http://api:81/x", "web", "api"),
    ] {
        let request = Request::get(uri).header("host", field).body(()).unwrap();
        assert_eq!(Asked::of(&request).host, expect, "{uri} {field}");
    }
}

/// What makes routes cheap is that few conditions are looked at; counted here by time against a single one, generously.
#[test]
fn a_thousand_conditions_cost_little_more_than_one() {
    let many: Vec<HttpMatch> = (0..1000)
        .map(|i| HttpMatch {
            path: Some(match i % 3 {
                0 => PathMatch::Exact(format!("/api/v1/thing{i}")),
                1 => PathMatch::Prefix(format!("/api/v1/group{i}")),
                _ => PathMatch::Prefix("/api".to_owned()),
            }),
            headers: vec![ValueMatch { name: "x-version".to_owned(), value: TextMatch::Exact(i.to_string()) }],
            ..HttpMatch::default()
        })
        .collect();
    let one = [HttpMatch { path: Some(PathMatch::Prefix("/api".to_owned())), ..HttpMatch::default() }];
    let question = ask("GET", "/api/v1/thing/7", &[("x-version", "998")]);
    let headers = question.headers();
    let time = |matches: &[HttpMatch]| {
        let matcher = Matcher::compile(matches, 1).unwrap();
        let lap = || {
            let started = std::time::Instant::now();
            for _ in 0..2000 {
                let Question { method, host, path, query, .. } = &question;
                assert!(matcher.find(&Asked::new(method, host, path, query, &headers)).is_some());
            }
            started.elapsed()
        };
        (0..5).map(|_| lap()).min().unwrap()
    };
    let (many, one) = (time(&many), time(&one));
    assert!(many < one * 30, "{many:?} against {one:?} for 2,000 requests");
}
