//! What the cluster itself must offer.

use super::{Finding, Subject};
use crate::error::{Context, Error};
use futures::future::try_join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::Api;
use kube::api::PostParams;
use mesh_api::names::OBSERVE_GROUP;
use mesh_manifests::install::LEAST_KUBERNETES_MINOR as LEAST_MINOR;
use mesh_manifests::rbac::{TAPPER_ROLE, VIEWER_ROLE};
use std::sync::Arc;

/// Is Kubernetes recent enough?
pub(super) async fn version(subject: Arc<Subject>) -> Result<Finding, Error> {
    Ok(judge_version(&subject.cluster.version))
}

fn judge_version(info: &Info) -> Finding {
    // Some providers write `34+`.
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    match (number(&info.major), number(&info.minor)) {
        (Some(1), Some(minor)) if minor < LEAST_MINOR => Finding::failed(
            format!("{} is too old", info.git_version),
            format!("upgrade the cluster to 1.{LEAST_MINOR} or later: the proxy runs as a sidecar container"),
        ),
        (Some(_), Some(_)) => Finding::ok(info.git_version.clone()),
        _ => Finding::warning(
            format!("cannot read the version `{}`", info.git_version),
            format!("make sure that it is 1.{LEAST_MINOR} or later"),
        ),
    }
}

/// Does the API have what the control plane registers with?
pub(super) async fn extensions(subject: Arc<Subject>) -> Result<Finding, Error> {
    const WANTED: [(&str, &str); 2] = [
        ("admissionregistration.k8s.io", "mutating webhooks inject the proxy"),
        ("apiregistration.k8s.io", "an aggregated API serves golden metrics"),
    ];
    let groups = subject.cluster.client.list_api_groups().await.during(|| "list API groups")?;
    let missing: Vec<_> =
        WANTED.iter().filter(|(name, _)| !groups.groups.iter().any(|group| group.name == *name)).collect();
    Ok(match missing.first() {
        None => Finding::ok(WANTED.map(|(name, _)| name).join(", ")),
        Some((name, why)) => Finding::failed(
            format!("the API group {name} is missing: {why}"),
            "enable it on the API server, or use a cluster that has it",
        ),
    })
}

/// A thing that install creates, as access control sees it.
pub(super) type Creates = (&'static str, &'static str, bool);

/// Group, resource, and whether it lives in the control plane's namespace.
const CREATES: &[Creates] = &[
    ("apiextensions.k8s.io", "customresourcedefinitions", false),
    ("", "namespaces", false),
    ("", "serviceaccounts", true),
    ("", "configmaps", true),
    ("", "secrets", true),
    ("", "services", true),
    ("apps", "deployments", true),
    ("networking.k8s.io", "networkpolicies", true),
    ("policy", "poddisruptionbudgets", true),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("rbac.authorization.k8s.io", "roles", true),
    ("rbac.authorization.k8s.io", "rolebindings", true),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", false),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", false),
    ("apiregistration.k8s.io", "apiservices", false),
];

/// May the user create what install creates?
pub(super) async fn permissions(subject: Arc<Subject>) -> Result<Finding, Error> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(subject.cluster.client.clone());
    let ask = |(group, resource, namespaced): Creates, verb: &'static str| {
        let (reviews, namespace) = (reviews.clone(), subject.cluster.system_namespace.clone());
        async move {
            let attributes = ResourceAttributes {
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                verb: Some(verb.to_owned()),
                namespace: namespaced.then_some(namespace),
                ..ResourceAttributes::default()
            };
            let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            let answer =
                reviews.create(&PostParams::default(), &review).await.during(|| "ask what you are allowed to do")?;
            let allowed = answer.status.is_some_and(|status| status.allowed);
            Ok::<_, Error>((!allowed).then(|| format!("{verb} {resource}")))
        }
    };
    let questions = CREATES.iter().flat_map(|creates| ["create", "patch"].map(|verb| ask(*creates, verb)));
    let refused: Vec<String> = try_join_all(questions).await?.into_iter().flatten().collect();
    Ok(judge_permissions(&refused))
}

fn judge_permissions(refused: &[String]) -> Finding {
    match refused {
        [] => Finding::ok(format!("all {} kinds", CREATES.len())),
        refused => Finding::failed(
            format!("you may not {}", refused.join(", ")),
            "install as a cluster administrator, or ask for these permissions",
        ),
    }
}

/// What somebody needs who lives in `top` and `tap`: group, subresource of workloads.
const USES: [(&str, &str); 2] = [("golden", "get"), ("tap", "watch")];

/// May the user look at golden metrics and tap?
pub(super) async fn use_permissions(subject: Arc<Subject>) -> Result<Finding, Error> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(subject.cluster.client.clone());
    let ask = |(subresource, verb): (&'static str, &'static str)| {
        let (reviews, namespace) = (reviews.clone(), subject.namespace.clone());
        async move {
            let attributes = ResourceAttributes {
                group: Some(OBSERVE_GROUP.to_owned()),
                resource: Some("workloads".to_owned()),
                subresource: Some(subresource.to_owned()),
                verb: Some(verb.to_owned()),
                namespace,
                ..ResourceAttributes::default()
            };
            let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            let answer =
                reviews.create(&PostParams::default(), &review).await.during(|| "ask what you are allowed to do")?;
            let allowed = answer.status.is_some_and(|status| status.allowed);
            Ok::<_, Error>((!allowed).then_some(subresource))
        }
    };
    let refused: Vec<&str> = try_join_all(USES.map(ask)).await?.into_iter().flatten().collect();
    Ok(judge_use(&refused))
}

fn judge_use(refused: &[&str]) -> Finding {
    let role = |refused: &&str| if *refused == "tap" { TAPPER_ROLE } else { VIEWER_ROLE };
    match refused.last() {
        None => Finding::ok("golden metrics and tap"),
        Some(last) => Finding::failed(
            format!("you may not use {}", refused.join(" and ")),
            format!(
                "kubectl create rolebinding NAME --clusterrole={} --user=YOU -n NAMESPACE grants it there",
                role(last)
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn versions_are_judged() {
        let check = |major: &str, minor: &str, expect: Status| {
            let info = Info { major: major.into(), minor: minor.into(), ..Info::default() };
            assert_eq!(judge_version(&info).status, expect, "{major}.{minor}");
        };
        check("1", "34", Status::Ok);
        check("1", "29+", Status::Ok);
        check("1", "28", Status::Failed);
        check("2", "0", Status::Ok);
        check("", "", Status::Warning);
    }

    #[test]
    fn everything_that_install_creates_is_asked_for() {
        use mesh_manifests::values::Values;
        let values = Values { ha: true, ..Values::default() };
        for object in mesh_manifests::install::render(&values).unwrap() {
            let api_version = object["apiVersion"].as_str().unwrap();
            let group = api_version.split_once('/').map_or("", |(group, _)| group);
            let resource = format!("{}s", object["kind"].as_str().unwrap().to_lowercase()).replace("ys", "ies");
            // Roles may also be bound in a namespace that is not the mesh's own.
            assert!(CREATES.iter().any(|(g, r, _)| (*g, *r) == (group, resource.as_str())), "{group} {resource}");
        }
    }

    #[test]
    fn missing_permissions_are_named() {
        let finding = judge_permissions(&["create secrets".to_owned()]);
        assert_eq!((finding.status, finding.seen.as_str()), (Status::Failed, "you may not create secrets"));
        assert_eq!(judge_permissions(&[]).status, Status::Ok);
    }

    #[test]
    fn what_somebody_may_not_use_is_told() {
        assert_eq!(judge_use(&[]).status, Status::Ok);
        let finding = judge_use(&["tap"]);
        assert_eq!((finding.status, finding.seen.as_str()), (Status::Failed, "you may not use tap"));
        assert!(finding.fix.unwrap().contains("--clusterrole=mesh-tapper "));
        assert!(judge_use(&["golden"]).fix.unwrap().contains("--clusterrole=mesh-viewer "));
    }
}
