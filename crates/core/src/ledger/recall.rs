//! What the spool holds, against what the books say of it: after a start, and told in runs, because either may have
//! millions of records and they agree on nearly all of them.

use std::collections::BTreeMap;

use super::interval::{IntervalSet, sweep};
use super::{Event, Ledger, Place, adopted_parts};

/// The numbers of the records that a spool holds. About 40 bytes a run of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held(BTreeMap<String, BTreeMap<u64, Numbers>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Numbers {
    waiting: IntervalSet,
    parked: IntervalSet,
    given_up: IntervalSet,
    handed_over: IntervalSet,
}

/// Records that are elsewhere than the books say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recalled {
    /// The stream.
    pub stream: String,
    /// The epoch.
    pub epoch: u64,
    /// The first of them.
    pub first: u64,
    /// The last of them.
    pub last: u64,
    /// Where they are: to be told with [`super::Event::Moved`].
    pub to: Place,
}

impl Held {
    /// A record that waits or is on its way.
    pub fn waits(&mut self, stream: &str, epoch: u64, seq: u64) {
        self.numbers(stream, epoch).waiting.insert(seq);
    }

    /// A dead letter.
    pub fn is_parked(&mut self, stream: &str, epoch: u64, seq: u64) {
        self.numbers(stream, epoch).parked.insert(seq);
    }

    /// One that was given up, by a person or because its time was over.
    pub fn was_given_up(&mut self, stream: &str, epoch: u64, seq: u64) {
        self.numbers(stream, epoch).given_up.insert(seq);
    }

    /// One that another node has taken in.
    pub fn was_handed_over(&mut self, stream: &str, epoch: u64, seq: u64) {
        self.numbers(stream, epoch).handed_over.insert(seq);
    }

    fn numbers(&mut self, stream: &str, epoch: u64) -> &mut Numbers {
        if !self.0.contains_key(stream) {
            self.0.insert(stream.to_owned(), BTreeMap::new());
        }
        self.0.get_mut(stream).expect("put there just now").entry(epoch).or_default()
    }
}

impl Ledger {
    /// What a spool holds under numbers of other nodes, or of other directories of this one, that are on no account
    /// here: to be applied before [`Self::recall`].
    #[must_use]
    pub fn unknown(&self, held: &Held) -> Vec<Event> {
        let mut unknown = Vec::new();
        let nothing = IntervalSet::new();
        for (name, epochs) in &held.0 {
            let Some((stream, producer)) = adopted_parts(name) else { continue };
            for (&epoch, Numbers { waiting, parked, given_up, handed_over }) in epochs {
                let account = self.streams.get(name).and_then(|epochs| epochs.get(&epoch));
                let known = account.and_then(|account| account.adopted.as_ref()).unwrap_or(&nothing);
                sweep([known, waiting, parked, given_up, handed_over], |mask, first, last| {
                    if mask & 1 == 0 {
                        let (stream, producer) = (stream.to_owned(), producer.to_owned());
                        unknown.push(Event::Adopted { stream, producer, epoch, first, last });
                    }
                });
            }
        }
        unknown
    }

    /// Where the spool's word, which is the later one, differs from the books'. What it holds no more, and does not
    /// remember as given up, has left it: if that was not to the upstream, no sink will report it, and the seal calls
    /// it lost.
    #[must_use]
    pub fn recall(&self, held: &Held) -> Vec<Recalled> {
        let mut recalled = Vec::new();
        let nothing = Numbers::default();
        for (stream, epoch, account) in self.accounts() {
            let numbers = held.0.get(stream).and_then(|epochs| epochs.get(&epoch)).unwrap_or(&nothing);
            let Numbers { waiting, parked, given_up, handed_over } = numbers;
            let sets = [&account.waiting, &account.parked, waiting, parked, given_up, handed_over];
            sweep(sets, |mask, first, last| {
                if let Some(to) = moved(mask) {
                    recalled.push(Recalled { stream: stream.to_owned(), epoch, first, last, to });
                }
            });
        }
        recalled
    }
}

/// Bits: waiting and parked by the books; waiting, parked, given up and handed over in the spool.
const fn moved(mask: u32) -> Option<Place> {
    let (by_the_books, waits, is_parked, given_up, handed_over) =
        (mask & 0b11, mask & 0b100 != 0, mask & 0b1000 != 0, mask & 0b1_0000 != 0, mask & 0b10_0000 != 0);
    match (waits, is_parked, by_the_books) {
        (true, _, 0b01) | (false, true, 0b10) | (false, false, 0) => None,
        (true, ..) => Some(Place::Waiting),
        (false, true, _) => Some(Place::Parked),
        (false, false, _) if handed_over => Some(Place::HandedOver),
        (false, false, _) if given_up => Some(Place::Discarded),
        (false, false, _) => Some(Place::Delivered),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Class, Event};

    #[test]
    fn the_spools_word_counts_and_only_differences_are_told() {
        let mut ledger = Ledger::new("node").unwrap();
        let stream = || "events".to_owned();
        ledger.apply(&Event::Reserved { stream: stream(), epoch: 1, up_to: 1000 }).unwrap();
        let places = [
            (1..=300, Place::Waiting),
            (301..=400, Place::Parked),
            (401..=500, Place::Waiting),
            (501..=600, Place::Waiting),
        ];
        for (seqs, to) in places {
            for seq in seqs {
                ledger.apply(&Event::Outcome { stream: stream(), epoch: 1, seq, class: Class::Accepted }).unwrap();
                ledger.apply(&Event::Moved { stream: stream(), epoch: 1, seq, to }).unwrap();
            }
        }
        let mut held = Held::default();
        (1..=300).for_each(|seq| held.waits("events", 1, seq));
        (301..=350).for_each(|seq| held.is_parked("events", 1, seq));
        (351..=400).for_each(|seq| held.waits("events", 1, seq));
        (401..=500).for_each(|seq| held.is_parked("events", 1, seq));
        (601..=610).for_each(|seq| held.waits("events", 1, seq));
        (611..=612).for_each(|seq| held.is_parked("events", 1, seq));
        (501..=520).for_each(|seq| held.was_given_up("events", 1, seq));
        held.was_given_up("events", 1, 700);
        (521..=530).for_each(|seq| held.was_handed_over("events", 1, seq));
        held.waits("nobody's", 1, 1);
        let run = |first, last, to| Recalled { stream: stream(), epoch: 1, first, last, to };
        let wanted = [
            run(351, 400, Place::Waiting),
            run(401, 500, Place::Parked),
            run(501, 520, Place::Discarded),
            run(521, 530, Place::HandedOver),
            run(531, 600, Place::Delivered),
            run(601, 610, Place::Waiting),
            run(611, 612, Place::Parked),
        ];
        let recalled = ledger.recall(&held);
        assert_eq!(recalled, wanted);
        for Recalled { stream, epoch, first, last, to } in recalled {
            for seq in first..=last {
                ledger.apply(&Event::Moved { stream: stream.clone(), epoch, seq, to }).unwrap();
            }
        }
        assert_eq!(ledger.recall(&held), []);
        assert_eq!(ledger.unknown(&held), [], "what is told of a stream of ours has an account");
    }

    #[test]
    fn numbers_of_others_get_an_account() {
        let mut ledger = Ledger::new("node").unwrap();
        let adopted = |first, last| {
            let (stream, producer) = ("events".into(), "gone".into());
            Event::Adopted { stream, producer, epoch: 3, first, last }
        };
        ledger.apply(&adopted(4, 5)).unwrap();
        let mut held = Held::default();
        let name = ledger.account_for(&"events.gone.3.9".parse().unwrap()).into_owned();
        (1..=6).for_each(|seq| held.waits(&name, 3, seq));
        held.is_parked(&name, 3, 7);
        let unknown = ledger.unknown(&held);
        assert_eq!(unknown, [adopted(1, 3), adopted(6, 6), adopted(7, 7)]);
        unknown.iter().for_each(|event| _ = ledger.apply(event).unwrap());
        for Recalled { stream, epoch, first, last, to } in ledger.recall(&held) {
            for seq in first..=last {
                ledger.apply(&Event::Moved { stream: stream.clone(), epoch, seq, to }).unwrap();
            }
        }
        let totals = ledger.summary().totals;
        assert_eq!((totals.accepted, totals.waiting, totals.parked), (7, 6, 1));
        assert_eq!((ledger.unknown(&held), ledger.recall(&held)), (vec![], vec![]));
    }
}
