//! A disk that runs full: an answer, nothing half-written, and it passes by itself.

use std::time::Duration;

use seawall_core::spool::State;
use seawall_store::disk::Fault;
use seawall_store::{EnqueueError, OpenError, Opened, SimDisk};

use crate::{open, open_with, options, record, with};

const MINUTE: Duration = Duration::from_secs(60);

/// An open store whose disk has room for one more segment.
fn tight(disk: &SimDisk) -> Opened<SimDisk> {
    let opened = open(disk);
    disk.set_capacity(disk.used_bytes() + (10 << 10) + 1000);
    opened
}

#[test]
fn a_full_disk_refuses_records_takes_acknowledgements_and_recovers() {
    let disk = SimDisk::new(1);
    with(tight(&disk), async |store| {
        let spool = &store.spool;
        let mut kept = 0;
        let error = loop {
            match spool.enqueue(&record(&format!("k{kept}"), None, &[1; 700])).await {
                Ok(_) => kept += 1,
                Err(error) => break error,
            }
        };
        assert_eq!((&error, error.to_string().as_str()), (&EnqueueError::DiskFull, "the disk is full"));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(5)));
        assert!(spool.depth().disk_full);
        assert!(kept >= 8, "{kept}");
        assert_eq!(spool.depth().waiting, kept);
        let used = disk.used_bytes();
        for _ in 0..50 {
            assert_eq!(spool.enqueue(&record("again", None, b"x")).await, Err(EnqueueError::DiskFull));
        }
        assert_eq!(disk.used_bytes(), used, "refusing costs nothing");
        for leased in spool.lease("queue", 100, MINUTE).await.unwrap().leased {
            assert!(spool.ack(leased.lease, 200).await.unwrap());
        }
        assert_eq!(spool.depth().waiting, 0);
        spool.enqueue(&record("again", None, b"x")).await.expect("there is room again");
        assert!(!spool.depth().disk_full);
    });
    with(open_with(&disk.crash(), crate::options()).unwrap(), async |store| {
        assert_eq!(store.spool.depth().waiting, 1, "acknowledgements were written though the disk was full");
        assert_eq!(store.spool.lookup("again").await.unwrap().unwrap().state, State::Waiting);
    });
}

#[test]
fn smaller_segments_are_used_where_there_is_little_room() {
    let disk = SimDisk::new(2);
    let mut options = options();
    options.spool_segment_bytes = 64 << 10;
    with(open_with(&disk, options).unwrap(), async |store| {
        let before = store.spool.depth().disk_bytes;
        // Not enough for another segment of the usual size, enough for half of one.
        disk.set_capacity(disk.used_bytes() + 40_000);
        for n in 0..70 {
            store.spool.enqueue(&record(&format!("k{n}"), None, &[1; 700])).await.unwrap();
        }
        let depth = store.spool.depth();
        assert_eq!((depth.disk_bytes, depth.disk_full), (before + (32 << 10), false));
    });
}

#[test]
fn a_write_without_room_leaves_nothing_and_the_next_one_is_kept() {
    let disk = SimDisk::new(3);
    with(open_with(&disk, options()).unwrap(), async |store| {
        let spool = &store.spool;
        spool.enqueue(&record("a", Some("row"), b"a")).await.unwrap();
        // As on file systems that copy on write: even reserved room may be gone.
        disk.fail_call(1, Fault::NoSpace);
        assert_eq!(spool.enqueue(&record("b", Some("row"), b"b")).await, Err(EnqueueError::DiskFull));
        assert_eq!(spool.lookup("b").await, Ok(None));
        assert_eq!(spool.depth().waiting, 1);
        let kept = spool.enqueue(&record("c", None, b"c")).await.unwrap();
        assert_eq!(kept.id.0, 2, "the number was told to nobody");
        let leased = spool.lease("queue", 9, MINUTE).await.unwrap().leased;
        disk.fail_call(1, Fault::NoSpace);
        for leased in leased {
            assert!(spool.ack(leased.lease, 200).await.unwrap(), "it was delivered, room or no room");
        }
        spool.enqueue(&record("d", None, b"d")).await.unwrap();
    });
    with(open_with(&disk.crash(), options()).unwrap(), async |store| {
        let state = async |key| store.spool.lookup(key).await.unwrap().map(|known| known.state);
        assert_eq!(state("a").await, Some(State::Delivered), "what was owed was written");
        assert_eq!(state("b").await, None);
        assert_eq!(state("c").await, Some(State::Delivered));
        assert_eq!(state("d").await, Some(State::Waiting));
    });
}

#[test]
fn a_full_disk_is_asked_again_though_nobody_enqueues() {
    let disk = SimDisk::new(1);
    with(tight(&disk), async |store| {
        let mut n = 0;
        while store.spool.enqueue(&record(&format!("k{n}"), None, &[1; 700])).await.is_ok() {
            n += 1;
        }
        assert!(store.spool.depth().disk_full);
        disk.set_capacity(u64::MAX);
        let cleared = async {
            while store.spool.depth().disk_full {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), cleared).await.expect("it asks by itself");
    });
}

#[test]
fn opening_needs_room_and_says_so() {
    let disk = SimDisk::new(4);
    disk.set_capacity(5000);
    let error = open_with(&disk, options()).map(|_| ()).unwrap_err();
    assert!(matches!(&error, OpenError::Io { what: "make", .. }), "{error}");
    assert!(error.hint().unwrap().contains("free some space"));
}

#[test]
fn a_full_disk_does_not_keep_a_node_from_emptying_its_spool() {
    let disk = SimDisk::new(5);
    with(tight(&disk), async |store| {
        let mut n = 0;
        while store.spool.enqueue(&record(&format!("k{n}"), None, &[1; 700])).await.is_ok() {
            n += 1;
        }
    });
    let disk = disk.crash();
    disk.set_capacity(disk.used_bytes());
    let opened = open(&disk);
    assert_eq!(opened.report.epoch, 2);
    with(opened, async |store| {
        assert!(store.spool.depth().disk_full);
        while let Some(leased) = store.spool.lease("queue", 1, MINUTE).await.unwrap().leased.pop() {
            assert!(store.spool.ack(leased.lease, 200).await.unwrap());
        }
        store.spool.enqueue(&record("again", None, b"x")).await.expect("what was delivered made room");
    });
    assert_eq!(open(&disk.crash()).report.waiting, 1);
}
