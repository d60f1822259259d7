//! EndpointSlices: which pods answer for a Service, on which ports, and whether they are ready.

use super::cache::{Cluster, Key, key_of, owned_by};
use super::template;
use super::{Again, legacy_endpoints};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::DeleteParams;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const NAME: &str = "endpointslice-controller.k8s.io";
const SERVICE: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Endpoints in one slice.
const SLICE_SIZE: usize = 100;

/// True if the Service chooses pods with these labels.
pub(crate) fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|s| !s.is_empty() && s.iter().all(|(name, value)| labels.get(name) == Some(value)))
}

pub(crate) async fn reconcile(cluster: &mut Cluster, key: &Key) -> kube::Result<Again> {
    let mine = |slice: &&EndpointSlice| {
        let labels = slice.metadata.labels.as_ref();
        labels.and_then(|l| l.get(SERVICE)) == Some(&key.1)
            && labels.and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == NAME)
    };
    let existing: Vec<EndpointSlice> = cluster.slices.inside(&key.0).filter(mine).cloned().collect();
    let chooses = |service: &&Service| {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        service.metadata.deletion_timestamp.is_none() && selector.is_some_and(|selector| !selector.is_empty())
    };
    let service = cluster.services.get(key).filter(chooses).cloned();
    let wanted = match &service {
        Some(service) => {
            let none = BTreeMap::new();
            let pods: Vec<&Pod> = cluster
                .pods
                .inside(&key.0)
                .filter(|pod| selects(service, pod.metadata.labels.as_ref().unwrap_or(&none)))
                .collect();
            slices(service, &pods)
        }
        None => Vec::new(),
    };
    let names: BTreeSet<&Option<String>> = wanted.iter().map(|slice| &slice.metadata.name).collect();
    for slice in existing.iter().filter(|slice| !names.contains(&slice.metadata.name)) {
        cluster.delete::<EndpointSlice>(&key_of(&slice.metadata), &DeleteParams::default()).await?;
    }
    for slice in &wanted {
        let known =
            existing.iter().find(|e| e.metadata.name == slice.metadata.name && e.metadata.deletion_timestamp.is_none());
        match known {
            Some(known) if known.endpoints == slice.endpoints && known.ports == slice.ports => {}
            Some(known) => {
                let mut changed = known.clone();
                changed.endpoints = slice.endpoints.clone();
                changed.ports = slice.ports.clone();
                cluster.replace(&changed).await?;
            }
            None => {
                cluster.create(slice).await?;
            }
        }
    }
    legacy_endpoints::reconcile(cluster, key, service.as_ref()).await?;
    Ok(None)
}

/// What pods of one slice have in common: IPv6 or not, and the named port numbers.
type Numbers = (bool, Vec<(Option<String>, i32)>);

/// The slices a Service should have: pods that resolve its ports to the same numbers share one.
fn slices(service: &Service, pods: &[&Pod]) -> Vec<EndpointSlice> {
    let spec = service.spec.clone().unwrap_or_default();
    let families = families(service);
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    let mut groups: BTreeMap<Numbers, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !template::has_ended(pod)) {
        let ports: Vec<EndpointPort> = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                Some(EndpointPort {
                    name: Some(port.name.clone().unwrap_or_default()),
                    port: Some(resolve(port.target_port.as_ref(), port.port, pod)?),
                    protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect();
        let numbers: Vec<_> = ports.iter().map(|p| (p.name.clone(), p.port.unwrap_or_default())).collect();
        for (v6, endpoint) in endpoints_of(pod, service, unready_too) {
            if !families.contains(&v6) {
                continue;
            }
            let group = groups.entry((v6, numbers.clone())).or_insert_with(|| (ports.clone(), Vec::new()));
            group.1.push(endpoint);
        }
    }
    for v6 in families {
        // A Service without pods still has a slice, so that everybody can see there is nothing behind it.
        if !groups.keys().any(|(other, _)| *other == v6) {
            groups.insert((v6, Vec::new()), (Vec::new(), Vec::new()));
        }
    }
    let (namespace, name) = key_of(&service.metadata);
    let mut slices = Vec::new();
    for ((v6, _), (ports, mut endpoints)) in groups {
        endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
        let parts: Vec<Vec<Endpoint>> = if endpoints.is_empty() {
            vec![Vec::new()]
        } else {
            endpoints.chunks(SLICE_SIZE).map(<[_]>::to_vec).collect()
        };
        for part in parts {
            let suffix = format!("{}{}", slices.len(), if v6 { "-v6" } else { "" });
            slices.push(EndpointSlice {
                metadata: ObjectMeta {
                    name: Some(format!("{name}-{suffix}")),
                    namespace: Some(namespace.clone()),
                    labels: Some([(SERVICE.to_owned(), name.clone()), (MANAGED_BY.to_owned(), NAME.to_owned())].into()),
                    owner_references: Some(vec![owned_by(service)]),
                    ..Default::default()
                },
                address_type: if v6 { "IPv6" } else { "IPv4" }.to_owned(),
                ports: Some(ports.clone()).filter(|p| !p.is_empty()),
                endpoints: part,
            });
        }
    }
    slices
}

/// Which families a Service is for, the first one first: true for IPv6.
pub(crate) fn families(service: &Service) -> Vec<bool> {
    let said = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref());
    let mut families: Vec<bool> = said.into_iter().flatten().map(|family| family == "IPv6").collect();
    if families.is_empty() {
        families.push(false);
    }
    families
}

/// The number behind a target port on a pod; a name that the pod does not have leaves the port out.
pub(crate) fn resolve(target: Option<&IntOrString>, port: i32, pod: &Pod) -> Option<i32> {
    match target {
        None => Some(port),
        Some(IntOrString::Int(0)) => Some(port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            ports.find(|p| p.name.as_ref() == Some(name)).map(|p| p.container_port)
        }
    }
}

fn endpoints_of(pod: &Pod, service: &Service, unready_too: bool) -> Vec<(bool, Endpoint)> {
    let status = pod.status.clone().unwrap_or_default();
    let addresses: BTreeSet<String> =
        status.pod_ips.into_iter().flatten().map(|ip| ip.ip).chain(status.pod_ip).collect();
    let spec = pod.spec.clone().unwrap_or_default();
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = template::is_ready(pod);
    let same_subdomain = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    addresses
        .into_iter()
        .filter_map(|address| {
            let v6 = address.parse::<IpAddr>().ok()?.is_ipv6();
            let endpoint = Endpoint {
                addresses: vec![address],
                conditions: Some(EndpointConditions {
                    ready: Some(unready_too || (ready && !terminating)),
                    serving: Some(unready_too || ready),
                    terminating: Some(terminating),
                }),
                hostname: spec.hostname.clone().filter(|_| same_subdomain),
                node_name: spec.node_name.clone(),
                target_ref: Some(ObjectReference {
                    kind: Some("Pod".to_owned()),
                    namespace: pod.metadata.namespace.clone(),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                    ..Default::default()
                }),
                ..Default::default()
            };
            Some((v6, endpoint))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, ip: &str, ready: &str, port: i32) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "d", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    fn service(target: serde_json::Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d", "uid": "u"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": target}]},
        }))
        .unwrap()
    }

    #[test]
    fn ready_pods_are_listed_as_ready() {
        let (a, b) = (pod("a", "10.244.0.2", "True", 8080), pod("b", "10.244.0.3", "False", 8080));
        let slices = slices(&service(json!("http")), &[&a, &b]);
        assert_eq!(slices.len(), 1);
        let ready: Vec<_> = slices[0].endpoints.iter().map(|e| e.conditions.as_ref().unwrap().ready).collect();
        assert_eq!(ready, [Some(true), Some(false)]);
        assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
    }

    #[test]
    fn pods_that_resolve_a_name_differently_get_slices_of_their_own() {
        let (a, b) = (pod("a", "10.244.0.2", "True", 8080), pod("b", "fd00::3", "True", 9090));
        let mut service = service(json!("http"));
        service.spec.as_mut().unwrap().ip_families = Some(vec!["IPv4".to_owned(), "IPv6".to_owned()]);
        let slices = slices(&service, &[&a, &b]);
        assert_eq!(slices.len(), 2);
        assert_eq!(slices.iter().map(|s| s.address_type.as_str()).collect::<Vec<_>>(), ["IPv4", "IPv6"]);
    }

    #[test]
    fn slices_are_of_the_families_of_the_service() {
        let mut pod = pod("a", "10.244.0.2", "True", 8080);
        let ips = json!([{"ip": "10.244.0.2"}, {"ip": "fd00::2"}]);
        pod.status.as_mut().unwrap().pod_ips = serde_json::from_value(ips).unwrap();
        for (families, expected) in [
            (json!(null), vec![("web-0", "IPv4", "10.244.0.2")]),
            (json!(["IPv6"]), vec![("web-0-v6", "IPv6", "fd00::2")]),
            (json!(["IPv6", "IPv4"]), vec![("web-0", "IPv4", "10.244.0.2"), ("web-1-v6", "IPv6", "fd00::2")]),
        ] {
            let mut service = service(json!(8080));
            service.spec.as_mut().unwrap().ip_families = serde_json::from_value(families).unwrap();
            let slices = slices(&service, &[&pod]);
            let found = slices.iter().map(|s| {
                (s.metadata.name.as_deref().unwrap(), s.address_type.as_str(), s.endpoints[0].addresses[0].as_str())
            });
            assert_eq!(found.collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_service_without_pods_has_an_empty_slice() {
        let slices = slices(&service(json!(80)), &[]);
        assert_eq!((slices.len(), slices[0].endpoints.len()), (1, 0));
    }
}
