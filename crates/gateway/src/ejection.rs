//! What each try came to, told to whoever compares endpoints: the mean of their latency (`core::balance::latency`), and
//! outlier ejection (`core::guard::outlier`), whose decisions are put where endpoints are chosen, and into the journal.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use seawall_core::balance::latency::PENALTY;
use seawall_core::guard::outlier::{Event, Outlier, Reason, Snapshot};
use seawall_core::id::UpstreamId;
use seawall_core::journal::{Draft, Kind, Seq};
use seawall_core::outcome::Outcome;
use seawall_core::time::Mono;
use seawall_core::units::format_duration;

use crate::node::{UpstreamState, Worker};

/// False where nobody would hear it: a single endpoint has no peers.
pub(crate) fn is_noted(worker: &Worker, upstream: UpstreamId) -> bool {
    let state = &worker.node.upstreams[upstream.index()];
    state.outlier.is_some() || state.endpoints.len() > 1
}

/// Tells what a try at an endpoint came to. `cause` is what the journal last said of the route.
pub(crate) fn note(
    worker: &Worker,
    (upstream, endpoint): (UpstreamId, usize),
    outcome: Outcome,
    took: Duration,
    cause: Option<Seq>,
) {
    let state = &worker.node.upstreams[upstream.index()];
    let now = worker.node.clock.now();
    if let ([_, _, ..], Some(of)) = (state.endpoints.as_slice(), state.endpoints.get(endpoint)) {
        let penalty = state.outlier.is_none().then_some(PENALTY);
        of.load.latency.record(now, outcome, took, penalty);
    }
    let Some(outlier) = &state.outlier else { return };
    let mut outlier = outlier.lock().unwrap_or_else(PoisonError::into_inner);
    let event = {
        let mut prng = worker.prng.lock().unwrap_or_else(PoisonError::into_inner);
        outlier.record(now, endpoint, outcome, took, &mut prng)
    };
    if let Some(event) = event {
        carry_out(worker, upstream, now, &outlier, event, cause);
    }
}

/// Tells that a try had not been answered after so long, when a second copy of it was. `first` has the bit of the
/// endpoint it went to. Else an endpoint that hangs would never be seen to: its calls all end with the copies.
pub(crate) fn note_outrun(worker: &Worker, upstream: UpstreamId, first: u64, took: Duration) {
    let endpoint = first.trailing_zeros() as usize;
    // Beyond 64 endpoints a bit stands for several.
    if first.count_ones() == 1 && worker.node.upstreams[upstream.index()].endpoints.len() <= 64 {
        note(worker, (upstream, endpoint), Outcome::Success, took, None);
    }
}

/// Tells that a health check has changed its mind: with too few left that are well, ejections are not heeded any more.
pub(crate) fn on_health(state: &UpstreamState, endpoint: usize, healthy: bool) {
    let Some(outlier) = &state.outlier else { return };
    let mut outlier = outlier.lock().unwrap_or_else(PoisonError::into_inner);
    outlier.on_health(endpoint, healthy);
    publish(state, &outlier);
}

/// Has an endpoint go on where it was under another process, so long ago.
pub(crate) fn go_on(state: &UpstreamState, endpoint: usize, known: Snapshot, age: Duration, now: Mono) {
    let Some(outlier) = &state.outlier else { return };
    let mut outlier = outlier.lock().unwrap_or_else(PoisonError::into_inner);
    outlier.restore(now, endpoint, known, age);
    publish(state, &outlier);
}

/// Puts what is decided where endpoints are chosen. All of them: a panic makes every ejected endpoint usable, and its
/// end none.
fn publish(state: &UpstreamState, outlier: &Outlier) {
    let judge = state.judge();
    let judged = state.endpoints.iter().enumerate().filter(|(_, endpoint)| endpoint.judge.load(Relaxed) == judge);
    for (place, endpoint) in judged {
        endpoint.ejected.store(!outlier.is_usable(place), Relaxed);
    }
}

/// Compares endpoints and brings back those whose time is over.
pub(crate) fn on_time(worker: &Worker, now: Mono) {
    for (place, state) in worker.node.upstreams.iter().enumerate() {
        let Some(outlier) = &state.outlier else { continue };
        let mut outlier = outlier.lock().unwrap_or_else(PoisonError::into_inner);
        if now < outlier.due() {
            continue;
        }
        let events = {
            let mut prng = worker.prng.lock().unwrap_or_else(PoisonError::into_inner);
            outlier.on_time(now, &mut prng)
        };
        let upstream = UpstreamId(u32::try_from(place).unwrap_or(u32::MAX));
        events.into_iter().for_each(|event| carry_out(worker, upstream, now, &outlier, event, None));
    }
}

fn carry_out(worker: &Worker, upstream: UpstreamId, now: Mono, outlier: &Outlier, event: Event, cause: Option<Seq>) {
    let state = &worker.node.upstreams[upstream.index()];
    publish(state, outlier);
    let subject = |place: usize| {
        let address = state.endpoints.get(place).map_or("?", |endpoint| endpoint.endpoint.address.as_str());
        format!("endpoint:{}/{address}", state.name)
    };
    let (Event::Ejected { endpoint, .. } | Event::Returned { endpoint }) = event;
    let Some(of) = state.endpoints.get(endpoint) else { return };
    if of.judge.load(Relaxed) != state.judge() {
        return;
    }
    let mut last = of.told.lock().unwrap_or_else(PoisonError::into_inner);
    let draft = match event {
        Event::Ejected { endpoint, reason, until, count } => {
            let draft = Draft::new(Kind::EndpointEjected, subject(endpoint))
                .with("for", format_duration(whole_millis(now.until(until))))
                .with("count", count);
            match reason {
                Reason::Consecutive { failures } => draft.with("why", "consecutive").with("failures", failures),
                Reason::SuccessRate { rate, bound } => {
                    draft.with("why", "success_rate").with("rate", rate).with("bound", bound)
                }
                Reason::Latency { mean, median } => draft
                    .with("why", "latency")
                    .with("mean", format_duration(whole_millis(mean)))
                    .with("median", format_duration(whole_millis(median))),
            }
        }
        Event::Returned { endpoint } => {
            of.load.comes(now);
            Draft::new(Kind::EndpointReturned, subject(endpoint))
        }
    };
    *last = Some(worker.node.journal.record(draft.because(cause.max(*last))));
}

/// As people read it.
fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
