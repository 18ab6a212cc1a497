//! What a replicated stream holds of a spool, what it must be told next, and what it may forget.
//!
//! Picture a clerk who keeps a second card index in another town, by letter. He does not write down every stroke of
//! work: he notes which cards have changed, and writes about each as it is when the letter is closed. In the other town
//! letters are kept in the order they came, and thrown away from the front. So he remembers in which letter each card
//! was last written out whole; a letter with no such card may go, and a card that keeps an old letter alone is written
//! out again, so that the letters take at most twice what lives in them.
//!
//! Invariants: replayed from the front, what the stream holds gives every record's state as of the last letter that
//! was confirmed; a record is never only in a letter that may go. At most one letter is on its way.
//! Not here: bytes (`store/jetstream`), the network, and when to try again.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::RecordId;

/// Bytes the stream may hold beyond twice what lives in it: below this nothing is written out again.
pub const SLACK_BYTES: u64 = 4 << 20;

/// Where a record is in its life, as far as a replica has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waiting, or leased: a lease does not outlive the node that gave it.
    Waiting,
    /// A dead letter.
    Parked,
    /// Settled; its idempotency key is remembered.
    Settled,
}

/// A record at a glance: enough to see whether the stream knows its latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Where it is in its life.
    pub stage: Stage,
    /// Tries so far; 0 once settled.
    pub attempts: u32,
}

/// A record to write about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its number.
    pub id: RecordId,
    /// True if it must be written out whole: the stream does not have it, or has it where it should not stay.
    pub whole: bool,
}

/// What a letter says of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Everything there is: of a live record with its payload, of a settled one its key and its end. So many bytes.
    Whole {
        /// What it takes in the letter.
        bytes: u32,
    },
    /// What has changed since it was written out.
    Change,
    /// Nothing: it is forgotten at home, and may be forgotten there.
    Gone,
}

/// One line of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Whom it is about.
    pub id: RecordId,
    /// What it says.
    pub form: Form,
    /// How the record is after it.
    pub look: Look,
}

/// The machine. See the module's text.
#[derive(Debug, Default)]
pub struct Replica {
    /// Changed, and not yet written about.
    changed: BTreeSet<RecordId>,
    /// Being written about.
    on_the_way: BTreeSet<RecordId>,
    /// To be written out whole though the stream has it.
    moving: BTreeSet<RecordId>,
    /// Could not be read when they were to be written out again: the stream keeps the only copy, where it is.
    unmovable: BTreeSet<RecordId>,
    /// In the stream, waiting or parked, and not at home when that was compared.
    missing: u64,
    homes: BTreeMap<RecordId, Home>,
    letters: BTreeMap<u64, Letter>,
    /// Of all letters.
    held_bytes: u64,
    /// Of what is at home in them.
    live_bytes: u64,
}

/// Where a record was last written out whole.
#[derive(Clone, Copy, Debug)]
struct Home {
    letter: u64,
    bytes: u32,
    look: Look,
    /// Seen in the survey that runs.
    seen: bool,
}

#[derive(Debug)]
struct Letter {
    bytes: u64,
    /// Records that are at home here.
    residents: u64,
    /// Those that once were.
    written: Vec<RecordId>,
}

impl Replica {
    /// Nothing known of the stream, nothing to tell it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A record has changed at home.
    pub fn touch(&mut self, id: RecordId) {
        self.changed.insert(id);
    }

    /// True if nothing is left to tell of a record.
    #[must_use]
    pub fn is_current(&self, id: RecordId) -> bool {
        !self.changed.contains(&id) && !self.on_the_way.contains(&id)
    }

    /// True if the stream holds a record, or its key: not if it is forgotten, or could not be read when it was to be
    /// told.
    #[must_use]
    pub fn holds(&self, id: RecordId) -> bool {
        self.homes.contains_key(&id)
    }

    /// How the stream has a record.
    #[must_use]
    pub fn look(&self, id: RecordId) -> Option<Look> {
        self.homes.get(&id).map(|home| home.look)
    }

    /// Records that the stream holds as waiting or parked, and that were not at home when the two were compared: the
    /// directory has lost them. The stream keeps them.
    #[must_use]
    pub const fn missing(&self) -> u64 {
        self.missing
    }

    /// Forgets which records have changed, as there are too many: the two are to be compared again.
    pub fn forget_changes(&mut self) {
        self.changed.clear();
    }

    /// Records whose latest the stream does not know.
    #[must_use]
    pub fn behind(&self) -> u64 {
        (self.changed.len() + self.on_the_way.len()) as u64
    }

    /// Records and keys the stream holds.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.homes.len() as u64
    }

    /// Bytes of the letters the stream holds.
    #[must_use]
    pub const fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Begins a letter: up to `max` of the oldest records that have changed. What became of it is told by
    /// [`Self::confirmed`] or [`Self::lost`].
    ///
    /// # Panics
    /// If another letter is on its way.
    pub fn begin(&mut self, max: usize) -> Vec<Want> {
        assert!(self.on_the_way.is_empty(), "one letter at a time");
        let mut wants = Vec::new();
        while wants.len() < max
            && let Some(id) = self.changed.pop_first()
        {
            self.on_the_way.insert(id);
            wants.push(Want { id, whole: self.moving.contains(&id) || !self.homes.contains_key(&id) });
        }
        wants
    }

    /// Of the letter that was begun these did not find room: they go with the next.
    pub fn postpone(&mut self, ids: impl IntoIterator<Item = RecordId>) {
        for id in ids {
            if self.on_the_way.remove(&id) {
                self.changed.insert(id);
            }
        }
    }

    /// The letter is kept in the stream, under this number, with so many bytes; `None` if there was nothing to write.
    /// Returns the records it was about.
    pub fn confirmed(&mut self, letter: Option<(u64, u64)>, lines: &[Line]) -> BTreeSet<RecordId> {
        let was_to_move = |line: &&Line| line.form == Form::Change && self.moving.contains(&line.id);
        let unmovable: Vec<RecordId> = lines.iter().filter(was_to_move).map(|line| line.id).collect();
        for id in unmovable {
            self.moving.remove(&id);
            self.unmovable.insert(id);
        }
        match letter {
            Some((number, bytes)) => self.learn(number, bytes, lines),
            None => lines.iter().filter(|line| line.form == Form::Gone).for_each(|line| self.forget(line.id)),
        }
        std::mem::take(&mut self.on_the_way)
    }

    /// Whether the letter was kept is not known, or it was not: all of it is to be told again.
    pub fn lost(&mut self) {
        self.changed.append(&mut self.on_the_way);
    }

    /// Takes note of a letter found in the stream. Letters come in order. A message of which only the room it takes is
    /// known (of a letter that goes on, or was never ended) is a letter without lines; once the letter is whole, its
    /// first message says it all.
    pub fn learn(&mut self, letter: u64, bytes: u64, lines: &[Line]) {
        let before = self.letters.insert(letter, Letter { bytes, residents: 0, written: Vec::new() });
        self.held_bytes = self.held_bytes + bytes - before.map_or(0, |before| before.bytes);
        for line in lines {
            match line.form {
                Form::Whole { bytes } => {
                    self.leave(line.id);
                    self.moving.remove(&line.id);
                    self.homes.insert(line.id, Home { letter, bytes, look: line.look, seen: false });
                    self.live_bytes += u64::from(bytes);
                    let here = self.letters.get_mut(&letter).expect("inserted above");
                    here.residents += 1;
                    here.written.push(line.id);
                }
                Form::Change => {
                    if let Some(home) = self.homes.get_mut(&line.id) {
                        home.look = line.look;
                    }
                }
                Form::Gone => self.forget(line.id),
            }
        }
    }

    fn forget(&mut self, id: RecordId) {
        self.leave(id);
        self.moving.remove(&id);
        self.unmovable.remove(&id);
    }

    fn leave(&mut self, id: RecordId) {
        if let Some(home) = self.homes.remove(&id) {
            self.live_bytes -= u64::from(home.bytes);
            self.letters.get_mut(&home.letter).expect("a letter with a resident is kept").residents -= 1;
        }
    }

    /// While the stream is compared with the spool: this is how a record is at home.
    pub fn survey(&mut self, id: RecordId, look: Look) {
        match self.homes.get_mut(&id) {
            Some(home) if home.look == look => home.seen = true,
            Some(home) => {
                home.seen = true;
                self.changed.insert(id);
            }
            None => _ = self.changed.insert(id),
        }
    }

    /// Ends the comparison. A key that was not seen at home is forgotten there, and may be forgotten here. A record
    /// that was not is never taken for gone: a directory may have lost it, and then the stream has the only copy.
    pub fn end_survey(&mut self) {
        self.missing = 0;
        for (id, home) in &mut self.homes {
            match (std::mem::take(&mut home.seen), home.look.stage) {
                (true, _) => {}
                (false, Stage::Settled) => _ = self.changed.insert(*id),
                (false, Stage::Waiting | Stage::Parked) => self.missing += 1,
            }
        }
    }

    /// Live records that the stream holds and that were not seen since [`Self::survey`] was begun.
    #[must_use]
    pub fn unseen(&self) -> BTreeSet<RecordId> {
        let unseen = self.homes.iter().filter(|(_, home)| !home.seen && home.look.stage != Stage::Settled);
        unseen.map(|(id, _)| *id).collect()
    }

    /// Who is at home in the oldest letter that holds anything.
    #[must_use]
    pub fn front(&self) -> Option<Vec<RecordId>> {
        let (&number, letter) = self.letters.iter().find(|(_, letter)| letter.residents > 0)?;
        Some(self.residents(number, letter))
    }

    fn residents(&self, number: u64, letter: &Letter) -> Vec<RecordId> {
        let is_at_home = |id: &&RecordId| self.homes.get(*id).is_some_and(|home| home.letter == number);
        letter.written.iter().filter(is_at_home).copied().collect()
    }

    /// What the stream says of these is not needed any more, and nothing can be written to say so: it is full. They are
    /// settled at home; their keys are told again when there is room.
    pub fn abandon(&mut self, ids: &[RecordId]) {
        for &id in ids {
            self.forget(id);
            self.changed.insert(id);
        }
    }

    /// The number below which no letter is needed any more, and the bytes that would free: everything in front of the
    /// first letter with a resident. The last letter always stays: it says who wrote last.
    #[must_use]
    pub fn purgeable(&self) -> Option<(u64, u64)> {
        let last = *self.letters.last_key_value()?.0;
        let mut bytes = 0;
        for (&number, letter) in &self.letters {
            if letter.residents > 0 || number == last {
                return (bytes > 0).then_some((number, bytes));
            }
            bytes += letter.bytes;
        }
        None
    }

    /// The stream holds nothing below this number any more.
    pub fn purged(&mut self, below: u64) {
        let kept = self.letters.split_off(&below);
        for letter in std::mem::replace(&mut self.letters, kept).into_values() {
            assert_eq!(letter.residents, 0, "a letter with a resident is not thrown away");
            self.held_bytes -= letter.bytes;
        }
    }

    /// If the letters take more than twice what lives in them (and [`SLACK_BYTES`]): those at home in the oldest are to
    /// be written out again. Returns how many.
    pub fn move_front(&mut self) -> usize {
        if self.held_bytes <= 2 * self.live_bytes + SLACK_BYTES {
            return 0;
        }
        let full = self.letters.iter().filter(|(_, letter)| letter.residents > 0);
        let can_move = |id: &RecordId| !self.unmovable.contains(id);
        let residents = full.map(|(&number, letter)| {
            let mut residents = self.residents(number, letter);
            residents.retain(can_move);
            residents
        });
        let Some(residents) = residents.into_iter().find(|residents| !residents.is_empty()) else { return 0 };
        for &id in &residents {
            self.moving.insert(id);
            self.changed.insert(id);
        }
        residents.len()
    }

    /// Forgets what is known of the stream: it will be read again. What is to be told stays.
    pub fn forget_stream(&mut self) {
        self.lost();
        self.homes.clear();
        self.letters.clear();
        self.moving.clear();
        self.unmovable.clear();
        (self.held_bytes, self.live_bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What the other town makes of the letters it kept.
    fn replay(stream: &BTreeMap<u64, Vec<(RecordId, Form, Look)>>) -> BTreeMap<RecordId, Look> {
        let mut cards = BTreeMap::new();
        for (id, form, look) in stream.values().flatten() {
            match form {
                Form::Whole { .. } => _ = cards.insert(*id, *look),
                Form::Change => {
                    if let Some(known) = cards.get_mut(id) {
                        *known = *look;
                    }
                }
                Form::Gone => _ = cards.remove(id),
            }
        }
        cards
    }

    #[derive(Clone, Debug)]
    enum Op {
        Set(u64, Look),
        Forget(u64),
        /// A letter of up to so many records; whether it is kept, and whether that is told.
        Letter(usize, bool, bool),
        Purge,
        Restart,
    }

    fn op() -> impl Strategy<Value = Op> {
        let look = (0..3_u8, 0..3_u32).prop_map(|(stage, attempts)| Look {
            stage: [Stage::Waiting, Stage::Parked, Stage::Settled][usize::from(stage)],
            attempts,
        });
        prop_oneof![
            6 => (0..20_u64, look).prop_map(|(id, look)| Op::Set(id, look)),
            2 => (0..20_u64).prop_map(Op::Forget),
            4 => (1..9_usize, any::<bool>(), any::<bool>()).prop_map(|(max, kept, told)| Op::Letter(max, kept, told)),
            2 => Just(Op::Purge),
            1 => Just(Op::Restart),
        ]
    }

    #[derive(Default)]
    struct World {
        home: BTreeMap<RecordId, Look>,
        replica: Replica,
        stream: BTreeMap<u64, Vec<(RecordId, Form, Look)>>,
        next: u64,
    }

    const BYTES: u32 = 1 << 20;

    impl World {
        fn letter(&mut self, max: usize, kept: bool, told: bool) {
            let mut lines = Vec::new();
            for Want { id, whole } in self.replica.begin(max) {
                let gone = Look { stage: Stage::Settled, attempts: 0 };
                let (form, look) = match self.home.get(&id) {
                    None => (Form::Gone, gone),
                    Some(&look) if whole || look.stage == Stage::Settled => (Form::Whole { bytes: BYTES }, look),
                    Some(&look) => (Form::Change, look),
                };
                lines.push(Line { id, form, look });
            }
            // Of what the stream holds as live, the end is written down.
            let is_live = |line: &Line| self.replica.look(line.id).is_some_and(|look| look.stage != Stage::Settled);
            let says_nothing = |line: &Line| line.form == Form::Gone && !is_live(line);
            if lines.iter().all(says_nothing) {
                self.replica.confirmed(None, &lines);
                return;
            }
            let number = self.next;
            let bytes = lines.iter().filter(|line| line.form != Form::Change).count() as u64 * u64::from(BYTES) + 1;
            if kept {
                let written = lines.iter().filter(|line| !says_nothing(line));
                self.stream.insert(number, written.map(|line| (line.id, line.form, line.look)).collect());
                self.next += 1;
            }
            match (kept, told) {
                (true, true) => _ = self.replica.confirmed(Some((number, bytes)), &lines),
                // The letter is found in the stream when that is looked at again.
                (true, false) => {
                    self.replica.lost();
                    self.replica.learn(number, bytes, &lines);
                }
                (false, _) => self.replica.lost(),
            }
        }

        fn purge(&mut self) {
            if let Some((below, _)) = self.replica.purgeable() {
                self.stream = self.stream.split_off(&below);
                self.replica.purged(below);
            }
        }

        fn restart(&mut self) {
            self.replica = Replica::new();
            for (number, lines) in &self.stream {
                let lines: Vec<Line> = lines.iter().map(|&(id, form, look)| Line { id, form, look }).collect();
                let bytes = lines.iter().filter(|line| line.form != Form::Change).count() as u64;
                self.replica.learn(*number, bytes * u64::from(BYTES) + 1, &lines);
            }
            for (&id, &look) in &self.home {
                self.replica.survey(id, look);
            }
            self.replica.end_survey();
        }
    }

    proptest! {
        #[test]
        fn the_other_town_knows_what_it_was_told(ops in vec(op(), 1..120)) {
            let mut world = World::default();
            let has_restarted = ops.iter().any(|op| matches!(op, Op::Restart));
            for op in ops {
                match op {
                    Op::Set(id, look) => {
                        world.home.insert(RecordId(id), look);
                        world.replica.touch(RecordId(id));
                    }
                    Op::Forget(id) => {
                        world.home.remove(&RecordId(id));
                        world.replica.touch(RecordId(id));
                    }
                    Op::Letter(max, kept, told) => world.letter(max, kept, told),
                    Op::Purge => world.purge(),
                    Op::Restart => world.restart(),
                }
                world.replica.move_front();
                let there = replay(&world.stream);
                for (id, look) in &world.home {
                    if world.replica.is_current(*id) {
                        prop_assert!(world.replica.holds(*id));
                        prop_assert_eq!(there.get(id), Some(look), "record {} is current", id);
                    }
                }
            }
            // Left alone, it comes right, and takes no more than it may.
            for _ in 0..200 {
                if world.replica.behind() == 0 && world.replica.move_front() == 0 {
                    break;
                }
                world.letter(50, true, true);
                world.purge();
            }
            prop_assert_eq!(world.replica.behind(), 0);
            let mut there = replay(&world.stream);
            // Keys that were forgotten may still lie there: whoever restores them forgets them by their age. A live
            // record that is not at home may be there only if it vanished behind a restart's back.
            let more = there.iter().filter(|(id, look)| {
                !world.home.contains_key(id) && look.stage != Stage::Settled
            }).count() as u64;
            prop_assert!(more == 0 || has_restarted, "{} live records too many", more);
            there.retain(|id, _| world.home.contains_key(id));
            prop_assert_eq!(&there, &world.home);
            prop_assert!(world.replica.held() >= world.home.len() as u64);
            let live = world.replica.held() * u64::from(BYTES);
            prop_assert!(world.replica.held_bytes() <= 2 * live + SLACK_BYTES + 10 * u64::from(BYTES));
        }
    }

    #[test]
    fn what_found_no_room_goes_with_the_next_letter() {
        let mut replica = Replica::new();
        (1..=3).for_each(|id| replica.touch(RecordId(id)));
        assert_eq!(replica.begin(2).len(), 2);
        replica.postpone([RecordId(2)]);
        let look = Look { stage: Stage::Waiting, attempts: 1 };
        let line = Line { id: RecordId(1), form: Form::Whole { bytes: 9 }, look };
        assert_eq!(replica.confirmed(Some((1, 20)), &[line]), BTreeSet::from([RecordId(1)]));
        assert!(replica.is_current(RecordId(1)) && !replica.is_current(RecordId(2)));
        assert_eq!((replica.behind(), replica.held(), replica.held_bytes()), (2, 1, 20));
        replica.forget_stream();
        assert_eq!((replica.behind(), replica.held(), replica.held_bytes()), (2, 0, 0));
    }
}
