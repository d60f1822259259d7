//! Which addresses the node, pods and services have (pure).
//!
//! Everything has an IPv4 address and, unless the kernel knows no IPv6, an IPv6 one beside it: from ranges that are
//! nobody else's (RFC 1918, RFC 4193), and that no packet leaves the sandbox with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The node's IPv4 address.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// Range that pods get their IPv4 addresses from.
pub(super) const POD_RANGE: Range<Ipv4Addr> = Range { first: Ipv4Addr::new(10, 244, 0, 0), prefix: 16 };
/// Range of IPv4 cluster IPs.
pub const SERVICE_RANGE: Range<Ipv4Addr> = Range { first: Ipv4Addr::new(10, 96, 0, 0), prefix: 12 };
/// The node's IPv6 address.
pub(super) const NODE_ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0x6573, 0x6800, 0x244, 0, 0, 0, 1);
/// Range that pods get their IPv6 addresses from.
pub(super) const POD_RANGE6: Range<Ipv6Addr> =
    Range { first: Ipv6Addr::new(0xfd6d, 0x6573, 0x6800, 0x244, 0, 0, 0, 0), prefix: 64 };
/// Range of IPv6 cluster IPs.
pub const SERVICE_RANGE6: Range<Ipv6Addr> =
    Range { first: Ipv6Addr::new(0xfd6d, 0x6573, 0x6800, 0x96, 0, 0, 0, 0), prefix: 112 };

/// The addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range<A> {
    /// First address.
    pub first: A,
    /// How many bits are the same.
    pub prefix: u8,
}

impl<A: std::fmt::Display> std::fmt::Display for Range<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl Range<Ipv4Addr> {
    /// True if the address is one of them.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (u32::from(address) ^ u32::from(self.first)).leading_zeros() >= u32::from(self.prefix)
    }

    /// Ones for the bits that are the same, network order.
    pub fn mask(self) -> Vec<u8> {
        (u32::MAX << (32 - u32::from(self.prefix))).to_be_bytes().into()
    }
}

impl Range<Ipv6Addr> {
    /// True if the address is one of them.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        (u128::from(address) ^ u128::from(self.first)).leading_zeros() >= u32::from(self.prefix)
    }

    /// Ones for the bits that are the same, network order.
    pub fn mask(self) -> Vec<u8> {
        (u128::MAX << (128 - u32::from(self.prefix))).to_be_bytes().into()
    }
}

/// True for addresses of pods and of services.
pub(super) fn is_inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => POD_RANGE.contains(v4) || SERVICE_RANGE.contains(v4),
        IpAddr::V6(v6) => POD_RANGE6.contains(v6) || SERVICE_RANGE6.contains(v6),
    }
}

/// What a pod, or the node, is reached by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// Always there, and the one that counts where there is room for one.
    pub(crate) v4: Ipv4Addr,
    /// Not there if the kernel has no IPv6.
    pub(crate) v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Of something not connected yet.
    pub(crate) const NONE: Self = Self { v4: Ipv4Addr::UNSPECIFIED, v6: None };

    /// The node's.
    pub(crate) fn of_node(ipv6: bool) -> Self {
        Self { v4: NODE_ADDRESS, v6: ipv6.then_some(NODE_ADDRESS6) }
    }

    /// The pod's with this number, counted from the start of the range.
    pub(crate) fn of_pod(number: u16, ipv6: bool) -> Self {
        let v4 = Ipv4Addr::from(u32::from(POD_RANGE.first) | u32::from(number));
        let v6 = Ipv6Addr::from(u128::from(POD_RANGE6.first) | u128::from(number));
        Self { v4, v6: ipv6.then_some(v6) }
    }

    /// The node's, seen from a pod that has these.
    pub(crate) fn host(self) -> Self {
        Self::of_node(self.v6.is_some())
    }

    /// All, the one that counts first.
    pub(crate) fn all(self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(IpAddr::V4(self.v4)).chain(self.v6.map(IpAddr::V6))
    }

    /// All, as the downward API writes them.
    pub(crate) fn list(self) -> String {
        self.all().map(|address| address.to_string()).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_contain_their_addresses() {
        assert!(SERVICE_RANGE.contains("10.111.255.255".parse().unwrap()));
        assert!(!SERVICE_RANGE.contains("10.112.0.0".parse().unwrap()));
        assert_eq!(SERVICE_RANGE.mask(), [255, 240, 0, 0]);
        assert_eq!(SERVICE_RANGE.to_string(), "10.96.0.0/12");
        assert!(SERVICE_RANGE6.contains("fd6d:6573:6800:96::ffff".parse().unwrap()));
        assert!(!SERVICE_RANGE6.contains("fd6d:6573:6800:96::1:0".parse().unwrap()));
        assert_eq!(POD_RANGE6.mask(), [[255; 8], [0; 8]].concat());
        for (address, inside) in
            [("10.244.3.4", true), ("10.245.0.1", false), ("fd6d:6573:6800:244::9", true), ("fd6d::1", false)]
        {
            assert_eq!(is_inside(address.parse().unwrap()), inside, "{address}");
        }
    }

    #[test]
    fn pods_have_an_address_of_each_family() {
        let both = Addresses::of_pod(0x0203, true);
        assert_eq!(both.list(), "10.244.2.3,fd6d:6573:6800:244::203");
        assert_eq!(both.host().list(), "10.244.0.1,fd6d:6573:6800:244::1");
        assert_eq!(Addresses::of_pod(0x0203, false).list(), "10.244.2.3");
    }
}
