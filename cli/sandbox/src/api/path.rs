//! What a request asks for, read from its method, path and query: the attributes that authorization, admission
//! and dispatch share.

use http::Method;

/// A request's query, decoded.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes what follows the `?`.
    pub fn parse(query: Option<&str>) -> Self {
        Self(form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect())
    }
    /// The first value of a parameter, if given and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
    /// All values of a parameter.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
    /// True for `?name`, `?name=true` and `?name=1`.
    pub fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|(key, value)| key == name && !matches!(value.as_str(), "0" | "false" | "False" | "FALSE"))
    }
    /// A number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }
}

/// The attributes of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; lower-case method otherwise.
    pub verb: String,
    /// The path as sent.
    pub path: String,
    /// False for paths outside `/api/v1/…` and `/apis/GROUP/VERSION/…`; the fields below are then empty.
    pub is_resource: bool,
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace, if the path names one.
    pub namespace: Option<String>,
    /// Plural of the resource.
    pub resource: String,
    /// Subresource, or empty.
    pub subresource: String,
    /// Name of the object, if the path names one.
    pub name: Option<String>,
    /// What follows the subresource (`proxy/this/part`), without a leading slash.
    pub rest: String,
}

impl RequestInfo {
    /// Reads method, path and query.
    pub fn new(method: &Method, path: &str, query: &Query) -> Self {
        let mut info = Self { verb: method.as_str().to_lowercase(), path: path.to_owned(), ..Self::default() };
        let segments: Vec<String> = path.split('/').filter(|s| !s.is_empty()).map(decode).collect();
        let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
        let rest = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                info.version = (*version).to_owned();
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                info.group = (*group).to_owned();
                info.version = (*version).to_owned();
                rest
            }
            _ => return info,
        };
        info.is_resource = true;
        // An old way to write `?watch=true`, still the only one to name a stream that is no list of objects.
        if let ["watch", rest @ ..] = rest
            && *method == Method::GET
            && !rest.is_empty()
        {
            info.read_resource(rest);
            info.verb = "watch".to_owned();
            return info;
        }
        info.read_resource(rest);
        info.verb = info.resource_verb(method, query);
        if matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
            info.name = selected_name(query);
        }
        info
    }

    fn read_resource(&mut self, parts: &[&str]) {
        let parts = match parts {
            // A namespace's own subresources are not resources within it.
            ["namespaces", name, "status" | "finalize"] | ["namespaces", name] => {
                self.namespace = Some((*name).to_owned());
                parts
            }
            ["namespaces", namespace, rest @ ..] => {
                self.namespace = Some((*namespace).to_owned());
                rest
            }
            _ => parts,
        };
        let mut parts = parts.iter();
        self.resource = parts.next().map(|s| (*s).to_owned()).unwrap_or_default();
        self.name = parts.next().map(|s| (*s).to_owned());
        self.subresource = parts.next().map(|s| (*s).to_owned()).unwrap_or_default();
        self.rest = parts.copied().collect::<Vec<_>>().join("/");
    }

    fn resource_verb(&self, method: &Method, query: &Query) -> String {
        let named = self.name.is_some();
        let verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if named => "delete",
            Method::DELETE => "deletecollection",
            Method::GET | Method::HEAD if named => "get",
            Method::GET | Method::HEAD if query.flag("watch") => "watch",
            Method::GET | Method::HEAD => "list",
            _ => return method.as_str().to_lowercase(),
        };
        verb.to_owned()
    }

    /// `pods/log`, `deployments.apps`: the resource as error messages about permission name it, without the group.
    pub fn resource_path(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

/// The one name a field selector allows: permission for that object is enough.
fn selected_name(query: &Query) -> Option<String> {
    let mut conditions = query.get("fieldSelector")?.split(',');
    let name = conditions.find_map(|condition| condition.strip_prefix("metadata.name="))?;
    Some(name.trim_start_matches('=').to_owned())
}

/// Undoes percent encoding; invalid sequences stay as they are.
fn decode(segment: &str) -> String {
    if !segment.contains('%') {
        return segment.to_owned();
    }
    let bytes = segment.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |b: Option<&u8>| b.and_then(|b| (*b as char).to_digit(16));
        match (bytes[i], hex(bytes.get(i + 1)), hex(bytes.get(i + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 3;
            }
            (byte, _, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(method: Method, uri: &str) -> String {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let info = RequestInfo::new(&method, path, &Query::parse(Some(query)));
        if !info.is_resource {
            return format!("{} {}", info.verb, info.path);
        }
        format!(
            "{} {}/{} ns={} {} name={} rest={}",
            info.verb,
            info.group,
            info.version,
            info.namespace.as_deref().unwrap_or("-"),
            info.resource_path(),
            info.name.as_deref().unwrap_or("-"),
            info.rest
        )
    }

    #[test]
    fn reads_paths() {
        let cases = [
            (Method::GET, "/healthz", "get /healthz"),
            (Method::GET, "/api/v1", "get /api/v1"),
            (Method::GET, "/apis/apps/v1", "get /apis/apps/v1"),
            (Method::GET, "/api/v1/pods?watch=true", "watch /v1 ns=- pods name=- rest="),
            (Method::GET, "/apis/a/v1/watch/namespaces/n/things/x/log", "watch a/v1 ns=n things/log name=x rest="),
            (Method::GET, "/api/v1/pods?watch=false", "list /v1 ns=- pods name=- rest="),
            (Method::GET, "/api/v1/namespaces/a/pods/b/log", "get /v1 ns=a pods/log name=b rest="),
            (
                Method::DELETE,
                "/apis/apps/v1/namespaces/a/deployments",
                "deletecollection apps/v1 ns=a deployments name=- rest=",
            ),
            (Method::GET, "/api/v1/namespaces/a", "get /v1 ns=a namespaces name=a rest="),
            (Method::PUT, "/api/v1/namespaces/a/finalize", "update /v1 ns=a namespaces/finalize name=a rest="),
            (
                Method::GET,
                "/api/v1/namespaces/a/services/s:80/proxy/x/y",
                "get /v1 ns=a services/proxy name=s:80 rest=x/y",
            ),
            (Method::PATCH, "/apis/g/v1/things/a%3Ab%zz", "patch g/v1 ns=- things name=a:b%zz rest="),
        ];
        for (method, uri, expect) in cases {
            assert_eq!(read(method, uri), expect, "{uri}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(path in "[/%a-z0-9:.é]{0,60}", query in "[a-z=&%]{0,20}") {
            RequestInfo::new(&Method::GET, &path, &Query::parse(Some(&query)));
        }
    }
}
