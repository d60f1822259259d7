//! `meshctl explain request`, the part about names: what the callee's name leads to.

use crate::error::{Error, Result};
use crate::shown::Shown;
use mesh_control::world::view::Name;
use std::net::{IpAddr, SocketAddr};

/// What a name leads to.
pub(super) enum Resolved {
    /// An address, and how it was found.
    Address(SocketAddr, String),
    /// A host outside the cluster, its port, and how that was found.
    Outside(String, u16, String),
    /// Nothing the mesh could carry: why, what comes of it, and what to do.
    Nothing(String, &'static str, String),
}

/// Finds what a name in a namespace leads to.
pub(super) fn resolve(shown: &Shown, namespace: &str, to: &str) -> Result<Resolved> {
    let bare = to.strip_prefix("svc/").or(to.strip_prefix("service/")).unwrap_or(to);
    if let Ok(address) = bare.parse::<SocketAddr>() {
        return Ok(Resolved::Address(address, format!("{address} is an address")));
    }
    let (host, port) = bare.rsplit_once(':').unwrap_or((bare, "80"));
    let port: u16 = port.parse().map_err(|_| Error::new(format!("`{port}` in `{to}` is not a port")))?;
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Resolved::Address(SocketAddr::new(ip, port), format!("{ip} is an address")));
    }
    let mut labels = host.trim_end_matches('.').split('.');
    let name = Name::new("", labels.next().unwrap_or_default());
    let name = Name { namespace: labels.next().unwrap_or(namespace).to_owned(), ..name };
    let rest = labels.collect::<Vec<_>>().join(".");
    if !rest.is_empty() && rest != "svc" && !rest.starts_with("svc.") {
        return Ok(Resolved::Outside(host.to_owned(), port, format!("{host} is no name of this cluster")));
    }
    if let Some((_, outside)) = shown.external_names.iter().find(|(service, _)| *service == name) {
        let says = format!("service {} is another name for {outside}", name.name);
        return Ok(Resolved::Outside(host.to_owned(), port, says));
    }
    let Some(service) = shown.world.service(&name) else {
        return Ok(Resolved::Nothing(
            format!("there is no service {} in namespace {}", name.name, name.namespace),
            "the name lookup fails",
            format!("kubectl -n {} get services lists them", name.namespace),
        ));
    };
    let ports: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
    if !service.headless && !service.ports.iter().any(|known| known.port == port) {
        return Ok(Resolved::Nothing(
            format!("service {} has no port {port}, only {}", name.name, ports.join(", ")),
            "the connection fails: nothing answers at that port",
            "mend the port of the call or of the service".to_owned(),
        ));
    }
    if let Some(ip) = service.cluster_ips.first() {
        let address = SocketAddr::new(*ip, port);
        return Ok(Resolved::Address(address, format!("{host} is service {}/{} at {ip}", name.namespace, name.name)));
    }
    let slices = shown.world.slices_of(&name).flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.ready);
    Ok(match slices.flat_map(|endpoint| &endpoint.addresses).min() {
        Some(ip) => Resolved::Address(
            SocketAddr::new(*ip, port),
            format!(
                "{host} is the headless service {}/{}, whose name leads to pods, first to {ip}",
                name.namespace, name.name
            ),
        ),
        None => Resolved::Nothing(
            format!("the headless service {} has no ready pod", name.name),
            "the name lookup fails",
            String::new(),
        ),
    })
}
