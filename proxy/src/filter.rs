//! What rules do to requests and responses on their way: header fields changed, targets rewritten, redirects answered.
//! Everything is read once, when a route is learned; here nothing can fail any more.

use crate::limits;
use crate::route::Services;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Request, StatusCode, Uri};
use mesh_api::route;
use mesh_api::route::{Filter, HeaderChange, PathChange};

/// Fields that say where a message ends, or concern one connection: changed by a route, the next hop could read
/// something else than was sent.
const UNTOUCHABLE: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// The filters of a rule or of one of its backends.
#[derive(Debug, Default)]
pub struct Filters {
    /// Answers in place of an endpoint.
    pub redirect: Option<Redirect>,
    /// Copies of requests.
    pub mirrors: Vec<Mirror>,
    request: Vec<Step>,
    response: Vec<Fields>,
}

#[derive(Debug)]
enum Step {
    Fields(Fields),
    Host(Authority, HeaderValue),
    Path(PathChange),
}

/// Changes of header fields: set, added, removed.
#[derive(Debug, Default)]
struct Fields {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

/// A redirect.
#[derive(Debug)]
pub struct Redirect {
    /// Its status.
    pub status: StatusCode,
    scheme: Option<Scheme>,
    host: Option<Box<str>>,
    port: Option<u16>,
    path: Option<PathChange>,
}

/// A copy of some requests.
#[derive(Clone, Copy, Debug)]
pub struct Mirror {
    /// Where it goes, by the number of the service.
    pub service: usize,
    /// Of `denominator` requests so many.
    pub numerator: u32,
    /// Not zero.
    pub denominator: u32,
}

impl Filters {
    /// The filters, ready for use; an error says which one cannot be used, and why.
    pub fn compile(filters: &[Filter], services: &mut Services) -> Result<Self, String> {
        let mut compiled = Self::default();
        if filters.len() > limits::ROUTE_FILTERS {
            return Err(format!("filters: more than {}", limits::ROUTE_FILTERS));
        }
        for (at, filter) in filters.iter().enumerate() {
            compiled.add(filter, services).map_err(|why| format!("filters[{at}]: {why}"))?;
        }
        Ok(compiled)
    }

    fn add(&mut self, filter: &Filter, services: &mut Services) -> Result<(), String> {
        match filter {
            Filter::RequestHeaders(change) => {
                let mut fields = Fields::compile(change)?;
                let host = fields.set.iter().position(|(name, _)| *name == header::HOST);
                let host = host.map(|at| fields.set.remove(at).1);
                if fields.names().any(|name| *name == header::HOST) {
                    return Err("`host` can be set, not added or removed".to_owned());
                }
                if !fields.is_empty() {
                    self.request.push(Step::Fields(fields));
                }
                if let Some(host) = host {
                    self.request.push(Step::host(host.to_str().unwrap_or_default())?);
                }
            }
            Filter::ResponseHeaders(change) => self.response.push(Fields::compile(change)?),
            Filter::Rewrite(route::Rewrite { host, path }) => {
                if let Some(host) = host {
                    self.request.push(Step::host(host)?);
                }
                if let Some(path) = path {
                    check_path(path)?;
                    self.request.push(Step::Path(path.clone()));
                }
            }
            Filter::Redirect(redirect) if self.redirect.is_none() => {
                self.redirect = Some(Redirect::compile(redirect)?);
            }
            Filter::Redirect(_) => return Err("a second redirect".to_owned()),
            Filter::Mirror(route::Mirror { service, numerator, denominator }) => {
                if *denominator == 0 || numerator > denominator {
                    return Err(format!("{numerator}/{denominator} is no share of requests"));
                }
                let (numerator, denominator) = (*numerator, *denominator);
                self.mirrors.push(Mirror { service: services.number(service), numerator, denominator });
            }
        }
        Ok(())
    }

    /// Changes a request; `prefix` is the length of what the condition took of the path.
    pub fn request<B>(&self, request: &mut Request<B>, prefix: usize) {
        for step in &self.request {
            match step {
                Step::Fields(fields) => fields.change(request.headers_mut()),
                Step::Host(authority, value) => {
                    if request.uri().authority().is_some() {
                        retarget(request, |parts| parts.authority = Some(authority.clone()));
                    }
                    if request.uri().authority().is_none() || request.headers().contains_key(header::HOST) {
                        request.headers_mut().insert(header::HOST, value.clone());
                    }
                }
                Step::Path(change) => {
                    let path = changed_path(change, request.uri().path(), prefix);
                    let target = match request.uri().query() {
                        Some(query) => format!("{path}?{query}"),
                        None => path,
                    };
                    // Both parts are valid, and so are they together.
                    if let Ok(target) = PathAndQuery::try_from(target) {
                        retarget(request, |parts| parts.path_and_query = Some(target));
                    }
                }
            }
        }
    }

    /// Changes a response.
    pub fn response(&self, headers: &mut HeaderMap) {
        for fields in &self.response {
            fields.change(headers);
        }
    }
}

fn retarget<B>(request: &mut Request<B>, change: impl FnOnce(&mut http::uri::Parts)) {
    let mut parts = request.uri().clone().into_parts();
    change(&mut parts);
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

impl Step {
    fn host(host: &str) -> Result<Self, String> {
        let authority = authority(host)?;
        let value = HeaderValue::from_str(host).map_err(|_| format!("`{host}` is no host"))?;
        Ok(Step::Host(authority, value))
    }
}

fn authority(host: &str) -> Result<Authority, String> {
    let parsed: Option<Authority> = host.parse().ok().filter(|_| !host.contains('@'));
    parsed.ok_or_else(|| format!("`{host}` is no host"))
}

impl Fields {
    fn compile(change: &HeaderChange) -> Result<Self, String> {
        let HeaderChange { set, add, remove } = change;
        let most = limits::ROUTE_FIELDS;
        if set.len() > most || add.len() > most || remove.len() > most {
            return Err(format!("more than {most} header fields in a list"));
        }
        let pairs = |list: &[(String, String)]| {
            let pairs = list.iter().map(|(name, value)| {
                let text = value.trim_matches([' ', '\t']);
                let value = HeaderValue::from_str(text).ok().filter(|_| text.len() <= limits::ROUTE_TEXT_BYTES);
                let value = value.ok_or_else(|| format!("`{text}` is no value of a header field ({name})"))?;
                Ok((field_name(name)?, value))
            });
            pairs.collect::<Result<Vec<_>, String>>()
        };
        let remove = remove.iter().map(|name| field_name(name)).collect::<Result<_, _>>()?;
        Ok(Self { set: pairs(set)?, add: pairs(add)?, remove })
    }

    fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.set.iter().chain(&self.add).map(|(name, _)| name).chain(&self.remove)
    }

    fn is_empty(&self) -> bool {
        self.names().next().is_none()
    }

    fn change(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

fn field_name(name: &str) -> Result<HeaderName, String> {
    let parsed: HeaderName = name.parse().map_err(|_| format!("`{name}` is no name of a header field"))?;
    if UNTOUCHABLE.contains(&parsed) {
        return Err(format!(
            "`{name}` belongs to the connection, or says where the message ends; it cannot be changed"
        ));
    }
    Ok(parsed)
}

/// The path after a change; `prefix` is the length of what the condition took of it.
fn changed_path(change: &PathChange, path: &str, prefix: usize) -> String {
    match change {
        PathChange::Full(full) => full.clone(),
        PathChange::Prefix(with) => {
            let with = with.strip_suffix('/').unwrap_or(with);
            // A path that was not found by its prefix keeps all of it.
            let rest = path.get(prefix..).filter(|rest| rest.is_empty() || rest.starts_with('/')).unwrap_or(path);
            if with.is_empty() && rest.is_empty() { "/".to_owned() } else { format!("{with}{rest}") }
        }
    }
}

fn check_path(change: &PathChange) -> Result<(), String> {
    let (path, may_be_empty) = match change {
        PathChange::Full(path) => (path, false),
        PathChange::Prefix(path) => (path, true),
    };
    let usable = path.starts_with('/') || (may_be_empty && path.is_empty());
    let parsed = PathAndQuery::try_from(path.as_str()).ok();
    let whole = path.is_empty() || parsed.is_some_and(|parsed| parsed.as_str() == path && parsed.path() == path);
    if !usable || !whole || path.len() > limits::ROUTE_TEXT_BYTES {
        return Err(format!("`{path}` is no path: it has to begin with a slash and must not have a query"));
    }
    Ok(())
}

impl Redirect {
    fn compile(redirect: &route::Redirect) -> Result<Self, String> {
        let route::Redirect { scheme, host, port, path, status } = redirect;
        let status =
            StatusCode::from_u16(*status).ok().filter(|status| matches!(status.as_u16(), 301..=303 | 307 | 308));
        let status = status.ok_or_else(|| format!("{} is no status of a redirect", redirect.status))?;
        let scheme = match scheme.as_deref() {
            None => None,
            Some("http") => Some(Scheme::HTTP),
            Some("https") => Some(Scheme::HTTPS),
            Some(other) => return Err(format!("scheme: `{other}` is neither http nor https")),
        };
        if let Some(host) = host {
            authority(host)?;
        }
        if *port == Some(0) {
            return Err("port: 0".to_owned());
        }
        path.as_ref().map_or(Ok(()), check_path)?;
        Ok(Self { status, scheme, host: host.as_deref().map(Into::into), port: *port, path: path.clone() })
    }

    /// Where a request is sent: `host` and `port` are what the client called, `prefix` is the length of what the
    /// condition took of the path.
    pub fn location(&self, uri: &Uri, host: &str, port: u16, prefix: usize) -> Option<HeaderValue> {
        let scheme = self.scheme.as_ref().unwrap_or(&Scheme::HTTP);
        let own_port = if *scheme == Scheme::HTTPS { 443 } else { 80 };
        let port = match (self.port, &self.scheme) {
            (Some(port), _) => port,
            (None, Some(_)) => own_port,
            (None, None) => port,
        };
        let host = self.host.as_deref().unwrap_or(host);
        let mut location = format!("{scheme}://{host}");
        if port != own_port {
            location.push_str(&format!(":{port}"));
        }
        match &self.path {
            Some(change) => location.push_str(&changed_path(change, uri.path(), prefix)),
            None => location.push_str(uri.path()),
        }
        if let Some(query) = uri.query() {
            location.push('?');
            location.push_str(query);
        }
        HeaderValue::try_from(location).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn compile(filters: &[Filter]) -> Result<Filters, String> {
        Filters::compile(filters, &mut Services::default())
    }

    fn prefix(with: &str) -> Option<PathChange> {
        Some(PathChange::Prefix(with.to_owned()))
    }

    fn full(path: &str) -> Option<PathChange> {
        Some(PathChange::Full(path.to_owned()))
    }

    /// Gateway API, `ReplacePrefixMatch`, has most of this table.
    #[test]
    fn prefixes_are_replaced_by_whole_segments() {
        for (path, taken, with, expect) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "", "/xyz", "/xyz/foo"),
            ("/", "", "/xyz", "/xyz/"),
        ] {
            let change = PathChange::Prefix(with.to_owned());
            assert_eq!(changed_path(&change, path, taken.len()), expect, "{path} without {taken}, with {with}");
        }
    }

    #[test]
    fn targets_are_rewritten_in_every_form() {
        let rewrite =
            |host: Option<&str>, path| Filter::Rewrite(route::Rewrite { host: host.map(str::to_owned), path });
        for (uri, filter, expect_uri, expect_host) in [
            ("/a/b?x=1", rewrite(None, full("/new")), "/new?x=1", "web"),
            ("/a/b?x=1", rewrite(None, prefix("/new")), "/new/b?x=1", "web"),
            ("/a/b", rewrite(Some("api.example"), None), "/a/b", "api.example"),
            ("http://web/a/b?q", rewrite(Some("api.example"), prefix("/")), "http://api.example/b?q", "api.example"),
        ] {
            let mut request = Request::get(uri).header("host", "web").body(()).unwrap();
            compile(&[filter]).unwrap().request(&mut request, "/a".len());
            assert_eq!(request.uri(), expect_uri);
            assert_eq!(request.headers()["host"], expect_host, "{uri}");
        }
    }

    #[test]
    fn fields_are_set_added_and_removed() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let change = HeaderChange {
            set: vec![pair("X-Set", "new "), pair("Host", "other")],
            add: vec![pair("x-add", "2"), pair("x-new", "1")],
            remove: vec!["X-Gone".to_owned()],
        };
        let filters = compile(&[Filter::RequestHeaders(change.clone())]).unwrap();
        let request = Request::get("/").header("host", "web").header("x-set", "a").header("x-set", "b");
        let mut request = request.header("x-add", "1").header("x-gone", "1").body(()).unwrap();
        filters.request(&mut request, 0);
        let all = |name: &str| request.headers().get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((all("x-set"), all("x-add"), all("x-new")), (vec!["new"], vec!["1", "2"], vec!["1"]));
        assert_eq!((all("x-gone"), all("host")), (vec![], vec!["other"]));
        let mut headers = HeaderMap::new();
        compile(&[Filter::ResponseHeaders(HeaderChange { set: vec![pair("a", "b")], ..HeaderChange::default() })])
            .unwrap()
            .response(&mut headers);
        assert_eq!(headers["a"], "b");
    }

    #[test]
    fn locations_leave_out_what_goes_without_saying() {
        let redirect = |scheme: Option<&str>, host: Option<&str>, port, path| route::Redirect {
            scheme: scheme.map(str::to_owned),
            host: host.map(str::to_owned),
            port,
            path,
            status: 302,
        };
        for (filter, called, expect) in [
            (redirect(None, Some("example.org"), None, None), 80, "http://example.org/a/b?x=1"),
            (redirect(None, None, None, None), 8080, "http://web:8080/a/b?x=1"),
            (redirect(Some("https"), None, None, None), 8080, "https://web/a/b?x=1"),
            (redirect(Some("https"), None, Some(443), None), 8080, "https://web/a/b?x=1"),
            (redirect(Some("https"), None, Some(8443), None), 80, "https://web:8443/a/b?x=1"),
            (redirect(Some("http"), None, None, None), 8080, "http://web/a/b?x=1"),
            (redirect(None, None, Some(80), None), 8080, "http://web/a/b?x=1"),
            (redirect(None, None, Some(443), None), 80, "http://web:443/a/b?x=1"),
            (redirect(None, None, None, full("/new")), 80, "http://web/new?x=1"),
            (redirect(None, None, None, prefix("/new")), 80, "http://web/new/b?x=1"),
        ] {
            let compiled = Redirect::compile(&filter).unwrap();
            let location = compiled.location(&"/a/b?x=1".parse().unwrap(), "web", called, "/a".len());
            assert_eq!(location.unwrap(), expect, "{filter:?}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let pair = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let set = |name: &str, value: &str| {
            Filter::RequestHeaders(HeaderChange { set: pair(name, value), ..HeaderChange::default() })
        };
        let redirect =
            |status| Filter::Redirect(route::Redirect { scheme: None, host: None, port: None, path: None, status });
        let add = HeaderChange { add: pair("host", "x"), ..HeaderChange::default() };
        let rewrite = |path| Filter::Rewrite(route::Rewrite { host: None, path });
        let mirror = |numerator, denominator| {
            let service = mesh_api::ServiceRef { namespace: "a".into(), name: "b".into(), port: 80 };
            Filter::Mirror(route::Mirror { service, numerator, denominator })
        };
        for (filter, part) in [
            (set("Transfer-Encoding", "chunked"), "cannot be changed"),
            (set("a b", "x"), "no name"),
            (set("a", "x\ny"), "no value"),
            (Filter::RequestHeaders(add), "can be set"),
            (redirect(304), "304 is no status"),
            (rewrite(full("new")), "begin with a slash"),
            (rewrite(full("")), "begin with a slash"),
            (rewrite(full("/a?b")), "must not have a query"),
            (rewrite(prefix("/a#b")), "is no path"),
            (Filter::Rewrite(route::Rewrite { host: Some("a b".to_owned()), path: None }), "`a b` is no host"),
            (mirror(1, 0), "no share"),
            (mirror(3, 2), "no share"),
        ] {
            let error = compile(&[rewrite(full("/ok")), filter]).unwrap_err();
            assert!(error.contains("filters[1]") && error.contains(part), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_rewrite_leaves_a_usable_target(
            path in "/[a-z/%.~-]{0,12}", with in "(/[a-z/.~-]{0,8})?", taken in 0..16_usize, query in proptest::option::of("[a-z=&]{0,5}"),
        ) {
            let uri = match &query {
                Some(query) => format!("{path}?{query}"),
                None => path.clone(),
            };
            let mut request = Request::get(uri).body(()).unwrap();
            if let Ok(filters) = compile(&[Filter::Rewrite(route::Rewrite { host: None, path: prefix(&with) })]) {
                filters.request(&mut request, taken);
            }
            prop_assert!(request.uri().path().starts_with('/'));
            prop_assert_eq!(request.uri().query(), query.as_deref());
        }
    }
}
