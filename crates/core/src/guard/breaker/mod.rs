//! Circuit breaker: stops calls to an upstream that fails or crawls, and finds out when it is well again.
//!
//! Picture a fuse with a memory. CLOSED counts recent calls in a sliding window. Too many failures, too many slow
//! calls, or too many that hang: OPEN, every call is refused at once. After a wait: HALF-OPEN, a few probes go through,
//! and what they come to decides: OPEN again and for longer, or CLOSED with a fresh window, by way of RECOVERING if a
//! [`Ramp`] is set. By hand it can be DISABLED, FORCED-OPEN, or made to OBSERVE-ONLY.
//!
//! Invariants: at most `half_open.calls` probes per visit, each owned by a [`Permit`] and expiring, so that a lost one
//! cannot wedge the breaker; a permit from before a transition decides nothing about the state after it; a timer
//! belongs to the state that set it and is gone with it; windows are never empty; a clock that stands still or jumps
//! ahead does no harm.
//!
//! [`Breaker`] is the machine, owned by one driver. [`SharedBreaker`] is the same machine for many threads, at the cost
//! of two writes to memory of their own while all is well.
//!
//! Words, numbers and arithmetic are Resilience4j's; its documented faults are not (`docs/guide/breaker.md`).
//! Not here: retries (`retry.rs`), waiting for a place (`bulkhead.rs`), what counts as a failure (`outcome.rs`).

mod config;
mod flight;
mod shared;
mod snapshot;
#[cfg(test)]
mod tests;
mod window;

use std::time::Duration;

pub use config::{
    BreakerConfig, HalfOpen, HalfOpenEnd, LateResults, OpenWait, Ramp, SlowRule, StateName, WindowConfig,
};
pub use shared::{Pass, SharedBreaker, SharedPermit};
pub use snapshot::Snapshot;

use self::flight::{Cut, Flights};
use self::window::Window;
use super::{Invalid, Refusal, Seen};
use crate::outcome::Outcome;
use crate::prng::Prng;
use crate::time::Mono;

/// Leave to make one call. Give it back through [`Breaker::record`] or [`Breaker::release`].
#[must_use = "a permit that is not given back holds a probe until it expires"]
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    generation: u64,
    /// Which probe it is; zero for none.
    probe: u32,
    /// Where it is marked as on its way.
    slot: u64,
}

/// What a call came to, with what the upstream asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Success, failure, or nothing to be learnt.
    pub outcome: Outcome,
    /// From the permit to the answer.
    pub took: Duration,
    /// The upstream's `Retry-After`, if it sent one.
    pub retry_after: Option<Duration>,
    /// The answer itself says that the breaker must open, whatever the rates are.
    pub trip: Option<Trip>,
}

impl Report {
    /// A plain outcome.
    #[must_use]
    pub const fn new(outcome: Outcome, took: Duration) -> Self {
        Self { outcome, took, retry_after: None, trip: None }
    }
}

/// How long a single answer opens a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trip {
    /// As long as the configuration says.
    Now,
    /// For this long.
    For(Duration),
}

/// Why a breaker changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The failure rate reached its threshold.
    FailureRate,
    /// The slow call rate did.
    SlowRate,
    /// So many failures came in a row.
    ConsecutiveFailures,
    /// An answer asked for it.
    Tripped,
    /// The wait was over.
    WaitOver,
    /// The probes were good.
    ProbesGood,
    /// The visit to half-open came to no verdict in time.
    HalfOpenOver,
    /// A step of the ramp held.
    StepHeld,
    /// Somebody said so.
    ByHand,
}

impl Why {
    /// Its name in journal and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FailureRate => "failure_rate",
            Self::SlowRate => "slow_rate",
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::Tripped => "tripped",
            Self::WaitOver => "wait_over",
            Self::ProbesGood => "probes_good",
            Self::HalfOpenOver => "half_open_over",
            Self::StepHeld => "step_held",
            Self::ByHand => "by_hand",
        }
    }
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transition {
    /// The state left.
    pub from: StateName,
    /// The state entered.
    pub to: StateName,
    /// What decided it.
    pub why: Why,
    /// The calls that decided it, those past the slow limit and still on their way included.
    pub seen: Seen,
    /// How long it will stay open, when it opened.
    pub open_for: Option<Duration>,
    /// The share of calls let through, while recovering.
    pub share: Option<crate::units::Ratio>,
}

/// Rates at or above their thresholds, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Exceeded {
    /// The failure rate.
    pub failure_rate: Option<f32>,
    /// The slow call rate.
    pub slow_rate: Option<f32>,
}

impl Exceeded {
    fn any(self) -> bool {
        self.failure_rate.is_some() || self.slow_rate.is_some()
    }
}

/// What a breaker has to tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Told {
    /// When.
    pub at: Mono,
    /// What was too high. While only observing, each is told once a visit; elsewhere it comes with the transition.
    pub exceeded: Exceeded,
    /// The change of state, if there was one.
    pub transition: Option<Transition>,
}

/// A move by hand that is not allowed; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a breaker that is {} cannot become {}", from.name(), to.name())]
pub struct IllegalTransition {
    /// The state it is in.
    pub from: StateName,
    /// The state asked for.
    pub to: StateName,
}

/// Rates in percent, as single-precision numbers: `count · 100 / calls`, computed as Resilience4j does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Failed calls.
    pub failure: f32,
    /// Slow calls.
    pub slow: f32,
}

/// The machine. One per route (or per whatever shall fail together).
#[derive(Clone, Debug)]
pub struct Breaker {
    config: BreakerConfig,
    failure_threshold: f32,
    slow_threshold: f32,
    state: State,
    window: Window,
    /// The minimum of the state the window belongs to. Never zero: nothing is judged on no calls.
    calls_min: u32,
    /// True if the window is that of a half-open visit.
    of_probes: bool,
    /// Grows with every state entered. Never zero.
    generation: u64,
    since: Mono,
    /// Visits to OPEN since it was last closed.
    attempts: u32,
    opened_total: u64,
    not_permitted: u64,
    consecutive: u32,
    flights: Flights,
    /// False where the driver counts the calls on their way itself ([`SharedBreaker`]).
    own_flights: bool,
    /// Calls past the slow limit and still on their way.
    overdue: u32,
    /// Until when the upstream asked to be left alone.
    hinted: Option<Mono>,
    prng: Prng,
}

#[derive(Clone, Debug)]
enum State {
    Closed,
    Open { until: Mono },
    HalfOpen { permits_left: u32, out: Vec<Probe>, next_probe: u32, ends: Option<Mono> },
    Recovering { step: usize, turn: u32, last_admitted: Mono },
    Disabled,
    ForcedOpen,
    ObserveOnly { told_failure: bool, told_slow: bool },
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    number: u32,
    expires: Mono,
}

/// 2^32 divided by the golden ratio: its multiples spread evenly over a turn however many are taken, so that a share of
/// calls is let through without chance and without a beat that a periodic caller could fall in with.
const GOLDEN_TURN: u32 = 0x9e37_79b9;

/// Probes are numbered up to here and from one again: more than are ever out.
const PROBE_NUMBER_MAX: u32 = 0x7fff;

impl Breaker {
    /// In the configured initial state, with an empty window. The seed feeds the jitter of its waits.
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no breaker.
    pub fn new(config: BreakerConfig, seed: u64, now: Mono) -> Result<Self, Invalid> {
        config.check()?;
        let window = Window::new(config.window, now);
        let calls_min = config.calls_min.min(window.calls_max());
        let percent = |ratio: crate::units::Ratio| (ratio.get() * 100.0) as f32;
        let mut breaker = Self {
            failure_threshold: percent(config.failure_rate_max),
            slow_threshold: config.slow.map_or(f32::INFINITY, |slow| percent(slow.rate_max)),
            state: State::Closed,
            window,
            calls_min,
            of_probes: false,
            generation: 1,
            since: now,
            attempts: 0,
            opened_total: 0,
            not_permitted: 0,
            consecutive: 0,
            flights: Flights::new(cut(&config), now),
            own_flights: true,
            overdue: 0,
            hinted: None,
            prng: Prng::new(seed),
            config,
        };
        match breaker.config.initial {
            StateName::Closed => {}
            StateName::HalfOpen => {
                breaker.attempts = 1;
                breaker.half_open(now, Why::ByHand);
            }
            StateName::Open => {
                breaker.open(now, None, Why::ByHand, Seen::default());
            }
            other => {
                breaker.go(now, other, Why::ByHand);
            }
        }
        Ok(breaker)
    }

    /// Asks leave for one call. A call that finds the wait over becomes the first probe, and what there is to tell
    /// comes with the permit.
    ///
    /// # Errors
    /// [`Refusal::BreakerOpen`] while open, while every probe is out, and beyond the share of a recovering breaker.
    pub fn admit(&mut self, now: Mono) -> Result<(Permit, Option<Told>), Refusal> {
        let told = self.lazily_half_open(now);
        let passes = match self.state {
            State::Closed | State::Disabled | State::ObserveOnly { .. } => true,
            State::HalfOpen { .. } if !self.config.half_open.synthetic => {
                return self.take_probe(now).map(|permit| (permit, told));
            }
            State::Recovering { .. } => self.takes_share(now),
            State::Open { .. } | State::HalfOpen { .. } | State::ForcedOpen => false,
        };
        if passes { Ok((self.permit(now, 0), told)) } else { Err(self.refuse(now)) }
    }

    /// Asks leave for a probe of the driver's own. For [`HalfOpen::synthetic`]; elsewhere users' calls are the probes.
    ///
    /// # Errors
    /// [`Refusal::BreakerOpen`] while no probe is wanted.
    pub fn admit_probe(&mut self, now: Mono) -> Result<Permit, Refusal> {
        if matches!(self.state, State::HalfOpen { .. }) { self.take_probe(now) } else { Err(self.refusal(now)) }
    }

    /// When a call may be admitted: `None` for now. For whoever waits instead of asking again and again.
    #[must_use]
    pub fn admits_at(&self) -> Option<Mono> {
        match &self.state {
            // The wait is over after its last moment, not at it.
            State::Open { until } => Some(*until + Duration::from_nanos(1)),
            State::HalfOpen { permits_left: 0, out, ends, .. } => {
                let expires = out.iter().map(|probe| probe.expires).min();
                Some(earlier(expires, *ends).unwrap_or(Mono::from_nanos(u64::MAX)))
            }
            State::ForcedOpen => Some(Mono::from_nanos(u64::MAX)),
            _ => None,
        }
    }

    /// Takes in what a call came to. A permit from an earlier generation decides nothing.
    pub fn record(&mut self, now: Mono, permit: Permit, outcome: Outcome, took: Duration) -> Option<Told> {
        self.report(now, permit, Report::new(outcome, took))
    }

    /// Takes in what a call came to, with what the upstream asked for.
    pub fn report(&mut self, now: Mono, permit: Permit, report: Report) -> Option<Told> {
        self.end_flight(&permit);
        self.overdue = self.flights.overdue(now);
        self.take_in(now, permit.generation, permit.probe, report)
    }

    /// A result whose permit nobody has any more. It is shown while open and decides nothing, unless
    /// [`LateResults::Counted`] says otherwise.
    pub fn record_late(&mut self, now: Mono, report: Report) -> Option<Told> {
        self.take_in(now, 0, 0, report)
    }

    /// Gives a permit back unused: the call was never made, or says nothing about the upstream.
    pub fn release(&mut self, permit: Permit) {
        self.end_flight(&permit);
        self.give_back(permit.generation, permit.probe);
    }

    /// Gives back a permit that nobody has any more: nothing, unless [`LateResults::Counted`] says otherwise.
    pub fn release_late(&mut self) {
        self.give_back(0, 0);
    }

    /// When [`Self::on_time`] has something to do.
    #[must_use]
    pub fn next_timer(&self) -> Option<Mono> {
        let of_state = match &self.state {
            State::Open { until } => self.leaves_by_timer().then_some(*until),
            State::HalfOpen { out, ends, .. } => earlier(*ends, out.iter().map(|probe| probe.expires).min()),
            State::Recovering { .. } => self.config.ramp.as_ref().map(|ramp| self.since + ramp.step_for),
            _ => None,
        };
        let judges_flights = matches!(self.state, State::Closed | State::Recovering { .. } | State::ObserveOnly { .. });
        let of_flights = if judges_flights && self.counts_flights() { self.flights.turns_at() } else { None };
        earlier(of_state, of_flights)
    }

    /// Lets time pass: waits that are over, probes that never came back, calls that hang. Call it at
    /// [`Self::next_timer`], or now and then.
    pub fn on_time(&mut self, now: Mono) -> Option<Told> {
        self.overdue = self.flights.overdue(now);
        self.on_time_with(now)
    }

    /// Moves it by hand.
    ///
    /// # Errors
    /// [`IllegalTransition`] where [`StateName::may_become`] says no.
    pub fn move_to(&mut self, now: Mono, to: StateName) -> Result<Option<Told>, IllegalTransition> {
        let from = self.state();
        if !from.may_become(to) {
            return Err(IllegalTransition { from, to });
        }
        let told = match to {
            StateName::Recovering => self.recover(now, 0, Why::ByHand, Seen::default()),
            StateName::Open => self.open(now, None, Why::ByHand, Seen::default()),
            StateName::HalfOpen => self.half_open(now, Why::ByHand),
            other => self.go(now, other, Why::ByHand),
        };
        Ok((from != to).then_some(told))
    }

    /// Opens it by hand until a moment, or again with another one. The next waits are as long as they would have been.
    ///
    /// # Errors
    /// [`IllegalTransition`] where it may not become open.
    pub fn open_until(&mut self, now: Mono, until: Mono) -> Result<Option<Told>, IllegalTransition> {
        let from = self.state();
        if !from.may_become(StateName::Open) {
            return Err(IllegalTransition { from, to: StateName::Open });
        }
        let told = self.open(now, Some(until), Why::ByHand, Seen::default());
        Ok((from != StateName::Open).then_some(told))
    }

    /// Closes it by hand, from wherever it is, with an empty window.
    pub fn reset(&mut self, now: Mono) -> Told {
        self.go(now, StateName::Closed, Why::ByHand)
    }

    /// The state by name.
    #[must_use]
    pub fn state(&self) -> StateName {
        match self.state {
            State::Closed => StateName::Closed,
            State::Open { .. } => StateName::Open,
            State::HalfOpen { .. } => StateName::HalfOpen,
            State::Recovering { .. } => StateName::Recovering,
            State::Disabled => StateName::Disabled,
            State::ForcedOpen => StateName::ForcedOpen,
            State::ObserveOnly { .. } => StateName::ObserveOnly,
        }
    }

    /// What the window holds now; while open, that of the state it came from.
    pub fn seen(&mut self, now: Mono) -> Seen {
        self.window.seen(now)
    }

    /// The rates over that; `None` while too few calls are in it to judge.
    pub fn rates(&mut self, now: Mono) -> Option<Rates> {
        let seen = self.seen(now);
        (seen.calls >= self.calls_min)
            .then(|| Rates { failure: percent(seen.failed, seen.calls), slow: percent(seen.slow, seen.calls) })
    }

    /// True if a permit was given in the state there is now: what it comes to will count.
    #[must_use]
    pub fn is_of_now(&self, permit: &Permit) -> bool {
        permit.generation == self.generation
    }

    /// Calls refused since the window was last empty.
    #[must_use]
    pub fn not_permitted(&self) -> u64 {
        self.not_permitted
    }

    /// Calls past the slow limit and still on their way.
    #[must_use]
    pub fn overdue(&self) -> u32 {
        self.overdue
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

    /// Follows another configuration and keeps its state: window, wait, probes out and generation.
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no breaker; nothing has changed.
    pub fn reconfigure(&mut self, config: BreakerConfig, now: Mono) -> Result<(), Invalid> {
        config.check()?;
        let fresh = Self::new(BreakerConfig { initial: StateName::Closed, ..config.clone() }, 0, now)?;
        if self.of_probes {
            self.window = self.window.reshape(WindowConfig::Calls(config.half_open.calls), now);
            self.calls_min = config.calls_min.min(config.half_open.calls);
        } else {
            self.window = self.window.reshape(config.window, now);
            self.calls_min = fresh.calls_min;
        }
        if let State::HalfOpen { permits_left, .. } = &mut self.state {
            let taken = self.config.half_open.calls - (*permits_left).min(self.config.half_open.calls);
            *permits_left = config.half_open.calls.saturating_sub(taken);
        }
        if let State::Recovering { step, .. } = &mut self.state {
            match &config.ramp {
                Some(ramp) => {
                    *step = (*step).min(ramp.steps.len() - 1);
                    self.calls_min = ramp.calls_min.min(self.window.calls_max());
                }
                // No ramp any more: what was let through in part is let through whole.
                None => self.state = State::Closed,
            }
        }
        if cut(&config) != cut(&self.config) {
            // Marks of another cut mean nothing here: who is on the way now is not seen to hang.
            self.flights = fresh.flights;
            self.overdue = 0;
        }
        (self.failure_threshold, self.slow_threshold) = (fresh.failure_threshold, fresh.slow_threshold);
        self.config = config;
        Ok(())
    }

    /// A success that is not slow could change nothing but counts: rates only fall by it, and no streak is broken.
    fn is_calm(&mut self, now: Mono) -> bool {
        let seen = self.window.seen(now);
        matches!(self.state, State::Closed)
            && self.overdue == 0
            && self.consecutive == 0
            && (seen.calls >= self.calls_min || (seen.failed == 0 && seen.slow == 0))
    }

    fn counts_flights(&self) -> bool {
        self.config.slow.is_some_and(|slow| slow.in_flight)
    }

    fn leaves_by_timer(&self) -> bool {
        self.config.half_open.by_timer || self.config.half_open.synthetic
    }

    fn permit(&mut self, now: Mono, probe: u32) -> Permit {
        let slot = if self.own_flights && self.counts_flights() { self.flights.begin(now) } else { u64::MAX };
        Permit { generation: self.generation, probe, slot }
    }

    fn end_flight(&mut self, permit: &Permit) {
        if permit.generation == self.generation {
            self.flights.end(permit.slot);
        }
    }

    fn lazily_half_open(&mut self, now: Mono) -> Option<Told> {
        match self.state {
            // Probes of the driver's own wait for the driver's timer.
            State::Open { until } if now > until && !self.config.half_open.synthetic => {
                Some(self.half_open(now, Why::WaitOver))
            }
            _ => None,
        }
    }

    fn refuse(&mut self, now: Mono) -> Refusal {
        self.not_permitted += 1;
        self.refusal(now)
    }

    /// What a call would be told now.
    fn refusal(&mut self, now: Mono) -> Refusal {
        let retry_in = match (&self.state, &self.config.ramp) {
            (State::Recovering { .. }, Some(ramp)) => now.until(self.since + ramp.step_for),
            (State::ForcedOpen, _) => self.config.wait.first,
            _ => self.admits_at().map_or(self.config.wait.first, |at| now.until(at)),
        };
        let retry_in = retry_in.min(Duration::from_secs(3_600));
        Refusal::BreakerOpen { state: self.state(), retry_in, seen: self.seen(now) }
    }

    fn take_probe(&mut self, now: Mono) -> Result<Permit, Refusal> {
        let expires = self.config.half_open.probe_for.map_or(Mono::from_nanos(u64::MAX), |long| now + long);
        let State::HalfOpen { permits_left, out, next_probe, .. } = &mut self.state else {
            unreachable!("probes are taken in half-open only");
        };
        if *permits_left == 0 {
            return Err(self.refuse(now));
        }
        *permits_left -= 1;
        // Never zero, and no more than a permit of the shared breaker has room for.
        *next_probe = *next_probe % PROBE_NUMBER_MAX + 1;
        let number = *next_probe;
        out.push(Probe { number, expires });
        Ok(self.permit(now, number))
    }

    /// True if this call belongs to the share that goes through.
    fn takes_share(&mut self, now: Mono) -> bool {
        let (State::Recovering { step, turn, last_admitted }, Some(ramp)) = (&mut self.state, &self.config.ramp) else {
            return false;
        };
        *turn = turn.wrapping_add(GOLDEN_TURN);
        let of_share = f64::from(*turn) < ramp.steps[*step].get() * f64::from(u32::MAX);
        // A quiet upstream would never be judged by one call in a hundred.
        let of_trickle = now.since(*last_admitted) >= ramp.step_for;
        if of_share || of_trickle {
            *last_admitted = now;
        }
        of_share || of_trickle
    }

    fn take_in(&mut self, now: Mono, generation: u64, probe: u32, report: Report) -> Option<Told> {
        if report.outcome == Outcome::Ignored {
            self.give_back(generation, probe);
            return None;
        }
        let failed = report.outcome.is_failure();
        let slow = self.config.slow.is_some_and(|rule| report.took > rule.over);
        if let Some(wish) = report.retry_after.filter(|_| failed) {
            self.hinted = Some(self.hinted.map_or(now + wish, |hinted| hinted.max(now + wish)));
        }
        let counts = generation == self.generation || self.config.late_results == LateResults::Counted;
        match &mut self.state {
            State::Open { .. } => {
                // Shown, and nothing else.
                self.window.record(now, failed, slow);
                None
            }
            State::Disabled | State::ForcedOpen => None,
            _ if !counts => None,
            State::HalfOpen { out, .. } => {
                match out.iter().position(|out| out.number == probe && generation == self.generation) {
                    Some(place) => drop(out.swap_remove(place)),
                    // An expired probe was judged when it expired; its late answer must not count a second time.
                    None if self.config.late_results == LateResults::Ignored => return None,
                    // Nobody can tell whose it is: the oldest probe stands for it.
                    None if !out.is_empty() => drop(out.remove(0)),
                    None => {}
                }
                self.window.record(now, failed, slow);
                self.judge_probes(now)
            }
            State::Closed => {
                self.window.record(now, failed, slow);
                self.consecutive = if failed { self.consecutive.saturating_add(1) } else { 0 };
                self.judge_closed(now, report.trip)
            }
            State::ObserveOnly { .. } => {
                self.window.record(now, failed, slow);
                self.tell_observed(now)
            }
            State::Recovering { .. } => {
                self.window.record(now, failed, slow);
                self.judge_step(now)
            }
        }
    }

    fn give_back(&mut self, generation: u64, probe: u32) {
        let State::HalfOpen { permits_left, out, .. } = &mut self.state else { return };
        if generation == self.generation {
            if let Some(place) = out.iter().position(|out| out.number == probe) {
                out.swap_remove(place);
                *permits_left += 1;
            }
        } else if self.config.late_results == LateResults::Counted && *permits_left < self.config.half_open.calls {
            // Whoever gives back, a permit is there again, though never more than there were.
            *permits_left += 1;
        }
    }

    fn on_time_with(&mut self, now: Mono) -> Option<Told> {
        match &mut self.state {
            State::Open { until } => {
                let is_over = now >= *until;
                (is_over && self.leaves_by_timer()).then(|| self.half_open(now, Why::WaitOver))
            }
            State::HalfOpen { out, ends, .. } => {
                let is_over = ends.is_some_and(|ends| now >= ends);
                let before = out.len();
                out.retain(|probe| now < probe.expires);
                let expired = before - out.len();
                (0..expired).for_each(|_| self.window.record(now, true, true));
                let judged = if expired > 0 { self.judge_probes(now) } else { None };
                if judged.is_some() || !is_over {
                    return judged;
                }
                Some(match self.config.half_open.ends_in {
                    HalfOpenEnd::Open => self.open(now, None, Why::HalfOpenOver, Seen::default()),
                    HalfOpenEnd::Closed => self.go(now, StateName::Closed, Why::HalfOpenOver),
                })
            }
            State::Closed if self.overdue > 0 => self.judge_closed(now, None),
            State::ObserveOnly { .. } if self.overdue > 0 => self.tell_observed(now),
            State::Recovering { .. } => self.judge_step(now),
            _ => None,
        }
    }

    /// The window with the calls that hang: each counts as slow from the moment it is.
    fn seen_with_overdue(&mut self, now: Mono) -> Seen {
        let mut seen = self.window.seen(now);
        if self.counts_flights() {
            seen.merge(Seen { calls: self.overdue, slow: self.overdue, ..Seen::default() });
        }
        seen
    }

    fn exceeded(&self, seen: Seen) -> Exceeded {
        if seen.calls < self.calls_min {
            return Exceeded::default();
        }
        let reaches = |part: u32, threshold: f32| Some(percent(part, seen.calls)).filter(|rate| *rate >= threshold);
        Exceeded {
            failure_rate: reaches(seen.failed, self.failure_threshold),
            slow_rate: self.config.slow.and_then(|_| reaches(seen.slow, self.slow_threshold)),
        }
    }

    fn judge_closed(&mut self, now: Mono, trip: Option<Trip>) -> Option<Told> {
        let seen = self.seen_with_overdue(now);
        let exceeded = self.exceeded(seen);
        let in_a_row = self.config.consecutive_failures_max.is_some_and(|max| self.consecutive >= max.get());
        let why = match exceeded {
            Exceeded { failure_rate: Some(_), .. } => Why::FailureRate,
            Exceeded { slow_rate: Some(_), .. } => Why::SlowRate,
            _ if in_a_row => Why::ConsecutiveFailures,
            _ => {
                let until = match trip? {
                    Trip::Now => None,
                    Trip::For(long) => Some(now + long),
                };
                return Some(self.open(now, until, Why::Tripped, seen));
            }
        };
        Some(Told { exceeded, ..self.open(now, None, why, seen) })
    }

    fn judge_probes(&mut self, now: Mono) -> Option<Told> {
        let seen = self.window.seen(now);
        if seen.calls < self.calls_min {
            return None;
        }
        let exceeded = self.exceeded(seen);
        Some(if exceeded.any() {
            self.open(now, None, why(exceeded), seen)
        } else if self.config.ramp.is_some() {
            self.recover(now, 0, Why::ProbesGood, seen)
        } else {
            self.go(now, StateName::Closed, Why::ProbesGood)
        })
    }

    fn judge_step(&mut self, now: Mono) -> Option<Told> {
        let (State::Recovering { step, .. }, Some(ramp)) = (&self.state, &self.config.ramp) else { return None };
        let (step, last) = (*step, ramp.steps.len() - 1);
        let has_held = now.since(self.since) >= ramp.step_for;
        let seen = self.seen_with_overdue(now);
        let exceeded = self.exceeded(seen);
        if exceeded.any() {
            let why = why(exceeded);
            return Some(match step.checked_sub(1) {
                Some(back) => self.recover(now, back, why, seen),
                None => self.open(now, None, why, seen),
            });
        }
        if !has_held || seen.calls < self.calls_min {
            return None;
        }
        Some(if step == last {
            self.go(now, StateName::Closed, Why::StepHeld)
        } else {
            self.recover(now, step + 1, Why::StepHeld, seen)
        })
    }

    fn tell_observed(&mut self, now: Mono) -> Option<Told> {
        let seen = self.seen_with_overdue(now);
        let mut exceeded = self.exceeded(seen);
        let State::ObserveOnly { told_failure, told_slow } = &mut self.state else { return None };
        let once = |rate: &mut Option<f32>, told: &mut bool| {
            if rate.is_some() && std::mem::replace(told, true) {
                *rate = None;
            }
        };
        once(&mut exceeded.failure_rate, told_failure);
        once(&mut exceeded.slow_rate, told_slow);
        exceeded.any().then_some(Told { at: now, exceeded, transition: None })
    }

    /// Opens: for as long as the configuration says, or until a moment that somebody named.
    fn open(&mut self, now: Mono, named: Option<Mono>, why: Why, seen: Seen) -> Told {
        if named.is_none() {
            self.attempts = self.attempts.saturating_add(1);
        }
        let until =
            named.unwrap_or_else(|| self.config.wait.until(now, self.attempts, self.hinted.take(), &mut self.prng));
        self.opened_total += 1;
        // The window goes on being shown. After a state by hand there is none worth showing, and never an empty one.
        if matches!(self.state, State::Disabled | State::ForcedOpen) {
            self.new_window(now);
        }
        self.enter(now, State::Open { until }, why, seen, Some(now.until(until)))
    }

    fn half_open(&mut self, now: Mono, why: Why) -> Told {
        let seen = self.seen(now);
        let half_open = self.config.half_open;
        self.window = Window::new(WindowConfig::Calls(half_open.calls), now);
        self.calls_min = self.config.calls_min.min(half_open.calls);
        self.of_probes = true;
        self.not_permitted = 0;
        let ends = half_open.ends_after.map(|long| now + long);
        let state = State::HalfOpen { permits_left: half_open.calls, out: Vec::new(), next_probe: 0, ends };
        self.enter(now, state, why, seen, None)
    }

    fn recover(&mut self, now: Mono, step: usize, why: Why, seen: Seen) -> Told {
        self.empty_window(now);
        let ramp_min = self.config.ramp.as_ref().map_or(1, |ramp| ramp.calls_min);
        self.calls_min = ramp_min.min(self.window.calls_max());
        let state = State::Recovering { step, turn: 0, last_admitted: now };
        let mut told = self.enter(now, state, why, seen, None);
        if let Some(transition) = &mut told.transition {
            transition.share = self.config.ramp.as_ref().and_then(|ramp| ramp.steps.get(step).copied());
        }
        told
    }

    /// Into a state that begins with an empty window of the configured kind.
    fn go(&mut self, now: Mono, to: StateName, why: Why) -> Told {
        let seen = self.seen(now);
        self.attempts = if to == StateName::ForcedOpen { self.attempts.saturating_add(1) } else { 0 };
        let state = match to {
            StateName::Disabled => State::Disabled,
            StateName::ForcedOpen => State::ForcedOpen,
            StateName::ObserveOnly => State::ObserveOnly { told_failure: false, told_slow: false },
            _ => State::Closed,
        };
        self.empty_window(now);
        self.hinted = None;
        self.enter(now, state, why, seen, None)
    }

    fn empty_window(&mut self, now: Mono) {
        self.new_window(now);
        self.not_permitted = 0;
    }

    fn new_window(&mut self, now: Mono) {
        self.window = Window::new(self.config.window, now);
        self.calls_min = self.config.calls_min.min(self.window.calls_max());
        self.of_probes = false;
    }

    fn enter(&mut self, now: Mono, state: State, why: Why, seen: Seen, open_for: Option<Duration>) -> Told {
        let from = self.state();
        self.state = state;
        self.generation += 1;
        self.since = now;
        self.consecutive = 0;
        // Who is on the way since before says nothing about this state, by hanging no more than by failing.
        self.flights = Flights::new(cut(&self.config), now);
        self.overdue = 0;
        let transition = Transition { from, to: self.state(), why, seen, open_for, share: None };
        Told { at: now, exceeded: Exceeded::default(), transition: Some(transition) }
    }
}

fn cut(config: &BreakerConfig) -> Cut {
    Cut::new(config.slow.map_or(Duration::MAX, |slow| slow.over))
}

fn why(exceeded: Exceeded) -> Why {
    if exceeded.failure_rate.is_some() { Why::FailureRate } else { Why::SlowRate }
}

/// `count · 100 / calls` in single precision, in this order: the numbers of Resilience4j to the last bit.
fn percent(count: u32, calls: u32) -> f32 {
    count as f32 * 100.0 / calls as f32
}

fn earlier(a: Option<Mono>, b: Option<Mono>) -> Option<Mono> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}
