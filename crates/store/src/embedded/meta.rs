//! The file `META`: whose directory this is, how often it was opened, and the ledger's key. Replaced as a whole, by
//! rename, so that it is always one version or the other.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::log::{io_error, write_whole};
use crate::disk::Disk;
use crate::error::OpenError;

const NAME: &str = "META";
const TEMPORARY: &str = "META.tmp";
const FIRST_WORD: &str = "seawall-store";
const VERSION: u32 = 1;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) node: String,
    pub(crate) epoch: u64,
    pub(crate) secret: [u8; 32],
}

/// Reads the file, or begins one, counts the epoch up and makes that durable.
pub(crate) fn open<D: Disk>(
    disk: &D,
    dir: &Path,
    node: &str,
    secret: impl FnOnce() -> [u8; 32],
) -> Result<Meta, OpenError> {
    let node: String = node.escape_default().collect();
    let mut meta = match read(disk, dir)? {
        Some(meta) if meta.node == node => meta,
        Some(meta) => return Err(OpenError::OtherNode { dir: dir.into(), found: meta.node, node }),
        None => Meta { node, epoch: 0, secret: secret() },
    };
    meta.epoch += 1;
    write(disk, dir, &meta)?;
    Ok(meta)
}

fn read<D: Disk>(disk: &D, dir: &Path) -> Result<Option<Meta>, OpenError> {
    let path = dir.join(NAME);
    match disk.read(&path) {
        Ok(bytes) => parse(&bytes, &path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let names = disk.list(dir).map_err(io_error("list", dir))?;
            match names.into_iter().find(|name| !may_be_there_before(name)) {
                Some(file) => Err(OpenError::NotOurs { dir: dir.into(), file }),
                None => Ok(None),
            }
        }
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

/// Names a fresh directory may hold: our lock, a first start that was cut short, and what volumes come with.
fn may_be_there_before(name: &str) -> bool {
    name == super::LOCK_NAME || name == TEMPORARY || name == "lost+found" || name.starts_with('.')
}

fn write<D: Disk>(disk: &D, dir: &Path, meta: &Meta) -> Result<(), OpenError> {
    let (path, temporary) = (dir.join(NAME), dir.join(TEMPORARY));
    write_whole(disk, &temporary, render(meta).as_bytes())?;
    disk.rename(&temporary, &path).map_err(io_error("replace", &path))?;
    disk.sync_dir(dir).map_err(io_error("sync folder", dir))
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

fn parse(bytes: &[u8], path: &Path) -> Result<Meta, OpenError> {
    let foreign = || OpenError::Foreign { path: path.into(), expected: "Seawall's description of a data directory" };
    let text = str::from_utf8(bytes).map_err(|_| foreign())?;
    let first = text.lines().next().and_then(|line| line.strip_prefix(FIRST_WORD)).ok_or_else(foreign)?;
    let found: u32 = first.trim().parse().map_err(|_| foreign())?;
    if found > VERSION {
        return Err(OpenError::Newer { path: path.into(), found, known: VERSION });
    }
    if found < VERSION {
        return Err(OpenError::Older { path: path.into(), found, known: VERSION });
    }
    let what = "its lines do not match their checksum".into();
    fields(text).ok_or_else(|| OpenError::Damaged { path: path.into(), offset: 0, what })
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

    #[test]
    fn every_opening_is_counted_and_the_secret_is_kept() {
        let disk = disk();
        for epoch in 1..=3 {
            let meta = open(&disk, dir(), "us-east-1", || [epoch as u8; 32]).unwrap();
            assert_eq!(meta, Meta { node: "us-east-1".into(), epoch, secret: [1; 32] });
        }
        let error = open(&disk, dir(), "other", || unreachable!()).unwrap_err();
        assert_eq!(error.to_string(), "data directory `data` belongs to node `us-east-1`, this node is `other`");
        assert!(error.hint().unwrap().contains("old name"));
        assert_eq!(open(&disk.crash(), dir(), "us-east-1", || unreachable!()).unwrap().epoch, 4);
    }

    #[test]
    fn what_is_not_ours_is_told() {
        let told = |bytes: &str| {
            let disk = disk();
            write_whole(&disk, &dir().join(NAME), bytes.as_bytes()).unwrap();
            open(&disk, dir(), "n", || [0; 32]).unwrap_err().to_string()
        };
        let good = render(&Meta { node: "n".into(), epoch: 7, secret: [0xa5; 32] });
        assert_eq!(told("hello\n"), "`data/META` is not Seawall's description of a data directory");
        assert_eq!(told("seawall-store x"), "`data/META` is not Seawall's description of a data directory");
        assert!(told(&good.replace("store 1", "store 2")).contains("has format version 2, this program knows up to 1"));
        assert!(told(&good.replace("store 1", "store 0")).contains("has format version 0, this program knows 1"));
        assert!(told(&good.replace("epoch 7", "epoch 8")).contains("do not match their checksum"));
        assert!(told("seawall-store 1\n").contains("do not match their checksum"));
        let other = disk();
        write_whole(&other, &dir().join("holiday.jpg"), b"x").unwrap();
        let error = open(&other, dir(), "n", || [0; 32]).unwrap_err();
        assert_eq!(error.to_string(), "`data` holds files but no Seawall store (`holiday.jpg`, for one)");
        let missing = open(&other, Path::new("nowhere"), "n", || [0; 32]).unwrap_err();
        assert_eq!(missing.to_string(), "cannot list `nowhere`");
    }
}
