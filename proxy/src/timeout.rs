//! How long a request may take: what its rule says, tightened by what its caller says (`mesh-timeout`, `grpc-timeout`).

use crate::grpc;
use crate::limits;
use crate::upload::{Brake, Pulse, Upload};
use http::{HeaderName, Request};
use mesh_api::MeshError;
use mesh_api::millis::Millis;
use mesh_api::timeout::Timeouts;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

const HEADER: HeaderName = HeaderName::from_static("mesh-timeout");

/// Time spent on a call that the next hop need not hear of: less than clocks and networks differ by.
const NOT_WORTH_TELLING: Duration = Duration::from_millis(1);

/// The limits of `more`, where it says any, else those of `less`.
pub fn or(more: Timeouts, less: Timeouts) -> Timeouts {
    Timeouts {
        request: more.request.or(less.request),
        backend_request: more.backend_request.or(less.backend_request),
        response_head: more.response_head.or(less.response_head),
        idle: more.idle.or(less.idle),
        connect: more.connect.or(less.connect),
    }
}

/// The limits that limit something: zero switches one off.
pub fn in_force(said: Timeouts) -> Timeouts {
    let limit = |said: Option<Millis>| said.filter(|limit| !limit.is_zero());
    Timeouts {
        request: limit(said.request),
        backend_request: limit(said.backend_request),
        response_head: limit(said.response_head),
        idle: limit(said.idle),
        connect: limit(said.connect),
    }
}

/// Time to open a connection.
pub fn of_connect(timeouts: &Timeouts) -> Duration {
    timeouts.connect.map_or(limits::CONNECT_TIMEOUT, Millis::duration)
}

/// Time for a try's response head: the least of what is said.
pub fn of_head(timeouts: &Timeouts, per_try: Option<Duration>) -> Option<Duration> {
    let said = [timeouts.response_head, timeouts.backend_request];
    said.into_iter().flatten().map(Millis::duration).chain(per_try).min()
}

/// What the caller asks for.
pub fn asked<B>(request: &Request<B>) -> Option<Duration> {
    let asked: Millis = request.headers().get(&HEADER)?.to_str().ok()?.parse().ok()?;
    (!asked.is_zero()).then(|| asked.duration())
}

/// The moment at which a request has to be over, and the longest silence until then.
#[derive(Debug)]
pub struct Deadline {
    end: Option<(Pin<Box<Sleep>>, MeshError)>,
    idle: Option<Idle>,
    upload: Option<Arc<Brake>>,
    /// When a call began whose caller has said how long it may take.
    call: Option<Instant>,
    /// What has run out.
    reached: MeshError,
}

#[derive(Debug)]
struct Idle {
    limit: Duration,
    sleep: Pin<Box<Sleep>>,
    pulse: Arc<Pulse>,
}

impl Deadline {
    /// The deadline of a request that begins now, if it has one; `call` is what a gRPC caller allows.
    pub fn of(
        timeouts: &Timeouts,
        asked: Option<Duration>,
        call: Option<Duration>,
        request: &mut Request<Upload>,
    ) -> Option<Self> {
        let ours = timeouts.request.map(Millis::duration).into_iter().chain(asked).min();
        let end = match (ours, call) {
            (Some(ours), call) if call.is_none_or(|call| ours < call) => Some((ours, MeshError::Timeout)),
            (_, call) => call.map(|call| (call, MeshError::DeadlineExceeded)),
        };
        let idle = timeouts.idle.map(Millis::duration);
        if end.is_none() && idle.is_none() {
            return None;
        }
        let body = request.body_mut();
        Some(Self {
            end: end.map(|(limit, error)| (Box::pin(tokio::time::sleep(limit)), error)),
            idle: idle.map(|limit| Idle { limit, sleep: Box::pin(tokio::time::sleep(limit)), pulse: body.pulse() }),
            upload: body.brake(),
            call: call.map(|_| Instant::now()),
            reached: MeshError::Timeout,
        })
    }

    /// The same, or one that ends at `at` if that is sooner.
    pub fn sooner(deadline: Option<Self>, at: Option<Instant>) -> Option<Self> {
        let Some(at) = at else { return deadline };
        let mut deadline =
            deadline.unwrap_or(Self { end: None, idle: None, upload: None, call: None, reached: MeshError::Timeout });
        if deadline.end.as_ref().is_none_or(|(end, _)| at < end.deadline()) {
            deadline.end = Some((Box::pin(tokio::time::sleep_until(at)), MeshError::Timeout));
        }
        Some(deadline)
    }

    /// Has the next hop told how much time a call has left, if some was spent already: on a try that failed, for
    /// instance.
    pub fn tell<B>(&self, request: &mut Request<B>) {
        let now = Instant::now();
        if let (Some(begun), Some((end, _))) = (self.call, &self.end)
            && now.duration_since(begun) >= NOT_WORTH_TELLING
        {
            grpc::tell_left(request, end.deadline().saturating_duration_since(now));
        }
    }

    /// A piece of the response has come.
    pub fn touch(&self) {
        if let Some(idle) = &self.idle {
            idle.pulse.answering();
        }
    }

    /// Ready when the time has run out; what the client still sends is then no longer passed on.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<MeshError> {
        if let Some((end, error)) = &mut self.end
            && end.as_mut().poll(cx).is_ready()
        {
            self.reached = *error;
        } else if self.idle.as_mut().is_none_or(|idle| idle.poll(cx).is_pending()) {
            return Poll::Pending;
        }
        if let Some(upload) = &self.upload {
            upload.pull();
        }
        Poll::Ready(self.reached)
    }

    /// Which limit has been reached.
    pub fn reached(deadline: Option<&Self>) -> MeshError {
        deadline.map_or(MeshError::Timeout, |deadline| deadline.reached)
    }
}

impl Idle {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.sleep.as_mut().poll(cx).is_ready() {
            let silent = self.pulse.silent_for();
            if silent.is_some_and(|silent| silent >= self.limit) {
                return Poll::Ready(());
            }
            let rest = self.limit.saturating_sub(silent.unwrap_or_default()).max(Duration::from_millis(1));
            self.sleep.as_mut().reset(Instant::now() + rest);
        }
        Poll::Pending
    }
}

/// The outcome of `work`; `None` if the deadline comes first.
pub async fn within<T>(deadline: &mut Option<Deadline>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        None => Some(work.await),
        Some(deadline) => tokio::select! {
            biased;
            done = work => Some(done),
            _ = poll_fn(|cx| deadline.poll(cx)) => None,
        },
    }
}

/// The outcome of `work`; `None` if it takes longer than `limit`.
pub async fn at_most<T>(limit: Option<Duration>, work: impl Future<Output = T>) -> Option<T> {
    match limit {
        None => Some(work.await),
        Some(limit) => tokio::time::timeout(limit, work).await.ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_special_limit_counts_and_zero_is_none() {
        let ms = |ms| Some(Millis(ms));
        let less = Timeouts { request: ms(10), idle: ms(20), connect: ms(30), ..Timeouts::default() };
        let more = Timeouts { request: ms(5), idle: ms(0), ..Timeouts::default() };
        let expect = Timeouts { request: ms(5), connect: ms(30), ..Timeouts::default() };
        assert_eq!(in_force(or(more, less)), expect);
        let timeouts = Timeouts { response_head: ms(9), backend_request: ms(7), ..Timeouts::default() };
        assert_eq!(of_head(&timeouts, Some(Duration::from_millis(8))), Some(Duration::from_millis(7)));
        assert_eq!(of_head(&Timeouts::default(), None), None);
    }

    #[test]
    fn callers_say_a_duration_or_nothing() {
        for (value, expect) in [("500ms", Some(500)), ("2s", Some(2000)), ("0s", None), ("soon", None), ("-1s", None)] {
            let request = Request::get("/").header("mesh-timeout", value).body(()).unwrap();
            assert_eq!(asked(&request), expect.map(Duration::from_millis), "{value}");
        }
    }
}
