//! The machine's own files: the same promises on a real file system.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use seawall_core::journal::{Draft, Kind};
use seawall_store::disk::{Disk, DiskFile, LockError, LookDisk, RealDisk};
use seawall_store::{OpenError, Opened, StoreOptions};

use crate::{open_with, options, record, with};

fn options_at(dir: &Path) -> StoreOptions {
    StoreOptions { dir: dir.join("data"), ..options() }
}

fn open(dir: &Path) -> Opened<RealDisk> {
    open_with(&RealDisk, options_at(dir)).expect("opens")
}

#[test]
fn a_store_on_real_files_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    assert_eq!(opened.report.epoch, 1);
    let (store, threads) = (opened.store, opened.engine.spawn_threads().unwrap());
    crate::runtime().block_on(async {
        for n in 0..200_u8 {
            store.spool.enqueue(&record(&format!("k{n}"), Some("row"), &[n; 500])).await.unwrap();
        }
        for _ in 0..150 {
            let found = store.spool.lease("queue", 1, Duration::from_secs(60)).await.unwrap();
            for leased in found.leased {
                assert!(store.spool.ack(leased.lease, 200).await.unwrap());
            }
        }
        store.journal.record(Draft::new(Kind::NodeStopped, "node"));
        store.ledger.append(vec![1]);
        store.close().await;
    });
    threads.join();
    let opened = open(dir.path());
    assert_eq!((opened.report.waiting, opened.report.epoch, opened.ledger_records.len()), (50, 2, 1));
    assert_eq!(opened.report.spool.torn_bytes, 0);
    assert_eq!(opened.store.journal.recent(1)[0].kind, Kind::NodeStopped);
    assert_eq!(format!("{:?}", opened.store.secret), "Secret(..)");
    let segment = std::fs::read_dir(dir.path().join("data/spool")).unwrap().next().unwrap().unwrap();
    assert_eq!(segment.metadata().unwrap().permissions().mode() & 0o777, 0o600, "payloads are nobody else's");
}

#[test]
fn dropping_every_handle_stops_the_threads() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, engine, .. } = open(dir.path());
    let threads = engine.spawn_threads().unwrap();
    crate::runtime().block_on(async { store.spool.enqueue(&record("a", None, b"a")).await.unwrap() });
    drop(store);
    threads.join();
    assert_eq!(open(dir.path()).report.waiting, 1);
}

#[test]
fn one_directory_one_node() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let error = open_with(&RealDisk, options_at(dir.path())).map(|_| ()).unwrap_err();
    let expected = format!(
        "data directory `{}` is in use by another running node (pid {})",
        dir.path().join("data").display(),
        std::process::id()
    );
    assert_eq!(error.to_string(), expected);
    assert!(error.hint().unwrap().contains("its own `store.path`"));
    drop(first);
    drop(open(dir.path()));
}

#[test]
fn a_directory_of_somebody_else_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(dir.path().join("data/thesis.tex"), "x").unwrap();
    let error = open_with(&RealDisk, options_at(dir.path())).map(|_| ()).unwrap_err();
    assert!(matches!(&error, OpenError::NotOurs { file, .. } if file == "thesis.tex"), "{error}");
    let options = StoreOptions { dir: dir.path().join("data/thesis.tex"), ..options() };
    let error = open_with(&RealDisk, options).map(|_| ()).unwrap_err();
    assert!(matches!(&error, OpenError::Io { what: "make folder", .. }), "{error}");
    assert_eq!(error.hint(), None);
}

#[test]
fn files_do_what_the_contract_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let file = RealDisk.create(&path, 10_000).unwrap();
    assert_eq!(file.size().unwrap(), 10_000);
    assert_eq!(RealDisk.create(&path, 1).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    file.write_at(b"hello", 5000).unwrap();
    file.set_len(5003).unwrap();
    file.set_len(6000).unwrap();
    file.sync_data().unwrap();
    let mut bytes = [1; 6];
    RealDisk.open(&path).unwrap().read_at(&mut bytes, 5000).unwrap();
    assert_eq!(&bytes, b"hel\0\0\0");
    assert!(file.read_at(&mut bytes, 5999).is_err());
    assert!(RealDisk.free_bytes(dir.path()).unwrap() > 0);
    assert!(RealDisk.create(&dir.path().join("huge"), 1 << 60).is_err());
    assert_eq!(RealDisk.list(dir.path()).unwrap(), ["file"], "a failed attempt leaves nothing behind");
    std::fs::write(dir.path().join("LOCK"), "not a number").unwrap();
    let held = RealDisk.lock(&dir.path().join("LOCK")).unwrap();
    assert!(matches!(RealDisk.lock(&dir.path().join("LOCK")), Err(LockError::Held { .. })));
    drop(held);
    assert!(matches!(RealDisk.lock(&dir.path().join("no/LOCK")), Err(LockError::Io(_))));
}

#[test]
fn a_look_sees_what_a_start_would_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    with(open(dir.path()), async |store| {
        for n in 0..40_u8 {
            store.spool.enqueue(&record(&format!("k{n}"), None, &[n; 1500])).await.unwrap();
        }
        store.ledger.append_synced(vec![7]).await.unwrap();
    });
    let data = dir.path().join("data");
    // A tail that a start would cut.
    let last = segments_at(&data).pop().unwrap();
    let torn = std::fs::OpenOptions::new().write(true).open(&last).unwrap();
    let image = std::fs::read(&last).unwrap();
    let end = image.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    std::os::unix::fs::FileExt::write_all_at(&torn, b"half a batch", end.next_multiple_of(64) as u64).unwrap();
    let before = bytes_of(&data);
    let looked = open_with(&LookDisk::default(), options_at(dir.path())).unwrap();
    assert_eq!((looked.report.waiting, looked.report.epoch, &*looked.ledger_records), (40, 2, &[vec![7]][..]));
    with(looked, async |store| {
        for n in 0..40_u8 {
            assert!(store.spool.enqueue(&record(&format!("l{n}"), None, &[n; 1500])).await.is_ok(), "in memory only");
        }
        for _ in 0..60 {
            let leased = store.spool.lease("queue", 1, Duration::from_secs(60)).await.unwrap().leased.remove(0);
            assert!(store.spool.ack(leased.lease, 200).await.unwrap());
        }
        assert_eq!(store.spool.depth().waiting, 20);
        store.journal.record(Draft::new(Kind::NodeStopped, "node"));
        store.ledger.compact(vec![8], vec![]).await.unwrap();
        store.close().await;
    });
    assert_eq!(bytes_of(&data), before);
    assert_eq!(open(dir.path()).report.waiting, 40);
}

/// A node that runs is left alone; one that wants to start is not kept from it.
#[test]
fn a_look_takes_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let error = open_with(&LookDisk::default(), options_at(dir.path())).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { pid, .. } if pid == std::process::id()), "{error}");
    drop(node);
    let _looking = open_with(&LookDisk::default(), options_at(dir.path())).unwrap();
    drop(open(dir.path()));
    let nothing = tempfile::tempdir().unwrap();
    let made = open_with(&LookDisk::default(), options_at(nothing.path())).unwrap();
    assert_eq!(made.report.epoch, 1);
    assert_eq!(std::fs::read_dir(nothing.path()).unwrap().count(), 0, "not even a folder");
}

#[test]
fn changes_in_memory_are_seen_by_everybody_who_looks() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("a"), b"on the disk").unwrap();
    let disk = LookDisk::default();
    let (one, two) = (disk.open(&path("a")).unwrap(), disk.open(&path("a")).unwrap());
    one.write_at(b"of", 0).unwrap();
    one.write_at(b"!!", 12).unwrap();
    let mut bytes = [0; 3];
    two.read_at(&mut bytes, 11).unwrap();
    assert_eq!((&bytes, two.size().unwrap()), (b"\0!!", 14));
    assert!(two.read_at(&mut bytes, 12).is_err(), "beyond the end");
    drop((one, two));
    assert_eq!(disk.clone().read(&path("a")).unwrap(), b"of the disk\0!!");
    disk.rename(&path("a"), &path("b")).unwrap();
    disk.create(&path("c"), 3).unwrap().set_len(5).unwrap();
    assert_eq!(disk.create(&path("c"), 3).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(
        (disk.list(dir.path()).unwrap(), disk.read(&path("c")).unwrap()),
        (vec!["b".into(), "c".into()], vec![0; 5])
    );
    disk.remove(&path("c")).unwrap();
    for gone in ["a", "c", "never"] {
        assert_eq!(disk.open(&path(gone)).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }
    assert!(disk.free_bytes(dir.path()).unwrap() > 0);
    assert_eq!(std::fs::read(path("a")).unwrap(), b"on the disk");
    assert_eq!(RealDisk.list(dir.path()).unwrap(), ["a"]);
}

fn segments_at(data: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(data.join("spool")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    found.sort();
    found
}

fn bytes_of(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(bytes_of(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}
