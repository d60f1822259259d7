//! Endpoints by the hash of a key: a ring (Karger and others: Consistent hashing and random trees, 1997) and a table
//! (Eisenbud and others: Maglev, 2016). Every proxy comes to the same answer, in this release and the next: the hash is
//! our own and depends on nothing but addresses and keys.

use crate::balance::Random;
use crate::limits;
use std::net::SocketAddr;

/// The hash of a key (FNV-1a, then mixed so that every bit counts).
pub fn hash(key: &[u8]) -> u64 {
    let fnv = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    Random::seeded(fnv).number()
}

fn seed(address: &SocketAddr) -> u64 {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(v4) => hash(&[&v4.ip().octets()[..], &port].concat()),
        SocketAddr::V6(v6) => hash(&[&v6.ip().octets()[..], &port].concat()),
    }
}

/// Endpoints on a ring, each at many points.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Point and endpoint, by point.
    points: Vec<(u64, u16)>,
    endpoints: usize,
}

impl Ring {
    /// The ring of `endpoints`, of which only the first 65,535 have a place.
    pub fn new(endpoints: &[SocketAddr]) -> Self {
        // A power of two, so that an endpoint more or less seldom changes the points of all others.
        let most = (limits::RING_POINTS / endpoints.len().max(1)).clamp(1, limits::RING_POINTS_EACH);
        let each = 1 << most.ilog2();
        let mut points = Vec::with_capacity(each * endpoints.len());
        for (at, address) in (0..u16::MAX).zip(endpoints) {
            let mut random = Random::seeded(seed(address));
            points.extend(std::iter::repeat_with(|| (random.number(), at)).take(each));
        }
        points.sort_unstable();
        Self { points, endpoints: endpoints.len() }
    }

    /// The first endpoint from the key's place on that `takes` requests.
    pub fn find(&self, key: u64, takes: impl Fn(usize) -> bool) -> Option<usize> {
        let start = self.points.partition_point(|(point, _)| *point < key);
        walk(self.points[start..].iter().chain(&self.points[..start]).map(|(_, at)| *at), self.endpoints, takes)
    }
}

/// A table of endpoints in which each has as many places as any other.
#[derive(Clone, Debug)]
pub struct Maglev {
    table: Vec<u16>,
    endpoints: usize,
}

/// Sizes of tables: primes, so that every stride visits every place.
const SIZES: [usize; 4] = [1021, 4099, 16_381, 65_537];

impl Maglev {
    /// The table of `endpoints`, of which only the first 65,535 have a place.
    pub fn new(endpoints: &[SocketAddr]) -> Self {
        let n = endpoints.len().min(usize::from(u16::MAX));
        if n == 0 {
            return Self { table: Vec::new(), endpoints: 0 };
        }
        // With a hundred places for each, no endpoint has one per cent more than another.
        let size = SIZES.into_iter().find(|size| *size >= n * 100).unwrap_or(SIZES[SIZES.len() - 1]);
        let mut strides: Vec<(usize, usize)> = endpoints[..n]
            .iter()
            .map(|address| {
                let mut random = Random::seeded(seed(address));
                (random.below(size), 1 + random.below(size - 1))
            })
            .collect();
        let mut table = vec![u16::MAX; size];
        let mut free = size;
        while free > 0 {
            for (at, (next, stride)) in (0..u16::MAX).zip(&mut strides) {
                while table[*next] != u16::MAX {
                    *next = (*next + *stride) % size;
                }
                table[*next] = at;
                free -= 1;
                if free == 0 {
                    break;
                }
            }
        }
        Self { table, endpoints: n }
    }

    /// The key's endpoint, or the first from its place on that `takes` requests.
    pub fn find(&self, key: u64, takes: impl Fn(usize) -> bool) -> Option<usize> {
        if self.table.is_empty() {
            return None;
        }
        let start = Random::seeded(key).below(self.table.len());
        walk(self.table[start..].iter().chain(&self.table[..start]).copied(), self.endpoints, takes)
    }
}

/// The first place whose endpoint takes requests. Past as many different neighbours as there are endpoints it has
/// likely been all of them.
fn walk(places: impl Iterator<Item = u16>, endpoints: usize, takes: impl Fn(usize) -> bool) -> Option<usize> {
    let mut last = None;
    let mut looked = 0;
    for at in places.map(usize::from) {
        if last == Some(at) {
            continue;
        }
        if takes(at) {
            return Some(at);
        }
        last = Some(at);
        looked += 1;
        if looked > 8 * endpoints {
            break;
        }
    }
    (0..endpoints).find(|at| takes(*at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn addresses(n: u8) -> Vec<SocketAddr> {
        (1..=n).map(|last| SocketAddr::from(([10, 0, 0, last], 80))).collect()
    }

    fn keys() -> impl Iterator<Item = u64> {
        (0..100_000_u32).map(|key| hash(&key.to_be_bytes()))
    }

    type Find = Box<dyn Fn(u64, &dyn Fn(usize) -> bool) -> Option<usize>>;

    fn both(endpoints: &[SocketAddr]) -> [(&'static str, Find); 2] {
        let (ring, maglev) = (Ring::new(endpoints), Maglev::new(endpoints));
        [
            ("ring", Box::new(move |key, takes| ring.find(key, takes))),
            ("maglev", Box::new(move |key, takes| maglev.find(key, takes))),
        ]
    }

    #[test]
    fn endpoints_get_equal_shares() {
        for n in [2_u8, 3, 7, 16] {
            for (name, find) in both(&addresses(n)) {
                let mut counts = vec![0_u32; usize::from(n)];
                for key in keys() {
                    counts[find(key, &|_| true).unwrap()] += 1;
                }
                let even = 100_000.0 / f64::from(n);
                for count in counts {
                    let off = (f64::from(count) - even).abs() / even;
                    assert!(off < 0.05, "{name} of {n}: {off}");
                }
            }
        }
    }

    #[test]
    fn keys_stay_when_an_endpoint_leaves() {
        let all = addresses(10);
        let mut left = all.clone();
        left.remove(3);
        for ((name, before), (_, after)) in both(&all).into_iter().zip(both(&left)) {
            let (mut moved, mut others) = (0, 0);
            for key in keys() {
                let (old, new) = (all[before(key, &|_| true).unwrap()], left[after(key, &|_| true).unwrap()]);
                if old != all[3] {
                    others += 1;
                    moved += u32::from(old != new);
                }
            }
            // A ring moves none of them, a table few.
            let bound = if name == "ring" { 0.0 } else { 0.1 };
            let share = f64::from(moved) / f64::from(others);
            assert!(share <= bound, "{name}: {share}");
        }
    }

    proptest! {
        #[test]
        fn an_endpoint_is_found_if_any_takes_requests(
            n in 0_u8..40, taking in proptest::collection::btree_set(0_usize..40, 0..6), key in any::<u64>(),
        ) {
            let endpoints = addresses(n);
            let taking: BTreeSet<usize> = taking.into_iter().filter(|at| *at < endpoints.len()).collect();
            for (_, find) in both(&endpoints) {
                let found = find(key, &|at| taking.contains(&at));
                prop_assert_eq!(found.is_some(), !taking.is_empty());
                prop_assert!(found.is_none_or(|at| taking.contains(&at)));
            }
        }
    }
}
