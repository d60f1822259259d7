//! Faults made on purpose: which request gets one, and how a body is slowed down.

use crate::balance::Random;
use crate::condition::Meant;
use bytes::Bytes;
use mesh_api::fault::Fault;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// Marks a response that is not to be given: the client is left without an answer.
#[derive(Clone, Copy, Debug)]
pub struct Reset;

/// The faults of a policy, with the requests that each is about.
#[derive(Debug, Default)]
pub struct Faults(Box<[(Fault, Meant)]>);

impl Faults {
    /// These faults ready for use; an error says why one of them cannot be made.
    pub fn new(faults: &[Fault]) -> Result<Self, String> {
        let ready = faults.iter().enumerate().map(|(at, fault)| {
            let meant = Meant::compile(&fault.when).map_err(|why| format!("faults[{at}].{why}"))?;
            Ok((fault.clone(), meant))
        });
        ready.collect::<Result<_, _>>().map(Self)
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first fault whose condition the request meets (`is`) and that chance makes happen.
    pub fn choose(&self, is: impl Fn(&Meant) -> bool, random: &mut Random) -> Option<&Fault> {
        let happens = |fault: &Fault, random: &mut Random| (random.below(100) as u32) < fault.percent;
        self.0.iter().find(|(fault, meant)| is(meant) && happens(fault, random)).map(|(fault, _)| fault)
    }
}

/// Lets a body pass in small pieces with pauses between them.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_second: u32,
    /// What came and has not passed yet.
    held: Bytes,
    pause: Option<Pin<Box<Sleep>>>,
}

/// Pieces a second.
const PIECES: u32 = 20;

impl Throttle {
    /// So many bytes a second.
    pub fn new(bytes_per_second: u32) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), held: Bytes::new(), pause: None }
    }

    /// Ready when the next piece may pass.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }

    /// The next piece of what is held, if there is any.
    pub fn piece(&mut self) -> Option<Bytes> {
        if self.held.is_empty() {
            return None;
        }
        let size = (self.bytes_per_second / PIECES).max(1) as usize;
        let piece = self.held.split_to(size.min(self.held.len()));
        let seconds = piece.len() as f64 / f64::from(self.bytes_per_second);
        self.pause = Some(Box::pin(tokio::time::sleep(Duration::from_secs_f64(seconds))));
        Some(piece)
    }

    /// Holds what came.
    pub fn hold(&mut self, data: Bytes) {
        self.held = data;
    }

    /// True if something came that has not passed yet.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_keeps_to_the_percentage() {
        let fault = |percent| Fault { percent, ..Fault::default() };
        for percent in [0, 1, 30, 100, 1000] {
            let faults = Faults::new(&[fault(percent)]).unwrap();
            let mut random = Random::seeded(u64::from(percent));
            let made = (0..100_000).filter(|_| faults.choose(|_| true, &mut random).is_some()).count();
            let off = made as f64 / 1000.0 - f64::from(percent.min(100));
            assert!(off.abs() < 0.5, "{made} of 100000 for {percent} %");
        }
        let faults = Faults::new(&[fault(0), fault(100)]).unwrap();
        assert_eq!(faults.choose(|_| true, &mut Random::seeded(1)), Some(&fault(100)));
        assert_eq!(faults.choose(|_| false, &mut Random::seeded(1)), None);
    }

    #[tokio::test]
    async fn a_body_takes_as_long_as_its_bytes() {
        let began = std::time::Instant::now();
        let mut throttle = Throttle::new(10_000);
        throttle.hold(Bytes::from(vec![0; 3000]));
        let mut passed = 0;
        while throttle.holds() {
            std::future::poll_fn(|cx| throttle.poll(cx)).await;
            passed += throttle.piece().map_or(0, |piece| piece.len());
        }
        let took = began.elapsed();
        // The last piece is not waited for.
        assert!(passed == 3000 && took >= Duration::from_millis(245), "{took:?}");
    }
}
