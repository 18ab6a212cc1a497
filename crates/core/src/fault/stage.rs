//! One fault at work on one link: what it holds, what it lets out, and when it must be asked again.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::slice::Cuts;
use super::{Effect, Ending, Fault};
use crate::prng::Prng;
use crate::time::Mono;
use crate::units::Ratio;

/// Chunks that may wait in a latency, side by side: at 32 KiB each 32 MiB in flight.
const LATENCY_CHUNKS_MAX: usize = 1_024;
/// A timer that fires late by less than this is made up for, so that rates hold; what is later was a peer that did not
/// read, and making up for that would be a burst.
const LATE_MAX: Duration = Duration::from_millis(100);
/// Timers tick in milliseconds: pauses shorter than that are kept on average instead of one by one.
const TICK: Duration = Duration::from_millis(1);

/// Bytes that came together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// When they were received, and later by every latency they have passed: what latencies count from.
    pub(super) at: Mono,
    /// When they came to this stage: what rates count from.
    pub(super) came: Mono,
    pub(super) bytes: Bytes,
}

/// What a stage hands on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    Chunk(Chunk),
    End(Ending),
}

#[derive(Debug)]
pub(super) struct Stage {
    fault: Fault,
    /// Decides with the fault's share whether this link is touched; drawn once.
    draw: f64,
    /// The fault was there when the connection was opened.
    is_from_start: bool,
    prng: Prng,
    work: Work,
    queue: VecDeque<Chunk>,
    held_bytes: usize,
    /// What comes after the queue.
    end: Option<Ending>,
    /// Ends the connection at once, whatever is held.
    cut: Option<Ending>,
    /// The oldest chunk will not be lost.
    is_kept: bool,
    is_done: bool,
}

/// What has to be remembered to do harm.
#[derive(Debug)]
enum Work {
    /// Untouched.
    Pass,
    Latency {
        delay_ms: i64,
        jitter: Duration,
        /// Of the oldest chunk, once its jitter is drawn.
        due: Option<Mono>,
        left_last: Mono,
    },
    Bandwidth {
        bytes_per_second: u64,
        /// When the last piece has passed.
        free_at: Mono,
        piece: Option<Piece>,
    },
    SlowClose {
        delay: Duration,
        /// When the end came.
        since: Option<Mono>,
    },
    Timeout {
        after: Option<Duration>,
        since: Mono,
    },
    ResetPeer {
        after: Duration,
        /// When the first chunk, or the end, came.
        since: Option<Mono>,
    },
    HalfClose {
        after: Duration,
        since: Mono,
    },
    Slicer {
        average: usize,
        variation: usize,
        delay: Duration,
        cuts: Option<Cuts>,
        ready_at: Mono,
        /// What is left of the oldest chunk leaves uncut.
        is_rest_whole: bool,
    },
    LimitData {
        bytes: u64,
        passed: u64,
        is_full: bool,
    },
    Corrupt {
        share: Ratio,
    },
    Loss {
        share: Ratio,
        /// There is a hole in what has passed.
        has_lost: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    len: usize,
    due: Mono,
}

impl Work {
    fn of(effect: Effect, now: Mono) -> Self {
        match effect {
            Effect::Noop => Self::Pass,
            Effect::Latency { delay_ms, jitter } => {
                Self::Latency { delay_ms, jitter, due: None, left_last: Mono::ZERO }
            }
            Effect::Bandwidth { bytes_per_second } => {
                Self::Bandwidth { bytes_per_second, free_at: Mono::ZERO, piece: None }
            }
            Effect::SlowClose { delay } => Self::SlowClose { delay, since: None },
            Effect::Timeout { after } => Self::Timeout { after, since: now },
            Effect::ResetPeer { after } => Self::ResetPeer { after, since: None },
            Effect::HalfClose { after } => Self::HalfClose { after, since: now },
            Effect::Slicer { average, variation, delay } => {
                Self::Slicer { average, variation, delay, cuts: None, ready_at: now, is_rest_whole: false }
            }
            Effect::LimitData { bytes } => Self::LimitData { bytes, passed: 0, is_full: false },
            Effect::Corrupt { share } => Self::Corrupt { share },
            Effect::Loss { share } => Self::Loss { share, has_lost: false },
        }
    }
}

impl Stage {
    /// A fault begins on a link; `draw` is the link's own for this fault.
    pub(super) fn new(now: Mono, fault: Fault, mut prng: Prng, is_from_start: bool) -> Self {
        let draw = prng.unit();
        let work = if fault.share.touches(draw) { Work::of(fault.effect, now) } else { Work::Pass };
        let (queue, held_bytes) = (VecDeque::new(), 0);
        let (end, cut, is_kept, is_done) = (None, None, false, false);
        Self { fault, draw, is_from_start, prng, work, queue, held_bytes, end, cut, is_kept, is_done }
    }

    pub(super) fn id(&self) -> &super::FaultId {
        &self.fault.id
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether another chunk may come.
    pub(super) fn has_room(&self) -> bool {
        let max = match &self.work {
            Work::Latency { .. } => LATENCY_CHUNKS_MAX,
            // What is swallowed is swallowed: the sender may well wait.
            Work::ResetPeer { since: Some(_), .. } => 0,
            _ => 1,
        };
        !self.is_done && self.cut.is_none() && self.end.is_none() && self.queue.len() < max
    }

    pub(super) fn push(&mut self, chunk: Chunk) {
        self.held_bytes += chunk.bytes.len();
        self.queue.push_back(chunk);
    }

    pub(super) fn end(&mut self, ending: Ending) {
        self.end = Some(self.end.map_or(ending, |earlier| earlier.max(ending)));
    }

    /// Everything held is lost, and nothing more will come.
    pub(super) fn shut(&mut self) {
        self.queue.clear();
        self.held_bytes = 0;
        self.is_done = true;
    }

    /// What leaves now. Chunks leave only if there is `room` for them after this stage; an end always finds room.
    pub(super) fn release(&mut self, now: Mono, room: bool) -> Option<Item> {
        if self.is_done {
            return None;
        }
        if let Some(ending) = self.cut.or_else(|| self.tripped(now)) {
            self.shut();
            return Some(Item::End(ending));
        }
        if let Some(chunk) = if room { self.next_chunk(now) } else { None } {
            self.held_bytes -= chunk.bytes.len();
            return Some(Item::Chunk(chunk));
        }
        let ending = self.end.filter(|_| self.queue.is_empty() && self.lets_end_pass(now))?;
        self.is_done = true;
        Some(Item::End(ending))
    }

    /// When [`Self::release`] will have something else to say, if nothing comes in between.
    pub(super) fn due(&self, room: bool) -> Option<Mono> {
        if self.is_done {
            return None;
        }
        let waits = room && !self.queue.is_empty();
        match &self.work {
            Work::Pass | Work::LimitData { .. } | Work::Corrupt { .. } | Work::Loss { .. } => None,
            Work::Latency { due, .. } => due.filter(|_| waits),
            Work::Bandwidth { piece, .. } => piece.map(|piece| piece.due).filter(|_| waits),
            Work::SlowClose { delay, since } => since.map(|since| since + *delay),
            Work::Timeout { after, since } => after.map(|after| *since + after),
            Work::ResetPeer { after, since } => since.map(|since| since + *after),
            Work::HalfClose { after, since } => Some(*since + *after).filter(|_| self.end.is_none()),
            Work::Slicer { ready_at, .. } => {
                Some(*ready_at).filter(|_| waits || (self.queue.is_empty() && self.end.is_some()))
            }
        }
    }

    /// The fault changes: what was held goes on under the new rule, the oldest chunk at once.
    pub(super) fn change(&mut self, now: Mono, fault: Fault) {
        let is_active = fault.share.touches(self.draw);
        if !(is_active && self.adapt(now, fault.effect)) {
            self.cut = self.cut.or_else(|| self.cut_when_lifted());
            self.work = if is_active { Work::of(fault.effect, now) } else { Work::Pass };
        }
        self.fault = fault;
    }

    /// The fault is gone: what it held, in order, and what follows it.
    pub(super) fn lift(self) -> (VecDeque<Chunk>, Option<Ending>) {
        if self.is_done {
            return (VecDeque::new(), None);
        }
        match self.cut.or_else(|| self.cut_when_lifted()) {
            Some(cut) => (VecDeque::new(), Some(cut)),
            None => (self.queue, self.end),
        }
    }

    /// A stream with a hole in it must not go on as if it were whole.
    fn cut_when_lifted(&self) -> Option<Ending> {
        match self.work {
            Work::Timeout { .. } | Work::LimitData { is_full: true, .. } | Work::Loss { has_lost: true, .. } => {
                Some(Ending::Close)
            }
            Work::ResetPeer { since: Some(_), .. } => Some(self.reset()),
            _ => None,
        }
    }

    /// A reset needs a connection that was opened with it; on one that was open already it is an orderly close, as
    /// users of Toxiproxy know it.
    fn reset(&self) -> Ending {
        if self.is_from_start { Ending::Reset } else { Ending::Close }
    }

    /// Whatever ends this connection ends it with a reset.
    pub(super) fn arms_reset(&self) -> bool {
        self.is_from_start && matches!(self.work, Work::ResetPeer { .. })
    }

    /// Takes new numbers for the same kind of harm; false if it is another kind.
    fn adapt(&mut self, now: Mono, effect: Effect) -> bool {
        match (&mut self.work, effect) {
            (Work::Latency { delay_ms, jitter, due, .. }, Effect::Latency { delay_ms: new_ms, jitter: new_jitter }) => {
                (*delay_ms, *jitter) = (new_ms, new_jitter);
                *due = (!self.queue.is_empty()).then_some(now);
            }
            (Work::Bandwidth { bytes_per_second, free_at, piece }, Effect::Bandwidth { bytes_per_second: new }) => {
                *bytes_per_second = new;
                *free_at = now;
                *piece = self.queue.front().map(|chunk| Piece { len: chunk.bytes.len(), due: now });
            }
            (Work::SlowClose { delay, since }, Effect::SlowClose { delay: new }) => {
                *delay = new;
                *since = since.map(|_| now);
            }
            (Work::Timeout { after, since }, Effect::Timeout { after: new }) => (*after, *since) = (new, now),
            (Work::ResetPeer { after, .. }, Effect::ResetPeer { after: new })
            | (Work::HalfClose { after, .. }, Effect::HalfClose { after: new }) => *after = new,
            (
                Work::Slicer { average, variation, delay, cuts, ready_at, is_rest_whole },
                Effect::Slicer { average: new_average, variation: new_variation, delay: new_delay },
            ) => {
                (*average, *variation, *delay) = (new_average, new_variation, new_delay);
                *is_rest_whole = cuts.take().is_some();
                *ready_at = now;
            }
            (Work::LimitData { bytes, .. }, Effect::LimitData { bytes: new }) => *bytes = new,
            (Work::Corrupt { share }, Effect::Corrupt { share: new }) => *share = new,
            (Work::Loss { share, .. }, Effect::Loss { share: new }) => *share = new,
            _ => return false,
        }
        true
    }

    /// The end that this fault makes of the connection by itself.
    fn tripped(&mut self, now: Mono) -> Option<Ending> {
        match &mut self.work {
            Work::Timeout { after, since } => {
                if !self.queue.is_empty() {
                    self.queue.clear();
                    self.held_bytes = 0;
                    *since = now;
                }
                let is_over = after.is_some_and(|after| now >= *since + after);
                (is_over && self.end.is_none()).then_some(Ending::Close)
            }
            Work::ResetPeer { after, since } => {
                if since.is_none() && (!self.queue.is_empty() || self.end.is_some()) {
                    *since = Some(now);
                }
                let begun = (*since)?;
                self.queue.clear();
                self.held_bytes = 0;
                (now >= begun + *after).then(|| self.reset())
            }
            Work::HalfClose { after, since } => {
                // Behind what came before it, as the sender's own would be.
                if now >= *since + *after {
                    self.end.get_or_insert(Ending::Half);
                }
                None
            }
            Work::LimitData { bytes, passed, is_full } => {
                // Nothing passes any more: the first byte beyond the limit closes.
                let is_over = *is_full || (!self.queue.is_empty() && passed >= bytes);
                is_over.then_some(Ending::Close)
            }
            Work::Loss { share, has_lost } => {
                // Drawn once for each: what is kept leaves at once, as soon as there is room for it.
                while !self.queue.is_empty() && !self.is_kept && self.prng.chance(share.get()) {
                    self.held_bytes -= self.queue.pop_front().map_or(0, |lost| lost.bytes.len());
                    *has_lost = true;
                }
                self.is_kept = !self.queue.is_empty();
                None
            }
            _ => None,
        }
    }

    fn next_chunk(&mut self, now: Mono) -> Option<Chunk> {
        let oldest = self.queue.front_mut()?;
        match &mut self.work {
            Work::Pass | Work::SlowClose { .. } | Work::HalfClose { .. } => self.queue.pop_front(),
            Work::Loss { .. } => {
                self.is_kept = false;
                self.queue.pop_front()
            }
            Work::Corrupt { share } => {
                let mut chunk = self.queue.pop_front()?;
                chunk.bytes = corrupted(&chunk.bytes, share.get(), &mut self.prng);
                Some(chunk)
            }
            Work::Timeout { .. } | Work::ResetPeer { .. } => None,
            Work::Latency { delay_ms, jitter, due, left_last } => {
                let leaves = *due.get_or_insert_with(|| oldest.at + jittered(*delay_ms, *jitter, &mut self.prng));
                if now < leaves {
                    return None;
                }
                *due = None;
                *left_last = leaves.max(*left_last);
                // As planned, not as it came out: the lateness of timers must not add up over several latencies.
                (oldest.at, oldest.came) = (*left_last, *left_last);
                self.queue.pop_front()
            }
            Work::Bandwidth { bytes_per_second, free_at, piece } => {
                if piece.is_none() && *bytes_per_second > 0 {
                    let start = oldest.came.max(*free_at).max(now - LATE_MAX);
                    let len =
                        oldest.bytes.len().min(usize::try_from(*bytes_per_second / 10).unwrap_or(usize::MAX).max(1));
                    *piece = Some(Piece { len, due: start + time_for(len, *bytes_per_second) });
                }
                let Piece { len, due } = piece.filter(|piece| now >= piece.due)?;
                *piece = None;
                *free_at = if now.since(due) > LATE_MAX { now } else { due };
                Some(Chunk { at: oldest.at, came: due, bytes: split_front(&mut self.queue, len)? })
            }
            Work::Slicer { average, variation, delay, cuts, ready_at, is_rest_whole } => {
                if now < *ready_at {
                    return None;
                }
                let whole = oldest.bytes.len();
                let len = match std::mem::take(is_rest_whole) {
                    true => whole,
                    false => {
                        let cuts = cuts.get_or_insert_with(|| Cuts::of(whole));
                        cuts.next(*average, *variation, &mut self.prng).unwrap_or(whole)
                    }
                };
                if len == whole {
                    *cuts = None;
                }
                let planned = if *delay < TICK { (*ready_at).max(now - 2 * TICK) } else { now };
                *ready_at = planned + *delay;
                Some(Chunk { at: oldest.at, came: now, bytes: split_front(&mut self.queue, len)? })
            }
            Work::LimitData { bytes, passed, is_full } => {
                let len = oldest.bytes.len().min(usize::try_from(*bytes - *passed).unwrap_or(usize::MAX));
                *passed += len as u64;
                *is_full = *passed >= *bytes;
                Some(Chunk { at: oldest.at, came: oldest.came, bytes: split_front(&mut self.queue, len)? })
            }
        }
    }

    fn lets_end_pass(&mut self, now: Mono) -> bool {
        match &mut self.work {
            Work::SlowClose { delay, since } => now >= *since.get_or_insert(now) + *delay,
            Work::Slicer { ready_at, .. } => now >= *ready_at,
            // Its own end comes in place of the sender's.
            Work::ResetPeer { .. } => false,
            _ => true,
        }
    }
}

/// The first `len` bytes of the oldest chunk.
fn split_front(queue: &mut VecDeque<Chunk>, len: usize) -> Option<Bytes> {
    let oldest = queue.front_mut()?;
    let bytes = oldest.bytes.split_to(len);
    if oldest.bytes.is_empty() {
        queue.pop_front();
    }
    Some(bytes)
}

/// With some bytes that are others, and as many as before.
fn corrupted(bytes: &Bytes, share: f64, prng: &mut Prng) -> Bytes {
    let other = |byte: u8, prng: &mut Prng| byte ^ (1 + prng.below(255) as u8);
    let damage = |byte: &u8| if prng.chance(share) { other(*byte, prng) } else { *byte };
    bytes.iter().map(damage).collect()
}

/// Rounded up: a rate is never exceeded.
fn time_for(len: usize, bytes_per_second: u64) -> Duration {
    let nanos = (len as u128 * 1_000_000_000).div_ceil(u128::from(bytes_per_second));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// `delay_ms` and a number of whole milliseconds from `-jitter..jitter`; never less than nothing.
fn jittered(delay_ms: i64, jitter: Duration, prng: &mut Prng) -> Duration {
    let reach = u64::try_from(jitter.as_millis()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2);
    let drawn = if reach == 0 { 0 } else { i128::from(prng.below(2 * reach)) - i128::from(reach) };
    Duration::from_millis(u64::try_from(i128::from(delay_ms) + drawn).unwrap_or(0))
}
