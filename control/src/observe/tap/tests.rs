//! How taps are asked for, and which right each part of them needs.

use super::*;
use crate::observe::tests::{ask, observe};
use crate::world::view::{Name, PodView};
use k8s_openapi::api::core::v1::Pod;
use mesh_api::tap::{TapMessage, TapStatus};
use proptest::prelude::*;

const TAP: &str = "/apis/observe.meshctl.dev/v1alpha1/namespaces/shop/workloads/deployment.web/tap";

fn observe_shop() -> Observe {
    let observe = observe();
    let pod: Pod = serde_json::from_value(crate::world::tests::pod("web-1", "web", "10.244.0.5", true)).unwrap();
    observe.subscriptions.apply(Name::new("shop", "web-1"), PodView::from(&pod));
    observe
}

#[tokio::test]
async fn each_part_has_its_own_right() {
    let observe = observe_shop();
    let check = async |user: &str, query: &str, expect: Option<&str>| {
        let (status, body) = ask(&observe, &format!("{TAP}?for=0.1&{query}"), user, true).await;
        match expect {
            None => assert_eq!(status, 200, "{user} {query}: {body}"),
            Some(right) => {
                assert_eq!(status, 403, "{user} {query}: {body}");
                assert!(body.contains(&format!("resource \\\"workloads/{right}\\\"")), "{body}");
                assert!(body.contains(&format!("User \\\"{user}\\\" cannot get")), "{body}");
            }
        }
    };
    check("bob", "", Some("tap")).await;
    check("alice", "headers=true", None).await;
    check("alice", "bodies=true", Some("tapbodies")).await;
    check("alice", "secrets=true", Some("tapsecrets")).await;
    // To compare with a secret is to guess it; that there is one, may be seen.
    check("alice", "filter=header%3dAuthorization%3dBearer*", Some("tapsecrets")).await;
    check("alice", "filter=header%3dauthorization", None).await;
    check("carol", "bodies=true&secrets=true", None).await;
    let watched = TAP.replace("/namespaces", "/watch/namespaces");
    assert_eq!(ask(&observe, &format!("{watched}?for=0.1"), "dave", true).await.0, 200);
    let (status, body) = ask(&observe, &format!("{watched}?bodies=true"), "dave", true).await;
    assert!(status == 403 && body.contains("User \\\"dave\\\" cannot watch resource"), "{body}");
}

#[tokio::test]
async fn a_tap_says_first_and_last_how_it_is_doing() {
    let observe = observe_shop();
    let (status, body) = ask(&observe, &format!("{TAP}?for=0.2"), "alice", true).await;
    let lines: Vec<TapMessage> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(status, 200);
    let expect = |last| TapMessage::Status(TapStatus { pods: 1, meshed_pods: 1, last, ..TapStatus::default() });
    assert_eq!((lines.first(), lines.last()), (Some(&expect(false)), Some(&expect(true))));
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let observe = observe_shop();
    let check = async |uri: &str, status: u16, expect: &str| {
        let (answered, body) = ask(&observe, uri, "alice", true).await;
        assert_eq!(answered, status, "{uri}: {body}");
        assert!(body.contains(expect), "{body}");
    };
    check(&format!("{TAP}?filter=status%3D6oo"), 400, "at character 8: expected a status").await;
    check(&format!("{TAP}?filter=%zz"), 400, "percent-encoded").await;
    check(&format!("{TAP}?max_rps=0"), 400, "from 1 to 10000").await;
    check(&format!("{TAP}?sample=1.5"), 400, "at most 1").await;
    check(&format!("{TAP}?for=-1"), 400, "seconds above 0").await;
    check(&format!("{TAP}?bodies=yes"), 400, "true or false").await;
    check(&format!("{TAP}?only=web"), 400, "NAMESPACE/KIND/NAME").await;
    check(&TAP.replace("deployment.web", "teapot.web"), 400, "one of deployment").await;
    check(&TAP.replace("deployment.web", "deployment.webb"), 404, "did you mean web?").await;
    check(&TAP.replace("deployment.web", "web"), 404, "taps are at").await;
}

#[test]
fn questions_are_read() {
    let query =
        "filter=status%3D5xx+path=/a&kind=pod&only=shop/pod/a,shop/pod/b&max_rps=7&sample=0.5&headers=true&for=2&x=y";
    let path = "/apis/observe.meshctl.dev/v1alpha1/workloads/all/tap";
    let Question { name, wish, .. } = parse(path, query).unwrap();
    assert_eq!((name.as_str(), wish.target.kind.as_deref(), &wish.target.namespace), ("all", Some("pod"), &None));
    assert_eq!(wish.filter.to_string(), "path=/a status=5xx");
    assert_eq!(wish.target.only.unwrap().len(), 2);
    assert_eq!((wish.max_rps, wish.sample, wish.headers, wish.bodies), (7, 0.5, true, false));
    assert_eq!(wish.duration, Some(Duration::from_secs(2)));
}

proptest! {
    #[test]
    fn nonsense_never_panics(path in "(/[a-z.0-9]{0,12}){0,8}/tap", query in "((filter|for|only|sample)=)?\\PC{0,30}") {
        let _ = parse(&path, &query);
        let _ = parse(TAP, &query);
    }

    #[test]
    fn encoding_is_undone(text in "\\PC{0,20}") {
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        prop_assert_eq!(decode(&encoded), Some(text));
    }
}
