//! What is asked for, who may ask, and what is refused how.

use super::*;
use crate::ca::tests::root;
use crate::metrics::Metrics;
use crate::tls;
use k8s_openapi::api::core::v1::Pod;
use mesh_api::golden::GoldenFrame;
use mesh_manifests::config::MeshConfig;
use proptest::prelude::*;
use std::collections::BTreeMap;

const GOLDEN: &str = "/apis/observe.meshctl.dev/v1alpha1/namespaces/shop/workloads/all/golden";

/// An observe API in a cluster where alice may look at the namespace shop and tap there, carol may see bodies and
/// secrets too, and nobody else may do anything.
pub(super) fn observe() -> Observe {
    let service = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
        assert_eq!(request.uri().path(), "/apis/authorization.k8s.io/v1/subjectaccessreviews");
        let asked = request.into_body().collect_bytes().await.unwrap();
        let asked: Value = serde_json::from_slice(&asked).unwrap();
        let attributes = &asked["spec"]["resourceAttributes"];
        assert_eq!(
            (&attributes["group"], &attributes["resource"]),
            (&json!("observe.meshctl.dev"), &json!("workloads"))
        );
        // Whoever may watch may do nothing else.
        let watches = asked["spec"]["user"] == "dave";
        assert_eq!(attributes["verb"], if watches { "watch" } else { "get" });
        let rights: &[&str] = match asked["spec"]["user"].as_str().unwrap() {
            "alice" => &["golden", "tap"],
            "dave" => &["tap"],
            "carol" => &["golden", "tap", "tapbodies", "tapsecrets"],
            _ => &[],
        };
        let allowed = rights.contains(&attributes["subresource"].as_str().unwrap())
            && asked["spec"]["groups"] == json!(["dev"])
            && attributes["namespace"] == "shop";
        let answer = json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
            "metadata": {}, "spec": {}, "status": {"allowed": allowed}});
        let body = kube::client::Body::from(serde_json::to_vec(&answer).unwrap());
        Ok::<_, std::convert::Infallible>(Response::new(body))
    });
    let metrics = Arc::new(Metrics::new());
    let observers = Observers::default();
    let data = BTreeMap::from([("requestheader-client-ca-file".to_owned(), "PEM".to_owned())]);
    observers.changed(Some(&ConfigMap { data: Some(data), ..ConfigMap::default() }));
    Observe {
        reviews: Api::all(kube::Client::new(service, "default")),
        observers: Arc::new(observers),
        golden: Golden::new(metrics.clone(), "cluster.local"),
        taps: Taps::new(metrics),
        peers: crate::peers::Peers::none(),
        subscriptions: Subscriptions::new(Arc::new(MeshConfig::default())),
        stop: CancellationToken::new(),
    }
}

pub(super) async fn ask(observe: &Observe, uri: &str, user: &str, forwarded: bool) -> (u16, String) {
    let certificate = forwarded.then(|| tls::certificates(&root("front-proxy").0, "test").unwrap().remove(0));
    let peer = Peer { address: ([127, 0, 0, 1], 1).into(), certificate };
    let mut headers = HeaderMap::new();
    headers.insert("x-remote-user", user.parse().unwrap());
    headers.insert("x-remote-group", "dev".parse().unwrap());
    let response = observe.answer(&peer, &Method::GET, &uri.parse().unwrap(), &headers).await;
    let status = response.status().as_u16();
    (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

#[tokio::test]
async fn the_cluster_decides_who_may_look() {
    let observe = observe();
    let check = async |uri: &str, user: &str, forwarded: bool, status: u16, reason: &str| {
        let (answered, body) = ask(&observe, uri, user, forwarded).await;
        assert_eq!(answered, status, "{uri} {user}: {body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&body["kind"], &body["reason"], &body["code"]), (&json!("Status"), &json!(reason), &json!(status)));
        body["message"].as_str().unwrap().to_owned()
    };
    let refused = check(GOLDEN, "bob", true, 403, "Forbidden").await;
    assert!(refused.contains("User \"bob\" cannot get") && refused.contains("in the namespace \"shop\""), "{refused}");
    check("/apis/observe.meshctl.dev/v1alpha1/workloads/all/golden", "alice", true, 403, "Forbidden").await;
    check(GOLDEN, "alice", false, 401, "Unauthorized").await;
    check("/apis/observe.meshctl.dev/v1alpha1/workloads", "alice", true, 404, "NotFound").await;
    check(&format!("{GOLDEN}?window=soon"), "alice", true, 400, "BadRequest").await;
}

#[tokio::test]
async fn frames_come_as_lines_until_enough() {
    let observe = observe();
    let pod: Pod = serde_json::from_value(crate::world::tests::pod("web-1", "web", "10.244.0.5", true)).unwrap();
    observe
        .subscriptions
        .apply(crate::world::view::Name::new("shop", "web-1"), crate::world::view::PodView::from(&pod));
    let (status, body) = ask(&observe, &format!("{GOLDEN}?window=5&frames=2"), "alice", true).await;
    assert_eq!(status, 200);
    let frames: Vec<GoldenFrame> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[0].span_ms, 5000);
    assert!((900..2000).contains(&frames[1].span_ms), "{}", frames[1].span_ms);
    let web = &frames[0].workloads[0];
    assert_eq!((web.workload.name.as_str(), web.pods, web.meshed_pods, web.connected), ("web", 1, 1, 0));
}

#[tokio::test]
async fn discovery_is_for_everybody() {
    let observe = observe();
    for (path, kind) in [
        ("/apis", "APIGroupList"),
        ("/apis/observe.meshctl.dev", "APIGroup"),
        ("/apis/observe.meshctl.dev/v1alpha1", "APIResourceList"),
    ] {
        let (status, body) = ask(&observe, path, "nobody", false).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &body["kind"]), (200, &json!(kind)));
    }
    let list = discovery("/apis/observe.meshctl.dev/v1alpha1").unwrap();
    let list: k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList = serde_json::from_value(list).unwrap();
    assert!(list.resources.iter().any(|resource| resource.name == "workloads/golden" && resource.namespaced));
}

#[test]
fn questions_are_read() {
    let question = parse(GOLDEN, "window=60&frames=3&pods=true&timeout=5s").unwrap();
    let shop = Some("shop".to_owned());
    let expect =
        Question { namespace: shop, name: "all".into(), workload: None, window_s: 60, frames: Some(3), pods: true };
    assert_eq!(question, expect);
    let one = parse("/apis/observe.meshctl.dev/v1alpha1/workloads/Deployment.web.v2/golden", "").unwrap();
    assert_eq!(one.workload, Some(("deployment".into(), "web.v2".into())));
    assert_eq!((one.window_s, one.frames, one.pods), (10, None, false));
    for query in ["window=0", "window=601", "frames=0", "frames=-1", "pods=perhaps"] {
        assert_eq!(parse(GOLDEN, query).unwrap_err().code, StatusCode::BAD_REQUEST, "{query}");
    }
    assert!(parse("/apis/observe.meshctl.dev/v1alpha1/workloads/web/golden", "").is_err());
}

proptest! {
    #[test]
    fn paths_never_panic(path in "(/[a-z.0-9]{0,12}){0,8}", query in "\\PC{0,40}") {
        let _ = parse(&path, &query);
        let _ = discovery(&path);
    }
}
