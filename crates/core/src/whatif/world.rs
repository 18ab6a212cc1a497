//! The clock that jumps from event to event, and everybody who does something at one.
//! Second copies are in `copies.rs`, what is kept for later in `kept.rs`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::copies::Copy;
use super::dependency::Ailment;
use super::kept::Kept;
use super::report::{Report, Row, Summary, emptied_after, quantile_ms, recovered_at};
use super::{Layer, Scenario};
use crate::guard::breaker::StateName;
use crate::guard::budget::{Budget, Coin};
use crate::guard::bulkhead::{Entry, Priority, Ticket};
use crate::guard::deadline::Deadline;
use crate::guard::learned::Signals;
use crate::guard::pipeline::{Answered, Leave, NoRetry, Pipeline};
use crate::guard::rate::Rate;
use crate::guard::retry::{Pushback, Tried, Waits};
use crate::guard::{Invalid, Refusal};
use crate::outcome::{Failure, Outcome};
use crate::prng::Prng;
use crate::time::Mono;

/// What a connection that nobody takes costs, and an answer that costs nothing.
const AT_ONCE: Duration = Duration::from_micros(500);
/// How often the guards' time passes without a call, as in the gateway.
const TICK: Duration = Duration::from_millis(100);

/// Which call; a place is used again, with another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CallId {
    pub(super) place: u32,
    number: u32,
}

/// One try of a call, or the second copy of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TryId {
    pub(super) call: CallId,
    pub(super) attempt: u32,
    pub(super) is_copy: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    Arrive,
    Served(TryId, Verdict),
    Answered(TryId, Verdict),
    TryOver(TryId),
    /// A try has taken longer than most.
    CopyDue(TryId),
    WaitOver(CallId),
    Retry(CallId),
    /// A kept call whose delivery failed may be tried again: layer, instance, tries so far.
    KeptReady(usize, usize, u32),
    /// Kept calls may go out: layer, instance.
    DeliverKept(usize, usize),
    Tick,
    Second,
}

/// What the dependency, or a layer below, says to a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Good,
    /// Something stood in for a good answer.
    Reduced,
    Failed,
    Refused,
    /// 429, with the seconds of `Retry-After` if it says so.
    TooMany(Option<u32>),
    NoConnection,
}

pub(super) struct Call {
    number: u32,
    pub(super) layer: usize,
    pub(super) instance: usize,
    parent: Option<TryId>,
    /// Which request of the traffic it belongs to.
    pub(super) nth: usize,
    began: Mono,
    pub(super) deadline: Deadline,
    waits: Waits,
    pub(super) attempts: u32,
    owned_above: bool,
    has_place: bool,
    ticket: Option<Ticket>,
    pub(super) leave: Option<Leave>,
    coin: Option<Coin>,
    child: Option<CallId>,
    pub(super) copy: Option<Copy>,
    /// How its first copy failed while the second was on its way.
    pub(super) first_failed: Option<(Failure, Option<Duration>)>,
    /// Tries so far, if it is a kept call on its way.
    pub(super) kept: Option<u32>,
}

pub(super) struct Instance {
    pub(super) guards: Pipeline,
    waiting: BTreeMap<Ticket, CallId>,
    opened_seen: u64,
    pub(super) kept: Kept,
}

pub(super) struct World<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) now: Mono,
    ends: Mono,
    events: BinaryHeap<Reverse<(Mono, u64, Event)>>,
    order: u64,
    calls: Vec<Option<Call>>,
    free: Vec<u32>,
    numbers: u32,
    pub(super) layers: Vec<Vec<Instance>>,
    pub(super) arrivals: usize,
    of_traffic: Prng,
    of_dependency: Prng,
    pub(super) of_layers: Prng,
    busy: u32,
    queue: VecDeque<(TryId, usize)>,
    limit: Option<Rate>,
    pub(super) row: Row,
    latencies_us: Vec<u32>,
    all_latencies_us: Vec<u32>,
    rows: Vec<Row>,
    first_opened: Option<Mono>,
    tell: &'a mut dyn FnMut(Duration),
}

pub(super) fn play(scenario: &Scenario, tell: &mut dyn FnMut(Duration)) -> Result<Report, Invalid> {
    let mut seeds = Prng::new(scenario.seed);
    let mut world = World {
        scenario,
        now: Mono::ZERO,
        ends: Mono::ZERO + scenario.lasts,
        events: BinaryHeap::new(),
        order: 0,
        calls: Vec::new(),
        free: Vec::new(),
        numbers: 0,
        layers: scenario.layers.iter().map(|layer| instances(layer, &mut seeds)).collect::<Result<_, _>>()?,
        arrivals: 0,
        of_traffic: seeds.fork(),
        of_dependency: seeds.fork(),
        of_layers: seeds.fork(),
        busy: 0,
        queue: VecDeque::new(),
        limit: scenario.dependency.rate_limit.map(|limit| Rate::new(limit.rate)).transpose()?,
        row: Row::default(),
        latencies_us: Vec::new(),
        all_latencies_us: Vec::new(),
        rows: Vec::new(),
        first_opened: None,
        tell,
    };
    if let Some(first) = scenario.traffic.first(&mut world.of_traffic) {
        world.at(first, Event::Arrive);
    }
    world.after(TICK, Event::Tick);
    world.after(Duration::from_secs(1), Event::Second);
    world.run();
    Ok(world.report())
}

fn instances(layer: &Layer, seeds: &mut Prng) -> Result<Vec<Instance>, Invalid> {
    (0..layer.instances)
        .map(|_| {
            let budget = Arc::new(Mutex::new(Budget::new(Mono::ZERO)));
            let seed = (seeds.next_u64(), 1);
            let guards = Pipeline::new(layer.guards.clone(), budget, seed, Mono::ZERO, |_| {})?;
            let kept = Kept::of(layer.stand_in);
            Ok(Instance { guards, waiting: BTreeMap::new(), opened_seen: 0, kept })
        })
        .collect()
}

impl World<'_> {
    fn run(&mut self) {
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            // The last second is closed at the very end; nothing else begins there.
            if at > self.ends || (at == self.ends && event != Event::Second) {
                return;
            }
            self.now = at;
            match event {
                Event::Arrive => self.arrive(),
                Event::Served(id, verdict) => self.served(id, verdict),
                Event::Answered(id, verdict) => self.answered(id, verdict),
                Event::TryOver(id) => self.fail(id, Failure::Timeout, None),
                Event::CopyDue(id) => self.copy(id),
                Event::WaitOver(id) => self.wait_over(id),
                Event::Retry(id) => self.attempt(id),
                Event::KeptReady(layer, instance, tries) => self.kept_ready(layer, instance, tries),
                Event::DeliverKept(layer, instance) => self.deliver_kept(layer, instance),
                Event::Tick => self.tick(),
                Event::Second => self.second(),
            }
        }
    }

    pub(super) fn at(&mut self, at: Mono, event: Event) {
        self.order += 1;
        self.events.push(Reverse((at, self.order, event)));
    }

    pub(super) fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    fn arrive(&mut self) {
        let nth = self.arrivals;
        self.arrivals += 1;
        self.row.offered += 1;
        if let Some(next) = self.scenario.traffic.next(self.now, nth, &mut self.of_traffic) {
            self.at(next, Event::Arrive);
        }
        self.begin(0, None, nth);
    }

    /// A call to any of the instances of a layer.
    fn begin(&mut self, layer: usize, parent: Option<TryId>, nth: usize) -> CallId {
        let instance = self.of_layers.below(self.layers[layer].len() as u64) as usize;
        self.begin_at((layer, instance), parent, nth, None)
    }

    /// A call to one instance; `kept` has the tries so far of one that was kept.
    pub(super) fn begin_at(
        &mut self,
        (layer, instance): (usize, usize),
        parent: Option<TryId>,
        nth: usize,
        kept: Option<u32>,
    ) -> CallId {
        let (config, now) = (&self.scenario.layers[layer], self.now);
        let above = layer.checked_sub(1).map(|above| &self.scenario.layers[above]);
        let owned_above =
            above.is_some_and(|above| above.marks_retries && above.idempotent && above.guards.retry.attempts_max > 1);
        let callers = parent.and_then(|parent| self.call(parent.call)).map(|call| call.deadline.left(now));
        // Only who marks retries tells its patience too; others leave those below in the dark.
        let callers = callers.filter(|_| above.is_some_and(|above| above.marks_retries));
        self.numbers = self.numbers.wrapping_add(1);
        let call = Call {
            number: self.numbers,
            layer,
            instance,
            parent,
            nth,
            began: now,
            deadline: Deadline::new(now, config.guards.timeout, callers),
            waits: Waits::default(),
            attempts: 0,
            owned_above,
            has_place: false,
            ticket: None,
            leave: None,
            coin: None,
            child: None,
            copy: None,
            first_failed: None,
            kept,
        };
        let deadline = call.deadline;
        let id = self.keep(call);
        let guards = &self.layers[layer][instance].guards;
        match guards.enter(now, &deadline, Priority::Normal) {
            Ok(Entry::Admitted) => {
                self.expect_call(id).has_place = true;
                self.attempt(id);
            }
            Ok(Entry::Waiting { ticket, until, evicted }) => {
                let evicted = evicted.and_then(|evicted| self.layers[layer][instance].waiting.remove(&evicted));
                self.layers[layer][instance].waiting.insert(ticket, id);
                self.expect_call(id).ticket = Some(ticket);
                self.at(until, Event::WaitOver(id));
                if let Some(evicted) = evicted {
                    let refusal = self.layers[layer][instance].guards.evicted();
                    self.refuse(evicted, &refusal);
                }
            }
            Err(refusal) => self.refuse(id, &refusal),
        }
        id
    }

    fn attempt(&mut self, id: CallId) {
        let (now, scenario) = (self.now, self.scenario);
        let Some(call) = self.call_mut(id) else { return };
        call.attempts += 1;
        let (layer, instance, attempt, nth) = (call.layer, call.instance, call.attempts, call.nth);
        let until = call.deadline.of_try(now, scenario.layers[layer].guards.try_timeout);
        let id_of_try = TryId { call: id, attempt, is_copy: false };
        match self.layers[layer][instance].guards.admit(now) {
            Ok(leave) => {
                self.expect_call(id).leave = Some(leave);
                self.at(until, Event::TryOver(id_of_try));
                self.plan_copy(id_of_try);
                if layer + 1 < self.layers.len() {
                    let child = self.begin(layer + 1, Some(id_of_try), nth);
                    if let Some(call) = self.call_mut(id).filter(|call| call.attempts == attempt) {
                        call.child = Some(child);
                    }
                } else {
                    self.submit(id_of_try, nth);
                }
            }
            Err(refusal) => self.refuse(id, &refusal),
        }
    }

    /// A try reaches the dependency.
    pub(super) fn submit(&mut self, id: TryId, nth: usize) {
        self.row.sent += 1;
        let dependency = &self.scenario.dependency;
        if let Some(recorded) = self.scenario.traffic.recorded(nth) {
            let verdict = if recorded.well { Verdict::Good } else { Verdict::Failed };
            return self.after(recorded.latency, Event::Answered(id, verdict));
        }
        for ailment in dependency.ailments(self.now) {
            match ailment {
                Ailment::Down => return self.after(AT_ONCE, Event::Answered(id, Verdict::NoConnection)),
                Ailment::Hangs => return,
                Ailment::Slow(_) | Ailment::Fails(_) => {}
            }
        }
        if let Some(limit) = &mut self.limit
            && let Err(refusal) = limit.admit(self.now, 1)
        {
            let says_when = dependency.rate_limit.is_some_and(|limit| limit.says_when);
            let seconds = refusal.retry_in().map(|wait| u32::try_from(wait.as_secs()).unwrap_or(u32::MAX) + 1);
            return self.after(AT_ONCE, Event::Answered(id, Verdict::TooMany(seconds.filter(|_| says_when))));
        }
        match dependency.workers {
            Some(workers) if self.busy >= workers => {
                if self.queue.len() < dependency.queue_max as usize {
                    self.queue.push_back((id, nth));
                } else {
                    self.after(AT_ONCE, Event::Answered(id, Verdict::Refused));
                }
            }
            _ => self.serve(id),
        }
    }

    fn serve(&mut self, id: TryId) {
        let dependency = &self.scenario.dependency;
        self.busy += 1;
        let (latency, failure_rate) = dependency.mood(self.now);
        let mut takes = latency.draw(&mut self.of_dependency);
        let mut fails = self.of_dependency.chance(failure_rate.get());
        if let Some(workers) = dependency.workers {
            takes = takes.mul_f64(1.0 + dependency.drag * self.queue.len() as f64 / f64::from(workers));
        }
        for ailment in dependency.ailments(self.now) {
            match ailment {
                Ailment::Slow(factor) => takes = takes.mul_f64(factor),
                Ailment::Fails(share) => fails |= self.of_dependency.chance(share.get()),
                Ailment::Down | Ailment::Hangs => {}
            }
        }
        self.after(takes, Event::Served(id, if fails { Verdict::Failed } else { Verdict::Good }));
    }

    fn served(&mut self, id: TryId, verdict: Verdict) {
        self.busy -= 1;
        self.answered(id, verdict);
        if let Some((next, _)) = self.queue.pop_front() {
            // Whether or not anybody still waits for it: that is what makes an overload last.
            self.serve(next);
        }
    }

    fn answered(&mut self, id: TryId, verdict: Verdict) {
        match verdict {
            Verdict::Good | Verdict::Reduced => self.succeed(id, verdict),
            Verdict::Failed | Verdict::Refused => self.fail(id, Failure::Status(503), None),
            Verdict::TooMany(seconds) => {
                let wish = seconds.map(|seconds| Duration::from_secs(seconds.into()));
                self.fail(id, Failure::Throttled, wish);
            }
            Verdict::NoConnection => self.fail(id, Failure::ConnectRefused, None),
        }
    }

    fn succeed(&mut self, id: TryId, verdict: Verdict) {
        if self.end_try(id, Outcome::Success, Answered { status: Some(200), ..Answered::default() }) {
            self.finish(id.call, verdict);
        }
    }

    fn fail(&mut self, id: TryId, failure: Failure, retry_after: Option<Duration>) {
        let status = match failure {
            Failure::Status(status) => Some(status),
            Failure::Throttled => Some(429),
            _ => None,
        };
        let signals = Signals { retry_after, ..Signals::default() };
        let answered = Answered { status, retry_after, signals: Some(&signals) };
        if !self.end_try(id, Outcome::Failure(failure), answered) {
            return;
        }
        let now = self.now;
        if let Some(child) = self.call_mut(id.call).and_then(|call| call.child.take()) {
            self.cancel(child);
        }
        let Some((failure, retry_after)) = self.when_all_failed(id, (failure, retry_after)) else { return };
        let Some(call) = self.calls[id.call.place as usize].as_mut() else { return };
        if call.kept.is_some() {
            let seconds = retry_after.map(|wish| u32::try_from(wish.as_secs()).unwrap_or(u32::MAX));
            let told = if failure == Failure::Throttled { Verdict::TooMany(seconds) } else { verdict_of(failure) };
            return self.finish(id.call, told);
        }
        let tried = Tried {
            attempts: call.attempts,
            failure,
            idempotent: self.scenario.layers[call.layer].idempotent,
            replayable: true,
            owned_above: call.owned_above,
            elapsed: now.since(call.began),
            pushback: retry_after.map(Pushback::After),
        };
        let guards = &self.layers[call.layer][call.instance].guards;
        match guards.next_try(now, tried, &mut call.waits, &call.deadline, &mut self.of_layers) {
            Ok((wait, coin)) => {
                call.coin = Some(coin);
                self.row.retried += 1;
                self.after(wait, Event::Retry(id.call));
            }
            Err(NoRetry::NotAfforded(refusal)) => {
                self.count_refusal(&refusal);
                self.finish(id.call, verdict_of(failure));
            }
            Err(NoRetry::GaveUp(_) | NoRetry::TooLate) => self.finish(id.call, verdict_of(failure)),
        }
    }

    /// Tells the guards what a try came to. False if nobody waits for it any more.
    fn end_try(&mut self, id: TryId, outcome: Outcome, answered: Answered<'_>) -> bool {
        let (now, Some(call)) = (self.now, self.call_mut(id.call)) else { return false };
        if call.attempts != id.attempt {
            return false;
        }
        if id.is_copy {
            return self.end_copy(id, outcome, answered);
        }
        let Some(leave) = call.leave.take() else { return false };
        let (layer, instance, coin) = (call.layer, call.instance, call.coin.take());
        let guards = &self.layers[layer][instance].guards;
        let took = now.since(leave.since);
        guards.report(now, leave, outcome, took, answered);
        coin.into_iter().for_each(|coin| guards.done(coin));
        true
    }

    fn refuse(&mut self, id: CallId, refusal: &Refusal) {
        match self.call(id).filter(|call| call.kept.is_some()) {
            // Nobody waits for it: it is not among the requests that were refused.
            Some(call) => {
                let (layer, instance, now) = (call.layer, call.instance, self.now);
                self.layers[layer][instance].kept.refused(now, refusal.retry_in());
            }
            None => self.count_refusal(refusal),
        }
        self.finish(id, Verdict::Refused);
    }

    fn count_refusal(&mut self, refusal: &Refusal) {
        *self.row.refused.entry(refusal.rule()).or_default() += 1;
    }

    fn wait_over(&mut self, id: CallId) {
        let Some(call) = self.call_mut(id) else { return };
        let (Some(ticket), layer, instance) = (call.ticket, call.layer, call.instance) else { return };
        let of = &mut self.layers[layer][instance];
        if of.waiting.remove(&ticket).is_some()
            && let Some(refusal) = of.guards.abandon(ticket)
        {
            self.refuse(id, &refusal);
        }
    }

    /// A call is over: its place goes on, and whoever made it hears.
    fn finish(&mut self, id: CallId, verdict: Verdict) {
        let Some(mut call) = self.take(id) else { return };
        self.let_go(&mut call);
        if let Some(tries) = call.kept {
            return self.kept_came_to(&call, tries, verdict);
        }
        let verdict = self.stand_in(&call, verdict);
        match call.parent {
            Some(parent) => self.after(Duration::ZERO, Event::Answered(parent, verdict)),
            None if verdict == Verdict::Reduced => self.row.reduced += 1,
            None if verdict == Verdict::Good => {
                self.row.good += 1;
                let took_us = self.now.since(call.began).as_micros();
                self.latencies_us.push(u32::try_from(took_us).unwrap_or(u32::MAX));
            }
            None => self.row.failed += 1,
        }
    }

    /// Its caller has given up: everything it holds is given back, and nobody hears.
    fn cancel(&mut self, id: CallId) {
        let Some(mut call) = self.take(id) else { return };
        if let Some(leave) = call.leave.take() {
            self.layers[call.layer][call.instance].guards.release(leave);
        }
        if let Some(child) = call.child.take() {
            self.cancel(child);
        }
        if let Some(ticket) = call.ticket {
            let of = &mut self.layers[call.layer][call.instance];
            of.waiting.remove(&ticket);
            let _ = of.guards.abandon(ticket);
        }
        self.let_go(&mut call);
    }

    fn let_go(&mut self, call: &mut Call) {
        self.drop_copy(call);
        let of = &mut self.layers[call.layer][call.instance];
        of.guards.end();
        // Of a retry that was afforded and then refused.
        call.coin.take().into_iter().for_each(|coin| of.guards.done(coin));
        if call.has_place
            && let Some(next) = of.guards.leave().and_then(|ticket| of.waiting.remove(&ticket))
        {
            let served = self.expect_call(next);
            (served.has_place, served.ticket) = (true, None);
            self.after(Duration::ZERO, Event::Retry(next));
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        for instance in self.layers.iter_mut().flatten() {
            instance.guards.on_time(now);
            let Some(breaker) = instance.guards.breaker() else { continue };
            let opened = breaker.look(now, |breaker| breaker.opened_total());
            if opened > instance.opened_seen {
                instance.opened_seen = opened;
                self.first_opened.get_or_insert(now);
            }
        }
        self.deliver_all_kept();
        self.after(TICK, Event::Tick);
    }

    fn second(&mut self) {
        self.close_row();
        (self.tell)(self.now.since(Mono::ZERO));
        self.after(Duration::from_secs(1), Event::Second);
    }

    fn close_row(&mut self) {
        self.latencies_us.sort_unstable();
        let not_closed = |instance: &&Instance| {
            instance.guards.breaker().is_some_and(|breaker| breaker.state() != StateName::Closed)
        };
        let row = Row {
            second: self.rows.len() as u64,
            latency_p50_ms: quantile_ms(&self.latencies_us, 0.5),
            latency_p99_ms: quantile_ms(&self.latencies_us, 0.99),
            not_closed: self.layers.iter().flatten().filter(not_closed).count() as u32,
            queued: self.queue.len() as u32,
            kept: self.layers.iter().flatten().map(|instance| instance.kept.count()).sum(),
            ..std::mem::take(&mut self.row)
        };
        self.all_latencies_us.append(&mut self.latencies_us);
        self.rows.push(row);
    }

    fn report(mut self) -> Report {
        if self.row != Row::default() {
            self.close_row();
        }
        self.all_latencies_us.sort_unstable();
        let sum = |of: fn(&Row) -> u32| self.rows.iter().map(|row| u64::from(of(row))).sum::<u64>();
        let (offered, good, sent) = (sum(|row| row.offered), sum(|row| row.good), sum(|row| row.sent));
        let mut refused = BTreeMap::new();
        for (rule, count) in self.rows.iter().flat_map(|row| &row.refused) {
            *refused.entry(*rule).or_default() += u64::from(*count);
        }
        let troubles = &self.scenario.dependency.troubles;
        let begins = troubles.iter().map(|trouble| trouble.from).min();
        let ends = troubles.iter().map(|trouble| trouble.until).max();
        let first_opened = self.first_opened.map(|at| at.since(Mono::ZERO));
        let recovered = ends.and_then(|ends| {
            let from = ends.as_secs() + u64::from(ends.subsec_nanos() > 0);
            recovered_at(&self.rows, from).map(|second| second as f64 - ends.as_secs_f64())
        });
        let share = |part: u64| if offered == 0 { 0.0 } else { part as f64 / offered as f64 };
        let summary = Summary {
            offered,
            good,
            reduced: sum(|row| row.reduced),
            failed: sum(|row| row.failed),
            goodput_ratio: share(good),
            refused,
            retried: sum(|row| row.retried),
            hedged: sum(|row| row.hedged),
            sent,
            amplification: share(sent),
            latency_p50_ms: quantile_ms(&self.all_latencies_us, 0.5),
            latency_p99_ms: quantile_ms(&self.all_latencies_us, 0.99),
            opened: self.layers.iter().flatten().map(|instance| instance.opened_seen).sum(),
            first_opened_s: first_opened.map(|at| at.as_secs_f64()),
            to_open_s: first_opened
                .zip(begins)
                .filter(|(opened, begins)| opened >= begins)
                .map(|(opened, begins)| (opened - begins).as_secs_f64()),
            to_recover_s: recovered,
            kept_max: self.rows.iter().map(|row| row.kept).max().unwrap_or(0),
            kept_at_end: self.rows.last().map_or(0, |row| row.kept),
            to_empty_s: ends.and_then(|ends| emptied_after(&self.rows, ends.as_secs_f64())),
        };
        Report { seed: self.scenario.seed, summary, rows: self.rows }
    }

    fn keep(&mut self, call: Call) -> CallId {
        let number = call.number;
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.calls.push(None);
                (self.calls.len() - 1) as u32
            }
        };
        self.calls[place as usize] = Some(call);
        CallId { place, number }
    }

    fn take(&mut self, id: CallId) -> Option<Call> {
        self.call(id)?;
        self.free.push(id.place);
        self.calls[id.place as usize].take()
    }

    pub(super) fn call(&self, id: CallId) -> Option<&Call> {
        self.calls[id.place as usize].as_ref().filter(|call| call.number == id.number)
    }

    pub(super) fn call_mut(&mut self, id: CallId) -> Option<&mut Call> {
        self.calls[id.place as usize].as_mut().filter(|call| call.number == id.number)
    }

    fn expect_call(&mut self, id: CallId) -> &mut Call {
        self.call_mut(id).expect("whoever waits or was just begun is there")
    }
}

fn verdict_of(failure: Failure) -> Verdict {
    match failure {
        Failure::Throttled => Verdict::TooMany(None),
        Failure::ConnectRefused => Verdict::NoConnection,
        _ => Verdict::Failed,
    }
}
