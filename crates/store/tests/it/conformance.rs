//! What every engine of the spool must do, as scenes: between two of them everything but what was promised is gone.
//!
//! An engine that keeps its promises in a directory is opened again from what was synced; one that keeps them in a
//! stream has lost its directory, and begins with an empty one. Self-contained: the tests of the built program play it,
//! too, against real servers.
#![allow(unreachable_pub, reason = "another test program plays it, too")]

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use seawall_core::id::RecordId;
use seawall_core::spool::index::Outcome;
use seawall_core::spool::{NewRecord, Priority, State, Terms};
use seawall_core::time::{Mono, Wall};
use seawall_store::{Clock, EnqueueError, Leased, Spool, StoreError, StoreOptions};

/// A clock that the scenes set. It goes on between them.
#[derive(Clone, Debug, Default)]
pub struct SceneClock(Arc<AtomicU64>);

impl SceneClock {
    /// So many milliseconds later.
    pub fn advance(&self, millis: u64) {
        self.0.fetch_add(millis, Ordering::Relaxed);
    }

    fn millis(&self) -> u64 {
        1_000_000 + self.0.load(Ordering::Relaxed)
    }
}

impl Clock for SceneClock {
    fn mono(&self) -> Mono {
        Mono::from_millis(self.millis())
    }

    fn wall(&self) -> Wall {
        Wall::from_millis(self.millis())
    }
}

/// One act between two losses.
type Scene = for<'a> fn(&'a Spool, &'a SceneClock) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A promise, and the scenes that show it.
#[derive(Debug)]
pub struct Play {
    /// What is promised.
    pub name: &'static str,
    /// Played in this order.
    pub scenes: Vec<Scene>,
}

/// What a store that plays these is opened with.
pub fn options(dir: &std::path::Path, node: &str) -> StoreOptions {
    StoreOptions {
        record_bytes_max: 3 << 20,
        spool_bytes_max: 24 << 20,
        remember_for: Duration::from_secs(3600),
        remember_max: 50,
        ..StoreOptions::new(dir, node)
    }
}

const MINUTE: Duration = Duration::from_secs(60);

pub fn record(key: &str, order_key: Option<&str>) -> NewRecord {
    NewRecord {
        upstream: "queue".into(),
        route: "events".into(),
        order_key: order_key.map(|key| key.as_bytes().to_vec()),
        idempotency_key: key.into(),
        fingerprint: [7; 32],
        ledger: Some("events.a.1.1;tag=00".into()),
        method: "POST".into(),
        target: "/events".into(),
        headers: vec![("content-type".into(), b"text/plain".to_vec())],
        body: key.as_bytes().to_vec(),
        accepted: Wall::from_millis(5),
        first_failure: "connect_refused".into(),
        attempts: 1,
        terms: Terms::default(),
    }
}

async fn put(spool: &Spool, record: &NewRecord) -> u64 {
    spool.enqueue(record).await.expect("it is taken").id.0
}

async fn lease_one(spool: &Spool) -> Option<Leased> {
    spool.lease("queue", 1, MINUTE).await.expect("it works").leased.pop()
}

/// Delivers everything that can be, one after the other. Their keys.
async fn deliver(spool: &Spool) -> Vec<String> {
    let mut delivered = Vec::new();
    while let Some(leased) = lease_one(spool).await {
        delivered.push(leased.record.idempotency_key.clone());
        assert!(spool.ack(leased.lease, 200).await.expect("it works"));
    }
    delivered
}

macro_rules! play {
    ($name:literal, $(|$spool:ident, $clock:ident| $scene:block),+ $(,)?) => {
        Play { name: $name, scenes: vec![$({
            fn scene<'a>($spool: &'a Spool, $clock: &'a SceneClock) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
                Box::pin(async move { let _ = ($spool, $clock); $scene })
            }
            scene
        }),+] }
    };
}

/// All of them.
#[must_use]
pub fn plays() -> Vec<Play> {
    vec![
        play!(
            "what was accepted comes out whole, in order per key, and once",
            |spool, _clock| {
                for n in 0..6 {
                    put(spool, &record(&format!("k{n}"), Some(["x", "y"][n % 2]))).await;
                }
                let big = NewRecord { body: vec![9; 2_500_000], ..record("big", None) };
                put(spool, &big).await;
                let both = spool.lease("queue", 9, MINUTE).await.unwrap();
                let keys: Vec<_> = both.leased.iter().map(|it| it.record.idempotency_key.as_str()).collect();
                assert_eq!(keys, ["k0", "k1", "big"], "the first of every key, side by side");
                for leased in both.leased {
                    spool.release(leased.lease).await.unwrap();
                }
            },
            |spool, _clock| {
                let big = spool.list(None, 99).await.unwrap().pop().unwrap().record.unwrap();
                assert_eq!(big, NewRecord { body: vec![9; 2_500_000], ..record("big", None) });
                let delivered = deliver(spool).await;
                assert_eq!(delivered.len(), 7);
                let of = |wanted: &str| {
                    delivered.iter().filter(|key| wanted.contains(key.as_str())).cloned().collect::<Vec<_>>().join(" ")
                };
                assert_eq!((of("k0 k2 k4"), of("k1 k3 k5")), ("k0 k2 k4".into(), "k1 k3 k5".into()));
            },
            |spool, _clock| {
                assert_eq!(spool.depth().waiting, 0);
                assert!(deliver(spool).await.is_empty(), "nothing is delivered twice");
            },
        ),
        play!(
            "a key is known again: the same payload gets the first number, another one is a conflict",
            |spool, _clock| {
                let id = put(spool, &record("k", None)).await;
                let again = spool.enqueue(&record("k", None)).await.unwrap();
                assert_eq!((again.id.0, again.already), (id, true));
            },
            |spool, _clock| {
                assert!(spool.enqueue(&record("k", None)).await.unwrap().already, "while it waits");
                let other = NewRecord { fingerprint: [8; 32], ..record("k", None) };
                assert!(matches!(spool.enqueue(&other).await, Err(EnqueueError::KeyConflict { .. })));
                assert_eq!(deliver(spool).await, ["k"]);
            },
            |spool, clock| {
                assert!(spool.enqueue(&record("k", None)).await.unwrap().already, "when it has left");
                assert_eq!(spool.lookup("k").await.unwrap().unwrap().state, State::Delivered);
                clock.advance(4_000_000);
                put(spool, &record("other", None)).await;
                assert!(!spool.enqueue(&record("k", None)).await.unwrap().already, "for as long as was said");
            },
        ),
        play!(
            "numbers are not given twice",
            |spool, _clock| {
                assert_eq!(put(spool, &record("a", None)).await, 1);
                assert_eq!(put(spool, &record("b", None)).await, 2);
                deliver(spool).await;
            },
            |spool, clock| {
                clock.advance(4_000_000);
                put(spool, &record("c", None)).await;
                deliver(spool).await;
            },
            |spool, _clock| {
                assert!(put(spool, &record("d", None)).await > 3);
            },
        ),
        play!(
            "a lease runs out, and a late answer decides nothing",
            |spool, clock| {
                put(spool, &record("a", Some("row"))).await;
                let first = lease_one(spool).await.unwrap();
                assert!(lease_one(spool).await.is_none());
                clock.advance(61_000);
                let second = lease_one(spool).await.unwrap();
                assert_eq!(second.attempts, 2, "it may have been tried");
                assert!(!spool.ack(first.lease, 200).await.unwrap());
                assert!(spool.nack(second.lease, Duration::from_secs(5), "503").await.unwrap());
                assert!(lease_one(spool).await.is_none(), "not before its time");
                // A failed try is safe with the next thing that is: alone it costs a count.
                put(spool, &record("b", Some("row"))).await;
            },
            |spool, clock| {
                clock.advance(6000);
                let third = lease_one(spool).await.unwrap();
                assert_eq!((third.attempts, third.last_error.as_str()), (3, "503"));
            },
            |spool, _clock| {
                assert_eq!(deliver(spool).await, ["a", "b"], "a lease does not outlive who gave it");
            },
        ),
        play!(
            "a poisoned record does not block its key, and a person decides",
            |spool, _clock| {
                for key in ["a", "b", "c"] {
                    put(spool, &record(key, Some("row"))).await;
                }
                let poison = lease_one(spool).await.unwrap();
                assert!(spool.park(poison.lease, "refused for good", "422").await.unwrap());
            },
            |spool, _clock| {
                let parked = spool.list(State::Parked, 9).await.unwrap();
                let dead = parked[0].parked.as_ref().unwrap();
                assert_eq!((dead.reason.as_str(), dead.last_words.as_str()), ("refused for good", "422"));
                assert_eq!(parked[0].attempts, 2);
                assert_eq!(lease_one(spool).await.unwrap().record.idempotency_key, "b");
            },
            |spool, _clock| {
                spool.retry(RecordId(1)).await.unwrap();
                let busy = spool.retry(RecordId(2)).await.unwrap_err();
                assert_eq!(busy, StoreError::NotParked { id: RecordId(2), state: State::Waiting });
            },
            |spool, _clock| {
                let again = lease_one(spool).await.unwrap();
                assert_eq!(again.record.idempotency_key, "a", "before everything accepted later");
                spool.park(again.lease, "refused again", "").await.unwrap();
                spool.discard(RecordId(1), "a test order").await.unwrap();
                spool.discard(RecordId(3), "another").await.unwrap();
            },
            |spool, _clock| {
                assert_eq!(deliver(spool).await, ["b"]);
                let discarded = spool.list(State::Discarded, 9).await.unwrap();
                let reasons: Vec<_> = discarded.iter().map(|it| it.settled.clone().unwrap().outcome).collect();
                let reason = |reason: &str| Outcome::Discarded { reason: reason.into() };
                assert_eq!(reasons, [reason("a test order"), reason("another")]);
            },
        ),
        play!(
            "what is out of its time is given up, and what a person asked for is not",
            |spool, _clock| {
                let expires = |key| NewRecord {
                    terms: Terms { expires: Some(Wall::from_millis(1_100_000)), ..Terms::default() },
                    ..record(key, None)
                };
                put(spool, &expires("old")).await;
                put(spool, &expires("asked for")).await;
                put(spool, &record("lasting", None)).await;
                let mut leased = spool.lease("queue", 2, MINUTE).await.unwrap().leased;
                spool.park(leased.pop().unwrap().lease, "no", "").await.unwrap();
                spool.release(leased.pop().unwrap().lease).await.unwrap();
                spool.retry(RecordId(2)).await.unwrap();
            },
            |spool, clock| {
                clock.advance(200_000);
                let expired = spool.expire("queue", 9).await.unwrap();
                let keys: Vec<_> = expired.iter().map(|it| it.record.idempotency_key.as_str()).collect();
                assert_eq!(keys, ["old"]);
            },
            |spool, _clock| {
                assert_eq!(spool.get(RecordId(1)).await.unwrap().unwrap().state, State::Expired);
                let mut delivered = deliver(spool).await;
                delivered.sort();
                assert_eq!(delivered, ["asked for", "lasting"]);
            },
        ),
        play!(
            "who is urgent goes first, but not before an older one of its key",
            |spool, _clock| {
                let with = |key, row, priority| NewRecord {
                    terms: Terms { priority, ..Terms::default() },
                    ..record(key, row)
                };
                put(spool, &with("low", None, Priority::Low)).await;
                put(spool, &with("first of row", Some("row"), Priority::Normal)).await;
                put(spool, &with("urgent of row", Some("row"), Priority::High)).await;
                put(spool, &with("urgent", None, Priority::High)).await;
            },
            |spool, _clock| {
                assert_eq!(deliver(spool).await, ["urgent", "first of row", "urgent of row", "low"]);
            },
        ),
        play!(
            "limits are told before the disk is full, and what was refused was never there",
            |spool, _clock| {
                let big = |key: &str| NewRecord { body: vec![1; 1 << 20], ..record(key, None) };
                put(spool, &big("a")).await;
                let refused = spool.enqueue_within(&big("b"), Some(1 << 20)).await.unwrap_err();
                assert!(matches!(refused, EnqueueError::RouteFull { .. }), "{refused}");
                let large = NewRecord { body: vec![1; 4 << 20], ..record("c", None) };
                assert!(matches!(spool.enqueue(&large).await, Err(EnqueueError::TooLarge { .. })));
                let mut count = 1;
                let full = loop {
                    match spool.enqueue(&big(&format!("d{count}"))).await {
                        Ok(_) => count += 1,
                        Err(error) => break error,
                    }
                };
                assert!(matches!(full, EnqueueError::Full { .. }), "{full}");
                assert_eq!((count, spool.depth().waiting), (23, 23));
            },
            |spool, _clock| {
                assert_eq!(spool.depth().waiting, 23);
                assert!(spool.enqueue(&NewRecord { body: vec![1; 1 << 20], ..record("e", None) }).await.is_err());
                assert_eq!(deliver(spool).await.len(), 23);
                put(spool, &record("e", None)).await;
            },
            |spool, _clock| {
                assert_eq!(deliver(spool).await, ["e"]);
            },
        ),
    ]
}
