//! A tap's part at other replicas: the same tap is opened there, and what comes of it goes through the limits of ours.

use super::{Taps, Watching};
use crate::limits;
use crate::peers::{Peers, Replica};
use anyhow::Context;
use mesh_api::tap::{TapEvent, TapLeftOut, TapMessage, TapStatus};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

/// How another replica is doing with a tap.
#[derive(Clone, Debug, Default)]
pub(super) struct Elsewhere {
    /// What it said last; `None`: nothing yet.
    status: Option<TapStatus>,
    /// Why it says nothing more.
    lost: Option<String>,
}

impl Elsewhere {
    /// True once it has said something, or will not.
    pub(super) fn is_known(&self) -> bool {
        self.status.is_some() || self.lost.is_some()
    }

    /// True once there is nothing more to come.
    pub(super) fn is_over(&self) -> bool {
        self.lost.is_some() || self.status.as_ref().is_some_and(|status| status.last)
    }

    /// Proxies that tap there.
    pub(super) fn proxies(&self) -> u32 {
        self.status.as_ref().filter(|_| self.lost.is_none()).map_or(0, |status| status.proxies)
    }

    /// Why there are not more.
    pub(super) fn refusals(&self, replica: &str) -> Vec<String> {
        let lost = self.lost.as_ref().map(|why| format!("the replica {replica} cannot be asked: {why}"));
        lost.into_iter().chain(self.status.iter().flat_map(|status| status.refusals.clone())).collect()
    }
}

impl Watching {
    fn relayed(&mut self, replica: &str, message: TapMessage, now: Instant) {
        let elsewhere = self.others.entry(replica.to_owned()).or_default();
        elsewhere.lost = None;
        match message {
            TapMessage::Event(event) => self.receive(vec![*event], &TapLeftOut::default(), now),
            TapMessage::Status(status) => {
                let before = elsewhere.status.replace(status.clone()).unwrap_or_default().left_out;
                let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
                let more = TapLeftOut {
                    sampled: since(status.left_out.sampled, before.sampled),
                    rate_limited: since(status.left_out.rate_limited, before.rate_limited),
                    buffer_full: since(status.left_out.buffer_full, before.buffer_full),
                };
                self.receive(Vec::<TapEvent>::new(), &more, now);
            }
            TapMessage::Unknown => {}
        }
    }
}

impl Taps {
    /// Takes in what another replica says of a tap.
    fn relay(&self, id: u64, replica: &str, said: Result<TapMessage, String>) {
        let mut inner = self.inner.lock();
        let Some(watching) = inner.watches.get_mut(&id) else { return };
        match said {
            Ok(message) => watching.relayed(replica, message, Instant::now()),
            Err(why) => watching.others.entry(replica.to_owned()).or_default().lost = Some(why),
        }
        watching.wake.notify_one();
    }

    /// Says that a replica is about to be asked.
    fn expect(&self, id: u64, replica: &str) {
        if let Some(watching) = self.inner.lock().watches.get_mut(&id) {
            watching.others.entry(replica.to_owned()).or_default();
        }
    }

    /// A replica is gone, and whatever it had to say.
    fn forget(&self, id: u64, replica: &str) {
        if let Some(watching) = self.inner.lock().watches.get_mut(&id) {
            watching.others.remove(replica);
            watching.wake.notify_one();
        }
    }
}

/// Asks other replicas for their part of a tap, as they come and go, until this is dropped. `path` is where a replica
/// answers the same question.
pub(super) fn relay(taps: Arc<Taps>, id: u64, peers: Arc<Peers>, path: String) -> AbortOnDropHandle<()> {
    // Before the tap's first look, so that it waits for them.
    peers.list().iter().for_each(|replica| taps.expect(id, &replica.name));
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut asked: BTreeMap<Replica, AbortOnDropHandle<()>> = BTreeMap::new();
        loop {
            let there = peers.list();
            asked.retain(|replica, _| {
                let stays = there.contains(replica);
                if !stays {
                    taps.forget(id, &replica.name);
                }
                stays
            });
            for replica in there {
                asked.entry(replica.clone()).or_insert_with(|| {
                    let (taps, peers, path) = (taps.clone(), peers.clone(), path.clone());
                    AbortOnDropHandle::new(tokio::spawn(follow(taps, id, peers, replica, path)))
                });
            }
            tokio::time::sleep(limits::TAP_LOOK).await;
        }
    }))
}

async fn follow(taps: Arc<Taps>, id: u64, peers: Arc<Peers>, replica: Replica, path: String) {
    loop {
        let ended = receive(&taps, id, &peers, &replica, &path).await;
        match ended {
            // It has said its last word.
            Ok(true) => return,
            Ok(false) => taps.relay(id, &replica.name, Err("it ended the stream".to_owned())),
            Err(error) => taps.relay(id, &replica.name, Err(format!("{error:#}"))),
        }
        tokio::time::sleep(limits::PEER_RETRY).await;
    }
}

/// Takes in what a replica says; true if that was all.
async fn receive(taps: &Taps, id: u64, peers: &Peers, replica: &Replica, path: &str) -> anyhow::Result<bool> {
    let (mut lines, _held) = peers.ask(replica, path).await?;
    loop {
        let line = timeout(limits::TAP_SILENCE * 2, lines.next()).await;
        let line = line.with_context(|| format!("silent for {:?}", limits::TAP_SILENCE * 2))??;
        let Some(line) = line else { return Ok(false) };
        let message: TapMessage = serde_json::from_slice(&line).context("it sent what is no message")?;
        let last = matches!(&message, TapMessage::Status(status) if status.last);
        taps.relay(id, &replica.name, Ok(message));
        if last {
            return Ok(true);
        }
    }
}
