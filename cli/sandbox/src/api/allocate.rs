//! Cluster IPs and node ports of Services. What is taken is read from the Services themselves, so that nothing can
//! leak: deleting a Service is releasing its addresses.

use super::Api;
use super::kinds::Resource;
use super::status::ApiError;
use crate::node::{SERVICE_RANGE, SERVICE_RANGE6};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Addresses at the start of a range kept for Services that ask for them by number (10.96.0.1 is the API's, 10.96.0.10
/// the DNS server's).
const RESERVED: u32 = 256;
/// Addresses tried before the range is called full.
const ATTEMPTS: u32 = 4096;
/// Node ports.
const NODE_PORTS: std::ops::RangeInclusive<u64> = 30000..=32767;

/// What is wrong with a field: its name, and why.
type Wrong = (String, String);

/// Completes a Service's addresses and ports; `others` are all other Services, `old` its state before.
pub(super) fn assign<'a>(
    api: &Api,
    resource: &Resource,
    others: impl Iterator<Item = &'a Value>,
    old: Option<&Value>,
    service: &mut Value,
) -> Result<(), ApiError> {
    if !resource.group.is_empty() || resource.plural != "services" {
        return Ok(());
    }
    let mut taken = BTreeSet::new();
    let mut ports = BTreeSet::new();
    for other in others {
        taken.extend(addresses(&other["spec"]).iter().filter_map(|ip| ip.parse::<IpAddr>().ok()));
        ports.extend(node_ports(&other["spec"]));
    }
    let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let invalid = |(field, why): Wrong| {
        let cause = ("FieldValueInvalid".to_owned(), field, why);
        ApiError::invalid("Service", &name, vec![cause])
    };
    if service["spec"]["type"] == "ExternalName" {
        if let Some(spec) = service["spec"].as_object_mut() {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec.shift_remove(field);
            }
        }
        return Ok(());
    }
    let families = Plan::of(api.config().dual_stack, old, &service["spec"]).map_err(invalid)?;
    assign_addresses(&taken, old, &families, service).map_err(invalid)?;
    assign_ports(ports, old, service).map_err(invalid)
}

/// Cluster IPs of a Service, the first one first; `None` for a headless one.
fn addresses(spec: &Value) -> Vec<&str> {
    let all: Vec<&str> = spec["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let listed = if all.is_empty() { spec["clusterIP"].as_str().into_iter().collect() } else { all };
    listed.into_iter().filter(|ip| !ip.is_empty()).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IpFamily {
    V4,
    V6,
}

impl IpFamily {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn other(self) -> Self {
        if self == Self::V4 { Self::V6 } else { Self::V4 }
    }

    fn name(self) -> &'static str {
        if self == Self::V4 { "IPv4" } else { "IPv6" }
    }

    fn range(self) -> String {
        if self == Self::V4 { SERVICE_RANGE.to_string() } else { SERVICE_RANGE6.to_string() }
    }

    fn contains(address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => SERVICE_RANGE.contains(v4),
            IpAddr::V6(v6) => SERVICE_RANGE6.contains(v6),
        }
    }

    /// The cluster IP with a number, counted round and round the range without its reserved start.
    fn address(self, number: u32) -> IpAddr {
        let last = |prefix: u8, bits: u32| u32::MAX.checked_shr(32 - (bits - u32::from(prefix))).unwrap_or(u32::MAX);
        match self {
            Self::V4 => {
                let offset = RESERVED + number % (last(SERVICE_RANGE.prefix, 32) - RESERVED);
                IpAddr::V4((u32::from(SERVICE_RANGE.first) | offset).into())
            }
            Self::V6 => {
                let offset = RESERVED + number % (last(SERVICE_RANGE6.prefix, 128) - RESERVED);
                IpAddr::V6((u128::from(SERVICE_RANGE6.first) | u128::from(offset)).into())
            }
        }
    }
}

/// Which families a Service shall have addresses of.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    families: Vec<IpFamily>,
    policy: String,
}

impl Plan {
    /// Settles `ipFamilies` and `ipFamilyPolicy` from each other, from the addresses asked for and from what there was.
    fn of(dual_stack: bool, old: Option<&Value>, spec: &Value) -> Result<Self, Wrong> {
        let was = old.map(|old| &old["spec"]).filter(|old| old["ipFamilies"].is_array());
        let field = |name: &str| Some(&spec[name]).filter(|v| !v.is_null()).or_else(|| was.map(|was| &was[name]));
        let mut families = Vec::new();
        for (index, family) in field("ipFamilies").and_then(Value::as_array).into_iter().flatten().enumerate() {
            let family = match family.as_str() {
                Some("IPv4") => IpFamily::V4,
                Some("IPv6") if dual_stack => IpFamily::V6,
                Some("IPv6") => {
                    return Err(wrong(&format!("spec.ipFamilies[{index}]"), family, "not configured on this cluster"));
                }
                _ => {
                    return Err(wrong(
                        &format!("spec.ipFamilies[{index}]"),
                        family,
                        "supported values: \"IPv4\", \"IPv6\"",
                    ));
                }
            };
            families.push(family);
        }
        let asked = addresses(spec);
        let asked_families: Vec<IpFamily> = asked.iter().filter_map(|ip| ip.parse().ok()).map(IpFamily::of).collect();
        let headless = asked.first() == Some(&"None");
        let unselective = spec["selector"].as_object().is_none_or(|selector| selector.is_empty());
        let two = families.len() > 1 || asked_families.len() > 1;
        let policy = match field("ipFamilyPolicy").and_then(Value::as_str) {
            Some(policy) => policy.to_owned(),
            // Whoever writes the endpoints by hand decides which there are.
            None if headless && unselective && dual_stack => "RequireDualStack".to_owned(),
            None => "SingleStack".to_owned(),
        };
        let said = &spec["ipFamilyPolicy"];
        match policy.as_str() {
            "SingleStack" if two && was.is_none_or(|was| was["ipFamilyPolicy"] == "SingleStack") => {
                let why = "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified";
                return Err(wrong("spec.ipFamilyPolicy", said, why));
            }
            "RequireDualStack" if !dual_stack => {
                return Err(wrong(
                    "spec.ipFamilyPolicy",
                    said,
                    "this cluster is not configured for dual-stack services",
                ));
            }
            "SingleStack" | "PreferDualStack" | "RequireDualStack" => {}
            _ => {
                let why = "supported values: \"SingleStack\", \"PreferDualStack\", \"RequireDualStack\"";
                return Err(wrong("spec.ipFamilyPolicy", said, why));
            }
        }
        if families.is_empty() {
            families.clone_from(&asked_families);
        }
        if families.is_empty() {
            families.push(IpFamily::V4);
        }
        if families.len() > 2 || families.get(1) == families.first() {
            return Err(wrong("spec.ipFamilies", &spec["ipFamilies"], "may only hold one or two different values"));
        }
        if was.is_some_and(|was| was["ipFamilies"][0] != families[0].name()) {
            return Err(wrong("spec.ipFamilies[0]", &spec["ipFamilies"], "may not change once set"));
        }
        match policy.as_str() {
            "SingleStack" => families.truncate(1),
            _ if families.len() == 1 && dual_stack => families.push(families[0].other()),
            _ => {}
        }
        if asked_families.iter().zip(&families).any(|(asked, planned)| asked != planned) {
            let why = "must be of the families that 'ipFamilies' lists, in its order";
            return Err(wrong("spec.clusterIPs", &spec["clusterIPs"], why));
        }
        Ok(Self { families, policy })
    }
}

fn wrong(field: &str, value: &Value, why: &str) -> Wrong {
    (field.to_owned(), format!("Invalid value: {value}: {why}"))
}

fn assign_addresses(
    taken: &BTreeSet<IpAddr>,
    old: Option<&Value>,
    plan: &Plan,
    service: &mut Value,
) -> Result<(), Wrong> {
    let had = old.map(|old| addresses(&old["spec"])).unwrap_or_default();
    // `clusterIP` counts where both are there and differ: who changes only the older field means it.
    let mut asked = addresses(&service["spec"]);
    if let Some(first) = service["spec"]["clusterIP"].as_str().filter(|ip| !ip.is_empty()) {
        if asked.is_empty() { asked.push(first) } else { asked[0] = first }
    }
    let mut assigned = Vec::new();
    if asked.first().or(had.first()) == Some(&"None") && (asked.is_empty() || asked == ["None"]) {
        assigned.push("None".to_owned());
    } else {
        for (index, family) in plan.families.iter().enumerate() {
            let field = if index == 0 { "spec.clusterIP".to_owned() } else { format!("spec.clusterIPs[{index}]") };
            let (asked, had) = (asked.get(index).copied(), had.get(index).copied());
            assigned.push(address(taken, *family, asked, had).map_err(|why| (field, why))?);
        }
    }
    service["spec"]["clusterIP"] = assigned[0].clone().into();
    service["spec"]["clusterIPs"] = json!(assigned);
    service["spec"]["ipFamilies"] = plan.families.iter().map(|family| family.name()).collect();
    service["spec"]["ipFamilyPolicy"] = plan.policy.clone().into();
    Ok(())
}

/// The address asked for if it may be had, the one there was, or a free one.
fn address(
    taken: &BTreeSet<IpAddr>,
    family: IpFamily,
    asked: Option<&str>,
    had: Option<&str>,
) -> Result<String, String> {
    let had = had.filter(|had| *had != "None");
    let Some(asked) = asked else {
        return had.map_or_else(|| free_address(taken, family).map(|ip| ip.to_string()), |had| Ok(had.to_owned()));
    };
    if had == Some(asked) {
        return Ok(asked.to_owned());
    }
    if had.is_some() {
        return Err(format!("Invalid value: \"{asked}\": may not change once set"));
    }
    let ip: IpAddr = asked.parse().map_err(|_| {
        format!("Invalid value: \"{asked}\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
    })?;
    let failed = format!("Invalid value: \"{asked}\": failed to allocate IP {asked}");
    if !IpFamily::contains(ip) {
        let range = family.range();
        return Err(format!(
            "{failed}: the provided IP ({asked}) is not in the valid range. The range of valid IPs is {range}"
        ));
    }
    if taken.contains(&ip) {
        return Err(format!("{failed}: provided IP is already allocated"));
    }
    Ok(ip.to_string())
}

fn free_address(taken: &BTreeSet<IpAddr>, family: IpFamily) -> Result<IpAddr, String> {
    let start = u32::from_be_bytes(super::random::<4>());
    (0..ATTEMPTS)
        .map(|step| family.address(start.wrapping_add(step)))
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
    use std::net::Ipv4Addr;

    fn on(api: &Api, others: &[Value], old: Option<&Value>, mut service: Value) -> Result<Value, String> {
        let registry = Registry::built_in();
        let services = registry.find("", "v1", "services").unwrap();
        let done = assign(api, services, others.iter(), old, &mut service);
        done.map(|()| service["spec"].clone()).map_err(|e| e.message)
    }

    fn assigned(others: &[Value], old: Option<&Value>, service: Value) -> Result<Value, String> {
        on(&Api::new(crate::api::Config::default()).unwrap(), others, old, service)
    }

    #[test]
    fn allocates_addresses() {
        let spec = assigned(&[], None, json!({"spec": {}})).unwrap();
        let ip: Ipv4Addr = spec["clusterIP"].as_str().unwrap().parse().unwrap();
        assert!(SERVICE_RANGE.contains(ip), "{ip}");
        assert!(u32::from(ip) - u32::from(SERVICE_RANGE.first) >= RESERVED);
        assert_eq!(spec["clusterIPs"], json!([ip.to_string()]));
        assert_eq!((&spec["ipFamilies"], &spec["ipFamilyPolicy"]), (&json!(["IPv4"]), &json!("SingleStack")));

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
    fn families_follow_the_policy() {
        for (spec, families, policy) in [
            (json!({"ipFamilyPolicy": "PreferDualStack"}), json!(["IPv4", "IPv6"]), "PreferDualStack"),
            (
                json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
                json!(["IPv6", "IPv4"]),
                "RequireDualStack",
            ),
            (json!({"ipFamilies": ["IPv6"]}), json!(["IPv6"]), "SingleStack"),
            (json!({"clusterIP": "fd6d:6573:6800:96::7"}), json!(["IPv6"]), "SingleStack"),
            (json!({"clusterIP": "None", "selector": {"a": "b"}}), json!(["IPv4"]), "SingleStack"),
            (json!({"clusterIP": "None"}), json!(["IPv4", "IPv6"]), "RequireDualStack"),
        ] {
            let done = assigned(&[], None, json!({"spec": spec})).unwrap();
            assert_eq!((&done["ipFamilies"], &done["ipFamilyPolicy"]), (&families, &json!(policy)), "{spec}");
            for (ip, family) in done["clusterIPs"].as_array().unwrap().iter().zip(families.as_array().unwrap()) {
                let ip = ip.as_str().unwrap();
                assert!(ip == "None" || ip.contains(':') == (family == "IPv6"), "{done}");
            }
            if done["clusterIP"] != "None" {
                assert_eq!(done["clusterIPs"].as_array().unwrap().len(), families.as_array().unwrap().len());
            }
            // Writing it again changes nothing.
            assert_eq!(assigned(&[], Some(&json!({"spec": done})), json!({"spec": done})).unwrap(), done);
        }
    }

    #[test]
    fn families_come_and_go_but_the_first() {
        let single = json!({"spec": assigned(&[], None, json!({"spec": {}})).unwrap()});
        let mut wanted = single.clone();
        wanted["spec"]["ipFamilyPolicy"] = "PreferDualStack".into();
        let both = json!({"spec": assigned(&[], Some(&single), wanted).unwrap()});
        assert_eq!(both["spec"]["clusterIPs"][0], single["spec"]["clusterIP"]);
        assert!(both["spec"]["clusterIPs"][1].as_str().unwrap().starts_with("fd6d:6573:6800:96::"), "{both}");
        let mut wanted = both.clone();
        wanted["spec"]["ipFamilyPolicy"] = "SingleStack".into();
        assert_eq!(json!({"spec": assigned(&[], Some(&both), wanted).unwrap()}), single);
    }

    #[test]
    fn impossible_families_are_refused() {
        let old = json!({"spec": {"clusterIP": "10.96.1.2", "clusterIPs": ["10.96.1.2"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack"}});
        for (old, spec, expect) in [
            (None, json!({"ipFamilies": ["IPv4", "IPv6"]}), "when multiple IP families"),
            (None, json!({"ipFamilies": ["IPv5"]}), "spec.ipFamilies[0]: Invalid value: \"IPv5\""),
            (None, json!({"ipFamilies": ["IPv4", "IPv4"], "ipFamilyPolicy": "PreferDualStack"}), "different values"),
            (None, json!({"ipFamilyPolicy": "Both"}), "supported values"),
            (None, json!({"ipFamilies": ["IPv6"], "clusterIP": "10.96.3.4"}), "in its order"),
            (Some(&old), json!({"ipFamilies": ["IPv6"]}), "may not change once set"),
        ] {
            let error = assigned(&[], old, json!({"spec": spec})).unwrap_err();
            assert!(error.contains(expect), "{spec}: {error}");
        }
        let api = Api::new(crate::api::Config { dual_stack: false, ..Default::default() }).unwrap();
        for (spec, expect) in [
            (json!({"ipFamilies": ["IPv6"]}), "not configured on this cluster"),
            (json!({"ipFamilyPolicy": "RequireDualStack"}), "not configured for dual-stack services"),
        ] {
            let error = on(&api, &[], None, json!({"spec": spec})).unwrap_err();
            assert!(error.contains(expect), "{spec}: {error}");
        }
        let preferring = on(&api, &[], None, json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}})).unwrap();
        assert_eq!(preferring["ipFamilies"], json!(["IPv4"]));
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
