//! Rate limits that the proxies of a service keep together: which part of the limit each may let through.
//!
//! Every proxy says once a second how often each of its shared limits was asked for, and gets its part: a little for
//! everybody, so that whoever is called next need not wait for control, and the rest by what was asked. A control plane of
//! several replicas divides among the proxies connected to each; a replica gives away the part of the limit that its
//! proxies are of all that have it, as far as it can see.

use crate::limits;
use crate::subscriptions::Todo;
use crate::world::view::Name;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::time::Instant;

/// A whole limit, in millionths.
const WHOLE: f64 = 1_000_000.0;
/// The part of a limit that all its proxies have alike, whatever they are asked for.
const EVEN: f64 = 0.1;
/// Weight of the last second in the average of what is asked.
const NEWS: f64 = 0.5;
/// A proxy is told of a change of its part by more than this, of what it had.
const WORTH_TELLING: f64 = 0.02;

/// All shared limits.
#[derive(Debug, Default)]
pub struct Shares {
    groups: Mutex<HashMap<String, Group>>,
    links: AtomicU64,
}

/// The proxies that keep one limit.
#[derive(Debug, Default)]
struct Group {
    members: BTreeMap<(Name, u64), Member>,
    divided: Option<Instant>,
}

#[derive(Debug)]
struct Member {
    /// Requests a second, on average.
    asked: f64,
    /// The part it was told, in millionths.
    told: Option<u32>,
    todo: Arc<Todo>,
}

/// A proxy's place in the groups of its limits; it ends when this is dropped.
#[derive(Debug)]
pub struct Link {
    shares: Arc<Shares>,
    pod: Name,
    id: u64,
    todo: Arc<Todo>,
    limits: Mutex<Vec<String>>,
}

impl Shares {
    /// A proxy has connected.
    pub fn link(self: &Arc<Self>, pod: &Name, todo: Arc<Todo>) -> Link {
        let id = self.links.fetch_add(1, Ordering::Relaxed);
        Link { shares: self.clone(), pod: pod.clone(), id, todo, limits: Mutex::default() }
    }
}

impl Link {
    /// A proxy tells how often its shared limits were asked for in `span_ms`. `of` says how many proxies have such a limit
    /// in the whole mesh, `None` for one that the proxy should not have.
    pub fn receive(
        &self,
        asked: &BTreeMap<String, u64>,
        span_ms: u64,
        of: impl Fn(&str) -> Option<usize>,
        now: Instant,
    ) {
        let mut groups = self.shares.groups.lock();
        let mut limits = self.limits.lock();
        limits.retain(|limit| {
            let keeps = asked.contains_key(limit);
            if !keeps {
                leave(&mut groups, limit, &self.pod, self.id);
            }
            keeps
        });
        for (limit, asked) in asked.iter().take(limits::SHARED_LIMITS) {
            let per_second = *asked as f64 * 1000.0 / span_ms.max(1) as f64;
            let known = limits.contains(limit);
            let due = groups.get(limit).and_then(|group| group.divided);
            let due = !known || due.is_none_or(|at| now.saturating_duration_since(at) >= limits::SHARE_INTERVAL);
            // Looked up only when there is something to divide: it reads the world.
            let all = if due { of(limit) } else { None };
            if !known {
                if all.is_none() {
                    continue;
                }
                limits.push(limit.clone());
            }
            let group = groups.entry(limit.clone()).or_default();
            let member = group.members.entry((self.pod.clone(), self.id)).or_insert_with(|| Member {
                asked: per_second,
                told: None,
                todo: self.todo.clone(),
            });
            member.asked += (per_second - member.asked) * NEWS;
            if let Some(all) = all {
                group.divided = Some(now);
                group.divide(limit, all);
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut groups = self.shares.groups.lock();
        for limit in self.limits.lock().drain(..) {
            leave(&mut groups, &limit, &self.pod, self.id);
        }
    }
}

/// Takes a proxy out; the others get its part when they are heard next.
fn leave(groups: &mut HashMap<String, Group>, limit: &str, pod: &Name, id: u64) {
    let Some(group) = groups.get_mut(limit) else { return };
    group.members.remove(&(pod.clone(), id));
    group.divided = None;
    if group.members.is_empty() {
        groups.remove(limit);
    }
}

impl Group {
    /// Gives each member its part, of a limit that `all` proxies have.
    fn divide(&mut self, limit: &str, all: usize) {
        let asked: Vec<f64> = self.members.values().map(|member| member.asked).collect();
        for (member, part) in self.members.values_mut().zip(parts(&asked, all)) {
            let before = member.told.map_or(f64::INFINITY, f64::from);
            if (f64::from(part) - before).abs() > before * WORTH_TELLING || member.told.is_none() {
                member.told = Some(part);
                member.todo.add(|due| {
                    due.shares.insert(limit.to_owned(), part);
                });
            }
        }
    }
}

/// The part of each of these proxies of a limit that `all` proxies have, in millionths: never more than the whole together.
fn parts(asked: &[f64], all: usize) -> Vec<u32> {
    let ours = asked.len() as f64 / all.max(asked.len()).max(1) as f64;
    let sum: f64 = asked.iter().sum();
    let alike = 1.0 / asked.len().max(1) as f64;
    let by_need = |asked: f64| if sum > 0.0 { asked / sum } else { alike };
    asked.iter().map(|asked| (ours * WHOLE * (EVEN * alike + (1.0 - EVEN) * by_need(*asked))) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn asked(limit: &str, times: u64) -> BTreeMap<String, u64> {
        [(limit.to_owned(), times)].into()
    }

    #[test]
    fn parts_follow_what_is_asked() {
        let shares = Arc::new(Shares::default());
        let todos: Vec<Arc<Todo>> = (0..2).map(|_| Arc::default()).collect();
        let link = |at: usize| shares.link(&Name::new("shop", &format!("web-{at}")), todos[at].clone());
        let told = |at: usize| todos[at].take().shares.remove("l");
        let (first, second) = (link(0), link(1));
        let mut now = Instant::now();
        first.receive(&asked("l", 90), 1000, |_| Some(2), now);
        assert_eq!(told(0), Some(500_000), "the other one has a part, though nobody has heard of it");
        second.receive(&asked("l", 10), 1000, |_| Some(2), now);
        assert_eq!((told(0), told(1)), (Some(860_000), Some(140_000)));
        first.receive(&asked("l", 90), 1000, |_| panic!("nothing is divided so soon"), now);
        for _ in 0..12 {
            now += Duration::from_secs(1);
            first.receive(&asked("l", 0), 1000, |_| Some(2), now);
            second.receive(&asked("l", 100), 1000, |_| Some(2), now);
        }
        let (one, other) = (todos[0].take().shares["l"], told(1).unwrap());
        assert!((50_000..53_000).contains(&one) && (930_000..=950_000).contains(&other), "{one} {other}");
        drop(second);
        first.receive(&asked("l", 5), 1000, |_| Some(1), now);
        assert_eq!(told(0), Some(1_000_000));
        first.receive(&BTreeMap::new(), 1000, |_| Some(1), now);
        assert!(shares.groups.lock().is_empty());
    }

    #[test]
    fn nobody_joins_a_limit_that_is_not_theirs() {
        let shares = Arc::new(Shares::default());
        let todo = Arc::<Todo>::default();
        let link = shares.link(&Name::new("shop", "web"), todo.clone());
        link.receive(&asked("other", 1), 1000, |_| None, Instant::now());
        assert!(shares.groups.lock().is_empty() && todo.take().shares.is_empty());
    }

    proptest! {
        #[test]
        fn parts_are_a_whole_at_most_and_nobody_goes_without(
            asked in proptest::collection::vec(0.0..1e9_f64, 1..60), others in 0..50_usize,
        ) {
            let all = asked.len() + others;
            let parts = parts(&asked, all);
            let sum: u64 = parts.iter().map(|part| u64::from(*part)).sum();
            let whole = (1e6 * asked.len() as f64 / all as f64) as u64;
            prop_assert!(sum <= whole + 1 && sum + 1 + asked.len() as u64 >= whole, "{sum} of {whole}");
            let least = (1e5 / all as f64) as u32;
            prop_assert!(parts.iter().all(|part| *part >= least.saturating_sub(1)), "{parts:?}");
        }
    }
}
