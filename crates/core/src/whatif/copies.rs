//! Second copies of calls that take longer than most: the first good answer wins, as in the gateway.
//!
//! A copy passes the guards of a try like any other, is paid for from the retry budget, and has no place of its own in
//! the bulkhead. Whoever loses is told to the guards as outrun, or given back.
//! Not here: when a copy is worth sending (`guard::hedge`).

use std::time::Duration;

use super::StandIn;
use super::world::{Call, Event, TryId, World};
use crate::guard::budget::Coin;
use crate::guard::hedge;
use crate::guard::pipeline::{Answered, Leave};
use crate::outcome::{Failure, Outcome};
use crate::time::Mono;

/// A second copy on its way.
pub(super) struct Copy {
    leave: Leave,
    coin: Coin,
}

fn asked(started: Mono) -> hedge::Call {
    hedge::Call { started, hedges: 0, idempotent: true }
}

impl World<'_> {
    /// A try has begun: when will it have taken longer than most?
    pub(super) fn plan_copy(&mut self, id: TryId) {
        let Some(call) = self.call(id.call) else { return };
        let (layer, of) = (call.layer, &self.scenario.layers[call.layer]);
        // As in the gateway, where a write that is kept has one copy at a time. Callers of our own layers have none.
        let may_be_copied = of.idempotent && !matches!(of.stand_in, StandIn::Promise { .. }) && call.kept.is_none();
        if of.guards.hedge.is_none() || !may_be_copied || layer + 1 < self.layers.len() {
            return;
        }
        if let Ok(due) = self.layers[layer][call.instance].guards.hedge_due(self.now, asked(self.now)) {
            self.at(due, Event::CopyDue(id));
        }
    }

    /// A try has taken longer than most. If it is not over by now, and the guards let a copy through, one goes out.
    pub(super) fn copy(&mut self, id: TryId) {
        let now = self.now;
        let Some(call) = self.call(id.call).filter(|call| call.attempts == id.attempt) else { return };
        let Some(begun) = call.leave.as_ref().map(|leave| leave.asked) else { return };
        let (layer, instance, nth, deadline) = (call.layer, call.instance, call.nth, call.deadline);
        let guards = &self.layers[layer][instance].guards;
        let Ok(coin) = guards.hedge(now, asked(begun)) else { return };
        let mut leave = match guards.admit(now) {
            Ok(leave) => leave,
            Err(_) => return guards.done(coin),
        };
        leave.asked = begun;
        if let Some(call) = self.call_mut(id.call) {
            call.copy = Some(Copy { leave, coin });
        }
        self.row.hedged += 1;
        let id = TryId { is_copy: true, ..id };
        self.at(deadline.of_try(now, self.scenario.layers[layer].guards.try_timeout), Event::TryOver(id));
        self.submit(id, nth);
    }

    /// Tells the guards what a copy came to. False if nobody waits for it any more.
    pub(super) fn end_copy(&mut self, id: TryId, outcome: Outcome, answered: Answered<'_>) -> bool {
        let (now, Some(call)) = (self.now, self.call_mut(id.call)) else { return false };
        let Some(Copy { leave, coin }) = call.copy.take() else { return false };
        let outrun = if outcome == Outcome::Success { call.leave.take() } else { None };
        let (layer, instance) = (call.layer, call.instance);
        let guards = &self.layers[layer][instance].guards;
        let took = now.since(leave.since);
        guards.report(now, leave, outcome, took, answered);
        guards.done(coin);
        outrun.into_iter().for_each(|leave| guards.outrun(now, leave));
        true
    }

    /// How a call has failed, once no copy of it is on its way any more: the first one's failure counts.
    pub(super) fn when_all_failed(
        &mut self,
        id: TryId,
        failure: (Failure, Option<Duration>),
    ) -> Option<(Failure, Option<Duration>)> {
        let call = self.call_mut(id.call)?;
        if id.is_copy {
            return if call.leave.is_some() { None } else { call.first_failed.take() };
        }
        if call.copy.is_some() {
            call.first_failed = Some(failure);
            return None;
        }
        Some(failure)
    }

    /// The call is over: a copy still on its way is given back.
    pub(super) fn drop_copy(&self, call: &mut Call) {
        let Some(Copy { leave, coin }) = call.copy.take() else { return };
        let guards = &self.layers[call.layer][call.instance].guards;
        guards.release(leave);
        guards.done(coin);
    }
}
