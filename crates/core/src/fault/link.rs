//! One direction of one connection, with the faults on it in the order they were placed.

use std::collections::VecDeque;

use bytes::Bytes;

use super::stage::{Chunk, Item, Stage};
use super::{Direction, Fault, FaultId, chance};
use crate::prng::Prng;
use crate::time::Mono;

/// What may wait to be written: beyond it the stages hold back.
const OUT_BYTES_MAX: usize = 64 << 10;
const OUT_PIECES_MAX: usize = 64;

/// How the bytes of a direction end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// The sender has no more to say.
    Half,
    /// The receiver's connection is closed.
    Close,
    /// The connection ends with a reset.
    Reset,
}

/// What a link wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// Write these bytes, all or some, then say how many by [`Link::wrote`].
    Write(Bytes),
    /// All is written: this is how it ends.
    End(Ending),
    /// Nothing until this moment, or until something comes.
    Wait(Option<Mono>),
}

/// One direction of one connection.
#[derive(Debug)]
pub struct Link {
    direction: Direction,
    prng: Prng,
    stages: Vec<Stage>,
    out: VecDeque<Bytes>,
    out_bytes: usize,
    out_end: Option<Ending>,
    /// Nothing more will come, or be taken.
    is_input_over: bool,
    has_sender_ended: bool,
}

impl Link {
    /// A new connection's, with the faults that lie on its direction; the others are left out.
    #[must_use]
    pub fn new(now: Mono, direction: Direction, prng: Prng, faults: &[Fault]) -> Self {
        let (out, stages) = (VecDeque::new(), Vec::new());
        let (is_input_over, has_sender_ended) = (false, false);
        let mut link =
            Self { direction, prng, stages, out, out_bytes: 0, out_end: None, is_input_over, has_sender_ended };
        for fault in faults {
            link.place(now, fault.clone(), true);
        }
        link
    }

    /// A fault is placed after the others, or changed where it is. One of the other direction is ignored.
    pub fn put(&mut self, now: Mono, fault: Fault) {
        self.place(now, fault, false);
    }

    /// As [`Self::put`]; a reset is one, though the connection was opened without it.
    pub fn put_armed(&mut self, now: Mono, fault: Fault) {
        self.place(now, fault, true);
    }

    fn place(&mut self, now: Mono, fault: Fault, is_from_start: bool) {
        if fault.direction != self.direction {
            return;
        }
        match self.stages.iter_mut().find(|stage| *stage.id() == fault.id) {
            Some(stage) => stage.change(now, fault),
            // Past the end there is nothing to harm.
            None if self.out_end.is_some() => {}
            None => {
                let prng = chance::fault_prng(&self.prng, &fault.id);
                self.stages.push(Stage::new(now, fault, prng, is_from_start));
            }
        }
    }

    /// A fault is gone. What it held goes on at once; if it has lost bytes, the connection ends. Tells whether there
    /// was such a fault.
    pub fn lift(&mut self, id: &FaultId) -> bool {
        let Some(index) = self.stages.iter().position(|stage| stage.id() == id) else { return false };
        let (held, end) = self.stages.remove(index).lift();
        for chunk in held {
            self.hand_on(index, Item::Chunk(chunk));
        }
        if let Some(end) = end {
            self.hand_on(index, Item::End(end));
            self.shut_before(index);
        }
        true
    }

    /// Whether whatever ends this connection has to end it with a reset: one lies in wait on it.
    #[must_use]
    pub fn arms_reset(&self) -> bool {
        self.stages.iter().any(Stage::arms_reset)
    }

    /// Whether another chunk may be read from the sender.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.is_input_over && self.has_room(0)
    }

    /// Whether a fault has said that the sender has no more to say, and the sender has not: what it says is to be
    /// thrown away, or it would wait for a reader for ever.
    #[must_use]
    pub fn is_sender_unheard(&self) -> bool {
        self.out_end == Some(Ending::Half) && !self.has_sender_ended
    }

    /// Bytes inside: what this connection costs in memory.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.out_bytes + self.stages.iter().map(Stage::held_bytes).sum::<usize>()
    }

    /// The sender sent these.
    pub fn push(&mut self, now: Mono, bytes: Bytes) {
        if !bytes.is_empty() && !self.is_input_over {
            self.hand_on(0, Item::Chunk(Chunk { at: now, came: now, bytes }));
        }
    }

    /// The sender ended: orderly ([`Ending::Half`]), or broken.
    pub fn end(&mut self, ending: Ending) {
        self.has_sender_ended = true;
        if !self.is_input_over {
            self.is_input_over = true;
            self.hand_on(0, Item::End(ending));
        }
    }

    /// What to do now. Ask again after every other call, and at the moment it names.
    pub fn next(&mut self, now: Mono) -> Out {
        self.move_on(now);
        if let Some(piece) = self.out.front() {
            return Out::Write(piece.clone());
        }
        if let Some(ending) = self.out_end {
            return Out::End(ending);
        }
        Out::Wait(self.due())
    }

    /// When to ask again although a write is not finished: faults go on counting while a peer does not read.
    #[must_use]
    pub fn due(&self) -> Option<Mono> {
        let dues = self.stages.iter().enumerate().filter_map(|(index, stage)| stage.due(self.has_room(index + 1)));
        dues.min()
    }

    /// So many bytes of the last [`Out::Write`] have gone.
    pub fn wrote(&mut self, len: usize) {
        self.out_bytes -= len;
        if let Some(piece) = self.out.front_mut() {
            let _ = piece.split_to(len);
            if piece.is_empty() {
                self.out.pop_front();
            }
        }
    }

    /// Moves whatever may move, as far as it may.
    fn move_on(&mut self, now: Mono) {
        let mut has_moved = true;
        while has_moved {
            has_moved = false;
            for index in 0..self.stages.len() {
                while let Some(item) = {
                    let room = self.has_room(index + 1);
                    self.stages[index].release(now, room)
                } {
                    has_moved = true;
                    let is_end = matches!(item, Item::End(_));
                    self.hand_on(index + 1, item);
                    if is_end {
                        self.shut_before(index);
                        break;
                    }
                }
            }
        }
    }

    /// To the stage at `index`, or out after the last.
    fn hand_on(&mut self, index: usize, item: Item) {
        match (self.stages.get_mut(index), item) {
            (Some(stage), Item::Chunk(chunk)) => stage.push(chunk),
            (Some(stage), Item::End(ending)) => stage.end(ending),
            (None, Item::Chunk(chunk)) => {
                self.out_bytes += chunk.bytes.len();
                self.out.push_back(chunk.bytes);
            }
            (None, Item::End(ending)) => self.out_end = Some(ending),
        }
    }

    /// The end has passed here: whatever lies before it will not be asked for any more.
    fn shut_before(&mut self, index: usize) {
        self.is_input_over = true;
        self.stages.iter_mut().take(index).for_each(Stage::shut);
    }

    fn has_room(&self, index: usize) -> bool {
        match self.stages.get(index) {
            Some(stage) => stage.has_room(),
            None => self.out_bytes < OUT_BYTES_MAX && self.out.len() < OUT_PIECES_MAX,
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
