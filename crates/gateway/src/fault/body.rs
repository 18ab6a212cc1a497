//! Damage to the body of one answer: its bytes go through a pipe with a fault in it.
//!
//! What the pipe does to them is decided in `core::fault`, the same way as for the bytes of a connection. Once the
//! fault is taken away, or is off for a while, the rest passes as it came. Invariant: an answer that was told to have
//! another length never ends as if it were whole by the true one.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use seawall_core::fault::book::{Id, on_body};
use seawall_core::fault::{Direction, Effect, Ending, FaultId, Link as Pipe, Out};
use seawall_core::outcome::Failure;
use seawall_core::prng::Prng;
use tokio::time::Sleep;

use super::CallFaults;
use crate::clock::Clock;

/// What waits inside before the upstream has to.
const HELD_BYTES_MAX: usize = 1 << 20;

/// What is told of the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The truth.
    True,
    /// Half of it, and no more comes.
    Short,
    /// Twice as much, and the end never comes.
    Long,
}

/// An answer's body on its way through a fault.
pub(crate) struct Damage {
    pipe: Pipe,
    fault: FaultId,
    told: Told,
    clock: Clock,
    /// Until the fault is gone.
    lies: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    timer: Option<Pin<Box<Sleep>>>,
    trailers: Option<HeaderMap>,
}

/// What is to be done next.
pub(crate) enum Step {
    /// Pass this on.
    Data(Bytes),
    /// Ask the upstream for more.
    More,
    /// Wait: whoever asked will be woken.
    Wait,
    /// It has ended, with what came behind it.
    End(Option<HeaderMap>),
    /// It has ended before its end.
    Broken,
}

impl Damage {
    pub(crate) fn new(faults: &CallFaults, id: Id, effect: Effect, seed: u64) -> Self {
        let (clock, fault) = (faults.clock().clone(), on_body(effect));
        let pipe = Pipe::new(clock.now(), Direction::Downstream, Prng::new(seed), std::slice::from_ref(&fault));
        let faults = faults.clone();
        let lies: Pin<Box<dyn Future<Output = ()> + Send + Sync>> =
            Box::pin(async move { faults.hold(id, None).await });
        Self { pipe, fault: fault.id, told: Told::True, clock, lies: Some(lies), timer: None, trailers: None }
    }

    pub(crate) fn of_length(self, told: Told) -> Self {
        Self { told, ..self }
    }

    /// The length that is told, where it is not the true one.
    pub(crate) fn length(&self, length: u64) -> Option<u64> {
        match self.told {
            Told::True => None,
            Told::Short => Some(length / 2),
            Told::Long => Some(length.saturating_mul(2)),
        }
    }

    /// A piece from the upstream.
    pub(crate) fn push(&mut self, data: Bytes) {
        self.pipe.push(self.clock.now(), data);
    }

    /// No more comes from the upstream but what stands behind the body.
    pub(crate) fn end(&mut self, trailers: Option<HeaderMap>) {
        self.trailers = trailers;
        self.pipe.end(Ending::Half);
    }

    pub(crate) fn next(&mut self, cx: &mut Context<'_>) -> Step {
        loop {
            let now = self.clock.now();
            match self.pipe.next(now) {
                Out::Write(data) => {
                    self.pipe.wrote(data.len());
                    return Step::Data(data);
                }
                Out::End(_) if self.told != Told::Long => return Step::End(self.trailers.take()),
                Out::End(_) if self.lies.is_none() => return Step::Broken,
                Out::End(_) | Out::Wait(_) => {}
            }
            // Half an answer that is taken for whole stays what it is.
            if self.told != Told::Short
                && let Some(lies) = &mut self.lies
                && lies.as_mut().poll(cx).is_ready()
            {
                self.lies = None;
                self.pipe.lift(&self.fault);
                continue;
            }
            let due = self.pipe.due();
            if let Some(due) = due {
                let instant = self.clock.instant(due);
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(instant)));
                if timer.deadline() != instant {
                    timer.as_mut().reset(instant);
                }
                if timer.as_mut().poll(cx).is_ready() {
                    self.timer = None;
                    continue;
                }
            }
            let may_have_more = self.pipe.wants_input() && self.pipe.held_bytes() < HELD_BYTES_MAX;
            return if may_have_more { Step::More } else { Step::Wait };
        }
    }

    /// All of a body that is at hand, once it has come through.
    pub(crate) async fn whole(mut self, body: Bytes) -> Result<Bytes, Failure> {
        self.push(body);
        self.end(None);
        let mut through = BytesMut::new();
        loop {
            let step = poll_fn(|cx| match self.next(cx) {
                Step::Wait | Step::More => Poll::Pending,
                step => Poll::Ready(step),
            });
            match step.await {
                Step::Data(data) => through.extend_from_slice(&data),
                Step::End(_) => return Ok(through.freeze()),
                _ => return Err(Failure::Incomplete),
            }
        }
    }
}
