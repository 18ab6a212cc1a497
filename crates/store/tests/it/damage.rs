//! Bytes that were safe and changed, files that are not ours, versions that are not known.

use std::path::{Path, PathBuf};
use std::time::Duration;

use seawall_core::spool::State;
use seawall_store::disk::{Disk, DiskFile};
use seawall_store::{OnDamage, OpenError, Opened, SimDisk};

use crate::{open, open_with, options, record, segments, spool_dir, with};

fn first() -> PathBuf {
    spool_dir().join("0000000001.log")
}

/// Forty records of 300 bytes, each a batch of its own, over several segments.
fn filled() -> SimDisk {
    let disk = SimDisk::new(1);
    with(open(&disk), async |store| {
        for n in 0..40_u8 {
            store.spool.enqueue(&record(&format!("k{n}"), Some("row"), &[n; 300])).await.unwrap();
        }
    });
    let disk = disk.crash();
    assert!(segments(&disk).len() >= 3, "{:?}", segments(&disk));
    disk
}

fn refused(disk: &SimDisk) -> OpenError {
    open_with(disk, options()).map(|_| ()).unwrap_err()
}

fn quarantined(disk: &SimDisk) -> Opened<SimDisk> {
    let mut options = options();
    options.on_damage = OnDamage::Quarantine;
    open_with(disk, options).expect("goes on with what can be saved")
}

fn replace(disk: &SimDisk, path: &Path, bytes: &[u8]) {
    if disk.read(path).is_ok() {
        disk.remove(path).unwrap();
    }
    let file = disk.create(path, bytes.len() as u64).unwrap();
    file.write_at(bytes, 0).and_then(|()| file.sync_data()).unwrap();
    disk.sync_dir(path.parent().unwrap()).unwrap();
}

/// Opens with quarantine, and again without: the damage is gone, and so are `lost` records, and no others.
fn saved(disk: &SimDisk, lost: u64) -> Vec<String> {
    let opened = quarantined(disk);
    assert_eq!((opened.report.waiting, opened.report.spool.lost.min(1)), (40 - lost, 1), "{:?}", opened.report);
    assert!(opened.report.is_damaged());
    let damaged = opened.report.spool.damaged.clone();
    let keys = with(opened, async |store| {
        let waiting = store.spool.list(State::Waiting, 100).await.unwrap();
        let next = store.spool.enqueue(&record("new", None, b"x")).await.unwrap();
        assert!(next.id.0 > 1000, "numbers that may have been in the damage are skipped");
        waiting.into_iter().map(|account| account.record.unwrap().idempotency_key).collect()
    });
    assert!(damaged.iter().all(|path| disk.read(path).is_ok()), "the damaged file is kept");
    let again = open_with(&disk.crash(), options()).expect("whole again");
    assert!(!again.report.is_damaged());
    assert_eq!(again.report.waiting, 41 - lost);
    keys
}

#[test]
fn a_flipped_bit_in_the_middle_is_told_and_costs_one_record() {
    let disk = filled();
    disk.corrupt(&first(), 5000, 0x20);
    let error = refused(&disk);
    let text = error.to_string();
    assert!(text.starts_with("segment `data/spool/0000000001.log` is damaged at byte 4"), "{text}");
    assert!(text.contains("do not match their checksums"), "{text}");
    assert!(error.hint().unwrap().contains("`seawall run --quarantine`"));
    let keys = saved(&disk, 1);
    assert!(!keys.contains(&"k1".into()), "{keys:?}");
}

/// The first batch has nothing before it that would miss it.
fn the_first_batch_is_watched(disk: &SimDisk, front: &Path) {
    let (header, bytes) = (4096, disk.read(front).unwrap());
    let end = header + (1..).find(|at| bytes[header + at..].starts_with(b"SAWB")).unwrap();
    for offset in header..end {
        let rotten = disk.backup();
        rotten.corrupt(front, offset, 0x10);
        let told = open_with(&rotten, options()).map(|opened| opened.report);
        // Zeros that fill up the batch are nobody's.
        let is_filling = bytes[offset..end].iter().all(|&byte| byte == 0);
        assert!(told.is_err() || is_filling, "byte {offset} of `{}`: {told:?}", front.display());
        assert!(told.is_ok() || quarantined(&rotten).report.spool.lost == 1);
        assert!(open_with(&rotten, options()).is_ok(), "it was made whole");
    }
}

#[test]
fn any_flipped_bit_in_the_first_batch_is_told() {
    the_first_batch_is_watched(&filled(), &first());
}

#[test]
fn any_flipped_bit_in_the_first_batch_that_is_left_is_told() {
    let disk = filled();
    with(open(&disk), async |store| {
        for _ in 0..20 {
            // One row: one at a time.
            let leased = store.spool.lease("queue", 1, Duration::from_secs(60)).await.unwrap().leased.remove(0);
            store.spool.ack(leased.lease, 200).await.unwrap();
        }
    });
    let disk = disk.crash();
    let front = spool_dir().join(&segments(&disk)[0]);
    assert_ne!(front, first(), "the first segment is gone");
    the_first_batch_is_watched(&disk, &front);
}

#[test]
fn a_zeroed_block_costs_the_batches_in_it() {
    let disk = filled();
    let mut bytes = disk.read(&first()).unwrap();
    bytes[5000..6000].fill(0);
    replace(&disk, &first(), &bytes);
    assert!(refused(&disk).to_string().contains("0000000001.log"));
    let keys = saved(&disk, 3);
    assert_eq!(keys.len(), 37);
}

#[test]
fn a_segment_that_lost_its_end_is_noticed_by_the_next_one() {
    let disk = filled();
    let mut bytes = disk.read(&first()).unwrap();
    let length = bytes.len();
    bytes[7000..length].fill(0);
    replace(&disk, &first(), &bytes);
    let OpenError::Damaged { offset, .. } = refused(&disk) else { panic!("a batch is cut") };
    bytes[offset as usize..].fill(0);
    replace(&disk, &first(), &bytes);
    let text = refused(&disk).to_string();
    let expected = format!("segment `data/spool/0000000001.log` is damaged at byte {offset}: batch");
    assert!(text.starts_with(&expected) && text.contains("is missing before batch"), "{text}");
    let opened = quarantined(&disk);
    let left = opened.report.waiting;
    drop(opened);
    assert!(left < 40 && left > 25, "{left}");
    let again = open_with(&disk.crash(), options()).expect("whole again");
    assert_eq!(again.report.waiting, left);
}

#[test]
fn a_missing_segment_is_noticed() {
    let disk = filled();
    let middle = spool_dir().join("0000000002.log");
    disk.remove(&middle).unwrap();
    assert!(refused(&disk).to_string().contains("is missing before batch"));
    let opened = quarantined(&disk);
    assert!(opened.report.spool.lost > 0 && opened.report.waiting > 0);
}

#[test]
fn a_damaged_header_does_not_cost_the_records() {
    let filled = filled();
    for offset in 0..64 {
        let disk = filled.backup();
        disk.corrupt(&first(), offset, 1);
        let text = refused(&disk).to_string();
        assert!(text.contains("damaged at byte 0: its header does not match"), "byte {offset}: {text}");
        let opened = quarantined(&disk);
        assert_eq!((opened.report.waiting, opened.report.spool.damaged.len()), (40, 1), "byte {offset}");
        drop(opened);
        assert_eq!(open_with(&disk.crash(), options()).unwrap().report.waiting, 40);
    }
}

#[test]
fn a_segment_of_nothing_but_zeros_is_lost_and_told() {
    let disk = filled();
    let length = disk.read(&first()).unwrap().len();
    replace(&disk, &first(), &vec![0; length]);
    assert!(refused(&disk).to_string().contains("its header does not match"));
    let opened = quarantined(&disk);
    assert!(opened.report.waiting < 40 && opened.report.waiting > 0);
    assert!(opened.report.spool.lost >= 1);
}

#[test]
fn a_torn_tail_is_cut_and_counted() {
    let disk = filled();
    let last = spool_dir().join(segments(&disk).pop().unwrap());
    let bytes = disk.read(&last).unwrap();
    let end = bytes.iter().rposition(|&byte| byte != 0).unwrap();
    disk.corrupt(&last, end, 0xff);
    let opened = open(&disk);
    assert_eq!(opened.report.waiting, 39, "the last batch of the last segment cannot be told from a torn one");
    assert!(opened.report.spool.torn_bytes > 0);
    assert!(!opened.report.is_damaged());
}

#[test]
fn files_of_others_are_left_alone() {
    let disk = filled();
    let mut foreign = disk.read(&first()).unwrap();
    foreign[..7].copy_from_slice(b"SQLite ");
    replace(&disk, &first(), &foreign);
    let error = refused(&disk);
    assert_eq!(error.to_string(), "`data/spool/0000000001.log` is not a segment of Seawall's spool");
    assert!(error.hint().unwrap().contains("a directory of its own"));
    let disk = filled();
    replace(&disk, &spool_dir().join("access.log"), b"GET /");
    assert_eq!(refused(&disk).to_string(), "`data/spool/access.log` is not a segment of Seawall's spool");
    let disk = filled();
    let swapped = disk.read(&spool_dir().join("0000000002.log")).unwrap();
    replace(&disk, &first(), &swapped);
    assert!(matches!(refused(&disk), OpenError::Foreign { .. }), "a segment under another's name");
}

#[test]
fn other_versions_are_told() {
    let version = |version: u8| {
        let disk = filled();
        let mut bytes = disk.read(&first()).unwrap();
        bytes[8] = version;
        let crc = crc32(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        replace(&disk, &first(), &bytes);
        refused(&disk)
    };
    let newer = version(2);
    assert_eq!(newer.to_string(), "`data/spool/0000000001.log` has format version 2, this program knows up to 1");
    assert_eq!(newer.hint(), Some("start the version that wrote it, or a later one"));
    let older = version(0);
    assert_eq!(older.to_string(), "`data/spool/0000000001.log` has format version 0, this program knows 1 and later");
    assert_eq!(older.hint(), Some("drain it with the version that wrote it"));
}

/// The checksum of the format, bit by bit: the document's own words, not the library's.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[test]
fn a_record_that_cannot_be_read_any_more_becomes_a_dead_letter() {
    let disk = SimDisk::new(5);
    with(open(&disk), async |store| {
        let spool = &store.spool;
        spool.enqueue(&record("a", Some("row"), &[1; 300])).await.unwrap();
        spool.enqueue(&record("b", Some("row"), &[2; 300])).await.unwrap();
        disk.corrupt(&first(), 4400, 0x01);
        let minute = Duration::from_secs(60);
        assert!(spool.lease("queue", 1, minute).await.unwrap().leased.is_empty());
        let next = spool.lease("queue", 1, minute).await.unwrap().leased.pop().expect("the row goes on");
        assert_eq!(next.record.idempotency_key, "b");
        assert_eq!(spool.depth().parked, 1);
        let error = spool.list(State::Parked, 9).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot read record 1: the checksum does not match");
        assert!(error.hint().is_some());
        spool.discard(seawall_core::id::RecordId(1), "unreadable").await.unwrap();
    });
}

#[test]
fn a_flipped_bit_costs_one_record_of_a_batch_and_not_the_batch() {
    let disk = SimDisk::new(6);
    with(open(&disk), async |store| {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..8_u8 {
            let spool = store.spool.clone();
            tasks.spawn(async move { spool.enqueue(&record(&format!("k{n}"), None, &[n; 300])).await.unwrap() });
        }
        while tasks.join_next().await.is_some() {}
        store.spool.enqueue(&record("later", None, b"x")).await.unwrap();
    });
    let disk = disk.crash();
    disk.corrupt(&first(), 5500, 0x04);
    let text = refused(&disk).to_string();
    assert!(text.contains("1 records of batch"), "{text}");
    let opened = quarantined(&disk);
    assert_eq!((opened.report.waiting, opened.report.spool.lost), (8, 1));
    drop(opened);
    assert_eq!(open_with(&disk.crash(), options()).unwrap().report.waiting, 8);
}

#[test]
fn what_rots_under_way_stays_where_it_is_and_the_rest_goes_on() {
    let disk = SimDisk::new(7);
    with(open(&disk), async |store| {
        let spool = &store.spool;
        let minute = Duration::from_secs(60);
        spool.enqueue(&record("rotten", None, &[1; 300])).await.unwrap();
        let leased = spool.lease("queue", 1, minute).await.unwrap().leased.pop().unwrap();
        assert!(spool.park(leased.lease, "refused", "").await.unwrap());
        disk.corrupt(&first(), 4400, 0x01);
        for n in 0..100 {
            spool.enqueue(&record(&format!("k{n}"), None, &[2; 700])).await.unwrap();
            let leased = spool.lease("queue", 1, minute).await.unwrap().leased.pop().unwrap();
            assert!(spool.ack(leased.lease, 200).await.unwrap());
        }
        assert!(disk.read(&first()).is_ok(), "it is not thrown away");
        spool.discard(seawall_core::id::RecordId(1), "unreadable").await.unwrap();
        spool.enqueue(&record("next", None, b"x")).await.unwrap();
    });
}
