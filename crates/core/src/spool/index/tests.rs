//! The index against a small obvious model, and the cases worth a name.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::spool::record::Priority;
use crate::spool::record::Terms;

const SECOND: Duration = Duration::from_secs(1);

impl Footprint for u32 {
    fn bytes(&self) -> u64 {
        100
    }
}

fn index() -> Index<u32> {
    Index::new(IndexConfig { remember_for: Duration::from_secs(60), remember_max: 3, hash_seed: 7 })
}

fn half(id: u64) -> FingerprintHalf {
    FingerprintHalf([id as u8; 16])
}

fn admission(id: u64, upstream: &'static str, order_key: Option<&str>) -> Admission<'static, u32> {
    Admission {
        id: RecordId(id),
        upstream,
        route: "events",
        lane: order_key.map(|key| LaneKey::new(upstream, key.as_bytes())),
        key: KeyHash::new(&format!("key {id}")),
        fingerprint: half(id),
        accepted: Wall::from_millis(id * 10),
        attempts: 1,
        last_error: "connect_refused",
        terms: Terms::default(),
        place: id as u32,
    }
}

fn leased(index: &mut Index<u32>, max: usize, now: Mono) -> Vec<Lease> {
    index.lease("queue", max, now, SECOND)
}

fn forgotten(index: &mut Index<u32>, now_ms: u64) -> Vec<u64> {
    index.forget(Wall::from_millis(now_ms)).into_iter().map(|(id, _)| id.0).collect()
}

fn discard(index: &mut Index<u32>, id: RecordId, reason: &str, at: Wall) -> Result<(), NotHere> {
    index.give_up(id, Settled { outcome: Outcome::Discarded { reason: reason.into() }, at })
}

fn ids(leases: &[Lease]) -> Vec<u64> {
    leases.iter().map(|lease| lease.id().0).collect()
}

#[test]
fn the_oldest_is_told_by_its_time_and_not_by_its_number() {
    let mut index = index();
    let at = |id, ms| Admission { accepted: Wall::from_millis(ms), ..admission(id, "queue", None) };
    let oldest = |index: &Index<u32>| index.depth_total().oldest.map(Wall::as_millis);
    // The second and third were adopted, the fourth came when the clock had gone back by a day.
    for (id, ms) in [(1, 90_000_500), (2, 5_700), (3, 6_200), (4, 3_600_900)] {
        index.enqueue(at(id, ms));
    }
    assert_eq!(oldest(&index), Some(5_000), "to the second");
    discard(&mut index, RecordId(2), "", Wall::default()).unwrap();
    assert_eq!(oldest(&index), Some(6_000));
    let leases = leased(&mut index, 9, Mono::ZERO);
    assert_eq!((ids(&leases), oldest(&index)), (vec![1, 3, 4], Some(6_000)), "on their way they count");
    for lease in leases {
        match lease.id().0 {
            3 => assert!(index.park(&lease, Parked::default())),
            1 => assert!(index.ack(&lease, 200, Wall::default())),
            _ => assert!(index.release(&lease)),
        }
    }
    assert_eq!(oldest(&index), Some(3_600_900), "exactly, where numbers tell");
    index.retry(RecordId(3)).unwrap();
    assert_eq!(oldest(&index), Some(6_200));
    for id in [3, 4] {
        discard(&mut index, RecordId(id), "", Wall::default()).unwrap();
    }
    assert_eq!(oldest(&index), None);
}

#[test]
fn a_key_goes_in_order_and_others_pass() {
    let mut index = index();
    for (id, key) in [(1, Some("a")), (2, Some("a")), (3, Some("b")), (4, None), (5, None)] {
        index.enqueue(admission(id, "queue", key));
    }
    let first = leased(&mut index, 10, Mono::ZERO);
    assert_eq!(ids(&first), [1, 3, 4, 5]);
    assert!(leased(&mut index, 10, Mono::ZERO).is_empty());
    assert!(index.ack(&first[0], 200, Wall::default()));
    assert_eq!(ids(&leased(&mut index, 10, Mono::ZERO)), [2]);
    assert!(index.holds_key(LaneKey::new("queue", b"b")));
    assert!(!index.holds_key(LaneKey::new("queue", b"c")));
    assert!(index.lease("nobody", 1, Mono::ZERO, SECOND).is_empty());
}

#[test]
fn a_long_row_does_not_starve_a_short_one() {
    let mut index = index();
    for id in 1..=5 {
        index.enqueue(admission(id, "queue", Some("long")));
    }
    index.enqueue(admission(6, "queue", Some("short")));
    let mut order = Vec::new();
    while let Some(lease) = leased(&mut index, 1, Mono::ZERO).pop() {
        order.push(lease.id().0);
        assert!(index.ack(&lease, 200, Wall::default()));
    }
    assert_eq!(order, [1, 6, 2, 3, 4, 5]);
}

#[test]
fn a_late_answer_decides_nothing() {
    let mut index = index();
    index.enqueue(admission(1, "queue", Some("a")));
    let late = leased(&mut index, 1, Mono::ZERO).pop().unwrap();
    assert_eq!(late.until(), Mono::from_millis(1000));
    assert_eq!(index.ready_in("queue", Mono::from_millis(400)), Some(Duration::from_millis(600)));
    let current = leased(&mut index, 1, Mono::from_millis(1000)).pop().unwrap();
    assert!(!index.ack(&late, 200, Wall::default()));
    assert!(!index.nack(&late, Mono::ZERO, ""));
    assert!(!index.park(&late, Parked::default()));
    assert!(!index.release(&late));
    assert_eq!(index.view(RecordId(1)).unwrap().attempts, 2, "the lost try counts");
    assert!(index.ack(&current, 204, Wall::default()));
    assert!(!index.ack(&current, 204, Wall::default()));
    assert_eq!(index.state(RecordId(1)), Some(State::Delivered));
}

#[test]
fn a_failed_try_waits_and_blocks_its_row() {
    let mut index = index();
    index.enqueue(admission(1, "queue", Some("a")));
    index.enqueue(admission(2, "queue", Some("a")));
    let lease = leased(&mut index, 1, Mono::ZERO).pop().unwrap();
    assert!(index.nack(&lease, Mono::from_millis(500), "503"));
    assert!(leased(&mut index, 9, Mono::from_millis(499)).is_empty());
    assert_eq!(index.ready_in("queue", Mono::from_millis(499)), Some(Duration::from_millis(1)));
    let view = index.view(RecordId(1)).unwrap();
    assert_eq!((view.attempts, view.last_error.as_str(), view.state), (2, "503", State::Waiting));
    assert_eq!(index.live(RecordId(1)), Some((1, 2, "503")));
    assert_eq!(index.live(RecordId(9)), None);
    let again = leased(&mut index, 9, Mono::from_millis(500)).pop().unwrap();
    assert_eq!(again.id(), RecordId(1));
    assert!(index.release(&again));
    assert_eq!(index.view(RecordId(1)).unwrap().attempts, 2, "no try, no count");
    assert_eq!(index.ready_in("queue", Mono::ZERO), Some(Duration::ZERO));
    assert_eq!(index.ready_in("nobody", Mono::ZERO), None);
}

#[test]
fn a_dead_letter_lets_its_row_go_on_and_comes_back_first() {
    let mut index = index();
    for id in 1..=3 {
        index.enqueue(admission(id, "queue", Some("a")));
    }
    let lease = leased(&mut index, 1, Mono::ZERO).pop().unwrap();
    let parked = Parked { reason: "r".repeat(300), last_words: "é".repeat(600), at: Wall::from_millis(7) };
    assert!(index.park(&lease, parked));
    assert_eq!(index.list(State::Parked, 9), [RecordId(1)]);
    let view = index.view(RecordId(1)).unwrap();
    let kept = view.parked.unwrap();
    assert_eq!((kept.reason.len(), kept.last_words.len(), kept.at), (256, 1024, Wall::from_millis(7)));
    let second = leased(&mut index, 1, Mono::ZERO).pop().unwrap();
    assert_eq!(second.id(), RecordId(2));
    assert_eq!(index.retry(RecordId(1)), Ok(()));
    assert!(leased(&mut index, 9, Mono::ZERO).is_empty(), "one of the row is out");
    assert!(index.nack(&second, Mono::from_millis(1), "503"));
    assert_eq!(ids(&leased(&mut index, 9, Mono::ZERO)), [1], "the older goes first");
    assert_eq!(index.retry(RecordId(1)), Err(NotParked { state: Some(State::Leased) }));
    assert_eq!(discard(&mut index, RecordId(9), "", Wall::default()), Err(NotHere { state: None }));
}

#[test]
fn a_record_that_waits_can_be_given_up_and_its_row_goes_on() {
    let mut index = index();
    for id in 1..=3 {
        index.enqueue(admission(id, "queue", Some("a")));
    }
    assert_eq!(index.list(None, 2), [RecordId(1), RecordId(2)]);
    assert_eq!(index.list_above(RecordId(1), None, 1), [RecordId(2)]);
    assert_eq!(index.list_above(RecordId(2), State::Waiting, 9), [RecordId(3)]);
    assert_eq!(discard(&mut index, RecordId(1), "a test", Wall::default()), Ok(()));
    let second = leased(&mut index, 9, Mono::ZERO).pop().unwrap();
    assert_eq!(second.id(), RecordId(2), "the next of the row");
    let mut give_up = |id| discard(&mut index, RecordId(id), "", Wall::default());
    assert_eq!(give_up(2), Err(NotHere { state: Some(State::Leased) }));
    assert_eq!(give_up(1), Err(NotHere { state: Some(State::Discarded) }));
    assert_eq!(give_up(3), Ok(()), "from the middle of its row too");
    assert_eq!(index.list(None, 9), [RecordId(2)]);
    assert!(index.ack(&second, 200, Wall::default()));
    assert_eq!((index.depth_total(), index.held_lanes().count()), (Depth::default(), 0));
}

#[test]
fn a_retried_letter_takes_the_turn_of_a_younger_one_that_was_ready() {
    let mut index = index();
    for id in 1..=2 {
        index.enqueue(admission(id, "queue", Some("a")));
    }
    let lease = leased(&mut index, 1, Mono::ZERO).pop().unwrap();
    assert!(index.park(&lease, Parked::default()));
    index.retry(RecordId(1)).unwrap();
    assert_eq!(ids(&leased(&mut index, 9, Mono::ZERO)), [1]);
    assert_eq!(index.list(State::Waiting, 9), [RecordId(2)]);
    assert_eq!(index.list(State::Leased, 9), [RecordId(1)]);
}

#[test]
fn dead_letters_of_one_row_are_retried_in_any_order_and_go_in_the_order_accepted() {
    for retried in [[1, 2, 3, 4], [4, 3, 2, 1], [2, 4, 1, 3], [3, 1, 4, 2]] {
        let mut index = index();
        (1..=6).for_each(|id| index.enqueue(admission(id, "queue", Some("a"))));
        for _ in 0..4 {
            let lease = leased(&mut index, 1, Mono::ZERO).pop().unwrap();
            assert!(index.park(&lease, Parked::default()));
        }
        let before = leased(&mut index, 1, Mono::ZERO).pop().unwrap();
        retried.iter().for_each(|&id| index.retry(RecordId(id)).unwrap());
        assert!(index.release(&before));
        // One leaves from the middle: whoever is put there next must still find its place.
        discard(&mut index, RecordId(retried[3]), "", Wall::default()).unwrap();
        let mut order = Vec::new();
        while let Some(lease) = leased(&mut index, 9, Mono::ZERO).pop() {
            order.push(lease.id().0);
            assert!(index.ack(&lease, 200, Wall::default()));
        }
        let expected: Vec<u64> = (1..=6).filter(|&id| id != retried[3]).collect();
        assert_eq!(order, expected, "{retried:?}");
    }
}

fn with_terms(
    id: u64,
    order_key: Option<&str>,
    priority: Priority,
    expires_ms: Option<u64>,
) -> Admission<'static, u32> {
    let terms = Terms { priority, expires: expires_ms.map(Wall::from_millis) };
    Admission { terms, ..admission(id, "queue", order_key) }
}

fn next(index: &mut Index<u32>) -> Option<u64> {
    let lease = leased(index, 1, Mono::ZERO).pop()?;
    assert!(index.ack(&lease, 200, Wall::default()));
    Some(lease.id().0)
}

#[test]
fn who_is_urgent_goes_first_and_nobody_waits_for_ever() {
    let mut index = index();
    for n in 0..60 {
        let priority = [Priority::Low, Priority::Normal, Priority::High][n as usize / 20];
        index.enqueue(with_terms(n + 1, None, priority, None));
    }
    let order: Vec<u64> = std::iter::from_fn(|| next(&mut index)).collect();
    assert_eq!(order[..8], [41, 42, 43, 44, 45, 46, 47, 21], "the eighth goes to the normal ones");
    assert_eq!(order[8..17], [48, 49, 50, 51, 52, 53, 54, 1, 55], "the sixteenth to the low ones");
    assert_eq!(order.len(), 60);
}

#[test]
fn order_within_a_key_is_above_priority() {
    let mut index = index();
    index.enqueue(with_terms(1, Some("a"), Priority::Low, None));
    index.enqueue(with_terms(2, Some("a"), Priority::High, None));
    index.enqueue(with_terms(3, Some("b"), Priority::Normal, None));
    assert_eq!(std::iter::from_fn(|| next(&mut index)).collect::<Vec<_>>(), [3, 1, 2]);
}

#[test]
fn what_waits_too_long_expires_and_its_row_goes_on() {
    let mut index = index();
    for (id, expires_ms) in [(1, Some(1500)), (2, Some(1000)), (3, None), (4, Some(9000)), (5, Some(8001))] {
        index.enqueue(with_terms(id, Some("a"), Priority::Normal, expires_ms));
    }
    let out = leased(&mut index, 1, Mono::ZERO).pop().unwrap();
    assert_eq!(index.overdue("queue", Wall::from_millis(999), 9), []);
    assert_eq!(index.overdue("queue", Wall::from_millis(1999), 9), [RecordId(2)]);
    assert_eq!(index.overdue("nobody", Wall::from_millis(1999), 9), []);
    let expired = Settled { outcome: Outcome::Expired, at: Wall::from_millis(2000) };
    assert!(index.settle(RecordId(2), expired.clone()));
    assert_eq!((index.state(RecordId(2)), index.list(State::Expired, 9)), (Some(State::Expired), vec![RecordId(2)]));
    assert_eq!(index.view(RecordId(2)).unwrap().settled, Some(expired));
    assert_eq!(index.overdue("queue", Wall::from_millis(2000), 9), [], "the first is on its way");
    assert!(index.nack(&out, Mono::ZERO, "503"));
    assert_eq!(index.overdue("queue", Wall::from_millis(2000), 9), [RecordId(1)]);
    let again = leased(&mut index, 1, Mono::ZERO).pop().unwrap();
    assert!(index.view(RecordId(1)).unwrap().expires);
    assert!(index.park(&again, Parked::default()));
    assert_eq!(index.overdue("queue", Wall::from_millis(u64::MAX), 9), [RecordId(4), RecordId(5)]);
    index.retry(RecordId(1)).unwrap();
    assert!(!index.view(RecordId(1)).unwrap().expires, "somebody wants it delivered");
    assert_eq!(index.overdue("queue", Wall::from_millis(u64::MAX), 1), [RecordId(4)]);
}

#[test]
fn bytes_are_counted_by_route_too() {
    let mut index = index();
    index.enqueue(Admission { route: "labels", ..admission(1, "queue", None) });
    index.enqueue(admission(2, "queue", None));
    index.enqueue(admission(3, "carrier", None));
    let bytes = |index: &Index<u32>| {
        [("queue", "labels"), ("queue", "events"), ("carrier", "events"), ("carrier", "x")]
            .map(|(upstream, route)| index.route_bytes(upstream, route))
    };
    assert_eq!(bytes(&index), [100, 100, 100, 0]);
    assert_eq!(next(&mut index), Some(1));
    assert_eq!((bytes(&index), index.depth("queue").bytes), ([0, 100, 100, 0], 100));
}

#[test]
fn moments_beyond_the_years_of_the_index_are_the_last_it_knows() {
    let mut index = index();
    index.enqueue(Admission { accepted: Wall::from_millis(u64::MAX), ..admission(1, "queue", None) });
    assert_eq!(index.depth("queue").oldest, Some(Wall::from_millis((1 << 42) - 1)));
}

#[test]
fn keys_are_remembered_for_a_while_and_not_too_many() {
    let mut index = index();
    for id in 1..=5 {
        index.enqueue(admission(id, "queue", None));
    }
    for (n, lease) in leased(&mut index, 5, Mono::ZERO).into_iter().enumerate() {
        assert!(index.ack(&lease, 200, Wall::from_millis(n as u64 * 1000)));
    }
    let known = index.lookup(KeyHash::new("key 1")).unwrap();
    assert_eq!((known.id, known.fingerprint, known.state), (RecordId(1), half(1), State::Delivered));
    assert_eq!(forgotten(&mut index, 5000), [1, 2], "three are kept");
    assert_eq!(index.forgotten_early_total(), 2);
    assert_eq!(index.lookup(KeyHash::new("key 1")), None);
    assert_eq!(index.view(RecordId(1)), None);
    assert_eq!(index.view(RecordId(3)).unwrap().settled.unwrap().at, Wall::from_millis(2000));
    assert_eq!(index.list(State::Delivered, 2), [RecordId(3), RecordId(4)]);
    index.enqueue(admission(6, "queue", None));
    let settled = Look { stage: Stage::Settled, attempts: 0 };
    assert_eq!(index.survey(RecordId(3), 2), [(RecordId(4), settled), (RecordId(5), settled)]);
    assert_eq!(index.survey(RecordId(5), 9), [(RecordId(6), Look { stage: Stage::Waiting, attempts: 1 })]);
    assert_eq!(forgotten(&mut index, 63_500), [3, 4], "out of the window");
    assert_eq!((index.forgotten_early_total(), index.remembered_len()), (2, 1));
}

#[test]
fn what_could_not_be_kept_never_was() {
    let mut index = index();
    index.enqueue(admission(1, "queue", Some("a")));
    index.enqueue(admission(2, "queue", Some("a")));
    index.withdraw(RecordId(2));
    index.withdraw(RecordId(2));
    assert_eq!(index.lookup(KeyHash::new("key 2")), None);
    assert_eq!(index.depth("queue").waiting, 1);
    index.withdraw(RecordId(1));
    assert_eq!(index.depth_total(), Depth::default());
    assert!(!index.holds_key(LaneKey::new("queue", b"a")));
    index.enqueue(admission(1, "queue", Some("a")));
    assert_eq!(ids(&leased(&mut index, 9, Mono::ZERO)), [1]);
}

#[test]
fn a_replayed_record_takes_its_key_from_whoever_had_it() {
    let mut index = index();
    index.enqueue(admission(1, "queue", None));
    index.settle(RecordId(1), Settled { outcome: Outcome::Delivered { status: 200 }, at: Wall::default() });
    index.replay_enqueue(Admission { id: RecordId(2), ..admission(1, "queue", Some("a")) });
    assert_eq!(index.lookup(KeyHash::new("key 1")).unwrap().id, RecordId(2));
    assert_eq!((index.state(RecordId(1)), index.remembered_len()), (None, 0));
    index.replay_enqueue(Admission { id: RecordId(3), ..admission(1, "queue", Some("b")) });
    assert_eq!(index.depth("queue").waiting, 2, "its end is lost, itself must not be");
    index.withdraw(RecordId(2));
    assert_eq!(index.lookup(KeyHash::new("key 1")).unwrap().id, RecordId(3));
    assert_eq!(index.places().collect::<Vec<_>>(), [(1, false)]);
    assert_eq!(index.held_lanes().collect::<Vec<_>>(), [LaneKey::new("queue", b"b")]);
    index.replay_parked(RecordId(3), Parked::default());
    assert_eq!(index.held_lanes().count(), 0);
}

#[test]
#[should_panic(expected = "claims the key of another record")]
fn a_key_belongs_to_one_record() {
    let mut index = index();
    index.enqueue(admission(1, "queue", None));
    index.enqueue(Admission { id: RecordId(2), ..admission(1, "queue", None) });
}

#[test]
fn depth_is_told_by_upstream_and_in_all() {
    let mut index = index();
    for (id, upstream) in [(1, "queue"), (2, "queue"), (3, "carrier"), (4, "queue")] {
        index.enqueue(admission(id, upstream, None));
    }
    let lease = leased(&mut index, 2, Mono::ZERO).remove(0);
    assert!(index.park(&lease, Parked::default()));
    let depth = |waiting, leased, parked, bytes, oldest| Depth {
        waiting,
        leased,
        parked,
        bytes,
        oldest: Some(Wall::from_millis(oldest)),
    };
    assert_eq!(index.depth("queue"), depth(1, 1, 1, 300, 20));
    assert_eq!(index.depth("carrier"), depth(1, 0, 0, 100, 30));
    assert_eq!(index.depth_total(), depth(2, 1, 1, 400, 20));
    assert_eq!(index.depth("nobody"), Depth::default());
    assert_eq!(index.ready_in("carrier", Mono::ZERO), Some(Duration::ZERO));
}

#[test]
fn a_history_is_replayed() {
    let mut index = index();
    for id in 1..=3 {
        index.enqueue(admission(id, "queue", Some("a")));
    }
    index.replay_failed(RecordId(1), 7, "503");
    assert!(index.replay_parked(RecordId(1), Parked { reason: "gave up".into(), ..Parked::default() }));
    assert!(!index.replay_parked(RecordId(9), Parked::default()));
    index.replay_failed(RecordId(9), 7, "503");
    discard(&mut index, RecordId(1), "sent by hand", Wall::from_millis(1)).unwrap();
    let delivered = Settled { outcome: Outcome::Delivered { status: 200 }, at: Wall::from_millis(2) };
    assert!(!index.settle(RecordId(9), delivered.clone()));
    let old = KeyHash::new("old");
    index.replay_remembered(RecordId(8), old, half(8), delivered.clone(), 80);
    index.replay_remembered(RecordId(7), old, half(7), delivered.clone(), 70);
    assert_eq!(index.lookup(old).unwrap().id, RecordId(8), "the first claim stands");
    assert_eq!(index.set_place(RecordId(8), 81), Some(80));
    assert_eq!(index.set_place(RecordId(2), 22), Some(2));
    assert_eq!(index.set_place(RecordId(7), 70), None);
    assert_eq!(
        (index.place(RecordId(8)), index.place(RecordId(2)), index.place(RecordId(7))),
        (Some(81), Some(22), None)
    );
    assert_eq!(index.state(RecordId(1)), Some(State::Discarded));
    assert_eq!(index.list(State::Discarded, 9), [RecordId(1)]);
    assert_eq!(index.lane(RecordId(2)), Some(LaneKey::new("queue", b"a")));
    assert_eq!(ids(&leased(&mut index, 9, Mono::ZERO)), [2]);
    assert_eq!(State::Waiting.name(), "waiting");
    assert_eq!([State::Leased, State::Parked, State::Delivered, State::Discarded].map(State::name).len(), 4);
}

/// One lane as anybody would write it: a queue, who is out, what is parked.
#[derive(Default)]
struct Model {
    lanes: BTreeMap<(u8, Option<u8>, u64), VecDeque<u64>>,
    out: BTreeMap<u64, (Lane_, Mono)>,
    parked: BTreeMap<u64, Lane_>,
    delayed: BTreeMap<u64, Mono>,
}

type Lane_ = (u8, Option<u8>, u64);

impl Model {
    fn back_in_line(&mut self, lane: Lane_, id: u64) {
        let queue = self.lanes.entry(lane).or_default();
        queue.push_back(id);
        queue.make_contiguous().sort_unstable();
    }

    fn expire(&mut self, now: Mono) {
        let over: Vec<u64> = self.out.iter().filter(|(_, (_, until))| *until <= now).map(|(id, _)| *id).collect();
        for id in over {
            let (lane, _) = self.out.remove(&id).unwrap();
            self.delayed.remove(&id);
            self.back_in_line(lane, id);
        }
    }

    /// Everything that may be leased now, in no order.
    fn candidates(&self, upstream: u8, now: Mono) -> Vec<u64> {
        let out: Vec<Lane_> = self.out.values().map(|(lane, _)| *lane).collect();
        let heads = self.lanes.iter().filter(|(lane, _)| lane.0 == upstream && !out.contains(lane));
        let heads = heads.filter_map(|(_, queue)| queue.front().copied());
        heads.filter(|id| self.delayed.get(id).is_none_or(|at| *at <= now)).collect()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Enqueue { upstream: u8, key: Option<u8> },
    Lease { upstream: u8, max: usize },
    Ack { pick: usize },
    Nack { pick: usize, delay_ms: u64 },
    Release { pick: usize },
    Park { pick: usize },
    Retry { pick: usize },
    Discard { pick: usize },
    DiscardWaiting { pick: usize },
    Wait { millis: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let pick = 0_usize..8;
    prop_oneof![
        4 => (0_u8..2, prop::option::weighted(0.8, 0_u8..3)).prop_map(|(upstream, key)| Op::Enqueue { upstream, key }),
        3 => (0_u8..2, 1_usize..4).prop_map(|(upstream, max)| Op::Lease { upstream, max }),
        2 => pick.clone().prop_map(|pick| Op::Ack { pick }),
        2 => (pick.clone(), 0_u64..1500).prop_map(|(pick, delay_ms)| Op::Nack { pick, delay_ms }),
        1 => pick.clone().prop_map(|pick| Op::Release { pick }),
        1 => pick.clone().prop_map(|pick| Op::Park { pick }),
        1 => pick.clone().prop_map(|pick| Op::Retry { pick }),
        1 => pick.clone().prop_map(|pick| Op::Discard { pick }),
        1 => pick.prop_map(|pick| Op::DiscardWaiting { pick }),
        1 => (1_u64..1200).prop_map(|millis| Op::Wait { millis }),
    ]
}

proptest! {
    #[test]
    fn the_index_is_a_row_of_queues(ops in vec(op(), 1..200)) {
        let (mut index, mut model) = (index(), Model::default());
        let (mut next, mut now_ms) = (1_u64, 1_u64);
        let mut leases: Vec<Lease> = Vec::new();
        for op in ops {
            let now = Mono::from_millis(now_ms);
            match op {
                Op::Enqueue { upstream, key } => {
                    let name = ["queue", "carrier"][upstream as usize];
                    let lane = (upstream, key, if key.is_some() { 0 } else { next });
                    let terms = Terms {
                        priority: Priority::ALL[next as usize % 3],
                        expires: next.is_multiple_of(4).then(|| Wall::from_millis(now_ms + 2000)),
                    };
                    let key = key.map(|key| ["a", "b", "c"][key as usize]);
                    index.enqueue(Admission { terms, ..admission(next, name, key) });
                    model.back_in_line(lane, next);
                    next += 1;
                }
                Op::Lease { upstream, max } => {
                    model.expire(now);
                    let may = model.candidates(upstream, now);
                    let got = index.lease(["queue", "carrier"][upstream as usize], max, now, SECOND);
                    prop_assert_eq!(got.len(), may.len().min(max));
                    for lease in got {
                        let id = lease.id().0;
                        prop_assert!(may.contains(&id), "{} is not the first of its row", id);
                        let (&lane, queue) = model.lanes.iter_mut().find(|(_, queue)| queue.front() == Some(&id)).unwrap();
                        queue.pop_front();
                        model.out.insert(id, (lane, lease.until()));
                        model.delayed.remove(&id);
                        leases.push(lease);
                    }
                }
                Op::Ack { pick } if pick < leases.len() => {
                    let lease = leases.remove(pick);
                    let mine = model.out.get(&lease.id().0).is_some_and(|(_, until)| *until == lease.until());
                    prop_assert_eq!(index.ack(&lease, 200, Wall::from_millis(now_ms)), mine);
                    if mine { model.out.remove(&lease.id().0); }
                }
                Op::Nack { pick, delay_ms } if pick < leases.len() => {
                    let lease = leases.remove(pick);
                    let mine = model.out.get(&lease.id().0).is_some_and(|(_, until)| *until == lease.until());
                    let not_before = Mono::from_millis(now_ms + delay_ms);
                    prop_assert_eq!(index.nack(&lease, not_before, "503"), mine);
                    if mine {
                        let (lane, _) = model.out.remove(&lease.id().0).unwrap();
                        model.delayed.insert(lease.id().0, not_before);
                        model.back_in_line(lane, lease.id().0);
                    }
                }
                Op::Release { pick } if pick < leases.len() => {
                    let lease = leases.remove(pick);
                    let mine = model.out.get(&lease.id().0).is_some_and(|(_, until)| *until == lease.until());
                    prop_assert_eq!(index.release(&lease), mine);
                    if mine {
                        let (lane, _) = model.out.remove(&lease.id().0).unwrap();
                        model.back_in_line(lane, lease.id().0);
                    }
                }
                Op::Park { pick } if pick < leases.len() => {
                    let lease = leases.remove(pick);
                    let mine = model.out.get(&lease.id().0).is_some_and(|(_, until)| *until == lease.until());
                    prop_assert_eq!(index.park(&lease, Parked::default()), mine);
                    if mine {
                        let (lane, _) = model.out.remove(&lease.id().0).unwrap();
                        model.parked.insert(lease.id().0, lane);
                    }
                }
                Op::Retry { pick } if pick < model.parked.len() => {
                    let id = *model.parked.keys().nth(pick).unwrap();
                    prop_assert_eq!(index.retry(RecordId(id)), Ok(()));
                    let lane = model.parked.remove(&id).unwrap();
                    model.back_in_line(lane, id);
                }
                Op::Discard { pick } if pick < model.parked.len() => {
                    let id = *model.parked.keys().nth(pick).unwrap();
                    prop_assert_eq!(discard(&mut index, RecordId(id), "by hand", Wall::from_millis(now_ms)), Ok(()));
                    model.parked.remove(&id);
                }
                Op::DiscardWaiting { pick } if pick < model.lanes.len() => {
                    let queue = model.lanes.values_mut().nth(pick).unwrap();
                    if let Some(id) = queue.remove(queue.len() / 2) {
                        prop_assert_eq!(discard(&mut index, RecordId(id), "by hand", Wall::from_millis(now_ms)), Ok(()));
                        model.delayed.remove(&id);
                    }
                }
                Op::Wait { millis } => {
                    now_ms += millis;
                    model.expire(now);
                    index.expire(now);
                    for id in index.overdue("queue", Wall::from_millis(now_ms), 2) {
                        let expired = Settled { outcome: Outcome::Expired, at: Wall::from_millis(now_ms) };
                        prop_assert!(index.settle(id, expired));
                        let queue = model.lanes.values_mut().find(|queue| queue.contains(&id.0)).unwrap();
                        queue.retain(|other| *other != id.0);
                        model.delayed.remove(&id.0);
                    }
                }
                _ => {}
            }
            index.forget(Wall::from_millis(now_ms));
            prop_assert!(index.remembered_len() <= 3);
            let total = index.depth_total();
            prop_assert_eq!(total.waiting as usize, model.lanes.values().map(VecDeque::len).sum::<usize>());
            prop_assert_eq!(total.leased as usize, model.out.len());
            prop_assert_eq!(total.parked as usize, model.parked.len());
            prop_assert_eq!(total.bytes, 100 * (total.waiting + total.leased + total.parked));
            for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
                let lane = (0, Some(number as u8), 0);
                let held = model.lanes.get(&lane).is_some_and(|queue| !queue.is_empty())
                    || model.out.values().any(|(other, _)| *other == lane);
                prop_assert_eq!(index.holds_key(LaneKey::new("queue", name.as_bytes())), held);
            }
        }
    }
}
