//! Who gets in, and what they may do, over TLS and in process.

use super::{new, refusal, typed};
use crate::api::Api;
use crate::api::authn::User;
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenRequest, TokenReview};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, Role, RoleBinding};
use kube::api::{Api as Objects, DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener};

/// Serves the API on a port of its own until the test ends.
pub(super) fn listen(api: &Api) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(api.serve(listener).unwrap());
    address
}

async fn client(kubeconfig: &str) -> kube::Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

fn with_token(api: &Api, address: SocketAddr, token: &str) -> String {
    let text = api.kubeconfig(address, "sandbox");
    let start = text.find("    client-certificate-data").unwrap();
    format!("{}    token: {token}\n", &text[..start])
}

async fn whoami(client: &kube::Client) -> (String, Vec<String>) {
    let reviews: Objects<SelfSubjectReview> = Objects::all(client.clone());
    let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await.unwrap();
    let user = review.status.unwrap().user_info.unwrap();
    (user.username.unwrap(), user.groups.unwrap())
}

async fn account(client: &kube::Client, name: &str) -> ServiceAccount {
    let accounts: Objects<ServiceAccount> = Objects::default_namespaced(client.clone());
    accounts.create(&PostParams::default(), &typed(json!({"metadata": {"name": name}}))).await.unwrap()
}

async fn token(client: &kube::Client, name: &str, spec: Value) -> kube::Result<String> {
    let accounts: Objects<ServiceAccount> = Objects::default_namespaced(client.clone());
    let request: TokenRequest = typed(json!({"metadata": {}, "spec": spec}));
    Ok(accounts.create_token_request(name, &PostParams::default(), &request).await?.status.unwrap().token)
}

async fn review(client: &kube::Client, token: &str, audience: &str) -> Option<String> {
    let reviews: Objects<TokenReview> = Objects::all(client.clone());
    let review = typed(json!({"metadata": {}, "spec": {"token": token, "audiences": [audience]}}));
    let status = reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap();
    status.authenticated.unwrap_or(false).then(|| status.user.unwrap().username.unwrap())
}

#[tokio::test]
async fn certificates_and_tokens_say_who_asks() {
    let (api, admin) = new();
    let address = listen(&api);
    let by_certificate = client(&api.kubeconfig(address, "sandbox")).await;
    let (name, groups) = whoami(&by_certificate).await;
    assert_eq!((name.as_str(), groups[0].as_str()), ("kubernetes-admin", "system:masters"));

    account(&admin, "web").await;
    let own = token(&admin, "web", json!({"audiences": []})).await.unwrap();
    let by_token = client(&with_token(&api, address, &own)).await;
    let (name, groups) = whoami(&by_token).await;
    assert_eq!(name, "system:serviceaccount:default:web");
    assert_eq!(groups, ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]);

    let foreign = token(&admin, "web", json!({"audiences": ["mesh-identity"]})).await.unwrap();
    for bad in [foreign.as_str(), "x.y.z"] {
        let stranger = client(&with_token(&api, address, bad)).await;
        let (code, message) = refusal(Objects::<ConfigMap>::default_namespaced(stranger).get("a").await);
        assert_eq!((code, message.as_str()), (401, "Unauthorized"));
    }

    let text = api.kubeconfig(address, "sandbox");
    let nobody = client(&format!("{}    {{}}\n", text.split("    client-certificate-data").next().unwrap())).await;
    let (code, message) = refusal(Objects::<Pod>::default_namespaced(nobody).get("a").await);
    assert_eq!(code, 403);
    assert!(
        message.starts_with("pods \"a\" is forbidden: User \"system:anonymous\" cannot get resource \"pods\""),
        "{message}"
    );
}

#[tokio::test]
async fn tokens_die_with_what_they_are_bound_to() {
    let (_api, client) = new();
    account(&client, "default").await;
    let pods: Objects<Pod> = Objects::default_namespaced(client.clone());
    let pod = typed(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}));
    let pod = pods.create(&PostParams::default(), &pod).await.unwrap();
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": pod.metadata.uid.unwrap()});
    let spec = json!({"audiences": ["mesh-identity"], "expirationSeconds": 3600, "boundObjectRef": bound});
    let good = token(&client, "default", spec).await.unwrap();
    let user = "system:serviceaccount:default:default";
    assert_eq!(review(&client, &good, "mesh-identity").await.as_deref(), Some(user));
    assert_eq!(review(&client, &good, "other").await, None);
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    assert_eq!(review(&client, &good, "mesh-identity").await, None);

    let (code, message) = refusal(token(&client, "default", json!({"audiences": [], "expirationSeconds": 5})).await);
    assert_eq!(code, 422);
    assert!(message.contains("may not specify a duration less than 10 minutes"), "{message}");
}

#[tokio::test]
async fn roles_decide() {
    let (api, admin) = new();
    let web = api.client_as(User::service_account("default", "web"));
    let maps: Objects<ConfigMap> = Objects::default_namespaced(web.clone());
    assert_eq!(
        refusal(maps.list(&ListParams::default()).await).1,
        "configmaps is forbidden: User \"system:serviceaccount:default:web\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    let bindings: Objects<RoleBinding> = Objects::default_namespaced(admin.clone());
    let binding = typed(json!({
        "metadata": {"name": "web"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "web", "namespace": "default"}],
    }));
    bindings.create(&PostParams::default(), &binding).await.unwrap();
    maps.list(&ListParams::default()).await.unwrap();
    let elsewhere: Objects<ConfigMap> = Objects::namespaced(web.clone(), "kube-system");
    assert_eq!(refusal(elsewhere.list(&ListParams::default()).await).0, 403);
    let secret = refusal(Objects::<k8s_openapi::api::core::v1::Secret>::default_namespaced(web).get("s").await);
    assert_eq!(secret.0, 403, "view shows no secrets");

    let roles: Objects<ClusterRole> = Objects::all(admin);
    let more = typed(json!({
        "metadata": {"name": "see-things", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"apiGroups": ["example.com"], "resources": ["things"], "verbs": ["get"]}],
    }));
    roles.create(&PostParams::default(), &more).await.unwrap();
    for aggregated in ["view", "edit", "admin"] {
        let rules = roles.get(aggregated).await.unwrap().rules.unwrap();
        assert!(rules.iter().any(|rule| rule.resources.as_deref() == Some(&["things".to_owned()])), "{aggregated}");
    }
}

#[tokio::test]
async fn nobody_grants_more_than_they_have() {
    let (api, admin) = new();
    let bindings: Objects<RoleBinding> = Objects::default_namespaced(admin);
    let binding = |name: &str, role: &str| -> RoleBinding {
        typed(json!({
            "metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "anna"}],
        }))
    };
    bindings.create(&PostParams::default(), &binding("anna", "admin")).await.unwrap();
    let anna = api.client_as(User::new("anna", &[]));
    let roles: Objects<Role> = Objects::default_namespaced(anna.clone());
    let role = |name: &str, resource: &str| -> Role {
        typed(
            json!({"metadata": {"name": name}, "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]}),
        )
    };
    roles.create(&PostParams::default(), &role("ok", "pods")).await.unwrap();
    let (code, message) = refusal(roles.create(&PostParams::default(), &role("no", "nodes")).await);
    assert_eq!(code, 403);
    assert!(message.contains("is attempting to grant RBAC permissions not currently held"), "{message}");
    let own: Objects<RoleBinding> = Objects::default_namespaced(anna);
    own.create(&PostParams::default(), &binding("view", "view")).await.unwrap();
    assert_eq!(refusal(own.create(&PostParams::default(), &binding("all", "cluster-admin")).await).0, 403);
}
