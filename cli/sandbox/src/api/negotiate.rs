//! In which form an answer goes out: plain objects, tables for `kubectl get`, metadata alone; JSON or YAML.

use super::Body;
use super::kinds::Resource;
use super::status::ApiError;
use super::table;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT, WARNING};
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

/// The shape objects are returned in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Object,
    /// `meta.k8s.io/v1 Table`.
    Table,
    /// `meta.k8s.io/v1 PartialObjectMetadata`, one or a list.
    Metadata,
    /// `apidiscovery.k8s.io` aggregated discovery.
    Discovery,
    /// The protobuf form of `/openapi/v2`.
    OpenApi,
}

/// Media type of OpenAPI v2 documents in protobuf.
pub const OPENAPI_V2: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// What the client accepts.
#[derive(Debug, Clone)]
pub struct Accept {
    /// Shape of objects.
    pub form: Form,
    /// YAML instead of JSON.
    pub yaml: bool,
    /// Indented JSON.
    pub pretty: bool,
    /// `includeObject` of tables.
    pub include: String,
}

impl Accept {
    /// Reads the headers; the first media type that can be served wins.
    pub fn read(headers: &HeaderMap, query: &super::path::Query) -> Result<Self, ApiError> {
        let text = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
        let browser = ["curl", "Wget", "Mozilla"];
        let agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let pretty = match query.get("pretty") {
            Some(value) => value != "false" && value != "0",
            None => browser.iter().any(|name| agent.starts_with(name)),
        };
        let include = query.get("includeObject").unwrap_or("Metadata").to_owned();
        let (form, yaml) = text.split(',').find_map(media_type).ok_or_else(|| {
            ApiError::new(
                406,
                "NotAcceptable",
                "only the following media types are accepted: application/json, application/yaml",
            )
        })?;
        Ok(Self { form, yaml, pretty, include })
    }

    /// Encodes a value as the client wants it.
    pub fn encode(&self, value: &Value) -> Bytes {
        if self.yaml
            && let Ok(text) = serde_saphyr::to_string(value)
        {
            return text.into();
        }
        let encoded = if self.pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) };
        // Encoding a `Value` cannot fail: its keys are strings.
        let mut bytes = encoded.unwrap_or_default();
        bytes.push(b'\n');
        bytes.into()
    }

    /// A response holding `value`.
    pub fn respond(&self, code: u16, value: &Value) -> Response<Body> {
        let mut response = Response::new(full(self.encode(value)));
        *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
        let media = if self.yaml { "application/yaml" } else { "application/json" };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
        response
    }

    /// One object in the client's form.
    pub fn object(&self, resource: &Resource, object: &Value) -> Value {
        match self.form {
            Form::Table => {
                let mut table = table::table(resource, std::slice::from_ref(object), &self.include, now_ms());
                table["metadata"]["resourceVersion"] = object["metadata"]["resourceVersion"].clone();
                table
            }
            Form::Metadata => metadata_only(object),
            _ => object.clone(),
        }
    }

    /// A list in the client's form; `meta` is its `ListMeta`.
    pub fn list(&self, resource: &Resource, items: Vec<Value>, meta: Value) -> Value {
        match self.form {
            Form::Table => {
                let mut table = table::table(resource, &items, &self.include, now_ms());
                table["metadata"] = meta;
                table
            }
            Form::Metadata => json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta,
                "items": items.iter().map(metadata_only).collect::<Vec<_>>(),
            }),
            _ => json!({
                "kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(), "metadata": meta,
                "items": items,
            }),
        }
    }
}

impl Default for Accept {
    fn default() -> Self {
        Self { form: Form::Object, yaml: false, pretty: false, include: "Metadata".to_owned() }
    }
}

fn media_type(text: &str) -> Option<(Form, bool)> {
    let mut parts = text.split(';').map(str::trim);
    let yaml = match parts.next()? {
        "application/json" | "application/*" | "*/*" | "" => false,
        "application/yaml" | "text/yaml" => true,
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf" | OPENAPI_V2 => {
            return Some((Form::OpenApi, false));
        }
        _ => return None,
    };
    let form = match parts.find_map(|parameter| parameter.strip_prefix("as=")) {
        None => Form::Object,
        Some("Table") => Form::Table,
        Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Form::Metadata,
        Some("APIGroupDiscoveryList") if text.contains("v=v2") && !text.contains("v=v2beta1") => Form::Discovery,
        Some(_) => return None,
    };
    Some((form, yaml))
}

fn metadata_only(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default()
}

/// A body of known content.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Plain text, as health checks answer.
pub fn text(code: u16, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Adds `Warning` headers, which `kubectl` prints.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    /// Clients give up on responses with larger headers.
    const LIMIT: usize = 32;
    for warning in warnings.iter().take(LIMIT) {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\r', '\n'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_the_first_form_it_can_serve() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let cases = [
            ("*/*", Some((Form::Object, false))),
            (table, Some((Form::Table, false))),
            ("application/vnd.kubernetes.protobuf,application/json", Some((Form::Object, false))),
            ("application/vnd.kubernetes.protobuf", None),
            ("application/yaml", Some((Form::Object, true))),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                Some((Form::Discovery, false)),
            ),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json",
                Some((Form::Object, false)),
            ),
        ];
        for (accept, expect) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            let read = Accept::read(&headers, &Default::default()).ok().map(|a| (a.form, a.yaml));
            assert_eq!(read, expect, "{accept}");
        }
    }
}
