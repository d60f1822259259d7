//! Parts of objects with a path of their own: status, scale, a pod's binding and eviction, its streams.

use super::remote::{self, Target, Trust};
use super::service::{Call, RequestBody};
use super::status::ApiError;
use super::store::Object;
use super::{Body, PodRequest, aggregation, decode, delete, tokens, verbs, write};
use http::header::{AUTHORIZATION, HOST};
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use serde_json::{Value, json};

/// Serves a request for a subresource.
pub(super) async fn serve(call: &Call, parts: Parts, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let (subresource, verb) = (call.info.subresource.as_str(), call.info.verb.as_str());
    // `pods/NAME/binding` and the legacy `bindings` are the only ones that need not be listed by the resource.
    if !call.resource.has(subresource) {
        return Err(ApiError::new(404, "NotFound", "the server could not find the requested resource"));
    }
    match (subresource, verb) {
        ("status" | "ephemeralcontainers" | "resize", "get") => {
            let object = verbs::find(call)?;
            Ok(call.reply(200, &verbs::present(call, &object)))
        }
        ("status" | "ephemeralcontainers" | "resize" | "finalize", "update") => {
            let object = decode::decode(call, &body.collect().await?)?;
            let (code, updated) = write::replace(call, object, Some(subresource)).await?;
            Ok(call.reply(code, &verbs::present(call, &updated)))
        }
        ("status" | "ephemeralcontainers" | "resize", "patch") => {
            let (code, patched) = write::patch(call, &body.collect().await?, Some(subresource)).await?;
            Ok(call.reply(code, &verbs::present(call, &patched)))
        }
        ("scale", "get" | "update" | "patch") => scale(call, body).await,
        ("eviction", "create") => evict(call, body).await,
        ("token", "create") => {
            let request = decode::parse(call, &body.collect().await?)?;
            Ok(call.accept.respond(201, &tokens::request(call, &request)?))
        }
        ("proxy", _) => proxy(call, parts, body).await,
        ("binding", "create") => bind(call, body).await,
        ("log", "get") | ("exec" | "attach" | "portforward", "get" | "create") => stream(call, parts, body).await,
        _ => Err(verbs::not_allowed()),
    }
}

/// Where a resource keeps what `Scale` shows.
struct ScalePaths {
    desired: Vec<String>,
    actual: Vec<String>,
    selector: Option<Vec<String>>,
}

impl ScalePaths {
    fn of(call: &Call) -> Self {
        let split = |path: &str| path.split('.').filter(|step| !step.is_empty()).map(str::to_owned).collect();
        match call.resource.custom.as_deref() {
            None => Self { desired: split("spec.replicas"), actual: split("status.replicas"), selector: None },
            Some(version) => {
                let scale = &version["subresources"]["scale"];
                let path = |field: &str| scale[field].as_str().unwrap_or_default();
                Self {
                    desired: split(path("specReplicasPath")),
                    actual: split(path("statusReplicasPath")),
                    selector: scale["labelSelectorPath"].as_str().map(split),
                }
            }
        }
    }

    fn show(&self, object: &Value) -> Value {
        let at = |path: &[String]| path.iter().fold(object, |value, step| &value[step.as_str()]).clone();
        let count = |path: &[String]| json!(at(path).as_i64().unwrap_or(0));
        let selector = match &self.selector {
            Some(path) => at(path),
            None => Value::String(selector_text(&object["spec"]["selector"])),
        };
        let meta = &object["metadata"];
        let mut status = json!({"replicas": count(&self.actual)});
        if selector.as_str().is_some_and(|text| !text.is_empty()) {
            status["selector"] = selector;
        }
        json!({
            "kind": "Scale", "apiVersion": "autoscaling/v1",
            "metadata": {
                "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"],
                "resourceVersion": meta["resourceVersion"], "creationTimestamp": meta["creationTimestamp"],
            },
            "spec": {"replicas": count(&self.desired)},
            "status": status,
        })
    }
}

/// A `LabelSelector` as text.
fn selector_text(selector: &Value) -> String {
    let mut parts: Vec<String> = selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.join(",")
}

async fn scale(call: &Call, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let paths = ScalePaths::of(call);
    if call.info.verb == "get" {
        let object = verbs::find(call)?;
        return Ok(call.accept.respond(200, &paths.show(&verbs::present(call, &object))));
    }
    let wanted = decode::parse(call, &body.collect().await?)?;
    let is_patch = call.info.verb == "patch";
    let updated = write::update(call, Some("scale"), write::Track::Update, |current| {
        let shown = paths.show(current);
        let scale = match call.content_type.as_str() {
            _ if !is_patch => wanted.clone(),
            "application/json-patch+json" => super::patch::json_patch(&shown, &wanted)?,
            _ => super::patch::merge_patch(&shown, &wanted),
        };
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let why = format!("Invalid value: {replicas}: must be greater than or equal to 0");
            let cause = ("FieldValueInvalid".to_owned(), "spec.replicas".to_owned(), why);
            return Err(ApiError::invalid("Scale.autoscaling", call.name(), vec![cause]));
        }
        let mut next = current.clone();
        let place = paths.desired.iter().fold(&mut next, |value, step| &mut value[step.as_str()]);
        *place = replicas.into();
        if let Some(version) = scale["metadata"]["resourceVersion"].as_str() {
            next["metadata"]["resourceVersion"] = version.into();
        }
        Ok(next)
    })
    .await?;
    Ok(call.accept.respond(200, &paths.show(&verbs::present(call, &updated))))
}

/// Deletes a pod unless a disruption budget forbids it.
async fn evict(call: &Call, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let eviction = decode::parse(call, &body.collect().await?)?;
    let pod = verbs::find(call)?;
    let (_, budgets) = call.api.store().list("poddisruptionbudgets.policy", Some(call.namespace()));
    for budget in budgets {
        let selector = super::selector::LabelSelector::from_object(&budget["spec"]["selector"]);
        if selector.matches(&pod) && budget["status"]["disruptionsAllowed"].as_i64() == Some(0) {
            let why = "Cannot evict pod as it would violate the pod's disruption budget.";
            let mut error = ApiError::new(429, "TooManyRequests", why);
            let name = budget["metadata"]["name"].as_str().unwrap_or_default();
            let detail = format!("The disruption budget {name} does not allow evicting pods currently");
            error.causes.push(("DisruptionBudget".to_owned(), String::new(), detail));
            return Err(error);
        }
    }
    let options = eviction.get("deleteOptions").filter(|options| options.is_object()).map(Value::to_string);
    delete::evict(call, options.unwrap_or_default().as_bytes()).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(call.accept.respond(201, &status))
}

/// Assigns a pod to a node, as schedulers do.
async fn bind(call: &Call, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let binding = decode::parse(call, &body.collect().await?)?;
    let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
    if node.is_empty() {
        let cause = ("FieldValueRequired".to_owned(), "target.name".to_owned(), "Required value".to_owned());
        return Err(ApiError::invalid("Binding", call.name(), vec![cause]));
    }
    write::update(call, Some("binding"), write::Track::Update, |pod| {
        if let Some(bound) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
            let why = format!("pod {} is already assigned to node \"{bound}\"", call.name());
            return Err(ApiError::conflict("pods/binding", call.name(), why));
        }
        let mut bound = pod.clone();
        bound["spec"]["nodeName"] = node.clone().into();
        Ok(bound)
    })
    .await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(call.accept.respond(201, &status))
}

/// Hands a pod's streams to the node.
async fn stream(call: &Call, parts: Parts, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let pod: Object = verbs::find(call)?;
    let subresource = call.info.subresource.clone();
    if pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty() {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", call.name())));
    }
    let RequestBody::Network(incoming) = body else {
        return Err(ApiError::bad_request(format!(
            "pods/{subresource} needs a connection that can be upgraded: use the API's TLS address"
        )));
    };
    let streams = call.api.pod_streams().ok_or_else(|| {
        ApiError::new(503, "ServiceUnavailable", format!("no node serves pods/{subresource} of this cluster"))
    })?;
    let request = Request::from_parts(parts, incoming);
    let (namespace, pod) = (call.namespace().to_owned(), call.name().to_owned());
    Ok(streams(PodRequest { request, namespace, pod, subresource }).await)
}

/// Passes a request on to a pod or a Service, `[scheme:]name[:port]`.
async fn proxy(call: &Call, parts: Parts, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let unreachable = |error: anyhow::Error| {
        ApiError::new(503, "ServiceUnavailable", format!("error trying to reach service: {error:#}"))
    };
    let pieces: Vec<&str> = call.name().split(':').collect();
    let (scheme, name, port) = match pieces.as_slice() {
        [name] => ("http", *name, ""),
        [name, port] => ("http", *name, *port),
        [scheme, name, port] => (if *scheme == "https" { "https" } else { "http" }, *name, *port),
        _ => return Err(ApiError::bad_request(format!("invalid request name \"{}\"", call.name()))),
    };
    let store = call.api.store();
    let object = store
        .get(&call.resource.collection(), call.namespace(), name)
        .ok_or_else(|| ApiError::not_found(&call.resource.qualified(), name))?;
    let is_service = call.resource.plural == "services";
    let host = if is_service { &object["spec"]["clusterIP"] } else { &object["status"]["podIP"] };
    let host = host.as_str().filter(|host| !host.is_empty() && *host != "None");
    let (Some(host), Some(port)) = (host, proxied_port(&object, is_service, port)) else {
        let what = if is_service { "endpoints" } else { "address" };
        return Err(ApiError::new(
            503,
            "ServiceUnavailable",
            format!("no {what} available for {} \"{name}\"", call.resource.singular),
        ));
    };
    let target = Target { host: host.to_owned(), port, server_name: host.to_owned() };
    let sender = match scheme {
        "https" => remote::connect_tls(&call.api, &target, &Trust::Anything, None).await,
        _ => remote::connect_plain(&call.api, &target).await,
    }
    .map_err(unreachable)?;
    // The path as it was sent, so that what is encoded stays so.
    let raw = parts.uri.path().split_once("/proxy").map_or("", |(_, rest)| rest);
    let raw = if raw.is_empty() { "/" } else { raw };
    let path = parts.uri.query().map_or_else(|| raw.to_owned(), |query| format!("{raw}?{query}"));
    let host = format!("{}:{}", target.host, target.port);
    aggregation::forward(sender, parts, body, &path, |headers| {
        headers.remove(AUTHORIZATION);
        if let Ok(host) = HeaderValue::from_str(&host) {
            headers.insert(HOST, host);
        }
    })
    .await
}

/// The port a proxied request goes to: by number, by name, or the first there is.
fn proxied_port(object: &Value, is_service: bool, wanted: &str) -> Option<u16> {
    if let Ok(port) = wanted.parse() {
        return Some(port);
    }
    let ports: Vec<&Value> = if is_service {
        object["spec"]["ports"].as_array().into_iter().flatten().collect()
    } else {
        let containers = object["spec"]["containers"].as_array().into_iter().flatten();
        containers.flat_map(|container| container["ports"].as_array().into_iter().flatten()).collect()
    };
    let field = if is_service { "port" } else { "containerPort" };
    let found = ports.into_iter().find(|port| wanted.is_empty() || port["name"] == wanted);
    match found {
        Some(port) => port[field].as_u64().and_then(|port| u16::try_from(port).ok()),
        None if wanted.is_empty() => Some(80),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_selectors_as_text() {
        let selector = json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["a", "b"]}, {"key": "x", "operator": "Exists"}],
        });
        assert_eq!(selector_text(&selector), "app=web,tier notin (a,b),x");
    }
}
