//! The course of one request: which rule takes it, and which share of the rule's backends it falls to.

use crate::filter::{Filters, Mirror};
use crate::proxy::{Proxy, unix_s};
use crate::retry::Retries;
use crate::route::matcher::{Asked, Hit};
use crate::route::{Rule, Share};
use crate::session::{self, Token};
use crate::state::{Backend, Group, Known, Target};
use crate::timeout;
use http::header::{HeaderMap, HeaderValue};
use http::{Request, StatusCode};
use mesh_api::MeshError;
use mesh_api::timeout::Timeouts;
use std::sync::Arc;

/// Who takes a request.
#[derive(Clone, Copy, Debug)]
pub enum Taken<'a> {
    /// There are no routes.
    Unjudged,
    /// This rule.
    By(&'a Rule, Hit),
    /// None of the rules.
    ByNone,
}

/// Where a request goes, and what is done to it on the way.
#[derive(Debug)]
pub struct Course<'a> {
    /// Who may answer.
    pub group: &'a Arc<Group>,
    /// The rule that says so, if one does.
    pub rule: Option<&'a Rule>,
    /// The endpoint that answers the client's session.
    pub kept: Option<&'a Arc<Backend>>,
    session: Option<Token>,
    share: Option<&'a Share>,
    prefix: usize,
}

impl<'a> Taken<'a> {
    /// Who takes this request.
    pub fn of<B>(known: &'a Known, request: &Request<B>, grpc: bool) -> Self {
        match known.table.as_deref() {
            Some(table) if table.judges_requests() => match table.take(&Asked::of(request), grpc) {
                Some((rule, hit)) => Taken::By(rule, hit),
                None => Taken::ByNone,
            },
            _ => Taken::Unjudged,
        }
    }

    /// What the request is counted under, if a rule says so.
    pub fn name(&self) -> Option<Arc<str>> {
        if let Taken::By(rule, _) = self { Some(rule.name.clone()) } else { None }
    }

    /// A redirect that answers in place of all backends.
    pub fn redirect<B>(&self, target: &Target, request: &Request<B>) -> Option<(StatusCode, HeaderValue)> {
        let Taken::By(rule, hit) = self else { return None };
        redirect(&rule.filters, hit.prefix, target, request)
    }
}

impl<'a> Course<'a> {
    /// The course of a request that `taken` takes.
    pub fn set<B>(proxy: &Proxy, known: &'a Known, taken: Taken<'a>, request: &Request<B>) -> Result<Self, MeshError> {
        let own = Self::unrouted(known);
        let (rule, hit) = match taken {
            Taken::Unjudged => return Ok(own),
            Taken::ByNone => return Err(MeshError::NoRoute),
            Taken::By(rule, hit) => (rule, hit),
        };
        let session = rule.session.as_ref().and_then(|said| session::of(said, request.headers(), unix_s()));
        let kept = session.and_then(|token| session::find(&token, rule, &known.groups));
        let share = match kept {
            Some((at, _)) => rule.shares.get(at),
            None => rule.share(|| proxy.random.lock().number()),
        };
        let share = share.ok_or(MeshError::NoBackend)?;
        let group = match share.service.and_then(|service| known.groups.get(service)) {
            Some(group) => group,
            // Only a redirect can do without.
            None if share.filters.redirect.is_some() => own.group,
            None => return Err(MeshError::NoBackend),
        };
        let kept = kept.map(|(_, backend)| backend);
        Ok(Self { group, rule: Some(rule), kept, session, share: Some(share), prefix: hit.prefix })
    }

    /// The course of what no rule leads: to the destination's own endpoints.
    pub fn unrouted(known: &'a Known) -> Self {
        Self { group: &known.group, rule: None, kept: None, session: None, share: None, prefix: 0 }
    }

    /// The course of an opaque connection that a rule takes.
    pub fn of_connection(proxy: &Proxy, known: &'a Known, rule: &'a Rule) -> Result<Self, MeshError> {
        let share = rule.share(|| proxy.random.lock().number());
        let group = share.and_then(|share| known.groups.get(share.service?)).ok_or(MeshError::NoBackend)?;
        Ok(Self { group, rule: Some(rule), share, ..Self::unrouted(known) })
    }

    /// A redirect that answers in place of the backend.
    pub fn redirect<B>(&self, target: &Target, request: &Request<B>) -> Option<(StatusCode, HeaderValue)> {
        redirect(&self.share?.filters, self.prefix, target, request)
    }

    /// How long the request may take, as the rule says, or else the service it goes to.
    pub fn timeouts(&self) -> Timeouts {
        let policy = self.group.port.policy.as_ref().and_then(|policy| policy.timeouts);
        match (self.rule.map(|rule| rule.timeouts), policy) {
            (None, None) => Timeouts::default(),
            (rule, policy) => timeout::in_force(timeout::or(rule.unwrap_or_default(), policy.unwrap_or_default())),
        }
    }

    /// When the request is sent again, as the rule says, or else the service it goes to.
    pub fn retries(&self) -> Option<&'a Retries> {
        let of_rule = self.rule.and_then(|rule| rule.retries.as_ref());
        of_rule.unwrap_or(&self.group.retries).as_deref()
    }

    /// Changes the request as the rule and its backend say.
    pub fn change_request<B>(&self, request: &mut Request<B>) {
        for filters in self.filters() {
            filters.request(request, self.prefix);
        }
    }

    /// Changes the response of `backend` as the rule and its backend say, and tells the client of its session.
    pub fn change_response(&self, backend: &Backend, headers: &mut HeaderMap) {
        if let Some(said) = self.rule.and_then(|rule| rule.session.as_ref()) {
            session::tell(said, self.session, backend, unix_s(), headers);
        }
        for filters in self.filters() {
            filters.response(headers);
        }
    }

    /// Where copies of the request go.
    pub fn mirrors(&self) -> impl Iterator<Item = &'a Mirror> {
        self.filters().flat_map(|filters| &filters.mirrors)
    }

    fn filters(&self) -> impl Iterator<Item = &'a Filters> + use<'a> {
        self.rule.map(|rule| &rule.filters).into_iter().chain(self.share.map(|share| &share.filters))
    }
}

fn redirect<B>(
    filters: &Filters,
    prefix: usize,
    target: &Target,
    request: &Request<B>,
) -> Option<(StatusCode, HeaderValue)> {
    let redirect = filters.redirect.as_ref()?;
    let own = target.address.ip().to_string();
    let host = Some(Asked::of(request).host).filter(|host| !host.is_empty()).unwrap_or(&own);
    let location = redirect.location(request.uri(), host, target.address.port(), prefix)?;
    Some((redirect.status, location))
}
