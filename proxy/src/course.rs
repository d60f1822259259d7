//! The course of one request: which rule takes it, and which share of the rule's backends it falls to.

use crate::filter::{Filters, Mirror};
use crate::proxy::Proxy;
use crate::route::matcher::{Asked, Hit};
use crate::route::{Rule, Share};
use crate::state::{Group, Known, Target};
use http::header::{HeaderMap, HeaderValue};
use http::{Request, StatusCode};
use mesh_api::MeshError;
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
    pub fn set(proxy: &Proxy, known: &'a Known, taken: Taken<'a>) -> Result<Self, MeshError> {
        let (rule, hit) = match taken {
            Taken::Unjudged => return Ok(Self { group: &known.group, rule: None, share: None, prefix: 0 }),
            Taken::ByNone => return Err(MeshError::NoRoute),
            Taken::By(rule, hit) => (rule, hit),
        };
        let share = rule.share(|| proxy.random.lock().number()).ok_or(MeshError::NoBackend)?;
        let group = share.service.and_then(|service| known.groups.get(service));
        match group {
            Some(group) => Ok(Self { group, rule: Some(rule), share: Some(share), prefix: hit.prefix }),
            // Only a redirect can do without.
            None if share.filters.redirect.is_some() => {
                Ok(Self { group: &known.group, rule: Some(rule), share: Some(share), prefix: hit.prefix })
            }
            None => Err(MeshError::NoBackend),
        }
    }

    /// A redirect that answers in place of the backend.
    pub fn redirect<B>(&self, target: &Target, request: &Request<B>) -> Option<(StatusCode, HeaderValue)> {
        redirect(&self.share?.filters, self.prefix, target, request)
    }

    /// Changes the request as the rule and its backend say.
    pub fn change_request<B>(&self, request: &mut Request<B>) {
        for filters in self.filters() {
            filters.request(request, self.prefix);
        }
    }

    /// Changes the response as the rule and its backend say.
    pub fn change_response(&self, headers: &mut HeaderMap) {
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
