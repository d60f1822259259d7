//! What proxies could not use of what they were told, until they can: the reasons that statuses tell.
//!
//! A proxy that cannot use something goes on with what it had, so that what is remembered here is all that a user gets
//! to see of a change without effect.

use crate::limits;
use crate::world::view::Name;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

/// What a proxy was told about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Subject {
    /// What a service comes to at one of its addresses: its endpoints, its routes and how its traffic is carried.
    Service(Name, SocketAddr),
    /// Who may call the proxy's own pod, and how often.
    Inbound,
    /// What may leave the cluster from the proxy's own pod.
    Egress,
}

/// One case, as replicas tell each other: what, whose proxy, why.
pub type Told = (Subject, Name, String);

/// Why whose proxies do not use what.
#[derive(Debug, Default)]
pub struct Rejections(Mutex<BTreeMap<(Subject, Name), String>>);

/// Proxies that do not use something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The pod of the first.
    pub pod: Name,
    /// Why.
    pub reason: String,
    /// How many others there are.
    pub others: usize,
}

impl Rejections {
    /// A pod's proxy could not use something, for a reason. False if that was known, or there is no room for it.
    pub fn add(&self, subject: Subject, pod: &Name, reason: String) -> bool {
        let mut all = self.0.lock();
        let key = (subject, pod.clone());
        if all.get(&key) == Some(&reason) || (all.len() >= limits::REJECTIONS && !all.contains_key(&key)) {
            return false;
        }
        all.insert(key, reason);
        true
    }

    /// A pod's proxy uses something. False if that was known.
    pub fn remove(&self, subject: &Subject, pod: &Name) -> bool {
        let mut all = self.0.lock();
        // Most of the time there is nothing in it.
        !all.is_empty() && all.remove(&(subject.clone(), pod.clone())).is_some()
    }

    /// A pod's proxy no longer follows an address. False if there was nothing against it.
    pub fn unfollow(&self, address: SocketAddr, pod: &Name) -> bool {
        let mut all = self.0.lock();
        let before = all.len();
        all.retain(|(subject, by), _| by != pod || !matches!(subject, Subject::Service(_, at) if *at == address));
        all.len() != before
    }

    /// A pod's proxy is gone, and with it whatever it could not use. False if that was nothing.
    pub fn forget(&self, pod: &Name) -> bool {
        let mut all = self.0.lock();
        let before = all.len();
        all.retain(|(_, by), _| by != pod);
        all.len() != before
    }

    /// Everything, for another replica.
    pub fn all(&self) -> Vec<Told> {
        let all = self.0.lock();
        all.iter().map(|((subject, pod), reason)| (subject.clone(), pod.clone(), reason.clone())).collect()
    }

    /// Our own and what other replicas tell, as far as there is room.
    pub fn with(&self, others: Vec<Told>) -> Self {
        let sum = Self(Mutex::new(self.0.lock().clone()));
        for (subject, pod, reason) in others {
            sum.add(subject, &pod, reason);
        }
        sum
    }

    /// Who does not use what a service comes to.
    pub fn of_service(&self, service: &Name) -> Option<Rejected> {
        let all = self.0.lock();
        let of = |(subject, _): &&(Subject, Name)| matches!(subject, Subject::Service(name, _) if name == service);
        Rejected::sum(all.iter().filter(|(key, _)| of(key)))
    }

    /// Who, of the pods `among` all, does not use what it was told of a subject that is about the pod.
    pub fn of_pods(&self, of: &Subject, among: impl Fn(&Name) -> bool) -> Option<Rejected> {
        let all = self.0.lock();
        Rejected::sum(all.iter().filter(|((subject, pod), _)| subject == of && among(pod)))
    }
}

impl Rejected {
    fn sum<'a>(mut all: impl Iterator<Item = (&'a (Subject, Name), &'a String)>) -> Option<Self> {
        let ((_, pod), reason) = all.next()?;
        Some(Self { pod: pod.clone(), reason: reason.clone(), others: all.count() })
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod, reason, others } = self;
        match others {
            0 => write!(f, "the proxy of {pod} cannot use it and goes on with what it had: {reason}"),
            n => write!(f, "the proxies of {pod} and {n} more cannot use it and go on with what they had: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_proxy_answers_for_itself() {
        let all = Rejections::default();
        let (web, a, b) = (Name::new("shop", "web"), Name::new("shop", "a"), Name::new("shop", "b"));
        let (http, other) = (SocketAddr::from(([10, 96, 0, 7], 80)), SocketAddr::from(([10, 96, 0, 7], 81)));
        let service = Subject::Service(web.clone(), http);
        assert!(all.add(service.clone(), &a, "too much".to_owned()));
        assert!(!all.add(service.clone(), &a, "too much".to_owned()), "nothing new");
        assert!(all.add(service.clone(), &b, "too much".to_owned()));
        assert!(all.add(Subject::Inbound, &b, "no such thing".to_owned()));
        let told = all.of_service(&web).unwrap().to_string();
        assert_eq!(told, "the proxies of shop/a and 1 more cannot use it and go on with what they had: too much");
        assert!(all.remove(&service, &a) && !all.remove(&service, &a));
        assert_eq!(all.of_service(&web).map(|rejected| (rejected.pod, rejected.others)), Some((b.clone(), 0)));
        assert!(!all.remove(&Subject::Service(web.clone(), other), &b), "another port is another matter");
        assert!(!all.unfollow(other, &b) && all.unfollow(http, &b));
        assert_eq!(all.of_service(&a), None);
        assert!(
            all.of_pods(&Subject::Inbound, |pod| *pod == b).is_some()
                && all.of_pods(&Subject::Inbound, |pod| *pod == a).is_none()
        );
        let elsewhere = Rejections::default();
        elsewhere.add(Subject::Service(web.clone(), http), &Name::new("shop", "c"), "too much".to_owned());
        let told: Vec<Told> = serde_json::from_str(&serde_json::to_string(&elsewhere.all()).unwrap()).unwrap();
        let sum = all.with(told);
        assert!(sum.of_service(&web).is_some() && sum.of_pods(&Subject::Inbound, |pod| *pod == b).is_some());
        assert_eq!(all.of_service(&web), None, "ours stay as they are");
        assert!(all.forget(&b) && !all.forget(&b));
        assert_eq!((all.of_service(&web), all.of_pods(&Subject::Inbound, |_| true)), (None, None));
    }

    #[test]
    fn there_is_an_end_to_it() {
        let all = Rejections::default();
        let pod = Name::new("shop", "a");
        for n in 0..limits::REJECTIONS {
            let service = Subject::Service(Name::new("shop", &n.to_string()), ([10, 96, 0, 7], 80).into());
            assert!(all.add(service, &pod, String::new()));
        }
        assert!(!all.add(Subject::Inbound, &pod, String::new()));
    }
}
