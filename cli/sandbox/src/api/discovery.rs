//! What the API serves, told to clients: groups, versions, resources; health and version.

use super::kinds::{Registry, Resource};
use super::negotiate::{self, Accept, Form};
use super::status::ApiError;
use super::{Api, Body, aggregation, openapi, tokens};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// Content type of the newer, one-request form of discovery; clients look for it to know which form they got.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Serves paths that are no resource's.
pub(super) fn serve(api: &Api, path: &str, accept: &Accept) -> Result<Response<Body>, ApiError> {
    let registry = api.registry();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let found = |value: Option<Value>| value.map(|value| accept.respond(200, &value)).ok_or_else(not_found);
    match parts.as_slice() {
        [] => Ok(accept.respond(200, &root(&registry))),
        ["api"] if accept.form == Form::Discovery => Ok(aggregated(accept, vec![group(&registry, "", &["v1".to_owned()])])),
        ["apis"] if accept.form == Form::Discovery => Ok(aggregated(accept, all_groups(api, &registry))),
        ["api"] => Ok(accept.respond(200, &json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": api.config().endpoint.to_string()}],
        }))),
        ["apis"] => Ok(accept.respond(200, &group_list(api, &registry))),
        ["api", version] => found(resource_list(&registry, "", version)),
        ["apis", name] => found(groups(api, &registry).into_iter().find(|group| group["name"] == *name).map(|mut group| {
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            group
        })),
        ["apis", group, version] => found(resource_list(&registry, group, version)),
        ["version"] => Ok(accept.respond(200, &version())),
        ["healthz" | "livez" | "readyz", ..] => Ok(negotiate::text(200, "ok")),
        ["openapi", "v2"] => Ok(openapi_v2(accept)),
        ["openapi", "v3"] => Ok(accept.respond(200, &openapi::index(&plain(&registry)))),
        ["openapi", "v3", "api", version] => found(openapi::document(&plain(&registry), "", version)),
        ["openapi", "v3", "apis", group, version] => found(openapi::document(&plain(&registry), group, version)),
        ["openid", "v1", "jwks"] => Ok(accept.respond(200, &api.signer().key_set())),
        [".well-known", "openid-configuration"] => Ok(accept.respond(200, &tokens::discovery())),
        _ => Err(not_found()),
    }
}

/// The old form of the schemas, empty: `kubectl` turns to it for kinds it cannot find in the new one, and then says
/// by itself that there is no such kind.
fn openapi_v2(accept: &Accept) -> Response<Body> {
    if accept.form != Form::OpenApi {
        return accept.respond(200, &json!({"swagger": "2.0", "info": {"title": "Kubernetes"}, "paths": {}}));
    }
    // Field 1, `swagger`, of the document message.
    let mut response = Response::new(negotiate::full(&b"\x0a\x032.0"[..]));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(negotiate::OPENAPI_V2));
    response
}

/// 404 for a path nothing is served at.
pub(super) fn not_found() -> ApiError {
    ApiError::new(404, "NotFound", "the server could not find the requested resource")
}

fn plain(registry: &Registry) -> Vec<Resource> {
    registry.all().iter().map(|resource| Resource::clone(resource)).collect()
}

fn root(registry: &Registry) -> Value {
    let mut paths: Vec<String> =
        ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis"].map(str::to_owned).into();
    for (group, versions) in registry.groups() {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    paths.extend(["/healthz", "/livez", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"].map(str::to_owned));
    json!({"paths": paths})
}

/// What `kubectl version` shows: the release whose behaviour is imitated.
fn version() -> Value {
    json!({
        "major": "1", "minor": "34", "gitVersion": "v1.34.0+meshctl", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

/// `APIGroup`s, own ones and those of aggregated APIs.
fn groups(api: &Api, registry: &Registry) -> Vec<Value> {
    let mut groups = registry.groups();
    for remote in aggregation::remotes(api) {
        match groups.iter_mut().find(|(name, _)| *name == remote.group) {
            Some((_, versions)) if versions.contains(&remote.version) => {}
            Some((_, versions)) => versions.push(remote.version),
            None => groups.push((remote.group, vec![remote.version])),
        }
    }
    let entry = |group: &str, version: &str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    groups
        .into_iter()
        .map(|(name, versions)| {
            let listed: Vec<Value> = versions.iter().map(|version| entry(&name, version)).collect();
            json!({"name": name, "versions": listed, "preferredVersion": listed.first()})
        })
        .collect()
}

fn group_list(api: &Api, registry: &Registry) -> Value {
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups(api, registry)})
}

/// `APIResourceList` of one group version.
fn resource_list(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    if !registry.serves(group, version) {
        return None;
    }
    let mut listed = Vec::new();
    for resource in of(registry, group, version) {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": resource.verbs(),
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        listed.push(entry);
        for name in &resource.subresources {
            let (group, version, kind, verbs) = subresource(resource, name);
            let mut entry = json!({
                "name": format!("{}/{name}", resource.plural), "singularName": "", "namespaced": resource.namespaced,
                "kind": kind, "verbs": verbs,
            });
            if (group, version) != (resource.group.as_str(), resource.version.as_str()) {
                entry["group"] = group.into();
                entry["version"] = version.into();
            }
            listed.push(entry);
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed}))
}

fn of<'a>(registry: &'a Registry, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Arc<Resource>> {
    registry.all().iter().filter(move |resource| resource.group == group && resource.version == version)
}

/// Group, version, kind and verbs of a subresource.
fn subresource<'a>(resource: &'a Resource, name: &str) -> (&'a str, &'a str, &'a str, &'static [&'static str]) {
    const CHANGE: &[&str] = &["get", "patch", "update"];
    const CONNECT: &[&str] = &["create", "get"];
    const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
    let own = |kind: &'a str, verbs: &'static [&'static str]| {
        (resource.group.as_str(), resource.version.as_str(), kind, verbs)
    };
    match name {
        "scale" => ("autoscaling", "v1", "Scale", CHANGE),
        "eviction" => ("policy", "v1", "Eviction", &["create"]),
        "token" => ("authentication.k8s.io", "v1", "TokenRequest", &["create"]),
        "binding" => own("Binding", &["create"]),
        "log" => own(&resource.kind, &["get"]),
        "exec" => own("PodExecOptions", CONNECT),
        "attach" => own("PodAttachOptions", CONNECT),
        "portforward" => own("PodPortForwardOptions", CONNECT),
        "proxy" if resource.plural == "services" => own("ServiceProxyOptions", PROXY),
        "proxy" if resource.plural == "nodes" => own("NodeProxyOptions", PROXY),
        "proxy" => own("PodProxyOptions", PROXY),
        "finalize" => own(&resource.kind, &["update"]),
        _ => own(&resource.kind, CHANGE),
    }
}

fn aggregated(accept: &Accept, items: Vec<Value>) -> Response<Body> {
    let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
    let mut response = accept.respond(200, &list);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
    response
}

fn all_groups(api: &Api, registry: &Registry) -> Vec<Value> {
    let mut items: Vec<Value> =
        registry.groups().iter().map(|(name, versions)| group(registry, name, versions)).collect();
    for remote in aggregation::remotes(api) {
        let version = remote_version(&remote);
        match items.iter_mut().find(|item| item["metadata"]["name"] == remote.group.as_str()) {
            Some(item) => {
                item["versions"].as_array_mut().into_iter().for_each(|versions| versions.push(version.clone()))
            }
            None => items.push(json!({
                "metadata": {"name": remote.group, "creationTimestamp": null}, "versions": [version],
            })),
        }
    }
    items
}

/// `APIGroupDiscovery` of a group of our own.
fn group(registry: &Registry, name: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| {
            let resources: Vec<Value> = of(registry, name, version).map(|resource| discovered(resource)).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    json!({"metadata": {"name": name, "creationTimestamp": null}, "versions": versions})
}

fn discovered(resource: &Resource) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": kind(&resource.group, &resource.version, &resource.kind),
        "scope": scope(resource.namespaced), "singularResource": resource.singular, "verbs": resource.verbs(),
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|name| {
            let (group, version, response, verbs) = subresource(resource, name);
            json!({"subresource": name, "responseKind": kind(group, version, response), "verbs": verbs})
        })
        .collect();
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}

fn scope(namespaced: bool) -> &'static str {
    if namespaced { "Namespaced" } else { "Cluster" }
}

/// What an aggregated API told of itself in the older form, in the newer one.
fn remote_version(remote: &aggregation::Remote) -> Value {
    let Some(listed) = remote.resources.as_ref().filter(|_| remote.available) else {
        return json!({"version": remote.version, "resources": [], "freshness": "Stale"});
    };
    let mut resources: Vec<Value> = Vec::new();
    for entry in listed["resources"].as_array().into_iter().flatten() {
        let text = |field: &str, default: &str| entry[field].as_str().unwrap_or(default).to_owned();
        let name = text("name", "");
        let kind = json!({
            "group": text("group", &remote.group), "version": text("version", &remote.version), "kind": text("kind", ""),
        });
        if let Some((parent, subresource)) = name.split_once('/') {
            let shown = json!({"subresource": subresource, "responseKind": kind, "verbs": entry["verbs"]});
            if let Some(parent) = resources.iter_mut().find(|resource| resource["resource"] == parent) {
                if !parent["subresources"].is_array() {
                    parent["subresources"] = json!([]);
                }
                parent["subresources"].as_array_mut().into_iter().for_each(|list| list.push(shown.clone()));
            }
            continue;
        }
        let mut shown = json!({
            "resource": name, "responseKind": kind, "scope": scope(entry["namespaced"] == true),
            "singularResource": text("singularName", ""), "verbs": entry["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if entry[field].is_array() {
                shown[field] = entry[field].clone();
            }
        }
        resources.push(shown);
    }
    json!({"version": remote.version, "resources": resources, "freshness": "Current"})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_resources_with_their_subresources() {
        let list = resource_list(&Registry::built_in(), "apps", "v1").unwrap();
        let names: Vec<&str> =
            list["resources"].as_array().unwrap().iter().filter_map(|entry| entry["name"].as_str()).collect();
        assert!(names.contains(&"deployments") && names.contains(&"deployments/scale"), "{names:?}");
        assert!(resource_list(&Registry::built_in(), "apps", "v9").is_none());
    }

    #[test]
    fn translates_remote_discovery() {
        let remote = aggregation::Remote {
            group: "observe.meshctl.dev".to_owned(),
            version: "v1alpha1".to_owned(),
            available: true,
            resources: Some(json!({"resources": [
                {"name": "workloads", "namespaced": true, "kind": "Workload", "verbs": ["get"]},
                {"name": "workloads/golden", "namespaced": true, "kind": "GoldenFrame", "verbs": ["get"]},
            ]})),
        };
        let version = remote_version(&remote);
        assert_eq!(version["resources"][0]["subresources"][0]["subresource"], "golden");
        assert_eq!(version["freshness"], "Current");
    }
}
