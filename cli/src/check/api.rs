//! What the cluster itself must offer.

use super::{Finding, Subject};
use crate::error::{Context, Error};
use futures::future::try_join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::Api;
use kube::api::PostParams;
use mesh_api::names::OBSERVE_GROUP;
use mesh_manifests::config::kubernetes_minor;
use mesh_manifests::install::LEAST_KUBERNETES_MINOR as LEAST_MINOR;
use mesh_manifests::rbac::{TAPPER_ROLE, VIEWER_ROLE};
use std::sync::Arc;

/// Is Kubernetes recent enough?
pub(super) async fn version(subject: Arc<Subject>) -> Result<Finding, Error> {
    Ok(judge_version(&subject.cluster.version))
}

fn judge_version(info: &Info) -> Finding {
    match kubernetes_minor(&info.major, &info.minor) {
        Some(minor) if minor < LEAST_MINOR => Finding::failed(
            format!("{} is too old", info.git_version),
            format!("upgrade the cluster to 1.{LEAST_MINOR} or later: older ones do not check the rules of policies"),
        ),
        Some(_) => Finding::ok(info.git_version.clone()),
        None => Finding::warning(
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

/// What install creates, as access control sees it: group, resource, and whether it lives in the control plane's namespace.
const CREATES: &[(&str, &str, bool)] = &[
    ("apiextensions.k8s.io", "customresourcedefinitions", false),
    ("", "namespaces", false),
    ("", "serviceaccounts", true),
    ("", "configmaps", true),
    ("", "secrets", true),
    ("", "services", true),
    ("apps", "deployments", true),
    // In CNI mode.
    ("apps", "daemonsets", false),
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

/// Asks whether the user may do each of these things; returns the names of those that are refused.
async fn refused(subject: &Subject, things: Vec<(String, ResourceAttributes)>) -> Result<Vec<String>, Error> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(subject.cluster.client.clone());
    let ask = |(name, attributes): (String, ResourceAttributes)| {
        let reviews = reviews.clone();
        async move {
            let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            let answer =
                reviews.create(&PostParams::default(), &review).await.during(|| "ask what you are allowed to do")?;
            let allowed = answer.status.is_some_and(|status| status.allowed);
            Ok::<_, Error>((!allowed).then_some(name))
        }
    };
    Ok(try_join_all(things.into_iter().map(ask)).await?.into_iter().flatten().collect())
}

/// May the user create what install creates?
pub(super) async fn permissions(subject: Arc<Subject>) -> Result<Finding, Error> {
    let thing = |(group, resource, namespaced): (&str, &str, bool), verb: &str| {
        let attributes = ResourceAttributes {
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            verb: Some(verb.to_owned()),
            namespace: namespaced.then(|| subject.cluster.system_namespace.clone()),
            ..ResourceAttributes::default()
        };
        (format!("{verb} {resource}"), attributes)
    };
    let things = CREATES.iter().flat_map(|creates| ["create", "patch"].map(|verb| thing(*creates, verb)));
    Ok(judge_permissions(&refused(&subject, things.collect()).await?))
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
    let thing = |(subresource, verb): (&str, &str)| {
        let attributes = ResourceAttributes {
            group: Some(OBSERVE_GROUP.to_owned()),
            resource: Some("workloads".to_owned()),
            subresource: Some(subresource.to_owned()),
            verb: Some(verb.to_owned()),
            namespace: subject.namespace.clone(),
            ..ResourceAttributes::default()
        };
        (subresource.to_owned(), attributes)
    };
    Ok(judge_use(&refused(&subject, USES.map(thing).to_vec()).await?, subject.namespace.as_deref()))
}

fn judge_use(refused: &[String], namespace: Option<&str>) -> Finding {
    let Some(last) = refused.last() else { return Finding::ok("golden metrics and tap") };
    let place = namespace.map_or("in all namespaces".to_owned(), |namespace| format!("in namespace {namespace}"));
    let role = if last == "tap" { TAPPER_ROLE } else { VIEWER_ROLE };
    let namespace = namespace.unwrap_or("NAMESPACE");
    Finding::failed(
        format!("you may not use {} {place}", refused.join(" and ")),
        format!("kubectl -n {namespace} create rolebinding NAME --clusterrole={role} --user=YOU grants it there"),
    )
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
        check("1", "25+", Status::Ok);
        check("1", "24", Status::Failed);
        check("2", "0", Status::Warning);
        check("", "", Status::Warning);
    }

    #[test]
    fn everything_that_install_creates_is_asked_for() {
        use mesh_manifests::values::{CniValues, Values};
        let cni = CniValues { enabled: true, ..CniValues::default() };
        let values = Values { ha: true, cni, ..Values::default() };
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
        assert_eq!(judge_use(&[], None).status, Status::Ok);
        let finding = judge_use(&["golden".to_owned(), "tap".to_owned()], None);
        assert_eq!(finding.status, Status::Failed);
        assert_eq!(finding.seen, "you may not use golden and tap in all namespaces");
        assert!(finding.fix.unwrap().contains("--clusterrole=mesh-tapper "));
        let finding = judge_use(&["golden".to_owned()], Some("shop"));
        assert_eq!(finding.seen, "you may not use golden in namespace shop");
        assert!(finding.fix.unwrap().starts_with("kubectl -n shop create rolebinding NAME --clusterrole=mesh-viewer "));
    }
}
