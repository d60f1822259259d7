//! What the tap screen knows: the latest single requests of one subject, bounded.

use crate::top::account::Lines;
use crate::top::filter::{Facts, Filter};
use crate::top::state::Subject;
use mesh_api::golden::{Carried, Direction};
use mesh_api::tap::filter::{KINDS, Place, TapFilter};
use mesh_api::tap::pattern::Glob;
use mesh_api::tap::{TapEnd, TapEvent, TapMessage, TapStatus};
use std::collections::VecDeque;
use std::sync::Arc;

/// Requests that are kept; older ones are forgotten.
pub const KEPT: usize = 1000;

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
    /// How the tap itself fares, as control says.
    pub status: TapStatus,
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
    pub fn push(&mut self, message: TapMessage) {
        match message {
            TapMessage::Unknown => {}
            TapMessage::Status(status) => self.status = status,
            TapMessage::Event(event) => {
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

/// The end of an event at which the tapped proxy does not stand.
pub fn peer(event: &TapEvent) -> &TapEnd {
    match event.direction {
        Direction::Inbound => &event.source,
        Direction::Outbound => &event.destination,
    }
}

/// What an end is called: its workload, else its address.
pub fn name_of(end: &TapEnd) -> String {
    end.workload.as_ref().map_or_else(|| end.address.to_string(), |workload| workload.name.clone())
}

/// True if what the subject's workload saw concerns the subject.
fn concerns(event: &TapEvent, subject: &Subject) -> bool {
    let id = &subject.key.id;
    let inbound = event.direction == Direction::Inbound;
    match subject.lines {
        Lines::Workloads => true,
        Lines::Edges => inbound && subject.key.from == event.source.workload,
        Lines::Routes => match &event.http {
            // gRPC's rows have no method, its requests are all POST.
            Some(http) => inbound && http.route == id.route && (id.method.is_empty() || http.method == id.method),
            None => inbound && id.route.is_empty(),
        },
    }
}

/// What control is asked to tell of a subject.
pub fn filter_of(subject: &Subject) -> TapFilter {
    let id = &subject.key.id;
    let mut filter = TapFilter::default();
    match (subject.lines, &subject.key.from) {
        (Lines::Workloads, _) => return filter,
        (Lines::Edges, Some(from)) if KINDS.contains(&from.kind.as_str()) => {
            let namespace = Some(from.namespace.clone());
            filter.from = Some(Place::Resource { namespace, kind: from.kind.clone(), name: from.name.clone() });
        }
        (Lines::Edges, _) => {}
        (Lines::Routes, _) if id.route.is_empty() => filter.protocols = vec![Carried::Tcp],
        (Lines::Routes, _) => {
            filter.route = Some(Glob::new(id.route.clone()));
            filter.methods.extend(Some(id.method.clone()).filter(|method| !method.is_empty()));
        }
    }
    filter.direction = Some(Direction::Inbound);
    filter
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::golden::RowId;
    use crate::top::account::Key;
    use mesh_api::WorkloadRef;
    use mesh_api::golden::TlsStatus;
    use mesh_api::tap::{TapEnding, TapHttp, TapKind, TapLeftOut};

    /// A request that web sent to catalog.
    pub(crate) fn event(at_ms: u64, path: &str, status: u16, duration_us: u64) -> TapEvent {
        let end = |name: &str, address: [u8; 4], port: u16| TapEnd {
            address: (address, port).into(),
            workload: Some(WorkloadRef::new("shop", "deployment", name)),
            pod: Some(format!("{name}-5d4f-x2x")),
            identity: Some(mesh_api::SpiffeId::new("cluster.local", "shop", name)),
        };
        TapEvent {
            at_ms,
            event: TapKind::Request,
            direction: Direction::Inbound,
            carried: Carried::Http,
            source: end("web", [10, 244, 0, 7], 41_000),
            destination: end("catalog", [10, 244, 0, 9], 8080),
            service: None,
            tls: TlsStatus::Mutual,
            http: Some(TapHttp {
                method: "GET".into(),
                authority: "catalog".into(),
                path: path.into(),
                version: "HTTP/1.1".into(),
                route: "/products/{id}".into(),
                status: Some(status),
                first_byte_us: Some(duration_us / 2),
                ..TapHttp::default()
            }),
            error: None,
            ending: Some(TapEnding::Orderly),
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
            tap.push(TapMessage::Event(Box::new(event(number, "/products/1", 200, 900))));
        }
        let left_out = TapLeftOut { rate_limited: 7, ..TapLeftOut::default() };
        tap.push(TapMessage::Status(TapStatus { left_out, ..TapStatus::default() }));
        assert_eq!((tap.seen, tap.events.len(), tap.status.left_out.total()), (1200, KEPT, 7));
        assert_eq!(tap.events[0].number, 1200, "the newest comes first");
        tap.begin(subject("/products/{id}"));
        assert_eq!(tap.seen, 1200, "the same subject goes on");
        tap.begin(subject("/other"));
        tap.push(TapMessage::Event(Box::new(event(1, "/products/1", 200, 900))));
        assert_eq!((tap.seen, tap.status.left_out.total()), (0, 0));
    }

    #[test]
    fn the_cursor_stays_with_its_request() {
        let mut tap = Tap::default();
        tap.begin(subject("/products/{id}"));
        let push = |tap: &mut Tap, status| tap.push(TapMessage::Event(Box::new(event(1, "/products/1", status, 900))));
        push(&mut tap, 200);
        push(&mut tap, 500);
        tap.selected = Some(2);
        push(&mut tap, 200);
        let all = Filter::default();
        assert_eq!(tap.cursor(&tap.lines(&all)), 1);
        let failed = Filter::read("status>=500").unwrap();
        assert_eq!((tap.lines(&failed).len(), tap.cursor(&tap.lines(&failed))), (1, 0));
    }

    #[test]
    fn control_is_asked_for_no_more_than_is_shown() {
        let asked = |subject: &Subject| filter_of(subject).to_string();
        assert_eq!(asked(&subject("/products/{id}")), "direction=inbound method=GET route=/products/{id}");
        let edge = Subject {
            key: Key { from: Some(WorkloadRef::new("shop", "deployment", "web")), ..subject("").key },
            lines: Lines::Edges,
        };
        assert_eq!(asked(&edge), "direction=inbound from=shop/deployment/web");
        assert_eq!(asked(&Subject { lines: Lines::Workloads, ..edge }), "");
    }
}
