//! The health probes of a pod: what the kubelet asks its application, by way of its proxy.

use k8s_openapi::api::core::v1::{Container, Pod, Probe as ProbeSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_api::access::{Probe, ProbeBy};
use mesh_api::names;

/// Every probe of a pod's containers but the proxy's own, each once.
pub(super) fn probes(pod: &Pod) -> Vec<Probe> {
    let nodes = pod.status.iter().flat_map(|status| {
        let listed = status.host_ips.iter().flatten().map(|host| host.ip.as_str());
        listed.chain(status.host_ip.as_deref()).filter_map(|ip| ip.parse().ok())
    });
    let mut nodes: Vec<_> = nodes.collect();
    nodes.sort_unstable();
    nodes.dedup();
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    let mut found: Vec<Probe> = Vec::new();
    for container in containers.filter(|container| container.name != names::PROXY_CONTAINER) {
        let all = [&container.startup_probe, &container.readiness_probe, &container.liveness_probe];
        for probe in all.into_iter().flatten().filter_map(|probe| read(container, probe, &nodes)) {
            if !found.contains(&probe) {
                found.push(probe);
            }
        }
    }
    found
}

fn read(container: &Container, probe: &ProbeSpec, nodes: &[std::net::IpAddr]) -> Option<Probe> {
    if let Some(get) = &probe.http_get {
        let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
        // A query is no part of what is compared, and a path may be written without its first slash.
        let path = path.split('?').next().unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let is_tls = get.scheme.as_deref() == Some("HTTPS");
        let by = if is_tls { ProbeBy::Https(nodes.to_vec()) } else { ProbeBy::Http(path) };
        return Some(Probe { port: number(container, &get.port)?, by });
    }
    if let Some(grpc) = &probe.grpc {
        return Some(Probe { port: u16::try_from(grpc.port).ok()?, by: ProbeBy::Grpc });
    }
    let tcp = probe.tcp_socket.as_ref()?;
    Some(Probe { port: number(container, &tcp.port)?, by: ProbeBy::Tcp })
}

/// A port by number, or by the name that the container gives it.
fn number(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            ports.find(|port| port.name.as_ref() == Some(name))?.container_port
        }
    };
    u16::try_from(number).ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn probes_are_read_from_every_container_but_the_proxy() {
        let probe = |get: serde_json::Value| json!({"httpGet": get});
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "a"},
            "spec": {
                "containers": [
                    {
                        "name": "app",
                        "ports": [{"name": "web", "containerPort": 8080}],
                        "readinessProbe": probe(json!({"path": "/ready?full", "port": "web"})),
                        "livenessProbe": probe(json!({"path": "live", "port": 8080})),
                        "startupProbe": probe(json!({"path": "/ready", "port": 8080})),
                    },
                    {"name": "b", "livenessProbe": {"grpc": {"port": 9000}}, "readinessProbe": {"tcpSocket": {"port": 5432}}},
                    {"name": "c", "livenessProbe": probe(json!({"port": 8443, "scheme": "HTTPS"})),
                     "readinessProbe": {"exec": {"command": ["true"]}}, "startupProbe": probe(json!({"port": "none"}))},
                    {"name": "mesh-proxy", "livenessProbe": probe(json!({"path": "/live", "port": 4191}))},
                ],
            },
            "status": {"hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        }))
        .unwrap();
        let http = |path: &str| Probe { port: 8080, by: ProbeBy::Http(path.to_owned()) };
        let nodes = ["10.0.0.1", "fd00::1"].map(|ip| ip.parse().unwrap()).to_vec();
        let expect = [
            http("/ready"),
            http("/live"),
            Probe { port: 5432, by: ProbeBy::Tcp },
            Probe { port: 9000, by: ProbeBy::Grpc },
            Probe { port: 8443, by: ProbeBy::Https(nodes) },
        ];
        assert_eq!(probes(&pod), expect);
    }
}
