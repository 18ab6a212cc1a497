//! The guards of [`crate::guard::pipeline`] as a `tower` layer (feature `tower`).
//!
//! Picture a doorman in front of any service: asks the guards before each call, tells them what came of it, and answers
//! with the [`Refusal`] when one says no. The clock and the judgement are closures, so that a test brings its own.
//! Dropping a call half way gives everything back. Not here: waiting (a full bulkhead refuses at once; put a buffer in
//! front), retries (`tower::retry`, or your own loop around [`Pipeline::next_try`]), timeouts.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::guard::Refusal;
use crate::guard::bulkhead::{Entry, Priority};
use crate::guard::deadline::Deadline;
use crate::guard::pipeline::{Answered, Leave, Pipeline};
use crate::outcome::Outcome;
use crate::time::Mono;

/// Puts guards in front of services. Clones, and the services made from them, share the guards.
#[derive(Clone, Debug)]
pub struct GuardsLayer<C, J> {
    pipeline: Arc<Pipeline>,
    clock: C,
    judge: J,
}

impl<C, J> GuardsLayer<C, J> {
    /// `clock` tells the time, `judge` says what a result means to the guards.
    pub fn new(pipeline: Arc<Pipeline>, clock: C, judge: J) -> Self {
        Self { pipeline, clock, judge }
    }
}

impl<S, C: Clone, J: Clone> Layer<S> for GuardsLayer<C, J> {
    type Service = Guarded<S, C, J>;

    fn layer(&self, inner: S) -> Self::Service {
        let Self { pipeline, clock, judge } = self.clone();
        Guarded { inner, pipeline, clock, judge }
    }
}

/// A service behind guards.
#[derive(Clone, Debug)]
pub struct Guarded<S, C, J> {
    inner: S,
    pipeline: Arc<Pipeline>,
    clock: C,
    judge: J,
}

/// What comes instead of an answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GuardedError<E> {
    /// A guard said no; the service was not called.
    #[error("not called: {0}")]
    Refused(Refusal),
    /// The service's own error.
    #[error(transparent)]
    Inner(E),
}

impl<S, C, J, R> Service<R> for Guarded<S, C, J>
where
    S: Service<R>,
    C: Fn() -> Mono + Clone,
    J: Fn(&Result<S::Response, S::Error>) -> Outcome + Clone,
{
    type Response = S::Response;
    type Error = GuardedError<S::Error>;
    type Future = Guarding<S::Future, C, J>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(GuardedError::Inner)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let held = Held::take(&self.pipeline, (self.clock)());
        let state = match held {
            Ok(held) => State::Called {
                future: self.inner.call(request),
                held,
                clock: self.clock.clone(),
                judge: self.judge.clone(),
            },
            Err(refusal) => State::Refused { refusal: Some(refusal) },
        };
        Guarding { state }
    }
}

pin_project! {
    /// A call on its way through the guards.
    #[must_use = "a call that is not polled is not made"]
    pub struct Guarding<F, C, J> {
        #[pin]
        state: State<F, C, J>,
    }
}

pin_project! {
    #[project = StateProject]
    enum State<F, C, J> {
        Called { #[pin] future: F, held: Held, clock: C, judge: J },
        Refused { refusal: Option<Refusal> },
    }
}

impl<F, C, J, T, E> Future for Guarding<F, C, J>
where
    F: Future<Output = Result<T, E>>,
    C: Fn() -> Mono,
    J: Fn(&Result<T, E>) -> Outcome,
{
    type Output = Result<T, GuardedError<E>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProject::Called { future, held, clock, judge } => {
                let result = ready!(future.poll(context));
                held.give_back(clock(), judge(&result));
                Poll::Ready(result.map_err(GuardedError::Inner))
            }
            StateProject::Refused { refusal } => {
                let refusal = refusal.take().expect("a future is not polled after it is ready");
                Poll::Ready(Err(GuardedError::Refused(refusal)))
            }
        }
    }
}

/// What one call holds of the guards. Dropped, it gives all of it back.
struct Held {
    pipeline: Arc<Pipeline>,
    has_place: bool,
    leave: Option<Leave>,
}

impl Held {
    fn take(pipeline: &Arc<Pipeline>, now: Mono) -> Result<Self, Refusal> {
        // From here on, whatever returns ends the request.
        let mut held = Self { pipeline: Arc::clone(pipeline), has_place: false, leave: None };
        let deadline = Deadline::new(now, pipeline.guards().timeout, None);
        match pipeline.enter(now, &deadline, Priority::Normal)? {
            Entry::Admitted => held.has_place = true,
            Entry::Waiting { ticket, evicted, .. } => {
                debug_assert!(evicted.is_none(), "all are of one urgency");
                match pipeline.abandon(ticket) {
                    Some(refusal) => return Err(refusal),
                    // Somebody left in the same moment and gave it the place.
                    None => held.has_place = true,
                }
            }
        }
        held.leave = Some(pipeline.admit(now)?);
        Ok(held)
    }

    fn give_back(&mut self, now: Mono, outcome: Outcome) {
        if let Some(leave) = self.leave.take() {
            let took = now.since(leave.since);
            self.pipeline.report(now, leave, outcome, took, Answered::default());
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(leave) = self.leave.take() {
            self.pipeline.release(leave);
        }
        if self.has_place {
            // Nobody ever waits here.
            let _ = self.pipeline.leave();
        }
        self.pipeline.end();
    }
}
