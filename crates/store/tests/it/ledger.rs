//! The ledger's log: what was appended is read back, in order, since the last snapshot.

use std::time::Duration;

use seawall_core::prng::Prng;
use seawall_store::disk::Fault;
use seawall_store::{SimDisk, StoreError};

use crate::{open, open_with, options, with};

#[test]
fn appends_come_back_in_order() {
    let disk = SimDisk::new(1);
    with(open(&disk), async |store| {
        assert!(store.ledger.append(vec![1]));
        assert!(store.ledger.append(vec![]));
        store.ledger.append_synced(vec![3; 5000]).await.unwrap();
        for n in 0..10 {
            store.ledger.append_synced(vec![n; 3000]).await.unwrap();
        }
    });
    let records = open(&disk.crash()).ledger_records;
    assert_eq!(records.len(), 13);
    assert_eq!((&records[0], &records[1], &records[2]), (&vec![1], &vec![], &vec![3; 5000]));
    assert_eq!(records[12], vec![9; 3000]);
}

#[test]
fn a_lazy_append_is_safe_a_moment_later() {
    let disk = SimDisk::new(2);
    with(open(&disk), async |store| {
        let calls = disk.calls();
        assert!(store.ledger.append(vec![1, 2, 3]));
        let synced = async {
            while disk.calls() < calls + 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), synced).await.expect("written and synced by itself");
    });
    assert_eq!(open(&disk.crash()).ledger_records, [[1, 2, 3]]);
}

#[test]
fn a_snapshot_replaces_what_was_before() {
    let disk = SimDisk::new(3);
    with(open(&disk), async |store| {
        for n in 0..20 {
            store.ledger.append_synced(vec![n; 1000]).await.unwrap();
        }
        let before = store.ledger.disk_bytes();
        store.ledger.compact(vec![7; 100], vec![]).await.unwrap();
        assert!(store.ledger.disk_bytes() < before);
        store.ledger.append_synced(vec![8]).await.unwrap();
        // Larger than a segment: it gets one of its own.
        store.ledger.compact(vec![9; 50_000], vec![vec![11], vec![12; 9_000]]).await.unwrap();
        assert!(store.ledger.append(vec![10]));
        store.ledger.close().await;
    });
    let records = open(&disk.crash()).ledger_records;
    assert_eq!(records, [vec![9; 50_000], vec![11], vec![12; 9_000], vec![10]]);
}

#[test]
fn a_full_disk_and_a_failed_sync_are_told() {
    let disk = SimDisk::new(4);
    with(open(&disk), async |store| {
        store.ledger.append_synced(vec![1]).await.unwrap();
        disk.fail_call(1, Fault::NoSpace);
        assert_eq!(store.ledger.append_synced(vec![2]).await, Err(StoreError::DiskFull));
        disk.set_capacity(disk.used_bytes());
        assert_eq!(store.ledger.compact(vec![2], vec![]).await, Err(StoreError::DiskFull));
        disk.fail_call(1, Fault::NoSpace);
        assert!(store.ledger.append(vec![2]));
        while store.ledger.lost_total() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(store.ledger.append_synced(vec![3; 9000]).await, Err(StoreError::DiskFull));
        assert!(store.ledger.append(vec![3; 9000]));
        while store.ledger.lost_total() == 1 {
            tokio::task::yield_now().await;
        }
        store.ledger.append_synced(vec![4]).await.unwrap();
        assert_eq!(store.failure(), None);
        disk.fail_call(2, Fault::Io);
        let error = store.ledger.append_synced(vec![5]).await.unwrap_err();
        assert!(matches!(&error, StoreError::Stopped { reason } if reason.contains("cannot sync")), "{error}");
        assert!(store.ledger.append_synced(vec![6]).await.is_err());
        assert!(store.failure().unwrap().contains("cannot sync"), "whoever asks the store is told");
    });
    let records = open(&disk.crash()).ledger_records;
    assert_eq!(records[..2], [vec![1], vec![4]]);
}

#[test]
fn a_segment_that_was_begun_and_not_used_is_no_damage() {
    for (full, cut, seed) in
        (1..12).flat_map(|full| (1..20).flat_map(move |cut| (0..6).map(move |seed| (full, cut, seed))))
    {
        let disk = SimDisk::new(seed);
        with(open(&disk), async |store| {
            store.ledger.append_synced(vec![1; 9_000]).await.unwrap();
            disk.fail_call(full, Fault::NoSpace);
            // What a batch without room left there is none either.
            _ = store.ledger.compact(vec![2; 3_000], vec![]).await;
            disk.fail_call(cut, Fault::PowerCut);
            _ = store.ledger.compact(vec![3], vec![]).await;
        });
        let opened = open_with(&disk.crash(), options());
        let report = opened.unwrap_or_else(|error| panic!("{full} {cut} {seed}: {error}")).report;
        assert!(!report.is_damaged(), "{full} {cut} {seed}: {report:?}");
    }
}

#[test]
fn power_cuts_leave_the_old_account_or_the_new_one() {
    for seed in 0..2000 {
        let (mut disk, mut prng) = (SimDisk::new(seed), Prng::new(seed));
        let (mut promised, mut asked) = (Vec::<u8>::new(), Vec::<u8>::new());
        for _ in 0..3 {
            disk.fail_call(prng.below(60) + 12, Fault::PowerCut);
            let mut life = prng.fork();
            if let Ok(opened) = open_with(&disk, options()) {
                with(opened, async |store| {
                    for _ in 0..12 {
                        // The account is a sum; a snapshot is the sum so far.
                        let is_snapshot = life.chance(0.3);
                        let bytes = vec![asked.len() as u8; 1 + life.below(4000) as usize];
                        asked.push(bytes[0]);
                        let done = if is_snapshot {
                            let (sum, since) = asked.split_at(life.below(asked.len() as u64 + 1) as usize);
                            let since = since.iter().map(|&entry| vec![entry; 1 + life.below(900) as usize]).collect();
                            store.ledger.compact([sum, &[255]].concat(), since).await
                        } else {
                            store.ledger.append_synced(bytes).await
                        };
                        if done.is_err() {
                            return;
                        }
                        promised.clone_from(&asked);
                    }
                });
            }
            disk = disk.crash();
            let mut account = Vec::new();
            for found in open_with(&disk, options()).unwrap().ledger_records {
                match found.split_last() {
                    Some((255, sum)) => account = sum.to_vec(),
                    _ => account.push(found[0]),
                }
            }
            assert!(account == promised || account == asked, "seed {seed}: {account:?} of {promised:?}, {asked:?}");
            (promised, asked) = (account.clone(), account);
            disk = disk.crash();
        }
    }
}
