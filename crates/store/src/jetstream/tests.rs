//! The replica over a stream that loses, delays and repeats: whatever happens, what it was told comes back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use seawall_core::id::RecordId;
use seawall_core::journal::{Draft, Kind};
use seawall_core::prng::Prng;
use seawall_core::spool::{NewRecord, Terms};
use seawall_core::time::{Mono, Wall};

use super::heritage::{Heritage, begin, end};
use super::message::Head;
use super::port::{Stream, StreamError};
use super::shipper::message_id;
use super::*;
use crate::clock::ClockFn;
use crate::disk::SimDisk;
use crate::{Account, NotReplicated, Opened, StoreOptions};

/// A stream in memory that does what networks do.
#[derive(Clone, Default)]
struct MemoryStream(Arc<Mutex<Memory>>);

#[derive(Default)]
struct Memory {
    messages: BTreeMap<u64, Bytes>,
    last_number: u64,
    /// Of the last message there ever was.
    last: u64,
    /// Sent, answered by nothing, and not arrived yet.
    delayed: Vec<(Bytes, u64)>,
    /// How many of a hundred calls go wrong.
    trouble: u64,
    prng: Option<Prng>,
    purges: u64,
    refuses: bool,
    /// Bytes it holds at most; 0 for no limit.
    room: usize,
}

impl Memory {
    fn take(&mut self, message: Bytes, after: u64) -> Option<u64> {
        if self.last != after {
            return None;
        }
        self.last_number += 1;
        self.last = self.last_number;
        self.messages.insert(self.last, message);
        Some(self.last)
    }

    /// What goes wrong with this call, if anything does: one of so many.
    fn trouble(&mut self, kinds: u64) -> Option<u64> {
        let trouble = self.trouble;
        let prng = self.prng.as_mut()?;
        (prng.below(100) < trouble).then(|| prng.below(kinds))
    }

    fn call(&mut self) -> Result<(), StreamError> {
        if self.refuses {
            return Err(StreamError::Refused("as planned".into()));
        }
        // What was delayed may come before, or later.
        if !self.delayed.is_empty() && self.prng.as_mut().is_some_and(|prng| prng.below(2) == 0) {
            let (message, after) = self.delayed.remove(0);
            self.take(message, after);
        }
        match self.trouble(1) {
            Some(_) => Err(StreamError::Lost("no answer".into())),
            None => Ok(()),
        }
    }
}

impl MemoryStream {
    fn with(&self, change: impl FnOnce(&mut Memory)) {
        change(&mut self.0.lock().unwrap());
    }
}

impl Stream for MemoryStream {
    async fn last(&self) -> Result<Option<(u64, Bytes)>, StreamError> {
        tokio::task::yield_now().await;
        let mut memory = self.0.lock().unwrap();
        memory.call()?;
        Ok(memory.messages.last_key_value().map(|(number, bytes)| (*number, bytes.clone())))
    }

    async fn page(&self, from: u64) -> Result<Vec<(u64, Bytes)>, StreamError> {
        let mut memory = self.0.lock().unwrap();
        memory.call()?;
        // Pages are of any length.
        let length = 1 + memory.messages.len() % 4;
        Ok(memory.messages.range(from..).take(length).map(|(number, bytes)| (*number, bytes.clone())).collect())
    }

    async fn append(&self, message: Vec<u8>, after: u64, _id: &str) -> Result<u64, StreamError> {
        tokio::task::yield_now().await;
        let mut memory = self.0.lock().unwrap();
        memory.call()?;
        let message = Bytes::from(message);
        let held = || memory.messages.values().map(Bytes::len).sum::<usize>();
        if memory.room > 0 && held() + message.len() > memory.room {
            return Err(StreamError::Full("no room".into()));
        }
        let lost = Err(StreamError::Lost("no answer".into()));
        match memory.trouble(2) {
            Some(0) => {
                memory.take(message, after);
                return lost;
            }
            Some(_) => {
                memory.delayed.push((message, after));
                return lost;
            }
            None => {}
        }
        memory.take(message, after).ok_or(StreamError::Lost("another message came first".into()))
    }

    async fn purge(&self, below: u64) -> Result<(), StreamError> {
        let mut memory = self.0.lock().unwrap();
        memory.call()?;
        memory.messages = memory.messages.split_off(&below);
        memory.purges += 1;
        Ok(())
    }

    fn message_bytes_max(&self) -> usize {
        HEAD_ROOM_BYTES + 2000
    }
}

fn clock() -> impl Clock {
    let start = tokio::time::Instant::now();
    let mono = move || Mono::ZERO + start.elapsed();
    let wall = move || Wall::from_millis(1_000_000) + start.elapsed();
    ClockFn(mono, wall)
}

fn options() -> StoreOptions {
    let mut options = StoreOptions::new("data", "a");
    (options.record_bytes_max, options.spool_segment_bytes, options.journal_segment_bytes) = (4096, 20 << 10, 8 << 10);
    options
}

fn record(key: u64, order_key: Option<&str>, bytes: usize) -> NewRecord {
    NewRecord {
        upstream: "queue".into(),
        route: "events".into(),
        order_key: order_key.map(|key| key.as_bytes().to_vec()),
        idempotency_key: format!("key {key}"),
        fingerprint: [key as u8; 32],
        ledger: None,
        method: "POST".into(),
        target: "/".into(),
        headers: Vec::new(),
        body: vec![key as u8; bytes],
        accepted: Wall::from_millis(1_000_000),
        first_failure: "timeout".into(),
        attempts: 1,
        terms: Terms::default(),
    }
}

/// Runs a test while the store's engine, and the shipper if there is one, run beside it.
async fn beside<S: Stream, T>(
    opened: Opened<SimDisk>,
    shipper: Option<Shipper<S>>,
    test: impl AsyncFnOnce(&Store) -> T,
) -> T {
    let Opened { store, engine, .. } = opened;
    let ships = async {
        if let Some(shipper) = shipper {
            shipper.run().await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        result = test(&store) => result,
        () = engine.drive() => unreachable!("the store is open"),
        () = ships => unreachable!(),
    }
}

fn kept(opened: &Opened<SimDisk>, stream: &MemoryStream) -> (Shipper<MemoryStream>, watch::Receiver<ReplicaStatus>) {
    shipper(&opened.store, stream.clone(), Wrap::none(), Arc::new(clock()))
}

/// Until the replica has everything, whatever goes wrong on the way.
async fn current(store: &Store) {
    while let Err(error) = store.spool.all_replicated().await {
        assert!(matches!(error, NotReplicated::Down { .. }), "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Everything there is, as far as it outlives a node: leases do not.
async fn everything(spool: &crate::Spool) -> Vec<String> {
    let mut all = spool.list(None, 10_000).await.unwrap();
    for account in &mut all {
        if account.state == seawall_core::spool::State::Leased {
            account.state = seawall_core::spool::State::Waiting;
        }
    }
    for state in [seawall_core::spool::State::Delivered, seawall_core::spool::State::Discarded] {
        all.extend(spool.list(state, 10_000).await.unwrap());
    }
    all.into_iter().map(line).collect()
}

fn line(account: Account) -> String {
    let Account { id, state, attempts, last_error, parked, settled, record } = account;
    let hash = record.map(|record| {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        format!("{:08x}", crc32fast::hash(&bytes))
    });
    format!("{:04} {state:?} {attempts} {last_error:?} {parked:?} {settled:?} {hash:?}", id.0)
}

/// Lets a seed decide what happens to the spool.
async fn live(spool: &crate::Spool, prng: &mut Prng, ops: u64) {
    let minute = Duration::from_secs(60);
    for _ in 0..ops {
        match prng.below(10) {
            0..=3 => {
                let lane = ["x", "y"][prng.below(2) as usize];
                let record = record(prng.below(200), (prng.below(3) > 0).then_some(lane), prng.below(3000) as usize);
                let _ = spool.enqueue(&record).await;
            }
            4..=7 => {
                for leased in spool.lease("queue", 3, minute).await.unwrap().leased {
                    match prng.below(4) {
                        0 => _ = spool.nack(leased.lease, Duration::ZERO, "503").await.unwrap(),
                        1 => _ = spool.park(leased.lease, "refused", "422").await.unwrap(),
                        2 => _ = spool.release(leased.lease).await.unwrap(),
                        _ => _ = spool.ack(leased.lease, 200).await.unwrap(),
                    }
                }
            }
            8 => {
                for account in spool.list(seawall_core::spool::State::Parked, 1).await.unwrap() {
                    match prng.below(2) {
                        0 => spool.retry(account.id).await.unwrap(),
                        _ => spool.discard(account.id, "a test").await.unwrap(),
                    }
                }
            }
            _ => tokio::time::sleep(Duration::from_millis(prng.below(400))).await,
        }
    }
}

async fn inherit(stream: &MemoryStream, disk: &SimDisk) -> Result<Opened<SimDisk>, ReplicaError> {
    let heritage = Heritage::of(stream.clone(), Wrap::none()).await?;
    let options = StoreOptions { epoch_min: heritage.epoch() + 1, ..options() };
    begin(disk, &options.dir)?;
    // Every directory has a secret of its own.
    let secret = [100 + (stream.0.lock().unwrap().last % 100) as u8; 32];
    let mut opened = Store::open(disk.clone(), options.clone(), clock(), || secret)?;
    heritage.take_over(&mut opened).await?;
    end(disk, &options.dir)?;
    Ok(opened)
}

fn open(disk: &SimDisk, secret: u8) -> Opened<SimDisk> {
    Store::open(disk.clone(), options(), clock(), || [secret; 32]).unwrap()
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test)
}

#[test]
fn a_directory_that_is_lost_comes_back_from_the_stream() {
    let seeds = std::env::var("REPLICA_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    for seed in 0..seeds {
        run(async {
            let stream = MemoryStream::default();
            let mut prng = Prng::new(seed);
            stream.with(|memory| {
                (memory.trouble, memory.prng) = (prng.below(3) * 15, Some(Prng::new(seed ^ 77)));
            });
            // A life, a restart in the middle of it, and then the disk is gone.
            let disk = SimDisk::new(seed);
            let opened = open(&disk, 7);
            let (ships, _) = kept(&opened, &stream);
            beside(opened, Some(ships), async |store| live(&store.spool, &mut prng, 60).await).await;
            let disk = disk.crash();
            let opened = open(&disk, 7);
            let (ships, _) = kept(&opened, &stream);
            let before = beside(opened, Some(ships), async |store| {
                live(&store.spool, &mut prng, 60).await;
                stream.with(|memory| memory.trouble = 0);
                current(store).await;
                everything(&store.spool).await
            })
            .await;
            let disk = SimDisk::new(seed + 1);
            let opened = inherit(&stream, &disk).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert!(opened.store.epoch > 2, "seed {seed}: above the epochs of the old one");
            let (ships, _) = kept(&opened, &stream);
            let again = beside(opened, Some(ships), async |store| {
                let again = everything(&store.spool).await;
                let highest = again.iter().map(|line| line[..4].parse().unwrap()).max().unwrap_or(0);
                let new = store.spool.enqueue(&record(999, None, 9)).await.unwrap();
                assert!(new.id.0 > highest, "seed {seed}: a number is not given twice");
                assert_eq!(store.spool.replicated(new.id).await, Ok(()));
                current(store).await;
                again
            })
            .await;
            for (again, before) in again.iter().zip(&before) {
                assert_eq!(again, before, "seed {seed}");
            }
            assert_eq!(again.len(), before.len(), "seed {seed}");
            // And a restart of the new one changes nothing.
            let after = beside(open(&disk.crash(), 8), None::<Shipper<MemoryStream>>, async |store| {
                everything(&store.spool).await.len()
            });
            assert_eq!(after.await, before.len() + 1, "seed {seed}");
        });
    }
}

#[test]
fn what_was_confirmed_is_in_the_stream_whatever_happens_then() {
    for seed in 0..40 {
        run(async {
            let stream = MemoryStream::default();
            stream.with(|memory| (memory.trouble, memory.prng) = (10, Some(Prng::new(seed))));
            let opened = open(&SimDisk::new(seed), 7);
            let (ships, _) = kept(&opened, &stream);
            let confirmed = beside(opened, Some(ships), async |store| {
                let mut confirmed = Vec::new();
                for key in 0..30 {
                    let id = store.spool.enqueue(&record(key, None, 500)).await.unwrap().id;
                    if store.spool.replicated(id).await.is_ok() {
                        confirmed.push(id);
                    }
                    tokio::time::sleep(Duration::from_millis(700)).await;
                }
                confirmed
            })
            .await;
            assert!(!confirmed.is_empty(), "seed {seed}");
            stream.with(|memory| memory.trouble = 0);
            let opened = inherit(&stream, &SimDisk::new(9)).await.unwrap();
            beside(opened, None::<Shipper<MemoryStream>>, async |store| {
                for id in confirmed {
                    assert!(store.spool.get(id).await.unwrap().is_some(), "seed {seed}: record {id}");
                }
            })
            .await;
        });
    }
}

#[test]
fn the_stream_keeps_what_lives_and_little_more() {
    run(async {
        let stream = MemoryStream::default();
        let opened = Store::open(
            SimDisk::new(1),
            StoreOptions { remember_max: 10, record_bytes_max: 64 << 10, ..options() },
            clock(),
            || [7; 32],
        );
        let opened = opened.unwrap();
        let (ships, status) = kept(&opened, &stream);
        beside(opened, Some(ships), async |store| {
            // One that stays, and eighty megabytes that pass by.
            store.spool.enqueue(&record(100_000, None, 1000)).await.unwrap();
            for key in 0..2000 {
                store.spool.enqueue(&record(key, Some("row"), 40_000)).await.unwrap();
                if key % 50 == 49 {
                    let leased = store.spool.lease("queue", 999, Duration::from_secs(60)).await.unwrap().leased;
                    for leased in leased {
                        if leased.record.order_key.is_some() {
                            store.spool.ack(leased.lease, 200).await.unwrap();
                        } else {
                            store.spool.release(leased.lease).await.unwrap();
                        }
                    }
                }
                if key % 100 == 0 {
                    // Four megabytes a second, ten times what one moved letter a second could keep up with.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            while let Some(leased) = store.spool.lease("queue", 1, Duration::from_secs(60)).await.unwrap().leased.pop()
            {
                let settled = store.spool.ack(leased.lease, 200);
                settled.await.unwrap();
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            tokio::time::sleep(Duration::from_secs(20)).await;
            current(store).await;
        })
        .await;
        let memory = stream.0.lock().unwrap();
        let held: usize = memory.messages.values().map(Bytes::len).sum();
        assert!(memory.purges > 3, "{}", memory.purges);
        assert_eq!(held as u64, status.borrow().held_bytes);
        assert!(held < 10 << 20, "{held}");
    });
}

#[test]
fn a_second_writer_is_refused_and_says_why() {
    run(async {
        let stream = MemoryStream::default();
        let opened = open(&SimDisk::new(1), 7);
        let (ships, mut status) = kept(&opened, &stream);
        beside(opened, Some(ships), async |store| {
            let id = store.spool.enqueue(&record(1, None, 9)).await.unwrap().id;
            store.spool.replicated(id).await.unwrap();
            current(store).await;
            // Another directory of the same name: not a new one, so it takes nothing over.
            let other = open(&SimDisk::new(2), 9);
            let (ships, mut others) = kept(&other, &stream);
            beside(other, Some(ships), async |store| {
                let over = others.wait_for(|status| matches!(status.state, ReplicaState::Superseded { .. })).await;
                let reason = over.unwrap().state.reason().unwrap_or_default().to_owned();
                assert!(reason.contains("another data directory writes under this node's name"), "{reason}");
                let told = store.failure().expect("it takes nothing more");
                assert!(told.contains("another data directory"), "{told}");
                let told = store.spool.enqueue(&record(2, None, 9)).await.unwrap_err().to_string();
                assert!(told.contains("another data directory"), "nothing more is promised: {told}");
            })
            .await;
            // A line is drawn: this one stops, too.
            let mut heritage = Heritage::of(stream.clone(), Wrap::none()).await.unwrap();
            heritage.fence("taken in by b").await.unwrap();
            heritage.fence("taken in by b").await.unwrap();
            let told = heritage.fence("taken in by c").await.unwrap_err().to_string();
            assert!(told.contains("taken in by b; repeat the command there"), "{told}");
            store.spool.enqueue(&record(3, None, 9)).await.unwrap();
            let over = status.wait_for(|status| matches!(status.state, ReplicaState::Superseded { .. })).await;
            let reason = over.unwrap().state.reason().unwrap_or_default().to_owned();
            assert_eq!(reason, "this node's records are another's to deliver: taken in by b");
            assert_eq!(store.failure().as_deref(), Some(reason.as_str()), "nothing is delivered from here any more");
            assert!(store.spool.lease("queue", 1, Duration::from_secs(1)).await.is_err());
        })
        .await;
        // Not before all is taken in may a new directory of that name begin.
        let told = inherit(&stream, &SimDisk::new(3)).await.unwrap_err().to_string();
        assert!(told.contains("taken in by b") && told.contains("not finished"), "{told}");
        let heritage = Heritage::of(stream.clone(), Wrap::none()).await.unwrap();
        let mut opened = open(&SimDisk::new(4), 5);
        assert_eq!(heritage.copy_into(&mut opened).await.unwrap(), 1);
        assert_eq!(opened.report.waiting, 1);
        heritage.clear().await.unwrap();
        let disk = SimDisk::new(5);
        let opened = inherit(&stream, &disk).await.unwrap();
        assert_eq!(
            (opened.report.waiting, opened.engine.next_id() > 2),
            (0, true),
            "nothing is left, and no number comes again"
        );
        let (ships, _) = kept(&opened, &stream);
        beside(opened, Some(ships), async |store| {
            store.spool.enqueue(&record(4, None, 9)).await.unwrap();
            current(store).await;
        })
        .await;
        assert_eq!(inherit(&stream, &SimDisk::new(6)).await.unwrap().report.waiting, 1);
    });
}

#[test]
fn taking_over_can_be_cut_short_anywhere() {
    run(async {
        let stream = MemoryStream::default();
        let opened = open(&SimDisk::new(1), 7);
        let (ships, _) = kept(&opened, &stream);
        beside(opened, Some(ships), async |store| {
            for key in 0..40 {
                store.spool.enqueue(&record(key, Some("row"), 2000)).await.unwrap();
            }
            current(store).await;
        })
        .await;
        let disk = SimDisk::new(2);
        let dir = options().dir;
        for _ in 0..3 {
            assert!(is_new(&disk, &dir).unwrap());
            let heritage = Heritage::of(stream.clone(), Wrap::none()).await.unwrap();
            begin(&disk, &dir).unwrap();
            let mut opened =
                Store::open(disk.clone(), StoreOptions { epoch_min: 4, ..options() }, clock(), || [8; 32]).unwrap();
            // The power goes before it says that it has taken over.
            heritage.copy_into(&mut opened).await.unwrap();
            assert_eq!(opened.report.waiting, 40);
        }
        // Meanwhile one of them left: what the first tries had copied is not believed.
        let opened = inherit(&stream, &disk).await.unwrap();
        assert!(!is_new(&disk, &dir).unwrap());
        assert!(
            opened.report.waiting == 40 && opened.engine.next_id() > 1 << 24,
            "numbers that nobody was told of are skipped"
        );
        beside(opened, None::<Shipper<MemoryStream>>, async |store| {
            let all: Vec<u64> = store.spool.list(None, 99).await.unwrap().iter().map(|account| account.id.0).collect();
            assert_eq!(all, (1..=40).collect::<Vec<_>>());
        })
        .await;
    });
}

#[test]
fn sealed_records_are_sealed_there_too_and_any_directory_with_the_key_opens_them() {
    run(async {
        let keys = SealKeys::parse(&"ab".repeat(32)).unwrap();
        let stream = MemoryStream::default();
        let seals = |keys: Option<SealKeys>| StoreOptions { seal_keys: keys, packs: true, ..options() };
        let opened = Store::open(SimDisk::new(1), seals(Some(keys.clone())), clock(), || [7; 32]).unwrap();
        let (ships, _) = shipper(&opened.store, stream.clone(), stream_wrap(Some(&keys), true, "a"), Arc::new(clock()));
        beside(opened, Some(ships), async |store| {
            store.spool.enqueue(&NewRecord { body: b"secret body".to_vec(), ..record(1, None, 0) }).await.unwrap();
            current(store).await;
        })
        .await;
        let text: Vec<u8> = stream.0.lock().unwrap().messages.values().flatten().copied().collect();
        assert!(!text.windows(6).any(|it| it == b"secret"));
        for (keys, expected) in [(None, "no key was given"), (Some(keys), "")] {
            let wrap = stream_wrap(keys.as_ref(), true, "a");
            let heritage = Heritage::of(stream.clone(), wrap).await.unwrap();
            let mut opened = Store::open(SimDisk::new(2), seals(keys), clock(), || [9; 32]).unwrap();
            match heritage.copy_into(&mut opened).await {
                Err(error) => assert!(!expected.is_empty() && error.to_string().contains(expected), "{error}"),
                Ok(restored) => {
                    assert_eq!((restored, expected), (1, ""));
                    let body =
                        async |store: &Store| store.spool.list(None, 1).await.unwrap().remove(0).record.unwrap().body;
                    assert_eq!(beside(opened, None::<Shipper<MemoryStream>>, body).await, b"secret body");
                }
            }
        }
    });
}

#[test]
fn a_message_nobody_understands_is_told_and_what_it_said_is_said_again() {
    run(async {
        let stream = MemoryStream::default();
        let disk = SimDisk::new(1);
        let opened = open(&disk, 7);
        let (ships, _) = kept(&opened, &stream);
        beside(opened, Some(ships), async |store| {
            for key in 0..3 {
                let id = store.spool.enqueue(&record(key, None, 9)).await.unwrap().id;
                store.spool.replicated(id).await.unwrap();
            }
            current(store).await;
        })
        .await;
        stream.with(|memory| _ = memory.messages.insert(1, Bytes::from_static(b"garbage")));
        let error = inherit(&stream, &SimDisk::new(2)).await.unwrap_err().to_string();
        assert!(error.contains("message 1 of the replica cannot be understood"), "{error}");
        let opened = open(&disk.crash(), 7);
        let (ships, status) = kept(&opened, &stream);
        beside(opened, Some(ships), async |store| current(store).await).await;
        assert_eq!((status.borrow().misread_total, status.borrow().held), (1, 3));
        assert_eq!(stream.0.lock().unwrap().messages.get(&1), None, "told again, it is not needed any more");
        // Nor is a last message that is not ours written over.
        stream.with(|memory| {
            let last = memory.last;
            memory.messages.insert(last, Bytes::from_static(b"garbage"));
        });
        let opened = open(&disk.crash(), 7);
        let (ships, mut status) = kept(&opened, &stream);
        beside(opened, Some(ships), async |_| {
            status.wait_for(|status| status.state.name() == "refused").await.unwrap();
        })
        .await;
        assert!(status.borrow().state.reason().unwrap().contains("is not ours"));
    });
}

#[test]
fn a_stream_that_is_begun_anew_is_told_everything_again() {
    run(async {
        let stream = MemoryStream::default();
        let opened = open(&SimDisk::new(1), 7);
        let (ships, mut status) = kept(&opened, &stream);
        beside(opened, Some(ships), async |store| {
            let id = store.spool.enqueue(&record(1, None, 9)).await.unwrap().id;
            store.spool.replicated(id).await.unwrap();
            stream.with(|memory| *memory = Memory::default());
            store.spool.enqueue(&record(2, None, 9)).await.unwrap();
            status.wait_for(|status| status.state.name() == "down").await.unwrap();
            current(store).await;
            assert_eq!(store.spool.replica().unwrap().held, 2);
            stream.with(|memory| memory.refuses = true);
            let id = store.spool.enqueue(&record(3, None, 9)).await.unwrap().id;
            assert!(store.spool.replicated(id).await.unwrap_err().to_string().contains("as planned"));
        })
        .await;
        assert_eq!(inherit_count(&stream).await, 2);
    });
}

async fn inherit_count(stream: &MemoryStream) -> u64 {
    stream.with(|memory| memory.refuses = false);
    inherit(stream, &SimDisk::new(7)).await.unwrap().report.waiting
}

#[test]
fn the_journal_is_copied_once_and_a_new_directory_goes_on_behind_the_old_one() {
    run(async {
        let stream = MemoryStream::default();
        let diary = |store: &Store| Diary::new(stream.clone(), store, 20_000);
        let life = async |disk: &SimDisk, secret: u8, entries: u64, trouble: u64| {
            let opened = open(disk, secret);
            let diary = diary(&opened.store);
            let work = async |store: &Store| {
                stream.with(|memory| (memory.trouble, memory.prng) = (trouble, Some(Prng::new(3))));
                for n in 0..entries {
                    store.journal.record(Draft::new(Kind::ConfigLoaded, format!("s{n}")));
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                stream.with(|memory| memory.trouble = 0);
                tokio::time::sleep(Duration::from_secs(30)).await;
            };
            let Opened { store, engine, .. } = opened;
            tokio::select! {
                biased;
                () = work(&store) => {}
                () = engine.drive() => unreachable!(),
                () = diary.run() => unreachable!(),
            }
        };
        let disk = SimDisk::new(1);
        life(&disk, 7, 30, 20).await;
        life(&disk.crash(), 7, 10, 0).await;
        life(&SimDisk::new(2), 9, 5, 0).await;
        let mut seen = Vec::new();
        super::diary::read(&stream, |entry| seen.push(entry.seq.0)).await.unwrap();
        assert_eq!(seen, (1..=40).chain(1..=5).collect::<Vec<_>>());
        // It takes no more than it may, and twice that for a moment.
        life(&SimDisk::new(3), 11, 600, 0).await;
        let held: usize = stream.0.lock().unwrap().messages.values().map(Bytes::len).sum();
        assert!((5000..25_000).contains(&held), "{held}");
    });
}

#[test]
fn a_directory_that_is_older_than_its_replica_delivers_nothing() {
    run(async {
        let stream = MemoryStream::default();
        let disk = SimDisk::new(1);
        let life = async |disk: &SimDisk, keys: std::ops::Range<u64>| {
            let opened = open(disk, 7);
            let (ships, _) = kept(&opened, &stream);
            beside(opened, Some(ships), async |store| {
                for key in keys {
                    store.spool.enqueue(&record(key, None, 9)).await.unwrap();
                }
                current(store).await;
            })
            .await;
        };
        life(&disk, 1..3).await;
        let backup = disk.backup();
        life(&disk.crash(), 3..5).await;
        // The backup is put back: it does not know the last two, and must not let the stream forget them.
        let opened = open(&backup, 7);
        let (ships, mut status) = kept(&opened, &stream);
        beside(opened, Some(ships), async |store| {
            status.wait_for(|status| status.state.name() == "superseded").await.unwrap();
            let failure = store.failure().unwrap_or_default();
            assert!(
                failure.contains("is older than what its replica holds (its life 1000002 there, 1000002 here)"),
                "{failure}"
            );
        })
        .await;
        assert_eq!(inherit(&stream, &SimDisk::new(3)).await.unwrap().report.waiting, 4);
    });
}

#[test]
fn an_older_directory_of_a_node_that_was_adopted_delivers_nothing() {
    run(async {
        let stream = MemoryStream::default();
        let old = SimDisk::new(1);
        let opened = open(&old, 7);
        let (ships, _) = kept(&opened, &stream);
        beside(opened, Some(ships), async |store| {
            store.spool.enqueue(&record(1, None, 9)).await.unwrap();
            current(store).await;
        })
        .await;
        drop(inherit(&stream, &SimDisk::new(2)).await.unwrap());
        Heritage::of(stream.clone(), Wrap::none()).await.unwrap().fence("adopted by h").await.unwrap();
        let opened = open(&old.crash(), 7);
        let (ships, mut status) = kept(&opened, &stream);
        beside(opened, Some(ships), async |store| {
            status.wait_for(|status| status.state.name() == "superseded").await.unwrap();
            assert!(store.failure().unwrap_or_default().contains("adopted by h"));
        })
        .await;
    });
}

#[test]
fn what_a_damaged_directory_lost_comes_from_the_replica() {
    run(async {
        let stream = MemoryStream::default();
        let opened = open(&SimDisk::new(1), 7);
        let (ships, _) = kept(&opened, &stream);
        beside(opened, Some(ships), async |store| {
            for key in 0..30 {
                store.spool.enqueue(&record(key, Some("row"), 1500)).await.unwrap();
            }
            let leased = store.spool.lease("queue", 1, Duration::from_secs(9)).await.unwrap().leased.remove(0);
            store.spool.ack(leased.lease, 200).await.unwrap();
            current(store).await;
        })
        .await;
        // Another directory with the last ten: as one is that lost its first segments.
        let disk = SimDisk::new(2);
        let mut opened = open(&disk, 7);
        let heritage = Heritage::of(stream.clone(), Wrap::none()).await.unwrap();
        heritage.copy_into(&mut opened).await.unwrap();
        let lost = beside(opened, None::<Shipper<MemoryStream>>, async |store| {
            let delivered = store.spool.list(None, 99).await.unwrap();
            // A person gives up some, which is no loss: they are known here.
            for account in &delivered[..9] {
                store.spool.discard(account.id, "a test").await.unwrap();
            }
            delivered.len()
        });
        assert_eq!(lost.await, 29);
        let mut opened = open(&disk.crash(), 7);
        assert_eq!(heritage.fill(&mut opened).await.unwrap(), 0, "what was settled here is not missing");
        let mut opened = open(&SimDisk::new(3), 7);
        assert_eq!(heritage.fill(&mut opened).await.unwrap(), 29);
        assert_eq!(opened.report.waiting, 29);
        // One that keeps a replica never takes them for gone, either.
        let opened = open(&SimDisk::new(4), 7);
        let (ships, status) = kept(&opened, &stream);
        stream.with(|memory| {
            let last = memory.last;
            let head = Head { incarnation: incarnation(&[7; 32]), epoch: 0, letter: 1, next_id: 1 };
            memory.messages.insert(last, message::letter(head, &[], 999).remove(0).into());
        });
        beside(opened, Some(ships), async |store| {
            current(store).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert!(status.borrow().missing > 0 && status.borrow().held > 0, "{:?}", status.borrow());
        })
        .await;
    });
}

#[test]
fn a_full_stream_comes_right_when_records_leave() {
    run(async {
        let stream = MemoryStream::default();
        stream.with(|memory| memory.room = 100_000);
        let opened = open(&SimDisk::new(1), 7);
        let (ships, mut status) = kept(&opened, &stream);
        beside(opened, Some(ships), async |store| {
            for key in 0..100 {
                store.spool.enqueue(&record(key, None, 2000)).await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
            let told = store.spool.all_replicated().await.unwrap_err().to_string();
            assert!(told.contains("no room"), "{told}");
            assert_eq!(store.spool.replica().unwrap().state.name(), "down");
            loop {
                let leased = store.spool.lease("queue", 50, Duration::from_secs(60)).await.unwrap().leased;
                if leased.is_empty() {
                    break;
                }
                for leased in leased {
                    store.spool.ack(leased.lease, 200).await.unwrap();
                }
            }
            current(store).await;
            status.wait_for(|status| status.state == ReplicaState::Current).await.unwrap();
            let id = store.spool.enqueue(&record(999, None, 2000)).await.unwrap().id;
            assert_eq!(store.spool.replicated(id).await, Ok(()));
        })
        .await;
    });
}

#[test]
fn what_was_delivered_and_forgotten_does_not_come_back() {
    run(async {
        let stream = MemoryStream::default();
        let options = StoreOptions { remember_max: 2, ..options() };
        let opened = Store::open(SimDisk::new(1), options, clock(), || [7; 32]).unwrap();
        let (ships, _) = kept(&opened, &stream);
        beside(opened, Some(ships), async |store| {
            store.spool.enqueue(&record(1, Some("stays"), 9)).await.unwrap();
            store.spool.enqueue(&record(2, None, 9)).await.unwrap();
            current(store).await;
            // While nobody is told, one is delivered and forgotten; the other keeps the letter they share.
            stream.with(|memory| (memory.trouble, memory.prng) = (100, Some(Prng::new(1))));
            for key in 3..9 {
                for leased in store.spool.lease("queue", 9, Duration::from_secs(1)).await.unwrap().leased {
                    match leased.record.order_key {
                        Some(_) => _ = store.spool.release(leased.lease).await.unwrap(),
                        None => _ = store.spool.ack(leased.lease, 200).await.unwrap(),
                    }
                }
                store.spool.enqueue(&record(key, None, 9)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            assert_eq!(store.spool.get(RecordId(2)).await.unwrap(), None, "forgotten");
            stream.with(|memory| memory.trouble = 0);
            current(store).await;
        })
        .await;
        let opened = inherit(&stream, &SimDisk::new(2)).await.unwrap();
        beside(opened, None::<Shipper<MemoryStream>>, async |store| {
            let waiting = store.spool.list(None, 9).await.unwrap();
            let keys: Vec<_> =
                waiting.iter().filter_map(|it| it.record.as_ref()).map(|it| it.idempotency_key.as_str()).collect();
            assert_eq!(keys, ["key 1", "key 8"]);
        })
        .await;
    });
}

#[test]
fn one_that_was_asked_for_does_not_expire_in_another_directory() {
    run(async {
        let stream = MemoryStream::default();
        let opened = open(&SimDisk::new(1), 7);
        let (ships, _) = kept(&opened, &stream);
        beside(opened, Some(ships), async |store| {
            let terms = Terms { expires: Some(Wall::from_millis(1_060_000)), ..Terms::default() };
            let id = store.spool.enqueue(&NewRecord { terms, ..record(1, None, 9) }).await.unwrap().id;
            current(store).await;
            // Parked and asked for again before the replica hears of either.
            let leased = store.spool.lease("queue", 1, Duration::from_secs(9)).await.unwrap().leased.remove(0);
            store.spool.park(leased.lease, "no", "").await.unwrap();
            store.spool.retry(id).await.unwrap();
            current(store).await;
        })
        .await;
        let opened = inherit(&stream, &SimDisk::new(2)).await.unwrap();
        beside(opened, None::<Shipper<MemoryStream>>, async |store| {
            tokio::time::sleep(Duration::from_secs(600)).await;
            assert!(store.spool.expire("queue", 9).await.unwrap().is_empty());
        })
        .await;
    });
}

#[test]
fn a_spool_without_a_replica_says_so() {
    run(async {
        beside(open(&SimDisk::new(1), 7), None::<Shipper<MemoryStream>>, async |store| {
            let id = store.spool.enqueue(&record(1, None, 9)).await.unwrap().id;
            let told = store.spool.replicated(id).await.unwrap_err().to_string();
            assert_eq!(told, "this node keeps no replica: set `store.url`");
            assert_eq!(store.spool.replica(), None);
        })
        .await;
    });
    let head = Head { incarnation: [1; 16], epoch: 2, letter: 3, next_id: 4 };
    assert_eq!(message_id(head, 0), "010101010101-2-3-0");
}
