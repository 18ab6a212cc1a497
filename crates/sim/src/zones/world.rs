//! The world of three zones and its conductor.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, SystemTime};

use seawall_core::prng::Prng;

use super::endpoint::{self, Handle};
use super::plan::{self, ORDERS, QUOTES, TIMEOUT};
use super::reader::{self, Tally};
use super::trouble::{Cut, Trouble, Troubles, of_zone};
use super::watch::{self, Coming, Look};
use super::{
    COUNT, ENDPOINTS, HOME_WITHIN, NAMES, REACH_WITHIN, client_name, endpoint_name, node_name, sink_name, zone_of,
};
use crate::faults::{Mood, one_of};
use crate::queue::{self, Shop};
use crate::stage::{Score, Seen, Stage};
use crate::world::{CALM_LATENCY, Failure, STEP, alone, count_panics, millis, panics, seconds};
use crate::{node, workload};

/// How often nodes are looked at.
const LOOK_EVERY_MS: u64 = 20;
/// Over how long shares are reckoned.
const SHARE_OVER_MS: u64 = 400;
/// How often chance is asked for new trouble.
const DRAW_EVERY_MS: u64 = 100;
const TROUBLE_CHANCE: f64 = 0.2;
/// Troubles at the same time.
const TROUBLES_MAX: usize = 6;
/// Latency of a slow road.
const SLOW_LATENCY: Duration = Duration::from_millis(900);
/// The share of calls that may go elsewhere in a zone that is well: retries do.
const AWAY_MAX: f64 = 0.05;

/// Reads of a zone that are enough to judge by, of the twelve seconds or three in which they are counted.
const READS_MIN: u64 = 30;

/// The share of reads that may fail while a zone answers some calls well: the retry budget is not made for more, and
/// who fails now and then is not always ejected.
const HALF_FAILED_MAX: f64 = 0.1;

/// Which zones were lost, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// In words.
    pub how: String,
    /// So long after the cut the last read was sent that was not answered well; nothing if all were.
    pub last_failure_after: Option<Duration>,
}

/// Trouble that goes on.
#[derive(Clone, Debug, PartialEq)]
enum Active {
    Road((usize, usize), Cut),
    Flap { endpoints: Vec<usize>, up_ms: u64, down_ms: u64, turns_at_ms: u64, is_down: bool },
    Mood(Vec<usize>),
    Down(usize),
}

/// Three zones. See the module's text. One world at a time in a process: another waits until this one is dropped.
pub struct Zones {
    sim: turmoil::Sim<'static>,
    score: Arc<Score>,
    stages: Vec<Arc<Stage>>,
    tallies: Vec<Arc<Tally>>,
    endpoints: Vec<Arc<Handle>>,
    dice: Prng,
    active: Vec<(u64, Active)>,
    is_endpoint_down: [bool; COUNT * ENDPOINTS],
    /// The last look at each node, and the one that shares are reckoned from.
    looks: Vec<Option<Look>>,
    marks: Vec<Option<Look>>,
    /// What came to endpoints in slow start, of all nodes.
    coming: Coming,
    /// When a change last touched an upstream of a node.
    touched: BTreeMap<(usize, String), u64>,
    /// Since when an endpoint is not in a node's configuration.
    removed: BTreeMap<(usize, &'static str, usize), u64>,
    /// Until when a road was last not as it should be.
    disturbed: BTreeMap<(usize, usize), u64>,
    /// When each node's life began.
    born: [(u64, u64); COUNT],
    panics_before: u64,
    _alone: MutexGuard<'static, ()>,
}

impl Zones {
    /// All is well, nothing sent yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let alone = alone();
        count_panics();
        let score = Score::new(seed);
        let around =
            |zone: usize| Arc::new(Stage::around(&score, 1 + zone as u64, &node_name(zone), plan::first(zone)));
        let stages: Vec<Arc<Stage>> = (0..COUNT).map(around).collect();
        let mut sim = turmoil::Builder::new()
            .epoch(SystemTime::UNIX_EPOCH)
            .simulation_duration(Duration::from_secs(24 * 60 * 60))
            .tick_duration(STEP)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(CALM_LATENCY)
            .tcp_capacity(1_024)
            .rng_seed(seed)
            .build();
        let endpoints: Vec<Arc<Handle>> = (0..COUNT * ENDPOINTS).map(|number| Handle::new(&score, number)).collect();
        let in_work = queue::Keys::default();
        for (number, handle) in endpoints.iter().enumerate() {
            let name = endpoint_name(number);
            let shop = Shop::new(name.as_str(), stages.clone(), Arc::clone(&handle.temper), Arc::clone(&in_work));
            let (handle, shop) = (Arc::clone(handle), Arc::new(shop));
            sim.host(name, move || endpoint::live(Arc::clone(&handle), Arc::clone(&shop)));
        }
        let tallies: Vec<Arc<Tally>> = (0..COUNT).map(|_| Arc::default()).collect();
        for (zone, stage) in stages.iter().enumerate() {
            let [of_node, of_sink, of_client] = [0; 3].map(|_| Arc::clone(stage));
            let tally = Arc::clone(&tallies[zone]);
            sim.host(node_name(zone), move || node::live(Arc::clone(&of_node)));
            sim.host(sink_name(zone), move || {
                let stage = Arc::clone(&of_sink);
                async move {
                    queue::report(stage).await;
                    Ok(())
                }
            });
            sim.host(client_name(zone), move || {
                let (stage, tally) = (Arc::clone(&of_client), Arc::clone(&tally));
                async move {
                    tokio::select! {
                        biased;
                        ended = reader::live(Arc::clone(&stage), tally) => ended,
                        ended = workload::live(stage, zone as u64) => ended,
                    }
                }
            });
        }
        Self {
            sim,
            dice: score.dice(3, 0),
            score,
            stages,
            tallies,
            endpoints,
            active: Vec::new(),
            is_endpoint_down: [false; COUNT * ENDPOINTS],
            looks: vec![None; COUNT],
            marks: vec![None; COUNT],
            coming: Coming::default(),
            touched: BTreeMap::new(),
            removed: BTreeMap::new(),
            disturbed: BTreeMap::new(),
            born: [(0, 0); COUNT],
            panics_before: panics(),
            _alone: alone,
        }
    }

    /// Lets time pass, with trouble.
    ///
    /// # Panics
    /// When something happens that must not, with the seed and the end of the trace.
    pub fn run_for(&mut self, duration: Duration, troubles: Troubles) {
        self.stages.iter().for_each(|stage| stage.is_quiet.store(false, Relaxed));
        let until = self.score.now_ms() + millis(duration);
        while self.score.now_ms() < until {
            self.step(troubles);
        }
    }

    /// Ends all trouble, and has every node go by what it began by; then waits until all is at home.
    ///
    /// # Panics
    /// As [`Self::run_for`]; and when calls are not answered in their own zone [`HOME_WITHIN`] later.
    pub fn calm(&mut self) {
        self.heal();
        for (zone, stage) in self.stages.iter().enumerate() {
            stage.wish(plan::first(zone));
        }
        self.give_back();
    }

    /// Takes one or two zones away, drawn by the seed: their endpoints, or the roads to them. From [`REACH_WITHIN`]
    /// later on every read must be answered well, for as long again (nine of ten, where the zone fails only some
    /// calls); meanwhile nodes take in their configuration anew, unchanged.
    ///
    /// # Panics
    /// As [`Self::run_for`]; and when a read is not answered well.
    pub fn lose(&mut self) -> Lost {
        let cut_ms = self.score.now_ms();
        let (how, is_half) = self.take_away();
        self.score.tell("world", format_args!("lost: {how}"));
        let before: Vec<_> = self.tallies.iter().map(|tally| tally.counts().failed_last_ms).collect();
        for at in 0..3 {
            self.run_for(REACH_WITHIN / 4, Troubles::none());
            let zone = (self.dice.below(COUNT as u64) as usize + at) % COUNT;
            self.stages[zone].wish(self.stages[zone].policy());
        }
        self.run_for(REACH_WITHIN / 4, Troubles::none());
        if !is_half {
            self.tallies.iter().for_each(|tally| tally.be_strict(Some(cut_ms + millis(REACH_WITHIN))));
        }
        let in_reach: Vec<_> = self.tallies.iter().map(|tally| tally.counts().well()).collect();
        let zone = self.dice.below(COUNT as u64) as usize;
        self.run_for(REACH_WITHIN / 2, Troubles::none());
        self.stages[zone].wish(self.stages[zone].policy());
        self.run_for(REACH_WITHIN / 2, Troubles::none());
        self.tallies.iter().for_each(|tally| tally.be_strict(None));
        for (zone, (well_before, all_before)) in in_reach.into_iter().enumerate() {
            let (well, all) = self.tallies[zone].counts().well();
            let (well, all) = (well - well_before, all - all_before);
            if all < READS_MIN || (well as f64) < (1.0 - HALF_FAILED_MAX) * all as f64 {
                let what = format_args!("{well} of {all} reads are answered well while {how}");
                self.stages[zone].violation("world", what);
            }
        }
        self.check();
        let failed = self.tallies.iter().zip(before).filter_map(|(tally, before)| {
            let last = tally.counts().failed_last_ms?;
            (Some(last) > before).then(|| last.saturating_sub(cut_ms))
        });
        Lost { how, last_failure_after: failed.max().map(Duration::from_millis) }
    }

    /// Ends all trouble. [`HOME_WITHIN`] later every read is answered well, and nearly all in their own zone.
    ///
    /// # Panics
    /// As [`Self::run_for`]; and when they are not.
    pub fn give_back(&mut self) {
        self.heal();
        self.run_for(HOME_WITHIN, Troubles::none());
        let before = self.looks.clone();
        let well_before: Vec<_> = self.tallies.iter().map(|tally| tally.counts().well().0).collect();
        self.tallies.iter().for_each(|tally| tally.be_strict(Some(self.score.now_ms())));
        self.run_for(seconds(3), Troubles::none());
        self.tallies.iter().for_each(|tally| tally.be_strict(None));
        for (zone, before) in before.into_iter().enumerate() {
            let well = self.tallies[zone].counts().well().0 - well_before[zone];
            if well < READS_MIN {
                self.stages[zone].violation("world", format_args!("{well} reads are answered well in three seconds"));
            }
            let away =
                self.looks[zone].as_ref().zip(before).and_then(|(after, before)| watch::away(&before, after, QUOTES));
            match away {
                Some(share) if share <= AWAY_MAX => {}
                share => self.stages[zone].violation("world", format_args!("away from home: {share:?} of the reads")),
            }
        }
        self.check();
    }

    /// No trouble, nothing new: everything promised must arrive, and everything come to rest, within `patience`.
    ///
    /// # Panics
    /// When it does not, or when something happens that must not.
    pub fn settle(&mut self, patience: Duration) {
        self.heal();
        self.stages.iter().for_each(|stage| stage.is_quiet.store(true, Relaxed));
        let until = self.score.now_ms() + millis(patience);
        loop {
            let left = self.left();
            if left.is_empty() {
                break;
            }
            if self.score.now_ms() >= until {
                self.stages[0].violation("world", format_args!("not settled after {patience:?}: {left:?}"));
                self.check();
            }
            self.step(Troubles::none());
        }
        self.score
            .tell("world", format_args!("settled, {} ms before the end of patience", until - self.score.now_ms()));
    }

    /// Has every node's ledger sealed, and compares it with what was seen here; and the nodes' counts of reads with the
    /// clients'.
    ///
    /// # Panics
    /// When they do not agree.
    pub fn close_books(&mut self) {
        self.stages.iter().for_each(|stage| stage.is_seal_wanted.store(true, Relaxed));
        let until = self.score.now_ms() + 60_000;
        while self.stages.iter().any(|stage| stage.is_seal_wanted.load(Relaxed)) && self.score.now_ms() < until {
            self.step(Troubles::none());
        }
        for (zone, stage) in self.stages.iter().enumerate() {
            stage.truth().check_books();
            stage.truth().check_arrivals();
            self.check_counts(zone);
        }
        self.check();
    }

    /// Every read had exactly one outcome, by the count of those who asked and of the life of the node that answered.
    fn check_counts(&self, zone: usize) {
        let stage = &self.stages[zone];
        let Some(look) = &self.looks[zone] else {
            return stage.violation("world", "the node is not looked at when the books are closed");
        };
        let counts = self.tallies[zone].counts().of_life(look.life);
        if counts.is_blurred {
            return stage.tell("world", format_args!("reads of life {} are not compared", look.life));
        }
        let Some(route) = look.seen.routes.iter().find(|route| !route.spools) else {
            return stage.violation("world", "the node has no route of reads");
        };
        let of_node = (route.answers, route.cut_total, route.cancelled_total, 0);
        if of_node != (counts.answers, counts.cut, 0, counts.orphaned) {
            let what = format_args!("answers, cut, cancelled: {of_node:?}; clients had {counts:?}");
            stage.violation("world", what);
        }
    }

    /// Events promised, reads answered, and changes of the configuration carried out.
    #[must_use]
    pub fn done(&self) -> (usize, u64, u64) {
        let events = self.stages.iter().map(|stage| stage.truth().promised().len()).sum();
        (events, self.reads().1, self.stages.iter().map(|stage| stage.reloads()).sum())
    }

    /// Reads that were answered well, and all that were answered.
    #[must_use]
    pub fn reads(&self) -> (u64, u64) {
        let zones = self.tallies.iter().map(|tally| tally.counts().well());
        zones.fold((0, 0), |(well, all), (more_well, more)| (well + more_well, all + more))
    }

    /// Since the world began.
    #[must_use]
    pub fn lived(&self) -> Duration {
        Duration::from_millis(self.score.now_ms())
    }

    /// Everything that happened, a line each.
    #[must_use]
    pub fn trace(&self) -> String {
        self.score.trace()
    }

    fn step(&mut self, troubles: Troubles) {
        let now = self.score.now_ms();
        self.end_troubles(now);
        self.turn_flaps(now);
        if now.is_multiple_of(DRAW_EVERY_MS)
            && self.active.len() < TROUBLES_MAX
            && troubles != Troubles::none()
            && self.dice.chance(TROUBLE_CHANCE)
            && let Some(trouble) = troubles.draw(&mut self.dice)
        {
            self.begin(now, trouble);
        }
        self.restart_nodes(now);
        if let Err(error) = self.sim.step() {
            self.stages[0].violation("world", format_args!("a host failed: {error}"));
        }
        self.score.set_now_ms(now + millis(STEP));
        if now.is_multiple_of(LOOK_EVERY_MS) {
            (0..COUNT).for_each(|zone| self.look(zone, now));
            self.check();
        }
    }

    /// Looks at a node, and whether what is seen may follow what was seen.
    fn look(&mut self, zone: usize, now: u64) {
        let stage = Arc::clone(&self.stages[zone]);
        let Some(Seen { at_ms, life, policy, snapshot }) = stage.seen() else {
            (self.looks[zone], self.marks[zone]) = (None, None);
            return;
        };
        if self.looks[zone].as_ref().is_some_and(|look| look.at_ms == at_ms) {
            return;
        }
        if self.born[zone].0 != life {
            self.born[zone] = (life, now);
            // Nobody calls by what an earlier life went by.
            self.touched.retain(|(of, _), _| *of != zone);
            self.removed.retain(|(of, ..), _| *of != zone);
        }
        let before = self.looks[zone].take();
        if let Some(before) = before.as_ref().filter(|before| !Arc::ptr_eq(&before.policy, &policy)) {
            for upstream in &policy.upstreams {
                if before.policy.upstreams.iter().find(|old| old.name == upstream.name) != Some(upstream) {
                    self.touched.insert((zone, upstream.name.clone()), now);
                }
            }
        }
        let is_late = |at: &u64| now.saturating_sub(*at) > millis(TIMEOUT) + LOOK_EVERY_MS;
        self.touched.retain(|_, at| !is_late(at));
        let unsettled = self.touched.keys().filter(|(of, _)| *of == zone).map(|(_, name)| name.clone()).collect();
        let look = Look { at_ms, life, policy, seen: snapshot, unsettled };
        let mut found = Vec::new();
        if let Some(before) = before.as_ref().filter(|before| before.life == life) {
            found.extend(watch::forbidden(before, &look));
        }
        found.extend(watch::beyond_budget(&look, Duration::from_millis(now - self.born[zone].1)));
        match &self.marks[zone] {
            Some(mark) if mark.life == life && now < mark.at_ms + SHARE_OVER_MS => {}
            mark => {
                mark.iter().for_each(|mark| self.coming.add(watch::coming(mark, &look)));
                found.extend(self.coming.stampede());
                self.marks[zone] = Some(look.clone());
            }
        }
        found.extend(self.calls_to_removed(zone, now, &look));
        found.iter().for_each(|found| stage.violation(&stage.name, found));
        self.looks[zone] = Some(look);
    }

    /// Calls that came to an endpoint long after the node's configuration had lost it.
    fn calls_to_removed(&mut self, zone: usize, now: u64, look: &Look) -> Vec<String> {
        let mut found = Vec::new();
        for (name, number) in [QUOTES, ORDERS].into_iter().flat_map(|it| (0..COUNT * ENDPOINTS).map(move |n| (it, n))) {
            let (key, address) = ((zone, name, number), plan::address(number));
            let upstream = look.policy.upstreams.iter().find(|it| it.name == name);
            if upstream.is_some_and(|it| it.endpoints.iter().any(|endpoint| endpoint.address == address)) {
                self.removed.remove(&key);
                continue;
            }
            let since = *self.removed.entry(key).or_insert(now);
            // What was on the road before may still come.
            let road = road(zone, zone_of(number));
            let since = self.disturbed.get(&road).map_or(since, |until| since.max(*until));
            let may_come_until = since.saturating_add(millis(TIMEOUT + SLOW_LATENCY) + LOOK_EVERY_MS);
            if let Some(heard) = self.endpoints[number].heard(zone, name).filter(|heard| *heard > may_come_until) {
                found.push(format!("a call to {name}/{address} at {heard} ms, which was removed by {since} ms"));
            }
        }
        found
    }

    fn check(&self) {
        let violations: Vec<String> =
            self.stages.iter().flat_map(|stage| stage.truth().violations().to_vec()).collect();
        let panics = panics() - self.panics_before;
        Failure { score: &self.score, test: "zones::a_zone", panics, violations: &violations }.raise();
    }

    fn begin(&mut self, now: u64, trouble: Trouble) {
        let is_free = |is_it: &dyn Fn(&Active) -> bool| !self.active.iter().any(|(_, active)| is_it(active));
        let begun = match &trouble {
            Trouble::Road { between, cut, lasts } => {
                let (one, other) = *between;
                let is_same =
                    |it: &Active| matches!(it, Active::Road(known, _) if road(known.0, known.1) == road(one, other));
                is_free(&is_same).then_some((*lasts, Some(Active::Road(*between, *cut))))
            }
            Trouble::Flap { endpoints, up_ms, down_ms, lasts } => {
                let is_same = |it: &Active| match it {
                    Active::Flap { endpoints: known, .. } => known.iter().any(|it| endpoints.contains(it)),
                    _ => false,
                };
                let (endpoints, up_ms, down_ms) = (endpoints.clone(), *up_ms, *down_ms);
                let flap =
                    Active::Flap { endpoints: endpoints.clone(), up_ms, down_ms, turns_at_ms: now, is_down: false };
                is_free(&is_same).then_some((*lasts, Some(flap)))
            }
            Trouble::Mood { endpoints, mood, lasts } => {
                let is_same =
                    |it: &Active| matches!(it, Active::Mood(known) if known.iter().any(|it| endpoints.contains(it)));
                is_free(&is_same).then(|| {
                    endpoints.iter().for_each(|it| self.endpoints[*it].set_mood(*mood));
                    (*lasts, Some(Active::Mood(endpoints.clone())))
                })
            }
            Trouble::Reload { zone } => {
                let next = plan::changed(&self.stages[*zone].policy(), &mut self.dice);
                self.stages[*zone].wish(next);
                Some((Duration::ZERO, None))
            }
            Trouble::Crash { zone, with_power, down_for } => {
                let is_up = is_free(&|it| *it == Active::Down(*zone));
                is_up.then(|| {
                    self.kill(*zone);
                    if *with_power {
                        self.stages[*zone].cut_power();
                    }
                    (*down_for, Some(Active::Down(*zone)))
                })
            }
            // One that is only about to begin would be taken for one that has ended.
            Trouble::Drain { zone } => self.stages[*zone].is_up().then(|| {
                self.stages[*zone].goes_down();
                self.stages[*zone].is_drain_wanted.store(true, Relaxed);
                (Duration::ZERO, None)
            }),
        };
        let Some((lasts, active)) = begun else { return };
        self.score.tell("trouble", format_args!("{trouble:?}"));
        if let Some(Active::Road(between, cut)) = &active {
            self.cut(*between, *cut);
        }
        self.active.extend(active.map(|active| (now + millis(lasts), active)));
    }

    fn end_troubles(&mut self, now: u64) {
        let (over, active): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.active).into_iter().partition(|(until, _)| *until <= now);
        self.active = active;
        over.into_iter().for_each(|(_, active)| self.end(active));
    }

    fn end(&mut self, active: Active) {
        self.score.tell("over", format_args!("{active:?}"));
        match active {
            Active::Road(between, cut) => self.free(between, cut),
            Active::Flap { endpoints, .. } => endpoints.into_iter().for_each(|it| self.set_down(it, false)),
            Active::Mood(endpoints) => endpoints.into_iter().for_each(|it| self.endpoints[it].set_mood(Mood::Well)),
            Active::Down(zone) => self.sim.bounce(node_name(zone)),
        }
    }

    fn turn_flaps(&mut self, now: u64) {
        let mut turned = Vec::new();
        for (_, active) in &mut self.active {
            let Active::Flap { endpoints, up_ms, down_ms, turns_at_ms, is_down } = active else { continue };
            if *turns_at_ms <= now {
                *is_down = !*is_down;
                *turns_at_ms = now + if *is_down { *down_ms } else { *up_ms };
                turned.extend(endpoints.iter().map(|endpoint| (*endpoint, *is_down)));
            }
        }
        turned.into_iter().for_each(|(endpoint, is_down)| self.set_down(endpoint, is_down));
    }

    fn set_down(&mut self, endpoint: usize, down: bool) {
        if std::mem::replace(&mut self.is_endpoint_down[endpoint], down) == down {
            return;
        }
        if down {
            self.sim.crash(endpoint_name(endpoint));
        } else {
            self.sim.bounce(endpoint_name(endpoint));
        }
    }

    /// Hosts of two zones that talk to each other: the node of each and the endpoints of the other. Of a zone and
    /// itself, its own.
    fn pairs(between: (usize, usize)) -> Vec<(String, String)> {
        let (one, other) = between;
        let there = of_zone(other).into_iter().map(|endpoint| (node_name(one), endpoint_name(endpoint)));
        let back = of_zone(one).into_iter().map(|endpoint| (endpoint_name(endpoint), node_name(other)));
        let back: Vec<_> = if one == other { Vec::new() } else { back.collect() };
        there.chain(back).collect()
    }

    fn cut(&mut self, between: (usize, usize), cut: Cut) {
        self.disturbed.insert(road(between.0, between.1), u64::MAX);
        for (first, second) in Self::pairs(between) {
            match cut {
                Cut::Both => self.sim.partition(first, second),
                Cut::There => self.sim.partition_oneway(first, second),
                Cut::Back => self.sim.partition_oneway(second, first),
                Cut::Hold => self.sim.hold(first, second),
                Cut::Slow => self.sim.set_link_max_message_latency(first, second, SLOW_LATENCY),
                Cut::Reset => {}
            }
        }
        if cut == Cut::Reset {
            self.set_welcome(between, false);
        }
    }

    fn free(&mut self, between: (usize, usize), cut: Cut) {
        self.disturbed.insert(road(between.0, between.1), self.score.now_ms());
        for (first, second) in Self::pairs(between) {
            match cut {
                Cut::Both | Cut::There | Cut::Back => self.sim.repair(first, second),
                Cut::Hold => self.sim.release(first, second),
                Cut::Slow => self.sim.set_link_max_message_latency(first, second, CALM_LATENCY),
                Cut::Reset => {}
            }
        }
        if cut == Cut::Reset {
            self.set_welcome(between, true);
        }
    }

    fn set_welcome(&self, (one, other): (usize, usize), welcome: bool) {
        of_zone(other).into_iter().for_each(|it| self.endpoints[it].set_welcome(one, welcome));
        of_zone(one).into_iter().for_each(|it| self.endpoints[it].set_welcome(other, welcome));
    }

    /// Takes zones away for as long as nobody heals. At least one stays. Says how, and whether some calls go well
    /// still.
    fn take_away(&mut self) -> (String, bool) {
        let dice = &mut self.dice;
        let zone = dice.below(COUNT as u64) as usize;
        let other = (zone + 1 + dice.below(COUNT as u64 - 1) as usize) % COUNT;
        let cut = one_of(dice, &Cut::ALL);
        let (mut active, mut is_half) = (Vec::new(), false);
        let how = match dice.below(6) {
            0 => {
                active.extend((0..COUNT).filter(|far| *far != zone).map(|far| Active::Road((zone, far), cut)));
                format!("zone {} is cut off: {cut:?}", NAMES[zone])
            }
            1 => {
                let roads = (0..COUNT).flat_map(|one| (one + 1..COUNT).map(move |far| (one, far)));
                active.extend(roads.map(|road| Active::Road(road, cut)));
                format!("every zone is alone: {cut:?}")
            }
            2 => {
                active.push(Active::Road((zone, zone), cut));
                // Some probes pass and some calls do not. Four that fail in one moment are one retry more than
                // in-flight retries are allowed.
                is_half = cut == Cut::Slow;
                format!("the node of zone {} does not reach its own: {cut:?}", NAMES[zone])
            }
            3 => {
                let both = [of_zone(zone), of_zone(other)].concat();
                both.into_iter().for_each(|it| self.set_down(it, true));
                let endpoints = [of_zone(zone), of_zone(other)].concat();
                let (up_ms, down_ms, turns_at_ms) = (1, u64::MAX / 4, u64::MAX);
                active.push(Active::Flap { endpoints, up_ms, down_ms, turns_at_ms, is_down: true });
                format!("zones {} and {} are down", NAMES[zone], NAMES[other])
            }
            kind => {
                let mood = match kind {
                    4 => one_of(dice, &[Mood::Broken, Mood::Silence, Mood::Slow, Mood::Resets]),
                    _ => one_of(dice, &[Mood::Broken, Mood::Hung]),
                };
                is_half = matches!(mood, Mood::Silence | Mood::Slow | Mood::Resets);
                of_zone(zone).into_iter().for_each(|it| self.endpoints[it].set_mood(mood));
                active.push(Active::Mood(of_zone(zone)));
                format!("zone {} answers probes and is {mood:?}", NAMES[zone])
            }
        };
        for active in active {
            if let Active::Road(between, cut) = active {
                self.cut(between, cut);
            }
            self.active.push((u64::MAX, active));
        }
        (how, is_half)
    }

    fn kill(&mut self, zone: usize) {
        let stage = &self.stages[zone];
        stage.goes_down();
        stage.set_node(None);
        stage.is_node_over.store(false, Relaxed);
        stage.is_drain_wanted.store(false, Relaxed);
        self.sim.crash(node_name(zone));
    }

    /// A node that ended by itself is started again, as a supervisor would.
    fn restart_nodes(&mut self, now: u64) {
        for zone in 0..COUNT {
            if self.stages[zone].is_node_over.swap(false, Relaxed) {
                self.kill(zone);
                let down_for = 50 + self.dice.below(500);
                self.active.push((now + down_for, Active::Down(zone)));
            }
        }
    }

    /// Ends all trouble, planned trouble included.
    fn heal(&mut self) {
        std::mem::take(&mut self.active).into_iter().for_each(|(_, active)| self.end(active));
    }

    /// What is under way still, as far as can be seen from outside.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for stage in &self.stages {
            let (open, receipts) = stage.truth().left();
            if open + receipts > 0 {
                left.push(format!("{}: {open} open, {receipts} receipts", stage.name));
            }
            let Some(node) = stage.node() else {
                left.push(format!("{} is down", stage.name));
                continue;
            };
            let depth = node.spool.depth();
            if depth.waiting + depth.leased + depth.parked > 0 {
                left.push(format!("{}: {depth:?}", stage.name));
            }
            let restless = stage.seen().map_or(vec!["not looked at".into()], |seen| watch::restless(&seen.snapshot));
            left.extend(restless.into_iter().map(|it| format!("{}: {it}", stage.name)));
        }
        left
    }
}

/// The road between two zones, whichever is named first.
fn road(one: usize, other: usize) -> (usize, usize) {
    (one.min(other), one.max(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_zones_that_are_over_is_kept() {
        let mut zones = Zones::new(1);
        zones.run_for(seconds(2), Troubles::none());
        assert!(zones.stages.iter().all(|stage| stage.node().is_some()), "nodes that still live when their world ends");
        let stages: Vec<_> = zones.stages.iter().map(Arc::downgrade).collect();
        drop(zones);
        assert_eq!(stages.iter().map(std::sync::Weak::strong_count).collect::<Vec<_>>(), [0; COUNT]);
    }
}
