//! What policies do to one request before it is sent: refuse it because its caller asks too often, make it fail on
//! purpose, keep it waiting while too much is under way. Requests that no policy is about pay for a few comparisons.

use crate::balance::Random;
use crate::condition::Meant;
use crate::course::Course;
use crate::fault::{Faults, Throttle};
use crate::rate_limit::{Caller, Limiters};
use crate::request::Client;
use crate::state::Backend;
use crate::traffic::{Permit, Traffic};
use http::Request;
use mesh_api::fault::Fault;
use mesh_api::golden::Direction;
use mesh_api::rate_limit::RateBy;
use mesh_api::{MeshError, PortLimit, TrafficPolicy};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a request goes no further, and how that is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stop {
    /// When another try is worth it.
    pub retry_after: Option<Duration>,
    /// HTTP and gRPC status in place of the error's own.
    pub status: Option<(u16, u16)>,
    /// Nothing is answered at all.
    pub reset: bool,
}

/// How one request is carried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Carriage<'a> {
    traffic: Option<&'a Arc<Traffic>>,
    fault: Option<&'a Fault>,
    /// What keeps it at one endpoint.
    pub key: Option<u64>,
}

/// What the policy about a rule does, beside what the rule's services say.
#[derive(Debug)]
pub struct OfRule {
    /// How often requests may be made, if that is limited. Counts anew when the routes change.
    limiters: Option<Arc<Limiters>>,
    faults: Faults,
}

impl OfRule {
    /// What a policy does to the requests of a rule, if anything; an error says why it cannot.
    pub fn new(policy: &TrafficPolicy) -> Result<Option<Box<Self>>, String> {
        policy.check()?;
        let limits: Vec<PortLimit> = policy.rate_limits.iter().cloned().map(PortLimit::from).collect();
        let (limiters, faults) = (Limiters::new(&limits, None)?, Faults::new(&policy.faults)?);
        Ok((limiters.is_some() || !faults.is_empty()).then(|| Box::new(Self { limiters, faults })))
    }
}

/// What a request has until its response ends.
#[derive(Debug, Default)]
pub struct Held {
    /// The right to be under way.
    pub permit: Option<Permit>,
    /// Slows its response down.
    pub throttle: Option<Box<Throttle>>,
}

impl<'a> Carriage<'a> {
    /// How a request is carried on its course; an error says why it is not.
    pub fn of<B>(client: &Client, course: &Course<'a>, request: &Request<B>) -> Result<Self, (MeshError, Stop)> {
        let rule = course.rule.filter(|rule| rule.carriage.is_some());
        let inbound = (client.direction == Direction::Inbound).then(|| client.target.limiters()).flatten();
        let traffic = course.group.traffic.as_ref();
        if rule.is_none() && inbound.is_none() && traffic.is_none() {
            return Ok(Self::default());
        }
        let caller = Asking { client, request };
        let of_rule = rule.and_then(|rule| rule.carriage.as_deref());
        for limiters in [inbound.as_ref(), of_rule.and_then(|rule| rule.limiters.as_ref())].into_iter().flatten() {
            pass(limiters, &caller)?;
        }
        let has_some = |faults: &&Faults| !faults.is_empty();
        let of_service = traffic.map(|traffic| &traffic.faults).filter(has_some);
        let faults = of_rule.map(|rule| &rule.faults).filter(has_some).or(of_service);
        let fault = faults.and_then(|faults| faults.choose(|meant| meant.is(request), &mut client.proxy.random.lock()));
        let key = traffic.and_then(|traffic| traffic.key(request.headers(), request.uri(), client.from.ip()));
        Ok(Self { traffic, fault, key })
    }

    /// True if [`prepare`](Self::prepare) has something to do.
    pub fn is_special(&self) -> bool {
        self.fault.is_some() || self.traffic.is_some_and(|traffic| traffic.limits_requests())
    }

    /// Makes the fault that is due, and waits until the request may go.
    pub async fn prepare(&self) -> Result<Held, (MeshError, Stop)> {
        if let Some(fault) = self.fault {
            if let Some(delay) = fault.delay {
                tokio::time::sleep(delay.duration()).await;
            }
            let status = fault.abort.map(|abort| (abort.status, abort.grpc_status));
            if fault.reset || status.is_some() {
                return Err((MeshError::FaultInjected, Stop { status, reset: fault.reset, ..Stop::default() }));
            }
        }
        let permit = match self.traffic {
            Some(traffic) => traffic.admit().await.map_err(|error| (error, Stop::default()))?,
            None => None,
        };
        let throttle = self.fault.and_then(|fault| fault.bytes_per_second).map(Throttle::new).map(Box::new);
        Ok(Held { permit, throttle })
    }

    /// True if a request of a session may go to its endpoint.
    pub fn keeps(&self, backend: &Backend) -> bool {
        self.traffic.is_none_or(|traffic| traffic.takes(backend, Instant::now()))
    }

    /// The endpoint for a later moment: waits while all have as many requests as they may.
    pub async fn choose_later(&self, tried: &[SocketAddr], random: &Mutex<Random>) -> Result<Arc<Backend>, MeshError> {
        match self.traffic {
            Some(traffic) => traffic.choose_in_time(self.key, tried, random).await,
            None => Err(MeshError::NoEndpoints),
        }
    }
}

fn pass(limiters: &Limiters, caller: &impl Caller) -> Result<(), (MeshError, Stop)> {
    let refused = |wait: Duration| {
        // Whole seconds, rounded up: less would be too early.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let retry_after = Some(Duration::from_secs(seconds.max(1)));
        (MeshError::RateLimited, Stop { retry_after, ..Stop::default() })
    };
    limiters.pass(caller, Instant::now()).map_err(refused)
}

/// A request and who makes it.
struct Asking<'a, B> {
    client: &'a Client,
    request: &'a Request<B>,
}

impl<B> Caller for Asking<'_, B> {
    fn key(&self, by: RateBy, name: &str) -> Option<Vec<u8>> {
        match by {
            RateBy::Identity => Some(self.client.identity.as_ref()?.to_string().into_bytes()),
            RateBy::Source => Some(self.client.from.ip().to_string().into_bytes()),
            RateBy::Header => Some(self.request.headers().get(name)?.as_bytes().to_vec()),
            RateBy::Path => Some(self.request.uri().path().as_bytes().to_vec()),
        }
    }

    fn is(&self, meant: &Meant) -> bool {
        meant.is(self.request)
    }
}
