//! The file `META`: whose directory this is, how often it was opened, and the ledger's key.
//!
//! Two slots, written in turn and in place: a torn write leaves the other one, and a full disk cannot keep a node from
//! opening its own directory. Both are there from the beginning: one that rots leaves the other one too.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::log::{io_error, write_whole};
use crate::disk::{Disk, DiskFile};
use crate::error::OpenError;

pub(crate) const NAME: &str = "META";
const TEMPORARY: &str = "META.tmp";
/// There while a directory takes over what a replica holds of its node.
pub(crate) const RESTORING: &str = "RESTORING";
/// There once what a directory holds is another's: it says whose.
pub(crate) const SUPERSEDED: &str = "SUPERSEDED";
/// There from when a node begins to take in what a directory holds until it has it all: it says which node.
pub(crate) const ADOPTER: &str = "ADOPTER";
/// There while what a damaged directory lost is taken from the replica.
pub(crate) const FILLING: &str = "FILLING";
const FIRST_WORD: &str = "seawall-store";
const VERSION: u32 = 1;
/// Slots lie in different blocks of the disk.
const SLOT_BYTES: usize = 4096;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) node: String,
    pub(crate) epoch: u64,
    pub(crate) secret: [u8; 32],
}

/// What was found there.
struct Found {
    meta: Meta,
    /// One of the slots does not read as it was written, or was torn.
    is_half: bool,
}

/// Reads the file, or begins one, counts the epoch up and makes that durable. True if one of its slots was not whole.
pub(crate) fn open<D: Disk>(
    disk: &D,
    dir: &Path,
    node: &str,
    epoch_min: u64,
    secret: impl FnOnce() -> [u8; 32],
) -> Result<(Meta, bool), OpenError> {
    // Odd, as the first slot's epochs are.
    let epoch_min = epoch_min.max(1) | 1;
    let node: String = node.escape_default().collect();
    match read(disk, dir)? {
        None => {
            let meta = Meta { node, epoch: epoch_min, secret: secret() };
            begin(disk, dir, &meta)?;
            Ok((meta, false))
        }
        Some(Found { mut meta, is_half }) if meta.node == node => {
            // The slot that is not whole may have held the next epoch, and that one may have been used. It is the one
            // to be written: an odd step.
            meta.epoch += if is_half { 3 } else { 1 };
            rewrite(disk, dir, &meta)?;
            Ok((meta, is_half))
        }
        Some(Found { meta, .. }) => Err(OpenError::OtherNode { dir: dir.into(), found: meta.node, node }),
    }
}

/// True if a directory has been opened before.
pub(crate) fn is_there<D: Disk>(disk: &D, dir: &Path) -> Result<bool, OpenError> {
    let path = dir.join(NAME);
    match disk.read(&path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

fn read<D: Disk>(disk: &D, dir: &Path) -> Result<Option<Found>, OpenError> {
    let path = dir.join(NAME);
    match disk.read(&path) {
        Ok(bytes) => parse(&bytes, &path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let names = disk.list(dir).map_err(io_error("list", dir))?;
            // A start that was to take over and was cut short has left folders behind, emptied since.
            let is_restoring = names.iter().any(|name| name == RESTORING);
            let is_folder = |name: &str| matches!(name, "spool" | "journal" | "ledger");
            let is_ours = |name: &String| may_be_there_before(name) || (is_restoring && is_folder(name));
            match names.into_iter().find(|name| !is_ours(name)) {
                Some(file) => Err(OpenError::NotOurs { dir: dir.into(), file }),
                None => Ok(None),
            }
        }
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

/// Names a fresh directory may hold: our lock, a first start that was cut short, and what volumes come with.
fn may_be_there_before(name: &str) -> bool {
    matches!(name, super::LOCK_NAME | TEMPORARY | RESTORING | FILLING) || name == "lost+found" || name.starts_with('.')
}

/// The first time: the whole file, under its name only when it is safe.
fn begin<D: Disk>(disk: &D, dir: &Path, meta: &Meta) -> Result<(), OpenError> {
    let (path, temporary) = (dir.join(NAME), dir.join(TEMPORARY));
    let mut bytes = vec![0; 2 * SLOT_BYTES];
    let before = Meta { epoch: meta.epoch - 1, ..meta.clone() };
    for (slot, meta) in bytes.chunks_mut(SLOT_BYTES).zip([meta, &before]) {
        let text = render(meta);
        slot[..text.len()].copy_from_slice(text.as_bytes());
    }
    write_whole(disk, &temporary, &bytes)?;
    disk.rename(&temporary, &path).map_err(io_error("replace", &path))?;
    disk.sync_dir(dir).map_err(io_error("sync folder", dir))
}

fn rewrite<D: Disk>(disk: &D, dir: &Path, meta: &Meta) -> Result<(), OpenError> {
    let path = dir.join(NAME);
    let mut slot = render(meta).into_bytes();
    slot.resize(SLOT_BYTES, 0);
    // Epoch 1 is in the first slot: the one before this stays whole.
    let offset = if meta.epoch % 2 == 1 { 0 } else { SLOT_BYTES as u64 };
    let file = disk.open(&path).map_err(io_error("open", &path))?;
    file.write_at(&slot, offset).and_then(|()| file.sync_data()).map_err(io_error("write", &path))
}

fn render(meta: &Meta) -> String {
    let Meta { node, epoch, secret } = meta;
    let mut text = format!("{FIRST_WORD} {VERSION}\nnode {node}\nepoch {epoch}\nsecret ");
    for byte in secret {
        let _ = write!(text, "{byte:02x}");
    }
    let check = crc32fast::hash(text.as_bytes());
    let _ = writeln!(text, "\ncheck {check:08x}");
    text
}

/// The slot with the higher epoch, of those that are whole.
fn parse(bytes: &[u8], path: &Path) -> Result<Found, OpenError> {
    let is_written = |slot: &&[u8]| slot.iter().any(|&byte| byte != 0);
    let written = bytes.chunks(SLOT_BYTES).take(2).filter(is_written).count();
    let mut slots: Vec<Result<Meta, OpenError>> =
        bytes.chunks(SLOT_BYTES).take(2).map(|slot| parse_slot(slot, path)).collect();
    let is_other_version =
        |slot: &Result<Meta, OpenError>| matches!(slot, Err(OpenError::Newer { .. } | OpenError::Older { .. }));
    if let Some(other) = slots.iter().position(is_other_version) {
        return Err(slots.swap_remove(other).expect_err("it is one"));
    }
    let best = slots.iter().flatten().max_by_key(|meta| meta.epoch).cloned();
    // Early versions left the second slot to the second start.
    let wanted = if best.as_ref().is_some_and(|meta| meta.epoch == 1) { written } else { slots.len().max(2) };
    let is_half = slots.iter().flatten().count() < wanted;
    let worst = slots.into_iter().find_map(Result::err).unwrap_or_else(|| foreign(path));
    best.map(|meta| Found { meta, is_half }).ok_or(worst)
}

fn parse_slot(slot: &[u8], path: &Path) -> Result<Meta, OpenError> {
    let text = slot.split(|&byte| byte == 0).next().and_then(|text| str::from_utf8(text).ok());
    let text = text.ok_or_else(|| foreign(path))?;
    let first = text.lines().next().and_then(|line| line.strip_prefix(FIRST_WORD)).ok_or_else(|| foreign(path))?;
    let found: u32 = first.trim().parse().map_err(|_| foreign(path))?;
    let meta = fields(text).ok_or_else(|| OpenError::MetaDamaged { path: path.into() })?;
    match found {
        VERSION => Ok(meta),
        0..VERSION => Err(OpenError::Older { path: path.into(), found, known: VERSION }),
        _ => Err(OpenError::Newer { path: path.into(), found, known: VERSION }),
    }
}

fn foreign(path: &Path) -> OpenError {
    OpenError::Foreign { path: path.into(), expected: "Seawall's description of a data directory" }
}

fn fields(text: &str) -> Option<Meta> {
    let (body, check) = text.rsplit_once("\ncheck ")?;
    if u32::from_str_radix(check.trim(), 16).ok()? != crc32fast::hash(body.as_bytes()) {
        return None;
    }
    let value = |name| body.lines().find_map(|line| line.strip_prefix(name));
    let hex = value("secret ")?.as_bytes();
    let mut secret = [0; 32];
    for (byte, digits) in secret.iter_mut().zip(hex.chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(Meta { node: value("node ")?.into(), epoch: value("epoch ")?.parse().ok()?, secret })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    fn dir() -> &'static Path {
        Path::new("data")
    }

    fn disk() -> SimDisk {
        let disk = SimDisk::new(1);
        disk.create_dir_all(dir()).unwrap();
        disk
    }

    fn open_as(disk: &SimDisk, node: &str) -> Result<Meta, OpenError> {
        open(disk, dir(), node, 1, || [1; 32]).map(|(meta, _)| meta)
    }

    #[test]
    fn every_opening_is_counted_and_the_secret_is_kept() {
        let disk = disk();
        for epoch in 1..=3 {
            let (meta, is_half) = open(&disk, dir(), "us-east-1", 1, || [epoch as u8; 32]).unwrap();
            assert!(!is_half);
            assert_eq!(meta, Meta { node: "us-east-1".into(), epoch, secret: [1; 32] });
        }
        let error = open_as(&disk, "other").unwrap_err();
        assert_eq!(error.to_string(), "data directory `data` belongs to node `us-east-1`, this node is `other`");
        assert!(error.hint().unwrap().contains("old name"));
        assert_eq!(open_as(&disk.crash(), "us-east-1").unwrap().epoch, 4);
    }

    #[test]
    fn a_torn_slot_leaves_the_other() {
        let disk = disk();
        for _ in 0..4 {
            open_as(&disk, "n").unwrap();
        }
        disk.corrupt(&dir().join(NAME), SLOT_BYTES + 20, 1);
        let (meta, is_half) = open(&disk, dir(), "n", 1, || [1; 32]).unwrap();
        assert_eq!((meta.epoch, is_half), (6, true), "the fourth may have been used: it is given to nobody again");
        assert_eq!(open_as(&disk, "n").unwrap().epoch, 7);
        disk.corrupt(&dir().join(NAME), 20, 1);
        disk.corrupt(&dir().join(NAME), SLOT_BYTES + 20, 1);
        let error = open_as(&disk, "n").unwrap_err();
        assert!(error.to_string().contains("neither of its two copies"), "{error}");
        assert!(!error.hint().unwrap().contains("--quarantine"), "it would not help");
    }

    #[test]
    fn any_bit_may_flip_in_any_life() {
        for lives in 1..4 {
            let disk = disk();
            for _ in 0..lives {
                open_as(&disk, "n").unwrap();
            }
            let bytes = disk.read(&dir().join(NAME)).unwrap();
            for offset in (0..bytes.len()).filter(|&at| bytes[at] != 0) {
                let rotten = disk.backup();
                rotten.corrupt(&dir().join(NAME), offset, 1);
                let meta = open_as(&rotten, "n").unwrap_or_else(|error| panic!("byte {offset}: {error}"));
                assert!(meta.epoch > lives && meta.secret == [1; 32], "byte {offset} of life {lives}: {meta:?}");
            }
        }
    }

    #[test]
    fn a_slot_that_was_never_written_is_no_damage() {
        let disk = disk();
        let mut bytes = render(&Meta { node: "n".into(), epoch: 1, secret: [1; 32] }).into_bytes();
        bytes.resize(2 * SLOT_BYTES, 0);
        write_whole(&disk, &dir().join(NAME), &bytes).unwrap();
        let (meta, is_half) = open(&disk, dir(), "n", 1, || [0; 32]).unwrap();
        assert_eq!((meta.epoch, is_half), (2, false));
        // In any later life it was written, and is rotten.
        open_as(&disk, "n").unwrap();
        for slot in 0..2 {
            let rotten = disk.backup();
            let mut bytes = rotten.read(&dir().join(NAME)).unwrap();
            bytes[slot * SLOT_BYTES..][..SLOT_BYTES].fill(0);
            write_whole(&rotten, &dir().join(NAME), &bytes).unwrap();
            let (meta, is_half) = open(&rotten, dir(), "n", 1, || [0; 32]).unwrap();
            assert_eq!((meta.epoch, is_half), ([5, 6][slot], true), "slot {slot}");
        }
    }

    #[test]
    fn a_full_disk_is_no_obstacle() {
        let disk = disk();
        open_as(&disk, "n").unwrap();
        disk.set_capacity(disk.used_bytes());
        assert_eq!(open_as(&disk, "n").unwrap().epoch, 2);
    }

    #[test]
    fn what_is_not_ours_is_told() {
        let told = |bytes: &str| {
            let disk = disk();
            write_whole(&disk, &dir().join(NAME), bytes.as_bytes()).unwrap();
            open_as(&disk, "n").unwrap_err().to_string()
        };
        let good = render(&Meta { node: "n".into(), epoch: 7, secret: [0xa5; 32] });
        let of_version = |version: u32| {
            let text = good.replace("store 1", &format!("store {version}"));
            let (body, _) = text.rsplit_once("\ncheck ").unwrap();
            format!("{body}\ncheck {:08x}\n", crc32fast::hash(body.as_bytes()))
        };
        assert_eq!(told("hello\n"), "`data/META` is not Seawall's description of a data directory");
        assert_eq!(told("seawall-store x"), "`data/META` is not Seawall's description of a data directory");
        assert!(told(&of_version(2)).contains("has format version 2, this program knows up to 1"));
        assert!(told(&of_version(0)).contains("has format version 0, this program knows 1"));
        assert!(told(&good.replace("epoch 7", "epoch 8")).contains("neither of its two copies"));
        assert!(told("seawall-store 1\n").contains("neither of its two copies"));
        let other = disk();
        write_whole(&other, &dir().join("holiday.jpg"), b"x").unwrap();
        let error = open_as(&other, "n").unwrap_err();
        assert_eq!(error.to_string(), "`data` holds files but no Seawall store (`holiday.jpg`, for one)");
        let missing = open(&other, Path::new("nowhere"), "n", 1, || [0; 32]).unwrap_err();
        assert_eq!(missing.to_string(), "cannot list `nowhere`");
    }
}
