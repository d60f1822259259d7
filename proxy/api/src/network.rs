//! Networks in CIDR notation.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network (`10.0.0.0/8`, `fd00::/8`); a bare address is the network of that address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "schema", schemars(with = "String"))]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no network: write an address and the length of its prefix, like 10.0.0.0/8 or fd00::/8")]
pub struct InvalidNetwork(String);

impl Network {
    /// The network of an address alone.
    pub fn of(address: IpAddr) -> Self {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Self { address, prefix }
    }

    /// True if the address belongs to the network. IPv4 addresses in IPv6's clothes are IPv4 addresses.
    pub fn contains(&self, address: IpAddr) -> bool {
        masked(address.to_canonical(), self.prefix) == Some(self.address)
    }

    /// Networks that are never routed between sites (RFC 1918, RFC 6598, RFC 4193): where clusters live.
    pub fn private() -> Vec<Network> {
        let v4 = |a, b, prefix| Self { address: IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)), prefix };
        let local = IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0));
        vec![v4(10, 0, 8), v4(100, 64, 10), v4(172, 16, 12), v4(192, 168, 16), Self { address: local, prefix: 7 }]
    }
}

/// The address with all bits behind the prefix cleared; `None` if it has fewer bits than the prefix.
fn masked(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    let behind = |bits: u8| bits.checked_sub(prefix).map(u32::from);
    Some(match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(behind(32)?).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(behind(128)?).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    })
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidNetwork(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse().map_err(|_| invalid())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let prefix = prefix.unwrap_or(Self::of(address).prefix);
        // An address with bits behind the prefix is taken for the network it lies in.
        let address = masked(address, prefix).ok_or_else(invalid)?;
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl TryFrom<String> for Network {
    type Error = InvalidNetwork;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_what_their_prefix_says() {
        let check = |network: &str, address: &str, expect: bool| {
            let network: Network = network.parse().unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), expect, "{network} {address}");
        };
        check("10.0.0.0/8", "10.255.0.1", true);
        check("10.0.0.0/8", "11.0.0.1", false);
        check("10.1.2.3/8", "10.9.9.9", true);
        check("10.1.2.3", "10.1.2.3", true);
        check("10.1.2.3", "10.1.2.4", false);
        check("0.0.0.0/0", "203.0.113.9", true);
        check("0.0.0.0/0", "2001:db8::1", false);
        check("10.0.0.0/8", "::ffff:10.0.0.1", true);
        check("fd00::/8", "fd12::1", true);
        check("::/0", "2001:db8::1", true);
        check("::/0", "10.0.0.1", false);
        check("2001:db8::/127", "2001:db8::1", true);
        check("2001:db8::/127", "2001:db8::2", false);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in ["", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "::/129", "example.org", "10.0.0/8"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn private_networks_are_written_right() {
        let text: Vec<String> = Network::private().iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]);
    }
}
