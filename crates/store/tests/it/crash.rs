//! Power cuts at any call, and calls that fail: what was acknowledged is there, what was not is whole or absent.

use std::collections::BTreeMap;
use std::time::Duration;

use seawall_core::prng::Prng;
use seawall_core::spool::{NewRecord, State};
use seawall_store::disk::Fault;
use seawall_store::{EnqueueError, Opened, SimDisk, Store, StoreError};
use tokio::task::JoinSet;

use crate::{open_with, options, record, with};

/// What the world was told.
#[derive(Default)]
struct Promises {
    /// By idempotency key: the record, its number once it was acknowledged, and what became of it.
    records: BTreeMap<String, Promise>,
    /// Who has a number, over all lives.
    numbers: BTreeMap<u64, String>,
    next_key: u64,
    /// The disk was full at times: an end may have been confirmed and be owed to the disk when the power went.
    ends_are_owed: bool,
}

struct Promise {
    record: NewRecord,
    id: Option<u64>,
    /// The end that was acknowledged, or that was asked for without an answer.
    end: Option<(State, bool)>,
}

impl Promises {
    fn new_record(&mut self, prng: &mut Prng) -> NewRecord {
        self.next_key += 1;
        let body: Vec<u8> = (0..prng.below(1200)).map(|_| prng.next_u64() as u8).collect();
        let row = format!("row {}", prng.below(3));
        let new = record(&format!("key {}", self.next_key), prng.chance(0.7).then_some(row.as_str()), &body);
        let promise = Promise { record: new.clone(), id: None, end: None };
        self.records.insert(new.idempotency_key.clone(), promise);
        new
    }

    fn kept(&mut self, key: &str, id: u64) {
        let before = self.numbers.insert(id, key.into());
        assert!(before.is_none_or(|before| before == key), "number {id} was used twice");
        self.records.get_mut(key).expect("we made it").id = Some(id);
    }

    fn ended(&mut self, id: u64, state: State, is_acknowledged: bool) {
        let key = &self.numbers[&id];
        self.records.get_mut(key).expect("we made it").end = Some((state, is_acknowledged));
    }

    async fn check(&mut self, store: &Store) {
        let keys: Vec<String> = self.records.keys().cloned().collect();
        for key in keys {
            let known = store.spool.lookup(&key).await.unwrap();
            let promise = &self.records[&key];
            let Some(known) = known else {
                assert!(promise.id.is_none(), "acknowledged record `{key}` is lost");
                continue;
            };
            match promise.id {
                Some(id) => assert_eq!(known.id.0, id, "`{key}` has changed its number"),
                // Nobody was told, and it was kept: it counts from now on.
                None => self.kept(&key, known.id.0),
            }
            let promise = &self.records[&key];
            match promise.end {
                Some((state, true)) => assert_eq!(known.state, state, "`{key}` was {}", state.name()),
                Some((state, false)) => assert!(known.state == state || known.state == State::Waiting),
                None => assert_eq!(known.state, State::Waiting, "`{key}`"),
            }
            if !matches!(known.state, State::Delivered | State::Discarded) {
                let account = store.spool.get(known.id).await.unwrap().unwrap();
                assert_eq!(account.record.as_ref(), Some(&promise.record), "`{key}` is not what was kept");
            }
        }
        let waiting = store.spool.list(State::Waiting, 10_000).await.unwrap();
        for account in &waiting {
            assert!(self.numbers.contains_key(&account.id.0), "record {} came from nowhere", account.id);
        }
        assert_eq!(store.spool.depth().waiting, waiting.len() as u64);
    }

    /// One life until the store stops, or enough was done.
    async fn live(&mut self, store: &Store, prng: &mut Prng) {
        for _ in 0..prng.below(12) + 3 {
            if !self.enqueue_some(store, prng).await || !self.deliver_some(store, prng).await {
                return;
            }
        }
    }

    async fn enqueue_some(&mut self, store: &Store, prng: &mut Prng) -> bool {
        let mut tasks = JoinSet::new();
        for _ in 0..prng.below(6) + 1 {
            let (spool, new) = (store.spool.clone(), self.new_record(prng));
            tasks.spawn(async move { (new.idempotency_key.clone(), spool.enqueue(&new).await) });
        }
        let mut goes_on = true;
        while let Some(done) = tasks.join_next().await {
            match done.unwrap() {
                (key, Ok(enqueued)) => {
                    assert!(!enqueued.already);
                    self.kept(&key, enqueued.id.0);
                }
                (key, Err(EnqueueError::DiskFull)) => _ = self.records.remove(&key),
                (_, Err(EnqueueError::Stopped { .. })) => goes_on = false,
                (_, Err(error)) => panic!("{error}"),
            }
        }
        goes_on
    }

    async fn deliver_some(&mut self, store: &Store, prng: &mut Prng) -> bool {
        let Ok(found) = store.spool.lease("queue", prng.below(8) as usize, Duration::from_secs(9)).await else {
            return false;
        };
        let mut last_of_row: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for leased in found.leased {
            let id = leased.lease.id().0;
            assert_eq!(leased.record, self.records[&self.numbers[&id]].record);
            if let Some(row) = leased.record.order_key {
                assert!(last_of_row.insert(row, id).is_none(), "two of a row at once");
            }
            let (answer, end) = match prng.below(6) {
                0 => (store.spool.nack(leased.lease, Duration::ZERO, "503").await, None),
                1 => (store.spool.park(leased.lease, "refused", "no").await, Some(State::Parked)),
                _ => (store.spool.ack(leased.lease, 200).await, Some(State::Delivered)),
            };
            if let Some(state) = end {
                self.ended(id, state, answer.is_ok() && !self.ends_are_owed);
            }
            match answer {
                Ok(held) => assert!(held),
                Err(StoreError::Stopped { .. }) => return false,
                Err(error) => panic!("{error}"),
            }
        }
        true
    }
}

/// Opens whatever a crash left; power cuts may come while it opens, too.
fn open_through(disk: &mut SimDisk, prng: &mut Prng) -> Opened<SimDisk> {
    if prng.chance(0.3) {
        disk.fail_call(prng.below(12) + 1, Fault::PowerCut);
        if let Ok(opened) = open_with(disk, options()) {
            return opened;
        }
        *disk = disk.crash();
    }
    open_with(disk, options()).expect("no crash damages what was safe")
}

fn story(seed: u64, fault: Option<Fault>) {
    let mut prng = Prng::new(seed);
    let mut disk = SimDisk::new(seed);
    let mut promises = Promises { ends_are_owed: fault == Some(Fault::NoSpace), ..Promises::default() };
    for _ in 0..4 {
        let opened = open_through(&mut disk, &mut prng);
        assert!(!opened.report.is_damaged(), "{:?}", opened.report);
        if let Some(fault) = fault {
            disk.fail_call(prng.below(60) + 1, fault);
        }
        disk.fail_call(prng.below(150) + 1, Fault::PowerCut);
        let mut life = prng.fork();
        with(opened, async |store| promises.live(store, &mut life).await);
        if fault == Some(Fault::Io) {
            goes_on_without_a_crash(&disk, &mut promises, &mut prng);
        }
        disk = disk.crash();
        with(open_with(&disk, options()).expect("opens"), async |store| promises.check(store).await);
        disk = disk.crash();
    }
}

/// The process alone begins again: what a failed sync left in the cache still reads well, counts, and is built upon.
fn goes_on_without_a_crash(disk: &SimDisk, promises: &mut Promises, prng: &mut Prng) {
    disk.forget_faults();
    if let Ok(opened) = open_with(disk, options()) {
        assert!(!opened.report.is_damaged(), "{:?}", opened.report);
        let mut life = prng.fork();
        with(opened, async |store| {
            promises.check(store).await;
            promises.live(store, &mut life).await;
        });
    }
}

#[test]
fn power_cuts_lose_nothing_that_was_acknowledged() {
    for seed in 0..330 {
        story(seed, None);
    }
}

#[test]
fn power_cuts_and_a_full_disk_lose_nothing_that_was_acknowledged() {
    for seed in 1000..1100 {
        story(seed, Some(Fault::NoSpace));
    }
}

#[test]
fn a_call_that_fails_stops_the_store_and_loses_nothing() {
    for seed in 2000..2100 {
        story(seed, Some(Fault::Io));
    }
}

#[test]
fn every_single_call_may_fail() {
    for fault in [Fault::Io, Fault::NoSpace, Fault::PowerCut] {
        for nth in 1..120 {
            let mut prng = Prng::new(nth);
            let mut promises = Promises { ends_are_owed: fault == Fault::NoSpace, ..Promises::default() };
            let disk = SimDisk::new(nth);
            disk.fail_call(nth, fault);
            if let Ok(opened) = open_with(&disk, options()) {
                let mut life = prng.fork();
                with(opened, async |store| promises.live(store, &mut life).await);
            }
            if fault == Fault::Io {
                goes_on_without_a_crash(&disk, &mut promises, &mut prng);
            }
            let disk = disk.crash();
            with(open_with(&disk, options()).expect("opens"), async |store| promises.check(store).await);
        }
    }
}

#[test]
fn a_failed_sync_stops_the_engine_for_good() {
    let disk = SimDisk::new(1);
    with(open_with(&disk, options()).unwrap(), async |store| {
        store.spool.enqueue(&record("a", None, b"a")).await.unwrap();
        disk.fail_call(2, Fault::Io); // The write is 1, its sync is 2.
        let error = store.spool.enqueue(&record("b", None, b"b")).await.unwrap_err();
        assert!(matches!(error, EnqueueError::Stopped { .. }));
        assert!(error.to_string().contains("cannot sync `data/spool/0000000001.log`"), "{error}");
        assert!(store.spool.failure().unwrap().contains("cannot sync"));
        assert!(store.spool.enqueue(&record("c", None, b"c")).await.is_err(), "never tried again");
        assert!(store.spool.lease("queue", 1, Duration::from_secs(1)).await.is_err());
    });
    with(open_with(&disk.crash(), options()).unwrap(), async |store| {
        assert_eq!(store.spool.lookup("a").await.unwrap().unwrap().state, State::Waiting);
        assert_eq!(store.spool.lookup("c").await.unwrap(), None);
    });
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let run = |seed| {
        let (disk, mut prng, mut promises) = (SimDisk::new(seed), Prng::new(seed), Promises::default());
        with(open_with(&disk, options()).unwrap(), async |store| promises.live(store, &mut prng).await);
        format!("{:?}", disk.crash())
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}
