//! Faults of a node at work: the book with a clock and a journal, and whoever waits because of it.
//!
//! Picture the attendant of the board: writes down who pinned which note and when it was gone, and wakes those who
//! stand before a note that has been taken away. Which try is touched is decided in `core::fault::book`, what becomes
//! of it in `tries.rs`, of a connection in `connection.rs`. Invariant: whoever waits for a fault waits no longer than
//! the fault is there, and at work.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use seawall_core::fault::book::{
    Book, Caps, Exposure, Fault, Id, Look, Order, Refused, Severed, SharedBook, Standing, Touch, Try, Why,
};
use seawall_core::fault::{Direction, Ending};
use seawall_core::journal::{Draft, Kind, Seq};
use seawall_core::policy::Policy;
use seawall_core::prng::Prng;
use seawall_core::time::Mono;
use seawall_core::units::format_duration;
use seawall_store::Journal;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio_util::sync::CancellationToken;

use super::HELD_BYTES_MAX;
use super::flow::Means;
use super::share::Commons;
use crate::Clock;
use crate::node::Node;
use crate::seat::Seat;

/// How soon the journal hears of a fault that ended because nobody renewed it.
const SWEEP_EVERY: Duration = Duration::from_millis(100);

/// Faults on the calls of one node. Cheap to clone.
#[derive(Clone)]
pub struct CallFaults(Arc<Shared>);

struct Shared {
    book: SharedBook,
    clock: Clock,
    journal: Journal,
    /// What led to there being any: the configuration's entry.
    cause: Mutex<Option<Seq>>,
    /// Where seeds come from that nobody gave.
    seeds: Mutex<Prng>,
    /// Wakes those who wait when a fault may be gone.
    changed: Notify,
    /// How often that was.
    changes: AtomicU64,
    /// Clients' connections so far.
    connections: Arc<AtomicU64>,
    means: Means,
    /// Inside the links of all connections that faults lie on.
    held_bytes: AtomicUsize,
}

impl CallFaults {
    /// None at first, whatever there was before a restart.
    #[must_use]
    pub fn new(book: Book, clock: Clock, journal: Journal, cause: Option<Seq>, seed: u64) -> Self {
        let (seeds, changed, connections) = (Mutex::new(Prng::new(seed)), Notify::new(), Arc::default());
        let (changes, cause) = (AtomicU64::new(0), Mutex::new(cause));
        let (book, held_bytes) = (SharedBook::new(book), AtomicUsize::new(0));
        let commons = Commons::new(HELD_BYTES_MAX);
        let means = Means { clock: clock.clone(), held_bytes: commons, on_broken: Ending::Reset };
        Self(Arc::new(Shared { book, clock, journal, cause, seeds, changed, changes, connections, means, held_bytes }))
    }

    /// Faults may go so far from now on, or are off, as the configuration says. Where that is something else than
    /// before, whatever lies there is gone at once.
    pub fn allow(&self, caps: Option<Caps>, cause: Option<Seq>) {
        self.sweep();
        *self.0.cause.lock().unwrap_or_else(PoisonError::into_inner) = cause;
        let gone = self.0.book.with(|book| book.allow(caps));
        self.gone(&gone, Why::Reconfigured);
    }

    fn cause(&self) -> Option<Seq> {
        *self.0.cause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Places a fault. It works from now on.
    ///
    /// # Errors
    /// [`Refused`]; nothing was placed then.
    pub fn place(&self, order: Order) -> Result<Standing, Refused> {
        self.sweep();
        let Shared { book, clock, journal, seeds, connections, .. } = &*self.0;
        let (now, connections, cause) = (clock.now(), connections.load(Relaxed), self.cause());
        let placed = book.with(|book| {
            let mut seeds = seeds.lock().unwrap_or_else(PoisonError::into_inner);
            let fault = book.place(now, order, connections, &mut seeds)?.clone();
            let left = now.until(fault.until);
            let draft = Draft::new(Kind::FaultPlaced, subject(fault.id))
                .because(cause)
                .with("owner", &fault.owner)
                .with("kind", fault.kind)
                .with("scope", &fault.scope)
                .with("portion", fault.portion)
                .with("timing", fault.timing)
                .with("abort_when", fault.abort_when.map_or("never".to_owned(), |when| when.to_string()))
                .with("ttl", format_duration(left))
                .with("seed", fault.seed);
            book.tell(fault.id, journal.record(draft));
            Ok(Standing { fault, left })
        });
        // Connections that stand already.
        self.wake();
        placed
    }

    /// Gives a fault another time to live, from now on.
    ///
    /// # Errors
    /// [`Refused`]; nothing changes then.
    pub fn renew(&self, id: Id, owner: &str, ttl: Option<Duration>) -> Result<Standing, Refused> {
        self.sweep();
        let Shared { book, clock, journal, .. } = &*self.0;
        let now = clock.now();
        let renewed = book.with(|book| {
            let fault = book.renew(now, id, owner, ttl)?.clone();
            let left = now.until(fault.until);
            let draft = Draft::new(Kind::FaultRenewed, subject(id)).because(fault.told);
            journal.record(draft.with("ttl", format_duration(left)).with("requests", fault.requests));
            Ok(Standing { fault, left })
        });
        // A shorter lease than the one they sleep for.
        self.wake();
        renewed
    }

    /// Takes a fault away.
    ///
    /// # Errors
    /// [`Refused::Unknown`].
    pub fn remove(&self, id: Id) -> Result<Fault, Refused> {
        self.sweep();
        let now = self.0.clock.now();
        let gone = self.0.book.with(|book| book.remove(now, id))?;
        self.gone(std::slice::from_ref(&gone), Why::Removed);
        Ok(gone)
    }

    /// Turns the kill switch on: takes all faults away, and none can be placed until [`Self::release`]. Tells which are
    /// gone.
    pub fn kill(&self, reason: &str) -> Vec<Fault> {
        self.sweep();
        let (Shared { book, journal, .. }, cause) = (&*self.0, self.cause());
        let gone = book.with(|book| {
            let told = match book.killed() {
                Some(killed) => killed.told,
                None => {
                    let draft = Draft::new(Kind::FaultsKilled, "faults").because(cause).with("reason", reason);
                    Some(journal.record(draft))
                }
            };
            book.kill(reason, told)
        });
        self.gone(&gone, Why::Killed);
        gone
    }

    /// Takes all faults away for good: another process takes this one's place, and knows of none.
    pub fn hand_over(&self) {
        self.sweep();
        let cause = self.cause();
        let gone = self.0.book.with(|book| book.kill("another process takes this one's place", cause));
        self.gone(&gone, Why::HandedOver);
    }

    /// Why the kill switch is on, while it is.
    #[must_use]
    pub fn killed(&self) -> Option<String> {
        self.0.book.with(|book| book.killed().map(|killed| killed.reason.clone()))
    }

    /// Turns the kill switch off. Tells whether it was on.
    pub fn release(&self, reason: &str) -> bool {
        let killed = self.0.book.with(Book::release);
        if let Some(killed) = &killed {
            let draft = Draft::new(Kind::FaultsReleased, "faults").because(killed.told).with("reason", reason);
            self.0.journal.record(draft);
        }
        killed.is_some()
    }

    /// Goes on under the next policy: faults stay on what is called the same there, and the others are gone.
    pub(crate) fn follow(&self, policy: &Policy) {
        let gone = self.0.book.with(|book| book.follow(policy));
        self.gone(&gone, Why::Reconfigured);
    }

    /// How things are now.
    #[must_use]
    pub fn look(&self) -> Look {
        self.sweep();
        let now = self.0.clock.now();
        self.0.book.with(|book| book.look(now))
    }

    /// The counter of clients' connections.
    pub(crate) fn connections(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.connections)
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// True while there may be a fault: one atomic load.
    pub(crate) fn is_any(&self) -> bool {
        self.0.book.is_any()
    }

    /// What becomes of a try, and the journal's entry about the fault that touches it.
    pub(crate) fn touch(&self, now: Mono, it: &Try<'_>) -> Option<(Touch, Option<Seq>)> {
        self.0.book.with(|book| {
            let touch = book.touch(now, it)?;
            let told = book.standing_at(now).find(|fault| fault.id == touch.id).and_then(|fault| fault.told);
            Some((touch, told))
        })
    }

    /// What lies on the bytes of a connection: see [`Book::expose`].
    pub(crate) fn expose(&self, now: Mono, names: (&str, &str), it: &Try<'_>, fates: &mut Vec<(Id, bool)>) -> Exposure {
        self.0.book.with(|book| book.expose(now, names, it, fates))
    }

    /// The cut that lets no bytes of a call in flight go this way: see [`Book::severed`].
    pub(crate) fn severed(
        &self,
        now: Mono,
        names: (&str, &str),
        it: &Try<'_>,
        direction: Direction,
    ) -> Option<Severed> {
        self.0.book.with(|book| book.severed(now, names, it, direction))
    }

    /// The fault that cuts off a zone, for probes of this upstream's endpoints there.
    pub(crate) fn cut(&self, upstream: &str, zone: &str) -> Option<Id> {
        if !self.is_any() {
            return None;
        }
        let now = self.0.clock.now();
        self.0.book.with(|book| book.cut(now, upstream, zone))
    }

    /// Rings when a fault has been placed, renewed or taken away; and how often that was.
    pub(crate) fn changed(&self) -> (Notified<'_>, u64) {
        // First the number: what changes after it is heard.
        let changes = self.changes();
        (self.0.changed.notified(), changes)
    }

    /// How often that was so far.
    pub(crate) fn changes(&self) -> u64 {
        self.0.changes.load(Relaxed)
    }

    /// Waits for a change after these, or until a moment.
    pub(crate) async fn until(&self, mut changed: Pin<&mut Notified<'_>>, before: u64, moment: Option<Mono>) {
        match moment {
            // Polled when it may have rung, and not whenever its task has something else to do: that would cost a lock.
            None => {
                let mut is_heard = false;
                poll_fn(|cx| {
                    if std::mem::replace(&mut is_heard, true) && self.changes() == before {
                        return Poll::Pending;
                    }
                    changed.as_mut().poll(cx)
                })
                .await;
            }
            Some(moment) => tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep_until(self.0.clock.instant(moment)) => {}
            },
        }
    }

    /// By which bytes of connections with faults on them are moved.
    pub(super) fn means(&self) -> &Means {
        &self.0.means
    }

    pub(super) fn held_bytes(&self) -> &AtomicUsize {
        &self.0.held_bytes
    }

    /// Waits until a moment, or for as long as the fault is there.
    ///
    /// # Cancel safety
    /// Dropped, nobody waits.
    pub(crate) async fn hold(&self, id: Id, until: Option<Mono>) {
        let Shared { book, clock, changed, .. } = &*self.0;
        loop {
            let mut changed = std::pin::pin!(changed.notified());
            // Heard from before the look on: what changes between the look and the wait is not missed.
            changed.as_mut().enable();
            let now = clock.now();
            if until.is_some_and(|until| until <= now) {
                return;
            }
            let Some(lease) = book.with(|book| book.until(now, id)) else { return };
            let wake = until.map_or(lease, |until| until.min(lease));
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep_until(clock.instant(wake)) => {}
            }
        }
    }

    /// Takes down what has run out or does too much, until stopped. That what has run out decides nothing any more does
    /// not depend on it.
    pub(crate) async fn keep_swept(self, seat: Arc<Seat>, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SWEEP_EVERY) => {}
            }
            self.sweep();
            if self.is_any() && self.0.book.with(|book| book.is_watching()) {
                self.judge(&seat.worker().node);
            }
        }
    }

    fn judge(&self, node: &Node) {
        let (now, seen) = (self.0.clock.now(), node.seen());
        let gone = self.0.book.with(|book| book.judge(now, node.generation, seen));
        for (fault, tripped) in gone {
            self.0.journal.record(ended(&fault, Why::Aborted).with("because", tripped));
            self.wake();
        }
    }

    fn sweep(&self) {
        if self.0.book.is_any() {
            let now = self.0.clock.now();
            let gone = self.0.book.with(|book| book.expire(now));
            self.gone(&gone, Why::Expired);
        }
    }

    fn wake(&self) {
        self.0.changes.fetch_add(1, Relaxed);
        self.0.changed.notify_waiters();
    }

    fn gone(&self, faults: &[Fault], why: Why) {
        for fault in faults {
            self.0.journal.record(ended(fault, why));
        }
        self.wake();
    }
}

fn ended(fault: &Fault, why: Why) -> Draft {
    Draft::new(Kind::FaultEnded, subject(fault.id))
        .because(fault.told)
        .with("why", why.name())
        .with("requests", fault.requests)
        .with("tries", fault.tries)
}

fn subject(id: Id) -> String {
    format!("fault:{id}")
}
