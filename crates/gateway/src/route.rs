//! A route at run time: its guards, what they told the journal, and whether its answers are reduced.
//!
//! Leave is given as values that give themselves back: a [`Place`] in the bulkhead, a [`Pass`] of the breaker. A call
//! that is dropped half way (its client went away) leaves no permit behind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use seawall_core::guard::Refusal;
use seawall_core::guard::breaker::{StateName, Told, Transition};
use seawall_core::guard::budget::{Budget, Coin};
use seawall_core::guard::bulkhead::{Entry, Priority, Ticket};
use seawall_core::guard::deadline::Deadline;
use seawall_core::guard::hedge;
use seawall_core::guard::pipeline::{Answered, Leave, NoRetry, Pipeline, Snapshot};
use seawall_core::guard::retry::{Tried, Waits};
use seawall_core::journal::{Draft, Kind, Seq};
use seawall_core::observation::{BreakerSnapshot, RouteSnapshot};
use seawall_core::outcome::Outcome;
use seawall_core::policy::Route;
use seawall_core::prng::Prng;
use seawall_core::time::{Mono, Wall};
use seawall_core::units::{Ratio, format_duration};
use seawall_store::Journal;
use tokio::sync::oneshot;

use crate::chain::Copies;
use crate::clock::Clock;
use crate::observe::RouteCounts;

/// Answers are called whole again when none was reduced for this long.
const DEGRADED_LINGER: Duration = Duration::from_secs(2);
/// When to ask again for what is drained: nobody knows.
pub(crate) const DRAINED_RETRY_IN: Duration = Duration::from_secs(5);
/// Calls that fail within this long of each other are one story, told once.
const FAILING_LINGER: Duration = Duration::from_secs(10);

pub(crate) struct RouteState {
    pub(crate) policy: Route,
    pub(crate) upstream_name: String,
    guards: Pipeline,
    /// What outlives a change of the configuration.
    life: Arc<Life>,
    voice: Arc<Voice>,
    clock: Clock,
    /// True while it is taken out of service by hand.
    draining: AtomicBool,
}

/// A route's memory beside its guards'.
#[derive(Default)]
struct Life {
    /// Who waits for a place.
    /// Those evicted stay until they have heard of it, without a way to be admitted.
    waiters: Mutex<BTreeMap<Ticket, Option<oneshot::Sender<()>>>>,
    /// Since when answers are reduced, in milliseconds of [`Wall`]; zero while whole.
    degraded_since: AtomicU64,
    /// When an answer was last reduced, in nanoseconds of [`Mono`].
    degraded_last: AtomicU64,
}

/// What is shared by the routes of a node, for one of them.
pub(crate) struct Shared {
    pub(crate) upstream_name: String,
    pub(crate) budget: Arc<Mutex<Budget>>,
    pub(crate) journal: Journal,
    pub(crate) clock: Clock,
    /// The entry that led to all this.
    pub(crate) cause: Option<Seq>,
    pub(crate) seed: u64,
}

/// Threads that mark calls on a sheet of their own; more of them take a lock.
const SHEETS: usize = 32;

impl RouteState {
    pub(crate) fn new(policy: Route, shared: Shared) -> Self {
        Self::begin(policy, shared, (&Snapshot::default(), Duration::ZERO))
    }

    /// Its guards know what those of another process knew so long ago.
    pub(crate) fn begin(policy: Route, shared: Shared, known: (&Snapshot, Duration)) -> Self {
        let Shared { upstream_name, budget, journal, clock, cause, seed } = shared;
        let voice = Arc::new(Voice {
            journal,
            subject: format!("route:{}", policy.name),
            upstream_name: upstream_name.clone(),
            clock: clock.clone(),
            said: Mutex::new(Said { last: cause, begun: cause, failing: None, degraded: None, fault: None }),
        });
        let hears = Arc::clone(&voice);
        let guards = policy.guards.clone();
        let tell = move |told: &Told| hears.tell(told);
        let guards = Pipeline::restore(guards, budget, (seed, SHEETS), known, clock.now(), tell)
            .expect("a policy's guards are checked where it is read");
        Self { policy, upstream_name, guards, life: Arc::default(), voice, clock, draining: AtomicBool::new(false) }
    }

    /// The same route under another policy: its guards keep what they know. One that leads to another upstream is
    /// another route, for what is known is known of the upstream.
    pub(crate) fn succeed(&self, policy: Route, shared: Shared) -> Self {
        if shared.upstream_name != self.upstream_name {
            return Self::new(policy, shared);
        }
        let Shared { upstream_name, budget, clock, cause, seed, .. } = shared;
        let voice = Arc::clone(&self.voice);
        voice.follow(cause);
        let hears = Arc::clone(&voice);
        let guards = policy.guards.clone();
        let guards = self.guards.succeed(guards, budget, (seed, SHEETS), clock.now(), move |told| hears.tell(told));
        let guards = guards.expect("a policy's guards are checked where it is read");
        Self {
            policy,
            upstream_name,
            guards,
            life: Arc::clone(&self.life),
            voice,
            clock,
            draining: AtomicBool::new(false),
        }
    }

    fn waiters(&self) -> MutexGuard<'_, BTreeMap<Ticket, Option<oneshot::Sender<()>>>> {
        self.life.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its guards know, for another process.
    pub(crate) fn snapshot(&self, now: Mono) -> Snapshot {
        self.guards.snapshot(now)
    }

    /// Whether new requests go the way of its guards; deliveries from the spool always do.
    pub(crate) fn takes_new(&self) -> Result<(), Refusal> {
        if !self.draining.load(Relaxed) {
            return Ok(());
        }
        Err(Refusal::Draining { what: "route", name: self.policy.name.clone(), retry_in: DRAINED_RETRY_IN })
    }

    /// Takes it out of service, or back; what comes next comes because of this entry.
    pub(crate) fn set_draining(&self, draining: bool, entry: Seq) {
        self.draining.store(draining, Relaxed);
        self.voice.follow(Some(entry));
    }

    /// Counts a request and gets it a place, waiting for one if need be.
    pub(crate) async fn enter(self: &Arc<Self>, now: Mono, deadline: Deadline) -> Result<Place, Refusal> {
        let request = Request(Arc::clone(self));
        let (ticket, until, admitted) = {
            // Held while the ticket is given: who leaves at the same moment must find the waiter of the one it names.
            let mut waiters = self.waiters();
            match self.guards.enter(now, &deadline, Priority::Normal)? {
                Entry::Admitted => return Ok(Place { request }),
                Entry::Waiting { ticket, until, evicted } => {
                    if let Some(evicted) = evicted {
                        // Its sender is dropped, which wakes it.
                        waiters.insert(evicted, None);
                    }
                    let (admit, admitted) = oneshot::channel();
                    waiters.insert(ticket, Some(admit));
                    (ticket, until, admitted)
                }
            }
        };
        let mut waiting = Waiting { route: self, ticket, given: false };
        let served = tokio::time::timeout_at(self.clock.instant(until), admitted).await;
        waiting.given = true;
        match served {
            Ok(Ok(())) => Ok(Place { request }),
            // Made to make room for a more urgent one; or the time was over.
            Ok(Err(_)) | Err(_) => waiting.give_up().map_or_else(|| Ok(Place { request }), Err),
        }
    }

    /// Asks the guards of a try.
    pub(crate) fn admit(self: &Arc<Self>, now: Mono) -> Result<Pass, Refusal> {
        let leave = self.guards.admit(now)?;
        Ok(Pass { route: Arc::clone(self), leave: Some(leave), copies: None })
    }

    /// Leave without asking, for calls that are no business of these guards.
    pub(crate) fn pass_unguarded(self: &Arc<Self>) -> Pass {
        Pass { route: Arc::clone(self), leave: None, copies: None }
    }

    /// What the breaker would say to a call that came now, without counting it.
    pub(crate) fn would_refuse(&self, now: Mono) -> Option<Refusal> {
        self.takes_new().err().or_else(|| self.guards.would_refuse(now))
    }

    /// When the breaker will admit a call, if not now. For the forwarder, who can wait.
    pub(crate) fn admits_at(&self) -> Option<Mono> {
        self.guards.admits_at()
    }

    /// Lets the breaker's time pass: calls that hang count whether or not another one comes.
    pub(crate) fn on_time(&self, now: Mono) {
        self.guards.on_time(now);
    }

    /// When a second copy of a call is worth sending, if at all.
    pub(crate) fn hedge_due(&self, now: Mono, call: hedge::Call) -> Option<Mono> {
        self.guards.hedge_due(now, call).ok()
    }

    /// A second copy that the budget affords.
    pub(crate) fn hedge(self: &Arc<Self>, now: Mono, call: hedge::Call) -> Option<Retry> {
        let coin = self.guards.hedge(now, call).ok()?;
        Some(Retry { route: Arc::clone(self), coin: Some(coin) })
    }

    /// The wait before another try, if one is safe, in time and afforded.
    pub(crate) fn next_try(
        self: &Arc<Self>,
        now: Mono,
        tried: Tried,
        waits: &mut Waits,
        deadline: &Deadline,
        prng: &mut Prng,
    ) -> Result<(Duration, Retry), NoRetry> {
        let (wait, coin) = self.guards.next_try(now, tried, waits, deadline, prng)?;
        Ok((wait, Retry { route: Arc::clone(self), coin: Some(coin) }))
    }

    /// What journal entries about this route are about.
    pub(crate) fn subject(&self) -> &str {
        &self.voice.subject
    }

    /// What the journal last said of this route, its failing calls included.
    pub(crate) fn cause(&self) -> Option<Seq> {
        let said = self.voice.said();
        said.last.max(said.failing.map(|(entry, _)| entry))
    }

    /// Notes a call that failed or was refused, and what the journal says of it. Told before anything stands in for
    /// the upstream: what fills the spool must not be told before its cause.
    pub(crate) fn failing(&self, now: Mono, reason: &str) -> Seq {
        self.voice.say_failing(now, reason)
    }

    /// Notes that a fault, placed on purpose, has touched a try: what fails now may fail because of it.
    pub(crate) fn touched(&self, now: Mono, fault: Seq) {
        self.voice.said().fault = Some((fault, now));
    }

    /// Notes a reduced answer. Tells since when answers have been reduced.
    pub(crate) fn degraded(&self, how: &str, cause: Option<Seq>) -> Wall {
        self.life.degraded_last.store(self.clock.now().as_nanos(), Relaxed);
        let since = self.life.degraded_since.load(Relaxed);
        if since != 0 {
            return Wall::from_millis(since);
        }
        let wall = self.clock.wall();
        if self.life.degraded_since.compare_exchange(0, wall.as_millis().max(1), Relaxed, Relaxed).is_ok() {
            self.voice.say_degraded(how, cause);
        }
        wall
    }

    /// Notes a whole answer: after a while without reduced ones, the route is whole again.
    pub(crate) fn whole(&self, now: Mono) {
        let since = self.life.degraded_since.load(Relaxed);
        if since == 0 || now.since(Mono::from_nanos(self.life.degraded_last.load(Relaxed))) < DEGRADED_LINGER {
            return;
        }
        if self.life.degraded_since.compare_exchange(since, 0, Relaxed, Relaxed).is_ok() {
            self.voice.say_whole(self.clock.wall().since(Wall::from_millis(since)));
        }
    }

    pub(crate) fn degraded_since(&self) -> Option<Wall> {
        Some(self.life.degraded_since.load(Relaxed)).filter(|since| *since != 0).map(Wall::from_millis)
    }

    /// How its guards stand; what calls came to is counted by workers.
    pub(crate) fn look(&self, now: Mono) -> RouteSnapshot {
        let (in_flight, waiting) = self.guards.load();
        let breaker = match self.guards.breaker() {
            None => BreakerSnapshot { state: "off", ..BreakerSnapshot::default() },
            Some(breaker) => breaker.look(now, |breaker| {
                let seen = breaker.seen(now);
                let rate = |part: u32| Ratio::of(part.into(), seen.calls.into()).map(Ratio::get);
                BreakerSnapshot {
                    state: breaker.state().name(),
                    failure_rate: rate(seen.failed),
                    slow_rate: rate(seen.slow),
                    since_s: now.since(breaker.since()).as_secs_f64(),
                    opened_total: breaker.opened_total(),
                }
            }),
        };
        RouteSnapshot {
            name: self.policy.name.clone(),
            upstream: self.upstream_name.clone(),
            protocol: self.policy.protocol,
            carries_connections: self.policy.carries_connections(),
            spools: self.policy.spools(),
            breaker,
            degraded_since_ms: self.degraded_since().map(Wall::as_millis),
            learned_limit_per_s: self.guards.belief().and_then(|belief| belief.per_second),
            concurrency_limit: self.guards.concurrency(),
            in_flight: in_flight.into(),
            waiting: waiting.into(),
            ..RouteSnapshot::default()
        }
    }

    fn leave(&self) {
        let mut waiters = self.waiters();
        while let Some(next) = self.guards.leave() {
            let taken = waiters.remove(&next).flatten().is_some_and(|admit| admit.send(()).is_ok());
            if taken {
                return;
            }
            // It went away in the same moment: the place goes on to whoever is behind it.
        }
    }
}

/// What the journal hears of a route.
struct Voice {
    journal: Journal,
    subject: String,
    upstream_name: String,
    clock: Clock,
    said: Mutex<Said>,
}

struct Said {
    /// What the journal last said of this route: the cause of what comes next.
    last: Option<Seq>,
    /// What was in force when the first call came: failing calls are told because of it.
    begun: Option<Seq>,
    /// The entry that says how calls fail, and when one last did.
    failing: Option<(Seq, Mono)>,
    degraded: Option<Seq>,
    /// The entry of the fault that last touched a try, and when.
    fault: Option<(Seq, Mono)>,
}

impl Said {
    /// The fault that is to blame for what happens now: one that touched a try just before.
    fn fault(&self, now: Mono) -> Option<Seq> {
        self.fault.filter(|(_, last)| now.since(*last) < FAILING_LINGER).map(|(fault, _)| fault)
    }
}

impl Voice {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What comes next comes because of another configuration.
    fn follow(&self, cause: Option<Seq>) {
        let mut said = self.said();
        (said.last, said.begun) = (said.last.max(cause), cause.or(said.begun));
    }

    fn tell(&self, told: &Told) {
        let Some(Transition { from, to, why, seen, open_for, share }) = told.transition else { return };
        let kind = match to {
            StateName::Open => Kind::BreakerOpened,
            StateName::HalfOpen => Kind::BreakerHalfOpened,
            StateName::Closed => Kind::BreakerClosed,
            StateName::Recovering => Kind::BreakerRecovering,
            StateName::Disabled | StateName::ForcedOpen | StateName::ObserveOnly => Kind::BreakerSet,
        };
        let mut said = self.said();
        let fault = if to == StateName::Open { said.fault(self.clock.now()) } else { None };
        let mut draft = Draft::new(kind, &self.subject)
            .because(said.last.max(fault))
            .with("upstream", &self.upstream_name)
            .with("from", from.name())
            .with("why", why.name())
            .with("calls", seen.calls)
            .with("failed", seen.failed)
            .with("slow", seen.slow);
        if kind == Kind::BreakerSet {
            draft = draft.with("to", to.name());
        }
        if let Some(open_for) = open_for {
            draft = draft.with("open_for", format_duration(open_for));
        }
        if let Some(share) = share {
            draft = draft.with("share", share);
        }
        said.last = Some(self.journal.record(draft));
    }

    fn say_failing(&self, now: Mono, reason: &str) -> Seq {
        let mut said = self.said();
        let told = said.failing.filter(|(_, last)| now.since(*last) < FAILING_LINGER);
        let entry = told.map_or_else(
            || {
                let draft = Draft::new(Kind::CallsFailing, &self.subject).because(said.begun.max(said.fault(now)));
                self.journal.record(draft.with("upstream", &self.upstream_name).with("reason", reason))
            },
            |(entry, _)| entry,
        );
        said.failing = Some((entry, now));
        entry
    }

    fn say_degraded(&self, how: &str, cause: Option<Seq>) {
        let mut said = self.said();
        let draft = Draft::new(Kind::DegradedStarted, &self.subject).because(cause).with("how", how);
        let seq = self.journal.record(draft);
        (said.degraded, said.last) = (Some(seq), Some(seq));
    }

    fn say_whole(&self, lasted: Duration) {
        let mut said = self.said();
        let draft = Draft::new(Kind::DegradedEnded, &self.subject)
            .because(said.degraded.take())
            .with("lasted", format_duration(lasted));
        said.last = Some(self.journal.record(draft));
    }
}

/// A request that the budget counts as in work.
struct Request(Arc<RouteState>);

impl Drop for Request {
    fn drop(&mut self) {
        self.0.guards.end();
    }
}

/// A place in the bulkhead.
pub(crate) struct Place {
    request: Request,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.request.0.leave();
    }
}

/// An extra try that the budget affords, until it is over.
pub(crate) struct Retry {
    route: Arc<RouteState>,
    coin: Option<Coin>,
}

impl Drop for Retry {
    fn drop(&mut self) {
        if let Some(coin) = self.coin.take() {
            self.route.guards.done(coin);
        }
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
        let mut waiters = self.route.waiters();
        match waiters.remove(&self.ticket) {
            Some(None) => Some(self.route.guards.evicted()),
            _ => self.route.guards.abandon(self.ticket),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.given && self.give_up().is_none() {
            self.route.leave();
        }
    }
}

/// The guards' leave for one try.
pub(crate) struct Pass {
    route: Arc<RouteState>,
    leave: Option<Leave>,
    copies: Option<Arc<Copies>>,
}

impl Pass {
    /// Stands for one of the copies of a call: what is known of it if another is answered first.
    pub(crate) fn one_of(&mut self, copies: &Arc<Copies>) {
        if let Some(leave) = &mut self.leave {
            leave.asked = copies.started;
        }
        self.copies = Some(Arc::clone(copies));
    }

    /// Tells the guards what the try came to, without an answer.
    pub(crate) fn record(self, counts: &RouteCounts, now: Mono, outcome: Outcome) {
        self.report(counts, now, now, outcome, Answered::default());
    }

    /// Tells them now what was answered at `answered_at`, and counts it as a call to the route's upstream.
    pub(crate) fn report(
        mut self,
        counts: &RouteCounts,
        now: Mono,
        answered_at: Mono,
        outcome: Outcome,
        answered: Answered<'_>,
    ) {
        let Some(leave) = self.leave.take() else { return };
        let took = answered_at.since(leave.since);
        counts.called(outcome, took);
        self.route.guards.report(now, leave, outcome, took, answered);
    }

    /// The answer has begun: whoever still has the pass waits for its end, and the upstream does not hang.
    pub(crate) fn answered(&mut self) {
        // Whoever was answered was not outrun.
        self.copies = None;
        if let Some(leave) = &mut self.leave {
            self.route.guards.answered(leave);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let Some(leave) = self.leave.take() else { return };
        match &self.copies {
            Some(copies) if copies.outrun.load(Relaxed) => self.route.guards.outrun(self.route.clock.now(), leave),
            // Nobody knows what it came to: it says nothing about the upstream.
            _ => self.route.guards.release(leave),
        }
    }
}
