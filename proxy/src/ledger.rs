//! The account of what policies decide: counts by policy, and a line in the log once a minute for each policy and caller
//! (or destination), however often it is refused.

use crate::limits;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Instant;

/// What came of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Let through.
    Allow,
    /// Refused.
    Deny,
    /// Let through, and somebody wants to know.
    Audit,
}

const OUTCOMES: [(Outcome, &str); 3] = [(Outcome::Allow, "allow"), (Outcome::Deny, "deny"), (Outcome::Audit, "audit")];

/// Decisions by policy, outcome and sort of traffic, and what was said of them in the log.
#[derive(Debug)]
pub struct Ledger {
    /// The sorts of traffic, as their labels.
    sorts: [&'static str; 3],
    counts: Mutex<HashMap<String, [[u64; 3]; 3]>>,
    said: Mutex<HashMap<String, Said>>,
}

/// A line in the log.
#[derive(Clone, Copy, Debug)]
struct Said {
    at: Instant,
    /// How many there were since that it did not speak of.
    since: u64,
}

impl Ledger {
    /// An empty account of these sorts of traffic.
    pub fn new(sorts: [&'static str; 3]) -> Self {
        Self { sorts, counts: Mutex::default(), said: Mutex::default() }
    }

    /// Every count above zero: decision, sort, policy.
    pub fn counts(&self) -> Vec<(&'static str, &'static str, String, u64)> {
        let counts = self.counts.lock();
        let mut all = Vec::new();
        for (policy, by_outcome) in counts.iter() {
            for ((_, decision), by_sort) in OUTCOMES.iter().zip(by_outcome) {
                for (sort, n) in self.sorts.iter().zip(by_sort).filter(|(_, n)| **n > 0) {
                    all.push((*decision, *sort, policy.clone(), *n));
                }
            }
        }
        all.sort_unstable();
        all
    }

    /// Counts a decision of a policy about traffic of the sort with this label.
    pub fn count(&self, outcome: Outcome, sort: &str, policy: &str) {
        let sort = self.sorts.iter().position(|known| *known == sort).unwrap_or(self.sorts.len() - 1);
        let mut counts = self.counts.lock();
        let known = counts.contains_key(policy);
        let policy = if known || counts.len() < limits::POLICIES_COUNTED { policy } else { "other" };
        if !counts.contains_key(policy) {
            counts.insert(policy.to_owned(), Default::default());
        }
        if let Some(by_outcome) = counts.get_mut(policy) {
            by_outcome[outcome as usize][sort] += 1;
        }
    }

    /// If it is time for a line about an outcome, a policy and whom it concerns: how many there were since the last one
    /// without one.
    pub fn is_due(&self, key: String, now: Instant) -> Option<u64> {
        let mut said = self.said.lock();
        if said.len() >= limits::POLICY_LOG_LINES && !said.contains_key(&key) {
            said.retain(|_, said| now.saturating_duration_since(said.at) < limits::POLICY_LOG_EVERY);
        }
        let full = said.len() >= limits::POLICY_LOG_LINES && !said.contains_key(&key);
        let key = if full { "others".to_owned() } else { key };
        match said.get_mut(&key) {
            Some(line) if now.saturating_duration_since(line.at) < limits::POLICY_LOG_EVERY => {
                line.since += 1;
                None
            }
            Some(line) => {
                let since = line.since;
                *line = Said { at: now, since: 0 };
                Some(since)
            }
            None => {
                said.insert(key, Said { at: now, since: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        Ledger::new(["mutual", "passthrough", "none"])
    }

    #[test]
    fn decisions_are_counted_by_policy_up_to_a_limit() {
        let ledger = ledger();
        ledger.count(Outcome::Deny, "mutual", "shop/a");
        ledger.count(Outcome::Deny, "mutual", "shop/a");
        ledger.count(Outcome::Audit, "none", "shop/a");
        let expect = [("audit", "none", "shop/a".to_owned(), 1), ("deny", "mutual", "shop/a".to_owned(), 2)];
        assert_eq!(ledger.counts(), expect);
        for n in 0..limits::POLICIES_COUNTED * 2 {
            ledger.count(Outcome::Allow, "none", &format!("shop/{n}"));
        }
        let counts = ledger.counts();
        let other = counts.iter().find(|(_, _, policy, _)| policy == "other").unwrap();
        assert_eq!(other.3 as usize, limits::POLICIES_COUNTED + 1);
        assert!(counts.len() <= limits::POLICIES_COUNTED + 3);
    }

    #[test]
    fn a_line_a_minute_is_said_for_each_caller() {
        let ledger = ledger();
        let start = Instant::now();
        let due =
            |key: &str, after_s: u64| ledger.is_due(key.to_owned(), start + std::time::Duration::from_secs(after_s));
        assert_eq!(due("a", 0), Some(0));
        assert_eq!(due("a", 1), None);
        assert_eq!(due("b", 1), Some(0));
        assert_eq!(due("a", 59), None);
        assert_eq!(due("a", 60), Some(2));
        for n in 0..limits::POLICY_LOG_LINES * 2 {
            due(&n.to_string(), 61);
        }
        assert_eq!(due("one more", 62), None);
        assert!(ledger.said.lock().len() <= limits::POLICY_LOG_LINES + 1);
    }
}
