//! What everybody in the world shares: the time, the trace, the truth, the disk, and the conductor's wishes.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use seawall_core::observation::NodeSnapshot;
use seawall_core::policy::Policy;
use seawall_core::prng::Prng;
use seawall_core::time::Wall;
use seawall_store::{SimDisk, Spool};

use crate::checkers::Truth;
use crate::faults::Mood;
use crate::policy::{self, NODE};

/// Looks at the clock that a node may take in one step of the world. One that asks more often runs in circles.
const LOOKS_MAX: u64 = 50_000;
/// When every world begins: 2026-01-01T00:00:00Z.
const EPOCH_MS: u64 = 1_767_225_600_000;

/// Time and trace: one of each in a world. A node's clocks hold this and not its [`Stage`], which holds the node.
pub(crate) struct Score {
    pub(crate) seed: u64,
    now_ms: AtomicU64,
    trace: Mutex<String>,
    looks: AtomicU64,
}

/// How somebody behaves, with dice of his own.
pub(crate) type Temper = Arc<Mutex<(Mood, Prng)>>;

/// Shared by all hosts around one node. One thread runs them all; the locks only satisfy the types.
pub(crate) struct Stage {
    pub(crate) score: Arc<Score>,
    /// The node's name, as a host too.
    pub(crate) name: String,
    /// Tells its dice from those of other nodes.
    salt: u64,
    /// What the node begins by.
    policy: Mutex<Policy>,
    /// What it should go by from now on.
    wish: Mutex<Option<Policy>>,
    /// How often it looks for a wish.
    pub(crate) look_every: Duration,
    /// True if it shows each time what it sees.
    pub(crate) shows: bool,
    seen: Mutex<Option<Seen>>,
    truth: Mutex<Truth>,
    disk: Mutex<SimDisk>,
    temper: Temper,
    node: Mutex<Option<NodeDoor>>,
    /// No new events are produced.
    pub(crate) is_quiet: AtomicBool,
    /// The node is asked to stop gently.
    pub(crate) is_drain_wanted: AtomicBool,
    /// The node has ended by itself and waits to be started again.
    pub(crate) is_node_over: AtomicBool,
    /// The queue is asked to have the ledger sealed.
    pub(crate) is_seal_wanted: AtomicBool,
    lives: AtomicU64,
    /// How often the node was killed or asked to end.
    ends: AtomicU64,
    reloads: AtomicU64,
}

/// What the conductor may look at in a living node.
#[derive(Clone)]
pub(crate) struct NodeDoor {
    pub(crate) spool: Spool,
    pub(crate) view: Arc<dyn Fn() -> NodeSnapshot + Send + Sync>,
}

/// What a node saw of itself. It looks by its own clock: there is no other in a world, and outside of a host none.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) at_ms: u64,
    pub(crate) life: u64,
    /// The policy in force.
    pub(crate) policy: Arc<Policy>,
    pub(crate) snapshot: NodeSnapshot,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Score {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { seed, now_ms: AtomicU64::new(0), trace: Mutex::new(String::new()), looks: AtomicU64::new(0) })
    }

    /// Milliseconds since the world began.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms.load(Relaxed)
    }

    pub(crate) fn set_now_ms(&self, now_ms: u64) {
        self.now_ms.store(now_ms, Relaxed);
        self.looks.store(0, Relaxed);
    }

    /// The time as people in this world write it; crashes do not set it back.
    pub(crate) fn wall(&self) -> Wall {
        Wall::from_millis(EPOCH_MS + self.now_ms())
    }

    /// Somebody in the node looks at the clock.
    ///
    /// # Panics
    /// When that happens so often that no time can ever pass: the task that asks has to end, or the world would hang.
    pub(crate) fn look_at_clock(&self) {
        let looks = self.looks.fetch_add(1, Relaxed);
        assert!(looks < LOOKS_MAX, "the node runs in circles: {LOOKS_MAX} looks at the clock in one step");
    }

    /// One line of the trace.
    pub(crate) fn tell(&self, who: impl Display, what: impl Display) {
        let now_ms = self.now_ms();
        let mut trace = lock(&self.trace);
        let _ = writeln!(trace, "{:>5}.{:03} {who}: {what}", now_ms / 1_000, now_ms % 1_000);
    }

    pub(crate) fn trace(&self) -> String {
        lock(&self.trace).clone()
    }

    /// Dice of their own for whoever is named by these numbers.
    pub(crate) fn dice(&self, who: u64, which: u64) -> Prng {
        let mut prng = Prng::new(self.seed ^ who.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Prng::new(prng.next_u64() ^ which)
    }
}

impl Stage {
    /// Around the one node of a world.
    pub(crate) fn new(seed: u64) -> Self {
        let look_every = Duration::from_millis(200);
        Self { look_every, shows: false, ..Self::around(&Score::new(seed), 0, NODE, policy::policy()) }
    }

    /// Around a node among others, told apart by their `salt`.
    pub(crate) fn around(score: &Arc<Score>, salt: u64, name: &str, policy: Policy) -> Self {
        let mut prng = match salt {
            0 => Prng::new(score.seed),
            _ => score.dice(51, salt),
        };
        Self {
            score: Arc::clone(score),
            name: name.into(),
            salt,
            policy: Mutex::new(policy),
            wish: Mutex::new(None),
            look_every: Duration::from_millis(20),
            shows: true,
            seen: Mutex::new(None),
            truth: Mutex::new(Truth::default()),
            disk: Mutex::new(SimDisk::new(prng.next_u64())),
            temper: Arc::new(Mutex::new((Mood::Well, prng.fork()))),
            node: Mutex::new(None),
            is_quiet: AtomicBool::new(false),
            is_drain_wanted: AtomicBool::new(false),
            is_node_over: AtomicBool::new(false),
            is_seal_wanted: AtomicBool::new(false),
            lives: AtomicU64::new(0),
            ends: AtomicU64::new(0),
            reloads: AtomicU64::new(0),
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.score.now_ms()
    }

    /// One line of the trace.
    pub(crate) fn tell(&self, who: impl Display, what: impl Display) {
        self.score.tell(who, what);
    }

    pub(crate) fn truth(&self) -> MutexGuard<'_, Truth> {
        lock(&self.truth)
    }

    /// Something that must never happen has happened.
    pub(crate) fn violation(&self, who: impl Display, what: impl Display) {
        self.tell(who, format_args!("VIOLATION {what}"));
        self.truth().violation(&what);
    }

    pub(crate) fn disk(&self) -> SimDisk {
        lock(&self.disk).clone()
    }

    /// The power goes and comes back: what was not synced may be gone or torn.
    pub(crate) fn cut_power(&self) {
        let mut disk = lock(&self.disk);
        let after = disk.crash();
        *disk = after;
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        lock(&self.temper).0 = mood;
    }

    /// How the queue behaves.
    pub(crate) fn temper(&self) -> Temper {
        Arc::clone(&self.temper)
    }

    pub(crate) fn node(&self) -> Option<NodeDoor> {
        lock(&self.node).clone()
    }

    pub(crate) fn set_node(&self, node: Option<NodeDoor>) {
        *lock(&self.node) = node;
        *lock(&self.seen) = None;
    }

    pub(crate) fn show(&self, seen: Seen) {
        *lock(&self.seen) = Some(seen);
    }

    /// What the living node last saw of itself.
    pub(crate) fn seen(&self) -> Option<Seen> {
        lock(&self.seen).clone()
    }

    /// The number of this life of the node, from 1.
    pub(crate) fn next_life(&self) -> u64 {
        self.lives.fetch_add(1, Relaxed) + 1
    }

    /// Lives of the node so far.
    pub(crate) fn lives(&self) -> u64 {
        self.lives.load(Relaxed)
    }

    /// The node is killed, or asked to end, once in a life.
    pub(crate) fn goes_down(&self) {
        self.ends.store(self.lives(), Relaxed);
    }

    /// True while the node serves and nobody has made an end of it.
    pub(crate) fn is_up(&self) -> bool {
        self.ends.load(Relaxed) < self.lives() && lock(&self.node).is_some()
    }

    /// What the node goes by, or will when it begins.
    pub(crate) fn policy(&self) -> Policy {
        lock(&self.policy).clone()
    }

    /// Asks the node to go by another policy, as one that edits its file does.
    pub(crate) fn wish(&self, policy: Policy) {
        *lock(&self.wish) = Some(policy);
    }

    /// The policy that is wished for; the file is read as it is then, so a node that begins has read it too.
    pub(crate) fn take_wish(&self) -> Option<Policy> {
        let wish = lock(&self.wish).take()?;
        *lock(&self.policy) = wish.clone();
        Some(wish)
    }

    /// The node goes by another policy.
    pub(crate) fn reloaded(&self) {
        self.reloads.fetch_add(1, Relaxed);
    }

    /// How often the node went over to another policy.
    pub(crate) fn reloads(&self) -> u64 {
        self.reloads.load(Relaxed)
    }

    /// Dice of their own for whoever is named by these numbers.
    pub(crate) fn dice(&self, who: u64, which: u64) -> Prng {
        // Above every `who`: beside them it would only have the nodes of a world swap their dice.
        self.score.dice(who.wrapping_add(self.salt << 32), which)
    }
}
