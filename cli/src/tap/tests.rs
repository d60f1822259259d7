//! How taps are asked for, how their stream is read, and what a refusal says.

use super::*;
use mesh_api::tap::TapStatus;
use proptest::prelude::*;

fn target(of: &str, namespace: Option<&str>) -> TapTarget {
    TapTarget { namespace: namespace.map(str::to_owned), of: Resource::read_one(of).unwrap(), only: None }
}

fn cluster(status: u16, body: String) -> Cluster {
    let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
        let body = kube::client::Body::from(body.clone().into_bytes());
        async move { http::Response::builder().status(status).body(body) }
    });
    Cluster::of_client(kube::Client::new(service, "default"))
}

async fn refusal(status: u16, message: &str) -> Error {
    let body = serde_json::json!({"kind": "Status", "apiVersion": "v1", "code": status, "message": message});
    let ask = TapAsk::new(target("deploy/web", Some("shop")), TapFilter::default());
    match stream(&cluster(status, body.to_string()), &ask).await {
        Ok(_) => panic!("it was let in"),
        Err(error) => error,
    }
}

#[test]
fn the_question_is_spelled_as_the_observe_api_wants_it() {
    let check = |of: &str, namespace: Option<&str>, expect: &str| {
        let path = TapAsk::new(target(of, namespace), TapFilter::default()).path();
        let path = path.strip_prefix("/apis/observe.meshctl.dev/v1alpha1/watch").unwrap().to_owned();
        assert_eq!(path.replace("filter=&max_rps=100", ""), expect, "{of}");
    };
    check("deploy/web", Some("shop"), "/namespaces/shop/workloads/deployment.web/tap?");
    check("po/web-1.x", None, "/workloads/pod.web-1.x/tap?");
    check("sts", Some("shop"), "/namespaces/shop/workloads/all/tap?&kind=statefulset");
    check("all", Some("shop"), "/namespaces/shop/workloads/all/tap?");
    check("ns/other", Some("shop"), "/namespaces/other/workloads/all/tap?");
    check("ns", Some("shop"), "/workloads/all/tap?");
    let mut ask = TapAsk::new(target("all", None), "header=a=\"b & c\" path=/x/*".parse().unwrap());
    ask.target.only = Some([WorkloadRef::new("shop", "deployment", "web")].into());
    (ask.sample, ask.bodies, ask.duration) = (0.5, true, Some(Duration::from_millis(1500)));
    let path = ask.path();
    let query = path.split_once('?').unwrap().1;
    let filter = "filter=path%3D/x/*%20header%3D%22a%3Db%20%26%20c%22";
    assert_eq!(query, format!("{filter}&max_rps=100&only=shop/deployment/web&sample=0.5&bodies=true&for=1.5"));
}

#[tokio::test]
async fn a_stream_ends_with_its_last_status_or_an_error() {
    let line = |last| serde_json::to_string(&TapMessage::Status(TapStatus { last, ..TapStatus::default() })).unwrap();
    let read = async |body: String| {
        let ask = TapAsk::new(target("deploy/web", Some("shop")), TapFilter::default());
        let messages: Vec<_> = stream(&cluster(200, body), &ask).await.unwrap().collect().await;
        messages.into_iter().map(|message| message.map_err(|error| error.to_string())).collect::<Vec<_>>()
    };
    let whole = read(format!("{}\n\n{}\n{}\n", line(false), r#"{"type":"later"}"#, line(true))).await;
    assert_eq!(whole.len(), 3);
    assert!(whole.iter().all(|message| message.is_ok()), "{whole:?}");
    let broken = read(format!("{}\n", line(false))).await;
    assert_eq!(broken[1], Err("cannot go on tapping: the control plane ended the tap".to_owned()));
    let nonsense = read("{}\n".to_owned()).await;
    assert!(nonsense[0].as_ref().unwrap_err().contains("understand the control plane"), "{nonsense:?}");
}

#[tokio::test]
async fn a_missing_right_is_named_with_the_way_to_grant_it() {
    let refused = async |user: &str, right: &str| {
        let message = format!(
            "workloads.observe.meshctl.dev \"deployment.web\" is forbidden: User \"{user}\" cannot watch resource \
             \"workloads/{right}\" in API group \"observe.meshctl.dev\" in the namespace \"shop\""
        );
        refusal(403, &message).await
    };
    let error = refused("bob", "tap").await;
    assert_eq!(
        error.to_string(),
        "cannot tap deployment/web in namespace shop: user bob may not: the right to watch workloads/tap of API group \
         observe.meshctl.dev in namespace shop is missing"
    );
    assert_eq!(
        error.hint_text(),
        Some("to grant it: kubectl create rolebinding bob-mesh-tapper -n shop --clusterrole=mesh-tapper --user=bob")
    );
    let error = refused("system:serviceaccount:ci:runner", "tapbodies").await;
    assert!(error.hint_text().unwrap().ends_with("--clusterrole=mesh-tapper-bodies --serviceaccount=ci:runner"));
    let error = refused("O'Hara, Jo", "tapsecrets").await;
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("rolebinding o-hara--jo-mesh-tapper-secrets") && hint.ends_with(r"--user='O'\''Hara, Jo'"));
    assert!(denial("no", None).hint_text().unwrap().contains("create clusterrolebinding user-mesh-tapper "));
}

#[tokio::test]
async fn other_refusals_stand_as_they_are() {
    let error = refusal(404, "there is no deployment/wbe with running pods in namespace shop; did you mean web?").await;
    assert!(error.to_string().ends_with("did you mean web?"), "{error}");
    assert_eq!(error.hint_text(), None);
    let error = refusal(404, "the server could not find the requested resource").await;
    assert!(error.hint_text().unwrap().contains("meshctl check"));
    assert!(refusal(503, "busy").await.hint_text().is_some());
}

proptest! {
    #[test]
    fn nonsense_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), message in "\\PC{0,60}") {
        let mut reader = futures::io::Cursor::new(bytes);
        let _ = futures::executor::block_on(read_line(&mut reader));
        let _ = denial(&message, None);
    }
}
