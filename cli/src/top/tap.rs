//! What the tap screen knows: the latest single requests of one subject, bounded.

use crate::top::account::Lines;
use crate::top::filter::{Facts, Filter};
use crate::top::state::Subject;
use mesh_api::golden::Direction;
use mesh_api::tap::TapEvent;
use std::collections::VecDeque;
use std::sync::Arc;

/// Requests that are kept; older ones are forgotten.
pub const KEPT: usize = 1000;

/// What a stream of taps brings.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A request or connection has ended.
    Event(Box<TapEvent>),
    /// So many more were left out.
    LeftOut(u64),
}

/// How the stream fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TapLink {
    /// Nothing is asked for.
    #[default]
    Off,
    /// Asked for.
    Opening,
    /// Open.
    Live,
    /// It broke, or was refused: why, and what to do.
    Failed(String, Option<String>),
}

/// A request, and its number among all that came.
#[derive(Clone, Debug, PartialEq)]
pub struct Tapped {
    /// Number, counted from 1.
    pub number: u64,
    /// What the proxy saw.
    pub event: TapEvent,
}

/// The latest single requests.
#[derive(Clone, Debug, Default)]
pub struct Tap {
    /// Of what.
    pub subject: Option<Subject>,
    /// How the stream fares.
    pub link: TapLink,
    /// The requests, newest first.
    pub events: VecDeque<Arc<Tapped>>,
    /// How many came.
    pub seen: u64,
    /// How many more were left out, by the proxies or on the way.
    pub left_out: u64,
    /// The request under the cursor, by number; none: the newest.
    pub selected: Option<u64>,
    /// The first line on the screen.
    pub offset: usize,
    /// One request is shown whole.
    pub open: bool,
}

impl Tap {
    /// Begins with a subject; what was seen of another is forgotten.
    pub fn begin(&mut self, subject: Subject) {
        if self.subject.as_ref() != Some(&subject) {
            *self = Self { subject: Some(subject), link: TapLink::Opening, ..Self::default() };
        }
    }

    /// Takes in what came.
    pub fn push(&mut self, item: Item) {
        match item {
            Item::LeftOut(count) => self.left_out += count,
            Item::Event(event) => {
                if self.subject.as_ref().is_some_and(|subject| concerns(&event, subject)) {
                    self.seen += 1;
                    self.events.push_front(Arc::new(Tapped { number: self.seen, event: *event }));
                    self.events.truncate(KEPT);
                }
            }
        }
    }

    /// The requests that a filter lets through, newest first.
    pub fn lines(&self, filter: &Filter) -> Vec<&Arc<Tapped>> {
        self.events.iter().filter(|tapped| filter.passes(Facts::Event(&tapped.event))).collect()
    }

    /// The position of the cursor among the requests that a filter lets through. A request that has gone gives the
    /// cursor to the next older one that is left.
    pub fn cursor(&self, lines: &[&Arc<Tapped>]) -> usize {
        let Some(number) = self.selected else { return 0 };
        lines.iter().position(|tapped| tapped.number <= number).unwrap_or(lines.len().saturating_sub(1))
    }
}


/// True if what the subject's workload saw concerns the subject.
fn concerns(event: &TapEvent, subject: &Subject) -> bool {
    let id = &subject.key.id;
    match subject.lines {
        Lines::Workloads => true,
        Lines::Edges => {
            event.direction == Direction::Inbound && subject.key.from.as_ref().is_none_or(|from| *from == event.peer)
        }
        Lines::Routes => {
            event.direction == Direction::Inbound
                && event.route == id.route
                // gRPC's rows have no method, its requests are all POST.
                && (id.method.is_empty() || event.method == id.method)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::golden::RowId;
    use crate::top::account::Key;
    use mesh_api::WorkloadRef;
    use mesh_api::golden::{Carried, TlsStatus};

    /// A request that web sent to catalog.
    pub(crate) fn event(at_ms: u64, path: &str, status: u16, duration_us: u64) -> TapEvent {
        TapEvent {
            at_ms,
            direction: Direction::Inbound,
            carried: Carried::Http,
            source: ([10, 244, 0, 7], 41_000).into(),
            destination: ([10, 244, 0, 9], 8080).into(),
            peer: WorkloadRef::new("shop", "deployment", "web"),
            peer_identity: Some(mesh_api::SpiffeId::new("cluster.local", "shop", "web")),
            service: None,
            tls: TlsStatus::Mutual,
            method: "GET".into(),
            path: path.into(),
            route: "/products/{id}".into(),
            status: Some(status),
            grpc_status: None,
            error: None,
            duration_us,
            read_bytes: 0,
            write_bytes: 812,
        }
    }

    fn subject(route: &str) -> Subject {
        let id = RowId { name: "catalog".into(), route: route.into(), method: "GET".into(), ..RowId::default() };
        Subject { key: Key { id, from: None }, lines: Lines::Routes }
    }

    #[test]
    fn only_the_subject_is_kept_and_not_for_ever() {
        let mut tap = Tap::default();
        tap.begin(subject("/products/{id}"));
        for number in 0..1200 {
            tap.push(Item::Event(Box::new(event(number, "/products/1", 200, 900))));
        }
        tap.push(Item::LeftOut(7));
        assert_eq!((tap.seen, tap.events.len(), tap.left_out), (1200, KEPT, 7));
        assert_eq!(tap.events[0].number, 1200, "the newest comes first");
        tap.begin(subject("/products/{id}"));
        assert_eq!(tap.seen, 1200, "the same subject goes on");
        tap.begin(subject("/other"));
        tap.push(Item::Event(Box::new(event(1, "/products/1", 200, 900))));
        assert_eq!((tap.seen, tap.left_out), (0, 0));
    }

    #[test]
    fn the_cursor_stays_with_its_request() {
        let mut tap = Tap::default();
        tap.begin(subject("/products/{id}"));
        let push = |tap: &mut Tap, status| tap.push(Item::Event(Box::new(event(1, "/products/1", status, 900))));
        push(&mut tap, 200);
        push(&mut tap, 500);
        tap.selected = Some(2);
        push(&mut tap, 200);
        let all = Filter::default();
        assert_eq!(tap.cursor(&tap.lines(&all)), 1);
        let failed = Filter::read("status>=500").unwrap();
        assert_eq!((tap.lines(&failed).len(), tap.cursor(&tap.lines(&failed))), (1, 0));
    }
}
