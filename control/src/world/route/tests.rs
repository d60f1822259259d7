//! Objects as the API sends them, and what of them counts.

use super::read;
use super::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh_api::Millis;
use mesh_api::route::{PathChange, TextMatch};
use serde_json::json;

fn metadata() -> ObjectMeta {
    serde_json::from_value(json!({
        "namespace": "shop", "name": "web", "generation": 3, "creationTimestamp": "2026-11-21T06:00:00Z",
    }))
    .unwrap()
}

fn http(spec: Value) -> RouteView {
    read::route(RouteKind::Http, &metadata(), &json!({"spec": spec}))
}

fn rule(rule: Value) -> RuleView {
    http(json!({"rules": [rule]})).rules.remove(0)
}

#[test]
fn only_services_are_parents_of_the_mesh() {
    let service = json!({"group": "", "kind": "Service", "name": "web", "port": 80, "sectionName": "http"});
    let route = http(json!({"parentRefs": [{"name": "gateway"}, service, {"kind": "Service", "name": "other"}]}));
    let parent = ParentView {
        reference: service,
        service: Name::new("shop", "web"),
        port: Some(80),
        section: Some("http".to_owned()),
    };
    assert_eq!(route.parents, [parent]);
    assert_eq!((route.generation, route.created), (3, 1_795_240_800));
    assert_eq!(route.problems, []);
}

#[test]
fn a_route_without_rules_takes_everything_and_leads_nowhere() {
    let route = http(json!({}));
    assert_eq!(route.rules.len(), 1);
    assert_eq!(route.rules[0].matches, [MatchView::default()]);
    assert!(route.rules[0].backends.is_empty() && !route.rules[0].is_invalid());
}

#[test]
fn matches_are_read_with_their_defaults() {
    let read = rule(json!({"matches": [{
        "path": {"value": "/a/"}, "method": "GET",
        "headers": [{"name": "Version", "value": "2"}, {"name": "version", "value": "later ones do not count"},
            {"type": "RegularExpression", "name": "color", "value": "r.d"}],
        "queryParams": [{"name": "Animal", "value": "whale"}],
    }, {"path": {"type": "Exact", "value": "/b"}}, {"path": {"type": "PathPrefix", "value": "/"}}]}));
    let value = |name: &str, value: TextMatch| ValueMatch { name: name.to_owned(), value };
    assert_eq!(
        read.matches,
        [
            MatchView {
                path: Some(PathMatch::Prefix("/a".to_owned())),
                method: Some("GET".to_owned()),
                headers: vec![
                    value("version", TextMatch::Exact("2".to_owned())),
                    value("color", TextMatch::Regex("r.d".to_owned())),
                ],
                query: vec![value("Animal", TextMatch::Exact("whale".to_owned()))],
                grpc_chars: (0, 0),
            },
            MatchView { path: Some(PathMatch::Exact("/b".to_owned())), ..MatchView::default() },
            MatchView::default(),
        ]
    );
    assert_eq!(read.problems, []);
}

#[test]
fn methods_of_grpc_are_paths() {
    let check = |method: Value, path: Option<PathMatch>, chars: (usize, usize)| {
        let spec = json!({"rules": [{"matches": [{"method": method}]}]});
        let route = read::route(RouteKind::Grpc, &metadata(), &json!({"spec": spec}));
        let expect = MatchView { path, grpc_chars: chars, ..MatchView::default() };
        assert_eq!(route.rules[0].matches, [expect], "{method}");
    };
    check(json!({"service": "a.B", "method": "C"}), Some(PathMatch::Exact("/a.B/C".into())), (3, 1));
    check(json!({"service": "a.B"}), Some(PathMatch::Prefix("/a.B".into())), (3, 0));
    check(json!({"method": "Call"}), Some(PathMatch::Regex("/[^/]+/Call".into())), (0, 4));
    let regex = json!({"type": "RegularExpression", "service": "a|b", "method": "C.*"});
    check(regex, Some(PathMatch::Regex("/(?:a|b)/(?:C.*)".into())), (3, 3));
    check(json!({}), None, (0, 0));
}

#[test]
fn what_cannot_be_used_is_told_and_the_rest_counts() {
    let check = |rule_json: Value, effect: Effect, text: &str, matches: usize, fails: bool| {
        let read = rule(rule_json.clone());
        let wrong = !text.ends_with("not known to this release") && !text.ends_with("is not supported");
        let expect = Problem { effect, reason: Reason::UnsupportedValue, wrong, text: text.to_owned() };
        assert_eq!(read.problems, [expect], "{rule_json}");
        assert_eq!((read.matches.len(), read.fails()), (matches, fails), "{rule_json}");
    };
    let matches = |of: Value| json!({"matches": [of, {"path": {"value": "/b"}}]});
    let ignored = "rules[0].fancy: not known to this release";
    check(json!({"fancy": true}), Effect::Ignored, ignored, 1, false);
    let kind = matches(json!({"path": {"type": "Glob", "value": "/*"}}));
    check(kind, Effect::Dropped, "rules[0].matches[0].path.type: `Glob` is not supported", 1, false);
    let regex = matches(json!({"path": {"type": "RegularExpression", "value": "/("}}));
    check(regex, Effect::Dropped, "rules[0].matches[0].path.value: `/(`: unclosed group", 1, false);
    let header = matches(json!({"headers": [{"name": "a", "type": "Glob", "value": "b"}]}));
    check(header, Effect::Dropped, "rules[0].matches[0].headers[0].type: `Glob` is not supported", 1, false);
    let filter = json!({"filters": [{"type": "CORS", "cors": {}}]});
    check(filter, Effect::Fails, "rules[0].filters[0].type: `CORS` is not supported", 1, true);
    let missing = json!({"filters": [{"type": "URLRewrite"}]});
    check(missing, Effect::Fails, "rules[0].filters[0].urlRewrite: missing", 1, true);
    let status = json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 300}}]});
    let text = "rules[0].filters[0].requestRedirect.statusCode: `300` is not supported";
    check(status, Effect::Fails, text, 1, true);
    let timeout = json!({"timeouts": {"request": "1 minute"}});
    let text = "rules[0].timeouts.request: `1 minute` is no duration: write for instance `500ms`, `10s` or `1h30m`";
    check(timeout, Effect::Ignored, text, 1, false);
    let prefix = json!({"matches": [{"path": {"type": "Exact", "value": "/a"}}],
        "filters": [{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}}}]});
    check(prefix, Effect::Fails, "rules[0].filters: ReplacePrefixMatch needs matches of type PathPrefix", 1, true);
}

#[test]
fn redirects_and_rewrites_do_not_go_together() {
    let read = rule(json!({"filters": [
        {"type": "URLRewrite", "urlRewrite": {"hostname": "b"}},
        {"type": "RequestRedirect", "requestRedirect": {"scheme": "https"}},
    ]}));
    assert!(read.is_invalid() && read.problems[0].reason == Reason::IncompatibleFilters);
}

#[test]
fn filters_are_read() {
    let read = rule(json!({"filters": [
        {"type": "RequestHeaderModifier", "requestHeaderModifier": {
            "set": [{"name": "X-A", "value": "1"}], "add": [{"name": "b", "value": "2"}], "remove": ["X-C"]}},
        {"type": "URLRewrite", "urlRewrite": {"hostname": "a.example",
            "path": {"type": "ReplaceFullPath", "replaceFullPath": "/x"}}},
        {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "copy", "port": 80}, "percent": 5}},
        {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "copy", "port": 80},
            "fraction": {"numerator": 1, "denominator": 1000}}},
    ]}));
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    let change = mesh_api::route::HeaderChange {
        set: vec![pair("x-a", "1")],
        add: vec![pair("b", "2")],
        remove: vec!["x-c".to_owned()],
    };
    let rewrite =
        mesh_api::route::Rewrite { host: Some("a.example".to_owned()), path: Some(PathChange::Full("/x".to_owned())) };
    assert_eq!(read.filters[0], FilterView::Plain(Filter::RequestHeaders(change)));
    assert_eq!(read.filters[1], FilterView::Plain(Filter::Rewrite(rewrite)));
    let share = |at: usize| match &read.filters[at] {
        FilterView::Mirror { to, numerator, denominator } => (to.path.clone(), *numerator, *denominator),
        other => panic!("{other:?}"),
    };
    assert_eq!(share(2), ("rules[0].filters[2].requestMirror.backendRef".to_owned(), 5, 100));
    assert_eq!((share(3).1, share(3).2), (1, 1000));
    assert_eq!(read.problems, []);
}

#[test]
fn timeouts_retries_and_sessions_are_read() {
    let read = rule(json!({
        "timeouts": {"request": "10s", "backendRequest": "0s"},
        "retry": {"codes": [500, 503], "attempts": 3, "backoff": "100ms"},
        "sessionPersistence": {"sessionName": "s", "type": "Cookie", "absoluteTimeout": "1h",
            "cookieConfig": {"lifetimeType": "Permanent"}},
    }));
    assert_eq!(read.timeouts, Timeouts { request: Some(Millis(10_000)), ..Timeouts::default() });
    let retry = read.retry.unwrap();
    assert_eq!((retry.attempts, retry.codes, retry.backoff), (3, vec![500, 503], Some(Millis(100))));
    let session = read.session.unwrap();
    assert_eq!((session.name.as_str(), session.in_header, session.permanent), ("s", false, true));
    assert_eq!(session.absolute, Some(Millis(3_600_000)));
    assert_eq!(read.problems, []);
    let unnamed = rule(json!({"sessionPersistence": {}})).session.unwrap();
    assert!(unnamed.name.starts_with("mesh-session-"));
}

#[test]
fn budgets_are_read_as_retries_a_second() {
    let spec = json!({"targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
        "retryConstraint": {"budget": {"percent": 30, "interval": "5s"}, "minRetryRate": {"count": 3, "interval": "2s"}}});
    let policy = read::backend_policy(&metadata(), &json!({"spec": spec}));
    assert_eq!(policy.services, ["web"]);
    assert_eq!(policy.budget, Some(RetryBudget { percent: 30, interval: Millis(5000), min_per_second: 2 }));
}
