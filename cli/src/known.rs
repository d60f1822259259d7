//! What there is, for names that are not: "there is no deploy/wbe; did you mean deploy/web?".

use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::resource::{Kind, Resource};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use mesh_api::golden::GoldenFrame;
use mesh_manifests::nearest::nearest;
use std::collections::BTreeSet;

/// The names a frame knows of a kind, in one namespace or all.
fn names<'a>(frame: &'a GoldenFrame, kind: Kind, namespace: Option<&str>) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for status in &frame.workloads {
        let workload = &status.workload;
        if namespace.is_some_and(|namespace| namespace != workload.namespace) {
            continue;
        }
        match kind {
            Kind::All => drop(names.insert(workload.name.as_str())),
            Kind::Workload(wanted) if workload.kind == wanted => drop(names.insert(workload.name.as_str())),
            Kind::Pod => names.extend(status.pod_list.iter().map(|pod| pod.name.as_str())),
            Kind::Service => names.extend(status.services.iter().map(String::as_str)),
            Kind::Namespace => drop(names.insert(workload.namespace.as_str())),
            Kind::Workload(_) => {}
        }
    }
    // What is called need not have pods of its own.
    let called = frame.series.iter().filter_map(|entry| entry.key.service.as_ref());
    if kind == Kind::Service {
        let here = called.filter(|service| namespace.is_none_or(|namespace| namespace == service.namespace));
        names.extend(here.map(|service| service.name.as_str()));
    }
    if kind == Kind::Pod {
        names.extend(frame.series.iter().filter_map(|entry| entry.pod.as_deref()));
    }
    names
}

/// An error with the nearest name if a named resource is not in the frame.
pub fn find(frame: &GoldenFrame, of: &Resource, namespace: Option<&str>) -> Result<()> {
    let Some(name) = &of.name else { return Ok(()) };
    let namespace = namespace.filter(|_| of.kind != Kind::Namespace);
    let known = names(frame, of.kind, namespace);
    if known.contains(name.as_str()) || (of.kind == Kind::Pod && known.is_empty() && frame.workloads.is_empty()) {
        return Ok(());
    }
    let place = namespace.map_or("any namespace".to_owned(), |namespace| format!("namespace {namespace}"));
    let what = if of.kind == Kind::Service { "" } else { " with running pods" };
    let error = Error::new(format!("there is no {of}{what} in {place}")).during(format!("find {name}"));
    let kind = Resource { name: None, ..of.clone() };
    Err(match nearest(name, known.iter().copied()) {
        Some(near) => error.hint(format!("did you mean {kind}/{near}?")),
        None if known.is_empty() => error.hint(format!("`meshctl stat {kind} -A` lists what there is")),
        None => {
            let some: Vec<&str> = known.into_iter().take(8).collect();
            error.hint(format!("there are: {}", some.join(", ")))
        }
    })
}

/// An error with the nearest name if the namespace is not there. Those who may not list namespaces are not told.
pub async fn find_namespace(cluster: &Cluster, namespace: &str) -> Result<()> {
    let all: Api<Namespace> = Api::all(cluster.client.clone());
    let Ok(list) = all.list(&ListParams::default()).await else { return Ok(()) };
    let known: Vec<String> = list.items.iter().map(ResourceExt::name_any).collect();
    if known.iter().any(|known| known == namespace) {
        return Ok(());
    }
    let error = Error::new(format!("there is no namespace {namespace}"));
    Err(match nearest(namespace, known.iter().map(String::as_str)) {
        Some(near) => error.hint(format!("did you mean -n {near}?")),
        None => error.hint(format!("there are: {}", known.join(", "))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::tests::{SHOP, frame};

    #[test]
    fn what_is_not_there_is_named_with_what_is_near() {
        let frame = frame(SHOP, 10_000, 10_000);
        let check = |of: &str, namespace: Option<&str>, expect: Option<(&str, &str)>| {
            let found = find(&frame, &Resource::read_one(of).unwrap(), namespace);
            let told = found.err().map(|error| (error.to_string(), error.hint_text().unwrap_or_default().to_owned()));
            let expect = expect.map(|(error, hint)| (error.to_owned(), hint.to_owned()));
            assert_eq!(told, expect, "{of}");
        };
        for there in ["deploy/web", "deploy", "svc/cart", "po/web-1", "ns/shop", "all/ledger"] {
            check(there, Some("shop"), None);
        }
        let missing = "cannot find wbe: there is no deployment/wbe with running pods in namespace shop";
        check("deploy/wbe", Some("shop"), Some((missing, "did you mean deployment/web?")));
        let missing = "cannot find catlog: there is no service/catlog in any namespace";
        check("svc/catlog", None, Some((missing, "did you mean service/catalog?")));
        let missing = "cannot find zzz: there is no pod/zzz with running pods in namespace shop";
        check("po/zzz", Some("shop"), Some((missing, "there are: cart-1, catalog-1, ledger-1, load-1, web-1")));
        let missing = "cannot find x: there is no statefulset/x with running pods in any namespace";
        check("sts/x", None, Some((missing, "`meshctl stat statefulset -A` lists what there is")));
    }
}
