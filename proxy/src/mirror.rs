//! Copies of requests: sent elsewhere, too, as soon as the whole of them has passed, and whatever comes back is dropped.
//! They never hold up the request itself, are made once, and are counted apart.

use crate::filter::Mirror;
use crate::limits;
use crate::metrics::count;
use crate::proxy::Proxy;
use crate::request::choose;
use crate::state::{Group, Known};
use crate::upload::{Copied, Upload};
use crate::upstream::{self, Flight, Outgoing};
use http::Request;
use http_body_util::BodyExt;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Copies a request for every mirror that wants it.
pub fn send<'a>(proxy: &Arc<Proxy>, known: &Known, mirrors: impl Iterator<Item = &'a Mirror>, request: &mut Outgoing) {
    for mirror in mirrors {
        let wanted = proxy.random.lock().below(mirror.denominator as usize) < mirror.numerator as usize;
        let Some(group) = known.groups.get(mirror.service).filter(|_| wanted) else { continue };
        // What is more than a request and its answer has no copy.
        let tunnel = request.extensions().get::<hyper::ext::Protocol>().is_some()
            || request.headers().contains_key(http::header::UPGRADE);
        let Some(slot) = proxy.mirrors.clone().try_acquire_owned().ok().filter(|_| !tunnel) else {
            count(&proxy.counters.mirrors_left_out);
            continue;
        };
        let body = request.body_mut().tee();
        let mut copy = Request::new(());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        *copy.headers_mut() = request.headers().clone();
        copy.headers_mut().remove(http::header::EXPECT);
        let (proxy, group) = (proxy.clone(), group.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let counter = match tokio::time::timeout(limits::MIRROR_TIME, carry(&proxy, &group, copy, body)).await {
                Ok(Sent::Answered) => &proxy.counters.mirrors_answered,
                Ok(Sent::NotAtAll) => &proxy.counters.mirrors_left_out,
                Ok(Sent::Unanswered) | Err(_) => &proxy.counters.mirrors_failed,
            };
            count(counter);
        });
    }
}

/// What became of a copy.
enum Sent {
    Answered,
    Unanswered,
    NotAtAll,
}

async fn carry(proxy: &Proxy, group: &Group, copy: Request<()>, body: oneshot::Receiver<Copied>) -> Sent {
    let Ok(body) = body.await else { return Sent::NotAtAll };
    let Ok(backend) = choose(proxy, group, None, &[]) else { return Sent::Unanswered };
    // Counts while it is under way; what becomes of it says nothing of the endpoint.
    let _flight = Flight::start(&backend, group);
    let request = Box::new(copy.map(|()| Upload::from(body)));
    match upstream::send(proxy, &backend, request, limits::CONNECT_TIMEOUT).await {
        Ok((response, lease)) => {
            let mut body = response.into_body();
            let mut read = 0;
            while let Some(Ok(frame)) = body.frame().await {
                read += frame.data_ref().map_or(0, bytes::Bytes::len);
                if read > limits::MIRROR_ANSWER {
                    return Sent::Answered; // without its lease the connection is closed
                }
            }
            if let Some(lease) = lease {
                lease.give_back();
            }
            Sent::Answered
        }
        Err(unanswered) => {
            tracing::debug!(failure = %unanswered.failure, "a copy of a request was not answered");
            Sent::Unanswered
        }
    }
}
