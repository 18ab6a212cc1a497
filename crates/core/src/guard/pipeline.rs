//! The guards of one route together, in the one order there is.
//!
//! Picture a gate with several keepers in a row. Each asks one question; the first no is the answer, and it names the
//! keeper. [`STAGES`] is the order, the same everywhere: in the gateway, in `seawall simulate`, in `seawall explain`.
//! Around a whole request: the deadline, then a place in the bulkhead. Around each try: the breaker, the limit of calls
//! at once, throttling, the rate, the learned limit, then the try under its own timeout. Between tries: is a retry
//! safe, in time, and afforded.
//!
//! Why this order: what costs nothing and refuses most comes first; the breaker comes before the limits, so that a sick
//! upstream uses up no allowance; places come before allowances, which cannot be given back; a retry passes every
//! keeper of a try again, so that it cannot slip past a breaker that has just opened.
//!
//! Invariants: what a keeper was given (a permit, a place) is given back exactly once, whatever the next one says; a
//! guard that is not configured costs a comparison.
//! Not here: waiting, sending, choosing an endpoint, fallbacks: the driver's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::breaker::{self, Report, SharedBreaker, SharedPermit, Told};
use super::budget::{Budget, Coin};
use super::bulkhead::{Bulkhead, Entry, Priority, Ticket};
use super::concurrency::{self, Concurrency};
use super::deadline::Deadline;
use super::hedge::{self, Hedge, Withheld};
use super::latency::Latencies;
use super::learned::{self, Learned, Signals};
use super::rate::Rate;
use super::retry::{GiveUp, Tried, Waits};
use super::throttle::{self, Throttle};
use super::{Invalid, Refusal};
use crate::outcome::{Failure, Outcome};
use crate::policy::Guards;
use crate::prng::Prng;
use crate::time::Mono;
use crate::units::Ratio;

/// A keeper: which question it asks, and by which rule it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its name, which is also the key it is configured by.
    pub name: &'static str,
    /// The rule in refusals, metrics and `Proxy-Status`.
    pub rule: &'static str,
    /// What it asks.
    pub question: &'static str,
    /// True if it is asked for every try, false if once for a request.
    pub every_try: bool,
}

/// The order.
pub const STAGES: [Stage; 12] = [
    once("limits.pending", "limit", "is there room in this node at all?"),
    once("timeout", "deadline", "is there time left?"),
    once("bulkhead", "bulkhead", "is there a place among the calls of this route?"),
    each("breaker", "breaker", "is the upstream thought well?"),
    each("concurrency", "concurrency", "does the upstream serve one more without a queue?"),
    each("throttle", "throttle", "does the upstream take on what it is sent?"),
    each("rate", "rate", "is the configured rate kept?"),
    each("learned_limit", "learned", "is the upstream's own limit, as learned, kept?"),
    each("health", "health", "which endpoint is healthy, not yet tried, less loaded?"),
    each("try_timeout", "deadline", "did this try answer in time?"),
    each("hedge", "budget", "is it slower than most, and a second copy safe and afforded?"),
    each("retry", "budget", "is another try safe, in time, and afforded?"),
];

const fn once(name: &'static str, rule: &'static str, question: &'static str) -> Stage {
    Stage { name, rule, question, every_try: false }
}

const fn each(name: &'static str, rule: &'static str, question: &'static str) -> Stage {
    Stage { name, rule, question, every_try: true }
}

/// The guards of one route at run time.
pub struct Pipeline {
    guards: Guards,
    breaker: Option<Arc<SharedBreaker>>,
    bulkhead: Arc<Mutex<Bulkhead>>,
    /// Shared by every route to the same destination.
    budget: Arc<Mutex<Budget>>,
    limits: Option<Arc<Mutex<Limits>>>,
    hedge: Option<Arc<Mutex<Hedge>>>,
    /// How long such calls usually take, where anybody asks.
    usual: Option<Arc<Mutex<Latencies>>>,
}

/// How far back "usually" looks.
const USUAL_WINDOW: Duration = Duration::from_secs(60);
/// Calls seen before anything is called usual.
const USUAL_MIN: u64 = 20;

/// What few routes have, behind one lock.
struct Limits {
    throttle: Option<Throttle>,
    rate: Option<Rate>,
    learned: Option<Learned>,
    concurrency: Option<Concurrency>,
    prng: Prng,
}

impl Limits {
    /// Those that are configured; nothing if none is.
    fn of(
        guards: &Guards,
        prng: Prng,
        (learned, age): (Option<&learned::Snapshot>, Duration),
        now: Mono,
    ) -> Result<Option<Arc<Mutex<Self>>>, Invalid> {
        let learned = |config| match learned {
            Some(kept) => Learned::restore(config, kept, age, now),
            None => Learned::new(config, now),
        };
        let limits = Self {
            throttle: guards.throttle.clone().map(|config| Throttle::new(config, now)).transpose()?,
            rate: guards.rate.map(Rate::new).transpose()?,
            learned: guards.learned_limit.map(learned).transpose()?,
            concurrency: guards.concurrency.map(|config| Concurrency::new(config, now)).transpose()?,
            prng,
        };
        Ok(limits.any().then(|| shared(limits)))
    }
}

fn usual_of(guards: &Guards, now: Mono) -> Result<Option<Arc<Mutex<Latencies>>>, Invalid> {
    Ok(if guards.look_ahead { Some(shared(Latencies::new(USUAL_WINDOW, now)?)) } else { None })
}

fn shared<T>(it: T) -> Arc<Mutex<T>> {
    Arc::new(Mutex::new(it))
}

/// What guards know that takes long to find out, as plain data: whether the upstream is well, and what it allows.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Snapshot {
    breaker: Option<breaker::Snapshot>,
    learned: Option<learned::Snapshot>,
}

/// Leave to make one try. Give it back with [`Pipeline::report`] or [`Pipeline::release`].
#[must_use = "what is not given back counts as on its way"]
#[derive(Debug)]
pub struct Leave {
    breaker: Option<SharedPermit>,
    limits: Option<Held>,
    /// When it was given.
    pub since: Mono,
    /// When the call was first asked, which for a second copy is earlier: a percentile that took copies for calls of
    /// their own would feed on its own success.
    pub asked: Mono,
}

#[derive(Debug, Default)]
struct Held {
    throttle: Option<throttle::Permit>,
    learned: Option<learned::Permit>,
    concurrency: Option<concurrency::Permit>,
}

/// What a try came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answered<'a> {
    /// Its status, if there was an answer.
    pub status: Option<u16>,
    /// `Retry-After` of a failure.
    pub retry_after: Option<Duration>,
    /// What its headers say about limits.
    pub signals: Option<&'a Signals>,
}

/// Why there is no other try.
#[derive(Clone, Debug, PartialEq)]
pub enum NoRetry {
    /// It would not be right, or not worth it.
    GaveUp(GiveUp),
    /// The deadline comes first.
    TooLate,
    /// The traffic does not afford it.
    NotAfforded(Refusal),
}

impl Pipeline {
    /// Every guard as it begins. `sheets` as in [`SharedBreaker::new`]; `tell` hears the breaker.
    ///
    /// # Errors
    /// [`Invalid`] with the first number that makes no guard.
    pub fn new(
        guards: Guards,
        budget: Arc<Mutex<Budget>>,
        (seed, sheets): (u64, usize),
        now: Mono,
        tell: impl Fn(&Told) + Send + Sync + 'static,
    ) -> Result<Self, Invalid> {
        Self::restore(guards, budget, (seed, sheets), (&Snapshot::default(), Duration::ZERO), now, tell)
    }

    /// Every guard as it begins, but those that go on where others stopped, so long ago.
    ///
    /// # Errors
    /// [`Invalid`] with the first number that makes no guard.
    pub fn restore(
        guards: Guards,
        budget: Arc<Mutex<Budget>>,
        (seed, sheets): (u64, usize),
        (snapshot, age): (&Snapshot, Duration),
        now: Mono,
        tell: impl Fn(&Told) + Send + Sync + 'static,
    ) -> Result<Self, Invalid> {
        guards.check()?;
        let mut prng = Prng::new(seed);
        let seed = prng.next_u64();
        let breaker = match (guards.breaker.clone(), &snapshot.breaker) {
            (Some(config), None) => Some(SharedBreaker::new(config, seed, sheets, now, tell)?),
            (Some(config), Some(kept)) => Some(SharedBreaker::restore(config, (kept, age), seed, sheets, now, tell)?),
            (None, _) => None,
        };
        Ok(Self {
            breaker: breaker.map(Arc::new),
            bulkhead: shared(Bulkhead::new(guards.bulkhead)),
            budget,
            limits: Limits::of(&guards, prng.fork(), (snapshot.learned.as_ref(), age), now)?,
            hedge: guards.hedge.map(|config| Hedge::new(config, now)).transpose()?.map(shared),
            usual: usual_of(&guards, now)?,
            guards,
        })
    }

    /// The same keepers under other rules, while calls of the present ones are still on their way. The breaker keeps
    /// its state and the bulkhead who is inside; whatever else is configured as before keeps what it knows, and the
    /// rest begins anew. What was given by the present pipeline is given back to it.
    ///
    /// # Errors
    /// [`Invalid`] with the first number that makes no guard; nothing has changed then.
    pub fn succeed(
        &self,
        guards: Guards,
        budget: Arc<Mutex<Budget>>,
        (seed, sheets): (u64, usize),
        now: Mono,
        tell: impl Fn(&Told) + Send + Sync + 'static,
    ) -> Result<Self, Invalid> {
        let fresh = Self::new(guards, budget, (seed, sheets), now, tell)?;
        let (old, new) = (&self.guards, &fresh.guards);
        let limits = |guards: &Guards| (guards.throttle.clone(), guards.rate, guards.learned_limit, guards.concurrency);
        let breaker = match (&self.breaker, &new.breaker) {
            (Some(breaker), Some(config)) => {
                if old.breaker.as_ref() != Some(config) {
                    breaker.reconfigure(config.clone(), now)?;
                }
                Some(Arc::clone(breaker))
            }
            _ => fresh.breaker,
        };
        lock(&self.bulkhead).reconfigure(new.bulkhead);
        Ok(Self {
            breaker,
            bulkhead: Arc::clone(&self.bulkhead),
            budget: fresh.budget,
            limits: if limits(old) == limits(new) { self.limits.clone() } else { fresh.limits },
            hedge: if old.hedge == new.hedge { self.hedge.clone() } else { fresh.hedge },
            usual: if old.look_ahead == new.look_ahead { self.usual.clone() } else { fresh.usual },
            guards: fresh.guards,
        })
    }

    /// What its guards know that takes long to find out, as plain data for another process.
    #[must_use]
    pub fn snapshot(&self, now: Mono) -> Snapshot {
        let learned = self.limits.as_ref().and_then(|limits| lock(limits).learned.as_ref()?.snapshot(now));
        Snapshot { breaker: self.breaker.as_ref().map(|breaker| breaker.snapshot(now)), learned }
    }

    /// The configuration it follows.
    #[must_use]
    pub fn guards(&self) -> &Guards {
        &self.guards
    }

    /// The breaker, if there is one.
    #[must_use]
    pub fn breaker(&self) -> Option<&SharedBreaker> {
        self.breaker.as_deref()
    }

    /// Counts a request and asks for a place. Every request that was counted, refused ones too, is ended with
    /// [`Self::end`], and every place that was given is left with [`Self::leave`].
    ///
    /// # Errors
    /// The deadline's refusal, or the bulkhead's.
    pub fn enter(&self, now: Mono, deadline: &Deadline, priority: Priority) -> Result<Entry, Refusal> {
        lock(&self.budget).deposit(now);
        deadline.check_ahead(now, self.usual(now))?;
        lock(&self.bulkhead).enter(now, deadline.at(), priority)
    }

    /// The median of recent calls, where it is asked for and enough are known.
    fn usual(&self, now: Mono) -> Option<Duration> {
        let mut usual = lock(self.usual.as_deref()?);
        if usual.count(now) < USUAL_MIN { None } else { usual.quantile(now, Ratio::new(0.5)?) }
    }

    /// A place is free again. Whoever is named has it now.
    pub fn leave(&self) -> Option<Ticket> {
        lock(&self.bulkhead).leave()
    }

    /// The wait is over without a place. `None` if the place was given just before.
    pub fn abandon(&self, ticket: Ticket) -> Option<Refusal> {
        lock(&self.bulkhead).abandon(ticket)
    }

    /// What somebody is told who had to make room for a more urgent call.
    #[must_use]
    pub fn evicted(&self) -> Refusal {
        lock(&self.bulkhead).refusal()
    }

    /// Calls on their way, and calls waiting for a place.
    #[must_use]
    pub fn load(&self) -> (u32, u32) {
        let bulkhead = lock(&self.bulkhead);
        (bulkhead.in_flight(), bulkhead.waiting())
    }

    /// A request is over.
    pub fn end(&self) {
        lock(&self.budget).end();
    }

    /// Asks leave for one try.
    ///
    /// # Errors
    /// The refusal of the first keeper that says no.
    #[inline]
    pub fn admit(&self, now: Mono) -> Result<Leave, Refusal> {
        let breaker = match &self.breaker {
            Some(breaker) => Some(breaker.admit(now)?),
            None => None,
        };
        let limits = match &self.limits {
            None => None,
            Some(limits) => match lock(limits).admit(now) {
                Ok(held) => Some(held),
                Err(refusal) => {
                    self.give_back(breaker);
                    return Err(refusal);
                }
            },
        };
        Ok(Leave { breaker, limits, since: now, asked: now })
    }

    /// Takes in what a try came to. `took` runs from the leave to the head of the answer.
    #[inline]
    pub fn report(&self, now: Mono, leave: Leave, outcome: Outcome, took: Duration, answered: Answered<'_>) {
        if let (Some(limits), Some(held)) = (&self.limits, leave.limits) {
            // By the head of the answer: how long its body takes is the reader's doing as much as the upstream's.
            lock(limits).record(leave.since + took, held, outcome, answered);
        }
        if let (Some(hedge), Outcome::Success) = (&self.hedge, outcome) {
            lock(hedge).record(now, took.saturating_add(leave.since.since(leave.asked)));
        }
        if let (Some(usual), Outcome::Success) = (&self.usual, outcome) {
            lock(usual).record(now, took);
        }
        if let (Some(breaker), Some(permit)) = (&self.breaker, leave.breaker) {
            let report = Report { retry_after: answered.retry_after, ..Report::new(outcome.of_health(), took) };
            breaker.report(now, permit, report);
        }
    }

    /// A second copy was answered first, and nobody waits for this try any more. That it had not answered by now is
    /// known all the same: past the breaker's slow limit that is a slow call.
    pub fn outrun(&self, now: Mono, leave: Leave) {
        let slow = self.guards.breaker.as_ref().and_then(|breaker| breaker.slow);
        if slow.is_some_and(|slow| now.since(leave.since) > slow.over) {
            let took = now.since(leave.since);
            if let (Some(limits), Some(held)) = (&self.limits, leave.limits) {
                lock(limits).record(now, held, Outcome::Ignored, Answered::default());
            }
            if let (Some(breaker), Some(permit)) = (&self.breaker, leave.breaker) {
                breaker.report(now, permit, Report::new(Outcome::Success, took));
            }
        } else {
            self.release(leave);
        }
    }

    /// The try was not made, or says nothing about the upstream.
    pub fn release(&self, leave: Leave) {
        if let (Some(limits), Some(held)) = (&self.limits, leave.limits) {
            lock(limits).record(leave.since, held, Outcome::Ignored, Answered::default());
        }
        self.give_back(leave.breaker);
    }

    /// The answer has begun, and its end will be reported later: the upstream does not hang.
    pub fn answered(&self, leave: &mut Leave) {
        if let (Some(breaker), Some(permit)) = (&self.breaker, &mut leave.breaker) {
            breaker.answered(permit);
        }
    }

    /// The wait before another try, with the coin that pays for it. Give the coin back with [`Self::done`] when the try
    /// is over.
    ///
    /// # Errors
    /// [`NoRetry`].
    pub fn next_try(
        &self,
        now: Mono,
        tried: Tried,
        waits: &mut Waits,
        deadline: &Deadline,
        prng: &mut Prng,
    ) -> Result<(Duration, Coin), NoRetry> {
        let wait = self.guards.retry.next_wait(tried, waits, prng).map_err(NoRetry::GaveUp)?;
        let needs = self.usual(now).map_or(wait, |usual| wait.saturating_add(usual));
        if !deadline.affords(now, needs) {
            return Err(NoRetry::TooLate);
        }
        let coin = lock(&self.budget).withdraw(now, &self.guards.budget).map_err(NoRetry::NotAfforded)?;
        Ok((wait, coin))
    }

    /// When a second copy of a call is worth sending.
    ///
    /// # Errors
    /// [`Withheld`] if there will be none; also where no hedge is configured.
    pub fn hedge_due(&self, now: Mono, call: hedge::Call) -> Result<Mono, Withheld> {
        self.hedge.as_ref().map_or(Err(Withheld::Exhausted { sent: 0 }), |hedge| lock(hedge).due(now, call))
    }

    /// A second copy, paid for from the budget.
    ///
    /// # Errors
    /// [`Withheld`] with the reason.
    pub fn hedge(&self, now: Mono, call: hedge::Call) -> Result<Coin, Withheld> {
        let Some(hedge) = &self.hedge else { return Err(Withheld::Exhausted { sent: 0 }) };
        let mut coin = None;
        lock(hedge).fire(now, call, || {
            coin = lock(&self.budget).withdraw(now, &self.guards.budget).ok();
            coin.is_some()
        })?;
        coin.ok_or(Withheld::NotAfforded)
    }

    /// An extra try is over.
    pub fn done(&self, coin: Coin) {
        lock(&self.budget).done(coin);
    }

    /// Lets the breaker's time pass.
    pub fn on_time(&self, now: Mono) {
        if let Some(breaker) = &self.breaker {
            breaker.on_time(now);
        }
    }

    /// When a try may be admitted, as far as the breaker knows: `None` for now.
    #[must_use]
    pub fn admits_at(&self) -> Option<Mono> {
        self.breaker.as_deref().and_then(SharedBreaker::admits_at)
    }

    /// What the breaker would say to a call that came now, without counting it.
    #[must_use]
    pub fn would_refuse(&self, now: Mono) -> Option<Refusal> {
        let breaker = self.breaker.as_ref()?;
        let at = breaker.admits_at().filter(|at| now < *at)?;
        Some(Refusal::BreakerOpen { state: breaker.state(), retry_in: now.until(at), seen: breaker.seen(now) })
    }

    /// What is believed of the upstream's own limit.
    #[must_use]
    pub fn belief(&self) -> Option<learned::Belief> {
        lock(self.limits.as_ref()?).learned.as_ref().map(Learned::belief)
    }

    /// How many calls at once are thought right.
    #[must_use]
    pub fn concurrency(&self) -> Option<u32> {
        lock(self.limits.as_ref()?).concurrency.as_ref().map(Concurrency::limit)
    }

    fn give_back(&self, permit: Option<SharedPermit>) {
        if let (Some(breaker), Some(permit)) = (&self.breaker, permit) {
            breaker.release(permit);
        }
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("breaker", &self.breaker).finish_non_exhaustive()
    }
}

impl Limits {
    fn any(&self) -> bool {
        self.throttle.is_some() || self.rate.is_some() || self.learned.is_some() || self.concurrency.is_some()
    }

    fn admit(&mut self, now: Mono) -> Result<Held, Refusal> {
        let mut held = Held::default();
        match self.admit_into(now, &mut held) {
            Ok(()) => Ok(held),
            Err(refusal) => {
                // Nobody has asked the upstream: a throttle that counted our own refusals would never end them.
                self.record(now, held, Outcome::Ignored, Answered::default());
                Err(refusal)
            }
        }
    }

    fn admit_into(&mut self, now: Mono, held: &mut Held) -> Result<(), Refusal> {
        if let Some(concurrency) = &mut self.concurrency {
            // First, since a place can be given back without a trace, and an allowance cannot.
            held.concurrency = Some(concurrency.admit(now)?);
        }
        if let Some(throttle) = &mut self.throttle {
            held.throttle = Some(throttle.admit(now, 0, &mut self.prng)?);
        }
        if let Some(rate) = &mut self.rate {
            rate.admit(now, 1)?;
        }
        if let Some(learned) = &mut self.learned {
            held.learned = Some(learned.admit(now)?);
        }
        Ok(())
    }

    fn record(&mut self, now: Mono, held: Held, outcome: Outcome, answered: Answered<'_>) {
        if let (Some(concurrency), Some(permit)) = (&mut self.concurrency, held.concurrency) {
            concurrency.record(now, permit, outcome);
        }
        if let (Some(throttle), Some(permit)) = (&mut self.throttle, held.throttle) {
            match outcome {
                Outcome::Ignored => throttle.forget(now, permit),
                _ => throttle.record(now, permit, was_taken_on(outcome)),
            }
        }
        if let (Some(learned), Some(permit)) = (&mut self.learned, held.learned) {
            let answer = answered.status.map_or(learned::Answer::Unknown, learned::Answer::of_status);
            let nothing = Signals::default();
            learned.record(now, permit, answer, answered.signals.unwrap_or(&nothing));
        }
    }
}

/// An upstream that answers has taken the call on, whatever it answers, but for "too many" and "not now".
fn was_taken_on(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Failure(Failure::Status(status)) => status != 503,
        Outcome::Failure(_) => false,
        Outcome::Success | Outcome::Ignored => true,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while locked cannot leave a machine half-changed in a way worse than refusing all calls.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::breaker::{BreakerConfig, WindowConfig};
    use super::super::bulkhead::BulkheadConfig;
    use super::super::concurrency::ConcurrencyConfig;
    use super::super::hedge::HedgeConfig;
    use super::super::learned::LearnedConfig;
    use super::super::rate::RateConfig;
    use super::super::throttle::ThrottleConfig;
    use super::*;

    fn pipeline(guards: Guards) -> Pipeline {
        let budget = Arc::new(Mutex::new(Budget::new(Mono::ZERO)));
        Pipeline::new(guards, budget, (1, 1), Mono::ZERO, |_| {}).expect("sane")
    }

    fn every_limit() -> Guards {
        Guards {
            throttle: Some(ThrottleConfig::default()),
            rate: Some(RateConfig { cells: 10, per: Duration::from_secs(1), burst: 5 }),
            learned_limit: Some(LearnedConfig::default()),
            concurrency: Some(ConcurrencyConfig::default()),
            hedge: Some(HedgeConfig::default()),
            bulkhead: BulkheadConfig { calls_max: 1, waiting_max: 0, ..BulkheadConfig::default() },
            breaker: Some(BreakerConfig { window: WindowConfig::Calls(4), calls_min: 4, ..BreakerConfig::default() }),
            ..Guards::default()
        }
    }

    #[test]
    fn the_next_process_knows_what_this_one_found_out() {
        let (old, now) = (pipeline(every_limit()), Mono::from_millis(1));
        let leaves: Vec<Leave> = (0..4).map(|_| old.admit(now).unwrap()).collect();
        for leave in leaves {
            let answered = Answered { status: Some(429), ..Answered::default() };
            old.report(now, leave, Outcome::Failure(Failure::Timeout), Duration::ZERO, answered);
        }
        let kept = serde_json::to_string(&old.snapshot(now)).unwrap();
        let restored = |guards: Guards| {
            let (budget, kept) = (Arc::new(Mutex::new(Budget::new(now))), serde_json::from_str(&kept).unwrap());
            Pipeline::restore(guards, budget, (1, 1), (&kept, Duration::ZERO), now, |_| {}).unwrap()
        };
        assert_eq!(restored(every_limit()).admit(now).unwrap_err().rule(), "breaker");
        let unbroken = restored(Guards { breaker: None, ..every_limit() });
        assert_eq!(unbroken.admit(now).unwrap_err().rule(), "learned");
        let unlearned = Guards { breaker: None, learned_limit: None, ..every_limit() };
        assert!(restored(unlearned).admit(now).is_ok(), "nobody asks for what is kept");
    }

    #[test]
    fn each_keeper_refuses_by_its_rule_and_keeps_nothing() {
        let pipeline = pipeline(every_limit());
        let (now, deadline) = (Mono::from_millis(1), Deadline::new(Mono::ZERO, Duration::from_secs(1), None));
        assert_eq!(pipeline.enter(now, &deadline, Priority::Normal), Ok(Entry::Admitted));
        let full = pipeline.enter(now, &deadline, Priority::Normal).unwrap_err();
        assert_eq!((full.rule(), pipeline.load()), ("bulkhead", (1, 0)));
        let late = pipeline.enter(Mono::from_millis(2_000), &deadline, Priority::Normal).unwrap_err();
        assert_eq!((late.rule(), pipeline.leave()), ("deadline", None));
        let mut held: Vec<Leave> = Vec::new();
        let refusal = loop {
            match pipeline.admit(now) {
                Ok(leave) => held.push(leave),
                Err(refusal) => break refusal,
            }
        };
        assert_eq!((held.len(), refusal.rule()), (5, "rate"), "a burst of five");
        let throttled =
            pipeline.limits.as_ref().map(|limits| lock(limits).throttle.as_mut().map(|t| t.probability(now, 0)));
        assert_eq!(throttled, Some(Some(crate::units::Ratio::ZERO)), "refusals of our own are none of the upstream's");
        for leave in held.drain(..4) {
            let answered = Answered { status: Some(503), ..Answered::default() };
            pipeline.report(now, leave, Outcome::Failure(Failure::Status(503)), Duration::ZERO, answered);
        }
        let refusal = pipeline.admit(Mono::from_millis(500)).unwrap_err();
        assert_eq!(refusal.rule(), "breaker", "it comes before the limits");
        assert_eq!(pipeline.would_refuse(now).map(|refusal| refusal.rule()), Some("breaker"));
        assert!(pipeline.admits_at().is_some());
        held.into_iter().for_each(|leave| pipeline.release(leave));
        assert_eq!(
            pipeline.limits.as_ref().map(|limits| lock(limits).concurrency.as_ref().map(Concurrency::in_flight)),
            Some(Some(0))
        );
        assert_eq!(pipeline.breaker().map(SharedBreaker::in_flight), Some(0));
        assert_eq!(pipeline.concurrency(), Some(ConcurrencyConfig::default().limit_initial));
        assert!(pipeline.belief().is_some());
        assert_eq!(pipeline.guards().rate, every_limit().rate);
        assert!(format!("{pipeline:?}").starts_with("Pipeline"));
    }

    #[test]
    fn a_successor_knows_what_has_not_changed_and_begins_the_rest_anew() {
        let (now, deadline) = (Mono::from_millis(1), Deadline::new(Mono::ZERO, Duration::from_secs(1), None));
        let old = pipeline(Guards { rate: None, ..every_limit() });
        assert_eq!(old.enter(now, &deadline, Priority::Normal), Ok(Entry::Admitted));
        let leaves: Vec<Leave> = (0..4).map(|_| old.admit(now).unwrap()).collect();
        let follow = |guards| {
            let budget = Arc::new(Mutex::new(Budget::new(now)));
            old.succeed(guards, budget, (2, 1), now, |_| {}).unwrap()
        };
        let slower = follow(Guards { timeout: Duration::from_secs(9), rate: None, ..every_limit() });
        let off = follow(Guards { breaker: None, ..every_limit() });
        // The last one: its bulkhead is the one in force.
        let other = follow(Guards {
            breaker: Some(BreakerConfig { calls_min: 2, ..every_limit().breaker.unwrap() }),
            bulkhead: BulkheadConfig { calls_max: 2, ..every_limit().bulkhead },
            concurrency: None,
            rate: None,
            ..every_limit()
        });
        // Calls that were on their way under the old rules fail: every breaker there is has seen them.
        for leave in leaves {
            old.report(now, leave, Outcome::Failure(Failure::Timeout), Duration::ZERO, Answered::default());
        }
        assert_eq!([&slower, &other].map(|it| it.admit(now).unwrap_err().rule()), ["breaker"; 2]);
        assert!(off.admit(now).is_ok());
        assert_eq!(slower.load(), (1, 0), "who is inside stays inside");
        assert_eq!(other.enter(now, &deadline, Priority::Normal), Ok(Entry::Admitted), "there is more room now");
        assert_eq!((slower.leave(), old.load()), (None, (1, 0)));
        assert!(slower.concurrency().is_some() && other.concurrency().is_none());
        assert!(
            old.succeed(
                Guards { bulkhead: BulkheadConfig { calls_max: 0, ..every_limit().bulkhead }, ..every_limit() },
                Arc::new(Mutex::new(Budget::new(now))),
                (2, 1),
                now,
                |_| {}
            )
            .is_err()
        );
    }

    #[test]
    fn retries_and_hedges_are_paid_from_one_purse() {
        let guards = Guards { hedge: Some(HedgeConfig { samples_min: 20, ..HedgeConfig::default() }), ..every_limit() };
        let pipeline = pipeline(Guards { rate: None, ..guards });
        let (mut prng, mut waits, mut now) = (Prng::new(1), Waits::default(), Mono::ZERO);
        let deadline = Deadline::new(now, Duration::from_secs(60), None);
        let call = hedge::Call { started: Mono::ZERO, hedges: 0, idempotent: true };
        assert!(pipeline.hedge_due(now, call).is_err(), "nothing is known yet");
        for _ in 0..20 {
            let leave = pipeline.admit(now).expect("well");
            now = now + Duration::from_millis(10);
            let answered = Answered { status: Some(200), ..Answered::default() };
            pipeline.report(now, leave, Outcome::Success, Duration::from_millis(10), answered);
        }
        let late = hedge::Call { started: now, ..call };
        let due = pipeline.hedge_due(now, late).expect("twenty are known");
        assert!(pipeline.hedge(now, late).is_err(), "too soon");
        let coin = pipeline.hedge(due, late).expect("three are always afforded");
        let tried = Tried {
            attempts: 1,
            failure: Failure::Timeout,
            idempotent: true,
            replayable: true,
            owned_above: false,
            elapsed: Duration::ZERO,
            pushback: None,
        };
        let mut next = |tried| pipeline.next_try(now, tried, &mut waits, &deadline, &mut prng);
        let coins: Vec<Coin> = std::iter::from_fn(|| next(tried).ok().map(|(_, coin)| coin)).collect();
        assert_eq!(coins.len(), 2, "one is out for the hedge");
        assert!(matches!(next(tried), Err(NoRetry::NotAfforded(Refusal::BudgetSpent { out: 3, .. }))));
        assert_eq!(next(Tried { idempotent: false, ..tried }), Err(NoRetry::GaveUp(GiveUp::NotSafe)));
        pipeline.done(coin);
        assert!(next(tried).is_ok());
        let soon = Deadline::new(now, Duration::ZERO, None);
        let late = pipeline.next_try(now, tried, &mut Waits::default(), &soon, &mut Prng::new(2));
        assert_eq!(late.unwrap_err(), NoRetry::TooLate);
        pipeline.end();
    }

    #[test]
    fn what_cannot_be_answered_in_time_is_not_begun() {
        let pipeline = pipeline(Guards { look_ahead: true, ..Guards::default() });
        let patient = |ms| Deadline::new(Mono::ZERO, Duration::from_millis(ms), None);
        let enter = |ms| pipeline.enter(Mono::ZERO, &patient(ms), Priority::Normal);
        assert!(enter(5).is_ok(), "nothing is known yet");
        for _ in 0..20 {
            let leave = pipeline.admit(Mono::ZERO).expect("well");
            pipeline.report(Mono::ZERO, leave, Outcome::Success, Duration::from_millis(100), Answered::default());
        }
        assert!(matches!(enter(90), Err(Refusal::DeadlineTooShort { .. })));
        assert!(enter(200).is_ok());
        let tried = Tried {
            attempts: 1,
            failure: Failure::ConnectRefused,
            idempotent: true,
            replayable: true,
            owned_above: false,
            elapsed: Duration::ZERO,
            pushback: None,
        };
        let next = pipeline.next_try(Mono::ZERO, tried, &mut Waits::default(), &patient(100), &mut Prng::new(1));
        assert_eq!(next.unwrap_err(), NoRetry::TooLate, "a retry would not be answered either");
    }

    #[test]
    fn a_place_is_waited_for_given_up_or_handed_on() {
        let bulkhead = BulkheadConfig { calls_max: 1, waiting_max: 1, ..BulkheadConfig::default() };
        let pipeline = pipeline(Guards { bulkhead, ..Guards::default() });
        let deadline = Deadline::new(Mono::ZERO, Duration::from_secs(1), None);
        let enter = |priority| match pipeline.enter(Mono::ZERO, &deadline, priority) {
            Ok(Entry::Waiting { ticket, evicted, .. }) => (ticket, evicted),
            other => panic!("must wait: {other:?}"),
        };
        assert_eq!(pipeline.enter(Mono::ZERO, &deadline, Priority::Normal), Ok(Entry::Admitted));
        let (patient, _) = enter(Priority::Background);
        let (urgent, evicted) = enter(Priority::Critical);
        assert_eq!((evicted, pipeline.evicted().rule(), pipeline.load()), (Some(patient), "bulkhead", (1, 1)));
        assert_eq!(pipeline.abandon(urgent).map(|refusal| refusal.rule()), Some("bulkhead"));
        assert_eq!((pipeline.abandon(urgent), pipeline.load()), (None, (1, 0)));
        let (next, _) = enter(Priority::Normal);
        assert_eq!((pipeline.leave(), pipeline.leave(), pipeline.load()), (Some(next), None, (0, 0)));
    }

    #[test]
    fn requests_in_work_afford_extra_tries_until_they_end() {
        let pipeline = pipeline(Guards::default());
        let deadline = Deadline::new(Mono::ZERO, Duration::from_secs(1), None);
        let tried = Tried {
            attempts: 1,
            failure: Failure::Timeout,
            idempotent: true,
            replayable: true,
            owned_above: false,
            elapsed: Duration::ZERO,
            pushback: None,
        };
        let next = || pipeline.next_try(Mono::ZERO, tried, &mut Waits::default(), &deadline, &mut Prng::new(1)).ok();
        for (begins, ends, afforded) in [(25, 0, 5), (0, 25, 3)] {
            (0..begins).for_each(|_| drop(pipeline.enter(Mono::ZERO, &deadline, Priority::Normal)));
            (0..ends).for_each(|_| pipeline.end());
            let coins: Vec<Coin> = std::iter::from_fn(next).map(|(_, coin)| coin).collect();
            assert_eq!(coins.len(), afforded);
            coins.into_iter().for_each(|coin| pipeline.done(coin));
        }
    }

    #[test]
    fn an_answer_that_has_begun_hangs_no_more() {
        let pipeline = pipeline(Guards { breaker: Some(BreakerConfig::default()), ..Guards::default() });
        let mut leave = pipeline.admit(Mono::ZERO).expect("well");
        let in_flight = || pipeline.breaker().map(SharedBreaker::in_flight);
        assert_eq!(in_flight(), Some(1));
        pipeline.answered(&mut leave);
        assert_eq!(in_flight(), Some(0));
        pipeline.report(Mono::ZERO, leave, Outcome::Success, Duration::ZERO, Answered::default());
        assert_eq!((in_flight(), pipeline.breaker().map(|breaker| breaker.seen(Mono::ZERO).calls)), (Some(0), Some(1)));
    }

    /// Past the slow limit it is known to be slow; before, nothing is known of it.
    #[test]
    fn a_try_that_is_outrun_counts_if_it_was_slow() {
        let pipeline = pipeline(Guards { breaker: Some(BreakerConfig::default()), ..every_limit() });
        let slow = BreakerConfig::default().slow.map(|slow| slow.over).unwrap_or_default();
        let seen = || {
            let breaker = pipeline.breaker().expect("there is one");
            (breaker.in_flight(), breaker.seen(Mono::ZERO + slow * 2).slow, breaker.seen(Mono::ZERO + slow * 2).calls)
        };
        for (took, counts) in [(slow, (0, 0, 0)), (slow + Duration::from_nanos(1), (0, 1, 1))] {
            let leave = pipeline.admit(Mono::ZERO).expect("well");
            assert_eq!(seen().0, 1);
            pipeline.outrun(Mono::ZERO + took, leave);
            assert_eq!(seen(), counts);
        }
    }

    #[test]
    fn each_limit_stands_alone_too() {
        let (all, none) = (every_limit(), Guards::default());
        for guards in [
            Guards { throttle: all.throttle, ..none.clone() },
            Guards { rate: all.rate, ..none.clone() },
            Guards { learned_limit: all.learned_limit, ..none.clone() },
            Guards { concurrency: all.concurrency, ..none.clone() },
        ] {
            assert!(pipeline(guards).limits.is_some());
        }
        assert!(pipeline(none).limits.is_none());
    }

    #[test]
    fn what_an_upstream_takes_on_it_answers() {
        let failures = [Failure::Status(500), Failure::Status(503), Failure::Timeout, Failure::Throttled];
        assert_eq!(failures.map(|failure| was_taken_on(Outcome::Failure(failure))), [true, false, false, false]);
        assert!(was_taken_on(Outcome::Success));
    }

    #[test]
    fn the_order_is_written_down_and_every_rule_in_it_exists() {
        assert!(STAGES.iter().all(|stage| Refusal::RULES.contains(&stage.rule)), "{STAGES:?}");
        let split = STAGES.iter().position(|stage| stage.every_try).expect("some are asked for every try");
        assert!(STAGES[split..].iter().all(|stage| stage.every_try), "once before each");
        let plain = pipeline(Guards { breaker: None, ..Guards::default() });
        let leave = plain.admit(Mono::ZERO).expect("nobody asks");
        plain.release(leave);
        assert!(plain.admits_at().is_none() && plain.belief().is_none() && plain.concurrency().is_none());
        let call = hedge::Call { started: Mono::ZERO, hedges: 0, idempotent: true };
        assert!(plain.hedge_due(Mono::ZERO, call).is_err() && plain.hedge(Mono::ZERO, call).is_err());
        plain.on_time(Mono::ZERO);
        assert!(plain.would_refuse(Mono::ZERO).is_none() && plain.breaker().is_none());
    }
}
