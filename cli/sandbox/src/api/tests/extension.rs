//! What others add to the API: webhooks, aggregated APIs, custom resources.

use super::{config_map, refusal, typed};
use crate::api::{Api, Body, Config, negotiate};
use base64::Engine;
use futures::TryStreamExt;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api as Objects, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

type Handler = fn(http::request::Parts, Value) -> Response<Body>;

/// A TLS server for `hook.default.svc` that answers with `handler`, its CA bundle, and an API that dials it
/// whatever it wants to reach.
async fn with_server(handler: Handler) -> (kube::Client, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["hook.default.svc".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(move |request: Request<Incoming>| async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    Ok::<_, Infallible>(handler(parts, serde_json::from_slice(&body).unwrap_or_default()))
                });
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
            });
        }
    });
    let dial = Arc::new(move |_, _| Box::pin(tokio::net::TcpStream::connect(address)) as _);
    let client = Api::new(Config { dial, ..Config::default() }).unwrap().client();
    let services: Objects<Service> = Objects::default_namespaced(client.clone());
    let service = typed(json!({"metadata": {"name": "hook"}, "spec": {"ports": [{"port": 443}]}}));
    services.create(&PostParams::default(), &service).await.unwrap();
    (client, base64::engine::general_purpose::STANDARD.encode(ca.pem()))
}

fn answer(value: &Value) -> Response<Body> {
    Response::new(negotiate::full(value.to_string()))
}

fn hook(bundle: &str, path: &str, more: Value) -> Value {
    let mut hook = json!({
        "name": "hook.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"service": {"name": "hook", "namespace": "default", "path": path}, "caBundle": bundle},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
    });
    for (key, value) in more.as_object().unwrap() {
        hook[key] = value.clone();
    }
    json!({"metadata": {"name": "test"}, "webhooks": [hook]})
}

fn review(parts: http::request::Parts, review: Value) -> Response<Body> {
    let request = &review["request"];
    let mut response = json!({"uid": request["uid"], "allowed": true, "warnings": ["seen"]});
    if parts.uri.path() == "/deny" {
        response["allowed"] = json!(request["object"]["data"]["k"] != "bad");
        response["status"] = json!({"code": 403, "message": "k is bad"});
    } else {
        let patch = json!([{"op": "add", "path": "/data/by", "value": request["userInfo"]["username"]}]);
        response["patchType"] = "JSONPatch".into();
        response["patch"] = base64::engine::general_purpose::STANDARD.encode(patch.to_string()).into();
    }
    answer(&json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}))
}

#[tokio::test]
async fn webhooks_change_and_refuse() {
    let (client, bundle) = with_server(review).await;
    let mutating: Objects<MutatingWebhookConfiguration> = Objects::all(client.clone());
    let validating: Objects<ValidatingWebhookConfiguration> = Objects::all(client.clone());
    let maps: Objects<ConfigMap> = Objects::default_namespaced(client.clone());
    let params = PostParams::default();
    mutating.create(&params, &typed(hook(&bundle, "/mutate", json!({})))).await.unwrap();
    let made = maps.create(&params, &config_map("a", "1")).await.unwrap();
    assert_eq!(made.data.unwrap()["by"], "kubernetes-admin");

    validating.create(&params, &typed(hook(&bundle, "/deny", json!({})))).await.unwrap();
    let mut bad = config_map("b", "1");
    bad.data.as_mut().unwrap().insert("k".to_owned(), "bad".to_owned());
    assert_eq!(
        refusal(maps.create(&params, &bad).await),
        (403, "admission webhook \"hook.example.com\" denied the request: k is bad".to_owned())
    );
    maps.create(&params, &config_map("b", "1")).await.unwrap();

    let selective = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}});
    validating.delete("test", &DeleteParams::default()).await.unwrap();
    validating.create(&params, &typed(hook(&bundle, "/deny", selective))).await.unwrap();
    let mut elsewhere = bad.clone();
    elsewhere.metadata.name = Some("c".to_owned());
    maps.create(&params, &elsewhere).await.unwrap();
}

#[tokio::test]
async fn webhooks_that_fail_are_believed_only_if_asked() {
    let (client, bundle) = with_server(|_, _| answer(&json!({"not": "a review"}))).await;
    let configurations: Objects<ValidatingWebhookConfiguration> = Objects::all(client.clone());
    let maps: Objects<ConfigMap> = Objects::default_namespaced(client);
    let params = PostParams::default();
    configurations.create(&params, &typed(hook(&bundle, "/x", json!({})))).await.unwrap();
    let (code, message) = refusal(maps.create(&params, &config_map("a", "1")).await);
    assert_eq!(code, 500);
    let expect = "failed calling webhook \"hook.example.com\": failed to call webhook: Post \"https://hook.default.svc:443/x?timeout=10s\": ";
    assert!(message.contains(expect), "{message}");

    configurations.delete("test", &DeleteParams::default()).await.unwrap();
    configurations.create(&params, &typed(hook(&bundle, "/x", json!({"failurePolicy": "Ignore"})))).await.unwrap();
    maps.create(&params, &config_map("a", "1")).await.unwrap();

    configurations.delete("test", &DeleteParams::default()).await.unwrap();
    configurations.create(&params, &typed(hook("", "/x", json!({})))).await.unwrap();
    let (_, message) = refusal(maps.create(&params, &config_map("b", "1")).await);
    assert!(message.contains("certificate signed by unknown authority"), "{message}");

    let conditions = json!({"matchConditions": [{"name": "a", "expression": "true"}]});
    let (code, message) = refusal(configurations.create(&params, &typed(hook(&bundle, "/x", conditions))).await);
    assert_eq!(code, 422);
    assert!(message.contains("does not evaluate CEL"), "{message}");
}

fn observe(parts: http::request::Parts, _: Value) -> Response<Body> {
    let header =
        |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    match parts.uri.path() {
        "/apis/observe.example.com/v1" => answer(&json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "observe.example.com/v1",
            "resources": [{"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get"]}],
        })),
        _ => answer(&json!({"path": parts.uri.to_string(), "user": header("x-remote-user"), "host": header("host")})),
    }
}

#[tokio::test]
async fn aggregated_apis_hear_who_asks() {
    let (client, bundle) = with_server(observe).await;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apiregistration.k8s.io", "v1", "APIService"));
    let services: Objects<DynamicObject> = Objects::all_with(client.clone(), &resource);
    let service = typed(json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.observe.example.com"},
        "spec": {
            "group": "observe.example.com", "version": "v1", "caBundle": bundle, "groupPriorityMinimum": 1000,
            "versionPriority": 15, "service": {"name": "hook", "namespace": "default"},
        },
    }));
    services.create(&PostParams::default(), &service).await.unwrap();
    let get = |path: &str| client.request::<Value>(Request::get(path).body(Vec::new()).unwrap());
    let seen = get("/apis/observe.example.com/v1/namespaces/a/things/b/golden?window=1").await.unwrap();
    assert_eq!(seen["path"], "/apis/observe.example.com/v1/namespaces/a/things/b/golden?window=1");
    assert_eq!((&seen["user"], &seen["host"]), (&json!("kubernetes-admin"), &json!("hook.default.svc")));

    let available = || async {
        let object = services.get("v1.observe.example.com").await.unwrap();
        object.data["status"]["conditions"][0]["status"] == "True"
    };
    tokio::time::timeout(Duration::from_secs(5), async {
        while !available().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let groups = get("/apis").await.unwrap();
    assert!(groups["groups"].as_array().unwrap().iter().any(|group| group["name"] == "observe.example.com"));
    let map: Objects<ConfigMap> = Objects::namespaced(client.clone(), "kube-system");
    let map = map.get("extension-apiserver-authentication").await.unwrap().data.unwrap();
    assert!(map["requestheader-client-ca-file"].contains("BEGIN CERTIFICATE"));
}

#[tokio::test]
async fn services_can_be_reached_through_the_api() {
    let (client, _) = with_server(observe).await;
    let get = |path: &str| client.request::<Value>(Request::get(path).body(Vec::new()).unwrap());
    for name in ["https:hook:443", "https:hook:"] {
        let seen = get(&format!("/api/v1/namespaces/default/services/{name}/proxy/a%20b?x=1")).await.unwrap();
        assert_eq!((&seen["path"], &seen["user"]), (&json!("/a%20b?x=1"), &json!("")));
    }
    let (code, message) = refusal(get("/api/v1/namespaces/default/services/gone/proxy/").await);
    assert_eq!((code, message.as_str()), (404, "services \"gone\" not found"));
}

fn definition() -> CustomResourceDefinition {
    let versions = ["v1", "v1beta1"].map(|version| {
        json!({
            "name": version, "served": true, "storage": version == "v1", "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": {"size": {"type": "integer"}}},
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            }}},
        })
    });
    typed(json!({
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": versions,
        },
    }))
}

#[tokio::test]
async fn custom_resources_are_served_at_once() {
    let client = Api::new(Config::default()).unwrap().client();
    let definitions: Objects<CustomResourceDefinition> = Objects::all(client.clone());
    let made = definitions.create(&PostParams::default(), &definition()).await.unwrap();
    let conditions = made.status.unwrap().conditions.unwrap();
    assert!(conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True"));

    let of = |version| ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", version, "Thing"));
    let things: Objects<DynamicObject> = Objects::default_namespaced_with(client.clone(), &of("v1"));
    let thing = typed(json!({
        "apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t", "finalizers": ["example.com/hold"]},
        "spec": {"size": 3, "other": 1}, "status": {"x": 1},
    }));
    let made = things.create(&PostParams::default(), &thing).await.unwrap();
    assert_eq!(made.data, json!({"spec": {"size": 3}}), "pruned, and without the status a create may not set");
    let mut wanted = made.clone();
    wanted.data["status"] = json!({"phase": "Ready"});
    wanted.data["spec"]["size"] = json!(9);
    let updated = things.replace_status("t", &PostParams::default(), &wanted).await.unwrap();
    assert_eq!(updated.data, json!({"spec": {"size": 3}, "status": {"phase": "Ready"}}));

    let older: Objects<DynamicObject> = Objects::default_namespaced_with(client.clone(), &of("v1beta1"));
    assert_eq!(older.get("t").await.unwrap().types.unwrap().api_version, "example.com/v1beta1");

    definitions.delete("things.example.com", &DeleteParams::default()).await.unwrap();
    let waiting = definitions.get("things.example.com").await.unwrap();
    assert!(waiting.metadata.deletion_timestamp.is_some(), "it waits for its objects");
    let mut released = things.get("t").await.unwrap();
    released.metadata.finalizers = None;
    things.replace("t", &PostParams::default(), &released).await.unwrap();
    assert_eq!(refusal(definitions.get("things.example.com").await).0, 404);
    assert_eq!(refusal(things.list(&ListParams::default()).await).0, 404);
}

#[tokio::test]
async fn watches_of_custom_resources_end_with_them() {
    let client = Api::new(Config::default()).unwrap().client();
    let definitions: Objects<CustomResourceDefinition> = Objects::all(client.clone());
    definitions.create(&PostParams::default(), &definition()).await.unwrap();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Thing"));
    let things: Objects<DynamicObject> = Objects::default_namespaced_with(client.clone(), &resource);
    let mut events = Box::pin(things.watch(&kube::api::WatchParams::default(), "0").await.unwrap());
    definitions.delete("things.example.com", &DeleteParams::default()).await.unwrap();
    let end =
        tokio::time::timeout(Duration::from_secs(5), async { while let Ok(Some(_)) = events.try_next().await {} });
    end.await.unwrap();
}

#[tokio::test]
async fn schemas_are_kept_word_for_word() {
    let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {
        "type": "object",
        "x-kubernetes-validations": [{"rule": "self.a > 0", "message": "too small"}],
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
        "properties": {
            "a": {"type": "integer", "format": "int32", "minimum": 1.0, "default": 3},
            "b": {"type": "string", "enum": ["x", "y"], "default": "x", "pattern": "^[a-z]+$"},
            "any": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "map": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 9}},
            "open": {"type": "object", "additionalProperties": true},
            "list": {
                "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "nested": {"type": "array", "items": {"type": "object", "properties": {"deep": {"type": "boolean"}}}},
                }},
            },
        },
    }}});
    let client = Api::new(Config::default()).unwrap().client();
    let resource =
        ApiResource::from_gvk(&GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition"));
    let definitions: Objects<DynamicObject> = Objects::all_with(client, &resource);
    let mut definition = serde_json::to_value(definition()).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema.clone();
    let made = definitions
        .create(&PostParams { field_manager: Some("t".to_owned()), ..PostParams::default() }, &typed(definition))
        .await
        .unwrap();
    assert_eq!(made.data["spec"]["versions"][0]["schema"]["openAPIV3Schema"], schema);
}
