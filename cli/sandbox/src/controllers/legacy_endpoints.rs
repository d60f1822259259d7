//! Endpoints, the older form of EndpointSlices, which `kubectl get endpoints` and older clients read.

use super::cache::{Cluster, Key, key_of};
use super::endpoints::{families, resolve, selects};
use super::template;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service, ServicePort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DeleteParams;
use std::collections::BTreeMap;

/// Marks what this controller wrote; what others wrote for Services without selectors is theirs.
const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");

/// Brings the Endpoints of a Service up to date; `service` is `None` if it is gone or chooses no pods.
pub(crate) async fn reconcile(cluster: &mut Cluster, key: &Key, service: Option<&Service>) -> kube::Result<()> {
    let known = cluster.endpoints.get(key).filter(|known| known.metadata.deletion_timestamp.is_none()).cloned();
    let ours = known.as_ref().is_some_and(|known| {
        known.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY.0)).is_some_and(|by| by == MANAGED_BY.1)
    });
    let Some(service) = service else {
        if ours {
            cluster.delete::<Endpoints>(key, &DeleteParams::default()).await?;
        }
        return Ok(());
    };
    let none = BTreeMap::new();
    let chosen = |pod: &&Pod| selects(service, pod.metadata.labels.as_ref().unwrap_or(&none));
    let pods: Vec<&Pod> = cluster.pods.inside(&key.0).filter(chosen).collect();
    let subsets = Some(subsets(service, &pods)).filter(|subsets| !subsets.is_empty());
    match known {
        Some(known) if known.subsets == subsets => {}
        Some(mut known) => {
            known.subsets = subsets;
            cluster.replace(&known).await?;
        }
        None => {
            let endpoints = Endpoints { metadata: metadata(service), subsets };
            cluster.create(&endpoints).await?;
        }
    }
    Ok(())
}

fn metadata(service: &Service) -> ObjectMeta {
    let (namespace, name) = key_of(&service.metadata);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    if service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None")) {
        labels.insert("service.kubernetes.io/headless".to_owned(), String::new());
    }
    ObjectMeta { name: Some(name), namespace: Some(namespace), labels: Some(labels), ..Default::default() }
}

/// Pods that resolve the Service's ports to the same numbers share a subset.
fn subsets(service: &Service, pods: &[&Pod]) -> Vec<EndpointSubset> {
    let spec = service.spec.clone().unwrap_or_default();
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    // Older than dual stack, Endpoints know one family.
    let primary = families(service).first().copied();
    type Addresses = (Vec<EndpointPort>, Vec<EndpointAddress>, Vec<EndpointAddress>);
    let mut groups: BTreeMap<Vec<(Option<String>, i32)>, Addresses> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !template::has_ended(pod)) {
        let status = pod.status.as_ref();
        let ips = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten().map(|ip| &ip.ip);
        let mut ips = status.and_then(|status| status.pod_ip.as_ref()).into_iter().chain(ips);
        let Some(ip) = ips.find(|ip| Some(ip.contains(':')) == primary).cloned() else { continue };
        if pod.metadata.deletion_timestamp.is_some() && !unready_too {
            continue;
        }
        let resolved = |port: &ServicePort| {
            Some(EndpointPort {
                name: port.name.clone(),
                port: resolve(port.target_port.as_ref(), port.port, pod)?,
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        };
        let ports: Vec<EndpointPort> = spec.ports.iter().flatten().filter_map(resolved).collect();
        let numbers = ports.iter().map(|port| (port.name.clone(), port.port)).collect();
        let group = groups.entry(numbers).or_insert_with(|| (ports, Vec::new(), Vec::new()));
        let address = address(pod, service, ip);
        if unready_too || template::is_ready(pod) { group.1.push(address) } else { group.2.push(address) }
    }
    let some = |mut addresses: Vec<EndpointAddress>| {
        addresses.sort_by(|a, b| a.ip.cmp(&b.ip));
        Some(addresses).filter(|addresses| !addresses.is_empty())
    };
    groups
        .into_values()
        .map(|(ports, ready, unready)| EndpointSubset {
            addresses: some(ready),
            not_ready_addresses: some(unready),
            ports: Some(ports).filter(|ports| !ports.is_empty()),
        })
        .collect()
}

fn address(pod: &Pod, service: &Service, ip: String) -> EndpointAddress {
    let spec = pod.spec.clone().unwrap_or_default();
    let same_subdomain = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    EndpointAddress {
        ip,
        hostname: spec.hostname.filter(|_| same_subdomain),
        node_name: spec.node_name,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..Default::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_and_unready_pods_are_kept_apart() {
        let pod = |name: &str, ip: &str, ready: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "d"},
                "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
                "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
        }))
        .unwrap();
        let (a, b) = (pod("a", "10.244.0.2", "True"), pod("b", "10.244.0.3", "False"));
        let subsets = subsets(&service, &[&a, &b]);
        assert_eq!(subsets.len(), 1);
        assert_eq!(subsets[0].addresses.as_ref().unwrap()[0].ip, "10.244.0.2");
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap()[0].ip, "10.244.0.3");
        assert_eq!(subsets[0].ports.as_ref().unwrap()[0].port, 8080);
    }
}
