//! Cluster IPs and node ports of Services. What is taken is read from the Services themselves, so that nothing can
//! leak: deleting a Service is releasing its addresses.

use super::kinds::Resource;
use super::status::ApiError;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// First address of the service range, 10.96.0.0/12.
const RANGE_START: u32 = u32::from_be_bytes([10, 96, 0, 0]);
/// Bits of the range that differ.
const RANGE_MASK: u32 = (1 << 20) - 1;
/// Addresses kept for Services that ask for them by number (10.96.0.1 is the API's, 10.96.0.10 the DNS server's).
const RESERVED: u32 = 256;
/// Addresses tried before the range is called full.
const ATTEMPTS: u32 = 4096;
/// Node ports.
const NODE_PORTS: std::ops::RangeInclusive<u64> = 30000..=32767;

/// Completes a Service's addresses and ports; `others` are all other Services, `old` its state before.
pub(super) fn assign<'a>(
    resource: &Resource,
    others: impl Iterator<Item = &'a Value>,
    old: Option<&Value>,
    service: &mut Value,
) -> Result<(), ApiError> {
    if !resource.group.is_empty() || resource.plural != "services" {
        return Ok(());
    }
    let mut addresses = BTreeSet::new();
    let mut ports = BTreeSet::new();
    for other in others {
        addresses.extend(other["spec"]["clusterIP"].as_str().and_then(|ip| ip.parse::<Ipv4Addr>().ok()));
        ports.extend(node_ports(&other["spec"]));
    }
    let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let invalid = |field: &str, why: String| {
        let cause = ("FieldValueInvalid".to_owned(), field.to_owned(), why);
        ApiError::invalid("Service", &name, vec![cause])
    };
    if service["spec"]["type"] == "ExternalName" {
        if let Some(spec) = service["spec"].as_object_mut() {
            spec.shift_remove("clusterIP");
            spec.shift_remove("clusterIPs");
        }
        return Ok(());
    }
    assign_address(&addresses, old, service).map_err(|why| invalid("spec.clusterIP", why))?;
    assign_ports(ports, old, service).map_err(|(field, why)| invalid(&field, why))
}

fn assign_address(taken: &BTreeSet<Ipv4Addr>, old: Option<&Value>, service: &mut Value) -> Result<(), String> {
    let asked = service["spec"]["clusterIP"]
        .as_str()
        .or_else(|| service["spec"]["clusterIPs"][0].as_str())
        .filter(|ip| !ip.is_empty())
        .map(str::to_owned);
    let had = old.and_then(|old| old["spec"]["clusterIP"].as_str()).filter(|ip| !ip.is_empty());
    let address = match (asked, had) {
        (Some(asked), Some(had)) if asked != had && had != "None" => {
            return Err(format!("Invalid value: \"{asked}\": may not change once set"));
        }
        (Some(asked), _) if asked == "None" || had == Some(asked.as_str()) => asked,
        (Some(asked), _) => {
            let ip: Ipv4Addr = asked.parse().map_err(|_| {
                format!("Invalid value: \"{asked}\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
            })?;
            if u32::from(ip) & !RANGE_MASK != RANGE_START {
                return Err(format!(
                    "Invalid value: \"{asked}\": failed to allocate IP {asked}: the provided IP ({asked}) is not in the valid range. The range of valid IPs is 10.96.0.0/12"
                ));
            }
            if taken.contains(&ip) {
                return Err(format!(
                    "Invalid value: \"{asked}\": failed to allocate IP {asked}: provided IP is already allocated"
                ));
            }
            asked
        }
        (None, Some(had)) => had.to_owned(),
        (None, None) => free_address(taken)?.to_string(),
    };
    service["spec"]["clusterIP"] = address.clone().into();
    service["spec"]["clusterIPs"] = json!([address]);
    Ok(())
}

fn free_address(taken: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr, String> {
    let start = u32::from_be_bytes(super::random::<4>());
    (0..ATTEMPTS)
        .map(|step| RESERVED + start.wrapping_add(step) % (RANGE_MASK - RESERVED))
        .map(|offset| Ipv4Addr::from(RANGE_START | offset))
        .find(|ip| !taken.contains(ip))
        .ok_or_else(|| "failed to allocate a serviceIP: range is full".to_owned())
}

fn node_ports(spec: &Value) -> impl Iterator<Item = u64> + '_ {
    let ports = spec["ports"].as_array().into_iter().flatten().filter_map(|port| port["nodePort"].as_u64());
    ports.chain(spec["healthCheckNodePort"].as_u64()).filter(|port| *port != 0)
}

fn assign_ports(mut taken: BTreeSet<u64>, old: Option<&Value>, service: &mut Value) -> Result<(), (String, String)> {
    let wanted = matches!(service["spec"]["type"].as_str(), Some("NodePort" | "LoadBalancer"))
        && service["spec"]["allocateLoadBalancerNodePorts"] != false;
    let had = |port: &Value| -> Option<u64> {
        let same = |other: &&Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
        old?["spec"]["ports"].as_array()?.iter().find(same)?["nodePort"].as_u64()
    };
    let Some(ports) = service["spec"]["ports"].as_array_mut() else { return Ok(()) };
    for (index, port) in ports.iter_mut().enumerate() {
        let field = || format!("spec.ports[{index}].nodePort");
        let asked = port["nodePort"].as_u64().filter(|port| *port != 0);
        if !wanted {
            if let Some(port) = port.as_object_mut() {
                port.shift_remove("nodePort");
            }
            continue;
        }
        let number = match asked.or_else(|| had(port)) {
            Some(number) if !NODE_PORTS.contains(&number) => {
                return Err((
                    field(),
                    format!(
                        "Invalid value: {number}: provided port is not in the valid range. The range of valid ports is 30000-32767"
                    ),
                ));
            }
            Some(number) if taken.contains(&number) => {
                return Err((field(), format!("Invalid value: {number}: provided port is already allocated")));
            }
            Some(number) => number,
            None => NODE_PORTS
                .clone()
                .find(|number| !taken.contains(number))
                .ok_or_else(|| (field(), "failed to allocate a nodePort: range is full".to_owned()))?,
        };
        taken.insert(number);
        port["nodePort"] = number.into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::kinds::Registry;
    use super::*;

    fn assigned(others: &[Value], old: Option<&Value>, mut service: Value) -> Result<Value, String> {
        let registry = Registry::built_in();
        let services = registry.find("", "v1", "services").unwrap();
        assign(services, others.iter(), old, &mut service).map(|()| service["spec"].clone()).map_err(|e| e.message)
    }

    #[test]
    fn allocates_addresses() {
        let spec = assigned(&[], None, json!({"spec": {}})).unwrap();
        let ip: Ipv4Addr = spec["clusterIP"].as_str().unwrap().parse().unwrap();
        assert_eq!(u32::from(ip) & !RANGE_MASK, RANGE_START);
        assert!(u32::from(ip) & RANGE_MASK >= RESERVED);
        assert_eq!(spec["clusterIPs"], json!([ip.to_string()]));

        let old = json!({"spec": {"clusterIP": "10.96.1.2"}});
        assert_eq!(assigned(&[], Some(&old), json!({"spec": {}})).unwrap()["clusterIP"], "10.96.1.2");
        assert_eq!(assigned(&[], None, json!({"spec": {"clusterIP": "None"}})).unwrap()["clusterIP"], "None");
        assert!(assigned(&[], None, json!({"spec": {"type": "ExternalName"}})).unwrap().get("clusterIP").is_none());

        for (spec, expect) in [
            (json!({"clusterIP": "10.96.1.2"}), "already allocated"),
            (json!({"clusterIP": "10.1.1.2"}), "not in the valid range"),
            (json!({"clusterIP": "x"}), "must be a valid IP address"),
        ] {
            let error = assigned(std::slice::from_ref(&old), None, json!({"spec": spec})).unwrap_err();
            assert!(error.contains(expect), "{error}");
        }
        let error = assigned(&[], Some(&old), json!({"spec": {"clusterIP": "10.96.9.9"}})).unwrap_err();
        assert!(error.contains("may not change once set"), "{error}");
    }

    #[test]
    fn allocates_node_ports() {
        let others = [json!({"spec": {"ports": [{"nodePort": 30000}]}})];
        let service = |kind: &str, ports: Value| json!({"spec": {"type": kind, "clusterIP": "None", "ports": ports}});
        let spec = assigned(&others, None, service("NodePort", json!([{"port": 80}, {"port": 81}]))).unwrap();
        assert_eq!(spec["ports"], json!([{"port": 80, "nodePort": 30001}, {"port": 81, "nodePort": 30002}]));
        let spec = assigned(&others, None, service("ClusterIP", json!([{"port": 80, "nodePort": 30000}]))).unwrap();
        assert_eq!(spec["ports"], json!([{"port": 80}]));
        let error = assigned(&others, None, service("NodePort", json!([{"port": 80, "nodePort": 30000}]))).unwrap_err();
        assert!(error.contains("already allocated"), "{error}");
    }
}
