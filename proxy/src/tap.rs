//! Taps: who wants to see single requests and connections, and what they get.
//!
//! Nobody tapping costs a request one relaxed load. While somebody does, a request is looked at when its head is
//! there: only one that can still match is witnessed ([`witness`]), and judged again when its record closes. What
//! matches passes the tap's own limits ([`outlet`]) and waits there until the control thread fetches it.
//! Taps belong to the stream from control they came over, and end with it.

pub mod matcher;
pub mod outlet;
pub mod witness;

use crate::limits;
use arc_swap::ArcSwap;
use matcher::Matcher;
use mesh_api::tap::{TapEvent, TapOrder};
use mesh_api::wire::ProxyMessage;
use outlet::Outlet;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// All taps of a proxy.
#[derive(Debug, Default)]
pub struct Taps {
    on: AtomicBool,
    list: ArcSwap<Vec<Arc<Tap>>>,
    /// Held while the list changes.
    changing: Mutex<()>,
}

/// One tap.
#[derive(Debug)]
pub struct Tap {
    /// What it is interested in.
    pub matcher: Matcher,
    /// Header fields are wanted.
    pub headers: bool,
    /// Bodies are wanted.
    pub bodies: bool,
    /// Secrets may be shown.
    pub secrets: bool,
    id: u64,
    outlet: Arc<Mutex<Outlet>>,
}

impl Taps {
    /// True if there are any. Whoever asks does so for every request.
    pub fn on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// All of them, as of now.
    pub fn now(&self) -> Arc<Vec<Arc<Tap>>> {
        self.list.load_full()
    }

    /// Begins a tap, or changes what a running one is interested in; says why not.
    pub fn start(&self, order: TapOrder, now: Instant) -> Result<(), String> {
        let TapOrder { id, filter, from, to, max_rps, sample, headers, bodies, secrets } = order;
        let filter = filter.parse().map_err(|error| format!("this proxy cannot read the filter: {error}"))?;
        let matcher = Matcher::new(filter, from, to)?;
        let _changing = self.changing.lock();
        let mut list = Vec::clone(&self.list.load());
        let running = list.iter().position(|tap| tap.id == id).map(|at| list.swap_remove(at));
        if list.len() >= limits::TAPS {
            return Err(format!("{} taps are on already", limits::TAPS));
        }
        let outlet = match running {
            Some(running) => running.outlet.clone(),
            None => Arc::new(Mutex::new(Outlet::new(max_rps, sample, now)?)),
        };
        list.push(Arc::new(Tap { matcher, headers, bodies, secrets, id, outlet }));
        self.replace(list);
        Ok(())
    }

    /// Ends a tap; returns what it still has to tell.
    pub fn stop(&self, id: u64) -> Vec<ProxyMessage> {
        let _changing = self.changing.lock();
        let mut list = Vec::clone(&self.list.load());
        let stopped = list.iter().position(|tap| tap.id == id).map(|at| list.swap_remove(at));
        self.replace(list);
        let mut messages: Vec<_> = stopped.iter().filter_map(|tap| tap.due()).collect();
        messages.push(ProxyMessage::TapEnded { id, refusal: None });
        messages
    }

    /// Ends all taps: nobody is there to be told.
    pub fn stop_all(&self) {
        let _changing = self.changing.lock();
        self.replace(Vec::new());
    }

    /// What taps have to tell.
    pub fn due(&self) -> Vec<ProxyMessage> {
        self.list.load().iter().filter_map(|tap| tap.due()).collect()
    }

    fn replace(&self, list: Vec<Arc<Tap>>) {
        self.on.store(!list.is_empty(), Ordering::Relaxed);
        self.list.store(Arc::new(list));
    }
}

impl Tap {
    /// Tells what matches, within the tap's limits; what exceeds them is counted.
    pub fn offer(&self, now: Instant, event: impl FnOnce() -> TapEvent) {
        let mut outlet = self.outlet.lock();
        if outlet.admits(now) {
            outlet.put(event());
        }
    }

    fn due(&self) -> Option<ProxyMessage> {
        let (events, left_out) = self.outlet.lock().take();
        let something = !events.is_empty() || left_out.total() > 0;
        something.then_some(ProxyMessage::Tap { id: self.id, events, left_out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::tap::TapLeftOut;

    fn order(id: u64, filter: &str) -> TapOrder {
        TapOrder {
            id,
            filter: filter.to_owned(),
            from: None,
            to: None,
            max_rps: 2,
            sample: 1.0,
            headers: false,
            bodies: false,
            secrets: false,
        }
    }

    #[test]
    fn taps_come_and_go_within_their_number() {
        let (taps, now) = (Taps::default(), Instant::now());
        assert!(!taps.on());
        for id in 0..limits::TAPS as u64 {
            taps.start(order(id, ""), now).unwrap();
        }
        assert!(taps.on());
        assert!(taps.start(order(99, ""), now).unwrap_err().contains("on already"));
        taps.start(order(3, "status=5xx"), now).unwrap();
        assert_eq!(taps.now().len(), limits::TAPS);
        assert_eq!(taps.stop(3), [ProxyMessage::TapEnded { id: 3, refusal: None }]);
        assert_eq!(taps.stop(3), [ProxyMessage::TapEnded { id: 3, refusal: None }]);
        taps.stop_all();
        assert!(!taps.on() && taps.now().is_empty());
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let taps = Taps::default();
        let check = |order: TapOrder, expect: &str| {
            let error = taps.start(order, Instant::now()).unwrap_err();
            assert!(error.contains(expect), "{error}");
        };
        check(order(1, "colour=red"), "cannot read the filter: at character 1");
        check(order(1, "from=deployment/web"), "no addresses");
        check(TapOrder { max_rps: 0, ..order(1, "") }, "max_rps");
        check(TapOrder { max_rps: u32::MAX, ..order(1, "") }, "max_rps");
        check(TapOrder { sample: 0.0, ..order(1, "") }, "sample");
        check(TapOrder { sample: f64::NAN, ..order(1, "") }, "sample");
        assert!(!taps.on());
    }

    #[test]
    fn a_change_of_the_filter_keeps_the_count() {
        let (taps, now) = (Taps::default(), Instant::now());
        taps.start(order(1, ""), now).unwrap();
        for _ in 0..5 {
            taps.now()[0].offer(now, outlet::tests::event);
        }
        taps.start(order(1, "status=5xx"), now).unwrap();
        taps.now()[0].offer(now, outlet::tests::event);
        let due = taps.due();
        let [ProxyMessage::Tap { id: 1, events, left_out }] = &due[..] else { panic!("{due:?}") };
        assert_eq!((events.len(), *left_out), (2, TapLeftOut { rate_limited: 4, ..TapLeftOut::default() }));
        assert!(taps.due().is_empty());
    }
}
