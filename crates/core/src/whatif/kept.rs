//! What is kept for later, and how it goes out: the gateway's spool and its forwarder, without a disk.
//!
//! Every kept call has a key of its own here, so that none waits for another. There is room for all of them.

use std::collections::VecDeque;
use std::time::Duration;

use super::StandIn;
use super::world::{Call, Event, Verdict, World};
use crate::spool::pace::{Delivered, Pace, rest_after};
use crate::time::Mono;

/// What one instance keeps.
pub(super) struct Kept {
    /// Tries so far of each that may go out, the oldest first.
    ready: VecDeque<u32>,
    /// Those that failed and rest.
    resting: u32,
    on_their_way: u32,
    pace: Pace,
    /// When it looks again, if a guard has to be waited for.
    looks_at: Mono,
}

impl Kept {
    pub(super) fn of(stand_in: StandIn) -> Self {
        let parallel = if let StandIn::Promise { parallel } = stand_in { parallel } else { 1 };
        Self {
            ready: VecDeque::new(),
            resting: 0,
            on_their_way: 0,
            pace: Pace::new(parallel as usize),
            looks_at: Mono::ZERO,
        }
    }

    /// How many are kept.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.ready.len()).unwrap_or(u32::MAX).saturating_add(self.resting + self.on_their_way)
    }

    /// A guard said no to one on its way.
    pub(super) fn refused(&mut self, now: Mono, retry_in: Option<Duration>) {
        self.pace.after(Delivered::Refused(retry_in.unwrap_or_default()), now);
    }

    fn next(&mut self) -> Option<u32> {
        if self.pace.free(self.on_their_way as usize) == 0 {
            return None;
        }
        let tries = self.ready.pop_front()?;
        self.on_their_way += 1;
        Some(tries)
    }
}

impl World<'_> {
    /// What a caller gets for a call that came to this.
    pub(super) fn stand_in(&mut self, call: &Call, verdict: Verdict) -> Verdict {
        if matches!(verdict, Verdict::Good | Verdict::Reduced) {
            return verdict;
        }
        match self.scenario.layers[call.layer].stand_in {
            StandIn::Nothing => verdict,
            StandIn::Answer => Verdict::Reduced,
            StandIn::Promise { .. } => {
                self.layers[call.layer][call.instance].kept.ready.push_back(0);
                self.after(Duration::ZERO, Event::DeliverKept(call.layer, call.instance));
                Verdict::Reduced
            }
        }
    }

    /// Sends what may go out now.
    pub(super) fn deliver_kept(&mut self, layer: usize, instance: usize) {
        let now = self.now;
        loop {
            let of = &mut self.layers[layer][instance];
            let waits_until = of.guards.admits_at().filter(|at| now < *at).or(of.kept.pace.paused_until(now));
            if let Some(until) = waits_until {
                if !of.kept.ready.is_empty() && of.kept.looks_at <= now {
                    of.kept.looks_at = until;
                    self.at(until, Event::DeliverKept(layer, instance));
                }
                return;
            }
            let Some(tries) = of.kept.next() else { return };
            // What a record says happened last is what happens to it.
            let nth = self.arrivals.saturating_sub(1);
            self.begin_at((layer, instance), None, nth, Some(tries));
        }
    }

    /// A kept call has come back.
    pub(super) fn kept_came_to(&mut self, call: &Call, tries: u32, verdict: Verdict) {
        let (now, layer, instance) = (self.now, call.layer, call.instance);
        let kept = &mut self.layers[layer][instance].kept;
        kept.on_their_way -= 1;
        match verdict {
            Verdict::Good | Verdict::Reduced => kept.pace.after(Delivered::Settled, now),
            // By a guard of ours, who has been heard: the dependency's own refusals are failures.
            Verdict::Refused => kept.ready.push_front(tries),
            Verdict::Failed | Verdict::NoConnection | Verdict::TooMany(_) => {
                kept.pace.after(Delivered::Failed, now);
                kept.resting += 1;
                let wish = if let Verdict::TooMany(seconds) = verdict { seconds } else { None };
                let wish = wish.map(|seconds| Duration::from_secs(seconds.into()));
                let rest = rest_after(tries + 1, wish, &mut self.of_layers);
                self.after(rest, Event::KeptReady(layer, instance, tries + 1));
            }
        }
        self.after(Duration::ZERO, Event::DeliverKept(layer, instance));
    }

    /// One that failed has rested.
    pub(super) fn kept_ready(&mut self, layer: usize, instance: usize, tries: u32) {
        let kept = &mut self.layers[layer][instance].kept;
        kept.resting -= 1;
        kept.ready.push_back(tries);
        self.deliver_kept(layer, instance);
    }

    /// Looks whether what is kept may go out, as time passes.
    pub(super) fn deliver_all_kept(&mut self) {
        for layer in 0..self.layers.len() {
            for instance in 0..self.layers[layer].len() {
                if !self.layers[layer][instance].kept.ready.is_empty() {
                    self.deliver_kept(layer, instance);
                }
            }
        }
    }
}
