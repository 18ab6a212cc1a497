//! The life of records, from enqueue to the last of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use seawall_core::id::RecordId;
use seawall_core::spool::index::{Outcome, Parked};
use seawall_core::spool::{NewRecord, State, Terms};
use seawall_core::time::{Mono, Wall};
use seawall_store::disk::Fault;
use seawall_store::{
    ClockFn, Disk as _, EnqueueError, Leased, Opened, Orphan, SealKeys, SimDisk, Spool, Store, StoreError, StoreOptions,
};

use crate::{TestClock, open, open_with, options, record, segments, with};

const MINUTE: Duration = Duration::from_secs(60);

fn open_at(disk: &SimDisk, options: StoreOptions, clock: &TestClock) -> Opened<SimDisk> {
    Store::open(disk.clone(), options, clock.clone(), || [7; 32]).expect("opens")
}

async fn lease_one(spool: &Spool) -> Option<Leased> {
    spool.lease("queue", 1, MINUTE).await.unwrap().leased.pop()
}

async fn deliver_all(spool: &Spool) -> Vec<u64> {
    let mut delivered = Vec::new();
    while let Some(leased) = lease_one(spool).await {
        delivered.push(leased.lease.id().0);
        assert!(spool.ack(leased.lease, 200).await.unwrap());
    }
    delivered
}

#[test]
fn what_waits_can_be_given_up_and_frees_its_row_once_that_is_safe() {
    let disk = SimDisk::new(77);
    with(open(&disk), async |store| {
        let spool = &store.spool;
        for key in ["a", "b"] {
            spool.enqueue(&record(key, Some("row"), b"x")).await.unwrap();
        }
        let mut leases = spool.lease("queue", 1, Duration::from_secs(9)).await.unwrap();
        let busy = spool.discard(RecordId(1), "a test").await.unwrap_err();
        assert_eq!(busy, StoreError::NotHere { id: RecordId(1), state: State::Leased });
        spool.release(leases.leased.remove(0).lease).await.unwrap();
        spool.discard(RecordId(1), "a test").await.unwrap();
        assert!(spool.holds_key("queue", b"row"), "the other one is of the same row");
        spool.discard(RecordId(2), "a test").await.unwrap();
        assert!(!spool.holds_key("queue", b"row"));
        assert_eq!((spool.depth().waiting, spool.depth().bytes), (0, 0));
    });
    with(open(&disk.crash()), async |store| {
        assert_eq!(store.spool.list(None, 9).await.unwrap().len(), 0);
        assert_eq!(store.spool.list(State::Discarded, 9).await.unwrap().len(), 2);
        assert!(!store.spool.holds_key("queue", b"row"));
    });
}

#[test]
fn a_record_goes_in_and_comes_out_whole() {
    with(open(&SimDisk::new(1)), async |store| {
        let spool = &store.spool;
        let mut work = spool.work_signal();
        let kept = record("k1", Some("shipment 7"), b"hello");
        let enqueued = spool.enqueue(&kept).await.unwrap();
        assert_eq!((enqueued.id, enqueued.already), (RecordId(1), false));
        work.arrived().await;
        assert!(spool.holds_key("queue", b"shipment 7"));
        assert!(!spool.holds_key("queue", b"shipment 8"));
        assert_eq!(spool.depth().waiting, 1);
        assert_eq!(spool.depth().oldest, Some(Wall::from_millis(5)));
        let again = spool.enqueue(&kept).await.unwrap();
        assert_eq!((again.id, again.already), (RecordId(1), true));
        let conflict = spool.enqueue(&record("k1", None, b"other")).await.unwrap_err();
        assert_eq!(conflict, EnqueueError::KeyConflict { id: RecordId(1) });

        let leased = lease_one(spool).await.unwrap();
        assert_eq!((&leased.record, leased.attempts, leased.last_error.as_str()), (&kept, 1, "connect_refused"));
        assert_eq!(spool.depth_of("queue").leased, 1);
        assert!(spool.ack(leased.lease, 202).await.unwrap());
        assert!(!spool.holds_key("queue", b"shipment 7"));
        let account = spool.get(RecordId(1)).await.unwrap().unwrap();
        assert_eq!((account.state, account.record), (State::Delivered, None));
        assert_eq!(account.settled.unwrap().outcome, Outcome::Delivered { status: 202 });
        assert!(spool.enqueue(&kept).await.unwrap().already, "delivered, and still known");
        assert_eq!(spool.get(RecordId(2)).await, Ok(None));
        assert_eq!(spool.lookup("k1").await.unwrap().unwrap().state, State::Delivered);
        assert_eq!(spool.lookup("k2").await, Ok(None));
        assert_eq!(spool.depths().len(), 1);
        assert_eq!(spool.failure(), None);
    });
}

#[test]
fn failed_tries_and_dead_letters_survive_a_restart() {
    let disk = SimDisk::new(2);
    let clock = TestClock::default();
    let opened = Store::open(disk.clone(), options(), clock.clone(), || [7; 32]).unwrap();
    with(opened, async |store| {
        let spool = &store.spool;
        for key in ["a", "b", "c"] {
            spool.enqueue(&record(key, Some("row"), key.as_bytes())).await.unwrap();
        }
        let leased = lease_one(spool).await.unwrap();
        assert!(spool.nack(leased.lease, Duration::from_secs(5), "503").await.unwrap());
        let nothing = spool.lease("queue", 9, MINUTE).await.unwrap();
        assert!(nothing.leased.is_empty());
        assert_eq!(nothing.ready_in, Some(Duration::from_secs(5)));
        clock.advance_ms(5000);
        let again = lease_one(spool).await.unwrap();
        assert_eq!((again.attempts, again.last_error.as_str()), (2, "503"));
        assert!(spool.park(again.lease, "refused for good", "422 no such shipment").await.unwrap());
        let next = lease_one(spool).await.unwrap();
        assert_eq!(next.lease.id(), RecordId(2), "the row goes on");
        assert!(spool.release(next.lease).await.unwrap());
        assert_eq!(spool.depth().parked, 1);
        store.close().await;
    });
    let opened = open(&disk.crash());
    assert_eq!((opened.report.waiting, opened.report.parked, opened.report.epoch), (2, 1, 2));
    with(opened, async |store| {
        let spool = &store.spool;
        let parked = spool.list(State::Parked, 10).await.unwrap();
        assert_eq!(parked.len(), 1);
        let dead = parked[0].parked.as_ref().unwrap();
        assert_eq!((dead.reason.as_str(), dead.last_words.as_str()), ("refused for good", "422 no such shipment"));
        assert_eq!((parked[0].attempts, parked[0].record.as_ref().unwrap().body.as_slice()), (3, &b"a"[..]));
        assert!(spool.holds_key("queue", b"row"));
        assert_eq!(
            spool.retry(RecordId(2)).await,
            Err(StoreError::NotParked { id: RecordId(2), state: State::Waiting })
        );
        assert_eq!(spool.retry(RecordId(9)).await, Err(StoreError::NotFound { id: RecordId(9) }));
        assert_eq!(spool.discard(RecordId(9), "").await, Err(StoreError::NotFound { id: RecordId(9) }));
        spool.retry(RecordId(1)).await.unwrap();
        assert_eq!(deliver_all(spool).await, [1, 2, 3], "retried, it goes before its row");
        assert_eq!(spool.depth().bytes, 0);
    });
}

#[test]
fn a_discarded_record_is_gone_and_its_reason_is_not() {
    let disk = SimDisk::new(3);
    with(open(&disk), async |store| {
        let spool = &store.spool;
        spool.enqueue(&record("a", None, b"a")).await.unwrap();
        let leased = lease_one(spool).await.unwrap();
        assert!(spool.park(leased.lease, "poison", "").await.unwrap());
        spool.discard(RecordId(1), "sent by hand").await.unwrap();
        assert_eq!(spool.depth().bytes, 0);
    });
    with(open(&disk.crash()), async |store| {
        let account = store.spool.get(RecordId(1)).await.unwrap().unwrap();
        assert_eq!(account.state, State::Discarded);
        assert_eq!(account.settled.unwrap().outcome, Outcome::Discarded { reason: "sent by hand".into() });
        assert_eq!(store.spool.list(State::Discarded, 9).await.unwrap().len(), 1);
    });
}

#[test]
fn a_late_answer_decides_nothing() {
    let clock = TestClock::default();
    let opened = Store::open(SimDisk::new(4), options(), clock.clone(), || [7; 32]).unwrap();
    with(opened, async |store| {
        let spool = &store.spool;
        spool.enqueue(&record("a", None, b"a")).await.unwrap();
        let take = async || lease_one(spool).await.unwrap().lease;
        let late = take().await;
        clock.advance_ms(60_000);
        let lease = take().await;
        assert!(!spool.ack(late, 200).await.unwrap());
        clock.advance_ms(60_000);
        let next = take().await;
        assert!(!spool.nack(lease, Duration::ZERO, "").await.unwrap());
        clock.advance_ms(60_000);
        let last = take().await;
        assert!(!spool.park(next, "", "").await.unwrap());
        clock.advance_ms(60_000);
        let _held = take().await;
        assert!(!spool.release(last).await.unwrap());
        assert_eq!(spool.get(RecordId(1)).await.unwrap().unwrap().attempts, 5);
    });
}

#[test]
fn limits_are_told_with_numbers() {
    let mut options = options();
    options.spool_bytes_max = 1000;
    with(open_with(&SimDisk::new(5), options).unwrap(), async |store| {
        let spool = &store.spool;
        let large = spool.enqueue(&record("large", None, &[1; 3000])).await.unwrap_err();
        assert!(matches!(large, EnqueueError::TooLarge { bytes: 3001.., limit_bytes: 2048 }), "{large}");
        assert_eq!((large.retry_after(), large.hint()), (None, Some("raise `store.record_max`")));
        spool.enqueue(&record("a", None, &[1; 500])).await.unwrap();
        let full = spool.enqueue(&record("b", None, &[2; 500])).await.unwrap_err();
        assert!(full.to_string().starts_with("the spool is full ("), "{full}");
        assert!(full.to_string().ends_with(" of 1000 bytes)"), "{full}");
        assert_eq!(full.retry_after(), Some(Duration::from_secs(1)));
        assert_eq!(deliver_all(spool).await, [1]);
        spool.enqueue(&record("b", None, &[2; 500])).await.unwrap();
    });
}

#[test]
fn a_route_has_its_own_limit() {
    with(open(&SimDisk::new(61)), async |store| {
        let spool = &store.spool;
        let enqueue = async |key: &str, route: &str| {
            let record = NewRecord { route: route.into(), ..record(key, None, &[1; 500]) };
            spool.enqueue_within(&record, Some(1_500)).await
        };
        enqueue("a", "events").await.unwrap();
        enqueue("b", "events").await.unwrap();
        let full = enqueue("c", "events").await.unwrap_err();
        assert!(
            matches!(&full, EnqueueError::RouteFull { route, used_bytes: 1000.., limit_bytes: 1_500 } if route == "events")
        );
        assert!(full.to_string().contains("route `events`, which may have 1500") && full.hint().is_some());
        assert!(full.retry_after().is_some());
        assert!(enqueue("a", "events").await.unwrap().already, "what is there already needs no room");
        enqueue("c", "labels").await.unwrap();
        assert_eq!(deliver_all(spool).await, [1, 2, 3]);
        enqueue("d", "events").await.unwrap();
    });
}

#[test]
fn what_waits_too_long_is_given_up_and_counted_apart() {
    let (disk, clock) = (SimDisk::new(62), TestClock::default());
    let expiring = |key: &str, row: Option<&str>, expires: u64| NewRecord {
        terms: Terms { expires: Some(Wall::from_millis(expires)), ..Terms::default() },
        ..record(key, row, b"x")
    };
    with(open_at(&disk, options(), &clock), async |store| {
        let spool = &store.spool;
        spool.enqueue(&expiring("a", Some("row"), 10_000)).await.unwrap();
        spool.enqueue(&expiring("b", Some("row"), 90_000)).await.unwrap();
        spool.enqueue(&expiring("c", None, 10_000)).await.unwrap();
        spool.enqueue(&expiring("d", None, 10_000)).await.unwrap();
        let out = spool.lease("queue", 9, MINUTE).await.unwrap().leased;
        assert_eq!(out.len(), 3);
        let [a, c, d] = <[_; 3]>::try_from(out).unwrap();
        spool.release(a.lease).await.unwrap();
        spool.park(d.lease, "refused", "").await.unwrap();
        spool.retry(RecordId(4)).await.unwrap();
        clock.advance_ms(10_000);
        let expired = spool.expire("queue", 9).await.unwrap();
        assert_eq!(
            expired.iter().map(|expired| expired.id.0).collect::<Vec<_>>(),
            [1],
            "the others are out, or a person's"
        );
        assert_eq!((expired[0].record.idempotency_key.as_str(), expired[0].attempts), ("a", 1));
        assert!(
            spool.expire("queue", 9).await.unwrap().is_empty() && spool.expire("nobody", 9).await.unwrap().is_empty()
        );
        spool.nack(c.lease, Duration::ZERO, "503").await.unwrap();
        assert_eq!(spool.expire("queue", 9).await.unwrap()[0].id, RecordId(3));
        assert_eq!(spool.get(RecordId(1)).await.unwrap().unwrap().settled.unwrap().outcome, Outcome::Expired);
        assert!(spool.holds_key("queue", b"row"), "one of its row still waits");
    });
    with(open_at(&disk.crash(), options(), &clock), async |store| {
        let states = [1, 2, 3, 4].map(RecordId);
        let mut found = Vec::new();
        for id in states {
            found.push(store.spool.get(id).await.unwrap().unwrap().state);
        }
        assert_eq!(found, [State::Expired, State::Waiting, State::Expired, State::Waiting]);
        assert!(store.spool.enqueue(&expiring("a", None, 99_999)).await.unwrap().already, "its key is remembered");
        let mut delivered = deliver_all(&store.spool).await;
        delivered.sort_unstable();
        assert_eq!(delivered, [2, 4], "what was retried by hand does not expire");
    });
}

#[test]
fn what_was_retried_by_hand_does_not_expire_after_it_was_moved() {
    retried_and_moved(SimDisk::new(63), &StoreOptions { spool_segment_bytes: 0, record_bytes_max: 2_000, ..options() });
}

#[test]
fn nor_does_one_that_is_sealed_and_packed() {
    let sealed = sealing(&"c".repeat(64), true);
    retried_and_moved(SimDisk::new(71), &StoreOptions { spool_segment_bytes: 0, record_bytes_max: 2_000, ..sealed });
}

fn retried_and_moved(disk: SimDisk, small: &StoreOptions) {
    let clock = TestClock::default();
    with(open_at(&disk, small.clone(), &clock), async |store| {
        let spool = &store.spool;
        let terms = Terms { expires: Some(Wall::from_millis(1_000)), ..Terms::default() };
        spool.enqueue(&NewRecord { terms, ..record("old", Some("row"), b"x") }).await.unwrap();
        let out = lease_one(spool).await.unwrap();
        spool.park(out.lease, "refused", "").await.unwrap();
        spool.retry(RecordId(1)).await.unwrap();
        let out = lease_one(spool).await.unwrap();
        // Traffic until its segment is gone.
        for n in 0..60_u8 {
            let noise: Vec<u8> = (0..1_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ n).collect();
            spool.enqueue(&record(&format!("k{n}"), None, &noise)).await.unwrap();
            let leased = lease_one(spool).await.unwrap();
            assert!(spool.ack(leased.lease, 200).await.unwrap());
        }
        spool.release(out.lease).await.unwrap();
    });
    assert!(!segments(&disk).contains(&"0000000001.log".to_string()), "{:?}", segments(&disk));
    clock.advance_ms(5_000);
    with(open_at(&disk.crash(), small.clone(), &clock), async |store| {
        assert!(store.spool.expire("queue", 9).await.unwrap().is_empty());
        assert_eq!(deliver_all(&store.spool).await, [1]);
    });
}

#[test]
fn what_cannot_be_read_does_not_expire_unseen() {
    let (disk, clock) = (SimDisk::new(64), TestClock::default());
    with(open_at(&disk, options(), &clock), async |store| {
        let spool = &store.spool;
        let terms = Terms { expires: Some(Wall::from_millis(1_000)), ..Terms::default() };
        spool.enqueue(&NewRecord { terms, ..record("a", Some("row"), &[0x5a; 64]) }).await.unwrap();
        let path = crate::spool_dir().join("0000000001.log");
        let image = disk.read(&path).unwrap();
        let at = image.windows(64).position(|window| window == [0x5a; 64]).unwrap();
        disk.corrupt(&path, at, 1);
        clock.advance_ms(2_000);
        assert!(spool.expire("queue", 9).await.unwrap().is_empty());
        let depth = spool.depth();
        assert_eq!((depth.waiting, depth.parked), (0, 1), "people see it");
        assert!(!spool.holds_key("queue", b"row"));
    });
}

#[test]
fn what_is_held_is_shown_segment_by_segment() {
    let disk = SimDisk::new(68);
    with(open(&disk), async |store| {
        let spool = &store.spool;
        for n in 0..60 {
            spool.enqueue(&record(&format!("k{n}"), None, &[7; 500])).await.unwrap();
        }
        let mut out = spool.lease("queue", 12, MINUTE).await.unwrap().leased.into_iter();
        for leased in out.by_ref().take(10) {
            assert!(spool.ack(leased.lease, 200).await.unwrap());
        }
        let [parked, leased] = <[_; 2]>::try_from(out.collect::<Vec<_>>()).unwrap();
        spool.park(parked.lease, "refused", "").await.unwrap();
        let mut seen = Vec::new();
        spool.visit_held(|held| seen.push((held.id.0, held.state, held.ledger.map(String::from)))).await.unwrap();
        assert!(segments(&disk).len() > 3);
        assert_eq!(seen.iter().map(|(id, ..)| *id).collect::<Vec<_>>(), (11..=60).collect::<Vec<_>>());
        assert_eq!((seen[0].1, seen[1].1, seen[2].1), (State::Parked, State::Leased, State::Waiting));
        assert!(seen.iter().all(|(_, _, ledger)| ledger.as_deref() == Some("events.us-east-1.1.1;tag=00")));
        drop(leased);
    });
}

#[test]
fn orphans_are_taken_in_once_as_they_were() {
    let (dead, disk) = (SimDisk::new(65), SimDisk::new(66));
    let orphans = with(open(&dead), async |store| {
        let spool = &store.spool;
        for key in ["a", "b", "c"] {
            spool.enqueue(&record(key, Some("row"), key.as_bytes())).await.unwrap();
        }
        let out = lease_one(spool).await.unwrap();
        spool.park(out.lease, "refused", "no").await.unwrap();
        let out = lease_one(spool).await.unwrap();
        spool.nack(out.lease, Duration::ZERO, "503").await.unwrap();
        spool.discard(RecordId(3), "a test").await.unwrap();
        let accounts = [spool.get(RecordId(1)).await, spool.get(RecordId(2)).await, spool.get(RecordId(3)).await];
        accounts.map(|account| Orphan::of(account.unwrap().unwrap()))
    });
    let [Some(parked), Some(waiting), None] = orphans else { panic!("{orphans:?}") };
    let mut bytes = Vec::new();
    parked.encode(&mut bytes);
    assert_eq!(Orphan::decode(&bytes), Ok(parked.clone()));
    assert!(Orphan::decode(&[0; 9]).is_err() && Orphan::decode(&bytes[..bytes.len() - 1]).is_err());
    with(open(&disk), async |store| {
        let spool = &store.spool;
        spool.enqueue(&record("mine", None, b"x")).await.unwrap();
        for already in [false, true] {
            for orphan in [&parked, &waiting] {
                assert_eq!(spool.adopt(orphan.clone()).await.unwrap().already, already);
            }
        }
        assert!(spool.holds_key("queue", b"row"));
    });
    with(open(&disk.crash()), async |store| {
        let spool = &store.spool;
        let adopted = spool.get(RecordId(2)).await.unwrap().unwrap();
        let kept = Orphan { id: RecordId(2), ..parked.clone() };
        assert_eq!(Orphan::of(adopted), Some(kept), "a dead letter stays one");
        let adopted = spool.get(RecordId(3)).await.unwrap().unwrap();
        assert_eq!((adopted.state, adopted.attempts, adopted.last_error.as_str()), (State::Waiting, 2, "503"));
        assert_eq!(deliver_all(spool).await, [1, 3]);
        assert!(!spool.holds_key("queue", b"row"));
    });
}

#[test]
fn a_dead_letter_that_was_retried_does_not_expire_at_its_new_node() {
    let (dead, disk) = (SimDisk::new(72), SimDisk::new(73));
    let orphan = with(open(&dead), async |store| {
        let terms = Terms { expires: Some(Wall::from_millis(1)), ..Terms::default() };
        store.spool.enqueue(&NewRecord { terms, ..record("a", None, b"x") }).await.unwrap();
        let out = lease_one(&store.spool).await.unwrap();
        store.spool.park(out.lease, "refused", "no").await.unwrap();
        store.spool.retry(RecordId(1)).await.unwrap();
        Orphan::of(store.spool.get(RecordId(1)).await.unwrap().unwrap()).unwrap()
    });
    assert_eq!(orphan.record.terms.expires, None);
    with(open(&disk), async |store| {
        let wordy = Orphan { last_error: "x".repeat(1 << 20), ..orphan };
        store.spool.adopt(wordy).await.unwrap();
        assert!(store.spool.expire("queue", 9).await.unwrap().is_empty());
        let leased = lease_one(&store.spool).await.unwrap();
        assert_eq!(leased.last_error.len(), 256, "texts are cut as everywhere");
        assert!(store.spool.ack(leased.lease, 200).await.unwrap());
    });
}

#[test]
fn what_expires_in_the_batch_it_came_with_is_read_whole() {
    let clock = TestClock::default();
    clock.advance_ms(9_000);
    with(open_at(&SimDisk::new(74), options(), &clock), async |store| {
        let terms = Terms { expires: Some(Wall::from_millis(1_000)), ..Terms::default() };
        let late = NewRecord { terms, ..record("a", Some("row"), b"x") };
        let (kept, expired) = tokio::join!(store.spool.enqueue(&late), store.spool.expire("queue", 9));
        assert!(kept.is_ok());
        assert_eq!(expired.unwrap().len(), 1, "and not taken for damage");
        assert_eq!(store.spool.depth().parked, 0);
        assert!(!store.spool.holds_key("queue", b"row"));
    });
}

#[test]
fn what_is_handed_over_is_not_delivered_and_says_where_it_went() {
    let disk = SimDisk::new(75);
    with(open(&disk), async |store| {
        for key in ["a", "b", "c"] {
            store.spool.enqueue(&record(key, Some("row"), b"x")).await.unwrap();
        }
        let out = lease_one(&store.spool).await.unwrap();
        assert!(store.spool.hand_over(out.lease.id(), "heir as record 7").await.is_err(), "it is on its way");
        store.spool.park(out.lease, "refused", "no").await.unwrap();
        for id in [1, 2] {
            store.spool.hand_over(RecordId(id), "heir as record 7").await.unwrap();
        }
        assert!(store.spool.hand_over(RecordId(1), "another").await.is_err(), "once");
    });
    with(open(&disk.crash()), async |store| {
        let account = store.spool.get(RecordId(1)).await.unwrap().unwrap();
        let outcome = account.settled.unwrap().outcome;
        assert_eq!(outcome, Outcome::HandedOver { to: "heir as record 7".into() });
        assert_eq!(store.spool.list(State::HandedOver, 9).await.unwrap().len(), 2);
        let mut held = Vec::new();
        store.spool.visit_held(|it| held.push((it.id.0, it.state))).await.unwrap();
        held.sort_unstable();
        assert_eq!(held, [(1, State::HandedOver), (2, State::HandedOver), (3, State::Waiting)]);
        assert_eq!(deliver_all(&store.spool).await, [3]);
    });
}

#[test]
fn an_orphan_that_finds_no_room_is_not_there() {
    let disk = SimDisk::new(67);
    with(open(&disk), async |store| {
        let parked = Some(Parked { reason: "refused".into(), ..Parked::default() });
        let (last_error, record) = ("503".into(), record("a", Some("row"), b"x"));
        let orphan = Orphan { id: RecordId(9), record, attempts: 3, last_error, parked };
        disk.fail_call(1, Fault::NoSpace);
        assert_eq!(store.spool.adopt(orphan.clone()).await, Err(EnqueueError::DiskFull));
        assert_eq!(store.spool.depth().parked, 0);
        assert!(!store.spool.adopt(orphan).await.unwrap().already);
        assert_eq!(store.spool.depth().parked, 1);
    });
}

#[test]
fn a_closed_store_says_so() {
    with(open(&SimDisk::new(6)), async |store| {
        store.close().await;
        let stopped = store.spool.enqueue(&record("a", None, b"a")).await.unwrap_err();
        assert_eq!(stopped.to_string(), "the store has stopped: the node is stopping");
        assert_eq!(store.spool.get(RecordId(1)).await.unwrap_err().to_string(), stopped.to_string());
        assert!(store.ledger.append_synced(vec![1]).await.is_err());
        assert!(!store.ledger.append(vec![1]));
        assert_eq!(store.ledger.lost_total(), 1);
        assert!(store.journal.flush().await.is_err());
        store.close().await;
    });
}

#[test]
fn files_stay_small_though_one_record_stays_for_ever() {
    let disk = SimDisk::new(7);
    let mut options = options();
    options.remember_max = 20;
    with(open_with(&disk, options).unwrap(), async |store| {
        let spool = &store.spool;
        spool.enqueue(&record("straggler", None, &[9; 400])).await.unwrap();
        let straggler = lease_one(spool).await.unwrap();
        assert!(spool.park(straggler.lease, "poison", "").await.unwrap());
        for n in 0..600 {
            spool.enqueue(&record(&format!("k{n}"), Some("row"), &[n as u8; 700])).await.unwrap();
            let leased = lease_one(spool).await.unwrap();
            assert!(spool.ack(leased.lease, 200).await.unwrap());
            assert!(spool.depth().disk_bytes <= 5 * (10 << 10), "{:?}", spool.depth());
        }
        assert!(spool.depth().keys_forgotten_early_total > 500);
    });
    let disk = disk.crash();
    assert!(!segments(&disk).contains(&"0000000001.log".into()));
    let opened = open(&disk);
    assert_eq!((opened.report.parked, opened.report.waiting), (1, 0));
    with(opened, async |store| {
        let account = store.spool.get(RecordId(1)).await.unwrap().unwrap();
        assert_eq!((account.state, account.record.unwrap()), (State::Parked, record("straggler", None, &[9; 400])));
        assert_eq!(account.parked.unwrap().reason, "poison");
        assert!(store.spool.enqueue(&record("k599", Some("row"), &[599_u64 as u8; 700])).await.unwrap().already);
        let next = store.spool.enqueue(&record("new", None, b"x")).await.unwrap();
        assert_eq!(next.id, RecordId(602), "numbers go on");
    });
}

#[test]
fn numbers_are_not_used_twice_when_every_record_is_gone() {
    let disk = SimDisk::new(8);
    let mut options = options();
    options.remember_for = Duration::ZERO;
    let clock = TestClock::default();
    let opened = Store::open(disk.clone(), options, clock.clone(), || [7; 32]).unwrap();
    with(opened, async |store| {
        for n in 0..60 {
            store.spool.enqueue(&record(&format!("k{n}"), None, &[1; 700])).await.unwrap();
            deliver_all(&store.spool).await;
            clock.advance_ms(1);
        }
    });
    let disk = disk.crash();
    assert!(segments(&disk).len() <= 2, "{:?}", segments(&disk));
    with(open(&disk), async |store| {
        assert_eq!(store.spool.enqueue(&record("k0", None, b"x")).await.unwrap().id, RecordId(61));
    });
}

#[test]
fn a_thousand_records_of_many_producers_are_delivered_once_each() {
    let opened = open(&SimDisk::new(9));
    let threads = opened.engine.spawn_threads().unwrap();
    let store = opened.store;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for producer in 0..20 {
            let spool = store.spool.clone();
            tasks.spawn(async move {
                for n in 0..50 {
                    let row = format!("row {producer}");
                    spool.enqueue(&record(&format!("{producer}/{n}"), Some(&row), &[n])).await.unwrap();
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let mut bodies = vec![Vec::new(); 20];
        loop {
            let found = store.spool.lease("queue", 64, MINUTE).await.unwrap();
            if found.leased.is_empty() {
                break;
            }
            for leased in found.leased {
                let producer: usize = leased.record.idempotency_key.split('/').next().unwrap().parse().unwrap();
                bodies[producer].push(leased.record.body[0]);
                assert!(store.spool.ack(leased.lease, 200).await.unwrap());
            }
        }
        assert!(bodies.iter().all(|row| *row == (0..50).collect::<Vec<u8>>()), "each row whole and in order");
        store.close().await;
    });
    threads.join();
}

#[test]
fn an_asker_who_left_holds_nothing() {
    with(open(&SimDisk::new(10)), async |store| {
        store.spool.enqueue(&record("a", None, b"a")).await.unwrap();
        {
            let spool = store.spool.clone();
            let mut asking = Box::pin(async move { spool.lease("queue", 1, MINUTE).await });
            let poll =
                std::future::poll_fn(|context| std::task::Poll::Ready(asking.as_mut().poll(context).is_pending()));
            assert!(poll.await);
        }
        assert!(lease_one(&store.spool).await.is_some());
    });
}

#[test]
fn a_retried_record_still_waits_after_a_restart() {
    let disk = SimDisk::new(11);
    with(open(&disk), async |store| {
        let spool = &store.spool;
        spool.enqueue(&record("a", Some("row"), b"a")).await.unwrap();
        let leased = lease_one(spool).await.unwrap();
        assert!(spool.park(leased.lease, "refused", "").await.unwrap());
        spool.retry(RecordId(1)).await.unwrap();
    });
    let opened = open(&disk.crash());
    assert_eq!((opened.report.waiting, opened.report.parked), (1, 0));
}

#[test]
fn keys_out_of_the_window_are_forgotten_at_the_next_start() {
    let disk = SimDisk::new(12);
    with(open(&disk), async |store| {
        store.spool.enqueue(&record("a", None, b"a")).await.unwrap();
        deliver_all(&store.spool).await;
    });
    let disk = disk.crash();
    assert_eq!(open(&disk).report.keys, 1);
    let clock = TestClock::default();
    clock.advance_ms(25 * 3600 * 1000);
    let opened = Store::open(disk.crash(), options(), clock, || [7; 32]).unwrap();
    assert_eq!(opened.report.keys, 0);
    with(opened, async |store| {
        let again = store.spool.enqueue(&record("a", None, b"another day")).await.unwrap();
        assert_eq!((again.id, again.already), (RecordId(2), false));
    });
}

#[test]
fn a_long_backlog_is_read_back_from_many_segments() {
    let disk = SimDisk::new(13);
    with(open(&disk), async |store| {
        for n in 0..1000_u64 {
            store.spool.enqueue(&record(&format!("k{n}"), None, &[n as u8; 700])).await.unwrap();
        }
    });
    let disk = disk.crash();
    assert!(segments(&disk).len() > 70);
    with(open(&disk), async |store| {
        assert_eq!(store.spool.list(State::Waiting, 2000).await.unwrap().len(), 1000);
        assert_eq!(deliver_all(&store.spool).await, (1..=1000).collect::<Vec<_>>());
        assert!(store.spool.depth().disk_bytes < 300 << 10, "only keys are left: {:?}", store.spool.depth());
    });
    assert_eq!(open(&disk.crash()).report.keys, 1000);
}

fn sealing(keys: &str, packs: bool) -> StoreOptions {
    let seal_keys = (!keys.is_empty()).then(|| SealKeys::parse(keys).unwrap());
    StoreOptions { seal_keys, packs, ..options() }
}

fn holds(disk: &SimDisk, text: &[u8]) -> bool {
    let images = segments(disk).into_iter().map(|name| disk.read(&crate::spool_dir().join(name)).unwrap());
    images.into_iter().any(|image| image.windows(text.len()).any(|window| window == text))
}

#[test]
fn sealed_records_are_read_with_their_key_and_nothing_of_them_without() {
    let (disk, clock) = (SimDisk::new(70), TestClock::default());
    let (old, new) = ("a".repeat(64), "b".repeat(64));
    let secret = b"a secret that must not lie about".repeat(8);
    with(open_at(&disk, options(), &clock), async |store| {
        store.spool.enqueue(&record("open", Some("row"), &secret)).await.unwrap();
    });
    // Not its beginning, which these records have for a fingerprint.
    let tell_tale = &secret[40..80];
    assert!(holds(&disk, tell_tale));
    with(open_at(&disk, sealing(&old, true), &clock), async |store| {
        let spool = &store.spool;
        assert_eq!(deliver_all(spool).await, [1], "what was written before is read");
        // Traffic until the first segment is gone, and with it what was open.
        for n in 0..40 {
            spool.enqueue(&record(&format!("sealed {n}"), None, &secret)).await.unwrap();
        }
        assert!(spool.enqueue(&record("sealed 0", None, &secret)).await.unwrap().already);
        for _ in 0..39 {
            let leased = lease_one(spool).await.unwrap();
            assert_eq!(leased.record.body, secret);
            assert!(spool.ack(leased.lease, 200).await.unwrap());
        }
        for n in 0..60 {
            spool.enqueue(&record(&format!("more {n}"), None, &[n; 900])).await.unwrap();
        }
    });
    assert!(!segments(&disk).contains(&"0000000001.log".to_owned()));
    assert_eq!((holds(&disk, tell_tale), holds(&disk, b"sealed 39")), (false, false));
    for (keys, reason) in [("", "no key was given"), (new.as_str(), "sealed with another key")] {
        let error = open_with(&disk, sealing(keys, false)).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(reason) && error.hint().unwrap().contains("key_file"), "{error}");
    }
    with(open_at(&disk.crash(), sealing(&format!("{new}\n{old}"), false), &clock), async |store| {
        let spool = &store.spool;
        let mut stamps = 0;
        spool.visit_held(|held| stamps += usize::from(held.ledger.is_some())).await.unwrap();
        assert_eq!(stamps, 61);
        spool.enqueue(&record("with the new key", None, &secret)).await.unwrap();
        assert_eq!(deliver_all(spool).await.len(), 62);
    });
}

/// So that a node which lost its directory numbers nothing twice.
#[test]
fn a_new_directory_begins_at_the_time_and_a_start_adds_one() {
    let (disk, clock) = (SimDisk::new(1), TestClock::default());
    let start = || Store::open(disk.clone(), options(), clock.clone(), || [7; 32]).unwrap().report.epoch;
    clock.advance_ms(5_000);
    let epochs: Vec<u64> = (0..3)
        .map(|_| {
            clock.advance_ms(1_000);
            start()
        })
        .collect();
    assert_eq!(epochs, [6_001, 6_002, 6_003]);
}

/// By two days, and back by four: what expires and what is forgotten goes by the time that has passed.
#[test]
fn a_wall_clock_that_is_set_expires_nothing_and_forgets_nothing() {
    const HOUR_MS: u64 = 3_600_000;
    let (passed, set) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(240 * HOUR_MS)));
    let (mono, wall_passed, wall_set) = (passed.clone(), passed.clone(), set.clone());
    let wall = move || Wall::from_millis(wall_set.load(Relaxed) + wall_passed.load(Relaxed));
    let clock = ClockFn(move || Mono::from_millis(mono.load(Relaxed)), wall.clone());
    let disk = SimDisk::new(1);
    let (dir_disk, passes) = (disk.clone(), |millis| _ = passed.fetch_add(millis, Relaxed));
    with(Store::open(dir_disk, options(), clock, || [7; 32]).unwrap(), async |store| {
        let spool = &store.spool;
        let within_the_hour = |key: &str| NewRecord {
            accepted: wall(),
            terms: Terms { expires: Some(wall() + Duration::from_millis(HOUR_MS)), ..Terms::default() },
            ..record(key, None, b"x")
        };
        spool.enqueue(&record("delivered", None, b"x")).await.unwrap();
        assert_eq!(deliver_all(spool).await, [1]);
        spool.enqueue(&within_the_hour("before")).await.unwrap();
        set.fetch_add(48 * HOUR_MS, Relaxed);
        spool.enqueue(&within_the_hour("ahead")).await.unwrap();
        set.fetch_sub(96 * HOUR_MS, Relaxed);
        spool.enqueue(&within_the_hour("behind")).await.unwrap();
        passes(HOUR_MS - 2_000);
        assert_eq!(spool.expire("queue", 9).await.unwrap().len(), 0);
        assert_eq!(spool.lookup("delivered").await.unwrap().unwrap().state, State::Delivered);
        passes(4_000);
        assert_eq!(spool.expire("queue", 9).await.unwrap().len(), 3);
        passes(23 * HOUR_MS - 4_000);
        spool.enqueue(&record("a moment before", None, b"x")).await.unwrap();
        assert!(spool.lookup("delivered").await.unwrap().is_some());
        passes(4_000);
        spool.enqueue(&record("a moment after", None, b"x")).await.unwrap();
        assert_eq!(spool.lookup("delivered").await.unwrap(), None);
    });
    // The log has the time as it was set.
    let clock = ClockFn(|| Mono::ZERO, || Wall::from_millis(217 * HOUR_MS));
    with(Store::open(disk.crash(), options(), clock, || [7; 32]).unwrap(), async |store| {
        assert_eq!(store.spool.lookup("before").await.unwrap().unwrap().state, State::Expired);
    });
}
