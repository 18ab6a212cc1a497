//! The journal: numbered at once, written soon, read back, and never in the way.

use std::path::Path;
use std::time::Duration;

use seawall_core::journal::chain::{Flaw, Verified};
use seawall_core::journal::{Draft, Kind, Seq};
use seawall_core::time::Wall;
use seawall_store::disk::{Disk, DiskFile as _, Fault};
use seawall_store::{Journal, QUEUE_ENTRIES_MAX, Query, SimDisk, Store, TAIL_ENTRIES_MAX};

use crate::{TestClock, open, open_with, options, with};

fn query(after: u64, limit: usize) -> Query {
    Query { after, limit, ..Query::default() }
}

async fn seqs(journal: &Journal, query: Query) -> Vec<u64> {
    journal.query(query).await.unwrap().iter().map(|entry| entry.seq.0).collect()
}

#[test]
fn entries_have_numbers_causes_and_subscribers() {
    let disk = SimDisk::new(1);
    with(open(&disk), async |store| {
        let journal = &store.journal;
        let mut live = journal.subscribe();
        assert_eq!(journal.last(), None);
        let started = journal.record(Draft::new(Kind::NodeStarted, "node"));
        let opened = journal.record(Draft::new(Kind::BreakerOpened, "route:events").because(Some(started)));
        journal.record(Draft::new(Kind::BreakerOpened, "route:quotes"));
        assert_eq!((started, opened, journal.last()), (Seq(1), Seq(2), Some(Seq(3))));
        assert_eq!(live.recv().await.unwrap().seq, Seq(1));
        assert_eq!(live.recv().await.unwrap().cause, Some(Seq(1)));
        assert_eq!(journal.recent(2).iter().map(|entry| entry.seq.0).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(seqs(journal, query(1, 9)).await, [2, 3]);
        assert_eq!(seqs(journal, query(0, 2)).await, [1, 2]);
        let by_kind = Query { kind: Some(Kind::BreakerOpened), ..query(0, 9) };
        assert_eq!(seqs(journal, by_kind.clone()).await, [2, 3]);
        let by_subject = Query { subject: Some("route:quotes".into()), ..by_kind };
        assert_eq!(seqs(journal, by_subject).await, [3]);
        journal.flush().await.unwrap();
        assert!(journal.disk_bytes() > 0);
    });
    with(open(&disk.crash()), async |store| {
        assert_eq!(seqs(&store.journal, query(0, 9)).await, [1, 2, 3]);
        assert_eq!(store.journal.record(Draft::new(Kind::NodeStarted, "node")), Seq(4), "numbers go on");
        assert_eq!(store.journal.dropped_total(), 0);
    });
}

#[test]
fn entries_are_safe_a_moment_later_without_anybody_asking() {
    let disk = SimDisk::new(2);
    with(open(&disk), async |store| {
        let calls = disk.calls();
        store.journal.record(Draft::new(Kind::NodeStarted, "node"));
        let synced = async {
            while disk.calls() < calls + 2 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), synced).await.expect("written and synced by itself");
    });
    with(open(&disk.crash()), async |store| assert_eq!(store.journal.last(), Some(Seq(1))));
}

#[test]
fn old_entries_are_read_from_segments_and_the_oldest_go() {
    let disk = SimDisk::new(3);
    let mut options = options();
    options.journal_segment_bytes = 70 << 10;
    options.journal_bytes_max = 1_500 << 10;
    let (total, mut last) = (9000, 0);
    with(open_with(&disk, options.clone()).unwrap(), async |store| {
        for n in 1..=total {
            store
                .journal
                .record(Draft::new(Kind::RecordParked, "spool").with("record", n).with("reason", "x".repeat(90)));
            if n % 1000 == 0 {
                store.journal.flush().await.unwrap();
            }
        }
        assert_eq!(store.journal.dropped_total(), 0);
        assert!(store.journal.disk_bytes() <= 1_500 << 10, "{}", store.journal.disk_bytes());
        assert_eq!(store.journal.recent(usize::MAX).len(), TAIL_ENTRIES_MAX);
        let first = seqs(&store.journal, query(0, 1)).await[0];
        assert!(first > 1 && first < total - TAIL_ENTRIES_MAX as u64, "{first}");
        let after = first + 100;
        assert_eq!(seqs(&store.journal, query(after, 3)).await, [after + 1, after + 2, after + 3]);
        let all = seqs(&store.journal, query(0, usize::MAX)).await;
        last = *all.last().unwrap();
        assert_eq!(all, (first..=last).collect::<Vec<_>>());
        let trimmed = Query { kind: Some(Kind::JournalTrimmed), newest: true, limit: 1, ..Query::default() };
        let trimmed = store.journal.query(trimmed).await.unwrap().remove(0);
        assert_eq!(trimmed.fields["through"], (first - 1).to_string(), "those that went are told");
        let found = store.journal.verify(None).await.unwrap();
        assert!(found.holds() && found.starts_late && found.front_is_told, "{found:?}");
    });
    let names = disk.list(Path::new("data/journal")).unwrap();
    let front = names.iter().find(|name| name.ends_with(".log")).unwrap().clone();
    let disk = disk.crash();
    with(open_with(&disk, options.clone()).unwrap(), async |store| {
        assert_eq!(store.journal.last(), Some(Seq(last)));
        assert_eq!(seqs(&store.journal, query(last - 2, 9)).await, [last - 1, last]);
        assert!(seqs(&store.journal, query(0, 1)).await[0] > 1);
    });
    disk.remove(&Path::new("data/journal").join(front)).unwrap();
    with(open_with(&disk, options).unwrap(), async |store| {
        let found = store.journal.verify(None).await.unwrap();
        assert!(!found.holds() && !found.front_is_told, "another hand took more: {found:?}");
    });
}

#[test]
fn entries_go_when_they_are_old_and_what_was_told_first_stays_told() {
    let (disk, clock) = (SimDisk::new(12), TestClock::default());
    let mut options = options();
    options.journal_segment_bytes = 70 << 10;
    options.journal_keep = Some(Duration::from_secs(3000));
    let opened = Store::open(disk.clone(), options, clock.clone(), || [7; 32]).unwrap();
    with(opened, async |store| {
        for n in 0..900 {
            store.journal.record(Draft::new(Kind::RecordParked, "spool").with("reason", "x".repeat(190)));
            clock.advance_ms(5_000);
            if n % 50 == 0 {
                store.journal.flush().await.unwrap();
            }
        }
        store.journal.flush().await.unwrap();
        let found = store.journal.verify(None).await.unwrap();
        let first = found.first.unwrap();
        assert!((100..500).contains(&first), "75 minutes of 900 entries, 50 kept, whole segments: {first}");
        assert!(found.holds() && found.front_is_told, "{found:?}");
        let trimmed = Query { kind: Some(Kind::JournalTrimmed), limit: 9, ..Query::default() };
        let trimmed = store.journal.query(trimmed).await.unwrap();
        assert!(!trimmed.is_empty() && trimmed.iter().all(|entry| entry.fields["because"] == "age"), "{trimmed:?}");
    });
}

#[test]
fn entries_are_found_by_time_by_cause_and_from_either_end() {
    let (disk, clock) = (SimDisk::new(11), TestClock::default());
    let mut options = options();
    options.journal_segment_bytes = 70 << 10;
    let total = 2 * TAIL_ENTRIES_MAX as u64;
    let opened = Store::open(disk, options, clock.clone(), || [7; 32]).unwrap();
    with(opened, async |store| {
        let root = store.journal.record(Draft::new(Kind::ConfigLoaded, "config"));
        for n in 2..=total {
            clock.advance_ms(1);
            let cause = (n % 1000 == 0).then_some(root);
            store.journal.record(Draft::new(Kind::RecordParked, "spool").because(cause));
            if n % 1000 == 0 {
                store.journal.flush().await.unwrap();
            }
        }
        let at = |millis| Some(Wall::from_millis(millis));
        let ask = async |query: Query| seqs(&store.journal, query).await;
        let all = Query { limit: 99, ..Query::default() };
        // Entry n was seen at millisecond n - 1.
        assert_eq!(ask(Query { since: at(9), until: at(12), ..all.clone() }).await, [10, 11, 12]);
        assert_eq!(ask(Query { until: at(3), newest: true, limit: 2, ..all.clone() }).await, [2, 3]);
        assert_eq!(ask(Query { since: at(total - 2), ..all.clone() }).await, [total - 1, total]);
        let led_to = Query { cause: Some(root), ..all.clone() };
        assert_eq!(ask(led_to.clone()).await, (1..=total / 1000).map(|n| n * 1000).collect::<Vec<_>>());
        assert_eq!(ask(Query { newest: true, limit: 1, ..led_to }).await, [total / 1000 * 1000], "from memory");
        assert_eq!(ask(Query { limit: 0, newest: true, ..all }).await, [0; 0]);
    });
}

#[test]
fn what_does_not_fit_the_queue_is_counted_and_told() {
    let disk = SimDisk::new(4);
    with(open(&disk), async |store| {
        let journal = &store.journal;
        for _ in 0..QUEUE_ENTRIES_MAX + 7 {
            journal.record(Draft::new(Kind::LimitReached, "node"));
        }
        assert_eq!(journal.dropped_total(), 7);
        journal.record(Draft::new(Kind::LimitReached, "node").with("long", "x".repeat(100_000)));
        journal.flush().await.unwrap();
        journal.flush().await.unwrap();
        let told = journal.recent(1).pop().unwrap();
        assert_eq!((told.kind, told.subject.as_str()), (Kind::LimitReached, "journal"));
        assert_eq!(told.fields["entries_dropped"], "8");
        journal.record(Draft::new(Kind::LimitReached, "node").with("long", "x".repeat(100_000)));
        journal.flush().await.unwrap();
        assert_eq!(journal.dropped_total(), 9, "a single entry beyond the limit is dropped, too");
    });
}

#[test]
fn a_journal_that_cannot_be_written_stops_nobody() {
    let disk = SimDisk::new(5);
    with(open(&disk), async |store| {
        store.journal.record(Draft::new(Kind::NodeStarted, "node"));
        store.journal.flush().await.unwrap();
        disk.fail_call(1, Fault::NoSpace);
        store.journal.record(Draft::new(Kind::NodeStarted, "node"));
        store.journal.flush().await.unwrap();
        assert_eq!(store.journal.dropped_total(), 1);
        store.journal.record(Draft::new(Kind::NodeStarted, "node"));
        store.journal.flush().await.unwrap();
        assert_eq!(store.journal.recent(1)[0].fields["entries_dropped"], "1", "it passes, and is told");
        store.journal.flush().await.unwrap();
        disk.fail_call(2, Fault::Io);
        store.journal.record(Draft::new(Kind::NodeStarted, "node"));
        store.journal.flush().await.unwrap();
        let dropped = store.journal.dropped_total();
        assert_eq!(dropped, 2, "a failed sync is never repeated");
        let last = store.journal.record(Draft::new(Kind::NodeDraining, "node"));
        store.journal.flush().await.unwrap();
        assert_eq!(store.journal.dropped_total(), dropped + 1);
        assert_eq!(store.journal.recent(1)[0].seq, last, "in memory it goes on");
        store.spool.enqueue(&crate::record("a", None, b"a")).await.expect("the spool does not mind");
    });
}

#[test]
fn a_damaged_journal_does_not_keep_the_node_from_starting() {
    let disk = SimDisk::new(6);
    with(open(&disk), async |store| {
        for _ in 0..20 {
            store.journal.record(Draft::new(Kind::NodeStarted, "node"));
            store.journal.flush().await.unwrap();
        }
    });
    let disk = disk.crash();
    let path = std::path::Path::new("data/journal/0000000001.log");
    disk.corrupt(path, 4096 + 60, 0xff);
    let opened = open(&disk);
    assert_eq!(opened.report.journal.damaged, [path.with_extension("log.damaged")]);
    assert_eq!(opened.report.journal.lost, 1);
    with(opened, async |store| {
        assert_eq!(seqs(&store.journal, query(0, 99)).await, (2..=20).collect::<Vec<_>>());
        for _ in 0..TAIL_ENTRIES_MAX {
            store.journal.record(Draft::new(Kind::NodeStarted, "node"));
        }
        store.journal.flush().await.unwrap();
        disk.remove(path).unwrap();
        let error = store.journal.query(query(0, 9)).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot read journal segment 1:"), "{error}");
    });
}

async fn verified(store: &Store) -> Verified {
    store.journal.verify(None).await.unwrap()
}

fn record_some(store: &Store, count: u64) {
    for n in 0..count {
        store.journal.record(Draft::new(Kind::RecordParked, "spool").with("record", n));
    }
}

#[test]
fn the_chain_goes_on_over_restarts_segments_and_retention() {
    let disk = SimDisk::new(6);
    let mut options = options();
    options.journal_segment_bytes = 70 << 10;
    options.journal_bytes_max = 400 << 10;
    let anchor = with(open_with(&disk, options.clone()).unwrap(), async |store| {
        record_some(store, 300);
        let found = verified(store).await;
        assert!(found.holds() && !found.starts_late, "{found:?}");
        assert_eq!((found.linked, found.first), (300, Some(1)));
        found.head
    });
    with(open_with(&disk.crash(), options).unwrap(), async |store| {
        record_some(store, 5);
        let found = store.journal.verify(anchor).await.unwrap();
        assert!(found.holds(), "{found:?}");
        assert_eq!(found.linked, 305);
        for _ in 0..10 {
            record_some(store, 1000);
            store.journal.flush().await.unwrap();
        }
        let found = verified(store).await;
        assert!(found.holds() && found.starts_late && found.first > Some(1), "{found:?}");
        let gone = store.journal.verify(anchor).await.unwrap();
        assert!(gone.holds() && gone.anchor_too_old, "{gone:?}");
    });
}

#[test]
fn what_a_full_disk_keeps_out_is_missing_and_no_break() {
    let disk = SimDisk::new(7);
    with(open(&disk), async |store| {
        record_some(store, 3);
        store.journal.flush().await.unwrap();
        disk.fail_call(1, Fault::NoSpace);
        record_some(store, 4);
        store.journal.flush().await.unwrap();
        assert_eq!(store.journal.dropped_total(), 4);
        record_some(store, 2);
        let found = verified(store).await;
        assert!(found.holds(), "{found:?}");
        assert_eq!(found.numbers_missing, 4);
        assert!(found.linked >= 5, "{found:?}");
    });
}

#[test]
fn damage_and_another_hand_are_found() {
    let path = std::path::Path::new("data/journal/0000000001.log");
    let of_secret = |disk: &SimDisk, secret: u8| {
        Store::open(disk.clone(), options(), TestClock::default(), || [secret; 32]).unwrap()
    };
    let (disk, forged, other) = (SimDisk::new(8), SimDisk::new(9), SimDisk::new(10));
    for (disk, secret) in [(&disk, 7), (&forged, 7), (&other, 8)] {
        with(of_secret(disk, secret), async |store| {
            for _ in 0..3 {
                record_some(store, 1);
                store.journal.flush().await.unwrap();
            }
        });
    }
    // The whole segment of another directory: every checksum is right.
    let bytes = other.read(path).unwrap();
    forged.open(path).unwrap().write_at(&bytes, 0).unwrap();
    with(open(&forged), async |store| {
        assert_eq!(store.journal.query(query(0, 9)).await.unwrap().len(), 3, "it reads as if nothing were");
        let found = verified(store).await;
        assert_eq!(found.breaks.iter().map(|it| it.flaw).collect::<Vec<_>>(), [Flaw::Changed; 3]);
    });
    // The first of three batches: its record begins behind the segment's header, the batch's and its own.
    disk.corrupt(path, 4096 + 40 + 8 + 70, 1);
    with(open(&disk), async |store| {
        let found = verified(store).await;
        assert_eq!((found.linked, found.first, found.starts_late), (2, Some(2), true), "{found:?}");
        assert_eq!(found.breaks.iter().map(|it| it.flaw).collect::<Vec<_>>(), [Flaw::Disconnected]);
    });
}
