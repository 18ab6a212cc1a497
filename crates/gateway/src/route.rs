//! A route at run time: its guards behind one lock, what they told the journal, and whether its answers are reduced.
//!
//! Leave is given as values that give themselves back: a [`Place`] in the bulkhead, a [`Pass`] of the breaker. A call
//! that is dropped half way (its client went away) leaves no permit behind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use seawall_core::guard::breaker::{Breaker, Permit, StateName, Transition};
use seawall_core::guard::budget::Budget;
use seawall_core::guard::bulkhead::{Bulkhead, Entry, Ticket};
use seawall_core::guard::deadline::Deadline;
use seawall_core::guard::{Refusal, Seen};
use seawall_core::journal::{Draft, Kind, Seq};
use seawall_core::observation::BreakerSnapshot;
use seawall_core::outcome::Outcome;
use seawall_core::policy::Route;
use seawall_core::time::{Mono, Wall};
use seawall_core::units::{Ratio, format_duration};
use seawall_store::Journal;
use tokio::sync::oneshot;

use crate::clock::Clock;

/// Answers are called whole again when none was reduced for this long.
const DEGRADED_LINGER: Duration = Duration::from_secs(2);
/// Calls that fail within this long of each other are one story, told once.
const FAILING_LINGER: Duration = Duration::from_secs(10);

pub(crate) struct RouteState {
    pub(crate) policy: Route,
    pub(crate) upstream_name: String,
    guards: Mutex<Guards>,
    journal: Journal,
    clock: Clock,
    /// Since when answers are reduced, in milliseconds of [`Wall`]; zero while whole.
    degraded_since: AtomicU64,
    /// When an answer was last reduced, in nanoseconds of [`Mono`].
    degraded_last: AtomicU64,
}

struct Guards {
    breaker: Option<Breaker>,
    budget: Budget,
    bulkhead: Bulkhead,
    /// Who waits for a place.
    waiters: BTreeMap<Ticket, oneshot::Sender<()>>,
    /// What the journal last said of this route: the cause of what comes next.
    last_entry: Option<Seq>,
    /// What was in force when the first call came: failing calls are told because of it.
    begun: Option<Seq>,
    /// The entry that says how calls fail, and when one last did.
    failing: Option<(Seq, Mono)>,
    degraded_entry: Option<Seq>,
}

impl RouteState {
    pub(crate) fn new(
        policy: Route,
        upstream_name: String,
        journal: Journal,
        clock: Clock,
        cause: Option<Seq>,
    ) -> Self {
        let now = clock.now();
        let guards = Guards {
            breaker: policy.guards.breaker.clone().map(|config| Breaker::new(config, now)),
            budget: Budget::new(policy.guards.budget, now),
            bulkhead: Bulkhead::new(policy.guards.bulkhead),
            waiters: BTreeMap::new(),
            last_entry: cause,
            begun: cause,
            failing: None,
            degraded_entry: None,
        };
        Self {
            policy,
            upstream_name,
            guards: Mutex::new(guards),
            journal,
            clock,
            degraded_since: AtomicU64::new(0),
            degraded_last: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Guards> {
        // A panic while locked cannot leave the machines half-changed in a way worse than refusing all calls.
        self.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request and gets it a place, waiting for one if need be.
    pub(crate) async fn enter(self: &Arc<Self>, now: Mono, deadline: Deadline) -> Result<Place, Refusal> {
        let (ticket, until, admitted) = {
            let mut guards = self.lock();
            guards.budget.deposit(now);
            match guards.bulkhead.enter(now, deadline.at())? {
                Entry::Admitted => return Ok(Place { route: Arc::clone(self) }),
                Entry::Waiting(ticket, until) => {
                    let (admit, admitted) = oneshot::channel();
                    guards.waiters.insert(ticket, admit);
                    (ticket, until, admitted)
                }
            }
        };
        let mut waiting = Waiting { route: self, ticket, given: false };
        match tokio::time::timeout_at(self.clock.instant(until), admitted).await {
            Ok(Ok(())) => {
                waiting.given = true;
                Ok(Place { route: Arc::clone(self) })
            }
            Ok(Err(_)) | Err(_) => {
                let refusal = waiting.give_up();
                waiting.given = true;
                refusal.map_or_else(|| Ok(Place { route: Arc::clone(self) }), Err)
            }
        }
    }

    /// Asks the breaker.
    pub(crate) fn admit(self: &Arc<Self>, now: Mono) -> Result<Pass, Refusal> {
        let mut guards = self.lock();
        let Some(breaker) = guards.breaker.as_mut() else {
            return Ok(Pass { route: Arc::clone(self), permit: None, started: now });
        };
        let expired = breaker.on_time(now);
        let admitted = breaker.admit(now);
        if let Some(transition) = expired {
            self.tell(&mut guards, transition);
        }
        let (permit, transition) = admitted?;
        if let Some(transition) = transition {
            self.tell(&mut guards, transition);
        }
        Ok(Pass { route: Arc::clone(self), permit: Some(permit), started: now })
    }

    /// Leave without asking, for calls that are no business of this breaker.
    pub(crate) fn pass_unguarded(self: &Arc<Self>, now: Mono) -> Pass {
        Pass { route: Arc::clone(self), permit: None, started: now }
    }

    /// What the breaker sees.
    pub(crate) fn seen(&self, now: Mono) -> Seen {
        self.lock().breaker.as_mut().map_or_else(Seen::default, |breaker| breaker.seen(now))
    }

    /// When the breaker will admit a call, if not now. For the forwarder, who can wait.
    pub(crate) fn admits_at(&self) -> Option<Mono> {
        self.lock().breaker.as_ref().and_then(Breaker::admits_at)
    }

    /// Takes one retry from the budget.
    pub(crate) fn withdraw(&self, now: Mono) -> Result<(), Refusal> {
        self.lock().budget.withdraw(now)
    }

    /// What the journal last said of this route, its failing calls included.
    pub(crate) fn cause(&self) -> Option<Seq> {
        let guards = self.lock();
        guards.last_entry.max(guards.failing.map(|(entry, _)| entry))
    }

    /// Notes a call that failed or was refused, and what the journal says of it. Told before anything stands in for
    /// the upstream: what fills the spool must not be told before its cause.
    pub(crate) fn failing(&self, now: Mono, reason: &str) -> Seq {
        let mut guards = self.lock();
        let told = guards.failing.filter(|(_, last)| now.since(*last) < FAILING_LINGER);
        let entry = told.map_or_else(
            || {
                let draft = Draft::new(Kind::CallsFailing, self.subject()).because(guards.begun);
                self.journal.record(draft.with("upstream", &self.upstream_name).with("reason", reason))
            },
            |(entry, _)| entry,
        );
        guards.failing = Some((entry, now));
        entry
    }

    /// Notes a reduced answer. Tells since when answers have been reduced.
    pub(crate) fn degraded(&self, how: &str, cause: Option<Seq>) -> Wall {
        self.degraded_last.store(self.clock.now().as_nanos(), Relaxed);
        let since = self.degraded_since.load(Relaxed);
        if since != 0 {
            return Wall::from_millis(since);
        }
        let wall = self.clock.wall();
        if self.degraded_since.compare_exchange(0, wall.as_millis().max(1), Relaxed, Relaxed).is_ok() {
            let mut guards = self.lock();
            let draft = Draft::new(Kind::DegradedStarted, self.subject()).because(cause).with("how", how);
            let seq = self.journal.record(draft);
            guards.degraded_entry = Some(seq);
            guards.last_entry = Some(seq);
        }
        wall
    }

    /// Notes a whole answer: after a while without reduced ones, the route is whole again.
    pub(crate) fn whole(&self, now: Mono) {
        let since = self.degraded_since.load(Relaxed);
        if since == 0 || now.since(Mono::from_nanos(self.degraded_last.load(Relaxed))) < DEGRADED_LINGER {
            return;
        }
        if self.degraded_since.compare_exchange(since, 0, Relaxed, Relaxed).is_ok() {
            let mut guards = self.lock();
            let lasted = self.clock.wall().since(Wall::from_millis(since));
            let draft = Draft::new(Kind::DegradedEnded, self.subject())
                .because(guards.degraded_entry.take())
                .with("lasted", format_duration(lasted));
            guards.last_entry = Some(self.journal.record(draft));
        }
    }

    pub(crate) fn degraded_since(&self) -> Option<Wall> {
        Some(self.degraded_since.load(Relaxed)).filter(|since| *since != 0).map(Wall::from_millis)
    }

    /// The breaker at a glance, calls on their way, calls waiting.
    pub(crate) fn look(&self, now: Mono) -> (BreakerSnapshot, u64, u64) {
        let mut guards = self.lock();
        let (in_flight, waiting) = (guards.bulkhead.in_flight(), guards.bulkhead.waiting());
        let snapshot = match guards.breaker.as_mut() {
            None => BreakerSnapshot { state: "off", ..BreakerSnapshot::default() },
            Some(breaker) => {
                let seen = breaker.seen(now);
                let rate = |part: u32| Ratio::of(part.into(), seen.calls.into()).map(Ratio::get);
                BreakerSnapshot {
                    state: breaker.state().name(),
                    failure_rate: rate(seen.failed),
                    slow_rate: rate(seen.slow),
                    since_s: now.since(breaker.since()).as_secs_f64(),
                    opened_total: breaker.opened_total(),
                }
            }
        };
        (snapshot, in_flight.into(), waiting.into())
    }

    fn subject(&self) -> String {
        format!("route:{}", self.policy.name)
    }

    fn tell(&self, guards: &mut Guards, transition: Transition) {
        let kind = match transition.to {
            StateName::Open => Kind::BreakerOpened,
            StateName::HalfOpen => Kind::BreakerHalfOpened,
            StateName::Closed => Kind::BreakerClosed,
        };
        let seen = transition.seen;
        let mut draft = Draft::new(kind, self.subject())
            .because(guards.last_entry)
            .with("upstream", &self.upstream_name)
            .with("calls", seen.calls)
            .with("failed", seen.failed)
            .with("slow", seen.slow);
        if let Some(open_for) = transition.open_for {
            draft = draft.with("open_for", format_duration(open_for));
        }
        guards.last_entry = Some(self.journal.record(draft));
    }

    fn leave(&self) {
        let mut guards = self.lock();
        while let Some(next) = guards.bulkhead.leave() {
            let taken = guards.waiters.remove(&next).is_some_and(|admit| admit.send(()).is_ok());
            if taken {
                return;
            }
            // It went away in the same moment: the place goes on to whoever is behind it.
        }
    }
}

/// A place in the bulkhead.
pub(crate) struct Place {
    route: Arc<RouteState>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.route.leave();
    }
}

/// Somebody in the queue. Dropped while waiting, it gives its ticket back.
struct Waiting<'a> {
    route: &'a RouteState,
    ticket: Ticket,
    given: bool,
}

impl Waiting<'_> {
    /// `None` if the place was given in the last moment.
    fn give_up(&self) -> Option<Refusal> {
        let mut guards = self.route.lock();
        guards.waiters.remove(&self.ticket);
        guards.bulkhead.abandon(self.ticket)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.given && self.give_up().is_none() {
            self.route.leave();
        }
    }
}

/// The breaker's leave for one try.
pub(crate) struct Pass {
    route: Arc<RouteState>,
    permit: Option<Permit>,
    started: Mono,
}

impl Pass {
    /// Tells the breaker what the try came to.
    pub(crate) fn record(mut self, now: Mono, outcome: Outcome) {
        self.tell(now, now, outcome);
    }

    /// Tells it now what was answered at `answered_at`.
    pub(crate) fn record_from(mut self, now: Mono, answered_at: Mono, outcome: Outcome) {
        self.tell(now, answered_at, outcome);
    }

    fn tell(&mut self, now: Mono, answered_at: Mono, outcome: Outcome) {
        let Some(permit) = self.permit.take() else { return };
        let mut guards = self.route.lock();
        let took = answered_at.since(self.started);
        let transition = guards.breaker.as_mut().and_then(|breaker| breaker.record(now, permit, outcome, took));
        if let Some(transition) = transition {
            self.route.tell(&mut guards, transition);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        // Nobody knows what it came to: it says nothing about the upstream.
        self.tell(self.started, self.started, Outcome::Ignored);
    }
}
