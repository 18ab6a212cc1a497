//! What everybody in the world shares: the time, the trace, the truth, the disk, and the conductor's wishes.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use seawall_core::observation::NodeSnapshot;
use seawall_core::prng::Prng;
use seawall_core::time::Wall;
use seawall_store::{SimDisk, Spool};

use crate::checkers::Truth;
use crate::faults::Mood;

/// Looks at the clock that a node may take in one step of the world. One that asks more often runs in circles.
const LOOKS_MAX: u64 = 50_000;
/// When every world begins: 2026-01-01T00:00:00Z.
const EPOCH_MS: u64 = 1_767_225_600_000;

/// Shared by all hosts of one world. One thread runs them all; the locks only satisfy the types.
pub(crate) struct Stage {
    pub(crate) seed: u64,
    now_ms: AtomicU64,
    trace: Mutex<String>,
    truth: Mutex<Truth>,
    disk: Mutex<SimDisk>,
    mood: Mutex<(Mood, Prng)>,
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
    looks: AtomicU64,
}

/// What the conductor may look at in a living node.
#[derive(Clone)]
pub(crate) struct NodeDoor {
    pub(crate) spool: Spool,
    pub(crate) view: Arc<dyn Fn() -> NodeSnapshot + Send + Sync>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    pub(crate) fn new(seed: u64) -> Self {
        let mut prng = Prng::new(seed);
        Self {
            seed,
            now_ms: AtomicU64::new(0),
            trace: Mutex::new(String::new()),
            truth: Mutex::new(Truth::default()),
            disk: Mutex::new(SimDisk::new(prng.next_u64())),
            mood: Mutex::new((Mood::Well, prng.fork())),
            node: Mutex::new(None),
            is_quiet: AtomicBool::new(false),
            is_drain_wanted: AtomicBool::new(false),
            is_node_over: AtomicBool::new(false),
            is_seal_wanted: AtomicBool::new(false),
            lives: AtomicU64::new(0),
            looks: AtomicU64::new(0),
        }
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
        lock(&self.mood).0 = mood;
    }

    /// The queue's mood and its dice.
    pub(crate) fn mood(&self) -> MutexGuard<'_, (Mood, Prng)> {
        lock(&self.mood)
    }

    pub(crate) fn node(&self) -> Option<NodeDoor> {
        lock(&self.node).clone()
    }

    pub(crate) fn set_node(&self, node: Option<NodeDoor>) {
        *lock(&self.node) = node;
    }

    /// The number of this life of the node, from 1.
    pub(crate) fn next_life(&self) -> u64 {
        self.lives.fetch_add(1, Relaxed) + 1
    }

    /// Dice of their own for whoever is named by these numbers.
    pub(crate) fn dice(&self, who: u64, which: u64) -> Prng {
        let mut prng = Prng::new(self.seed ^ who.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Prng::new(prng.next_u64() ^ which)
    }
}
