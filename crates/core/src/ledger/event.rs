//! What changes the ledger, and how it is written down.
//!
//! Every change of the books is one [`Event`]; the log of events is the ledger, the rest can be rebuilt from it.
//!
//! One event in bytes: a kind, then its fields. Numbers are LEB128 in the fewest bytes; a text is its length and UTF-8.
//! ```text
//! 1 Began    epoch
//! 2 Reserved stream epoch up_to
//! 3 Outcome  stream epoch seq class     class: 0 accepted, 1 refused, 2 indeterminate
//! 4 Moved    stream epoch seq place     place: 0 waiting, 1 delivered, 2 parked, 3 discarded, 4 handed over
//! 5 Receipts sink batch count arrival*
//! 6 Closed   stream epoch issued
//! 7 Sealed   stream epoch
//! 8 Unnumbered stream epoch total
//! 9 Census   stream life since start said count sum cells cell*
//! 10 Adopted stream producer epoch first last
//! said     = 1 the life ends + 2 the clock went back + 4 something could not be counted
//! cell     = places passed over, count (zigzag), sums of identities and of checks (16 bytes each, little-endian)
//!            sum: 32 bytes, little-endian; cells that are empty are left out
//! arrival  = 2 text                                           a number nobody can read
//!          | account*4 + whole [stream producer epoch] delta  whole: 0 or 1
//! ```
//! The stream of an account that was adopted is written `stream.producer`, in all but `Adopted`.
//! An account is named where it first appears in a batch and by its place in that order afterwards; `delta` is the
//! distance from the account's number before, zigzag. A receipt in order takes two bytes.
//! There is one way to write an event: bytes that decode are exactly the bytes that the event encodes to.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::account::{Class, Place};
use super::census::{Bag, Cell, Census, Sketch};
use super::id::{RecordRef, RefError};
use super::periods::Told;
use super::receipt::{Arrival, ReceiptBatch};

/// A change of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A new epoch of the node began: it started, or its accounts were sealed. Earlier epochs are over; those that were
    /// not closed are taken for crashed.
    Began {
        /// The new epoch.
        epoch: u64,
    },
    /// Numbers may be given out. To be durable before the first of them is.
    Reserved {
        /// The stream.
        stream: String,
        /// The epoch. A new one begins with it, as with [`Self::Began`].
        epoch: u64,
        /// The last number reserved.
        up_to: u64,
    },
    /// What the client was told. For a promise: to be durable before the client is told.
    Outcome {
        /// The stream.
        stream: String,
        /// The epoch.
        epoch: u64,
        /// The record.
        seq: u64,
        /// What it was told.
        class: Class,
    },
    /// A record that went through the spool is somewhere else now. It is promised if it was not yet.
    Moved {
        /// The stream.
        stream: String,
        /// The epoch.
        epoch: u64,
        /// The record.
        seq: u64,
        /// Where it is.
        to: Place,
    },
    /// A sink said what arrived.
    Receipts(ReceiptBatch),
    /// A clean end: no number beyond `issued` was given out.
    Closed {
        /// The stream.
        stream: String,
        /// The epoch.
        epoch: u64,
        /// The last number given out.
        issued: u64,
    },
    /// Everything that was to arrive had its time: what is missing now is lost.
    Sealed {
        /// The stream.
        stream: String,
        /// The epoch.
        epoch: u64,
    },
    /// Writes went on without a number because none could be reserved: the account does not cover them.
    Unnumbered {
        /// The stream.
        stream: String,
        /// The epoch.
        epoch: u64,
        /// How many, since the epoch began.
        total: u64,
    },
    /// Records of another node are about to be taken in, under the numbers it gave them. To be durable before the first
    /// of them is; which ones were is told by [`Self::Moved`].
    Adopted {
        /// The stream.
        stream: String,
        /// The node that gave the numbers.
        producer: String,
        /// The epoch, of that node.
        epoch: u64,
        /// The first number.
        first: u64,
        /// The last of them.
        last: u64,
    },
    /// Which keys a stream accepted in a period of [`super::PERIOD_S`] seconds.
    Census {
        /// The stream.
        stream: String,
        /// Which life of the node: the epoch it began with.
        life: u64,
        /// When the period begins that life began in, in seconds since 1970.
        since: u64,
        /// When the period begins. One that ends where the life begins says that it began.
        start: u64,
        /// What else is to be said.
        said: Told,
        /// The keys.
        census: Census,
    },
}

/// Bytes that are no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They end too soon.
    #[error("ledger event ends too soon")]
    Short,
    /// There is something after the end.
    #[error("{bytes} bytes after the end of a ledger event")]
    Long {
        /// How many.
        bytes: usize,
    },
    /// A kind, class, place or flag that this version does not know.
    #[error("unknown {what} {value} in a ledger event")]
    Unknown {
        /// What was to be read.
        what: &'static str,
        /// What was there.
        value: u64,
    },
    /// A number that is too long or not written in the fewest bytes.
    #[error("malformed number in a ledger event")]
    Number,
    /// A text that is not UTF-8.
    #[error("text in a ledger event is not UTF-8")]
    Text,
    /// An account that is named twice in one batch.
    #[error("account named twice in a ledger event")]
    Repeated,
    /// A record with a name that is none.
    #[error("cannot read a record of a ledger event")]
    Record(#[from] RefError),
}

const UNREADABLE: u64 = 2;
/// By their codes.
const PLACES: [Place; 5] = [Place::Waiting, Place::Delivered, Place::Parked, Place::Discarded, Place::HandedOver];

impl Event {
    /// The event in bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32);
        match self {
            Self::Began { epoch } => {
                bytes.push(1);
                put_number(&mut bytes, *epoch);
            }
            Self::Reserved { stream, epoch, up_to } => put_all(&mut bytes, 2, stream, &[*epoch, *up_to]),
            Self::Outcome { stream, epoch, seq, class } => {
                put_all(&mut bytes, 3, stream, &[*epoch, *seq, class_code(*class)]);
            }
            Self::Moved { stream, epoch, seq, to } => {
                put_all(&mut bytes, 4, stream, &[*epoch, *seq, place_code(*to)]);
            }
            Self::Receipts(batch) => put_batch(&mut bytes, batch),
            Self::Closed { stream, epoch, issued } => put_all(&mut bytes, 6, stream, &[*epoch, *issued]),
            Self::Sealed { stream, epoch } => put_all(&mut bytes, 7, stream, &[*epoch]),
            Self::Unnumbered { stream, epoch, total } => put_all(&mut bytes, 8, stream, &[*epoch, *total]),
            Self::Adopted { stream, producer, epoch, first, last } => {
                put_all(&mut bytes, 10, stream, &[]);
                put_text(&mut bytes, producer);
                [*epoch, *first, *last].into_iter().for_each(|number| put_number(&mut bytes, number));
            }
            Self::Census { stream, life, since, start, said, census } => {
                put_all(&mut bytes, 9, stream, &[*life, *since, *start, said_code(*said)]);
                put_census(&mut bytes, census);
            }
        }
        bytes
    }

    /// Reads an event back. Any bytes may come: it never panics and reserves no more memory than they can fill.
    ///
    /// # Errors
    /// [`DecodeError`] for anything but exactly one event in its one way of writing.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Input(bytes);
        let event = input.event()?;
        if input.0.is_empty() { Ok(event) } else { Err(DecodeError::Long { bytes: input.0.len() }) }
    }
}

const fn class_code(class: Class) -> u64 {
    match class {
        Class::Accepted => 0,
        Class::Refused => 1,
        Class::Indeterminate => 2,
    }
}

const fn place_code(place: Place) -> u64 {
    match place {
        Place::Waiting => 0,
        Place::Delivered => 1,
        Place::Parked => 2,
        Place::Discarded => 3,
        Place::HandedOver => 4,
    }
}

const fn said_code(said: Told) -> u64 {
    said.ends as u64 | (said.steps_back as u64) << 1 | (said.in_doubt as u64) << 2
}

fn put_all(bytes: &mut Vec<u8>, kind: u8, name: &str, numbers: &[u64]) {
    bytes.push(kind);
    put_text(bytes, name);
    for &number in numbers {
        put_number(bytes, number);
    }
}

fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_number(bytes, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
}

fn put_batch(bytes: &mut Vec<u8>, batch: &ReceiptBatch) {
    put_all(bytes, 5, &batch.sink, &[batch.batch, batch.arrivals.len() as u64]);
    let mut accounts: BTreeMap<(&str, &str, u64), (u64, u64)> = BTreeMap::new();
    for arrival in &batch.arrivals {
        match arrival {
            Arrival::Unreadable { text } => {
                put_number(bytes, UNREADABLE);
                put_text(bytes, text);
            }
            Arrival::Record { record, is_whole } => {
                let next = accounts.len() as u64;
                let key = (record.stream.as_str(), record.producer.as_str(), record.epoch);
                let (index, before) = accounts.entry(key).or_insert((next, 0));
                put_number(bytes, *index << 2 | u64::from(*is_whole));
                if *index == next {
                    put_text(bytes, &record.stream);
                    put_text(bytes, &record.producer);
                    put_number(bytes, record.epoch);
                }
                put_number(bytes, zigzag(record.seq.wrapping_sub(*before)));
                *before = record.seq;
            }
        }
    }
}

fn put_census(bytes: &mut Vec<u8>, Census { bag, sketch }: &Census) {
    put_number(bytes, bag.count);
    bag.sum.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    put_number(bytes, sketch.used().count() as u64);
    let mut next = 0;
    for (at, Cell { count, ids, checks }) in sketch.used() {
        put_number(bytes, (at - next) as u64);
        put_number(bytes, zigzag(count as u64));
        bytes.extend_from_slice(&ids.to_le_bytes());
        bytes.extend_from_slice(&checks.to_le_bytes());
        next = at + 1;
    }
}

/// Small distances in both directions become small numbers.
const fn zigzag(distance: u64) -> u64 {
    distance << 1 ^ ((distance as i64) >> 63) as u64
}

const fn unzigzag(number: u64) -> u64 {
    number >> 1 ^ (number & 1).wrapping_neg()
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn event(&mut self) -> Result<Event, DecodeError> {
        let kind = self.byte()?;
        Ok(match kind {
            1 => Event::Began { epoch: self.number()? },
            2 => Event::Reserved { stream: self.text()?, epoch: self.number()?, up_to: self.number()? },
            3 => Event::Outcome {
                stream: self.text()?,
                epoch: self.number()?,
                seq: self.number()?,
                class: self.one_of("class", &[Class::Accepted, Class::Refused, Class::Indeterminate])?,
            },
            4 => Event::Moved {
                stream: self.text()?,
                epoch: self.number()?,
                seq: self.number()?,
                to: self.one_of("place", &PLACES)?,
            },
            5 => Event::Receipts(self.batch()?),
            6 => Event::Closed { stream: self.text()?, epoch: self.number()?, issued: self.number()? },
            7 => Event::Sealed { stream: self.text()?, epoch: self.number()? },
            8 => Event::Unnumbered { stream: self.text()?, epoch: self.number()?, total: self.number()? },
            9 => Event::Census {
                stream: self.text()?,
                life: self.number()?,
                since: self.number()?,
                start: self.number()?,
                said: self.said()?,
                census: self.census()?,
            },
            10 => Event::Adopted {
                stream: self.text()?,
                producer: self.text()?,
                epoch: self.number()?,
                first: self.number()?,
                last: self.number()?,
            },
            _ => return Err(DecodeError::Unknown { what: "kind", value: kind.into() }),
        })
    }

    fn batch(&mut self) -> Result<ReceiptBatch, DecodeError> {
        let (sink, batch, count) = (self.text()?, self.number()?, self.number()?);
        let mut accounts: Vec<RecordRef> = Vec::new();
        let mut named = BTreeSet::new();
        let mut arrivals = Vec::new();
        for _ in 0..count {
            arrivals.push(self.arrival(&mut accounts, &mut named)?);
        }
        Ok(ReceiptBatch { sink, batch, arrivals })
    }

    /// `accounts` holds the latest record of each account named so far; `named` finds one named twice.
    fn arrival(
        &mut self,
        accounts: &mut Vec<RecordRef>,
        named: &mut BTreeSet<RecordRef>,
    ) -> Result<Arrival, DecodeError> {
        let head = self.number()?;
        if head == UNREADABLE {
            return Ok(Arrival::Unreadable { text: self.text()? });
        }
        let (index, form) = (head >> 2, head & 3);
        if form > 1 || index > accounts.len() as u64 {
            return Err(DecodeError::Unknown { what: "form of arrival", value: head });
        }
        if index == accounts.len() as u64 {
            let account = RecordRef::new(self.text()?, self.text()?, self.number()?, 0)?;
            if !named.insert(account.clone()) {
                return Err(DecodeError::Repeated);
            }
            accounts.push(account);
        }
        let record = &mut accounts[index as usize];
        record.seq = record.seq.wrapping_add(unzigzag(self.number()?));
        Ok(Arrival::Record { record: record.clone(), is_whole: form == 1 })
    }

    fn said(&mut self) -> Result<Told, DecodeError> {
        let code = self.number()?;
        let said = Told { ends: code & 1 != 0, steps_back: code & 2 != 0, in_doubt: code & 4 != 0 };
        if said_code(said) == code { Ok(said) } else { Err(DecodeError::Unknown { what: "word", value: code }) }
    }

    fn census(&mut self) -> Result<Census, DecodeError> {
        let count = self.number()?;
        let mut sum = [0; 4];
        for word in &mut sum {
            *word = u64::from_le_bytes(self.raw()?);
        }
        let (used, mut cells, mut next) = (self.number()?, Vec::new(), 0_u64);
        for _ in 0..used {
            let at = self.number()?.saturating_add(next);
            let count = unzigzag(self.number()?) as i64;
            let cell = Cell { count, ids: i128::from_le_bytes(self.raw()?), checks: i128::from_le_bytes(self.raw()?) };
            cells.push((usize::try_from(at).unwrap_or(usize::MAX), cell));
            next = at.saturating_add(1);
        }
        let sketch = Sketch::try_from(cells).map_err(|_| DecodeError::Unknown { what: "cells", value: used })?;
        Ok(Census { bag: Bag { count, sum }, sketch })
    }

    fn raw<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn one_of<T: Copy>(&mut self, what: &'static str, all: &[T]) -> Result<T, DecodeError> {
        let value = self.number()?;
        let found = usize::try_from(value).ok().and_then(|index| all.get(index));
        found.copied().ok_or(DecodeError::Unknown { what, value })
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&byte, rest) = self.0.split_first().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(byte)
    }

    fn number(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(DecodeError::Number);
            }
            number |= bits << shift;
            if byte < 0x80 {
                // A last byte of zero adds nothing: the number had a shorter form.
                return if byte == 0 && shift > 0 { Err(DecodeError::Number) } else { Ok(number) };
            }
        }
        Err(DecodeError::Number)
    }

    fn text(&mut self) -> Result<String, DecodeError> {
        let len = self.number()?;
        let len = usize::try_from(len).ok().filter(|&len| len <= self.0.len()).ok_or(DecodeError::Short)?;
        let (text, rest): (&'a [u8], _) = self.0.split_at(len);
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| DecodeError::Text)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::census::{Member, Salt};

    fn name() -> impl Strategy<Value = String> {
        "[a-c]{1,2}"
    }

    fn arrival() -> impl Strategy<Value = Arrival> {
        let seq = prop_oneof![4 => 0..200_u64, 1 => any::<u64>()];
        prop_oneof![
            8 => (name(), name(), 0..3_u64, seq, any::<bool>()).prop_map(|(stream, producer, epoch, seq, is_whole)| {
                Arrival::Record { record: RecordRef { stream, producer, epoch, seq }, is_whole }
            }),
            1 => ".{0,9}".prop_map(|text| Arrival::Unreadable { text }),
        ]
    }

    fn class() -> impl Strategy<Value = Class> {
        prop_oneof![Just(Class::Accepted), Just(Class::Refused), Just(Class::Indeterminate)]
    }

    fn place() -> impl Strategy<Value = Place> {
        prop::sample::select(PLACES.as_slice())
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..300_u64, any::<u64>()]
    }

    pub(in crate::ledger) fn event() -> impl Strategy<Value = Event> {
        let stream = ".{0,9}";
        prop_oneof![
            number().prop_map(|epoch| Event::Began { epoch }),
            (stream, number(), number()).prop_map(|(stream, epoch, up_to)| Event::Reserved { stream, epoch, up_to }),
            (stream, number(), number(), class()).prop_map(|(stream, epoch, seq, class)| Event::Outcome {
                stream,
                epoch,
                seq,
                class
            }),
            (stream, number(), number(), place()).prop_map(|(stream, epoch, seq, to)| Event::Moved {
                stream,
                epoch,
                seq,
                to
            }),
            (stream, number(), vec(arrival(), 0..30))
                .prop_map(|(sink, batch, arrivals)| Event::Receipts(ReceiptBatch { sink, batch, arrivals })),
            (stream, number(), number()).prop_map(|(stream, epoch, issued)| Event::Closed { stream, epoch, issued }),
            (stream, number()).prop_map(|(stream, epoch)| Event::Sealed { stream, epoch }),
            (stream, number(), number()).prop_map(|(stream, epoch, total)| Event::Unnumbered { stream, epoch, total }),
            (stream, name(), number(), number(), number()).prop_map(|(stream, producer, epoch, first, last)| {
                Event::Adopted { stream, producer, epoch, first, last }
            }),
            (stream, number(), number(), number(), 0..8_u64, vec(0..9_u64, 0..9)).prop_map(
                |(stream, life, since, start, said, keys)| {
                    let mut census = Census::default();
                    keys.iter().for_each(|key| census.count(&Member::of(&Salt([0; 32]), &key.to_string())));
                    let said = Told { ends: said & 1 != 0, steps_back: said & 2 != 0, in_doubt: said & 4 != 0 };
                    Event::Census { stream, life, since, start, said, census }
                }
            ),
        ]
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_bytes_of_this_version_are_the_bytes_of_the_next() {
        let stream = || "ev".to_string();
        let record = |seq| Arrival::Record { record: format!("ev.n.1.{seq}").parse().unwrap(), is_whole: seq != 4 };
        let batch = ReceiptBatch {
            sink: "wh".into(),
            batch: 300,
            arrivals: vec![record(5), record(6), record(4), Arrival::Unreadable { text: "?".into() }],
        };
        let adopted = Event::Adopted { stream: stream(), producer: "n".into(), epoch: 2, first: 7, last: 44 };
        let events = [
            (Event::Began { epoch: 2 }, "0102"),
            (Event::Reserved { stream: stream(), epoch: 2, up_to: 1024 }, "02026576028008"),
            (Event::Outcome { stream: stream(), epoch: 2, seq: 7, class: Class::Indeterminate }, "03026576020702"),
            (Event::Moved { stream: stream(), epoch: 2, seq: 7, to: Place::Parked }, "04026576020702"),
            (Event::Receipts(batch), "05027768ac020401026576016e010a0102000302013f"),
            (Event::Closed { stream: stream(), epoch: 2, issued: 9 }, "060265760209"),
            (Event::Sealed { stream: stream(), epoch: 2 }, "0702657602"),
            (Event::Unnumbered { stream: stream(), epoch: 2, total: 3 }, "080265760203"),
            (Event::Moved { stream: "ev.n".into(), epoch: 2, seq: 7, to: Place::HandedOver }, "040465762e6e020704"),
            (adopted, "0a026576016e02072c"),
        ];
        let written: Vec<String> = events.iter().map(|(event, _)| hex(&event.encode())).collect();
        assert_eq!(written, events.map(|(_, hex)| hex));
    }

    #[test]
    fn what_is_wrong_with_bytes_is_said() {
        let message = |bytes: &[u8]| Event::decode(bytes).unwrap_err().to_string();
        assert_eq!(message(&[]), "ledger event ends too soon");
        assert_eq!(message(&[1, 2, 3, 4]), "2 bytes after the end of a ledger event");
        assert_eq!(message(&[99]), "unknown kind 99 in a ledger event");
        let census = |tail: &[u8]| message(&[&[9, 0, 0, 0, 0, 0, 1][..], &[0; 32], tail].concat());
        assert_eq!(message(&[9, 0, 0, 0, 0, 8]), "unknown word 8 in a ledger event");
        assert_eq!(census(&[2, 0, 2]), "ledger event ends too soon");
        assert_eq!(census(&[&[1, 128, 1, 2][..], &[1; 32]].concat()), "unknown cells 1 in a ledger event");
        assert_eq!(census(&[&[1, 0, 0][..], &[0; 32]].concat()), "unknown cells 1 in a ledger event");
        assert_eq!(message(&[3, 0, 1, 1, 3]), "unknown class 3 in a ledger event");
        assert_eq!(message(&[4, 0, 1, 1, 5]), "unknown place 5 in a ledger event");
        assert_eq!(message(&[1, 0x80, 0]), "malformed number in a ledger event");
        assert_eq!(message(&[1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2]), "malformed number in a ledger event");
        let endless = [1, 128, 128, 128, 128, 128, 128, 128, 128, 128, 129];
        assert_eq!(message(&endless), "malformed number in a ledger event");
        assert_eq!(message(&[7, 1, 0xff, 1]), "text in a ledger event is not UTF-8");
        assert_eq!(message(&[7, 200, 1, b'a']), "ledger event ends too soon");
        assert_eq!(message(&[5, 0, 1, 1, 3]), "unknown form of arrival 3 in a ledger event");
        assert_eq!(message(&[5, 0, 1, 1, 4]), "unknown form of arrival 4 in a ledger event");
        let named_twice = [5, 0, 1, 2, 1, 1, b'a', 1, b'b', 1, 2, 5, 1, b'a', 1, b'b', 1, 2];
        assert_eq!(message(&named_twice), "account named twice in a ledger event");
        assert_eq!(message(&[5, 0, 1, 1, 1, 0, 0, 1, 2]), "cannot read a record of a ledger event");
        // A count that promises more than there is must not reserve memory for it.
        assert_eq!(message(&[5, 0, 1, 255, 255, 255, 255, 255, 255, 255, 127]), "ledger event ends too soon");
    }

    #[test]
    fn receipts_in_order_take_two_bytes() {
        let arrivals = (1..=10_000).map(|seq| Arrival::Record {
            record: RecordRef::new("events", "us-east-1", 3, seq).unwrap(),
            is_whole: true,
        });
        let batch = ReceiptBatch { sink: "warehouse".into(), batch: 1, arrivals: arrivals.collect() };
        assert!(Event::Receipts(batch).encode().len() < 20_040);
    }

    #[test]
    fn distances_go_both_ways() {
        for (distance, number) in [(0_i64, 0), (-1, 1), (1, 2), (i64::MIN, u64::MAX), (i64::MAX, u64::MAX - 1)] {
            assert_eq!(zigzag(distance as u64), number);
            assert_eq!(unzigzag(number), distance as u64);
        }
    }

    proptest! {
        #[test]
        fn an_event_reads_back(event in event()) {
            prop_assert_eq!(Event::decode(&event.encode()), Ok(event.clone()));
            let text = serde_json::to_string(&event).unwrap();
            prop_assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in vec(any::<u8>(), 0..64)) {
            if let Ok(event) = Event::decode(&bytes) {
                prop_assert_eq!(event.encode(), bytes);
            }
        }

        #[test]
        fn a_flipped_byte_is_another_event_or_none(event in event(), at: prop::sample::Index, flip in 1..=255_u8) {
            let mut bytes = event.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(other) = Event::decode(&bytes) {
                prop_assert_ne!(&other, &event);
                prop_assert_eq!(other.encode(), bytes);
            }
        }

        #[test]
        fn a_cut_event_is_none(event in event(), at: prop::sample::Index) {
            let bytes = event.encode();
            prop_assert!(Event::decode(&bytes[..at.index(bytes.len())]).is_err());
        }
    }
}
