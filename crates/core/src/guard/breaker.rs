//! Circuit breaker: stops calls to an upstream that fails or crawls, and finds out when it is well again.
//!
//! Picture a fuse with a memory. CLOSED counts recent calls in a sliding window. Too many failures, or too many slow
//! calls: OPEN, every call is refused at once. After `open_for`: HALF-OPEN, a few probes go through, and what they
//! come to decides: CLOSED with a fresh window, or OPEN again, for twice as long up to a bound.
//!
//! Invariants: at most `half_open_calls` probes per visit, each owned by a [`Permit`] and expiring, so that a lost
//! one cannot wedge the breaker; a permit from before a transition decides nothing about the state after it; windows
//! are never empty by configuration; a clock that stands still or jumps ahead does no harm.
//!
//! Words and numbers are Resilience4j's; its documented faults are not (see `docs/guide/guards.md`).
//! Not here: retries (`retry.rs`), waiting for a place (`bulkhead.rs`), what counts as a failure (`outcome.rs`).

use std::time::Duration;

use super::window::Window;
use super::{Refusal, Seen};
use crate::outcome::Outcome;
use crate::time::Mono;
use crate::units::Ratio;

/// When to open, and how to find the way back.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerConfig {
    /// Opens when this share of the window failed. At least, not above: 50 % of 2 opens at 1.
    pub failure_rate_max: Ratio,
    /// Opens when too many calls were slow, failed ones included; `None` to ignore slowness.
    pub slow: Option<SlowRule>,
    /// Which calls count.
    pub window: WindowConfig,
    /// Nothing is judged on fewer calls. Clamped to the window when that is counted in calls.
    pub calls_min: u32,
    /// How long it stays open the first time.
    pub open_for: Duration,
    /// Each visit that ends in OPEN again doubles the wait, up to this. Equal to `open_for` for a fixed wait.
    pub open_for_max: Duration,
    /// Probes per visit to HALF-OPEN.
    pub half_open_calls: u32,
    /// A probe that has not come back after this long counts as failed and slow.
    pub half_open_for: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failure_rate_max: Ratio::new(0.5).unwrap_or(Ratio::ONE),
            slow: Some(SlowRule { rate_max: Ratio::new(0.8).unwrap_or(Ratio::ONE), over: Duration::from_secs(10) }),
            window: WindowConfig::Calls(100),
            calls_min: 20,
            open_for: Duration::from_secs(10),
            open_for_max: Duration::from_secs(60),
            half_open_calls: 5,
            half_open_for: Duration::from_secs(10),
        }
    }
}

/// When slowness opens the breaker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowRule {
    /// The share of slow calls that opens it.
    pub rate_max: Ratio,
    /// A call is slow when it took longer than this.
    pub over: Duration,
}

/// Which calls a breaker looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowConfig {
    /// The last so many.
    Calls(u32),
    /// Those of the last while.
    Time(Duration),
}

/// The state by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateName {
    /// Everything passes and is counted.
    Closed,
    /// Everything is refused.
    Open,
    /// Probes pass.
    HalfOpen,
}

impl StateName {
    /// As shown in metrics, journal and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Leave to make one call. Give it back through [`Breaker::record`] or [`Breaker::release`].
#[must_use = "a permit that is not given back holds a probe until it expires"]
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    generation: u64,
    probe: u32,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transition {
    /// The state left.
    pub from: StateName,
    /// The state entered.
    pub to: StateName,
    /// The calls that decided it.
    pub seen: Seen,
    /// How long it will stay open, when it opened.
    pub open_for: Option<Duration>,
}

/// The machine. One per route (or per whatever shall fail together).
#[derive(Clone, Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: State,
    generation: u64,
    since: Mono,
    /// Visits to OPEN since it was last closed.
    openings: u32,
    opened_total: u64,
}

#[derive(Clone, Debug)]
enum State {
    Closed { window: Window },
    Open { until: Mono, seen: Seen },
    HalfOpen { permits_left: u32, out: Vec<Probe>, seen: Seen, next_probe: u32 },
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    number: u32,
    expires: Mono,
}

impl Breaker {
    /// Closed, with an empty window.
    #[must_use]
    pub fn new(config: BreakerConfig, now: Mono) -> Self {
        let window = Window::new(config.window, now);
        Self { config, state: State::Closed { window }, generation: 0, since: now, openings: 0, opened_total: 0 }
    }

    /// Asks leave for one call. A call that finds the wait over becomes the first probe, and the transition comes
    /// with the permit.
    ///
    /// # Errors
    /// [`Refusal::BreakerOpen`] while open, and while every probe is out.
    pub fn admit(&mut self, now: Mono) -> Result<(Permit, Option<Transition>), Refusal> {
        match &self.state {
            State::Closed { .. } => Ok((Permit { generation: self.generation, probe: 0 }, None)),
            State::Open { until, seen } if now < *until => {
                Err(Refusal::BreakerOpen { retry_in: now.until(*until), seen: *seen })
            }
            State::Open { .. } => {
                let transition = self.half_open(now);
                self.take_probe(now).map(|permit| (permit, Some(transition)))
            }
            State::HalfOpen { .. } => self.take_probe(now).map(|permit| (permit, None)),
        }
    }

    /// When a call may be admitted: `None` for now. For whoever waits instead of asking again and again.
    #[must_use]
    pub fn admits_at(&self) -> Option<Mono> {
        match &self.state {
            State::Closed { .. } => None,
            State::Open { until, .. } => Some(*until),
            State::HalfOpen { permits_left: 0, out, .. } => out.iter().map(|probe| probe.expires).min(),
            State::HalfOpen { .. } => None,
        }
    }

    /// Takes in what a call came to. A permit from an earlier generation decides nothing.
    pub fn record(&mut self, now: Mono, permit: Permit, outcome: Outcome, took: Duration) -> Option<Transition> {
        if permit.generation != self.generation {
            return None;
        }
        if outcome == Outcome::Ignored {
            self.release(permit);
            return None;
        }
        let failed = outcome.is_failure();
        let slow = self.config.slow.is_some_and(|rule| took > rule.over);
        match &mut self.state {
            State::Closed { window } => {
                window.record(now, failed, slow);
                let seen = window.seen(now);
                let calls_min = self.config.calls_min.min(window.calls_max());
                self.config.is_tripped_by(seen, calls_min).then(|| self.open(now, seen))
            }
            State::HalfOpen { out, seen, .. } => {
                // An expired probe was judged when it expired; its late answer must not count a second time.
                let place = out.iter().position(|probe| probe.number == permit.probe)?;
                out.swap_remove(place);
                count(seen, failed, slow);
                self.judge_probes(now)
            }
            State::Open { .. } => None,
        }
    }

    /// Gives a permit back unused: the call was never made, or says nothing about the upstream.
    pub fn release(&mut self, permit: Permit) {
        if permit.generation != self.generation {
            return;
        }
        if let State::HalfOpen { permits_left, out, .. } = &mut self.state
            && let Some(place) = out.iter().position(|probe| probe.number == permit.probe)
        {
            out.swap_remove(place);
            *permits_left += 1;
        }
    }

    /// Lets time pass: probes that never came back count as failed and slow. Call it now and then.
    pub fn on_time(&mut self, now: Mono) -> Option<Transition> {
        let State::HalfOpen { out, seen, .. } = &mut self.state else { return None };
        let before = out.len();
        out.retain(|probe| now < probe.expires);
        let expired = before - out.len();
        if expired == 0 {
            return None;
        }
        (0..expired).for_each(|_| count(seen, true, true));
        self.judge_probes(now)
    }

    /// The state by name.
    #[must_use]
    pub fn state(&self) -> StateName {
        match self.state {
            State::Closed { .. } => StateName::Closed,
            State::Open { .. } => StateName::Open,
            State::HalfOpen { .. } => StateName::HalfOpen,
        }
    }

    /// What it sees now: the window, the probes, or what opened it.
    pub fn seen(&mut self, now: Mono) -> Seen {
        match &mut self.state {
            State::Closed { window } => window.seen(now),
            State::Open { seen, .. } | State::HalfOpen { seen, .. } => *seen,
        }
    }

    /// Since when it has been in this state.
    #[must_use]
    pub fn since(&self) -> Mono {
        self.since
    }

    /// How often it opened.
    #[must_use]
    pub fn opened_total(&self) -> u64 {
        self.opened_total
    }

    /// The configuration it follows.
    #[must_use]
    pub fn config(&self) -> &BreakerConfig {
        &self.config
    }

    fn take_probe(&mut self, now: Mono) -> Result<Permit, Refusal> {
        let half_open_for = self.config.half_open_for;
        let State::HalfOpen { permits_left, out, seen, next_probe } = &mut self.state else {
            unreachable!("probes are taken in half-open only");
        };
        if *permits_left == 0 {
            let expires = out.iter().map(|probe| probe.expires).min().unwrap_or(now);
            return Err(Refusal::BreakerOpen { retry_in: now.until(expires), seen: *seen });
        }
        *permits_left -= 1;
        *next_probe += 1;
        out.push(Probe { number: *next_probe, expires: now + half_open_for });
        Ok(Permit { generation: self.generation, probe: *next_probe })
    }

    fn judge_probes(&mut self, now: Mono) -> Option<Transition> {
        let State::HalfOpen { seen, .. } = &self.state else { return None };
        let seen = *seen;
        let calls_min = self.config.calls_min.clamp(1, self.config.half_open_calls.max(1));
        if seen.calls < calls_min {
            return None;
        }
        Some(if self.config.is_tripped_by(seen, calls_min) { self.open(now, seen) } else { self.close(now, seen) })
    }

    fn open(&mut self, now: Mono, seen: Seen) -> Transition {
        let doubled = self.config.open_for.saturating_mul(1 << self.openings.min(16));
        let open_for = doubled.min(self.config.open_for_max.max(self.config.open_for));
        self.openings = self.openings.saturating_add(1);
        self.opened_total += 1;
        self.enter(now, State::Open { until: now + open_for, seen }, seen, Some(open_for))
    }

    fn half_open(&mut self, now: Mono) -> Transition {
        let seen = self.seen(now);
        let permits_left = self.config.half_open_calls.max(1);
        let state = State::HalfOpen { permits_left, out: Vec::new(), seen: Seen::default(), next_probe: 0 };
        self.enter(now, state, seen, None)
    }

    fn close(&mut self, now: Mono, seen: Seen) -> Transition {
        self.openings = 0;
        self.enter(now, State::Closed { window: Window::new(self.config.window, now) }, seen, None)
    }

    fn enter(&mut self, now: Mono, state: State, seen: Seen, open_for: Option<Duration>) -> Transition {
        let from = self.state();
        self.state = state;
        self.generation += 1;
        self.since = now;
        Transition { from, to: self.state(), seen, open_for }
    }
}

impl BreakerConfig {
    fn is_tripped_by(&self, seen: Seen, calls_min: u32) -> bool {
        let reaches = |part: u32, rate: Ratio| {
            // Integers: a rate of exactly the threshold must open, whatever floating point thinks of it.
            u64::from(part) * 1_000_000 >= rate.per_million() * u64::from(seen.calls)
        };
        seen.calls >= calls_min.max(1)
            && (reaches(seen.failed, self.failure_rate_max)
                || self.slow.is_some_and(|rule| reaches(seen.slow, rule.rate_max)))
    }
}

fn count(seen: &mut Seen, failed: bool, slow: bool) {
    seen.calls += 1;
    seen.failed += u32::from(failed);
    seen.slow += u32::from(slow);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::outcome::Failure;

    const FAIL: Outcome = Outcome::Failure(Failure::Timeout);
    const QUICK: Duration = Duration::from_millis(1);

    fn config() -> BreakerConfig {
        BreakerConfig {
            window: WindowConfig::Calls(10),
            calls_min: 4,
            open_for: Duration::from_millis(100),
            open_for_max: Duration::from_millis(300),
            half_open_calls: 2,
            half_open_for: Duration::from_millis(50),
            slow: Some(SlowRule { rate_max: Ratio::new(0.6).unwrap(), over: Duration::from_millis(10) }),
            ..BreakerConfig::default()
        }
    }

    /// One word a millisecond: `ok`, `fail`, `slow` make a call, `ask` only asks, `+N` lets N ms pass. Prints every
    /// transition and refusal.
    fn run(script: &str) -> String {
        let mut breaker = Breaker::new(config(), Mono::ZERO);
        let (mut now_ms, mut told) = (0_u64, Vec::new());
        for word in script.split_whitespace() {
            if let Some(gap) = word.strip_prefix('+') {
                now_ms += gap.parse::<u64>().unwrap();
                continue;
            }
            now_ms += 1;
            let now = Mono::from_millis(now_ms);
            match breaker.admit(now) {
                Err(_) => told.push(format!("{now_ms} refused")),
                Ok((permit, transition)) => {
                    let (outcome, took) = match word {
                        "fail" => (FAIL, QUICK),
                        "slow" => (Outcome::Success, Duration::from_millis(11)),
                        _ => (Outcome::Success, QUICK),
                    };
                    let after = breaker.record(now, permit, outcome, took);
                    told.extend(transition.into_iter().chain(after).map(|t| format!("{now_ms} {}", t.to.name())));
                }
            }
        }
        told.join(", ")
    }

    #[test]
    fn opens_at_the_threshold_not_before() {
        assert_eq!(run("fail ok fail ok"), "4 open");
        assert_eq!(run("fail fail fail"), "", "too few calls to judge");
        assert_eq!(run("ok ok ok ok fail fail"), "", "a third is not half");
        assert_eq!(run("ok ok ok ok ok ok ok ok ok ok fail fail fail fail fail"), "15 open", "old calls slide out");
    }

    #[test]
    fn slowness_opens_too_and_a_success_may_be_what_tips_it() {
        assert_eq!(run("slow slow slow ok"), "4 open");
        assert_eq!(run("slow slow ok ok"), "");
    }

    #[test]
    fn refuses_while_open_then_probes_decide() {
        assert_eq!(run("fail fail fail fail ok +100 ok ok ok"), "4 open, 5 refused, 106 half_open, 107 closed");
        assert_eq!(run("fail fail fail fail +100 fail ok"), "4 open, 105 half_open, 106 open");
    }

    #[test]
    fn each_reopening_waits_longer_up_to_a_bound_and_a_close_forgets() {
        let mut breaker = Breaker::new(config(), Mono::ZERO);
        let (mut now, mut waits) = (Mono::ZERO, Vec::new());
        for _ in 0..6 {
            let (permit, _) = breaker.admit(now).unwrap();
            if let Some(Transition { open_for: Some(wait), .. }) = breaker.record(now, permit, FAIL, QUICK) {
                waits.push(wait.as_millis());
                now = now + wait;
            }
        }
        for _ in 0..4 {
            let (permit, _) = breaker.admit(now).unwrap();
            if let Some(Transition { open_for: Some(wait), .. }) = breaker.record(now, permit, FAIL, QUICK) {
                waits.push(wait.as_millis());
                now = now + wait;
            }
        }
        assert_eq!(waits, [100, 200, 300, 300]);
        assert_eq!(breaker.opened_total(), 4);
    }

    #[test]
    fn a_late_answer_never_decides_about_a_newer_state() {
        let mut breaker = Breaker::new(config(), Mono::ZERO);
        let (late, _) = breaker.admit(Mono::ZERO).unwrap();
        for _ in 0..4 {
            let (permit, _) = breaker.admit(Mono::ZERO).unwrap();
            let _ = breaker.record(Mono::ZERO, permit, FAIL, QUICK);
        }
        assert_eq!(breaker.state(), StateName::Open);
        let now = Mono::from_millis(100);
        let (probe, transition) = breaker.admit(now).unwrap();
        assert_eq!(transition.unwrap().to, StateName::HalfOpen);
        assert_eq!(breaker.record(now, late, FAIL, QUICK), None);
        let (second, _) = breaker.admit(now).unwrap();
        assert!(breaker.admit(now).is_err(), "two probes, not three");
        assert_eq!(breaker.record(now, probe, Outcome::Success, QUICK), None);
        assert_eq!(breaker.record(now, second, Outcome::Success, QUICK).unwrap().to, StateName::Closed);
        assert_eq!(breaker.seen(now), Seen::default(), "closed begins with an empty window");
    }

    #[test]
    fn a_probe_given_back_can_be_taken_again_and_a_lost_one_expires() {
        let mut breaker = Breaker::new(config(), Mono::ZERO);
        for _ in 0..4 {
            let (permit, _) = breaker.admit(Mono::ZERO).unwrap();
            let _ = breaker.record(Mono::ZERO, permit, FAIL, QUICK);
        }
        assert_eq!(breaker.admits_at(), Some(Mono::from_millis(100)));
        let now = Mono::from_millis(100);
        let (lost, _) = breaker.admit(now).unwrap();
        assert_eq!(breaker.admits_at(), None);
        let (given_back, _) = breaker.admit(now).unwrap();
        assert_eq!(breaker.admits_at(), Some(Mono::from_millis(150)));
        breaker.release(given_back);
        let (ignored, _) = breaker.admit(now).unwrap();
        assert_eq!(breaker.record(now, ignored, Outcome::Ignored, QUICK), None);
        let (good, _) = breaker.admit(now).unwrap();
        assert_eq!(breaker.record(now, good, Outcome::Success, QUICK), None);
        assert_eq!(breaker.on_time(Mono::from_millis(149)), None);
        let expired = breaker.on_time(Mono::from_millis(150)).unwrap();
        assert_eq!((expired.to, expired.seen.failed), (StateName::Open, 1));
        assert_eq!(breaker.record(Mono::from_millis(151), lost, Outcome::Success, QUICK), None);
        assert_eq!(breaker.on_time(Mono::from_millis(151)), None);
        assert_eq!(breaker.since(), Mono::from_millis(150));
    }

    proptest! {
        /// Whatever happens: never more probes out than allowed, no panic, time only forwards, open means refused.
        #[test]
        fn holds_its_invariants_under_any_sequence(
            steps in prop::collection::vec((0_u8..6, 0_u64..200, any::<bool>()), 1..300),
            jump in any::<u64>(),
        ) {
            let mut breaker = Breaker::new(config(), Mono::ZERO);
            let (mut now, mut held) = (Mono::ZERO, Vec::new());
            for (step, gap_ms, failed) in steps {
                now = now + Duration::from_millis(gap_ms);
                match step {
                    0..=2 => if let Ok((permit, _)) = breaker.admit(now) {
                        prop_assert!(breaker.state() != StateName::Open);
                        held.push(permit);
                    },
                    3 => if let Some(permit) = held.pop() {
                        let outcome = if failed { FAIL } else { Outcome::Success };
                        let _ = breaker.record(now, permit, outcome, Duration::from_millis(gap_ms));
                    },
                    4 => if !held.is_empty() {
                        let permit = held.swap_remove(0);
                        breaker.release(permit);
                    },
                    _ => { let _ = breaker.on_time(now); }
                }
                if let State::HalfOpen { permits_left, out, seen, .. } = &breaker.state {
                    prop_assert!(out.len() as u32 + seen.calls + permits_left <= 2);
                }
            }
            let end = now + Duration::from_nanos(jump);
            let _ = breaker.on_time(end);
            let _ = breaker.admit(end);
        }
    }

    #[test]
    fn time_windows_judge_what_is_recent() {
        let config = BreakerConfig { window: WindowConfig::Time(Duration::from_secs(1)), ..config() };
        let mut breaker = Breaker::new(config.clone(), Mono::ZERO);
        assert_eq!(breaker.config(), &config);
        for at_ms in [0, 10, 20] {
            let (permit, _) = breaker.admit(Mono::from_millis(at_ms)).unwrap();
            assert_eq!(breaker.record(Mono::from_millis(at_ms), permit, FAIL, QUICK), None);
        }
        let much_later = Mono::from_millis(60_000);
        let (permit, _) = breaker.admit(much_later).unwrap();
        assert_eq!(breaker.record(much_later, permit, FAIL, QUICK), None, "the three old ones are gone");
        assert_eq!(breaker.seen(much_later), Seen { calls: 1, failed: 1, slow: 0 });
    }
}
