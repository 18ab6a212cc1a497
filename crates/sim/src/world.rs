//! The world and its conductor: lets time pass in small steps, begins and ends faults, restarts what has fallen, and
//! looks after every step whether something has happened that must not.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, SystemTime};

use seawall_core::prng::Prng;
use seawall_store::disk;

use crate::checkers::{Event, Truth};
use crate::faults::{Cut, DiskTrouble, Fault, Faults, Host, Link, Mood, PRODUCERS};
use crate::policy::{NODE, QUEUE};
use crate::stage::{Score, Stage};
use crate::{node, queue, workload};

/// How much time passes in one step: the grain of the network. Timers inside a host are finer.
pub(crate) const STEP: Duration = Duration::from_millis(5);
/// How often chance is asked for a new fault.
const DRAW_EVERY_MS: u64 = 250;
const FAULT_CHANCE: f64 = 0.2;
/// Faults at the same time.
const FAULTS_MAX: usize = 4;
/// Latency of a calm network.
pub(crate) const CALM_LATENCY: Duration = Duration::from_millis(20);
/// More than the lists that a runtime keeps its tasks in.
const TASKS_ROUND: u64 = 256;
/// Lines of the trace shown when something went wrong.
const SHOWN_LINES: usize = 50;

/// So many minutes of the world's time.
#[must_use]
pub const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

/// So many seconds of the world's time.
#[must_use]
pub const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A world. See the crate's text. One at a time in a process: another waits until this one is dropped.
pub struct World {
    sim: turmoil::Sim<'static>,
    stage: Arc<Stage>,
    dice: Prng,
    /// What ends when.
    active: Vec<(u64, Active)>,
    /// A call of this disk will fail, or has failed.
    is_disk_doomed: bool,
    panics_before: u64,
    _alone: MutexGuard<'static, ()>,
}

/// A fault that goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Active {
    Drops,
    Delays,
    Partition(Link, Cut),
    Down(Host),
    FullDisk,
    Mood,
}

thread_local! {
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// A task that panics must not go unnoticed: its runtime would only drop it.
pub(crate) fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            before(panic);
        }));
    });
}

/// Tasks of this thread that have panicked so far.
pub(crate) fn panics() -> u64 {
    PANICS.get()
}

/// What has happened that must not, if anything.
pub(crate) struct Failure<'a> {
    pub(crate) score: &'a Score,
    /// Which test tells stories of this world.
    pub(crate) test: &'static str,
    pub(crate) panics: u64,
    pub(crate) violations: &'a [String],
}

impl Failure<'_> {
    /// # Panics
    /// If anything has, with the seed and the end of the trace.
    pub(crate) fn raise(&self) {
        let Self { score, test, panics, violations } = self;
        if *panics == 0 && violations.is_empty() {
            return;
        }
        let trace = score.trace();
        let lines: Vec<&str> = trace.lines().collect();
        if let Ok(path) = std::env::var("SIM_TRACE") {
            let _ = std::fs::write(path, &trace);
        }
        let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        let seed = score.seed;
        let minutes = std::env::var("SIM_MINUTES").map(|minutes| format!(" SIM_MINUTES={minutes}")).unwrap_or_default();
        panic!(
            "the end of the trace:\n{shown}\n{panics} tasks panicked, {violations:#?}\n\
             to see it again: SIM_SEED={seed:#x}{minutes} cargo test -p seawall-sim --test it -- {test}"
        );
    }
}

/// Takes care that the runtimes of this world do the same each time. When a runtime ends, its tasks are dropped in an
/// order that hangs on their numbers, and these are counted up in the whole process: so one world at a time, and every
/// one begins with the same remainder.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE_WORLD: Mutex<()> = Mutex::new(());
    let alone = ONE_WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    let number = || runtime.spawn(async {}).id().to_string().parse::<u64>().unwrap_or(0);
    while !number().is_multiple_of(TASKS_ROUND) {}
    alone
}

fn name_of(host: Host) -> String {
    match host {
        Host::Node => NODE.into(),
        Host::Queue => QUEUE.into(),
        Host::Producer(number) => format!("producer-{number}"),
    }
}

impl World {
    /// A world at its beginning: a node, a queue, two producers with four shipments each, nothing sent yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let alone = alone();
        count_panics();
        let stage = Arc::new(Stage::new(seed));
        let mut sim = turmoil::Builder::new()
            .epoch(SystemTime::UNIX_EPOCH)
            .simulation_duration(minutes(24 * 60))
            .tick_duration(STEP)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(CALM_LATENCY)
            .tcp_capacity(1_024)
            .repair_rate(0.2)
            .rng_seed(seed)
            .build();
        let of_node = Arc::clone(&stage);
        sim.host(NODE, move || node::live(Arc::clone(&of_node)));
        let of_queue = Arc::clone(&stage);
        sim.host(QUEUE, move || queue::live(Arc::clone(&of_queue)));
        for number in 0..PRODUCERS {
            let of_producer = Arc::clone(&stage);
            let name = name_of(Host::Producer(number));
            sim.host(name, move || workload::live(Arc::clone(&of_producer), number));
        }
        let dice = stage.dice(3, 0);
        Self { sim, stage, dice, active: Vec::new(), is_disk_doomed: false, panics_before: panics(), _alone: alone }
    }

    /// Lets time pass. What is not among `faults` ends at once.
    ///
    /// # Panics
    /// When something happens that must not, with the seed and the end of the trace.
    pub fn run_for(&mut self, duration: Duration, faults: Faults) {
        self.stage.is_quiet.store(false, Relaxed);
        if faults == Faults::none() {
            self.heal();
        }
        let until = self.stage.now_ms() + millis(duration);
        while self.stage.now_ms() < until {
            self.step(faults);
        }
    }

    /// No trouble, nothing new: everything promised must arrive within `patience`.
    ///
    /// # Panics
    /// When it does not, or when something happens that must not.
    pub fn settle(&mut self, patience: Duration) {
        self.heal();
        self.stage.is_quiet.store(true, Relaxed);
        let until = self.stage.now_ms() + millis(patience);
        while !self.is_settled() {
            if self.stage.now_ms() >= until {
                let left = self.left();
                self.stage.violation("world", format_args!("not settled after {patience:?}: {left}"));
                self.check();
            }
            self.step(Faults::none());
        }
        let now = self.stage.now_ms();
        self.stage.tell("world", format_args!("settled, {} ms before the end of patience", until - now));
    }

    /// Has the node's ledger sealed, and compares it with what was seen here.
    ///
    /// # Panics
    /// When it does not agree.
    pub fn close_books(&mut self) {
        self.stage.is_seal_wanted.store(true, Relaxed);
        let until = self.stage.now_ms() + millis(minutes(1));
        while self.stage.is_seal_wanted.load(Relaxed) && self.stage.now_ms() < until {
            self.step(Faults::none());
        }
        let mut truth = self.stage.truth();
        truth.check_books();
        drop(truth);
        self.check();
    }

    /// Events promised to their producers.
    #[must_use]
    pub fn accepted(&self) -> BTreeSet<Event> {
        self.stage.truth().promised().clone()
    }

    /// Events that took effect at the queue.
    #[must_use]
    pub fn delivered(&self) -> BTreeSet<Event> {
        self.stage.truth().arrived().clone()
    }

    /// Looks at everything that was seen.
    pub fn truth<T>(&self, look: impl FnOnce(&Truth) -> T) -> T {
        look(&self.stage.truth())
    }

    /// Everything that happened, a line each.
    #[must_use]
    pub fn trace(&self) -> String {
        self.stage.score.trace()
    }

    fn step(&mut self, faults: Faults) {
        let now = self.stage.now_ms();
        self.end_faults(now);
        if now.is_multiple_of(DRAW_EVERY_MS)
            && self.active.len() < FAULTS_MAX
            && self.dice.chance(FAULT_CHANCE)
            && let Some(fault) = faults.draw(&mut self.dice)
        {
            self.begin(now, fault);
        }
        self.restart_node();
        if let Err(error) = self.sim.step() {
            self.stage.violation("world", format_args!("a host failed: {error}"));
        }
        self.stage.score.set_now_ms(now + millis(STEP));
        self.check();
    }

    fn check(&self) {
        let violations = self.stage.truth().violations().to_vec();
        let panics = panics() - self.panics_before;
        Failure { score: &self.stage.score, test: "scenarios::what_was", panics, violations: &violations }.raise();
    }

    /// A node that ended by itself is started again, as a supervisor would; a disk that failed is read anew.
    fn restart_node(&mut self) {
        if !self.stage.is_node_over.swap(false, Relaxed) || self.is_down(Host::Node) {
            return;
        }
        if std::mem::take(&mut self.is_disk_doomed) {
            self.stage.cut_power();
        }
        self.sim.crash(NODE);
        let down_for = 100 + self.dice.below(1_000);
        self.active.push((self.stage.now_ms() + down_for, Active::Down(Host::Node)));
    }

    fn is_down(&self, host: Host) -> bool {
        self.active.iter().any(|(_, active)| *active == Active::Down(host))
    }

    fn begin(&mut self, now: u64, fault: Fault) {
        let Some((lasts, active)) = self.try_begin(fault) else { return };
        self.stage.tell("fault", format_args!("{fault:?}"));
        if let Some(active) = active {
            self.active.push((now + millis(lasts), active));
        }
    }

    /// Begins a fault. `None` if it cannot be told apart from one that goes on.
    fn try_begin(&mut self, fault: Fault) -> Option<(Duration, Option<Active>)> {
        match fault {
            Fault::Drops { rate, lasts } => {
                self.sim.set_fail_rate(rate);
                Some((lasts, Some(Active::Drops)))
            }
            Fault::Delays { max, lasts } => {
                self.sim.set_max_message_latency(max);
                Some((lasts, Some(Active::Delays)))
            }
            Fault::Partition { link, cut, lasts } => {
                let is_free = !self.active.iter().any(|(_, active)| matches!(active, Active::Partition(..)));
                is_free.then(|| {
                    self.cut(link, cut);
                    (lasts, Some(Active::Partition(link, cut)))
                })
            }
            Fault::Crash { host, down_for } => self.kill(host).then_some((down_for, Some(Active::Down(host)))),
            Fault::Drain { .. } => {
                self.stage.is_drain_wanted.store(!self.is_down(Host::Node), Relaxed);
                Some((Duration::ZERO, None))
            }
            Fault::PowerCut { down_for } => {
                if self.is_down(Host::Node) {
                    return None;
                }
                // Nobody says goodbye when the power goes.
                let others: Vec<String> = self.others();
                others.iter().for_each(|other| self.sim.partition(NODE, other.as_str()));
                self.kill(Host::Node);
                self.stage.cut_power();
                self.is_disk_doomed = false;
                others.iter().for_each(|other| self.sim.repair(NODE, other.as_str()));
                Some((down_for, Some(Active::Down(Host::Node))))
            }
            Fault::Disk { trouble, lasts } => Some((lasts, self.trouble_disk(trouble))),
            Fault::Mood { mood, lasts } => {
                self.stage.set_mood(mood);
                Some((lasts, Some(Active::Mood)))
            }
        }
    }

    fn trouble_disk(&mut self, trouble: DiskTrouble) -> Option<Active> {
        let disk = self.stage.disk();
        let (calls, fault) = match trouble {
            DiskTrouble::Io { calls } => (calls, disk::Fault::Io),
            DiskTrouble::PowerCut { calls } => (calls, disk::Fault::PowerCut),
            DiskTrouble::Full { bytes } => {
                disk.set_capacity(disk.used_bytes() + bytes);
                return Some(Active::FullDisk);
            }
        };
        disk.fail_call(calls, fault);
        self.is_disk_doomed = true;
        None
    }

    fn others(&self) -> Vec<String> {
        (0..PRODUCERS).map(|number| name_of(Host::Producer(number))).chain([QUEUE.into()]).collect()
    }

    fn kill(&mut self, host: Host) -> bool {
        if self.is_down(host) {
            return false;
        }
        self.sim.crash(name_of(host));
        if host == Host::Node {
            self.forget_node();
        }
        true
    }

    /// What the last life left behind is not for the next one.
    fn forget_node(&self) {
        self.stage.set_node(None);
        self.stage.is_node_over.store(false, Relaxed);
        self.stage.is_drain_wanted.store(false, Relaxed);
    }

    fn other_end(link: Link) -> String {
        match link {
            Link::NodeQueue => QUEUE.into(),
            Link::NodeProducer(number) => name_of(Host::Producer(number)),
        }
    }

    fn cut(&self, link: Link, cut: Cut) {
        let other = Self::other_end(link);
        match cut {
            Cut::Both => self.sim.partition(NODE, other),
            Cut::FromNode => self.sim.partition_oneway(NODE, other),
            Cut::ToNode => self.sim.partition_oneway(other, NODE),
            Cut::Hold => self.sim.hold(NODE, other),
        }
    }

    fn end_faults(&mut self, now: u64) {
        let (over, active) = std::mem::take(&mut self.active).into_iter().partition(|(until, _)| *until <= now);
        self.active = active;
        let over: Vec<(u64, Active)> = over;
        over.into_iter().for_each(|(_, active)| self.end(active));
    }

    fn end(&mut self, active: Active) {
        self.stage.tell("over", format_args!("{active:?}"));
        match active {
            Active::Drops => {
                self.sim.set_fail_rate(0.0);
            }
            Active::Delays => self.sim.set_max_message_latency(CALM_LATENCY),
            Active::Partition(link, cut) => {
                let other = Self::other_end(link);
                if cut == Cut::Hold {
                    self.sim.release(NODE, other);
                } else {
                    self.sim.repair(NODE, other);
                }
            }
            Active::Down(host) => self.sim.bounce(name_of(host)),
            Active::FullDisk => self.stage.disk().set_capacity(u64::MAX),
            Active::Mood => self.stage.set_mood(Mood::Well),
        }
    }

    /// Ends all trouble, planned trouble included.
    fn heal(&mut self) {
        for (_, active) in std::mem::take(&mut self.active) {
            self.end(active);
        }
        self.others().iter().for_each(|other| self.sim.repair(NODE, other.as_str()));
        self.stage.disk().set_capacity(u64::MAX);
        if std::mem::take(&mut self.is_disk_doomed) {
            // A disk that failed, or will, is exchanged for what survives of it.
            self.sim.crash(NODE);
            self.forget_node();
            self.stage.cut_power();
            self.sim.bounce(NODE);
        }
    }

    /// Nothing is under way any more, as far as can be seen from outside.
    fn is_settled(&self) -> bool {
        let truth = self.stage.truth();
        let is_all_told = truth.open() == 0 && truth.receipts_left() == 0;
        is_all_told
            && self.stage.node().is_some_and(|node| {
                let depth = node.spool.depth();
                depth.waiting + depth.leased == 0
            })
    }

    fn left(&self) -> String {
        let truth = self.stage.truth();
        let spool = self.stage.node().map(|node| format!("{:?}, {:?}", node.spool.depth(), (node.view)().routes));
        format!("{} open, {} receipts, {spool:?}", truth.open(), truth.receipts_left())
    }

    /// Dead letters of the living node: none is expected where every refusal passes.
    #[must_use]
    pub fn parked(&self) -> u64 {
        self.stage.node().map_or(0, |node| node.spool.depth().parked)
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_world_that_is_over_is_kept() {
        let mut world = World::new(1);
        world.run_for(seconds(2), Faults::none());
        assert!(world.stage.node().is_some(), "a node that still lives when its world ends");
        let stage = Arc::downgrade(&world.stage);
        drop(world);
        assert_eq!(stage.strong_count(), 0);
    }
}
