//! The machine's own files. Readable and writable by their owner only: the spool holds other people's payloads.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, FlockOperation};

use super::{Background, Disk, DiskFile, LockError};

const MODE: u32 = 0o600;
/// Zeros written at once.
const ZEROS_BYTES: usize = 256 << 10;

/// The machine's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// One of its files.
#[derive(Debug)]
pub struct RealFile(File);

/// The lock file, held open. The lock ends with the process, however that ends.
#[derive(Debug)]
pub struct RealLock(#[expect(dead_code, reason = "held, never read")] File);

/// Folders that were synced before, kept open: a process that has run out of descriptors can still make a new segment's
/// name safe.
static OPEN_DIRS: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());
const OPEN_DIRS_MAX: usize = 16;

impl Disk for RealDisk {
    type File = RealFile;
    type Lock = RealLock;

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<RealFile> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(MODE).open(path)?;
        let file = RealFile(file);
        file.set_len(bytes).inspect_err(|_| _ = fs::remove_file(path))?;
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<RealFile> {
        OpenOptions::new().read(true).write(true).open(path).map(RealFile)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<io::Result<Vec<String>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut open = OPEN_DIRS.lock().unwrap_or_else(PoisonError::into_inner);
        let now = fs::metadata(dir)?;
        let is_same =
            |file: &File| file.metadata().is_ok_and(|then| (then.dev(), then.ino()) == (now.dev(), now.ino()));
        if let Some(known) = open.get(dir).filter(|file| is_same(file)) {
            return known.sync_all();
        }
        let file = File::open(dir)?;
        let synced = file.sync_all();
        if open.len() >= OPEN_DIRS_MAX {
            open.pop_first();
        }
        open.insert(dir.to_owned(), file);
        synced
    }

    fn sync_above(&self, dir: &Path) -> io::Result<()> {
        let dir = fs::canonicalize(dir)?;
        let device = fs::metadata(&dir)?.dev();
        for above in dir.ancestors().skip(1) {
            // Beyond the mount nothing was made by us; nor where we may not even look.
            let synced = match fs::metadata(above) {
                Ok(metadata) if metadata.dev() == device => File::open(above).and_then(|above| above.sync_all()),
                _ => break,
            };
            match synced {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
                other => other?,
            }
        }
        Ok(())
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn begin<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Background<T> {
        Background::beside("seawall-disk", work)
    }

    fn lock(&self, path: &Path) -> Result<RealLock, LockError> {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(MODE).open(path);
        let mut file = options.map_err(LockError::Io)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(LockError::Held { pid: written_pid(&mut file) }),
            Err(error) => return Err(LockError::Io(error.into())),
        }
        let write = || {
            file.set_len(0)?;
            file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)
        };
        // Who has the lock is a courtesy to people: a full disk must not keep a node from emptying its spool.
        let _: io::Result<()> = write();
        Ok(RealLock(file))
    }
}

pub(super) fn written_pid(file: &mut File) -> u32 {
    let mut text = String::new();
    let _ = file.take(32).read_to_string(&mut text);
    text.trim().parse().unwrap_or(0)
}

impl DiskFile for RealFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn write_zeros(&self, from: u64) -> io::Result<()> {
        let (end, zeros) = (self.size()?, vec![0; ZEROS_BYTES]);
        let mut at = from;
        while at < end {
            let length = zeros.len().min((end - at) as usize);
            self.0.write_all_at(&zeros[..length], at)?;
            at += length as u64;
        }
        Ok(())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let now = self.size()?;
        if bytes <= now {
            return self.0.set_len(bytes);
        }
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), now, bytes - now) {
            // Not every file system can reserve room; zeros without room are the next best thing.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.0.set_len(bytes),
            other => other.map_err(io::Error::from),
        }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
